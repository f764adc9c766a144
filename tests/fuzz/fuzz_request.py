"""The head parser: whatever the bytes are, and however they are cut, it says what `rfc9112` says.

An input is one byte that chooses limits, one that chooses cuts, and the head. The parser is called as the server calls
it: the same C function, on a buffer that has exactly the bytes that have come, so that a sanitizer sees a look behind
them. The structs are read off its header.
"""
from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import rfc9112

import epollkit
from epollkit import _http1, _http1_python
from epollkit.errors import PeerError

LIMITS = (rfc9112.Limits(), rfc9112.Limits(40, 3, 30), rfc9112.Limits(20, 100, 16), rfc9112.Limits(16, 1, 200))
MOST_PIECES = 30
MOST_BYTE_BY_BYTE = 500
METHODS = (b"", b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE")
FORMS = 3

HEADER = Path(epollkit.__file__).with_name("_http1.pxd").read_text()


def struct(name: str, constants: dict[str, int], known: dict[str, type]) -> type[ctypes.Structure]:
    """A struct of the parser's header."""
    body = re.search(rf"^cdef struct {name}:.*\n((?:    .*\n)+)", HEADER, re.MULTILINE)
    assert body is not None
    members: list[tuple[str, type]] = []
    for kind, member, count in re.findall(r"^    (\w+) (\w+)(?:\[(\w+)\])?\s*(?:#.*)?$", body[1], re.MULTILINE):
        found = known.get(kind) or getattr(ctypes, f"c_{kind.removesuffix('_t')}")
        members.append((member, found * constants[count] if count else found))
    return type(name, (ctypes.Structure,), {"_fields_": members})


CONSTANTS = {name: int(value) for name, value in re.findall(r"^    (\w+) = (\d+)", HEADER, re.MULTILINE)}
Field = struct("HeadField", CONSTANTS, {})
Head = struct("Head", CONSTANTS, {"HeadField": Field})
HeadLimits = struct("HeadLimits", CONSTANTS, {})


def function(name: str, *parameters: type) -> ctypes._CFuncPtr:
    """What the parser's module exports to others."""
    capsule = ctypes.py_object(_http1.__pyx_capi__[name])
    name_of, pointer_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    prototype = ctypes.PYFUNCTYPE(ctypes.c_int, *parameters)
    return prototype(pointer_of(capsule, name_of(capsule)))


parse_head = function("parse_head", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
head_reset = function("head_reset", ctypes.c_void_p)
C = ctypes.CDLL(None)
C.malloc.restype, C.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
C.free.restype, C.free.argtypes = None, [ctypes.c_void_p]


def parse(data: bytes, ends: Iterable[int], limits: object, head: ctypes.Structure) -> int:
    """The final answer, or 0, of a head that comes in pieces with these ends. Each time it lies somewhere else."""
    head_reset(ctypes.addressof(head))
    answer = seen = 0
    for end in ends:
        buffer = C.malloc(end)
        ctypes.memmove(buffer, data, end)
        answer = parse_head(ctypes.addressof(head), buffer, end, ctypes.addressof(limits))
        assert head.scanned <= end and head.consumed <= end, f"{head.consumed} and {head.scanned} of {end} bytes"
        if answer:
            again = parse_head(ctypes.addressof(head), buffer, end, ctypes.addressof(limits))
            assert answer == again, f"asked again it says {again}, not {answer}"
        C.free(buffer)
        assert answer < 0 or seen <= head.scanned, f"{head.scanned} bytes looked at, {seen} before"
        seen = head.scanned
        if answer:
            break
    return answer


def fields_of(head: ctypes.Structure, data: bytes) -> list[tuple[bytes, bytes]]:
    """Slices of the input, all within the head."""
    found = []
    for field in head.fields[:head.field_count]:
        assert 0 < field.name < field.name + field.name_length < field.value <= field.value + field.value_length
        assert field.value + field.value_length <= head.consumed - 4
        found.append((data[field.name:field.name + field.name_length],
                      data[field.value:field.value + field.value_length]))
    return found


def outcome(answer: int, head: ctypes.Structure, data: bytes) -> rfc9112.Head | tuple[int, int, int] | None:
    """What the parser makes of it, in the reference's words: a head; status, reason and place of a refusal; None."""
    if answer == 0:
        return None
    if answer < 0:
        assert head.reason and _http1.reason_text(head.reason)
        return -answer, head.reason, head.scanned
    assert head.reason == 0 and answer == head.consumed == head.scanned
    assert head.target_form < FORMS and head.method < len(METHODS)
    method = data[head.method_name:head.method_name + head.method_name_length]
    assert METHODS[head.method] == (method if method in METHODS else b"")
    target = data[head.target:head.target + head.target_length]
    authority = data[head.authority:head.authority + head.authority_length]
    assert (head.target_form == 1) == bool(authority) and (not authority or b"//" + authority in target)
    return rfc9112.Head(method, target, head.minor_version, fields_of(head, data),
                        None if head.content_length < 0 else head.content_length, bool(head.chunked),
                        bool(head.keep_alive), bool(head.expect_continue), answer)


def ways_to_cut(length: int, choice: int) -> list[list[int]]:
    """The ends of the pieces: two pieces three times, and some pieces of one length."""
    ways = [[1 + (choice * step + step // 2) % length, length] for step in (1, 7, 31)] if length > 1 else []
    size = 2 + choice % 23
    return [*ways, [*range(size, length, size)[:MOST_PIECES], length]]


def python_outcome(pieces: Iterable[bytes], limits: rfc9112.Limits) -> tuple[Any, ...] | None:
    """What `HeadReader` makes of it: the head's fields; status and message of a refusal; None."""
    reader = _http1_python.HeadReader(request_line_bytes=limits.line, fields=limits.fields, field_bytes=limits.field)
    try:
        for piece in pieces:
            if (head := reader.feed(piece)) is not None:
                return head
    except PeerError as error:
        return error.status, str(error)
    return None


def check_python_face(data: bytes, limits: rfc9112.Limits, expected: tuple[Any, ...] | None) -> None:
    """The same through `HeadReader`, whole and byte by byte."""
    found = python_outcome([data], limits)
    if len(data) <= MOST_BYTE_BY_BYTE:
        other = python_outcome((data[i:i + 1] for i in range(len(data))), limits)
        assert other == found, f"byte by byte: {other}, whole: {found}"
    if not isinstance(expected, rfc9112.Head):
        assert (found and found[0]) == (expected and expected[0]), f"{found}, expected {expected}"
        return
    assert found == (expected.method.decode(), expected.target.decode(), expected.minor_version,
                     [(name.lower(), value) for name, value in expected.fields], *expected[4:])
    assert all(_http1_python.is_field_name(name) and _http1_python.is_field_value(value)
               for name, value in expected.fields)


def check(data: bytes) -> None:
    """AssertionError if anything about this input is wrong."""
    if len(data) < 3:
        return
    chosen, choice, data = LIMITS[data[0] % len(LIMITS)], data[1], data[2:]
    limits, head = HeadLimits(*chosen), Head()
    found = outcome(parse(data, [len(data)], limits, head), head, data)
    expected = rfc9112.read(data, chosen)
    if isinstance(expected, rfc9112.Refusal):
        assert isinstance(found, tuple) and not isinstance(found, rfc9112.Head) and found[0] in expected.statuses, \
            f"{found}, expected {expected}"
    else:
        assert found == expected, f"{found}, expected {expected}"
    for ends in ways_to_cut(len(data), choice):
        other = outcome(parse(data, ends, limits, head), head, data)
        assert other == found, f"in pieces that end at {ends}: {other}, whole: {found}"
    check_python_face(data, chosen, found)

"""Request heads as RFC 9112 has them, read the slow way: line by line, with regular expressions. What the parser is
compared with, so it shares nothing with it, its order of looking at things neither.

`read(data, limits)` returns a `Head`; or a `Refusal` with every status that fits the first line in which something is
wrong; or None, as long as what is there may still become a head.

Declared, because the parser declares it too: between the brackets of an IPv6 address only the characters are looked at.
Lists of equal Content-Lengths, and codings other than `chunked`, are refused.
"""
from __future__ import annotations

import re
from typing import NamedTuple

MOST_BYTES = 65535
MOST_METHOD_BYTES = 32
LARGEST_LENGTH = 2**63 - 1
OWS = b" \t"

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*")
TARGET = re.compile(rb"[\x21\x22\x24-\x7e]*")
VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")
VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)(?::([0-9]*))?")
ABSOLUTE = re.compile(rb"(?i:http(s?)://)([^/?]*)[\x21-\x7e]*")


class Limits(NamedTuple):
    line: int = 8190
    fields: int = 100
    field: int = 8190


class Head(NamedTuple):
    method: bytes
    target: bytes
    minor_version: int
    fields: list[tuple[bytes, bytes]]       # as they were written
    content_length: int | None
    chunked: bool
    keep_alive: bool
    expect_continue: bool
    consumed: int


class Refusal(NamedTuple):
    statuses: frozenset[int]


class Line(NamedTuple):
    text: bytes
    end: str            # "": there is more to come; "cr": a CR, behind which nothing has come; "crlf"
    wrong: set[int]     # bare CR, bare LF


def next_line(data: bytes, at: int, limit: int, too_long: int) -> Line:
    """The line at `at`, and what is wrong with its length and its end, whatever it says."""
    found = re.compile(rb"\r\n|[\r\n]").search(data, at)
    text = data[at:found.start()] if found else data[at:]
    wrong = {too_long} if len(text) > limit else set()
    if found is None:
        return Line(text, "", wrong)
    if found[0] == b"\n":
        return Line(text, "crlf", wrong | {400} | ({too_long} if len(text) == limit else set()))
    if found[0] == b"\r":
        last = found.end() == len(data)
        return Line(text, "cr", wrong if last else wrong | {400})
    return Line(text, "crlf", wrong)


def number(digits: bytes) -> int:
    """Python refuses to read very long ones; here they are all the same."""
    significant = digits.lstrip(b"0")[:20]
    return int(significant or b"0")


def port_of(authority: bytes, default: int) -> tuple[bytes, int] | None:
    """Host in lower case, and port; None if it is no authority."""
    found = AUTHORITY.fullmatch(authority)
    if found is None:
        return None
    port = number(found[2]) if found[2] else default
    return (found[1].lower(), port) if port <= 65535 else None


def target_is_wrong(method: bytes, target: bytes) -> bool:
    if target[:1] == b"/":
        return False
    if target == b"*":
        return method != b"OPTIONS"
    found = ABSOLUTE.fullmatch(target)
    return found is None or port_of(found[2], 0) is None


def may_begin(pattern: re.Pattern[bytes], example: bytes, text: bytes) -> bool:
    """Is text the beginning of something like the example? The pattern's matches have all its length."""
    return len(text) <= len(example) and pattern.fullmatch(text + example[len(text):]) is not None


def request_line_faults(line: Line) -> set[int]:
    wrong = set(line.wrong)
    method, space, rest = line.text.partition(b" ")
    target, second_space, version = rest.partition(b" ")
    if not TOKEN.fullmatch(method) or (not method and (space or line.end)):
        wrong.add(400)
    if len(method) > MOST_METHOD_BYTES or (space and method == b"CONNECT"):
        wrong.add(501)
    if line.end and not second_space:
        wrong.add(400)
    if not TARGET.fullmatch(target) or (space and not target and (second_space or line.end)):
        wrong.add(400)
    if second_space:
        if target_is_wrong(method, target):
            wrong.add(400)
        if not (VERSION.fullmatch(version) if line.end else may_begin(VERSION, b"HTTP/1.1", version)):
            wrong.add(400)
        elif line.end == "crlf" and version not in (b"HTTP/1.1", b"HTTP/1.0"):
            wrong.add(505)
    return wrong


def field_faults(line: Line, others: list[tuple[bytes, bytes]], request: tuple[bytes, bytes], most: int) -> set[int]:
    """others: the fields before it. request: target and version."""
    wrong = set(line.wrong)
    name, colon, value = line.text.partition(b":")
    if not TOKEN.fullmatch(name) or (not name and colon) or (line.end and not colon):
        wrong.add(400)
    if len(others) >= most and line.text and TOKEN.fullmatch(line.text[:1]):
        wrong.add(431)
    if not VALUE.fullmatch(value):
        wrong.add(400)
    if line.end == "crlf" and colon:
        wrong |= meaning_faults(name.lower(), value.strip(OWS), others, *request)
    return wrong


def meaning_faults(name: bytes, value: bytes, others: list[tuple[bytes, bytes]], target: bytes,
                   version: bytes) -> set[int]:
    wrong = set()
    framing = (b"content-length", b"transfer-encoding")
    if name in framing and any(key.lower() in framing for key, _ in others):
        wrong.add(400)
    if name == b"host":
        absolute = ABSOLUTE.fullmatch(target) if target[:1] != b"/" else None
        default = 443 if absolute and absolute[1] else 80
        if any(key.lower() == b"host" for key, _ in others) or (value and port_of(value, default) is None):
            wrong.add(400)
        if absolute and port_of(value, default) != port_of(absolute[2], default):
            wrong.add(400)
    elif name == b"content-length":
        if not re.fullmatch(rb"[0-9]+", value):
            wrong.add(400)
        elif number(value) > LARGEST_LENGTH:
            wrong.add(413)
    elif name == b"transfer-encoding":
        codings = [coding.strip(OWS).lower() for coding in value.split(b",")]
        if version == b"HTTP/1.0" or b"" in codings or b"chunked" in codings[:-1]:
            wrong.add(400)
        if set(codings) - {b"", b"chunked"}:
            wrong.add(501)
    elif name == b"expect" and value.lower() != b"100-continue":
        wrong.add(417)
    return wrong


def head_of(line: bytes, fields: list[tuple[bytes, bytes]], consumed: int) -> Head | Refusal:
    """The blank line has come."""
    method, target, version = line.split(b" ")
    values = {name.lower(): value for name, value in fields}
    new = version == b"HTTP/1.1"
    if new and b"host" not in values:
        return Refusal(frozenset({400}))
    options = {option.strip(OWS).lower() for name, value in fields if name.lower() == b"connection"
               for option in value.split(b",")}
    length = values.get(b"content-length")
    return Head(method, target, int(new), fields, None if length is None else number(length),
                b"transfer-encoding" in values, b"close" not in options and (new or b"keep-alive" in options),
                new and b"expect" in values, consumed)


def read(data: bytes, limits: Limits = Limits()) -> Head | Refusal | None:  # noqa: B008
    whole = data[:MOST_BYTES]
    answer, in_request_line = read_lines(whole, limits)
    if answer is None and len(whole) == MOST_BYTES:
        return Refusal(frozenset({414 if in_request_line else 431}))
    return answer


def read_lines(data: bytes, limits: Limits) -> tuple[Head | Refusal | None, bool]:
    """The answer, and whether the request line was the last that was looked at."""
    at = 2 if data[:2] == b"\r\n" else 0
    if data == b"\r":
        return None, True
    line = next_line(data, at, limits.line, 414)
    if wrong := request_line_faults(line):
        return Refusal(frozenset(wrong)), True
    if line.end != "crlf":
        return None, True
    request = line.text
    _, target, version = request.split(b" ")
    fields: list[tuple[bytes, bytes]] = []
    while True:
        at += len(line.text) + 2
        line = next_line(data, at, limits.field, 431)
        if not line.text and line.end and not line.wrong:       # the blank one, or its CR
            return (head_of(request, fields, at + 2) if line.end == "crlf" else None), False
        if wrong := field_faults(line, fields, (target, version), limits.fields):
            return Refusal(frozenset(wrong)), False
        if line.end != "crlf":
            return None, False
        name, _, value = line.text.partition(b":")
        fields.append((name, value.strip(OWS)))

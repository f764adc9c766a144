"""Response heads and bodies: what is accepted, what is refused and why, however the bytes are cut.

Every case goes through `head_outcome` or `body_outcome`: whole, byte by byte and split at every index, and there is one
answer. What it must be comes from tables, and from a reader that is written as the RFC is, with regular expressions.
"""
from __future__ import annotations

import re
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epollkit import _http1, _http1_response
from epollkit._http1_python import BodyReader, ResponseHead, ResponseReader
from epollkit.errors import PeerError, UsageError


class Refused(NamedTuple):
    message: str
    payload: bytes = b""        # of a body, what was decoded before


class Decoded(NamedTuple):
    done: bool
    payload: bytes
    taken: int


def cuts(data):
    """`data` whole, byte by byte, split at every index."""
    yield [data]
    yield [data[i:i + 1] for i in range(len(data))]
    step = 1 if len(data) < 1000 else 89
    yield from ([data[:i], data[i:]] for i in range(0, len(data) + 1, step))


def sentence(error):
    assert error.status == 502
    return str(error)


def read_head(pieces, **options):
    reader = ResponseReader(**options)
    for piece in pieces:
        try:
            head = reader.feed(piece)
        except PeerError as error:
            return Refused(sentence(error))
        if head is not None:
            return head
    return None


def read_body(pieces, framing, length=0, **limits):
    reader = BodyReader(framing, length, **limits)
    payload, taken = b"", 0
    for piece in pieces:
        while piece:
            try:
                count, more = reader.take(piece)
            except PeerError as error:
                with pytest.raises(PeerError):      # and so it stays
                    reader.take(piece)
                with pytest.raises(PeerError):
                    reader.end()
                return Refused(sentence(error), payload)
            assert count or reader.done, "nothing was taken"
            if not count:
                return Decoded(True, payload, taken)
            payload, taken, piece = payload + more, taken + count, piece[count:]
    return Decoded(reader.done, payload, taken)


def one_outcome(read, data, *arguments, **options):
    whole, *others = (read(pieces, *arguments, **options) for pieces in cuts(data))
    for number, other in enumerate(others):
        assert other == whole, f"byte by byte, or split at {number - 1}"
    return whole


def head_outcome(data, **options):
    return one_outcome(read_head, data, **options)


def body_outcome(data, framing="chunked", length=0, **limits):
    return one_outcome(read_body, data, framing, length, **limits)


def head(*lines, line=b"HTTP/1.1 200 OK"):
    return b"\r\n".join([line, *lines, b"", b""])


# --- heads

PLAIN = {"status": 200, "phrase": b"OK", "minor_version": 1, "headers": [], "content_length": None, "chunked": False,
         "keep_alive": True, "framing": "close"}

# name of the promise: (head, what differs from PLAIN)
ACCEPTED = {
    "plain": (head(), {}),
    "bytes behind it are left alone": (head() + b"\x00\n", {"consumed": len(head())}),
    "HTTP/1.0": (head(line=b"HTTP/1.0 200 OK"), {"minor_version": 0, "keep_alive": False}),
    "status 100": (head(line=b"HTTP/1.1 100 Continue"), {"status": 100, "phrase": b"Continue", "framing": "none"}),
    "status 101": (head(b"Upgrade: websocket", line=b"HTTP/1.1 101 x"),
                   {"status": 101, "phrase": b"x", "framing": "none", "headers": [(b"upgrade", b"websocket")]}),
    "status 999": (head(line=b"HTTP/1.1 999 x"), {"status": 999, "phrase": b"x"}),
    "status 204": (head(line=b"HTTP/1.1 204 "), {"status": 204, "phrase": b"", "framing": "none"}),
    "status 205 has a body as others have": (head(line=b"HTTP/1.1 205 "), {"status": 205, "phrase": b""}),
    "phrase empty": (head(line=b"HTTP/1.1 200 "), {"phrase": b""}),
    "phrase of every byte": (head(line=b"HTTP/1.1 200  \t!~\x80\xff "), {"phrase": b" \t!~\x80\xff "}),
    "order kept, values trimmed": (head(b"B: \t1 2\t", b"a:", b"b:3"),
                                   {"headers": [(b"b", b"1 2"), (b"a", b""), (b"b", b"3")]}),
    "two Hosts, an expectation: of no concern": (
        head(b"Host: a b", b"Host: c", b"Expect: x"),
        {"headers": [(b"host", b"a b"), (b"host", b"c"), (b"expect", b"x")]}),
    "Content-Length": (head(b"Content-Length: 0042"),
                       {"content_length": 42, "framing": "length", "headers": [(b"content-length", b"0042")]}),
    "Content-Length 2^63-1": (
        head(b"content-length:9223372036854775807"),
        {"content_length": 2**63 - 1, "framing": "length", "headers": [(b"content-length", b"9223372036854775807")]}),
    "Transfer-Encoding": (head(b"Transfer-Encoding: CHUNked"),
                          {"chunked": True, "framing": "chunked", "headers": [(b"transfer-encoding", b"CHUNked")]}),
    "Connection close": (head(b"Connection: x, Close"),
                         {"keep_alive": False, "headers": [(b"connection", b"x, Close")]}),
    "Connection keep-alive in HTTP/1.0": (
        head(b"Connection: keep-alive", line=b"HTTP/1.0 200 OK"),
        {"minor_version": 0, "headers": [(b"connection", b"keep-alive")]}),
    "Connection close wins in HTTP/1.0": (
        head(b"Connection: keep-alive, close", line=b"HTTP/1.0 200 OK"),
        {"minor_version": 0, "keep_alive": False, "headers": [(b"connection", b"keep-alive, close")]}),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepts(name):
    data, differences = ACCEPTED[name]
    answer = head_outcome(data)
    assert isinstance(answer, ResponseHead), answer
    assert answer._asdict() == PLAIN | {"consumed": len(data)} | differences
    assert read_head([data[:answer.consumed - 1]]) is None


VERSION, STATUS = "not begin with HTTP/1.1 or", "three digits"

# name: (head, words of the message, offset of what is wrong)
REFUSED = {
    "an empty line first": (b"\r\n" + head(), VERSION, 0),
    "a request": (b"GET / HTTP/1.1\r\n", VERSION, 0),
    "HTTP/2.0": (b"HTTP/2.0 200 OK\r\n", VERSION, 5),
    "HTTP/1.2": (b"HTTP/1.2 200 OK\r\n", VERSION, 7),
    "HTTP/1.": (b"HTTP/1. 200 OK\r\n", VERSION, 7),
    "http/1.1": (b"http/1.1 200 OK\r\n", VERSION, 0),
    "tab behind the version": (b"HTTP/1.1\t200 OK\r\n", VERSION, 8),
    "two spaces behind the version": (b"HTTP/1.1  200 OK\r\n", STATUS, 9),
    "status 099": (b"HTTP/1.1 099 x\r\n", STATUS, 9),
    "status of two digits": (b"HTTP/1.1 20 OK\r\n", STATUS, 11),
    "status of four digits": (b"HTTP/1.1 2000 OK\r\n", STATUS, 12),
    "status of letters": (b"HTTP/1.1 2x0 OK\r\n", STATUS, 10),
    "status missing": (b"HTTP/1.1 \r\n", STATUS, 9),
    "no space behind the status": (b"HTTP/1.1 200\r\n\r\n", STATUS, 12),
    "bare LF behind the status": (b"HTTP/1.1 200\n\n", STATUS, 12),
    "control byte in the phrase": (head(line=b"HTTP/1.1 200 O\x00"), "reason phrase", 14),
    "DEL in the phrase": (head(line=b"HTTP/1.1 200 abcdefgh\x7f"), "reason phrase", 21),
    "bare LF behind the phrase": (b"HTTP/1.1 200 OK\n\n", "line feed without", 15),
    "bare CR behind the phrase": (b"HTTP/1.1 200 OK\rx", "return without", 15),
    "folded line": (head(b"a: b", b" c"), "folded", 23),
    "folded first line": (head(b" c"), "folded", 17),
    "name empty": (head(b": c"), "starts with a colon", 17),
    "space before the colon": (head(b"a : b"), "the colon follows", 18),
    "name without a colon": (head(b"ab"), "field name", 19),
    "bare LF in a field": (head(b"a: b\nc: d"), "line feed without", 21),
    "bare CR in a field": (head(b"a: b\rc: d"), "return without", 21),
    "NUL in a value": (head(b"a: \x00"), "control byte in a field", 20),
    "bare CR as the blank line": (head()[:-2] + b"\rx", "return without", 17),
    "field line too long": (head(b"a:" + b"b" * 8189), "field line is longer", 8207),
    "fields too many": (head(*[b"a:"] * 101), "more field lines", 417),
    "the whole head too long": (head(*[b"a:" + b"b" * 8000] * 9), "whole head", 65535),
    "Content-Length twice": (head(b"Content-Length: 1", b"Content-Length: 1"), "second Content-Length", 36),
    "Content-Length of two numbers": (head(b"Content-Length: 1, 1"), "decimal digits", 34),
    "Content-Length signed": (head(b"Content-Length: +1"), "decimal digits", 33),
    "Content-Length empty": (head(b"Content-Length:"), "decimal digits", 32),
    "Content-Length 2^63": (head(b"Content-Length: 9223372036854775808"), "2^63-1", 33),
    "Content-Length and Transfer-Encoding": (
        head(b"Content-Length: 1", b"Transfer-Encoding: chunked"), "both Content-Length", 36),
    "Transfer-Encoding and Content-Length": (
        head(b"Transfer-Encoding: chunked", b"Content-Length: 1"), "both Content-Length", 45),
    "Transfer-Encoding in HTTP/1.0": (
        head(b"Transfer-Encoding: chunked", line=b"HTTP/1.0 200 OK"), "in HTTP/1.0", 17),
    "Transfer-Encoding twice": (
        head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), "second Transfer-Encoding", 45),
    "Transfer-Encoding gzip, chunked": (head(b"Transfer-Encoding: gzip, chunked"), "other than chunked", 36),
    "Transfer-Encoding gzip": (head(b"Transfer-Encoding: gzip"), "other than chunked", 36),
    "Transfer-Encoding chunked, gzip": (head(b"Transfer-Encoding: chunked, gzip"), "goes on behind", 45),
    "Transfer-Encoding chunked, ": (head(b"Transfer-Encoding: ,chunked"), "empty element", 36),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    data, words, place = REFUSED[name]
    refusal = head_outcome(data)
    assert isinstance(refusal, Refused), refusal
    assert words in refusal.message
    assert refusal.message.endswith(f"; at byte {place} of the head")


@pytest.mark.parametrize("data", [b"G", b"HTTP/1.1 0", b"HTTP/1.1 200\r", b"HTTP/1.1 200 \x01", head()[:-2] + b" ",
                                  b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n"])
def test_refuses_at_the_byte_that_decides(data):
    assert read_head([data[:-1]]) is None
    assert isinstance(head_outcome(data), Refused)


def test_status_line_limit():
    for room in (13, 15, 40):
        line = b"HTTP/1.1 200 " + b"a" * (room - 13)
        assert isinstance(head_outcome(head(line=line), status_line_bytes=room), ResponseHead)
        refusal = head_outcome(head(line=line + b"a"), status_line_bytes=room)
        assert refusal.message == f"the status line is longer than the limit; at byte {room} of the head"
        assert isinstance(head_outcome(line + b"\x00", status_line_bytes=room), Refused)
    for room in range(1, 13):
        assert head_outcome(b"HTTP/1.1 200 "[:room], status_line_bytes=room) is None
        assert "longer" in head_outcome(b"HTTP/1.1 200 ", status_line_bytes=room).message
        assert "longer" not in head_outcome(b"HTTP/1.1 200 "[:room] + b"\r\n", status_line_bytes=room).message


def test_a_status_line_without_end():
    assert "whole head" not in head_outcome(b"HTTP/1.1 200 " + b"a" * 70_000, status_line_bytes=65535).message


@pytest.mark.parametrize("line", [b"a:b", b"a: b", b"a: b "], ids=["no space", "plain", "space behind"])
def test_field_limits(line):
    """Plain lines are read in one go, and by the same limits."""
    room = len(line)
    assert isinstance(head_outcome(head(line), field_bytes=room), ResponseHead)
    assert "longer" in head_outcome(head(line), field_bytes=room - 1).message
    assert "longer" in head_outcome(head(b"a" + line), field_bytes=room).message
    assert isinstance(head_outcome(head(line, line), fields=2), ResponseHead)
    assert "more field lines" in head_outcome(head(line, line, line), fields=2).message
    assert len(head_outcome(head(*[line] * 100)).headers) == 100
    assert "more field lines" in head_outcome(head(*[line] * 101)).message


@pytest.mark.parametrize("limit", ["status_line_bytes", "fields", "field_bytes"])
def test_limits_are_checked(limit):
    with pytest.raises(UsageError, match=limit):
        ResponseReader(**{limit: 0})


def test_a_reader_is_of_one_head():
    for data in (head(), b"x"):
        reader = ResponseReader()
        try:
            reader.feed(data)
        except PeerError:
            pass
        with pytest.raises(UsageError):
            reader.feed(b"")


FRAMING = [b"Content-Length: 5", b"Transfer-Encoding: chunked", b"a: b"]


@pytest.mark.parametrize("field", FRAMING)
@pytest.mark.parametrize("status", [100, 101, 103, 199, 204, 304])
def test_some_statuses_have_no_body_whatever_the_fields_say(status, field):
    assert read_head([head(field, line=b"HTTP/1.1 %d x" % status)]).framing == "none"


@pytest.mark.parametrize("field", FRAMING)
def test_a_response_to_head_has_no_body(field):
    assert read_head([head(field)], head=True).framing == "none"


# --- bodies

# name: (chunked body, payload)
DECODED = {
    "one chunk": (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    "several": (b"1\r\na\r\n2\r\nbc\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n", b"abc0123456789abcdef"),
    "empty": (b"0\r\n\r\n", b""),
    "digits of both cases": (b"a\r\n0123456789\r\nB\r\n0123456789a\r\n0\r\n\r\n", b"01234567890123456789a"),
    "leading zeros, sixteen digits": (b"0000000000000002\r\nab\r\n0000000000000000\r\n\r\n", b"ab"),
    "payload of line ends": (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    "extensions": (b'1;a;b=c;d="e;\\"\r\\\\"\r\nx\r\n0;z\r\n\r\n'.replace(b"\r\\", b"\t\\"), b"x"),
    "extensions with whitespace": (b'1 ; a\t= b ;\tc = "" ;d\r\nx\r\n0\r\n\r\n', b"x"),
    "extension of obs-text": (b'1;a="\x80\\\xff"\r\nx\r\n0\r\n\r\n', b"x"),
    "trailers": (b"1\r\nx\r\n0\r\na: b\r\nX-Checksum:\t\xff \r\nc:\r\n\r\n", b"x"),
    "trailers that only look alike": (
        b"0\r\nhosts: a\r\nContent-Lengt: 5\r\nte1: x\r\n" + b"n" * 300 + b":\r\n\r\n", b""),
}


@pytest.mark.parametrize("name", DECODED)
def test_decodes_chunks(name):
    data, payload = DECODED[name]
    assert body_outcome(data) == Decoded(True, payload, len(data))
    assert body_outcome(data + b"HTTP/1.1 200 OK\r\n") == Decoded(True, payload, len(data))
    assert not read_body([data[:-1]], "chunked").done


SIZE, EXTENSION, DIGITS = "begin with its size", "neither CRLF nor", "more than 16 digits"

# name: (chunked body, words of the message, payload before)
BROKEN = {
    "no size": (b"\r\n", SIZE, b""),
    "size of no digit": (b"g\r\n", SIZE, b""),
    "size with 0x": (b"0x5\r\nhello", EXTENSION, b""),
    "size signed": (b"-1\r\n", SIZE, b""),
    "size signed +": (b"+1\r\n", SIZE, b""),
    "size behind a space": (b" 1\r\n", SIZE, b""),
    "size with an underscore": (b"1_0\r\n", EXTENSION, b""),
    "size of seventeen digits": (b"00000000000000001\r\n", DIGITS, b""),
    "size 2^63": (b"8000000000000000\r\n", DIGITS, b""),
    "size 2^64+1": (b"10000000000000001\r\n", DIGITS, b""),
    "size, bare LF": (b"1\nx", "line feed without", b""),
    "size, bare CR": (b"1\rx", "return without", b""),
    "size, whitespace and no extension": (b"1 \r\nx", EXTENSION, b""),
    "extension without a name": (b"1;\r\nx", EXTENSION, b""),
    "extension with a name of no token": (b"1;a/b\r\nx", EXTENSION, b""),
    "extension with an empty value": (b"1;a=\r\nx", EXTENSION, b""),
    "extension with two names": (b"1;a b\r\nx", EXTENSION, b""),
    "extension with an open quote": (b'1;a="b\r\n', EXTENSION, b""),
    "extension that goes on behind the quote": (b'1;a="b"c\r\n', EXTENSION, b""),
    "extension with an escaped control byte": (b'1;a="\\\x01"\r\n', EXTENSION, b""),
    "extension, whitespace at the end": (b"1;a=b \r\nx", EXTENSION, b""),
    "extension, whitespace behind its name": (b"1;a \r\nx", EXTENSION, b""),
    "extension, bare LF": (b"1;a\n", "line feed without", b""),
    "extension, quoted bare LF": (b'1;a="\n"', "line feed without", b""),
    "chunk longer than its size": (b"1\r\nxy\r\n", "not as long", b"x"),
    "chunk shorter than its size": (b"3\r\nx\r\n0\r\n", "not as long", b"x\r\n"),
    "chunk, bare LF": (b"1\r\nx\n0\r\n", "not as long", b"x"),
    "chunk, bare CR": (b"1\r\nx\r0\r\n", "not as long", b"x"),
    "a second size": (b"1\r\nx\r\n\r\n", SIZE, b"x"),
    "end, bare LF": (b"0\r\n\n", "line feed without", b""),
    "end, bare CR": (b"0\r\n\rx", "return without", b""),
    "trailer folded": (b"0\r\na: b\r\n c\r\n\r\n", "folded", b""),
    "trailer without a name": (b"0\r\n: b\r\n\r\n", "starts with a colon", b""),
    "trailer with a space before the colon": (b"0\r\na : b\r\n\r\n", "the colon follows", b""),
    "trailer without a colon": (b"0\r\nab\r\n\r\n", "field name", b""),
    "trailer with NUL": (b"0\r\na: \x00\r\n\r\n", "control byte", b""),
    "trailer, bare LF": (b"0\r\na: b\n\r\n", "line feed without", b""),
    "trailer, bare CR": (b"0\r\na: b\rc", "return without", b""),
    "trailer Content-Length": (b"1\r\nx\r\n0\r\nContent-LENGTH: 1\r\n\r\n", "head only", b"x"),
    "trailer that is forbidden, second": (b"0\r\na: b\r\nHost: 1\r\n\r\n", "head only", b""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_refuses_chunks(name):
    data, words, payload = BROKEN[name]
    refusal = body_outcome(data)
    assert isinstance(refusal, Refused), refusal
    assert (words in refusal.message, refusal.payload) == (True, payload), refusal


@pytest.mark.parametrize("name", [
    b"transfer-encoding", b"content-length", b"trailer", b"te", b"connection", b"keep-alive", b"upgrade", b"host",
    b"authorization", b"proxy-authorization", b"cookie", b"set-cookie", b"content-type", b"content-encoding",
    b"content-range", b"cache-control", b"expect", b"max-forwards", b"if-unmodified-since", b"location",
])
def test_forbidden_trailers(name):
    for written in (name, name.title(), name.upper()):
        assert "head only" in body_outcome(b"0\r\n" + written + b": x\r\n\r\n").message
    assert body_outcome(b"0\r\n" + name + b"x: x\r\n\r\n").done
    assert body_outcome(b"0\r\n" + name[:-1] + b"_: x\r\n\r\n").done


@pytest.mark.parametrize("data", [b"g", b"1x", b"1 x", b"1;\r", b"1\n", b"1\r\nxy", b"0\r\n ", b"0\r\nhost:",
                                  b"0\r\n\r\r", b"8000000000000000", b"00000000000000000"])
def test_refuses_chunks_at_the_byte_that_decides(data):
    assert not read_body([data[:-1]], "chunked").done
    assert isinstance(body_outcome(data), Refused)


def test_the_largest_chunk():
    """2^63-1 bytes: it begins as any other does."""
    assert body_outcome(b"7FFFFFFFFFFFFFFF\r\nabc") == Decoded(False, b"abc", 21)


@pytest.mark.parametrize("extensions", [[b";a"], [b';a="b;c"'], [b" ; a = b"], [b";a", b"", b";bc=d"]])
def test_extension_limit(extensions):
    """Of all chunks together, and exact."""
    data = b"".join(b"1" + extension + b"\r\nx\r\n" for extension in extensions) + b"0\r\n\r\n"
    room = sum(map(len, extensions))
    assert body_outcome(data, extension_bytes=room).done
    assert "extensions" in body_outcome(data, extension_bytes=room - 1).message
    last = data.rindex(extensions[-1]) + len(extensions[-1])
    assert body_outcome(data[:last - 1], extension_bytes=room - 1) == body_outcome(data[:last - 1])
    assert isinstance(body_outcome(data[:last], extension_bytes=room - 1), Refused)


@pytest.mark.parametrize("trailers", [[b"a:"], [b"a: b", b"cd: e f"]])
def test_trailer_limit(trailers):
    data = b"0\r\n" + b"".join(trailer + b"\r\n" for trailer in trailers) + b"\r\n"
    room = sum(map(len, trailers))
    assert body_outcome(data, trailer_bytes=room).done
    assert "trailers are longer" in body_outcome(data, trailer_bytes=room - 1).message
    assert isinstance(body_outcome(data[:-4], trailer_bytes=room - 1), Refused)
    assert body_outcome(b"0\r\n\r\n", trailer_bytes=0).done


def test_default_limits():
    for data, room in ((b"1;%s", 16384), (b"0\r\n%s:", 8190)):
        fits = data % (b"a" * (room - 1))
        assert isinstance(read_body([fits], "chunked"), Decoded)
        assert isinstance(read_body([fits + b"a"], "chunked"), Refused)


@pytest.mark.parametrize(("framing", "length", "data", "expected"), [
    ("length", 5, b"hello", Decoded(True, b"hello", 5)),
    ("length", 5, b"hello, you", Decoded(True, b"hello", 5)),
    ("length", 5, b"hell", Decoded(False, b"hell", 4)),
    ("length", 0, b"x", Decoded(True, b"", 0)),
    ("length", 2**63 - 1, b"x", Decoded(False, b"x", 1)),
    ("none", 0, b"x", Decoded(True, b"", 0)),
    ("close", 0, b"\r\n0\r\n", Decoded(False, b"\r\n0\r\n", 5)),
])
def test_other_framings(framing, length, data, expected):
    assert body_outcome(data, framing, length) == expected


@pytest.mark.parametrize(("framing", "length", "data", "complete"), [
    ("none", 0, b"", True), ("length", 0, b"", True), ("length", 2, b"ab", True), ("length", 2, b"a", False),
    ("length", 2, b"", False), ("close", 0, b"", True), ("close", 0, b"ab", True), ("chunked", 0, b"", False),
    ("chunked", 0, b"0\r\n\r", False), ("chunked", 0, b"0\r\n\r\n", True), ("chunked", 0, b"1\r\nx\r\n", False),
])
def test_the_end_of_the_connection(framing, length, data, complete):
    reader = BodyReader(framing, length)
    while data:
        data = data[reader.take(data)[0]:]
    if complete:
        reader.end()
        assert reader.done
        assert reader.take(b"x") == (0, b"")
        reader.end()
        return
    for end in (reader.end, reader.end, lambda: reader.take(b"x")):
        with pytest.raises(PeerError, match="before the body did") as refusal:
            end()
        assert refusal.value.status == 502
    assert not reader.done


@pytest.mark.parametrize("arguments", [("x",), ("length", -1)])
def test_a_reader_of_nothing(arguments):
    with pytest.raises(UsageError):
        BodyReader(*arguments)


def test_no_call_copies_more_than_a_stretch_of_payload():
    """One call, one stretch: what belongs to the next one is not taken, so all of the payload reaches its owner."""
    reader = BodyReader("chunked")
    assert reader.take(b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n") == (5, b"ab")
    assert reader.take(b"\r\n1\r\nc\r\n0\r\n\r\n") == (6, b"c")
    assert reader.take(b"\r\n0\r\n\r\n") == (7, b"")
    assert reader.done


def sentences(text_of):
    """What is said for the codes from 0 on, until there is no such code."""
    found = []
    with pytest.raises(UsageError):
        while True:
            found.append(text_of(len(found)))
    with pytest.raises(UsageError):
        text_of(-1)
    return found


def test_every_reason_has_a_sentence_and_a_case():
    """A reason that nothing is refused for would be a dead row."""
    of_requests, of_both = sentences(_http1.reason_text), sentences(_http1_response.response_reason_text)
    assert of_both[:len(of_requests)] == of_requests
    assert len(of_both) == len(set(of_both))
    seen = {read_head([data]).message.rpartition(";")[0] for data, _, _ in REFUSED.values()}
    seen |= {read_body([data], "chunked").message for data, _, _ in BROKEN.values()}
    seen |= {head_outcome(head(), status_line_bytes=1).message.rpartition(";")[0],
             body_outcome(b"1;a", extension_bytes=1).message, body_outcome(b"0\r\na", trailer_bytes=0).message}
    assert set(of_both[len(of_requests):]) - seen == {"the connection ended before the body did (RFC 9112 8)"}


# --- the reference: regular expressions from RFC 9110 and RFC 9112, and plain Python

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
TEXT = rb"[\t -~\x80-\xff]*"
FIELDS = rb"((?:%s:%s\r\n)*)\r\n" % (TOKEN, TEXT)
HEAD = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9]) (%s)\r\n%s" % (TEXT, FIELDS))
QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
EXTENSION_OF = rb"[ \t]*;[ \t]*%s(?:[ \t]*=[ \t]*(?:%s|%s))?" % (TOKEN, TOKEN, QUOTED)
CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})(?:%s)*\r\n" % EXTENSION_OF)
TRAILERS = re.compile(FIELDS)
FORBIDDEN = {b"host", b"te", b"content-length"}      # of those that the strategies below can make


def fields_of(lines):
    return [(name.lower(), value.strip(b" \t")) for name, _, value in
            (line.partition(b":") for line in lines.split(b"\r\n")[:-1])]


def reference_head(data, head_request=False):
    """The ResponseHead that `data` begins with, or None."""
    match = HEAD.match(data)
    if not match:
        return None
    minor, status, fields = match[1] == b"1", int(match[2]), fields_of(match[4])
    lengths, codings = ([value for name, value in fields if name == wanted]
                        for wanted in (b"content-length", b"transfer-encoding"))
    options = [option.strip(b" \t").lower() for name, value in fields if name == b"connection"
               for option in value.split(b",")]
    if len(lengths) + len(codings) > 1 or (codings and (not minor or codings[0].lower() != b"chunked")):
        return None
    if lengths and not (re.fullmatch(rb"[0-9]+", lengths[0]) and int(lengths[0]) < 2**63):
        return None
    bodiless = head_request or status < 200 or status in (204, 304)
    return ResponseHead(
        status=status, phrase=match[3], minor_version=int(minor), headers=fields,
        content_length=int(lengths[0]) if lengths else None, chunked=bool(codings),
        keep_alive=b"close" not in options and (minor or b"keep-alive" in options),
        framing="none" if bodiless else "chunked" if codings else "length" if lengths else "close",
        consumed=match.end())


def forbidden(lines):
    return any(name in FORBIDDEN for name, _ in fields_of(lines))


# What can make a line, or a head, of the beginning of one.
LINE_ENDS = (b"\n", b"\r\n", b"0\r\n", b'"\r\n', b'a"\r\n', b"a\r\n", b";a\r\n", b"=a\r\n")
TRAILER_ENDS = (b"", b"\n", b"\r\n", b"\n\r\n", b"\r\n\r\n", b":\r\n\r\n", b"_:\r\n\r\n")
HEAD_ENDS = [b"HTTP/1.1 200 \r\n\r\n"[i:] for i in range(18)]
HEAD_ENDS += [middle + b"\r\n\r\n" for middle in (b"0 ", b"00 ", b":", b"a:", b"1", b"chunked", b"a: b\r\nc:")]
MORE = "more"


def reference_body(data):
    """(payload, bytes taken) of the chunked body that `data` begins with. MORE: it may still be. None: never."""
    payload, at = b"", 0
    while True:
        match = CHUNK.match(data, at)
        if not match:
            return MORE if any(CHUNK.fullmatch(data[at:] + end) for end in LINE_ENDS) else None
        size, at = int(match[1], 16), match.end()
        if size >= 2**63:
            return None
        if not size:
            break
        payload, end, at = payload + data[at:at + size], data[at + size:at + size + 2], at + size + 2
        if end != b"\r\n":
            return MORE if b"\r\n".startswith(end) else None
    match = TRAILERS.match(data, at)
    if match:
        return None if forbidden(match[1]) else (payload, match.end())
    matches = (TRAILERS.fullmatch(data[at:] + end) for end in TRAILER_ENDS)
    return MORE if any(match and not forbidden(match[1]) for match in matches) else None


def check_head(data, head_request=False):
    expected = reference_head(data, head_request)
    answer = head_outcome(data, head=head_request)
    if expected is not None:
        assert answer == expected
    else:
        assert not isinstance(answer, ResponseHead), answer
        assert (answer is None) == any(reference_head(data + end) for end in HEAD_ENDS), answer


def check_body(data):
    expected = reference_body(data)
    answer = body_outcome(data)
    if expected is None:
        assert isinstance(answer, Refused)
    elif expected == MORE:
        assert (answer.done, answer.taken) == (False, len(data))
    else:
        assert answer == Decoded(True, *expected)


PROPERTY = settings(derandomize=True, deadline=None, max_examples=300)

HEAD_PARTS = st.sampled_from([
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 304 \r\n", b"HTTP/1.", b"1 ", b"20", b"0", b" OK", b"Content-Length: 3\r\n",
    b"content-length:", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: x\r\n", b"Connection: close\r\n",
    b"Connection: keep-alive,x\r\n", b"Host: a\r\n", b"x: y\r\n", b"\r\n", b"\r\n\r\n", b"\r", b"\n", b":", b" ", b"\t",
    b"\x00", b"a", b"9", b",",
])
BODY_PARTS = st.sampled_from([
    b"0\r\n\r\n", b"1\r\na\r\n", b"3;a=b\r\nabc\r\n", b'2 ; c = "d\\""\r\n', b"0\r\n", b"1", b"a", b"e", b"0", b"\r\n",
    b"\r", b"\n", b";", b"=", b'"', b"\\", b" ", b"\t", b":", b"x: y\r\n", b"Host:", b"TE: z\r\n", b"Content-Length",
    b"_", b"\x00", b"\x80",
])


@PROPERTY
@given(st.lists(HEAD_PARTS | st.binary(max_size=3), max_size=12).map(b"".join), st.booleans())
def test_random_heads(data, head_request):
    check_head(data)
    check_head(b"HTTP/1.1 200 OK\r\n" + data + b"\r\n", head_request)


@PROPERTY
@given(st.lists(BODY_PARTS | st.binary(max_size=2), max_size=12).map(b"".join))
def test_random_bodies(data):
    check_body(data)
    check_body(b"2\r\nab\r\n0\r\n" + data)


@PROPERTY
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.sampled_from([b"", b";a", b' ; b="c\\"" \t;d=e']))))
def test_payload_comes_back(chunks):
    data = b"".join(b"%x%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk, extension in chunks) + b"0\r\n\r\n"
    assert body_outcome(data + b"x") == Decoded(True, b"".join(chunk for chunk, _ in chunks), len(data))


CHANGES = sorted({0, 9, 10, 13, 32, 0x7F, 0x80, *b'"%+,-/019:;=AGHT\\acehtx'})

HEADS = [head(b"Content-Length: 12", b"Connection: keep-alive, x"),
         head(b"transfer-encoding: chunked", b"Server: x/1 (y)", line=b"HTTP/1.1 404 Not Found"),
         head(b"Connection: close", line=b"HTTP/1.0 304 ")]
BODIES = [b"1\r\na\r\nb\r\n0123456789a\r\n0\r\n\r\n", b'2 ;a= b;c="d\\e"\r\nxy\r\n0;f\r\nTe_: a\r\ng:\r\n\r\n']


def changed(data):
    """Another byte in every place, one more, one less."""
    for place in range(len(data) + 1):
        for byte in CHANGES:
            yield data[:place] + bytes([byte]) + data[place:]
            yield data[:place] + bytes([byte]) + data[place + 1:]
        yield data[:place] + data[place + 1:]


@pytest.mark.parametrize("data", HEADS)
def test_heads_with_a_changed_byte(data):
    for other in changed(data):
        check_head(other)


@pytest.mark.parametrize("byte", range(256))
def test_every_byte_at_every_place_of_a_vector(byte):
    """Sixteen bytes are looked at in one go, here at each of their places; behind them enough to go on with."""
    for place in range(18):
        text = b"n" * place + bytes([byte]) + b"n" * (17 - place)
        for data in (head(text + b": v", b"x: " + b"y" * 20), head(b"n: " + text, b"x: " + b"y" * 20),
                     head(b"x: " + b"y" * 20, line=b"HTTP/1.1 200 " + text)):
            expected, answer = reference_head(data), read_head([data])
            assert answer == expected if expected else isinstance(answer, Refused), (data, answer)


@pytest.mark.parametrize("data", BODIES)
def test_bodies_with_a_changed_byte(data):
    for other in changed(data):
        check_body(other)

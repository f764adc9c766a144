"""Request heads: what is accepted, what is refused and with which status, however the bytes are cut.

Every case goes through `outcome`: it parses whole, byte by byte and split at every index, and insists on one answer.
"""
import re
import string
import time
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epollkit import _http1, _http1_python
from epollkit.errors import PeerError, UsageError

HOST = b"Host: a\r\n"
TOKEN_BYTES = frozenset(string.ascii_letters.encode() + string.digits.encode() + b"!#$%&'*+-.^_`|~")
TARGET_BYTES = frozenset(range(0x21, 0x7F)) - {0x23}
VALUE_BYTES = frozenset([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])


class Refused(NamedTuple):
    status: int
    message: str


def feed_all(pieces, **limits):
    """The outcome of one reader: a RequestHead, Refused, or None for an incomplete head."""
    reader = _http1_python.HeadReader(**limits)
    for piece in pieces:
        try:
            head = reader.feed(piece)
        except PeerError as error:
            return Refused(error.status, str(error))
        if head is not None:
            return head
    return None


def split_points(length):
    """Every index of a head of ordinary size; of a giant one its ends, and enough in between."""
    if length <= 10_000:
        return range(length + 1)
    return [*range(200), *range(200, length - 200, 97), *range(length - 200, length + 1)]


def outcome(data, **limits):
    """Parse `data` whole, byte by byte and split at every index; return the one answer there is."""
    try:
        whole = _http1_python.parse_request_head(data, **limits)
    except PeerError as error:
        whole = Refused(error.status, str(error))
    assert feed_all((data[i:i + 1] for i in range(len(data))), **limits) == whole, "byte by byte"
    for index in split_points(len(data)):
        assert feed_all((data[:index], data[index:]), **limits) == whole, f"split at {index}"
    return whole


def accepted(data, **limits):
    head = outcome(data, **limits)
    assert isinstance(head, _http1_python.RequestHead), head
    return head


def refused(data, **limits):
    refusal = outcome(data, **limits)
    assert isinstance(refusal, Refused), refusal
    return refusal


def get(*lines, line=b"GET / HTTP/1.1"):
    """A head with these field lines behind its Host."""
    return line + b"\r\n" + HOST + b"".join(field + b"\r\n" for field in lines) + b"\r\n"


def bare(*lines, line=b"GET / HTTP/1.1"):
    """A head with these field lines and no others."""
    return line + b"\r\n" + b"".join(field + b"\r\n" for field in lines) + b"\r\n"


PLAIN = {
    "method": "GET", "target": "/", "minor_version": 1, "content_length": None, "chunked": False, "keep_alive": True,
    "expect_continue": False,
}

# name of the promise: (head, what differs from PLAIN)
ACCEPTED = {
    "plain": (get(), {"headers": [(b"host", b"a")]}),
    "one empty line before it": (b"\r\n" + get(), {"consumed": len(get()) + 2}),
    "bytes behind it are left alone": (get() + b"\x00\n", {"consumed": len(get())}),
    "method POST": (get(line=b"POST / HTTP/1.1"), {"method": "POST"}),
    "method lower case is another one": (get(line=b"get / HTTP/1.1"), {"method": "get"}),
    "method of odd tokens": (get(line=b"!#$%&'*+-.^_`|~09 / HTTP/1.1"), {"method": "!#$%&'*+-.^_`|~09"}),
    "method of 32 bytes": (get(line=b"M" * 32 + b" / HTTP/1.1"), {"method": "M" * 32}),
    "method CONNECTED is not CONNECT": (get(line=b"CONNECTED / HTTP/1.1"), {"method": "CONNECTED"}),
    "method connect is not CONNECT": (get(line=b"connect / HTTP/1.1"), {"method": "connect"}),
    "target with a query": (get(line=b"GET /a/b?c=d HTTP/1.1"), {"target": "/a/b?c=d"}),
    "target with every visible byte": (
        get(line=b"GET /" + bytes(sorted(TARGET_BYTES)) + b" HTTP/1.1"),
        {"target": "/" + bytes(sorted(TARGET_BYTES)).decode()}),
    "target *": (get(line=b"OPTIONS * HTTP/1.1"), {"method": "OPTIONS", "target": "*"}),
    "target absolute": (get(line=b"GET http://a/x HTTP/1.1"), {"target": "http://a/x"}),
    "target absolute without a path": (get(line=b"GET http://a HTTP/1.1"), {"target": "http://a"}),
    "target absolute with a query only": (get(line=b"GET http://a?b HTTP/1.1"), {"target": "http://a?b"}),
    "target absolute, any case": (get(line=b"GET HtTpS://A/x HTTP/1.1"), {"target": "HtTpS://A/x"}),
    "target absolute, @ in the path": (get(line=b"GET http://a/b@c HTTP/1.1"), {"target": "http://a/b@c"}),
    "default port equals none (http)": (get(line=b"GET http://a:80/ HTTP/1.1"), {"target": "http://a:80/"}),
    "default port equals none (https)": (get(line=b"GET https://a:443/ HTTP/1.1"), {"target": "https://a:443/"}),
    "default port equals none (Host has it)": (
        bare(b"Host: a:80", line=b"GET http://a/ HTTP/1.1"), {"target": "http://a/"}),
    "no port digits is the default port": (get(line=b"GET http://a:/ HTTP/1.1"), {"target": "http://a:/"}),
    "ports agree": (bare(b"Host: a:81", line=b"GET http://a:81/ HTTP/1.1"), {"target": "http://a:81/"}),
    "HTTP/1.0 without Host": (bare(line=b"GET / HTTP/1.0"), {"minor_version": 0, "keep_alive": False, "headers": []}),
    "HTTP/1.0 with Host": (get(line=b"GET / HTTP/1.0"), {"minor_version": 0, "keep_alive": False}),
    "HTTP/1.0 absolute without Host": (
        bare(line=b"GET http://a/ HTTP/1.0"), {"minor_version": 0, "keep_alive": False, "target": "http://a/"}),
    "name in lower case": (get(b"X-yZ_1: v"), {"headers": [(b"host", b"a"), (b"x-yz_1", b"v")]}),
    "value trimmed": (get(b"x: \t v \t w \t "), {"headers": [(b"host", b"a"), (b"x", b"v \t w")]}),
    "value without whitespace": (get(b"x:v"), {"headers": [(b"host", b"a"), (b"x", b"v")]}),
    "value empty": (get(b"x:"), {"headers": [(b"host", b"a"), (b"x", b"")]}),
    "value of whitespace": (get(b"x: \t "), {"headers": [(b"host", b"a"), (b"x", b"")]}),
    "value with obs-text": (get(b"x: \x80\xff"), {"headers": [(b"host", b"a"), (b"x", b"\x80\xff")]}),
    "value with a colon": (get(b"x:: a:b"), {"headers": [(b"host", b"a"), (b"x", b": a:b")]}),
    "order kept, repeated": (get(b"b: 1", b"a: 2", b"B: 3"),
                             {"headers": [(b"host", b"a"), (b"b", b"1"), (b"a", b"2"), (b"b", b"3")]}),
    "Host empty": (bare(b"Host:"), {"headers": [(b"host", b"")]}),
    "Host empty with *": (bare(b"Host: ", line=b"OPTIONS * HTTP/1.1"), {"method": "OPTIONS", "target": "*"}),
    "Host with port": (bare(b"hOsT:a.b-c_d~:65535"), {"headers": [(b"host", b"a.b-c_d~:65535")]}),
    "Host with an empty port": (bare(b"Host: a:"), {"headers": [(b"host", b"a:")]}),
    "Host IPv4": (bare(b"Host: 127.0.0.1:0080"), {"headers": [(b"host", b"127.0.0.1:0080")]}),
    "Host IPv6": (bare(b"Host: [::fFfF:1.2.3.4]:80"), {"headers": [(b"host", b"[::fFfF:1.2.3.4]:80")]}),
    "Host of reg-name characters": (bare(b"Host: !$&'()*+,;=%4a"), {"headers": [(b"host", b"!$&'()*+,;=%4a")]}),
    "Content-Length": (get(b"Content-Length: 0042"), {"content_length": 42}),
    "Content-Length 0": (get(b"content-length:0"), {"content_length": 0}),
    "Content-Length 2^63-1": (get(b"Content-Length: 9223372036854775807"), {"content_length": 2**63 - 1}),
    "Content-Length with many zeros": (get(b"Content-Length: " + b"0" * 50 + b"7"), {"content_length": 7}),
    "Transfer-Encoding": (get(b"Transfer-Encoding: chunked"), {"chunked": True}),
    "Transfer-Encoding, any case": (get(b"transfer-encoding:\tCHUNked "), {"chunked": True}),
    "Expect": (get(b"Expect: 100-Continue"), {"expect_continue": True}),
    "Expect ignored in HTTP/1.0": (
        get(b"Expect: 100-continue", line=b"GET / HTTP/1.0"), {"minor_version": 0, "keep_alive": False}),
    "Connection close": (get(b"Connection: close"), {"keep_alive": False}),
    "Connection close, any case, in a list": (get(b"Connection: x ,\tCLOSE"), {"keep_alive": False}),
    "Connection close wins": (get(b"Connection: keep-alive, close"), {"keep_alive": False}),
    "Connection close wins, earlier field": (
        get(b"Connection: close", b"Connection: keep-alive"), {"keep_alive": False}),
    "Connection close in the second field": (get(b"Connection: x", b"Connection: close"), {"keep_alive": False}),
    "Connection keep-alive in HTTP/1.0": (
        get(b"Connection: Keep-Alive", line=b"GET / HTTP/1.0"), {"minor_version": 0, "keep_alive": True}),
    "Connection close wins in HTTP/1.0": (
        get(b"Connection: close, keep-alive", line=b"GET / HTTP/1.0"), {"minor_version": 0, "keep_alive": False}),
    "Connection of other options": (get(b"Connection: closed, enclose, keep alive"), {}),
    "Connection of broken elements": (get(b"Connection: ,, @, close x,"), {}),
    "Connection empty": (get(b"Connection:"), {}),
    "fields that only look alike": (get(b"Hos: x y", b"Hosts: x y", b"Expects: z", b"Content_Length: -", b"TE: chunked",
                                        b"Except: y", b"Cornection: close", b"Transfer_Encoding: x"), {}),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepts(name):
    data, differences = ACCEPTED[name]
    head = accepted(data)
    expected = PLAIN | {"headers": head.headers, "consumed": len(data)} | differences
    assert head._asdict() == expected
    assert _http1_python.parse_request_head(data[:head.consumed - 1]) is None


LONG = 9223372036854775808  # 2^63

# name of the strictness item: (status, head, words of the message)
REFUSED = {
    "bare LF before the request line": (400, b"\n" + get(), "line feed without"),
    "bare LF in the method": (400, b"GET\n/ HTTP/1.1\r\n", "line feed without"),
    "bare LF in the target": (400, b"GET /\n HTTP/1.1\r\n", "line feed without"),
    "bare LF behind the request line": (400, get().replace(b"\r\n", b"\n", 1), "line feed without"),
    "bare LF in a name": (400, get(b"x\ny: z"), "line feed without"),
    "bare LF behind a value": (400, b"GET / HTTP/1.1\r\nHost: a\nx: y\r\n\r\n", "line feed without"),
    "bare LF as the blank line": (400, get()[:-2] + b"\n", "line feed without"),
    "bare CR before the request line": (400, b"\r" + get(), "return without"),
    "bare CR in the method": (400, b"GE\rT / HTTP/1.1\r\n", "method"),
    "bare CR behind the request line": (400, b"GET / HTTP/1.1\rHost: a\r\n\r\n", "return without"),
    "bare CR in a name": (400, get(b"x\ry: z"), "field name"),
    "bare CR in a value": (400, get(b"x: y\rz"), "return without"),
    "bare CR behind a value": (400, get(b"x: y\r"), "return without"),
    "bare CR as the blank line": (400, get()[:-2] + b"\rx", "return without"),
    "two empty lines before it": (400, b"\r\n\r\n" + get(), "method"),
    "two spaces behind the method": (400, b"GET  / HTTP/1.1\r\n", "request target"),
    "two spaces behind the target": (400, b"GET /  HTTP/1.1\r\n", "does not end in HTTP/1.1"),
    "space before the method": (400, b" GET / HTTP/1.1\r\n", "method"),
    "space behind the version": (400, b"GET / HTTP/1.1 \r\n", "does not end in HTTP/1.1"),
    "tab for a space": (400, b"GET\t/ HTTP/1.1\r\n", "method"),
    "method of 33 bytes": (501, b"M" * 33, "longer than 32"),
    "method without end": (501, b"M" * 20_000, "longer than 32"),
    "method with an illegal byte behind 32": (400, b"M" * 32 + b"/", "method"),
    "method of a TLS ClientHello": (400, b"\x16\x03\x01", "method"),
    "method missing": (400, b"/ HTTP/1.1\r\n", "method"),
    "method with a colon": (400, b"Host: a\r\n", "method"),
    "method CONNECT": (501, b"CONNECT a:443 HTTP/1.1\r\n", "tunnel"),
    "target missing": (400, b"GET HTTP/1.1\r\n", "without a version"),
    "target with a fragment": (400, b"GET /a#b HTTP/1.1\r\n", "fragment"),
    "target with NUL": (400, b"GET /\x00 HTTP/1.1\r\n", "visible"),
    "target with DEL": (400, b"GET /\x7f HTTP/1.1\r\n", "visible"),
    "target with obs-text": (400, b"GET /\x80 HTTP/1.1\r\n", "visible"),
    "target without a slash": (400, b"GET index.html HTTP/1.1\r\n", "neither"),
    "target of another scheme": (400, b"GET ftp://a/ HTTP/1.1\r\n", "neither"),
    "target of half a scheme": (400, b"GET http:/a/ HTTP/1.1\r\n", "neither"),
    "target of a scheme alone": (400, b"GET http HTTP/1.1\r\n", "neither"),
    "target in authority form": (400, b"GET a:80 HTTP/1.1\r\n", "neither"),
    "target * with GET": (400, b"GET * HTTP/1.1\r\n", "OPTIONS only"),
    "target ** with OPTIONS": (400, b"OPTIONS ** HTTP/1.1\r\n", "neither"),
    "authority empty": (400, b"GET http:/// HTTP/1.1\r\n", "authority"),
    "authority missing": (400, b"GET http:// HTTP/1.1\r\n", "authority"),
    "authority with a port only": (400, b"GET http://:80/ HTTP/1.1\r\n", "authority"),
    "authority with user information": (400, b"GET http://u@a/ HTTP/1.1\r\n", "authority"),
    "authority with a password": (400, b"GET https://u:p@a/ HTTP/1.1\r\n", "authority"),
    "authority with a bad port": (400, b"GET http://a:8x/ HTTP/1.1\r\n", "authority"),
    "authority with a large port": (400, b"GET http://a:65536/ HTTP/1.1\r\n", "authority"),
    "version missing (HTTP/0.9)": (400, b"GET /\r\n", "HTTP/0.9"),
    "version empty": (400, b"GET / \r\n", "does not end in HTTP/1.1"),
    "version HTTP/2.0": (505, b"GET / HTTP/2.0\r\n", "version"),
    "version HTTP/1.2": (505, b"GET / HTTP/1.2\r\n", "version"),
    "version HTTP/0.9": (505, b"GET / HTTP/0.9\r\n", "version"),
    "version HTTP/1.10": (400, b"GET / HTTP/1.10\r\n", "does not end in HTTP/1.1"),
    "version HTTP/2.00": (400, b"GET / HTTP/2.00\r\n", "does not end in HTTP/1.1"),
    "version HTTP/1": (400, b"GET / HTTP/1\r\n", "does not end in HTTP/1.1"),
    "version HTTP/1.": (400, b"GET / HTTP/1.\r\n", "does not end in HTTP/1.1"),
    "version HTTP/1,1": (400, b"GET / HTTP/1,1\r\n", "does not end in HTTP/1.1"),
    "version http/1.1": (400, b"GET / http/1.1\r\n", "does not end in HTTP/1.1"),
    "version HTTPS/1.1": (400, b"GET / HTTPS/1.1\r\n", "does not end in HTTP/1.1"),
    "version HTTP/x.1": (400, b"GET / HTTP/x.1\r\n", "does not end in HTTP/1.1"),
    "folded line": (400, get(b"x: y", b" z"), "folded"),
    "folded line, tab": (400, get(b"x: y", b"\tz"), "folded"),
    "folded line as the first": (400, b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", "folded"),
    "space before the colon": (400, get(b"x : y"), "the colon follows"),
    "tab before the colon": (400, get(b"x\t: y"), "the colon follows"),
    "space in a name": (400, get(b"x y: z"), "the colon follows"),
    "name empty": (400, get(b": y"), "starts with a colon"),
    "name without a colon": (400, get(b"x"), "field name"),
    "name with NUL": (400, get(b"x\x00: y"), "field name"),
    "name with obs-text": (400, get(b"x\x80: y"), "field name"),
    "name with a parenthesis": (400, get(b"x(: y"), "field name"),
    "value with NUL": (400, get(b"x: a\x00b"), "control byte"),
    "value with DEL": (400, get(b"x: a\x7fb"), "control byte"),
    "value with ESC": (400, get(b"x: \x1b"), "control byte"),
    "value with NUL behind a tab": (400, get(b"x: abcdefgh\tabcdefgh\x00"), "control byte"),
    "Host missing": (400, bare(b"x: y"), "no Host"),
    "Host doubled": (400, get(b"Host: a"), "second Host"),
    "Host doubled, both empty": (400, bare(b"Host:", b"Host:"), "second Host"),
    "Host doubled in HTTP/1.0": (400, get(b"HOST: a", line=b"GET / HTTP/1.0"), "second Host"),
    "Host with user information": (400, bare(b"Host: u@a"), "not host[:port]"),
    "Host with a path": (400, bare(b"Host: a/b"), "not host[:port]"),
    "Host of two": (400, bare(b"Host: a b"), "not host[:port]"),
    "Host with obs-text": (400, bare(b"Host: \xe4"), "not host[:port]"),
    "Host of a port only": (400, bare(b"Host: :80"), "not host[:port]"),
    "Host with a bad port": (400, bare(b"Host: a:8x"), "not host[:port]"),
    "Host with a signed port": (400, bare(b"Host: a:+80"), "not host[:port]"),
    "Host with a large port": (400, bare(b"Host: a:65536"), "not host[:port]"),
    "Host with a giant port": (400, bare(b"Host: a:" + b"9" * 40), "not host[:port]"),
    "Host with two ports": (400, bare(b"Host: a:80:80"), "not host[:port]"),
    "Host IPv6 without brackets": (400, bare(b"Host: ::1"), "not host[:port]"),
    "Host IPv6 not closed": (400, bare(b"Host: [::1"), "not host[:port]"),
    "Host IPv6 empty": (400, bare(b"Host: []"), "not host[:port]"),
    "Host IPv6 with a zone": (400, bare(b"Host: [fe80::1%25eth0]"), "not host[:port]"),
    "Host IPv6 with something behind": (400, bare(b"Host: [::1]x"), "not host[:port]"),
    "Host with half an escape": (400, bare(b"Host: a%4"), "not host[:port]"),
    "Host with a bad escape": (400, bare(b"Host: a%g4"), "not host[:port]"),
    "Host with another bad escape": (400, bare(b"Host: a%4g"), "not host[:port]"),
    "Host is not the target's": (400, get(line=b"GET http://b/ HTTP/1.1"), "target's authority"),
    "Host is longer than the target's": (400, bare(b"Host: ab", line=b"GET http://a/ HTTP/1.1"), "target's authority"),
    "Host empty, target has one": (400, bare(b"Host:", line=b"GET http://a/ HTTP/1.1"), "target's authority"),
    "Host has another port": (400, bare(b"Host: a:81", line=b"GET http://a/ HTTP/1.1"), "target's authority"),
    "Host has the other scheme's port": (
        400, bare(b"Host: a:80", line=b"GET https://a/ HTTP/1.1"), "target's authority"),
    "Host of HTTP/1.0 is not the target's": (400, get(line=b"GET http://b/ HTTP/1.0"), "target's authority"),
    "Content-Length doubled, equal": (400, get(b"Content-Length: 1", b"Content-Length: 1"), "second Content-Length"),
    "Content-Length doubled, unequal": (400, get(b"Content-Length: 1", b"Content-Length: 2"), "second Content-Length"),
    "Content-Length list": (400, get(b"Content-Length: 1, 1"), "decimal"),
    "Content-Length with +": (400, get(b"Content-Length: +1"), "decimal"),
    "Content-Length with -": (400, get(b"Content-Length: -1"), "decimal"),
    "Content-Length with whitespace": (400, get(b"Content-Length: 1 1"), "decimal"),
    "Content-Length empty": (400, get(b"Content-Length: "), "decimal"),
    "Content-Length hexadecimal": (400, get(b"Content-Length: 0x1"), "decimal"),
    "Content-Length decimal point": (400, get(b"Content-Length: 1.0"), "decimal"),
    "Content-Length 2^63": (413, get(b"Content-Length: %d" % LONG), "2^63-1"),
    "Content-Length 2^64": (413, get(b"Content-Length: %d" % (2 * LONG)), "2^63-1"),
    "Content-Length 2^64+1": (413, get(b"Content-Length: %d" % (2 * LONG + 1)), "2^63-1"),
    "Content-Length huge": (413, get(b"Content-Length: " + b"9" * 200), "2^63-1"),
    "Content-Length huge with a letter behind": (400, get(b"Content-Length: " + b"9" * 200 + b"x"), "decimal"),
    "Content-Length before Transfer-Encoding": (
        400, get(b"Content-Length: 1", b"Transfer-Encoding: chunked"), "both"),
    "Content-Length behind Transfer-Encoding": (
        400, get(b"Transfer-Encoding: chunked", b"Content-Length: 1"), "both"),
    "Transfer-Encoding in HTTP/1.0": (
        400, get(b"Transfer-Encoding: chunked", line=b"GET / HTTP/1.0"), "which has none"),
    "Transfer-Encoding doubled": (
        400, get(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), "second Transfer-Encoding"),
    "Transfer-Encoding chunked twice": (400, get(b"Transfer-Encoding: chunked, chunked"), "goes on behind"),
    "Transfer-Encoding chunked not last": (400, get(b"Transfer-Encoding: chunked, gzip"), "goes on behind"),
    "Transfer-Encoding empty": (400, get(b"Transfer-Encoding:"), "empty element"),
    "Transfer-Encoding with an empty element": (400, get(b"Transfer-Encoding: ,chunked"), "empty element"),
    "Transfer-Encoding with an empty last element": (400, get(b"Transfer-Encoding: chunked ,"), "empty element"),
    "Transfer-Encoding with chunked last": (501, get(b"Transfer-Encoding: gzip, chunked"), "other than chunked"),
    "Transfer-Encoding unknown": (501, get(b"Transfer-Encoding: xchunked"), "other than chunked"),
    "Transfer-Encoding identity": (501, get(b"Transfer-Encoding: identity"), "other than chunked"),
    "Transfer-Encoding chunked with a parameter": (501, get(b"Transfer-Encoding: chunked;a=b"), "other than chunked"),
    "Transfer-Encoding with a vertical tab": (400, get(b"Transfer-Encoding: \x0bchunked"), "control byte"),
    "Expect unknown": (417, get(b"Expect: 100-continued"), "expectation"),
    "Expect empty": (417, get(b"Expect:"), "expectation"),
    "Expect unknown in HTTP/1.0": (417, get(b"Expect: x", line=b"GET / HTTP/1.0"), "expectation"),
    "Connection with an illegal byte": (400, get(b"Connection: close\x01"), "control byte"),
    "request line without end": (414, b"GET /" + b"a" * 9000, "request line is longer"),
    "field name without end": (431, get()[:-2] + b"a" * 9000, "field line is longer"),
    "field value without end": (431, get()[:-2] + b"a:" + b" " * 9000, "field line is longer"),
    "101 fields": (431, get(*[b"a:"] * 100), "more field lines"),
    "head without end": (431, get()[:-2] + (b"a:" + b"b" * 996 + b"\r\n") * 70, "65535"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    status, data, words = REFUSED[name]
    refusal = refused(data)
    assert (refusal.status, words in refusal.message) == (status, True), refusal


def test_every_reason_has_a_sentence_and_a_case():
    """A reason that no head can have would be a dead row; one that no test reaches might have the wrong status."""
    sentences = []
    with pytest.raises(UsageError):
        while True:
            sentences.append(_http1.reason_text(len(sentences)))
    seen = {refused(data).message.rpartition(";")[0] for _, data, _ in REFUSED.values()}
    assert set(sentences[1:]) == seen
    assert len(sentences) == len(set(sentences))
    with pytest.raises(UsageError):
        _http1.reason_text(-1)


# The first thing that is wrong wins: name: (status, head)
PRECEDENCE = {
    "bad version before a bad field": (505, b"GET / HTTP/3.0\r\n: x\r\n\r\n"),
    "bad target before a bad version": (400, b"GET x HTTP/3.0\r\n"),
    "HTTP/2 preface: its target comes first": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "unknown coding before Content-Length": (501, get(b"Transfer-Encoding: x", b"Content-Length: 1")),
    "Content-Length before an unknown coding": (400, get(b"Content-Length: 1", b"Transfer-Encoding: x")),
    "expectation before a doubled Host": (417, get(b"Expect: x", b"Host: b")),
    "doubled Host before an expectation": (400, get(b"Host: b", b"Expect: x")),
    "illegal byte before the line's meaning": (400, get(b"Expect: x\x00")),
    "expectation before the missing Host": (417, bare(b"Expect: x")),
    "illegal byte before the limit": (400, get()[:-2] + b"a: \x00" + b"a" * 9000),
    "limit before an illegal byte": (431, get()[:-2] + b"a: " + b"a" * 9000 + b"\x00"),
    "field line that is too long before a bad one": (431, get(b"a: " + b"a" * 9000, b" x")),
    "meaning of a line before the next one's syntax": (417, get(b"Expect: x", b": y")),
    "field limit before the field's meaning": (431, get(*[b"a:"] * 99, b"Expect: x")),
}


@pytest.mark.parametrize("name", PRECEDENCE)
def test_first_mistake_wins(name):
    status, data = PRECEDENCE[name]
    assert refused(data).status == status


@pytest.mark.parametrize(("data", "status"), [
    (b"\x16", 400), (b"GET /\x01", 400), (b"CONNECT ", 501), (b"GET a ", 400), (b"GET / h", 400),
    (b"GET / HTTP/1.1x", 400), (b"GET / HTTP/2.0\r\n", 505),
    (get()[:-2] + b" ", 400), (get()[:-2] + b":", 400), (get()[:-2] + b"x ", 400), (get()[:-2] + b"x:\x01", 400),
    (get()[:-2] + b"Host: a\r\n", 400), (get()[:-2] + b"Expect: x\r\n", 417), (get()[:-2] + b"x: \r\t", 400),
])
def test_refuses_at_the_byte_that_decides(data, status):
    """Nobody has to send the rest of a line, or of a head, to hear that it is wrong."""
    assert outcome(data[:-1]) is None
    assert refused(data).status == status


# --- limits: exactly at it is fine, one more is not


def test_request_line_limit():
    for room in (17, 40, 8190):
        line = b"GET /" + b"a" * (room - 14) + b" HTTP/1.1"
        assert len(line) == room
        assert accepted(get(line=line), request_line_bytes=room)
        assert refused(get(line=line), request_line_bytes=room - 1).status == 414
        assert outcome(line[:-1], request_line_bytes=room - 1) is None
        assert refused(line, request_line_bytes=room - 1).status == 414
    assert accepted(b"\r\n" + get(), request_line_bytes=14).consumed == len(get()) + 2


@pytest.mark.parametrize("room", range(1, 14))
def test_request_line_limit_in_every_part_of_it(room):
    """In method, target and version: one byte above the limit is 414; a line that ends at it is judged by itself."""
    line = b"GET / HTTP/1.1"
    assert outcome(line[:room], request_line_bytes=room) is None
    assert refused(line[:room + 1], request_line_bytes=room).status == 414
    assert refused(line[:room] + b"\r\n", request_line_bytes=room).status == 400


def test_method_limits_meet():
    """The limit of the line comes first where both are reached."""
    assert refused(b"M" * 33, request_line_bytes=32).status == 414
    assert refused(b"M" * 33, request_line_bytes=33).status == 501


@pytest.mark.parametrize("line", [b"x:%s", b"%s:x", b"x: y%s ", b"x:%s\t"])
def test_field_line_limit(line):
    for room in (10, 33, 8190):
        field = line % (b"a" * (room - len(line) + 2))
        assert len(field) == room
        assert accepted(get(field), field_bytes=room)
        if room > len(b"Host: a") + 1:
            assert refused(get(field), field_bytes=room - 1).status == 431
            assert outcome(get()[:-2] + field[:-1], field_bytes=room - 1) is None
            assert refused(get()[:-2] + field, field_bytes=room - 1).status == 431


@pytest.mark.parametrize("room", [1, 2, 7, 99, 100])
def test_field_count_limit(room):
    fields = [b"a: b"] * (room - 1)
    assert len(accepted(get(*fields), fields=room).headers) == room
    assert refused(get(*fields, b"a: b"), fields=room).status == 431
    assert refused(get(*fields)[:-2] + b"a", fields=room).status == 431
    assert refused(get(*fields)[:-2] + b" ", fields=room).status == 400


@pytest.mark.parametrize("room", [12, 33, 8190])
def test_field_line_limit_of_a_plain_host(room):
    """It is read in one go, and by the same limits."""
    host = b"Host: " + b"a" * (room - 9) + b":80"
    head = b"GET / HTTP/1.1\r\n" + host + b"\r\n\r\n"
    assert accepted(head, field_bytes=room).headers == [(b"host", host[6:])]
    assert refused(head, field_bytes=room - 1).status == 431
    assert refused(head[:-4], field_bytes=room - 1).status == 431


@pytest.mark.parametrize("before", [1, 5, 100])
def test_field_count_limit_at_a_plain_host(before):
    head = b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * before + b"Host: example.org:8000\r\n\r\n"
    assert refused(head, fields=before).status == 431
    if before < 100:
        assert len(accepted(head, fields=before + 1).headers) == before + 1


@pytest.mark.parametrize("port, right", [(b"", True), (b"0", True), (b"59999", True), (b"60000", True),
                                         (b"65535", True), (b"065535", True), (b"65536", False), (b"99999", False),
                                         (b"8o", False), (b"80 80", False)])
def test_port_of_a_host(port, right):
    head = b"GET / HTTP/1.1\r\nHost: a:" + port + b"\r\n\r\n"
    assert accepted(head) if right else refused(head).status == 400


@pytest.mark.parametrize("spare", [-1, 0, 1])
def test_head_limit(spare):
    """65535 bytes, blank line included; the answer comes with the last byte that may be one."""
    data = get(*[b"a:" + b"b" * 994] * 64)
    data = get(*[b"a:" + b"b" * 994] * 64, b"c:" + b"d" * (65535 - len(data) - 4 + spare))
    assert len(data) == 65535 + spare
    if spare <= 0:
        assert accepted(data + b"x").consumed == len(data)
    else:
        assert outcome(data[:65534]) is None
        assert refused(data[:65535]) == refused(data)
        assert refused(data).status == 431


def test_head_limit_is_the_line_limit_of_a_giant_line():
    line = b"GET /" + b"a" * 70_000
    assert refused(line, request_line_bytes=65535).status == 414
    assert refused(b"\r\n" + line, request_line_bytes=65535).status == 414
    assert refused(get()[:-2] + b"x:" + b"a" * 70_000, field_bytes=65535).status == 431


@pytest.mark.parametrize("limit", ["request_line_bytes", "fields", "field_bytes"])
def test_limits_out_of_range_are_the_callers_mistake(limit):
    for value in (0, -1, 101 if limit == "fields" else 65536, 2**40):
        with pytest.raises(UsageError, match=limit):
            _http1_python.HeadReader(**{limit: value})
        with pytest.raises(UsageError, match=limit):
            _http1_python.parse_request_head(b"", **{limit: value})


# --- pieces


def trickle_seconds(data):
    """The least CPU time of three that `data`, byte by byte, costs a reader."""
    best = 1e9
    for _ in range(3):
        reader = _http1_python.HeadReader(request_line_bytes=65535, field_bytes=65535)
        start = time.process_time()
        for i in range(len(data)):
            reader.feed(data[i:i + 1])
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nx:\t"])
def test_trickled_head_costs_linear_work(start):
    """Four times the bytes cost four times the time; a line that is scanned anew with each byte would cost sixteen."""
    assert trickle_seconds(start + b"a" * 60_000) < 10 * trickle_seconds(start + b"a" * 15_000)


def test_trickled_large_head_is_the_same():
    fields = [b"name-%d: %s" % (i, b"v" * 600) for i in range(99)]
    data = get(*fields)
    assert len(data) > 60_000
    head = accepted(data)
    assert head.headers[1:] == [tuple(field.split(b": ")) for field in fields]
    assert head.consumed == len(data)


def test_reader_is_done_after_a_head():
    reader = _http1_python.HeadReader()
    assert reader.feed(b"") is None
    assert reader.feed(get()).consumed == len(get())
    with pytest.raises(UsageError):
        reader.feed(b"")


def test_reader_is_done_after_a_refusal():
    reader = _http1_python.HeadReader()
    with pytest.raises(PeerError) as caught:
        reader.feed(b"GET /#")
    assert (caught.value.status, str(caught.value).endswith("at byte 5 of the head")) == (400, True)
    with pytest.raises(UsageError):
        reader.feed(b" HTTP/1.1\r\n")


@pytest.mark.parametrize("data", ["GET", bytearray(b"GET"), None])
def test_only_bytes_are_parsed(data):
    with pytest.raises(TypeError):
        _http1_python.parse_request_head(data)
    with pytest.raises(TypeError):
        _http1_python.HeadReader().feed(data)


# --- every byte value, everywhere


@pytest.mark.parametrize(("before", "after", "allowed"), [
    (b"G", b"T / HTTP/1.1\r\nHost: a\r\n\r\n", TOKEN_BYTES),
    (b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", TOKEN_BYTES),
    (b"GET /", b"x HTTP/1.1\r\nHost: a\r\n\r\n", TARGET_BYTES),
    (b"GET / HTTP/1.1\r\nHost: a\r\nx", b"y: z\r\n\r\n", TOKEN_BYTES | {0x3A}),
    (b"GET / HTTP/1.1\r\nHost: a\r\n", b"y: z\r\n\r\n", TOKEN_BYTES),
    (b"GET / HTTP/1.1\r\nHost: a\r\nx: 1", b"2\r\n\r\n", VALUE_BYTES),
    (b"GET / HTTP/1.1\r\nHost: a\r\nx: 123456789012345", b"2345678\r\n\r\n", VALUE_BYTES),
    (b"GET / HTTP/1.1\r\nHost: a\r\nx:", b"\r\n\r\n", VALUE_BYTES),
    (b"GET / HTTP/1.1\r\nHost: a", b"b\r\n\r\n", TOKEN_BYTES - set(b"#%^`|") | set(b"(),:;=") - {0x3A}),
    (b"GET / HTTP/1.1\r\nHost: [:", b":]\r\n\r\n", frozenset(b"0123456789abcdefABCDEF:.")),
    (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1", b"1\r\n\r\n", frozenset(b"0123456789")),
], ids=["method", "first", "target", "name", "line", "value", "long value", "only value", "host", "ipv6", "length"])
def test_every_byte(before, after, allowed):
    for byte in range(256):
        answer = outcome(before + bytes([byte]) + after)
        assert isinstance(answer, _http1_python.RequestHead) == (byte in allowed), (byte, answer)
        assert byte in allowed or answer.status == 400


def test_field_name_and_value_of_every_byte():
    """What an application sets is checked the same way, so a response can't be split."""
    for byte in range(256):
        one = bytes([byte])
        assert _http1_python.is_field_name(b"x" + one) == _http1_python.is_field_name(one) == (byte in TOKEN_BYTES)
        assert _http1_python.is_field_value(one) == (byte in VALUE_BYTES - {0x09, 0x20})
        for at_an_end in (b"x" + one, one + b"x"):
            assert _http1_python.is_field_value(at_an_end) == _http1_python.is_field_value(one)
        for length in range(1, 20):
            for place in range(1, length):
                value = b"x" * place + one + b"y" * (length - place)
                assert _http1_python.is_field_value(value) == (byte in VALUE_BYTES), value
    assert not _http1_python.is_field_name(b"")
    assert _http1_python.is_field_value(b"")


@pytest.mark.parametrize("value", [b"a\r\nb", b"a\r\n", b"\r\nSet-Cookie: x", b" a", b"a ", b"\ta", b"a\t", b"a\x00"])
def test_value_that_would_split_a_response(value):
    assert not _http1_python.is_field_value(value)


# --- against a second implementation: the grammar as regular expressions, what fields mean in plain Python

HEAD = re.compile(rb"(?:\r\n)?([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}) ([!\"$-~]+) HTTP/1\.([01])\r\n"
                  rb"((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*\r\n)*)\r\n")
AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|(?:[\w\-.~!$&'()*+,;=]|%[0-9A-Fa-f]{2})+)(?::(\d*))?", re.ASCII)
ABSOLUTE = re.compile(rb"(https?)://([^/?]*)(?:[/?].*)?", re.IGNORECASE)


def authority_of(text, scheme=b"http"):
    """(host, port), or None when `text` is no authority."""
    match = AUTHORITY.fullmatch(text)
    port = int(match[2] or (443 if scheme == b"https" else 80)) if match else 0
    return (match[1].lower(), port) if match and port <= 65535 else None


def target_fits(method, target, hosts):
    if target == b"*":
        return method == b"OPTIONS"
    if target.startswith(b"/"):
        return True
    absolute = ABSOLUTE.fullmatch(target)
    if not absolute:
        return False
    scheme = absolute[1].lower()
    authority = authority_of(absolute[2], scheme)
    return authority is not None and all(authority_of(host, scheme) == authority for host in hosts)


def model_accepts(data):
    """Would a server that knows the rules, and nothing of parsing, take the head at the start of `data`?"""
    match = HEAD.match(data)
    if not match:
        return False
    method, target, minor, lines = match.groups()
    fields = [line.split(b":", 1) for line in lines.split(b"\r\n")[:-1]]
    values = {}
    for name, value in fields:
        values.setdefault(name.lower(), []).append(value.strip(b" \t"))
    hosts, lengths = values.get(b"host", []), values.get(b"content-length", [])
    codings = [value.lower() for value in values.get(b"transfer-encoding", [])]
    return (
        method != b"CONNECT" and target_fits(method, target, hosts)
        and len(hosts) <= 1 and (minor == b"0" or len(hosts) == 1)
        and all(host == b"" or authority_of(host) for host in hosts)
        and len(lengths) <= 1 and all(re.fullmatch(rb"[0-9]+", n) and int(n) < 2**63 for n in lengths)
        and (not codings or (codings == [b"chunked"] and minor == b"1" and not lengths))
        and all(value.lower() == b"100-continue" for value in values.get(b"expect", []))
    )


def check_against_model(data):
    answer = outcome(data)
    assert isinstance(answer, _http1_python.RequestHead) == model_accepts(data), answer
    if isinstance(answer, Refused):
        assert answer.status in (400, 413, 417, 501, 505)
    elif answer is not None:
        assert HEAD.match(data).end() == answer.consumed
        assert answer.target.encode() == HEAD.match(data)[2]
        assert answer.chunked == any(name == b"transfer-encoding" for name, _ in answer.headers)


PROPERTY = settings(derandomize=True, deadline=None, max_examples=400)

FRAGMENTS = st.sampled_from([
    b"GET ", b"OPTIONS ", b"POST ", b"CONNECT ", b"/", b"*", b"http://a", b"https://a:443/", b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n", b" HTTP/2.0\r\n", b"GET / HTTP/1.1\r\n", b"Host: a\r\n", b"Host: b\r\n", b"Host:\r\n",
    b"Content-Length: 3\r\n", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: x\r\n",
    b"Expect: 100-continue\r\n", b"Expect: x\r\n", b"Connection: close\r\n", b"x: y\r\n", b"\r\n", b"\r\n\r\n", b"\r",
    b"\n", b":", b" ", b"\t", b"\x00", b"a", b"9", b",",
])


@PROPERTY
@given(st.binary(max_size=80))
def test_random_bytes(data):
    check_against_model(data)


@PROPERTY
@given(st.lists(FRAGMENTS | st.binary(max_size=3), max_size=14).map(b"".join))
def test_random_fragments(data):
    check_against_model(data)


@PROPERTY
@given(st.lists(FRAGMENTS, max_size=8).map(b"".join))
def test_random_field_lines(data):
    """As above, behind a request line that lets them get that far."""
    check_against_model(b"GET / HTTP/1.1\r\nHost: a\r\n" + data + b"\r\n\r\n")
    check_against_model(b"GET http://a:80/ HTTP/1.0\r\n" + data + b"\r\n\r\n")


SPECIAL = {b"host", b"content-length", b"transfer-encoding", b"expect", b"connection"}
TOKENS = st.lists(st.sampled_from(sorted(TOKEN_BYTES)), min_size=1, max_size=32).map(bytes)
NAMES = TOKENS.filter(lambda name: name.lower() not in SPECIAL)
WHITESPACE = st.text(" \t", max_size=3).map(str.encode)
VALUES = st.lists(st.sampled_from(sorted(VALUE_BYTES)), max_size=40).map(lambda value: bytes(value).strip(b" \t"))
FIELDS = st.lists(st.tuples(NAMES, WHITESPACE, VALUES, WHITESPACE), max_size=8)
TARGETS = st.lists(st.sampled_from(sorted(TARGET_BYTES)), max_size=40).map(lambda target: b"/" + bytes(target))


@PROPERTY
@given(TOKENS.filter(lambda method: method != b"CONNECT"), TARGETS, st.integers(0, 1), FIELDS)
def test_valid_head_round_trips(method, target, minor, fields):
    lines = [name + b":" + before + value + after for name, before, value, after in fields]
    head = accepted(get(*lines, line=b"%s %s HTTP/1.%d" % (method, target, minor)))
    assert (head.method.encode(), head.target.encode(), head.minor_version) == (method, target, minor)
    assert head.headers == [(b"host", b"a"), *((name.lower(), value) for name, _, value, _ in fields)]
    assert (head.content_length, head.chunked, head.expect_continue) == (None, False, False)
    assert head.keep_alive == (minor == 1)


VALID = [
    get(b"Connection: keep-alive, x", b"Content-Length: 12", b"Expect: 100-continue", b"Accept: */*"),
    bare(b"User-Agent: x/1 (y)", b"host:a:80", b"transfer-encoding: chunked", line=b"POST http://A/b?c HTTP/1.1"),
    bare(b"Host: [::1]:8000", line=b"\r\nOPTIONS * HTTP/1.1"),
]


@pytest.mark.parametrize("valid", VALID, ids=["origin", "absolute", "asterisk"])
def test_one_changed_byte(valid):
    """Whatever one byte becomes, the head is refused, or what it says now is still by the rules."""
    interesting = sorted({0, 9, 10, 13, 32, 0x7F, 0x80, *b"#%*+,/019:;@AGHX[]acehtx"})
    for place in range(len(valid)):
        for byte in interesting:
            check_against_model(valid[:place] + bytes([byte]) + valid[place + 1:])


@pytest.mark.parametrize("valid", VALID, ids=["origin", "absolute", "asterisk"])
def test_one_byte_more_or_less(valid):
    for place in range(len(valid) + 1):
        check_against_model(valid[:place] + valid[place + 1:])
        for byte in b"\r\n\t :,a0\x00":
            check_against_model(valid[:place] + bytes([byte]) + valid[place:])

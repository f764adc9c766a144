"""What the fuzzers start with, the words that they put in, and where."""
from __future__ import annotations

import random
import re
from itertools import product

HOST = b"Host: a\r\n"
LINES = (b"GET / HTTP/1.1", b"HEAD /a?b=%20 HTTP/1.1", b"POST /bk HTTP/1.1", b"OPTIONS * HTTP/1.1", b"GET /c HTTP/1.0",
         b"GET http://a:80/x HTTP/1.1", b"PUT https://a/ HTTP/1.1", b"get / HTTP/2.0", b"CONNECT a:1 HTTP/1.1",
         b"\r\nDELETE / HTTP/1.1", b"GET /")
FIELDS = (b"", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close, x\r\n",
          b"Connection: keep-alive\r\n", b"Expect: 100-continue\r\nContent-Length: 3\r\n", b"X: \t a\tb \x80\r\n",
          b"Content-Length: 9223372036854775808\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b" folded\r\n",
          b"Host: [::1]:80\r\n", b"Transfer-Encoding: chunked, gzip\r\n", b"a:b\n")
WORDS = (b"GET ", b"HEAD ", b"POST ", b"OPTIONS ", b"CONNECT ", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"HTTP/1.1",
         b"http://", b"https://", b"Host: a", b"Host: ", b"\r\n", b"\r\n\r\n", b"Content-Length: ",
         b"Content-Length: 3", b"Transfer-Encoding: ", b"chunked", b"Connection: ", b"close", b"keep-alive",
         b"Expect: 100-continue", b", chunked", b"chunked, ", b",", b":66000", b"localhost", b"\t",
         b"100-continue", b"gzip", b", ", b"%41", b"[::1]", b":80", b":443", b":65536", b"9223372036854775807", b"*",
         b"GET /c HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n",
         b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n")


def heads() -> list[bytes]:
    """None is long: the limits that an input chooses make up for that."""
    made = [line + b"\r\n" + host + field + b"\r\n" for line, host, field in product(LINES, (HOST, b""), FIELDS)]
    return [*made, LINES[0] + b"\r\n" + HOST + b"x: y\r\n" * 101 + b"\r\n"]


def requests() -> list[bytes]:
    """For `fuzz_request`."""
    return [bytes([i % 4, i % 256]) + head for i, head in enumerate(heads())]


REST = b"\xfe\x01"          # until the loop rests


def order(number: int, argument: int = 0) -> bytes:
    """One of `Script.ORDERS`."""
    return bytes([0xFE, number << 2 | argument << 6 | 3])


def other(number: int) -> bytes:
    """The next connection."""
    return bytes([0xFE, number << 2 | 2])


def scripts() -> list[bytes]:
    """For `fuzz_server`."""
    get, post = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"POST /k HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
    big = b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n"
    plays = [get, get * 3, post + b"hello" + get, post + REST + b"he" + REST + b"llo" + get,
             REST.join(bytes([byte]) for byte in get), get + order(0), get[:20] + order(0), get[:20] + order(1),
             get[:20] + order(5, 3), get + REST + order(6, 1), post + order(6, 0) + b"hello", big * 3 + REST + get,
             big + REST + order(3) + REST + order(4), big + REST + order(6, 0), big + REST + order(1),
             get + other(1) + get + other(2) + get + other(0) + order(2) + other(1) + order(1),
             get + other(1) + get[:9] + other(2) + get + REST + other(0) + get + other(1) + get[9:],
             post + b"hello" + order(7, 3), get + REST + order(8, 0) + get, get + order(9, 0) + REST + get,
             b"GET /c HTTP/1.1\r\nHost: a\r\n\r\n" + get, b"GET / HTTP/1.0\r\n\r\n" + get, b"\x16\x03\x01\x00\x05hello",
             b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n" + REST + b"abc" + get,
             *(b"GET /%c HTTP/1.1\r\nHost: a\r\n\r\n" % letter + get for letter in b"mnsxravw"),
             get + order(14) + get + REST + order(0), b"line\nline\r\naab\0" * 9, b"x" * 60 + order(13) + b"\n" * 9]
    made = [bytes([world, caps, 8 * i % 251, 5, 42, 251]) + play
            for i, (play, world, caps) in enumerate(product(plays, range(5), (0, 0x87, 0x4A)))]
    shaken = [bytes([5, caps, 1, 1, 1, 1]) + order(10) + play for play, caps in product(plays, (0, 9))]
    mangled = [bytes([5, 0, 1, 1, 1, 1]) + order(10) + order(11, i) + get + REST + get for i in range(4)]
    garbage = [bytes([5, 0, 1, 1, 1, 1]) + b"\x16\x03\x01\x00\x2a\x01\x00\x00\x26\x03\x03" + bytes(range(36))]
    few = [bytes([world, 0x30, 1, 1, 1, 1]) + plays[16] + plays[15] for world in range(6)]
    early = [bytes([world + 6 * i, 0, 1, 1, 1, 1]) + post + b"hello" for world, i in product((0, 3, 4), (1, 2, 3))]
    return [*made, *shaken, *mangled, *garbage, *few, *early]


def dictionary() -> str:
    """In libFuzzer's format."""
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in WORDS)


SEAMS = re.compile(rb"(\r\n|[ ,:/.]|\xfe.)", re.DOTALL)


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Another input, made of this one. Bytes changed at random seldom make another request of one; lines that are
    moved, and what is between two seams, do."""
    if chance.random() < 0.5:
        lines = data.split(b"\r\n")
        at = chance.randrange(len(lines))
        lines[at:at + chance.choice((0, 0, 0, 1))] = chance.choice((
            [chance.choice(FIELDS)[:-2]], [chance.choice(lines)], []))
        return b"\r\n".join(lines)
    parts = SEAMS.split(data)
    at = chance.randrange(len(parts))
    start = chance.randrange(len(parts))
    some = parts[start:start + chance.choice((1, 2, 3, 8))]
    parts[at:at + chance.choice((0, 0, 1, 1, 2, 4))] = chance.choice((
        [chance.choice(WORDS)], some, [], [parts[at], b",", parts[at]], [parts[at], b", ", parts[at]]))
    return b"".join(parts)

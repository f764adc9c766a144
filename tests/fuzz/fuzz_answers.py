"""What the application of `fuzz_server` does, over HTTP and with frames, and what has to be seen of it: given all that
was sent on a connection, what it was asked, and what came back.
"""
from __future__ import annotations

import re
from typing import Any, NamedTuple

import rfc9112

import epollkit
from epollkit.http import Response

LIMITS = rfc9112.Limits(120, 12, 80)
BODY_LIMIT = 2000
BIG_BYTES = 70_000                  # more than a small socket takes, and than the loop gathers
SEPARATORS = (b"\n", b"\r\n", b"aab", b"\0")


# -- HTTP --------------------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """A request: as the application saw it, or as it was sent."""

    method: str
    target: str
    minor_version: int
    fields: list[tuple[bytes, bytes]]
    body: bytes


class Answer(NamedTuple):
    """What the application does about the nth request of a connection."""

    status: int = 200
    body: bytes = b""
    close: bool = False
    deed: str = ""


def answer_to(asked: Asked, number: int) -> Answer:
    """The first letter of the path says what."""
    letter = asked.target[1:2] if asked.target[:1] == "/" else ""
    echo = b"%d %s %s " % (number, asked.method.encode(), asked.target.encode()) + asked.body
    if letter == "b":
        return Answer(200, echo.ljust(BIG_BYTES, b"."))
    if letter == "m":
        return Answer(200, echo.ljust(20_000, b"."))
    return {"c": Answer(200, echo, True), "n": Answer(204), "s": Answer(304), "x": Answer(599, echo),
            "r": Answer(500, b"Internal Server Error\n", deed="raise"), "a": Answer(deed="abort"),
            "w": Answer(deed="close"), "v": Answer(500, b"Internal Server Error\n", deed="nonsense"),
            }.get(letter, Answer(200, echo))


class App:
    """Of one connection: remembers what it was asked, and keeps every second request."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.kept: list[tuple[Any, Asked]] = []

    def __call__(self, request: Any) -> Any:
        asked = seen(request)
        answer = answer_to(asked, len(self.asked))
        self.asked.append(asked)
        if len(self.asked) % 2 == 0:
            self.kept.append((request, asked))
        if answer.deed == "raise":
            raise RuntimeError("as asked")
        if answer.deed == "nonsense":
            return None
        if answer.deed == "abort":
            request.connection.abort()
        if answer.deed == "close":
            request.connection.close()
        return Response(answer.body, answer.status, ((b"Connection", b"close"),) if answer.close else ())

    def check_kept(self) -> None:
        """What was received where their heads were is something else by now."""
        for request, asked in self.kept:
            assert seen(request) == asked, f"a request that was kept: {seen(request)}, it was {asked}"
        self.kept.clear()


def seen(request: Any) -> Asked:
    return Asked(request.method, request.target, request.minor_version, request.headers, request.body)


class Expected(NamedTuple):
    """What has to come back for a request, or for what is none."""

    statuses: frozenset[int]
    body: bytes | None              # None: of a refusal, in the server's words
    bare: bool                      # no body follows the head
    close: bool
    may_continue: bool = False      # 100 may come first
    old: bool = False               # HTTP/1.0
    broken: bool = False            # no answer: the application ended the connection


def expected_of(sent: bytes) -> tuple[list[Asked], list[Expected]]:
    """What the application has to be asked, and what has to come back, for all that was sent on a connection."""
    asked: list[Asked] = []
    expected: list[Expected] = []
    at = 0
    while at < len(sent) and not (expected and (expected[-1].close or expected[-1].broken)):
        head = rfc9112.read(sent[at:], LIMITS)
        if head is None:
            break
        if isinstance(head, rfc9112.Refusal) or head.chunked or (head.content_length or 0) > BODY_LIMIT:
            bare = re.match(rb"(\r\n)?HEAD ", sent[at:]) is not None
            statuses = (head.statuses if isinstance(head, rfc9112.Refusal) else
                        frozenset({411 if head.chunked else 413}))
            expected.append(Expected(statuses, None, bare, True))
            break
        at += head.consumed
        length = head.content_length or 0
        if len(sent) - at < length:
            expected.append(Expected(frozenset(), None, False, False, head.expect_continue, broken=True))
            break
        one = Asked(head.method.decode(), head.target.decode(), head.minor_version,
                    [(name.lower(), value) for name, value in head.fields], sent[at:at + length])
        answer = answer_to(one, len(asked))
        asked.append(one)
        at += length
        expected.append(Expected(frozenset({answer.status}), answer.body,
                                 head.method == b"HEAD" or answer.status in (204, 304),
                                 not head.keep_alive or answer.close, head.expect_continue and length > 0,
                                 head.minor_version == 0, answer.deed in ("abort", "close")))
    return asked, expected


HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [ -~]*\r\n((?:[A-Za-z-]+: [ -~]+\r\n)*)\r\n")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Cut(Exception):
    """The bytes end within an answer."""


def take_answer(data: bytes, one: Expected) -> bytes:
    """Check the answer that `data` starts with; returns what is behind it. Cut: it is not all there."""
    if one.may_continue and data.startswith(CONTINUE):
        data = data[len(CONTINUE):]
    found = HEAD.match(data)
    if found is None or one.broken:
        if found is None and b"\r\n\r\n" not in data:
            raise Cut
        raise AssertionError(f"no answer that is expected ({brief([one])}): {data[:200]!r}")
    status = int(found[1])
    fields = [line.split(b": ", 1) for line in found[2].split(b"\r\n")[:-1]]
    named = dict(fields)
    assert len(named) == len(fields), f"a field came twice: {fields}"
    assert status in one.statuses, f"{status} instead of {brief([one])}: {data[:200]!r}"
    assert len(named.pop(b"Date")) == 29
    length = int(named.pop(b"Content-Length")) if status not in (204, 304) else 0
    connection = named.pop(b"Connection", None)
    body, rest = data[found.end():], b""
    if not one.bare:
        body, rest = body[:length], body[length:]
        if len(body) < length:
            raise Cut
    else:
        body, rest = b"", body
    if one.body is None:
        assert connection == b"close" and named == {b"Content-Type": b"text/plain"}, fields
        assert one.bare or body.startswith(b"%d " % status), body
    else:
        assert connection == (b"close" if one.close else b"keep-alive" if one.old else None), fields
        assert (one.bare and status in (204, 304)) or length == len(one.body), fields
        assert one.bare or body == one.body, f"{body[:200]!r} instead of {one.body[:200]!r}"
    return rest


def brief(expected: list[Expected]) -> list[Expected]:
    """To be shown."""
    return [one._replace(body=one.body and one.body[:60]) for one in expected]


def check_received(received: bytes, expected: list[Expected], whole: bool, paused: bool) -> None:
    """The answers, in order; all of them, if nothing came between. After a pause the last may be that it was too late.
    """
    late = Expected(frozenset({408}), None, False, True)
    data = received
    for one in expected:
        if one.may_continue and one.broken and CONTINUE.startswith(data[:len(CONTINUE)]):
            data = data[len(CONTINUE):]
        if not data or (paused and data.startswith(b"HTTP/1.1 408 ")):
            break
        try:
            data = take_answer(data, one)
        except Cut:
            assert not whole, f"cut short: {data[:200]!r}"
            return
    else:
        one = late                  # none of the expected is missing
    if data and paused:
        bare = data.endswith(b"\r\n\r\n") and data.count(b"\r\n\r\n") == 1      # the request had begun with HEAD
        try:
            data = take_answer(data, late._replace(bare=bare))
        except Cut:
            assert not whole, f"cut short: {data[:200]!r}"
            return
    assert not data, f"more than was asked for: {data[:200]!r}"
    assert not whole or one is late or one.broken, f"not answered: {brief([one])} of {brief(expected)}"


# -- frames ------------------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """What a frame is: so many bytes, or up to a separator and at most so many."""

    separator: bytes
    size: int

    @classmethod
    def of(cls, code: int) -> Rule:
        kind, argument = code & 3, code >> 2
        if kind == 0:
            return cls(b"", 1 + argument)
        if kind == 1:
            return cls(b"", 50 * argument + 1)
        return cls(SEPARATORS[argument & 3], 1000 if kind == 2 else 4 + argument)


def frames_of(sent: bytes, rules: list[Rule]) -> tuple[list[bytes], bytes, bool]:
    """The frames; what is left; whether that is too long for one."""
    frames: list[bytes] = []
    while True:
        separator, size = rules[len(frames) % len(rules)]
        end = sent.find(separator) + len(separator) if separator else size
        if separator and end < len(separator):
            return frames, sent, len(sent) >= size
        if separator and end > size:
            return frames, sent, True
        if len(sent) < end or not sent:
            return frames, sent, False
        frames.append(sent[:end])
        sent = sent[end:]


class Framed(epollkit.Stream):
    """Echoes frames. The rule changes with each of them; every third time it pauses, if it is one that does."""

    def __init__(self, rules: list[Rule], pauses: bool) -> None:
        self.rules, self.pauses = rules, pauses
        self.opened = False
        self.frames: list[bytes] = []
        self.errors: list[Exception] = []
        self.ends: list[BaseException | None] = []

    def on_open(self) -> None:
        self.opened = True
        self.follow()

    def follow(self) -> None:
        separator, size = self.rules[len(self.frames) % len(self.rules)]
        if separator:
            self.read_until(separator, size)
        else:
            self.read_exactly(size)

    def on_data(self, data: bytes) -> None:
        self.frames.append(data)
        self.follow()
        self.write(data)
        if self.pauses and len(self.frames) % 3 == 0:
            self.pause_reading()

    def on_error(self, error: Exception) -> None:
        self.errors.append(error)

    def on_close(self, error: BaseException | None) -> None:
        self.ends.append(error)

    def resume(self) -> None:
        if self.pauses and self.opened and not self.is_closing:
            self.resume_reading()

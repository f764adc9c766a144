"""Servers for the load engine's tests, on the engine's own loop, and what must be true of every tally.

    site = Site(bench, lambda visitor, request: visitor.write(answer(b"ok")))
    tally = besiege(bench, [site.ask("/a"), site.ask("/b")], users=2, number=10)

A `Site` answers by itself. Where a test wants every byte in its own hands it takes `arrive(bench, listening)`, one
connection's far end, which does nothing but what it is told.
"""
from __future__ import annotations

import itertools
import re
import select
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from peers import Peer
from wire import Bench

import epollkit
from epollkit._histogram import Histogram
from epollkit._siege import Engine

TCP = ("127.0.0.1", 0)


def answer(body: bytes = b"", status: int = 200, headers: bytes = b"") -> bytes:
    """A response with a length. headers: whole lines."""
    return b"HTTP/1.1 %d Such\r\n%sContent-Length: %d\r\n\r\n%s" % (status, headers, len(body), body)


def chunked(*chunks: bytes, trailers: bytes = b"") -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n" + trailers + b"\r\n"


def ask(address: Any, path: str = "/", *, method: str = "GET", body: bytes = b"", headers: bytes = b"",
        ssl: Any = None, hostname: str | None = None) -> tuple[bytes, Any, Any, str | None, bool]:
    """A request as the engine takes it."""
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    wire = b"%s %s HTTP/1.1\r\nHost: a\r\n%s%s\r\n%s" % (method.encode(), path.encode(), headers, length, body)
    return wire, address, ssl, hostname, method == "HEAD"


class Request(NamedTuple):
    method: str
    target: str
    body: bytes


def requests_in(data: bytearray) -> Iterator[Request]:
    """Each that is whole, taken out of `data`."""
    while (end := data.find(b"\r\n\r\n")) >= 0:
        head = bytes(data[:end + 2])
        length = re.search(rb"\r\nContent-Length: (\d+)\r\n", head)
        size = end + 4 + (int(length[1]) if length else 0)
        if len(data) < size:
            return
        method, target, _ = head.decode().split("\r\n")[0].split(" ")
        body = bytes(data[end + 4:size])
        del data[:size]
        yield Request(method, target, body)


class Visitor(epollkit.Stream):
    """A connection of a Site."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.unread = bytearray()
        self.targets: list[str] = []        # what was asked on it, in order
        self.peer: Any = None
        self.ended = False                  # its end-of-stream came
        self.closed: Any = ...              # what it ended with

    def on_open(self) -> None:
        self.peer = self.peer_address
        self.site.opened(self)

    def on_data(self, data: bytes) -> None:
        self.site.bytes_received += len(data)
        self.unread += data
        for request in requests_in(self.unread):
            self.targets.append(request.target)
            self.site.requests.append(request)
            self.site.answer(self, request)
            if self.is_closing:
                break

    def on_eof(self) -> None:
        self.ended = True
        if not self.site.stays:
            super().on_eof()

    def on_close(self, error: BaseException | None) -> None:
        self.closed = error

    def write(self, data: bytes) -> bool:
        self.site.bytes_sent += len(data)
        return super().write(data)


class Site:
    """A server that calls `answer(visitor, request)` for each request, and `opened(visitor)` for each connection."""

    def __init__(self, bench: Bench, answer: Callable[[Visitor, Request], object], address: Any = TCP, *,
                 opened: Callable[[Visitor], object] = lambda visitor: None, stays: bool = False,
                 **options: Any) -> None:
        self.bench = bench
        self.answer = answer
        self.opened = opened
        self.stays = stays                  # keeps its side open after the user's end
        self.visitors: list[Visitor] = []
        self.requests: list[Request] = []
        self.bytes_received = self.bytes_sent = 0
        self.listener = bench.listen(self.make, address, **options)
        self.address = self.listener.address

    def make(self) -> Visitor:
        visitor = Visitor(self)
        self.visitors.append(visitor)
        self.bench.witnesses.append(visitor)        # type: ignore[arg-type]
        return visitor

    def ask(self, path: str = "/", **options: Any) -> tuple[bytes, Any, Any, str | None, bool]:
        return ask(self.address, path, **options)

    @property
    def targets(self) -> list[str]:
        return [request.target for request in self.requests]


def says(*pieces: bytes) -> Callable[[Visitor, Request], None]:
    """What a Site answers to everything."""
    def respond(visitor: Visitor, request: Request) -> None:
        for piece in pieces:
            visitor.write(piece)
    return respond


def arrive(bench: Bench, listening: socket.socket) -> Peer:
    """The far end of the next connection to a plain listening socket; the near end is open when this returns."""
    bench.turn_until(lambda: select.select([listening], [], [], 0)[0])
    peer = Peer(bench, listening.accept()[0])
    bench.quiet()
    return peer


def take_request(peer: Peer) -> Request:
    """The next one."""
    found: list[Request] = []

    def whole() -> bool:
        found.extend(itertools.islice(requests_in(peer.received), 1))
        return bool(found) or peer.over

    peer.until(whole)
    assert found, f"no request came: {peer!r}"
    return found[0]


def start(bench: Bench, prepared: list[Any], **options: Any) -> Engine:
    """An engine at work."""
    engine = Engine(bench.loop, prepared, **options)
    engine.start()
    return engine


def besiege(bench: Bench, prepared: list[Any], **options: Any) -> dict[str, Any]:
    """An engine from its start to its end, and its tally, checked."""
    return ended(bench, start(bench, prepared, **options))


def ended(bench: Bench, engine: Engine) -> dict[str, Any]:
    """Its tally once it is done, checked; its connections are gone."""
    bench.turn_until(lambda: engine.done)
    bench.quiet()
    tally = checked(engine.tally())
    assert tally == engine.tally(), "it goes on counting"
    return tally


def checked(tally: dict[str, Any]) -> dict[str, Any]:
    """Nothing is lost, nothing counts twice; true of every tally of an engine that is done."""
    assert tally["successful"] + tally["unexpected"] == tally["answered"] == sum(tally["statuses"].values()), tally
    ends = (tally["answered"], tally["failed"] - tally["unexpected"], tally["unanswered"], tally["broken_off"])
    assert sum(ends) == tally["planned"], tally
    kinds = errors(tally)
    failures = sum(count for (phase, name), count in kinds.items() if (phase, name) != UNASKED)
    assert failures == tally["failed"], tally
    assert sum(count for (phase, _), count in kinds.items() if phase == "expect") == tally["unexpected"], tally
    assert sum(count for (_, name), count in kinds.items() if name == "timeout") == tally["timed_out"], tally
    latency = Histogram.load(tally["latency"])
    assert latency.count == tally["answered"] + tally["timed_out"] + tally["unanswered"], tally
    assert Histogram.load(tally["connect"]).count <= tally["connections"], tally
    assert tally["connected_ns"] <= tally["elapsed_ns"] * tally["open_peak"], tally
    return tally


UNASKED = ("protocol", "bytes that nobody has asked for")


def errors(tally: dict[str, Any]) -> Counter[tuple[str, str]]:
    return Counter({(phase, name): count for phase, name, count in tally["errors"]})


def latencies_ns(tally: dict[str, Any], which: str = "latency") -> list[int]:
    """The least that each of them can have been, sorted."""
    return [low for low, _, count in Histogram.load(tally[which]).items() for _ in range(count)]

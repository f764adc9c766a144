"""Streams of every kind, open, with their peer's end in the test's hands: `make_kit("tls").open()`."""
from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any

from batches import Stage, settle, wait_ready
from pools import Server

import epollkit
from epollkit import Stream

KINDS = ("tcp", "unix", "tls")


class Patient(Stream):
    """Stays when its peer ends; `then` is called with the next piece of data."""

    def __init__(self) -> None:
        self.upcalls: list[tuple[str, Any]] = []
        self.then: Callable[[], object] = lambda: None

    def on_data(self, data):
        self.upcalls.append(("data", data))
        then, self.then = self.then, lambda: None
        then()

    def on_eof(self):
        self.upcalls.append(("eof", None))

    def on_drain(self):
        self.upcalls.append(("drain", None))

    def on_timeout(self, which):
        self.upcalls.append(("timeout", which))

    def on_close(self, error):
        self.upcalls.append(("close", error))


class Far:
    """The other end, with or without TLS."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True) if context else None

    def shake(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            self.incoming.write(self.sock.recv(1 << 16))
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self.sock.sendall(self.outgoing.read())
        return True

    def sealed(self, data: bytes) -> bytes:
        """What goes over the wire for that."""
        if self.tls is None:
            return data
        for start in range(0, len(data), 16384):
            self.tls.write(data[start:start + 16384])
        return self.outgoing.read()

    def send(self, data: bytes) -> None:
        self.sock.sendall(self.sealed(data))

    def end(self) -> None:
        if self.tls is not None:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.unwrap()
            self.sock.sendall(self.outgoing.read())
        else:
            self.sock.shutdown(socket.SHUT_WR)

    def read_all(self) -> int:
        """Take what is there and throw it away."""
        size = 0
        with contextlib.suppress(BlockingIOError):
            while piece := self.sock.recv(1 << 20):
                size += len(piece)
        return size


class Kit:
    """Connections of one kind: "tcp", "unix" or "tls"."""

    def __init__(self, loop: epollkit.Loop, stage: Stage, kind: str, contexts: tuple[Any, Any]) -> None:
        self.loop, self.stage, self.kind = loop, stage, kind
        self.server_context, self.client_context = contexts
        self.stream, self.far = Patient(), None

    def adopt(self, data: bytes = b"", keeper: Callable[..., object] | None = None) -> None:
        """A new one, to be opened in the next turn."""
        near, sock = self.stage.pair() if self.kind != "unix" else socket.socketpair()
        for end in (near, sock):
            self.stage.own(end).setblocking(False)
        self.far = Far(sock, self.server_context if self.kind == "tls" else None)
        self.stream = Patient()
        self.stage.callback(lambda stream: stream._leave() or stream.abort(), self.stream)
        if self.kind == "tls":
            self.stream._secure(self.client_context, False, "localhost", 10.0)
        self.stream._keep(self.loop, keeper)
        self.loop.adopt(near, lambda: self.stream, data)

    def open(self, keeper: Callable[..., object] | None = None) -> None:
        """A new one, opened, to which nothing has happened."""
        self.adopt(keeper=keeper)
        settle(self.loop)
        self.shake()

    def shake(self) -> None:
        shaken = self.kind != "tls"
        while not shaken:
            wait_ready(self.far.sock)
            shaken = self.far.shake()
            wait_ready(self.stream)
            settle(self.loop)

    def send(self, data: bytes) -> None:
        """From the far end; it has arrived when this returns, and nobody has looked."""
        self.far.send(data)
        wait_ready(self.stream)


class PooledKit(Kit):
    """The same, but `open` gets them from a pool."""

    def __init__(self, kit: Kit) -> None:
        super().__init__(kit.loop, kit.stage, kit.kind, (kit.server_context, kit.client_context))
        self.server = Server(self.stage, "unix" if self.kind == "unix" else "tcp")
        options = {"ssl": self.client_context, "server_hostname": "localhost"} if self.kind == "tls" else {}
        self.pool = epollkit.Pool(self.loop, Patient, **options)
        self.stage.callback(self.end)

    def open(self, keeper: Callable[..., object] | None = None) -> None:
        """The next one that the pool has, new or not."""
        received: list[Any] = []
        misses = self.pool.stats().misses
        self.pool.acquire(self.server.address, lambda stream, error: received.append(error or stream))
        if self.pool.stats().misses > misses:
            self.far = Far(self.server.accept(), self.server_context if self.kind == "tls" else None)
            settle(self.loop)
            (self.stream,) = received or [member.stream for member in self.pool._members.values()][-1:]
            self.shake()
        settle(self.loop)
        (self.stream,) = received

    def release(self) -> None:
        self.pool.release(self.stream)

    def end(self) -> None:
        self.pool.close()
        for member in list(self.pool._members.values()):
            member.stream.abort()
        settle(self.loop)
        assert self.pool.stats().open == 0

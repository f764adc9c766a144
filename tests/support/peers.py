"""The other end of a connection, without a loop: it does what it is told, when it is asked to (`pump`).

    peer = SecurePeer(bench, sock, context)     # or Peer: the same without TLS
    peer.write(b"question")                     # kept here; what the socket takes leaves with the next pump()
    assert peer.take(6) == b"answer"            # turns of the loop and pumps, until that much has come

Plain Python around a socket and `ssl`: what streams are compared with.
"""
from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any

from wire import Bench

PIECE = 1 << 16     # bytes per system call


class Peer:
    def __init__(self, bench: Bench, sock: socket.socket) -> None:
        self.bench = bench
        self.socket = sock
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bench.clients.append(self)              # closed at its end
        self.unsent = bytearray()               # what the socket has not taken
        self.received = bytearray()             # and not taken by the test
        self.reading = True
        self.ended = False                      # the other end said that it sends no more
        self.error: Exception | None = None     # what the connection broke with
        self.broken: Exception | None = None    # what a send said
        self.end_due = False
        self.end_sent = False

    def write(self, data: bytes) -> None:
        self.unsent += data

    def end(self) -> None:
        """This side's end-of-stream, behind what was written."""
        self.end_due = True

    def close(self) -> None:
        self.socket.close()
        if self in self.bench.clients:
            self.bench.clients.remove(self)

    def reset(self) -> None:
        """Close with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def pump(self) -> int:
        """Move what can be moved, in both directions; how many bytes that was, an end counted as one."""
        moved = 0
        if not self.broken:
            try:
                moved += self.push()
            except OSError as error:            # what came before it is still to be read
                self.broken = error
        try:
            moved += self.pull()
        except OSError as error:
            self.error = self.error or error
        return moved

    def push(self) -> int:
        moved = self.send_out()
        if self.end_due and not self.end_sent and not self.unsent:
            self.end_sent = True
            self.socket.shutdown(socket.SHUT_WR)
            moved += 1
        return moved

    def send_out(self) -> int:
        moved = 0
        with contextlib.suppress(BlockingIOError):
            while self.unsent:
                count = self.socket.send(self.unsent[:PIECE])
                del self.unsent[:count]
                moved += count
        return moved

    def pull(self) -> int:
        moved = 0
        with contextlib.suppress(BlockingIOError):
            while self.reads() and not self.over:
                data = self.socket.recv(PIECE)
                self.take_in(data)
                moved += len(data) or 1
        return moved

    def reads(self) -> bool:
        return self.reading

    def take_in(self, data: bytes) -> None:
        self.received += data
        if not data:
            self.ended, self.error = self.broken is None, self.broken

    # -- with turns of the loop

    def until(self, condition: Callable[[], Any]) -> None:
        """Turn and pump until it holds."""
        def holds() -> bool:
            self.pump()
            return bool(condition())

        self.bench.turn_until(holds)

    def settle(self) -> None:
        """Until neither side has anything to do."""
        while self.pump() or self.bench.quiet():
            pass

    @property
    def over(self) -> bool:
        return self.ended or self.error is not None

    def take(self, count: int) -> bytes:
        self.until(lambda: len(self.received) >= count or self.over)
        assert len(self.received) >= count, f"it ended early: {self!r}"
        taken = bytes(self.received[:count])
        del self.received[:count]
        return taken

    def take_all(self) -> bytes:
        """Everything up to the end, which must be a clean one."""
        self.until(lambda: self.over)
        assert self.error is None, repr(self)
        taken = bytes(self.received)
        self.received.clear()
        return taken

    def broke(self) -> Exception:
        """The error that ends it."""
        self.until(lambda: self.over)
        assert self.error is not None, f"a clean end: {self!r}"
        return self.error

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.received[:100]!r} ended={self.ended} error={self.error!r}>"


class SecurePeer(Peer):
    """The same over TLS. `error` is also what ssl says; a socket that ends without close_notify is SSLEOFError."""

    def __init__(self, bench: Bench, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool = False,
                 hostname: str | None = "localhost") -> None:
        super().__init__(bench, sock)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl_object = context.wrap_bio(self.incoming, self.outgoing, server_side,
                                           None if server_side else hostname)
        self.shaken = False
        self.plain = bytearray()                # written, and not encrypted
        self.records = bytearray()              # what came, as it came: ciphertext

    def write(self, data: bytes) -> None:
        self.plain += data

    def shake(self) -> None:
        """The whole handshake, this side's part of it; it must succeed."""
        self.until(lambda: self.shaken or self.over)
        assert self.shaken, repr(self)

    def reads(self) -> bool:
        return self.reading or not self.shaken

    def push(self) -> int:
        if not self.shaken and not self.over:
            self.go_on()
        if self.shaken and not self.end_sent:
            if self.plain and not self.error:
                self.unsent += self.sealed(self.plain)
                self.plain.clear()
            if self.end_due:
                self.say_end()
        self.unsent += self.outgoing.read()
        return self.send_out()                  # the socket's own end is sent by nobody here

    def sealed(self, data: bytes | bytearray) -> bytes:
        """As records."""
        while data:
            data = data[self.ssl_object.write(data):]
        return self.outgoing.read()

    def say_end(self) -> None:
        """close_notify. OpenSSL then looks for the other's, and takes data that it meets for an error."""
        self.end_sent = True
        unread = self.incoming.read()
        with contextlib.suppress(ssl.SSLWantReadError):
            self.ssl_object.unwrap()
        self.incoming.write(unread)

    def go_on(self) -> None:
        try:
            self.ssl_object.do_handshake()
            self.shaken = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.error = error
        self.unsent += self.outgoing.read()         # also the alert

    def take_in(self, data: bytes) -> None:
        if not data:
            self.error = self.broken or ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the socket ended without close_notify")
            return
        self.records += data
        self.incoming.write(data)
        if not self.shaken:
            self.go_on()
        while self.shaken and not self.over:
            try:
                plain = self.ssl_object.read(PIECE)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                plain = b""
            except ssl.SSLError as error:
                self.error = error
                break
            self.received += plain
            self.ended = not plain
        self.unsent += self.outgoing.read()

"""Who is measured at the stream layer: echo servers, with TLS and without; clients that connect, ask once and close.

All echo servers write back what they read, as they read it. Where a client is measured, it has the server's core, and
what it connects to, a C echo, has the other one.
"""
from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys

from . import servers
from .generators import GENERATORS
from .servers import HERE, HOST, START_SECONDS, Epollkit, Floor, Server, Uvloop

MESSAGE_BYTES = 1024
PEER_ADDRESSES = 16         # what is in TIME_WAIT after a connection is spread over them


def client_context() -> ssl.SSLContext:
    """For those who ask a server of ours: what it costs them to look at its certificate is not the question."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Echo(Server):
    """What all echo servers have in common: a message comes back."""

    def connect(self) -> socket.socket:
        """A connection to it."""
        return socket.create_connection((HOST, self.port), START_SECONDS)

    def check_answer(self) -> None:
        """One message."""
        message, answer = os.urandom(MESSAGE_BYTES), b""
        with contextlib.suppress(OSError), self.connect() as sock:
            sock.sendall(message)
            while len(answer) < len(message) and (piece := sock.recv(len(message))):
                answer += piece
        if answer != message:
            raise self.failure(f"sent {len(answer)} bytes back that are not the {len(message)} it was sent")
        self.answer_bytes = len(answer)


class Tls(Echo):
    """And through TLS."""

    def connect(self) -> socket.socket:
        return client_context().wrap_socket(super().connect())

    def command(self) -> list[str]:
        return [*super().command(), "--tls", *map(str, self.workshop.certificate())]


class FloorEcho(Echo, Floor):
    """The C echo: epoll, recv, send."""

    title = "C echo"

    def command(self) -> list[str]:
        return [str(self.workshop.program("floor_echo.c"))]


class EpollkitEcho(Echo, Epollkit):
    """A subclass of Stream in Python."""

    def command(self) -> list[str]:
        return [sys.executable, str(HERE / "epollkit_echo.py")]


class TimedEcho(EpollkitEcho):
    """The same, with every timeout set."""

    name = "timeouts"
    title = "epollkit with timeouts"

    def command(self) -> list[str]:
        return [*super().command(), "--timeouts"]


class UvloopEcho(Echo, Uvloop):
    """A Protocol in Python."""

    title = "uvloop's Protocol"

    def command(self) -> list[str]:
        return [sys.executable, str(HERE / "uvloop_echo.py")]


class EpollkitTls(Tls, EpollkitEcho):
    """epollkit with an SSLContext."""


class UvloopTls(Tls, UvloopEcho):
    """uvloop with the same."""


class Peer(FloorEcho):
    """Who a client connects to: the C echo, on several addresses and on the load's core."""

    addresses = PEER_ADDRESSES

    @property
    def core(self) -> int | None:
        return self.workshop.load_core

    def command(self) -> list[str]:
        return [*super().command(), str(self.addresses)]


class Client(Server):
    """A program that takes orders on its standard input, and tells there what became of them.

    An order is a line, `PORT ADDRESSES UNDER_WAY COUNT`: connect so often to 127.0.0.1 and the addresses behind it, in
    turn, so many at a time; on each connection send a message, wait for its echo, close. Any other line ends it early.
    The answer is a line, `{"completed": 1000, "seconds": 1.0}`.
    """

    stdin = subprocess.PIPE

    def tell(self, line: str) -> None:
        """Give it a line."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{line}\n".encode())
            self.process.stdin.flush()

    def outcome(self) -> tuple[int, float]:
        """What it says: connections completed, and how long they took. Waits for it."""
        line = self.process.stdout.readline()
        if not line:
            raise self.failure("ended before it was done")
        found = json.loads(line)
        return found["completed"], found["seconds"]

    def order(self, peer: Peer, under_way: int, count: int) -> None:
        """Start."""
        self.tell(f"{peer.port} {peer.addresses} {under_way} {count}")

    def check_answer(self) -> None:
        """One connection."""
        with Peer(self.workshop) as peer:
            self.order(peer, 1, 1)
            completed, _ = self.outcome()
        if completed != 1:
            raise self.failure(f"was told to connect once, and did {completed} times")


class EpollkitClient(Client, Epollkit):
    """`Loop.connect`."""

    def command(self) -> list[str]:
        return [sys.executable, str(HERE / "epollkit_connect.py")]


class UvloopClient(Client, Uvloop):
    """`create_connection`."""

    title = "uvloop's create_connection"

    def command(self) -> list[str]:
        return [sys.executable, str(HERE / "uvloop_connect.py")]


# By what they do, and by name.
KINDS: dict[str, dict[str, type[Server]]] = {
    "http": servers.SERVERS,
    "echo": {kind.name: kind for kind in (EpollkitEcho, TimedEcho, FloorEcho, UvloopEcho)},
    "tls": {kind.name: kind for kind in (EpollkitTls, UvloopTls)},
    "connect": {kind.name: kind for kind in (EpollkitClient, UvloopClient)},
    "siege": GENERATORS,
}


def missing_openssl() -> str | None:
    """Why there is no TLS, or None."""
    return None if servers.find_program("openssl") else "openssl is not installed (Debian: apt-get install openssl)"

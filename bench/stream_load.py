"""The loads of the stream layer. Each has a generator of its own, on the generator's core, which checks every byte."""
from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from . import servers
from .load import Answered, Load
from .measure import read_account
from .stream_servers import MESSAGE_BYTES, Client, Peer, client_context

GRACE_SECONDS = 30          # beyond its time, until a generator must have ended
NO_END = 1 << 60            # connections: more than there will be


def run_generator(command: Sequence[str], core: int | None, seconds: float) -> Answered:
    """Run a program of ours that prints how many messages came back, and in what time."""
    before = os.times()
    process = servers.start_process([str(word) for word in command], core, stdin=subprocess.DEVNULL, text=True,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        printed, complaints = process.communicate(timeout=seconds + GRACE_SECONDS)
    finally:
        servers.end_process(process)
    if process.returncode:
        raise servers.BenchError(f"the load failed: {complaints.strip()[-200:]}")
    found, after = json.loads(printed), os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Answered(found["messages"], 0, cpu, found["seconds"])


@dataclass(frozen=True)
class EchoLoad(Load):
    """Messages of one size, one at a time on each connection."""

    message_bytes: int = MESSAGE_BYTES
    work: ClassVar[str] = "echo"

    def run(self, server: servers.Server, seconds: float, workshop: servers.Workshop) -> Answered:
        return run_generator([*self.generator(workshop), server.port, self.connections, self.message_bytes, seconds],
                             workshop.load_core, seconds)

    def generator(self, workshop: servers.Workshop) -> list[str]:
        """The program."""
        return [str(workshop.program("echo_load.c"))]

    def request(self, port: int) -> bytes:
        return bytes(number % 251 for number in range(self.message_bytes))


@dataclass(frozen=True)
class TlsLoad(EchoLoad):
    """The same through TLS, by a client in Python: what it costs is the server's, but it can't keep the server busy."""

    work: ClassVar[str] = "tls"

    def generator(self, workshop: servers.Workshop) -> list[str]:
        return [sys.executable, str(servers.HERE / "tls_load.py")]

    def connect(self, port: int, patience_seconds: float) -> socket.socket:
        return client_context().wrap_socket(super().connect(port, patience_seconds))


@dataclass(frozen=True)
class ConnectLoad(Load):
    """No load, but a peer: what is measured connects to it, `connections` at a time."""

    work: ClassVar[str] = "connect"
    sides: ClassVar[tuple[str, str]] = ("client", "server")

    def run(self, server: Client, seconds: float, workshop: servers.Workshop) -> Answered:
        with Peer(workshop) as peer:
            before = read_account(peer.pids())
            server.order(peer, self.connections, NO_END)
            time.sleep(seconds)
            server.tell("enough")
            completed, took = server.outcome()
            used = read_account(peer.pids()).since(before)
        return Answered(completed, 0, used.cpu_ns / 1e9, took)

    def run_times(self, server: Client, count: int, workshop: servers.Workshop) -> None:
        """So many connections, however long it takes."""
        with Peer(workshop) as peer:
            server.order(peer, self.connections, count)
            completed, _ = server.outcome()
        if completed != count:
            raise servers.BenchError(f"{server.title} was told to connect {count} times, and did {completed} times")

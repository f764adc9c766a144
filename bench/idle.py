"""Idle connections: a crowd that holds them, and what each costs the server in resident memory."""
from __future__ import annotations

import contextlib
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from . import servers
from .measure import resident_bytes
from .stream_servers import KINDS

SPARE_FDS = 200         # beside the idle connections: the busy ones, and what a process has anyway


@dataclass(frozen=True)
class Memory:
    """Resident bytes per idle connection, one figure for each fresh server."""

    work: str
    server: str
    connections: int
    bytes_each: list[float]

    @property
    def median(self) -> float:
        """In bytes."""
        return statistics.median(self.bytes_each)


def raise_fd_limit() -> int:
    """Let this process and its children have as many descriptors as they need, if they may. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = servers.FD_LIMIT if hard == resource.RLIM_INFINITY else min(hard, servers.FD_LIMIT)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return servers.FD_LIMIT if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


@contextlib.contextmanager
def crowd(port: int, count: int, core: int | None = None, work: str = "http") -> Iterator[None]:
    """So many idle connections to a server, each answered once. At the end all must still be there."""
    command = [sys.executable, str(servers.HERE / "crowd.py"), str(port), str(count), work]
    process = servers.start_process(command, core, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                    stderr=subprocess.PIPE, text=True)
    try:
        if process.stdout.readline().strip() != "ready":
            raise servers.BenchError(f"the idle crowd failed: {process.stderr.read().strip()[-200:]}")
        yield
        left, _ = process.communicate("", timeout=servers.START_SECONDS)
        if int(left) != count:
            raise servers.BenchError(f"{count - int(left)} of {count} idle connections were not left alone")
    finally:
        servers.end_process(process)


def measure_memory(work: str, server: str, workshop: servers.Workshop, connections: int, runs: int) -> Memory:
    """Resident memory of a fresh server before and after the crowd came, by connection."""
    found = []
    for _ in range(runs):
        with KINDS[work][server](workshop) as running:
            before = resident_bytes(running.pids())
            with crowd(running.port, connections, workshop.load_core, work):
                found.append((resident_bytes(running.pids()) - before) / connections)
    return Memory(work, server, connections, found)

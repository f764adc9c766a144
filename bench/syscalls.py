"""System calls per request, counted by strace in a run of its own: it slows the server down several times."""
from __future__ import annotations

import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import servers
from .load import Load, run_wrk
from .modes import CALLS_PER_REQUEST

WAITS = ("epoll_wait", "epoll_pwait", "epoll_pwait2")
CALLS_PER_CONNECTION = 6        # accept, one that finds nothing, epoll_ctl, setsockopt, the last recv, close
ROW = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)\s*$", re.MULTILINE)
ATTACH_LINES = 100


@dataclass(frozen=True)
class SystemCalls:
    """How often each system call was made while so many requests were answered on so many connections."""

    server: str
    requests: int
    connections: int
    calls: dict[str, int]

    @property
    def waits(self) -> int:
        """Calls that fetch a batch."""
        return sum(self.calls.get(name, 0) for name in WAITS)

    @property
    def others_per_request(self) -> float:
        """All but those that fetch batches; what connections cost is in it."""
        return (sum(self.calls.values()) - self.waits) / self.requests

    @property
    def verdict(self) -> str:
        """Whether it is two per request, and nothing but what connections need once, and what was under way at the
        end."""
        others = sum(self.calls.values()) - self.waits
        allowed = CALLS_PER_REQUEST * (self.requests + self.connections) + CALLS_PER_CONNECTION * self.connections
        return "met" if others <= allowed else "missed"


def missing() -> str | None:
    """Why nothing can be counted, or None."""
    return None if servers.find_program("strace") else "strace is not installed (Debian: apt-get install strace)"


def parse_counts(text: str) -> dict[str, int]:
    """The table of `strace -c`: calls by name."""
    return {name: int(calls) for calls, name in ROW.findall(text) if name != "total"}


def attach(pids: list[int], output: Path) -> subprocess.Popen:
    """Start counting; returns when every process is being counted."""
    arguments = [word for pid in pids for word in ("-p", str(pid))]
    command = [servers.find_program("strace") or "strace", "-c", "-f", "-o", str(output), *arguments]
    process = servers.start_process(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    left = len(pids)
    said = ""
    for _ in range(ATTACH_LINES):
        line = process.stderr.readline()
        left -= " attached" in line
        if left == 0:
            return process
        if not line:
            break
        said = line
    servers.end_process(process)
    raise servers.BenchError(f"strace can't attach: {said.strip()}")


def measure_system_calls(server: str, workshop: servers.Workshop, load: Load, seconds: float) -> SystemCalls:
    """Count the calls of a fresh server under load."""
    output = workshop.path / "strace"
    with servers.SERVERS[server](workshop) as running:
        tracer = attach(running.pids(), output)
        try:
            answered = run_wrk(load, running.port, seconds, workshop.load_core)
            tracer.send_signal(signal.SIGINT)
            tracer.wait(servers.START_SECONDS)
        finally:
            servers.end_process(tracer)
    counts = parse_counts(output.read_text())
    if not counts or not answered.requests:
        raise servers.BenchError(f"strace counted nothing at {server}")
    return SystemCalls(server, answered.requests, load.connections, counts)

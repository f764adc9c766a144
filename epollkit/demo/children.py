"""Processes, and the lines of JSON between them and the runner: commands on a child's stdin, reports on its stdout.

A child ends when its stdin does, so none outlives a runner that was killed. Ctrl-C is the runner's business: children
have SIGINT blocked from their first instruction on.
"""
from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from epollkit.errors import EpollkitError

Message = dict[str, Any]

BOOT = "import sys; sys.path[:] = {path!r}; from epollkit.demo.children import main; sys.exit(main())"
READ_BYTES = 65536
COMPLAINT_BYTES = 4096      # of a child's stderr; the last line is what is told
LONGEST_LINE_BYTES = 65536


class DemoFailed(EpollkitError):
    """The demo could not run to its end; the message is one sentence."""


class Lines:
    """Messages out of a stream of bytes, one JSON object per line."""

    def __init__(self) -> None:
        self.partial = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now. ValueError: this is not JSON, or has no end."""
        *lines, self.partial = (self.partial + data).split(b"\n")
        if len(self.partial) > LONGEST_LINE_BYTES:
            raise ValueError("a line without end")
        return [json.loads(line) for line in lines]


# -- the runner's side -------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C is delivered afterwards. A process that is started meanwhile never gets it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Child:
    """A process of the demo, seen from the runner.

    Args:
        name: what messages to the user call it.
        module: of epollkit.demo; its `main(config)` is run.
        config: JSON for that function.
    """

    def __init__(self, name: str, module: str, config: Message) -> None:
        self.name = name
        self.last: Message = {}         # its latest report
        self.complaint = b""            # the end of what it wrote to stderr
        self.lines = Lines()
        command = [sys.executable, "-c", BOOT.format(path=sys.path), module, json.dumps(config)]
        with interrupts_wait():
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=subprocess.PIPE, bufsize=0)
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.stdin, self.stdout, self.stderr = self.process.stdin, self.process.stdout, self.process.stderr
        os.set_blocking(self.stdout.fileno(), False)
        os.set_blocking(self.stderr.fileno(), False)

    def send(self, **message: Any) -> None:
        """One command. DemoFailed: it is gone."""
        try:
            self.stdin.write(json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            raise self.death() from None

    def read_reports(self) -> bool:
        """Take what it reported; False at the end. DemoFailed: it ended without its last report."""
        try:
            data = os.read(self.stdout.fileno(), READ_BYTES)
        except BlockingIOError:
            return True
        try:
            for message in self.lines.feed(data):
                self.last.update(message)
        except ValueError:
            raise DemoFailed(f"the {self.name} wrote something that is not a report") from None
        if not data and not self.last.get("final"):
            raise self.death()
        return bool(data)

    def read_complaints(self) -> bool:
        """Take what it wrote to stderr; False at the end."""
        try:
            data = os.read(self.stderr.fileno(), READ_BYTES)
        except BlockingIOError:
            return True
        self.complaint = (self.complaint + data)[-COMPLAINT_BYTES:]
        return bool(data)

    def death(self) -> DemoFailed:
        """How it ended, in one sentence."""
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return DemoFailed(f"the {self.name} stopped reporting")
        while self.read_complaints() and self.process.poll() is None:
            pass
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        said = self.complaint.decode(errors="replace").strip().splitlines()
        return DemoFailed(f"the {self.name} {how} before it was done" + (f": {said[-1].strip()}" if said else ""))

    def end(self) -> None:
        """Kill it, if it is still there, and leave nothing of it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()


# -- the child's side --------------------------------------------------------------------------------------------------

class Commands:
    """The runner's commands, from stdin. The end of stdin ends the process: the runner is gone."""

    def __init__(self, functions: dict[str, Callable[[Message], None]]) -> None:
        self.functions = functions
        self.lines = Lines()
        os.set_blocking(0, False)

    def fileno(self) -> int:
        return 0

    def read(self, *_: object) -> None:
        """Run every command that has come."""
        while True:
            try:
                data = os.read(0, READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                raise SystemExit(1)
            for message in self.lines.feed(data):
                self.functions[message["command"]](message)


class Reporter:
    """Tells the runner what this process counts, and what it costs.

    Args:
        count: returns the counters; `connections` and `requests`, if there, get a rate.
    """

    def __init__(self, count: Callable[[], Message]) -> None:
        self.count = count
        self.process = psutil.Process()
        self.rss_peak = 0
        self.frozen: Message | None = None
        self.begin()

    def cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def begin(self, _: Message | None = None) -> None:
        """Costs and rates count from here."""
        self.began, self.cpu_before, self.counted = time.monotonic(), self.cpu_seconds(), self.count()

    def freeze(self, _: Message | None = None) -> None:
        """Costs and rates count to here; counters go on."""
        self.frozen = self.costs(self.count())

    def costs(self, counted: Message) -> Message:
        elapsed = max(time.monotonic() - self.began, 1e-6)
        rates = {f"{name}_per_second": round((counted[name] - self.counted[name]) / elapsed, 1)
                 for name in ("connections", "requests") if name in counted}
        cpu_seconds = round(self.cpu_seconds() - self.cpu_before, 3)
        return {"elapsed_seconds": round(elapsed, 3), "cpu_seconds": cpu_seconds, **rates}

    def report(self, **more: Any) -> None:
        rss = int(self.process.memory_info().rss)
        self.rss_peak = max(self.rss_peak, rss)
        counted = self.count()
        costs = self.frozen or self.costs(counted)
        send({**counted, **costs, "rss_bytes": rss, "rss_peak_bytes": self.rss_peak, **more})


def send(message: Message) -> None:
    """One line to the runner. If it is gone, so is the reason to go on."""
    try:
        os.write(1, json.dumps(message).encode() + b"\n")
    except BrokenPipeError:
        raise SystemExit(1) from None


def pin(cores: list[int]) -> None:
    """Stay on these cores; an empty list means anywhere."""
    if cores:
        with contextlib.suppress(OSError):      # a container may forbid it; the demo then runs unpinned
            os.sched_setaffinity(0, cores)


def main() -> int:
    """A child's whole life: `module`, then its configuration, on the command line."""
    module, config = sys.argv[1], json.loads(sys.argv[2])
    pin(config["cores"])
    importlib.import_module("epollkit.demo." + module).main(config)
    return 0

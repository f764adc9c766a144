"""Leaf: child processes: commands on their stdin, reports on their stdout, in JSON lines. Both sides of it.

Ctrl-C is the parent's business: children have SIGINT and SIGTERM blocked from their first instruction on, and end when
their stdin does.
"""
from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from epollkit.errors import EpollkitError

Message = dict[str, Any]

READ_BYTES = 65536
COMPLAINT_BYTES = 4096      # of a child's stderr; the last line is what is told


class Lines:
    """Messages out of a stream of bytes, one JSON object per line."""

    def __init__(self, longest_bytes: int = 65536) -> None:
        self.longest_bytes = longest_bytes
        self.partial = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now. ValueError: this is not JSON, or has no end."""
        *lines, self.partial = (self.partial + data).split(b"\n")
        if len(self.partial) > self.longest_bytes:
            raise ValueError("a line without end")
        return [json.loads(line) for line in lines]


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C is delivered afterwards. A process that is started meanwhile never gets it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Child:
    """A process, its pipes and its latest report.

    Args:
        name: what messages to the user call it.
        command: what to run.
        lines: takes its reports apart.
    """

    failure: type[EpollkitError] = EpollkitError    # what its death is, in one sentence

    def __init__(self, name: str, command: Sequence[str], lines: Lines | None = None) -> None:
        self.name = name
        self.last: Message = {}         # its latest report
        self.complaint = b""            # the end of what it wrote to stderr
        self.lines = lines or Lines()
        with interrupts_wait():
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=subprocess.PIPE, bufsize=0)
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.stdin, self.stdout, self.stderr = self.process.stdin, self.process.stdout, self.process.stderr
        os.set_blocking(self.stdout.fileno(), False)
        os.set_blocking(self.stderr.fileno(), False)

    def send(self, **message: Any) -> None:
        """One command. `failure`: it is gone."""
        left = memoryview(json.dumps(message).encode() + b"\n")
        try:
            while left:
                left = left[self.stdin.write(left):]
        except BrokenPipeError:
            raise self.death() from None

    def take(self, message: Message) -> None:
        """One report has come."""
        self.last.update(message)

    def read_reports(self) -> bool:
        """Take what it reported; False at the end. `failure`: it ended without its last report."""
        try:
            data = os.read(self.stdout.fileno(), READ_BYTES)
        except BlockingIOError:
            return True
        try:
            messages = self.lines.feed(data)
        except ValueError:
            raise self.failure(f"the {self.name} wrote something that is not a report") from None
        for message in messages:
            self.take(message)
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

    def death(self) -> EpollkitError:
        """How it ended, in one sentence."""
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return self.failure(f"the {self.name} stopped reporting")
        while self.read_complaints() and self.process.poll() is None:
            pass
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        said = self.complaint.decode(errors="replace").strip().splitlines()
        return self.failure(f"the {self.name} {how} before it was done" + (f": {said[-1].strip()}" if said else ""))

    def end(self) -> None:
        """Kill it, if it is still there, and leave nothing of it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()


# -- the child's side --------------------------------------------------------------------------------------------------

def leave() -> None:
    """The parent is gone, and with it the reason to go on."""
    raise SystemExit(1)


class Commands:
    """The parent's commands, on this process's stdin.

    Args:
        functions: what to do, by the command's name; called with the message.
        gone: called at the end of stdin, when the parent is gone.
    """

    def __init__(self, functions: dict[str, Callable[[Message], object]],
                 gone: Callable[[], object] = leave) -> None:
        self.functions = functions
        self.gone = gone
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
                self.gone()
                return
            for message in self.lines.feed(data):
                self.functions[message["command"]](message)


def send(message: Message) -> None:
    """One line to the parent, on stdout. SystemExit: it is gone."""
    left = memoryview(json.dumps(message).encode() + b"\n")
    try:
        while left:
            left = left[os.write(1, left):]
    except BrokenPipeError:
        leave()

"""Processes, and the lines of JSON between them: a configuration as an argument, commands on stdin, reports on stdout.

A child ends when its stdin does, so none outlives whoever started it.
"""
from __future__ import annotations

import ctypes
import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from epollkit import IN, EpollkitError, Loop
from epollkit.demo.children import Lines, Message, send

BOOT = "import sys; sys.path[:] = {path!r}; from stress.children import main; sys.exit(main())"
READ_BYTES = 65536
START_SECONDS = 60.0
PR_SET_PDEATHSIG = 1        # linux/prctl.h


class StressFailed(EpollkitError):
    """A scenario could not be run; the message is one sentence."""


class Child:
    """A process of ours, at the beginning of whose life stands `module.main(config)`.

    `last` is what it reported, newest first in each key. Use it as a context manager: at the end it is gone.
    """

    def __init__(self, module: str, config: Message) -> None:
        self.module = module
        self.last: Message = {}
        self.lines = Lines()
        self.complaints = tempfile.TemporaryFile()      # noqa: SIM115
        command = [sys.executable, "-c", BOOT.format(path=sys.path), module, json.dumps(config)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
                                        stderr=self.complaints, start_new_session=True)    # Ctrl-C is not for it
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        os.set_blocking(self.stdout.fileno(), False)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.stdin, self.stdout, self.complaints):
            file.close()

    def send(self, **message: Any) -> None:
        """One command. StressFailed: it is gone."""
        try:
            self.stdin.write(json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            raise StressFailed(self.death()) from None

    def read(self, seconds: float) -> None:
        """Take its reports; wait for the next one so long. StressFailed: it ended before its last one."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return
        data = os.read(self.stdout.fileno(), READ_BYTES)
        for message in self.lines.feed(data):
            self.last.update(message)
        if not data and not self.last.get("final"):
            raise StressFailed(self.death())

    def wait_for(self, key: str) -> Any:
        """Its report of that."""
        deadline = time.monotonic() + START_SECONDS
        while key not in self.last:
            if time.monotonic() > deadline:
                raise StressFailed(f"{self.module} did not start within {START_SECONDS:.0f} seconds")
            self.read(0.1)
        return self.last[key]

    def read_to_end(self) -> None:
        """Its last report."""
        deadline = time.monotonic() + START_SECONDS
        while not self.last.get("final"):
            if time.monotonic() > deadline:
                raise StressFailed(f"{self.module} did not end within {START_SECONDS:.0f} seconds")
            self.read(0.1)

    def complaint(self) -> str:
        """The last line that it wrote to stderr."""
        self.complaints.seek(0)
        said = self.complaints.read().decode(errors="replace").strip().splitlines()
        return said[-1].strip() if said else ""

    def death(self) -> str:
        """How it ended, in one sentence."""
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return f"{self.module} stopped reporting"
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        return f"{self.module} {how}: {self.complaint()}".rstrip(": ")


def obey(loop: Loop, functions: dict[str, Callable[[Message], object]]) -> None:
    """In a child: run the commands that come on stdin. Its end stops the loop."""
    lines = Lines()
    os.set_blocking(0, False)

    def read(token: object, events: int) -> None:
        while True:
            try:
                data = os.read(0, READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                loop.stop()
                return
            for message in lines.feed(data):
                functions[message["command"]](message)

    loop.register(0, IN, read)


def die_with_parent() -> None:
    """For a child that does not read its stdin."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """A child's whole life."""
    module, config = sys.argv[1], json.loads(sys.argv[2])
    importlib.import_module(module).main(config)
    return 0


__all__ = ["Child", "Message", "StressFailed", "die_with_parent", "main", "obey", "send"]

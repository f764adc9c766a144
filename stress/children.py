"""Processes, and the lines of JSON between them: a configuration as an argument, commands on stdin, reports on stdout.

A child ends when its stdin does, so none outlives whoever started it.
"""
from __future__ import annotations

import ctypes
import importlib
import json
import selectors
import signal
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from epollkit import IN, EpollkitError, Loop, _children
from epollkit._children import Commands, Message, send

BOOT = "import sys; sys.path[:] = {path!r}; from stress.children import main; sys.exit(main())"
START_SECONDS = 60.0
PR_SET_PDEATHSIG = 1        # linux/prctl.h


class StressFailed(EpollkitError):
    """A scenario could not be run; the message is one sentence."""


class Child(_children.Child):
    """A process of ours, at the beginning of whose life stands `module.main(config)`.

    `last` is what it reported, newest first in each key. Use it as a context manager: at the end it is gone.
    """

    failure = StressFailed

    def __init__(self, module: str, config: Message) -> None:
        super().__init__(f"process {module}",
                         [sys.executable, "-c", BOOT.format(path=sys.path), module, json.dumps(config)])

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.end()

    def read(self, seconds: float) -> None:
        """Take its reports; wait for the next one so long. StressFailed: it ended before its last one."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.stdout, selectors.EVENT_READ)
            if selector.select(seconds):
                self.read_reports()
        self.read_complaints()

    def wait_for(self, key: str) -> Any:
        """Its report of that."""
        deadline = time.monotonic() + START_SECONDS
        while key not in self.last:
            if time.monotonic() > deadline:
                raise StressFailed(f"the {self.name} did not start within {START_SECONDS:.0f} seconds")
            self.read(0.1)
        return self.last[key]

    def read_to_end(self) -> None:
        """Its last report."""
        deadline = time.monotonic() + START_SECONDS
        while not self.last.get("final"):
            if time.monotonic() > deadline:
                raise StressFailed(f"the {self.name} did not end within {START_SECONDS:.0f} seconds")
            self.read(0.1)


def obey(loop: Loop, functions: dict[str, Callable[[Message], object]]) -> None:
    """In a child: run the commands that come on stdin. Its end stops the loop."""
    loop.register(0, IN, Commands(functions, gone=loop.stop).read)


def die_with_parent() -> None:
    """For a child that does not read its stdin."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """A child's whole life."""
    module, config = sys.argv[1], json.loads(sys.argv[2])
    importlib.import_module(module).main(config)
    return 0


__all__ = ["Child", "Message", "StressFailed", "die_with_parent", "main", "obey", "send"]

"""The demo's processes, and the lines of JSON between them and the runner.

A child ends when its stdin does, so none outlives a runner that was killed.
"""
from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil

from epollkit import _children
from epollkit._children import Commands, Lines, Message, interrupts_wait, send
from epollkit.errors import EpollkitError

__all__ = ["Child", "Commands", "DemoFailed", "Lines", "Message", "Reporter", "interrupts_wait", "main", "pin", "send"]

BOOT = "import sys; sys.path[:] = {path!r}; from epollkit.demo.children import main; sys.exit(main())"


class DemoFailed(EpollkitError):
    """The demo could not run to its end; the message is one sentence."""


# -- the runner's side -------------------------------------------------------------------------------------------------

class Child(_children.Child):
    """A process of the demo, seen from the runner.

    Args:
        name: what messages to the user call it.
        module: of epollkit.demo; its `main(config)` is run.
        config: JSON for that function.
    """

    failure = DemoFailed

    def __init__(self, name: str, module: str, config: Message) -> None:
        super().__init__(name, [sys.executable, "-c", BOOT.format(path=sys.path), module, json.dumps(config)])


# -- the child's side --------------------------------------------------------------------------------------------------

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

"""One process's share of a siege. `run_here` is all of it; as a program it is told what to do by `epollkit.siege.run`.

On stdin: one line of JSON with the scenario, then commands, "go" and "stop"; the end of stdin ends it. On stdout: a
line per interval, and a last one with the tally.
"""
from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from epollkit import IN, Loop
from epollkit._children import READ_BYTES, Commands, Message, send
from epollkit._siege import Engine
from epollkit.errors import EpollkitError
from epollkit.siege.prepare import Prepared, requests
from epollkit.siege.scenario import Scenario

INTERVAL_SECONDS = 0.25
SPARE_FDS = 64                      # beside the users' connections: the loop's own, pipes, what Python has open

Emit = Callable[[Message], object]


class SiegeFailed(EpollkitError):
    """A siege could not run to its end; the message is one sentence."""


class Share:
    """What one process does of a siege, from its first connection to its tally."""

    def __init__(self, loop: Loop, scenario: Scenario, prepared: list[Prepared], emit: Emit, first_user: int,
                 first_due: float) -> None:
        self.loop = loop
        self.scenario = scenario
        self.emit = emit
        self.measuring = self.stopping = False
        self.ticks = 0
        self.began = 0.0
        self.usage_before = resource.getrusage(resource.RUSAGE_SELF)
        self.fds_before = len(os.listdir("/proc/self/fd"))
        self.engine = Engine(
            loop, prepared, users=scenario.users, number=scenario.number or 0, repetitions=scenario.repetitions or 0,
            delay=scenario.delay, rate=scenario.rate or 0.0, pipeline=scenario.pipeline,
            keep_alive=scenario.keep_alive, random_order=scenario.random_order, sources=scenario.sources,
            close=scenario.close, connect_timeout=scenario.connect_timeout, timeout=scenario.timeout,
            statuses=scenario.expect_status, body=scenario.expect_body or b"",
            seed=scenario.seed or 0, first_user=first_user, first_due=first_due)
        self.engine.on_done = loop.stop

    def begin(self) -> None:
        self.engine.start(warm_up=self.scenario.warmup > 0)
        if self.scenario.warmup:
            self.loop.call_later(self.scenario.warmup, self.warmed_up)
        else:
            self.measure()

    def warmed_up(self) -> None:
        self.engine.measure()
        self.measure()

    def measure(self) -> None:
        """From here on it counts."""
        self.measuring = True
        self.usage_before = resource.getrusage(resource.RUSAGE_SELF)
        self.began = time.monotonic()
        self.engine.interval()
        self.wait_for_tick()
        if self.scenario.seconds is not None:
            self.loop.call_later(self.scenario.seconds, self.stop, self.scenario.grace)

    def wait_for_tick(self) -> None:
        due = self.began + (self.ticks + 1) * INTERVAL_SECONDS
        self.loop.call_later(max(0.0, due - time.monotonic()), self.tick)

    def tick(self) -> None:
        self.ticks += 1
        self.tell_interval()
        self.wait_for_tick()

    def tell_interval(self) -> None:
        self.emit({"interval": self.engine.interval(), "t_s": time.monotonic() - self.began})

    def stop(self, grace: float) -> None:
        """Begin nothing more. Asked again: end now."""
        if self.stopping:
            self.engine.give_up()
        else:
            self.stopping = True
            self.engine.stop(grace)

    def result(self) -> dict[str, Any]:
        """{"tally", "usage"}. SiegeFailed: there is none."""
        if not self.measuring:
            raise SiegeFailed(f"it was over before its warm-up of {self.scenario.warmup:g} s, so there is nothing to "
                              "report")
        self.tell_interval()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        tally = self.engine.tally()
        return {"tally": tally, "usage": {
            "cpu_user_s": usage.ru_utime - self.usage_before.ru_utime,
            "cpu_system_s": usage.ru_stime - self.usage_before.ru_stime,
            "fds_peak": self.fds_before + tally["open_peak"]}}


def run_here(scenario: Scenario, prepared: list[Prepared], emit: Emit, first_user: int = 0, first_due: float = 0.0,
             attend: Callable[[Share], object] | None = None) -> dict[str, Any]:
    """Run a scenario, as one process of it, on a loop of its own.

    Args:
        emit: called with {"interval", "t_s"} every quarter of a second, and once at the end.
        first_user: the number of the first of its users among those of all processes.
        first_due: with a rate, when its first request is planned: processes take turns.
        attend: called with the share, which is to `begin()` in its time; by default that is now.

    Returns {"tally", "usage"}.
    """
    with Loop(max_connections=scenario.users + SPARE_FDS) as loop:
        share = Share(loop, scenario, prepared, emit, first_user, first_due)
        if attend is None:
            share.begin()
        else:
            attend(share)
        if not share.engine.done:
            loop.run()
        return share.result()


# -- as a program ------------------------------------------------------------------------------------------------------

def attend(share: Share) -> None:
    """Begin and stop when the parent says so."""
    commands = Commands({"go": lambda _: share.begin(), "stop": lambda message: share.stop(message["grace"])})
    share.loop.register(0, IN, commands.read)
    send({"ready": True})


def first_line() -> bytes:
    """The configuration. The parent says nothing more until it was answered, so no byte of what follows is in here."""
    pieces = [os.read(0, READ_BYTES)]
    while pieces[-1] and not pieces[-1].endswith(b"\n"):
        pieces.append(os.read(0, READ_BYTES))
    return b"".join(pieces)


def main() -> int:
    """Exit status 1, with one sentence on stderr, if it could not run."""
    given = first_line()
    if not given:
        return 1
    config = json.loads(given)
    try:
        scenario = Scenario.from_json(config["scenario"])
        places = {(host, port): address if isinstance(address, str) else tuple(address)
                  for host, port, address in config["addresses"]}
        result = run_here(scenario, requests(scenario, places), send, config["first_user"],
                          config["first_due"], attend)
    except (EpollkitError, OSError) as error:
        print(getattr(error, "strerror", None) or error, file=sys.stderr)
        return 1
    send({**result, "final": True})
    return 0


if __name__ == "__main__":
    sys.exit(main())

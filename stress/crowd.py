"""The crowd's process: so many visitors of each kind at any time, and an account of what became of them.

Whoever is over is replaced. When the time is up nobody new comes; what is owed is waited for, so long as patience goes.
Of some kinds most are users of a load engine (stress.volume), which is quicker.
"""
from __future__ import annotations

import random
import time
from collections import Counter

from epollkit import Loop
from stress.children import Message, obey, send
from stress.visitors import BEHAVIOURS, Visitor
from stress.volume import Volume, engines_for, visitors_among

SOURCES = [f"127.0.0.{number}" for number in range(2, 34)]     # each has its own ports
AT_ONCE = 256               # connects under way
RETRY_SECONDS = 0.02        # after one that failed
REPORT_SECONDS = 0.1
COUNTS = ("begun", "connected", "not_connected", "answered", "wrong", "cut", "unanswered", "ended", "lost", "outlived")


def main(config: Message) -> None:
    """Be a crowd. config: `address`, `host`, `path`, `big`, `echoes`, `deadline`, `patience`, `seed`."""
    with Loop(max_connections=19_500) as loop:
        crowd = Crowd(loop, config)
        loop.set_exception_handler(crowd.on_failure)
        obey(loop, {"want": lambda message: crowd.want(message["crowd"]), "end": lambda _: crowd.end()})
        send({"ready": True})
        loop.run()
        if crowd.failure is not None:
            raise crowd.failure
        crowd.report(final=True)


class Crowd:
    """Everybody in this process.

    Counted for each kind: `begun`; `connected`, `not_connected`; `answered`: whole and right answers; `wrong` ones;
    `cut`: the server ended it while it owed an answer; `unanswered`: owed when the patience was over; `ended`: by the
    server, as it should; `lost`: by the server, as it should not; `outlived`: a deadline should have ended it.
    """

    def __init__(self, loop: Loop, config: Message) -> None:
        self.loop = loop
        self.address = tuple(config["address"])
        self.host: str = config["host"]
        self.path: str = config["path"]
        self.big: str = config["big"]               # what to ask for to get a large answer
        self.big_bytes: int = config["big_bytes"]
        self.echoes: bool = config["echoes"]
        self.deadline: float | None = config["deadline"]
        self.patience: float = config["patience"]
        self.random = random.Random(config["seed"])
        self.sources = SOURCES if self.address[0].startswith("127.") else []
        self.wanted: dict[str, int] = {}            # visitors
        self.visitors: dict[str, set[Visitor]] = {name: set() for name in BEHAVIOURS}
        self.volumes: list[Volume] = []             # those that are not over
        self.counts: dict[str, Counter[str]] = {}   # but for volumes that are not over
        self.connecting = self.born = self.open_peak = 0
        self.ending = False
        self.give_up_at = 0.0
        self.failure: BaseException | None = None
        loop.call_soon(self.tick)

    # -- commands

    def want(self, crowd: dict[str, int]) -> None:
        """From now on so many of each kind. Whoever is too many leaves when it may."""
        self.wanted = {name: visitors_among(name, count) for name, count in crowd.items() if name in BEHAVIOURS}
        for volume in self.volumes:
            volume.farewell()
        for name, count in crowd.items():
            self.counts.setdefault(name, Counter(dict.fromkeys(COUNTS, 0)))
            self.volumes += engines_for(self, name, count)
        for name, visitors in self.visitors.items():
            if name not in crowd:
                for visitor in list(visitors):
                    visitor.farewell()
        self.refill()

    def end(self) -> None:
        """The time is up."""
        self.ending = True
        self.wanted = {}
        self.give_up_at = self.loop.time() + self.patience + (self.deadline or 0.0)
        for volume in self.volumes:
            volume.farewell()
        for visitors in self.visitors.values():
            for visitor in list(visitors):
                visitor.farewell()
        self.wait()

    # -- what goes on

    def refill(self) -> None:
        for name, count in self.wanted.items():
            while len(self.visitors[name]) < count and self.connecting < AT_ONCE:
                self.invite(name)

    def invite(self, name: str) -> None:
        """One more."""
        visitor = BEHAVIOURS[name](self, name)
        self.visitors[name].add(visitor)
        visitor.count("begun")
        self.born += 1
        self.connecting += 1
        source = (self.sources[self.born % len(self.sources)], 0) if self.sources else None
        self.loop.connect(self.address, lambda: visitor, timeout=self.patience, bind=source)

    def connected(self) -> None:
        self.connecting -= 1
        self.refill()

    def over(self, visitor: Visitor) -> None:
        """It has ended, whoever ended it."""
        self.visitors[visitor.name].discard(visitor)
        self.connecting -= not visitor.is_connected
        if not visitor.is_connected and not self.ending:
            self.loop.call_later(RETRY_SECONDS, self.refill)
        elif not self.ending:
            self.loop.call_soon(self.refill)

    def tick(self) -> None:
        self.refill()
        self.report()
        self.loop.call_later(REPORT_SECONDS, self.tick)

    def wait(self) -> None:
        """For those who are owed something. Stops once nobody is."""
        waiting = [visitor for visitors in self.visitors.values() for visitor in visitors]
        at_work = [volume.engine for volume in self.volumes if not volume.engine.done]
        if (waiting or at_work) and self.loop.time() < self.give_up_at:
            self.loop.call_later(0.01, self.wait)
            return
        for engine in at_work:
            engine.give_up()
        for visitor in waiting:
            visitor.count("unanswered", len(visitor.owed))
            visitor.leave(reset=True)
        self.loop.call_soon(self.loop.stop)

    def on_failure(self, error: BaseException, source: object) -> None:
        """The crowd itself is broken: say so, rather than blame the server."""
        self.failure = self.failure or error
        self.loop.stop()

    def report(self, final: bool = False) -> None:
        open_now = sum(len(visitors) for visitors in self.visitors.values()) - self.connecting
        for volume in [volume for volume in self.volumes if volume.over]:
            self.volumes.remove(volume)
            self.counts[volume.name].update(volume.counts())
        counts = {name: Counter(of_kind) for name, of_kind in self.counts.items()}
        for volume in self.volumes:
            counts[volume.name].update(volume.counts())
            open_now += volume.open
        self.open_peak = max(self.open_peak, open_now)
        message = {"counts": counts, "open": open_now, "open_peak": self.open_peak, "cpu_seconds": time.process_time()}
        send({**message, "final": True} if final else message)

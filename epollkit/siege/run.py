"""Runs a scenario, in this process or in several, and puts together what they found."""
from __future__ import annotations

import contextlib
import dataclasses
import random
import resource
import selectors
import sys
from collections.abc import Callable, Iterator
from typing import Any

from epollkit._children import Child, Lines, Message, interrupts_wait
from epollkit.errors import LimitReached
from epollkit.siege.ports import HeadRoom
from epollkit.siege.prepare import Address, Place, requests, resolve
from epollkit.siege.report import Report
from epollkit.siege.scenario import Scenario
from epollkit.siege.tally import Timeline
from epollkit.siege.watch import Watch
from epollkit.siege.worker import SPARE_FDS, SiegeFailed, run_here

FDS_WANTED = 20000                  # how far the soft limit is raised by ourselves
LONGEST_LINE_BYTES = 16 * 1024 * 1024       # of a worker: its last has three histograms
WAIT_SECONDS = 0.1                  # how late stop() may be noticed
SILENT_WAITS = 600                  # a minute of them without a word from a worker that runs: it hangs

BOOT = "import sys; sys.path[:] = {path!r}; from epollkit.siege.worker import main; sys.exit(main())"


def raise_fd_limit(scenario: Scenario) -> None:
    """A connection is a descriptor. LimitReached: this process may not have that many."""
    needed = -(-scenario.users // scenario.processes) + SPARE_FDS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    most = FDS_WANTED if hard == resource.RLIM_INFINITY else min(hard, FDS_WANTED)
    if max(soft, most) < needed:
        raise LimitReached(f"{scenario.users} users (-c) need {needed} descriptors in a process, and one may "
                           f"open {max(soft, most)} here: make it fewer users, or more processes (--processes), or "
                           "raise the limit (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def shares(scenario: Scenario) -> Iterator[tuple[int, Scenario]]:
    """Each process's part of a scenario, and the number of its first user. Together they are the whole, exactly."""
    count, first_user = scenario.processes, 0

    def part(whole: int, index: int) -> int:
        return whole // count + (index < whole % count)

    for index in range(count):
        share = dataclasses.replace(
            scenario, processes=1, users=part(scenario.users, index),
            number=None if scenario.number is None else part(scenario.number, index),
            rate=None if scenario.rate is None else scenario.rate / count)
        yield first_user, share
        first_user += share.users


class Worker(Child):
    """A worker process, seen from here."""

    failure = SiegeFailed

    def __init__(self, siege: Siege, index: int, config: Message) -> None:
        command = [sys.executable, "-c", BOOT.format(path=sys.path)]
        super().__init__(f"worker process {index + 1}", command, Lines(LONGEST_LINE_BYTES))
        self.siege = siege
        self.index = index
        self.config = config
        self.silent_waits = 0

    def take(self, message: Message) -> None:
        self.silent_waits = 0
        if "interval" in message:
            self.siege.take_interval(message, self.index)
        else:
            super().take(message)


class Siege:
    """One run of a scenario. `play()` it once; `stop()` may be called meanwhile, from a signal handler too.

    Args:
        on_progress: called with the timeline of what happened so far, four times a second by each worker. With it, or
            with several processes, the work is done in worker processes.
    """

    def __init__(self, scenario: Scenario, on_progress: Callable[[Timeline], object] | None = None) -> None:
        if scenario.seed is None:
            scenario = dataclasses.replace(scenario, seed=random.SystemRandom().randrange(2**32))
        self.scenario = scenario
        self.on_progress = on_progress
        self.timeline = Timeline(scenario.processes)
        self.watch: Watch | None = None
        self.workers: list[Worker] = []
        self.began = False              # requests are sent, and there will be a report
        self.stopping = False

    def stop(self) -> None:
        """Come to an end now, with what there is: what is under way counts as unanswered. Before anything is sent,
        `play` raises KeyboardInterrupt instead."""
        self.stopping = True

    def play(self) -> Report:
        """Raises UsageError, ConnectError, LimitReached or SiegeFailed, each in one sentence."""
        scenario = self.scenario
        addresses = resolve(scenario)
        raise_fd_limit(scenario)
        prepared = requests(scenario, addresses)
        head_room = HeadRoom(scenario.sources, len(set(addresses.values())))     # none: a unix socket
        if scenario.pid is not None:
            self.watch = Watch(scenario.pid)
        if scenario.processes == 1 and self.on_progress is None:
            results = [run_here(scenario, prepared, lambda message: self.take_interval(message, 0))]
        else:
            with self.everything_ends():
                results = self.run_workers(addresses)
        return Report.from_tallies(scenario, [result["tally"] for result in results], self.timeline.rows(),
                                   [result["usage"] for result in results],
                                   self.watch.summary() if self.watch is not None else None, head_room)

    def take_interval(self, message: Message, worker: int) -> None:
        server = self.watch.sample() if self.watch is not None and worker == 0 else None
        self.timeline.add(message["interval"], message["t_s"], worker, server)
        if self.on_progress is not None:
            self.on_progress(self.timeline)

    @contextlib.contextmanager
    def everything_ends(self) -> Iterator[None]:
        """Whatever happens inside, no process, pipe or selector is left."""
        self.selector = selectors.DefaultSelector()
        try:
            yield
        finally:
            with interrupts_wait():
                for worker in self.workers:
                    worker.end()
                self.selector.close()

    def run_workers(self, addresses: dict[Place, Address]) -> list[dict[str, Any]]:
        """Start them, let them begin together, and wait for what they found."""
        places = [(*place, address) for place, address in addresses.items()]
        for index, (first_user, share) in enumerate(shares(self.scenario)):
            self.start(index, {"scenario": share.to_json(secrets=True), "first_user": first_user, "addresses": places,
                               "first_due": index / self.scenario.rate if self.scenario.rate else 0.0})
        for worker in self.workers:
            worker.send(**worker.config)
        self.wait_for("ready")
        self.began = True
        for worker in self.workers:
            worker.send(command="go")
        self.wait_for("final")
        return [worker.last for worker in self.workers]

    def start(self, index: int, config: Message) -> None:
        with interrupts_wait():         # it is either not started, or known to be
            worker = Worker(self, index, config)
            self.workers.append(worker)
        self.selector.register(worker.stdout, selectors.EVENT_READ, worker.read_reports)
        self.selector.register(worker.stderr, selectors.EVENT_READ, worker.read_complaints)

    def wait_for(self, what: str) -> None:
        """Until all workers have said it. SiegeFailed: one died, or says nothing any more."""
        told = False
        while not all(what in worker.last for worker in self.workers):
            if self.stopping and what != "final":
                raise KeyboardInterrupt
            if self.stopping and not told:
                told = True
                for worker in self.workers:
                    self.tell_to_stop(worker)
            ready = self.selector.select(WAIT_SECONDS)
            for key, _ in ready:
                if not key.data():
                    self.selector.unregister(key.fileobj)
            for worker in self.workers:
                worker.silent_waits += not ready
                if "final" in worker.last:
                    self.timeline.end(worker.index)
                elif worker.silent_waits > SILENT_WAITS:
                    raise SiegeFailed(f"the {worker.name} has not reported for a minute")

    def tell_to_stop(self, worker: Worker) -> None:
        with contextlib.suppress(BrokenPipeError):      # it is at its end already; its last report is on its way
            worker.stdin.write(b'{"command": "stop", "grace": 0.0}\n')


def run(scenario: Scenario, on_progress: Callable[[Timeline], object] | None = None) -> Report:
    """Run a scenario and return what was found.

    Without `on_progress`, and with one process, it runs on a loop of its own in the calling thread, and Ctrl-C leaves
    it with KeyboardInterrupt. Otherwise worker processes do the work.

    Raises UsageError (a wrong file of certificates), ConnectError (nobody accepts), LimitReached (descriptors) or
    SiegeFailed (a worker process died), each with one sentence.
    """
    return Siege(scenario, on_progress).play()

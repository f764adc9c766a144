"""Plays a scenario: a server, a crowd in a process of its own, a probe, the wait for the baseline, and the verdict."""
from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from stress.children import Child, StressFailed
from stress.options import Options
from stress.probe import Probe, ask
from stress.server import Server
from stress.table import show
from stress.target import BIG_BYTES
from stress.watch import MIB, Rest, Sample, baseline, wait_for_rest

FOR_ALL = 8 * MIB           # memory that a crowd may take, beside what each connection may
WARM_UP_ASKS = 20           # the first answers import and allocate what stays
SAMPLE_SECONDS = 1.0
PROGRESS_SECONDS = 10.0          # between two lines
GATHER_SECONDS = 60.0
HANG_SECONDS = 60.0         # a crowd that does not end although its patience is over
FAULTS = {"wrong": "wrong answers", "cut": "connections ended while an answer was owed",
          "unanswered": "requests never answered", "not_connected": "connections refused or not made",
          "lost": "idle connections ended", "outlived": "connections that outlived their deadline"}


@dataclass(frozen=True)
class Plan:
    """What a scenario is.

    Args:
        name: of the scenario.
        turns: the crowd: so many visitors of each behaviour. Several: one after the other, again and again.
        probe_limit: seconds that the probe's p99 may take.
        growth: bytes of memory that the server may keep afterwards.
        peak_growth: bytes of memory that it may take meanwhile; None: no limit.
        per_connection: of those, bytes for each connection that was open at once, beside FOR_ALL; None: no limit.
        fd_limit: descriptors that our server may have; 0: as many as we.
        forgives: faults of FAULTS that are no failures here.
        expects: what must have happened at least once, for each behaviour that is named; else nothing was tested.
        gathers: the time begins once all of them are there.
        cycles: how often all turns come about; a turn takes 10 seconds at most.
        faults: of a faulty network between crowd and server (stress.faulty).
    """

    name: str
    turns: tuple[dict[str, int], ...]
    probe_limit: float = 1.0
    growth: int = 8 * MIB
    peak_growth: int | None = None
    per_connection: int | None = None
    fd_limit: int = 0
    forgives: tuple[str, ...] = ()
    expects: dict[str, str] = field(default_factory=dict)
    gathers: bool = False
    cycles: int = 1
    faults: tuple[str, ...] = ()


@dataclass
class Found:
    """What happened."""

    counts: dict[str, dict[str, int]]
    open_peak: int
    probe: Probe
    before: Sample | None           # None: there is nobody whom we may watch
    samples: list[Sample]
    rest: Rest | None
    deadline: float | None
    failures: list[str] = field(default_factory=list)
    proxy: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)     # for the table
    crowd_cpu: float = 0.0                                  # of a core, while it was wanted


def scaled(turn: dict[str, int], connections: int | None) -> dict[str, int]:
    """The same mix, with so many in all."""
    if connections is None:
        return turn
    total = sum(turn.values())
    return {name: max(1, count * connections // total) for name, count in turn.items()}


def play(options: Options, plan: Plan, judge: Callable[[Options, Found], list[str]] | None = None) -> list[str]:
    """Run it and print its table. Returns what did not hold. StressFailed, OSError: it could not run.

    Args:
        judge: what else must hold.
    """
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(options, plan.fd_limit))
        proxy = None
        address = server.address
        if plan.faults:
            proxy = stack.enter_context(Child("stress.faulty", {
                "to": address, "faults": plan.faults, "seed": options.seed}))
            address = (server.address[0], proxy.wait_for("port"))
        config, echoes = introduce(server, options)
        crowd = stack.enter_context(Child("stress.crowd", {**config, "address": address}))
        probe = Probe(server.address, server.host, server.path, echoes, options.seconds, options.patience)
        crowd.wait_for("ready")
        before = baseline(server.watch) if server.watch is not None else None
        found = Found({}, 0, probe, before, [], None, options.deadline)
        probe.start()
        try:
            Run(options, plan, server, crowd, found).play()
        finally:
            probe.end()
        found.failures = [server.gone()] if server.gone() else []
        if proxy is not None:
            proxy.send(command="end")
            proxy.read_to_end()
            found.proxy = proxy.last["counts"]
        if before is not None and server.watch is not None and not found.failures:
            found.rest = wait_for_rest(server.watch, before, plan.growth, options.patience)
        found.failures += failures(options, plan, found) + (judge(options, found) if judge else [])
    show(plan, options, found)
    return found.failures


def introduce(server: Server, options: Options) -> tuple[dict[str, object], bool]:
    """Ask the server a few times, and learn from it what the crowd has to know. StressFailed: it can't be asked."""
    try:
        for number in range(WARM_UP_ASKS):
            nonce = f"nonce=first-{number}."
            answer = ask(server.address, server.host, server.target(nonce), options.patience)
        big = "/big" if options.url is None else server.path
        big_bytes = BIG_BYTES if options.url is None else max(1, len(answer.body))
    except (OSError, ValueError) as error:
        raise StressFailed(f"the server can't be asked: {type(error).__name__}: {error}") from None
    echoes = nonce.encode() in answer.body
    if echoes and options.url is not None:      # it may know the rest of our application, too
        with contextlib.suppress(OSError, ValueError):
            large = ask(server.address, server.host, "/big", options.patience)
            if large.status == 200 and len(large.body) >= BIG_BYTES:
                big, big_bytes = "/big", len(large.body)
    return {"host": server.host, "path": server.path, "big": big, "big_bytes": big_bytes, "echoes": echoes,
            "deadline": options.deadline, "patience": options.patience, "seed": options.seed}, echoes


class Run:
    """The time in which the crowd is there."""

    def __init__(self, options: Options, plan: Plan, server: Server, crowd: Child, found: Found) -> None:
        self.options, self.plan, self.server, self.crowd, self.found = options, plan, server, crowd, found
        self.begin()
        self.turn_seconds = options.seconds / (len(plan.turns) * plan.cycles)
        self.sample_every = min(SAMPLE_SECONDS, options.seconds / 100, self.turn_seconds / 5)
        self.sampled, self.told = 0.0, self.began

    def play(self) -> None:
        """Until the crowd has left, or the server is gone."""
        print(f"{self.plan.name}: {self.options.seconds:g} s, server at {self.server.host}", file=sys.stderr,
              flush=True)
        turns = [scaled(turn, self.options.connections) for turn in self.plan.turns]
        count = len(turns) * self.plan.cycles
        if self.plan.gathers:
            self.gather(turns[0])
        for number in range(count):
            self.crowd.send(command="want", crowd=turns[number % len(turns)])
            if not self.watch_until(self.began + (number + 1) * self.turn_seconds):
                return
        used = self.crowd.last.get("cpu_seconds", 0.0) - self.cpu_before
        self.found.crowd_cpu = used / (time.monotonic() - self.began)
        self.crowd.send(command="end")
        deadline = self.options.patience + (self.options.deadline or 0.0) + HANG_SECONDS
        if self.watch_until(time.monotonic() + deadline) and not self.crowd.last.get("final"):
            raise StressFailed("the crowd does not come to an end")

    def gather(self, crowd: dict[str, int]) -> None:
        """If not all of them come in time, whoever judges will see it."""
        self.crowd.send(command="want", crowd=crowd)
        deadline = time.monotonic() + GATHER_SECONDS
        while self.found.open_peak < sum(crowd.values()) and time.monotonic() < deadline:
            if not self.watch_until(time.monotonic() + 0.1):
                return
        self.begin()

    def begin(self) -> None:
        """The time begins."""
        self.began = time.monotonic()
        self.cpu_before = self.crowd.last.get("cpu_seconds", 0.0)

    def watch_until(self, when: float) -> bool:
        """Take reports and samples. False: the server is gone."""
        while (now := time.monotonic()) < when and not self.crowd.last.get("final"):
            self.crowd.read(min(0.05, self.sample_every, when - now))
            self.found.counts = self.crowd.last.get("counts", {})
            self.found.open_peak = self.crowd.last.get("open_peak", 0)
            if now >= self.sampled + self.sample_every:
                self.sampled = now
                if self.server.gone():
                    return False
                sample = self.server.watch.sample() if self.server.watch is not None else None
                self.found.samples += [sample] if sample is not None else []
            if now >= self.told + PROGRESS_SECONDS:
                self.told = now
                self.tell(now)
        return True

    def tell(self, now: float) -> None:
        """A line of progress."""
        answered = sum(counts["answered"] for counts in self.found.counts.values())
        line = (f"{self.plan.name}: {now - self.began:.0f} of {self.options.seconds:.0f} s, "
                f"{self.crowd.last.get('open', 0):,} open, {answered:,} answered")
        if self.found.samples:
            last = self.found.samples[-1]
            line += f", server: {last.fds:,} fds, {last.rss_bytes / MIB:.1f} MiB"
        print(line, file=sys.stderr, flush=True)


def failures(options: Options, plan: Plan, found: Found) -> list[str]:
    """What must hold in every scenario."""
    failed = []
    for fault, what in FAULTS.items():
        count = sum(counts[fault] for counts in found.counts.values())
        if count and fault not in plan.forgives:
            failed.append(f"{what}: {count:,}")
    for behaviour, what in plan.expects.items():
        if not found.counts.get(behaviour, {}).get(what):
            if what == "ended" and options.deadline is None:
                continue
            failed.append(f"no {behaviour} was {what}")
    probe, limit = found.probe, probe_limit(options, plan)
    if probe.failures:
        failed.append(f"the probe failed {len(probe.failures)} of {len(probe.latencies)} times: {probe.failures[0]}")
    if probe.p99() > limit:
        failed.append(f"the probe's p99 was {probe.p99():.3f} s, more than {limit:g}")
    if found.rest is not None:
        failed += found.rest.failures
    return failed + memory_failures(plan, found)


def probe_limit(options: Options, plan: Plan) -> float:
    """Seconds."""
    return plan.probe_limit if options.probe_limit is None else options.probe_limit


def memory_failures(plan: Plan, found: Found) -> list[str]:
    """What it took while the crowd was there."""
    if found.before is None or not found.samples:
        return []
    grown = max(sample.rss_bytes for sample in found.samples) - found.before.rss_bytes
    failed = []
    if plan.peak_growth is not None and grown > plan.peak_growth:
        failed.append(f"memory grew by {grown / MIB:.1f} MiB meanwhile, more than {plan.peak_growth / MIB:.0f}")
    if plan.per_connection is not None and grown > FOR_ALL + plan.per_connection * found.open_peak:
        failed.append(f"memory grew by {grown / max(1, found.open_peak):,.0f} bytes a connection, "
                      f"more than {plan.per_connection:,}")
    return failed

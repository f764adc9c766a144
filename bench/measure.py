"""The kernel's accounts, and what is made of them: ratios pair by pair, their median, and how sure it is.

CPU time of a server is what /proc/PID/task/*/schedstat says, in nanoseconds. Which part of it was user time is known
from ticks of 10 ms only, so ticks are pooled over all rounds of a comparison before a share is taken.
"""
from __future__ import annotations

import contextlib
import math
import os
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
BOOTSTRAP_RESAMPLES = 4000
BOOTSTRAP_SEED = 20_000
CONFIDENCE = 0.95
VERDICT_PAIRS = 15              # fewer are a look
POOLED_TICKS_SECONDS = 60       # of a server's CPU time, before its user share is believed
SATURATED = 0.95                # of its core


@dataclass(frozen=True)
class Account:
    """What processes have used so far: nanoseconds on a CPU, and seconds by ticks."""

    cpu_ns: int
    user_seconds: float
    system_seconds: float

    def since(self, before: Account) -> Account:
        """The difference of two readings."""
        return Account(self.cpu_ns - before.cpu_ns, self.user_seconds - before.user_seconds,
                       self.system_seconds - before.system_seconds)


def read_account(pids: Sequence[int]) -> Account:
    """Read the accounts of these processes, all their threads included."""
    cpu_ns, user, system = 0, 0, 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):        # a thread that has just ended
                cpu_ns += int((task / "schedstat").read_text().split()[0])
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user += int(fields[11])
        system += int(fields[12])
    return Account(cpu_ns, user / TICKS_PER_SECOND, system / TICKS_PER_SECOND)


@dataclass(frozen=True)
class Machine:
    """What some cores have done so far, in seconds summed over them: stolen by the hypervisor, busy, and in all."""

    steal_seconds: float
    busy_seconds: float
    total_seconds: float


def read_machine(cores: Sequence[int]) -> Machine:
    """Read /proc/stat for these cores (proc(5): user nice system idle iowait irq softirq steal)."""
    steal, busy, total = 0, 0, 0
    names = {f"cpu{core}" for core in cores}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in names:
            ticks = [int(field) for field in fields[:8]]
            steal += ticks[7]
            busy += sum(ticks[:3]) + sum(ticks[5:7])
            total += sum(ticks)
    return Machine(steal / TICKS_PER_SECOND, busy / TICKS_PER_SECOND, total / TICKS_PER_SECOND)


@dataclass(frozen=True)
class Round:
    """One server under one load for some seconds."""

    requests: int
    errors: int
    cpu_seconds: float              # of the server, by schedstat
    user_seconds: float             # of the server, by ticks
    system_seconds: float
    generator_cpu_seconds: float
    wall_seconds: float
    steal_share: float              # of both cores' time
    others_share: float             # of both cores' time, used by neither server nor generator

    @property
    def cpu_us_per_request(self) -> float:
        """The headline."""
        return self.cpu_seconds * 1e6 / self.requests

    @property
    def requests_per_second(self) -> float:
        """Over loopback, of whoever had no time left first."""
        return self.requests / self.wall_seconds

    @property
    def limited_by(self) -> str:
        """Who had no time left: `server`, `generator`, `both` or `neither`."""
        server = self.cpu_seconds / self.wall_seconds >= SATURATED
        generator = self.generator_cpu_seconds / self.wall_seconds >= SATURATED
        return {(True, False): "server", (False, True): "generator", (True, True): "both"}.get(
            (server, generator), "neither")


@dataclass(frozen=True)
class Interval:
    """A figure and its bootstrap interval."""

    median: float
    low: float
    high: float


Pair = tuple[Round, Round]


def bootstrap(items: Sequence, figure: Callable[[Sequence], float], seed: int = BOOTSTRAP_SEED) -> Interval:
    """A figure of some items, and the interval in which it lies for 95 % of the samples drawn from them with
    replacement. The same items give the same interval."""
    if not items:
        raise ValueError("an interval of nothing")
    generator = random.Random(seed)
    drawn = sorted(figure(generator.choices(items, k=len(items))) for _ in range(BOOTSTRAP_RESAMPLES))
    tail = int((1 - CONFIDENCE) / 2 * BOOTSTRAP_RESAMPLES)
    return Interval(figure(items), drawn[tail], drawn[-1 - tail])


def cpu_ratio(pairs: Sequence[Pair]) -> Interval:
    """CPU per request of the first of each pair, divided by that of the second: the median of the ratios."""
    ratios = [first.cpu_us_per_request / second.cpu_us_per_request for first, second in pairs]
    return bootstrap(ratios, statistics.median)


def throughput_ratio(pairs: Sequence[Pair]) -> Interval:
    """Requests per second of the first of each pair, divided by those of the second: the median of the ratios."""
    ratios = [first.requests_per_second / second.requests_per_second for first, second in pairs]
    return bootstrap(ratios, statistics.median)


def user_us_per_request(rounds: Sequence[Round]) -> float:
    """User time per request in µs: CPU time by nanoseconds, its user share by ticks, both pooled."""
    ticks = sum(each.user_seconds + each.system_seconds for each in rounds)
    share = sum(each.user_seconds for each in rounds) / ticks if ticks else 0.0
    return share * sum(each.cpu_seconds for each in rounds) * 1e6 / sum(each.requests for each in rounds)


def user_ratio(pairs: Sequence[Pair]) -> Interval:
    """User time per request of the firsts, divided by that of the seconds, pooled; infinite if these have no tick."""
    def figure(some: Sequence[Pair]) -> float:
        below = user_us_per_request([second for _, second in some])
        return user_us_per_request([first for first, _ in some]) / below if below else math.inf
    return bootstrap(pairs, figure)


def pooled_seconds(pairs: Sequence[Pair]) -> float:
    """Seconds of ticks on the side that has fewer."""
    return min(sum(pair[side].user_seconds + pair[side].system_seconds for pair in pairs) for side in (0, 1))


def verdict(ratio: Interval, target: float, same: Interval | None) -> str:
    """Whether a ratio is at most its target, as far as this run can tell: `met`, `missed` or `undecided`.

    `same` is the ratio of two identical servers. What they differ by must be less than what is asked for: its interval,
    with 1 in it, must be narrower than the target's distance from 1. If the target is 1 itself, what counts is the
    distance that was found. A ratio that is off by more than that width is missed, however far the target is from 1.
    """
    if same is None or not math.isfinite(ratio.median):
        return "undecided"
    noise = max(same.high, 1.0) - min(same.low, 1.0)
    if ratio.median - target > noise:
        return "missed"
    distance = abs(target - 1) or abs(ratio.median - 1)
    if noise >= distance:
        return "undecided"
    return "met" if ratio.median <= target else "missed"


def least_verdict(ratio: Interval, target: float, same: Interval | None) -> str:
    """The same where the ratio is to be at least its target."""
    def inverse(interval: Interval) -> Interval:
        return Interval(1 / interval.median, 1 / interval.high, 1 / interval.low)
    return verdict(inverse(ratio), 1 / target, same and inverse(same))


def absolute_verdict(values: Sequence[float], limit: float) -> str:
    """Whether a count is at most its limit: in every run, in none, or undecided."""
    below = [value <= limit for value in values]
    if not below:
        return "undecided"
    return "met" if all(below) else "undecided" if any(below) else "missed"


def resident_bytes(pids: Sequence[int]) -> int:
    """Resident memory of these processes, exact (smaps_rollup, not the counters that lag behind)."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
    return total

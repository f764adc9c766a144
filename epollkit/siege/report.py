"""What a run found. Every key of the JSON carries its unit; what it means is in `docs/siege-report.schema.json`."""
from __future__ import annotations

import bisect
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import epollkit
from epollkit._histogram import Histogram
from epollkit.siege import ports
from epollkit.siege.assertions import Assertion
from epollkit.siege.summary import summary
from epollkit.siege.tally import Row, Tally, merge, most_frequent

PERCENTILES = (50, 75, 90, 99, 99.9, 99.99)
TICKS_PER_HALF = 5      # points of the spectrum between 50 % and 75 %, 75 % and 87.5 %, and so on
BUSY_PERCENT = 90.0     # of its cores: a generator that used more measured itself
NS = 1e9


@dataclass(frozen=True)
class Report:
    """The result of a run. Attributes are named as the keys of the JSON; times are in seconds."""

    version: str
    scenario: dict[str, Any]
    elapsed_s: float
    begun: int                      # requests that were sent, or started to be
    planned: int                    # open loop: those whose time had come; closed: the same as begun
    transactions: int               # answered completely, whatever the status
    successful: int                 # answered as expected
    failed: int                     # not, or not as expected
    unexpected: int                 # of the failed ones: answered, with another status or body
    timed_out: int                  # of the failed ones: given up after the timeout
    unanswered: int                 # neither: still under way, or planned, when the run ended
    broken_off: int                 # on purpose, by a close mode that reads no answer
    availability_percent: float     # successful of successful, failed and unanswered
    data_transferred_bytes: int     # bodies, as siege counts
    bytes_sent: int
    bytes_received: int
    response_time_s: float | None
    transaction_rate_per_s: float
    throughput_bytes_per_s: float   # of data_transferred_bytes
    concurrency: float              # requests under way, on average
    effective_concurrency: float    # connections open, on average
    longest_s: float | None
    shortest_s: float | None
    latency_s: dict[str, float | None]
    connect_s: dict[str, float | None]
    lag_s: dict[str, float | None] | None       # open loop: from planned to sent
    spectrum: list[list[float]]     # [percentile, seconds, requests at most so slow]
    statuses: dict[str, int]
    errors: list[dict[str, Any]]    # most frequent first
    connections: dict[str, int]
    generator: dict[str, Any]
    server: dict[str, Any] | None
    intervals: list[dict[str, Any]]
    assertions: list[dict[str, Any]]
    latencies: Histogram = dataclasses.field(repr=False, compare=False)     # not in the JSON

    @classmethod
    def from_tallies(cls, scenario: Any, tallies: Iterable[Tally], intervals: Sequence[Row] = (),
                     usage: Sequence[Mapping[str, Any]] = (), watched: Mapping[str, Any] | None = None,
                     head_room: ports.HeadRoom | None = None) -> Report:
        """Put a run together.

        Args:
            scenario: what was asked for.
            tallies: `Engine.tally()` of every worker.
            intervals: `Timeline.rows()`.
            usage: of every worker, while it measured: cpu_user_s, cpu_system_s, fds_peak.
            watched: `Watch.summary()`.
            head_room: made before the run began.
        """
        whole = merge(tallies)
        figures = {**counted(whole), **timed(whole, open_loop=scenario.rate is not None)}
        report = cls(version=epollkit.__version__, scenario=scenario.to_json(),
                     generator=generator(usage, whole, head_room), server=dict(watched) if watched else None,
                     intervals=[row.as_json() for row in intervals], assertions=[], **figures)
        judged = [Assertion.parse(text).judge(report) for text in scenario.assertions]
        return dataclasses.replace(report, assertions=judged)

    @property
    def requests(self) -> int:
        """All that were to be answered."""
        return self.successful + self.failed + self.unanswered

    @property
    def held(self) -> bool:
        """Whether every assertion did."""
        return all(assertion["held"] for assertion in self.assertions)

    def percentile(self, percent: float) -> float:
        """So many percent of the requests took at most this many seconds; 0 when there was none."""
        return self.latencies.percentile(percent) / NS

    def summary(self) -> str:
        """For people: siege's block, and what siege does not say."""
        return summary(self)

    def as_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
                if field.name != "latencies"}


def counted(whole: Tally) -> dict[str, Any]:
    """The part of a report that counts."""
    due = whole["successful"] + whole["failed"] + whole["unanswered"]
    same = ("begun", "planned", "successful", "failed", "unexpected", "timed_out", "unanswered", "broken_off",
            "bytes_sent", "bytes_received")
    return {
        **{name: whole[name] for name in same},
        "transactions": whole["answered"],
        "availability_percent": 100.0 * whole["successful"] / due if due else 0.0,
        "data_transferred_bytes": whole["body_bytes"],
        "statuses": dict(whole["statuses"]),
        "errors": most_frequent(whole["errors"]),
        "connections": {"established": whole["connections"], "failed": whole["connect_failures"],
                        "reconnects": whole["reconnects"], "backoffs": whole["backoffs"], "resent": whole["resent"],
                        "open": whole["open"], "open_peak": whole["open_peak"]},
    }


def timed(whole: Tally, open_loop: bool) -> dict[str, Any]:
    """The part of a report that has to do with time."""
    latencies = Histogram.load(whole["latency"])
    elapsed_s = whole["elapsed_ns"] / NS
    spread = distribution(latencies)
    lag = distribution(Histogram.load(whole["lag"])) if open_loop else None

    def per_second(number: float) -> float:
        return number / elapsed_s if elapsed_s else 0.0

    return {
        "elapsed_s": elapsed_s,
        "response_time_s": spread["mean"],
        "transaction_rate_per_s": per_second(whole["answered"]),
        "throughput_bytes_per_s": per_second(whole["body_bytes"]),
        "concurrency": per_second(latencies.sum_ns / NS),
        "effective_concurrency": per_second(whole["connected_ns"] / NS),
        "longest_s": spread["max"],
        "shortest_s": latencies.min_ns / NS if latencies.count else None,
        "latency_s": spread,
        "connect_s": distribution(Histogram.load(whole["connect"])),
        "lag_s": {name: lag[name] for name in ("p50", "p99", "max")} if lag is not None else None,
        "spectrum": spectrum(latencies),
        "latencies": latencies,
    }


def distribution(histogram: Histogram) -> dict[str, float | None]:
    """Percentiles and so on in seconds; all None when there is nothing in it."""
    found: dict[str, float | None] = dict.fromkeys([*(f"p{percent:g}" for percent in PERCENTILES),
                                                    "max", "mean", "stdev"])
    if histogram.count:
        for percent in PERCENTILES:
            found[f"p{percent:g}"] = histogram.percentile(percent) / NS
        found["max"] = histogram.max_ns / NS
        found["mean"] = histogram.sum_ns / histogram.count / NS
        found["stdev"] = histogram.stdev_ns / NS
    return found


def spectrum(histogram: Histogram) -> list[list[float]]:
    """[percentile, seconds, requests at most so slow], closer and closer towards 100 %, as far as there are requests
    to tell one step from the next."""
    bounds, counts, seen = [], [], 0
    for _, high_ns, count in histogram.items():
        seen += count
        bounds.append(high_ns)
        counts.append(seen)
    percents, left, step = [], 100.0, 0
    while seen and left * seen >= 100.0:
        left = 100.0 * 2.0 ** -(step // TICKS_PER_HALF) * (1 - step % TICKS_PER_HALF / (2 * TICKS_PER_HALF))
        percents.append(100.0 - left)
        step += 1
    points = []
    for percent in [*percents, 100.0] if seen else []:
        value_ns = histogram.percentile(percent)
        index = min(bisect.bisect_left(bounds, value_ns), len(bounds) - 1)
        points.append([round(percent, 7), value_ns / NS, counts[index]])
    return points


def generator(usage: Sequence[Mapping[str, Any]], whole: Tally, head_room: ports.HeadRoom | None) -> dict[str, Any]:
    """What the run cost this side, and how much more of it there was."""
    user_s, system_s = (sum(worker[name] for worker in usage) for name in ("cpu_user_s", "cpu_system_s"))
    cores = min(len(usage), len(os.sched_getaffinity(0)))
    elapsed_s = whole["elapsed_ns"] / NS
    percent = 100.0 * (user_s + system_s) / elapsed_s if elapsed_s else 0.0
    return {
        "processes": len(usage),
        "cores": cores,
        "cpu_user_s": user_s,
        "cpu_system_s": system_s,
        "cpu_percent": percent,
        "was_the_limit": percent > BUSY_PERCENT * cores > 0,
        "cpu_us_per_request": (user_s + system_s) * 1e6 / whole["answered"] if whole["answered"] else None,
        "fds_peak": max((worker["fds_peak"] for worker in usage), default=0),
        "fd_limit": ports.fd_limit(),
        "ports_available": head_room.available if head_room is not None else None,
        "ports_used": head_room.used(whole["open_peak"]) if head_room is not None else None,
    }

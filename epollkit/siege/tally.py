"""What workers counted, put together: tallies at the end of a run, and the intervals that make its curve.

A tally is `Engine.tally()`: numbers that add up, and histograms that merge. Merging is associative and commutative, so
it does not matter how many workers there were, nor in which order they ended.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from epollkit._histogram import Histogram

Tally = Mapping[str, Any]

SUMS = ("begun", "planned", "answered", "successful", "failed", "unexpected", "unanswered", "timed_out", "broken_off",
        "bytes_sent", "bytes_received", "body_bytes", "connections", "connect_failures", "reconnects", "backoffs",
        "resent", "open", "connected_ns",
        "open_peak")    # workers peak at different times: the sum is what it was at most
HISTOGRAMS = ("latency", "connect", "lag")

SLIVER_SECONDS = 0.05   # what is left of a run at its end is a rate of its own only from so long on
MOST_ROWS = 600         # of a timeline, more than a chart can show: longer runs get longer rows


def merge(tallies: Iterable[Tally]) -> dict[str, Any]:
    """One tally out of any number; out of none, that of a worker to whom nothing happened."""
    found = list(tallies)
    statuses: Counter[str] = Counter()
    errors: Counter[tuple[str, str]] = Counter()
    for tally in found:
        statuses.update(tally["statuses"])
        for phase, name, count in tally["errors"]:
            errors[phase, name] += count
    merged: dict[str, Any] = {name: sum(tally[name] for tally in found) for name in SUMS}
    merged["statuses"] = dict(sorted(statuses.items()))
    merged["errors"] = [[phase, name, count] for (phase, name), count in sorted(errors.items())]
    for name in HISTOGRAMS:
        merged[name] = merged_histogram(tally[name] for tally in found).dump()
    merged["elapsed_ns"] = max((tally["elapsed_ns"] for tally in found), default=0)
    return merged


def merged_histogram(dumps: Iterable[list[Any]]) -> Histogram:
    whole = Histogram()
    for dump in dumps:
        whole.merge(Histogram.load(dump))
    return whole


@dataclass
class Row:
    """What happened in one interval, in all workers."""

    t_s: float = 0.0                # its end, in seconds since the measuring began
    answered: int = 0
    failed: int = 0
    rate_per_s: float = 0.0         # answered
    p50_s: float | None = None      # None: nothing was answered, so there is nothing to say
    p99_s: float | None = None
    max_s: float | None = None
    server: Mapping[str, Any] | None = None             # what Watch.sample() saw at its end
    opens: dict[int, int] = field(default_factory=dict)     # open connections at its end, by worker

    @property
    def open(self) -> int:
        return sum(self.opens.values())

    def take(self, other: Row) -> None:
        """Put another one's numbers in, of another worker or of the time that follows.

        Percentiles can't be merged without their histograms: p50 is the mean by weight, p99 the larger of both, so
        that the curve never hides a slow interval. The report's own percentiles come from whole histograms.
        """
        if other.answered:
            mine, theirs = self.p50_s or 0.0, other.p50_s or 0.0
            self.p50_s = (mine * self.answered + theirs * other.answered) / (self.answered + other.answered)
            self.p99_s = max(self.p99_s or 0.0, other.p99_s or 0.0)
            self.max_s = max(self.max_s or 0.0, other.max_s or 0.0)
        self.t_s = max(self.t_s, other.t_s)
        self.answered += other.answered
        self.failed += other.failed
        self.server = other.server or self.server
        self.opens.update(other.opens)

    def as_json(self) -> dict[str, Any]:
        server = self.server or {}
        return {"t_s": round(self.t_s, 3), "answered": self.answered, "failed": self.failed,
                "rate_per_s": round(self.rate_per_s, 3), "p50_s": self.p50_s, "p99_s": self.p99_s, "max_s": self.max_s,
                "open": self.open, "server_cpu_percent": server.get("cpu_percent"),
                "server_rss_bytes": server.get("rss_bytes"), "server_fds": server.get("fds")}


class Timeline:
    """The run as a list of rows. The nth interval of each worker goes into the same row; when there are too many rows,
    two and two become one."""

    def __init__(self, workers: int = 1, most_rows: int = MOST_ROWS) -> None:
        self.most_rows = most_rows
        self.ticks = [0] * workers      # intervals that each worker has told, ...
        self.told_s = [0.0] * workers   # ... and up to when
        self.running = [True] * workers
        self.folded = 0                 # how often: a row is 2 ** folded intervals
        self.all: list[Row] = []

    def add(self, interval: Mapping[str, int], t_s: float, worker: int = 0,
            server: Mapping[str, Any] | None = None) -> None:
        """`Engine.interval()` of one worker, t_s seconds after its measuring began."""
        row = Row(t_s=t_s, answered=interval["answered"], failed=interval["failed"], server=server,
                  opens={worker: interval["open"]})
        if interval["answered"]:
            row.p50_s, row.p99_s, row.max_s = (interval[name] / 1e9 for name in ("p50_ns", "p99_ns", "max_ns"))
        if self.ticks[worker] and t_s - self.told_s[worker] < SLIVER_SECONDS:
            row.opens, row.server = {}, None        # connections end with the run, and that is not what it was like
        else:
            self.ticks[worker] += 1
        self.told_s[worker] = t_s
        index = self.ticks[worker] - 1 >> self.folded
        if index == len(self.all):
            self.all.append(row)
        else:
            self.all[index].take(row)
        if len(self.all) > self.most_rows:
            self.fold()

    def end(self, worker: int = 0) -> None:
        """It tells no more; rows need not wait for it."""
        self.running[worker] = False

    def fold(self) -> None:
        pairs = [self.all[index:index + 2] for index in range(0, len(self.all), 2)]
        for first, *second in pairs:
            for row in second:
                first.take(row)
        self.all = [first for first, *_ in pairs]
        self.folded += 1

    def rows(self) -> list[Row]:
        """All of it so far, with the rates filled in; the last row may still lack a worker."""
        before = 0.0
        for row in self.all:
            row.rate_per_s = row.answered / (row.t_s - before) if row.t_s > before else 0.0
            before = row.t_s
        return self.all

    def whole_rows(self) -> list[Row]:
        """Without those to which a running worker has still to add: what a live view may show."""
        told = [ticks >> self.folded for ticks, running in zip(self.ticks, self.running, strict=True) if running]
        return self.rows()[:min(told, default=len(self.all))]


def most_frequent(errors: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Errors as the report has them, most frequent first."""
    ordered = sorted(errors, key=lambda error: (-error[2], error[0], error[1]))
    return [{"phase": phase, "error": name, "count": count} for phase, name, count in ordered]

"""Tallies as the engine makes them, and reports of them, without a siege."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from epollkit._histogram import Histogram
from epollkit.siege.report import Report
from epollkit.siege.scenario import Scenario
from epollkit.siege.tally import Timeline, merge

MS = 1_000_000
SECOND = 1_000 * MS
USAGE = {"cpu_user_s": 0.25, "cpu_system_s": 0.5, "fds_peak": 40}
WATCHED = {"pid": 77, "ended_after_s": None, "cpu_percent": {"mean": 80.0, "max": 95.5},
           "rss_bytes": {"first": 30 << 20, "last": 31 << 20, "max": 32 << 20},
           "fds": {"first": 12, "last": 12, "max": 76}, "threads": {"first": 1, "last": 1, "max": 1}}
SAMPLE = {"cpu_percent": 80.0, "rss_bytes": 31 << 20, "fds": 70, "threads": 1}


def histogram(times_ns: Iterable[int]) -> Histogram:
    made = Histogram()
    for time_ns in times_ns:
        made.record(time_ns)
    return made


def tally(latencies_ns: Iterable[int] = (), connects_ns: Iterable[int] = (), lags_ns: Iterable[int] = (),
          **changed: Any) -> dict[str, Any]:
    """All of these requests were answered with 200, in ten seconds, unless something else is said."""
    latencies = histogram(latencies_ns)
    count = latencies.count
    return {**merge([]), "begun": count, "planned": count, "answered": count, "successful": count,
            "statuses": {"200": count} if count else {}, "elapsed_ns": 10 * SECOND, "latency": latencies.dump(),
            "connect": histogram(connects_ns).dump(), "lag": histogram(lags_ns).dump(), **changed}


def interval(answered: int = 100, failed: int = 0, open: int = 8, p50_ns: int = MS, p99_ns: int = 4 * MS,
             max_ns: int = 9 * MS) -> dict[str, int]:
    return {"answered": answered, "failed": failed, "bytes_received": 0, "open": open, "begun": answered,
            "p50_ns": p50_ns, "p99_ns": p99_ns, "max_ns": max_ns}


def scenario(**asked: Any) -> Scenario:
    return Scenario(**{"targets": "http://127.0.0.1:8000/", "seconds": 10.0, "users": 8, **asked})


def report(*tallies: Mapping[str, Any], timeline: Timeline | None = None, usage: Any = (USAGE,),
           watched: Mapping[str, Any] | None = None, head_room: Any = None, **asked: Any) -> Report:
    return Report.from_tallies(scenario(**asked), tallies, timeline.rows() if timeline is not None else (), usage,
                               watched, head_room)


def eventful(**asked: Any) -> Report:
    """A report in which everything has something to say."""
    timeline = Timeline()
    for index in range(40):
        counted = interval(answered=0 if 18 < index < 22 else 100 + index, failed=index % 3, max_ns=(9 + index) * MS)
        timeline.add(counted, 0.25 * (index + 1), 0, SAMPLE)
    latencies = [MS * (1 + index % 9) for index in range(4000)] + [700 * MS] * 10
    whole = tally(latencies, [MS, 2 * MS], [10_000, 90_000], successful=3990, failed=50, unexpected=20, unanswered=7,
                  timed_out=4, broken_off=3, planned=4057, begun=4055, statuses={"200": 3990, "503": 20},
                  errors=[["connect", "ECONNREFUSED", 20], ["first-byte", "timeout", 4], ["read", "ECONNRESET", 6],
                          ["expect", "503", 20]],
                  bytes_sent=400_000, bytes_received=8 << 20, body_bytes=7 << 20, connections=30, connect_failures=20,
                  reconnects=5, backoffs=2, open=8, open_peak=8, connected_ns=79 * SECOND)
    return report(whole, timeline=timeline, watched=WATCHED,
                  **{"rate": 400.0, "pid": 77, "assertions": ["p99<5ms", "failed<1000"], **asked})

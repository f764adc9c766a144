"""A report for people: siege's block with siege's words, units and columns, then what siege does not say."""
from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epollkit.siege.report import Report

MIB = 1 << 20           # siege's MB
MOST_KINDS = 10         # of errors, and of statuses: the rest is one line
SHORT_PERCENT = 90.0    # of descriptors or ports: beyond it the run says so


def summary(report: Report) -> str:
    """Lines of text, each ending in a newline."""
    parts = [list(part(report)) for part in (block, latencies, outcome, cost, verdicts)]
    return "\n".join("".join(f"{line}\n" for line in part) for part in parts if part)


def floored(percent: float) -> str:
    """One failure in a million is not 100.00 %."""
    return f"{math.floor(percent * 100.0) / 100.0:.2f}"


def duration(seconds: float | None) -> str:
    """Three digits and the unit that suits them."""
    if seconds is None:
        return "-"
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 0.9995 or unit == "us":
            value = seconds * factor
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    raise AssertionError("the last unit suits everything")


def block(report: Report) -> Iterator[str]:
    """The very lines that siege prints: scripts read them."""
    yield f"Transactions:\t\t{report.transactions:12d} hits"
    yield f"Availability:\t\t{floored(report.availability_percent):>12} %"
    yield f"Elapsed time:\t\t{report.elapsed_s:12.2f} secs"
    yield f"Data transferred:\t{report.data_transferred_bytes / MIB:12.2f} MB"
    yield f"Response time:\t\t{report.response_time_s or 0.0:12.2f} secs"
    yield f"Transaction rate:\t{report.transaction_rate_per_s:12.2f} trans/sec"
    yield f"Throughput:\t\t{report.throughput_bytes_per_s / MIB:12.2f} MB/sec"
    yield f"Concurrency:\t\t{report.concurrency:12.2f}"
    yield f"Successful transactions:{report.successful:12d}"
    yield f"Failed transactions:\t{report.failed:12d}"
    yield f"Longest transaction:\t{report.longest_s or 0.0:12.2f}"
    yield f"Shortest transaction:\t{report.shortest_s or 0.0:12.2f}"


def latencies(report: Report) -> Iterator[str]:
    """A column per kind of waiting, a row per percentile."""
    columns = [("Latency", report.latency_s), ("connect", report.connect_s)]
    if report.lag_s is not None:
        columns.append(("lag", report.lag_s))
    columns = [(name, spread) for name, spread in columns if spread["max"] is not None]
    if not columns:
        return
    yield "Latency".ljust(12) + "".join(f"{'request' if name == 'Latency' else name:>12}" for name, _ in columns)
    for row in ("p50", "p75", "p90", "p99", "p99.9", "p99.99", "max"):
        cells = (duration(spread[row]) if row in spread else "" for _, spread in columns)
        yield f"  {row:<10}{''.join(f'{cell:>12}' for cell in cells)}".rstrip()


def bounded(rows: list[tuple[str, int]], what: str) -> Iterator[str]:
    for name, count in rows[:MOST_KINDS]:
        yield f"  {name:<28} {count:12d}"
    if len(rows) > MOST_KINDS:
        yield f"  {f'{len(rows) - MOST_KINDS} more {what}':<28} {sum(count for _, count in rows[MOST_KINDS:]):12d}"


def outcome(report: Report) -> Iterator[str]:
    """What came back, and what did not."""
    if report.statuses:
        yield "Statuses"
        yield from bounded(sorted(report.statuses.items(), key=lambda item: (-item[1], item[0])), "statuses")
    if report.errors:
        yield "Errors"
        yield from bounded([(f"{error['phase']} {error['error']}", error["count"]) for error in report.errors],
                           "kinds")
    others = [("Unanswered at the end", report.unanswered), ("Timed out", report.timed_out),
              ("Broken off on purpose", report.broken_off), ("Reconnects", report.connections["reconnects"]),
              ("Back-offs", report.connections["backoffs"])]
    yield from (f"{name + ':':<30} {count:12d}" for name, count in others if count)


def share(used: int, available: int | None) -> str:
    return f"{used} of {available}" if available else f"{used}"


def cost(report: Report) -> Iterator[str]:
    """The generator's own CPU and its head-room, then the server's."""
    own: dict[str, Any] = report.generator
    each = own["cpu_us_per_request"]
    yield (f"Generator: {own['cpu_percent']:.0f} % CPU in {own['processes']} process"
           f"{'es' if own['processes'] != 1 else ''}, {own['cpu_user_s']:.2f} s user, "
           f"{own['cpu_system_s']:.2f} s system" + (f", {each:.1f} us per request" if each is not None else ""))
    yield (f"Connections: {report.effective_concurrency:.1f} open on average, "
           f"{report.connections['open_peak']} at most, {report.connections['established']} established, "
           f"{report.connections['failed']} failed")
    yield f"Descriptors: {share(own['fds_peak'], own['fd_limit'])} in a process"
    if own["ports_available"]:
        yield f"Local ports: {share(own['ports_used'], own['ports_available'])}"
    if report.server is not None:
        yield from server(report.server)
    yield from (f"WARNING: {text}" for text in warnings(report))


def server(seen: dict[str, Any]) -> Iterator[str]:
    cpu, rss, fds = seen["cpu_percent"], seen["rss_bytes"], seen["fds"]
    if cpu["mean"] is not None:
        line = f"Server {seen['pid']}: {cpu['mean']:.0f} % CPU on average, {cpu['max']:.0f} % at most"
        line += f"; RSS {rss['first'] / MIB:.1f} to {rss['last'] / MIB:.1f} MiB, {rss['max'] / MIB:.1f} at most"
        if fds["max"] is not None:
            line += f"; descriptors {fds['first']} to {fds['last']}, {fds['max']} at most"
        yield line
    if seen["ended_after_s"] is not None:
        yield f"Server {seen['pid']} ended after {seen['ended_after_s']:.1f} s"


def warnings(report: Report) -> list[str]:
    """Why the figures may be of something else than the server."""
    own, found = report.generator, []
    if own["was_the_limit"]:
        found.append(f"the generator was the limit: it used {own['cpu_percent']:.0f} % CPU on "
                     f"{own['cores']} core{'s' if own['cores'] != 1 else ''}")
    for what, used, available in (("descriptors", own["fds_peak"], own["fd_limit"]),
                                  ("local ports", own["ports_used"], own["ports_available"])):
        if available and used > available * SHORT_PERCENT / 100.0:
            found.append(f"{what} ran short: {used} of {available} were taken")
    if report.planned > report.begun:
        found.append(f"{report.planned - report.begun} of {report.planned} requests were planned and never sent")
    if report.server is not None and report.server["ended_after_s"] is not None:
        found.append(f"the server's process ended {report.server['ended_after_s']:.1f} s after the watch began")
    return found


def value_of(assertion: dict[str, Any]) -> str:
    """What it was, in the unit of what was asked."""
    value, text = assertion["value"], assertion["text"]
    if value is None:
        return "nothing to measure"
    if text.startswith(("p", "max", "mean")):
        return duration(value)
    if text.startswith("availability"):
        return f"{floored(value)} %"
    number = f"{value:.4g}" if value < 1000 and value != int(value) else f"{value:.0f}"
    return f"{number} %" if "%" in text else number


def verdicts(report: Report) -> Iterator[str]:
    if report.assertions:
        yield "Assertions"
    for assertion in report.assertions:
        yield f"  {'held' if assertion['held'] else 'FAILED':<8} {assertion['text']:<24} {value_of(assertion)}"

"""The table at the end of a scenario: what happened, and what had to hold."""
from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from epollkit.demo.view import console_for

if TYPE_CHECKING:
    from stress.options import Options
    from stress.play import Found, Plan

MIB = 1 << 20


def crowd_table(plan: Plan, found: Found) -> Table:
    """A row per behaviour, a column per count that any of them has."""
    columns = [what for what in next(iter(found.counts.values()), {})
               if any(counts[what] for counts in found.counts.values())]
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{plan.name}: the crowd", title_justify="left")
    made.add_column("behaviour")
    for what in columns:
        made.add_column(what.replace("_", " "), justify="right")
    for behaviour, counts in found.counts.items():
        made.add_row(behaviour, *(f"{counts[what]:,}" for what in columns))
    return made


def server_table(plan: Plan, options: Options, found: Found) -> Table:
    """The probe, and the server before, at most and after."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{plan.name}: the server", title_justify="left")
    for name in ("", "before", "at most", "after"):
        made.add_column(name, justify="left" if not name else "right")
    if found.before is not None and found.samples:
        after = found.rest.sample if found.rest is not None else None
        for what, field, unit in (("descriptors", "fds", 1), ("threads", "threads", 1), ("RSS, MiB", "rss_bytes", MIB)):
            digits = ",.1f" if unit > 1 else ",.0f"
            made.add_row(what, format(getattr(found.before, field) / unit, digits),
                         format(max(getattr(sample, field) for sample in found.samples) / unit, digits),
                         "gone" if after is None else format(getattr(after, field) / unit, digits))
        span = found.samples[-1].seconds - found.samples[0].seconds
        used = (found.samples[-1].cpu_seconds - found.samples[0].cpu_seconds) / max(span, 1e-6)
        made.add_row("CPU, of a core", "", f"{used:.0%}", "gone" if found.rest is None else f"{found.rest.cpu:.0%}")
    made.add_row("the crowd's CPU, of a core", "", f"{found.crowd_cpu:.0%}", "")
    made.add_row("open at once", "", f"{found.open_peak:,}", "")
    limit = plan.probe_limit if options.probe_limit is None else options.probe_limit
    made.add_row(f"probe, {len(found.probe.latencies)} times: p99", "", f"{found.probe.p99() * 1000:,.1f} ms",
                 f"limit {limit * 1000:,.0f} ms")
    for fault, count in found.proxy.items():
        made.add_row(f"network: {fault}", "", f"{count:,}", "")
    for what, text in found.notes.items():
        made.add_row(what, "", text, "")
    return made


def show(plan: Plan, options: Options, found: Found) -> None:
    """Print both."""
    console = console_for(sys.stdout)
    if found.counts:
        console.print(crowd_table(plan, found))
    console.print(server_table(plan, options, found))

"""Progress of a siege: a live picture on a terminal, a plain line now and then in a pipe."""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from epollkit._children import interrupts_wait
from epollkit.siege import ports
from epollkit.siege.summary import MIB, duration
from epollkit.siege.tally import Row, Timeline

if TYPE_CHECKING:
    from epollkit.siege.scenario import Scenario

REDRAW_SECONDS = 0.25
LINE_SECONDS = 1.0
LONG_SECONDS = 60.0             # a longer run, and what comes after so long, ...
LONG_LINE_SECONDS = 10.0        # ... gets fewer lines
SPARKS = "▁▂▃▄▅▆▇█"
ASCII_SPARKS = "_.-=+*#@"
SPARK_ROWS = 40


def sparkline(values: Sequence[float | None], marks: str = SPARKS) -> str:
    """A character per value, from 0 to the largest; a blank where there was none."""
    top = max((value for value in values if value is not None), default=0.0) or 1.0
    return "".join(" " if value is None else marks[min(len(marks) - 1, int(value / top * len(marks)))]
                   for value in values)


class View:
    """Shows how a run goes. Use it as a context manager; `show` may be called as often as one likes."""

    def __init__(self, stream: TextIO, scenario: Scenario, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.scenario = scenario
        self.clock = clock
        self.console = Console(file=stream, highlight=False)
        self.live: Live | None = None
        self.redraw_due = 0.0
        self.line_due_s = 0.0               # on the run's own clock

    def __enter__(self) -> View:
        if self.stream.isatty() and not self.console.is_dumb_terminal:
            self.live = Live(Text(self.beginning()), console=self.console, auto_refresh=False, transient=True,
                             redirect_stdout=False, redirect_stderr=False)
            try:
                with interrupts_wait():         # a Live that has begun by half can't be stopped
                    self.live.start(refresh=True)
            except BaseException:               # without it, Ctrl-C would leave a terminal without a cursor
                self.live.stop()
                raise
        else:
            print(self.beginning(), file=self.stream, flush=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        if self.live is not None:
            self.live.stop()

    def beginning(self) -> str:
        warmup = f", warming up for {self.scenario.warmup:g} s" if self.scenario.warmup else ""
        return f"{self.name()}: {self.scenario.users} users{warmup}"

    def name(self) -> str:
        targets: Sequence[Any] = self.scenario.to_json()["targets"]     # where passwords are masked
        return str(targets[0]["url"]) + (f" and {len(targets) - 1} more" if len(targets) > 1 else "")

    def show(self, timeline: Timeline) -> None:
        """Show where it is now."""
        rows = timeline.whole_rows()
        if not rows:
            return
        if self.live is None:
            if rows[-1].t_s >= self.line_due_s:
                self.line_due_s = self.next_line(rows[-1].t_s)
                print(self.line(rows), file=self.stream, flush=True)
        elif self.clock() >= self.redraw_due:
            self.redraw_due = self.clock() + REDRAW_SECONDS
            self.live.update(self.picture(rows), refresh=True)

    def next_line(self, t_s: float) -> float:
        """The full second, or ten, that comes next."""
        step = LONG_LINE_SECONDS if max(self.scenario.seconds or 0.0, t_s) > LONG_SECONDS else LINE_SECONDS
        return (math.floor(t_s / step + 1e-9) + 1) * step

    def share(self, rows: Sequence[Row]) -> float:
        """How much of the run is over, 0 to 1: by time, or by requests, whatever comes first."""
        asked, shares = self.scenario, [0.0]
        if asked.seconds:
            shares.append(rows[-1].t_s / asked.seconds)
        number = asked.number or (asked.repetitions or 0) * asked.users
        if number:
            shares.append(sum(row.answered + row.failed for row in rows) / number)
        return min(1.0, max(shares))

    def line(self, rows: Sequence[Row]) -> str:
        """One plain line."""
        last = rows[-1]
        words = [f"{last.t_s:.0f} s", f"{self.share(rows):.0%}", f"{last.rate_per_s:,.0f} requests/s",
                 f"p99 {duration(last.p99_s)}", f"{sum(row.failed for row in rows):,} failed", f"{last.open:,} open"]
        if last.server is not None:
            words.append(f"server {last.server['cpu_percent']:.0f} % CPU")
        return ", ".join(words)

    def picture(self, rows: Sequence[Row]) -> Group:
        """The live picture."""
        last, failed = rows[-1], sum(row.failed for row in rows)
        marks = SPARKS if self.console.encoding.startswith("utf") else ASCII_SPARKS
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_row("", ProgressBar(total=1.0, completed=self.share(rows), width=min(60, self.console.width - 12)))
        table.add_row("time", f"{last.t_s:.0f} s" + (f" of {self.scenario.seconds:g}" if self.scenario.seconds else ""))
        table.add_row("rate", f"{last.rate_per_s:,.0f} requests/s, {sum(row.answered for row in rows):,} answered")
        table.add_row("latency", f"p50 {duration(last.p50_s)}, p99 {duration(last.p99_s)}, "
                                 f"longest {duration(last.max_s)}")
        table.add_row("p99", Text(sparkline([row.p99_s for row in rows[-SPARK_ROWS:]], marks), "cyan"))
        table.add_row("failed", Text(f"{failed:,}", "red" if failed else ""))
        fullest = max(last.opens.values(), default=0)
        table.add_row("open", f"{last.open:,} connections; {fullest:,} in one process, which may have "
                              f"{ports.fd_limit():,} descriptors")
        if last.server is not None:
            fds = last.server["fds"]
            table.add_row("server", f"{last.server['cpu_percent']:.0f} % CPU, RSS "
                                    f"{last.server['rss_bytes'] / MIB:.1f} MiB"
                                    + (f", {fds:,} descriptors" if fds is not None else ""))
        return Group(Text(self.beginning(), overflow="ellipsis", no_wrap=True), table)

"""Progress: a live table on a terminal, one plain line a second in a pipe."""
from __future__ import annotations

import time
from types import TracebackType
from typing import TextIO

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from epollkit.demo.report import SERVERS, Column

LINE_SECONDS = 1.0
ROOMY_COLUMNS = 90      # narrower terminals get tighter columns


def console_for(stream: TextIO) -> Console:
    """No colour and no control codes, whatever the environment says, unless the stream is a terminal."""
    if stream.isatty():
        return Console(file=stream, highlight=False)
    return Console(file=stream, highlight=False, force_terminal=False, color_system=None, width=100)


class View:
    """Shows how the columns fill. Use it as a context manager; `show` may be called as often as one likes."""

    def __init__(self, stream: TextIO, columns: dict[str, Column], seconds: float) -> None:
        self.stream = stream
        self.columns = columns
        self.seconds = seconds              # of one round
        self.console = console_for(stream)
        self.began: float | None = None     # the round under way
        self.live: Live | None = None
        self.line_due = 0.0

    def __enter__(self) -> View:
        if self.stream.isatty() and not self.console.is_dumb_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=True, redirect_stdout=False,
                             redirect_stderr=False)
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        if self.live is not None:
            self.live.stop()

    def begin(self) -> None:
        """A round's clock starts."""
        self.began = time.monotonic()

    def show(self, column: Column, changed: bool = False) -> None:
        """Show where this column, the one that moves, is now. changed: worth a line of its own."""
        if self.live is not None:
            self.live.update(self.table(), refresh=True)
        elif changed or time.monotonic() >= self.line_due:
            self.line_due = time.monotonic() + LINE_SECONDS
            print(self.line(column), file=self.stream, flush=True)

    def left(self, column: Column) -> str:
        if column.state == "running" and self.began is not None:
            return f"{max(0.0, self.seconds - (time.monotonic() - self.began)):.0f} s left"
        return column.state

    def line(self, column: Column) -> str:
        """One plain line."""
        return (f"{SERVERS[column.name]}: {self.left(column)}, {column.concurrent} open, "
                f"{column.connections} connections, {column.requests} requests, {column.stale_events} stale, "
                f"{column.wrong_deliveries} wrong, {column.killed} killed, {column.crossed} crossed")

    def table(self) -> Table:
        """The live table."""
        room = 1 if self.console.width >= ROOMY_COLUMNS else 0
        made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, room),
                     title="epollkit demo: one crowd, three servers; Ctrl-C ends it")
        for name in ("server", "connections", "requests", "stale", "wrong", "killed", "crossed"):
            made.add_column(name, justify="left" if name == "server" else "right", no_wrap=True)
        made.add_column("", no_wrap=True, min_width=8)
        for column in self.columns.values():
            counts = (column.connections, column.requests, column.stale_events)
            faults = (column.wrong_deliveries, column.killed, column.crossed)
            made.add_row(SERVERS[column.name], *(f"{count:,}" for count in counts),
                         *(f"[red]{count:,}[/red]" if count else "0" for count in faults), self.left(column))
        return made

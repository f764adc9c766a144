"""What a run found: a column of numbers per server, the verdict, and the table."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rich import box
from rich.table import Table

from epollkit.demo.children import Message

SERVERS = {"epollkit": "epollkit", "naive": "select.epoll", "instance_bits_1": "instance_bits=1"}
CONCURRENT_AT_LEAST = 1000      # what the demo promises; fewer would prove little
MIB = 1 << 20


@dataclass
class Column:
    """One server's numbers. From the server: connections to rss; from the crowd: killed and what follows."""

    name: str
    state: str = "waiting"                  # waiting, starting, filling, running, ending, done
    connections: int = 0                    # accepted, refused ones too
    requests: int = 0
    concurrent: int = 0
    concurrent_peak: int = 0
    stale_events: int = 0
    wrong_deliveries: int = 0
    wrong_kills: int = 0                    # as the server's own witness saw them
    batches: int = 0
    events: int = 0
    connections_per_second: float = 0.0
    requests_per_second: float = 0.0
    elapsed_seconds: float = 0.0
    cpu_seconds: float = 0.0
    rss_bytes: int = 0
    rss_peak_bytes: int = 0
    killed: int = 0
    crossed: int = 0
    half_closed: int = 0
    half_closed_unanswered: int = 0
    unanswered: int = 0
    bursts: int = 0
    answers: int = 0

    def take_server(self, report: Message) -> None:
        """The server process's latest report."""
        for name in SERVER_FIELDS:
            setattr(self, name, report.get(name, getattr(self, name)))

    def take_crowd(self, reports: list[Message]) -> None:
        """The latest reports of all client processes."""
        for name in CROWD_FIELDS:
            setattr(self, name, sum(report.get(name, 0) for report in reports))

    @property
    def cpu_microseconds_per_request(self) -> float:
        """Of the time that the rates cover: the crowd was complete, and nothing had ended."""
        return self.cpu_seconds / max(self.requests_per_second * self.elapsed_seconds, 1.0) * 1e6

    def as_json(self) -> Message:
        """Every number, with its unit in its name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in ("name", "state")}


CROWD_FIELDS = ("killed", "crossed", "half_closed", "half_closed_unanswered", "unanswered", "bursts", "answers")
SERVER_FIELDS = tuple(field.name for field in dataclasses.fields(Column)
                      if field.name not in ("name", "state", *CROWD_FIELDS))


def failures(column: Column) -> list[str]:
    """What epollkit's column would have to explain; empty when it passes."""
    found = []
    if column.stale_events == 0:
        found.append("it met no stale event, so nothing was tested")
    if column.concurrent_peak < CONCURRENT_AT_LEAST:
        found.append(f"only {column.concurrent_peak} connections were open at once, not {CONCURRENT_AT_LEAST}")
    for count, what in ((column.wrong_deliveries, "wrong deliveries"), (column.killed, "connections killed wrongly"),
                        (column.crossed, "answers that crossed"),
                        (column.half_closed_unanswered, "half-closed clients left unanswered"),
                        (column.unanswered, "requests never answered")):
        if count:
            found.append(f"{what}: {count}")
    return found


def verdict(columns: dict[str, Column]) -> str:
    """Two sentences in plain words."""
    epollkit, naive, one_bit = columns["epollkit"], columns["naive"], columns["instance_bits_1"]
    found = failures(epollkit)
    if found:
        first = f"epollkit FAILED: {'; '.join(found)}."
    else:
        first = (f"epollkit passed: it met {epollkit.stale_events:,} stale events, dropped every one, "
                 "killed no connection and crossed no answer.")
    return (f"{first} Under the same crowd, select.epoll made {naive.wrong_deliveries:,} wrong deliveries and killed "
            f"{naive.killed:,} connections, and one bit of generation made {one_bit.wrong_deliveries:,} and killed "
            f"{one_bit.killed:,}.")


def as_json(columns: dict[str, Column], settings: Message) -> Message:
    """The whole result, for `--json`."""
    found = failures(columns["epollkit"])
    return {**settings, "passed": not found, "failures": found, "verdict": verdict(columns),
            "servers": {name: column.as_json() for name, column in columns.items()}}


def rows(column: Column) -> list[tuple[str, str, bool]]:
    """(what, how much, whether it is a fault) for the final table."""
    def fault(what: str, count: int) -> tuple[str, str, bool]:
        return what, f"{count:,}", count > 0

    return [
        ("connections", f"{column.connections:,}", False),
        ("  at once, at most", f"{column.concurrent_peak:,}", False),
        ("  a second", f"{column.connections_per_second:,.0f}", False),
        ("requests", f"{column.requests:,}", False),
        ("stale events met", f"{column.stale_events:,}", False),
        fault("wrong deliveries", column.wrong_deliveries),
        fault("connections killed wrongly", column.killed),
        fault("answers that crossed", column.crossed),
        ("half-closed, unanswered", f"{column.half_closed_unanswered:,} of {column.half_closed:,}",
         column.half_closed_unanswered > 0),
        fault("requests never answered", column.unanswered),
        ("server CPU, seconds", f"{column.cpu_seconds:.2f}", False),
        ("  µs per request", f"{column.cpu_microseconds_per_request:.1f}", False),
        ("server RSS, MiB at end / peak", f"{column.rss_bytes / MIB:.1f} / {column.rss_peak_bytes / MIB:.1f}", False),
    ]


def table(columns: dict[str, Column]) -> Table:
    """The final table: a row per measure, a column per server."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column("")
    for name in columns:
        made.add_column(SERVERS[name], justify="right")
    for cells in zip(*(rows(column) for column in columns.values()), strict=True):
        made.add_row(cells[0][0], *(f"[red]{text}[/red]" if wrong else text for _, text, wrong in cells))
    return made

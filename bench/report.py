"""What came out: tables, JSON, a picture."""
from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import measure, record, stale
from .measure import VERDICT_PAIRS, Interval, Pair, Round
from .modes import AGAIN, CALLS_PER_REQUEST, IDLE_BYTES_AT_MOST, MODES, SAME, Comparison, Mode, Target
from .runner import Results
from .stream_servers import KINDS

LOOK = "a look"
IDLE_NAMES = {"http": "keep-alive connection", "echo": "stream"}


@dataclass(frozen=True)
class Side:
    """One side of a ratio, all its rounds together."""

    cpu_us: float               # per request, the median of the rounds
    user_us: float              # per request, pooled
    requests_per_second: float
    limited_by: str
    errors: int

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> Side:
        """Sum up."""
        limits = [each.limited_by for each in rounds]
        return cls(statistics.median(each.cpu_us_per_request for each in rounds), measure.user_us_per_request(rounds),
                   statistics.median(each.requests_per_second for each in rounds),
                   max(sorted(set(limits)), key=limits.count), sum(each.errors for each in rounds))


@dataclass(frozen=True)
class Finding:
    """One comparison under one load."""

    mode: Mode
    comparison: Comparison
    pairs: list[Pair]
    first: Side
    second: Side
    cpu: Interval
    user: Interval
    throughput: Interval
    same_cpu: Interval | None       # of the mode's A/A pairs
    same_user: Interval | None
    same_throughput: Interval | None

    @property
    def rounds(self) -> list[Round]:
        """Of both sides."""
        return [each for pair in self.pairs for each in pair]


@dataclass(frozen=True)
class Judged:
    """One target, what was found, and what follows."""

    target: str
    found: str
    same: str
    verdict: str
    by: str = ""        # `instructions`, or `a look`: fewer pairs than a verdict takes

    @property
    def words(self) -> str:
        """For the table."""
        if self.by == LOOK:
            return f"{self.verdict} ({LOOK})"
        return f"{self.verdict}, by {self.by}" if self.by else self.verdict


def findings(results: Results) -> list[Finding]:
    """What the pairs say, in the order of the modes."""
    made = []
    for mode in MODES:
        same = results.pairs.get((mode.name, AGAIN))
        for comparison in mode.comparisons:
            pairs = results.pairs.get((mode.name, comparison.label))
            if pairs:
                made.append(Finding(
                    mode, comparison, pairs, Side.of([pair[0] for pair in pairs]), Side.of([pair[1] for pair in pairs]),
                    measure.cpu_ratio(pairs), measure.user_ratio(pairs), measure.throughput_ratio(pairs),
                    same and measure.cpu_ratio(same), same and measure.user_ratio(same),
                    same and measure.throughput_ratio(same)))
    return made


def span(interval: Interval | None) -> str:
    """An interval for a table."""
    return "none" if interval is None else f"{interval.low:.3f}..{interval.high:.3f}"


def counted_ratio(results: Results, mode: Mode, comparison: Comparison) -> Interval | None:
    """Instructions per request of a comparison's two sides, if both were counted: the ratio of the least, and how far
    other choices of runs are from it.
    """
    counted = {each.server: each.per_request for each in results.instructions if each.mode == mode.name}
    first, second = counted.get(comparison.first.server), counted.get(comparison.second.server)
    if not first or not second or comparison.first.idle or comparison.second.idle:
        return None
    return Interval(min(first) / min(second), min(first) / max(second), max(first) / min(second))


def counted_more(results: Results, mode: Mode, comparison: Comparison) -> Interval | None:
    """The same for their difference: so many more the first one takes."""
    counted = {each.server: each.per_request for each in results.instructions if each.mode == mode.name}
    first, second = counted.get(comparison.first.server), counted.get(comparison.second.server)
    if not first or not second:
        return None
    return Interval(min(first) - min(second), min(first) - max(second), max(first) - min(second))


def judge_counted(found: Interval, at_most: float) -> str:
    """Of counts nothing is in doubt but what the runs differ by."""
    return "met" if found.high <= at_most else "missed" if found.low > at_most else "undecided"


def target_name(mode: Mode, comparison: Comparison, target: Target) -> str:
    """A target in words."""
    quantity = {"user": f"user time per {mode.unit}", "cpu": f"CPU per {mode.unit}"}.get(target.quantity, "throughput")
    more = "" if target.more_instructions is None else f", or {target.more_instructions:g} instructions more"
    return f"{mode.title}: {quantity} {target.sign} {target.limit:g} x {comparison.label}{more}"


def judge_clock(finding: Finding, target: Target) -> tuple[Interval, Interval | None, str]:
    """By time alone: the ratio, what two identical servers differ by, and the verdict."""
    if target.quantity == "throughput":
        ratio, same = finding.throughput, finding.same_throughput
        return ratio, same, measure.least_verdict(ratio, target.limit, same)
    user = target.quantity == "user"
    ratio, same = (finding.user, finding.same_user) if user else (finding.cpu, finding.same_cpu)
    return ratio, same, measure.verdict(ratio, target.limit, same)


def judge_target(finding: Finding, target: Target, counted: Interval | None, more: Interval | None) -> Judged:
    """One of a comparison's targets. If the clock can't decide about user time, instructions do. They can't about CPU
    time, as the kernel's are not counted, unless the target says so.
    """
    user = target.quantity == "user"
    (ratio, same, verdict), remark = judge_clock(finding, target), ""
    by = "" if len(finding.pairs) >= VERDICT_PAIRS else LOOK
    pooled = measure.pooled_seconds(finding.pairs)
    if user and pooled < measure.POOLED_TICKS_SECONDS:
        verdict, remark = "undecided", f", {pooled:.0f} s of ticks are too few"
    found = f"{ratio.median:.3f} ({span(ratio)}{remark})"
    if counted is not None:
        found += f"; user-space instructions {counted.median:.3f}"
        if user and verdict == "undecided":
            verdict, by = judge_counted(counted, target.limit), "instructions"
    if target.more_instructions is not None and more is not None:
        found += f"; {more.median:+.0f} instructions"
        by_count = judge_counted(more, target.more_instructions)
        if verdict != "met" and by_count == "met":
            verdict, by = "met", "instructions"
        elif verdict == "missed" and by_count == "undecided":
            verdict = "undecided"
    return Judged(target_name(finding.mode, finding.comparison, target), found, span(same), verdict, by)


def judge_ratios(results: Results) -> list[Judged]:
    """The targets of comparisons, as far as they were timed, or at least counted."""
    timed = {(finding.mode.name, finding.comparison.label): finding for finding in findings(results)}
    judged = []
    for mode in MODES:
        for comparison in mode.comparisons:
            finding = timed.get((mode.name, comparison.label))
            counted, more = counted_ratio(results, mode, comparison), counted_more(results, mode, comparison)
            for target in comparison.targets:
                if finding is not None:
                    judged.append(judge_target(finding, target, counted, more))
                elif counted is not None and target.quantity == "user":
                    judged.append(Judged(target_name(mode, comparison, target), f"not timed; user-space instructions "
                                         f"{counted.median:.3f}", "", judge_counted(counted, target.limit),
                                         "instructions"))
                elif more is not None and target.more_instructions is not None:
                    verdict = judge_counted(more, target.more_instructions)
                    judged.append(Judged(target_name(mode, comparison, target), f"not timed; {more.median:+.0f} "
                                         "instructions", "", "undecided" if verdict == "missed" else verdict,
                                         "instructions"))
    return judged


def judge(results: Results) -> list[Judged]:
    """All targets that this run has something to say about."""
    judged = judge_ratios(results)
    for memory in results.memory:
        if memory.server == "epollkit":
            at_most = IDLE_BYTES_AT_MOST[memory.work]
            judged.append(Judged(
                f"resident memory per idle {IDLE_NAMES[memory.work]} <= {at_most} B",
                ", ".join(f"{each:.0f} B" for each in memory.bytes_each), "",
                measure.absolute_verdict(memory.bytes_each, at_most)))
    for counted in results.system_calls:
        if counted.server == "epollkit":
            judged.append(Judged(
                f"system calls per keep-alive request: {CALLS_PER_REQUEST}, and one epoll_wait per batch",
                f"{counted.others_per_request:.3f} (connections' included), and 1 per "
                f"{counted.requests / max(counted.waits, 1):.1f} requests", "", counted.verdict))
    if (check := results.stale_check) is not None:
        judged.append(Judged(
            f"the stale check itself <= {stale.INSTRUCTIONS_AT_MOST} instructions per event",
            f"{check.cost:.1f} ({check.checked:,.1f} with it, {check.unchecked:,.1f} without)", "", check.verdict))
    if (recorded := results.record) is not None:
        judged.append(Judged(
            f"recording a latency <= {record.INSTRUCTIONS_AT_MOST} instructions", f"{recorded.per_latency:.1f}", "",
            recorded.verdict))
    return judged


def cost(side: Side) -> str:
    """µs per request and its parts."""
    return f"{side.cpu_us:.2f} ({side.user_us:.2f} + {side.cpu_us - side.user_us:.2f})"


def limits(finding: Finding) -> str:
    """What limited both sides."""
    names = dict(zip(("server", "generator"), finding.mode.load.sides, strict=True))
    first, second = (names.get(side.limited_by, side.limited_by) for side in (finding.first, finding.second))
    return first if first == second else f"{first} / {second}"


def ratio_rows(made: Sequence[Finding]) -> list[list[str]]:
    """The first table, with its header."""
    rows = [["load", "epollkit against", "epollkit: µs (user + system)", "the other: µs", "ratio", "95 %", "A/A 95 %",
             "requests/s", "limited by", "steal", "others"]]
    for finding in made:
        steal = statistics.mean(each.steal_share for each in finding.rounds)
        others = statistics.mean(each.others_share for each in finding.rounds)
        rates = f"{finding.first.requests_per_second:,.0f} : {finding.second.requests_per_second:,.0f}"
        rows.append([finding.mode.title, finding.comparison.label, cost(finding.first), cost(finding.second),
                     f"{finding.cpu.median:.3f}", span(finding.cpu), span(finding.same_cpu), rates, limits(finding),
                     f"{steal:.1%}", f"{others:.1%}"])
    return rows


def memory_rows(results: Results) -> list[list[str]]:
    """Resident memory of each server."""
    rows = [["server", "of what", "how many", "resident bytes each"]]
    rows += [[memory.server, IDLE_NAMES[memory.work], f"{memory.connections:,}",
              ", ".join(f"{each:.0f}" for each in memory.bytes_each)] for memory in results.memory]
    return rows


def system_call_rows(results: Results) -> list[list[str]]:
    """System calls of each server."""
    rows = [["server", "requests", "calls per request without epoll_wait", "epoll_wait per request", "most often"]]
    for counted in results.system_calls:
        most = sorted(counted.calls.items(), key=lambda item: -item[1])[:4]
        rows.append([counted.server, f"{counted.requests:,}", f"{counted.others_per_request:.3f}",
                     f"{counted.waits / counted.requests:.3f}",
                     ", ".join(f"{name} {calls / counted.requests:.3f}" for name, calls in most)])
    return rows


def instruction_rows(results: Results) -> list[list[str]]:
    """Instructions of each server under each load."""
    rows = [["load", "server", "requests", "user-space instructions per request", "epollkit against it"]]
    own = {each.mode: each.least for each in results.instructions if each.server == "epollkit"}
    for counted in results.instructions:
        title = next(mode.title for mode in MODES if mode.name == counted.mode)
        against = f"{own[counted.mode] / counted.least:.3f}" if counted.mode in own else ""
        rows.append([title, counted.server, f"{counted.requests:,}",
                     ", ".join(f"{each:,.0f}" for each in counted.per_request), against])
    return rows


def target_rows(results: Results) -> list[list[str]]:
    """The last table."""
    return [["target", "found", "A/A 95 %", "verdict"],
            *([each.target, each.found, each.same, each.words] for each in judge(results))]


def print_table(console: Console, title: str, rows: Sequence[Sequence[str]]) -> None:
    """A table of rich's on a terminal, plain columns in a file or a pipe."""
    if len(rows) < 2:
        return
    if console.is_terminal:
        table = Table(title=title, title_justify="left", show_lines=False)
        for name in rows[0]:
            table.add_column(name, overflow="fold")
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    console.file.write("\n".join(["", title, *lines, ""]))


def print_report(console: Console, results: Results, about: dict[str, object]) -> None:
    """Everything, for people."""
    made = findings(results)
    pairs = min((len(finding.pairs) for finding in made), default=0)        # fewer than asked for, if interrupted
    look = f" (a look: a verdict takes {VERDICT_PAIRS} pairs)" if pairs < VERDICT_PAIRS else ""
    print_table(console, f"CPU per request, message or connection, {pairs} pairs of {about['seconds']} s{look}",
                ratio_rows(made))
    print_table(console, "Resident memory per idle connection", memory_rows(results))
    print_table(console, "System calls under keep-alive load, by strace", system_call_rows(results))
    print_table(console, "Instructions per request, message or connection, by callgrind", instruction_rows(results))
    print_table(console, "Targets", target_rows(results))
    lines = [f"Left out: {name}: {reason}" for name, reason in results.left_out.items()]
    for finding in made:
        if finding.first.errors or finding.second.errors:
            lines.append(f"Errors: {finding.mode.title}, {finding.comparison.label}: {finding.first.errors} at "
                         f"epollkit, {finding.second.errors} at the other")
    lines.append(", ".join(f"{name} {value}" for name, value in about.items()))
    console.file.write("\n" + "\n".join(lines) + "\n")


def plain(value: object) -> object:
    """A value as JSON can say it: what is not a number, or infinite, is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def as_json(results: Results, about: dict[str, object]) -> str:
    """Everything, for programs; the rounds too, so that other figures can be made of them."""
    document = {
        "about": about,
        "left_out": results.left_out,
        "comparisons": [{
            "mode": finding.mode.name, "against": finding.comparison.label,
            "epollkit": asdict(finding.first), "other": asdict(finding.second),
            "cpu_ratio": asdict(finding.cpu), "user_ratio": asdict(finding.user),
            "throughput_ratio": asdict(finding.throughput),
            "same_cpu_ratio": finding.same_cpu and asdict(finding.same_cpu),
            "same_user_ratio": finding.same_user and asdict(finding.same_user),
            "same_throughput_ratio": finding.same_throughput and asdict(finding.same_throughput),
            "rounds": [[asdict(each) for each in pair] for pair in finding.pairs],
        } for finding in findings(results)],
        "memory": [asdict(memory) for memory in results.memory],
        "system_calls": [asdict(counted) for counted in results.system_calls],
        "instructions": [asdict(counted) for counted in results.instructions],
        "stale_check": results.stale_check and {**asdict(results.stale_check), "cost": results.stale_check.cost},
        "record": results.record and asdict(results.record),
        "targets": [asdict(each) for each in judge(results)],
    }
    return json.dumps(plain(document), indent=1, ensure_ascii=False) + "\n"


def draw(results: Results, path: Path) -> None:
    """Bars of user and system time per request, one panel per load; epollkit's own is from its A/A pairs."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: dict[str, dict[str, Side]] = {}
    for finding in findings(results):
        if finding.comparison.label == AGAIN:
            panels.setdefault(finding.mode.title, {})["epollkit"] = Side.of([one for one, _ in finding.pairs])
            continue
        panel = panels.setdefault(finding.mode.title, {})
        panel[finding.comparison.label] = finding.second
        if (first := finding.comparison.first) != SAME.first:
            title = KINDS[finding.mode.load.work][first.server].title
            panel[f"{title}, {first.idle:,} idle" if first.idle else title] = finding.first
    if not panels:
        return
    figure, rows = pyplot.subplots(len(panels), 1, figsize=(8, 1.7 * len(panels) + 0.6), squeeze=False)
    for (title, sides), axes in zip(panels.items(), rows[:, 0], strict=True):
        names = list(sides)[::-1]
        user = [sides[name].user_us for name in names]
        system = [sides[name].cpu_us - sides[name].user_us for name in names]
        axes.barh(names, user, color="#1f4e79", label="user")
        axes.barh(names, system, left=user, color="#9dc3e6", label="system")
        axes.set_title(title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*rows[0, 0].get_legend_handles_labels(), loc="upper right", ncols=2, frameon=False)
    rows[-1, 0].set_xlabel("CPU per request, message or connection, µs")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)

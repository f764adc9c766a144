"""`--html`: a report as one page that needs no network, no script and no program but a browser.

Everything that came from outside, URLs above all, is text by the time it is in the page; should that ever fail, the
page's own Content-Security-Policy lets nothing run and nothing load.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from epollkit.siege.charts import Chart, figures, fitting, linear, nines, text, time_axis
from epollkit.siege.summary import MIB, duration, floored, value_of, warnings

if TYPE_CHECKING:
    from epollkit.siege.report import Report

MOST_TARGETS = 20       # are shown; the JSON has all of them
MOST_KINDS = 30         # of errors and of statuses

STYLE = """
:root{color-scheme:light dark;--back:#f6f7f9;--card:#fff;--ink:#1b2430;--soft:#5b6675;--rule:#dde2e8;--good:#1a7f37;
--bad:#c0262d;--warn:#8a5a00;--warnback:#fff4d6;--s0:#1f5fd0;--s1:#b45309;--s2:#a3195b;--bar:#c9d8f5;--badbar:#f3c6c8}
@media(prefers-color-scheme:dark){:root{--back:#12161c;--card:#1b212a;--ink:#e6eaf0;--soft:#9aa6b5;--rule:#333d4a;
--good:#4fc26b;--bad:#ff7b7f;--warn:#f2c14e;--warnback:#3a2f12;--s0:#7aa8ff;--s1:#f2a65a;--s2:#f07ab0;--bar:#2c4470;
--badbar:#6b2d31}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1080px;padding:1.5rem 1rem 3rem;background:var(--back);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.45rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .6rem}p{margin:.3rem 0}
.soft{color:var(--soft)}.target{overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:.6rem;margin:1rem 0}
.tiles div,figure,.card{background:var(--card);border:1px solid var(--rule);border-radius:8px}
.tiles div{padding:.6rem .8rem}.tiles dt{color:var(--soft);font-size:.85rem}.tiles dd{margin:0;font-size:1.3rem;
font-weight:600;font-variant-numeric:tabular-nums;white-space:nowrap}dl{margin:0}
.bad{color:var(--bad)}.good{color:var(--good)}
.warning{background:var(--warnback);color:var(--warn);border-radius:8px;padding:.5rem .8rem;margin:.5rem 0}
.grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:.8rem}
figure{margin:0;padding:.7rem .8rem}figcaption{font-weight:600}svg{display:block;width:100%;height:auto}
svg text{font:12px system-ui,sans-serif;fill:var(--soft)}svg .grid{stroke:var(--rule);fill:none}
svg .line{fill:none;stroke-width:2;stroke-linecap:round;stroke-linejoin:round}
svg .s0{stroke:var(--s0)}svg .s1{stroke:var(--s1);stroke-dasharray:7 4}svg .s2{stroke:var(--s2);stroke-dasharray:1.5 4}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1rem;margin:.2rem 0 0;padding:0;font-size:.85rem}
.key{display:inline-block;width:1.6rem;margin-right:.4rem;vertical-align:middle;border-top:3px solid}
.key.s0{border-color:var(--s0)}.key.s1{border-color:var(--s1);border-top-style:dashed}
.key.s2{border-color:var(--s2);border-top-style:dotted}
.card{padding:.3rem .8rem .6rem;overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem;
font-variant-numeric:tabular-nums}caption{text-align:left;font-weight:600;padding:.4rem 0}
th,td{text-align:right;padding:.22rem .5rem;border-top:1px solid var(--rule);white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0}th{font-weight:500;color:var(--soft)}
th[scope=row]{white-space:pre}
.words td{text-align:left;white-space:normal;overflow-wrap:anywhere}
meter{width:100%;min-width:4rem}.bar{display:block;height:.7rem;min-width:2px;background:var(--bar);border-radius:3px}
.bar.wrong{background:var(--badbar)}td.wide{width:45%}
details{margin-top:.8rem}summary{cursor:pointer}
@media(max-width:600px){body{padding:1rem .6rem 2rem}svg text{font-size:15px}
.tiles{grid-template-columns:repeat(2,1fr)}}
"""

HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title><style>{style}</style></head>
<body>
"""


def page(report: Report) -> str:
    """The whole page, to be written as UTF-8."""
    targets = report.scenario["targets"]
    title = f"Siege of {targets[0]['url']}" + (f" and {len(targets) - 1} more" if len(targets) > 1 else "")
    parts = [HEAD.format(title=text(title), style=STYLE), f'<header><h1 class="target">{text(title)}</h1>',
             f'<p class="soft">{text(sentence(report))}</p></header><main>',
             *(f'<p class="warning" role="note"><strong>Warning:</strong> {text(words)}.</p>'
               for words in warnings(report)),
             tiles(report), assertions(report),
             "<h2>Latency and rate</h2>", f'<div class="grid2">{figures(charts(report))}</div>',
             "<h2>Answers and errors</h2>", f'<div class="grid2">{statuses(report)}{errors(report)}</div>',
             "<h2>Figures</h2>", f'<div class="grid2">{latencies(report)}{counts(report)}</div>',
             intervals(report), spectrum(report),
             "<h2>What was asked for</h2>", scenario(report), "</main></body></html>\n"]
    return "".join(parts)


def sentence(report: Report) -> str:
    asked = report.scenario
    how = f"{asked['rate']:g} requests a second, open loop" if asked["rate"] is not None else "closed loop"
    users = f"{asked['users']} user{'s' if asked['users'] != 1 else ''}"
    return f"{users}, {how}, {report.elapsed_s:.1f} s; epollkit {report.version}"


# -- tables ------------------------------------------------------------------------------------------------------------

def table(caption: str, rows: Iterable[Sequence[object]], heads: Sequence[str] = (), kind: str = "") -> str:
    """Cells are text, unless they are `Html`. The first cell of a row is its head."""
    body = "".join(f'<tr><th scope="row">{text(first)}</th>'
                   + "".join(f"<td{cell.attributes}>{cell.code}</td>" if isinstance(cell, Html)
                             else f"<td>{text(cell)}</td>" for cell in cells) + "</tr>"
                   for first, *cells in rows)
    top = "".join(f'<th scope="col">{text(head)}</th>' for head in heads)
    return (f'<div class="card"><table{f" class={kind}" if kind else ""}><caption>{text(caption)}</caption>'
            + (f"<thead><tr>{top}</tr></thead>" if top else "") + f"<tbody>{body}</tbody></table></div>")


class Html:
    """A cell that is code already."""

    def __init__(self, code: str, attributes: str = "") -> None:
        self.code = code
        self.attributes = attributes


def tiles(report: Report) -> str:
    def tile(name: str, value: str, kind: str = "") -> str:
        return f"<div><dt>{text(name)}</dt><dd{f' class={kind}' if kind else ''}>{text(value)}</dd></div>"

    lost = report.failed + report.unanswered
    spread = report.latency_s
    return "".join((
        '<dl class="tiles">', tile("Transactions", f"{report.transactions:,}"),
        tile("Rate", f"{report.transaction_rate_per_s:,.0f} /s"), tile("p50", duration(spread["p50"])),
        tile("p99", duration(spread["p99"])), tile("Longest", duration(spread["max"])),
        tile("Availability", f"{floored(report.availability_percent)} %"),
        tile("Failed or unanswered", f"{lost:,}", "bad" if lost else ""),
        tile("Data", f"{report.data_transferred_bytes / MIB:,.1f} MiB"), "</dl>"))


def assertions(report: Report) -> str:
    if not report.assertions:
        return ""
    rows = [(assertion["text"], value_of(assertion),
             Html('<strong class="good">held</strong>' if assertion["held"] else '<strong class="bad">failed</strong>'))
            for assertion in report.assertions]
    return table("Assertions", rows, ("asserted", "was", ""))


def bars(caption: str, rows: Sequence[tuple[str, int, bool]], none: str) -> str:
    """(name, count, whether it is a fault), the most frequent first."""
    if not rows:
        return f'<div class="card"><p><strong>{text(caption)}</strong></p><p class="soft">{text(none)}</p></div>'
    shown, rest = rows[:MOST_KINDS], rows[MOST_KINDS:]
    if rest:
        shown = [*shown, (f"{len(rest)} more kinds", sum(count for _, count, _ in rest), True)]
    most = max(count for _, count, _ in shown) or 1
    return table(caption, [
        (name, f"{count:,}",
         Html(f'<span class="bar{" wrong" * wrong}" style="width:{100 * count / most:.1f}%"></span>', ' class="wide"'))
        for name, count, wrong in shown])


def statuses(report: Report) -> str:
    found = sorted(report.statuses.items(), key=lambda item: (-item[1], item[0]))
    return bars("Statuses", [(status, count, status >= "4") for status, count in found], "No answer came.")


def errors(report: Report) -> str:
    rows = [(f"{error['phase']}: {error['error']}", error["count"], True) for error in report.errors]
    rows += [(name, count, True) for name, count in (("unanswered at the end", report.unanswered),) if count]
    return bars("Errors", rows, "None.")


def latencies(report: Report) -> str:
    columns = [("request", report.latency_s), ("connect", report.connect_s)]
    if report.lag_s is not None:
        columns.append(("lag", report.lag_s))
    return table("Latency", [(row, *(duration(spread[row]) if row in spread else "" for _, spread in columns))
                             for row in report.latency_s], ("", *(name for name, _ in columns)))


def counts(report: Report) -> str:
    own, links = report.generator, report.connections
    each = own["cpu_us_per_request"]
    rows: list[tuple[str, str]] = [
        ("Successful", f"{report.successful:,}"), ("Failed", f"{report.failed:,}"),
        ("  of these not as expected", f"{report.unexpected:,}"), ("  of these timed out", f"{report.timed_out:,}"),
        ("Unanswered at the end", f"{report.unanswered:,}"), ("Broken off on purpose", f"{report.broken_off:,}"),
        ("Concurrency", f"{report.concurrency:,.1f}"),
        ("Connections open, on average", f"{report.effective_concurrency:,.1f}"),
        ("  at most", f"{links['open_peak']:,}"), ("Connections established", f"{links['established']:,}"),
        ("  failed", f"{links['failed']:,}"), ("  made again", f"{links['reconnects']:,}"),
        ("Throughput", f"{report.throughput_bytes_per_s / MIB:,.2f} MiB/s"),
        ("Sent, received", f"{report.bytes_sent / MIB:,.1f}, {report.bytes_received / MIB:,.1f} MiB"),
        ("Generator's CPU", f"{own['cpu_percent']:.0f} % in {own['processes']} process"
                            + ("es" if own["processes"] != 1 else "")),
        ("  per request", f"{each:.1f} µs" if each is not None else "-"),
        ("Generator's descriptors", f"{own['fds_peak']:,} of {own['fd_limit']:,}"),
    ]
    if own["ports_available"]:
        rows.append(("Local ports", f"{own['ports_used']:,} of {own['ports_available']:,}"))
    return table("Counts", rows)


def intervals(report: Report) -> str:
    """The curves as numbers."""
    heads = ["until", "answered", "a second", "failed", "p50", "p99", "longest", "open"]
    watched = report.server is not None
    rows = [[f"{row['t_s']:.2f} s", f"{row['answered']:,}", f"{row['rate_per_s']:,.0f}", f"{row['failed']:,}",
             *(duration(row[name]) for name in ("p50_s", "p99_s", "max_s")), f"{row['open']:,}",
             *((known(row["server_cpu_percent"], "{:.0f} %"), known(row["server_rss_bytes"], "{:.1f} MiB", MIB),
                known(row["server_fds"], "{:,.0f}")) if watched else ())] for row in report.intervals]
    heads += ["server CPU", "RSS", "fds"] if watched else []
    return f"<details><summary>Every interval</summary>{table('Intervals', rows, heads)}</details>" if rows else ""


def known(value: float | None, shape: str, unit: int = 1) -> str:
    return shape.format(value / unit) if value is not None else "-"


def spectrum(report: Report) -> str:
    rows = [(f"{percent:.10g} %", duration(seconds), f"{count:,.0f}") for percent, seconds, count in report.spectrum]
    heads = ("of the requests", "took at most", "requests")
    return f"<details><summary>Every percentile</summary>{table('Percentiles', rows, heads)}</details>" if rows else ""


def scenario(report: Report) -> str:
    """What is left at None is left out."""
    asked = {name: value for name, value in report.scenario.items() if name != "targets"}
    targets = report.scenario["targets"]
    rows = [(target["method"], target["url"]) for target in targets[:MOST_TARGETS]]
    if len(targets) > MOST_TARGETS:
        rows.append(("…", f"{len(targets) - MOST_TARGETS} more"))
    rows += [(name.replace("_", " "), words(value)) for name, value in asked.items() if value not in (None, [], ())]
    return table("Scenario", rows, kind="words")


def words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(": ".join(map(str, item)) if isinstance(item, (list, tuple)) else str(item) for item in value)
    return str(value)


# -- charts ------------------------------------------------------------------------------------------------------------

def charts(report: Report) -> list[Chart]:
    """Those for which there is something to show."""
    found = []
    if report.spectrum:
        points = [(100.0 / max(100.0 - percent, 1e-9), seconds) for percent, seconds, _ in report.spectrum[:-1]]
        found.append(Chart(
            "Latency by percentile", f"Half of the requests took at most {duration(report.latency_s['p50'])}, 99 % at "
            f"most {duration(report.latency_s['p99'])}, the longest {duration(report.latency_s['max'])}.",
            nines(points[-1][0]), fitting([seconds for _, seconds in points], round_duration), [("", points)]))
    return found + (over_time(report) if report.intervals else [])


def over_time(report: Report) -> list[Chart]:
    rows = report.intervals
    x = time_axis(rows[-1]["t_s"])
    latency = {name: course(rows, key) for name, key in (("p50", "p50_s"), ("p99", "p99_s"), ("longest", "max_s"))}
    seen = [value for points in latency.values() for _, value in points if value is not None]
    rate = course(rows, "rate_per_s")
    failed = [(row["t_s"], row["failed"] / max(row["t_s"] - before, 1e-9))
              for row, before in zip(rows, [0.0, *(row["t_s"] for row in rows)], strict=False)]
    rates = [("answered", rate), *([("failed", failed)] if any(count for _, count in failed) else [])]
    made = [
        Chart("Latency over time", "The latency of each interval's requests; a gap means that none was answered.",
              x, fitting(seen, round_duration), list(latency.items())),
        Chart("Requests a second", f"On average {report.transaction_rate_per_s:,.0f} were answered in a second.",
              x, linear(max(value for _, points in rates for _, value in points if value is not None), short), rates),
        linear_chart("Open connections", f"At most {report.connections['open_peak']:,}.", x, course(rows, "open"))]
    if report.server is None:
        return made
    for title, key, unit in (("Server CPU, % of a core", "server_cpu_percent", 1),
                             ("Server RSS, MiB", "server_rss_bytes", MIB), ("Server descriptors", "server_fds", 1)):
        points = course(rows, key, unit)
        known_values = [value for _, value in points if value is not None]
        if known_values:
            made.append(linear_chart(title, f"From {known_values[0]:,.1f} to {known_values[-1]:,.1f}, at most "
                                            f"{max(known_values):,.1f}.", x, points))
    return made


def linear_chart(title: str, about: str, x: Any, points: list[tuple[float, float | None]]) -> Chart:
    return Chart(title, about, x, linear(max((value for _, value in points if value is not None), default=0.0), short),
                 [("", points)])


def course(rows: Sequence[dict[str, Any]], key: str, unit: int = 1) -> list[tuple[float, float | None]]:
    return [(row["t_s"], row[key] / unit if row[key] is not None else None) for row in rows]


def round_duration(seconds: float) -> str:
    """For a tick, which is a round number."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 0.9995:
            return f"{seconds * factor:g} {unit}"
    return f"{seconds * 1e6:g} us" if seconds else "0"


def short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"

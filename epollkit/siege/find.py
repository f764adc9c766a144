"""`--find 'p99<5ms'`: the highest rate that holds it, by doubling until one does not, and halving the gap."""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from epollkit.errors import UsageError
from epollkit.siege.assertions import Assertion
from epollkit.siege.report import Report
from epollkit.siege.run import Siege
from epollkit.siege.scenario import Scenario
from epollkit.siege.tally import Timeline

START_RATE = 100.0
LOWEST_RATE = 1.0
HIGHEST_RATE = 1e7
CLOSE_ENOUGH = 1.05             # a rate that held and one that did not, so much higher at most: the search is over
MOST_CONFIRMATIONS = 8          # rates that have to hold twice, each 5 % lower than the one before, which did not
PROBE_SECONDS = 5.0
PROBE_WARMUP_SECONDS = 0.5
MOST_NOT_SENT = 0.01            # of what was planned; beyond it the generator was the limit
MOST_FAILED = 0.01              # of the requests; beyond it a rate was not served, however fast the rest was
LAG_SECONDS = 1.0               # how late requests may be sent, if the assertion names no time


@dataclass(frozen=True)
class Probe:
    """One rate, tried once."""

    rate_per_s: float
    answered_per_s: float
    value: float | None             # of the assertion; seconds, percent or a number, as its text says
    held: bool
    why: str                        # not; empty if it held
    confirms: bool = False          # tried once more

    def line(self) -> str:
        """For people."""
        verdict = ("held again" if self.confirms else "held") if self.held else f"did not hold: {self.why}"
        return f"{self.rate_per_s:12,.1f} requests/s: {self.answered_per_s:,.1f} answered a second; {verdict}"


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    assertion: str
    rate_per_s: float | None        # the highest that held, twice; None: none did
    why: str                        # there is none, or nothing higher was tried; else empty
    probes: tuple[Probe, ...]

    def line(self) -> str:
        if self.rate_per_s is None:
            return f"No rate was found that holds {self.assertion}: {self.why}."
        return (f"{self.rate_per_s:,.1f} requests/s is the highest rate that holds {self.assertion}"
                + (f" ({self.why})" if self.why else ""))

    def as_json(self) -> dict[str, Any]:
        return {"assertion": self.assertion, "rate_per_s": self.rate_per_s, "why": self.why,
                "probes": [dataclasses.asdict(probe) for probe in self.probes]}


def search(assertion: str, probe: Callable[[float], Probe], start: float = START_RATE,
           on_probe: Callable[[Probe], object] | None = None) -> Found:
    """The highest rate for which `probe(rate)` holds, to within 5 %. It ends, whatever the probes say.

    Args:
        start: the first rate to try.
        on_probe: called with each probe.
    """
    probes: list[Probe] = []

    def attempt(rate: float, confirms: bool = False) -> bool:
        made = dataclasses.replace(probe(rate), confirms=confirms)
        probes.append(made)
        if on_probe is not None:
            on_probe(made)
        return made.held

    def found(rate: float | None, why: str = "") -> Found:
        return Found(assertion, rate, why, tuple(probes))

    rate = start
    if attempt(rate):
        held, failed = rate, math.inf
        while failed == math.inf and held < HIGHEST_RATE:
            rate = min(held * 2, HIGHEST_RATE)
            held, failed = (rate, failed) if attempt(rate) else (held, rate)
    else:
        held, failed = 0.0, rate
        while not held and failed > LOWEST_RATE:
            rate = max(failed / 2, LOWEST_RATE)
            held, failed = (rate, failed) if attempt(rate) else (held, rate)
        if not held:
            return found(None, f"not even {failed:g} a second does")
    while failed != math.inf and failed / held > CLOSE_ENOUGH:
        rate = math.sqrt(held * failed)
        held, failed = (rate, failed) if attempt(rate) else (held, rate)
    tried = True
    for _ in range(MOST_CONFIRMATIONS):
        if (tried or attempt(held)) and attempt(held, confirms=True):
            return found(held, "" if failed != math.inf else "nothing higher was tried")
        held, tried = held / CLOSE_ENOUGH, False
    return found(None, "those that held once did not hold again, so the machine is too busy with something else")


def judged(report: Report, assertion: Assertion, rate: float) -> Probe:
    """What a run says of its rate: it holds if the assertion does, all was sent in time, and hardly anything failed.
    What asked nothing shows nothing."""
    verdict = assertion.judge(report)
    lag_limit_s = assertion.limit if assertion.unit == "s" else LAG_SECONDS
    lag_s = (report.lag_s or {}).get("p99") or 0.0
    broken = [other["text"] for other in report.assertions if not other["held"]]
    why = ""
    if report.planned - report.begun > MOST_NOT_SENT * report.planned:
        why = f"{report.planned - report.begun} of {report.planned} planned requests could not be sent"
    elif lag_s > lag_limit_s:
        why = f"requests were sent late, by up to {lag_s * 1e3:.3f} ms (p99)"
    elif report.failed + report.unanswered > MOST_FAILED * report.requests:
        why = f"{report.failed + report.unanswered} of {report.requests} requests failed"
    elif not verdict["held"]:
        why = "nothing was answered" if verdict["value"] is None else f"it was {told(verdict['value'], assertion)}"
    elif broken:
        why = f"{', '.join(broken)} failed"
    elif not report.begun:          # it was too short for the rate
        why = "nothing was asked"
    return Probe(rate, report.transaction_rate_per_s, verdict["value"], not why, why)


def told(value: float, assertion: Assertion) -> str:
    return f"{value * 1e3:.3f} ms" if assertion.unit == "s" else f"{value:g} {assertion.unit}".strip()


def find(text: str, scenario: Scenario, on_probe: Callable[[Probe], object] | None = None,
         on_siege: Callable[[Siege], object] | None = None,
         on_progress: Callable[[Timeline], object] | None = None) -> tuple[Found, Report]:
    """Search the highest rate at which a scenario holds an assertion. Its `seconds` is a probe's length, its `rate` the
    first to be tried.

    Args:
        on_probe: called with each probe.
        on_siege: called with each `Siege` before it is played, for whoever wants to stop it.
        on_progress: as for `run`.

    Returns what was found, and the report of the last probe. UsageError: this can't be searched for. KeyboardInterrupt:
    a siege was stopped, so the search is over.
    """
    assertion = Assertion.parse(text)
    for name in ("number", "repetitions", "delay"):
        if getattr(scenario, name):
            raise UsageError(f"find tries one rate after the other, each for some seconds, so {name} has no meaning")
    if assertion.metric == "rate":
        raise UsageError("find searches the highest rate that holds something else, like p99<5ms")
    reports: list[Report] = []

    def probe(rate: float) -> Probe:
        siege = Siege(dataclasses.replace(scenario, rate=rate), on_progress)
        if on_siege is not None:
            on_siege(siege)
        reports[:] = [siege.play()]
        if siege.stopping:
            raise KeyboardInterrupt
        return judged(reports[0], assertion, rate)

    return search(text, probe, scenario.rate or START_RATE, on_probe), reports[0]

"""`--assert 'p99<5ms'`: what a report must hold, in one line of text."""
from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from epollkit.errors import UsageError

if TYPE_CHECKING:
    from epollkit.siege.report import Report

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "<": operator.lt, ">": operator.gt}
UNITS = {"us": -6, "µs": -6, "ms": -3, "s": 0}      # powers of ten
PERCENTILE = re.compile(r"p([0-9]{1,2}(?:\.[0-9]{1,6})?|100)")
SHAPE = re.compile(r"\s*([a-z_]+|p[0-9.]+)\s*(<=|>=|==|<|>)\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([a-zµ%]*)\s*")
DURATIONS = ("max", "mean")
COUNTS = ("failed", "errors", "unanswered", "timed_out")
EXAMPLES = "p99<5ms, max<1s, mean<=800us, rate>10000, availability>=99.9, failed==0 and errors<1%"


@dataclass(frozen=True)
class Assertion:
    """One of them, understood. `limit` is in seconds, in percent, or a plain number, as `unit` says."""

    text: str
    metric: str                 # p99, max, rate, ...
    relation: str               # a key of OPERATORS
    limit: float
    unit: str                   # "s", "%" or ""

    @classmethod
    def parse(cls, text: str) -> Assertion:
        """UsageError: nobody can say what it means."""
        found = SHAPE.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise UsageError(f"an assertion is written like {EXAMPLES}, not {text!r}")
        metric, relation, number, unit = found.groups()
        if metric in DURATIONS or PERCENTILE.fullmatch(metric):
            if unit not in UNITS:
                raise UsageError(f"{text!r}: {metric} is a time and needs a unit, us, ms or s: {metric}{relation}5ms")
            return cls(text.strip(), metric, relation, float(f"{number}e{UNITS[unit]}"), "s")
        allowed = {"rate": ("",), "availability": ("", "%"), "errors": ("", "%")}.get(metric, ("",))
        if metric not in ("rate", "availability", *COUNTS):
            raise UsageError(f"{text!r}: there is no {metric!r}; write {EXAMPLES}")
        if unit not in allowed:
            raise UsageError(f"{text!r}: {metric} takes {'a percentage' if '%' in allowed else 'a plain number'}, "
                             f"without {unit!r}")
        return cls(text.strip(), metric, relation, float(number), "%" if metric == "availability" else unit)

    def value(self, report: Report) -> float | None:
        """What the run has for it; None when nothing happened that it could hold of."""
        if self.unit == "s":
            return self.duration(report)
        if self.metric == "rate":
            return report.transaction_rate_per_s
        if self.metric == "availability":
            return report.availability_percent if report.requests else None
        count = report.failed + report.unanswered if self.metric == "errors" else int(getattr(report, self.metric))
        if self.unit == "%":
            return 100.0 * count / report.requests if report.requests else None
        return count

    def duration(self, report: Report) -> float | None:
        if not report.transactions:
            return None
        return report.latency_s[self.metric] if self.metric in DURATIONS else report.percentile(float(self.metric[1:]))

    def judge(self, report: Report) -> dict[str, Any]:
        """{"text", "value", "held"}. What has no value did not hold: a run that answered nothing proves nothing."""
        value = self.value(report)
        return {"text": self.text, "value": value,
                "held": value is not None and OPERATORS[self.relation](value, self.limit)}

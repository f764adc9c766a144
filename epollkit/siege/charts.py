"""Line charts as SVG, for a page that has nothing but itself: no script, no font, no library.

Colours and dashes are classes (`s0`, `s1`, `s2`), which the page's style sheet knows. Every chart has a title and a
description, which a screen reader says in its place.
"""
from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 12, 40
TICKS = 5               # about so many on an axis
LOG_FROM = 20.0         # a curve that spans more than this factor gets a logarithmic axis
LONGEST_TEXT = 2000     # a URL may be anything

Points = Sequence[tuple[float, float | None]]      # None: nothing was measured there, so there is a gap
Label = Callable[[float], str]


def text(value: object) -> str:
    """Anything, as text that can't be anything else in a page: escaped, bounded, and free of what UTF-8 has not."""
    whole = str(value)
    whole = whole if len(whole) <= LONGEST_TEXT else whole[:LONGEST_TEXT] + "…"
    return html.escape(whole.encode("utf-8", "replace").decode(), quote=True)


@dataclass(frozen=True)
class Axis:
    """From low to high; a logarithmic one from more than 0."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """0 at its low end, 1 at its high end; beyond them it stays there."""
        if self.logarithmic:
            value, low, high = math.log(max(value, self.low)), math.log(self.low), math.log(self.high)
        else:
            low, high = self.low, self.high
        return min(1.0, max(0.0, (value - low) / (high - low)))


def step_for(span: float) -> float:
    """1, 2 or 5 times a power of ten: so many ticks fit."""
    rough = span / TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    return next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)


def linear(high: float, label: Label) -> Axis:
    """From 0 to at least `high`, at a round number."""
    high = high if high > 0 else 1.0
    step = step_for(high)
    steps = max(1, math.ceil(high / step - 1e-9))
    return Axis(0.0, step * steps, [(step * index, label(step * index)) for index in range(steps + 1)])


def time_axis(seconds: float) -> Axis:
    """It ends where the run does."""
    seconds = seconds if seconds > 0 else 1.0
    step = step_for(seconds)
    ticks = [step * index for index in range(int(seconds / step + 1e-9) + 1)]
    return Axis(0.0, seconds, [(tick, f"{tick:g} s") for tick in ticks])


def fitting(values: Sequence[float], label: Label) -> Axis:
    """Logarithmic if that is needed to see all of it."""
    positive = [value for value in values if value > 0]
    if not positive or max(positive) / min(positive) <= LOG_FROM:
        return linear(max(values, default=0.0), label)
    powers = range(math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive))) + 1)
    rounds = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    low = max((value for value in rounds if value <= min(positive)), default=rounds[0])
    high = min((value for value in rounds if value >= max(positive)), default=rounds[-1])
    shown = [value for value in rounds if low <= value <= high]
    if len(shown) > 2 * TICKS - 2:
        shown = [value for value in shown if value in rounds[::3]]
    shown = shown[::math.ceil(len(shown) / (2 * TICKS - 2))]
    return Axis(low, high, [(value, label(value)) for value in shown], logarithmic=True)


def nines(most: float) -> Axis:
    """For percentiles: 1 / (1 - p), so that 90 %, 99 % and 99.9 % are equally far apart. `most`: its high end."""
    high = max(most, 10.0)
    powers = range(int(math.log10(high) + 1e-9) + 1)
    shown = powers[::math.ceil(len(powers) / (TICKS + 1))]
    return Axis(1.0, high, [(10.0 ** power, f"{100 - 100 / 10 ** power:.10g}%") for power in shown], logarithmic=True)


@dataclass(frozen=True)
class Chart:
    title: str
    about: str                                      # what one sees, for who can't
    x: Axis
    y: Axis
    series: Sequence[tuple[str, Points]]

    def across(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * self.x.place(value)

    def up(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * self.y.place(value)

    def path(self, points: Points) -> str:
        """A line that is broken where there is nothing; a point alone is a line of no length, with round ends."""
        parts, pen_down = [], False
        for x, y in points:
            if y is not None:
                place = f"{self.across(x):.1f} {self.up(y):.1f}"
                parts.append(f"L{place}" if pen_down else f"M{place}h0")
            pen_down = y is not None
        return "".join(parts)

    def grid(self) -> str:
        parts = []
        for value, name in self.y.ticks:
            y = self.up(value)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
                         f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text(name)}</text>')
        for value, name in self.x.ticks:
            x = self.across(value)
            anchor = "end" if x > WIDTH - RIGHT - 18 else "middle"
            parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/><text x="{x:.1f}" '
                         f'y="{HEIGHT - BOTTOM + 22}" text-anchor="{anchor}">{text(name)}</text>')
        return "".join(parts)

    def svg(self, number: int) -> str:
        lines = "".join(f'<path class="line s{index}" d="{self.path(points)}"/>'
                        for index, (_, points) in enumerate(self.series) if points)
        return (f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="t{number} d{number}">'
                f'<title id="t{number}">{text(self.title)}</title><desc id="d{number}">{text(self.about)}</desc>'
                f"{self.grid()}{lines}</svg>")


def figures(charts: Sequence[Chart]) -> str:
    """All of them, each with its title and, where it has several lines, a legend."""
    parts = []
    for number, chart in enumerate(charts):
        legend = "".join(f'<li><span class="key s{index}"></span>{text(name)}</li>'
                         for index, (name, _) in enumerate(chart.series)) if len(chart.series) > 1 else ""
        parts.append(f"<figure><figcaption>{text(chart.title)}</figcaption>{chart.svg(number)}"
                     + (f"<ul class=legend>{legend}</ul>" if legend else "") + "</figure>")
    return "".join(parts)

"""Soak: what the other scenarios do, one after the other, again and again, on one server, for as long as --seconds
says: an hour and more is what it is made for.

What must hold: what must hold in each of them: nobody is refused, answered wrongly or not at all, and whoever is slow
on purpose is ended. The probe's p99 stays below 1 s. Nothing grows: the server is looked at every second, and a line
through what it holds at the quietest moment of each cycle must not rise, with 99 % confidence, by more than 1 MiB an
hour and 2 MiB in all, or by more than 1 descriptor an hour and 2 in all. Afterwards descriptors, threads, CPU and
memory (24 MiB) are back.
"""
from __future__ import annotations

from stress.options import Options
from stress.play import Found, Plan, play
from stress.slope import Slope, slope
from stress.watch import MIB

TURNS: tuple[dict[str, int], ...] = (
    {"churn": 32}, {"reset": 64}, {"half_close": 32}, {"abandon": 32, "silent": 32}, {"slowloris": 100},
    {"slow_body": 50, "stalled_body": 50}, {"slow_reader": 10, "stuck_reader": 10}, {"flood": 8}, {"idle": 1000},
    {"churn": 8, "reset": 8, "half_close": 8, "abandon": 8, "slowloris": 20, "flood": 1}, {})
TURN_SECONDS = 5.0
FEWEST_CYCLES = 10          # a slope needs them
HOUR = 3600.0
RSS_RATE, RSS_NOISE = 1 / HOUR, 2.0     # MiB a second; MiB
FDS_RATE, FDS_NOISE = 1 / HOUR, 2.0


def cycles(seconds: float) -> int:
    return max(FEWEST_CYCLES, int(seconds / (TURN_SECONDS * len(TURNS))))


def run(options: Options) -> list[str]:
    plan = Plan("soak", TURNS, growth=24 * MIB, cycles=cycles(options.seconds), expects={
        "churn": "answered", "half_close": "answered", "flood": "answered"})
    return play(options, plan, nothing_grows)


def nothing_grows(options: Options, found: Found) -> list[str]:
    """The slopes, for the table, and what is wrong with them."""
    failed = []
    block_seconds = options.seconds / cycles(options.seconds)
    for what, unit, values, rate, noise in (
            ("memory", "MiB", [(one.seconds, one.rss_bytes / MIB) for one in found.samples], RSS_RATE, RSS_NOISE),
            ("descriptors", "", [(one.seconds, float(one.fds)) for one in found.samples], FDS_RATE, FDS_NOISE)):
        risen = slope(values, block_seconds)
        if risen is None:
            failed += [] if found.before is None else [f"too few samples for the slope of {what}"]
            continue
        found.notes[f"{what}, {unit or 'number'} an hour"] = in_words(risen)
        if risen.grows(rate, noise):
            failed.append(f"{what} grows by {risen.rate * HOUR:,.1f} {unit} an hour, surely by "
                          f"{risen.low * HOUR:,.1f}".replace("  ", " "))
    return failed


def in_words(risen: Slope) -> str:
    return f"{risen.rate * HOUR:+,.2f} ({risen.low * HOUR:+,.2f} .. {risen.high * HOUR:+,.2f})"

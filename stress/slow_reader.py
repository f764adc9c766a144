"""Slow reader: 10 clients read a megabyte slowly, 10 ask for 64 megabytes and read nothing.

What must hold, for as long as --seconds says: those who read get all of it; those who don't are ended by the deadline
for writing, and cost no memory: it grows by 32 MiB at most; the probe's p99 stays below 1 s. Afterwards descriptors,
threads, CPU and memory (16 MiB) are back.
"""
from __future__ import annotations

from stress.options import Options
from stress.play import Plan, play
from stress.watch import MIB

PLAN = Plan("slow_reader", ({"slow_reader": 10, "stuck_reader": 10},), growth=16 * MIB, peak_growth=32 * MIB,
            expects={"slow_reader": "answered", "stuck_reader": "ended"})


def run(options: Options) -> list[str]:
    return play(options, PLAN)

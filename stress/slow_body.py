"""Slow body: 50 clients send a body byte by byte, 50 stall in the middle of it.

What must hold, for as long as --seconds says: those who go on are answered, those who stall are ended by the deadline;
memory grows by 16 MiB at most; the probe's p99 stays below 1 s. Afterwards descriptors, threads, CPU and memory (8 MiB)
are back.
"""
from __future__ import annotations

from stress.options import Options
from stress.play import Plan, play
from stress.watch import MIB

PLAN = Plan("slow_body", ({"slow_body": 50, "stalled_body": 50},), peak_growth=16 * MIB,
            expects={"slow_body": "answered", "stalled_body": "ended"})


def run(options: Options) -> list[str]:
    return play(options, PLAN)

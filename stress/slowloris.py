"""Slowloris: 200 clients send a head that never ends, a line at a time, ten lines in each deadline.

What must hold, for as long as --seconds says: each is ended by the deadline for a whole head, however busily it sends;
memory grows by 16 MiB at most; the probe's p99 stays below 1 s. Afterwards descriptors, threads, CPU and memory (8 MiB)
are back.
"""
from __future__ import annotations

from stress.options import Options
from stress.play import Plan, play
from stress.watch import MIB

PLAN = Plan("slowloris", ({"slowloris": 200},), peak_growth=16 * MIB, expects={"slowloris": "ended"})


def run(options: Options) -> list[str]:
    return play(options, PLAN)

"""Pipeline flood: 2 clients send a thousand requests in one piece, again and again; 6, users of load engines
(stress.volume), begin with a thousand and replace each that is answered.

What must hold, for as long as --seconds says: all answers come, each in its place; nobody else is starved: the probe's
p99 stays below 1 s; memory grows by 32 MiB at most. Afterwards descriptors, threads, CPU and memory (8 MiB) are back.
"""
from __future__ import annotations

from stress.options import Options
from stress.play import Plan, play
from stress.watch import MIB

PLAN = Plan("pipeline_flood", ({"flood": 8},), peak_growth=32 * MIB, expects={"flood": "answered"})


def run(options: Options) -> list[str]:
    return play(options, PLAN)

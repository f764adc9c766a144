"""RST storm: 64 clients, users of load engines (stress.volume), reset at once, within their head, with their request in
flight, or within a large answer.

What must hold, for as long as --seconds says: the server lives; whoever does not reset gets on: the probe is answered,
p99 below 1 s. Afterwards descriptors, threads, CPU and memory (16 MiB) are back: a reset ends all that was begun.
"""
from __future__ import annotations

from stress.options import Options
from stress.play import Plan, play
from stress.watch import MIB

PLAN = Plan("rst_storm", ({"reset": 64},), growth=16 * MIB, expects={"reset": "connected"})


def run(options: Options) -> list[str]:
    return play(options, PLAN)

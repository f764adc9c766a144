"""Idle crowd: 15,000 clients ask once and stay.

What must hold, for as long as --seconds says once all are there: an idle connection costs little memory (4 KiB each,
beside 8 MiB for all) and nobody's time: the probe's p99 stays below 1 s. None is ended, and when the time is up each
asks again and is answered. Afterwards descriptors, threads, CPU and memory (24 MiB) are back. `--connections N` for
another number, at most 19,000: no process opens more than 20,000 files.
"""
from __future__ import annotations

from stress.options import Options
from stress.play import Found, Plan, play
from stress.watch import MIB

CONNECTIONS = 15_000
PLAN = Plan("idle_crowd", ({"idle": CONNECTIONS},), growth=24 * MIB, per_connection=4096, gathers=True,
            expects={"idle": "answered"})


def run(options: Options) -> list[str]:
    return play(options, PLAN, everybody_was_there)


def everybody_was_there(options: Options, found: Found) -> list[str]:
    wanted = options.connections or CONNECTIONS
    return [f"only {found.open_peak:,} of {wanted:,} were there at once"] if found.open_peak < wanted else []

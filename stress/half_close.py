"""Half-close: 32 clients ask, shut down their side at once (FIN), and read what comes. 8 of them ask up to four times
and read to the end; 24 are users of load engines (stress.volume), ask once and leave when they have their answer.

What must hold, for as long as --seconds says: a FIN behind a request is no reason not to answer it: every answer comes,
and then the server's end. The probe's p99 stays below 1 s. Afterwards descriptors, threads, CPU and memory (8 MiB) are
back.
"""
from __future__ import annotations

from stress.options import Options
from stress.play import Plan, play

PLAN = Plan("half_close", ({"half_close": 32},), expects={"half_close": "answered"})


def run(options: Options) -> list[str]:
    return play(options, PLAN)

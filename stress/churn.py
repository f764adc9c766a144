"""Churn: connect, ask once, close; as many a second as 32 of them can do, for as long as --seconds says. 24 of them
are users of load engines (stress.volume).

What must hold: every request is answered, with its own answer; nobody is refused. The probe's p99 stays below 1 s.
Afterwards descriptors, threads, CPU and memory (8 MiB) are back.
"""
from __future__ import annotations

from stress.options import Options
from stress.play import Plan, play

PLAN = Plan("churn", ({"churn": 32},), expects={"churn": "answered"})


def run(options: Options) -> list[str]:
    return play(options, PLAN)

"""Abandon: 32 clients connect and vanish, at once or with their request in flight; 32 connect and never say a word.

What must hold, for as long as --seconds says: a connection that says nothing is ended by the server's deadline, and
none that vanished is kept. The probe's p99 stays below 1 s. Afterwards descriptors, threads, CPU and memory (8 MiB) are
back.
"""
from __future__ import annotations

from stress.options import Options
from stress.play import Plan, play

PLAN = Plan("abandon", ({"abandon": 32, "silent": 32},), expects={"abandon": "connected", "silent": "ended"})


def run(options: Options) -> list[str]:
    return play(options, PLAN)

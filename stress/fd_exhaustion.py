"""Descriptors run out: the server may have 64, and 200 clients want one. Half of them send half a head and stay, half
ask once and stay idle.

What must hold, for as long as --seconds says: the server lives; who asked is answered; half a head is ended by its
deadline, so there is room again, and the probe gets on: its p99 stays below 5 s, some deadlines. Idle connections may
be ended for others. Afterwards descriptors, threads, CPU and memory (8 MiB) are back. Another's server (--url) has the
limit that it was started with; start it with a small one.
"""
from __future__ import annotations

from stress.options import Options
from stress.play import Plan, play

PLAN = Plan("fd_exhaustion", ({"squatter": 100, "sleeper": 100},), probe_limit=5.0, fd_limit=64,
            expects={"squatter": "ended", "sleeper": "answered"})


def run(options: Options) -> list[str]:
    return play(options, PLAN)

"""A faulty network: 32 customers ask again and again through a proxy that stalls, cuts, resets, trickles, delays and
half-closes their connections (`stress.faulty`).

What must hold, for as long as --seconds says: every answer that arrives whole is the right one; the probe, which has a
better network, is answered, p99 below 1 s. Afterwards descriptors, threads, CPU and memory (16 MiB) are back. Every
fault has struck at least once.
"""
from __future__ import annotations

from stress.faulty import FAULTS
from stress.options import Options
from stress.play import Found, Plan, play
from stress.watch import MIB

PLAN = Plan("faulty_network", ({"customer": 32},), growth=16 * MIB, faults=FAULTS, expects={"customer": "answered"})


def run(options: Options) -> list[str]:
    return play(options, PLAN, every_fault_struck)


def every_fault_struck(options: Options, found: Found) -> list[str]:
    return [f"the network's fault {fault} never struck" for fault in FAULTS if not found.proxy.get(fault)]

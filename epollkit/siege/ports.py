"""How much of this machine a run may take, and took: local ports, and descriptors.

A connection holds its local port until it is over and, when this side closed first, for the minute of TIME_WAIT that
follows. A port serves one connection per source and destination, so more source addresses mean more connections.
"""
from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path

SYSTEM = Path("/proc/sys/net/ipv4")
SOCKETS = Path("/proc/net/sockstat")


def local_ports() -> int:
    """Ports that the kernel gives out by itself (ip_local_port_range, less ip_local_reserved_ports; IPv6 has the
    same). 0: it does not say."""
    try:
        first, last = (int(text) for text in (SYSTEM / "ip_local_port_range").read_text().split())
        reserved = (SYSTEM / "ip_local_reserved_ports").read_text().strip()
    except (OSError, ValueError):
        return 0
    taken = 0
    for part in filter(None, reserved.split(",")):
        low, _, high = part.partition("-")
        taken += max(0, min(int(high or low), last) - max(int(low), first) + 1)
    return last - first + 1 - taken


def in_time_wait() -> int:
    """TCP connections of this machine, or container, that are over and still hold their port."""
    try:
        for line in SOCKETS.read_text().splitlines():
            kind, *words = line.split()
            if kind == "TCP:":
                return int(words[words.index("tw") + 1])
    except (OSError, ValueError):
        pass
    return 0


def fd_limit() -> int:
    """How many descriptors a process of ours may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class HeadRoom:
    """Looks at the machine when it is made, before a run, and says afterwards what the run took.

    Args:
        sources: the addresses that connections come from; none: the one that the kernel chooses.
        destinations: how many different addresses and ports the connections go to; 0: unix sockets only, which
            have no ports.
    """

    def __init__(self, sources: Sequence[str] = (), destinations: int = 1) -> None:
        self.available = local_ports() * max(1, len(sources)) * destinations
        self.waiting_before = in_time_wait()

    def used(self, open_peak: int) -> int:
        """Ports that the run held, as far as one can tell: its open connections at most, and what is in TIME_WAIT now
        and was not before, whoever left it there."""
        return open_peak + max(0, in_time_wait() - self.waiting_before) if self.available else 0

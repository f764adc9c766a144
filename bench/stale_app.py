"""What the stale check costs is counted while this runs: so many turns, in each of which every one of many eventfds has
an edge for a handler that does nothing.

    python bench/stale_app.py FDS TURNS

Prints where epollkit was imported from and how many events it delivered: exactly the edges, whatever was compiled out.
"""
import os
import sys
from pathlib import Path

import epollkit


def main(fds: int, turns: int) -> None:
    """Make edges, deliver them, count."""
    delivered = 0

    def handler(token, events):
        nonlocal delivered
        delivered += 1

    loop = epollkit.Loop()
    numbers = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(fds)]
    for number in numbers:
        loop.register(number, epollkit.IN, handler)
    for _ in range(turns):
        for number in numbers:
            os.eventfd_write(number, 1)         # never read: each write is an edge
        loop.turn(0)
    print(delivered, Path(epollkit.__file__).parent)
    loop.close()
    for number in numbers:
        os.close(number)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

"""`python -m stress [NAME] [--seconds N] [--seed S]`. Exit status: 0 all held, 1 one did not or could not run."""
from __future__ import annotations

import argparse
import importlib
import random
import sys

from epollkit import EpollkitError
from epollkit.cli.demo import duration, seed
from stress import SCENARIOS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m stress", description="Hurt a server, and see what holds.")
    parser.add_argument("name", nargs="?", choices=SCENARIOS, metavar="NAME",
                        help=f"one of {', '.join(SCENARIOS)} (default: all)")
    parser.add_argument("--seconds", type=duration, default=10.0, metavar="DURATION", help="for each (default: 10)")
    parser.add_argument("--seed", type=seed, default=None, metavar="N", help="of the crowd's choices")
    options = parser.parse_args()
    chosen = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    failed = 0
    for name in (options.name,) if options.name else SCENARIOS:
        try:
            found = importlib.import_module(f"stress.{name}").run(options.seconds, chosen)
        except (EpollkitError, OSError) as error:
            found = [f"it could not run: {error}"]
        failed += bool(found)
        print(f"{name} (seed {chosen}): {'; '.join(found) or 'held'}")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

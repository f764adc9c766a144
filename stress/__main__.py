"""`python -m stress [NAME]`. Exit status: 0 all held, 1 one did not or could not run."""
from __future__ import annotations

import argparse
import importlib
import random
import sys
from pathlib import Path

if not __package__:     # `python stress`: the source tree would hide the installed package
    sys.path[:] = [*sys.path[1:], str(Path(__file__).resolve().parent.parent)]

from epollkit import EpollkitError
from epollkit.cli.demo import seed
from epollkit.cli.serve import seconds as duration
from epollkit.demo.runner import raise_fd_limit
from stress import SCENARIOS
from stress.options import Options

MOST_CONNECTIONS = 19_000
OWN_SERVERS = ("stale_storm", "siege_crash")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stress", description="Hurt a server, and see what holds.")
    parser.add_argument("name", nargs="?", choices=SCENARIOS, metavar="NAME",
                        help=f"one of {', '.join(SCENARIOS)} (default: all)")
    parser.add_argument("--seconds", type=duration, default=10.0, metavar="DURATION", help="for each (default: 10)")
    parser.add_argument("--seed", type=seed, default=None, metavar="N", help="of the crowd's choices")
    parser.add_argument("--url", metavar="http://HOST:PORT/PATH",
                        help="the server to hurt (default: ours, started for the purpose)")
    parser.add_argument("--pid", type=int, metavar="N", help="of the server at --url (default: who listens there)")
    parser.add_argument("--timeout", type=duration, default=None, metavar="DURATION",
                        help="the deadlines of the server at --url; without it nobody judges whether slow clients are "
                             "ended")
    parser.add_argument("--connections", type=int, metavar="N",
                        help="of the crowd (default: the scenario's own number)")
    parser.add_argument("--probe-p99", type=duration, default=None, metavar="DURATION", dest="probe_limit",
                        help="limit for the probe's p99 (default: the scenario's own)")
    parser.add_argument("--patience", type=duration, default=10.0, metavar="DURATION",
                        help="for answers that are owed at the end, and for the way back to the baseline (default: 10)")
    options = parser.parse_args(arguments)
    if options.connections is not None and not 1 <= options.connections <= MOST_CONNECTIONS:
        parser.error(f"--connections is 1 to {MOST_CONNECTIONS:,}: the crowd is one process, with 20,000 files at most")
    return options


def run(name: str, options: Options) -> list[str]:
    """One scenario. Returns what did not hold."""
    if options.url is not None and name in OWN_SERVERS:
        return ["it brings its own servers, so --url is not for it"]
    try:
        found: list[str] = importlib.import_module(f"stress.{name}").run(options)
    except (EpollkitError, OSError) as error:
        return [f"it could not run: {error}"]
    return found


def main() -> int:
    arguments = parse()
    names: tuple[str, ...] = (arguments.name,) if arguments.name else SCENARIOS
    if arguments.url is not None and arguments.name is None:
        names = tuple(name for name in SCENARIOS if name not in OWN_SERVERS)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("name", "seed")}
    options = Options(**settings, seed=random.SystemRandom().randrange(2**32) if arguments.seed is None
                      else arguments.seed)
    raise_fd_limit()
    verdicts = []
    for name in names:
        found = run(name, options)
        verdicts.append((found, f"{name} (seed {options.seed}): {'; '.join(found) or 'held'}"))
        print(verdicts[-1][1], flush=True)
    if len(verdicts) > 1:
        print("", *(line for _, line in verdicts), sep="\n")
    return 1 if any(found for found, _ in verdicts) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

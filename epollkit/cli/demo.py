"""`epollkit demo`: three servers under the same hostile crowd, and which of them kept its connections apart."""
from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
from types import FrameType
from typing import Any

LONGEST_SECONDS = 3600.0
SHORTEST_SECONDS = 1.5
LARGEST_SEED = 2**32 - 1

DESCRIPTION = """\
A server and a crowd of more than a thousand connections that churn, reset, half-close, pipeline, and order the
server to close others that have an event queued while newcomers take their place. Three servers in turn, under the
same crowd: epollkit; a server on select.epoll, keyed by fd; and epollkit with instance_bits=1, nginx's scheme.
"""
EPILOG = """\
Exit status: 0 epollkit met stale events and nothing went wrong; 1 something did, or the demo could not run;
2 wrong usage; 130 Ctrl-C.
"""


def duration(text: str) -> float:
    from epollkit.cli.serve import seconds

    value = seconds(text)
    if not SHORTEST_SECONDS <= value <= LONGEST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} is not between {SHORTEST_SECONDS:g} seconds and one hour")
    return value


def seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= LARGEST_SEED):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {LARGEST_SEED}")
    return int(text)


def add(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo", help="epollkit and two twins under a hostile crowd", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--seconds", type=duration, default=15.0, metavar="DURATION",
                        help="for all three servers together, a third each (default: 15)")
    parser.add_argument("--seed", type=seed, default=None, metavar="N",
                        help="of the crowd's choices (default: a new one, which is printed)")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object; progress goes to stderr")
    parser.set_defaults(run=run)


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends the demo as Ctrl-C does."""


def on_terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated


def run(options: argparse.Namespace) -> int:
    before = signal.signal(signal.SIGTERM, on_terminate)
    try:
        return play(options)
    except BrokenPipeError:
        # Whoever read us is gone, so there is nobody to tell; nor may the interpreter's last flush complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as interrupt:
        print("epollkit demo: stopped before its end; no process is left", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)


def play(options: argparse.Namespace) -> int:
    # Here, not above: rich and psutil take their time, and the other commands need not wait for them.
    from epollkit.demo import report
    from epollkit.demo.runner import Runner
    from epollkit.demo.view import View, console_for

    chosen = options.seed if options.seed is not None else random.SystemRandom().randrange(LARGEST_SEED + 1)
    columns = {name: report.Column(name) for name in report.SERVERS}
    with View(sys.stderr if options.json else sys.stdout, columns, options.seconds / len(columns)) as view:
        Runner(columns, options.seconds, chosen, view).play()
    if options.json:
        print(json.dumps(report.as_json(columns, {"seconds": options.seconds, "seed": chosen}), indent=2), flush=True)
    else:
        console = console_for(sys.stdout)
        console.print(report.table(columns))
        console.print(report.verdict(columns), soft_wrap=not console.is_terminal)
        console.print(f"The crowd's seed was {chosen}.")
        sys.stdout.flush()
    return 1 if report.failures(columns["epollkit"]) else 0

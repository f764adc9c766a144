"""`python -m bench`: measure epollkit beside the C floor, nginx and uvloop, and say which targets it meets."""
from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from . import idle, modes, report, runner
from .measure import VERDICT_PAIRS
from .modes import MODE_NAMES, QUICK_MODES
from .servers import BenchError, Epollkit, Workshop, find_program

PAIRS = VERDICT_PAIRS
QUICK_PAIRS, QUICK_SECONDS = 5, 0.4
FEWEST_SECONDS, MOST_SECONDS = 0.2, 60.0
MOST_PAIRS = 1000


def pairs_number(text: str) -> int:
    """An argument: how many pairs."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_PAIRS:
        raise argparse.ArgumentTypeError(f"a number of pairs from 1 to {MOST_PAIRS}, not {text!r}")
    return int(text)


def round_seconds(text: str) -> float:
    """An argument: how long a round is."""
    with contextlib.suppress(ValueError):
        if FEWEST_SECONDS <= float(text) <= MOST_SECONDS:
            return float(text)
    raise argparse.ArgumentTypeError(f"{FEWEST_SECONDS:g} to {MOST_SECONDS:g} seconds, not {text!r}")


def mode_names(text: str) -> list[str]:
    """An argument: modes, separated by commas."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in MODE_NAMES]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"some of {', '.join(MODE_NAMES)}; not {', '.join(unknown) or text!r}")
    return names


def file_to_write(text: str) -> Path:
    """An argument: a file in a directory that exists."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} can't be written")
    return path


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; what is not given depends on --quick."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true",
                        help=f"a look in a minute: {QUICK_PAIRS} pairs of {QUICK_SECONDS} s, {', '.join(QUICK_MODES)}")
    parser.add_argument("--pairs", type=pairs_number, help=f"of each comparison ({PAIRS}; 5 are a look)")
    parser.add_argument("--seconds", type=round_seconds,
                        help=f"for which each server is asked ({modes.SECONDS:g}, or {modes.USER_SECONDS:g} where a "
                             "target is about user time)")
    parser.add_argument("--modes", type=mode_names, metavar="NAME,...", help=f"some of {', '.join(MODE_NAMES)} (all)")
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="write everything that was found")
    parser.add_argument("--plot", type=file_to_write, metavar="FILE",
                        help="draw a picture, .svg or .png (pip install -e .[plot])")
    options = parser.parse_args(words)
    options.pairs = options.pairs or (QUICK_PAIRS if options.quick else PAIRS)
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else None)
    options.modes = options.modes or (QUICK_MODES if options.quick else MODE_NAMES)
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install -e .[plot]")
    return options


def two_cores() -> tuple[int, int]:
    """The server's core and the generator's."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchError("two cores are needed: one for the server, one for the load")
    return cores[0], cores[-1]


def first_line(command: Sequence[str]) -> str:
    """What a program says first, for instance its version."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return ((done.stdout + done.stderr).strip().splitlines() or [""])[0].strip()


def about(options: argparse.Namespace, workshop: Workshop, left_out: dict[str, str]) -> dict[str, object]:
    """What was measured, on what, and how."""
    with Epollkit(workshop) as server:
        build = server.build
    if build != "release":
        raise BenchError(f"the {build} build of epollkit is installed; its figures would mean nothing")
    seconds = options.seconds or f"{modes.SECONDS:g} or (for user time) {modes.USER_SECONDS:g}"
    found: dict[str, object] = {
        "pairs": options.pairs, "seconds": seconds, "epollkit": importlib.metadata.version("epollkit"),
        "python": platform.python_version(), "linux": platform.release(), "cores": os.cpu_count(),
        "wrk": first_line(["wrk", "-v"]).split("[")[0].removeprefix("wrk ").strip()}
    if "nginx" not in left_out:
        found["nginx"] = first_line([find_program("nginx") or "nginx", "-v"]).rpartition("/")[2]
    if "uvloop" not in left_out:
        found.update({name: importlib.metadata.version(name) for name in ("uvloop", "httptools")})
    return found


def measure_all(options: argparse.Namespace, console: Console) -> int:
    """Measure, and tell what was found, also when it was interrupted."""
    if find_program("wrk") is None:
        raise BenchError("wrk makes the load, and is not installed (Debian: apt-get install wrk)")
    results = runner.Results(left_out=runner.leave_out(options.modes, idle.raise_fd_limit()))
    minutes = runner.estimate_seconds(options.modes, results.left_out, options.pairs, options.seconds) / 60
    for name, reason in results.left_out.items():
        console.print(f"left out: {name}: {reason}", markup=False, highlight=False)
    console.print(f"about {minutes:.0f} minutes" if minutes >= 2 else f"about {minutes * 60:.0f} seconds",
                  highlight=False)
    status = 0
    with Workshop(two_cores()) as workshop:
        facts = about(options, workshop, results.left_out)
        try:
            runner.run(options.modes, workshop, options.pairs, options.seconds, results,
                       lambda text: console.print(text, markup=False, highlight=False))
        except KeyboardInterrupt:
            console.print("interrupted: this is what was found until then")
            status = 130
        except BenchError as error:
            console.print(f"error: {error}; this is what was found until then", markup=False, highlight=False)
            status = 1
    report.print_report(Console(), results, facts)
    if options.json:
        options.json.write_text(report.as_json(results, facts))
    if options.plot:
        report.draw(results, options.plot)
    return status


def interrupt(*_: object) -> None:
    """SIGTERM and SIGHUP end a run as Ctrl-C does: with everything that was started."""
    raise KeyboardInterrupt


def main(words: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status: 0 measured, 1 could not, 2 wrong arguments, 130 interrupted."""
    options = arguments(words)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    console = Console(stderr=True)
    try:
        return measure_all(options, console)
    except BenchError as error:
        console.print(f"error: {error}", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

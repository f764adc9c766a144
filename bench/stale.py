"""What the stale check itself costs: instructions per event of two builds, one with it and one without.

Both are made here, in a scratch directory, with the release build's flags; the second with EPOLLKIT_UNCHECKED_EVENTS
(see `_sys.h`), so that it looks up the event's slot and trusts it: it asks neither whether there is such a slot, nor
whether it is live, and compares neither its generation nor (the witness) its batch.
"""
from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from . import callgrind, servers

INSTRUCTIONS_AT_MOST = 12       # per event
FDS = 500                       # one batch: what a turn costs once is spread thin
TURNS = (10, 110)                # a short and a long run
UNCHECKED = "-DEPOLLKIT_UNCHECKED_EVENTS=1"
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "epollkit")


@dataclass(frozen=True)
class StaleCheck:
    """Instructions per event, all of the loop and of a handler in Python, with the check and without."""

    events: int
    checked: float
    unchecked: float

    @property
    def cost(self) -> float:
        """The check's own."""
        return self.checked - self.unchecked

    @property
    def verdict(self) -> str:
        """Counted, so there is nothing to doubt."""
        return "met" if self.cost <= INSTRUCTIONS_AT_MOST else "missed"


def missing() -> str | None:
    """Why it can't be measured, or None."""
    if reason := callgrind.missing() or servers.Floor.missing():
        return reason
    absent = [name for name in ("Cython", "setuptools") if importlib.util.find_spec(name) is None]
    return f"no {' and no '.join(absent)} to build with (pip install -e .[bench])" if absent else None


def copy_sources(where: Path) -> None:
    """A tree to build in, without what was built in the other one."""
    where.mkdir()
    for name in SOURCES:
        source = servers.HERE.parent / name
        if source.is_dir():
            shutil.copytree(source, where / name, ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"))
        else:
            shutil.copy2(source, where / name)


def build(tree: Path, name: str, flags: str) -> Path:
    """Build the package with these flags beside the usual ones. Returns where it can be imported from."""
    library = tree / name
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", f"{library}.tmp", "--build-lib", str(library)]
    environment = {**os.environ, "EPOLLKIT_DEBUG": "0", "CFLAGS": f"{os.environ.get('CFLAGS', '')} {flags}".strip()}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise servers.BenchError(f"the {name} build failed: {done.stderr.strip()[-400:]}")
    return library


def differ(one: Path, other: Path) -> bool:
    """Whether the loop was compiled to different code."""
    [first], [second] = ([*library.glob("epollkit/_core.*.so")] for library in (one, other))
    return first.read_bytes() != second.read_bytes()


def run_once(library: Path, turns: int, workshop: servers.Workshop, fds: int = FDS) -> int:
    """Instructions of one run, which must have delivered each edge."""
    command = [sys.executable, str(servers.HERE / "stale_app.py"), str(fds), str(turns)]
    total, printed = callgrind.count(command, workshop.path / "callgrind.stale", workshop.server_core,
                                     PYTHONPATH=str(library))
    delivered, _, imported = printed.strip().partition(" ")
    if int(delivered) != fds * turns or Path(imported).parent.resolve() != library.resolve():
        raise servers.BenchError(f"{delivered} events of {fds * turns} were delivered by {imported}")
    return total


def per_event(library: Path, workshop: servers.Workshop, fds: int = FDS, turns: tuple[int, int] = TURNS) -> float:
    """Instructions per event: two runs and their difference."""
    short, long = (run_once(library, each, workshop, fds) for each in turns)
    return (long - short) / (fds * (turns[1] - turns[0]))


def measure_stale_check(workshop: servers.Workshop) -> StaleCheck:
    """Build both, count both."""
    tree = workshop.path / "stale-check"
    copy_sources(tree)
    checked, unchecked = build(tree, "checked", ""), build(tree, "unchecked", UNCHECKED)
    if not differ(checked, unchecked):
        raise servers.BenchError(f"{UNCHECKED} changed nothing")
    return StaleCheck(FDS * (TURNS[1] - TURNS[0]), per_event(checked, workshop), per_event(unchecked, workshop))

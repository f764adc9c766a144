"""Faults in the real kernel, one per run: `python tests/faults [--only CALL:ERROR] [--list] [--short] [--jobs N]`.

    CALL:ERROR          a system call of the loop fails: the first, the second ... until none does any more
    memory:HOW          allocations fail, one after the other
    short:SEED          reads and writes are shorter than they could be
    network:kill|drop   live connections are killed; packets are lost

A run is the whole program of subject.py, with its clients (clients.py). After each: descriptors, slots and timers are
back where they were, whoever waited was served, the next request is answered, nothing was reported but the fault
itself. Exit status: 0 all of it held, or could not be tried here (the table says why); 1 something did not.
"""
from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clients import HERE, make_certificates
from matrix import MATRIX, PATIENCE, Fault, Impossible, Laboratory, Row, judged, played

MEMORY = ["malloc", "lasting", "python"]
SEEDS = range(1, 41)
NETWORK = ["kill", "drop"]
SHORT_SEEDS = 2
SHORT_STEP = 97             # of failing allocations: every so many
SHORT_SCENES = {"kill": ["answer_under_way:server", "pool", "listener"], "drop": ["idle:drop", "lossy:2"]}
MOST_SHOWN = 5              # problems of a row


def strike(laboratory: Laboratory, fault: Fault, wanted: list[int]) -> Row:
    """In the calls that are wanted, or in all of them."""
    row = Row(fault.name)
    for nth in wanted or itertools.count(1):
        fired, problems = laboratory.strike(fault, nth)
        row.add(nth, problems)
        row.fired += fired
        if not fired:
            break
    if not row.fired:
        row.add("never", ["the program does not make this call"])
    return row


def middle(laboratory: Laboratory, fault: Fault) -> int:
    return max(1, laboratory.calls.get(fault.call, 0) // 2)


def cut_short(laboratory: Laboratory, seed: int) -> Row:
    row = Row(f"short:{seed}")
    with tempfile.TemporaryDirectory() as folder:
        failures, end, counts = played(laboratory.with_library(Path(folder), f"short:{seed}"), PATIENCE)
    row.fired = end.get("fired", 0)
    row.add("all", judged(None, failures, end, counts))
    if not row.fired:
        row.add("never", ["nothing was cut short"])
    return row


def scenes(name: str, command: list[str], environment: dict[str, str]) -> Row:
    """A program that prints a line of JSON for each of its scenes."""
    row = Row(name)
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        found = json.loads(line)
        row.fired += found["fired"]
        row.add(found["scene"], found["problems"])
        if not found["fired"]:
            row.add(found["scene"], ["nothing has failed in it"])
    if done.returncode:
        row.add("end", [f"status {done.returncode}: {done.stderr[-2000:]}"])
    return row


def memory(laboratory: Laboratory, how: str, step: int) -> Row:
    environment = {"FAULTS_STEP": str(step)}
    if how == "python":
        try:
            import _testcapi  # noqa: F401
        except ImportError:
            raise Impossible("this Python has no _testcapi") from None
    else:
        environment |= {"LD_PRELOAD": str(laboratory.library), "PYTHONMALLOC": "malloc"}
    return scenes(f"memory:{how}", [sys.executable, str(HERE / "memory.py"), how], environment)


def network(what: str, wanted: list[str]) -> Row:
    for program in ("unshare", "ip", "ss" if what == "kill" else "nft"):
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            raise Impossible(f"{program} is not installed")
    apart = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        raise Impossible("this machine lets nobody have a network namespace")
    environment = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    return scenes(f"network:{what}", [*apart, sys.executable, str(HERE / "network.py"), what, *wanted], environment)


Task = Callable[[Laboratory], Row]


def tasks(short: bool, only: list[list[str]]) -> dict[str, Task]:
    """Everything that can be tried, by name."""
    found: dict[str, Task] = {}
    for fault in MATRIX:
        nth = [int(words[2]) for words in only if words[:2] == fault.name.split(":") and len(words) > 2]
        found[fault.name] = lambda laboratory, fault=fault, nth=nth: strike(
            laboratory, fault, nth or ([middle(laboratory, fault)] if short else []))
    for how in MEMORY:
        found[f"memory:{how}"] = lambda laboratory, how=how: memory(laboratory, how, SHORT_STEP if short else 1)
    for seed in SEEDS[:SHORT_SEEDS] if short else SEEDS:
        found[f"short:{seed}"] = lambda laboratory, seed=seed: cut_short(laboratory, seed)
    for what in NETWORK:
        found[f"network:{what}"] = lambda laboratory, what=what: network(what, SHORT_SCENES[what] if short else [])
    return found


def wanted(name: str, only: list[list[str]]) -> bool:
    is_call = name in {fault.name for fault in MATRIX}
    return not only or any((words == ["calls"] and is_call) or name.split(":")[:len(words[:2])] == words[:2]
                           for words in only)


def carried_out(laboratory: Laboratory, chosen: dict[str, Task], jobs: int) -> Iterator[Row]:
    """In their order, several at a time."""
    def tried(name: str) -> Row:
        try:
            return chosen[name](laboratory)
        except Impossible as reason:
            return Row(name, impossible=str(reason))

    with ThreadPoolExecutor(jobs) as pool:
        for number, row in enumerate(pool.map(tried, chosen)):
            if sys.stderr.isatty():
                print(f"\r\033[K{number + 1} of {len(chosen)}: {row.name}", end="", file=sys.stderr, flush=True)
            yield row
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/faults", description="Faults in the real kernel, one per run.")
    parser.add_argument("--only", action="append", metavar="CALL[:ERROR[:N]]",
                        help="these, or all `calls`; with N in that call only")
    parser.add_argument("--list", action="store_true", help="name all of them")
    parser.add_argument("--short", action="store_true", help="each of them in one place")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="runs at a time")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error("--jobs is a number from 1 on")
    only = [words.split(":") for words in options.only or []]
    chosen = {name: task for name, task in tasks(options.short, only).items() if wanted(name, only)}
    if not chosen:
        parser.error(f"nothing is called {' or '.join(options.only)}; --list names them")
    if options.list:
        print("\n".join(chosen))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if not make_certificates(Path(folder)):
            print("not tried: openssl is not installed, and makes the certificates")
            return 0
        laboratory = Laboratory(Path(folder))
        if any(wanted(name, [["calls"]]) for name in chosen):
            try:
                problems = laboratory.look()
            except Impossible as reason:
                print(f"not tried: {reason}")
                return 0
            if problems:
                print("even without a fault:", *problems, sep="\n")
                return 1
        rows = list(carried_out(laboratory, chosen, options.jobs))
    return report(rows)


def report(rows: list[Row]) -> int:
    print(f"{'call':<16}{'error':<16}{'fired':>8}{'failures':>10}")
    for row in rows:
        call, error = row.name.split(":")
        print(f"{call:<16}{error:<16}" + (f"not tried: {row.impossible}" if row.impossible else
                                          f"{row.fired:>8}{len(row.problems):>10}"))
    print(f"{'in all':<32}{sum(row.fired for row in rows):>8}{sum(len(row.problems) for row in rows):>10}")
    for row in rows:
        for problem in row.problems[:MOST_SHOWN]:
            print(f"\n{problem}")
    return 1 if any(row.problems for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

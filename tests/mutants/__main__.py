"""`python tests/mutants [NAME ...]`: break the code on purpose, one guard at a time, and see who notices.

Exit status: 0 each one is caught, 1 one survived or could not be judged, 2 wrong arguments.
"""
from __future__ import annotations

import argparse
import os
import queue
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from breaks import MUTANTS, PARTS, Mutant
from scratch import Broken, Tree

HOW = {"failed": "", "hung": " (hangs)"}        # and a signal: " (SIGSEGV)"


class Verdict(NamedTuple):
    mutant: Mutant
    ends: tuple[str, ...]           # how each of its tests ended
    problem: str = ""               # why it could not be judged

    @property
    def word(self) -> str:
        return "error" if self.problem else "survived" if "passed" in self.ends else "caught"

    def complaint(self) -> str:
        """What is said of one that is not caught."""
        if self.problem:
            return f"error: {self.mutant.name}: {self.problem}"
        missed = [test for test, end in zip(self.mutant.tests, self.ends, strict=True) if end == "passed"]
        return f"survived: {self.mutant.name}: {', '.join(missed)} passed"

    def caught_by(self) -> list[str]:
        return [f"`{test.removeprefix('tests/')}`{HOW.get(end, f' ({end})')}"
                for test, end in zip(self.mutant.tests, self.ends, strict=True)]


def judge(mutant: Mutant, tree: Tree) -> Verdict:
    """Each of its tests must notice, in a process of its own: one of them may take the process with it."""
    try:
        tree.replace(mutant.file, mutant.old, mutant.new)
        if not mutant.file.endswith(".py"):
            tree.build()
        return Verdict(mutant, tuple(tree.run(test)[0] for test in mutant.tests))
    except Broken as problem:
        return Verdict(mutant, (), str(problem))
    finally:
        tree.restore()


def say(what: str) -> None:
    """Where it is, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


def judge_all(mutants: Sequence[Mutant], where: Path, jobs: int) -> list[Verdict]:
    trees: queue.SimpleQueue[Tree] = queue.SimpleQueue()
    verdicts: list[Verdict] = []

    def one(mutant: Mutant) -> Verdict:
        tree = trees.get()
        say(f"{len(verdicts)} of {len(mutants)}: {mutant.name}")
        try:
            return judge(mutant, tree)
        finally:
            trees.put(tree)

    say("building")
    whole = Tree(where / "whole", os.cpu_count() or 1)
    for number in range(jobs):
        trees.put(Tree(where / f"broken-{number}", max(1, (os.cpu_count() or 1) // jobs), whole))
    say("the tests on the unbroken tree")
    end, output = whole.run(*dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    if end != "passed":
        raise Broken(f"without a mutant, a test does not pass ({end}):\n{output}")
    with ThreadPoolExecutor(jobs) as pool:
        for verdict in pool.map(one, mutants):
            verdicts.append(verdict)
            if verdict.word != "caught":
                say("")
                print(verdict.complaint(), flush=True)
    say("")
    return verdicts


def table(verdicts: Sequence[Verdict]) -> str:
    """docs/mutants.md."""
    found = {verdict.mutant.name: verdict for verdict in verdicts}
    lines = ["# Mutants", "", f"""\
{len(MUTANTS)} ways in which the code was broken on purpose, each by taking one guard out, and the tests that noticed:
all of those that are named, not one of them. `tox -e mutants` does it again, and writes this table
(`tests/mutants/breaks.py` has the lines). The assertions of the debug build are off meanwhile: a mutant is caught by
what a user would see. A signal's name, or "hangs", is how a test's process ended that did not come to its end."""]
    for part, mutants in PARTS.items():
        lines += ["", f"## {part}", "", "| mutant | what is broken | caught by |", "|---|---|---|"]
        for mutant in mutants:
            file = mutant.file.removeprefix("epollkit/")
            caught = ", ".join(found[mutant.name].caught_by())
            lines.append(f"| {mutant.name} | {mutant.breaks} (`{file}`) | {caught} |")
    return "\n".join([*lines, ""])


def main() -> int:
    by_name = {mutant.name: mutant for mutant in MUTANTS}
    parser = argparse.ArgumentParser(prog="python tests/mutants", description="Break the code, and see who notices.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of mutants (default: all)")
    parser.add_argument("--list", action="store_true", help="say what there is, and break nothing")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="mutants at a time (default: 1)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table there, if all are caught")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in by_name]
    if unknown:
        parser.error(f"there is no mutant {', '.join(unknown)}; --list says which there are")
    if options.jobs < 1:
        parser.error("--jobs is a number from 1 on")
    if options.write and options.names:
        parser.error("--write is for all of them, so it goes with no NAME")
    if options.list:
        for mutant in MUTANTS:
            print(f"{mutant.name}: {mutant.breaks}")
        return 0
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="epollkit-mutants-") as where:
        try:
            verdicts = judge_all([by_name[name] for name in options.names] or MUTANTS, Path(where), options.jobs)
        except Broken as problem:
            print(f"nothing was judged: {problem}", file=sys.stderr)
            return 1
    words = [verdict.word for verdict in verdicts]
    print(f"{len(verdicts)} mutants: {words.count('caught')} caught, {words.count('survived')} survived, "
          f"{words.count('error')} could not be judged; {(time.monotonic() - start) / 60:.0f} minutes")
    if set(words) != {"caught"}:
        return 1
    if options.write:
        options.write.write_text(table(verdicts))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

"""Reference leaks, with an interpreter that counts references: `python tests/refleaks [pytest arguments]`.

Each test is run in rounds, in one process. After a round the collector has run, and three things are counted: all
references (`sys.gettotalrefcount`), all blocks of memory that the interpreter has given out, and what the debug build
says is alive of ours. What grows in every round leaks, and what falls in every round is let go of once too often: the
slope has to be zero. A figure that grows in one round and not in the next is a cache.

Without arguments: `CHOSEN`, and then `control.py`, whose tests do it wrong and must be found.
"""
from __future__ import annotations

import array
import gc
import sys
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from _pytest.unittest import TestCaseFunction

from epollkit import _operations

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
WARM_UP = 2
ROUNDS = 4

# Left out: files that are about other processes, and hypothesis, which makes something new in every round.
CHOSEN = [
    "test_slots.py", "test_timers.py", "test_loop.py", "test_raw_api.py", "test_edges.py", "test_listener.py",
    "test_regressions.py", "test_scenarios.py", "test_connector.py", "test_pool.py", "test_rate.py", "test_tls.py",
    "test_idle.py", "test_stream.py", "test_stream_adopt.py", "test_stream_flow.py", "test_stream_frames.py",
    "test_stream_output.py", "test_stream_rates.py", "test_stream_timeouts.py", "test_stream_tls.py",
    "test_http_objects.py", "test_http_request_response.py", "test_http_server.py",
]


class Count:
    """The figures of one round after the other. They are written where nothing has to be allocated for them."""

    def __init__(self) -> None:
        self.names = ["references", "blocks", *_operations.counts()]
        self.figures = array.array("q", bytes(8 * len(self.names) * (ROUNDS + 1)))

    def take(self, number: int) -> None:
        at = number * len(self.names)
        for _ in range(3):
            gc.collect()
        self.figures[at] = sys.gettotalrefcount()
        self.figures[at + 1] = sys.getallocatedblocks()
        for made, freed in _operations.counts().values():
            self.figures[at + 2] = made - freed
            at += 1

    def slopes(self) -> dict[str, list[int]]:
        """By how much each figure changed in each round, of those that went the same way in all of them."""
        found = {}
        for place, name in enumerate(self.names):
            column = self.figures[place::len(self.names)]
            steps = [column[number + 1] - column[number] for number in range(ROUNDS)]
            if min(steps) > 0 or max(steps) < 0:
                found[name] = steps
        return found


class Rounds:
    """The pytest plugin that runs each test again and again."""

    def __init__(self) -> None:
        self.leaks: dict[str, dict[str, list[int]]] = {}
        self.clean = self.not_counted = 0

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if not isinstance(item, TestCaseFunction)
                    and not getattr(item.obj, "is_hypothesis_test", False)]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: Any, nextitem: pytest.Item | None) -> bool:
        count = Count()
        rounds = WARM_UP + ROUNDS
        for number in range(rounds + 1):
            if not self.passes(item, nextitem if number == rounds else item, tell=number == 0):
                self.not_counted += 1
                return True
            if number >= WARM_UP:
                count.take(number - WARM_UP)
        found = count.slopes()
        self.clean += not found
        if found:
            self.leaks[item.nodeid] = found
        return True

    def passes(self, item: Any, nextitem: pytest.Item | None, tell: bool) -> bool:
        """Run it once; pytest hears of the first time, and of what failed or was skipped."""
        item._initrequest()
        item._report_sections.clear()
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        passed = all(report.passed for report in reports)
        if tell or not passed:
            for report in reports:
                item.ihook.pytest_runtest_logreport(report=report)
        if not passed:
            item.session._setupstate.teardown_exact(None)
        return passed


def run(*arguments: str) -> tuple[Rounds, int]:
    rounds = Rounds()
    settings = str(TESTS.parent / "pyproject.toml")
    status = pytest.main(["-q", "-p", "no:cacheprovider", "-o", "timeout=600", "-c", settings, *arguments],
                         plugins=[rounds])
    return rounds, int(status)


def main() -> int:
    if not hasattr(sys, "gettotalrefcount"):
        print("this interpreter does not count references; on Debian: apt-get install python3.11-dbg", file=sys.stderr)
        return 2
    chosen = sys.argv[1:]
    rounds, status = run(*(chosen or [str(TESTS / name) for name in CHOSEN]))
    for test, found in rounds.leaks.items():
        print(f"LEAK {test}: " + "; ".join(f"{name} {steps}" for name, steps in found.items()))
    print(f"{rounds.clean} tests without a slope in {ROUNDS} rounds, {len(rounds.leaks)} with one, "
          f"{rounds.not_counted} not counted (skipped or failed)")
    if not chosen:
        control, _ = run(str(HERE / "control.py"))
        found = sorted(test.rpartition("::")[2] for test in control.leaks)
        print(f"control: {', '.join(found)}: found; {control.clean} tests that do nothing wrong: not")
        if (len(found), control.clean) != (4, 2):
            print("the counting does not count", file=sys.stderr)
            return 1
    return status or int(bool(rounds.leaks))


if __name__ == "__main__":
    sys.exit(main())

"""Faults in the real kernel: a whole program, and one fault in each run of it. `python tests/faults --list` names them.

In the default suite each of them strikes in one place; in `tox -e faults` wherever it can.
"""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FAULTS = Path(__file__).resolve().parent / "faults"
HOURS = 4 * 3600

everywhere = pytest.param(False, id="everywhere", marks=[pytest.mark.faults, pytest.mark.timeout(HOURS)])
in_one_place = pytest.param(True, id="in_one_place")
in_both_ways = pytest.mark.parametrize("short", [in_one_place, everywhere])


@pytest.fixture
def strike(peer: Callable[[str], str]) -> Callable[..., None]:
    """Run those faults; all must hold. What this machine does not let us try is skipped, with the reason."""
    def run(short: bool, *names: str, needs: tuple[str, ...] = ()) -> None:
        for program in ("gcc", *needs):
            peer(program)
        command = [sys.executable, FAULTS, *(["--short"] if short else []),
                   *(word for name in names for word in ("--only", name))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        print(done.stdout)
        for line in done.stdout.splitlines():
            if "not tried: " in line:
                pytest.skip(line)
    return run


@in_both_ways
def test_system_calls_that_fail(strike, short):
    strike(short, "calls", needs=("strace",))


@in_both_ways
def test_reads_and_writes_that_are_short(strike, short):
    strike(short, "short")


@in_both_ways
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer has a malloc of its own")
@pytest.mark.parametrize("how", ["malloc", "lasting", "python"])
def test_allocations_that_fail(strike, short, how):
    strike(short, f"memory:{how}")


@in_both_ways
def test_connections_that_are_killed(strike, short):
    strike(short, "network:kill", needs=("ip", "ss"))


@in_both_ways
def test_packets_that_are_dropped(strike, short):
    strike(short, "network:drop", needs=("ip", "nft"))


def test_a_name_that_does_not_exist():
    done = subprocess.run([sys.executable, FAULTS, "--only", "accept4:EARTHQUAKE"], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 2
    assert "nothing is called accept4:EARTHQUAKE" in done.stderr
    assert "Traceback" not in done.stderr

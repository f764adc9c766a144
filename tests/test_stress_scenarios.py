"""Each scenario of stress/ for a moment: it holds on ours, and fails on a server that is broken on purpose.

The scenarios run in the test's process; server, crowd and network are processes of their own. What a scenario finds on
a broken server may be more than what it is named for; the test wants what it is named for.
"""
from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from broken_servers import SWITCHES

pytestmark = pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""),
                                reason="the sanitizer keeps what was freed, and memory is limited here")
ROOT = Path(__file__).resolve().parent.parent
BROKEN = ROOT / "tests" / "support" / "broken_servers.py"
DEADLINE = 0.3

OURS = {"churn": {}, "rst_storm": {}, "half_close": {}, "abandon": {}, "slowloris": {"connections": 50},
        "slow_body": {"connections": 50}, "slow_reader": {}, "pipeline_flood": {}, "fd_exhaustion": {},
        "idle_crowd": {"connections": 2000}, "faulty_network": {"seconds": 1.5}, "siege_crash": {"seconds": 1.5},
        "soak": {"seconds": 1.5, "connections": 20}}

BY_THEMSELVES = ("stale_storm", "siege_crash")      # no URL: their broken servers are elsewhere in this file

CAUGHT = [
    ("churn", "leaks_fds", r"descriptors are not back at \d+: \d+"),
    ("churn", "leaks_memory", r"memory grew by [\d.]+ MiB and stays, more than 8"),
    ("churn", "leaks_threads", r"threads are not back at 1: \d+"),
    ("churn", "mixes_up", r"wrong answers: \d+"),
    ("churn", "spins", r"it does not come to rest: \d+% of a core"),
    ("rst_storm", "dies_on_reset", r"the server is gone"),
    ("half_close", "drops_half_closed", r"connections ended while an answer was owed: \d+"),
    ("abandon", "no_deadlines", r"connections that outlived their deadline: 32"),
    ("slowloris", "no_deadlines", r"connections that outlived their deadline: \d+"),
    ("slow_body", "no_deadlines", r"connections that outlived their deadline: \d+"),
    ("slow_body", "waits_for_bodies", r"the probe failed \d+ of \d+ times: TimeoutError|the probe's p99 was"),
    ("slow_reader", "no_deadlines", r"connections that outlived their deadline: 10"),
    ("slow_reader", "answers_into_memory", r"memory grew by [\d.]+ MiB meanwhile, more than 32"),
    ("pipeline_flood", "loses_pipelined", r"requests never answered: \d+"),
    ("fd_exhaustion", "dies_without_descriptors", r"the server is gone"),
    ("idle_crowd", "fat", r"memory grew by [\d,]+ bytes a connection, more than 4,096"),
    ("idle_crowd", "ends_the_idle", r"idle connections ended: \d+"),
    ("faulty_network", "mixes_up", r"wrong answers: \d+"),
    ("soak", "leaks_memory", r"memory grows by [\d,.]+ MiB an hour, surely by [\d,.]+"),
]


@pytest.fixture(scope="module")
def stress(stress_package: None) -> Any:
    return importlib.import_module("stress")


@pytest.fixture
def run(stress: Any) -> Any:
    """Run a scenario; returns what did not hold."""
    def run_one(name: str, **options: Any) -> list[str]:
        made = importlib.import_module("stress.options").Options(**{"seconds": 0.4, "seed": 7, **options})
        return importlib.import_module(f"stress.{name}").run(made)
    return run_one


class Running(NamedTuple):
    url: str
    pid: int


def serve(*switches: str) -> Iterator[Running]:
    with subprocess.Popen([sys.executable, str(BROKEN), json.dumps(switches), str(DEADLINE)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            port = int(process.stdout.readline())
            yield Running(f"http://127.0.0.1:{port}/", process.pid)
        finally:
            process.kill()


@pytest.fixture
def broken(request: pytest.FixtureRequest) -> Iterator[Running]:
    """A server with one switch, which the test is parametrized with."""
    yield from serve(*request.param)


@pytest.mark.parametrize("name", OURS)
def test_it_holds_on_ours(run, capfd, name):
    """No limit of the probe's: this is no place to measure."""
    assert run(name, probe_limit=60.0, patience=60.0, **OURS[name]) == []
    assert name in capfd.readouterr().out


@pytest.mark.long
def test_the_whole_idle_crowd_is_there_at_once(run):
    """15,000."""
    assert run("idle_crowd", probe_limit=60.0, patience=60.0) == []


@pytest.mark.parametrize("name, broken, message", [(name, [switch], message) for name, switch, message in CAUGHT],
                         ids=[f"{name}-{switch}" for name, switch, _ in CAUGHT], indirect=["broken"])
def test_it_fails_on_a_server_that_is_broken_on_purpose(run, name, broken, message):
    seconds = 1.5 if name == "soak" else 0.4
    found = run(name, url=broken.url, pid=broken.pid, timeout=DEADLINE, patience=0.6, seconds=seconds,
                connections={"idle_crowd": 300, "soak": 20}.get(name),
                probe_limit=0.1 if name == "slow_body" else None)       # it stalls for 0.3 s at a time, or more
    assert any(re.match(message, one) for one in found), found


def test_every_scenario_and_every_switch_is_in_these_tests(stress):
    assert {name for name, _, _ in CAUGHT} | set(BY_THEMSELVES) == set(stress.SCENARIOS)
    assert set(OURS) | {"stale_storm"} == set(stress.SCENARIOS)      # test_stress.py runs that one
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "stress.md").read_text(), re.MULTILINE)
    assert tuple(rows) == stress.SCENARIOS
    assert {switch for _, switch, _ in CAUGHT} == set(SWITCHES)


@pytest.mark.parametrize("broken", [[]], indirect=True)
@pytest.mark.parametrize("name", ["churn", "slow_body", "slow_reader"])
def test_it_holds_on_the_same_server_unbroken(run, broken, name):
    """So it is the switch that fails above, and another's server can be hurt, too."""
    assert run(name, url=broken.url, pid=broken.pid, timeout=DEADLINE, probe_limit=60.0,
               patience=4.0 if name == "slow_reader" else 60.0) == []

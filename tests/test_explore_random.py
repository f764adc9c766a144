"""The worlds of tests/explore, larger and longer, at random: by hypothesis, and by seeds that can be had again."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

pytest.importorskip("epollkit._kernel", reason="the fake kernel is in the debug build only")

from connects import CONNECT_WORLDS, Connects, Pools
from engine import Run, Stop, wander
from streams import STREAM_WORLDS, Streams
from worlds import RAW_WORLDS, Raw, TwinClose

EXPLORER = Path(__file__).parent / "explore"
WORLDS = {**RAW_WORLDS, **STREAM_WORLDS, **CONNECT_WORLDS}


class Scripted(Run):
    """A run whose answers are given a few at a time; then it is the first of everything."""

    def __init__(self):
        super().__init__()
        self.script = []

    def choose(self, count, key):
        return self.script.pop(0) % count if self.script else 0


class Machine(RuleBasedStateMachine):
    """28. Steps from outside, and what the handlers that they lead to do."""

    world_class = Raw

    def __init__(self):
        super().__init__()
        self.run = Scripted()
        self.world = self.world_class(self.run)
        self.world.start()

    @rule(which=st.integers(1, 40))
    def happens(self, which):
        self.step([which])

    @rule(inside=st.lists(st.integers(0, 40), max_size=8))
    def turn(self, inside):
        self.step([0, *inside])

    def step(self, script):
        world = self.world
        self.run.script = script
        try:
            world.pick("", [("", world.turn), *world.outside()])
            world.check()
        except Stop as broken:
            self.broken(broken)

    def teardown(self):
        self.run.script = []
        self.run.over = True
        try:
            if not self.world.closing:
                self.world.settle()
                self.world.finish()
        except Stop as broken:
            self.broken(broken)
        finally:
            self.world.close()

    def broken(self, error):
        self.world.closing = True
        raise AssertionError("\n".join([str(error), *self.world.story])) from None


def machine(world):
    class Wide(world):
        """As many slots, descriptors and events as there may be at a time."""
        slots, room, fds, peers, dials, requests = 6, 8, 6, 50, 50, 50

    Of = type(f"Machine{world.__name__}", (Machine,), {"world_class": Wide})
    Of.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
    return Of.TestCase


TestRaw = machine(Raw)
TestStreams = machine(Streams)
TestConnects = machine(Connects)
TestPools = machine(Pools)


@pytest.mark.parametrize("name", WORLDS)
def test_random_runs(name):
    """28. From a seed: `python tests/explore --random --world raw --seed 1` makes the same."""
    found = wander(WORLDS[name], 1, 30, 60)
    assert found.failure is None, str(found.failure)
    assert found.runs == 30


def test_a_random_failure_is_shrunk():
    """What is found in a long run is shown as a short one."""
    found = wander(TwinClose, 1, 50, 60)
    assert found.failure is not None
    assert len(found.failure.answers) <= 8


def explorer(*arguments):
    return subprocess.run([sys.executable, str(EXPLORER), *arguments], capture_output=True, text=True, check=False)


def test_the_command():
    done = explorer("--world", "raw-slots", "--depth", "3", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert "depth 3: " in done.stdout


def test_the_command_tells_a_story_and_replays_it():
    done = explorer("--world", "raw-slots", "--bits", "1", "--depth", "7", "--jobs", "1")
    assert done.returncode == 1
    assert "promise 1: the event of" in done.stdout
    again = done.stdout.split("python tests/explore ")[1].split()
    replayed = explorer(*again, "--bits", "1")
    assert replayed.returncode == 1
    assert "promise 1: the event of" in replayed.stdout
    assert "nothing is wrong with it" in explorer(*again).stdout

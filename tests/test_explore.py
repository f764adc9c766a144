"""The explorer of tests/explore: what it finds where there is something, and that it finds nothing in the loop.

`tox -e explore` goes as far as ten minutes go; here it is as far as a few seconds do.
"""
from __future__ import annotations

import functools
import random
import socket

import pytest

from epollkit import ERR, HUP

pytest.importorskip("epollkit._kernel", reason="the fake kernel is in the debug build only")

from connects import ADDRESS, CONNECT_WORLDS, Connects
from engine import Broken, Run, Seen, explore, play, replay, shrink, wander
from streams import STREAM_WORLDS, Admitted
from worlds import RAW_WORLDS, TWIN_WORLDS, Raw, Reuses

WORLDS = {**RAW_WORLDS, **STREAM_WORLDS, **CONNECT_WORLDS}


# -- the engine, on a toy ----------------------------------------------------------------------------------------------

class Toy:
    """Steps of 1 to 3; whoever comes to 7 in exactly this many steps breaks something. `remembers`: the state tells
    the way that led there, so that nothing is met twice."""

    ends = 0

    def __init__(self, run, goal=7, remembers=False):
        self.run, self.goal, self.remembers = run, goal, remembers
        self.at = 0
        self.story = []

    def play(self):
        while not self.run.over:
            step = self.run.choose(4, lambda: tuple(self.story) if self.remembers else self.at)
            self.at += step
            self.story.append(str(step))
            if self.at == self.goal:
                raise Broken(1, "seven")

    def close(self):
        Toy.ends += 1


class TestTheEngine:
    def test_the_shortest_is_found_first(self):
        found = explore(Toy, 10)
        assert found.failure.promise == 1
        assert len(found.failure.answers) == 3
        assert sum(found.failure.answers) == 7
        assert found.depth == 2, "every run of two was made before"

    def test_every_run_is_made(self):
        """Where no state comes twice: 4^n of them, and those that are shorter."""
        made = []

        def make(run):
            made.append(run)
            return Toy(run, goal=-1, remembers=True)

        found = explore(make, 3, first=3)
        assert {tuple(run.answers) for run in made} == {(a, b, c) for a in range(4) for b in range(4) for c in range(4)}
        assert found.runs == len(made) == 64
        assert found.states == 1 + 4 + 16 + 64

    def test_a_state_that_was_met_is_left_alone(self):
        found = explore(functools.partial(Toy, goal=-1), 5, first=5)
        assert found.states == 16, "0 to 15"
        assert found.runs < 4 ** 5 / 10

    def test_a_state_that_is_met_with_more_left_is_looked_into_again(self):
        """What is known of it then is too little."""
        seen = Seen()
        met = [("a", 2), ("a", 2), ("a", 1), ("a", 3), ("a", 3), ("b", 0)]
        assert [seen.known(key, left) for key, left in met] == [False, True, True, False, True, False]
        assert seen.added == 2

    def test_a_full_table_forgets_nothing_and_takes_nothing(self):
        seen = Seen(16)
        for key in range(100):
            seen.known(key, 1)
        assert seen.added == seen.most == 12
        assert sum(seen.known(key, 1) for key in range(100)) == seen.most

    @pytest.mark.parametrize("jobs", [1, 3])
    def test_several_processes_see_what_one_sees(self, jobs):
        make = functools.partial(Toy, goal=-1)
        alone, together = explore(make, 6), explore(make, 6, jobs=jobs)
        assert (together.states, together.depth) == (alone.states, alone.depth) == (19, 6)
        assert explore(Toy, 10, jobs=jobs).failure.promise == 1

    def test_a_process_that_dies_says_in_which_run(self):
        import os

        class Deadly(Toy):
            def play(self):
                super().play()
                if self.story[:2] == ["3", "1"]:
                    os._exit(7)

        found = explore(functools.partial(Deadly, goal=-1, remembers=True), 4, first=4, jobs=1)
        assert [answers[:2] for answers in found.died] == [[3, 1]]

    def test_everything(self):
        """A world that ends by itself has been seen whole."""
        class Ending(Toy):
            def play(self):
                for step in range(2):
                    self.at += self.run.choose(3, lambda step=step: (step, self.at))

        found = explore(Ending, 50)
        assert found.everything
        assert (found.depth, found.states) == (2, 4)

    def test_the_same_seed_makes_the_same_runs(self):
        one, same, other = (wander(functools.partial(Toy, goal=50), seed, 100, 40).failure for seed in (1, 1, 2))
        assert one == same
        assert one != other

    def test_a_failure_is_shrunk_and_can_be_had_again(self):
        failure = play(Toy, Run((0, 1, 0, 0, 2, 0, 1, 0, 3), 30))
        short = shrink(Toy, failure)
        assert len(short.answers) <= 4
        assert 0 not in short.answers
        assert replay(Toy, short.answers).promise == 1
        assert replay(Toy, short.answers[:-1]) is None

    def test_every_world_is_closed(self):
        before = Toy.ends
        found = explore(Toy, 10)
        assert Toy.ends - before == found.runs


# -- the worlds --------------------------------------------------------------------------------------------------------

DEPTHS = {"raw": 3, "raw-slots": 4, "raw-narrow": 4, "raw-files": 3, "raw-calls": 4, "streams": 5, "streams-all": 3,
          "streams-flow": 3, "streams-copied": 4, "streams-raising": 5, "streams-calls": 3, "streams-full": 4,
          "streams-short": 4, "connects": 5, "connects-names": 4, "pool": 6}


@pytest.mark.parametrize("name", WORLDS)
def test_nothing_is_found(name):
    """28. Every order of events, and everything that a handler may do, up to so many choices."""
    found = explore(WORLDS[name], DEPTHS[name])
    assert found.failure is None, str(found.failure)
    assert found.depth == DEPTHS[name]
    assert found.states > 50


@pytest.mark.parametrize("name", WORLDS)
def test_the_same_choices_lead_to_the_same_state(name):
    """Otherwise nothing could be had again, and a state that was met would mean nothing."""
    for seed in range(3):
        keys, stories = zip(*(walked(name, seed) for _ in range(2)), strict=True)
        assert keys[0] == keys[1]
        assert stories[0] == stories[1]


def walked(name, seed):
    worlds, keys = [], []

    class Noting(Run):
        def choose(self, count, key):
            if not worlds[0].closing:
                keys.append(key())
            return super().choose(count, key)

    def make(run):
        world = WORLDS[name].__new__(WORLDS[name])
        worlds.append(world)
        world.__init__(run)
        return world

    assert play(make, Noting((), 30, None, random.Random(seed))) is None
    return keys, worlds[0].story


# -- a connect, and HUP without ERR ------------------------------------------------------------------------------------

class TestHupWithoutErr:
    """15. It is no verdict: neither connected nor refused. The socket's error is not read, and the next event asks."""

    def begin(self, run=None):
        world = Connects(run or Run())
        world.start()
        world.dial(ADDRESS, 1)
        ((fd, file),) = world.under_way()
        return world, fd, file

    def test_then_it_is_connected(self):
        """15. The world's own checks say whether it opens before it is."""
        world, _, file = self.begin()
        world.hang_up(file)
        assert world.all[0].connector.state == "connecting"
        assert world.calls_of("take_error") == 0
        world.answer(file, True)
        world.turn()
        assert world.all[0].connector.state == "connected"
        assert world.calls_of("take_error") == 1
        world.close()

    def test_then_nothing_comes(self):
        """15. Somebody else who has the socket, a forked child, takes the connect back and reads the error that this
        leaves: the kernel says HUP from then on, and never again anything else. That is what the deadline is for."""
        world, fd, _ = self.begin()
        child = world.ours.fork()
        child.shutdown(fd, socket.SHUT_RDWR)
        assert child.error(fd)
        assert world.ours.poll(fd) & (HUP | ERR) == HUP
        world.turn()
        assert world.all[0].connector.state == "connecting"
        assert world.calls_of("take_error") == 0
        world.kernel.advance(1)
        world.turn()
        assert world.all[0].connector.state == "timed out"
        world.close()


# -- what is there to be found, is found -------------------------------------------------------------------------------

@pytest.mark.parametrize("bits", [1, 2, 3])
def test_few_bits_are_fooled(bits):
    """2. k bits fail at 2^k reuses of a slot within one batch, and not before."""
    before, fooled = 2 ** bits - 1, 2 ** bits
    assert explore(functools.partial(Reuses, bits=bits, most=before), before + 5).failure is None
    failure = explore(functools.partial(Reuses, bits=bits, most=fooled), fooled + 5).failure
    assert failure.promise == 1
    assert "the event of B reaches" in failure.what
    assert len(failure.answers) == fooled + 2, "two become readable, and the reuses"
    assert sum("registers anew" in line for line in failure.story) == fooled


def test_one_bit_is_fooled_in_any_world():
    """2. It needs no hint."""
    failure = explore(functools.partial(Raw, bits=1, verbs=frozenset({"end", "open", "replace"})), 6).failure
    assert failure.promise == 1
    assert any(line.startswith("batch [A IN, B IN]") for line in failure.story)


def test_one_bit_is_fooled_by_a_rule_of_admission():
    """2. A closes B; the listener accepts C, which is closed at once, and D: and B's event is D's. It takes eleven
    choices, and `python tests/explore --controls` a minute to find them by itself."""
    answers = [0, 0, 0, 2, 1, 1, 2, 0, 1, 1, 1]
    assert replay(functools.partial(Admitted, bits=1), answers).promise == 1
    assert replay(Admitted, answers) is None


@pytest.mark.parametrize("name", TWIN_WORLDS)
def test_the_accidents_of_the_twin_are_found(name):
    make, depth, promise = TWIN_WORLDS[name]
    failure = explore(make, depth).failure
    assert failure.promise == promise, str(failure)

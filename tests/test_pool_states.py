"""docs/pool.md has the life of a connection as a table. Here each of its cells is walked, on real sockets."""
from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from batches import finish, reset, send, settle, turn_until
from pools import PoolKit, Server

import epollkit
from epollkit import UsageError
from epollkit.pool import OVERTAKING_LIMIT

if epollkit.build_info()["build"] == "debug":
    from epollkit._operations import fake_clock

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "pool.md"


def table() -> dict[tuple[str, str], set[str]]:
    """(what happens, state) -> the states that it may be in afterwards, which are the words in bold."""
    rows = [[cell.strip() for cell in line.strip("| \n").split("|")]
            for line in DOCUMENT.read_text().splitlines() if line.startswith("|") and not line.startswith("|---")]
    states = rows[0][1:]
    cells = {}
    for what, *texts in rows[1:]:
        for state, text in zip(states, texts + [""] * (len(states) - len(texts)), strict=True):
            if text:
                cells[what.replace("`", ""), state] = set(re.findall(r"\*\*(\w+)\*\*", text))
    return cells


class Life:
    """A pool with one connection, in a given state."""

    def __init__(self, loop: Any, stage: Any, state: str, then: Any = None, **options: Any) -> None:
        self.kit = PoolKit(loop, stage, **{"idle_timeout": 5.0, **options})
        self.other = Server(stage)
        self.then, self.far, self.asked = then, None, None
        getattr(self, state)()
        self.state_before = state
        self.stream = self.kit.made[-1]
        assert self.state == state

    @property
    def state(self) -> str:
        self.kit.check()
        return self.kit.state(self.kit.made[0])

    def connecting(self) -> None:
        self.asked = self.kit.ask(then=self.then)

    def out(self) -> None:
        self.connecting()
        self.far = self.kit.server.accept()
        turn_until(self.kit.loop, lambda: self.asked.received)

    def idle(self) -> None:
        self.then = None
        self.out()
        self.kit.release(self.kit.made[0])

    def due(self) -> None:
        self.idle()
        self.connecting()

    def due_again(self) -> None:
        self.connecting()
        self.state_before = self.state
        assert self.state == "due"

    def closing(self) -> None:
        self.out()
        self.kit.made[0].write(bytes(10_000_000))
        self.kit.release(self.kit.made[0])

    def settled(self) -> str:
        self.kit.settle()
        return self.state

    def another(self) -> str:
        """Its request gets another connection, if there is one."""
        state = self.settled()
        if self.state_before == "due":
            turn_until(self.kit.loop, lambda: len(self.kit.made) == 2 and self.asked.received)
            assert self.asked.stream is self.kit.made[1]
        return state

    def refused(self, call: Callable[[], object]) -> str:
        if self.state_before in ("connecting", "idle", "due"):
            with pytest.raises(UsageError):
                call()
        else:
            call()
        return self.state


Make = Callable[..., Life]
Walk = Callable[[Make, str], Iterator[str]]
WALKS: dict[str, Walk] = {}


def walks(what: str) -> Callable[[Walk], Walk]:
    def add(walk: Walk) -> Walk:
        WALKS[what] = walk
        return walk
    return add


@walks("it is connected")
def connected(make, state):
    life = make(state)
    turn_until(life.kit.loop, lambda: life.asked.received)
    yield life.state
    life = make(state)
    life.asked.request.cancel()
    turn_until(life.kit.loop, lambda: life.state != "connecting")
    yield life.state


@walks("its connect fails")
def fails(make, state):
    life = make(state)
    life.kit.made[0].on_open = life.kit.made[0].close
    turn_until(life.kit.loop, lambda: life.asked.received)
    assert life.asked.error
    yield life.state
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        refused = life.kit.ask(sock.getsockname())
    turn_until(life.kit.loop, lambda: refused.received)
    assert refused.error
    assert life.kit.stats.open == 0


@walks("somebody asks for its address")
def asked(make, state):
    life = make(state, max_open=1)
    before = life.kit.stats
    again = life.kit.ask()
    assert again.state == {"idle": "due"}.get(state, "waiting")
    assert life.kit.stats.connects == before.connects
    yield life.state
    again.request.cancel()
    life = make(state)
    if state == "connecting":
        life.asked.request.cancel()         # a connect that nobody waits for
        again = life.kit.ask()
        assert life.kit.stats.connects == 1
        yield life.state


@walks("its turn comes")
def turn_comes(make, state):
    yield make(state).settled()


@walks("it is given back clean")
def given_back(make, state):
    life = make(state)
    yield life.refused(lambda: life.kit.release(life.stream))
    if state != "out":
        return
    for own, overtaken in ((True, 0), (True, OVERTAKING_LIMIT), (False, 0)):
        life = make(state, max_open=1)
        stranger = life.kit.ask(life.other.address)
        stranger.request._overtaken = overtaken
        asked = life.kit.ask() if own else None
        life.kit.release(life.stream)
        yield life.state
        turn_until(life.kit.loop, lambda asked=asked, other=stranger: (asked or other).received or other.received)
        for one in (stranger, asked):
            if one is not None:
                one.request.cancel()


@walks("it is given back otherwise")
def given_back_otherwise(make, state):
    life = make(state)
    if state == "out":
        life.stream.write(bytes(10_000_000))
    yield life.refused(lambda: life.kit.release(life.stream))
    if state == "out":
        life = make(state)
        finish(life.far, life.stream)
        life.kit.release(life.stream)
        yield life.state


@walks("its request is cancelled")
def cancelled(make, state):
    life = make(state)
    life.asked.request.cancel()
    yield life.state
    if state == "due":
        life = make(state, max_open=1)
        again = life.kit.ask()
        life.asked.request.cancel()
        yield life.state
        life.kit.settle()
        assert again.stream is life.kit.made[0]
        assert life.asked.received == []


@walks("the peer speaks")
def speaks(make, state):
    life = make(state)
    if state == "closing":
        life.far.send(b"?")
        yield life.settled()
        return
    send(life.far, life.kit.made[0])
    yield life.another()
    if state == "out":
        assert life.stream.upcalls[-1] == ("data", b"x")


@walks("the peer ends")
def ends(make, state):
    if state == "connecting":
        life = make(state, ssl=ssl.create_default_context())
        life.kit.server.accept().close()
        turn_until(life.kit.loop, lambda: life.asked.received)
        assert isinstance(life.asked.error, OSError)
        yield life.state
        return
    life = make(state)
    (reset if state == "closing" else finish)(life.far, life.kit.made[0])
    yield life.another()


@walks("idle_timeout is over")
def expires(make, state):
    if epollkit.build_info()["build"] != "debug":
        pytest.skip("only the debug build has a clock that can be moved")
    with fake_clock() as clock:
        life = make("idle" if state == "due" else state)
        clock.advance(6)
        if state == "due":                  # asked for by a posted call: deadlines come behind those
            life.kit.loop.call_soon(life.due_again)
            life.kit.loop.turn(0)
            assert life.kit.stats.expired == 1
        yield life.another()


@walks("its place is needed")
def needed(make, state):
    life = make(state, max_open=1)
    stranger = life.kit.ask(life.other.address)
    yield life.state
    stranger.request.cancel()


@walks("its user closes it")
def user_closes(make, state):
    life = make(state)
    life.stream.abort() if state == "closing" else life.stream.close()
    yield life.settled()


@walks("receive raises")
def raises(make, state):
    def fail(stream):
        seen.append(life.kit.state(stream))
        raise ValueError("of mine")

    seen = []
    life = make("connecting", then=fail)
    life.kit.loop.set_exception_handler(lambda error, source: None)
    turn_until(life.kit.loop, lambda: seen)
    assert seen == [state]
    yield life.settled()


@walks("the pool is closed")
def pool_closed(make, state):
    life = make(state)
    life.kit.pool.close()
    yield life.settled()
    if state in ("connecting", "due"):
        assert isinstance(life.asked.error, UsageError)


@walks("the loop is closed")
def loop_closed(make, state):
    with epollkit.Loop() as loop:
        life = make(state, loop=loop)
    assert life.stream.upcalls[-1] == ("close", None)
    assert [type(error) for _, error in life.asked.received] == [
        UsageError if state in ("connecting", "due") else type(None)]
    yield life.state


@pytest.mark.parametrize(("what", "state"), [pytest.param(*cell, id="-".join(cell)) for cell in table()])
def test_a_cell_of_the_table(loop, stage, what, state):
    def make(state: str, loop: Any = loop, **options: Any) -> Life:
        return Life(loop, stage, state, **options)

    assert set(WALKS[what](make, state)) == table()[what, state]
    settle(loop)


def test_the_table_is_about_what_can_happen():
    assert set(WALKS) == {what for what, _ in table()}
    assert len(table()) > 50

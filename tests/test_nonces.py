"""Connections by the thousand through one pool of 64 slots, each with a nonce of its own that every byte belongs to.

Both ends do what may leave something behind: close or reset at any time, with bytes unread, unsent or half a frame,
paused, with limits, deadlines, timers and posted calls of their own. Whoever sees a byte, a call or a deadline that is
another's says so. `tox -e long` makes it a hundred thousand; all of it in one thread, from one seed.
"""
from __future__ import annotations

import random
import socket
import struct
from typing import Any

import pytest

import epollkit
from epollkit import ConnectError, LimitReached, PeerError, RateLimit, Stream

SLOTS = 64
NONCE_BYTES = 16
AT_ONCE = 80                # clients, so that some wait until there is a slot for them


class World:
    """Two loops that take turns, and what is known of all connections."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.server = epollkit.Loop(max_connections=SLOTS)
        self.clients = epollkit.Loop(max_connections=SLOTS + AT_ONCE)
        self.failed: list[Any] = []
        self.indices: set[int] = set()          # slots that were used
        self.begun = self.under_way = self.checked_bytes = self.greeted = self.ended = 0
        self.plain: list[socket.socket] = []
        for loop in (self.server, self.clients):
            loop.set_exception_handler(lambda error, source: self.failed.append((error, source)))
        self.listener = self.server.listen(("127.0.0.1", 0), lambda: ServerSide(self), backlog=AT_ONCE)

    def begin(self) -> None:
        """One more client."""
        self.begun += 1
        if self.chance.random() < 0.15:
            self.begin_plain()
            return
        self.under_way += 1
        self.clients.connect(self.listener.address, lambda: ClientSide(self))

    def begin_plain(self) -> None:
        """A plain socket, that sends its nonce some times, and goes without a look at what comes."""
        sock = socket.create_connection(self.listener.address)
        sock.sendall((self.chance.randbytes(NONCE_BYTES) * 20)[:self.chance.randrange(300)])
        if self.chance.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.plain.append(sock)

    def run(self, connections: int) -> None:
        while self.begun < connections or self.under_way or self.server.stats().live > 1:
            while self.begun < connections and self.under_way + len(self.plain) < AT_ONCE:
                self.begin()
            made = self.clients.turn(0) + self.server.turn(0)
            while self.plain and (not made or self.chance.random() < 0.1):
                self.plain.pop(self.chance.randrange(len(self.plain))).close()
            if not made:
                self.server.turn(0.001)
            assert not self.failed, self.failed

    def close(self) -> None:
        self.listener.close()
        self.clients.close()
        self.server.close()


class Side(Stream):
    """An end of a connection. Every byte that comes must be its nonce's next."""

    nonce = b""
    taken = 0
    shut = False
    over = False

    def __init__(self, world: World) -> None:
        self.world = world
        self.chance = world.chance
        self.rest = b""

    def check(self, data: bytes) -> None:
        assert not self.over
        start = self.taken % NONCE_BYTES
        assert data == (self.nonce * (len(data) // NONCE_BYTES + 2))[start:start + len(data)], "somebody else's bytes"
        self.taken += len(data)
        self.world.checked_bytes += len(data)

    def send_some(self, most: int) -> None:
        if not self.is_closing and not self.shut:
            self.write(self.nonce * self.chance.randrange(1, most))

    def leave_something(self) -> None:
        """What is to go with this connection."""
        for _ in range(self.chance.randrange(3)):
            what = self.chance.randrange(9)
            if self.is_closing:
                return
            if what == 0:
                self.call_soon(self.called, self.nonce)
            elif what == 1:
                self.call_later(self.chance.random() / 500, self.called, self.nonce)
            elif what == 2:
                self.pause_reading()
                self.call_later(self.chance.random() / 1000, self.go_on)
            elif what == 3:
                self.set_timeout(read=self.chance.random() / 50 + 0.001, life=0.05)
            elif what == 4:
                self.set_limits(high=self.chance.randrange(100), hard=self.chance.choice([1000, 1 << 20]))
            elif what == 5:
                self.set_rate(read=RateLimit(1e7), write=RateLimit(1e7))
            elif what == 6:
                self.send_some(self.chance.choice([5, 500, 20_000]))
            elif what == 7:
                self.read_exactly(NONCE_BYTES)
            else:
                self.read_raw()

    def called(self, nonce: bytes) -> None:
        assert not self.over
        assert nonce == self.nonce

    def go_on(self) -> None:
        assert not self.over
        if not self.is_closing:
            self.resume_reading()

    def perhaps_end(self, often: float) -> None:
        if self.chance.random() < often and not self.is_closing:
            self.chance.choice([self.close, self.abort, self.close, self.shutdown])()

    def shutdown(self) -> None:
        self.shut = True
        self.shutdown_write()
        self.set_timeout(life=0.02)

    def on_timeout(self, which: str) -> None:
        assert not self.over
        self.abort()

    def on_drain(self) -> None:
        assert not self.over

    def on_close(self, error: BaseException | None) -> None:
        assert not self.over
        self.over = True
        self.world.ended += 1
        assert error is None or isinstance(error, (OSError, LimitReached, PeerError)), error
        assert not isinstance(error, ConnectError) or not self.nonce


class ServerSide(Side):
    def on_open(self) -> None:
        assert self.nonce == b""
        self.world.indices.add(self.token.index)
        self.set_timeout(life=0.05)
        self.perhaps_end(0.05)

    def on_data(self, data: bytes) -> None:
        if not self.nonce:
            self.rest += data
            if len(self.rest) < NONCE_BYTES:
                return
            data, self.rest = self.rest, b""
            self.nonce = data[:NONCE_BYTES]
            self.world.greeted += 1
        self.check(data)
        self.leave_something()
        self.send_some(10)
        self.perhaps_end(0.2)


class ClientSide(Side):
    def on_open(self) -> None:
        self.nonce = self.chance.randbytes(NONCE_BYTES)
        self.set_timeout(life=0.05)
        self.send_some(20)
        self.leave_something()
        self.perhaps_end(0.1)

    def on_data(self, data: bytes) -> None:
        self.check(data)
        self.perhaps_end(0.5)

    def on_close(self, error: BaseException | None) -> None:
        super().on_close(error)
        self.world.under_way -= 1


# -- through a Pool ----------------------------------------------------------------------------------------------------

class Answering(Stream):
    """A server that answers a nonce with some copies of it, and then may say more than it was asked, or leave."""

    def on_open(self) -> None:
        self.read_exactly(NONCE_BYTES)

    def on_data(self, data: bytes) -> None:
        chance = Borrower.chance
        answer = data * (1 + data[0] % 8)
        luck = chance.random()
        if luck < 0.05:
            self.write(answer + b"and one thing more")
        elif luck < 0.1:
            self.write(answer[:chance.randrange(len(answer))])
            self.close()
        else:
            self.write(answer)
            if luck < 0.15:
                chance.choice([self.close, self.abort, self.shutdown_write])()
            elif luck < 0.3:
                self.call_later(chance.random() / 500, chance.choice([self.close, self.abort]))


class Upstream(Stream):
    user: Any = None                        # a Borrower

    def on_data(self, data: bytes) -> None:
        self.user.take(self, data)

    def on_drain(self) -> None:
        assert self.user.asked_for == "limits"
        self.user.stay_calm(self)

    def on_timeout(self, which: str) -> None:
        assert self.user.asked_for == "timeouts"
        self.user.stay_calm(self)

    def on_close(self, error: BaseException | None) -> None:
        if self.user is not None:
            self.user.lose(self)


class Borrower:
    """One request: gets a connection from the pool, sends its nonce, and looks at what comes."""

    chance = random.Random(3)
    pool: Any = None
    ended = answered = 0

    def __init__(self, address: Any) -> None:
        self.nonce = self.chance.randbytes(NONCE_BYTES)
        self.expected = self.nonce * (1 + self.nonce[0] % 8)
        self.asked_for = ""
        self.got = b""
        self.over = False
        self.pool.acquire(address, self.receive)

    def receive(self, stream: Any, error: BaseException | None) -> None:
        assert not self.over
        if error is not None:
            self.end()
            return
        assert stream.user is None, "somebody has it"
        stream.user = self
        what = self.asked_for = self.chance.choice(["", "timeouts", "limits", "frames", "calls", "pause"])
        if what == "timeouts":
            stream.set_timeout(read=0.001, life=0.02)
        elif what == "limits":
            stream.set_limits(high=0)
        elif what == "frames":
            stream.read_exactly(NONCE_BYTES)
        elif what == "calls":
            stream.call_later(0.001, self.stay_calm, stream)
        elif what == "pause":
            stream.pause_reading()
            stream.call_soon(stream.resume_reading)
        stream.write(self.nonce)
        if self.chance.random() < 0.02:
            self.give_back(stream, over=False)

    def take(self, stream: Any, data: bytes) -> None:
        self.stay_calm(stream)
        assert self.asked_for != "frames" or len(data) == NONCE_BYTES
        self.got += data
        assert (self.expected + b"and one thing more").startswith(self.got), "somebody else's answer"
        if len(self.got) >= len(self.expected):
            Borrower.answered += 1
            self.give_back(stream)

    def stay_calm(self, stream: Any) -> None:
        """What it has asked for is called while it has the connection, and then no more."""
        assert stream.user is self
        assert not self.over

    def give_back(self, stream: Any, over: bool = True) -> None:
        """over: nothing is to come. No pool can know that."""
        stream.user = None
        self.end()
        if not over or self.chance.random() < 0.02:
            self.chance.choice([stream.close, stream.abort])()
        self.pool.release(stream)

    def lose(self, stream: Any) -> None:
        self.stay_calm(stream)
        stream.user = None
        self.end()

    def end(self) -> None:
        self.over = True
        Borrower.ended += 1


def ask_and_check(requests: int, seed: int) -> None:
    failed: list[Any] = []
    with epollkit.Loop() as loop:
        loop.set_exception_handler(lambda error, source: failed.append((error, source)))
        listeners = [loop.listen(("127.0.0.1", 0), Answering) for _ in range(3)]
        Borrower.chance = random.Random(seed)
        Borrower.pool = epollkit.Pool(loop, Upstream, max_open=SLOTS, max_waiting=SLOTS, wait_timeout=None)
        Borrower.ended = Borrower.answered = begun = 0
        crowd = SLOTS
        while Borrower.ended < requests:
            if Borrower.chance.random() < 0.1:              # many who wait, or idle connections for the few
                crowd = Borrower.chance.choice([1, 10, SLOTS, 2 * SLOTS])
            while begun < requests and begun - Borrower.ended < crowd:
                begun += 1
                Borrower(Borrower.chance.choice(listeners).address)
            loop.turn(0.01)
            assert not failed, failed
        stats = Borrower.pool.stats()
        assert Borrower.answered > requests * 0.7
        assert stats.kept > requests * 0.5
        assert stats.connects < requests * 0.6
        assert min(stats.ended_while_idle, stats.dropped, stats.hits, stats.evicted) > 0
        Borrower.pool.close()
        Borrower.pool = None


def connect_and_check(connections: int, seed: int) -> None:
    world = World(seed)
    try:
        world.run(connections)
        stats = world.server.stats()
        assert stats.accepted >= connections * 0.99         # a reset may reach a client that waits in the backlog
        assert stats.wrong_deliveries == 0
        assert len(world.indices) <= SLOTS
        assert world.greeted > connections * 0.6, "most have come far enough to be checked"
        assert world.checked_bytes > connections * 100
        assert stats.timers == 0
    finally:
        world.close()


def test_each_sees_its_own_nonce_only():
    """17. Two thousand through 64 slots."""
    connect_and_check(2000, seed=1)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_see_their_own_nonce_only():
    """17. One stream object per connection, one pool of 64 slots."""
    connect_and_check(100_000, seed=2)


def test_each_request_at_a_pool_gets_its_own_answer():
    """17. Three thousand, to three servers, over 64 connections that are used again and again."""
    ask_and_check(3000, seed=3)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_requests_at_a_pool_get_their_own_answers():
    """17. The same for longer."""
    ask_and_check(100_000, seed=4)

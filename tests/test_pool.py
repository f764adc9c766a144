"""Pools: who gets which connection and when, what ends one, and that everything is counted and has a limit."""
from __future__ import annotations

import contextlib
import errno
import gc
import random
import socket
import ssl
import weakref
from collections import OrderedDict

import pytest
from batches import finish, reset, send, settle, turn_until, wait_ready
from pools import PoolKit, Server, Upstream

import epollkit
from epollkit import IN, ConnectError, LimitReached, PeerError, Pool, Stream, UsageError
from epollkit.pool import OVERTAKING_LIMIT

DEBUG = epollkit.build_info()["build"] == "debug"
if DEBUG:
    from epollkit._operations import fake_clock, replaced


@pytest.fixture
def make_pool(loop, stage):
    return lambda **options: PoolKit(loop, stage, **options)


@pytest.fixture
def reported(loop):
    """What the exception handler was told: (exception, source)."""
    found = []
    loop.set_exception_handler(lambda exception, source: found.append((exception, source)))
    return found


@pytest.fixture
def dead():
    """An address where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()


@pytest.fixture
def deaf(stage):
    """An address whose backlog is full: a connect is not answered."""
    listening = stage.own(socket.socket())
    listening.bind(("127.0.0.1", 0))
    listening.listen(0)
    client = stage.own(socket.socket())
    client.connect(listening.getsockname())
    wait_ready(listening)
    return listening.getsockname()


@pytest.fixture
def slow(stage):
    """A server with room for one connection in its backlog: who comes behind that is not answered."""
    return Server(stage, backlog=0)


# -- who gets what -----------------------------------------------------------------------------------------------------

class TestHandingOut:
    @pytest.mark.parametrize("kind", ["tcp", "unix"])
    def test_a_new_one_and_then_the_same_again(self, make_pool, stage, kind):
        kit = make_pool()
        kit.server = Server(stage, kind)
        first, far = kit.get_both()
        assert first.upcalls == [("open", None)]
        first.write(b"a request")
        settle(kit.loop)
        assert far.recv(100) == b"a request"
        kit.answer(far, first)
        kit.release(first)
        assert kit.stats[:4] == (1, 1, 0, 0)
        second = kit.get()
        assert second is first
        second.write(b"another")
        settle(kit.loop)
        assert far.recv(100) == b"another"
        assert first.upcalls == [("open", None), ("data", b"an answer")]
        assert (kit.stats.hits, kit.stats.misses, kit.stats.connects, kit.stats.kept) == (1, 1, 1, 1)

    def test_it_is_received_right_behind_on_open_and_what_both_write_leaves_together(self, make_pool):
        class Greeting(Upstream):
            def on_open(self):
                super().on_open()
                self.write(b"hello, ")

        kit = make_pool(factory=Greeting)
        asked = kit.ask(then=lambda stream: (stream.upcalls.append(("received", None)), stream.write(b"server")))
        far = kit.server.accept()
        turn_until(kit.loop, lambda: asked.received)
        assert asked.stream.upcalls == [("open", None), ("received", None)]
        assert far.recv(100) == b"hello, server"

    def test_each_has_one_of_its_own(self, make_pool):
        kit = make_pool()
        streams = [kit.get() for _ in range(5)]
        assert len({id(stream) for stream in streams}) == 5
        assert kit.stats[:4] == (5, 0, 5, 0)

    def test_the_one_that_was_used_last_comes_first(self, make_pool):
        kit = make_pool()
        streams = [kit.get() for _ in range(3)]
        for i in (1, 0, 2):
            kit.release(streams[i])
        assert [kit.get() for _ in range(3)] == [streams[2], streams[0], streams[1]]

    def test_an_address_gets_its_own_only(self, make_pool, stage):
        kit, other = make_pool(), Server(stage)
        here = kit.get()
        kit.release(here)
        there = kit.get(other.address)
        assert there.peer_address == other.address
        kit.release(there)
        assert kit.get() is here
        assert kit.get(other.address) is there

    def test_a_name_is_an_address_too(self, make_pool):
        kit = make_pool()
        stream = kit.get(("localhost", kit.server.address[1]))
        kit.release(stream)
        assert kit.get(("localhost", kit.server.address[1])) is stream
        assert kit.get() is not stream

    def test_two_connections_for_two_who_ask_at_once(self, make_pool):
        kit = make_pool()
        asked = [kit.ask() for _ in range(2)]
        turn_until(kit.loop, lambda: all(one.received for one in asked))
        assert asked[0].stream is not asked[1].stream
        assert kit.stats.connects == 2

    def test_what_is_given_back_goes_to_who_came_first_and_the_connect_to_the_next(self, make_pool, deaf):
        kit = make_pool()
        stream = kit.get()
        asked = [kit.ask() for _ in range(2)]       # two connects are under way
        kit.release(stream)
        assert [one.state for one in asked] == ["due", "connecting"]
        turn_until(kit.loop, lambda: all(one.received for one in asked))
        assert asked[0].stream is stream
        settle(kit.loop)
        kit.check()
        assert kit.stats[:4] == (3, 1, 2, 0)        # the connect that nobody needs any more is for whoever comes
        assert asked[1].stream is not stream
        assert kit.get() in kit.made
        assert kit.stats.connects == 3

    def test_release_within_receive(self, make_pool):
        kit = make_pool(max_open=1)
        asked = [kit.ask(then=kit.pool.release) for _ in range(5)]
        turn_until(kit.loop, lambda: asked[-1].received)
        kit.settle()
        assert len({id(one.stream) for one in asked}) == 1
        assert kit.order == asked
        assert kit.stats[:4] == (1, 1, 0, 0)

    def test_acquire_within_receive(self, make_pool):
        kit = make_pool()
        inner = []
        kit.ask(then=lambda stream: (kit.pool.release(stream), inner.append(kit.ask())))
        turn_until(kit.loop, lambda: inner and inner[0].received)
        assert inner[0].stream is kit.made[0]


# -- limits ------------------------------------------------------------------------------------------------------------

class TestLimits:
    def test_who_waits_is_served_first_come_first_served(self, make_pool):
        kit = make_pool(max_open=2)
        streams = [kit.get(), kit.get()]
        asked = [kit.ask() for _ in range(4)]
        assert [one.state for one in asked] == ["waiting"] * 4
        assert kit.stats.waiting == 4
        for stream in [*streams, *streams]:
            kit.release(stream)
            kit.settle()
        assert kit.order[2:] == asked
        assert [one.stream for one in asked] == [*streams, *streams]
        assert kit.stats.connects == 2

    @pytest.mark.parametrize("end", ["abort", "close", "peer", "reset", "exception"])
    def test_one_that_ends_while_somebody_has_it_makes_room(self, make_pool, end, reported):
        kit = make_pool(max_open=1)
        stream, far = kit.get_both()
        asked = kit.ask()
        if end in ("abort", "close"):
            getattr(stream, end)()
        elif end == "peer":
            finish(far, stream)
        elif end == "reset":
            reset(far, stream)
        else:
            stream.on_data = lambda data: 1 / 0
            send(far, stream)
        turn_until(kit.loop, lambda: asked.received)
        assert asked.stream is not stream
        assert kit.stats[:4] == (1, 0, 1, 0)

    def test_detached_makes_room(self, make_pool):
        kit = make_pool(max_open=1)
        stream = kit.get()
        asked = kit.ask()
        socket.socket(fileno=stream.detach().fd).close()
        turn_until(kit.loop, lambda: asked.received)
        assert kit.stats.open == 1

    def test_the_least_recently_used_goes_for_another_address(self, make_pool, stage):
        kit, other = make_pool(max_open=3), Server(stage)
        streams = [kit.get() for _ in range(3)]
        for i in (1, 2, 0):
            kit.release(streams[i])
        kit.get(other.address)
        assert [kit.state(stream) for stream in streams] == ["idle", "closed", "idle"]
        assert kit.stats.evicted == 1
        assert streams[1].upcalls == [("open", None), ("close", None)]
        assert kit.get() is streams[0]

    def test_nobody_is_evicted_while_there_is_room(self, make_pool, stage):
        kit, other = make_pool(max_open=2), Server(stage)
        kit.release(kit.get())
        kit.get(other.address)
        assert kit.stats[:2] == (2, 1)

    def test_too_many_wait(self, make_pool):
        kit = make_pool(max_open=1, max_waiting=2)
        stream = kit.get()
        asked = [kit.ask() for _ in range(4)]
        kit.settle()
        assert [one.state for one in asked] == ["waiting", "waiting", "failed", "failed"]
        assert all(isinstance(one.error, LimitReached) for one in asked[2:])
        assert "max_open=1" in str(asked[2].error)
        assert "max_waiting=2" in str(asked[2].error)
        assert kit.stats.refused_full == 2
        kit.release(stream)
        kit.settle()
        assert asked[0].stream is stream

    def test_who_gets_a_place_at_once_does_not_wait(self, make_pool):
        kit = make_pool(max_open=2, max_waiting=0)
        asked = [kit.ask() for _ in range(3)]
        turn_until(kit.loop, lambda: all(one.received for one in asked))
        assert isinstance(asked[2].error, LimitReached)
        kit.release(asked[0].stream)
        assert kit.get() is asked[0].stream

    @pytest.mark.parametrize("max_idle", [0, 1, 2])
    def test_so_many_may_be_idle(self, make_pool, max_idle):
        kit = make_pool(max_idle=max_idle)
        streams = [kit.get() for _ in range(3)]
        for stream in streams:
            kit.release(stream)
        assert kit.stats[:2] == (max_idle, max_idle)
        assert [kit.state(stream) for stream in streams] == ["closed"] * (3 - max_idle) + ["idle"] * max_idle
        assert kit.stats.evicted == 3 - max_idle

    @pytest.mark.debug_build
    def test_who_waits_too_long(self, make_pool):
        with fake_clock() as clock:
            kit = make_pool(max_open=1, wait_timeout=10.0, idle_timeout=None)
            stream = kit.get()
            first = kit.ask()
            clock.advance(5)
            second = kit.ask()
            clock.advance(4.9)
            kit.settle()
            assert first.state == "waiting"
            clock.advance(0.2)
            kit.settle()
            assert isinstance(first.error, TimeoutError)
            assert first.error.errno == errno.ETIMEDOUT
            assert second.state == "waiting"
            kit.release(stream)
            kit.settle()
            assert second.stream is stream
            assert kit.stats.wait_timeouts == 1
            assert kit.loop.stats().timers == 0

    @pytest.mark.debug_build
    def test_who_has_got_a_place_waits_no_longer_for_one(self, make_pool, deaf):
        with fake_clock() as clock:
            kit = make_pool(max_open=1, wait_timeout=1.0)
            stream = kit.get()
            asked = kit.ask(deaf)
            stream.abort()
            kit.settle()
            assert asked.state == "connecting"
            clock.advance(2)
            kit.settle()
            assert asked.state == "connecting"
            assert kit.loop.stats().timers == 0

    @pytest.mark.debug_build
    def test_who_waits_for_ever(self, make_pool):
        with fake_clock() as clock:
            kit = make_pool(max_open=1, wait_timeout=None)
            kit.get()
            asked = kit.ask()
            clock.advance(10**6)
            kit.settle()
            assert asked.state == "waiting"
            assert kit.loop.stats().timers == 0
            asked.request.cancel()

    @pytest.mark.debug_build
    def test_a_connect_has_a_deadline_of_its_own(self, make_pool, deaf):
        with fake_clock() as clock:
            kit = make_pool(wait_timeout=1.0, connect_timeout=5.0)
            asked = kit.ask(deaf)
            clock.advance(4.9)
            kit.settle()
            assert asked.state == "connecting"
            clock.advance(0.2)
            kit.settle()
            assert isinstance(asked.error, ConnectError)
            assert asked.error.errno == errno.ETIMEDOUT
            assert asked.error.address == deaf
            assert kit.stats[:4] == (0, 0, 0, 0)
            assert kit.stats.connect_errors == 1

    @pytest.mark.debug_build
    def test_idle_for_too_long(self, make_pool):
        with fake_clock() as clock:
            kit = make_pool(idle_timeout=60.0)
            streams = [kit.get() for _ in range(2)]
            kit.release(streams[0])
            clock.advance(30)
            kit.release(streams[1])
            clock.advance(29.9)
            kit.settle()
            assert kit.stats.idle == 2
            clock.advance(0.2)
            kit.settle()
            assert kit.stats[:2] == (1, 1)
            assert kit.get() is streams[1]
            clock.advance(1000)
            kit.settle()
            assert kit.stats[:4] == (1, 0, 1, 0)
            assert kit.stats.expired == 1
            assert streams[0].upcalls == [("open", None), ("close", None)]


class TestNobodyStarves:
    @pytest.mark.parametrize("server_idle", [False, True])
    def test_a_busy_address_does_not_keep_another_waiting_for_ever(self, make_pool, stage, server_idle):
        """All places are of one address, and there is always somebody who waits for it."""
        kit, other = make_pool(max_open=1), Server(stage)
        stream = kit.get()
        busy = [kit.ask()]
        patient = kit.ask(other.address)
        served = 0
        while not patient.received:
            busy.append(kit.ask())
            kit.release(stream)
            kit.settle()
            stream = kit.pool._members and next(iter(kit.pool._members.values())).stream
            if patient.state == "waiting":
                served += 1
            else:
                turn_until(kit.loop, lambda: patient.received)
        assert served == OVERTAKING_LIMIT + 1           # the first of them came earlier
        kit.release(patient.stream)
        turn_until(kit.loop, lambda: busy[served].received)
        assert [one for one in kit.order if one in busy] == busy[:served + 1]
        assert kit.stats.connects == 3

    def test_who_has_waited_so_long_gets_the_place_of_what_a_request_leaves(self, make_pool, stage):
        kit, other = make_pool(max_open=1), Server(stage)
        stream = kit.get()
        first = kit.ask()
        patient, late = kit.ask(other.address), kit.ask()
        patient.request._overtaken = OVERTAKING_LIMIT
        kit.release(stream)
        assert first.state == "due"
        first.request.cancel()
        assert (patient.state, late.state) == ("connecting", "waiting")
        late.request.cancel()

    def test_who_is_served_by_another_connection_than_was_made_for_it_overtakes_nobody(self, make_pool, stage, slow):
        kit, other = make_pool(max_open=2), Server(stage)
        stream = kit.get(slow.address)
        first, late = kit.ask(slow.address), kit.ask(other.address)
        assert (first.state, late.state) == ("connecting", "waiting")
        kit.release(stream)
        assert first.state == "due"
        assert late.request._overtaken == 0
        kit.settle()
        assert first.stream is stream
        late.request.cancel()

    def test_an_earlier_request_does_not_count_as_overtaking(self, make_pool, stage):
        kit, other = make_pool(max_open=1), Server(stage)
        stream = kit.get()
        early = [kit.ask() for _ in range(OVERTAKING_LIMIT * 2)]
        late = kit.ask(other.address)
        for asked in early:
            kit.release(stream)
            kit.settle()
            assert asked.stream is stream
        kit.release(stream)
        turn_until(kit.loop, lambda: late.received)
        assert kit.state(stream) == "closed"


# -- what fails --------------------------------------------------------------------------------------------------------

class TestFailing:
    def test_a_connect_is_refused(self, make_pool, dead):
        kit = make_pool()
        asked = kit.ask(dead)
        turn_until(kit.loop, lambda: asked.received)
        assert isinstance(asked.error, ConnectError)
        assert asked.error.errno == errno.ECONNREFUSED
        assert asked.error.address == dead
        assert (kit.stats.connects, kit.stats.connect_errors, kit.stats.open) == (1, 1, 0)
        assert kit.made[0].upcalls == [("close", asked.error)]

    def test_each_who_waits_for_a_dead_server_is_told(self, make_pool, dead):
        kit = make_pool(max_open=2)
        asked = [kit.ask(dead) for _ in range(10)]
        turn_until(kit.loop, lambda: all(one.received for one in asked))
        kit.check()
        assert kit.order == asked
        assert all(isinstance(one.error, ConnectError) for one in asked)
        assert kit.stats.connect_errors == 10

    def test_a_failed_connect_is_nobodys_if_there_are_enough_others(self, make_pool, slow):
        kit = make_pool()
        stream = kit.get(slow.address)
        slow.accept()
        asked = [kit.ask(slow.address) for _ in range(2)]
        kit.release(stream)                     # for the first; now there are two connects for one who waits
        kit.made[1].on_open = kit.made[1].abort
        turn_until(kit.loop, lambda: kit.stats.connect_errors)
        kit.settle()
        assert asked[0].stream is stream
        assert asked[1].state == "connecting"   # for the second connect
        asked[1].request.cancel()

    def test_a_failed_connect_makes_room(self, make_pool, dead):
        kit = make_pool(max_open=1)
        refused, other = kit.ask(dead), kit.ask()
        assert (refused.state, other.state) == ("connecting", "waiting")
        turn_until(kit.loop, lambda: other.received)
        assert isinstance(refused.error, ConnectError)
        assert other.stream.peer_address == kit.server.address

    def test_on_open_closes_it(self, make_pool):
        class Odd(Upstream):
            def on_open(self):
                super().on_open()
                self.close()

        kit = make_pool(factory=Odd)
        asked = kit.ask()
        turn_until(kit.loop, lambda: asked.received)
        assert isinstance(asked.error, ConnectionAbortedError)
        assert kit.stats[:4] == (0, 0, 0, 0)

    def test_on_open_raises(self, make_pool, reported):
        class Odd(Upstream):
            def on_open(self):
                raise ValueError("of mine")

        kit = make_pool(factory=Odd)
        asked = kit.ask()
        turn_until(kit.loop, lambda: asked.received)
        assert isinstance(asked.error, ValueError)
        assert [str(error) for error, _ in reported] == ["of mine"]

    def test_the_factory_raises(self, loop, stage):
        def make():
            raise ValueError("of mine")

        kit = PoolKit(loop, stage, make, max_open=1)
        asked = [kit.ask() for _ in range(2000)]         # each one's own failure, and no recursion
        kit.settle()
        assert all(isinstance(one.error, ValueError) for one in asked)
        assert kit.stats[:4] == (0, 0, 0, 0)

    @pytest.mark.parametrize("made", [None, "a string", 5])
    def test_the_factory_makes_no_stream(self, loop, stage, made):
        kit = PoolKit(loop, stage, lambda: made)
        asked = kit.ask()
        kit.settle()
        assert isinstance(asked.error, UsageError)
        assert kit.stats.open == 0

    def test_the_factory_makes_the_same_again(self, loop, stage):
        stream = Upstream()
        kit = PoolKit(loop, stage, lambda: stream)
        assert kit.get() is stream
        asked = kit.ask()
        kit.settle()
        assert isinstance(asked.error, UsageError)
        assert kit.state(stream) == "out"
        assert kit.stats[:4] == (1, 0, 1, 0)

    def test_the_factory_closes_the_pool(self, loop, stage):
        def make():
            kit.pool.close()
            return Upstream()

        kit = PoolKit(loop, stage, make)
        asked = kit.ask()
        kit.settle()
        assert isinstance(asked.error, UsageError)
        assert kit.made[0].upcalls == [("close", None)]

    def test_the_factory_asks_for_another(self, loop, stage):
        def make():
            if len(asked) < 4:
                asked.append(None)
                asked[asked.index(None)] = kit.ask(then=lambda stream: kit.pool.release(stream))
            return Upstream()

        asked = []
        kit = PoolKit(loop, stage, make, max_open=2)
        asked.append(kit.ask(then=lambda stream: kit.pool.release(stream)))
        turn_until(kit.loop, lambda: len(kit.order) == len(asked))
        kit.settle()
        assert kit.stats[:3] == (2, 2, 0)

    @pytest.mark.parametrize("is_new", [True, False])
    def test_receive_raises(self, make_pool, reported, is_new):
        def fail(stream):
            raise failure

        kit = make_pool(max_open=1)
        if not is_new:
            kit.release(kit.get())
        failure = ValueError("of mine")
        kit.ask(then=fail)
        other = kit.ask()
        turn_until(kit.loop, lambda: other.received)
        assert [error for error, _ in reported] == [failure]
        assert kit.made[0].upcalls == [("open", None), ("close", failure)]
        assert kit.stats[:4] == (1, 0, 1, 0)

    def test_receive_raises_when_it_is_told_an_error(self, make_pool, reported, dead):
        def fail(stream):
            raise ValueError("of mine")

        kit = make_pool()
        asked = [kit.ask(dead, fail) for _ in range(3)]
        turn_until(kit.loop, lambda: all(one.received for one in asked))
        kit.settle()
        assert [source for _, source in reported] == [one.receive for one in asked]

    def test_ctrl_c_in_receive(self, make_pool):
        def interrupt(stream):
            raise KeyboardInterrupt

        kit = make_pool()
        kit.release(kit.get())
        kit.ask(then=interrupt)
        with pytest.raises(KeyboardInterrupt):
            kit.settle()
        kit.check()
        assert kit.state(kit.made[0]) == "out"
        kit.release(kit.made[0])
        assert kit.get() is kit.made[0]


# -- 18 ----------------------------------------------------------------------------------------------------------------

ENDS = {"ends": finish, "resets": reset, "speaks": send}


class TestAtTheCheckOut:
    """18. A backend ends or breaks an idle connection, or says something on it, while it is being checked out."""

    def asked_in_batch(self, kit, stream, far, end, order):
        """One batch: the backend's event, and somebody who asks, in that order or the other."""
        asked, event = [], kit.stage.event()
        kit.stage.watch(kit.loop, event, IN, lambda token, events: (event.drain(), asked.append(kit.ask())))
        settle(kit.loop)
        if order == "asked first":
            event.fire()
        end(far, stream)
        if order == "asked last":
            event.fire()
        before = kit.loop.stats().batches
        kit.loop.turn(0)
        assert kit.loop.stats().batches == before + 1
        kit.check()
        assert asked
        return asked[0]

    @pytest.mark.parametrize("order", ["asked first", "asked last"])
    @pytest.mark.parametrize("end", ENDS)
    def test_in_one_batch(self, make_pool, end, order):
        """18. Its event reaches the pool before the request's turn comes."""
        kit = make_pool()
        stream, far = kit.get_both()
        kit.release(stream)
        asked = self.asked_in_batch(kit, stream, far, ENDS[end], order)
        turn_until(kit.loop, lambda: asked.received)
        assert asked.stream is not stream
        assert kit.stats.spoke_while_idle == (end == "speaks")
        assert kit.stats.ended_while_idle == (end != "speaks")
        assert [name for name, _ in stream.upcalls] == ["open", "close"]

    @pytest.mark.parametrize("end", ENDS)
    def test_between_two_batches(self, make_pool, end):
        """18. Its event is in the kernel when the request's turn comes, and in the batch behind that."""
        kit = make_pool()
        stream, far = kit.get_both()
        kit.release(stream)
        asked = kit.ask()
        assert asked.state == "due"
        ENDS[end](far, stream)
        kit.loop.turn(0)
        assert kit.stats.dead_at_checkout == 1
        turn_until(kit.loop, lambda: asked.received)
        assert asked.stream is not stream
        assert [name for name, _ in stream.upcalls] == ["open", "close"]

    @pytest.mark.parametrize("end", ENDS)
    def test_all_but_one_are_dead(self, make_pool, end):
        """18. The next one is tried, and the next."""
        kit = make_pool()
        both = [kit.get_both() for _ in range(4)]
        for stream, _ in both:
            kit.release(stream)
        asked = kit.ask()
        for stream, far in both[1:]:
            ENDS[end](far, stream)
        kit.loop.turn(0)
        turn_until(kit.loop, lambda: asked.received)
        assert asked.stream is both[0][0]
        kit.settle()
        assert kit.stats.connects == 4
        assert kit.stats.dead_at_checkout + kit.stats.spoke_while_idle + kit.stats.ended_while_idle == 3

    def test_all_places_are_taken_by_the_dead(self, make_pool):
        """18. The request that had one of them goes before all who wait."""
        kit = make_pool(max_open=1)
        stream, far = kit.get_both()
        kit.release(stream)
        asked = [kit.ask() for _ in range(3)]
        finish(far, stream)
        turn_until(kit.loop, lambda: asked[0].received)
        kit.settle()
        assert asked[0].stream is not stream
        assert [one.state for one in asked] == ["received", "waiting", "waiting"]
        for one in asked[1:]:
            one.request.cancel()

    def test_while_idle(self, make_pool):
        kit = make_pool()
        both = [kit.get_both() for _ in range(3)]
        for (stream, far), end in zip(both, ENDS.values(), strict=True):
            kit.release(stream)
            end(far, stream)
        kit.settle()
        assert kit.stats[:4] == (0, 0, 0, 0)
        assert (kit.stats.ended_while_idle, kit.stats.spoke_while_idle) == (2, 1)
        assert [type(stream.upcalls[-1][1]) for stream, _ in both] == [type(None), ConnectionResetError, PeerError]


# -- giving back -------------------------------------------------------------------------------------------------------

class TestGivingBack:
    @pytest.mark.parametrize("unclean", ["unread", "unsent", "half closed", "peer ended", "half a frame"])
    def test_what_is_not_clean_is_closed(self, make_pool, unclean):
        kit = make_pool()
        stream, far = kit.get_both()
        if unclean == "unread":
            send(far, stream)
        elif unclean == "unsent":
            stream.write(b"x" * 10_000_000)
        elif unclean == "half closed":
            stream.shutdown_write()
        elif unclean == "peer ended":
            finish(far, stream)
        else:
            stream.read_exactly(100)
            send(far, stream)
            settle(kit.loop)
        kit.release(stream)
        assert kit.stats.dropped == 1
        assert kit.state(stream) in ("closing", "closed")
        with pytest.raises(UsageError):
            stream.write(b"x")
        while kit.stats.open:                   # what was written is still sent, and counts as long as it takes
            with contextlib.suppress(BlockingIOError, ConnectionError):
                if far.fileno() >= 0 and far.recv(1 << 20) == b"":
                    far.close()
            kit.loop.turn(0)
        kit.settle()
        assert [name for name, _ in stream.upcalls] == ["open", "close"]

    def test_twice(self, make_pool):
        kit = make_pool()
        stream = kit.get()
        kit.release(stream)
        with pytest.raises(UsageError, match="given back already"):
            kit.release(stream)
        kit.ask()
        with pytest.raises(UsageError, match="given back already"):
            kit.release(stream)

    def test_what_is_not_yet_handed_out(self, make_pool):
        class Hasty(Upstream):
            def on_open(self):
                kit.pool.release(self)

        kit = make_pool(factory=Hasty)
        asked = kit.ask()
        turn_until(kit.loop, lambda: asked.received)
        assert isinstance(asked.error, UsageError)
        assert "nobody's yet" in str(asked.error)

    def test_what_is_closed(self, make_pool):
        kit = make_pool()
        stream = kit.get()
        stream.on_close = lambda error: kit.pool.release(stream)
        stream.close()
        kit.release(stream)
        kit.settle()
        kit.release(stream)
        assert kit.stats[:4] == (0, 0, 0, 0)

    @pytest.mark.parametrize("other", [Stream(), None, "a string"])
    def test_what_is_not_of_this_pool(self, make_pool, other):
        kit = make_pool()
        if isinstance(other, Stream):
            kit.pool.release(other)             # never opened: closed, as far as anybody can tell
            kit, elsewhere = make_pool(), make_pool()
            other = elsewhere.get()
        with pytest.raises(UsageError, match="not of this pool"):
            kit.release(other)

    def test_in_the_middle_of_its_own_upcall(self, make_pool):
        """What it wrote there leaves, and the next frame is not for its last user."""
        class Frames(Upstream):
            def on_data(self, data):
                super().on_data(data)
                self.write(b"thanks")
                kit.pool.release(self)

        kit = make_pool(factory=Frames)
        stream, far = kit.get_both()
        stream.read_until(b"\n")
        send(far, stream, b"one line\n")
        kit.settle()
        assert far.recv(100) == b"thanks"
        assert kit.get() is stream
        stream.read_until(b"\n")
        send(far, stream, b"one line\nand another\n")
        kit.settle()
        assert kit.state(stream) == "closed"
        assert stream.upcalls == [("open", None), ("data", b"one line\n"), ("data", b"one line\n"), ("close", None)]


# -- cancelling and closing --------------------------------------------------------------------------------------------

class TestCancelling:
    def test_who_waits(self, make_pool):
        kit = make_pool(max_open=1)
        stream = kit.get()
        asked = [kit.ask() for _ in range(3)]
        asked[0].request.cancel()
        asked[0].request.cancel()
        kit.release(stream)
        kit.settle()
        assert [one.state for one in asked] == ["cancelled", "received", "waiting"]
        assert asked[0].received == []
        assert kit.stats.cancelled == 1
        asked[2].request.cancel()

    def test_who_was_promised_a_connection(self, make_pool):
        """The connect goes on, for the next."""
        kit = make_pool(max_open=1)
        first, second = kit.ask(), kit.ask()
        assert (first.state, second.state) == ("connecting", "waiting")
        first.request.cancel()
        kit.check()
        assert second.state == "connecting"
        second.request.cancel()
        kit.settle()
        turn_until(kit.loop, lambda: kit.stats.idle)
        assert first.received == second.received == []
        assert kit.get() is kit.made[0]

    def test_who_is_about_to_receive(self, make_pool):
        kit = make_pool(max_open=1)
        stream = kit.get()
        first, second = kit.ask(), kit.ask()
        kit.release(stream)
        assert first.state == "due"
        first.request.cancel()
        kit.check()
        assert second.state == "due"
        kit.settle()
        assert first.received == []
        assert second.stream is stream

    def test_who_is_about_to_be_told(self, make_pool):
        kit = make_pool(max_open=1, max_waiting=0)
        kit.get()
        asked = kit.ask()
        assert asked.state == "failed"
        asked.request.cancel()
        kit.settle()
        assert asked.received == []
        assert asked.state == "cancelled"

    def test_too_late(self, make_pool):
        kit = make_pool()
        asked = kit.ask()
        turn_until(kit.loop, lambda: asked.received)
        asked.request.cancel()
        assert asked.state == "received"
        assert kit.stats.cancelled == 0

    def test_of_an_address_that_nobody_else_wants_nothing_is_left(self, make_pool, stage):
        kit = make_pool(max_open=1)
        kit.get()
        for i in range(10):
            kit.ask(("127.0.0.1", 1 + i)).request.cancel()
        assert list(kit.pool._destinations) == [kit.server.address]


class TestClosing:
    def test_all_that_there_is(self, make_pool, deaf):
        kit = make_pool(max_open=4)
        out, idle = kit.get(), kit.get()
        kit.release(idle)
        due = kit.ask()
        connecting = [kit.ask(deaf) for _ in range(2)]
        waiting = kit.ask(deaf)
        assert [one.state for one in (*connecting, waiting, due)] == ["connecting", "connecting", "waiting", "due"]
        kit.pool.close()
        kit.pool.close()
        assert kit.pool.closed
        kit.settle()
        for asked in (*connecting, waiting, due):
            assert isinstance(asked.error, UsageError)
            assert "closed" in str(asked.error)
        assert kit.stats[:4] == (1, 0, 1, 0)
        assert not out.is_closing
        with pytest.raises(UsageError, match="is closed"):
            kit.pool.acquire(kit.server.address, print)
        kit.release(out)
        kit.settle()
        assert kit.stats[:4] == (0, 0, 0, 0)
        assert out.upcalls == [("open", None), ("close", None)]

    def test_when_the_loop_is_closed(self, stage, deaf):
        with epollkit.Loop() as loop:
            kit = PoolKit(loop, stage, max_open=4)
            out, idle = kit.get(), kit.get()
            asked = [kit.ask(deaf) for _ in range(3)]
            kit.release(idle)
            asked.append(kit.ask())
        assert kit.pool.closed
        assert all("the loop of this pool was closed" in str(one.error) for one in asked)
        assert [stream.upcalls[-1] for stream in (out, idle)] == [("close", None)] * 2
        assert kit.stats[:4] == (0, 0, 0, 0)
        with pytest.raises(UsageError):
            kit.pool.acquire(kit.server.address, print)

    def test_when_the_loop_is_closed_and_receive_raises(self, stage, deaf):
        reported = []
        with epollkit.Loop() as loop:
            loop.set_exception_handler(lambda *report: reported.append(report))
            kit = PoolKit(loop, stage, max_open=1)
            asked = [kit.ask(deaf, lambda stream: 1 / 0) for _ in range(3)]
        assert [source for _, source in reported] == [one.receive for one in asked]

    def test_a_loop_that_is_dropped(self, stage):
        """Pool, loop, streams and requests refer to each other: garbage, all of it."""
        def drop():
            loop = epollkit.Loop()
            server = Server(stage)
            pool = Pool(loop, Upstream)
            received = []
            pool.acquire(server.address, lambda stream, error: received.append(stream))
            turn_until(loop, lambda: received)
            pool.release(received[0])
            pool.acquire(server.address, lambda stream, error: received.append(pool))
            pool.acquire(server.address, lambda stream, error: received.append(loop))

        drop()
        with pytest.warns(ResourceWarning, match="unclosed loop"):
            gc.collect()

    def test_a_pool_that_is_dropped_lives_on_in_its_connections(self, make_pool):
        kit = make_pool()
        stream, far = kit.get_both()
        kit.release(stream)
        finish(far, stream)
        kit.settle()
        assert kit.stats.ended_while_idle == 1


# -- TLS ---------------------------------------------------------------------------------------------------------------

class Echo(Upstream):
    def on_data(self, data):
        self.write(data)


class Framed(Upstream):
    def on_data(self, data):
        Upstream.on_data(self, data)
        then, self.then = getattr(self, "then", None), None
        if then is not None:
            then()


class TestTls:
    @pytest.fixture
    def secure(self, loop, stage, certificates):
        """A server that speaks TLS, and a pool that does."""
        served = []
        listener = stage.listen(loop, lambda: served.append(Echo()) or served[-1], ssl=certificates.server_context())
        kit = PoolKit(loop, stage, ssl=certificates.client_context(), server_hostname="localhost", max_open=1)
        kit.address, kit.served = listener.address, served
        return kit

    def test_one_session_for_many_requests(self, secure):
        stream = secure.get(secure.address)
        for i in range(5):
            stream.write(b"request %d" % i)
            turn_until(secure.loop, lambda: stream.upcalls[-1][0] == "data")
            assert stream.upcalls.pop() == ("data", b"request %d" % i)
            secure.release(stream)
            assert secure.get(secure.address) is stream
        assert secure.stats.connects == 1

    def test_what_one_at_rest_has_to_say_is_not_delivered_to_another(self, secure, certificates):
        """The other one is in the middle of a record with several frames, when it gives this one back."""
        kit = PoolKit(secure.loop, secure.stage, Framed, ssl=certificates.client_context(), server_hostname="localhost")
        reader = kit.get(secure.address)
        talked = kit.get(secure.address)
        turn_until(kit.loop, lambda: [served.upcalls for served in secure.served] == [[("open", None)]] * 2)
        kit.settle()
        talked.pause_reading()
        secure.served[1].write(b"not for you")
        reader.then = lambda: kit.release(talked)
        reader.read_exactly(4)
        reader.write(b"one two six ")
        turn_until(kit.loop, lambda: len(reader.upcalls) == 4)
        assert [data for _, data in reader.upcalls[1:]] == [b"one ", b"two ", b"six "]
        kit.settle()
        assert [name for name, _ in talked.upcalls] == ["open", "close"]

    @pytest.mark.parametrize("kind", ["answers", "one look"])
    def test_what_tls_says_by_itself_to_one_at_rest_is_bounded(self, loop, stage, certificates, kind):
        """Keys renewed for ever, tickets without end: by what has to be answered, and by what is taken at once."""
        tickets, taken, released = [], [], []

        def give():
            taken.append(tickets.pop())
            send(far, kit.made[0], taken[-1])

        class Talk(ssl.SSLObject):
            def read(self, *arguments):
                if released and kind == "one look":         # another one, as fast as they are read
                    give()
                try:
                    return super().read(*arguments)
                finally:
                    if released and kind == "answers":
                        super().write(bytes(16384))

        contexts = certificates.server_context(), certificates.client_context()
        contexts[0].num_tickets = 3000
        contexts[1].sslobject_class = Talk
        kit = PoolKit(loop, stage, ssl=contexts[1], server_hostname="localhost")
        asked = kit.ask()
        kit.settle()
        far = kit.server.accept()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = contexts[0].wrap_bio(incoming, outgoing, server_side=True)
        incoming.write(far.recv(65536))
        with pytest.raises(ssl.SSLWantReadError):
            server.do_handshake()
        send(far, kit.made[0], outgoing.read())
        kit.settle()
        incoming.write(far.recv(65536))
        server.do_handshake()
        while outgoing.pending:
            header = outgoing.read(5)
            tickets.insert(0, header + outgoing.read(int.from_bytes(header[3:], "big")))
        kit.release(asked.stream)
        released.append(True)
        for _ in range(1 if kind == "one look" else 4):     # the last one is too many
            assert kit.stats.idle == 1
            give()
            kit.settle()
        assert sum(map(len, taken)) < 300_000
        assert kit.stats[:2] == (0, 0)
        assert kit.stats.spoke_while_idle == 1
        assert isinstance(kit.made[0].upcalls[-1][1], PeerError)

    def test_it_leaves_with_a_close_notify(self, secure):
        """Evicted for another address, or idle for too long: the server sees an end, not one that was cut off."""
        secure.release(secure.get(secure.address))
        turn_until(secure.loop, lambda: secure.served and secure.served[0].upcalls)
        secure.settle()
        asked = secure.ask()                            # a server that does not speak TLS
        turn_until(secure.loop, lambda: secure.served[0].upcalls[-1:] == [("close", None)])
        assert secure.served[0].upcalls == [("open", None), ("close", None)]
        secure.pool.close()
        secure.settle()
        assert isinstance(asked.error, UsageError)

    def test_a_handshake_that_fails(self, secure, stage, certificates):
        context = ssl.create_default_context()          # does not know the authority
        kit = PoolKit(secure.loop, stage, ssl=context, server_hostname="localhost")
        asked = kit.ask(secure.address)
        turn_until(kit.loop, lambda: asked.received)
        assert isinstance(asked.error, ssl.SSLCertVerificationError)
        assert kit.stats[:4] == (0, 0, 0, 0)

    def test_a_connect_that_is_refused_behind_the_factory_keeps_nothing(self, secure, stage, certificates):
        kit = PoolKit(secure.loop, stage, ssl=certificates.client_context(), server_hostname="a\0b")
        asked = kit.ask(secure.address)
        kit.settle()
        assert isinstance(asked.error, TypeError)
        kept = [weakref.ref(kit.made.pop())]
        asked.received.clear()
        gc.collect()
        assert kept[0]() is None

    @pytest.mark.debug_build
    def test_one_that_can_not_leave_at_once_makes_room_all_the_same(self, loop, stage, certificates):
        """Its close_notify waits for the socket; nobody else is closed in its stead."""
        listener = stage.listen(loop, Echo, ssl=certificates.server_context())
        kit = PoolKit(loop, stage, ssl=certificates.client_context(), server_hostname="localhost", max_open=2)
        streams = [kit.get(listener.address) for _ in range(2)]
        for stream in streams:
            kit.release(stream)
        kit.settle()
        with replaced(send=lambda *arguments: -errno.EAGAIN):
            asked = kit.ask()
            kit.pool._fill()
            assert [kit.state(stream) for stream in streams] == ["closing", "idle"]
            assert asked.state == "waiting"
        streams[0].abort()
        turn_until(loop, lambda: asked.state == "connecting")
        asked.request.cancel()

    @pytest.mark.debug_build
    def test_one_that_expires_just_then_and_can_not_leave_at_once(self, loop, stage, certificates, reported):
        """Whoever was to get it waits for its place."""
        listener = stage.listen(loop, Echo, ssl=certificates.server_context())
        with fake_clock() as clock:
            kit = PoolKit(loop, stage, ssl=certificates.client_context(), server_hostname="localhost", max_open=1)
            stream = kit.get(listener.address)
            kit.settle()
            kit.release(stream)
            clock.advance(61)
            asked = []
            loop.call_soon(lambda: asked.append(kit.ask(listener.address)))
            with replaced(send=lambda *arguments: -errno.EAGAIN):
                loop.turn(0)
                kit.check()
                assert asked[0].state == "waiting"
                loop.turn(0)
                assert kit.state(stream) == "closing"
            stream.abort()
            turn_until(loop, lambda: asked[0].received)
            assert asked[0].stream is not stream
            assert reported == []

    def test_a_handshake_that_does_not_end(self, loop, stage, certificates):
        kit = PoolKit(loop, stage, ssl=certificates.client_context(), ssl_handshake_timeout=0.01)
        asked = kit.ask()
        turn_until(loop, lambda: asked.received)
        assert isinstance(asked.error, TimeoutError)

    def test_closed_in_the_middle_of_a_handshake(self, loop, stage, certificates):
        kit = PoolKit(loop, stage, ssl=certificates.client_context())
        asked = kit.ask()
        far = kit.server.accept()
        turn_until(loop, lambda: far in _readable(far))
        kit.pool.close()
        kit.settle()
        assert isinstance(asked.error, UsageError)
        assert kit.stats.open == 0


def _readable(sock):
    import select
    return select.select([sock], [], [], 0)[0]


def test_finalizers_that_cancel_while_the_pool_is_closed(make_pool):
    """Every run of the collector cancels the last request that waits."""
    kit = make_pool(max_open=1)
    kit.get()
    asked = [kit.ask() for _ in range(100)]

    class Garbage:
        def __init__(self):
            self.itself = self

        def __del__(self):
            waiting = [one for one in asked if one.state == "waiting"]
            if waiting:
                waiting[-1].request.cancel()
                Garbage()

    before = gc.get_threshold()
    gc.collect()
    Garbage()
    gc.set_threshold(2)
    try:
        kit.pool.close()
    finally:
        gc.set_threshold(*before)
    kit.settle()
    states = [one.state for one in asked]
    assert set(states) == {"failed", "cancelled"}
    assert [len(one.received) for one in asked] == [state == "failed" for state in states]


@pytest.mark.parametrize("fails", [False, True])
def test_a_finalizer_that_cancels_while_its_connection_opens(make_pool, dead, reported, fails):
    """To make an iterator may run the collector: here it always cancels what it is made of."""
    class Promised(OrderedDict):
        def __iter__(self):
            asked.request.cancel()
            return super().__iter__()

    kit = make_pool()
    asked = kit.ask(dead if fails else None)
    (destination,) = kit.pool._destinations.values()
    destination.promised = Promised(destination.promised)
    turn_until(kit.loop, lambda: asked.state == "cancelled")
    destination.promised = OrderedDict()
    kit.settle()
    assert not reported
    assert not asked.received


# -- arguments ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("options", "message"), [
    ({"max_open": 0}, "max_open"), ({"max_open": 1.5}, "max_open"), ({"max_waiting": -1}, "max_waiting"),
    ({"max_idle": -1}, "max_idle"), ({"connect_timeout": 0}, "connect_timeout"),
    ({"connect_timeout": None}, "connect_timeout"), ({"wait_timeout": -1}, "wait_timeout"),
    ({"idle_timeout": float("nan")}, "idle_timeout"), ({"ssl_handshake_timeout": None}, "ssl_handshake_timeout"),
    ({"server_hostname": "localhost"}, "server_hostname"), ({"factory": "a string"}, "factory"),
    ({"ssl": "yes"}, "ssl"), ({"bind": "not numeric"}, "bind"),
])
def test_what_a_pool_refuses(loop, options, message):
    with pytest.raises(UsageError, match=message):
        Pool(loop, **{"factory": Upstream, **options})


def test_what_a_pool_is_asked_for_in_vain(make_pool):
    kit = make_pool()
    for address in ("", ("127.0.0.1",), ("127.0.0.1", 0), ("127.0.0.1", "80"), None, ["127.0.0.1", 80]):
        with pytest.raises(UsageError):
            kit.pool.acquire(address, print)
    with pytest.raises(UsageError, match="can't be called"):
        kit.pool.acquire(kit.server.address, None)
    assert kit.stats == (0,) * len(kit.stats)


def test_bind(make_pool):
    kit = make_pool(bind="127.0.0.2")
    assert kit.get().local_address[0] == "127.0.0.2"


@pytest.mark.parametrize("where", ["_fill", "_reserve"])
def test_who_is_told_that_there_is_no_memory_has_not_asked(make_pool, monkeypatch, where):
    kit = make_pool(max_open=1)
    stream = kit.get()
    if where == "_reserve":
        kit.release(stream)
        kit.settle()
    real = getattr(Pool, where)

    def fail(*arguments):
        real(*arguments)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Pool, where, fail)
        with pytest.raises(MemoryError):
            kit.ask()
    assert (kit.stats.waiting, kit.stats.out, kit.stats.cancelled) == (0, where == "_fill", 1)
    if where == "_fill":
        kit.release(stream)
    kit.settle()
    assert (kit.stats.open, kit.stats.idle) == (1, 1)
    assert kit.get() is stream


def test_what_they_look_like(make_pool):
    kit = make_pool(max_open=5)
    asked = kit.ask()
    host, port = kit.server.address
    assert asked.request.address == kit.server.address
    assert repr(asked.request) == f"<PoolRequest {host}:{port} connecting>"
    assert repr(kit.pool) == "<Pool 1 of 5 open>"
    kit.pool.close()
    kit.settle()
    assert repr(kit.pool) == "<Pool closed 0 of 5 open>"


# -- anything, in any order --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(30))
def test_anything_in_any_order(loop, stage, seed):
    """Every request is told once, no connection is two users' at once, and between any two calls all adds up."""
    chance = random.Random(seed)
    kit = PoolKit(loop, stage, max_open=chance.randint(1, 4), max_waiting=chance.randint(0, 6),
                  max_idle=chance.choice([None, 1, 2]))
    servers = [Server(stage) for _ in range(3)]
    asked, refused, mine, ends = [], [], [], []

    def receive(stream):
        if stream is not None:
            assert all(stream is not other for other in mine)
            mine.append(stream)
            if chance.random() < 0.2:
                mine.remove(stream)
                kit.pool.release(stream)

    def accept_all():
        for server in servers:
            with contextlib.suppress(BlockingIOError):
                while True:
                    ends.append(stage.own(server.socket.accept()[0]))

    def act():
        what = chance.choice(["ask"] * 3 + ["release", "turn"] * 2 + ["cancel", "abort", "end", "speak"])
        if what == "ask":
            asked.append(kit.ask(chance.choice(servers).address, receive))
            refused.append(asked[-1].state == "failed")
        elif what == "cancel" and asked:
            chance.choice(asked).request.cancel()
        elif what in ("release", "abort") and mine:
            stream = mine.pop(chance.randrange(len(mine)))
            kit.pool.release(stream) if what == "release" else stream.abort()
        elif what in ("end", "speak") and ends:
            far = chance.choice(ends)
            with contextlib.suppress(OSError):
                far.send(b"?") if what == "speak" else far.close()
        elif what == "turn":
            loop.turn(0)
            accept_all()

    for _ in range(400):
        act()
        kit.check()
    for _ in range(1000):
        loop.turn(0.001)
        accept_all()
        while mine:
            kit.release(mine.pop())
        if all(one.received or one.state == "cancelled" for one in asked):
            break
    for one in asked:
        assert len(one.received) == (one.state != "cancelled"), one.request
    stats = kit.stats
    assert stats.hits + stats.misses == len(asked)
    assert stats.cancelled == sum(one.state == "cancelled" for one in asked)
    assert stats.refused_full == sum(refused)

"""Timeouts of streams, on a clock that stands still until a test lets time pass: never early, hardly late, and at no
price per message."""
from __future__ import annotations

import os
import random
import socket

import pytest
from wire import Factory, Recorder, Witness, open_pair

import epollkit
from epollkit import UsageError

MEGABYTE = random.Random(1).randbytes(1 << 20)
TICK_SECONDS = 0.01
LATEST_SECONDS = 2 * TICK_SECONDS       # that a deadline may be late, by docs/architecture.md
pytestmark = pytest.mark.debug_build


@pytest.fixture
def loop(clock):
    with epollkit.Loop() as made:
        yield made
        assert (made.stats().live, made.stats().timers) == (0, 0)


class Timed(Witness):
    """Knows when its upcalls came; its timeouts end nothing."""

    def __init__(self, clock, **then):
        super().__init__(**then)
        self.clock = clock
        self.began_ns = clock.now_ns
        self.times = []

    def _note(self, *upcall):
        self.times.append((self.clock.now_ns - self.began_ns) / 1e9)
        super()._note(*upcall)

    def timeouts(self):
        """(which, when) of each."""
        return [(upcall[1], when) for upcall, when in zip(self.upcalls, self.times, strict=True)
                if upcall[0] == "timeout"]


class Ends(Recorder):
    """Leaves its timeouts to the default."""


@pytest.fixture
def opened(bench, clock):
    """A function that opens a `Timed` stream, with `open_pair`'s options."""
    def opened(then=None, **options):
        return open_pair(bench, Factory(lambda: Timed(clock, **(then or {}))), **options)
    return opened


@pytest.fixture
def passes(bench, clock):
    """A function that lets so many seconds pass, with every turn that the loop makes meanwhile."""
    def passes(seconds):
        end_ns = clock.now_ns + round(seconds * 1e9)
        while clock.now_ns < end_ns:
            bench.loop.turn((end_ns - clock.now_ns) / 1e9)
        bench.quiet()
    return passes


def is_at(when, seconds):
    """Not before its time, and at most two ticks behind it."""
    return seconds <= when <= seconds + LATEST_SECONDS


# -- read --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.001, 0.01, 0.0101, 0.5, 1.2345, 60, 86400.5])
def test_nothing_was_received_for_so_long(opened, passes, seconds):
    stream, _ = opened(then={"on_timeout": lambda stream: stream.set_timeout(read=None)})
    stream.set_timeout(read=seconds)
    passes(seconds * 0.99)
    assert stream.names == ["open"]
    passes(seconds * 0.01 + LATEST_SECONDS)
    assert [which for which, _ in stream.timeouts()] == ["read"]
    assert is_at(stream.timeouts()[0][1], seconds)


@pytest.mark.parametrize("offset", [0.001, 0.005, 0.00999])
def test_it_is_not_early_wherever_in_a_tick_it_was_set(opened, passes, clock, offset):
    stream, _ = opened()
    clock.advance(offset)
    stream.set_timeout(read=1)
    passes(1.1)
    assert is_at(stream.timeouts()[0][1], 1 + offset)


def test_a_timeout_that_is_not_handled_ends_the_connection(bench, passes):
    stream, client = open_pair(bench, Factory(Ends))
    stream.set_timeout(read=5)
    passes(5.1)
    assert stream.names == ["open", "close"]
    assert isinstance(stream.close_error, TimeoutError)
    assert "nothing was received for 5 s" in str(stream.close_error)
    assert client.eof(), "nothing was unsent, so it is a plain end"


def test_whatever_comes_puts_it_off(opened, passes, address):
    stream, client = opened(address=address)
    stream.set_timeout(read=5)
    for _ in range(10):
        passes(4.9)
        client.send(b"x")
    assert stream.timeouts() == []
    passes(5.1)
    assert len(stream.timeouts()) == 1
    assert is_at(stream.timeouts()[0][1], 10 * 4.9 + 5)


def test_one_that_goes_on_is_told_again(opened, passes):
    stream, client = opened()
    stream.set_timeout(read=1)
    passes(3.2)
    assert [which for which, _ in stream.timeouts()] == ["read"] * 3
    client.send(b"still there")
    passes(0.5)
    assert len(stream.timeouts()) == 3
    assert not stream.is_closing


def test_time_in_which_it_is_paused_does_not_count(opened, passes):
    """Neither when the deadline comes up within the pause, nor before it; after it the time starts anew."""
    stream, _ = opened()
    stream.set_timeout(read=5)
    passes(4)
    stream.pause_reading()
    passes(100)
    assert stream.timeouts() == []
    stream.resume_reading()
    passes(4.9)
    assert stream.timeouts() == []
    passes(0.2)
    assert is_at(stream.timeouts()[0][1], 109)


def test_a_short_pause_starts_it_anew_too(opened, passes):
    stream, _ = opened()
    stream.set_timeout(read=5)
    passes(4)
    stream.pause_reading()
    passes(0.5)
    stream.resume_reading()
    passes(5.1)
    assert is_at(stream.timeouts()[0][1], 9.5)


def test_resuming_what_is_not_paused_does_not_put_it_off(opened, passes):
    stream, _ = opened()
    stream.set_timeout(read=5)
    for _ in range(6):
        passes(1)
        stream.resume_reading()
    assert is_at(stream.timeouts()[0][1], 5)


def test_time_in_which_it_waits_for_its_rate_limit_does_not_count(opened, passes):
    """4 KB at 1 KB a second, taken at once by the burst: the next read is due in four seconds and finds nothing."""
    stream, client = opened()
    stream.set_rate(read=epollkit.RateLimit(1000, burst=4096))
    stream.set_timeout(read=1.5)
    client.send(b"x" * 8192)
    while len(stream.data) < 8192:
        passes(1)
    client.send(b"x")
    passes(0.1)
    assert stream.timeouts() == []


def test_after_the_peer_s_end_nothing_can_be_received(opened, passes):
    stream, client = opened()
    stream.set_timeout(read=5)
    client.end()
    passes(60)
    assert stream.names == ["open", "eof"]


# -- write -------------------------------------------------------------------------------------------------------------


def test_a_peer_that_takes_nothing_has_30_seconds(bench, passes, address):
    """Without anybody asking for it."""
    stream, client = open_pair(bench, Factory(Ends), address, receive_buffer=4096, server_send=4096)
    stream.write(MEGABYTE)
    passes(29.9)
    assert not stream.is_closing
    passes(0.2)
    assert stream.names == ["open", "close"]
    assert isinstance(stream.close_error, TimeoutError)
    assert "the peer took nothing for 30 s" in str(stream.close_error)
    if address != str(address):
        assert isinstance(client.broke(), ConnectionResetError)


def test_it_counts_from_when_the_socket_last_took_something(opened, passes, address):
    """A slow reader is none that has stopped."""
    stream, client = opened(address=address, receive_buffer=4096, server_send=4096)
    stream.set_timeout(write=5)
    stream.write(MEGABYTE * 4)
    for _ in range(10):
        passes(4.9)
        client.read(limit=200_000)          # a unix socket has room once three quarters of it are empty
    assert stream.timeouts() == []
    assert stream.unsent_bytes > 0
    passes(5.1)
    assert is_at(stream.timeouts()[0][1], 10 * 4.9 + 5)


def test_it_does_not_count_while_nothing_is_unsent(opened, passes):
    stream, client = opened()
    stream.set_timeout(write=5)
    passes(100)
    stream.write(b"x")
    passes(4)
    stream.write(MEGABYTE)
    client.take(1 + len(MEGABYTE))
    passes(100)
    assert stream.timeouts() == []
    assert not stream.is_closing


def test_one_that_goes_on_is_told_again_and_writing_more_does_not_put_it_off(opened, passes):
    stream, _ = opened(receive_buffer=4096)
    stream.set_timeout(write=2)
    stream.write(MEGABYTE * 4)
    for _ in range(13):
        passes(0.5)
        stream.write(b"x")
    assert [which for which, _ in stream.timeouts()] == ["write"] * 3
    for number, (_, when) in enumerate(stream.timeouts(), 1):
        assert 2 * number <= when <= (2 + LATEST_SECONDS) * number


@pytest.mark.parametrize("age", [0, 100])
def test_what_the_socket_was_not_offered_yet_does_not_count(opened, passes, age):
    """What is written outside of its upcalls leaves in the next turn; no peer has refused it before. `set_timeout` in
    between found a clock that had not begun to run, or had long ago, and the stream timed out at once."""
    stream, _ = opened()
    if age:
        stream.set_timeout(read=1000)
        passes(age)
    stream.write(b"soon")
    stream.set_timeout(read=1000)
    passes(1)
    assert stream.timeouts() == []
    assert stream.unsent_bytes == 0


def test_what_is_written_as_another_time_is_looked_at_does_not_count(opened, passes, bench, clock):
    """The look at its read timeout and a call that writes fall into the same turn, long after it last was full."""
    stream, client = opened()
    stream.set_timeout(read=50)
    passes(40)
    client.send(b"x")
    passes(1)
    bench.loop.call_later(1, stream.write, b"ping")
    clock.advance(10)
    bench.quiet()
    assert stream.timeouts() == []
    assert client.take(4) == b"ping"


def test_it_can_be_switched_off(opened, passes):
    stream, client = opened(receive_buffer=4096)
    stream.set_timeout(write=None)
    stream.write(MEGABYTE * 4)
    passes(86400)
    assert stream.timeouts() == []
    assert client.take(4 * len(MEGABYTE)) == MEGABYTE * 4


def test_it_can_be_set_while_the_socket_is_full(opened, passes):
    stream, _ = opened(receive_buffer=4096)
    stream.write(MEGABYTE * 4)
    passes(10)
    stream.set_timeout(write=3)
    passes(3.1)
    assert is_at(stream.timeouts()[0][1], 13)


def test_waiting_for_one_s_own_rate_limit_is_not_the_peer_s_fault(opened, passes):
    stream, client = opened()
    stream.set_timeout(write=1, read=0.7)
    stream.set_rate(write=epollkit.RateLimit(1000, burst=5000))
    stream.write(b"x" * 50_000)
    for _ in range(20):
        passes(3)
        client.read()
    assert {which for which, _ in stream.timeouts()} == {"read"}
    assert len(client.received) == 50_000


# -- life --------------------------------------------------------------------------------------------------------------


def test_a_life_ends_however_busy_it_is(opened, passes):
    stream, client = opened()
    stream.set_timeout(life=10, read=5)
    for _ in range(22):
        passes(0.5)
        client.send(b"x")
    assert [which for which, _ in stream.timeouts()] == ["life"]
    assert is_at(stream.timeouts()[0][1], 10)


def test_a_life_that_is_over_is_told_once(opened, passes):
    stream, _ = opened()
    stream.set_timeout(life=1)
    passes(100)
    assert len(stream.timeouts()) == 1
    stream.set_timeout(life=2)
    passes(100)
    assert is_at(stream.timeouts()[1][1], 102)
    stream.set_timeout(life=2)
    stream.set_timeout(life=None)
    passes(100)
    assert len(stream.timeouts()) == 2


@pytest.mark.parametrize("unsent", [False, True])
def test_a_life_that_is_over_ends_the_connection(bench, passes, unsent):
    stream, client = open_pair(bench, Factory(Ends), receive_buffer=4096)
    stream.set_timeout(life=1, write=None)
    if unsent:
        stream.write(MEGABYTE * 4)
    passes(1.1)
    assert isinstance(stream.close_error, TimeoutError)
    assert "its time is over (life)" in str(stream.close_error)
    if unsent:
        assert isinstance(client.broke(), ConnectionResetError)
    else:
        assert client.eof()


def test_a_pause_does_not_prolong_a_life(opened, passes):
    stream, _ = opened()
    stream.set_timeout(life=5)
    stream.pause_reading()
    passes(5.1)
    assert is_at(stream.timeouts()[0][1], 5)


def test_closing_is_a_part_of_its_life(bench, passes):
    """A peer that takes a little now and then could keep it closing for ever."""
    stream, client = open_pair(bench, Factory(Ends), receive_buffer=4096)
    stream.set_timeout(life=20)
    stream.write(MEGABYTE * 4)
    passes(19)
    stream.close()
    client.read(limit=100_000)
    passes(0.9)
    client.read(limit=100_000)
    assert not stream.closed
    passes(0.2)
    assert isinstance(stream.close_error, TimeoutError)
    assert "its time is over (life)" in str(stream.close_error)
    assert isinstance(client.broke(), ConnectionResetError)


def test_a_life_may_be_set_while_it_is_closing(bench, passes):
    """It brings the end forward, and puts none off."""
    stream, _client = open_pair(bench, Factory(Ends), receive_buffer=4096)
    stream.write(MEGABYTE * 4)
    stream.close()
    stream.set_timeout(life=100)
    passes(10)
    stream.set_timeout(life=2)
    passes(1.9)
    assert not stream.closed
    passes(0.2)
    assert "its time is over (life)" in str(stream.close_error)
    other, _ = open_pair(bench, Factory(Ends), receive_buffer=4096)
    other.write(MEGABYTE * 4)
    other.close()
    passes(1)
    other.set_timeout(life=100)
    passes(29.1)
    assert "does not read what was written before close()" in str(other.close_error)


def test_lingering_is_a_part_of_its_life(bench, passes):
    """Everything is sent; a peer that goes on sending has until then to read it."""
    stream, client = open_pair(bench, Factory(Ends))
    stream.set_timeout(life=2)
    stream.pause_reading()
    client.send(b"unread")
    stream.write(b"answer")
    bench.quiet()
    stream.close()
    passes(1.9)
    assert not stream.closed
    passes(0.2)
    assert stream.close_error is None
    assert client.take_all() == b"answer"


# -- closing -----------------------------------------------------------------------------------------------------------


def test_a_peer_that_takes_nothing_of_what_is_left_has_30_seconds(bench, passes):
    stream, client = open_pair(bench, Factory(Ends), receive_buffer=4096, server_send=4096)
    stream.write(MEGABYTE * 4)
    stream.close()
    passes(29)
    client.read()
    passes(29.5)
    assert not stream.closed
    passes(1)
    assert isinstance(stream.close_error, TimeoutError)
    assert "does not read what was written before close()" in str(stream.close_error)
    assert isinstance(client.broke(), ConnectionResetError)


def test_a_socket_that_is_full_when_it_is_closed_has_30_seconds_too(bench, passes):
    """Nothing moves any more, and there was no deadline before."""
    stream, client = open_pair(bench, Factory(Ends), receive_buffer=4096, server_send=4096)
    stream.set_timeout(write=None)
    stream.write(MEGABYTE * 4)
    passes(60)
    stream.close()
    passes(29.5)
    assert not stream.closed
    passes(1)
    assert isinstance(stream.close_error, TimeoutError)
    assert isinstance(client.broke(), ConnectionResetError)


def test_closing_waits_for_one_s_own_rate_limit(bench, passes):
    """A piece every 41 seconds, more than the 30 that a peer would have."""
    stream, client = open_pair(bench, Factory(Ends))
    stream.set_rate(write=epollkit.RateLimit(100, burst=4096))
    stream.write(b"x" * 20_000)
    stream.close()
    for _ in range(30):
        passes(10)
    assert client.take_all() == b"x" * 20_000
    client.close()
    bench.quiet()
    assert stream.close_error is None


def test_a_life_ends_also_while_closing_waits_for_its_own_rate_limit(bench, passes):
    stream, _ = open_pair(bench, Factory(Ends))
    stream.set_rate(write=epollkit.RateLimit(1, burst=4096))
    stream.set_timeout(life=50)
    stream.write(b"x" * 20_000)
    stream.close()
    passes(49)
    assert not stream.closed
    passes(1.1)
    assert "its time is over (life)" in str(stream.close_error)


# -- all of them -------------------------------------------------------------------------------------------------------


def test_a_time_ends_with_its_stream(bench, passes):
    """Whether somebody else has its slot by then, or nobody."""
    listener = bench.listen(factory := Factory(Witness))
    bench.connect(listener)
    bench.quiet()
    first = factory.made[0]
    index = first.token.index
    first.set_timeout(life=1)
    first.abort()
    bench.connect(listener)
    passes(0.5)
    second = factory.made[1]
    assert second.token.index == index
    passes(1)
    assert second.names == ["open"]
    second.set_timeout(life=1)
    second.abort()
    passes(2)
    assert (first.names, second.names) == (["open", "close"], ["open", "close"])


def test_several_that_are_due_together_are_told_one_after_the_other(opened, passes):
    stream, _ = opened(receive_buffer=4096)
    stream.write(MEGABYTE * 4)
    stream.set_timeout(read=5, write=5, life=5)
    passes(5.5)
    assert [which for which, _ in stream.timeouts()] == ["life", "write", "read"]
    assert all(is_at(when, 5) for _, when in stream.timeouts())


def test_what_is_not_given_stays(opened, passes):
    stream, _ = opened()
    stream.set_timeout(read=2)
    stream.set_timeout(life=5)
    stream.set_timeout()
    passes(5.2)
    assert [which for which, _ in stream.timeouts()] == ["read", "read", "life"]
    stream.set_timeout(read=None)
    passes(60)
    assert len(stream.timeouts()) == 3


def test_a_message_costs_no_move_in_the_heap(bench, opened, passes):
    """Ten thousand of them within 100 seconds, with every timeout set: the heap is touched when a deadline comes up,
    and no more often. Nobody is called but for them."""
    from epollkit import _debug
    stream, client = opened(then={"on_data": lambda stream: stream.write(b"x")})
    stream.set_timeout(read=30, write=30, life=3600)
    moves, upcalls = _debug.deadline_moves(bench.loop), bench.loop.stats().upcalls
    for _ in range(10_000):
        passes(0.01)
        client.send(b"x")
        bench.loop.turn(0)
    assert client.take(10_000) == b"x" * 10_000
    assert _debug.deadline_moves(bench.loop) - moves <= 100 / 30 + 1
    assert bench.loop.stats().upcalls - upcalls <= 10_000 + 100 / 30 + 1
    assert _debug.check_timers(bench.loop)


def test_a_full_socket_costs_no_move_in_the_heap_either(bench, opened, passes):
    """It fills and drains a hundred times within one timeout."""
    from epollkit import _debug
    stream, client = opened(receive_buffer=4096, server_send=4096)
    stream.set_timeout(write=30)
    moves = _debug.deadline_moves(bench.loop)
    for _ in range(100):
        stream.write(b"x" * 200_000)
        bench.quiet()
        assert stream.unsent_bytes > 0
        client.take(200_000)
        passes(0.1)
    assert _debug.deadline_moves(bench.loop) - moves <= 2
    passes(1000)
    assert stream.timeouts() == []


def test_streams_without_timeouts_are_in_no_heap(bench, opened, passes):
    from epollkit import _debug
    _, client = opened()
    client.send(b"x")
    passes(1)
    assert _debug.queued_deadlines(bench.loop) == []


def test_what_was_set_before_it_was_open_counts_from_then_on(bench, clock, passes):
    """An adopted stream is open from the next turn on, and may be given its timeouts at once."""
    near, far = socket.socketpair()
    with far:
        stream = bench.loop.adopt(near, lambda: Timed(clock))
        stream.set_timeout(read=5, life=8)
        passes(5.1)
        assert [which for which, _ in stream.timeouts()] == ["read"]
        passes(3)
        assert [which for which, _ in stream.timeouts()] == ["read", "life"]
        stream.abort()


@pytest.mark.parametrize("verb", ["close", "abort", "detach", "shutdown_write", "pause_reading", "write"])
def test_what_on_timeout_may_do(bench, opened, passes, verb):
    """Anything: end itself, write a farewell, go on."""
    def handle(stream):
        stream.set_timeout(read=None)
        done = getattr(stream, verb)(*[b"bye"] * (verb == "write"))
        if verb == "detach":
            os.close(done.fd)

    stream, client = opened(then={"on_timeout": handle})
    stream.set_timeout(read=1)
    passes(1.1)
    closed = verb in ("close", "abort", "detach")
    assert stream.names == ["open", "timeout", *["close"] * closed]
    if verb == "write":
        assert client.take(3) == b"bye"
    elif verb == "abort":
        assert isinstance(client.broke(), ConnectionResetError)
    elif verb != "pause_reading":
        assert client.eof()


def test_an_exception_in_on_timeout_ends_the_connection(opened, passes, reported):
    problem = ValueError("the handler's own")

    def fail(stream):
        raise problem

    stream, _ = opened(then={"on_timeout": fail})
    stream.set_timeout(read=1)
    passes(2)
    assert stream.names == ["open", "timeout", "close"]
    assert stream.close_error is problem
    assert reported == [(problem, stream)]


def test_ctrl_c_in_on_timeout_leaves_the_connection_and_its_other_times(opened, passes):
    def interrupt(stream):
        if len(stream.timeouts()) == 1:
            raise KeyboardInterrupt

    stream, _ = opened(then={"on_timeout": interrupt})
    stream.set_timeout(read=1, life=2.5)
    with pytest.raises(KeyboardInterrupt):
        passes(1.1)
    passes(2)
    assert [which for which, _ in stream.timeouts()] == ["read", "read", "life"]
    assert is_at(stream.timeouts()[2][1], 2.5)


@pytest.mark.parametrize("which", ["read", "write", "life"])
@pytest.mark.parametrize("seconds", [0, -1, 1e9, float("nan"), float("inf"), True, "1", b"1"])
def test_what_is_no_time_is_refused_and_changes_nothing(opened, passes, which, seconds):
    stream, _ = opened()
    stream.set_timeout(read=1)
    with pytest.raises(UsageError, match=f"{which} is None or a number of seconds"):
        stream.set_timeout(**{which: seconds})
    passes(1.1)
    assert [which for which, _ in stream.timeouts()] == ["read"]


def test_two_hundred_streams_time_out_each_at_its_time(bench, clock, passes):
    factory = Factory(lambda: Timed(clock))
    listener = bench.listen(factory)
    clients = [bench.connect(listener) for _ in range(200)]
    bench.turn_until(lambda: len(factory.made) == len(clients))
    bench.quiet()
    for number, stream in enumerate(factory.made):
        stream.set_timeout(read=1 + number * 7 % 200 / 10)
        stream.began_ns = clock.now_ns
    passes(1)
    passes(20)
    for number, stream in enumerate(factory.made):
        assert is_at(stream.timeouts()[0][1], 1 + number * 7 % 200 / 10)
        stream.abort()

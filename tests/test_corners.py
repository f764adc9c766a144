"""Corners: branches that no ordinary traffic reaches. What the kernel refuses here, the debug build's table of
operations refuses in its name."""
from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import re
import resource
import socket
from collections.abc import Callable

import pytest
from batches import Log, Spy, Stage, finalizer_at_next_allocation, in_child, settle

import epollkit
from epollkit import IN, Stream, UsageError

EPOLL_CTL_ADD = 1


def replaced(**replacements: Callable[..., int | None]):
    from epollkit import _operations
    return _operations.replaced(**replacements)


def first(*answers: int | None) -> Callable[..., int | None]:
    """These answers, then the operation's own."""
    left = list(answers)
    return lambda *_: left.pop(0) if left else None


def refuse(operation: int, error: int) -> Callable[..., int | None]:
    """epoll_ctl that fails at one of its operations."""
    return lambda _epoll_fd, asked, *_: -error if asked == operation else None


# -- accept ------------------------------------------------------------------------------------------------------------

@pytest.mark.debug_build
def test_an_accept_that_found_nobody(loop, stage):
    """The peer was faster: it has gone between the event and the accept."""
    listener = stage.listen(loop, Stream)
    stage.connect(listener)
    with replaced(accept=first(-errno.EAGAIN)):
        loop.turn(0)
    assert loop.stats().accepted == 0
    settle(loop)
    assert loop.stats().accepted == 1


@pytest.mark.debug_build
def test_a_listener_that_can_not_be_watched_at_all(loop):
    with replaced(epoll_ctl=refuse(EPOLL_CTL_ADD, errno.ENOSPC)), pytest.raises(OSError, match="epoll_ctl") as caught:
        loop.listen(("127.0.0.1", 0), Stream)
    assert caught.value.errno == errno.ENOSPC
    settle(loop)
    assert loop.stats().live == 0


# -- timers and posted calls -------------------------------------------------------------------------------------------

class Seconds(float):
    pass


class Count(int):
    pass


@pytest.mark.parametrize("seconds", [Seconds(1000.0), Count(1000)])
def test_a_length_of_time_may_be_of_a_subclass(loop, seconds):
    loop.call_later(seconds, print).cancel()
    loop.call_at(seconds, print).cancel()


MILLION_CALLS = """
import epollkit
calls = []
with epollkit.Loop() as loop:
    for post in (loop.call_soon_threadsafe, loop.call_soon):
        for _ in range(1 << 20):
            post(calls.append, 1)
        try:
            post(print)
        except epollkit.LimitReached as error:
            print(error)
        while loop.turn(0):
            pass
        print(len(calls))
"""


def test_a_million_calls_wait_at_most():
    """In a process of its own: it is a hundred megabytes, which the limits of later tests would see."""
    assert re.findall(r"\d{7}", in_child(MILLION_CALLS)) == ["1048576", str(1 << 20), "1048576", str(2 << 20)]


def test_whoever_walks_the_heap_may_stop_early(loop):
    """gc.get_referrers ends its walk of an object where it found what it looks for."""
    timers = [loop.call_later(1000, print) for _ in range(3)]
    assert any(type(found).__name__ == "Calls" for found in gc.get_referrers(timers[0]))
    for timer in timers:
        timer.cancel()


def test_whoever_walks_the_slots_may_stop_early(loop, stage):
    streams = [Spy(Log(), "a"), Spy(Log(), "b")]
    for stream in streams:
        stage.stream(loop, stream)
    assert loop in gc.get_referrers(streams[0])
    for stream in streams:
        stream.close()
    settle(loop)


# -- memory ------------------------------------------------------------------------------------------------------------

NO_MEMORY = """
import encodings.idna        # getaddrinfo would import it, and without memory that is a LookupError
import os, resource
import epollkit

hoard = []

def attempt(function, least=1 << 10):
    resource.setrlimit(resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))       # nothing more can be mapped, ...
    try:
        for size in (1 << 20, 1 << 16, 1 << 12, 1 << 10):       # ... and what malloc still has is used up
            try:
                while size >= least:
                    hoard.append(bytes(size))
            except MemoryError:
                pass
        return function()
    except MemoryError:
        return "MemoryError"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        hoard.clear()

print(attempt(epollkit.Loop, 1 << 14))
print(attempt(lambda: epollkit._core.Loop(batch=65536), 1 << 16))
print(attempt(lambda: epollkit._core.Loop(max_connections=16_000_000, batch=1), 1 << 16))
with epollkit.Loop() as loop:
    read, write = os.pipe()
    tokens = [loop.register(os.dup(read), epollkit.IN, print) for _ in range(1023)]     # the loop's wakeup has a slot
    print(attempt(lambda: loop.register(read, epollkit.IN, print)))                     # the next chunk of slots
    print(attempt(lambda: loop.listen(("127.0.0.1", 0), epollkit.Stream), 1 << 14))
    timers = [loop.call_later(1000, print) for _ in range(1024)]
    print(attempt(lambda: loop.call_later(1000, print)))                                # the heap, twice as large
    loop.unregister(tokens.pop())
    high = os.dup2(read, 16384)
    print(attempt(lambda: loop.register(high, epollkit.IN, print)))                     # the table fd -> slot
    for fd in (read, high):
        tokens.append(loop.register(fd, epollkit.IN, print))
    timers.append(loop.call_later(1000, print))
    for token in tokens:
        loop.unregister(token)
    for timer in timers:
        timer.cancel()
    loop.call_soon(print, "works")
    loop.turn(0)
"""


def test_without_memory_what_grows_is_refused_and_what_is_there_works():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard <= 16384:
        pytest.skip("the table fd -> slot grows at 16,384 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 16385), hard))
    try:
        answer = in_child(NO_MEMORY)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert answer.split() == ["MemoryError"] * 7 + ["works"]


def test_newcomers_have_the_places_of_those_who_were_told(loop):
    """Each has a place among those who are told of their end, from before it is registered. With 500 there are 512: 260
    end in one turn, and while the last of them are told, twelve more come than there is room for behind them."""
    told = []

    class Ends(Stream):
        def __init__(self, number):
            self.number = number

        def on_close(self, error):
            told.append((self.number, str(error)))
            if self.number == 257:
                streams.extend(adopted(6))

    def adopted(pairs):
        ends = [end for _ in range(pairs) for end in socket.socketpair()]
        for end in ends:
            end.setblocking(False)
        return [loop.adopt(end, lambda: Ends(next(numbers))) for end in ends]

    numbers = itertools.count()
    streams = adopted(250)
    settle(loop)
    for stream in streams[:260]:
        stream.abort(RuntimeError(f"of {stream.number}"))
    loop.turn(0)
    assert told == [(number, f"of {number}") for number in range(260)]
    settle(loop)
    assert len(told) == 260
    for stream in streams[260:]:
        stream.abort(RuntimeError(f"of {stream.number}"))
    settle(loop)
    assert [number for number, _ in told[260:]] == [stream.number for stream in streams[260:]]
    assert len(told) == 512


# -- loops that nobody closed -----------------------------------------------------------------------------------------

def leave_open(make: Callable[[], epollkit.Loop], stage: Stage) -> Stream:
    """A loop with one connection that is closed, and not yet told so, and one that is open; the latter."""
    loop = make()
    closed, left = Stream(), Stream()
    for stream in (closed, left):
        stage.stream(loop, stream)
    closed.close()
    return left


def test_a_loop_left_to_the_collector_with_a_connection_that_was_just_closed(stage):
    with pytest.warns(ResourceWarning):
        stream = leave_open(epollkit.Loop, stage)
        gc.collect()
    assert stream.is_closing


def test_a_loop_whose_subclass_hides_its_finalizer(stage):
    class Hides(epollkit.Loop):
        def __del__(self) -> None:
            pass

    stream = leave_open(Hides, stage)
    gc.collect()
    assert stream.is_closing


# -- finalizers --------------------------------------------------------------------------------------------------------

def replace_behind_its_back(loop: epollkit.Loop) -> tuple[int, epollkit.Token]:
    """A registered fd that was closed and is another file by now; with the token of the lost registration."""
    read, write = os.pipe()
    token = loop.register(read, IN, print)
    other, other_write = os.pipe()
    os.dup2(other, read)
    for fd in (write, other, other_write):
        os.close(fd)
    return read, token


@pytest.mark.parametrize("nth", range(1, 16))
def test_a_finalizer_unregisters_what_is_being_found_lost(loop, nth):
    fd, token = replace_behind_its_back(loop)

    def unregister():
        with contextlib.suppress(epollkit.StaleToken):
            loop.unregister(token)

    with pytest.raises(epollkit.StaleToken), finalizer_at_next_allocation(unregister, nth):
        loop.modify(token, IN)
    os.close(fd)
    settle(loop)


@pytest.mark.parametrize("nth", range(1, 16))
def test_a_finalizer_registers_the_fd_that_is_being_registered(loop, nth):
    """Of two claims to one fd one is refused, whichever."""
    fd, token = replace_behind_its_back(loop)
    tokens = []

    def register():
        with contextlib.suppress(UsageError):
            tokens.append(loop.register(fd, IN, print))

    with finalizer_at_next_allocation(register, nth):
        register()
    assert not token.live
    assert [found.live for found in tokens] == [True]
    loop.unregister(tokens[0])
    os.close(fd)
    settle(loop)


@pytest.mark.parametrize("nth", range(1, 16))
def test_a_finalizer_registers_the_fd_that_is_being_accepted(loop, stage, caplog, nth):
    """A stream's fd was closed behind its back, and a new connection has its number."""
    lost, made, tokens = Stream(), [], []
    stage.stream(loop, lost)
    number = lost.fileno()
    listener = stage.listen(loop, lambda: made.append(Stream()) or made[-1])
    stage.connect(listener)
    stage.fill_fd_holes(number)

    def register():
        with contextlib.suppress(UsageError):
            tokens.append(loop.register(number, IN, print))

    os.close(number)
    with finalizer_at_next_allocation(register, nth):
        loop.turn(0)
    settle(loop)
    assert lost.is_closing
    assert loop.stats().lost >= 1
    for stream in made:
        stream.abort()
    for token in tokens:
        if token.live:
            with contextlib.suppress(epollkit.StaleToken):
                loop.unregister(token)
    settle(loop)


@pytest.mark.parametrize("nth", range(1, 80))
def test_a_finalizer_closes_the_loop_that_begins_to_listen(nth):
    loop = epollkit.Loop()
    with finalizer_at_next_allocation(loop.close, nth), contextlib.suppress(UsageError):
        loop.listen(("127.0.0.1", 0), Stream)
    loop.close()


# -- output ------------------------------------------------------------------------------------------------------------

def test_a_queue_of_large_pieces_that_is_never_empty(loop, stage):
    """What is sent makes room at the front of the queue, what is written comes behind it."""
    stream = Stream()
    client = stage.stream(loop, stream)
    client.setblocking(False)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    with socket.socket(fileno=os.dup(stream.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
    pieces = [bytes([number]) * 400_000 for number in range(40)]    # each more than the kernel takes
    received = bytearray()

    def read_until(size):
        while len(received) < size:
            loop.turn(0)
            try:
                received.extend(client.recv(1 << 16))
            except BlockingIOError:
                pass

    for number, piece in enumerate(pieces):
        stream.write(piece)
        read_until(number * len(piece))
    read_until(len(pieces) * len(pieces[0]))
    assert received == b"".join(pieces)
    stream.close()
    settle(loop)


# -- what users pass ---------------------------------------------------------------------------------------------------

def test_a_date_of_http():
    from epollkit._httpconn import http_date
    assert http_date(784111777) == "Sun, 06 Nov 1994 08:49:37 GMT"
    assert http_date(-62135596800) == "Mon, 01 Jan 0001 00:00:00 GMT"
    with pytest.raises(UsageError, match="years"):
        http_date(253402300800)

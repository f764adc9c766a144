"""Corners: branches that no ordinary traffic reaches. What the kernel refuses here, the debug build's table of
operations refuses in its name."""
from __future__ import annotations

import errno
import gc
import resource
from collections.abc import Callable

import pytest
from batches import Log, Spy, in_child, settle

import epollkit
from epollkit import IN, ONESHOT, LimitReached, Stream, UsageError

EPOLL_CTL_ADD, EPOLL_CTL_MOD = 1, 3


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
@pytest.mark.parametrize("error", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM])
def test_a_connection_that_died_in_the_queue_is_passed_over(loop, stage, log, caplog, error):
    streams = [Stream(), Stream()]
    unused = iter(streams)
    listener = stage.listen(loop, lambda: next(unused))
    for _ in streams:
        stage.connect(listener)
    with replaced(accept=first(-error)):
        settle(loop)
    assert loop.stats().accepted == 2
    assert listener.pauses == 0
    assert not caplog.records


@pytest.mark.debug_build
@pytest.mark.parametrize("error", [errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_accept_rests_when_the_system_has_run_out(loop, stage, caplog, error):
    listener = stage.listen(loop, Stream)
    stage.connect(listener)
    with replaced(accept=first(-error)):
        loop.turn(0)
    assert (listener.pauses, loop.stats().accepted) == (1, 0)
    assert "pauses" in caplog.text
    listener.resume_now()
    settle(loop)
    assert loop.stats().accepted == 1


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
def test_an_accept_that_can_never_succeed_ends_the_listener(loop, stage, caplog):
    listener = stage.listen(loop, Stream)
    stage.connect(listener)
    with replaced(accept=first(-errno.EINVAL)):
        loop.turn(0)
    settle(loop)
    assert loop.stats().live == 0
    assert "accept on" in caplog.text
    listener.close()


@pytest.mark.debug_build
def test_a_listener_that_can_not_be_watched_again_rests_once_more(loop, stage, caplog):
    listener = stage.listen(loop, Stream)
    stage.connect(listener)
    with replaced(accept=first(-errno.ENFILE)):
        loop.turn(0)
    with replaced(epoll_ctl=refuse(EPOLL_CTL_ADD, errno.ENOMEM)):
        listener.resume_now()
    assert listener.pauses == 2
    assert "epoll_ctl" in caplog.text
    listener.resume_now()
    settle(loop)
    assert loop.stats().accepted == 1


@pytest.mark.debug_build
def test_a_listener_that_can_not_be_watched_at_all(loop):
    with replaced(epoll_ctl=refuse(EPOLL_CTL_ADD, errno.ENOSPC)), pytest.raises(OSError, match="epoll_ctl") as caught:
        loop.listen(("127.0.0.1", 0), Stream)
    assert caught.value.errno == errno.ENOSPC
    settle(loop)
    assert loop.stats().live == 0


@pytest.mark.debug_build
def test_a_connection_that_can_not_be_watched_is_closed(loop, stage, log, caplog):
    listener = stage.listen(loop, lambda: Spy(log, "stream"))
    client = stage.connect(listener)
    with replaced(epoll_ctl=refuse(EPOLL_CTL_ADD, errno.ENOMEM)):
        loop.turn(0)
    settle(loop)
    assert loop.stats().live == 1, "the listener"
    assert "epoll_ctl" in caplog.text
    client.settimeout(10)
    try:
        assert client.recv(1) == b""
    except ConnectionResetError:
        pass


# -- the epoll set -----------------------------------------------------------------------------------------------------

@pytest.mark.debug_build
def test_an_fd_that_the_kernel_has_no_room_for(loop, stage):
    """fs.epoll.max_user_watches is reached."""
    event = stage.event()
    with replaced(epoll_ctl=refuse(EPOLL_CTL_ADD, errno.ENOSPC)), pytest.raises(OSError, match="epoll_ctl") as caught:
        loop.register(event, IN, print)
    assert caught.value.errno == errno.ENOSPC
    assert loop.stats().live == 0
    loop.unregister(loop.register(event, IN, print))


@pytest.mark.debug_build
def test_a_mask_that_can_not_be_changed_stays(loop, stage, log):
    event = stage.event()
    token = loop.register(event, IN, log.handler("event"))
    with replaced(epoll_ctl=refuse(EPOLL_CTL_MOD, errno.ENOMEM)), pytest.raises(OSError, match="epoll_ctl"):
        loop.modify(token, IN | ONESHOT)
    event.fire()
    loop.turn(0)
    assert log.names == ["event"]
    loop.unregister(token)


@pytest.mark.debug_build
def test_a_wait_that_fails_is_told_and_repeated(loop, stage, log):
    event = stage.event()
    token = loop.register(event, IN, log.handler("event"))
    event.fire()
    with replaced(epoll_wait=first(-errno.EFAULT)), pytest.raises(OSError, match="epoll_wait"):
        loop.turn(0)
    assert log.names == []
    loop.turn(0)
    assert log.names == ["event"]
    loop.unregister(token)


@pytest.mark.debug_build
def test_a_wait_that_a_signal_ended(loop):
    with replaced(epoll_wait=first(-errno.EINTR)):
        assert loop.turn(None) == 0


@pytest.mark.debug_build
@pytest.mark.parametrize("failing", ["epoll_create", "eventfd"])
def test_a_loop_that_can_not_be_made(failing):
    with replaced(**{failing: first(-errno.EMFILE)}), pytest.raises(OSError) as caught:
        epollkit.Loop()
    assert caught.value.errno == errno.EMFILE


# -- timers and posted calls -------------------------------------------------------------------------------------------

class Seconds(float):
    pass


class Count(int):
    pass


@pytest.mark.parametrize("seconds", [Seconds(1000.0), Count(1000)])
def test_a_length_of_time_may_be_of_a_subclass(loop, seconds):
    loop.call_later(seconds, print).cancel()
    loop.call_at(seconds, print).cancel()


def test_a_million_calls_wait_at_most(loop):
    calls = []
    for _ in range(1 << 20):
        loop.call_soon_threadsafe(calls.append, 1)
    with pytest.raises(LimitReached, match="1048576"):
        loop.call_soon_threadsafe(print)
    while loop.turn(0):
        pass
    assert len(calls) == 1 << 20
    timers = [loop.call_soon(calls.append, 2) for _ in range(1 << 20)]
    with pytest.raises(LimitReached, match="1048576"):
        loop.call_soon(print)
    for timer in timers:
        timer.cancel()
    while loop.turn(0):
        pass
    assert len(calls) == 1 << 20


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
import mmap, os, resource, sys
import epollkit

def no_more():
    size = int(open("/proc/self/statm").read().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))

def enough():
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

def attempt(function):
    no_more()
    try:
        return function()
    except MemoryError:
        return "MemoryError"
    finally:
        enough()

print(attempt(lambda: epollkit.Loop(batch=65536)))
print(attempt(lambda: epollkit.Loop(max_connections=16_000_000, batch=1)))
with epollkit.Loop() as loop:
    read, write = os.pipe()
    high = 4000
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], high + 1), limits[1]))
    os.dup2(read, high)
    print(attempt(lambda: loop.register(high, epollkit.IN, print)))
    loop.unregister(loop.register(high, epollkit.IN, print))
    print(loop.stats().live)
"""


def test_without_memory_what_is_large_is_refused_and_what_is_there_stays():
    """Under a limit of address space that leaves nothing to map."""
    assert in_child(NO_MEMORY).split() == ["MemoryError", "MemoryError", "MemoryError", "0"]


# -- what users pass ---------------------------------------------------------------------------------------------------

def test_a_date_of_http():
    from epollkit._httpconn import http_date
    assert http_date(784111777) == "Sun, 06 Nov 1994 08:49:37 GMT"
    assert http_date(-62135596800) == "Mon, 01 Jan 0001 00:00:00 GMT"
    with pytest.raises(UsageError, match="years"):
        http_date(253402300800)

"""What the real kernel does too seldom for a test: every failure of a system call, and time. And what is counted.

In the debug build each system call goes through `epollkit._operations`, where a test puts a function in its place, or a
clock that moves only when it is told to.
"""
from __future__ import annotations

import contextlib
import errno
import gc
import os
from itertools import chain, repeat

import pytest
from batches import orphaned, report_orphans, settle
from wire import Bench, Factory, Recorder, open_pair

import epollkit
from epollkit import IN, ONESHOT
from epollkit.http import Response

if epollkit.build_info()["build"] == "release":
    pytest.skip("only the debug build shows this", allow_module_level=True)

from epollkit._operations import calls, counts, fake_clock, replaced

TICK_SECONDS = 0.01
TIMER_BUDGET = 4096
ORPHANS_TO_REBUILD = 64
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

NOTHING_LEFT = ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"]


@pytest.fixture
def bench(loop):
    with Bench(loop) as made:
        yield made


@pytest.fixture
def reported(loop):
    """What the exception handler was told."""
    found = []
    loop.set_exception_handler(lambda exception, source: found.append(exception))
    return found


def once(*answers):
    """These answers, one for each call; then the operation itself."""
    left = chain(answers, repeat(None))
    return lambda *arguments: next(left)


def fails(name):
    return once(-getattr(errno, name))


def always(name):
    return lambda *arguments: -getattr(errno, name)


class TestReplacing:
    def test_it_is_asked_with_the_plain_arguments_and_none_means_the_real_one(self, bench):
        asked = []

        def recv(fd, room):
            asked.append((fd, room))

        stream, client = open_pair(bench)
        fd = stream.fileno()
        with replaced(recv=recv):
            client.send(b"abc")
            bench.quiet()
        assert stream.data == b"abc"
        assert asked == [(fd, 65536)]

    def test_at_the_end_everything_is_what_it_was_whatever_happened(self):
        with pytest.raises(ZeroDivisionError), replaced(epoll_create=always("ENFILE")):
            raise ZeroDivisionError
        with replaced(epoll_create=always("ENFILE")):
            with replaced(epoll_create=always("EMFILE")), pytest.raises(OSError) as found:
                epollkit.Loop()
            assert found.value.errno == errno.EMFILE
            with pytest.raises(OSError) as found:
                epollkit.Loop()
            assert found.value.errno == errno.ENFILE
        epollkit.Loop().close()

    def test_what_a_replacement_raises_is_not_swallowed(self):
        def broken(*arguments):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError), replaced(epoll_create=broken):
            epollkit.Loop().close()
        with pytest.raises(ValueError), replaced(no_such_operation=broken):
            pass

    def test_calls_are_counted(self, loop):
        before = calls()
        loop.turn(0)
        loop.turn(0)
        assert (calls() - before)["epoll_wait"] == 2


class TestALoopThatCannotBeMade:
    @pytest.mark.parametrize("operation", ["epoll_create", "eventfd", "epoll_ctl"])
    def test_nothing_is_left_open(self, operation):
        with replaced(**{operation: always("EMFILE")}), pytest.raises(OSError) as found:
            epollkit.Loop()
        assert found.value.errno == errno.EMFILE
        del found
        gc.collect()        # a ResourceWarning would be an error


class TestAccept:
    """Errors of a connection that died in the queue: scenario 23, in test_scenarios.py."""

    @pytest.mark.parametrize("name", NOTHING_LEFT)
    def test_without_descriptors_it_rests_a_tenth_of_a_second(self, name, caplog):
        with fake_clock() as clock, epollkit.Loop() as loop, Bench(loop) as bench:
            factory = Factory()
            listener = bench.listen(factory)
            bench.connect(listener)
            with replaced(accept=always(name)):
                before = calls()
                bench.quiet()
                clock.advance(0.1 - 1e-9)
                bench.quiet()
                assert (calls() - before)["accept"] == 1
                clock.advance(2 * TICK_SECONDS)
                bench.quiet()
                assert (calls() - before)["accept"] == 2
            assert not factory.made
            clock.advance(0.1 + 2 * TICK_SECONDS)
            bench.quiet()
            assert len(factory.made) == 1
            assert len(caplog.records) == 1
            assert os.strerror(getattr(errno, name)) in caplog.text

    def test_no_memory_to_go_on_with_either(self, caplog):
        with fake_clock() as clock, epollkit.Loop() as loop, Bench(loop) as bench:
            reported = []
            loop.set_exception_handler(lambda exception, source: reported.append(exception))
            factory = Factory()
            bench.connect(bench.listen(factory))
            with replaced(accept=fails("EMFILE")):
                bench.quiet()
            with replaced(epoll_ctl=always("ENOMEM")):
                clock.advance(0.2)
                bench.quiet()
            assert [error.errno for error in reported] == [errno.ENOMEM]
            assert not factory.made
            clock.advance(0.2)
            bench.quiet()
            assert len(factory.made) == 1

    @pytest.mark.parametrize("name", ["EINVAL", "ENOTSOCK", "EBADF", "EFAULT"])
    def test_any_other_error_ends_it_and_is_reported(self, bench, loop, reported, name):
        bench.connect(bench.listen(Factory()))
        with replaced(accept=always(name)):
            bench.quiet()
        assert [error.errno for error in reported] == [getattr(errno, name)]
        assert loop.stats().live == 0

    def test_a_connection_that_cannot_be_watched(self, bench, reported):
        factory = Factory()
        bench.connect(bench.listen(factory))
        with replaced(epoll_ctl=fails("ENOSPC")):
            bench.quiet()
        assert factory.made[0].names == ["open", "close"]
        assert factory.made[0].close_error.errno == errno.ENOSPC
        assert [error.errno for error in reported] == [errno.ENOSPC]

    def test_a_factory_that_takes_the_last_free_registration(self, stage, log):
        """The connection that it was called for is refused, and not one too many."""
        with epollkit.Loop(max_connections=1) as loop, Bench(loop) as bench:
            reported = []
            loop.set_exception_handler(lambda exception, source: reported.append(exception))
            event = stage.event()

            def make():
                stage.watch(loop, event, IN, log.handler("event"))
                return Recorder()

            client = bench.connect(bench.listen(make))
            bench.turn_until(lambda: reported)
            assert isinstance(reported[0], epollkit.LimitReached)
            assert loop.stats().live == 2       # the listener, and what its factory registered
            client.close()
            stage.close()


class TestTheSet:
    @pytest.mark.parametrize("name", ["ENOMEM", "ENOSPC"])
    def test_register(self, loop, stage, name):
        event = stage.event()
        with replaced(epoll_ctl=fails(name)), pytest.raises(OSError, match="epoll_ctl") as found:
            loop.register(event, IN, print)
        assert found.value.errno == getattr(errno, name)
        assert loop.stats().live == 0
        loop.unregister(loop.register(event, IN, print))

    def test_modify(self, loop, stage, log):
        """What it was watched for stays: it was to become a one-shot, and goes on."""
        event = stage.event()
        token = stage.watch(loop, event, IN, log.handler("event", event.drain))
        with replaced(epoll_ctl=fails("ENOMEM")), pytest.raises(OSError, match="epoll_ctl") as found:
            loop.modify(token, IN | ONESHOT)
        assert found.value.errno == errno.ENOMEM
        for _ in range(2):
            event.fire()
            settle(loop)
        assert log.names == ["event"] * 2

    def test_a_one_shot_that_could_not_be_re_armed_stays_silent(self, loop, stage, log):
        """In a new set too: it was not armed, so it is not added."""
        event = stage.event()
        token = stage.watch(loop, event, IN | ONESHOT, log.handler("event"))
        event.fire()
        settle(loop)
        with replaced(epoll_ctl=fails("ENOMEM")), pytest.raises(OSError):
            loop.modify(token, IN | ONESHOT)
        report_orphans(loop, *orphaned(loop, stage), ORPHANS_TO_REBUILD)
        assert loop.stats().rebuilds == 1
        event.fire()
        settle(loop)
        assert log.names == ["event"]
        loop.modify(token, IN | ONESHOT)
        settle(loop)
        assert log.names == ["event"] * 2

    def test_a_full_stream_that_cannot_be_watched_for_room(self, bench, reported):
        stream, _client = open_pair(bench)
        stream.write(b"abc")
        with replaced(send_parts=always("EAGAIN"), epoll_ctl=fails("ENOMEM")):
            bench.quiet()
        assert stream.close_error.errno == errno.ENOMEM
        assert len(reported) == 1

    @pytest.mark.parametrize("fault", [
        {"epoll_create": fails("EMFILE")}, {"epoll_ctl": once(None, None, -errno.ENOMEM)}, {"replace": fails("EBUSY")},
    ], ids=lambda fault: next(iter(fault)))
    def test_a_set_that_cannot_be_replaced_goes_on_working(self, loop, stage, log, fault):
        event = stage.event()
        stage.watch(loop, event, IN, log.handler("event"))
        client, copy = orphaned(loop, stage)
        with replaced(**fault):
            report_orphans(loop, client, copy, ORPHANS_TO_REBUILD)
        assert loop.stats().rebuilds == 0
        event.fire()
        settle(loop)
        assert log.names == ["event"]

    def test_an_interrupted_wait_is_an_empty_turn(self, loop, stage, log):
        event = stage.event()
        stage.watch(loop, event, IN, log.handler("event"))
        event.fire()
        with replaced(epoll_wait=fails("EINTR")):
            assert loop.turn() == 0
            assert loop.turn() == 1

    def test_any_other_failure_of_a_wait_is_raised(self, loop, stage, log):
        """And nothing is lost: the next wait has it."""
        event = stage.event()
        stage.watch(loop, event, IN, log.handler("event"))
        event.fire()
        with replaced(epoll_wait=fails("EBADF")), pytest.raises(OSError, match="epoll_wait") as found:
            loop.turn(0)
        assert found.value.errno == errno.EBADF
        assert log.names == []
        loop.turn(0)
        assert log.names == ["event"]


class TestStreams:
    @pytest.mark.parametrize("name", ["ENOBUFS", "ENOMEM", "EPIPE", "ECONNRESET"])
    def test_a_failed_send_is_told_once_and_what_had_come_before_is_read(self, bench, name):
        stream, client = open_pair(bench)
        stream.write(b"lost")
        client.send(b"abc")
        with replaced(send=fails(name), send_parts=fails(name)):
            bench.quiet()
        assert stream.names == ["open", "data", "error", "close"]
        assert stream.data == b"abc"
        assert stream.close_error.errno == getattr(errno, name)

    @pytest.mark.parametrize("name", ["ECONNRESET", "ETIMEDOUT", "ENOMEM", "EHOSTUNREACH"])
    def test_a_failed_recv_has_read_the_error_so_nobody_asks_for_it(self, bench, name):
        stream, client = open_pair(bench)
        before = calls()
        client.send(b"abc")
        with replaced(recv=fails(name)):
            bench.quiet()
        assert stream.names == ["open", "error", "close"]
        assert stream.close_error.errno == getattr(errno, name)
        assert (calls() - before)["take_error"] == 0

    def test_data_then_an_error_that_somebody_else_has_read(self, bench):
        """recv says 0 after the error was taken: a reset, and not a clean end."""
        stream, client = open_pair(bench)
        stream.write(b"lost")
        client.send(b"abc")
        with replaced(send=fails("ECONNRESET"), send_parts=fails("ECONNRESET"), recv=once(None, 0, 0)):
            bench.quiet()
        assert stream.names == ["open", "data", "error", "close"]
        assert stream.close_error.errno == errno.ECONNRESET

    def test_short_reads(self, bench, tmp_path):
        """On a unix socket, where a short read says nothing of what is left."""
        stream, client = open_pair(bench, address=str(tmp_path / "socket"))
        with replaced(recv=lambda fd, room: 3):
            client.send(b"0123456789")
            bench.quiet()
        assert [entry[1] for entry in stream.upcalls[1:]] == [b"012", b"345", b"678", b"9"]

    def test_short_sends(self, bench):
        """A byte, then a full socket, so OUT is asked for; then seven at a time: everything arrives, in order."""
        stream, client = open_pair(bench)
        data = bytes(range(40))
        before = calls()
        with replaced(send_parts=once(1, -errno.EAGAIN, *[7] * 10)):
            stream.write(data[:20])
            stream.write(data[20:])
            assert client.take(40) == data
        assert (calls() - before)["send_parts"] == 2 + 6

    def test_closing_goes_on_whatever_close_says(self, bench):
        stream, client = open_pair(bench)
        fd = stream.fileno()
        closed = []

        def close(number):
            closed.append(number)
            os.close(number)
            return -errno.EIO

        with replaced(close=close):
            stream.close()
            bench.quiet()
        assert closed == [fd]
        assert stream.names == ["open", "close"]
        assert client.eof()


class TestTheClock:
    @pytest.mark.parametrize("nanoseconds", [1, 300_000, 1_234_567, 30 * 86400 * 10**9])
    def test_a_wait_is_as_long_as_it_must_be_and_never_shorter(self, nanoseconds):
        """25. A timer of 0.3 ms neither fires early nor spins: one wait, to the nanosecond."""
        waits = []
        with fake_clock() as clock, epollkit.Loop() as loop:
            start = clock.now_ns
            loop.call_later(nanoseconds / 1e9, lambda: waits.append(("fired", clock.now_ns - start)))
            with replaced(epoll_wait=lambda fd, room, timeout: waits.append(("wait", timeout))):
                loop.turn()
                loop.turn()
        length = waits[0][1]
        assert waits == [("wait", length), ("fired", length), ("wait", 0)]
        assert 0 <= length - nanoseconds <= 1       # the delay is a float, and rounded up

    def test_on_the_real_clock_two_waits_do(self, loop):
        before = calls()
        fired = []
        loop.call_later(0.0003, fired.append, True)
        while not fired:
            loop.turn()
        assert (calls() - before)["epoll_wait"] <= 2       # the second one is of the turn that fires it

    def test_nobody_waits_for_ever(self, loop):
        with fake_clock(), epollkit.Loop() as other:
            with pytest.raises(OSError) as found:
                other.turn()
            assert found.value.errno == errno.EDEADLK
        with pytest.raises(RuntimeError), fake_clock(), fake_clock():
            pass
        loop.turn(0)

    def test_the_budget_of_timers(self):
        with fake_clock() as clock, epollkit.Loop() as loop:
            fired = []
            for number in range(TIMER_BUDGET + 3):
                loop.call_later(5, fired.append, number)
            clock.advance(5 - 1e-9)
            assert loop.turn(0) == 0
            clock.advance(1e-9)
            assert loop.turn(0) == TIMER_BUDGET
            assert loop.turn(0) == 3
            assert fired == list(range(TIMER_BUDGET + 3))


@pytest.fixture(params=[0, TICK_SECONDS - 1e-9], ids=["at a tick", "just before a tick"])
def clock(request):
    """Deadlines are reckoned from the last tick, so what is promised must hold wherever in a tick one begins."""
    with fake_clock() as made:
        made.advance(request.param)
        yield made


@pytest.fixture
def server(clock):
    """As `bench`, by a fake clock."""
    with epollkit.Loop() as loop, Bench(loop) as made:
        yield made


def passes_after(server, clock, seconds, over):
    """Whether that is so after so many seconds, two ticks late at most, and not before."""
    server.quiet()
    clock.advance(seconds - 1e-9)
    server.quiet()
    early = over()
    clock.advance(2 * TICK_SECONDS + 1e-9)
    server.quiet()
    return not early and over()


class TestDeadlines:
    """None of which anybody waits for."""

    def ended(self, client):
        def over():
            client.read()
            return client.ended or client.error is not None
        return over

    def test_a_connection_that_says_nothing(self, server, clock):
        client = server.connect(server.serve(lambda request: Response()))
        assert passes_after(server, clock, 10, self.ended(client))
        assert client.received == b""

    def test_a_head_that_trickles_in(self, server, clock):
        client = server.connect(server.serve(lambda request: Response()))
        client.send(REQUEST[:5])
        server.quiet()
        clock.advance(5)
        client.send(REQUEST[5:10])
        assert passes_after(server, clock, 5, lambda: bool(client.read()))
        assert client.receive_response().status == 408

    def test_a_body_that_does_not_come(self, server, clock):
        client = server.connect(server.serve(lambda request: Response()))
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345")
        assert passes_after(server, clock, 30, lambda: bool(client.read()))
        assert client.receive_response().status == 408

    def test_the_date_is_that_of_the_answer(self, server, clock):
        """Of a request whose body took a while, too."""
        client = server.connect(server.serve(lambda request: Response()))
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345")
        server.quiet()
        clock.advance(20)
        client.send(b"67890")
        assert client.receive_response().header("date") == "Sun, 06 Nov 1994 08:49:57 GMT"

    def test_keep_alive(self, server, clock):
        client = server.connect(server.serve(lambda request: Response()))
        for _ in range(3):
            client.send(REQUEST)
            answer = client.receive_response()
            assert answer.status == 200
            clock.advance(74)
        assert answer.header("Date").startswith("Sun, 06 Nov 1994 08:5")
        client.send(REQUEST)
        client.receive_response()
        assert passes_after(server, clock, 75, self.ended(client))
        assert client.error is None

    def test_a_client_that_does_not_read(self, server, clock):
        client = server.connect(server.serve(lambda request: Response(bytes(20 << 20))))
        client.send(REQUEST)
        assert passes_after(server, clock, 30, lambda: server.loop.stats().live == 1)
        assert isinstance(client.broke(), ConnectionResetError)

    def test_a_stream_that_closes_with_output_that_nobody_reads(self, server, clock):
        stream, _client = open_pair(server)
        stream.write(bytes(8 << 20))
        stream.close()
        assert passes_after(server, clock, 30, lambda: stream.closed)
        assert isinstance(stream.close_error, TimeoutError)

    def test_a_peer_that_goes_on_sending_after_the_last_answer(self, server, clock):
        client = server.connect(server.serve(lambda request: Response(headers=[(b"connection", b"close")])))
        client.send(REQUEST)
        assert client.receive_response().status == 200

        def over():
            with contextlib.suppress(ConnectionError):
                client.offer(b"x")
            return server.loop.stats().live == 1

        assert passes_after(server, clock, 5, over)
        client.read()


class TestCounts:
    def alive(self):
        return {kind: made - freed for kind, (made, freed) in counts().items()}

    def test_an_idle_connection_is_a_stream_a_descriptor_and_nothing_else(self, bench):
        listener = bench.serve(lambda request: Response(b"x"))
        before, made = self.alive(), counts()
        clients = [bench.connect(listener) for _ in range(5)]
        for client in clients:
            client.send(REQUEST * 3)
            client.receive_responses(3)
        assert {kind: number - before[kind] for kind, number in self.alive().items() if number != before[kind]} == {
            "stream": 5, "fd": 5, "request": 1}         # the request: one for all of them
        assert counts()["response"][0] - made["response"][0] == 15

    def test_what_is_there_while_it_is_needed(self, bench):
        before = self.alive()
        client = bench.connect(bench.serve(lambda request: Response(bytes(20 << 20))))
        client.send(REQUEST + REQUEST[:5])
        bench.quiet()
        now = self.alive()
        assert (now["output"] - before["output"], now["partial"] - before["partial"]) == (1, 1)
        client.reset()
        bench.quiet()
        now = self.alive()
        assert (now["output"], now["partial"], now["stream"]) == (before["output"], before["partial"], before["stream"])

    def test_descriptors_of_a_loop(self):
        before = self.alive()
        with epollkit.Loop() as loop:
            assert self.alive()["fd"] == before["fd"] + 2
            listener = loop.listen(("127.0.0.1", 0), Recorder)
            assert self.alive()["fd"] == before["fd"] + 3
            listener.close()
            assert self.alive()["fd"] == before["fd"] + 2
        assert self.alive()["fd"] == before["fd"]


def test_a_path_on_which_listening_failed_belongs_to_whoever_listens_there_next(loop, tmp_path):
    path = str(tmp_path / "socket")
    with replaced(epoll_ctl=fails("ENOMEM")), pytest.raises(OSError, match="Cannot allocate memory"):
        loop.listen(path, Factory())
    listener = loop.listen(path, Factory())
    settle(loop)                                # on_closed of the one that failed
    assert os.path.exists(path)
    listener.close()

"""The scenarios of the design that the core answers for, on real sockets. Each docstring begins with its number.

A test that waits for nothing to happen proves nothing by itself, so each asserts its situation too: the order within
the batch, and that the newcomer has the fd and the slot of the one that was closed. """
from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import socket
import struct
import threading
from pathlib import Path

import pytest
from batches import (
    LOCAL,
    Log,
    Spy,
    finish,
    in_child,
    kept_signal_handler,
    queued_connections,
    ready_events,
    reset,
    send,
    settle,
    turn_until,
    wait_ready,
)
from wire import set_buffers

import epollkit
from epollkit import EXCLUSIVE, IN, OUT, RDHUP

READ_BUDGET_BYTES, READ_ROOM_BYTES = 262144, 65536


def stale_events(loop):
    stats = loop.stats()
    return stats.stale_closed, stats.stale_recycled, stats.stale_orphan


def one_batch(loop):
    """A turn that must have taken exactly one batch from the kernel. Returns its upcalls, and how many events there
    were."""
    before = loop.stats()
    made = loop.turn(0)
    after = loop.stats()
    assert after.batches == before.batches + 1
    return made, after.events - before.events


def registration(endpoint):
    """Where an endpoint lives: its fd, slot and generation."""
    return endpoint.fileno(), endpoint.token.index, endpoint.token.generation


class TestAnEventNeverReachesALaterOwner:
    """1. In a batch [X, A], X's handler closes A, and somebody else gets A's fd and slot."""

    def test_raw(self, loop, stage):
        """1. The handler of X unregisters and closes A, accepts a connection and registers it."""
        log = Log()
        listening = stage.listening()
        x, a = stage.event(), stage.pair()
        stage.connect(listening)
        a_fd, newcomer = a.near.fileno(), []

        def replace_a():
            loop.unregister(a_token)
            a.near.close()
            accepted = stage.own(listening.accept()[0])
            newcomer.append((accepted.fileno(), stage.watch(loop, accepted, IN, log.handler("newcomer"))))

        stage.watch(loop, x, IN, log.handler("x", replace_a))
        a_token = stage.watch(loop, a.near, IN, log.handler("a"))
        settle(loop)
        stage.fill_fd_holes(above=a_fd)
        x.fire()
        a.send()
        assert one_batch(loop) == (1, 2)
        [(fd, token)] = newcomer
        assert (fd, token.index, token.generation) == (a_fd, a_token.index, a_token.generation + 1)
        assert token.live
        assert not a_token.live
        assert log.names == ["x"]
        assert stale_events(loop) == (0, 1, 0)

    def test_listener(self, loop, stage):
        """1. In a batch [X, listener, A] the listener accepts the newcomer, into A's fd and slot."""
        log = Log()
        streams = [Spy(log, "a"), Spy(log, "newcomer")]
        a = streams[0]
        x = stage.event()
        stage.watch(loop, x, IN, log.handler("x", a.abort))
        listener = stage.listen(loop, lambda: streams[len(log.of("a")) > 0])
        a_client = stage.connect(listener)
        settle(loop)
        was = registration(a)
        log.clear()
        log.append(("a", "opened"))

        x.fire()
        stage.connect(listener)
        send(a_client, a)
        stage.fill_fd_holes(above=a.fileno())
        assert one_batch(loop) == (2, 3)
        assert registration(streams[1]) == (was[0], was[1], was[2] + 1)
        assert log[1:] == [("x", IN), ("newcomer", "on_open", None), ("a", "on_close", None)]
        assert stale_events(loop) == (0, 1, 0)

    def test_the_newcomer_gets_its_own_events(self, loop, stage):
        """1. The newcomer's first bytes are there before A's stale event is dropped: they come in the next turn."""
        log = Log()
        listening = stage.listening()
        x, a = stage.event(), stage.pair()
        client = stage.connect(listening)

        def replace_a():
            loop.unregister(a_token)
            a.near.close()
            accepted = stage.own(listening.accept()[0])
            send(client, accepted)
            stage.watch(loop, accepted, IN, log.handler("newcomer"))

        stage.watch(loop, x, IN, log.handler("x", replace_a))
        a_token = stage.watch(loop, a.near, IN, log.handler("a"))
        settle(loop)
        x.fire()
        a.send()
        assert one_batch(loop) == (1, 2)
        assert one_batch(loop) == (1, 1)
        assert log == [("x", IN), ("newcomer", IN)]


REUSES = [(1, 1, False), (1, 2, True), (1, 3, False), (1, 4, True),
          (2, 1, False), (2, 2, False), (2, 3, False), (2, 4, True),
          *((32, reuses, False) for reuses in range(1, 9))]


@pytest.mark.parametrize(("instance_bits", "reuses", "wrong"), REUSES)
class TestASlotReusedSeveralTimesWithinABatch:
    """2. The ABA case. n bits of generation tell 2^n - 1 reuses apart: nginx's single bit is fooled by the second."""

    def test_raw(self, stage, instance_bits, reuses, wrong):
        """2. X's handler closes A; connections come and go in A's fd and slot; the last one stays."""
        log = Log()
        with epollkit.Loop(instance_bits=instance_bits) as loop:
            listening = stage.listening()
            x, a = stage.event(), stage.pair()
            stage.connect_many(listening, reuses)
            a_fd, owners = a.near.fileno(), []

            def replace_a():
                loop.unregister(a_token)
                a.near.close()
                for number in range(1, reuses + 1):
                    accepted = stage.own(listening.accept()[0])
                    token = loop.register(accepted, IN, log.handler(f"owner {number}"))
                    owners.append((accepted.fileno(), token.index, token.generation))
                    if number < reuses:
                        loop.unregister(token)
                        accepted.close()

            loop.register(x, IN, log.handler("x", replace_a))
            a_token = loop.register(a.near, IN, log.handler("a"))
            settle(loop)
            x.fire()
            a.reset()
            stage.fill_fd_holes(above=a_fd)
            made, events = one_batch(loop)
            stats = loop.stats()

        assert events == 2
        assert owners == [(a_fd, a_token.index, a_token.generation + n) for n in range(1, reuses + 1)]
        assert log.names == (["x", f"owner {reuses}"] if wrong else ["x"])
        assert made == 1 + wrong
        assert stats.wrong_deliveries == wrong
        assert stats.stale_recycled == (not wrong)

    def test_listener(self, stage, instance_bits, reuses, wrong):
        """2. Each owner but the last closes itself in on_open, while the others wait in the backlog: all of it happens
        within one accept budget. A's event is a reset, so with too few bits it kills the innocent last owner."""
        log = Log()
        owners, owned = [], []
        with epollkit.Loop(instance_bits=instance_bits) as loop:
            a = Spy(log, "a")
            x = stage.event()
            loop.register(x, IN, log.handler("x", a.abort))

            def opened(stream):
                owned.append(registration(stream))
                if len(owners) < reuses:
                    stream.close()

            def factory():
                owners.append(Spy(log, f"owner {len(owners) + 1}", on_open=opened))
                return owners[-1]

            client = stage.stream(loop, a)
            fd, index, generation = registration(a)
            listener = loop.listen(LOCAL, factory)
            settle(loop)
            x.fire()
            stage.connect_many(listener, reuses)
            reset(client, a)
            stage.fill_fd_holes(above=fd)
            _, events = one_batch(loop)
            stats = loop.stats()
            last_lives = not owners[-1].is_closing

        assert events == 3
        assert next(name for name in log.names if name != "a") == "x"
        assert owned == [(fd, index, generation + n) for n in range(1, reuses + 1)]
        assert (stats.wrong_deliveries, stats.wrong_kills) == (wrong, wrong)
        assert last_lives == (not wrong)
        assert stats.stale_recycled == (not wrong)


class TestAHandlerClosesItsOwnConnection:
    """4. An event carries IN and OUT. Whoever closes in the first half is not called for the second."""

    def test_the_write_half_does_not_run(self, loop, stage):
        """4. Output is queued and the socket takes it again, when a request comes whose handler aborts the connection
        and registers another file, which gets the fd and the slot."""
        log = Log()
        successor = []

        def leave_and_replace(stream):
            was = registration(stream)
            stream.abort()
            event = stage.event()
            token = stage.watch(loop, event, IN | OUT, log.handler("successor"))
            successor.append(((event.fileno(), token.index, token.generation), was))

        stream = Spy(log, "stream", on_data=leave_and_replace)
        client = stage.stream(loop, stream)
        loop.call_soon(stream.write, bytes(8 << 20))
        settle(loop)
        assert not ready_events(stream) & OUT
        received = 0
        while not ready_events(stream) & OUT:
            received += len(client.recv(1 << 20))
        send(client, stream)
        assert ready_events(stream) == IN | OUT
        stage.fill_fd_holes(above=stream.fileno())
        log.clear()
        assert one_batch(loop) == (1, 1)
        [(new, old)] = successor
        assert new == (old[0], old[1], old[2] + 1)
        assert log == [("stream", "on_data", b"x"), ("stream", "on_close", None)]
        with pytest.raises(ConnectionResetError):
            while client.recv(1 << 20):
                pass

    def test_no_second_read(self, loop, stage):
        """4. The same while more bytes, and the peer's FIN, wait to be read: neither is delivered."""
        log = Log()
        stream = Spy(log, "stream", on_data=Spy.abort)
        client = stage.stream(loop, stream)
        send(client, stream, bytes(100_000))      # more than one read takes
        finish(client, stream)
        log.clear()
        loop.turn(0)
        assert [what for _, what, _ in log] == ["on_data", "on_close"]


class TestWhatDiesWithAConnection:
    """5. B has a timer, a posted call, a place on the ready list and an event in the batch, all due in this turn; then
    it is closed. None of them runs."""

    def burden(self, loop, log, stream, client):
        """Give a stream one of each."""
        stream.call_soon(log.call("posted call of b"))
        stream.call_later(0, log.call("timer of b"))
        stream.write(b"from the ready list")
        send(client, stream)

    def spend_read_budget(self, loop, stream, client):
        """Send more than a stream reads in one turn: then it waits on the ready list."""
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(bytes(1 << 20))
        wait_ready(stream)
        loop.turn(0)
        assert ready_events(stream) & IN, "it was read to the end: the budget was not reached"

    @pytest.mark.parametrize("phase", ["posted call", "timer", "ready list", "event"])
    def test_closed_by_somebody_earlier_in_the_turn(self, loop, stage, phase):
        """5. The closer runs in each of the turn's phases; what B had due in that phase and after it does not run."""
        log = Log()
        a, b = Spy(log, "a"), Spy(log, "b")
        a_client, b_client = stage.stream(loop, a), stage.stream(loop, b)
        log.clear()
        if phase == "posted call":
            loop.call_soon(b.abort)
        if phase == "timer":
            loop.call_later(0, b.abort)
        if phase == "ready list":
            self.spend_read_budget(loop, a, a_client)
            a.then["on_data"] = lambda _: b.abort()
        if phase == "event":
            a.then["on_data"] = lambda _: b.abort()
            send(a_client, a)
        self.burden(loop, log, b, b_client)
        loop.turn(0)
        settle(loop)
        assert b.is_closing
        ran = [name for name in log.names if name.endswith(" of b")]
        due_before = {"posted call": 0, "timer": 1, "ready list": 2, "event": 2}[phase]
        assert ran == ["posted call of b", "timer of b"][:due_before]
        assert log.of("b") == [("on_close", None)]
        assert b_client.recv(100) == b"from the ready list" if phase == "event" else ready_events(b_client) & RDHUP

    def test_closed_by_the_handler_that_gave_it_all_that(self, loop, stage):
        """5. A's handler writes to B, posts for it, arms its timer, and closes it: the next turn has nothing to do."""
        log = Log()
        b = Spy(log, "b")
        b_client = stage.stream(loop, b)

        def give_and_close(a):
            self.burden(loop, log, b, b_client)
            b.abort()

        a = Spy(log, "a", on_data=give_and_close)
        a_client = stage.stream(loop, a)
        send(a_client, a)
        log.clear()
        assert loop.turn(0) == 1
        assert loop.turn(0) == 0
        assert log == [("a", "on_data", b"x"), ("b", "on_close", None)]
        assert loop.stats().timers == 0

    def test_a_spent_read_budget(self, loop, stage):
        """5. B stopped at its read budget and waits on the ready list; A closes it there: no more bytes are
        delivered."""
        log = Log()
        b = Spy(log, "b")
        b_client = stage.stream(loop, b)
        self.spend_read_budget(loop, b, b_client)
        assert ("b", "on_data") in [entry[:2] for entry in log]
        loop.call_soon(b.abort)
        log.clear()
        settle(loop)
        assert log == [("b", "on_close", None)]

    def test_its_calls_do_not_pass_to_the_next_owner_of_the_slot(self, loop, stage):
        """5. B's slot is taken again at once; what B had due is not run on the newcomer's behalf, nor taken from it."""
        log = Log()
        b, c = Spy(log, "b"), Spy(log, "c")
        b_client = stage.stream(loop, b)
        listener = stage.listen(loop, lambda: c)
        index = b.token.index
        stage.connect(listener)
        self.burden(loop, log, b, b_client)
        b.abort()
        loop.turn(0)
        assert c.token.index == index
        timer = c.call_later(3600, log.call("timer of c"))
        settle(loop)
        assert not any(name.endswith(" of b") for name in log.names)
        assert timer.active
        c.abort()
        assert not timer.active


class TestOnePeerThatNeverStopsSending:
    """20. One firehose against 1000 that ping: they are all served, and what they wait for is bounded. Counted, not
    timed: a p99 follows from it."""

    PINGS = 1000
    ROUNDS = 3

    @pytest.mark.parametrize(("before", "budgets"), [(0, 1), (250, 1), (511, 2), (512, 1), (1000, 1)])
    def test_one_read_budget_between_any_two_others(self, loop, stage, before, budgets):
        """20. All are ready, the firehose behind `before` of them. Whoever is called tops its socket up again. The last
        of a full batch of 512 is the exception: it stops there, and the next turn's ready list comes before the rest of
        the others."""
        waited, swallowed, pinged = [], [0], []

        def top_up():
            with contextlib.suppress(BlockingIOError):
                hose.send(bytes(1 << 20))

        class Firehose(epollkit.Stream):
            def on_data(self, data):
                swallowed[0] += len(data)
                top_up()

        class Ping(epollkit.Stream):
            def on_data(self, data):
                waited.append(swallowed[0])
                swallowed[0] = 0
                pinged.append(self)
                top_up()

        wide = stage.listen(loop, Firehose)
        set_buffers(wide.fileno(), receive=1 << 22)
        hose = stage.connect(wide)
        set_buffers(hose.fileno(), send=1 << 22)
        streams = []
        listener = stage.listen(loop, lambda: streams.append(Ping()) or streams[-1])
        clients = [stage.connect(listener) for _ in range(self.PINGS)]
        turn_until(loop, lambda: len(streams) == self.PINGS)
        settle(loop)
        for _ in range(self.ROUNDS):
            swallowed[0] = 0
            pinged.clear()
            for client in clients[:before]:
                client.send(b"ping")
            top_up()
            for client in clients[before:]:
                client.send(b"ping")
            turn_until(loop, lambda: len(pinged) == self.PINGS)
            assert set(pinged) == set(streams)
        assert before == self.PINGS or max(waited) > READ_BUDGET_BYTES // 2, "no budget was spent: this proves nothing"
        assert max(waited) < budgets * (READ_BUDGET_BYTES + READ_ROOM_BYTES)


class TestAnExceptionEndsOneHandlerOnly:
    """22. A handler raises in mid-batch: the rest of the batch is delivered, and the exception reported once."""

    @pytest.fixture
    def reported(self, loop):
        found = []
        loop.set_exception_handler(lambda error, source: found.append((error, source)))
        return found

    def test_raw_handler(self, loop, stage, reported):
        """22. [A, B, C]; B's handler raises: it alone is unregistered, its fd stays open."""
        log = Log()
        failure = ValueError("b fails")

        def fail(token, events):
            log.append(("b", events))
            raise failure

        events = stage.events(3)
        tokens = [stage.watch(loop, event, IN, handler)
                  for event, handler in zip(events, [log.handler("a"), fail, log.handler("c")], strict=True)]
        for event in events:
            event.fire()
        assert one_batch(loop) == (3, 3)
        assert log.names == ["a", "b", "c"]
        assert reported == [(failure, fail)]
        assert [token.live for token in tokens] == [True, False, True]
        os.fstat(events[1].fd)
        for event in events:
            event.fire()
        assert one_batch(loop) == (2, 2)
        assert len(reported) == 1

    @pytest.mark.parametrize("upcall", ["on_open", "on_data", "on_eof", "on_error", "on_close"])
    def test_stream(self, loop, stage, reported, upcall):
        """22. A stream raises in any of its upcalls: that connection ends, with its own exception as the reason, and
        the event behind it in the batch is delivered."""
        log = Log()
        failure = ValueError(f"{upcall} fails")

        def fail(stream):
            raise failure

        c = stage.event()
        stage.watch(loop, c, IN, log.handler("c"))
        stream = Spy(log, "b", **{upcall: fail})
        listener = stage.listen(loop, lambda: stream)
        client = stage.connect(listener)
        if upcall != "on_open":
            settle(loop)
            send(client, stream)
            if upcall == "on_eof":
                finish(client, stream)
            if upcall == "on_error":
                reset(client, stream)
            if upcall == "on_close":
                stream.then["on_data"] = Spy.abort
        c.fire()
        before = loop.stats().batches
        loop.turn(0)
        assert loop.stats().batches == before + 1
        assert reported == [(failure, stream)]
        assert "c" in log.names
        assert stream.is_closing
        assert log.of("b")[-1] == ("on_close", None if upcall == "on_close" else failure)
        settle(loop)
        assert len(reported) == 1

    def test_timers_and_posted_calls(self, loop, reported):
        """22. One of three timers, and one of three posted calls, raises."""
        log = Log()
        failures = [ValueError("posted"), ValueError("timer"), ValueError("from a thread")]

        def fail(failure):
            raise failure

        for arm, failure in ((loop.call_soon, failures[0]), (lambda *call: loop.call_later(0, *call), failures[1]),
                             (loop.call_soon_threadsafe, failures[2])):
            arm(log.call("before"))
            arm(fail, failure)
            arm(log.call("after"))
        loop.turn(0)
        assert log.names == ["before", "after"] * 3
        assert reported == [(failures[2], fail), (failures[0], fail), (failures[1], fail)]

    def test_the_log_is_told_by_default(self, loop, caplog):
        """22. Nobody set an exception handler: one error on the logger "epollkit", with the traceback."""
        def fail():
            raise ValueError("nobody handles this")

        loop.call_soon(fail)
        loop.turn(0)
        [record] = caplog.records
        assert (record.name, record.levelname) == ("epollkit", "ERROR")
        assert "fail" in record.getMessage()
        assert str(record.exc_info[1]) == "nobody handles this"

    def test_an_exception_handler_that_fails(self, loop, caplog):
        """22. The exception handler itself raises: both are in the log, and the loop goes on."""
        log = Log()

        def handler(error, source):
            raise KeyError("the handler is broken")

        def fail():
            raise ValueError("the first")

        loop.set_exception_handler(handler)
        loop.call_soon(fail)
        loop.call_soon(log.call("next"))
        loop.turn(0)
        assert log.names == ["next"]
        assert [type(record.exc_info[1]) for record in caplog.records] == [KeyError, ValueError]

    def test_back_to_the_default(self, loop, reported, caplog):
        """22. set_exception_handler(None)."""
        loop.set_exception_handler(None)
        loop.call_soon(lambda: 1 // 0)
        loop.turn(0)
        assert len(caplog.records) == 1
        assert reported == []


class TestAConnectionThatDiesInTheQueue:
    """23. accept fails for one of several: that is its affair, and the drain goes on."""

    def served(self, loop, stage, listener, clients, streams):
        """Whether each of these is accepted and gets its answer."""
        turn_until(loop, lambda: len(streams) >= len(clients))
        for client in clients:
            client.send(b"ping")
        for client in clients:
            turn_until(loop, lambda client=client: ready_events(client) & IN)
            assert client.recv(100) == b"ping"

    def listen(self, loop, stage):
        log, streams = Log(), []

        def factory():
            streams.append(Spy(log, "stream", on_data=lambda stream: stream.write(b"ping")))
            return streams[-1]

        return stage.listen(loop, factory), streams, log

    def test_reset_while_it_waits(self, loop, stage):
        """23. Of five in the queue the second and the third were reset: Linux has them accepted and then broken
        (POSIX's ECONNABORTED is other kernels' answer). The other three are served, in the same turn."""
        reported = []
        loop.set_exception_handler(lambda *failure: reported.append(failure))
        listener, streams, log = self.listen(loop, stage)
        clients = stage.connect_many(listener, 5)
        for client in clients[1:3]:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        loop.turn(0)
        assert len(streams) == 5
        settle(loop)
        assert [stream.is_closing for stream in streams] == [False, True, True, False, False]
        assert [type(error) for _, what, error in log if what == "on_close"] == [ConnectionResetError] * 2
        self.served(loop, stage, listener, [clients[0], *clients[3:]], streams)
        assert reported == []

    @pytest.mark.debug_build
    @pytest.mark.parametrize("error", ["ECONNABORTED", "EPROTO", "EPERM", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN",
                                       "ENONET", "EHOSTUNREACH", "EOPNOTSUPP", "ENETUNREACH", "ETIMEDOUT"])
    def test_the_drain_goes_on(self, loop, stage, error):
        """23. Of five accepts in one turn the second and third fail, each with one that had died in the queue."""
        from epollkit import _operations
        reported, asked = [], []
        loop.set_exception_handler(lambda *failure: reported.append(failure))
        listener, streams, _ = self.listen(loop, stage)
        clients = stage.connect_many(listener, 5)

        def accept(fd):
            asked.append(fd)
            if len(asked) not in (2, 3):
                return None
            with socket.socket(fileno=os.dup(fd)) as copy:
                copy.accept()[0].close()        # it leaves the queue
            return -getattr(errno, error)

        with _operations.replaced(accept=accept):
            loop.turn(0)
        assert len(asked) == 5
        assert len(streams) == 3
        assert (listener.pauses, reported) == (0, [])
        self.served(loop, stage, listener, [clients[0], *clients[3:]], streams)


class TestExclusive:
    """24. EPOLLEXCLUSIVE: ADD only; MOD and RDHUP are refused with a clear error."""

    def test_connections_are_reported(self, loop, stage):
        """24. A raw listening socket, registered with IN | EXCLUSIVE."""
        log = Log()
        listening = stage.listening()
        stage.watch(loop, listening, IN | EXCLUSIVE, log.handler("listening"))
        stage.connect(listening)
        assert one_batch(loop) == (1, 1)
        assert log == [("listening", IN)]

    def test_modify_is_refused(self, loop, stage):
        """24. The registration stands as it was."""
        log = Log()
        listening = stage.listening()
        token = stage.watch(loop, listening, IN | EXCLUSIVE, log.handler("listening"))
        with pytest.raises(epollkit.UsageError, match="EXCLUSIVE can't be modified"):
            loop.modify(token, IN)
        stage.connect(listening)
        assert token.live
        assert one_batch(loop) == (1, 1)

    def test_it_can_not_be_added_later(self, loop, stage):
        """24. modify() of a plain registration."""
        token = stage.watch(loop, stage.event(), IN, Log().handler("event"))
        with pytest.raises(epollkit.UsageError, match="EXCLUSIVE can't be modified"):
            loop.modify(token, IN | EXCLUSIVE)
        loop.modify(token, IN | OUT)

    @pytest.mark.parametrize("flag", ["RDHUP", "PRI", "ONESHOT"])
    def test_what_it_does_not_go_with(self, loop, stage, flag):
        """24. The kernel says EINVAL; we say why."""
        with pytest.raises(epollkit.UsageError, match="EXCLUSIVE goes with IN and OUT only"):
            loop.register(stage.listening(), IN | EXCLUSIVE | getattr(epollkit, flag), print)
        assert loop.stats().live == 0

    def test_listener(self, loop, stage):
        """24. Two loops watch one port through one socket each; `exclusive=True` accepts like any other."""
        log = Log()
        with epollkit.Loop() as other:
            first = stage.listen(loop, lambda: Spy(log, "first"), exclusive=True, reuse_port=True)
            second = stage.listen(other, lambda: Spy(log, "second"), first.address, exclusive=True, reuse_port=True)
            client = stage.own(socket.create_connection(second.address))
            while not log:
                loop.turn(0)
                other.turn(0)
            assert len(log) == 1
            assert client.getpeername() == first.address


class TestASignalStorm:
    """25. A signal a millisecond (ITIMER_REAL) while timers of 0.3 ms run: none is early, and every turn has a reason.
    In a process of its own, for the interval timer is the test runner's."""

    @pytest.mark.parametrize("kind", ["plain", "of the loop"])
    def test_timers(self, kind):
        """25. Each timer arms the next, 300 times; a turn waits for it, is ended early by a signal, and may be spent on
        the call that a signal posted: more turns than that would be a spin."""
        out = in_child("""
import signal, sys, epollkit
signals, early, left = [], [], [300]
def fire(due):
    early.append(loop.time() < due)
    left[0] -= 1
    if left[0]: arm()
def arm():
    loop.call_later(0.0003, fire, loop.time() + 0.0003)
with epollkit.Loop() as loop:
    if sys.argv[1] == "plain": signal.signal(signal.SIGALRM, lambda *_: signals.append(1))
    else: loop.add_signal_handler(signal.SIGALRM, signals.append, 1)
    arm()
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    turns = 0
    while left[0]:
        loop.turn(5)
        turns += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    loop.turn(0)
    print(turns, len(early), sum(early), len(signals), loop.stats().batches)
""", kind)
        turns, fired, early, signals, batches = map(int, out.split())
        assert (fired, early) == (300, 0)
        assert signals > 10, "no storm: this proves nothing"
        assert turns <= 2 * fired + 3 * signals + 5
        assert batches <= signals

    @pytest.mark.debug_build
    @pytest.mark.parametrize("delay", [0.0003, 0.0000001, 0.0010001])
    def test_a_wait_is_as_long_as_the_timer(self, delay):
        """25. 0.3 ms rounds up: with a clock that passes only while the loop waits, one wait is enough for it."""
        from epollkit import _operations
        with _operations.fake_clock(), epollkit.Loop() as loop:
            fired = []
            due = loop.time() + delay
            loop.call_later(delay, lambda: fired.append(loop.time()))
            before = _operations.calls()["epoll_wait"]
            assert turn_until(loop, lambda: fired) == 2
            assert _operations.calls()["epoll_wait"] - before == 2
            assert fired[0] >= due - 1e-9


class TestInternalTags:
    """26. The loop's own wake-ups have slots like everybody else, so no tag of theirs can equal a user's."""

    def test_a_wake_up_reaches_no_user(self, stage):
        """26. With one bit of generation compared, the wake-up's event is in a batch with those of users in fresh and
        in recycled slots: each is told of its own event only."""
        log = Log()
        with epollkit.Loop(instance_bits=1) as loop:
            events = stage.events(8)
            tokens = [loop.register(event, IN, log.handler(str(number))) for number, event in enumerate(events)]
            for number in (1, 3, 5):
                loop.unregister(tokens[number])
            for number in (5, 3, 1):
                tokens[number] = loop.register(events[number], IN, log.handler(str(number)))
            indices = [token.index for token in tokens]
            events[0].fire()
            loop.call_soon_threadsafe(log.call("inbox"))
            events[1].fire()
            assert one_batch(loop) == (3, 3)
            stats = loop.stats()
        assert sorted(indices) == list(range(1, 9))     # 0 is the wake-up's
        assert log.names == ["inbox", "0", "1"]
        assert (stats.wrong_deliveries, stats.stale_recycled, stats.stale_closed) == (0, 0, 0)

    def test_the_signal_pair_has_its_own_slot(self, stage):
        """26. run() adds a second wake-up, among the users' slots."""
        log = Log()
        with epollkit.Loop() as loop:
            before = loop.register(stage.event(), IN, log.handler("before"))
            loop.call_soon(loop.stop)
            loop.run()
            after = loop.register(stage.event(), IN, log.handler("after"))
            with kept_signal_handler(signal.SIGUSR1, lambda *_: loop.stop()):
                loop.call_soon(signal.raise_signal, signal.SIGUSR1)
                loop.run()
            settle(loop)
            assert (before.index, after.index) == (1, 3)
            assert loop.stats().live == 2
        assert log == []

    def test_users_can_not_reach_them(self, loop):
        """26. Their fds are registered already, as anybody can see; there is no token of theirs to be had."""
        entries = Path(f"/proc/self/fdinfo/{loop.fileno()}").read_text().splitlines()
        internal = [int(line.split()[1]) for line in entries if line.startswith("tfd:")]
        assert len(internal) == 1
        with pytest.raises(epollkit.UsageError, match="already registered"):
            loop.register(internal[0], IN, print)
        with pytest.raises(epollkit.UsageError, match="can't be watched"):
            loop.register(loop.fileno(), IN, print)
        assert loop.stats().live == 0


class TestAnFdClosedBehindTheLoop:
    """31. The user closes a registered fd; its number is reused and registered; then the old token is used."""

    def replace(self, loop, stage, log):
        a, b = stage.event(), stage.event()
        fd = a.fd
        old = stage.watch(loop, a, IN, log.handler("old"))
        stage.fill_fd_holes(above=fd)
        a.close()
        assert os.dup(b.fd) == fd
        stage.callback(os.close, fd)
        new = stage.watch(loop, fd, IN, log.handler("new"))
        return old, new, b

    @pytest.mark.parametrize("use", ["unregister", "modify"])
    def test_a_late_use_of_the_old_token(self, loop, stage, use):
        """31. It is refused, and the new registration still gets its events."""
        log = Log()
        old, new, b = self.replace(loop, stage, log)
        with pytest.raises(epollkit.StaleToken, match="that registration is gone"):
            loop.unregister(old) if use == "unregister" else loop.modify(old, OUT)
        b.fire()
        assert one_batch(loop) == (1, 1)
        assert log == [("new", IN)]
        assert new.live
        assert (new.index, new.generation) == (old.index, old.generation + 1)

    def test_the_old_registration_is_counted_as_lost(self, loop, stage):
        """31. As soon as the number is registered again, not before: until then nobody can know."""
        stats = loop.stats()
        old, _, _ = self.replace(loop, stage, Log())
        assert not old.live
        after = loop.stats()
        assert (after.lost, after.closed, after.live) == (stats.lost + 1, stats.closed + 1, 1)

    def test_the_number_goes_to_an_accepted_connection(self, loop, stage):
        """31. The same with the listener as the one who gets the number."""
        log = Log()
        a = stage.event()
        old = stage.watch(loop, a, IN, log.handler("old"))
        stream = Spy(log, "stream")
        listener = stage.listen(loop, lambda: stream)
        client = stage.connect(listener)
        stage.fill_fd_holes(above=a.fd)
        fd = a.fd
        a.close()
        settle(loop)
        assert stream.fileno() == fd
        assert loop.stats().lost == 1
        with pytest.raises(epollkit.StaleToken):
            loop.unregister(old)
        send(client, stream)
        loop.turn(0)
        assert log == [("stream", "on_open", None), ("stream", "on_data", b"x")]

    def test_a_number_that_is_open_again_but_not_registered(self, loop, stage):
        """31. modify() finds out that the file behind the number is another; unregister() ends what is left,
        quietly."""
        first, second, other = stage.event(), stage.event(), stage.event()
        tokens = [stage.watch(loop, event, IN, print) for event in (first, second)]
        os.dup2(other.fd, first.fd)
        os.dup2(other.fd, second.fd)
        with pytest.raises(epollkit.StaleToken, match="was closed while it was registered"):
            loop.modify(tokens[0], IN)
        loop.unregister(tokens[1])
        assert [token.live for token in tokens] == [False, False]
        assert loop.stats().lost == 1


class TestCtrlCInTheMiddleOfABatch:
    """32. run() raises at once; the next turn() delivers the rest of the batch, and nothing else."""

    @pytest.fixture(autouse=True)
    def default_sigint(self):
        with kept_signal_handler(signal.SIGINT, signal.default_int_handler):
            yield

    def interrupt(self):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("Ctrl-C did not arrive")       # pragma: no cover

    @pytest.mark.parametrize("leave", ["run", "turn"])
    def test_the_rest_of_the_batch_is_delivered(self, loop, stage, leave):
        """32. [A, B, C]; Ctrl-C arrives in B's handler. Posted calls and timers wait for the turn after."""
        log = Log()
        failures = []
        loop.set_exception_handler(lambda *failure: failures.append(failure))
        events = stage.events(3)
        for name, event, then in zip("abc", events, (None, self.interrupt, None), strict=True):
            stage.watch(loop, event, IN, log.handler(name, then))
        for event in events:
            event.fire()
        with pytest.raises(KeyboardInterrupt):
            loop.run() if leave == "run" else loop.turn(0)
        assert log.names == ["a", "b"]
        loop.call_soon(log.call("posted"))
        before = loop.stats().batches
        assert loop.turn() == 1
        assert log.names == ["a", "b", "c"]
        assert loop.stats().batches == before, "it took another batch before the old one was finished"
        loop.call_soon(log.call("behind"))
        log.clear()
        with pytest.raises(KeyboardInterrupt):
            loop.turn(0)
        assert log.names == ["posted", "behind", "b"], "B's edge was spent, and must be replayed from the ready list"
        assert failures == []

    def test_the_interrupted_edge_is_not_lost(self, loop, stage):
        """32. B is interrupted before it has read anything: it is called again, with the same events, without a new
        edge."""
        log = Log()
        pair = stage.pair()
        interrupts = iter([True, False])

        def once():
            if next(interrupts):
                self.interrupt()
            pair.near.recv(100)

        stage.watch(loop, pair.near, IN, log.handler("b", once))
        pair.send()
        with pytest.raises(KeyboardInterrupt):
            loop.run()
        assert log == [("b", IN)]
        assert loop.turn(0) == 1
        assert log == [("b", IN), ("b", IN)]
        assert loop.turn(0) == 0

    def test_a_stream_reads_on(self, loop, stage):
        """32. A stream is interrupted in on_data, with more bytes and the peer's end to be read: they come in the next
        turns."""
        log = Log()
        interrupts = iter([True])
        stream = Spy(log, "stream", on_data=lambda _: next(interrupts, False) and self.interrupt())
        client = stage.stream(loop, stream)
        send(client, stream, b"1" * 100_000)
        finish(client, stream)
        log.clear()
        with pytest.raises(KeyboardInterrupt):
            loop.turn(0)
        assert not stream.is_closing
        settle(loop)
        loop.turn(0)
        received = b"".join(value for _, what, value in log if what == "on_data")
        assert received == b"1" * 100_000
        assert [what for _, what, _ in log].index("on_eof") == len(log) - 1

    def test_events_of_those_who_left_meanwhile_are_stale(self, loop, stage):
        """32. Between the two turns the user unregisters C and registers another in its slot: the rest of the batch is
        checked like any."""
        log = Log()
        b, c, late = stage.events(3)
        stage.watch(loop, b, IN, log.handler("b", self.interrupt))
        token = stage.watch(loop, c, IN, log.handler("c"))
        b.fire()
        c.fire()
        with pytest.raises(KeyboardInterrupt):
            loop.turn(0)
        loop.unregister(token)
        assert stage.watch(loop, late, IN, log.handler("late")).index == token.index
        assert loop.turn(0) == 0
        assert log.names == ["b"]
        assert stale_events(loop) == (0, 1, 0)

    def test_a_closed_stream_is_told_in_the_next_turn(self, loop, stage):
        """32. A closed C, then Ctrl-C: C's on_close is due at the end of the turn that finishes the batch."""
        log = Log()
        c = Spy(log, "c")
        stage.stream(loop, c)
        b = stage.event()

        def close_and_leave():
            c.abort()
            self.interrupt()

        token = stage.watch(loop, b, IN, log.handler("b", close_and_leave))
        b.fire()
        log.clear()
        with pytest.raises(KeyboardInterrupt):
            loop.run()
        loop.unregister(token)
        loop.turn()
        assert log == [("b", IN), ("c", "on_close", None)]

    @pytest.mark.parametrize("where", ["posted", "timer", "thread"])
    def test_in_a_call(self, loop, stage, where):
        """32. Ctrl-C in a timer or posted call: those behind it wait for the next turn, none is lost or run twice."""
        log = Log()
        arm = {"posted": loop.call_soon, "timer": lambda call: loop.call_later(0, call),
               "thread": loop.call_soon_threadsafe}[where]
        for name, then in (("first", None), ("second", self.interrupt), ("third", None)):
            arm(log.call(name, then))
        with pytest.raises(KeyboardInterrupt):
            loop.run()
        settle(loop)
        assert log.names == ["first", "second", "third"]

    def test_while_it_waits(self, loop):
        """32. Nothing is going on; the signal comes while run() is about to block, or blocked already."""
        started = threading.Event()
        main_thread = threading.get_ident()

        def interrupt():
            started.wait()
            signal.pthread_kill(main_thread, signal.SIGINT)

        sender = threading.Thread(target=interrupt)
        sender.start()
        loop.call_soon(started.set)
        with pytest.raises(KeyboardInterrupt):
            loop.run()
        sender.join()
        settle(loop)


class TestStaleEventsAreClassified:
    """Each kind is counted once, under its own name, and calls nobody."""

    def closer(self, loop, stage, log, then):
        """X, whose handler comes first in the batch; A, whose event is stale by then."""
        x, a = stage.event(), stage.event()
        stage.watch(loop, x, IN, log.handler("x", then))
        token = stage.watch(loop, a, IN, log.handler("a"))
        x.fire()
        a.fire()
        return token, a

    def test_closed(self, loop, stage):
        """1. The slot is free when the event's turn comes."""
        log = Log()
        token, _ = self.closer(loop, stage, log, lambda: loop.unregister(token))
        assert one_batch(loop) == (1, 2)
        assert stale_events(loop) == (1, 0, 0)

    def test_recycled(self, loop, stage):
        """1. The slot has a new owner; here it even is the same file, registered again."""
        log = Log()

        def register_again():
            loop.unregister(token)
            again.append(stage.watch(loop, a, IN, log.handler("again")))

        again = []
        token, a = self.closer(loop, stage, log, register_again)
        assert one_batch(loop) == (1, 2)
        assert again[0].index == token.index
        assert stale_events(loop) == (0, 1, 0)
        assert one_batch(loop) == (1, 1)        # what was there already is reported for the new registration
        assert log.names == ["x", "again"]

    def test_recycled_and_free_again(self, loop, stage):
        """2. Taken and given back several times within the batch: free now, so it is counted as closed."""
        log = Log()

        def register_again():
            loop.unregister(token)
            for _ in range(5):
                loop.unregister(loop.register(a, IN, log.handler("again")))

        token, a = self.closer(loop, stage, log, register_again)
        assert one_batch(loop) == (1, 2)
        assert stale_events(loop) == (1, 0, 0)

    def test_orphan(self, loop, stage):
        """6. A copy of a closed connection's descriptor keeps its entry in the epoll set: events of it are still
        reported, and dropped, in later batches; also when the slot has a new owner."""
        log = Log()
        stream = Spy(log, "stream")
        client = stage.stream(loop, stream)
        copy = os.dup(stream.fileno())
        stage.callback(os.close, copy)
        stream.abort()
        settle(loop)
        stage.callback(settle, loop)
        log.clear()
        client.send(b"x")
        wait_ready(copy)
        assert one_batch(loop) == (0, 1)
        assert stale_events(loop) == (0, 0, 1)
        successor = stage.event()
        stage.watch(loop, successor, IN, log.handler("successor"))
        client.send(b"x")
        assert one_batch(loop) == (0, 1)
        assert stale_events(loop) == (0, 0, 2)
        assert log == []

    def test_orphans_of_a_listener_do_not_spin(self, loop, stage):
        """6. A listener is level-triggered: one that is closed while a copy of it lives must leave the set."""
        listener = stage.listen(loop, lambda: Spy(Log(), "stream"))
        copy = os.dup(listener.fileno())
        stage.callback(os.close, copy)
        address = listener.address
        listener.close()
        stage.own(socket.create_connection(address))
        wait_ready(copy)
        for _ in range(3):
            loop.turn(0)
        assert stale_events(loop) == (0, 0, 0)


def test_a_forked_child_that_holds_a_connection():
    """6. A child that never runs our at-fork hook holds every fd; the parent closes its connection: no upcall for what
    comes afterwards, and the counter tells."""
    print_stats = """
import ctypes, os, signal, socket, epollkit
calls = []
class Noting(epollkit.Stream):
    def on_data(self, data): calls.append(data)
made = []
loop = epollkit.Loop()
listener = loop.listen(("127.0.0.1", 0), lambda: made.append(Noting()) or made[-1])
client = socket.create_connection(listener.address)
while not made: loop.turn(1)
loop.turn(0)
held, holder = os.pipe()
child = ctypes.CDLL(None).fork()
if child == 0:
    os.read(held, 1)
    os._exit(0)
made[0].abort()
listener.close()
loop.turn(0)
client.send(b"too late")
upcalls = sum(loop.turn(0.5) for _ in range(1))
stats = loop.stats()
print(len(calls), upcalls, stats.stale_orphan, stats.live)
os.write(holder, b"x")
os.waitpid(child, 0)
loop.close()
"""
    calls, upcalls, orphans, live = map(int, in_child(print_stats).split())
    assert (calls, upcalls, orphans, live) == (0, 0, 1, 0)


def test_nothing_is_left_after_all_that(stage):
    """Every descriptor, slot and timer is given back by close(), whatever state a connection was in."""
    log = Log()
    before = len(os.listdir("/proc/self/fd"))
    loop = epollkit.Loop()
    streams = [Spy(log, str(number)) for number in range(4)]
    clients = [stage.stream(loop, stream) for stream in streams]
    streams[0].call_later(3600, print)
    streams[1].write(bytes(8 << 20))
    streams[2].call_soon(print)
    streams[3].abort()
    send(clients[0], streams[0])
    listener = loop.listen(LOCAL, lambda: Spy(log, "late"))
    stage.connect(listener)
    assert queued_connections(listener) == 1
    loop.close()
    assert [log.of(str(number))[-1] for number in range(4)] == [("on_close", None)] * 4
    assert not any(stream.token.live for stream in streams if not stream.is_closing)
    stage.close()
    del listener
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before

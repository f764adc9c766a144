"""`register`, `modify`, `unregister`: what they do with every kind of file, and what they say to every mistake."""
from __future__ import annotations

import ctypes
import os
import socket
import struct
import tempfile

import pytest
from batches import Event, in_thread, reset, send, settle, wait_ready

import epollkit
from epollkit import ERR, EXCLUSIVE, HUP, IN, ONESHOT, OUT, PRI, RDHUP, StaleToken, UsageError

CLOCK_MONOTONIC, TIMER_FLAGS = 1, os.O_NONBLOCK | os.O_CLOEXEC


def pipe(stage):
    """A pipe's two ends, each closed at the end unless the test did so."""
    ends = [os.fdopen(fd, mode, buffering=0) for fd, mode in zip(os.pipe(), ("rb", "wb"), strict=True)]
    for end in ends:
        os.set_blocking(end.fileno(), False)
        stage.own(end)
    return ends


def socket_pair(stage, kind=socket.SOCK_STREAM):
    ends = socket.socketpair(socket.AF_UNIX, kind)
    for end in ends:
        end.setblocking(False)
        stage.own(end)
    return ends


def set_of(loop):
    """What the kernel says is in the epoll set: fd -> mask."""
    with open(f"/proc/self/fdinfo/{loop.fileno()}") as entries:
        fields = [line.split() for line in entries if line.startswith("tfd:")]
    return {int(field[1]): int(field[3], 16) for field in fields}


class TestEveryKindOfFile:
    def test_event(self, loop, stage, log):
        event = stage.event()
        stage.watch(loop, event, IN, log.handler("event"))
        assert loop.turn(0) == 0
        event.fire()
        assert loop.turn(0) == 1
        assert log == [("event", IN)]
        assert loop.turn(0) == 0, "edge-triggered: nobody read it, and it is not repeated"
        event.fire()
        assert loop.turn(0) == 1

    def test_pipe(self, loop, stage, log):
        read, write = pipe(stage)
        stage.watch(loop, read, IN, log.handler("read"))
        stage.watch(loop, write, OUT, log.handler("write"))
        settle(loop)
        assert log == [("write", OUT)]
        log.clear()
        write.write(b"x")
        settle(loop)
        assert log.of("read") == [IN]
        read.close()
        settle(loop)
        assert log.of("write")[-1] & ERR

    def test_the_end_of_a_pipe(self, loop, stage, log):
        """HUP comes unasked, with what is still to be read."""
        read, write = pipe(stage)
        stage.watch(loop, read, IN, log.handler("read"))
        write.write(b"last")
        write.close()
        loop.turn(0)
        assert log == [("read", IN | HUP)]
        assert read.read(100) == b"last"

    def test_timerfd(self, loop, stage, log):
        """By ctypes: Python has no call for it before 3.13."""
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.timerfd_create(CLOCK_MONOTONIC, TIMER_FLAGS)
        assert fd >= 0
        stage.callback(os.close, fd)
        stage.watch(loop, fd, IN, log.handler("timer"))
        assert loop.turn(0) == 0
        assert libc.timerfd_settime(fd, 0, struct.pack("qqqq", 0, 0, 0, 1_000_000), None) == 0     # a millisecond
        assert loop.turn(20) == 1
        assert log == [("timer", IN)]
        assert struct.unpack("Q", os.read(fd, 8)) == (1,)

    @pytest.mark.parametrize("kind", ["STREAM", "DGRAM", "SEQPACKET"])
    def test_unix_sockets(self, loop, stage, log, kind):
        near, far = socket_pair(stage, getattr(socket, f"SOCK_{kind}"))
        stage.watch(loop, near, IN, log.handler("near"))
        far.send(b"x")
        assert loop.turn(0) == 1
        assert log == [("near", IN)]

    def test_udp(self, loop, stage, log):
        near = stage.own(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        near.setblocking(False)
        near.bind(("127.0.0.1", 0))
        far = stage.own(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        stage.watch(loop, near, IN, log.handler("near"))
        far.sendto(b"x", near.getsockname())
        wait_ready(near)
        assert loop.turn(0) == 1
        assert log == [("near", IN)]

    def test_tcp(self, loop, stage, log):
        pair = stage.pair()
        stage.watch(loop, pair.near, IN | OUT, log.handler("near"))
        settle(loop)
        pair.send()
        loop.turn(0)
        assert log.of("near") == [OUT, IN | OUT]

    def test_another_loop(self, loop, stage, log):
        """A loop's fileno() is pollable, by another loop too."""
        with epollkit.Loop() as inner:
            event = stage.event()
            inner.register(event, IN, log.handler("inner"))
            stage.watch(loop, inner, IN, log.handler("outer", lambda: inner.turn(0)))
            event.fire()
            assert loop.turn(0) == 1
        assert log.names == ["outer", "inner"]

    def test_an_int_or_anything_with_fileno(self, loop, stage, log):
        event = stage.event()
        loop.unregister(loop.register(event.fd, IN, print))
        loop.unregister(loop.register(event, IN, print))
        near, far = socket_pair(stage)
        stage.watch(loop, near, IN, log.handler("near"))
        far.send(b"x")
        assert loop.turn(0) == 1


class TestMasks:
    def test_the_mask_is_delivered_whole(self, loop, stage, log):
        """Bytes and the peer's end in one event: IN and RDHUP, and OUT, which is so as well. One upcall, not three."""
        pair = stage.pair()
        stage.watch(loop, pair.near, IN | OUT, log.handler("near"))
        settle(loop)
        log.clear()
        pair.send()
        pair.far.shutdown(socket.SHUT_WR)
        wait_ready(pair.near, RDHUP)
        assert loop.turn(0) == 1
        assert log == [("near", IN | OUT | RDHUP)]

    def test_rdhup_is_always_added(self, loop, stage, log):
        """The peer's half-close is told to somebody who asked for OUT only."""
        pair = stage.pair()
        token = stage.watch(loop, pair.near, OUT, log.handler("near"))
        settle(loop)
        log.clear()
        pair.far.shutdown(socket.SHUT_WR)
        wait_ready(pair.near, RDHUP)
        assert loop.turn(0) == 1
        assert log == [("near", OUT | RDHUP)]
        loop.modify(token, IN)
        assert set_of(loop)[pair.near.fileno()] & RDHUP

    def test_a_reset(self, loop, stage, log):
        """ERR and HUP come unasked; SO_ERROR is left for the handler to read."""
        pair = stage.pair()
        stage.watch(loop, pair.near, IN, log.handler("near"))
        pair.reset()
        assert loop.turn(0) == 1
        assert log == [("near", IN | ERR | HUP | RDHUP)]
        with pytest.raises(ConnectionResetError):
            pair.near.recv(1)

    def test_urgent_data(self, loop, stage, log):
        pair = stage.pair()
        stage.watch(loop, pair.near, PRI, log.handler("near"))
        pair.far.send(b"!", socket.MSG_OOB)
        wait_ready(pair.near, PRI)
        assert loop.turn(0) == 1
        assert log.of("near")[0] & PRI

    def test_oneshot(self, loop, stage, log):
        """One event, HUP included, and then silence until modify() re-arms it; what is there by then is reported."""
        pair = stage.pair()
        token = stage.watch(loop, pair.near, IN | ONESHOT, log.handler("near"))
        pair.send()
        assert loop.turn(0) == 1
        pair.send()
        reset(pair.far, pair.near)
        assert loop.turn(0) == 0
        assert token.live
        loop.modify(token, IN | ONESHOT)
        assert loop.turn(0) == 1
        assert log.of("near")[1] & (IN | HUP) == IN | HUP
        assert loop.turn(0) == 0

    def test_a_late_re_arm_of_a_oneshot(self, loop, stage, log):
        """7. It carries the token of the registration that it belongs to: the fd's new one is not overwritten."""
        event = stage.event()
        old = stage.watch(loop, event, IN | ONESHOT, log.handler("old"))
        event.fire()
        loop.turn(0)
        event.drain()
        loop.unregister(old)
        stage.watch(loop, event, IN, log.handler("new"))
        with pytest.raises(StaleToken):
            loop.modify(old, OUT | ONESHOT)
        event.fire()
        loop.turn(0)
        assert log.names == ["old", "new"]

    def test_modify_reports_what_is_there_already(self, loop, stage, log):
        event = stage.event()
        token = stage.watch(loop, event, IN, log.handler("event"))
        event.fire()
        loop.turn(0)
        loop.modify(token, IN)
        assert loop.turn(0) == 1
        loop.modify(token, PRI)
        assert loop.turn(0) == 0
        loop.modify(token, IN | OUT)
        assert loop.turn(0) == 1
        assert log.of("event") == [IN, IN, IN | OUT]

    def test_modify_from_its_own_handler(self, loop, stage, log):
        """The common pattern: write until EAGAIN, then ask for OUT."""
        pair = stage.pair()
        token = stage.watch(loop, pair.near, IN, log.handler("near", lambda: loop.modify(token, OUT)))
        pair.send()
        assert loop.turn(0) == 1
        assert loop.turn(0) == 1
        assert log.of("near") == [IN, OUT]

    @pytest.mark.parametrize("unix", [False, True])
    def test_a_listening_socket_is_level_triggered(self, loop, stage, log, unix):
        """Nobody accepts: it is reported again in every turn, and still is after modify()."""
        listening = stage.listening() if not unix else stage.own(socket.socket(socket.AF_UNIX))
        if unix:
            listening.bind("")          # abstract, a name by the kernel
            listening.listen()
        token = stage.watch(loop, listening, IN, log.handler("listening"))
        stage.connect(listening)
        assert [loop.turn(0) for _ in range(3)] == [1, 1, 1]
        loop.modify(token, IN)
        assert [loop.turn(0) for _ in range(3)] == [1, 1, 1]
        assert log == [("listening", IN)] * 6

    def test_everything_else_is_edge_triggered(self, loop, stage):
        pair = stage.pair()
        stage.watch(loop, pair.near, IN, print)
        assert set_of(loop)[pair.near.fileno()] == IN | RDHUP | ERR | HUP | (1 << 31)

    def test_exclusive_has_no_rdhup(self, loop, stage):
        """24. The kernel would refuse it."""
        listening = stage.listening()
        stage.watch(loop, listening, IN | EXCLUSIVE, print)
        assert set_of(loop)[listening.fileno()] == IN | EXCLUSIVE | ERR | HUP

    def test_the_flags_are_the_kernel_s(self):
        import select
        for name in ("IN", "OUT", "PRI", "RDHUP", "ERR", "HUP", "ONESHOT", "EXCLUSIVE"):
            assert getattr(epollkit, name) == getattr(select, f"EPOLL{name}")


class TestUnregister:
    def test_no_more_events_and_the_fd_stays_open(self, loop, stage, log):
        event = stage.event()
        token = stage.watch(loop, event, IN, log.handler("event"))
        loop.unregister(token)
        event.fire()
        assert loop.turn(0) == 0
        assert log == []
        assert event.fd not in set_of(loop)
        os.fstat(event.fd)

    def test_events_in_the_batch_at_hand_are_dropped(self, loop, stage, log):
        """A's handler unregisters B, whose event waits behind."""
        a, b = stage.events(2)
        stage.watch(loop, a, IN, log.handler("a", lambda: loop.unregister(token)))
        token = stage.watch(loop, b, IN, log.handler("b"))
        a.fire()
        b.fire()
        assert loop.turn(0) == 1
        assert log.names == ["a"]
        assert loop.stats().stale_closed == 1

    def test_of_itself(self, loop, stage, log):
        event = stage.event()
        token = stage.watch(loop, event, IN, log.handler("event", lambda: loop.unregister(token)))
        event.fire()
        assert loop.turn(0) == 1
        event.fire()
        assert loop.turn(0) == 0

    def test_twice(self, loop, stage):
        token = stage.watch(loop, stage.event(), IN, print)
        loop.unregister(token)
        with pytest.raises(StaleToken, match="that registration is gone"):
            loop.unregister(token)
        with pytest.raises(StaleToken, match="that registration is gone"):
            loop.modify(token, IN)

    def test_after_the_user_closed_the_fd(self, loop, stage):
        """Late, and harmless: the kernel had let go of it."""
        event = stage.event()
        token = loop.register(event, IN, print)
        event.close()
        loop.unregister(token)
        assert not token.live
        assert loop.stats().live == 0

    def test_a_handler_that_raises_is_unregistered(self, loop, stage):
        event = stage.event()
        found = []
        loop.set_exception_handler(lambda error, source: found.append(error))
        token = loop.register(event, IN, lambda *_: 1 // 0)
        event.fire()
        assert loop.turn(0) == 1
        assert not token.live
        assert event.fd not in set_of(loop)
        assert [type(error) for error in found] == [ZeroDivisionError]

    def test_a_handler_that_unregisters_itself_and_raises(self, loop, stage):
        """Reported once; whoever has the slot by then is left alone."""
        event, other = stage.events(2)
        found, successor = [], []
        loop.set_exception_handler(lambda error, source: found.append(error))

        def leave(token, events):
            loop.unregister(token)
            successor.append(stage.watch(loop, other, IN, print))
            raise ValueError

        token = loop.register(event, IN, leave)
        event.fire()
        loop.turn(0)
        assert len(found) == 1
        assert successor[0].index == token.index
        assert successor[0].live

    def test_the_raw_api_never_closes_an_fd(self, stage):
        events = stage.events(3)
        with epollkit.Loop() as loop:
            tokens = [loop.register(event, IN, print) for event in events]
            loop.unregister(tokens[0])
        for event in events:
            os.fstat(event.fd)


class TestBadInput:
    """Each mistake gets one sentence, and changes nothing."""

    @pytest.fixture(autouse=True)
    def nothing_changed(self, loop):
        yield
        assert loop.stats().live == 0
        assert len(set_of(loop)) == 1, "the wake-up alone"

    def test_a_closed_fd(self, loop):
        event = Event()
        fd = event.fd
        event.close()
        with pytest.raises(UsageError, match=f"fd {fd} is closed"):
            loop.register(fd, IN, print)

    def test_a_closed_socket(self, loop):
        closed = socket.socket()
        closed.close()
        with pytest.raises(UsageError, match="fd -1 is closed"):
            loop.register(closed, IN, print)

    @pytest.mark.parametrize("nonsense", ["7", None, 3.5, object(), b"x"])
    def test_what_is_no_fd(self, loop, nonsense):
        with pytest.raises(UsageError, match=r"fileno\(\)"):
            loop.register(nonsense, IN, print)

    def test_a_registered_fd(self, loop, stage, log):
        """The first registration stands; a copy of the descriptor is another fd, and welcome."""
        event = stage.event()
        token = loop.register(event, IN, log.handler("first"))
        with pytest.raises(UsageError, match=f"fd {event.fd} is already registered; modify"):
            loop.register(event, IN, print)
        copy = os.dup(event.fd)
        stage.callback(os.close, copy)
        other = loop.register(copy, IN, log.handler("copy"))
        event.fire()
        assert loop.turn(0) == 2
        assert sorted(log.names) == ["copy", "first"]
        loop.unregister(token)
        loop.unregister(other)

    def test_the_fd_of_a_listener(self, loop, stage):
        listener = stage.listen(loop, print)
        with pytest.raises(UsageError, match="already registered"):
            loop.register(listener, IN, print)
        listener.close()

    @pytest.mark.parametrize("kind", ["regular file", "directory"])
    def test_what_is_not_pollable(self, loop, stage, tmp_path, kind):
        fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stage.callback(os.close, fd)
        if kind == "regular file":
            fd, _ = tempfile.mkstemp(dir=tmp_path)
            stage.callback(os.close, fd)
        with pytest.raises(UsageError, match=rf"fd {fd} can't be polled: .*always ready"):
            loop.register(fd, IN, print)

    def test_the_loop_s_own_fd(self, loop):
        with pytest.raises(UsageError, match="can't be watched by this loop"):
            loop.register(loop, IN, print)

    def test_a_cycle_of_loops(self, loop, stage):
        with epollkit.Loop() as other:
            token = other.register(loop, IN, print)
            with pytest.raises(UsageError, match="can't be watched by this loop"):
                loop.register(other, IN, print)
            other.unregister(token)

    @pytest.mark.parametrize("mask", [0, -1, 1 << 31, 1 << 10, 1 << 40, IN | 1 << 20])
    def test_masks(self, loop, stage, mask):
        event = stage.event()
        with pytest.raises(UsageError, match="is not made of IN, OUT, PRI"):
            loop.register(event, mask, print)
        token = loop.register(event, IN, print)
        with pytest.raises(UsageError, match="is not made of IN, OUT, PRI"):
            loop.modify(token, mask)
        assert token.live
        loop.unregister(token)

    @pytest.mark.parametrize("mask", [None, "IN", 1.0, True])
    def test_what_is_no_mask(self, loop, stage, mask):
        with pytest.raises(UsageError, match="events is a mask like IN"):
            loop.register(stage.event(), mask, print)

    def test_a_handler_that_can_not_be_called(self, loop, stage):
        with pytest.raises(UsageError, match="can't be called"):
            loop.register(stage.event(), IN, None)

    def test_another_thread(self, loop, stage):
        event = stage.event()
        token = loop.register(event, IN, print)
        for use in (lambda: loop.register(stage.event(), IN, print), lambda: loop.modify(token, IN),
                    lambda: loop.unregister(token)):
            with pytest.raises(UsageError, match="belongs to another thread"):
                in_thread(use)
        assert token.live
        loop.unregister(token)

    def test_a_closed_loop(self, stage):
        loop = epollkit.Loop()
        token = loop.register(stage.event(), IN, print)
        loop.close()
        for use in (lambda: loop.register(stage.event(), IN, print), lambda: loop.modify(token, IN),
                    lambda: loop.unregister(token)):
            with pytest.raises(UsageError, match="this loop is closed"):
                use()

    def test_a_file_that_is_closed_behind_the_loop_and_registered_by_nobody(self, loop, stage):
        """modify() is the first to find out."""
        event = stage.event()
        fd = event.fd
        token = loop.register(event, IN, print)
        event.close()
        with pytest.raises(StaleToken, match=f"fd {fd} was closed while it was registered"):
            loop.modify(token, IN)
        assert not token.live


def test_send_and_receive_by_hand(loop, stage):
    """The raw API as one uses it: an echo server for one connection, a bounded read per call, everything drained."""
    pair = stage.pair()
    echoed = bytearray()

    def echo(token, events):
        try:
            while data := pair.near.recv(7):
                pair.near.sendall(data)
            loop.unregister(token)
        except BlockingIOError:
            pass

    token = loop.register(pair.near, IN, echo)
    for part in (b"first ", b"second ", b"third"):
        send(pair.far, pair.near, part)
        loop.turn(0)
    pair.far.shutdown(socket.SHUT_WR)
    wait_ready(pair.near, RDHUP)
    settle(loop)
    assert not token.live
    while len(echoed) < 18:
        wait_ready(pair.far)
        echoed += pair.far.recv(100)
    assert echoed == b"first second third"

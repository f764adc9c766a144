"""6. Copies of our descriptors, through dup() and fork(): the kernel goes on reporting what this process has closed."""
from __future__ import annotations

import os
import select
import signal
import socket

import pytest
from batches import Log, Spy, child, end_child, orphaned, ready_events, report_orphans, send, settle, wait_ready

import epollkit
from epollkit import IN, ONESHOT, OUT

ORPHANS_TO_REBUILD = 64


class TestDup:
    """6. A copy in this process keeps a closed connection's entry in the epoll set."""

    def test_an_event_of_a_closed_connection_reaches_nobody_and_does_not_spin(self, loop, stage):
        client, copy = orphaned(loop, stage)
        send(client, copy)
        before = loop.stats()
        assert [loop.turn(0) for _ in range(3)] == [0, 0, 0]
        after = loop.stats()
        assert after.stale_orphan - before.stale_orphan == 1
        assert after.batches - before.batches == 1

    def test_a_set_that_keeps_reporting_orphans_is_replaced(self, loop, stage):
        client, copy = orphaned(loop, stage)
        report_orphans(loop, client, copy, ORPHANS_TO_REBUILD - 1)
        assert loop.stats().rebuilds == 0
        report_orphans(loop, client, copy, 1)
        assert loop.stats().rebuilds == 1
        before = loop.stats()
        report_orphans(loop, client, copy, 10)
        assert loop.stats().stale_orphan == before.stale_orphan, "the new set knows nothing of it"
        assert loop.stats().batches == before.batches

    def test_whoever_is_alive_is_in_the_new_set(self, loop, stage):
        """A raw fd, an armed one-shot, a stream, a listener, the loop's own wake-up; and its fileno() is the same."""
        log = Log()
        number = loop.fileno()
        raw, armed = stage.events(2)
        stage.watch(loop, raw, IN, log.handler("raw", raw.drain))
        stage.watch(loop, armed, IN | ONESHOT, log.handler("armed"))
        living = stage.stream(loop, Spy(log, "stream"))
        listener = stage.listen(loop, lambda: Spy(log, "accepted"))
        client, copy = orphaned(loop, stage)
        report_orphans(loop, client, copy, ORPHANS_TO_REBUILD)
        assert loop.stats().rebuilds == 1
        assert loop.fileno() == number
        settle(loop)
        log.clear()
        raw.fire()
        armed.fire()
        living.send(b"alive")
        stage.connect(listener)
        poll = select.poll()
        poll.register(loop.fileno(), select.POLLIN)
        assert poll.poll(1000)
        settle(loop)
        assert sorted(set(log.names)) == ["accepted", "armed", "raw", "stream"]
        assert log.of("raw") == [IN]
        assert log.of("armed") == [IN]
        loop.call_soon_threadsafe(log.append, ("woken", None))
        assert loop.turn(0) >= 1
        assert log[-1] == ("woken", None)

    def test_a_disarmed_one_shot_stays_silent_until_it_is_armed_again(self, loop, stage):
        log = Log()
        event = stage.event()
        token = stage.watch(loop, event, IN | ONESHOT, log.handler("one-shot"))
        event.fire()
        settle(loop)
        assert log.of("one-shot") == [IN]
        client, copy = orphaned(loop, stage)
        report_orphans(loop, client, copy, ORPHANS_TO_REBUILD)
        assert loop.stats().rebuilds == 1
        settle(loop)
        assert log.of("one-shot") == [IN], "the rebuild armed it"
        loop.modify(token, IN | ONESHOT)
        settle(loop)
        assert log.of("one-shot") == [IN, IN]

    def test_what_was_closed_behind_our_back_is_not_taken_into_the_new_set(self, loop, stage):
        """Its number is another file by now, that nobody has registered."""
        log = Log()
        event = stage.event()
        token = loop.register(event, IN, log.handler("gone"))
        number = event.fd
        event.close()
        stage.fill_fd_holes(number - 1)
        other = stage.event()
        assert other.fd == number
        client, copy = orphaned(loop, stage)
        report_orphans(loop, client, copy, ORPHANS_TO_REBUILD)
        assert loop.stats().rebuilds == 1
        other.fire()
        settle(loop)
        assert log == []
        assert not token.live
        assert loop.stats().lost == 1

    def test_a_set_is_replaced_at_most_once_a_second(self, loop, stage):
        first, second = orphaned(loop, stage), None
        report_orphans(loop, *first, ORPHANS_TO_REBUILD)
        second = orphaned(loop, stage)
        report_orphans(loop, *second, 2 * ORPHANS_TO_REBUILD)
        assert loop.stats().rebuilds == 1
        assert loop.stats().stale_orphan == 3 * ORPHANS_TO_REBUILD


class TestFork:
    """6. Copies in a child."""

    def test_the_loop_of_the_parent_is_refused_in_the_child(self, loop, stage):
        stream = Spy(Log(), "stream")
        stage.stream(loop, stream)
        token = stream.token

        def body() -> int:
            for use in (loop.turn, loop.fileno, lambda: loop.register(0, IN, print), lambda: loop.call_soon(print)):
                with pytest.raises(epollkit.UsageError, match="belongs to the parent process"):
                    use()
            loop.close()
            return 0 if not token.live and stream.is_closing else 1

        with child(with_hooks=True, body=body) as end:
            assert end() == 0
        assert token.live

    def test_the_child_closes_its_copies_and_the_parent_goes_on(self, loop, stage):
        """No event is lost or repeated by what the child does to its copies, and none of them is left in the child."""
        log = Log()
        raw = stage.event()
        stage.watch(loop, raw, IN, log.handler("raw", raw.drain))
        stream = Spy(log, "stream")
        client = stage.stream(loop, stream)
        ours = [loop.fileno(), stream.fileno()]

        def body() -> int:
            left = 0
            for fd in ours:
                try:
                    os.fstat(fd)
                    left += 1
                except OSError:
                    pass
            return left

        log.clear()
        with child(with_hooks=True, body=body) as end:
            raw.fire()
            send(client, stream)
            settle(loop)
            assert end() == 0
        assert log == [("raw", IN), ("stream", "on_data", b"x")]

    def test_the_peer_sees_our_end_although_a_child_holds_a_copy(self, loop, stage):
        """Once the process has forked, closing is DEL, shutdown, close: a child that skipped the hook hides nothing."""
        client = stage.stream(loop, stream := Spy(Log(), "stream"))
        with child(with_hooks=True):
            pass
        with child(with_hooks=False):
            stream.close()
            settle(loop)
            wait_ready(client, select.POLLIN | select.POLLRDHUP)
            assert client.recv(10) == b""
            before = loop.stats()
            try:
                client.send(b"to the child's copy")
            except OSError:
                pass
            settle(loop)
            assert loop.stats().stale_orphan == before.stale_orphan, "it was taken out of the set"

    def test_a_child_that_nobody_knows_of_costs_orphans_and_nothing_else(self, loop, stage):
        """The control: without a fork that we know of, the copy in the child hides our FIN, and keeps the entry."""
        stream = Spy(Log(), "stream")
        client = stage.stream(loop, stream)
        with child(with_hooks=False):
            stream.close()
            settle(loop)
            assert not ready_events(client) & select.POLLRDHUP
            client.send(b"x")
            for _ in range(100):
                if loop.turn(0.01) or loop.stats().stale_orphan:
                    break
            assert loop.stats().stale_orphan == 1
        wait_ready(client, select.POLLIN)       # the child's end is the connection's end

    def test_a_handler_that_forks(self, loop, stage):
        """The child is told as soon as it comes back into the loop, whether by turn() or run()."""
        event, done = stage.event(), Log()
        pids: list[int] = []

        def fork(token: object, events: int) -> None:
            event.drain()
            pids.append(os.fork())

        stage.watch(loop, event, IN, fork)
        stage.watch(loop, other := stage.event(), IN, done.handler("other", lambda: None))
        for enter in (lambda: loop.turn(0), loop.run):
            pids.clear()
            done.clear()
            other.drain()
            event.fire()
            other.fire()
            if enter == loop.run:
                loop.call_later(0, lambda: loop.call_soon(loop.stop))
            try:
                enter()
            except epollkit.UsageError as error:
                if pids == [0]:
                    end_child(0 if "parent process" in str(error) and not done else 2)
                raise
            finally:
                if pids == [0]:
                    end_child(3)
            assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
            assert done.names == ["other"], "the parent lost the rest of its batch"

    def test_a_child_is_not_deaf_to_signals(self, loop):
        """Handlers of the parent's loop are put back in the child, or a loop that never runs would note SIGTERM."""
        before = signal.getsignal(signal.SIGTERM)
        loop.add_signal_handler(signal.SIGTERM, print)
        with child(with_hooks=True, body=lambda: int(signal.getsignal(signal.SIGTERM) != before)) as end:
            assert end() == 0
        assert signal.getsignal(signal.SIGTERM) != before
        loop.remove_signal_handler(signal.SIGTERM)

    def test_a_child_can_make_a_loop_of_its_own(self, loop):
        def body() -> int:
            seen: list[int] = []
            with epollkit.Loop() as own, socket.socketpair()[0] as end:
                end.setblocking(False)
                token = own.register(end, OUT, lambda token, events: seen.append(events))
                own.turn(0)
                own.unregister(token)
            return 0 if len(seen) == 1 else 1

        with child(with_hooks=True, body=body) as end:
            assert end() == 0

    def test_the_unix_file_of_a_listener_survives_the_child(self, loop, stage, tmp_path):
        path = str(tmp_path / "socket")
        stage.listen(loop, lambda: Spy(Log(), "stream"), path)
        with child(with_hooks=True, body=lambda: (loop.close(), 0)[1]) as end:
            assert end() == 0
        assert os.path.exists(path)

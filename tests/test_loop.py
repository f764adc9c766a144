"""The loop itself: what a turn does and in which order, run and stop, signals, misuse, and what it leaves behind."""
from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import os
import select
import signal
import socket
import threading
import weakref
from pathlib import Path

import pytest
from batches import (
    LOCAL,
    PATIENCE_SECONDS,
    Log,
    Spy,
    in_child,
    in_thread,
    kept_signal_handler,
    send,
    settle,
    turn_until,
)

import epollkit
from epollkit import IN, UsageError


class TestTurn:
    def test_the_order_of_its_phases(self, loop, stage, log):
        """Inbox, posted calls, timers, ready list, events; on_close at the end."""
        stream = Spy(log, "ready list", on_data=Spy.abort)
        client = stage.stream(loop, stream)
        event = stage.event()
        stage.watch(loop, event, IN, log.handler("event"))
        stream.write(b"leaves through the ready list")
        log.clear()
        event.fire()
        send(client, stream)
        loop.call_later(0, log.call("timer"))
        loop.call_soon(log.call("posted"))
        loop.call_soon_threadsafe(log.call("inbox"))
        loop.call_later(0, lambda: log.append(("before the write", select.select([client], [], [], 0)[0])))
        assert loop.turn(0) == 7
        assert log == [("inbox", ()), ("posted", ()), ("timer", ()), ("before the write", []), ("event", IN),
                       ("ready list", "on_data", b"x"), ("ready list", "on_close", None)]
        assert client.recv(100) == b"leaves through the ready list"

    def test_what_it_returns(self, loop, stage):
        """The upcalls made: of every phase, but neither stale events nor the loop's own wake-ups."""
        events = stage.events(3)
        tokens = [stage.watch(loop, event, IN, print) for event in events[1:]]
        stage.watch(loop, events[0], IN, lambda *_: loop.unregister(tokens[0]) or loop.unregister(tokens[1]))
        assert loop.turn(0) == 0
        events[0].fire()
        events[1].fire()
        events[2].fire()
        loop.call_soon_threadsafe(int)
        loop.call_soon(int)
        loop.call_later(0, int)
        before = loop.stats()
        assert loop.turn(0) == 4
        after = loop.stats()
        assert after.events - before.events == 4
        assert after.upcalls - before.upcalls == 4
        assert after.stale_closed == 2

    def test_0_polls(self, loop, stage):
        before = loop.time()
        assert loop.turn(0) == 0
        assert loop.turn(0.0) == 0
        assert loop.time() - before < 10

    def test_a_timeout_is_kept(self, loop):
        before = loop.time()
        assert loop.turn(0.003) == 0
        assert loop.time() - before >= 0.003

    def test_none_waits_for_an_event(self, loop, stage, log):
        """Which another thread brings about."""
        event = stage.event()
        stage.watch(loop, event, IN, log.handler("event"))
        threads = [threading.Thread(target=event.fire)]
        loop.call_soon(threads[0].start)
        turn_until(loop, lambda: log)
        threads[0].join()
        assert log == [("event", IN)]

    @pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), "1", True, 1j])
    def test_bad_timeouts(self, loop, timeout):
        with pytest.raises(UsageError, match="timeout is None or a number of seconds, 0 or more, not"):
            loop.turn(timeout)

    @pytest.mark.parametrize("timeout", [float("inf"), 1e300, 10**400, 1e9])
    def test_timeouts_that_are_as_good_as_none(self, loop, timeout):
        loop.call_later(0.001, int)
        assert loop.turn(timeout) + loop.turn(timeout) == 1

    def test_a_batch_is_bounded(self, stage, log):
        """Loop(batch=2): five ready fds take three batches."""
        with epollkit.Loop(batch=2) as loop:
            for number, event in enumerate(stage.events(5)):
                loop.register(event, IN, log.handler(str(number)))
                event.fire()
            assert [loop.turn(0) for _ in range(4)] == [2, 2, 1, 0]
        assert log.names == ["0", "1", "2", "3", "4"]

    def test_a_handler_s_new_registration_waits_for_the_next_batch(self, loop, stage, log):
        """Though its fd is ready already."""
        first, second = stage.events(2)
        second.fire()
        stage.watch(loop, first, IN, log.handler("first", lambda: stage.watch(loop, second, IN, log.handler("second"))))
        first.fire()
        assert loop.turn(0) == 1
        assert loop.turn(0) == 1
        assert log.names == ["first", "second"]

    def test_other_threads_run_while_it_never_blocks(self, loop, stage):
        """A loop that always has something to do, and whose handlers are not Python code, gives up the GIL all the
        same, every few milliseconds."""
        again = functools.partial(loop.call_soon)
        again.__setstate__((loop.call_soon, (again,), {}, {}))      # posts itself, and no Python code runs in between
        read, write = os.pipe()
        stage.callback(os.close, read)
        stage.callback(os.close, write)

        def wait_and_stop():
            for _ in range(5):
                os.read(read, 1)        # needs the GIL again, each time
            loop.call_soon_threadsafe(loop.stop)

        thread = threading.Thread(target=wait_and_stop)
        thread.start()
        loop.call_soon(os.write, write, b"12345")
        again()
        loop.run()
        thread.join()
        again.__setstate__((int, (), {}, {}))
        settle(loop)


class TestNesting:
    @pytest.mark.parametrize("where", ["event", "posted", "timer", "thread", "on_open", "on_data", "on_close"])
    def test_from_inside_a_turn(self, loop, stage, log, where):
        """turn(), run() and close() say that they can't; the turn goes on."""
        refused = []

        def misuse(*_):
            for call in (lambda: loop.turn(0), loop.run, loop.close):
                try:
                    call()
                except UsageError as error:
                    refused.append(str(error))

        if where == "event":
            event = stage.event()
            stage.watch(loop, event, IN, misuse)
            event.fire()
        elif where == "posted":
            loop.call_soon(misuse)
        elif where == "timer":
            loop.call_later(0, misuse)
        elif where == "thread":
            loop.call_soon_threadsafe(misuse)
        else:
            then = {where: misuse}
            stream = Spy(log, "stream", **(then if where != "on_close" else then | {"on_data": Spy.abort}))
            send(stage.stream(loop, stream), stream)
        loop.call_soon(loop.call_soon, log.call("next turn"))
        loop.turn(0)
        settle(loop)
        assert len(refused) == 3
        assert all("from inside" in sentence for sentence in refused[:2])
        assert "close() can't be called from inside a turn" in refused[2]
        assert "next turn" in log.names

    def test_one_loop_inside_another_s_turn(self, loop, stage, log):
        """That is allowed: they are two."""
        with epollkit.Loop() as inner:
            inner.call_soon(log.call("inner"))
            loop.call_soon(lambda: log.append(("outer", inner.turn(0))))
            loop.turn(0)
        assert log == [("inner", ()), ("outer", 1)]

    def test_a_turn_after_one_that_raised(self, loop, log):
        """An exception that leaves turn() does not leave it locked."""
        def leave():
            raise KeyboardInterrupt

        for enter in (lambda: loop.turn(0), loop.run):
            loop.call_soon(leave)
            with pytest.raises(KeyboardInterrupt):
                enter()
        loop.call_soon(log.call("goes on"))
        loop.turn(0)
        assert log.names == ["goes on"]


class TestThreads:
    def test_every_method_refuses_another_thread(self, loop, stage):
        """Each says whose it is; call_soon_threadsafe is the exception."""
        calls = [lambda: loop.turn(0), loop.run, loop.stop, loop.close, loop.fileno, lambda: loop.call_soon(print),
                 lambda: loop.listen(LOCAL, print), lambda: loop.register(0, IN, print),
                 lambda: loop.set_exception_handler(None), lambda: loop.add_signal_handler(signal.SIGUSR1, print)]
        before = signal.getsignal(signal.SIGUSR1)
        for call in calls:
            with pytest.raises(UsageError, match="this loop belongs to another thread"):
                in_thread(call)
        assert signal.getsignal(signal.SIGUSR1) is before
        in_thread(lambda: loop.call_soon_threadsafe(loop.stop))
        loop.run()

    def test_streams_and_listeners_refuse_another_thread(self, loop, stage, log):
        stream = Spy(log, "stream")
        stage.stream(loop, stream)
        listener = stage.listen(loop, print)
        for call in (listener.close, stream.close, stream.abort, lambda: stream.write(b"x"),
                     lambda: stream.call_soon(print), lambda: stream.call_later(1, print)):
            with pytest.raises(UsageError, match="this loop belongs to another thread"):
                in_thread(call)
        assert not stream.is_closing

    def test_a_loop_of_another_thread(self, log):
        """Not only the main thread may have one; each runs in its own."""
        def serve():
            with epollkit.Loop() as loop:
                loop.call_soon(log.call("ran"))
                loop.call_soon(loop.stop)
                loop.run()
                return loop.stats().live

        assert in_thread(serve) == 0
        assert log.names == ["ran"]


class TestRunAndStop:
    def test_stop_ends_run_after_this_turn(self, loop, stage, log):
        """What is behind it in the batch is still delivered."""
        first, second = stage.events(2)
        stage.watch(loop, first, IN, log.handler("first", loop.stop))
        stage.watch(loop, second, IN, log.handler("second"))
        first.fire()
        second.fire()
        loop.run()
        assert log.names == ["first", "second"]

    def test_stop_from_a_timer_or_a_posted_call_does_not_wait(self, loop):
        loop.call_later(0.001, loop.stop)
        loop.run()
        loop.call_soon(loop.stop)
        loop.run()

    def test_stop_from_an_on_close_that_close_calls(self, stage, log):
        with epollkit.Loop() as closing:
            stage.stream(closing, Spy(log, "stream", on_close=lambda stream: closing.stop()))
            closing.close()
            closing.stop()
        assert log[-1] == ("stream", "on_close", None)

    def test_stop_before_run(self, loop, log):
        """run() makes no turn; the next run() does."""
        loop.stop()
        loop.call_soon(log.call("posted", loop.stop))
        loop.run()
        assert log == []
        loop.run()
        assert log.names == ["posted"]

    def test_run_can_be_called_again(self, loop, log):
        for _ in range(3):
            loop.call_soon(log.call("posted", loop.stop))
            loop.run()
        assert log.names == ["posted"] * 3

    def test_run_leaves_by_an_exception_and_runs_again(self, loop, log):
        def leave():
            raise SystemExit(3)

        loop.call_soon(leave)
        with pytest.raises(SystemExit):
            loop.run()
        loop.call_soon(log.call("posted", loop.stop))
        loop.run()
        assert log.names == ["posted"]


class TestSignals:
    @pytest.fixture(autouse=True)
    def handlers_are_put_back(self):
        before = {signum: signal.getsignal(signum) for signum in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)}
        yield
        assert {signum: signal.getsignal(signum) for signum in before} == before
        assert signal.set_wakeup_fd(-1) == -1

    def test_a_handler_runs_in_the_loop(self, loop, log):
        """With its arguments, as a posted call: never in the middle of another handler."""
        def raise_it():
            signal.raise_signal(signal.SIGUSR1)
            log.append(("the one who raised it is through", ()))

        loop.add_signal_handler(signal.SIGUSR1, lambda *arguments: log.append(("signal", arguments)), 1, "two")
        loop.call_soon(raise_it)
        loop.call_soon(loop.call_soon, loop.call_soon, loop.stop)
        loop.run()
        assert log == [("the one who raised it is through", ()), ("signal", (1, "two"))]
        loop.remove_signal_handler(signal.SIGUSR1)

    def test_it_wakes_run(self, loop, log):
        """The loop waits for nothing else."""
        loop.add_signal_handler(signal.SIGUSR1, log.call("signal", loop.stop))
        main_thread = threading.get_ident()
        threads = [threading.Thread(target=signal.pthread_kill, args=(main_thread, signal.SIGUSR1))]
        loop.call_soon(threads[0].start)
        loop.run()
        threads[0].join()
        assert log.names == ["signal"]
        loop.remove_signal_handler(signal.SIGUSR1)

    def test_it_wakes_run_when_another_thread_took_the_signal(self, loop, log):
        """The kernel may deliver a signal to any thread: then no call of the main thread is interrupted, and only the
        wake-up fd tells the loop."""
        task = Path(f"/proc/self/task/{threading.get_native_id()}/syscall")

        def blocked():
            """Whether the main thread is in epoll_pwait2, as far as this system tells."""
            try:
                return task.read_text().split()[0] == "441"
            except OSError:
                return True

        def take_signal():
            for _ in range(20_000):
                if blocked():
                    break
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

        loop.add_signal_handler(signal.SIGUSR1, log.call("signal", loop.stop))
        thread = threading.Thread(target=take_signal)
        loop.call_soon(thread.start)
        fallback = loop.call_later(PATIENCE_SECONDS, log.call("nothing woke it", loop.stop))
        loop.run()
        thread.join()
        fallback.cancel()
        assert log.names == ["signal"]
        loop.remove_signal_handler(signal.SIGUSR1)

    def test_it_works_with_turn_too(self, loop, log):
        loop.add_signal_handler(signal.SIGUSR1, log.call("signal"))
        signal.raise_signal(signal.SIGUSR1)
        turn_until(loop, lambda: log)
        assert loop.remove_signal_handler(signal.SIGUSR1)

    def test_a_plain_python_handler_runs_too(self, loop, log):
        """One that was installed with signal.signal: run() wakes for it."""
        with kept_signal_handler(signal.SIGUSR2, lambda *_: loop.stop()):
            loop.call_soon(signal.raise_signal, signal.SIGUSR2)
            loop.run()

    def test_remove_puts_back_what_was_there(self, loop):
        """Also after the handler was replaced by a second add."""
        def former(signum, frame):
            pass

        with kept_signal_handler(signal.SIGUSR1, former):
            loop.add_signal_handler(signal.SIGUSR1, print)
            loop.add_signal_handler(signal.SIGUSR1, repr)
            assert loop.remove_signal_handler(signal.SIGUSR1)
            assert signal.getsignal(signal.SIGUSR1) is former
            assert not loop.remove_signal_handler(signal.SIGUSR1)

    def test_the_second_add_replaces_the_first(self, loop, log):
        loop.add_signal_handler(signal.SIGUSR1, log.call("first"))
        loop.add_signal_handler(signal.SIGUSR1, log.call("second"))
        signal.raise_signal(signal.SIGUSR1)
        settle(loop)
        assert log.names == ["second"]
        loop.remove_signal_handler(signal.SIGUSR1)

    def test_close_puts_back_what_was_there(self):
        def former(signum, frame):
            pass

        with kept_signal_handler(signal.SIGTERM, former), epollkit.Loop() as loop:
            loop.add_signal_handler(signal.SIGTERM, print)
            loop.close()
            assert signal.getsignal(signal.SIGTERM) is former

    def test_a_signal_after_close_is_harmless(self):
        """It was on its way when the loop was closed; afterwards the former handler has it."""
        found = []
        with kept_signal_handler(signal.SIGUSR1, lambda *_: found.append("former")):
            with epollkit.Loop() as loop:
                loop.add_signal_handler(signal.SIGUSR1, found.append, "loop")
            signal.raise_signal(signal.SIGUSR1)
        assert found == ["former"]

    def test_the_former_wake_up_fd_is_put_back(self, loop, stage):
        """Somebody else had called signal.set_wakeup_fd."""
        ends = socket.socketpair()
        for end in ends:
            end.setblocking(False)
            stage.own(end)
        signal.set_wakeup_fd(ends[0].fileno())
        try:
            loop.call_soon(loop.stop)
            loop.run()
            assert signal.set_wakeup_fd(-1) == ends[0].fileno()
        finally:
            signal.set_wakeup_fd(-1)

    def test_a_storm_of_signals(self, loop, log):
        """25. A signal a millisecond, in the middle of a timer's wait: the timer is not early, no signal is lost, and a
        turn is made for a reason: a signal, the call that it posts, or the timer."""
        sent, handled, done = [], [], threading.Event()
        main_thread = threading.get_ident()

        def storm():
            while not done.wait(0.001):
                sent.append(1)
                signal.pthread_kill(main_thread, signal.SIGUSR1)

        loop.add_signal_handler(signal.SIGUSR1, handled.append, 1)
        thread = threading.Thread(target=storm)
        thread.start()
        due = loop.time() + 0.03
        loop.call_later(0.03, lambda: log.append(("timer", loop.time() >= due)))
        turns = turn_until(loop, lambda: log)
        done.set()
        thread.join()
        settle(loop)
        assert log == [("timer", True)]
        assert 1 <= len(handled) <= len(sent)       # one signal may stand for several (signal(7), standard signals)
        assert turns <= 3 * len(sent) + 5
        loop.remove_signal_handler(signal.SIGUSR1)

    @pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP, 0, -1, 9999, "SIGINT", None])
    def test_what_can_not_be_handled(self, loop, signum):
        with pytest.raises(UsageError, match="can't be handled"):
            loop.add_signal_handler(signum, print)
        assert not loop.remove_signal_handler(signum)

    def test_what_can_not_be_called(self, loop):
        with pytest.raises(UsageError, match="can't be called"):
            loop.add_signal_handler(signal.SIGUSR1, None)

    def test_only_in_the_main_thread(self):
        """A loop of another thread has no signals (signal.signal's own rule), but runs."""
        def other():
            with epollkit.Loop() as loop, pytest.raises(UsageError, match="belong to the main thread"):
                loop.add_signal_handler(signal.SIGUSR1, print)

        in_thread(other)

    def test_remove_from_another_thread_changes_nothing(self, loop):
        loop.add_signal_handler(signal.SIGUSR1, print)
        with pytest.raises(UsageError, match=r"(another|main) thread"):
            in_thread(lambda: loop.remove_signal_handler(signal.SIGUSR1))
        assert loop.remove_signal_handler(signal.SIGUSR1)


class TestCloseAndAfter:
    def test_every_method_of_a_closed_loop(self, stage):
        loop = epollkit.Loop()
        loop.close()
        loop.close()
        for call in (lambda: loop.turn(0), loop.run, loop.fileno, lambda: loop.call_soon(print),
                     lambda: loop.call_later(1, print), lambda: loop.listen(LOCAL, print),
                     lambda: loop.register(0, IN, print), lambda: loop.set_exception_handler(None),
                     lambda: loop.add_signal_handler(signal.SIGUSR1, print),
                     lambda: loop.call_soon_threadsafe(print)):
            with pytest.raises(UsageError, match="this loop is closed"):
                call()
        assert loop.stats().live == 0

    def test_close_tells_every_stream(self, loop, stage, log):
        """Once each; upcalls that want more of the loop are told that it is closed."""
        failures = []
        with epollkit.Loop() as other:
            other.set_exception_handler(lambda error, source: failures.append(error))
            streams = [Spy(log, "polite"), Spy(log, "greedy", on_close=lambda stream: other.call_soon(print))]
            for stream in streams:
                stage.stream(other, stream)
            log.clear()
        assert sorted(log) == [("greedy", "on_close", None), ("polite", "on_close", None)]
        assert [str(failure) for failure in failures] == ["this loop is closed"]

    def test_close_by_the_context_manager(self, stage):
        with epollkit.Loop() as loop:
            fd = loop.fileno()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

    def test_close_inside_the_context(self):
        with epollkit.Loop() as loop:
            loop.close()

    def test_an_exception_goes_through_the_context(self):
        with pytest.raises(ZeroDivisionError), epollkit.Loop() as loop:
            loop.turn(1 // 0)

    def test_ctrl_c_in_an_on_close(self, stage, log):
        """It leaves close(), and the loop is closed all the same."""
        def leave(stream):
            raise KeyboardInterrupt

        loop = epollkit.Loop()
        stage.stream(loop, Spy(log, "stream", on_close=leave))
        with pytest.raises(KeyboardInterrupt):
            loop.close()
        with pytest.raises(UsageError, match="this loop is closed"):
            loop.turn(0)

    def test_an_unclosed_loop_that_ran(self):
        """Its signal pair goes with it."""
        before = len(os.listdir("/proc/self/fd"))
        loop = epollkit.Loop()
        loop.call_soon(loop.stop)
        loop.run()
        gone = weakref.ref(loop)
        with pytest.warns(ResourceWarning):
            del loop
            gc.collect()
        assert gone() is None
        assert len(os.listdir("/proc/self/fd")) == before

    def test_repr(self, stage):
        loop = epollkit.Loop()
        loop.register(stage.event(), IN, print)
        assert repr(loop) == "<Loop 1 live>"
        loop.close()
        assert repr(loop) == "<Loop closed>"


class TestMaking:
    @pytest.mark.parametrize(("name", "value"), [
        ("instance_bits", 0), ("instance_bits", 33), ("instance_bits", -1), ("instance_bits", 1.0),
        ("instance_bits", True), ("instance_bits", None), ("max_connections", 0), ("max_connections", -5),
        ("max_connections", 2**40), ("max_connections", "many"), ("batch", 0), ("batch", 65537), ("batch", None)])
    def test_bad_arguments(self, name, value):
        """One sentence with the bounds, and nothing is left behind."""
        with pytest.raises(UsageError, match=rf"{name} is a whole number from 1 to \d+, not {value!r}"):
            epollkit.Loop(**{name: value})

    @pytest.mark.parametrize("bits", [1, 2, 31, 32])
    def test_instance_bits(self, bits):
        with epollkit.Loop(instance_bits=bits) as loop:
            assert loop.instance_bits == bits

    def test_attributes(self):
        with epollkit.Loop(max_connections=7, instance_bits=3, batch=9) as loop:
            assert (loop.max_connections, loop.instance_bits) == (7, 3)
            with pytest.raises(AttributeError):
                loop.instance_bits = 1

    def test_unknown_arguments(self):
        with pytest.raises(TypeError):
            epollkit.Loop(connections=3)

    def test_initialising_twice(self, loop):
        with pytest.raises(UsageError, match="initialised already"):
            loop.__init__()

    def test_a_subclass_that_forgets_to_initialise(self):
        """It is a closed loop, and says so."""
        class Forgetful(epollkit.Loop):
            def __init__(self):
                pass

        with pytest.raises(UsageError, match="this loop is closed"):
            Forgetful().turn(0)

    def test_without_descriptors(self):
        """EMFILE, for the epoll fd and for the eventfd: an OSError with its errno, and nothing is left open."""
        out = in_child("""
import errno, os, resource, epollkit
taken = len(os.listdir("/proc/self/fd")) - 1
for free in (0, 1):
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + free, 64))
    try:
        epollkit.Loop()
    except OSError as error:
        print(error.errno == errno.EMFILE, "Too many open files" in str(error))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
print(len(os.listdir("/proc/self/fd")) - 1 - taken)
""", close_fds=True)
        assert out.split() == ["True", "True", "True", "True", "0"]


class TestDescriptors:
    def test_fileno_can_be_polled(self, loop, stage, log):
        """It is readable when a turn would find an event."""
        poll = select.poll()
        poll.register(loop.fileno(), select.POLLIN)
        event = stage.event()
        stage.watch(loop, event, IN, log.handler("event"))
        assert poll.poll(0) == []
        event.fire()
        assert poll.poll(0) == [(loop.fileno(), select.POLLIN)]
        loop.turn(0)
        assert poll.poll(0) == []
        in_thread(lambda: loop.call_soon_threadsafe(int))
        assert poll.poll(0)
        settle(loop)

    def test_all_are_close_on_exec(self, stage, tmp_path):
        """Every descriptor that the loop opened: epoll, wake-up, signal pair, listeners, accepted connections."""
        def numbers():
            found = set()
            for fd in map(int, os.listdir("/proc/self/fd")):
                with contextlib.suppress(OSError):      # the listing's own
                    fcntl.fcntl(fd, fcntl.F_GETFD)
                    found.add(fd)
            return found

        before = numbers()
        with epollkit.Loop() as loop:
            loop.call_soon(loop.stop)
            loop.run()
            listeners = [loop.listen(LOCAL, epollkit.Stream), loop.listen(str(tmp_path / "socket"), epollkit.Stream)]
            for listener in listeners:
                stage.connect(listener)
            settle(loop)
            assert loop.stats().live == 4
            opened = numbers() - before
            assert len(opened) == 2 + 2 + 2 + 2 + 2     # clients included
            for fd in opened:
                assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC, os.readlink(f"/proc/self/fd/{fd}")

    def test_owned_fds_are_owning_slots_and_a_few(self, stage, log):
        """Promise 6: epoll, eventfd and the signal pair, and one per connection or listener; all of it comes back."""
        def count():
            return len(os.listdir("/proc/self/fd"))

        baseline = count()
        loop = epollkit.Loop()
        assert count() == baseline + 2
        loop.call_soon(loop.stop)
        loop.run()
        assert count() == baseline + 4
        streams = [Spy(log, str(number)) for number in range(5)]
        clients = [stage.stream(loop, stream) for stream in streams]
        assert count() == baseline + 4 + 2 * len(clients)
        for stream in streams[:3]:
            stream.abort()
        settle(loop)
        assert count() == baseline + 4 + 2 * len(clients) - 3
        assert loop.stats().live == 2
        loop.close()
        assert count() == baseline + len(clients)


class TestStats:
    def test_its_fields(self, loop):
        stats = loop.stats()
        assert isinstance(stats, epollkit.LoopStats)
        assert {"events", "batches", "stale_closed", "stale_recycled", "stale_orphan", "accepted", "closed",
                "live", "timers", "lost", "retired", "upcalls", "wrong_deliveries", "wrong_kills"} <= set(stats._fields)
        assert set(stats) == {0}

    def test_what_they_count(self, loop, stage, log):
        stream = Spy(log, "stream")
        client = stage.stream(loop, stream)
        before = loop.stats()
        assert (before.accepted, before.closed, before.live) == (1, 1, 1)       # closed: the listener
        timer = loop.call_later(3600, print)
        send(client, stream)
        loop.turn(0)
        after = loop.stats()
        assert (after.batches, after.events) == (before.batches + 1, before.events + 1)
        assert (after.upcalls, after.timers) == (before.upcalls + 1, 1)
        timer.cancel()
        stream.abort()
        assert (loop.stats().closed, loop.stats().live, loop.stats().timers) == (2, 0, 0)

    def test_a_closed_loop_still_has_them(self):
        loop = epollkit.Loop()
        loop.call_soon(int)
        loop.turn(0)
        loop.close()
        assert loop.stats().upcalls == 1
        assert loop.stats().live == 0


class TestExceptionHandler:
    def test_it_must_be_callable(self, loop):
        with pytest.raises(UsageError, match="an exception handler is called as"):
            loop.set_exception_handler("nonsense")

    def test_it_is_told_the_source(self, loop, stage):
        """The function, the raw handler, the stream."""
        found = []
        loop.set_exception_handler(lambda error, source: found.append((type(error), source)))

        def fail(*_):
            raise ValueError

        event = stage.event()
        loop.register(event, IN, fail)
        event.fire()
        stream = Spy(Log(), "stream", on_data=fail)
        client = stage.stream(loop, stream)
        send(client, stream)
        loop.call_soon(fail)
        settle(loop)
        assert found == [(ValueError, fail), (ValueError, fail), (ValueError, stream)]


def test_build_info():
    assert epollkit.build_info() in ({"build": "release"}, {"build": "debug"})

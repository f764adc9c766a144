"""Timers and posted calls: their order, and never early. Nothing here sleeps: the clock is the loop's own."""
from __future__ import annotations

import gc
import random
import threading
import time
from pathlib import Path

import pytest
from batches import PATIENCE_SECONDS, Log, Spy, in_child, in_thread, settle, turn_until
from hypothesis import given, settings
from hypothesis import strategies as st

import epollkit
from epollkit import IN, UsageError


class TestOrder:
    def test_earliest_first(self, loop):
        """Armed in any order, they fire in that of their deadlines."""
        log = Log()
        now = loop.time()
        for offset in (3, 1, 4, 0, 2):
            loop.call_at(now - 10 + offset, log.call(str(offset)))
        loop.turn(0)
        assert log.names == ["0", "1", "2", "3", "4"]

    def test_ties_in_the_order_of_arming(self, loop):
        """A hundred timers of one deadline, between others."""
        log = Log()
        when = loop.time() - 1
        for number in range(100):
            loop.call_at(when, log.call(str(number)))
            loop.call_at(when - 0.5, log.call("earlier"))
        loop.turn(0)
        assert log.names == ["earlier"] * 100 + [str(number) for number in range(100)]

    def test_thousands_that_are_due(self, loop):
        """20,000 different deadlines, drawn with a seed: exact order, each once."""
        draw = random.Random(20_000)
        past = loop.time() - 1000
        deadlines = [past + draw.random() for _ in range(20_000)]
        fired = []
        for when in deadlines:
            loop.call_at(when, fired.append, when)
        settle(loop)
        assert fired == sorted(deadlines)
        assert loop.stats().timers == 0

    def test_thousands_of_which_many_are_cancelled(self, loop):
        """Each removal moves others in the heap, up or down; what is left keeps its order. Ten times 300."""
        draw = random.Random(300)
        for _ in range(10):
            fired = []
            past = loop.time() - 1000
            armed = []
            for _ in range(300):
                when = past + draw.random()
                armed.append((when, loop.call_at(when, fired.append, when)))
            for place in draw.sample(range(300), 200):
                armed[place][1].cancel()
            settle(loop)
            assert len(fired) == 100
            assert fired == sorted(fired)

    def test_thousands_as_time_goes_by(self, loop):
        """20,000 timers on 100 deadlines, a quarter of a millisecond apart: in order, ties in that of arming, and none
        before its time."""
        count, distinct = 20_000, 100
        draw = random.Random(20_000)
        start = loop.time() + 0.01
        armed, fired, early = [], [], []

        def fire(when, number):
            fired.append((when, number))
            if loop.time() < when:
                early.append(when)

        for number in range(count):
            when = start + draw.randrange(distinct) * 0.00025
            armed.append((when, number))
            loop.call_at(when, fire, when, number)
        assert loop.stats().timers == count
        turns = turn_until(loop, lambda: len(fired) == count)
        assert fired == sorted(armed)
        assert early == []
        assert turns < 3 * distinct
        assert loop.stats().timers == 0

    def test_arguments_are_passed_on(self, loop):
        log = []
        loop.call_later(0, lambda *arguments: log.append(arguments), 1, "two", None)
        loop.call_at(0, lambda *arguments: log.append(arguments))
        loop.call_soon(lambda *arguments: log.append(arguments), [3])
        loop.turn(0)
        assert log == [([3],), (), (1, "two", None)]

    def test_they_are_counted(self, loop):
        """turn() returns the calls it made, and waits for nothing when there were any."""
        for _ in range(3):
            loop.call_later(0, int)
        before = loop.stats()
        assert loop.turn() == 3
        assert loop.stats().upcalls == before.upcalls + 3
        assert loop.stats().batches == before.batches


class TestCancelAndReset:
    def test_cancel(self, loop):
        log = Log()
        timers = [loop.call_later(0, log.call(str(number))) for number in range(5)]
        timers[1].cancel()
        timers[3].cancel()
        timers[3].cancel()
        assert [timer.active for timer in timers] == [True, False, True, False, True]
        assert loop.stats().timers == 3
        loop.turn(0)
        assert log.names == ["0", "2", "4"]
        assert not any(timer.active for timer in timers)
        timers[0].cancel()

    def test_cancel_one_that_is_due_in_the_same_turn(self, loop):
        """From the callback of a timer that fires before it."""
        log = Log()
        loop.call_later(0, log.call("first", lambda: victim.cancel()))
        victim = loop.call_later(0, log.call("victim"))
        loop.call_later(0, log.call("last"))
        assert loop.turn(0) == 2
        assert log.names == ["first", "last"]

    def test_cancel_itself_while_it_runs(self, loop):
        """It is done already, and knows."""
        log = Log()
        timer = loop.call_later(0, log.call("timer", lambda: log.append(("active", timer.active)) or timer.cancel()))
        loop.turn(0)
        assert log == [("timer", ()), ("active", False)]

    def test_reset_forward_and_backward(self, loop):
        """A later deadline puts it behind the others, an earlier one before them, and an equal one last among
        equals."""
        log = Log()
        late = loop.call_later(0, log.call("put off"))
        soon = loop.call_later(3600, log.call("brought forward"))
        other = loop.call_later(0, log.call("other"))
        late.reset(3600)
        soon.reset(0)
        loop.turn(0)
        assert log.names == ["other", "brought forward"]
        assert (late.active, soon.active, other.active) == (True, False, False)
        late.reset(0)
        loop.turn(0)
        assert log.names[-1] == "put off"

    def test_reset_is_counted_from_now(self, loop):
        log = []
        timer = loop.call_later(3600, lambda: log.append(loop.time()))
        before = loop.time()
        timer.reset(0.005)
        turn_until(loop, lambda: log)
        assert log[0] >= before + 0.005
        assert log[0] < before + PATIENCE_SECONDS

    def test_reset_of_one_that_is_done(self, loop):
        ran, cancelled = loop.call_later(0, int), loop.call_later(0, int)
        cancelled.cancel()
        loop.turn(0)
        for timer in (ran, cancelled):
            with pytest.raises(UsageError, match="has run or was cancelled"):
                timer.reset(1)

    def test_reset_of_a_posted_call(self, loop):
        posted = loop.call_soon(int)
        with pytest.raises(UsageError, match="call_soon"):
            posted.reset(1)
        posted.cancel()
        assert loop.turn(0) == 0

    def test_reset_to_nonsense_changes_nothing(self, loop):
        log = Log()
        timer = loop.call_later(0, log.call("timer"))
        with pytest.raises(UsageError):
            timer.reset(-1)
        loop.turn(0)
        assert log.names == ["timer"]


class TestAMillion:
    COUNT = 1_000_000
    BUDGET = 4096           # TIMER_BUDGET

    def test_timers_of_one_loop(self, loop):
        """Armed in no order, all different; a third is cancelled, a third moved, half of that forward and half back.
        The rest fires in order, a budget's worth per turn, and nothing is left."""
        fired = []
        past = loop.time() - 1000
        kept, moved = [], []
        for number in range(self.COUNT):
            offset = number * 611_953 % self.COUNT          # a permutation: the two have no common divisor
            kind = number % 3
            ahead = 7200 if kind == 2 and offset % 2 else 0
            timer = loop.call_at(past + ahead + offset * 1e-6, fired.append, offset)
            if kind == 0:
                kept.append(offset)
            elif kind == 1:
                timer.cancel()
            else:
                moved.append((timer, offset))
        assert loop.stats().timers == len(kept) + len(moved)
        for timer, _ in moved:
            timer.reset(0)                                  # due now: after all of those of the past
        if epollkit.build_info()["build"] == "debug":
            from epollkit import _debug
            assert _debug.check_timers(loop)
        due = len(kept) + len(moved)
        assert loop.stats().timers == due
        for turn in range(1, -(-due // self.BUDGET) + 1):
            assert loop.turn(0) == min(self.BUDGET, due - (turn - 1) * self.BUDGET)
        assert fired == sorted(kept) + [offset for _, offset in moved]
        assert loop.turn(0) == 0
        assert loop.stats().timers == 0
        assert not any(timer.active for timer, _ in moved)

    @pytest.mark.debug_build
    def test_deadlines_that_move_forward(self, loop, stage):
        """A deadline put off costs no work in the heap: 1000 of them, each a thousand times, and not one entry has
        moved. Only bringing one forward moves it."""
        from epollkit import _debug
        tokens = [stage.watch(loop, stage.event(), IN, int) for _ in range(1000)]
        first = tokens[0].index
        assert [token.index for token in tokens] == list(range(first, first + 1000))
        hour = int(loop.time() * 1e9) + 3600 * 10**9
        _debug.defer_deadlines(loop, first, 1000, hour, 1, 1000)
        before = _debug.queued_deadlines(loop)
        assert sorted(before) == [(first + i, hour + i, hour + i) for i in range(1000)]

        _debug.defer_deadlines(loop, first, 1000, hour + 1000, 1, self.COUNT)
        after = _debug.queued_deadlines(loop)
        assert [entry[:2] for entry in after] == [entry[:2] for entry in before]
        assert {due for _, _, due in after} == set(range(hour + self.COUNT, hour + self.COUNT + 1000))

        _debug.defer_deadlines(loop, first + 999, 1, hour - 1, 0, 1)
        assert _debug.queued_deadlines(loop)[0] == (first + 999, hour - 1, hour - 1)
        assert len(_debug.queued_deadlines(loop)) == 1000
        assert _debug.check_timers(loop)
        _debug.defer_deadlines(loop, first, 1000, 0, 0, 1000)
        assert {due for _, _, due in _debug.queued_deadlines(loop)} == {0}


TIMERS = 12
operations = st.lists(
    st.one_of(
        st.tuples(st.just("arm"), st.integers(0, 30)),
        st.tuples(st.just("cancel"), st.integers(0, TIMERS)),
        st.tuples(st.just("put off"), st.integers(0, TIMERS)),
        st.tuples(st.just("bring forward"), st.integers(0, TIMERS)),
        st.tuples(st.just("turn"), st.just(0)),
    ), max_size=60)


@settings(max_examples=200)
@given(operations=operations)
def test_the_heap_against_a_sorted_list(operations):
    """Arm in the past (and so due), cancel, put off for an hour, bring forward to now, and fire."""
    fired, model = [], {}       # model: number -> (deadline, order of arming, timer), of what is armed
    sequence = 0
    with epollkit.Loop() as loop:
        past = loop.time() - 1000
        for verb, value in operations:
            sequence += 1
            if verb == "arm":
                model[sequence] = (past + value, sequence, loop.call_at(past + value, fired.append, sequence))
            elif verb == "turn":
                due = sorted((when, order, number) for number, (when, order, _) in model.items() if when <= loop.time())
                fired.clear()
                assert loop.turn(0) == len(due)
                assert fired == [number for _, _, number in due]
                for number in fired:
                    assert not model.pop(number)[2].active
            elif model:
                number = sorted(model)[value % len(model)]
                timer = model[number][2]
                if verb == "cancel":
                    timer.cancel()
                    del model[number]
                else:
                    delay = 3600 if verb == "put off" else 0
                    timer.reset(delay)
                    model[number] = (loop.time() + delay, sequence, timer)
            assert loop.stats().timers == len(model)
            assert all(timer.active for _, _, timer in model.values())


class TestNeverEarlyAndNoSpin:
    @pytest.mark.parametrize("delay", [0.0003, 0.001, 0.0015, 0.01])
    def test_one_timer(self, loop, delay):
        """25. 0.3 ms rounds up: not to 0, which spins until the deadline has come. One turn waits, the next one
        fires."""
        log = []
        due = loop.time() + delay
        loop.call_later(delay, lambda: log.append(loop.time()))
        turns = turn_until(loop, lambda: log)
        assert log[0] >= due
        assert turns <= 3

    def test_twenty_in_a_row(self, loop):
        """Each arms the next."""
        early, left = [], [20]

        def fire(due):
            early.append(loop.time() < due)
            left[0] -= 1
            if left[0]:
                arm()

        def arm():
            due = loop.time() + 0.0007
            loop.call_later(0.0007, fire, due)

        arm()
        turns = turn_until(loop, lambda: not left[0])
        assert early == [False] * 20
        assert turns <= 20 * 3

    def test_a_loop_that_polls(self, loop):
        """Turns are made all the time, the last of them a moment before the deadline: it is not yet due then."""
        fired = []
        start = loop.time()
        deadlines = [start + number * 0.0002 for number in range(1, 51)]
        for due in deadlines:
            loop.call_at(due, lambda: fired.append(loop.time()))
        while len(fired) < len(deadlines):
            loop.turn(0)
        assert [when >= due for when, due in zip(fired, deadlines, strict=True)] == [True] * 50

    def test_a_kernel_without_epoll_pwait2(self):
        """Before Linux 5.11, and under old seccomp profiles, waits are of whole milliseconds: rounded up, or the loop
        spins. A filter that answers ENOSYS stands in for such a kernel."""
        out = in_child("""
import ctypes, errno, struct, epollkit
EPOLL_PWAIT2, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, FILTER = 441, 22, 38, 2
RETURN_ERRNO, ALLOW = 0x00050000, 0x7FFF0000
program = b"".join(struct.pack("HBBI", *instruction) for instruction in (
    (0x20, 0, 0, 0), (0x15, 0, 1, EPOLL_PWAIT2), (0x06, 0, 0, RETURN_ERRNO | errno.ENOSYS), (0x06, 0, 0, ALLOW)))
code = ctypes.create_string_buffer(program)
filter = struct.pack("HxxxxxxQ", 4, ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(PR_SET_SECCOMP, FILTER, ctypes.c_char_p(filter)) == 0
assert libc.syscall(EPOLL_PWAIT2, -1, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == errno.ENOSYS
with epollkit.Loop() as loop:
    for delay in (0.0003, 0.0011, 0.004):
        fired = []
        due = loop.time() + delay
        loop.call_later(delay, lambda: fired.append(loop.time()))
        turns = 0
        while not fired:
            loop.turn(5)
            turns += 1
        print(fired[0] >= due, turns)
""")
        answers = out.split()
        assert answers[::2] == ["True"] * 3
        assert max(map(int, answers[1::2])) <= 3

    def test_call_at_counts_in_loop_time(self, loop):
        log = []
        when = loop.time() + 0.002
        loop.call_at(when, lambda: log.append(loop.time()))
        assert loop.turn(0) == 0
        turns = turn_until(loop, lambda: log)
        assert log[0] >= when
        assert turns <= 3

    def test_loop_time_is_the_monotonic_clock(self, loop):
        before, now, after = time.monotonic(), loop.time(), time.monotonic()
        assert before <= now <= after

    def test_a_turn_waits_no_longer_than_the_next_deadline(self, loop):
        """turn() without end is ended by a timer, which the next turn then fires."""
        log = Log()
        loop.call_later(0.002, log.call("timer"))
        assert loop.turn() == 0
        assert loop.turn() == 1

    def test_a_timeout_ends_the_wait_before_a_later_deadline(self, loop):
        timer = loop.call_later(3600, int)
        before = loop.time()
        assert loop.turn(0.002) == 0
        assert 0.002 <= loop.time() - before < PATIENCE_SECONDS
        timer.cancel()


class TestStarvation:
    def test_one_that_arms_itself_again_with_0(self, loop, stage):
        """It fires once per turn; events, other timers and posted calls have theirs."""
        log = Log()
        event = stage.event()

        def again():
            armed[0] = loop.call_later(0, log.call("timer", again))

        armed = [None]
        stage.watch(loop, event, IN, log.handler("event"))
        again()
        for _ in range(3):
            event.fire()
            loop.call_soon(log.call("posted"))
            loop.turn(0)
        armed[0].cancel()
        assert log.names == ["posted", "timer", "event"] * 3

    def test_one_that_arms_itself_again_in_the_past(self, loop):
        """Always the earliest of all, and yet the others that are due have their turn."""
        log = Log()

        def again():
            armed[0] = loop.call_at(loop.time() - 1000, log.call("past", again))

        armed = [None]
        again()
        for number in range(5):
            loop.call_later(0, log.call(str(number)))
        for _ in range(3):
            loop.turn(0)
        armed[0].cancel()
        assert log.names.count("past") == 3
        assert [name for name in log.names if name != "past"] == ["0", "1", "2", "3", "4"]

    def test_more_than_a_turn_s_budget_is_due(self, loop, stage):
        """10,000 timers: the events of a ready fd are delivered in between, and the order is kept."""
        log = Log()
        event = stage.event()
        stage.watch(loop, event, IN, log.handler("event"))
        event.fire()
        for number in range(10_000):
            loop.call_later(0, log.call(str(number)))
        turns = 0
        while loop.stats().timers:
            loop.turn(0)
            turns += 1
        assert turns > 1
        assert log.names.index("event") < 9_999
        assert [int(name) for name in log.names if name != "event"] == list(range(10_000))

    def test_more_posted_calls_than_a_turn_s_budget(self, loop, stage):
        """Likewise."""
        log = Log()
        event = stage.event()
        stage.watch(loop, event, IN, log.handler("event"))
        event.fire()
        for number in range(10_000):
            loop.call_soon(log.call(str(number)))
        settle(loop)
        assert log.names.index("event") < 9_999
        assert [int(name) for name in log.names if name != "event"] == list(range(10_000))


class TestBadInput:
    @pytest.mark.parametrize("delay", [-1, -1e-9, float("nan"), None, "1", True, 1j])
    def test_delays(self, loop, delay):
        for arm in (loop.call_later, loop.call_at):
            with pytest.raises(UsageError, match="a delay is a number of seconds, 0 or more, not"):
                arm(delay, print)
        assert loop.stats().timers == 0

    @pytest.mark.parametrize("delay", [float("inf"), 1e300, 10**400])
    def test_for_ever(self, loop, delay):
        """As good as never; it neither fires nor overflows."""
        timer = loop.call_later(delay, print)
        assert timer.active
        assert loop.turn(0) == 0
        timer.cancel()

    def test_what_can_not_be_called(self, loop):
        for arm in (loop.call_soon, loop.call_soon_threadsafe, lambda value: loop.call_later(1, value),
                    lambda value: loop.call_at(1, value)):
            with pytest.raises(UsageError, match="can't be called"):
                arm("nonsense")
        assert loop.turn(0) == 0

    def test_on_a_closed_loop(self):
        loop = epollkit.Loop()
        timer, posted = loop.call_later(0, print), loop.call_soon(print)
        loop.close()
        assert (timer.active, posted.active) == (False, False)
        timer.cancel()
        posted.cancel()
        with pytest.raises(UsageError, match="has run or was cancelled"):
            timer.reset(1)
        for arm in (loop.call_soon, loop.call_soon_threadsafe, lambda value: loop.call_later(1, value),
                    lambda value: loop.call_at(1, value)):
            with pytest.raises(UsageError, match="this loop is closed"):
                arm(print)

    def test_from_another_thread(self, loop):
        """Only call_soon_threadsafe is for others."""
        timer = loop.call_later(3600, print)
        for use in (lambda: loop.call_soon(print), lambda: loop.call_later(1, print), lambda: loop.call_at(1, print),
                    timer.cancel, lambda: timer.reset(1)):
            with pytest.raises(UsageError, match="belongs to"):
                in_thread(use)
        assert timer.active
        timer.cancel()

    def test_a_timer_is_not_made_by_hand(self):
        with pytest.raises(UsageError, match="comes from call_soon"):
            epollkit.Timer()

    def test_repr(self, loop):
        timer = loop.call_later(3600, print)
        assert "active" in repr(timer)
        assert "print" in repr(timer)
        timer.cancel()
        assert "done" in repr(timer)


class TestOfAStream:
    """`Stream.call_later` and `Stream.call_soon`: as the loop's, but they die with the stream."""

    def test_they_run(self, loop, stage):
        log = Log()
        stream = Spy(log, "stream")
        stage.stream(loop, stream)
        log.clear()
        stream.call_later(0, log.call("timer"), 1)
        stream.call_soon(log.call("posted"), 2)
        loop.turn(0)
        assert log == [("posted", (2,)), ("timer", (1,))]

    def test_a_busy_stream_s_list_does_not_grow(self, loop, stage):
        """A thousand calls over its life, all of them done; the last one still dies with it."""
        log = Log()
        stream = Spy(log, "stream")
        stage.stream(loop, stream)
        log.clear()
        keeper = stream.call_later(3600, print)
        for _ in range(1000):
            stream.call_later(0, int)
            stream.call_soon(int).cancel()
            loop.turn(0)
        assert loop.stats().timers == 1
        assert sum(isinstance(found, epollkit.Timer) for found in gc.get_objects()) < 50
        stream.abort()
        assert not keeper.active
        assert loop.stats().timers == 0

    def test_on_a_closed_stream(self, loop, stage):
        stream = Spy(Log(), "stream")
        stage.stream(loop, stream)
        stream.abort()
        for arm in (stream.call_soon, lambda function: stream.call_later(1, function)):
            with pytest.raises(UsageError, match="is closed, or was never opened"):
                arm(print)


class TestPostedCalls:
    def test_in_the_order_of_posting(self, loop):
        log = Log()
        for number in range(100):
            loop.call_soon(log.call(str(number)))
        assert loop.turn(0) == 100
        assert log.names == [str(number) for number in range(100)]

    def test_posted_from_a_posted_call_runs_in_the_next_turn(self, loop):
        """Or a call that posts itself again would never let an event through."""
        log = Log()
        loop.call_soon(log.call("first", lambda: loop.call_soon(log.call("second"))))
        assert loop.turn() == 1
        assert loop.turn() == 1
        assert log.names == ["first", "second"]
        assert loop.turn(0) == 0

    def test_posted_from_a_handler_ends_the_next_wait(self, loop, stage):
        """The next turn does not block, though nobody wakes it."""
        log = Log()
        event = stage.event()
        stage.watch(loop, event, IN, log.handler("event", lambda: loop.call_soon(log.call("posted"))))
        event.fire()
        assert loop.turn() == 1
        assert loop.turn() == 1
        assert log.names == ["event", "posted"]

    def test_cancel(self, loop):
        log = Log()
        loop.call_soon(log.call("first", lambda: victim.cancel()))
        victim = loop.call_soon(log.call("victim"))
        assert victim.active
        assert loop.turn(0) == 1
        assert log.names == ["first"]


class TestFromOtherThreads:
    def test_all_of_them_run_in_each_thread_s_order(self, loop):
        """Four threads post 500 calls each, while the loop is turning."""
        log, threads, count = [], 4, 500

        def post(thread):
            for number in range(count):
                loop.call_soon_threadsafe(log.append, (thread, number))

        posters = [threading.Thread(target=post, args=(thread,)) for thread in range(threads)]
        for poster in posters:
            poster.start()
        turn_until(loop, lambda: len(log) == threads * count)
        for poster in posters:
            poster.join()
        settle(loop)
        for thread in range(threads):
            assert [number for who, number in log if who == thread] == list(range(count))

    def test_it_wakes_a_turn_that_waits(self, loop):
        """turn() without end is ended by a post; the call runs in the loop's thread, in the next turn."""
        log = []
        posters = []

        def post():
            loop.call_soon_threadsafe(lambda: log.append(threading.get_ident()))

        def start():
            posters.append(threading.Thread(target=post))
            posters[0].start()

        loop.call_soon(start)
        turns = turn_until(loop, lambda: log)
        posters[0].join()
        assert log == [threading.get_ident()]
        assert turns <= 4
        settle(loop)

    def test_wake_ups_are_coalesced(self, loop):
        """A thousand posts before a turn cost one write, and one wake-up event; the next post wakes again."""
        def written():
            entries = Path(f"/proc/self/fdinfo/{loop.fileno()}").read_text().split()
            wake_fd = entries[entries.index("tfd:") + 1]
            counter = Path(f"/proc/self/fdinfo/{wake_fd}").read_text().split()
            return int(counter[counter.index("eventfd-count:") + 1], 16)

        log = []
        for _ in range(3):
            before = loop.stats()
            in_thread(lambda: [loop.call_soon_threadsafe(log.append, number) for number in range(1000)])
            assert written() == 1
            settle(loop)
            assert written() == 0
            assert loop.stats().events - before.events == 1
        assert log == [*range(1000)] * 3

    def test_a_post_from_its_own_thread(self, loop):
        """Allowed; it runs before what was posted with call_soon."""
        log = Log()
        loop.call_soon(log.call("soon"))
        loop.call_soon_threadsafe(log.call("threadsafe"))
        loop.turn(0)
        assert log.names == ["threadsafe", "soon"]

    def test_a_post_by_a_posted_call_runs_in_the_next_turn(self, loop):
        log = Log()
        loop.call_soon_threadsafe(log.call("first", lambda: loop.call_soon_threadsafe(log.call("second"))))
        assert loop.turn() == 1
        assert log.names == ["first"]
        assert loop.turn() == 1
        assert log.names == ["first", "second"]

    def test_a_post_to_a_closed_loop(self):
        loop = epollkit.Loop()
        loop.close()
        with pytest.raises(UsageError, match="this loop is closed"):
            in_thread(lambda: loop.call_soon_threadsafe(print))

    def test_stop_from_another_thread(self, loop):
        """The documented way."""
        thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(loop.stop))
        loop.call_soon(thread.start)
        loop.run()
        thread.join()

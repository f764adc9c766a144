"""Slots, generations, the free list and the table fd -> slot: against models in plain Python, and at their edges."""
from __future__ import annotations

import fcntl
import gc
import os
import resource
import tempfile
import weakref
from dataclasses import dataclass, field

import pytest
from batches import Event, Log, Spy, Stage, in_child, settle
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import epollkit
from epollkit import IN, OUT, LimitReached, StaleToken, UsageError

LAST_GENERATION = 2**32 - 1


# -- the model: what a slot table is, in Python ------------------------------------------------------------------------

@dataclass
class SlotModel:
    """Generations per slot, and a free list that is last in, first out. Slot 0 is the loop's own wake-up."""

    generations: list[int] = field(default_factory=lambda: [0])
    free: list[int] = field(default_factory=list)
    live: set[int] = field(default_factory=set)

    def take(self) -> tuple[int, int]:
        if not self.free:
            self.generations.append(0)
            self.free.append(len(self.generations) - 1)
        index = self.free.pop()
        self.live.add(index)
        return index, self.generations[index]

    def release(self, index: int) -> None:
        self.generations[index] += 1
        self.live.remove(index)
        self.free.append(index)


@dataclass
class Registration:
    token: epollkit.Token
    number: int
    live: bool = True


FIRST_NUMBER = 700              # far above what the kernel hands out by itself
NUMBERS = [FIRST_NUMBER + offset for offset in range(5)]
LIMIT = 4                       # max_connections: less than there are numbers
numbers = st.sampled_from(NUMBERS)


class SlotMachine(RuleBasedStateMachine):
    """28. Files come and go behind five fd numbers, whether or not they are registered; copies keep some of them alive.

    The model knows the kernel's side too: the epoll set holds pairs (file, number), each with the tag it was added
    under, and a pair stays until it is deleted or the file's last descriptor is closed. """

    def __init__(self):
        super().__init__()
        self.calls = []
        self.loop = epollkit.Loop(max_connections=LIMIT)
        self.slots = SlotModel()
        self.files: dict[int, int | str] = {}                   # number -> file; "disk" is a file that can't be polled
        self.copies: dict[int, int] = {}                        # file -> another descriptor of it
        self.watched: dict[tuple[int | str, int], Registration] = {}     # the epoll set
        self.claims: dict[int, Registration] = {}               # number -> the live registration that claims it
        self.registrations: list[Registration] = []
        self.lost = self.closed = self.orphans = self.last_file = 0
        for number in NUMBERS:
            self.open_file(number)

    def teardown(self):
        self.loop.close()
        for registration in self.registrations:
            assert not registration.token.live
        for number in self.files:
            os.close(number)
        for copy in self.copies.values():
            os.close(copy)

    # -- files ---------------------------------------------------------------------------------------------------------

    def forget_file(self, number):
        """The number's descriptor is closed; without a copy the file is gone, and the epoll set forgets it."""
        file = self.files.pop(number, None)
        if file not in self.copies:
            for pair in [pair for pair in self.watched if pair[0] == file]:
                del self.watched[pair]

    @rule(number=numbers)
    def open_file(self, number):
        """Closes what the number was before, in one go: that is dup2(2)."""
        event = Event()
        os.dup2(event.fd, number, inheritable=False)
        event.close()
        self.forget_file(number)
        self.files[number] = self.new_file()

    @rule(number=numbers)
    def open_regular_file(self, number):
        with tempfile.TemporaryFile() as regular:
            os.dup2(regular.fileno(), number, inheritable=False)
        self.forget_file(number)
        self.files[number] = "disk"

    @rule(number=numbers)
    def close_file(self, number):
        if number in self.files:
            os.close(number)
            self.forget_file(number)

    @rule(number=numbers)
    def copy_file(self, number):
        file = self.files.get(number, "disk")
        if file != "disk" and file not in self.copies:
            self.copies[file] = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, FIRST_NUMBER + 100)

    def orphaned(self):
        return sorted(set(self.copies) - set(self.files.values()))

    @precondition(orphaned)
    @rule(number=numbers, which=st.integers(0, 3))
    def bring_back(self, number, which):
        """A copy's file gets a number again: its old one, or another."""
        orphaned = self.orphaned()
        file = orphaned[which % len(orphaned)]
        os.dup2(self.copies[file], number, inheritable=False)
        self.forget_file(number)
        self.files[number] = file
        os.close(self.copies.pop(file))     # the set's entry under the old number stays: the file is open

    def new_file(self):
        self.last_file += 1
        return self.last_file

    # -- registrations -------------------------------------------------------------------------------------------------

    def release(self, registration):
        registration.live = False
        if self.claims.get(registration.number) is registration:
            del self.claims[registration.number]
        self.slots.release(registration.token.index)
        self.closed += 1

    def lose(self, registration):
        self.lost += 1
        self.release(registration)

    @rule(number=numbers)
    def register(self, number):
        file = self.files.get(number)
        before = self.claims.get(number)
        if before is not None and (file, number) in self.watched:
            with pytest.raises(UsageError, match="already registered"):
                self.loop.register(number, IN, print)
            return
        if len(self.claims) >= LIMIT and before is None and file is not None:
            with pytest.raises(LimitReached, match=f"max_connections={LIMIT}"):
                self.loop.register(number, IN, print)
            return
        try:
            token = self.loop.register(number, IN, self.called)
        except UsageError as error:
            assert ("is closed" in str(error)) == (file is None)
            assert ("can't be polled" in str(error)) == (file == "disk")
            assert self.loop.stats().live in (len(self.claims), len(self.claims) - (before is not None))
            if before is not None and not before.token.live:
                self.lose(before)
            self.refused(number)
            return
        assert file not in (None, "disk")
        if before is not None:
            self.lose(before)
        assert (token.index, token.generation) == self.slots.take()
        registration = Registration(token, number)
        self.claims[number] = self.watched[file, number] = registration
        self.registrations.append(registration)

    def refused(self, number):
        """Whether a refused registration took a slot for a moment is the loop's affair; the model looks at one
        number."""
        closed = self.loop.stats().closed
        assert closed - self.closed in (0, 1)
        if closed > self.closed:
            self.slots.release(self.slots.take()[0])
            self.closed += 1

    @rule(numbers=st.permutations(NUMBERS), count=st.integers(2, 4))
    def register_some(self, numbers, count):
        for number in numbers[:count]:
            self.register(number)

    @rule(count=st.integers(1, 4))
    def unregister_some(self, count):
        for registration in [one for one in self.registrations if one.live][-count:]:
            self.end(registration)

    @precondition(lambda self: self.registrations)
    @rule(which=st.integers(0, 50))
    def unregister(self, which):
        self.end(self.registrations[-1 - which % len(self.registrations)])

    def end(self, registration):
        if not registration.live:
            with pytest.raises(StaleToken, match="is gone"):
                self.loop.unregister(registration.token)
            return
        self.loop.unregister(registration.token)
        self.watched.pop((self.files.get(registration.number), registration.number), None)
        self.release(registration)

    @precondition(lambda self: self.registrations)
    @rule(which=st.integers(0, 50), mask=st.sampled_from([IN, IN | OUT]))
    def modify(self, which, mask):
        registration = self.registrations[-1 - which % len(self.registrations)]
        pair = self.files.get(registration.number), registration.number
        if not registration.live:
            with pytest.raises(StaleToken, match="is gone"):
                self.loop.modify(registration.token, mask)
        elif pair not in self.watched:
            with pytest.raises(StaleToken, match="was closed while it was registered"):
                self.loop.modify(registration.token, mask)
            self.lose(registration)
        else:
            self.loop.modify(registration.token, mask)
            self.watched[pair] = registration
            self.loop.modify(registration.token, IN)

    # -- events --------------------------------------------------------------------------------------------------------

    def called(self, token, events):
        self.calls.append((token.index, token.generation, events))

    @rule(number=numbers)
    def fire(self, number):
        """An event of one file goes to the registrations under which the epoll set knows it, and to nobody else."""
        file = self.files.get(number, "disk")
        descriptor = number
        if file == "disk":
            if not self.copies:
                return
            file, descriptor = min(self.copies.items())
        settle(self.loop)
        self.orphans = self.loop.stats().stale_orphan
        self.calls.clear()
        os.eventfd_write(descriptor, 1)
        self.loop.turn(0)
        os.eventfd_read(descriptor)
        told = [registration for pair, registration in self.watched.items() if pair[0] == file]
        alive = [registration.token for registration in told if registration.live]
        assert sorted(self.calls) == sorted((token.index, token.generation, IN) for token in alive)
        assert self.loop.stats().stale_orphan - self.orphans == len(told) - len(alive)

    # -- what always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def tokens_know_whether_they_live(self):
        assert [one.token.live for one in self.registrations] == [one.live for one in self.registrations]

    @invariant()
    def counters_agree(self):
        stats = self.loop.stats()
        assert (stats.live, stats.lost, stats.closed) == (len(self.claims), self.lost, self.closed)
        assert (stats.wrong_deliveries, stats.retired, stats.stale_closed, stats.stale_recycled) == (0, 0, 0, 0)
        assert len(self.slots.live) == len(self.claims)


SlotMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestSlotMachine = SlotMachine.TestCase


# -- one batch against a model -----------------------------------------------------------------------------------------

WATCHED = 5
action = st.tuples(st.sampled_from(["leave", "replace", "twice"]), st.integers(0, WATCHED - 1))
scripts = st.lists(st.lists(action, max_size=4), min_size=WATCHED, max_size=WATCHED)


@settings(max_examples=300)
@given(instance_bits=st.sampled_from([1, 2, 3, 32]), scripts=scripts)
def test_who_is_called_in_a_batch(instance_bits, scripts):
    """28. Five are ready in a known order. Each handler, when it is called, unregisters or replaces others (or itself)
    by its script. The model says who is called, wrongly or rightly, and how each stale event is counted."""
    model, log = SlotModel(), []
    with Stage() as stage, epollkit.Loop(instance_bits=instance_bits) as loop:
        events = stage.events(WATCHED)
        owners = {}         # number -> (token, name): the registration of each eventfd, if any

        def add(number, name):
            owners[number] = (loop.register(events[number], IN, lambda token, mask: run(token, name)), name)
            assert (owners[number][0].index, owners[number][0].generation) == model.take()

        def remove(number):
            if number in owners:
                token, _ = owners.pop(number)
                loop.unregister(token)
                model.release(token.index)

        def run(token, name):
            assert token.live
            log.append((token.index, token.generation))
            if isinstance(name, int):
                for verb, number in scripts[name]:
                    remove(number)
                    if verb == "twice":
                        add(number, "newcomer")
                        remove(number)
                    if verb != "leave":
                        add(number, "newcomer")
            expected.extend(predict())

        def predict():
            """The next event that calls somebody; those before it are stale."""
            while pending:
                index, generation = pending.pop(0)
                current = model.generations[index]
                if index in model.live and not (current ^ generation) & ((1 << instance_bits) - 1):
                    counted["wrong"] += current != generation
                    return [(index, current)]
                counted["recycled" if index in model.live else "closed"] += 1
            return []

        for number in range(WATCHED):
            add(number, number)
        settle(loop)
        pending = [(owners[number][0].index, owners[number][0].generation) for number in range(WATCHED)]
        counted = {"wrong": 0, "closed": 0, "recycled": 0}
        expected = predict()
        for event in events:
            event.fire()
        made = loop.turn(0)
        stats = loop.stats()
        assert log == expected
        assert made == len(expected)
        assert (stats.wrong_deliveries, stats.stale_closed, stats.stale_recycled, stats.stale_orphan) == (
            counted["wrong"], counted["closed"], counted["recycled"], 0)
        assert instance_bits < 32 or counted["wrong"] == 0


# -- growth and limits -------------------------------------------------------------------------------------------------

def test_the_table_grows_without_moving_anybody(loop, stage):
    """Three chunks' worth of registrations, made from inside a handler while its own event is being delivered; then
    every third is replaced, and each is told of its own events only."""
    log, count = Log(), 2600
    events = stage.events(count)
    tokens = []

    def register_the_rest():
        tokens.extend(stage.watch(loop, event, IN, log.handler(str(number)))
                      for number, event in enumerate(events[1:], 1))

    tokens.append(stage.watch(loop, events[0], IN, log.handler("0", register_the_rest)))
    events[0].fire()
    assert loop.turn(0) == 1
    assert [token.index for token in tokens] == list(range(1, count + 1))
    assert all(token.live for token in tokens)
    for number in range(0, count, 3):
        loop.unregister(tokens[number])
    for number in range(0, count, 3):
        old = tokens[number]
        tokens[number] = stage.watch(loop, events[number], IN, log.handler(str(number)))
        assert not old.live
    assert len({token.index for token in tokens}) == count
    settle(loop)
    log.clear()
    for event in events[1:]:
        event.fire()
    settle(loop)
    assert sorted(map(int, log.names)) == list(range(1, count))
    assert loop.stats().live == count


def test_max_connections(stage):
    """The last place is refused to whoever comes too late, and free again as soon as somebody leaves."""
    with epollkit.Loop(max_connections=3) as loop:
        tokens = [loop.register(event, IN, print) for event in stage.events(3)]
        late = stage.event()
        with pytest.raises(LimitReached, match="max_connections=3 are registered already"):
            loop.register(late, IN, print)
        assert loop.stats().live == 3
        loop.unregister(tokens[1])
        assert loop.register(late, IN, print).index == tokens[1].index


def test_max_connections_when_the_fd_was_lost(stage):
    """All places are taken, one of them by a file that the user closed: its number can be registered again."""
    with epollkit.Loop(max_connections=1) as loop:
        first, second = stage.events(2)
        old = loop.register(first, IN, print)
        os.dup2(second.fd, first.fd, inheritable=False)
        new = loop.register(first, IN, print)
        assert (old.live, new.live, loop.stats().live) == (False, True, 1)


def test_listeners_and_wake_ups_need_no_place(stage):
    """max_connections is about connections."""
    with epollkit.Loop(max_connections=1) as loop:
        loop.listen(("127.0.0.1", 0), print)
        loop.listen(("127.0.0.1", 0), print)
        loop.register(stage.event(), IN, print)
        loop.call_soon(loop.stop)
        loop.run()
        assert loop.stats().live == 3


def test_a_high_fd_number(loop, stage):
    """The table fd -> slot reaches as far as the numbers do."""
    log = Log()
    highest = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 16) - 1
    event = stage.event()
    fd = fcntl.fcntl(event.fd, fcntl.F_DUPFD_CLOEXEC, highest)
    stage.callback(os.close, fd)
    stage.watch(loop, fd, IN, log.handler("high"))
    event.fire()
    loop.turn(0)
    assert log.names == ["high"]


def test_a_number_nobody_opened_costs_no_memory():
    """The table must not grow for an fd that does not exist: the user made the number up."""
    answer = in_child("""
import re, resource, epollkit
resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))
with epollkit.Loop() as loop:
    for number in (2**27, 2**30, 2**31 - 1, 2**31, 2**40, -1, -2**40):
        try:
            loop.register(number, epollkit.IN, print)
        except Exception as error:
            print(type(error).__name__, "is closed" in str(error))
with open("/proc/self/status") as file:     # ru_maxrss begins with what the process was before exec
    print(re.search(r"VmHWM:\\s*(\\d+) kB", file.read())[1])
""").split()
    assert answer[:-1] == ["UsageError", "True"] * 7
    assert int(answer[-1]) < 200_000, "kilobytes"


# -- generations and batches that run out ------------------------------------------------------------------------------

@pytest.mark.debug_build
def test_a_slot_whose_generation_would_wrap_is_retired(loop, stage):
    """Tokens may be kept for ever, so the 2^32nd owner of a slot is its last."""
    from epollkit import _debug
    event, other = stage.events(2)
    first = stage.watch(loop, event, IN, print)
    loop.unregister(first)
    _debug.set_generation(loop, first.index, LAST_GENERATION)
    last = stage.watch(loop, event, IN, print)
    assert (last.index, last.generation, last.instance) == (first.index, LAST_GENERATION, 1)
    loop.unregister(last)
    assert loop.stats().retired == 1
    for _ in range(3):
        token = stage.watch(loop, other, IN, print)
        assert token.index != last.index
        loop.unregister(token)
    assert not last.live
    assert not first.live
    with pytest.raises(StaleToken):
        loop.unregister(last)


@pytest.mark.debug_build
def test_a_stale_event_of_a_retired_slot(loop, stage):
    """The last owner leaves with an event in the batch."""
    from epollkit import _debug
    log = Log()
    x, a = stage.events(2)
    loop.unregister(stage.watch(loop, a, IN, print))
    _debug.set_generation(loop, 1, LAST_GENERATION)
    token = stage.watch(loop, a, IN, log.handler("a"))
    stage.watch(loop, x, IN, log.handler("x", lambda: loop.unregister(token)))
    x.fire()
    a.fire()
    loop.turn(0)
    assert (token.index, token.generation) == (1, LAST_GENERATION)
    assert log.names == ["x"]
    assert (loop.stats().stale_closed, loop.stats().retired) == (1, 1)


@pytest.mark.debug_build
@pytest.mark.parametrize("left", [1, 2, 3, 4])
def test_the_batch_number_wraps(loop, stage, left):
    """2^32 batches later nothing is mistaken for something of this batch, or for young."""
    from epollkit import _debug
    log = Log()
    x, a, b = stage.events(3)
    _debug.set_batch(loop, 2**32 - left)
    numbers_seen = []

    def replace():
        loop.unregister(tokens[-1])
        tokens.append(stage.watch(loop, a, IN, log.handler("a")))

    stage.watch(loop, x, IN, log.handler("x", replace))
    tokens = [stage.watch(loop, a, IN, log.handler("a"))]
    stage.watch(loop, b, IN, log.handler("b"))
    for turn in range(8):
        log.clear()
        for event in (x, a, b):
            event.drain()
            event.fire()
        before = loop.stats()
        loop.turn(0)
        after = loop.stats()
        assert log.names == ["x", "b"]
        assert after.stale_recycled - before.stale_recycled == 1
        assert tokens[-1].generation == turn + 1
        numbers_seen.append(_debug.slot_fields(loop, tokens[-1].index)["registered_batch"])
        settle(loop)
    assert numbers_seen[-1] < 20, "the number did not wrap"
    assert 0 not in numbers_seen, "0 means never"


@pytest.mark.debug_build
def test_what_was_registered_before_the_batch_number_wrapped(loop, stage):
    """It comes round to the very number under which they were registered: they are old all the same, and their events
    are theirs."""
    from epollkit import _debug
    log = Log()
    event = stage.event()
    token = stage.watch(loop, event, IN, log.handler("event"))
    assert _debug.slot_fields(loop, token.index)["registered_batch"] == 1
    _debug.set_batch(loop, 2**32 - 1)
    event.fire()
    assert loop.turn(0) == 1
    assert log.names == ["event"]
    assert loop.stats().wrong_deliveries == 0


@pytest.mark.debug_build
def test_slots_are_as_large_as_the_plan_says():
    """One cache line."""
    from epollkit import _debug
    assert _debug.sizes()["Slot"] == 64


# -- tokens ------------------------------------------------------------------------------------------------------------

class TestToken:
    def test_equality_and_hash(self, stage):
        """A token equals the same registration's only: not the slot's next owner, not another loop's."""
        with epollkit.Loop() as loop, epollkit.Loop() as other:
            event = stage.event()
            seen = []
            token = loop.register(event, IN, lambda told, _: seen.append(told))
            event.fire()
            loop.turn(0)
            foreign = other.register(event, IN, print)
            assert seen == [token]
            assert hash(seen[0]) == hash(token)
            assert (foreign.index, foreign.generation) == (token.index, token.generation)
            assert foreign != token
            loop.unregister(token)
            successor = loop.register(event, IN, print)
            assert successor.index == token.index
            assert successor != token
            assert token != "token"
            assert len({token, successor, foreign}) == 3

    def test_instance_is_the_lowest_bit(self, loop, stage):
        """It flips with every owner."""
        event = stage.event()
        seen = []
        for _ in range(4):
            token = loop.register(event, IN, print)
            seen.append((token.generation, token.instance))
            loop.unregister(token)
        assert seen == [(0, 0), (1, 1), (2, 0), (3, 1)]

    def test_repr(self, loop, stage):
        token = loop.register(stage.event(), IN, print)
        assert repr(token) == "<Token index=1 generation=0>"
        loop.unregister(token)
        assert repr(token) == "<Token index=1 generation=0 stale>"

    def test_after_the_loop_was_closed(self, stage):
        loop = epollkit.Loop()
        token = loop.register(stage.event(), IN, print)
        loop.close()
        assert not token.live
        assert token == token
        assert "stale" in repr(token)
        with pytest.raises(UsageError, match="this loop is closed"):
            loop.unregister(token)

    def test_after_the_loop_is_gone(self, stage):
        """A token may outlive its loop and even the loop's memory."""
        loop = epollkit.Loop()
        tokens = [loop.register(event, IN, print) for event in stage.events(2000)]
        loop.close()
        del loop
        gc.collect()
        assert not any(token.live for token in tokens)
        assert len(set(tokens)) == 2000

    def test_after_the_loop_is_gone_with_a_cycle(self, stage):
        """The collector clears the loop's attributes before its memory is freed; the token must not notice."""
        loop = epollkit.Loop()
        loop.myself = loop
        token = loop.register(stage.event(), IN, print)
        loop.close()
        gone = weakref.ref(loop)
        del loop
        gc.collect()
        assert gone() is None
        assert not token.live
        assert "stale" in repr(token)

    def test_of_another_loop(self, loop, stage):
        with epollkit.Loop() as other:
            token = other.register(stage.event(), IN, print)
            stage.watch(loop, stage.event(), IN, print)
            for use in (loop.unregister, lambda token: loop.modify(token, IN)):
                with pytest.raises(UsageError, match="belongs to another loop"):
                    use(token)
            assert token.live

    def test_is_not_made_by_hand(self):
        with pytest.raises(UsageError, match=r"comes from Loop\.register"):
            epollkit.Token()

    @pytest.mark.parametrize("nonsense", [None, 0, "token"])
    def test_nonsense_instead(self, loop, nonsense):
        with pytest.raises(TypeError, match=r"Argument 'token' (has incorrect type|must not be None)"):
            loop.unregister(nonsense)

    def test_of_a_stream_or_a_listener(self, loop, stage):
        """The raw API does not touch what belongs to others."""
        stream = Spy(Log(), "stream")
        stage.stream(loop, stream)
        listener = stage.listen(loop, print)
        for token, owner in ((stream.token, "Spy"), (listener.token, "Listener")):
            with pytest.raises(UsageError, match=f"belongs to a {owner}"):
                loop.unregister(token)
            with pytest.raises(UsageError, match=f"belongs to a {owner}"):
                loop.modify(token, IN)
            assert token.live


# -- what a loop holds, and lets go of ---------------------------------------------------------------------------------

class Handler:
    """Something that a weak reference can watch."""

    def __init__(self, *holds):
        self.holds = holds

    def __call__(self, *arguments):
        pass


class TestMemory:
    @pytest.mark.parametrize("end", ["unregister", "close", "lost", "raises"])
    def test_a_released_handler_is_not_kept(self, stage, end):
        """The loop holds one reference, and lets go of it at release; the token does not hold the handler."""
        with epollkit.Loop() as loop:
            event, other = stage.events(2)
            handler = Handler(loop)
            if end == "raises":
                handler = type("Failing", (Handler,), {"__call__": lambda *_: 1 // 0})()
                loop.set_exception_handler(lambda *_: None)
            gone = weakref.ref(handler)
            token = loop.register(event, IN, handler)
            del handler
            gc.collect()
            assert gone() is not None
            if end == "unregister":
                loop.unregister(token)
            elif end == "close":
                loop.close()
            elif end == "lost":
                os.dup2(other.fd, event.fd, inheritable=False)
                loop.register(event, IN, print)
            else:
                event.fire()
                loop.turn(0)
            assert gone() is None
            assert not token.live

    def test_a_handler_that_unregisters_itself_lives_to_the_end_of_its_call(self, loop, stage):
        """The last reference to it is the running call's."""
        event = stage.event()
        alive = []

        class Leaver(Handler):
            def __call__(self, token, events):
                loop.unregister(token)
                gc.collect()
                alive.append(self.holds)

        token = loop.register(event, IN, Leaver("still here"))
        event.fire()
        loop.turn(0)
        assert alive == [("still here",)]
        assert not token.live

    def test_released_calls_are_not_kept(self, loop):
        """Done, or cancelled: the Timer that the user keeps holds neither function nor arguments."""
        functions = [Handler() for _ in range(4)]
        gone = [weakref.ref(function) for function in functions]
        timers = [loop.call_later(0, functions[0]), loop.call_soon(functions[1]), loop.call_later(3600, functions[2]),
                  loop.call_soon(print, functions[3])]
        functions.clear()
        timers[2].cancel()
        timers[3].cancel()
        loop.turn(0)
        gc.collect()
        assert [ref() for ref in gone] == [None] * 4
        assert not any(timer.active for timer in timers)

    def test_a_closed_loop_holds_nothing(self, stage):
        handlers = [Handler() for _ in range(5)]
        gone = [weakref.ref(handler) for handler in handlers]
        loop = epollkit.Loop()
        loop.register(stage.event(), IN, handlers[0])
        loop.call_soon(handlers[1])
        timer = loop.call_later(3600, handlers[2])
        loop.call_soon_threadsafe(handlers[3])
        loop.call_at(loop.time() + 3600, print, handlers[4])
        handlers.clear()
        loop.close()
        gc.collect()
        assert [ref() for ref in gone] == [None] * 5
        assert not timer.active

    @pytest.mark.parametrize("held_by", ["handler", "timer", "posted", "stream", "exception handler", "itself"])
    def test_a_dropped_loop_is_collected_and_warns(self, held_by):
        """Nobody closed it, and something that it holds refers to it, through C memory or not: the collector finds the
        cycle, its fds are closed, and no upcall is made."""
        log = Log()
        before = len(os.listdir("/proc/self/fd"))
        with Stage() as stage:
            loop = epollkit.Loop()
            holder = Handler(loop)
            gone = weakref.ref(loop)
            if held_by == "handler":
                event = stage.event()
                loop.register(event, IN, holder)
                event.fire()
            elif held_by == "timer":
                loop.call_later(0, holder)
            elif held_by == "posted":
                loop.call_soon(holder)
            elif held_by == "stream":
                stream = Spy(log, "stream")
                stream.keeps = loop
                listener = loop.listen(("127.0.0.1", 0), lambda: stream)
                stage.connect(listener)
                settle(loop)
                log.clear()
                del stream, listener
            elif held_by == "exception handler":
                loop.set_exception_handler(holder)
            else:
                loop.myself = loop
            with pytest.warns(ResourceWarning, match="unclosed"):
                del loop, holder
                gc.collect()
            assert gone() is None
            assert log == []
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_dropped_loop_whose_warning_is_an_error(self):
        """`python -W error`: what the loop holds is released all the same."""
        out = in_child("""
import gc, sys, warnings, weakref, os, epollkit
warnings.simplefilter("error")
sys.unraisablehook = lambda *_: None
class Handler:
    def __call__(self, *_): pass
handler = Handler()
gone = weakref.ref(handler)
before = len(os.listdir("/proc/self/fd"))
loop = epollkit.Loop()
read, write = os.pipe()
loop.register(read, epollkit.IN, handler)
del loop, handler
gc.collect()
print(gone() is None, len(os.listdir("/proc/self/fd")) - before)
""")
        assert out.split() == ["True", "2"]

    def test_a_loop_in_use_is_not_collected(self, stage):
        """The collector counts the references in C memory right: what is reachable stays."""
        log = Log()
        with epollkit.Loop() as loop:
            events = stage.events(3)
            for number, event in enumerate(events):
                loop.register(event, IN, log.handler(str(number)))
            loop.call_later(0, log.call("timer"))
            for _ in range(3):
                gc.collect()
            for event in events:
                event.fire()
            loop.turn(0)
            assert log.names == ["timer", "0", "1", "2"]

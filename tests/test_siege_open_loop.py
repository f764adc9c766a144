"""The load engine at a given rate: what is planned is counted from when it was planned, whatever becomes of it; and
over random servers nothing is lost, at a rate or without one."""
from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from siege_servers import TCP, Site, answer, ask, besiege, ended, errors, latencies_ns, says, start
from wire import Bench

import epollkit
from epollkit._histogram import Histogram
from epollkit._siege import Engine

DEBUG = epollkit.build_info()["build"] == "debug"
SECOND_NS = 1_000_000_000
OK = answer(b"ok")
TICKS = 0.025           # what deadlines may be late by


def percentile(tally, share):
    return Histogram.load(tally["latency"]).percentile(share) / SECOND_NS


def late(bench, seconds):
    """A server that answers after that long."""
    return lambda visitor, request: bench.loop.call_later(
        seconds, lambda: visitor.is_closing or visitor.write(OK))


class Stalling:
    """A server that answers after `usual` seconds, but holds everything between these two times for the later one."""

    def __init__(self, bench, begins, ends, usual=0.0):
        self.bench, self.begins, self.ends, self.usual = bench, begins, ends, usual
        self.stalls = False
        self.held = []
        bench.loop.call_later(begins, self.stall)
        bench.loop.call_later(ends, self.go_on)

    def stall(self):
        self.stalls = True

    def go_on(self):
        self.stalls = False
        for visitor in self.held:
            visitor.write(OK)

    def __call__(self, visitor, request):
        if self.stalls:
            self.held.append(visitor)
        elif self.usual:
            self.bench.loop.call_later(self.usual, lambda: visitor.is_closing or visitor.write(OK))
        else:
            visitor.write(OK)


# -- what is planned ---------------------------------------------------------------------------------------------------


@pytest.mark.debug_build
@pytest.mark.parametrize("rate", [0.5, 3, 7.7, 100, 333.3, 5000])
def test_as_much_is_planned_as_the_rate_says(clock, bench, rate):
    """The first at once, and one more for each full 1 / rate seconds."""
    site = Site(bench, says(OK))
    engine = Engine(bench.loop, [site.ask()], users=10, rate=rate)
    begun_ns, stopped_ns = clock.now_ns, []

    def stop():
        stopped_ns.append(clock.now_ns)
        engine.stop(1)

    bench.loop.call_later(4.0, stop)
    engine.start()
    tally = ended(bench, engine)
    planned = math.floor((stopped_ns[0] - begun_ns) / SECOND_NS * rate + 1e-9) + 1
    assert tally["planned"] == tally["begun"] == tally["answered"] == len(site.requests) == planned
    assert abs(planned - 4 * rate) <= 0.02 * rate + 1


@pytest.mark.parametrize("users", [1, 7])
def test_number_at_a_rate(bench, users):
    site = Site(bench, says(OK))
    tally = besiege(bench, [site.ask()], users=users, number=50, rate=2000)
    assert tally["planned"] == tally["begun"] == tally["answered"] == len(site.requests) == 50
    assert tally["elapsed_ns"] >= 49 / 2000 * SECOND_NS
    assert len(latencies_ns(tally, "lag")) == 50


@pytest.mark.debug_build
def test_engines_that_share_a_rate_take_turns(clock, bench):
    """25 a second each, the second one half a distance later: all that comes is 20 ms apart."""
    came_ns = []
    site = Site(bench, lambda visitor, request: (came_ns.append(clock.now_ns), visitor.write(OK)))
    begun_ns = clock.now_ns
    engines = [Engine(bench.loop, [site.ask()], users=2, number=10, rate=25, first_due=due) for due in (0.0, 0.02)]
    for engine in engines:
        engine.start()
    tallies = [ended(bench, engine) for engine in engines]
    assert [tally["planned"] for tally in tallies] == [10, 10]
    assert [came - begun_ns for came in came_ns] == pytest.approx([n * 20_000_000 for n in range(20)], abs=5e6)


def test_nothing_is_planned_before_the_first_is_due(bench):
    site = Site(bench, says(OK))
    engine = Engine(bench.loop, [site.ask()], users=2, rate=1000, first_due=1000.0)
    engine.start()
    engine.stop()
    tally = ended(bench, engine)
    assert (tally["planned"], tally["unanswered"], len(site.requests)) == (0, 0, 0)


def test_no_more_connections_than_there_is_work_for(bench):
    """At a rate a user connects when he is first needed."""
    site = Site(bench, says(OK))
    tally = besiege(bench, [site.ask()], users=100, number=3, rate=1000)
    assert tally["connections"] <= 3


def test_users_take_turns(bench):
    site = Site(bench, says(OK))
    tally = besiege(bench, [site.ask()], users=4, number=40, rate=5000)
    assert tally["connections"] == 4
    assert sum(len(visitor.targets) for visitor in site.visitors) == 40
    assert all(visitor.targets for visitor in site.visitors)


# -- from when it is counted -------------------------------------------------------------------------------------------


@pytest.mark.debug_build
def test_who_finds_no_user_with_time_has_waited(clock, bench):
    """One user, 50 ms an answer, 100 planned a second: the nth waits for those before it."""
    site = Site(bench, late(bench, 0.05))
    tally = besiege(bench, [site.ask()], users=1, number=10, rate=100)
    assert latencies_ns(tally) == pytest.approx([50_000_000 + 40_000_000 * n for n in range(10)], rel=0.01, abs=3e6)
    assert latencies_ns(tally, "lag") == pytest.approx([40_000_000 * n for n in range(10)], rel=0.01, abs=3e6)


@pytest.mark.debug_build
def test_a_pipeline_is_more_room(clock, bench):
    site = Site(bench, late(bench, 0.05))
    tally = besiege(bench, [site.ask()], users=1, number=30, rate=100, pipeline=8)
    assert latencies_ns(tally) == pytest.approx([50_000_000] * 30, rel=0.06)
    assert max(latencies_ns(tally, "lag")) < 5_000_000


@pytest.mark.debug_build
def test_a_stall_shows_at_a_rate_and_not_without_one(clock, bench):
    """0.4 seconds of three in which nothing is answered: without a rate the users wait with it, and only their five
    requests are slow."""
    site = Site(bench, Stalling(bench, 1.0, 1.4, usual=0.005))
    engine = start(bench, [site.ask()], users=5, rate=200)
    bench.loop.call_later(3.0, engine.stop, 1)
    planned = ended(bench, engine)
    site = Site(bench, Stalling(bench, 1.0, 1.4, usual=0.005))
    engine = start(bench, [site.ask()], users=5)
    bench.loop.call_later(3.0, engine.stop, 1)
    closed = ended(bench, engine)
    assert planned["answered"] == planned["planned"] == pytest.approx(601, abs=5)
    assert percentile(planned, 99) > 0.35
    assert percentile(planned, 90) > 0.08
    assert percentile(closed, 99) < 0.03
    assert percentile(closed, 100) > 0.35


@pytest.mark.long
def test_a_server_that_stalls_for_two_seconds(bench):
    """On the real clock."""
    site = Site(bench, Stalling(bench, 1.0, 3.0))
    engine = start(bench, [site.ask()], users=10, rate=100)
    bench.loop.call_later(6.0, engine.stop, 5)
    tally = ended(bench, engine)
    assert tally["answered"] == tally["planned"] >= 600
    assert percentile(tally, 99) > 1.9
    assert percentile(tally, 80) > 0.5
    site = Site(bench, Stalling(bench, 1.0, 3.0, usual=0.005))
    engine = start(bench, [site.ask()], users=10)
    bench.loop.call_later(6.0, engine.stop, 5)
    assert percentile(ended(bench, engine), 99) < 1


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.debug_build
@pytest.mark.parametrize("users", [2, 200])
def test_what_is_unanswered_has_waited(clock, bench, users):
    """Whether a user had time for it or not."""
    site = Site(bench, lambda visitor, request: None)
    engine = start(bench, [site.ask()], users=users, rate=100)
    bench.loop.call_later(0.995, engine.stop, 0.5)
    tally = ended(bench, engine)
    assert tally["planned"] == tally["unanswered"] == 100
    assert tally["begun"] == min(users, 100)
    assert latencies_ns(tally) == pytest.approx(
        [1.495 * SECOND_NS - (99 - n) * 10_000_000 for n in range(100)], rel=0.01, abs=TICKS * SECOND_NS)


@pytest.mark.debug_build
def test_what_was_planned_before_the_stop_is_still_asked(clock, bench):
    """Within the grace, and nothing else is."""
    site = Site(bench, Stalling(bench, 0.5, 1.2))
    engine = start(bench, [site.ask()], users=2, rate=100)
    bench.loop.call_later(0.995, engine.stop, 0.5)
    tally = ended(bench, engine)
    assert tally["planned"] == tally["answered"] == len(site.requests) == 100
    assert (tally["unanswered"], bench.loop.stats().timers) == (0, 0)


def test_stop_at_once(bench):
    site = Site(bench, says(OK))
    engine = start(bench, [site.ask()], users=3, rate=1)
    engine.stop(60)
    tally = ended(bench, engine)
    assert tally["planned"] == tally["answered"] == 1
    assert bench.loop.stats().timers == 0


def test_stop_with_no_grace_and_everything_late(bench):
    """A rate that nobody can have: what is planned is told of all the same."""
    site = Site(bench, says(OK))
    engine = start(bench, [site.ask()], users=2, rate=1e6)
    bench.turn_until(lambda: len(site.requests) > 50)
    engine.stop()
    tally = ended(bench, engine)
    assert tally["unanswered"] > 10
    assert tally["planned"] == tally["answered"] + tally["unanswered"]
    assert tally["elapsed_ns"] * 1e6 / SECOND_NS + 1 >= tally["planned"]


@pytest.mark.debug_build
def test_a_server_that_is_not_there(clock, bench, stage):
    """Each connect that fails is a request that has failed; those that had to wait for it are told of, too."""
    listening = stage.listening()
    address = listening.getsockname()
    listening.close()
    engine = start(bench, [ask(address)], users=2, rate=100)
    bench.loop.call_later(2.995, engine.stop, 0.0)
    tally = ended(bench, engine)
    assert tally["planned"] == 300
    assert tally["failed"] == tally["connect_failures"] == tally["errors"][0][2] > 10
    assert tally["failed"] + tally["unanswered"] == 300
    assert errors(tally) == {("connect", "ECONNREFUSED"): tally["failed"]}


@pytest.mark.debug_build
@pytest.mark.parametrize("number", [0, 20])
def test_the_warm_up_is_not_counted(clock, bench, number):
    """Nor does it use anything up of the number."""
    site = Site(bench, says(OK))
    engine = Engine(bench.loop, [site.ask()], users=5, rate=100, number=number)
    engine.start(warm_up=True)
    bench.loop.call_later(0.995, engine.measure)
    if not number:
        bench.loop.call_later(2.995, engine.stop, 1)
    tally = ended(bench, engine)
    assert tally["planned"] == tally["begun"] == tally["answered"] == (number or 200)
    assert len(site.requests) == 100 + (number or 200)
    assert len(latencies_ns(tally, "lag")) == tally["planned"]


@pytest.mark.debug_build
def test_what_was_planned_in_the_warm_up_and_is_late_is_not_counted(clock, bench):
    """A server that answers nothing until long after the measurement has begun: 100 requests of the warm-up wait."""
    site = Site(bench, Stalling(bench, 0.0, 1.5))
    engine = Engine(bench.loop, [site.ask()], users=2, rate=100)
    engine.start(warm_up=True)
    bench.loop.call_later(0.995, engine.measure)
    bench.loop.call_later(1.995, engine.stop, 1)
    tally = ended(bench, engine)
    assert tally["planned"] == tally["begun"] == tally["answered"] == 100
    assert len(site.requests) == 200
    assert max(latencies_ns(tally)) == pytest.approx(0.5 * SECOND_NS, rel=0.05)


@pytest.mark.parametrize("close", ["half", "abandon", "rst-mid-request", "rst-mid-response"])
def test_misuse_at_a_rate(bench, close):
    site = Site(bench, says(OK), stays=True)
    site.answer = lambda visitor, request: (visitor.write(OK), visitor.close())
    tally = besiege(bench, [site.ask()], users=3, number=20, rate=1000, close=close)
    assert tally["planned"] == 20
    assert tally["answered" if close == "half" else "broken_off"] == 20


def test_several_places_at_a_rate(bench):
    sites = [Site(bench, says(OK)) for _ in range(3)]
    tally = besiege(bench, [site.ask() for site in sites], users=2, number=30, rate=2000, pipeline=3)
    assert tally["answered"] == 30
    assert [len(site.requests) for site in sites] == [10, 10, 10]


# -- random servers ----------------------------------------------------------------------------------------------------

TIMEOUT = 0.03


class Whims:
    """A server that does to its nth request what the nth whim says, and begins anew behind the last."""

    def __init__(self, bench, whims):
        self.bench = bench
        self.whims = whims
        self.count = 0

    def __call__(self, visitor, request):
        whim = self.whims[self.count % len(self.whims)]
        self.count += 1
        getattr(self, whim)(visitor)

    def ok(self, visitor):
        visitor.write(OK)

    def missing(self, visitor):
        visitor.write(answer(b"", 404))

    def late(self, visitor):
        self.bench.loop.call_later(0.005, lambda: visitor.is_closing or visitor.write(OK))

    def never(self, visitor):
        pass

    def last(self, visitor):
        visitor.write(answer(b"bye", headers=b"Connection: close\r\n"))
        visitor.close()

    def until_close(self, visitor):
        visitor.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        visitor.close()

    def ok_and_gone(self, visitor):
        visitor.write(OK)
        visitor.close()

    def closed(self, visitor):
        visitor.close()

    def reset(self, visitor):
        visitor.abort()

    def cut_off(self, visitor):
        visitor.write(OK[:-1])
        visitor.close()

    def torn(self, visitor):
        visitor.write(OK[:20])
        self.bench.loop.call_soon(lambda: visitor.is_closing or visitor.write(OK[20:]))

    def garbage(self, visitor):
        visitor.write(b"500 HTTP/1.1\r\n\r\n")

    def twice(self, visitor):
        visitor.write(OK + OK)

    def interim(self, visitor):
        visitor.write(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)


WHIMS = sorted(name for name in vars(Whims) if not name.startswith("_"))
scenarios = st.fixed_dictionaries({
    "whims": st.lists(st.sampled_from(WHIMS), min_size=1, max_size=8),
    "users": st.integers(1, 4), "pipeline": st.integers(1, 4), "number": st.integers(1, 25),
    "close": st.sampled_from(["fin", "fin", "rst", "half", "abandon", "rst-mid-request", "rst-mid-response"]),
    "keep_alive": st.booleans(), "places": st.integers(1, 2), "stop_after": st.sampled_from([None, None, 0, 3, 20]),
    "grace": st.sampled_from([0.0, 0.02, 1.0]), "warm_up": st.sampled_from([None, None, 0, 5, 30]),
})


@contextlib.contextmanager
def some_clock():
    """The fake one where there is one, else the real one, which advances by itself."""
    if not DEBUG:
        yield SimpleNamespace(advance=lambda seconds: None)
        return
    from epollkit import _operations
    with _operations.fake_clock() as made:
        yield made


def play(scenario, rate):
    with contextlib.ExitStack() as stack:
        clock = stack.enter_context(some_clock())
        loop = stack.enter_context(epollkit.Loop())
        bench = stack.enter_context(Bench(loop))
        sites = [Site(bench, Whims(bench, scenario["whims"]), TCP) for _ in range(scenario["places"])]
        pipelined = scenario["keep_alive"] and scenario["close"] in ("fin", "rst")
        engine = Engine(
            loop, [site.ask() for site in sites], users=scenario["users"], number=scenario["number"], rate=rate,
            pipeline=scenario["pipeline"] if pipelined else 1, keep_alive=scenario["keep_alive"],
            close=scenario["close"], timeout=TIMEOUT, body=b"", seed=1)
        engine.start(warm_up=scenario["warm_up"] is not None)
        for _ in range(scenario["warm_up"] or 0):
            loop.turn(0.001)
        if scenario["warm_up"] is not None:
            clock.advance(1e-9)         # for a moment that is between the two
            engine.measure()
        for _ in range(scenario["stop_after"] or 0):
            loop.turn(0.001)
        if scenario["stop_after"] is not None:
            engine.stop(scenario["grace"])
        tally = ended(bench, engine)
        if scenario["stop_after"] is None:
            assert tally["planned"] == scenario["number"]
            assert tally["unanswered"] == 0
        if scenario["warm_up"] is None:
            asked = sum(len(site.requests) for site in sites)
            assert tally["answered"] <= asked
            assert asked <= tally["begun"] + tally["resent"]


@settings(max_examples=150)
@given(scenarios)
def test_nothing_is_lost_without_a_rate(scenario):
    play(scenario, 0)


@settings(max_examples=150)
@given(scenarios, st.sampled_from([100.0, 3000.0, 1e6]))
def test_nothing_is_lost_at_a_rate(scenario, rate):
    play(scenario, rate if scenario["warm_up"] is None else min(rate, 3000.0))

"""`RateLimit`: never more than it allows in any window, never less than it owes, and the same for everybody. Time is a
number that the tests write down."""
from __future__ import annotations

import heapq
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epollkit import RateLimit, UsageError

SECOND = 10**9
YEAR = 365 * 24 * 3600 * SECOND

rates = st.one_of(st.integers(1, 10**11), st.floats(1, 1e11))
bursts = st.one_of(st.none(), st.integers(1, 10**9))


def limit_of(rate, burst=None):
    """Hypothesis finds bursts that last more than 31 years, which are refused."""
    return RateLimit(rate, None if burst is None else min(burst, int(rate * 1e9)))


def exact_rate(limit):
    """Bytes per nanosecond, as the limit has it: to the thousandth of a byte per second."""
    return Fraction(round(limit.bytes_per_second * 1000), 10**12)


def greedy(limit, now, duration, wanted=1 << 30):
    """One taker that always wants more and asks again when its grant is due: [(time, bytes)]."""
    grants = []
    end = now + duration
    while len(grants) < 200:
        count, due = limit._reserve(now, wanted)
        assert due >= now
        if due > end:
            limit._give_back(count)
            break
        grants.append((due, count))
        now = due
    return grants


def most_above(grants, rate):
    """The most by which any window's bytes exceed what the rate gives for its length: the maximum subarray."""
    most = running = Fraction(0)
    last = grants[0][0] if grants else 0
    for when, count in grants:
        running = max(running - rate * (when - last), Fraction(0)) + count
        most = max(most, running)
        last = when
    return most


# -- arguments ---------------------------------------------------------------------------------------------------------


def test_what_it_says_of_itself():
    limit = RateLimit(1000)
    assert (limit.bytes_per_second, limit.burst) == (1000, 100)
    assert repr(limit) == "<RateLimit bytes_per_second=1000 burst=100>"
    assert RateLimit(2.5).burst == 1
    assert RateLimit(1e9, burst=10.9).burst == 10
    assert RateLimit(10**12).burst == 10**11
    for name in ("bytes_per_second", "burst"):
        with pytest.raises(AttributeError):
            setattr(limit, name, 1)


@pytest.mark.parametrize("wrong", [0, -1, 0.5, float("inf"), float("nan"), 10**13, 10**400, True, "1", None, 1j])
def test_what_is_no_rate(wrong):
    with pytest.raises(UsageError, match=r"^bytes_per_second is a number of bytes from 1 to 10\^12, not "):
        RateLimit(wrong)
    if wrong is not None:
        with pytest.raises(UsageError, match=r"^burst is a number of bytes from 1"):
            RateLimit(1000, wrong)


def test_a_burst_of_more_than_31_years():
    RateLimit(1, 10**9)
    with pytest.raises(UsageError, match="31 years"):
        RateLimit(1, 10**9 + 1)


def test_a_number_that_says_what_it_likes():
    class Liar(float):
        def __le__(self, other):
            return True
        __ge__ = __le__

    with pytest.raises(UsageError):
        RateLimit(Liar("inf"))
    assert type(RateLimit(Liar(5.0)).bytes_per_second) is float


# -- arithmetic --------------------------------------------------------------------------------------------------------


def test_a_burst_goes_at_once_and_then_it_is_the_rate():
    limit = RateLimit(1000, burst=100)
    now = 5 * SECOND
    assert limit._reserve(now, 60) == (60, now)
    assert limit._reserve(now, 40) == (40, now)
    assert limit._reserve(now, 1) == (1, now + SECOND // 1000)
    assert limit._reserve(now, 0) == (0, now + SECOND // 1000)
    assert limit._reserve(now, 500) == (100, now + SECOND // 1000 * 101), "a piece at a time"
    assert limit._reserve(now + SECOND, 100) == (100, now + SECOND), "idle for longer than the burst lasts: full again"
    assert limit._reserve(now + SECOND, 1) == (1, now + SECOND + SECOND // 1000)
    assert limit._reserve(now + SECOND, -5) == (0, now + SECOND + SECOND // 1000)


@pytest.mark.parametrize(("rate", "piece"), [(1, 1), (5000, 500), (41_000, 4096), (10**6, 10_000), (10**8, 1 << 18),
                                             (10**11, 1 << 18)])
def test_how_large_a_piece_is(rate, piece):
    """10 ms' worth, within what is worth a system call and what a stream can use in one turn, and never above the
    burst."""
    assert RateLimit(rate)._reserve(0, 1 << 40)[0] == piece


@given(rates, bursts, st.integers(0, 100 * YEAR))
def test_a_greedy_taker_gets_what_the_rate_gives_and_no_more(rate, burst, start):
    limit = limit_of(rate, burst)
    per_ns = exact_rate(limit)
    grants = greedy(limit, start, 100 * YEAR)
    assert most_above(grants, per_ns) <= limit.burst + per_ns, "to the nanosecond"
    total = 0
    for when, count in grants if limit.burst >= 2 * per_ns else ():     # else the clock is too coarse for the burst
        total += count
        assert when == start or total >= limit.burst + per_ns * (when - start - 1), "granted on the very nanosecond"


@given(rates, bursts, st.lists(st.tuples(st.integers(0, 3 * SECOND), st.integers(0, 1 << 20), st.booleans()),
                               max_size=60))
def test_no_window_has_more_than_the_burst_and_the_rate(rate, burst, steps):
    """A taker that pauses, takes small pieces, and gives some back at once."""
    limit = limit_of(rate, burst)
    now, grants = 0, []
    for pause, wanted, half in steps:
        now += pause
        count, due = limit._reserve(now, wanted)
        assert count == 0 or due >= now
        assert count <= wanted
        if half:
            limit._give_back(count // 2)
            count -= count // 2
        now = max(now, due)
        grants.append((now, count))
    assert most_above(grants, exact_rate(limit)) <= limit.burst + exact_rate(limit), "to the nanosecond"


@pytest.mark.parametrize("rate", [1, 3, 7.7, 1000.001, 999_983, 10**11 - 1, 123_456_789.123])
def test_no_drift_in_a_million_grants(rate):
    """The remainder of each division is kept: after a million of them the time is right to the nanosecond."""
    limit = RateLimit(rate, burst=1)
    total, due = 0, 0
    for _ in range(1_000_000):
        count, due = limit._reserve(0, 1)
        total += count
    exact = (total - 1) / exact_rate(limit)
    assert due == -(-exact.numerator // exact.denominator)


@pytest.mark.parametrize("rate", [1, 1000, 10**11])
def test_years_of_idleness(rate):
    limit = RateLimit(rate)
    now = 0
    for years in (1, 10, 100):
        now += years * YEAR
        count, due = limit._reserve(now, 1 << 40)
        assert (count > 0, due) == (True, now)


def test_a_clock_that_goes_back_gives_nothing_away():
    """Two takers read two clocks, of which one is up to a tick behind."""
    limit = RateLimit(1000, burst=100)
    limit._reserve(SECOND, 100)
    assert limit._reserve(SECOND // 2, 1) == (1, SECOND + SECOND // 1000)
    assert limit._reserve(SECOND, 1) == (1, SECOND + 2 * SECOND // 1000)


def test_debts_beyond_any_time_do_not_overflow():
    """A billion seconds of burst, and grants that nobody waits for: their time stays the last there is."""
    limit = RateLimit(1, burst=10**9)
    due = 0
    for _ in range(1_000_000):
        count, later = limit._reserve(100 * YEAR, 1 << 40)
        assert (count, later >= due) == (4096, True)
        due = later
    assert due < 2**63


# -- giving back -------------------------------------------------------------------------------------------------------


@given(rates, bursts, st.lists(st.integers(0, 1 << 18), min_size=1, max_size=20))
def test_what_is_given_back_at_once_never_happened(rate, burst, sizes):
    used, control = limit_of(rate, burst), limit_of(rate, burst)
    for size in sizes:
        count, _ = used._reserve(SECOND, size)
        used._give_back(count)
    control._reserve(SECOND, 0)
    for size in sizes:
        assert used._reserve(SECOND, size) == control._reserve(SECOND, size)


def test_what_was_not_used_goes_to_the_next():
    limit = RateLimit(1000, burst=100)
    limit._reserve(0, 100)
    assert limit._reserve(0, 100) == (100, 100 * SECOND // 1000)
    limit._give_back(100)               # closed while it waited
    assert limit._reserve(0, 50) == (50, 50 * SECOND // 1000)
    limit._give_back(20)
    assert limit._reserve(0, 1) == (1, 31 * SECOND // 1000)


def test_giving_back_is_exact_to_the_fraction_of_a_nanosecond():
    """Three bytes are a second, two of them not a whole number of nanoseconds: as long as the burst, so due at once."""
    limit = RateLimit(3, burst=2)
    limit._reserve(0, 2)
    assert limit._reserve(0, 1) == (1, 333_333_334)
    limit._give_back(1)
    assert limit._reserve(0, 0) == (0, 0)
    assert limit._reserve(0, 2)[1] == 666_666_667
    assert limit._reserve(10 * SECOND, 2) == (2, 10 * SECOND), "after a pause no fraction of the past is left"


# -- sharing -----------------------------------------------------------------------------------------------------------


def share(limit, appetites, duration, lateness=lambda who: 0):
    """Takers that each want that many bytes at a time and ask again as soon as their grant is due, or a little later:
    what each got in that time, those that came first in the order of the takers."""
    waiting = [(0, who, 0) for who in range(len(appetites))]        # when it comes, who, with how much
    got = [0] * len(appetites)
    while waiting:
        now, who, count = heapq.heappop(waiting)
        if now > duration:
            continue
        got[who] += count
        count, due = limit._reserve(now, appetites[who])
        heapq.heappush(waiting, (due + lateness(who) if due > now else due + 1, who, count))
    return got


@pytest.mark.parametrize("takers", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("rate", [10_000, 10**6, 10**9])
def test_equals_get_equal_shares(takers, rate):
    limit = RateLimit(rate)
    piece = RateLimit(rate)._reserve(0, 1 << 30)[0]
    duration = 200 * takers * piece * SECOND // rate
    got = share(limit, [1 << 30] * takers, duration)
    assert max(got) - min(got) <= 2 * piece
    owed = rate * duration // SECOND
    assert owed - takers * piece <= sum(got) <= owed + limit.burst


@pytest.mark.parametrize("takers", [2, 10, 50])
def test_late_timers_starve_nobody(takers):
    """Deadlines are up to 20 ms late, and later for some than for others. Within the burst that costs no throughput,
    and nobody more than a fair part of it."""
    rate = 10**6
    duration = 100 * SECOND
    got = share(RateLimit(rate), [1 << 30] * takers, duration, lateness=lambda who: 4_000_000 * (who % 6))
    assert min(got) * 1.3 >= max(got)
    assert sum(got) >= 0.99 * rate * duration / SECOND


@pytest.mark.parametrize("others", [1, 9, 49])
def test_who_wants_little_does_not_wait_for_those_who_want_much(others):
    """100 bytes are granted behind one piece of each of the others, and so are the next: its turn comes as often."""
    rate = 10**6
    limit = RateLimit(rate)
    turns = 20
    duration = turns * (others + 1) * 10_000 * SECOND // rate
    got = share(limit, [100] + [1 << 30] * others, duration)
    assert got[0] >= 100 * turns


def test_asking_often_does_not_move_those_who_wait():
    """Somebody who takes grant after grant without waiting for them only gets later ones himself."""
    limit = RateLimit(10**6)
    limit._reserve(0, 1 << 30)
    for _ in range(20):
        limit._reserve(0, 1 << 30)
    count, due = limit._reserve(0, 1000)
    for _ in range(1000):
        limit._reserve(0, 1 << 30)
    assert (count, due) == (1000, (21 * 10_000 + 1000 - limit.burst) * 1000)

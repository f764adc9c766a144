"""The histogram of latencies: against a sorted list, at the edges of its buckets, merged, and written down."""
from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epollkit import UsageError
from epollkit._histogram import Histogram

MICROSECOND, HOUR = 1000, 3600 * 10**9
LAST_NS = 2**42 - 1

times = st.one_of(st.integers(0, 5000), st.integers(0, HOUR), st.integers(0, 2**43),
                  st.builds(lambda bit, near: max(0, (1 << bit) + near), st.integers(0, 43), st.integers(-2, 2)))


def histogram_of(values: list[int]) -> Histogram:
    made = Histogram()
    for value in values:
        made.record(value)
    return made


@given(st.lists(times, min_size=1, max_size=200), st.floats(0, 100))
def test_percentiles_against_a_sorted_list(values, share):
    made = histogram_of(values)
    exact = sorted(values)[max(1, math.ceil(share / 100 * len(values) - 1e-6)) - 1]
    found = made.percentile(share)
    if exact <= LAST_NS:
        assert exact <= found <= min(exact + exact // 1024, max(values)), (exact, found)
    else:
        assert found == max(values)


@given(st.lists(times, max_size=200))
def test_what_is_exact(values):
    made = histogram_of(values)
    assert made.count == len(values) == sum(count for _, _, count in made.items())
    assert made.sum_ns == sum(values)
    assert (made.min_ns, made.max_ns) == ((min(values), max(values)) if values else (0, 0))
    for low, high, count in made.items():
        assert count == sum(low <= min(value, LAST_NS) <= high for value in values)


@given(st.lists(times, min_size=1, max_size=100))
def test_the_standard_deviation_is_that_of_the_values_to_a_thousandth(values):
    values = [min(value, LAST_NS) for value in values]
    mean = sum(values) / len(values)
    exact = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    assert histogram_of(values).stdev_ns == pytest.approx(exact, rel=0.01, abs=max(values) / 1024 + 1)


@given(times)
def test_three_digits_from_a_microsecond_to_an_hour(value):
    (low, high, _), = histogram_of([value]).items()
    if value <= LAST_NS:
        assert low <= value <= high
    if value < 2048:
        assert low == high
    elif value <= HOUR:
        assert (high - low + 1) * 1000 < low * 1.0, "a bucket is wider than a thousandth of what is in it"


def test_buckets_leave_no_gap_and_do_not_overlap():
    """Every bucket's end and its neighbour's beginning fall into different buckets, next to each other."""
    end = -1
    buckets = 0
    while end < LAST_NS:
        (low, high, _), = histogram_of([end + 1]).items()
        assert low == end + 1
        assert histogram_of([high]).items()[0][:2] == (low, high)
        end = high
        buckets += 1
    assert (end, buckets) == (LAST_NS, 33 * 1024)


@given(st.lists(times, max_size=50), st.lists(times, max_size=50), st.lists(times, max_size=50))
def test_merging_is_associative_and_loses_nothing(first, second, third):
    left = histogram_of(first)
    left.merge(histogram_of(second))
    left.merge(histogram_of(third))
    inner = histogram_of(third)
    inner.merge(histogram_of(second))
    inner.merge(histogram_of(first))
    assert left == inner == histogram_of(first + second + third)


@given(st.lists(times, max_size=100))
def test_it_survives_json(values):
    made = histogram_of(values)
    again = Histogram.load(json.loads(json.dumps(made.dump())))
    assert again == made
    again.merge(made)
    assert again.count == 2 * made.count
    again.clear()
    assert again == Histogram()


def test_what_is_longer_than_an_hour_is_neither_lost_nor_cut():
    made = histogram_of([LAST_NS, LAST_NS + 1, 5 * HOUR])
    assert made.count == 3
    assert made.items() == [(made.items()[0][0], LAST_NS, 3)]
    assert made.dump()[3] == 2
    assert made.max_ns == made.percentile(100) == made.percentile(50) == 5 * HOUR
    assert made.sum_ns == 2 * LAST_NS + 1 + 5 * HOUR


def test_percentiles_that_are_no_binary_fractions():
    made = histogram_of(list(range(1, 1001)))
    assert [made.percentile(share) for share in (0, 0.1, 50, 99.9, 99.99, 100)] == [1, 1, 500, 999, 1000, 1000]


def test_an_empty_one():
    made = Histogram()
    assert (made.count, made.sum_ns, made.min_ns, made.max_ns, made.stdev_ns, made.percentile(99)) == (0,) * 6
    assert made.items() == [] and made.dump() == [0, 0, 0, 0, []]


def test_how_many_are_longer():
    made = histogram_of([10, 2000, 3000, 10**9])
    assert [made.count_above(limit) for limit in (0, 10, 1999, 2000, 10**8, 10**9)] == [4, 3, 3, 2, 1, 0]


@pytest.mark.parametrize("value", [-1, 1.5, "1", None, True, 2**63])
def test_what_is_no_time(value):
    with pytest.raises(UsageError, match="a time in nanoseconds is a whole number"):
        Histogram().record(value)


@pytest.mark.parametrize("share", [-0.1, 100.1, math.nan])
def test_what_is_no_percentile(share):
    with pytest.raises(UsageError, match="from 0 to 100"):
        Histogram().percentile(share)


@pytest.mark.parametrize("dumped", [None, [], [1, 2, 3, 4], [0, 0, 0, 0, [[33 * 1024, 1]]], [0, 0, 0, 0, [[-1, 1]]],
                                    [0, 0, 0, 0, [[1]]], [0, 0, -5, 0, []]])
def test_what_is_no_histogram(dumped):
    with pytest.raises(UsageError):
        Histogram.load(dumped)

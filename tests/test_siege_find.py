"""The search of a rate, against servers that are functions: it converges, it ends, and it says if there is none."""
from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epollkit import UsageError
from epollkit._histogram import Histogram
from epollkit.siege import Report, Scenario, find
from epollkit.siege import tally as tally_module
from epollkit.siege.assertions import Assertion
from epollkit.siege.find import HIGHEST_RATE, Probe, judged, search


def server(holds):
    """A probe of a server that holds the assertion at the rates for which holds(rate) says so."""
    def probe(rate):
        return Probe(rate, rate, 0.001, held := bool(holds(rate)), "" if held else "it was slow")
    return probe


@given(st.floats(1.0, 9e6), st.floats(0.001, 1e7))
def test_it_finds_the_knee_to_within_5_percent_from_wherever_it_starts(knee, start):
    found = search("p99<5ms", server(lambda rate: rate <= knee), start)
    assert knee / 1.05 <= found.rate_per_s * (1 + 1e-9)
    assert found.rate_per_s <= knee
    assert found.why == ""
    assert found.probes[-1].confirms and found.probes[-1].held
    assert len(found.probes) < 60


def test_it_doubles_and_then_halves_the_gap():
    found = search("p99<5ms", server(lambda rate: rate <= 1000.0))
    rates = [round(probe.rate_per_s) for probe in found.probes]
    assert rates[:5] == [100, 200, 400, 800, 1600]
    assert rates[5] == round((800 * 1600) ** 0.5)
    assert [probe.held for probe in found.probes[:5]] == [True] * 4 + [False]
    assert found.line() == f"{found.rate_per_s:,.1f} requests/s is the highest rate that holds p99<5ms"


def test_each_probe_is_told_as_it_is_made():
    told: list[Probe] = []
    found = search("p99<5ms", server(lambda rate: rate <= 150), on_probe=told.append)
    assert tuple(told) == found.probes
    assert told[0].line() == "       100.0 requests/s: 100.0 answered a second; held"
    assert told[1].line() == "       200.0 requests/s: 200.0 answered a second; did not hold: it was slow"
    assert told[-1].line().endswith("held again")


def test_it_says_so_when_not_even_the_lowest_rate_holds():
    found = search("p99<5ms", server(lambda rate: False))
    assert found.rate_per_s is None
    assert found.line() == "No rate was found that holds p99<5ms: not even 1 a second does."
    assert found.probes[-1].rate_per_s == 1.0
    assert len(found.probes) == 8


def test_a_start_below_the_lowest_rate_is_tried_alone():
    found = search("p99<5ms", server(lambda rate: False), 0.5)
    assert (found.why, len(found.probes)) == ("not even 0.5 a second does", 1)


def test_it_ends_where_no_server_has_an_end():
    found = search("p99<5ms", server(lambda rate: True))
    assert (found.rate_per_s, found.why) == (HIGHEST_RATE, "nothing higher was tried")
    assert "(nothing higher was tried)" in found.line()


def test_what_holds_once_and_not_again_is_not_the_answer():
    """The next lower rate, by 5 %, is tried until one holds twice."""
    tries: dict[float, int] = {}

    def holds(rate):
        tries[rate] = tries.get(rate, 0) + 1
        return rate < 900 or (rate <= 1000 and tries[rate] == 1)

    found = search("p99<5ms", server(holds), 1000.0)
    assert found.rate_per_s == pytest.approx(1000 / 1.05**3)
    assert [(round(probe.rate_per_s), probe.held, probe.confirms) for probe in found.probes[-7:]] == [
        (1000, False, True), (952, True, False), (952, False, True), (907, True, False), (907, False, True),
        (864, True, False), (864, True, True)]


def test_a_machine_that_is_too_noisy_for_an_answer_is_told():
    calls = itertools.count()
    found = search("p99<5ms", server(lambda rate: next(calls) == 0), 100.0)
    assert found.rate_per_s is None
    assert found.line() == ("No rate was found that holds p99<5ms: those that held once did not hold again, so the "
                            "machine is too busy with something else.")
    assert len(found.probes) < 30


@given(st.integers(0, 2**32))
def test_it_ends_whatever_the_probes_say(seed):
    coin = random.Random(seed)
    assert len(search("p99<5ms", server(lambda rate: coin.random() < 0.5)).probes) < 60


def test_the_table_is_data():
    made = search("p99<5ms", server(lambda rate: rate <= 150)).as_json()
    assert set(made) == {"assertion", "rate_per_s", "why", "probes"}
    assert made["probes"][0] == {"rate_per_s": 100.0, "answered_per_s": 100.0, "value": 0.001, "held": True, "why": "",
                                 "confirms": False}


# -- what a run says of its rate ---------------------------------------------------------------------------------------


def report(latency_s=0.004, lag_s=0.0001, assertions=(), **counts):
    """Of a run of a second in which 1000 requests were planned; counts differ from that."""
    histograms = {"latency": Histogram(), "lag": Histogram(), "connect": Histogram()}
    for _ in range(1000):
        histograms["latency"].record(round(latency_s * 1e9))
        histograms["lag"].record(round(lag_s * 1e9))
    tally = {**dict.fromkeys(tally_module.SUMS, 0), "planned": 1000, "begun": 1000, "answered": 1000,
             "successful": 1000, "statuses": {}, "errors": [], "elapsed_ns": 10**9, **counts,
             **{name: histogram.dump() for name, histogram in histograms.items()}}
    return Report.from_tallies(Scenario("http://a/", rate=1000.0, seconds=1.0, assertions=assertions), [tally])


@pytest.mark.parametrize(("figures", "why"), [
    ({}, ""),
    ({"latency_s": 0.006}, "it was 6.000 ms"),
    ({"failed": 10, "successful": 990}, ""),
    ({"failed": 8, "unanswered": 3, "successful": 989}, "11 of 1000 requests failed"),
    ({"begun": 990}, ""),
    ({"begun": 989}, "11 of 1000 planned requests could not be sent"),
    ({"lag_s": 0.006}, "requests were sent late, by up to 6.000 ms (p99)"),
    ({"assertions": ["max<1ms", "mean<1s"]}, "max<1ms failed"),
])
def test_a_rate_holds_only_if_it_was_sent_and_served(figures, why):
    probe = judged(report(**figures), Assertion.parse("p99<5ms"), 1000.0)
    assert (probe.why, probe.held) == (why, not why)
    assert (probe.rate_per_s, probe.answered_per_s) == (1000.0, 1000.0)


def test_a_run_that_answered_nothing_holds_nothing():
    nothing = {name: Histogram().dump() for name in ("latency", "lag", "connect")}
    probe = judged(report(answered=0, successful=0, planned=0, begun=0, **nothing), Assertion.parse("p99<5ms"), 1.0)
    assert (probe.held, probe.why) == (False, "nothing was answered")


@pytest.mark.parametrize("assertion", ["failed==0", "unanswered==0", "timed_out<1", "errors<=0"])
def test_a_run_that_asked_nothing_holds_nothing(assertion):
    """So short that nothing was planned within it."""
    nothing = {name: Histogram().dump() for name in ("latency", "lag", "connect")}
    probe = judged(report(answered=0, successful=0, planned=0, begun=0, **nothing), Assertion.parse(assertion), 1.0)
    assert (probe.held, probe.why) == (False, "nothing was asked")


def test_a_count_is_told_as_one():
    probe = judged(report(failed=5, successful=995), Assertion.parse("failed==0"), 1000.0)
    assert (probe.held, probe.why, probe.value) == (False, "it was 5", 5)


@pytest.mark.parametrize(("assertion", "options", "why"), [
    ("p99<5", {}, "'p99<5': p99 is a time and needs a unit, us, ms or s: p99<5ms"),
    ("rate>5", {}, "find searches the highest rate that holds something else, like p99<5ms"),
    ("p99<5ms", {"number": 5}, "find tries one rate after the other, each for some seconds, so number has no "
                               "meaning"),
])
def test_what_can_not_be_searched_for_is_explained(assertion, options, why):
    with pytest.raises(UsageError) as caught:
        find.find(assertion, Scenario("http://a/", seconds=1.0, **options))
    assert str(caught.value) == why

"""`--assert`: what is understood, what is refused, and when it holds."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tallies import MS, report, tally

from epollkit import UsageError
from epollkit.siege.assertions import Assertion


@pytest.mark.parametrize(("text", "expected"), [
    ("p99<5ms", ("p99", "<", 0.005, "s")),
    ("p99.9<=20ms", ("p99.9", "<=", 0.02, "s")),
    ("p50 < 300us", ("p50", "<", 0.0003, "s")),
    ("p0<1µs", ("p0", "<", 0.000001, "s")),
    ("p100<1.5s", ("p100", "<", 1.5, "s")),
    (" max<1s ", ("max", "<", 1.0, "s")),
    ("mean<=0.7ms", ("mean", "<=", 0.0007, "s")),
    ("rate>10000", ("rate", ">", 10000.0, "")),
    ("failed==0", ("failed", "==", 0.0, "")),
    ("unanswered<=3", ("unanswered", "<=", 3.0, "")),
    ("timed_out==0", ("timed_out", "==", 0.0, "")),
    ("availability>=99.9", ("availability", ">=", 99.9, "%")),
    ("availability>=99.9%", ("availability", ">=", 99.9, "%")),
    ("errors<1%", ("errors", "<", 1.0, "%")),
    ("errors<10", ("errors", "<", 10.0, "")),
])
def test_what_is_understood(text: str, expected: tuple[str, str, float, str]):
    parsed = Assertion.parse(text)
    assert (parsed.metric, parsed.relation, parsed.limit, parsed.unit) == expected
    assert parsed.text == text.strip()


@pytest.mark.parametrize(("text", "complaint"), [
    ("", "written like"), ("p99", "written like"), ("p99<", "written like"), ("<5ms", "written like"),
    ("p99=5ms", "written like"), ("p99!=5ms", "written like"), ("p99<-5ms", "written like"),
    ("p99<1e3ms", "written like"), ("p99<5ms;max<1s", "written like"), ("p99<nan", "written like"),
    ("p99<5ms\np50<1ms", "written like"), (None, "written like"), (5, "written like"), ("p99<٣ms", "written like"),
    ("p99<5", "needs a unit"), ("p99<5h", "needs a unit"), ("max<5%", "needs a unit"),
    ("p101<5ms", "there is no 'p101'"), ("p99.<5ms", "there is no 'p99.'"), ("p<5ms", "there is no 'p'"),
    ("latency<5ms", "there is no 'latency'"), ("rate>5ms", "a plain number"), ("failed<1%", "a plain number"),
    ("availability>=1s", "a percentage"), ("errors<1s", "a percentage"),
])
def test_what_is_refused(text: object, complaint: str):
    with pytest.raises(UsageError, match=complaint):
        Assertion.parse(text)       # type: ignore[arg-type]


@given(st.text(max_size=20))
def test_any_text_is_understood_or_refused(text: str):
    try:
        assert Assertion.parse(text).text == text.strip()
    except UsageError:
        pass


TEN = tally([MS * number for number in range(1, 11)], successful=8, failed=3, unexpected=2, unanswered=1, timed_out=1)


@pytest.mark.parametrize(("text", "value", "held"), [
    ("p50<=5.01ms", 0.005, True), ("p50<5ms", 0.005, False), ("p90<10ms", 0.009, True),
    ("max==10ms", 0.01, True), ("max<10ms", 0.01, False), ("mean<=5.5ms", 0.0055, True), ("mean<5.5ms", 0.0055, False),
    ("rate>=1", 1.0, True), ("rate>1", 1.0, False),
    ("failed==3", 3, True), ("failed<3", 3, False), ("errors==4", 4, True), ("errors<=3", 4, False),
    ("errors<34%", 100 / 3, True), ("errors<33%", 100 / 3, False), ("unanswered==0", 1, False),
    ("timed_out>0", 1, True), ("availability>66", 200 / 3, True), ("availability>=67", 200 / 3, False),
])
def test_what_holds(text: str, value: float, held: bool):
    """Ten answers in ten seconds, two of them unexpected; another was not there in time, another at the end."""
    made = report(TEN, assertions=[text])
    [judged] = made.assertions
    assert judged["text"] == text
    assert judged["value"] == pytest.approx(value, rel=1e-3)
    assert judged["held"] is made.held is held


def test_one_that_failed_is_enough():
    made = report(TEN, assertions=["p50<1s", "failed==0", "max<1s"])
    assert [assertion["held"] for assertion in made.assertions] == [True, False, True]
    assert not made.held


def test_without_assertions_all_is_well():
    assert report(TEN).held


@pytest.mark.parametrize("text", ["p99<1s", "p99>0s", "max<1s", "mean<1s", "availability>=0", "errors<1%"])
def test_nothing_answered_proves_nothing(text: str):
    made = report(tally(), assertions=[text])
    assert made.assertions == [{"text": text, "value": None, "held": False}]


def test_what_was_given_up_is_no_answer():
    """Its time is in the histogram, and yet there is no latency that could hold."""
    made = report({**tally([MS]), "answered": 0, "successful": 0, "failed": 1, "statuses": {}},
                  assertions=["p99<1s", "failed==0", "rate>=0"])
    assert [assertion["held"] for assertion in made.assertions] == [False, False, True]

"""The report of a siege: tallies put together, its figures, its summary beside the real siege's, its JSON."""
from __future__ import annotations

import bisect
import json
import math
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tallies
from hypothesis import given
from hypothesis import strategies as st
from tallies import MS, SAMPLE, SECOND, eventful, histogram, interval, report, tally
from wire import Served

import epollkit
from epollkit._siege import Engine
from epollkit.siege import ports
from epollkit.siege.summary import MOST_KINDS, duration, floored
from epollkit.siege.tally import HISTOGRAMS, SUMS, Timeline, merge
from epollkit.siege.urls import Target

SCHEMA = json.loads((Path(__file__).resolve().parent.parent / "docs" / "siege-report.schema.json").read_text())

counts = st.integers(0, 10**6)
some_tallies = st.fixed_dictionaries({
    **dict.fromkeys(SUMS, counts), "elapsed_ns": counts,
    "statuses": st.dictionaries(st.sampled_from(["200", "404", "503"]), counts),
    "errors": st.lists(st.tuples(st.sampled_from(["read", "connect"]), st.sampled_from(["closed", "EPIPE"]),
                                 st.integers(1, 9)).map(list), max_size=4),
    **dict.fromkeys(HISTOGRAMS, st.lists(st.integers(0, 10**13), max_size=5).map(
        lambda times: histogram(times).dump())),
})


class TestMerge:
    @given(some_tallies, some_tallies, some_tallies)
    def test_neither_order_nor_grouping_matters(self, a: Any, b: Any, c: Any):
        whole = merge([a, b, c])
        assert merge([merge([a, b]), c]) == merge([a, merge([b, c])]) == merge([c, a, b]) == whole
        assert json.loads(json.dumps(whole)) == whole

    @given(some_tallies)
    def test_nothing_added_is_nothing_changed(self, a: Any):
        assert merge([merge([]), a]) == merge([a, merge([])]) == merge([a]) == merge([merge([a])])

    def test_numbers_add_up_and_time_does_not(self):
        a, b = tally([MS] * 3, elapsed_ns=SECOND, open_peak=5), tally([2 * MS], elapsed_ns=2 * SECOND, open_peak=7)
        whole = merge([a, b])
        assert (whole["answered"], whole["elapsed_ns"], whole["statuses"]) == (4, 2 * SECOND, {"200": 4})
        assert whole["open_peak"] == 12         # at most: they need not have peaked together
        assert whole["latency"] == histogram([MS] * 3 + [2 * MS]).dump()

    def test_an_error_told_twice_is_counted_twice(self):
        assert merge([tally(errors=[["read", "EPIPE", 1], ["read", "EPIPE", 2]])])["errors"] == [["read", "EPIPE", 3]]


    def test_the_engine_counts_just_that(self, loop: epollkit.Loop):
        """And its intervals are what timelines are made of here."""
        engine = Engine(loop, [(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", ("127.0.0.1", 1), None, None, False)], users=1,
                        number=1)
        assert set(engine.tally()) == set(merge([]))
        assert merge([{**engine.tally(), "elapsed_ns": 0}]) == merge([])
        assert set(engine.interval()) == set(interval())


class TestTimeline:
    def test_rows_of_two_workers(self):
        timeline = Timeline(2)
        timeline.add(interval(answered=300, open=5, p50_ns=MS, p99_ns=7 * MS, max_ns=8 * MS), 0.25, 0)
        assert timeline.whole_rows() == []      # the other one has something to say of it
        timeline.add(interval(answered=100, open=6, p50_ns=5 * MS, p99_ns=6 * MS, max_ns=9 * MS, failed=2), 0.26, 1)
        [row] = timeline.whole_rows()
        assert (row.answered, row.failed, row.open, row.t_s) == (400, 2, 11, 0.26)
        assert row.p50_s == pytest.approx(0.002)
        assert (row.p99_s, row.max_s) == (0.007, 0.009)
        assert row.rate_per_s == pytest.approx(400 / 0.26)

    def test_a_worker_that_ended_is_not_waited_for(self):
        timeline = Timeline(2)
        timeline.add(interval(), 0.25, 0)
        timeline.end(1)
        assert len(timeline.whole_rows()) == 1
        timeline.end(0)
        assert len(timeline.whole_rows()) == 1

    def test_nothing_answered_has_no_latency(self):
        timeline = Timeline()
        timeline.add(interval(answered=0, p50_ns=0, p99_ns=0, max_ns=0), 0.25)
        assert (timeline.rows()[0].p50_s, timeline.rows()[0].p99_s, timeline.rows()[0].max_s) == (None, None, None)

    @given(st.lists(st.integers(0, 2), max_size=200), st.integers(2, 9))
    def test_a_long_run_keeps_its_sums_and_few_rows(self, who: list[int], most_rows: int):
        """Three workers, each at its own pace."""
        timeline = Timeline(3, most_rows)
        told = [0, 0, 0]
        for worker in who:
            told[worker] += 1
            timeline.add(interval(answered=worker + 1, failed=1), 0.25 * told[worker], worker)
        rows = timeline.rows()
        assert len(rows) <= most_rows
        assert sum(row.answered for row in rows) == sum(worker + 1 for worker in who)
        assert sum(row.failed for row in rows) == len(who)
        assert [row.t_s for row in rows] == sorted(row.t_s for row in rows)
        for worker in range(3):
            timeline.end(worker)
        assert timeline.whole_rows() == rows

    def test_the_sliver_at_the_end_is_no_row(self):
        """Its connections are closed, and a rate of nothing in a thousandth of a second says nothing."""
        timeline = Timeline()
        timeline.add(interval(answered=100, open=8), 0.25, 0, SAMPLE)
        timeline.add(interval(answered=5, open=0, max_ns=70 * MS), 0.251, 0, {**SAMPLE, "cpu_percent": 0.0})
        [row] = timeline.rows()
        assert (row.answered, row.open, row.server, row.t_s, row.max_s) == (105, 8, SAMPLE, 0.251, 0.07)
        assert len(timeline.whole_rows()) == 1
        timeline.add(interval(answered=10, open=0), 0.35)
        assert [(row.answered, row.open) for row in timeline.rows()] == [(105, 8), (10, 0)]

    def test_a_run_that_is_over_at_once_has_a_row(self):
        timeline = Timeline()
        timeline.add(interval(), 0.001)
        assert [row.answered for row in timeline.whole_rows()] == [100]

    def test_what_the_server_used_is_the_latest(self):
        timeline = Timeline(1, 2)
        for index in range(4):
            timeline.add(interval(open=index), 0.25 * (index + 1), 0, {**SAMPLE, "fds": index})
        assert [(row.open, row.server and row.server["fds"]) for row in timeline.rows()] == [(1, 1), (3, 3)]


class TestFigures:
    def test_what_is_computed(self):
        made = report(tally([2 * MS] * 900, [MS] * 4, successful=890, failed=20, unexpected=10, unanswered=90,
                            body_bytes=5000, connections=4, connected_ns=35 * SECOND, open_peak=4),
                      usage=[tallies.USAGE, {"cpu_user_s": 1.0, "cpu_system_s": 0.05, "fds_peak": 41}])
        assert (made.transactions, made.successful, made.failed, made.unanswered) == (900, 890, 20, 90)
        assert made.requests == 1000
        assert made.availability_percent == pytest.approx(89.0)
        assert made.elapsed_s == 10.0
        assert (made.transaction_rate_per_s, made.throughput_bytes_per_s) == (90.0, 500.0)
        assert made.response_time_s == made.shortest_s == made.longest_s == 0.002
        assert made.concurrency == pytest.approx(0.18)
        assert made.effective_concurrency == pytest.approx(3.5)
        assert made.lag_s is None
        assert made.connect_s["max"] == 0.001
        own = made.generator
        assert (own["processes"], own["cpu_user_s"], own["cpu_system_s"], own["fds_peak"]) == (2, 1.25, 0.55, 41)
        assert own["cpu_percent"] == pytest.approx(18.0)
        assert own["cpu_us_per_request"] == pytest.approx(2000.0)
        assert not own["was_the_limit"]

    @given(st.lists(st.integers(1000, 3600 * SECOND), min_size=1, max_size=300))
    def test_percentiles_against_a_sorted_list(self, times_ns: list[int]):
        made, ordered = report(tally(times_ns)), sorted(times_ns)
        for percent in (50, 75, 90, 99, 99.9, 99.99):
            exact = ordered[math.ceil(percent / 100 * len(ordered) - 1e-9) - 1]
            assert exact / 1e9 <= made.latency_s[f"p{percent:g}"] <= exact * 1.001 / 1e9
            assert made.percentile(percent) == made.latency_s[f"p{percent:g}"]

    @given(st.lists(st.integers(1000, 10 * SECOND), min_size=1, max_size=300))
    def test_the_spectrum_counts_what_took_at_most_so_long(self, times_ns: list[int]):
        made, ordered = report(tally(times_ns)), sorted(times_ns)
        assert made.spectrum[0][0] == 0.0
        assert made.spectrum[-1] == [100.0, ordered[-1] / 1e9, len(ordered)]
        assert made.spectrum == sorted(made.spectrum)
        for percent, seconds, count in made.spectrum:
            assert count == bisect.bisect_right(ordered, round(seconds * 1e9))
            assert count >= percent / 100 * len(ordered) - 1e-6

    def test_a_million_requests_have_a_short_spectrum(self):
        dump = histogram([MS]).dump()
        dump[4][0][1] = 10**6
        assert len(report(tally(latency=dump)).spectrum) < 120

    def test_more_than_nine_tenths_of_its_cores_is_the_limit(self):
        busy = {"cpu_user_s": 4.0, "cpu_system_s": 5.1, "fds_peak": 9}
        made = report(tally([MS]), usage=[busy])
        assert made.generator["was_the_limit"]
        assert "WARNING: the generator was the limit: it used 91 % CPU on 1 core\n" in made.summary()
        assert "WARNING" not in report(tally([MS]), usage=[{**busy, "cpu_system_s": 4.9}]).summary()

    def test_of_two_processes_on_one_core_too(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
        made = report(tally([MS]), usage=[{"cpu_user_s": 4.0, "cpu_system_s": 0.6, "fds_peak": 9}] * 2)
        assert (made.generator["cores"], made.generator["was_the_limit"]) == (1, True)

    def test_nothing_happened(self):
        made = report()
        assert (made.requests, made.availability_percent, made.spectrum, made.elapsed_s) == (0, 0.0, [], 0.0)
        assert set(made.latency_s.values()) == {None}
        assert made.summary().startswith("Transactions:\t\t           0 hits\nAvailability:\t\t        0.00 %\n")
        assert "Latency" not in made.summary()
        jsonschema.validate(made.as_json(), SCHEMA, jsonschema.Draft202012Validator)


class TestSummary:
    def test_every_line(self):
        """What it prints as a whole; numbers of this machine aside."""
        text = eventful().summary()
        lines = [line for line in text.splitlines() if not line.startswith(("Descriptors", "Local ports"))]
        assert lines == EVENTFUL.strip("\n").splitlines()

    def test_a_quiet_run_is_short(self):
        text = report(tally([MS])).summary()
        for word in ("Errors", "Unanswered", "Timed out", "Broken off", "Assertions", "WARNING", "Server", "lag"):
            assert word not in text
        assert text.endswith("\n")
        assert "\n\n\n" not in text

    def test_errors_are_bounded_most_frequent_first(self):
        found = [["read", f"E{number}", number] for number in range(1, MOST_KINDS + 4)]
        lines = report(tally(errors=found)).summary().splitlines()
        first = lines.index("Errors") + 1
        shown = [line.split() for line in lines[first:first + MOST_KINDS + 1]]
        assert shown[0] == ["read", f"E{MOST_KINDS + 3}", str(MOST_KINDS + 3)]
        assert shown[-1] == ["3", "more", "kinds", str(1 + 2 + 3)]

    def test_one_failure_in_a_million_is_not_100_percent(self):
        assert floored(99.9999) == "99.99"
        assert floored(100.0) == "100.00"
        whole = tally([MS], answered=10**6, successful=10**6, failed=1)
        assert "Availability:\t\t       99.99 %\n" in report(whole).summary()

    @pytest.mark.parametrize(("seconds", "text"), [
        (None, "-"), (0.0, "0.00 us"), (0.0000012345, "1.23 us"), (0.0000999, "99.9 us"), (0.0009994, "999 us"),
        (0.0009996, "1.00 ms"), (0.00999, "9.99 ms"), (0.0123, "12.3 ms"), (0.5, "500 ms"), (0.99949, "999 ms"),
        (0.9996, "1.00 s"), (12.34, "12.3 s"), (3600.0, "3600 s")])
    def test_durations_have_three_digits(self, seconds: float | None, text: str):
        assert duration(seconds) == text

    def test_what_runs_short_is_said(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(ports, "local_ports", lambda: 100)
        monkeypatch.setattr(ports, "in_time_wait", iter([1000, 1080]).__next__)
        monkeypatch.setattr(ports, "fd_limit", lambda: 41)
        text = report(tally([MS], open_peak=20), head_room=ports.HeadRoom()).summary()
        assert "Descriptors: 40 of 41 in a process\nLocal ports: 100 of 100\n" in text
        assert "WARNING: descriptors ran short: 40 of 41 were taken\n" in text
        assert "WARNING: local ports ran short: 100 of 100 were taken\n" in text

    def test_a_server_that_ended_is_said(self):
        gone = {**tallies.WATCHED, "ended_after_s": 1.5}
        text = report(tally([MS]), watched=gone).summary()
        assert "Server 77 ended after 1.5 s\n" in text
        assert "WARNING: the server's process ended 1.5 s after the watch began\n" in text


EVENTFUL = """
Transactions:\t\t        4010 hits
Availability:\t\t       98.59 %
Elapsed time:\t\t       10.00 secs
Data transferred:\t        7.00 MB
Response time:\t\t        0.01 secs
Transaction rate:\t      401.00 trans/sec
Throughput:\t\t        0.70 MB/sec
Concurrency:\t\t        2.70
Successful transactions:        3990
Failed transactions:\t          50
Longest transaction:\t        0.70
Shortest transaction:\t        0.00

Latency          request     connect         lag
  p50            5.00 ms     1.00 ms     10.0 us
  p75            7.00 ms     2.00 ms
  p90            9.00 ms     2.00 ms
  p99            9.00 ms     2.00 ms     90.0 us
  p99.9           700 ms     2.00 ms
  p99.99          700 ms     2.00 ms
  max             700 ms     2.00 ms     90.0 us

Statuses
  200                                  3990
  503                                    20
Errors
  connect ECONNREFUSED                   20
  expect 503                             20
  read ECONNRESET                         6
  first-byte timeout                      4
Unanswered at the end:                    7
Timed out:                                4
Broken off on purpose:                    3
Reconnects:                               5
Back-offs:                                2

Generator: 8 % CPU in 1 process, 0.25 s user, 0.50 s system, 187.0 us per request
Connections: 7.9 open on average, 8 at most, 30 established, 20 failed
Server 77: 80 % CPU on average, 96 % at most; RSS 30.0 to 31.0 MiB, 32.0 at most; descriptors 12 to 12, 76 at most
WARNING: 2 of 4057 requests were planned and never sent

Assertions
  FAILED   p99<5ms                  9.00 ms
  held     failed<1000              50
"""


@pytest.mark.peer("siege")
def test_the_block_has_siege_s_own_labels_units_and_columns(peer: Callable[[str], str], tmp_path: Path):
    """Line by line, whatever the digits are: it is what scripts read."""
    (tmp_path / "rc").write_text("verbose = false\njson_output = false\nlogging = false\n")
    with Served("--port", "0", directory=tmp_path) as served:
        done = subprocess.run([peer("siege"), f"--rc={tmp_path / 'rc'}", "-b", "-c", "2", "-r", "5", served.url],
                              capture_output=True, text=True, env={"HOME": str(tmp_path)}, timeout=60)
    printed = done.stdout + done.stderr
    theirs = printed[printed.index("Transactions:"):].rstrip().splitlines()
    ours = report(tally([MS] * 10)).summary().partition("\n\n")[0].splitlines()
    assert [shape(line) for line in ours] == [shape(line) for line in theirs]


def shape(line: str) -> tuple[str, int, str]:
    """Label and tabs; how wide the number is with its blanks; its decimals as zeros, and the unit."""
    found = re.fullmatch(r"([A-Za-z ]+:\t*)( *[0-9]+)((?:\.[0-9]+)?.*)", line)
    assert found, line
    return found[1], len(found[2]), re.sub("[0-9]", "0", found[3])


class TestJson:
    def reports(self) -> list[dict[str, Any]]:
        """All that a report may have in it, in some of them."""
        return [eventful().as_json(),
                report(tally([MS]), targets=[Target("http://127.0.0.1/", "POST", b"\xff", ["X-A: b"])],
                       sources=["127.0.0.2"], expect_status="2xx", expect_body=b"\xff").as_json()]

    def test_reports_are_what_the_schema_says(self):
        jsonschema.Draft202012Validator.check_schema(SCHEMA)
        for made in self.reports():
            jsonschema.validate(json.loads(json.dumps(made)), SCHEMA, jsonschema.Draft202012Validator)

    def test_every_key_is_in_the_schema_and_every_key_of_the_schema_is_there(self):
        produced = {path for made in self.reports() for path in keys_of(made)}
        assert produced == set(keys_of_schema(SCHEMA))

    def test_nothing_else_may_be_in_it_and_nothing_may_be_missing(self):
        """Of every object with named keys: all are required, no other is allowed, each is described."""
        for schema in objects_of(SCHEMA):
            assert schema["required"] == list(schema["properties"])
            assert schema["additionalProperties"] is False
            assert "description" in schema

    def test_attributes_are_named_as_keys(self):
        made = eventful()
        for name, value in made.as_json().items():
            assert getattr(made, name) == value

    def test_the_order_is_the_schema_s(self):
        assert list(eventful().as_json()) == list(SCHEMA["properties"])

    def test_passwords_are_not_passed_on(self):
        made = report(tally([MS]), targets="http://me:secret@127.0.0.1/", headers=["Cookie: secret"])
        assert "secret" not in json.dumps(made.as_json())


BY_NAME = (".statuses",)        # keys that are values: a status


def keys_of(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict) and path not in BY_NAME:
        for name, inner in value.items():
            yield f"{path}.{name}"
            yield from keys_of(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from keys_of(inner, f"{path}[]")


def resolved(schema: Any) -> Any:
    return {**schema, **SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")]} if "$ref" in schema else schema


def keys_of_schema(schema: Any, path: str = "") -> Iterator[str]:
    schema = resolved(schema)
    for inner in schema.get("oneOf", []):
        yield from keys_of_schema(inner, path)
    for name, inner in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from keys_of_schema(inner, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from keys_of_schema(schema["items"], f"{path}[]")


def objects_of(schema: Any) -> Iterator[Any]:
    if isinstance(schema, dict):
        if "properties" in schema and isinstance(schema.get("required"), list):
            yield schema
        for inner in schema.values():
            yield from objects_of(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from objects_of(inner)

"""What one sees of a siege while it runs: on a terminal, and in a pipe."""
from __future__ import annotations

import io
import re
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tallies import MS, SAMPLE, interval, scenario

from epollkit.siege.tally import Timeline
from epollkit.siege.view import ASCII_SPARKS, SPARKS, View, sparkline


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def run(view: View, timeline: Timeline, seconds: int, **counted: int) -> None:
    """So long, at four intervals a second."""
    begun = timeline.ticks[0]
    for index in range(begun, begun + 4 * seconds):
        timeline.add(interval(**counted), 0.25 * (index + 1), 0, SAMPLE)
        view.show(timeline)


class TestPipe:
    def lines(self, so_long: int, **asked: object) -> list[str]:
        stream, timeline = io.StringIO(), Timeline(most_rows=10_000)
        with View(stream, scenario(**asked)) as view:
            run(view, timeline, so_long, failed=1)
        return stream.getvalue().splitlines()

    def test_a_plain_line_a_second(self):
        lines = self.lines(10, warmup=2.0)
        assert lines[0] == "http://127.0.0.1:8000/: 8 users, warming up for 2 s"
        assert lines[1] == "0 s, 2%, 400 requests/s, p99 4.00 ms, 1 failed, 8 open, server 80 % CPU"
        assert lines[2] == "1 s, 10%, 400 requests/s, p99 4.00 ms, 4 failed, 8 open, server 80 % CPU"
        assert len(lines) == 1 + 1 + 10

    def test_ten_seconds_when_it_is_long(self):
        lines = self.lines(60, seconds=600.0)
        assert [line.split(",")[0] for line in lines[1:]] == ["0 s", *(f"{time} s" for time in range(10, 61, 10))]

    def test_less_often_when_it_turns_out_to_be_long(self):
        lines = self.lines(90, seconds=None, number=100_000)
        assert [line.split(",")[0] for line in lines[-4:]] == ["61 s", "70 s", "80 s", "90 s"]

    def test_no_control_codes_whatever_the_environment_says(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("FORCE_COLOR", "1")
        assert all(line.isprintable() for line in self.lines(3))

    def test_nothing_answered_yet(self):
        stream, timeline = io.StringIO(), Timeline()
        with View(stream, scenario()) as view:
            view.show(timeline)
            timeline.add(interval(answered=0), 0.25)
            view.show(timeline)
        assert stream.getvalue().splitlines()[1:] == ["0 s, 2%, 0 requests/s, p99 -, 0 failed, 8 open"]

    def test_an_interval_is_shown_when_every_worker_has_told_it(self):
        stream, timeline = io.StringIO(), Timeline(2)
        with View(stream, scenario()) as view:
            for worker in (0, 1):
                before = stream.getvalue()
                timeline.add(interval(), 0.25, worker)
                view.show(timeline)
                assert (stream.getvalue() == before) is (worker == 0)
        assert "800 requests/s" in stream.getvalue()

    def test_passwords_are_not_shown(self):
        assert self.lines(0, targets="http://me:secret@127.0.0.1/") == ["http://me:***@127.0.0.1/: 8 users"]

    @pytest.mark.parametrize(("asked", "share"), [
        ({"seconds": 20.0}, 0.5), ({"seconds": None, "number": 8080}, 0.5), ({"seconds": 100.0, "number": 8080}, 0.5),
        ({"seconds": None, "repetitions": 505}, 1.0), ({"seconds": 5.0}, 1.0)])
    def test_how_much_is_over(self, asked: dict[str, object], share: float):
        """Ten seconds, forty intervals of 100 answers and one failure."""
        timeline = Timeline()
        view = View(io.StringIO(), scenario(**asked))
        run(view, timeline, 10, failed=1)
        assert view.share(timeline.rows()) == pytest.approx(share)


class TestTerminal:
    @pytest.fixture(autouse=True)
    def terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "120")

    @pytest.mark.parametrize("at", [1, 2])
    def test_ctrl_c_at_its_very_beginning_leaves_the_cursor(self, at):
        class Interrupted(Terminal):
            writes = 0

            def write(self, text: str) -> int:
                self.writes += 1
                if self.writes == at:
                    signal.raise_signal(signal.SIGINT)
                return super().write(text)

        stream = Interrupted()
        with pytest.raises(KeyboardInterrupt), View(stream, scenario()):
            pytest.fail("it was not interrupted")
        assert stream.getvalue().count("\x1b[?25l") == 1
        assert stream.getvalue().rfind("\x1b[?25h") > stream.getvalue().rfind("\x1b[?25l")

    def test_the_picture(self):
        stream, timeline, now = Terminal(), Timeline(), [0.0]
        with View(stream, scenario(), lambda: now[0]) as view:
            run(view, timeline, 2)
            now[0] = 1.0
            run(view, timeline, 1, failed=1200, p99_ns=8 * MS)
        seen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
        assert "http://127.0.0.1:8000/: 8 users" in seen
        bars = {line.strip() for line in seen.splitlines() if "\u2501" in line}
        assert bars and all(len(bar) == 60 and set(bar) <= set("\u2501\u2578\u257a") for bar in bars)
        for text in ("2 s of 10", "400 requests/s, 900 answered", "p50 1.00 ms, p99 8.00 ms, longest 9.00 ms",
                     "▅▅▅▅▅▅▅▅█", "1,200", "8 connections", "80 % CPU, RSS 31.0 MiB, 70 descriptors"):
            assert text in seen, text

    def test_four_redraws_a_second_at_most(self):
        stream, timeline, now = Terminal(), Timeline(), [0.0]
        drawn = set()
        with View(stream, scenario(), lambda: now[0]) as view:
            for index in range(200):
                now[0] = index / 100
                timeline.add(interval(), 0.25 * (index + 1))
                before = len(stream.getvalue())
                view.show(timeline)
                if len(stream.getvalue()) > before:
                    drawn.add(index)
        assert drawn == set(range(0, 200, 25))

    def test_it_leaves_the_terminal_as_it_was(self):
        stream = Terminal()
        with View(stream, scenario()):
            assert "\x1b[?25l" in stream.getvalue()     # no cursor meanwhile
        assert stream.getvalue().rstrip("\r\n").rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")

    def test_a_dumb_terminal_gets_plain_lines(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("TERM", "dumb")
        stream = Terminal()
        with View(stream, scenario()) as view:
            run(view, Timeline(), 1)
        assert stream.getvalue().isascii() and "\x1b" not in stream.getvalue()

    def test_no_blocks_where_there_are_none(self):
        stream, timeline = Terminal(), Timeline()
        stream.encoding = "ascii"
        with View(stream, scenario()) as view:
            run(view, timeline, 1)
        assert not set(SPARKS) & set(stream.getvalue())


class TestSparkline:
    def test_from_zero_to_the_largest(self):
        assert sparkline([0.0, 1.0, None, 7.9, 8.0]) == "▁▂ ██"
        assert sparkline([0.0, 4.0, 8.0], ASCII_SPARKS) == "_+@"

    def test_nothing(self):
        assert sparkline([]) == ""
        assert sparkline([None, 0.0]) == " ▁"

    @given(st.lists(st.none() | st.floats(0, 1e9), max_size=50))
    def test_a_character_per_value(self, values: list[float | None]):
        drawn = sparkline(values)
        assert len(drawn) == len(values)
        assert [mark == " " for mark in drawn] == [value is None for value in values]

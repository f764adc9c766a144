"""`--html`: one page that holds all of the report, asks nobody for anything, and can be read on a telephone."""
from __future__ import annotations

import contextlib
import html.parser
import json
import re
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tallies import MS, SAMPLE, SECOND, WATCHED, eventful, interval, report, tally

from epollkit.siege import charts
from epollkit.siege.page import HEAD, MOST_KINDS, MOST_TARGETS, page
from epollkit.siege.report import Report
from epollkit.siege.tally import Timeline

UNKNOWN = dict.fromkeys(("first", "last", "max"))
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;"


class Parsed(html.parser.HTMLParser):
    """Elements, their attributes, and the text in them; every element that opens is closed."""

    VOID = {"meta"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data + "\n"

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def asked_with(made: Report, **changed: Any) -> Report:
    """The scenario's JSON with something in it that no Scenario would let in."""
    made.scenario.update(changed)
    return made


class TestText:
    def test_nothing_from_outside_is_code(self):
        """In every place where text comes from outside."""
        made = asked_with(eventful(), targets=[{"url": f"http://a/{HOSTILE}", "method": HOSTILE}] * 3, uds=HOSTILE,
                          headers=[[HOSTILE, HOSTILE]], agent=HOSTILE)
        made.errors.append({"phase": HOSTILE, "error": HOSTILE, "count": 1})
        made.statuses[HOSTILE] = 1
        made.assertions.append({"text": f"max<1s{HOSTILE}", "value": 1.0, "held": False})
        made.latency_s[HOSTILE] = 1.0
        found = Parsed(page(made))
        assert found.count("script") == found.count("img") == 0
        assert found.text.count(HOSTILE) >= 11

    def test_every_element_is_a_known_one_and_refers_to_nothing(self):
        found = Parsed(page(eventful()))
        for tag, attributes in found.elements:
            assert tag in KNOWN_TAGS
            assert set(attributes) <= KNOWN_ATTRIBUTES, (tag, attributes)
            assert "http" not in str({name: value for name, value in attributes.items() if name != "http-equiv"})
        assert not re.search(r"url\s*\(|@import", page(eventful()))

    def test_the_page_lets_nothing_load_and_nothing_run(self):
        policies = [attributes["content"] for tag, attributes in Parsed(page(eventful())).elements
                    if attributes.get("http-equiv") == "Content-Security-Policy"]
        assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]

    @pytest.mark.parametrize("url", ["\udcff", "\0\x07", "\u202e", "x" * 10**6])
    def test_any_text_can_be_written(self, url: str):
        made = asked_with(report(tally([MS])), targets=[{"url": f"http://a/{url}", "method": "GET"}])
        assert len(page(made).encode()) < 50_000

    def test_many_targets_and_errors_are_bounded(self):
        errors = [["read", f"E{number}", 1] for number in range(1000)]
        made = report(tally([MS], errors=errors), targets=[f"http://127.0.0.1/{number}" for number in range(500)])
        found = Parsed(page(made)).text
        assert f"{500 - MOST_TARGETS} more" in found
        assert "http://127.0.0.1/499" not in found
        assert f"{1000 - MOST_KINDS} more kinds" in found
        assert len(page(made)) < 100_000

    def test_figures_of_the_summary_are_there(self):
        found = Parsed(page(eventful())).text
        for value in ("4,010", "401 /s", "5.00 ms", "9.00 ms", "700 ms", "98.59 %", "57", "7.0 MiB", "p99<5ms",
                      "failed", "connect: ECONNREFUSED", "503", "unanswered at the end",
                      "2 of 4057 requests were planned and never sent", "400 requests a second, open loop", "http://127.0.0.1:8000/"):
            assert value in found, value
        assert found.count("Siege of http://127.0.0.1:8000/\n") == 2    # of the window, and of the page

    def test_what_the_server_used_is_there_when_it_was_watched(self):
        watched, unwatched = page(eventful()), page(report(tally([MS]), timeline=timeline(8)))
        for title in ("Server CPU, % of a core", "Server RSS, MiB", "Server descriptors"):
            assert title in watched and title not in unwatched

    def test_what_can_be_seen_is_also_said(self):
        """Every chart has a title and a description, every table a caption, every column and row its head."""
        found = Parsed(page(eventful()))
        identities = {attributes["id"] for _, attributes in found.elements if attributes.get("id")}
        drawings = [attributes for tag, attributes in found.elements if tag == "svg"]
        assert len(drawings) == 7
        for attributes in drawings:
            assert attributes["role"] == "img"
            named = (attributes["aria-labelledby"] or "").split()
            assert len(named) == 2 and set(named) <= identities
        assert found.count("caption") == found.count("table")
        assert all(attributes.get("scope") in ("row", "col") for tag, attributes in found.elements if tag == "th")


KNOWN_TAGS = {"html", "head", "meta", "title", "style", "body", "header", "main", "h1", "h2", "p", "strong", "div",
              "dl", "dt", "dd", "figure", "figcaption", "svg", "desc", "path", "text", "ul", "li", "span", "table",
              "caption", "thead", "tbody", "tr", "th", "td", "details", "summary"}
KNOWN_ATTRIBUTES = {"lang", "charset", "name", "content", "http-equiv", "class", "role", "id", "aria-labelledby",
                    "scope", "style", "viewbox", "d", "x", "y", "text-anchor"}


def timeline(rows: int, **counted: int) -> Timeline:
    made = Timeline()
    for index in range(rows):
        made.add(interval(**counted), 0.25 * (index + 1), 0, SAMPLE)
    return made


@pytest.mark.parametrize("made", [
    pytest.param(made, id=name) for name, made in {
        "of nothing": report(),
        "of one request": report(tally([MS])),
        "of the fastest": report(tally([0, 0]), timeline=timeline(3, p50_ns=0, p99_ns=0, max_ns=0)),
        "of the slowest": report(tally([3600 * SECOND])),
        "with one interval": report(tally([MS]), timeline=timeline(1)),
        "without an answer": report(tally(), timeline=timeline(9, answered=0)),
        "of a long run": report(tally([MS]), timeline=timeline(3000), watched=WATCHED),
        "of a server that ended": report(tally([MS]), timeline=timeline(3), watched={**WATCHED, "ended_after_s": 0.5}),
        "of a server that was not seen": report(tally([MS]), timeline=timeline(3), watched={
            **WATCHED, "fds": UNKNOWN, "rss_bytes": UNKNOWN, "cpu_percent": {"mean": None, "max": None}}),
    }.items()])
def test_any_report_has_a_page_and_a_summary(made: Report):
    found = page(made)
    Parsed(found)
    assert not re.search(r"\b(nan|inf|None)\b", found.replace(">None.<", "") + made.summary())
    assert len(found) < 300_000


class TestCharts:
    @given(st.floats(1e-9, 1e15))
    def test_a_linear_axis_begins_at_0_and_ends_soon_after_the_largest(self, high: float):
        axis = charts.linear(high, str)
        assert axis.low == axis.ticks[0][0] == 0.0
        assert high * 0.999999 <= axis.high <= high * 2
        assert 2 <= len(axis.ticks) <= charts.TICKS + 2

    @given(st.lists(st.floats(1e-6, 4e3), min_size=1))
    def test_an_axis_that_fits_has_all_values_on_it(self, values: list[float]):
        axis = charts.fitting(values, str)
        assert axis.low <= min(values) and max(values) <= axis.high * 1.000001
        assert 2 <= len(axis.ticks) <= 2 * charts.TICKS
        assert all(0.0 <= axis.place(value) <= 1.0 for value in values)
        assert [axis.place(value) for value, _ in axis.ticks] == sorted(axis.place(value) for value, _ in axis.ticks)

    def test_nines_are_equally_far_apart(self):
        axis = charts.nines(10_000)
        assert [name for _, name in axis.ticks] == ["0%", "90%", "99%", "99.9%", "99.99%"]
        assert [axis.place(value) for value, _ in axis.ticks] == pytest.approx([0, 0.25, 0.5, 0.75, 1])

    @given(st.floats(1, 1e12))
    def test_nines_are_few(self, most: float):
        assert 2 <= len(charts.nines(most).ticks) <= charts.TICKS + 1

    def test_a_line_is_broken_where_there_is_nothing(self):
        chart = charts.Chart("", "", charts.time_axis(4), charts.linear(4, str), ())
        points = [(0.0, None), (1.0, 1.0), (2.0, 2.0), (3.0, None), (4.0, 4.0)]
        assert re.sub(r"[\d. ]+", "_", chart.path(points)) == "M_h_L_M_h_"


# -- in a browser ------------------------------------------------------------------------------------------------------

# Runs in a copy of the page that lets it, in a frame, since no window is as narrow as a telephone: what does not fit
# is told in the title, which --dump-dom then shows.
LOOK = """<script>
const wrong = [], box = element => element.getBoundingClientRect();
if (document.documentElement.scrollWidth > innerWidth) wrong.push("the page is wider than the window");
for (const drawing of document.querySelectorAll("svg")) {
  const frame = box(drawing), texts = [...drawing.querySelectorAll("text")].map(text => [text.textContent, box(text)]);
  if (frame.width < 250 || frame.height < 130) wrong.push("a chart is small");
  for (const [name, place] of texts) {
    if (place.height < 9) wrong.push("small: " + name);
    if (place.left < frame.left - 1 || place.right > frame.right + 1 || place.bottom > frame.bottom + 1)
      wrong.push("cut off: " + name);
  }
  texts.forEach(([name, a], i) => texts.slice(i + 1).forEach(([other, b]) => {
    if (a.left < b.right && b.left < a.right && a.top < b.bottom - 3 && b.top < a.bottom - 3)
      wrong.push(name + " on " + other);
  }));
  for (const line of drawing.querySelectorAll(".line")) {
    if (getComputedStyle(line).stroke === "none" || line.getTotalLength() < 50) wrong.push("a line is not to be seen");
  }
}
parent.document.title = JSON.stringify([innerWidth, document.querySelectorAll("svg .line").length, wrong]);
</script>"""


class Seen(NamedTuple):
    document: str
    console: list[str]


class Trap:
    """A server that only counts who asks it for something."""

    def __enter__(self) -> Trap:
        self.asked = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/"
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()
        return self

    def serve(self) -> None:
        with contextlib.suppress(OSError):      # it was shut down
            while True:
                self.listener.accept()[0].close()
                self.asked += 1

    def __exit__(self, *exception: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()


class Browser:
    """Chromium without a window, without a network and without a past."""

    def __init__(self, program: str, directory: Path) -> None:
        self.program = program
        self.directory = directory

    def open(self, text: str) -> Seen:
        path = self.directory / "page.html"
        path.write_text(text)
        done = subprocess.run(
            [self.program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--no-first-run", "--disable-background-networking", "--enable-logging=stderr", "--v=0",
             "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
             f"--user-data-dir={self.directory / 'profile'}", "--window-size=1200,1500", "--dump-dom", path.as_uri()],
            capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return Seen(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])


@pytest.fixture
def browser(peer: Callable[[str], str], tmp_path: Path) -> Browser:
    return Browser(peer("chromium"), tmp_path)


@pytest.mark.peer("chromium")
class TestBrowser:
    def test_it_opens_without_a_complaint_and_asks_nobody(self, browser: Browser):
        """Although what is in it tries to make it ask."""
        with Trap() as trap:
            url = f'{trap.url}"><img src="{trap.url}"><script src="{trap.url}"></script><style>@import "{trap.url}"'
            seen = browser.open(page(asked_with(eventful(), targets=[{"url": url, "method": "GET"}])))
        assert (trap.asked, seen.console) == (0, [])
        assert Parsed(seen.document).count("svg") == 7
        assert url in Parsed(seen.document).text

    def test_it_would_be_noticed(self, browser: Browser):
        """What the test above looks for, first with the page's policy in its way, then without."""
        with Trap() as trap:
            code = page(eventful()).replace("<main>", f'<main><img src="{trap.url}"><script>1</script>')
            forbidden = browser.open(code)
            assert (trap.asked, len(forbidden.console)) == (0, 2)
            browser.open(code.replace("Content-Security-Policy", "nothing"))
        assert trap.asked > 0

    @pytest.mark.parametrize("width", [360, 1100])
    def test_it_can_be_read_on_a_telephone_and_on_a_desk(self, browser: Browser, width: int):
        """Nothing is cut off, lies on something else or is too small; every line is there."""
        assert self.looked_at(browser, page(eventful()), width) == [width, 10, []]

    def test_what_does_not_fit_would_be_noticed(self, browser: Browser):
        small = page(eventful()).replace("svg text{font:12px", "svg text{font:90px")
        _, _, wrong = self.looked_at(browser, small, 1100)
        assert {text.split(":")[0] for text in wrong} > {"cut off"}

    @staticmethod
    def looked_at(browser: Browser, text: str, width: int) -> Any:
        """What LOOK says."""
        policy = re.search('<meta http-equiv="Content-Security-Policy".*?>', HEAD)
        assert policy
        inner = html.escape(text.replace(policy[0], "").replace("</body>", LOOK + "</body>"))
        seen = browser.open("<!doctype html><title></title><body style=margin:0>"
                            f'<iframe srcdoc="{inner}" style="width:{width}px;height:1400px;border:0"></iframe>')
        title = re.search("<title>(.*?)</title>", seen.document)
        assert title and seen.console == []
        return json.loads(html.unescape(title[1]))

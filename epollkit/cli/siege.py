"""`epollkit siege URL...`: put an HTTP server under load, and say what it did."""
from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from epollkit.cli.serve import default, seconds, switch_on
from epollkit.errors import EpollkitError, UsageError

if TYPE_CHECKING:
    from epollkit.siege import Report, Scenario, Siege
    from epollkit.siege.tally import Row, Timeline

DEFAULT_SECONDS = 10.0
ONCE = 2**63        # no number of repetitions that a scenario may have

DESCRIPTION = """\
Ask an HTTP/1.1 server for URLs, by many users at a time, and report what it did. The short options are siege's. A URL
may be 'URL POST body' or 'URL POST <file', as one argument. Every option can be given as an environment variable too:
--no-keep-alive is EPOLLKIT_SIEGE_NO_KEEP_ALIVE=yes.
"""
EPILOG = """\
Exit status: 0 fine; 1 it could not run; 2 wrong usage; 99 an assertion failed, or --find found nothing; 130 Ctrl-C
(the first one still prints the report), 143 SIGTERM.
"""
FIELDS = {      # of a Scenario, and how a user of the command knows them
    "users": "-c/--concurrent", "seconds": "-t/--time", "number": "--number", "repetitions": "-r/--reps",
    "delay": "-d/--delay", "rate": "--rate", "pipeline": "--pipeline", "keep_alive": "--no-keep-alive",
    "sources": "--source", "close": "--close", "warmup": "--warmup", "headers": "-H/--header",
    "agent": "-A/--user-agent", "uds": "--uds", "connect_timeout": "--connect-timeout", "timeout": "--timeout",
    "grace": "--grace", "expect_status": "--expect-status", "expect_body": "--expect-body",
    "processes": "--processes", "seed": "--seed", "cafile": "--cacert", "pid": "--pid", "targets": "URL",
    "find": "--find",
}
SWITCHES = ("benchmark", "internet", "no-keep-alive", "insecure", "quiet", "verbose", "json-output")
LISTS = ("header", "assert")
LOG_HEADING = ("      Date & Time,  Trans,  Elap Time,  Data Trans,  Resp Time,  Trans Rate,  Throughput,  Concurrent,"
               "    OKAY,   Failed\n")
MEGABYTE = 1024 * 1024      # siege's


# -- options -----------------------------------------------------------------------------------------------------------

def period(text: str) -> float:
    """siege's: 30S, 5M or 1H."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh])", text, re.IGNORECASE)
    if found:
        return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2].lower()]
    hint = "; a bare number is minutes to siege, so say which" if re.fullmatch(r"[0-9.]+", text) else ""
    raise argparse.ArgumentTypeError(f"{text!r} is not a time like 30S, 5M or 1H{hint}")


def duration(text: str) -> float:
    """As `seconds`, or nothing at all."""
    return 0.0 if re.fullmatch(r"0+(\.0*)?[smh]?", text, re.IGNORECASE) else seconds(text)


def whole(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def repetitions(text: str) -> int:
    """A number; or siege's `once`, through the list of URLs."""
    return ONCE if text == "once" else whole(text)


def add(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "siege", help="put an HTTP server under load", usage="epollkit siege [OPTION]... URL...",
        description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("url", nargs="*", metavar="URL", help="what to ask for; http:// is understood")

    def option(group: Any, names: str, kind: Callable[[str], Any], metavar: str, text: str) -> None:
        long = names.split("/")[-1][2:]
        group.add_argument(*names.split("/"), type=kind, metavar=metavar, help=text,
                           default=None if long in LISTS else default("siege-" + long, None),
                           action="append" if long in LISTS else "store")

    def switch(group: Any, names: str, text: str) -> None:
        long = names.split("/")[-1][2:]
        group.add_argument(*names.split("/"), action="store_true", default=default("siege-" + long, False), help=text)

    add_load(parser.add_argument_group("how much"), option, switch)
    add_requests(parser.add_argument_group("what is asked"), option, switch)
    add_connections(parser.add_argument_group("connections"), option, switch)
    add_verdict(parser.add_argument_group("what is reported"), option, switch)
    parser.set_defaults(run=lambda options: run(parser, options))


def add_load(group: Any, option: Any, switch: Any) -> None:
    option(group, "-c/--concurrent", whole, "N", "users at a time, one connection each (default: 25)")
    option(group, "-t/--time", period, "TIME", "how long, like 30S, 5M or 1H (default: 10S, unless -r or --number)")
    option(group, "-r/--reps", repetitions, "N|once", "requests of each user; once: each URL once")
    option(group, "--number", whole, "N", "requests of all users together")
    option(group, "-d/--delay", duration, "SECONDS", "each user waits up to so long before a request (default: 0)")
    switch(group, "-b/--benchmark", "no delay, which is the default; wins over -d")
    switch(group, "-i/--internet", "URLs at random, not in turn")
    option(group, "--rate", number, "N", "open loop: N requests a second, planned ahead; a time counts from the plan")
    option(group, "--pipeline", whole, "N", "requests under way on one connection (default: 1)")
    option(group, "--warmup", duration, "DURATION", "so long nothing is counted (default: 0)")
    option(group, "--processes", whole, "N", "worker processes, which share the load (default: 1)")
    option(group, "--seed", whole, "N", "of the random choices (default: a new one)")


def add_requests(group: Any, option: Any, switch: Any) -> None:
    option(group, "-f/--file", str, "FILE", "lines of URL, 'URL POST body' or 'URL POST <file', # a comment, and "
           "NAME = value")
    option(group, "-H/--header", str, "HEADER", "'Name: value', for each request; repeatable")
    option(group, "-A/--user-agent", str, "TEXT", "the User-Agent header")
    option(group, "--content-type", str, "TYPE", "of the bodies (default: application/x-www-form-urlencoded)")
    option(group, "--expect-status", str, "STATUSES", "success is one of these, like 200 or 2xx,304 "
           "(default: below 400)")
    option(group, "--expect-body", str, "TEXT", "success has this in its body")


def add_connections(group: Any, option: Any, switch: Any) -> None:
    switch(group, "--no-keep-alive", "a connection for each request")
    option(group, "--close", str, "MODE", "how connections end: fin, rst, half, abandon, rst-mid-request or "
           "rst-mid-response (default: fin)")
    option(group, "--source", str, "ADDRESSES", "connect from these, like 127.0.0.2-127.0.0.16, in turn")
    option(group, "--uds", str, "PATH", "connect to this unix socket, whatever the URLs' hosts are")
    option(group, "--connect-timeout", duration, "DURATION", "for a connection, TLS included (default: 10s)")
    option(group, "--timeout", duration, "DURATION", "for an answer (default: 30s)")
    option(group, "--grace", duration, "DURATION", "at the end, for what is under way (default: 5s)")
    option(group, "--cacert", str, "FILE", "the authorities that a server's certificate is checked against")
    switch(group, "--insecure", "certificates are not checked")


def add_verdict(group: Any, option: Any, switch: Any) -> None:
    option(group, "--assert", str, "ASSERTION", "what must hold, like 'p99<5ms', 'rate>1000' or 'failed==0'; else the "
           "exit status is 99; repeatable")
    option(group, "--find", str, "ASSERTION", "search the highest --rate that holds it; -t is one try's (default: 5S)")
    option(group, "--pid", whole, "PID", "the server's process, to be watched: CPU, memory, descriptors")
    option(group, "--json", str, "FILE", "write the report as JSON")
    option(group, "--html", str, "FILE", "write the report as a page for a browser")
    option(group, "-l/--log", str, "FILE", "append a line to a log like siege's")
    option(group, "-m/--mark", str, "TEXT", "write this into the log first")
    switch(group, "-j/--json-output", "the report as JSON on standard output, and nothing else there")
    switch(group, "-q/--quiet", "nothing but errors")
    switch(group, "-v/--verbose", "a line for each quarter of a second (siege has one for each request)")


# -- from options to a scenario ----------------------------------------------------------------------------------------

def complete(options: argparse.Namespace) -> None:
    """What argparse can't take from the environment itself."""
    for name in SWITCHES:
        dest = name.replace("-", "_")
        setattr(options, dest, switch_on("siege-" + name, getattr(options, dest)))
    for name in LISTS:
        if getattr(options, name) is None:
            setattr(options, name, [line for line in default("siege-" + name, "").splitlines() if line.strip()])


def targets(options: argparse.Namespace) -> list[Any]:
    """UsageError: a URL, or a line of the file, can't be asked for."""
    from epollkit.siege import urls

    for text in options.url:
        if text in urls.METHODS:
            raise UsageError(f"{text} stands alone: 'URL {text} body' is one argument, so it needs quotes")
    found = [urls.parse_line(text) for text in options.url if text.strip()]
    if options.file is not None:
        found += urls.read(options.file)
    if not found:
        raise UsageError("there is nothing to ask for: give a URL, or a file of them with -f")
    if options.content_type is not None:
        kind = (("Content-Type", options.content_type),)
        found = [replace(target, headers=kind) if target.body else target for target in found]
    return found


def scenario_of(options: argparse.Namespace) -> Scenario:
    """UsageError, in one sentence with the option's name."""
    from epollkit.siege import Scenario
    from epollkit.siege.find import PROBE_SECONDS, PROBE_WARMUP_SECONDS

    asked = targets(options)
    given = {
        "users": options.concurrent, "seconds": options.time, "number": options.number,
        "repetitions": len(asked) if options.reps == ONCE else options.reps,
        "delay": None if options.benchmark else options.delay, "rate": options.rate, "pipeline": options.pipeline,
        "sources": options.source and options.source.split(","), "close": options.close, "warmup": options.warmup,
        "agent": options.user_agent, "uds": options.uds, "connect_timeout": options.connect_timeout,
        "timeout": options.timeout, "grace": options.grace, "expect_status": options.expect_status,
        "expect_body": options.expect_body, "processes": options.processes, "seed": options.seed,
        "cafile": options.cacert, "pid": options.pid,
    }
    if options.find is not None:
        given["seconds"] = PROBE_SECONDS if options.time is None else options.time
        given["warmup"] = PROBE_WARMUP_SECONDS if options.warmup is None else options.warmup
    elif (options.time, options.reps, options.number) == (None, None, None):
        given["seconds"] = DEFAULT_SECONDS
    made = {name: value for name, value in given.items() if value is not None}
    return Scenario(asked, keep_alive=not options.no_keep_alive, random_order=options.internet,
                    headers=options.header, insecure=options.insecure, assertions=vars(options)["assert"], **made)


def in_options(message: str) -> str:
    """A Scenario's complaint, in the words of the command line."""
    return re.sub(r"(?<!a )\b(" + "|".join(FIELDS) + r")\b(?= (?:is|are|of|has|have|says|needs|tries|searches)\b|: )",
                  lambda found: FIELDS[found[0]], message)


# -- running -----------------------------------------------------------------------------------------------------------

class Progress:
    """What is shown while it runs, on standard error: the live view, a line for each interval, or nothing."""

    def __init__(self, options: argparse.Namespace, scenario: Scenario) -> None:
        from epollkit.siege.view import View

        self.view = None if options.quiet or options.verbose else View(sys.stderr, scenario)
        self.verbose = options.verbose and not options.quiet
        self.shown_s = 0.0

    def __enter__(self) -> Progress:
        if self.view is not None:
            self.view.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.view is not None:
            self.view.__exit__(*exception)

    def show(self, timeline: Timeline) -> None:
        if self.view is not None:
            self.view.show(timeline)
        elif self.verbose:
            for row in timeline.whole_rows():
                if row.t_s > self.shown_s:
                    self.shown_s = row.t_s
                    print(interval_line(row), file=sys.stderr, flush=True)


def interval_line(row: Row) -> str:
    """One quarter of a second, or more of a long run."""
    def milliseconds(value: float | None) -> str:
        return "-" if value is None else f"{value * 1e3:.3f} ms"

    return (f"{row.t_s:8.2f} s: {row.answered} answered, {row.failed} failed, {row.rate_per_s:.1f}/s, "
            f"p50 {milliseconds(row.p50_s)}, p99 {milliseconds(row.p99_s)}, max {milliseconds(row.max_s)}, "
            f"{row.open} open")


class Stopper:
    """Ctrl-C and SIGTERM. The first asks a siege that has begun to come to its end, so that there is a report; the
    second leaves."""

    def __init__(self) -> None:
        self.siege: Siege | None = None
        self.signum = 0

    def name(self, siege: Siege) -> None:
        self.siege = siege

    def hear(self, signum: int, frame: FrameType | None) -> None:
        first, self.signum = not self.signum, signum
        if not first or self.siege is None or not self.siege.began:
            raise KeyboardInterrupt
        self.siege.stop()

    @contextmanager
    def listening(self) -> Iterator[None]:
        before = {signum: signal.signal(signum, self.hear) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


def run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    # Imported below, and there for the first time: rich and psutil take their time, and other commands need not wait.
    stopper = Stopper()
    try:
        complete(options)
        scenario = scenario_of(options)
        check_outputs(options)
    except UsageError as error:
        parser.error(in_options(str(error)))
    with stopper.listening():
        try:
            return play(options, scenario, stopper)
        except BrokenPipeError:
            # Whoever read us is gone, so there is nobody to tell; nor may the interpreter's last flush complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except UsageError as error:
            parser.error(in_options(str(error)))
        except EpollkitError as error:
            if not stopper.signum:
                raise
            print(f"epollkit siege: {error}", file=sys.stderr)
            return 128 + stopper.signum
        except KeyboardInterrupt:
            print("epollkit siege: stopped before its end; no process is left", file=sys.stderr)
            return 128 + (stopper.signum or signal.SIGINT)


def check_outputs(options: argparse.Namespace) -> None:
    """Better now than when the work is done. UsageError: a file can't be written."""
    if options.mark is not None and options.log is None:
        raise UsageError("-m/--mark is for the log, and -l/--log says which: give both")
    for name in ("json", "html", "log"):
        path = getattr(options, name)
        try:
            if path is not None:
                open(path, "a").close()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise UsageError(f"--{name} {path!r} can't be written: {why}") from None


def play(options: argparse.Namespace, scenario: Scenario, stopper: Stopper) -> int:
    from epollkit.siege import Siege, find

    if options.find is not None:
        talkative = sys.stderr if options.json_output else sys.stdout
        found, report = find.find(
            options.find, scenario, on_siege=stopper.name, on_progress=lambda timeline: None,
            on_probe=None if options.quiet else lambda probe: print(probe.line(), file=talkative, flush=True))
        tell(options, report, found)
        return 99 if found.rate_per_s is None else 0
    siege = Siege(scenario, on_progress=(progress := Progress(options, scenario)).show)
    stopper.name(siege)
    with progress:
        report = siege.play()
    tell(options, report, None)
    if stopper.signum:
        return 128 + stopper.signum
    return 0 if report.held else 99


def tell(options: argparse.Namespace, report: Report, found: Any) -> None:
    """Everything that the user wants to have of it."""
    from epollkit.siege.page import page

    data = report.as_json() if found is None else {"find": found.as_json(), "report": report.as_json()}
    text = json.dumps(data, indent=2)
    if options.json is not None:
        write(options.json, text + "\n")
    if options.html is not None:
        write(options.html, page(report))
    if options.log is not None:
        append_log(options.log, options.mark, report)
    if options.json_output:
        print(text, flush=True)
    elif not options.quiet:
        print(report.summary() if found is None else found.line(), flush=True)
    else:
        for assertion in report.assertions:
            if not assertion["held"]:
                print(f"epollkit siege: {assertion['text']} did not hold", file=sys.stderr)


def write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


def append_log(path: str, mark: str | None, report: Report) -> None:
    """siege's columns, in siege's units: seconds and megabytes."""
    with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
        if file.tell() == 0:
            file.write(LOG_HEADING)
        if mark is not None:
            file.write(f"**** {mark} ****\n")
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"{when},{report.transactions:7d},{report.elapsed_s:11.2f},"
                   f"{report.data_transferred_bytes // MEGABYTE:12d},{report.response_time_s or 0.0:11.2f},"
                   f"{report.transaction_rate_per_s:12.2f},{report.throughput_bytes_per_s / MEGABYTE:12.2f},"
                   f"{report.concurrency:12.2f},{report.successful:8d},{report.failed:8d}\n")

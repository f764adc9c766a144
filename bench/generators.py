"""Who is measured when it is about load generators: each asks the same server, for as long as it is let.

A generator has the core that servers have otherwise, as clients have (`stream_servers`), and the server that it asks
has the other one. Its figure is its own CPU, of all its processes and threads, in a window in the middle of its run,
divided by the requests that the server says it had in that window. So nobody's start or end is in it.
"""
from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from . import servers
from .load import Answered, Load, parse_wrk
from .measure import read_account
from .servers import HERE, HOST, START_SECONDS, BenchError, Epollkit, Nginx, Server

WARM_REQUESTS = 1000        # a generator has started once the server had so many, ...
WARM_SECONDS = 0.4          # ... and is warm so much later
POLL_SECONDS = 0.02
STOP_SECONDS = 30           # from being told to stop to its summary
LONGEST_SECONDS = 3600      # a generator is told to stop long before
MOST_REQUESTS = 20_000_000  # for ab, which wants a number: 300,000 a second for a minute. It reserves memory for all
COUNTED_SECONDS = 300
COUNTED_REQUESTS = 20_000   # under callgrind: times 1 and times 3
SOURCES = "127.0.0.2-127.0.0.9"

AB_COMPLETED = re.compile(r"^Complete requests:\s+(\d+)$", re.MULTILINE)
AB_ERRORS = re.compile(r"^(?:Failed requests|Non-2xx responses|Write errors):\s+(\d+)$", re.MULTILINE)

STATUS_SERVER = "server {{ listen unix:{path}/status; location / {{ stub_status; }} }}"


# Who is asked

class Asked(Server):
    """A server that counts its requests. It has the load's core."""

    name = "asked"
    questions = 0
    said: ClassVar[re.Pattern[bytes]]       # its number of requests, in its answer

    @property
    def core(self) -> int | None:
        return self.workshop.load_core

    def ask(self) -> bytes:
        """Its answer to the question how many requests it has had. The question is one of them."""
        raise NotImplementedError

    def count(self) -> int:
        """Requests so far that were not questions of ours."""
        found = self.said.search(self.ask())
        if found is None:
            raise self.failure("does not say how many requests it has had")
        self.questions += 1
        return int(found.group(1)) - self.questions


class AskedNginx(Asked, Nginx):
    """nginx with `stub_status` behind a Unix socket."""

    more_servers = STATUS_SERVER
    said = re.compile(rb"^ \d+ \d+ (\d+) $", re.MULTILINE)        # connections accepted, handled; requests

    def command(self) -> list[str]:
        (self.workshop.path / "status").unlink(missing_ok=True)     # of an attempt that could not clear up
        return super().command()

    def ask(self) -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(START_SECONDS)
            sock.connect(str(self.workshop.path / "status"))
            return hear(sock, "/")


class AskedEpollkit(Asked, Epollkit):
    """The application of the other modes; it adds one to a number at each request."""

    said = re.compile(rb"\r\n\r\n(\d+)$")

    def command(self) -> list[str]:
        return [*super().command(), "--count"]

    def ask(self) -> bytes:
        with socket.create_connection((HOST, self.port), START_SECONDS) as sock:
            return hear(sock, "/count")


def hear(sock: socket.socket, path: str) -> bytes:
    """An answer, on a connection that is for it alone."""
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(4096):
            answer += piece
    return answer


ASKED: dict[str, type[Asked]] = {"nginx": AskedNginx, "epollkit": AskedEpollkit}


# Who asks

@dataclass(frozen=True)
class GeneratorLoad(Load):
    """What all generators are told to do, and who is asked."""

    asked: str = "nginx"
    work: ClassVar[str] = "siege"
    sides: ClassVar[tuple[str, str]] = ("generator", "server")

    def server(self, kind: type[Generator], workshop: servers.Workshop, *, deferred: bool = False,
               under: Sequence[str] = ()) -> Generator:
        return kind(workshop, self, under=under)

    def run(self, server: Generator, seconds: float, workshop: servers.Workshop) -> Answered:
        """Look on. What is called the generator elsewhere is the server here: it is the other side."""
        asked = server.asked
        pids = asked.pids()
        account, before, began = read_account(pids), asked.count(), time.monotonic()
        time.sleep(seconds)
        requests, took = asked.count() - before, time.monotonic() - began
        if server.process.poll() is not None:
            raise server.failure("ended before it was told to")
        return Answered(requests, 0, read_account(pids).since(account).cpu_ns / 1e9, took)


class Generator(Server):
    """A load generator at work. Entering starts whom it asks, then itself, and waits until it is warm; leaving tells it
    to stop, and compares what it says with what the server says.
    """

    program = ""
    package = ""
    stopped_status = 0          # its exit status after SIGINT

    def __init__(self, workshop: servers.Workshop, load: GeneratorLoad, *, under: Sequence[str] = ()) -> None:
        super().__init__(workshop, closing=load.closing, under=under)
        self.load = load
        self.asked = ASKED[load.asked](workshop, closing=load.closing)

    @classmethod
    def missing(cls) -> str | None:
        if servers.find_program(cls.program):
            return None
        return f"{cls.program} is not installed (Debian: apt-get install {cls.package or cls.program})"

    @property
    def url(self) -> str:
        """What is asked for."""
        return f"http://{HOST}:{self.asked.port}/"

    def command(self) -> list[str]:
        """Ask until it is told to stop."""
        raise NotImplementedError

    def counted_command(self, length: int) -> list[str]:
        """Ask, for about so long or so often, and end by itself."""
        raise NotImplementedError

    def outcome(self, text: str) -> tuple[int, int]:
        """What its summary says: requests answered, and errors."""
        raise NotImplementedError

    def __enter__(self) -> Generator:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.asked)
            super().__enter__()
            stack.pop_all()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.settle()
        finally:
            self.stop()
            self.asked.stop()

    def launch(self, command: Sequence[str]) -> None:
        """Start its process, where nothing shadows the installed package."""
        self.process = servers.start_process([*self.under, *command], self.core, stdin=subprocess.DEVNULL,
                                             stdout=subprocess.PIPE, stderr=self.log, cwd=self.workshop.path)

    def start(self) -> None:
        self.before = self.asked.count()
        self.launch(self.command())

    def check_answer(self) -> None:
        """It asks, and the server answers: wait until it is warm."""
        deadline = time.monotonic() + START_SECONDS
        while self.asked.count() - self.before < WARM_REQUESTS:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise self.failure("does not ask")
            time.sleep(POLL_SECONDS)
        time.sleep(WARM_SECONDS)

    def run_to_its_end(self, length: int) -> int:
        """Not by entering it: from its start to its end, however long that takes. Returns its requests."""
        with self.asked, (self.workshop.path / f"{self.name}.log").open("w+b") as self.log:
            self.before = self.asked.count()
            self.launch(self.counted_command(length))
            try:
                requests, errors = self.reconcile(self.wait(0, COUNTED_SECONDS))
            finally:
                servers.end_process(self.process)
        if errors or not requests:
            raise BenchError(f"{self.title} had {requests} answers and {errors} errors")
        return requests

    def settle(self) -> None:
        """Tell it to stop, and hear what it has to say."""
        self.process.send_signal(signal.SIGINT)
        self.errors = self.reconcile(self.wait(self.stopped_status, STOP_SECONDS))[1]

    def wait(self, status: int, seconds: float) -> str:
        """For its end: what it printed."""
        try:
            printed, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise self.failure("does not stop") from error
        if self.process.returncode != status:
            raise self.failure(f"ended with status {self.process.returncode}")
        return printed.decode(errors="replace")

    def reconcile(self, printed: str) -> tuple[int, int]:
        """(requests, errors) of its summary; the server's count is the same, but for what was under way at the end."""
        answered, errors = self.outcome(printed)
        served = self.asked.count() - self.before
        if not answered <= served <= answered + errors + self.load.connections * self.load.pipeline:
            raise BenchError(f"{self.title} says it had {answered:,} answers, and the server had {served:,} requests")
        return answered, errors

    def pids(self) -> list[int]:
        """Its process and all that come of it."""
        found = [self.process.pid]
        for pid in found:
            found += [int(word) for task in Path(f"/proc/{pid}/task").iterdir()
                      for word in (task / "children").read_text().split()]
        return found


class Siege(Generator):
    """`epollkit siege`: the command, its worker process, and a histogram of every latency."""

    name = "epollkit"
    title = "epollkit siege"
    stopped_status = 130

    @classmethod
    def missing(cls) -> str | None:
        return Epollkit.missing()

    def command(self) -> list[str]:
        words = [sys.executable, "-m", "epollkit.cli", "siege", "-j", "-q", "-t", f"{LONGEST_SECONDS}S",
                 "-c", str(self.load.connections), "--pipeline", str(self.load.pipeline)]
        return [*words, *(["--no-keep-alive"] if self.closing else []), self.url]

    def counted_command(self, length: int) -> list[str]:
        return [sys.executable, str(HERE / "epollkit_siege.py"), self.url, str(self.load.connections),
                str(self.load.pipeline), "close" if self.closing else "keep", str(length * COUNTED_REQUESTS)]

    def outcome(self, text: str) -> tuple[int, int]:
        found = json.loads(text)
        return found["transactions"], found["failed"]


class SpreadSiege(Siege):
    """The same, from several addresses in turn."""

    name = "spread"
    title = "epollkit siege --source"

    def command(self) -> list[str]:
        return [*super().command(), "--source", SOURCES]


class Wrk(Generator):
    """wrk with one thread."""

    name = title = program = "wrk"

    def command(self) -> list[str]:
        return self.load.command(self.asked.port, LONGEST_SECONDS)

    def counted_command(self, length: int) -> list[str]:
        return self.load.command(self.asked.port, length)

    def outcome(self, text: str) -> tuple[int, int]:
        return parse_wrk(text)


class ApacheBench(Generator):
    """ab. It can't pipeline."""

    name = title = program = "ab"
    package = "apache2-utils"
    stopped_status = 1

    def ab(self, number: int) -> list[str]:
        """The command, for so many requests."""
        return [shutil.which("ab") or "ab", "-q", *([] if self.closing else ["-k"]), "-c", str(self.load.connections),
                "-n", str(number), self.url]

    def command(self) -> list[str]:
        return self.ab(MOST_REQUESTS)

    def counted_command(self, length: int) -> list[str]:
        return self.ab(length * COUNTED_REQUESTS)

    def outcome(self, text: str) -> tuple[int, int]:
        completed = AB_COMPLETED.search(text)
        if completed is None:
            raise self.failure(f"said {text.strip()[-200:]!r}")
        return int(completed.group(1)), sum(map(int, AB_ERRORS.findall(text)))


GENERATORS: dict[str, type[Generator]] = {kind.name: kind for kind in (Siege, SpreadSiege, Wrk, ApacheBench)}

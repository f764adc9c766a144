"""Which system call fails with what, and what may come of it; and one run of the program with one fault in it.

`strace` makes calls fail: what fails has not happened then. The connection that accept4 could not take is still in the
queue, and what epoll_ctl has not found is still in the set. A descriptor of which the kernel says that it is not in the
set is taken for somebody else's, is let go of and left open (`LoopStats.lost`), and its peer is left waiting.
"""
from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clients import HERE, Clients, Subject, TooLate, Wrong

MARK = "getppid"            # the program calls it where the faults begin, and where they end
LOUD = re.compile(r"Traceback|Exception ignored|invariant broken|Fatal|Error\b|Segmentation")
SECONDS = 40.0              # for a run, which takes one; then it hangs
PATIENCE = 10.0             # of a client, for each thing that it waits for
SHORT_PATIENCE = 1.5        # where the peer is known to leave one without an answer


@dataclass(frozen=True)
class Fault:
    call: str
    error: str
    fatal: int = 0                      # conversations that it may end
    told: tuple[str, ...] = ()          # what may be reported, beside an OSError of that errno
    quiet: bool = False                 # a peer may be left waiting
    by_library: bool = False            # by faults.c: strace would not close
    harmless: str = ""                  # of a call that has this in it nobody may notice anything

    @property
    def name(self) -> str:
        return f"{self.call}:{self.error}"


def made(calls: str, errors: str, fatal: int = 0, **options: Any) -> list[Fault]:
    return [Fault(call, error, fatal, **options) for call in calls.split() for error in errors.split()]


MATRIX = [
    *made("accept4", "EMFILE ENFILE ENOMEM ENOBUFS ECONNABORTED EPROTO EINTR EAGAIN"),
    *made("epoll_ctl", "ENOMEM ENOSPC", 1),
    *made("epoll_ctl", "EEXIST", 1, harmless="EPOLL_CTL_ADD"),
    *made("epoll_ctl", "ENOENT", 1, told=("StaleToken",), quiet=True),
    *made("epoll_wait epoll_pwait2", "EINTR"),
    *made("epoll_pwait2", "ENOSYS EPERM"),
    *made("recvfrom", "EINTR"),
    *made("recvfrom", "ECONNRESET ETIMEDOUT ENOMEM", 1),
    *made("sendto sendmsg", "EINTR"),
    *made("sendto sendmsg", "EPIPE ECONNRESET ENOBUFS", 1),
    *made("sendfile", "EINTR"),
    *made("sendfile", "EPIPE EIO ENOMEM", 1),
    *made("connect", "ECONNREFUSED ETIMEDOUT EADDRNOTAVAIL ENETUNREACH EAGAIN EINTR", 1),
    *made("socket", "EMFILE ENFILE ENOBUFS ENOMEM", 1),
    *made("setsockopt", "ENOBUFS ENOPROTOOPT"),
    *made("getsockopt getsockname", "ENOBUFS", 1),
    *made("bind listen", "EADDRINUSE"),
    *made("epoll_create1 eventfd2", "EMFILE ENFILE ENOMEM"),
    *made("socketpair", "EMFILE"),
    *made("shutdown", "ENOTCONN", 1, quiet=True),
    *made("fcntl", "EMFILE", 1),
    *made("ioctl", "EINVAL", 1),
    *made("poll", "EINTR ENOMEM", 1),
    *made("close", "EINTR ENOSPC", by_library=True),
    *made("getaddrinfo", "EAI_AGAIN EAI_NONAME EAI_MEMORY", 1, by_library=True),
    *made("pthread_create", "EAGAIN", 1, by_library=True),
]


class Impossible(Exception):
    """What this machine does not let us try."""


@dataclass
class Row:
    """What came of a fault, in all its runs."""

    name: str
    fired: int = 0
    impossible: str = ""                # why it could not be tried here
    problems: list[str] = field(default_factory=list)

    def add(self, where: object, problems: list[str]) -> None:
        self.problems += [f"{self.name}:{where}: {problem}" for problem in problems]


def compiled(folder: Path) -> Path:
    """The library of faults.c."""
    library = folder / "faults.so"
    subprocess.run(["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", "-o", library,
                    HERE / "faults.c", "-ldl"], check=True)
    return library


def strace(trace: Path, *options: str) -> list[object]:
    return [shutil.which("strace") or "strace", "-f", "--seccomp-bpf", "-qq", "-o", trace, "-e", "signal=none",
            *(word for option in options for word in ("-e", option))]


class Laboratory:
    """Runs the program, and judges what is left."""

    def __init__(self, folder: Path) -> None:
        self.library = compiled(folder)
        self.before: dict[str, int] = {}        # calls until the faults begin
        self.calls: dict[str, int] = {}         # calls from there on

    def look(self) -> list[str]:
        """Without any fault: how often each call is made. Returns what is wrong even then."""
        wanted = {fault.call for fault in MATRIX if not fault.by_library}
        with tempfile.TemporaryDirectory() as name:
            trace = Path(name) / "trace"
            subject = Subject(Path(name), strace(trace, f"trace={','.join(sorted(wanted))},{MARK}"), seconds=SECONDS)
            problems = judged(None, *played(subject, PATIENCE))
            text = trace.read_text() if trace.exists() else ""
        parts: list[list[str]] = [[]]
        lines = re.findall(r"^(\d+) +(\w+)\(", text, re.MULTILINE)
        for thread, call in lines:
            if thread == lines[0][0]:       # the resolver's has a count of its own
                parts[-1].append(call)
            if call == MARK:
                parts.append([])
        if not text:
            raise Impossible("strace can't trace here")
        if len(parts) != 3:
            return problems or ["the program did not come to its end"]
        self.before = {call: parts[0].count(call) for call in wanted}
        self.calls = {call: parts[1].count(call) for call in wanted}
        return problems

    def strike(self, fault: Fault, nth: int) -> tuple[bool, list[str]]:
        """One run, the nth call failing: whether it was made, and what is wrong then."""
        patience = SHORT_PATIENCE if fault.quiet else PATIENCE
        with tempfile.TemporaryDirectory() as name:
            trace = Path(name) / "trace"
            if fault.by_library:
                code = getattr(socket if fault.error.startswith("EAI_") else errno, fault.error)
                subject = self.with_library(Path(name), f"{fault.call}:{nth}:{code}")
            else:
                inject = f"inject={fault.call}:error={fault.error}:when={self.before[fault.call] + nth}"
                subject = Subject(Path(name), strace(trace, f"trace={fault.call}", inject), seconds=SECONDS)
            outcome = played(subject, patience)
            injected = re.findall(r".*\(INJECTED\)", trace.read_text()) if trace.exists() else []
            fired = bool(injected or outcome[1].get("fired"))
            harmless = fault.harmless and fault.harmless in "".join(injected)
            return fired, judged(fault if fired and not harmless else None, *outcome)

    def with_library(self, folder: Path, order: str) -> Subject:
        if os.environ.get("LD_PRELOAD"):
            raise Impossible("a library is preloaded already: a sanitizer's has to be the first")
        return Subject(folder, environment={"LD_PRELOAD": str(self.library), "FAULTS": order}, seconds=SECONDS)


def played(subject: Subject, patience: float) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """A whole run: what went wrong for clients, what the program says at its end, and what it said before that.
    The end is empty if it did not come to it; why is then among the failures."""
    failures: list[str] = []
    counts: dict[str, Any] = {}
    end: dict[str, Any] = {}
    with subject:
        clients = None
        try:
            clients = Clients(subject, patience)
            clients.play()
            counts = subject.ask("count")
            end = subject.end()
        except TooLate:
            failures.append(f"it hangs, in {clients.step if clients else 'its beginning'}")
        except Wrong as error:
            failures.append(f"{error}, in {clients.step if clients else 'its beginning'}")
        failures = [*(clients.failures if clients else []), *failures]
        end["stderr"] = subject.said()
    return failures, end, counts


def judged(fault: Fault | None, failures: list[str], end: dict[str, Any], counts: dict[str, Any]) -> list[str]:
    """What is wrong with a run."""
    lost = 1 if fault is not None and "StaleToken" in fault.told else 0
    problems = []
    if "status" not in end or len(failures) > (fault.fatal if fault else 0):
        problems += failures
    if LOUD.search(end["stderr"]):
        problems.append(f"standard error: {end['stderr'][-2000:]}")
    if "status" not in end:
        return problems
    for what in ("told", "refused"):
        expected = [found for found in end[what]
                    if fault and (f"({fault.error})" in found or found.startswith(fault.told or ("-",)))]
        if end[what] != expected[:1]:
            problems.append(f"{what}: {end[what]}")
    problems += end["problems"]
    if end["status"]:
        problems.append(f"it ended with status {end['status']}")
    if len(counts["fds"]) > lost or len(end["fds"]) > lost:
        problems.append(f"descriptors left: {counts['fds']}, at the end {end['fds']}")
    for name in ("live", "timers", "wrong"):
        if counts[name]:
            problems.append(f"left in the loop: {name}={counts[name]}")
    if end["counts"] or counts["lost"] > lost:
        problems.append(f"left: {end['counts']}, lost: {counts['lost']}")
    return problems

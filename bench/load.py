"""The load of HTTP servers: wrk with one thread, on the generator's core."""
from __future__ import annotations

import math
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from . import servers

WRK_GRACE_SECONDS = 20      # beyond its time, until it must have ended
COMPLETED = re.compile(r"^\s*(\d+) requests in ", re.MULTILINE)
SOCKET_ERRORS = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")
OTHER_STATUS = re.compile(r"Non-2xx or 3xx responses: (\d+)")


@dataclass(frozen=True)
class Load:
    """How a server is asked: connections at a time, requests in one write, and whether each connection is for one."""

    connections: int
    pipeline: int = 1
    closing: bool = False
    work: ClassVar[str] = "http"        # which kinds of servers it is for
    sides: ClassVar[tuple[str, str]] = ("server", "generator")      # who is measured, and who is on the other core

    def server(self, kind: type[servers.Server], workshop: servers.Workshop, *, deferred: bool = False,
               under: Sequence[str] = ()) -> servers.Server:
        """One to be asked so. See `Server` for the arguments."""
        return kind(workshop, closing=self.closing, deferred=deferred, under=under)

    def run(self, server: servers.Server, seconds: float, workshop: servers.Workshop) -> Answered:
        """Ask for so long."""
        return run_wrk(self, server.port, seconds, workshop.load_core)

    def request(self, port: int) -> bytes:
        """What is written at once, for those who ask by themselves."""
        close = "Connection: close\r\n" if self.closing else ""
        return f"GET / HTTP/1.1\r\nHost: {servers.HOST}:{port}\r\n{close}\r\n".encode() * self.pipeline

    def connect(self, port: int, patience_seconds: float) -> socket.socket:
        """A connection to write it to."""
        sock = socket.create_connection((servers.HOST, port), patience_seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def command(self, port: int, seconds: int) -> list[str]:
        """wrk's arguments."""
        command = [servers.find_program("wrk") or "wrk", "-t1", f"-c{self.connections}", f"-d{seconds}s"]
        if self.closing:
            command += ["-H", "Connection: close"]
        url = f"http://{servers.HOST}:{port}/"
        if self.pipeline > 1:
            return [*command, "-s", str(servers.HERE / "pipeline.lua"), url, "--", str(self.pipeline)]
        return [*command, url]


@dataclass(frozen=True)
class Answered:
    """What the generator reports: requests completed, errors of any kind; its own CPU and its time, in seconds."""

    requests: int
    errors: int
    cpu_seconds: float
    wall_seconds: float


def parse_wrk(text: str) -> tuple[int, int]:
    """(requests completed, errors) of wrk's summary."""
    completed = COMPLETED.search(text)
    if completed is None:
        raise servers.BenchError(f"wrk said: {text.strip()[-200:]!r}")
    errors = [int(number) for match in (SOCKET_ERRORS.search(text), OTHER_STATUS.search(text)) if match
              for number in match.groups()]
    return int(completed.group(1)), sum(errors)


def run_wrk(load: Load, port: int, seconds: float, core: int | None = None) -> Answered:
    """Ask for so long. wrk counts in whole seconds: a fraction of one is ended by SIGINT, upon which it reports."""
    whole = math.ceil(seconds)
    began = time.monotonic()
    process = servers.start_process(load.command(port, whole), core, stdin=subprocess.DEVNULL, text=True,
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    before = os.times()
    try:
        try:
            text, _ = process.communicate(timeout=seconds if whole != seconds else seconds + WRK_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            text, _ = process.communicate(timeout=WRK_GRACE_SECONDS)
    finally:
        servers.end_process(process)
    wall, after = time.monotonic() - began, os.times()
    if process.returncode:
        raise servers.BenchError(f"wrk failed: {text.strip()[-200:]}")
    requests, errors = parse_wrk(text)
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Answered(requests, errors, cpu, wall)

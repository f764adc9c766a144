"""What is measured, as data: the loads, who is compared with whom under each, and what is asked of epollkit."""
from __future__ import annotations

from dataclasses import dataclass

from .generators import GeneratorLoad
from .load import Load
from .stream_load import ConnectLoad, EchoLoad, TlsLoad

SECONDS = 3.0                       # of a round
USER_SECONDS = 5.0                  # if a target is about user time: 60 s of ticks in 15 rounds of a server busy 80 %
IDLE_CONNECTIONS = 15_000
IDLE_BYTES_AT_MOST = {"http": 160, "echo": 256}     # resident, per idle keep-alive connection or stream
CALLS_PER_REQUEST = 2               # recv and send; and one epoll_wait per batch
AGAIN = "epollkit again"            # the A/A pair


@dataclass(frozen=True)
class Setup:
    """A server, and how many idle connections it holds while it is measured."""

    server: str
    idle: int = 0


@dataclass(frozen=True)
class Target:
    """What is asked for: CPU time (`cpu`) or user time (`user`) per request at most so many times the other's; or
    `throughput`, at least so many times. Where `more_instructions` are given, so many more per request will also do.
    """

    quantity: str
    limit: float
    more_instructions: float | None = None

    @property
    def sign(self) -> str:
        """On which side of the limit it is met."""
        return ">=" if self.quantity == "throughput" else "<="


@dataclass(frozen=True)
class Comparison:
    """Two setups that are measured side by side; the ratio is the first one's cost divided by the second one's."""

    label: str
    first: Setup
    second: Setup
    targets: tuple[Target, ...] = ()

    @property
    def servers(self) -> set[str]:
        """Whose programs it needs."""
        return {self.first.server, self.second.server}


@dataclass(frozen=True)
class Mode:
    """One load and the comparisons under it."""

    name: str
    title: str
    load: Load
    comparisons: tuple[Comparison, ...]
    deferred: bool = False
    unit: str = "request"

    @property
    def servers(self) -> list[str]:
        """All that take part."""
        return [*dict.fromkeys(setup.server for each in self.comparisons for setup in (each.first, each.second))]

    @property
    def seconds(self) -> float:
        """How long its rounds are, unless the user says otherwise."""
        asked = {target.quantity for comparison in self.comparisons for target in comparison.targets}
        return USER_SECONDS if "user" in asked else SECONDS


def against(server: str, label: str, *targets: Target) -> Comparison:
    """epollkit against one of its peers."""
    return Comparison(label, Setup("epollkit"), Setup(server), targets)


SAME = against("epollkit", AGAIN)


def keep_alive(connections: int) -> Mode:
    """One request at a time on each of so many connections."""
    return Mode(f"keep-alive-{connections}", f"keep-alive, {connections:,} connections", Load(connections), (
        SAME,
        against("floor", "C floor", Target("cpu", 1.08)),
        against("nginx", "nginx", Target("cpu", 0.92), Target("user", 0.6)),
        against("uvloop", "uvloop + httptools")))


MODES = (
    keep_alive(64),
    keep_alive(1000),
    Mode("pipelined-16", "pipelined 16 deep, 64 connections", Load(64, pipeline=16), (
        SAME,
        against("floor", "C floor", Target("cpu", 1.4)),
        against("nginx", "nginx"),
        against("uvloop", "uvloop + httptools", Target("cpu", 0.7)))),
    Mode("one-request", "one request per connection", Load(64, closing=True), (
        SAME,
        against("floor", "C floor"),
        against("nginx", "nginx", Target("cpu", 1.0)),
        against("uvloop", "uvloop + httptools"))),
    Mode("one-request-deferred", "one request per connection, deferred accept", Load(64, closing=True), (
        SAME,
        against("floor", "C floor", Target("cpu", 1.15)),
        against("nginx", "nginx, listen ... deferred", Target("cpu", 1.0))), deferred=True),
    Mode("idle-beside", f"64 busy with {IDLE_CONNECTIONS:,} idle beside", Load(64), (
        SAME,
        Comparison("64 busy alone", Setup("epollkit", IDLE_CONNECTIONS), Setup("epollkit"), (Target("cpu", 1.1),)))),
    Mode("echo-1k", "echo, 64 connections x 1 KiB", EchoLoad(64), (
        SAME,
        against("floor", "C echo", Target("cpu", 1.1)),
        against("uvloop", "uvloop's Protocol", Target("user", 0.5)),
        Comparison("no timeouts", Setup("timeouts"), Setup("epollkit"),
                   (Target("cpu", 1.05, more_instructions=60),))), unit="message"),
    Mode("echo-1m", "echo, 8 connections x 1 MiB", EchoLoad(8, message_bytes=1 << 20), (
        SAME,
        against("floor", "C echo", Target("throughput", 0.95)),
        against("uvloop", "uvloop's Protocol")), unit="message"),
    Mode("echo-tls", "TLS echo, 64 connections x 1 KiB", TlsLoad(64), (
        SAME,
        against("uvloop", "uvloop's Protocol", Target("cpu", 1.0))), unit="message"),
    Mode("connect", "connect, one request, close; 16 at a time", ConnectLoad(16), (
        SAME,
        against("uvloop", "uvloop's create_connection", Target("cpu", 0.75))), unit="connection"),
    Mode("siege-keep-alive-64", "load generator, keep-alive, 64 connections", GeneratorLoad(64), (
        SAME,
        against("wrk", "wrk", Target("user", 1.0), Target("cpu", 1.05)),
        against("ab", "ab -k", Target("cpu", 1.0)))),
    Mode("siege-pipelined-16", "load generator, pipelined 16 deep, 64 connections",
         GeneratorLoad(64, pipeline=16, asked="epollkit"), (
             SAME,
             against("wrk", "wrk", Target("user", 0.8)))),
    Mode("siege-one-request", "load generator, one request per connection", GeneratorLoad(64, closing=True), (
        SAME,
        against("wrk", "wrk", Target("cpu", 1.0)),
        against("ab", "ab"),
        Comparison("one source address", Setup("spread"), Setup("epollkit"), (Target("cpu", 1.05),)))),
)
NEEDS_CC = ("echo-1k", "echo-1m", "connect")        # for their generator, or their peer
NEEDS_OPENSSL = ("echo-tls",)
NEEDS_NGINX = ("siege-keep-alive-64", "siege-one-request")      # who is asked there
MEMORY = "memory"
SYSTEM_CALLS = "system-calls"
INSTRUCTIONS = "instructions"
STALE_CHECK = "stale-check"
SIEGE_RECORD = "siege-record"
MODE_NAMES = [*(mode.name for mode in MODES), MEMORY, SYSTEM_CALLS, INSTRUCTIONS, STALE_CHECK, SIEGE_RECORD]
QUICK_MODES = ["keep-alive-64", "pipelined-16", MEMORY, SYSTEM_CALLS]

MEMORY_SERVERS = {"http": ("epollkit", "nginx", "uvloop"), "echo": ("epollkit", "uvloop")}
SYSTEM_CALL_SERVERS = ("epollkit", "floor", "nginx", "uvloop")
SYSTEM_CALL_LOAD = Load(64)

INSTRUCTION_MODES = ("keep-alive-64", "keep-alive-1000", "pipelined-16", "one-request", "echo-1k", "echo-tls",
                     "connect", "siege-keep-alive-64", "siege-pipelined-16", "siege-one-request")

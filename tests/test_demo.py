"""`epollkit demo`: what it finds, how it ends, and that its judges can tell a guilty server from an innocent one."""
from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pty
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import epollkit
from epollkit import cli
from epollkit.demo import report, runner
from epollkit.demo.application import BANNED_SOURCE, Application, admit
from epollkit.demo.children import DemoFailed, Lines
from epollkit.demo.crowd import Burst, Crowd
from epollkit.demo.naive import NaiveConnection, NaiveServer
from epollkit.demo.peer import Kind, Peer, Pool

DEMO = [sys.executable, "-m", "epollkit.cli", "demo"]
PATIENCE_SECONDS = 100
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


# -- the command -------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One short run, and everything it printed."""
    done = subprocess.run([*DEMO, "--seconds", "4.5", "--seed", "7", "--json"], capture_output=True, text=True,
                          timeout=PATIENCE_SECONDS, cwd=tmp_path_factory.mktemp("elsewhere"))
    assert done.stdout, done.stderr
    return {"status": done.returncode, "stderr": done.stderr, **json.loads(done.stdout)}


def test_epollkit_meets_stale_events_and_delivers_none(found: dict[str, Any]) -> None:
    column = found["servers"]["epollkit"]
    assert found["failures"] == []
    assert column["stale_events"] > 0
    faults = ("wrong_deliveries", "wrong_kills", "killed", "crossed", "half_closed_unanswered", "unanswered")
    assert {name: column[name] for name in faults} == dict.fromkeys(faults, 0)
    assert column["half_closed"] > 0
    assert column["concurrent_peak"] >= 1000
    assert (found["passed"], found["status"], found["seed"]) == (True, 0, 7)


@pytest.mark.parametrize("twin", ["naive", "instance_bits_1"])
def test_the_twins_go_wrong_under_the_same_crowd(found: dict[str, Any], twin: str) -> None:
    """And the crowd, which only sees its own ends, counts the same dead as the server's own witness does."""
    column = found["servers"][twin]
    assert column["wrong_deliveries"] > 0
    assert column["killed"] > 0
    assert column["killed"] <= column["wrong_kills"]


def test_only_the_naive_twin_leaves_half_closed_clients_unanswered(found: dict[str, Any]) -> None:
    assert found["servers"]["naive"]["half_closed_unanswered"] > 0
    assert found["servers"]["instance_bits_1"]["half_closed_unanswered"] == 0


def test_json_says_in_which_units_it_counts(found: dict[str, Any]) -> None:
    column = found["servers"]["epollkit"]
    assert 0 < column["cpu_seconds"] < PATIENCE_SECONDS
    assert 0 < column["rss_bytes"] <= column["rss_peak_bytes"]
    assert 1 < column["elapsed_seconds"] < PATIENCE_SECONDS
    assert column["connections_per_second"] > 0
    assert "epollkit passed" in found["verdict"]
    assert "left" in found["stderr"]        # progress is there, and not in the way of the JSON


def test_in_a_pipe_it_prints_plain_lines_and_the_table(tmp_path: Path) -> None:
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    done = subprocess.run([*DEMO, "--seconds", "1.5", "--seed", "1"], capture_output=True, text=True, cwd=tmp_path,
                          timeout=PATIENCE_SECONDS, env=environment)
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout
    assert "connections killed wrongly" in done.stdout
    assert "The crowd's seed was 1." in done.stdout
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--seconds", "0"], "is not a duration above 0"),
    (["--seconds", "1"], "is not between 1.5 seconds and one hour"),
    (["--seconds", "5h"], "is not between 1.5 seconds and one hour"),
    (["--seconds", "soon"], "is not a duration"),
    (["--seed", "-1"], "is not a whole number from 0"),
    (["--seed", "x"], "is not a whole number from 0"),
    (["--seed", str(2**32)], "is not a whole number from 0"),
    (["extra"], "unrecognized arguments"),
])
def test_wrong_usage_gets_one_sentence_and_status_2(
        arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", *arguments])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


@contextlib.contextmanager
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A demo whose first round is under way."""
    process = subprocess.Popen([*DEMO, "--seconds", "90"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               cwd=tmp_path)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "left" in line:
                break
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_can_be_interrupted_and_leaves_no_process(tmp_path: Path, number: signal.Signals, status: int) -> None:
    with running(tmp_path) as process:
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 3 * (1 + runner.CLIENTS)
        process.send_signal(number)
        _, complaint = process.communicate(timeout=10)
        assert process.returncode == status
        assert complaint == "epollkit demo: stopped before its end; no process is left\n"
        assert not [child for child in children if child.is_running()]
        assert not list(tmp_path.iterdir())


def test_no_process_outlives_a_runner_that_was_killed(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive


@pytest.mark.parametrize(("module", "who"), [("servers", "the epollkit server"), ("crowd", "the crowd's process")])
def test_a_child_that_dies_ends_it_with_one_sentence(tmp_path: Path, module: str, who: str) -> None:
    with running(tmp_path) as process:
        children = psutil.Process(process.pid).children(recursive=True)
        next(child for child in children if module in child.cmdline()).kill()
        _, complaint = process.communicate(timeout=10)
        assert process.returncode == 1
        assert complaint.startswith(f"epollkit demo: {who}")
        assert complaint.endswith("was killed by SIGKILL before it was done\n")
        assert not [child for child in children if child.is_running()]


def test_a_reader_that_goes_away_ends_it(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.wait(10) == 1
        assert process.stderr.read() == ""
        process.stdout = None       # communicate() has nothing to read any more


def test_on_a_terminal_the_view_is_live(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    try:
        process = subprocess.Popen([*DEMO, "--seconds", "90"], stdout=slave, stderr=slave, cwd=tmp_path,
                                   env=environment)
        try:
            shown = b""
            while b" s left" not in shown:
                assert select.select([master], [], [], PATIENCE_SECONDS)[0], shown
                shown += os.read(master, 65536)
            assert b"\x1b[" in shown
            assert b"instance_bits=1" in shown
            process.send_signal(signal.SIGINT)
            while process.poll() is None:
                if select.select([master], [], [], 0.1)[0]:
                    shown += os.read(master, 65536)
            assert process.returncode == 130
            assert shown.count(b"\x1b[?25h") >= shown.count(b"\x1b[?25l"), "the cursor is still hidden"
        finally:
            process.kill()
            process.wait()
    finally:
        os.close(master)
        os.close(slave)


# -- the verdict -------------------------------------------------------------------------------------------------------

def clean_column(name: str = "epollkit") -> report.Column:
    return report.Column(name, connections=9000, requests=20000, concurrent_peak=1100, stale_events=500, half_closed=10)


@pytest.mark.parametrize(("field", "value", "sentence"), [
    ("stale_events", 0, "met no stale event"),
    ("concurrent_peak", 999, "only 999 connections"),
    ("wrong_deliveries", 1, "wrong deliveries: 1"),
    ("killed", 1, "connections killed wrongly: 1"),
    ("crossed", 1, "answers that crossed: 1"),
    ("half_closed_unanswered", 1, "half-closed clients left unanswered: 1"),
    ("unanswered", 1, "requests never answered: 1"),
])
def test_each_fault_alone_fails_epollkit(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], field: str, value: int,
        sentence: str) -> None:
    def play(self: runner.Runner) -> None:
        for name in self.columns:
            self.columns[name].__dict__.update(dataclasses.asdict(clean_column(name)))
        setattr(self.columns["epollkit"], field, value)

    monkeypatch.setattr(runner.Runner, "play", play)
    assert cli.main(["demo", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is False
    assert len(found["failures"]) == 1
    assert sentence in found["failures"][0]
    assert "FAILED" in found["verdict"]


def test_faults_of_the_twins_do_not_fail_epollkit() -> None:
    columns = {name: clean_column(name) for name in report.SERVERS}
    columns["naive"].wrong_deliveries = columns["naive"].killed = columns["instance_bits_1"].crossed = 5
    assert report.failures(columns["epollkit"]) == []
    assert report.as_json(columns, {})["passed"] is True
    assert report.verdict(columns).startswith("epollkit passed")


def test_too_few_descriptors_are_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1100))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    with pytest.raises(DemoFailed, match=r"may open 1100 files here, and the server needs 1240"):
        runner.raise_fd_limit()


# -- the naive twin and its witness ------------------------------------------------------------------------------------

class Stage:
    """A naive server without load, and clients whose events are put into one batch, in order."""

    def __init__(self, server: NaiveServer, port: int) -> None:
        self.server = server
        self.port = port
        self.clients: list[socket.socket] = []
        self.fillers: list[int] = []

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        client = socket.socket()
        client.settimeout(10)
        client.bind((source, 0))
        client.connect(("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    def settle(self) -> None:
        """Until the server has nothing left to do."""
        while select.select([self.server.epoll], [], [], 0)[0]:
            self.server.turn(0)

    def ask(self, client: socket.socket, nonce: str, path: str = "/echo", more: str = "") -> None:
        client.sendall(f"GET {path}?nonce={nonce}&turn=0{more} HTTP/1.1\r\nHost: demo\r\n\r\n".encode())

    def fd_of(self, client: socket.socket) -> int:
        return next(connection.fd for connection in self.server.connections.values()
                    if connection.sock.getpeername() == client.getsockname())

    def reset(self, client: socket.socket) -> None:
        """Send RST. The client's number stays taken: clients and server share one table of descriptors here."""
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.fill_holes(0)
        os.dup2(self.fillers[0], client.fileno())

    def fill_holes(self, below: int) -> None:
        """Leave no descriptor free below this one: the next to be closed is the next to be handed out."""
        self.fillers.append(os.open(os.devnull, os.O_RDONLY))
        while self.fillers[-1] < below:
            self.fillers.append(os.open(os.devnull, os.O_RDONLY))

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for filler in self.fillers:
            os.close(filler)
        self.server.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    application = Application()
    server = NaiveServer(application.answer, admit)
    made = Stage(server, server.listen(("127.0.0.1", 0)))
    yield made
    made.close()


def give_order(stage: Stage) -> tuple[socket.socket, int]:
    """A has asked for B to be closed; B's event is not there yet. Returns B and its descriptor."""
    giver, victim = stage.connect(), stage.connect()
    stage.settle()
    stage.ask(giver, "A")
    stage.ask(victim, "B")
    stage.settle()
    fd = stage.fd_of(victim)
    stage.fill_holes(fd)
    stage.ask(giver, "A", "/swap", "&victims=B")
    return victim, fd


def test_the_naive_witness_sees_a_stale_reset_kill_the_newcomer(stage: Stage) -> None:
    """One batch: A's order, the listener, B's reset. The newcomer has B's descriptor, and is closed in B's place."""
    victim, fd = give_order(stage)
    newcomer = stage.connect()
    stage.reset(victim)
    stage.server.turn(1)
    assert (stage.server.stale_events, stage.server.wrong_deliveries, stage.server.wrong_kills) == (1, 1, 1)
    assert fd not in stage.server.connections
    assert newcomer.recv(1) == b""


def test_a_stale_event_that_nobody_inherits_is_no_wrong_delivery(stage: Stage) -> None:
    victim, fd = give_order(stage)
    stage.reset(victim)
    stage.server.turn(1)
    assert (stage.server.stale_events, stage.server.wrong_deliveries, stage.server.wrong_kills) == (1, 0, 0)
    assert fd not in stage.server.connections


def test_without_orders_the_naive_server_is_innocent(stage: Stage) -> None:
    """It pipelines, keeps alive, refuses who is banned, and meets nothing stale."""
    client, banned = stage.connect(), stage.connect(BANNED_SOURCE)
    for nonce in "ABC":
        stage.ask(client, nonce)
    stage.settle()
    assert [answer.split(b" ")[0] for answer in client.recv(4096).split(b"\r\n\r\n")[1:]] == [b"A.0", b"B.0", b"C.0"]
    with pytest.raises(ConnectionResetError):
        banned.recv(1)
    stage.ask(client, "D")
    stage.settle()
    assert client.recv(4096).partition(b"\r\n\r\n")[2].startswith(b"D.0")
    assert (stage.server.stale_events, stage.server.wrong_deliveries) == (0, 0)


def test_the_naive_server_drops_the_request_of_a_half_closed_client(stage: Stage) -> None:
    client = stage.connect()
    stage.settle()
    stage.ask(client, "A")
    client.shutdown(socket.SHUT_WR)
    stage.settle()
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""


# -- the application, and the crowd's accounts -------------------------------------------------------------------------

class PairConnection:
    """A connection as the application sees one, on one end of a pair."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.is_closing = False

    def fileno(self) -> int:
        return self.sock.fileno()

    def abort(self) -> None:
        self.is_closing = True

    close = abort


def test_an_order_closes_only_whom_an_event_waits_for() -> None:
    application = Application()
    pairs = [socket.socketpair() for _ in range(4)]
    try:
        connections = [PairConnection(here) for here, _ in pairs]
        for name, connection in zip("ABCD", connections, strict=True):
            application.answer(f"/echo?nonce={name}&turn=0", connection)
        pairs[1][1].send(b"x")
        pairs[2][1].shutdown(socket.SHUT_WR)
        answer = application.answer("/swap?nonce=A&turn=1&victims=B,C,D,E", connections[0])
        assert answer == b"A.1 %d B,C" % connections[0].fileno()
        assert [connection.is_closing for connection in connections] == [False, True, True, False]
    finally:
        for pair in pairs:
            for end in pair:
                end.close()


def test_the_application_forgets_who_lost_its_descriptor() -> None:
    """It is told of no close, so a descriptor's next user takes the place of the last one."""
    application = Application()
    here, there = socket.socketpair()
    with here, there:
        for number in range(100):
            application.answer(f"/echo?nonce={number}&turn=0", PairConnection(here))
    assert list(application.by_nonce) == ["99"]
    assert len(application.by_fd) == 1


@pytest.fixture
def crowd(loop: epollkit.Loop) -> Crowd:
    return Crowd(loop, seed=1, client=0, connections=10)


def peer(crowd: Crowd, kind: Kind = Kind.RESIDENT, **changes: Any) -> Peer:
    """A connection of the crowd that was asked once, without a socket."""
    made = Peer(crowd, kind, "0-1", 1)
    made.asked = 1
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def named(victim: Peer) -> Peer:
    """As an order's victim whose case was decided: the answer names it."""
    Burst(victim.crowd, victim, victim, [victim]).judge([victim.nonce])
    return victim


@pytest.mark.parametrize(("make", "killed", "half_closed"), [
    (lambda crowd: peer(crowd), 1, 0),
    (lambda crowd: peer(crowd, answered=1), 1, 0),
    (lambda crowd: peer(crowd, Kind.CHURN), 1, 0),
    (lambda crowd: peer(crowd, Kind.BANNED), 0, 0),
    (lambda crowd: peer(crowd, farewell=True), 0, 0),
    (lambda crowd: peer(crowd, named=True), 0, 0),
    (lambda crowd: named(peer(crowd, named=True)), 0, 0),
    (lambda crowd: peer(crowd, Kind.HALF_CLOSE, farewell=True), 0, 1),
    (lambda crowd: peer(crowd, Kind.HALF_CLOSE, farewell=True, answered=1), 0, 0),
], ids=["asked", "idle", "churn", "banned", "farewell", "undecided", "by order", "half-closed", "half-closed, served"])
def test_an_end_is_a_wrong_kill_unless_there_was_a_reason(
        crowd: Crowd, make: Callable[[Crowd], Peer], killed: int, half_closed: int) -> None:
    make(crowd).end()
    assert (crowd.counts["killed"], crowd.counts["half_closed_unanswered"]) == (killed, half_closed)


def test_a_victim_that_ended_although_its_order_was_refused_was_killed(crowd: Crowd) -> None:
    victim = peer(crowd, named=True)
    victim.end()
    assert crowd.counts["killed"] == 0      # the order's answer has not come
    Burst(crowd, victim, victim, [victim]).judge([])
    assert crowd.counts["killed"] == 1


@pytest.mark.parametrize(("answer", "crossed"), [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n0-1.0 9", 0),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n0-2.0 9", 1),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n0-1.1 9", 1),
    (b"HTTP/1.1 500 No\r\nContent-Length: 7\r\n\r\n0-1.0 9", 1),
    (b"".join(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n0-1.%d 9" % turn for turn in (0, 1)), 1),
    (b"HTTP/1.1 102 Processing\r\n\r\n", 0),
], ids=["its own", "another's nonce", "out of turn", "an error", "one too many", "interim"])
def test_an_answer_must_be_the_one_that_was_asked_for(crowd: Crowd, answer: bytes, crossed: int) -> None:
    """However it is cut into pieces."""
    for size in (len(answer), 1, 5):
        asker = peer(crowd)
        crowd.counts["crossed"] = 0
        for start in range(0, len(answer), size):
            asker.take(answer[start:start + size])
        assert crowd.counts["crossed"] == crossed, size


def test_the_pool_forgets_whom_it_gave_away(crowd: Crowd) -> None:
    pool = Pool()
    peers = [peer(crowd) for _ in range(5)]
    for member in peers:
        pool.add(member)
        pool.add(member)
    pool.discard(peers[0])
    pool.discard(peers[0])
    taken = [pool.take_random(crowd.random) for _ in range(4)]
    assert set(taken) == set(peers[1:])
    assert len(pool) == 0


def test_reports_may_come_in_any_pieces() -> None:
    data = b'{"a": 1}\n{"b": 2}\n{"c": 3}\n'
    for cut in range(len(data)):
        lines = Lines()
        assert lines.feed(data[:cut]) + lines.feed(data[cut:]) == [{"a": 1}, {"b": 2}, {"c": 3}]


def test_naive_connections_answer_to_what_the_application_needs() -> None:
    assert {"fileno", "abort", "close", "is_closing"} <= set(dir(NaiveConnection))

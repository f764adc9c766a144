"""The benchmark measures what it says: arithmetic, floors, accounts. No test looks at how fast anything is."""
from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent


def load_bench() -> ModuleType:
    """Import bench from the source tree without putting the tree on the path: epollkit must be the installed one."""
    if "bench" not in sys.modules:
        where = ROOT / "bench"
        spec = importlib.util.spec_from_file_location("bench", where / "__init__.py",
                                                      submodule_search_locations=[str(where)])
        assert spec and spec.loader
        sys.modules["bench"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["bench"])
    return sys.modules["bench"]


load_bench()

from bench import __main__ as command  # noqa: E402
from bench import (  # noqa: E402
    callgrind,
    generators,
    idle,
    instructions,
    load,
    measure,
    modes,
    record,
    report,
    runner,
    servers,
    stale,
    stream_load,
    stream_servers,
    syscalls,
)

KEEP, CLOSE, ONE_ANSWER = servers.REQUEST, servers.CLOSE_REQUEST, b"HTTP/1.1 200 OK"
PATIENCE_SECONDS = 20


def made_round(cpu_us: float, user_share: float = 0.1, requests: int = 1000, **changes: float) -> measure.Round:
    """A round of which only the cost per request matters."""
    cpu = cpu_us * requests / 1e6
    values = {"requests": requests, "errors": 0, "cpu_seconds": cpu, "user_seconds": cpu * user_share,
              "system_seconds": cpu * (1 - user_share), "generator_cpu_seconds": 0.0, "wall_seconds": 1.0,
              "steal_share": 0.0, "others_share": 0.0}
    return measure.Round(**{**values, **changes})


def made_pairs(ratios: list[float]) -> list[measure.Pair]:
    return [(made_round(5.0 * ratio), made_round(5.0)) for ratio in ratios]


# The arithmetic


def test_the_figure_is_the_median_of_the_ratios_pair_by_pair():
    """The machine is twice as slow during the second pair; a ratio of medians would be off."""
    pairs = [(made_round(one), made_round(other)) for one, other in ((6.0, 5.0), (11.0, 10.0), (5.0, 5.0))]
    assert measure.cpu_ratio(pairs).median == pytest.approx(1.1)


def test_bootstrap_of_equal_values_has_no_width():
    assert measure.bootstrap([1.5] * 9, statistics.median) == measure.Interval(1.5, 1.5, 1.5)


def test_bootstrap_repeats_itself_and_encloses_the_median():
    values = [1.0, 1.1, 0.9, 1.3, 0.8, 1.05, 0.97]
    found = measure.bootstrap(values, statistics.median)
    assert found == measure.bootstrap(values, statistics.median)
    assert found != measure.bootstrap(values, statistics.median, seed=1) or found.low in values
    assert min(values) <= found.low <= found.median <= found.high <= max(values)


def test_bootstrap_interval_of_a_known_mean():
    """0 and 1 in equal parts, 400 of them: the standard error of the mean is 0.025, so the interval is 0.5 +- 0.049."""
    found = measure.bootstrap([0.0, 1.0] * 200, statistics.fmean)
    assert found.median == 0.5
    assert found.low == pytest.approx(0.451, abs=0.01)
    assert found.high == pytest.approx(0.549, abs=0.01)


def test_bootstrap_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="nothing"):
        measure.bootstrap([], statistics.median)


def test_user_time_is_the_cpu_time_times_the_pooled_share_of_ticks():
    """A round without a single tick counts by its CPU time."""
    rounds = [made_round(5.0, user_share=0.2), made_round(5.0, user_seconds=0.0, system_seconds=0.0)]
    assert measure.user_us_per_request(rounds) == pytest.approx(1.0)


def test_user_ratio_without_a_tick_is_infinite_and_never_decided():
    found = measure.user_ratio([(made_round(5.0), made_round(5.0, user_share=0.0))] * 3)
    assert found.median == float("inf")
    assert measure.verdict(found, 0.6, measure.Interval(1, 1, 1)) == "undecided"


@pytest.mark.parametrize(("ratio", "target", "same", "expected"), [
    (1.05, 1.08, (0.99, 1.01), "met"),
    (1.08, 1.08, (0.99, 1.01), "met"),
    (1.09, 1.08, (0.99, 1.01), "missed"),
    (1.05, 1.08, (0.95, 1.05), "undecided"),        # two identical servers differ by more than the target asks for
    (1.05, 1.08, (0.90, 0.91), "undecided"),        # and an A/A interval beside 1 is not a narrow one
    (1.09, 1.08, (0.95, 1.05), "undecided"),
    (2.00, 1.08, (0.95, 1.05), "missed"),           # beyond all doubt
    (0.90, 0.92, (0.98, 1.01), "met"),
    (0.95, 0.92, (0.98, 1.01), "missed"),
    (0.90, 1.00, (0.98, 1.02), "met"),              # a target of 1: what counts is the distance found
    (0.99, 1.00, (0.98, 1.02), "undecided"),
    (1.02, 1.00, (0.98, 1.02), "undecided"),
    (1.10, 1.00, (0.98, 1.02), "missed"),
])
def test_verdict(ratio: float, target: float, same: tuple[float, float], expected: str):
    found = measure.Interval(ratio, ratio - 0.01, ratio + 0.01)
    assert measure.verdict(found, target, measure.Interval(sum(same) / 2, *same)) == expected


def test_without_an_a_a_pair_nothing_is_decided():
    assert measure.verdict(measure.Interval(0.5, 0.5, 0.5), 1.08, None) == "undecided"


@pytest.mark.parametrize(("values", "expected"), [
    ([100.0, 160.0], "met"), ([159.0, 161.0], "undecided"), ([161.0], "missed"), ([], "undecided")])
def test_absolute_verdict(values: list[float], expected: str):
    assert measure.absolute_verdict(values, 160) == expected


@pytest.mark.parametrize(("server", "generator", "expected"), [
    (1.0, 0.5, "server"), (0.5, 1.0, "generator"), (0.96, 0.96, "both"), (0.5, 0.5, "neither")])
def test_what_limited_a_round(server: float, generator: float, expected: str):
    assert made_round(1.0, cpu_seconds=server, generator_cpu_seconds=generator).limited_by == expected


# The pairs


def test_pairs_are_adjacent_and_alternate_in_order(monkeypatch: pytest.MonkeyPatch):
    """Each comparison's two servers run one right after the other; who goes first changes from pair to pair."""
    order: list[str] = []

    def fake(setup: modes.Setup, *_: object) -> measure.Round:
        order.append(setup.server)
        return made_round({"epollkit": 5.0, "floor": 4.0}[setup.server])

    monkeypatch.setattr(runner, "measure_round", fake)
    mode = modes.Mode("m", "m", load.Load(1), (modes.against("floor", "C floor"), modes.against("nginx", "nginx")))
    results = runner.Results(left_out={"nginx": "not installed"})
    runner.measure_mode(mode, servers.Workshop(), 3, 1.0, results, lambda _: None)
    assert order == ["epollkit", "floor", "floor", "epollkit", "epollkit", "floor"]
    assert list(results.pairs) == [("m", "C floor")]
    assert measure.cpu_ratio(results.pairs["m", "C floor"]).median == 1.25


def test_every_mode_has_its_a_a_pair():
    for mode in modes.MODES:
        assert mode.comparisons[0] == modes.SAME
        assert len({comparison.label for comparison in mode.comparisons}) == len(mode.comparisons)
        assert mode.deferred <= all(stream_servers.KINDS[mode.load.work][name].defers for name in mode.servers)


# Accounts


BURN = """
import sys, threading, time
def burn(seconds):
    while time.thread_time() < seconds:
        pass
thread = threading.Thread(target=burn, args=(0.1,))
thread.start(); burn(0.1); thread.join()
held = threading.Thread(target=sys.stdin.read)      # a second thread is alive while the account is read
print(flush=True); sys.stdin.readline()
"""


def test_account_counts_what_a_child_burns():
    process = servers.start_process([sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        before = measure.read_account([process.pid])
        process.stdout.readline()
        used = measure.read_account([process.pid]).since(before)
    finally:
        servers.end_process(process)
    assert used.cpu_ns >= 0.08e9
    assert used.user_seconds + used.system_seconds >= 0.08
    assert process.returncode is not None


def test_account_sums_over_threads():
    """A thread that burns while the first one waits."""
    script = ("import sys, threading, time\n"
              "def burn():\n    while time.thread_time() < 0.2: pass\n    print(flush=True); sys.stdin.readline()\n"
              "thread = threading.Thread(target=burn); thread.start(); thread.join()")
    process = servers.start_process([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        main_only = int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0])
        assert measure.read_account([process.pid]).cpu_ns - main_only >= 0.19e9
    finally:
        servers.end_process(process)


def test_the_machine_has_a_total_and_what_is_stolen_is_part_of_it():
    found = measure.read_machine(sorted(os.sched_getaffinity(0)))
    assert found.total_seconds >= found.busy_seconds + found.steal_seconds > 0


def test_resident_bytes_of_this_process():
    assert measure.resident_bytes([os.getpid()]) > 1_000_000


# The floors


@pytest.fixture(scope="module")
def workshop() -> Iterator[servers.Workshop]:
    with servers.Workshop() as made:
        yield made
    assert not made.path.exists()


@pytest.fixture
def floor(workshop: servers.Workshop, peer: Callable[[str], str]) -> Iterator[Callable[..., servers.Server]]:
    """Starts a floor; it compiles with -Wall -Wextra -Werror, or not at all."""
    peer("cc")
    started: list[servers.Server] = []

    def start(**options: bool) -> servers.Server:
        server = servers.Floor(workshop, **options)
        server.__enter__()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


def connect(server: servers.Server) -> socket.socket:
    return socket.create_connection((servers.HOST, server.port), PATIENCE_SECONDS)


def read_answers(sock: socket.socket, count: int) -> bytes:
    """Exactly so many answers."""
    got = b""
    while got.count(servers.BODY) < count:
        piece = sock.recv(65536)
        assert piece, f"{got!r}, then the end"
        got += piece
    assert got.count(ONE_ANSWER) == got.count(b"Content-Length: 13\r\n") == got.count(servers.BODY) == count
    assert got.endswith(b"\r\n\r\n" + servers.BODY)
    return got


def test_floor_keeps_a_connection(floor: Callable[..., servers.Server]):
    with connect(floor()) as sock:
        for _ in range(3):
            sock.sendall(KEEP)
            read_answers(sock, 1)


def test_floor_answers_a_pipeline(floor: Callable[..., servers.Server]):
    """More than it sends at once, too."""
    with connect(floor()) as sock:
        for count in (16, 200):
            sock.sendall(KEEP * count)
            read_answers(sock, count)


def test_floor_takes_a_head_in_any_two_pieces(floor: Callable[..., servers.Server]):
    with connect(floor()) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for cut in range(1, len(KEEP)):
            sock.sendall(KEEP[:cut])
            sock.sendall(KEEP[cut:])
            read_answers(sock, 1)


@pytest.mark.parametrize("deferred", [False, True])
def test_closing_floor_answers_once_and_closes(floor: Callable[..., servers.Server], deferred: bool):
    server = floor(closing=True, deferred=deferred)
    for _ in range(3):
        with connect(server) as sock:
            sock.sendall(CLOSE)
            assert b"Connection: close\r\n" in read_answers(sock, 1)
            assert sock.recv(1) == b""


def test_floor_survives_clients_that_leave(floor: Callable[..., servers.Server]):
    server = floor()
    for _ in range(3):
        with connect(server) as sock:
            sock.sendall(KEEP[:10])
    with connect(server) as sock:
        sock.sendall(KEEP)
        read_answers(sock, 1)


# Peers, and whatever is missing


def test_a_missing_peer_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(servers, "find_program", lambda _: None)
    found = runner.leave_out(["keep-alive-64", "system-calls", "instructions", "stale-check"], servers.FD_LIMIT)
    assert "apt-get install nginx" in found["nginx"]
    assert "apt-get install strace" in found["system-calls"]
    assert "apt-get install valgrind" in found["instructions"]
    assert "apt-get install valgrind" in found["stale-check"]


def test_without_a_compiler_or_openssl_only_what_needs_them_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(servers.Floor, "missing", lambda: "no C compiler")
    monkeypatch.setattr(servers, "find_program", lambda _: None)
    found = runner.leave_out(["echo-1k", "echo-tls", "keep-alive-64"], servers.FD_LIMIT)
    assert found["echo-1k"] == "no C compiler"
    assert "apt-get install openssl" in found["echo-tls"]
    assert not {"connect", "keep-alive-64"} & set(found)            # one was not asked for
    assert "connect" in runner.leave_out(["instructions"], servers.FD_LIMIT)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert servers.Uvloop.missing() == "no uvloop and no httptools (pip install -e .[bench])"


def test_too_few_descriptors_leave_out_what_needs_them():
    found = runner.leave_out(["idle-beside", "memory", "keep-alive-64"], 1024)
    assert "1024 descriptors are too few" in found["idle-beside"]
    assert "keep-alive-64" not in found


def test_what_is_left_out_is_in_the_report(capsys: pytest.CaptureFixture[str]):
    report.print_report(Console(), runner.Results(left_out={"nginx": "nginx is not installed"}),
                        {"pairs": 5, "seconds": 0.4})
    assert "Left out: nginx: nginx is not installed" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["epollkit", "nginx", "uvloop"])
@pytest.mark.parametrize("closing", [False, True])
def test_each_server_starts_answers_and_leaves_no_process(workshop: servers.Workshop, peer: Callable[[str], str],
                                                          name: str, closing: bool):
    kind = servers.SERVERS[name]
    if name == "nginx":
        peer(name)
    if kind.missing():
        pytest.skip(kind.missing())
    with kind(workshop, closing=closing) as server:
        pids = server.pids()
        assert pids
        if name == "epollkit":
            assert server.build in ("release", "debug")
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_server_that_does_not_start_is_quoted(workshop: servers.Workshop, monkeypatch: pytest.MonkeyPatch):
    broken = [sys.executable, "-c", "raise SystemExit('no such luck')"]
    monkeypatch.setattr(servers.Epollkit, "command", lambda _: broken)
    with pytest.raises(servers.BenchError, match="no such luck"), servers.Epollkit(workshop):
        pass


def test_the_idle_crowd_is_counted(floor: Callable[..., servers.Server]):
    server = floor()
    with idle.crowd(server.port, 20):
        assert measure.resident_bytes(server.pids()) > 0


def test_the_idle_crowd_of_streams_is_counted(workshop: servers.Workshop, peer: Callable[[str], str]):
    """Their answer is their request."""
    peer("cc")
    with stream_servers.FloorEcho(workshop) as server, idle.crowd(server.port, 20, work="echo"):
        assert measure.resident_bytes(server.pids()) > 0


def test_idle_connections_that_do_not_last_are_an_error(floor: Callable[..., servers.Server]):
    server = floor(closing=True)
    with pytest.raises(servers.BenchError, match="3 of 3 idle"), idle.crowd(server.port, 3):
        pass


def test_a_short_run_of_the_load(floor: Callable[..., servers.Server], peer: Callable[[str], str]):
    """wrk is interrupted within its first second, and reports; pipelined requests are counted one by one."""
    peer("wrk")
    server = floor()
    found = runner.measure_load(server, load.Load(4, pipeline=16), 0.2, server.workshop)
    assert found.requests > 0
    assert found.errors == 0
    assert found.cpu_seconds > 0


# Streams


class Parrot:
    """An echo server that counts. It serves so many connections, each in a thread of its own."""

    addresses = 1

    def __init__(self, connections: int, answer: Callable[[bytes, int], bytes] = lambda data, before: data,
                 tls: tuple[Path, Path] | None = None) -> None:
        self.left = connections
        self.answer = answer                # what is sent back for what came, and for how much there was before
        self.context = None
        if tls is not None:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(*tls)
        self.heard: list[int] = []          # bytes of each connection that has ended
        self.listener = socket.create_server((servers.HOST, 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.threads = [threading.Thread(target=self.accept)]

    def __enter__(self) -> Parrot:
        self.threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)        # wakes one who still waits for a connection
        for thread in self.threads:
            thread.join()
        self.listener.close()

    def accept(self) -> None:
        for _ in range(self.left):
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.threads.append(threading.Thread(target=self.serve, args=(sock,)))
            self.threads[-1].start()

    def serve(self, raw: socket.socket) -> None:
        heard = 0
        try:
            with self.context.wrap_socket(raw, server_side=True) if self.context else raw as sock:
                while data := sock.recv(65536):
                    if not (answer := self.answer(data, heard)):
                        break
                    sock.sendall(answer)
                    heard += len(data)
        except OSError:
            pass                    # who was told nonsense leaves without a word
        self.heard.append(heard)


def spoilt(data: bytes, before: int) -> bytes:
    """The last byte is another one, from the second read on."""
    return data[:-1] + bytes([data[-1] ^ 1]) if before else data


def backwards(data: bytes, before: int) -> bytes:
    return data[::-1]


def twice(data: bytes, before: int) -> bytes:
    return data * 2


def silent(data: bytes, before: int) -> bytes:
    return b""


@pytest.mark.parametrize(("work", "name"), [
    (work, name) for work, kinds in stream_servers.KINDS.items() for name in kinds
    if work not in ("http", "siege")])
def test_each_stream_server_starts_answers_and_leaves_no_process(workshop: servers.Workshop, peer: Callable[[str], str],
                                                                 work: str, name: str):
    """And each client, for which it is the other way round."""
    kind = stream_servers.KINDS[work][name]
    peer("openssl" if work == "tls" else "cc")
    if kind.missing():
        pytest.skip(kind.missing())
    with kind(workshop) as server:
        pids = server.pids()
        assert pids
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


ECHO_BACKWARDS = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
sock, _ = listener.accept()
sock.sendall(sock.recv(65536, socket.MSG_WAITALL)[::-1] or b"!")
"""


def test_a_server_that_does_not_echo_is_no_peer(workshop: servers.Workshop, monkeypatch: pytest.MonkeyPatch):
    script = ECHO_BACKWARDS.replace("65536", str(stream_servers.MESSAGE_BYTES))
    monkeypatch.setattr(stream_servers.FloorEcho, "command", lambda _: [sys.executable, "-c", script])
    with pytest.raises(servers.BenchError, match="C echo sent 1024 bytes back that are not"), \
            stream_servers.FloorEcho(workshop):
        pass


def stuff(sock: socket.socket) -> bytes:
    """Send, and read nothing, until for a while nobody takes any more. Returns what was sent."""
    piece = os.urandom(1 << 20)
    sent = b""
    sock.settimeout(0.1)
    with contextlib.suppress(TimeoutError):
        while True:
            sent += piece[:sock.send(piece)]
    sock.settimeout(PATIENCE_SECONDS)
    return sent


def test_floor_echoes_to_one_who_does_not_read_yet(workshop: servers.Workshop, peer: Callable[[str], str]):
    """It keeps what it has read, and reads on when that is gone; nothing comes that would wake it but room."""
    peer("cc")
    with stream_servers.FloorEcho(workshop) as server, connect(server) as sock:
        sent, got = stuff(sock), b""
        while len(got) < len(sent):
            got += sock.recv(1 << 20)
    assert got == sent


def test_floor_echo_survives_clients_that_leave(workshop: servers.Workshop, peer: Callable[[str], str]):
    """On each of its addresses; also with an answer that nobody takes, of which the next one to have the fd gets
    nothing."""
    peer("cc")
    with stream_servers.Peer(workshop) as server:
        with connect(server) as sock:
            stuff(sock)
        for number in range(1, server.addresses + 1):
            with socket.create_connection((f"127.0.0.{number}", server.port), PATIENCE_SECONDS) as sock:
                sock.sendall(b"hello")
                assert sock.recv(100) == b"hello"


@pytest.mark.parametrize("asked", [stream_load.EchoLoad(4), stream_load.EchoLoad(3, message_bytes=300_000),
                                   stream_load.EchoLoad(1, message_bytes=1), stream_load.TlsLoad(4),
                                   stream_load.TlsLoad(2, message_bytes=40_000)])
def test_the_generator_counts_what_the_server_echoes(workshop: servers.Workshop, peer: Callable[[str], str],
                                                     asked: stream_load.EchoLoad):
    peer("cc" if asked.work == "echo" else "openssl")
    with Parrot(asked.connections, tls=workshop.certificate() if asked.work == "tls" else None) as parrot:
        found = asked.run(parrot, 0.1, workshop)
    assert found.requests >= asked.connections
    assert found.requests * asked.message_bytes == sum(parrot.heard)
    assert len(parrot.heard) == asked.connections
    assert found.wall_seconds >= 0.1
    assert found.errors == 0


@pytest.mark.parametrize(("answer", "complaint"), [
    (spoilt, "not what was sent"), (twice, "not what was sent"), (silent, "closed")])
@pytest.mark.parametrize("asked", [stream_load.EchoLoad(1), stream_load.TlsLoad(1)])
def test_the_generator_looks_at_each_byte(workshop: servers.Workshop, peer: Callable[[str], str],
                                          asked: stream_load.EchoLoad, answer: Callable[[bytes, int], bytes],
                                          complaint: str):
    peer("cc" if asked.work == "echo" else "openssl")
    with Parrot(1, answer, workshop.certificate() if asked.work == "tls" else None) as parrot, \
            pytest.raises(servers.BenchError, match=complaint):
        asked.run(parrot, 5, workshop)


@pytest.mark.parametrize("name", ["epollkit", "uvloop"])
def test_a_client_connects_exactly_so_often(workshop: servers.Workshop, peer: Callable[[str], str], name: str):
    """One message on each connection, and no connection more."""
    peer("cc")
    kind = stream_servers.KINDS["connect"][name]
    if kind.missing():
        pytest.skip(kind.missing())
    with kind(workshop) as client:
        for count in (1, 7):
            with Parrot(1000) as parrot:
                client.order(parrot, 3, count)
                assert client.outcome()[0] == count
            assert parrot.heard == [64] * count


@pytest.mark.parametrize("name", ["epollkit", "uvloop"])
def test_a_client_stops_when_it_is_told(workshop: servers.Workshop, peer: Callable[[str], str], name: str):
    """Once what is under way is done: its count and the server's are the same."""
    peer("cc")
    kind = stream_servers.KINDS["connect"][name]
    if kind.missing():
        pytest.skip(kind.missing())
    with kind(workshop) as client, Parrot(100_000) as parrot:
        client.order(parrot, 3, stream_load.NO_END)
        client.tell("enough")
        completed, _ = client.outcome()
    assert completed >= 3
    assert parrot.heard == [64] * completed


@pytest.mark.parametrize("name", ["epollkit", "uvloop"])
@pytest.mark.parametrize("answer", [backwards, silent])
def test_a_client_looks_at_its_answer(workshop: servers.Workshop, peer: Callable[[str], str], name: str,
                                      answer: Callable[[bytes, int], bytes]):
    peer("cc")
    kind = stream_servers.KINDS["connect"][name]
    if kind.missing():
        pytest.skip(kind.missing())
    with kind(workshop) as client, Parrot(1, answer) as parrot:
        client.order(parrot, 1, 1)
        with pytest.raises(servers.BenchError, match="ended before it was done"):
            client.outcome()


def test_a_round_of_connecting_is_the_client_s(workshop: servers.Workshop, peer: Callable[[str], str]):
    """Its CPU is the figure, and the peer's is the generator's."""
    peer("cc")
    with stream_servers.EpollkitClient(workshop) as client:
        found = runner.measure_load(client, stream_load.ConnectLoad(4), 0.2, workshop)
    assert found.requests > 0
    assert found.cpu_seconds > 0
    assert found.generator_cpu_seconds > 0


# Load generators


def need(peer: Callable[[str], str], name: str, asked: str = "nginx") -> None:
    """The program of a generator, and of whom it asks."""
    if name in ("wrk", "ab"):
        peer(name)
    if asked == "nginx":
        peer(asked)


@pytest.mark.parametrize("name", ["nginx", "epollkit"])
def test_who_is_asked_counts_its_requests(workshop: servers.Workshop, peer: Callable[[str], str], name: str):
    """All but the questions; also those that come on one connection."""
    if name == "nginx":
        peer(name)
    with generators.ASKED[name](workshop) as server:
        before = server.count()
        assert server.count() == before
        with connect(server) as sock:
            for _ in range(3):
                sock.sendall(KEEP)
                assert servers.BODY in sock.recv(4096)
        assert [server.count(), server.count()] == [before + 3] * 2


def test_who_does_not_say_how_many_is_an_error(workshop: servers.Workshop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generators.AskedEpollkit, "ask", lambda _: b"HTTP/1.1 404 Not Found\r\n\r\n")
    with generators.AskedEpollkit(workshop) as server, pytest.raises(servers.BenchError, match="how many requests"):
        server.count()


@pytest.mark.parametrize(("name", "asked"), [
    ("epollkit", generators.GeneratorLoad(4)),
    ("epollkit", generators.GeneratorLoad(4, pipeline=16, asked="epollkit")),
    ("epollkit", generators.GeneratorLoad(4, closing=True)), ("spread", generators.GeneratorLoad(4, closing=True)),
    ("wrk", generators.GeneratorLoad(4)), ("wrk", generators.GeneratorLoad(4, pipeline=16, asked="epollkit")),
    ("wrk", generators.GeneratorLoad(4, closing=True)),
    ("ab", generators.GeneratorLoad(4)), ("ab", generators.GeneratorLoad(4, closing=True))])
def test_a_round_of_a_generator(workshop: servers.Workshop, peer: Callable[[str], str], name: str,
                                asked: generators.GeneratorLoad):
    """Its CPU is the figure; its count and the server's are the same; nothing is left of either."""
    need(peer, name, asked.asked)
    with asked.server(generators.GENERATORS[name], workshop) as running:
        pids = running.pids() + running.asked.pids()
        found = runner.measure_load(running, asked, 0.2, workshop)
    assert found.requests > 0
    assert found.cpu_seconds > 0
    assert found.generator_cpu_seconds > 0
    assert running.errors == 0
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_the_worker_of_a_siege_is_counted(workshop: servers.Workshop, peer: Callable[[str], str]):
    need(peer, "epollkit")
    asked = generators.GeneratorLoad(4)
    with asked.server(generators.Siege, workshop) as running:
        command, worker = running.pids()
        assert b"siege" in Path(f"/proc/{command}/cmdline").read_bytes()
        assert f"\nPPid:\t{command}\n" in Path(f"/proc/{worker}/status").read_text()


@pytest.mark.parametrize(("answered", "errors", "fits"), [
    (100, 0, True), (96, 0, True), (95, 0, False), (101, 0, False), (90, 6, True), (90, 5, False)])
def test_a_generator_and_the_server_have_to_agree(workshop: servers.Workshop, monkeypatch: pytest.MonkeyPatch,
                                                  answered: int, errors: int, fits: bool):
    """But for what was under way at the end, here four requests, and what failed."""
    generator = generators.GeneratorLoad(2, pipeline=2).server(generators.Wrk, workshop)
    generator.before = 1000
    monkeypatch.setattr(generator.asked, "count", lambda: 1100)
    monkeypatch.setattr(generator, "outcome", lambda _: (answered, errors))
    with contextlib.nullcontext() if fits else pytest.raises(servers.BenchError, match=f"says it had {answered} ans"):
        assert generator.reconcile("") == (answered, errors)


OBSTINATE = """
import http.client, signal, sys
signal.signal(signal.SIGINT, getattr(signal, sys.argv[1]))
asked = http.client.HTTPConnection("127.0.0.1", int(sys.argv[2]))
while True:
    asked.request("GET", "/")
    asked.getresponse().read()
"""


@pytest.mark.parametrize(("upon_interrupt", "complaint"), [
    ("SIG_NO", "does not ask: AttributeError"), ("SIG_IGN", "does not stop"), ("SIG_DFL", "ended with status -2")])
def test_a_generator_that_does_not_do_as_it_is_told(workshop: servers.Workshop, peer: Callable[[str], str],
                                                    monkeypatch: pytest.MonkeyPatch, upon_interrupt: str,
                                                    complaint: str):
    peer("nginx")
    monkeypatch.setattr(generators, "STOP_SECONDS", 0.2)
    monkeypatch.setattr(generators.Wrk, "command", lambda self: [
        sys.executable, "-c", OBSTINATE, upon_interrupt, str(self.asked.port)])
    with pytest.raises(servers.BenchError, match=complaint), \
            generators.GeneratorLoad(1).server(generators.Wrk, workshop):
        pass


def test_a_generator_that_ends_early_is_no_figure(workshop: servers.Workshop, peer: Callable[[str], str]):
    need(peer, "ab")
    asked = generators.GeneratorLoad(4)
    with pytest.raises(servers.BenchError, match="ab ended before it was told to"), \
            asked.server(generators.ApacheBench, workshop) as running:
        running.process.kill()
        running.process.wait()
        asked.run(running, 0.01, workshop)


def test_its_errors_are_the_round_s(workshop: servers.Workshop, peer: Callable[[str], str],
                                    monkeypatch: pytest.MonkeyPatch):
    need(peer, "wrk")
    monkeypatch.setattr(generators, "parse_wrk", lambda text: (load.parse_wrk(text)[0], 7))
    mode = modes.Mode("m", "m", generators.GeneratorLoad(4), ())
    assert runner.measure_round(modes.Setup("wrk"), mode, workshop, 0.2).errors == 7


@pytest.mark.parametrize("name", ["epollkit", "wrk", "ab"])
def test_instructions_of_a_generator(workshop: servers.Workshop, peer: Callable[[str], str],
                                     monkeypatch: pytest.MonkeyPatch, name: str):
    """Python's start would be a hundred thousand for each."""
    peer("valgrind")
    need(peer, name)
    monkeypatch.setattr(generators, "COUNTED_REQUESTS", 500)
    mode = modes.Mode("m", "m", generators.GeneratorLoad(4), ())
    found = instructions.measure_instructions(name, mode, workshop, 1)
    assert found.requests == 1000 or name == "wrk"
    assert 500 < found.least < 40_000


def test_generators_are_named_if_they_are_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(servers, "find_program", lambda _: None)
    found = runner.leave_out(["siege-keep-alive-64", "siege-pipelined-16", "siege-record"], servers.FD_LIMIT)
    assert "apt-get install apache2-utils" in found["ab"]
    assert "apt-get install wrk" in found["wrk"]
    assert "apt-get install nginx" in found["siege-keep-alive-64"]
    assert "apt-get install valgrind" in found["siege-record"]
    assert not {"siege-pipelined-16", "siege-one-request", "epollkit", "spread"} & set(found)
    assert "ab" not in runner.leave_out(["keep-alive-64"], servers.FD_LIMIT)
    assert {"ab", "siege-one-request"} <= set(runner.leave_out(["instructions"], servers.FD_LIMIT))


AB = """Complete requests:      400
Failed requests:        3
   (Connect: 0, Receive: 0, Length: 3, Exceptions: 0)
Write errors:           2
Non-2xx responses:      1
Keep-Alive requests:    399
"""


def test_ab_summary_is_read(workshop: servers.Workshop):
    generator = generators.GeneratorLoad(1).server(generators.ApacheBench, workshop)
    assert generator.outcome(AB) == (400, 6)
    with (workshop.path / "ab.log").open("w+b") as generator.log, pytest.raises(servers.BenchError, match="not 400"):
        generator.outcome("not 400")


def test_a_latency_is_recorded_in_so_many_instructions(workshop: servers.Workshop, peer: Callable[[str], str],
                                                       monkeypatch: pytest.MonkeyPatch):
    """Each of them; Python's start would be a thousand for each."""
    peer("valgrind")
    peer("cc")
    monkeypatch.setattr(record, "LATENCIES", (1000, 101_000))
    found = record.measure_record(workshop)
    assert found.latencies == 100_000
    assert 5 < found.per_latency < 500


@pytest.mark.parametrize(("per_latency", "expected"), [(40.0, "met"), (40.1, "missed")])
def test_the_price_of_a_latency_is_judged(per_latency: float, expected: str, capsys: pytest.CaptureFixture[str]):
    results = runner.Results(record=record.Record(1000, per_latency))
    [judged] = report.judge(results)
    assert (judged.target, judged.verdict) == ("recording a latency <= 40 instructions", expected)
    report.print_report(Console(), results, {"pairs": 5, "seconds": 0.4})
    assert f"{per_latency:.1f}" in capsys.readouterr().out
    assert json.loads(report.as_json(results, {}))["record"]["per_latency"] == per_latency


def test_what_limited_a_generator_is_told_by_its_name():
    """The figures are the generator's, which is on the side that is the server's elsewhere."""
    busy = [(made_round(5.0, cpu_seconds=1.0), made_round(5.0, generator_cpu_seconds=1.0))]
    [siege] = report.findings(runner.Results(pairs={("siege-one-request", "wrk"): busy}))
    [http] = report.findings(runner.Results(pairs={("one-request", "nginx"): busy}))
    assert report.limits(siege) == "generator / server"
    assert report.limits(http) == "server / generator"


# Reading what other programs print


def test_wrk_summary_is_read():
    text = ("  36 requests in 1.00s, 2.3KB read\n"
            "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 5\n")
    assert load.parse_wrk(text) == (36, 15)
    with pytest.raises(servers.BenchError, match="unable to connect"):
        load.parse_wrk("unable to connect to 127.0.0.1")


STRACE = """% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.200000           1     10064           sendto
 39.00    0.100000           1     10064        12 recvfrom
  1.00    0.001000           1       500           epoll_pwait2
------ ----------- ----------- --------- --------- ----------------
100.00    0.301000           1     20628        12 total
"""


def test_strace_table_is_read_and_judged():
    counts = syscalls.parse_counts(STRACE)
    assert counts == {"sendto": 10064, "recvfrom": 10064, "epoll_pwait2": 500}
    assert syscalls.SystemCalls("epollkit", 10000, 64, counts).verdict == "met"
    assert syscalls.SystemCalls("epollkit", 10000, 64, {**counts, "epoll_ctl": 5000}).verdict == "missed"


# The report


@pytest.fixture
def results() -> runner.Results:
    pairs = {("keep-alive-64", modes.AGAIN): made_pairs([1.0, 1.005, 0.995]),
             ("keep-alive-64", "C floor"): made_pairs([1.05, 1.06, 1.04]),
             ("keep-alive-64", "nginx"): made_pairs([0.95, 0.96, 0.97])}
    return runner.Results(pairs=pairs, memory=[idle.Memory("http", "epollkit", 15000, [150.0, 151.0])],
                          system_calls=[syscalls.SystemCalls("epollkit", 10000, 64, syscalls.parse_counts(STRACE))])


def test_targets_are_judged(results: runner.Results):
    """User time needs 60 s of ticks, whatever the ratio is."""
    assert [each.verdict for each in report.judge(results)] == ["met", "missed", "undecided", "met", "met"]


def test_both_sides_of_each_ratio_are_printed(results: runner.Results, capsys: pytest.CaptureFixture[str]):
    report.print_report(Console(), results, {"pairs": 3, "seconds": 1.0})
    text = capsys.readouterr().out
    assert "5.25 (0.53 + 4.72)" in text
    assert "5.00 (0.50 + 4.50)" in text
    assert "met (a look)" in text


def test_a_terminal_gets_the_same_rows(results: runner.Results):
    console = Console(force_terminal=True, width=200, record=True)
    report.print_report(console, results, {"pairs": 15, "seconds": 1.0})
    assert "1.040..1.060" in console.export_text()


def test_json_holds_every_round(results: runner.Results):
    results.pairs["keep-alive-64", "uvloop + httptools"] = [(made_round(5.0), made_round(5.0, user_share=0.0))]
    found = json.loads(report.as_json(results, {"pairs": 3, "seconds": 1.0}))
    assert [len(each["rounds"]) for each in found["comparisons"]] == [3, 3, 3, 1]
    assert found["comparisons"][1]["epollkit"]["cpu_us"] == pytest.approx(5.25)
    assert found["comparisons"][3]["user_ratio"]["median"] is None
    assert found["targets"][0]["verdict"] == "met"


def add_instructions(results: runner.Results, epollkit: list[float], nginx: list[float]) -> None:
    results.instructions += [instructions.Instructions("keep-alive-64", "epollkit", 10_000, epollkit),
                             instructions.Instructions("keep-alive-64", "nginx", 10_000, nginx)]


@pytest.mark.parametrize(("epollkit", "nginx", "expected"), [
    ([600.0], [1000.0], "met"), ([601.0], [1000.0], "missed"),
    ([590.0, 595.0], [1000.0, 1001.0], "met"),
    ([590.0, 610.0], [1000.0], "undecided"),            # runs differ by more than there is to the target
    ([610.0], [1000.0, 1020.0], "undecided")])
def test_instructions_decide_about_user_time_when_the_clock_can_not(
        results: runner.Results, epollkit: list[float], nginx: list[float], expected: str):
    """But not about CPU time, of which the kernel has a part that is not counted."""
    before = report.judge(results)
    add_instructions(results, epollkit, nginx)
    found = report.judge(results)
    assert [each.verdict for each in found[:2]] == [each.verdict for each in before[:2]]
    assert found[1].by == before[1].by == report.LOOK
    assert "user-space instructions 0.6" in found[1].found or "0.59" in found[1].found
    assert (found[2].verdict, found[2].by) == (expected, "instructions")
    assert found[2].words == f"{expected}, by instructions"


def test_instructions_never_decide_about_cpu_time(results: runner.Results):
    """However sure they are, and however unsure the clock: two identical servers differ by 10 %."""
    results.pairs["keep-alive-64", modes.AGAIN] = made_pairs([0.95, 1.05, 1.0])
    add_instructions(results, [500.0], [1000.0])
    cpu = report.judge(results)[1]
    assert "CPU per request <= 0.92 x nginx" in cpu.target
    assert (cpu.verdict, cpu.by) == ("undecided", report.LOOK)


def test_the_clock_decides_about_user_time_when_it_can(results: runner.Results):
    """15 pairs of rounds with 5 s of ticks each, and servers that do not differ from themselves."""
    def long_rounds(ratio: float) -> list[measure.Pair]:
        return [(made_round(5.0, 0.1 * ratio, 1_000_000), made_round(5.0, 0.1, 1_000_000))] * 15

    results.pairs = {("keep-alive-64", modes.AGAIN): long_rounds(1.0), ("keep-alive-64", "nginx"): long_rounds(0.5)}
    add_instructions(results, [700.0], [1000.0])
    user = report.judge(results)[1]
    assert "user time" in user.target
    assert (user.verdict, user.by) == ("met", "")


def test_instructions_alone_say_something_about_user_time_only():
    results = runner.Results()
    add_instructions(results, [500.0], [1000.0])
    [judged] = report.judge(results)
    assert "user time" in judged.target
    assert (judged.verdict, judged.by) == ("met", "instructions")


@pytest.mark.parametrize(("checked", "expected"), [(112.0, "met"), (112.2, "missed")])
def test_the_price_of_the_stale_check_is_judged(checked: float, expected: str, capsys: pytest.CaptureFixture[str]):
    results = runner.Results(stale_check=stale.StaleCheck(1000, checked, 100.0))
    assert [each.verdict for each in report.judge(results)] == [expected]
    report.print_report(Console(), results, {"pairs": 5, "seconds": 0.4})
    assert f"(112.{checked * 10 % 10:.0f} with it, 100.0 without)" in capsys.readouterr().out
    assert json.loads(report.as_json(results, {}))["stale_check"]["cost"] == pytest.approx(checked - 100)


@pytest.mark.parametrize(("throughput", "expected"), [(0.97, "met"), (0.95, "met"), (0.94, "missed"), (1.2, "met")])
def test_throughput_is_to_be_at_least_so_much(throughput: float, expected: str, capsys: pytest.CaptureFixture[str]):
    def pairs(ratio: float) -> list[measure.Pair]:
        return [(made_round(5.0, wall_seconds=1 / ratio), made_round(5.0))] * 15

    results = runner.Results(pairs={("echo-1m", modes.AGAIN): pairs(1.0), ("echo-1m", "C echo"): pairs(throughput)})
    [judged] = report.judge(results)
    assert judged.target == "echo, 8 connections x 1 MiB: throughput >= 0.95 x C echo"
    assert (judged.verdict, judged.by) == (expected, "")
    found = json.loads(report.as_json(results, {}))["comparisons"][1]["throughput_ratio"]
    assert found["median"] == pytest.approx(throughput)
    report.print_report(Console(), results, {"pairs": 15, "seconds": 1.0})
    assert f"{throughput:.3f} ({throughput:.3f}..{throughput:.3f})" in capsys.readouterr().out


def test_throughput_of_servers_that_differ_from_themselves_is_undecided():
    same = measure.Interval(1.0, 0.93, 1.04)
    assert measure.least_verdict(measure.Interval(0.97, 0.96, 0.98), 0.95, same) == "undecided"
    assert measure.least_verdict(measure.Interval(0.97, 0.96, 0.98), 0.95, None) == "undecided"
    assert measure.least_verdict(measure.Interval(0.50, 0.49, 0.51), 0.95, same) == "missed"


@pytest.mark.parametrize(("cpu", "counted", "expected", "by"), [
    (1.04, [2060.0], "met", ""),
    (1.04, [2061.0], "met", ""),                # one of the two will do
    (1.06, [2060.0], "met", "instructions"),
    (1.06, [2061.0], "missed", ""),
    (1.06, [2055.0, 2065.0], "undecided", ""),  # runs differ by more than there is to the target
    (1.06, [], "missed", "")])
def test_a_few_more_instructions_will_also_do(cpu: float, counted: list[float], expected: str, by: str):
    results = runner.Results(pairs={("echo-1k", modes.AGAIN): made_pairs([1.0] * 15),
                                    ("echo-1k", "no timeouts"): made_pairs([cpu] * 15)})
    if counted:
        results.instructions += [instructions.Instructions("echo-1k", "timeouts", 10_000, counted),
                                 instructions.Instructions("echo-1k", "epollkit", 10_000, [2000.0])]
    [judged] = report.judge(results)
    assert judged.target.endswith("CPU per message <= 1.05 x no timeouts, or 60 instructions more")
    assert (judged.verdict, judged.by) == (expected, by)


@pytest.mark.parametrize(("counted", "expected"), [(2060.0, "met"), (2061.0, "undecided")])
def test_instructions_alone_may_meet_it_but_not_miss_it(counted: float, expected: str):
    results = runner.Results(instructions=[instructions.Instructions("echo-1k", "timeouts", 10_000, [counted]),
                                           instructions.Instructions("echo-1k", "epollkit", 10_000, [2000.0])])
    [judged] = report.judge(results)
    assert (judged.verdict, judged.by) == (expected, "instructions")


def test_idle_streams_have_a_limit_of_their_own():
    results = runner.Results(memory=[idle.Memory("echo", "epollkit", 15000, [256.0]),
                                     idle.Memory("echo", "uvloop", 15000, [2000.0]),
                                     idle.Memory("http", "epollkit", 15000, [256.0])])
    assert [(each.target, each.verdict) for each in report.judge(results)] == [
        ("resident memory per idle stream <= 256 B", "met"),
        ("resident memory per idle keep-alive connection <= 160 B", "missed")]


# Callgrind


def test_callgrind_total_is_read():
    assert callgrind.parse_total("events: Ir\nsummary: 198856985\n\nfn=(0)\n16 3\n\ntotals: 198856985\n") == 198856985
    with pytest.raises(servers.BenchError, match="no total"):
        callgrind.parse_total("events: Ir\n")


def test_a_program_that_writes_no_count_is_an_error(tmp_path: Path):
    with pytest.raises(servers.BenchError, match="did not end by itself"):
        callgrind.read_total(tmp_path / "nothing")


def test_a_program_that_fails_under_valgrind_is_quoted(peer: Callable[[str], str], tmp_path: Path):
    peer("valgrind")
    with pytest.raises(servers.BenchError, match="No such file"):
        callgrind.count(["cat", str(tmp_path / "nothing")], tmp_path / "out", LC_ALL="C")


class Countess:
    """A server that answers each request, and counts them and the connections they come on, one after the other."""

    ANSWER = b"HTTP/1.1 200 OK\r\n\r\n" + servers.BODY

    def __init__(self, connections: int) -> None:
        self.left = connections
        self.counts: list[int] = []         # requests of each connection
        self.listener = socket.create_server((servers.HOST, 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.serve)

    def __enter__(self) -> Countess:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)        # wakes one who still waits for a connection
        self.thread.join()
        self.listener.close()

    def serve(self) -> None:
        for _ in range(self.left):
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            with sock:
                self.counts.append(0)
                tail = b""
                while piece := sock.recv(4096):
                    *heads, tail = (tail + piece).split(b"\r\n\r\n")
                    self.counts[-1] += len(heads)
                    sock.sendall(self.ANSWER * len(heads))
                    if any(b"Connection: close" in head for head in heads):
                        break


def test_the_client_asks_exactly_so_many_times():
    with Countess(1) as server:
        instructions.ask(server.port, load.Load(1, pipeline=3), 4, len(Countess.ANSWER))
    assert server.counts == [12]


def test_the_client_asks_on_a_new_connection_each_time():
    with Countess(4) as server:
        instructions.ask(server.port, load.Load(1, closing=True), 4, len(Countess.ANSWER))
    assert server.counts == [1, 1, 1, 1]


@pytest.mark.parametrize(("size", "closing"), [(-1, False), (-1, True), (1, True)])
def test_answers_of_another_size_are_an_error(size: int, closing: bool):
    """One byte too many, or the end before the last one."""
    with Countess(1) as server, pytest.raises(servers.BenchError, match="are not of"):
        instructions.ask(server.port, load.Load(1, closing=closing), 1, len(Countess.ANSWER) + size)


def test_rounds_are_enough_for_the_requests():
    assert instructions.rounds_for(load.Load(64, pipeline=16), 11_000) == 11
    assert instructions.rounds_for(load.Load(64), 64) == 1
    assert instructions.rounds_for(load.Load(64), 65) == 2


def test_the_client_asks_an_echo(workshop: servers.Workshop):
    """With TLS, too."""
    for asked in (stream_load.EchoLoad(3), stream_load.TlsLoad(3)):
        with Parrot(3, tls=workshop.certificate() if asked.work == "tls" else None) as parrot:
            instructions.ask(parrot.port, asked, 4, asked.message_bytes)
        assert sum(parrot.heard) == 3 * 4 * asked.message_bytes


@pytest.mark.parametrize("name", ["floor", "nginx"])
def test_instructions_of_a_server(workshop: servers.Workshop, peer: Callable[[str], str], name: str):
    """Start and end are not in them: they would be a hundred thousand."""
    peer("valgrind")
    peer({"floor": "cc"}.get(name, name))
    mode = modes.Mode("m", "m", load.Load(4), ())
    found = instructions.measure_instructions(name, mode, workshop, 1, (8, 48))
    assert found.requests == 40
    assert 50 < found.least < 50_000


@pytest.mark.parametrize("asked", [stream_load.EchoLoad(4), stream_load.ConnectLoad(4)])
def test_instructions_at_the_stream_layer(workshop: servers.Workshop, peer: Callable[[str], str], asked: load.Load):
    peer("valgrind")
    peer("cc")
    name = "floor" if asked.work == "echo" else "epollkit"
    found = instructions.measure_instructions(name, modes.Mode("m", "m", asked, ()), workshop, 1, (8, 48))
    assert found.requests == 40
    assert 20 < found.least < 500_000


def test_stale_app_delivers_each_edge_once(workshop: servers.Workshop, peer: Callable[[str], str]):
    peer("valgrind")
    where = installed_library()
    assert stale.run_once(where, 2, workshop, fds=3) > 0
    with pytest.raises(servers.BenchError, match="6 events of 6 were delivered by"):
        stale.run_once(workshop.path, 2, workshop, fds=3)          # there is none: the installed one was imported


def installed_library() -> Path:
    import epollkit
    return Path(epollkit.__file__).parent.parent


def test_stale_check_per_event_is_the_difference_of_two_runs(workshop: servers.Workshop,
                                                             monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stale, "run_once", lambda library, turns, *_: 1_000_000 + 250 * turns)
    assert stale.per_event(Path("anywhere"), workshop, fds=5, turns=(10, 30)) == 50.0


def test_a_stale_check_that_was_not_compiled_out_is_no_figure(workshop: servers.Workshop, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch):
    """Both builds the same: the difference would be nothing, and the target met."""
    (tmp_path / "epollkit").mkdir()
    (tmp_path / "epollkit" / "_core.abi.so").write_bytes(b"the same")
    monkeypatch.setattr(stale, "copy_sources", lambda _: None)
    monkeypatch.setattr(stale, "build", lambda *_: tmp_path)
    with pytest.raises(servers.BenchError, match="changed nothing"):
        stale.measure_stale_check(workshop)


def test_a_failing_build_is_quoted_and_gets_the_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CFLAGS", "-Wfoo")
    (tmp_path / "setup.py").write_text("import os, sys; sys.exit(f'built with {os.environ[\"CFLAGS\"]}')")
    with pytest.raises(servers.BenchError, match="the odd build failed: built with -Wfoo -DX=1"):
        stale.build(tmp_path, "odd", "-DX=1")


def test_sources_are_copied_without_what_was_built(tmp_path: Path):
    stale.copy_sources(tmp_path / "tree")
    assert (tmp_path / "tree" / "epollkit" / "_sys.h").is_file()
    assert not [*(tmp_path / "tree").rglob("*.so")]


@pytest.mark.parametrize(("flags", "compiles"), [
    (["-DEPOLLKIT_DEBUG=0"], True), (["-DEPOLLKIT_DEBUG=1"], True),
    (["-DEPOLLKIT_DEBUG=0", stale.UNCHECKED], True), (["-DEPOLLKIT_DEBUG=1", stale.UNCHECKED], False)])
def test_the_debug_build_can_not_go_without_its_check(peer: Callable[[str], str], flags: list[str], compiles: bool):
    done = subprocess.run([peer("cc"), "-fsyntax-only", "-xc", f"-I{sysconfig.get_path('include')}", *flags,
                           str(ROOT / "epollkit" / "_sys.h")], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == compiles, done.stderr
    assert compiles or "has no place in the debug build" in done.stderr


# How long it takes


def test_rounds_are_long_enough_for_a_verdict_about_user_time():
    """60 s of ticks on each side, though the server waits now and then."""
    for mode in modes.MODES:
        user = any(target.quantity == "user" for each in mode.comparisons for target in each.targets)
        assert mode.seconds == (modes.USER_SECONDS if user else modes.SECONDS)
    assert measure.VERDICT_PAIRS * modes.USER_SECONDS * 0.8 >= measure.POOLED_TICKS_SECONDS


def test_everything_takes_two_hours_at_most():
    everything = runner.estimate_seconds(modes.MODE_NAMES, {}, measure.VERDICT_PAIRS, None)
    assert 90 * 60 <= everything <= 120 * 60
    assert runner.estimate_seconds(modes.QUICK_MODES, {}, command.QUICK_PAIRS, command.QUICK_SECONDS) <= 120
    without = dict.fromkeys(("nginx", "uvloop", "stale-check", *modes.NEEDS_NGINX), "not installed")
    assert runner.estimate_seconds(modes.MODE_NAMES, without, measure.VERDICT_PAIRS, None) < 0.7 * everything


# The command line


@pytest.mark.parametrize("words", [
    ["--pairs", "0"], ["--pairs", "x"], ["--pairs", "-3"], ["--seconds", "0"], ["--seconds", "nan"],
    ["--seconds", "1e9"], ["--modes", "keep-alive"], ["--modes", ","], ["--json", "/nowhere/at/all.json"],
    ["--plot", "/"], ["--what"]])
def test_bad_arguments(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        command.arguments(words)
    assert caught.value.code == 2
    assert "error" in capsys.readouterr().err


def test_quick_and_what_is_said_beside_it():
    quick = command.arguments(["--quick", "--pairs", "2"])
    assert (quick.pairs, quick.seconds, quick.modes) == (2, command.QUICK_SECONDS, modes.QUICK_MODES)
    full = command.arguments([])
    assert (full.pairs, full.seconds, full.modes) == (15, None, modes.MODE_NAMES)


def test_without_wrk_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(command, "find_program", lambda _: None)
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    assert command.main(["--quick"]) == 1
    assert "apt-get install wrk" in " ".join(capsys.readouterr().err.split())


def test_what_was_found_is_told_even_if_something_fails_later(monkeypatch: pytest.MonkeyPatch,
                                                              capsys: pytest.CaptureFixture[str],
                                                              results: runner.Results):
    def fails(names: object, workshop: object, pairs: object, seconds: object, found: runner.Results,
              tell: object) -> None:
        found.pairs.update(results.pairs)
        raise servers.BenchError("no such luck")

    monkeypatch.setattr(command, "find_program", lambda _: "wrk")
    monkeypatch.setattr(command, "about", lambda *_: {"pairs": 5, "seconds": 0.4})
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    monkeypatch.setattr(runner, "run", fails)
    assert command.main(["--quick"]) == 1
    captured = capsys.readouterr()
    assert "no such luck" in captured.err
    assert "keep-alive, 64 connections" in captured.out


def test_without_matplotlib_no_picture_is_promised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        command.arguments(["--plot", str(tmp_path / "picture.svg")])
    assert ".[plot]" in capsys.readouterr().err


def test_an_interrupted_load_leaves_no_process(floor: Callable[..., servers.Server], peer: Callable[[str], str],
                                               monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C arrives while wrk runs."""
    peer("wrk")
    started: list[subprocess.Popen] = []
    start = servers.start_process

    def remember(*arguments: object, **options: object) -> subprocess.Popen:
        started.append(start(*arguments, **options))
        return started[-1]

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    server = floor()
    monkeypatch.setattr(servers, "start_process", remember)
    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load.run_wrk(load.Load(1), server.port, 5)
    assert started[0].returncode is not None

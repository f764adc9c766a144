"""What the scenarios of stress/ stand on: answers out of bytes, the slope, the wait for rest, the faulty network."""
from __future__ import annotations

import errno
import importlib
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wire import Bench, Client, Factory, Recorder, Witness, cuts

import epollkit

ROOT = Path(__file__).resolve().parent.parent


pytestmark = pytest.mark.usefixtures("stress_package")


def module(name: str) -> Any:
    return importlib.import_module(f"stress.{name}")


# -- answers -----------------------------------------------------------------------------------------------------------

ANSWERS = (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"HTTP/1.1 100 Continue\r\n\r\n",
           b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
           b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n")


def test_answers_in_any_pieces():
    for pieces in cuts(b"".join(ANSWERS)):
        answers = module("answers").Answers()
        found = [answer for piece in pieces for answer in answers.feed(piece)]
        assert found == [(200, b"hello"), (304, b""), (500, b"abcde")], pieces
        assert answers.end() is None


def test_an_answer_that_the_end_ends():
    answers = module("answers").Answers()
    assert answers.feed(b"HTTP/1.0 200 OK\r\n\r\nhel") == []
    assert answers.feed(b"lo") == []
    assert answers.end() == (200, b"hello")
    assert answers.end() is None


def test_an_answer_that_was_cut_off_is_none():
    answers = module("answers").Answers()
    assert answers.feed(ANSWERS[0][:-1]) == []
    assert answers.end() is None


def test_what_is_no_answer():
    with pytest.raises(ValueError, match="this is no answer"):
        module("answers").Answers().feed(b"SSH-2.0-OpenSSH\r\n\r\n")
    with pytest.raises(ValueError, match="a head without end"):
        module("answers").Answers().feed(bytes(65537))


# -- the slope ---------------------------------------------------------------------------------------------------------


def crowd_noise(seed: int, leak_per_second: float = 0.0, seconds: int = 3600) -> list[tuple[float, float]]:
    """A server that holds 30; up to 40 more in a cycle of a minute, not always as much; a step early on; a leak."""
    chance = random.Random(seed)
    crowds = [chance.uniform(20, 40) for _ in range(0, seconds, 60)]
    return [(second, 30 + (5 if second > 200 else 0) + crowds[second // 60] * abs((second % 60) / 30 - 1)
             + chance.uniform(0, 2) + leak_per_second * second) for second in range(seconds)]


@pytest.mark.parametrize("seed", range(20))
def test_a_leak_is_seen_and_noise_is_not(seed):
    """5 an hour are seen under a crowd that moves it by 40 a minute; noise that rises by chance is allowed some."""
    slope = module("slope").slope
    assert not slope(crowd_noise(seed), 60).grows(1 / 3600, 0.5)
    leaking = slope(crowd_noise(seed, 5 / 3600), 60)
    assert leaking.grows(1 / 3600, 0.5)
    assert leaking.low <= 5 / 3600 <= leaking.high
    assert not slope(crowd_noise(seed, 0.5 / 3600), 60).grows(1 / 3600, 0.2)       # allowed


def test_the_slope_of_a_line_is_known_exactly():
    found = module("slope").slope([(float(x), 3.0 + 2 * x) for x in range(100)], 8)
    assert found.rate == pytest.approx(2)
    assert found.low == pytest.approx(2)
    assert found.span_seconds == 79


def test_too_few_samples_say_nothing():
    samples = [(float(x), 1.0) for x in range(100)]
    assert module("slope").slope(samples, 20) is None
    assert module("slope").slope([], 20) is None
    assert module("slope").slope(samples, 10) is not None


@pytest.mark.parametrize("freedom, expected", [(4, 3.747), (8, 2.896), (20, 2.528), (60, 2.390), (1000, 2.330)])
def test_quantiles_are_those_of_the_table(freedom, expected):
    assert module("slope").quantile(freedom) == pytest.approx(expected, rel=0.02)


# -- rest --------------------------------------------------------------------------------------------------------------


def test_what_is_not_back_is_named():
    watch = module("watch")
    before = watch.Sample(0.0, 8, 20 << 20, 1, 0.0, 0.0)
    assert watch.not_back(before, before, 0.0, 0) == []
    assert watch.not_back(before, watch.Sample(1.0, 9, 31 << 20, 2, 0.0, 0.0), 0.5, 10 << 20) == [
        "descriptors are not back at 8: 9", "threads are not back at 1: 2",
        "memory grew by 11.0 MiB and stays, more than 10", "it does not come to rest: 50% of a core"]


def test_workers_are_watched_with_their_master():
    with subprocess.Popen([sys.executable, "-c", "import subprocess, sys\n"
                           "with subprocess.Popen([sys.executable, '-c', 'print(1, flush=True); input()']): pass"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as master:
        assert master.stdout is not None and master.stdout.readline() == b"1\n"
        watch = module("watch").Watch(master.pid)
        assert len(watch.children) == 1
        sample = watch.sample()
        assert sample.threads == 2
        assert sample.fds >= 6
        assert sample.wanted_seconds > 0
        master.communicate(b"\n")
        assert watch.sample() is None


# -- the faulty network ------------------------------------------------------------------------------------------------


class Network:
    """A proxy whose connections have this fate, a server behind it, and a client in front, all on one loop."""

    def __init__(self, bench: Bench, fate: Any, factory: Any = Witness) -> None:
        self.bench = bench
        self.served = Factory(factory)
        server = bench.listen(self.served)
        self.proxy = module("faulty").Proxy(bench.loop, server.address, lambda number: fate)
        bench.listeners.append(self.proxy.listener)
        self.client: Client = bench.connect(self.proxy.listener)
        bench.turn_until(lambda: self.served.made)

    @property
    def server(self) -> Any:
        return self.served.made[0]

    def held_bytes(self) -> int:
        """What waits in the proxy, in either direction."""
        ends = [self.proxy.last.client, self.proxy.last.server]
        return sum(len(end.held) + end.unsent_bytes for end in ends)

    def ends(self) -> None:
        """Client and server leave; nothing stays behind them."""
        self.client.close()
        self.server.abort()
        self.bench.turn_until(lambda: self.bench.loop.stats().live == 2)       # the listeners


@pytest.fixture
def network() -> Iterator[Any]:
    with epollkit.Loop() as loop, Bench(loop) as bench:
        def make(*fate: Any, factory: Any = Witness) -> Network:
            made = Network(bench, module("faulty").Fate(*fate), factory)
            bench.witnesses += made.served.made
            return made
        yield make


class Echo(Recorder):
    def on_data(self, data: bytes) -> None:
        super().on_data(data)
        self.write(data)


def test_without_a_fault_everything_goes_through(network):
    data = random.Random(7).randbytes(3 << 20)
    one = network(factory=Echo)
    sent = 0

    def all_back() -> bool:
        nonlocal sent
        sent += one.client.offer(data[sent:sent + 65536])
        one.client.read()
        return len(one.client.received) == len(data)

    one.bench.turn_until(all_back)
    assert one.client.received == data
    one.client.received = b""
    one.client.socket.shutdown(1)
    assert one.client.eof()
    assert one.server.names == ["open", "data", "eof", "close"]


def test_a_stall_is_silence(network):
    one = network("stall", False, 3)
    one.client.send(b"abcdef")
    one.bench.turn_until(lambda: one.server.data == b"abc")
    one.server.write(b"xyz")
    one.client.send(b"ghi")
    assert one.client.nothing_comes()
    assert one.server.data == b"abc"
    assert one.proxy.counts["stall"] == 1
    one.client.close()
    one.bench.turn_until(lambda: one.server.closed)
    assert isinstance(one.server.close_error, ConnectionResetError)


def test_a_cut_is_an_early_end(network):
    one = network("cut", True, 4)
    one.client.send(b"abc")
    one.bench.turn_until(lambda: one.server.data == b"abc")
    one.server.write(b"123456")
    assert one.client.take_all() == b"1234"
    assert one.server.names[:3] == ["open", "data", "eof"]
    assert one.proxy.counts["cut"] == 1


def test_a_reset_is_a_reset(network):
    one = network("reset", True, 4)
    one.server.write(b"123456")
    assert one.client.broke().errno == errno.ECONNRESET
    one.bench.turn_until(lambda: one.server.closed)
    assert isinstance(one.server.close_error, ConnectionResetError)
    assert one.proxy.counts["reset"] == 1


def test_a_trickle_comes_in_pieces_and_whole(network):
    data = random.Random(7).randbytes(20_000)
    one = network("trickle", True, 1)
    one.server.write(data)
    assert one.client.take(20_000) == data
    one.server.shutdown_write()
    assert one.client.eof()


def test_the_server_sees_a_trickle_in_many_reads(network):
    one = network("trickle", False, 1)
    one.client.send(bytes(20_000))
    one.bench.turn_until(lambda: len(one.server.data) == 20_000)
    assert [upcall[0] for upcall in one.server.upcalls].count("data") > 10


def test_a_delay_is_late_and_whole_and_so_is_the_end(network):
    one = network("delay", True, 1, 0.05)
    began = one.bench.loop.time()
    one.server.write(b"123456")
    one.server.shutdown_write()
    assert one.client.take_all() == b"123456"
    assert one.bench.loop.time() - began >= 0.05
    assert one.proxy.counts["delay"] == 1


def test_half_close_to_the_server_lets_answers_through(network):
    one = network("half-close", False, 3)
    one.client.send(b"abcdef")
    one.bench.turn_until(lambda: "eof" in one.server.names)
    one.client.send(b"ghi")
    one.bench.quiet()
    assert one.server.data == b"abc"
    one.server.write(b"123456")
    one.server.shutdown_write()
    assert one.client.take_all() == b"123456"


def test_half_close_to_the_client_lets_requests_through(network):
    one = network("half-close", True, 3)
    one.server.write(b"123456")
    assert one.client.take_all() == b"123"
    one.client.send(b"abc")
    one.bench.turn_until(lambda: one.server.data == b"abc")
    one.ends()


def test_a_server_that_does_not_read_makes_the_client_wait(network):
    """The proxy holds a bounded part of it: the rest stays with the client."""
    one = network()
    one.server.pause_reading()
    sent = 0

    def full() -> bool:
        nonlocal sent
        now = one.client.offer(bytes(1 << 16))
        sent += now
        return now == 0 and one.bench.quiet() == 0

    one.bench.turn_until(full)
    assert one.held_bytes() <= 128 << 10
    one.server.resume_reading()
    one.bench.turn_until(lambda: len(one.server.data) == sent)
    one.ends()


def test_a_seed_repeats_itself_and_another_does_not():
    faulty = module("faulty")
    fates = [faulty.fate_of(7, number, faulty.FAULTS) for number in range(200)]
    assert fates == [faulty.fate_of(7, number, faulty.FAULTS) for number in range(200)]
    assert fates != [faulty.fate_of(8, number, faulty.FAULTS) for number in range(200)]
    assert {fate.fault for fate in fates} == {"", *faulty.FAULTS}
    assert {faulty.fate_of(7, number, ("cut",), 1.0).fault for number in range(20)} == {"cut"}


def test_the_network_by_itself(tmp_path):
    """As a program: it says where it listens, and what it did when it is stopped."""
    (tmp_path / "stress").symlink_to(ROOT / "stress")
    with epollkit.Loop() as loop, Bench(loop) as bench:
        server = bench.listen(Factory(Echo))
        with subprocess.Popen([sys.executable, "-m", "stress.faulty", "--listen", "0", "--to",
                               f"127.0.0.1:{server.address[1]}", "--seed", "7", "--faults", "cut", "--share", "1"],
                              cwd=tmp_path, stdout=subprocess.PIPE, text=True) as network:
            assert network.stdout is not None
            line = network.stdout.readline()
            assert line.startswith("faulty network: 127.0.0.1:")
            port = int(line.split()[2].rpartition(":")[2])
            client = Client(bench, ("127.0.0.1", port))
            bench.clients.append(client)
            client.send(bytes(1 << 17))
            client.take_all()
            network.send_signal(2)
            said, _ = network.communicate(timeout=60)
            assert said.startswith("connections: 1, stall: 0, cut: 1")
            assert network.returncode == 0

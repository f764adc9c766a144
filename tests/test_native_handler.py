"""Handlers in Cython: the example, `examples/native`, copied to an empty folder, built there against the installed
package, and used; and one that does what the example does not."""
from __future__ import annotations

import importlib.util
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from batches import (
    PATIENCE_SECONDS,
    Spy,
    finish,
    ready_events,
    reset,
    send,
    settle,
    turn_until,
    wait_ready,
)
from peers import SecurePeer
from wire import Bench, Factory, Recorder, open_pair

import epollkit
from epollkit import HUP, IN, OUT

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "native"
EOT = b"\x04"


# What a handler may do and the example does not: in the middle of its upcall it has another connection send.
FLUSHES_ANOTHER = """
cimport epollkit


cdef class FlushesAnother(epollkit.Stream):
    cdef public object asks             # for the other one, once an answer is written

    cdef int take_data(self, const char *data, Py_ssize_t length) except -1:
        self.put(data, length, None)
        return (<epollkit.Stream?>self.asks()).flush()
"""


def copied(folder):
    return shutil.copytree(EXAMPLE, folder / "copy", ignore=shutil.ignore_patterns("build", "*.c", "*.so"))


def build(folder):
    done = subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=folder, capture_output=True,
                          text=True, check=False, env={**os.environ, "CFLAGS": "-O1 -Wall -Werror"})
    assert done.returncode == 0, done.stdout + done.stderr


def load(folder):
    [path] = folder.glob("echo.*.so")
    spec = importlib.util.spec_from_file_location("echo", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder, as a user has it after the first of the two commands in the example's README."""
    folder = copied(tmp_path_factory.mktemp("native"))
    build(folder)
    return folder


@pytest.fixture(scope="module")
def module(built):
    return load(built)


@pytest.fixture(params=["StreamEcho", "BareEcho"])
def handler(request, module):
    return getattr(module, request.param)


class Connected:
    """Connections of one handler: `made` are its instances, `clients` their peers, in the same order."""

    def __init__(self, loop, stage, handler, count):
        self.made = []
        self.listener = stage.listen(loop, lambda: self.made.append(handler()) or self.made[-1])
        self.clients = [stage.connect(self.listener) for _ in range(count)]
        turn_until(loop, lambda: len(self.made) == count)
        settle(loop)


@pytest.fixture
def connect(loop, stage, handler):
    return lambda count: Connected(loop, stage, handler, count)


def live(endpoint):
    try:
        return endpoint.token.live
    except epollkit.UsageError:
        return False


def test_readme_has_the_commands_of_these_tests():
    readme = (EXAMPLE / "README.md").read_text()
    assert "    python setup.py build_ext --inplace\n    python serve.py\n" in readme


def test_serve(built):
    """The second command: both handlers answer, and Ctrl-C ends it quietly."""
    process = subprocess.Popen([sys.executable, "serve.py"], cwd=built, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    try:
        lines = [process.stdout.readline() for _ in range(2)]
        for line in lines:
            with socket.create_connection(("127.0.0.1", int(line.split()[-1])), PATIENCE_SECONDS) as client, \
                    client.makefile("rb") as answer:
                client.sendall(b"hello" + EOT)
                assert answer.read() == b"hello" + EOT
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        process.kill()
        process.communicate()
    assert [line.split()[0] for line in lines] == ["StreamEcho", "BareEcho"]
    assert (process.returncode, errors) == (0, "")


def test_it_echoes(loop, connect):
    """Piece by piece, to each its own; and it ends with its peer."""
    both = connect(2)
    for number in range(10):
        for client, near in zip(both.clients, both.made, strict=True):
            send(client, near, f"{number} of {near.fileno()}".encode())
        loop.turn(0)
        for client, near in zip(both.clients, both.made, strict=True):
            wait_ready(client)
            assert client.recv(100) == f"{number} of {near.fileno()}".encode()
    finish(both.clients[0], both.made[0])
    loop.turn(0)
    wait_ready(both.clients[0])
    assert both.clients[0].recv(1) == b""
    assert [live(near) for near in both.made] == [False, True]


DATA = bytes(range(1, 4)) * (1 << 18)      # three quarters of a megabyte, without NUL and EOT


def test_a_peer_that_reads_late(loop, handler):
    """All of it is there, so no edge for IN will come again, and the socket is full long before the end: what it does
    not take waits for OUT."""
    with Bench(loop) as bench:
        near, client = open_pair(bench, Factory(handler), server_receive=1 << 22, server_send=1 << 14,
                                 receive_buffer=1 << 14, send_buffer=1 << 22)
        assert client.offer(DATA) == len(DATA)
        client.arrived()
        bench.quiet()
        assert not ready_events(near) & OUT, "it never was full: this proves nothing"
        assert client.take(len(DATA)) == DATA
        client.end()
        assert client.eof()
        bench.quiet()
        assert not live(near)


def test_more_than_one_turn_reads(loop, handler):
    """All of it is there at once: a turn takes its budget, the rest comes in the next ones without a new edge."""
    with Bench(loop) as bench:
        near, client = open_pair(bench, Factory(handler), server_receive=1 << 22, server_send=1 << 22,
                                 receive_buffer=1 << 22, send_buffer=1 << 22)
        assert client.offer(DATA) == len(DATA)
        client.arrived()
        loop.turn(0)
        assert ready_events(near) & IN, "it was read to the end: the budget was not reached"
        assert client.take(len(DATA)) == DATA


def test_one_that_closes_itself_in_the_middle_of_a_batch(loop, connect):
    """[A, B, C]; B closes itself: A and C are served in the same batch, and B's peer gets its last bytes."""
    three = connect(3)
    for client, near, data in zip(three.clients, three.made, (b"a", b"b" + EOT, b"c"), strict=True):
        send(client, near, data)
    before = loop.stats()
    assert loop.turn(0) == 3
    assert loop.stats().batches == before.batches + 1
    settle(loop)
    assert [live(near) for near in three.made] == [True, False, True]
    for client, data in zip(three.clients, (b"a", b"b" + EOT, b"c"), strict=True):
        wait_ready(client)
        assert client.recv(100) == data
    wait_ready(three.clients[1], select.POLLRDHUP)
    assert three.clients[1].recv(1) == b""


def test_an_exception_ends_its_connection_and_is_reported_once(loop, connect):
    """22. [A, B, C]; B raises."""
    reported = []
    loop.set_exception_handler(lambda error, source: reported.append((type(error), str(error), source)))
    three = connect(3)
    for client, near, data in zip(three.clients, three.made, (b"a", b"\0", b"c"), strict=True):
        send(client, near, data)
    loop.turn(0)
    settle(loop)
    assert reported == [(ValueError, "a NUL byte: this is an echo of text", three.made[1])]
    assert [live(near) for near in three.made] == [True, False, True]
    for client, data in ((three.clients[0], b"a"), (three.clients[2], b"c")):
        wait_ready(client)
        assert client.recv(100) == data


def test_a_reset_by_the_peer(loop, connect):
    reported = []
    loop.set_exception_handler(lambda *failure: reported.append(failure))
    two = connect(2)
    reset(two.clients[0], two.made[0])
    settle(loop)
    assert [live(near) for near in two.made] == [False, True]
    assert reported == []


def test_a_stale_event_reaches_nobody(loop, stage, connect):
    """1. In a batch [X, listener, A], X's handler resets A, and a newcomer gets A's fd and slot: A's bytes, and their
    event, are gone; the newcomer is asked for nothing and answers its own."""
    x = stage.event()
    stage.watch(loop, x, IN, lambda token, events: connected.made[0].abort())
    connected = connect(1)
    [a] = connected.made
    was = a.fileno(), a.token.index, a.token.generation
    settle(loop)
    x.fire()
    newcomer = stage.connect(connected.listener)
    send(connected.clients[0], a, b"for a")
    stage.fill_fd_holes(above=a.fileno())
    before = loop.stats()
    loop.turn(0)
    after = loop.stats()
    assert (after.batches, after.events) == (before.batches + 1, before.events + 3)
    new = connected.made[1]
    assert (new.fileno(), new.token.index, new.token.generation) == (was[0], was[1], was[2] + 1)
    assert (after.stale_recycled, after.stale_closed, after.wrong_deliveries) == (1, 0, 0)
    send(newcomer, new, b"for the newcomer")
    settle(loop)
    wait_ready(newcomer)
    assert newcomer.recv(100) == b"for the newcomer"
    assert ready_events(connected.clients[0]) & HUP


def test_a_bare_endpoint_can_not_speak_tls(loop, module, certificates):
    with pytest.raises(epollkit.UsageError, match="can't speak TLS"):
        loop.connect(("127.0.0.1", 1), module.BareEcho, ssl=certificates.client_context(), server_hostname="localhost")


def test_a_file_that_another_sends_encrypted_takes_nothing_of_what_was_gathered(loop, certificates, tmp_path):
    """It has to be read to be encrypted, and not to where this upcall's answer waits for the upcall's end."""
    folder, body = copied(tmp_path), tmp_path / "body"
    (folder / "echo.pyx").write_text(FLUSHES_ANOTHER)
    build(folder)
    body.write_bytes(b"." * 300_000)
    with Bench(loop) as bench:
        secure = Factory(Recorder)
        listener = bench.listen(secure, ssl=certificates.server_context())
        peer = SecurePeer(bench, socket.create_connection(listener.address), certificates.client_context())
        peer.shake()
        peer.settle()
        [other] = secure.made

        def send_body():
            with body.open("rb") as opened:
                other.sendfile(opened)
            return other

        near, client = open_pair(bench, Factory(load(folder).FlushesAnother))
        near.asks = send_body
        client.send(b"the answer")
        assert client.take(10) == b"the answer"
        assert peer.take(300_000) == b"." * 300_000
        assert client.nothing_comes()


# -- no Python ---------------------------------------------------------------------------------------------------------


def calls_in_a_turn(loop):
    """What a profiler sees of one turn, that of `turn` itself included: each call of a Python function, and each call
    that Python code makes."""
    seen = []
    sys.setprofile(lambda frame, event, argument: seen.append((event, frame.f_code.co_name, argument)))
    try:
        loop.turn(0)
    finally:
        sys.setprofile(None)
    return seen


@pytest.mark.parametrize("count", [1, 100])
def test_no_python_runs_between_an_event_and_its_answer(loop, connect, count):
    """A batch of `count` messages: as many calls as a batch of none. A Python handler has at least one for each."""
    connected = connect(count)
    idle = len(calls_in_a_turn(loop))
    for client, near in zip(connected.clients, connected.made, strict=True):
        send(client, near, b"ping")
    before = loop.stats().upcalls
    seen = calls_in_a_turn(loop)
    assert loop.stats().upcalls == before + count
    assert len(seen) == idle, seen
    for client in connected.clients:
        wait_ready(client)
        assert client.recv(100) == b"ping"


@pytest.fixture
def traced():
    tracemalloc.start()
    yield
    tracemalloc.stop()


def allocated_in_a_turn(loop):
    """Bytes that Python's allocators handed out during one turn, at most at a time."""
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    loop.turn(0)
    _, peak = tracemalloc.get_traced_memory()
    return peak - before


@pytest.mark.usefixtures("traced")
def test_no_object_is_made_for_a_message(loop, connect):
    """A batch of ten messages allocates what a batch of none does."""
    connected = connect(10)
    idle = [allocated_in_a_turn(loop) for _ in range(3)][-1]
    for client, near in zip(connected.clients, connected.made, strict=True):
        send(client, near, b"ping")
    before = loop.stats().upcalls
    allocated = allocated_in_a_turn(loop)
    assert loop.stats().upcalls == before + 10
    assert allocated == idle


@pytest.mark.usefixtures("traced")
def test_python_handlers_are_seen(loop, stage, log):
    """What the two tests above lean on."""
    stream = Spy(log, "stream", on_data=lambda stream: stream.write(b"pong"))
    client = stage.stream(loop, stream)
    idle = [(len(calls_in_a_turn(loop)), allocated_in_a_turn(loop)) for _ in range(3)][-1]
    send(client, stream, b"ping")
    seen = calls_in_a_turn(loop)
    assert len(seen) > idle[0]
    assert ("call", "on_data", None) in seen
    send(client, stream, b"ping")
    assert allocated_in_a_turn(loop) > idle[1]

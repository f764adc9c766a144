"""A vocabulary for tests with a real socket on either end, all in the test's own thread.

    with Bench(loop) as bench:
        client = bench.connect(bench.serve(app))
        client.send(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
        assert client.receive_response().status == 200

The loop runs only inside `Bench.turn_until` and what is built on it, so a test decides what is there when it looks.
Nobody sleeps: waiting is a turn of the loop, with a deadline.

`Served` is the other thing: `epollkit serve` in a process of its own, for real clients and for what only a process has.
"""
from __future__ import annotations

import array
import fcntl
import http.client
import io
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from batches import PATIENCE_SECONDS

import epollkit
from epollkit import http as epollkit_http

POLLING_TURNS = 50              # turns that only poll before one waits
WAIT_SECONDS = 0.005            # how long one of the later turns waits for the kernel


class Bench:
    """A loop, what listens on it, and the clients that talk to it. At the end all of it is gone again."""

    def __init__(self, loop: epollkit.Loop) -> None:
        self.loop = loop
        self.listeners: list[epollkit.Listener] = []
        self.clients: list[Any] = []
        self.witnesses: list[Witness] = []      # streams that do not end by themselves

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        for listener in self.listeners:
            listener.close()
        for witness in self.witnesses:
            witness.abort()
        for client in list(self.clients):
            client.close()
        if kind is None:
            self.turn_until(lambda: self.loop.stats().live == 0)
            self.quiet()

    def listen(self, factory: Callable[[], Any], address: Any = ("127.0.0.1", 0), **options: Any) -> epollkit.Listener:
        listener = self.loop.listen(address, factory, **options)
        self.listeners.append(listener)
        return listener

    def serve(self, app: Callable[..., Any], address: Any = ("127.0.0.1", 0), **settings: Any) -> epollkit.Listener:
        """An HTTP server on the loop."""
        listener = epollkit_http.listen(self.loop, address, app, **settings)
        self.listeners.append(listener)
        return listener

    def connect(self, listener: epollkit.Listener, **options: Any) -> Client:
        client = Client(self, listener.address, **options)
        self.clients.append(client)
        return client

    def turn_until(self, condition: Callable[[], Any], patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Turn until it holds; an AssertionError after `patience_seconds`."""
        deadline = time.monotonic() + patience_seconds
        turns = 0
        while not condition():
            assert time.monotonic() < deadline, f"still waiting after {turns} turns: {self.loop.stats()}"
            self.loop.turn(0 if turns < POLLING_TURNS else WAIT_SECONDS)
            turns += 1

    def quiet(self) -> int:
        """Turn until nothing is left to do right now. Returns the upcalls made; a loop that spins fails."""
        made = idle = 0
        for _ in range(100_000):
            count = self.loop.turn(0)
            made += count
            idle = 0 if count else idle + 1
            if idle == 3:
                return made
        raise AssertionError(f"the loop does not come to rest: {self.loop.stats()}")


class Answer(NamedTuple):
    """A response as http.client reads it."""

    status: int
    reason: str
    version: int                        # 10 or 11
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(found) <= 1, f"{name} came {len(found)} times"
        return found[0] if found else None


class _Reader(io.BytesIO):
    """What http.client takes for a socket; tells how far it was read although http.client closes it."""

    def makefile(self, mode: str) -> _Reader:
        return self

    def close(self) -> None:
        pass


def parse_response(data: bytes, method: str = "GET") -> tuple[Answer, int] | None:
    """The first response in `data`, by http.client's parser, and the bytes it has; None while it is not whole."""
    if b"\r\n\r\n" not in data:
        return None
    reader = _Reader(data)
    response = http.client.HTTPResponse(reader, method=method)      # type: ignore[arg-type]
    try:
        response.begin()
        assert response.length is not None, f"a response without a length: {data!r}"
        body = response.read()
    except http.client.IncompleteRead:
        return None
    return Answer(response.status, response.reason, response.version, response.getheaders(), body), reader.tell()


class Client:
    """A non-blocking socket that talks to a loop of the same thread.

    Args:
        receive_buffer, send_buffer: SO_RCVBUF and SO_SNDBUF in bytes, set before connecting.
        bind: a local address, for unix sockets that have a name.
    """

    def __init__(self, bench: Bench, address: Any, *, receive_buffer: int = 0, send_buffer: int = 0,
                 bind: Any = None) -> None:
        self.bench = bench
        self.received = b""                     # and not yet taken
        self.ended = False                      # the server's end-of-stream came
        self.error: OSError | None = None       # what the connection broke with
        if isinstance(address, tuple):
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        else:
            family = socket.AF_UNIX
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        set_buffers(self.socket.fileno(), receive_buffer, send_buffer)
        if bind is not None:
            self.socket.bind(bind)
        self.socket.connect(address)            # the backlog answers, not the loop
        self.socket.setblocking(False)
        if family != socket.AF_UNIX:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- sending

    def offer(self, data: bytes) -> int:
        """Send what the socket takes now, without a turn of the loop; returns how much that was."""
        sent = 0
        view = memoryview(data)
        try:
            while sent < len(data):
                sent += self.socket.send(view[sent:])
        except BlockingIOError:
            pass
        return sent

    def send(self, data: bytes) -> None:
        """Send all of it, with turns of the loop only where the socket is full."""
        sent = self.offer(data)

        def all_sent() -> bool:
            nonlocal sent
            sent += self.offer(data[sent:])
            return sent == len(data)

        self.bench.turn_until(all_sent)

    def send_pieces(self, pieces: Iterable[bytes]) -> None:
        """Each piece arrives in a read of its own. Stops where the server closes, as a client would."""
        try:
            for piece in pieces:
                self.send(piece)
                self.bench.quiet()
        except (BrokenPipeError, ConnectionResetError):
            pass

    def end(self) -> None:
        """Half-close: this side sends no more."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a RST (SO_LINGER 0)."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.socket.close()
        if self in self.bench.clients:
            self.bench.clients.remove(self)

    def arrived(self) -> None:
        """Everything sent, a FIN too, is in the server's socket (TCP)."""
        wait_until(lambda: unacknowledged_bytes(self.socket) == 0)

    # -- receiving

    def read(self, limit: int = 1 << 20) -> int:
        """Take what is there, at most `limit` bytes, without a turn of the loop."""
        before = len(self.received)
        pieces = [self.received]
        room = limit
        while room and not self.ended and self.error is None:
            try:
                piece = self.socket.recv(min(room, 1 << 16))
            except BlockingIOError:
                break
            except OSError as error:
                self.error = error
                break
            self.ended = not piece
            pieces.append(piece)
            room -= len(piece)
        self.received = b"".join(pieces)
        return len(self.received) - before

    def take(self, count: int) -> bytes:
        """The next `count` bytes, as soon as they are there."""
        def enough() -> bool:
            self.read(max(count - len(self.received), 1))
            assert len(self.received) >= count or not (self.ended or self.error), f"ended early: {self!r}"
            return len(self.received) >= count

        self.bench.turn_until(enough)
        taken, self.received = self.received[:count], self.received[count:]
        return taken

    def take_all(self) -> bytes:
        """Everything up to the server's end-of-stream, which must be a clean one."""
        def over() -> bool:
            self.read()
            return self.ended or self.error is not None

        self.bench.turn_until(over)
        assert self.error is None, f"{self.error!r} after {self.received!r:.500}"
        taken, self.received = self.received, b""
        return taken

    def broke(self) -> OSError:
        """The error that ends this connection; what came before it is in `received`."""
        def over() -> bool:
            self.read()
            return self.ended or self.error is not None

        self.bench.turn_until(over)
        assert self.error is not None, f"a clean end after {self.received!r:.500}"
        return self.error

    def receive_response(self, method: str = "GET") -> Answer:
        """The next response, by http.client's own parser."""
        found: list[tuple[Answer, int]] = []

        def whole() -> bool:
            parsed = parse_response(self.received, method)
            if parsed is None and self.read():
                parsed = parse_response(self.received, method)
            found[:] = [parsed] if parsed else []
            assert found or not (self.ended or self.error), f"no whole response: {self!r}"
            return bool(found)

        self.bench.turn_until(whole)
        answer, used = found[0]
        self.received = self.received[used:]
        return answer

    def receive_responses(self, count: int) -> list[Answer]:
        return [self.receive_response() for _ in range(count)]

    def eof(self) -> bool:
        """Whether the server's end-of-stream is next, with nothing before it."""
        return self.take_all() == b""

    def nothing_comes(self) -> bool:
        """Once the loop is at rest: neither bytes nor an end."""
        self.bench.quiet()
        self.read()
        return self.received == b"" and not self.ended and self.error is None

    def __repr__(self) -> str:
        return f"<Client received={self.received!r:.500} ended={self.ended} error={self.error!r}>"


class Recorder(epollkit.Stream):
    """Writes down its upcalls: `upcalls` has ("data", b"..."), ("close", None) and so on, in order."""

    def __init__(self) -> None:
        self.upcalls: list[tuple[Any, ...]] = []

    def on_open(self) -> None:
        self.upcalls.append(("open",))

    def on_data(self, data: bytes) -> None:
        self.upcalls.append(("data", data))

    def on_eof(self) -> None:
        self.upcalls.append(("eof",))
        super().on_eof()

    def on_error(self, error: OSError) -> None:
        self.upcalls.append(("error", error))

    def on_close(self, error: BaseException | None) -> None:
        self.upcalls.append(("close", error))

    @property
    def names(self) -> list[str]:
        """The upcalls without their arguments, data that follows data counted once."""
        found = [upcall[0] for upcall in self.upcalls]
        return [name for i, name in enumerate(found) if name != "data" or not i or found[i - 1] != "data"]

    @property
    def data(self) -> bytes:
        return b"".join(upcall[1] for upcall in self.upcalls if upcall[0] == "data")

    @property
    def closed(self) -> bool:
        return any(upcall[0] == "close" for upcall in self.upcalls)

    @property
    def close_error(self) -> BaseException | None:
        """What on_close was told, which was called exactly once and last."""
        assert [upcall[0] for upcall in self.upcalls].count("close") == 1, self.upcalls
        assert self.upcalls[-1][0] == "close", self.upcalls
        error: BaseException | None = self.upcalls[-1][1]
        return error


class Witness(Recorder):
    """Writes down on_drain and on_timeout, too, and keeps its side open after the peer's end.

    `then` says what it does in an upcall, behind the note: `Witness(on_data=lambda stream: stream.close())`.
    """

    def __init__(self, **then: Callable[[Any], object]) -> None:
        super().__init__()
        self.then = then

    def on_open(self) -> None:
        self._note("open")

    def on_data(self, data: bytes) -> None:
        self._note("data", data)

    def on_eof(self) -> None:
        self._note("eof")

    def on_drain(self) -> None:
        self._note("drain")

    def on_timeout(self, which: str) -> None:
        self._note("timeout", which)

    def on_error(self, error: Exception) -> None:
        self._note("error", error)

    def on_close(self, error: BaseException | None) -> None:
        self._note("close", error)

    def _note(self, *upcall: Any) -> None:
        self.upcalls.append(upcall)
        then = self.then.get(f"on_{upcall[0]}")
        if then is not None:
            then(self)

    def heard(self) -> list[str]:
        """Which upcalls came since this was last asked; data that follows data counts once."""
        names, self.upcalls[:] = self.names, []
        return names


class Factory:
    """Makes streams of a class, and keeps them: `factory.made[0]` is the first connection's."""

    def __init__(self, stream_class: Callable[..., Any] = Recorder, *arguments: Any) -> None:
        self.stream_class = stream_class
        self.arguments = arguments
        self.made: list[Any] = []

    def __call__(self) -> Any:
        self.made.append(self.stream_class(*self.arguments))
        return self.made[-1]


def open_pair(bench: Bench, factory: Factory | None = None, address: Any = ("127.0.0.1", 0), *, server_receive: int = 0,
              server_send: int = 0, **options: Any) -> tuple[Any, Client]:
    """One connection: the server's stream, opened, and its client. `server_…`: its socket buffers, in bytes."""
    factory = factory or Factory()
    listener = bench.listen(factory, address)
    set_buffers(listener.fileno(), server_receive, server_send)
    client = bench.connect(listener, **options)
    bench.turn_until(lambda: factory.made)
    bench.quiet()
    if isinstance(factory.made[-1], Witness):
        bench.witnesses.append(factory.made[-1])
    return factory.made[-1], client


def cuts(data: bytes, every: int = 300) -> list[list[bytes]]:
    """`data` whole, byte by byte, and split in two at every index; of long data at its ends and some in between."""
    indexes = [i for i in range(1, len(data)) if i < every or i >= len(data) - 20 or i % 997 == 0]
    pieces = [data[i:i + 1] for i in range(len(data))] if len(data) <= every else [data[:1], data[1:2], data[2:]]
    return [[data], pieces, *([data[:i], data[i:]] for i in indexes)]


def set_buffers(fd: int, receive: int = 0, send: int = 0) -> None:
    """SO_RCVBUF and SO_SNDBUF of any socket's fd; a TCP listener's are inherited by what it accepts. 0: left alone."""
    with socket.socket(fileno=os.dup(fd)) as copy:
        if receive:
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        if send:
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send)


def unacknowledged_bytes(sock: socket.socket) -> int:
    """Sent, but not yet acknowledged by the peer's kernel; a FIN counts one (SIOCOUTQ, tcp(7))."""
    count = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, count)
    return count[0]


def wait_until(condition: Callable[[], bool]) -> None:
    """Until the kernel has done what it does by itself; no turn of the loop."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the kernel takes its time"
        os.sched_yield()


def wait_for(fd: int, events: int) -> None:
    """Until poll(2) reports at least one of these events, without a turn of the loop."""
    poller = select.poll()
    poller.register(fd, events)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not any(found & events for _, found in poller.poll(100)):
        assert time.monotonic() < deadline, f"no event of {events:#x} on fd {fd}"


def epollkit_command() -> list[str]:
    """The installed script, or the module where there is none."""
    script = Path(sys.executable).parent / "epollkit"
    return [str(script)] if script.exists() else [sys.executable, "-m", "epollkit.cli"]


class Served:
    """`epollkit serve` with these arguments, in a process of its own that serves by the time `with` is entered.

    `url` is what it printed: "http://127.0.0.1:40000", or "unix:/path". Ended with SIGINT unless `stop` was called.
    """

    def __init__(self, *arguments: str, directory: Path, environment: dict[str, str] | None = None) -> None:
        self.command = [*epollkit_command(), "serve", *arguments]
        self.directory = directory
        self.environment = {**os.environ, **(environment or {})}
        self.url = ""

    def __enter__(self) -> Served:
        self.process = subprocess.Popen(self.command, cwd=self.directory, env=self.environment, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("epollkit serves on "):
            self.process.kill()
            raise AssertionError(f"{line!r} {self.process.communicate()}")
        self.url = line.split()[3]
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise

    def connect(self) -> socket.socket:
        """A blocking client."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_SECONDS)

    def stop(self, signum: int) -> tuple[int, str, str, float]:
        """Exit status, the rest of its standard output, its standard error, and the seconds it took to end."""
        start = time.monotonic()
        self.process.send_signal(signum)
        output, errors = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, output, errors, time.monotonic() - start

"""Vocabulary for tests: real descriptors whose events come in a known order, in one batch.

Epoll reports in the order in which descriptors became ready. So a test registers everything, lets the loop settle (what
is watched for OUT is ready at once), makes one descriptor after the other ready, waiting each time until the kernel
says so, and then makes one `turn(0)`: that is the batch.

    stage           what the test opens; all of it is closed at the end
    Pair, Event     a TCP connection, an eventfd: things to make ready
    Log, Spy        who was called, in which order
"""
from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import epollkit

LOCAL = ("127.0.0.1", 0)
PATIENCE_SECONDS = 60.0         # a promise that takes longer is broken; a slow machine is not
SETTLE_TURNS = 1000             # a loop that is busy for longer spins
LISTEN_QUEUE_OFFSET = 24        # tcp_info.tcpi_unacked: of a listening socket, the connections that wait for accept
READ_ENDS = select.POLLIN | select.POLLRDHUP


def wait_ready(fd: Any, events: int = select.POLLIN) -> None:
    """Until poll(2) reports all of these events."""
    poll = select.poll()
    poll.register(fd, events)
    found = 0
    while found & events != events:
        seen = poll.poll(PATIENCE_SECONDS * 1000)
        assert seen, f"fd {fd} did not become ready"
        found = seen[0][1]
        poll.modify(fd, events & ~found)


def ready_events(fd: Any) -> int:
    """What poll(2) says of an fd right now."""
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT | select.POLLPRI | select.POLLRDHUP)
    return poll.poll(0)[0][1] if poll.poll(0) else 0


def settle(loop: epollkit.Loop) -> None:
    """Turn until nothing is left to do."""
    for _ in range(SETTLE_TURNS):
        if loop.turn(0) == 0:
            return
    raise AssertionError("the loop does not come to rest")


def turn_until(loop: epollkit.Loop, done: Callable[[], object]) -> int:
    """Turn, waiting for events, until that is so. Returns the number of turns."""
    for turns in range(SETTLE_TURNS):
        if done():
            return turns
        loop.turn(PATIENCE_SECONDS)
    raise AssertionError("it did not happen")


def send(far: socket.socket, near: Any, data: bytes = b"x") -> None:
    """Bytes from the peer; they have arrived when this returns."""
    far.sendall(data)
    wait_ready(near)


def finish(far: socket.socket, near: Any) -> None:
    """The peer's FIN; the connection stays open in the other direction."""
    far.shutdown(socket.SHUT_WR)
    wait_ready(near, READ_ENDS)


def reset(far: socket.socket, near: Any) -> None:
    """The peer's RST: an event with HUP and ERR, the kind that kills whom it reaches."""
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    wait_ready(near, select.POLLHUP | select.POLLERR)


def queued_connections(listening: Any) -> int:
    """How many connections wait for accept."""
    with socket.socket(fileno=os.dup(listening.fileno())) as copy:
        return struct.unpack_from("I", copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64), LISTEN_QUEUE_OFFSET)[0]


def next_fd() -> int:
    """The number that the kernel would give to the next descriptor."""
    fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.close(fd)
    return fd


def names_looked_up() -> None:
    """Every question to the resolver is answered: the answers wait in their loops."""
    for thread in threading.enumerate():
        if thread.name == "epollkit resolver":
            thread.join(PATIENCE_SECONDS)


class Event:
    """An eventfd: the cheapest thing that can become ready."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self.fd

    def fire(self) -> None:
        os.eventfd_write(self.fd, 1)

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


class Pair(NamedTuple):
    """A connection: near is the end that the loop watches, far is the peer's."""

    near: socket.socket
    far: socket.socket

    def send(self, data: bytes = b"x") -> None:
        send(self.far, self.near, data)

    def reset(self) -> None:
        reset(self.far, self.near)


class Log(list):
    """Upcalls in their order: `(name, what)` with the mask of a raw handler, or a stream's upcall and its argument."""

    @property
    def names(self) -> list[str]:
        return [entry[0] for entry in self]

    def of(self, name: str) -> list[Any]:
        """What was told to that one."""
        return [entry[1:] if len(entry) > 2 else entry[1] for entry in self if entry[0] == name]

    def handler(self, name: str, then: Callable[[], object] | None = None) -> Callable[..., None]:
        """A raw handler that notes its call, then does something."""
        def handle(token: epollkit.Token, events: int) -> None:
            self.append((name, events))
            if then is not None:
                then()
        return handle

    def call(self, name: str, then: Callable[[], object] | None = None) -> Callable[..., None]:
        """A function for timers and posted calls, likewise."""
        def function(*arguments: object) -> None:
            self.append((name, arguments))
            if then is not None:
                then()
        return function


class Spy(epollkit.Stream):
    """A stream that notes its upcalls; `on_data=function` and so on: what it does in them, called with the stream."""

    def __init__(self, log: Log, name: str, **then: Callable[[Any], object]) -> None:
        self.log, self.name, self.then = log, name, then

    def _note(self, what: str, value: object = None) -> None:
        self.log.append((self.name, what, value))
        if what in self.then:
            self.then[what](self)

    def on_open(self) -> None:
        self._note("on_open")

    def on_data(self, data: bytes) -> None:
        self._note("on_data", data)

    def on_eof(self) -> None:
        self._note("on_eof")

    def on_error(self, error: OSError) -> None:
        self._note("on_error", error)

    def on_close(self, error: Exception | None) -> None:
        self._note("on_close", error)


class Stage(contextlib.ExitStack):
    """Everything a test opens."""

    def own(self, closable: Any) -> Any:
        self.callback(closable.close)
        return closable

    def event(self) -> Event:
        return self.own(Event())

    def events(self, count: int) -> list[Event]:
        return [self.event() for _ in range(count)]

    def listening(self, *options: tuple[int, int, int]) -> socket.socket:
        """A plain listening socket, not the loop's."""
        listening = self.own(socket.socket())
        listening.setblocking(False)
        for option in options:
            listening.setsockopt(*option)
        listening.bind(LOCAL)
        listening.listen(1024)
        return listening

    def connect(self, listening: Any) -> socket.socket:
        """A client of a `Listener` or a listening socket; it waits in the queue when this returns."""
        address = listening.address if hasattr(listening, "address") else listening.getsockname()
        family = socket.AF_UNIX if isinstance(address, (str, bytes)) else (
            socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        client = self.own(socket.socket(family))
        client.connect(address)
        client.setblocking(False)
        wait_ready(listening)
        return client

    def connect_many(self, listening: Any, count: int) -> list[socket.socket]:
        """That many clients, all of them in the queue."""
        before = queued_connections(listening)
        clients = [self.connect(listening) for _ in range(count)]
        for _ in range(SETTLE_TURNS):
            if queued_connections(listening) == before + count:
                return clients
            os.sched_yield()
        raise AssertionError("the connections did not arrive")

    def pair(self) -> Pair:
        """A TCP connection, both ends non-blocking."""
        with socket.create_server(LOCAL) as listening:
            far = self.own(socket.create_connection(listening.getsockname()))
            near, _ = listening.accept()
        self.own(near)
        for end in (near, far):
            end.setblocking(False)
        return Pair(near, far)

    def watch(self, loop: epollkit.Loop, fd: Any, events: int, handler: Callable[..., object]) -> epollkit.Token:
        """`Loop.register`, undone at the end if the test has not done so."""
        token = loop.register(fd, events, handler)
        self.callback(lambda: token.live and loop.unregister(token))
        return token

    def listen(self, loop: epollkit.Loop, factory: Callable[[], Any], address: Any = LOCAL, **options: Any) -> Any:
        """`Loop.listen`; listener and streams are gone at the end."""
        def make() -> Any:
            stream = factory()
            self.callback(stream.abort)
            return stream
        return self.own(loop.listen(address, make, **options))

    def stream(self, loop: epollkit.Loop, stream: Any) -> Any:
        """Have a connection accepted for this stream; returns its client. The listener is gone again."""
        listener = self.listen(loop, lambda: stream)
        client = self.connect(listener)
        settle(loop)
        listener.close()
        settle(loop)
        assert stream.token.live
        return client

    def fill_fd_holes(self, above: int) -> None:
        """Open /dev/null until every number up to `above` is taken: whoever closes one gets that number back next."""
        while (fd := os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)) <= above:
            self.callback(os.close, fd)
        os.close(fd)


def orphaned(loop: epollkit.Loop, stage: Stage) -> tuple[socket.socket, int]:
    """A connection that the loop has closed, while a copy of its fd keeps the description open; and its client."""
    stream = Spy(Log(), "orphan")
    client = stage.stream(loop, stream)
    copy = os.dup(stream.fileno())
    stage.callback(os.close, copy)
    stream.close()
    settle(loop)
    return client, copy


def report_orphans(loop: epollkit.Loop, client: socket.socket, copy: int, count: int) -> None:
    """That many events of it, each in a turn of its own."""
    for _ in range(count):
        client.send(b"x")
        wait_ready(copy)
        assert loop.turn(0) == 0, "somebody was called for a connection that is gone"
        os.read(copy, 10)


def in_thread(function: Callable[[], Any]) -> Any:
    """What a function returns, or raises, in another thread."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def in_child(code: str, *arguments: str, **options: Any) -> str:
    """What a program prints. For what can't be undone in this process: limits, privileges, system call filters."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd="/",
                          timeout=PATIENCE_SECONDS, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def child(*, with_hooks: bool, body: Callable[[], int] = lambda: 0) -> Iterator[Callable[[], int]]:
    """A forked child that runs `body` and then waits to be released. Yields a function that waits for its end and
    returns its exit status; body has run when this is entered. Without hooks: as a library in C would fork."""
    done_read, done_write = os.pipe()
    go_read, go_write = os.pipe()
    pid = os.fork() if with_hooks else ctypes.PyDLL(None).fork()
    if pid == 0:
        status = 99
        try:
            status = body()
        finally:
            os.write(done_write, b"x")
            os.close(go_write)
            os.read(go_read, 1)
            end_child(status)
    os.close(go_read)
    os.read(done_read, 1)
    for fd in (done_read, done_write):
        os.close(fd)
    ended: list[int] = []

    def end() -> int:
        if not ended:
            os.close(go_write)
            ended.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return ended[0]

    try:
        yield end
    finally:
        end()


def end_child(status: int) -> None:
    """Not os._exit: what the child covered is written by exit(). Not sys.exit: pytest must not go on in the child."""
    ctypes.PyDLL(None).exit(status)


@contextlib.contextmanager
def kept_signal_handler(signum: int, handler: Any) -> Iterator[None]:
    """A Python signal handler for the length of a block."""
    before = signal.signal(signum, handler)
    try:
        yield
    finally:
        signal.signal(signum, before)


@contextlib.contextmanager
def finalizer_at_next_allocation(function: Callable[[], object], nth: int = 1) -> Iterator[None]:
    """Garbage whose finalizer runs that function when the collector next comes, which is at the nth allocation."""
    class Garbage:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            function()

    before = gc.get_threshold()
    gc.collect()
    gc.disable()
    Garbage()
    gc.set_threshold(nth)
    gc.enable()
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.collect()

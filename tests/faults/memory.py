"""Allocations that fail, one after the other, in each scene of a server's life. `python memory.py HOW [SCENE]`.

A scene prepares something with memory enough, and returns what is then done without: the nth allocation in it fails,
for every n until none does. HOW is `malloc` (every allocation of the process: faults.c, loaded before libc, and Python
told to use malloc), `lasting` (the same, and the next 30 fail, too), or `python`
(`_testcapi.set_nomemory`: Python's own allocators).

After each: whatever was raised or reported is a MemoryError; the next clients are served; descriptors, slots and timers
are back where they were. It prints a line of JSON: how many allocations failed in each scene, and what was wrong.
"""
from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import json
import os
import socket
import ssl
import struct
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from subject import BIG, LOCAL, Client, Echo, alive, contexts, open_fds

from epollkit import IN, ONESHOT, Loop, Pool, Stream, _resolver
from epollkit.http import Response, listen

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_BIG = GET.replace(b" / ", b" /big ")
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
TURNS = 8               # of the loop, without memory
PATIENCE_TURNS = 400    # with it, of 10 ms at most

Action = Callable[[], object]


class Wrong(Exception):
    pass


class House:
    """A loop that serves, and clients that never block; made anew for each allocation that fails."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.clients: list[socket.socket] = []
        self.told: list[BaseException] = []
        self.loop = Loop()
        self.loop.set_exception_handler(self.hear)
        self.http = listen(self.loop, LOCAL, self.answer)
        self.echo = self.loop.listen(LOCAL, self.make_echo)
        self.tls = self.loop.listen(LOCAL, self.make_echo, ssl=shared.server_context)
        self.connectors: list[Any] = [None] * 2     # of the scene; room for them takes no memory
        self.file = shared.file                 # for Echo.do_file
        self.broken: list[str] = []
        self.live = self.loop.stats().live
        self.pools: list[Pool] = []
        self.token: Any = None

    def hear(self, error: BaseException, source: object) -> None:
        self.told.append(error)

    def answer(self, request: Any) -> Response:
        return Response(request.body or (BIG if request.path == "/big" else b"Hello"))

    def make_echo(self) -> Echo:
        return Echo(self)

    def pool(self, **options: Any) -> Pool:
        self.pools.append(Pool(self.loop, Client, **options))
        return self.pools[-1]

    def queue(self, listener: Any, data: bytes = b"") -> socket.socket:
        """A client that waits to be accepted."""
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.address)
        client.setblocking(False)
        self.clients.append(client)
        if data:
            client.send(data)
        return client

    def dial(self, listener: Any, data: bytes = b"") -> socket.socket:
        """One that was accepted; then it sends that."""
        client = self.queue(listener)
        accepted = self.loop.stats().accepted
        self.until(lambda: self.loop.stats().accepted > accepted)
        self.settle()
        if data:
            client.send(data)
        return client

    def shake(self, data: bytes = b"") -> ssl.SSLSocket:
        """One whose TLS handshake is over; then it sends that."""
        client = self.hello()
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.loop.turn(0.01)
        self.settle()
        if data:
            client.send(data)
        return client

    def hello(self) -> ssl.SSLSocket:
        """One that has begun it."""
        plain = self.dial(self.tls)
        self.clients.remove(plain)
        client = self.shared.client_context.wrap_socket(plain, server_hostname="localhost",
                                                        do_handshake_on_connect=False)
        self.clients.append(client)
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        return client

    def reset(self, client: socket.socket) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()

    def turns(self) -> None:
        for _ in range(TURNS):
            self.loop.turn(0)

    def settle(self) -> None:
        while self.loop.turn(0):
            pass

    def until(self, condition: Callable[[], object]) -> None:
        for _ in range(PATIENCE_TURNS):
            if condition():
                return
            self.loop.turn(0.01)
        raise Wrong("it does not come to an end")

    def served(self) -> None:
        """The next clients are."""
        for listener, question, answer in ((self.http, GET, b"Hello"), (self.echo, b"echo 5\nhello", b"hello")):
            client = self.queue(listener, question)
            received = b""

            def answered() -> bool:
                nonlocal received
                with contextlib.suppress(BlockingIOError):
                    received += client.recv(4096)       # noqa: B023
                return received.endswith(answer)        # noqa: B023
            self.until(answered)

    def leave(self) -> None:
        """Clients go, pools are closed; nothing is left but who listens."""
        if self.token is not None and self.token.live:
            self.loop.unregister(self.token)
        for client in self.clients:
            client.close()
        for pool in self.pools:
            self.until(lambda: at_rest(pool, self.shared.how))      # noqa: B023
            pool.close()
        self.until(lambda: self.loop.stats().live <= self.live and not self.loop.stats().timers)
        if lost := [one for one in self.connectors if one is not None and one.state in ("resolving", "connecting")]:
            raise Wrong(f"nothing comes of {lost}")
        stats = self.loop.stats()
        if (stats.live, stats.timers, stats.wrong_deliveries) != (self.live, 0, 0):
            raise Wrong(f"left: {stats}")


def at_rest(pool: Pool, how: str) -> bool:
    """Whether every request is decided, and every place free or an idle connection's. The pool hears of a connection's
    end by a call, for which there may be no memory as long as there is none: then its place is lost."""
    stats = pool.stats()
    return not pool._requests and (how == "lasting" or stats.open == stats.idle)


# -- scenes ------------------------------------------------------------------------------------------------------------

def accept_and_answer(house: House) -> Action:
    for _ in range(3):
        house.queue(house.http, GET)
    return house.turns


def accept_a_stream(house: House) -> Action:
    house.queue(house.echo, b"echo 5\nhello")
    return house.turns


def keep_alive(house: House) -> Action:
    house.dial(house.http, GET)
    return house.turns


def pipeline(house: House) -> Action:
    house.dial(house.http, GET * 3 + GET[:10])
    return house.turns


def body_in_pieces(house: House) -> Action:
    client = house.dial(house.http, POST + b"x" * 1000)
    house.settle()
    client.send(b"x" * 1000)
    return house.turns


def bad_request(house: House) -> Action:
    house.dial(house.http, b"GET \x00 HTTP/1.1\r\n\r\n")
    return house.turns


def answer_larger_than_the_socket(house: House) -> Action:
    house.dial(house.http, GET_BIG + GET)
    return house.turns


def pipeline_behind_a_slow_reader(house: House) -> Action:
    client = house.dial(house.http, GET_BIG * 2)
    house.settle()
    client.send(GET * 5)

    def act() -> None:
        house.turns()
        with contextlib.suppress(BlockingIOError):
            while client.recv(1 << 16):
                house.loop.turn(0)
        house.turns()
    return act


def frames(house: House) -> Action:
    house.dial(house.echo, b"echo 5\nhello" * 3 + b"echo 500\nabc")
    return house.turns


def frame_in_pieces(house: House) -> Action:
    client = house.dial(house.echo, b"echo 9000\n" + b"x" * 4000)
    house.settle()
    client.send(b"x" * 5000)
    return house.turns


def all_kinds_of_output(house: House) -> Action:
    house.dial(house.echo, b"lines\nfile\nbig\nlines\npause\n")
    return house.turns


class GoesOn(Stream):
    """Takes no MemoryError for a reason to stop."""

    def __init__(self, house: House) -> None:
        self.house = house

    def on_data(self, data: bytes) -> None:
        with contextlib.suppress(MemoryError):
            if b"a little" in data:
                self.write(b"abc")
            if b"much" in data:
                self.write(BIG)
            if b"a file" in data:
                self.sendfile(self.house.file)


def a_handler_that_goes_on(house: House) -> Action:
    listener = house.loop.listen(LOCAL, functools.partial(GoesOn, house))
    clients = [house.dial(listener) for _ in range(4)]
    listener.close()
    for client, wanted in zip(clients, (b"much", b"a file", b"a little and much", b"a little and a file"), strict=True):
        client.send(wanted)
    return house.turns


def drains(house: House) -> Action:
    client = house.dial(house.echo, b"big\nfile\nlines\n")
    house.settle()

    def act() -> None:
        with contextlib.suppress(BlockingIOError):
            while client.recv(1 << 16):
                house.loop.turn(0)
    return act


def ends_of_all_kinds(house: House) -> Action:
    house.dial(house.echo, b"bye\n")
    house.dial(house.echo, b"abort\n")
    house.dial(house.echo).shutdown(socket.SHUT_WR)
    house.dial(house.http).shutdown(socket.SHUT_WR)
    house.reset(house.dial(house.echo))
    house.reset(house.dial(house.http))
    house.reset(house.dial(house.echo, b"echo 5\nhel"))
    house.dial(house.echo, b"x" * 1000)         # longer than an order may be
    return house.turns


def nothing(*arguments: object) -> None:
    pass


def calls(house: House) -> Action:
    def act() -> None:
        timer = house.loop.call_later(100, nothing)
        try:
            house.loop.call_soon(nothing)
            house.loop.call_soon_threadsafe(nothing)
            house.loop.call_later(0, nothing)
            house.turns()
        finally:
            timer.cancel()
    return act


def raw(house: House) -> Action:
    left, right = socket.socketpair()
    house.clients += [left, right]
    right.send(b"x")

    def act() -> None:
        token = house.loop.register(left, IN | ONESHOT, lambda token, events: None)
        house.token = token
        house.turns()
        house.loop.modify(token, IN | ONESHOT)
        house.turns()
        house.loop.unregister(token)
    return act


def connects(house: House) -> Action:
    results: list[str] = []

    def client() -> Client:             # here: Python 3.13.0 crashes where it can't make a function
        return Client(results.append)

    def act() -> None:
        house.loop.connect(house.echo.address, client, timeout=5.0)
        house.loop.connect(house.shared.closed_port, client, timeout=5.0)
        house.turns()
    return act


def connects_by_name(house: House) -> Action:
    """What a thread says would come at another time in each run: so it is said in the loop's own."""
    asked: list[Any] = []

    def client() -> Client:
        return Client(nothing)

    def ask(loop: Loop, number: int, host: str, port: int) -> None:
        asked[number - 1] = number

    asked += [None] * 2
    answers = [[house.echo.address], OSError("no such name")]

    def act() -> None:
        before, _resolver.ask = _resolver.ask, ask
        try:
            for i in range(2):
                house.connectors[i] = house.loop.connect(("name.test", 80), client, timeout=0.5)
                house.loop.call_soon_threadsafe(house.loop._resolved, asked[i], answers[i])
            house.turns()
        finally:
            _resolver.ask = before
    return act


def asks_the_resolver(house: House) -> Action:
    def client() -> Client:
        return Client(nothing)

    def act() -> None:
        house.connectors[0] = house.loop.connect(("localhost", 1), client, timeout=5.0)
    return act


def tls_handshake(house: House) -> Action:
    house.hello()
    return house.turns


def tls_stream(house: House) -> Action:
    house.shake(b"echo 5\nhello" * 3 + b"big\nfile\n")
    return house.turns


def tls_ends(house: House) -> Action:
    house.shake(b"bye\n")
    house.reset(house.shake())
    with contextlib.suppress(ssl.SSLWantReadError):
        house.shake().unwrap()
    garbage = house.dial(house.tls)
    garbage.send(b"GET / HTTP/1.1\r\n\r\n")
    return house.turns


def tls_connect(house: House) -> Action:
    """Both ends are ours. Their sessions are made before: CPython crashes where OpenSSL can't make one (SSL_new)."""
    house.connectors[0] = house.loop.connect(house.tls.address, lambda: Client(nothing), timeout=5.0,
                                             ssl=house.shared.client_context, server_hostname="localhost")
    accepted = house.loop.stats().accepted
    house.until(lambda: house.loop.stats().accepted > accepted)
    return house.turns


def rated(house: House) -> Action:
    house.dial(house.echo, b"rate 1000000\nlines\necho 5\nhello")
    return house.turns


def pools(house: House) -> Action:
    pool = house.pool(max_open=2, wait_timeout=0.5, connect_timeout=0.5)

    def receive(stream: Any, error: Any) -> None:
        if stream is not None:
            stream.ask(pool, lambda what: None)

    def act() -> None:
        for _ in range(4):
            pool.acquire(house.echo.address, receive)
        house.turns()
        house.turns()
    return act


def opening(house: House) -> Action:
    def act() -> None:
        with Loop() as loop:
            listen(loop, LOCAL, house.answer).close()
            loop.listen(LOCAL, house.make_echo)
            loop.turn(0)
    return act


def closing(house: House) -> Action:
    loop = Loop()
    loop.set_exception_handler(house.hear)
    listener = loop.listen(LOCAL, house.make_echo)
    for _ in range(3):
        house.queue(listener, b"big\n")
    loop.turn(0)
    loop.turn(0)
    loop.call_later(10, print)

    def act() -> None:
        try:
            loop.close()
        except MemoryError:
            loop.close()
            raise
    return act


SCENES = [accept_and_answer, accept_a_stream, keep_alive, pipeline, body_in_pieces, bad_request,
          answer_larger_than_the_socket, pipeline_behind_a_slow_reader, frames, frame_in_pieces, all_kinds_of_output,
          a_handler_that_goes_on, drains, ends_of_all_kinds, calls, raw, connects, connects_by_name,
          asks_the_resolver, tls_handshake, tls_stream, tls_ends, tls_connect, rated, pools, opening, closing]


# -- what fails --------------------------------------------------------------------------------------------------------

class Malloc:
    """faults.c."""

    quiet = 3                   # runs in which nothing fails, and then nothing will

    def __init__(self, count: int) -> None:
        library = ctypes.CDLL(None)
        self.begin_at, self.fired = library.faults_memory, library.faults_fired
        self.count = count

    def begin(self, nth: int) -> None:
        self.begin_at(nth, self.count)

    def end(self) -> bool:
        return self.fired() > 0


class PythonOnly:
    quiet = 30                  # it does not say whether an allocation has failed, if nobody else does

    def __init__(self) -> None:
        import _testcapi
        self.set_nomemory, self.remove = _testcapi.set_nomemory, _testcapi.remove_mem_hooks

    def begin(self, nth: int) -> None:
        self.set_nomemory(nth - 1, nth)

    def end(self) -> bool:
        self.remove()
        return False


class Shared:
    """What all houses have."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.file = tempfile.TemporaryFile()                # noqa: SIM115
        self.file.write(BIG[:200_000])
        self.file.flush()
        self.closed = socket.socket()
        self.closed.bind(LOCAL)
        self.closed_port = self.closed.getsockname()
        self.server_context, self.client_context = contexts()


def is_memory(error: BaseException) -> bool:
    """Or getaddrinfo's EAI_MEMORY, or CPython's do_handshake, which forgets to say so."""
    return isinstance(error, MemoryError) or "Memory allocation failure" in str(error) \
        or (isinstance(error, SystemError) and "do_handshake" in str(error))


def tried(act: Action, hook: Any, nth: int) -> tuple[bool, BaseException | None]:
    """What is done with the nth allocation failing: whether it did, and what was raised. Allocates nothing itself."""
    raised: BaseException | None = None
    try:
        hook.begin(nth)
        act()
    except Exception as error:
        raised = error
    while True:
        try:
            fired = hook.end()
            break
        except MemoryError as error:        # it needs some, too
            raised = raised or error
    return fired or raised is not None, raised


def once(scene: Callable[[House], Action], hook: Any, nth: int, shared: Shared) -> tuple[bool, list[str]]:
    before, counted = open_fds(), alive()
    house = House(shared)
    act = scene(house)
    fired, raised = tried(act, hook, nth)
    problems = [f"raised {raised!r}"] if raised is not None and not is_memory(raised) else []
    fired = fired or bool(house.told)
    try:
        house.served()
        house.leave()
    except (Wrong, MemoryError, OSError) as error:
        problems.append(f"{error!r}: {house.loop.stats()}")
    problems += [f"reported {error!r}" for error in house.told if not is_memory(error)]
    for client in house.clients:
        client.close()
    house.loop.close()
    del house, act, raised
    gc.collect()
    if left := {fd: what for fd, what in open_fds().items() if fd not in before}:
        problems.append(f"descriptors left: {left}")
    if counts := {kind: number - counted[kind] for kind, number in alive().items() if number != counted[kind]}:
        problems.append(f"left: {counts}")
    return fired, problems


def main() -> int:
    how = sys.argv[1]
    hook = PythonOnly() if how == "python" else Malloc(31 if how == "lasting" else 1)
    shared = Shared(how)
    wanted = [scene for scene in SCENES if not sys.argv[2:] or scene.__name__ in sys.argv[2:]]
    first = int(os.environ.get("FAULTS_FIRST", "1"))
    step = int(os.environ.get("FAULTS_STEP", "1"))
    sys.unraisablehook = lambda what: unraisable.append(repr(what.exc_value)) \
        if not isinstance(what.exc_value, MemoryError) else None
    unraisable: list[str] = []
    for scene in wanted:
        tried(scene(house := House(shared)), hook, 1 << 30)         # what is made once is made
        house.leave()
        house.loop.close()
        gc.collect()
        gc.freeze()
        nth, quiet, fired_in, wrong = first, 0, 0, []
        while quiet < hook.quiet:
            fired, problems = once(scene, hook, nth, shared)
            problems += unraisable
            unraisable.clear()
            wrong += [f"{scene.__name__}:{nth}: {problem}" for problem in problems]
            fired_in += fired
            quiet = 0 if fired else quiet + 1
            nth += step
        print(json.dumps({"scene": scene.__name__, "fired": fired_in, "problems": wrong}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

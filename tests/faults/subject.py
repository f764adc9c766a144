"""The program under test: a server with three addresses, and a client of its own. `python subject.py FOLDER`.

It says where it serves as a line of JSON, and then does what each line on standard input says:

    use             ask its own server, through a pool and by connectors; the answer says how that went
    dial PORT       connect there, with a second to do it; the answer says what came of it
    count [N]       close the pool, wait for everything else to end, and say what is left; N listeners have ended
    end             close the loop and say what is left then

It is one thread, so that the nth call is the same one in each run; and what it talks to its driver by is read(2) and
write(2), into which no fault is injected.
"""
from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import json
import os
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import epollkit
from epollkit import IN, ONESHOT, ConnectError, Loop, Pool, StaleToken, Stream
from epollkit.http import Request, Response, listen

DEBUG = epollkit.build_info()["build"] == "debug"
if DEBUG:
    from epollkit import _operations

LOCAL = ("127.0.0.1", 0)
BIG = bytes(range(256)) * 4096                              # a megabyte: more than the sockets hold
LINES = [BIG[:100_000], BIG[1:100_001], BIG[2:100_002]]
SECONDS = float(os.environ.get("FAULTS_SECONDS", "20"))     # every time limit of the server
CONNECT_SECONDS = float(os.environ.get("FAULTS_CONNECT", "2"))
PATIENCE_TICKS = 4000      # of 5 ms, for everything to end: a time limit, and then a linger of 5 s
POOL_REQUESTS = 4


def open_fds() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):                  # the listing's own
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and the client's, of the certificates that `python tests/faults` has made."""
    folder = Path(os.environ["FAULTS_CERTIFICATES"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem")
    return server, ssl.create_default_context(cafile=str(folder / "authority.pem"))


def alive() -> dict[str, int]:
    return {kind: made - freed for kind, (made, freed) in _operations.counts().items()} if DEBUG else {}


def name_of(error: BaseException) -> str:
    code = getattr(error, "errno", None)
    return f"{type(error).__name__}({errno.errorcode.get(code, code) if code else error})"


class Echo(Stream):
    """Takes orders, a line each; `echo 5` is followed by five bytes."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.state = "order"

    def on_open(self) -> None:
        self.set_timeout(read=SECONDS, write=SECONDS)
        self.read_until(b"\n", 100)

    def on_data(self, data: bytes) -> None:
        if self.state == "order":
            name, _, count = data.decode().strip().partition(" ")
            getattr(self, f"do_{name}")(int(count or 0))
        else:
            self.write(data)
            if self.state == "echo":
                self.state = "order"
                self.read_until(b"\n", 100)

    def do_echo(self, count: int) -> None:
        self.state = "echo"
        self.read_exactly(count)

    def do_raw(self, _: int) -> None:
        self.state = "raw"
        self.read_raw()

    def do_lines(self, _: int) -> None:
        self.writelines(LINES)

    def do_file(self, _: int) -> None:
        self.sendfile(self.subject.file)

    def do_big(self, _: int) -> None:
        self.write(BIG)

    def do_pause(self, _: int) -> None:
        self.pause_reading()
        self.call_later(0.001, self.resume_reading)

    def do_rate(self, count: int) -> None:
        self.set_rate(read=count, write=count)

    def do_bye(self, _: int) -> None:
        self.write(b"bye")
        self.shutdown_write()

    def do_abort(self, _: int) -> None:
        self.abort()

    def on_close(self, error: BaseException | None) -> None:
        if error is not None:
            self.subject.broken.append(name_of(error))


class Client(Stream):
    """Asks for five bytes; `done` is called with "ok", or with what went wrong."""

    def __init__(self, done: Any = None) -> None:
        self.done = done
        self.received = b""
        self.pool: Pool | None = None

    def ask(self, pool: Pool | None, done: Any) -> None:
        self.pool, self.done, self.received = pool, done, b""
        self.write(b"echo 5\nhello")

    def on_open(self) -> None:
        if self.done is not None:
            self.ask(None, self.done)

    def on_data(self, data: bytes) -> None:
        self.received += data
        if self.received == b"hello":
            if self.pool is not None:
                self.finish("ok")
                self.pool.release(self)
            else:
                self.close()

    def on_close(self, error: BaseException | None) -> None:
        self.finish("ok" if self.received == b"hello" else f"lost: {name_of(error) if error else 'closed'}")

    def finish(self, what: str) -> None:
        done, self.done = self.done, None
        if done is not None:
            done(what)


class Subject:
    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "socket")
        self.file = open(folder / "file", "wb+")            # noqa: SIM115
        self.file.write(BIG[:200_000])
        self.file.flush()
        self.closed_port = socket.socket()                  # bound, and not listening
        self.closed_port.bind(LOCAL)
        self.nobody = self.closed_port.getsockname()
        self.server_context, self.client_context = contexts()
        self.told: list[str] = []           # by the exception handler
        self.broken: list[str] = []         # what connections of `Echo` ended with
        self.refused: list[str] = []        # raised at whoever asked, who asked again
        self.problems: list[str] = []
        self.rest = b""
        self.pool: Pool | None = None
        os.set_blocking(0, False)

    def attempt(self, function: Any, *arguments: Any, **options: Any) -> Any:
        """A fault is an OSError here, leaves nothing behind, and the next try works."""
        before = open_fds()
        try:
            return function(*arguments, **options)
        except OSError as error:
            self.refused.append(name_of(error))
        if left := {fd: what for fd, what in open_fds().items() if fd not in before}:
            self.problems.append(f"{function.__qualname__} failed, and left {left}")
        return function(*arguments, **options)

    def open(self) -> None:
        self.loop = self.attempt(Loop)
        self.loop.set_exception_handler(lambda error, source: self.told.append(name_of(error)))
        limits = {f"timeout_{name}": SECONDS for name in ("header", "body", "write", "keep_alive")}
        self.http = self.attempt(listen, self.loop, LOCAL, self.answer, **limits)
        self.echo = self.attempt(self.loop.listen, LOCAL, lambda: Echo(self))
        self.unix = self.attempt(self.loop.listen, self.path, lambda: Echo(self))
        self.tls = self.attempt(self.loop.listen, LOCAL, lambda: Echo(self), ssl=self.server_context)
        self.attempt(self.loop.prepare)
        self.attempt(self.loop.register, 0, IN | ONESHOT, self.on_line)
        self.at_rest = open_fds(), self.loop.stats().live
        self.say(http=self.http.address, echo=self.echo.address, unix=self.path, tls=self.tls.address,
                 pid=os.getpid())

    def answer(self, request: Request) -> Response:
        return Response(request.body if request.method == "POST" else BIG if request.path == "/big" else b"Hello")

    def say(self, **what: Any) -> None:
        os.write(1, json.dumps(what).encode() + b"\n")

    def on_line(self, token: Any, events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(0, 65536)
            *lines, self.rest = (self.rest + data).split(b"\n")
            if not data:
                self.loop.stop()                            # the driver is gone
            for line in lines:
                name, *arguments = line.decode().split()
                getattr(self, f"obey_{name}")(*arguments)
        try:
            self.loop.modify(token, IN | ONESHOT)
        except StaleToken as error:                         # the kernel said that it does not know it
            self.refused.append(name_of(error))
            self.loop.register(0, IN | ONESHOT, self.on_line)
        except OSError as error:
            self.refused.append(name_of(error))
            self.loop.modify(token, IN | ONESHOT)

    def obey_use(self) -> None:
        results: list[str] = []
        wanted = POOL_REQUESTS + 5

        def done(what: str) -> None:
            results.append(what)
            if len(results) == wanted:
                self.say(ok=results.count("ok"), failed=[result for result in results if result != "ok"])

        def receive(stream: Any, error: BaseException | None) -> None:
            if error is not None:
                done(f"nothing from the pool: {name_of(error)}")
            else:
                stream.ask(self.pool, done)

        if self.pool is None:
            self.pool = Pool(self.loop, Client, max_open=2, connect_timeout=CONNECT_SECONDS)
        for _ in range(POOL_REQUESTS):
            self.pool.acquire(self.echo.address, receive)
        self.loop.connect(self.echo.address, lambda: Client(done), timeout=CONNECT_SECONDS)
        self.loop.connect(self.path, lambda: Client(done), timeout=CONNECT_SECONDS)
        self.loop.connect(("localhost", self.echo.address[1]), lambda: Client(done), timeout=CONNECT_SECONDS)
        self.loop.connect(self.tls.address, lambda: Client(done), timeout=CONNECT_SECONDS, ssl=self.client_context,
                          server_hostname="localhost")
        self.loop.connect(self.nobody, lambda: Refused(done), timeout=CONNECT_SECONDS)

    def obey_dial(self, port: str) -> None:
        self.loop.connect(("127.0.0.1", int(port)), lambda: Client(lambda what: self.say(dialled=what)), timeout=1.0)

    def obey_count(self, gone: str = "0") -> None:
        self.loop.call_soon(self.count, gone, 0)        # who ends in this turn is told at its end

    def count(self, gone: str, ticks: int) -> None:
        if self.pool is not None:
            self.pool.close()
            self.pool = None
        stats = self.loop.stats()
        fds, live = self.at_rest[0], self.at_rest[1] - int(gone)
        left = {fd: what for fd, what in open_fds().items() if fd not in fds}
        if ticks < PATIENCE_TICKS and (stats.live != live or stats.timers or len(left) > stats.lost):
            self.loop.call_later(0.005, self.count, gone, ticks + 1)
        else:
            self.say(fds=left, live=stats.live - live, timers=stats.timers, lost=stats.lost,
                     wrong=stats.wrong_deliveries, broken=self.broken, accepted=stats.accepted, batches=stats.batches)

    def obey_end(self) -> None:
        self.loop.stop()


class Refused(Client):
    """Must not be connected."""

    def on_open(self) -> None:
        self.finish("connected to a closed port")

    def on_close(self, error: BaseException | None) -> None:
        self.finish("ok" if isinstance(error, ConnectError) else f"refused with {error!r}")


def main() -> int:
    subject = Subject(Path(sys.argv[1]))
    library = ctypes.CDLL(None) if "LD_PRELOAD" in os.environ else None
    epollkit.Loop().close()                     # what is made once is made
    gc.collect()
    before, counted = open_fds(), alive()
    os.getppid()                                # in the trace: from here on it counts
    if library is not None and "FAULTS" in os.environ:
        name, *numbers = os.environ["FAULTS"].split(":")
        getattr(library, f"faults_{name}")(*map(int, numbers))
    subject.open()
    subject.attempt(subject.loop.run)
    subject.attempt(subject.loop.close)
    fired = library.faults_fired() if library is not None and "FAULTS" in os.environ else 0
    del subject.loop, subject.http, subject.echo, subject.unix, subject.tls
    gc.collect()
    left = {fd: what for fd, what in open_fds().items() if fd not in before}
    counts = {kind: number - counted[kind] for kind, number in alive().items() if number != counted[kind]}
    os.getppid()
    subject.say(fds=left, counts=counts, told=subject.told, refused=subject.refused, problems=subject.problems,
                fired=fired)
    return 0


if __name__ == "__main__":
    sys.exit(main())

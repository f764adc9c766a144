"""Plain blocking clients of the program under test, in another process: no fault meets them but through it.

Each step is a conversation that is known byte by byte. What goes wrong in it is one failure, and the next step begins
with connections of its own. `Subject` is the program itself, with what it is told on a pipe.
"""
from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BIG = bytes(range(256)) * 4096
LINES = BIG[:100_000] + BIG[1:100_001] + BIG[2:100_002]
FILE = BIG[:200_000]
CROWD = 5
RATE = 3_000_000            # bytes per second: a tenth of a second


def make_certificates(folder: Path) -> bool:
    """For every program that is started from here on. False: there is no openssl to make them with."""
    sys.path.append(str(HERE.parent / "support"))
    from certificates import Certificates
    program = shutil.which("openssl")
    if program is not None:
        os.environ["FAULTS_CERTIFICATES"] = str(Certificates(folder, program).directory)
    return program is not None


class Wrong(Exception):
    """What came is not what should have come."""


class TooLate(Exception):
    """The whole run's time is up."""


class Subject:
    """The program, started with a command before it and its output read line by line, until a deadline."""

    def __init__(self, folder: Path, before: Sequence[object] = (), environment: dict[str, str] | None = None,
                 seconds: float = 30.0) -> None:
        self.command = [*map(str, before), sys.executable, str(HERE / "subject.py"), str(folder)]
        self.environment = {**os.environ, "PYTHONHASHSEED": "0", **(environment or {})}
        self.folder = folder
        self.deadline = time.monotonic() + seconds
        self.rest = b""

    def __enter__(self) -> Subject:
        self.errors = open(self.folder / "errors", "wb+")
        self.process = subprocess.Popen(self.command, env=self.environment, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=self.errors, start_new_session=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)         # strace, and whom it traces
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def left(self) -> float:
        """Seconds until the deadline."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise TooLate
        return seconds

    def hear(self) -> dict[str, Any]:
        """What it says next."""
        fd = self.process.stdout.fileno()
        while b"\n" not in self.rest:
            if not select.select([fd], [], [], self.left())[0]:
                raise TooLate
            data = os.read(fd, 65536)
            if not data:
                raise Wrong("it has ended")
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        return json.loads(line)

    def ask(self, *words: object) -> dict[str, Any]:
        self.tell(*words)
        return self.hear()

    def tell(self, *words: object) -> None:
        try:
            os.write(self.process.stdin.fileno(), " ".join(map(str, words)).encode() + b"\n")
        except BrokenPipeError:
            raise Wrong("it has ended") from None

    def end(self) -> dict[str, Any]:
        """What is left when all is closed, and how the process ended."""
        said = self.ask("end")
        try:
            status = self.process.wait(self.left())
        except subprocess.TimeoutExpired:
            raise TooLate from None
        return {**said, "status": status}

    def said(self) -> str:
        """Its standard error."""
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")


class Talk:
    """One connection."""

    def __init__(self, address: Any, patience: float, receive_buffer: int = 0) -> None:
        self.sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.sock.settimeout(patience)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.sock.connect(address if isinstance(address, str) else tuple(address))
        except BaseException:
            self.sock.close()
            raise
        self.rest = b""

    def secure(self) -> Talk:
        context = ssl.create_default_context(cafile=os.path.join(os.environ["FAULTS_CERTIFICATES"], "authority.pem"))
        self.sock = context.wrap_socket(self.sock, server_hostname="localhost", suppress_ragged_eofs=False)
        return self

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *exception: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def end(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def more(self) -> bytes:
        return self.sock.recv(1 << 16)

    def take(self, count: int) -> bytes:
        parts, size = [self.rest], len(self.rest)
        while size < count:
            data = self.more()
            if not data:
                raise Wrong(f"it ended after {size} of {count} bytes")
            parts.append(data)
            size += len(data)
        whole = b"".join(parts)
        self.rest = whole[count:]
        return whole[:count]

    def expect(self, data: bytes) -> None:
        if self.take(len(data)) != data:
            raise Wrong("other bytes than were asked for")

    def expect_end(self) -> None:
        if self.rest or self.more():
            raise Wrong("more than was asked for")

    def expect_answer(self, body: bytes) -> None:
        while b"\r\n\r\n" not in self.rest:
            data = self.more()
            if not data:
                raise Wrong(f"it ended after {len(self.rest)} bytes of a head")
            self.rest += data
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 OK") or b"Content-Length: %d" % len(body) not in head:
            raise Wrong(f"an answer with the head {head[:200]!r}")
        self.expect(body)


def get(path: str = "/") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


def post(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body


class Clients:
    """All of them. `failures` is what went wrong, a line for each conversation."""

    def __init__(self, subject: Subject, patience: float = 8.0) -> None:
        self.subject = subject
        self.where = subject.hear()
        self.patience = patience
        self.failures: list[str] = []
        self.step = ""                          # where it is

    def talk(self, name: str, receive_buffer: int = 0) -> Talk:
        return Talk(self.where[name], min(self.patience, self.subject.left()), receive_buffer)

    def play(self) -> None:
        """Every step; the last one twice, so that something comes after the last fault."""
        for step in (self.crowd, self.keep_alive, self.slow_reader, self.frames, self.raw, self.rated, self.unix,
                     self.tls, self.ends, self.resets, self.used, self.used, self.next_ones, self.next_ones):
            self.try_out(step)

    def try_out(self, step: Callable[..., None], *arguments: Any) -> None:
        self.step = step.__name__
        try:
            step(*arguments)
        except (OSError, Wrong) as error:
            self.subject.left()                 # raises
            self.failures.append(f"{step.__name__}: {type(error).__name__}: {error}")

    def crowd(self) -> None:
        """Clients that wait in the queue together."""
        with contextlib.ExitStack() as stack:
            talks = [stack.enter_context(self.talk("http")) for _ in range(CROWD)]
            for talk in talks:
                self.try_out(self.one_answer, talk)

    def one_answer(self, talk: Talk) -> None:
        talk.send(get())
        talk.expect_answer(b"Hello")

    def keep_alive(self) -> None:
        with self.talk("http") as talk:
            for _ in range(2):
                self.one_answer(talk)
            talk.send(post(BIG[:100_000]))
            talk.expect_answer(BIG[:100_000])
            talk.send(get() * 3)
            for _ in range(3):
                talk.expect_answer(b"Hello")
            talk.send(get())
            talk.end()
            talk.expect_answer(b"Hello")
            talk.expect_end()

    def slow_reader(self) -> None:
        with self.talk("http", 4096) as talk:
            talk.send(get("/big") + get())
            talk.expect_answer(BIG)
            talk.expect_answer(b"Hello")

    def frames(self) -> None:
        with self.talk("echo") as talk:
            talk.send(b"echo 5\nhello")
            talk.expect(b"hello")
            talk.send(b"echo 100000\n")
            talk.send(BIG[:100_000])
            talk.expect(BIG[:100_000])
            talk.send(b"lines\npause\n")
            talk.expect(LINES)
            talk.send(b"file\n")
            talk.expect(FILE)

    def raw(self) -> None:
        with self.talk("echo", 4096) as talk:
            talk.send(b"big\nraw\n")
            talk.expect(BIG)
            talk.send(FILE)
            talk.expect(FILE)
            talk.end()
            talk.expect_end()

    def rated(self) -> None:
        with self.talk("echo") as talk:
            talk.send(b"rate %d\nlines\necho 100000\n" % RATE)
            talk.send(BIG[:100_000])
            talk.expect(LINES)
            talk.expect(BIG[:100_000])

    def tls(self) -> None:
        with self.talk("tls") as talk:
            talk.secure().send(b"echo 5\nhello")
            talk.expect(b"hello")
            talk.send(b"big\nfile\necho 100000\n")
            talk.send(BIG[:100_000])
            for data in (BIG, FILE, BIG[:100_000]):
                talk.expect(data)
            talk.send(b"bye\n")
            talk.expect(b"bye")
            talk.expect_end()

    def unix(self) -> None:
        with self.talk("unix") as talk:
            talk.send(b"big\nfile\necho 5\nhello")
            talk.expect(BIG)
            talk.expect(FILE)
            talk.expect(b"hello")

    def ends(self) -> None:
        """The server's."""
        with self.talk("echo") as talk:
            talk.send(b"bye\n")
            talk.expect(b"bye")
            talk.expect_end()
        with self.talk("echo") as talk:
            talk.send(b"abort\n")
            talk.sock.settimeout(0.5)
            ended = False
            with contextlib.suppress(ConnectionError):
                while not ended:
                    try:
                        talk.expect_end()
                        ended = True
                    except TimeoutError:        # a RST that was lost is sent again for what comes then
                        self.subject.left()
                        talk.send(b"\n")

    def resets(self) -> None:
        """The client's, in the middle of something."""
        for name, data in (("http", get()[:-5]), ("http", get("/big")), ("echo", b"echo 5\nhel"), ("echo", b"big\n")):
            with self.talk(name, 4096) as talk:
                talk.send(data)
                if name == "http" and data.endswith(b"\n"):
                    talk.more()
                talk.reset()

    def used(self) -> None:
        """The program as a client of itself."""
        said = self.subject.ask("use")
        self.failures += [f"used: {failure}" for failure in said["failed"]]

    def next_ones(self) -> None:
        for name, question in (("http", self.one_answer), ("echo", self.one_echo), ("unix", self.one_echo)):
            with self.talk(name) as talk:
                question(talk)

    def one_echo(self, talk: Talk) -> None:
        talk.send(b"echo 5\nhello")
        talk.expect(b"hello")

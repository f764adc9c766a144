"""Programs that run beside a test: an example, a Redis server; and the scripted peer of an example."""
from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batches import PATIENCE_SECONDS

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


class Lines:
    """A pipe's lines, as they come."""

    def __init__(self, fd: int) -> None:
        self.fd, self.rest, self.seen = fd, b"", ""
        self.ended = False

    def next(self, deadline: float) -> str | None:
        """The next one; None: there will be none. TimeoutError: it did not come."""
        while b"\n" not in self.rest and not self.ended:
            poll = select.poll()
            poll.register(self.fd, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
            data = os.read(self.fd, 65536)
            self.rest += data
            self.ended = not data
        line, newline, self.rest = self.rest.partition(b"\n")
        if not line and not newline:
            return None
        self.seen += line.decode() + "\n"
        return line.decode()


def hear_ctrl_c() -> None:
    """A shell has what it starts in the background ignore SIGINT, and pytest may be that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Program:
    """A process whose output is read line by line. At the end of the block it is killed, if it has not ended."""

    def __init__(self, command: Sequence[object], environment: dict[str, str] | None = None, **options: Any) -> None:
        self.command = [str(word) for word in command]
        self.environment = {**os.environ, **(environment or {})}
        self.options = options

    def __enter__(self) -> Program:
        self.process = subprocess.Popen(self.command, env=self.environment, stdin=subprocess.DEVNULL, **{
            "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": hear_ctrl_c, **self.options})
        self.lines = {name: Lines(pipe.fileno()) for name in ("stdout", "stderr")
                      if (pipe := getattr(self.process, name)) is not None}
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        for name in self.lines:
            getattr(self.process, name).close()

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self, pattern: str, source: str = "stdout") -> re.Match[str]:
        """The first line from here on in which the pattern is found."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        try:
            while (line := self.lines[source].next(deadline)) is not None:
                if (match := re.search(pattern, line)) is not None:
                    return match
        except TimeoutError:
            pass
        raise AssertionError(f"no line with {pattern!r}, but {[lines.seen for lines in self.lines.values()]}")

    def take(self, count: int, source: str = "stdout") -> list[str]:
        """So many lines."""
        return [self.line("", source).string for _ in range(count)]

    def end(self, signum: int | None = None) -> tuple[int, str, str]:
        """Exit status, and the rest of both outputs; after a signal, or by itself."""
        if signum is not None:
            self.process.send_signal(signum)
        deadline = time.monotonic() + PATIENCE_SECONDS
        rest = []
        for source in ("stdout", "stderr"):
            found = []
            while source in self.lines and (line := self.lines[source].next(deadline)) is not None:
                found.append(line + "\n")
            rest.append("".join(found))
        return self.process.wait(PATIENCE_SECONDS), rest[0], rest[1]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def example(name: str, *arguments: object, **options: Any) -> Program:
    """An example, as its docstring says that it is run."""
    return Program([sys.executable, EXAMPLES / name, *arguments], **options)


def bulk(*words: str | bytes | int) -> bytes:
    """A Redis command on the wire."""
    texts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(texts) + b"".join(b"$%d\r\n%b\r\n" % (len(text), text) for text in texts)


class RedisServer:
    """A real one, on a unix socket and on a port that stays its own when it is started again; nothing on disk."""

    def __init__(self, program: str, folder: Path, *arguments: object) -> None:
        self.path = folder / "redis.sock"
        self.reserved = socket.socket()         # bound, never listening: nobody else is given this port
        self.reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.reserved.bind(("127.0.0.1", 0))
        self.port: int = self.reserved.getsockname()[1]
        self.command = [program, "--bind", "127.0.0.1", "--port", self.port, "--unixsocket", self.path, "--dir", folder,
                        "--save", "", "--appendonly", "no", "--rdbcompression", "no", "--enable-debug-command", "yes",
                        "--repl-diskless-sync-delay", 0, *arguments]

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()
        self.reserved.close()

    @property
    def addresses(self) -> dict[str, str]:
        return {"tcp": f"127.0.0.1:{self.port}", "unix": str(self.path)}

    def start(self) -> None:
        self.program = Program(self.command).__enter__()
        try:
            self.program.line("[Rr]eady to accept connections on unix|ready to accept connections at /")
        except BaseException:
            self.program.__exit__()
            raise

    def kill(self) -> None:
        self.program.__exit__()

    def ask(self, *words: str | bytes | int) -> Any:
        """A command's reply: str, int, bytes, list or None; an error is one."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE_SECONDS)
            client.connect(str(self.path))
            client.sendall(bulk(*words))
            with client.makefile("rb") as replies:
                return self.reply(replies)

    def reply(self, replies: Any) -> Any:
        line: bytes = replies.readline()
        kind, rest = line[:1], line[1:-2]
        assert kind != b"-", rest
        if kind == b"+":
            return rest.decode()
        if kind == b"$":
            return replies.read(int(rest) + 2)[:-2] if rest != b"-1" else None
        return int(rest) if kind == b":" else [self.reply(replies) for _ in range(int(rest))]

    def info(self, name: str) -> str:
        """A field of INFO replication."""
        match = re.search(rf"^{name}:(.*)\r$", self.ask("INFO", "replication").decode(), re.MULTILINE)
        return match[1] if match else ""


class Scripted:
    """A server that says what a test wants it to say, on a blocking socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.settimeout(PATIENCE_SECONDS)
        self.listening.bind(str(path))
        self.listening.listen(10)
        self.client: socket.socket | None = None

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *exception: object) -> None:
        self.hang_up()
        self.listening.close()

    def accept(self) -> None:
        self.hang_up()
        self.client, _ = self.listening.accept()
        self.client.settimeout(PATIENCE_SECONDS)

    def hang_up(self) -> None:
        if self.client is not None:
            self.client.close()
        self.client = None

    def say(self, data: bytes) -> None:
        assert self.client is not None
        self.client.sendall(data)

    def hear(self, *words: str | bytes | int) -> None:
        """The next command is that one."""
        assert self.client is not None
        expected = bulk(*words)
        found = b""
        while len(found) < len(expected):
            data = self.client.recv(len(expected) - len(found))
            assert data, f"it hung up after {found!r}"
            found += data
        assert found == expected


"""Who is measured: one class per server. Each is a fresh process on the server's core, and is ended by its pid.

They all answer 200 with the same 13 bytes and a Content-Length; nginx and epollkit add a Date. All listen with the same
backlog, have TCP_NODELAY, and write no log.
"""
from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
BODY = b"Hello, World!"
BACKLOG = 2048
FD_LIMIT = 20_000           # per process: 15,000 idle connections, the busy ones, and some
START_SECONDS = 20          # a server that does not listen by then is not going to
STOP_ATTEMPTS = 8           # SIGTERM once a second, then SIGKILL
PORT_ATTEMPTS = 5           # for nginx, which can't be given port 0
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
CLOSE_REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


class BenchError(Exception):
    """Something that keeps the benchmark from running, in one sentence for the user."""


def find_program(name: str) -> str | None:
    """A program's path; daemons may be where a user's PATH does not look."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """What is started in here is pinned to this core."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def start_process(command: Sequence[str], core: int | None = None, **options: object) -> subprocess.Popen:
    """Start one pinned process, in a session of its own: Ctrl-C reaches the benchmark, which ends everything."""
    with on_core(core):
        return subprocess.Popen(command, start_new_session=True, **options)


def end_process(process: subprocess.Popen) -> None:
    """Ask it to go; make it go. Its pipes are closed.

    One SIGTERM may not do: nginx looks for it before it waits, and sleeps through one that comes just between.
    """
    for _ in range(STOP_ATTEMPTS):
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
            break
    else:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class Workshop:
    """A temporary directory with the compiled floors in it, and the two cores. A context manager."""

    def __init__(self, cores: tuple[int | None, int | None] = (None, None)) -> None:
        self.server_core, self.load_core = cores
        self.built: dict[str, Path] = {}
        self.made: tuple[Path, Path] | None = None

    def __enter__(self) -> Workshop:
        self.directory = tempfile.TemporaryDirectory(prefix="epollkit-bench-")
        self.path = Path(self.directory.name)
        return self

    def __exit__(self, *_: object) -> None:
        self.directory.cleanup()

    def program(self, source: str) -> Path:
        """The compiled form of a C source of ours."""
        if source not in self.built:
            target = self.path / Path(source).stem
            command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(target), str(HERE / source)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BenchError(f"{source} does not compile: {done.stderr.strip()}")
            self.built[source] = target
        return self.built[source]

    def certificate(self) -> tuple[Path, Path]:
        """A certificate of our own for this host, and its key."""
        if self.made is None:
            certificate, key = self.path / "certificate.pem", self.path / "key.pem"
            command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                       "-days", "2", "-subj", "/CN=localhost", "-addext", f"subjectAltName=IP:{HOST}",
                       "-out", str(certificate), "-keyout", str(key)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BenchError(f"openssl made no certificate: {done.stderr.strip()[-200:]}")
            self.made = certificate, key
        return self.made


class Server:
    """A server that prints its port as the first word of its first line. A context manager: started, checked, ended.

    Args:
        workshop: where and on which core.
        closing: the load is one request per connection.
        deferred: the listener hands over a connection when its request is there (TCP_DEFER_ACCEPT).
        under: the start of a command that runs another, here as the only process of the server.
    """

    name = ""
    title = ""
    defers = True       # whether it has deferred accept
    stdin = subprocess.DEVNULL
    errors = 0          # of what it did itself, told when it has ended

    def __init__(self, workshop: Workshop, *, closing: bool = False, deferred: bool = False,
                 under: Sequence[str] = ()) -> None:
        self.workshop = workshop
        self.closing = closing
        self.deferred = deferred
        self.under = under
        self.port = 0
        self.answer_bytes = 0
        self.announced: list[str] = []

    @classmethod
    def missing(cls) -> str | None:
        """Why it can't take part, or None."""
        return None

    @property
    def core(self) -> int | None:
        """Where it runs."""
        return self.workshop.server_core

    def command(self) -> list[str]:
        """What is executed."""
        raise NotImplementedError

    def __enter__(self) -> Server:
        self.log = (self.workshop.path / f"{self.name}.log").open("w+b")
        try:
            self.start()
            self.check_answer()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and learn its port."""
        self.process = start_process([*self.under, *self.command()], self.core, stdin=self.stdin,
                                     stdout=subprocess.PIPE, stderr=self.log)
        self.announced = self.process.stdout.readline().decode().split()
        if not self.announced:
            raise self.failure("ended before it listened")
        self.port = int(self.announced[0])

    def stop(self) -> None:
        """End the process, if there is one."""
        process, self.process = getattr(self, "process", None), None
        if process is not None:
            end_process(process)
        self.log.close()

    def failure(self, what: str) -> BenchError:
        """An error that quotes the server's last words."""
        self.log.seek(0)
        words = self.log.read().decode(errors="replace").strip().splitlines()
        return BenchError(f"{self.title} {what}{': ' + words[-1] if words else ''}")

    def check_answer(self) -> None:
        """One request: so that what is made at the first one is there, and to see that it is the same everywhere."""
        answer, closed = b"", False
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), START_SECONDS) as sock:
            sock.sendall(CLOSE_REQUEST if self.closing else REQUEST)
            while not answer.endswith(BODY):
                piece = sock.recv(4096)
                if not piece:
                    break
                answer += piece
            closed = self.closing and not sock.recv(1)
        if not (answer.startswith(b"HTTP/1.1 200 ") and b"\r\ncontent-length: 13\r\n" in answer.lower()):
            raise self.failure(f"answered {answer[:60]!r}")
        if self.closing and not closed:
            raise self.failure("keeps a connection that it was told to close")
        self.answer_bytes = len(answer)

    def pids(self) -> list[int]:
        """All processes of this server."""
        return [self.process.pid]


class Floor(Server):
    """The C floor: epoll, recv, blank line, send. One request per connection with deferred accept has its own."""

    name = "floor"
    title = "C floor"

    @classmethod
    def missing(cls) -> str | None:
        return None if shutil.which("cc") else "no C compiler (Debian: apt-get install gcc)"

    def command(self) -> list[str]:
        if self.deferred:
            return [str(self.workshop.program("floor_deferred.c"))]
        return [str(self.workshop.program("floor.c")), "close" if self.closing else "keep"]


class Epollkit(Server):
    """epollkit with a handler in Python."""

    name = "epollkit"
    title = "epollkit"

    @classmethod
    def missing(cls) -> str | None:
        return None if importlib.util.find_spec("epollkit") else "epollkit is not installed (pip install -e .)"

    def command(self) -> list[str]:
        return [sys.executable, str(HERE / "epollkit_app.py"), *(["--defer-accept"] if self.deferred else [])]

    @property
    def build(self) -> str:
        """Which build answered: release, or debug."""
        return self.announced[1]


class Uvloop(Server):
    """uvloop + httptools, a minimal protocol."""

    name = "uvloop"
    title = "uvloop + httptools"
    defers = False

    @classmethod
    def missing(cls) -> str | None:
        absent = [name for name in ("uvloop", "httptools") if importlib.util.find_spec(name) is None]
        return f"no {' and no '.join(absent)} (pip install -e .[bench])" if absent else None

    def command(self) -> list[str]:
        return [sys.executable, str(HERE / "uvloop_app.py")]


NGINX_CONF = """
daemon off;
master_process {master};
{user}
worker_processes 1;
worker_rlimit_nofile {fds};
pid {path}/nginx.pid;
error_log stderr error;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    server_tokens off;
    default_type text/plain;
    keepalive_requests 1000000000;
    keepalive_timeout 3600;
    client_body_temp_path {path}/nginx-body;
    proxy_temp_path {path}/nginx-proxy;
    fastcgi_temp_path {path}/nginx-fastcgi;
    uwsgi_temp_path {path}/nginx-uwsgi;
    scgi_temp_path {path}/nginx-scgi;
    server {{
        listen {host}:{port} backlog={backlog}{deferred};
        location / {{ return 200 "{body}"; }}
    }}
    {more}
}}
"""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server((HOST, 0)) as sock:
        return sock.getsockname()[1]


class Nginx(Server):
    """nginx with one worker and `return 200`; its master is counted too. Under something it has none."""

    name = "nginx"
    title = "nginx"
    more_servers = ""       # of its configuration

    @classmethod
    def missing(cls) -> str | None:
        return None if find_program("nginx") else "nginx is not installed (Debian: apt-get install nginx-light)"

    def command(self) -> list[str]:
        path = self.workshop.path
        config = path / "nginx.conf"
        config.write_text(NGINX_CONF.format(
            master="off" if self.under else "on", user="user root;" if os.geteuid() == 0 else "", path=path,
            fds=FD_LIMIT, connections=FD_LIMIT - 1000, host=HOST, port=self.port, backlog=BACKLOG,
            deferred=" deferred" if self.deferred else "", body=BODY.decode(),
            more=self.more_servers.format(path=path)))
        return [find_program("nginx") or "nginx", "-e", "stderr", "-p", str(path), "-c", str(config)]

    def start(self) -> None:
        for attempt in range(PORT_ATTEMPTS):
            self.port = free_port()     # somebody may take it before nginx does
            self.process = start_process([*self.under, *self.command()], self.core, stdin=self.stdin,
                                         stdout=subprocess.DEVNULL, stderr=self.log)
            if self.listens():
                return
            if attempt + 1 < PORT_ATTEMPTS:
                end_process(self.process)
        raise self.failure("does not listen")

    def listens(self) -> bool:
        """Wait until it does, or has ended."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection((HOST, self.port), START_SECONDS).close()
            except ConnectionRefusedError:
                time.sleep(0.005)
            else:
                return bool(self.under or self.workers())
        return False

    def workers(self) -> list[int]:
        """The master's children."""
        pid = self.process.pid
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def pids(self) -> list[int]:
        return [self.process.pid, *self.workers()]


SERVERS: dict[str, type[Server]] = {kind.name: kind for kind in (Epollkit, Floor, Nginx, Uvloop)}


def missing_servers() -> dict[str, str]:
    """Which servers can't take part, and why."""
    found = {name: kind.missing() for name, kind in SERVERS.items()}
    return {name: reason for name, reason in found.items() if reason is not None}

"""The server under test: `epollkit serve` in a process of its own, or whatever --url names."""
from __future__ import annotations

import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import urllib.parse
from pathlib import Path
from types import TracebackType

import psutil

from stress.children import START_SECONDS, StressFailed
from stress.options import Options
from stress.watch import Watch, listening_pid

KEEP_ALIVE_SECONDS = 3600
END_SECONDS = 10.0
BOOT = """\
import sys
sys.path[:] = {path!r}
from stress.children import die_with_parent
die_with_parent()
from epollkit.cli import main
sys.exit(main({arguments!r}))
"""


class Server:
    """Use it as a context manager. `address`, `host`, `path` say where it is; `watch` looks at it, if it may.

    Args:
        fd_limit: descriptors that ours may have; 0: as many as we. Another's are its own business.
    """

    def __init__(self, options: Options, fd_limit: int = 0) -> None:
        self.options = options
        self.fd_limit = fd_limit
        self.process: subprocess.Popen[bytes] | None = None
        self.watch: Watch | None = None
        self.path = "/"

    def __enter__(self) -> Server:
        self.complaints = tempfile.TemporaryFile()
        try:
            if self.options.url is None:
                self.start()
            else:
                self.find(self.options.url)
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.end()

    def start(self) -> None:
        """Ours, with deadlines that fit the time there is."""
        deadline = str(self.options.deadline)
        arguments = ["serve", "--port", "0", "--app-dir", str(Path(__file__).parent.parent), "stress.target:app",
                     "--timeout-header", deadline, "--timeout-body", deadline, "--timeout-write", deadline,
                     "--timeout-keep-alive", str(KEEP_ALIVE_SECONDS)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", BOOT.format(path=sys.path, arguments=arguments)], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=self.complaints, start_new_session=True)     # Ctrl-C is ours alone
        assert self.process.stdout is not None
        line = self.process.stdout.readline() if self.says_something() else b""
        where = re.match(rb"epollkit serves on http://([\d.]+):(\d+) ", line)
        if where is None:
            raise StressFailed(f"the server did not start: {line.decode(errors='replace')}{self.complaint()}")
        self.at(where[1].decode(), int(where[2]))
        self.watch = Watch(self.process.pid)
        if self.fd_limit:
            resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (self.fd_limit, self.fd_limit))

    def says_something(self) -> bool:
        assert self.process is not None and self.process.stdout is not None
        return bool(select.select([self.process.stdout], [], [], START_SECONDS)[0])

    def find(self, url: str) -> None:
        """Another's."""
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname, parts.port or 80
        except ValueError:
            host = None
        if host is None or parts.scheme != "http":
            raise StressFailed(f"a server's URL is http://HOST:PORT/PATH, not {url!r}")
        self.at(host, port)
        self.path = parts.path or "/"
        pid = listening_pid(port) if self.options.pid is None else self.options.pid
        try:
            self.watch = None if pid is None else Watch(pid)
        except (psutil.NoSuchProcess, ValueError, OverflowError):
            raise StressFailed(f"there is no process {pid} to watch") from None

    def at(self, host: str, port: int) -> None:
        self.address = (host, port)
        self.host = f"{host}:{port}"

    def target(self, query: str) -> str:
        """What to ask for; the query is in the answer of a server that says what it was asked."""
        return f"{self.path}?{query}"

    def gone(self) -> str:
        """How it ended; empty while it is there."""
        if self.process is not None and self.process.poll() is not None:
            status = self.process.returncode
            how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            return f"the server is gone: {how} {self.complaint()}".rstrip()
        if self.process is None and self.watch is not None and self.watch.sample() is None:
            return "the server is gone"
        return ""

    def complaint(self) -> str:
        """The last line that ours wrote to stderr."""
        size = self.complaints.seek(0, os.SEEK_END)
        self.complaints.seek(max(0, size - 4096))
        said = self.complaints.read().decode(errors="replace").strip().splitlines()
        return said[-1].strip() if said else ""

    def end(self) -> None:
        """Ours is told to; one that does not hear is killed."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
        self.complaints.close()

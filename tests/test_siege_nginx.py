"""The load engine's count against nginx's own, which has to be the same: its access log, a line for each request, and
what stub_status says."""
from __future__ import annotations

import re
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from siege_servers import ask, besiege
from wire import PATIENCE_SECONDS

CONFIG = """
daemon off;
user root;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/errors info;
events {{ worker_connections 512; }}
http {{
    log_format short "$status $bytes_sent $request_length $connection $connection_requests";
    access_log {folder}/access short;
    keepalive_requests {keepalive_requests};
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ return 200 "thirteen bytes"; }}
        location /missing {{ return 404; }}
        location /broken {{ return 500 "no"; }}
        location /nothing {{ return 204; }}
        location /status {{ stub_status; access_log off; }}
    }}
}}
"""
PATHS = ["/", "/missing", "/", "/broken", "/nothing"]


class Nginx:
    """One of its own, on a socket that it inherits: so the kernel chooses the port."""

    def __init__(self, program: str, folder: Path, keepalive_requests: int) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0), backlog=511) as listening:
            self.address = listening.getsockname()
            config = folder / "nginx.conf"
            config.write_text(CONFIG.format(folder=folder, port=self.address[1],
                                            keepalive_requests=keepalive_requests))
            self.process = subprocess.Popen(
                [program, "-p", str(folder), "-c", str(config), "-e", str(folder / "errors")],
                env={"NGINX": f"{listening.fileno()};"}, pass_fds=[listening.fileno()],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.status()       # it answers

    def status(self) -> tuple[int, int, int]:
        """accepts, handled, requests; without the connection, and the request, that asks for it."""
        with socket.create_connection(self.address, PATIENCE_SECONDS) as client:
            client.settimeout(PATIENCE_SECONDS)
            client.sendall(b"GET /status HTTP/1.0\r\n\r\n")
            said = b""
            while data := client.recv(4096):
                said += data
        accepts, handled, requests = map(int, re.search(rb"\n (\d+) (\d+) (\d+) \n", said).groups())
        return accepts, handled, requests

    def stop(self) -> list[list[str]]:
        """Its access log, once everything is written: it ends when all connections have."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            self.process.send_signal(3)         # SIGQUIT; one that comes just before it waits is slept through
            try:
                self.process.wait(1)
            except subprocess.TimeoutExpired:
                continue
        self.kill()
        return [line.split() for line in (self.folder / "access").read_text().splitlines()]

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def nginx(peer, tmp_path):
    """A function that starts one."""
    program = peer("nginx")
    made = []

    def start(keepalive_requests=1000):
        made.append(Nginx(program, tmp_path, keepalive_requests))
        return made[-1]

    yield start
    for server in made:
        server.kill()


def agree(server: Nginx, tally: dict[str, Any], before: tuple[int, int, int]) -> list[list[str]]:
    """Both say the same; returns the access log."""
    accepts, handled, requests = server.status()
    log = server.stop()
    assert requests - before[2] - 1 == len(log) == tally["answered"] == tally["begun"], tally
    assert accepts - before[0] - 1 == handled - before[1] - 1 == tally["connections"]
    assert Counter(line[0] for line in log) == tally["statuses"]
    assert sum(int(line[1]) for line in log) == tally["bytes_received"]
    assert (tally["unanswered"], tally["connect_failures"], tally["reconnects"]) == (0, 0, 0)
    assert [error for error in tally["errors"] if error[0] != "expect"] == []
    return log


def test_keep_alive(nginx, bench):
    server = nginx()
    before = server.status()
    tally = besiege(bench, [ask(server.address, path) for path in PATHS], users=10, repetitions=500)
    log = agree(server, tally, before)
    assert tally["statuses"] == {"200": 2000, "404": 1000, "500": 1000, "204": 1000}
    assert (tally["successful"], tally["unexpected"]) == (3000, 2000)
    assert sum(int(line[2]) for line in log) == tally["bytes_sent"]
    assert tally["connections"] == 10


@pytest.mark.parametrize("pipeline", [1, 16])
def test_connections_that_end_in_mid_run(nginx, bench, pipeline):
    """After 100 requests nginx ends a connection, with `Connection: close` in the last answer. What was pipelined
    behind it is asked again, and counts once."""
    server = nginx(keepalive_requests=100)
    before = server.status()
    tally = besiege(bench, [ask(server.address, path) for path in PATHS], users=5, repetitions=1000,
                    pipeline=pipeline)
    log = agree(server, tally, before)
    assert tally["statuses"] == {"200": 2000, "404": 1000, "500": 1000, "204": 1000}
    assert Counter(Counter(line[3] for line in log).values())[100] >= 46
    assert tally["connections"] >= 50
    assert (tally["resent"] > 0) == (pipeline > 1)


def test_pipelined(nginx, bench):
    server = nginx(keepalive_requests=100_000)
    before = server.status()
    tally = besiege(bench, [ask(server.address, path) for path in PATHS], users=4, number=20_000, pipeline=16)
    agree(server, tally, before)
    assert (tally["connections"], tally["resent"]) == (4, 0)


@pytest.mark.parametrize("close", ["fin", "rst"])
def test_one_request_per_connection(nginx, bench, close):
    server = nginx()
    before = server.status()
    tally = besiege(bench, [ask(server.address, path, headers=b"Connection: close\r\n") for path in PATHS], users=10,
                    number=1000, keep_alive=False, close=close)
    agree(server, tally, before)
    assert tally["connections"] == 1000


def test_at_a_rate(nginx, bench):
    server = nginx()
    before = server.status()
    tally = besiege(bench, [ask(server.address, path) for path in PATHS], users=10, number=1000, rate=2000)
    agree(server, tally, before)
    assert tally["planned"] == 1000


def test_head(nginx, bench):
    server = nginx()
    before = server.status()
    tally = besiege(bench, [ask(server.address, "/", method="HEAD")], users=3, number=300, pipeline=3)
    agree(server, tally, before)
    assert tally["body_bytes"] == 0

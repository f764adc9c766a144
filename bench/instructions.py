"""Instructions per request in user space: what decides about user time when the clock can't.

A server runs under callgrind and is asked a fixed number of times, by a client of our own, because wrk stops by the
clock. The client asks again as soon as it is answered, as wrk does, and the server is slow here: so it always finds
full batches. The difference of a short and a long run has neither start nor end in it.
"""
from __future__ import annotations

import math
import select
import socket
from dataclasses import dataclass

from . import callgrind, servers
from .generators import Generator, GeneratorLoad
from .load import Load
from .modes import Mode
from .stream_load import ConnectLoad
from .stream_servers import KINDS

REQUESTS = (1_000, 11_000)      # about: a short and a long run
LENGTHS = (1, 3)                # the same for a generator, in its own measure
PATIENCE_SECONDS = 60           # without any answer


@dataclass(frozen=True)
class Instructions:
    """Of one server under one load, one figure for each run."""

    mode: str
    server: str
    requests: int
    per_request: list[float]

    @property
    def least(self) -> float:
        """What disturbs only adds."""
        return min(self.per_request)


@dataclass
class Client:
    """One connection: the bytes it waits for, and how often it will ask."""

    sock: socket.socket
    missing: int
    rounds: int


def rounds_for(load: Load, requests: int) -> int:
    """How often each connection asks, so that it is at least so many requests in all."""
    return math.ceil(requests / (load.connections * load.pipeline))


def ask(port: int, load: Load, rounds: int, answer_bytes: int) -> None:
    """Each connection asks so many times for `load.pipeline` answers of this size; if `load.closing`, on a new one."""
    request = load.request(port)
    expected = answer_bytes * load.pipeline
    clients: dict[int, Client] = {}

    def connect(left: int) -> None:
        sock = load.connect(port, PATIENCE_SECONDS)
        clients[sock.fileno()] = Client(sock, expected, left)
        sock.sendall(request)
        poll.register(sock, select.EPOLLIN)

    def read(client: Client) -> None:
        got = len(client.sock.recv(65536))
        client.missing -= got
        if client.missing < 0 or (not got and (client.missing or not load.closing)):
            raise servers.BenchError(f"answers on port {port} are not of {answer_bytes} bytes")
        if client.missing or (load.closing and got):        # more to come, or the end of the connection
            return
        if client.rounds > 1 and not load.closing:
            client.missing, client.rounds = expected, client.rounds - 1
            client.sock.sendall(request)
            return
        del clients[client.sock.fileno()]
        client.sock.close()
        if client.rounds > 1:
            connect(client.rounds - 1)

    with select.epoll() as poll:
        try:
            for _ in range(load.connections):
                connect(rounds)
            while clients:
                ready = poll.poll(PATIENCE_SECONDS)
                if not ready:
                    raise servers.BenchError(f"no answer on port {port} for {PATIENCE_SECONDS} s")
                for fd, _ in ready:
                    read(clients[fd])
        except OSError as error:
            raise servers.BenchError(f"asking port {port}: {error}") from error
        finally:
            for client in clients.values():
                client.sock.close()


def count_once(server: str, mode: Mode, workshop: servers.Workshop, rounds: int) -> int:
    """Instructions of a fresh server, from its start to its end."""
    output = workshop.path / f"callgrind.{server}"
    output.unlink(missing_ok=True)
    kind = KINDS[mode.load.work][server]
    with mode.load.server(kind, workshop, deferred=mode.deferred, under=callgrind.prefix(output)) as running:
        if isinstance(mode.load, ConnectLoad):
            mode.load.run_times(running, rounds * mode.load.connections, workshop)
        else:
            with servers.on_core(workshop.load_core):
                ask(running.port, mode.load, rounds, running.answer_bytes)
    return callgrind.read_total(output)


def count_generator(name: str, load: GeneratorLoad, workshop: servers.Workshop, length: int) -> tuple[int, int]:
    """Of a generator that asks for about so long and ends by itself: its instructions and its requests."""
    output = workshop.path / f"callgrind.{name}"
    output.unlink(missing_ok=True)
    generator: Generator = load.server(KINDS[load.work][name], workshop, under=callgrind.prefix(output))
    requests = generator.run_to_its_end(length)
    return callgrind.read_total(output), requests


def measure_generator(name: str, mode: Mode, workshop: servers.Workshop, runs: int) -> Instructions:
    """Count short and long runs. wrk stops by the clock, so each run says how many requests it has made."""
    per_request = []
    for _ in range(runs):
        (short, few), (long, many) = (count_generator(name, mode.load, workshop, length) for length in LENGTHS)
        per_request.append((long - short) / (many - few))
    return Instructions(mode.name, name, many - few, per_request)


def measure_instructions(server: str, mode: Mode, workshop: servers.Workshop, runs: int,
                         requests: tuple[int, int] = REQUESTS) -> Instructions:
    """Count short and long runs."""
    if isinstance(mode.load, GeneratorLoad):
        return measure_generator(server, mode, workshop, runs)
    short, long = (rounds_for(mode.load, each) for each in requests)
    asked = (long - short) * mode.load.connections * mode.load.pipeline
    return Instructions(mode.name, server, asked, [
        (count_once(server, mode, workshop, long) - count_once(server, mode, workshop, short)) / asked
        for _ in range(runs)])


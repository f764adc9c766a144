"""Starts the processes, plays one round per server, and leaves nothing behind, however it ends."""
from __future__ import annotations

import os
import resource
import selectors
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from epollkit.demo.children import Child, DemoFailed, interrupts_wait
from epollkit.demo.report import SERVERS, Column
from epollkit.demo.view import View

CLIENTS = 2                         # processes of the crowd
CONNECTIONS = 520                   # that stay, per client process: two of them are above a thousand
SPARE_FDS = 200                     # newcomers, pipes, libraries
FDS_NEEDED = CLIENTS * CONNECTIONS + SPARE_FDS
FDS_WANTED = 20000
SHOW_SECONDS = 0.2
START_SECONDS = 60.0                # for a process to start, or the crowd to gather, on a busy machine
END_SECONDS = 30.0                  # beyond the round's own time: the crowd drains for 5


class Round(NamedTuple):
    """One server, and a crowd of its own."""

    column: Column
    server: Child
    clients: list[Child]

    @property
    def children(self) -> list[Child]:
        return [self.server, *self.clients]

    def update(self) -> None:
        self.column.take_server(self.server.last)
        self.column.take_crowd([client.last for client in self.clients])


def raise_fd_limit() -> None:
    """Every connection needs a descriptor in the server. DemoFailed: this process may not have that many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FDS_WANTED if hard == resource.RLIM_INFINITY else min(hard, FDS_WANTED)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    if soft != resource.RLIM_INFINITY and soft < FDS_NEEDED:
        raise DemoFailed(f"a process may open {soft} files here, and the server needs {FDS_NEEDED} for its "
                         "connections, so raise the hard limit (ulimit -Hn)")


def cores() -> tuple[list[int], list[int]]:
    """The server's core and the crowd's; both empty, meaning anywhere, where there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[:1], allowed[1:]) if len(allowed) > 1 else ([], [])


class Runner:
    """Plays the rounds. `play` fills the columns it was given."""

    def __init__(self, columns: dict[str, Column], seconds: float, seed: int, view: View) -> None:
        self.columns = columns
        self.round_seconds = seconds / len(columns)
        self.seed = seed
        self.view = view
        self.children: list[Child] = []
        self.selector = selectors.DefaultSelector()

    def play(self) -> None:
        """All rounds, one after the other. DemoFailed, in one sentence: a process died, or did not come to its end."""
        raise_fd_limit()
        next(iter(self.columns.values())).state = "starting"
        with self.everything_ends():
            rounds = [self.start(column) for column in self.columns.values()]
            # All processes first: what it costs to start one is not to fall into another's round.
            self.wait_for(rounds[0], "start", lambda: all("rss_bytes" in child.last for child in self.children),
                          START_SECONDS)
            for one in rounds:
                self.play_round(one)

    @contextmanager
    def everything_ends(self) -> Iterator[None]:
        """Whatever happens inside, no process, pipe or selector is left."""
        try:
            yield
        finally:
            with interrupts_wait():
                for child in self.children:
                    child.end()
                self.selector.close()

    def start(self, column: Column) -> Round:
        """Start the processes of one round; they wait for commands."""
        server_cores, client_cores = cores()
        name = SERVERS[column.name]
        server = self.spawn(f"{name} server", "servers", kind=column.name, ports=1 + CLIENTS, cores=server_cores)
        clients = [self.spawn(f"crowd's process {client + 1} for {name}", "crowd", seed=self.seed, client=client,
                              connections=CONNECTIONS, cores=client_cores) for client in range(CLIENTS)]
        return Round(column, server, clients)

    def spawn(self, name: str, module: str, **config: object) -> Child:
        with interrupts_wait():         # it is either not started, or known to be
            child = Child(name, module, config)
            self.children.append(child)
        self.selector.register(child.stdout, selectors.EVENT_READ, child.read_reports)
        self.selector.register(child.stderr, selectors.EVENT_READ, child.read_complaints)
        return child

    def play_round(self, one: Round) -> None:
        """Gather the crowd, let it loose, wait for its end, then stop the server."""
        column, clients = one.column, one.clients
        column.state = "filling"
        for client in clients:
            client.send(command="gather", ports=one.server.last["ports"])
        self.wait_for(one, "gather its crowd", lambda: all(client.last.get("full") for client in clients),
                      START_SECONDS)
        column.state = "running"
        one.server.send(command="begin")
        for client in clients:
            client.send(command="begin", seconds=self.round_seconds)
        self.view.begin()
        self.wait_for(one, "end", lambda: all(client.last.get("ending") for client in clients),
                      self.round_seconds + END_SECONDS)
        column.state = "ending"
        one.server.send(command="freeze")
        self.wait_for(one, "end", lambda: all(client.last.get("final") for client in clients), END_SECONDS)
        one.server.send(command="stop")
        self.wait_for(one, "end", lambda: bool(one.server.last.get("final")), END_SECONDS)
        column.state = "done"
        self.view.show(column, changed=True)

    def wait_for(self, one: Round, what: str, reached: Callable[[], bool], limit_seconds: float) -> None:
        """Read reports and show them until it is reached."""
        deadline = time.monotonic() + limit_seconds
        show_due = 0.0
        while not reached():
            now = time.monotonic()
            if now >= deadline:
                name = SERVERS[one.column.name]
                raise DemoFailed(f"the round of {name} did not {what} within {limit_seconds:.0f} seconds")
            if now >= show_due:
                show_due = now + SHOW_SECONDS
                self.view.show(one.column)
            for key, _ in self.selector.select(SHOW_SECONDS):
                if not key.data():
                    self.selector.unregister(key.fileobj)
            one.update()

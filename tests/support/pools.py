"""Pools in tests: servers that do what the test says, and what was received from a pool."""
from __future__ import annotations

import socket
from typing import Any

from batches import Stage, send, settle, turn_until, wait_ready

import epollkit
from epollkit import Pool, Stream


class Upstream(Stream):
    """Notes its upcalls."""

    def __init__(self) -> None:
        self.upcalls: list[tuple[str, Any]] = []

    def on_open(self):
        self.upcalls.append(("open", None))

    def on_data(self, data):
        self.upcalls.append(("data", data))

    def on_error(self, error):
        self.upcalls.append(("error", error))

    def on_close(self, error):
        self.upcalls.append(("close", error))


class Server:
    """A listening socket. It answers nothing by itself. kind: "tcp" or "unix"."""

    def __init__(self, stage: Stage, kind: str = "tcp", backlog: int = 1024) -> None:
        self.stage = stage
        if kind == "tcp":
            self.socket = stage.listening()
            self.socket.listen(backlog)
            self.address: Any = self.socket.getsockname()
        else:
            self.socket = stage.own(socket.socket(socket.AF_UNIX))
            self.socket.bind("")                            # an abstract name of the kernel's choice
            self.socket.listen(100)
            self.socket.setblocking(False)
            self.address = "\0" + self.socket.getsockname()[1:].decode()

    def accept(self) -> socket.socket:
        wait_ready(self.socket)
        accepted = self.stage.own(self.socket.accept()[0])
        accepted.setblocking(False)
        return accepted


class Asked:
    """A request, and what came of it; `then` is called with the stream that it receives."""

    def __init__(self, kit: PoolKit, address: Any, then: Any = None) -> None:
        self.kit, self.then = kit, then
        self.received: list[tuple[Any, Any]] = []
        self.inside = True
        self.request = kit.pool.acquire(address, self.receive)
        self.inside = False

    def receive(self, stream: Any, error: Any) -> None:
        assert not self.inside, "from inside acquire"
        assert (stream is None) != (error is None)
        self.received.append((stream, error))
        self.kit.order.append(self)
        if self.then is not None:
            self.then(stream)

    @property
    def stream(self) -> Any:
        (found,) = self.received
        assert found[1] is None, found
        return found[0]

    @property
    def error(self) -> Any:
        (found,) = self.received
        assert found[0] is None, found
        return found[1]

    @property
    def state(self) -> str:
        return self.request.state


class PoolKit:
    """A pool, and servers to have connections to. At the end of the test nothing is left of them."""

    def __init__(self, loop: epollkit.Loop, stage: Stage, factory: Any = Upstream, **options: Any) -> None:
        self.loop, self.stage = loop, stage
        self.made: list[Any] = []
        self.order: list[Asked] = []

        def make() -> Any:
            self.made.append(factory())
            return self.made[-1]

        self.pool = Pool(loop, make, **options)
        self.server = Server(stage)
        stage.callback(self.end)

    def end(self) -> None:
        if self.loop.closed:
            return
        self.pool.close()
        for stream in self.made:
            if isinstance(stream, epollkit.Stream) and not stream.is_closing:
                stream.abort()
        settle(self.loop)
        self.check()
        assert self.pool.stats()[:4] == (0, 0, 0, 0)
        assert not self.pool._destinations and not self.pool._requests

    def ask(self, address: Any = None, then: Any = None) -> Asked:
        return Asked(self, self.server.address if address is None else address, then)

    def get(self, address: Any = None) -> Any:
        """A connection, which must come by itself."""
        asked = self.ask(address)
        turn_until(self.loop, lambda: asked.received)
        self.check()
        return asked.stream

    def get_both(self) -> tuple[Any, socket.socket]:
        """A new connection, and its server's end."""
        return self.get(), self.server.accept()

    def release(self, stream: Any) -> None:
        self.pool.release(stream)
        self.check()

    def settle(self) -> None:
        settle(self.loop)
        self.check()

    def state(self, stream: Any) -> str:
        """As the pool sees it; "closed" also for one that it has forgotten."""
        member = self.pool._members.get(id(stream))
        return member.state if member is not None else "closed"

    def answer(self, far: socket.socket, stream: Any, data: bytes = b"an answer") -> None:
        send(far, stream, data)
        self.settle()

    @property
    def stats(self) -> Any:
        return self.pool.stats()

    def check(self) -> None:
        """What always holds between two calls."""
        pool = self.pool
        members = list(pool._members.values())
        states = [member.state for member in members]
        assert len(members) == pool._open <= pool._max_open
        assert states.count("out") == pool._out
        assert states.count("closing") == pool._closing
        assert states.count("idle") == len(pool._idle) <= pool._max_idle
        assert "closed" not in states
        assert len(pool._queue) <= pool._max_waiting + pool._max_open       # who had one that died may wait again
        waiting = []
        for address, destination in pool._destinations.items():
            mine = [member for member in members if member.destination is destination]
            assert destination.address == address
            assert destination.members == len(mine)
            assert destination.connects == [member.state for member in mine].count("connecting")
            assert list(destination.idle) == [member for member in pool._idle if member.destination is destination]
            assert len(destination.promised) <= destination.connects
            assert not destination.queue or len(destination.promised) == destination.connects
            assert not (destination.idle and (destination.queue or destination.promised))
            assert mine or destination.queue or destination.promised
            assert all(request.state == "waiting" for request in destination.queue)
            assert all(request.state == "connecting" for request in destination.promised)
            waiting += destination.queue
        assert {member.destination for member in members} <= set(pool._destinations.values())
        assert set(waiting) == set(pool._queue)
        assert not pool._queue or pool._open == pool._max_open, "a place is free, and somebody waits"
        assert not pool._queue or not pool._idle or pool._closing
        undecided = {"waiting", "connecting", "due"}
        assert all(request.state in undecided for request in pool._requests)
        assert all((member.request is not None) == (member.state == "due") for member in members)

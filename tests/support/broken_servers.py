"""A small HTTP server that does what it should, and switches that break it on purpose, one thing at a time.

`python broken_servers.py '["leaks_fds"]' 0.3` prints its port and serves until its stdin ends; 0.3 is its deadline for
heads, bodies and writes. With no switch it is as right as it is slow: the scenarios of stress/ hold on it.
"""
from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable

SWITCHES = {
    "leaks_fds": "one connection in ten is never closed",
    "leaks_memory": "32 KiB of each request stay",
    "leaks_threads": "one connection in a hundred leaves a thread behind",
    "mixes_up": "one answer in fifty says what another asked",
    "dies_on_reset": "a reset that it meets is its end",
    "drops_half_closed": "FIN is taken for the peer's end",
    "no_deadlines": "waits for slow clients for ever",
    "waits_for_bodies": "reads a body to its end before it does anything else",
    "answers_into_memory": "executes whatever has come, whether or not the answers are read",
    "loses_pipelined": "of what came in one piece, it answers a hundred requests",
    "dies_without_descriptors": "may have 40 descriptors, and when none is left it ends",
    "fat": "an idle connection costs 64 KiB",
    "ends_the_idle": "an idle connection is ended by the deadline, too",
    "spins": "once a hundred connections have come it never waits again",
}
BIG = bytes(1 << 20)
READ_BYTES = 65536
ENOUGH_BYTES = 65536        # unsent: no further request is executed


class Connection:
    """A client's."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.input = b""
        self.output: list[memoryview] = []
        self.unsent = 0
        self.has_ended = self.closed = False
        self.waits = True               # for a head, a body or a reader: the deadline counts
        self.since = time.monotonic()
        self.fat = b""


class Server:
    """One thread, level-triggered."""

    def __init__(self, switches: list[str], deadline_seconds: float) -> None:
        self.broken = set(switches)
        self.deadline_seconds = deadline_seconds
        self.selector = selectors.DefaultSelector()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.connections: set[Connection] = set()
        self.accepted = self.asked = 0
        self.kept: list[object] = []            # what is leaked
        self.last_target = b""
        if "dies_without_descriptors" in self.broken:
            resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    def run(self) -> None:
        print(self.listener.getsockname()[1], flush=True)
        self.selector.register(0, selectors.EVENT_READ, lambda _: sys.exit(0))
        while True:
            spins = "spins" in self.broken and self.accepted >= 100
            for key, mask in self.selector.select(0 if spins else 0.02):
                key.data(mask) if callable(key.data) else self.serve(key.data, mask)
            self.end_the_slow()

    def accept(self, _mask: int) -> None:
        while True:
            try:
                sock, _address = self.listener.accept()
            except BlockingIOError:
                return
            except OSError:
                if "dies_without_descriptors" in self.broken:
                    raise
                return
            sock.setblocking(False)
            connection = Connection(sock)
            self.connections.add(connection)
            self.selector.register(sock, selectors.EVENT_READ, connection)
            self.accepted += 1
            if "leaks_threads" in self.broken and self.accepted % 100 == 0:
                threading.Thread(target=threading.Event().wait, daemon=True).start()
            if "fat" in self.broken:
                connection.fat = b"x" * (64 << 10)

    def serve(self, connection: Connection, mask: int) -> None:
        try:
            if mask & selectors.EVENT_READ:
                self.read(connection)
            if not connection.closed:
                self.work(connection)
        except OSError:
            if "dies_on_reset" in self.broken:
                raise
            self.close(connection)

    def read(self, connection: Connection) -> None:
        if "drops_half_closed" in self.broken:
            poll = select.poll()
            poll.register(connection.sock, select.POLLRDHUP)
            if poll.poll(0):
                self.close(connection)
                return
        data = connection.sock.recv(READ_BYTES)
        connection.has_ended = not data
        if not connection.input or b"\r\n\r\n" in connection.input:
            connection.since = time.monotonic()     # a head begins, or a body goes on; a head's lines move no deadline
        connection.input += data

    def work(self, connection: Connection) -> None:
        """Execute and send as far as it goes."""
        budget = 100
        while not connection.closed:
            executed = 0
            while self.may_execute(connection) and (request := self.next_request(connection)) is not None:
                budget -= 1
                executed += 1
                if budget >= 0 or "loses_pipelined" not in self.broken:
                    self.execute(connection, *request)
            self.flush(connection)
            if not executed or connection.output:
                break
        if not connection.closed:
            self.rest(connection)

    def may_execute(self, connection: Connection) -> bool:
        return connection.unsent < ENOUGH_BYTES or "answers_into_memory" in self.broken

    def next_request(self, connection: Connection) -> tuple[bytes, bytes, int] | None:
        """Method, target and the body's length; None: it is not whole."""
        head_end = connection.input.find(b"\r\n\r\n")
        if head_end < 0:
            return None
        head = connection.input[:head_end]
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        end = head_end + 4 + length
        while "waits_for_bodies" in self.broken and len(connection.input) < end:
            connection.sock.setblocking(True)
            data = connection.sock.recv(READ_BYTES)
            if not data:
                raise ConnectionError
            connection.input += data
        if len(connection.input) < end:
            return None
        method, target, _ = head.split(b" ", 2)
        connection.input = connection.input[end:]
        connection.since = time.monotonic()
        return method, target, length

    def execute(self, connection: Connection, method: bytes, target: bytes, length: int) -> None:
        self.asked += 1
        if "leaks_memory" in self.broken:
            self.kept.append(b"x" * (32 << 10))
        if "mixes_up" in self.broken and self.asked % 50 == 0:
            target = self.last_target
        self.last_target = target
        body = BIG if target.startswith(b"/big") else b"%s %s %d\n" % (method, target, length)
        if "answers_into_memory" in self.broken:
            body = body[:-1] + b"\n"            # a copy
        for piece in (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body):
            connection.output.append(memoryview(piece))
            connection.unsent += len(piece)

    def flush(self, connection: Connection) -> None:
        while connection.output:
            try:
                sent = connection.sock.send(connection.output[0])
            except BlockingIOError:
                return
            connection.unsent -= sent
            connection.since = time.monotonic()
            connection.output[0] = connection.output[0][sent:]
            if not connection.output[0]:
                del connection.output[0]

    def rest(self, connection: Connection) -> None:
        """Until there is more to do."""
        if connection.has_ended and not connection.output:
            self.close(connection)
            return
        connection.waits = bool(connection.input or connection.output)
        wanted = 0 if connection.has_ended or not self.may_execute(connection) else selectors.EVENT_READ
        if connection.output:
            wanted |= selectors.EVENT_WRITE
        self.selector.modify(connection.sock, wanted, connection)

    def end_the_slow(self) -> None:
        if "no_deadlines" in self.broken:
            return
        old = time.monotonic() - self.deadline_seconds
        for connection in list(self.connections):
            if (connection.waits or "ends_the_idle" in self.broken) and connection.since < old:
                self.close(connection)

    def close(self, connection: Connection) -> None:
        if connection.closed:
            return
        connection.closed = True
        self.connections.discard(connection)
        self.selector.unregister(connection.sock)
        if "leaks_fds" in self.broken and self.accepted % 10 == 0:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
            self.kept.append(connection.sock)
        else:
            connection.sock.close()


def main(run: Callable[[Server], None] = Server.run) -> None:
    os.set_blocking(0, False)
    run(Server(json.loads(sys.argv[1]), float(sys.argv[2])))


if __name__ == "__main__":
    main()

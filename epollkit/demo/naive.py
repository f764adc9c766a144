"""The twin: a server on select.epoll as it is usually written, with everything done right but two things.

An event's identity is its fd, because select.epoll can't carry anything else. And RDHUP, HUP and ERR are looked at
first, and close the connection: the classic advice. Everything else is as it should be: edge-triggered, drained until
EAGAIN, a level-triggered listener with a budget, pipelining, keep-alive, back-pressure, a check for unknown fds.
"""
from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Callable

ACCEPT_BUDGET = 64                  # per listener and batch, like epollkit's
BATCH = 512                         # events taken at once, like epollkit's
RECEIVE_BYTES = 65536
HEAD_LIMIT_BYTES = 8192
OUTPUT_LIMIT_BYTES = 1 << 20
READ_PAUSE_BYTES = 65536            # no further request is executed while so much waits for a peer that does not read
GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
WATCHED = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
RESET_ON_CLOSE = struct.pack("ii", 1, 0)    # SO_LINGER: on, 0 seconds


class NaiveConnection:
    """One connection of the naive server."""

    __slots__ = ("batch", "fd", "input", "is_closing", "output", "server", "sock")

    def __init__(self, server: NaiveServer, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.fd = sock.fileno()
        self.batch = server.batch       # the witness: no event of this batch can be meant for this connection
        self.input = b""
        self.output = b""
        self.is_closing = False

    def fileno(self) -> int:
        return self.fd

    def on_events(self, events: int) -> None:
        """The classic order: gone? closed. Then write, then read."""
        if events & GONE:
            self.close()
            return
        if events & select.EPOLLOUT and self.output:
            self.flush()
        if events & (select.EPOLLIN | select.EPOLLOUT) and not self.is_closing:
            self.read()

    def read(self) -> None:
        while not self.is_closing and len(self.output) < READ_PAUSE_BYTES:
            try:
                data = self.sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            self.input += data
            self.serve_input()

    def serve_input(self) -> None:
        """Answer every whole request of the input, and send the answers in one go."""
        answers = []
        start = 0
        while not self.is_closing:
            end = self.input.find(b"\r\n\r\n", start)
            if end < 0:
                break
            words = self.input[start:end].split(b"\r\n", 1)[0].split(b" ")
            if len(words) != 3 or words[0] != b"GET" or words[2] != b"HTTP/1.1":
                self.close()
                return
            body = self.server.answer(words[1].decode("ascii", "replace"), self)
            answers.append(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            start = end + 4
        self.input = self.input[start:]
        if len(self.input) > HEAD_LIMIT_BYTES:
            self.close()
        elif answers and not self.is_closing:
            self.output += b"".join(answers)
            self.flush()

    def flush(self) -> None:
        try:
            while self.output:
                self.output = self.output[self.sock.send(self.output):]
        except BlockingIOError:
            if len(self.output) > OUTPUT_LIMIT_BYTES:
                self.abort()
        except OSError:
            self.close()

    def abort(self) -> None:
        """Close with a reset."""
        if not self.is_closing:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.close()

    def close(self) -> None:
        """Closing the only descriptor takes it out of the epoll set. It does not take its events out of the batch."""
        if not self.is_closing:
            self.is_closing = True
            del self.server.connections[self.fd]
            self.sock.close()


class NaiveServer:
    """A select.epoll server keyed by fd, with a witness that counts what reaches the wrong connection.

    Args:
        answer: called with a request's target and its connection; returns the body.
        admit: called with the peer's address; a false answer resets the connection.
    """

    def __init__(self, answer: Callable[[str, NaiveConnection], bytes], admit: Callable[[object], bool]) -> None:
        self.answer = answer
        self.admit = admit
        self.epoll = select.epoll()
        self.connections: dict[int, NaiveConnection] = {}
        self.listeners: dict[int, socket.socket] = {}
        self.watched: dict[int, Callable[[], None]] = {}    # other descriptors: the runner's commands
        self.stopping = False
        self.batch = 0
        self.accepted = self.events = self.stale_events = self.wrong_deliveries = self.wrong_kills = 0

    def listen(self, address: tuple[str, int], backlog: int = 2048) -> int:
        """Listen on one more address; returns the port."""
        listener = socket.socket()
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
        listener.listen(backlog)
        self.listeners[listener.fileno()] = listener
        self.epoll.register(listener.fileno(), select.EPOLLIN)
        return int(listener.getsockname()[1])

    def watch(self, fd: int, function: Callable[[], None]) -> None:
        """Call a function whenever this fd is readable."""
        self.watched[fd] = function
        self.epoll.register(fd, select.EPOLLIN)

    def run(self, tick: Callable[[], None], tick_seconds: float) -> None:
        """Serve until `stop()`. tick is called every tick_seconds."""
        due = time.monotonic() + tick_seconds
        while not self.stopping:
            self.turn(max(0.0, due - time.monotonic()))
            if time.monotonic() >= due:
                due = time.monotonic() + tick_seconds
                tick()

    def stop(self) -> None:
        """Leave `run()` after this batch."""
        self.stopping = True

    def turn(self, timeout_seconds: float) -> None:
        """One batch."""
        events = self.epoll.poll(timeout_seconds, BATCH)
        self.batch += 1
        self.events += len(events)
        for fd, mask in events:
            if fd in self.listeners:
                self.accept(self.listeners[fd])
            elif fd in self.watched:
                self.watched[fd]()
            else:
                self.deliver(fd, mask)

    def deliver(self, fd: int, mask: int) -> None:
        """Find the connection by its fd, as everybody does; the rest is the witness."""
        connection = self.connections.get(fd)
        if connection is None:
            self.stale_events += 1      # closed earlier in this batch, and nobody has the number yet
            return
        astray = connection.batch == self.batch
        connection.on_events(mask)
        if astray:
            self.stale_events += 1
            self.wrong_deliveries += 1
            self.wrong_kills += connection.is_closing

    def accept(self, listener: socket.socket) -> None:
        """Accept until the queue is empty or the budget is spent."""
        for _ in range(ACCEPT_BUDGET):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    time.sleep(0.001)       # the listener is level-triggered: without a rest this would spin
                    return
                continue
            self.accepted += 1
            sock.setblocking(False)
            connection = NaiveConnection(self, sock)
            self.connections[connection.fd] = connection
            if self.admit(address):
                self.epoll.register(connection.fd, WATCHED)
            else:
                connection.abort()

    def close(self) -> None:
        """Close everything."""
        for connection in list(self.connections.values()):
            connection.close()
        for listener in self.listeners.values():
            listener.close()
        self.epoll.close()

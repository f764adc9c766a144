"""The two servers of the scenario siege_crash: the same work, divided among the same threads.

One thread waits on epoll and accepts, two workers answer, each connection is armed for one event at a time
(EPOLLONESHOT), and a reaper in a thread of its own ends connections that are older than a few milliseconds. So a
connection may be ended while an event of it waits for a worker, or while a worker is about to arm it again.

`Naive` knows a connection by its descriptor, in every thread, as such servers are usually written. `Tokens` knows it by
epollkit's token: only the loop's thread touches descriptors; workers and reaper post what they want, with the token,
and a token whose connection has ended is refused.

The witness is the same in both: every connection has a number, which the server does not use. Whoever is about to touch
a descriptor says which number it means; if that is not the one to which the descriptor belongs now, it is an accident.
"""
from __future__ import annotations

import itertools
import os
import queue
import select
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

from epollkit import IN, ONESHOT, Loop, StaleToken, Token
from stress.children import Message, obey, send

WORKERS = 2
LIFE_SECONDS = 0.005            # the reaper ends who is older
REAP_SECONDS = 0.002
ACCEPT_BUDGET = 64
RECEIVE_BYTES = 65536
SWITCH_SECONDS = 1e-4           # threads of C have no interpreter's lock that lets each of them go on for 5 ms
ACCIDENTS = ("double closes", "closed another's connection", "events on a reused descriptor",
             "armed another's connection")


class Witness:
    """Whose descriptor is it?"""

    def __init__(self) -> None:
        self.numbers = itertools.count(1)
        self.owners: dict[int, int] = {}        # descriptor -> number of its connection
        self.counts: Counter[str] = Counter(dict.fromkeys((*ACCIDENTS, "accepted", "answers", "reaped", "refused"), 0))

    def born(self, fd: int) -> int:
        number = next(self.numbers)
        self.owners[fd] = number
        self.counts["accepted"] += 1
        return number

    def touches(self, fd: int, number: int, accident: str) -> bool:
        """Whether there is anything to touch; an accident if it is not what was meant."""
        owner = self.owners.get(fd)
        self.counts[accident] += owner is not None and owner != number
        return owner is not None

    def closes(self, fd: int, number: int) -> bool:
        """The same, for its end."""
        owner = self.owners.pop(fd, None)
        self.counts["double closes"] += owner is None
        self.counts["closed another's connection"] += owner is not None and owner != number
        return owner is not None


def answers(data: bytes) -> bytes:
    """To all requests that these bytes are; a head comes in one piece here, or is given up."""
    found = []
    for head in data.split(b"\r\n\r\n")[:-1]:
        body = head.split(b" ", 2)[1] if head.count(b" ") > 1 else b"?"
        found.append(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    return b"".join(found)


def listener() -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    made.bind(("127.0.0.1", 0))
    made.listen(2048)
    return made


class Naive:
    """Everything by descriptor."""

    ARMED = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT

    def __init__(self) -> None:
        self.witness = Witness()
        self.epoll = select.epoll()
        self.listener = listener()
        self.epoll.register(self.listener.fileno(), select.EPOLLIN)
        self.born: dict[int, float] = {}        # descriptor -> when it was accepted
        self.work: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        self.stopping = False

    def run(self) -> None:
        """Until stdin ends or says something."""
        threads = [threading.Thread(target=target, daemon=True)
                   for target in (self.wait, self.reap, *[self.serve] * WORKERS)]
        for thread in threads:
            thread.start()
        os.read(0, 1)
        self.stopping = True

    def wait(self) -> None:
        """The epoll thread."""
        while not self.stopping:
            batch = [(fd, mask, self.witness.owners.get(fd, 0)) for fd, mask in self.epoll.poll(0.05)]
            for fd, mask, number in batch:
                if fd == self.listener.fileno():
                    self.accept()
                elif mask & (select.EPOLLHUP | select.EPOLLERR):
                    self.close(fd, number)
                else:
                    self.work.put((fd, number))

    def accept(self) -> None:
        for _ in range(ACCEPT_BUDGET):
            try:
                sock, _address = self.listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            fd = sock.detach()
            self.witness.born(fd)
            self.born[fd] = time.monotonic()
            self.epoll.register(fd, self.ARMED)

    def serve(self) -> None:
        """A worker."""
        while True:
            fd, number = self.work.get()
            try:
                if not self.witness.touches(fd, number, "events on a reused descriptor"):
                    continue
                data = os.read(fd, RECEIVE_BYTES)
                if not data:
                    self.close(fd, number)
                    continue
                os.write(fd, answers(data))
                self.witness.counts["answers"] += 1
                if self.witness.touches(fd, number, "armed another's connection"):
                    self.epoll.modify(fd, self.ARMED)
            except BlockingIOError:
                pass                            # it was another's event: nothing is there
            except OSError:
                self.close(fd, number)

    def reap(self) -> None:
        """From elsewhere: shutdown(), and the end."""
        while not self.stopping:
            time.sleep(REAP_SECONDS)
            old = time.monotonic() - LIFE_SECONDS
            found = [(fd, self.witness.owners.get(fd, 0)) for fd, born in list(self.born.items()) if born < old]
            for fd, number in found:
                self.witness.counts["reaped"] += 1
                try:
                    with socket.socket(fileno=os.dup(fd)) as copy:
                        copy.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass                        # not connected any more, or closed meanwhile
                self.close(fd, number)

    def close(self, fd: int, number: int) -> None:
        """What would be closed twice is not: the number may be something of this process's own by now."""
        if self.witness.closes(fd, number):
            self.born.pop(fd, None)
            os.close(fd)


class Tokens:
    """The same on epollkit's raw API."""

    ARMED = IN | ONESHOT

    def __init__(self) -> None:
        self.witness = Witness()
        self.loop = Loop()
        self.listener = listener()
        self.connections: dict[Token, tuple[socket.socket, int]] = {}
        self.work: queue.SimpleQueue[tuple[Token, bytes]] = queue.SimpleQueue()
        self.young: deque[tuple[float, Token]] = deque()
        self.stopping = False

    def run(self) -> None:
        """Until stdin ends or says something."""
        with self.loop:
            self.loop.register(self.listener, IN, self.accept)
            obey(self.loop, {"end": lambda _: self.loop.stop()})
            for target in (self.reap, *[self.serve] * WORKERS):
                threading.Thread(target=target, daemon=True).start()
            self.loop.run()
            self.stopping = True

    # -- the loop's thread

    def accept(self, token: Token, events: int) -> None:
        for _ in range(ACCEPT_BUDGET):
            try:
                sock, _address = self.listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            number = self.witness.born(sock.fileno())
            made = self.loop.register(sock, self.ARMED, self.on_event)
            self.connections[made] = sock, number
            self.young.append((time.monotonic(), made))
        self.loop.call_soon(self.accept, token, events)

    def on_event(self, token: Token, events: int) -> None:
        sock, number = self.connections[token]
        self.witness.touches(sock.fileno(), number, "events on a reused descriptor")
        try:
            data = sock.recv(RECEIVE_BYTES)
        except OSError:
            data = b""
        if data:
            self.work.put((token, data))
        else:
            self.end(token)

    def answer(self, token: Token, data: bytes) -> None:
        """A worker wants it to be sent, and the connection armed again."""
        try:
            self.loop.modify(token, self.ARMED)
        except StaleToken:
            self.witness.counts["refused"] += 1
            return
        sock, number = self.connections[token]
        self.witness.touches(sock.fileno(), number, "armed another's connection")
        try:
            sock.send(data)
            self.witness.counts["answers"] += 1
        except OSError:
            self.end(token)

    def end(self, token: Token) -> None:
        try:
            self.loop.unregister(token)
        except StaleToken:
            self.witness.counts["refused"] += 1
            return
        sock, number = self.connections.pop(token)
        self.witness.closes(sock.fileno(), number)
        sock.close()

    # -- other threads: nothing but posts

    def serve(self) -> None:
        """A worker."""
        while True:
            token, data = self.work.get()
            self.post(self.answer, token, answers(data))

    def reap(self) -> None:
        while not self.stopping:
            time.sleep(REAP_SECONDS)
            old = time.monotonic() - LIFE_SECONDS
            while self.young and self.young[0][0] < old:
                self.witness.counts["reaped"] += 1
                self.post(self.end, self.young.popleft()[1])

    def post(self, function: Callable[..., object], *arguments: object) -> None:
        if not self.stopping:
            self.loop.call_soon_threadsafe(function, *arguments)


def main(config: Message) -> None:
    """As a child. config: `kind`, "naive" or "tokens"."""
    sys.setswitchinterval(SWITCH_SECONDS)
    server = Naive() if config["kind"] == "naive" else Tokens()
    send({"port": server.listener.getsockname()[1]})
    server.run()
    send({"counts": dict(server.witness.counts), "final": True})
    sys.stdout.flush()
    os._exit(0)         # its threads are in the middle of something

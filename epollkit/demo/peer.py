"""One connection of the crowd: a raw registration on epollkit's loop, and the accounting of what it asked and got."""
from __future__ import annotations

import enum
import errno
import random
import socket
import struct
from typing import TYPE_CHECKING

from epollkit import ERR, HUP, IN, OUT, RDHUP

if TYPE_CHECKING:
    from epollkit.demo.crowd import Crowd

RECEIVE_BYTES = 65536
RESET_ON_CLOSE = struct.pack("ii", 1, 0)    # SO_LINGER: on, 0 seconds
BIND_ADDRESS_NO_PORT = 24                   # IP_BIND_ADDRESS_NO_PORT (ip(7), Linux 4.2); Python 3.10 has no name for it
READABLE = IN | RDHUP | HUP | ERR
GONE = RDHUP | HUP | ERR


class Kind(enum.Enum):
    """What a connection is for; decides what happens when it is connected, has all its answers, or ends."""

    RESIDENT = "asks once, then stays and is used again and again"
    CHURN = "asks once and leaves"
    RESET = "asks, and resets with the request in flight"
    HALF_CLOSE = "asks, shuts down its side, and reads to the end"
    BANNED = "comes from a refused address, and is expected to die"


class Peer:
    """One connection. `sock` is None once it has ended, whoever ended it."""

    __slots__ = ("active", "answered", "asked", "condemned", "connected", "crowd", "ended", "farewell", "first",
                 "input", "kind", "named", "nonce", "server_fd", "sock", "token")

    def __init__(self, crowd: Crowd, kind: Kind, nonce: str, first: int) -> None:
        self.crowd = crowd
        self.kind = kind
        self.nonce = nonce
        self.first = first          # requests to send as soon as it is connected
        self.sock: socket.socket | None = None
        self.connected = False
        self.asked = 0
        self.answered = 0
        self.input = b""
        self.server_fd = -1         # its descriptor in the server, as the last answer said
        self.active = False         # an action of the crowd waits for it
        self.named = False          # an order names it, and the order's answer has not come
        self.condemned = False      # the server said that it closed it, by order
        self.farewell = False       # this side has said that nothing more will come: the server may close
        self.ended = False          # by the server

    def open(self, source: str, address: tuple[str, int]) -> int:
        """Start to connect. Returns 0 or an errno."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.IPPROTO_IP, BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
            result = sock.connect_ex(address)
            if result not in (0, errno.EINPROGRESS):
                sock.close()
                return result
            self.token = self.crowd.loop.register(sock, IN | OUT, self.on_event)
        except BaseException:
            sock.close()
            raise
        self.sock = sock
        return 0

    # -- what the loop calls -------------------------------------------------------------------------------------------

    def on_event(self, token: object, events: int) -> None:
        """The whole mask of one edge."""
        if not self.connected and events & (OUT | ERR | HUP):
            self.connected = True
            self.crowd.on_connected(self)
        if events & READABLE and self.sock is not None:
            self.read(events)

    def read(self, events: int) -> None:
        """Read until there is nothing left. Whatever came before an error or the end still counts."""
        while self.sock is not None:
            try:
                data = self.sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.end()
                return
            self.take(data)
            if len(data) < RECEIVE_BYTES and not events & GONE:
                return              # TCP: a short read has drained it, and whatever follows is a new edge

    def take(self, data: bytes) -> None:
        """Split the input into answers: the heads are the demo servers' own, so no more is parsed than they vary in."""
        data = self.input + data
        start = 0
        while True:
            end = data.find(b"\r\n\r\n", start)
            if end < 0:
                break
            status = data[start + 9:start + 12]
            after = end + 4
            if status == b"102":
                self.crowd.on_holding(self)
            else:
                at = data.find(b"Content-Length: ", start, end) + 16
                after += int(data[at:data.find(b"\r", at)])
                if after > len(data):
                    break
                self.crowd.on_answer(self, status, data[end + 4:after])
            start = after
        self.input = data[start:]

    # -- what the crowd does with it -----------------------------------------------------------------------------------

    def ask(self, path: str = "/echo", count: int = 1, more: str = "") -> None:
        """Send so many requests in one piece."""
        if self.sock is None:
            return
        turn = self.asked
        self.asked += count
        data = "".join(f"GET {path}?nonce={self.nonce}&turn={turn + number}{more} HTTP/1.1\r\nHost: demo\r\n\r\n"
                       for number in range(count)).encode()
        try:
            sent = self.sock.send(data)
        except OSError:
            return              # it has ended; reading says so, after the answers that came before
        if sent != len(data):
            raise RuntimeError("a socket's buffer took less than one burst of requests")

    def finish_asking(self) -> None:
        """Half-close: no request follows, answers are still read."""
        self.farewell = True
        if self.sock is not None:
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass            # ENOTCONN: it has ended

    def end(self) -> None:
        """The server ended it."""
        self.ended = True
        self.leave(reset=False)
        self.crowd.on_end(self)

    def leave(self, reset: bool) -> None:
        """This side ends it. Nothing is told to anybody."""
        if self.sock is None:
            return
        self.crowd.loop.unregister(self.token)
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.sock.close()
        self.sock = None


class Pool:
    """Connections that are idle: constant-time add, discard, and a random pick."""

    def __init__(self) -> None:
        self.members: list[Peer] = []
        self.places: dict[Peer, int] = {}

    def __len__(self) -> int:
        return len(self.members)

    def add(self, peer: Peer) -> None:
        if peer not in self.places:
            self.places[peer] = len(self.members)
            self.members.append(peer)

    def discard(self, peer: Peer) -> None:
        place = self.places.pop(peer, None)
        if place is not None:
            last = self.members.pop()
            if last is not peer:
                self.members[place] = last
                self.places[last] = place

    def take_random(self, random_source: random.Random) -> Peer:
        """A random member, which is no longer one. IndexError when there is none."""
        peer = random_source.choice(self.members)
        self.discard(peer)
        return peer

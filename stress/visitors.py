"""How the crowd's visitors behave: a class each, all of them streams.

A visitor does its thing in `begin`, hears `answered_all` when it has what it asked for, and ends with `leave`. If the
server ends it, `ended` says whether that was right. `farewell` tells it that the time is up.
"""
from __future__ import annotations

import contextlib
import os
from collections import deque
from typing import TYPE_CHECKING

from epollkit import EpollkitError, Stream
from stress.answers import Answer, Answers

if TYPE_CHECKING:
    from stress.crowd import Crowd

STUCK_BYTES = 64 << 20      # a server can't have given so much to the kernel
MOST_STUCK = 1000           # requests
SLOW_RATE = 2 << 20         # bytes a second
FLOOD = 1000                # requests in one piece
NETWORK_SECONDS = 0.5       # without a byte: a customer gives it up
PACE_SECONDS = 0.1          # of those who are slow, where no deadline is known


class Visitor(Stream):
    """A member of the crowd. Asks once and leaves, unless its class says otherwise."""

    write_limit = 16 << 20

    def __init__(self, crowd: Crowd, name: str) -> None:
        self.crowd = crowd
        self.name = name
        self.is_connected = False
        self.has_left = False               # what the server does to it no longer matters
        self.answers = Answers()
        self.owed: deque[bytes] = deque()   # what each answer that is to come must have in it
        self.asked = 0
        self.number = crowd.born

    # -- upcalls

    def on_open(self) -> None:
        self.is_connected = True
        self.count("connected")
        self.crowd.connected()
        if self.name in self.crowd.wanted:
            self.begin()
        else:
            self.leave(reset=True)      # it came too late

    def on_data(self, data: bytes) -> None:
        try:
            found = self.answers.feed(data)
        except ValueError:
            self.count("wrong")
            self.leave(reset=True)
            return
        for answer in found:
            if not self.has_left:
                self.take(answer)

    def on_eof(self) -> None:
        last = self.answers.end()
        if last is not None and not self.has_left:
            self.take(last)
        self.close()

    def on_close(self, error: BaseException | None) -> None:
        if not self.is_connected:
            if not self.has_left:
                self.count("not_connected")
        elif not self.has_left:
            self.ended()
        self.crowd.over(self)

    # -- what it does

    def begin(self) -> None:
        self.ask()

    def answered_all(self) -> None:
        """FIN leaves a port in TIME_WAIT behind, so it is the rarer one."""
        self.leave(reset=self.crowd.random.random() < 0.75)

    def ended(self) -> None:
        """The server ended it."""
        self.count("cut" if self.owed else "ended")

    def farewell(self) -> None:
        """The time is up: whoever is owed nothing leaves."""
        if self.is_connected and not self.owed:
            self.leave(reset=True)

    # -- means

    def count(self, what: str, number: int = 1) -> None:
        self.crowd.counts[self.name][what] += number

    def request(self, method: str = "GET", body_bytes: int = 0, big: bool = False) -> bytes:
        """One more request, whose answer is owed from now on."""
        nonce = f"nonce={self.number}-{self.asked}."
        self.asked += 1
        target = f"{self.crowd.big if big else self.crowd.path}?{nonce}"
        self.owed.append(nonce.encode() if self.crowd.echoes and not big else b"")
        length = f"Content-Length: {body_bytes}\r\n" if body_bytes else ""
        return f"{method} {target} HTTP/1.1\r\nHost: {self.crowd.host}\r\n{length}\r\n".encode()

    def say(self, data: bytes) -> None:
        """Unless the server has ended it."""
        if not self.is_closing:
            self.write(data)

    def ask(self, count: int = 1) -> None:
        self.say(b"".join([self.request() for _ in range(count)]))

    def take(self, answer: Answer) -> None:
        """Is it the one that is next?"""
        expected = self.owed.popleft() if self.owed else None
        if expected is None or answer.status >= 400 or expected not in answer.body:
            self.count("wrong")
            self.leave(reset=True)
            return
        self.count("answered")
        if not self.owed:
            self.answered_all()

    def leave(self, reset: bool = False) -> None:
        """This side ends it."""
        self.has_left = True
        if reset:
            self.abort()
        else:
            self.close()

    def vanish(self) -> None:
        """The socket is closed with whatever is in it, without a last read."""
        self.has_left = True
        with contextlib.suppress(EpollkitError):        # it broke meanwhile
            os.close(self.detach().fd)


class Churn(Visitor):
    """Connects, asks once, leaves."""


class HalfClose(Visitor):
    """Asks one to four times, shuts down its side, and reads to the end."""

    def begin(self) -> None:
        self.ask(self.crowd.random.randint(1, 4))
        self.shutdown_write()

    def answered_all(self) -> None:
        pass        # the server's end is to come

    def farewell(self) -> None:
        pass


class Doomed(Visitor):
    """Is slow on purpose: a deadline of the server's must end it."""

    def begin(self) -> None:
        self.annoy()
        self.doom()

    def annoy(self) -> None:
        raise NotImplementedError

    def doom(self) -> None:
        """Whoever lives longer than the deadline and the crowd's patience has outlived it."""
        if self.crowd.deadline is not None:
            self.call_later(self.crowd.deadline + self.crowd.patience, self.outlive)

    def outlive(self) -> None:
        self.count("outlived")
        self.leave(reset=True)

    def take(self, answer: Answer) -> None:
        """408 and its like; nobody asked for an answer."""
        if answer.status < 400:
            self.count("wrong")
            self.leave(reset=True)

    def ended(self) -> None:
        self.count("ended")

    def farewell(self) -> None:
        """Where a deadline is known, it is waited for."""
        if self.is_connected and self.crowd.deadline is None:
            self.leave(reset=True)

    @property
    def pace_seconds(self) -> float:
        return PACE_SECONDS if self.crowd.deadline is None else self.crowd.deadline / 10


class Silent(Doomed):
    """Connects and never says a word."""

    def annoy(self) -> None:
        pass


class Abandon(Visitor):
    """Connects and vanishes: without a word, or with its request in flight, which nobody will read the answer of."""

    def begin(self) -> None:
        if self.crowd.random.randrange(2):
            self.say(self.request())
        self.call_soon(self.vanish)


class Slowloris(Doomed):
    """Sends a head that never ends, a line at a time."""

    def annoy(self) -> None:
        self.say(f"GET {self.crowd.path} HTTP/1.1\r\nHost: {self.crowd.host}\r\n".encode())
        self.call_later(self.pace_seconds, self.go_on)

    def go_on(self) -> None:
        self.say(b"X-%d: y\r\n" % self.asked)
        self.asked += 1
        self.call_later(self.pace_seconds, self.go_on)


class SlowBody(Visitor):
    """Announces twenty bytes and sends them one by one, with pauses below the deadline. Must be answered."""

    left = 20

    def begin(self) -> None:
        self.say(self.request("POST", self.left))
        self.go_on()

    def go_on(self) -> None:
        self.say(b"x")
        self.left -= 1
        if self.left:
            pace_seconds = PACE_SECONDS if self.crowd.deadline is None else self.crowd.deadline / 10
            self.call_later(pace_seconds, self.go_on)


class StalledBody(Doomed):
    """Announces a body, sends half of it, and no more."""

    def annoy(self) -> None:
        self.say(self.request("POST", 100) + bytes(50))

    def take(self, answer: Answer) -> None:
        """A server need not wait for a body that it does not want."""
        if answer.status < 400:
            self.count("answered")
            self.leave(reset=True)


class SlowReader(Visitor):
    """Asks for a large answer and reads it slowly, but reads it. Must get all of it."""

    def begin(self) -> None:
        self.set_rate(read=SLOW_RATE)
        self.say(self.request(big=True))


class StuckReader(Doomed):
    """Asks for more than the kernel can hold, and reads none of it until a server should have given up.

    A reset is known although nothing is read. A FIN stands behind what is not read; so at last everything is read, and
    a server that has given up has not sent it all.
    """

    taken = 0                           # bytes

    def annoy(self) -> None:
        count = min(MOST_STUCK, STUCK_BYTES // self.crowd.big_bytes + 1)
        self.say(b"".join([self.request(big=True) for _ in range(count)]))
        self.pause_reading()
        self.look()

    def look(self) -> None:
        if self.peer_closed:
            self.count("ended")
            self.leave(reset=True)
        elif not self.taken:
            self.call_later(self.pace_seconds, self.look)

    def doom(self) -> None:
        if self.crowd.deadline is not None and len(self.owed) * self.crowd.big_bytes >= STUCK_BYTES:
            self.call_later(self.crowd.deadline + self.crowd.patience / 4, self.resume_reading)
            self.call_later(self.crowd.deadline + self.crowd.patience, self.outlive)

    def on_data(self, data: bytes) -> None:
        self.taken += len(data)
        if self.taken >= STUCK_BYTES:
            self.outlive()

    def on_eof(self) -> None:
        self.close()


class Flood(Visitor):
    """A thousand requests in one piece. All answers must come, in their order."""

    def begin(self) -> None:
        self.ask(FLOOD)


class Idle(Visitor):
    """Asks once and stays; asks again when the time is up."""

    def answered_all(self) -> None:
        if self.name not in self.crowd.wanted:
            self.leave(reset=True)

    def ended(self) -> None:
        self.count("cut" if self.owed else "lost")

    def farewell(self) -> None:
        if self.crowd.ending and self.is_connected and not self.owed and not self.is_closing:
            self.ask()
        else:
            super().farewell()


class Sleeper(Idle):
    """Asks once and stays, but knows that a server that is full may end it."""

    def ended(self) -> None:
        self.count("cut" if self.owed else "ended")

    def farewell(self) -> None:
        Visitor.farewell(self)


class Squatter(Doomed):
    """Sends half a head, and no more: its place is not free before the deadline."""

    def annoy(self) -> None:
        self.say(self.request()[:20])


class Customer(Visitor):
    """Asks again and again, large answers among them, over a network that is at fault for whatever does not come."""

    left = 5

    def begin(self) -> None:
        self.set_timeout(read=NETWORK_SECONDS)
        self.ask_again()

    def ask_again(self) -> None:
        self.left -= 1
        self.say(self.request(big=self.crowd.random.random() < 0.2))

    def answered_all(self) -> None:
        if self.left and self.name in self.crowd.wanted:
            self.ask_again()
        else:
            super().answered_all()

    def on_eof(self) -> None:
        self.close()        # whether that ends an answer or cuts it off can't be known

    def ended(self) -> None:
        self.count("ended")

    def farewell(self) -> None:
        if self.is_connected:
            self.leave(reset=True)      # what a stalled network owes does not come


BEHAVIOURS: dict[str, type[Visitor]] = {
    "churn": Churn, "half_close": HalfClose, "abandon": Abandon, "silent": Silent,
    "slowloris": Slowloris, "slow_body": SlowBody, "stalled_body": StalledBody, "slow_reader": SlowReader,
    "stuck_reader": StuckReader, "flood": Flood, "idle": Idle, "sleeper": Sleeper, "squatter": Squatter,
    "customer": Customer,
}

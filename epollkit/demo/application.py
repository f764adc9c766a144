"""What all three servers do with a request. Two requests exist to make stale events a certainty, not a matter of luck.

A stale event needs a batch in which connection A stands before connection B, A's handler closes B, and a newcomer is
accepted between the two. A client can put things into that order, but not into one batch: an idle server fetches them
one by one. So the crowd first asks for `/hold`, a handler that blocks, as one would that asks a database: its interim
answer says that the server is busy now, and it goes on when the same client sends more. Whatever the client did in
between waits in the kernel, in order, and comes as one batch. In it, `/swap` closes the others.

Each answer is `nonce.turn fd [names]`: who asked, its how-manieth request it was, and its descriptor in the server. The
crowd picks victims by that: the kernel hands out the lowest free number, so the lowest is the first to come back.
"""
from __future__ import annotations

import os
import select
from typing import Protocol

BANNED_SOURCE = "127.0.0.66"        # the crowd binds sockets there that every server refuses at once
HOLD_LIMIT_MS = 100                 # a client that died in the middle of its burst must not hold the server for long
HOLDING = b"HTTP/1.1 102 Processing\r\n\r\n"


class Connection(Protocol):
    """What the application needs of a server's connection."""

    def fileno(self) -> int: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...
    @property
    def is_closing(self) -> bool: ...


def admit(address: object) -> bool:
    """Admission by source address. None: the peer is gone already, which the first read will say."""
    return not (isinstance(address, tuple) and address[0] == BANNED_SOURCE)


class Application:
    """Answers requests; knows every connection by the nonce it carries."""

    def __init__(self) -> None:
        self.requests = 0
        self.by_nonce: dict[str, Connection] = {}
        self.by_fd: dict[int, tuple[str, Connection]] = {}      # bounds the other: one entry per descriptor ever used

    def answer(self, target: str, connection: Connection) -> bytes:
        """The body that answers this target. ValueError or KeyError for a target that the crowd never sends."""
        self.requests += 1
        path, _, query = target.partition("?")
        fields = dict(field.split("=") for field in query.split("&"))
        fd = connection.fileno()
        self.remember(fields["nonce"], fd, connection)
        answer = f"{fields['nonce']}.{fields['turn']} {fd}"
        if path == "/swap":
            answer += " " + ",".join(self.swap(fields["victims"].split(",")))
        elif path == "/hold":
            hold(fd)
        return answer.encode()

    def remember(self, nonce: str, fd: int, connection: Connection) -> None:
        """Whoever had this descriptor before has lost it."""
        known = self.by_fd.get(fd)
        if known is not None:
            if known[1] is connection:
                return
            self.by_nonce.pop(known[0], None)
        self.by_fd[fd] = nonce, connection
        self.by_nonce[nonce] = connection

    def swap(self, names: list[str]) -> list[str]:
        """Close those of the named connections that have an event queued, and return their names. A connection is read
        to its end on every edge, so one that is readable now was stirred since: its event waits in the kernel, or in
        the batch at hand.
        """
        victims = [(name, self.by_nonce[name]) for name in names if name in self.by_nonce]
        victims = [(name, victim) for name, victim in victims if not victim.is_closing]
        poll = select.poll()
        for _, victim in victims:
            poll.register(victim.fileno(), select.POLLIN | select.POLLRDHUP)
        stirred = {fd for fd, _ in poll.poll(0)}
        closed = []
        for number, (name, victim) in enumerate(victims):
            if victim.fileno() in stirred:
                closed.append(name)
                if number % 2:
                    victim.close()
                else:
                    victim.abort()
        return closed


def hold(fd: int) -> None:
    """Block until the client sends more, so that all it does until then comes as one batch."""
    try:
        os.write(fd, HOLDING)
    except OSError:
        return      # it is gone: nothing to wait for
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll(HOLD_LIMIT_MS)

"""Leaf: names of hosts, looked up by `getaddrinfo` in threads of their own, because it blocks for as long as it likes.

One pool serves every loop of the process. Its threads are daemons, so a look-up that hangs holds up no exit; they are
made when there is work, and end when there is none for a while. Knows of loops only how an answer gets to them.
"""
from __future__ import annotations

import os
import queue
import socket
import threading
import weakref
from collections.abc import Iterable
from itertools import chain, zip_longest
from typing import Any

from epollkit.errors import EpollkitError, LimitReached

MOST_THREADS = 4            # a resolver that does not answer blocks a thread for about half a minute (resolv.conf(5))
WAITING_LIMIT = 1024        # look-ups that wait for a thread; beyond it a connect fails at once
IDLE_SECONDS = 5.0          # a thread without work ends after that


def take_turns(found: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Socket addresses in the order in which to try them: as `getaddrinfo` sorted them (RFC 6724), but the families
    take turns, the first one first (RFC 8305, section 4, with a First Address Family Count of 1)."""
    families: dict[int, dict[Any, None]] = {}
    for family, _, _, _, address in found:
        if family in (socket.AF_INET, socket.AF_INET6):
            families.setdefault(family, {})[address] = None         # each once
    return [address for address in chain(*zip_longest(*families.values())) if address is not None]


def look_up(host: str, port: int) -> list[Any] | Exception:
    """Where that host is, in the order in which to try: one address at least; or why nobody knows."""
    try:
        found = take_turns(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        return found or socket.gaierror(socket.EAI_NONAME, "the name has no address")
    except UnicodeError as error:       # of the idna codec: an empty label, or one that is too long
        return socket.gaierror(socket.EAI_NONAME, f"not a host name: {error}")
    except Exception as error:
        return error.with_traceback(None)       # its frames would keep what is in them


class _Question:
    """Whoever asks is found again by its number, if it still waits: a loop that is dropped meanwhile is not kept."""

    __slots__ = ("host", "loop", "number", "port")

    def __init__(self, loop: Any, number: int, host: str, port: int) -> None:
        self.loop = weakref.ref(loop)
        self.number, self.host, self.port = number, host, port

    def answer(self) -> None:
        found = look_up(self.host, self.port)
        loop = self.loop()
        if loop is not None:
            try:
                loop.call_soon_threadsafe(loop._resolved, self.number, found)
            except EpollkitError:
                pass    # closed meanwhile; or it is a million calls behind, and the connector's own time runs


class _Pool:
    def __init__(self) -> None:
        # Reentrant, both: a finalizer that the collector runs in here may want to connect somewhere.
        self.lock = threading.RLock()
        self.questions: queue.SimpleQueue[_Question] = queue.SimpleQueue()
        self.unanswered = 0         # those that wait, and those that a thread has
        self.threads = 0

    def ask(self, question: _Question) -> None:
        with self.lock:
            if self.unanswered >= MOST_THREADS + WAITING_LIMIT:
                raise LimitReached(f"{WAITING_LIMIT} host names wait for the resolver already")
            if self.threads < MOST_THREADS and self.unanswered >= self.threads:
                self.threads += 1
                try:
                    threading.Thread(target=self.work, name="epollkit resolver", daemon=True).start()
                except (RuntimeError, MemoryError):     # the system has none
                    self.threads -= 1
                    if self.threads == 0:
                        raise
            self.questions.put(question)
            self.unanswered += 1

    def work(self) -> None:
        while True:
            try:
                question = self.questions.get(timeout=IDLE_SECONDS)
            except (queue.Empty, MemoryError):
                with self.lock:
                    if self.questions.empty():      # and while we have the lock it stays so
                        self.threads -= 1
                        return
                continue
            try:
                question.answer()
            except MemoryError:     # to tell it with: the connector's own time runs
                pass
            del question
            with self.lock:
                self.unanswered -= 1


_pool = _Pool()
os.register_at_fork(after_in_child=_pool.__init__)      # type: ignore[misc]  # its threads stayed behind


def ask(loop: Any, number: int, host: str, port: int) -> None:
    """Have `loop._resolved(number, answer)` called in the loop's thread, with what `look_up` says. LimitReached, or
    RuntimeError where the system has no thread for it."""
    _pool.ask(_Question(loop, number, host, port))

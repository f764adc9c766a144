"""The twin: the loop as it is usually written, on the same kernel. An event's name is its descriptor's number.

It has the names of the raw API, so that the same world runs on it. Everything is done as it should be, but that a
number is taken for an identity: by the event, and by whoever keeps one.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from epollkit import RDHUP

ADD, DEL, MOD = 1, 2, 3
EDGE_TRIGGERED = 1 << 31


class Number(NamedTuple):
    """What register() returns."""

    fd: int


class TwinLoop:
    def __init__(self, process: Any, room: int) -> None:
        self.process, self.room = process, room
        self.epoll_fd = process.epoll_create()
        self.batches = 0
        self.handlers: dict[int, Callable[[Number, int], object]] = {}

    def register(self, fd: int, events: int, handler: Callable[[Number, int], object]) -> Number:
        self.process.epoll_ctl(self.epoll_fd, ADD, fd, events | RDHUP | EDGE_TRIGGERED, fd)
        self.handlers[fd] = handler
        return Number(fd)

    def unregister(self, number: Number) -> None:
        self.process.epoll_ctl(self.epoll_fd, DEL, number.fd, 0, 0)
        del self.handlers[number.fd]

    def turn(self, timeout: float) -> None:
        reported = self.process.epoll_wait(self.epoll_fd, self.room)
        self.batches += bool(reported)
        for fd, events in reported:
            if fd in self.handlers:         # else it was closed earlier in this batch
                self.handlers[fd](Number(fd), events)

    def close(self) -> None:
        self.handlers.clear()
        if self.epoll_fd >= 0:
            self.process.close(self.epoll_fd)
        self.epoll_fd = -1

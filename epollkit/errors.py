"""Exceptions, sorted by whose fault it is: the caller's, the peer's, or the system's (plain `OSError`)."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class EpollkitError(Exception):
    """Base of everything that epollkit itself raises, `OSError` aside."""


class UsageError(EpollkitError, RuntimeError):
    """The caller's mistake: a wrong argument, a wrong thread, a call at the wrong time."""


class StaleToken(UsageError):
    """The registration that the token names is gone; whatever has its slot or fd now is somebody else's."""


class LimitReached(EpollkitError):
    """A named limit stands in the way; the message says which, and how large it is."""


class PeerError(EpollkitError):
    """The peer's mistake. `status` is the HTTP status that fits it, for protocols that answer in HTTP."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Attempt(NamedTuple):
    """One address that a connector tried, or a name that it could not make out."""

    address: Any                        # (host, port), (host, port, flow, scope), or a unix path
    error: BaseException | None         # None: connected, or still under way
    seconds: float                      # how long it took


class ConnectError(EpollkitError, OSError):
    """No connection to any address of what was asked for. The message names each of them, and its error.

    `errno` is that of the last attempt: ETIMEDOUT when the time was up, None for a name that can't be found.
    `address` is what was asked for, `attempts` a tuple of `Attempt`, in the order of their ends.
    """

    def __init__(self, errno: int | None, message: str, address: Any = None, attempts: Sequence[Attempt] = ()) -> None:
        super().__init__(errno, message)
        self.address = address
        self.attempts = tuple(attempts)

    def __str__(self) -> str:
        return str(self.strerror)

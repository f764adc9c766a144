"""Exceptions, sorted by whose fault it is: the caller's, the peer's, or the system's (plain `OSError`)."""


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

"""Leaf: arguments that users pass, checked once and explained in one sentence."""
from __future__ import annotations

import math

from epollkit.errors import UsageError
from epollkit.events import ERR, EXCLUSIVE, HUP, IN, ONESHOT, OUT, PRI, RDHUP

_WITH_EXCLUSIVE = IN | OUT | ERR | HUP | EXCLUSIVE      # epoll_ctl(2)
_EVENTS = _WITH_EXCLUSIVE | PRI | RDHUP | ONESHOT


def checked_events(events: object) -> int:
    """A mask for `register` and `modify`."""
    if isinstance(events, bool) or not isinstance(events, int):
        raise UsageError(f"events is a mask like IN | OUT, not {events!r}")
    events = int(events)
    if events <= 0 or events & ~_EVENTS:
        raise UsageError(f"events {events:#x} is not made of IN, OUT, PRI, RDHUP, ERR, HUP, ONESHOT and EXCLUSIVE")
    if events & EXCLUSIVE and events & ~_WITH_EXCLUSIVE:
        raise UsageError("EXCLUSIVE goes with IN and OUT only, not with RDHUP, PRI or ONESHOT (epoll_ctl(2))")
    return events


def checked_fd(fd: object) -> int:
    """The descriptor of what a user wants to register. Whether it is open, the kernel says."""
    if hasattr(fd, "fileno"):
        try:
            fd = fd.fileno()
        except ValueError as error:         # a closed file object
            raise UsageError(f"{fd!r} has no fd: {error}") from None
    if isinstance(fd, bool) or not isinstance(fd, int):
        raise UsageError(f"an fd is an int or an object with fileno(), not {fd!r}")
    fd = int(fd)
    if not 0 <= fd < 2**31:
        raise UsageError(f"fd {fd} is closed")
    return fd


def checked_number(name: str, value: object, least: int, most: int) -> int:
    """A whole number within bounds: a plain int, whatever a subclass says of itself."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= (number := int(value)) <= most:
        raise UsageError(f"{name} is a whole number from {least} to {most}, not {value!r}")
    return number


def checked_timeout_ns(timeout: object) -> int:
    """Seconds that a turn may wait, as nanoseconds rounded up (one that is cut short spins); -1: without end."""
    if timeout is None:
        return -1
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout != timeout or timeout < 0:
        raise UsageError(f"timeout is None or a number of seconds, 0 or more, not {timeout!r}")
    return math.ceil(timeout * 1e9) if timeout < 1e9 else -1        # 31 years


def checked_seconds_ns(name: str, seconds: object) -> int:
    """How long something may take, as nanoseconds rounded up; 0 for None, which is no limit."""
    if seconds is None:
        return 0
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < 1e9:
        raise UsageError(f"{name} is None or a number of seconds, more than 0 and less than 10^9, not {seconds!r}")
    return math.ceil(seconds * 1e9)

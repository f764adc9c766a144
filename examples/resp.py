"""RESP, the protocol of Redis, as a stream: whole values out of frames. For redis_ping.py and redis_replica.py.

A value is a line, like `+OK`, `-ERR why` or `:7`, or one that announces more: `$5` and so many bytes, `*3` and so many
values. Lines and bytes are frames of the stream, which searches and counts in C and keeps what has come of one.
"""
from __future__ import annotations

import argparse
import re
from typing import Any

import epollkit

LINE_BYTES = 65536
LARGEST_BYTES = 512 << 20       # of one string: Redis's own limit (proto-max-bulk-len)
MOST_VALUES = 1 << 20           # of one array
DEEPEST = 8                     # arrays within arrays


class ErrorReply(Exception):
    """What a server says in a line that begins with a minus."""


def encode(*words: str | bytes | int) -> bytes:
    """A command: an array of strings, in one piece."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def address_of(text: str) -> tuple[str, int] | str:
    """For argparse: `host:port`, `host`, `[::1]:port`, or a unix socket's path, which has a slash in it."""
    if "/" in text:
        return text
    match = re.fullmatch(r"(\[[^]]+\]|[^:]+)(?::([0-9]{1,5}))?", text)
    if match is None or not 0 < int(match[2] or 6379) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is neither host:port nor a path with a slash in it")
    return match[1].strip("[]"), int(match[2] or 6379)


def sentence(error: BaseException) -> str:
    """An error in one line. (str() of an OSError begins with its number.)"""
    return str(getattr(error, "strerror", None) or error).replace("\n", " ")


class RespStream(epollkit.Stream):
    """`on_value(value)`: a str for a line, an int, bytes, a list, an ErrorReply, or None. `on_end(error)`: closed."""

    awaited: int | None = None                  # of a string that was announced: how many bytes it has
    failure: BaseException | None = None        # what this side has against the peer

    def __init__(self) -> None:
        self.arrays: list[tuple[int, list[Any]]] = []       # announced sizes, and what is there; outermost first

    def on_value(self, value: Any) -> None:
        raise NotImplementedError

    def on_end(self, error: BaseException | None) -> None:
        raise NotImplementedError

    def on_open(self) -> None:
        self.expect_line()

    def expect_line(self) -> None:
        self.read_until(b"\n", LINE_BYTES)      # "\r\n" in fact; but a newline alone is a frame too, see on_blank

    def on_data(self, frame: bytes) -> None:
        if self.awaited is not None:
            self.awaited = None
            self.expect_line()
            if frame.endswith(b"\r\n"):
                self.complete(frame[:-2])
            else:
                self.refuse(frame[-2:])
        elif frame == b"\n":
            self.on_blank()
        elif frame.endswith(b"\r\n"):
            self.on_line(frame[:-2])
        else:
            self.refuse(frame)

    def on_blank(self) -> None:
        """An empty line, where a value might begin."""
        self.refuse(b"\n")

    def on_line(self, line: bytes) -> None:
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            self.complete(rest.decode(errors="replace"))
        elif kind == b"-":
            self.complete(ErrorReply(rest.decode(errors="replace")))
        elif not re.fullmatch(rb"[:*$]-?[0-9]{1,18}", line):
            self.refuse(line)
        elif kind == b":":
            self.complete(int(rest))
        else:
            self.begin(kind, int(rest), line)

    def begin(self, kind: bytes, size: int, line: bytes) -> None:
        """So many bytes, or values, are announced."""
        if size == -1:
            self.complete(None)
        elif kind == b"$" and 0 <= size <= LARGEST_BYTES:
            self.awaited = size
            self.read_exactly(size + 2)
        elif kind == b"*" and size == 0:
            self.complete([])
        elif kind == b"*" and 0 < size <= MOST_VALUES and len(self.arrays) < DEEPEST:
            self.arrays.append((size, []))
        else:
            self.refuse(line)

    def complete(self, value: Any) -> None:
        """A value is there; with it perhaps the array that it ends, and so on outwards."""
        while self.arrays:
            size, values = self.arrays[-1]
            values.append(value)
            if len(values) < size:
                return
            self.arrays.pop()
            value = values
        self.on_value(value)

    def refuse(self, data: bytes) -> None:
        self.fail(epollkit.PeerError(f"this is not RESP: {data[:40]!r}"))

    def fail(self, error: BaseException) -> None:
        """End the connection for that reason."""
        self.failure = self.failure or error
        self.abort()

    def on_close(self, error: BaseException | None) -> None:
        self.on_end(self.failure or error)

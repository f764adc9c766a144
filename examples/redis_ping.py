"""Ask a Redis server whether it is there, then set and get many keys in one go.

    python examples/redis_ping.py [HOST:PORT | /PATH] [--count N] [--timeout SECONDS]

Each reply is compared with what it has to be, in order. The commands leave as fast as the server takes them: none waits
for the reply to another. The exit status is 0 if all of them came, else 1, and one line says why.
"""
from __future__ import annotations

import argparse
import collections
import secrets
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from resp import ErrorReply, RespStream, address_of, encode, sentence

import epollkit

KEPT_SECONDS = 60           # the server forgets the keys by itself


class Command(NamedTuple):
    words: tuple[Any, ...]
    expected: Any           # the reply


def commands(count: int) -> Iterator[Command]:
    """Keys that nobody else has, each with a value of its own."""
    mark = f"epollkit-ping:{secrets.token_hex(8)}"
    for number in range(count):
        yield Command(("SET", f"{mark}:{number}", f"{mark} {number}", "EX", KEPT_SECONDS), "OK")
    for number in range(count):
        yield Command(("GET", f"{mark}:{number}"), f"{mark} {number}".encode())


class Ping(RespStream):
    def __init__(self, count: int, timeout: float) -> None:
        super().__init__()
        self.timeout = timeout
        self.unsent = commands(count)
        self.unanswered: collections.deque[Command] = collections.deque()
        self.missing = 1 + 2 * count        # replies

    def on_open(self) -> None:
        super().on_open()
        self.set_timeout(read=self.timeout, write=self.timeout)
        self.send(Command(("PING",), "PONG"))

    def send(self, command: Command) -> bool:
        self.unanswered.append(command)
        return self.write(encode(*command.words))

    def on_drain(self) -> None:
        for command in self.unsent:
            if not self.send(command):      # enough for now: on_drain comes again
                return

    def on_value(self, value: Any) -> None:
        if not self.unanswered:
            self.fail(epollkit.PeerError(f"a reply to nothing: {value!r}"))
            return
        words, expected = self.unanswered.popleft()
        self.missing -= 1
        if isinstance(value, ErrorReply):
            self.fail(value)
        elif value != expected:
            self.fail(epollkit.PeerError(f"{words[0]} was answered with {value!r} instead of {expected!r}"))
        elif value == "PONG":
            print("PONG", flush=True)
            self.on_drain()
        if self.missing == 0:
            self.close()

    def on_end(self, error: BaseException | None) -> None:
        if error is None and self.missing:
            error = epollkit.PeerError(f"the server closed the connection; {self.missing} replies are missing")
        self.failure = error
        if not self.loop.closed:            # else it is Ctrl-C that closes everything
            self.loop.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description="PING a Redis server, then SET and GET many keys, pipelined.")
    parser.add_argument("server", nargs="?", type=address_of, default=("127.0.0.1", 6379), metavar="HOST:PORT | /PATH")
    parser.add_argument("--count", type=int, default=1000, help="keys to set and get (default: 1000)")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS",
                        help="to connect, and for the server to send or take anything (default: 5)")
    options = parser.parse_args()
    began = time.monotonic()
    try:
        with epollkit.Loop() as loop:
            ping = Ping(options.count, options.timeout)
            loop.connect(options.server, lambda: ping, timeout=options.timeout)
            loop.run()
        if ping.failure is not None:
            raise ping.failure
    except (epollkit.EpollkitError, OSError, ErrorReply) as error:
        print(f"redis_ping: {sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"{options.count} keys set and read back in {time.monotonic() - began:.3f} s, nothing lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())

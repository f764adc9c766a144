"""A chat room: lines of text, for `nc` or telnet.

    python examples/chat.py [--host HOST] [--port PORT | --uds PATH] [--rate BYTES] [--behind BYTES]

Who connects is asked for a name; then every line goes to everybody else. `/who` lists who is there, `/quit` leaves.

Nobody can hold up the room: what is unsent to somebody is bounded by --behind, and who gets beyond it is dropped, and
named; what comes from somebody is bounded by --rate.
"""
from __future__ import annotations

import argparse
import signal
import sys

import epollkit

LINE_BYTES = 1024           # a longer line ends its connection
NAME_LETTERS = 20
NAME_SECONDS = 60.0         # who has not said a name by then has to go
BURST_SECONDS = 2           # so much of --rate may come at once


class Room:
    def __init__(self, rate: float, behind: int) -> None:
        self.rate, self.behind = rate, behind
        self.users: dict[str, User] = {}

    def tell(self, line: str, but: User | None = None) -> None:
        """A line for everybody, of which the bytes are made once."""
        data = line.encode() + b"\n"
        for user in self.users.values():
            if user is not but and not user.is_closing:     # one that is dropped here stays in `users` until on_close
                user.write(data)

    def announce(self, line: str) -> None:
        """For the operator, too. What is said is not: it would hold up the room when nobody reads this output."""
        print(line, flush=True)
        self.tell(line)


class User(epollkit.Stream):
    name = ""               # not said yet

    def __init__(self, room: Room) -> None:
        self.room = room

    def on_open(self) -> None:
        self.read_until(b"\n", LINE_BYTES)
        self.set_limits(hard=self.room.behind, high=self.room.behind)
        self.set_rate(read=epollkit.RateLimit(self.room.rate, BURST_SECONDS * self.room.rate))
        self.set_timeout(life=NAME_SECONDS)
        self.write(b"Who are you?\n")

    def on_data(self, frame: bytes) -> None:
        # Only what can be seen goes to other people's terminals.
        text = "".join(filter(str.isprintable, frame.decode(errors="replace"))).strip()
        if text == "/quit":
            self.close()
        elif not self.name:
            self.enter(text)
        elif text == "/who":
            self.write(f"{', '.join(self.room.users)}\n".encode())
        elif text:
            self.room.tell(f"{self.name}: {text}", but=self)

    def enter(self, name: str) -> None:
        if not 0 < len(name) <= NAME_LETTERS or not name.isalnum():
            self.write(f"A name has 1 to {NAME_LETTERS} letters and digits. Who are you?\n".encode())
        elif name in self.room.users:
            self.write(b"That name is taken. Who are you?\n")
        else:
            self.name = name
            self.set_timeout(life=None)
            self.room.announce(f"{name} is here")
            self.room.users[name] = self
            self.write(f"Welcome, {name}! Here are: {', '.join(self.room.users)}\n".encode())

    def on_close(self, error: BaseException | None) -> None:
        if not self.name:
            return
        del self.room.users[self.name]
        if isinstance(error, epollkit.LimitReached):
            self.room.announce(f"{self.name} was dropped: reads too slowly")
        elif isinstance(error, epollkit.PeerError):
            self.room.announce(f"{self.name} was dropped: {error}")
        else:
            self.room.announce(f"{self.name} has left")


def main() -> int:
    parser = argparse.ArgumentParser(description="A chat room for nc and telnet; Ctrl-C ends it.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8008, help="0: the kernel chooses (default: 8008)")
    parser.add_argument("--uds", metavar="PATH", help="a unix socket instead of host and port")
    parser.add_argument("--rate", type=float, default=500.0, metavar="BYTES",
                        help="as fast may one user type, a second (default: 500)")
    parser.add_argument("--behind", type=int, default=1 << 18, metavar="BYTES",
                        help="so much may be unsent to one user (default: 262144)")
    options = parser.parse_args()
    room = Room(options.rate, options.behind)
    # Names come in all scripts, whatever this terminal can show.
    sys.stdout.reconfigure(errors="backslashreplace")   # type: ignore[union-attr]
    try:
        with epollkit.Loop() as loop:
            for signum in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(signum, loop.stop)
            listener = loop.listen(options.uds or (options.host, options.port), lambda: User(room))
            where = options.uds or "{} port {}".format(*listener.address)
            print(f"the room is open on {where}", flush=True)
            loop.run()
    except (epollkit.EpollkitError, OSError) as error:
        print(f"chat: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A replica of a Redis server: takes a snapshot, then prints each command that changes the data, as it comes.

    python examples/redis_replica.py [HOST:PORT | /PATH] [--snapshot FILE] [...]

Commands go to standard output, one a line; all else to standard error. A server that wants a password gets the one in
the environment variable REDISCLI_AUTH. When the server goes away it is asked again, later and later; if it still knows
where this replica was, it goes on there, else everything starts anew. Ctrl-C ends it.

The point of it is TABLE: what follows what, in one place. A replica that sends the next line when it should still wait
for the reply to the last one, or takes "the socket is writable" for "connected", works for years, and then does not.
"""
from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from resp import ErrorReply, RespStream, address_of, encode, sentence

import epollkit

# What happens in a state, what is then done (a method of Link), and the state after it. What is in no row is refused.
TABLE = {
    "connecting": {"opened": ("say_ping", "pinging")},
    "pinging": {"pong": ("say_port", "naming the port"), "locked": ("log_in", "logging in")},
    "logging in": {"ok": ("say_port", "naming the port")},
    "naming the port": {"ok": ("say_capabilities", "naming capabilities"),
                        "refused": ("say_capabilities", "naming capabilities")},    # it is only for the server's INFO
    "naming capabilities": {"ok": ("ask", "asking"), "refused": ("ask", "asking")},
    "asking": {"blank": ("wait", "asking"), "full": ("start_anew", "preparing"), "continue": ("go_on", "following")},
    "preparing": {"blank": ("wait", "preparing"), "length": ("take_counted", "counted snapshot"),
                  "mark": ("take_marked", "marked snapshot")},
    "counted snapshot": {"bytes": ("store_counted", "counted snapshot"), "complete": ("follow", "following")},
    "marked snapshot": {"bytes": ("store_marked", "marked snapshot"), "complete": ("follow", "following")},
    "following": {"command": ("show", "following"), "ack wanted": ("acknowledge", "following"),
                  "blank": ("wait", "following")},
    "lost": {"closed": ("come_back", "lost")},
    "over": {"closed": ("end", "over")},
}
# In each state but the last two, unless its row says otherwise.
ALWAYS = {
    "busy": ("lose", "lost"),               # it has no time for us just now
    "late": ("lose", "lost"),
    "unexpected": ("lose", "lost"),
    "closed": ("come_back", "lost"),
    "refused": ("give_up", "over"),
    "locked": ("give_up", "over"),
}
EVENTS = sorted(set(ALWAYS).union(*TABLE.values()))

# Lines of the server during the handshake.
REPLIES = [(re.compile(pattern, re.DOTALL), event) for pattern, event in (
    (rb"\+PONG", "pong"),
    (rb"\+OK", "ok"),
    (rb"\+FULLRESYNC ([0-9A-Za-z]{40}) ([0-9]{1,18})", "full"),
    (rb"\+CONTINUE(?: ([0-9A-Za-z]{40}))?", "continue"),
    (rb"\$([0-9]{1,18})", "length"),
    (rb"\$EOF:(.{40})", "mark"),
    (rb"-(?:LOADING|NOMASTERLINK|MASTERDOWN|BUSY|TRYAGAIN)\b.*", "busy"),
    (rb"-NOAUTH\b.*", "locked"),
    (rb"-.*", "refused"),
)]

# Each step has a deadline. A reply has to be there after STEP_SECONDS, whatever comes meanwhile. Where the server may
# need longer, it shows that it lives: a newline a second while it prepares, a PING every ten seconds later on.
PATIENT = {"asking", "preparing", "counted snapshot", "marked snapshot", "following"}
STEP_SECONDS = 5.0
SILENCE_SECONDS = 60.0

ACK_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
PIECE_BYTES = 65536             # of the snapshot; no more of it is in memory
SHOWN_BYTES = 100               # of a word
SHOWN_WORDS = 100               # of a command


class Settings(NamedTuple):
    server: tuple[str, int] | str
    snapshot: Path
    password: str = ""
    port: int = 0
    step: float = STEP_SECONDS
    silence: float = SILENCE_SECONDS
    retry: float = 0.5
    progress: bool = False


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def shown(command: list[bytes]) -> str:
    """A command as a line, whatever is in it."""
    words = []
    for word in command[:SHOWN_WORDS]:
        start = word[:SHOWN_BYTES]
        plain = start and all(33 <= byte <= 126 and byte not in b"'\"\\" for byte in start)
        words.append(start.decode() if plain else repr(start)[1:])
        if len(word) > len(start):
            words[-1] += f"... ({len(word)} bytes)"
    if len(command) > len(words):
        words.append(f"... ({len(command)} words)")
    return " ".join(words)


class Replica:
    """What outlives a connection: the history that is followed, how far, and when to try again."""

    history = "?"               # of which master; "?": none yet
    offset = -1                 # the last byte of its commands that was taken
    failures = 0                # since a connection last got to "following"
    error: BaseException | None = None      # why it is over

    def __init__(self, loop: epollkit.Loop, settings: Settings) -> None:
        self.loop, self.settings = loop, settings

    def connect(self) -> None:
        self.loop.connect(self.settings.server, lambda: Link(self), timeout=self.settings.step)

    def come_back(self, error: BaseException | None) -> None:
        """After a pause that doubles each time, and is never quite the same: or else all replicas come at once."""
        if self.loop.closed:
            return
        longest = min(self.settings.retry * 2 ** min(self.failures, 30), LONGEST_PAUSE_SECONDS)
        self.failures += 1
        pause = random.uniform(longest / 2, longest)
        say(f"{sentence(error) if error else 'the server closed the connection'}; again in {pause:.2g} s")
        self.loop.call_later(pause, self.connect)


class Snapshot:
    """A file that has its name once it is complete."""

    def __init__(self, path: Path, progress: bool) -> None:
        self.path, self.progress = path, progress
        self.part = path.with_name(path.name + ".part")
        self.file: BinaryIO = self.part.open("wb")
        self.size = 0

    def write(self, data: bytes, total: int | None = None) -> None:
        self.file.write(data)
        before, self.size = self.size, self.size + len(data)
        if self.progress and before >> 20 != self.size >> 20:       # each megabyte
            of = f" of {total >> 20}" if total else ""
            print(f"\rsnapshot: {self.size >> 20}{of} MiB ", end="", file=sys.stderr, flush=True)

    def keep(self) -> None:
        self.file.close()
        self.part.replace(self.path)

    def drop(self) -> None:
        with contextlib.suppress(OSError):      # of what could not be written
            self.file.close()
        self.part.unlink(missing_ok=True)


class Link(RespStream):
    """One connection to the server: a way through the table."""

    state = "connecting"
    snapshot: Snapshot | None = None
    said = ""                   # the command that waits for its reply

    def __init__(self, replica: Replica) -> None:
        super().__init__()
        self.replica, self.settings = replica, replica.settings
        self.uncounted = 0      # bytes of a command that is not whole yet

    def happen(self, event: str, value: Any = None) -> None:
        row = TABLE[self.state] if self.state in ("lost", "over") else {**ALWAYS, **TABLE[self.state]}
        if event not in row:
            event, value = "unexpected", epollkit.PeerError(f"{self.state}: the server said {value!r:.60}")
        action, following = row[event]
        if following != self.state:
            self.state = following
            self.set_deadline()
        try:
            getattr(self, action)(value)
        except OSError as error:        # a file's, or standard output's: here, where another try won't help
            self.state = "over"
            self.fail(error)
            self.end(error)

    def set_deadline(self) -> None:
        if self.is_closing:
            return
        if self.state in PATIENT:
            self.set_timeout(life=None, read=self.settings.silence)
        else:
            self.set_timeout(life=self.settings.step, read=None)

    # -- what happens --------------------------------------------------------------------------------------------------

    def on_open(self) -> None:
        super().on_open()
        self.happen("opened")

    def on_data(self, frame: bytes) -> None:
        if self.snapshot is not None:
            self.happen("bytes", frame)
            return
        if self.state == "following":
            self.uncounted += len(frame)
        super().on_data(frame)

    def on_blank(self) -> None:
        self.happen("blank", b"\n")

    def on_line(self, line: bytes) -> None:
        if self.state == "following":
            super().on_line(line)
            return
        for pattern, event in REPLIES:
            match = pattern.fullmatch(line)
            if match is None:
                continue
            if line.startswith(b"-"):
                self.happen("refused" if event == "locked" and not self.settings.password else event,
                            ErrorReply(f"{self.said} was answered with {line.decode(errors='replace')}"))
            else:
                self.happen(event, match.groups() or line)
            return
        self.refuse(line)

    def on_value(self, value: Any) -> None:
        """While following: a whole command."""
        if not isinstance(value, list) or not value or not all(isinstance(word, bytes) for word in value):
            self.happen("unexpected", epollkit.PeerError(f"this is not a command: {value!r:.60}"))
            return
        if [word.upper() for word in value[:2]] == [b"REPLCONF", b"GETACK"]:
            self.happen("ack wanted")       # what is acknowledged does not include this; Redis does the same
        else:
            self.happen("command", value)
        if self.state == "following":
            self.replica.offset += self.uncounted
            self.uncounted = 0

    def refuse(self, data: bytes) -> None:
        self.happen("unexpected", epollkit.PeerError(f"{self.state}: this is not RESP: {data[:60]!r}"))

    def on_timeout(self, which: str) -> None:
        seconds = self.settings.silence if self.state in PATIENT else self.settings.step
        self.happen("late", TimeoutError(f"{self.state}: nothing came for {seconds:g} s"))

    def on_end(self, error: BaseException | None) -> None:
        if self.snapshot is not None:
            self.snapshot.drop()
        self.happen("closed", error)

    # -- what is done --------------------------------------------------------------------------------------------------

    def say_ping(self, _: object) -> None:
        self.send("PING")

    def log_in(self, _: object) -> None:
        self.send("AUTH", self.settings.password)

    def say_port(self, _: object) -> None:
        self.send("REPLCONF", "listening-port", self.settings.port)

    def say_capabilities(self, _: object) -> None:
        self.send("REPLCONF", "capa", "eof", "capa", "psync2")

    def ask(self, _: object) -> None:
        """For all that comes after the last byte that is here; or for everything."""
        known = self.replica.history != "?"
        self.send("PSYNC", self.replica.history, self.replica.offset + 1 if known else -1)

    def send(self, *words: str | int) -> None:
        self.said = str(words[0])
        self.write(encode(*words))

    def wait(self, _: object) -> None:
        """It lives: each byte moves the deadline."""

    def start_anew(self, found: tuple[bytes, bytes]) -> None:
        self.replica.history = "?"          # whatever was known before
        self.history, self.start = found[0].decode(), int(found[1])
        say(f"full resync with {self.history}, from offset {self.start}")

    def take_counted(self, found: tuple[bytes]) -> None:
        self.snapshot = Snapshot(self.settings.snapshot, self.settings.progress)
        self.total = int(found[0])
        self.next_piece(self.snapshot)

    def store_counted(self, data: bytes) -> None:
        assert self.snapshot is not None
        self.snapshot.write(data, self.total)
        self.next_piece(self.snapshot)

    def next_piece(self, snapshot: Snapshot) -> None:
        if snapshot.size < self.total:
            self.read_exactly(min(PIECE_BYTES, self.total - snapshot.size))
        else:
            self.happen("complete")

    def take_marked(self, found: tuple[bytes]) -> None:
        self.snapshot = Snapshot(self.settings.snapshot, self.settings.progress)
        self.mark, self.tail = found[0], b""
        self.read_raw()

    def store_marked(self, data: bytes) -> None:
        """It ends with the mark. Nothing comes behind that before the server has our first acknowledgement."""
        assert self.snapshot is not None
        data = self.tail + data
        end = data.find(self.mark)
        if end < 0:
            end = max(0, len(data) - len(self.mark) + 1)        # what follows may be the mark's beginning
            self.snapshot.write(data[:end])
            self.tail = data[end:]
        elif len(data) > end + len(self.mark):
            self.happen("unexpected", epollkit.PeerError("bytes came behind the mark that ends the snapshot"))
        else:
            self.snapshot.write(data[:end])
            self.happen("complete")

    def follow(self, _: object) -> None:
        assert self.snapshot is not None
        self.snapshot.keep()
        say(f"snapshot: {self.snapshot.size} bytes in {self.snapshot.path}")
        self.snapshot = None
        self.replica.history, self.replica.offset = self.history, self.start
        self.go_on((None,))

    def go_on(self, found: tuple[bytes | None]) -> None:
        """From the next byte on these are commands."""
        if self.replica.history == "?":
            self.happen("unexpected", epollkit.PeerError("there is nothing to continue, but the server does"))
            return
        if found[0] is not None:
            self.replica.history = found[0].decode()        # the same data; another server is in charge of it now
        self.replica.failures = 0
        say(f"following {self.replica.history} from offset {self.replica.offset}")
        self.expect_line()
        self.acknowledge_each_second()

    def acknowledge_each_second(self) -> None:
        """The first one, at once, is what the server waits for before it sends anything."""
        if not self.is_closing:
            self.acknowledge(None)
            self.call_later(ACK_SECONDS, self.acknowledge_each_second)

    def acknowledge(self, _: object) -> None:
        self.write(encode("REPLCONF", "ACK", self.replica.offset))

    def show(self, command: list[bytes]) -> None:
        if command[0].upper() != b"PING":       # that only says that the server lives
            print(shown(command))

    def lose(self, error: BaseException) -> None:
        self.fail(error)

    def give_up(self, error: BaseException) -> None:
        self.fail(error)

    def come_back(self, error: BaseException | None) -> None:
        self.replica.come_back(error)

    def end(self, error: BaseException | None) -> None:
        self.replica.error = error
        if not self.loop.closed:
            self.loop.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description="Follow a Redis server: a snapshot, then each command.")
    parser.add_argument("server", nargs="?", type=address_of, default=("127.0.0.1", 6379), metavar="HOST:PORT | /PATH")
    parser.add_argument("--snapshot", type=Path, default=Path("snapshot.rdb"), metavar="FILE",
                        help="where the server's data goes (default: snapshot.rdb)")
    parser.add_argument("--listening-port", type=int, default=0, metavar="PORT",
                        help="what the server's INFO shows of this replica (default: 0)")
    parser.add_argument("--retry", type=float, default=0.5, metavar="SECONDS",
                        help="the first pause; each one doubles, up to 30 seconds (default: 0.5)")
    parser.add_argument("--step", type=float, default=STEP_SECONDS, metavar="SECONDS",
                        help="for each step of the handshake (default: 5)")
    parser.add_argument("--silence", type=float, default=SILENCE_SECONDS, metavar="SECONDS",
                        help="so long may the server send nothing, later on (default: 60)")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)     # type: ignore[union-attr]
    settings = Settings(options.server, options.snapshot, os.environ.get("REDISCLI_AUTH", ""), options.listening_port,
                        options.step, options.silence, options.retry, sys.stderr.isatty())
    try:
        with epollkit.Loop() as loop:
            for signum in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(signum, loop.stop)
            replica = Replica(loop, settings)
            replica.connect()
            loop.run()
        if replica.error is not None:
            raise replica.error
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):     # nobody reads, and there is no one to tell
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 1
    except (epollkit.EpollkitError, OSError, ErrorReply) as error:
        say(f"redis_replica: {sentence(error)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

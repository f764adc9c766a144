"""A faulty network: a TCP proxy that stalls, cuts, resets, trickles, delays and half-closes what goes through it.

    python -m stress.faulty --listen 0 --to 127.0.0.1:8000 --seed 7 --faults stall,cut,reset

    stall       from somewhere on nothing goes through any more, in either direction; both ends stay connected
    cut         both ends get a FIN in the middle of something
    reset       both ends get a RST in the middle of something
    trickle     from somewhere on one direction goes in small pieces, with pauses
    delay       from somewhere on one direction comes late
    half-close  one direction ends (FIN) in the middle of something, the other goes on

What becomes of the n-th connection follows from the seed and n alone. Each direction holds at most one read (64 KiB)
and what the other end does not take (64 KiB): beyond it this end is not read, so its sender has to wait.
"""
from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from epollkit import EpollkitError, Loop, Stream
from stress.children import Message, obey, send

FAULTS = ("stall", "cut", "reset", "trickle", "delay", "half-close")
SHARE = 0.6                     # of the connections have a fault
MOST_BEFORE = 17                # a fault strikes after up to 2 ** 17 bytes; after few as likely as after many
TRICKLE_BYTES = (1, 2000)
TRICKLE_SECONDS = 0.002
DELAY_SECONDS = (0.01, 0.2)
LOOK_SECONDS = 0.05             # a stalled end that has left is noticed so late


class Fate(NamedTuple):
    """What will become of a connection.

    Args:
        fault: one of FAULTS; "" for none.
        answers: it strikes what the server sends; else what the client sends.
        after: so many bytes of that have passed.
        seconds: how late, for "delay".
    """

    fault: str = ""
    answers: bool = False
    after: int = 0
    seconds: float = 0.0


def fate_of(seed: int, number: int, faults: tuple[str, ...], share: float = SHARE) -> Fate:
    """The number-th connection's."""
    chance = random.Random(f"{seed} {number}")
    if not faults or chance.random() >= share:
        return Fate()
    return Fate(chance.choice(faults), chance.random() < 0.5, int(2 ** chance.uniform(0, MOST_BEFORE)),
                chance.uniform(*DELAY_SECONDS))


class Proxy:
    """Listens on a loop, and connects to the server for each connection that comes.

    Args:
        fate: what will become of the n-th connection.
    """

    def __init__(self, loop: Loop, to: tuple[str, int], fate: Callable[[int], Fate],
                 listen: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.loop, self.to, self.fate = loop, to, fate
        self.counts = Counter(dict.fromkeys(("connections", *FAULTS), 0))      # faults that struck
        self.last: Line                 # that was made
        self.listener = loop.listen(listen, self.accept)

    def accept(self) -> End:
        self.last = Line(self)
        return self.last.client

    def close(self) -> None:
        """No more connections."""
        self.listener.close()


class Line:
    """A client's connection and the server's that belongs to it."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.fate = proxy.fate(proxy.counts["connections"])
        self.chance = random.Random(proxy.counts["connections"])
        proxy.counts["connections"] += 1
        self.client, self.server = End(self, answers=False), End(self, answers=True)
        self.client.other, self.server.other = self.server, self.client
        self.struck = False

    def strike(self, end: End) -> None:
        """The fault, once, where this end's bytes have come so far."""
        fault = self.fate.fault
        self.struck = True
        self.proxy.counts[fault] += 1
        if fault == "stall":
            for one in (self.client, self.server):
                one.pause()
            self.look()
        elif fault == "cut":
            self.end(reset=False)
        elif fault == "reset":
            self.end(reset=True)
        elif fault == "half-close":
            end.silenced = True
            end.other.shut()
        else:
            end.slow = True

    def look(self) -> None:
        """A stalled line is held until either end has left it."""
        if self.client.peer_closed or self.server.peer_closed:
            self.end(reset=True)
        else:
            self.proxy.loop.call_later(LOOK_SECONDS, self.look)

    def end(self, reset: bool) -> None:
        for one in (self.client, self.server):
            if reset:
                one.abort()
            else:
                one.close()


class End(Stream):
    """One end of a line: what it reads, the other one writes."""

    def __init__(self, line: Line, answers: bool) -> None:
        self.line = line
        self.other: End
        self.answers = answers
        self.passed = 0                 # bytes
        self.is_open = self.slow = self.silenced = self.ended = False
        self.held = b""                 # by a slow network

    # -- upcalls

    def on_open(self) -> None:
        self.is_open = True
        if not self.answers:
            self.pause_reading()        # until there is somebody to send it to
            self.line.proxy.loop.connect(self.line.proxy.to, lambda: self.other)
        elif self.other.is_closing:
            self.abort()
        else:
            self.other.resume_reading()

    def on_data(self, data: bytes) -> None:
        if self.silenced or self.other.is_closing:
            return
        fate = self.line.fate
        if fate.fault and fate.answers == self.answers and not self.line.struck:
            room = fate.after - self.passed
            if len(data) >= room:
                self.forward(data[:room])
                self.line.strike(self)
                data = data[room:]
                if fate.fault not in ("trickle", "delay"):
                    return
        self.forward(data)

    def on_eof(self) -> None:
        self.ended = True
        self.other.shut()

    def on_drain(self) -> None:
        if not (self.line.struck and self.line.fate.fault == "stall"):
            self.other.resume()

    def on_close(self, error: BaseException | None) -> None:
        if error is not None or not self.is_open:
            self.other.abort()
        elif not self.ended:
            self.other.close()

    # -- what goes through

    def forward(self, data: bytes) -> None:
        if not data:
            return
        if self.slow:
            self.pause()
            self.held = data
            self.go_on()
        else:
            self.pass_on(data)

    def pass_on(self, data: bytes) -> bool:
        """To the other end. False: that was much for it, so this one is not read until on_drain."""
        self.passed += len(data)
        if self.other.is_closing or self.other.write(data):
            return True
        self.pause()
        return False

    def go_on(self) -> None:
        """A slow network's next piece."""
        if self.line.fate.fault == "delay":
            size, seconds = len(self.held), self.line.fate.seconds
        else:
            size, seconds = self.line.chance.randint(*TRICKLE_BYTES), TRICKLE_SECONDS
        self.line.proxy.loop.call_later(seconds, self.arrive, size)

    def arrive(self, size: int) -> None:
        piece, self.held = self.held[:size], self.held[size:]
        if self.other.is_closing:
            return
        has_room = self.pass_on(piece)
        if self.held:
            self.go_on()
        elif has_room:
            self.resume()

    # -- means: each does nothing if it is too late

    def pause(self) -> None:
        if self.is_open and not self.is_closing:
            self.pause_reading()

    def resume(self) -> None:
        if self.is_open and not self.is_closing and not self.held:
            self.resume_reading()

    def shut(self) -> None:
        if self.is_open and not self.is_closing:
            self.shutdown_write()


def main(config: Message) -> None:
    """As a child. config: `to`, `seed`, `faults`."""
    with Loop() as loop:
        seed, faults = config["seed"], tuple(config["faults"])
        proxy = Proxy(loop, tuple(config["to"]), lambda number: fate_of(seed, number, faults))
        obey(loop, {"end": lambda _: loop.stop()})
        send({"port": proxy.listener.address[1]})
        loop.run()
        send({"counts": dict(proxy.counts), "final": True})


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, or a port alone")
    return host or "127.0.0.1", int(port)


def chosen(text: str) -> tuple[str, ...]:
    faults = tuple(text.split(","))
    for fault in faults:
        if fault not in FAULTS:
            raise argparse.ArgumentTypeError(f"{fault!r} is none of {', '.join(FAULTS)}")
    return faults


def command() -> int:
    parser = argparse.ArgumentParser(prog="python -m stress.faulty", description="A TCP proxy with faults.")
    parser.add_argument("--listen", type=address, default=("127.0.0.1", 0), metavar="[HOST:]PORT",
                        help="0: the kernel chooses the port")
    parser.add_argument("--to", type=address, required=True, metavar="HOST:PORT", help="the server")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides what becomes of which connection")
    parser.add_argument("--faults", type=chosen, default=FAULTS, metavar="A,B", help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--share", type=float, default=SHARE, metavar="X",
                        help=f"of the connections have a fault, 0 to 1 (default: {SHARE:g})")
    options = parser.parse_args()
    try:
        with Loop() as loop:
            proxy = Proxy(loop, options.to,
                          lambda number: fate_of(options.seed, number, options.faults, options.share), options.listen)
            loop.prepare()
            print(f"faulty network: {proxy.listener.address[0]}:{proxy.listener.address[1]} to "
                  f"{options.to[0]}:{options.to[1]} (Ctrl-C stops it)", flush=True)
            try:
                loop.run()
            except KeyboardInterrupt:
                print(", ".join(f"{what}: {count}" for what, count in proxy.counts.items()))
    except (EpollkitError, OSError) as error:
        print(f"stress.faulty: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(command())

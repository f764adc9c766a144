"""Worlds of connections: a listener, streams, and peers in another process of the fake kernel."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from checks import Conversation, require
from engine import Run
from worlds import Interrupt, Option, World, named

import epollkit
from epollkit import UsageError

ADDRESS = ("127.0.0.1", 80)
WRITE_SECONDS = 30          # that a peer has to take something
ENDING_SECONDS = 60         # longer than a close may take
SHUT_WRITE = 1
SECOND_NS = 10 ** 9


class Spy(epollkit.Stream):
    """Tells its world everything, and does what the world chooses."""

    def __init__(self, world: Streams, talk: Conversation) -> None:
        self.world, self.talk = world, talk
        self.file = 0

    def on_open(self) -> None:
        self.file = self.world.ours.file(self.fileno())
        self.world.told(self, "on_open")

    def on_data(self, data: bytes) -> None:
        self.world.told(self, "on_data", data)

    def on_eof(self) -> None:
        self.world.told(self, "on_eof")

    def on_error(self, error: BaseException) -> None:
        self.world.told(self, "on_error", error)

    def on_timeout(self, which: str) -> None:
        self.world.told(self, "on_timeout", which)
        self.talk.closing = True
        super().on_timeout(which)

    def on_close(self, error: BaseException | None) -> None:
        self.world.told(self, "on_close", error)


class Streams(World):
    """Connections come, speak, end and are reset; handlers close, abort, write, pause; a listener accepts in between.

    verbs: "send", "fin", "rst", "leave", "hear": of a peer. "close", "abort", "write", "pause", "shut": of whoever
    has a stream. "refuse": a factory that raises. "copy": dup, "fork": both keep a closed file open. "raise",
    "interrupt": in an upcall. "post", "later": calls that die with their stream. "silence": a read timeout.
    "unlisten": the listener is closed, and another one opened.
    """

    peers = 3               # connections that are ever made
    begin = 1               # of them, those at the beginning
    verbs = frozenset({"send", "fin", "rst", "leave", "hear", "close", "abort", "write", "pause", "shut", "refuse",
                       "copy", "fork", "raise", "interrupt", "post", "later", "silence", "unlisten"})

    def __init__(self, run: Run, bits: int = 32, verbs: frozenset[str] | None = None) -> None:
        super().__init__(run, bits)
        if verbs is not None:
            self.verbs = verbs
        self.far = self.kernel.process()
        self.child: Any = None
        self.talks: list[Conversation] = []         # in the order of their connects
        self.ends: dict[Conversation, int] = {}     # the peer's descriptor, while it has one
        self.queued: list[Conversation] = []        # not accepted yet
        self.streams: dict[Conversation, Spy] = {}
        self.calls: dict[Conversation, int] = {}        # a call is posted for it: for when; 0: the next turn
        self.quiet_ns: dict[Conversation, int] = {}     # when its read timeout began to run
        self.wrote_ns: dict[Conversation, int] = {}     # when there was something again that its peer had not read
        self.listening = False

    def start(self) -> None:
        self.listen()
        for _ in range(self.begin):
            self.connect()
        while self.queued:
            self.turn()

    # -- what can happen -----------------------------------------------------------------------------------------------

    def outside(self) -> list[Option]:
        found: list[Option] = []
        if len(self.talks) < self.peers and self.listening:
            found.append(("somebody connects", self.connect))
        for talk in self.talks:
            if talk in self.ends:
                found += self.peer_options(talk)
        if "fork" in self.verbs and self.child is None:
            found.append(("we fork", self.fork))
        if any(self.calls.values()) or self.quiet_ns:
            found.append(("a second passes", lambda: self.kernel.advance(1)))
        return found + self.options()

    def peer_options(self, talk: Conversation) -> list[Option]:
        name = f"{talk.name}'s peer"
        found: list[Option] = []
        if "send" in self.verbs and not talk.fin:
            found.append((f"{name} sends", lambda: self.send(talk)))
        if "fin" in self.verbs and not talk.fin:
            found.append((f"{name} ends", lambda: self.end(talk)))
        if "rst" in self.verbs:
            found.append((f"{name} resets", lambda: self.reset(talk)))
        if "leave" in self.verbs:
            found.append((f"{name} leaves", lambda: self.leave(talk)))
        if "hear" in self.verbs and talk.heard < talk.written:
            found.append((f"{name} reads", lambda: self.hear(talk)))
        return found

    def options(self, stream: Spy | None = None) -> list[Option]:
        """For everybody, or within one's upcall."""
        found: list[Option] = []
        for other in self.open_streams():
            found += self.stream_options(other)
        if stream is not None and "raise" in self.verbs:
            found.append(("raises", lambda: self.fail(stream)))
        if stream is not None and "interrupt" in self.verbs:
            found.append(("Ctrl-C", self.interrupt))
        if "unlisten" in self.verbs and self.listening:
            found.append(("stops listening", self.unlisten))
        elif "unlisten" in self.verbs and self.child is None and not self.full():      # a child would hold the address
            found.append(("listens again", self.listen))
        return found

    def open_streams(self) -> list[Spy]:
        return [stream for stream in self.streams.values() if stream.talk.opened and not stream.is_closing]

    def stream_options(self, stream: Spy) -> list[Option]:
        talk = stream.talk
        found: list[Option] = []
        if "close" in self.verbs:
            found.append((f"closes {talk.name}", lambda: self.close_stream(stream)))
        if "abort" in self.verbs:
            found.append((f"aborts {talk.name}", lambda: self.abort(stream)))
        if "write" in self.verbs and not talk.shut:
            found.append((f"writes to {talk.name}", lambda: self.write(stream)))
        if "shut" in self.verbs and not talk.shut:
            found.append((f"shuts {talk.name} down", lambda: self.shut(stream)))
        if "pause" in self.verbs and not talk.ended:
            found.append((f"resumes {talk.name}", lambda: self.resume(stream)) if talk.paused else
                         (f"pauses {talk.name}", lambda: self.pause(stream)))
        if "post" in self.verbs and talk not in self.calls:
            found.append((f"posts a call for {talk.name}", lambda: self.post(stream)))
        if "later" in self.verbs and talk not in self.calls:
            found.append((f"has {talk.name} called in a second", lambda: self.post(stream, 1)))
        if "silence" in self.verbs and talk not in self.quiet_ns and not talk.ended:
            found.append((f"gives {talk.name} a second", lambda: self.limit(stream)))
        if "copy" in self.verbs and not self.descriptors.files:
            found.append((f"copies {talk.name}'s descriptor", lambda: self.copy(stream)))
        return found

    # -- the peers -----------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        talk = Conversation(named(len(self.talks)))
        fd = self.far.socket()
        try:
            self.far.connect(fd, ADDRESS)
        except BlockingIOError:
            pass
        self.talks.append(talk)
        self.queued.append(talk)
        self.ends[talk] = fd

    def send(self, talk: Conversation) -> None:
        try:
            talk.sent += self.far.send(self.ends[talk], talk.small)
        except OSError:
            pass                        # full, or we are gone

    def end(self, talk: Conversation) -> None:
        try:
            self.far.shutdown(self.ends[talk], SHUT_WRITE)
        except OSError:
            return
        talk.fin = True

    def reset(self, talk: Conversation) -> None:
        self.far.reset(self.ends.pop(talk))
        talk.rst = True

    def leave(self, talk: Conversation) -> None:
        self.far.close(self.ends.pop(talk))
        talk.fin = talk.left = True

    def hear(self, talk: Conversation) -> bool:
        """Whether anything was there."""
        try:
            data = self.far.recv(self.ends[talk], 1 << 16)
        except OSError:
            return False
        require(data == talk.large * len(data), 7, f"{talk.name}'s peer gets {data!r}")
        talk.heard += len(data)
        require(talk.heard <= talk.written, 7, f"{talk.name}'s peer gets more than was written")
        return bool(data)

    def fork(self) -> None:
        self.loop.forked = True         # what the hook does
        self.child = self.ours.fork()

    def copy(self, stream: Spy) -> None:
        self.descriptors.opened(self.ours.dup(stream.fileno()))

    # -- streams -------------------------------------------------------------------------------------------------------

    def accepted(self) -> Spy:
        talk = self.queued.pop(0)
        if "refuse" in self.verbs and not self.closing and self.pick(
                f"the factory of {talk.name}", [("", None), ("raises", None)]):
            talk.closed = True
            error = RuntimeError(f"of {talk.name}'s factory")
            self.reports.raised.append(error)
            raise error
        self.streams[talk] = Spy(self, talk)
        return self.streams[talk]

    def told(self, stream: Spy, upcall: str, value: Any = None) -> None:
        talk = stream.talk
        if self.closing:
            return
        if upcall == "on_open" and talk in self.ends:
            require(self.ours.peer(stream.fileno()) in (self.far.file(self.ends[talk]), None), 7,
                    f"{talk.name} has somebody else's connection")
        if upcall == "on_open":
            self.table.named(stream.token)
        self.story.append(f"{talk.name}.{upcall}({'' if value is None else repr(value)})")
        if (upcall, value) == ("on_timeout", "read"):
            quiet_ns = self.kernel.now_ns - self.quiet_ns.get(talk, self.kernel.now_ns)
            require(quiet_ns >= SECOND_NS, 1, f"{talk.name} is told of {quiet_ns / 1e9} s of silence")
            self.quiet_ns[talk] = self.kernel.now_ns        # Ctrl-C may keep it from its end: then it begins anew
        elif (upcall, value) == ("on_timeout", "write"):
            waits_ns = self.kernel.now_ns - self.wrote_ns.get(talk, self.kernel.now_ns)
            require(waits_ns >= WRITE_SECONDS * SECOND_NS, 1, f"{talk.name} has waited for {waits_ns / 1e9} s only")
        else:
            talk.told(upcall, value)
        if upcall == "on_data" and talk in self.quiet_ns:
            self.quiet_ns[talk] = self.kernel.now_ns
        if upcall == "on_close":
            del self.streams[talk]
            self.quiet_ns.pop(talk, None)
            self.calls.pop(talk, None)
        self.acts(f"{talk.name}.{upcall}", f"{talk.name}.{upcall}", lambda: self.options(stream))

    def close_stream(self, stream: Spy) -> None:
        stream.talk.closing = True
        stream.close()

    def abort(self, stream: Spy) -> None:
        stream.talk.aborted = True
        stream.abort()

    def write(self, stream: Spy) -> None:
        if stream.talk.heard == stream.talk.written:
            self.wrote_ns[stream.talk] = self.kernel.now_ns
        stream.talk.written += 2
        stream.write(2 * stream.talk.large)

    def shut(self, stream: Spy) -> None:
        stream.talk.shut = True
        stream.shutdown_write()

    def pause(self, stream: Spy) -> None:
        stream.talk.paused = True
        stream.pause_reading()

    def resume(self, stream: Spy) -> None:
        stream.talk.paused = False
        stream.resume_reading()

    def post(self, stream: Spy, seconds: int = 0) -> None:
        due_ns = self.kernel.now_ns + seconds * SECOND_NS if seconds else 0
        self.calls[stream.talk] = due_ns
        if seconds:
            stream.call_later(seconds, self.called, stream)
        else:
            stream.call_soon(self.called, stream)

    def called(self, stream: Spy) -> None:
        talk = stream.talk
        if self.closing:
            return
        require(fd_of(stream) >= 0, 2, f"a call that {talk.name} has posted is made after its end")
        require(talk in self.calls, 2, f"a call that {talk.name} has posted is made twice")
        require(self.kernel.now_ns >= self.calls.pop(talk), 1, f"a call that {talk.name} has posted is made early")
        self.story.append(f"{talk.name}'s call")
        self.acts(f"{talk.name}'s call", f"{talk.name}'s call", self.options)

    def limit(self, stream: Spy) -> None:
        self.quiet_ns[stream.talk] = self.kernel.now_ns
        stream.set_timeout(read=1)

    def listen(self) -> None:
        self.listener = self.kernel.listen(self.loop, ADDRESS, self.accepted)
        self.listening = True

    def unlisten(self) -> None:
        self.listening = False
        self.listener.close()
        for talk in self.queued:        # reset by the kernel
            talk.closed = True
        self.queued.clear()

    def fail(self, stream: Spy) -> None:
        stream.talk.raised = True
        error = RuntimeError(f"of {stream.talk.name}")
        self.reports.raised.append(error)
        raise error

    def interrupt(self) -> None:
        raise Interrupt

    # -- what must hold ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        assert self.table is not None
        self.descriptors.check(self.table.check({}))
        for stream in self.streams.values():
            fd = fd_of(stream)
            if stream.file and fd >= 0:
                require(self.ours.file(fd) == stream.file, 6,
                        f"{stream.talk.name}'s descriptor was closed by somebody else")
        require(self.loop.stats().wrong_deliveries == 0, 1, "an event has reached somebody younger than itself")

    def settled(self) -> None:
        for talk in self.talks:
            talk.settled()
        require(not self.queued or len(self.streams) == self.slots or self.full(), 5,
                "somebody was not accepted, and there is room")
        self.hear_all()
        self.kernel.advance(ENDING_SECONDS)
        while self.progress():
            self.hear_all()
        for talk in self.streams:
            require(not talk.closing, 8, f"{talk.name} was closed a minute ago, and is not")
            require(talk not in self.calls, 5, f"a call that {talk.name} has posted was not made")
            require(talk not in self.quiet_ns or talk.ended or talk.paused, 8,
                    f"{talk.name} was given a second, and a minute of silence")

    def full(self) -> bool:
        """Whether no descriptor is left."""
        return False

    def hear_all(self) -> None:
        """Everybody reads what there is, as long as there is anything."""
        while sum(self.hear(talk) for talk in self.talks if talk in self.ends):     # each of them
            while self.progress():
                pass
        for talk in self.talks:
            if talk in self.ends and talk.closed and not (talk.over or talk.left or talk.rst or self.copied()):
                require(talk.heard == talk.written, 5, f"{talk.name}'s peer has {talk.heard} of {talk.written} bytes")

    def copied(self) -> bool:
        return self.child is not None or bool(self.descriptors.files)

    def upcalls(self) -> int:
        return super().upcalls() - len(self.streams)        # on_close is not counted by the loop

    def own_key(self) -> object:
        talks = tuple((talk.key(), self.ends.get(talk, -1)) for talk in self.talks)
        streams = tuple((talk.name, fd_of(stream)) for talk, stream in self.streams.items())
        queued = tuple(talk.name for talk in self.queued)
        now_ns = self.kernel.now_ns
        wrote = tuple((talk.name, min(now_ns - since_ns, ENDING_SECONDS * SECOND_NS))
                      for talk, since_ns in self.wrote_ns.items() if talk.heard < talk.written)
        calls = tuple((talk.name, due_ns and due_ns - now_ns) for talk, due_ns in self.calls.items())
        quiet = tuple((talk.name, min(now_ns - since_ns, ENDING_SECONDS * SECOND_NS))
                      for talk, since_ns in self.quiet_ns.items())
        return talks, streams, queued, self.inside, len(self.reports.raised), self.child is not None, \
            tuple(self.descriptors.files), calls, quiet, wrote, self.listening


def fd_of(stream: Any) -> int:
    """Its descriptor, or -1: it has none."""
    try:
        return int(stream.fileno())
    except UsageError:
        return -1


class Plain(Streams):
    """Who comes and goes, and what the events of those who went do to those who came."""

    verbs = frozenset({"send", "fin", "rst", "close", "abort", "refuse"})


class Flow(Streams):
    """One connection, and everything that can be done with its two directions."""

    peers = 1
    verbs = frozenset({"send", "fin", "rst", "leave", "hear", "close", "abort", "write", "pause", "shut"})

    def start(self) -> None:
        self.kernel.capacity = 3
        super().start()


class Copied(Streams):
    """Descriptors that outlive their connections."""

    peers = 2
    begin = 2
    verbs = frozenset({"send", "fin", "rst", "close", "abort", "copy", "fork"})


class Calling(Streams):
    """Calls and timeouts that die with their stream."""

    peers = 2
    begin = 2
    verbs = frozenset({"send", "rst", "write", "abort", "post", "later", "silence"})


class Full(Streams):
    """More who come than may be there; the listener rests, and goes on when somebody ends."""

    slots = 2
    peers = 5
    begin = 2
    verbs = frozenset({"send", "rst", "close", "abort", "unlisten"})


class Short(Full):
    """The same, for want of descriptors."""

    slots = 3
    most_fds = 5            # the loop's three, and two connections

    def start(self) -> None:
        self.kernel.limit(self.ours, self.most_fds)
        super().start()

    def outside(self) -> list[Option]:
        found = super().outside()
        for fd, file in self.descriptors.files.items():
            found.append(("another file is closed", lambda fd=fd, file=file: self.descriptors.close(fd, file)))
        if not self.descriptors.files and not self.full():
            found.append(("another file is opened", lambda: self.descriptors.opened(self.ours.eventfd())))
        return found

    def full(self) -> bool:
        return len(self.ours.fds()) == self.most_fds

    def settled(self) -> None:
        self.kernel.advance(1)          # longer than a listener rests
        while self.progress():
            pass
        super().settled()


class Raising(Streams):
    """Upcalls that raise, and Ctrl-C in them."""

    peers = 2
    begin = 2
    verbs = frozenset({"send", "fin", "rst", "close", "abort", "refuse", "raise", "interrupt"})


class Admitted(Streams):
    """Two connections speak while two more wait to be accepted: what a rule of admission makes of one bit."""

    peers = 4
    begin = 2
    verbs = frozenset({"send", "abort"})


STREAM_WORLDS: dict[str, Callable[..., World]] = {
    "streams": Plain, "streams-all": Streams, "streams-flow": Flow, "streams-copied": Copied,
    "streams-raising": Raising, "streams-calls": Calling, "streams-full": Full, "streams-short": Short,
}

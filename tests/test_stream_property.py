"""Two ends of a connection do whatever hypothesis thinks of: the same bytes arrive, in the same order, and the same
end.

Both ends are streams of one loop, or one of them is a plain socket (`peers`), with and without TLS, over TCP and unix
sockets, with small and large socket buffers. What is done is done between turns, or inside an upcall of either end. In
the debug build the system calls take and give less than they might.

EPOLLKIT_EXAMPLES: how many examples per test; the default is a few seconds' worth.
"""
from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import socket
import ssl

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers import Peer, SecurePeer
from wire import Bench, set_buffers

import epollkit
from epollkit import LimitReached, PeerError, UsageError

DEBUG = epollkit.build_info()["build"] == "debug"
if DEBUG:
    from epollkit import _operations

EXAMPLES = int(os.environ.get("EPOLLKIT_EXAMPLES", "200"))
LARGEST_BYTES = 200_000
TINY_BYTES = 4096
FRAME_LIMIT_BYTES = 65536
MOST_TURNS = 100_000
IDLE_TURNS = 400                # in a row, of a millisecond each; an acknowledgement takes 40 of them at times
numbers = itertools.count()


def make_source():
    """Bytes that are nowhere the same, with a line's end at least every 400."""
    made = random.Random(4)
    return b"".join(made.randbytes(made.randrange(400)) + b"\r\n" for _ in range(4000))


SOURCE = make_source()


# -- what may be done --------------------------------------------------------------------------------------------------

SIZES = st.one_of(st.integers(0, 100), st.integers(0, 16384), st.integers(4096, 16384),
                  st.sampled_from([16383, 16384, 16385, 65535, 65536, 65537]), st.integers(0, LARGEST_BYTES),
                  st.integers(40_000, LARGEST_BYTES))
WRITES = ("write", "writelines", "sendfile")
RATES = st.sampled_from([None, 1e8, 5e8])
RULES = st.one_of(st.just(("raw",)), st.tuples(st.just("exactly"), st.integers(1, 70_000)),
                  st.tuples(st.just("until"), st.sampled_from([b"\n", b"\r\n"])))
ENDS = st.sampled_from([0, 1])
WRITE = st.tuples(st.just("write"), SIZES)
DEEDS = st.one_of(
    WRITE, WRITE, WRITE,
    st.tuples(st.just("writelines"), st.lists(SIZES, max_size=4)),
    st.tuples(st.just("sendfile"), SIZES),
    st.tuples(st.just("pause")), st.tuples(st.just("pause")), st.tuples(st.just("resume")), st.tuples(st.just("shut")),
    st.tuples(st.just("frame"), RULES),
    st.tuples(st.just("limits"), st.integers(0, 100_000), st.integers(0, 100_000)),
    st.tuples(st.just("rate"), RATES, RATES),
)
TURNS = st.tuples(st.just("turn"), st.integers(1, 5))
# Who does what, one after the other, in whose upcall; None: between two turns.
DONE = st.tuples(st.sampled_from([None, 0, 1]), st.lists(st.tuples(ENDS, DEEDS), min_size=1, max_size=3))
STEPS = st.lists(st.one_of(TURNS, DONE), min_size=10, max_size=30)      # few steps are hardly ever a story
# What a system call moves at most, one after the other; None: whatever it would.
CAPS = st.lists(st.sampled_from([1, 7, 1000, 20_000]), max_size=3).map(lambda caps: [*caps, None])
SETTINGS = st.fixed_dictionaries({
    "unix": st.booleans(), "version": st.sampled_from([None, "TLSv1_2", "TLSv1_3"]), "tiny": st.booleans(),
    "caps": CAPS,
})
LAST = st.tuples(st.sampled_from(["shut", "shut", "shut", "close", "abort"]), ENDS)


# -- the two ends ------------------------------------------------------------------------------------------------------


class Near(epollkit.Stream):
    """A stream, and what must be true of it."""

    def __init__(self, world, number):
        self.world, self.number = world, number
        self.sent = bytearray()
        self.got = 0                    # bytes delivered
        self.rule = ("raw",)            # of frames
        self.opened = self.paused = self.shut = self.saw_end = self.closed = False
        self.owed = False               # write() said False, and on_drain is to follow
        self.low = 16384
        self.problem = None             # what on_error was told
        self.reason = None              # and on_close
        self.todo = []                  # in its next upcall

    # -- upcalls

    def on_open(self):
        assert not self.opened
        self.opened = True
        if self.world.chosen["unix"] and self.world.chosen["tiny"]:     # nothing is inherited from a unix listener
            set_buffers(self.fileno(), TINY_BYTES, TINY_BYTES)
        self.after()

    def on_data(self, data):
        assert self.opened
        assert not self.saw_end
        assert not self.paused or self.world.broken
        self.world.arrived(self, data)
        if self.rule[0] == "exactly":
            assert len(data) == self.rule[1]
        elif self.rule[0] == "until":
            assert data.index(self.rule[1]) == len(data) - len(self.rule[1])
        self.after()

    def on_eof(self):
        assert not self.saw_end
        assert not self.paused or self.world.broken
        self.check_end(0)
        self.saw_end = True
        self.after()
        if self.world.broken and not self.is_closing:
            self.close()

    def on_drain(self):
        assert self.owed, "on_drain without a reason"
        assert self.unsent_bytes <= self.low
        self.owed = False
        self.after()

    def on_error(self, error):
        assert self.problem is None
        self.problem = error
        if isinstance(error, PeerError):
            self.check_end(self.rule[1] - 1 if self.rule[0] == "exactly" else FRAME_LIMIT_BYTES)
            self.world.broken = self.world.cut = True

    def check_end(self, most):
        """It is rightly said that the other end has sent no more than that and at most so many bytes. Without TLS a
        unix socket can't tell an end from another."""
        rest = len(self.world.ends[1 - self.number].sent) - self.got
        assert rest <= most or (self.world.broken and self.world.chosen["unix"] and not self.world.chosen["version"])

    def on_close(self, error):
        assert not self.closed
        self.closed = True
        self.reason = error

    def after(self):
        assert not self.closed, "an upcall after on_close"
        todo, self.todo = self.todo, []
        for number, deed in todo:
            self.world.do(number, deed)

    # -- deeds

    def piece(self, size):
        """The next bytes to be sent: (where in SOURCE, the bytes)."""
        start = len(self.sent) % (len(SOURCE) - LARGEST_BYTES)
        data = SOURCE[start:start + size]
        self.sent += data
        return start, data

    def said(self, room):
        assert 0 <= self.unsent_bytes <= 2 * len(self.sent) + 1000
        self.owed = self.owed or not room

    def write_of(self, size):
        self.said(self.write(self.piece(size)[1]))

    def writelines_of(self, sizes):
        self.said(self.writelines([self.piece(size)[1] for size in sizes]))

    def sendfile_of(self, size):
        self.said(self.sendfile(self.world.file, self.piece(size)[0], size))

    def pause_of(self):
        self.paused = True
        self.pause_reading()

    def resume_of(self):
        self.paused = False
        self.resume_reading()

    def shut_of(self):
        self.shut = True
        self.shutdown_write()

    def frame_of(self, rule):
        self.rule = rule
        if rule[0] == "raw":
            self.read_raw()
        elif rule[0] == "exactly":
            self.read_exactly(rule[1])
        else:
            self.read_until(rule[1], FRAME_LIMIT_BYTES)

    def limits_of(self, one, other):
        self.low, high = sorted((one, other))
        self.set_limits(high=high, low=self.low)

    def rate_of(self, read, write):
        self.set_rate(read=read and epollkit.RateLimit(read, burst=30_000),
                      write=write and epollkit.RateLimit(write, burst=30_000))


class Far:
    """A plain socket with the same deeds. It reads what is there and knows nothing of frames."""

    def __init__(self, world, number, peer):
        self.world, self.number, self.peer = world, number, peer
        self.sent = bytearray()
        self.got = 0
        self.opened, self.shut, self.todo = True, False, []
        self.owed = False
        self.problem = None

    piece = Near.piece

    def pump(self):
        moved = self.peer.pump()
        if self.peer.received:
            self.world.arrived(self, bytes(self.peer.received))
            self.peer.received.clear()
        if self.world.broken and self.peer.over and (self.peer.broken or not self.peer.unsent):
            self.peer.close()
        return moved

    @property
    def saw_end(self):
        return self.peer.ended

    @property
    def closed(self):
        return self.peer.error is not None or (self.peer.ended and (self.peer.end_sent or self.world.broken))

    @property
    def reason(self):
        return self.peer.error

    def write_of(self, size):
        self.peer.write(self.piece(size)[1])

    def writelines_of(self, sizes):
        for size in sizes:
            self.write_of(size)

    sendfile_of = write_of

    def pause_of(self):
        self.peer.reading = False

    def resume_of(self):
        self.peer.reading = True

    def shut_of(self):
        self.shut = True
        self.peer.end()

    def frame_of(self, *arguments):
        """These are for streams."""

    limits_of = rate_of = frame_of

    def close(self):
        self.peer.end()

    def abort(self):
        self.peer.reset()
        self.peer.error = ConnectionResetError()


# -- what happens ------------------------------------------------------------------------------------------------------


class World:
    def __init__(self, loop, bench, contexts, chosen):
        self.loop, self.bench, self.contexts, self.chosen = loop, bench, contexts, chosen
        self.file = shared_file()
        self.problems = []
        self.broken = False             # an end was closed or aborted: the other may lose something
        self.cut = False                # the last frame of an end was not whole
        self.far = None
        loop.set_exception_handler(lambda error, source: self.problems.append(error))

    @property
    def address(self):
        return f"\0epollkit property {os.getpid()} {next(numbers)}" if self.chosen["unix"] else ("127.0.0.1", 0)

    def meet(self, far_is_plain, server):
        """Both ends, before their handshake. server: which of them listens."""
        ends = [None, None]
        tls = self.chosen["version"] is not None
        near = [Near(self, number) for number in (0, 1)]
        buffers = (TINY_BYTES, TINY_BYTES) if self.chosen["tiny"] else (0, 0)
        if far_is_plain and server == 1:
            with socket.socket(socket.AF_UNIX if self.chosen["unix"] else socket.AF_INET) as listening:
                set_buffers(listening.fileno(), *buffers)
                listening.bind(self.address)
                listening.listen(1)
                self.connect(listening.getsockname(), near[0])
                sock, _ = listening.accept()
        else:
            listener = self.bench.listen(lambda: near[server], self.address, ssl=self.contexts[0] if tls else None)
            set_buffers(listener.fileno(), *buffers)
            if far_is_plain:
                sock = socket.socket(socket.AF_UNIX if self.chosen["unix"] else socket.AF_INET)
                set_buffers(sock.fileno(), *buffers)
                sock.connect(listener.address)
            else:
                self.connect(listener.address, near[1 - server])
        ends[0] = near[0]
        if far_is_plain:
            set_buffers(sock.fileno(), *buffers)
            peer = SecurePeer(self.bench, sock, self.contexts[1 - server], server_side=server == 1) if tls else Peer(
                self.bench, sock)
            ends[1] = self.far = Far(self, 1, peer)
        else:
            ends[1] = near[1]
        self.ends = ends
        return self

    def connect(self, address, stream):
        tls = self.chosen["version"] is not None
        address = address.decode() if isinstance(address, bytes) else address
        connector = self.loop.connect(address, lambda: stream, ssl=self.contexts[1] if tls else None,
                                      server_hostname="localhost" if tls else None)
        self.until(lambda: connector.state == "connected")

    def arrived(self, end, data):
        assert data
        assert data == self.ends[1 - end.number].sent[end.got:end.got + len(data)], "other bytes than were sent"
        end.got += len(data)

    def step(self, step):
        if step[0] == "turn":
            for _ in range(step[1]):
                self.turn()
            return
        host, deeds = step
        if host is not None:
            self.ends[host].todo += deeds
            return
        for number, deed in deeds:
            self.do(number, deed)

    def do(self, number, deed):
        end = self.ends[number]
        if not end.opened:
            end.todo.append((number, deed))
        elif isinstance(end, Near) and (end.is_closing or (deed[0] in WRITES and end.shut)):
            before = len(end.sent)
            with pytest.raises(UsageError):
                getattr(end, deed[0] + "_of")(*deed[1:])
            del end.sent[before:]
        elif not (end.shut and deed[0] in WRITES):
            getattr(end, deed[0] + "_of")(*deed[1:])

    def turn(self, seconds=0):
        """Whether anything happened."""
        made = self.loop.turn(seconds)
        if self.far is not None:
            made += self.far.pump()
        if self.problems:
            raise self.problems[0]
        return made

    def until(self, condition):
        idle = 0
        for _ in range(MOST_TURNS):
            if condition():
                return
            idle = 0 if self.turn(0 if idle < 5 else 0.001) else idle + 1
            assert idle < IDLE_TURNS, f"nothing happens any more: {self.state()}"
        raise AssertionError(f"it does not come to an end: {self.state()}")

    def state(self):
        return [{name: value if not isinstance(value, bytearray) else len(value) for name, value in vars(end).items()}
                for end in self.ends]

    # -- the end

    def last(self, how, number):
        self.until(lambda: all(end.opened for end in self.ends) and (self.far is None or not hasattr(
            self.far.peer, "shaken") or self.far.peer.shaken))
        for end in self.ends:
            todo, end.todo = end.todo, []
            for who, deed in todo:
                self.do(who, deed)
        self.broken = self.broken or how != "shut"
        for end in self.ends:
            self.do(end.number, ("resume",))
        check = self.shut(number) if how == "shut" else self.break_off(how, number)
        self.until(lambda: self.cut or all(end.closed for end in self.ends))
        if not self.cut:
            check()
            return
        for end in self.ends:           # one of them has broken it, and nothing is promised to the other
            end.close()
        self.until(lambda: all(end.closed for end in self.ends))

    def has_frame(self, end):
        """Whether it has not got a frame that was sent."""
        if isinstance(end, Far) or end.rule[0] == "raw":
            return end.got < len(self.ends[1 - end.number].sent)
        rest = self.ends[1 - end.number].sent
        if end.rule[0] == "exactly":
            return len(rest) - end.got >= end.rule[1]
        return rest.find(end.rule[1], end.got) >= 0

    def shut(self, number):
        """Everything arrives, and then both ends, one after the other."""
        self.until(lambda: self.cut or not any(self.has_frame(end) for end in self.ends))
        for end in self.ends:
            self.do(end.number, ("frame", ("raw",)))
        self.until(lambda: self.cut or all(end.got == len(self.ends[1 - end.number].sent) for end in self.ends))
        self.until(lambda: self.cut or not any(end.owed and not end.closed for end in self.ends))
        for end in (self.ends[number], self.ends[1 - number]):
            if not end.shut and not self.cut:
                assert not end.closed
                assert end.problem is None
                assert isinstance(end, Far) or end.unsent_bytes == 0
                end.shut_of()
                self.turn()
        return self.check_shut

    def check_shut(self):
        for end in self.ends:
            assert end.saw_end
            assert end.problem is None
            assert end.reason is None

    def break_off(self, how, number):
        """What one end has written before close() arrives; after abort() some of it. No end is taken for another."""
        end, other = self.ends[number], self.ends[1 - number]
        getattr(end, how)()
        if isinstance(other, Near) and other.saw_end and not other.closed:      # else on_eof does that
            other.close()
        return functools.partial(self.check_broken, how, end, other)

    def check_broken(self, how, end, other):
        assert end.got <= len(other.sent)
        if how == "close" and not (isinstance(other, Near) and other.rule[0] != "raw"):
            assert other.got == len(end.sent)
            assert other.saw_end or end.got < len(other.sent)       # reset, for it did not want to hear all of it
        if isinstance(other, Near) and not other.saw_end:
            assert isinstance(other.reason, (LimitReached, OSError))


@functools.cache
def shared_file():
    """SOURCE, as a file that lives as long as this process."""
    made = os.memfd_create("source")
    os.write(made, SOURCE)
    return made


shared_file()       # here: it is not the descriptor of the first test that asks for it


@pytest.fixture(scope="module")
def contexts(certificates, tmp_path_factory):
    """By version: the server's context and the client's. The server's chain is long: its flight does not fit into a
    tiny buffer."""
    chain = tmp_path_factory.mktemp("chain") / "chain.pem"
    chain.write_bytes(certificates.server.read_bytes() + 20 * certificates.other.read_bytes())
    made = {None: (None, None)}
    for version in ("TLSv1_2", "TLSv1_3"):
        made[version] = certificates.server_context(), certificates.client_context()
        made[version][0].load_cert_chain(chain)
        for context in made[version]:
            context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    return made


def short(chosen):
    """System calls that move less than they might, where that is what the kernel might do as well: TCP hands out all
    there is, and a send that takes less than it was given was the last for now."""
    if not DEBUG:
        return contextlib.nullcontext()
    caps = itertools.cycle(chosen["caps"])
    replaced = {"send_parts": lambda fd, size: next(caps) if size else None}
    if chosen["unix"]:
        replaced["recv"] = lambda fd, room: next(caps)
    if chosen["version"] is not None:
        replaced["send"] = lambda fd, size: next(caps)
    return _operations.replaced(**replaced)


def play(contexts, far_is_plain, server, chosen, steps, last):
    with epollkit.Loop() as loop, Bench(loop) as bench, short(chosen):
        world = World(loop, bench, contexts[chosen["version"]], chosen).meet(far_is_plain, server)
        for step in steps:
            world.step(step)
        world.last(*last)


def examples(test):
    return settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))(test)


@examples
@given(SETTINGS, STEPS, LAST)
def test_two_streams(contexts, chosen, steps, last):
    play(contexts, False, 0, chosen, steps, last)


@examples
@given(ENDS, SETTINGS, STEPS, LAST)
def test_a_stream_and_a_plain_socket(contexts, server, chosen, steps, last):
    play(contexts, True, server, chosen, steps, last)

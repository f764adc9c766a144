"""Streams of bytes against a whole server in this process: what it answers is what `rfc9112` says it has to answer.

An input is a script. Its first bytes choose a world (HTTP, or a stream with frames; over TCP, a unix socket, TLS; from
a listener, or adopted), what a system call moves at most, and how many connections there may be. The rest is what the
peers send; `0xFE` and the byte behind it are an order:

    low two bits    a turn; until the loop rests; the next connection; what the table ORDERS says
    high six bits   its argument

After each script: what every peer received is the beginning of the answers to what it sent, each whole, once, in their
order, and all of them unless something came between (a reset, a timeout, a fault); the application was called for those
requests and no others; a new connection is served; nothing is left: no slot, no timer, no descriptor, and in the debug
build none of the objects that it counts.
"""
from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import select
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fuzz_answers import BODY_LIMIT, LIMITS, App, Framed, Rule, brief, check_received, expected_of, frames_of

import epollkit
from epollkit.errors import PeerError
from epollkit.http import Settings

DEBUG = epollkit.build_info()["build"] == "debug"
if DEBUG:
    from epollkit import _operations

ESCAPE = 0xFE
MOST_CONNECTIONS = 3
FEW = 2
PATIENCE = 20                       # times 50 ms, while something is missing
MOST_SENT_BYTES = 1 << 18           # per script, with everything that is repeated
MOST_PAUSED_BYTES = 1 << 12         # likewise, where every third frame, which may be one byte, is waited for
MOST_TURNS = 20_000
CANARY = b"GET /canary HTTP/1.1\r\nHost: a\r\n\r\n"
CAPS = ((), (1,), (7, 1, 100), (1000, 3))       # what recv and send move at most, one call after the other
PAUSES = (0.5, 4.0, 6.0, 11.0, 31.0, 76.0, 0.01, 200.0)
FAULTS = (-errno.ECONNRESET, -errno.EPIPE, -errno.ETIMEDOUT, -errno.ENOBUFS)
RESET = struct.pack("ii", 1, 0)


# -- one peer ----------------------------------------------------------------------------------------------------------


class Peer:
    """The far end of one connection."""

    def __init__(self, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        self.socket = sock
        sock.setblocking(False)
        self.sent = bytearray()             # what was given to the socket, of a TLS peer as plaintext
        self.received = bytearray()
        self.open = True                    # on this side
        self.finished = False               # this side's end was sent
        self.ended = False                  # the server's end came
        self.disturbed = False              # not all that is expected has to come
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = tls.wrap_bio(self.incoming, self.outgoing) if tls else None
        self.shaken = tls is None
        self.mangled = 0                    # the place in the next ciphertext that is to be broken

    def send(self, data: bytes) -> None:
        if not self.open or self.finished:
            return
        if self.tls is None:
            self.sent += data[:self.push(data)]
        elif not self.shaken:
            self.disturbed = True           # garbage instead of a handshake
            self.push(data)
        else:
            with contextlib.suppress(ssl.SSLError):
                self.tls.write(data)
                sealed = bytearray(self.outgoing.read())
                if self.mangled:
                    sealed[self.mangled % len(sealed)] ^= 0x55
                    self.mangled, self.disturbed = 0, True
                count = self.push(sealed)
                if count < len(sealed):
                    self.disturbed = True
                self.sent += data

    def push(self, data: bytes | bytearray) -> int:
        """How much of it the socket takes."""
        sent = 0
        try:
            while sent < len(data):
                sent += self.socket.send(memoryview(data)[sent:])
        except BlockingIOError:
            pass
        except OSError:
            self.ended = True
        return sent

    def read(self, limit: int = 1 << 20) -> int:
        """How many bytes came; an end counts as one."""
        before = len(self.received) + self.ended
        if not self.open:
            return 0
        try:
            while limit > 0:
                data = self.socket.recv(min(limit, 1 << 16))
                if not data:
                    self.ended = True
                    break
                limit -= len(data)
                self.take(data)
        except BlockingIOError:
            pass
        except OSError:
            self.ended = True
        return len(self.received) + self.ended - before

    def take(self, data: bytes) -> None:
        if self.tls is None:
            self.received += data
            return
        self.incoming.write(data)
        try:
            if self.shaken:
                while plain := self.tls.read(1 << 16):
                    self.received += plain
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:                # close_notify, or an alert
            self.ended = True

    def shake(self) -> None:
        """One step of the handshake."""
        if self.tls is None or self.shaken or not self.open:
            return
        try:
            self.tls.do_handshake()
            self.shaken = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self.disturbed = True
        self.push(self.outgoing.read())

    def finish(self) -> None:
        if self.open and not self.finished:
            self.finished = True
            if self.tls is not None:
                self.disturbed = True       # not as TLS ends
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)

    def close(self, reset: bool = False) -> None:
        if self.open:
            self.open = False
            self.disturbed = True
            if reset:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.socket.close()


# -- the world ---------------------------------------------------------------------------------------------------------


class World(NamedTuple):
    family: int
    listens: bool
    frames: bool
    tls: bool


WORLDS = (
    World(socket.AF_UNIX, False, False, False),
    World(socket.AF_INET, True, False, False),
    World(socket.AF_UNIX, True, False, False),
    World(socket.AF_UNIX, False, True, False),
    World(socket.AF_INET, False, True, False),
    World(socket.AF_UNIX, True, False, True),
)


@functools.cache
def anonymous(server: bool) -> ssl.SSLContext:
    """TLS without certificates: what is fuzzed is not their verification."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    if not server:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AECDH-AES128-SHA:@SECLEVEL=0")
    return context


def make_small(fd: int) -> None:
    """Let little fit into its send buffer."""
    with socket.socket(fileno=os.dup(fd)) as copy:
        copy.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
    near.setblocking(False)
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


class Stage:
    """A loop, a server on it, and the peers of one script."""

    def __init__(self, header: bytes) -> None:
        self.world = world = WORLDS[header[0] % len(WORLDS)]
        self.early = header[0] // len(WORLDS) % 4 * 11
        most = FEW if header[1] >> 4 & 3 == 3 and world.listens else 64
        self.pauses = bool(header[1] & 64)
        self.small = bool(header[1] & 128) and world.family == socket.AF_UNIX      # TCP would wait for its own timers
        self.rules = [Rule.of(code) for code in header[2:6]]
        self.disturbed = most < MOST_CONNECTIONS    # some are evicted
        self.paused = False
        self.reported: list[tuple[BaseException, object]] = []
        self.peers: list[Peer] = []
        self.made: list[Any] = []                   # by the factory, in the order of accepting
        self.room = MOST_PAUSED_BYTES if world.frames and self.pauses else MOST_SENT_BYTES
        self.loop = epollkit.Loop(max_connections=most)
        self.loop.set_exception_handler(lambda error, source: self.reported.append((error, source)))
        self.listener: Any = None
        if world.listens:
            address = ("127.0.0.1", 0) if world.family == socket.AF_INET else f"\0epollkit fuzz {os.getpid()}"
            self.listener = self.loop.listen(address, self.make, ssl=anonymous(True) if world.tls else None)

    def make(self) -> Any:
        """A connection's near end."""
        if self.world.frames:
            self.made.append(Framed(self.rules, self.pauses))
            return self.made[-1]
        self.made.append(App())
        return Settings(self.made[-1], limit_request_line=LIMITS.line, limit_request_fields=LIMITS.fields,
                        limit_request_field_size=LIMITS.field, limit_request_body=BODY_LIMIT)()

    def connect(self, first: bytes = b"") -> Peer:
        """A new peer. What an adopted connection's server has received of it already is `first`."""
        if self.world.listens:
            far = socket.socket(self.world.family)
            far.connect(self.listener.address)
            if self.world.family == socket.AF_INET:
                far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer = Peer(far, anonymous(False) if self.world.tls else None)
        else:
            near, far = socket.socketpair() if self.world.family == socket.AF_UNIX else tcp_pair()
            if self.small:
                make_small(near.fileno())
            self.loop.adopt(near, self.make, first)
            peer = Peer(far, None)
            peer.sent += first
        self.peers.append(peer)
        return peer

    def rest(self) -> None:
        """Until the loop has nothing to do."""
        idle = 0
        for _ in range(MOST_TURNS):
            idle = 0 if self.loop.turn(0) else idle + 1
            if idle == 2:
                return
        raise AssertionError(f"the loop does not come to rest: {self.loop.stats()}")

    def rest_and_read(self) -> None:
        """Until nothing moves any more."""
        for _ in range(MOST_TURNS):
            self.rest()
            moved = sum([peer.read() for peer in self.peers])
            if self.world.frames:
                for near in self.made:
                    before = len(near.frames) + len(near.ends)
                    near.resume()
                    self.rest()
                    moved += len(near.frames) + len(near.ends) - before
            if not moved:
                return
        raise AssertionError("bytes come without an end")

    def check_patiently(self) -> None:
        """TCP does some of its work later: what is missing may be under way."""
        for tries_left in reversed(range(PATIENCE if self.world.family == socket.AF_INET else 1)):
            try:
                self.check()
                return
            except AssertionError:
                if not tries_left:
                    raise
            poll = select.poll()
            for peer in self.peers:
                if peer.open and not peer.ended:
                    poll.register(peer.socket, select.POLLIN)
            poll.poll(50)
            self.rest_and_read()

    def check(self) -> None:
        """At the end of a script, everything that may still come has come."""
        for peer, near in zip(self.peers, self.made, strict=False):         # some may not have been accepted
            whole = not (self.disturbed or self.paused or peer.disturbed)
            (self.check_frames if self.world.frames else self.check_http)(peer, near, whole)
        assert len(self.made) <= len(self.peers), "more connections than peers"
        assert self.disturbed or len(self.made) == len(self.peers), "not all peers were let in"
        assert not self.reported, f"reported: {self.reported}"

    def check_http(self, peer: Peer, app: App, whole: bool) -> None:
        asked, expected = expected_of(bytes(peer.sent))
        broken = bool(expected) and expected[-1].broken and bool(expected[-1].statuses)     # by the application
        whole = whole and not broken
        check_received(bytes(peer.received), expected, whole, self.paused)
        assert app.asked == asked[:len(app.asked)], f"asked {app.asked}, sent {asked}"
        if whole:
            over = peer.finished or (bool(expected) and expected[-1].close)
            assert len(app.asked) == len(asked), f"asked {app.asked}, sent {asked}"
            assert peer.ended == over, f"ended: {peer.ended}, expected: {over}; {brief(expected)}"
        app.check_kept()

    def check_frames(self, peer: Peer, near: Framed, whole: bool) -> None:
        frames, rest, too_long = frames_of(bytes(peer.sent), self.rules)
        assert near.frames == frames[:len(near.frames)], f"{near.frames}, expected {frames}"
        assert b"".join(frames).startswith(peer.received), f"echoed {peer.received!r} of {frames}"
        assert len(near.ends) <= 1 and all(error in near.ends for error in near.errors)
        if not whole:
            return
        assert near.frames == frames, f"{near.frames}, expected {frames}"
        over = too_long or peer.finished
        broken = too_long or (peer.finished and bool(rest))     # then what the socket has no room for is lost
        if not broken or len(peer.sent) < 1000:
            assert peer.received == b"".join(frames), f"echoed {peer.received!r} of {frames}"
        assert bool(near.ends) == over == peer.ended, f"ended with {near.ends}, {peer.ended}, expected {over}"
        if over:
            assert isinstance(near.ends[0], PeerError) == broken, near.ends

    def serve_canary(self) -> None:
        """A new connection, by a request or frames that are in order."""
        self.paused = self.disturbed = False
        peer = self.connect()
        if self.world.tls:
            self.shake(peer)
        if self.world.frames:
            peer.send(b"".join(rule.separator or b"x" * rule.size for rule in self.rules))
        else:
            peer.send(CANARY)
        self.rest_and_read()
        assert not peer.disturbed
        assert peer.sent, "a new connection can't send"
        (self.check_frames if self.world.frames else self.check_http)(peer, self.made[-1], True)
        assert peer.received

    def shake(self, peer: Peer) -> None:
        for _ in range(4):
            peer.shake()
            self.rest()
            peer.read()

    def end(self) -> None:
        for peer in self.peers:
            peer.close()
        self.rest()
        live = self.loop.stats().live
        assert live == self.world.listens, f"{live} registrations are left, of which {int(self.world.listens)} listens"

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        if self.listener is not None:
            self.listener.close()
        stats = self.loop.stats()
        self.loop.close()
        del self.loop, self.listener                # which lead back here; nothing is left to the collector
        assert stats.wrong_deliveries == stats.timers == 0, stats
        for near in self.made if self.world.frames else ():
            assert len(near.ends) == 1, f"on_close came {len(near.ends)} times"


# -- a script ----------------------------------------------------------------------------------------------------------


class Script:
    """What an input says, done."""

    def __init__(self, data: bytes, clock: Any) -> None:
        self.clock = clock
        self.pieces = data[6:].split(bytes([ESCAPE]))
        self.stage = Stage(data[:6])
        self.world = self.stage.world
        self.recv_caps = CAPS[data[1] & 3] if self.world.family == socket.AF_UNIX else ()
        self.send_caps = CAPS[data[1] >> 2 & 3]
        self.current: Peer | None = None
        self.repeated = b""
        self.faults: list[tuple[str, int]] = []
        self.calls = 0

    # What orders there are. Each gets its argument.

    def fin(self, _: int) -> None:
        self.peer().finish()

    def reset(self, _: int) -> None:
        self.peer().close(reset=True)

    def close(self, _: int) -> None:
        self.peer().close()

    def read_some(self, _: int) -> None:
        self.peer().read(100)

    def read_all(self, _: int) -> None:
        self.peer().read()

    def pause(self, argument: int) -> None:
        if self.clock is not None:
            self.stage.paused = True
            self.clock.advance(PAUSES[argument])
            self.stage.rest()

    def pause_long(self, argument: int) -> None:
        self.pause(4 + argument)

    def repeat(self, argument: int) -> None:
        """The last piece, again and again."""
        for _ in range(1 << 2 * argument):
            self.send(self.repeated)

    def fault_recv(self, argument: int) -> None:
        self.stage.disturbed = True
        self.faults.append(("recv", FAULTS[argument]))

    def fault_send(self, argument: int) -> None:
        self.stage.disturbed = True
        self.faults.append(("send", FAULTS[argument]))

    def shake(self, _: int) -> None:
        self.stage.shake(self.peer())

    def mangle(self, argument: int) -> None:
        self.peer().mangled = 1 + 7 * argument

    def literal(self, _: int) -> None:
        self.send(bytes([ESCAPE]))

    def resume(self, _: int) -> None:
        for near in self.stage.made if self.world.frames else ():
            near.resume()

    def renew(self, _: int) -> None:
        """Another connection takes this one's place."""
        if len(self.stage.peers) < 2 * MOST_CONNECTIONS:
            self.current = self.stage.connect()

    ORDERS: tuple[Callable[[Script, int], None], ...] = (
        fin, reset, close, read_some, read_all, pause, pause_long, repeat, fault_recv, fault_send, shake, mangle,
        literal, resume, renew, renew)

    def peer(self) -> Peer:
        if self.current is None:
            self.current = self.stage.connect()
        return self.current

    def send(self, data: bytes) -> None:
        data = data[:self.stage.room]
        self.stage.room -= len(data)
        if self.current is None and self.stage.early and not self.world.listens:
            self.current = self.stage.connect(data[:self.stage.early])
            data = data[self.stage.early:]
        self.peer().send(data)

    def order(self, code: int) -> None:
        kind, argument = code & 3, code >> 2
        if kind == 0:
            self.stage.loop.turn(0)
        elif kind == 1:
            self.stage.rest()
        elif kind == 2:
            peers = self.stage.peers
            if argument % MOST_CONNECTIONS < len(peers):
                self.current = peers[argument % MOST_CONNECTIONS]
            elif len(peers) < MOST_CONNECTIONS:
                self.current = self.stage.connect()
        else:
            self.ORDERS[argument & 15](self, argument >> 4)

    def run(self) -> None:
        if self.pieces[0]:
            self.repeated = self.pieces[0]
            self.send(self.pieces[0])
        for piece in self.pieces[1:]:
            if piece:
                self.order(piece[0])
            if piece[1:]:
                self.repeated = piece[1:]
                self.send(piece[1:])
        self.stage.rest_and_read()
        self.stage.check_patiently()

    # What becomes of system calls.

    def capped(self, name: str, caps: tuple[int, ...], size: int) -> int | None:
        if self.faults and self.faults[0][0] == name:
            return self.faults.pop(0)[1]
        self.calls += 1
        return caps[self.calls % (len(caps) + 1)] if size and self.calls % (len(caps) + 1) < len(caps) else None

    def replaced(self) -> contextlib.AbstractContextManager[None]:
        """Short reads and writes where the kernel might make them; faults anywhere."""
        wanted = {self.ORDERS[piece[0] >> 2 & 15] for piece in self.pieces[1:] if piece and piece[0] & 3 == 3}
        faults = wanted & {Script.fault_recv, Script.fault_send}
        if not DEBUG or not (self.recv_caps or self.send_caps or faults):
            return contextlib.nullcontext()
        functions = {"recv": lambda fd, size: self.capped("recv", self.recv_caps, size),
                     "send_parts": lambda fd, size: self.capped("send", self.send_caps, size),
                     "send": lambda fd, size: self.capped("send", self.send_caps if self.world.tls else (), size)}
        return _operations.replaced(**functions)


def alive() -> dict[str, int]:
    return {kind: made - freed for kind, (made, freed) in _operations.counts().items()} if DEBUG else {}


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Applications that raise are logged, and here many do."""
    logger = logging.getLogger("epollkit")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def next_fd() -> int:
    fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.close(fd)
    return fd


def play(data: bytes) -> None:
    with quiet_log(), _operations.fake_clock() if DEBUG else contextlib.nullcontext() as clock:
        script = Script(data, clock)
        try:
            with script.replaced():
                script.run()
                script.stage.end()
            script.stage.serve_canary()
            script.stage.end()
        except BaseException:
            with contextlib.suppress(AssertionError):
                script.stage.close()
            raise
        script.stage.close()


def check(data: bytes) -> None:
    """AssertionError if anything about this input is wrong."""
    if len(data) < 7:
        return
    before, fd = alive(), next_fd()
    play(data)
    assert alive() == before, f"left: {alive()}, before: {before}"
    assert next_fd() == fd, "a descriptor is left open"

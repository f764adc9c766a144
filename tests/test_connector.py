"""`Loop.connect`: every step of the connector's table, on real sockets; names; and Happy Eyeballs on a clock that moves
when it is told to."""
from __future__ import annotations

import contextlib
import errno
import gc
import os
import pickle
import re
import select
import socket
import ssl
import struct
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from batches import (
    READ_ENDS,
    Log,
    Spy,
    finalizer_at_next_allocation,
    in_child,
    in_thread,
    names_looked_up,
    next_fd,
    settle,
    turn_until,
    wait_ready,
)

import epollkit
from epollkit import Attempt, ConnectError, Connector, LimitReached, Stream, UsageError, _connector, _resolver, _sockets

DEBUG = epollkit.build_info()["build"] == "debug"
if DEBUG:
    from epollkit._operations import calls, fake_clock, replaced

    from epollkit import _debug

DOCS = Path(__file__).resolve().parent.parent / "docs" / "connecting.md"
DELAY_SECONDS = 0.25        # RFC 8305, section 8
MOST_THREADS = 4
NOWHERE = "does-not-exist.invalid"      # RFC 6761, section 6.4
OVER = ["connected", "failed", "cancelled", "timed out"]


class Place:
    """Somewhere to connect to: a plain socket, which answers when the test says so. family: "ipv4", "ipv6", "unix"."""

    def __init__(self, stage, kind, backlog=16):
        self.kind, self.stage = kind, stage
        self.family = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6, "unix": socket.AF_UNIX}[kind]
        self.socket = stage.own(socket.socket(self.family))
        self.socket.bind({"ipv4": ("127.0.0.1", 0), "ipv6": ("::1", 0), "unix": ""}[kind])
        name = self.socket.getsockname()
        self.address = "\0" + name[1:].decode() if isinstance(name, bytes) else name[:2]
        if backlog >= 0:
            self.socket.listen(backlog)
            self.socket.setblocking(False)

    def accept(self):
        wait_ready(self.socket)
        return self.stage.own(self.socket.accept()[0])


def dead(stage, kind="ipv4"):
    """Nobody listens there."""
    return Place(stage, kind, backlog=-1)


def deaf(stage, kind="ipv4"):
    """Its backlog is full, so the kernel drops whatever asks to connect."""
    place = Place(stage, kind, backlog=0)
    client = stage.own(socket.socket(place.family))
    client.connect(place.address)
    wait_ready(place.socket)
    return place


class Try:
    """A connect and what came of it. Whatever is left of it is gone at the end of the test."""

    def __init__(self, loop, stage, address, log=None, name="stream", then=None, **options):
        self.loop, self.log, self.name = loop, Log() if log is None else log, name
        then = {"on_eof": Stream.close, **(then or {})}
        self.connector = loop.connect(address, lambda: Spy(self.log, name, **then), **options)
        self.stream = self.connector.stream
        stage.callback(self.end)

    def end(self):
        self.connector.cancel()
        self.stream.abort()
        if not self.loop.closed:
            settle(self.loop)

    @property
    def upcalls(self):
        return [what for name, what, _ in self.log if name == self.name]

    @property
    def state(self):
        return self.connector.state

    def turn(self, times=1):
        for _ in range(times):
            self.loop.turn(0)
        return self

    def done(self):
        turn_until(self.loop, lambda: self.state in OVER)
        settle(self.loop)
        return self

    @property
    def error(self):
        """What on_close was told, its only upcall."""
        assert self.upcalls == ["on_close"], self.log
        return self.log.of(self.name)[0][1]


@pytest.fixture(params=["ipv4", "ipv6", "unix"])
def kind(request):
    return request.param


@pytest.fixture(params=["ipv4", "ipv6"])
def tcp(request):
    return request.param


@pytest.fixture
def names(monkeypatch):
    """What getaddrinfo says of each name, instead of what it would: a list of addresses, or an exception."""
    known = {}

    def getaddrinfo(host, port, *arguments, **options):
        found = known[host]
        if isinstance(found, Exception):
            raise found
        return [(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM, 6, "", address)
                for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


@pytest.fixture
def blocked(monkeypatch):
    """getaddrinfo blocks until this is set; then it finds nothing."""
    event = threading.Event()
    asked = []

    def getaddrinfo(host, port, *arguments, **options):
        asked.append(host)
        event.wait()
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    event.asked = asked
    yield event
    event.set()
    names_looked_up()


def resolver_threads():
    return [thread for thread in threading.enumerate() if thread.name == "epollkit resolver"]


def errors_of(connector):
    """The errno of each attempt; None: none."""
    return [getattr(attempt.error, "errno", None) for attempt in connector.attempts]


def watch_connects(clock, seen):
    """A replacement of connect that notes when it was called and for what host, and lets the kernel do it."""
    import ctypes

    start = clock.now_ns

    def connect(fd, pointer, length):
        raw = ctypes.string_at(pointer, length)
        family = struct.unpack_from("H", raw)[0]
        host = (socket.inet_ntop(family, raw[4:8]) if family == socket.AF_INET
                else socket.inet_ntop(family, raw[8:24]))
        seen.append(((clock.now_ns - start) / 1e9, host, struct.unpack_from("!H", raw, 2)[0]))

    return connect


# -- one address -------------------------------------------------------------------------------------------------------

class TestConnected:
    def test_it_opens_in_a_later_turn_and_talks(self, loop, stage, kind):
        place = Place(stage, kind)
        mine = Try(loop, stage, place.address, then={"on_open": lambda stream: stream.write(b"ping")})
        assert mine.log == []
        assert mine.state == "connecting"
        mine.done()
        assert mine.state == "connected"
        far = place.accept()
        wait_ready(far)
        assert far.recv(10) == b"ping"
        far.sendall(b"pong")
        turn_until(loop, lambda: "on_data" in mine.upcalls)
        assert mine.log.of("stream") == [("on_open", None), ("on_data", b"pong")]
        far.close()
        turn_until(loop, lambda: "on_close" in mine.upcalls)
        assert mine.upcalls[-2:] == ["on_eof", "on_close"]

    def test_what_the_connector_tells(self, loop, stage, kind):
        place = Place(stage, kind)
        mine = Try(loop, stage, place.address)
        assert isinstance(mine.connector, Connector)
        assert (mine.connector.stream, mine.connector.address) == (mine.stream, place.address)
        assert repr(mine.connector) == f"<Connector {_sockets.describe(place.address)} connecting>"
        [attempt] = mine.connector.attempts
        assert (attempt.address, attempt.error) == (place.address, None)
        mine.done()
        [attempt] = mine.connector.attempts
        assert isinstance(attempt, Attempt)
        assert (attempt.address, attempt.error) == (place.address, None)
        assert attempt.seconds > 0
        assert mine.stream.loop is loop
        assert mine.stream.token.live

    def test_both_ends_know_each_other(self, loop, stage, tcp):
        place = Place(stage, tcp)
        mine = Try(loop, stage, place.address).done()
        far = place.accept()
        assert mine.stream.peer_address == place.address
        assert mine.stream.local_address == far.getpeername()[:2]

    def test_small_writes_leave_at_once(self, loop, stage, tcp):
        """TCP_NODELAY, as on accepted connections."""
        mine = Try(loop, stage, Place(stage, tcp).address).done()
        with socket.socket(fileno=os.dup(mine.stream.fileno())) as copy:
            assert copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert not os.get_blocking(mine.stream.fileno())
        assert not os.get_inheritable(mine.stream.fileno())

    def test_a_unix_path(self, loop, stage, tmp_path):
        path = tmp_path / "socket"
        listening = stage.own(socket.socket(socket.AF_UNIX))
        listening.bind(str(path))
        listening.listen()
        for address in str(path), os.fsencode(path):
            mine = Try(loop, stage, address).done()
            assert mine.stream.peer_address == str(path)
            assert mine.connector.attempts[0].address == str(path)

    def test_an_address_with_flow_and_scope(self, loop, stage):
        place = Place(stage, "ipv6")
        mine = Try(loop, stage, (*place.address, 0, 0)).done()
        assert mine.upcalls == ["on_open"]
        assert _sockets.checked_target(("fe80::1%lo", 80)) == ("fe80::1", 80, 0, socket.if_nametoindex("lo"))

    def test_from_a_loop_of_ours_to_a_listener_of_ours(self, loop, stage, log, kind, tmp_path):
        address = str(tmp_path / "socket") if kind == "unix" else ("127.0.0.1" if kind == "ipv4" else "::1", 0)
        listener = stage.listen(loop, lambda: Spy(log, "server"), address)
        mine = Try(loop, stage, listener.address, then={"on_open": lambda stream: stream.write(b"hello")})
        turn_until(loop, lambda: ("server", "on_data", b"hello") in log)
        assert mine.state == "connected"

    def test_it_ends_like_any_stream(self, loop, stage, kind):
        """Abort, close, an error: after on_close nothing."""
        place = Place(stage, kind)
        aborted = Try(loop, stage, place.address).done()
        aborted.stream.abort()
        closed = Try(loop, stage, place.address, then={"on_open": Stream.close}).done()
        settle(loop)
        assert aborted.upcalls == closed.upcalls == ["on_open", "on_close"]
        assert loop.stats().live == 0

    @pytest.mark.debug_build
    def test_no_deadline_is_left_over(self, loop, stage, kind):
        """The connector's time ends with the connector: its stream begins with a slot that has none."""
        mine = Try(loop, stage, Place(stage, kind).address)
        index = next(i for i in range(10) if _debug.slot_fields(loop, i)["due_ns"])
        mine.done()
        assert mine.stream.token.index == index
        assert _debug.slot_fields(loop, index)["due_ns"] == 0

    def test_cancelling_what_is_connected_does_nothing(self, loop, stage, kind):
        mine = Try(loop, stage, Place(stage, kind).address).done()
        mine.connector.cancel()
        settle(loop)
        assert (mine.state, mine.upcalls) == ("connected", ["on_open"])

    def test_a_socket_that_fills_up_is_watched_for_room_already(self, loop, stage, tcp):
        """More than the sockets hold: it is queued, and leaves as the peer reads."""
        place = Place(stage, tcp)
        size = 8 << 20
        mine = Try(loop, stage, place.address, then={"on_open": lambda stream: stream.write(bytes(size))}).done()
        far = place.accept()
        far.setblocking(False)
        received = 0
        while received < size:
            loop.turn(0)
            with contextlib.suppress(BlockingIOError):
                received += len(far.recv(1 << 20))
        assert mine.upcalls == ["on_open"]


class TestTls:
    def test_it_opens_after_the_handshake(self, loop, stage, log, certificates, kind, tmp_path):
        """And not at the connect: the upcall that says so is the first one."""
        address = str(tmp_path / "socket") if kind == "unix" else ("127.0.0.1" if kind == "ipv4" else "::1", 0)
        listener = stage.listen(loop, lambda: Spy(log, "server"), address, ssl=certificates.server_context())
        mine = Try(loop, stage, listener.address, ssl=certificates.client_context(), server_hostname="localhost",
                   then={"on_open": lambda stream: stream.write(b"hello")})
        turn_until(loop, lambda: mine.state == "connected")
        assert mine.log == []
        turn_until(loop, lambda: ("server", "on_data", b"hello") in log)
        assert mine.upcalls == ["on_open"]
        assert mine.stream.ssl_object.getpeercert()

    def test_the_host_is_whom_the_certificate_must_be_for(self, loop, stage, log, certificates):
        listener = stage.listen(loop, lambda: Spy(log, "server"), ssl=certificates.server_context())
        mine = Try(loop, stage, ("localhost", listener.address[1]), ssl=certificates.client_context())
        turn_until(loop, lambda: "on_open" in mine.upcalls)
        other = Try(loop, stage, listener.address, ssl=certificates.client_context(), server_hostname="another.test")
        turn_until(loop, lambda: other.upcalls)
        assert isinstance(other.error, ssl.SSLCertVerificationError)
        assert other.state == "connected"

    def test_refused(self, loop, stage, certificates):
        """Before there is anything to shake hands with."""
        mine = Try(loop, stage, dead(stage).address, ssl=certificates.client_context()).done()
        assert mine.error.errno == errno.ECONNREFUSED

    def test_whoever_hears_nothing_has_a_deadline(self, loop, stage, certificates):
        place = Place(stage, "ipv4")
        mine = Try(loop, stage, place.address, ssl=certificates.client_context(), ssl_handshake_timeout=0.001)
        turn_until(loop, lambda: mine.upcalls)
        assert isinstance(mine.error, TimeoutError)

    @pytest.mark.debug_build
    @pytest.mark.parametrize(("timeout", "of_handshake", "seconds"), [(1.0, 10.0, 1.0), (10.0, 0.5, 0.5)])
    def test_a_handshake_has_what_is_left_of_the_time(self, stage, certificates, timeout, of_handshake, seconds):
        with fake_clock() as clock, epollkit.Loop() as loop:
            mine = Try(loop, stage, Place(stage, "ipv4").address, ssl=certificates.client_context(), timeout=timeout,
                       ssl_handshake_timeout=of_handshake)
            turn_until(loop, lambda: mine.state == "connected")
            clock.advance(seconds - 0.01)
            mine.turn()
            assert mine.upcalls == []
            clock.advance(0.03)
            mine.turn()
            assert isinstance(mine.error, TimeoutError)
            stage.close()

    def test_what_it_is_told(self, loop, stage):
        """A context or True; and the host that was asked for, if nothing else is said."""
        context = ssl.create_default_context()
        told = []

        class Secured(Stream):
            def _secure(self, *arguments):
                told.append(arguments)

        place = Place(stage, "ipv4")
        for options in {"ssl": context}, {"ssl": True, "server_hostname": "a.test", "ssl_handshake_timeout": 2.0}:
            stage.callback(loop.connect(place.address, Secured, **options).cancel)
        assert told[0] == (context, False, "127.0.0.1", 10.0)
        assert isinstance(told[1][0], ssl.SSLContext)
        assert told[1][1:] == (False, "a.test", 2.0)
        context.check_hostname = False
        stage.callback(loop.connect(Place(stage, "unix").address, Secured, ssl=context).cancel)
        assert told[2][2] is None
        stage.close()
        settle(loop)

    @pytest.mark.parametrize("options", [
        {"ssl": 5}, {"server_hostname": "a.test"}, {"ssl": True, "ssl_handshake_timeout": None},
        {"ssl": True, "ssl_handshake_timeout": 0}, {"ssl": True, "server_hostname": ".a"},
    ], ids=repr)
    def test_what_can_not_be(self, loop, options):
        with pytest.raises(UsageError) as found:
            loop.connect(("127.0.0.1", 80), Stream, **options)
        assert "\n" not in str(found.value)

    def test_a_unix_socket_needs_a_name_to_check(self, loop):
        with pytest.raises(UsageError, match="server_hostname"):
            loop.connect("/tmp/socket", Stream, ssl=True)


class TestRefused:
    def test_one_failure_with_the_right_errno(self, loop, stage, kind):
        """13. On real sockets; on_close is the only upcall, and the connector says where and why."""
        place = dead(stage, kind)
        mine = Try(loop, stage, place.address)
        assert mine.log == []           # not from inside connect()
        mine.done()
        assert mine.state == "failed"
        error = mine.error
        assert isinstance(error, ConnectError)
        assert isinstance(error, OSError)
        assert isinstance(error, epollkit.EpollkitError)
        assert error.errno == errno.ECONNREFUSED
        assert error.address == place.address
        assert str(error) == f"cannot connect to {_sockets.describe(place.address)}: Connection refused"
        assert mine.connector.attempts == error.attempts
        [attempt] = error.attempts
        assert attempt.address == place.address
        assert isinstance(attempt.error, ConnectionRefusedError)
        assert attempt.seconds > 0
        assert loop.stats().live == 0

    @pytest.mark.debug_build
    def test_the_error_is_read_once(self, loop, stage, tcp):
        """13. SO_ERROR is cleared by reading it: one place looks, once, with read interest on."""
        before = calls()
        mine = Try(loop, stage, dead(stage, tcp).address).done()
        spent = calls() - before
        assert mine.error.errno == errno.ECONNREFUSED
        assert spent["take_error"] == 1
        assert spent["recv"] == spent["send"] == 0
        assert (spent["socket"], spent["connect"], spent["close"]) == (1, 1, 1)

    @pytest.mark.debug_build
    def test_and_when_it_is_connected_too(self, loop, stage, tcp):
        before = calls()
        Try(loop, stage, Place(stage, tcp).address).done()
        spent = calls() - before
        assert spent["take_error"] == 1
        assert spent["epoll_ctl"] == 1          # the stream inherits the registration

    @pytest.mark.debug_build
    @pytest.mark.parametrize("name", ["ECONNREFUSED", "ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH", "ECONNRESET"])
    def test_what_comes_later(self, loop, stage, name):
        """13. What a router or the peer's silence makes of it."""
        code = getattr(errno, name)
        before = calls()
        mine = Try(loop, stage, Place(stage, "ipv4").address)
        with replaced(take_error=lambda fd: code):
            mine.done()
        assert mine.error.errno == code
        assert errors_of(mine.connector) == [code]
        assert (calls() - before)["take_error"] == 1

    @pytest.mark.debug_build
    @pytest.mark.parametrize("operation", ["socket", "bind", "connect", "epoll_ctl"])
    @pytest.mark.parametrize("name", ["EACCES", "ENETUNREACH", "EADDRNOTAVAIL", "ENOMEM"])
    def test_what_fails_at_once(self, loop, stage, operation, name):
        code = getattr(errno, name)
        with replaced(**{operation: lambda *arguments: -code}):
            mine = Try(loop, stage, Place(stage, "ipv4").address, bind="127.0.0.1")
            assert mine.log == []
            assert mine.state == "failed"
        assert loop.stats().live == 0
        mine.done()
        assert mine.error.errno == code

    @pytest.mark.debug_build
    def test_an_interrupted_connect_goes_on(self, loop, stage):
        """connect(2): EINTR means under way; it is not called again."""
        import ctypes
        real = ctypes.CDLL(None, use_errno=True).connect
        before = calls()

        def connect(fd, pointer, length):
            assert real(fd, ctypes.c_void_p(pointer), length) == -1
            assert ctypes.get_errno() == errno.EINPROGRESS
            return -errno.EINPROGRESS       # what ek_connect makes of EINTR

        with replaced(connect=connect):
            mine = Try(loop, stage, Place(stage, "ipv4").address).done()
        assert mine.upcalls == ["on_open"]
        assert (calls() - before)["connect"] == 1

    def test_no_such_unix_socket(self, loop, stage, tmp_path):
        mine = Try(loop, stage, str(tmp_path / "nobody")).done()
        assert mine.error.errno == errno.ENOENT
        assert "No such file or directory" in str(mine.error)

    def test_a_full_unix_backlog(self, loop, stage):
        """16. The kernel says EAGAIN, and means it: failed at once, not pending."""
        before = next_fd()
        place = deaf(stage, "unix")
        fds = len(os.listdir("/proc/self/fd"))
        mine = Try(loop, stage, place.address)
        assert mine.state == "failed"
        assert len(os.listdir("/proc/self/fd")) == fds
        mine.turn()
        assert mine.error.errno == errno.EAGAIN
        assert "backlog is full" in str(mine.error)
        assert loop.stats().live == 0
        assert next_fd() >= before

    def test_a_unix_socket_that_is_none(self, loop, stage, tmp_path):
        (tmp_path / "file").write_text("")
        mine = Try(loop, stage, str(tmp_path / "file")).done()
        assert mine.error.errno == errno.ECONNREFUSED

    def test_unreachable(self):
        """In a network of its own, with routes that reject."""
        code = """
import ctypes, os, shutil, subprocess, sys
if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) != 0:       # CLONE_NEWNET
    sys.exit(print("skip"))
import epollkit
class Note(epollkit.Stream):
    def on_open(self): print("open")
    def on_close(self, error): print(error.errno)
def run(loop, *addresses):
    for address in addresses:
        connector = loop.connect(address, Note)
        while connector.state not in ("failed", "connected"):
            loop.turn(1)
        loop.turn(0)
with epollkit.Loop() as loop:
    run(loop, ("192.0.2.1", 80), ("127.0.0.1", 80))
    ip = shutil.which("ip", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if ip is not None:
        for command in ("link set lo up", "route add unreachable 192.0.2.0/24", "route add prohibit 198.51.100.0/24",
                        "-6 route add unreachable 2001:db8::/32"):
            if subprocess.run([ip, *command.split()], stderr=subprocess.DEVNULL).returncode:
                sys.exit()
        run(loop, ("192.0.2.1", 80), ("198.51.100.1", 80), ("2001:db8::1", 80))
"""
        told = in_child(code).split()
        if told == ["skip"]:
            pytest.skip("no network namespace without privileges")
        assert told[:2] == [str(errno.ENETUNREACH)] * 2
        assert told[2:] in ([], [str(errno.EHOSTUNREACH), str(errno.EACCES), str(errno.EHOSTUNREACH)])

    def test_a_connection_to_itself(self, loop, stage, tcp):
        """A port that nobody listens on, and that is our own: the kernel calls it connected."""
        host, port = dead(stage, tcp).address
        stage.pop_all().close()             # the port is free again
        mine = Try(loop, stage, (host, port), bind=(host, port)).done()
        assert mine.state == "failed"
        assert mine.error.errno == errno.ECONNREFUSED

    def test_a_connection_to_itself_by_way_of_any_address(self, loop, stage):
        """0.0.0.0 is not what the socket's peer is called then."""
        port = dead(stage).address[1]
        stage.pop_all().close()
        mine = Try(loop, stage, ("0.0.0.0", port), bind=("127.0.0.1", port)).done()
        assert mine.error.errno == errno.ECONNREFUSED

    def test_the_same_port_at_another_address_is_somebody_else(self, loop, stage):
        place = Place(stage, "ipv4")
        mine = Try(loop, stage, place.address, bind=("127.0.0.2", place.address[1])).done()
        assert mine.upcalls == ["on_open"]

    def test_the_stream_knows_its_loop_when_it_is_told(self, loop, stage):
        """So it can try again."""
        address = dead(stage).address
        left = [3]

        class Again(Stream):
            def on_close(self, error):
                left[0] -= 1
                if left[0]:
                    self.loop.connect(address, Again)

        loop.connect(address, Again)
        turn_until(loop, lambda: left[0] == 0)


class TestGoneBeforeWeLook:
    def test_connected_answered_and_gone_in_one_event(self, loop, stage, kind):
        """14. Open, then the answer, then the end; and the event that said so comes once."""
        place = Place(stage, kind)
        fd = next_fd()
        mine = Try(loop, stage, place.address)
        far = place.accept()
        far.sendall(b"answer")
        far.close()
        wait_ready(fd, READ_ENDS)
        mine.turn(3)
        assert mine.log.of("stream") == [
            ("on_open", None), ("on_data", b"answer"), ("on_eof", None), ("on_close", None)]
        assert mine.state == "connected"

    def test_the_answer_is_delivered_in_the_turn_of_the_event(self, loop, stage, tcp):
        """14. Nothing waits for a further edge: there is none."""
        place = Place(stage, tcp)
        fd = next_fd()
        mine = Try(loop, stage, place.address)
        far = place.accept()
        far.sendall(b"answer")
        far.close()
        wait_ready(fd, READ_ENDS)
        assert mine.turn().upcalls == ["on_open", "on_data", "on_eof", "on_close"]

    def test_an_exception_in_on_open_ends_it_and_is_reported_once(self, loop, stage, kind):
        reported = []
        loop.set_exception_handler(lambda error, source: reported.append((error, source)))
        place = Place(stage, kind)
        mine = Try(loop, stage, place.address, then={"on_open": lambda stream: 1 / 0}).done()
        assert mine.upcalls == ["on_open", "on_close"]
        [(error, source)] = reported
        assert isinstance(error, ZeroDivisionError)
        assert source is mine.stream
        assert mine.log.of("stream")[-1][1] is error

    def test_an_interrupt_in_on_open_loses_nothing(self, loop, stage, kind):
        """14. Ctrl-C leaves turn(); the answer and the end come in the next one."""
        def interrupt(stream):
            raise KeyboardInterrupt

        place = Place(stage, kind)
        fd = next_fd()
        mine = Try(loop, stage, place.address, then={"on_open": interrupt})
        far = place.accept()
        far.sendall(b"answer")
        far.close()
        wait_ready(fd, READ_ENDS)
        with pytest.raises(KeyboardInterrupt):
            loop.turn(0)
        settle(loop)
        assert mine.upcalls == ["on_open", "on_data", "on_eof", "on_close"]

    def test_reset_while_connecting(self, loop, stage, tcp):
        """The listener goes, with us in its queue."""
        place = Place(stage, tcp)
        fd = next_fd()
        mine = Try(loop, stage, place.address)
        place.socket.close()
        wait_ready(fd, select.POLLHUP | select.POLLERR)
        mine.done()
        assert mine.error.errno == errno.ECONNRESET

    def test_reset_in_the_queue_of_a_unix_socket(self, loop, stage):
        """Connected at once, so it is the stream that is told."""
        place = Place(stage, "unix")
        mine = Try(loop, stage, place.address)
        place.socket.close()
        mine.done()
        assert mine.upcalls == ["on_open", "on_error", "on_close"]
        assert mine.log.of("stream")[-1][1].errno == errno.ECONNRESET

    @pytest.mark.debug_build
    def test_hup_without_an_error_is_no_verdict(self, loop, stage):
        """15. Of a socket that is not connected to anything the kernel says OUT and HUP. Then it connects."""
        import ctypes
        libc = ctypes.CDLL(None)
        place = Place(stage, "ipv4")
        before = calls()
        wanted = []
        with replaced(connect=lambda *arguments: wanted.append(arguments) or -errno.EINPROGRESS):
            mine = Try(loop, stage, place.address)
        fd, pointer, length = wanted[0]
        for _ in range(3):
            mine.turn()
            assert mine.state == "connecting"
        assert (calls() - before)["take_error"] == 0
        with socket.socket(fileno=os.dup(fd)) as copy:
            copy.setblocking(False)
            assert copy.connect_ex(place.address) == errno.EINPROGRESS
        mine.done()
        assert mine.upcalls == ["on_open"]
        assert (calls() - before)["take_error"] == 1
        del libc, pointer, length

    @pytest.mark.debug_build
    def test_an_error_that_somebody_else_has_read_is_still_one(self, loop, stage):
        """Who asks second is told 0. The event said ERR, and there is no peer."""
        mine = Try(loop, stage, dead(stage).address)
        with replaced(take_error=lambda fd: 0):
            mine.done()
        assert mine.error.errno == errno.ENOTCONN


class TestNeverAnswering:
    def test_it_stays_connecting(self, loop, stage, tcp):
        mine = Try(loop, stage, deaf(stage, tcp).address).turn(5)
        assert mine.state == "connecting"
        assert mine.log == []
        assert loop.stats().live == 1

    def test_the_deadline_ends_it(self, loop, stage, tcp):
        place = deaf(stage, tcp)
        mine = Try(loop, stage, place.address, timeout=0.01).done()
        assert mine.state == "timed out"
        assert mine.error.errno == errno.ETIMEDOUT
        assert str(mine.error) == f"cannot connect to {_sockets.describe(place.address)}: Connection timed out"
        [attempt] = mine.connector.attempts
        assert isinstance(attempt.error, TimeoutError)
        assert attempt.seconds >= 0.01
        assert loop.stats().live == 0

    def test_cancelled(self, loop, stage, tcp):
        fds = len(os.listdir("/proc/self/fd"))
        place = deaf(stage, tcp)
        opened = len(os.listdir("/proc/self/fd")) - fds
        mine = Try(loop, stage, place.address)
        mine.connector.cancel()
        assert mine.state == "cancelled"
        assert len(os.listdir("/proc/self/fd")) == fds + opened     # closed at once
        assert mine.log == []                                       # and told at the end of the turn
        mine.connector.cancel()
        mine.turn()
        assert mine.error is None
        assert errors_of(mine.connector) == [errno.ECANCELED]

    def test_cancelled_before_its_first_turn(self, loop, stage, kind):
        mine = Try(loop, stage, Place(stage, kind).address)
        mine.connector.cancel()
        settle(loop)
        assert mine.error is None

    def test_cancelled_by_whoever_comes_first_in_the_batch(self, loop, stage, tcp, log):
        """Its own event, in the same batch, is stale by then."""
        place = Place(stage, tcp)
        event = stage.event()
        stage.watch(loop, event, epollkit.IN, log.handler("x", lambda: mine.connector.cancel()))
        settle(loop)
        event.fire()
        mine = Try(loop, stage, place.address)
        mine.turn()
        assert mine.error is None
        assert loop.stats().stale_closed == 1

    @pytest.mark.debug_build
    def test_the_deadline_to_the_nanosecond(self, stage):
        with fake_clock() as clock, epollkit.Loop() as loop:
            place = deaf(stage)
            mine = Try(loop, stage, place.address, timeout=3.0)
            clock.advance(3 - 1e-9)
            assert mine.turn().state == "connecting"
            clock.advance(1e-9)
            assert mine.turn().state == "timed out"
            assert mine.connector.attempts[0].seconds == 3.0
            stage.close()


class TestStaleEvents:
    """3. What is left in the batch of somebody who had the fd and the slot before never reaches a connecting socket."""

    def reuse(self, loop, stage, log, connects):
        """A batch [X, A], of which A's event is OUT, IN, ERR and HUP; X's handler closes A and connects so often, to
        where nobody answers, each time cancelling the one before. Returns the last connector."""
        place = deaf(stage)
        made = []

        def swap():
            fd = stream.fileno()
            stream.abort()
            for _ in range(connects):
                if made:
                    made[-1].connector.cancel()
                made.append(Try(loop, stage, place.address))
            assert os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"), "another fd was handed out"

        event = stage.event()
        stage.watch(loop, event, epollkit.IN, log.handler("x", swap))
        stream = Spy(log, "a")
        client = stage.stream(loop, stream)
        stage.fill_fd_holes(stream.fileno())
        settle(loop)
        event.fire()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        wait_ready(stream.fileno(), select.POLLHUP | select.POLLERR)
        loop.turn(0)
        return made[-1]

    @pytest.mark.parametrize("connects", [1, 2, 3])
    def test_it_stays_connecting(self, loop, stage, log, connects):
        """3. Close A, connect: A's fd, A's slot; A's event says ERR, and is dropped."""
        mine = self.reuse(loop, stage, log, connects)
        assert mine.state == "connecting"
        settle(loop)
        assert (mine.state, mine.log) == ("connecting", [])
        assert loop.stats().stale_recycled == 1

    def test_one_bit_of_generation_is_fooled(self, stage, log):
        """3. The control: at the second reuse nginx's bit is what it was, and a connect that is under way fails."""
        with epollkit.Loop(instance_bits=1) as loop:
            mine = self.reuse(loop, stage, log, 2)
            assert mine.state == "failed"
            stats = loop.stats()
            assert (stats.wrong_deliveries, stats.wrong_kills) == (1, 1)
            stage.close()


# -- where from --------------------------------------------------------------------------------------------------------

class TestBind:
    @pytest.mark.parametrize("port", [None, 0])
    def test_a_host(self, loop, stage, port):
        place = Place(stage, "ipv4")
        mine = Try(loop, stage, place.address, bind="127.0.0.9" if port is None else ("127.0.0.9", port)).done()
        assert mine.stream.local_address[0] == "127.0.0.9"
        assert place.accept().getpeername() == mine.stream.local_address

    def test_ipv6(self, loop, stage):
        mine = Try(loop, stage, Place(stage, "ipv6").address, bind="::1").done()
        assert mine.stream.local_address[0] == "::1"

    def test_a_port(self, loop, stage, tcp):
        place = Place(stage, tcp)
        host, port = dead(stage, tcp).address
        stage.enter_context(contextlib.suppress(OSError))
        stage.pop_all().close()
        place = Place(stage, tcp)
        mine = Try(loop, stage, place.address, bind=(host, port)).done()
        assert mine.stream.local_address == (host, port)

    def test_a_port_that_is_taken(self, loop, stage, tcp):
        place = Place(stage, tcp)
        mine = Try(loop, stage, place.address, bind=place.address).done()
        assert mine.error.errno == errno.EADDRINUSE
        assert f"bind to {place.address[0]}, port {place.address[1]}" in str(mine.error)

    def test_an_address_that_is_not_ours(self, loop, stage):
        mine = Try(loop, stage, Place(stage, "ipv4").address, bind="192.0.2.1").done()
        assert mine.error.errno == errno.EADDRNOTAVAIL

    def test_of_another_family(self, loop, stage):
        mine = Try(loop, stage, Place(stage, "ipv4").address, bind="::1").done()
        assert mine.error.errno == errno.EAFNOSUPPORT
        assert "another address family" in str(mine.error)

    @pytest.mark.debug_build
    def test_a_port_that_the_kernel_chooses_is_chosen_by_connect(self, loop, stage, tcp):
        """IP_BIND_ADDRESS_NO_PORT: two connections from one address to two places may share a port. After bind() there
        is none yet."""
        seen = []

        def connect(fd, pointer, length):
            with socket.socket(fileno=os.dup(fd)) as copy:
                seen.append(copy.getsockname()[1])

        with replaced(connect=connect):
            place = Place(stage, tcp)
            mine = Try(loop, stage, place.address, bind=place.address[0])
        mine.done()
        assert seen == [0]
        assert mine.stream.local_address[1] > 0


class TestUsage:
    @pytest.mark.parametrize("address", [
        None, 5, "", b"", (), ("127.0.0.1",), ("127.0.0.1", 1, 2), ("127.0.0.1", "80"), ("127.0.0.1", True), (5, 80),
        ("127.0.0.1", 0), ("127.0.0.1", 65536), ("127.0.0.1", -1), ("", 80), ("a\0b", 80), ("127.0.0.1\0", 80),
        ["127.0.0.1", 80], "x" * 108, "\0" + "x" * 107, "a\0b", ("::1", 80, 0, -1), ("::1", 80, 2**32, 0),
        ("::1", 80, 0, "lo"), ("127.0.0.1", 80.0),
    ], ids=repr)
    def test_an_address_that_is_none(self, loop, address):
        with pytest.raises(UsageError) as found:
            loop.connect(address, Stream)
        assert "\n" not in str(found.value)
        assert loop.stats().live == 0

    @pytest.mark.parametrize("address", ["x" * 107, "\0" + "x" * 106])
    def test_a_path_as_long_as_can_be(self, loop, stage, address):
        mine = Try(loop, stage, address).done()
        assert mine.error.errno in (errno.ENOENT, errno.ECONNREFUSED)

    @pytest.mark.parametrize("bind", [5, (), "localhost", ("127.0.0.1",), ("127.0.0.1", -1), ("127.0.0.1", 65536),
                                      ("127.0.0.1", "80"), ("127.0.0.1", True), (5, 80), "", "\ud800", "127.0.0.1\0"])
    def test_a_bind_that_is_none(self, loop, bind):
        with pytest.raises(UsageError):
            loop.connect(("127.0.0.1", 80), Stream, bind=bind)

    def test_a_unix_socket_has_no_bind(self, loop):
        with pytest.raises(UsageError, match="unix"):
            loop.connect("/tmp/socket", Stream, bind="127.0.0.1")

    @pytest.mark.parametrize("timeout", [None, 0, 0.0, -1, "3", float("nan")])
    def test_a_timeout_that_is_none(self, loop, timeout):
        with pytest.raises(UsageError):
            loop.connect(("127.0.0.1", 80), Stream, timeout=timeout)

    def test_what_the_factory_makes(self, loop, stage):
        place = Place(stage, "ipv4")
        with pytest.raises(UsageError, match="called without arguments"):
            loop.connect(place.address, 5)
        with pytest.raises(UsageError, match="not a stream"):
            loop.connect(place.address, dict)
        with pytest.raises(ZeroDivisionError):
            loop.connect(place.address, lambda: 1 / 0)
        assert loop.stats().live == 0

    def test_a_stream_is_used_once(self, loop, stage):
        place = Place(stage, "ipv4")
        mine = Try(loop, stage, place.address)
        for _ in range(2):
            with pytest.raises(UsageError, match="used for another connection"):
                loop.connect(place.address, lambda: mine.stream)
            mine.done()

    def test_until_it_is_open_it_takes_nothing(self, loop, stage):
        mine = Try(loop, stage, Place(stage, "ipv4").address)
        with pytest.raises(UsageError):
            mine.stream.write(b"x")
        with pytest.raises(UsageError):
            _ = mine.stream.loop

    def test_a_closed_loop_and_another_thread(self, stage):
        place = Place(stage, "ipv4")
        loop = epollkit.Loop()
        with pytest.raises(UsageError, match="another thread"):
            in_thread(lambda: loop.connect(place.address, Stream))
        connector = loop.connect(place.address, Stream)
        with pytest.raises(UsageError, match="another thread"):
            in_thread(connector.cancel)
        loop.close()
        with pytest.raises(UsageError, match="closed"):
            loop.connect(place.address, Stream)
        assert connector.state == "cancelled"
        connector.cancel()

    @pytest.mark.parametrize("address", [None, (NOWHERE, 80)], ids=["numeric", "name"])
    def test_a_factory_that_closes_the_loop(self, stage, address):
        loop = epollkit.Loop()

        def make():
            loop.close()
            return Stream()

        with pytest.raises(UsageError, match="closed"):
            loop.connect(address or Place(stage, "ipv4").address, make)

    def test_nobody_makes_them_by_hand(self):
        with pytest.raises(UsageError):
            Connector()
        with pytest.raises(UsageError):
            _connector.Approach()

    def test_the_error_can_be_pickled(self, loop, stage):
        error = Try(loop, stage, dead(stage).address).done().error
        copy = pickle.loads(pickle.dumps(error))
        assert (str(copy), copy.errno, copy.address) == (str(error), error.errno, error.address)
        assert [attempt.address for attempt in copy.attempts] == [error.address]


class TestLimits:
    def test_every_socket_under_way_counts(self, stage, log):
        """The attempt fails, and so does the connect if it was the only one; connect() itself does not."""
        with epollkit.Loop(max_connections=1) as loop:
            first = Try(loop, stage, deaf(stage).address)
            second = Try(loop, stage, Place(stage, "ipv4").address)
            assert (first.state, second.state) == ("connecting", "failed")
            settle(loop)
            [attempt] = second.error.attempts
            assert isinstance(attempt.error, LimitReached)
            assert second.error.errno is None
            assert "max_connections=1" in str(second.error)
            stage.close()

    def test_whoever_waits_for_room_hears_of_one_that_failed(self, stage, log):
        """A listener rests at the limit; a connect gives its place back."""
        with epollkit.Loop(max_connections=1) as loop:
            listener = stage.listen(loop, lambda: Spy(log, "served"))
            mine = Try(loop, stage, deaf(stage).address)
            stage.connect(listener)
            settle(loop)
            assert listener.pauses == 1
            mine.connector.cancel()
            settle(loop)
            assert log.of("served") == [("on_open", None)]
            stage.close()

    def test_no_descriptors(self, loop, stage):
        import resource
        place = Place(stage, "ipv4")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_fd(), hard))
        try:
            mine = Try(loop, stage, place.address)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert mine.done().error.errno == errno.EMFILE


class TestTheLoopGoes:
    """Whoever is under way when it ends."""

    def test_closed(self, stage, blocked):
        """on_close(None), as for every connection; the answer that is not there yet reaches nobody."""
        loop = epollkit.Loop()
        address = deaf(stage).address
        under_way = [Try(loop, stage, where) for where in (address, Place(stage, "unix").address, ("a.test", 80))]
        connecting, at_once, resolving = under_way
        assert [mine.state for mine in under_way] == ["connecting", "connecting", "resolving"]
        loop.close()
        assert [mine.state for mine in under_way] == ["cancelled"] * 3
        assert connecting.error is at_once.error is resolving.error is None
        blocked.set()
        names_looked_up()

    def test_closing_it_from_inside_a_turn_changes_nothing(self, loop, stage, log, blocked):
        mine = Try(loop, stage, ("a.test", 80))

        def close():
            with pytest.raises(UsageError, match="inside a turn"):
                loop.close()

        loop.call_soon(close)
        mine.turn()
        assert mine.state == "resolving"

    def test_dropped(self, stage, blocked):
        """Without upcalls; nothing of it is left. (Whoever keeps a connector that is under way keeps its loop.)"""
        loop = epollkit.Loop()
        log = Log()
        made = [loop.connect(address, lambda: Spy(log, "stream")).stream
                for address in (deaf(stage).address, ("a.test", 80))]
        gone = weakref.ref(loop)
        with pytest.warns(ResourceWarning):
            del loop
            gc.collect()
        assert gone() is None
        assert log == []
        for stream in made:
            with pytest.raises(UsageError):
                _ = stream.loop
        blocked.set()
        names_looked_up()

    @pytest.mark.parametrize("address", [None, ("a.test", 80)], ids=["connecting", "resolving"])
    def test_dropped_and_only_its_own_stream_refers_to_it(self, stage, blocked, certificates, address):
        """By way of what it has for TLS, which is in C memory, where the collector does not look by itself."""
        loop = epollkit.Loop()
        connector = loop.connect(address or deaf(stage).address, Stream, ssl=certificates.client_context(),
                                 server_hostname="a.test")
        connector.stream.ssl_object.owner = loop
        gone = weakref.ref(loop)
        del connector
        with pytest.warns(ResourceWarning):
            del loop
            gc.collect()
        assert gone() is None

    def test_its_fd_is_closed_behind_its_back(self, loop, stage, log):
        """The attempt is over; the number is somebody else's by now and is left alone."""
        place = deaf(stage)
        fd = next_fd()
        mine = Try(loop, stage, place.address)
        os.close(fd)
        event = stage.event()
        assert event.fileno() == fd
        stage.watch(loop, event, epollkit.IN, log.handler("event"))
        mine.turn(2)
        assert mine.error.errno == errno.EBADF
        event.fire()
        settle(loop)
        assert log.names == ["event"]

    @pytest.mark.parametrize("nth", range(1, 30))
    def test_a_finalizer_cancels_what_is_just_beginning(self, loop, stage, nth):
        """Any allocation may run the collector, and that anything: here all of it is cancelled."""
        address = dead(stage).address
        made = []

        def interfere():
            for mine in made:
                mine.connector.cancel()

        with finalizer_at_next_allocation(interfere, nth):
            for where in address, dead(stage, "unix").address, Place(stage, "ipv4").address:
                made.append(Try(loop, stage, where))
            settle(loop)
        settle(loop)
        assert all(mine.state in OVER for mine in made)
        assert all(mine.upcalls in (["on_close"], ["on_open"]) for mine in made)

    @pytest.mark.parametrize("nth", range(1, 25))
    def test_a_finalizer_closes_the_loop_that_begins_to_connect(self, stage, nth):
        """Told in a sentence, or told by on_close; and nothing is left."""
        place = Place(stage, "ipv4")
        loop = epollkit.Loop()
        log = Log()
        refused = False
        with finalizer_at_next_allocation(loop.close, nth):
            try:
                loop.connect(place.address, lambda: Spy(log, "stream"))
            except UsageError:
                refused = True
        loop.close()
        assert [entry[1] for entry in log] == ([] if refused else ["on_close"])


# -- names -------------------------------------------------------------------------------------------------------------

class TestNames:
    def test_localhost(self, loop, stage):
        """The real getaddrinfo, in a thread: the loop goes on."""
        place = Place(stage, "ipv4")
        mine = Try(loop, stage, ("localhost", place.address[1]))
        assert mine.state == "resolving"
        assert mine.connector.attempts == ()
        mine.done()
        assert mine.upcalls == ["on_open"]
        assert mine.stream.peer_address == place.address
        assert mine.connector.attempts[-1].address == place.address
        assert mine.connector.address == ("localhost", place.address[1])

    def test_a_name_that_does_not_exist(self, loop, stage):
        mine = Try(loop, stage, (NOWHERE, 80)).done()
        assert mine.state == "failed"
        assert mine.error.errno is None
        [attempt] = mine.error.attempts
        assert attempt.address == (NOWHERE, 80)
        assert isinstance(attempt.error, socket.gaierror)
        assert attempt.error.strerror in str(mine.error)
        assert str(mine.error).startswith(f"cannot connect to {NOWHERE}:80: ")

    @pytest.mark.parametrize("host", ["a" * 64 + ".test", "..", "\ud800", "fe80::1%no-such-interface"])
    def test_what_is_no_name(self, loop, stage, host):
        mine = Try(loop, stage, (host, 80)).done()
        assert mine.state == "failed"
        assert isinstance(mine.error.attempts[0].error, socket.gaierror)

    @pytest.mark.parametrize("address", [
        ("127.0.0.1", 80), ("::1", 80), ("::ffff:127.0.0.1", 80), "/nowhere", "\0none"])
    def test_what_needs_no_look_up_touches_no_thread(self, loop, stage, monkeypatch, address):
        def getaddrinfo(*arguments, **options):
            raise AssertionError("looked up")

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        mine = Try(loop, stage, address)
        assert mine.state != "resolving"
        assert not resolver_threads()
        mine.connector.cancel()

    def test_a_slow_resolver_holds_up_nobody(self, loop, stage, blocked):
        slow = Try(loop, stage, ("a.test", 80))
        quick = Try(loop, stage, Place(stage, "ipv4").address).done()
        assert (slow.state, quick.state) == ("resolving", "connected")
        blocked.set()
        slow.done()
        assert slow.state == "failed"

    def test_an_answer_after_the_cancel(self, loop, stage, blocked):
        mine = Try(loop, stage, ("a.test", 80))
        mine.connector.cancel()
        assert mine.turn().error is None
        assert mine.connector.attempts == ()
        blocked.set()
        names_looked_up()
        settle(loop)
        assert (mine.state, mine.upcalls, mine.connector.attempts) == ("cancelled", ["on_close"], ())
        assert loop.stats().timers == 0

    def test_an_answer_after_the_deadline(self, loop, stage, blocked):
        mine = Try(loop, stage, ("a.test", 80), timeout=0.01).done()
        assert mine.state == "timed out"
        assert mine.error.errno == errno.ETIMEDOUT
        assert str(mine.error) == "cannot connect to a.test:80: its name was not looked up in time"
        blocked.set()
        names_looked_up()
        settle(loop)
        assert mine.upcalls == ["on_close"]

    def test_an_answer_for_one_that_has_gone_is_not_anothers(self, loop, stage, monkeypatch):
        """The questions are numbered."""
        places = {name: Place(stage, "ipv4") for name in ("a.test", "b.test")}
        may_answer = {name: threading.Event() for name in places}

        def getaddrinfo(host, port, *arguments, **options):
            may_answer[host].wait()
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", places[host].address)]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        first = Try(loop, stage, ("a.test", 80))
        first.connector.cancel()
        second = Try(loop, stage, ("b.test", 80))
        may_answer["a.test"].set()
        loop.turn()                         # the answer wakes the loop
        assert second.state == "resolving"
        may_answer["b.test"].set()
        second.done()
        assert second.stream.peer_address == places["b.test"].address
        assert first.upcalls == ["on_close"]

    def test_at_most_four_threads(self, loop, stage, blocked):
        tries = [Try(loop, stage, (f"{i}.test", 80)) for i in range(MOST_THREADS + 3)]
        assert len(resolver_threads()) == MOST_THREADS
        assert all(thread.daemon for thread in resolver_threads())
        blocked.set()
        for mine in tries:
            mine.done()
        assert sorted(blocked.asked) == sorted(f"{i}.test" for i in range(MOST_THREADS + 3))

    def test_so_many_wait_and_no_more(self, loop, stage, blocked, monkeypatch):
        """The connect fails as any other, and the ones before it go on."""
        monkeypatch.setattr(_resolver, "WAITING_LIMIT", 2)
        tries = [Try(loop, stage, (f"{i}.test", 80)) for i in range(MOST_THREADS + 2)]
        mine = Try(loop, stage, ("too-many.test", 80))
        assert mine.state == "failed"
        mine.turn()
        [attempt] = mine.error.attempts
        assert isinstance(attempt.error, LimitReached)
        assert "2 host names wait" in str(mine.error)
        assert all(other.state == "resolving" for other in tries)

    @pytest.mark.parametrize("error", [RuntimeError, MemoryError])
    def test_no_thread_to_be_had(self, loop, stage, names, error):
        def start(self):
            raise error("can't start new thread")

        names["a.test"] = socket.gaierror(socket.EAI_NONAME, "not known")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            mine = Try(loop, stage, ("a.test", 80)).turn()
        assert mine.state == "failed"
        assert "can't start new thread" in str(mine.error)
        assert Try(loop, stage, ("a.test", 80)).done().state == "failed", "and not timed out: there is one"

    @pytest.mark.parametrize(("where", "state"), [("put", "failed"), ("get", "failed"), ("look_up", "timed out")])
    def test_a_resolver_without_memory_goes_on_when_there_is_some(self, loop, stage, names, monkeypatch, where, state):
        """Who has asked is told, or ends when its own time is up; nothing is counted that is not there any more."""
        left = [MemoryError("no memory")]

        def fail_in(name, arguments):
            if name == where and left:
                raise left.pop()
            return real[name](*arguments)

        class Questions:
            empty = _resolver._pool.questions.empty
            get = staticmethod(lambda timeout: fail_in("get", (True, timeout)))
            put = staticmethod(lambda question: fail_in("put", (question,)))

        names["a.test"] = socket.gaierror(socket.EAI_NONAME, "not known")
        pool = _resolver._pool
        real = {"get": pool.questions.get, "put": pool.questions.put, "look_up": _resolver.look_up}
        monkeypatch.setattr(pool, "questions", Questions)
        monkeypatch.setattr(_resolver, "look_up", lambda *arguments: fail_in("look_up", arguments))
        mine = Try(loop, stage, ("a.test", 80), timeout=0.01 if state == "timed out" else 10).done()
        assert (mine.state, left) == (state, [])
        assert Try(loop, stage, ("a.test", 80)).done().state == "failed"
        names_looked_up()
        assert (pool.threads, pool.unanswered) == (0, 0)

    def test_a_thread_that_is_idle_serves_the_next(self, loop, stage, names, monkeypatch):
        monkeypatch.setattr(_resolver, "IDLE_SECONDS", 20.0)
        names["a.test"] = socket.gaierror(socket.EAI_NONAME, "not known")
        try:
            for _ in range(5):
                Try(loop, stage, ("a.test", 80)).done()
                turn_until(loop, lambda: _resolver._pool.unanswered == 0 or not os.sched_yield())
            assert len(resolver_threads()) == 1
        finally:
            monkeypatch.setattr(_resolver, "IDLE_SECONDS", 0.0)
            Try(loop, stage, ("a.test", 80)).done()         # and then it ends

    def test_a_name_without_an_address(self, loop, stage, names):
        names["a.test"] = []
        assert "no address" in str(Try(loop, stage, ("a.test", 80)).done().error)

    def test_what_getaddrinfo_raises_by_mistake(self, loop, stage, names):
        names["a.test"] = MemoryError("no memory")
        mine = Try(loop, stage, ("a.test", 80)).done()
        assert isinstance(mine.error.attempts[0].error, MemoryError)

    def test_a_forked_child_looks_up_names_of_its_own(self):
        """Its parent's threads are not there, and one of them had the lock, or a question."""
        code = """
import os, socket, sys, threading
import epollkit
from epollkit import _resolver
real, event = socket.getaddrinfo, threading.Event()
socket.getaddrinfo = lambda *arguments, **options: event.wait()
class Note(epollkit.Stream):
    def on_close(self, error):
        print(type(error.attempts[0].error).__name__, flush=True)
        self.loop.stop()
with epollkit.Loop() as loop:
    for i in range(6):
        loop.connect((f"{i}.test", 80), Note)
    _resolver._pool.lock.acquire()
    pid = os.fork()
    if pid == 0:
        socket.getaddrinfo = real
        with epollkit.Loop() as mine:
            mine.connect(("does-not-exist.invalid", 80), Note)
            mine.run()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    os._exit(0)
"""
        assert in_child(code).split() == ["gaierror"]

    def test_the_process_ends_although_a_look_up_hangs(self):
        code = """
import socket, threading
import epollkit
socket.getaddrinfo = lambda *arguments, **options: threading.Event().wait()
loop = epollkit.Loop()
connector = loop.connect(("a.test", 80), epollkit.Stream)
loop.turn(0)
loop.close()
print(connector.state)
"""
        assert in_child(code).split() == ["cancelled"]


class TestTakeTurns:
    def found(self, *hosts):
        return [(socket.AF_INET6 if ":" in host else socket.AF_INET, 1, 6, "", (host, 80)) for host in hosts]

    @pytest.mark.parametrize(("found", "order"), [
        ([], []),
        (["::1"], ["::1"]),
        (["::1", "::2", "::3", "1.1.1.1"], ["::1", "1.1.1.1", "::2", "::3"]),
        (["1.1.1.1", "2.2.2.2", "::1", "::2"], ["1.1.1.1", "::1", "2.2.2.2", "::2"]),
        (["::1", "::1", "1.1.1.1", "1.1.1.1"], ["::1", "1.1.1.1"]),
    ])
    def test_the_families_take_turns(self, found, order):
        """RFC 8305, section 4: the preferred family first, and within one the order that getaddrinfo gave."""
        assert [host for host, _ in _resolver.take_turns(self.found(*found))] == order

    def test_another_family_is_left_out(self):
        assert _resolver.take_turns([(socket.AF_UNIX, 1, 0, "", "x"), *self.found("::1")]) == [("::1", 80)]


# -- several addresses -------------------------------------------------------------------------------------------------

class TestHappyEyeballs:
    def test_the_first_family_is_refused(self, loop, stage, names):
        """The next address at once, without any delay."""
        place, nobody = Place(stage, "ipv4"), dead(stage, "ipv6")
        names["a.test"] = [nobody.address, place.address]
        mine = Try(loop, stage, ("a.test", 80)).done()
        assert mine.stream.peer_address == place.address
        assert [(attempt.address, getattr(attempt.error, "errno", None)) for attempt in mine.connector.attempts] == [
            (nobody.address, errno.ECONNREFUSED), (place.address, None)]

    def test_all_are_refused(self, loop, stage, names):
        """One failure, which names them all."""
        places = [dead(stage, kind) for kind in ("ipv6", "ipv6", "ipv4")]
        names["a.test"] = [place.address for place in places]
        mine = Try(loop, stage, ("a.test", 80)).done()
        assert mine.state == "failed"
        assert errors_of(mine.connector) == [errno.ECONNREFUSED] * 3
        assert mine.error.errno == errno.ECONNREFUSED
        assert [attempt.address for attempt in mine.error.attempts] == [places[i].address for i in (0, 2, 1)]
        assert str(mine.error) == "cannot connect to a.test:80: " + "; ".join(
            f"{_sockets.describe(places[i].address)}: Connection refused" for i in (0, 2, 1))

    @pytest.mark.debug_build
    def test_the_first_family_never_answers(self, stage, names):
        """After 250 ms the other family is tried as well; it wins, and the first is closed."""
        with fake_clock() as clock, epollkit.Loop() as loop:
            silent, place = deaf(stage, "ipv6"), Place(stage, "ipv4")
            names["a.test"] = [silent.address, place.address]
            mine = Try(loop, stage, ("a.test", 80))
            names_looked_up()
            mine.turn()
            clock.advance(DELAY_SECONDS - 1e-6)
            assert len(mine.turn().connector.attempts) == 1
            clock.advance(1e-6)
            mine.turn()
            settle(loop)
            assert mine.state == "connected"
            assert mine.stream.peer_address == place.address
            assert errors_of(mine.connector) == [errno.ECANCELED, None]
            assert loop.stats().live == 1
            stage.close()

    @pytest.mark.debug_build
    def test_the_first_family_is_slow_and_still_wins(self, stage, names):
        """The others are under way by then; they are closed, without a word."""
        import ctypes
        real = ctypes.CDLL(None, use_errno=True).connect
        with fake_clock() as clock, epollkit.Loop() as loop:
            slow, silent = Place(stage, "ipv6"), deaf(stage)
            names["a.test"] = [slow.address, silent.address]
            wanted = []

            def connect(fd, pointer, length):
                if wanted:
                    return None
                wanted.append((fd, ctypes.string_at(pointer, length)))
                return -errno.EINPROGRESS

            with replaced(connect=connect):
                mine = Try(loop, stage, ("a.test", 80))
                names_looked_up()
                mine.turn()
                clock.advance(DELAY_SECONDS)
                mine.turn()
            assert len(mine.connector.attempts) == 2
            fd, address = wanted[0]
            real(fd, address, len(address))
            settle(loop)
            assert mine.state == "connected"
            assert mine.stream.peer_address == slow.address
            assert errors_of(mine.connector) == [errno.ECANCELED, None]
            assert loop.stats().live == 1
            stage.close()

    @pytest.mark.debug_build
    def test_the_order_and_the_stagger(self, stage, names):
        """RFC 8305, section 5: one more every 250 ms, families in turn; all of them under way at once."""
        with fake_clock() as clock, epollkit.Loop() as loop:
            silent = [deaf(stage, kind) for kind in ("ipv6", "ipv6", "ipv6", "ipv4", "ipv4")]
            names["a.test"] = [place.address for place in silent]
            seen = []
            with replaced(connect=watch_connects(clock, seen)):
                mine = Try(loop, stage, ("a.test", 80), timeout=2.0)
                names_looked_up()
                mine.turn()
                while mine.state == "connecting":
                    loop.turn()             # waits, on the fake clock
            assert seen == [(DELAY_SECONDS * i, *silent[which].address) for i, which in enumerate((0, 3, 1, 4, 2))]
            assert mine.state == "timed out"
            assert errors_of(mine.connector) == [errno.ETIMEDOUT] * 5
            assert [attempt.seconds for attempt in mine.connector.attempts] == [2.0, 1.75, 1.5, 1.25, 1.0]
            assert (clock.now_ns - clock.now_ns % 10**9) // 10**9 == clock.now_ns / 1e9     # and not later
            assert loop.stats().live == 0
            mine.turn()
            assert mine.error.errno == errno.ETIMEDOUT
            stage.close()

    @pytest.mark.debug_build
    def test_one_that_fails_starts_the_next_and_the_delay_anew(self, stage, names):
        with fake_clock() as clock, epollkit.Loop() as loop:
            first, second, third, fourth = deaf(stage, "ipv6"), deaf(stage), deaf(stage, "ipv6"), deaf(stage)
            names["a.test"] = [place.address for place in (first, third, second, fourth)]
            seen, fds = [], []
            note = watch_connects(clock, seen)
            with replaced(connect=lambda fd, *rest: fds.append(fd) or note(fd, *rest)):
                mine = Try(loop, stage, ("a.test", 80))
                names_looked_up()
                mine.turn()
                clock.advance(DELAY_SECONDS)
                mine.turn()
                clock.advance(0.1)
                self.break_connect(loop, fds[0])        # the older one: not the one that the delay belongs to
                assert len(seen) == 3
                clock.advance(DELAY_SECONDS - 1e-6)     # counted from the third, not from the second
                mine.turn()
                assert len(seen) == 3
                clock.advance(1e-6)
                mine.turn()
            assert [round(when, 6) for when, _, _ in seen] == [0, 0.25, 0.35, 0.6]
            assert [(host, port) for _, host, port in seen] == [
                place.address for place in (first, second, third, fourth)]
            assert errors_of(mine.connector) == [errno.ECONNREFUSED, None, None, None]
            stage.close()

    def break_connect(self, loop, fd):
        """Have it refused: shutdown() of a connecting socket gives it up, and an event says so."""
        with socket.socket(fileno=os.dup(fd)) as copy:
            copy.shutdown(socket.SHUT_RDWR)
        with replaced(take_error=lambda asked: errno.ECONNREFUSED if asked == fd else None,
                      socket_name=lambda asked, peer: None):
            loop.turn(0)

    @pytest.mark.debug_build
    def test_the_last_delay_never_outlives_the_deadline(self, stage, names):
        with fake_clock() as clock, epollkit.Loop() as loop:
            silent = [deaf(stage, "ipv6"), deaf(stage)]
            names["a.test"] = [place.address for place in silent]
            mine = Try(loop, stage, ("a.test", 80), timeout=0.1)
            names_looked_up()
            mine.turn()
            clock.advance(0.1)
            mine.turn()
            assert mine.state == "timed out"
            assert len(mine.connector.attempts) == 1
            stage.close()

    @pytest.mark.debug_build
    def test_one_deadline_over_the_look_up_and_all_attempts(self, stage, names):
        with fake_clock() as clock, epollkit.Loop() as loop:
            names["a.test"] = [deaf(stage).address]
            mine = Try(loop, stage, ("a.test", 80), timeout=1.0)
            names_looked_up()
            clock.advance(0.75)             # so long took the answer
            mine.turn()
            assert mine.state == "connecting"
            clock.advance(0.25)
            assert mine.turn().state == "timed out"
            assert mine.connector.attempts[0].seconds == 0.25
            stage.close()

    @pytest.mark.debug_build
    def test_two_that_are_connected_in_one_batch(self, stage, names):
        """The first event wins; the other socket is closed, and its event is stale."""
        with fake_clock() as clock, epollkit.Loop() as loop:
            places = [Place(stage, "ipv6"), Place(stage, "ipv4")]
            names["a.test"] = [place.address for place in places]
            mine = Try(loop, stage, ("a.test", 80))
            names_looked_up()
            with replaced(epoll_wait=lambda *arguments: 0):
                mine.turn()
                clock.advance(DELAY_SECONDS)
                mine.turn()
            assert len(mine.connector.attempts) == 2
            mine.turn()
            assert mine.upcalls == ["on_open"]
            assert errors_of(mine.connector) == [errno.ECANCELED, None]
            assert loop.stats().stale_closed == 1
            assert loop.stats().live == 1
            stage.close()

    @pytest.mark.debug_build
    def test_cancelled_with_several_under_way(self, stage, names):
        with fake_clock() as clock, epollkit.Loop() as loop:
            names["a.test"] = [deaf(stage, "ipv6").address, deaf(stage).address]
            mine = Try(loop, stage, ("a.test", 80))
            names_looked_up()
            mine.turn()
            clock.advance(DELAY_SECONDS)
            mine.turn()
            assert loop.stats().live == 2
            mine.connector.cancel()
            assert loop.stats().live == 0
            mine.turn()
            assert mine.error is None
            assert errors_of(mine.connector) == [errno.ECANCELED] * 2
            stage.close()

    def test_a_limit_stops_one_attempt_and_not_the_others(self, stage, names):
        """The second address would be one socket too many: the first goes on, and is connected."""
        with epollkit.Loop(max_connections=1) as loop:
            place = Place(stage, "ipv4")
            names["a.test"] = [dead(stage, "ipv6").address, place.address]
            mine = Try(loop, stage, ("a.test", 80)).done()
            assert mine.upcalls == ["on_open"]
            stage.close()

    def test_bind_leaves_one_family(self, loop, stage, names):
        place = Place(stage, "ipv4")
        names["a.test"] = [Place(stage, "ipv6").address, place.address]
        mine = Try(loop, stage, ("a.test", 80), bind="127.0.0.1").done()
        assert mine.stream.peer_address == place.address
        assert errors_of(mine.connector) == [errno.EAFNOSUPPORT, None]


# -- the table ---------------------------------------------------------------------------------------------------------

def documented():
    """docs/connecting.md: event -> state -> (action, next state)."""
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in DOCS.read_text().splitlines()
            if line.startswith("| ")]
    head, *body = rows
    assert head == ["what happens", *_connector.STATES[:2]]
    found = {state: {} for state in _connector.STATES}
    for event, *cells in body:
        for state, cell in zip(_connector.STATES, cells, strict=False):
            if cell:
                action, _, following = cell.partition(" → ")
                found[state][event] = (action, following or state)
    return [event for event, *_ in body], found


class TestTheTable:
    def test_the_documentation_has_the_same_one(self):
        events, table = documented()
        assert events == list(_connector.EVENTS)
        assert table == _connector.TABLE

    def test_every_cell_leads_somewhere(self):
        for row in _connector.TABLE.values():
            for event, (action, following) in row.items():
                assert event in _connector.EVENTS
                assert action in _connector.ACTIONS
                assert following in _connector.STATES

    @contextlib.contextmanager
    def in_state(self, state, stage, names) -> Iterator[Try]:
        """A connector in that state."""
        with epollkit.Loop() as loop:
            place = {"connected": Place, "failed": dead}.get(state, deaf)(stage, "ipv4")
            names["a.test"] = socket.gaierror(socket.EAI_NONAME, "not known")
            mine = Try(loop, stage, ("a.test", 80) if state == "resolving" else place.address,
                       timeout=0.001 if state == "timed out" else 10)
            if state == "cancelled":
                mine.connector.cancel()
            if state in OVER:
                mine.done()
            assert mine.state == state
            yield mine
            stage.close()

    @pytest.mark.debug_build
    @pytest.mark.parametrize("event", _connector.EVENTS)
    @pytest.mark.parametrize("state", _connector.STATES)
    def test_what_is_not_in_it_changes_nothing(self, stage, names, state, event):
        with self.in_state(state, stage, names) as mine:
            if event in _connector.TABLE[state]:
                assert f"{state}: {event}" in STEPS, "what is in it is walked below"
                return
            before = (list(mine.log), mine.loop.stats().live, len(mine.connector.attempts))
            _debug.connector_tell(mine.connector, event)
            mine.turn(0)
            assert mine.state == state
            assert (list(mine.log), mine.loop.stats().live, len(mine.connector.attempts)) == before

    def test_and_every_step_that_is_in_it_has_its_test(self):
        """Which exists, in this file, and says so."""
        assert set(STEPS) == {f"{state}: {event}" for state, row in _connector.TABLE.items() for event in row}
        defined = set(re.findall(r"^    def (test_\w+)", Path(__file__).read_text(), re.MULTILINE))
        assert set(STEPS.values()) <= defined


STEPS = {
    "resolving: addresses": "test_localhost",
    "resolving: no address": "test_a_name_that_does_not_exist",
    "resolving: deadline": "test_an_answer_after_the_deadline",
    "resolving: cancel": "test_an_answer_after_the_cancel",
    "connecting: unclear": "test_hup_without_an_error_is_no_verdict",
    "connecting: established": "test_it_opens_in_a_later_turn_and_talks",
    "connecting: refused": "test_the_first_family_is_refused",
    "connecting: exhausted": "test_one_failure_with_the_right_errno",
    "connecting: delay": "test_the_order_and_the_stagger",
    "connecting: deadline": "test_the_deadline_ends_it",
    "connecting: cancel": "test_cancelled",
}

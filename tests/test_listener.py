"""`Loop.listen`: addresses and what can be wrong with them, accepting, and what happens when there is no more room."""
from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest
from batches import LOCAL, Spy, in_child, queued_connections, send, settle, turn_until, wait_ready

import epollkit
from epollkit import LimitReached, Listener, Stream, UsageError

ACCEPT_BUDGET = 64      # per listener and turn


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "socket")


def serve_one(loop, stage, listener, log):
    """A client connects, is accepted, and its bytes arrive."""
    client = stage.connect(listener)
    client.send(b"hello")
    turn_until(loop, lambda: any(what == "on_data" for _, what, _ in log))
    return client


class TestAddresses:
    def test_ipv4(self, loop, stage, log):
        """Port 0: the kernel chooses, and `address` tells."""
        listener = stage.listen(loop, lambda: Spy(log, "stream"))
        host, port = listener.address
        assert host == "127.0.0.1"
        assert port > 0
        assert repr(listener) == f"<Listener 127.0.0.1:{port}>"
        serve_one(loop, stage, listener, log)

    def test_ipv6(self, loop, stage, log):
        listener = stage.listen(loop, lambda: Spy(log, "stream"), ("::1", 0))
        host, port, _, _ = listener.address
        assert host == "::1"
        assert repr(listener) == f"<Listener [::1]:{port}>"
        serve_one(loop, stage, listener, log)

    def test_ipv6_leaves_ipv4_alone(self, loop, stage):
        """IPV6_V6ONLY: both can have the port, whatever the system's default."""
        for _ in range(50):         # a port that the kernel chose for IPv6 may be somebody's in IPv4
            everywhere = stage.listen(loop, Stream, ("::", 0))
            with contextlib.suppress(OSError):
                stage.listen(loop, Stream, ("0.0.0.0", everywhere.address[1]))
                return
        pytest.fail("no port is free in both")

    def test_ipv6_with_flow_and_scope(self, loop, stage):
        listener = stage.listen(loop, Stream, ("::1", 0, 0, 0))
        assert listener.address[0] == "::1"

    def test_a_name(self, loop, stage, log):
        listener = stage.listen(loop, lambda: Spy(log, "stream"), ("localhost", 0))
        serve_one(loop, stage, listener, log)

    def test_every_interface(self, loop, stage):
        assert stage.listen(loop, Stream, ("", 0)).address[0] == "0.0.0.0"

    @pytest.mark.parametrize("kind", [str, os.fsencode])
    def test_unix(self, loop, stage, log, path, kind):
        listener = stage.listen(loop, lambda: Spy(log, "stream"), kind(path))
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        assert os.fsdecode(listener.address) == path
        assert repr(listener) == f"<Listener unix:{path}>"
        serve_one(loop, stage, listener, log)

    def test_abstract(self, loop, stage, log):
        name = f"\0epollkit-test-{os.getpid()}"
        listener = stage.listen(loop, lambda: Spy(log, "stream"), name)
        assert listener.address == name
        assert repr(listener) == f"<Listener unix:@{name[1:]}>"
        serve_one(loop, stage, listener, log)
        listener.close()
        settle(loop)
        stage.listen(loop, Stream, name)

    def test_two_sockets_with_reuse_port(self, loop, stage):
        first = stage.listen(loop, Stream, reuse_port=True)
        second = stage.listen(loop, Stream, first.address, reuse_port=True)
        assert first.address == second.address

    def test_a_port_can_be_used_again_at_once(self, loop, stage, log):
        """SO_REUSEADDR: connections of the last run, in TIME_WAIT, are not in the way."""
        stream = Spy(log, "stream")
        listener = stage.listen(loop, lambda: stream)
        serve_one(loop, stage, listener, log)
        stream.close()
        listener.close()
        settle(loop)
        assert stage.listen(loop, Stream, listener.address).address == listener.address


class TestUnixFiles:
    def test_it_is_removed_at_close(self, loop, stage, path):
        listener = stage.listen(loop, Stream, path)
        listener.close()
        settle(loop)
        assert not os.path.exists(path)

    def test_it_is_removed_when_the_loop_is_closed(self, path):
        with epollkit.Loop() as loop:
            loop.listen(path, Stream)
        assert not os.path.exists(path)

    def test_it_is_removed_wherever_the_process_went(self, loop, stage, path, monkeypatch):
        """A relative path, and chdir afterwards."""
        monkeypatch.chdir(os.path.dirname(path))
        listener = stage.listen(loop, Stream, "socket")
        monkeypatch.chdir("/")
        listener.close()
        settle(loop)
        assert not os.path.exists(path)

    def test_a_dead_one_is_replaced(self, loop, stage, log, path):
        """The last server crashed and left its file."""
        with socket.socket(socket.AF_UNIX) as crashed:
            crashed.bind(path)
        assert os.path.exists(path)
        listener = stage.listen(loop, lambda: Spy(log, "stream"), path)
        serve_one(loop, stage, listener, log)

    def test_a_live_one_is_refused(self, loop, stage, log, path):
        """And goes on serving, its file untouched."""
        listener = stage.listen(loop, lambda: Spy(log, "stream"), path)
        before = os.stat(path)
        with pytest.raises(OSError, match=r"cannot listen on unix:.*: the address is in use by another") as found:
            loop.listen(path, Stream)
        assert found.value.errno == errno.EADDRINUSE
        assert os.stat(path).st_ino == before.st_ino
        settle(loop)
        serve_one(loop, stage, listener, log)

    @pytest.mark.parametrize("kind", ["file", "directory", "datagram socket"])
    def test_a_foreign_file_is_left_alone(self, loop, stage, path, kind):
        if kind == "file":
            with open(path, "w") as file:
                file.write("precious")
        elif kind == "directory":
            os.mkdir(path)
        else:
            stage.own(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)).bind(path)
        before = os.stat(path)
        with pytest.raises(OSError, match="the address is in use"):
            loop.listen(path, Stream)
        assert os.stat(path) == before

    def test_a_file_that_replaced_ours_is_left_alone(self, loop, stage, path):
        """Somebody removed our file and made another of the same name: it is not ours to remove."""
        listener = stage.listen(loop, Stream, path)
        os.unlink(path)
        keeper = tempfile.mkstemp(dir=os.path.dirname(path))     # so that the new file can't get the same inode
        os.close(keeper[0])
        with open(path, "w") as file:
            file.write("precious")
        listener.close()
        settle(loop)
        assert os.path.exists(path)

    def test_close_and_listen_again_at_once(self, loop, stage, log, path):
        """In one turn: the old listener must not remove the new one's file, though the inode may be the same."""
        for _ in range(5):
            stage.listen(loop, Stream, path).close()
        listener = stage.listen(loop, lambda: Spy(log, "stream"), path)
        settle(loop)
        assert os.path.exists(path)
        serve_one(loop, stage, listener, log)

    def test_a_relative_of_a_closed_listener(self, loop, stage, path):
        """A closed listener knows its address, and closing it twice does nothing."""
        listener = stage.listen(loop, Stream, path)
        listener.close()
        listener.close()
        settle(loop)
        assert repr(listener) == f"<Listener unix:{path} closed>"


class TestBadInput:
    @pytest.fixture(autouse=True)
    def nothing_changed(self, loop):
        yield
        assert loop.stats().live == 0

    def test_a_port_in_use(self, loop, stage):
        taken = stage.listening()
        host, port = taken.getsockname()
        with pytest.raises(OSError, match=rf"cannot listen on {host}:{port}: the address is in use") as found:
            loop.listen((host, port), Stream)
        assert found.value.errno == errno.EADDRINUSE

    def test_no_such_address(self, loop):
        with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:0: no interface of this machine") as found:
            loop.listen(("192.0.2.1", 0), Stream)       # RFC 5737: nobody has it
        assert found.value.errno == errno.EADDRNOTAVAIL

    def test_no_such_name(self, loop, monkeypatch):
        """What the resolver says is passed on."""
        def refuse(*_, **__):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        with pytest.raises(OSError, match=r"cannot find the address of host 'nowhere\.invalid': Name or"):
            loop.listen(("nowhere.invalid", 0), Stream)

    @pytest.mark.parametrize("host", ["a..b", "x" * 300])
    def test_no_name_at_all(self, loop, host):
        with pytest.raises(OSError, match="cannot find the address of host"):
            loop.listen((host, 0), Stream)

    @pytest.mark.parametrize("where", ["port", "unix"])
    def test_no_permission(self, tmp_path, where):
        """As nobody: a port below 1024 (where the system still guards them), a directory that is not ours."""
        os.chmod(tmp_path, 0o755)
        program = f"""
import encodings.idna, os, epollkit         # the codec: nobody may be unable to read the interpreter's files
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    with epollkit.Loop() as loop:
        loop.listen({("127.0.0.1", 1) if where == "port" else "/proc/nobody-can-write-here"!r}, epollkit.Stream)
except OSError as error:
    print(error.errno, error)
"""
        if where == "port":
            guarded = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
            if guarded < 2:
                pytest.skip("this system lets anybody have any port")
        program = program.replace("/proc/nobody-can-write-here", "/epollkit-test-nobody-can-write-here")
        out = in_child(program)
        assert out.startswith(f"{errno.EACCES} ")
        assert "permission denied" in out
        assert "cannot listen on" in out

    @pytest.mark.parametrize(("address", "sentence"), [
        (8000, r"an address is \(host, port\) or a unix socket path"),
        (None, r"an address is \(host, port\) or a unix socket path"),
        (("127.0.0.1",), r"an address is \(host, port\) or a unix socket path"),
        (("127.0.0.1", 0, 0), r"an address is \(host, port\) or a unix socket path"),
        (["127.0.0.1", 0], r"an address is \(host, port\) or a unix socket path"),
        (("127.0.0.1", "80"), r"an address is \(host: str, port: int\)"),
        (("127.0.0.1", True), r"an address is \(host: str, port: int\)"),
        ((None, 80), r"an address is \(host: str, port: int\)"),
        ((b"127.0.0.1", 80), r"an address is \(host: str, port: int\)"),
        (("127.0.0.1", -1), "port -1 is not between 0 and 65535"),
        (("127.0.0.1", 65536), "port 65536 is not between 0 and 65535"),
        ("", "an empty unix socket path"),
        (b"", "an empty unix socket path"),
    ])
    def test_addresses(self, loop, address, sentence):
        with pytest.raises(UsageError, match=sentence):
            loop.listen(address, Stream)

    @pytest.mark.parametrize(("path", "sentence"), [
        ("/nowhere/at/all", "directory does not exist"), ("/dev/null/socket", "is not a directory"),
        ("/" + "x" * 200, "AF_UNIX path too long"), ("/tmp/with\0zero", "null")])
    def test_unix_paths(self, loop, path, sentence):
        with pytest.raises((OSError, UsageError), match=sentence):
            loop.listen(path, Stream)

    @pytest.mark.parametrize("backlog", [0, -1, 1.5, None, True])
    def test_backlogs(self, loop, backlog):
        with pytest.raises(UsageError, match=r"backlog is a .*number"):
            loop.listen(LOCAL, Stream, backlog=backlog)

    @pytest.mark.parametrize("option", ["reuse_port", "defer_accept"])
    def test_options_of_tcp_for_a_unix_socket(self, loop, path, option):
        with pytest.raises(UsageError, match="are for TCP"):
            loop.listen(path, Stream, **{option: True})
        assert not os.path.exists(path)

    def test_a_factory_that_can_not_be_called(self, loop):
        with pytest.raises(UsageError, match="a factory is called without arguments"):
            loop.listen(LOCAL, Stream.__doc__)

    def test_a_listener_is_not_made_by_hand(self):
        with pytest.raises(UsageError, match=r"comes from Loop.listen\(\)"):
            Listener()

    def test_a_listener_after_close(self, loop):
        listener = loop.listen(LOCAL, Stream)
        listener.close()
        for use in (listener.fileno, lambda: listener.token):
            with pytest.raises(UsageError, match="this Listener is closed"):
                use()


class TestTheFactory:
    @pytest.fixture
    def reported(self, loop):
        found = []
        loop.set_exception_handler(lambda error, source: found.append((error, source)))
        return found

    def test_one_that_raises(self, loop, stage, log, reported):
        """Reported; that connection is closed, and the next one in the backlog accepted."""
        failure = ValueError("no stream today")
        answers = [failure, Spy(log, "second")]

        def factory():
            answer = answers.pop(0)
            if answer is failure:
                raise answer
            return answer

        listener = loop.listen(LOCAL, factory)
        clients = stage.connect_many(listener, 2)
        loop.turn(0)
        assert reported == [(failure, factory)]
        assert log.of("second") == [("on_open", None)]
        wait_ready(clients[0])
        assert clients[0].recv(1) == b""
        assert (loop.stats().accepted, loop.stats().live) == (2, 2)
        loop.close()

    @pytest.mark.parametrize("nonsense", [None, "stream", Stream, object()])
    def test_one_that_returns_nonsense(self, loop, stage, reported, nonsense):
        listener = stage.own(loop.listen(LOCAL, lambda: nonsense))
        client = stage.connect(listener)
        loop.turn(0)
        [(error, _)] = reported
        assert isinstance(error, UsageError)
        assert "the factory of 127.0.0.1" in str(error)
        assert repr(nonsense) in str(error)
        assert client.recv(1) == b""
        assert loop.stats().live == 1

    @pytest.mark.parametrize("state", ["open", "closed in this turn", "aborted", "closed", "failed"])
    def test_one_that_returns_a_used_stream(self, loop, stage, log, reported, state):
        """A stream is one connection's for its whole life: nothing of the first may reach the second."""
        stream = Spy(log, "stream")
        listener = stage.listen(loop, lambda: stream)
        first = stage.connect(listener)
        settle(loop)
        log.clear()
        if state in ("closed in this turn", "aborted"):
            stream.abort()
        elif state == "closed":
            stream.close()
        elif state == "failed":
            stream.then["on_data"] = lambda _: 1 // 0
            send(first, stream)
        if state not in ("open", "closed in this turn"):
            settle(loop)
            loop.turn(0)
        reported.clear()
        second = stage.connect(listener)
        loop.turn(0)
        assert [type(error) for error, _ in reported] == [UsageError]
        assert "a factory makes a new one each time" in str(reported[0][0])
        assert ("stream", "on_open", None) not in log
        wait_ready(second)
        assert second.recv(1) == b""

    def test_one_that_returns_the_listener(self, loop, stage, reported):
        listener = stage.own(loop.listen(LOCAL, lambda: listener))
        stage.connect(listener)
        loop.turn(0)
        assert isinstance(reported[0][0], UsageError)
        assert listener.token.live

    def test_one_that_closes_the_listener(self, loop, stage, log):
        """The connection at hand is served; the others in the backlog are reset."""
        def factory():
            listener.close()
            return Spy(log, "stream")

        listener = loop.listen(LOCAL, factory)
        clients = stage.connect_many(listener, 3)
        loop.turn(0)
        settle(loop)
        assert loop.stats().accepted == 1
        assert log == [("stream", "on_open", None)]
        with pytest.raises(ConnectionResetError):
            clients[2].recv(1)
        loop.close()

    def test_one_that_closes_its_loop(self, loop, stage, reported):
        """It is told, and the connection is closed."""
        listener = stage.own(loop.listen(LOCAL, loop.close))
        stage.connect(listener)
        loop.turn(0)
        assert "from inside a turn" in str(reported[0][0])
        assert loop.stats().live == 1

    def test_ctrl_c_in_it(self, loop, stage, log):
        """Leaves the turn; the rest of the backlog is accepted in the next ones."""
        interrupts = iter([True])

        def factory():
            if next(interrupts, False):
                raise KeyboardInterrupt
            stream = Spy(log, "stream")
            stage.callback(stream.abort)
            return stream

        listener = stage.own(loop.listen(LOCAL, factory))
        stage.connect_many(listener, 3)
        with pytest.raises(KeyboardInterrupt):
            loop.turn(0)
        settle(loop)
        assert log.names == ["stream"] * 2
        assert loop.stats().accepted == 3


class TestAcceptedSockets:
    def test_their_flags(self, loop, stage, log):
        """Non-blocking, close-on-exec, TCP_NODELAY inherited from the listener."""
        stream = Spy(log, "stream")
        stage.stream(loop, stream)
        assert fcntl.fcntl(stream.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK
        assert fcntl.fcntl(stream.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        with socket.socket(fileno=os.dup(stream.fileno())) as copy:
            assert copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    def test_they_belong_to_the_loop(self, loop, stage, log):
        stream = Spy(log, "stream")
        with pytest.raises(UsageError, match="this Spy is closed, or was never opened"):
            _ = stream.loop
        stage.stream(loop, stream)
        assert stream.loop is loop
        assert stream.token.live

    def test_defer_accept_reads_at_once(self, loop, stage, log):
        """7. The request is there when the connection is accepted: on_open and on_data in one turn, one batch, and the
        answer is back before the fd was ever in the epoll set."""
        stream = Spy(log, "stream", on_data=lambda stream: (stream.write(b"answer"), stream.close()))
        listener = stage.listen(loop, lambda: stream, defer_accept=True)
        client = stage.own(socket.socket())
        client.connect(listener.address)
        client.send(b"request")
        wait_ready(listener)
        before = loop.stats()
        loop.turn(0)
        after = loop.stats()
        assert log == [("stream", "on_open", None), ("stream", "on_data", b"request"), ("stream", "on_close", None)]
        assert (after.batches, after.events) == (before.batches + 1, before.events + 1)
        assert client.recv(100) == b"answer"
        assert client.recv(100) == b""

    def test_defer_accept_waits_for_the_first_bytes(self, loop, stage):
        """A silent client is the kernel's, not ours."""
        listener = stage.listen(loop, Stream, defer_accept=True)
        client = stage.own(socket.socket())
        client.connect(listener.address)
        settle(loop)
        assert loop.stats().accepted == 0

    def test_defer_accept_goes_on_as_usual(self, loop, stage, log):
        """What comes after the first bytes comes by events."""
        stream = Spy(log, "stream")
        listener = stage.listen(loop, lambda: stream, defer_accept=True)
        client = stage.own(socket.socket())
        client.connect(listener.address)
        client.send(b"first")
        wait_ready(listener)
        loop.turn(0)
        send(client, stream, b"second")
        settle(loop)
        assert [value for _, what, value in log if what == "on_data"] == [b"first", b"second"]

    def test_without_it_nothing_is_read_at_once(self, loop, stage, log):
        """The bytes are there, and come with the first event."""
        stream = Spy(log, "stream")
        listener = stage.listen(loop, lambda: stream)
        client = stage.connect(listener)
        client.send(b"first")
        loop.turn(0)
        assert log == [("stream", "on_open", None)]
        turn_until(loop, lambda: len(log) > 1)
        assert log[1:] == [("stream", "on_data", b"first")]


class TestBudgetsAndLimits:
    def test_the_accept_budget_leaves_the_rest_for_the_next_turn(self, loop, stage, log):
        """A connect storm: what others have in the same batch is delivered before the whole backlog is accepted."""
        event = stage.event()
        listener = stage.listen(loop, lambda: Spy(log, "stream"), backlog=1024)
        stage.watch(loop, event, epollkit.IN, log.handler("event"))
        stage.connect_many(listener, ACCEPT_BUDGET * 2 + 10)
        event.fire()
        loop.turn(0)
        assert (loop.stats().accepted, log.names[-1]) == (ACCEPT_BUDGET, "event")
        assert queued_connections(listener) == ACCEPT_BUDGET + 10
        loop.turn(0)
        assert loop.stats().accepted == ACCEPT_BUDGET * 2
        settle(loop)
        assert loop.stats().accepted == ACCEPT_BUDGET * 2 + 10

    def test_max_connections_pauses_accepting(self, stage, log, caplog):
        """The backlog waits; as soon as one connection closes, the next is accepted, though nobody new arrives. While
        it is paused, turns find no event: no spinning. The log is told once."""
        with epollkit.Loop(max_connections=2) as loop:
            streams = []

            def factory():
                streams.append(Spy(log, f"{len(streams)}"))
                return streams[-1]

            listener = loop.listen(LOCAL, factory)
            stage.connect_many(listener, 5)
            loop.turn(0)
            assert len(streams) == 2
            settle(loop)
            before = loop.stats()
            for _ in range(20):
                loop.turn(0)
            after = loop.stats()
            assert after.batches - before.batches <= 3
            assert after.accepted == 2
            for expected in (3, 4, 5):
                streams[-1].abort()
                before = loop.stats()
                loop.turn(0)
                assert len(streams) == expected
                assert loop.stats().batches == before.batches + 1
                settle(loop)
                assert loop.stats().live == 3
            assert listener.pauses >= 3
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "max_connections=2 reached" in caplog.text

    def test_a_raw_registration_makes_room_too(self, stage, log):
        with epollkit.Loop(max_connections=1) as loop:
            token = loop.register(stage.event(), epollkit.IN, print)
            listener = loop.listen(LOCAL, lambda: Spy(log, "stream"))
            stage.connect(listener)
            settle(loop)
            assert log == []
            loop.unregister(token)
            loop.turn(0)
            assert log == [("stream", "on_open", None)]

    def test_a_paused_listener_can_be_closed(self, stage, log, caplog):
        """Nothing of it comes back: neither by timer nor when a connection closes."""
        with epollkit.Loop(max_connections=1) as loop:
            stream = Spy(log, "stream")
            listener = loop.listen(LOCAL, lambda: stream)
            stage.connect_many(listener, 2)
            settle(loop)
            assert listener.pauses
            listener.close()
            assert loop.stats().timers == 0
            stream.abort()
            settle(loop)
            assert (loop.stats().live, loop.stats().accepted) == (0, 1)

    def test_resume_now(self, stage, log, caplog):
        """By hand; on a listener that is not paused, or closed, nothing happens."""
        with epollkit.Loop(max_connections=1) as loop:
            listener = loop.listen(LOCAL, lambda: Spy(log, "stream"))
            listener.resume_now()
            stage.connect_many(listener, 2)
            settle(loop)
            pauses = listener.pauses
            listener.resume_now()
            loop.turn(0)
            assert listener.pauses == pauses + 1
            listener.close()
            listener.resume_now()

    def test_a_timer_ends_the_pause_too(self, stage, log, caplog):
        """Nobody closes anything: the listener looks again by itself, ten times a second, and not more often."""
        with epollkit.Loop(max_connections=1) as loop:
            listener = loop.listen(LOCAL, lambda: Spy(log, "stream"))
            stage.connect_many(listener, 2)
            settle(loop)
            pauses, batches = listener.pauses, loop.stats().batches
            turn_until(loop, lambda: listener.pauses > pauses)
            assert loop.stats().batches - batches <= 3

    def test_no_slots_at_all(self, stage):
        """Listeners have a thousand places of their own, and then one sentence; wake-ups still have theirs."""
        with epollkit.Loop(max_connections=1) as loop:
            with pytest.raises(LimitReached, match="at most 1021 listeners"):
                for _ in range(1100):
                    loop.listen(LOCAL, Stream)
            assert loop.stats().live == 1021
            loop.call_soon(loop.stop)
            loop.run()

    def test_emfile(self):
        """19. No descriptors are left, with clients in the backlog: accepting pauses, said once, without spinning;
        another client is served meanwhile; and after one close the backlog is, with no new arrival."""
        out = in_child("""
import logging, os, resource, socket, sys, epollkit
warnings = []
handler = logging.Handler()
handler.emit = lambda record: warnings.append(record.getMessage())
logging.getLogger("epollkit").addHandler(handler)
streams, echoed = [], []
class Echo(epollkit.Stream):
    def on_open(self): streams.append(self)
    def on_data(self, data): self.write(data)
with epollkit.Loop() as loop:
    listener = loop.listen(("127.0.0.1", 0), Echo)
    clients = [socket.create_connection(listener.address) for _ in range(1)]
    while not streams: loop.turn(1)
    clients += [socket.create_connection(listener.address) for _ in range(3)]
    taken = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    fillers = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken, taken))
    try:
        while True: fillers.append(os.dup(0))
    except OSError: pass
    loop.turn(1)
    before = loop.stats()
    for _ in range(20): loop.turn(0)
    print("paused", len(streams), listener.pauses, loop.stats().batches - before.batches)
    clients[0].send(b"served meanwhile")
    while loop.turn(1) == 0: pass
    print("served", clients[0].recv(100).decode())
    for expected in (2, 3, 4):
        before = loop.stats()
        streams[-1].abort()
        loop.turn(0)
        print("resumed", len(streams) == expected, loop.stats().batches - before.batches)
        loop.turn(0)
    print("said", len(warnings), warnings[0].split(": ")[1])
    for fd in fillers: os.close(fd)
""")
        lines = [line.split(" ", 1) for line in out.splitlines()]
        assert lines[0][0] == "paused"
        accepted, pauses, batches = map(int, lines[0][1].split())
        assert accepted == 1
        assert pauses >= 1
        assert batches <= 3
        assert lines[1] == ["served", "served meanwhile"]
        assert lines[2:5] == [["resumed", "True 1"]] * 3
        assert lines[5] == ["said", "1 Too many open files"]


class TestClosing:
    def test_queued_connections_are_reset(self, loop, stage):
        listener = stage.listen(loop, Stream)
        client = stage.connect(listener)
        listener.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)

    def test_accepted_connections_live_on(self, loop, stage, log):
        stream = Spy(log, "stream")
        client = stage.stream(loop, stream)     # its listener is closed
        send(client, stream)
        loop.turn(0)
        assert log.of("stream")[-1] == ("on_data", b"x")

    def test_the_address_is_free_again(self, loop, stage):
        listener = stage.listen(loop, Stream)
        listener.close()
        stage.listen(loop, Stream, listener.address)

    def test_from_a_handler_in_its_own_batch(self, loop, stage, log):
        """[X, listener]: X's handler closes the listener, whose event is stale by then."""
        x = stage.event()
        listener = stage.listen(loop, lambda: Spy(log, "stream"))
        stage.watch(loop, x, epollkit.IN, log.handler("x", listener.close))
        x.fire()
        stage.connect(listener)
        assert loop.turn(0) == 1
        assert log.names == ["x"]
        assert loop.stats().stale_closed == 1

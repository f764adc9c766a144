"""A connection at rest in a pool, from below: what ends it, who is told, and that its last user has no hold on it."""
from __future__ import annotations

import contextlib
import errno
import gc
import select
import socket
import ssl
import weakref

import pytest
from batches import reset, settle, wait_ready
from connections import KINDS, Far

import epollkit
from epollkit import IN, PeerError, RateLimit, Stream, UsageError

DEBUG = epollkit.build_info()["build"] == "debug"
if DEBUG:
    from epollkit import _operations

HOUR_NS = 3600 * 10**9
TCP_LIKE = ("tcp", "tls")


@pytest.fixture(params=KINDS)
def kit(request, make_kit):
    return make_kit(request.param)


def park(kit, idle_ns=HOUR_NS):
    """An open connection, given back. Returns what its keeper is told."""
    told = []
    kit.open(lambda what, reason: told.append((what, reason)))
    assert told == [("opened", None)]
    assert kit.stream._park(idle_ns)
    told.clear()
    return told


def lend(kit):
    """Whether the next user gets it."""
    lent = []
    assert kit.stream._lend(lambda *arguments: lent.append(arguments)) == bool(lent)
    assert lent in ([], [(kit.stream, None)])
    return bool(lent)


# -- what its last user may still do -----------------------------------------------------------------------------------

ARGUMENTS = {
    "write": (b"x",), "writelines": ([b"x"],), "sendfile": (0,), "read_exactly": (5,), "read_until": (b"\n",),
    "call_soon": (print,), "call_later": (5, print), "set_timeout": (), "set_limits": (), "set_rate": (), "close": (),
    "abort": (), "shutdown_write": (), "pause_reading": (), "resume_reading": (), "read_raw": (), "detach": (),
    "fileno": None,         # a number, with which nobody can do what they could not do without
}


def test_every_call_is_known_here():
    calls = {name for name in dir(Stream) if not name.startswith(("_", "on_")) and callable(getattr(Stream, name))}
    assert calls == set(ARGUMENTS)


@pytest.mark.parametrize("name", [name for name, arguments in ARGUMENTS.items() if arguments is not None])
def test_no_call_reaches_a_connection_that_was_given_back(make_kit, name):
    kit = make_kit("tcp")
    told = park(kit)
    with open(__file__) as file, pytest.raises(UsageError, match="given back to its pool"):
        getattr(kit.stream, name)(*((file,) if name == "sendfile" else ARGUMENTS[name]))
    settle(kit.loop)
    assert lend(kit)
    assert told == []


def test_a_number_that_gives_it_back(make_kit):
    """The argument is looked at after the connection was: what it runs must not change what the next user finds."""
    class Odd(int):
        def __le__(self, other: int) -> bool:
            return int(self) <= other

        def __int__(self) -> int:
            kit.stream._park(HOUR_NS)
            return 1

    kit = make_kit("tcp")
    kit.open()
    with pytest.raises(UsageError, match="given back"):
        kit.stream.set_limits(high=Odd(1))
    assert lend(kit)
    assert kit.stream.write(b"x" * 60_000)


def test_a_finalizer_that_aborts_what_is_being_given_back(make_kit):
    class Last(RateLimit):
        def __del__(self) -> None:
            with contextlib.suppress(UsageError):
                kit.stream.abort()
            with contextlib.suppress(UsageError):
                kit.loop.turn(0)

    kit = make_kit("tcp")
    kit.open()
    kit.stream.set_rate(read=Last(1000), write=Last(1000))
    kit.stream.call_soon(print)
    assert kit.stream._park(HOUR_NS)            # its last user can't abort it any more
    assert lend(kit)
    kit.stream.set_rate(read=Last(1000), write=Last(1000))
    kit.stream.set_rate(read=None)
    assert kit.stream.is_closing


@pytest.mark.parametrize("change", [lambda stream: stream.set_rate(read=None), lambda stream: stream.abort()])
def test_a_finalizer_of_a_rate_that_closes_the_loop(change, stage):
    class Last(RateLimit):
        def __del__(self) -> None:
            with contextlib.suppress(UsageError):
                loop.close()

    loop = epollkit.Loop()
    stream = loop.adopt(stage.pair().near, Stream)
    settle(loop)
    stream.set_rate(read=Last(1000), write=Last(1000))
    with contextlib.suppress(UsageError):
        change(stream)
        loop.turn(0)
    loop.close()


# -- what ends it ------------------------------------------------------------------------------------------------------

def speak(kit):
    kit.send(b"who asked?")
    return "spoke", PeerError


def begin_to_speak(kit):
    kit.far.sock.sendall(kit.far.sealed(b"who asked?")[:1])
    wait_ready(kit.stream)
    return "spoke", PeerError


def speak_urgently(kit):
    kit.far.sock.send(b"!", socket.MSG_OOB)
    wait_ready(kit.stream, select.POLLPRI)
    return "spoke", PeerError


def end(kit):
    kit.far.end()
    wait_ready(kit.stream)
    return "ended", type(None)


def cut_off(kit):
    kit.far.sock.shutdown(socket.SHUT_WR)
    wait_ready(kit.stream)
    return "ended", type(None)


def break_off(kit):
    reset(kit.far.sock, kit.stream)
    return "ended", ConnectionResetError


def send_garbage(kit):
    kit.far.sock.sendall(b"this is no TLS at all, by no means")
    wait_ready(kit.stream)
    return "ended", ssl.SSLError


DISTURBANCES = [(speak, KINDS), (begin_to_speak, KINDS), (speak_urgently, TCP_LIKE), (end, KINDS), (cut_off, KINDS),
                (break_off, TCP_LIKE), (send_garbage, ("tls",))]
CASES = [pytest.param(disturb, kind, id=f"{disturb.__name__}-{kind}") for disturb, kinds in DISTURBANCES
         for kind in kinds]


@pytest.mark.parametrize(("disturb", "kind"), CASES)
def test_a_disturbance_is_noticed_by_its_event(make_kit, disturb, kind):
    """18. Its keeper is told in the batch, and its class only that it is closed."""
    kit = make_kit(kind)
    told = park(kit)
    what, reason = disturb(kit)
    kit.loop.turn(0)
    assert [entry[0] for entry in told] == [what, "closed"]
    assert [(name, type(error)) for name, error in kit.stream.upcalls] == [("close", reason)]
    assert told[1][1] is kit.stream.upcalls[0][1]
    assert not lend(kit)


@pytest.mark.parametrize(("disturb", "kind"), CASES)
def test_a_disturbance_is_noticed_at_the_check_out(make_kit, disturb, kind):
    """18. Its event is still in the kernel."""
    kit = make_kit(kind)
    told = park(kit)
    what, reason = disturb(kit)
    assert not lend(kit)
    assert told == [(what, None)]
    settle(kit.loop)
    assert [(name, type(error)) for name, error in kit.stream.upcalls] == [("close", reason)]
    assert [entry[0] for entry in told] == [what, "closed"]


@pytest.mark.parametrize(("disturb", "kind"), CASES)
def test_a_disturbance_is_noticed_within_the_batch_of_the_check_out(make_kit, disturb, kind):
    """18. Its event is behind that of whoever checks it out, and then it is stale."""
    kit = make_kit(kind)
    told = park(kit)
    lent = []
    event = kit.stage.event()
    kit.stage.watch(kit.loop, event, IN, lambda token, events: (lent.append(lend(kit)), event.drain()))
    settle(kit.loop)
    event.fire()
    what, _ = disturb(kit)
    kit.loop.turn(0)
    assert lent == [False]
    assert [entry[0] for entry in told] == [what, "closed"]
    assert kit.loop.stats().stale_closed == 1


def test_a_session_ticket_is_no_disturbance(make_kit):
    """It comes when a server likes, and is not for the application."""
    kit = make_kit("tls")
    kit.adopt()
    settle(kit.loop)
    wait_ready(kit.far.sock)
    assert not kit.far.shake()              # the server's hello
    wait_ready(kit.stream)
    settle(kit.loop)                        # for the client the handshake is done: no ticket came yet
    assert kit.stream._park(HOUR_NS)
    wait_ready(kit.far.sock)
    assert kit.far.shake()                  # and here they are
    wait_ready(kit.stream)
    assert lend(kit)
    assert kit.stream._park(HOUR_NS)
    settle(kit.loop)
    assert lend(kit)
    kit.send(b"for the next user")
    settle(kit.loop)
    assert kit.stream.upcalls == [("data", b"for the next user")]


@pytest.mark.debug_build
def test_its_time_is_over(kit):
    with _operations.fake_clock() as clock:
        told = park(kit)
        clock.advance(3599.9)
        settle(kit.loop)
        assert lend(kit)
        assert kit.stream._park(HOUR_NS)
        clock.advance(3599.9)
        settle(kit.loop)
        assert told == []
        clock.advance(1)
        settle(kit.loop)
    assert told == [("expired", None), ("closed", None)]
    assert kit.stream.upcalls == [("close", None)]
    assert not lend(kit)


@pytest.mark.debug_build
def test_no_time_is_for_ever(kit):
    with _operations.fake_clock() as clock:
        told = park(kit, idle_ns=0)
        clock.advance(10**8)
        settle(kit.loop)
    assert told == []
    assert lend(kit)


# -- how it leaves -----------------------------------------------------------------------------------------------------

def test_it_leaves_with_an_end_that_is_one(kit):
    told = park(kit)
    assert kit.stream._leave()
    assert kit.stream._leave()
    settle(kit.loop)
    assert told == [("closed", None)]
    wait_ready(kit.far.sock)
    data = kit.far.sock.recv(1 << 16)
    if kit.kind == "tls":
        kit.far.incoming.write(data)
        assert kit.far.tls.read(10) == b""          # close_notify
        wait_ready(kit.far.sock)
        data = kit.far.sock.recv(1 << 16)
    assert data == b""


def test_its_end_waits_for_the_socket(make_kit):
    """With TLS there is something to say."""
    kit = make_kit("tls")
    told = park(kit)
    if not DEBUG:
        pytest.skip("only the debug build can fill that socket")
    with _operations.replaced(send=lambda *arguments: -errno.EAGAIN):
        assert not kit.stream._leave()
        settle(kit.loop)
        assert told == []
        assert kit.stream.is_closing
    kit.stream.abort()
    settle(kit.loop)
    assert told == [("closed", None)]


@pytest.mark.parametrize("act", [lambda stream: stream._park(HOUR_NS),
                                 lambda stream: stream._park(HOUR_NS) and stream._leave()])
def test_what_another_connection_has_gathered_stays_its_own(kit, make_kit, act):
    """17. In the middle of somebody's upcall, which has written something that leaves when it is over."""
    def answer():
        writer.stream.write(b"for nobody else")
        assert act(kit.stream)

    writer = make_kit("tcp")
    kit.open()
    writer.open()
    writer.stream.then = answer
    writer.send(b"?")
    settle(kit.loop)
    wait_ready(writer.far.sock)
    assert writer.far.sock.recv(100) == b"for nobody else"
    if kit.far.sock in select.select([kit.far.sock], [], [], 0)[0]:
        received = kit.far.sock.recv(1 << 16)
        assert received == b"" or kit.kind == "tls"
        if received:                    # close_notify
            kit.far.incoming.write(received)
            assert kit.far.tls.read(100) == b""


# -- who gets it -------------------------------------------------------------------------------------------------------

def test_what_its_next_user_writes_leaves_at_once(kit):
    park(kit)
    assert kit.stream._lend(lambda stream, error: stream.writelines([b"one ", b"piece"]))
    wait_ready(kit.far.sock)
    data = kit.far.sock.recv(1000)
    if kit.kind == "tls":
        kit.far.incoming.write(data)
        data = kit.far.tls.read(1000)
    assert data == b"one piece"


def test_an_exception_of_its_next_user_ends_it_and_is_reported_once(kit):
    def fail(stream, error):
        stream.write(b"half of it")
        raise failure

    failure, reported = ValueError("of mine"), []
    kit.loop.set_exception_handler(lambda *report: reported.append(report))
    told = park(kit)
    assert kit.stream._lend(fail)
    settle(kit.loop)
    assert reported == [(failure, kit.stream)]
    assert kit.stream.upcalls == [("close", failure)]
    assert told == [("closed", failure)]


def test_ctrl_c_in_its_next_user_leaves_it_as_it_is(kit):
    def interrupt(stream, error):
        stream.write(b"half of it")
        raise KeyboardInterrupt

    told = park(kit)
    with pytest.raises(KeyboardInterrupt):
        kit.stream._lend(interrupt)
    settle(kit.loop)
    wait_ready(kit.far.sock)
    assert told == []
    assert not kit.stream.is_closing


def test_a_connection_is_kept_from_before_it_is_opened(make_kit):
    kit = make_kit("tcp")
    kit.open()
    with pytest.raises(UsageError, match="was used for another connection"):
        kit.stream._keep(kit.loop, print)
    told = []
    unused = Stream()
    unused._keep(kit.loop, lambda *what: told.append(what))
    unused._keep(kit.loop, None)
    kit.loop.adopt(kit.stage.pair().near, lambda: unused)
    settle(kit.loop)
    unused.close()
    settle(kit.loop)
    assert told == []


def test_a_closed_connection_is_kept_by_nobody(kit):
    """Its name is free for another then, who must not be taken for it."""
    class Keeper:
        def __call__(self, what, reason):
            pass

    keeper = Keeper()
    kit.open(keeper)
    kept = weakref.ref(keeper)
    del keeper
    assert kit.stream._park(HOUR_NS)
    kit.stream._leave()
    settle(kit.loop)
    gc.collect()
    assert kept() is None


def test_a_loop_that_is_dropped_with_connections_at_rest(stage):
    """Everything that refers to everything is garbage, then."""
    def drop():
        loop, stream = epollkit.Loop(), Stream()
        stream._keep(loop, lambda what, reason: (loop, stream))
        loop.adopt(stage.pair().near, lambda: stream)
        settle(loop)
        assert stream._park(HOUR_NS)

    drop()
    with pytest.warns(ResourceWarning, match="unclosed loop"):
        gc.collect()


def test_far_ends_are_plain_without_a_context():
    left, right = socket.socketpair()
    with left, right:
        assert Far(left, None).sealed(b"x") == b"x"

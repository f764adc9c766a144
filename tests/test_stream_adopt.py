"""Leaving a loop and entering one: `Stream.detach` and `Loop.adopt`. Nothing is lost, nothing is anybody else's."""
from __future__ import annotations

import errno
import os
import random
import re
import select
import socket
import ssl
import struct

import pytest
from batches import child, in_thread, next_fd, ready_events, settle
from wire import Bench, Factory, Recorder, Witness, open_pair, wait_for

import epollkit
from epollkit import LimitReached, UsageError

MEGABYTE = random.Random(1).randbytes(1 << 20)

# -- what one stream gathers reaches nobody else -----------------------------------------------------------------------


def test_detaching_another_stream_takes_nothing_of_what_this_one_has_written(bench):
    """An upcall's writes are gathered in a buffer of the loop's. Whoever is detached meanwhile must not send them."""
    other, others_client = open_pair(bench)
    detached = []

    def write_and_detach(stream):
        stream.write(b"for my own peer")
        detached.append(other.detach())

    _, client = open_pair(bench, Factory(lambda: Witness(on_data=write_and_detach)))
    client.send(b"go")
    assert client.take(15) == b"for my own peer"
    others_client.read()
    assert others_client.received == b""
    os.close(detached[0].fd)


def secure_client(bench: Bench, listener: epollkit.Listener, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A TLS client whose handshake is done."""
    client = bench.connect(listener)
    client.socket = context.wrap_socket(client.socket, server_hostname="localhost", do_handshake_on_connect=False)

    def shaken():
        try:
            client.socket.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    bench.turn_until(shaken)
    return client.socket


@pytest.mark.parametrize("verb", ["close", "shutdown_write"])
def test_ending_another_stream_s_tls_takes_nothing_of_what_this_one_has_written(bench, certificates, verb):
    """The other's close_notify leaves at once, alone."""
    factory = Factory()
    tls = secure_client(bench, bench.listen(factory, ssl=certificates.server_context()), certificates.client_context())
    bench.quiet()

    def write_and_end(stream):
        stream.write(b"for my own peer")
        getattr(factory.made[0], verb)()

    _, client = open_pair(bench, Factory(lambda: Witness(on_data=write_and_end)))
    client.send(b"go")
    assert client.take(15) == b"for my own peer"
    bench.quiet()
    assert tls.recv(100) == b"", "the end, and nothing before it"


def test_a_frame_that_is_too_long_is_handed_out_by_detach(bench):
    """Whoever detaches in on_error, to let somebody else judge, has every byte that came."""
    taken = []

    class Framed(Recorder):
        def on_open(self):
            self.read_until(b"\n", 4)

        def on_error(self, error):
            taken.append(self.detach())

    stream, client = open_pair(bench, Factory(Framed))
    client.send(b"one\ntoo long\n")
    bench.turn_until(lambda: taken)
    with socket.socket(fileno=taken[0].fd):
        assert taken[0].data == b"too long\n"
    bench.turn_until(lambda: stream.upcalls[-1] == ("close", None))
    assert stream.upcalls[-2] == ("data", b"one\n")


# -- detach ------------------------------------------------------------------------------------------------------------


def take_over(stage, detached):
    """The descriptor of what was detached, as a socket that the test owns."""
    return stage.own(socket.socket(fileno=detached.fd))


def test_a_detached_connection_is_the_caller_s(bench, stage, address):
    """Open, non-blocking, in no epoll set; neither the loop's end nor the stream's closes it."""
    stream, client = open_pair(bench, Factory(Witness), address)
    number = stream.fileno()
    detached = stream.detach()
    assert detached == (number, b"")
    sock = take_over(stage, detached)
    assert stream.names == ["open"], "not from inside the call"
    assert stream.is_closing
    bench.quiet()
    assert stream.upcalls == [("open",), ("close", None)]
    client.send(b"to whom it may concern")
    assert bench.loop.turn(0) == 0
    assert bench.loop.stats().stale_orphan == 0
    assert sock.recv(100) == b"to whom it may concern"
    with pytest.raises(BlockingIOError):
        sock.recv(100)
    assert not os.get_inheritable(number)
    sock.send(b"answer")
    assert client.take(6) == b"answer"


def test_timers_and_calls_die_with_what_is_detached(bench, stage):
    called = []
    stream, _ = open_pair(bench, Factory(Witness))
    stream.call_soon(called.append, "soon")
    stream.call_later(0, called.append, "later")
    stream.set_timeout(read=0.001, life=0.001)
    take_over(stage, stream.detach())
    bench.quiet()
    assert called == []
    assert stream.names == ["open", "close"]


@pytest.mark.parametrize("upcall", ["on_open", "on_data", "on_eof"])
def test_what_an_upcall_wrote_before_it_detached_is_sent(bench, stage, address, upcall):
    """And nothing is called after it but on_close."""
    detached = []

    def leave(stream):
        stream.write(b"last ")
        stream.write(b"words")
        detached.append(stream.detach())

    factory = Factory(lambda: Witness(**{upcall: leave}))
    client = bench.connect(bench.listen(factory, address))
    client.offer(b"data")
    client.end()
    assert client.take(10) == b"last words"
    bench.quiet()
    stream = factory.made[0]
    assert stream.names == {"on_open": ["open", "close"], "on_data": ["open", "data", "close"],
                            "on_eof": ["open", "data", "eof", "close"]}[upcall]
    sock = take_over(stage, detached[0])
    assert sock.recv(10) == (b"data" if upcall == "on_open" else b"")


def test_frames_that_were_not_delivered_go_with_it(bench, stage):
    """In the middle of a batch: what this on_data did not get, the half frame too; nothing more is read for it."""
    detached = []

    def leave(stream):
        if stream.data == b"aabb":
            detached.append(stream.detach())

    stream, client = open_pair(bench, Factory(lambda: Witness(on_data=leave)))
    stream.read_exactly(2)
    client.send(b"aabbccdde")
    bench.quiet()
    assert stream.data == b"aabb"
    assert detached[0].data == b"ccdde"
    client.offer(b"e")
    assert take_over(stage, detached[0]).recv(10) == b"e"


@pytest.mark.parametrize("paused", [False, True])
def test_half_a_frame_goes_with_it(bench, stage, paused):
    stream, client = open_pair(bench, Factory(lambda: Witness(on_data=lambda stream: stream.pause_reading())))
    stream.read_until(b"\n")
    if not paused:
        del stream.then["on_data"]
    client.send(b"line\nnext\nhalf")
    bench.quiet()
    detached = stream.detach()
    assert detached.data == (b"next\nhalf" if paused else b"half")
    take_over(stage, detached)


def test_what_is_unsent_stays_with_the_stream(bench):
    stream, client = open_pair(bench, Factory(Witness), receive_buffer=4096)
    stream.write(b"x")
    with pytest.raises(UsageError, match="1 bytes are unsent; wait for on_drain"):
        stream.detach()
    stream.write(MEGABYTE * 4)
    bench.quiet()
    with pytest.raises(UsageError, match=f"{stream.unsent_bytes} bytes are unsent"):
        stream.detach()
    assert client.take(1 + 4 * len(MEGABYTE)) == b"x" + MEGABYTE * 4
    bench.quiet()
    os.close(stream.detach().fd)
    assert client.eof()


def test_a_connection_that_broke_can_not_be_detached(bench):
    """What the upcall wrote found the peer gone. Neither detach() nor what it calls says so twice."""
    refused = []

    def leave(stream):
        stream.write(b"x")
        with pytest.raises(UsageError, match="can't be detached: it broke") as caught:
            stream.detach()
        refused.append(caught.value)

    stream, client = open_pair(bench, Factory(lambda: Witness(on_data=leave)))
    client.offer(b"data")
    client.reset()
    wait_for(stream.fileno(), select.POLLERR)
    bench.quiet()
    assert len(refused) == 1
    assert stream.names == ["open", "data", "error", "close"]


def test_no_call_makes_an_upcall(bench):
    """The peer has ended and then gone; from outside, detach() and shutdown_write() find that out, and on_error comes
    in a turn of its own."""
    for call in ("detach", "shutdown_write", "close"):
        stream, client = open_pair(bench, Factory(Witness))
        client.end()
        bench.quiet()
        client.reset()
        wait_for(stream.fileno(), select.POLLERR)
        stream.write(b"x")
        try:
            getattr(stream, call)()
        except UsageError:
            assert call == "detach"
        assert stream.heard() == ["open", "eof"]
        bench.quiet()
        assert stream.names == ["close"] if call == "close" else ["error", "close"]


def test_no_call_on_a_tls_stream_makes_an_upcall(bench, certificates):
    """Its close_notify is sent from inside shutdown_write(), and finds the peer gone."""
    factory = Factory(Witness)
    tls = secure_client(bench, bench.listen(factory, ssl=certificates.server_context()), certificates.client_context())
    with pytest.raises(ssl.SSLWantReadError):
        tls.unwrap()                        # its close_notify is sent; ours does not come
    bench.quiet()
    stream = factory.made[0]
    assert stream.heard() == ["open", "eof"]
    tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tls.close()
    wait_for(stream.fileno(), select.POLLERR)
    stream.shutdown_write()
    assert stream.heard() == []
    bench.quiet()
    assert stream.names == ["error", "close"]


def test_a_tls_session_can_not_be_detached(bench, certificates):
    factory = Factory(Witness)
    secure_client(bench, bench.listen(factory, ssl=certificates.server_context()), certificates.client_context())
    bench.quiet()
    with pytest.raises(UsageError, match="a TLS session can't be detached"):
        factory.made[0].detach()
    factory.made[0].abort()


# -- adopt -------------------------------------------------------------------------------------------------------------


def connected(stage, kind="tcp"):
    """Both ends of a connection: the near one is to be adopted, the far one is a peer that blocks."""
    if kind == "tcp":
        pair = stage.pair()
        pair.far.setblocking(True)
        pair.near.setblocking(True)
        return pair.near, pair.far
    if kind == "IPv6":
        try:
            listening = socket.create_server(("::1", 0), family=socket.AF_INET6)
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")
        with listening:
            far = stage.own(socket.create_connection(listening.getsockname()[:2]))
            return stage.own(listening.accept()[0]), far
    near, far = socket.socketpair()
    return stage.own(near), stage.own(far)


@pytest.mark.parametrize("kind", ["tcp", "IPv6", "unix"])
@pytest.mark.parametrize("given", ["socket", "number"])
def test_a_connected_socket_is_taken_in(bench, stage, kind, given):
    """It blocked before; the socket object is empty afterwards, and a number is the loop's."""
    near, far = connected(stage, kind)
    number = near.fileno()
    factory = Factory(lambda: Witness(on_data=lambda stream: stream.write(stream.data)))
    stream = bench.loop.adopt(near if given == "socket" else near.detach(), factory)
    assert factory.made == [stream]
    assert stream.fileno() == number
    assert near.fileno() == -1
    assert stream.names == [], "not from inside the call"
    bench.quiet()
    assert stream.names == ["open"]
    far.sendall(b"echo")
    bench.turn_until(lambda: stream.data)
    bench.quiet()
    assert far.recv(10) == b"echo"
    stream.close()
    bench.quiet()
    assert far.recv(10) == b""
    assert stream.names == ["open", "data", "close"]


@pytest.mark.parametrize("data", [b"early ", bytearray(b"early "), memoryview(b"early ")], ids=repr)
@pytest.mark.parametrize("late", [b"", b"late"])
def test_what_was_received_before_comes_first(bench, stage, data, late):
    near, far = connected(stage)
    far.sendall(late)
    stream = bench.loop.adopt(near, Witness, data)
    bench.turn_until(lambda: len(stream.data) == 6 + len(late))
    assert stream.upcalls[:2] == [("open",), ("data", b"early ")]
    assert stream.data == b"early " + late
    stream.abort()


def test_what_was_received_before_is_framed_like_all_else(bench, stage):
    near, far = connected(stage)
    far.sendall(b"ne\nthree\n")
    stream = bench.loop.adopt(near, lambda: Witness(on_open=lambda stream: stream.read_until(b"\n")), b"one\ntwo\nli")
    bench.turn_until(lambda: len(stream.upcalls) == 5)
    assert [upcall[1] for upcall in stream.upcalls[1:]] == [b"one\n", b"two\n", b"line\n", b"three\n"]
    stream.abort()


def test_what_was_received_before_goes_on_with_who_is_detached_at_once(bench, stage):
    """Adopted, and handed on by on_open: the bytes were not delivered here."""
    near, far = connected(stage)
    far.sendall(b"late")
    detached = []
    bench.loop.adopt(near, lambda: Witness(on_open=lambda stream: detached.append(stream.detach())), b"early ")
    bench.quiet()
    assert detached[0].data == b"early "
    assert take_over(stage, detached[0]).recv(10) == b"late"


@pytest.mark.parametrize("end", ["FIN", "RST"])
def test_a_peer_that_has_ended_already(bench, stage, end):
    """What it was received, what waits in the kernel, and then the end: one after the other."""
    near, far = connected(stage)
    far.sendall(b"late")
    if end == "FIN":
        far.close()
    else:
        wait_for(near.fileno(), select.POLLIN)
        number = near.fileno()
    stream = bench.loop.adopt(near, Witness, b"early ")
    if end == "RST":
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        wait_for(number, select.POLLERR)
    bench.quiet()
    assert stream.data == b"early late"
    assert stream.names == (["open", "data", "eof"] if end == "FIN" else ["open", "data", "error", "close"])
    stream.abort()


@pytest.mark.parametrize("verb", ["close", "abort"])
def test_an_adopted_stream_that_is_closed_before_it_opens_was_never_open(bench, stage, verb):
    near, far = connected(stage)
    stream = bench.loop.adopt(near, Witness, b"data")
    getattr(stream, verb)()
    bench.quiet()
    assert stream.upcalls == [("close", None)]
    if verb == "close":
        assert far.recv(10) == b""
    else:
        with pytest.raises(ConnectionResetError):
            far.recv(10)


def test_pausing_in_on_open_holds_what_was_received_before(bench, stage):
    near, _ = connected(stage)
    stream = bench.loop.adopt(near, lambda: Witness(on_open=lambda stream: stream.pause_reading()), b"data")
    bench.quiet()
    assert stream.names == ["open"]
    stream.resume_reading()
    bench.quiet()
    assert stream.names == ["open", "data"]
    stream.abort()


def test_an_exception_in_on_open_of_an_adopted_stream(bench, stage, reported):
    def fail(stream):
        raise problem

    problem = ValueError("the handler's own")
    near, _ = connected(stage)
    stream = bench.loop.adopt(near, lambda: Witness(on_open=fail), b"data")
    bench.quiet()
    assert stream.upcalls == [("open",), ("close", problem)]
    assert reported == [(problem, stream)]


@pytest.mark.debug_build
def test_one_that_can_not_be_watched_stays_its_owner_s(bench, stage):
    from epollkit._operations import replaced

    near, far = connected(stage)
    live = bench.loop.stats().live
    with replaced(epoll_ctl=lambda *_: -errno.ENOSPC), pytest.raises(OSError, match="No space left"):
        bench.loop.adopt(near, Witness)
    assert bench.loop.stats().live == live
    far.sendall(b"still here")
    assert near.recv(100) == b"still here"


def test_adopting_in_an_upcall(bench, stage):
    near, far = connected(stage)
    far.sendall(b"there already")
    adopted = []
    _, client = open_pair(bench, Factory(lambda: Witness(
        on_data=lambda stream: adopted.append(bench.loop.adopt(near, Witness)))))
    client.send(b"x")
    bench.turn_until(lambda: adopted and adopted[0].data == b"there already")
    adopted[0].abort()


def test_from_one_loop_to_another_nothing_is_lost(bench, stage, address):
    """Frames, half of one, what waits in the kernel, what comes later: detached and adopted after each piece of a
    megabyte, by two loops in turn."""
    def framed():
        return Witness(on_open=lambda stream: stream.read_exactly(1000))

    with epollkit.Loop() as other_loop:
        other = Bench(other_loop)
        stream, client = open_pair(bench, Factory(Witness), address)
        stream.read_exactly(1000)
        received, sent, moves = bytearray(), 0, 0
        here, there = bench, other
        while len(received) < 1_000_000:
            sent += client.offer(MEGABYTE[sent:sent + 7777])
            here.loop.turn(0)
            received += stream.data
            detached = stream.detach()
            here, there = there, here
            stream = here.loop.adopt(detached.fd, framed, detached.data)
            here.loop.turn(0)
            moves += 1
            assert moves < 1000
        assert MEGABYTE.startswith(bytes(received))
        assert not [upcall for upcall in stream.upcalls if upcall[0] == "data" and len(upcall[1]) != 1000]
        stream.abort()
        other.quiet()
        bench.quiet()


def test_what_can_not_be_adopted_stays_the_caller_s(bench, stage, tmp_path):
    """Refused with a sentence that says why; open, and as it was."""
    reader, writer = os.pipe()
    stage.callback(os.close, reader)
    stage.callback(os.close, writer)
    path = os.open(tmp_path, os.O_RDONLY)
    stage.callback(os.close, path)
    datagrams = stage.own(socket.socket(type=socket.SOCK_DGRAM))
    datagrams.connect(("127.0.0.1", 9))
    alone = stage.own(socket.socket())
    listening = stage.listening()
    closed = socket.socket()
    closed.close()
    for given, why in ((reader, "non-socket"), (path, "non-socket"), (datagrams, "not a stream socket"),
                       (alone, "is not connected"), (alone.fileno(), "is not connected"),
                       (listening, "is not connected"), (closed, "no open socket"), (-1, "no open socket"),
                       (next_fd(), "Bad file descriptor"), (True, "no open socket")):
        factory = Factory(Witness)
        with pytest.raises(UsageError, match=why):
            bench.loop.adopt(given, factory)
        assert factory.made == []
    for end in (reader, writer, path, datagrams.fileno(), alone.fileno(), listening.fileno()):
        os.fstat(end)
    assert bench.loop.stats().live == 0


@pytest.mark.parametrize("given", ["socket", None, 1.5, b"x", Witness()], ids=repr)
def test_what_is_no_socket_at_all(bench, given):
    with pytest.raises(UsageError, match="takes a socket or its descriptor"):
        bench.loop.adopt(given, Witness)


def test_a_socket_that_speaks_tls_is_not_taken_for_a_plain_one(bench, stage, certificates):
    near, _ = connected(stage)
    near = stage.own(certificates.client_context().wrap_socket(near, server_hostname="localhost",
                                                               do_handshake_on_connect=False))
    with pytest.raises(UsageError, match="no TLS that has begun"):
        bench.loop.adopt(near, Witness)
    assert near.fileno() >= 0


def still_mine(near, far):
    """Whether the test's own end still works."""
    far.sendall(b"x")
    wait_for(near.fileno(), select.POLLIN)
    return near.recv(10) == b"x"


@pytest.mark.parametrize(("factory", "error", "message"), [
    (None, UsageError, "can't be called"), (lambda: 3, UsageError, "the factory of adopt() returned 3, not a stream"),
    (lambda: 1 / 0, ZeroDivisionError, "division by zero"), (Witness(), UsageError, "can't be called")])
def test_a_factory_that_makes_no_stream_leaves_the_socket_alone(bench, stage, factory, error, message):
    near, far = connected(stage)
    with pytest.raises(error, match=re.escape(message)):
        bench.loop.adopt(near, factory)
    assert still_mine(near, far)
    assert bench.loop.stats().live == 0


def test_a_used_stream_a_closed_loop_or_a_full_one_leave_the_socket_alone(bench, stage):
    near, far = connected(stage)
    used, _ = open_pair(bench, Factory(Witness))
    with pytest.raises(UsageError, match="a factory makes a new one each time"):
        bench.loop.adopt(near, lambda: used)
    with epollkit.Loop(max_connections=1) as full:
        first = full.adopt(connected(stage)[0], Witness)
        with pytest.raises(LimitReached, match="max_connections=1 "):
            full.adopt(near, Witness)
        first.abort()
    with pytest.raises(UsageError, match="this loop is closed"):
        full.adopt(near, Witness)
    with pytest.raises(UsageError, match="another thread"):
        in_thread(lambda: bench.loop.adopt(near, Witness))
    with pytest.raises(TypeError, match="bytes-like"):
        bench.loop.adopt(near, Witness, 5)
    assert still_mine(near, far)


def test_what_the_loop_has_already_can_not_be_adopted(bench, stage):
    """Neither a stream's descriptor, nor one that is registered raw; and whoever has it keeps it."""
    stream, client = open_pair(bench, Factory(Witness))
    with pytest.raises(UsageError, match="already registered"):
        bench.loop.adopt(stream.fileno(), Witness)
    client.send(b"still there")
    bench.quiet()
    assert stream.names == ["open", "data"]
    near, far = connected(stage)
    token = stage.watch(bench.loop, near, epollkit.IN, lambda token, events: None)
    with pytest.raises(UsageError, match="already registered"):
        bench.loop.adopt(near, Witness)
    assert token.live
    assert still_mine(near, far)


# -- and a fork --------------------------------------------------------------------------------------------------------


def test_what_was_detached_is_a_forked_child_s_too(bench, stage):
    """The loop is the parent's, what it gave away is anybody's."""
    stream, client = open_pair(bench, Factory(Witness))
    sock = take_over(stage, stream.detach())
    bench.quiet()

    def body():
        with pytest.raises(UsageError, match="belongs to the parent process"):
            bench.loop.adopt(sock, Witness)
        with epollkit.Loop() as loop:
            adopted = loop.adopt(sock, lambda: Witness(on_open=lambda stream: stream.write(b"from the child")))
            settle(loop)
            adopted.close()
        return 0

    with child(with_hooks=True, body=body) as end:
        assert client.take(14) == b"from the child"
        assert end() == 0
    assert ready_events(sock) & select.POLLOUT


def test_closing_an_adopted_connection_after_a_fork_reaches_the_peer(bench, stage):
    """A child that skipped the hooks holds a copy: the FIN leaves all the same, and no event comes of the copy."""
    near, far = connected(stage)
    stream = bench.loop.adopt(near, Witness)
    bench.quiet()
    with child(with_hooks=True):
        pass
    with child(with_hooks=False):
        stream.close()
        bench.quiet()
        assert far.recv(10) == b""
    assert bench.loop.stats().stale_orphan == 0


def test_detaching_after_a_fork_leaves_the_connection_open(bench, stage):
    stream, client = open_pair(bench, Factory(Witness))
    with child(with_hooks=True):
        pass
    with child(with_hooks=False):
        sock = take_over(stage, stream.detach())
        bench.quiet()
        client.send(b"data")
        assert bench.loop.turn(0) == 0
        assert sock.recv(10) == b"data"

"""Ways in which it broke once, each with what it takes to break it: mostly Python that runs where C did not expect it.

Allocating may run the garbage collector, that may run somebody's finalizer, and that may do anything: close the stream
at hand, or the loop. So may comparing a number of the user's, finding an attribute, calling fileno(), logging.
"""
from __future__ import annotations

import ctypes
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading

import pytest
from batches import Log, Spy, finalizer_at_next_allocation, in_child, settle

import epollkit
from epollkit import IN, Stream
from epollkit._connection import Connection
from epollkit.http import Response, listen, serve


@pytest.mark.parametrize("call", [lambda stream: stream.call_later(5, print), lambda stream: stream.call_soon(print),
                                  lambda stream: stream.write(b"x" * 100), lambda stream: stream.write(b"x" * 100_000)])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_finalizer_that_aborts_the_stream_at_hand(loop, stage, call, nth):
    stage.stream(loop, stream := Stream())
    with finalizer_at_next_allocation(stream.abort, nth):
        try:
            call(stream)
        except epollkit.UsageError as error:
            assert "closed" in str(error)
    settle(loop)
    assert stream.is_closing


@pytest.mark.parametrize("nth", range(1, 40, 3))
def test_a_finalizer_that_closes_the_loop_while_registering_fails(nth):
    loop = epollkit.Loop()
    with open(os.devnull) as null, open(__file__) as regular, finalizer_at_next_allocation(loop.close, nth):
        for file in (regular, null):
            with pytest.raises(epollkit.UsageError):
                loop.register(file.fileno(), IN, print)
                loop._check_usable()
    loop.close()


def test_a_write_limit_that_closes_the_stream(loop, stage):
    class Odd(Stream):
        @property
        def write_limit(self) -> int:
            self.abort()
            return 100

    stage.stream(loop, stream := Odd())
    stream.write(b"x" * 100_000)
    settle(loop)
    assert stream.is_closing


def test_a_handler_that_registers_its_fd_again_as_it_goes(loop):
    """The fd was closed behind the loop's back; registering it again lets go of the old handler, whose finalizer is
    faster: one slot has the fd in the end, not two."""
    class Handler:
        def __call__(self, token: object, events: int) -> None: ...

        def __del__(self) -> None:
            tokens.append(loop.register(read_end, IN, print))

    tokens: list[epollkit.Token] = []
    read_end, write_end = os.pipe()
    loop.register(read_end, IN, Handler())
    os.close(read_end)
    again, other_end = os.pipe()
    assert again == read_end
    with pytest.raises(epollkit.UsageError, match="already registered"):
        loop.register(read_end, IN, print)
    assert loop.stats().live == 1
    loop.unregister(tokens[0])
    for fd in (read_end, write_end, other_end):
        os.close(fd)


def test_a_loop_whose_finalizer_is_overridden_leaves_no_stream_behind_that_points_into_it():
    assert in_child("""if True:
        import gc, socket, epollkit
        class Careless(epollkit.Loop):
            def __del__(self): pass
        made = []
        def factory():
            made.append(epollkit.Stream())
            return made[0]
        loop = Careless()
        client = socket.create_connection(loop.listen(("127.0.0.1", 0), factory).address)
        while not made:
            loop.turn(1)
        token = made[0].token
        del loop
        gc.collect()
        for use in (lambda: made[0].write(b"x"), made[0].fileno, lambda: made[0].loop):
            try:
                use()
            except epollkit.UsageError as error:
                assert "closed" in str(error)
            else:
                raise SystemExit("no error")
        print(token.live, client.recv(1))
    """).split() == ["False", "b''"]


class Odd(int):
    """A number that says of itself whatever one wants to hear."""

    __lt__ = __le__ = __gt__ = __ge__ = lambda self, other: True


def test_numbers_are_what_they_are_and_not_what_they_say():
    for options in ({"max_connections": Odd(-5)}, {"batch": Odd(0)}, {"instance_bits": Odd(100)}):
        with pytest.raises(epollkit.UsageError, match="whole number"):
            epollkit.Loop(**options)
    with pytest.raises(epollkit.UsageError, match="status"):
        Response(status=Odd(500_000))


def test_an_fd_that_somebody_else_added_to_the_set(loop, stage):
    """Its data is no tag of ours, and far beyond any slot."""
    event = stage.event()
    high = os.dup2(event.fd, 4000)
    with select.epoll.fromfd(os.dup(loop.fileno())) as theirs:
        theirs.register(high, select.EPOLLIN)
        event.fire()
        assert loop.turn(0) == 0
        assert loop.stats().stale_orphan == 1
        theirs.unregister(high)
    os.close(high)


def test_admission_that_ends_the_connection_itself(stage, caplog):
    with epollkit.Loop() as loop:
        found: list[Connection] = []

        def admit(address: object) -> bool:
            found[:] = [made for made in gc.get_referents(loop) if isinstance(made, Connection)]
            found[0].abort()
            return True

        client = stage.connect(listen(loop, ("127.0.0.1", 0), lambda request: Response(), admit=admit))
        settle(loop)
        assert found[0].is_closing
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_log_handler_that_closes_the_listener(stage):
    class Closer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            listener.close()

    logger, closer = logging.getLogger("epollkit"), Closer()
    logger.addHandler(closer)
    try:
        with epollkit.Loop(max_connections=1) as loop:
            listener = stage.listen(loop, Stream)
            stage.connect_many(listener, 2)
            settle(loop)
            assert "closed" in repr(listener)
    finally:
        logger.removeHandler(closer)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_another_server_that_runs_while_a_head_is_being_parsed(stage, nth):
    """Two HTTP loops in one process: the collector runs the second in the middle of the first one's request."""
    def app(request: object) -> Response:
        return Response(request.target.encode())

    with epollkit.Loop() as first, epollkit.Loop() as second:
        ours = stage.connect(listen(first, ("127.0.0.1", 0), app))
        theirs = stage.connect(listen(second, ("127.0.0.1", 0), app))
        settle(first), settle(second)
        theirs.sendall(b"POST /theirs HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\nA: " + b"b" * 3000)
        ours.sendall(b"GET /ours/1 HTTP/1.1\r\nHost: y\r\n\r\nGET /ours/2 HTTP/1.1\r\nHo")
        with finalizer_at_next_allocation(lambda: second.turn(0), nth):
            settle(first)
        ours.sendall(b"st: y\r\n\r\n")
        received = b""
        while received.count(b"/ours/") < 2:
            first.turn(1)
            try:
                received += ours.recv(65536)
            except BlockingIOError:
                pass
        assert b"/ours/1" in received and b"/ours/2" in received
        theirs.sendall(b"\r\n\r\n" + b"c" * 40)
        settle(second)
        second.turn(0.05)
        assert b"/theirs" in theirs.recv(65536)


def test_a_second_signal_ends_a_server_whose_application_never_does():
    def app(request: object) -> Response:
        while True:
            signal.raise_signal(signal.SIGINT)

    def on_listening(listener: epollkit.Listener) -> None:
        clients.append(socket.create_connection(listener.address))
        clients[0].sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")

    clients: list[socket.socket] = []
    assert threading.current_thread() is threading.main_thread()
    serve(app, port=0, on_listening=on_listening)
    clients[0].close()


def test_a_signal_while_the_loop_closes_is_nobody_s_error(stage, caplog):
    """Its handlers are still there while the last on_close upcalls run."""
    log = Log()
    with epollkit.Loop() as loop:
        loop.add_signal_handler(signal.SIGUSR1, log.append, "handled")
        stage.stream(loop, Spy(log, "stream", on_close=lambda stream: signal.raise_signal(signal.SIGUSR1)))
        log.clear()
    assert log == [("stream", "on_close", None)]
    assert not caplog.records
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_a_cancelled_timer_whose_function_turns_the_loop_as_it_goes(loop):
    class Function:
        def __call__(self) -> None: ...

        def __del__(self) -> None:
            loop.turn(0)

    errors: list[BaseException] = []
    loop.set_exception_handler(lambda error, source: errors.append(error))
    loop.call_later(0, Function()).cancel()
    assert errors == []


def test_thousands_of_calls_bound_to_one_stream(loop, stage):
    """20,000 took 17 seconds once: every call went through all that were active."""
    stage.stream(loop, stream := Stream())
    calls = [stream.call_later(1000, print) for _ in range(20_000)]
    assert all(call.active for call in calls)
    stream.abort()
    assert not any(call.active for call in calls)


def test_what_is_not_made_by_hand_says_so():
    for kind in (epollkit.http.Request, epollkit._raw.RawEndpoint, epollkit._core.Wakeup, epollkit.Token,
                 epollkit.Timer):
        with pytest.raises(epollkit.UsageError):
            kind()
    unmade = epollkit.http.Request.__new__(epollkit.http.Request)
    for read in (lambda: unmade.method, lambda: unmade.target, lambda: unmade.path, lambda: unmade.headers):
        with pytest.raises(epollkit.UsageError):
            read()


def test_an_interrupted_on_open_is_taken_up_again(stage, tmp_path):
    """A unix socket raises no OUT by itself, so nothing else would end it."""
    def close_and_interrupt(stream: Stream) -> None:
        stream.close()
        raise KeyboardInterrupt

    log = Log()
    with epollkit.Loop() as loop:
        listener = stage.listen(loop, lambda: Spy(log, "stream", on_open=close_and_interrupt), str(tmp_path / "socket"))
        stage.connect(listener)
        with pytest.raises(KeyboardInterrupt):
            loop.turn(0)
        settle(loop)
        assert log == [("stream", "on_open", None), ("stream", "on_close", None)]


def test_tiny_writes_count_for_what_they_cost(loop, stage):
    """A million writes of three bytes are not three megabytes."""
    log = Log()

    class Small(Spy):
        write_limit = 1 << 20

    client = stage.stream(loop, stream := Small(log, "stream"))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stream.write(b"x" * (1 << 20))
    settle(loop)
    written = 0
    while not stream.is_closing:
        stream.write(b"abc")
        written += 1
    assert written < (1 << 20) / 64 * 1.1
    settle(loop)
    assert isinstance(log[-1][2], epollkit.LimitReached)


# -- the collector ----------------------------------------------------------------------------------------------------

TP_TRAVERSE = 71                # Py_tp_traverse of CPython's typeslots.h
slot_of_type = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_int)(("PyType_GetSlot", ctypes.pythonapi))
Visitor = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
Traverse = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, Visitor, ctypes.c_void_p)


def references_while_traversed(holder, thing):
    """How many references to a thing there are each time that its holder shows the collector something."""
    found = []
    visitor = Visitor(lambda *_: found.append(sys.getrefcount(thing)) or 0)
    before = sys.getrefcount(thing)
    Traverse(slot_of_type(type(holder), TP_TRAVERSE))(id(holder), visitor, None)
    assert len(found) > 1
    return before, found


@pytest.mark.parametrize("what", ["loop", "endpoint", "timer", "connector", "its stream"])
def test_the_collector_finds_the_references_that_there_are(loop, stage, certificates, what):
    """One more for a moment, while it looks, is one too many where it looks at what nobody refers to any more: as it
    goes, in an interpreter that checks itself (Py_DEBUG), and then it goes twice."""
    stage.stream(loop, stream := Stream())
    timer = loop.call_later(3600, print)
    connector = loop.connect(stage.listen(loop, Stream).address, Stream, ssl=certificates.client_context(),
                             server_hostname="localhost")
    holder, thing = {"loop": (loop, loop), "endpoint": (loop, stream), "timer": (loop, timer),
                     "connector": (connector, connector), "its stream": (connector, connector.stream)}[what]
    before, found = references_while_traversed(holder, thing)
    timer.cancel()
    connector.cancel()
    settle(loop)
    assert found == [before] * len(found)

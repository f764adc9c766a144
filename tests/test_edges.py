"""Lines that nothing else would miss: what happens after a pause, in a long queue, between two turns."""
from __future__ import annotations

import os
import select
import socket

from batches import Event, Log, Spy, settle, wait_ready
from wire import Bench

import epollkit
from epollkit import IN
from epollkit.http import Response

LONG_SECONDS = 20.0


def test_on_close_does_not_wait_for_an_event(loop, stage):
    """Closed between two turns: the next one tells so at once, however long it may wait."""
    log = Log()
    stage.stream(loop, stream := Spy(log, "stream"))
    log.clear()
    stream.abort()
    began = loop.time()
    loop.turn(LONG_SECONDS)
    assert log == [("stream", "on_close", None)]
    assert loop.time() - began < LONG_SECONDS / 2


def test_the_end_of_a_pipeline_is_seen_after_the_reader_was_paused():
    """21. A client sends a thousand requests and its FIN, reads nothing for a while, then everything: it gets every
    answer, and the end. The FIN came while the server was not reading; nobody tells it twice."""
    with epollkit.Loop() as loop, Bench(loop) as bench:
        client = bench.connect(bench.serve(lambda request: Response(b"x" * 60_000)))
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
        client.socket.shutdown(socket.SHUT_WR)
        settle(loop)
        assert client.take_all().count(b"HTTP/1.1 200 OK") == 200


def test_thousands_of_queued_pieces_reach_a_slow_reader(loop, stage):
    log = Log()
    client = stage.stream(loop, stream := Spy(log, "stream"))
    expected = bytearray()
    for number in range(5000):
        piece = b"%06d" % number * 200
        expected += piece
        stream.write(piece)
        if number % 100 == 0:
            loop.turn(0)
    received = bytearray()
    while len(received) < len(expected):
        loop.turn(0)
        wait_ready(client)
        received += client.recv(40_000)
    assert received == expected
    stream.abort()
    settle(loop)


def test_a_file_that_comes_back_under_its_old_number(loop, stage):
    """Its entry is still in the set, because a copy kept it alive, but no slot claims the number: it is taken over."""
    log = Log()
    event = stage.event()
    copy = os.dup(event.fd)
    loop.register(event, IN, log.handler("old"))
    number = event.fd
    event.close()
    stage.fill_fd_holes(number - 1)
    other = Event()
    assert other.fd == number
    token = loop.register(other, IN, log.handler("other"))
    loop.unregister(token)
    os.dup2(copy, number)
    back = loop.register(number, IN, log.handler("back"))
    settle(loop)
    log.clear()
    os.eventfd_write(copy, 1)
    settle(loop)
    assert log == [("back", IN)]
    loop.unregister(back)
    other.close()
    os.close(copy)


def test_a_head_that_is_refused_gets_no_body():
    """RFC 9110 9.3.2: the answer to HEAD never has content, not even when it says 411."""
    with epollkit.Loop() as loop, Bench(loop) as bench:
        client = bench.connect(bench.serve(lambda request: Response(b"")))
        client.send(b"HEAD / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        received = client.take_all()
        assert received.startswith(b"HTTP/1.1 411 ")
        assert received.endswith(b"\r\n\r\n")


def test_a_raw_fd_that_is_paused_by_one_shot_keeps_its_edge(loop, stage):
    """ONESHOT: what came while it was disarmed is reported by the MOD that arms it again (epoll_ctl(2))."""
    log = Log()
    event = stage.event()
    token = stage.watch(loop, event, IN | epollkit.ONESHOT, log.handler("event", event.drain))
    event.fire()
    settle(loop)
    event.fire()
    settle(loop)
    assert log == [("event", IN)]
    loop.modify(token, IN | epollkit.ONESHOT)
    settle(loop)
    assert log == [("event", IN), ("event", IN)]
    assert not select.select([event], [], [], 0)[0]

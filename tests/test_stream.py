"""Streams: which upcalls come, in which order, with what; what becomes of what is written; and that an end is one."""
from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import select
import socket
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import Peer, SecurePeer
from wire import Bench, Client, Factory, Recorder, open_pair, set_buffers, wait_for

import epollkit
from epollkit import LimitReached, UsageError

if epollkit.build_info()["build"] == "debug":
    from epollkit._operations import replaced

TCP = ("127.0.0.1", 0)
READ_BUDGET_BYTES = 262144
READ_ROOM_BYTES = 65536
MEGABYTE = bytes(range(256)) * 4096
PEER_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class Stay(Recorder):
    """Keeps its side open after the peer's end."""

    def on_eof(self):
        self.upcalls.append(("eof",))


class Echo(Recorder):
    def on_data(self, data):
        super().on_data(data)
        self.write(data)


# -- what arrives ------------------------------------------------------------------------------------------------------


def test_upcalls_come_in_order(bench, address):
    stream, client = open_pair(bench, address=address)
    assert stream.names == ["open"]
    client.send(b"one")
    bench.quiet()
    client.send(b"two")
    bench.quiet()
    client.end()
    bench.quiet()
    assert stream.upcalls == [("open",), ("data", b"one"), ("data", b"two"), ("eof",), ("close", None)]
    assert client.eof()


def test_data_is_bytes(bench):
    stream, client = open_pair(bench)
    client.send(b"x")
    bench.quiet()
    assert type(stream.upcalls[-1][1]) is bytes


def takes_in_turns(bench, keeps, turns):
    """A stream that gets all that its socket can hold, so many times; what it sees of each piece: who it is, and its
    hash; and the pieces that it keeps."""
    seen, kept, source = [], [], iter([MEGABYTE[turn:turn + 4 * READ_ROOM_BYTES - 3] for turn in range(turns)])
    sent = b""

    class Takes(Recorder):
        def on_data(self, data):
            seen.append((id(data), hash(data), len(data)))
            if keeps(len(seen)):
                kept.append((len(seen) - 1, data))

    _, client = open_pair(bench, Factory(Takes), server_receive=1 << 20)
    for piece in source:
        client.send(piece)
        sent += piece
        bench.turn_until(lambda: sum(size for _, _, size in seen) == len(sent))     # noqa: B023
    return seen, kept, sent


def test_pieces_that_are_kept_stay_as_they_were(bench):
    """Some are made of what an earlier handler did not keep; never of what one did."""
    seen, kept, sent = takes_in_turns(bench, lambda number: number % 3, 10)
    starts = [0]
    for _, _, size in seen:
        starts.append(starts[-1] + size)
    assert READ_ROOM_BYTES in [len(data) for _, data in kept]
    for number, data in kept:
        assert data == sent[starts[number]:starts[number + 1]]
    for number, (_, found, _) in enumerate(seen):
        assert found == hash(sent[starts[number]:starts[number + 1]])


def test_a_full_read_is_not_copied(bench):
    """The handler gets what was read into, and that again once nobody has it: two in all."""
    seen, _, _ = takes_in_turns(bench, lambda number: False, 10)
    assert len({name for name, _, size in seen if size == READ_ROOM_BYTES}) == 2


def test_a_megabyte_passes_both_ways_through_tiny_buffers(bench, address):
    """Every byte in order; neither end's socket ever holds more than a few thousand of them."""
    stream, client = open_pair(bench, Factory(Echo), address, server_receive=4096, server_send=4096,
                               receive_buffer=4096, send_buffer=4096)
    sent = 0
    echoed = bytearray()

    def all_echoed():
        nonlocal sent
        sent += client.offer(MEGABYTE[sent:sent + 60000])
        client.read()
        echoed.extend(client.received)
        client.received = b""
        return len(echoed) >= len(MEGABYTE)

    bench.turn_until(all_echoed)
    assert stream.data == MEGABYTE
    assert bytes(echoed) == MEGABYTE
    client.end()
    assert client.eof()
    assert stream.close_error is None


def test_half_close_in_the_same_batch_as_the_last_bytes_loses_neither_them_nor_the_reply(bench, address):
    """The peer sends its request and its FIN before the loop looks: RDHUP comes with the data."""
    class Replies(Recorder):
        def on_eof(self):
            self.write(b"reply to " + self.data)
            super().on_eof()

    stream, client = open_pair(bench, Factory(Replies), address)
    client.offer(b"request")
    client.end()
    wait_for(stream.fileno(), select.POLLRDHUP)
    assert bench.loop.turn(0) == 1
    assert stream.upcalls == [("open",), ("data", b"request"), ("eof",), ("close", None)]
    assert client.take_all() == b"reply to request"


def test_half_close_before_the_loop_accepts(bench, address):
    """Connect, send, FIN: all of it happens before the first turn."""
    factory = Factory(Echo)
    client = bench.connect(bench.listen(factory, address))
    client.offer(b"early")
    client.end()
    assert client.take_all() == b"early"
    assert factory.made[0].upcalls == [("open",), ("data", b"early"), ("eof",), ("close", None)]


def test_half_close_of_a_peer_that_sent_nothing(bench, address):
    stream, client = open_pair(bench, address=address)
    client.end()
    assert client.eof()
    assert stream.upcalls == [("open",), ("eof",), ("close", None)]


def test_after_half_close_this_side_may_go_on_writing(bench, address):
    """on_eof does not close; what is written turns later still arrives."""
    stream, client = open_pair(bench, Factory(Stay), address)
    client.end()
    bench.quiet()
    assert stream.names == ["open", "eof"]
    stream.write(b"late")
    assert client.take(4) == b"late"
    stream.close()
    assert client.eof()
    bench.quiet()
    assert stream.upcalls == [("open",), ("eof",), ("close", None)]


def test_half_close_behind_a_megabyte_comes_after_the_last_byte(bench, address):
    """10. More than one turn's read budget, then FIN: who stopped on budget still delivers the rest first."""
    stream, client = open_pair(bench, address=address, send_buffer=1 << 21, server_receive=1 << 21)
    client.send(MEGABYTE)
    client.end()
    bench.turn_until(lambda: stream.closed)
    assert stream.data == MEGABYTE
    assert stream.names == ["open", "data", "eof", "close"]


def test_data_then_reset_is_the_data_then_the_reset_and_never_an_end(bench):
    """11. What came before the RST is delivered; then the error, once."""
    stream, client = open_pair(bench)
    client.offer(b"data")
    client.reset()
    wait_for(stream.fileno(), PEER_GONE)
    bench.quiet()
    error = stream.close_error
    assert isinstance(error, ConnectionResetError)
    assert stream.upcalls == [("open",), ("data", b"data"), ("error", error), ("close", error)]


def test_data_then_reset_on_a_unix_socket(bench, tmp_path):
    """A unix peer that closes over unread bytes resets; what it had sent before is delivered first."""
    stream, client = open_pair(bench, address=str(tmp_path / "socket"))
    stream.write(b"never read")
    bench.quiet()
    client.offer(b"data")
    client.close()
    bench.quiet()
    error = stream.close_error
    assert isinstance(error, ConnectionResetError)
    assert stream.upcalls == [("open",), ("data", b"data"), ("error", error), ("close", error)]


def test_more_data_than_a_read_then_reset(bench):
    """11. What had arrived before the RST is delivered whole, though one recv does not hold it."""
    stream, client = open_pair(bench, server_receive=1 << 21)
    sent = client.offer(MEGABYTE[:300_000])
    client.arrived()
    client.reset()
    wait_for(stream.fileno(), PEER_GONE)
    bench.quiet()
    assert stream.data == MEGABYTE[:sent]
    assert stream.names == ["open", "data", "error", "close"]


def test_an_error_that_a_send_consumed_is_not_forgotten_by_the_reader(bench):
    """Data and RST have arrived, and the stream writes before it reads: the send takes the pending error, after which
    the kernel answers a recv with a plain 0. The reader must see the data and then the reset, not an end."""
    stream, client = open_pair(bench)
    client.offer(b"data")
    client.reset()
    wait_for(stream.fileno(), PEER_GONE)
    stream.write(b"x")      # leaves from the ready list, before the wait
    bench.quiet()
    error = stream.close_error
    assert isinstance(error, ConnectionResetError)
    assert stream.upcalls == [("open",), ("data", b"data"), ("error", error), ("close", error)]


def test_a_write_in_on_data_that_finds_the_peer_gone_still_delivers_all_data_before_the_error(bench):
    """200 KB and RST are there; the first on_data writes, which fails when its upcall ends."""
    class Acknowledges(Recorder):
        def on_data(self, data):
            super().on_data(data)
            self.write(b"ok")

    stream, client = open_pair(bench, Factory(Acknowledges), server_receive=1 << 21)
    sent = client.offer(MEGABYTE[:600_000])     # more than a turn's budget: a write fails between two reads
    client.arrived()
    client.reset()
    wait_for(stream.fileno(), PEER_GONE)
    bench.quiet()
    assert stream.data == MEGABYTE[:sent]
    assert stream.names == ["open", "data", "error", "close"]
    assert isinstance(stream.close_error, ConnectionResetError)


def test_reset_while_output_is_queued(bench):
    """A peer that reads nothing dies: the error is reported once, the queue is dropped."""
    stream, client = open_pair(bench, receive_buffer=4096)
    stream.write(MEGABYTE * 8)
    bench.quiet()
    client.reset()
    bench.turn_until(lambda: stream.closed)
    error = stream.close_error
    assert isinstance(error, ConnectionError)
    assert stream.upcalls == [("open",), ("error", error), ("close", error)]


def test_reset_after_half_close(bench):
    """The peer half-closed, this side stayed open and idle: the reset still reaches it."""
    stream, client = open_pair(bench, Factory(Stay))
    client.end()
    bench.quiet()
    client.reset()
    bench.turn_until(lambda: stream.closed)
    assert stream.names == ["open", "eof", "error", "close"]
    assert isinstance(stream.close_error, ConnectionError)


def test_reset_in_the_same_batch_as_the_half_close_is_not_lost(bench):
    """Data, FIN and RST before the loop looks, and on_eof does not close: no further edge will come, so the reset must
    be noticed now, or this stream lives for ever."""
    stream, client = open_pair(bench, Factory(Stay))
    client.offer(b"data")
    client.end()
    wait_for(stream.fileno(), select.POLLRDHUP)
    client.reset()
    wait_for(stream.fileno(), select.POLLERR)
    bench.quiet()
    assert stream.names in (["open", "data", "eof", "error", "close"], ["open", "data", "error", "close"])
    assert isinstance(stream.close_error, ConnectionError)


@pytest.mark.parametrize("end", ["while closing", "after its half-close"])
def test_a_unix_peer_that_leaves_while_output_is_queued_is_an_error(bench, tmp_path, end):
    """It has read what the socket held, so nothing is reset: a bare HUP. Megabytes that were written did not arrive,
    and on_close must not call that a clean end."""
    stream, client = open_pair(bench, Factory(Stay), str(tmp_path / "socket"))
    if end == "after its half-close":
        client.end()
        bench.quiet()
    stream.write(MEGABYTE * 4)
    if end == "while closing":
        stream.close()
    bench.quiet()
    client.read(limit=8 << 20)
    client.close()
    bench.turn_until(lambda: stream.closed)
    assert isinstance(stream.close_error, BrokenPipeError)


def test_reset_before_the_loop_accepts(bench):
    """The kernel hands the dead connection to accept; the stream opens and hears at once what happened."""
    factory = Factory()
    client = bench.connect(bench.listen(factory))
    client.offer(b"data")
    client.reset()
    bench.quiet()
    for stream in factory.made:     # a kernel may also drop it in the backlog
        assert stream.names == ["open", "data", "error", "close"]
        assert isinstance(stream.close_error, ConnectionResetError)


def test_urgent_data_does_not_strand_the_bytes_behind_it(bench):
    """29. `abc`, one out-of-band byte, `GET /second`, all there before the loop looks: recv stops short at the mark,
    and no further arrival comes to the rescue."""
    stream, client = open_pair(bench)
    client.offer(b"abc")
    client.socket.send(b"!", socket.MSG_OOB)
    client.offer(b"GET /second")
    client.arrived()
    bench.quiet()
    assert stream.data == b"abcGET /second"
    client.socket.send(b"!", socket.MSG_OOB)
    client.offer(b" and third")
    client.arrived()
    bench.quiet()
    assert stream.data == b"abcGET /second and third"
    client.end()
    bench.quiet()
    assert stream.upcalls[-2:] == [("eof",), ("close", None)]


def test_a_descriptor_passed_in_the_middle_does_not_strand_the_bytes_behind_it(bench, tmp_path):
    """30. recv on a unix socket stops short before a passed descriptor; the descriptor itself is closed."""
    stream, client = open_pair(bench, address=str(tmp_path / "socket"))
    reader, writer = os.pipe()
    try:
        client.offer(b"one")
        socket.send_fds(client.socket, [b","], [writer])
        client.offer(b"two")
        bench.quiet()
        assert stream.data == b"one,two"
        os.close(writer)
        writer = -1
        os.set_blocking(reader, False)
        assert os.read(reader, 1) == b""        # end: no copy of the writing end is left anywhere
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)


# -- fairness ----------------------------------------------------------------------------------------------------------


def test_an_endless_sender_gets_one_read_budget_per_turn_and_others_are_served_in_every_turn(bench):
    """20. The firehose's socket is filled again between any two turns. Counted, not timed."""
    listener = bench.listen(factory := Factory())
    set_buffers(listener.fileno(), receive=1 << 22)
    hose = bench.connect(listener, send_buffer=1 << 22)
    bench.turn_until(lambda: factory.made)
    firehose = factory.made[0]
    pinged, ping = open_pair(bench)
    swallowed = []
    for turn in range(60):
        hose.offer(MEGABYTE)
        ping.offer(b"%3d" % turn)
        before = len(firehose.data)
        bench.loop.turn(0)
        swallowed.append(len(firehose.data) - before)
        firehose.upcalls[:] = [("open",)]
        assert len(pinged.data) == 3 * (turn + 1), "not served in this turn"
    assert max(swallowed) > READ_BUDGET_BYTES // 2, "the sender never came near its budget: this proves nothing"
    assert max(swallowed) < READ_BUDGET_BYTES + READ_ROOM_BYTES


def test_two_endless_senders_share_a_turn_evenly(bench):
    factory = Factory()
    listener = bench.listen(factory)
    set_buffers(listener.fileno(), receive=1 << 22)
    hoses = [bench.connect(listener, send_buffer=1 << 22) for _ in range(2)]
    bench.turn_until(lambda: len(factory.made) == 2)
    for _ in range(40):
        for hose in hoses:
            hose.offer(MEGABYTE)
        bench.loop.turn(0)
    first, second = (len(stream.data) for stream in factory.made)
    assert first > 1 << 20
    assert abs(first - second) < 4 * READ_BUDGET_BYTES


# -- what is written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"bytes", bytearray(b"bytes"), memoryview(b"bytes"), memoryview(b"bbyytteess")[::2]],
                         ids=["bytes", "bytearray", "memoryview", "strided memoryview"])
def test_any_bytes_like_object_can_be_written(bench, data):
    stream, client = open_pair(bench)
    stream.write(data)
    assert client.take(5) == b"bytes"


def test_a_mutable_buffer_is_copied(bench):
    """The socket is full, the bytearray is changed while it waits: what was written is what arrives."""
    stream, client = open_pair(bench, receive_buffer=4096)
    data = bytearray(MEGABYTE * 4)
    stream.write(data)
    bench.quiet()
    data[:] = b"\0" * len(data)
    assert client.take(len(MEGABYTE) * 4) == MEGABYTE * 4


def test_writing_nothing_sends_nothing(bench):
    stream, client = open_pair(bench)
    stream.write(b"")
    assert client.nothing_comes()


@pytest.mark.parametrize("data", ["text", 5, None, [1, 2]])
def test_what_is_not_bytes_like_is_refused(bench, data):
    stream, _ = open_pair(bench)
    with pytest.raises((TypeError, UsageError)):
        stream.write(data)
    assert not stream.is_closing


def test_writes_of_one_upcall_keep_their_order_whatever_their_sizes(bench, address):
    """Small ones are gathered, large ones referenced, the socket fills in between; the stream of bytes is one."""
    sizes = [1, 16384, 16385, 3, 40000, 30000, 0, 65536, 65537, 200_000, 7, 16384, 16384, 16384, 16384, 16384, 1]
    pieces = [bytes([i + 1]) * size for i, size in enumerate(sizes)]

    class Writes(Recorder):
        def on_data(self, data):
            for piece in pieces:
                self.write(piece)

    _, client = open_pair(bench, Factory(Writes), address, receive_buffer=4096)
    client.send(b"go")
    bench.quiet()
    client.send(b"go")
    assert client.take(2 * sum(sizes)) == b"".join(pieces) * 2


def test_a_reader_of_a_trickle_gets_everything(bench, address):
    """8 MB through a peer that reads a little at a time: queued once, drained as the socket takes it."""
    stream, client = open_pair(bench, address=address, receive_buffer=4096, server_send=4096)
    stream.write(MEGABYTE * 2)
    stream.write(b"the end")
    got = bytearray()

    def all_there():
        client.read(limit=16000)
        got.extend(client.received)
        client.received = b""
        return len(got) >= 2 * len(MEGABYTE) + 7

    bench.turn_until(all_there)
    assert bytes(got) == MEGABYTE * 2 + b"the end"


def test_a_large_write_is_referenced_and_let_go_of_once_sent(bench):
    """No copy of 8 MB is made while the peer does not read, and none of it is held afterwards."""
    stream, client = open_pair(bench, receive_buffer=4096)
    data = bytes(8 << 20)
    before = sys.getrefcount(data)
    stream.write(data)
    bench.quiet()
    assert sys.getrefcount(data) == before + 1
    client.take(len(data))
    bench.quiet()
    assert sys.getrefcount(data) == before


def test_a_part_that_was_sent_is_let_go_of_while_others_wait(bench):
    stream, client = open_pair(bench, receive_buffer=4096)
    first, second = bytes(4 << 20), bytes(8 << 20)
    before = sys.getrefcount(first)
    stream.write(first)
    stream.write(second)
    client.take(len(first) + 100_000)
    assert sys.getrefcount(first) == before
    client.take(len(second) - 100_000)


def test_a_unix_stream_hears_nothing_when_its_peer_reads(bench, tmp_path):
    """On a unix socket every read of the peer's is an OUT edge: it is asked for only while output is queued."""
    stream, client = open_pair(bench, address=str(tmp_path / "socket"))
    for _ in range(3):
        stream.write(b"x" * 1000)
        bench.quiet()
        events = bench.loop.stats().events
        assert client.take(1000) == b"x" * 1000
        bench.quiet()
        assert bench.loop.stats().events == events
        stream.write(MEGABYTE * 4)              # now it is queued, and OUT is needed
        assert client.take(len(MEGABYTE) * 4) == MEGABYTE * 4
        bench.quiet()


def test_a_large_write_in_on_open_of_a_unix_stream(bench, tmp_path):
    """It blocks before the stream is in the epoll set at all."""
    class Greets(Recorder):
        def on_open(self):
            super().on_open()
            self.write(MEGABYTE * 4)

    _, client = open_pair(bench, Factory(Greets), str(tmp_path / "socket"))
    assert client.take(len(MEGABYTE) * 4) == MEGABYTE * 4


def test_what_others_write_leaves_in_the_next_turn(bench):
    """From a timer, from another stream's handler, from between two turns."""
    class Forwards(Recorder):
        def on_data(self, data):
            target.write(data)
            target.write(b"!")

    target, reader = open_pair(bench)
    _, sender = open_pair(bench, Factory(Forwards))
    sender.send(b"from a handler")
    assert reader.take(15) == b"from a handler!"
    bench.loop.call_later(0, target.write, b"from a timer")
    assert reader.take(12) == b"from a timer"
    target.write(b"from ")
    target.write(b"outside")
    bench.loop.turn(0)
    reader.read()
    assert reader.received == b"from outside"


def test_two_streams_that_write_to_each_other_do_not_mix_their_bytes(bench):
    """Both handlers run in one batch and write to both connections: gathered output belongs to one stream."""
    class Crosses(Recorder):
        def on_data(self, data):
            for stream in factory.made:
                stream.write(data + (b" own;" if stream is self else b" other's;"))

    factory = Factory(Crosses)
    listener = bench.listen(factory)
    clients = [bench.connect(listener) for _ in range(2)]
    bench.turn_until(lambda: len(factory.made) == 2)
    bench.quiet()
    clients[0].offer(b"A")
    clients[1].offer(b"B")
    wait_for(factory.made[1].fileno(), select.POLLIN)
    bench.quiet()
    for client, own, others in zip(clients, (b"A own;", b"B own;"), (b"B other's;", b"A other's;"), strict=True):
        client.read()
        assert client.received in (own + others, others + own)


@pytest.mark.parametrize("verb", ["detach", "shutdown_write", "close"])
def test_what_was_written_in_an_upcall_does_not_leave_on_another_that_ends_there(bench, address, verb):
    """Until the upcall is over it lies in a buffer of the loop's, of which the other one must know nothing."""
    class Ends(Recorder):
        def on_data(self, data):
            self.write(b"for me alone")
            ended.append(getattr(other, verb)())

    ended = []
    other, its_client = open_pair(bench, Factory(Stay))
    _, client = open_pair(bench, Factory(Ends), address)
    client.send(b"x")
    assert client.take(12) == b"for me alone"
    if verb == "detach":
        os.close(ended[0].fd)
    assert its_client.eof()
    its_client.end()


def test_a_queue_beyond_write_limit_resets_the_connection(bench, address):
    """The peer does not read. It is not an error of the connection, so on_error is not told; on_close is."""
    class Limited(Recorder):
        write_limit = 300_000

    stream, client = open_pair(bench, Factory(Limited), address, receive_buffer=4096, server_send=4096)
    writes = 0
    while not stream.is_closing:
        stream.write(b"x" * 50_000)
        bench.quiet()
        writes += 1
        assert writes < 1000
    assert writes >= 6
    error = stream.close_error
    assert isinstance(error, LimitReached)
    assert re.search(r"\d+ bytes wait for a peer that does not read, write_limit is 300000", str(error))
    assert stream.upcalls == [("open",), ("close", error)]
    if address == TCP:
        assert isinstance(client.broke(), ConnectionResetError)


def test_write_limit_is_reached_inside_an_upcall(bench, reported):
    """The writes that follow in the same handler say that it is closed; only that is reported."""
    class Floods(Recorder):
        write_limit = 100_000

        def on_data(self, data):
            super().on_data(data)
            for _ in range(4):
                self.write(b"x" * 60_000)

    stream, client = open_pair(bench, Factory(Floods))
    client.send(b"go")
    bench.quiet()
    assert isinstance(stream.close_error, LimitReached)
    assert [type(error) for error, _ in reported] == [UsageError]


def test_a_write_limit_that_writes_loses_nothing_and_stays_in_order(bench):
    class Nested(Recorder):
        asked = False

        @property
        def write_limit(self):
            if not self.asked:
                self.asked = True
                self.write(b"nested")
            return 1 << 20

        def on_data(self, data):
            self.write(b"x" * READ_ROOM_BYTES)      # too large to be gathered
            self.write(b"last")

    _stream, client = open_pair(bench, Factory(Nested))
    client.send(b"go")
    assert client.take(READ_ROOM_BYTES + 10) == b"nested" + b"x" * READ_ROOM_BYTES + b"last"
    _other, second = open_pair(bench, Factory(Echo))
    second.send(b"and the next one is clean")
    assert second.take(25) == b"and the next one is clean"


@pytest.mark.parametrize("little", [False, pytest.param(True, marks=pytest.mark.debug_build)])
def test_what_was_gathered_is_ahead_of_what_a_write_limit_writes(bench, little):
    """Moved to the queue; or because the socket has taken only three bytes of it."""
    class Nested(Recorder):
        asked = False

        @property
        def write_limit(self):
            if not self.asked:
                self.asked = True
                self.write(b"nested")
            return 1 << 20

        def on_data(self, data):
            self.write(b"gathered")
            if not little:
                self.write(b"x" * READ_ROOM_BYTES)

    _stream, client = open_pair(bench, Factory(Nested))
    client.send(b"go")
    with replaced(send=lambda _fd, _size: 3) if little else contextlib.nullcontext():
        assert client.take(14) == b"gatherednested"
    if not little:
        assert client.take(READ_ROOM_BYTES) == b"x" * READ_ROOM_BYTES


@pytest.mark.parametrize("how", ["raise", "abort", "close"])
def test_a_write_limit_that_fails_or_ends_its_stream(bench, reported, how):
    class Hostile(Recorder):
        @property
        def write_limit(self):
            if how == "raise":
                raise ValueError("no limit")
            getattr(self, how)()
            return 1 << 20

        def on_data(self, data):
            self.write(b"x" * READ_ROOM_BYTES)

    stream, client = open_pair(bench, Factory(Hostile))
    client.send(b"go")
    bench.turn_until(lambda: stream.is_closing)
    assert [type(error) for error, _ in reported] == ([ValueError] if how == "raise" else [])
    if how == "close":
        assert len(client.take_all()) == READ_ROOM_BYTES


def test_write_limit_may_be_filled_to_the_last_byte(bench):
    class Limited(Recorder):
        write_limit = 8 << 20

    stream, client = open_pair(bench, Factory(Limited), receive_buffer=4096)
    stream.write(bytes(8 << 20))
    assert client.take(8 << 20) == bytes(8 << 20)
    assert not stream.is_closing


STRACE_SCRIPT = """
    import ctypes, os, socket, sys, epollkit
    from epollkit.http import Response, listen
    libc = ctypes.CDLL(None)
    mark = lambda name: libc.send(-1, name.encode(), len(name), 0)      # seen in the trace, and by nobody else

    class Greets(epollkit.Stream):
        def on_open(self):
            for piece in (b"a", b"b", b"c"):
                self.write(piece)
        def on_data(self, data):
            if data == b"large":
                for piece in (b"small", b"L" * 20000, b"small", b"L" * 20000, b"small"):
                    self.write(piece)
            else:
                for _ in range(100):
                    self.write(data)
        def on_eof(self):
            for _ in range(10):
                self.write(b"bye")
            self.close()

    made = []
    def factory():
        made.append(Greets())
        return made[-1]

    def client(listener):
        sock = socket.create_connection(listener.address)
        quiet()
        return sock

    def quiet():
        while any([loop.turn(0), loop.turn(0), loop.turn(0)]):
            pass

    with epollkit.Loop() as loop:
        listener = loop.listen(("127.0.0.1", 0), factory)
        mark("on_open"); sock = client(listener)
        mark("on_data"); os.write(sock.fileno(), b"x"); quiet()
        mark("large"); os.write(sock.fileno(), b"large"); quiet()
        mark("outside"); made[0].write(b"a"); made[0].write(b"b"); made[0].write(b"c"); quiet()
        mark("timers"); [loop.call_later(0, made[0].write, b"t") for _ in range(5)]; quiet()
        mark("on_eof"); sock.shutdown(socket.SHUT_WR); quiet(); sock.close()
        server = listen(loop, ("127.0.0.1", 0), lambda request: Response(b"hello"))
        request = b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n"
        mark("one request"); sock = client(server); os.write(sock.fileno(), request); quiet()
        mark("100 requests"); os.write(sock.fileno(), request * 100); quiet()
        mark("refused"); os.write(sock.fileno(), request * 3 + b"BAD\\r\\n\\r\\n"); quiet(); sock.close()
        big = listen(loop, ("127.0.0.1", 0), lambda request: Response(b"b" * 100000))
        mark("large body"); sock = client(big); os.write(sock.fileno(), request); quiet(); sock.close()
        mark("end")
        listener.close(); server.close(); big.close(); quiet()
"""


def test_what_one_upcall_writes_leaves_as_one_system_call(tmp_path, peer):
    """Counted by strace, in a process of its own: the number of send calls per upcall."""
    strace = peer("strace")
    script, trace = tmp_path / "script.py", tmp_path / "trace"
    script.write_text(textwrap.dedent(STRACE_SCRIPT))
    done = subprocess.run([strace, "-f", "-qq", "-e", "trace=sendto,sendmsg", "-o", trace, sys.executable, script],
                          capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    if "PTRACE" in done.stderr or "ptrace" in done.stderr:
        pytest.skip("this machine does not let strace trace")
    assert done.returncode == 0, done.stderr
    counts, name = {}, None
    for line in trace.read_text().splitlines():
        mark = re.search(r'sendto\(-1, "([^"]*)"', line)
        if mark:
            name = mark[1]
            counts[name] = 0
        elif "sendto(" in line or "sendmsg(" in line:
            counts[name] += 1
    assert counts == {"on_open": 1, "on_data": 1, "large": 1, "outside": 1, "timers": 1, "on_eof": 1, "one request": 1,
                      "100 requests": 1, "refused": 1, "large body": 1, "end": 0}


# -- the end -----------------------------------------------------------------------------------------------------------


def test_close_sends_what_is_queued_first(bench, address):
    """4 MB for a slow reader, and close() at once: all of it arrives, then a clean end."""
    stream, client = open_pair(bench, address=address, receive_buffer=4096)
    stream.write(MEGABYTE * 4)
    stream.close()
    assert stream.is_closing
    assert stream.upcalls == [("open",)]
    assert client.take_all() == MEGABYTE * 4
    client.close()
    bench.turn_until(lambda: stream.closed)
    assert stream.upcalls == [("open",), ("close", None)]


def test_close_in_an_upcall_sends_what_that_upcall_wrote(bench, address):
    class Replies(Recorder):
        def on_data(self, data):
            super().on_data(data)
            self.write(b"small")
            self.write(MEGABYTE)
            self.close()

    stream, client = open_pair(bench, Factory(Replies), address, receive_buffer=4096)
    client.send(b"go")
    assert client.take_all() == b"small" + MEGABYTE
    client.close()
    bench.turn_until(lambda: stream.closed)
    assert stream.upcalls == [("open",), ("data", b"go"), ("close", None)]


def test_nothing_is_delivered_while_closing(bench):
    """close() with 4 MB queued; the peer half-closes, which a closing stream does not hear."""
    stream, client = open_pair(bench, receive_buffer=4096)
    stream.write(MEGABYTE * 4)
    stream.close()
    bench.quiet()
    client.end()
    assert client.take_all() == MEGABYTE * 4
    bench.quiet()
    assert stream.upcalls == [("open",), ("close", None)]


def test_close_sends_what_is_queued_although_the_peer_goes_on_sending(bench):
    """Input that nobody will read is there when the socket is closed: that must not cost the peer what was written."""
    stream, client = open_pair(bench, receive_buffer=4096)
    stream.write(MEGABYTE * 4)
    stream.close()
    bench.quiet()
    client.send(b"more")
    assert client.take(4 * len(MEGABYTE)) == MEGABYTE * 4
    client.close()
    bench.turn_until(lambda: stream.closed)
    assert stream.upcalls == [("open",), ("close", None)]


def test_a_reset_while_closing_reaches_on_close_only(bench):
    stream, client = open_pair(bench, receive_buffer=4096)
    stream.write(MEGABYTE * 4)
    stream.close()
    bench.quiet()
    client.reset()
    bench.turn_until(lambda: stream.closed)
    assert stream.names == ["open", "close"]
    assert isinstance(stream.close_error, ConnectionError)


def test_abort_resets_and_drops_the_queue(bench):
    stream, client = open_pair(bench, receive_buffer=4096)
    stream.write(MEGABYTE * 4)
    bench.quiet()
    stream.abort()
    assert isinstance(client.broke(), ConnectionResetError)
    assert len(client.received) < len(MEGABYTE) * 4
    bench.quiet()
    assert stream.upcalls == [("open",), ("close", None)]


def test_abort_with_a_reason_tells_on_close(bench):
    stream, client = open_pair(bench)
    reason = ValueError("no such protocol")
    with pytest.raises(epollkit.UsageError, match="by an exception, not by 'because'"):
        stream.abort("because")
    stream.abort(reason)
    assert isinstance(client.broke(), ConnectionResetError)
    bench.quiet()
    assert stream.upcalls == [("open",), ("close", reason)]
    stream.abort(reason)


def test_abort_of_a_closing_stream(bench):
    stream, client = open_pair(bench, receive_buffer=4096)
    stream.write(MEGABYTE * 4)
    stream.close()
    bench.quiet()
    stream.abort()
    assert isinstance(client.broke(), ConnectionResetError)
    bench.quiet()
    assert stream.upcalls == [("open",), ("close", None)]


@pytest.mark.parametrize("first", ["close", "abort"])
@pytest.mark.parametrize("second", ["close", "abort"])
def test_ending_twice_does_nothing(bench, first, second):
    stream, client = open_pair(bench)
    getattr(stream, first)()
    getattr(stream, second)()
    bench.quiet()
    getattr(stream, second)()
    assert stream.upcalls == [("open",), ("close", None)]
    client.read()
    assert client.ended or isinstance(client.error, ConnectionResetError)


@pytest.mark.parametrize("verb", ["close", "abort"])
@pytest.mark.parametrize("upcall", ["on_open", "on_data", "on_eof", "on_error", "on_close"])
def test_a_stream_may_end_itself_in_any_upcall_and_hears_nothing_after_on_close(bench, reported, upcall, verb):
    """The peer sends, half-closes or resets; whichever upcall ends the stream, one on_close follows and is the last."""
    seen = []

    class Ends(Recorder):
        pass

    def end(stream, *arguments):
        getattr(Recorder, upcall)(stream, *arguments)
        getattr(stream, verb)()
        seen.append((stream.is_closing, stream.closed))

    setattr(Ends, upcall, end)
    factory = Factory(Ends)
    client = bench.connect(bench.listen(factory))
    client.offer(b"data")
    if upcall == "on_error":
        bench.turn_until(lambda: factory.made)
        client.reset()
    else:
        client.end()
    bench.turn_until(lambda: factory.made and factory.made[0].closed)
    stream = factory.made[0]
    bench.quiet()
    before = {"on_open": ["open"], "on_data": ["open", "data"], "on_eof": ["open", "data", "eof"],
              "on_error": ["open", "data", "error"], "on_close": ["open", "data", "eof"]}[upcall]
    assert stream.names == [*before, "close"]
    assert (stream.close_error is None) == (upcall != "on_error")
    assert seen == [(True, upcall == "on_close")], "on_close came from inside the call"
    assert reported == []


def test_on_close_is_never_called_from_inside_close(bench):
    """Neither from inside an upcall nor from outside; it comes at the end of the turn, or of the next one."""
    stream, _ = open_pair(bench)
    stream.close()
    assert stream.is_closing
    assert not stream.closed
    bench.loop.turn(None)       # must not wait: there is an upcall to make
    assert stream.closed


def test_a_handler_that_closes_another_stream_with_an_event_in_the_same_batch(bench):
    """Both connections have data; whoever comes first closes the other, which hears on_close and nothing else."""
    class Kills(Recorder):
        def on_data(self, data):
            super().on_data(data)
            for stream in factory.made:
                if stream is not self:
                    stream.abort()

    factory = Factory(Kills)
    listener = bench.listen(factory)
    clients = [bench.connect(listener) for _ in range(2)]
    bench.turn_until(lambda: len(factory.made) == 2)
    bench.quiet()
    for client, stream in zip(clients, factory.made, strict=True):
        client.offer(b"data")
        wait_for(stream.fileno(), select.POLLIN)
    bench.quiet()
    assert sorted(stream.names for stream in factory.made) == [["open", "close"], ["open", "data"]]
    assert bench.loop.stats().stale_closed == 1


@pytest.mark.parametrize("end", ["a frame that is too long", "a frame that is not whole", "an exception", "half_close",
                                 "a timeout", "the loop's"])
@pytest.mark.parametrize("secure", [False, True])
def test_half_an_answer_never_looks_whole(certificates, end, secure):
    """However the stream ends, if something that was written is unsent, the peer is reset."""
    class Ends(Recorder):
        half_close = "abort" if end == "half_close" else "answer"

        def on_open(self):
            self.write(MEGABYTE * 12)
            if "frame" in end:
                self.read_until(b"\n", 10)

        def on_data(self, data):
            if end == "a timeout":
                self.set_timeout(life=0.001)
            else:
                raise ZeroDivisionError

    with epollkit.Loop() as loop:
        bench = Bench(loop)
        loop.set_exception_handler(lambda *_: None)
        factory = Factory(Ends)
        listener = bench.listen(factory, ssl=certificates.server_context() if secure else None)
        sock = socket.socket()
        set_buffers(sock.fileno(), 4096)
        sock.connect(listener.address)
        peer = SecurePeer(bench, sock, certificates.client_context()) if secure else Peer(bench, sock)
        peer.until(lambda: peer.received)
        peer.reading = False
        bench.quiet()
        peer.write(b"x" * (5 if "whole" in end else 50))
        if end in ("half_close", "a frame that is not whole"):
            peer.end()
        peer.push()
        if end == "the loop's":
            loop.close()
        bench.turn_until(lambda: factory.made[0].closed)
        peer.reading = True
        while not peer.over:
            wait_for(sock.fileno(), select.POLLIN)
            peer.pump()
        assert isinstance(peer.error, ConnectionResetError)
        assert len(peer.received) < 12 << 20
        peer.close()


@pytest.mark.parametrize("verb", ["close", "abort"])
def test_after_the_end_every_verb_says_so(bench, verb):
    stream, _ = open_pair(bench)
    getattr(stream, verb)()
    bench.quiet()
    assert stream.is_closing
    assert stream.peer_address is None
    assert stream.local_address is None
    for refused in (lambda: stream.write(b"x"), lambda: stream.call_soon(print), lambda: stream.call_later(1, print),
                    lambda: stream.loop, lambda: stream.token, stream.fileno):
        with pytest.raises(UsageError, match="this Recorder is closed, or was never opened"):
            refused()
    assert repr(stream) == "<Recorder closed>"


def test_writing_to_a_closing_stream_says_so(bench):
    stream, client = open_pair(bench, receive_buffer=4096)
    stream.write(MEGABYTE * 4)
    stream.close()
    with pytest.raises(UsageError, match=re.escape("this Recorder is closing; nothing can be written after close()")):
        stream.write(b"more")
    assert repr(stream).endswith(" closing>")
    client.take_all()


def test_a_stream_that_was_never_opened_says_so():
    stream = epollkit.Stream()
    with pytest.raises(UsageError, match="this Stream is closed, or was never opened"):
        stream.write(b"x")
    stream.close()
    stream.abort()
    assert stream.is_closing
    assert stream.peer_address is None


def test_the_loop_is_there_until_the_end_of_on_close(bench):
    """`loop` can be used in on_close, to start something else; `token` and the addresses are gone by then."""
    seen = []

    class Looks(Recorder):
        def on_close(self, error):
            seen.append((self.loop, self.is_closing, self.peer_address))
            super().on_close(error)

    stream, _ = open_pair(bench, Factory(Looks))
    stream.close()
    bench.quiet()
    assert seen == [(bench.loop, True, None)]
    with pytest.raises(UsageError):
        stream.loop     # noqa: B018


def test_loop_close_ends_streams_with_on_close():
    """Whatever state they are in: idle, with output queued, half-closed."""
    with epollkit.Loop() as loop:
        bench = Bench(loop)
        factory = Factory(Stay)
        listener = bench.listen(factory)
        clients = [Client(bench, listener.address, receive_buffer=4096) for _ in range(3)]
        bench.turn_until(lambda: len(factory.made) == 3)
        factory.made[1].write(MEGABYTE * 4)
        clients[2].end()
        bench.quiet()
    for stream in factory.made:
        assert stream.close_error is None
    for client in clients:
        client.close()


@pytest.mark.debug_build
@pytest.mark.parametrize("queued", [b"", MEGABYTE * 4], ids=["nothing queued", "queued"])
def test_a_closing_stream_whose_peer_does_not_read_has_30_seconds(bench, queued):
    from epollkit import _debug

    stream, client = open_pair(bench, receive_buffer=4096)
    index = stream.token.index
    assert _debug.slot_fields(bench.loop, index)["due_ns"] == 0
    if queued:
        stream.write(queued)
        stream.close()
        bench.quiet()
        assert 29 < _debug.slot_fields(bench.loop, index)["due_ns"] / 1e9 - bench.loop.time() < 31
        client.take_all()
        client.close()
    else:
        stream.close()
    bench.turn_until(lambda: stream.closed)
    assert _debug.slot_fields(bench.loop, index)["due_ns"] == 0


# -- exceptions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upcall", ["on_open", "on_data", "on_eof", "on_error", "on_close"])
def test_an_exception_ends_only_its_connection_is_reported_once_and_reaches_on_close(bench, reported, upcall):
    """Two connections have events in the same batch; one's handler raises, the other is served as if nothing were."""
    problem = ValueError("the handler's own")

    class Raises(Recorder):
        pass

    def raise_it(stream, *arguments):
        getattr(Recorder, upcall)(stream, *arguments)
        raise problem

    setattr(Raises, upcall, raise_it)
    healthy, other = open_pair(bench, Factory(Echo))
    factory = Factory(Raises)
    client = bench.connect(bench.listen(factory))
    client.offer(b"data")
    if upcall == "on_error":
        bench.turn_until(lambda: factory.made)
        client.reset()
    else:
        client.end()
    other.offer(b"data")
    bench.turn_until(lambda: factory.made and factory.made[0].closed)
    bench.quiet()
    stream = factory.made[0]
    before = {"on_open": ["open"], "on_data": ["open", "data"], "on_eof": ["open", "data", "eof"],
              "on_error": ["open", "data", "error"], "on_close": ["open", "data", "eof"]}[upcall]
    assert stream.names == [*before, "close"]
    assert reported == [(problem, stream)]
    assert stream.close_error is (None if upcall == "on_close" else problem)
    assert other.take(4) == b"data"
    assert healthy.names == ["open", "data"]
    if upcall != "on_error":
        client.read()
        assert client.ended or client.error


def test_without_an_exception_handler_the_log_has_one_record_with_the_traceback(bench, caplog):
    class Raises(Recorder):
        def on_data(self, data):
            raise ValueError("the handler's own")

    stream, client = open_pair(bench, Factory(Raises))
    with caplog.at_level(logging.DEBUG):
        client.send(b"x")
        bench.quiet()
    assert [(record.name, record.levelname) for record in caplog.records] == [("epollkit", "ERROR")]
    assert caplog.records[0].exc_info[1] is stream.close_error


def test_ctrl_c_in_a_handler_leaves_the_turn_and_loses_nothing(bench):
    """What the handler wrote before is sent; what it had not read, and the other connection's event, come next turn."""
    class Interrupted(Recorder):
        def on_data(self, data):
            super().on_data(data)
            self.write(b"seen ")
            if data == b"stop":
                raise KeyboardInterrupt

    stream, client = open_pair(bench, Factory(Interrupted))
    healthy, other = open_pair(bench, Factory(Echo))
    client.offer(b"stop")
    wait_for(stream.fileno(), select.POLLIN)
    other.offer(b"data")
    wait_for(healthy.fileno(), select.POLLIN)
    with pytest.raises(KeyboardInterrupt):
        bench.loop.turn(0)
    assert healthy.names == ["open"]
    assert other.take(4) == b"data"
    assert client.take(5) == b"seen "
    assert not stream.is_closing
    client.send(b"go on")
    assert client.take(5) == b"seen "
    assert stream.data == b"stopgo on"


def test_ctrl_c_in_on_error_does_not_break_it_a_second_time(bench):
    """The connection is broken once, and told so once; on_close follows as it always does."""
    class Interrupted(Recorder):
        def on_error(self, error):
            super().on_error(error)
            raise KeyboardInterrupt

    stream, client = open_pair(bench, Factory(Interrupted))
    client.reset()
    with pytest.raises(KeyboardInterrupt):
        bench.turn_until(lambda: False)
    bench.quiet()
    assert stream.names == ["open", "error", "close"]
    assert isinstance(stream.close_error, ConnectionResetError)


# -- whatever the peer does --------------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 200_000), st.sampled_from(["turn", "turn", "read", "nothing", "write"])),
                max_size=12),
       st.sampled_from(["end", "close", "reset"]), st.sampled_from([Recorder, Echo]), st.booleans())
def test_whatever_a_peer_does_the_upcalls_tell_it_truly(steps, end, stream_class, unix):
    """What was delivered is what was sent, from its beginning; on_open is first, on_close last; an end is reported only
    where there was one, and then nothing is missing."""
    sent = bytearray()
    factory = Factory(stream_class)
    with epollkit.Loop() as loop, Bench(loop) as bench:
        address = f"\0epollkit test {os.getpid()}" if unix else TCP
        stream, client = open_pair(bench, factory, address, receive_buffer=4096)
        with contextlib.suppress(ConnectionError):
            for size, step in steps:
                sent += (data := MEGABYTE[:size])[:client.offer(data)]
                if step == "turn":
                    loop.turn(0)
                elif step == "read":
                    client.read()
                elif step == "write" and not stream.is_closing:
                    stream.write(b"x" * size)
            if end == "end":
                client.end()
                client.take_all()
        if end == "reset" and not unix:
            client.reset()
        else:
            client.close()
        bench.turn_until(lambda: stream.closed)
    assert stream.names[0] == "open"
    error = stream.close_error
    assert sent.startswith(stream.data)
    if "eof" in stream.names:
        assert stream.data == sent
    assert ("error" in stream.names) == (error is not None and "eof" not in stream.names)
    if end == "end":
        assert error is None
        assert stream.data == sent


# -- calls that die with the stream ------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["close", "abort"])
def test_calls_die_with_their_stream(bench, verb):
    called = []
    stream, _ = open_pair(bench)
    timers = [stream.call_soon(called.append, "soon"), stream.call_later(0, called.append, "later"),
              stream.call_later(3600, called.append, "much later")]
    assert all(timer.active for timer in timers)
    getattr(stream, verb)()
    assert not any(timer.active for timer in timers)
    bench.quiet()
    assert called == []
    assert bench.loop.stats().timers == 0


def test_calls_run_while_their_stream_lives_and_may_be_cancelled(bench):
    called = []
    stream, _ = open_pair(bench)
    stream.call_soon(called.append, "soon")
    stream.call_later(0, called.append, "later")
    stream.call_soon(called.append, "never").cancel()
    bench.turn_until(lambda: len(called) == 2)
    bench.quiet()
    assert called == ["soon", "later"]


def test_a_call_may_close_its_own_stream(bench):
    called = []
    stream, client = open_pair(bench)
    stream.call_soon(stream.close)
    stream.call_soon(called.append, "after")
    assert client.eof()
    assert called == []
    assert stream.upcalls == [("open",), ("close", None)]


# -- who it is ---------------------------------------------------------------------------------------------------------


def test_addresses_of_tcp(bench):
    stream, client = open_pair(bench)
    assert stream.peer_address == client.socket.getsockname()
    assert stream.local_address == client.socket.getpeername()


def test_addresses_of_tcp_over_ipv6(bench):
    try:
        stream, client = open_pair(bench, address=("::1", 0))
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    assert stream.peer_address == client.socket.getsockname()[:2]
    assert stream.peer_address[0] == "::1"
    assert stream.local_address == client.socket.getpeername()[:2]


@pytest.mark.parametrize("kind", ["unnamed", "named", "abstract"])
def test_addresses_of_unix_sockets(bench, tmp_path, kind):
    path = str(tmp_path / "socket")
    name = {"unnamed": None, "named": str(tmp_path / "client"), "abstract": f"\0{tmp_path}/client"}[kind]
    stream, _ = open_pair(bench, address=path, bind=name)
    assert stream.peer_address == (name or "")
    assert stream.local_address == path


def test_addresses_of_an_abstract_listener(bench, tmp_path):
    name = f"\0{tmp_path}/listener"
    stream, _ = open_pair(bench, address=name)
    assert stream.local_address == name


def test_a_stream_knows_its_loop_and_its_token(bench):
    stream, client = open_pair(bench)
    assert stream.loop is bench.loop
    assert stream.token.live
    assert not stream.is_closing
    assert repr(stream) == f"<Recorder fd={stream.fileno()}>"
    token = stream.token
    client.end()
    bench.quiet()
    assert not token.live


def test_everything_is_there_in_on_open(bench):
    """The slot is taken before the first upcall."""
    seen = []

    class Looks(Recorder):
        def on_open(self):
            super().on_open()
            seen.append((self.loop, self.token.live, self.peer_address, self.is_closing))

    _, client = open_pair(bench, Factory(Looks))
    assert seen == [(bench.loop, True, client.socket.getsockname(), False)]


# -- factories ---------------------------------------------------------------------------------------------------------


def test_a_factory_may_pass_arguments(bench):
    class Named(Recorder):
        def __init__(self, name, *, punctuation):
            super().__init__()
            self.name = name + punctuation

        def on_open(self):
            super().on_open()
            self.write(self.name)

    client = bench.connect(bench.listen(lambda: Named(b"hello", punctuation=b"!")))
    assert client.take(6) == b"hello!"


@pytest.mark.parametrize("end", ["in use", "closed", "aborted", "peer closed", "peer reset", "raised"])
def test_an_instance_that_a_factory_returns_twice_is_refused(bench, reported, end):
    """However its first connection ended. The second is closed, the mistake reported; nobody hears the first twice."""
    class Once(Recorder):
        def on_data(self, data):
            super().on_data(data)
            raise ValueError("raised")

    stream = Once()
    listener = bench.listen(lambda: stream)
    first = bench.connect(listener)
    bench.turn_until(lambda: stream.upcalls)
    bench.quiet()
    if end == "closed":
        stream.close()
    elif end == "aborted":
        stream.abort()
    elif end == "peer closed":
        first.end()
    elif end == "peer reset":
        first.reset()
    elif end == "raised":
        first.send(b"x")
    bench.quiet()
    assert stream.closed == (end != "in use")
    reported.clear()
    before = list(stream.upcalls)
    second = bench.connect(listener)
    bench.quiet()
    assert stream.upcalls == before, "the used instance was told of another connection"
    second.read()
    assert second.ended or second.error is not None
    assert len(reported) == 1
    assert isinstance(reported[0][0], UsageError)
    assert "a factory makes a new one each time" in str(reported[0][0])


def test_a_dropped_stream_is_freed(bench):
    """Neither the slot nor a queue nor a timer holds it once on_close is over."""
    class Own(Recorder):
        pass

    factory = Factory(Own)
    stream, client = open_pair(bench, factory)
    stream.call_later(3600, stream.write, b"x")
    stream.write(MEGABYTE * 4)
    client.reset()
    bench.turn_until(lambda: stream.closed)
    assert sys.getrefcount(stream) == 3         # here, in the factory's list, and getrefcount's own
    stream = None
    factory.made.clear()
    gc.collect()
    assert not any(type(found) is Own for found in gc.get_objects())


def test_what_a_stream_wrote_before_it_ended_itself_reaches_nobody_else(bench):
    class Secretive(Recorder):
        def on_data(self, data):
            self.write(b"secret")
            self.abort()

    _, first = open_pair(bench, Factory(Secretive))
    _, second = open_pair(bench, Factory(Echo))
    first.send(b"x")
    second.send(b"hello")
    assert second.take(5) == b"hello"
    assert isinstance(first.broke(), ConnectionResetError)
    assert first.received == b""

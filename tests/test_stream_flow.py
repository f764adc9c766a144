"""Flow of streams: pausing, the end of either direction, watermarks. Nothing is lost, nobody spins, nobody waits for
ever."""
from __future__ import annotations

import random
import re
import select
import socket

import pytest
from wire import Factory, Witness, open_pair, wait_for

from epollkit import LimitReached, UsageError

MEGABYTE = random.Random(1).randbytes(1 << 20)
PEER_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR
DROPPED = "the peer has shut down its side; half_close is \"abort\""


class Aborting(Witness):
    half_close = "abort"


# -- paused ------------------------------------------------------------------------------------------------------------


def test_a_paused_stream_delivers_nothing_and_then_everything(bench, address):
    stream, client = open_pair(bench, Factory(Witness), address)
    stream.pause_reading()
    client.send(b"one")
    bench.quiet()
    client.send(b" two")
    bench.quiet()
    assert stream.heard() == ["open"]
    stream.resume_reading()
    assert stream.upcalls == [], "not from inside the call"
    bench.quiet()
    assert stream.upcalls == [("data", b"one two")]


def test_pausing_and_resuming_twice_does_nothing_more(bench, address):
    stream, client = open_pair(bench, Factory(Witness), address)
    stream.resume_reading()
    stream.pause_reading()
    stream.pause_reading()
    client.send(b"data")
    bench.quiet()
    assert stream.heard() == ["open"]
    stream.resume_reading()
    stream.resume_reading()
    bench.quiet()
    assert stream.upcalls == [("data", b"data")]
    assert bench.loop.turn(0) == 0


def test_pausing_in_on_data_stops_at_once_although_more_is_there(bench, address):
    """More than one read's worth has come; the rest waits in the kernel."""
    stream, client = open_pair(bench, Factory(lambda: Witness(on_data=lambda stream: stream.pause_reading())), address,
                               server_receive=1 << 20, send_buffer=1 << 20)
    sent = client.offer(MEGABYTE[:300_000])
    bench.quiet()
    assert [len(upcall[1]) for upcall in stream.upcalls[1:]] == [65536]
    turns = 1
    while len(stream.data) < sent:
        stream.resume_reading()
        bench.quiet()
        turns += 1
        assert turns <= sent // 20_000, "a resumed stream reads nothing"
    assert stream.data == MEGABYTE[:sent]


@pytest.mark.parametrize("resumes", [False, True])
def test_pausing_in_on_open_and_resuming_there(bench, address, resumes):
    """Before the stream is in the epoll set at all."""
    def pause(stream):
        stream.pause_reading()
        if resumes:
            stream.resume_reading()

    factory = Factory(lambda: Witness(on_open=pause))
    client = bench.connect(bench.listen(factory, address))
    client.offer(b"early")
    bench.turn_until(lambda: factory.made)
    bench.quiet()
    stream = factory.made[0]
    assert stream.names == ["open", *["data"] * resumes]
    stream.resume_reading()
    bench.quiet()
    assert stream.upcalls == [("open",), ("data", b"early")]
    stream.abort()


def test_a_reader_paused_at_its_high_watermark_notices_that_the_peer_has_ended(bench, address):
    """21. An echo whose peer does not read pauses until it does. The FIN that comes meanwhile is known at once, costs
    no turn and no upcall, and is delivered behind the last byte."""
    class Echo(Witness):
        def on_data(self, data):
            super().on_data(data)
            if not self.write(data):
                self.pause_reading()

        def on_drain(self):
            super().on_drain()
            self.resume_reading()

    stream, client = open_pair(bench, Factory(Echo), address, receive_buffer=4096, server_send=4096)
    sent = 0
    while not stream.unsent_bytes > 65536:
        sent += client.offer(MEGABYTE[sent:sent + 10_000])
        bench.quiet()
    sent += client.offer(MEGABYTE[sent:sent + 1000])
    client.end()
    bench.quiet()
    assert stream.peer_closed is True
    before = bench.loop.stats()
    assert "eof" not in stream.heard()
    for _ in range(100):
        assert bench.loop.turn(0) == 0
    assert bench.loop.stats().batches == before.batches, "a paused stream goes on being reported"
    assert stream.upcalls == []
    assert client.take(sent) == MEGABYTE[:sent]
    bench.turn_until(lambda: "eof" in stream.names)
    assert stream.names[-1] == "eof"
    stream.close()
    assert client.eof()


def test_a_paused_reader_notices_a_reset(bench):
    """21. Known at once by peer_closed, told after the pause, behind the bytes that came before it."""
    stream, client = open_pair(bench, Factory(Witness))
    stream.pause_reading()
    client.offer(b"data")
    client.reset()
    wait_for(stream.fileno(), select.POLLERR)
    bench.quiet()
    assert stream.heard() == ["open"]
    assert stream.peer_closed is True
    for _ in range(100):
        assert bench.loop.turn(0) == 0
    stream.resume_reading()
    bench.quiet()
    assert stream.names == ["data", "error", "close"]
    assert stream.data == b"data"
    assert isinstance(stream.close_error, ConnectionResetError)


def test_a_reset_behind_the_end_is_not_lost_by_a_pause(bench):
    """21. Data, FIN and RST while it was paused: reading finds the bytes and the end, but not the reset behind it."""
    stream, client = open_pair(bench, Factory(Witness))
    stream.pause_reading()
    client.offer(b"data")
    client.end()
    wait_for(stream.fileno(), select.POLLRDHUP)
    client.reset()
    wait_for(stream.fileno(), select.POLLERR)
    bench.quiet()
    stream.resume_reading()
    bench.quiet()
    assert stream.names == ["open", "data", "eof", "error", "close"]
    assert isinstance(stream.close_error, ConnectionError)


def test_a_reset_of_a_stream_that_is_paused_after_its_end_is_not_lost(bench):
    """21. on_eof was called, then it was paused: there is nothing to read, so nothing that reading could find."""
    stream, client = open_pair(bench, Factory(Witness))
    client.end()
    bench.quiet()
    stream.pause_reading()
    client.reset()
    wait_for(stream.fileno(), select.POLLERR)
    bench.quiet()
    assert stream.heard() == ["open", "eof"]
    stream.resume_reading()
    bench.quiet()
    assert stream.names == ["error", "close"]


def test_a_unix_peer_that_leaves_while_this_side_is_paused_is_gone_for_good(bench, tmp_path):
    """21. Its HUP comes once. After the pause: the bytes, the end, and that there is nobody left to write to."""
    stream, client = open_pair(bench, Factory(Witness), str(tmp_path / "socket"))
    stream.pause_reading()
    client.offer(b"data")
    client.close()
    bench.quiet()
    assert stream.heard() == ["open"]
    assert stream.peer_closed is True
    stream.resume_reading()
    bench.quiet()
    assert stream.names == ["data", "eof", "close"]
    assert stream.close_error is None


def test_a_write_that_finds_the_peer_gone_ends_the_pause(bench):
    """Who pauses until on_drain would wait for ever: there is no drain any more."""
    stream, client = open_pair(bench, Factory(Witness), receive_buffer=4096)
    client.offer(b"data")
    stream.pause_reading()
    assert not stream.write(MEGABYTE * 8)
    bench.quiet()
    client.reset()
    wait_for(stream.fileno(), select.POLLERR)
    bench.quiet()
    assert stream.names == ["open", "data", "error", "close"]
    assert isinstance(stream.close_error, ConnectionResetError)


def test_a_megabyte_and_its_end_reach_a_paused_reader_whole(bench, address):
    """10. Tiny buffers on both sides; the reader pauses in each on_data, and FIN follows the last byte at once."""
    stream, client = open_pair(bench, Factory(lambda: Witness(on_data=lambda stream: stream.pause_reading())), address,
                               server_receive=4096, send_buffer=4096)
    stream.pause_reading()
    sent = 0

    def over():
        nonlocal sent
        if sent < len(MEGABYTE):
            sent += client.offer(MEGABYTE[sent:])
            if sent == len(MEGABYTE):
                client.end()
        stream.resume_reading()
        return "eof" in stream.names

    bench.turn_until(over)
    assert stream.data == MEGABYTE
    assert stream.names == ["open", "data", "eof"]


def test_what_fits_the_sockets_and_its_end_reach_a_paused_reader_in_one_batch(bench, address):
    """10. All of it, the FIN too, is there before the pause ends."""
    stream, client = open_pair(bench, Factory(Witness), address, server_receive=1 << 21, send_buffer=1 << 21)
    stream.pause_reading()
    sent = client.offer(MEGABYTE)
    client.end()
    wait_for(stream.fileno(), select.POLLRDHUP)
    bench.quiet()
    stream.resume_reading()
    bench.quiet()
    assert stream.data == MEGABYTE[:sent]
    assert sent > 100_000
    assert stream.names == ["open", "data", "eof"]


def test_bytes_and_a_reset_reach_a_paused_reader_in_one_batch(bench):
    """11. More than a read's worth, then RST, then the pause ends: every byte, the reset, and never an end."""
    stream, client = open_pair(bench, Factory(Witness), server_receive=1 << 21)
    stream.pause_reading()
    sent = client.offer(MEGABYTE[:300_000])
    client.arrived()
    client.reset()
    wait_for(stream.fileno(), select.POLLERR)
    bench.quiet()
    stream.resume_reading()
    bench.quiet()
    assert stream.data == MEGABYTE[:sent]
    assert stream.names == ["open", "data", "error", "close"]
    assert isinstance(stream.close_error, ConnectionResetError)


# -- half-close --------------------------------------------------------------------------------------------------------


def test_a_half_close_that_is_not_answered_drops_the_connection(bench, address):
    stream, client = open_pair(bench, Factory(Aborting), address)
    client.end()
    bench.quiet()
    assert stream.names == ["open", "close"]
    assert isinstance(stream.close_error, ConnectionAbortedError)
    assert DROPPED in str(stream.close_error)
    assert client.eof()


@pytest.mark.parametrize("paused", [False, True])
def test_a_half_close_that_is_not_answered_drops_what_was_not_read_yet(bench, address, paused):
    """Bytes and FIN in one event: nothing is delivered any more. A pause puts nothing off."""
    stream, client = open_pair(bench, Factory(Aborting), address)
    if paused:
        stream.pause_reading()
    client.offer(b"data")
    client.end()
    wait_for(stream.fileno(), select.POLLRDHUP)
    bench.quiet()
    assert stream.names == ["open", "close"]
    assert isinstance(stream.close_error, ConnectionAbortedError)


def test_a_reset_is_no_half_close(bench):
    """It comes with RDHUP too, and what came before it is delivered, whatever the policy is."""
    stream, client = open_pair(bench, Factory(Aborting))
    client.offer(b"data")
    client.reset()
    wait_for(stream.fileno(), select.POLLERR)
    bench.quiet()
    assert stream.names == ["open", "data", "error", "close"]
    assert isinstance(stream.close_error, ConnectionResetError)


def test_the_other_half_of_a_close_is_no_half_close(bench, address):
    """This side has sent its end first, a request and nothing more: the answer and its end are what it waits for."""
    stream, client = open_pair(bench, Factory(Aborting), address)
    stream.write(b"request")
    stream.shutdown_write()
    assert client.take_all() == b"request"
    client.offer(b"answer")
    client.end()
    bench.turn_until(lambda: stream.closed)
    assert stream.upcalls == [("open",), ("data", b"answer"), ("eof",), ("close", None)]


def test_a_half_close_that_comes_while_the_stream_is_not_open_yet(bench):
    """What it is to be done about it is asked once it is."""
    near, far = socket.socketpair()
    with far:
        far.sendall(b"data")
        far.shutdown(socket.SHUT_WR)
        stream = bench.loop.adopt(near, Aborting)
        bench.quiet()
    assert stream.names[0] == "open"
    assert isinstance(stream.close_error, ConnectionAbortedError)


@pytest.mark.parametrize("policy", ["drop", None, 1])
def test_a_policy_that_there_is_not_is_reported(bench, reported, policy):
    class Misspelt(Witness):
        half_close = policy

    stream, client = open_pair(bench, Factory(Misspelt))
    client.end()
    bench.quiet()
    assert [str(error) for error, _ in reported] == [f'half_close is "answer" or "abort", not {policy!r}']
    assert stream.close_error is reported[0][0]


def test_the_policy_may_change_as_it_goes(bench, address):
    """It is asked when the half-close comes."""
    stream, client = open_pair(bench, Factory(Aborting), address)
    stream.half_close = "answer"
    client.offer(b"data")
    client.end()
    bench.quiet()
    assert stream.names == ["open", "data", "eof"]


# -- shutting down this side -------------------------------------------------------------------------------------------


def test_the_end_comes_behind_everything_that_was_written(bench, address):
    """Four megabytes for a slow reader, then our FIN; and the peer may go on."""
    stream, client = open_pair(bench, Factory(Witness), address, receive_buffer=4096)
    stream.write(MEGABYTE * 4)
    stream.shutdown_write()
    bench.quiet()
    assert stream.unsent_bytes > 0
    assert client.take_all() == MEGABYTE * 4
    client.send(b"and now I")
    bench.quiet()
    assert stream.data == b"and now I"
    assert not stream.is_closing


def test_the_end_in_an_upcall_comes_behind_what_that_upcall_has_written(bench, address):
    def answer(stream):
        stream.write(b"answer")
        stream.shutdown_write()

    stream, client = open_pair(bench, Factory(lambda: Witness(on_data=answer)), address)
    client.send(b"x")
    assert client.take_all() == b"answer"
    assert not stream.is_closing


def test_shutting_down_twice_does_nothing_more(bench, address):
    stream, client = open_pair(bench, Factory(Witness), address, receive_buffer=4096)
    stream.write(MEGABYTE)
    stream.shutdown_write()
    stream.shutdown_write()
    assert client.take_all() == MEGABYTE
    stream.shutdown_write()
    bench.quiet()
    assert stream.names == ["open", "drain"]


@pytest.mark.parametrize("queued", [False, True])
def test_nothing_can_be_written_behind_the_end(bench, queued, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    stream, client = open_pair(bench, Factory(Witness), receive_buffer=4096)
    if queued:
        stream.write(MEGABYTE * 4)
    stream.shutdown_write()
    with open(tmp_path / "file", "rb") as file:
        for write, what in ((stream.write, b"x"), (stream.writelines, [b"x"]), (stream.sendfile, file)):
            with pytest.raises(UsageError, match=re.escape("nothing can be written after shutdown_write()")):
                write(what)
    assert client.take_all() == MEGABYTE * 4 * queued


@pytest.mark.parametrize("first", ["peer", "this side"])
def test_once_both_directions_are_over_the_connection_closes(bench, address, first):
    """Whoever was first; nobody has to call close()."""
    stream, client = open_pair(bench, Factory(Witness), address)
    if first == "peer":
        client.end()
        bench.quiet()
        stream.shutdown_write()
    else:
        stream.shutdown_write()
        bench.quiet()
        client.end()
    bench.quiet()
    assert stream.upcalls == [("open",), ("eof",), ("close", None)]
    assert client.eof()


def test_both_ends_in_one_turn(bench, address):
    """The peer's FIN has arrived when on_data shuts down this side."""
    stream, client = open_pair(bench, Factory(lambda: Witness(on_data=lambda stream: stream.shutdown_write())), address)
    client.offer(b"data")
    client.end()
    wait_for(stream.fileno(), select.POLLRDHUP)
    bench.quiet()
    assert stream.upcalls == [("open",), ("data", b"data"), ("eof",), ("close", None)]


def test_both_ends_while_something_is_unsent(bench, address):
    """The peer ends, this side shuts down behind four megabytes: they arrive, then it closes."""
    stream, client = open_pair(bench, Factory(Witness), address, receive_buffer=4096)
    client.end()
    bench.quiet()
    stream.write(MEGABYTE * 4)
    stream.shutdown_write()
    assert client.take_all() == MEGABYTE * 4
    bench.quiet()
    assert stream.names == ["open", "eof", "drain", "close"]
    assert stream.close_error is None


def test_a_stream_that_has_shut_down_its_side_can_still_be_closed_and_aborted(bench, address):
    for verb in ("close", "abort"):
        stream, client = open_pair(bench, Factory(Witness), address if verb == "close" else ("127.0.0.1", 0))
        stream.shutdown_write()
        bench.quiet()
        client.offer(b"more")
        getattr(stream, verb)()
        client.close()
        bench.turn_until(lambda stream=stream: stream.closed)
        assert stream.close_error is None


# -- watermarks --------------------------------------------------------------------------------------------------------


def fill(bench, stream, piece=b"x" * 10_000):
    """Write until write() says that it is enough."""
    for _ in range(10_000):
        if not stream.write(piece):
            return
        bench.quiet()
    raise AssertionError("it is never enough")


def drain(bench, stream, client):
    """The peer reads until on_drain comes; what it read."""
    received = bytearray()
    stream.heard()

    def drained():
        client.read(limit=8192)
        received.extend(client.received)
        client.received = b""
        return "drain" in stream.names

    bench.turn_until(drained)
    return bytes(received)


def test_write_says_when_it_is_enough_and_on_drain_when_to_go_on(bench, address):
    """Above 64 KiB unsent; at 16 KiB or less. Once each time."""
    stream, client = open_pair(bench, Factory(Witness), address, receive_buffer=4096, server_send=4096)
    for _ in range(3):
        fill(bench, stream)
        assert 65536 < stream.unsent_bytes <= 65536 + 10_000
        for _ in range(5):
            assert not stream.write(b"x")
        bench.quiet()
        assert stream.heard() in (["open"], [])
        left = []
        stream.then["on_drain"] = lambda stream, left=left: left.append(stream.unsent_bytes)
        drain(bench, stream, client)
        assert len(left) == 1
        assert left[0] <= 16384
        bench.turn_until(lambda: client.read() == 0 and stream.unsent_bytes == 0)
        client.received = b""
        assert stream.heard() == ["drain"]


def test_on_drain_comes_also_when_the_socket_takes_it_all_at_once(bench, address):
    """In the next turn, not from inside write()."""
    stream, client = open_pair(bench, Factory(Witness), address, receive_buffer=1 << 20, server_send=1 << 20)
    assert not stream.write(b"x" * 70_000)
    assert stream.heard() == ["open"]
    assert client.take(70_000) == b"x" * 70_000
    bench.quiet()
    assert stream.heard() == ["drain"]
    assert stream.write(b"x")


def test_on_drain_may_write_and_hears_of_it_again(bench, address):
    """A million bytes, each piece written by on_drain: no recursion, no piece lost, one on_drain for each False."""
    left = list(range(40))
    said = []

    def more(stream):
        while left:
            said.append(stream.write(b"%03d" % left.pop(0) * 8000))
            if not said[-1]:
                return

    stream, client = open_pair(bench, Factory(lambda: Witness(on_data=more, on_drain=more)), address,
                               receive_buffer=4096, server_send=4096)
    client.send(b"go")
    assert client.take(40 * 24_000) == b"".join(b"%03d" % number * 8000 for number in range(40))
    bench.quiet()
    assert [upcall[0] for upcall in stream.upcalls].count("drain") == said.count(False) > 5


def test_watermarks_can_be_set(bench, address):
    stream, client = open_pair(bench, Factory(Witness), address, receive_buffer=4096, server_send=4096)
    stream.set_limits(high=1000, low=10)
    stream.write(MEGABYTE)                  # the socket is full
    bench.quiet()
    assert not stream.write(b"x")
    left = []
    stream.then["on_drain"] = lambda stream: left.append(stream.unsent_bytes)
    drain(bench, stream, client)
    assert left[0] <= 10
    bench.turn_until(lambda: client.read() == 0 and stream.unsent_bytes == 0)
    stream.set_limits(high=0)
    assert not stream.write(b"x")
    bench.quiet()
    assert left[1:] == [0]
    stream.set_limits(high=1 << 20)
    assert stream.write(b"x" * (1 << 20))
    assert not stream.write(b"x")


def test_a_limit_that_is_not_given_stays_and_low_is_a_quarter_of_high(bench):
    stream, client = open_pair(bench, Factory(Witness), receive_buffer=4096, server_send=4096)
    left = []
    stream.then["on_drain"] = lambda stream: left.append(stream.unsent_bytes)
    stream.set_limits(high=400_000)
    stream.set_limits(hard=8 << 20)
    assert stream.write(b"x" * 400_000)
    assert not stream.write(b"x" * 400_000)
    drain(bench, stream, client)
    assert 16384 < left[0] <= 100_000
    stream.set_limits(low=50)
    assert not stream.write(b"x" * 500_000)
    drain(bench, stream, client)
    assert left[1] <= 50


def test_watermarks_count_inside_an_upcall_too(bench):
    """What is gathered and will leave with the upcall is unsent until then."""
    said = []

    def writes(stream):
        stream.set_limits(high=1000)
        said.extend([stream.write(b"x" * 600), stream.unsent_bytes, stream.write(b"x" * 600), stream.unsent_bytes])

    stream, client = open_pair(bench, Factory(lambda: Witness(on_data=writes)))
    client.send(b"x")
    assert client.take(1200) == b"x" * 1200
    bench.quiet()
    assert said == [True, 600, False, 1200]
    assert stream.names == ["open", "data", "drain"]
    assert stream.unsent_bytes == 0


def test_nobody_hears_of_room_once_it_is_closing(bench, reported):
    """on_drain usually writes, and that would be an error after close()."""
    stream, client = open_pair(bench, Factory(lambda: Witness(on_drain=lambda stream: stream.write(b"more"))),
                               receive_buffer=4096)
    assert not stream.write(MEGABYTE * 4)
    stream.close()
    assert client.take_all() == MEGABYTE * 4
    client.close()
    bench.turn_until(lambda: stream.closed)
    assert stream.names == ["open", "close"]
    assert reported == []


def test_on_drain_comes_after_shutdown_write(bench):
    """It tells that the output is sent; whoever paused for that must hear it."""
    stream, client = open_pair(bench, Factory(Witness), receive_buffer=4096)
    assert not stream.write(MEGABYTE * 4)
    stream.shutdown_write()
    assert client.take_all() == MEGABYTE * 4
    bench.quiet()
    assert stream.names == ["open", "drain"]


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_beyond_the_hard_limit_the_connection_is_reset(bench, reported, where):
    def flood(stream):
        while not stream.is_closing:
            stream.write(b"x" * 50_000)

    stream, client = open_pair(bench, Factory(lambda: Witness(on_data=flood)), receive_buffer=4096)
    stream.set_limits(hard=300_000)
    if where == "inside":
        client.send(b"x")
    else:
        flood(stream)
    bench.quiet()
    assert stream.names == ["open", *["data"] * (where == "inside"), "close"]
    assert isinstance(stream.close_error, LimitReached)
    assert "300000" in str(stream.close_error)
    assert isinstance(client.broke(), ConnectionResetError)
    assert reported == []


def test_a_million_tiny_pieces_reach_the_hard_limit_too(bench):
    """Each costs memory beside its byte."""
    stream, _ = open_pair(bench, Factory(Witness), receive_buffer=4096, server_send=4096)
    stream.set_limits(hard=100_000)
    stream.write(b"x" * 50_000)
    bench.quiet()
    pieces = 0
    while not stream.is_closing:
        stream.write(b"x")
        pieces += 1
        assert pieces < 1000
    assert pieces > 500
    bench.quiet()
    assert isinstance(stream.close_error, LimitReached)


def test_a_hard_limit_that_is_lowered_counts_from_the_next_write_on(bench):
    stream, client = open_pair(bench, Factory(Witness), receive_buffer=4096)
    stream.write(MEGABYTE * 4)
    bench.quiet()
    stream.set_limits(hard=1000)
    bench.quiet()
    assert not stream.is_closing
    stream.write(b"x")
    bench.quiet()
    assert isinstance(stream.close_error, LimitReached)
    assert isinstance(client.broke(), ConnectionResetError)


@pytest.mark.parametrize("limits", [{"high": -1}, {"high": 1.5}, {"high": "1"}, {"high": 1 << 63}, {"low": -1},
                                    {"low": 65537}, {"high": 10, "low": 11}, {"hard": 0}, {"hard": True}], ids=str)
def test_limits_that_are_none_are_refused_and_change_nothing(bench, limits):
    stream, _ = open_pair(bench, Factory(Witness), receive_buffer=1 << 20, server_send=1 << 20)
    with pytest.raises(UsageError, match="is a whole number from"):
        stream.set_limits(**limits)
    assert stream.write(b"x" * 65536)
    assert not stream.write(b"x")


def test_writing_from_outside_counts_as_well(bench):
    """From a timer, from another stream's upcall, between two turns."""
    stream, client = open_pair(bench, Factory(Witness), receive_buffer=4096, server_send=4096)
    said = []
    _, other = open_pair(bench, Factory(lambda: Witness(on_data=lambda _: said.append(stream.write(b"b" * 40_000)))))
    said.append(stream.write(b"a" * 40_000))
    other.send(b"x")
    bench.quiet()
    bench.loop.call_later(0, lambda: said.append(stream.write(b"c" * 40_000)))
    bench.turn_until(lambda: len(said) == 3)
    assert said == [True, True, False] or said == [True, False, False]
    received = drain(bench, stream, client)
    received += client.take(120_000 - len(received))
    assert received == b"a" * 40_000 + b"b" * 40_000 + b"c" * 40_000
    assert stream.names == ["drain"]

"""Frames: `read_exactly`, `read_until`, `read_raw`. However the bytes come, on_data gets whole ones, no byte twice."""
from __future__ import annotations

import os
import random
import select

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import Bench, Factory, Recorder, Witness, cuts, open_pair, wait_for

import epollkit
from epollkit import PeerError, UsageError

MEGABYTE = random.Random(1).randbytes(1 << 20)
READ_ROOM_BYTES = 65536


class Framed(Witness):
    """Asks for frames when it opens: `Framed("read_until", b"\\r\\n")`."""

    def __init__(self, verb="read_raw", *arguments, **then):
        super().__init__(**then)
        self.ask = (verb, arguments)

    def on_open(self):
        getattr(self, self.ask[0])(*self.ask[1])
        super().on_open()

    @property
    def frames(self):
        return [upcall[1] for upcall in self.upcalls if upcall[0] == "data"]


def framed(bench, *ask, address=("127.0.0.1", 0), then=None, **options):
    return open_pair(bench, Factory(lambda: Framed(*ask, **(then or {}))), address, **options)


# -- however the bytes come --------------------------------------------------------------------------------------------


LINES = [b"GET / HTTP/1.1\r\n", b"\r\n", b"a\rb\nc\n\r\r\n", b"\r\r\n", b"last\r\n"]
BLOCKS = [b"12345", b"67890", b"abcde", b"fghij"]


@pytest.mark.parametrize(("ask", "frames"), [
    (("read_until", b"\r\n"), LINES), (("read_until", b"\n"), [b"one\n", b"\n", b"two\n"]),
    (("read_until", b"abab"), [b"aabaabab", b"abab", b"ab aabab", b"babab"]),
    (("read_exactly", 5), BLOCKS), (("read_exactly", 1), [b"a", b"b", b"c"]),
], ids=["CRLF", "LF", "abab", "5", "1"])
def test_whole_byte_by_byte_and_cut_at_every_index(ask, frames):
    data = b"".join(frames)
    with epollkit.Loop() as loop, Bench(loop) as bench:
        factory = Factory(Framed, *ask)
        listener = bench.listen(factory)
        for pieces in cuts(data):
            client = bench.connect(listener)
            client.send_pieces(pieces)
            bench.quiet()
            stream = factory.made[-1]
            assert stream.frames == frames, pieces
            stream.abort()
            client.close()


@pytest.mark.parametrize("ask", [("read_exactly", 100_000), ("read_until", b"END", 100_000)])
def test_a_frame_larger_than_a_read(bench, address, ask):
    body = MEGABYTE[:99_997] + b"END"
    stream, client = framed(bench, *ask, address=address)
    client.send(body * 3)
    bench.quiet()
    assert stream.frames == [body] * 3


@pytest.mark.parametrize("ask", [("read_exactly", 1 << 20), ("read_until", b"\0END", 1 << 20)])
def test_a_megabyte_in_one_frame_through_tiny_buffers(bench, address, ask):
    body = (b"x" * ((1 << 20) - 4)) + b"\0END"
    stream, client = framed(bench, *ask, address=address, server_receive=4096, send_buffer=4096)
    client.send(body)
    bench.turn_until(lambda: stream.frames)
    assert stream.frames == [body]


def test_a_separator_across_two_reads_of_the_full_buffer(bench):
    """The first read ends in the middle of it, at every place within it."""
    separator = b"<separator>"
    for offset in range(len(separator) + 1):
        frame = b"x" * (READ_ROOM_BYTES - offset) + separator
        stream, client = framed(bench, "read_until", separator, 100_000, server_receive=1 << 20, send_buffer=1 << 20)
        client.offer(frame * 2)
        bench.quiet()
        assert stream.frames == [frame] * 2, offset


def test_thousands_of_frames_in_one_read(bench, address):
    stream, client = framed(bench, "read_until", b"\n", address=address)
    frames = [b"%d\n" % number for number in range(20_000)]
    client.send(b"".join(frames))
    bench.quiet()
    assert stream.frames == frames


@pytest.mark.debug_build
def test_a_trickle_is_not_searched_again_and_again(bench):
    """A megabyte without a separator, in 256 pieces: each is looked at once, and the room for it grows by doubling."""
    from epollkit import _debug
    stream, client = framed(bench, "read_until", b"\r\n", 2 << 20)
    rooms = set()
    for number in range(1, 257):
        client.send(b"\r" * 4096)
        bench.quiet()
        fields = _debug.connection_fields(stream)
        assert fields["Options.searched"] == number * 4096 - 1
        rooms.add(fields["Options.held_room"])
    assert len(rooms) <= 10
    assert max(rooms) <= 2 << 20
    client.send(b"\n")
    bench.quiet()
    assert stream.frames == [b"\r" * (1 << 20) + b"\n"]
    assert _debug.connection_fields(stream)["Options.held_room"] == 0


@settings(max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(["exactly", "until", "raw"]), st.integers(1, 9)), min_size=1, max_size=6),
       st.lists(st.integers(1, 12), min_size=1, max_size=12),
       st.lists(st.sampled_from([b"a", b"b", b"ab"]), max_size=60))
def test_random_frames_against_a_plain_reading_of_the_whole(kinds, cuts_at, letters):
    """Each frame is of the next kind, over and over; what is delivered is what slicing the whole would give."""
    data = b"".join(letters)

    def ask(stream):
        kind, size = kinds[len(stream.frames) % len(kinds)]
        if kind == "exactly":
            stream.read_exactly(size)
        elif kind == "until":
            stream.read_until(b"ab" * (size % 2 + 1), 1000)
        else:
            stream.read_raw()

    with epollkit.Loop() as loop, Bench(loop) as bench:
        stream, client = framed(bench, then={"on_open": ask, "on_data": ask})
        start, number = 0, 0
        while start < len(data):
            size = cuts_at[number % len(cuts_at)]
            client.offer(data[start:start + size])
            bench.quiet()
            start, number = start + size, number + 1
        found = stream.frames
        stream.abort()
    left = data
    for number, frame in enumerate(found):
        kind, size = kinds[number % len(kinds)]
        if kind == "exactly":
            assert frame == left[:size]
            assert len(frame) == size
        elif kind == "until":
            end = left.index(b"ab" * (size % 2 + 1)) + 2 * (size % 2 + 1)
            assert frame == left[:end]
        assert left.startswith(frame)
        left = left[len(frame):]
    kind, size = kinds[len(found) % len(kinds)]
    assert kind != "raw" or left == b""
    assert kind != "exactly" or len(left) < size
    assert kind != "until" or b"ab" * (size % 2 + 1) not in left


# -- changing one's mind -----------------------------------------------------------------------------------------------


def test_what_a_handler_asks_for_counts_from_the_next_frame_on(bench):
    """A header line, a body of as many bytes as it says, and so on, all in one read; then whatever comes."""
    def parse(stream):
        frame = stream.frames[-1]
        if b"raw\n" in stream.frames:
            stream.read_raw()
        elif frame.endswith(b"\n"):
            stream.read_exactly(int(frame))
        else:
            stream.read_until(b"\n")

    stream, client = framed(bench, "read_until", b"\n", then={"on_data": parse})
    client.send(b"5\nab\ncd1\nx12\n" + b"y" * 12 + b"raw\n" + b"any\nthing")
    bench.quiet()
    client.send(b" else")
    bench.quiet()
    assert stream.frames[:-2] == [b"5\n", b"ab\ncd", b"1\n", b"x", b"12\n", b"y" * 12, b"raw\n"]
    assert b"".join(stream.frames[-2:]) == b"any\nthing else"


@pytest.mark.parametrize(("ask", "expected"), [
    (("read_raw",), [b"abcdefg"]), (("read_exactly", 3), [b"abc", b"def"]), (("read_until", b"c"), [b"abc"]),
    (("read_exactly", 7), [b"abcdefg"]), (("read_exactly", 8), []), (("read_until", b"x"), [])])
def test_what_is_asked_for_from_outside_finds_what_has_come_already(bench, ask, expected):
    """Seven bytes of a longer frame are held. No further byte has to come."""
    stream, client = framed(bench, "read_exactly", 100)
    client.send(b"abcdefg")
    bench.quiet()
    assert stream.frames == []
    getattr(stream, ask[0])(*ask[1:])
    assert stream.frames == [], "not from inside the call"
    bench.quiet()
    assert stream.frames == expected
    client.send(b"x")
    bench.quiet()
    detached = stream.detach()
    assert b"".join(stream.frames) + detached.data == b"abcdefgx"
    os.close(detached.fd)


def test_frames_that_are_asked_for_in_the_middle_of_raw_bytes(bench):
    """What that on_data got was its; framing begins with what comes after."""
    stream, client = framed(bench, "read_raw", then={"on_data": lambda stream: stream.read_exactly(3)})
    client.send(b"12345")
    bench.quiet()
    client.send(b"67")
    bench.quiet()
    client.send(b"8901")
    bench.quiet()
    assert stream.frames == [b"12345", b"678", b"901"]


def test_asking_again_for_the_same_starts_nothing_anew(bench):
    stream, client = framed(bench, "read_until", b"--", then={"on_data": lambda stream: stream.read_until(b"--")})
    for piece in (b"a", b"-", b"-b-", b"-", b"c"):
        client.send(piece)
        bench.quiet()
        stream.read_until(b"--")
        bench.quiet()
    assert stream.frames == [b"a--", b"b--"]


# -- pauses ------------------------------------------------------------------------------------------------------------


def test_a_pause_within_a_batch_of_frames_stops_behind_this_one(bench, address):
    """The others have come already. They are kept, and come one by one."""
    stream, client = framed(bench, "read_until", b"\n", address=address,
                            then={"on_data": lambda stream: stream.pause_reading()})
    frames = [b"%d\n" % number for number in range(200)]
    client.send(b"".join(frames))
    client.send(b"part")
    for number in range(200):
        bench.quiet()
        assert stream.frames == frames[:number + 1]
        stream.resume_reading()
    bench.quiet()
    assert stream.frames == frames
    client.send(b"ial\n")
    bench.quiet()
    assert stream.frames[-1] == b"partial\n"


def test_pausing_and_resuming_within_a_frame_s_upcall_changes_nothing(bench):
    def both(stream):
        stream.pause_reading()
        stream.resume_reading()

    stream, client = framed(bench, "read_exactly", 2, then={"on_data": both})
    client.send(b"aabbccd")
    bench.quiet()
    assert stream.frames == [b"aa", b"bb", b"cc"]


@pytest.mark.parametrize("end", ["FIN", "RST"])
def test_frames_that_a_pause_has_held_come_before_the_end(bench, end):
    stream, client = framed(bench, "read_exactly", 2, then={"on_data": lambda stream: stream.pause_reading()})
    client.offer(b"aabbcc")
    bench.quiet()
    if end == "FIN":
        client.end()
        wait_for(stream.fileno(), select.POLLRDHUP)
    else:
        client.reset()
        wait_for(stream.fileno(), select.POLLERR)
    bench.quiet()
    assert stream.heard() == ["open", "data"]
    for frame in (b"bb", b"cc"):
        stream.resume_reading()
        bench.quiet()
        assert stream.upcalls == [("data", frame)]
        stream.heard()
    stream.resume_reading()
    bench.quiet()
    assert stream.names == (["eof"] if end == "FIN" else ["error", "close"])


def test_asking_for_something_else_while_paused(bench):
    """Nothing is delivered before resume_reading, and then by what was asked for last."""
    stream, client = framed(bench, "read_exactly", 4, then={"on_data": lambda stream: stream.pause_reading()})
    client.send(b"1234ab\ncd\n")
    bench.quiet()
    stream.read_until(b"\n")
    bench.quiet()
    assert stream.frames == [b"1234"]
    del stream.then["on_data"]
    stream.resume_reading()
    bench.quiet()
    assert stream.frames == [b"1234", b"ab\n", b"cd\n"]


@pytest.mark.parametrize("verb", ["close", "abort"])
def test_a_stream_that_ends_itself_within_a_batch_of_frames_gets_no_further_one(bench, verb):
    stream, client = framed(bench, "read_exactly", 1, then={"on_data": lambda stream: getattr(stream, verb)()})
    client.send(b"abc")
    bench.turn_until(lambda: stream.closed)
    assert stream.names == ["open", "data", "close"]
    assert stream.frames == [b"a"]


def test_an_exception_within_a_batch_of_frames_ends_the_stream(bench, reported):
    def fail(stream):
        raise ValueError("the handler's own")

    stream, client = framed(bench, "read_exactly", 1, then={"on_data": fail})
    client.send(b"abc")
    bench.quiet()
    assert stream.names == ["open", "data", "close"]
    assert len(reported) == 1


def test_ctrl_c_within_a_batch_of_frames_loses_none(bench):
    """The interrupt leaves the turn. The frames behind it have come already: no byte of theirs will raise an event."""
    def interrupt(stream):
        if stream.frames[-1] == b"bb":
            raise KeyboardInterrupt

    stream, client = framed(bench, "read_exactly", 2, then={"on_data": interrupt})
    client.offer(b"aabbccdde")
    client.arrived()
    with pytest.raises(KeyboardInterrupt):
        bench.quiet()
    assert stream.frames == [b"aa", b"bb"]
    bench.quiet()
    assert stream.frames == [b"aa", b"bb", b"cc", b"dd"]
    client.send(b"e")
    bench.quiet()
    assert stream.frames[-1] == b"ee"


# -- what is wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("whole", "rest", "ends"), [
    (b"x" * 8 + b"\r\n", b"", False), (b"", b"x" * 9 + b"\r\n", True), (b"", b"x" * 9, False),
    (b"", b"x" * 10, True), (b"", b"x" * 9 + b"\r", True), (b"ok\r\n", b"x" * 10, True),
    (b"ok\r\n" * 10, b"x" * 9, False)])
@pytest.mark.parametrize("by_byte", [False, True])
def test_a_frame_that_is_longer_than_its_limit(bench, whole, rest, ends, by_byte):
    """10 bytes, separator included. Noticed when there are so many, not when it is whole."""
    sent = whole + rest
    stream, client = framed(bench, "read_until", b"\r\n", 10)
    client.send_pieces([sent[i:i + 1] for i in range(len(sent))] if by_byte else [sent])
    bench.quiet()
    assert b"".join(stream.frames) == whole
    assert stream.closed == ends
    if ends:
        assert stream.names == ["open", *["data"] * bool(stream.frames), "error", "close"]
        assert isinstance(stream.close_error, PeerError)
        assert str(stream.close_error) == "a frame is longer than its limit of 10 bytes"
        assert stream.upcalls[-2] == ("error", stream.close_error)


@pytest.mark.parametrize("ask", [("read_exactly", 4), ("read_until", b"\n")])
@pytest.mark.parametrize("batch", [False, True])
def test_an_end_within_a_frame_is_an_error(bench, address, ask, batch):
    """Never on_eof: what came is not whole."""
    stream, client = framed(bench, *ask, address=address)
    client.offer(b"abc\nab")
    if not batch:
        bench.quiet()
    client.end()
    bench.quiet()
    assert stream.names == ["open", "data", "error", "close"]
    assert stream.frames == [b"abc\n"]
    assert isinstance(stream.close_error, PeerError)
    assert str(stream.close_error) == "the stream ended within a frame, of which 2 bytes came"


def test_answers_to_good_frames_leave_although_a_bad_one_follows_in_the_same_read(bench, address):
    class Echo(Recorder):
        def on_open(self):
            self.read_until(b"\n", 10)

        def on_data(self, data):
            self.write(data)

    stream, client = open_pair(bench, Factory(Echo), address)
    client.send(b"one\ntwo\nmuch too long")
    assert client.take_all() == b"one\ntwo\n"
    assert isinstance(stream.close_error, PeerError)


def test_an_end_between_two_frames_is_one(bench, address):
    stream, client = framed(bench, "read_exactly", 4, address=address)
    client.offer(b"abcdabcd")
    client.end()
    bench.quiet()
    assert stream.names == ["open", "data", "eof"]


def test_a_reset_within_a_frame_is_the_reset(bench):
    stream, client = framed(bench, "read_exactly", 4)
    client.offer(b"abcdab")
    client.reset()
    wait_for(stream.fileno(), select.POLLERR)
    bench.quiet()
    assert stream.frames == [b"abcd"]
    assert isinstance(stream.close_error, ConnectionResetError)


def test_an_end_that_comes_while_the_rest_is_asked_for_raw(bench):
    """Half a frame, and its reader changes its mind before the end is seen: it gets the half, and the end."""
    stream, client = framed(bench, "read_exactly", 4)
    client.send(b"ab")
    bench.quiet()
    stream.read_raw()
    client.end()
    bench.quiet()
    assert stream.names == ["open", "data", "eof"]
    assert stream.frames == [b"ab"]


def test_closing_within_a_frame_is_no_error(bench):
    stream, client = framed(bench, "read_exactly", 4)
    client.send(b"ab")
    bench.quiet()
    stream.close()
    assert client.eof()
    bench.quiet()
    assert stream.upcalls == [("open",), ("close", None)]


@pytest.mark.parametrize("count", [0, -1, (1 << 30) + 1, 1.0, "1", None, True])
def test_a_number_of_bytes_that_is_none(bench, count):
    stream, client = framed(bench)
    with pytest.raises(UsageError, match="count is a whole number from 1 to"):
        stream.read_exactly(count)
    client.send(b"still raw")
    bench.quiet()
    assert stream.frames == [b"still raw"]


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ((b"",), UsageError, "a separator has 1 to 65536 bytes, what limit says, not 0"),
    ((b"long", 3), UsageError, "a separator has 1 to 3 bytes, what limit says, not 4"),
    ((b"x", 0), UsageError, "limit is a whole number"), ((b"x", 1 << 31), UsageError, "limit is a whole number"),
    ((b"x", None), UsageError, "limit is a whole number"), (("x",), TypeError, "bytes-like"),
    ((3,), TypeError, "bytes-like"), ((None,), TypeError, "bytes-like")], ids=repr)
def test_a_separator_or_a_limit_that_is_none(bench, arguments, error, message):
    stream, client = framed(bench)
    with pytest.raises(error, match=message):
        stream.read_until(*arguments)
    client.send(b"still raw")
    bench.quiet()
    assert stream.frames == [b"still raw"]


def test_any_bytes_may_separate(bench):
    for separator in (b"\0", bytearray(b"\r\n"), memoryview(b"xyz")[1:], b"n" * 100):
        stream, client = framed(bench, "read_until", separator)
        client.send(b"data" + bytes(separator) + b"more")
        bench.quiet()
        assert stream.frames == [b"data" + bytes(separator)]


@pytest.mark.debug_build
def test_memory_grows_with_what_comes_and_not_with_what_was_announced(bench):
    """A gigabyte is asked for, three bytes come: they cost no more than a small frame's would."""
    import resource
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stream, client = framed(bench, "read_exactly", 1 << 30)
    client.send(b"abc")
    bench.quiet()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000        # KiB
    assert stream.frames == []

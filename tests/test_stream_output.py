"""What streams send: many pieces in few calls, and files in order with everything else."""
from __future__ import annotations

import errno
import itertools
import os
import random
import re
import socket

import pytest
from batches import next_fd
from wire import Factory, Witness, open_pair

from epollkit import LimitReached, UsageError

MEGABYTE = random.Random(1).randbytes(1 << 20)
WRITE_BUDGET_BYTES = 4194304


def calls():
    from epollkit import _operations
    return _operations.calls()


def replaced(**replacements):
    from epollkit import _operations
    return _operations.replaced(**replacements)


@pytest.fixture
def file(tmp_path):
    """A function that makes a file and opens it."""
    opened = []

    def file(data, name="file"):
        (tmp_path / name).write_bytes(data)
        opened.append(open(tmp_path / name, "rb"))      # noqa: SIM115
        return opened[-1]
    yield file
    for one in opened:
        one.close()


# -- many pieces -------------------------------------------------------------------------------------------------------


@pytest.mark.debug_build
@pytest.mark.parametrize(("pieces", "sends"), [(1, 1), (2, 1), (64, 1), (65, 2), (1000, 16)])
def test_pieces_leave_together(bench, address, pieces, sends):
    """From outside an upcall they wait for the next turn; 64 in one sendmsg."""
    stream, client = open_pair(bench, Factory(Witness), address, receive_buffer=1 << 20)
    data = [b"%04d " % number * 20 for number in range(pieces)]
    before = calls()
    stream.writelines(data)
    assert calls() == before, "nothing is sent from inside the call"
    bench.quiet()
    made = calls() - before
    assert (made["send_parts"], made["send"]) == (sends, 0)
    assert client.take(pieces * 100) == b"".join(data)


@pytest.mark.debug_build
def test_pieces_of_one_upcall_leave_in_one_call(bench, address):
    """Small ones are gathered; with a large one among them they are referenced."""
    small = [b"%03d" % number for number in range(500)]
    mixed = [b"head", b"x" * 20_000, b"middle", b"y" * 20_000, b"end"]

    def answer(stream):
        stream.writelines(small if stream.data == b"s" else mixed)

    _, client = open_pair(bench, Factory(lambda: Witness(on_data=answer)), address, receive_buffer=1 << 20)
    for what, expected, call in ((b"s", small, "send"), (b"m", mixed, "send_parts")):
        before = calls()
        client.send(what)
        bench.quiet()
        made = calls() - before
        assert {name: made[name] for name in ("send", "send_parts")} == {"send": 0, "send_parts": 0, call: 1}
        assert client.take(len(b"".join(expected))) == b"".join(expected)


def test_pieces_may_be_anything_that_has_bytes(bench):
    stream, client = open_pair(bench, Factory(Witness))
    assert stream.writelines(iter([b"a", bytearray(b"b"), memoryview(b"ccdd")[::2], b""]))
    assert stream.writelines([])
    assert client.take(4) == b"abcd"


def test_writelines_says_as_write_does_whether_it_is_enough(bench):
    stream, client = open_pair(bench, Factory(Witness), receive_buffer=4096, server_send=4096)
    assert stream.writelines([b"x" * 30_000] * 2)
    assert not stream.writelines([b"x" * 30_000])
    client.take(90_000)
    bench.quiet()
    assert stream.names == ["open", "drain"]


def test_what_came_before_a_piece_that_can_not_be_written_is(bench):
    stream, client = open_pair(bench, Factory(Witness))
    with pytest.raises(TypeError):
        stream.writelines([b"one ", b"two", 3, b"four"])
    assert client.take(7) == b"one two"
    assert not stream.is_closing


def test_pieces_that_end_the_stream_as_they_come(bench):
    stream, client = open_pair(bench, Factory(Witness))

    def pieces():
        yield b"last words"
        stream.close()
        yield b"too late"

    with pytest.raises(UsageError, match="is closing"):
        stream.writelines(pieces())
    assert client.take_all() == b"last words"


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_a_file_is_sent_in_order_with_everything_else(bench, address, file, where):
    """Head, file, tail; larger than the sockets hold; twice."""
    body = file(MEGABYTE * 4)

    def answer(stream):
        stream.write(b"head")
        stream.sendfile(body)
        stream.write(b"tail")
        stream.write(b"x" * 20_000)

    stream, client = open_pair(bench, Factory(lambda: Witness(on_data=answer)), address, receive_buffer=4096)
    for _ in range(2):
        if where == "outside":
            answer(stream)
        else:
            client.send(b"go")
        assert client.take(4 + 4 * len(MEGABYTE) + 4 + 20_000) == b"head" + MEGABYTE * 4 + b"tail" + b"x" * 20_000
    bench.quiet()
    assert stream.unsent_bytes == 0


def test_a_file_for_another_stream_takes_nothing_of_what_this_one_has_written(bench, file):
    """What an upcall writes lies in a buffer of the loop's until it is over, and is nobody else's."""
    body = file(b"a file")
    other, others_client = open_pair(bench, Factory(Witness))

    def answer(stream):
        stream.write(b"for my own peer")
        other.sendfile(body)

    _, client = open_pair(bench, Factory(lambda: Witness(on_data=answer)))
    client.send(b"go")
    assert others_client.take(6) == b"a file"
    assert client.take(15) == b"for my own peer"
    assert client.nothing_comes()
    assert others_client.nothing_comes()


def test_a_write_limit_that_sends_a_file_has_nothing_sent_twice(bench, file):
    """It is asked for while what an upcall has written moves to the queue."""
    body = file(b"[from the limit]")

    class Asks(Witness):
        @property
        def write_limit(self):
            self.sendfile(body)
            return 1 << 20

    def answer(stream):
        stream.write(b"before")
        stream.write(b"x" * 20_000)

    _, client = open_pair(bench, Factory(lambda: Asks(on_data=answer)))
    client.send(b"go")
    got = client.take(16 + 6 + 20_000)
    assert (got.count(b"before"), got.count(b"[from the limit]"), got.count(b"x")) == (1, 1, 20_000)
    assert client.nothing_comes()


def test_a_write_limit_that_ends_its_stream_has_no_file_sent(bench, file):
    """Nor is the queue's own descriptor of it left open."""
    class Ends(Witness):
        @property
        def write_limit(self):
            self.abort()
            return 1 << 20

    stream, _ = open_pair(bench, Factory(Ends))
    with pytest.raises(UsageError, match="was closed by what it asked"):
        stream.sendfile(file(b"x"))
    bench.quiet()
    assert stream.names == ["open", "close"]


def test_several_files_one_after_the_other(bench, address, file):
    first, second, third = file(b"a" * 300_000, "a"), file(b"b" * 5, "b"), file(b"c" * 300_000, "c")
    stream, client = open_pair(bench, Factory(Witness), address, receive_buffer=4096)
    for one in (first, second, third, second):
        stream.sendfile(one)
    stream.writelines([b"1", b"2"])
    stream.sendfile(first, 299_999)
    expected = b"a" * 300_000 + b"b" * 5 + b"c" * 300_000 + b"b" * 5 + b"12" + b"a"
    assert client.take(len(expected)) == expected


@pytest.mark.parametrize(("offset", "count"), [(0, None), (0, 0), (0, 1), (1000, None), (1000, 0), (1000, 5000),
                                               (999_999, None), (999_999, 1), (1_000_000, None), (1_000_000, 0)])
def test_a_piece_of_a_file(bench, file, offset, count):
    body = file(MEGABYTE[:1_000_000])
    body.seek(5)
    stream, client = open_pair(bench, Factory(Witness))
    stream.sendfile(body, offset, count)
    stream.write(b"end")
    expected = MEGABYTE[offset:1_000_000 if count is None else offset + count] + b"end"
    assert client.take(len(expected)) == expected
    assert client.nothing_comes()
    assert body.tell() == 5, "its position is nobody's business"


@pytest.mark.parametrize(("offset", "count"), [(-1, None), (1001, None), (0, 1001), (1000, 1), (0, -1), (0.0, None),
                                               (None, None), (0, "1"), (True, None), (1 << 70, None)])
def test_a_piece_that_there_is_not_is_refused(bench, file, offset, count):
    body = file(b"x" * 1000)
    stream, client = open_pair(bench, Factory(Witness))
    with pytest.raises(UsageError, match="is a whole number from"):
        stream.sendfile(body, offset, count)
    assert client.nothing_comes()


def test_an_empty_file_is_nothing(bench, file):
    stream, client = open_pair(bench, Factory(Witness))
    assert stream.sendfile(file(b""))
    assert client.nothing_comes()


def test_a_descriptor_will_do(bench, file):
    stream, client = open_pair(bench, Factory(Witness))
    stream.sendfile(file(b"by number").fileno())
    assert client.take(9) == b"by number"


def test_the_file_may_be_closed_at_once_and_its_number_be_another_s(bench, file):
    """A copy of the descriptor is kept until it is sent, and not longer."""
    body, other = file(MEGABYTE * 2, "body"), file(b"other", "other")
    stream, client = open_pair(bench, Factory(Witness), receive_buffer=4096)
    stream.sendfile(body)
    number = body.fileno()
    os.dup2(other.fileno(), number)
    assert client.take(2 * len(MEGABYTE)) == MEGABYTE * 2
    bench.quiet()
    assert client.nothing_comes()
    assert os.fstat(number).st_size == 5


def test_what_is_appended_to_a_file_afterwards_is_not_sent(bench, file, tmp_path):
    body = file(MEGABYTE)
    stream, client = open_pair(bench, Factory(Witness), receive_buffer=4096)
    stream.sendfile(body)
    with open(tmp_path / "file", "ab") as again:
        again.write(b"more")
    stream.write(b"tail")
    assert client.take(len(MEGABYTE) + 4) == MEGABYTE + b"tail"


@pytest.mark.parametrize("left", [0, 1000, 500_000])
def test_a_file_that_became_shorter_ends_the_connection(bench, file, tmp_path, left):
    """The peer was promised more: it gets a reset, which nobody takes for an end."""
    body = file(MEGABYTE)
    stream, client = open_pair(bench, Factory(Witness), receive_buffer=4096)
    stream.write(b"head")
    stream.sendfile(body)
    stream.write(b"tail")
    os.truncate(tmp_path / "file", left)
    error = client.broke()
    assert isinstance(error, ConnectionResetError)
    assert (b"head" + MEGABYTE[:left]).startswith(client.received)
    bench.quiet()
    assert stream.names == ["open", "close"]
    assert isinstance(stream.close_error, OSError)
    assert stream.close_error.errno == errno.EIO
    assert "a file became shorter" in str(stream.close_error)


@pytest.mark.debug_build
def test_a_file_that_can_not_be_read_ends_the_connection(bench, file):
    """With a reset: a plain end would make a whole answer of half of one."""
    body = file(MEGABYTE)
    answers = iter([10_000, -errno.EIO])
    stream, client = open_pair(bench, Factory(Witness))
    with replaced(send_file=lambda *_: next(answers)):
        stream.sendfile(body)
        bench.quiet()
    assert isinstance(client.broke(), ConnectionResetError)
    assert stream.names == ["open", "error", "close"]
    assert stream.close_error.errno == errno.EIO


@pytest.mark.parametrize("what", ["pipe", "directory", "device", "socket", "eventfd"])
def test_what_is_no_regular_file_is_refused(bench, tmp_path, what):
    reader, writer = os.pipe()
    pair = socket.socketpair()
    fds = {"pipe": lambda: os.dup(reader), "directory": lambda: os.open(tmp_path, os.O_RDONLY),
           "device": lambda: os.open(os.devnull, os.O_RDONLY), "socket": lambda: os.dup(pair[0].fileno()),
           "eventfd": lambda: os.eventfd(0)}
    fd = fds[what]()
    stream, client = open_pair(bench, Factory(Witness))
    with pytest.raises(UsageError, match=re.escape(f"sendfile() sends regular files; fd {fd} is something else")):
        stream.sendfile(fd)
    assert client.nothing_comes()
    for closed in (reader, writer, fd):
        os.close(closed)
    for end in pair:
        end.close()


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_PATH])
def test_a_file_that_is_not_open_for_reading_is_refused(bench, file, tmp_path, flags):
    file(b"secret")
    fd = os.open(tmp_path / "file", flags)
    stream, client = open_pair(bench, Factory(Witness))
    with pytest.raises(UsageError, match=f"fd {fd} is not open for reading"):
        stream.sendfile(fd)
    assert client.nothing_comes()
    os.close(fd)


@pytest.mark.parametrize("what", ["path", None, -1, 1 << 40, 1.0, True, b"x"])
def test_what_is_no_file_is_refused(bench, what):
    stream, client = open_pair(bench, Factory(Witness))
    with pytest.raises(UsageError):
        stream.sendfile(what)
    assert client.nothing_comes()


def test_a_closed_file_is_refused(bench, file):
    body = file(b"x")
    body.close()
    stream, _ = open_pair(bench, Factory(Witness))
    with pytest.raises(UsageError, match="has no fd"):
        stream.sendfile(body)
    with pytest.raises(OSError, match="Bad file descriptor"):
        stream.sendfile(next_fd())


def open_count():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("end", ["abort", "peer", "limit", "exception"])
def test_a_connection_that_ends_in_the_middle_of_a_file_leaves_no_descriptor(bench, reported, file, end):
    def fail(stream):
        stream.sendfile(body)
        raise ValueError("the handler's own")

    body = file(MEGABYTE * 8)
    stream, client = open_pair(bench, Factory(lambda: Witness(on_data=fail)), receive_buffer=4096)
    before = open_count()
    for _ in range(3):
        stream.sendfile(body)
    bench.quiet()
    assert open_count() == before + 3
    if end == "abort":
        stream.abort()
    elif end == "peer":
        client.reset()
        before -= 1
    elif end == "limit":
        stream.set_limits(hard=100)
        stream.sendfile(body)
    else:
        client.send(b"x")
    bench.turn_until(lambda: stream.closed)
    assert open_count() == before - 1
    assert bool(reported) == (end == "exception")


def test_closing_sends_the_rest_of_a_file(bench, address, file):
    body = file(MEGABYTE * 4)
    stream, client = open_pair(bench, Factory(Witness), address, receive_buffer=4096)
    stream.sendfile(body)
    stream.close()
    assert client.take_all() == MEGABYTE * 4
    client.close()
    bench.turn_until(lambda: stream.closed)
    assert stream.close_error is None


def test_our_end_comes_behind_a_file(bench, address, file):
    body = file(MEGABYTE * 4)
    stream, client = open_pair(bench, Factory(Witness), address, receive_buffer=4096)
    stream.sendfile(body)
    stream.shutdown_write()
    assert client.take_all() == MEGABYTE * 4
    assert not stream.closed


def test_a_file_costs_no_memory_but_room_in_the_queue(bench, file, tmp_path):
    """A sparse terabyte is 64 bytes; sixteen pieces are beyond a limit of a thousand."""
    os.truncate(file(b"").name, 1 << 40)
    with open(tmp_path / "file", "rb") as body:
        stream, client = open_pair(bench, Factory(Witness), receive_buffer=4096)
        stream.set_limits(hard=1000)
        assert not stream.sendfile(body)
        assert stream.unsent_bytes == 1 << 40
        for _ in range(15):
            stream.sendfile(body)
        assert not stream.is_closing
        stream.sendfile(body)
        bench.quiet()
        assert isinstance(stream.close_error, LimitReached)
        assert isinstance(client.broke(), ConnectionResetError)


def test_on_drain_follows_a_file(bench, file):
    body = file(MEGABYTE)
    stream, client = open_pair(bench, Factory(Witness), receive_buffer=4096)
    assert not stream.sendfile(body)
    assert client.take(len(MEGABYTE)) == MEGABYTE
    bench.quiet()
    assert stream.names == ["open", "drain"]
    assert stream.sendfile(body, 0, 65536)


@pytest.mark.debug_build
def test_a_peer_that_takes_a_large_file_as_fast_as_it_comes_does_not_starve_the_others(bench, file):
    """A budget per turn: counted, with a kernel that takes everything at once."""
    body = file(b"")
    os.truncate(body.name, 1 << 30)
    stream, _ = open_pair(bench, Factory(Witness))
    other, ping = open_pair(bench, Factory(Witness))
    with replaced(send_file=lambda _fd, _file, _offset, length: length):
        stream.sendfile(body)
        for turn in range(50):
            before = stream.unsent_bytes
            ping.offer(b"x")
            bench.loop.turn(0)
            assert 0 < before - stream.unsent_bytes <= WRITE_BUDGET_BYTES
            assert len(other.data) == turn + 1, "not served in this turn"
    stream.abort()


@pytest.mark.debug_build
def test_short_sends_of_every_size_keep_the_order(bench, file):
    """The socket takes as few bytes as it likes: 1 to 40 at a time."""
    body = file(MEGABYTE[:1000])
    stream, client = open_pair(bench, Factory(Witness))
    sizes = itertools.cycle(range(1, 41))
    with replaced(send=lambda _fd, size: min(next(sizes), size), send_parts=lambda _fd, size: min(next(sizes), size)):
        for _ in range(3):
            stream.writelines([MEGABYTE[:100], b"x" * 300, b"y"])
            stream.sendfile(body)
        expected = (MEGABYTE[:100] + b"x" * 300 + b"y" + MEGABYTE[:1000]) * 3
        assert client.take(len(expected)) == expected


@pytest.mark.debug_build
def test_a_descriptor_that_can_not_be_copied(bench, file):
    """EMFILE is the caller's to hear; the stream goes on."""
    body = file(b"body")
    stream, client = open_pair(bench, Factory(Witness))
    with replaced(duplicate=lambda _fd: -errno.EMFILE), pytest.raises(OSError, match="sendfile: Too many open"):
        stream.sendfile(body)
    stream.sendfile(body)
    assert client.take(4) == b"body"


def test_sendfile_to_a_peer_that_is_gone(bench, file):
    """No signal, no exception: the reader reports it."""
    body = file(MEGABYTE)
    stream, client = open_pair(bench, Factory(Witness))
    client.reset()
    stream.sendfile(body)
    bench.turn_until(lambda: stream.closed)
    assert stream.names == ["open", "error", "close"]
    assert isinstance(stream.close_error, ConnectionError)


@pytest.mark.debug_build
@pytest.mark.parametrize("error", [errno.ENOBUFS, errno.ENOMEM])
def test_bytes_that_the_kernel_refuses_are_missed_by_the_peer(bench, error):
    """The connection itself is fine, and a plain end would look as if all of it had been sent."""
    stream, client = open_pair(bench, Factory(Witness))
    with replaced(send_parts=lambda _fd, size: -error):
        stream.write(MEGABYTE)
        bench.quiet()
    assert isinstance(client.broke(), ConnectionResetError)
    assert stream.close_error.errno == error
    assert stream.names == ["open", "error", "close"]

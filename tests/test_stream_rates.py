"""Rate limits of streams, on a clock that stands still until a test lets time pass: no window of time sees more than
rate x time + burst, nobody is starved, and nobody leaves anything behind."""
from __future__ import annotations

import random
import select

import pytest
from wire import Factory, Witness, open_pair, wait_for

import epollkit
from epollkit import RateLimit, UsageError

MEGABYTE = random.Random(1).randbytes(1 << 20)
STEP_SECONDS = 0.01
on_the_fake_clock = pytest.mark.debug_build


@pytest.fixture
def loop(request):
    if request.node.get_closest_marker("debug_build"):
        request.getfixturevalue("clock")
    with epollkit.Loop() as made:
        yield made
        assert (made.stats().live, made.stats().timers) == (0, 0)


@pytest.fixture
def watched(bench, clock):
    """A function that lets time pass in small steps, and does something before and notes something after each."""
    def watched(seconds, before, note):
        found = [note()]
        for _ in range(round(seconds / STEP_SECONDS)):
            before()
            end_ns = clock.now_ns + round(STEP_SECONDS * 1e9)
            while clock.now_ns < end_ns:
                bench.loop.turn((end_ns - clock.now_ns) / 1e9)
            bench.quiet()
            before()
            bench.quiet()
            found.append(note())
        return found
    return watched


def keeps_to(found, rate, burst):
    """In no window of time more than its rate and the burst; and over all of it hardly less than the rate."""
    for width in (1, 2, 3, 5, 10, 30, 100, len(found) - 1):
        for first in range(len(found) - width):
            amount = found[first + width] - found[first]
            assert amount <= rate * width * STEP_SECONDS + burst + 1, f"{amount} bytes in {width} steps from {first}"
    amount, due = found[-1] - found[0], rate * (len(found) - 1) * STEP_SECONDS
    assert amount >= 0.95 * due - burst, f"{amount} bytes where {due} were due"


class Counts(Witness):
    """How many bytes came."""

    count = 0

    def on_data(self, data):
        self.count += len(data)
        super().on_data(data)


class Hose:
    """A peer that always has more to send."""

    def __init__(self, client):
        self.client = client
        self.sent = 0

    def __call__(self):
        while True:
            start = self.sent % len(MEGABYTE)
            count = self.client.offer(MEGABYTE[start:start + 100_000])
            self.sent += count
            if count == 0:
                return


# -- one stream --------------------------------------------------------------------------------------------------------


@on_the_fake_clock
@pytest.mark.parametrize(("rate", "burst"), [(1000, 100), (50_000, 5000), (1000, 1), (1_000_000, 100_000)])
def test_bytes_come_no_faster_than_the_limit_allows(bench, watched, address, rate, burst):
    stream, client = open_pair(bench, Factory(Counts), address)
    stream.set_rate(read=RateLimit(rate, burst))
    found = watched(3, Hose(client), lambda: stream.count)
    keeps_to(found, rate, burst)
    assert MEGABYTE.startswith(stream.data[:len(MEGABYTE)])
    assert set(stream.heard()) == {"open", "data"}


@on_the_fake_clock
@pytest.mark.parametrize(("rate", "burst"), [(1000, 100), (50_000, 5000), (1000, 1), (1_000_000, 100_000)])
def test_bytes_go_no_faster_than_the_limit_allows(bench, watched, address, rate, burst):
    stream, client = open_pair(bench, Factory(Counts), address)
    stream.set_rate(write=RateLimit(rate, burst))
    total = MEGABYTE * (rate * 3 // len(MEGABYTE) + 1)
    stream.write(total)
    found = watched(3, lambda: None, lambda: (client.read() and 0) or len(client.received))
    keeps_to(found, rate, burst)
    assert total.startswith(client.received)


@on_the_fake_clock
def test_both_directions_have_limits_of_their_own(bench, watched):
    """Echo: what comes at 20 KB a second goes at 5."""
    class Echo(Counts):
        def on_data(self, data):
            super().on_data(data)
            self.write(data)

    stream, client = open_pair(bench, Factory(Echo))
    stream.set_rate(read=20_000, write=RateLimit(5000, 500))
    found = watched(3, Hose(client), lambda: (client.read() and 0) or (stream.count, len(client.received)))
    keeps_to([read for read, _ in found], 20_000, 2000)
    keeps_to([written for _, written in found], 5000, 500)


@on_the_fake_clock
def test_a_stream_that_was_idle_has_its_burst_and_no_more(bench, watched):
    stream, client = open_pair(bench, Factory(Counts))
    stream.set_rate(read=RateLimit(1000, 500))
    watched(10, lambda: None, lambda: 0)
    keeps_to(watched(3, Hose(client), lambda: stream.count), 1000, 500)
    assert stream.count >= 3000 + 500 - 10


@on_the_fake_clock
def test_many_small_messages_are_limited_as_well(bench, watched, address):
    """What a short read did not use is given back: the limit is in bytes, not in reads."""
    stream, client = open_pair(bench, Factory(Counts), address)
    stream.set_rate(read=RateLimit(10_000, 4096))
    found = watched(3, lambda: client.offer(b"x" * 49), lambda: stream.count)
    assert found[-1] >= 49 * 600 - 4096, "98 bytes per step are below the limit: nothing is to be held up"
    found = watched(3, lambda: client.offer(b"x" * 400), lambda: stream.count)
    keeps_to(found, 10_000, 4096)


@on_the_fake_clock
def test_the_end_comes_behind_what_the_limit_has_held_up(bench, watched, address):
    stream, client = open_pair(bench, Factory(Counts), address)
    stream.set_rate(read=RateLimit(10_000, 1000))
    client.send(b"x" * 20_000)
    client.end()
    watched(1, lambda: None, lambda: 0)
    assert stream.peer_closed
    assert 9000 < len(stream.data) <= 11_000
    assert "eof" not in stream.names
    watched(1.2, lambda: None, lambda: 0)
    assert stream.data == b"x" * 20_000
    assert stream.names == ["open", "data", "eof"]


@on_the_fake_clock
def test_a_reset_comes_behind_what_the_limit_has_held_up(bench, watched):
    """The RST was reported while nothing was read: it is not lost, nor are the bytes before it."""
    stream, client = open_pair(bench, Factory(Counts))
    stream.set_rate(read=RateLimit(10_000, 1000))
    client.send(b"x" * 20_000)
    bench.quiet()
    client.arrived()
    client.reset()
    wait_for(stream.fileno(), select.POLLERR)
    watched(1, lambda: None, lambda: 0)
    assert stream.names == ["open", "data"]
    watched(1.5, lambda: None, lambda: 0)
    assert stream.data == b"x" * 20_000
    assert stream.names == ["open", "data", "error", "close"]
    assert isinstance(stream.close_error, ConnectionResetError)


@on_the_fake_clock
def test_frames_come_whole_through_a_limit(bench, watched):
    stream, client = open_pair(bench, Factory(Counts))
    stream.read_until(b"\n")
    stream.set_rate(read=RateLimit(10_000, 100))
    client.send(b"".join(b"%05d\n" % number for number in range(2000)))
    watched(1.3, lambda: None, lambda: 0)
    assert [upcall[1] for upcall in stream.upcalls[1:]] == [b"%05d\n" % number for number in range(2000)]


@on_the_fake_clock
def test_a_pause_and_a_limit_together(bench, watched):
    """Whichever ends first, the other still holds; what the limit would have granted meanwhile is not saved up."""
    stream, client = open_pair(bench, Factory(Counts))
    stream.set_rate(read=RateLimit(10_000, 1000))
    hose = Hose(client)
    watched(1, hose, lambda: 0)
    stream.pause_reading()
    before = len(stream.data)
    watched(1, hose, lambda: 0)
    assert len(stream.data) == before
    stream.resume_reading()
    keeps_to(watched(2, hose, lambda: stream.count), 10_000, 1000)


@on_the_fake_clock
def test_files_keep_to_the_limit_too(bench, watched, tmp_path):
    (tmp_path / "file").write_bytes(MEGABYTE)
    stream, client = open_pair(bench, Factory(Counts))
    stream.set_rate(write=RateLimit(50_000, 1000))
    stream.write(b"head")
    with open(tmp_path / "file", "rb") as file:
        stream.sendfile(file, 0, 100_000)
    found = watched(2.2, lambda: None, lambda: (client.read() and 0) or len(client.received))
    keeps_to(found[:200], 50_000, 1000)
    assert client.received == b"head" + MEGABYTE[:100_000]


@on_the_fake_clock
def test_on_drain_comes_through_a_limit(bench, watched):
    stream, client = open_pair(bench, Factory(Counts))
    stream.set_rate(write=RateLimit(100_000, 1000))
    assert not stream.write(b"x" * 100_000)
    watched(0.8, lambda: None, lambda: 0)
    assert stream.names == ["open"]
    watched(0.1, lambda: None, lambda: 0)
    assert stream.names == ["open", "drain"]
    assert 0 < stream.unsent_bytes <= 16384
    client.take(100_000)


@on_the_fake_clock
def test_closing_sends_everything_at_the_limit_s_pace(bench, watched, address):
    stream, client = open_pair(bench, Factory(Counts), address)
    stream.set_rate(write=RateLimit(10_000, 1000))
    stream.write(b"x" * 20_000)
    stream.close()
    watched(1, lambda: None, lambda: 0)
    assert not stream.closed
    watched(1, lambda: None, lambda: 0)
    assert client.take_all() == b"x" * 20_000
    client.close()
    bench.quiet()
    assert stream.close_error is None


# -- who leaves, and who changes his mind ------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["read", "write"])
@pytest.mark.parametrize("verb", ["abort", "close", "detach", "peer"])
def test_a_stream_that_ends_while_it_waits_leaves_no_timer(bench, direction, verb):
    """And its share of the limit is there for others at once."""
    limit = RateLimit(1, burst=4096)
    stream, client = open_pair(bench, Factory(Counts))
    stream.set_rate(**{direction: limit})
    if direction == "read":
        client.send(b"x" * 20_000)
    else:
        stream.write(b"x" * 20_000)
    bench.quiet()
    assert bench.loop.stats().timers == 1
    if verb == "peer":
        client.reset()
        wait_for(stream.fileno(), select.POLLERR)
        bench.quiet()
        assert stream.closed == (direction == "write"), "one that waits to read has not read the reset"
        stream.abort()
    elif verb == "detach" and direction == "read":
        detached = stream.detach()
        epollkit.Loop.adopt(bench.loop, detached.fd, Witness, detached.data).abort()
    else:
        stream.abort() if verb != "close" or direction == "write" else stream.close()
    bench.loop.turn(0)
    client.close()
    bench.quiet()
    assert bench.loop.stats().timers == 0
    assert stream.closed


@on_the_fake_clock
@pytest.mark.parametrize("direction", ["read", "write"])
@pytest.mark.parametrize("then", [None, 1_000_000])
def test_a_limit_that_is_lifted_or_replaced_holds_nobody_up_any_longer(bench, watched, direction, then):
    """The grant that it waited for was an hour away."""
    stream, client = open_pair(bench, Factory(Counts))
    stream.set_rate(**{direction: RateLimit(1, burst=4096)})
    if direction == "read":
        client.send(b"x" * 20_000)
    else:
        stream.write(b"x" * 20_000)
    arrived = (lambda: stream.count) if direction == "read" else lambda: (client.read() and 0) or len(client.received)
    assert watched(1, lambda: None, arrived)[-1] == 4096
    stream.set_rate(**{direction: then})
    assert watched(0.05, lambda: None, arrived)[-1] == 20_000
    stream.abort()


@on_the_fake_clock
def test_the_timer_of_a_limit_that_was_replaced_lets_nobody_through(bench, watched):
    stream, client = open_pair(bench, Factory(Counts))
    stream.set_rate(read=RateLimit(4096, burst=4096))
    client.send(b"x" * 20_000)
    watched(0.5, lambda: None, lambda: 0)
    assert len(stream.data) == 4096         # its timer is due half a second from now
    stream.set_rate(read=RateLimit(1, burst=4096))
    watched(5, lambda: None, lambda: 0)
    assert len(stream.data) == 8192


@on_the_fake_clock
def test_setting_the_same_limit_again_changes_nothing(bench, watched):
    limit = RateLimit(10_000, 1000)
    stream, client = open_pair(bench, Factory(Counts))
    stream.set_rate(read=limit)
    hose = Hose(client)

    def again():
        hose()
        stream.set_rate(read=limit)

    keeps_to(watched(2, again, lambda: stream.count), 10_000, 1000)


@on_the_fake_clock
def test_the_other_direction_s_limit_stays(bench, watched):
    stream, client = open_pair(bench, Factory(Counts))
    stream.set_rate(read=RateLimit(10_000, 1000))
    stream.set_rate(write=RateLimit(10_000, 1000))
    stream.set_rate(write=None)
    stream.set_rate()
    keeps_to(watched(1, Hose(client), lambda: stream.count), 10_000, 1000)


@pytest.mark.parametrize("rate", ["fast", b"1", [1], 0, -1, float("nan"), float("inf"), True, RateLimit], ids=repr)
@pytest.mark.parametrize("direction", ["read", "write"])
def test_what_is_no_rate_is_refused_and_changes_nothing(bench, rate, direction):
    stream, client = open_pair(bench, Factory(Counts))
    with pytest.raises(UsageError):
        stream.set_rate(**{direction: rate})
    stream.write(MEGABYTE)
    client.send(MEGABYTE)
    assert client.take(len(MEGABYTE)) == MEGABYTE
    bench.quiet()
    assert stream.data == MEGABYTE


# -- many streams, one limit -------------------------------------------------------------------------------------------


@on_the_fake_clock
@pytest.mark.parametrize("direction", ["read", "write"])
def test_streams_that_share_a_limit_share_it_evenly(bench, watched, direction):
    limit = RateLimit(200_000, 5000)
    pairs = [open_pair(bench, Factory(Counts)) for _ in range(5)]
    hoses = [Hose(client) for _, client in pairs]
    for stream, _ in pairs:
        stream.set_rate(**{direction: limit})
        if direction == "write":
            stream.write(MEGABYTE)

    def each():
        if direction == "read":
            return [stream.count for stream, _ in pairs]
        for _, client in pairs:
            client.read()
        return [len(client.received) for _, client in pairs]

    found = watched(4, lambda: [hose() for hose in hoses] if direction == "read" else None, each)
    keeps_to([sum(amounts) for amounts in found], 200_000, 5000)
    assert max(found[-1]) - min(found[-1]) <= 4 * 5000, f"not even: {found[-1]}"


@on_the_fake_clock
def test_who_wants_little_gets_it_and_the_rest_goes_to_the_others(bench, watched):
    """One sends a few bytes now and then, one is idle, one never stops: the last has what the first leaves."""
    limit = RateLimit(100_000, 10_000)
    pairs = [open_pair(bench, Factory(Counts)) for _ in range(3)]
    for stream, _ in pairs:
        stream.set_rate(read=limit)
    (modest, trickle), (idle, _), (greedy, hose) = pairs
    pour, sent = Hose(hose), 0

    def before():
        nonlocal sent
        sent += trickle.offer(b"x" * 50)
        pour()

    found = watched(3, before, lambda: (modest.count, greedy.count))
    keeps_to([first + second for first, second in found], 100_000, 10_000)
    assert sent == 30_000
    assert len(modest.data) >= sent - 10_000 * 0.1 * 3
    assert idle.data == b""


@on_the_fake_clock
def test_one_that_leaves_gives_its_share_back(bench, watched):
    limit = RateLimit(100_000, 4096)
    pairs = [open_pair(bench, Factory(Counts)) for _ in range(2)]
    hoses = [Hose(client) for _, client in pairs]
    for stream, _ in pairs:
        stream.set_rate(read=limit)
    watched(1, lambda: [hose() for hose in hoses], lambda: 0)
    pairs[0][0].abort()
    keeps_to(watched(2, hoses[1], lambda: pairs[1][0].count), 100_000, 2 * 4096)

"""The load engine: what it asks, what it takes for an answer, and that it counts both exactly."""
from __future__ import annotations

import gc
import re
import tracemalloc
import weakref
from collections import Counter
from itertools import pairwise

import pytest
from siege_servers import (
    Site,
    answer,
    arrive,
    ask,
    besiege,
    chunked,
    ended,
    errors,
    latencies_ns,
    says,
    start,
    take_request,
)
from wire import cuts

import epollkit
from epollkit import UsageError
from epollkit._siege import Engine, Visit

SECOND_NS = 1_000_000_000
OK = answer(b"ok")


# -- counts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("users", "number"), [(1, 1), (1, 7), (3, 10), (5, 2), (20, 400)])
def test_number_is_exact(bench, users, number):
    site = Site(bench, says(answer(b"four")))
    tally = besiege(bench, [site.ask()], users=users, number=number)
    assert tally["begun"] == tally["answered"] == tally["successful"] == len(site.requests) == number
    assert (tally["failed"], tally["unanswered"], tally["errors"]) == (0, 0, [])
    assert tally["bytes_sent"] == site.bytes_received > 0
    assert tally["bytes_received"] == site.bytes_sent > 0
    assert tally["body_bytes"] == 4 * number
    assert tally["statuses"] == {"200": number}
    assert tally["connections"] == len(site.visitors) == min(users, number)
    assert len(latencies_ns(tally)) == number
    assert len(latencies_ns(tally, "connect")) == tally["connections"]
    assert (tally["open"], tally["open_peak"]) == (0, tally["connections"])


def test_repetitions_are_of_each_user(bench):
    """The slow one's are not done by those who are faster."""
    site = Site(bench, lambda visitor, request: visitor.call_later(0.005, visitor.write, OK)
                if visitor is site.visitors[0] else visitor.write(OK))
    tally = besiege(bench, [site.ask()], users=3, repetitions=4)
    assert tally["answered"] == 12
    assert [len(visitor.targets) for visitor in site.visitors] == [4, 4, 4]


def test_whichever_of_number_and_repetitions_is_less(bench):
    site = Site(bench, says(OK))
    assert besiege(bench, [site.ask()], users=3, repetitions=4, number=5)["begun"] == 5
    assert besiege(bench, [site.ask()], users=3, repetitions=4, number=50)["begun"] == 12


def test_users_begin_at_their_own_number_and_go_on_in_turn(bench):
    site = Site(bench, says(OK))
    prepared = [site.ask(f"/{i}") for i in range(5)]
    first = start(bench, prepared, users=2, repetitions=3)
    second = start(bench, prepared, users=2, repetitions=3, first_user=2)
    for engine in (first, second):
        assert ended(bench, engine)["answered"] == 6
    assert sorted(visitor.targets for visitor in site.visitors) == [
        ["/0", "/1", "/2"], ["/1", "/2", "/3"], ["/2", "/3", "/4"], ["/3", "/4", "/0"]]


def by_target(visitor, request):
    status = int(request.target[1:])
    visitor.write(answer(b"" if status == 304 else b"x", status))


def test_each_status_has_its_count(bench):
    site = Site(bench, by_target)
    statuses = [200, 404, 500, 302, 304, 999]
    tally = besiege(bench, [site.ask(f"/{status}") for status in statuses], users=1, number=15)
    assert tally["statuses"] == {"200": 3, "404": 3, "500": 3, "302": 2, "304": 2, "999": 2}
    assert (tally["successful"], tally["failed"], tally["unexpected"]) == (7, 8, 8)
    assert errors(tally) == {("expect", "404"): 3, ("expect", "500"): 3, ("expect", "999"): 2}


def test_expected_statuses(bench):
    site = Site(bench, by_target)
    tally = besiege(bench, [site.ask(f"/{status}") for status in (200, 404, 500)], users=1, number=3,
                    statuses=[404, 500])
    assert (tally["successful"], errors(tally)) == (2, {("expect", "200"): 1})


def test_bodies_are_sent_whole(bench):
    """From what is copied to what the socket does not take at once."""
    site = Site(bench, says(OK))
    bodies = [b"a" * size for size in (1, 5000, 70_000, 5_000_000)]
    tally = besiege(bench, [site.ask(method="POST", body=body) for body in bodies], users=1, number=4)
    assert [request.body for request in site.requests] == bodies
    assert tally["bytes_sent"] == site.bytes_received


def test_an_interval_is_what_happened_since_the_last_one(bench):
    site = Site(bench, says(OK))
    engine = start(bench, [site.ask()], users=2, number=1000)
    told = []
    while not engine.done:
        bench.loop.turn(1)
        told.append(engine.interval())
    tally = ended(bench, engine)
    last = engine.interval()
    assert (last["begun"], last["answered"], last["bytes_received"], last["p99_ns"]) == (0, 0, 0, 0)
    for name in ("begun", "answered", "failed", "bytes_received"):
        assert sum(interval[name] for interval in told) == tally[name], name
    assert len(latencies_ns(tally)) == 1000
    assert max(interval["open"] for interval in told) == 2
    assert all(interval["p50_ns"] <= interval["p99_ns"] <= interval["max_ns"] for interval in told)


# -- answers -----------------------------------------------------------------------------------------------------------

# (what the server says, the method, bytes of the body, whether the connection goes on)
ANSWERS = {
    "length": (answer(b"12345"), "GET", 5, True),
    "no body": (answer(b""), "GET", 0, True),
    "HEAD": (b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", "HEAD", 0, True),
    "HEAD, chunked": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HEAD", 0, True),
    "204": (b"HTTP/1.1 204 No Content\r\nServer: a\r\n\r\n", "GET", 0, True),
    "304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", "GET", 0, True),
    "interim": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + answer(b"123"), "POST",
                3, True),
    "chunked": (chunked(b"1234", b"5" * 17), "GET", 21, True),
    "chunked, trailers": (chunked(b"1234", trailers=b"Digest: x\r\nOther: y\r\n"), "GET", 4, True),
    "close": (answer(b"12", headers=b"Connection: close\r\n"), "GET", 2, False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n123", "GET", 3, False),
    "HTTP/1.0, keep-alive": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\n123", "GET", 3,
                             True),
    "until close": (b"HTTP/1.1 200 OK\r\n\r\nall of it", "GET", 9, False),
    "until close, nothing": (b"HTTP/1.1 200 OK\r\n\r\n", "GET", 0, False),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_cut_everywhere(bench, listening, name):
    said, method, body_bytes, goes_on = ANSWERS[name]
    pieces = cuts(said)
    engine = start(bench, [ask(listening.getsockname(), method=method)], users=1, number=len(pieces))
    peer = None
    for i, cut in enumerate(pieces):
        if peer is None:
            peer = arrive(bench, listening)
        take_request(peer)
        for piece in cut:
            assert engine.interval()["answered"] == 0, "answered before the last byte"
            peer.socket.sendall(piece)
            bench.quiet()
        if not goes_on:
            if name.startswith("until"):
                assert engine.interval()["answered"] == 0, "answered before the end"
                peer.socket.close()
                bench.quiet()
            peer.close()
            peer = None
        assert engine.interval()["answered"] == 1
        assert engine.done == (i == len(pieces) - 1)
    tally = ended(bench, engine)
    assert tally["successful"] == len(pieces)
    assert tally["body_bytes"] == body_bytes * len(pieces)
    assert tally["bytes_received"] == len(said) * len(pieces)
    assert tally["connections"] == (1 if goes_on else len(pieces))
    assert tally["reconnects"] == 0


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 1_000_000])
@pytest.mark.parametrize("kind", ["length", "chunked"])
def test_bodies_larger_than_a_read(bench, size, kind):
    body = b"b" * size
    site = Site(bench, says(answer(body) if kind == "length" else chunked(body, body)))
    tally = besiege(bench, [site.ask()], users=2, number=4)
    assert tally["successful"] == 4
    assert tally["body_bytes"] == 4 * size * (1 if kind == "length" else 2)
    assert tally["bytes_received"] == site.bytes_sent


@pytest.mark.parametrize("expected", [b"", b"nowhere in it"], ids=["any", "expected"])
def test_a_body_of_any_size_needs_no_memory(bench, listening, expected):
    """100 MB; of a body in which something is expected a MiB is kept."""
    engine = start(bench, [ask(listening.getsockname())], users=1, number=1, body=expected)
    peer = arrive(bench, listening)
    take_request(peer)
    piece = b"p" * 65536
    peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1600 * len(piece)))
    tracemalloc.start()
    try:
        for _ in range(1600):
            peer.write(piece)
            peer.until(lambda: not peer.unsent)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    tally = ended(bench, engine)
    assert tally["body_bytes"] == 1600 * len(piece)
    assert most < 4_000_000


def test_expected_bodies_cut_everywhere(bench, listening):
    pieces = cuts(chunked(b"what is ", b"expec", b"ted here"))
    engine = start(bench, [ask(listening.getsockname())], users=1, number=len(pieces), body=b"is expected")
    peer = arrive(bench, listening)
    for cut in pieces:
        take_request(peer)
        for piece in cut:
            peer.socket.sendall(piece)
            bench.quiet()
    assert ended(bench, engine)["successful"] == len(pieces)


def test_expected_bodies_of_several_users_at_once(bench, listening):
    """Their answers come in turns, a piece of each; one has what is expected, and one has it only together with the
    other's."""
    engine = start(bench, [ask(listening.getsockname())], users=3, number=3, body=b"expected")
    peers = [arrive(bench, listening) for _ in range(3)]
    halves = [(b"expe", b"cted"), (b"expe", b"...."), (b"....", b"cted")]
    for peer in peers:
        take_request(peer)
    for peer, (half, _) in zip(peers, halves, strict=True):
        peer.socket.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n" + half)
        bench.quiet()
    for peer, (_, half) in zip(peers, halves, strict=True):
        peer.socket.sendall(half)
        bench.quiet()
    tally = ended(bench, engine)
    assert (tally["successful"], errors(tally)) == (1, {("expect", "body"): 2})


def test_an_expected_body_is_not_put_together_from_two_answers(bench):
    """Nor from one that was cut off and the next."""
    bodies = iter([b"expe", b"cted", b"expected", None, b"cted"])

    def respond(visitor, request):
        body = next(bodies)
        if body is not None:
            visitor.write(answer(body))
            return
        visitor.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nexpe")
        visitor.close()

    site = Site(bench, respond)
    tally = besiege(bench, [site.ask()], users=1, number=5, body=b"expected")
    assert (tally["answered"], tally["successful"]) == (4, 1)
    assert errors(tally) == {("expect", "body"): 3, ("read", "closed"): 1}


def test_of_a_body_the_first_mebibyte_is_looked_at(bench):
    mebibyte = 1 << 20
    bodies = [b"." * (mebibyte - 4) + b"here" + b"." * 9, b"." * (mebibyte - 3) + b"here" + b"." * 9]
    site = Site(bench, lambda visitor, request: visitor.write(answer(bodies[int(request.target[1:])])))
    tally = besiege(bench, [site.ask("/0"), site.ask("/1")], users=1, number=2, body=b"here")
    assert errors(tally) == {("expect", "body"): 1}


def test_an_answer_that_comes_before_its_request_is_sent(bench, listening):
    """413 and the like; the rest of the request is not sent any more."""
    engine = start(bench, [ask(listening.getsockname(), method="POST", body=b"b" * 20_000_000)], users=1, number=1)
    peer = arrive(bench, listening)
    peer.reading = False
    peer.write(answer(b"too much", 413, b"Connection: close\r\n"))
    peer.settle()
    tally = ended(bench, engine)
    assert tally["statuses"] == {"413": 1}
    assert bench.loop.stats().live == 0
    assert errors(tally) == {("expect", "413"): 1}


# -- pipelines ---------------------------------------------------------------------------------------------------------


def test_a_pipeline_is_kept_full(bench, listening):
    engine = start(bench, [ask(listening.getsockname(), f"/{i}") for i in range(20)], users=1, number=20, pipeline=8)
    peer = arrive(bench, listening)
    asked = [take_request(peer)]
    for answered in range(20):
        bench.quiet()
        while len(asked) < min(20, answered + 8):
            asked.append(take_request(peer))
        peer.pump()
        assert not peer.received, "more than its depth"
        assert engine.tally()["begun"] == min(20, answered + 8)
        peer.socket.sendall(OK)
        bench.quiet()
    assert [request.target for request in asked] == [f"/{i}" for i in range(20)]
    tally = ended(bench, engine)
    assert (tally["answered"], tally["connections"]) == (20, 1)


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_answers_of_a_pipeline_in_one_piece(bench, at_once):
    held = []

    def respond(visitor, request):
        held.append(request)
        if len(held) % at_once == 0:
            visitor.write(OK * at_once)

    site = Site(bench, respond)
    tally = besiege(bench, [site.ask()], users=1, number=24, pipeline=8)
    assert (tally["answered"], tally["bytes_received"], tally["connections"]) == (24, 24 * len(OK), 1)


def test_answers_of_a_pipeline_cut_everywhere(bench, listening):
    said = answer(b"abc") + chunked(b"de", b"f") + b"HTTP/1.1 204 No\r\n\r\n" + answer(b"")
    pieces = cuts(said)
    engine = start(bench, [ask(listening.getsockname())], users=1, number=4 * len(pieces), pipeline=4)
    peer = arrive(bench, listening)
    for cut in pieces:
        for piece in cut:
            peer.socket.sendall(piece)
            bench.quiet()
        peer.pump()
    tally = ended(bench, engine)
    assert (tally["answered"], tally["connections"]) == (4 * len(pieces), 1)
    assert tally["body_bytes"] == 6 * len(pieces)


def test_each_request_of_a_pipeline_has_its_own_time(bench):
    """The nth is answered after n * 20 ms."""
    loop = bench.loop
    site = Site(bench, lambda visitor, request: loop.call_later(0.02 * len(site.requests), visitor.write, OK))
    tally = besiege(bench, [site.ask()], users=1, number=5, pipeline=5)
    for n, latency in enumerate(latencies_ns(tally), 1):
        assert latency >= n * 20_000_000 * 0.999
    assert len(latencies_ns(tally)) == 5


@pytest.mark.debug_build
def test_each_request_of_a_pipeline_has_exactly_its_own_time(clock, bench):
    loop = bench.loop
    site = Site(bench, lambda visitor, request: loop.call_later(0.02 * len(site.requests), visitor.write, OK))
    tally = besiege(bench, [site.ask()], users=1, number=5, pipeline=5)
    assert [round(latency / 20_000_000, 2) for latency in latencies_ns(tally)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("ends", ["Connection: close", "HTTP/1.0"])
def test_what_is_behind_the_last_answer_of_a_connection_is_asked_again(bench, ends):
    """And counts once."""
    last = answer(b"ok", headers=b"Connection: close\r\n") if ends == "Connection: close" \
        else OK.replace(b"1.1", b"1.0", 1)

    def respond(visitor, request):
        visitor.write(OK if len(visitor.targets) < 3 else last)
        if len(visitor.targets) == 3:
            visitor.close()

    site = Site(bench, respond)
    tally = besiege(bench, [site.ask(f"/{i}") for i in range(10)], users=1, number=10, pipeline=4)
    assert [visitor.targets for visitor in site.visitors] == [
        ["/0", "/1", "/2"], ["/3", "/4", "/5"], ["/6", "/7", "/8"], ["/9"]]
    assert (tally["begun"], tally["answered"], tally["successful"]) == (10, 10, 10)
    assert (tally["connections"], tally["reconnects"], tally["failed"]) == (4, 0, 0)
    assert 3 <= tally["resent"] <= 9
    assert tally["bytes_sent"] == (10 + tally["resent"]) * len(site.ask("/0")[0])


# -- connections -------------------------------------------------------------------------------------------------------


def test_one_request_per_connection(bench):
    site = Site(bench, says(OK))
    tally = besiege(bench, [site.ask()], users=2, number=10, keep_alive=False)
    assert (tally["connections"], tally["reconnects"], tally["answered"]) == (10, 0, 10)
    assert tally["open_peak"] <= 2
    assert [len(visitor.targets) for visitor in site.visitors] == [1] * 10
    assert all(visitor.ended for visitor in site.visitors)


def test_a_server_that_ends_connections_at_rest(bench, listening):
    """No failure: they are made again when there is something to ask."""
    engine = start(bench, [ask(listening.getsockname())], users=1, number=3, delay=1e-9)
    for _ in range(2):
        peer = arrive(bench, listening)
        take_request(peer)
        peer.socket.sendall(OK)
        peer.close()
        bench.quiet()
    peer = arrive(bench, listening)
    take_request(peer)
    peer.socket.sendall(OK)
    tally = ended(bench, engine)
    assert (tally["answered"], tally["failed"], tally["reconnects"]) == (3, 0, 2)
    assert tally["connections"] == 3


@pytest.mark.debug_build
def test_delays_are_random_and_within_bounds(clock, bench):
    times = {}

    def respond(visitor, request):
        times.setdefault(visitor, []).append(clock.now_ns / SECOND_NS)
        visitor.write(OK)

    site = Site(bench, respond)
    begun_ns = clock.now_ns
    besiege(bench, [site.ask()], users=2, repetitions=201, delay=3.0, seed=1)
    assert all(visited[0] * SECOND_NS == begun_ns for visited in times.values()), "the first asks at once"
    gaps = [later - sooner for visited in times.values()
            for sooner, later in pairwise(visited)]
    assert len(gaps) == 400
    assert 0 <= min(gaps) < 0.1
    assert 2.9 < max(gaps) < 3.01
    assert 1.3 < sum(gaps) / len(gaps) < 1.7


@pytest.mark.debug_build
def test_delays_are_those_of_the_seed(clock, bench):
    def took(seed):
        site = Site(bench, says(OK))
        return besiege(bench, [site.ask()], users=2, repetitions=5, delay=1.0, seed=seed)["elapsed_ns"]

    assert took(7) == took(7) != took(8)


def test_random_order(bench):
    def asked(seed):
        site = Site(bench, says(OK))
        besiege(bench, [site.ask(f"/{i}") for i in range(10)], users=1, number=500, random_order=True, seed=seed)
        return site.targets

    targets = asked(1)
    assert targets != [f"/{i % 10}" for i in range(500)]
    assert all(20 < count < 90 for count in Counter(targets).values())
    assert len(Counter(targets)) == 10
    assert targets == asked(1) != asked(2)


def test_in_random_order_the_first_is_random_too(bench):
    site = Site(bench, says(OK))
    besiege(bench, [site.ask(f"/{i}") for i in range(10)], users=50, repetitions=1, random_order=True)
    assert max(Counter(site.targets).values()) > 5 or min(Counter(site.targets).values()) < 5


@pytest.mark.parametrize("pipeline", [1, 4])
def test_several_places_in_turn(bench, pipeline):
    """A user has one connection at a time: each change of place is another one, when everything has its answer."""
    sites = [Site(bench, says(OK)) for _ in range(2)]
    prepared = [sites[0].ask("/a"), sites[0].ask("/b"), sites[1].ask("/c")]
    tally = besiege(bench, prepared, users=1, number=9, pipeline=pipeline)
    assert sites[0].targets == ["/a", "/b"] * 3
    assert sites[1].targets == ["/c"] * 3
    assert (tally["answered"], tally["failed"], tally["connections"], tally["resent"]) == (9, 0, 6, 0)


def test_a_unix_socket(bench, tmp_path):
    site = Site(bench, says(OK), str(tmp_path / "socket"))
    tally = besiege(bench, [site.ask()], users=3, number=30, pipeline=2)
    assert (tally["answered"], tally["connections"]) == (30, 3)
    assert tally["bytes_received"] == site.bytes_sent


@pytest.mark.parametrize("keep_alive", [True, False])
def test_tls(bench, certificates, keep_alive):
    site = Site(bench, says(answer(b"x" * 100_000)), ssl=certificates.server_context())
    prepared = [site.ask(ssl=certificates.client_context(), hostname="localhost")]
    tally = besiege(bench, prepared, users=2, number=10, keep_alive=keep_alive, pipeline=2 if keep_alive else 1)
    assert (tally["successful"], tally["connections"]) == (10, 2 if keep_alive else 10)
    assert tally["body_bytes"] == 1_000_000
    assert tally["bytes_received"] == site.bytes_sent, "plain bytes, not those of the records"
    assert tally["bytes_sent"] == site.bytes_received
    assert tally["errors"] == []


def test_places_with_and_without_tls(bench, certificates):
    plain, secure = Site(bench, says(OK)), Site(bench, says(OK), ssl=certificates.server_context())
    prepared = [plain.ask(), secure.ask(ssl=certificates.client_context(), hostname="localhost")]
    tally = besiege(bench, prepared, users=2, number=8)
    assert (tally["successful"], len(plain.requests), len(secure.requests)) == (8, 4, 4)


def test_sources(bench):
    """Users take them in turn; there are more users than sources, and the numbers go on from `first_user`."""
    site = Site(bench, says(OK))
    sources = [f"127.0.0.{i}" for i in range(2, 5)]
    besiege(bench, [site.ask()], users=4, repetitions=1, sources=sources, first_user=1)
    assert sorted(visitor.peer[0] for visitor in site.visitors) == ["127.0.0.2", "127.0.0.3", "127.0.0.3", "127.0.0.4"]


# -- how connections end -----------------------------------------------------------------------------------------------


def test_close_fin(bench):
    site = Site(bench, says(OK))
    tally = besiege(bench, [site.ask()], users=1, number=3, keep_alive=False)
    assert [(visitor.ended, visitor.closed) for visitor in site.visitors] == [(True, None)] * 3
    assert tally["broken_off"] == 0


def test_close_rst(bench):
    """Behind the answer, all of which was read."""
    site = Site(bench, says(OK))
    tally = besiege(bench, [site.ask()], users=1, number=3, keep_alive=False, close="rst")
    assert [type(visitor.closed) for visitor in site.visitors] == [ConnectionResetError] * 3
    assert (tally["answered"], tally["broken_off"], tally["failed"]) == (3, 0, 0)


def test_close_rst_keeps_alive(bench):
    site = Site(bench, says(OK))
    assert besiege(bench, [site.ask()], users=1, number=3, close="rst")["connections"] == 1
    assert isinstance(site.visitors[0].closed, ConnectionResetError)


def test_close_half(bench):
    """Our end-of-stream comes with the request; the answer is still read."""
    ended_first = []

    def respond(visitor, request):
        bench.loop.call_soon(lambda: bench.loop.call_soon(
            lambda: (ended_first.append(visitor.peer_closed), visitor.write(OK), visitor.close())))

    site = Site(bench, respond, stays=True)
    tally = besiege(bench, [site.ask()], users=1, number=3, close="half")
    assert ended_first == [True] * 3
    assert (tally["answered"], tally["connections"], tally["broken_off"], tally["failed"]) == (3, 3, 0, 0)


def test_close_abandon(bench):
    """The whole request, and then nobody is there."""
    site = Site(bench, says(answer(b"x" * 1000)))
    tally = besiege(bench, [site.ask()], users=2, number=6, close="abandon")
    assert len(site.requests) == len(site.visitors) == 6
    assert tally["bytes_sent"] == site.bytes_received
    assert (tally["answered"], tally["broken_off"], tally["failed"], tally["bytes_received"]) == (0, 6, 0, 0)


def test_close_rst_mid_request(bench):
    site = Site(bench, says(OK))
    tally = besiege(bench, [site.ask(method="POST", body=b"x" * 1000)], users=2, number=6, close="rst-mid-request")
    assert (len(site.requests), len(site.visitors)) == (0, 6)
    assert [type(visitor.closed) for visitor in site.visitors] == [ConnectionResetError] * 6
    assert tally["bytes_sent"] == site.bytes_received > 3000
    assert (tally["answered"], tally["broken_off"], tally["failed"]) == (0, 6, 0)


def test_close_rst_mid_response(bench):
    site = Site(bench, says(answer(b"x" * 3_000_000)))
    tally = besiege(bench, [site.ask()], users=2, number=6, close="rst-mid-response")
    assert (len(site.requests), len(site.visitors)) == (6, 6)
    assert [type(visitor.closed) for visitor in site.visitors] == [ConnectionResetError] * 6
    assert 0 < tally["bytes_received"] < site.bytes_sent
    assert (tally["answered"], tally["broken_off"], tally["failed"]) == (0, 6, 0)


@pytest.mark.parametrize("close", ["abandon", "rst-mid-request", "rst-mid-response", "half"])
def test_misuse_of_a_server_that_is_not_there_is_a_failure(bench, stage, close):
    listening = stage.listening()
    address = listening.getsockname()
    listening.close()
    tally = besiege(bench, [ask(address)], users=1, number=2, close=close)
    assert (tally["failed"], tally["broken_off"], tally["connect_failures"]) == (2, 0, 2)


# -- warm-up and end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", [1, 3])
def test_what_was_begun_in_the_warm_up_is_not_counted(bench, listening, pipeline):
    engine = Engine(bench.loop, [ask(listening.getsockname())], users=1, number=4, pipeline=pipeline)
    engine.start(warm_up=True)
    peer = arrive(bench, listening)
    for _ in range(10):
        take_request(peer)
        peer.socket.sendall(OK)
        bench.quiet()
    assert engine.tally()["answered"] == 10
    engine.measure()
    assert (engine.tally()["begun"], engine.tally()["answered"], engine.tally()["bytes_received"]) == (0, 0, 0)
    while not engine.done:
        take_request(peer)
        peer.socket.sendall(OK)
        bench.quiet()
    tally = ended(bench, engine)
    assert tally["begun"] == tally["answered"] == 4
    assert tally["bytes_received"] == (4 + pipeline) * len(OK), "bytes are counted when they come"


@pytest.mark.parametrize("close", ["abandon", "rst-mid-request", "rst-mid-response"])
def test_what_was_begun_in_the_warm_up_and_is_broken_off_is_not_counted(bench, listening, close):
    """Whether that is before measure() or behind it."""
    engine = Engine(bench.loop, [ask(listening.getsockname())], users=2, number=4, close=close)
    engine.start(warm_up=True)
    engine.measure()
    while not engine.done:
        peer = arrive(bench, listening)
        peer.write(OK)
        peer.settle()
    tally = ended(bench, engine)
    assert tally["begun"] == tally["broken_off"] == 4


def test_what_fails_behind_the_warm_up_but_was_begun_in_it_is_not_counted(bench, listening):
    engine = Engine(bench.loop, [ask(listening.getsockname())], users=3, number=1)
    engine.start(warm_up=True)
    peers = [arrive(bench, listening) for _ in range(3)]
    engine.measure()
    for peer in peers:
        peer.reset()
    bench.quiet()
    peer = arrive(bench, listening)
    take_request(peer)
    peer.socket.sendall(OK)
    tally = ended(bench, engine)
    assert (tally["begun"], tally["answered"], tally["failed"]) == (1, 1, 0)
    assert tally["errors"] == []


def test_what_is_said_behind_an_answer_to_the_warm_up_is_not_counted(bench, listening):
    """Bytes that nobody has asked for are an error of the request that they came with."""
    engine = Engine(bench.loop, [ask(listening.getsockname())], users=1, number=1)
    engine.start(warm_up=True)
    peer = arrive(bench, listening)
    engine.measure()
    peer.socket.sendall(OK + b"more")
    bench.quiet()
    peer = arrive(bench, listening)
    take_request(peer)
    peer.socket.sendall(OK)
    tally = ended(bench, engine)
    assert (tally["begun"], tally["answered"]) == (1, 1)
    assert tally["errors"] == []


def test_repetitions_count_from_the_measurement(bench):
    site = Site(bench, says(OK))
    engine = Engine(bench.loop, [site.ask()], users=2, repetitions=3)
    engine.start(warm_up=True)
    bench.turn_until(lambda: len(site.requests) > 20)
    engine.measure()
    tally = ended(bench, engine)
    assert tally["begun"] == tally["answered"] == 6


def test_stop_lets_answers_come(bench, listening):
    engine = start(bench, [ask(listening.getsockname())], users=2)
    peers = [arrive(bench, listening) for _ in range(2)]
    engine.stop(60)
    bench.quiet()
    assert not engine.done
    for peer in peers:
        peer.socket.sendall(OK)
    tally = ended(bench, engine)
    assert (tally["begun"], tally["answered"], tally["unanswered"]) == (2, 2, 0)
    assert bench.loop.stats().timers == 0


def test_stop_does_not_wait_for_ever(bench, listening):
    engine = start(bench, [ask(listening.getsockname())], users=2, pipeline=3)
    peers = [arrive(bench, listening) for _ in range(2)]
    peers[0].socket.sendall(OK)
    bench.quiet()
    engine.stop(0.02)
    tally = ended(bench, engine)
    assert (tally["begun"], tally["answered"], tally["unanswered"]) == (7, 1, 6)
    assert sum(latency >= 20_000_000 * 0.999 for latency in latencies_ns(tally)) == 6
    assert bench.loop.stats().timers == 0


def test_stop_with_no_grace(bench):
    site = Site(bench, lambda visitor, request: None)
    engine = start(bench, [site.ask()], users=2)
    bench.turn_until(lambda: len(site.requests) == 2)
    engine.stop()
    tally = ended(bench, engine)
    assert (tally["begun"], tally["unanswered"]) == (2, 2)


def test_stop_while_users_connect(bench, listening):
    """Those connections ask nothing any more, and are gone."""
    engine = start(bench, [ask(listening.getsockname())], users=3)
    engine.stop()
    bench.loop.turn(0)
    bench.turn_until(lambda: engine.done)
    tally = ended(bench, engine)
    assert (tally["begun"], tally["unanswered"]) == (3, 3)
    bench.turn_until(lambda: bench.loop.stats().live == 0)
    assert engine.tally() == tally


def test_stop_while_a_large_request_is_sent(bench, listening):
    """Nobody reads the rest of it: it is not waited for."""
    engine = start(bench, [ask(listening.getsockname(), method="POST", body=b"x" * 20_000_000)], users=1)
    peer = arrive(bench, listening)
    peer.reading = False
    engine.stop()
    assert ended(bench, engine)["unanswered"] == 1
    assert bench.loop.stats().live == 0


def test_stop_while_users_wait(bench):
    """In a delay; nothing is under way, so it is over at once, and their timers are gone."""
    site = Site(bench, says(OK))
    engine = start(bench, [site.ask()], users=2, delay=1e5)
    bench.turn_until(lambda: engine.tally()["answered"] == 2)
    engine.stop(1000)
    assert engine.done
    assert ended(bench, engine)["answered"] == 2
    assert bench.loop.stats().timers == 0


def test_stop_twice_and_behind_the_end(bench):
    site = Site(bench, says(OK))
    engine = start(bench, [site.ask()], users=1)
    bench.turn_until(lambda: engine.tally()["answered"] > 3)
    engine.stop(1000)
    engine.stop(0)
    tally = ended(bench, engine)
    engine.stop()
    bench.quiet()
    assert engine.tally() == tally
    assert tally["unanswered"] == 0, "the first one counts"


def test_stop_before_the_start(bench):
    """Nothing is there to stop."""
    site = Site(bench, says(OK))
    engine = Engine(bench.loop, [site.ask()], users=1, number=2)
    engine.stop()
    assert not engine.done
    engine.start()
    assert ended(bench, engine)["answered"] == 2


def test_start_twice(bench):
    site = Site(bench, says(OK))
    engine = start(bench, [site.ask()], users=1, number=2)
    with pytest.raises(UsageError, match="started already"):
        engine.start()
    assert ended(bench, engine)["answered"] == 2
    with pytest.raises(UsageError, match="started already"):
        engine.start()


def test_on_done_is_called_once_behind_the_end(bench):
    site = Site(bench, says(OK))
    engine = Engine(bench.loop, [site.ask()], users=2, number=5)
    told = []
    engine.on_done = lambda: told.append((engine.done, engine.tally()["answered"]))
    engine.start()
    ended(bench, engine)
    bench.turn_until(lambda: told)
    engine.stop()
    bench.quiet()
    assert told == [(True, 5)]


def test_an_exception_in_on_done_goes_to_the_loop(bench, reported):
    site = Site(bench, says(OK))
    engine = Engine(bench.loop, [site.ask()], users=1, number=1)
    engine.on_done = lambda: 1 // 0
    engine.start()
    ended(bench, engine)
    assert [type(error) for error, _ in reported] == [ZeroDivisionError]


def test_the_loop_is_closed_in_the_midst():
    with epollkit.Loop() as loop:
        site_loop_requests = []

        class Silent(epollkit.Stream):
            def on_data(self, data):
                site_loop_requests.append(data)

        listener = loop.listen(("127.0.0.1", 0), Silent)
        engine = Engine(loop, [ask(listener.address)], users=5, pipeline=2)
        engine.start()
        while len(site_loop_requests) < 5:
            loop.turn(1)
    assert not engine.done
    assert engine.tally()["begun"] == 10
    with pytest.raises(UsageError, match="closed"):
        engine.stop()


@pytest.mark.parametrize("connected", [False, True])
def test_engine_and_loop_are_dropped_unclosed(connected):
    """Both are garbage, in a cycle through the visits."""
    loop = epollkit.Loop()
    with pytest.warns(ResourceWarning):
        listener = loop.listen(("127.0.0.1", 0), epollkit.Stream)
        engine = Engine(loop, [ask(listener.address)], users=5)
        engine.start()
        if connected:
            while engine.tally()["connections"] < 5:
                loop.turn(1)
        gone = weakref.ref(loop)
        del loop, engine, listener
        gc.collect()
    assert gone() is None


@pytest.mark.parametrize(("options", "sentence"), [
    ({"users": 0}, "users is a whole number from 1"),
    ({"users": True}, "users is a whole number from 1"),
    ({"pipeline": 0}, "pipeline is a whole number from 1 to 1024"),
    ({"number": -1}, "number is a whole number from 0"),
    ({"repetitions": 1.5}, "repetitions is a whole number from 0"),
    ({"rate": -1}, "rate is a number of requests a second"),
    ({"rate": "fast"}, "rate is a number of requests a second"),
    ({"rate": float("nan")}, "rate is a number of requests a second"),
    ({"delay": -0.1}, "delay is a number of seconds from 0"),
    ({"delay": float("nan")}, "delay is a number of seconds from 0"),
    ({"timeout": 0}, "timeout is a number of seconds above 0"),
    ({"connect_timeout": None}, "connect_timeout is a number of seconds above 0"),
    ({"close": "gently"}, "a connection ends by one of fin, rst, half, abandon"),
    ({"pipeline": 2, "keep_alive": False}, "pipeline is for connections that are kept alive"),
    ({"pipeline": 2, "close": "abandon"}, "pipeline is for connections that are kept alive"),
    ({"pipeline": 2, "delay": 1}, "not with a rate, nor with a pipeline"),
    ({"rate": 2, "delay": 1}, "not with a rate, nor with a pipeline"),
    ({"statuses": [1000]}, "a status is a whole number from 0 to 999"),
    ({"seed": -1}, "seed is a whole number from 0"),
    ({"first_user": "a"}, "first_user is a whole number from 0"),
    ({"first_due": -1.0}, "first_due is a number of seconds from 0"),
    ({"prepared": []}, "requests is a whole number from 1"),
    ({"prepared": [("GET", None, None, None, False)]}, "a request on the wire is bytes, not 'GET'"),
    ({"prepared": [(b"", None, None, None, False)]}, "a request on the wire is bytes"),
    ({"loop": None}, "an engine runs on an epollkit.Loop, not on None"),
])
def test_wrong_arguments(loop, options, sentence):
    options = {"loop": loop, "prepared": [ask(("127.0.0.1", 1))], "users": 1, **options}
    with pytest.raises(UsageError, match=re.escape(sentence)) as raised:
        Engine(options.pop("loop"), options.pop("prepared"), **options)
    assert "\n" not in str(raised.value)


def test_nothing_of_it_is_made_by_hand(loop):
    with pytest.raises(UsageError):
        Visit()
    engine = Engine(loop, [ask(("127.0.0.1", 1))], users=1)
    with pytest.raises(UsageError, match="made already"):
        engine.__init__(loop, [ask(("127.0.0.1", 1))], users=2)

"""Every way in which a request can fail, counted under its own name; and how the load engine tries again."""
from __future__ import annotations

import socket
import ssl
from itertools import pairwise

import pytest
from peers import SecurePeer
from siege_servers import (
    UNASKED,
    Site,
    answer,
    arrive,
    ask,
    besiege,
    ended,
    errors,
    latencies_ns,
    says,
    start,
    take_request,
)

from epollkit._siege import Engine

OK = answer(b"ok")
TIMEOUT = 0.5           # long enough for what the other end says before
PART = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345"


def only(tally, phase, name, count=1):
    """That this went wrong, so many times, and nothing else."""
    assert errors(tally) == {(phase, name): count}
    assert tally["failed"] == count
    return True


# -- connect -----------------------------------------------------------------------------------------------------------


def test_connect_refused(bench, listening):
    address = listening.getsockname()
    listening.close()
    tally = besiege(bench, [ask(address)], users=1, number=2)
    assert only(tally, "connect", "ECONNREFUSED", 2)
    assert (tally["connect_failures"], tally["connections"], tally["bytes_sent"]) == (2, 0, 0)
    assert latencies_ns(tally, "connect") == []


def test_connect_timeout(bench, stage):
    """A listener whose queue is full answers no SYN."""
    full = stage.own(socket.socket())
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    for _ in range(2):
        waiting = stage.own(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(full.getsockname())
    tally = besiege(bench, [ask(full.getsockname())], users=1, number=1, connect_timeout=0.05)
    assert only(tally, "connect", "timeout")
    assert tally["timed_out"] == tally["connect_failures"] == 1
    assert latencies_ns(tally)[0] >= 50_000_000 * 0.999


def test_connect_to_a_path_where_nothing_is(bench, tmp_path):
    tally = besiege(bench, [ask(str(tmp_path / "nothing"))], users=1, number=1)
    assert only(tally, "connect", "ENOENT")


def test_connect_from_an_address_that_is_not_ours(bench, listening):
    tally = besiege(bench, [ask(listening.getsockname())], users=1, number=1, sources=["192.0.2.1"])
    assert only(tally, "connect", "EADDRNOTAVAIL")


def test_connect_without_room_in_the_loop(stage):
    """The loop's own limit is no failure of the server's, but it is none that may be hidden."""
    import epollkit
    listening = stage.listening()
    with epollkit.Loop(max_connections=2) as loop:
        engine = Engine(loop, [ask(listening.getsockname())], users=3)
        engine.start()
        while not engine.tally()["connect_failures"]:
            loop.turn(1)
        assert [phase for phase, _ in errors(engine.tally())] == ["connect"]


# -- TLS ---------------------------------------------------------------------------------------------------------------


def test_tls_certificate_of_a_stranger(bench, certificates):
    site = Site(bench, says(OK), ssl=certificates.server_context())
    prepared = [site.ask(ssl=ssl.create_default_context(), hostname="localhost")]
    tally = besiege(bench, prepared, users=1, number=2)
    assert only(tally, "tls", "CERTIFICATE_VERIFY_FAILED", 2)
    assert (tally["connect_failures"], tally["connections"], tally["broken_off"]) == (2, 0, 0)


def test_tls_certificate_of_another_host(bench, certificates):
    site = Site(bench, says(OK), ssl=certificates.server_context())
    prepared = [site.ask(ssl=certificates.client_context(), hostname="other.example")]
    assert only(besiege(bench, prepared, users=1, number=1), "tls", "CERTIFICATE_VERIFY_FAILED")


def test_tls_with_a_server_that_does_not_speak_it(bench, listening, certificates):
    engine = start(bench, [ask(listening.getsockname(), ssl=certificates.client_context(), hostname="localhost")],
                   users=1, number=1)
    peer = arrive(bench, listening)
    peer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    peer.settle()
    tally = ended(bench, engine)
    [(phase, name)] = errors(tally)
    assert phase == "tls"
    assert name in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")     # OpenSSL's word


@pytest.mark.parametrize("spoken", [False, True], ids=["silent", "in its midst"])
def test_tls_timeout(bench, listening, certificates, spoken):
    engine = start(bench, [ask(listening.getsockname(), ssl=certificates.client_context(), hostname="localhost")],
                   users=1, number=1, connect_timeout=0.05)
    peer = arrive(bench, listening)
    if spoken:
        peer.until(lambda: len(peer.received) > 10)
        peer.write(b"\x16\x03\x03")
        peer.settle()
    tally = ended(bench, engine)
    assert only(tally, "tls", "timeout")
    assert tally["timed_out"] == 1
    assert latencies_ns(tally)[0] >= 30_000_000


def test_tls_closed_in_the_handshake(bench, listening, certificates):
    engine = start(bench, [ask(listening.getsockname(), ssl=certificates.client_context(), hostname="localhost")],
                   users=1, number=1)
    peer = arrive(bench, listening)
    peer.until(lambda: len(peer.received) > 10)
    peer.close()
    assert only(ended(bench, engine), "tls", "closed")


def test_tls_reset_in_the_handshake(bench, listening, certificates):
    engine = start(bench, [ask(listening.getsockname(), ssl=certificates.client_context(), hostname="localhost")],
                   users=1, number=1)
    peer = arrive(bench, listening)
    peer.until(lambda: len(peer.received) > 10)
    peer.reset()
    assert only(ended(bench, engine), "tls", "ECONNRESET")


def test_tls_cut_off_behind_the_handshake(bench, listening, certificates):
    """The socket's end without TLS's: in an answer that has a length, and in one that lasts to the end."""
    engine = start(bench, [ask(listening.getsockname(), ssl=certificates.client_context(), hostname="localhost")],
                   users=1, number=3)
    for said in (b"", PART, b"HTTP/1.1 200 OK\r\n\r\n12345"):
        peer = arrive(bench, listening)
        secure = SecurePeer(bench, socket.socket(fileno=peer.socket.detach()), certificates.server_context(),
                            server_side=True)
        bench.clients.remove(peer)
        secure.shake()
        take_request(secure)
        secure.write(said)
        secure.settle()
        secure.close()
        bench.quiet()
    tally = ended(bench, engine)
    assert errors(tally) == {("first-byte", "closed"): 1, ("read", "closed"): 2}


# -- write, first byte, read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reset", "closed with bytes unread", "end"])
def test_write(bench, listening, how):
    """The server goes while a large request is being sent."""
    engine = start(bench, [ask(listening.getsockname(), method="POST", body=b"x" * 20_000_000)], users=1, number=1)
    peer = arrive(bench, listening)
    if how == "reset":
        peer.reset()
    elif how == "end":
        peer.socket.shutdown(socket.SHUT_WR)
    else:
        peer.close()
    tally = ended(bench, engine)
    [(phase, name)] = errors(tally)
    assert phase == "write"
    assert name in {"end": ("closed",)}.get(how, ("ECONNRESET", "EPIPE"))
    bench.turn_until(lambda: bench.loop.stats().live == 0)


def test_write_timeout(bench, listening):
    engine = start(bench, [ask(listening.getsockname(), method="POST", body=b"x" * 20_000_000)], users=1, number=1,
                   timeout=0.05)
    peer = arrive(bench, listening)
    peer.reading = False
    assert only(ended(bench, engine), "write", "timeout")


def lost(bench, engine, listening, said, how):
    peer = arrive(bench, listening)
    take_request(peer)
    peer.write(said)
    peer.settle()
    if how == "closed":
        peer.close()
    elif how == "ECONNRESET":
        peer.reset()
    return ended(bench, engine)


@pytest.mark.parametrize("how", ["closed", "ECONNRESET", "timeout"])
@pytest.mark.parametrize(("phase", "said"), [
    ("first-byte", b""), ("read", b"H"), ("read", PART), ("read", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ("read", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"),
], ids=["nothing", "a byte", "a part", "interim", "chunked"])
def test_lost_answers(bench, listening, phase, said, how):
    engine = start(bench, [ask(listening.getsockname())], users=1, number=1,
                   timeout=TIMEOUT if how == "timeout" else 60)
    tally = lost(bench, engine, listening, said, how)
    assert only(tally, phase, how)
    assert (tally["answered"], tally["statuses"], tally["bytes_received"]) == (0, {}, len(said))
    assert tally["timed_out"] == (how == "timeout")
    assert all(latency >= TIMEOUT * 1e9 * 0.999 for latency in latencies_ns(tally))


def test_a_reset_ends_no_answer_that_lasts_to_the_end(bench, listening):
    engine = start(bench, [ask(listening.getsockname())], users=1, number=1)
    assert only(lost(bench, engine, listening, b"HTTP/1.1 200 OK\r\n\r\n12345", "ECONNRESET"), "read", "ECONNRESET")


@pytest.mark.parametrize("how", ["closed", "ECONNRESET", "timeout"])
def test_a_pipeline_is_lost_with_its_connection(bench, listening, how):
    """One answered, one begun, two behind it: each failure has its own count."""
    engine = start(bench, [ask(listening.getsockname())], users=1, number=4, pipeline=4,
                   timeout=TIMEOUT if how == "timeout" else 60)
    tally = lost(bench, engine, listening, OK + PART, how)
    assert only(tally, "read", how, 3)
    assert (tally["answered"], tally["resent"], tally["timed_out"]) == (1, 0, 3 * (how == "timeout"))


@pytest.mark.debug_build
def test_timeouts_are_on_time(clock, bench):
    """Counted from when the request was sent; a server that says a little does not prolong it."""
    def respond(visitor, request):
        for i in range(20):
            visitor.call_later(0.5 * i, visitor.write, OK[i:i + 1])

    site = Site(bench, respond)
    tally = besiege(bench, [site.ask()], users=1, number=1, timeout=7.0)
    assert only(tally, "read", "timeout")
    assert 7.0 <= latencies_ns(tally)[0] / 1e9 * 1.001 <= 7.05


# -- protocol ----------------------------------------------------------------------------------------------------------

GARBAGE = {
    "garbage": (b"220 mail.example ESMTP\r\n", "the response does not begin with HTTP/1.1"),
    "another version": (b"HTTP/2.0 200 OK\r\n\r\n", "the response does not begin with HTTP/1.1"),
    "no status": (b"HTTP/1.1 OK\r\n\r\n", ""),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", ""),
    "length and chunked": (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", ""),
    "a chunk of no size": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnone\r\n", ""),
    "a chunk that is longer": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc", ""),
    "another protocol": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: a\r\n\r\n", "101, which nobody has asked for"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_protocol(bench, name):
    said, sentence = GARBAGE[name]
    site = Site(bench, says(said))
    tally = besiege(bench, [site.ask()], users=1, number=2)
    [(phase, why)] = errors(tally)
    assert (phase, tally["failed"], tally["answered"], tally["resent"]) == ("protocol", 2, 0, 0)
    assert sentence in why
    assert len(why) > 15
    assert len(site.visitors) == 2, "nothing behind it can be trusted"


def test_garbage_in_a_pipeline(bench):
    """What is behind it has no answer either, and is not asked again."""
    site = Site(bench, lambda visitor, request: visitor.write(OK if len(site.requests) == 1 else b"garbage\r\n"))
    tally = besiege(bench, [site.ask()], users=1, number=4, pipeline=4)
    assert (tally["answered"], tally["failed"], tally["resent"], tally["unanswered"]) == (1, 3, 0, 0)
    assert tally["connections"] == 1


def test_a_body_that_head_must_not_have(bench):
    """It is said behind the answer, so nobody has asked for it. No request fails by that."""
    site = Site(bench, says(answer(b"body")))
    tally = besiege(bench, [site.ask(method="HEAD")], users=1, number=3)
    assert errors(tally) == {UNASKED: 3}
    assert (tally["answered"], tally["failed"], tally["connections"], len(site.requests)) == (3, 0, 3, 3)


def test_two_answers_to_one_request(bench):
    """The second is not taken for the answer to what was not asked yet."""
    site = Site(bench, says(OK + answer(b"", 500)))
    tally = besiege(bench, [site.ask()], users=1, number=3)
    assert tally["statuses"] == {"200": 3}
    assert errors(tally) == {UNASKED: 3}
    assert len(site.visitors) == 3


def test_bytes_at_rest(bench, listening):
    """408 and the like, from a server that has waited too long for the next request: the user waits on."""
    engine = start(bench, [ask(listening.getsockname())], users=1, delay=1e5)
    peer = arrive(bench, listening)
    take_request(peer)
    for said in (OK, answer(b"", 408)):
        peer.write(said)
        peer.settle()
    assert peer.over
    assert engine.tally()["open"] == 0
    engine.stop()
    tally = ended(bench, engine)
    assert errors(tally) == {UNASKED: 1}
    assert (tally["answered"], tally["failed"], tally["reconnects"]) == (1, 0, 0)


# -- what was not expected ---------------------------------------------------------------------------------------------


def test_expectations(bench):
    """A status that is not expected is told of before the body is looked at."""
    answers = iter([answer(b"right"), answer(b"wrong"), answer(b"right", 404), answer(b"", 204), answer(b"", 304)])
    site = Site(bench, lambda visitor, request: visitor.write(next(answers)))
    tally = besiege(bench, [site.ask()], users=1, number=5, statuses=[200, 204], body=b"right")
    assert (tally["answered"], tally["successful"], tally["unexpected"]) == (5, 1, 4)
    assert errors(tally) == {("expect", "body"): 2, ("expect", "404"): 1, ("expect", "304"): 1}
    assert tally["connections"] == 1, "an answer that was not expected is still an answer"


def test_kinds_of_errors_are_limited(bench):
    """To 256, so that a server can't have us keep anything; the rest is counted together."""
    site = Site(bench, lambda visitor, request: visitor.write(answer(b"", 200 + len(site.requests))))
    tally = besiege(bench, [site.ask()], users=1, number=300, statuses=[])
    kinds = errors(tally)
    assert (len(kinds), kinds["expect", "other"], sum(kinds.values())) == (257, 44, 300)


# -- again -------------------------------------------------------------------------------------------------------------


@pytest.mark.debug_build
@pytest.mark.parametrize("how", ["refused", "closed", "garbage"])
def test_failures_are_tried_again_less_and_less_often(clock, bench, stage, how):
    """10 ms, twice that, and so on up to a second."""
    times = []
    listening = stage.listening()
    address = listening.getsockname()
    listening.close()
    engine = Engine(bench.loop, [ask(address)], users=1)
    if how != "refused":
        site = Site(bench, lambda visitor, request: visitor.write(b"garbage\r\n") if how == "garbage"
                    else visitor.abort())
        engine = Engine(bench.loop, [site.ask()], users=1)
    engine.start()
    failed = 0
    while failed < 12:
        bench.loop.turn(0.001)
        if engine.tally()["failed"] > failed:
            failed = engine.tally()["failed"]
            times.append(clock.now_ns / 1e9)
    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert gaps == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1, 1, 1, 1], abs=0.004)
    engine.stop()
    tally = ended(bench, engine)
    assert tally["backoffs"] == 12
    assert tally["failed"] == tally["begun"] == 12


@pytest.mark.debug_build
def test_after_a_success_the_next_failure_is_the_first_again(clock, bench):
    """And one on a connection that has served before does not count as one: the server is there."""
    begun = []

    def opened(visitor):
        begun.append(clock.now_ns / 1e9)

    def respond(visitor, request):
        number = len(site.requests)
        if number in (4, 5):
            visitor.write(OK)
        else:
            visitor.abort()

    site = Site(bench, respond, opened=opened)
    tally = besiege(bench, [site.ask()], users=1, number=8)
    # Failures 1, 2, 3; then 4 and 5 on one connection, on which 6 fails; 7 and 8 fail
    gaps = [later - sooner for sooner, later in pairwise(begun)]
    assert gaps == pytest.approx([0.01, 0.02, 0.04, 0, 0.01], abs=0.004)
    assert (tally["failed"], tally["answered"]) == (6, 2)
    assert tally["backoffs"] == 4


def test_a_server_that_recovers(bench):
    """Whoever is cut off at first has all its answers in the end."""
    site = Site(bench, lambda visitor, request: visitor.abort() if len(site.requests) <= 6 else visitor.write(OK))
    tally = besiege(bench, [site.ask()], users=3, number=30, pipeline=2)
    assert tally["answered"] + tally["failed"] == 30
    assert tally["answered"] >= 18
    assert errors(tally) == {("first-byte", "ECONNRESET"): tally["failed"]}
    assert tally["backoffs"] >= 3


def test_a_server_that_comes_up_late(bench, tmp_path):
    """Users who found nobody try again, and what was not sent is sent then."""
    path = str(tmp_path / "socket")
    engine = start(bench, [ask(path)], users=2, number=100, pipeline=4)
    bench.turn_until(lambda: engine.tally()["connect_failures"] >= 4)
    site = Site(bench, says(OK), path)
    tally = ended(bench, engine)
    assert tally["answered"] + tally["failed"] == 100
    assert errors(tally) == {("connect", "ENOENT"): tally["connect_failures"]}
    assert len(site.requests) == tally["answered"]

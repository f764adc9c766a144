"""The HTTP/1.1 server over real sockets: what it answers, what it refuses, and that nothing behind a refusal runs."""
from __future__ import annotations

import contextlib
import email.utils
import http
import itertools
import logging
import os
import re
import select
import signal
import socket
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import PATIENCE_SECONDS, Bench, Factory, cuts, set_buffers, wait_for

import epollkit
from epollkit import UsageError
from epollkit.http import Response, Settings, serve

MEBIBYTE = 1 << 20
CANARY = b"GET /canary HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def bench(loop):
    with Bench(loop) as made:
        yield made


class App:
    """Answers with what it was asked, and remembers the paths."""

    def __init__(self):
        self.paths = []

    def __call__(self, request):
        self.paths.append(request.path)
        return Response(f"{request.method} {request.target} {len(request.body)}".encode() + b":" + request.body)


@pytest.fixture
def app():
    return App()


def get(path=b"/", *lines, version=b"1.1", method=b"GET"):
    fields = b"".join(line + b"\r\n" for line in (b"Host: a", *lines))
    return method + b" " + path + b" HTTP/" + version + b"\r\n" + fields + b"\r\n"


def post(body, *lines, path=b"/", version=b"1.1"):
    return get(path, b"Content-Length: %d" % len(body), *lines, version=version, method=b"POST") + body


# -- one request, one answer -------------------------------------------------------------------------------------------


def test_an_answer_is_what_the_application_returned(bench):
    headers = ((b"Content-Type", b"application/json"), (b"X-A", b""))
    client = bench.connect(bench.serve(lambda request: Response(b"{}", 201, headers)))
    client.send(get())
    answer = client.receive_response()
    assert (answer.status, answer.reason, answer.version, answer.body) == (201, "Created", 11, b"{}")
    names = [name for name, _ in answer.headers]
    assert sorted(names) == ["Content-Length", "Content-Type", "Date", "X-A"]
    assert answer.header("Content-Type") == "application/json"
    assert answer.header("X-A") == ""
    assert answer.header("Content-Length") == "2"


# name of the situation: (request, method and target and body that the application sees, whether the connection stays)
ACCEPTED = {
    "GET": (get(), b"GET / 0:", True),
    "GET with a query": (get(b"/a/b?c=d&e"), b"GET /a/b?c=d&e 0:", True),
    "GET with a body": (get(b"/", b"Content-Length: 3") + b"abc", b"GET / 3:abc", True),
    "one empty line before it": (b"\r\n" + get(), b"GET / 0:", True),
    "an absolute target that agrees with Host": (get(b"http://a/x"), b"GET http://a/x 0:", True),
    "OPTIONS *": (get(b"*", method=b"OPTIONS"), b"OPTIONS * 0:", True),
    "a method of its own": (get(method=b"FROBNICATE"), b"FROBNICATE / 0:", True),
    "POST": (post(b"hello"), b"POST / 5:hello", True),
    "POST of nothing": (post(b""), b"POST / 0:", True),
    "POST without a length": (get(method=b"POST"), b"POST / 0:", True),
    "POST whose body looks like a request": (post(CANARY), b"POST / %d:" % len(CANARY) + CANARY, True),
    "POST of every byte": (post(bytes(range(256))), b"POST / 256:" + bytes(range(256)), True),
    "a length with leading zeros": (get(b"/", b"Content-Length: 0003", method=b"POST") + b"abc", b"POST / 3:abc", True),
    "Connection: close": (get(b"/", b"Connection: close"), b"GET / 0:", False),
    "Connection: CLOSE among others": (get(b"/", b"Connection: x, CLOSE"), b"GET / 0:", False),
    "Connection: keep-alive": (get(b"/", b"Connection: keep-alive"), b"GET / 0:", True),
    "HTTP/1.0": (get(version=b"1.0"), b"GET / 0:", False),
    "HTTP/1.0 without Host": (b"GET / HTTP/1.0\r\n\r\n", b"GET / 0:", False),
    "HTTP/1.0 keep-alive": (get(b"/", b"Connection: Keep-Alive", version=b"1.0"), b"GET / 0:", True),
    "HTTP/1.0 POST keep-alive": (post(b"xyz", b"Connection: keep-alive", version=b"1.0"), b"POST / 3:xyz", True),
    "HTTP/1.0 with an expectation": (post(b"xyz", b"Expect: 100-continue", version=b"1.0"), b"POST / 3:xyz", False),
    "obs-text in a value": (get(b"/", b"X: \x80\xff"), b"GET / 0:", True),
    "whitespace around a value": (get(b"/", b"X:\t  y \t"), b"GET / 0:", True),
}


@pytest.mark.parametrize(("request_bytes", "seen", "stays"), ACCEPTED.values(), ids=ACCEPTED)
def test_an_accepted_request_is_answered_alike_however_its_bytes_arrive(bench, app, request_bytes, seen, stays):
    """Whole, byte by byte and split at every index, each on a connection of its own with a second request behind it."""
    listener = bench.serve(app)
    for pieces in cuts(request_bytes):
        app.paths.clear()
        with bench.connect(listener) as client:
            client.send_pieces(pieces)
            answer = client.receive_response()
            assert (answer.status, answer.body) == (200, seen)
            assert len(app.paths) == 1
            if stays:
                client.send(get(b"/second"))
                assert client.receive_response().body == b"GET /second 0:"
            else:
                assert answer.header("Connection") == "close"
                assert client.eof()
        bench.quiet()


def test_keep_alive_serves_many_requests_on_one_connection(bench, app):
    client = bench.connect(bench.serve(app))
    for i in range(100):
        client.send(get(b"/%d" % i))
        answer = client.receive_response()
        assert answer.body == b"GET /%d 0:" % i
        assert answer.header("Connection") is None
    assert bench.loop.stats().accepted == 1


def test_http_1_0_is_told_that_it_is_kept_alive(bench, app):
    client = bench.connect(bench.serve(app))
    for _ in range(2):
        client.send(get(b"/", b"Connection: keep-alive", version=b"1.0"))
        assert client.receive_response().header("Connection") == "keep-alive"
    client.send(get(version=b"1.0"))
    assert client.receive_response().header("Connection") == "close"
    assert client.eof()


def test_nothing_behind_connection_close_is_executed(bench, app):
    client = bench.connect(bench.serve(app))
    client.send(get(b"/last", b"Connection: close") + CANARY)
    assert client.receive_response().header("Connection") == "close"
    assert client.eof()
    client.offer(CANARY)
    bench.quiet()
    assert app.paths == ["/last"]


@pytest.mark.parametrize("last", [get(b"/last", version=b"1.0"), get(b"/last", b"Connection: close")])
def test_large_answers_arrive_although_the_peer_goes_on_after_it_has_asked_for_the_end(bench, last):
    """It has not read them yet, and its next bytes meet a server that is through: a plain close would be a reset."""
    client = bench.connect(bench.serve(lambda request: Response(b"x" * 70_000)))
    client.send(get() + get() + last)
    bench.quiet()
    client.offer(CANARY)
    bench.quiet()
    for _ in range(3):
        assert len(client.receive_response().body) == 70_000
    assert client.eof()


@pytest.mark.parametrize("size", [0, 1, 16384, 70_000])
def test_head_is_answered_like_get_without_the_body(bench, size):
    client = bench.connect(bench.serve(lambda request: Response(b"x" * size, 200, ((b"X-A", b"b"),))))
    client.send(get())
    full = client.receive_response()
    client.send(get(method=b"HEAD") + get(method=b"HEAD"))
    for _ in range(2):
        bare = client.receive_response("HEAD")
        assert bare.body == b""
        assert bare.header("Content-Length") == full.header("Content-Length") == str(size)
        assert [name for name, _ in bare.headers] == [name for name, _ in full.headers]
    assert client.nothing_comes()


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_content_has_no_length_and_no_body(bench, status):
    client = bench.connect(bench.serve(lambda request: Response(b"is not sent", status)))
    client.send(get() + get(b"/", b"Connection: close"))
    for _ in range(2):
        answer = client.receive_response()
        assert (answer.status, answer.body, answer.header("Content-Length")) == (status, b"", None)
    assert client.eof()


@pytest.mark.parametrize("status", [200, 206, 226, 299, 300, 404, 418, 451, 499, 500, 599])
def test_any_final_status_can_be_sent(bench, status):
    client = bench.connect(bench.serve(lambda request: Response(b"", status)))
    client.send(get())
    answer = client.receive_response()
    phrase = {code.value: code.phrase for code in http.HTTPStatus}.get(status, "")
    assert (answer.status, answer.reason) == (status, phrase)


def test_an_application_may_close_after_its_answer(bench, app):
    """`(b"connection", b"close")`: said once in the answer, and nothing behind it runs."""
    def closing(request):
        app(request)
        return Response(b"bye", headers=((b"Connection", b"Close"), (b"x", b"y")))

    client = bench.connect(bench.serve(closing))
    client.send(get() + CANARY)
    answer = client.receive_response()
    assert (answer.header("Connection"), answer.header("x")) == ("close", "y")
    assert client.eof()
    assert app.paths == ["/"]


@pytest.mark.parametrize("size", [16_384, 16_385, 20_000, 65_536, 100_000, 3_000_000])
def test_large_answers_keep_the_connection_alive(bench, tmp_path, size):
    """On TCP and on a unix socket, where no further event tells that the answer has left."""
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    for address in (("127.0.0.1", 0), str(tmp_path / "socket")):
        client = bench.connect(bench.serve(lambda request: Response(body), address))
        for _ in range(3):
            client.send(get())
            assert client.receive_response().body == body
        client.send(get() * 3)
        for answer in client.receive_responses(3):
            assert answer.body == body


def test_a_head_for_which_the_loop_s_buffer_is_too_small(bench):
    headers = tuple((b"x-%d" % number, b"y" * 2000) for number in range(40))
    client = bench.connect(bench.serve(lambda request: Response(b"body", headers=headers)))
    client.send(get() * 2)
    for answer in client.receive_responses(2):
        assert answer.body == b"body"
        assert [answer.header(f"x-{number}") for number in range(40)] == ["y" * 2000] * 40


def test_the_date_is_of_the_second_in_which_the_answer_was_made(bench, app):
    """The header is cached for a second and not longer: asked until a second has passed, it is right each time."""
    client = bench.connect(bench.serve(app))
    seen = set()
    while len(seen) < 2:
        before = int(time.time() - 0.05)        # the kernel's coarse clock lags by a tick
        client.send(get())
        date = client.receive_response().header("Date")
        assert re.fullmatch(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", date)
        assert before <= email.utils.parsedate_to_datetime(date).timestamp() <= time.time()
        seen.add(date)
        bench.loop.turn(0.02)


# -- pipelining --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 10, 100])
def test_pipelined_requests_are_answered_in_order(bench, app, count):
    client = bench.connect(bench.serve(app))
    client.send(b"".join(post(b"body %d" % i, path=b"/%d" % i) for i in range(count)))
    for i, answer in enumerate(client.receive_responses(count)):
        assert answer.body == b"POST /%d %d:body %d" % (i, len(b"body %d" % i), i)
    assert client.nothing_comes()
    assert bench.loop.stats().accepted == 1


def test_a_pipeline_of_short_answers_is_answered_in_one_segment(bench, app):
    """100 answers of 100 bytes: one send, and so on loopback one segment."""
    client = bench.connect(bench.serve(app))
    bench.quiet()
    before = data_segments_received(client.socket)
    client.send(get() * 100)
    client.receive_responses(100)
    assert data_segments_received(client.socket) - before == 1


def data_segments_received(sock):
    """struct tcp_info's tcpi_data_segs_in (linux/tcp.h)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    return int.from_bytes(info[152:156], "little")


@pytest.mark.parametrize("count", [1, 5, 100])
def test_a_pipeline_then_half_close_is_answered_whole_and_then_closed(bench, app, count):
    """12. Requests and FIN are there when the loop looks first."""
    listener = bench.serve(app)
    client = bench.connect(listener)
    client.offer(b"".join(get(b"/%d" % i) for i in range(count)))
    client.end()
    for i, answer in enumerate(client.receive_responses(count)):
        assert answer.body == b"GET /%d 0:" % i
    assert client.eof()


def test_an_incomplete_request_before_a_half_close_is_dropped_and_those_before_it_are_answered(bench, app):
    for rest in (b"G", get()[:-1], post(b"12345")[:-1]):
        app.paths.clear()
        client = bench.connect(bench.serve(app))
        client.offer(get(b"/whole") + rest)
        client.end()
        assert client.receive_response().body == b"GET /whole 0:"
        assert client.eof()
        assert app.paths == ["/whole"]


def test_a_pipeline_that_is_not_read_is_not_executed(bench, app):
    """10,000 requests from a client that reads nothing: the application is called only for what the sockets hold. When
    the client reads after all, everything arrives, in order."""
    def bulky(request):
        app(request)
        return Response(request.target.encode() + b" " * 500)

    count = 10_000
    listener = bench.serve(bulky)
    set_buffers(listener.fileno(), receive=65536, send=16384)
    client = bench.connect(listener, receive_buffer=16384, send_buffer=65536)
    stream = b"".join(get(b"/%d" % i) for i in range(count))
    sent = 0
    while True:
        pushed = client.offer(stream[sent:])
        sent += pushed
        if not bench.quiet() and not pushed:
            break
    executed = len(app.paths)
    assert 0 < executed < count // 10
    for i in range(count):
        if sent < len(stream):
            sent += client.offer(stream[sent:sent + 10_000])
        assert client.receive_response().body == b"/%d" % i + b" " * 500
    assert app.paths == [f"/{i}" for i in range(count)]
    client.end()
    assert client.eof()


def test_a_pipeline_and_its_end_that_wait_for_a_slow_reader_are_all_answered(bench, app):
    """12. Requests, FIN, and a client that reads only later: what is whole is answered, though the end has long been
    known."""
    def bulky(request):
        app(request)
        return Response(request.target.encode() + b" " * 50_000)

    listener = bench.serve(bulky)
    set_buffers(listener.fileno(), send=16384)
    client = bench.connect(listener, receive_buffer=16384)
    client.offer(b"".join(get(b"/%d" % i) for i in range(200)))
    client.end()
    bench.quiet()
    assert len(app.paths) < 200
    for i in range(200):
        assert client.receive_response().body == b"/%d" % i + b" " * 50_000
    assert client.eof()


def test_a_pipeline_whose_reader_vanishes_is_not_executed_any_further(bench, app):
    """21. Reading is paused while answers are stuck; the RST is noticed all the same."""
    def bulky(request):
        app(request)
        return Response(b" " * 50_000)

    client = bench.connect(bench.serve(bulky), receive_buffer=4096)
    client.offer(get() * 1000)
    bench.quiet()
    executed = len(app.paths)
    assert executed < 1000
    client.reset()
    bench.turn_until(lambda: bench.loop.stats().closed == 1)
    assert len(app.paths) <= executed + 1


REQUESTS = [get(b"/a"), get(b"/h", method=b"HEAD"), post(b"hello", path=b"/b"), post(b"", path=b"/c"),
            get(b"/d?e", b"X: y"), post(bytes(range(256)) * 3, path=b"/e"), b"\r\n" + get(b"/f")]


@settings(max_examples=60)
@given(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=12), st.data())
def test_however_a_pipeline_is_cut_the_answers_are_the_same(requests, data):
    stream = b"".join(requests)
    points = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    edges = [0, *points, len(stream)]
    app = App()
    with epollkit.Loop() as loop, Bench(loop) as bench:
        client = bench.connect(bench.serve(app))
        client.send_pieces(stream[start:end] for start, end in itertools.pairwise(edges))
        for request in requests:
            method = request.split()[0].decode()
            assert client.receive_response(method).status == 200
        assert client.nothing_comes()
    assert app.paths == [request.split()[1].decode().partition("?")[0] for request in requests]


# -- bodies ------------------------------------------------------------------------------------------------------------


def test_a_body_of_one_mebibyte_is_accepted(bench):
    body = bytes(range(256)) * 4096
    client = bench.connect(bench.serve(lambda request: Response(b"%d %d" % (len(request.body), request.body == body))))
    client.send(post(body) + post(body))
    for answer in client.receive_responses(2):
        assert answer.body == b"1048576 1"


@pytest.mark.parametrize("length", [b"1048577", b"9223372036854775807", b"9223372036854775808", b"9" * 40])
def test_a_larger_body_is_refused_at_once(bench, app, length):
    """413 comes before the body does; a client that sends it all the same can still read the answer."""
    client = bench.connect(bench.serve(app))
    client.send(get(b"/", b"Content-Length: " + length, method=b"POST"))
    answer = client.receive_response()
    assert (answer.status, answer.header("Connection")) == (413, "close")
    client.offer(b"x" * 100_000)
    assert client.eof()
    assert app.paths == []


def test_a_body_over_the_limit_that_is_sent_without_waiting_still_lets_the_answer_through(bench, app):
    """All of 1 MiB and one byte is on its way when the answer is made: closing over it would reset the answer away."""
    client = bench.connect(bench.serve(app))
    client.send(post(b"x" * (MEBIBYTE + 1)))
    assert client.receive_response().status == 413
    assert client.eof()


def test_limit_request_body_is_exact(bench, app):
    listener = bench.serve(app, limit_request_body=10)
    for size, status in ((0, 200), (10, 200), (11, 413)):
        client = bench.connect(listener)
        client.send(post(b"x" * size))
        assert client.receive_response().status == status


def test_bodies_that_come_in_pieces_with_a_request_behind_them(bench, app):
    """The last piece holds the end of the body, another request whole, and the start of a third."""
    client = bench.connect(bench.serve(app))
    first, third = post(b"x" * 1000), post(b"third")
    client.send_pieces([first[:100], first[100:500], first[500:] + post(b"second") + third[:-2], third[-2:]])
    assert [answer.body[-6:] for answer in client.receive_responses(3)] == [b"xxxxxx", b"second", b":third"]


def test_an_expectation_is_answered_before_the_body_and_once(bench, app):
    client = bench.connect(bench.serve(app))
    request = post(b"hello", b"Expect: 100-continue")
    for _ in range(2):
        client.send(request[:-5])
        assert client.take(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"he")
        assert client.nothing_comes()
        client.send(b"llo")
        assert client.receive_response().body == b"POST / 5:hello"


def test_a_client_that_does_not_wait_is_not_told_to_go_on(bench, app):
    client = bench.connect(bench.serve(app))
    client.send(post(b"hello", b"Expect: 100-continue"))
    bench.quiet()
    client.read()
    assert client.received.startswith(b"HTTP/1.1 200")


def test_an_expectation_with_too_large_a_body_is_refused_instead(bench, app):
    client = bench.connect(bench.serve(app))
    client.send(get(b"/", b"Content-Length: 1048577", b"Expect: 100-continue", method=b"POST"))
    bench.quiet()
    client.read()
    assert client.received.startswith(b"HTTP/1.1 413")
    assert client.receive_response().status == 413
    assert client.eof()


# -- refusals ----------------------------------------------------------------------------------------------------------

LINE = b"GET / HTTP/1.1\r\n"
HOST = b"Host: a\r\n"


def fields(*lines):
    return LINE + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


# What is refused, and with which status: each row of "HTTP/1.1, strict by default".
REFUSED = {
    # CRLF only; no NUL, bare CR or bare LF anywhere in a head
    "a bare LF ends the request line": (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    "bare LFs only": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "a bare LF ends a field": (LINE + b"Host: a\nX: y\r\n\r\n", 400),
    "a bare LF ends the head": (LINE + HOST + b"\n", 400),
    "a bare LF in a value": (fields(b"X: a\nb"), 400),
    "a bare CR in a value": (fields(b"X: a\rb"), 400),
    "a bare CR in the request line": (b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a bare CR instead of the end": (LINE + HOST + b"\rX", 400),
    "NUL in a value": (fields(b"X: a\0b"), 400),
    "NUL in a name": (fields(b"X\0: a"), 400),
    "NUL in the target": (b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "NUL in the method": (b"G\0T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "another control byte in a value": (fields(b"X: a\x01b"), 400),
    "DEL in a value": (fields(b"X: a\x7fb"), 400),
    # no obs-fold; no space before the colon; token characters only in names
    "a folded line": (fields(b"X: a", b" b"), 400),
    "a folded line with a tab": (fields(b"X: a", b"\tb"), 400),
    "a folded first line": (LINE + b" X: y\r\n" + HOST + b"\r\n", 400),
    "a space before the colon": (fields(b"X : a"), 400),
    "a tab before the colon": (fields(b"X\t: a"), 400),
    "a space before the colon of Content-Length": (fields(b"Content-Length : 5"), 400),
    "a space in a name": (fields(b"X Y: a"), 400),
    "a name with a byte that no token has": (fields(b"X(Y): a"), 400),
    "a name with obs-text": (fields(b"X\xe4: a"), 400),
    "no name": (fields(b": a"), 400),
    "no colon": (fields(b"X"), 400),
    # exactly one Host, valid, and agreeing with an absolute target
    "no Host": (LINE + b"\r\n", 400),
    "two Hosts": (fields(b"Host: b"), 400),
    "the same Host twice": (fields(b"host: a"), 400),
    "an invalid Host": (LINE + b"Host: a b\r\n\r\n", 400),
    "a Host with user information": (LINE + b"Host: x@a\r\n\r\n", 400),
    "a Host with a path": (LINE + b"Host: a/b\r\n\r\n", 400),
    "a Host with an impossible port": (LINE + b"Host: a:x\r\n\r\n", 400),
    "a Host list": (LINE + b"Host: a, b\r\n\r\n", 400),
    "a Host that is not the target's": (b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a Host that is not the target's port": (b"GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    # Content-Length digits only, one value, no overflow
    "a signed length": (fields(b"Content-Length: +5"), 400),
    "a negative length": (fields(b"Content-Length: -5"), 400),
    "a hexadecimal length": (fields(b"Content-Length: 0x5"), 400),
    "a length with an underscore": (fields(b"Content-Length: 1_0"), 400),
    "a length with a fraction": (fields(b"Content-Length: 5.0"), 400),
    "an empty length": (fields(b"Content-Length:"), 400),
    "a list of lengths": (fields(b"Content-Length: 5, 5"), 400),
    "two lengths": (fields(b"Content-Length: 5", b"Content-Length: 6"), 400),
    "the same length twice": (fields(b"Content-Length: 5", b"content-length: 5"), 400),
    "a length beyond 63 bits": (fields(b"Content-Length: 9223372036854775808"), 413),
    "a length beyond 64 bits that would wrap to 5": (fields(b"Content-Length: 18446744073709551621"), 413),
    "a length beyond the limit": (fields(b"Content-Length: 1048577"), 413),
    # Content-Length with Transfer-Encoding; Transfer-Encoding is exactly chunked, once, last, never in HTTP/1.0
    "a length and a coding": (fields(b"Content-Length: 5", b"Transfer-Encoding: chunked"), 400),
    "a coding and a length": (fields(b"Transfer-Encoding: chunked", b"Content-Length: 5"), 400),
    "chunked, which needs a length here": (fields(b"Transfer-Encoding: chunked") + b"0\r\n\r\n", 411),
    "chunked with a body": (fields(b"Transfer-Encoding: CHUNKED") + b"22\r\n" + CANARY + b"\r\n0\r\n\r\n", 411),
    "chunked twice": (fields(b"Transfer-Encoding: chunked, chunked"), 400),
    "two codings fields": (fields(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 400),
    "chunked is not last": (fields(b"Transfer-Encoding: chunked, gzip"), 400),
    "another coding": (fields(b"Transfer-Encoding: gzip"), 501),
    "another coding before chunked": (fields(b"Transfer-Encoding: gzip, chunked"), 501),
    "identity": (fields(b"Transfer-Encoding: identity"), 501),
    "a coding that looks like chunked": (fields(b"Transfer-Encoding: xchunked"), 501),
    "an empty coding": (fields(b"Transfer-Encoding:"), 400),
    "a coding in HTTP/1.0": (b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    # an unknown expectation is 417
    "an unknown expectation": (fields(b"Expect: 200-ok"), 417),
    "an unknown expectation among others": (fields(b"Expect: 100-continue, x"), 417),
    # a method or version that cannot be parsed is 400/505
    "no method": (b" / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a method that is no token": (b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a method beyond 32 bytes": (b"M" * 33 + b" / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "CONNECT": (b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 501),
    "two empty lines before it": (b"\r\n\r\n" + get(), 400),
    "two spaces in the request line": (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a space behind the version": (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    "a target that is not a path": (b"GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a target with a fragment": (b"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a target with a space": (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a target with a byte beyond ASCII": (b"GET /\xe4 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "* with GET": (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a target with user information": (b"GET http://x@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /\r\n", 400),
    "a version in lower case": (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
    "a version that is no number": (b"GET / HTTP/x.y\r\nHost: a\r\n\r\n", 400),
    "a version with too many digits": (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
    "HTTP/0.9 spelled out": (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
    # limits
    "a request line beyond the limit": (b"GET /" + b"x" * 8190 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "a field line beyond the limit": (fields(b"X: " + b"y" * 8190), 431),
    "more fields than the limit": (fields(*[b"X: y"] * 100), 431),
}


def check_refusal(client, status):
    """Exactly one answer that says why and closes, then a clean end."""
    answer = client.receive_response()
    assert answer.status == status
    assert answer.reason == http.HTTPStatus(status).phrase
    assert answer.header("Connection") == "close"
    assert answer.header("Date")
    assert answer.body.startswith(f"{status} {answer.reason}".encode())
    assert answer.body.endswith(b"\n")
    assert client.eof()


@pytest.mark.parametrize(("head", "status"), REFUSED.values(), ids=REFUSED)
def test_a_refused_request_gets_one_answer_and_nothing_behind_it_runs(bench, app, head, status):
    """The canary is in the same bytes, or comes behind the answer; both at once, with more of them than fits a read."""
    listener = bench.serve(app)
    for behind, later in ((CANARY, b""), (b"", CANARY), (CANARY * 3000, CANARY * 3000)):
        client = bench.connect(listener)
        client.offer(head + behind)
        bench.quiet()
        client.offer(later)
        bench.quiet()
        check_refusal(client, status)
    assert app.paths == []


@pytest.mark.parametrize(("head", "status"), REFUSED.values(), ids=REFUSED)
def test_a_refused_request_is_refused_however_its_bytes_arrive(bench, app, head, status):
    """Byte by byte and split at every index, a canary behind each."""
    listener = bench.serve(app)
    for pieces in cuts(head):
        with bench.connect(listener) as client:
            client.send_pieces([*pieces, CANARY])
            check_refusal(client, status)
        bench.quiet()
    assert app.paths == []


@pytest.mark.parametrize("name", ["a bare LF ends a field", "two lengths", "chunked with a body",
                                  "a length beyond the limit", "an unknown expectation", "HTTP/2.0",
                                  "more fields than the limit"])
def test_what_was_pipelined_before_a_refused_request_is_answered(bench, app, name):
    head, status = REFUSED[name]
    client = bench.connect(bench.serve(app))
    client.offer(get(b"/1") + post(b"x", path=b"/2") + get(b"/3") + head + CANARY)
    assert [answer.body for answer in client.receive_responses(3)] == [b"GET /1 0:", b"POST /2 1:x", b"GET /3 0:"]
    check_refusal(client, status)
    assert app.paths == ["/1", "/2", "/3"]


def test_a_refused_request_behind_a_body_that_came_in_pieces(bench, app):
    client = bench.connect(bench.serve(app))
    client.send_pieces([post(b"12345")[:-3], b"345" + b"BAD\r\n\r\n" + CANARY])
    assert client.receive_response().body == b"POST / 5:12345"
    check_refusal(client, 400)
    assert app.paths == ["/"]


def test_a_refused_request_that_waits_behind_unread_answers(bench, app):
    """Back-pressure holds it in the queue; when its turn comes it is refused all the same, and so is the canary."""
    def bulky(request):
        app(request)
        return Response(b" " * 100_000)

    listener = bench.serve(bulky)
    set_buffers(listener.fileno(), send=16384)
    client = bench.connect(listener, receive_buffer=16384)
    client.offer(get() * 5 + b"BAD\r\n\r\n" + CANARY)
    bench.quiet()
    assert len(app.paths) < 5
    client.receive_responses(5)
    check_refusal(client, 400)
    assert app.paths == ["/"] * 5


@pytest.mark.parametrize("end", ["refused", "closed by the application"])
def test_input_that_arrives_while_the_last_answer_is_made_does_not_destroy_it(bench, end):
    """The client's next bytes are in the socket, unread, when the server closes: a plain close(2) would reset, and what
    the client has not read yet would be lost to it."""
    paths = []

    def app(request):
        paths.append(request.path)
        client.offer(CANARY * 100)      # comes between the last read and the close
        client.arrived()
        return Response(b"x" * 100, headers=((b"connection", b"close"),) if request.path == "/close" else ())

    client = bench.connect(bench.serve(app))
    client.offer(get(b"/1") + (b"BAD\r\n\r\n" if end == "refused" else get(b"/close")))
    assert client.receive_response().status == 200
    if end == "refused":
        check_refusal(client, 400)
    else:
        assert client.receive_response().header("Connection") == "close"
        assert client.eof()
    assert paths == (["/1"] if end == "refused" else ["/1", "/close"])


def test_a_refused_request_then_half_close(bench, app):
    client = bench.connect(bench.serve(app))
    client.offer(b"BAD\r\n\r\n" + CANARY)
    client.end()
    check_refusal(client, 400)
    assert app.paths == []


def test_a_refused_peer_that_never_stops_sending_is_not_read_for_ever(bench, app):
    """Lingering has a limit: after some MiB of input that nobody wants the connection is closed over the rest."""
    client = bench.connect(bench.serve(app))
    client.offer(b"BAD\r\n\r\n")
    bench.quiet()
    sent = 0
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        while sent < 64 * MEBIBYTE:
            sent += client.offer(CANARY * 10_000)
            bench.loop.turn(0)
    assert sent < 32 * MEBIBYTE
    assert app.paths == []


def test_limits_of_a_head_are_exact(bench, app):
    """The last byte and the last field that fit are accepted, one more is refused."""
    listener = bench.serve(app, limit_request_line=40, limit_request_field_size=20, limit_request_fields=3)
    line = b"GET /%s HTTP/1.1\r\nHost: a\r\n%s\r\n"
    for head, status in (
        (line % (b"x" * 26, b""), 200), (line % (b"x" * 27, b""), 414),
        (line % (b"", b"X: " + b"y" * 17 + b"\r\n"), 200), (line % (b"", b"X: " + b"y" * 18 + b"\r\n"), 431),
        (line % (b"", b"X: y\r\n" * 2), 200), (line % (b"", b"X: y\r\n" * 3), 431),
    ):
        client = bench.connect(listener)
        client.send(head)
        assert client.receive_response().status == status


def test_a_refusal_names_its_reason(bench, app):
    client = bench.connect(bench.serve(app))
    client.send(fields(b"X : a"))
    answer = client.receive_response()
    assert answer.header("Content-Type") == "text/plain"
    assert re.fullmatch(rb"400 Bad Request: .*field name.*\n", answer.body)


CLIENT_STEPS = st.sampled_from(["turn", "turn", "read a little", "read", "nothing"])


@settings(max_examples=80)
@given(st.lists(st.sampled_from(REQUESTS), max_size=6), st.booleans(), st.integers(1, 4000),
       st.lists(st.tuples(st.integers(1, 400), CLIENT_STEPS), max_size=12),
       st.sampled_from(["end", "close", "reset"]), st.sampled_from([10, 20_000, 400_000]), st.booleans())
def test_whatever_a_client_does_only_whole_requests_before_a_refused_one_run_and_in_order(
        requests, refused, rest, steps, end, answer_size, unix):
    """Pieces of any size, with or without reading, then a half-close, a close or a reset, over TCP and unix sockets."""
    expected = [request.split()[1].decode().partition("?")[0] for request in requests]
    stream = b"".join(requests) + (b"BAD\r\n\r\n" + CANARY if refused else b"")
    paths = []

    def app(request):
        paths.append(request.path)
        return Response(b"x" * answer_size)

    with epollkit.Loop() as loop, Bench(loop) as bench:
        address = f"\0epollkit test {os.getpid()}" if unix else ("127.0.0.1", 0)
        client = bench.connect(bench.serve(app, address), receive_buffer=4096)
        with contextlib.suppress(ConnectionError):
            for size, step in [*steps, (rest, "turn")]:
                stream = stream[client.offer(stream[:size]):]
                if step == "turn":
                    loop.turn(0)
                elif step != "nothing":
                    client.read(limit=100 if step == "read a little" else 1 << 20)
            if end == "end":
                client.end()
                client.take_all()
        if end == "reset" and not unix:
            client.reset()
        else:
            client.close()
    assert paths == expected[:len(paths)]
    if end == "end" and not stream:
        assert paths == expected


# -- applications that misbehave ---------------------------------------------------------------------------------------


def test_an_application_that_raises_gives_500_and_one_log_record_and_the_connection_goes_on(bench, caplog):
    problem = ValueError("the application's own")

    def app(request):
        if request.path == "/bad":
            raise problem
        return Response(b"fine")

    client = bench.connect(bench.serve(app))
    with caplog.at_level(logging.DEBUG):
        client.send(get(b"/1") + get(b"/bad?secret=1") + get(b"/2"))
        answers = client.receive_responses(3)
    assert [answer.status for answer in answers] == [200, 500, 200]
    assert answers[1].body == b"Internal Server Error\n"
    assert [(record.name, record.levelname) for record in caplog.records] == [("epollkit", "ERROR")]
    assert caplog.records[0].exc_info[1] is problem
    assert "GET /bad" in caplog.records[0].getMessage()
    client.send(get(b"/3"))
    assert client.receive_response().body == b"fine"


class Uninitialised(Response):
    def __init__(self):
        pass


@pytest.mark.parametrize("nonsense", [None, b"bytes", "text", 42, (b"body", 200), Response, object(), NotImplemented],
                         ids=repr)
def test_an_application_that_returns_something_else_gives_500(bench, caplog, nonsense):
    client = bench.connect(bench.serve(lambda request: nonsense))
    client.send(get())
    assert client.receive_response().status == 500
    assert len(caplog.records) == 1
    assert "not a Response" in str(caplog.records[0].exc_info[1])


def test_a_coroutine_function_is_not_an_application(bench, caplog):
    """It returns a coroutine, which nobody here will ever await."""
    async def app(request):
        return Response(b"")

    client = bench.connect(bench.serve(app))
    with pytest.warns(RuntimeWarning, match="was never awaited"):
        client.send(get())
        assert client.receive_response().status == 500
        caplog.clear()


def test_a_response_whose_initialiser_never_ran_is_still_a_well_formed_answer(bench):
    client = bench.connect(bench.serve(lambda request: Uninitialised()))
    client.send(get() + get())
    for answer in client.receive_responses(2):
        assert answer.status in (200, 500)


@pytest.mark.parametrize("verb", ["close", "abort"])
def test_an_application_may_end_its_connection(bench, app, verb):
    """Then this request gets no answer, and nothing behind it runs."""
    def ends(request):
        app(request)
        if request.path == "/end":
            getattr(request.connection, verb)()
        return Response(b"x")

    client = bench.connect(bench.serve(ends))
    client.send(get(b"/1"))
    assert client.receive_response().body == b"x"
    client.send(get(b"/end") + CANARY)
    if verb == "close":
        assert client.eof()
    else:
        assert isinstance(client.broke(), ConnectionResetError)
        assert client.received == b""
    assert app.paths == ["/1", "/end"]


def test_an_application_may_close_from_a_body_that_came_in_pieces(bench, app):
    def ends(request):
        app(request)
        request.connection.close()
        return Response(b"x")

    client = bench.connect(bench.serve(ends))
    client.send_pieces([post(b"12345")[:-2], b"45" + CANARY])
    assert client.eof()
    assert app.paths == ["/"]


def test_an_application_that_raises_after_it_closed_its_connection(bench, caplog):
    def ends(request):
        request.connection.close()
        raise ValueError("late")

    client = bench.connect(bench.serve(ends))
    client.send(get())
    assert client.eof()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("verb", ["turn", "run"])
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_out_of_an_application_leaves_the_loop_at_once_and_loses_no_one_elses_event(bench, app, interrupt, verb):
    """Two connections have a request in one batch, and a third is pipelined behind the first."""
    def interrupted(request):
        app(request)
        if request.path == "/interrupt":
            raise interrupt
        return Response(b"served")

    listener = bench.serve(interrupted)
    clients = [bench.connect(listener) for _ in range(2)]
    for client in clients:
        client.send(get())
        client.receive_response()
    app.paths.clear()
    clients[0].offer(get(b"/before") + get(b"/interrupt") + CANARY)
    clients[0].arrived()
    clients[1].offer(get(b"/other"))
    clients[1].arrived()
    with pytest.raises(interrupt):
        bench.loop.turn(0) if verb == "turn" else bench.loop.run()
    assert app.paths == ["/before", "/interrupt"]
    assert clients[1].receive_response().body == b"served"
    assert clients[0].receive_response().body == b"served"
    check_refusal(clients[0], 500)
    assert app.paths == ["/before", "/interrupt", "/other"]


def test_ctrl_c_while_a_failure_is_logged_does_not_shift_the_answers(bench, app):
    """Two requests are pipelined behind the one that failed: the next answer must not pass for its own."""
    class Interrupts(logging.Handler):
        def emit(self, record):
            raise KeyboardInterrupt

    def fails(request):
        app(request)
        if request.path == "/fails":
            raise ValueError
        return Response(request.target.encode())

    logger, handler = logging.getLogger("epollkit"), Interrupts()
    client = bench.connect(bench.serve(fails))
    client.offer(get(b"/before") + get(b"/fails") + CANARY)
    logger.addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            bench.turn_until(lambda: "/fails" in app.paths)
    finally:
        logger.removeHandler(handler)
    assert client.receive_response().body == b"/before"
    check_refusal(client, 500)
    assert app.paths == ["/before", "/fails"]


@pytest.mark.parametrize("end", ["abort", "close"])
def test_an_application_that_closes_over_what_came_in_the_same_read_as_the_end_of_its_body(bench, end):
    """The body came in two reads, and behind it the next request."""
    asked = []

    def ends(request):
        asked.append(request.body)
        getattr(request.connection, end)()
        return Response(b"too late")

    client = bench.connect(bench.serve(ends))
    request = post(b"in two reads")
    client.send_pieces([request[:-4], request[-4:] + get(b"/behind")])
    assert asked == [b"in two reads"]
    client.close()


def test_an_application_may_run_another_server_and_its_client_meanwhile():
    """A nested loop of its own, inside an upcall, while more requests are pipelined behind: the two do not mix."""
    def inner_app(request):
        return Response(b"inner " + request.body)

    def outer_app(request):
        with epollkit.Loop() as inner_loop, Bench(inner_loop) as inner:
            client = inner.connect(inner.serve(inner_app))
            client.send(post(request.target.encode())[:-1])
            client.send(post(request.target.encode())[-1:] + get()[:10])
            return Response(b"outer " + client.receive_response().body)

    with epollkit.Loop() as loop, Bench(loop) as bench:
        client = bench.connect(bench.serve(outer_app))
        client.send(get(b"/1") + get(b"/2") + get(b"/3")[:-5])
        client.send(get(b"/3")[-5:])
        assert [answer.body for answer in client.receive_responses(3)] == [b"outer inner /%d" % i for i in (1, 2, 3)]


# -- deadlines ---------------------------------------------------------------------------------------------------------


def ends_after(client, seconds):
    """Everything that came until the server closed; not before that many seconds."""
    start = time.monotonic()
    received = client.take_all()
    assert time.monotonic() - start >= seconds * 0.98
    return received


def test_a_connection_that_never_sends_is_closed_without_a_word(bench, app):
    client = bench.connect(bench.serve(app, timeout_header=0.05))
    assert ends_after(client, 0.05) == b""


@pytest.mark.parametrize("start", [b"G", get()[:-1], b"\r\n", post(b"")[:-2]], ids=["G", "all but LF", "CRLF", "POST"])
def test_a_head_that_does_not_come_in_whole_gets_408(bench, app, start):
    client = bench.connect(bench.serve(app, timeout_header=0.05))
    client.send(start)
    bench.turn_until(lambda: client.read() or client.ended)
    check_refusal(client, 408)
    client.offer(CANARY)
    bench.quiet()
    assert app.paths == []


def test_a_trickle_does_not_put_off_the_deadline_of_a_head(bench, app):
    """A byte every turn, of a head that would take minutes at that rate."""
    client = bench.connect(bench.serve(app, timeout_header=0.1, limit_request_field_size=65535))
    client.offer(get()[:-2] + b"X: ")
    start = time.monotonic()
    while not client.read():
        client.offer(b"y")
        bench.loop.turn(0.002)
        assert time.monotonic() - start < 10
    assert time.monotonic() - start >= 0.098
    check_refusal(client, 408)


def test_the_second_head_on_a_connection_has_a_deadline_of_its_own(bench, app):
    client = bench.connect(bench.serve(app, timeout_header=0.05))
    client.send(get() + get()[:10])
    assert client.receive_response().status == 200
    check_refusal(client, 408)


def test_a_body_that_does_not_come_in_gets_408(bench, app):
    client = bench.connect(bench.serve(app, timeout_body=0.05))
    client.send(post(b"12345")[:-1])
    check_refusal(client, 408)
    assert app.paths == []


def test_an_idle_connection_is_closed_without_a_word(bench, app):
    client = bench.connect(bench.serve(app, timeout_keep_alive=0.05))
    client.send(get())
    assert client.receive_response().status == 200
    assert ends_after(client, 0.05) == b""


def test_a_client_that_does_not_read_is_reset(bench):
    listener = bench.serve(lambda request: Response(bytes(20 << 20)), timeout_write=0.05)
    client = bench.connect(listener, receive_buffer=4096)
    client.send(get())
    bench.turn_until(lambda: bench.loop.stats().closed == 1)
    assert isinstance(client.broke(), ConnectionResetError)


def test_a_client_that_does_not_read_many_short_answers_is_reset(bench):
    """The last answer is gathered, and blocks only when it is flushed at the end of its upcall."""
    listener = bench.serve(lambda request: Response(b"x" * 1000), timeout_write=0.05)
    set_buffers(listener.fileno(), send=4096)
    client = bench.connect(listener, receive_buffer=4096)
    start = time.monotonic()
    with pytest.raises(ConnectionError):
        while time.monotonic() - start < PATIENCE_SECONDS:
            client.offer(get())     # asking for more does not put it off
            bench.loop.turn(0.001)
    assert bench.loop.stats().closed == 1


def steadily(seconds, patience_seconds, step, bench):
    """Call step() again and again for that long, with short turns in between. False if this machine stalled so long
    that a deadline of `patience_seconds` may rightly have passed."""
    start = last = time.monotonic()
    while time.monotonic() - start < seconds:
        step()
        bench.loop.turn(0.005)
        now = time.monotonic()
        if now - last > patience_seconds / 2:
            return False
        last = now
    return True


def attempts(attempt):
    """A test of what a deadline must not do, on a machine that may stall: up to five times."""
    for _ in range(5):
        if attempt():
            return
    pytest.skip("this machine stalls too often for a short deadline")


def test_a_body_that_makes_progress_is_not_cut_off(bench, app):
    """A byte at a time, three times as long in all as the deadline between two reads."""
    def attempt():
        client = bench.connect(bench.serve(app, timeout_body=0.1))
        left = MEBIBYTE
        client.send(post(b"x" * left)[:-left])

        def step():
            nonlocal left
            left -= client.offer(b"x")

        if not steadily(0.3, 0.1, step, bench):
            return False
        client.send(b"x" * left)
        assert client.receive_response().status == 200
        return True

    attempts(attempt)


def test_a_slow_reader_that_makes_progress_is_not_cut_off(bench):
    """4 MB, read at 4 MB a second for three times as long as the write deadline."""
    body = bytes(range(256)) * 16384

    def attempt():
        listener = bench.serve(lambda request: Response(body), timeout_write=0.1)
        set_buffers(listener.fileno(), send=16384)
        client = bench.connect(listener, receive_buffer=16384)
        client.send(get())
        start = time.monotonic()

        def step():
            due = int((time.monotonic() - start) * len(body)) - len(client.received)
            if due > 0:
                client.read(limit=due)

        if not steadily(0.3, 0.1, step, bench):
            return False
        assert len(client.received) < len(body)
        assert client.receive_response().body == body
        return True

    attempts(attempt)


def test_keep_alive_starts_anew_with_each_request(bench, app):
    def attempt():
        client = bench.connect(bench.serve(app, timeout_keep_alive=0.1))

        def step():
            client.send(get())
            assert client.receive_response().status == 200

        return steadily(0.3, 0.1, step, bench)

    attempts(attempt)


def test_a_deadline_dies_with_its_connection(bench, app):
    client = bench.connect(bench.serve(app))
    client.send(get())
    client.receive_response()
    client.close()
    bench.turn_until(lambda: bench.loop.stats().closed == 1)
    assert bench.loop.stats().timers == 0


# -- addresses, admission, options -------------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_a_unix_socket_is_served(bench, app, tmp_path, abstract):
    address = ("\0" if abstract else "") + str(tmp_path / "socket")
    client = bench.connect(bench.serve(app, address))
    client.send(get(b"/1") + post(b"hello", path=b"/2"))
    assert [answer.body for answer in client.receive_responses(2)] == [b"GET /1 0:", b"POST /2 5:hello"]


def test_ipv6_is_served(bench, app):
    try:
        listener = bench.serve(app, ("::1", 0))
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    client = bench.connect(listener)
    client.send(get())
    assert client.receive_response().status == 200


def test_deferred_accept_serves_the_first_request_in_the_turn_that_accepts_it(bench, app):
    client = bench.connect(bench.serve(app, defer_accept=True))
    client.send(get(b"/1", b"Connection: close"))
    wait_for(bench.listeners[0].fileno(), select.POLLIN)
    assert bench.loop.turn(0) == 1
    assert app.paths == ["/1"]
    assert client.receive_response().body == b"GET /1 0:"
    assert client.eof()


def test_a_connection_that_is_not_admitted_is_reset_and_never_reaches_the_application(bench, app):
    asked = []
    allowed = True

    def admit(peer_address):
        asked.append(peer_address)
        return allowed

    listener = bench.serve(app, admit=admit)
    first = bench.connect(listener)
    first.send(get(b"/1") + get(b"/2"))
    first.receive_responses(2)
    allowed = False
    second = bench.connect(listener)
    second_address = second.socket.getsockname()
    second.offer(CANARY)
    assert isinstance(second.broke(), ConnectionResetError)
    assert second.received == b""
    assert asked == [first.socket.getsockname(), second_address]
    assert app.paths == ["/1", "/2"]


def test_an_admission_that_raises_ends_the_connection_and_is_reported(bench, app):
    found = []
    bench.loop.set_exception_handler(lambda exception, source: found.append(exception))
    problem = ValueError("admit's own")

    def admit(peer_address):
        raise problem

    client = bench.connect(bench.serve(app, admit=admit))
    bench.turn_until(lambda: found)
    client.offer(CANARY)
    bench.quiet()
    assert found == [problem]
    assert app.paths == []


def test_a_connection_knows_its_addresses(bench):
    seen = []

    def app(request):
        seen.append((request.connection.peer_address, request.connection.local_address))
        return Response(b"")

    client = bench.connect(bench.serve(app))
    client.send(get())
    client.receive_response()
    assert seen == [(client.socket.getsockname(), client.socket.getpeername())]


def test_two_servers_of_one_loop_have_settings_of_their_own(bench):
    small = bench.serve(lambda request: Response(b"small"), limit_request_body=1)
    large = bench.serve(lambda request: Response(b"large"))
    for listener, status in ((small, 413), (large, 200), (small, 413)):
        client = bench.connect(listener)
        client.send(post(b"two"))
        assert client.receive_response().status == status


@pytest.mark.parametrize(("options", "sentence"), [
    ({"app": 5}, "an application is called with a Request and returns a Response; 5 can't be called"),
    ({"admit": 5}, "admit is called with the peer's address and returns a bool; 5 can't be called"),
    ({"limit_request_line": 15}, "limit_request_line is a whole number from 16 to 65535, not 15"),
    ({"limit_request_fields": 101}, "limit_request_fields is a whole number from 1 to 100, not 101"),
    ({"limit_request_fields": 0}, "limit_request_fields is a whole number from 1 to 100, not 0"),
    ({"limit_request_fields": True}, "limit_request_fields is a whole number from 1 to 100, not True"),
    ({"limit_request_field_size": "9"}, "limit_request_field_size is a whole number from 16 to 65535, not '9'"),
    ({"limit_request_body": 1048577}, "limit_request_body is a whole number from 0 to 1048576, not 1048577"),
    ({"limit_request_body": -1}, "limit_request_body is a whole number from 0 to 1048576, not -1"),
    ({"timeout_header": 0}, "timeout_header is a number of seconds above 0, at most a million, not 0"),
    ({"timeout_body": -1}, "timeout_body is a number of seconds above 0, at most a million, not -1"),
    ({"timeout_write": float("nan")}, "timeout_write is a number of seconds above 0, at most a million, not nan"),
    ({"timeout_keep_alive": None}, "timeout_keep_alive is a number of seconds above 0, at most a million, not None"),
    ({"timeout_body": 1e7}, "timeout_body is a number of seconds above 0, at most a million, not 10000000.0"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else None)
def test_a_wrong_setting_is_explained_in_one_sentence(options, sentence):
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}$"):
        Settings(**{"app": App(), **options})


def test_the_shortest_timeout_is_not_none_at_all(bench, app):
    client = bench.connect(bench.serve(app, timeout_header=1e-12))
    assert client.eof()


def test_a_connection_is_made_by_the_server_only():
    from epollkit.http import HttpConnection

    with pytest.raises(UsageError, match="an HttpConnection is made by the server"):
        HttpConnection()


# -- serve() -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_on_a_signal_and_puts_the_handlers_back(app, signum):
    """An answer in hand is served first; open connections are closed."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    wakeup = signal.set_wakeup_fd(-1)
    found = []

    def on_listening(listener):
        client = socket.create_connection(listener.address)
        client.sendall(get())
        found.append(client)

    def signalled(request):
        signal.raise_signal(signum)
        return app(request)

    serve(signalled, port=0, on_listening=on_listening)
    with found[0] as client:
        received = b""
        while piece := client.recv(65536):
            received += piece
    assert received.endswith(b"GET / 0:")
    assert {number: signal.getsignal(number) for number in before} == before
    assert signal.set_wakeup_fd(wakeup) == -1


def test_serve_says_where_it_listens(app, tmp_path, caplog):
    addresses = []

    def on_listening(listener):
        addresses.append(listener.address)
        signal.raise_signal(signal.SIGTERM)

    with caplog.at_level(logging.INFO):
        serve(app, port=0, on_listening=on_listening)
        serve(app, uds=str(tmp_path / "socket"), on_listening=on_listening)
    assert addresses == [("127.0.0.1", addresses[0][1]), str(tmp_path / "socket")]
    assert [record.getMessage() for record in caplog.records] == [
        f"listening on 127.0.0.1:{addresses[0][1]}", f"listening on unix:{tmp_path}/socket"]
    assert not (tmp_path / "socket").exists()


def test_a_problem_in_on_listening_leaves_nothing_behind(app):
    def on_listening(listener):
        raise ValueError("the caller's own")

    with pytest.raises(ValueError, match="the caller's own"):
        serve(app, port=0, on_listening=on_listening)


def test_http_and_plain_streams_share_a_loop(bench, app):
    factory = Factory()
    plain, client = bench.connect(bench.listen(factory)), bench.connect(bench.serve(app))
    plain.send(b"plain")
    client.send(get())
    assert client.receive_response().status == 200
    bench.quiet()
    assert factory.made[0].data == b"plain"

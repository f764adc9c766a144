"""`Request` as an application sees it, and `Response`, which can't be made to say anything but one response."""
from __future__ import annotations

import http
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire import Bench

import epollkit
from epollkit import UsageError
from epollkit.http import Request, Response

TOKEN_BYTES = string.ascii_letters.encode() + string.digits.encode() + b"!#$%&'*+-.^_`|~"
VALUE_BYTES = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
SET_BY_THE_SERVER = (b"content-length", b"transfer-encoding", b"date")


@pytest.fixture
def ask(loop):
    """Send a request's bytes; return what `look` makes of the Request, called inside the application."""
    with Bench(loop) as bench:
        found = []
        looks = []

        def app(request):
            found.append(looks[-1](request))
            return Response(b"")

        client = bench.connect(bench.serve(app))

        def asking(data, look=lambda request: request):
            looks.append(look)
            client.send(data)
            client.receive_response()
            return found[-1]

        yield asking


def get(target, *lines, method=b"GET"):
    return method + b" " + target + b" HTTP/1.1\r\nHost: a\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


# -- Request -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "path", "query"), [
    (b"/", "/", ""),
    (b"/a/b", "/a/b", ""),
    (b"/a?", "/a", ""),
    (b"/a?b=c&d", "/a", "b=c&d"),
    (b"/a?b?c", "/a", "b?c"),
    (b"/?b", "/", "b"),
    (b"//a//b", "//a//b", ""),
    (b"/a%20b", "/a b", ""),
    (b"/a+b", "/a+b", ""),
    (b"/%C3%A4", "/\u00e4", ""),
    (b"/%c3%a4", "/\u00e4", ""),
    (b"/%E4", "/\ufffd", ""),
    (b"/%2F%3F%23?%2F", "//?#", "%2F"),
    (b"/100%", "/100%", ""),
    (b"/%zz%4", "/%zz%4", ""),
    (b"/%2525", "/%25", ""),
    (b"/../a/./b", "/../a/./b", ""),
    (b"http://a/x/y?z", "/x/y", "z"),
    (b"http://a", "/", ""),
    (b"http://a?b", "/", "b"),
    (b"http://a:80//b", "//b", ""),
    (b"HTTP://A/%41://b", "/A://b", ""),
    (b"http://a/b?c=http://d/e", "/b", "c=http://d/e"),
])
def test_a_target_is_split_and_its_path_decoded(ask, target, path, query):
    """The path decoded once, the query and the target left as they were sent."""
    request = ask(get(target))
    assert (request.target, request.path, request.query) == (target.decode(), path, query)
    assert request.path == path, "the second look says the same"


def test_a_target_of_an_asterisk(ask):
    request = ask(get(b"*", method=b"OPTIONS"))
    assert (request.method, request.target, request.path, request.query) == ("OPTIONS", "*", "*", "")


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"get",
                                    b"PURGE", b"M" * 32, b"!#$%&'*+-.^_`|~"])
def test_a_method_is_as_sent(loop, method):
    with Bench(loop) as bench:
        seen = []
        client = bench.connect(bench.serve(lambda request: seen.append(request.method) or Response(b"")))
        client.send(get(b"/", method=method))
        client.receive_response(method.decode())
        assert seen == [method.decode()]


def test_headers_are_pairs_of_bytes_in_order_with_names_in_lower_case_and_repeated_ones_kept(ask):
    request = ask(get(b"/", b"X-B: 1", b"x-a:\t2 ", b"X-B:3", b"EMPTY:", b"x-c: \xe4 \xff"))
    assert request.headers == [(b"host", b"a"), (b"x-b", b"1"), (b"x-a", b"2"), (b"x-b", b"3"), (b"empty", b""),
                               (b"x-c", b"\xe4 \xff")]
    assert request.headers is not request.headers     # the list is the caller's


def test_a_header_is_found_by_name_in_any_case_the_first_of_several(ask):
    request = ask(get(b"/", b"X-B: 1", b"x-b: 2"))
    for name in ("x-b", "X-B", b"X-b"):
        assert request.header(name) == b"1"
    assert request.header("x") is None
    assert request.header(b"x", b"other") == b"other"


def test_headers_behind_an_empty_line_and_of_a_large_head(ask):
    lines = [b"X-%d: %d" % (i, i) for i in range(99)]
    request = ask(b"\r\n" + get(b"/", *lines))
    assert request.headers[1:] == [(b"x-%d" % i, b"%d" % i) for i in range(99)]
    assert request.target == "/"


def test_a_body_and_a_version(ask):
    request = ask(get(b"/", b"Content-Length: 3", method=b"POST") + b"a\0b")
    assert (request.body, request.minor_version) == (b"a\0b", 1)
    request = ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert (request.body, request.minor_version, request.headers) == (b"", 0, [(b"connection", b"keep-alive")])


def test_a_request_outlives_its_connection_and_the_requests_behind_it(loop):
    """What an application keeps does not change under it when the buffer it came in is used again."""
    kept = []
    with Bench(loop) as bench:
        client = bench.connect(bench.serve(lambda request: kept.append(request) or Response(b"")))
        for i in range(20):
            client.send(get(b"/%d?%d" % (i, i), b"X: %d" % i, b"Content-Length: 2", method=b"POST") + b"%2d" % i)
        client.receive_responses(20)
    for i, request in enumerate(kept):
        assert (request.path, request.query, request.method, request.body) == (f"/{i}", str(i), "POST", b"%2d" % i)
        assert request.header("x") == b"%d" % i
        assert repr(request) == f"<Request POST /{i}?{i}>"


def test_a_request_can_not_be_changed(ask):
    request = ask(get(b"/"))
    for name in ("method", "target", "path", "query", "headers", "body", "connection", "minor_version"):
        with pytest.raises(AttributeError):
            setattr(request, name, b"")


def test_a_request_is_made_by_the_server_only():
    with pytest.raises(UsageError, match="a Request is made by the server"):
        Request()


# -- Response ----------------------------------------------------------------------------------------------------------


def test_a_response_has_defaults():
    response = Response()
    assert (response.body, response.status, response.headers) == (b"", 200, ())
    assert repr(response) == "<Response 200 0 bytes>"


def test_a_response_keeps_what_it_was_given():
    response = Response(b"abc", status=http.HTTPStatus.NOT_FOUND, headers=[(b"A", b"b"), (b"a", b"c")])
    assert (response.body, response.status, response.headers) == (b"abc", 404, ((b"A", b"b"), (b"a", b"c")))
    assert Response(headers=iter([(b"a", b"b")])).headers == ((b"a", b"b"),)


def test_a_response_can_not_be_changed():
    response = Response()
    for name in ("body", "status", "headers"):
        with pytest.raises(AttributeError):
            setattr(response, name, b"")


def test_a_response_may_be_sent_again_and_again(loop):
    response = Response(b"x", headers=((b"a", b"b"),))
    with Bench(loop) as bench:
        client = bench.connect(bench.serve(lambda request: response))
        client.send(get(b"/") * 3)
        assert [(answer.body, answer.header("a")) for answer in client.receive_responses(3)] == [(b"x", "b")] * 3


@pytest.mark.parametrize("status", [199, 100, 101, 0, -200, 600, 1000, 200.0, "200", None, True])
def test_a_wrong_status_is_refused(status):
    with pytest.raises(UsageError, match=re.escape(f"status is a whole number from 200 to 599, not {status!r}")):
        Response(b"", status)


def test_a_wrong_body_is_refused():
    for body in ("text", None, bytearray(b"x"), memoryview(b"x"), 5, [b"x"]):
        with pytest.raises(UsageError, match=f"a body is bytes, not {type(body).__name__}; encode text, read files"):
            Response(body)


def refused_header(name, value):
    with pytest.raises(UsageError) as caught:
        Response(headers=[(name, value)])
    return str(caught.value)


def test_a_control_byte_anywhere_in_a_value_is_refused():
    """All of them: CR and LF split a response, NUL cuts one short. A tab is refused at the ends only."""
    for byte in (*range(0x20), 0x7F):
        piece = bytes([byte])
        for value in (piece, piece + b"ab", b"a" + piece + b"b", b"ab" + piece):
            if value != b"a\tb":
                assert refused_header(b"x", value) == (
                    "the value of b'x' is bytes without control characters or whitespace at its ends (RFC 9110 5.5), "
                    f"not {value!r}")


def test_a_tab_and_obs_text_may_stand_in_a_value():
    Response(headers=[(b"x", b"a\tb"), (b"x", b"\x80\xff"), (b"x", b"")])


def test_a_wrong_value_is_refused():
    for value in (b" a", b"a ", b"\ta", b" ", "text", None, 5, bytearray(b"a")):
        assert "the value of b'x' is bytes" in refused_header(b"x", value)


def test_a_byte_that_no_token_has_is_refused_anywhere_in_a_name():
    for byte in set(range(256)) - set(TOKEN_BYTES):
        piece = bytes([byte])
        for name in (piece, b"a" + piece, piece + b"a", b"a" + piece + b"a"):
            assert refused_header(name, b"a") == (
                f"a header's name is bytes made of token characters (RFC 9110 5.6.2), not {name!r}")


def test_a_wrong_name_is_refused():
    for name in (b"", "text", None, 5, bytearray(b"a")):
        assert "a header's name is bytes made of token characters" in refused_header(name, b"a")


def test_what_the_server_sets_is_refused_in_any_case():
    for name in (b"Content-Length", b"content-length", b"TRANSFER-ENCODING", b"Date"):
        assert refused_header(name, b"5") == f"{name!r} is set by the server"


def test_no_connection_but_close_can_be_asked_for():
    for value in (b"keep-alive", b"", b"close, x", b"Upgrade"):
        assert refused_header(b"connection", value) == (
            f"the only Connection an application may ask for is b'close', not {value!r}")
    Response(headers=[(b"Connection", b"Close")])


def test_one_wrong_header_among_others_is_enough():
    with pytest.raises(UsageError):
        Response(headers=[(b"a", b"b"), (b"c", b"d\r\ne: f"), (b"g", b"h")])


def test_what_are_no_pairs_is_refused():
    for headers in (5, [b"ab"], [(b"a",)], [(b"a", b"b", b"c")], [5], [None], "ab", b"ab", {b"ab": b"c"},
                    ((b"a", b"b"), "x"), True):
        with pytest.raises(UsageError, match=r"a header is a pair|headers are pairs|a header's name"):
            Response(headers=headers)


def test_an_error_while_headers_are_given_is_the_callers():
    def headers():
        yield b"a", b"b"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Response(headers=headers())


NAMES = st.binary(max_size=12) | st.lists(st.sampled_from(TOKEN_BYTES), min_size=1, max_size=12).map(bytes)
VALUES = st.binary(max_size=20) | st.lists(st.sampled_from(VALUE_BYTES), max_size=20).map(bytes)


def may_be_set(name, value):
    """By RFC 9110's own words, 5.6.2 and 5.5; apart from what the server sets."""
    return (re.fullmatch(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", name) is not None
            and re.fullmatch(rb"(?:[!-~\x80-\xff](?:[!-~\x80-\xff \t]*[!-~\x80-\xff])?)?", value) is not None
            and name.lower() not in SET_BY_THE_SERVER and name.lower() != b"connection")


class Server:
    """One for all examples: a server whose next answer is `response`, and the client that reads it."""

    def __init__(self, bench):
        self.response = None
        self.client = bench.connect(bench.serve(lambda request: self.response))

    def sends(self, response):
        self.response = response
        self.client.send(get(b"/"))
        answer = self.client.receive_response()
        assert self.client.received == b""
        return answer


@given(st.lists(st.tuples(NAMES, VALUES), min_size=1, max_size=3), st.binary(max_size=30))
def test_any_header_is_either_refused_or_arrives_exactly_once_and_exactly_as_given(headers, body):
    """Read by http.client's parser from what the server sent: no name and no value makes another header, ends the head,
    or changes the body."""
    try:
        response = Response(body, 200, headers)
    except UsageError:
        assert not all(may_be_set(name, value) for name, value in headers)
        return
    assert all(may_be_set(name, value) for name, value in headers if name.lower() != b"connection")
    with epollkit.Loop() as loop, Bench(loop) as bench:
        answer = Server(bench).sends(response)
    asked_to_close = any(name.lower() == b"connection" for name, _ in headers)
    assert answer.body == body
    assert answer.status == 200
    found = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    ours = [header for header in found if header[0] in (b"Date", b"Content-Length", b"Connection")]
    assert len(ours) == 2 + asked_to_close
    assert [header for header in found if header not in ours] == [
        header for header in headers if header[0].lower() != b"connection"]


@pytest.mark.parametrize("value", [VALUE_BYTES.strip(), bytes(range(0x80, 0x100)), b"a\x85b", b"", b"x" * 8000],
                         ids=["all", "obs-text", "NEL", "none", "long"])
def test_values_of_every_byte_arrive_exactly(loop, value):
    with Bench(loop) as bench:
        answer = Server(bench).sends(Response(b"body", 200, ((b"x-value", value), (TOKEN_BYTES, b"t"))))
        assert answer.header("x-value").encode("latin-1") == value
        assert answer.header(TOKEN_BYTES.decode()) == "t"
        assert answer.body == b"body"

"""Requests, answers and connections as objects: what is shared between two requests, and what nobody may notice of it.

A request's head stays where it was received until somebody keeps the request; one `Request` serves one request after
the other; and none of the three is a container for the garbage collector.
"""
from __future__ import annotations

import email.utils
import gc
import os
import traceback
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire import Bench

import epollkit
from epollkit import UsageError
from epollkit._httpconn import http_date
from epollkit.http import Request, Response, Settings, listen


@pytest.fixture
def bench(loop):
    with Bench(loop) as made:
        yield made


def get(path, *lines):
    return b"GET %s HTTP/1.1\r\nHost: a\r\n%s\r\n" % (path, b"".join(line + b"\r\n" for line in lines))


def post(path, body):
    return b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (path, len(body), body)


def seen(request):
    return request.method, request.target, request.path, request.query, list(request.headers), request.body


class TestARequestThatIsKept:
    @pytest.mark.parametrize("together", [True, False], ids=["one read", "a read each"])
    def test_stays_what_it_was(self, bench, together):
        """Each has a head of its own although all of them were received in one place."""
        kept = []

        def keep(request):
            kept.append(request)
            return Response(b"x")

        client = bench.connect(bench.serve(keep))
        wanted = [get(b"/%d?q=%d" % (i, i), b"X-Number: %d" % i) for i in range(20)] + [post(b"/body", b"y" * 100)]
        if together:
            client.send(b"".join(wanted))
        for piece in [] if together else wanted:
            client.send(piece)
            client.receive_response()
        bench.turn_until(lambda: len(kept) == len(wanted))
        for i in range(20):
            assert seen(kept[i]) == ("GET", f"/{i}?q={i}", f"/{i}", f"q={i}",
                                     [(b"host", b"a"), (b"x-number", b"%d" % i)], b"")
        assert seen(kept[20]) == ("POST", "/body", "/body", "", [(b"host", b"a"), (b"content-length", b"100")],
                                  b"y" * 100)
        assert len({id(request) for request in kept}) == len(kept)

    def test_by_a_traceback(self, bench, caplog):
        caught = []

        def fail(request):
            if request.path == "/fail":
                try:
                    raise ValueError(request.path)
                except ValueError as error:
                    caught.append(error)
                    raise
            return Response(b"x")

        client = bench.connect(bench.serve(fail))
        client.send(get(b"/fail", b"X-Which: first") + get(b"/other") * 3)
        assert [answer.status for answer in client.receive_responses(4)] == [500, 200, 200, 200]
        frames = [frame for frame, _ in traceback.walk_tb(caught[0].__traceback__)]
        request = frames[-1].f_locals["request"]
        assert (request.path, request.header("x-which")) == ("/fail", b"first")
        assert "/fail" in caplog.text
        caught.clear()

    def test_for_a_while_only(self, bench):
        """Kept over the next request, then let go: the one after it has nothing of either."""
        shelf = []

        def hold(request):
            found = seen(request)
            shelf[:] = [request] if request.path == "/keep" else []
            return Response(repr(found).encode())

        client = bench.connect(bench.serve(hold))
        for path, body in [(b"/keep", b"1" * 9), (b"/a", b""), (b"/keep", b""), (b"/b", b"2" * 5), (b"/c", b"")] * 3:
            client.send(post(path, body))
            headers = [(b"host", b"a"), (b"content-length", b"%d" % len(body))]
            assert client.receive_response().body == repr(
                ("POST", path.decode(), path.decode(), "", headers, body)).encode()


class TestOneRequestObjectServesMany:
    def test_nothing_is_left_of_the_last_one(self, bench):
        """Whoever looks at every field of each finds only its own, on one connection and on another."""
        found = []

        def look(request):
            found.append(seen(request))
            request.headers.append((b"planted", b"by the application"))
            return Response(b"x")

        listener = bench.serve(look)
        one, two = bench.connect(listener), bench.connect(listener)
        one.send(post(b"/secret?token=1", b"password"))
        one.receive_response()
        for client in (one, two):
            client.send(get(b"/plain"))
            client.receive_response()
        assert found[1] == found[2] == ("GET", "/plain", "/plain", "", [(b"host", b"a")], b"")

    def test_it_does_not_keep_a_connection_or_a_body(self, loop):
        settings = Settings(lambda request: Response(b"x"))
        with Bench(loop) as bench:
            client = bench.connect(bench.listen(settings))
            client.send(post(b"/secret", b"z" * 1000))
            client.receive_response()
            (spare,) = [held for held in gc.get_referents(settings) if isinstance(held, Request)]
            assert (spare.body, spare.connection) == (None, None)
            with pytest.raises(UsageError):
                _ = spare.target

    def test_one_that_was_kept_by_its_answer_only(self, bench):
        """It had a head of its own when it was put away; the next one that is kept needs another."""
        class Answer(Response):
            request = None

        kept = []

        def app(request):
            answer = Answer(b"x")
            if request.path == "/passing":
                answer.request = request
            else:
                kept.append(request)
            return answer

        client = bench.connect(bench.serve(app))
        for path in (b"/passing", b"/kept", b"/passing", b"/later"):
            client.send(get(path))
            client.receive_response()
        assert [request.target for request in kept] == ["/kept", "/later"]


class TestAnApplicationThatForks:
    def test_its_child_does_not_go_on(self, stage):
        """In the middle of a pipeline: the child's loop is gone, and not one more request is answered there."""
        with epollkit.Loop() as loop:
            answered = []

            def fork(request):
                answered.append(request.path)
                if request.path == "/fork":
                    pid = os.fork()
                    if pid == 0:
                        answered.append("child")
                    else:
                        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
                return Response(request.path.encode())

            parent = os.getpid()
            client = stage.connect(listen(loop, ("127.0.0.1", 0), fork))
            client.sendall(get(b"/1") + get(b"/fork") + get(b"/3"))
            try:
                while len(answered) < 3:
                    loop.turn(5)
            except BaseException as error:
                if os.getpid() == parent:
                    raise
                os._exit(7 if isinstance(error, UsageError) and answered == ["/1", "/fork", "child"] else 1)
            if os.getpid() != parent:
                os._exit(2)
            client.settimeout(20)
            answer = b""
            while answer.count(b"\r\n\r\n/") < 3:
                answer += client.recv(65536)


class TestTheCollector:
    def test_finds_its_way_through_a_connection(self, stage):
        """loop -> slot -> connection -> settings -> application -> loop. The connection is no container; the loop shows
        the way."""
        class Application:
            def __call__(self, request):
                self.last = request
                return Response(b"x")

        loop, app = epollkit.Loop(), Application()
        app.loop = loop
        listener = listen(loop, ("127.0.0.1", 0), app)
        client = stage.connect(listener)
        client.sendall(get(b"/"))
        while not hasattr(app, "last"):
            loop.turn(5)
        listener.close()        # so that the connection is the only way
        loop.turn(0)
        found = weakref.ref(app)
        del app, loop, listener
        with pytest.warns(ResourceWarning, match="unclosed loop"):
            gc.collect()
        assert found() is None

    def test_does_not_look_into_what_a_request_is_made_of(self, bench):
        tracked = []

        def look(request):
            tracked.extend(map(gc.is_tracked, (request, request.connection, Response(b"x"))))
            return Response(b"x", 200, [(b"a", b"b")])

        client = bench.connect(bench.serve(look))
        client.send(get(b"/"))
        client.receive_response()
        assert tracked == [False, False, False]


    def test_a_cycle_through_the_list_of_headers(self, bench):
        """The list is the caller's; were it the request's, nobody would ever find the way round."""
        class Context:
            def __init__(self, request):
                self.request = request

        found = []

        def app(request):
            context = Context(request)
            request.headers.append((b"context", context))
            found.append(weakref.ref(context))
            return Response(repr(request.headers).encode())

        client = bench.connect(bench.serve(app))
        client.send(get(b"/"))
        assert client.receive_response().body == b"[(b'host', b'a')]"
        assert found[0]() is None


class TestTheShortWayToAnAnswer:
    @pytest.mark.parametrize("arguments, options", [
        ((), {}), ((b"x",), {}), ((b"x", 404), {}), ((b"x", 200, ()), {}), ((), {"body": b"x"}),
        ((b"x",), {"status": 201}), ((b"x", 200, [(b"a", b"b")]), {})])
    def test_is_the_same_as_the_long_one(self, arguments, options):
        class Same(Response):
            """A subclass takes the long one."""

        short, long = Response(*arguments, **options), Same(*arguments, **options)
        assert (short.body, short.status, short.headers) == (long.body, long.status, long.headers)

    @pytest.mark.parametrize("arguments", [("text",), (None,), (bytearray(b"x"),), (b"x", 99), (b"x", True),
                                           (b"x", 200, 5), (b"x", 200, [(b"a",)]), (b"x", 200, (), 1)])
    def test_refuses_the_same(self, arguments):
        class Same(Response):
            pass

        with pytest.raises((UsageError, TypeError)) as short:
            Response(*arguments)
        with pytest.raises((UsageError, TypeError)) as long:
            Same(*arguments)
        assert (type(short.value), str(short.value)) == (type(long.value), str(long.value))

    def test_made_twice(self):
        """Of the first time nothing is left."""
        response = Response(b"1", 404, [(b"connection", b"close"), (b"a", b"b")])
        response.__init__(b"2")
        assert (response.body, response.status, response.headers) == (b"2", 200, ())

    def test_headers_are_kept_as_pairs(self):
        """What the application changes later is not what was checked."""
        pair = [b"a", b"b"]
        response = Response(b"", 200, [pair])
        pair[1] = b"b\r\nc: d"
        assert response.headers == ((b"a", b"b"),)


class TestDates:
    @given(st.integers(0, 253402300799))
    def test_against_the_standard_library(self, seconds):
        assert http_date(seconds) == email.utils.formatdate(seconds, usegmt=True)

    @pytest.mark.parametrize("seconds, text", [
        (784111777, "Sun, 06 Nov 1994 08:49:37 GMT"),       # RFC 9110 5.6.7
        (-62135596800, "Mon, 01 Jan 0001 00:00:00 GMT"), (253402300799, "Fri, 31 Dec 9999 23:59:59 GMT")])
    def test_known_ones(self, seconds, text):
        assert http_date(seconds) == text

    @pytest.mark.parametrize("seconds", [-62135596801, 253402300800])
    def test_beyond_four_digits_of_a_year(self, seconds):
        with pytest.raises(UsageError, match="years 1 and 9999"):
            http_date(seconds)

"""A scenario as data: each field checked when it is made, to JSON and back, and the bytes that are made of it."""
from __future__ import annotations

import dataclasses
import json
import socket
import ssl

import pytest

from epollkit import ConnectError, UsageError, __version__
from epollkit.siege import Scenario, Target
from epollkit.siege.prepare import Prepared, find_address, prepare, resolve, wire
from epollkit.siege.run import shares


def make(targets="http://a/", **options):
    return Scenario(targets, **{"seconds": 1.0, **options})


# -- fields ------------------------------------------------------------------------------------------------------------


def test_a_url_is_enough_with_an_end():
    scenario = Scenario("http://a/", number=10)
    assert scenario.targets == (Target("http://a/"),)
    assert (scenario.users, scenario.number, scenario.seconds, scenario.rate) == (25, 10, None, None)
    assert scenario.agent == f"epollkit-siege/{__version__}"
    with pytest.raises(dataclasses.FrozenInstanceError):
        scenario.users = 5


def test_values_are_kept_in_one_form():
    scenario = make(["a", Target("b", "HEAD")], seconds=2, delay=1, headers=["A: b", (b"C", b"d")],
                    sources="127.0.0.2-127.0.0.4", expect_status="2xx,304", expect_body="\u00fc", assertions="p99<5ms")
    assert scenario.targets == (Target("a"), Target("b", "HEAD"))
    assert (scenario.seconds, scenario.delay) == (2.0, 1.0)
    assert scenario.headers == (("A", "b"), ("C", "d"))
    assert scenario.sources == ("127.0.0.2", "127.0.0.3", "127.0.0.4")
    assert scenario.expect_status == (*range(200, 300), 304)
    assert scenario.expect_body == b"\xc3\xbc"
    assert scenario.assertions == ("p99<5ms",)
    assert make(uds="@name").uds == "\0name"
    assert make(uds=b"/run/socket").uds == "/run/socket"


@pytest.mark.parametrize(("given", "kept"), [
    ("127.0.0.2", ("127.0.0.2",)),
    (["127.0.0.2", "127.0.0.9-127.0.0.10"], ("127.0.0.2", "127.0.0.9", "127.0.0.10")),
    ("127.0.0.255-127.0.1.0", ("127.0.0.255", "127.0.1.0")),
    ("::1-::2", ("::1", "::2")),
    ((), ()),
])
def test_sources_are_addresses_and_ranges(given, kept):
    assert make(sources=given).sources == kept


@pytest.mark.parametrize(("given", "kept"), [
    (200, (200,)), ("200", (200,)), ([404, "200"], (200, 404)), ("200-202", (200, 201, 202)),
    ("5XX", tuple(range(500, 600))),
])
def test_statuses_are_numbers_and_ranges(given, kept):
    assert make(expect_status=given).expect_status == kept


@pytest.mark.parametrize(("options", "why"), [
    ({"targets": ()}, "targets are 1 to 100000 URLs, not 0"),
    ({"targets": b"http://a/"}, "targets are URLs, not b'http://a/'"),
    ({"targets": 5}, "targets are URLs, not 5"),
    ({"targets": "ftp://a/"}, "'ftp://a/' is not a URL to ask for: ftp is not spoken here, http and https are"),
    ({"users": 0}, "users is a whole number from 1 to 1000000, not 0"),
    ({"users": True}, "users is a whole number from 1 to 1000000, not True"),
    ({"users": 2.5}, "users is a whole number from 1 to 1000000, not 2.5"),
    ({"seconds": None}, "seconds, number or repetitions has to say when it ends"),
    ({"seconds": 0}, "seconds is a number of seconds from 0.01 to 1e+06, not 0"),
    ({"seconds": 1e7}, "seconds is a number of seconds from 0.01 to 1e+06, not 10000000.0"),
    ({"seconds": float("nan")}, "seconds is a number of seconds from 0.01 to 1e+06, not nan"),
    ({"number": 0}, "number is a whole number from 1 to 1000000000000, not 0"),
    ({"repetitions": -1}, "repetitions is a whole number from 1 to 1000000000000, not -1"),
    ({"number": 1, "repetitions": 1}, "number is of all users together, and repetitions of each: give one of them"),
    ({"delay": -1}, "delay is a number of seconds from 0 to 1e+06, not -1"),
    ({"rate": 0}, "rate is a number of requests a second from 0.001 to 1e+07, not 0"),
    ({"rate": 5, "repetitions": 1},
     "rate says when requests are sent, whoever sends them, so repetitions has no meaning"),
    ({"rate": 5, "delay": 1}, "rate says when requests are sent, whoever sends them, so delay has no meaning"),
    ({"pipeline": 0}, "pipeline is a whole number from 1 to 1024, not 0"),
    ({"pipeline": 2, "keep_alive": False},
     "pipeline needs connections that are kept, and keep_alive says that they are not"),
    ({"pipeline": 2, "close": "half"},
     "pipeline says that a user does not wait for an answer, and close half says that he does"),
    ({"pipeline": 2, "delay": 1},
     "pipeline says that a user does not wait for an answer, and delay says that he does"),
    ({"keep_alive": 1}, "keep_alive is True or False, not 1"),
    ({"sources": "localhost"}, "sources are numeric addresses like 127.0.0.2, or ranges like 127.0.0.2-127.0.0.16, "
                               "not 'localhost'"),
    ({"sources": "127.0.0.3-127.0.0.2"},
     "sources: '127.0.0.3-127.0.0.2' does not run from a lower address to a higher one"),
    ({"sources": "127.0.0.3-::1"}, "sources: '127.0.0.3-::1' does not run from a lower address to a higher one"),
    ({"sources": "127.0.0.0-127.1.0.0"}, "sources are 65536 addresses at most, and '127.0.0.0-127.1.0.0' is too many"),
    ({"sources": ["127.0.0.2", "::1"]}, "sources are all IPv4 or all IPv6, not some of each"),
    ({"sources": 5}, "sources are numeric addresses like 127.0.0.2, or ranges like 127.0.0.2-127.0.0.16, not 5"),
    ({"sources": "127.0.0.2", "uds": "/a"},
     "sources are IP addresses, and a unix socket (uds) is not reached from one"),
    ({"close": "gently"}, "close is fin, rst, half, abandon, rst-mid-request or rst-mid-response, not 'gently'"),
    ({"warmup": "2"}, "warmup is a number of seconds from 0 to 1e+06, not '2'"),
    ({"headers": "A: b"}, "headers: headers are a list, of 'Name: value' each, not 'A: b'"),
    ({"headers": ["A"]}, "headers: a header is written 'Name: value', not 'A'"),
    ({"headers": ["Authorization: x"], "targets": "a:b@c"},
     "headers have an Authorization, and so has a URL, as user:password@"),
    ({"agent": "a\nb"}, "agent: the value of 'User-Agent' has no control characters, and no whitespace at its ends "
                        "(RFC 9110 5.5), not 'a\\nb'"),
    ({"uds": ""}, "uds: an empty unix socket path; give a path, or '\\0name' for an abstract one"),
    ({"connect_timeout": 0}, "connect_timeout is a number of seconds from 0.001 to 1e+06, not 0"),
    ({"timeout": None}, "timeout is a number of seconds from 0.001 to 1e+06, not None"),
    ({"grace": -1}, "grace is a number of seconds from 0 to 1e+06, not -1"),
    ({"expect_status": "2x"}, "expect_status are statuses like 200, 2xx or 200-299, separated by commas, not '2x'"),
    ({"expect_status": "299-200"},
     "expect_status are statuses like 200, 2xx or 200-299, separated by commas, not '299-200'"),
    ({"expect_status": []}, "expect_status has no status in it"),
    ({"expect_body": ""}, "expect_body is text or bytes, 1 to 1048576 of them, not ''"),
    ({"processes": 0}, "processes is a whole number from 1 to 256, not 0"),
    ({"processes": 26}, "users is shared by 26 processes, so it is at least that, not 25"),
    ({"processes": 3, "number": 2}, "number is shared by 3 processes, so it is at least that, not 2"),
    ({"seed": 2**32}, "seed is a whole number from 0 to 4294967295, not 4294967296"),
    ({"insecure": None}, "insecure is True or False, not None"),
    ({"cafile": ""}, "cafile is text, not ''"),
    ({"pid": 0}, "pid is a whole number from 1 to 2147483647, not 0"),
    ({"assertions": ["p99<5"]}, "'p99<5': p99 is a time and needs a unit, us, ms or s: p99<5ms"),
    ({"assertions": 5}, "assertions are texts like p99<5ms, not 5"),
], ids=str)
def test_what_makes_no_sense_is_explained_in_one_sentence(options, why):
    with pytest.raises(UsageError) as caught:
        make(**options)
    assert str(caught.value) == why


def test_every_field_is_checked_and_described():
    from epollkit.siege.scenario import CHECKS

    names = [field.name for field in dataclasses.fields(Scenario)]
    assert list(CHECKS) == names
    described = Scenario.__doc__.partition("Attributes:")[2]
    assert [name for name in names if f" {name}:" not in described and f" {name}," not in described] == []


# -- JSON --------------------------------------------------------------------------------------------------------------

FULL = {
    "targets": [Target("http://me:secret@a/", "POST", b"\xff\x00", (("A", "b"),)), "b", Target("c", "PUT", b"text")],
    "users": 8, "number": 100, "seconds": 2.0, "pipeline": 4, "random_order": True,
    "sources": ("127.0.0.2",), "close": "rst", "warmup": 1.0, "headers": [("Cookie", "secret"), ("X", "\udcff")],
    "agent": "me", "connect_timeout": 1.0, "timeout": 2.0, "grace": 3.0, "expect_status": (200, 404),
    "expect_body": b"\xfe", "processes": 2, "seed": 7, "insecure": True, "cafile": "ca.pem", "pid": 5,
    "assertions": ("p99<5ms",),
}


@pytest.mark.parametrize("options", [FULL, {"targets": "a", "seconds": 1.0},
                                     {"targets": "a", "uds": "/s", "repetitions": 1},
                                     {"targets": "a", "seconds": 1.0, "rate": 5.0, "keep_alive": False}])
def test_it_goes_to_json_and_back(options):
    scenario = Scenario(**options)
    assert Scenario.from_json(json.loads(json.dumps(scenario.to_json(secrets=True)))) == scenario


def test_json_does_not_tell_secrets_unless_asked():
    text = json.dumps(Scenario(**FULL).to_json())
    assert "secret" not in text
    assert "http://me:***@a/" in text
    assert '["Cookie", "***"]' in text
    Scenario.from_json(json.loads(text))        # and it is still a scenario


def test_json_shows_text_as_text():
    made = Scenario(**FULL).to_json()
    assert [target["body"] for target in made["targets"]] == [{"base64": "/wA="}, "", "text"]


@pytest.mark.parametrize("data", [{}, {"targets": [{}]}, {"targets": [], "seconds": 1},
                                  {**make().to_json(), "colour": "red"}])
def test_what_is_no_scenarios_json_is_explained(data):
    with pytest.raises(UsageError):
        Scenario.from_json(data)


# -- shares ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_processes_share_users_number_and_rate_exactly(processes):
    scenario = make(users=25, number=1001, processes=processes)
    parts = list(shares(scenario))
    assert len(parts) == processes
    assert sum(part.users for _, part in parts) == 25
    assert sum(part.number for _, part in parts) == 1001
    assert [first for first, _ in parts] == [sum(part.users for _, part in parts[:index]) for index in range(processes)]
    assert {part.processes for _, part in parts} == {1}
    rates = [part.rate for _, part in shares(make(users=25, rate=100.0, processes=processes))]
    assert sum(rates) == pytest.approx(100.0)


# -- requests ----------------------------------------------------------------------------------------------------------


def test_a_get_is_three_lines():
    assert wire(Target("http://a:8000/x?y=1#z"), make(agent="me")) == (
        b"GET /x?y=1 HTTP/1.1\r\nHost: a:8000\r\nUser-Agent: me\r\n\r\n")


def test_a_body_has_its_length_and_is_a_form_unless_something_else_is_said():
    assert wire(Target("a", "POST", b"x=1"), make(agent="me")) == (
        b"POST / HTTP/1.1\r\nHost: a\r\nUser-Agent: me\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        b"Content-Length: 3\r\n\r\nx=1")
    typed = wire(Target("a", "POST", b"{}", (("content-type", "application/json"),)), make())
    assert b"\r\ncontent-type: application/json\r\n" in typed
    assert typed.lower().count(b"content-type") == 1


@pytest.mark.parametrize(("method", "length"), [
    ("POST", True), ("PUT", True), ("PATCH", True), ("GET", False), ("HEAD", False), ("DELETE", False),
    ("OPTIONS", False)])
def test_a_method_that_means_a_body_says_so_when_it_is_empty(method, length):
    assert (b"Content-Length: 0\r\n" in wire(Target("a", method), make())) == length


def test_headers_of_the_user_replace_ours_and_a_targets_those():
    scenario = make(headers=["Host: b", "user-agent: you", "A: 1", "A: 2", "Authorization: x"])
    assert wire(Target("http://a/", "GET", b"", (("a", "3"),)), scenario) == (
        b"GET / HTTP/1.1\r\nHost: b\r\nuser-agent: you\r\nAuthorization: x\r\na: 3\r\n\r\n")


def test_a_connection_that_is_not_kept_says_so():
    assert b"\r\nConnection: close\r\n" in wire(Target("a"), make(keep_alive=False))
    assert b"Connection" not in wire(Target("a"), make())
    assert b"Connection" not in wire(Target("a"), make(keep_alive=False, close="rst")), "it is ours to end"


def test_bytes_that_are_no_text_are_sent_as_they_are():
    assert b"\r\nX: \xff\r\n" in wire(Target("a"), make(headers=[b"X: \xff"]))


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def test_each_host_is_looked_up_and_tried_once(listener):
    port = listener.getsockname()[1]
    made = prepare(make([f"http://localhost:{port}/a", Target(f"http://LOCALHOST:{port}/b", "HEAD")], agent="me"))
    assert made == [
        Prepared(f"GET /a HTTP/1.1\r\nHost: localhost:{port}\r\nUser-Agent: me\r\n\r\n".encode(),
                 ("127.0.0.1", port), None, None, False),
        Prepared(f"HEAD /b HTTP/1.1\r\nHost: localhost:{port}\r\nUser-Agent: me\r\n\r\n".encode(),
                 ("127.0.0.1", port), None, None, True)]
    listener.settimeout(10)
    listener.accept()[0].close()
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_the_first_address_that_accepts_is_taken(listener, monkeypatch):
    port = listener.getsockname()[1]
    hosts = ("127.0.0.9", "127.0.0.1", "127.0.0.2")
    there = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: there)
    assert find_address(("name.example", port), ()) == ("127.0.0.1", port)
    assert listener.accept()[0].close() is None


def test_a_host_that_does_not_accept_is_explained(listener):
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(ConnectError) as caught:
        prepare(make(f"http://127.0.0.1:{port}/"))
    assert str(caught.value) == f"cannot connect to 127.0.0.1:{port}: Connection refused"


def test_a_host_that_can_not_be_found_is_explained(monkeypatch):
    def fail(*arguments, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(ConnectError, match=r"^cannot connect to no.example:80: Name or service not known$"):
        resolve(make("http://no.example/"))


def test_a_source_is_used_and_one_of_another_family_can_not_reach(listener):
    port = listener.getsockname()[1]
    resolve(make(f"http://127.0.0.1:{port}/", sources="127.0.0.7-127.0.0.8"))
    accepted, peer = listener.accept()
    accepted.close()
    assert peer[0] == "127.0.0.7"
    with pytest.raises(ConnectError, match=r"no address of it can be reached from the given sources$"):
        resolve(make(f"http://127.0.0.1:{port}/", sources="::1"))


def test_a_unix_socket_stands_for_every_host(tmp_path):
    path = str(tmp_path / "socket")
    with pytest.raises(ConnectError, match=rf"^cannot connect to unix:{path}: No such file or directory$"):
        prepare(make(["http://a/", "http://b/"], uds=path))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        assert [made.address for made in prepare(make(["http://a/", "http://b/"], uds=path))] == [path, path]


def test_tls_has_one_context_and_knows_the_host(listener, certificates):
    port = listener.getsockname()[1]
    names = [f"https://127.0.0.1:{port}/", f"https://localhost:{port}/", f"http://127.0.0.1:{port}/"]
    first, second, third = prepare(make(names, cafile=str(certificates.authority)))
    assert first.ssl is second.ssl
    assert (first.ssl.verify_mode, first.ssl.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (first.server_hostname, second.server_hostname) == ("127.0.0.1", "localhost")
    assert (third.ssl, third.server_hostname) == (None, None)
    insecure = prepare(make(names[0], insecure=True))[0].ssl
    assert (insecure.verify_mode, insecure.check_hostname) == (ssl.CERT_NONE, False)


@pytest.mark.parametrize(("name", "why"), [("no/such/file", "No such file or directory"), ("/dev/null", ".*")])
def test_a_file_of_authorities_that_is_none_is_explained(listener, name, why):
    with pytest.raises(UsageError, match=rf"^cafile: '{name}' can't be used: {why}$"):
        prepare(make(f"https://127.0.0.1:{listener.getsockname()[1]}/", cafile=name))

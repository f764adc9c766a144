"""What `epollkit siege` is asked for: URLs as people write them, headers, and siege's files of URLs."""
from __future__ import annotations

import base64
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epollkit import UsageError
from epollkit.siege import Target, urls
from epollkit.siege.fields import checked_header, checked_headers, joined

# -- URLs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "scheme", "host", "port", "target", "host_field"), [
    ("http://a/", "http", "a", 80, b"/", b"a"),
    ("HTTP://A", "http", "a", 80, b"/", b"a"),
    ("  http://a/  ", "http", "a", 80, b"/", b"a"),
    ("a", "http", "a", 80, b"/", b"a"),
    ("localhost:8000/x", "http", "localhost", 8000, b"/x", b"localhost:8000"),
    ("https://a/", "https", "a", 443, b"/", b"a"),
    ("https://a:443/", "https", "a", 443, b"/", b"a"),
    ("https://a:80/", "https", "a", 80, b"/", b"a:80"),
    ("http://a:/", "http", "a", 80, b"/", b"a"),
    ("http://a?x=1", "http", "a", 80, b"/?x=1", b"a"),
    ("http://a#top", "http", "a", 80, b"/", b"a"),
    ("http://a/b?c=d#e?f", "http", "a", 80, b"/b?c=d", b"a"),
    ("http://a/b//c/../d;e=f", "http", "a", 80, b"/b//c/../d;e=f", b"a"),
    ("http://127.0.0.1:8000", "http", "127.0.0.1", 8000, b"/", b"127.0.0.1:8000"),
    ("http://[::1]:8000/", "http", "::1", 8000, b"/", b"[::1]:8000"),
    ("http://[fe80::1%25eth0]/", "http", "fe80::1%eth0", 80, b"/", b"[fe80::1]"),
    ("http://b\u00fccher.example/", "http", "xn--bcher-kva.example", 80, b"/", b"xn--bcher-kva.example"),
    ("http://my_host.example./", "http", "my_host.example.", 80, b"/", b"my_host.example."),
    ("http://a/?u=http://b@c/", "http", "a", 80, b"/?u=http://b@c/", b"a"),
], ids=lambda value: value if isinstance(value, str) else None)
def test_a_url_is_taken_apart(text, scheme, host, port, target, host_field):
    assert urls.parse(text) == (scheme, host, port, target, host_field, "")


@pytest.mark.parametrize(("path", "sent"), [
    ("/a b", b"/a%20b"),
    ("/\u00fc", b"/%C3%BC"),
    ("/a\r\nX: y", b"/a%0D%0AX:%20y"),
    ("/\x00\x7f", b"/%00%7F"),
    ("/%41%zz%", b"/%41%25zz%25"),
    ("/?q=<\"{|}\\^`[]>", b"/?q=%3C%22%7B%7C%7D%5C%5E%60%5B%5D%3E"),
    ("/\udcff", b"/%FF"),       # a byte of the command line that is no UTF-8
    ("/!$&'()*+,;=:@-._~", b"/!$&'()*+,;=:@-._~"),
])
def test_what_can_not_stand_in_a_request_target_is_percent_encoded(path, sent):
    assert urls.parse("http://a" + path).target == sent


@given(st.text(max_size=30))
def test_no_text_makes_a_request_line_of_more_than_one_line(text):
    try:
        url = urls.parse(text)
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        for part in (url.target, url.host_field, url.authorization.encode()):
            assert not set(part) & set(b"\r\n\x00")
        assert b" " not in url.target + url.host_field


@pytest.mark.parametrize(("text", "user"), [
    ("http://me:secret@a/", b"me:secret"),
    ("http://me@a/", b"me:"),
    ("me:s%40c:ret@a/", b"me:s@c:ret"),
    ("http://m\u00e9:@a/", "m\u00e9:".encode()),
    ("http://a@b:c@d/", b"a@b:c"),
])
def test_a_user_becomes_basic_authorization_and_is_no_part_of_the_host(text, user):
    url = urls.parse(text)
    assert url.authorization == "Basic " + base64.b64encode(user).decode()
    assert b"@" not in url.host_field


@pytest.mark.parametrize(("text", "why"), [
    ("", "it names no host"),
    ("http://", "it names no host"),
    ("http:///x", "it names no host"),
    ("http://:80/", "it names no host"),
    ("ftp://a/", "ftp is not spoken here, http and https are"),
    ("unix:/run/socket", "a unix socket is named by uds, beside a URL like http://localhost/"),
    ("http://a:b/", "a port is a number from 1 to 65535, not 'b'"),
    ("http://a:0/", "a port is a number from 1 to 65535, not '0'"),
    ("http://a:65536/", "a port is a number from 1 to 65535, not '65536'"),
    ("http://a:0000099999/", "a port is a number from 1 to 65535, not '0000099999'"),
    ("http://a:\u0661/", "a port is a number from 1 to 65535, not '\u0661'"),
    ("http://a:-1/", "a port is a number from 1 to 65535, not '-1'"),
    ("http://::1/", "an IPv6 address stands in brackets, like http://[::1]:8000/"),
    ("http://[::1/", "an IPv6 address stands in brackets, like http://[::1]:8000/"),
    ("http://[::1]x/", "an IPv6 address stands in brackets, like http://[::1]:8000/"),
    ("http://[localhost]/", "'localhost' is not an IPv6 address"),
    ("http://a b/", "'a b' is not a host name"),
    ("http://a\nb/", "'a\\nb' is not a host name"),
    ("http://-\u00fc" + "x" * 70 + "/", "is not a host name (IDNA)"),
    ("http://" + "a" * 64 + "/", "is not a host name"),
])
def test_what_is_no_url_is_explained_in_one_sentence(text, why):
    with pytest.raises(UsageError) as caught:
        urls.parse(text)
    assert str(caught.value).startswith(f"{text!r} is not a URL to ask for: ")
    assert str(caught.value).endswith(why)


def test_a_url_has_a_length():
    urls.parse("http://a/" + "x" * 65500)
    with pytest.raises(UsageError, match=r"^a URL has at most 65536 bytes, not 65545$"):
        urls.parse("http://a/" + "x" * 65536)


def test_a_password_is_not_told():
    assert urls.masked("http://me:secret@a/x") == "http://me:***@a/x"
    assert urls.masked("me:s@cret@a") == "me:***@a"
    assert urls.masked("http://a:80/b:c@d") == "http://a:80/b:c@d"
    with pytest.raises(UsageError) as caught:
        urls.parse("http://me:secret@a:x/")
    assert "secret" not in str(caught.value)


# -- targets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("line", "target"), [
    ("http://a/", Target("http://a/")),
    ("a HEAD", Target("a", "HEAD")),
    ("a POST x=1&y=2", Target("a", "POST", b"x=1&y=2")),
    ("a\tPUT  two words, and \u00fc ", Target("a", "PUT", "two words, and \u00fc".encode())),
    ("a DELETE", Target("a", "DELETE")),
    ("a OPTIONS", Target("a", "OPTIONS")),
    ("a PATCH {}", Target("a", "PATCH", b"{}")),
])
def test_a_line_is_a_url_a_method_and_a_body(line, target):
    assert urls.parse_line(line) == target


def test_a_body_comes_from_a_file_byte_for_byte(tmp_path):
    (tmp_path / "body").write_bytes(b"\xff\x00$HOME\n")
    assert urls.parse_line(f"a POST <{tmp_path}/body").body == b"\xff\x00$HOME\n"
    assert urls.parse_line(f"a POST < {tmp_path}/body").body == b"\xff\x00$HOME\n"


@pytest.mark.parametrize(("line", "why"), [
    ("a post x", "after a URL comes a method (GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS), not 'post'; "
                 "a space in a URL is %20"),
    ("a GET x", "a GET has no body; POST, PUT, PATCH, DELETE and OPTIONS may have one"),
    ("a HEAD x", "a HEAD has no body; POST, PUT, PATCH, DELETE and OPTIONS may have one"),
    ("a POST </no/such/file", "can't read '/no/such/file': No such file or directory"),
    ("a POST </", "can't read '/': Is a directory"),
    ("a POST </dev/zero", "'/dev/zero' is larger than 16 MiB, which is the most for bodies"),
])
def test_a_wrong_line_is_explained(line, why):
    with pytest.raises(UsageError) as caught:
        urls.parse_line(line)
    assert str(caught.value) == why


@pytest.mark.parametrize(("arguments", "why"), [
    ((b"http://a/",), "a URL is text, not b'http://a/'"),
    (("a", "get"), "a method is GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS, not 'get'"),
    (("a", "POST", "text"), "a body is bytes, not 'text'"),
    (("a", "GET", b"", "X: y"), "headers are a list, of 'Name: value' each, not 'X: y'"),
])
def test_a_target_is_checked_when_it_is_made(arguments, why):
    with pytest.raises(UsageError) as caught:
        Target(*arguments)
    assert str(caught.value) == why


# -- files of URLs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def url_file(tmp_path):
    def write(text):
        path = tmp_path / "urls.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)
    return write


def test_a_file_has_urls_comments_blank_lines_and_variables(url_file):
    path = url_file("""\ufeff# siege's own example
HOST = localhost:8000
BASE=http://${HOST}/app

  http://$HOST/one
$(BASE)/two POST price=$$5&host=$HOST
\t# indented
$BASE/three?a=b#c
localhost/four?HOST=5
""")
    assert urls.read(path) == [
        Target("http://localhost:8000/one"),
        Target("http://localhost:8000/app/two", "POST", b"price=$5&host=localhost:8000"),
        Target("http://localhost:8000/app/three?a=b#c"),
        Target("localhost/four?HOST=5"),
    ]


def test_a_variable_may_come_from_the_environment_and_a_definition_wins(url_file, monkeypatch):
    monkeypatch.setenv("SIEGE_TEST_HOST", "outside")
    path = url_file("$SIEGE_TEST_HOST/\nSIEGE_TEST_HOST = inside\n$SIEGE_TEST_HOST/\n")
    assert [target.url for target in urls.read(path)] == ["outside/", "inside/"]


def test_lines_end_as_they_do_on_any_system(url_file):
    assert [target.url for target in urls.read(url_file(b"a\r\nb\rc\n\nd"))] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(("text", "line", "why"), [
    ("a\nb\nftp://c/\n", 3, "'ftp://c/' is not a URL to ask for: ftp is not spoken here, http and https are"),
    ("a\n\nb POST </no/such/file\n", 3, "can't read '/no/such/file': No such file or directory"),
    ("a/$filter\n", 1, "$filter is not defined, in this file above or in the environment; "
                       "a $ that is no variable is written $$"),
    (b"a\n\xff\n", 2, "this is not UTF-8"),
    ("X = $Y_NOT_DEFINED\n", 1, "$Y_NOT_DEFINED is not defined, in this file above or in the environment; "
                                "a $ that is no variable is written $$"),
])
def test_an_error_names_the_file_and_the_line(url_file, text, line, why):
    path = url_file(text)
    with pytest.raises(UsageError) as caught:
        urls.read(path)
    assert str(caught.value) == f"{path}, line {line}: {why}"


def test_a_file_without_a_url_or_one_that_is_not_there_is_explained(url_file, tmp_path):
    path = url_file("# nothing\n\n")
    with pytest.raises(UsageError, match=rf"^{path} has no URL in it$"):
        urls.read(path)
    with pytest.raises(UsageError, match=r"^can't read '.*/none': No such file or directory$"):
        urls.read(f"{tmp_path}/none")


def test_a_file_has_its_limits(url_file, tmp_path, monkeypatch):
    assert len(urls.read(url_file("a\n" * urls.MOST_LINES))) == urls.MOST_LINES
    with pytest.raises(UsageError, match=r"100001 lines are more than 100000, the most for a file of URLs$"):
        urls.read(url_file("a\n" * (urls.MOST_LINES + 1)))
    (tmp_path / "body").write_bytes(b"x" * 1000)
    monkeypatch.setattr(urls, "MOST_BODY_BYTES", 1999)
    with pytest.raises(UsageError, match=r"line 2: bodies have at most 0 MiB in all$"):
        urls.read(url_file(f"a POST <{tmp_path}/body\n" * 3))


# -- headers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "header"), [
    ("Name: value", ("Name", "value")),
    ("Name:value: more", ("Name", "value: more")),
    ("Name:", ("Name", "")),
    (b"Name: \xff", ("Name", "\udcff")),
    (("Name", "value"), ("Name", "value")),
    ([b"Name", b"v\tw"], ("Name", "v\tw")),
])
def test_a_header_is_text_or_a_pair(given, header):
    assert checked_header(given) == header


@pytest.mark.parametrize(("given", "why"), [
    ("Name", "a header is written 'Name: value', not 'Name'"),
    (5, "a header is written 'Name: value', or is a pair of such, not 5"),
    (("a", "b", "c"), "a header is written 'Name: value', or is a pair of such, not ('a', 'b', 'c')"),
    (": x", "a header's name is made of token characters (RFC 9110 5.6.2), not ''"),
    ("A b: x", "a header's name is made of token characters (RFC 9110 5.6.2), not 'A b'"),
    ("A : x", "a header's name is made of token characters (RFC 9110 5.6.2), not 'A '"),
    ("A: x\r\nB: y", "the value of 'A' has no control characters, and no whitespace at its ends (RFC 9110 5.5), "
                     "not 'x\\r\\nB: y'"),
    ("A: x\x00", "the value of 'A' has no control characters, and no whitespace at its ends (RFC 9110 5.5), "
                 "not 'x\\x00'"),
    (("A", " x"), "the value of 'A' has no control characters, and no whitespace at its ends (RFC 9110 5.5), not ' x'"),
    ("content-length: 5", "content-length can't be set: it is counted"),
    ("Transfer-Encoding: chunked", "Transfer-Encoding can't be set: bodies are sent with their length"),
    ("Connection: close", "Connection can't be set: keep_alive says whether a connection is used again"),
])
def test_a_header_that_would_split_or_contradict_a_request_is_refused(given, why):
    with pytest.raises(UsageError) as caught:
        checked_header(given)
    assert str(caught.value) == why


def test_what_a_request_has_once_is_there_once():
    checked_headers(["Accept: a", "accept: b", "Cookie: c", "Cookie: d"])
    for name in ("Host", "user-agent", "CONTENT-TYPE", "Authorization"):
        with pytest.raises(UsageError, match=rf"^a request has one {name.title()}, and headers have 2$"):
            checked_headers([f"{name}: a", f"{name.lower()}: b"])


def test_a_later_layers_headers_replace_those_of_the_same_name():
    assert joined([("A", "1"), ("B", "2")], [("a", "3"), ("a", "4")], [("C", "5")]) == [
        ("B", "2"), ("a", "3"), ("a", "4"), ("C", "5")]


def test_a_target_can_not_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Target("a").url = "b"

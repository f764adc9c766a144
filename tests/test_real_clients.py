"""curl, wrk and siege against `epollkit serve`: programs that many others test with."""
from __future__ import annotations

import json
import re
import subprocess

import pytest
from wire import PATIENCE_SECONDS, Served

APP = """
from epollkit.http import Response

def app(request):
    return Response(f"{request.method} {request.target} {len(request.body)}\\n".encode())
"""


@pytest.fixture
def served(tmp_path):
    (tmp_path / "web.py").write_text(APP)
    with Served("--port", "0", "web:app", directory=tmp_path) as made:
        yield made


def run(*command, **options):
    """What a client printed on standard output, CRLFs and all; it must succeed."""
    done = subprocess.run(command, capture_output=True, timeout=3 * PATIENCE_SECONDS, check=False, **options)
    assert done.returncode == 0, done
    return done.stdout.decode()


@pytest.fixture
def curl(peer):
    program = peer("curl")
    return lambda *arguments: run(program, "-sS", "--max-time", str(PATIENCE_SECONDS), *arguments)


# -- curl --------------------------------------------------------------------------------------------------------------


def test_curl_get(served, curl):
    answer = curl("-i", served.url + "/path?query")
    head, _, body = answer.replace("\r\n", "\n").partition("\n\n")
    assert head.startswith("HTTP/1.1 200 OK\n")
    assert body == "GET /path?query 0\n"


def test_curl_head(served, curl):
    answer = curl("-I", served.url + "/")
    assert answer.startswith("HTTP/1.1 200 OK\r\n")
    assert "Content-Length: 9\r\n" in answer
    assert answer.endswith("\r\n\r\n")


@pytest.mark.parametrize("size", [0, 1, 5000, 1 << 20])
def test_curl_post(served, curl, tmp_path, size):
    """Beyond a megabyte, and in older versions beyond a kilobyte, it sends `Expect: 100-continue` and waits for it."""
    (tmp_path / "body").write_bytes(b"x" * size)
    assert curl("--data-binary", f"@{tmp_path}/body", served.url + "/") == f"POST / {size}\n"


def test_curl_waits_for_100_continue(served, curl, tmp_path):
    (tmp_path / "body").write_bytes(b"x" * 5000)
    trace = tmp_path / "trace"
    answer = curl("--data-binary", f"@{tmp_path}/body", "-H", "Expect: 100-continue", "--expect100-timeout", "20",
                  "--trace-ascii", str(trace), served.url + "/")
    assert answer == "POST / 5000\n"
    assert "HTTP/1.1 100 Continue" in trace.read_text()


@pytest.mark.parametrize("expectation", ["Expect:", "Expect: 100-continue"])
def test_curl_post_that_is_too_large_can_read_its_refusal(served, curl, tmp_path, expectation):
    """1 MiB and a byte: refused with 413, whether the client waits for leave or sends at once."""
    (tmp_path / "body").write_bytes(b"x" * ((1 << 20) + 1))
    answer = curl("-w", "%{http_code}", "-H", expectation, "--data-binary", f"@{tmp_path}/body", served.url + "/")
    assert answer == "413 Request Entity Too Large\n413" or re.fullmatch(r"413 Content Too Large\n413", answer)


def test_curl_upload_in_chunks_is_told_to_say_the_length(served, curl, tmp_path):
    (tmp_path / "body").write_bytes(b"x" * 5000)
    answer = curl("-w", "%{http_code}", "-H", "Transfer-Encoding: chunked", "--data-binary", f"@{tmp_path}/body",
                  served.url + "/")
    assert answer == "411 Length Required\n411"


def test_curl_uses_one_connection_for_several_requests(served, curl):
    urls = [f"{served.url}/{i}" for i in range(5)]
    outputs = [argument for _ in urls for argument in ("-o", "/dev/null")]
    assert curl(*outputs, "-w", "%{num_connects} %{http_code}\n", *urls) == "1 200\n" + "0 200\n" * 4


def test_curl_head_then_get_on_one_connection(served, curl):
    answer = curl("-I", served.url + "/1", "--next", "-sS", "-w", "%{num_connects}", served.url + "/2")
    assert answer.endswith("\r\n\r\nGET /2 0\n0")


@pytest.mark.parametrize(("arguments", "connection"), [
    ((), "Connection: close"), (("-H", "Connection: keep-alive"), "Connection: keep-alive"),
], ids=["close", "keep-alive"])
def test_curl_http_1_0(served, curl, arguments, connection):
    answer = curl("-0", "-i", *arguments, served.url + "/")
    assert connection + "\r\n" in answer
    assert answer.endswith("\r\n\r\nGET / 0\n")


def test_curl_over_a_unix_socket(curl, tmp_path):
    path = str(tmp_path / "socket")
    with Served("--uds", path, directory=tmp_path):
        assert curl("--unix-socket", path, "http://a/") == "Hello from epollkit!\n"


def test_many_curls_in_parallel(served, peer):
    """20 transfers at once, 5 to a connection."""
    config = "".join(f'url = "{served.url}/{i}"\n' for i in range(100))
    output = run(peer("curl"), "-sS", "--parallel", "--parallel-max", "20", "--max-time", str(PATIENCE_SECONDS),
                 "--config", "-", input=config.encode())
    assert sorted(output.splitlines()) == sorted(f"GET /{i} 0" for i in range(100))


# -- load --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [(), ("-H", "Connection: close")], ids=["keep-alive", "close"])
def test_wrk_without_an_error(served, peer, headers):
    output = run(peer("wrk"), "-t1", "-c50", "-d1s", *headers, served.url + "/")
    assert int(re.search(r"(\d+) requests in", output)[1]) > 100, output
    assert "Socket errors" not in output, output
    assert "Non-2xx" not in output, output


def siege(peer, tmp_path, *arguments):
    """siege's own summary, as numbers."""
    rc = tmp_path / "siegerc"
    rc.write_text("verbose = false\ncolor = off\nlogging = false\nshow-logfile = false\njson_output = true\n"
                  "limit = 255\nprotocol = HTTP/1.1\ncache = false\ntimeout = 20\nfailures = 1\n")
    output = run(peer("siege"), f"--rc={rc}", *arguments, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
    return json.loads(output[output.index("{"):])


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_siege_with_full_availability(served, peer, tmp_path, connection):
    summary = siege(peer, tmp_path, "-b", "-c", "20", "-r", "50", "-H", f"Connection: {connection}", served.url + "/")
    assert summary["availability"] == 100.0
    assert summary["transactions"] == 1000
    assert summary["failed_transactions"] == 0


def test_siege_with_a_file_of_urls_and_posts(served, peer, tmp_path):
    urls = tmp_path / "urls"
    urls.write_text(f"{served.url}/a\n{served.url}/b POST name=value\n# a comment\n{served.url}/c?d=e\n")
    summary = siege(peer, tmp_path, "-b", "-c", "10", "-r", "30", "-f", str(urls))
    assert summary["availability"] == 100.0
    assert summary["failed_transactions"] == 0

"""`epollkit siege` as a user meets it: what is asked, what is printed and written, and how it ends."""
from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import socket
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from wire import PATIENCE_SECONDS, Served, epollkit_command

from epollkit import cli
from epollkit.siege import Scenario, Target

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def seen(served):
    """What the server was asked since: [method, target, headers, body] each."""
    def ask():
        connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=PATIENCE_SECONDS)
        connection.request("GET", "/seen")
        found = json.loads(connection.getresponse().read())
        connection.close()
        return found
    ask()
    return ask


@pytest.fixture
def siege(tmp_path):
    def run(*arguments, status=0, environment=None):
        done = subprocess.run([*epollkit_command(), "siege", *arguments], cwd=tmp_path, capture_output=True, text=True,
                              timeout=PATIENCE_SECONDS, check=False, env={**os.environ, **(environment or {})})
        assert done.returncode == status, done
        assert "Traceback" not in done.stderr
        return done
    return run


def targets_of(seen):
    return Counter(target for _, target, _, _ in seen)


# -- what is asked -----------------------------------------------------------------------------------------------------


def test_each_user_asks_so_often(siege, served, seen):
    done = siege("-c", "4", "-r", "5", served.url)
    assert re.search(r"^Transactions:\s+20 hits$", done.stdout, re.MULTILINE)
    assert re.search(r"^Availability:\s+100.00 %$", done.stdout, re.MULTILINE)
    assert targets_of(seen()) == {"/": 20}


def test_a_number_of_requests_is_of_all_users(siege, served, seen):
    done = siege("-c4", "--number=13", "-q", served.url + "/a")
    assert (done.stdout, done.stderr) == ("", "")
    assert targets_of(seen()) == {"/a": 13}


def test_a_file_of_urls_is_gone_through_by_each_user(siege, served, seen, tmp_path):
    (tmp_path / "body").write_bytes(b"from a file")
    (tmp_path / "urls.txt").write_text(f"""# three
BASE = {served.url}
$BASE/one?x=1
${{BASE}}/two POST a=b
$BASE/three PUT <body
""")
    siege("-q", "-c", "3", "-r", "once", "-f", "urls.txt", served.url + "/zero")
    found = seen()
    assert targets_of(found) == {"/zero": 3, "/one?x=1": 3, "/two": 3, "/three": 3}
    assert {(method, target, body) for method, target, _, body in found} == {
        ("GET", "/zero", ""), ("GET", "/one?x=1", ""), ("POST", "/two", "a=b"), ("PUT", "/three", "from a file")}
    assert {dict(headers).get("content-type") for method, _, headers, _ in found if method != "GET"} == {
        "application/x-www-form-urlencoded"}


def test_urls_at_random_are_all_asked_for(siege, served, seen, tmp_path):
    (tmp_path / "urls.txt").write_text("".join(f"{served.url}/{number}\n" for number in range(4)))
    siege("-q", "-i", "-c", "2", "-r", "100", "--seed", "1", "-f", "urls.txt")
    found = targets_of(seen())
    assert sum(found.values()) == 200
    assert set(found) == {"/0", "/1", "/2", "/3"}
    assert len(set(found.values())) > 1, "that is in turn"


def test_headers_are_sent_as_given(siege, served, seen):
    siege("-q", "-r", "1", "-c", "1", "-H", "Accept: text/html", "--header", "X: \u00fc", "-H", "Host: other",
          "-A", "me/1.0", "--content-type", "text/plain", served.url + "/ POST hello there")
    [[method, target, headers, body]] = seen()
    assert (method, target, body) == ("POST", "/", "hello there")
    assert dict(headers) == {"accept": "text/html", "x": "\u00fc".encode().decode("latin-1"), "host": "other",
                             "user-agent": "me/1.0", "content-type": "text/plain", "content-length": "11"}


def test_a_user_in_the_url_logs_in(siege, served, seen):
    siege("-q", "-r", "1", "-c", "1", served.url.replace("http://", "http://me:secret@"))
    assert dict(seen()[0][2])["authorization"] == "Basic bWU6c2VjcmV0"


def test_a_unix_socket(siege, tmp_path):
    with Served("--uds", str(tmp_path / "socket"), directory=tmp_path):
        done = siege("--uds", "socket", "-c", "2", "-r", "3", "http://localhost/")
        assert re.search(r"^Transactions:\s+6 hits$", done.stdout, re.MULTILINE)


def test_an_open_loop_asks_as_often_as_it_planned(siege, served, seen):
    done = siege("-j", "-c", "4", "--rate", "200", "--number", "50", served.url)
    assert json.loads(done.stdout)["planned"] == 50
    assert targets_of(seen()) == {"/": 50}


def test_what_the_warm_up_asks_is_not_counted(siege, served, seen):
    done = siege("-j", "-c", "2", "--rate", "100", "--warmup", "0.3", "-t", "0.3S", served.url)
    assert json.loads(done.stdout)["transactions"] < sum(targets_of(seen()).values())


def test_a_number_of_requests_is_one_of_those_after_the_warm_up(siege, served):
    done = siege("-j", "-c", "2", "--number", "20", "--warmup", "0.2", served.url)
    assert json.loads(done.stdout)["transactions"] == 20


def test_a_connection_for_each_request(siege, served):
    done = siege("-j", "--no-keep-alive", "-c", "2", "-r", "5", served.url)
    assert json.loads(done.stdout)["connections"]["established"] == 10


# -- what is told ------------------------------------------------------------------------------------------------------


def test_the_summary_is_on_standard_output_and_progress_is_not(siege, served):
    done = siege("-c", "2", "-t", "0.6S", served.url)
    assert done.stdout.startswith("Transactions:")
    assert done.stderr.startswith(f"{served.url}: 2 users\n")
    assert "requests/s" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_json_is_alone_on_standard_output(siege, served):
    done = siege("-j", "-q", "-c", "2", "-r", "2", served.url)
    found = json.loads(done.stdout)
    assert (found["transactions"], found["statuses"], done.stderr) == (4, {"200": 4}, "")
    assert found["scenario"]["users"] == 2
    assert isinstance(found["scenario"]["seed"], int), "it can be repeated"


def test_a_scenario_of_a_report_can_be_run_again(siege, served):
    found = json.loads(siege("-j", "-c", "2", "-r", "2", "--assert", "failed==0", served.url).stdout)
    assert Scenario.from_json(found["scenario"]).assertions == ("failed==0",)


def test_verbose_is_a_line_for_each_interval(siege, served):
    done = siege("-v", "-c", "2", "-t", "0.6S", served.url)
    lines = done.stderr.splitlines()
    assert len(lines) >= 2
    for line in lines:
        assert re.fullmatch(r" +\d+\.\d\d s: \d+ answered, \d+ failed, [\d.]+/s, p50 .*, p99 .*, max .*, \d open", line)


def test_files_are_written(siege, served, tmp_path):
    siege("-q", "-c", "2", "-r", "2", "--json", "out.json", "--html", "out.html", served.url)
    assert json.loads((tmp_path / "out.json").read_text())["transactions"] == 4
    assert (tmp_path / "out.html").read_text().lstrip().lower().startswith("<!doctype html>")


def test_the_log_is_sieges(siege, served, tmp_path):
    siege("-q", "-c", "2", "-r", "2", "-l", "siege.log", served.url)
    siege("-q", "-c", "1", "-r", "3", "--log=siege.log", "-m", "the second run", served.url)
    heading, first, mark, second = (tmp_path / "siege.log").read_text().splitlines()
    assert heading == ("      Date & Time,  Trans,  Elap Time,  Data Trans,  Resp Time,  Trans Rate,  Throughput,  "
                       "Concurrent,    OKAY,   Failed")
    assert mark == "**** the second run ****"
    for line, count in ((first, 4), (second, 3)):
        when, *columns = line.split(",")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", when)
        assert [len(column) for column in columns] == [7, 11, 12, 11, 12, 12, 12, 8, 8]
        assert [int(columns[index]) for index in (0, 7, 8)] == [count, count, 0]


@pytest.mark.peer("siege")
def test_the_logs_heading_is_the_one_that_siege_writes(served, tmp_path, peer):
    from epollkit.cli.siege import LOG_HEADING
    subprocess.run([peer("siege"), "-b", "-c1", "-r1", f"-l{tmp_path}/siege.log", served.url], capture_output=True,
                   timeout=PATIENCE_SECONDS, check=False, env={**os.environ, "HOME": str(tmp_path)})
    assert (tmp_path / "siege.log").read_text().splitlines()[0] + "\n" == LOG_HEADING


# -- how it ends -------------------------------------------------------------------------------------------------------


def test_an_assertion_that_fails_is_status_99(siege, served):
    done = siege("-c", "2", "-r", "5", "--assert", "failed==0", "--assert", "max<1us", served.url, status=99)
    assert "max<1us" in done.stdout
    quiet = siege("-q", "-c", "2", "-r", "5", "--assert", "max<1us", served.url, status=99)
    assert (quiet.stdout, quiet.stderr) == ("", "epollkit siege: max<1us did not hold\n")
    siege("-q", "-c", "2", "-r", "5", "--assert", "failed==0", "--assert", "max<3600s", served.url)


@pytest.mark.parametrize(("options", "successful"), [
    ((), 0), (("--expect-status", "404"), 10), (("--expect-status", "2xx,4xx"), 10),
    (("--expect-status", "404", "--expect-body", "wish"), 10), (("--expect-status", "404", "--expect-body", "X"), 0)])
def test_what_is_a_success_can_be_said(siege, served, options, successful):
    found = json.loads(siege("-j", "-c", "2", "-r", "5", *options, served.url + "/status/404").stdout)
    assert (found["successful"], found["failed"], found["statuses"]) == (successful, 10 - successful, {"404": 10})


def test_nobody_there_is_status_1_and_one_sentence(siege, free_port):
    done = siege("-q", f"http://127.0.0.1:{free_port}/", status=1)
    assert done.stderr == f"epollkit siege: cannot connect to 127.0.0.1:{free_port}: Connection refused\n"
    assert done.stdout == ""


@pytest.fixture
def free_port():
    """Where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def test_a_server_process_that_is_not_there_is_explained(siege, served):
    done = siege("-q", "-r", "1", "--pid", "2147483647", served.url, status=2)
    assert done.stderr.splitlines()[-1] == "epollkit siege: error: there is no process 2147483647 to watch"


def test_the_server_is_watched(siege, served):
    found = json.loads(siege("-j", "-c", "2", "-t", "0.6S", "--pid", str(served.process.pid), served.url).stdout)
    assert found["server"]["pid"] == served.process.pid
    assert found["server"]["rss_bytes"]["max"] > 0


# -- searching a rate --------------------------------------------------------------------------------------------------


def test_the_highest_rate_is_found(siege, served):
    """A user's connection is answered 20 times, and then with 503: in half a second that is 40 a second."""
    done = siege("--find", "failed==0", "--rate", "16", "-c", "1", "-t", "0.5S", "--warmup", "0", "--json", "out.json",
                 served.url + "/limit/20")
    *probes, answer = done.stdout.splitlines()
    assert len(probes) >= 5
    for line in probes:
        assert re.match(r" +[\d.]+ requests/s: [\d.]+ answered a second; (held|did not hold: )", line)
    assert answer.endswith(" requests/s is the highest rate that holds failed==0")


def test_a_rate_that_is_not_there_is_status_99(siege, served):
    done = siege("-j", "--find", "max<1us", "--rate", "10", "-c", "1", "-t", "0.3S", "--warmup", "0",
                 served.url, status=99)
    found = json.loads(done.stdout)
    assert found["find"]["rate_per_s"] is None
    assert [probe["rate_per_s"] for probe in found["find"]["probes"]] == [10, 5, 2.5, 1.25, 1]
    assert found["report"]["scenario"]["rate"] == 1
    assert "did not hold: " in done.stderr


# -- options -----------------------------------------------------------------------------------------------------------

URL = "http://127.0.0.1:1/"


@pytest.mark.parametrize(("arguments", "complaint"), [
    ((), "there is nothing to ask for: give a URL, or a file of them with -f"),
    ((URL, "POST", "x"), "POST stands alone: 'URL POST body' is one argument, so it needs quotes"),
    (("ftp://a",), "'ftp://a' is not a URL to ask for: ftp is not spoken here, http and https are"),
    ((URL, "-t", "30"), "argument -t/--time: '30' is not a time like 30S, 5M or 1H; a bare number is minutes to siege, "
                        "so say which"),
    ((URL, "-t", "soon"), "argument -t/--time: 'soon' is not a time like 30S, 5M or 1H"),
    ((URL, "-t", "0S"), "-t/--time is a number of seconds from 0.01 to 1e+06, not 0.0"),
    ((URL, "-c", "x"), "argument -c/--concurrent: 'x' is not a whole number"),
    ((URL, "-c", "0"), "-c/--concurrent is a whole number from 1 to 1000000, not 0"),
    ((URL, "-r", "0"), "-r/--reps is a whole number from 1 to 1000000000000, not 0"),
    ((URL, "-r", "twice"), "argument -r/--reps: 'twice' is not a whole number"),
    ((URL, "-d", "x"), "argument -d/--delay: 'x' is not a duration above 0, like 30s, 5m, 1h or 2.5"),
    ((URL, "--rate", "nan"), "argument --rate: 'nan' is not a number"),
    ((URL, "--rate", "0"), "--rate is a number of requests a second from 0.001 to 1e+07, not 0.0"),
    ((URL, "--rate", "5", "-r", "5"), "--rate says when requests are sent, whoever sends them, so -r/--reps has no "
                                      "meaning"),
    ((URL, "--rate", "5", "-d", "5"), "--rate says when requests are sent, whoever sends them, so -d/--delay has no "
                                      "meaning"),
    ((URL, "--number", "5", "-r", "5"), "--number is of all users together, and -r/--reps of each: give one of them"),
    ((URL, "--pipeline", "5", "--no-keep-alive"),
     "--pipeline needs connections that are kept, and --no-keep-alive says that they are not"),
    ((URL, "--close", "softly"), "--close is fin, rst, half, abandon, rst-mid-request or rst-mid-response, "
                                   "not 'softly'"),
    ((URL, "--source", "127.0.0.2,localhost"), "--source are numeric addresses like 127.0.0.2, or ranges like "
                                               "127.0.0.2-127.0.0.16, not 'localhost'"),
    ((URL, "-H", "Nonsense"), "-H/--header: a header is written 'Name: value', not 'Nonsense'"),
    ((URL, "-H", "Content-Length: 5"), "-H/--header: Content-Length can't be set: it is counted"),
    ((URL, "-A", "a\nb"), "-A/--user-agent: the value of 'User-Agent' has no control characters, and no whitespace at "
                          "its ends (RFC 9110 5.5), not 'a\\nb'"),
    ((URL + " POST x", "--content-type", "a\nb"), "the value of 'Content-Type' has no control characters, and no "
                                                  "whitespace at its ends (RFC 9110 5.5), not 'a\\nb'"),
    ((URL, "--expect-status", "ok"), "--expect-status are statuses like 200, 2xx or 200-299, separated by commas, "
                                       "not 'ok'"),
    ((URL, "--assert", "p99"), "an assertion is written like"),
    ((URL, "--assert", "rate>5ms"), "'rate>5ms': rate takes a plain number, without 'ms'"),
    ((URL, "--find", "rate>5"), "--find searches the highest rate that holds something else, like p99<5ms"),
    ((URL, "--find", "p99<5ms", "-r", "5"), "--find tries one rate after the other, each for some seconds, so "
                                            "-r/--reps has no meaning"),
    ((URL, "--processes", "300"), "--processes is a whole number from 1 to 256, not 300"),
    ((URL, "-c", "2", "--processes", "3"), "-c/--concurrent is shared by 3 processes, so it is at least that, not 2"),
    ((URL, "--seed", "-1"), "--seed is a whole number from 0 to 4294967295, not -1"),
    ((URL, "-m", "mark"), "-m/--mark is for the log, and -l/--log says which: give both"),
    ((URL, "--json", "/no/such/folder/x"), "--json '/no/such/folder/x' can't be written: No such file or directory"),
    ((URL, "--html", "/"), "--html '/' can't be written: Is a directory"),
    (("-f", "/no/such/file"), "can't read '/no/such/file': No such file or directory"),
    ((URL, "--frobnicate"), "unrecognized arguments: --frobnicate"),
], ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "")
def test_wrong_usage_gets_one_sentence_and_status_2(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["siege", *arguments])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    *usage, sentence = told.err.splitlines()
    assert len(usage) == 1
    assert usage[0].startswith("usage: epollkit ")
    assert complaint in sentence


def test_a_wrong_file_of_authorities_is_named_by_its_option(siege, served):
    done = siege("--cacert", "/dev/null", served.url.replace("http:", "https:"), status=2)
    assert "error: --cacert: '/dev/null' can't be used: " in done.stderr


def scenario(*arguments):
    options = cli.parser().parse_args(["siege", *arguments])
    cli.siege.complete(options)
    return cli.siege.scenario_of(options)


def test_every_option_reaches_its_field():
    given = scenario(
        "a", "b HEAD", "-c", "9", "-t", "2M", "--number", "99", "-d", "1.5", "-i", "--no-keep-alive", "--source",
        "127.0.0.2-127.0.0.3,127.0.0.9", "--close", "rst", "--warmup", "3s", "-H", "A: b", "-A", "me", "--timeout",
        "4s", "--connect-timeout", "5s", "--grace", "0", "--expect-status", "2xx,404", "--expect-body", "x",
        "--processes", "2", "--seed", "7", "--insecure", "--cacert", "ca.pem", "--pid", "1", "--assert", "p99<5ms",
        "--assert", "failed==0")
    assert given == Scenario(
        ["a", Target("b", "HEAD")], users=9, seconds=120, number=99, delay=1.5, random_order=True, keep_alive=False,
        sources=("127.0.0.2", "127.0.0.3", "127.0.0.9"), close="rst", warmup=3, headers=["A: b"], agent="me", timeout=4,
        connect_timeout=5, grace=0, expect_status=(*range(200, 300), 404), expect_body=b"x", processes=2, seed=7,
        insecure=True, cafile="ca.pem", pid=1, assertions=("p99<5ms", "failed==0"))


@pytest.mark.parametrize(("arguments", "fields"), [
    ((), {"seconds": 10.0}),
    (("-r", "5"), {"repetitions": 5}),
    (("-r", "once"), {"repetitions": 1}),
    (("--number", "5"), {"number": 5}),
    (("-t", "1h"), {"seconds": 3600.0}),
    (("-d", "2", "-b"), {"seconds": 10.0}),
    (("--pipeline", "4"), {"pipeline": 4, "seconds": 10.0}),
    (("--rate", "0.5"), {"rate": 0.5, "seconds": 10.0}),
    (("--uds", "/s"), {"uds": "/s", "seconds": 10.0}),
    (("--find", "p99<5ms"), {"seconds": 5.0, "warmup": 0.5}),
    (("--find", "p99<5ms", "-t", "1S", "--warmup", "0"), {"seconds": 1.0, "warmup": 0.0}),
], ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_what_is_not_said_is_the_default(arguments, fields):
    assert scenario("http://a/", *arguments) == Scenario("http://a/", **fields)


def test_every_option_is_an_environment_variable_too_and_the_option_wins(siege, served, seen):
    environment = {"EPOLLKIT_SIEGE_CONCURRENT": "3", "EPOLLKIT_SIEGE_REPS": "7", "EPOLLKIT_SIEGE_QUIET": "yes",
                   "EPOLLKIT_SIEGE_HEADER": "A: b\nC: d", "EPOLLKIT_SIEGE_TIMEOUT": "1m"}
    done = siege("-r", "2", served.url, environment=environment)
    assert (done.stdout, done.stderr) == ("", "")
    found = seen()
    assert len(found) == 6
    assert dict(found[0][2])["a"] == "b"
    assert dict(found[0][2])["c"] == "d"


def test_a_wrong_environment_is_explained(siege):
    for variable, complaint in {"TIME": "argument -t/--time: 'x' is not a time like 30S, 5M or 1H",
                                "QUIET": "EPOLLKIT_SIEGE_QUIET is yes or no, not 'x'"}.items():
        done = siege(URL, environment={f"EPOLLKIT_SIEGE_{variable}": "x"}, status=2)
        assert done.stderr.splitlines()[-1] == f"epollkit siege: error: {complaint}"


def options_of(capsys):
    with pytest.raises(SystemExit):
        cli.main(["siege", "--help"])
    return set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", capsys.readouterr().out)) - {"--help"}


def test_the_document_has_every_option_and_no_other(capsys):
    text = (ROOT / "docs" / "siege.md").read_text()
    rows = "".join(line for line in text.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"(--[a-z][a-z-]+)", rows)) == options_of(capsys)


def test_commands_of_the_document_run(served, tmp_path):
    """A moment instead of ten seconds, against a server that is there. The search of a rate has its own tests."""
    commands = re.findall(r"^    epollkit siege (.*)$", (ROOT / "docs" / "siege.md").read_text(), re.MULTILINE)
    assert len(commands) == 7
    (tmp_path / "urls.txt").write_text(served.url)
    for command in commands:
        words = shlex.split(re.sub(r"\b\d+S\b", "0.3S", command).replace("http://127.0.0.1:8000", served.url)
                            .replace("4711", str(served.process.pid)))
        if "--find" not in words:
            done = subprocess.run([*epollkit_command(), "siege", *words], cwd=tmp_path, capture_output=True, text=True,
                                  timeout=PATIENCE_SECONDS, check=False)
            assert done.returncode == (99 if "did not hold" in done.stdout or "FAILED" in done.stdout else 0), done
            assert done.stdout.startswith("Transactions:")


def test_the_documents_python_runs(served):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "siege.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(code.replace("http://127.0.0.1:8000", served.url).replace("seconds=10", "seconds=0.3"), names)
    assert names["report"].transactions > 0


def test_the_documents_file_of_urls_is_one(tmp_path, monkeypatch):
    from epollkit.siege import urls
    text = (ROOT / "docs" / "siege.md").read_text()
    [block] = re.findall(r"((?:^    .*\n)+)", text[text.index("### Files of URLs"):text.index("A line is a URL")],
                         re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "order.json").write_text("{}")
    (tmp_path / "urls.txt").write_text(block)
    assert [(target.parsed.port, target.method, target.body) for target in urls.read("urls.txt")] == [
        (8000, "GET", b""), (8000, "POST", b"item=1&count=2"), (8000, "PUT", b"{}")]

"""`epollkit serve` as a user meets it: a process, what it prints, how it ends, and one sentence for what goes wrong."""
from __future__ import annotations

import ctypes
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from wire import PATIENCE_SECONDS, Served, epollkit_command, parse_response

import epollkit

ROOT = Path(__file__).resolve().parent.parent
CAP_DAC_OVERRIDE, CAP_NET_BIND_SERVICE, PR_CAPBSET_DROP = 1, 10, 24      # linux/capability.h, linux/prctl.h
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def epollkit_fails(*arguments, directory, status=1, **options):
    """Run a command that must end by itself with that exit status; returns its standard error."""
    environment = {**os.environ, **options.pop("environment", {})}
    done = subprocess.run([*epollkit_command(), *arguments], cwd=directory, env=environment, capture_output=True,
                          text=True, timeout=PATIENCE_SECONDS, check=False, **options)
    assert done.returncode == status, done
    assert done.stdout == ""
    return done.stderr


def one_sentence(stderr):
    """What a user is told when something is wrong: a line, and no traceback."""
    assert stderr.endswith("\n")
    assert stderr.count("\n") == 1, stderr
    return stderr[:-1]


def ask(sock, request=GET):
    """Send on a blocking socket, and return the next response."""
    sock.sendall(request)
    received = b""
    while (parsed := parse_response(received)) is None:
        piece = sock.recv(65536)
        assert piece, received
        received += piece
    return parsed[0]


def exchange(served, request=GET):
    with served.connect() as sock:
        return ask(sock, request)


def write_module(directory, name, text):
    (directory / f"{name}.py").write_text(textwrap.dedent(text))


# -- serving -----------------------------------------------------------------------------------------------------------


def test_without_an_application_it_says_hello(tmp_path):
    with Served("--port", "0", directory=tmp_path) as served:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", served.url)
        answer = exchange(served)
        assert (answer.status, answer.body) == (200, b"Hello from epollkit!\n")
        assert answer.header("Content-Type") == "text/plain"


def test_an_application_is_found_in_the_current_directory_or_in_app_dir(tmp_path):
    write_module(tmp_path, "web", """
        from epollkit.http import Response
        class inner:
            @staticmethod
            def app(request):
                return Response(request.path.encode())
    """)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with Served("--port", "0", "web:inner.app", directory=tmp_path) as served:
        assert exchange(served).body == b"/"
    with Served("--port", "0", "--app-dir", str(tmp_path), "web:inner.app", directory=elsewhere) as served:
        assert exchange(served).body == b"/"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_and_cleanly(tmp_path, signum):
    """With a connection that is kept alive, one in the middle of a head, and one that never said a word."""
    with Served("--port", "0", directory=tmp_path) as served, served.connect() as idle, served.connect() as partial, \
            served.connect() as silent:
        ask(idle)
        partial.sendall(GET[:10])
        exchange(served)
        status, output, errors, seconds = served.stop(signum)
        assert (status, output, errors) == (0, "", "")
        assert seconds < 5
        for sock in (idle, silent):
            assert sock.recv(1) == b""


def test_a_signal_right_behind_the_first_line_is_not_missed(tmp_path):
    """The line says that clients can connect; Ctrl-C works from then on."""
    for _ in range(3):
        with Served("--port", "0", directory=tmp_path) as served:
            assert served.stop(signal.SIGINT)[:3] == (0, "", "")


def test_ipv6_is_printed_as_a_url(tmp_path):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with Served("--port", "0", "--host", "::1", directory=tmp_path) as served:
        assert re.fullmatch(r"http://\[::1\]:\d+", served.url)
        assert exchange(served).status == 200


def test_a_unix_socket_is_served_and_removed(tmp_path, peer):
    path = tmp_path / "socket"
    with Served("--uds", str(path), directory=tmp_path) as served:
        assert served.url == f"unix:{path}"
        done = subprocess.run([peer("curl"), "-sS", "--unix-socket", str(path), "http://a/"], capture_output=True,
                              text=True, timeout=PATIENCE_SECONDS, check=True)
        assert done.stdout == "Hello from epollkit!\n"
        assert served.stop(signal.SIGTERM)[:3] == (0, "", "")
    assert not path.exists()


def test_a_socket_file_that_a_killed_server_left_is_taken_over(tmp_path):
    path = tmp_path / "socket"
    with Served("--uds", str(path), directory=tmp_path) as killed:
        killed.stop(signal.SIGKILL)
    assert path.exists()
    with Served("--uds", str(path), directory=tmp_path), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        assert ask(sock).status == 200


def test_reuse_port_lets_two_share_a_port(tmp_path):
    with Served("--port", "0", "--reuse-port", directory=tmp_path) as first:
        port = first.url.rpartition(":")[2]
        with Served("--port", port, "--reuse-port", directory=tmp_path) as second:
            assert second.url == first.url
            assert exchange(first).status == 200


def test_deferred_accept(tmp_path):
    with Served("--port", "0", "--defer-accept", directory=tmp_path) as served:
        assert exchange(served).status == 200


def test_an_application_that_fails_is_answered_with_500_and_its_traceback_is_on_standard_error(tmp_path):
    write_module(tmp_path, "web", """
        def app(request):
            raise ValueError("the application's own")
    """)
    with Served("--port", "0", "web:app", directory=tmp_path) as served:
        assert exchange(served).status == 500
        status, output, errors, _ = served.stop(signal.SIGINT)
        assert (status, output) == (0, "")
        assert errors.count("Traceback") == 1
        assert errors.rstrip().endswith("ValueError: the application's own")


# -- options -----------------------------------------------------------------------------------------------------------


def test_options_reach_the_server(tmp_path):
    with Served("--port", "0", "--limit-request-body", "3", "--timeout-keep-alive", "0.1s",
                "--limit-request-fields", "2", directory=tmp_path) as served:
        assert exchange(served, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n").status == 413
        assert exchange(served, b"GET / HTTP/1.1\r\nHost: a\r\nA: 1\r\nB: 2\r\n\r\n").status == 431
        with served.connect() as sock:
            ask(sock)
            assert sock.recv(1) == b"", "kept alive for longer than a tenth of a second"


def test_every_option_is_an_environment_variable_too_and_the_option_wins(tmp_path):
    write_module(tmp_path, "web", """
        from epollkit.http import Response
        def app(request):
            return Response(b"from the environment")
    """)
    environment = {"EPOLLKIT_APP": "web:app", "EPOLLKIT_PORT": "0", "EPOLLKIT_HOST": "no host at all",
                   "EPOLLKIT_LIMIT_REQUEST_BODY": "3", "EPOLLKIT_REUSE_PORT": "yes", "EPOLLKIT_TIMEOUT_HEADER": "1m"}
    with Served("--host", "127.0.0.1", directory=tmp_path, environment=environment) as first:
        assert exchange(first).body == b"from the environment"
        assert exchange(first, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n").status == 413
        port = first.url.rpartition(":")[2]
        with Served("--host", "127.0.0.1", "--port", port, directory=tmp_path, environment=environment) as second:
            assert second.url == first.url


def test_help_shows_every_option_with_its_default(tmp_path):
    done = subprocess.run([*epollkit_command(), "serve", "--help"], cwd=tmp_path, capture_output=True, text=True,
                          timeout=PATIENCE_SECONDS, check=True, env={**os.environ, "COLUMNS": "300"})
    assert done.stderr == ""
    for option, default in {
        "host": "127.0.0.1", "port": "8000", "uds": "None", "backlog": "2048", "app-dir": ".",
        "limit-connections": "65536", "limit-request-line": "8190", "limit-request-fields": "100",
        "limit-request-field-size": "8190", "limit-request-body": "1048576", "timeout-header": "10s",
        "timeout-body": "30s", "timeout-write": "30s", "timeout-keep-alive": "75s",
    }.items():
        line = rf"^  --{option} [A-Z]+\s.*\(default: {re.escape(default)}\)$"
        assert re.search(line, done.stdout, re.MULTILINE), option


def test_the_version_names_the_build(tmp_path):
    done = subprocess.run([*epollkit_command(), "--version"], cwd=tmp_path, capture_output=True, text=True,
                          timeout=PATIENCE_SECONDS, check=True)
    assert done.stdout == f"epollkit {epollkit.__version__} ({epollkit.build_info()['build']} build)\n"


@pytest.mark.parametrize(("arguments", "environment", "complaint"), [
    ((), {}, "the following arguments are required: COMMAND"),
    (("frobnicate",), {}, "invalid choice: 'frobnicate'"),
    (("serve", "--port", "x"), {}, "argument --port: invalid int value: 'x'"),
    (("serve",), {"EPOLLKIT_PORT": "x"}, "argument --port: invalid int value: 'x'"),
    (("serve", "--timeout-body", "0"), {}, "'0' is not a duration above 0, like 30s, 5m, 1h or 2.5"),
    (("serve", "--timeout-body", "5d"), {}, "'5d' is not a duration above 0, like 30s, 5m, 1h or 2.5"),
    (("serve", "--timeout-body", "nan"), {}, "'nan' is not a duration above 0, like 30s, 5m, 1h or 2.5"),
    (("serve", "--frobnicate"), {}, "unrecognized arguments: --frobnicate"),
], ids=lambda value: " ".join(value) if isinstance(value, (tuple, dict)) else None)
def test_wrong_usage_is_explained_with_status_2(tmp_path, arguments, environment, complaint):
    stderr = epollkit_fails(*arguments, directory=tmp_path, status=2, environment=environment)
    assert stderr.startswith("usage: epollkit")
    assert complaint in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


@pytest.mark.parametrize("arguments", [("serve",), ("demo", "--help"), ("--version",)], ids=" ".join)
def test_a_wrong_switch_in_the_environment_is_explained_where_it_matters(tmp_path, arguments):
    """It is for `serve` to complain, in a sentence; other commands do not read it."""
    environment = {**os.environ, "EPOLLKIT_REUSE_PORT": "perhaps"}
    done = subprocess.run([*epollkit_command(), *arguments], cwd=tmp_path, env=environment, capture_output=True,
                          text=True, timeout=PATIENCE_SECONDS, check=False)
    assert "Traceback" not in done.stderr
    if arguments == ("serve",):
        assert done.returncode in (1, 2)
        assert "EPOLLKIT_REUSE_PORT is yes or no, not 'perhaps'" in done.stderr.splitlines()[-1]
    else:
        assert done.returncode == 0


# -- one sentence ------------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_explained(tmp_path):
    with Served("--port", "0", directory=tmp_path) as first:
        port = first.url.rpartition(":")[2]
        assert one_sentence(epollkit_fails("serve", "--port", port, directory=tmp_path)) == (
            f"epollkit serve: cannot listen on 127.0.0.1:{port}: the address is in use by another socket; "
            "stop its owner or choose another")
        assert exchange(first).status == 200


def test_a_unix_socket_in_use_is_explained_and_left_alone(tmp_path):
    path = tmp_path / "socket"
    with Served("--uds", str(path), directory=tmp_path):
        assert one_sentence(epollkit_fails("serve", "--uds", str(path), directory=tmp_path)) == (
            f"epollkit serve: cannot listen on unix:{path}: the address is in use by another socket; "
            "stop its owner or choose another")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            assert ask(sock).status == 200


def test_a_path_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")
    one_sentence(epollkit_fails("serve", "--uds", str(path), directory=tmp_path))
    assert path.read_text() == "precious"


def without_privileges():
    """Run in the child before exec: root without the capabilities that the tests below are about (capabilities(7))."""
    if os.geteuid() == 0:
        prctl = ctypes.CDLL(None).prctl
        for capability in (CAP_DAC_OVERRIDE, CAP_NET_BIND_SERVICE):
            prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


NO_PERMISSION = ("permission denied; ports below 1024 need root or CAP_NET_BIND_SERVICE, "
                 "a unix socket needs write permission in its directory")


def test_a_port_without_permission_is_explained(tmp_path):
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 80:
        pytest.skip("this machine lets everybody have port 80")
    stderr = epollkit_fails("serve", "--port", "80", directory=tmp_path, preexec_fn=without_privileges)
    assert one_sentence(stderr) == f"epollkit serve: cannot listen on 127.0.0.1:80: {NO_PERMISSION}"


def test_a_directory_without_permission_is_explained(tmp_path):
    directory = tmp_path / "not writable"
    directory.mkdir(mode=0o555)
    stderr = epollkit_fails("serve", "--uds", f"{directory}/socket", directory=tmp_path, preexec_fn=without_privileges)
    assert one_sentence(stderr) == f"epollkit serve: cannot listen on unix:{directory}/socket: {NO_PERMISSION}"


@pytest.mark.parametrize(("arguments", "sentence"), [
    (("--host", "192.0.2.1"), "cannot listen on 192.0.2.1:0: no interface of this machine has that address"),
    (("--host", "x" * 300), f"cannot find the address of host '{'x' * 300}': not a host name"),
    (("--port", "65536"), "port 65536 is not between 0 and 65535"),
    (("--port", "-1"), "port -1 is not between 0 and 65535"),
    (("--backlog", "0"), "backlog is a number of connections, at least 1, not 0"),
    (("--limit-request-body", "1048577"), "limit_request_body is a whole number from 0 to 1048576, not 1048577"),
    (("--uds", "no/such/directory"), "cannot listen on unix:no/such/directory: the socket's directory does not exist"),
    (("--uds", "socket", "--reuse-port"), "reuse_port and defer_accept are for TCP; a unix socket has neither"),
    (("--uds", ""), "an empty unix socket path; give a path, or '\\0name' for an abstract one"),
], ids=lambda value: " ".join(value)[:30] if isinstance(value, tuple) else None)
def test_what_can_not_be_listened_on_is_explained(tmp_path, arguments, sentence):
    stderr = epollkit_fails("serve", "--port", "0", *arguments, directory=tmp_path)
    assert one_sentence(stderr) == f"epollkit serve: {sentence}"


@pytest.mark.parametrize(("name", "sentence"), [
    ("web", "an application is named module:attribute, like myproject.web:app, not 'web'"),
    (":app", "an application is named module:attribute, like myproject.web:app, not ':app'"),
    ("web:", "an application is named module:attribute, like myproject.web:app, not 'web:'"),
    ("no_such_module:app", "there is no module 'no_such_module' in {directory} or on the Python path"),
    ("no_such.module:app", "there is no module 'no_such' in {directory} or on the Python path"),
    ("package.missing:app", "there is no module 'package.missing' in {directory} or on the Python path"),
    ("needs:app", "'needs' can't be imported: it imports 'no_such_dependency', which is not installed"),
    ("wrong:app", "'wrong' can't be imported: ValueError: at import"),
    ("typo:app", "'typo' can't be imported: SyntaxError: "),
    ("lacks:name", "'lacks' can't be imported: ImportError: cannot import name 'no_such_name' from 'os'"),
    ("web:nothing", "'web' has no attribute 'nothing'; give the name of an application in it"),
    ("web:number.nothing", "'web' has no attribute 'number.nothing'; give the name of an application in it"),
    ("web:number", "web:number is int, which can't be called; an application takes a Request and returns a Response"),
], ids=lambda value: value if ":" in value and " " not in value else "")
def test_an_application_that_is_not_there_is_explained(tmp_path, name, sentence):
    write_module(tmp_path, "web", "number = 5")
    write_module(tmp_path, "needs", "import no_such_dependency")
    write_module(tmp_path, "wrong", "raise ValueError('at import')")
    write_module(tmp_path, "typo", "def def")
    write_module(tmp_path, "lacks", "from os import no_such_name")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    stderr = epollkit_fails("serve", "--port", "0", name, directory=tmp_path)
    assert one_sentence(stderr).startswith("epollkit serve: " + sentence.format(directory=tmp_path))


def test_a_source_tree_that_was_not_built_says_how_to_build_it(tmp_path):
    """A fresh clone: the Python files are there, the compiled modules are not (-S: nor installed ones)."""
    shutil.copytree(ROOT / "epollkit", tmp_path / "epollkit", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = subprocess.run([sys.executable, "-S", "-c", "import epollkit"], cwd=tmp_path, capture_output=True, text=True,
                          timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"ImportError: epollkit's compiled modules are not here \(epollkit\._\w+\); build them with "
                        r"`pip install -e \.` in the source tree", done.stderr.splitlines()[-1])
    assert done.stderr.count("Traceback") == 1, "a second error beside it"


def test_http_client_of_the_standard_library(tmp_path):
    """A client that nobody here wrote, on one connection."""
    with Served("--port", "0", directory=tmp_path) as served:
        connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=PATIENCE_SECONDS)
        try:
            for method, body in (("GET", None), ("POST", b"x" * 100_000), ("HEAD", None), ("GET", None)):
                connection.request(method, "/", body)
                response = connection.getresponse()
                assert response.status == 200
                assert response.read() == (b"" if method == "HEAD" else b"Hello from epollkit!\n")
        finally:
            connection.close()

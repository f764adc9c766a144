"""`epollkit siege` as processes: they share the work exactly, end together however they end, and leave nothing."""
from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import threading

import psutil
import pytest
from wire import PATIENCE_SECONDS, epollkit_command

from epollkit import LimitReached, Loop
from epollkit.http import Response, listen
from epollkit.siege import Scenario, Siege, SiegeFailed, run
from epollkit.siege.run import BOOT, raise_fd_limit, shares
from epollkit.siege.worker import SPARE_FDS


@contextlib.contextmanager
def running(*arguments, directory, **options):
    """A siege that has told of its first interval."""
    process = subprocess.Popen([*epollkit_command(), "siege", "-v", *arguments], cwd=directory, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if " answered, " in line:
                break
        yield process
    finally:
        process.kill()
        process.communicate()


def workers_of(process):
    return psutil.Process(process.pid).children(recursive=True)


# -- together ----------------------------------------------------------------------------------------------------------


def test_processes_share_the_work_and_their_counts_add_up(served, tmp_path):
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=PATIENCE_SECONDS)
    connection.request("GET", "/seen")
    connection.getresponse().read()
    done = subprocess.run([*epollkit_command(), "siege", "-j", "-q", "-c", "7", "--number", "1001", "--processes", "3",
                           served.url + "/x"], cwd=tmp_path, capture_output=True, timeout=PATIENCE_SECONDS, check=True)
    found = json.loads(done.stdout)
    assert (found["transactions"], found["statuses"], found["connections"]["established"]) == (1001, {"200": 1001}, 7)
    assert found["generator"]["processes"] == 3
    connection.request("GET", "/seen")
    assert len(json.loads(connection.getresponse().read())) == 1001
    connection.close()


def test_there_are_as_many_workers_as_were_asked_for(served, tmp_path):
    with running("-c", "4", "-t", "60S", "--processes", "2", served.url, directory=tmp_path) as process:
        assert len(workers_of(process)) == 2


# -- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_signal_ends_it_with_a_report_and_no_process_left(served, tmp_path, signum, status, processes):
    with running("-c", "4", "-t", "60S", "--processes", processes, served.url, directory=tmp_path) as process:
        workers = workers_of(process)
        assert len(workers) == int(processes)
        process.send_signal(signum)
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == status
        assert int(re.match(r"Transactions:\s+(\d+) hits\n", output)[1]) > 0
        assert not [worker for worker in workers if worker.is_running()]


def test_a_signal_to_all_of_them_as_a_terminal_sends_it_is_the_parents_business(served, tmp_path):
    with running("-c", "4", "-t", "60S", "--processes", "2", served.url, directory=tmp_path,
                 start_new_session=True) as process:
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 130
        assert output.startswith("Transactions:")
        assert "Traceback" not in errors


def test_a_second_signal_does_not_wait_for_a_worker_that_hangs(served, tmp_path):
    with running("-c", "4", "-t", "60S", served.url, directory=tmp_path) as process:
        [worker] = workers_of(process)
        worker.suspend()
        process.send_signal(signal.SIGINT)
        wait_until_asked(worker, process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert (process.returncode, output) == (130, "")
        assert errors.endswith("epollkit siege: stopped before its end; no process is left\n")
        assert not worker.is_running()


def wait_until_asked(worker, process):
    """The command to stop lies in the suspended worker's pipe: the first signal was heard."""
    copy = os.open(f"/proc/{worker.pid}/fd/0", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert select.select([copy], [], [], PATIENCE_SECONDS)[0]
    finally:
        os.close(copy)


def test_a_worker_that_dies_ends_it_with_one_sentence(served, tmp_path):
    with running("-c", "4", "-t", "60S", "--processes", "2", served.url, directory=tmp_path) as process:
        workers = workers_of(process)
        workers[1].kill()
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert (process.returncode, output) == (1, "")
        assert re.fullmatch(r"epollkit siege: the worker process [12] was killed by SIGKILL before it was done",
                            errors.splitlines()[-1])
        assert not [worker for worker in workers if worker.is_running()]


def test_no_worker_outlives_a_parent_that_was_killed(served, tmp_path):
    with running("-c", "4", "-t", "60S", "--processes", "2", served.url, directory=tmp_path) as process:
        workers = workers_of(process)
        process.kill()
        _, alive = psutil.wait_procs(workers, timeout=PATIENCE_SECONDS)
        assert not alive


@pytest.mark.parametrize("told", [False, True])
def test_a_worker_whose_parent_is_gone_before_it_begins_ends(served, told):
    """It has nothing to say yet, so only the end of its stdin can tell it."""
    [(first_user, share)] = shares(Scenario(served.url, users=1, seconds=600))
    host, port = share.targets[0].parsed.host, share.targets[0].parsed.port
    config = {"scenario": share.to_json(), "first_user": first_user, "first_due": 0.0,
              "addresses": [[host, port, [host, port]]]}
    worker = subprocess.Popen([sys.executable, "-c", BOOT.format(path=sys.path)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        if told:
            worker.stdin.write(json.dumps(config).encode() + b"\n")
            worker.stdin.flush()
            assert json.loads(worker.stdout.readline()) == {"ready": True}
        worker.stdin.close()
        assert worker.wait(PATIENCE_SECONDS) == 1
        assert worker.stderr.read() == b""
    finally:
        worker.kill()
        worker.stdin = None
        worker.communicate()


def test_a_reader_that_goes_away_ends_it_quietly(served, tmp_path):
    with running("-c", "2", "-t", "0.5S", served.url, directory=tmp_path) as process:
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(PATIENCE_SECONDS) == 1
        assert all(" answered, " in line for line in errors.splitlines())
        process.stdout = None       # communicate() has nothing to read any more


def test_an_early_signal_ends_it_before_anything_is_asked(tmp_path):
    """While it still waits for somebody to accept: a listener whose backlog is full."""
    with socket.socket() as full, contextlib.ExitStack() as clients:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(2):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        process = subprocess.Popen([*epollkit_command(), "siege", f"http://127.0.0.1:{full.getsockname()[1]}/"],
                                   cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            assert "25 users" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
            process.communicate()
        assert (process.returncode, output) == (130, "")
        assert errors == "epollkit siege: stopped before its end; no process is left\n"


# -- descriptors -------------------------------------------------------------------------------------------------------


def limited(soft, hard):
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_limit_on_descriptors_is_raised_as_far_as_it_is_needed(served, tmp_path):
    done = subprocess.run([*epollkit_command(), "siege", "-j", "-q", "-c", "150", "-r", "1", served.url], cwd=tmp_path,
                          capture_output=True, timeout=PATIENCE_SECONDS, check=True, preexec_fn=limited(64, 400))
    found = json.loads(done.stdout)
    assert (found["transactions"], found["failed"]) == (150, 0)
    assert found["generator"]["fd_limit"] == 150 + SPARE_FDS


def test_too_many_users_for_the_limit_are_told_so(served, tmp_path):
    done = subprocess.run([*epollkit_command(), "siege", "-q", "-c", "150", "-r", "1", served.url], cwd=tmp_path,
                          capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
                          preexec_fn=limited(64, 200))
    assert done.returncode == 1
    assert done.stderr == ("epollkit siege: 150 users (-c) need 214 descriptors in a process, and one may open "
                           "200 here: make it fewer users, or more processes (--processes), or raise the limit "
                           "(ulimit -n)\n")


def test_the_limit_is_never_raised_beyond_what_is_usual(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, resource.RLIM_INFINITY))
    told = []
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: told.append(limits))
    raise_fd_limit(Scenario("a", number=10**6, users=19_000))
    assert told == [(19_064, resource.RLIM_INFINITY)]
    with pytest.raises(LimitReached):
        raise_fd_limit(Scenario("a", number=10**6, users=20_000))
    raise_fd_limit(Scenario("a", number=10**6, users=20_000, processes=2))
    assert told[1:] == [(10_064, resource.RLIM_INFINITY)]


# -- from Python -------------------------------------------------------------------------------------------------------


@pytest.fixture
def here():
    """A server in a thread of this process: its address, and how many requests it had."""
    asked: list[str] = []

    def app(request):
        asked.append(request.target)
        return Response(b"hello")

    ready = threading.Event()
    loops = []

    def serve():
        with Loop() as loop:
            loops.extend((loop, listen(loop, ("127.0.0.1", 0), app)))
            ready.set()
            loop.run()

    thread = threading.Thread(target=serve)
    thread.start()
    ready.wait(PATIENCE_SECONDS)
    host, port = loops[1].address
    yield f"http://{host}:{port}/", asked
    loops[0].call_soon_threadsafe(loops[0].stop)
    thread.join()


def test_run_does_it_in_this_process_and_returns_a_report(here):
    url, asked = here
    report = run(Scenario(url + "x", users=3, repetitions=4, assertions=("failed==0",)))
    assert (report.transactions, report.successful, report.failed, report.held) == (12, 12, 0, True)
    assert report.statuses == {"200": 12}
    assert asked == ["/x"] * 12


def test_run_with_progress_uses_a_process_and_tells_of_each_interval(here):
    url, asked = here
    told = []
    report = run(Scenario(url, users=2, seconds=0.6), on_progress=lambda timeline: told.append(timeline.all[-1].t_s))
    assert report.transactions == len(asked)
    assert len(told) >= 3
    assert told == sorted(told)
    assert sum(row["answered"] for row in report.intervals) == report.transactions


def test_a_siege_can_be_stopped_from_its_progress(here):
    url, _ = here
    siege = Siege(Scenario(url, users=2, seconds=600, processes=2), on_progress=lambda timeline: siege.stop())
    assert siege.play().transactions > 0


def test_a_siege_that_is_stopped_before_it_begins_asks_nothing(here):
    url, asked = here
    siege = Siege(Scenario(url, users=2, seconds=600), on_progress=print)
    siege.stop()
    with pytest.raises(KeyboardInterrupt):
        siege.play()
    assert asked == []


def test_a_siege_that_is_stopped_in_its_warm_up_has_nothing_to_tell(here):
    url, _ = here
    siege = Siege(Scenario(url, users=2, seconds=1, warmup=600), on_progress=print)
    start = siege.start

    def begin(index, config):
        start(index, config)
        siege.workers[0].send = functools.partial(send_and_stop, siege.workers[0].send)

    def send_and_stop(send, **message):
        send(**message)
        if message.get("command") == "go":
            siege.stop()

    siege.start = begin
    with pytest.raises(SiegeFailed, match=r"was over before its warm-up of 600 s, so there is nothing to report$"):
        siege.play()


def test_ctrl_c_leaves_run_with_keyboard_interrupt_and_nothing_open(here):
    url, asked = here

    def interrupt():
        while not asked:
            pass
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(Scenario(url, users=2, seconds=600))
    thread.join()

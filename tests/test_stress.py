"""`python -m stress` as a user meets it, and the scenario that brings the demo's crowd."""
from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path):
    """Where `python -m stress` is run: in the source tree, that would hide the installed package."""
    shutil.copytree(ROOT / "stress", tmp_path / "stress", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.fixture
def stress(folder):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "stress", *arguments], cwd=folder, capture_output=True,
                              text=True, timeout=100, check=False)
    return run


def test_the_stale_storm_holds(stress):
    done = stress("stale_storm", "--seconds", "1.5", "--seed", "7")
    assert done.returncode == 0, done.stderr
    assert "stale_storm (seed 7): held" in done.stdout
    assert "stale events met" in done.stdout


def test_the_stale_storm_would_see_a_server_that_serves_the_wrong_connection():
    """The demo's twin, which is keyed by descriptor, in the place of ours."""
    report, runner, view = (importlib.import_module(f"epollkit.demo.{name}") for name in ("report", "runner", "view"))
    columns = {"naive": report.Column("naive")}
    with view.View(sys.stderr, columns, 1.0) as shown:
        runner.Runner(columns, 1.0, 7, shown).play()
    assert any(found.startswith("wrong deliveries: ") for found in report.failures(columns["naive"]))


def test_the_siege_crash_would_see_a_server_keyed_by_descriptor():
    """Its naive server, judged as if it was ours."""
    sys.path.append(str(ROOT))
    try:
        scenario, options = importlib.import_module("stress.siege_crash"), importlib.import_module("stress.options")
        counts = scenario.one_round(options.Options(seconds=1.5, seed=7), "naive")
    finally:
        sys.path.remove(str(ROOT))
    assert any(found.startswith("double closes: ") for found in scenario.accidents(counts))


def test_a_scenario_that_does_not_exist(stress):
    done = stress("earthquake")
    assert done.returncode == 2
    assert "invalid choice: 'earthquake'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_crowd_that_would_need_too_many_files(stress):
    done = stress("idle_crowd", "--connections", "19001")
    assert done.returncode == 2
    assert "--connections is 1 to 19,000" in done.stderr


@pytest.mark.parametrize("arguments, sentence", [
    (["churn", "--url", "http://127.0.0.1:1/"], "it could not run: the server can't be asked: ConnectionRefusedError"),
    (["churn", "--url", "ftp://127.0.0.1/"], "it could not run: a server's URL is http://HOST:PORT/PATH, not 'ftp"),
    (["churn", "--url", "http://127.0.0.1:99999/"], "it could not run: a server's URL is http://HOST:PORT/PATH, not "),
    (["churn", "--url", "http://[::1"], "it could not run: a server's URL is http://HOST:PORT/PATH, not 'http:"),
    (["churn", "--url", "http://127.0.0.1:1/", "--pid", str(2**31 - 1)], "it could not run: there is no process 2147"),
    (["churn", "--url", "http://127.0.0.1:1/", "--pid", "-5"], "it could not run: there is no process -5 to watch"),
    (["stale_storm", "--url", "http://127.0.0.1:1/"], "it brings its own servers, so --url is not for it"),
])
def test_what_can_not_be_run_is_said_in_a_sentence(stress, arguments, sentence):
    done = stress(*arguments, "--seed", "7")
    assert done.returncode == 1
    assert f"{arguments[0]} (seed 7): {sentence}" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer keeps what was freed")
def test_python_stress_in_the_source_tree_finds_the_installed_package():
    """As tox runs it: the folder by its path."""
    done = subprocess.run([sys.executable, "stress", "churn", "--seconds", "0.3", "--seed", "7", "--probe-p99", "60"],
                          cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert "churn (seed 7): held" in done.stdout, done
    assert done.returncode == 0


@pytest.mark.parametrize("signum, status", [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_it_leaves_nothing_behind(folder, signum, status):
    """Ended in the middle of a run, by Ctrl-C or for no reason: server and crowd are gone, too."""
    with subprocess.Popen([sys.executable, "-m", "stress", "slowloris", "--seconds", "1000", "--seed", "7"], cwd=folder,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("slowloris: 1000 s, server at 127.0.0.1:")
        children = psutil.Process(process.pid).children()
        assert len(children) == 2
        process.send_signal(signum)
        process.communicate(timeout=60)
        assert process.returncode == status
    assert psutil.wait_procs(children, timeout=60)[1] == []

"""The programs under tests/, asked for what they can't do: a sentence and status 2, and nothing is done."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import epollkit

TESTS = Path(__file__).resolve().parent
RELEASE = epollkit.build_info()["build"] == "release"
WRONG = [
    ("explore", ["--seconds", "0"], "--seconds is more than 0"),
    ("explore", ["--depth", "251"], "--depth is more than 0, and at most 250"),
    ("explore", ["--bits", "33"], "--bits is more than 0, and at most 32"),
    ("explore", ["--jobs", "0"], "--jobs is more than 0"),
    ("explore", ["--replay", "1,x"], "argument --replay"),
    ("faults", ["--jobs", "0"], "--jobs is a number from 1 on"),
    ("fuzz", ["nothing"], "invalid choice: 'nothing'"),
    ("memcheck", [], "required: directory"),
    ("memcheck", ["--bogus"], "required: directory"),
    ("memcheck", ["--bogus", "new"], "unrecognized arguments: --bogus"),
    ("memcheck", ["."], "it would be removed"),
]


def asked(tool, arguments, directory):
    done = subprocess.run([sys.executable, str(TESTS / tool), *arguments], cwd=directory, capture_output=True,
                          text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode == 2
    return done.stderr


@pytest.mark.parametrize(("tool", "arguments", "sentence"), WRONG, ids=lambda value: "".join(value))
def test_wrong_arguments(tmp_path, tool, arguments, sentence):
    (tmp_path / "mine").touch()
    if RELEASE and tool == "explore":
        sentence = "needs the debug build"
    assert sentence in asked(tool, arguments, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.skipif(hasattr(sys, "gettotalrefcount"), reason="this interpreter counts references")
def test_an_interpreter_that_does_not_count(tmp_path):
    sentence = "needs the debug build" if RELEASE else "does not count references"
    assert sentence in asked("refleaks", [], tmp_path)

"""The scenarios of stress/, each for a moment, against the installed package."""
from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def stress(tmp_path):
    """`python -m stress` from a folder of its own: the source tree would hide the installed package."""
    shutil.copytree(ROOT / "stress", tmp_path / "stress", ignore=shutil.ignore_patterns("__pycache__"))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "stress", *arguments], cwd=tmp_path, capture_output=True,
                              text=True, timeout=100, check=False)
    return run


def test_the_stale_storm_holds(stress):
    done = stress("stale_storm", "--seconds", "1.5", "--seed", "7")
    assert done.returncode == 0, done.stderr
    assert "stale_storm (seed 7): held" in done.stdout
    assert "stale events met" in done.stdout


def test_a_scenario_that_does_not_exist(stress):
    done = stress("earthquake")
    assert done.returncode == 2
    assert "invalid choice: 'earthquake'" in done.stderr
    assert "Traceback" not in done.stderr

"""Which package and which build the suite runs against."""
from __future__ import annotations

import os
from pathlib import Path

import epollkit

ROOT = Path(__file__).resolve().parent.parent


def test_the_build_is_the_one_that_was_asked_for():
    asked = os.environ.get("EPOLLKIT_EXPECT_BUILD")
    assert epollkit.build_info()["build"] == (asked or epollkit.build_info()["build"])
    assert epollkit.build_info()["build"] in ("release", "debug")


def test_the_installed_package_is_what_is_tested():
    """Not the source tree, unless it was installed in place (`pip install -e .`)."""
    where = Path(epollkit.__file__).resolve().parent
    in_place = where == ROOT / "epollkit"
    assert os.environ.get("EPOLLKIT_EXPECT_BUILD") is None or not in_place
    assert list(where.glob("_core.*.so"))

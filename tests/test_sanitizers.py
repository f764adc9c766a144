"""What the sanitizers of `tox -e asan` must see: each kind of misuse, committed by a child process, is reported."""
from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from batches import PATIENCE_SECONDS, settle

import epollkit
from epollkit import IN

pytestmark = pytest.mark.debug_build

# A slot that was live and is free again, a live one, and a stream that has had its bytes.
PROGRAM = """
import os, sys, epollkit
from epollkit import _debug
loop = epollkit.Loop()
event = os.eventfd(0)
token = loop.register(event, epollkit.IN, print)
free = token.index
loop.unregister(token)
if sys.argv[1] == "slot":
    print(_debug.touch(loop, sys.argv[2], free))
elif sys.argv[1] == "fresh":
    print(_debug.touch(loop, sys.argv[2], free + 1))
elif sys.argv[1] == "buffer":
    print(_debug.touch(loop, sys.argv[2], 0))
else:
    print(_debug.misuse(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
print("survived", flush=True)
os._exit(0)
"""


@pytest.fixture
def commit():
    """Runs PROGRAM: what it prints, and what is reported."""
    from epollkit import _debug

    if not _debug.sanitized():
        pytest.skip("only a build for the sanitizers shows this: tox -e asan")
    options = {"ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":log_path=stderr"}     # not to where reports count

    def run(*arguments: str) -> tuple[str, str]:
        done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, cwd="/",
                              env={**os.environ, **options}, timeout=PATIENCE_SECONDS, check=False)
        assert (done.returncode == 0) == ("survived" in done.stdout), done.stderr
        return done.stdout, done.stderr

    return run


@pytest.mark.parametrize("field", ["fd", "previous", "registered_batch", "pending", "events", "timer"])
def test_who_touches_a_free_slot_is_seen(commit, field):
    """`fd` is half of the sanitizer's granule of eight bytes, and has no name of its own in a report."""
    out, report = commit("slot", field)
    assert "survived" not in out
    assert "AddressSanitizer: " + ("unknown-crash" if field == "fd" else "use-after-poison") in report
    assert re.search(r"#0 .*touch", report)


@pytest.mark.parametrize("field", ["generation", "endpoint", "next", "released_batch", "released_generation", "flags"])
def test_what_tells_that_a_slot_is_free_may_be_read(commit, field):
    assert "survived" in commit("slot", field)[0]


@pytest.mark.parametrize("field", ["generation", "endpoint", "flags"])
def test_a_slot_that_was_never_taken_is_nobodys(commit, field):
    """Not even its generation means anything."""
    out, report = commit("fresh", field)
    assert "survived" not in out
    assert "use-after-poison" in report


@pytest.mark.parametrize("buffer", ["input", "scratch"])
def test_a_buffer_between_two_upcalls_is_nobodys(commit, buffer):
    out, report = commit("buffer", buffer)
    assert "survived" not in out
    assert "use-after-poison" in report


@pytest.mark.parametrize(("arguments", "why"), [
    (("overflow", "2147483647", "0"), "signed integer overflow"),
    (("shift", "32", "0"), "shift exponent 32 is too large"),
    (("bounds", "4", "0"), "index 4 out of bounds|stack-buffer-overflow"),
    (("cast", "0", "1e10"), "is outside the range of representable values"),
])
def test_what_c_does_not_define_is_seen(commit, arguments, why):
    what, number, fraction = arguments
    assert "survived" in commit(what, "1", "1")[0]
    out, report = commit(what, number, fraction)
    assert "survived" not in out
    assert any(words in report for words in why.split("|")), report


def test_looking_at_a_free_slot_leaves_it_watched(commit, loop, stage):
    """`slot_fields` reads all of it, as tests must, and puts the poison back; the next owner may touch everything."""
    from epollkit import _debug

    event = stage.event()
    token = loop.register(event, IN, print)
    loop.unregister(token)
    assert _debug.slot_fields(loop, token.index)["fd"] == -1
    again = loop.register(event, IN, lambda *_: None)
    assert again.index == token.index
    assert _debug.slot_fields(loop, token.index)["fd"] == event.fd
    for field in ("fd", "previous", "registered_batch", "pending", "events", "timer"):
        _debug.touch(loop, field, again.index)
    event.fire()
    settle(loop)
    loop.unregister(again)


def test_the_build_says_whether_it_is_watched():
    from epollkit import _debug

    assert _debug.sanitized() == ("libasan" in os.environ.get("LD_PRELOAD", ""))
    assert epollkit.build_info()["build"] == "debug"

"""Instructions in user space, counted by valgrind's callgrind. It slows a program down some thirty times, changes
nothing in what it executes, and gives the same count again within a percent, whatever else the machine does.

What a program needs to start and to end is in every count; two runs of different length and their difference have none
of it. The kernel's instructions are not seen.
"""
from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from . import servers

TOTAL = re.compile(r"^(?:summary|totals): (\d+)$", re.MULTILINE)
SAME_HASHES = "PYTHONHASHSEED=0"        # or Python takes other ways through its dicts in every run
RUN_SECONDS = 300


def missing() -> str | None:
    """Why nothing can be counted, or None."""
    return None if servers.find_program("valgrind") else "valgrind is not installed (Debian: apt-get install valgrind)"


def prefix(output: Path) -> list[str]:
    """What to put before a command, so that it is counted. Its children are not."""
    return ["env", SAME_HASHES, servers.find_program("valgrind") or "valgrind", "-q", "--tool=callgrind",
            f"--callgrind-out-file={output}"]


def parse_total(text: str) -> int:
    """Instructions in all, of callgrind's output file."""
    found = TOTAL.search(text)
    if found is None:
        raise servers.BenchError(f"callgrind wrote no total: {text.strip()[-200:]!r}")
    return int(found.group(1))


def read_total(output: Path) -> int:
    """What was counted, once the program has ended."""
    if not output.exists():
        raise servers.BenchError("callgrind wrote nothing: the program did not end by itself")
    return parse_total(output.read_text())


def count(command: Sequence[str], output: Path, core: int | None = None, **environment: str) -> tuple[int, str]:
    """Run a program to its end: (its instructions, what it printed)."""
    output.unlink(missing_ok=True)
    process = servers.start_process(
        [*prefix(output), *command], core, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, **environment})
    try:
        printed, complaints = process.communicate(timeout=RUN_SECONDS)
    finally:
        servers.end_process(process)
    if process.returncode:
        raise servers.BenchError(f"under valgrind, {command[0]} failed: {complaints.strip()[-200:]}")
    return read_total(output), printed

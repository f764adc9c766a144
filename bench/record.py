"""What it costs to record a latency: instructions of `buckets_record`, which the load engine has inlined.

A scratch module is compiled against the installed `_histogram.pxd` with the release build's flags. It records times of
every size from a microsecond to a minute, one after the other; the loop around is in the figure.
"""
from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from . import callgrind, servers

INSTRUCTIONS_AT_MOST = 40
LATENCIES = (10_000, 1_010_000)     # a short and a long run
MODULE = "bench_record"
SOURCE = """
# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
from libc.stdint cimport uint64_t
from epollkit._histogram cimport Buckets, buckets_count, buckets_free, buckets_init, buckets_record

def run(uint64_t latencies):
    cdef Buckets buckets
    cdef uint64_t i, time_ns = 1000
    if buckets_init(&buckets):
        raise MemoryError()
    for i in range(latencies):
        buckets_record(&buckets, time_ns)
        time_ns += time_ns >> 4
        if time_ns >> 36:
            time_ns = 1000
    count = buckets_count(&buckets)
    buckets_free(&buckets)
    return count
"""


@dataclass(frozen=True)
class Record:
    """Instructions for each latency."""

    latencies: int
    per_latency: float

    @property
    def verdict(self) -> str:
        """Counted, so there is nothing to doubt."""
        return "met" if self.per_latency <= INSTRUCTIONS_AT_MOST else "missed"


def build(directory: Path) -> None:
    """Compile it there."""
    spec = importlib.util.find_spec("epollkit")
    directory.mkdir()
    (directory / "epollkit").symlink_to(spec.submodule_search_locations[0])     # Cython asks no import hook for a .pxd
    (directory / f"{MODULE}.pyx").write_text(SOURCE)
    done = subprocess.run([sys.executable, "-m", "Cython.Build.Cythonize", "-i", f"{MODULE}.pyx"], cwd=directory,
                          env={**os.environ, "CFLAGS": "-O3 -g0"}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise servers.BenchError(f"{MODULE} was not built: {(done.stderr + done.stdout).strip()[-400:]}")


def run_once(directory: Path, latencies: int, workshop: servers.Workshop) -> int:
    """Instructions of one run, which must have recorded all of them."""
    script = directory / "run.py"               # beside the module: -c would look into the source tree first
    script.write_text(f"import sys, {MODULE}\nprint({MODULE}.run(int(sys.argv[1])))\n")
    command = [sys.executable, str(script), str(latencies)]
    total, printed = callgrind.count(command, workshop.path / "callgrind.record", workshop.server_core)
    if int(printed) != latencies:
        raise servers.BenchError(f"{printed.strip()} latencies of {latencies} were recorded")
    return total


def measure_record(workshop: servers.Workshop) -> Record:
    """Build it; two runs and their difference."""
    directory = workshop.path / "record"
    build(directory)
    short, long = (run_once(directory, each, workshop) for each in LATENCIES)
    return Record(LATENCIES[1] - LATENCIES[0], (long - short) / (LATENCIES[1] - LATENCIES[0]))

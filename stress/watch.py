"""Descriptors, memory, threads and CPU of a server, its worker processes included. Is it back where it was?"""
from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import NamedTuple

import psutil

REST_WINDOW_SECONDS = 0.15
BASELINE_SAMPLES = 3
BASELINE_SECONDS = 0.02
REST_CPU = 0.2              # of a core: at rest it may do housekeeping; a loop that spins takes all it can get
MIB = 1 << 20


class Sample(NamedTuple):
    """What a server holds at a time."""

    seconds: float          # time.monotonic()
    fds: int
    rss_bytes: int
    threads: int
    cpu_seconds: float      # since it was started
    wanted_seconds: float   # of CPU, of its threads that live: used or waited for, so a busy machine hides no spinning


class Watch:
    """Looks at a process and all below it.

    Args:
        pid: of the server; of its master, where it has workers.
    """

    def __init__(self, pid: int) -> None:
        self.process = psutil.Process(pid)
        self.children = self.process.children(recursive=True)

    def sample(self) -> Sample | None:
        """None: it is gone. Its CPU time stays what it used, whoever of its children has ended."""
        fds = rss_bytes = threads = 0
        cpu_seconds = 0.0
        try:
            for process in (self.process, *self.children):
                with process.oneshot():
                    if process.status() == psutil.STATUS_ZOMBIE:
                        return None
                    fds += process.num_fds()
                    rss_bytes += process.memory_info().rss
                    threads += process.num_threads()
                    times = process.cpu_times()
                    cpu_seconds += times.user + times.system
        except psutil.NoSuchProcess:
            return None
        wanted_seconds = sum(wanted(process.pid) for process in (self.process, *self.children))
        return Sample(time.monotonic(), fds, rss_bytes, threads, cpu_seconds, wanted_seconds)


def wanted(pid: int) -> float:
    """Seconds on a CPU and in the queue for one (/proc/PID/task/*/schedstat); 0 where the kernel does not count."""
    nanoseconds = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError):
            used, waited, _ = path.read_text().split()
            nanoseconds += int(used) + int(waited)
    return nanoseconds / 1e9


def cpu_share(before: Sample, after: Sample) -> float:
    """Of a core, used or waited for between the two."""
    used = max(after.cpu_seconds - before.cpu_seconds, after.wanted_seconds - before.wanted_seconds)
    return used / max(after.seconds - before.seconds, 1e-6)


def baseline(watch: Watch) -> Sample | None:
    """What it holds before anything happens, with what it is just about to close closed. None: it is gone."""
    found = []
    for _ in range(BASELINE_SAMPLES):
        time.sleep(BASELINE_SECONDS)
        found.append(watch.sample())
    samples = [sample for sample in found if sample is not None]
    return min(samples, key=lambda sample: sample.fds) if len(samples) == len(found) else None


class Rest(NamedTuple):
    """A server after the crowd has left."""

    sample: Sample | None
    cpu: float
    failures: list[str]


def not_back(before: Sample, now: Sample, cpu: float, growth_bytes: int) -> list[str]:
    """What is not where it was."""
    found = []
    if now.fds > before.fds:
        found.append(f"descriptors are not back at {before.fds}: {now.fds}")
    if now.threads > before.threads:
        found.append(f"threads are not back at {before.threads}: {now.threads}")
    if now.rss_bytes > before.rss_bytes + growth_bytes:
        found.append(f"memory grew by {(now.rss_bytes - before.rss_bytes) / MIB:.1f} MiB and stays, "
                     f"more than {growth_bytes / MIB:.0f}")
    if cpu > REST_CPU:
        found.append(f"it does not come to rest: {cpu:.0%} of a core")
    return found


def wait_for_rest(watch: Watch, before: Sample, growth_bytes: int, patience_seconds: float) -> Rest:
    """Until everything is back at the baseline, or the patience is over."""
    deadline = time.monotonic() + patience_seconds
    earlier = watch.sample()
    while True:
        time.sleep(REST_WINDOW_SECONDS)
        now = watch.sample()
        if earlier is None or now is None:
            return Rest(None, 0.0, [])      # that it is gone, whoever knows the process says
        cpu = cpu_share(earlier, now)
        found = not_back(before, now, cpu, growth_bytes)
        if not found or time.monotonic() > deadline:
            return Rest(now, cpu, found)
        earlier = now


def listening_pid(port: int) -> int | None:
    """Who listens on a port here; of several, the oldest. None: nobody whom we may see."""
    try:
        found = {one.pid for one in psutil.net_connections("tcp")
                 if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid}
    except psutil.AccessDenied:
        return None
    return min(found, default=None)

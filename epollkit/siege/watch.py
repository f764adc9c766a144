"""The server under siege, seen from outside: `--pid`."""
from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import psutil

from epollkit.errors import UsageError

Sample = dict[str, Any]     # cpu_percent, rss_bytes, fds, threads; fds is None where that is not for us to know

SHORTEST_SECONDS = 0.05     # between two looks: CPU time is counted in hundredths of a second
FAMILY_SECONDS = 1.0        # children are looked for so often: it means reading all of /proc


class Watch:
    """CPU, memory, descriptors and threads of a process and all its children, added up.

    UsageError: there is no such process. One that ends while it is watched is noted, and that is all.
    """

    def __init__(self, pid: int) -> None:
        try:
            self.process = psutil.Process(pid)
            self.family = [self.process, *self.process.children(recursive=True)]
            self.cpu_by_process = {self.process: self.cpu_of(self.process)}
        except (psutil.NoSuchProcess, ValueError, OverflowError):
            raise UsageError(f"there is no process {pid} to watch") from None
        except psutil.AccessDenied:
            raise UsageError(f"process {pid} is not ours to watch") from None
        for child in self.family[1:]:
            try:
                self.cpu_by_process[child] = self.cpu_of(child)
            except psutil.NoSuchProcess:
                pass
        self.pid = pid
        self.samples: list[Sample] = []
        self.used_s = 0.0
        self.began = self.sampled = time.monotonic()
        self.family_due = self.began + FAMILY_SECONDS
        self.ended_after_s: float | None = None

    @staticmethod
    def cpu_of(process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    def find_family(self, now: float) -> None:
        if now >= self.family_due:
            self.family_due = now + FAMILY_SECONDS
            self.family = [self.process, *self.process.children(recursive=True)]

    def sample(self) -> Sample | None:
        """What it uses now; cpu_percent is of one core, since the last look. None: it is gone."""
        now = time.monotonic()
        if self.samples and now - self.sampled < SHORTEST_SECONDS and self.ended_after_s is None:
            return self.samples[-1]
        try:
            alive = self.ended_after_s is None and self.process.is_running()     # and nobody else has its pid now
            if alive and self.process.status() != psutil.STATUS_ZOMBIE:
                self.find_family(now)
                return self.look(now)
        except psutil.NoSuchProcess:
            pass
        if self.ended_after_s is None:
            self.ended_after_s = now - self.began
        return None

    def look(self, now: float) -> Sample:
        used = 0.0
        sums: dict[str, int | None] = {"rss_bytes": 0, "fds": 0, "threads": 0}
        for member in self.family:
            try:
                with member.oneshot():
                    cpu = self.cpu_of(member)
                    seen = {"rss_bytes": member.memory_info().rss, "threads": member.num_threads()}
            except psutil.NoSuchProcess:
                if member == self.process:
                    raise
                continue        # a child that ended: what it used since the last look is lost
            used += cpu - self.cpu_by_process.get(member, 0.0)
            self.cpu_by_process[member] = cpu
            for name, number in seen.items():
                sums[name] = (sums[name] or 0) + number
            fds = self.fds_of(member)
            sums["fds"] = None if fds is None or sums["fds"] is None else sums["fds"] + fds
        self.used_s += max(0.0, used)
        seconds, self.sampled = max(now - self.sampled, 1e-6), now
        sample: Sample = {"cpu_percent": round(100.0 * max(0.0, used) / seconds, 1), **sums}
        self.samples.append(sample)
        return sample

    @staticmethod
    def fds_of(process: psutil.Process) -> int | None:
        try:
            return int(process.num_fds())
        except psutil.AccessDenied:
            return None
        except psutil.NoSuchProcess:
            return 0

    def summary(self) -> dict[str, Any]:
        """For the report."""
        cpu = [sample["cpu_percent"] for sample in self.samples]
        mean = 100.0 * self.used_s / (self.sampled - self.began) if cpu else None
        return {"pid": self.pid, "ended_after_s": self.ended_after_s,
                "cpu_percent": {"mean": mean, "max": max(cpu, default=None)},
                **{name: course([sample[name] for sample in self.samples])
                   for name in ("rss_bytes", "fds", "threads")}}


def course(values: Sequence[int | None]) -> dict[str, int | None]:
    """The first, the last and the largest of those that are known."""
    known = [value for value in values if value is not None]
    if not known:
        return {"first": None, "last": None, "max": None}
    return {"first": known[0], "last": known[-1], "max": max(known)}

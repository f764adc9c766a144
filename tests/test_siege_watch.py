"""What is seen from outside: the server's process, and how much of the machine is left."""
from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from epollkit import UsageError
from epollkit.siege import ports, watch
from epollkit.siege.watch import Watch

# Does what it is told on stdin, a line of Python at a time, and says when it is done.
OBEDIENT = "import sys, os, subprocess\nfor line in sys.stdin:\n    exec(line)\n    print('done', flush=True)"


class Obedient:
    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", OBEDIENT], text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)
        self.pid = self.process.pid

    def do(self, code: str) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(code + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def server() -> Iterator[Obedient]:
    made = Obedient()
    made.do("pass")
    yield made
    made.end()


@pytest.fixture(autouse=True)
def always_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FAMILY_SECONDS", 0.0)
    monkeypatch.setattr(watch, "SHORTEST_SECONDS", 0.0)


class TestWatch:
    def test_descriptors_threads_and_memory(self, server: Obedient):
        watched = Watch(server.pid)
        first = watched.sample()
        server.do("kept = [open('/dev/null') for _ in range(50)], bytearray(50_000_000)")
        second = watched.sample()
        server.do("kept = None")
        third = watched.sample()
        assert first and second and third
        assert second["fds"] == first["fds"] + 50
        assert second["rss_bytes"] >= first["rss_bytes"] + 50_000_000
        assert third["fds"] == first["fds"]
        assert third["threads"] == first["threads"] == 1
        found = watched.summary()
        assert (found["pid"], found["ended_after_s"]) == (server.pid, None)
        assert found["fds"] == {"first": first["fds"], "last": first["fds"], "max": second["fds"]}

    def test_cpu_is_what_was_used_since_the_last_look(self, server: Obedient):
        burn = "t = os.times().user\nwhile os.times().user < t + 0.2: pass"
        server.do(f"exec({burn!r})")            # before it was watched: nobody's business
        watched = Watch(server.pid)
        assert watched.sample()
        assert watched.used_s < 0.1
        server.do(f"exec({burn!r})")
        second = watched.sample()
        assert second and second["cpu_percent"] > 0.0
        assert watched.used_s > 0.15
        cpu = watched.summary()["cpu_percent"]
        assert cpu["max"] == max(sample["cpu_percent"] for sample in watched.samples)
        assert cpu["mean"] == pytest.approx(100 * watched.used_s / (watched.sampled - watched.began))

    def test_what_a_child_used_before_is_nobody_s_business(self, server: Obedient):
        burn = "import os, sys\nwhile os.times().user < 0.2: pass\nprint(flush=True)\nsys.stdin.read()"
        server.do(f"child = subprocess.Popen([sys.executable, '-c', {burn!r}], stdin=subprocess.PIPE, "
                  "stdout=subprocess.PIPE); child.stdout.readline()")
        watched = Watch(server.pid)
        assert watched.sample()
        server.do("child.communicate()")
        assert watched.used_s < 0.1

    def test_a_second_look_at_once_is_the_first(self, server: Obedient, monkeypatch: pytest.MonkeyPatch):
        """In a thousandth of a second the clock of CPU time does not move, or jumps by ten."""
        monkeypatch.setattr(watch, "SHORTEST_SECONDS", 3600.0)
        watched = Watch(server.pid)
        first = watched.sample()
        server.do("kept = open('/dev/null')")
        assert watched.sample() is first
        assert len(watched.samples) == 1

    def test_children_are_of_the_family(self, server: Obedient):
        server.do("def child(): return subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'], "
                  "stdin=subprocess.PIPE)")
        server.do("one = child()")
        watched = Watch(server.pid)             # already has one
        first = watched.sample()
        server.do("two = child()")
        second = watched.sample()
        server.do("one.communicate(), two.communicate()")
        third = watched.sample()
        assert first and second and third
        assert (first["threads"], second["threads"], third["threads"]) == (2, 3, 1)
        assert second["fds"] > first["fds"] > third["fds"]

    def test_its_end_is_noted(self, server: Obedient):
        watched = Watch(server.pid)
        assert watched.sample()
        server.process.kill()
        server.process.wait()
        assert watched.sample() is None
        ended = watched.summary()["ended_after_s"]
        assert ended is not None and ended >= 0.0
        assert watched.sample() is None
        assert watched.summary()["ended_after_s"] == ended
        assert watched.summary()["fds"]["max"] is not None

    def test_a_zombie_has_ended(self, server: Obedient):
        """Whoever started it has not asked for its status yet."""
        watched = Watch(server.pid)
        server.process.kill()
        while psutil.Process(server.pid).status() != psutil.STATUS_ZOMBIE:
            pass
        assert watched.sample() is None
        assert watched.summary()["cpu_percent"] == {"mean": None, "max": None}
        assert watched.summary()["rss_bytes"] == {"first": None, "last": None, "max": None}

    def test_descriptors_that_are_not_ours_to_count(self, server: Obedient, monkeypatch: pytest.MonkeyPatch):
        def refuse(process: psutil.Process) -> int:
            raise psutil.AccessDenied(process.pid)

        monkeypatch.setattr(psutil.Process, "num_fds", refuse)
        watched = Watch(server.pid)
        seen = watched.sample()
        assert seen and seen["fds"] is None and seen["rss_bytes"] > 0
        assert watched.summary()["fds"] == {"first": None, "last": None, "max": None}

    @pytest.mark.parametrize("pid", [-1, 2**22 + 1, 2**40])
    def test_no_such_process(self, pid: int):
        with pytest.raises(UsageError, match=f"there is no process {pid} to watch"):
            Watch(pid)


class TestPorts:
    @pytest.mark.parametrize(("bounds", "reserved", "free"), [
        ("32768\t60999\n", "\n", 28232), ("1024 1033", "1024,1030-1032", 6), ("1024 1033", "1-1023,1033-2000", 9),
        ("1024 1033", "1-5000", 0), ("no numbers", "", 0)])
    def test_what_the_kernel_gives_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounds: str,
                                       reserved: str, free: int):
        (tmp_path / "ip_local_port_range").write_text(bounds)
        (tmp_path / "ip_local_reserved_ports").write_text(reserved)
        monkeypatch.setattr(ports, "SYSTEM", tmp_path)
        assert ports.local_ports() == free

    def test_nobody_says(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(ports, "SYSTEM", tmp_path)
        monkeypatch.setattr(ports, "SOCKETS", tmp_path / "sockstat")
        assert (ports.local_ports(), ports.in_time_wait()) == (0, 0)

    def test_this_machine(self):
        assert 0 < ports.local_ports() < 65536
        assert ports.in_time_wait() >= 0
        assert ports.fd_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def test_time_wait(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        (tmp_path / "sockstat").write_text("sockets: used 20\nTCP: inuse 2 orphan 0 tw 6696 alloc 3 mem 197\n")
        monkeypatch.setattr(ports, "SOCKETS", tmp_path / "sockstat")
        assert ports.in_time_wait() == 6696

    def test_what_a_run_took(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(ports, "local_ports", lambda: 1000)
        waiting = iter([50, 80, 20, 0, 10])
        monkeypatch.setattr(ports, "in_time_wait", lambda: next(waiting))
        room = ports.HeadRoom(["127.0.0.2", "127.0.0.3"], 3)
        assert room.available == 6000
        assert room.used(8) == 38
        assert room.used(8) == 8        # others' connections came to their end meanwhile
        unix = ports.HeadRoom((), 0)
        assert (unix.available, unix.used(8)) == (0, 0)

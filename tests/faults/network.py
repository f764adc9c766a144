"""What a network does: connections are killed (`ss -K`), packets are dropped (nftables). `python network.py kill|drop`,
in a network namespace of its own: nobody else's connections are there.

Prints a line of JSON for each scene: how many connections were killed, or packets dropped, and what was wrong.
"""
from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clients import BIG, Clients, Subject, Talk, TooLate, Wrong, get, post
from matrix import judged

SECONDS = 90.0          # for a scene, which takes two
PATIENCE = 20.0
LOSSY_LIMITS = {"FAULTS_SECONDS": "10", "FAULTS_CONNECT": "20"}      # a RST that is lost is not sent again
LIMIT = {"FAULTS_SECONDS": "1"}     # every time limit of the server
NO_LIMIT = {"FAULTS_SECONDS": "60"}     # longer than it is waited for the end of who was killed

Scene = Callable[["Lab"], None]


def run(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Wrong(f"{command[0]}: {done.stderr.strip() or done.returncode}")
    return done.stdout


class Lab:
    """The program, its clients, and what is done to the network between them."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.clients = Clients(subject, PATIENCE)
        self.struck = 0
        self.listening = True

    def kill(self, where: str, state: str = "connected") -> None:
        """Every TCP socket in that state with these ports, "sport = :80 and dport = :5000"."""
        killed = run("ss", "-K", "-H", "-t", "-n", "state", state, f"( {where} )").count("\n")
        if not killed:
            raise Wrong(f"ss -K has killed nothing of {where}")
        self.struck += killed

    @contextlib.contextmanager
    def rule(self, text: str) -> Iterator[None]:
        """So long; something must have met it."""
        run("nft", f"add rule inet faults input {text}")
        try:
            yield
        finally:
            found = run("nft", "list", "chain", "inet", "faults", "input")
            run("nft", "flush chain inet faults input")
            self.struck += sum(map(int, re.findall(r"counter packets (\d+)", found)))

    def over(self, talk: Talk) -> None:
        """It has ended, in whatever way; what comes before that is thrown away."""
        with contextlib.suppress(ConnectionError):
            while talk.more():
                pass

    def empty(self) -> dict[str, Any]:
        """Nothing is left of any connection. What the program has counted."""
        counts = self.subject.ask("count")
        if counts["fds"] or counts["live"] or counts["timers"] or counts["wrong"] or counts["lost"]:
            raise Wrong(f"left: {counts}")
        return counts


# -- conversations that are cut off ------------------------------------------------------------------------------------

SAID = {                                # what the client has said by then
    "idle": ("http", get()),
    "head_begun": ("http", get()[:-5]),
    "body_begun": ("http", post(BIG)[:100_000]),
    "answer_under_way": ("http", get("/big") * 2),
    "frame_begun": ("echo", b"echo 5000\nhello"),
    "output_under_way": ("echo", b"big\nfile\nbig\n"),
    "half_closed": ("echo", b"bye\n"),
}


# Whose end is killed, and what the server's is told.
KILLED = {"server": "ConnectionAbortedError(ECONNABORTED)", "client": "ConnectionResetError(ECONNRESET)"}


@contextlib.contextmanager
def said(lab: Lab, stage: str) -> Iterator[Talk]:
    """A client that has said that, and the server has come so far."""
    name, data = SAID[stage]
    with lab.clients.talk(name, 4096) as talk:
        talk.send(data)
        if stage == "idle":
            talk.expect_answer(b"Hello")
        elif stage.endswith(("under_way", "closed")):
            talk.take(3)
        lab.clients.next_ones()
        yield talk


def killed(stage: str, end: str) -> Scene:
    def scene(lab: Lab) -> None:
        with said(lab, stage) as talk:
            ours, theirs = talk.sock.getsockname()[1], talk.sock.getpeername()[1]
            lab.kill(f"sport = :{theirs} and dport = :{ours}" if end == "server" else
                     f"sport = :{ours} and dport = :{theirs}")
            lab.over(talk)
        broken = lab.empty()["broken"]
        if SAID[stage][0] == "echo" and broken != [KILLED[end]]:
            raise Wrong(f"the server's stream was told {broken}")
    scene.__name__ = f"{stage}:{end}"
    return scene


def silent(stage: str, what: str) -> Scene:
    """From some moment on nothing arrives, in either direction: the server's own limits end it."""
    def scene(lab: Lab) -> None:
        with said(lab, stage) as talk:
            port = talk.sock.getsockname()[1]
            with lab.rule(f"tcp sport {port} counter {what}"), lab.rule(f"tcp dport {port} counter {what}"):
                with contextlib.suppress(OSError):
                    talk.sock.setblocking(False)
                    talk.sock.send(b"GET")
                    lab.clients.next_ones()
                    talk.sock.recv(1 << 20)
                lab.empty()
    scene.__name__ = f"{stage}:{what.split()[0]}"
    return scene


# -- the program as a client -------------------------------------------------------------------------------------------

def pool(lab: Lab) -> None:
    """Idle connections of a pool, one end and then the other; it is asked again each time."""
    for port in ("sport", "dport"):
        lab.clients.used()
        lab.kill(f"{port} = :{lab.clients.where['echo'][1]}")
        lab.clients.used()
    lab.empty()


def connecting(lab: Lab) -> None:
    """A socket in SYN-SENT: the backlog that it goes to is full."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with Talk(full.getsockname(), PATIENCE):
            lab.subject.tell("dial", full.getsockname()[1])
            lab.clients.next_ones()
            lab.kill(f"dport = :{full.getsockname()[1]}", "syn-sent")
            expect_dialled(lab, "lost: ConnectError(ECONNABORTED)")
    lab.empty()


def listener(lab: Lab) -> None:
    """It ends, and is reported once; the others go on."""
    lab.kill(f"sport = :{lab.clients.where['http'][1]}", "listening")
    for _ in range(2):
        with lab.clients.talk("echo") as talk:
            lab.clients.one_echo(talk)
    counts = lab.subject.ask("count", 1)
    if (counts["live"], counts["timers"], counts["lost"]) != (0, 0, 0):
        raise Wrong(f"left: {counts}")
    lab.listening = False


def expect_dialled(lab: Lab, *wanted: str) -> None:
    found = lab.subject.hear()["dialled"]
    if found not in wanted:
        raise Wrong(f"connect: {found}, not {' or '.join(wanted)}")


def connect(what: str, *wanted: str) -> Scene:
    def scene(lab: Lab) -> None:
        port = lab.clients.where["echo"][1]
        with lab.rule(f"tcp dport {port} counter {what}"):
            lab.subject.tell("dial", port)
            expect_dialled(lab, *wanted)
        lab.empty()
    scene.__name__ = f"connect:{what.replace(' ', '_')}"
    return scene


def lossy(percent: int) -> Scene:
    """Each packet is lost with that probability, and every conversation is whole all the same."""
    def scene(lab: Lab) -> None:
        with lab.rule(f"meta l4proto tcp numgen random mod 100 < {percent} counter drop"):
            lab.clients.play()
        lab.empty()
    scene.__name__ = f"lossy:{percent}"
    return scene


KILL = [*(killed(stage, end) for stage in SAID for end in ("server", "client")), pool, connecting, listener]
DROP = [*(silent(stage, "drop") for stage in SAID), silent("answer_under_way", "reject with tcp reset"),
        connect("drop", "lost: ConnectError(ETIMEDOUT)"),
        connect("reject with tcp reset", "lost: ConnectError(ECONNREFUSED)"),
        connect("reject with icmp type host-unreachable", "lost: ConnectError(EHOSTUNREACH)"),
        lossy(2), lossy(5)]


def played(scene: Scene) -> tuple[int, list[str]]:
    limits = NO_LIMIT if scene in KILL else LOSSY_LIMITS if scene.__name__.startswith("lossy") else LIMIT
    problems: list[str] = []
    end: dict[str, Any] = {}
    lab = None
    with tempfile.TemporaryDirectory() as name, Subject(Path(name), environment=limits, seconds=SECONDS) as subject:
        try:
            lab = Lab(subject)
            scene(lab)
            end = subject.end()
        except TooLate:
            problems.append("it hangs")
        except (Wrong, OSError) as error:
            problems.append(f"{type(error).__name__}: {error}")
        end["stderr"] = subject.said()
    if lab is not None and not lab.listening:
        told = end.get("told", [])
        problems += [f"told: {told}"] if len(told) != 1 or "EINVAL" not in told[0] else []
        end["told"] = []
    nothing = {"fds": {}, "live": 0, "timers": 0, "wrong": 0, "lost": 0}
    if lab is not None and not lab.struck:
        problems.append("it struck nothing")
    failures = lab.clients.failures if lab else []
    return lab.struck if lab else 0, problems + judged(None, failures, end, nothing)


def main() -> int:
    run("ip", "link", "set", "lo", "up")
    if sys.argv[1] == "drop":
        for text in ("add table inet faults",
                     "add chain inet faults input { type filter hook input priority 0 ; policy accept ; }"):
            run("nft", text)
    for scene in KILL if sys.argv[1] == "kill" else DROP:
        if not sys.argv[2:] or scene.__name__ in sys.argv[2:]:
            struck, problems = played(scene)
            print(json.dumps({"scene": scene.__name__, "fired": struck, "problems": problems}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A well-behaved client that asks all the time, each time on a connection of its own."""
from __future__ import annotations

import socket
import threading
import time

from stress.answers import Answer, Answers

EVERY_SECONDS = 1.0
AT_LEAST = 10               # times in a run, however short


def ask(address: tuple[str, int], host: str, target: str, limit_seconds: float) -> Answer:
    """One request on a new connection. OSError or ValueError: there was no answer."""
    deadline = time.monotonic() + limit_seconds
    answers = Answers()
    with socket.create_connection(address, limit_seconds) as sock:
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        while True:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            data = sock.recv(1 << 18)
            if found := answers.feed(data):
                return found[0]
            if not data:
                last = answers.end()
                if last is None:
                    raise ConnectionError("it was closed without an answer")
                return last


class Probe(threading.Thread):
    """Asks at planned times; each latency counts from there, so a server that stalls shows in all that had to wait.

    Args:
        echoes: the answer must have the query in it.
        seconds: of the run.
        limit_seconds: an answer that takes longer has failed.
    """

    def __init__(self, address: tuple[str, int], host: str, path: str, echoes: bool, seconds: float,
                 limit_seconds: float) -> None:
        super().__init__(daemon=True)
        self.address, self.host, self.path, self.echoes = address, host, path, echoes
        self.limit_seconds = limit_seconds
        self.every_seconds = min(EVERY_SECONDS, seconds / AT_LEAST)
        self.latencies: list[float] = []        # of failures, too
        self.failures: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        planned = time.monotonic()
        while not self.ended.wait(max(0.0, planned - time.monotonic())):
            self.ask_once(f"nonce=probe-{len(self.latencies)}.")
            self.latencies.append(time.monotonic() - planned)
            planned += self.every_seconds

    def ask_once(self, query: str) -> None:
        try:
            answer = ask(self.address, self.host, f"{self.path}?{query}", self.limit_seconds)
        except (OSError, ValueError) as error:
            self.failures.append(f"{type(error).__name__}: {error}")
        else:
            if answer.status != 200:
                self.failures.append(f"status {answer.status}")
            elif self.echoes and query.encode() not in answer.body:
                self.failures.append(f"an answer that is not its own: {answer.body[:80]!r}")

    def end(self) -> None:
        """Ask no more, and be over."""
        self.ended.set()
        self.join()

    def p99(self) -> float:
        """Seconds; of fewer than a hundred, the longest."""
        found = sorted(self.latencies)
        return found[min(len(found) - 1, int(len(found) * 0.99))] if found else 0.0

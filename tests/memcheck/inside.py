"""What valgrind runs: `python inside.py <where the modules are> <corpus> [control]`. With a control, only that."""
from __future__ import annotations

import os
import pickle
import random
import socket
import struct
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, sys.argv[1])

import echo  # type: ignore[import-not-found]
import harness  # type: ignore[import-not-found]

import epollkit
from epollkit import http

SEEDS = range(1, 4)
MUTANTS = 3                 # of each head
MOST_PIECES = 150           # of a long head
REQUEST = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
LIMIT_OF_TURNS = 1000


def leaves() -> None:
    content = bytes(range(256)) * 40
    for seed in SEEDS:
        print("slots", harness.slots(seed, 20000), "closed")
        print("idle", harness.idle(seed, 1300), "taken")
        print("epollset", harness.epollset(seed, 1500), "events")
        near, far = socket.socketpair()
        with tempfile.TemporaryFile() as file, near, far:
            near.setblocking(False)
            far.setblocking(False)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            file.write(content)
            file.flush()
            print("output", harness.output(seed, 1500, near.fileno(), far.fileno(), file.fileno(), content), "bytes")
        print("spares", harness.spares(seed, 400), "times")


def mutated(random_: random.Random, data: bytes) -> bytes:
    at = random_.randrange(len(data))
    piece = bytes([random_.choice(b"\r\n\0 \t:;,=%[]()\xff" + data[-64:])])
    return data[:at] + random_.choice([b"", piece, piece + data[at:at + 1]]) + data[at + 1:]


def codec(corpus: list[bytes]) -> None:
    random_ = random.Random(1)
    answers = []
    for data in corpus:
        for mutant in [data, *(mutated(random_, data) for _ in range(MUTANTS))]:
            if mutant:
                answers.append(harness.codec(mutant, len(mutant) // MOST_PIECES + 1))
    print(f"codec {len(answers)} heads, {sum(answer > 0 for answer in answers)} complete, "
          f"{sum(answer < 0 for answer in answers)} refused")


def turn_until(loop: epollkit.Loop, client: socket.socket, count: int) -> bytes:
    """What comes back."""
    received = b""
    for _ in range(LIMIT_OF_TURNS):
        loop.turn(0.01)
        try:
            received += client.recv(65536)
        except BlockingIOError:
            continue
        if len(received) >= count:
            return received
    raise AssertionError(f"only {len(received)} of {count} bytes came back")


def talk(loop: epollkit.Loop, listener: epollkit.Listener, pieces: list[bytes], count: int) -> bytes:
    """A client that says these pieces, one per turn, and one each that ends in another way."""
    clients = [socket.create_connection(listener.address) for _ in range(4)]
    for client in clients:
        client.setblocking(False)
    for piece in pieces:
        for client in clients:
            client.send(piece)
        loop.turn(0.01)
    answers = [turn_until(loop, client, count) for client in clients]
    clients[1].shutdown(socket.SHUT_WR)
    clients[2].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for client in clients:
        client.close()
    for _ in range(LIMIT_OF_TURNS):
        loop.turn(0.01)
        if loop.stats().live == 1:
            break
    assert len({answer[-500:] for answer in answers}) == 1, answers         # what is before that has a date in it
    return answers[0]


def handlers() -> None:
    """The loop, with native handlers and the HTTP server on it."""
    text = [b"some text " * 100, b"x", b"y" * 70000, b"more"]
    whole = b"".join(text)
    for handler in (echo.StreamEcho, echo.BareEcho):
        with epollkit.Loop() as loop:
            listener = loop.listen(("127.0.0.1", 0), handler)
            assert talk(loop, listener, text, len(whole)) == whole
            print(handler.__name__, loop.stats().events, "events")
    with epollkit.Loop() as loop:
        listener = http.listen(loop, ("127.0.0.1", 0), lambda request: http.Response(request.body * 100))
        answer = talk(loop, listener, [REQUEST[:at] for at in (10,)] + [REQUEST[10:-2], REQUEST[-2:]], 550)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"hello" * 100)
        print("http", loop.stats().events, "events")


def main() -> None:
    if len(sys.argv) > 3:
        print(harness.control(sys.argv[3]))
        return
    leaves()
    codec(pickle.loads(Path(sys.argv[2]).read_bytes()))
    handlers()
    print("done", os.getpid())


main()

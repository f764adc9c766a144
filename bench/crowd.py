"""Idle keep-alive connections: a process that opens them, has each answered once, and holds them still.

    python bench/crowd.py PORT COUNT [http | echo]

Prints "ready" when all are idle; at the end of its input it prints how many are still open and quiet, resets them, and
leaves. They come from several addresses of 127.0.0.0/8, so that one address's ports need not last for all.
"""
import select
import socket
import struct
import sys

REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
ENDS = {"http": b"Hello, World!", "echo": REQUEST}      # of an answer
SOURCES = [f"127.0.0.{number}" for number in range(2, 10)]
IP_BIND_ADDRESS_NO_PORT = 24            # ip(7): the port is chosen when the connection's other end is known
RESET_AT_CLOSE = struct.pack("ii", 1, 0)    # SO_LINGER of 0 s: nothing stays behind in TIME_WAIT
PATIENCE_SECONDS = 20


def open_one(port: int, number: int, end: bytes) -> socket.socket:
    """A connection that was answered once and is idle now."""
    sock = socket.socket()
    sock.settimeout(PATIENCE_SECONDS)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((SOURCES[number % len(SOURCES)], 0))
    sock.connect(("127.0.0.1", port))
    sock.sendall(REQUEST)
    answer = b""
    while not answer.endswith(end):
        piece = sock.recv(4096)
        if not piece:
            raise SystemExit(f"the server closed idle connection number {number}")
        answer += piece
    return sock


def still_idle(socks: list[socket.socket]) -> int:
    """How many are open and have nothing to say."""
    poll = select.poll()
    for sock in socks:
        poll.register(sock, select.POLLIN | select.POLLRDHUP)
    return len(socks) - len(poll.poll(0))


def main(port: int, count: int, work: str) -> None:
    """Be the crowd."""
    socks = [open_one(port, number, ENDS[work]) for number in range(count)]
    print("ready", flush=True)
    sys.stdin.read()
    print(still_idle(socks), flush=True)
    for sock in socks:
        sock.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), "".join(sys.argv[3:]) or "http")

"""The load of a TLS echo server: in each round a message on every connection, and then every echo.

    python bench/tls_load.py PORT CONNECTIONS BYTES SECONDS

Every byte is compared. Prints one line: {"messages": 1000, "seconds": 1.0}, of which the handshakes are no part.
"""
import json
import os
import socket
import ssl
import sys
import time

SHIFTS = 4096               # so many messages differ
PATIENCE_SECONDS = 20


def connect(port):
    """A connection, once it has shaken hands. What the certificate says is not the question."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(sock)


def hear(sock, size):
    """One echo, which may come in pieces."""
    echo = sock.recv(size)
    while len(echo) < size:
        piece = sock.recv(size - len(echo))
        if not piece:
            raise SystemExit("the server closed a connection")
        echo += piece
    return echo


def main(port, connections, size, seconds):
    """Ask until the time is over; what was asked by then is answered."""
    pattern = os.urandom(size + SHIFTS)
    socks = [connect(port) for _ in range(connections)]
    rounds = 0
    started = now = time.monotonic()
    while now - started < seconds:
        shift = rounds * 17 % SHIFTS
        message = pattern[shift:shift + size]
        for sock in socks:
            sock.sendall(message)
        for sock in socks:
            if hear(sock, size) != message:
                raise SystemExit(f"the echo of message {rounds + 1} is not what was sent")
        rounds += 1
        now = time.monotonic()
    print(json.dumps({"messages": rounds * connections, "seconds": now - started}))
    for sock in socks:
        sock.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), float(sys.argv[4]))

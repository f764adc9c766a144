"""What our server serves under stress: an answer that says what was asked, so that a crossed one is noticed."""
from __future__ import annotations

from epollkit.http import Request, Response

BIG_BYTES = 1 << 20
BIG = bytes(BIG_BYTES)      # one for all: what a server buffers beyond it is its own doing


def app(request: Request) -> Response:
    """`/big`: a megabyte. Anything else: method, target and the body's length."""
    if request.path == "/big":
        return Response(BIG)
    return Response(f"{request.method} {request.target} {len(request.body)}\n".encode())

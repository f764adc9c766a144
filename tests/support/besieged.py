"""What `epollkit siege` is tested against: `epollkit serve besieged:app`, which remembers what it was asked.

`/seen` returns that as JSON, a list of [method, target, headers, body], and forgets it. `/status/404` answers with that
status, `/limit/20` with 503 to whatever comes after the 20th request of a connection, everything else with "hello".
"""
from __future__ import annotations

import json

from epollkit.http import HttpConnection, Request, Response

seen: list[list[object]] = []
asked: dict[HttpConnection, int] = {}


def app(request: Request) -> Response:
    if request.path == "/seen":
        told, seen[:] = json.dumps(seen), []
        return Response(told.encode())
    headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.headers]
    seen.append([request.method, request.target, headers, request.body.decode("latin-1")])
    _, kind, *rest = request.path.split("/")
    if kind == "status":
        return Response(b"as you wish", status=int(rest[0]))
    if kind == "limit":
        asked[request.connection] = asked.get(request.connection, 0) + 1
        return Response(b"enough", status=503 if asked[request.connection] > int(rest[0]) else 200)
    return Response(b"hello")

"""HTTP/1.1 for applications: `serve(app)`, where app is called with a `Request` and returns a `Response`.

    from epollkit.http import Response, serve

    def app(request):
        return Response(b"Hello, World!")

    serve(app, port=8000)
"""
from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ssl import SSLContext
from typing import Any

from epollkit import Listener, Loop, _sockets
from epollkit._httpconn import HttpConnection, Request, Response, Settings

__all__ = ["HttpConnection", "Request", "Response", "Settings", "listen", "serve"]

Application = Callable[[Request], Response]

logger = logging.getLogger("epollkit")


def listen(loop: Loop, address: _sockets.Address, app: Application, *, backlog: int = 2048, reuse_port: bool = False,
           exclusive: bool = False, defer_accept: bool = False, ssl: SSLContext | None = None,
           ssl_handshake_timeout: float = 10.0, **settings: Any) -> Listener:
    """Serve an application on one more address of a loop. Options as for `Loop.listen`; settings as for `serve`."""
    return loop.listen(address, Settings(app, **settings), backlog=backlog, reuse_port=reuse_port, exclusive=exclusive,
                       defer_accept=defer_accept, ssl=ssl, ssl_handshake_timeout=ssl_handshake_timeout)


@contextmanager
def _ended_by_signals() -> Iterator[Callable[[Loop], None]]:
    """SIGINT or SIGTERM stops the loop at the end of its turn, so answers in hand are still sent. A second one leaves
    the block at once, also out of an application that does not come to an end. While the loop closes, further ones
    are ignored. Yields a function to name the loop with."""
    loops: list[Loop] = []
    before: dict[int, Any] = {}
    heard = 0

    def end(signum: int, frame: object) -> None:
        nonlocal heard
        heard += 1
        if heard == 1 and loops and not loops[0].closed:
            loops[0].call_soon_threadsafe(loops[0].stop)
        elif heard <= 2 and not (loops and loops[0].closed):
            raise KeyboardInterrupt

    try:
        if threading.current_thread() is threading.main_thread():
            for wanted in (signal.SIGINT, signal.SIGTERM):
                before[wanted] = signal.signal(wanted, end)
        yield loops.append
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def serve(app: Application, host: str = "127.0.0.1", port: int = 8000, *, uds: str | None = None,
          max_connections: int = 65536, backlog: int = 2048, reuse_port: bool = False, defer_accept: bool = False,
          on_listening: Callable[[Listener], object] | None = None, **settings: Any) -> None:
    """Serve an application until SIGINT (Ctrl-C) or SIGTERM; send the answers in hand, close every connection, return.
    A second signal does not wait for an application that is busy.

    Args:
        app: called with each `Request`, returns a `Response`; in one thread, so it should not block. One that raises is
            answered with 500 and logged.
        host, port: where to listen; port 0 lets the kernel choose. uds: a unix socket's path instead.
        max_connections: at that many, a newcomer takes the place of the connection that has been idle (between two
            requests) for longest; if none is, accepting pauses.
        on_listening: called with the `Listener` once clients can connect.
        settings: `limit_request_line` (8190 bytes), `limit_request_fields` (100), `limit_request_field_size` (8190
            bytes), `limit_request_body` (1 MiB at most), `timeout_header` (10 s for a whole head), `timeout_body` (30
            s between two reads), `timeout_write` (30 s without progress), `timeout_keep_alive` (75 s between two
            requests), `admit` (called with the peer's address before anything is read; a false answer resets the
            connection). Also `ssl` and `ssl_handshake_timeout`, as for `Loop.listen`.

    Raises OSError or UsageError with one sentence: the address is in use, not permitted, does not exist; a wrong
    setting.
    """
    address: _sockets.Address = (host, port) if uds is None else uds
    with _ended_by_signals() as ends, Loop(max_connections=max_connections) as loop:
        ends(loop)
        listener = listen(loop, address, app, backlog=backlog, reuse_port=reuse_port, defer_accept=defer_accept,
                          **settings)
        logger.info("listening on %s", _sockets.describe(listener.address))
        loop.prepare()      # what run() needs, before anybody is told that it runs
        if on_listening is not None:
            on_listening(listener)
        loop.run()

"""An echo server with limits: each peer gets back what it sends, and none of them can make the server wait or grow.

    python examples/echo.py [--host HOST] [--port PORT | --uds PATH] [--idle SECONDS]

It prints where it listens; Ctrl-C ends it.
"""
from __future__ import annotations

import argparse
import signal
import sys

import epollkit

IDLE_SECONDS = 60.0         # from a peer that sends nothing for so long, nothing more is expected
STUCK_SECONDS = 10.0        # one that takes nothing of its echo for so long is gone, or hostile
HIGH_BYTES = 1 << 18        # as much of an echo may be unsent before its peer has to wait


class Echo(epollkit.Stream):
    idle_seconds = IDLE_SECONDS

    def on_open(self) -> None:
        self.name = self.peer_address or "a local peer"     # a closed stream does not know it any more
        self.set_timeout(read=self.idle_seconds, write=STUCK_SECONDS)
        self.set_limits(high=HIGH_BYTES)

    def on_data(self, data: bytes) -> None:
        if not self.write(data):        # the peer does not read; so it can't go on sending either
            self.pause_reading()

    def on_drain(self) -> None:         # no more than a quarter of HIGH_BYTES is left
        self.resume_reading()

    # on_eof is left as it is: the peer has sent its last byte, so close(), which sends the rest of the echo first. And
    # on_timeout: it ends the connection.

    def on_close(self, error: BaseException | None) -> None:
        if error is not None:
            print(f"{self.name}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description="An echo server with limits; Ctrl-C ends it.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8007, help="0: the kernel chooses (default: 8007)")
    parser.add_argument("--uds", metavar="PATH", help="a unix socket instead of host and port")
    parser.add_argument("--idle", type=float, default=IDLE_SECONDS, metavar="SECONDS",
                        help="a peer may be silent for so long (default: 60)")
    options = parser.parse_args()
    Echo.idle_seconds = options.idle
    try:
        with epollkit.Loop() as loop:
            for signum in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(signum, loop.stop)
            listener = loop.listen(options.uds or (options.host, options.port), Echo)
            where = options.uds or "{} port {}".format(*listener.address)
            print(f"echo listens on {where}", flush=True)
            loop.run()
    except (epollkit.EpollkitError, OSError) as error:
        print(f"echo: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

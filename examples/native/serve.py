"""Serve both echoes until Ctrl-C."""
import contextlib

import echo

import epollkit

with epollkit.Loop() as loop, contextlib.suppress(KeyboardInterrupt):
    for handler in (echo.StreamEcho, echo.BareEcho):
        listener = loop.listen(("127.0.0.1", 0), handler)
        print(f"{handler.__name__} on port {listener.address[1]}", flush=True)
    loop.run()

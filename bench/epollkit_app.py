"""What is measured: epollkit with a Python handler that is called for every request. Prints its port and its build.

Run as a file, not as a module, so that the installed epollkit is imported, not the source tree.
"""
import sys

import epollkit
from epollkit.http import Response, serve


def app(request):
    """The constant answer, as an application would write it."""
    return Response(b"Hello, World!")


class Counting:
    """The same, and how many requests there were, this one included, for who asks for /count."""

    def __init__(self):
        self.requests = 0

    def __call__(self, request):
        self.requests += 1
        if request.target == "/count":
            return Response(b"%d" % self.requests)
        return Response(b"Hello, World!")


def announce(listener):
    """Tell the benchmark where we are, and which build this is."""
    print(listener.address[1], epollkit.build_info()["build"], flush=True)


if __name__ == "__main__":
    serve(Counting() if "--count" in sys.argv else app, port=0, defer_accept="--defer-accept" in sys.argv,
          on_listening=announce)

"""What is measured: `Loop.connect`. Connects, asks once, closes, and again. Prints `0` (it has no port) and its build,
and then takes orders from its standard input: see `Client` in stream_servers.py.

Run as a file, not as a module, so that the installed epollkit is imported, not the source tree.
"""
import json
import os
import sys
import time

import epollkit

MESSAGE = b"ping" * 16


def fail(what):
    """Ends the process here and now: an exception would be somebody's to catch."""
    print(what, file=sys.stderr, flush=True)
    os._exit(1)


class Once(epollkit.Stream):
    """One connection. The course it belongs to is the class's, so that an instance is as small as it can be."""

    def on_open(self):
        self.write(MESSAGE)

    def on_data(self, data):
        if data != MESSAGE:
            fail(f"the echo is {data!r}")
        self.close()

    def on_eof(self):
        fail("a connection was closed by the other end")

    def on_close(self, error):
        if error is not None:
            fail(f"a connection failed: {error!r}")
        self.course.over()


class Course:
    """One order."""

    def __init__(self, loop, port, addresses, under_way, count):
        self.loop, self.port = loop, port
        self.addresses = [f"127.0.0.{number + 1}" for number in range(addresses)]
        self.left, self.completed, self.under_way = count, 0, 0
        self.started = time.monotonic()
        for _ in range(min(under_way, count)):
            self.next()

    def next(self):
        self.left -= 1
        self.under_way += 1
        self.loop.connect((self.addresses[self.left % len(self.addresses)], self.port), Once)

    def over(self):
        """A connection is closed: the next one, if there is one."""
        self.completed += 1
        self.under_way -= 1
        if self.left:
            self.next()
        elif not self.under_way:
            print(json.dumps({"completed": self.completed, "seconds": time.monotonic() - self.started}), flush=True)


def main():
    """Serve one order after the other."""
    course = None

    def listen(token, events):
        nonlocal course
        for line in os.read(0, 4096).splitlines():
            if len(words := line.split()) == 4:
                course = Once.course = Course(loop, *map(int, words))
            else:
                course.left = 0
        if events & epollkit.HUP:
            loop.stop()

    with epollkit.Loop() as loop:
        loop.set_exception_handler(lambda error, source: fail(f"{source!r} raised {error!r}"))
        loop.register(0, epollkit.IN, listen)
        print(0, epollkit.build_info()["build"], flush=True)
        loop.run()


if __name__ == "__main__":
    main()

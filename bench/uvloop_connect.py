"""A peer: uvloop's `create_connection`. Connects, asks once, closes, and again. Prints `0` (it has no port) and then
takes orders from its standard input: see `Client` in stream_servers.py."""
import asyncio
import json
import os
import sys
import time

import uvloop

MESSAGE = b"ping" * 16


def fail(what):
    """Ends the process here and now: an exception would be somebody's to catch."""
    print(what, file=sys.stderr, flush=True)
    os._exit(1)


class Once(asyncio.Protocol):
    """One connection. The course it belongs to is the class's."""

    __slots__ = ("transport",)

    def connection_made(self, transport):
        self.transport = transport
        transport.write(MESSAGE)

    def data_received(self, data):
        if data != MESSAGE:
            fail(f"the echo is {data!r}")
        self.transport.close()

    def eof_received(self):
        fail("a connection was closed by the other end")

    def connection_lost(self, error):
        if error is not None:
            fail(f"a connection broke: {error!r}")
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
        self.loop.create_task(self.connect(self.addresses[self.left % len(self.addresses)]))

    async def connect(self, address):
        try:
            await self.loop.create_connection(Once, address, self.port)
        except OSError as error:
            fail(f"a connection failed: {error!r}")

    def over(self):
        """A connection is closed: the next one, if there is one."""
        self.completed += 1
        self.under_way -= 1
        if self.left:
            self.next()
        elif not self.under_way:
            print(json.dumps({"completed": self.completed, "seconds": time.monotonic() - self.started}), flush=True)


async def main():
    """Serve one order after the other."""
    loop = asyncio.get_running_loop()
    course = None
    ended = loop.create_future()

    def listen():
        nonlocal course
        got = os.read(0, 4096)
        for line in got.splitlines():
            if len(words := line.split()) == 4:
                course = Once.course = Course(loop, *map(int, words))
            else:
                course.left = 0
        if not got:
            ended.set_result(None)

    loop.add_reader(0, listen)
    print(0, flush=True)
    await ended


if __name__ == "__main__":
    uvloop.run(main())

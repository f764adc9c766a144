"""A peer: uvloop and httptools, as lean as a server on them can be. A constant answer for each request, one write for
all answers of a read. Prints its port."""
import asyncio

import httptools
import uvloop

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, World!"
LAST_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\nHello, World!"
BACKLOG = 2048


class Connection(asyncio.Protocol):
    """One client: its parser, and how many requests the current read has completed."""

    __slots__ = ("complete", "keeps", "parser", "transport")

    def connection_made(self, transport):
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.complete = 0
        self.keeps = True

    def on_message_complete(self):
        """Called by the parser, which knows only now whether the connection is to stay."""
        self.complete += 1
        self.keeps = self.parser.should_keep_alive()

    def data_received(self, data):
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()
            return
        complete, self.complete = self.complete, 0
        if not complete:
            return
        if self.keeps:
            self.transport.write(ANSWER * complete)
        else:
            self.transport.write(ANSWER * (complete - 1) + LAST_ANSWER)
            self.transport.close()


async def main():
    """Serve until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", 0, backlog=BACKLOG)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())

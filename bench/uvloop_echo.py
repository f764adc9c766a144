"""A peer: uvloop's Protocol, as an echo server. Prints its port.

    python bench/uvloop_echo.py [--tls CERTIFICATE KEY]
"""
import asyncio
import ssl
import sys

import uvloop

BACKLOG = 2048


class Echo(asyncio.Protocol):
    """One client."""

    __slots__ = ("transport",)

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


def context(certificate, key):
    """As the other one's."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(certificate, key)
    return made


async def main(words):
    """Serve until the process is ended."""
    tls = context(*words[1:]) if words else None
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0, backlog=BACKLOG, ssl=tls)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:]))

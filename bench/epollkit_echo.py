"""What is measured: epollkit's streams, as an echo server in Python. Prints its port and its build.

    python bench/epollkit_echo.py [--timeouts] [--tls CERTIFICATE KEY]

Run as a file, not as a module, so that the installed epollkit is imported, not the source tree.
"""
import ssl
import sys

import epollkit

BACKLOG = 2048


class Echo(epollkit.Stream):
    """Nothing set: an idle one is as small as a subclass in Python can be."""

    def on_data(self, data):
        self.write(data)


class TimedEcho(Echo):
    """Every deadline that there is, none of which will come."""

    def on_open(self):
        self.set_timeout(read=30, write=30, life=3600)


def context(certificate, key):
    """As the other one's."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(certificate, key)
    return made


def main(words):
    """Serve until the process is ended."""
    with epollkit.Loop() as loop:
        options = {"ssl": context(*words[words.index("--tls") + 1:][:2])} if "--tls" in words else {}
        factory = TimedEcho if "--timeouts" in words else Echo
        listener = loop.listen(("127.0.0.1", 0), factory, backlog=BACKLOG, **options)
        print(listener.address[1], epollkit.build_info()["build"], flush=True)
        loop.run()


if __name__ == "__main__":
    main(sys.argv[1:])

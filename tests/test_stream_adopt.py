"""Leaving a loop and entering one: `Stream.detach` and `Loop.adopt`. Nothing is lost, nothing is anybody else's."""
from __future__ import annotations

import os
import socket
import ssl

import pytest
from wire import Bench, Factory, Recorder, Witness, open_pair

import epollkit

# -- what one stream gathers reaches nobody else -----------------------------------------------------------------------


def test_detaching_another_stream_takes_nothing_of_what_this_one_has_written(bench):
    """An upcall's writes are gathered in a buffer of the loop's. Whoever is detached meanwhile must not send them."""
    other, others_client = open_pair(bench)
    detached = []

    def write_and_detach(stream):
        stream.write(b"for my own peer")
        detached.append(other.detach())

    _, client = open_pair(bench, Factory(lambda: Witness(on_data=write_and_detach)))
    client.send(b"go")
    assert client.take(15) == b"for my own peer"
    others_client.read()
    assert others_client.received == b""
    os.close(detached[0].fd)


def secure_client(bench: Bench, listener: epollkit.Listener, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A TLS client whose handshake is done."""
    client = bench.connect(listener)
    client.socket = context.wrap_socket(client.socket, server_hostname="localhost", do_handshake_on_connect=False)

    def shaken():
        try:
            client.socket.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    bench.turn_until(shaken)
    return client.socket


@pytest.mark.parametrize("verb", ["close", "shutdown_write"])
def test_ending_another_stream_s_tls_takes_nothing_of_what_this_one_has_written(bench, certificates, verb):
    """The other's close_notify leaves at once, alone."""
    factory = Factory()
    tls = secure_client(bench, bench.listen(factory, ssl=certificates.server_context()), certificates.client_context())
    bench.quiet()

    def write_and_end(stream):
        stream.write(b"for my own peer")
        getattr(factory.made[0], verb)()

    _, client = open_pair(bench, Factory(lambda: Witness(on_data=write_and_end)))
    client.send(b"go")
    assert client.take(15) == b"for my own peer"
    bench.quiet()
    assert tls.recv(100) == b"", "the end, and nothing before it"


def test_a_frame_that_is_too_long_is_handed_out_by_detach(bench):
    """Whoever detaches in on_error, to let somebody else judge, has every byte that came."""
    taken = []

    class Framed(Recorder):
        def on_open(self):
            self.read_until(b"\n", 4)

        def on_error(self, error):
            taken.append(self.detach())

    stream, client = open_pair(bench, Factory(Framed))
    client.send(b"one\ntoo long\n")
    bench.turn_until(lambda: taken)
    with socket.socket(fileno=taken[0].fd):
        assert taken[0].data == b"too long\n"
    bench.turn_until(lambda: stream.upcalls[-1] == ("close", None))
    assert stream.upcalls[-2] == ("data", b"one\n")

"""TLS on real sockets: who is let in, what passes, and that an end is one only if it was said."""
from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import select
import socket
import ssl
import subprocess
import sys
import termios

import pytest
from batches import in_child
from peers import Peer, SecurePeer
from wire import (
    PATIENCE_SECONDS,
    Bench,
    Factory,
    Recorder,
    open_pair,
    set_buffers,
    unacknowledged_bytes,
    wait_for,
    wait_until,
)

import epollkit
from epollkit import UsageError
from epollkit import http as epollkit_http

TCP = ("127.0.0.1", 0)
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
MEGABYTE = bytes(range(256)) * 4096
READ_BUDGET_BYTES = 262144


@pytest.fixture
def bench(loop):
    with Bench(loop) as made:
        yield made


@pytest.fixture(params=["tcp", "unix"])
def address(request, tmp_path):
    return TCP if request.param == "tcp" else str(tmp_path / "socket")


@pytest.fixture
def contexts(certificates):
    """The server's and the client's."""
    return certificates.server_context(), certificates.client_context()


@pytest.fixture(params=VERSIONS, ids=["TLSv1.2", "TLSv1.3"])
def version(request, contexts):
    """One that both ends speak, and no other."""
    for context in contexts:
        context.minimum_version = context.maximum_version = request.param
    return request.param


@pytest.fixture(params=["server", "client"])
def side(request):
    """What this side is."""
    return request.param


@pytest.fixture
def reported(loop):
    """What the exception handler was told."""
    found = []
    loop.set_exception_handler(lambda exception, source: found.append(exception))
    return found


class Stay(Recorder):
    """Keeps its side open after the peer's end."""

    def on_eof(self):
        self.upcalls.append(("eof",))

    def on_drain(self):
        self.upcalls.append(("drain",))


class Echo(Recorder):
    def on_data(self, data):
        super().on_data(data)
        self.write(data)


def listening_at(address, buffers=(0, 0)):
    """A plain listening socket. buffers: SO_RCVBUF and SO_SNDBUF of what it accepts (of TCP)."""
    made = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    set_buffers(made.fileno(), *buffers)
    made.bind(address)
    made.listen(1)
    return made


def connect(listener, buffers=(0, 0)):
    """A plain client's socket, which waits for accept."""
    sock = socket.socket(socket.AF_UNIX if isinstance(listener.address, str) else socket.AF_INET)
    set_buffers(sock.fileno(), *buffers)
    sock.connect(listener.address)
    return sock


def meet(bench, contexts, side="server", factory=None, address=TCP, *, hostname="localhost", near=(0, 0), far=(0, 0),
         peer=SecurePeer, timeout=10.0):
    """One connection before its handshake: the stream, which is that side of it, and its peer. near, far: SO_RCVBUF and
    SO_SNDBUF."""
    factory = factory or Factory(Stay)
    before = len(factory.made)
    if side == "server":
        listener = bench.listen(factory, address, ssl=contexts[0], ssl_handshake_timeout=timeout)
        set_buffers(listener.fileno(), *near)
        sock = connect(listener, far)
        bench.turn_until(lambda: len(factory.made) > before)
    else:
        with listening_at(address, far) as listening:
            connector = bench.loop.connect(listening.getsockname(), factory, ssl=contexts[1], server_hostname=hostname,
                                           ssl_handshake_timeout=timeout)
            bench.turn_until(lambda: connector.state == "connected")
            sock, _ = listening.accept()
    if side == "client" or address != TCP:
        set_buffers(factory.made[-1].fileno(), *near)
        set_buffers(sock.fileno(), *far)
    return factory.made[-1], Peer(bench, sock) if peer is Peer else SecurePeer(
        bench, sock, contexts[side == "server"], server_side=side == "client", hostname=hostname)


def secure_pair(bench, contexts, side="server", factory=None, address=TCP, **options):
    """The same behind its handshake, with nothing left to do."""
    stream, peer = meet(bench, contexts, side, factory, address, **options)
    peer.shake()
    peer.settle()
    return stream, peer


# -- the handshake -----------------------------------------------------------------------------------------------------


def test_both_sides_and_versions(bench, contexts, version, side, address):
    stream, peer = meet(bench, contexts, side, Factory(Echo), address)
    bench.quiet()
    assert stream.upcalls == [], "on_open is for after the handshake"
    peer.shake()
    peer.write(b"hello")
    assert peer.take(5) == b"hello"
    assert stream.upcalls == [("open",), ("data", b"hello")]
    assert stream.ssl_object.version() == version.name.replace("_", ".")
    peer.end()
    assert peer.take_all() == b""
    bench.turn_until(lambda: stream.closed)
    assert stream.upcalls[2:] == [("eof",), ("close", None)]
    assert stream.ssl_object is None


def test_a_plain_stream_has_no_ssl_object(bench):
    stream, _ = open_pair(bench)
    assert stream.ssl_object is None


@pytest.mark.parametrize("wrong", ["context", object(), ssl, 5])
def test_a_context_is_an_ssl_context(bench, wrong):
    with pytest.raises(UsageError, match=r"ssl is an ssl\.SSLContext"):
        bench.listen(Factory(), ssl=wrong)


@pytest.mark.parametrize("wrong", [0, -1, None, "10", float("nan")])
def test_a_handshake_has_a_deadline(bench, contexts, wrong):
    with pytest.raises(UsageError, match="ssl_handshake_timeout"):
        bench.listen(Factory(), ssl=contexts[0], ssl_handshake_timeout=wrong)


def test_what_cannot_speak_tls_is_refused(bench, contexts, reported):
    class Bare:
        pass

    peer = Peer(bench, connect(bench.listen(Bare, ssl=contexts[0])))
    peer.until(lambda: peer.over)
    assert [str(error) for error in reported if "can't speak TLS; a Stream can" in str(error)]


def test_the_name_that_is_asked_for_chooses_the_context(bench, certificates, contexts, version):
    asked = []
    other = certificates.server_context()
    other.load_cert_chain(certificates.other)

    def choose(ssl_object, name, context):
        asked.append(name)
        if name == "other.example":
            ssl_object.context = other

    contexts[0].sni_callback = choose
    for hostname in ("localhost", "other.example"):
        _, peer = secure_pair(bench, contexts, hostname=hostname)
        names = peer.ssl_object.getpeercert()["subjectAltName"]
        assert ("DNS", hostname) in names
    assert asked == ["localhost", "other.example"]


def test_a_name_that_nobody_has_is_refused_by_the_callback(bench, contexts, version):
    contexts[0].sni_callback = lambda ssl_object, name, context: ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
    stream, peer = meet(bench, contexts)
    assert "UNRECOGNIZED_NAME" in str(peer.broke())
    bench.turn_until(lambda: stream.closed)
    assert stream.names == ["close"]
    assert isinstance(stream.close_error, ssl.SSLError)


def test_a_callback_that_uses_its_connection_or_raises(bench, contexts, reported, monkeypatch):
    """The stream is not open yet, and says so; the handshake fails if the callback does."""
    unraisable, refused = [], []
    monkeypatch.setattr("sys.unraisablehook", lambda found: unraisable.append(found.exc_type))
    factory = Factory(Stay)

    def callback(ssl_object, name, context):
        for call in (lambda: factory.made[-1].write(b"x"), factory.made[-1].shutdown_write,
                     factory.made[-1].pause_reading):
            with pytest.raises(UsageError, match="is not open yet"):
                call()
            refused.append(call)
        if len(factory.made) == 2:
            raise ZeroDivisionError

    contexts[0].sni_callback = callback
    stream, _ = secure_pair(bench, contexts, factory=factory)
    assert stream.names == ["open"]
    stream, peer = meet(bench, contexts, factory=factory)
    assert "ALERT" in str(peer.broke())
    bench.turn_until(lambda: stream.closed)
    assert stream.names == ["close"]
    assert unraisable == [ZeroDivisionError]
    assert len(refused) == 6
    assert reported == []


@pytest.mark.parametrize("verb", ["close", "abort"])
def test_a_callback_that_ends_its_connection(bench, contexts, reported, verb):
    factory = Factory(Stay)
    contexts[0].sni_callback = lambda *_: getattr(factory.made[-1], verb)()
    stream, peer = meet(bench, contexts, factory=factory)
    peer.until(lambda: peer.over)
    bench.turn_until(lambda: stream.closed)
    assert stream.upcalls == [("close", None)]
    assert reported == []


@pytest.mark.parametrize("common", [True, False])
def test_alpn(bench, contexts, version, side, common):
    contexts[0].set_alpn_protocols(["h2", "http/1.1"])
    contexts[1].set_alpn_protocols(["http/1.1"] if common else ["http/0.9"])
    stream, peer = secure_pair(bench, contexts, side)
    for ssl_object in (stream.ssl_object, peer.ssl_object):
        assert ssl_object.selected_alpn_protocol() == ("http/1.1" if common else None)


def test_a_client_certificate_is_shown(bench, certificates, contexts, version, side):
    contexts[0].verify_mode = ssl.CERT_REQUIRED
    contexts[0].load_verify_locations(certificates.authority)
    contexts[1].load_cert_chain(certificates.client)
    stream, peer = secure_pair(bench, contexts, side, Factory(Echo))
    server = stream if side == "server" else peer
    assert (("commonName", "a client"),) in server.ssl_object.getpeercert()["subject"]
    peer.write(b"hello")
    assert peer.take(5) == b"hello"


@pytest.mark.parametrize("shown", ["none", "a stranger's"])
def test_a_client_without_a_certificate_that_is_known(bench, certificates, contexts, version, side, shown):
    """The server never opens; a client of TLS 1.3 may have opened when it is told."""
    contexts[0].verify_mode = ssl.CERT_REQUIRED
    contexts[0].load_verify_locations(certificates.authority)
    if shown != "none":
        contexts[1].load_cert_chain(certificates.stranger)
    stream, peer = meet(bench, contexts, side)
    peer.until(lambda: stream.closed and peer.over)
    if side == "server":
        assert stream.names == ["close"]
        reasons = stream.close_error, peer.error
    else:
        assert stream.names == (["close"] if version == ssl.TLSVersion.TLSv1_2 else ["open", "error", "close"])
        reasons = peer.error, stream.close_error
    assert ("PEER_DID_NOT_RETURN_A_CERTIFICATE" if shown == "none" else "CERTIFICATE_VERIFY_FAILED") in str(reasons[0])
    assert "ALERT" in str(reasons[1])


@pytest.mark.parametrize("wrong", ["name", "authority", "self-signed"])
def test_a_client_refuses_a_server_that_is_somebody_else(bench, certificates, contexts, version, wrong):
    if wrong == "authority":
        contexts = contexts[0], ssl.create_default_context(cafile=str(certificates.stranger))
    elif wrong == "self-signed":
        contexts[0].load_cert_chain(certificates.stranger)
    stream, peer = meet(bench, contexts, "client", hostname="elsewhere.example" if wrong == "name" else "localhost")
    peer.until(lambda: stream.closed and peer.over)
    assert stream.names == ["close"]
    assert isinstance(stream.close_error, ssl.SSLCertVerificationError)
    if wrong == "name":
        assert "Hostname mismatch" in str(stream.close_error)
    assert "ALERT" in str(peer.error), "the server is told"


def test_a_server_whose_client_refuses_it(bench, certificates, contexts, version):
    """In TLS 1.3 as well: the client answers with an alert instead of its last message."""
    contexts[0].load_cert_chain(certificates.stranger)
    stream, peer = meet(bench, contexts)
    assert isinstance(peer.broke(), ssl.SSLCertVerificationError)
    peer.settle()
    bench.turn_until(lambda: stream.closed)
    assert stream.names == ["close"]
    assert "ALERT_UNKNOWN_CA" in str(stream.close_error)


def test_no_version_in_common(bench, contexts, side):
    contexts[0].maximum_version = ssl.TLSVersion.TLSv1_2
    contexts[1].minimum_version = ssl.TLSVersion.TLSv1_3
    stream, peer = meet(bench, contexts, side)
    peer.until(lambda: stream.closed and peer.over)
    assert stream.names == ["close"]
    assert isinstance(stream.close_error, ssl.SSLError)
    assert "UNSUPPORTED_PROTOCOL" in str(stream.close_error) or "ALERT_PROTOCOL_VERSION" in str(stream.close_error)


@pytest.mark.parametrize(("sent", "reason"), [
    (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP_REQUEST"), (b"PING\r\n", "WRONG_VERSION_NUMBER"),
    (bytes(100), "WRONG_VERSION_NUMBER"), (b"\x16\x03\x01\x00\x05hello", ""), (b"\x17\x03\x03\x00\x05hello", ""),
], ids=["http", "redis", "zeros", "no hello", "data first"])
def test_plaintext_for_a_tls_port(bench, contexts, reported, sent, reason):
    stream, peer = meet(bench, contexts, peer=Peer)
    peer.write(sent)
    peer.until(lambda: stream.closed and peer.over)
    assert stream.names == ["close"]
    assert type(stream.close_error) is ssl.SSLError
    assert reason in str(stream.close_error)
    assert peer.received[:1] in (b"\x15", b""), "an alert, if anything"
    assert reported == []


def test_tls_to_a_plaintext_port(bench, contexts, reported):
    stream, peer = meet(bench, contexts, "client", peer=Peer)
    peer.write(b"220 ready\r\n")
    peer.until(lambda: stream.closed and peer.over)
    assert stream.names == ["close"]
    assert "WRONG_VERSION_NUMBER" in str(stream.close_error)
    assert reported == []


@pytest.mark.parametrize("said", [0, 1, 50, -20], ids=["nothing", "a byte", "a part", "almost all"])
@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_peer_that_leaves_in_the_handshake(bench, contexts, side, said, how):
    stream, plain = meet(bench, contexts, side, peer=Peer)
    bench.quiet()
    incoming, hello = ssl.MemoryBIO(), ssl.MemoryBIO()
    shaking = contexts[side == "server"].wrap_bio(incoming, hello, side == "client",
                                                  "localhost" if side == "server" else None)
    plain.pump()
    incoming.write(plain.received)
    with pytest.raises(ssl.SSLWantReadError):
        shaking.do_handshake()
    plain.write(hello.read()[:said])
    plain.settle()
    assert stream.upcalls == []
    if how == "FIN":
        plain.end()
        plain.settle()
    else:
        plain.reset()
    bench.turn_until(lambda: stream.closed)
    assert stream.names == ["close"]
    assert isinstance(stream.close_error, ssl.SSLEOFError if how == "FIN" else ConnectionResetError)


@pytest.mark.parametrize("said", [0, 50, -20], ids=["nothing", "a part", "almost all"])
@pytest.mark.debug_build
def test_a_handshake_that_takes_too_long(contexts, side, said):
    """A peer that sends a byte now and then gains nothing; one that is silent for ever after on_open is left alone."""
    from epollkit._operations import fake_clock

    with fake_clock() as clock, epollkit.Loop() as loop, Bench(loop) as bench:
        stream, plain = meet(bench, contexts, side, peer=Peer, timeout=3.0)
        bench.quiet()
        incoming, hello = ssl.MemoryBIO(), ssl.MemoryBIO()
        shaking = contexts[side == "server"].wrap_bio(incoming, hello, side == "client",
                                                      "localhost" if side == "server" else None)
        plain.pump()
        incoming.write(plain.received)
        with pytest.raises(ssl.SSLWantReadError):
            shaking.do_handshake()
        flight = hello.read()[:said]
        for byte in range(3):
            plain.write(flight[byte:byte + 1] if byte < 2 else flight[2:])
            plain.settle()
            clock.advance(0.9)
            bench.quiet()
        assert stream.upcalls == []
        clock.advance(0.33)
        bench.quiet()
        assert stream.names == ["close"]
        assert str(stream.close_error) == "the TLS handshake took longer than 3 seconds"
        assert isinstance(stream.close_error, TimeoutError)
        plain.until(lambda: plain.over)

        stream, _ = secure_pair(bench, contexts, side, timeout=3.0)
        clock.advance(3600)
        bench.quiet()
        assert stream.names == ["open"]


def test_a_handshake_through_tiny_buffers(bench, certificates, contexts, version, side, tmp_path):
    """A server whose chain of certificates is larger than what its socket takes at once."""
    chain = tmp_path / "chain.pem"
    chain.write_bytes(certificates.server.read_bytes() + 40 * certificates.other.read_bytes())
    contexts[0].load_cert_chain(chain)
    _, peer = meet(bench, contexts, side, Factory(Echo), near=(4096, 4096), far=(4096, 4096))
    peer.shake()
    peer.write(b"hello")
    assert peer.take(5) == b"hello"


@pytest.mark.debug_build
def test_a_peer_that_is_so_fast_that_all_comes_at_once(bench, contexts, version, side):
    """The handshake ends within the first upcall, its last message has data behind it, and no event follows."""
    from epollkit._operations import replaced

    factory = Factory(Echo)
    if side == "server":
        peer = SecurePeer(bench, connect(bench.listen(factory, ssl=contexts[0])), contexts[1])
    else:
        with listening_at(TCP) as listening:
            connector = bench.loop.connect(listening.getsockname(), factory, ssl=contexts[1],
                                           server_hostname="localhost")
            peer = SecurePeer(bench, listening.accept()[0], contexts[0], server_side=True)
        assert connector.state == "connecting"
    peer.write(b"hello")

    def recv(fd, room):
        assert not peer.over
        if not peer.shaken:
            while peer.pump():
                pass
            wait_for(fd, select.POLLIN)

    with replaced(recv=recv):
        bench.turn_until(lambda: factory.made[0].names if factory.made else [])
    assert peer.take(5) == b"hello"
    assert factory.made[0].upcalls == [("open",), ("data", b"hello")]


def test_an_endless_handshake_leaves_time_for_others(bench, contexts):
    """A server may ask a client to begin anew while it does (RFC 5246, 7.4.1.1), as often as it likes: 4 bytes each."""
    stream, plain = meet(bench, contexts, "client", peer=Peer, near=(4 << 20, 0), far=(0, 4 << 20))
    bench.quiet()
    request = b"\x16\x03\x03\x40\x00" + bytes(1 << 14)
    plain.write(request * 40)
    plain.push()
    wait_until(lambda: unacknowledged_bytes(plain.socket) == 0)
    before = unread(stream)
    assert before > 2 * READ_BUDGET_BYTES
    bench.loop.turn(0)
    assert 0 < before - unread(stream) <= READ_BUDGET_BYTES + 65536
    plain.settle()
    assert stream.upcalls == [], "there is still time"


def unread(stream):
    """Bytes that wait in the kernel for this stream."""
    with socket.socket(fileno=os.dup(stream.fileno())) as copy:
        return int.from_bytes(fcntl.ioctl(copy, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_an_instance_that_a_factory_returns_twice(bench, contexts, reported):
    """The connection that has it does not notice."""
    one = Echo()
    listener = bench.listen(lambda: one, ssl=contexts[0])
    first = SecurePeer(bench, connect(listener), contexts[1])
    first.shake()
    second = SecurePeer(bench, connect(listener), contexts[1])
    second.broke()
    assert len(reported) == 1
    assert "a factory makes a new one each time" in str(reported[0])
    first.write(b"hello")
    assert first.take(5) == b"hello"
    first.end()
    assert first.take_all() == b""


@pytest.mark.parametrize("verb", ["close", "abort"])
def test_it_is_closed_in_its_handshake(bench, contexts, side, verb):
    stream, peer = meet(bench, contexts, side)
    bench.quiet()
    getattr(stream, verb)()
    bench.quiet()
    assert stream.upcalls == [("close", None)]
    peer.until(lambda: peer.over)
    assert isinstance(peer.error, ssl.SSLEOFError if verb == "close" else (ConnectionResetError, ssl.SSLEOFError))


def test_the_loop_is_closed_in_handshakes(contexts):
    with epollkit.Loop() as loop:
        bench = Bench(loop)
        pairs = [meet(bench, contexts, side) for side in ("server", "client")]
        bench.quiet()
    for stream, peer in pairs:
        assert stream.upcalls == [("close", None)]
        peer.close()


# -- on_open -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["close", "abort", "shutdown_write", "raise", "write and close"])
def test_what_on_open_may_do(bench, contexts, version, side, reported, verb):
    problem = ValueError("the handler's own")

    class Opens(Recorder):
        def on_open(self):
            super().on_open()
            if verb == "raise":
                raise problem
            if verb == "write and close":
                self.write(b"hello")
            getattr(self, verb.split()[-1])()

    stream, peer = meet(bench, contexts, side, Factory(Opens))
    if verb in ("close", "write and close", "shutdown_write"):
        assert peer.take_all() == (b"hello" if verb == "write and close" else b"")
        peer.end()
    else:
        peer.broke()
    peer.until(lambda: stream.closed)
    assert stream.names == (["open", "eof", "close"] if verb == "shutdown_write" else ["open", "close"])
    assert stream.close_error is (problem if verb == "raise" else None)
    assert reported == ([problem] if verb == "raise" else [])


def test_ctrl_c_in_on_open(bench, contexts, side):
    class Interrupted(Echo):
        def on_open(self):
            super().on_open()
            self.write(b"opened")
            raise KeyboardInterrupt

    _, peer = meet(bench, contexts, side, Factory(Interrupted))
    with pytest.raises(KeyboardInterrupt):
        peer.shake()
        peer.settle()
    assert peer.take(6) == b"opened"
    peer.write(b"go on")
    assert peer.take(5) == b"go on"


# -- data --------------------------------------------------------------------------------------------------------------


def test_large_writes_through_tiny_buffers(bench, contexts, version, side, address):
    stream, peer = secure_pair(bench, contexts, side, Factory(Echo), address, near=(0, 4096), far=(0, 4096))
    peer.write(MEGABYTE)
    assert peer.take(1 << 20) == MEGABYTE
    assert stream.data == MEGABYTE
    assert stream.unsent_bytes == 0


def test_writes_of_any_size_keep_their_order_inside_and_outside_of_upcalls(bench, contexts, version, side, tmp_path):
    sizes = [1, 20_000, 0, 5, 70_000, 16_384, 16_385, 300_000, 2]
    file = tmp_path / "file"
    file.write_bytes(MEGABYTE[:100_000])

    def say(stream):
        for size in sizes:
            stream.write(MEGABYTE[:size])
        with file.open("rb") as opened:
            stream.sendfile(opened, 5, 90_000)
        stream.writelines([b"a", b"b" * 30_000])
        with file.open("rb") as opened:
            stream.sendfile(opened)

    expected = (b"".join(MEGABYTE[:size] for size in sizes) + MEGABYTE[5:90_005] + b"a" + b"b" * 30_000
                + MEGABYTE[:100_000])

    class Says(Stay):
        def on_open(self):
            say(self)

        def on_data(self, data):
            say(self)

    stream, peer = secure_pair(bench, contexts, side, Factory(Says))
    assert peer.take(len(expected)) == expected
    say(stream)
    assert peer.take(len(expected)) == expected
    peer.write(b"x")
    assert peer.take(len(expected)) == expected
    assert stream.unsent_bytes == 0


def test_what_one_upcall_writes_is_one_record(bench, contexts, version):
    """And what others write until the next turn leaves together as well."""
    class Says(Stay):
        def on_data(self, data):
            for _ in range(100):
                self.write(b"ten bytes.")

    stream, peer = secure_pair(bench, contexts, factory=Factory(Says))
    peer.records.clear()
    peer.write(b"x")
    assert peer.take(1000) == b"ten bytes." * 100
    assert len(peer.records) < 1000 + 40
    peer.records.clear()
    for _ in range(100):
        stream.write(b"ten bytes.")
    assert peer.take(1000) == b"ten bytes." * 100


def test_watermarks(bench, contexts, side):
    stream, peer = secure_pair(bench, contexts, side, near=(0, 4096), far=(4096, 0))
    assert stream.write(b"x" * 60_000)
    peer.settle()
    peer.received.clear()
    assert stream.write(b"") is True
    stream.set_limits(high=100_000, low=10_000)
    assert not stream.write(MEGABYTE)
    bench.quiet()
    assert stream.unsent_bytes > 900_000
    assert "drain" not in stream.names
    seen = []
    while "drain" not in stream.names:
        seen.append(stream.unsent_bytes)
        peer.pump()
        bench.loop.turn(0)
    assert stream.unsent_bytes <= 10_000
    assert seen[-1] > 10_000 - 4096, "as soon as there was room"
    assert peer.take(1 << 20) == MEGABYTE
    assert stream.names.count("drain") == 1


def test_a_peer_that_does_not_read_is_reset_at_the_hard_limit(bench, contexts, side):
    stream, _ = secure_pair(bench, contexts, side, near=(0, 4096), far=(4096, 0))
    stream.set_limits(hard=500_000)
    for _ in range(100):
        if stream.is_closing:
            break
        stream.write(bytes(10_000))
        bench.quiet()
    assert isinstance(stream.close_error, epollkit.LimitReached)


@pytest.mark.parametrize("end", ["close_notify", "FIN"])
def test_a_reader_that_pauses_while_records_are_held(bench, contexts, version, side, end):
    """Many records come in one read; each is a frame, and the reader pauses after each."""
    class Pauses(Stay):
        def on_open(self):
            super().on_open()
            self.read_exactly(20_000)

        def on_data(self, data):
            super().on_data(data)
            self.pause_reading()

    stream, peer = secure_pair(bench, contexts, side, Factory(Pauses))
    peer.write(MEGABYTE[:200_000])
    if end == "close_notify":
        peer.end()
    peer.settle()
    if end == "FIN":
        peer.socket.shutdown(socket.SHUT_WR)
    for count in range(1, 11):
        bench.quiet()
        assert stream.upcalls[1:] == [("data", MEGABYTE[at * 20_000:][:20_000]) for at in range(count)]
        peer.settle()
        stream.resume_reading()
    bench.turn_until(lambda: "eof" in stream.names or stream.closed)
    assert stream.names == (["open", "data", "eof"] if end == "close_notify" else ["open", "data", "error", "close"])
    stream.close()


def test_small_records_behind_a_pause_wait_where_they_were_received(bench, contexts, side):
    """One read brings more of them than are opened in one go."""
    class Pauses(Stay):
        def on_data(self, data):
            super().on_data(data)
            self.pause_reading()

    stream, peer = secure_pair(bench, contexts, side, Factory(Pauses), near=(1 << 20, 0), far=(0, 1 << 20))
    stream.pause_reading()
    for at in range(0, 200_000, 500):
        peer.unsent += peer.sealed(MEGABYTE[at:at + 500])
    peer.settle()
    for _ in range(20):
        stream.resume_reading()
        peer.settle()
    assert stream.data == MEGABYTE[:200_000]
    assert len(stream.upcalls) > 4, "it was all opened in one go: this proves nothing"
    stream.close()


def test_raw_data_that_waits_while_paused(bench, contexts, side):
    class Pauses(Stay):
        def on_data(self, data):
            super().on_data(data)
            self.pause_reading()

    stream, peer = secure_pair(bench, contexts, side, Factory(Pauses))
    peer.write(MEGABYTE)
    for _ in range(100):
        peer.settle()
        if stream.data == MEGABYTE:
            break
        before = len(stream.upcalls)
        bench.quiet()
        assert len(stream.upcalls) == before, "paused"
        stream.resume_reading()
    assert stream.data == MEGABYTE
    stream.close()


def test_what_another_stream_has_written_in_this_upcall_stays_its_own(bench, contexts, side):
    """Its peers get what was meant for them, although one stream says its last word inside the upcall of another."""
    victims = []

    class Says(Stay):
        def on_data(self, data):
            self.write(b"for me alone")
            for victim in victims:
                victim.shutdown_write()
            for victim in victims:
                victim.close()

    first, one = secure_pair(bench, contexts, side)
    second, two = secure_pair(bench, contexts, side)
    _, asking = secure_pair(bench, contexts, side, Factory(Says))
    victims += [first, second]
    first.shutdown_write()
    asking.write(b"x")
    assert asking.take(12) == b"for me alone"
    assert one.take_all() == b""
    assert two.take_all() == b""


def test_what_a_peer_sends_behind_garbage(bench, contexts, version, side, reported):
    """The good part is delivered; what is written meanwhile can't be sent any more; the peer is told by an alert."""
    stream, peer = secure_pair(bench, contexts, side, Factory(Echo))
    peer.write(b"good")
    peer.push()
    peer.unsent += b"garbage, not a record"
    peer.settle()
    bench.turn_until(lambda: stream.closed)
    assert stream.names == ["open", "data", "error", "close"]
    assert stream.data == b"good"
    assert type(stream.close_error) is ssl.SSLError
    assert stream.upcalls[2][1] is stream.close_error
    assert "ALERT" in str(peer.broke())
    assert reported == []


def test_a_rate_limit_counts_what_is_on_the_wire(bench, contexts, side):
    rate = epollkit.RateLimit(1e9)
    stream, peer = secure_pair(bench, contexts, side, Factory(Echo))
    stream.set_rate(read=rate, write=rate)
    peer.write(MEGABYTE)
    assert peer.take(1 << 20) == MEGABYTE


@pytest.mark.parametrize("left", [0, 20_000])
def test_a_file_that_became_shorter_is_no_end(bench, contexts, version, side, tmp_path, left):
    stream, peer = secure_pair(bench, contexts, side)
    file = tmp_path / "file"
    file.write_bytes(MEGABYTE[:100_000])
    with file.open("rb") as opened:
        stream.sendfile(opened)
    os.truncate(file, left)
    assert isinstance(peer.broke(), ConnectionResetError)
    bench.turn_until(lambda: stream.closed)
    assert "a file became shorter" in str(stream.close_error)


@pytest.mark.debug_build
def test_a_file_that_can_not_be_read(bench, contexts, version, side, tmp_path):
    from epollkit._operations import replaced

    stream, peer = secure_pair(bench, contexts, side)
    file = tmp_path / "file"
    file.write_bytes(b"x")
    with replaced(read_at=lambda *_: -errno.EIO):
        with file.open("rb") as opened:
            stream.sendfile(opened)
        assert isinstance(peer.broke(), ConnectionResetError)
    bench.turn_until(lambda: stream.closed)
    assert stream.close_error.errno == errno.EIO


@pytest.mark.parametrize("where", ["in an upcall", "between two"])
def test_what_can_not_be_encrypted_ends_the_stream(bench, contexts, version, where):
    """As OpenSSL says it once it has counted too many records."""
    class Refuses(ssl.SSLObject):
        def write(self, data):
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, "as asked")

    class Answers(Stay):
        def on_data(self, data):
            self.write(data)

    contexts[0].sslobject_class = Refuses
    stream, peer = secure_pair(bench, contexts, factory=Factory(Answers))
    if where == "in an upcall":
        peer.write(b"x")
    else:
        stream.write(b"x")
    peer.broke()
    bench.turn_until(lambda: stream.closed)
    assert stream.names == ["open", "error", "close"]
    assert "as asked" in str(stream.close_error)


# -- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close_notify", "FIN", "cut record", "RST"])
def test_an_end_is_one_only_if_it_was_said(bench, contexts, version, side, address, how):
    """Whoever can cut the connection can end it, but for close_notify."""
    if how == "RST" and address != TCP:
        pytest.skip("a unix socket has no RST")
    stream, peer = secure_pair(bench, contexts, side, Factory(Recorder), address)
    peer.write(b"all that there is")
    peer.settle()
    if how == "close_notify":
        peer.end()
        peer.pump()
        peer.close()
    elif how == "RST":
        peer.reset()
    else:
        if how == "cut record":
            peer.unsent += peer.sealed(b"and more")[:-1]
            peer.push()
        peer.close()
    bench.turn_until(lambda: stream.closed)
    assert stream.data == b"all that there is"
    if how == "close_notify":
        assert stream.names == ["open", "data", "eof", "close"]
        assert stream.close_error is None
        return
    assert stream.names == ["open", "data", "error", "close"]
    assert stream.upcalls[-2][1] is stream.close_error
    assert isinstance(stream.close_error, ConnectionResetError if how == "RST" else ssl.SSLEOFError)
    if how != "RST":
        assert "without close_notify" in str(stream.close_error)


def test_a_frame_that_is_cut_by_the_socket_or_by_close_notify(bench, contexts):
    """Both are errors, and the reason says which."""
    for end, kind in (("close_notify", epollkit.PeerError), ("FIN", ssl.SSLEOFError)):
        class Frames(Recorder):
            def on_open(self):
                self.read_exactly(100)

        stream, peer = secure_pair(bench, contexts, factory=Factory(Frames))
        peer.write(b"x" * 150)
        if end == "close_notify":
            peer.end()
        peer.settle()
        peer.close()
        bench.turn_until(lambda: stream.closed)     # noqa: B023
        assert stream.names == ["data", "error", "close"]
        assert isinstance(stream.close_error, kind)


def test_the_peer_ends_first_and_is_answered_for_long(bench, contexts, version, side, address):
    stream, peer = secure_pair(bench, contexts, side, address=address, near=(0, 4096))
    peer.write(b"question")
    peer.end()
    peer.settle()
    assert stream.names == ["open", "data", "eof"]
    assert stream.peer_closed
    stream.write(MEGABYTE)
    for _ in range(3):
        peer.settle()
        stream.write(b"answer")
    stream.close()
    assert peer.take_all() == MEGABYTE + b"answer" * 3
    bench.turn_until(lambda: stream.closed)
    assert stream.close_error is None


def test_this_side_ends_first_and_hears_on(bench, contexts, version, side, address):
    stream, peer = secure_pair(bench, contexts, side, address=address, far=(4096, 0))
    stream.write(MEGABYTE)
    stream.shutdown_write()
    stream.shutdown_write()
    with pytest.raises(UsageError, match=r"nothing can be written after shutdown_write\(\)"):
        stream.write(b"x")
    assert peer.take_all() == MEGABYTE
    for _ in range(3):
        peer.write(MEGABYTE[:100_000])
        peer.settle()
    assert stream.data == MEGABYTE[:100_000] * 3
    assert stream.names == ["open", "drain", "data"]
    peer.end()
    peer.until(lambda: stream.closed)
    assert stream.names == ["open", "drain", "data", "eof", "close"]
    assert stream.close_error is None


@pytest.mark.parametrize("bad", ["FIN", "RST", "garbage"])
def test_this_side_ends_first_and_the_peer_breaks(bench, contexts, version, bad):
    stream, peer = secure_pair(bench, contexts)
    stream.shutdown_write()
    assert peer.take_all() == b""
    if bad == "garbage":
        peer.unsent += b"garbage"
        peer.settle()
    elif bad == "FIN":
        peer.close()
    else:
        peer.reset()
    bench.turn_until(lambda: stream.closed)
    assert stream.names == ["open", "error", "close"]


def test_both_end_at_once(bench, contexts, version, side):
    stream, peer = secure_pair(bench, contexts, side)
    stream.write(b"mine")
    stream.shutdown_write()
    peer.write(b"yours")
    peer.end()
    assert peer.take_all() == b"mine"
    bench.turn_until(lambda: stream.closed)
    assert stream.upcalls == [("open",), ("data", b"yours"), ("eof",), ("close", None)]


@pytest.mark.debug_build
@pytest.mark.parametrize("first", ["peer", "this side"])
def test_an_end_for_which_the_socket_has_no_room_is_sent_later(bench, contexts, version, first):
    """And until then not both directions are over. (A server: what has connected is watched for OUT already, and would
    wait for an edge from a socket that is not really full.)"""
    from epollkit._operations import replaced

    full = []
    stream, peer = secure_pair(bench, contexts)
    with replaced(send=lambda fd, size: full.append(size) or (-errno.EAGAIN if len(full) == 1 else None)):
        if first == "peer":
            peer.end()
            peer.settle()
            stream.shutdown_write()
        else:
            stream.shutdown_write()
            peer.end()
            peer.pump()
            wait_for(stream.fileno(), select.POLLIN)
        assert len(full) == 1
        assert peer.take_all() == b""
    bench.turn_until(lambda: stream.closed)
    assert stream.upcalls == [("open",), ("eof",), ("close", None)]


def test_shutdown_and_close_while_the_socket_is_full(bench, contexts, version, side, address):
    """The last data fills the socket, and our end-of-stream has to wait once more before it can be closed."""
    stream, peer = secure_pair(bench, contexts, side, address=address, near=(0, 4096), far=(4096, 0))
    for size in (1, 4000, 8000, 65_535):
        stream.write(MEGABYTE[:size])
        bench.quiet()
    stream.shutdown_write()
    stream.close()
    bench.quiet()
    assert len(peer.take_all()) == 1 + 4000 + 8000 + 65_535
    peer.close()
    bench.turn_until(lambda: stream.closed)
    assert stream.close_error is None


@pytest.mark.parametrize("fin", [False, True])
def test_both_ends_are_said_to_one_that_has_paused(bench, contexts, version, side, fin):
    """Over, but on_close has to wait until it reads again, as any other upcall of an end."""
    stream, peer = secure_pair(bench, contexts, side)
    peer.end()
    peer.settle()
    stream.pause_reading()
    stream.shutdown_write()
    if fin:
        peer.socket.shutdown(socket.SHUT_WR)
    assert peer.take_all() == b""
    bench.quiet()
    stream.resume_reading()
    bench.turn_until(lambda: stream.closed)
    assert stream.upcalls == [("open",), ("eof",), ("close", None)]


def test_close_says_so_behind_everything_that_was_written(bench, contexts, version, side, address):
    """Also if the peer goes on sending meanwhile: that is thrown away, not answered with a reset."""
    stream, peer = secure_pair(bench, contexts, side, address=address, near=(0, 4096), far=(4096, 0))
    stream.write(MEGABYTE[:200_000])
    stream.close()
    peer.write(b"x" * 50_000)
    assert peer.take_all() == MEGABYTE[:200_000]
    peer.close()
    bench.turn_until(lambda: stream.closed)
    assert stream.upcalls == [("open",), ("close", None)]


def test_abort_says_nothing(bench, contexts, side):
    stream, peer = secure_pair(bench, contexts, side)
    stream.write(b"lost")
    stream.abort()
    bench.quiet()
    assert isinstance(peer.broke(), (ConnectionResetError, ssl.SSLEOFError))
    assert peer.received == b""
    assert stream.names == ["open", "close"]


@pytest.mark.parametrize("half_close", ["answer", "abort"])
def test_half_close_is_about_close_notify_and_fin_alike(bench, contexts, half_close):
    class Policy(Stay):
        pass

    Policy.half_close = half_close
    stream, peer = secure_pair(bench, contexts, factory=Factory(Policy))
    peer.end()
    peer.settle()
    assert stream.closed == (half_close == "abort")
    if half_close == "abort":
        assert isinstance(stream.close_error, ConnectionAbortedError)
    stream.close()


@pytest.mark.debug_build
def test_a_closing_stream_whose_peer_does_not_read(contexts, side):
    from epollkit._operations import fake_clock

    with fake_clock() as clock, epollkit.Loop() as loop, Bench(loop) as bench:
        stream, peer = secure_pair(bench, contexts, side, near=(0, 4096), far=(4096, 0))
        stream.write(MEGABYTE)
        stream.close()
        bench.quiet()
        clock.advance(29.9)
        bench.quiet()
        assert stream.names == ["open"]
        clock.advance(0.2)
        bench.quiet()
        assert isinstance(stream.close_error, TimeoutError)
        peer.broke()


@pytest.mark.debug_build
def test_a_reader_that_waits_and_a_writer_that_is_not_read(contexts, side):
    from epollkit._operations import fake_clock

    with fake_clock() as clock, epollkit.Loop() as loop, Bench(loop) as bench:
        stream, peer = secure_pair(bench, contexts, side)
        stream.set_timeout(read=5)
        clock.advance(4)
        peer.write(b"x")
        peer.settle()
        clock.advance(4)
        bench.quiet()
        assert stream.names == ["open", "data"]
        clock.advance(1.1)
        bench.quiet()
        assert str(stream.close_error).endswith("nothing was received for 5 s")
        stream, peer = secure_pair(bench, contexts, side, near=(0, 4096), far=(4096, 0))
        stream.set_timeout(write=5)
        stream.write(MEGABYTE)
        bench.quiet()
        for _ in range(3):
            clock.advance(4)
            peer.settle()
            assert not stream.closed
        peer.reading = False
        stream.write(MEGABYTE * 4)
        peer.settle()
        clock.advance(5.1)
        bench.quiet()
        assert str(stream.close_error).endswith("the peer took nothing for 5 s")


@pytest.mark.parametrize("what", ["unsent", "nothing"])
def test_reset_while_ciphertext_waits(bench, contexts, side, what):
    stream, peer = secure_pair(bench, contexts, side, near=(0, 4096), far=(4096, 0))
    if what == "unsent":
        stream.write(MEGABYTE)
        bench.quiet()
    peer.reset()
    bench.turn_until(lambda: stream.closed)
    assert stream.names == ["open", "error", "close"]
    assert isinstance(stream.close_error, ConnectionResetError)


def test_an_end_behind_a_write_that_failed_is_none(bench, contexts, version, side):
    """The peer has said all that it had to say, and is gone before it has read all that this side had to."""
    stream, peer = secure_pair(bench, contexts, side)
    peer.write(b"data")
    peer.end()
    peer.push()
    peer.reset()
    wait_for(stream.fileno(), select.POLLHUP)
    stream.write(b"answer")
    bench.turn_until(lambda: stream.closed)
    assert stream.names == ["open", "data", "error", "close"]
    assert isinstance(stream.close_error, ConnectionError)


# -- what TLS says by itself -------------------------------------------------------------------------------------------


def test_a_certificate_that_is_asked_for_behind_the_handshake(bench, certificates, contexts):
    """TLS 1.3. The client answers although nobody writes."""
    contexts[0].load_verify_locations(certificates.authority)
    contexts[1].load_cert_chain(certificates.client)
    for context in contexts:
        context.post_handshake_auth = True
    contexts[0].verify_mode = ssl.CERT_REQUIRED
    stream, peer = secure_pair(bench, contexts, "client")
    assert not peer.ssl_object.getpeercert()
    peer.ssl_object.verify_client_post_handshake()
    peer.ssl_object.do_handshake()
    peer.until(peer.ssl_object.getpeercert)
    assert stream.names == ["open"]
    stream.write(b"still there")
    assert peer.take(11) == b"still there"


@pytest.mark.parametrize("reads", [True, False])
def test_what_tls_answers_to_one_that_does_not_read_is_bounded(bench, contexts, reads):
    """A peer may have TLS say something as often as it likes: refuse to renegotiate, show a certificate."""
    class Answers(ssl.SSLObject):
        def read(self, *arguments):
            count = super().read(*arguments)
            super().write(b"an answer of TLS's own")
            return count

    contexts[0].sslobject_class = Answers
    stream, peer = secure_pair(bench, contexts, near=(0, 4096), far=(4096, 0))
    for _ in range(20):
        peer.reading = reads
        for _ in range(300):
            peer.unsent += peer.sealed(b"x")
        peer.settle()
    assert stream.closed != reads
    if not reads:
        assert isinstance(stream.close_error, epollkit.LimitReached)
        assert "answers" in str(stream.close_error)
        peer.reading = True
        assert isinstance(peer.broke(), ConnectionResetError)


class Tool:
    """A program that reads its standard input line by line, and says what it does."""

    def __init__(self, bench, *command):
        self.bench = bench
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.output = b""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def say(self, line):
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def until(self, text):
        """Turns of the loop until it has printed that; returns what was before it."""
        def printed():
            ended = self.process.poll() is not None     # before the last look at what it has printed
            self.read()
            assert text in self.output or not ended, self.output.decode()
            return text in self.output

        try:
            self.bench.turn_until(printed)
        except AssertionError:
            pytest.fail(f"{text!r} is not in {self.output!r}")
        before, _, self.output = self.output.partition(text)
        return before

    def read(self):
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.process.stdout.fileno(), 1 << 16):
                self.output += piece

    def ends(self):
        """Its status."""
        self.bench.turn_until(lambda: self.read() or self.process.poll() is not None)
        self.read()
        return self.process.returncode


@pytest.fixture
def openssl(peer):
    return peer("openssl")


def s_client(bench, openssl, certificates, listener, *options):
    return Tool(bench, openssl, "s_client", "-connect", "{}:{}".format(*listener.address), "-servername", "localhost",
                "-CAfile", certificates.authority, "-verify_return_error", *options)


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_s_client(bench, openssl, certificates, contexts, version):
    factory = Factory(Echo)
    with s_client(bench, openssl, certificates, bench.listen(factory, ssl=contexts[0]), version) as tool:
        tool.until(b"Verify return code: 0 (ok)")
        tool.say(b"hello\n")
        tool.until(b"hello\n")
        if version == "-tls1_3":
            for command in (b"K\n", b"k\n", b"K\n"):    # new keys, also for the other direction
                tool.say(command)
                tool.until(b"KEYUPDATE")
                tool.say(b"again\n")
                tool.until(b"again\n")
        else:
            tool.say(b"R\n")
            tool.until(b"RENEGOTIATING")
            tool.until(b"no renegotiation")
        tool.say(b"Q\n")
        assert tool.ends() in (0, 1)
        bench.turn_until(lambda: factory.made[0].closed)
    stream = factory.made[0]
    assert stream.names[:2] == ["open", "data"]
    if version == "-tls1_3":
        assert stream.data == b"hello\n" + b"again\n" * 3
        assert stream.names == ["open", "data", "eof", "close"]


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_s_server(bench, openssl, certificates, contexts, version):
    """It renews keys (TLS 1.3), or begins anew (TLS 1.2), and goes on."""
    factory = Factory(Stay)
    with Tool(bench, openssl, "s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-cert", certificates.server,
              version, "-msg") as tool:
        tool.until(b"ACCEPT 127.0.0.1:")
        port = int(tool.until(b"\n"))
        bench.loop.connect(("127.0.0.1", port), factory, ssl=contexts[1], server_hostname="localhost")
        tool.until(b"CIPHER is")
        tool.say(b"hello\n")
        stream = factory.made[0]
        bench.turn_until(lambda: stream.data == b"hello\n")
        tool.say(b"K\n" if version == "-tls1_3" else b"r\n")
        tool.until(b", KeyUpdate" if version == "-tls1_3" else b"SSL_do_handshake -> 1")
        tool.say(b"again\n")
        bench.turn_until(lambda: stream.data == b"hello\nagain\n")
        stream.write(b"answer\n")
        tool.until(b"answer\n")
        stream.close()
        tool.until(b"DONE")
        bench.turn_until(lambda: stream.closed)
    assert stream.close_error is None


# -- HTTP --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def web(bench, contexts):
    def app(request):
        return epollkit_http.Response(request.body or request.path.encode() * (1000 if request.path == "/long" else 1))

    listener = epollkit_http.listen(bench.loop, TCP, app, ssl=contexts[0], timeout_keep_alive=5)
    bench.listeners.append(listener)
    return listener


def ask(path, *headers):
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def test_http_over_tls(bench, contexts, version, web):
    peer = SecurePeer(bench, connect(web), contexts[1])
    for _ in range(3):
        peer.write(ask("/one") + ask("/two"))
        assert peer.take(1).startswith(b"H")
        peer.until(lambda: peer.received.endswith(b"/two"))
        assert peer.received.count(b"200 OK") == 2
        peer.received.clear()
    peer.write(ask("/last", "Connection: close"))
    assert peer.take_all().endswith(b"/last")


def test_http_answers_that_nobody_reads_hold_the_pipeline(bench, contexts, web):
    """TLS or not: requests are not executed while answers wait."""
    asked = []
    listener = epollkit_http.listen(bench.loop, TCP, lambda request: asked.append(request.path) or
                                    epollkit_http.Response(bytes(20_000)), ssl=contexts[0])
    bench.listeners.append(listener)
    set_buffers(listener.fileno(), 0, 16384)
    peer = SecurePeer(bench, connect(listener, (16384, 0)), contexts[1])
    peer.shake()
    peer.reading = False
    peer.write(ask("/") * 50)
    peer.settle()
    assert 1 <= len(asked) <= 6
    peer.reading = True
    peer.until(lambda: peer.received.count(b"200 OK") == 50)
    assert len(asked) == 50


@pytest.mark.debug_build
def test_an_idle_http_connection_is_closed_with_close_notify(contexts):
    """When its time is over, and when it makes room."""
    from epollkit._operations import fake_clock

    with fake_clock() as clock, epollkit.Loop(max_connections=1) as loop, Bench(loop) as bench:
        listener = epollkit_http.listen(loop, TCP, lambda request: epollkit_http.Response(b"."), ssl=contexts[0])
        bench.listeners.append(listener)
        first = SecurePeer(bench, connect(listener), contexts[1])
        first.write(ask("/"))
        assert first.take(1) == b"H"
        first.settle()
        second = SecurePeer(bench, connect(listener), contexts[1])
        second.write(ask("/"))
        assert second.take(1) == b"H"
        assert first.take_all().endswith(b".")
        second.settle()
        clock.advance(76)
        assert second.take_all().endswith(b".")


def test_curl(bench, certificates, web, peer, tmp_path):
    """Two requests on one connection, and a body of a megabyte."""
    (tmp_path / "body").write_bytes(MEGABYTE)
    url = f"https://localhost:{web.address[1]}"
    options = ["-sS", "--cacert", certificates.authority, "--ipv4", "-v", "--max-time", str(PATIENCE_SECONDS)]
    with Tool(bench, peer("curl"), *options, url + "/one", url + "/two") as tool:
        assert tool.ends() == 0, tool.output
        assert tool.output.count(b"HTTP/1.1 200 OK") == 2
        assert b"Re-using existing connection" in tool.output
    out = tmp_path / "out"
    with Tool(bench, peer("curl"), *options, "--data-binary", f"@{tmp_path}/body", "-H", "Expect:", "-o", out,
              url + "/") as tool:
        assert tool.ends() == 0, tool.output
    assert out.read_bytes() == MEGABYTE


def test_curl_does_not_trust_a_stranger(bench, certificates, contexts, web, peer):
    contexts[0].load_cert_chain(certificates.stranger)
    with Tool(bench, peer("curl"), "-sS", "--cacert", certificates.authority, "--ipv4",
              f"https://localhost:{web.address[1]}/") as tool:
        assert tool.ends() == 60, tool.output


def test_http_serve_takes_a_context(certificates):
    """`serve` in a process of its own, and Python's own client."""
    code = f"""
import ssl, sys, threading, urllib.request
from epollkit.http import Response, serve

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain({str(certificates.server)!r})

def ask(listener):
    def run():
        trusting = ssl.create_default_context(cafile={str(certificates.authority)!r})
        url = "https://localhost:%d/path" % listener.address[1]
        for _ in range(3):
            print(urllib.request.urlopen(url, context=trusting, timeout=20).read().decode())
        import os, signal
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=run).start()

serve(lambda request: Response(request.target.encode()), port=0, ssl=context, on_listening=ask)
"""
    assert in_child(code) == "/path\n" * 3


# -- many --------------------------------------------------------------------------------------------------------------


def test_a_thousand_handshakes_leave_nothing_alive(bench, contexts):
    """Of them some fail, some end at once, some exchange data; both sides are streams. The debug build counts."""
    def run(count):
        made = Factory(Echo), Factory(Stay)
        listener = bench.loop.listen(TCP, made[0], ssl=contexts[0])
        wrong = ssl.create_default_context()
        for number in range(count):
            connector = bench.loop.connect(listener.address, made[1], ssl=wrong if number % 5 == 4 else contexts[1],
                                           server_hostname="localhost")
            stream = connector.stream
            if number % 5 == 3:
                bench.turn_until(lambda: connector.state == "connected")    # noqa: B023
                stream.abort()
            bench.turn_until(lambda: stream.upcalls)                        # noqa: B023
            if not stream.closed:
                stream.write(b"x" * (number % 50_000))
                if number % 5:
                    stream.shutdown_write()
                else:
                    stream.close()
            bench.turn_until(lambda: stream.closed)                         # noqa: B023
            if number % 5 == 0:
                bench.turn_until(lambda: made[0].made[-1].closed)
        listener.close()
        bench.turn_until(lambda: bench.loop.stats().live == 0)
        assert all(stream.closed for factory in made for stream in factory.made)

    def alive():
        gc.collect()
        return sum(isinstance(found, (ssl.SSLObject, ssl.SSLContext, epollkit.Stream)) for found in gc.get_objects())

    run(10)
    before = alive()
    run(1000)
    assert alive() == before

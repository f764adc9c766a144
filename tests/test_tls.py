"""`Tls`, one end piped into the other in memory, or into ssl's own: however the bytes are cut, the same comes out; an
end that is missing is never taken for one that was said."""
from __future__ import annotations

import contextlib
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epollkit import UsageError
from epollkit._tls import Tls, TlsPipe

RECORD = 16384      # bytes of plaintext in one record, at most
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(params=VERSIONS, ids=["TLSv1.2", "TLSv1.3"])
def version(request):
    return request.param


@pytest.fixture
def contexts(certificates, version):
    """The server's and the client's, which speak this version only."""
    made = certificates.server_context(), certificates.client_context()
    for context in made:
        context.minimum_version = context.maximum_version = version
    return made


class Reference:
    """The other end as ssl has it, with the methods of TlsPipe."""

    def __init__(self, context, server_side, server_hostname=None):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl_object = context.wrap_bio(self.incoming, self.outgoing, server_side, server_hostname)

    def shake(self, data=b""):
        self.incoming.write(data)
        try:
            self.ssl_object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def open(self, data=b""):
        self.incoming.write(data)
        try:
            return self.ssl_object.read(1 << 16) or None
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLZeroReturnError:
            return None

    def write(self, data):
        while data:
            data = data[self.ssl_object.write(data):]
        return self.take()

    def close(self):
        with contextlib.suppress(ssl.SSLWantReadError):
            self.ssl_object.unwrap()

    def take(self):
        return self.outgoing.read()


def pieces_of(data, size):
    """It in pieces of that many bytes; whole, and nothing too, for None."""
    return [data] if size is None else [data[at:at + size] for at in range(0, len(data), size)]


def shake_all(end, data, size=None):
    """Give it what came, piece by piece; whether it is done."""
    done = False
    for piece in pieces_of(data, size):
        done = end.shake(piece)
    return done


def shake_hands(server, client, size=None):
    """Both ends' handshake, in pieces of that size."""
    client.shake()
    done = [False, False]
    for _ in range(5):
        done = [shake_all(server, client.take(), size) or done[0], shake_all(client, server.take(), size) or done[1]]
        if all(done):
            return
    pytest.fail("the handshake does not end")


def pair(contexts, kinds=(TlsPipe, TlsPipe), size=None):
    server, client = kinds[0](contexts[0], True), kinds[1](contexts[1], False, "localhost")
    shake_hands(server, client, size)
    assert opened(client, server.take(), size) == b"", "session tickets are not data"
    return server, client


def asks_later(certificates):
    """A pair whose server is about to ask for the client's certificate, which only TLS 1.3 allows by then."""
    contexts = certificates.server_context(client_certificate=True), certificates.client_context(True)
    contexts[0].verify_mode = ssl.CERT_OPTIONAL
    contexts[1].post_handshake_auth = True
    server, client = pair(contexts)
    server.ssl_object.verify_client_post_handshake()
    return server, client


def opened(end, data=b"", size=None):
    """All that comes out of it: bytes; b"" and then "end" for the peer's close_notify."""
    found = b""
    for piece in pieces_of(data, size):
        plain = end.open(piece)
        while plain:
            found += plain
            plain = end.open()
        if plain is None:
            return (found, "end")
    return found


def outcome(end, data=b"", size=None):
    """The same, or the error that it came to, and what came before that."""
    found = b""
    try:
        for piece in pieces_of(data, size):
            plain = end.open(piece)
            while plain:
                found += plain
                plain = end.open()
            if plain is None:
                return found, "end"
        return found, ""
    except ssl.SSLError as error:
        return found, type(error).__name__


# -- handshakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [(TlsPipe, TlsPipe), (TlsPipe, Reference), (Reference, TlsPipe)],
                         ids=["both ours", "our server", "our client"])
@pytest.mark.parametrize("size", [None, 1, 5, 100], ids=["whole", "1", "5", "100"])
def test_hands_are_shaken_however_the_bytes_are_cut(contexts, version, kinds, size):
    server, client = pair(contexts, kinds, size)
    assert server.ssl_object.version() == client.ssl_object.version() == version.name.replace("_", ".")
    for sender, receiver in ((server, client), (client, server)):
        assert opened(receiver, sender.write(b"hello"), size) == b"hello"


def test_data_right_behind_the_handshake_waits_for_open(contexts):
    """The client's last flight and its first request come in one piece, and the handshake takes its part only."""
    reads = []

    class Counted(ssl.SSLObject):
        def read(self, *arguments):
            reads.append(arguments)
            return super().read(*arguments)

    contexts[0].sslobject_class = Counted
    for cut in (None, 1, 7):
        reads.clear()
        server, client = TlsPipe(contexts[0], True), TlsPipe(contexts[1], False, "localhost")
        client.shake()
        server.shake(client.take())
        if not client.shake(server.take()):         # TLS 1.2: the server's Finished is the last
            server.shake(client.take())
            assert client.shake(server.take())
        flight = client.take() + client.write(b"first") + client.write(b"second")
        got = b""
        for piece in pieces_of(flight, cut):
            if server.shake(piece):
                got += opened(server)
        assert got == b"firstsecond"
        assert len(reads) <= 3, "one in vain at most: how many records are left is not known then"


def test_split_at_every_index(contexts):
    """Two messages and a close_notify, in two pieces, cut anywhere."""
    server, client = pair(contexts)
    whole = len(client.write(b"one") + client.write(b"three"))
    server, client = pair(contexts)
    for index in range(whole + 1):
        stream = client.write(b"one") + client.write(b"three")
        assert len(stream) == whole
        assert opened(server, stream[:index]) + opened(server, stream[index:]) == b"onethree"
    end = client.write(b"end")
    client.close()
    end += client.take()
    found = [opened(server, byte) for byte in pieces_of(end, 1)]
    assert [plain for plain in found if plain] == [b"end", (b"", "end")]
    assert found[-1]


def test_openssl_is_not_asked_for_what_is_not_there(contexts):
    """Each question in vain costs an exception. One per flight of a handshake is due; none for data, in any pieces."""
    asked = []

    class Counted(ssl.SSLObject):
        def read(self, *arguments):
            asked.append("read")
            return super().read(*arguments)

        def do_handshake(self):
            asked.append("do_handshake")
            return super().do_handshake()

    for context in contexts:
        context.sslobject_class = Counted
    assert not TlsPipe(contexts[0], True).shake()
    assert not asked, "a server has nothing to say before the client's hello"
    for size in (None, 1):
        asked.clear()
        server, client = pair(contexts, size=size)
        assert asked.count("do_handshake") <= 12
        asked.clear()
        for piece in pieces_of(client.write(b"x" * 3 * RECORD + b"y"), size and 500):
            opened(server, piece)
        assert asked == ["read"] * 4


def test_memory_holds_a_record_and_not_what_one_recv_brings(contexts, monkeypatch):
    """A BIO keeps the memory of the most that ever was in it, for as long as the connection lives."""
    bios, most = [], []
    make = ssl.MemoryBIO

    class Watched(ssl.SSLObject):
        def read(self, *arguments):
            most.append(bios[0].pending)
            return super().read(*arguments)

        def write(self, data):
            written = super().write(data)
            most.append(bios[1].pending)
            return written

    monkeypatch.setattr(ssl, "MemoryBIO", lambda: bios.append(make()) or bios[-1])
    contexts[0].sslobject_class = Watched
    server, client = pair(contexts)
    for data in (b"x" * 200_000, b"y" * 100):
        assert opened(server, client.write(data)) == data
        assert opened(server, b"".join(client.write(data[:100]) for _ in range(500))) == data[:100] * 500
        assert opened(client, server.write(data)) == data
    assert RECORD < max(most) <= RECORD + 4096 + 512


# -- data --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, RECORD - 1, RECORD, RECORD + 1, 1 << 20])
@pytest.mark.parametrize("kinds", [(TlsPipe, TlsPipe), (TlsPipe, Reference), (Reference, TlsPipe)],
                         ids=["both ours", "our server", "our client"])
def test_data_both_ways(contexts, kinds, length):
    server, client = pair(contexts, kinds)
    data = bytes(range(256)) * (length // 256) + bytes(length % 256)
    for sender, receiver in ((server, client), (client, server)):
        sealed = sender.write(data)
        assert opened(receiver, sealed) == data
        assert opened(receiver, sender.write(data), 16000) == data
        assert not sender.take()
    if length <= 1:
        assert opened(server, client.write(data), 1) == data


def test_one_call_opens_as_many_records_as_there_is_room_for(contexts):
    server, client = pair(contexts)
    sealed = client.write(b"x" * 10 * RECORD)
    assert [len(server.open(sealed)), len(server.open())] == [4 * RECORD, 4 * RECORD]
    server.plain = bytearray(2 * RECORD - 1)
    assert [len(server.open()), len(server.open()), server.open()] == [RECORD, RECORD, b""]
    server.plain = bytearray(RECORD)
    assert len(server.open(client.write(b"y" * 100))) == 100


def test_what_is_held_is_opened_later(contexts):
    """A reader that pauses hands the rest of its buffer in; nothing is decrypted before it asks."""
    server, client = pair(contexts)
    sealed = client.write(b"a" * 100_000) + client.write(b"b")
    assert not server.holds()
    server.keep(sealed[:1000])
    assert not server.holds(), "no whole record"
    server.keep(sealed[1000:-1])
    assert server.holds()
    assert opened(server) == b"a" * 100_000
    assert not server.holds()
    assert opened(server, sealed[-1:]) == b"b"


@given(st.data())
def test_any_cuts_give_the_same_bytes(certificates, data):
    """Both directions interleaved at random, pieces of random size, and a random half that closes first."""
    server, client = pair((certificates.server_context(), certificates.client_context()))
    ends = {"server": (server, client), "client": (client, server)}
    wires = dict.fromkeys(ends, b"")        # sent by that end, and on its way
    sent = dict.fromkeys(ends, b"")
    came = dict.fromkeys(ends, b"")
    closed = set()
    for _ in range(data.draw(st.integers(1, 20))):
        name = data.draw(st.sampled_from(["server", "client"]))
        sender, receiver = ends[name]
        what = data.draw(st.sampled_from(["write", "move", "hold", "close"]))
        if what == "write" and name not in closed:
            text = data.draw(st.binary(max_size=50)) * data.draw(st.sampled_from([1, 400, 1000]))
            sent[name] += text
            wires[name] += sender.write(text)
        elif what == "close":
            closed.add(name)
            sender.close()
            wires[name] += sender.take()
        else:
            count = data.draw(st.integers(0, len(wires[name])))
            if what == "hold":
                receiver.keep(wires[name][:count])
            else:
                plain = opened(receiver, wires[name][:count])
                came[name] += plain[0] if type(plain) is tuple else plain
            wires[name] = wires[name][count:]
    for name, (sender, receiver) in ends.items():
        sender.close()
        plain, end = opened(receiver, wires[name] + sender.take())
        assert end == "end"
        assert came[name] + plain == sent[name]


# -- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [(TlsPipe, TlsPipe), (Reference, TlsPipe), (TlsPipe, Reference)],
                         ids=["both ours", "our client", "our server"])
@pytest.mark.parametrize("first", [0, 1], ids=["server first", "client first"])
def test_each_half_is_closed_by_itself(contexts, kinds, first):
    ends = pair(contexts, kinds)
    one, other = ends[first], ends[1 - first]
    sealed = one.write(b"last")
    one.close()
    assert opened(other, sealed + one.take()) == (b"last", "end")
    for _ in range(3):
        assert opened(one, other.write(b"answer" * 5000)) == b"answer" * 5000
    sealed = other.write(b"done")
    other.close()
    assert opened(one, sealed + other.take()) == (b"done", "end")
    assert not one.take()
    assert not other.take()


@pytest.mark.parametrize("unread", ["held", "cut", "nothing"])
def test_close_while_data_is_on_its_way(contexts, unread):
    """OpenSSL takes application data that it meets while it sends a close_notify for a fatal error."""
    server, client = pair(contexts)
    sealed = client.write(b"x" * 30_000)
    cut = {"held": len(sealed), "cut": 20_000, "nothing": 0}[unread]
    server.keep(sealed[:cut])
    server.close()
    assert opened(client, server.take()) == (b"", "end")
    assert opened(server, sealed[cut:]) == b"x" * 30_000
    client.close()
    assert opened(server, client.take()) == (b"", "end")


def test_closing_is_done_once_and_not_before_the_handshake(contexts):
    server, client = TlsPipe(contexts[0], True), TlsPipe(contexts[1], False, "localhost")
    server.close()
    assert server.take() == b""
    shake_hands(server, client)
    server.take()
    server.close()
    assert server.take()
    server.close()
    assert server.take() == b""


def test_the_peers_end_stays_the_end(contexts):
    server, client = pair(contexts)
    client.close()
    assert server.open(client.take()) is None
    assert server.holds()
    for extra in (b"", b"garbage", b"\x17\x03\x03\x00\x01x"):
        assert server.open(extra) is None
    server.end()
    assert server.open() is None


def test_a_socket_that_ends_without_close_notify_is_an_error(contexts):
    for data in (b"", b"x", b"x" * 100_000):
        server, client = pair(contexts)
        sealed = client.write(data)
        server.end()
        assert server.holds()
        assert outcome(server, sealed) == (data, "SSLEOFError")
        assert outcome(server) == (b"", "SSLEOFError"), "now and for ever"


def test_a_socket_that_ends_inside_of_a_record_is_an_error(contexts):
    server, client = pair(contexts)
    length = len(client.write(b"four"))
    for cut in range(1, length):
        server, client = pair(contexts)
        sealed = client.write(b"good") + client.write(b"four")
        assert outcome(server, sealed[:length + cut]) == (b"good", "")
        server.end()
        assert outcome(server) == (b"", "SSLEOFError")


def test_options_do_not_make_a_missing_end_a_clean_one(contexts):
    for context in contexts:
        context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    server, _ = pair(contexts)
    server.end()
    assert outcome(server) == (b"", "SSLEOFError")


def test_a_socket_that_ends_before_the_handshake_does_is_an_error(contexts):
    server, client = TlsPipe(contexts[0], True), TlsPipe(contexts[1], False, "localhost")
    client.shake()
    hello = client.take()
    for cut in (0, 1, 100, len(hello)):
        server = TlsPipe(contexts[0], True)
        assert not server.shake(hello[:cut])
        server.end()
        with pytest.raises(ssl.SSLEOFError):
            server.shake()
        server.close()
        assert cut == len(hello) or server.take() == b""


def test_close_in_the_middle_of_another_handshake(certificates):
    """OpenSSL refuses to; reading goes on, and the peer will see the socket's end alone."""
    server, client = asks_later(certificates)
    server.close()
    assert server.take() == b""
    assert opened(server, client.write(b"data")) == b"data"


# -- what is wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [
    b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\x16\x03\x01\xff\xff", b"\x17\x03\x03\x00\x05hello",
    b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01\x00\x00",
], ids=["http", "zeros", "too long", "data", "no hello", "empty"])
@pytest.mark.parametrize("size", [None, 1], ids=["whole", "byte by byte"])
def test_garbage_for_a_hello(contexts, garbage, size):
    """It is refused once it is seen, not when as many bytes have come as its length would say."""
    server = TlsPipe(contexts[0], True)
    with pytest.raises(ssl.SSLError) as caught:
        shake_all(server, garbage + bytes(20), size)
    assert type(caught.value) is ssl.SSLError
    server.close()
    server.take()


@pytest.mark.parametrize("size", [None, 1, 1000], ids=["whole", "1", "1000"])
@pytest.mark.parametrize("garbage", [b"\x17\x03\x03\x00\x20" + bytes(32), b"not a record at all"],
                         ids=["forged", "no record"])
def test_a_bad_record_after_good_ones(contexts, garbage, size):
    """What came before it is delivered, then the error, again whenever one asks; the alert for the peer is there."""
    server, client = pair(contexts)
    good = client.write(b"good" * 5000)
    assert outcome(server, good + garbage, size) == (b"good" * 5000, "SSLError")
    assert server.holds()
    assert outcome(server) == (b"", "SSLError")
    assert server.take(), "an alert"
    with pytest.raises(ssl.SSLError):
        server.write(b"x")
    server.close()
    assert server.take() == b""


def test_one_flipped_bit(contexts):
    server, client = pair(contexts)
    length = len(client.write(b"text"))
    for at in range(length):
        server, client = pair(contexts)
        sealed = bytearray(client.write(b"text"))
        sealed[at] ^= 1
        server.end()        # a length that promises more than comes is an error, too
        found, error = outcome(server, bytes(sealed))
        assert found == b""
        assert error or outcome(server)[1], at


@pytest.mark.parametrize("wrong", ["name", "authority", "self-signed"])
def test_a_server_that_is_somebody_else(certificates, contexts, wrong):
    """The client refuses; the alert that says so is there to be sent, and reaches the server."""
    server_context, client_context = contexts
    if wrong == "authority":
        client_context = ssl.create_default_context(cafile=str(certificates.stranger))
    if wrong == "self-signed":
        server_context.load_cert_chain(certificates.stranger)
    server = TlsPipe(server_context, True)
    client = TlsPipe(client_context, False, "elsewhere.example" if wrong == "name" else "localhost")
    client.shake()
    server.shake(client.take())
    with pytest.raises(ssl.SSLCertVerificationError):
        client.shake(server.take())
    with pytest.raises(ssl.SSLError):
        client.shake()
    alert = client.take()
    assert alert
    with pytest.raises(ssl.SSLError, match="alert"):
        server.shake(alert)
        server.open()


def test_an_error_keeps_no_memory_of_ours(contexts):
    """What is written lies in C memory that others use next. ssl's frame, in the traceback, has a view of it."""
    def fails(self, data):
        raise Interrupted

    contexts[0].sslobject_class = type("Fails", (ssl.SSLObject,), {"write": fails})
    server, _ = pair(contexts)
    with pytest.raises(Interrupted) as caught:
        server.write(b"secret")
    (view,) = [entry.locals["data"] for entry in caught.traceback if entry.name == "fails"]
    with pytest.raises(ValueError, match="released"):
        bytes(view)


def test_renegotiation_is_refused_in_a_sentence(contexts):
    """A server of TLS 1.2 may ask for one. While it lasts, OpenSSL wants to read before it writes."""
    def wants_to_read(self, data):
        raise ssl.SSLWantReadError

    contexts[1].sslobject_class = type("Wants", (ssl.SSLObject,), {"write": wants_to_read})
    _, client = pair(contexts)
    with pytest.raises(ssl.SSLError, match="renegotiates"):
        client.write(b"x")
    with pytest.raises(ssl.SSLError, match="has ended"):
        client.open()


# -- what the context decides ------------------------------------------------------------------------------------------


def test_client_certificates(certificates, version):
    for shown in (True, False):
        contexts = certificates.server_context(client_certificate=True), certificates.client_context(shown)
        contexts[0].maximum_version = version
        if shown:
            server, client = pair(contexts)
            assert ("commonName", "a client") in [name for (name,) in server.ssl_object.getpeercert()["subject"]]
            assert opened(server, client.write(b"x")) == b"x"
            continue
        server, client = TlsPipe(contexts[0], True), TlsPipe(contexts[1], False, "localhost")
        with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
            shake_hands(server, client)
        with pytest.raises(ssl.SSLError, match=r"alert|ALERT"):      # in TLS 1.3 its own handshake was done before
            client.shake(server.take())
            opened(client)


def test_a_certificate_that_is_asked_for_later(certificates):
    """TLS 1.3: reading makes the client write."""
    server, client = asks_later(certificates)
    server.ssl_object.do_handshake()
    assert opened(client, server.take()) == b""
    answer = client.take()
    assert answer
    assert opened(server, answer + client.write(b"data")) == b"data"
    assert server.ssl_object.getpeercert()


def test_sni_and_alpn(certificates, contexts):
    """The name that is asked for chooses the context; the protocol is the server's first that both have."""
    asked = []
    other = certificates.server_context()
    other.set_alpn_protocols(["http/1.1"])

    def choose(ssl_object, name, context):
        asked.append(name)
        ssl_object.context = other

    contexts[0].sni_callback = choose
    contexts[0].set_alpn_protocols(["http/1.1"])
    contexts[1].set_alpn_protocols(["h2", "http/1.1"])
    server, client = pair(contexts)
    assert asked == ["localhost"]
    assert server.ssl_object.context is other
    for end in (server, client):
        assert end.ssl_object.selected_alpn_protocol() == "http/1.1"


def test_ssl_refuses_what_it_refuses(contexts):
    with pytest.raises(TypeError, match="SSLContext"):
        Tls("context", True)
    with pytest.raises(ValueError, match="server_hostname"):
        Tls(contexts[1], False, "")
    with pytest.raises(ssl.SSLError):
        Tls(contexts[0], False, "localhost")
    with pytest.raises(ssl.SSLError):
        Tls(contexts[1], True)


# -- what runs in the middle -------------------------------------------------------------------------------------------


def test_a_callback_may_not_use_the_connection(contexts):
    """OpenSSL is in the middle of something; who calls it then, gets a sentence, and the handshake goes on."""
    refused = []

    def callback(ssl_object, name, context):
        for call in (server.shake, server.open):
            with pytest.raises(UsageError, match="callback") as caught:
                call(b"\x16\x03\x01\x00\x01\x01")
            refused.append(caught)

    contexts[0].sni_callback = callback
    server, client = TlsPipe(contexts[0], True), TlsPipe(contexts[1], False, "localhost")
    client.shake()
    server.shake(client.take())
    assert len(refused) == 2
    contexts[0].sni_callback = None     # ssl's objects do not show the collector this cycle


def test_a_callback_that_raises_ends_the_handshake(contexts, monkeypatch):
    """It can't say so through OpenSSL: Python reports it, and the peer gets an alert."""
    reported = []
    monkeypatch.setattr("sys.unraisablehook", lambda found: reported.append(found.exc_type))
    contexts[0].sni_callback = lambda *_: 1 / 0
    server, client = TlsPipe(contexts[0], True), TlsPipe(contexts[1], False, "localhost")
    client.shake()
    with pytest.raises(ssl.SSLError):
        server.shake(client.take())
    assert reported == [ZeroDivisionError]
    with pytest.raises(ssl.SSLError, match="ALERT"):
        client.shake(server.take())


class Interrupted(BaseException):
    """What a signal's handler raises."""


@pytest.mark.parametrize("call", ["do_handshake", "read", "write", "unwrap"])
def test_a_signal_handler_that_raises_ends_the_session(contexts, call):
    """ssl runs it when OpenSSL has done its work, and loses what that was: what follows must not go on with a gap."""
    armed = []

    def interrupted(*arguments):
        try:
            return getattr(ssl.SSLObject, call)(*arguments)
        finally:
            if armed:
                raise Interrupted

    for context in contexts:
        context.sslobject_class = type("Handled", (ssl.SSLObject,), {call: interrupted})
    server, client = TlsPipe(contexts[0], True), TlsPipe(contexts[1], False, "localhost")
    if call == "do_handshake":
        client.shake()
    else:
        shake_hands(server, client)
    sealed = client.take() + (client.write(b"lost") if call != "do_handshake" else b"")
    armed.append(True)
    work = {"do_handshake": lambda: server.shake(sealed), "read": lambda: server.open(sealed),
            "write": lambda: server.write(b"x"), "unwrap": lambda: [server.keep(sealed), server.close()]}
    with pytest.raises(Interrupted):
        work[call]()
    for _ in range(2):
        with pytest.raises(ssl.SSLError, match="has ended"):
            server.open()
    server.close()
    if call == "do_handshake":
        client = TlsPipe(contexts[1], False, "localhost")
        with pytest.raises(Interrupted):
            client.shake()
        for end in (server, client):
            with pytest.raises(ssl.SSLError, match="has ended"):
                end.shake()

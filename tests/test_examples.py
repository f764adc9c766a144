"""The examples, each run as its docstring says: what a reader is shown is what happens."""
from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import re
import select
import signal
import socket
from pathlib import Path

import pytest
from batches import PATIENCE_SECONDS, settle, turn_until
from programs import EXAMPLES, Program, RedisServer, Scripted, bulk, example
from wire import cuts, wait_until


@pytest.fixture
def imported(monkeypatch):
    """An example as a module, for what a process can't show."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


@pytest.fixture
def redis(peer, tmp_path):
    """Starts a real redis-server; ended with the test."""
    with contextlib.ExitStack() as started:
        yield lambda *arguments: started.enter_context(RedisServer(peer("redis-server"), tmp_path, *arguments))


@pytest.fixture
def scripted(tmp_path):
    with Scripted(tmp_path / "scripted.sock") as server:
        yield server


def connect(program: Program) -> socket.socket:
    """A blocking client of what the program's first line names."""
    place = program.line(r" on (\S+)(?: port (\d+))?$")
    client = socket.socket(socket.AF_INET if place[2] else socket.AF_UNIX)
    client.settimeout(PATIENCE_SECONDS)
    client.connect((place[1], int(place[2])) if place[2] else place[1])
    return client


def read_to_the_end(client: socket.socket) -> bytes:
    with client.makefile("rb") as stream:
        return stream.read()


@pytest.mark.parametrize("name", ["echo.py", "chat.py", "redis_ping.py", "redis_replica.py"])
def test_its_options_are_those_of_its_docstring(name):
    with example(name, "--help") as program:
        status, output, errors = program.end()
    assert (status, errors) == (0, "")
    named = set(re.findall(r"--[a-z-]+", (EXAMPLES / name).read_text().split('"""')[1]))
    assert named <= set(re.findall(r"--[a-z-]+", output))


@pytest.mark.parametrize("name", ["echo.py", "chat.py"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_server_ends_quietly(name, signum, tmp_path):
    """With a client, and its socket's file is gone."""
    path = tmp_path / "socket"
    with example(name, "--uds", path) as program, connect(program) as client:
        client.sendall(b"hello\n")
        assert client.recv(1)
        assert program.end(signum)[::2] == (0, "")
        assert client.recv(1000) is not None
    assert not path.exists()


@pytest.mark.parametrize("name", ["echo.py", "chat.py"])
def test_an_address_that_is_taken(name):
    with socket.create_server(("127.0.0.1", 0)) as taken, \
            example(name, "--port", taken.getsockname()[1]) as program:
        status, output, errors = program.end()
    assert (status, output) == (1, "")
    assert re.fullmatch(rf"{name[:-3]}: cannot listen on 127.0.0.1:\d+: the address is in use .*\n", errors)


# -- echo --------------------------------------------------------------------------------------------------------------


def test_echo_answers_to_the_last_byte():
    """Half-closed by the peer, it still gets everything back."""
    data = bytes(range(256)) * 1000
    with example("echo.py", "--port", 0) as program, connect(program) as client:
        client.sendall(b"first")
        assert client.recv(100) == b"first"
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert read_to_the_end(client) == data


def test_echo_makes_a_peer_wait_that_does_not_read():
    """Four times what a stream may have unsent before it is reset: the peer reads only when it can send no more."""
    total = 64 << 20
    piece = bytes(range(256)) * 256
    sent = received = stalls = 0
    with example("echo.py", "--port", 0) as program, connect(program) as client:
        client.setblocking(False)
        poll = select.poll()
        poll.register(client, select.POLLOUT)
        while sent < total:
            if poll.poll(20):
                sent += client.send(piece[sent % len(piece):])
                continue
            stalls += 1
            with contextlib.suppress(BlockingIOError):
                while (data := client.recv(1 << 20)):
                    assert data == (piece * 18)[received % len(piece):][:len(data)]
                    received += len(data)
        client.setblocking(True)
        client.shutdown(socket.SHUT_WR)
        received += len(read_to_the_end(client))
    assert received == total
    assert stalls


def test_echo_does_not_wait_for_ever():
    with example("echo.py", "--port", 0, "--idle", 0.05) as program, connect(program) as client:
        assert client.recv(1) == b""
        assert program.line(r"nothing was received", "stderr").string == (
            f"{client.getsockname()}: nothing was received for 0.05 s")


# -- chat --------------------------------------------------------------------------------------------------------------


class Guest:
    """Somebody in the chat room."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_SECONDS)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rb")

    def say(self, *lines: str) -> None:
        self.socket.sendall("".join(line + "\n" for line in lines).encode())

    def hears(self) -> str:
        return self.lines.readline().decode().rstrip("\n")

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


class ChatRoom:
    def __init__(self, stage: contextlib.ExitStack, path: Path, *arguments: object) -> None:
        self.stage, self.path = stage, path
        self.program = stage.enter_context(example("chat.py", "--uds", path, *arguments))
        self.program.line(f"the room is open on {path}")

    def door(self) -> Guest:
        guest = Guest(self.path)
        self.stage.callback(guest.close)
        assert guest.hears() == "Who are you?"
        return guest

    def enter(self, name: str) -> Guest:
        guest = self.door()
        guest.say(name)
        assert guest.hears().startswith(f"Welcome, {name}! ")
        return guest


@pytest.fixture
def room(stage, tmp_path):
    return lambda *arguments: ChatRoom(stage, tmp_path / "room", *arguments)


def test_chat(room):
    """Each line goes to everybody else; who comes and goes is named."""
    chat = room()
    ann = chat.enter("ann")
    bob = chat.enter("bob")
    assert ann.hears() == "bob is here"
    ann.say("hello")
    assert bob.hears() == "ann: hello"
    bob.say("", "  ", "hi\x1b[2J\r", "/who")
    assert ann.hears() == "bob: hi[2J"
    assert bob.hears() == "ann, bob"
    bob.say("bye", "/quit", "not heard any more")
    assert [ann.hears(), ann.hears()] == ["bob: bye", "bob has left"]
    assert bob.hears() == ""
    ann.close()
    assert chat.program.take(4) == ["ann is here", "bob is here", "bob has left", "ann has left"]


def test_chat_names(room):
    chat = room()
    chat.enter("ann")
    guest = chat.door()
    guest.say("ann")
    assert guest.hears() == "That name is taken. Who are you?"
    for name in ("", "a b", "x" * 21, "\x1b"):
        guest.say(name)
        assert guest.hears() == "A name has 1 to 20 letters and digits. Who are you?"
    guest.say("Zoë")
    assert guest.hears() == "Welcome, Zoë! Here are: ann, Zoë"


def test_chat_drops_who_reads_too_slowly(room):
    """And says who it was; the others miss nothing."""
    chat = room("--behind", 65536, "--rate", 1e9)
    slow, ann, bob = (chat.enter(name) for name in ("slow", "ann", "bob"))
    assert ann.hears() == "bob is here"
    numbers = itertools.count()
    dropped = False
    while not dropped:
        lines = [f"{next(numbers)} " + "x" * 1000 for _ in range(30)]       # fewer than may be unsent to bob
        ann.say(*lines)
        for line in lines:
            if (heard := bob.hears()) == "slow was dropped: reads too slowly":
                dropped, heard = True, bob.hears()
            assert heard == "ann: " + line
    assert next(numbers) < 2000, "that is what --behind says, and what the kernel has room for"
    assert slow.lines.read().count(b"\n") < next(numbers)


def test_chat_ends_a_line_that_is_too_long(room):
    chat = room("--rate", 1e6)
    ann, bob = chat.enter("ann"), chat.enter("bob")
    assert ann.hears() == "bob is here"
    with contextlib.suppress(ConnectionResetError):
        bob.say("x" * 10_000)
    assert ann.hears() == "bob was dropped: a frame is longer than its limit of 1024 bytes"


def test_chat_slows_down_who_talks_too_fast(room):
    """A minute's worth of lines from one; another is heard at once, between them."""
    chat = room("--rate", 100)
    flood, ann, bob = (chat.enter(name) for name in ("flood", "ann", "bob"))
    assert ann.hears() == "bob is here"
    flood.say(*[f"{number:08}" for number in range(700)])
    assert ann.hears() == "flood: 00000000"
    bob.say("let me say something")
    while (line := ann.hears()).startswith("flood"):
        assert line != "flood: 00000699"
    assert line == "bob: let me say something"


def test_chat_waits_for_a_name_only_so_long(loop, stage, imported, monkeypatch):
    chat = imported("chat")
    monkeypatch.setattr(chat, "NAME_SECONDS", 0.01)
    hall = chat.Room(1000, 65536)
    client = stage.connect(stage.listen(loop, lambda: chat.User(hall)))
    settle(loop)
    while not client.recv(100).endswith(b"?\n"):
        pass
    poll = select.poll()
    poll.register(client, select.POLLIN)
    turn_until(loop, lambda: poll.poll(0))
    assert client.recv(100) == b""


# -- redis_ping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_ping_loses_nothing(redis, family):
    server = redis()
    with example("redis_ping.py", server.addresses[family], "--count", 10_000) as program:
        status, output, errors = program.end()
    assert (status, errors) == (0, "")
    assert re.fullmatch(r"PONG\n10000 keys set and read back in [0-9.]+ s, nothing lost\n", output)
    assert server.ask("DBSIZE") == 10_000
    key = server.ask("RANDOMKEY")
    assert server.ask("GET", key) == key.replace(b":", b" ").replace(b" ", b":", 1)
    assert 0 < server.ask("TTL", key) <= 60


def failure(*arguments: object) -> str:
    """What it says when it fails: one line, and no traceback."""
    with example("redis_ping.py", *arguments) as program:
        status, _, errors = program.end()
    assert status == 1
    assert errors.startswith("redis_ping: ")
    assert errors.count("\n") == 1
    return errors.removeprefix("redis_ping: ").rstrip("\n")


def test_ping_where_nothing_listens(tmp_path):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        assert failure(f"127.0.0.1:{port}") == f"cannot connect to 127.0.0.1:{port}: Connection refused"
    path = tmp_path / "absent"
    assert failure(path) == f"cannot connect to unix:{path}: No such file or directory"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        assert failure(path) == f"cannot connect to unix:{path}: Connection refused"


def test_ping_of_one_that_says_nothing(scripted):
    assert failure(scripted.path, "--timeout", 0.05) == "nothing was received for 0.05 s"


def test_ping_of_one_that_wants_a_password(redis):
    assert failure(redis("--requirepass", "secret").path) == "NOAUTH Authentication required."


@pytest.mark.parametrize(("answer", "why"), [
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", r"this is not RESP: b'HTTP/1.1 400 Bad Request'"),
    (b"+PONG\n", r"this is not RESP: b'\+PONG\\n'"),
    (b"\n", r"this is not RESP: b'\\n'"),
    (b"$3\r\nabcde", r"this is not RESP: b'de'"),
    (b":1x\r\n", r"this is not RESP: b':1x'"),
    (b"$-2\r\n", r"this is not RESP: b'\$-2'"),
    (b"$536870913\r\n", r"this is not RESP: b'\$536870913'"),
    (b"*1048577\r\n", r"this is not RESP: b'\*1048577'"),
    (b"*1\r\n" * 9, r"this is not RESP: b'\*1'"),
    (b"x" * 70000, "a frame is longer than its limit of 65536 bytes"),
    (b"-ERR not today\r\n", "ERR not today"),
    (b"+OK\r\n", "PING was answered with 'OK' instead of 'PONG'"),
    (b":1\r\n", "PING was answered with 1 instead of 'PONG'"),
    (b"+PONG\r\n$2\r\nOK\r\n", "SET was answered with b'OK' instead of 'OK'"),
    (b"+PONG\r\n+OK\r\n$-1\r\n", "GET was answered with None instead of b'epollkit-ping:[0-9a-f]{16} 0'"),
    (b"+PONG\r\n+OK\r\n", "the server closed the connection; 1 replies are missing"),
    (b"", "the server closed the connection; 3 replies are missing"),
    (b"+PO", "the stream ended within a frame, of which 3 bytes came"),
], ids=lambda value: value[:12] if isinstance(value, bytes) else "")
def test_ping_is_answered_with_something_else(loop, stage, imported, answer, why):
    ping = imported("redis_ping")
    near, far = stage.pair()
    stream = loop.adopt(near, lambda: ping.Ping(1, PATIENCE_SECONDS))
    far.sendall(answer)
    far.shutdown(socket.SHUT_WR)
    loop.run()
    assert re.fullmatch(why, ping.sentence(stream.failure))


def test_ping_of_one_that_does_not_want_it(scripted):
    with example("redis_ping.py", scripted.path) as program:
        scripted.accept()
        scripted.hear("PING")
        scripted.say(b"-ERR not today\r\n")
        assert program.end() == (1, "", "redis_ping: ERR not today\n")


def test_ping_of_one_that_is_killed_midway(redis):
    """With more keys than it can set before that."""
    server = redis()
    with example("redis_ping.py", server.path, "--count", 10_000_000) as program:
        program.line("PONG")
        server.kill()
        status, output, errors = program.end()
    assert (status, output) == (1, "")
    assert re.fullmatch(r"redis_ping: (the server closed the connection; \d+ replies are missing|"
                        r"the stream ended within a frame, of which \d+ bytes came|"
                        r"Connection reset by peer|Broken pipe)\n", errors)


def test_ping_is_stopped(scripted):
    with example("redis_ping.py", scripted.path) as program:
        scripted.accept()
        scripted.hear("PING")
        assert program.end(signal.SIGINT) == (130, "", "")


VALUES = [
    (b"+PONG\r\n", "PONG"), (b"+\r\n", ""), (b":0\r\n", 0), (b":-12\r\n", -12), (b"$5\r\na\r\nbc\r\n", b"a\r\nbc"),
    (b"$0\r\n\r\n", b""), (b"$-1\r\n", None), (b"*-1\r\n", None), (b"*0\r\n", []),
    (b"*3\r\n*1\r\n:1\r\n$1\r\nx\r\n*0\r\n", [[1], b"x", []]), (b"+last\r\n", "last"),
]


def test_resp_values_whole_and_cut_at_every_index(loop, stage, imported):
    resp = imported("resp")

    class Reader(resp.RespStream):
        def __init__(self):
            super().__init__()
            self.values = []

        def on_value(self, value):
            self.values.append(value)

        def on_end(self, error):
            assert error is None

    for pieces in cuts(b"".join(data for data, _ in VALUES)):
        near, far = map(stage.own, socket.socketpair())      # of unix sockets: what is sent is there
        reader = loop.adopt(near, Reader)
        for piece in pieces:
            far.sendall(piece)
            settle(loop)
        assert reader.values == [value for _, value in VALUES], pieces
        reader.abort()
        settle(loop)


def test_resp_addresses(imported):
    resp = imported("resp")
    for text, address in (("a:1", ("a", 1)), ("a", ("a", 6379)), ("[::1]:2", ("::1", 2)), ("[::1]", ("::1", 6379)),
                          ("./a:1", "./a:1"), ("/run/redis.sock", "/run/redis.sock")):
        assert resp.address_of(text) == address
    for text in ("", ":1", "a:0", "a:65536", "a:b", "::1", "[::1", "a:1:2", "a:٣"):
        with pytest.raises(resp.argparse.ArgumentTypeError, match="is neither host:port nor"):
            resp.address_of(text)


# -- redis_replica -----------------------------------------------------------------------------------------------------


def keys_of(server: RedisServer) -> tuple[int, str]:
    """How many keys it has, and a checksum of all keys and values (DEBUG DIGEST), which does not depend on their order.
    """
    return server.ask("DBSIZE"), server.ask("DEBUG", "DIGEST")


def fill(server: RedisServer) -> None:
    """Keys of some kinds, in two databases; megabytes of them."""
    server.ask("DEBUG", "POPULATE", 2000, "key", 1000)
    server.ask("SET", "all bytes", bytes(range(256)))
    server.ask("RPUSH", "list", *range(100))
    server.ask("HSET", "hash", "field", "value")
    server.ask("ZADD", "sorted", 1, "one", 2, "two")


def replica(server: RedisServer | Scripted, folder: Path, **options) -> Program:
    return replica_of(server.path, folder, **options)


def replica_of(path: Path, folder: Path, **options) -> Program:
    return example("redis_replica.py", path, "--snapshot", folder / "copy.rdb", "--retry", 0.02, **options)


@pytest.fixture
def loaded(peer, tmp_path):
    """What a redis-server finds in a snapshot, see `keys_of`."""
    def load(path):
        folder = tmp_path / "loaded"
        folder.mkdir()
        path.rename(folder / "dump.rdb")
        with RedisServer(peer("redis-server"), folder) as server:
            return keys_of(server)
    return load


@pytest.mark.parametrize(("family", "diskless"), [("tcp", "yes"), ("unix", "no")])
def test_replica(redis, loaded, tmp_path, family, diskless):
    """The snapshot has what the server had; then each command comes, in order; and the server knows how far we are."""
    server = redis("--repl-diskless-sync", diskless)
    fill(server)
    expected = keys_of(server)
    with example("redis_replica.py", server.addresses[family], "--snapshot", tmp_path / "copy.rdb",
                 "--listening-port", 1234) as program:
        snapshot = program.line(r"snapshot: (\d+) bytes", "stderr")
        program.line("following", "stderr")
        wait_until(lambda: "state=online" in server.info("slave0"))
        assert "port=1234," in server.info("slave0")
        for number in range(100):
            server.ask("SET", f"live {number}", "a\nb")
        assert program.take(101) == ["SELECT 0", *[f"SET 'live {number}' 'a\\nb'" for number in range(100)]]
        assert server.ask("WAIT", 1, 1000 * int(PATIENCE_SECONDS)) == 1
        wait_until(lambda: f"offset={server.info('master_repl_offset')}," in server.info("slave0"))
        assert program.end(signal.SIGINT) == (0, "", "")
    copy = tmp_path / "copy.rdb"
    assert copy.stat().st_size == int(snapshot[1]) > 2_000_000
    assert not list(tmp_path.glob("*.part"))
    assert loaded(copy) == expected


def test_replica_whose_connection_is_cut_misses_nothing(redis, tmp_path):
    """Cut three times while commands come: it goes on where it was, each command once."""
    server = redis()
    with replica(server, tmp_path) as program:
        program.line("following", "stderr")
        for number in range(300):
            server.ask("INCR", f"{number}")
            if number % 100 == 50:
                server.ask("CLIENT", "KILL", "TYPE", "replica")
                program.line("; again in", "stderr")       # its end was read, or an acknowledgement could not be sent
                program.line("following", "stderr")
        assert program.take(301) == ["SELECT 0", *[f"INCR {number}" for number in range(300)]]
        assert program.lines["stderr"].seen.count("full resync") == 1
        assert "sync_partial_ok:3\r\n" in server.ask("INFO", "stats").decode()


def test_replica_whose_master_starts_again(redis, tmp_path):
    """It asks later and later, and follows the new one from its snapshot on."""
    server = redis()
    with replica(server, tmp_path) as program:
        program.line("following", "stderr")
        server.ask("SET", "first", 1)
        assert program.take(2) == ["SELECT 0", "SET first 1"]
        server.kill()
        pauses = [float(program.line(r"cannot connect to unix:\S+: .*; again in (\S+) s", "stderr")[1])
                  for _ in range(3)]
        assert pauses[0] < pauses[2] <= 0.02 * 2 ** 3
        server.start()
        server.ask("SET", "second", 2)
        program.line("full resync", "stderr")
        program.line("following", "stderr")
        server.ask("SET", "third", 3)
        assert program.take(2) == ["SELECT 0", "SET third 3"]


def test_replica_with_a_password(redis, tmp_path):
    server = redis()
    server.ask("CONFIG", "SET", "requirepass", "secret")
    with replica(server, tmp_path, environment={"REDISCLI_AUTH": "secret"}) as program:
        program.line("following", "stderr")
    for password, why in (("", "PING was answered with -NOAUTH .*"), ("wrong", "AUTH was answered with -WRONGPASS .*")):
        with replica(server, tmp_path, environment={"REDISCLI_AUTH": password}) as program:
            status, output, errors = program.end()
            assert (status, output) == (1, "")
            assert re.fullmatch(f"redis_replica: {why}\n", errors)


def test_replica_of_a_master_that_has_no_time_yet(scripted, tmp_path):
    """-LOADING and -NOMASTERLINK: asked again. -ERR: not, for the answer would be the same."""
    with replica(scripted, tmp_path) as program:
        scripted.accept()
        scripted.hear("PING")
        scripted.say(b"-LOADING Redis is loading the dataset in memory\r\n")
        program.line("PING was answered with -LOADING .*; again in", "stderr")
        for answer, why in ((b"-NOMASTERLINK Can't SYNC\r\n", "-NOMASTERLINK .*; again in"),
                            (b"-ERR no\r\n", "redis_replica: PSYNC was answered with -ERR no")):
            scripted.accept()
            scripted.hear("PING")
            scripted.say(b"+PONG\r\n")
            scripted.hear("REPLCONF", "listening-port", 0)
            scripted.say(b"+OK\r\n")
            scripted.hear("REPLCONF", "capa", "eof", "capa", "psync2")
            scripted.say(b"+OK\r\n")
            scripted.hear("PSYNC", "?", -1)
            scripted.say(answer)
            program.line(why, "stderr")
        assert program.end() == (1, "", "")


HANDSHAKE = b"+PONG\r\n+OK\r\n+OK\r\n+FULLRESYNC " + b"a" * 40 + b" 0\r\n"


def test_replica_leaves_no_half_snapshot(scripted, tmp_path):
    """Ctrl-C in the middle of it; and what is complete under the name stays what it was."""
    (tmp_path / "copy.rdb").write_text("of yesterday")
    with replica(scripted, tmp_path) as program:
        scripted.accept()
        scripted.say(HANDSHAKE + b"$1000\r\nabc")
        wait_until((tmp_path / "copy.rdb.part").exists)
        program.line("full resync", "stderr")
        assert program.end(signal.SIGTERM) == (0, "", "")
    assert not (tmp_path / "copy.rdb.part").exists()
    assert (tmp_path / "copy.rdb").read_text() == "of yesterday"


def test_replica_that_can_not_write_its_snapshot(scripted, tmp_path):
    with example("redis_replica.py", scripted.path, "--snapshot", tmp_path / "nowhere" / "copy.rdb") as program:
        scripted.accept()
        scripted.say(HANDSHAKE + b"$1000\r\nabc")
        program.line("full resync", "stderr")
        assert program.end() == (1, "", "redis_replica: No such file or directory\n")


def test_replica_whose_output_nobody_reads(scripted, tmp_path):
    with replica(scripted, tmp_path) as program:
        program.process.stdout.close()
        del program.lines["stdout"]
        scripted.accept()
        scripted.say(HANDSHAKE + b"$0\r\n" + bulk("SET", "a", 1))
        program.line("following", "stderr")
        assert program.end() == (1, "", "")


def test_replica_shows_its_progress_on_a_terminal(scripted, tmp_path):
    leader, follower = os.openpty()
    with replica(scripted, tmp_path, stderr=follower) as program:
        os.close(follower)
        scripted.accept()
        scripted.say(HANDSHAKE + b"$%d\r\n" % (5 << 20) + bytes(5 << 20))
        seen = b""
        while b"following" not in seen:
            seen += os.read(leader, 1000)
        program.kill()
    os.close(leader)
    assert re.findall(rb"snapshot: \d of 5 MiB", seen) == [b"snapshot: %d of 5 MiB" % number for number in range(1, 6)]


def test_replica_whose_log_nobody_reads(tmp_path):
    """While it tries to reach a server."""
    with replica_of(tmp_path / "absent", tmp_path) as program:
        program.line("cannot connect", "stderr")
        program.process.stderr.close()
        del program.lines["stderr"]
        assert program.end() == (1, "", "")

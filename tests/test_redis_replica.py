"""examples/redis_replica.py against a server that says what a real one rarely does: each cell of its table, each step
late, and the handshake cut at every index. What it does with a real server is in test_examples.py."""
from __future__ import annotations

import importlib
import select
import socket
from pathlib import Path

import pytest
from batches import Stage, settle, turn_until
from programs import EXAMPLES, bulk
from wire import cuts

import epollkit

HISTORY = "0123456789abcdef" * 2 + "01234567"
MARK = b"f" * 30 + b"0123456789"
FULL = f"+FULLRESYNC {HISTORY} 1000\r\n".encode()
ALL_BYTES = bytes(range(256))

# What the server says to get there.
WAY = {
    "pinging": b"",
    "logging in": b"-NOAUTH Authentication required.\r\n",
    "naming the port": b"+PONG\r\n",
    "naming capabilities": b"+PONG\r\n+OK\r\n",
    "asking": b"+PONG\r\n+OK\r\n+OK\r\n",
    "preparing": b"+PONG\r\n+OK\r\n+OK\r\n" + FULL,
    "counted snapshot": b"+PONG\r\n+OK\r\n+OK\r\n" + FULL + b"$1000\r\n",
    "marked snapshot": b"+PONG\r\n+OK\r\n+OK\r\n" + FULL + b"$EOF:" + MARK + b"\r\n",
    "following": b"+PONG\r\n+OK\r\n+OK\r\n" + FULL + b"$0\r\n",
}
SNAPSHOTS = ("counted snapshot", "marked snapshot")

# What the server says to make it happen; the rest is not said, but done.
SAID = {
    "pong": b"+PONG\r\n", "ok": b"+OK\r\n", "full": FULL, "continue": b"+CONTINUE\r\n", "blank": b"\n",
    "length": b"$1000\r\n", "mark": b"$EOF:" + b"another mark" * 3 + b"here\r\n", "busy": b"-LOADING data\r\n",
    "locked": b"-NOAUTH no\r\n", "refused": b"-ERR no\r\n", "unexpected": b"HTTP/1.1 400 Bad Request\r\n",
    "command": bulk("SET", "a", 1), "ack wanted": bulk("REPLCONF", "GETACK", "*"),
}
DONE = ("late", "closed")
INSIDE = ("opened", "bytes", "complete")         # follows from the others


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("redis_replica")


class Conversation:
    """A replica's link, and its server's end."""

    def __init__(self, loop: epollkit.Loop, stage: Stage, module: object, folder: Path, **settings: object) -> None:
        class Held(module.Replica):         # type: ignore[name-defined]
            """One that does not come back."""

            lost = ()

            def come_back(self, error: BaseException | None) -> None:
                self.lost = (*self.lost, error)

        self.loop, self.stage, self.module = loop, stage, module
        self.replica = Held(loop, module.Settings("", folder / "copy.rdb", "secret", **settings))
        self.copy = folder / "copy.rdb"
        self.connect()

    def connect(self) -> None:
        near, self.far = socket.socketpair()        # of unix sockets: what is sent is there
        self.stage.own(near)
        self.stage.own(self.far)
        self.link = self.loop.adopt(near, lambda: self.module.Link(self.replica))
        settle(self.loop)

    def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.far.sendall(piece)
            settle(self.loop)

    def heard(self) -> bytes:
        """All that the replica has said since."""
        settle(self.loop)
        data = b""
        while select.select([self.far], [], [], 0)[0]:
            piece = self.far.recv(65536)
            if not piece:
                break
            data += piece
        return data

    def end(self) -> None:
        self.link.abort()
        settle(self.loop)


@pytest.fixture
def talk(loop, stage, module, tmp_path):
    made = []

    def start(**settings):
        made.append(Conversation(loop, stage, module, tmp_path, **settings))
        return made[-1]
    yield start
    for conversation in made:
        conversation.end()


ACK = bulk("REPLCONF", "ACK", 1000)
HANDSHAKE = [           # what is heard, and what is then said
    (bulk("PING"), b"-NOAUTH Authentication required.\r\n"),
    (bulk("AUTH", "secret"), b"+OK\r\n"),
    (bulk("REPLCONF", "listening-port", 0), b"+OK\r\n"),
    (bulk("REPLCONF", "capa", "eof", "capa", "psync2"), b"+OK\r\n"),
    (bulk("PSYNC", "?", -1), b"\n\n" + FULL + b"\n"),
]


@pytest.mark.parametrize("snapshot", [b"$256\r\n" + ALL_BYTES, b"$EOF:" + MARK + b"\r\n" + ALL_BYTES + MARK, b"$0\r\n",
                                      b"$EOF:" + MARK + b"\r\n" + MARK], ids=["counted", "marked", "none", "mark only"])
def test_the_handshake(talk, capsys, snapshot):
    """Each line waits for the reply to the one before."""
    conversation = talk()
    for heard, said in HANDSHAKE:
        assert conversation.heard() == heard
        conversation.say(said)
    assert conversation.heard() == b""
    conversation.say(snapshot)
    assert conversation.heard() == ACK
    assert conversation.copy.read_bytes() == (ALL_BYTES if ALL_BYTES in snapshot else b"")
    command = bulk("SET", "a", 1)
    conversation.say(command)
    assert capsys.readouterr().out == "SET a 1\n"
    assert conversation.replica.offset == 1000 + len(command)
    assert conversation.replica.history == HISTORY


@pytest.mark.parametrize("snapshot", [b"$20\r\nsnapshot of 20 bytes", b"$EOF:" + MARK + b"\r\nffff" + MARK[:39] + MARK],
                         ids=["counted", "marked"])
def test_the_handshake_cut_at_every_index(talk, capsys, snapshot):
    said = b"".join(said for _, said in HANDSHAKE) + snapshot
    content = snapshot.partition(b"\n")[2].removesuffix(MARK)
    for pieces in cuts(said):
        conversation = talk()
        conversation.say(*pieces)
        assert conversation.heard() == b"".join(heard for heard, _ in HANDSHAKE) + ACK, pieces
        assert (conversation.link.state, conversation.copy.read_bytes()) == ("following", content), pieces
        conversation.copy.unlink()
        conversation.end()


def test_commands_cut_at_every_index(talk, capsys):
    """They are counted to the byte; one that is not whole counts nothing, and newlines between them count."""
    commands = [bulk("SELECT", 0), b"\n" + bulk("SET", "a b", "\r\n"), bulk("PING"), bulk("SET", b"", b"\xff" * 200)]
    shown = "SELECT 0\nSET 'a b' '\\r\\n'\nSET '' '" + "\\xff" * 100 + "'... (200 bytes)\n"
    ends = [0]
    for command in commands:
        ends.append(ends[-1] + len(command))
    for pieces in cuts(b"".join(commands)):
        conversation = talk()
        conversation.say(WAY["following"])
        come = 0
        for piece in pieces:
            conversation.say(piece)
            come += len(piece)
            assert conversation.replica.offset == 1000 + max(end for end in ends if end <= come), pieces
        assert capsys.readouterr().out == shown
        conversation.end()


def test_a_long_command_is_shown_in_short(module):
    assert module.shown([b"MSET", *[b"x"] * 200]) == "MSET " + "x " * 99 + "... (201 words)"


@pytest.mark.parametrize("event", sorted([*SAID, *DONE]))
@pytest.mark.parametrize("state", WAY)
def test_every_cell_of_the_table(talk, module, state, event):
    """There are no others: what is in no row is refused."""
    conversation = talk()
    conversation.say(WAY[state])
    assert conversation.link.state == state
    if event == "late":
        conversation.link.on_timeout("life")
    elif event == "closed":
        conversation.far.close()
    else:
        conversation.say(SAID[event])
    settle(conversation.loop)
    if event in SAID and state in SNAPSHOTS:
        event = "bytes"
    elif state == "following" and event in ("busy", "locked", "refused"):
        event = "unexpected"            # nobody asked
    elif state == "following" and event == "length":
        event = "bytes of a string"     # which is refused when it is whole
    row = {**module.ALWAYS, "bytes of a string": ("", "following"), **module.TABLE[state]}
    if (state, event) == ("asking", "continue"):
        event = "unexpected"            # of what? There is nothing yet. See test_it_goes_on_where_it_was
    expected = row.get(event, module.ALWAYS["unexpected"])[1]
    assert conversation.link.state == expected
    assert len(conversation.replica.lost) == (expected == "lost")
    assert (conversation.replica.error is not None) == (expected == "over")
    if expected in ("lost", "over"):
        assert conversation.link.is_closing
        assert not list(conversation.copy.parent.glob("*.part"))


def test_the_table_has_no_loose_ends(module):
    assert set(WAY) | {"connecting", "lost", "over"} == set(module.TABLE)
    assert {*SAID, *DONE, *INSIDE} == set(module.EVENTS)
    for row in (*module.TABLE.values(), module.ALWAYS):
        for action, following in row.values():
            assert following in module.TABLE
            assert callable(getattr(module.Link, action))
    assert set(module.TABLE) > module.PATIENT


def test_it_goes_on_where_it_was(talk, capsys):
    """With the next byte, of what may be another server's history by now."""
    conversation = talk()
    first, second = bulk("SET", "a", 1), bulk("SET", "b", 2)
    conversation.say(WAY["following"], first, second[:10])
    conversation.heard()
    conversation.end()
    conversation.connect()
    conversation.say(WAY["asking"])
    assert conversation.heard().endswith(bulk("PSYNC", HISTORY, 1001 + len(first)))
    conversation.say(b"+CONTINUE " + b"b" * 40 + b"\r\n", second)
    assert conversation.replica.history == "b" * 40
    assert conversation.replica.offset == 1000 + len(first) + len(second)
    assert capsys.readouterr().out == "SET a 1\nSET b 2\n"
    conversation.end()
    conversation.connect()
    conversation.say(WAY["preparing"])
    conversation.end()
    conversation.connect()
    conversation.heard()
    conversation.say(WAY["asking"])
    assert conversation.heard().endswith(bulk("PSYNC", "?", -1)), "half a snapshot is nothing to go on from"


def test_garbage_between_commands_is_not_counted(talk):
    conversation = talk()
    conversation.say(WAY["following"], bulk("SET", "a", 1), b"*2\r\n$1\r\na\r\n:1\r\n")
    assert conversation.replica.offset == 1000 + len(bulk("SET", "a", 1))
    [error] = conversation.replica.lost
    assert str(error) == "this is not a command: [b'a', 1]"


def test_bytes_behind_the_mark(talk):
    conversation = talk()
    conversation.say(WAY["marked snapshot"], ALL_BYTES + MARK + b"x")
    [error] = conversation.replica.lost
    assert str(error) == "bytes came behind the mark that ends the snapshot"
    assert not conversation.copy.exists()


@pytest.mark.parametrize("state", WAY)
def test_each_step_has_a_deadline(talk, state):
    """The server falls silent there."""
    conversation = talk(step=0.02, silence=0.03)
    conversation.say(WAY[state])
    turn_until(conversation.loop, lambda: conversation.replica.lost)
    patient = state in ("asking", "preparing", *SNAPSHOTS, "following")
    seconds = 0.03 if patient else 0.02
    assert str(conversation.replica.lost[0]) == f"{state}: nothing came for {seconds} s"


def test_a_reply_that_dribbles_is_late(talk):
    """Each byte moves a deadline that is about silence. A step's is not."""
    conversation = talk(step=0.05, silence=60)
    while not conversation.replica.lost:
        conversation.far.sendall(b"+")
        conversation.loop.turn(0.001)
    assert isinstance(conversation.replica.lost[0], TimeoutError)


@pytest.mark.debug_build
def test_a_newline_now_and_then_is_no_silence(stage, module, tmp_path):
    """Minutes may pass before a large server has its snapshot ready."""
    from epollkit._operations import fake_clock
    with fake_clock() as clock, epollkit.Loop() as loop:
        conversation = Conversation(loop, stage, module, tmp_path)
        for state, said in (("asking", WAY["asking"]), ("preparing", FULL)):
            conversation.say(said)
            for _ in range(5):
                clock.advance(0.9 * module.SILENCE_SECONDS)
                conversation.say(b"\n")
                assert conversation.link.state == state
        clock.advance(1.1 * module.SILENCE_SECONDS)
        settle(loop)
        assert conversation.link.state == "lost"


def test_what_it_acknowledges(talk, module, monkeypatch):
    """When asked, and by itself again and again."""
    conversation = talk()
    command, question = bulk("SET", "a", 1), bulk("replconf", "getack", "*")
    conversation.say(WAY["following"])
    conversation.heard()
    conversation.say(command + question + command)
    assert conversation.heard() == bulk("REPLCONF", "ACK", 1000 + len(command))
    conversation.end()
    monkeypatch.setattr(module, "ACK_SECONDS", 0.001)
    conversation.connect()
    conversation.say(WAY["asking"], b"+CONTINUE\r\n")
    heard = b""
    offset = 1000 + 2 * len(command) + len(question)
    while heard.count(bulk("REPLCONF", "ACK", offset)) < 3:
        conversation.loop.turn(0.01)
        heard += conversation.heard()


@pytest.mark.parametrize("end", ["counted", "marked"])
def test_a_snapshot_is_not_kept_in_memory(talk, module, monkeypatch, end):
    """Whatever its size, it goes to the file in pieces of 64 KiB at most."""
    sizes = []
    write = module.Snapshot.write

    def noted(self, data, *arguments):
        sizes.append(len(data))
        write(self, data, *arguments)

    monkeypatch.setattr(module.Snapshot, "write", noted)
    conversation = talk()
    total = 8 << 20
    conversation.say(WAY["preparing"], b"$%d\r\n" % total if end == "counted" else b"$EOF:" + MARK + b"\r\n")
    data = memoryview(bytes(total) + (b"" if end == "counted" else MARK))
    conversation.far.setblocking(False)
    while data:
        data = data[conversation.far.send(data[:1 << 20]):]
        settle(conversation.loop)
    assert conversation.link.state == "following"
    assert conversation.copy.stat().st_size == sum(sizes) == total
    assert max(sizes) <= module.PIECE_BYTES + len(MARK)


class Clockless:
    """A loop that notes what is to be called later."""

    closed = False

    def __init__(self) -> None:
        self.pauses = []

    def call_later(self, seconds, function):
        self.pauses.append(seconds)


def test_it_comes_back_later_and_later(module, tmp_path):
    """Doubling from one try to the next, never twice the same, half a minute at most; from the start once it worked."""
    loop = Clockless()
    replica = module.Replica(loop, module.Settings("", tmp_path, retry=0.5))
    for _ in range(2000):
        replica.come_back(None)
    for longest, pause in zip([0.5, 1, 2, 4, 8, 16] + [30] * 1994, loop.pauses, strict=True):
        assert longest / 2 <= pause <= longest
    assert len(set(loop.pauses)) > 1900


def test_a_success_makes_it_hurry_again(talk):
    conversation = talk()
    conversation.replica.failures = 7
    conversation.say(WAY["counted snapshot"])
    assert conversation.replica.failures == 7, "a server may fail in the same place each time"
    conversation.say(bytes(1000))
    assert conversation.replica.failures == 0

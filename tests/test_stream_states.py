"""docs/streams.md, cell by cell: the table is read from the document, each cell is brought about on real sockets."""
from __future__ import annotations

import contextlib
import os
import re
import select
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wire import Bench, Factory, Witness, open_pair, wait_for

import epollkit
from epollkit import PeerError, UsageError

DOCUMENT = (Path(__file__).resolve().parent.parent / "docs" / "streams.md").read_text()
MEGABYTE = bytes(1 << 20)
STATES = ["early", "open", "paused", "ended", "shut", "closing", "closed"]


def table(first_line: str) -> dict[str, dict[str, str]]:
    """A table of the document that begins like that: row -> column -> cell."""
    text = DOCUMENT[DOCUMENT.index(first_line):].split("\n\n")[0]
    rows = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in
            (line.replace("| |", "|  |").replace("| |", "|  |") for line in text.splitlines())]
    columns = rows[0][1:]
    assert all(len(row) == len(rows[0]) for row in rows[2:]), [row for row in rows[2:] if len(row) != len(rows[0])]
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows[2:]}


TABLE = table("| | early | open |")
CALLS = table("| | closed | early | closing |")


# -- how each state comes about ----------------------------------------------------------------------------------------


class Scene:
    """A stream in some state, and its peer."""

    stream: Any

    def __init__(self, bench: Bench, certificates: Any, address: Any) -> None:
        self.bench, self.certificates, self.address = bench, certificates, address

    def set_up(self, state: str, row: Row) -> None:
        self.state, self.stream = state, None
        if state == "early":
            self.shake_hands()
        else:
            self.stream, self.client = open_pair(self.bench, Factory(Witness), self.address, receive_buffer=4096)
        if row.half_close is not None:
            self.stream.half_close = row.half_close
        if row.frames:
            self.stream.read_until(b"\n")
        if state == "ended":
            self.client.end()
            self.bench.quiet()
        if state == "closing" or (row.unsent and state != "early"):
            self.stream.write(MEGABYTE * 8)
            self.bench.quiet()
            assert self.stream.unsent_bytes > 0
        calls = {"paused": ["pause_reading"], "shut": ["shutdown_write"], "closing": ["close"], "closed": ["abort"]}
        for call in calls.get(state, []):
            getattr(self.stream, call)()
        self.bench.quiet()
        self.stream.heard()

    def shake_hands(self) -> None:
        """Accepted, and the client has said nothing yet."""
        factory = Factory(Witness)
        listener = self.bench.listen(factory, self.address, ssl=self.certificates.server_context())
        self.client = self.bench.connect(listener)
        self.bench.turn_until(lambda: factory.made)
        self.bench.quiet()
        self.stream = factory.made[0]
        self.bench.witnesses.append(self.stream)

    def gone(self) -> None:
        """The peer's RST has arrived."""
        number = self.stream.fileno()
        self.client.reset()
        wait_for(number, select.POLLERR)


def is_early(scene: Scene) -> None:
    with pytest.raises(UsageError, match="is not open yet"):
        scene.stream.write(b"x")


def is_open(scene: Scene) -> None:
    assert not scene.stream.is_closing
    scene.stream.write(b"x")
    assert delivers(scene)


def delivers(scene: Scene) -> bool:
    """Whether what the peer sends now is delivered at once."""
    scene.stream.heard()
    scene.client.offer(b"more\n")
    scene.bench.quiet()
    return scene.stream.data.endswith(b"more\n")


def is_paused(scene: Scene) -> None:
    assert not scene.stream.is_closing
    scene.stream.write(b"x")
    assert scene.stream.peer_closed or not delivers(scene)


def is_ended(scene: Scene) -> None:
    assert not scene.stream.is_closing
    assert scene.stream.peer_closed
    scene.stream.write(b"x")


def is_shut(scene: Scene) -> None:
    assert not scene.stream.is_closing
    with pytest.raises(UsageError, match="has shut down its side"):
        scene.stream.write(b"x")
    while not scene.client.ended:
        scene.client.read()
        scene.client.received = b""
        scene.bench.quiet()
    scene.stream.resume_reading()
    assert delivers(scene)


def is_closing(scene: Scene) -> None:
    assert scene.stream.is_closing
    assert not scene.stream.closed
    assert scene.stream.fileno() >= 0
    with pytest.raises(UsageError, match="is closing"):
        scene.stream.write(b"x")


def is_closed(scene: Scene) -> None:
    """Nothing follows, whatever the peer does."""
    assert scene.stream.is_closing
    with pytest.raises(UsageError, match="is closed, or was never opened"):
        scene.stream.fileno()
    scene.stream.heard()
    with contextlib.suppress(OSError):
        scene.client.offer(b"more\n")
        scene.client.end()
    scene.bench.quiet()
    assert scene.stream.upcalls == []


IN_STATE = {"early": is_early, "open": is_open, "paused": is_paused, "ended": is_ended, "shut": is_shut,
            "closing": is_closing, "closed": is_closed}


# -- how each row comes about ------------------------------------------------------------------------------------------


class Row:
    """What happens, and what has to be so before.

    Args:
        error: what on_close is told, if the stream is closed by it.
        unsent: something is queued in every state.
        frames: lines are asked for.
        clock: time has to pass.
        tcp: a unix socket has no such thing.
    """

    def __init__(self, act: Callable[[Scene], object], error: Any = None, *, unsent: bool = False, frames: bool = False,
                 half_close: str | None = None, clock: bool = False, tcp: bool = False,
                 before: Callable[[Scene], object] = lambda scene: None) -> None:
        self.act, self.error, self.unsent, self.frames = act, error, unsent, frames
        self.half_close, self.clock, self.tcp, self.before = half_close, clock, tcp, before


def finish_handshake(scene: Scene) -> None:
    tls = scene.certificates.client_context().wrap_socket(scene.client.socket, server_hostname="localhost",
                                                          do_handshake_on_connect=False)
    scene.client.socket = tls

    def shaken() -> bool:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    scene.bench.turn_until(shaken)


def send_and_end(scene: Scene, data: bytes) -> None:
    scene.client.offer(data)
    scene.client.end()


def send_and_reset(scene: Scene) -> None:
    scene.client.offer(b"bytes")
    scene.gone()


def write_to_who_is_gone(scene: Scene) -> None:
    scene.gone()
    scene.stream.write(b"x")


def read_all(scene: Scene) -> None:
    """The peer reads until nothing is unsent; if that is the end, it ends, too."""
    def sent() -> bool:
        scene.client.read()
        scene.client.received = b""
        if scene.stream.is_closing and scene.client.ended:
            scene.client.close()
        return scene.stream.closed if scene.stream.is_closing else not scene.stream.unsent_bytes

    scene.bench.turn_until(sent)


def raise_in_upcall(scene: Scene) -> None:
    """In whatever upcall this state can have: the first, data, or that there is room."""
    def fail(stream: Any) -> None:
        raise OverflowError

    scene.stream.then = dict.fromkeys(("on_open", "on_data", "on_drain"), fail)
    scene.bench.loop.set_exception_handler(lambda exception, source: None)
    if scene.state == "early":
        with contextlib.suppress(OSError):
            finish_handshake(scene)
    elif scene.stream.peer_closed:
        read_all(scene)
    else:
        scene.client.offer(b"bytes")
        scene.bench.quiet()
        if not scene.stream.is_closing:
            read_all(scene)


def after(seconds: float) -> Callable[[Scene], object]:
    def act(scene: Scene) -> None:
        from epollkit import _operations
        _operations.FakeClock().advance(seconds)
    return act


def call(name: str) -> Callable[[Scene], object]:
    """Closes what detach() hands out."""
    def act(scene: Scene) -> None:
        result = getattr(scene.stream, name)()
        if name == "detach":
            os.close(result.fd)
    return act


def limited(**timeout: float) -> Callable[[Scene], object]:
    return lambda scene: scene.stream.set_timeout(**timeout)


BROKEN = ConnectionError
ROWS = {
    "the handshake is done": Row(finish_handshake),
    "bytes come": Row(lambda scene: scene.client.offer(b"bytes"), ssl.SSLError),
    "a whole frame comes": Row(lambda scene: scene.client.offer(b"frame\n"), frames=True),
    "part of a frame comes": Row(lambda scene: scene.client.offer(b"fra"), frames=True),
    "FIN": Row(lambda scene: scene.client.end(), ssl.SSLError),
    "FIN within a frame": Row(lambda scene: send_and_end(scene, b"fra"), PeerError, frames=True),
    'FIN, `half_close="abort"`': Row(lambda scene: scene.client.end(), (ConnectionAbortedError, ssl.SSLError),
                                     half_close="abort"),
    "RST": Row(Scene.gone, BROKEN, tcp=True),
    "bytes, then RST": Row(send_and_reset, (BROKEN, ssl.SSLError), tcp=True),
    "RST, found by a write": Row(write_to_who_is_gone, BROKEN, tcp=True),
    "what is unsent is sent": Row(read_all, unsent=True),
    "read timeout": Row(after(6), clock=True, before=limited(read=5)),
    "write timeout": Row(after(31), TimeoutError, unsent=True, clock=True),
    "life timeout": Row(after(6), TimeoutError, clock=True, before=limited(life=5)),
    "an upcall raises": Row(raise_in_upcall, OverflowError, unsent=True),
    "`close()`, nothing is unsent": Row(call("close")),
    "`close()`, something is": Row(call("close"), unsent=True),
    "`abort()`": Row(call("abort")),
    "`shutdown_write()`": Row(call("shutdown_write")),
    "`pause_reading()`": Row(call("pause_reading")),
    "`resume_reading()`": Row(call("resume_reading")),
    "`detach()`": Row(call("detach")),
}


# -- the walk ----------------------------------------------------------------------------------------------------------


CELLS = [(row, state) for row in TABLE for state in TABLE[row] if TABLE[row][state]]


def expected(cell: str, state: str) -> tuple[list[str], str]:
    """A cell's upcalls, and the state that it leads to."""
    upcalls, _, after = cell.partition("→")
    heard = [name.strip() for name in upcalls.split(",") if name.strip() not in ("", "·")]
    if heard[-1:] == ["close"]:
        assert not after
        return heard, "closed"
    return heard, after.strip() or state


def test_the_table_is_whole():
    """Every row is brought about here, every column is a state, and what every cell says is something."""
    assert list(TABLE) == list(ROWS)
    assert all(list(columns) == STATES for columns in TABLE.values())
    for row, state in CELLS:
        cell = TABLE[row][state]
        if cell != "refused":
            heard, then = expected(cell, state)
            assert set(heard) <= {"open", "data", "eof", "drain", "timeout", "error", "close"}, cell
            assert then in STATES, cell


@pytest.fixture
def loop(request):
    """With a fake clock where time has to pass."""
    with contextlib.ExitStack() as stack:
        if request.node.get_closest_marker("debug_build"):
            from epollkit import _operations
            stack.enter_context(_operations.fake_clock())
        yield stack.enter_context(epollkit.Loop())


@pytest.fixture
def scene(bench, certificates, address):
    return Scene(bench, certificates, address)


@pytest.mark.parametrize(("address", "row", "state"), [
    pytest.param(kind, row, state, id=f"{kind}, {state}: {row}", marks=[pytest.mark.debug_build] * ROWS[row].clock)
    for row, state in CELLS for kind in ("tcp", "unix")[:1 if ROWS[row].tcp else 2]], indirect=["address"])
def test_cell(scene, row, state):
    how = ROWS[row]
    scene.set_up(state, how)
    how.before(scene)
    cell = TABLE[row][state]
    if cell == "refused":
        with pytest.raises(UsageError):
            how.act(scene)
        assert scene.stream.upcalls == []
        IN_STATE[state](scene)
        return
    how.act(scene)
    scene.bench.quiet()
    heard, then = expected(cell, state)
    upcalls = list(scene.stream.upcalls)
    assert scene.stream.heard() == heard
    if then == "closed" and heard:
        why = upcalls[-1][1]
        assert isinstance(why, how.error) if how.error and heard != ["eof", "close"] else why is None
        assert [upcall[1] for upcall in upcalls if upcall[0] == "error"] in ([], [why])
    IN_STATE[then](scene)


@pytest.mark.parametrize(("address", "row"), [
    pytest.param(kind, row, id=f"{kind}, {row}") for row in TABLE
    if TABLE[row]["paused"] == "·" and not ROWS[row].clock and not row.startswith("`")
    for kind in ("tcp", "unix")[:1 if ROWS[row].tcp else 2]], indirect=["address"])
def test_what_a_pause_has_held_up_comes_after_it_as_if_it_had_been_open(scene, row):
    how = ROWS[row]
    scene.set_up("paused", how)
    how.act(scene)
    scene.bench.quiet()
    assert scene.stream.heard() == []
    scene.stream.resume_reading()
    scene.bench.quiet()
    heard, then = expected(TABLE[row]["open"], "open")
    assert scene.stream.heard() == heard
    if row != "part of a frame comes":
        IN_STATE[then](scene)


@pytest.mark.parametrize("state", ["ended", "shut"])
def test_a_stream_that_has_ended_or_is_shut_may_be_paused_too(scene, state):
    """What it then holds up comes after the pause."""
    scene.set_up(state, ROWS["RST"])
    scene.stream.pause_reading()
    if state == "shut":
        scene.client.offer(b"bytes")
    scene.client.close()
    scene.bench.quiet()
    assert scene.stream.heard() == []
    scene.stream.resume_reading()
    scene.bench.quiet()
    if state == "shut":
        assert scene.stream.heard() == ["data", "eof", "close"]
    else:
        scene.stream.abort()


@pytest.mark.parametrize(("row", "state"), [cell for cell in CELLS if TABLE[cell[0]]["early"] and cell[1] == "early"
                                            and cell[0].startswith("`")], ids=str)
def test_an_adopted_stream_that_is_not_open_yet_is_early_too(scene, stage, row, state):
    pair = stage.pair()
    scene.stream = scene.bench.loop.adopt(pair.near, Witness)
    scene.bench.witnesses.append(scene.stream)
    if TABLE[row][state] == "refused":
        with pytest.raises(UsageError, match="is not open yet"):
            ROWS[row].act(scene)
        scene.bench.quiet()
        assert scene.stream.heard() == ["open"]
    else:
        ROWS[row].act(scene)
        scene.bench.quiet()
        assert scene.stream.upcalls == [("close", None)]


# -- every call on a stream that is not open ---------------------------------------------------------------------------


ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "write": (b"x",), "writelines": ([],), "call_soon": (print,), "call_later": (1, print), "read_exactly": (5,),
    "read_until": (b"x",), "sendfile": (__file__,)}
KEYWORDS = {"set_timeout": {"read": 1}, "set_limits": {"high": 1}, "set_rate": {"read": 1}}
PUBLIC = sorted(name for name in dir(epollkit.Stream)
                if not name.startswith(("_", "on_")) and name not in ("half_close", "write_limit"))
SAID = {name: cells for names, cells in CALLS.items() for name in re.findall(r"`(\w+)`", names)}


def test_every_call_is_in_the_document():
    """A new method needs a row that says what it does where there is nothing to do."""
    assert sorted(SAID) == PUBLIC
    assert [name for name in vars(epollkit.Stream) if name.startswith("on_")] == [
        f"on_{name}" for name in ("open", "data", "eof", "drain", "timeout", "error", "close")]


def use(stream: Any, name: str) -> Any:
    if not callable(getattr(type(stream), name)):
        return getattr(stream, name)
    if name == "sendfile":
        with open(__file__, "rb") as file:
            return stream.sendfile(file)
    return getattr(stream, name)(*ARGUMENTS.get(name, ()), **KEYWORDS.get(name, {}))


@pytest.mark.parametrize("address", ["tcp"], indirect=True)
@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("state", ["never opened", "connecting", "closed", "early", "adopted", "closing"])
def test_call(scene, stage, state, name):
    stream = bring(scene, stage, state)
    said = SAID[name][state if state in ("early", "closing") else "early" if state == "adopted" else "closed"]
    if said == "refused":
        with pytest.raises(UsageError) as caught:
            use(stream, name)
        assert re.search("is closed, or was never opened|is not open yet|is closing", str(caught.value))
    elif said == "works":
        assert name in ("peer_address", "local_address", "ssl_object") or use(stream, name) is not False
    elif said in ("nothing", "closes it"):
        assert use(stream, name) is None
    else:
        assert str(use(stream, name)) == said or (name, state) == ("ssl_object", "adopted")
    if state == "connecting":
        scene.connector.cancel()
    scene.bench.quiet()
    assert stream.is_closing == (state not in ("early", "adopted") or said == "closes it")
    assert stream.names == (["close"] if said == "closes it" or state == "connecting" else
                            ["open"] if state == "adopted" else [])


def bring(scene: Scene, stage: Any, state: str) -> Any:
    """A stream in that state, which has heard nothing yet."""
    if state == "never opened":
        return Witness()
    if state == "connecting":
        scene.connector = scene.bench.loop.connect(stage.listening().getsockname(), Witness)
        return scene.connector.stream
    if state == "adopted":
        stream = scene.bench.loop.adopt(stage.pair().near, Witness)
        scene.bench.witnesses.append(stream)
        return stream
    scene.set_up(state, ROWS["RST"])
    return scene.stream


@pytest.mark.parametrize("name", ["loop", "is_closing", "write", "close", "abort", "detach", "pause_reading", "token"])
def test_calls_in_on_close(bench, name):
    """It is closed by then; only its loop is still known."""
    found = []

    def look(stream: Any) -> None:
        try:
            found.append(use(stream, name))
        except UsageError as error:
            found.append(error)

    stream, _ = open_pair(bench, Factory(lambda: Witness(on_close=look)))
    stream.close()
    bench.quiet()
    if name == "loop":
        assert found == [bench.loop]
    elif name == "is_closing":
        assert found == [True]
    elif name in ("close", "abort"):
        assert found == [None]
    else:
        assert "is closed, or was never opened" in str(found[0])
    assert stream.names == ["open", "close"]

"""17. What one user of a connection or of a slot leaves behind, and that the next one finds none of it: field by field.

The fields are read from the .pxd files, so a new one has to be here. `DIRT` is what may be left: each entry makes one
kind of mess on a real connection. For every entry every field is compared with that of a connection to which nothing
happened: of one that was given back to its pool and lent again, and of a new one that has the old one's slot. In the
end each field must have been dirty somewhere, or have its reason in `AT_REST` or `NEVER`.
"""
from __future__ import annotations

import ctypes
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from batches import reset, settle, wait_ready
from connections import KINDS, Kit, PooledKit

import epollkit
from epollkit import RateLimit, Stream

if epollkit.build_info()["build"] == "debug":
    from epollkit import _debug

pytestmark = pytest.mark.debug_build

PACKAGE = Path(epollkit.__file__).parent
HOUR_NS = 3600 * 10**9
PIECE = b"a piece that nobody else has " * 3

# Whose fields: everything that a connection owns, and the tables in which a loop keeps something for each slot.
OWNED = {"Slot": "_slots", "TimerNode": "_timers", "Endpoint": "_core", "Buffered": "_buffered", "Output": "_output",
         "Part": "_output", "Connection": "_connection", "Extras": "_connection", "Tls": "_tls", "Stream": "_stream",
         "Options": "_stream"}
TABLES = {"SlotTable": "_slots", "_core.Loop": "_core", "_room.Loop": "_room", "_schedule.Loop": "_schedule",
          "_raw.Loop": "_raw", "_buffered.Loop": "_buffered", "_connector.Loop": "_connector"}
BITS = {"Slot.flags": ("SlotFlag", "_slots"), "Endpoint.state": ("StreamState", "_buffered"),
        "Tls.state": ("TlsState", "_tls")}

# What is not as in a connection to which nothing happened, and why that is right: in a slot that somebody else has ...
IN_SLOT = {
    "Slot.generation": "what tells the old owner from the new", "Slot.index": "the slot's name",
    "Slot.fd": "the new one's", "Slot.endpoint": "the new one",
    "Slot.registered_batch": "when the new one took it",
    "Slot.released_batch": "when the old one went", "Slot.released_generation": "what it was then",
    "TimerNode.place": "its entry in the heap of deadlines stays, and is put right when it comes up",
    "TimerNode.sequence": "of that entry", "_core.Loop.deadlines": "that entry",
    "Extras.tls": "the new one's", "Tls.ssl_object": "the new one's",
}
# ... and when the connection itself is lent again.
AT_REST = {
    **dict.fromkeys(IN_SLOT, "the registration goes on"),
    "Endpoint.slot": "the registration goes on", "Endpoint.loop_link": "likewise", "SlotTable.by_fd": "likewise",
    "StreamState.STREAM_OUT_WATCHED": "whether the epoll set has it with OUT", "Slot.events": "the set's mask",
    "StreamState.STREAM_KEPT": "whose pool it is", "_buffered.Loop.kept": "likewise",
    "Connection.extras": "there is a session in it, or an empty struct",
    "StreamState.STREAM_SECURE": "the session", "TlsState.TLS_STARTED": "likewise", "TlsState.TLS_DONE": "likewise",
    "Extras.shake_ns": "how long the handshake was given, before anybody had the connection",
}
# What no test here can make dirty in a live connection.
NEVER = {
    "Endpoint.used": "true from the first registration for ever: an endpoint has one",
    "Tls.failure": "whoever finds it ends the connection in the same breath", "TlsState.TLS_FAILED": "likewise",
    "TlsState.TLS_SOCKET_ENDED": "likewise", "TlsState.TLS_UNFRAMED": "likewise",
    "Tls.outgoing": "whoever fills it empties it in the same breath",
    "_core.Loop.closings": "has no live ones", "_core.Loop.waiting_for_room": "has listeners only",
    "TlsState.TLS_BUSY": "inside OpenSSL only",
    "SlotFlag.SLOT_INTERNAL": "no connection's", "SlotFlag.SLOT_UNLIMITED": "no connection's",
    "SlotFlag.SLOT_EXCLUSIVE": "no connection's", "SlotFlag.SLOT_DISARMED": "no connection's",
    "SlotFlag.SLOT_IDLE": "no stream's: of protocols in Cython, which take it back themselves",
    "SlotFlag.SLOT_OWNS_FD": "every connection's", "SlotFlag.SLOT_WATCHED": "every connection's",
    "SlotFlag.SLOT_TELLS_CLOSE": "every connection's", "SlotFlag.SLOT_CONNECTION": "every connection's",
    "SlotFlag.SLOT_TCP": "the socket's kind",
}
# Fields of tables that are not about any one slot.
OF_ALL = {
    "SlotTable": "chunks capacity fresh free_head live unlimited retired generation_mask fd_room",
    "_core.Loop": "slots calls counters epoll_fd wake_fd closed turning stopping forked inherited internal wake_sent "
                  "thread batch_room batch_count batch_cursor batch released_gil_ns orphans rebuilt_ns anchor "
                  "max_connections instance_bits __weakref__",
    "_room.Loop": "noting complete starved scans idle",         # idle slots are noted with their generation
    "_buffered.Loop": "input basin scratch plain spare",        # read between two calls by nobody
    "_connector.Loop": "resolving questions",                   # names that are looked up: not connections yet
}


def block(kind: str, module: str) -> list[str]:
    """The lines of a struct, an enum or a class in a .pxd file."""
    text = re.sub(r'""".*?"""', "", (PACKAGE / f"{module}.pxd").read_text(), flags=re.DOTALL)
    found = re.search(rf"^cdef {kind}\b.*?:[^\n]*\n((?:[ \t]+[^\n]*\n|\n)*)", text, re.MULTILINE)
    assert found, f"{module}.pxd has no {kind}"
    return [line.split("#")[0].rstrip() for line in found.group(1).splitlines()]


def fields_of(name: str, module: str) -> list[str]:
    """What a struct or a cdef class has, methods aside."""
    kind = "struct" if f"cdef struct {name.split('.')[-1]}:" in (PACKAGE / f"{module}.pxd").read_text() else "class"
    found = []
    for line in block(f"{kind} {name.split('.')[-1]}", module):
        match = re.fullmatch(r"    (?:cdef )?(?:readonly |public )?(?:const )?(?:unsigned )?[\w.]+ ([^()]+)", line)
        if match:
            names = re.findall(r"(?:^|,)[ *]*(\w+)", match.group(1))
            found += [f"{name}.{field}" for field in names]
    return found


def bits_of(name: str, module: str) -> dict[str, int]:
    lines = [re.fullmatch(r"    (\w+) = (\d+)", line) for line in block(f"enum {name}", module)]
    return {f"{name}.{line.group(1)}": int(line.group(2)) for line in lines if line}


def all_fields() -> set[str]:
    found = {field for name, module in {**OWNED, **TABLES}.items() for field in fields_of(name, module)}
    found |= {bit for name, module in BITS.values() for bit in bits_of(name, module)}
    return found - set(BITS) - {f"{name}.{field}" for name, fields in OF_ALL.items() for field in fields.split()}


def fields_of_stream(kit: Kit) -> dict[str, Any]:
    """Every field that there is; of flags every bit."""
    found = _debug.connection_fields(kit.stream)
    if found["Endpoint.slot"]:
        found |= _debug.registration_fields(kit.loop, kit.stream.token.index)
    for field, (name, module) in BITS.items():
        bits = {bit: value for bit, value in bits_of(name, module).items() if found.get(field, 0) & value}
        assert sum(bits.values()) == found.pop(field, 0)
        found |= bits
    return found


def changed(fields: dict[str, Any], clean: dict[str, Any]) -> set[str]:
    """What is not as it is in a connection to which nothing happened. Zeros in a struct are as good as no struct."""
    return {field for field in fields | clean if (fields.get(field) or None) != (clean.get(field) or None)}


Now = Callable[[], None]
DIRT: dict[str, tuple[Callable[[Kit, Now], None], tuple[str, ...], bool]] = {}


def dirt(*kinds: str, keeps: bool) -> Callable[[Callable[[Kit, Now], None]], Callable[[Kit, Now], None]]:
    """One kind of mess. It calls `now` at its dirtiest. keeps: a pool may keep such a connection."""
    def add(function: Callable[[Kit, Now], None]) -> Callable[[Kit, Now], None]:
        DIRT[function.__name__] = function, kinds or KINDS, keeps
        return function
    return add


def send_records(kit: Kit) -> None:
    """More than is decrypted at once, less than is received at once."""
    kit.far.sock.sendall(b"".join(kit.far.sealed(b"x" * size) for size in (49_152, 100, 100)))
    wait_ready(kit.stream)


# -- what its user has set, asked for or scheduled

@dirt(keeps=True)
def limits(kit, now):
    kit.stream.set_limits(high=1, low=0, hard=100_000)
    now()


@dirt(keeps=True)
def timeouts(kit, now):
    kit.stream.set_timeout(read=5, write=6, life=7)
    now()


@dirt(keeps=True)
def due_timeout(kit, now):
    kit.stream.set_timeout(life=1e-9)
    now()


@dirt(keeps=True)
def calls(kit, now):
    timers = [kit.stream.call_soon(print), kit.stream.call_later(5, print)]
    now()
    assert not any(timer.active for timer in timers)


@dirt(keeps=True)
def paused(kit, now):
    kit.stream.pause_reading()
    now()


@dirt(keeps=True)
def rates(kit, now):
    kit.stream.set_rate(read=10**6, write=10**6)
    now()


@dirt("tcp", "unix", keeps=True)
def reading_waits_for_its_rate(kit, now):
    kit.stream.set_rate(read=RateLimit(1000, 1000))
    kit.send(b"x" * 1000)
    settle(kit.loop)
    assert sum(len(data) for _, data in kit.stream.upcalls) == 1000
    now()


@dirt(keeps=True)
def resumed_and_not_run(kit, now):
    """Between two others."""
    others = [kit.loop.adopt(kit.stage.pair().near, Stream) for _ in range(2)]
    settle(kit.loop)
    for stream in (others[0], kit.stream, others[1]):
        kit.stage.callback(stream.abort)
        stream.pause_reading()
        stream.resume_reading()
    now()


@dirt(keeps=True)
def of_a_pool(kit, now):
    kit.stream.abort()
    settle(kit.loop)
    kit.open(lambda what, reason: None)
    now()


# -- within an upcall

@dirt(keeps=True)
def whole_frames(kit, now):
    kit.stream.read_until(b"<the end>", 100)
    kit.stream.then = now
    kit.send(b"line<the end>")
    kit.loop.turn(0)


@dirt(keeps=True)
def exact_frames(kit, now):
    kit.stream.read_exactly(6)
    kit.send(b"123")
    settle(kit.loop)
    kit.stream.then = now
    kit.send(b"456")
    kit.loop.turn(0)


@dirt(keeps=True)
def writes_above_the_watermark(kit, now):
    def answer():
        kit.stream.set_limits(high=1)
        assert not kit.stream.write(PIECE)
        now()
    kit.stream.then = answer
    kit.send(b"?")
    kit.loop.turn(0)


@dirt(keeps=False)
def another_frame_behind(kit, now):
    kit.stream.read_exactly(3)
    kit.stream.then = now
    kit.send(b"123456")
    kit.loop.turn(0)


@dirt("tls", keeps=False)
def more_records_behind(kit, now):
    kit.stream.then = now
    send_records(kit)
    kit.loop.turn(0)


# -- unread

@dirt(keeps=False)
def unread_in_the_kernel(kit, now):
    kit.send(PIECE)
    now()


@dirt(keeps=False)
def unread_in_this_very_batch(kit, now):
    event = kit.stage.event()
    kit.stage.watch(kit.loop, event, epollkit.IN, lambda token, events: now())
    settle(kit.loop)
    event.fire()
    kit.send(PIECE)
    kit.loop.turn(0)


@dirt(keeps=False)
def half_a_frame(kit, now):
    kit.stream.read_until(b"<the end>", 1000)
    kit.send(PIECE)
    settle(kit.loop)
    now()


@dirt("tcp", "unix", keeps=False)
def came_before_it_was_adopted(kit, now):
    kit.stream.abort()
    settle(kit.loop)
    kit.adopt(PIECE)
    now()


@dirt("tls", keeps=False)
def half_a_record(kit, now):
    kit.far.sock.sendall(kit.far.sealed(PIECE)[:-5])
    wait_ready(kit.stream)
    settle(kit.loop)
    now()


@dirt("tls", keeps=False)
def half_a_header(kit, now):
    kit.far.sock.sendall(kit.far.sealed(PIECE)[:3])
    wait_ready(kit.stream)
    settle(kit.loop)
    now()


@dirt("tls", keeps=False)
def records_held_while_paused(kit, now):
    kit.stream.then = kit.stream.pause_reading
    send_records(kit)
    settle(kit.loop)
    now()


# -- unsent

@dirt(keeps=False)
def queued(kit, now):
    for _ in range(50):
        kit.stream.write(PIECE * 3000)
    kit.loop.turn(0)
    kit.far.read_all()
    settle(kit.loop)
    now()


@dirt(keeps=False)
def queued_and_not_run(kit, now):
    kit.stream.write(PIECE)
    now()


@dirt(keeps=False)
def a_file(kit, now):
    with tempfile.TemporaryFile() as file:
        file.truncate(100_000_000)
        kit.stream.sendfile(file)
    kit.stream.write(PIECE)
    kit.loop.turn(0)
    now()


@dirt(keeps=False)
def writing_waits_for_its_rate(kit, now):
    kit.stream.set_rate(write=RateLimit(1000, 1000))
    kit.stream.write(b"x" * 5000)
    settle(kit.loop)
    now()


@dirt("tcp", "tls", keeps=True)
def was_full_once(kit, now):
    kit.stream.write(bytes(10_000_000))
    while kit.stream.unsent_bytes:
        kit.loop.turn(0)
        kit.far.read_all()
    settle(kit.loop)
    now()


# -- on its way to the end, or to the beginning

@dirt(keeps=False)
def peer_ended(kit, now):
    kit.far.end()
    wait_ready(kit.stream)
    settle(kit.loop)
    now()


@dirt("tcp", keeps=False)
def broken_and_not_told(kit, now):
    kit.stream.pause_reading()
    reset(kit.far.sock, kit.stream)
    kit.stream.write(PIECE)
    kit.loop.turn(0)
    now()


@dirt(keeps=False)
def own_side_shut(kit, now):
    kit.stream.shutdown_write()
    now()


@dirt(keeps=False)
def own_side_shut_behind_a_queue(kit, now):
    kit.stream.write(bytes(10_000_000))
    kit.stream.shutdown_write()
    now()


@dirt(keeps=False)
def closing_behind_a_queue(kit, now):
    kit.stream.write(bytes(10_000_000))
    kit.stream.close()
    now()


@dirt(keeps=False)
def lingering(kit, now):
    kit.send(PIECE)
    kit.stream.close()
    kit.loop.turn(0)
    now()


@dirt("tls", keeps=False)
def shaking(kit, now):
    kit.stream.abort()
    settle(kit.loop)
    kit.adopt()
    kit.loop.turn(0)
    now()


# -- the tests ---------------------------------------------------------------------------------------------------------

CASES = [(name, kind) for name, (_, kinds, _) in DIRT.items() for kind in kinds]
CLEAN = ("Endpoint.slot", "Endpoint.loop_link", "Buffered.output", "Connection.extras", "Stream.options")


def owned_objects(fields: dict[str, Any]) -> list[Any]:
    """Python objects that are in these fields and belong to one user."""
    return [fields[field] for field in ("Part.data", "Extras.sealed", "Extras.early", "Extras.read_rate",
                                        "Extras.write_rate", "Options.separator") if fields.get(field) is not None]


def lend(kit: Kit) -> list[Any]:
    """To the next user; what that one has to say of it."""
    lent: list[Any] = []
    kit.stream._lend(lambda stream, error: lent.append(stream))
    return lent


def given_back(kit: Kit, make_dirty: Callable[[Kit, Now], None], keeps: bool) -> set[str]:
    """The mess, and then a pool has it. Returns what was dirty."""
    kit.open()
    clean = fields_of_stream(kit)
    noted: list[Any] = []

    def now():
        noted.append(fields_of_stream(kit))
        counts = [sys.getrefcount(one) for one in owned_objects(noted[0])]
        noted.append(kit.stream._park(HOUR_NS))
        left = [sys.getrefcount(one) for one in owned_objects(noted[0])]
        noted.append([after < before for before, after in zip(counts, left, strict=True)])

    make_dirty(kit, now)
    dirty, parked, let_go = noted
    if not keeps:
        assert not parked or kit.stream.is_closing, "a pool would lend this again"
        return changed(dirty, clean)
    assert parked
    assert all(let_go)
    resting = fields_of_stream(kit)
    assert changed(resting, clean) - set(AT_REST) == {"StreamState.STREAM_RESTS", "Slot.timer", "TimerNode.due_ns"}
    upcalls = list(kit.stream.upcalls)
    settle(kit.loop)
    assert lend(kit) == [kit.stream]
    assert changed(fields_of_stream(kit), clean) <= set(AT_REST)
    settle(kit.loop)
    kit.send(b"for the next user")
    settle(kit.loop)
    assert kit.stream.upcalls == [*upcalls, ("data", b"for the next user")]
    assert changed(fields_of_stream(kit), clean) <= set(AT_REST)
    return changed(dirty, clean) | changed(resting, clean)


def released(kit: Kit, make_dirty: Callable[[Kit, Now], None]) -> set[str]:
    """The mess, and then the connection is aborted, and another gets its slot. Returns what was dirty."""
    kit.open()
    clean = fields_of_stream(kit)
    noted: list[Any] = []

    def now():
        noted.append(fields_of_stream(kit))
        noted.append([sys.getrefcount(one) for one in owned_objects(noted[0])])
        kit.stream.abort()

    make_dirty(kit, now)
    settle(kit.loop)
    dirty, counts = noted
    left = [sys.getrefcount(one) for one in owned_objects(dirty)]
    assert all(after < before for before, after in zip(counts, left, strict=True))
    assert not any(_debug.connection_fields(kit.stream).get(field) for field in CLEAN)
    kit.far.sock.close()
    kit.open()
    assert kit.stream.token.index == dirty["Slot.index"]
    assert changed(fields_of_stream(kit), clean) <= set(IN_SLOT)
    kit.send(b"for the next owner")
    settle(kit.loop)
    assert kit.stream.upcalls == [("data", b"for the next owner")]
    return changed(dirty, clean)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_nothing_of_it_is_there_when_a_pool_lends_it_again(make_kit, name, kind):
    """17. Or the pool does not keep it."""
    make_dirty, _, keeps = DIRT[name]
    given_back(make_kit(kind), make_dirty, keeps)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_nothing_of_it_is_there_for_who_has_its_slot_next(make_kit, name, kind):
    """17. A slot is reused after each kind of mess."""
    released(make_kit(kind), DIRT[name][0])


OPENS_ITSELF = ("came_before_it_was_adopted", "of_a_pool", "shaking")


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[0] not in OPENS_ITSELF])
def test_nothing_of_it_is_there_for_who_is_next_at_a_pool(make_kit, name, kind):
    """17. Through a Pool: the same connection, clean, or another."""
    kit = PooledKit(make_kit(kind))
    make_dirty, _, keeps = DIRT[name]
    kit.open()
    first, clean = kit.stream, fields_of_stream(kit)
    make_dirty(kit, kit.release)
    kit.open()
    assert (kit.stream is first) == keeps
    upcalls = list(kit.stream.upcalls)
    assert keeps or not upcalls
    assert changed(fields_of_stream(kit), clean) <= set(AT_REST)
    kit.send(b"for the next user")
    settle(kit.loop)
    assert kit.stream.upcalls == [*upcalls, ("data", b"for the next user")]


def test_every_field_was_dirty_once_or_says_why_not(make_kit):
    """17. A field of which nothing is known, because it is new, fails here."""
    dirty = {field for name, kind in CASES for field in given_back(make_kit(kind), DIRT[name][0], DIRT[name][2])}
    assert all_fields() - dirty - set(NEVER) - set(AT_REST) == set(), "new: make it dirty, or say why not"
    assert set(NEVER) & dirty == set(), "it can be dirty after all"
    assert (set(NEVER) | set(AT_REST) | set(IN_SLOT) | dirty) - all_fields() == set(), "no such field"


def allocated() -> int:
    """Bytes that malloc has given out (mallinfo2(3), glibc 2.33)."""
    class Info(ctypes.Structure):
        _fields_ = [("numbers", ctypes.c_size_t * 10)]
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = Info
    numbers = ask().numbers
    return numbers[4] + numbers[7]          # hblkhd and uordblks


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc 2.33 can say what is allocated")
def test_what_the_beginning_of_a_frame_took_is_freed(make_kit):
    """17. A buffer of no kind that is counted. No pool keeps who holds one, so it goes with its connection."""
    kit = make_kit("tcp")
    before = allocated()
    for _ in range(20):
        kit.open()
        kit.stream.read_exactly(10**9)
        for _ in range(10):
            kit.send(bytes(100_000))
            settle(kit.loop)
        assert allocated() - before > 1_000_000
        kit.stream.abort()
        kit.far.sock.close()
        settle(kit.loop)
    assert allocated() - before < 1_000_000


def test_the_debug_build_shows_every_field(make_kit):
    """17. What is not shown could not be compared."""
    kit = make_kit("tls")
    kit.open()
    kit.stream.read_exactly(100)
    kit.stream.write(PIECE)
    plain = {field for field in all_fields() if field.split(".")[0] not in {name for name, _ in BITS.values()}}
    assert plain <= set(fields_of_stream(kit))

"""In the debug build only: what tests may look at and nobody else."""
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t

cimport epollkit._buffered as _buffered
cimport epollkit._room as _room
from epollkit._connection cimport Connection, Extras
from epollkit._connector cimport Connector, ConnectEvent
from epollkit._core cimport Loop
from epollkit._output cimport Output, Part
from epollkit._slots cimport NO_SLOT, Slot, SlotTable, slot_at, slot_copy, slot_of_fd, slot_of_node, slot_tag
from epollkit._stream cimport Options, Stream
from epollkit._sys cimport EK_SANITIZED, ek_event_tag
from epollkit._timers cimport TimerQueue, timer_before
from epollkit._tls cimport Tls

from epollkit._connector import EVENTS


def slot_fields(Loop loop not None, uint32_t index):
    """The fields of a slot, by name."""
    cdef Slot slot
    if index >= loop.slots.fresh:
        raise IndexError(index)
    slot = slot_copy(slot_at(&loop.slots, index))
    return {
        "generation": slot.generation, "fd": slot.fd, "live": slot.endpoint != NULL, "index": slot.index,
        "registered_batch": slot.registered_batch, "released_batch": slot.released_batch,
        "released_generation": slot.released_generation, "flags": slot.flags, "pending": slot.pending,
        "events": slot.events, "due_ns": slot.timer.due_ns,
    }


def set_generation(Loop loop not None, uint32_t index, uint32_t generation):
    """Age a slot: as if it had been released that often."""
    slot_at(&loop.slots, index).generation = generation


def set_batch(Loop loop not None, uint32_t batch):
    """Age a loop: as if it had taken that many batches."""
    loop.batch = batch


def defer_deadlines(Loop loop not None, uint32_t first, uint32_t count, int64_t due_ns, int64_t step_ns, int times):
    """Set the deadlines of `count` slots, one after the other and again from the first, each time `step_ns` later."""
    cdef int i
    for i in range(times):
        loop.set_deadline(slot_at(&loop.slots, first + i % count), due_ns + i * step_ns)


def queued_deadlines(Loop loop not None):
    """The heap of deadlines, entry by entry: (index of the slot, the time it is queued for, the slot's deadline)."""
    cdef Slot *slot
    cdef uint32_t place
    found = []
    for place in range(loop.deadlines.count):
        slot = slot_of_node(loop.deadlines.entries[place].node)
        found.append((slot.index, loop.deadlines.entries[place].key_ns, slot.timer.due_ns))
    return found


def deadline_moves(Loop loop not None):
    """How often an entry was put into the heap of deadlines."""
    return loop.deadlines.sequence


def check_timers(Loop loop not None):
    """Whether both heaps are in order: nobody before its parent, everybody where its node says."""
    return heap_is_in_order(&loop.calls.queue) and heap_is_in_order(&loop.deadlines)


cdef bint heap_is_in_order(const TimerQueue *queue) noexcept:
    cdef uint32_t place
    for place in range(queue.count):
        if queue.entries[place].node.place != place + 1:
            return False
        if place and timer_before(&queue.entries[place], &queue.entries[(place - 1) >> 2]):
            return False
    return True


def room_scans(Loop loop not None):
    """How often the whole table was searched for idle connections."""
    return (<_room.Loop?>loop).scans


def connector_tell(Connector connector not None, str event):
    """Have something happen to a connector, whether it can or not; without a socket."""
    connector.tell(<ConnectEvent><int>EVENTS.index(event), None, 0)


# Every field of what a connection owns, as "Struct.field". tests/test_reuse.py reads the .pxd files, and misses those
# that are not here.

cdef object reference(PyObject *object):
    return <object>object if object != NULL else None


def registration_fields(_buffered.Loop loop not None, uint32_t index):
    """A slot, and what the loop keeps for it elsewhere."""
    cdef Slot *place = slot_at(&loop.slots, index)
    cdef Slot slot = slot_copy(place)
    cdef uint32_t queued = 0
    cdef uint32_t i
    for i in range(loop.deadlines.count):
        queued += loop.deadlines.entries[i].node == &place.timer
    in_batch = [i for i in range(loop.batch_cursor, loop.batch_count)
                if ek_event_tag(&loop.events[i]) == slot_tag(place)]
    endpoint = reference(slot.endpoint)
    return {
        "Slot.generation": slot.generation, "Slot.fd": slot.fd, "Slot.endpoint": endpoint, "Slot.index": slot.index,
        "Slot.next": slot.next, "Slot.previous": slot.previous, "Slot.registered_batch": slot.registered_batch,
        "Slot.released_batch": slot.released_batch, "Slot.released_generation": slot.released_generation,
        "Slot.flags": slot.flags, "Slot.pending": slot.pending, "Slot.events": slot.events,
        "Slot.timer": slot.timer.due_ns != 0,
        "TimerNode.due_ns": slot.timer.due_ns, "TimerNode.place": slot.timer.place,
        "TimerNode.sequence": slot.timer.sequence,
        "SlotTable.by_fd": slot.fd >= 0 and slot_of_fd(&loop.slots, slot.fd) == place,
        "_core.Loop.deadlines": queued, "_core.Loop.events": in_batch,
        "_core.Loop.ready": index in ready_slots(loop),
        "_core.Loop.bound": len(loop.bound.get(slot_tag(place), ())),
        "_core.Loop.closings": sum([1 for i in range(loop.closings.first, loop.closings.end)
                                    if <object>loop.closings.entries[i].endpoint is endpoint]),
        "_core.Loop.waiting_for_room": sum([1 for waiting in loop.waiting_for_room if waiting is endpoint]),
        "_buffered.Loop.scratch_used": loop.scratch_used,
    }


cdef list ready_slots(Loop loop):
    cdef uint32_t index = loop.ready.head
    found = []
    while index != NO_SLOT:
        found.append(index)
        index = slot_at(&loop.slots, index).next
    return found


def connection_fields(Connection connection not None):
    """An endpoint, and the structs that hang on it: those that there are."""
    found = {
        "Endpoint.slot": connection.slot != NULL, "Endpoint.loop_link": connection.loop_link != NULL,
        "Endpoint.used": connection.used, "Endpoint.reads": connection.reads, "Endpoint.error": connection.error,
        "Endpoint.state": connection.state,
        "Buffered.output": connection.output != NULL, "Connection.extras": connection.extras != NULL,
    }
    if connection.loop_link != NULL:
        found["_buffered.Loop.kept"] = <size_t><PyObject *>connection in (<_buffered.Loop>connection.loop_link).kept
    if connection.output != NULL:
        found.update(output_fields(connection.output))
    if connection.extras != NULL:
        found.update(extras_fields(connection.extras))
    if isinstance(connection, Stream):
        found["Stream.options"] = (<Stream>connection).options != NULL
        if (<Stream>connection).options != NULL:
            found.update(options_fields((<Stream>connection).options))
    return found


cdef dict output_fields(const Output *output):
    cdef Part *part = &output.parts[output.first]
    found = {
        "Output.parts": output.parts != NULL, "Output.room": output.room, "Output.first": output.first,
        "Output.end": output.end, "Output.size": output.size, "Output.file_size": output.file_size,
        "Output.limit": output.limit,
    }
    if output.first < output.end:
        found.update({"Part.data": reference(part.data), "Part.file": part.file, "Part.offset": part.offset,
                      "Part.left": part.left})
    return found


cdef dict extras_fields(const Extras *extras):
    found = {
        "Extras.tls": reference(extras.tls), "Extras.sealed": reference(extras.sealed),
        "Extras.sealed_sent": extras.sealed_sent, "Extras.shake_ns": extras.shake_ns,
        "Extras.early": reference(extras.early), "Extras.read_rate": reference(extras.read_rate),
        "Extras.write_rate": reference(extras.write_rate), "Extras.read_grant": extras.read_grant,
        "Extras.write_grant": extras.write_grant,
    }
    if extras.tls != NULL:
        found.update(tls_fields(<Tls>extras.tls))
    return found


cdef dict tls_fields(Tls tls):
    return {
        "Tls.ssl_object": tls.ssl_object, "Tls.incoming": tls.incoming.pending, "Tls.outgoing": tls.outgoing.pending,
        "Tls.failure": tls.failure, "Tls.records": tls.records, "Tls.body": tls.body,
        "Tls.header": tls.header[:tls.header_length], "Tls.header_length": tls.header_length, "Tls.state": tls.state,
    }


cdef dict options_fields(const Options *options):
    return {
        "Options.high": options.high, "Options.low": options.low, "Options.hard": options.hard,
        "Options.read_ns": options.read_ns, "Options.write_ns": options.write_ns,
        "Options.life_due_ns": options.life_due_ns, "Options.read_at_ns": options.read_at_ns,
        "Options.write_at_ns": options.write_at_ns, "Options.kind": options.kind,
        "Options.frame_bytes": options.frame_bytes, "Options.separator": reference(options.separator),
        "Options.window": options.window != NULL, "Options.window_end": options.window_end != options.window,
        "Options.searched": options.searched, "Options.held": options.held != NULL,
        "Options.held_room": options.held_room, "Options.delivering": options.delivering,
    }


# For tests of the sanitizers: what they must see.

def sanitized():
    """Whether the address sanitizer watches this build."""
    return bool(EK_SANITIZED)


def touch(_buffered.Loop loop not None, str what, uint32_t index):
    """Read a byte that perhaps nobody may: of a field of that slot, or of a buffer of the loop's."""
    cdef Slot *slot = slot_at(&loop.slots, index if what not in ("input", "scratch") else 0)
    cdef const char *byte
    places = {
        "input": <size_t>&loop.input[index], "scratch": <size_t>&loop.scratch[index],
        "generation": <size_t>&slot.generation, "fd": <size_t>&slot.fd, "endpoint": <size_t>&slot.endpoint,
        "next": <size_t>&slot.next, "previous": <size_t>&slot.previous,
        "registered_batch": <size_t>&slot.registered_batch, "released_batch": <size_t>&slot.released_batch,
        "released_generation": <size_t>&slot.released_generation, "flags": <size_t>&slot.flags,
        "pending": <size_t>&slot.pending, "events": <size_t>&slot.events, "timer": <size_t>&slot.timer,
    }
    byte = <const char *><size_t>places[what]
    return byte[0]


def misuse(str what, int number, double fraction):
    """C that the language does not define, if `number` and `fraction` are right for it."""
    cdef int table[4]
    table[:] = [1, 2, 3, 4]
    if what == "overflow":
        return number + 1
    if what == "shift":
        return 1 << number
    if what == "bounds":
        return table[number]
    return <int>fraction


def sizes():
    """Bytes of what there is one of per connection."""
    return {"Slot": sizeof(Slot), "SlotTable": sizeof(SlotTable)}

"""In the debug build only: all of a loop that anything may depend on later, for who explores its states."""
from cpython.object cimport PyObject
from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t

cimport epollkit._sys as _sys
from epollkit._calls cimport Calls, Timer
from epollkit._connection cimport Connection
from epollkit._connector cimport Approach, Loop
from epollkit._core cimport Endpoint
from epollkit._listener cimport Listener
from epollkit._output cimport Output
from epollkit._slots cimport NO_SLOT, Slot, slot_at, slot_copy, slot_of_node
from epollkit._stream cimport Options, Stream

cdef uint32_t LAST_GENERATIONS = 0xFFFFFF00     # from there on it matters how many are left
cdef int64_t REBUILD_PAUSE_NS = 1000000000      # as in _core.pyx


def loop_state(Loop loop not None):
    """All of a loop that anything may depend on later, equal for equal states: generations and batches are told by
    what they are compared with, times by how far off they are, handlers by their types. What counts is left out."""
    cdef uint32_t index
    slots = [slot_state(loop, slot_at(&loop.slots, index)) for index in range(loop.slots.fresh)]
    return (
        tuple(slots), slot_list(loop, loop.slots.free_head), slot_list(loop, loop.ready.head), loop.slots.retired,
        deadlines_state(loop), calls_state(loop), batch_state(loop), flags_state(loop), idle_state(loop),
        tuple(sorted([(tag & 0xFFFFFFFF, behind(loop, tag), active(calls)) for tag, calls in loop.bound.items()])),
        tuple([type(<object>loop.closings.entries[i].endpoint).__name__
               for i in range(loop.closings.first, loop.closings.end)]),
        tuple([type(endpoint).__name__ for endpoint in loop.waiting_for_room]),
    )


def free_slots(Loop loop not None):
    """The free list, in the order in which it is taken from."""
    return slot_list(loop, loop.slots.free_head)


cdef int64_t ahead(int64_t when_ns) noexcept:
    """How far off a time is; 0 stands for never, as it does for itself."""
    return when_ns - _sys.ek_now_ns() if when_ns else INT64_MAX


cdef uint32_t generation_of(Loop loop, uint32_t index) noexcept:
    return slot_at(&loop.slots, index).generation if index < loop.slots.fresh else 0


cdef uint32_t behind(Loop loop, uint64_t tag) noexcept:
    """How far a tag is behind its slot, as far as that is compared."""
    cdef uint32_t difference = generation_of(loop, <uint32_t>tag) - <uint32_t>(tag >> 32)
    return difference & loop.slots.generation_mask if loop.instance_bits < 32 else difference != 0


cdef tuple slot_list(Loop loop, uint32_t index):
    found = []
    while index != NO_SLOT:
        found.append(index)
        index = slot_at(&loop.slots, index).next
    return tuple(found)


cdef tuple slot_state(Loop loop, Slot *place):
    cdef Slot slot = slot_copy(place)
    cdef bint under_way = loop.batch_cursor < loop.batch_count      # the next one has another number
    cdef bint released = under_way and slot.released_batch == loop.batch
    return (
        slot.fd, slot.flags, slot.pending, slot.events, ahead(slot.timer.due_ns), slot.timer.place != 0,
        under_way and slot.registered_batch == loop.batch, released,
        slot.generation - slot.released_generation if released else 0,
        slot.generation if slot.generation > LAST_GENERATIONS else 0,
        endpoint_state(<Endpoint>slot.endpoint) if slot.endpoint != NULL else None,
    )


cdef tuple endpoint_state(Endpoint endpoint):
    cdef tuple more = ()
    if isinstance(endpoint, Connection):
        more = connection_state(<Connection>endpoint)
    elif isinstance(endpoint, Listener):
        more = ((<Listener>endpoint).paused, (<Listener>endpoint).listen_events, (<Listener>endpoint).early_read)
    elif isinstance(endpoint, Approach):
        more = approach_state(<Approach>endpoint)
    return (type(endpoint).__name__, endpoint.reads, endpoint.error, endpoint.state, more)


cdef tuple approach_state(Approach approach):
    if approach.connector is None:
        return (approach.verdict,)
    return (approach.verdict, approach.connector.row, approach.connector.tried, len(approach.connector.under_way),
            approach.connector.newest is approach, ahead(approach.connector.deadline_ns))


cdef tuple connection_state(Connection connection):
    cdef const Output *output = connection.output
    cdef tuple more = ()
    cdef Py_ssize_t i
    if output != NULL:
        more = (output.size, output.file_size, output.limit, tuple([
            (<object>output.parts[i].data if output.parts[i].data != NULL else None, output.parts[i].offset,
             output.parts[i].left) for i in range(output.first, output.end)]))
    if connection.extras != NULL:
        more += (connection.extras.tls != NULL, connection.extras.sealed != NULL,
                 <object>connection.extras.early if connection.extras.early != NULL else None,
                 connection.extras.read_rate != NULL, connection.extras.write_rate != NULL,
                 connection.extras.read_grant, connection.extras.write_grant)
    if isinstance(connection, Stream) and (<Stream>connection).options != NULL:
        more += options_state((<Stream>connection).options)
    return more


cdef tuple options_state(const Options *options):
    return (
        options.high, options.low, options.hard, options.read_ns, options.write_ns, ahead(options.life_due_ns),
        ahead(options.read_at_ns), ahead(options.write_at_ns), <int>options.kind, options.frame_bytes,
        <object>options.separator if options.separator != NULL else None,
        options.window[:options.window_end - options.window] if options.window != NULL else None, options.searched,
        options.delivering,
    )


cdef tuple deadlines_state(Loop loop):
    """Queued deadlines in the order in which they come up."""
    cdef uint32_t i
    found = []
    for i in range(loop.deadlines.count):
        found.append((ahead(loop.deadlines.entries[i].key_ns),
                      <uint32_t>(loop.deadlines.entries[i].node.sequence - loop.deadlines.sequence),
                      slot_of_node(loop.deadlines.entries[i].node).index))
    return tuple([(key, index) for key, _, index in sorted(found)])


# From a node in the heap back to its Timer, as in _calls.pyx.
cdef Timer measured = Timer.__new__(Timer)
cdef size_t NODE_OFFSET = <size_t>&measured.node - <size_t><PyObject *>measured
measured = None


cdef str name_of(object function):
    return getattr(function, "__qualname__", type(function).__name__)


cdef Py_ssize_t active(list calls) except -1:
    return sum([1 for call in calls if (<Timer>call).function is not None])


cdef tuple calls_state(Loop loop):
    """Scheduled calls in the order in which they are due, posted ones in theirs: by the names of their functions."""
    cdef Calls calls = loop.calls
    cdef Timer timer
    cdef uint32_t i
    found = []
    for i in range(calls.queue.count):
        timer = <Timer><PyObject *>(<size_t>calls.queue.entries[i].node - NODE_OFFSET)
        found.append((ahead(calls.queue.entries[i].key_ns),
                      <uint32_t>(timer.node.sequence - calls.queue.sequence), name_of(timer.function)))
    return (tuple([(key, name) for key, _, name in sorted(found)]),
            tuple([name_of((<Timer>call).function) for call in calls.posted]),
            tuple([name_of(call[0]) for call in calls.inbox]), ahead(calls.running_ns))


cdef tuple batch_state(Loop loop):
    """What is left of the batch at hand."""
    cdef uint64_t tag
    cdef int i
    found = []
    for i in range(loop.batch_cursor, loop.batch_count):
        tag = _sys.ek_event_tag(&loop.events[i])
        found.append((<uint32_t>tag, behind(loop, tag), _sys.ek_event_mask(&loop.events[i])))
    return tuple(found)


cdef tuple flags_state(Loop loop):
    cdef int64_t pause_ns = loop.rebuilt_ns + REBUILD_PAUSE_NS - _sys.ek_now_ns()
    return (loop.closed, loop.turning, loop.stopping, loop.forked, loop.inherited, loop.wake_sent, loop.orphans,
            max(pause_ns, <int64_t>0), loop.scratch_used, len(loop.kept), len(loop.resolving), loop.noting,
            loop.complete, loop.starved)


cdef tuple idle_state(Loop loop):
    cdef uint32_t i
    return tuple([
        (ahead(loop.idle.entries[i].due_ns), loop.idle.entries[i].index,
         generation_of(loop, loop.idle.entries[i].index) != loop.idle.entries[i].generation)
        for i in range(loop.idle.first, loop.idle.count)])

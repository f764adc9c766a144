"""In the debug build only: what tests may look at and nobody else."""
from libc.stdint cimport int64_t, uint32_t

cimport epollkit._room as _room
from epollkit._connector cimport Connector, ConnectEvent
from epollkit._core cimport Loop
from epollkit._slots cimport Slot, SlotTable, slot_at, slot_of_node
from epollkit._timers cimport TimerQueue, timer_before

from epollkit._connector import EVENTS


def slot_fields(Loop loop not None, uint32_t index):
    """The fields of a slot, by name."""
    cdef Slot *slot
    if index >= loop.slots.fresh:
        raise IndexError(index)
    slot = slot_at(&loop.slots, index)
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


def sizes():
    """Bytes of what there is one of per connection."""
    return {"Slot": sizeof(Slot), "SlotTable": sizeof(SlotTable)}

"""In the debug build only: what tests may look at and nobody else."""
from libc.stdint cimport uint32_t

cimport epollkit._room as _room
from epollkit._core cimport Loop
from epollkit._slots cimport Slot, SlotTable, slot_at


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


def room_scans(Loop loop not None):
    """How often the whole table was searched for idle connections."""
    return (<_room.Loop?>loop).scans


def sizes():
    """Bytes of what there is one of per connection."""
    return {"Slot": sizeof(Slot), "SlotTable": sizeof(SlotTable)}

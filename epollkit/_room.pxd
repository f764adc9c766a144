"""Above the core: who has to go when `max_connections` is reached, or the descriptors are used up.

A protocol calls `rest` when a connection is between two requests, once its deadline is set, and clears SLOT_IDLE at the
first byte of the next one. Such a connection may be closed to let a newcomer in, the one that has rested for longest
first, and never over a request that has arrived.
"""
from libc.stdint cimport uint64_t

cimport epollkit._schedule as _schedule
from epollkit._idle cimport IdleSlots
from epollkit._slots cimport SLOT_IDLE, Slot


cdef class Loop(_schedule.Loop):
    cdef bint noting                # `rest` has more to do than a store, because of one of these:
    cdef bint complete              # no idle slot is missing in `idle`: whoever rests is added while there is room
    cdef bint starved               # room was wanted and nobody was idle: the next one who rests is told of
    cdef uint64_t scans             # over the whole table
    cdef IdleSlots idle

    cdef int make_room(self) except -1
    cdef int note_idle(self, Slot *slot) except -1


cdef inline int rest(Loop loop, Slot *slot) except -1:
    """May run Python: look at the slot again."""
    slot.flags |= SLOT_IDLE
    return loop.note_idle(slot) if loop.noting else 0

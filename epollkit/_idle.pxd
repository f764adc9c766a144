"""Leaf: who has been idle for longest. Knows slots; closes nobody.

Idle slots are in no list: a list would have to be kept in order at every request, for the sake of a moment that most
servers never see. A slot says SLOT_IDLE, a single store, and its deadline says since when: the one that would time out
first has waited for longest. When somebody has to go, one scan over the table remembers the oldest of them, and the
next to go are taken from there, as long as they are what they were. So a scan, O(slots), is paid for by a few hundred
evictions or requests, whatever the peers do.
"""
from libc.stdint cimport INT64_MAX, int64_t, uint32_t
from libc.stdlib cimport qsort

from epollkit._slots cimport SLOT_IDLE, Slot, SlotTable, slot_at

cdef enum:
    IDLE_KEPT = 256             # the oldest that a scan is sure to keep
    IDLE_ROOM = 512             # it sorts when there are that many

cdef struct IdleSlot:           # a slot as it was when it was seen
    int64_t due_ns
    uint32_t index
    uint32_t generation

cdef struct IdleSlots:
    IdleSlot entries[IDLE_ROOM]     # from the oldest to the youngest; those before `first` were taken
    uint32_t first
    uint32_t count


cdef inline int idle_compare(const void *left, const void *right) noexcept nogil:
    cdef const IdleSlot *one = <const IdleSlot *>left
    cdef const IdleSlot *other = <const IdleSlot *>right
    if one.due_ns != other.due_ns:
        return -1 if one.due_ns < other.due_ns else 1
    return -1 if one.index < other.index else 1


cdef inline bint idle_add(IdleSlots *idle, const Slot *slot) noexcept nogil:
    """Note one more, the youngest of all. False: there is no room."""
    cdef IdleSlot *entry
    if idle.first == idle.count:
        idle.first = idle.count = 0
    if idle.count == IDLE_ROOM:
        return False
    entry = &idle.entries[idle.count]
    entry.due_ns = slot.timer.due_ns
    entry.index = slot.index
    entry.generation = slot.generation
    idle.count += 1
    return True


cdef inline bint idle_collect(IdleSlots *idle, const SlotTable *slots) noexcept nogil:
    """Note the oldest, at least IDLE_KEPT of them; whether that is all that there are."""
    cdef int64_t bound_ns = INT64_MAX       # once some were left out: who is younger is left out too
    cdef uint32_t index
    cdef const Slot *slot
    idle.first = idle.count = 0
    for index in range(slots.fresh):
        slot = slot_at(slots, index)
        if not slot.flags & SLOT_IDLE or slot.timer.due_ns >= bound_ns:
            continue
        if not idle_add(idle, slot):
            qsort(idle.entries, idle.count, sizeof(IdleSlot), idle_compare)
            idle.count = IDLE_KEPT
            bound_ns = idle.entries[IDLE_KEPT - 1].due_ns
            if slot.timer.due_ns < bound_ns:
                idle_add(idle, slot)
    qsort(idle.entries, idle.count, sizeof(IdleSlot), idle_compare)
    return bound_ns == INT64_MAX


cdef inline Slot *idle_take(IdleSlots *idle, const SlotTable *slots) noexcept nogil:
    """The oldest of those noted who has been idle ever since, or NULL."""
    cdef const IdleSlot *entry
    cdef Slot *slot
    while idle.first < idle.count:
        entry = &idle.entries[idle.first]
        idle.first += 1
        slot = slot_at(slots, entry.index)
        if slot.generation == entry.generation and slot.flags & SLOT_IDLE and slot.timer.due_ns == entry.due_ns:
            return slot
    return NULL

"""Leaf: the queue of deadlines, a 4-ary heap that knows nothing of what it times.

A node lives inside what it times (a slot, a `Timer`), never moves while it is queued, and knows its place in the heap.
Two ways to arm it:

- `timers_set` puts the node exactly where its deadline belongs: O(log n). Equal deadlines fire in the order of arming.
- `timers_defer` is for deadlines that move forward with every bit of activity: it writes the new deadline into the node
  and leaves the heap alone, O(1). Whoever takes the node out compares the two and queues it again if it is not yet due.
  Disarming is the same write with 0. A slot thus has at most one entry, whoever owns it.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint32_t

from epollkit._sys cimport ek_free_pages, ek_grow_pages

cdef enum:
    FIRST_TIMER_ROOM = 1024     # four pages, touched as they fill

cdef struct TimerNode:
    int64_t due_ns          # CLOCK_MONOTONIC; 0: not armed
    uint32_t place          # index in the heap + 1; 0: not queued
    uint32_t sequence       # breaks ties: first armed, first fired; wraps, as ties that far apart do not exist

cdef struct TimerEntry:     # 16 bytes: there is one for each connection
    int64_t key_ns          # the node's deadline when it was queued; never later than node.due_ns, unless that is 0
    TimerNode *node

cdef struct TimerQueue:
    TimerEntry *entries
    uint32_t count
    uint32_t room
    uint32_t sequence


cdef inline bint timer_before(const TimerEntry *left, const TimerEntry *right) noexcept nogil:
    if left.key_ns != right.key_ns:
        return left.key_ns < right.key_ns
    return <int32_t>(left.node.sequence - right.node.sequence) < 0


cdef inline int timers_place(TimerQueue *queue, uint32_t place, TimerEntry entry) noexcept nogil:
    queue.entries[place] = entry
    entry.node.place = place + 1
    return 0


cdef inline int timers_sift_up(TimerQueue *queue, uint32_t place, TimerEntry entry) noexcept nogil:
    cdef uint32_t parent
    while place > 0:
        parent = (place - 1) >> 2
        if not timer_before(&entry, &queue.entries[parent]):
            break
        timers_place(queue, place, queue.entries[parent])
        place = parent
    return timers_place(queue, place, entry)


cdef inline int timers_sift_down(TimerQueue *queue, uint32_t place, TimerEntry entry) noexcept nogil:
    cdef uint32_t child, best, end
    while True:
        child = (place << 2) + 1
        if child >= queue.count:
            break
        best = child
        end = min(child + 4, queue.count)
        child += 1
        while child < end:
            if timer_before(&queue.entries[child], &queue.entries[best]):
                best = child
            child += 1
        if not timer_before(&queue.entries[best], &entry):
            break
        timers_place(queue, place, queue.entries[best])
        place = best
    return timers_place(queue, place, entry)


cdef inline int timers_remove(TimerQueue *queue, TimerNode *node) noexcept nogil:
    """Take a queued node out. Its deadline stays written in it."""
    cdef uint32_t place = node.place - 1
    cdef TimerEntry last
    node.place = 0
    queue.count -= 1
    if place == queue.count:
        return 0
    last = queue.entries[queue.count]
    if place > 0 and timer_before(&last, &queue.entries[(place - 1) >> 2]):
        return timers_sift_up(queue, place, last)
    return timers_sift_down(queue, place, last)


cdef inline int timers_set(TimerQueue *queue, TimerNode *node, int64_t due_ns) noexcept nogil:
    """Arm the node for exactly that deadline. 0 or -ENOMEM."""
    cdef TimerEntry entry
    cdef TimerEntry *grown
    cdef uint32_t room
    if node.place:
        timers_remove(queue, node)
    if queue.count == queue.room:
        room = queue.room * 2 if queue.room else FIRST_TIMER_ROOM
        grown = <TimerEntry *>ek_grow_pages(queue.entries, queue.room * sizeof(TimerEntry), room * sizeof(TimerEntry))
        if grown == NULL:
            return -ENOMEM
        queue.entries = grown
        queue.room = room
    node.due_ns = due_ns
    node.sequence = queue.sequence
    entry.key_ns = due_ns
    entry.node = node
    queue.sequence += 1
    queue.count += 1
    return timers_sift_up(queue, queue.count - 1, entry)


cdef inline int timers_defer(TimerQueue *queue, TimerNode *node, int64_t due_ns) noexcept nogil:
    """Arm the node for that deadline, or disarm it with 0; touches the heap only for a deadline that came closer."""
    if due_ns == 0 or (node.place and queue.entries[node.place - 1].key_ns <= due_ns):
        node.due_ns = due_ns
        return 0
    return timers_set(queue, node, due_ns)


cdef inline int64_t timers_first_ns(const TimerQueue *queue) noexcept nogil:
    """When the queue wants to be looked at next; INT64_MAX: never."""
    return queue.entries[0].key_ns if queue.count else INT64_MAX


cdef inline int timers_free(TimerQueue *queue) noexcept nogil:
    ek_free_pages(queue.entries, queue.room * sizeof(TimerEntry))
    queue.entries = NULL
    queue.count = queue.room = 0
    return 0

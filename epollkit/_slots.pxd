"""Leaf: slots, tags, the free list and the table fd -> slot. This file is the promise; everything else leans on it.

    epoll_event.data.u64      63 ............ 32 31 ............ 0
                              |   generation    |   slot index    |

A registration is a slot and the generation that the slot had when it was taken. The pair travels through the kernel in
the event, and `slot_for` compares it before anybody is called. The generation changes when a slot is invalidated, and
only there, so its lowest bit is nginx's instance bit; the other 31 are what makes the second reuse visible too.
Slots are never moved and never freed while their loop lives, so a tag can be as old as it likes.
"""
from cpython.object cimport PyObject
from libc.errno cimport EMFILE, ENOMEM
from libc.stdint cimport UINT32_MAX, int32_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from epollkit._sys cimport (
    EK_ASSERT, EK_FREED, EK_MADE, EK_POISON, EK_SLOT_CHUNK, EK_STALE, EK_UNPOISON, ek_free_pages, ek_grow_pages,
)
from epollkit._timers cimport TimerNode

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size) noexcept

cdef enum:
    SLOTS_PER_CHUNK = 1024      # 64 KiB: a chunk is touched slot by slot, so an empty loop costs pages, not chunks
    SLOT_CHUNK_SHIFT = 10
    MAX_SLOTS = 1 << 24         # bounds the directory of chunks: 128 KiB
    FIRST_FD_ROOM = 16384       # a page of the table fd -> slot is touched for every 1024 fds
    NO_SLOT = 0x7FFFFFFF        # the end of a list of slots

cdef enum SlotFlag:
    SLOT_OWNS_FD = 1            # close the fd at release: the loop accepted or adopted it
    SLOT_WATCHED = 2            # the fd is in the epoll set under this slot's tag
    SLOT_PEER_CLOSED = 4        # RDHUP or HUP was seen: nothing comes after what is buffered now
    SLOT_READY = 8              # linked into the ready list; `pending` is what to replay
    SLOT_BOUND_CALLS = 16       # timers or posted calls that die with this slot
    SLOT_INTERNAL = 32          # the loop's own wake-ups: not counted, not limited, not the user's to touch
    SLOT_UNLIMITED = 64         # does not count against max_connections: wake-ups and listeners
    SLOT_TELLS_CLOSE = 128      # `on_closed` is called at the end of the turn
    SLOT_TCP = 256              # a short read means drained (unless PRI, RDHUP, HUP or ERR came with it)
    SLOT_EXCLUSIVE = 512        # EPOLLEXCLUSIVE: the kernel refuses MOD
    SLOT_DISARMED = 1024        # a one-shot that has fired and was not re-armed
    SLOT_CONNECTION = 2048      # a socket with a peer, who is to see our FIN even if a child holds a copy
    SLOT_IDLE = 4096            # between two requests: may be closed to make room

cdef struct Slot:               # 64 bytes, a cache line
    uint32_t generation
    int32_t fd                  # -1 while free
    PyObject *endpoint          # an owned reference; NULL: the slot is free
    uint32_t index
    uint32_t next               # in the free list, or in the ready list
    uint32_t previous           # in the ready list
    uint32_t registered_batch   # the batch in which it was taken: none of that batch's events can be meant for it
    uint32_t released_batch     # the batch of its last release, and ...
    uint32_t released_generation    # ... the generation it had before its first release in that batch
    uint16_t flags              # SlotFlag
    uint16_t pending            # events to replay from the ready list
    uint32_t events             # the mask the fd is registered with
    TimerNode timer             # the endpoint's deadline

cdef struct SlotTable:
    Slot **chunks
    uint32_t capacity           # slots at most
    uint32_t fresh              # slots ever taken: the next never-used index
    uint32_t free_head          # last in, first out, as in nginx: the warmest slot first
    uint32_t live
    uint32_t unlimited          # of those, SLOT_UNLIMITED
    uint32_t retired            # slots whose generation ran out
    uint32_t generation_mask    # which generation bits are compared
    uint32_t fd_room
    uint32_t *by_fd             # fd -> index + 1 of the live slot that claims it, or 0


cdef inline int slots_init(SlotTable *table, uint32_t capacity, int instance_bits) noexcept nogil:
    """0 or -ENOMEM."""
    memset(table, 0, sizeof(SlotTable))
    table.capacity = capacity
    table.free_head = NO_SLOT
    table.generation_mask = UINT32_MAX if instance_bits == 32 else (<uint32_t>1 << instance_bits) - 1
    table.chunks = <Slot **>calloc((capacity >> SLOT_CHUNK_SHIFT) + 1, sizeof(Slot *))
    return 0 if table.chunks != NULL else -ENOMEM


cdef inline int slots_free(SlotTable *table) noexcept nogil:
    cdef uint32_t chunk
    if table.chunks != NULL:
        for chunk in range((table.capacity >> SLOT_CHUNK_SHIFT) + 1):
            if table.chunks[chunk] != NULL:
                EK_FREED(EK_SLOT_CHUNK)
            free(table.chunks[chunk])
    free(table.chunks)
    ek_free_pages(table.by_fd, table.fd_room * sizeof(uint32_t))
    table.chunks = NULL
    table.by_fd = NULL
    table.fresh = table.fd_room = 0
    return 0


cdef inline Slot *slot_at(const SlotTable *table, uint32_t index) noexcept nogil:
    return &table.chunks[index >> SLOT_CHUNK_SHIFT][index & (SLOTS_PER_CHUNK - 1)]


cdef inline Slot *slot_of_node(const TimerNode *node) noexcept nogil:
    """From a node in the heap of deadlines back to its slot."""
    return <Slot *>(<size_t>node - <size_t>&(<Slot *>NULL).timer)


cdef inline uint64_t slot_tag(const Slot *slot) noexcept nogil:
    return (<uint64_t>slot.generation << 32) | slot.index


cdef inline Slot *slot_for(const SlotTable *table, uint64_t tag) noexcept nogil:
    """The live slot that an event's tag means, or NULL: the event is stale."""
    cdef Slot *slot
    if EK_STALE(<uint32_t>tag >= table.fresh):      # not ours: somebody else added an fd to our set
        return NULL
    slot = slot_at(table, <uint32_t>tag)
    if EK_STALE(slot.endpoint == NULL or ((slot.generation ^ <uint32_t>(tag >> 32)) & table.generation_mask)):
        return NULL
    return slot


cdef inline Slot *slot_named(const SlotTable *table, uint32_t index, uint32_t generation) noexcept nogil:
    """The live slot of a token, or NULL. Tokens always compare the whole generation, whatever instance_bits says."""
    cdef Slot *slot
    if index >= table.fresh:
        return NULL
    slot = slot_at(table, index)
    return slot if slot.endpoint != NULL and slot.generation == generation else NULL


cdef inline Slot *slot_of_fd(const SlotTable *table, int fd) noexcept nogil:
    """The live slot that claims this fd, or NULL."""
    if fd < 0 or <uint32_t>fd >= table.fd_room or table.by_fd[fd] == 0:
        return NULL
    return slot_at(table, table.by_fd[fd] - 1)


cdef inline int slots_make_fd_room(SlotTable *table, int fd) noexcept nogil:
    """Make the table reach up to fd, which is open, so RLIMIT_NOFILE bounds it. 0 or -ENOMEM."""
    cdef uint32_t room = table.fd_room if table.fd_room else FIRST_FD_ROOM
    cdef uint32_t *grown
    if <uint32_t>fd < table.fd_room:
        return 0
    while room <= <uint32_t>fd:
        room *= 2
    grown = <uint32_t *>ek_grow_pages(table.by_fd, table.fd_room * sizeof(uint32_t), room * sizeof(uint32_t))
    if grown == NULL:
        return -ENOMEM
    table.by_fd = grown
    table.fd_room = room
    return 0


cdef inline Slot *slot_fresh(SlotTable *table) noexcept nogil:
    """A slot that was never used, or NULL: out of memory, or at the table's capacity."""
    cdef uint32_t index = table.fresh
    cdef Slot **chunk = &table.chunks[index >> SLOT_CHUNK_SHIFT]
    cdef Slot *slot
    if index >= table.capacity:
        return NULL
    if chunk[0] == NULL:
        chunk[0] = <Slot *>aligned_alloc(64, SLOTS_PER_CHUNK * sizeof(Slot))
        if chunk[0] == NULL:
            return NULL
        EK_MADE(EK_SLOT_CHUNK)
        EK_POISON(chunk[0], SLOTS_PER_CHUNK * sizeof(Slot))
    slot = &chunk[0][index & (SLOTS_PER_CHUNK - 1)]
    EK_UNPOISON(slot, sizeof(Slot))
    memset(slot, 0, sizeof(Slot))
    slot.index = index
    table.fresh += 1
    return slot


cdef inline int slot_take(SlotTable *table, int fd, PyObject *endpoint, uint16_t flags, uint32_t batch,
                          Slot **taken) noexcept nogil:
    """Give fd a slot; no live slot may claim the fd. 0, -ENOMEM, or -EMFILE when the table is full."""
    cdef Slot *slot
    if slots_make_fd_room(table, fd) < 0:
        return -ENOMEM
    EK_ASSERT(table.by_fd[fd] == 0)
    if table.free_head != NO_SLOT:
        slot = slot_at(table, table.free_head)
        table.free_head = slot.next
        EK_UNPOISON(slot, sizeof(Slot))
    else:
        slot = slot_fresh(table)
        if slot == NULL:
            return -EMFILE if table.fresh >= table.capacity else -ENOMEM
    EK_ASSERT(slot.endpoint == NULL and slot.timer.due_ns == 0 and slot.flags == 0 and slot.pending == 0)
    slot.fd = fd
    slot.endpoint = endpoint
    slot.flags = flags
    slot.events = 0
    slot.next = slot.previous = NO_SLOT
    slot.registered_batch = batch
    table.by_fd[fd] = slot.index + 1
    table.live += 1
    table.unlimited += (flags & SLOT_UNLIMITED) != 0
    taken[0] = slot
    return 0


cdef inline int slot_invalidate(SlotTable *table, Slot *slot, uint32_t batch) noexcept nogil:
    """From here on no event, token, deadline or replay finds this registration. The slot can't be taken yet."""
    EK_ASSERT(slot.endpoint != NULL and not slot.flags & SLOT_READY)
    if slot.released_batch != batch:
        slot.released_batch = batch
        slot.released_generation = slot.generation
    if table.by_fd[slot.fd] == slot.index + 1:
        table.by_fd[slot.fd] = 0
    table.live -= 1
    table.unlimited -= (slot.flags & SLOT_UNLIMITED) != 0
    slot.generation += 1            # the only place where it changes
    slot.endpoint = NULL
    slot.fd = -1
    slot.flags = 0
    slot.pending = 0
    slot.events = 0
    slot.timer.due_ns = 0           # its heap entry, if any, stays for the next owner: see _timers
    return 0


cdef inline int slot_seal(Slot *slot) noexcept nogil:
    """Of a free slot only a few fields mean anything: those by which a stale event or token is told, the free list's
    and the flags, which scans over the table look at. The sanitizer reports who touches another."""
    EK_POISON(&slot.fd, sizeof(slot.fd))
    EK_POISON(&slot.previous, sizeof(slot.previous) + sizeof(slot.registered_batch))
    EK_POISON(&slot.pending, sizeof(slot.pending) + sizeof(slot.events))
    if slot.timer.place == 0:       # else it stays in the heap for the next owner
        EK_POISON(&slot.timer, sizeof(TimerNode))
    return 0


cdef inline Slot slot_copy(Slot *slot) noexcept nogil:
    """All its fields, free or not: for who looks from outside."""
    cdef Slot copy
    EK_UNPOISON(slot, sizeof(Slot))
    copy = slot[0]
    if slot.endpoint == NULL:
        slot_seal(slot)
    return copy


cdef inline int slot_recycle(SlotTable *table, Slot *slot) noexcept nogil:
    """Hand an invalidated slot to the next taker; unless its generation ran out, for tokens may be kept for ever."""
    EK_ASSERT(slot.endpoint == NULL and slot.fd == -1)
    if slot.generation == 0:
        table.retired += 1
    else:
        slot.next = table.free_head
        table.free_head = slot.index
    return slot_seal(slot)


cdef struct SlotList:           # the ready list: slots linked by `next` and `previous`, first in, first out
    uint32_t head
    uint32_t tail
    uint32_t count


cdef inline int slot_append(SlotTable *table, SlotList *ready, Slot *slot) noexcept nogil:
    EK_ASSERT(slot.endpoint != NULL and not slot.flags & SLOT_READY)
    slot.flags |= SLOT_READY
    slot.next = NO_SLOT
    slot.previous = ready.tail
    if ready.tail != NO_SLOT:
        slot_at(table, ready.tail).next = slot.index
    else:
        ready.head = slot.index
    ready.tail = slot.index
    ready.count += 1
    return 0


cdef inline int slot_unlink(SlotTable *table, SlotList *ready, Slot *slot) noexcept nogil:
    EK_ASSERT(slot.flags & SLOT_READY)
    if slot.previous != NO_SLOT:
        slot_at(table, slot.previous).next = slot.next
    else:
        ready.head = slot.next
    if slot.next != NO_SLOT:
        slot_at(table, slot.next).previous = slot.previous
    else:
        ready.tail = slot.previous
    slot.next = slot.previous = NO_SLOT
    slot.flags &= ~<uint16_t>SLOT_READY
    ready.count -= 1
    return 0


cdef enum Staleness:
    STALE_CLOSED = 0        # released in this batch, and free now
    STALE_RECYCLED = 1      # released in this batch, and somebody else has the slot
    STALE_ORPHAN = 2        # released in an earlier batch: a dup, a fork or a passed fd keeps the description alive


cdef inline Staleness slot_staleness(const SlotTable *table, uint64_t tag, uint32_t batch) noexcept nogil:
    """What became of the registration that a stale tag meant."""
    cdef Slot *slot
    cdef uint32_t age
    if <uint32_t>tag >= table.fresh:
        return STALE_ORPHAN
    slot = slot_at(table, <uint32_t>tag)
    age = <uint32_t>(tag >> 32) - slot.released_generation
    if slot.released_batch != batch or age >= slot.generation - slot.released_generation:
        return STALE_ORPHAN
    return STALE_CLOSED if slot.endpoint == NULL else STALE_RECYCLED


cdef inline int slots_forget_batches(SlotTable *table) noexcept nogil:
    """The 32-bit batch number wrapped: what slots noted about batches means nothing now. O(slots), very rare."""
    cdef uint32_t index
    cdef Slot *slot
    for index in range(table.fresh):
        slot = slot_at(table, index)
        slot.released_batch = 0
        if slot.endpoint != NULL:
            slot.registered_batch = 0
    return 0

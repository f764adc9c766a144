"""The core: the bare loop and what can be registered with it. Nothing here knows what a stream or a listener is.

A handler in Cython subclasses `Endpoint` and overrides its C methods; the loop calls them without Python in between.
"""
from cpython.object cimport PyObject, visitproc
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from epollkit._calls cimport Calls
from epollkit._closings cimport Closings
from epollkit._slots cimport Slot, SlotList, SlotTable
from epollkit._sys cimport epoll_event
from epollkit._timers cimport TimerQueue
from epollkit._tokens cimport Anchor, Token

cdef enum:
    DEADLINE_BUDGET = 4096          # endpoints timed out per turn
    ORPHANS_TO_REBUILD = 64         # fewer are cheaper to drop than the set is to replace
    UNLIMITED_SLOTS = 1024          # listeners and wake-ups, beside max_connections


cdef struct Counters:
    uint64_t batches                # epoll_wait calls that returned events
    uint64_t events                 # events in them, stale and internal ones too
    uint64_t upcalls                # on_ready and on_deadline
    uint64_t stale[3]               # by Staleness
    uint64_t wrong_deliveries       # upcalls to a registration younger than the event: 0 with all 32 bits compared
    uint64_t wrong_kills            # ... that ended it
    uint64_t accepted
    uint64_t closed                 # registrations released, for whatever reason
    uint64_t lost                   # of those, because the user closed the fd behind the loop's back
    uint64_t rebuilds               # of the epoll set, because it kept reporting orphans
    uint64_t evicted                # idle connections closed to let others in


cdef class Endpoint:
    """One registration, seen from the side of whoever handles it. Registered at most once in its life."""
    cdef Slot *slot                 # NULL unless live: the whole "look-up after an upcall"
    cdef PyObject *loop_link        # the loop, borrowed, from registration to the end of on_closed
    cdef uint8_t used               # it had a registration, now or once
    # The type's own; they lie here because alignment would leave a hole.
    cdef uint8_t reads
    cdef uint16_t error
    cdef uint32_t state

    # Upcalls, all from the loop's thread. An exception ends the endpoint and is reported; a BaseException leaves run().
    cdef int on_opened(self) except -1                      # the loop accepted or adopted the fd
    cdef int on_ready(self, uint32_t events) except -1      # an edge: reported once
    cdef int on_deadline(self) except -1                    # its deadline passed
    cdef int on_closed(self, object reason) except -1       # released earlier in this turn; reason: exception or None
    cdef int on_room(self) except -1                        # it asked to be told when there may be room: now
    cdef bint owes(self) noexcept                           # what it was given to send is lost if its fd is closed now
    cdef int on_evicted(self) except -1                     # it said SLOT_IDLE, and somebody needs its place: close

    # What it holds, if its type is one that the garbage collector does not look into: the loop answers for it.
    cdef int visit(self, visitproc visit, void *argument) except -1
    cdef int let_go(self) except -1                         # dropped together with its loop, without on_closed

    cdef object blamed(self)                                # what a report of its exception names: itself
    cdef Loop owner(self)           # UsageError when it is not live


cdef class Wakeup(Endpoint):
    """The eventfd that other threads wake the loop with."""


cdef class Loop:
    cdef SlotTable slots
    cdef TimerQueue deadlines       # of slots; the user's timers are in calls
    cdef Calls calls
    cdef Counters counters
    cdef int epoll_fd, wake_fd
    cdef readonly bint closed       # also before __init__ is through
    cdef bint turning, stopping
    cdef public bint forked         # this process has forked: a child may hold copies of our descriptors
    cdef bint inherited             # this process is such a child
    cdef uint32_t internal          # live slots that are the loop's own
    cdef bint wake_sent             # the eventfd was written and not yet read: coalesces wake-ups
    cdef unsigned long thread

    # The batch at hand. It belongs to the loop, not to a stack frame: an exception may leave turn() half-way through.
    cdef epoll_event *events
    cdef int batch_room
    cdef int batch_count
    cdef int batch_cursor
    cdef uint32_t batch             # its number; starts at 1, 0 means never
    cdef int64_t released_gil_ns
    cdef uint32_t orphans           # stale events of files that somebody keeps open, since the last rebuild
    cdef int64_t rebuilt_ns

    cdef SlotList ready             # slots to be run again without a new edge
    cdef Anchor anchor
    cdef dict bound                 # tag -> list of Timer that die with the slot
    cdef Closings closings          # released, on_closed is due
    cdef list waiting_for_room      # endpoints whose on_room is due when a registration ends, or could
    cdef readonly int max_connections
    cdef readonly int instance_bits
    cdef object __weakref__

    # for the layers above and for native handlers
    cdef Slot *attach(self, Endpoint endpoint, int fd, uint16_t flags) except NULL
    cdef int watch(self, Slot *slot, uint32_t events) except -1
    cdef int rewatch(self, Slot *slot, uint32_t events) except -1
    cdef int open_endpoint(self, Endpoint endpoint, uint32_t events, uint32_t arrived) except -1
    cdef int hand_over(self, Slot *slot, Endpoint heir) except -1
    cdef int release(self, Slot *slot, object reason) except -1
    cdef int make_ready(self, Slot *slot, uint16_t events) noexcept
    cdef int set_deadline(self, Slot *slot, int64_t due_ns) except -1
    cdef bint at_limit(self) noexcept
    cdef int forget_calls(self, Slot *slot) except -1

    # inside
    cdef int check_usable(self) except -1
    cdef int lose(self, Slot *slot) except -1
    cdef int enter(self) except -1
    cdef Py_ssize_t turn_once(self, int64_t timeout_ns) except -1
    cdef int64_t wait_limit(self, int64_t timeout_ns, int64_t now_ns) except? -1
    cdef int wait(self, int64_t timeout_ns) except -1
    cdef int drop_stale(self) noexcept
    cdef int rebuild(self) except -1
    cdef Py_ssize_t dispatch(self) except -1
    cdef int deliver(self, Slot *slot, uint32_t events) except -1
    cdef int deliver_astray(self, Slot *slot, uint32_t events) except -1
    cdef int fail(self, Endpoint endpoint, object exception) except -1
    cdef Py_ssize_t run_deadlines(self) except -1
    cdef int time_out(self, Slot *slot) except -1
    cdef Py_ssize_t run_ready(self) except -1
    cdef int run_closed(self) except -1
    cdef Endpoint forget_closing(self)
    cdef int drop_everything(self) except -1
    cdef int tell_room(self) except -1
    cdef int forget_bound(self, uint64_t tag) except -1

cdef object os_error(int code, str what)

"""The bare loop: registrations, dispatch, deadlines, turns. Read `_slots.pxd` first; it is the promise."""
import warnings

from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject, PyTypeObject, traverseproc, visitproc
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc cimport errno
from libc.stdint cimport INT64_MAX, int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport strerror

cimport cython

cimport epollkit._sys as _sys
from epollkit._calls cimport Calls, Timer
from epollkit._closings cimport (
    Closing, closing_free, closings_append, closings_count, closings_free, closings_reserve, closings_take,
    closings_visit)
from epollkit._epollset cimport set_add, set_change, set_holds, set_renew
from epollkit._slots cimport (
    MAX_SLOTS, NO_SLOT, SLOT_BOUND_CALLS, SLOT_CONNECTION, SLOT_IDLE, SLOT_INTERNAL, SLOT_OWNS_FD, SLOT_PEER_CLOSED,
    SLOT_READY, SLOT_TELLS_CLOSE, SLOT_UNLIMITED, SLOT_WATCHED, STALE_CLOSED, STALE_ORPHAN, STALE_RECYCLED, Slot,
    SlotTable, Staleness, slot_append, slot_at, slot_for, slot_invalidate, slot_of_fd, slot_of_node, slot_recycle,
    slot_staleness, slot_tag, slot_take, slot_unlink, slots_forget_batches, slots_free, slots_init,
)
from epollkit._sys cimport EK_ASSERT, EK_ASSERT_THREAD
from epollkit._tokens cimport Anchor, make_token
from epollkit._timers cimport TimerNode, timers_defer, timers_first_ns, timers_free, timers_remove, timers_set

from epollkit._checks import checked_number, checked_timeout_ns
from epollkit.errors import LimitReached, StaleToken, UsageError
from epollkit.stats import LoopStats

cdef uint32_t PEER_GONE = _sys.EPOLLRDHUP | _sys.EPOLLHUP
cdef int64_t REBUILD_PAUSE_NS = 1000000000
# A loop that never blocks lets other threads run this often: twice CPython's switch interval, after which a waiting
# thread asks for the GIL. Released before it has asked, the GIL is taken back before it has even woken.
cdef int64_t GIL_SLICE_NS = 10000000


def build_info():
    """Which build runs: `{"build": "release" | "debug"}`. The debug build aborts when an invariant is broken."""
    return {"build": "debug" if _sys.EPOLLKIT_DEBUG else "release"}


cdef object os_error(int code, str what):
    return OSError(code, f"{what}: {strerror(code).decode()}")


cdef class Endpoint:
    """What a slot belongs to. Python code meets its subclasses: streams, listeners."""

    cdef int on_opened(self) except -1:
        return 0

    cdef int on_ready(self, uint32_t events) except -1:
        return 0

    cdef int on_deadline(self) except -1:
        return 0

    cdef int on_closed(self, object reason) except -1:
        return 0

    cdef int on_room(self) except -1:
        return 0

    cdef bint owes(self) noexcept:
        return False

    cdef int on_evicted(self) except -1:
        return 0

    cdef int visit(self, visitproc visit, void *argument) except -1:
        return 0

    cdef int let_go(self) except -1:
        return 0

    cdef object blamed(self):
        return self

    @property
    def loop(self):
        """The loop it belongs to, from registration to the end of on_close; UsageError outside of that."""
        if self.loop_link == NULL:
            raise UsageError(f"this {type(self).__name__} is closed, or was never opened")
        return <Loop>self.loop_link

    cdef Loop owner(self):
        if self.slot == NULL:
            raise UsageError(f"this {type(self).__name__} is closed, or was never opened")
        return <Loop>self.loop_link

    @property
    def token(self):
        """The registration's `Token`; UsageError when it is not live."""
        cdef Loop loop = self.owner()
        return make_token(loop.anchor, self.slot)

    def fileno(self):
        """The fd, which stays the loop's; UsageError when it is not live."""
        self.owner()
        return self.slot.fd


cdef class Wakeup(Endpoint):
    def __cinit__(self):
        _sys.EK_MADE(_sys.EK_WAKEUP)

    def __init__(self):
        raise UsageError("a Wakeup is made by its loop")

    cdef int on_ready(self, uint32_t events) except -1:
        cdef Loop loop = <Loop>self.loop_link
        loop.wake_sent = False          # before the read: a wake-up sent in between writes again
        _sys.ek_eventfd_drain(self.slot.fd)
        return 0


# ---------------------------------------------------------------------------------------------------------------------
# The loop
#
# A batch is what one epoll_wait returned: up to 512 statements about the past. By the time the loop comes to the
# 500th, 499 handlers have run, and any of them may have closed that connection and accepted another, which then has
# the same fd and the same slot: both are handed out lowest or warmest first. Told by its fd, the event would reach
# the newcomer.
#
# So an event names its registration: slot index and generation, in the 64 bits that the kernel carries for us.
# dispatch() compares them, drops what is stale and counts it. One bit of generation (nginx's instance) sees the
# slot's next owner, but not the one after: close A, accept B, B closes, accept C, and C has A's bit. 32 bits see four
# thousand million of them.
#
# RDHUP is looked at first, but as a flag, not as a verdict: "the peer has shut down its side" often comes with its
# last bytes still unread, and whoever closes on it throws a request away. The flag says that what is buffered is all
# there is.
#
# A closed fd takes its registration out of the set only when no copy of the description is left: after dup(), fork()
# or a passed fd the kernel goes on reporting it. Those tags are stale for ever, and dropped as orphans.
#
# Starvation: everything that could go on for ever has a budget per turn (accepts, bytes read, timers, posted calls),
# and whoever stops at one is on the ready list, because its edge is spent and the kernel will not repeat it.
# ---------------------------------------------------------------------------------------------------------------------
@cython.no_gc_clear      # __dealloc__ needs its attributes; __del__ has emptied what cycles run through
cdef class Loop:
    """The bare loop: registrations, deadlines, turns. Its contract stands on `epollkit.Loop`, in `_buffered.pyx`."""

    def __cinit__(self, *arguments, **options):
        _sys.EK_MADE(_sys.EK_LOOP)      # first, like what __dealloc__ has to know: the rest may find no memory
        self.epoll_fd = self.wake_fd = -1
        self.closed = True              # until __init__ is through: __dealloc__ then has little to do
        self.anchor = Anchor.__new__(Anchor)
        self.anchor.slots = &self.slots
        self.calls = Calls.__new__(Calls)
        self.bound = {}
        self.waiting_for_room = []
        self.thread = PyThread_get_thread_ident()
        self.batch = 1
        self.ready.head = self.ready.tail = NO_SLOT

    def __init__(self, max_connections=65536, instance_bits=32, batch=512):
        if self.events != NULL:
            raise UsageError("this loop is initialised already")
        self.max_connections = checked_number("max_connections", max_connections, 1, MAX_SLOTS - UNLIMITED_SLOTS)
        self.instance_bits = checked_number("instance_bits", instance_bits, 1, 32)
        self.batch_room = checked_number("batch", batch, 1, 65536)
        self.events = <_sys.epoll_event *>malloc(self.batch_room * sizeof(_sys.epoll_event))
        if self.events == NULL:
            raise MemoryError()
        if slots_init(&self.slots, self.max_connections + UNLIMITED_SLOTS, self.instance_bits) < 0:
            raise MemoryError()
        self.epoll_fd = _sys.ek_epoll_create()
        if self.epoll_fd < 0:
            raise os_error(-self.epoll_fd, "epoll_create1")
        self.closed = False
        try:
            self.wake_fd = _sys.ek_eventfd()
            if self.wake_fd < 0:
                raise os_error(-self.wake_fd, "eventfd")
            self.watch(self.attach(Wakeup.__new__(Wakeup), self.wake_fd, SLOT_INTERNAL | SLOT_UNLIMITED | SLOT_OWNS_FD),
                       _sys.EPOLLIN | _sys.EPOLLET)
        except BaseException:
            if self.wake_fd >= 0 and slot_of_fd(&self.slots, self.wake_fd) == NULL:
                _sys.ek_close(self.wake_fd)
            self.drop_everything()
            raise

    def __del__(self):
        if not self.closed:
            try:
                warnings.warn(f"unclosed loop {self!r}; use 'with', or call close()", ResourceWarning, source=self)
            finally:
                self.drop_everything()

    def __dealloc__(self):
        cdef uint32_t index
        cdef Slot *slot
        if self.anchor is not None:
            self.anchor.slots = NULL
        _sys.EK_FREED(_sys.EK_LOOP)
        if not self.closed:         # only if a subclass's __del__ hid ours
            for index in range(self.slots.fresh):
                slot = slot_at(&self.slots, index)
                if slot.flags & SLOT_OWNS_FD:
                    _sys.ek_close(slot.fd)
                if slot.endpoint != NULL:
                    (<Endpoint>slot.endpoint).slot = NULL
                    (<Endpoint>slot.endpoint).loop_link = NULL
                    Py_DECREF(<object>slot.endpoint)
            _sys.ek_close(self.epoll_fd)
        while closings_count(&self.closings):       # also of who came while it was being closed
            self.forget_closing()
        closings_free(&self.closings)
        slots_free(&self.slots)
        timers_free(&self.deadlines)
        free(self.events)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __repr__(self):
        state = "closed" if self.closed else f"{self.slots.live - self.slots.unlimited} live"
        return f"<{type(self).__name__} {state}>"

    cdef int check_usable(self) except -1:
        """UsageError where the loop is closed, or belongs to another thread."""
        if self.inherited:
            raise UsageError("this loop belongs to the parent process; a forked child makes its own")
        if self.closed:
            raise UsageError("this loop is closed")
        if PyThread_get_thread_ident() != self.thread:
            raise UsageError("this loop belongs to another thread; from here only call_soon_threadsafe() may be called")
        return 0

    def _check_usable(self):
        """For what is above in Python. A cpdef function would look for an override each time it is called."""
        self.check_usable()

    # -- registrations ------------------------------------------------------------------------------------------------

    cdef int lose(self, Slot *slot) except -1:
        """The fd of a live slot was closed behind our back, and may be another file by now: let go of the slot only."""
        cdef Endpoint endpoint = <Endpoint>slot.endpoint
        error = os_error(errno.EBADF, f"fd {slot.fd} was closed behind the loop's back")
        if endpoint.slot == NULL:           # making the error ran the collector, and that a finalizer
            return 0
        if slot.flags & SLOT_OWNS_FD:
            _sys.EK_FREED(_sys.EK_FD)
        slot.flags &= ~<uint16_t>(SLOT_OWNS_FD | SLOT_WATCHED)
        self.counters.lost += 1
        return self.release(slot, error)

    cdef bint at_limit(self) noexcept:
        return self.slots.live - self.slots.unlimited >= <uint32_t>self.max_connections

    cdef Slot *attach(self, Endpoint endpoint, int fd, uint16_t flags) except NULL:
        """Give endpoint a slot for fd, which the kernel has just handed out. It is not watched yet."""
        cdef Slot *slot
        cdef int result
        EK_ASSERT_THREAD(self.thread)
        if endpoint.used:
            raise UsageError(f"{endpoint!r} was used for another connection; a factory makes a new one each time")
        slot = slot_of_fd(&self.slots, fd)
        if slot != NULL:
            self.lose(slot)
            if slot_of_fd(&self.slots, fd) != NULL:
                raise UsageError(f"fd {fd} is already registered: by what its last owner ran as it went")
        if not flags & SLOT_UNLIMITED and self.at_limit():      # a listener's factory may have taken the last one
            raise LimitReached(f"max_connections={self.max_connections} are registered already")
        result = closings_reserve(&self.closings, self.slots.live)
        if result == 0:
            result = slot_take(&self.slots, fd, <PyObject *>endpoint, flags, self.batch, &slot)
        if result == -errno.EMFILE:
            raise LimitReached(f"all {self.slots.capacity} slots are taken")
        if result < 0:
            raise MemoryError()
        Py_INCREF(endpoint)
        self.internal += (flags & SLOT_INTERNAL) != 0
        endpoint.used = True
        endpoint.slot = slot
        endpoint.loop_link = <PyObject *>self
        return slot

    cdef int watch(self, Slot *slot, uint32_t events) except -1:
        """Put the fd into the epoll set under the slot's tag."""
        cdef int result = set_add(self.epoll_fd, slot, events)
        if result == -errno.EPERM:
            raise UsageError(f"fd {slot.fd} can't be polled: a regular file or directory is always ready")
        if result == -errno.EBADF:
            raise UsageError(f"fd {slot.fd} is closed")
        if result in (-errno.EINVAL, -errno.ELOOP):
            raise UsageError(f"fd {slot.fd} can't be watched by this loop: it is the loop's own epoll fd, or a cycle")
        if result < 0:
            raise os_error(-result, f"epoll_ctl for fd {slot.fd}")
        return 0

    cdef int rewatch(self, Slot *slot, uint32_t events) except -1:
        """Change the mask, or re-arm. Under the slot's own tag, and only while the fd still is this slot's."""
        cdef int result
        if not slot.flags & SLOT_WATCHED:       # a rebuild left a disarmed one-shot out of the set
            return self.watch(slot, events)
        result = set_change(self.epoll_fd, slot, events)
        if result in (-errno.ENOENT, -errno.EBADF, -errno.EPERM):
            fd = slot.fd
            self.lose(slot)
            raise StaleToken(f"fd {fd} was closed while it was registered; the registration is gone")
        if result < 0:
            raise os_error(-result, f"epoll_ctl for fd {slot.fd}")
        return 0

    cdef int open_endpoint(self, Endpoint endpoint, uint32_t events, uint32_t arrived) except -1:
        """First upcall, then what has arrived already, if anything is known to, then the epoll set: who leaves before
        that never enters it. The slot was taken before, so that upcalls find everything as it will be. A new entry
        reports what is there already; one that was handed over has been in the set for long.
        """
        try:
            try:
                endpoint.on_opened()
                if arrived and endpoint.slot != NULL:
                    endpoint.on_ready(arrived)
            finally:
                if endpoint.slot != NULL and not endpoint.slot.flags & SLOT_WATCHED:
                    self.watch(endpoint.slot, events)
        except Exception as error:
            self.fail(endpoint, error)
        except BaseException:
            if endpoint.slot != NULL:       # what was cut short goes on next turn
                self.make_ready(endpoint.slot, <uint16_t>(_sys.EPOLLIN | _sys.EPOLLOUT | arrived))
            raise
        return 0

    cdef int hand_over(self, Slot *slot, Endpoint heir) except -1:
        """The same registration for another endpoint, from the next upcall on: its tag, its place in the epoll set, and
        so its token and the calls that die with it stay what they are. Its deadline was the former endpoint's, and is
        off. Who hands over holds a reference to that one.
        """
        cdef Endpoint former = <Endpoint>slot.endpoint
        EK_ASSERT_THREAD(self.thread)
        EK_ASSERT(former is not heir and former.slot == slot and heir.slot == NULL and heir.loop_link == NULL)
        EK_ASSERT(not slot.flags & (SLOT_INTERNAL | SLOT_UNLIMITED | SLOT_IDLE))
        former.slot = NULL
        former.loop_link = NULL
        Py_INCREF(heir)
        heir.used = True
        heir.slot = slot
        heir.loop_link = <PyObject *>self
        slot.endpoint = <PyObject *>heir
        self.set_deadline(slot, 0)
        Py_DECREF(former)
        return 0

    cdef int release(self, Slot *slot, object reason) except -1:
        """End a registration. Invalidate first, then close the fd, then recycle: at no point can anything find it half
        gone. Closing the last descriptor takes the entry out of the set, which saves a call: EPOLL_CTL_DEL is for fds
        that stay open, and for when a forked child may hold a copy, which would also hide our FIN from the peer.
        """
        EK_ASSERT(slot.endpoint != NULL)
        cdef Endpoint endpoint = <Endpoint>slot.endpoint
        cdef uint16_t flags = slot.flags
        cdef int fd = slot.fd
        cdef uint64_t tag = slot_tag(slot)
        if not self.closed:             # else the collector drops it, in whatever thread
            EK_ASSERT_THREAD(self.thread)
        if flags & SLOT_READY:
            slot_unlink(&self.slots, &self.ready, slot)
        slot_invalidate(&self.slots, slot, self.batch)
        endpoint.slot = NULL
        if flags & SLOT_WATCHED and (self.forked or not flags & SLOT_OWNS_FD):
            _sys.ek_epoll_ctl(self.epoll_fd, _sys.EPOLL_CTL_DEL, fd, 0, 0)
        if flags & SLOT_OWNS_FD:
            if endpoint.owes() and not self.inherited:      # a peer must not take half an answer for a whole one
                _sys.ek_reset_on_close(fd)
            if self.forked and flags & SLOT_CONNECTION:
                _sys.ek_shutdown(fd)
            _sys.ek_close(fd)
        slot_recycle(&self.slots, slot)
        self.counters.closed += 1
        self.internal -= (flags & SLOT_INTERNAL) != 0
        if flags & SLOT_BOUND_CALLS:
            self.forget_bound(tag)
        if flags & SLOT_TELLS_CLOSE:
            closings_append(&self.closings, endpoint, reason)
        else:
            endpoint.loop_link = NULL
        Py_DECREF(endpoint)                         # the slot's reference
        if self.waiting_for_room:
            return self.tell_room()
        return 0

    cdef int forget_calls(self, Slot *slot) except -1:
        """Timers and posted calls that would die with the slot go now."""
        if slot.flags & SLOT_BOUND_CALLS:
            slot.flags &= ~<uint16_t>SLOT_BOUND_CALLS
            self.forget_bound(slot_tag(slot))
        return 0

    cdef int forget_bound(self, uint64_t tag) except -1:
        for timer in self.bound.pop(tag):
            (<Timer>timer).forget()
        return 0

    cdef int tell_room(self) except -1:
        try:
            waiting, self.waiting_for_room = self.waiting_for_room, []
        except MemoryError:
            waiting = ()                # they come back by themselves
        for hungry in waiting:
            (<Endpoint>hungry).on_room()
        return 0

    cdef int make_ready(self, Slot *slot, uint16_t events) noexcept:
        """Run this slot in the next turn as if these events had come. The wait of that turn will not block."""
        EK_ASSERT_THREAD(self.thread)
        slot.pending |= events
        if not slot.flags & SLOT_READY:
            slot_append(&self.slots, &self.ready, slot)
        return 0

    cdef int set_deadline(self, Slot *slot, int64_t due_ns) except -1:
        """`on_deadline` at that time (CLOCK_MONOTONIC), or never with 0. O(1) when it only moves forward."""
        if timers_defer(&self.deadlines, &slot.timer, due_ns) < 0:
            raise MemoryError()
        EK_ASSERT(self.deadlines.count <= self.slots.fresh)
        return 0

    # -- errors ---------------------------------------------------------------------------------------------

    def set_exception_handler(self, handler):
        """`handler(exception, source)` is told of every exception that a handler raised; source is the endpoint or the
        function it came from. None: back to the default, an error on the logger "epollkit"."""
        self.check_usable()
        if handler is not None and not callable(handler):
            raise UsageError(f"an exception handler is called as handler(error, source); {handler!r} can't be called")
        self.calls.exception_handler = handler

    cdef int fail(self, Endpoint endpoint, object exception) except -1:
        """A handler raised: that ends its endpoint, and is reported once."""
        source = endpoint.blamed()
        if endpoint.slot != NULL:
            self.release(endpoint.slot, exception)
        return self.calls.report(exception, source)

    # -- turns ---------------------------------------------------------------------------------------------------------

    def turn(self, timeout=None):
        """One turn: inbox and posted calls, due timers, the ready list, one wait, its batch. Returns the upcalls made.

        Args:
            timeout: seconds to wait for events at most; None waits, 0 polls. A signal ends the wait early. If anything
                ran before the wait, or is ready to run again, the wait only polls.

        A turn that an exception cut short (Ctrl-C in a handler) is taken up again: the next turn delivers the rest of
        its batch, and nothing else.
        """
        cdef int64_t timeout_ns = checked_timeout_ns(timeout)
        self.enter()
        try:
            return self.turn_once(timeout_ns)
        finally:
            self.turning = False

    def run(self):
        """Turn until `stop()` is called."""
        self.enter()
        try:
            while not self.stopping:
                self.turn_once(-1)
        finally:
            self.turning = self.stopping = False

    def stop(self):
        """Leave `run()` at the end of this turn; called before it, `run()` makes no turn. From another thread:
        `call_soon_threadsafe(loop.stop)`. On a closed loop nothing happens: on_close calls it, too, and may be called
        by `close()`."""
        if not self.closed or self.inherited:
            self.check_usable()
            self.stopping = True

    cdef int enter(self) except -1:
        self.check_usable()
        if self.turning:
            raise UsageError("turn() and run() can't be called from inside a turn; use call_soon()")
        self.turning = True
        return 0

    cdef Py_ssize_t turn_once(self, int64_t timeout_ns) except -1:
        cdef Py_ssize_t made = 0
        PyErr_CheckSignals()
        if self.batch_cursor == self.batch_count:       # else: an exception left the last batch unfinished
            made += self.calls.run()
            made += self.run_deadlines()
            made += self.run_ready()
            self.wait(0 if made or self.stopping else timeout_ns)
        made += self.dispatch()
        if self.orphans >= ORPHANS_TO_REBUILD:
            self.rebuild()
        if closings_count(&self.closings):
            self.run_closed()
        if self.closed:
            self.check_usable()                     # raises: a handler forked, and this is the child
        return made

    cdef int64_t wait_limit(self, int64_t timeout_ns, int64_t now_ns) except? -1:
        """How long the wait may block, given everything that is due later or now; -1 without end."""
        cdef int64_t first_ns = min(timers_first_ns(&self.deadlines), timers_first_ns(&self.calls.queue))
        if self.ready.count or closings_count(&self.closings) or self.calls.waiting():
            return 0
        if first_ns != INT64_MAX:
            first_ns = max(first_ns - now_ns, <int64_t>0)
            timeout_ns = first_ns if timeout_ns < 0 else min(timeout_ns, first_ns)
        return timeout_ns

    cdef int wait(self, int64_t timeout_ns) except -1:
        cdef int64_t now_ns = _sys.ek_now_ns()
        cdef int count
        EK_ASSERT(self.batch_cursor == self.batch_count)        # every event of the last batch has been delivered
        timeout_ns = self.wait_limit(timeout_ns, now_ns)
        if timeout_ns == 0 and now_ns - self.released_gil_ns < GIL_SLICE_NS:
            count = _sys.ek_epoll_wait(self.epoll_fd, self.events, self.batch_room, 0)
        else:
            with nogil:
                count = _sys.ek_epoll_wait(self.epoll_fd, self.events, self.batch_room, timeout_ns)
            self.released_gil_ns = now_ns
        self.batch_cursor = self.batch_count = 0
        if count == -errno.EINTR:
            return PyErr_CheckSignals()
        if count < 0:
            raise os_error(-count, "epoll_wait")
        if count == 0:
            return 0
        self.batch_count = count
        self.counters.batches += 1
        self.counters.events += count
        self.batch += 1
        if self.batch == 0:
            slots_forget_batches(&self.slots)
            self.batch = 1
        return 0

    cdef Py_ssize_t dispatch(self) except -1:
        """Deliver what is left of the batch. The cursor moves first: an event is never delivered twice."""
        cdef Py_ssize_t made = 0
        cdef Slot *slot
        cdef uint64_t tag
        cdef uint32_t events
        while self.batch_cursor < self.batch_count:
            tag = _sys.ek_event_tag(&self.events[self.batch_cursor])
            events = _sys.ek_event_mask(&self.events[self.batch_cursor])
            self.batch_cursor += 1
            slot = slot_for(&self.slots, tag)
            if _sys.EK_STALE(slot == NULL):
                self.drop_stale()
                continue
            if events & PEER_GONE:
                slot.flags |= SLOT_PEER_CLOSED
            if slot.flags & SLOT_READY and slot.registered_batch != self.batch:
                slot.pending |= <uint16_t>events        # it runs next turn: one budget per turn, not two
                continue
            made += (slot.flags & SLOT_INTERNAL) == 0
            EK_ASSERT(self.instance_bits < 32 or slot_tag(slot) == tag)
            if slot.registered_batch != self.batch:
                self.deliver(slot, events)
            else:
                self.deliver_astray(slot, events)
        self.counters.upcalls += made
        return made

    cdef int drop_stale(self) noexcept:
        cdef uint64_t tag = _sys.ek_event_tag(&self.events[self.batch_cursor - 1])     # good events pay nothing for it
        cdef Staleness staleness = slot_staleness(&self.slots, tag, self.batch)
        self.counters.stale[<int>staleness] += 1
        self.orphans += staleness == STALE_ORPHAN
        return 0

    cdef int deliver(self, Slot *slot, uint32_t events) except -1:
        cdef Endpoint endpoint = <Endpoint>slot.endpoint        # keeps it alive through the upcall, whatever closes
        EK_ASSERT(endpoint.slot == slot)
        try:
            endpoint.on_ready(events)
        except Exception as error:
            self.fail(endpoint, error)
        except BaseException:
            if endpoint.slot != NULL:       # it may have stopped before EAGAIN, and its edge is spent
                self.make_ready(endpoint.slot, <uint16_t>events)
            raise
        return 0

    cdef int deliver_astray(self, Slot *slot, uint32_t events) except -1:
        """The witness. This registration was made after the batch's wait had returned, so no event in it can be meant
        for it: the generations compared equal because too few bits of them were compared. With all 32 this is not
        reached.
        """
        cdef Endpoint endpoint = <Endpoint>slot.endpoint
        EK_ASSERT(self.instance_bits < 32)
        self.counters.wrong_deliveries += 1
        self.deliver(slot, events)
        self.counters.wrong_kills += endpoint.slot == NULL
        return 0

    cdef Py_ssize_t run_deadlines(self) except -1:
        """Slots whose deadline passed. One that moved on since it was queued is queued again where it belongs."""
        cdef Py_ssize_t made = 0
        cdef uint32_t left = min(self.deadlines.count, <uint32_t>DEADLINE_BUDGET)
        cdef int64_t now_ns
        cdef TimerNode *node
        if left == 0:
            return 0
        now_ns = _sys.ek_now_ns()
        while left > 0 and timers_first_ns(&self.deadlines) <= now_ns:
            left -= 1
            node = self.deadlines.entries[0].node
            if node.due_ns > now_ns:
                timers_set(&self.deadlines, node, node.due_ns)      # takes it out first, so there is room
                continue
            timers_remove(&self.deadlines, node)
            if node.due_ns != 0:
                node.due_ns = 0
                made += 1
                self.time_out(slot_of_node(node))
        self.counters.upcalls += made
        return made

    cdef int time_out(self, Slot *slot) except -1:
        cdef Endpoint endpoint = <Endpoint>slot.endpoint
        EK_ASSERT(endpoint.slot == slot)
        try:
            endpoint.on_deadline()
        except Exception as error:
            self.fail(endpoint, error)
        except BaseException:
            if endpoint.slot != NULL:       # cut short: it is still due
                self.set_deadline(endpoint.slot, _sys.ek_now_ns())
            raise
        return 0

    cdef Py_ssize_t run_ready(self) except -1:
        cdef Py_ssize_t made = 0
        cdef uint32_t left = self.ready.count       # who stops again waits for the next turn
        cdef uint16_t events
        cdef Slot *slot
        while left > 0 and self.ready.count > 0:
            left -= 1
            slot = slot_at(&self.slots, self.ready.head)
            slot_unlink(&self.slots, &self.ready, slot)
            events = slot.pending
            slot.pending = 0
            made += 1
            self.deliver(slot, events)
        self.counters.upcalls += made
        return made

    cdef int run_closed(self) except -1:
        """on_closed for everything that ended in this turn: never from inside somebody's call to close()."""
        cdef Endpoint endpoint
        cdef Closing closing
        for _ in range(closings_count(&self.closings)):
            closing = closings_take(&self.closings)
            endpoint, reason = <Endpoint>closing.endpoint, <object>closing.reason
            closing_free(&closing)
            try:
                endpoint.on_closed(reason)
            except Exception as error:
                self.calls.report(error, endpoint)
            finally:
                endpoint.loop_link = NULL
        return 0

    cdef Endpoint forget_closing(self):
        """The first that is still to be told never is."""
        cdef Closing closing = closings_take(&self.closings)
        cdef Endpoint endpoint = <Endpoint>closing.endpoint
        endpoint.loop_link = NULL
        closing_free(&closing)
        return endpoint

    # -- copies of our descriptors -------------------------------------------------------------------------------------

    cdef int rebuild(self) except -1:
        """Orphans can't be taken out of a set: the fd that would name them is closed, or somebody else's. So a set that
        goes on reporting them is replaced by a new one, under the same number. Every edge that is there is reported
        once more; a one-shot that has fired stays silent until modify(). O(slots), at most once a second.
        """
        cdef int64_t now_ns = _sys.ek_now_ns()
        cdef uint32_t index
        cdef Slot *slot
        if now_ns - self.rebuilt_ns < REBUILD_PAUSE_NS:
            return 0
        self.rebuilt_ns = now_ns
        for index in range(self.slots.fresh):
            slot = slot_at(&self.slots, index)
            if slot.endpoint != NULL and slot.flags & SLOT_WATCHED and not set_holds(self.epoll_fd, slot):
                self.lose(slot)
        if set_renew(&self.slots, self.epoll_fd) == 0:      # else the old one still works
            self.orphans = 0
            self.counters.rebuilds += 1
        return 0

    def _abandon(self):
        """In a forked child: the epoll set is shared with the parent, so nothing may be changed in it, and no peer may
        notice anything. Close our copies; whoever uses the loop is told.
        """
        self.inherited = True
        self.forked = False
        if not self.closed:
            _sys.ek_close(self.epoll_fd)
            self.epoll_fd = -1
            self.drop_everything()

    # -- the rest ------------------------------------------------------------------------------------------------------

    def fileno(self):
        """The epoll fd, readable while an event waits; timers and posted calls don't show. It stays the loop's."""
        self.check_usable()
        return self.epoll_fd

    def stats(self):
        """What the loop counts: see `LoopStats`."""
        cdef Counters *counters = &self.counters
        return LoopStats(
            counters.batches, counters.events, counters.upcalls + self.calls.made, counters.stale[<int>STALE_CLOSED],
            counters.stale[<int>STALE_RECYCLED], counters.stale[<int>STALE_ORPHAN],
            counters.wrong_deliveries, counters.wrong_kills, counters.accepted, counters.closed, counters.lost,
            counters.rebuilds, self.slots.live - self.internal, self.calls.queue.count, self.slots.retired,
            counters.evicted)

    def close(self):
        """End every registration (raw fds stay open, all others are closed), run what on_close upcalls are due, free
        the loop's own fds. Closing twice does nothing. UsageError from inside a turn: call `stop()` there."""
        cdef uint32_t index
        cdef Slot *slot
        if self.closed:
            return
        self.check_usable()
        if self.turning:
            raise UsageError("close() can't be called from inside a turn; call stop(), and close() once run() returned")
        for index in range(self.slots.fresh):
            slot = slot_at(&self.slots, index)
            if slot.endpoint != NULL and not slot.flags & SLOT_INTERNAL:
                self.release(slot, None)
        self.closed = True              # from here on an upcall that wants to register is told so
        try:
            while closings_count(&self.closings):
                self.run_closed()
        finally:
            self.closed = False
            self.drop_everything()

    cdef int drop_everything(self) except -1:
        """Close every fd the loop owns and let go of every reference it holds, without upcalls."""
        cdef uint32_t index
        cdef Slot *slot
        cdef Endpoint dropped
        if self.closed:
            return 0
        self.closed = True
        self.batch_cursor = self.batch_count = 0
        self.waiting_for_room.clear()
        for index in range(self.slots.fresh):
            slot = slot_at(&self.slots, index)
            if slot.endpoint != NULL:
                dropped = <Endpoint>slot.endpoint
                slot.flags &= ~<uint16_t>SLOT_TELLS_CLOSE
                self.release(slot, None)
                dropped.let_go()
        while closings_count(&self.closings):
            self.forget_closing().let_go()
        self.calls.clear()
        if self.epoll_fd >= 0:
            _sys.ek_close(self.epoll_fd)
        self.epoll_fd = self.wake_fd = -1
        EK_ASSERT(self.slots.live == 0 and self.ready.count == 0)
        return 0


# A slot's reference to its endpoint is in C memory, where the collector has to be shown it: a handler usually refers to
# its loop. No reference is taken on the way: an interpreter that checks itself (Py_DEBUG) also looks at a loop that is
# going, and letting go of it would make it go again.
cdef traverseproc traverse_fields = (<PyTypeObject *>Loop).tp_traverse


cdef int traverse_loop(PyObject *this, visitproc visit, void *argument) except -1:
    cdef SlotTable *slots = &(<Loop>this).slots
    cdef PyObject *endpoint
    cdef uint32_t index
    cdef int result = traverse_fields(this, visit, argument) or \
        closings_visit(&(<Loop>this).closings, visit, argument)
    for index in range(slots.fresh):
        endpoint = slot_at(slots, index).endpoint
        if result == 0 and endpoint != NULL:
            result = visit(endpoint, argument) or (<Endpoint>endpoint).visit(visit, argument)
    return result


(<PyTypeObject *>Loop).tp_traverse = traverse_loop

_sys.EK_FREED_WITH(Wakeup, _sys.EK_WAKEUP)

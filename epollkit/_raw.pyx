"""The raw API: any pollable fd, and a Python callable that is told everything."""
from libc.stdint cimport uint16_t, uint32_t

cimport epollkit._core as _core
cimport epollkit._room as _room
cimport epollkit._sys as _sys
from epollkit._epollset cimport set_holds
from epollkit._slots cimport (
    SLOT_DISARMED, SLOT_EXCLUSIVE, SLOT_INTERNAL, SLOT_UNLIMITED, SLOT_WATCHED, Slot, slot_named, slot_of_fd,
)
from epollkit._tokens cimport Token, make_token

from epollkit._checks import checked_events, checked_fd
from epollkit.errors import StaleToken, UsageError


cdef class RawEndpoint(_core.Endpoint):
    def __cinit__(self):
        _sys.EK_MADE(_sys.EK_RAW)

    def __init__(self):
        raise UsageError("a RawEndpoint comes from Loop.register()")

    cdef int on_ready(self, uint32_t events) except -1:
        if self.slot.events & _sys.EPOLLONESHOT:
            self.slot.flags |= SLOT_DISARMED
        self.handler(self.registration, events)
        return 0

    cdef object blamed(self):
        return self.handler


cdef class Loop(_room.Loop):
    """The bare loop, calls, room, and the raw API."""

    def register(self, fd, events, handler):
        """Watch any pollable fd: `handler(token, events)` gets the whole mask of each edge. Returns a `Token`.

        Args:
            fd: an int or anything with `fileno()`. It stays the caller's: the loop never closes it.
            events: `IN | OUT | PRI | ONESHOT | EXCLUSIVE`. Edge-triggered always, and RDHUP is added (not with
                EXCLUSIVE, which forbids it); a listening socket is level-triggered. ERR and HUP come unasked
                (epoll_ctl(2)).
            handler: an edge is reported once, so read or write until EAGAIN; a repeated edge must do no harm.
                One that raises is reported and unregistered.

        Raises UsageError: the fd is closed, already registered, or not pollable; a wrong mask; LimitReached:
            `max_connections` are registered. OSError: the kernel's own limits (ENOSPC: fs.epoll.max_user_watches).
        """
        cdef uint32_t mask
        cdef int number, listening
        number = checked_fd(fd)
        mask = checked_events(events)
        self.check_usable()
        if not callable(handler):
            raise UsageError(f"a handler is called as handler(token, events); {handler!r} can't be called")
        listening = _sys.ek_is_listening(number)
        if listening < 0:           # before the table fd -> slot is made to reach that far
            raise UsageError(f"fd {number} is closed")
        self.claim(number)
        if not mask & _sys.EPOLLEXCLUSIVE:
            mask |= _sys.EPOLLRDHUP
        if not listening:
            mask |= _sys.EPOLLET
        return self.register_raw(number, mask, handler, 0)

    def _register_internal(self, int fd, events, handler):
        """For the loop's own wake-ups: not counted, not limited, ended by close() only."""
        self.check_usable()
        return self.register_raw(fd, events | _sys.EPOLLET, handler, SLOT_INTERNAL | SLOT_UNLIMITED)

    cdef Token register_raw(self, int fd, uint32_t events, object handler, uint16_t flags):
        cdef RawEndpoint endpoint = RawEndpoint.__new__(RawEndpoint)
        cdef Slot *slot
        slot = self.attach(endpoint, fd, flags)
        endpoint.handler = handler
        try:
            endpoint.registration = make_token(self.anchor, slot)
            self.watch(slot, events)
        except BaseException:
            if endpoint.slot != NULL:
                self.release(slot, None)
            raise
        return endpoint.registration

    def modify(self, Token token not None, events):
        """Change what a raw registration is watched for; also re-arms a ONESHOT. An edge that is already there is
        reported again. Raises StaleToken: the registration is gone; UsageError: it is EXCLUSIVE (epoll_ctl(2) has no
        MOD for those), or belongs to a stream or listener.
        """
        cdef Slot *slot
        cdef uint32_t mask
        self.check_usable()
        mask = checked_events(events)
        slot = self.resolve(token)
        if mask & _sys.EPOLLEXCLUSIVE or slot.flags & SLOT_EXCLUSIVE:
            raise UsageError("EXCLUSIVE can't be modified, or added later (epoll_ctl(2)); unregister, register again")
        self.rewatch(slot, mask | _sys.EPOLLRDHUP | (slot.events & _sys.EPOLLET))

    def unregister(self, Token token not None):
        """End a raw registration; the fd stays open. Events of it that wait in the batch at hand are dropped as stale.
        Raises StaleToken: it is gone already; whoever has its fd or slot now is left alone.
        """
        self.check_usable()
        self.release(self.resolve(token), None)

    cdef Slot *resolve(self, Token token) except NULL:
        cdef Slot *slot
        if token.anchor is not self.anchor:
            raise UsageError(f"{token!r} belongs to another loop")
        slot = slot_named(&self.slots, token.index, token.generation)
        if slot == NULL:
            raise StaleToken(f"{token!r}: that registration is gone")
        if slot.flags & SLOT_INTERNAL or not isinstance(<object>slot.endpoint, RawEndpoint):
            raise UsageError(f"{token!r} belongs to a {type(<object>slot.endpoint).__name__}; use its own methods")
        return slot

    cdef int claim(self, int fd) except -1:
        """A user wants to register fd, and a live slot has it: is that the same open file, or did the user close it
        behind our back and the kernel hand the number out again?
        """
        cdef Slot *slot = slot_of_fd(&self.slots, fd)
        if slot == NULL:
            return 0
        if not slot.flags & SLOT_WATCHED or set_holds(self.epoll_fd, slot):
            raise UsageError(f"fd {fd} is already registered; modify() its registration, or unregister() it first")
        self.lose(slot)
        return self.claim(fd)           # what its finalizer registered, if anything, is no longer lost


_sys.EK_FREED_WITH(RawEndpoint, _sys.EK_RAW)

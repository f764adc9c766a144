"""`Listener`: accepts, within a budget, and rests when there is nothing to accept with."""
import logging
import socket

from libc cimport errno
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport strerror

cimport epollkit._sys as _sys
from epollkit._core cimport UNLIMITED_SLOTS, Endpoint, os_error
from epollkit._epollset cimport set_remove
from epollkit._room cimport Loop
from epollkit._slots cimport SLOT_CONNECTION, SLOT_OWNS_FD, SLOT_TCP, SLOT_TELLS_CLOSE, SLOT_UNLIMITED

from epollkit import _sockets
from epollkit.errors import LimitReached, UsageError

cdef int64_t ACCEPT_PAUSE_NS = 100000000    # how long a listener rests when nobody gives anything back
cdef int OUT_OF_SLOTS = 0                   # `pause` for max_connections rather than for an errno

logger = logging.getLogger("epollkit")


cdef bint accept_goes_on(int error) noexcept nogil:
    """Errors of one connection that died in the queue, not of the listener (accept(2), ERRORS)."""
    return error in (errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN,
                     errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.ETIMEDOUT)


cdef bint accept_must_rest(int error) noexcept nogil:
    """Errors that stay until somebody gives something back."""
    return error in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


cdef class Listener(Endpoint):
    """A listening socket, from `Loop.listen`. Level-triggered: what the accept budget leaves over is reported again."""

    def __cinit__(self):
        self.told = -1
        _sys.EK_MADE(_sys.EK_LISTENER)

    def __init__(self):
        raise UsageError("a Listener comes from Loop.listen(); it is not made by hand")

    cdef int on_ready(self, uint32_t events) except -1:
        cdef Loop loop = <Loop>self.loop_link
        try:
            self.accept_those(loop)
        except MemoryError as error:        # not the listener's end: who waits is accepted when there is memory again
            loop.calls.report(error, self)
            self.pause(loop, errno.ENOMEM)
        return 0

    cdef int accept_those(self, Loop loop) except -1:
        """Who waits in the queue, within the budget."""
        cdef int waiting = _sys.ek_accept_queue(self.slot.fd)
        cdef int left = ACCEPT_BUDGET if waiting < 0 else min(max(waiting, 1), <int>ACCEPT_BUDGET)
        cdef bint sure = True               # that somebody waits: the event, or the queue's length, says so
        cdef bint made_room = False         # for this accept
        cdef bint full
        cdef int fd
        while left > 0 and self.slot != NULL:       # a handler may close the listener
            full = loop.at_limit()
            fd = -errno.EMFILE if full else _sys.ek_accept(self.slot.fd)
            if fd == -errno.EMFILE:
                if not sure:
                    return 0
                if made_room or not loop.make_room():
                    return self.pause(loop, OUT_OF_SLOTS if full else errno.EMFILE)
                made_room = True
                continue
            left -= 1
            sure = waiting > 0
            made_room = False
            if fd >= 0:
                self.open_connection(loop, fd)
            elif fd == -errno.EAGAIN:
                return 0
            elif accept_must_rest(-fd):
                return self.pause(loop, -fd)
            elif not accept_goes_on(-fd):
                raise os_error(-fd, f"accept on {_sockets.describe(self.address)}")
        return 0

    cdef int open_connection(self, Loop loop, int fd) except -1:
        cdef Endpoint endpoint
        try:
            loop.counters.accepted += 1
            made = self.factory()
            if not isinstance(made, Endpoint):
                raise UsageError(f"the factory of {_sockets.describe(self.address)} returned {made!r}, not a stream")
            endpoint = made
            loop.attach(endpoint, fd, self.accept_flags)
        except Exception as error:
            _sys.ek_close(fd)
            loop.calls.report(error, self.factory)
            endpoint = None
        except BaseException:
            _sys.ek_close(fd)
            raise
        if endpoint is None:
            return 0
        return loop.open_endpoint(endpoint, self.accept_events, _sys.EPOLLIN if self.early_read else 0)

    cdef int pause(self, Loop loop, int error) except -1:
        """Leave the set; come back after a while, or as soon as somebody ends, or is idle and could."""
        if self.slot == NULL or self.paused:    # closed by what somebody ran as it went
            return 0
        loop.set_deadline(self.slot, _sys.ek_now_ns() + ACCEPT_PAUSE_NS)
        self.paused = True
        self.pauses += 1
        set_remove(loop.epoll_fd, self.slot)
        try:
            loop.waiting_for_room.append(self)
            if self.told != error:      # once: under a storm the log must not be the next thing to fall
                self.told = error
                logger.warning("accepting on %s pauses: %s", _sockets.describe(self.address),
                               f"max_connections={loop.max_connections} reached" if error == OUT_OF_SLOTS
                               else strerror(error).decode())
        except MemoryError:             # it comes back after a while all the same
            pass
        return 0

    cdef int on_room(self) except -1:
        return self.resume()

    cdef int on_deadline(self) except -1:
        return self.resume()

    def resume_now(self):
        """Accept again at once, if accepting was paused; otherwise nothing happens."""
        self.resume()

    cdef int resume(self) except -1:
        cdef Loop loop
        if not self.paused or self.slot == NULL:
            return 0
        loop = <Loop>self.loop_link
        self.paused = False
        if self in loop.waiting_for_room:
            loop.waiting_for_room.remove(self)
        loop.set_deadline(self.slot, 0)
        try:
            loop.watch(self.slot, self.listen_events)
        except Exception as error:      # not at whoever closed something; no memory, say: try again later
            loop.calls.report(error, self)
            if self.slot != NULL:
                self.pause(loop, errno.ENOMEM)
        return 0

    cdef int on_closed(self, object reason) except -1:
        return self.remove_file()

    cdef int remove_file(self) except -1:
        if self.unix_file is not None:
            self.unix_file.remove()
            self.unix_file = None
        return 0

    def close(self):
        """Stop listening. Connections that are queued and not yet accepted are reset. Closing twice does nothing."""
        cdef Loop loop
        if self.slot == NULL:
            return
        loop = self.owner()
        loop.check_usable()
        self.remove_file()              # now, not in on_closed: whoever listens there next may be given the same inode
        set_remove(loop.epoll_fd, self.slot)    # level-triggered: a copy of the fd, in a child say, would wake us on
        loop.release(self.slot, None)

    def __repr__(self):
        return f"<Listener {_sockets.describe(self.address)}{'' if self.slot != NULL else ' closed'}>"


def listen(Loop loop not None, opened, factory, *, bint exclusive, bint defer_accept):
    """Register a `_sockets.ListeningSocket` with a loop, which owns the fd from here on. Returns its `Listener`."""
    cdef Listener listener = Listener.__new__(Listener)
    cdef bint is_unix = opened.sock.family == socket.AF_UNIX
    loop.check_usable()
    listener.factory = factory
    listener.address = opened.address
    listener.unix_file = opened.file
    listener.early_read = defer_accept
    listener.listen_events = _sys.EPOLLIN | (_sys.EPOLLEXCLUSIVE if exclusive else 0)
    # No connection is re-armed per request. OUT joins them once a socket was full: a new one would raise it at once,
    # for nothing, before its peer has said a word.
    listener.accept_events = _sys.EPOLLIN | _sys.EPOLLPRI | _sys.EPOLLRDHUP | _sys.EPOLLET
    listener.accept_flags = SLOT_OWNS_FD | SLOT_TELLS_CLOSE | SLOT_CONNECTION | (0 if is_unix else SLOT_TCP)
    if loop.slots.unlimited >= UNLIMITED_SLOTS - 2:
        raise LimitReached(f"a loop has at most {UNLIMITED_SLOTS - 3} listeners")
    fd = opened.sock.detach()           # first: were it closed by two owners, the second would close a stranger's
    _sys.EK_MADE(_sys.EK_FD)
    try:
        loop.attach(listener, fd, SLOT_OWNS_FD | SLOT_UNLIMITED | SLOT_TELLS_CLOSE)
    except BaseException:
        _sys.ek_close(fd)
        raise
    try:
        loop.watch(listener.slot, listener.listen_events)
    except BaseException:
        listener.remove_file()          # now, as in close()
        if listener.slot != NULL:
            loop.release(listener.slot, None)
        raise
    return listener


_sys.EK_FREED_WITH(Listener, _sys.EK_LISTENER)

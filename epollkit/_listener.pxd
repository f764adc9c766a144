"""Above the core: listening sockets, and how accepted ones get their endpoints."""
from libc.stdint cimport uint16_t, uint32_t

from epollkit._core cimport Endpoint
from epollkit._room cimport Loop

cdef enum:
    ACCEPT_BUDGET = 64              # accepts per listener and turn: a connect storm must not starve the connected


cdef class Listener(Endpoint):
    cdef object factory
    cdef readonly object address    # as the kernel says: (host, port), (host, port, flow, scope), or a unix path
    cdef object unix_file           # _sockets.UnixFile, removed at close; or None
    cdef uint32_t listen_events
    cdef uint32_t accept_events     # what accepted sockets are watched for
    cdef uint16_t accept_flags      # SlotFlag of accepted sockets
    cdef bint early_read            # defer_accept: the first bytes are there already
    cdef bint paused                # out of the set, for want of descriptors, memory or slots; its deadline runs
    cdef readonly int pauses        # how often that happened
    cdef int told                   # the reason of the last pause that was logged

    cdef int accept_those(self, Loop loop) except -1
    cdef int open_connection(self, Loop loop, int fd) except -1
    cdef int pause(self, Loop loop, int error) except -1
    cdef int resume(self) except -1
    cdef int remove_file(self) except -1

"""Above the core: the raw API, `register`, `modify` and `unregister`."""
from libc.stdint cimport uint16_t, uint32_t

cimport epollkit._core as _core
cimport epollkit._room as _room
from epollkit._slots cimport Slot
from epollkit._tokens cimport Token


cdef class RawEndpoint(_core.Endpoint):
    """A Python callable and its registration. The fd is the user's."""
    cdef object handler
    cdef Token registration


cdef class Loop(_room.Loop):
    cdef Token register_raw(self, int fd, uint32_t events, object handler, uint16_t flags)
    cdef Slot *resolve(self, Token token) except NULL
    cdef int claim(self, int fd) except -1

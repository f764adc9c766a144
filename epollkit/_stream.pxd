"""Streams: Python's face of a connection: upcalls, frames, timeouts, watermarks. `Options` exists only if asked for."""
from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from epollkit._connection cimport Connection

cdef enum:
    HIGH_BYTES = 65536              # write() says False beyond it, as asyncio pauses its writers; see set_limits
    LARGEST_FRAME_BYTES = 1 << 30

cdef enum FrameKind:
    FRAME_RAW = 0                   # whatever comes
    FRAME_EXACTLY = 1
    FRAME_UNTIL = 2


cdef struct Options:
    Py_ssize_t high                 # unsent bytes: above it write() says False, ...
    Py_ssize_t low                  # ... and on_drain follows once there are no more than these
    Py_ssize_t hard                 # beyond it the peer is reset; 0: the class's write_limit
    int64_t read_ns                 # nothing received for so long; 0: never
    int64_t write_ns                # nothing taken by the socket for so long, while something is unsent; 0: never
    int64_t life_due_ns             # the end of its life; 0: none
    int64_t read_at_ns              # when something was received, by the cheap clock
    int64_t write_at_ns             # when the socket took something, or was found full
    FrameKind kind
    Py_ssize_t frame_bytes          # of an exact frame; of others: at most
    PyObject *separator             # bytes, owned
    const char *window              # received and not delivered: in `held`, or where it was received, ...
    const char *window_end
    Py_ssize_t searched             # ... and in so many bytes of it no separator begins
    char *held
    Py_ssize_t held_room
    bint delivering                 # inside deliver(): it will look at what was changed


cdef class Stream(Connection):
    cdef Options *options           # NULL: the defaults

    cdef Options *want_options(self) except NULL
    cdef int drop_options(self) noexcept
    cdef bint has_room(self) except -1
    cdef int check_open(self) except -1
    cdef bint drops_half_closed(self) except -1

    # frames
    cdef int frame_as(self, FrameKind kind, Py_ssize_t frame_bytes, bytes separator) except -1
    cdef int take_framed(self, const char *data, Py_ssize_t length) except -1
    cdef int deliver(self) except -1
    cdef int hold(self, const char *data, Py_ssize_t length) except -1
    cdef int refuse_frame(self, str why) except -1
    cdef int keep_rest(self) except -1

    # timeouts
    cdef bint is_full(self) noexcept
    cdef int arm(self) except -1
    cdef int expire(self, str which) except -1

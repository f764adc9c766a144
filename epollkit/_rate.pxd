"""Below the core: a limit of bytes per second. Knows no loop and no clock: whoever asks says what time it is."""
from libc.stdint cimport int64_t

cdef enum:
    LEAST_PIECE_BYTES = 4096        # a smaller one is not worth a system call, unless the burst is smaller still
    MOST_PIECE_BYTES = 262144       # what a stream can move in one turn: nobody holds more than it can use at once
    PIECES_PER_SECOND = 100         # between these two a piece is 10 ms' worth: about as exact as deadlines are


cdef class RateLimit:
    cdef readonly object bytes_per_second
    cdef readonly object burst
    cdef int64_t rate               # thousandths of a byte per second, so that fractions of a byte count
    cdef int64_t piece              # bytes granted at once, at most
    cdef int64_t burst_ns           # how long the burst takes at that rate, ...
    cdef int64_t burst_part         # ... and this many 1/rate of a nanosecond
    cdef int64_t paid_ns            # all that was granted, laid end to end at that rate, ends here ...
    cdef int64_t paid_part          # ... and so much later

    # What is granted may go at *due_ns, at once if that has passed. Never 0 bytes, unless 0 are wanted.
    cdef Py_ssize_t reserve(self, int64_t now_ns, Py_ssize_t wanted, int64_t *due_ns) noexcept
    # What of it was not used after all.
    cdef int give_back(self, Py_ssize_t count) noexcept

    # inside
    cdef int move(self, int64_t count) noexcept

"""What the load engine counts. `Tally` knows no connection and no user; it is told what happened, and when.

Times are CLOCK_MONOTONIC, in nanoseconds. What was begun before the epoch, which is the end of the warm-up, is not
counted: whoever tells asks first.
"""
from libc.stdint cimport int64_t, uint64_t

from epollkit._histogram cimport Buckets

cdef enum:
    STATUSES = 1000             # a status has three digits
    MOST_ERRORS = 256           # kinds that are told apart

cdef struct Counts:
    uint64_t begun, answered, successful, failed, unexpected, unanswered, timed_out, broken_off
    uint64_t bytes_sent, bytes_received, body_bytes
    uint64_t connections, connect_failures, reconnects, backoffs, resent
    uint64_t open_peak
    uint64_t statuses[STATUSES]


cdef class Tally:
    cdef Counts counts
    cdef dict errors            # (phase, name) -> count
    cdef Buckets latency        # up to the last interval, ...
    cdef Buckets recent         # ... and since
    cdef Buckets connects, lags
    cdef int64_t epoch_ns       # what was begun before is not counted
    cdef uint64_t open_now
    cdef bint over              # what is still open then is not connected for our sake
    cdef int64_t connected_ns   # integral of open_now, ...
    cdef int64_t connected_since_ns     # ... up to here
    cdef uint64_t told_begun, told_answered, told_failed, told_bytes   # at the last interval

    cdef int clear(self, int64_t now_ns) noexcept
    cdef int note_open(self, int64_t now_ns, int change) noexcept
    cdef int count_error(self, str phase, str name) except -1
    cdef dict since_last(self)
    cdef dict all_of_it(self, int64_t now_ns)

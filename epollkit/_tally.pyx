"""`Tally`: the count of what happened, and its forms for Python."""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from epollkit._histogram cimport (
    Buckets, Histogram, buckets_at, buckets_clear, buckets_count, buckets_free, buckets_init, buckets_merge)


cdef class Tally:
    """What the load engine counts; Python gets it from `Engine.interval()` and `Engine.tally()`."""

    def __cinit__(self):
        self.errors = {}
        if buckets_init(&self.latency) < 0 or buckets_init(&self.recent) < 0 or buckets_init(&self.connects) < 0 \
                or buckets_init(&self.lags) < 0:
            raise MemoryError()

    def __dealloc__(self):
        buckets_free(&self.latency)
        buckets_free(&self.recent)
        buckets_free(&self.connects)
        buckets_free(&self.lags)

    cdef int clear(self, int64_t now_ns) noexcept:
        """Nothing has happened yet: it begins now."""
        self.epoch_ns = now_ns
        memset(&self.counts, 0, sizeof(Counts))
        self.counts.open_peak = self.open_now
        self.connected_ns = 0
        self.connected_since_ns = now_ns
        self.told_begun = self.told_answered = self.told_failed = self.told_bytes = 0
        self.errors.clear()
        buckets_clear(&self.latency)
        buckets_clear(&self.recent)
        buckets_clear(&self.connects)
        buckets_clear(&self.lags)
        return 0

    cdef int note_open(self, int64_t now_ns, int change) noexcept:
        """A connection came, or went."""
        if not self.over:
            self.connected_ns += <int64_t>self.open_now * (now_ns - self.connected_since_ns)
            self.connected_since_ns = now_ns
        self.open_now += change
        self.counts.open_peak = max(self.counts.open_peak, self.open_now)
        return 0

    cdef int count_error(self, str phase, str name) except -1:
        kind = (phase, name)
        if kind not in self.errors and len(self.errors) >= MOST_ERRORS:
            kind = (phase, "other")
        self.errors[kind] = self.errors.get(kind, 0) + 1
        return 0

    cdef dict since_last(self):
        cdef uint64_t count = buckets_count(&self.recent)
        cdef Counts *counts = &self.counts
        told = {
            "begun": counts.begun - self.told_begun, "answered": counts.answered - self.told_answered,
            "failed": counts.failed - self.told_failed, "bytes_received": counts.bytes_received - self.told_bytes,
            "open": self.open_now,
            "p50_ns": buckets_at(&self.recent, count - count // 2) if count else 0,
            "p99_ns": buckets_at(&self.recent, count - count // 100) if count else 0,
            "max_ns": self.recent.max_ns,
        }
        self.told_begun, self.told_answered = counts.begun, counts.answered
        self.told_failed, self.told_bytes = counts.failed, counts.bytes_received
        buckets_merge(&self.latency, &self.recent)
        buckets_clear(&self.recent)
        return told

    cdef dict all_of_it(self, int64_t now_ns):
        cdef Counts *counts = &self.counts
        cdef uint32_t i
        self.note_open(now_ns, 0)
        buckets_merge(&self.latency, &self.recent)
        buckets_clear(&self.recent)
        return {
            "begun": counts.begun, "answered": counts.answered, "successful": counts.successful,
            "failed": counts.failed, "unexpected": counts.unexpected, "unanswered": counts.unanswered,
            "timed_out": counts.timed_out, "broken_off": counts.broken_off, "bytes_sent": counts.bytes_sent,
            "bytes_received": counts.bytes_received, "body_bytes": counts.body_bytes,
            "connections": counts.connections, "connect_failures": counts.connect_failures,
            "reconnects": counts.reconnects, "backoffs": counts.backoffs, "resent": counts.resent,
            "open": self.open_now, "open_peak": counts.open_peak, "connected_ns": self.connected_ns,
            "elapsed_ns": max(now_ns - self.epoch_ns, <int64_t>0),
            "statuses": {str(i): counts.statuses[i] for i in range(STATUSES) if counts.statuses[i]},
            "errors": [[phase, name, count] for (phase, name), count in self.errors.items()],
            "latency": dump(&self.latency), "connect": dump(&self.connects), "lag": dump(&self.lags),
        }


cdef list dump(const Buckets *buckets):
    cdef Histogram made = Histogram()
    buckets_merge(&made.buckets, buckets)
    return made.dump()

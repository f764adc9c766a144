"""Leaf: a log-linear histogram of times, in nanoseconds: three significant digits from a microsecond to an hour.

Below 2048 ns each value has a bucket of its own. Above that every power of two is cut into 1024 buckets, so a bucket is
narrower than a thousandth of what is in it. The index is computed from the position of the highest bit: to record a
time costs an addition in an array, wherever it falls. Nothing disappears: what is longer than the last bucket reaches
is counted in it, and `max_ns` is exact.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

cdef extern from * nogil:
    int __builtin_clzll(unsigned long long word) noexcept

cdef enum:
    BUCKETS_SHIFT = 10          # 1024 buckets to each power of two
    BUCKET_COUNT = 33 * 1024    # 264 KiB, of which only the pages are touched that times fall into
    LARGEST_BITS = 42           # the last bucket ends at 2**42 - 1 ns: 73 minutes

cdef struct Buckets:
    uint64_t *counts
    uint64_t sum_ns
    uint64_t min_ns             # UINT64_MAX: nothing was recorded
    uint64_t max_ns
    uint64_t over               # of what was recorded, longer than the last bucket reaches


cdef inline int buckets_clear(Buckets *buckets) noexcept nogil:
    memset(buckets.counts, 0, BUCKET_COUNT * sizeof(uint64_t))
    buckets.sum_ns = buckets.max_ns = buckets.over = 0
    buckets.min_ns = UINT64_MAX
    return 0


cdef inline int buckets_init(Buckets *buckets) noexcept nogil:
    """0 or -ENOMEM."""
    buckets.counts = <uint64_t *>calloc(BUCKET_COUNT, sizeof(uint64_t))
    buckets.sum_ns = buckets.max_ns = buckets.over = 0
    buckets.min_ns = UINT64_MAX
    return 0 if buckets.counts != NULL else -ENOMEM


cdef inline int buckets_free(Buckets *buckets) noexcept nogil:
    free(buckets.counts)
    buckets.counts = NULL
    return 0


cdef inline uint32_t bucket_of(uint64_t time_ns) noexcept nogil:
    cdef int shift = 63 - BUCKETS_SHIFT - __builtin_clzll(time_ns | (1 << BUCKETS_SHIFT))
    return (<uint32_t>shift << BUCKETS_SHIFT) + <uint32_t>(time_ns >> shift)


cdef inline uint64_t bucket_low(uint32_t bucket) noexcept nogil:
    """The least time in it."""
    cdef uint32_t shift = (bucket >> BUCKETS_SHIFT) - 1
    if bucket < 2 << BUCKETS_SHIFT:
        return bucket
    return <uint64_t>(bucket - (shift << BUCKETS_SHIFT)) << shift


cdef inline uint64_t bucket_high(uint32_t bucket) noexcept nogil:
    """The largest."""
    return bucket_low(bucket + 1) - 1


cdef inline int buckets_record(Buckets *buckets, uint64_t time_ns) noexcept nogil:
    buckets.sum_ns += time_ns
    buckets.min_ns = min(buckets.min_ns, time_ns)
    buckets.max_ns = max(buckets.max_ns, time_ns)
    if time_ns >> LARGEST_BITS:
        buckets.over += 1
        time_ns = (<uint64_t>1 << LARGEST_BITS) - 1
    buckets.counts[bucket_of(time_ns)] += 1
    return 0


cdef inline int buckets_merge(Buckets *buckets, const Buckets *other) noexcept nogil:
    cdef uint32_t i
    for i in range(BUCKET_COUNT):
        buckets.counts[i] += other.counts[i]
    buckets.sum_ns += other.sum_ns
    buckets.min_ns = min(buckets.min_ns, other.min_ns)
    buckets.max_ns = max(buckets.max_ns, other.max_ns)
    buckets.over += other.over
    return 0


cdef inline uint64_t buckets_count(const Buckets *buckets) noexcept nogil:
    cdef uint64_t count = 0
    cdef uint32_t i
    for i in range(BUCKET_COUNT):
        count += buckets.counts[i]
    return count


cdef inline uint64_t buckets_at(const Buckets *buckets, uint64_t rank) noexcept nogil:
    """The time that so many are not longer than, to the width of its bucket; rank from 1 to how many there are."""
    cdef uint64_t passed = 0
    cdef uint32_t i
    for i in range(BUCKET_COUNT - 1):
        passed += buckets.counts[i]
        if passed >= rank:
            return min(bucket_high(i), buckets.max_ns)
    return buckets.max_ns           # in the last one may be what is longer than it reaches


cdef class Histogram:
    cdef Buckets buckets

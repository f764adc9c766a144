"""`Histogram`: Python's face of the log-linear histogram in `_histogram.pxd`."""
from libc.math cimport ceil, sqrt
from libc.stdint cimport uint32_t, uint64_t

from epollkit.errors import UsageError


cdef uint64_t number(object value, str what) except? 0:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise UsageError(f"{what} is a whole number from 0 to 2**63 - 1, not {value!r}")
    return value


cdef class Histogram:
    """Times in nanoseconds, counted in buckets narrower than a thousandth of what is in them.

    From 1 us to 1 h three digits are exact; below 2048 ns all are. What is longer than 73 minutes is counted in the
    last bucket, and `max_ns` is still exact. Takes 264 KiB at most. To be used by one thread at a time.
    """

    def __cinit__(self):
        if buckets_init(&self.buckets) < 0:
            raise MemoryError()

    def __dealloc__(self):
        buckets_free(&self.buckets)

    def record(self, time_ns):
        """Count one time, in nanoseconds."""
        buckets_record(&self.buckets, number(time_ns, "a time in nanoseconds"))

    def merge(self, Histogram other not None):
        """Add all that the other one has counted. In any order, however grouped: the result is the same."""
        buckets_merge(&self.buckets, &other.buckets)

    def clear(self):
        """Forget everything."""
        buckets_clear(&self.buckets)

    @property
    def count(self):
        """How many times were recorded."""
        return buckets_count(&self.buckets)

    @property
    def sum_ns(self):
        """All of them together, exact."""
        return self.buckets.sum_ns

    @property
    def min_ns(self):
        """The shortest, exact; 0 if there is none."""
        return self.buckets.min_ns if self.count else 0

    @property
    def max_ns(self):
        """The longest, exact; 0 if there is none."""
        return self.buckets.max_ns

    @property
    def stdev_ns(self):
        """Standard deviation, a float: of the middles of buckets, around the exact mean; 0.0 if there is none."""
        cdef uint64_t count = buckets_count(&self.buckets)
        cdef double mean, away
        cdef double squares = 0
        cdef uint32_t i
        if count == 0:
            return 0.0
        mean = <double>self.buckets.sum_ns / count
        for i in range(BUCKET_COUNT):
            if self.buckets.counts[i]:
                away = (<double>bucket_low(i) + bucket_high(i)) / 2 - mean
                squares += away * away * self.buckets.counts[i]
        return sqrt(squares / count)

    def percentile(self, double share):
        """The time in nanoseconds that `share` per cent, 0 to 100, are not longer than: that of rank
        ceil(share / 100 * count), at least 1, rounded up to its bucket's end but never above `max_ns`. 0 if there is
        none."""
        cdef uint64_t count = buckets_count(&self.buckets)
        if not 0 <= share <= 100:
            raise UsageError(f"a percentile is a number from 0 to 100, not {share!r}")
        if count == 0:
            return 0
        # 99.9 is no binary fraction: 99.9 % of 1000 must be the 999th, not the next one
        return buckets_at(&self.buckets, min(count, max(<uint64_t>1, <uint64_t>ceil(share / 100 * count - 1e-6))))

    def count_above(self, time_ns):
        """How many are in buckets that begin above this time."""
        cdef uint64_t limit = number(time_ns, "a time in nanoseconds")
        cdef uint64_t found = 0
        cdef uint32_t i
        for i in range(BUCKET_COUNT):
            if bucket_low(i) > limit:
                found += self.buckets.counts[i]
        return found

    def items(self):
        """[(low_ns, high_ns, count)] of the buckets that have any, from the shortest times to the longest."""
        cdef uint32_t i
        return [(bucket_low(i), bucket_high(i), self.buckets.counts[i]) for i in range(BUCKET_COUNT)
                if self.buckets.counts[i]]

    def dump(self):
        """All of it in lists and whole numbers, for JSON: [min_ns, max_ns, sum_ns, over, [[bucket, count], ...]]."""
        cdef uint32_t i
        return [self.min_ns, self.buckets.max_ns, self.buckets.sum_ns, self.buckets.over,
                [[i, self.buckets.counts[i]] for i in range(BUCKET_COUNT) if self.buckets.counts[i]]]

    @staticmethod
    def load(dumped):
        """The histogram that `dump` has described. UsageError if nothing can be."""
        cdef Histogram made = Histogram()
        try:
            low, high, total, over, counts = dumped
            made.buckets.max_ns = number(high, "max_ns")
            made.buckets.sum_ns = number(total, "sum_ns")
            made.buckets.over = number(over, "over")
            for bucket, count in counts:
                if number(bucket, "a bucket") >= BUCKET_COUNT:
                    raise UsageError(f"there are {BUCKET_COUNT} buckets, and no number {bucket}")
                made.buckets.counts[<uint32_t>bucket] += number(count, "a count")
            if counts:
                made.buckets.min_ns = number(low, "min_ns")
        except (TypeError, ValueError) as error:
            raise UsageError("a dumped histogram is [min_ns, max_ns, sum_ns, over, [[bucket, count], ...]], not "
                             f"{dumped!r}"[:300]) from error
        return made

    def __eq__(self, other):
        return isinstance(other, Histogram) and self.dump() == other.dump()

    __hash__ = None

    def __repr__(self):
        return f"<Histogram of {self.count}, {self.min_ns} to {self.max_ns} ns>"

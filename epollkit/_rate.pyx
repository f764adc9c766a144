"""`RateLimit`: bytes per second, for one stream or for many together."""
import math

from libc.stdint cimport int64_t

from epollkit._sys cimport EK_ASSERT

from epollkit.errors import UsageError

cdef int64_t NS_PER_UNIT = 1000000000000        # a second in nanoseconds, times the thousandths of `rate`
cdef int64_t LONGEST_BURST_NS = 1000000000000000000     # 31 years
cdef int64_t LATEST_NS = 4000000000000000000    # nothing is promised for later: so no sum exceeds 63 bits


cdef object checked_bytes(str name, object value, object least):
    """A finite number from `least` to 10^12, as a plain int or float."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        plain = float(value) if isinstance(value, float) else int(value)
        if least <= plain <= 1e12:
            return plain
    raise UsageError(f"{name} is a number of bytes from {least} to 10^12, not {value!r}")


cdef class RateLimit:
    """So many bytes per second. One stream may have it, or many: then they share it, each getting its turn.

    Args:
        bytes_per_second: 1 to 10^12.
        burst: how many bytes may go at once after a pause. Default: a tenth of a second's worth, at least one byte.
            Deadlines may be 20 ms late, and a pause that long is made up for only within the burst.

    It may be shared by several loops and threads.

    How it works, for those who ask it (`reserve`): everything that was granted is laid end to end, as if it were sent
    at exactly this rate; what is granted next may go when its end is no more than the burst ahead of now. So a grant is
    a place in a queue: it costs one addition, nobody who comes later moves it, and it waits for the others' pieces but
    not for how often they ask. One who takes a single grant per turn, and waits for its time before asking again, has
    the same share as any other who wants as much.

    What goes later than its time counts as if it had gone then. What is given back is credited at once; after a pause
    longer than the burst lasts, it would be more than the burst allows, so give it back in time.
    """

    def __cinit__(self, bytes_per_second, burst=None):
        self.bytes_per_second = checked_bytes("bytes_per_second", bytes_per_second, 1)
        if burst is None:
            self.burst = max(1, int(self.bytes_per_second / 10))
        else:
            self.burst = math.floor(checked_bytes("burst", burst, 1))
        self.rate = round(self.bytes_per_second * 1000)
        whole, part = divmod(self.burst * NS_PER_UNIT, self.rate)
        if whole > LONGEST_BURST_NS:
            raise UsageError(f"a burst of {burst!r} is more than 31 years' worth, at {bytes_per_second!r} a second")
        self.burst_ns = whole
        self.burst_part = part
        worth = int(self.bytes_per_second / PIECES_PER_SECOND)
        self.piece = min(max(worth, LEAST_PIECE_BYTES), MOST_PIECE_BYTES, self.burst)

    def __repr__(self):
        return f"<RateLimit bytes_per_second={self.bytes_per_second} burst={self.burst}>"

    cdef Py_ssize_t reserve(self, int64_t now_ns, Py_ssize_t wanted, int64_t *due_ns) noexcept:
        cdef Py_ssize_t count = max(0, min(wanted, self.piece))
        if self.paid_ns < now_ns:           # it has been idle for as long as the burst lasts, or longer
            self.paid_ns = now_ns
            self.paid_part = 0
        self.move(count)
        due_ns[0] = max(now_ns, self.paid_ns - self.burst_ns + (self.paid_part > self.burst_part))
        return count

    cdef int give_back(self, Py_ssize_t count) noexcept:
        EK_ASSERT(0 <= count <= self.piece)
        return self.move(-count)

    cdef int move(self, int64_t count) noexcept:
        """The end of what was granted, so many bytes later; with what the division leaves, so nothing ever drifts."""
        cdef int64_t cost = count * NS_PER_UNIT + self.paid_part    # a piece is 2^18 bytes at most: fits
        cdef int64_t part = cost % self.rate
        if part < 0:                        # C rounds towards zero
            part += self.rate
        self.paid_ns = min(self.paid_ns + (cost - part) // self.rate, LATEST_NS)
        self.paid_part = part
        return 0

    # -- for tests -----------------------------------------------------------------------------------------------------

    def _reserve(self, int64_t now_ns, Py_ssize_t wanted):
        """reserve() as (bytes granted, when they may go)."""
        cdef int64_t due_ns
        count = self.reserve(now_ns, wanted, &due_ns)
        return count, due_ns

    def _give_back(self, Py_ssize_t count):
        self.give_back(count)

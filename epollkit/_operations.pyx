"""In the debug build only: what every system call of the loop goes through, and what tests do with that.

    replaced(accept=lambda fd: -errno.EMFILE)   Python functions instead of operations: faults on demand
    fake_clock()                                time passes when the test says so, or when a loop waits
    calls()                                     how often each operation was called
    counts()                                    what was made, and freed

A whole fake kernel, in C or Cython, puts its own table in force with `install`; the three above work on top of it.
"""
from collections import Counter
from contextlib import contextmanager

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int64_t

from epollkit._sys cimport EK_TICK_NS, epoll_event, iovec

cdef extern from "<errno.h>" nogil:
    const int EDEADLK

cdef ek_debug shared                        # the one that all modules find through the capsule
shared.operations = &ek_real_operations
shared.ask = ask
capsule = PyCapsule_New(&shared, "epollkit._operations.capsule", NULL)

cdef tuple NAMES = tuple([ek_call_names[i].decode() for i in range(EK_CALLS)])
cdef dict functions = {}                    # number of an operation -> what replaces it
cdef list failures = []                     # what those raised


cdef const ek_operations *install(const ek_operations *operations) noexcept:
    before = shared.operations
    shared.operations = operations if operations != NULL else &ek_real_operations
    return before


# -- faults ------------------------------------------------------------------------------------------------------------

cdef int ask(int call, const int64_t *words, int word_count, int64_t *result) noexcept with gil:
    """Whether a Python function has an answer for this call."""
    cdef bint transfers = call in (EK_CALL_recv, EK_CALL_send, EK_CALL_send_parts)
    answer = None
    try:
        if transfers:
            answer = functions[call](words[0], transfer_size(call, words))
        else:
            answer = functions[call](*[words[i] for i in range(word_count)])
        if answer is not None:
            result[0] = answer
    except BaseException as error:
        failures.append(error)
        answer = None
    if answer is None:
        return False
    if transfers and result[0] > 0:
        result[0] = transfer(call, words, result[0])
    return True


cdef size_t transfer_size(int call, const int64_t *words) noexcept:
    cdef const iovec *parts = <const iovec *>words[2]
    cdef size_t size = 0
    cdef int64_t i
    if call != EK_CALL_send_parts:
        return words[1]
    for i in range(words[1]):
        size += parts[i].iov_len
    return size


cdef int64_t transfer(int call, const int64_t *words, int64_t limit) noexcept:
    """What the operation itself makes of a buffer that is no larger than limit."""
    cdef int fd = <int>words[0]
    cdef size_t left = limit
    cdef iovec *parts = <iovec *>words[2]
    cdef int64_t i
    if call == EK_CALL_recv:
        return shared.operations.recv(fd, <void *>words[2], min(<size_t>words[1], left))
    if call == EK_CALL_send:
        return shared.operations.send(fd, <void *>words[2], min(<size_t>words[1], left))
    for i in range(words[1]):
        parts[i].iov_len = min(parts[i].iov_len, left)
        left -= parts[i].iov_len
    return shared.operations.send_parts(fd, parts, words[1])


@contextmanager
def replaced(**replacements):
    """Have Python functions called instead of operations, for the length of a block.

    Each gets the operation's plain arguments (recv and the sends: fd and size) and returns what the operation would:
    0 or more, or -errno; None has the operation itself called. From recv and the sends a number above 0 means: the
    operation, but with at most that many bytes. They are called wherever the operation is, so they must not touch the
    loop. What one raises is raised at the end of the block.
    """
    numbers = {NAMES.index(name): function for name, function in replacements.items()}
    before = dict(functions)
    put_in_place({**before, **numbers})
    try:
        yield
    finally:
        put_in_place(before)
        raised, failures[:] = failures[:], []
        if raised:
            raise raised[0]


cdef int put_in_place(dict chosen) except -1:
    functions.clear()
    functions.update(chosen)
    for i in range(EK_CALLS):
        shared.replaced[i] = i in functions
    return 0


# -- the clock ---------------------------------------------------------------------------------------------------------

cdef int64_t START_NS = 1000000000000000
cdef int64_t FIRST_SECOND = 784111777       # then it is Sun, 06 Nov 1994 08:49:37 GMT, as in RFC 9110
cdef int64_t clock_ns = 0       # 0: no fake clock
cdef ek_operations clocked      # the operations in force, but for the time
cdef const ek_operations *below = NULL


cdef int64_t fake_now_ns() noexcept nogil:
    return clock_ns


cdef int64_t fake_tick_ns() noexcept nogil:
    return clock_ns - clock_ns % EK_TICK_NS


cdef int64_t fake_wall_seconds() noexcept nogil:
    return FIRST_SECOND + (clock_ns - START_NS) // 1000000000


cdef int fake_epoll_wait(int epoll_fd, epoll_event *events, int room, int64_t timeout_ns) noexcept nogil:
    """Nobody waits. What is not there now won't come, so the whole timeout passes; without one this would be for ever:
    OSError(EDEADLK)."""
    global clock_ns
    cdef int count
    count = below.epoll_wait(epoll_fd, events, room, 0)
    if count != 0 or timeout_ns == 0:
        return count
    if timeout_ns < 0:
        return -EDEADLK
    clock_ns += timeout_ns
    return 0


class FakeClock:
    """The clock of every loop, while `fake_clock()` is in force."""

    @property
    def now_ns(self):
        return clock_ns

    def advance(self, seconds):
        """Let time pass, rounded to the nanosecond."""
        global clock_ns
        clock_ns += <int64_t>round(seconds * 1000000000)


@contextmanager
def fake_clock():
    """A clock that stands still but for `advance()`, and for waits of a loop, which pass at once: with an event if one
    is there, otherwise with all of their timeout. Make the loop inside: time begins anew."""
    global clock_ns, clocked, below
    if clock_ns:
        raise RuntimeError("there is a fake clock already")
    clock_ns = START_NS
    clocked = shared.operations[0]
    clocked.now_ns = fake_now_ns
    clocked.tick_ns = fake_tick_ns
    clocked.wall_seconds = fake_wall_seconds
    clocked.epoll_wait = fake_epoll_wait
    below = install(&clocked)
    try:
        yield FakeClock()
    finally:
        install(below)
        clock_ns = 0


# -- counts ------------------------------------------------------------------------------------------------------------

def calls():
    """How often each operation was called so far, by name. What two of these differ in: `after - before`."""
    return Counter({NAMES[i]: shared.calls[i] for i in range(EK_CALLS)})


def counts():
    """What there is: kind -> (made, freed)."""
    return {ek_kind_names[i].decode().lower(): (shared.made[i], shared.freed[i]) for i in range(EK_KIND_COUNT)}

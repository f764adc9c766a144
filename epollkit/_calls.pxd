"""Below the core: calls that are due. Timers, posted calls, and the inbox that other threads post into.

`Calls` knows neither loops nor slots; the loop owns one, runs it at the start of each turn, and asks it how long it may
wait.
"""
from libc.stdint cimport int64_t, uint64_t

from epollkit._timers cimport TimerNode, TimerQueue

cdef enum:
    TIMER_BUDGET = 4096             # timers fired per turn
    POSTED_BUDGET = 4096            # posted calls per turn, from each of the two queues
    TIMER_LIMIT = 1 << 24           # timers that may wait
    POSTED_LIMIT = 1 << 20          # posted calls that may wait: a loop that falls behind says so


cdef class Timer:
    cdef TimerNode node             # queued: the heap owns a reference to this Timer
    cdef Calls calls
    cdef object function            # None: it ran, or was cancelled
    cdef tuple arguments
    cdef bint posted                # waits among the posted calls, not in the heap

    cdef int forget(self) except -1


cdef class Calls:
    cdef TimerQueue queue
    cdef object posted              # deque of Timer: call_soon
    cdef object inbox               # deque of (function, arguments): call_soon_threadsafe
    cdef object exception_handler
    cdef uint64_t made              # calls made
    cdef int64_t running_ns         # while timers run: what is armed now is due at that time at the earliest; else 0
    cdef unsigned long thread

    cdef int check_thread(self) except -1
    cdef Timer make(self, object function, tuple arguments)
    cdef Timer post(self, object function, tuple arguments)
    cdef Timer schedule(self, int64_t due_ns, object function, tuple arguments)
    cdef int post_from_thread(self, object function, tuple arguments) except -1
    cdef bint waiting(self) except -1
    cdef Py_ssize_t run(self) except -1
    cdef Py_ssize_t run_inbox(self) except -1
    cdef Py_ssize_t run_posted(self) except -1
    cdef Py_ssize_t run_timers(self) except -1
    cdef int call(self, object function, tuple arguments) except -1
    cdef int report(self, object exception, object source) except -1
    cdef int clear(self) except -1

cdef int64_t delay_ns(object seconds) except -1

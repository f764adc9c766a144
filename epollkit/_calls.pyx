"""Calls that are due: `Timer`, and `Calls`, the queues they wait in."""
import logging
from collections import deque

from cpython.object cimport PyObject, PyTypeObject, traverseproc, visitproc
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint32_t

cimport cython

cimport epollkit._sys as _sys
from epollkit._timers cimport (
    TimerNode,
    timers_first_ns,
    timers_free,
    timers_remove,
    timers_set,
)

from epollkit.errors import LimitReached, UsageError

logger = logging.getLogger("epollkit")

cdef extern from "Python.h":
    void PySys_WriteStderr(const char *format, ...) noexcept

cdef double LONGEST_DELAY_SECONDS = 1e9     # 31 years: keeps nanoseconds within 63 bits


cdef int64_t delay_ns(object seconds) except -1:
    """Seconds from the user as nanoseconds; UsageError for what is not a length of time."""
    if type(seconds) is not float and type(seconds) is not int and type(seconds) is not bool:
        if isinstance(seconds, float):      # a subclass may say what it likes when it is compared
            seconds = float(seconds)
        elif isinstance(seconds, int):
            seconds = int(seconds)
    if type(seconds) not in (int, float) or seconds != seconds or seconds < 0:
        raise UsageError(f"a delay is a number of seconds, 0 or more, not {seconds!r}")
    return <int64_t>(<double>min(seconds, LONGEST_DELAY_SECONDS) * 1e9 + 0.999999)      # up: never early


@cython.no_gc_clear      # a timer in the heap must find the heap
cdef class Timer:
    """A call that is due: from `call_later`, `call_at` or `call_soon`. Belongs to its loop's thread."""

    def __cinit__(self):
        _sys.EK_MADE(_sys.EK_TIMER)

    def __init__(self):
        raise UsageError("a Timer comes from call_soon(), call_later() or call_at(); it is not made by hand")

    @property
    def active(self):
        """Whether it will still run."""
        return self.function is not None

    def cancel(self):
        """It will not run. Cancelling twice, or after it ran, does nothing."""
        if self.function is not None:
            self.calls.check_thread()
            self.forget()

    def reset(self, seconds):
        """Put off, or bring forward: due that many seconds from now. UsageError once it ran or was cancelled."""
        cdef int64_t delay = delay_ns(seconds)
        if self.function is None:
            raise UsageError("this timer has run or was cancelled; make a new one with call_later()")
        if self.posted:
            raise UsageError("call_soon() has no time to reset; use call_later()")
        self.calls.check_thread()
        timers_set(&self.calls.queue, &self.node, _sys.ek_now_ns() + delay)     # it is queued, so there is room

    cdef int forget(self) except -1:
        """Let go of everything, the place in the heap first: what goes may run a finalizer."""
        _function, _arguments = self.function, self.arguments
        self.function = None
        self.arguments = None
        if self.node.place:
            timers_remove(&self.calls.queue, &self.node)
            Py_DECREF(self)
        return 0

    def __repr__(self):
        return f"<Timer {'active ' + repr(self.function) if self.active else 'done'}>"


# From a node in the heap back to its Timer.
cdef Timer _measured = Timer.__new__(Timer)
cdef size_t NODE_OFFSET = <size_t>&_measured.node - <size_t><PyObject *>_measured
_measured = None


cdef inline PyObject *timer_of(TimerNode *node) noexcept:
    return <PyObject *>(<size_t>node - NODE_OFFSET)


cdef class Calls:
    """The queues. Everything but `post_from_thread` belongs to the loop's thread."""

    def __cinit__(self):
        self.posted = deque()
        self.inbox = deque()
        self.thread = PyThread_get_thread_ident()

    def __dealloc__(self):
        timers_free(&self.queue)

    cdef int check_thread(self) except -1:
        if PyThread_get_thread_ident() != self.thread:
            raise UsageError("a timer belongs to its loop's thread; use call_soon_threadsafe(timer.cancel)")
        return 0

    cdef Timer make(self, object function, tuple arguments):
        cdef Timer timer
        if not callable(function):
            raise UsageError(f"{function!r} can't be called; give a function and its arguments")
        timer = Timer.__new__(Timer)
        timer.calls = self
        timer.function = function
        timer.arguments = arguments
        return timer

    cdef Timer post(self, object function, tuple arguments):
        """To be called in the next turn, in the order of posting."""
        cdef Timer timer = self.make(function, arguments)
        if len(self.posted) >= POSTED_LIMIT:
            raise LimitReached(f"{POSTED_LIMIT} posted calls wait already; the loop does not keep up")
        timer.posted = True
        self.posted.append(timer)
        return timer

    cdef Timer schedule(self, int64_t due_ns, object function, tuple arguments):
        """To be called once CLOCK_MONOTONIC has reached due_ns; not in the run that is under way, or a timer that goes
        on arming itself for a time in the past would be first in the heap for ever."""
        cdef Timer timer = self.make(function, arguments)
        if self.queue.count >= TIMER_LIMIT:
            raise LimitReached(f"{TIMER_LIMIT} timers wait already; cancel what is no longer needed")
        if timers_set(&self.queue, &timer.node, max(due_ns, self.running_ns)) < 0:
            raise MemoryError()
        Py_INCREF(timer)                # the heap's reference
        return timer

    cdef int post_from_thread(self, object function, tuple arguments) except -1:
        """Thread-safe: a deque's append and popleft are atomic (Python's documentation of `collections.deque`)."""
        if not callable(function):
            raise UsageError(f"{function!r} can't be called; give a function and its arguments")
        if len(self.inbox) >= POSTED_LIMIT:
            raise LimitReached(f"{POSTED_LIMIT} posted calls wait already; the loop does not keep up")
        self.inbox.append((function, arguments))
        return 0

    cdef bint waiting(self) except -1:
        """Whether something is to be called right now, timers aside."""
        return len(self.posted) > 0 or len(self.inbox) > 0

    cdef Py_ssize_t run(self) except -1:
        """Inbox, posted calls, due timers: of each what was there at the start, up to its budget. Returns how many."""
        cdef Py_ssize_t made = 0
        if self.inbox:
            made += self.run_inbox()
        if self.posted:
            made += self.run_posted()
        if self.queue.count:
            made += self.run_timers()
        return made

    cdef Py_ssize_t run_inbox(self) except -1:
        cdef Py_ssize_t count = min(<Py_ssize_t>len(self.inbox), <Py_ssize_t>POSTED_BUDGET)
        for _ in range(count):
            function, arguments = self.inbox.popleft()
            self.call(function, arguments)
        return count

    cdef Py_ssize_t run_posted(self) except -1:
        cdef Py_ssize_t left = min(<Py_ssize_t>len(self.posted), <Py_ssize_t>POSTED_BUDGET)
        cdef Py_ssize_t made = 0
        cdef Timer timer
        while left > 0 and self.posted:
            left -= 1
            timer = self.posted.popleft()
            function, arguments = timer.function, timer.arguments
            if function is not None:        # else it was cancelled
                timer.forget()
                self.call(function, arguments)
                made += 1
        return made

    cdef Py_ssize_t run_timers(self) except -1:
        """What is due by a fresh look at the clock, earliest first."""
        cdef uint32_t left = min(self.queue.count, <uint32_t>TIMER_BUDGET)
        cdef int64_t now_ns = _sys.ek_now_ns()
        cdef Py_ssize_t made = 0
        cdef Timer timer
        self.running_ns = now_ns + 1
        try:
            while left > 0 and timers_first_ns(&self.queue) <= now_ns:
                left -= 1
                timer = <Timer>timer_of(self.queue.entries[0].node)
                function, arguments = timer.function, timer.arguments
                timer.forget()
                self.call(function, arguments)
                made += 1
        finally:
            self.running_ns = 0
        return made

    cdef int call(self, object function, tuple arguments) except -1:
        self.made += 1
        try:
            function(*arguments)
        except Exception as error:
            self.report(error, function)
        return 0

    cdef int report(self, object exception, object source) except -1:
        """Tell the exception handler, or the log, what a handler raised. Without memory for that a line on standard
        error has to do: whoever has that exception is ended by it, not whoever reports it."""
        try:
            if self.exception_handler is not None:
                try:
                    self.exception_handler(exception, source)
                    return 0
                except Exception as error:
                    logger.error("the exception handler failed", exc_info=error)
            logger.error("unhandled exception in %r", source, exc_info=exception)
        except MemoryError:
            PySys_WriteStderr(b"epollkit: no memory to report an exception with\n")
        return 0

    cdef int clear(self) except -1:
        """Cancel everything."""
        cdef Timer timer
        while self.queue.count:
            timer = <Timer>timer_of(self.queue.entries[self.queue.count - 1].node)
            timer.forget()
        while self.posted:
            timer = self.posted.popleft()
            timer.forget()
        self.inbox.clear()
        return 0


# The heap's references are in C memory, where the garbage collector does not look by itself. It must: a timer's
# function usually refers to the loop, and so to the heap.
cdef traverseproc traverse_fields = (<PyTypeObject *>Calls).tp_traverse


cdef int traverse_calls(PyObject *this, visitproc visit, void *argument) except -1:
    cdef TimerQueue *queue = &(<Calls>this).queue
    cdef uint32_t place
    cdef int result = traverse_fields(this, visit, argument)
    for place in range(queue.count):
        if result != 0:
            break
        result = visit(timer_of(queue.entries[place].node), argument)
    return result


(<PyTypeObject *>Calls).tp_traverse = traverse_calls

_sys.EK_FREED_WITH(Timer, _sys.EK_TIMER)

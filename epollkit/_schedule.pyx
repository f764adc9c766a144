"""`call_soon`, `call_later` and their like: what a user wants called, and when."""
from libc.stdint cimport int64_t, uint64_t

cimport epollkit._core as _core
cimport epollkit._sys as _sys
from epollkit._calls cimport Timer, delay_ns
from epollkit._slots cimport SLOT_BOUND_CALLS, slot_tag

from epollkit.errors import UsageError


cdef class Loop(_core.Loop):
    """The bare loop, and calls."""

    def call_soon(self, function, *arguments):
        """Run a function in the next turn, before any event. Returns a `Timer`; in order of posting."""
        self.check_usable()
        return self.calls.post(function, arguments)

    def call_later(self, seconds, function, *arguments):
        """Run a function once that many seconds have passed, never earlier. Returns a `Timer` to cancel or reset."""
        cdef int64_t delay = delay_ns(seconds)
        self.check_usable()
        return self.calls.schedule(_sys.ek_now_ns() + delay, function, arguments)

    def call_at(self, when, function, *arguments):
        """Run a function once `loop.time()` has reached `when`, in seconds."""
        cdef int64_t due_ns = max(delay_ns(when), <int64_t>1)
        self.check_usable()
        return self.calls.schedule(due_ns, function, arguments)

    def time(self):
        """Seconds on the loop's clock (CLOCK_MONOTONIC), the one `call_at` counts in."""
        return _sys.ek_now_ns() / 1e9

    def call_soon_threadsafe(self, function, *arguments):
        """Run a function in the loop's thread, in its next turn, and wake the loop for it. Thread-safe.

        Raises UsageError: the loop is closed; LimitReached: a million calls wait and the loop does not come to them.
        """
        if self.closed:
            raise UsageError("this loop is closed")
        self.calls.post_from_thread(function, arguments)
        if not self.wake_sent:
            self.wake_sent = True
            _sys.ek_eventfd_add(self.wake_fd)

    def _report(self, error, source):
        """For what is written in Python: as if a handler of the loop's own had raised that."""
        self.calls.report(error, source)

    cdef Timer call_bound(self, _core.Endpoint endpoint, object delay, object function, tuple arguments):
        """A timer, or with delay None a posted call, that dies with the endpoint."""
        cdef int64_t delay_in_ns = -1 if delay is None else delay_ns(delay)
        cdef uint64_t tag = slot_tag(endpoint.slot)
        cdef list calls
        cdef Timer timer
        if delay_in_ns < 0:
            timer = self.calls.post(function, arguments)
        else:
            timer = self.calls.schedule(_sys.ek_now_ns() + delay_in_ns, function, arguments)
        try:
            calls = self.bound.get(tag, [])
            if len(calls) >= 16 and len(calls) & (len(calls) - 1) == 0:     # at 16, 32, 64 ...: drop what is done
                calls[:] = [call for call in calls if (<Timer>call).function is not None]
            calls.append(timer)
            self.bound[tag] = calls
        except BaseException:
            timer.forget()
            raise
        if endpoint.slot == NULL:           # an allocation ran the collector, and that a finalizer that closed it
            del self.bound[tag]
            timer.forget()
            endpoint.owner()                # raises
        endpoint.slot.flags |= SLOT_BOUND_CALLS
        return timer

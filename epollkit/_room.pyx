"""Room for newcomers: the connection that has been idle for longest is closed."""
from libc.stdint cimport uint16_t

cimport epollkit._schedule as _schedule
cimport epollkit._sys as _sys
from epollkit._core cimport Endpoint
from epollkit._idle cimport idle_add, idle_collect, idle_take
from epollkit._slots cimport SLOT_IDLE, Slot


cdef class Loop(_schedule.Loop):
    """The bare loop, calls, and room."""

    cdef int make_room(self) except -1:
        """Close one: 1. Or 0: nobody is idle; `on_room` will say when somebody is, or has gone. Scans once at most."""
        cdef Slot *slot = idle_take(&self.idle, &self.slots)
        cdef bint may_scan = not self.complete
        cdef Endpoint endpoint
        while slot != NULL or may_scan:
            if slot == NULL:
                may_scan = False
                self.scans += 1
                self.complete = idle_collect(&self.idle, &self.slots)
            elif not _sys.ek_has_input(slot.fd):    # else its next request is here: it will rest again, and be noted
                slot.flags &= ~<uint16_t>SLOT_IDLE
                endpoint = <Endpoint>slot.endpoint
                try:
                    endpoint.on_evicted()
                except Exception as error:
                    self.fail(endpoint, error)
                if endpoint.slot == NULL:
                    self.counters.evicted += 1
                    self.noting = self.complete or self.starved
                    return 1
            slot = idle_take(&self.idle, &self.slots)
        self.starved = self.noting = True
        return 0

    cdef int note_idle(self, Slot *slot) except -1:
        if self.complete:
            self.complete = idle_add(&self.idle, slot)
        self.noting = self.complete
        if self.starved:
            self.starved = False
            return self.tell_room()
        return 0

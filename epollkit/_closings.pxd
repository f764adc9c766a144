"""Leaf: endpoints that have ended and are still to be told, with the reason; first come, first served.

There is a place for whoever may have to be told, from before it is registered: to end something takes no memory.
"""
from cpython.object cimport PyObject, visitproc
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t
from libc.string cimport memmove

from epollkit._sys cimport EK_ASSERT, ek_free_pages, ek_grow_pages

cdef enum:
    FIRST_CLOSING_ROOM = 256

cdef struct Closing:
    PyObject *endpoint              # owned
    PyObject *reason                # owned: an exception or None

cdef struct Closings:
    Closing *entries                # those from `first` to `end`
    uint32_t room
    uint32_t first
    uint32_t end
    uint32_t promised               # places for those that have no slot, and will end all the same


cdef inline uint32_t closings_count(const Closings *closings) noexcept nogil:
    return closings.end - closings.first


cdef inline int closings_reserve(Closings *closings, uint32_t live) noexcept nogil:
    """A place for each of so many live registrations, and one more. 0 or -ENOMEM."""
    cdef uint32_t wanted = live + closings.promised + 1
    cdef uint32_t room = closings.room if closings.room else FIRST_CLOSING_ROOM
    cdef Closing *grown
    if closings.end + wanted <= closings.room:
        return 0
    if closings.first > closings.room // 2:             # more than half of it was told: move up
        closings.end -= closings.first
        memmove(closings.entries, closings.entries + closings.first, closings.end * sizeof(Closing))
        closings.first = 0
    while room < closings.end + wanted:
        room *= 2
    if room == closings.room:
        return 0
    grown = <Closing *>ek_grow_pages(closings.entries, closings.room * sizeof(Closing), room * sizeof(Closing))
    if grown == NULL:
        return -ENOMEM
    closings.entries = grown
    closings.room = room
    return 0


cdef inline int closings_append(Closings *closings, object endpoint, object reason) noexcept:
    EK_ASSERT(closings.end < closings.room)
    Py_INCREF(endpoint)
    Py_INCREF(reason)
    closings.entries[closings.end].endpoint = <PyObject *>endpoint
    closings.entries[closings.end].reason = <PyObject *>reason
    closings.end += 1
    return 0


cdef inline Closing closings_take(Closings *closings) noexcept nogil:
    """The first one, to be given to `closing_free`."""
    cdef Closing taken = closings.entries[closings.first]
    closings.first += 1
    if closings.first == closings.end:
        closings.first = closings.end = 0
    return taken


cdef inline int closing_free(const Closing *closing) noexcept:
    Py_DECREF(<object>closing.endpoint)
    Py_DECREF(<object>closing.reason)
    return 0


cdef inline int closings_visit(const Closings *closings, visitproc visit, void *argument) except -1:
    cdef int result = 0
    cdef uint32_t i
    for i in range(closings.first, closings.end):
        if result == 0:
            result = visit(closings.entries[i].endpoint, argument)
        if result == 0:
            result = visit(closings.entries[i].reason, argument)
    return result


cdef inline int closings_free(Closings *closings) noexcept:
    EK_ASSERT(closings.first == closings.end)
    ek_free_pages(closings.entries, closings.room * sizeof(Closing))
    closings.entries = NULL
    closings.room = 0
    return 0

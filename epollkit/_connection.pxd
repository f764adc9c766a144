"""Connections: a buffered connection that may speak TLS, keep to a rate limit, and rest in a pool between two users.

For protocols in Cython. Python's face of it is `_stream`.
"""
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t

from epollkit._buffered cimport Buffered, Loop
from epollkit._rate cimport RateLimit

cdef struct Extras:                 # for those that asked for any of it; all references are owned
    PyObject *tls                   # Tls
    PyObject *sealed                # bytes: ciphertext that the socket has not taken, ...
    Py_ssize_t sealed_sent          # ... beyond so many
    int64_t shake_ns                # how long the handshake may take
    PyObject *early                 # bytes that came before it was adopted
    PyObject *read_rate             # RateLimit
    PyObject *write_rate
    Py_ssize_t read_grant           # bytes that it has granted, from the time that STREAM_IN_WAITS ends
    Py_ssize_t write_grant


cdef class Connection(Buffered):
    cdef Extras *extras             # NULL: nothing beyond the defaults

    cdef Extras *want_extras(self) except NULL
    cdef int drop_extras(self) except -1
    cdef Py_ssize_t granted(self, RateLimit rate, Py_ssize_t wanted, uint32_t waits) except -1
    cdef int go_on(self, uint32_t waits) except -1
    cdef int drop_rates(self, Extras *extras) except -1
    cdef object drop_rate(self, PyObject **rate, Py_ssize_t *grant)

    # TLS
    cdef int seal_gathered(self, Loop loop) except -1
    cdef int flush_secure(self) except -1
    cdef bint seal_next(self) except -1
    cdef int shake(self) except -1
    cdef int shaken(self, object error, const char *rest, Py_ssize_t length) except -1

    # in a pool
    cdef int forget(self) except -1                 # everything that the connection's user has set
    cdef bint is_undisturbed(self) except -1
    cdef int disturbance(self) except -1
    cdef int take_tickets(self) except -1
    cdef int end_rest(self, str what, object reason) except -1
    cdef int leave(self) except -1

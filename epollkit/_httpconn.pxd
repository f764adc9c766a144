"""HTTP/1.1 on a stream: the codec's heads in, an application's answers out.

A connection between two requests is `HttpConnection` and its slot, nothing else: what an incomplete request needs is in
`Partial`, which exists only while there is one.
"""
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

from epollkit._http1 cimport Head, HeadLimits
from epollkit._connection cimport Connection

cdef enum:
    BODY_LIMIT_BYTES = 1048576      # larger ones are refused with 413


cdef class Settings:
    """What all connections of one server share. Called without arguments, it makes one: a factory for `Loop.listen`."""
    cdef readonly object app
    cdef readonly object admit      # callable(peer_address) -> bool, asked once per connection; or None
    cdef Request spare              # what the next request is made of; None: a new object
    cdef HeadLimits limits
    cdef Py_ssize_t body_limit
    cdef int64_t header_timeout_ns, body_timeout_ns, write_timeout_ns, keep_alive_timeout_ns


cdef class Request:
    # The head as it came; offsets below point into it. While the application runs it is where it was received; it is
    # copied only if somebody keeps the request, and `own_head` is what keeps the copy.
    cdef const char *head
    cdef Py_ssize_t head_length
    cdef bytes own_head
    cdef readonly bytes body        # None: not a request at the moment, see put_away()
    cdef readonly HttpConnection connection
    cdef uint16_t target_offset, target_length
    cdef uint16_t method_offset, method_length
    cdef uint8_t method_code        # HEAD_GET ..., of _http1
    cdef readonly uint8_t minor_version
    cdef bint keep_alive
    cdef str path_text              # decoded at first use
    cdef tuple header_pairs         # parsed again at first use: most handlers never ask

    cdef str text(self, uint16_t offset, uint16_t length)
    cdef int keep_head(self) except -1
    cdef tuple parsed_headers(self)


cdef class Response:
    cdef readonly bytes body        # None: made without __init__
    cdef readonly int status
    cdef tuple pairs                # the headers; None without
    cdef bytes block                # the same, serialised
    cdef bint close                 # the application asked for Connection: close


cdef class Partial:
    """A request that has not come in whole, or whole ones that wait because the peer does not read its answers."""
    cdef bytearray kept             # from a head's first byte
    cdef Head head                  # where the parser stopped in it
    cdef bint timed                 # the deadline of this head is running
    cdef Request request            # its head is complete; the body is being filled, and `kept` is not used
    cdef Py_ssize_t filled          # bytes of request.body that have come


cdef class HttpConnection(Connection):
    cdef Settings settings
    cdef Partial partial            # None: between requests

    cdef Py_ssize_t consume(self, const uint8_t *data, Py_ssize_t length, Head *head) except -1
    cdef int consume_kept(self) except -1
    cdef int keep(self, const char *data, Py_ssize_t length, const Head *head) except -1
    cdef int check_body(self, const Head *head, int result) noexcept
    cdef int await_body(self, Request request, bint expects, const uint8_t *data, Py_ssize_t length,
                        Py_ssize_t size) except -1
    cdef Py_ssize_t fill_body(self, const char *data, Py_ssize_t length) except -1
    cdef int linger(self) except -1
    cdef int may_go_on(self) except -1
    cdef int settle(self) except -1
    cdef int answer(self, Request request) except -1
    cdef Response answered(self, Request request, PyObject *result)
    cdef int respond(self, Request request, Response response) except -1
    cdef uint32_t patience_with(self, Request request) noexcept
    cdef int refuse(self, int status, str why, bint bare) except -1
    cdef int put_bytes(self, bytes data) except -1

"""Streams: buffered connections on the core. `Stream` is for Python; its `take_*` methods are for protocols in Cython.

What an idle stream costs is its object and its slot: the receive buffer is the loop's, an output queue exists only
while the socket is full.
"""
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint16_t, uint32_t

cimport epollkit._core as _core
cimport epollkit._raw as _raw

cdef enum:
    READ_ROOM_BYTES = 65536         # one recv at most; the loop's only receive buffer
    READ_BUDGET_BYTES = 262144      # per stream and turn: one fast peer must not starve the rest
    SCRATCH_BYTES = 65536           # what one upcall writes is gathered here and leaves as one send
    SCRATCH_PIECE_BYTES = 16384     # a larger piece is referenced instead of copied
    SEND_PARTS = 64                 # pieces per sendmsg
    PART_COST_BYTES = 64            # what a queued piece costs beside its bytes, so that a million tiny ones count
    LINGER_READS = 64               # reads that are thrown away after the last answer, at most: 4 MiB

cdef enum StreamState:
    STREAM_CORKED = 1               # inside one of its own upcalls: writes are gathered
    STREAM_BLOCKED = 2              # the socket took less than it was given: wait for OUT
    STREAM_PAUSED = 4               # not reading; what arrives waits in the kernel
    STREAM_ENDED = 8                # the peer's end-of-stream was read
    STREAM_CLOSING = 16             # close() was called: what is queued is still sent, nothing more is delivered
    STREAM_LINGERS = 32             # once all is sent: shut down, drain, and only then close
    STREAM_DRAINING = 64            # that shutdown was made; input is thrown away until the peer's end
    STREAM_OUT_WATCHED = 128        # it was full once, and asked for OUT
    STREAM_MAY_LINGER = 256         # lingers if, once all is sent, the socket still holds bytes in either direction


cdef struct Output:                 # what the socket has not taken yet; exists only while there is something
    PyObject **parts                # owned references to bytes objects
    Py_ssize_t room                 # for so many of them
    Py_ssize_t first                # index of the first part with unsent bytes
    Py_ssize_t end                  # index behind the last part
    Py_ssize_t offset               # sent bytes of the first part
    Py_ssize_t size                 # unsent bytes in all
    Py_ssize_t limit                # the stream's write_limit when the queue was made


cdef class Loop(_raw.Loop):
    cdef char *input                # READ_ROOM_BYTES
    cdef char *scratch              # SCRATCH_BYTES
    cdef Py_ssize_t scratch_used    # by the one stream that is corked


cdef class Stream(_core.Endpoint):
    cdef Output *output             # NULL: everything written has been sent
    cdef int error                  # errno of the socket, read once and kept; 0: none
    cdef uint16_t state             # StreamState
    cdef uint16_t lingered          # reads thrown away after the last answer

    # For protocols: called inside the cork, so that what they write leaves in one piece. All may close the stream.
    cdef int take_open(self) except -1
    cdef int take_data(self, const char *data, Py_ssize_t length) except -1
    cdef int take_end(self) except -1
    cdef int take_sent(self) except -1          # the socket took some of the queue, or all: then `output` is NULL
    cdef int take_deadline(self) except -1

    # For protocols: what they do.
    cdef int put(self, const char *data, Py_ssize_t length, bytes owner) except -1
    cdef int flush(self) except -1
    cdef int close_softly(self, uint16_t linger) except -1
    cdef int pause(self) except -1
    cdef int resume(self) except -1
    cdef int set_deadline_ns(self, int64_t duration_ns) except -1

    # inside
    cdef int cork(self, Loop loop) except -1
    cdef int uncork(self, Loop loop) except -1
    cdef int cut_short(self, Loop loop) except -1
    cdef int spill(self, Loop loop) except -1
    cdef int read(self, Loop loop, uint32_t events) except -1
    cdef int read_failed(self, int code) except -1
    cdef int end(self, uint32_t events) except -1
    cdef int broken(self, uint32_t events) except -1
    cdef int write_failed(self, int code) except -1
    cdef int send_queued(self) except -1
    cdef int block(self) except -1
    cdef int unblock(self) except -1
    cdef int finish(self) except -1
    cdef int drain(self, Loop loop) except -1
    cdef int queue(self, bytes data) except -1
    cdef int drop_output(self) noexcept
    cdef int end_with(self, object reason) except -1
    cdef object address(self, bint peer)


cdef inline char *reserve(Stream stream, Py_ssize_t length) noexcept:
    """For protocols: where so many bytes may be written to leave with the upcall; what was written is then added to the
    loop's `scratch_used`. NULL: there is no such place now, use put()."""
    cdef Loop loop
    if stream.slot == NULL or stream.error or stream.output != NULL or not stream.state & STREAM_CORKED:
        return NULL
    loop = <Loop>stream.loop_link
    return loop.scratch + loop.scratch_used if length <= SCRATCH_BYTES - loop.scratch_used else NULL

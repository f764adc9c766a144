"""Buffered connections on the core: reading, writing, closing. `_connection` adds TLS and rate limits.

What an idle connection costs is its object and its slot: the receive buffer is the loop's, an output queue exists only
while the socket is full.
"""
from libc.stdint cimport int64_t, uint32_t

cimport epollkit._core as _core
cimport epollkit._raw as _raw
from epollkit._bytes cimport Basin, Spare
from epollkit._output cimport Output
from epollkit._sys cimport EK_POISON, EK_UNPOISON, ek_recv

cdef enum:
    READ_ROOM_BYTES = 65536         # one recv at most
    READ_BUDGET_BYTES = 262144      # per connection and turn: one fast peer must not starve the rest
    WRITE_BUDGET_BYTES = 4194304    # of a file, likewise; memory is bounded by its own limit
    SCRATCH_BYTES = 65536           # what one upcall writes is gathered here and leaves as one send
    SCRATCH_PIECE_BYTES = 16384     # a larger piece is referenced instead of copied
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
    STREAM_UNOPENED = 512           # adopted: take_open is due at the next event
    STREAM_SHAKING = 1024           # the TLS handshake is not done
    STREAM_SECURE = 2048            # TLS
    STREAM_RATED = 4096             # has a rate limit
    STREAM_SEALED = 8192            # ciphertext is waiting for the socket
    STREAM_HOLDS = 16384            # bytes were received that take_held may deliver: none of them is in the kernel
    STREAM_TELLS_ROOM = 32768       # take_room is due once enough of what was written is sent
    STREAM_SHUT_DUE = 65536         # shutdown_write() was called: once all is sent
    STREAM_SHUT = 131072            # our end-of-stream is sent: nothing can be written
    STREAM_IN_WAITS = 262144        # reading waits for its rate limit
    STREAM_OUT_WAITS = 524288       # writing waits for its rate limit
    STREAM_RESTS = 1048576          # in a pool, with nobody: whatever comes now ends it
    STREAM_KEPT = 2097152           # of a pool: Loop.kept says who is told what becomes of it

cdef enum:
    STREAM_EARLY = STREAM_UNOPENED | STREAM_SHAKING | STREAM_RESTS          # an event is not yet for the protocol
    STREAM_READS_NOT = STREAM_PAUSED | STREAM_CLOSING | STREAM_ENDED | STREAM_IN_WAITS
    STREAM_DELIVERS_NOT = STREAM_PAUSED | STREAM_CLOSING | STREAM_ENDED | STREAM_RESTS
    STREAM_FILTERED = STREAM_SECURE | STREAM_RATED
    STREAM_AFTER_SENT = STREAM_CLOSING | STREAM_SHUT_DUE | STREAM_TELLS_ROOM        # something waits for all to be sent
    STREAM_OF_USER = STREAM_PAUSED | STREAM_RATED | STREAM_IN_WAITS | STREAM_TELLS_ROOM     # gone when it rests
    STREAM_MAY_REST = STREAM_OF_USER | STREAM_CORKED | STREAM_OUT_WATCHED | STREAM_SECURE | STREAM_KEPT


cdef class Loop(_raw.Loop):
    cdef char *input                # READ_ROOM_BYTES: what is in the basin
    cdef Basin basin
    cdef char *scratch              # SCRATCH_BYTES
    cdef Py_ssize_t scratch_used    # by the one connection that is corked
    cdef Spare spare                # for what on_data gets
    cdef bytearray plain            # READ_ROOM_BYTES for what TLS has decrypted; None until it is needed
    cdef dict kept                  # id of a connection -> keeper(what, reason), of those that are STREAM_KEPT
    cdef bytes take_input(self)


cdef class Buffered(_core.Endpoint):
    # Endpoint's `state` is StreamState, its `error` the socket's errno, read once and kept, its `reads` those that were
    # thrown away after the last answer.
    cdef Output *output             # NULL: everything written has been sent, or is ciphertext

    # For protocols: called inside the cork, so that what they write leaves in one piece. All may close the connection.
    cdef int take_open(self) except -1
    cdef int take_data(self, const char *data, Py_ssize_t length) except -1
    cdef int take_held(self) except -1          # STREAM_HOLDS: deliver what was received and not delivered
    cdef int take_end(self) except -1
    cdef int take_full(self) except -1          # the socket is full, and was not before
    cdef int take_sent(self) except -1          # the socket took some of the queue, or all: then `output` is NULL
    cdef int take_room(self) except -1          # STREAM_TELLS_ROOM: perhaps there is room
    cdef int take_deadline(self) except -1
    cdef int take_error(self, object error) except -1       # it broke; take_closed follows
    cdef int take_closed(self, object reason) except -1     # the last of all

    # For protocols: what they do.
    cdef int put(self, const char *data, Py_ssize_t length, bytes owner) except -1
    cdef int put_file(self, int file, int64_t offset, int64_t count) except -1
    cdef int flush(self) except -1
    cdef int close_softly(self, uint32_t linger) except -1
    cdef int shut(self) except -1
    cdef int pause(self) except -1
    cdef int resume(self) except -1
    cdef int set_deadline_ns(self, int64_t duration_ns) except -1

    # inside
    cdef Loop usable(self)
    cdef int check_writable(self) except -1
    cdef int tell_keeper(self, str what, object reason) except -1
    cdef int open_up(self) except -1
    cdef int cork(self, Loop loop) except -1
    cdef int uncork(self, Loop loop) except -1
    cdef int all_sent(self) except -1
    cdef int cut_short(self, Loop loop) except -1
    cdef int spill(self, Loop loop) except -1
    cdef int spill_or_end(self, Loop loop) except -1
    cdef int start_queue(self, bytes first) except -1
    cdef Py_ssize_t hard_limit(self) except -1
    cdef int queue(self, bytes data, bint gathered) except -1
    cdef int queued(self) except -1
    cdef int drop_output(self) noexcept
    cdef int end_with(self, object reason) except -1
    cdef int send_queued(self) except -1
    cdef int flush_queue(self, Loop loop) except -1
    cdef int file_ended(self) except -1
    cdef int block(self) except -1
    cdef int unblock(self) except -1
    cdef int write_failed(self, int code) except -1
    cdef int read(self, Loop loop, uint32_t events) except -1
    cdef int read_failed(self, int code) except -1
    cdef int end(self, uint32_t events) except -1
    cdef int ended(self, uint32_t events) except -1
    cdef int broken(self, uint32_t events) except -1
    cdef int break_with(self, object error) except -1
    cdef int read_on(self) except -1
    cdef int finish(self) except -1
    cdef int shut_now(self) except -1
    cdef int drain(self, Loop loop) except -1
    cdef object address(self, bint peer)

    # what `Connection` adds, each at the one place where it is asked for
    cdef int on_ready_early(self, uint32_t events) except -1       # STREAM_EARLY
    cdef int rested(self) except -1                                 # STREAM_RESTS: for as long as it may
    cdef int start_shaking(self) except -1                          # STREAM_SECURE
    cdef int shaken_too_long(self) except -1
    cdef int cut_off(self) except -1                                # the socket's end, without TLS's
    cdef int shut_secure(self) except -1
    cdef int flush_filtered(self, Loop loop) except -1              # STREAM_FILTERED
    cdef int open_records(self, const char *data, Py_ssize_t length) except -1
    cdef Py_ssize_t read_room(self) except -1                       # STREAM_RATED; 0: later, which is arranged
    cdef int received(self, Py_ssize_t count) except -1             # so much was, of the room
    cdef Py_ssize_t write_room(self, Py_ssize_t wanted) except -1   # as read_room
    cdef int wrote(self, Py_ssize_t count) except -1                # as received
    cdef int64_t unsent(self) noexcept


cdef object broken_by(int code)         # that errno as an OSError


cdef inline ssize_t fill_input(Loop loop, int fd, Py_ssize_t room) noexcept:
    """recv into the loop's input: what is there of an earlier one, or behind this one's bytes, is nobody's to read."""
    cdef ssize_t count
    EK_UNPOISON(loop.input, READ_ROOM_BYTES)
    count = ek_recv(fd, loop.input, room)
    EK_POISON(loop.input + max(count, <ssize_t>0), READ_ROOM_BYTES - max(count, <ssize_t>0))
    return count


cdef inline bint has_unsent(Buffered connection) noexcept:
    """Whether anything that was written has not been given to the socket."""
    return connection.output != NULL or connection.state & STREAM_SEALED


cdef inline bint is_over(Buffered connection) noexcept:
    """Whether both directions have ended, and nobody has closed it."""
    return connection.state & (STREAM_ENDED | STREAM_SHUT | STREAM_CLOSING) == STREAM_ENDED | STREAM_SHUT \
        and not has_unsent(connection)


cdef inline char *reserve(Buffered connection, Py_ssize_t length) noexcept:
    """For protocols: where so many bytes may be written to leave with the upcall; what was written is then added to the
    loop's `scratch_used`. NULL: there is no such place now, use put()."""
    cdef Loop loop
    if connection.slot == NULL or connection.error or connection.output != NULL \
            or not connection.state & STREAM_CORKED:
        return NULL
    loop = <Loop>connection.loop_link
    return loop.scratch + loop.scratch_used if length <= SCRATCH_BYTES - loop.scratch_used else NULL

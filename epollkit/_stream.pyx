"""`Stream`, and the `Loop` that has buffers for it."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.pyport cimport PY_SSIZE_T_MAX
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc cimport errno
from libc.stdint cimport int64_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove, strerror

cimport epollkit._core as _core
cimport epollkit._raw as _raw
cimport epollkit._sys as _sys
from epollkit._slots cimport SLOT_PEER_CLOSED, SLOT_READY, SLOT_TCP
from epollkit._sys cimport EK_ASSERT

import os

from epollkit.errors import LimitReached, UsageError

cdef uint32_t GONE = _sys.EPOLLRDHUP | _sys.EPOLLHUP | _sys.EPOLLERR
cdef uint32_t INPUT = _sys.EPOLLIN | _sys.EPOLLPRI | GONE
cdef uint32_t MORE_THAN_A_READ = _sys.EPOLLPRI | GONE       # with one of these a short read does not mean drained

cdef int64_t CLOSE_TIMEOUT_NS = 30000000000     # a peer that does not read what is queued is reset after this
cdef int64_t LINGER_TIMEOUT_NS = 5000000000     # a peer that goes on sending after the last answer, likewise


cdef class Loop(_raw.Loop):
    """An event loop whose every registration has a generation, so that a stale event can never reach the wrong one.

    Args:
        max_connections: registrations at most, listeners and the loop's own wake-ups not counted.
        instance_bits: how many bits of the generation are compared, 1 to 32. Leave it at 32; 1 is nginx's scheme, for
            tests and teaching.
        batch: events taken from the kernel at once, 1 to 65536.

    A loop belongs to the thread that made it. Only `call_soon_threadsafe` may be called from other threads; any other
    call from there raises `UsageError`. A loop that is dropped without `close()` closes its fds without any upcall and
    warns (`ResourceWarning`); `with Loop() as loop:` closes it.
    """

    def __cinit__(self, *arguments, **options):
        self.input = <char *>malloc(READ_ROOM_BYTES)
        self.scratch = <char *>malloc(SCRATCH_BYTES)
        if self.input == NULL or self.scratch == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.input)
        free(self.scratch)


cdef Output *output_new(Py_ssize_t limit) except NULL:
    cdef Output *output = <Output *>calloc(1, sizeof(Output))
    if output == NULL:
        raise MemoryError()
    output.limit = limit
    _sys.EK_MADE(_sys.EK_OUTPUT)
    return output


cdef int output_free(Output *output) noexcept:
    cdef Py_ssize_t i
    if output != NULL:
        for i in range(output.first, output.end):
            Py_DECREF(<object>output.parts[i])      # bytes: nobody's finalizer
        free(output.parts)
        free(output)
        _sys.EK_FREED(_sys.EK_OUTPUT)
    return 0


cdef int output_append(Output *output, bytes data) except -1:
    cdef PyObject **grown
    cdef Py_ssize_t room
    if output.end == output.room:
        if output.first > output.room // 2:         # more than half of it is sent: move up
            output.end -= output.first
            memmove(output.parts, output.parts + output.first, output.end * sizeof(PyObject *))
            output.first = 0
        else:
            room = output.room * 2 if output.room else 4
            grown = <PyObject **>realloc(output.parts, room * sizeof(PyObject *))
            if grown == NULL:
                raise MemoryError()
            output.parts = grown
            output.room = room
    Py_INCREF(data)
    output.parts[output.end] = <PyObject *>data
    output.end += 1
    output.size += PyBytes_GET_SIZE(data)
    return 0


cdef ssize_t output_send(const Output *output, int fd) noexcept:
    """One sendmsg of what is queued: bytes taken by the socket, or -errno."""
    cdef _sys.iovec vector[SEND_PARTS]
    cdef Py_ssize_t count = min(output.end - output.first, <Py_ssize_t>SEND_PARTS)
    cdef Py_ssize_t skip = output.offset
    cdef Py_ssize_t i
    for i in range(count):
        vector[i].iov_base = PyBytes_AS_STRING(<bytes>output.parts[output.first + i]) + skip
        vector[i].iov_len = PyBytes_GET_SIZE(<bytes>output.parts[output.first + i]) - skip
        skip = 0
    return _sys.ek_send_parts(fd, vector, count)


cdef int output_drop_sent(Output *output, Py_ssize_t count) noexcept:
    cdef Py_ssize_t left
    output.size -= count
    while count > 0:
        left = PyBytes_GET_SIZE(<bytes>output.parts[output.first]) - output.offset
        if count < left:
            output.offset += count
            return 0
        count -= left
        Py_DECREF(<object>output.parts[output.first])       # sent: let go of it now, not when all is sent
        output.first += 1
        output.offset = 0
    return 0


cdef bint rests(Stream stream, uint32_t events) noexcept:
    """Whether no edge is lost when the stream reads no further for now."""
    cdef int64_t last = _sys.ek_last_recv()
    if stream.slot.flags & SLOT_READY or stream.state & (STREAM_PAUSED | STREAM_CLOSING | STREAM_ENDED):
        return True
    return last <= 0 or (last < READ_ROOM_BYTES and stream.slot.flags & SLOT_TCP and not events & MORE_THAN_A_READ)


cdef class Stream(_core.Endpoint):
    """A buffered connection. Subclass it, and give the class to `Loop.listen`.

    Upcalls, all from the loop's thread; after `on_close` there is none:
        on_open()           connected; the first of all
        on_data(data)       bytes arrived, in order, at least one. An edge is reported once and the stream reads until
                            there is nothing left, so the next call may follow at once; one fast peer does not starve
                            the others.
        on_eof()            the peer sent its last byte; this side may go on writing. Default: `close()`.
        on_error(error)     the connection broke (OSError). `on_close(error)` follows.
        on_close(error)     closed; error is None, or what ended it. Called at the end of the turn, never from inside
                            a call to `close()` or `abort()`.

    An exception in an upcall ends this connection, is reported once (`Loop.set_exception_handler`), and reaches
    on_close.

    What one upcall writes leaves as one system call. What the socket does not take is queued, up to `write_limit`
    bytes; beyond it the peer is taken for one that does not read, and the connection is reset (LimitReached in
    on_close).

    No method is thread-safe; from another thread use `Loop.call_soon_threadsafe`.
    """

    write_limit = 16777216      # bytes

    def __cinit__(self):
        _sys.EK_MADE(_sys.EK_STREAM)

    def __dealloc__(self):
        _sys.EK_FREED(_sys.EK_STREAM)
        output_free(self.output)

    def on_open(self):
        pass

    def on_data(self, data):
        pass

    def on_eof(self):
        self.close()

    def on_error(self, error):
        pass

    def on_close(self, error):
        pass

    # -- what a user calls ---------------------------------------------------------------------------------------------

    def write(self, data):
        """Send bytes (any bytes-like object; `bytes` are not copied when large). UsageError once closed or closing."""
        cdef bytes owner = data if type(data) is bytes else bytes(memoryview(data))
        self.owner().check_usable()
        if self.state & STREAM_CLOSING:
            raise UsageError(f"this {type(self).__name__} is closing; nothing can be written after close()")
        self.put(PyBytes_AS_STRING(owner), PyBytes_GET_SIZE(owner), owner)

    def close(self):
        """Send what is queued, then close. Nothing more is delivered to on_data. A peer that reads none of it for 30
        seconds is reset; one that goes on sending has 5 seconds to read the end of it. Closing twice does nothing."""
        if self.slot != NULL:
            self.owner().check_usable()
            self.close_softly(STREAM_MAY_LINGER)

    def abort(self):
        """Close at once with a reset (RST); what is queued is lost. On a closed stream nothing happens."""
        cdef _core.Loop loop
        if self.slot != NULL:
            loop = self.owner()
            loop.check_usable()
            _sys.ek_reset_on_close(self.slot.fd)
            loop.release(self.slot, None)

    def call_soon(self, function, *arguments):
        """As `Loop.call_soon`, but it dies with this stream."""
        cdef Loop loop = self.owner()
        loop.check_usable()
        return loop.call_bound(self, None, function, arguments)

    def call_later(self, seconds, function, *arguments):
        """As `Loop.call_later`, but it dies with this stream."""
        cdef Loop loop = self.owner()
        loop.check_usable()
        return loop.call_bound(self, seconds, function, arguments)

    @property
    def is_closing(self):
        """Whether it is closed, or close() was called."""
        return self.slot == NULL or (self.state & STREAM_CLOSING) != 0

    @property
    def peer_address(self):
        """The other end: (host, port), for IPv6 too; a unix path, "" if it has none; None once closed."""
        return self.address(True)

    @property
    def local_address(self):
        """This end, in the same form; None once closed."""
        return self.address(False)

    def __repr__(self):
        state = "closed" if self.slot == NULL else f"fd={self.slot.fd}{' closing' if self.is_closing else ''}"
        return f"<{type(self).__name__} {state}>"

    cdef object address(self, bint peer):
        cdef _sys.sockaddr_storage storage
        cdef char host[256]
        cdef int length, family
        cdef int port = 0
        if self.slot == NULL:
            return None
        length = _sys.ek_socket_name(self.slot.fd, peer, &storage)
        if length < 0:
            return None                         # ENOTCONN: reset between its event and now
        family = _sys.ek_read_address(&storage, length, host, &port)
        if family != _sys.AF_UNIX:
            return host.decode(), port
        path = PyBytes_FromStringAndSize(host, max(port, 0))
        return os.fsdecode(path if path[:1] == b"\0" else path.rstrip(b"\0"))

    # -- the protocol's side: Python's upcalls by default --------------------------------------------------------------

    cdef int take_open(self) except -1:
        self.on_open()
        return 0

    cdef int take_data(self, const char *data, Py_ssize_t length) except -1:
        EK_ASSERT(self.slot != NULL)
        self.on_data(PyBytes_FromStringAndSize(data, length))
        return 0

    cdef int take_end(self) except -1:
        EK_ASSERT(self.slot != NULL and self.error == 0)
        self.on_eof()
        return 0

    cdef int take_sent(self) except -1:
        return 0

    cdef int take_deadline(self) except -1:
        return 0

    # -- the core's upcalls --------------------------------------------------------------------------------------------

    cdef int on_opened(self) except -1:
        cdef Loop loop = <Loop?><object>self.loop_link
        self.cork(loop)
        try:
            self.take_open()
        except BaseException:
            self.cut_short(loop)
            raise
        return self.uncork(loop)

    cdef int on_ready(self, uint32_t events) except -1:
        """ERR and RDHUP are looked at before IN, and as flags: they say what the read will find at its end. Bytes that
        came before them are delivered first, for a peer may send its request and its FIN in one go.
        """
        cdef Loop loop = <Loop>self.loop_link
        self.cork(loop)
        try:
            if events & INPUT:
                self.read(loop, events)
                if _sys.EPOLLKIT_DEBUG and self.slot != NULL:
                    EK_ASSERT(rests(self, events))
            if events & _sys.EPOLLOUT and self.slot != NULL and self.output != NULL:
                self.send_queued()
        except BaseException:
            self.cut_short(loop)
            raise
        return self.uncork(loop)

    cdef int send_queued(self) except -1:
        """The socket has room again."""
        cdef Py_ssize_t before = self.output.size
        self.state &= ~<uint16_t>STREAM_BLOCKED
        self.flush()
        if self.slot == NULL or (self.output != NULL and self.output.size == before):
            return 0
        if self.state & STREAM_CLOSING:
            return self.set_deadline_ns(CLOSE_TIMEOUT_NS)       # counts from the last progress
        return self.take_sent()

    cdef int on_deadline(self) except -1:
        cdef Loop loop = <Loop>self.loop_link
        if self.state & STREAM_DRAINING:        # it had its time to read the end
            return loop.release(self.slot, None)
        if self.state & STREAM_CLOSING:
            return self.end_with(TimeoutError("the peer does not read what was written before close()"))
        self.cork(loop)
        try:
            self.take_deadline()
        except BaseException:
            self.cut_short(loop)
            raise
        return self.uncork(loop)

    cdef int on_closed(self, object reason) except -1:
        self.drop_output()
        if reason is None and self.error:       # it broke, and then its own handler closed it
            reason = OSError(self.error, strerror(self.error).decode())
        self.on_close(reason)
        return 0

    # -- output --------------------------------------------------------------------------------------------------------

    cdef int cork(self, Loop loop) except -1:
        EK_ASSERT(loop.scratch_used == 0)
        self.state |= STREAM_CORKED
        loop.scratch_used = 0
        return 0

    cdef int uncork(self, Loop loop) except -1:
        """The upcall is over: what it wrote leaves now, in one send."""
        self.state &= ~<uint16_t>STREAM_CORKED
        if self.slot == NULL:
            loop.scratch_used = 0
            return 0
        if loop.scratch_used or self.output != NULL:
            self.flush()
        if self.state & STREAM_CLOSING and self.slot != NULL and self.output == NULL:
            self.finish()
        return 0

    cdef int cut_short(self, Loop loop) except -1:
        """An exception ends the upcall: what it wrote is queued, in case that the stream survives."""
        self.state &= ~<uint16_t>STREAM_CORKED
        return self.spill(loop)

    cdef int spill(self, Loop loop) except -1:
        """Move what was gathered to the queue: something larger follows, or an exception cuts the upcall short."""
        if loop.scratch_used and self.slot != NULL:
            data = PyBytes_FromStringAndSize(loop.scratch, loop.scratch_used)
            loop.scratch_used = 0
            self.queue(data)
        loop.scratch_used = 0
        return 0

    cdef int put(self, const char *data, Py_ssize_t length, bytes owner) except -1:
        """Send these bytes in order with all others. owner: the bytes object they are in, or None to have them
        copied."""
        cdef Loop loop
        if self.slot == NULL or length == 0 or self.error:      # error: the reader is about to report it
            return 0
        loop = <Loop>self.loop_link
        if self.state & STREAM_CORKED and self.output == NULL:
            if length <= SCRATCH_PIECE_BYTES and length <= SCRATCH_BYTES - loop.scratch_used:
                memcpy(loop.scratch + loop.scratch_used, data, length)
                loop.scratch_used += length
                return 0
            self.spill(loop)
        return self.queue(owner if owner is not None else PyBytes_FromStringAndSize(data, length))

    cdef int queue(self, bytes data) except -1:
        cdef Loop loop
        cdef Output *output
        cdef Py_ssize_t limit
        if self.output == NULL:
            self.output = output_new(PY_SSIZE_T_MAX)    # first: what somebody's write_limit writes is queued, too
            try:
                limit = self.write_limit
            except BaseException:
                self.drop_output()
                raise
            if self.output != NULL:
                self.output.limit = limit
        if self.slot == NULL:
            return self.drop_output()
        loop = <Loop>self.loop_link
        output = self.output
        output_append(output, data)
        if output.size + (output.end - output.first - 1) * PART_COST_BYTES > output.limit:
            return self.end_with(LimitReached(
                f"{output.size} bytes wait for a peer that does not read, write_limit is {output.limit}"))
        EK_ASSERT(output.size <= output.limit)
        if not self.state & (STREAM_CORKED | STREAM_BLOCKED):
            loop.make_ready(self.slot, _sys.EPOLLOUT)       # leaves with whatever else is written until then
        return 0

    cdef int drop_output(self) noexcept:
        output_free(self.output)
        self.output = NULL
        return 0

    cdef int end_with(self, object reason) except -1:
        """Reset. The reason is made before the slot is looked at: allocating may run the collector, so anything."""
        if self.slot == NULL:
            return 0
        _sys.ek_reset_on_close(self.slot.fd)
        return self.owner().release(self.slot, reason)

    cdef int flush(self) except -1:
        """Give the socket what there is. What it does not take waits for OUT."""
        cdef Loop loop
        cdef ssize_t sent
        cdef Py_ssize_t offered
        if self.slot == NULL:
            return 0
        loop = <Loop>self.loop_link
        if loop.scratch_used and self.output == NULL:
            offered = loop.scratch_used
            loop.scratch_used = 0
            sent = _sys.ek_send(self.slot.fd, loop.scratch, offered)
            if sent == offered:
                return 0
            if sent < 0 and sent != -errno.EAGAIN:
                return self.write_failed(<int>-sent)
            sent = max(sent, 0)
            self.block()
            return self.queue(PyBytes_FromStringAndSize(loop.scratch + sent, offered - sent))
        while self.output != NULL and not self.state & STREAM_BLOCKED:
            sent = output_send(self.output, self.slot.fd)
            if sent == -errno.EAGAIN:
                return self.block()
            if sent < 0:
                return self.write_failed(<int>-sent)
            output_drop_sent(self.output, sent)
            if self.output.size == 0:
                self.unblock()
        return 0

    cdef int block(self) except -1:
        """The socket is full: from now on it is watched for OUT."""
        self.state |= STREAM_BLOCKED
        if self.state & STREAM_OUT_WATCHED:
            return 0
        if self.slot.events == 0:               # still in take_open, before the epoll set: come back next turn
            return self.owner().make_ready(self.slot, _sys.EPOLLOUT)
        self.state |= STREAM_OUT_WATCHED
        return self.owner().rewatch(self.slot, self.slot.events | _sys.EPOLLOUT)

    cdef int unblock(self) except -1:
        """All is sent. TCP stays watched: it raises OUT only after it was full; a unix socket, whenever its peer
        reads."""
        self.drop_output()
        if self.state & STREAM_OUT_WATCHED and not self.slot.flags & SLOT_TCP:
            self.state &= ~<uint16_t>STREAM_OUT_WATCHED
            return self.owner().rewatch(self.slot, self.slot.events & ~_sys.EPOLLOUT)
        return 0

    cdef int write_failed(self, int code) except -1:
        """The peer is gone, and this call has consumed the pending error: keep it. Bytes that came before are still
        to be read, so the verdict is the reader's, who reports this error at their end.
        """
        cdef Loop loop = <Loop>self.loop_link
        self.drop_output()
        if self.error == 0:
            self.error = code
        if self.state & (STREAM_CLOSING | STREAM_ENDED):
            return self.broken(_sys.EPOLLERR)
        self.state &= ~<uint16_t>STREAM_PAUSED
        loop.make_ready(self.slot, <uint16_t>(_sys.EPOLLIN | _sys.EPOLLERR))
        return 0

    # -- input ---------------------------------------------------------------------------------------------------------

    cdef int read(self, Loop loop, uint32_t events) except -1:
        cdef Py_ssize_t budget = READ_BUDGET_BYTES
        cdef ssize_t count
        while self.slot != NULL and not self.state & (STREAM_PAUSED | STREAM_CLOSING | STREAM_ENDED):
            if budget <= 0:
                return loop.make_ready(self.slot, <uint16_t>events)
            count = _sys.ek_recv(self.slot.fd, loop.input, READ_ROOM_BYTES)
            if count > 0:
                budget -= count
                self.take_data(loop.input, count)
                if count < READ_ROOM_BYTES and not events & MORE_THAN_A_READ and self.slot != NULL \
                        and self.slot.flags & SLOT_TCP:
                    return 0            # drained, and one recv saved; without the flags, whatever follows is a new edge
            elif count == 0:
                return self.end(events)
            elif count == -errno.EAGAIN:
                break
            else:
                return self.read_failed(<int>-count)
        if self.slot == NULL:
            return 0
        if self.state & STREAM_DRAINING:
            return self.drain(loop)
        if self.state & STREAM_PAUSED:
            return 0
        return self.broken(events) if events & (_sys.EPOLLERR | _sys.EPOLLHUP) else 0

    cdef int read_failed(self, int code) except -1:
        if self.error == 0:
            self.error = code
        return self.broken(_sys.EPOLLERR)

    cdef int end(self, uint32_t events) except -1:
        """recv said 0. After an error that only means that somebody has read the error already: a truncated stream
        must not pass for a complete one. With HUP or ERR the peer is gone altogether, which no further edge will say.
        """
        if self.error:
            return self.broken(_sys.EPOLLERR)
        self.state |= STREAM_ENDED
        self.take_end()
        if self.slot == NULL or not events & (_sys.EPOLLERR | _sys.EPOLLHUP):
            return 0
        if events & _sys.EPOLLERR:
            return self.broken(events)
        return self.owner().make_ready(self.slot, _sys.EPOLLHUP)    # once what take_end wrote was tried

    cdef int broken(self, uint32_t events) except -1:
        """ERR or HUP, and everything that was buffered has been delivered: the one place that reads SO_ERROR."""
        if self.error == 0 and events & _sys.EPOLLERR:
            EK_ASSERT(self.error == 0)
            self.error = _sys.ek_take_error(self.slot.fd)
        if self.error == 0 and self.output != NULL:
            self.error = errno.EPIPE            # what a send would say
        error = OSError(self.error, strerror(self.error).decode()) if self.error else None
        if error is not None and not self.state & STREAM_CLOSING:
            self.on_error(error)
        if self.slot != NULL:
            self.owner().release(self.slot, error)
        return 0

    cdef int pause(self) except -1:
        """Stop reading. FIN and RST are still noticed, as flags."""
        self.state |= STREAM_PAUSED
        return 0

    cdef int resume(self) except -1:
        """Read again, as if a new edge had come: the one that came meanwhile is spent."""
        cdef Loop loop
        if self.slot == NULL or not self.state & STREAM_PAUSED:
            return 0
        loop = <Loop>self.loop_link
        self.state &= ~<uint16_t>STREAM_PAUSED
        return loop.make_ready(self.slot, <uint16_t>(_sys.EPOLLIN | (
            _sys.EPOLLRDHUP if self.slot.flags & SLOT_PEER_CLOSED else 0)))

    # -- closing -------------------------------------------------------------------------------------------------------

    cdef int set_deadline_ns(self, int64_t duration_ns) except -1:
        """`take_deadline` once that long has passed, by the cheap clock: up to two ticks late, never early; 0
        disarms."""
        cdef Loop loop
        if self.slot == NULL:
            return 0
        loop = <Loop>self.loop_link
        return loop.set_deadline(self.slot, _sys.ek_tick_ns() + _sys.EK_TICK_NS + duration_ns if duration_ns else 0)

    cdef int close_softly(self, uint16_t linger) except -1:
        """linger: STREAM_LINGERS where input may still be on its way, for closing over it would reset the connection
        and destroy the answer; STREAM_MAY_LINGER to ask the socket; 0 where nothing can be lost."""
        if self.slot == NULL or self.state & STREAM_CLOSING:
            return 0
        self.state |= STREAM_CLOSING | linger
        self.set_deadline_ns(CLOSE_TIMEOUT_NS)
        if self.state & STREAM_CORKED or self.output != NULL:
            return 0                            # uncork() finishes, or the flush that empties the queue
        return self.finish()

    cdef int finish(self) except -1:
        """Closing, and everything is sent."""
        cdef Loop loop = <Loop>self.loop_link
        if self.state & STREAM_MAY_LINGER and _sys.ek_holds_bytes(self.slot.fd):
            self.state |= STREAM_LINGERS
        if not self.state & STREAM_LINGERS or self.state & STREAM_ENDED:
            return loop.release(self.slot, None)
        if self.state & STREAM_DRAINING:
            return 0
        self.state |= STREAM_DRAINING
        _sys.ek_shutdown_write(self.slot.fd)
        self.set_deadline_ns(LINGER_TIMEOUT_NS)
        return loop.make_ready(self.slot, _sys.EPOLLIN)

    cdef int drain(self, Loop loop) except -1:
        """Throw input away until the peer's end, within limits."""
        cdef ssize_t count
        while True:
            count = _sys.ek_recv(self.slot.fd, loop.input, READ_ROOM_BYTES)
            if count == -errno.EAGAIN:
                return 0
            if count <= 0 or self.lingered == LINGER_READS:
                return loop.release(self.slot, None)
            self.lingered += 1

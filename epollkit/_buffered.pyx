"""`Buffered`, and the `Loop` that has buffers for it."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc cimport errno
from libc.stdint cimport int64_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, strerror

cimport epollkit._core as _core
cimport epollkit._raw as _raw
cimport epollkit._sys as _sys
from epollkit._bytes cimport basin_free, basin_new, basin_take
from epollkit._output cimport (
    Output, output_append, output_append_file, output_cost, output_drop_sent, output_free, output_is_empty, output_new,
    output_send,
)
from epollkit._slots cimport SLOT_PEER_CLOSED, SLOT_READY, SLOT_TCP
from epollkit._sys cimport EK_ASSERT, EK_POISON, EK_UNPOISON

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
        self.scratch = <char *>malloc(SCRATCH_BYTES)
        if self.scratch == NULL:
            raise MemoryError()
        basin_new(&self.basin, READ_ROOM_BYTES)
        self.input = PyBytes_AS_STRING(<object>self.basin.object)
        EK_POISON(self.input, READ_ROOM_BYTES)
        EK_POISON(self.scratch, SCRATCH_BYTES)
        self.kept = {}

    def __dealloc__(self):
        if self.input != NULL:
            EK_UNPOISON(self.input, READ_ROOM_BYTES)
        basin_free(&self.basin)
        free(self.scratch)
        Py_XDECREF(self.spare.object)

    cdef int drop_everything(self) except -1:
        _raw.Loop.drop_everything(self)
        self.kept.clear()
        return 0

    cdef bytes take_input(self):
        """All READ_ROOM_BYTES of the input, for a handler."""
        data = basin_take(&self.basin, READ_ROOM_BYTES)
        self.input = PyBytes_AS_STRING(<object>self.basin.object)
        return data


cdef bint rests(Buffered connection, uint32_t events) noexcept:
    """Whether no edge is lost when the connection reads no further for now."""
    cdef int64_t last = _sys.ek_last_recv()
    if connection.slot.flags & SLOT_READY or connection.state & (STREAM_READS_NOT | STREAM_EARLY):
        return True
    return last <= 0 or (last < READ_ROOM_BYTES and connection.slot.flags & SLOT_TCP and not events & MORE_THAN_A_READ)


cdef object broken_by(int code):
    return OSError(code, strerror(code).decode())


cdef class Buffered(_core.Endpoint):
    """A buffered connection, and nothing more: what `Connection` adds TLS and rate limits to.

    An exception in an upcall ends this connection, is reported once (`Loop.set_exception_handler`), and is the reason
    with which it closes. What one upcall writes leaves as one system call. What the socket does not take is queued, up
    to `write_limit` bytes; beyond it the peer is taken for one that does not read, and the connection is reset.

    No method is thread-safe; from another thread use `Loop.call_soon_threadsafe`.
    """

    write_limit = 16777216      # bytes

    def __cinit__(self):
        _sys.EK_MADE(_sys.EK_STREAM)

    def __dealloc__(self):
        _sys.EK_FREED(_sys.EK_STREAM)
        output_free(self.output)

    # -- what a user calls ---------------------------------------------------------------------------------------------

    def write(self, data):
        """Send bytes (any bytes-like object; `bytes` are not copied when large). UsageError once closed or closing."""
        cdef bytes owner = data if type(data) is bytes else bytes(memoryview(data))
        self.check_writable()
        self.put(PyBytes_AS_STRING(owner), PyBytes_GET_SIZE(owner), owner)

    cdef Loop usable(self):
        """Its loop. UsageError once it is closed, after it was given back to its pool, and from another thread."""
        cdef Loop loop = <Loop>self.owner()
        loop.check_usable()
        if self.state & STREAM_RESTS:
            raise UsageError(f"this {type(self).__name__} was given back to its pool; the next to have it is somebody "
                             "else")
        return loop

    cdef int check_writable(self) except -1:
        self.owner().check_usable()
        if self.state & (STREAM_CLOSING | STREAM_SHUT | STREAM_SHUT_DUE | STREAM_EARLY):
            self.usable()
            what = ("is closing; nothing can be written after close()" if self.state & STREAM_CLOSING else
                    "is not open yet; on_open is the first that may write" if self.state & STREAM_EARLY else
                    "has shut down its side; nothing can be written after shutdown_write()")
            raise UsageError(f"this {type(self).__name__} {what}")
        return 0

    def close(self):
        """Send what is queued, then close. Nothing more is delivered to on_data. A peer that reads none of it for 30
        seconds is reset; one that goes on sending has 5 seconds to read the end of it. Closing twice does nothing."""
        if self.slot != NULL:
            self.usable()
            self.close_softly(STREAM_MAY_LINGER)

    def abort(self, error=None):
        """Close at once with a reset (RST); what is queued is lost. On a closed stream nothing happens. error: an
        exception that on_close is to be told, where a protocol has found out what is wrong."""
        cdef Loop loop
        if error is not None and not isinstance(error, BaseException):
            raise UsageError(f"abort() is told why by an exception, not by {error!r}")
        if self.slot != NULL:
            loop = self.usable()
            _sys.ek_reset_on_close(self.slot.fd)
            loop.release(self.slot, error)

    def call_soon(self, function, *arguments):
        """As `Loop.call_soon`, but it dies with this stream."""
        return self.usable().call_bound(self, None, function, arguments)

    def call_later(self, seconds, function, *arguments):
        """As `Loop.call_later`, but it dies with this stream."""
        return self.usable().call_bound(self, seconds, function, arguments)

    @property
    def is_closing(self):
        """Whether it is closed, or close() was called."""
        return self.slot == NULL or (self.state & STREAM_CLOSING) != 0

    @property
    def peer_closed(self):
        """Whether the peer has shut down its side, or is gone, or this end is closed. Known before all that it sent has
        been read, and while reading is paused."""
        return self.slot == NULL or (self.state & STREAM_ENDED) != 0 or (self.slot.flags & SLOT_PEER_CLOSED) != 0

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

    # -- the protocol's side: what it does not override does nothing ---------------------------------------------------

    cdef int take_open(self) except -1:
        return 0

    cdef int take_data(self, const char *data, Py_ssize_t length) except -1:
        return 0

    cdef int take_end(self) except -1:
        return self.close_softly(STREAM_MAY_LINGER)

    cdef int take_full(self) except -1:
        return 0

    cdef int take_sent(self) except -1:
        return 0

    cdef int take_room(self) except -1:
        self.state &= ~<uint32_t>STREAM_TELLS_ROOM
        return 0

    cdef int take_deadline(self) except -1:
        return 0

    cdef int take_error(self, object error) except -1:
        return 0

    cdef int take_closed(self, object reason) except -1:
        return 0

    # -- the core's upcalls --------------------------------------------------------------------------------------------

    cdef int on_opened(self) except -1:
        if self.slot.events & _sys.EPOLLOUT:            # a connector has watched it for that
            self.state |= STREAM_OUT_WATCHED
        if not self.state & STREAM_SECURE:
            return self.open_up()
        return self.start_shaking()

    cdef int open_up(self) except -1:
        cdef Loop loop = <Loop?><object>self.loop_link
        self.cork(loop)
        try:
            self.take_open()
            if self.state & STREAM_KEPT and self.slot != NULL:
                self.tell_keeper("opened", None)
            return self.uncork(loop)
        except BaseException:
            self.cut_short(loop)
            raise

    cdef int on_ready(self, uint32_t events) except -1:
        """ERR and RDHUP are looked at before IN, and as flags: they say what the read will find at its end. Bytes that
        came before them are delivered first, for a peer may send its request and its FIN in one go.
        """
        cdef Loop loop = <Loop>self.loop_link
        if self.state & STREAM_EARLY:
            return self.on_ready_early(events)
        self.cork(loop)
        try:
            if events & INPUT:
                self.read(loop, events)
                if _sys.EPOLLKIT_DEBUG and self.slot != NULL:
                    EK_ASSERT(rests(self, events))
            if events & _sys.EPOLLOUT and self.slot != NULL:
                if has_unsent(self):
                    self.send_queued()
                if self.state & (STREAM_TELLS_ROOM | STREAM_CLOSING) == STREAM_TELLS_ROOM and self.slot != NULL:
                    self.take_room()
            return self.uncork(loop)
        except BaseException:
            self.cut_short(loop)
            raise

    cdef int send_queued(self) except -1:
        """The socket has room again."""
        cdef int64_t before = self.unsent()
        self.state &= ~<uint32_t>STREAM_BLOCKED
        self.flush()
        if self.slot == NULL or self.unsent() == before:
            return 0
        if self.state & STREAM_CLOSING:
            return self.set_deadline_ns(CLOSE_TIMEOUT_NS)       # counts from the last progress
        return self.take_sent()

    cdef int on_deadline(self) except -1:
        cdef Loop loop = <Loop>self.loop_link
        if self.state & STREAM_RESTS:
            return self.rested()
        if self.state & STREAM_DRAINING:                # it had its time to read the end
            return loop.release(self.slot, None)
        if self.state & STREAM_CLOSING:
            if self.state & STREAM_OUT_WAITS:                   # for our own rate limit
                return self.set_deadline_ns(CLOSE_TIMEOUT_NS)
            return self.end_with(TimeoutError("the peer does not read what was written before close()"))
        if self.state & STREAM_SHAKING:
            return self.shaken_too_long()
        self.cork(loop)
        try:
            self.take_deadline()
            return self.uncork(loop)
        except BaseException:
            self.cut_short(loop)
            raise

    cdef int on_closed(self, object reason) except -1:
        self.let_go()
        if reason is None and self.error:       # it broke, and then its own handler closed it
            reason = broken_by(self.error)
        if not self.state & STREAM_KEPT:
            return self.take_closed(reason)
        try:
            self.take_closed(reason)
        finally:
            self.tell_keeper("closed", reason)
        return 0

    cdef int tell_keeper(self, str what, object reason) except -1:
        """"opened", and it is the keeper's; at rest "expired", "ended" or "spoke"; and at last "closed"."""
        cdef Loop loop = <Loop>self.loop_link
        cdef object name = <size_t><PyObject *>self
        keeper = loop.kept.pop(name, None) if what == "closed" else loop.kept.get(name)
        if keeper is not None:
            keeper(what, reason)
        return 0

    cdef bint owes(self) noexcept:
        return has_unsent(self) or (self.state & STREAM_CORKED and (<Loop>self.loop_link).scratch_used > 0)

    cdef int let_go(self) except -1:
        return self.drop_output()

    # -- output --------------------------------------------------------------------------------------------------------

    cdef int cork(self, Loop loop) except -1:
        EK_ASSERT(loop.scratch_used == 0)
        EK_UNPOISON(loop.scratch, SCRATCH_BYTES)
        self.state |= STREAM_CORKED
        loop.scratch_used = 0
        return 0

    cdef int uncork(self, Loop loop) except -1:
        """The upcall is over: what it wrote leaves now, in one send. Corked until then: only so is it known whose the
        scratch buffer's bytes are."""
        if self.slot != NULL and (loop.scratch_used or (self.output != NULL or self.state & STREAM_SECURE)
                                  and not self.slot.pending & _sys.EPOLLOUT):
            self.flush()                        # SECURE: TLS may have to answer. Pending: its budget for now is spent
        self.state &= ~<uint32_t>STREAM_CORKED
        if loop.scratch_used:
            self.spill_or_end(loop)             # what a finalizer wrote while that was sent
        EK_POISON(loop.scratch, SCRATCH_BYTES)
        if self.slot != NULL and self.state & STREAM_AFTER_SENT and not has_unsent(self):
            return self.all_sent()
        return 0

    cdef int all_sent(self) except -1:
        """What waited for everything to be sent."""
        if self.state & STREAM_TELLS_ROOM:
            self.owner().make_ready(self.slot, _sys.EPOLLOUT)
        if self.state & STREAM_SHUT_DUE:
            self.shut_now()
        if self.state & STREAM_CLOSING and self.slot != NULL and not has_unsent(self):     # TLS: nor our own end
            return self.finish()
        return 0

    cdef int cut_short(self, Loop loop) except -1:
        """An exception ends the upcall: what it wrote is queued, in case that the connection survives."""
        if not self.state & STREAM_CORKED:
            return 0
        self.state &= ~<uint32_t>STREAM_CORKED
        self.spill_or_end(loop)
        EK_POISON(loop.scratch, SCRATCH_BYTES)
        return 0

    cdef int spill_or_end(self, Loop loop) except -1:
        """Nobody gathers any more. Without the memory to keep what was gathered the connection is reset: were it to go
        on, there would be a gap."""
        try:
            self.spill(loop)
        except MemoryError as error:
            loop.scratch_used = 0
            self.end_with(error)
        return 0

    cdef int spill(self, Loop loop) except -1:
        """Move what was gathered to the queue: something larger follows, or an exception cuts the upcall short. Only
        for the one that has gathered it."""
        cdef Py_ssize_t gathered = loop.scratch_used
        loop.scratch_used = 0                   # first: write_limit may be a property, and send a file
        try:
            if gathered and self.slot != NULL:
                self.queue(PyBytes_FromStringAndSize(loop.scratch, gathered), True)
        except MemoryError:
            loop.scratch_used = gathered
            raise
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
        return self.queue(owner if owner is not None else PyBytes_FromStringAndSize(data, length), False)

    cdef int put_file(self, int file, int64_t offset, int64_t count) except -1:
        """Send a piece of a file, in order with everything else. The descriptor is the queue's from here on."""
        try:
            if self.state & STREAM_CORKED:
                self.spill(<Loop>self.loop_link)
            self.start_queue(None)
            if self.output == NULL or self.slot == NULL:
                raise UsageError(f"this {type(self).__name__} was closed by what it asked")
            output_append_file(self.output, file, offset, count)
        except BaseException:
            _sys.ek_close(file)
            raise
        return self.queued()

    cdef int start_queue(self, bytes first) except -1:
        cdef Py_ssize_t limit
        if self.output != NULL:
            return 0
        self.output = output_new(first)         # first: what somebody's write_limit writes is queued, too
        if self.output == NULL:
            raise MemoryError()
        try:
            limit = self.hard_limit()
        except BaseException:
            self.drop_output()
            raise
        if self.output != NULL:
            self.output.limit = limit
        return 0 if self.slot != NULL else self.drop_output()

    cdef Py_ssize_t hard_limit(self) except -1:
        return self.write_limit

    cdef int queue(self, bytes data, bint gathered) except -1:
        """gathered: it was written before what somebody's write_limit may write now; else it goes behind that."""
        cdef bint leads = gathered and self.output == NULL
        self.start_queue(data if leads else None)
        if self.output != NULL and not leads:
            output_append(self.output, data)
        return self.queued() if self.output != NULL else 0

    cdef int queued(self) except -1:
        """One more part is in the queue: it leaves with whatever else is written until the next turn."""
        cdef Output *output = self.output
        if output_cost(output) > output.limit:
            return self.end_with(LimitReached(
                f"{output.size} bytes wait for a peer that does not read, write_limit is {output.limit}"))
        EK_ASSERT(output.size <= output.limit)
        if not self.state & (STREAM_CORKED | STREAM_BLOCKED | STREAM_OUT_WAITS):
            self.owner().make_ready(self.slot, _sys.EPOLLOUT)
        return 0

    cdef int drop_output(self) noexcept:
        output_free(self.output)
        self.output = NULL
        self.state &= ~<uint32_t>STREAM_SEALED
        return 0

    cdef int end_with(self, object reason) except -1:
        """Reset. The reason is made before the slot is looked at: allocating may run the collector, so anything."""
        if self.slot == NULL:
            return 0
        _sys.ek_reset_on_close(self.slot.fd)
        return self.owner().release(self.slot, reason)

    cdef int flush(self) except -1:
        """Give the socket what there is. What it does not take waits for OUT. Called from another one's upcall,
        too: then the scratch buffer is that one's."""
        cdef Loop loop
        cdef ssize_t sent
        cdef Py_ssize_t offered
        if self.slot == NULL:
            return 0
        loop = <Loop>self.loop_link
        if self.state & STREAM_FILTERED:
            return self.flush_filtered(loop)
        if loop.scratch_used and self.output == NULL and self.state & STREAM_CORKED:
            offered = loop.scratch_used
            loop.scratch_used = 0
            sent = _sys.ek_send(self.slot.fd, loop.scratch, offered)
            if sent == offered:
                return 0
            if sent < 0 and sent != -errno.EAGAIN:
                return self.write_failed(<int>-sent)
            sent = max(sent, 0)
            self.state |= STREAM_BLOCKED
            try:
                self.queue(PyBytes_FromStringAndSize(loop.scratch + sent, offered - sent), True)
            except MemoryError as error:        # half of it is sent
                self.end_with(error)
            return self.block() if self.slot != NULL else 0
        return self.flush_queue(loop) if self.output != NULL else 0

    cdef int flush_queue(self, Loop loop) except -1:
        cdef Py_ssize_t budget = WRITE_BUDGET_BYTES
        cdef Py_ssize_t most
        cdef ssize_t sent
        if self.state & STREAM_CORKED:
            self.spill(loop)
        while self.slot != NULL and self.output != NULL and not self.state & (STREAM_BLOCKED | STREAM_OUT_WAITS):
            if budget <= 0:                     # a file, and a peer that reads as fast as we send
                return loop.make_ready(self.slot, _sys.EPOLLOUT)
            most = self.write_room(budget)
            if most == 0:
                return 0
            sent = output_send(self.output, self.slot.fd, most)
            self.wrote(max(sent, 0))
            if sent == -errno.EAGAIN:
                return self.block()
            if sent == 0:
                return self.file_ended()
            if sent < 0:
                return self.write_failed(<int>-sent)
            budget -= sent
            output_drop_sent(self.output, sent)
            if output_is_empty(self.output):
                self.unblock()
        return 0

    cdef int file_ended(self) except -1:
        return self.end_with(OSError(errno.EIO, "a file became shorter while it was being sent; the rest of it, and "
                                                "what was written behind it, can't be sent"))

    cdef int block(self) except -1:
        """The socket is full: from now on it is watched for OUT."""
        self.state |= STREAM_BLOCKED
        if not self.state & STREAM_OUT_WATCHED:
            if self.slot.events == 0:           # still in take_open, before the epoll set: come back next turn
                return self.owner().make_ready(self.slot, _sys.EPOLLOUT)
            self.state |= STREAM_OUT_WATCHED
            self.owner().rewatch(self.slot, self.slot.events | _sys.EPOLLOUT)
        return self.take_full() if not self.state & (STREAM_CLOSING | STREAM_SHAKING) else 0

    cdef int unblock(self) except -1:
        """All is sent. TCP stays watched: it raises OUT only after it was full; a unix socket, whenever its peer
        reads."""
        self.drop_output()
        if self.state & STREAM_OUT_WATCHED and not self.slot.flags & SLOT_TCP:
            self.state &= ~<uint32_t>STREAM_OUT_WATCHED
            return self.owner().rewatch(self.slot, self.slot.events & ~_sys.EPOLLOUT)
        return 0

    cdef int write_failed(self, int code) except -1:
        """The peer is gone, and this call has consumed the pending error: keep it. Bytes that came before are still
        to be read, so the verdict is the reader's, who reports this error at their end: in a later turn, unless this is
        an upcall of its own, for nobody's call makes one. Nothing waits for room any more.
        """
        cdef Loop loop = <Loop>self.loop_link
        self.drop_output()
        _sys.ek_reset_on_close(self.slot.fd)    # if the peer is there after all: it must not take this for the end
        if self.error == 0:
            self.error = <uint16_t>code
        if self.state & STREAM_CLOSING or self.state & STREAM_ENDED and self.state & STREAM_CORKED:
            return self.broken(_sys.EPOLLERR)
        self.state &= ~<uint32_t>(STREAM_PAUSED | STREAM_TELLS_ROOM)
        loop.make_ready(self.slot, <uint16_t>(_sys.EPOLLIN | _sys.EPOLLERR))
        return 0

    # -- input ---------------------------------------------------------------------------------------------------------

    cdef int read(self, Loop loop, uint32_t events) except -1:
        cdef Py_ssize_t budget = READ_BUDGET_BYTES
        cdef Py_ssize_t room = READ_ROOM_BYTES
        cdef ssize_t count
        if self.state & STREAM_HOLDS and not self.state & STREAM_READS_NOT:
            self.take_held()
        while self.slot != NULL and not self.state & (STREAM_READS_NOT | STREAM_RESTS):
            if budget <= 0:
                return loop.make_ready(self.slot, <uint16_t>events)
            if self.state & STREAM_RATED:
                room = self.read_room()
                if room == 0:
                    break
            count = fill_input(loop, self.slot.fd, room)
            if self.state & STREAM_RATED:
                self.received(max(count, 0))
            if count > 0:
                budget -= count
                if self.state & STREAM_SECURE:
                    self.open_records(loop.input, count)
                else:
                    self.take_data(loop.input, count)
                EK_POISON(loop.input, READ_ROOM_BYTES)
                if self.output != NULL and not self.state & (STREAM_BLOCKED | STREAM_OUT_WAITS):
                    self.flush()        # large pieces go while they are in the cache, and before more of them come
                if count < room and not events & MORE_THAN_A_READ and self.slot != NULL \
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
        if self.state & (STREAM_PAUSED | STREAM_IN_WAITS | STREAM_RESTS):
            return 0
        return self.broken(events) if events & (_sys.EPOLLERR | _sys.EPOLLHUP) else 0

    cdef int read_failed(self, int code) except -1:
        if self.error == 0:
            self.error = <uint16_t>code
        return self.broken(_sys.EPOLLERR)

    cdef int end(self, uint32_t events) except -1:
        """recv said 0. After an error that only means that somebody has read the error already: a truncated stream
        must not pass for a complete one. With HUP or ERR the peer is gone altogether, which no further edge will say.
        """
        if self.error:
            return self.broken(_sys.EPOLLERR)
        if self.state & STREAM_SECURE:          # an end without TLS's own is none
            return self.cut_off()
        return self.ended(events)

    cdef int ended(self, uint32_t events) except -1:
        """The peer's last byte was delivered."""
        self.state |= STREAM_ENDED
        self.take_end()
        if self.slot == NULL:
            return 0
        if is_over(self):
            events |= _sys.EPOLLHUP
        if events & _sys.EPOLLERR:
            return self.broken(events)
        if events & _sys.EPOLLHUP:
            return self.owner().make_ready(self.slot, _sys.EPOLLHUP)    # once what take_end wrote was tried
        return 0

    cdef int broken(self, uint32_t events) except -1:
        """ERR or HUP, and everything that was buffered has been delivered: the one place that reads SO_ERROR."""
        if self.error == 0 and events & _sys.EPOLLERR:
            self.error = <uint16_t>_sys.ek_take_error(self.slot.fd)
        if self.error == 0 and has_unsent(self):
            self.error = errno.EPIPE            # what a send would say
        return self.break_with(broken_by(self.error) if self.error else None)

    cdef int break_with(self, object error) except -1:
        if error is not None and not self.state & STREAM_CLOSING and self.slot != NULL:
            try:
                self.take_error(error)
            except Exception:
                raise
            except BaseException:       # it was told: what is cut short is not begun anew
                if self.slot != NULL:
                    self.owner().release(self.slot, error)
                raise
        if self.slot != NULL:
            self.owner().release(self.slot, error)
        return 0

    cdef int pause(self) except -1:
        """Stop reading. FIN and RST are still noticed, as flags."""
        self.state |= STREAM_PAUSED
        if self.state & STREAM_RATED:           # what is granted now would be a second burst after a long pause
            self.received(0)
        return 0

    cdef int resume(self) except -1:
        if self.slot == NULL or not self.state & STREAM_PAUSED:
            return 0
        self.state &= ~<uint32_t>STREAM_PAUSED
        return self.read_on()

    cdef int read_on(self) except -1:
        """Read again, as if a new edge had come: the one that came meanwhile is spent. If it said something of the end,
        the kernel is asked to say it again: a HUP or an ERR behind the last byte would not be found by reading."""
        if self.state & STREAM_SECURE and is_over(self):        # in TLS, of which the kernel knows nothing
            return self.owner().make_ready(self.slot, _sys.EPOLLHUP)
        if self.slot.flags & SLOT_PEER_CLOSED:
            return self.owner().rewatch(self.slot, self.slot.events)
        return self.owner().make_ready(self.slot, _sys.EPOLLIN)

    # -- closing -------------------------------------------------------------------------------------------------------

    cdef int set_deadline_ns(self, int64_t duration_ns) except -1:
        """`take_deadline` once that long has passed, by the cheap clock: up to two ticks late, never early; 0
        disarms."""
        cdef Loop loop
        if self.slot == NULL:
            return 0
        loop = <Loop>self.loop_link
        return loop.set_deadline(self.slot, _sys.ek_tick_ns() + _sys.EK_TICK_NS + duration_ns if duration_ns else 0)

    cdef int close_softly(self, uint32_t linger) except -1:
        """linger: STREAM_LINGERS where input may still be on its way, for closing over it would reset the connection
        and destroy the answer; STREAM_MAY_LINGER to ask the socket; 0 where nothing can be lost."""
        if self.slot == NULL or self.state & STREAM_CLOSING:
            return 0
        if self.state & STREAM_EARLY:           # nothing was written
            return self.owner().release(self.slot, None)
        self.state |= STREAM_CLOSING | linger
        self.set_deadline_ns(CLOSE_TIMEOUT_NS)
        if self.state & STREAM_CORKED or has_unsent(self):
            return 0                            # uncork() finishes, or the flush that empties the queue
        return self.finish()

    cdef int finish(self) except -1:
        """Closing, and everything is sent."""
        cdef Loop loop = <Loop>self.loop_link
        if self.state & STREAM_SECURE and not self.state & STREAM_SHUT:
            self.shut_now()
            if self.slot == NULL or has_unsent(self):
                return 0
        if self.state & STREAM_MAY_LINGER and _sys.ek_holds_bytes(self.slot.fd):
            self.state |= STREAM_LINGERS
        if not self.state & STREAM_LINGERS or (self.state & STREAM_ENDED and not self.state & STREAM_SECURE):
            return loop.release(self.slot, None)
        if self.state & STREAM_DRAINING:
            return 0
        self.state |= STREAM_DRAINING
        _sys.ek_shutdown_write(self.slot.fd)
        self.set_deadline_ns(LINGER_TIMEOUT_NS)
        return loop.make_ready(self.slot, _sys.EPOLLIN)

    cdef int shut(self) except -1:
        """Our end-of-stream, behind everything that was written. The peer may go on."""
        if self.slot == NULL or self.state & (STREAM_CLOSING | STREAM_SHUT | STREAM_SHUT_DUE):
            return 0
        self.state |= STREAM_SHUT_DUE
        return 0 if self.state & STREAM_CORKED or has_unsent(self) else self.shut_now()

    cdef int shut_now(self) except -1:
        self.state = self.state & ~<uint32_t>STREAM_SHUT_DUE | STREAM_SHUT
        if self.state & STREAM_SECURE:
            return self.shut_secure()
        _sys.ek_shutdown_write(self.slot.fd)
        return 0

    cdef int drain(self, Loop loop) except -1:
        """Throw input away until the peer's end, within limits."""
        cdef ssize_t count
        while True:
            count = fill_input(loop, self.slot.fd, READ_ROOM_BYTES)
            if count == -errno.EAGAIN:
                return 0
            if count <= 0 or self.reads == LINGER_READS:
                return loop.release(self.slot, None)
            self.reads += 1

    # -- what `Connection` adds ----------------------------------------------------------------------------------------

    cdef int on_ready_early(self, uint32_t events) except -1:
        return 0

    cdef int rested(self) except -1:
        return 0

    cdef int start_shaking(self) except -1:
        return 0

    cdef int shaken_too_long(self) except -1:
        return 0

    cdef int flush_filtered(self, Loop loop) except -1:
        return 0

    cdef int open_records(self, const char *data, Py_ssize_t length) except -1:
        return 0

    cdef int take_held(self) except -1:
        return 0

    cdef int cut_off(self) except -1:
        return 0

    cdef int shut_secure(self) except -1:
        return 0

    cdef Py_ssize_t read_room(self) except -1:
        return READ_ROOM_BYTES

    cdef Py_ssize_t write_room(self, Py_ssize_t wanted) except -1:
        return wanted

    cdef int received(self, Py_ssize_t count) except -1:
        return 0

    cdef int wrote(self, Py_ssize_t count) except -1:
        return 0

    cdef int64_t unsent(self) noexcept:
        """Bytes that were written and not given to the socket."""
        cdef int64_t size = (<Loop>self.loop_link).scratch_used if self.state & STREAM_CORKED else 0
        return size + self.output.size + self.output.file_size if self.output != NULL else size

"""`Stream`."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc cimport errno
from libc.stdint cimport INT64_MAX, int64_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memmove, strerror

cimport epollkit._sys as _sys
from epollkit._buffered cimport (
    READ_ROOM_BYTES, STREAM_BLOCKED, STREAM_CLOSING, STREAM_CORKED, STREAM_DELIVERS_NOT, STREAM_DRAINING, STREAM_EARLY,
    STREAM_ENDED, STREAM_HOLDS, STREAM_IN_WAITS, STREAM_OUT_WAITS, STREAM_PAUSED, STREAM_RATED, STREAM_RESTS,
    STREAM_SECURE, STREAM_SHUT, STREAM_TELLS_ROOM, STREAM_UNOPENED, Loop, has_unsent,
)
from epollkit._bytes cimport SPARE_LEAST_BYTES, SPARE_MOST_BYTES, spare_give, spare_take
from epollkit._connection cimport Connection, Extras
from epollkit._rate cimport RateLimit
from epollkit._slots cimport SLOT_CONNECTION, SLOT_OWNS_FD, SLOT_TCP, SLOT_TELLS_CLOSE
from epollkit._sys cimport EK_ASSERT

import os
import stat

from epollkit._checks import checked_fd, checked_number, checked_seconds_ns
from epollkit._sockets import Detached
from epollkit.errors import PeerError, UsageError

cdef extern from "<string.h>" nogil:
    void *memmem(const void *haystack, size_t length, const void *needle, size_t needle_length) noexcept

cdef int64_t WRITE_TIMEOUT_NS = 30000000000     # of a peer that takes nothing of what is queued


cdef class Stream(Connection):
    """A buffered connection. Subclass it, and give the class to `Loop.listen`, `Loop.connect` or `Loop.adopt`.

    Upcalls, all from the loop's thread; after `on_close` there is none. docs/streams.md has them as a table of states.
        on_open()           connected (with TLS: after the handshake); the first of all
        on_data(data)       bytes arrived, in order, at least one; or a whole frame, if one was asked for. An edge is
                            reported once and the stream reads until there is nothing left, so the next call may follow
                            at once; one fast peer does not starve the others.
        on_eof()            the peer sent its last byte; this side may go on writing. Default: `close()`.
        on_drain()          write() said False before; now no more than the low watermark is unsent
        on_timeout(which)   "read", "write" or "life", see `set_timeout`. Default: the connection ends with
                            TimeoutError. Overridden, it goes on, and the time starts anew (but for "life").
        on_error(error)     the connection broke: OSError (with TLS also ssl.SSLError: cut off, garbage), or PeerError
                            for a frame that is too long or not whole. `on_close(error)` follows.
        on_close(error)     closed; error is None, or what ended it. Called at the end of the turn, never from inside
                            a call to `close()` or `abort()`. Exactly once, the only upcall of all if it never opened.

    An exception in an upcall ends this connection, is reported once (`Loop.set_exception_handler`), and reaches
    on_close.

    What one upcall writes leaves as one system call. What the socket does not take is queued, up to `write_limit`
    bytes; beyond it the peer is taken for one that does not read, and the connection is reset (LimitReached in
    on_close). The same happens to a peer that takes none of it for 30 seconds (TimeoutError; `set_timeout`).

    half_close: "answer": a peer that has sent its last byte may still be answered (on_eof). "abort": the connection is
    dropped as soon as that is known, with what was not read yet.

    No method is thread-safe; from another thread use `Loop.call_soon_threadsafe`. On a stream that is not open all of
    them raise UsageError, but for `close()` and `abort()`, which then do nothing.
    """

    half_close = "answer"

    def __dealloc__(self):
        self.drop_options()

    def on_open(self):
        pass

    def on_data(self, data):
        pass

    def on_eof(self):
        self.close()

    def on_drain(self):
        pass

    def on_timeout(self, which):
        self.expire(which)

    def on_error(self, error):
        pass

    def on_close(self, error):
        pass

    # -- output --------------------------------------------------------------------------------------------------------

    def write(self, data):
        """Send bytes (any bytes-like object; `bytes` are not copied when large). Returns False if more than the high
        watermark is unsent now: a polite writer then waits for on_drain. UsageError once closed or closing."""
        cdef bytes owner = data if type(data) is bytes else bytes(memoryview(data))
        self.check_writable()
        self.put(PyBytes_AS_STRING(owner), PyBytes_GET_SIZE(owner), owner)
        return self.has_room()

    def writelines(self, pieces):
        """`write` for each of them; from outside an upcall, too, they leave together."""
        self.check_writable()                   # also if there are none
        for data in pieces:
            Stream.write(self, data)
        return self.slot != NULL and self.has_room()

    def sendfile(self, file, offset=0, count=None):
        """Send a piece of a regular file, in order with everything else, without reading it into memory (sendfile(2);
        with TLS it is read piece by piece).

        Args:
            file: an open file or its descriptor, of which a copy is kept until it is sent. Its position is not used.
            offset: of the first byte.
            count: how many bytes; None: to the end, as it is now.

        Returns as `write` does. Reading from a slow disk stalls the loop for as long. A file that has become shorter
        when its turn comes ends the connection (OSError, EIO).
        """
        cdef int copy
        fd = checked_fd(file)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"sendfile() sends regular files; fd {fd} is something else")
        try:
            os.pread(fd, 0, 0)
        except OSError:
            raise UsageError(f"sendfile() reads, and fd {fd} is not open for reading") from None
        offset = checked_number("offset", offset, 0, status.st_size)
        count = status.st_size - offset if count is None else checked_number("count", count, 0, status.st_size - offset)
        self.check_writable()
        if count > 0 and self.error == 0:
            copy = _sys.ek_duplicate(fd)
            if copy < 0:
                raise OSError(-copy, f"sendfile: {strerror(-copy).decode()}")
            self.put_file(copy, offset, count)
        return self.has_room()

    cdef bint has_room(self) except -1:
        cdef int64_t unsent
        if self.slot == NULL:
            return False
        unsent = self.unsent()
        if unsent <= HIGH_BYTES if self.options == NULL else unsent <= self.options.high:
            return True
        self.state |= STREAM_TELLS_ROOM
        return False

    @property
    def unsent_bytes(self):
        """Bytes that were written and not taken by the socket yet; with TLS, some of them as ciphertext."""
        return self.unsent() if self.slot != NULL else 0

    def shutdown_write(self):
        """Send what is queued, then this side's end-of-stream (FIN; with TLS close_notify). The peer may go on sending;
        once it has ended too, the connection closes. Doing it twice does nothing."""
        if not self.state & STREAM_CLOSING:
            self.check_open()
        self.owner().check_usable()
        self.shut()

    cdef int check_open(self) except -1:
        self.owner().check_usable()
        if self.state & STREAM_EARLY:
            raise UsageError(f"this {type(self).__name__} is not open yet, or was given back to its pool")
        return 0

    cdef int take_room(self) except -1:
        if self.unsent() <= (HIGH_BYTES // 4 if self.options == NULL else self.options.low):
            self.state &= ~<uint32_t>STREAM_TELLS_ROOM
            self.on_drain()
        return 0

    cdef Py_ssize_t hard_limit(self) except -1:
        return self.options.hard if self.options != NULL and self.options.hard else self.write_limit

    def set_limits(self, *, high=None, low=None, hard=None):
        """Watermarks for what is unsent, in bytes; what is not given stays.

        Args:
            high: above it `write` returns False. Default 65,536.
            low: on_drain follows once there is no more than this. Default: a quarter of high.
            hard: beyond it the connection is reset. Default: `write_limit`, 16 MiB. Files count with 64 bytes each.
        """
        cdef Options *options
        self.usable()
        if hard is not None:
            hard = checked_number("hard", hard, 1, 1 << 62)
        if high is not None:
            high = checked_number("high", high, 0, 1 << 62)
        options = self.want_options()
        if high is None:
            high = options.high
            low = options.low if low is None else checked_number("low", low, 0, high)
        else:
            low = high // 4 if low is None else checked_number("low", low, 0, high)
        self.usable()
        options = self.want_options()
        options.high, options.low = high, low
        if hard is not None:
            options.hard = hard
            if self.output != NULL:
                self.output.limit = hard

    def set_rate(self, *, read=..., write=...):
        """Limit how fast bytes come and go, as they are on the wire: `RateLimit`, bytes per second, or None for no
        limit; what is not given stays. Streams that are given the same RateLimit share it."""
        cdef Extras *extras
        self.usable()
        limits = [RateLimit(limit) if isinstance(limit, (int, float)) else limit for limit in (read, write)]
        for limit in limits:
            if limit is not None and limit is not ... and not isinstance(limit, RateLimit):
                raise UsageError(f"a rate is an epollkit.RateLimit, bytes per second, or None, not {limit!r}")
        self.usable()
        extras = self.want_extras()
        _kept = (<object>extras.read_rate if extras.read_rate != NULL else None,       # a finalizer may do anything
                 <object>extras.write_rate if extras.write_rate != NULL else None)
        self.usable()
        if read is not ... and <PyObject *>limits[0] != extras.read_rate:
            self.drop_rate(&extras.read_rate, &extras.read_grant)
            if limits[0] is not None:
                Py_INCREF(limits[0])
                extras.read_rate = <PyObject *>limits[0]
            self.go_on(STREAM_IN_WAITS)
        if write is not ... and <PyObject *>limits[1] != extras.write_rate:
            self.drop_rate(&extras.write_rate, &extras.write_grant)
            if limits[1] is not None:
                Py_INCREF(limits[1])
                extras.write_rate = <PyObject *>limits[1]
            self.go_on(STREAM_OUT_WAITS)
        self.state |= STREAM_RATED

    # -- input ---------------------------------------------------------------------------------------------------------

    def pause_reading(self):
        """No on_data, on_eof or on_error until `resume_reading`; what arrives waits in the kernel, so the peer has to
        wait, too. FIN and RST are noticed meanwhile: see `peer_closed`. Twice does nothing. If a write finds the peer
        gone, the pause is over: what came is delivered, and then the error."""
        self.check_open()
        self.pause()

    def resume_reading(self):
        """Go on where `pause_reading` stopped, in the next turn. Not paused: does nothing."""
        self.check_open()
        self.resume()

    cdef int read_on(self) except -1:
        """Time in which this side did not read does not count."""
        if self.options != NULL:
            self.options.read_at_ns = _sys.ek_tick_ns()
        return Connection.read_on(self)

    def read_exactly(self, count):
        """From now on on_data gets frames of exactly so many bytes, 1 to 2^30. What has come of a frame is kept, so
        that many bytes a peer may have this side hold; memory grows with what comes, not with what was announced."""
        self.frame_as(FRAME_EXACTLY, checked_number("count", count, 1, LARGEST_FRAME_BYTES), None)

    def read_until(self, separator, limit=65536):
        """From now on on_data gets frames that end with this separator, which is part of them. One that is longer than
        `limit` bytes ends the connection (PeerError)."""
        end = bytes(memoryview(separator))
        limit = checked_number("limit", limit, 1, LARGEST_FRAME_BYTES)
        if not 1 <= len(end) <= limit:
            raise UsageError(f"a separator has 1 to {limit} bytes, what limit says, not {len(end)}")
        self.frame_as(FRAME_UNTIL, limit, end)

    def read_raw(self):
        """From now on on_data gets bytes as they come."""
        self.frame_as(FRAME_RAW, 0, None)

    cdef int frame_as(self, FrameKind kind, Py_ssize_t frame_bytes, bytes separator) except -1:
        cdef Options *options
        self.usable()
        options = self.want_options()
        options.kind = kind
        options.frame_bytes = frame_bytes
        Py_XDECREF(options.separator)
        options.separator = NULL
        if separator is not None:
            Py_INCREF(separator)
            options.separator = <PyObject *>separator
        options.searched = 0
        if options.window != options.window_end and not options.delivering:     # it may hold a frame of the new kind
            self.state |= STREAM_HOLDS
            if not self.state & STREAM_DELIVERS_NOT:
                Connection.read_on(self)
        return 0

    cdef int take_data(self, const char *data, Py_ssize_t length) except -1:
        cdef Loop loop = <Loop>self.loop_link
        cdef Py_ssize_t room
        cdef bytes piece
        EK_ASSERT(self.slot != NULL)
        if self.options != NULL:
            if self.options.read_ns:
                self.options.read_at_ns = _sys.ek_tick_ns()
            if self.options.kind != FRAME_RAW or self.options.held != NULL:
                return self.take_framed(data, length)
        if not SPARE_LEAST_BYTES <= length <= SPARE_MOST_BYTES:
            if data == loop.input and length == READ_ROOM_BYTES:
                self.on_data(loop.take_input())
                return 0
            self.on_data(PyBytes_FromStringAndSize(data, length))
            return 0
        piece = spare_take(&loop.spare, data, length, &room)
        self.on_data(piece)
        spare_give(&loop.spare, piece, room)
        return 0

    cdef int take_framed(self, const char *data, Py_ssize_t length) except -1:
        cdef Options *options = self.options
        if options.held != NULL:                # a frame has begun
            self.hold(data, length)
        else:
            options.window = data
            options.window_end = data + length
            options.searched = 0
        return self.deliver()

    cdef int deliver(self) except -1:
        """on_data for each whole frame in the window. Whatever a handler changes counts from the next one on."""
        cdef Options *options = self.options
        cdef Py_ssize_t size
        options.delivering = True
        try:
            while self.slot != NULL and not self.state & STREAM_DELIVERS_NOT and options.window < options.window_end:
                size = frame_size(options)
                if size == 0:
                    break
                if size < 0:
                    limit = options.frame_bytes
                    return self.refuse_frame(f"a frame is longer than its limit of {limit} bytes")
                data = PyBytes_FromStringAndSize(options.window, size)
                options.window += size
                options.searched = 0
                self.on_data(data)
                options = self.options
                if options == NULL:             # given back to its pool
                    return 0
        except BaseException:
            self.state |= STREAM_HOLDS
            raise
        finally:
            if self.options != NULL:
                self.options.delivering = False
                self.keep_rest()
        return 0

    cdef int refuse_frame(self, str why) except -1:
        """The connection ends here. What was written before, in answer to others, is sent, if there is room for it."""
        error = PeerError(why)
        self.flush()
        return self.break_with(error) if self.slot != NULL else 0

    cdef int keep_rest(self) except -1:
        """What was not delivered is kept in a buffer of its own; without it there is none."""
        cdef Options *options = self.options
        cdef const char *data = options.window
        cdef Py_ssize_t length = options.window_end - options.window
        if self.slot == NULL or length == 0:
            free(options.held)
            options.held = NULL
            options.held_room = 0
            options.window = options.window_end = NULL
            return 0
        if options.held == NULL:
            options.window = options.window_end = NULL
            self.hold(data, length)
        if self.state & (STREAM_PAUSED | STREAM_RESTS):
            self.state |= STREAM_HOLDS
        return 0

    cdef int hold(self, const char *data, Py_ssize_t length) except -1:
        """Append to what is held."""
        cdef Options *options = self.options
        cdef Py_ssize_t size = options.window_end - options.window
        cdef Py_ssize_t room = options.held_room
        cdef char *grown
        if size and options.window != options.held:
            memmove(options.held, options.window, size)
        if size + length > room:
            room = max(size + length, 2 * room)
            grown = <char *>realloc(options.held, room)
            if grown == NULL:
                options.window, options.window_end = options.held, options.held + size
                raise MemoryError()
            options.held, options.held_room = grown, room
        memcpy(options.held + size, data, length)
        options.window = options.held
        options.window_end = options.held + size + length
        return 0

    cdef int take_held(self) except -1:
        cdef Options *options = self.options
        if options != NULL and options.window != options.window_end:
            self.state &= ~<uint32_t>STREAM_HOLDS
            self.deliver()
            if self.slot == NULL:
                return 0
            if self.state & STREAM_DELIVERS_NOT:
                self.state |= STREAM_HOLDS
                return 0
        return Connection.take_held(self)

    cdef int take_open(self) except -1:
        if self.options != NULL:                # set_timeout() came before
            self.options.read_at_ns = _sys.ek_tick_ns()
            self.arm()
        self.on_open()
        return 0

    cdef int on_ready(self, uint32_t events) except -1:
        """A reset, which comes with RDHUP too, is no half-close: the reader finds it."""
        if events & (_sys.EPOLLRDHUP | _sys.EPOLLERR) == _sys.EPOLLRDHUP \
                and not self.state & (STREAM_EARLY | STREAM_CLOSING) and self.drops_half_closed():
            return 0
        return Connection.on_ready(self, events)

    cdef bint drops_half_closed(self) except -1:
        if self.state & STREAM_SHUT:            # then it is the other half
            return False
        policy = self.half_close
        if policy == "answer":
            return False
        if policy != "abort":
            raise UsageError(f"half_close is \"answer\" or \"abort\", not {policy!r}")
        reason = ConnectionAbortedError(errno.ECONNABORTED, "the peer has shut down its side; half_close is \"abort\"")
        if self.slot != NULL:
            self.owner().release(self.slot, reason)
        return True

    cdef int take_end(self) except -1:
        cdef Py_ssize_t rest
        EK_ASSERT(self.slot != NULL and self.error == 0)
        if self.options != NULL and self.options.window != self.options.window_end:
            rest = self.options.window_end - self.options.window
            return self.refuse_frame(f"the stream ended within a frame, of which {rest} bytes came")
        if not self.drops_half_closed() and self.slot != NULL:
            self.on_eof()
        return 0

    # -- timeouts ------------------------------------------------------------------------------------------------------

    def set_timeout(self, *, read=..., write=..., life=...):
        """Deadlines, in seconds, or None for none; what is not given stays.

        Args:
            read: nothing was received for so long. Time in which this side does not read does not count. Default: None.
            write: something is unsent, and the socket took nothing of it for so long. Default: 30.
            life: from now until it has to be over, whatever happens; closing is part of it. Default: None.

        `on_timeout` is called up to 20 ms late, never early. It costs one look at a cheap clock per read.
        """
        cdef Options *options
        self.usable()
        read_ns = ... if read is ... else checked_seconds_ns("read", read)
        write_ns = ... if write is ... else checked_seconds_ns("write", write)
        life_ns = ... if life is ... else checked_seconds_ns("life", life)
        self.usable()
        options = self.want_options()
        if read_ns is not ...:
            options.read_ns = read_ns
            options.read_at_ns = _sys.ek_tick_ns()
        if write_ns is not ...:
            options.write_ns = write_ns
            options.write_at_ns = _sys.ek_tick_ns()
        if life_ns is not ...:
            options.life_due_ns = _sys.ek_tick_ns() + <int64_t>life_ns if life_ns else 0
        if self.state & STREAM_CLOSING and options.life_due_ns:
            self.owner().set_deadline(self.slot, min(self.slot.timer.due_ns, options.life_due_ns + _sys.EK_TICK_NS))
        elif not self.state & (STREAM_EARLY | STREAM_CLOSING):
            self.arm()

    cdef int arm(self) except -1:
        """One deadline for all three: the first that may be due. Activity moves it no further; it is looked at again
        when it comes."""
        cdef Options *options = self.options
        cdef int64_t due_ns = INT64_MAX
        if options.read_ns and not self.state & STREAM_ENDED:
            due_ns = min(due_ns, options.read_at_ns + options.read_ns)
        if options.write_ns and self.is_full():
            due_ns = min(due_ns, options.write_at_ns + options.write_ns)
        if options.life_due_ns:
            due_ns = min(due_ns, options.life_due_ns)
        return self.owner().set_deadline(self.slot, 0 if due_ns == INT64_MAX else due_ns + _sys.EK_TICK_NS)

    cdef bint is_full(self) noexcept:
        """Whether the socket was offered what is unsent: what leaves in the next turn nobody has refused."""
        return self.state & STREAM_BLOCKED and has_unsent(self)

    cdef int take_full(self) except -1:
        cdef Options *options = self.want_options()
        options.write_at_ns = _sys.ek_tick_ns()
        return self.arm() if self.slot != NULL else 0

    cdef int take_sent(self) except -1:
        if self.options != NULL:
            self.options.write_at_ns = _sys.ek_tick_ns()
        return 0

    cdef int take_deadline(self) except -1:
        cdef Options *options = self.options
        cdef int64_t now_ns = _sys.ek_tick_ns()
        if options == NULL:
            return 0
        if self.state & (STREAM_PAUSED | STREAM_IN_WAITS):
            options.read_at_ns = now_ns
        if self.state & STREAM_OUT_WAITS:
            options.write_at_ns = now_ns
        if options.life_due_ns and options.life_due_ns <= now_ns:
            options.life_due_ns = 0
            self.on_timeout("life")
        elif options.write_ns and self.is_full() and options.write_at_ns + options.write_ns <= now_ns:
            options.write_at_ns = now_ns
            self.on_timeout("write")
        elif options.read_ns and not self.state & STREAM_ENDED and options.read_at_ns + options.read_ns <= now_ns:
            options.read_at_ns = now_ns
            self.on_timeout("read")
        if self.slot == NULL or self.state & (STREAM_CLOSING | STREAM_EARLY) or self.options == NULL:
            return 0
        return self.arm()

    cdef int on_deadline(self) except -1:
        """Closing is a part of its life."""
        if self.options != NULL and self.state & (STREAM_CLOSING | STREAM_DRAINING) == STREAM_CLOSING \
                and 0 < self.options.life_due_ns <= _sys.ek_tick_ns():
            return self.expire("life")
        return Connection.on_deadline(self)

    cdef int set_deadline_ns(self, int64_t duration_ns) except -1:
        if duration_ns and self.options != NULL and self.options.life_due_ns:
            duration_ns = min(duration_ns, max(<int64_t>1, self.options.life_due_ns - _sys.ek_tick_ns()))
        return Connection.set_deadline_ns(self, duration_ns)

    cdef int expire(self, str which) except -1:
        cdef Options *options = self.want_options()
        if which == "life":
            error = TimeoutError(errno.ETIMEDOUT, "its time is over (life)")
        elif which == "write":
            error = TimeoutError(errno.ETIMEDOUT, f"the peer took nothing for {options.write_ns / 1e9:g} s")
        else:
            error = TimeoutError(errno.ETIMEDOUT, f"nothing was received for {options.read_ns / 1e9:g} s")
        if self.state & STREAM_CORKED:          # what on_timeout has written is the last that it can say
            self.flush()
        return self.owner().release(self.slot, error) if self.slot != NULL else 0

    # -- the end -------------------------------------------------------------------------------------------------------

    def detach(self):
        """Take the connection out of the loop: `Detached(fd, data)`. The fd is the caller's, non-blocking, and data is
        what was received and not delivered. on_close(None) follows. UsageError with TLS, and while something that was
        written is unsent; what this upcall wrote is sent first."""
        cdef Options *options
        cdef Extras *extras
        self.check_writable()
        if self.state & STREAM_SECURE:
            raise UsageError("a TLS session can't be detached: what the fd carries is ciphertext")
        if self.state & STREAM_CORKED:          # else what was gathered is another's
            self.flush()
        if self.slot == NULL or self.error or has_unsent(self):
            raise UsageError(f"this {type(self).__name__} can't be detached: it broke, or {self.unsent_bytes} bytes "
                             "are unsent; wait for on_drain")
        data = b""
        options, extras = self.options, self.extras
        if options != NULL and options.window != options.window_end:
            data = PyBytes_FromStringAndSize(options.window, options.window_end - options.window)
            options.window = options.window_end
        if extras != NULL and extras.early != NULL:
            data += <bytes>extras.early
        detached = Detached(self.slot.fd, data)
        if self.slot == NULL:
            raise UsageError("this stream was closed while it was being detached")
        self.slot.flags &= ~<uint16_t>SLOT_OWNS_FD
        _sys.EK_FREED(_sys.EK_FD)
        self.owner().release(self.slot, None)
        return detached

    cdef int take_error(self, object error) except -1:
        self.on_error(error)
        return 0

    cdef int take_closed(self, object reason) except -1:
        self.on_close(reason)
        return 0

    cdef int let_go(self) except -1:
        self.drop_options()
        return Connection.let_go(self)

    cdef Options *want_options(self) except NULL:
        cdef Options *options = self.options
        if options == NULL:
            options = <Options *>calloc(1, sizeof(Options))
            if options == NULL:
                raise MemoryError()
            _sys.EK_MADE(_sys.EK_OPTIONS)
            options.high = HIGH_BYTES
            options.low = HIGH_BYTES // 4
            options.write_ns = WRITE_TIMEOUT_NS
            self.options = options
        return options

    cdef int drop_options(self) noexcept:
        if self.options != NULL:
            Py_XDECREF(self.options.separator)
            free(self.options.held)
            free(self.options)
            self.options = NULL
            _sys.EK_FREED(_sys.EK_OPTIONS)
        return 0

    def _park(self, int64_t idle_ns):
        if self.options != NULL and self.options.window != self.options.window_end:
            return False
        return Connection._park(self, idle_ns)

    cdef int forget(self) except -1:
        self.drop_options()
        return Connection.forget(self)


cdef Py_ssize_t frame_size(Options *options) noexcept:
    """Bytes of the frame at the window's start; 0: it is not whole yet; -1: it is too long."""
    cdef Py_ssize_t length = options.window_end - options.window
    cdef Py_ssize_t end_length
    cdef const char *found
    if options.kind == FRAME_RAW:
        return length
    if options.kind == FRAME_EXACTLY:
        return options.frame_bytes if length >= options.frame_bytes else 0
    end_length = PyBytes_GET_SIZE(<bytes>options.separator)
    found = <const char *>memmem(options.window + options.searched, length - options.searched,
                                 PyBytes_AS_STRING(<bytes>options.separator), end_length)
    if found != NULL:
        length = found - options.window + end_length
        return length if length <= options.frame_bytes else -1
    options.searched = max(<Py_ssize_t>0, length - end_length + 1)
    return 0 if length < options.frame_bytes else -1


def adopt(Loop loop not None, int fd, bint is_tcp, factory, bytes data not None):
    """Register a connected, non-blocking stream socket, which is the loop's if this returns. on_open is called in the
    next turn, then on_data with `data`, if there is any."""
    cdef Connection connection
    made = factory()
    if not isinstance(made, Connection):
        raise UsageError(f"the factory of adopt() returned {made!r}, not a stream")
    connection = made
    loop.claim(fd)
    loop.attach(connection, fd, SLOT_TELLS_CLOSE | SLOT_CONNECTION | (SLOT_TCP if is_tcp else 0))
    try:
        loop.watch(connection.slot, _sys.EPOLLIN | _sys.EPOLLPRI | _sys.EPOLLRDHUP | _sys.EPOLLET)
        if data:
            connection.want_extras()
            Py_INCREF(data)
            connection.extras.early = <PyObject *>data
            connection.state |= STREAM_HOLDS
    except BaseException:
        if connection.slot != NULL:
            loop.release(connection.slot, None)
        raise
    connection.slot.flags |= SLOT_OWNS_FD
    _sys.EK_MADE(_sys.EK_FD)
    connection.state |= STREAM_UNOPENED
    loop.make_ready(connection.slot, _sys.EPOLLIN)
    return connection

"""`Connection`."""
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject, visitproc
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc cimport errno
from libc.stdint cimport int64_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free

cimport epollkit._sys as _sys
from epollkit._buffered cimport (
    READ_BUDGET_BYTES, READ_ROOM_BYTES, SCRATCH_BYTES, STREAM_BLOCKED, STREAM_CLOSING, STREAM_CORKED,
    STREAM_DELIVERS_NOT, STREAM_EARLY, STREAM_ENDED, STREAM_HOLDS, STREAM_IN_WAITS, STREAM_KEPT, STREAM_MAY_REST,
    STREAM_OF_USER, STREAM_OUT_WAITS, STREAM_RATED, STREAM_RESTS, STREAM_SEALED, STREAM_SECURE, STREAM_SHAKING,
    STREAM_SHUT_DUE, STREAM_UNOPENED, WRITE_BUDGET_BYTES, Buffered, Loop, broken_by, fill_input,
    has_unsent, is_over,
)
from epollkit._output cimport output_drop_sent, output_free, output_is_empty, output_peek
from epollkit._rate cimport RateLimit
from epollkit._slots cimport SLOT_PEER_CLOSED, SLOT_READY, slot_unlink
from epollkit._tls cimport RECORD_BYTES, Tls

from epollkit.errors import LimitReached, PeerError, UsageError

cdef enum:
    ANSWERS_BYTES = 65536           # of what a peer has TLS say (alerts, certificates), to one that does not read it
    UNDISTURBED = 0                 # what ek_disturbance() says
    SPOKE = 1
    ENDED = 2
    TICKET_BYTES = 4096


cdef str SPOKE_AT_REST = "the peer spoke while its connection was in a pool, and nobody had asked it anything"


cdef class Connection(Buffered):
    """A buffered connection: what `Stream`, an HTTP connection and protocols in Cython have in common.

    An exception in an upcall ends this connection, is reported once (`Loop.set_exception_handler`), and is the reason
    with which it closes. What one upcall writes leaves as one system call. What the socket does not take is queued, up
    to `write_limit` bytes; beyond it the peer is taken for one that does not read, and the connection is reset.

    No method is thread-safe; from another thread use `Loop.call_soon_threadsafe`.
    """

    def __dealloc__(self):
        self.drop_extras()

    @property
    def ssl_object(self):
        """The `ssl.SSLObject` of this connection, which knows certificates, cipher and protocol; None without TLS, and
        once closed."""
        return (<Tls>self.extras.tls).ssl_object if self.extras != NULL and self.extras.tls != NULL else None

    cdef Extras *want_extras(self) except NULL:
        if self.extras == NULL:
            self.extras = <Extras *>calloc(1, sizeof(Extras))
            if self.extras == NULL:
                raise MemoryError()
            _sys.EK_MADE(_sys.EK_EXTRAS)
        return self.extras

    cdef int drop_extras(self) except -1:
        cdef Extras *extras = self.extras
        if extras == NULL:
            return 0
        self.extras = NULL
        self.drop_rates(extras)
        Py_XDECREF(extras.tls)
        Py_XDECREF(extras.sealed)
        Py_XDECREF(extras.early)
        free(extras)
        _sys.EK_FREED(_sys.EK_EXTRAS)
        return 0

    cdef int let_go(self) except -1:
        self.drop_output()
        return self.drop_extras()

    cdef int visit(self, visitproc visit, void *argument) except -1:
        if self.extras != NULL and self.extras.tls != NULL:     # its context may lead back
            return visit(self.extras.tls, argument)
        return 0

    cdef int on_ready_early(self, uint32_t events) except -1:
        """Adopted and not opened, or in its TLS handshake, or at rest in a pool."""
        if self.state & STREAM_RESTS:
            self.is_undisturbed()
            return 0
        if self.state & STREAM_UNOPENED:
            self.state &= ~<uint32_t>STREAM_UNOPENED
            self.on_opened()
        else:
            if events & _sys.EPOLLOUT:          # room for what is left of our flight
                self.state &= ~<uint32_t>STREAM_BLOCKED
            self.shake()
        if self.slot == NULL or self.state & STREAM_EARLY:
            return 0
        return self.on_ready(events | _sys.EPOLLIN)

    cdef int64_t unsent(self) noexcept:
        cdef int64_t size = Buffered.unsent(self)
        if self.state & STREAM_SEALED:
            size += PyBytes_GET_SIZE(<bytes>self.extras.sealed) - self.extras.sealed_sent
        return size

    cdef int take_held(self) except -1:
        """What is here already comes before anything from the kernel."""
        self.state &= ~<uint32_t>STREAM_HOLDS
        if self.extras == NULL:
            return 0
        if self.extras.early != NULL:
            early = <bytes>self.extras.early
            Py_DECREF(early)
            self.extras.early = NULL
            self.take_data(PyBytes_AS_STRING(early), PyBytes_GET_SIZE(early))
        return self.open_records(NULL, 0) if self.state & STREAM_SECURE and self.slot != NULL else 0

    # -- rate limits ---------------------------------------------------------------------------------------------------

    cdef Py_ssize_t read_room(self) except -1:
        """How much may be read now; 0: later, which is arranged. `received` gives back what was not used of it."""
        cdef Extras *extras = self.extras
        if extras.read_rate == NULL:
            return READ_ROOM_BYTES
        if extras.read_grant == 0:
            extras.read_grant = self.granted(<RateLimit>extras.read_rate, READ_ROOM_BYTES, STREAM_IN_WAITS)
        return extras.read_grant if not self.state & STREAM_IN_WAITS else 0

    cdef Py_ssize_t write_room(self, Py_ssize_t wanted) except -1:
        """How much of that may be sent now; 0: later, which is arranged."""
        cdef Extras *extras = self.extras
        if not self.state & STREAM_RATED or extras.write_rate == NULL:
            return wanted
        if extras.write_grant == 0:
            extras.write_grant = self.granted(<RateLimit>extras.write_rate, wanted, STREAM_OUT_WAITS)
        return min(extras.write_grant, wanted) if not self.state & STREAM_OUT_WAITS else 0

    cdef int received(self, Py_ssize_t count) except -1:
        """What read_room() allowed was used for so many bytes."""
        cdef Extras *extras = self.extras
        if extras.read_rate != NULL:
            (<RateLimit>extras.read_rate).give_back(extras.read_grant - count)
            extras.read_grant = 0
        return 0

    cdef int wrote(self, Py_ssize_t count) except -1:
        """What write_room() allowed was used for so many bytes."""
        cdef Extras *extras = self.extras
        if self.state & STREAM_RATED and extras.write_rate != NULL:
            (<RateLimit>extras.write_rate).give_back(extras.write_grant - count)
            extras.write_grant = 0
        return 0

    cdef Py_ssize_t granted(self, RateLimit rate, Py_ssize_t wanted, uint32_t waits) except -1:
        """So many bytes may go, now or, if the state says so, once a timer has run that is set here."""
        cdef int64_t now_ns = _sys.ek_now_ns()
        cdef int64_t due_ns
        cdef Py_ssize_t count = rate.reserve(now_ns, wanted, &due_ns)
        if due_ns > now_ns:
            self.state |= waits
            (<Loop>self.loop_link).call_bound(self, (due_ns - now_ns) / 1e9, self._due, (waits, rate))
        return count

    def _due(self, uint32_t waits, RateLimit rate not None):
        """Unless that limit was replaced meanwhile."""
        if <PyObject *>rate == (self.extras.read_rate if waits == STREAM_IN_WAITS else self.extras.write_rate):
            self.go_on(waits)

    cdef int go_on(self, uint32_t waits) except -1:
        """Whoever waited for a rate limit waits no longer."""
        waits &= self.state
        self.state &= ~waits
        if waits & STREAM_OUT_WAITS:
            self.owner().make_ready(self.slot, _sys.EPOLLOUT)
        return self.read_on() if waits & STREAM_IN_WAITS else 0

    # -- TLS -----------------------------------------------------------------------------------------------------------

    def _secure(self, context, server_side, server_hostname, handshake_timeout):
        """Speak TLS: to be called before it is opened. take_open comes after the handshake."""
        cdef Extras *extras
        cdef int64_t shake_ns = <int64_t>(handshake_timeout * 1e9)
        cdef Tls tls = Tls(context, server_side, server_hostname)
        if self.used or self.state & STREAM_SECURE:     # its session, if it has one, is the other connection's
            raise UsageError(f"{self!r} was used for another connection; a factory makes a new one each time")
        extras = self.want_extras()
        Py_INCREF(tls)
        extras.tls = <PyObject *>tls
        extras.shake_ns = shake_ns
        self.state |= STREAM_SECURE

    cdef int start_shaking(self) except -1:
        self.state |= STREAM_SHAKING
        self.set_deadline_ns(self.extras.shake_ns)
        self.shake()
        if self.slot != NULL and not self.state & STREAM_SHAKING:
            self.owner().make_ready(self.slot, _sys.EPOLLIN)        # what came behind it: no event may follow
        return 0

    cdef int shaken_too_long(self) except -1:
        return self.shaken(TimeoutError(
            f"the TLS handshake took longer than {self.extras.shake_ns / 1e9:g} seconds"), NULL, 0)

    cdef int flush_filtered(self, Loop loop) except -1:
        if not self.state & STREAM_SECURE:
            return self.flush_queue(loop)
        if loop.scratch_used and self.state & STREAM_CORKED:
            self.seal_gathered(loop)
        return self.flush_secure()

    cdef int seal_gathered(self, Loop loop) except -1:
        """Make ciphertext of what an upcall wrote, or keep it, if the socket has no room for that."""
        cdef Tls tls = <Tls>self.extras.tls
        cdef uint32_t corked = self.state & STREAM_CORKED
        cdef Py_ssize_t done = 0
        if has_unsent(self) or self.state & (STREAM_BLOCKED | STREAM_OUT_WAITS):
            return self.spill(loop)
        self.state &= ~<uint32_t>STREAM_CORKED      # whatever runs in there does not write into what is being sealed
        try:
            while done < loop.scratch_used and self.slot != NULL:
                done += tls.seal(loop.scratch + done, loop.scratch_used - done)
        except OSError as error:                    # the session has ended with an error
            self.break_with(error)
        finally:
            self.state |= corked
            loop.scratch_used = 0
        return 0

    cdef int flush_secure(self) except -1:
        """What goes to the socket is ciphertext. It is made a piece at a time, so that little of it is in memory. The
        loop's buffers are not touched: what is in them may be another connection's."""
        cdef Extras *extras = self.extras
        cdef Py_ssize_t budget = WRITE_BUDGET_BYTES
        cdef Py_ssize_t left, most
        cdef ssize_t sent
        while self.slot != NULL and not self.state & (STREAM_BLOCKED | STREAM_OUT_WAITS):
            try:
                if not self.state & STREAM_SEALED and not self.seal_next():
                    break
            except OSError as error:
                self.break_with(error)
                break
            if budget <= 0:
                self.owner().make_ready(self.slot, _sys.EPOLLOUT)
                break
            left = PyBytes_GET_SIZE(<bytes>extras.sealed) - extras.sealed_sent
            most = self.write_room(left)
            if most == 0:
                break
            sent = _sys.ek_send(self.slot.fd, PyBytes_AS_STRING(<bytes>extras.sealed) + extras.sealed_sent, most)
            self.wrote(max(sent, 0))
            if sent == -errno.EAGAIN:
                self.block()
                break
            if sent < 0:
                return self.write_failed(<int>-sent)
            budget -= sent
            extras.sealed_sent += sent
            if sent == left:
                Py_DECREF(<bytes>extras.sealed)
                extras.sealed = NULL
                extras.sealed_sent = 0
                self.state &= ~<uint32_t>STREAM_SEALED
        return self.unblock() if self.slot != NULL and not has_unsent(self) else 0

    cdef bint seal_next(self) except -1:
        """Make ciphertext of what is queued. Whether there is any, with what TLS has to say by itself."""
        cdef Tls tls = <Tls>self.extras.tls
        cdef char room[RECORD_BYTES]                # for what is in a file
        cdef Py_ssize_t size = 0
        cdef const char *data
        cdef ssize_t count
        while not self.state & STREAM_SHAKING and self.output != NULL and size < SCRATCH_BYTES:
            count = output_peek(self.output, room, RECORD_BYTES, &data)
            if count <= 0:
                self.end_with(broken_by(<int>-count)) if count else self.file_ended()
                return False
            count = tls.seal(data, count)
            if self.slot == NULL or self.output == NULL:
                return False
            size += count
            output_drop_sent(self.output, count)
            if output_is_empty(self.output):
                output_free(self.output)
                self.output = NULL
        sealed = tls.sealed() if tls.has_sealed() else None
        if self.slot == NULL or not sealed:
            return False
        Py_INCREF(sealed)
        Py_XDECREF(self.extras.sealed)
        self.extras.sealed = <PyObject *>sealed
        self.extras.sealed_sent = 0
        self.state |= STREAM_SEALED
        return True

    cdef int shake(self) except -1:
        """Go on with the handshake until it is done, or the peer has to say more."""
        cdef Loop loop = <Loop?><object>self.loop_link
        cdef Tls tls = <Tls>self.extras.tls
        cdef Py_ssize_t budget = READ_BUDGET_BYTES
        cdef Py_ssize_t taken
        cdef ssize_t count = 0
        failure = None
        while self.slot != NULL:
            try:
                if tls.handshake(loop.input, count, &taken):
                    return self.shaken(None, loop.input + taken, count - taken)
            except OSError as error:
                failure = error
            if failure is not None:
                return self.shaken(failure, NULL, 0)
            self.flush_secure()
            if self.slot == NULL:
                return 0
            if budget <= 0:
                return loop.make_ready(self.slot, _sys.EPOLLIN)
            count = fill_input(loop, self.slot.fd, READ_ROOM_BYTES)
            if count == -errno.EAGAIN:
                return 0
            budget -= max(count, <ssize_t>0)
            if count < 0 and self.error == 0:
                self.error = <uint16_t>-count
            if self.error:
                return self.shaken(broken_by(self.error), NULL, 0)
            if count == 0:
                tls.feed_end()
        return 0

    cdef int shaken(self, object error, const char *rest, Py_ssize_t length) except -1:
        """The handshake is over: done, and `rest` came behind it; or failed, and the peer is told by an alert."""
        cdef Loop loop = <Loop>self.loop_link
        if self.slot == NULL:
            return 0
        if error is None:
            (<Tls>self.extras.tls).hold(rest, length)
        self.flush_secure()
        if self.slot == NULL:
            return 0
        if error is not None:
            return loop.release(self.slot, error)
        self.state = self.state & ~<uint32_t>STREAM_SHAKING | STREAM_HOLDS
        self.set_deadline_ns(0)
        return self.open_up()

    cdef int open_records(self, const char *data, Py_ssize_t length) except -1:
        """Deliver what TLS can make of what it has, and of these bytes. Who pauses finds the rest in take_held."""
        cdef Tls tls = <Tls>self.extras.tls
        cdef Loop loop = <Loop>self.loop_link
        cdef Py_ssize_t count = 1
        cdef Py_ssize_t taken = 0
        if loop.plain is None:
            loop.plain = PyByteArray_FromStringAndSize(NULL, READ_ROOM_BYTES)
        while count > 0 and self.slot != NULL and not self.state & STREAM_DELIVERS_NOT:
            try:
                count = tls.open_into(loop.plain, data, length, &taken)
            except OSError as error:
                output_free(self.output)                # nothing more can be sealed, ...
                self.output = NULL
                loop.scratch_used = 0
                self.flush_secure()                     # ... but the alert is
                self.break_with(error)
                break
            data += taken
            length -= taken
            try:
                if count > 0 and self.slot != NULL:
                    self.take_data(PyByteArray_AS_STRING(loop.plain), count)
            except BaseException:
                tls.hold(data, length)
                self.state |= STREAM_HOLDS
                raise
        if self.slot == NULL:
            return 0
        if count < 0:                               # an end, unless it is known that the peer is gone
            return self.ended(0) if self.error == 0 else self.broken(_sys.EPOLLERR)
        if self.state & STREAM_RESTS:           # it was given back: nobody may be told what is behind that
            return self.end_rest("spoke", PeerError(SPOKE_AT_REST)) if length > 0 or tls.has_begun() else 0
        if count > 0 and not self.state & (STREAM_CLOSING | STREAM_ENDED):
            tls.hold(data, length)
            self.state |= STREAM_HOLDS
        if tls.has_sealed() > ANSWERS_BYTES:
            return self.end_with(LimitReached(f"{tls.has_sealed()} bytes of TLS's own answers wait to be sent"))
        return 0

    cdef int cut_off(self) except -1:
        """The socket's end without TLS's: whoever ended it, it need not have been the peer (RFC 8446, 6.1)."""
        cdef Tls tls = <Tls>self.extras.tls
        cdef Py_ssize_t taken
        tls.feed_end()
        try:
            tls.open_into(bytearray(READ_ROOM_BYTES), NULL, 0, &taken)
        except OSError as error:
            self.break_with(error)
        return self.ended(0) if self.slot != NULL else 0

    cdef int shut_secure(self) except -1:
        """TLS's end-of-stream. The socket's own follows when it is closed."""
        try:
            (<Tls>self.extras.tls).close_notify()
        except OSError as error:
            self.break_with(error)
        if self.slot == NULL:
            return 0
        self.flush_secure()
        if self.slot != NULL and has_unsent(self):
            self.state |= STREAM_SHUT_DUE           # the socket has no room for it: come back
            return 0
        if self.slot != NULL and is_over(self):
            return self.owner().make_ready(self.slot, _sys.EPOLLHUP)
        return 0

    # -- in a pool -----------------------------------------------------------------------------------------------------

    def _keep(self, Loop loop not None, keeper):
        """For a pool, before it is connected: keeper(what, reason) is told what becomes of it, see `tell_keeper`. None:
        nobody is, after all."""
        cdef object name = <size_t><PyObject *>self
        if keeper is None:
            self.state &= ~<uint32_t>STREAM_KEPT
            loop.kept.pop(name, None)
            return
        if self.used:
            raise UsageError(f"{self!r} was used for another connection; a factory makes a new one each time")
        loop.kept[name] = keeper
        self.state |= STREAM_KEPT

    def _park(self, int64_t idle_ns):
        """For a pool: keep it until somebody asks for it, or that long; 0: for ever. Whether it is fit for that: still
        connected, nothing unsent, nothing unread. Everything that its user had set, scheduled or asked for is gone."""
        cdef Loop loop = self.usable()
        if self.state & STREAM_CORKED:
            self.flush()
        if self.slot == NULL or self.error or self.state & ~<uint32_t>STREAM_MAY_REST or has_unsent(self) \
                or self.slot.flags & SLOT_PEER_CLOSED:
            return False
        if self.state & STREAM_SECURE and (<Tls>self.extras.tls).has_begun():
            return False
        self.state |= STREAM_RESTS              # first: what goes may run a finalizer, and that anything
        self.forget()
        if self.slot != NULL:
            loop.forget_calls(self.slot)
        if self.slot == NULL:
            return False
        self.state &= ~<uint32_t>STREAM_OF_USER
        if self.slot.flags & SLOT_READY:
            slot_unlink(&loop.slots, &loop.ready, self.slot)
        self.slot.pending = 0
        self.set_deadline_ns(idle_ns)
        return self.is_undisturbed()

    def _lend(self, receive):
        """For a pool: receive(self, None), as an upcall. False: it ends here instead, for the peer has ended it, or
        said something, if only in an event that is still in the batch at hand."""
        cdef Loop loop
        if self.slot == NULL or not self.is_undisturbed():
            return False
        loop = <Loop>self.loop_link
        self.state &= ~<uint32_t>STREAM_RESTS
        self.set_deadline_ns(0)
        try:
            self.cork(loop)
            try:
                receive(self, None)
                self.uncork(loop)
            except BaseException:
                self.cut_short(loop)
                raise
        except Exception as error:
            loop.fail(self, error)
        return True

    def _leave(self):
        """For a pool: close it at rest. Whether that is over: with TLS its end may have to wait for the socket."""
        if self.slot != NULL and self.state & STREAM_RESTS:
            self.leave()
        return self.slot == NULL

    cdef int forget(self) except -1:
        """What the connection's user has set."""
        return self.drop_rates(self.extras)

    cdef int drop_rates(self, Extras *extras) except -1:
        if extras != NULL:
            _read = self.drop_rate(&extras.read_rate, &extras.read_grant)
            _write = self.drop_rate(&extras.write_rate, &extras.write_grant)
        return 0

    cdef object drop_rate(self, PyObject **rate, Py_ssize_t *grant):
        """Returns it: its end may run anything, so who calls lets go of it last."""
        if rate[0] == NULL:
            return None
        dropped = <RateLimit>rate[0]
        dropped.give_back(grant[0])
        rate[0] = NULL
        grant[0] = 0
        Py_DECREF(dropped)
        return dropped

    cdef bint is_undisturbed(self) except -1:
        """At rest: whether nothing came. If anything did, the connection ends here: it can't be for who comes next."""
        cdef int found
        reason = None
        try:
            found = self.take_tickets() if self.state & STREAM_SECURE else self.disturbance()
        except OSError as error:                # of TLS
            found, reason = ENDED, error
        if found == UNDISTURBED:
            return self.slot != NULL
        if found == SPOKE:
            reason = PeerError(SPOKE_AT_REST)
        self.end_rest("spoke" if found == SPOKE else "ended", reason)
        return False

    cdef int disturbance(self) except -1:
        cdef int found = _sys.ek_disturbance(self.slot.fd)
        if found >= 0:
            return found
        if self.error == 0:
            self.error = <uint16_t>-found
        return ENDED

    cdef int take_tickets(self) except -1:
        """`disturbance`, but for what TLS says to itself: session tickets, new keys. Without end, that too is speaking.
        Called from another one's upcall, too: then what is in the loop's buffers is that one's."""
        cdef Tls tls = <Tls>self.extras.tls
        cdef char data[TICKET_BYTES]
        cdef Py_ssize_t budget = READ_BUDGET_BYTES
        cdef Py_ssize_t count, taken
        cdef int found = self.disturbance()
        plain = PyByteArray_FromStringAndSize(NULL, RECORD_BYTES) if found == SPOKE else None
        while found == SPOKE and self.slot != NULL and budget > 0:
            count = _sys.ek_recv(self.slot.fd, data, TICKET_BYTES)
            if count > 0:
                budget -= count
                count = tls.open_into(plain, data, count, &taken)
                if count < 0:                   # close_notify
                    return ENDED
                if count == 0 and self.slot != NULL and tls.has_sealed() <= ANSWERS_BYTES:
                    found = self.disturbance()
                    continue
            return SPOKE
        return SPOKE if found == UNDISTURBED and tls.has_begun() else found

    cdef int end_rest(self, str what, object reason) except -1:
        if self.slot == NULL:
            return 0
        (<Loop>self.loop_link).release(self.slot, reason)
        return self.tell_keeper(what, None)

    cdef int rested(self) except -1:
        self.leave()
        return self.tell_keeper("expired", None)

    cdef int leave(self) except -1:
        self.state &= ~<uint32_t>STREAM_RESTS
        return self.close_softly(0)

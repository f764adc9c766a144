"""`Tls`: one end of a TLS connection, without the connection.

Why it looks at record headers: OpenSSL, asked to read what is not there, answers with an exception, which costs more
than decrypting a small message. So it is asked only when a whole record is there. The headers are not secret, are the
same in every version, and nothing depends on them but when OpenSSL is asked; what does not look like one is given to it
at once.

Why it never tells OpenSSL of the socket's end: what that makes of a missing close_notify depends on its version and on
options (OP_IGNORE_UNEXPECTED_EOF takes it for a clean end). Here it is an error in any case.
"""
import ssl

from cpython.buffer cimport PyBUF_READ
from cpython.bytearray cimport PyByteArray_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint8_t

from epollkit._sys cimport EK_ASSERT, EK_FREED, EK_MADE, EK_TLS

from epollkit.errors import UsageError

cdef object SSLError = ssl.SSLError
cdef object WantRead = ssl.SSLWantReadError
cdef object ZeroReturn = ssl.SSLZeroReturnError


cdef class Tls:
    """TLS over memory: `_tls.pxd` says what it does. The errors are ssl's own.

    Args:
        context: ssl.SSLContext.
        server_side: whether this end waits for the other's hello.
        server_hostname: for a client: the name that is asked for (SNI) and, with `check_hostname`, verified.
    """

    def __cinit__(self, context, bint server_side, server_hostname=None):
        EK_MADE(EK_TLS)
        if not isinstance(context, ssl.SSLContext):
            raise TypeError(f"TLS needs an ssl.SSLContext, not {context!r}")
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.ssl_object = context.wrap_bio(self.incoming, self.outgoing, server_side, server_hostname)
        if server_side:
            self.state = TLS_STARTED        # it has nothing to say before the client's hello

    def __dealloc__(self):
        EK_FREED(EK_TLS)

    # -- what comes in -------------------------------------------------------------------------------------------------

    cdef int handshake(self, const char *data, Py_ssize_t length, Py_ssize_t *taken) except -1:
        taken[0] = 0
        while not self.state & TLS_DONE:
            if self.records or not self.state & TLS_STARTED:
                self.step()
            elif taken[0] < length:
                taken[0] += self.feed(data + taken[0], length - taken[0])
            elif self.state & TLS_FAILED:
                raise session_over()
            elif self.state & TLS_SOCKET_ENDED:
                raise socket_ended()
            else:
                return 0
        return 1

    cdef int step(self) except -1:
        self.enter()
        self.state |= TLS_STARTED
        try:
            self.ssl_object.do_handshake()
        except WantRead:
            self.records = 0
        except SSLError as error:
            self.state |= TLS_FAILED
            raise without_traceback(error)
        except BaseException:
            self.state |= TLS_FAILED
            raise
        else:
            self.state |= TLS_DONE
            if not self.incoming.pending:   # else it is the count that there was: at most so many
                self.records = 0
        finally:
            self.state &= ~<uint8_t>TLS_BUSY
        return 0

    cdef Py_ssize_t open_into(self, bytearray plain, const char *data, Py_ssize_t length,
                              Py_ssize_t *taken) except -2:
        cdef Py_ssize_t filled = 0
        cdef Py_ssize_t count
        EK_ASSERT(PyByteArray_GET_SIZE(plain) >= RECORD_BYTES)
        taken[0] = 0
        while not self.state & (TLS_FAILED | TLS_PEER_CLOSED):
            if self.records:
                if PyByteArray_GET_SIZE(plain) - filled < RECORD_BYTES:
                    return filled
                count = self.read(plain, filled)
                filled += count
            elif taken[0] < length:
                taken[0] += self.feed(data + taken[0], length - taken[0])
            elif filled == 0 and self.state & TLS_SOCKET_ENDED:
                raise socket_ended()
            else:
                return filled
        if filled:
            return filled
        if self.state & TLS_FAILED:
            failure = self.failure          # it is going to have a traceback: not to be kept
            self.failure = None
            raise session_over() if failure is None else failure
        taken[0] = length
        return -1

    cdef Py_ssize_t read(self, bytearray plain, Py_ssize_t filled) except -2:
        """One record's plaintext, behind what is there; 0 for records that have none. All of it, so that OpenSSL never
        holds the rest of one: there, our close_notify would take it for an error."""
        cdef Py_ssize_t count
        self.enter()
        try:
            count = self.ssl_object.read(RECORD_BYTES, plain if filled == 0 else memoryview(plain)[filled:])
            self.records -= 1
            if count == 0:                  # close_notify, if ours was not sent; OpenSSL skips empty records
                self.state |= TLS_PEER_CLOSED
            return count
        except WantRead:                    # session tickets, a key update, the handshake's last bytes
            self.records = 0
        except ZeroReturn:
            self.state |= TLS_PEER_CLOSED
        except SSLError as error:
            self.state |= TLS_FAILED
            self.failure = without_traceback(error)
        except BaseException:               # a signal's handler: the plaintext is lost
            self.state |= TLS_FAILED
            raise
        finally:
            self.state &= ~<uint8_t>TLS_BUSY
        return 0

    cdef int hold(self, const char *data, Py_ssize_t length) except -1:
        cdef Py_ssize_t taken = 0
        while taken < length:
            taken += self.feed(data + taken, length - taken)
        return 0

    cdef int feed_end(self) except -1:
        self.state |= TLS_SOCKET_ENDED
        return 0

    cdef bint holds_input(self) noexcept:
        return self.records != 0 or self.state & (TLS_FAILED | TLS_PEER_CLOSED | TLS_SOCKET_ENDED) != 0

    cdef bint has_begun(self) noexcept:
        return self.header_length != 0 or self.holds_input()

    cdef Py_ssize_t feed(self, const char *data, Py_ssize_t length) except -1:
        """Give OpenSSL a batch of it; how much that was."""
        cdef Py_ssize_t count = self.frame(<const uint8_t *>data, length)
        self.incoming.write(PyMemoryView_FromMemory(<char *>data, count, PyBUF_READ))
        return count

    cdef Py_ssize_t frame(self, const uint8_t *data, Py_ssize_t length) noexcept:
        """Count the records in the next batch; how long it is."""
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t step
        while at < length and not self.state & TLS_UNFRAMED:
            if self.header_length < HEADER_BYTES:
                self.header[self.header_length] = data[at]
                self.header_length += 1
                at += 1
                if self.header_length == HEADER_BYTES:
                    self.body = self.header[3] << 8 | self.header[4]
                    if not is_record_header(self.header):
                        self.state |= TLS_UNFRAMED
            else:
                step = min(self.body, length - at)
                self.body -= step
                at += step
                if self.body == 0:
                    self.header_length = 0
                    self.records += 1
                    if at >= BATCH_BYTES:
                        return at
        if self.state & TLS_UNFRAMED:
            self.records += 1               # perhaps: OpenSSL looks
            at = max(at, min(length, <Py_ssize_t>BATCH_BYTES))
        return at

    # -- what goes out -------------------------------------------------------------------------------------------------

    cdef Py_ssize_t seal(self, const char *data, Py_ssize_t length) except -1:
        EK_ASSERT(self.state & (TLS_DONE | TLS_CLOSED) == TLS_DONE)
        if length == 0:
            return 0
        self.enter()
        view = PyMemoryView_FromMemory(<char *>data, min(length, <Py_ssize_t>RECORD_BYTES), PyBUF_READ)
        try:
            return self.ssl_object.write(view)
        except BaseException as error:
            self.state |= TLS_FAILED
            view.release()                  # the traceback has a frame of ssl's in which it lives on
            if isinstance(error, WantRead):     # a weakness: nobody would call again when the peer has answered
                raise SSLError(ssl.SSL_ERROR_SSL, "the peer renegotiates, which is not supported") from None
            if isinstance(error, SSLError):
                raise without_traceback(error)
            raise
        finally:
            self.state &= ~<uint8_t>TLS_BUSY

    cdef int close_notify(self) except -1:
        """unwrap() tells OpenSSL to send it, and then to read the other's. That reading takes application data for a
        fatal error; so there is nothing to read meanwhile."""
        if not self.state & TLS_DONE or self.state & (TLS_CLOSED | TLS_FAILED):
            return 0
        self.enter()
        self.state |= TLS_CLOSED
        unread = self.incoming.read()
        try:
            self.ssl_object.unwrap()
        except SSLError:                    # WantRead. Or it is in the middle of one more handshake, and can't
            pass
        except BaseException:
            self.state |= TLS_FAILED
            raise
        finally:
            self.incoming.write(unread)
            self.state &= ~<uint8_t>TLS_BUSY
        return 0

    cdef Py_ssize_t has_sealed(self) except -1:
        return self.outgoing.pending

    cdef bytes sealed(self):
        return self.outgoing.read()

    cdef int enter(self) except -1:
        if self.state & TLS_BUSY:
            raise UsageError("a callback of the SSLContext may not use the connection that it is called for")
        if self.state & TLS_FAILED:
            raise session_over()
        self.state |= TLS_BUSY
        return 0


cdef bint is_record_header(const uint8_t *header) noexcept:
    """Content types 20 to 24, version 3.x, a length that may be (RFC 8446 5.1, RFC 6520)."""
    return 20 <= header[0] <= 24 and header[1] == 3 and 0 < (header[3] << 8 | header[4]) <= MOST_CIPHERTEXT


cdef object without_traceback(error):
    """In the frames of the ssl module there is the session, and in that the context, which the collector does not see:
    whoever keeps an error would keep all three, or be kept by them for ever."""
    return error.with_traceback(None)


cdef object socket_ended():
    return ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the peer's socket ended without close_notify")


cdef object session_over():
    """What everything after an exception gets: nobody knows what OpenSSL had done by then."""
    return ssl.SSLError(ssl.SSL_ERROR_SSL, "this TLS session has ended with an error")


cdef class TlsPipe(Tls):
    """`Tls` for Python: for tests and tools. Streams do not go through it.

    Each method takes and gives bytes; what is not taken yet is kept here, so that a caller need not.
    """
    cdef bytes rest
    cdef public bytearray plain

    def __cinit__(self, *arguments, **options):
        self.rest = b""
        self.plain = bytearray(4 * RECORD_BYTES)

    def shake(self, bytes data not None=b""):
        """handshake(): whether it is done."""
        cdef Py_ssize_t taken = 0
        data = self.rest + data
        self.rest = b""
        done = self.handshake(data, len(data), &taken)
        self.rest = data[taken:]
        return bool(done)

    def open(self, bytes data not None=b""):
        """open_into() once: plaintext, b"" if more must come, None after the peer's close_notify."""
        cdef Py_ssize_t taken = 0
        data = self.rest + data
        self.rest = b""
        count = self.open_into(self.plain, data, len(data), &taken)
        self.rest = data[taken:]
        return bytes(self.plain[:count]) if count >= 0 else None

    def keep(self, bytes data not None):
        """hold()"""
        self.hold(data, len(data))

    def end(self):
        """feed_end()"""
        self.feed_end()

    def holds(self):
        """holds_input()"""
        return bool(self.holds_input())

    def write(self, bytes data not None):
        """seal() for all of it, and sealed()."""
        cdef const char *start = data
        cdef Py_ssize_t done = 0
        pieces = []
        while done < len(data):
            done += self.seal(start + done, len(data) - done)
            pieces.append(self.sealed())
        return b"".join(pieces)

    def close(self):
        """close_notify()"""
        self.close_notify()

    def take(self):
        """sealed(); has_sealed() says whether that is anything."""
        waiting = bool(self.has_sealed())
        data = self.sealed()
        assert waiting == bool(data)
        return data

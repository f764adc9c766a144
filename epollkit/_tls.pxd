"""Below the core: TLS as a state machine over ssl.SSLObject. Knows no socket, no loop and no stream.

    ciphertext -> handshake(), then open_into() -> plaintext        and after each of them, whatever it did or raised:
    plaintext -> seal() -> sealed()                                 if has_sealed(), send sealed()

Whoever calls holds a reference to the object meanwhile, and looks at its own state afterwards: each call runs Python.
`data` may be anywhere in memory that stays until the call returns; nothing keeps a pointer to it.
"""
from libc.stdint cimport uint8_t

cdef enum:
    RECORD_BYTES = 16384            # plaintext of one record at most (RFC 8446 5.1)
    HEADER_BYTES = 5
    MOST_CIPHERTEXT = 18432         # in a record at most, in any version: 2^14 + 2048 (RFC 5246 6.2.3)
    # A BIO keeps the memory of the most that ever was in it. So it gets whole records until there is this much, and
    # then the caller waits: a connection that is idle after a download has 24 KiB here, not what one recv brings.
    BATCH_BYTES = 4096

cdef enum TlsState:
    TLS_STARTED = 1                 # a client's hello is made; a server has none
    TLS_DONE = 2                    # the handshake is done
    TLS_UNFRAMED = 4                # what came does not look like TLS records: OpenSSL shall say so
    TLS_BUSY = 8                    # inside OpenSSL
    TLS_SOCKET_ENDED = 16           # feed_end()
    TLS_PEER_CLOSED = 32            # the peer's close_notify was read
    TLS_CLOSED = 64                 # ours was made
    TLS_FAILED = 128                # an error has ended the session: nothing is asked of OpenSSL any more


cdef class Tls:
    cdef readonly object ssl_object             # ssl.SSLObject
    cdef object incoming, outgoing              # its ssl.MemoryBIO
    cdef object failure                         # an error found behind plaintext, which is delivered first
    cdef Py_ssize_t records                     # whole ones in `incoming`: at most so many, 0 for sure
    cdef Py_ssize_t body                        # bytes of the record that has begun which are still to come
    cdef uint8_t header[HEADER_BYTES]
    cdef uint8_t header_length
    cdef uint8_t state                          # TlsState

    # 1: done, and the rest of the data is for open_into(); 0: all was taken, more must come from the peer. Raises
    # ssl.SSLError. With length 0 it starts, as a client has to.
    cdef int handshake(self, const char *data, Py_ssize_t length, Py_ssize_t *taken) except -1
    # Plaintext put into `plain`, which has room for RECORD_BYTES or more; 0: all was taken, and there is no more;
    # -1: the peer's close_notify, now and for ever. As long as it is more than 0, call again with what was not taken.
    # Raises ssl.SSLError; ssl.SSLEOFError when the socket ended without a close_notify.
    cdef Py_ssize_t open_into(self, bytearray plain, const char *data, Py_ssize_t length,
                              Py_ssize_t *taken) except -2
    # Keep ciphertext for later, however much: for a reader that pauses between two calls of open_into().
    cdef int hold(self, const char *data, Py_ssize_t length) except -1
    # The socket's end was read.
    cdef int feed_end(self) except -1
    # Whether open_into() has something to say without more ciphertext.
    cdef bint holds_input(self) noexcept
    # Whether the peer has begun to say something, if only the first byte of a record.
    cdef bint has_begun(self) noexcept

    # How many bytes were encrypted, a record at most. What it raises ends the session.
    cdef Py_ssize_t seal(self, const char *data, Py_ssize_t length) except -1
    # Our close_notify, the last that is sealed; reading goes on. Before the handshake is done, or after an error, or
    # again: does nothing.
    cdef int close_notify(self) except -1
    # How many bytes are to be sent.
    cdef Py_ssize_t has_sealed(self) except -1
    # All that is to be sent; b"" if there is nothing. Taken after each seal(), it keeps the BIO small.
    cdef bytes sealed(self)

    # inside
    cdef int step(self) except -1
    cdef Py_ssize_t feed(self, const char *data, Py_ssize_t length) except -1
    cdef Py_ssize_t frame(self, const uint8_t *data, Py_ssize_t length) noexcept
    cdef Py_ssize_t read(self, bytearray plain, Py_ssize_t filled) except -2
    cdef int enter(self) except -1

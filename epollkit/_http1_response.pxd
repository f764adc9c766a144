"""HTTP/1.1 response heads, and the bodies of requests and responses, sans I/O: bytes in, offsets out (RFC 9112).

A response head is read into a `Head` as a request's is, by the same rules for its fields and with the same limits; what
is refused has a reason, `response_reason_text(head.reason)`. A body, of either, is decoded by a `Body`, which keeps all
that it has to remember: no byte that it took is needed again. Trailers are checked, and left out.

    head_reset(&head)                                   # for every head, also behind an interim one
    taken = parse_response_head(&head, data, length, &limits)
    if head.status < 200:                               # interim: the next head follows (RFC 9110 15.2); but behind 101
        ...                                             # the connection speaks another protocol
    body_begin(&body, response_framing(&head, was_head_request), head.content_length)
    while not body.done:
        taken = body_take(&body, data, length, &limits) # its payload: data[body.payload:][:body.payload_length]
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t

from epollkit._http1 cimport Head, HeadLimits, REASON_COUNT

cdef enum Framing:              # Body.framing: how the end of a body is known (RFC 9112 6.3)
    BODY_NONE = 0               # there is none
    BODY_LENGTH                 # Content-Length
    BODY_CHUNKED                # Transfer-Encoding: chunked
    BODY_UNTIL_CLOSE            # a response's only: all that comes before the connection's end; it is not kept alive
    BODY_REFUSED                # what was taken of it before is no body

cdef enum ResponseReason:       # Head.reason and Body.reason, besides those of `_http1`; what they mean: the .pyx
    STATUS_LINE_VERSION = REASON_COUNT
    STATUS_SYNTAX
    PHRASE_BYTE
    STATUS_LINE_TOO_LONG
    CHUNK_SIZE_SYNTAX
    CHUNK_SIZE_TOO_LARGE
    CHUNK_EXTENSION_SYNTAX
    CHUNK_EXTENSIONS_TOO_LONG
    CHUNK_DATA_END
    TRAILER_FORBIDDEN
    TRAILERS_TOO_LONG
    BODY_CUT_OFF
    REASON_END

cdef enum:
    GATEWAY_STATUS = 502        # what a gateway answers its client for whatever is refused here (RFC 9110 15.6.3)

    MAX_CHUNK_SIZE_DIGITS = 16  # leading zeros count: they are no reason to read for ever
    MAX_TRAILER_NAME = 24       # the longest name that is looked at has 19 (proxy-authorization)

    DEFAULT_EXTENSION_BYTES = 16384     # nobody reads extensions; some sign each chunk with one of 85 bytes
    DEFAULT_TRAILER_BYTES = 8190

cdef struct BodyLimits:         # of a chunked body
    uint32_t extension_bytes    # of all its chunk extensions together, from the semicolon, or whitespace, to the CRLF
    uint32_t trailer_bytes      # of all its trailer lines together, their CRLFs not counted

cdef struct Body:
    # Of the last body_take(): the payload in what it took, an offset from its `data`.
    size_t payload
    size_t payload_length       # may be 0
    uint8_t done                # 1: the body is complete; what is behind it belongs to the next message
    uint8_t reason              # of a refused body: the code that response_reason_text() puts into words; 0 else
    uint8_t framing             # BODY_NONE ...
    # Where decoding stands (private).
    uint8_t stage               # of BODY_CHUNKED: what comes next
    uint8_t size_digits         # of the chunk size that is being read
    uint8_t name_length         # of the trailer's name that is being read, at most MAX_TRAILER_NAME + 1
    uint32_t extension_bytes    # so far
    uint32_t trailer_bytes      # so far
    int64_t left                # payload still to come, of the body or of the chunk
    char name[MAX_TRAILER_NAME]     # of the trailer, in lower case

# `data`: the head's first byte. > 0: complete, the bytes it took (blank line included). 0: needs more (call again with
# the same bytes and more behind them, never with fewer). < 0: refused, minus GATEWAY_STATUS. Every answer but 0 is
# final: another call for the same head repeats it. `limits.request_line_bytes` is of the status line here.
# Of the result, `status`, `phrase`, `minor_version`, `keep_alive`, `chunked`, `content_length` and `fields` are set.
cdef int parse_response_head(Head *head, const uint8_t *data, size_t length, const HeadLimits *limits) noexcept nogil

# How the body behind a complete response head is framed: its Framing. A response to HEAD has none, nor has one with
# status 1xx, 204 or 304, whatever its fields say. (One to CONNECT may open a tunnel: not known here.)
cdef int response_framing(const Head *head, bint was_head_request) noexcept nogil

# Make `body` ready for a new body. `length`: of BODY_LENGTH, else left alone. Returns 0.
cdef int body_begin(Body *body, int framing, int64_t length) noexcept nogil

# The connection has ended: 0 if that is the body's end or it was complete before (`done`), < 0 if it is cut off.
cdef int body_end(Body *body) noexcept nogil

# body_take() of everything but BODY_LENGTH.
cdef Py_ssize_t body_decode(Body *body, const uint8_t *data, size_t length, const BodyLimits *limits) noexcept nogil

# The sentence for a reason, and the PeerErrors for what was refused: the sentence and, of a head, the place.
cpdef str response_reason_text(int reason)
cdef object response_refusal(const Head *head)
cdef object body_refusal(const Body *body)


# Take the next bytes of a body, up to the end of one stretch of payload: how many were taken (they need not come
# again), `body.payload` and `body.payload_length`. 0: it is `done`, or there were none. < 0: refused, minus
# GATEWAY_STATUS, and so is every later call. What is behind a complete body is never taken.
cdef inline Py_ssize_t body_take(Body *body, const uint8_t *data, size_t length,
                                 const BodyLimits *limits) noexcept nogil:
    if body.framing != BODY_LENGTH:
        return body_decode(body, data, length, limits)
    if <int64_t>length > body.left:
        length = <size_t>body.left
    body.left -= <int64_t>length
    body.done = body.left == 0
    body.payload = 0
    body.payload_length = length
    return <Py_ssize_t>length

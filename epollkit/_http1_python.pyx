"""The Python face of `_http1` and `_http1_response`: for tests, tools and fuzzing. Nothing else goes through it."""
from collections import namedtuple

from libc.stdint cimport uint8_t

from epollkit._http1 cimport (
    DEFAULT_FIELD_BYTES, DEFAULT_FIELDS, DEFAULT_REQUEST_LINE_BYTES, Head, HeadField, HeadLimits, MAX_HEAD_BYTES,
    MAX_HEAD_FIELDS, head_refusal, head_reset, parse_head, valid_field_name, valid_field_value,
)

from epollkit._http1_response cimport (
    BODY_LENGTH, Body, BodyLimits, DEFAULT_EXTENSION_BYTES, DEFAULT_TRAILER_BYTES, body_begin, body_end, body_refusal,
    body_take, parse_response_head, response_framing, response_refusal,
)

from epollkit.errors import UsageError


class RequestHead(namedtuple("RequestHead", "method target minor_version headers content_length chunked keep_alive "
                                            "expect_continue consumed")):
    """A complete request head.

    method, target: str, as sent. minor_version: int, 0 or 1. headers: list of (name, value) in bytes, in the order they
    came, names in lower case. content_length: int, None without one. chunked: bool. keep_alive: bool, whether the peer
    would use the connection again. expect_continue: bool. consumed: int, bytes the head took, blank line included.
    """
    __slots__ = ()


class ResponseHead(namedtuple("ResponseHead", "status phrase minor_version headers content_length chunked keep_alive "
                                              "framing consumed")):
    """A complete response head.

    status: int. phrase: bytes, the reason phrase. minor_version, headers, content_length, chunked, keep_alive,
    consumed: as those of a RequestHead. framing: how its body ends, "none", "length", "chunked" or "close".
    """
    __slots__ = ()


cdef tuple FRAMINGS = ("none", "length", "chunked", "close")    # by BODY_NONE ...


cdef int set_limits(HeadLimits *limits, str line, line_bytes, fields, field_bytes) except -1:
    for name, value, most in ((line, line_bytes, MAX_HEAD_BYTES),
                              ("fields", fields, MAX_HEAD_FIELDS),
                              ("field_bytes", field_bytes, MAX_HEAD_BYTES)):
        if not 1 <= value <= most:
            raise UsageError(f"{name} is {value!r}; a number from 1 to {most} is right")
    limits.request_line_bytes = line_bytes
    limits.fields = fields
    limits.field_bytes = field_bytes
    return 0


cdef list head_fields(const Head *head, const uint8_t *data):
    cdef list headers = []
    cdef const HeadField *field
    cdef const char *text = <const char *>data
    cdef size_t i
    for i in range(head.field_count):
        field = &head.fields[i]
        name = text[field.name:field.name + field.name_length]
        headers.append((name.lower(), text[field.value:field.value + field.value_length]))
    return headers


cdef object request_head(const Head *head, const uint8_t *data):
    """The Python form of a complete head."""
    cdef const char *text = <const char *>data
    return RequestHead(
        method=text[head.method_name:head.method_name + head.method_name_length].decode("ascii"),
        target=text[head.target:head.target + head.target_length].decode("ascii"),
        minor_version=head.minor_version,
        headers=head_fields(head, data),
        content_length=None if head.content_length < 0 else head.content_length,
        chunked=bool(head.chunked),
        keep_alive=bool(head.keep_alive),
        expect_continue=bool(head.expect_continue),
        consumed=head.consumed,
    )


cdef object response_head(const Head *head, const uint8_t *data, bint was_head_request):
    """The Python form of a complete head."""
    cdef const char *text = <const char *>data
    return ResponseHead(
        status=head.status,
        phrase=text[head.phrase:head.phrase + head.phrase_length],
        minor_version=head.minor_version,
        headers=head_fields(head, data),
        content_length=None if head.content_length < 0 else head.content_length,
        chunked=bool(head.chunked),
        keep_alive=bool(head.keep_alive),
        framing=FRAMINGS[response_framing(head, was_head_request)],
        consumed=head.consumed,
    )


cdef class HeadReader:
    """Reads one request head that comes in pieces. Not thread-safe.

    :param request_line_bytes: the most that a request line may have, its CRLF not counted.
    :param fields: the most field lines, at most 100.
    :param field_bytes: the most that one field line may have, its CRLF not counted.
    :raises UsageError: a limit is out of range.
    """
    cdef Head head
    cdef HeadLimits limits
    cdef bytearray buffer
    cdef bint finished

    def __cinit__(self, *, request_line_bytes=DEFAULT_REQUEST_LINE_BYTES, fields=DEFAULT_FIELDS,
                  field_bytes=DEFAULT_FIELD_BYTES):
        set_limits(&self.limits, "request_line_bytes", request_line_bytes, fields, field_bytes)
        head_reset(&self.head)
        self.buffer = bytearray()

    def feed(self, bytes data not None):
        """Take the next piece; return the RequestHead once it is complete, None before.

        Bytes behind the head are not kept: `consumed` of the result, less what earlier pieces had, is where they start.

        :raises PeerError: the head is refused; `.status` is the HTTP status that says why.
        :raises UsageError: the head was complete or refused already.
        """
        cdef const uint8_t *head_bytes
        cdef int taken
        if self.finished:
            raise UsageError("this HeadReader has read its head; a new head needs a new reader")
        self.buffer += data
        head_bytes = <const uint8_t *><const char *>self.buffer
        taken = parse_head(&self.head, head_bytes, len(self.buffer), &self.limits)
        if taken == 0:
            return None
        self.finished = True
        if taken < 0:
            raise head_refusal(&self.head)
        return request_head(&self.head, head_bytes)


cdef class ResponseReader:
    """Reads one response head that comes in pieces. Not thread-safe.

    :param head: whether the request was HEAD, so that no body follows.
    :param status_line_bytes: the most that a status line may have, its CRLF not counted.
    :param fields, field_bytes: as for HeadReader.
    :raises UsageError: a limit is out of range.
    """
    cdef Head head
    cdef HeadLimits limits
    cdef bytearray buffer
    cdef bint finished
    cdef bint was_head_request

    def __cinit__(self, *, head=False, status_line_bytes=DEFAULT_REQUEST_LINE_BYTES, fields=DEFAULT_FIELDS,
                  field_bytes=DEFAULT_FIELD_BYTES):
        set_limits(&self.limits, "status_line_bytes", status_line_bytes, fields, field_bytes)
        head_reset(&self.head)
        self.buffer = bytearray()
        self.was_head_request = head

    def feed(self, bytes data not None):
        """Take the next piece; return the ResponseHead once it is complete, None before.

        Bytes behind the head are not kept: `consumed` of the result, less what earlier pieces had, is where they start.

        :raises PeerError: the head is refused; `.status` is 502.
        :raises UsageError: the head was complete or refused already.
        """
        cdef const uint8_t *head_bytes
        cdef int taken
        if self.finished:
            raise UsageError("this ResponseReader has read its head; a new head needs a new reader")
        self.buffer += data
        head_bytes = <const uint8_t *><const char *>self.buffer
        taken = parse_response_head(&self.head, head_bytes, len(self.buffer), &self.limits)
        if taken == 0:
            return None
        self.finished = True
        if taken < 0:
            raise response_refusal(&self.head)
        return response_head(&self.head, head_bytes, self.was_head_request)


cdef class BodyReader:
    """Decodes one body that comes in pieces. Not thread-safe.

    :param framing: how it ends, "none", "length", "chunked" or "close".
    :param length: its length, if it is "length".
    :param extension_bytes: the most that the extensions of all its chunks may have together.
    :param trailer_bytes: the most that its trailer lines may have together, their CRLFs not counted.
    :raises UsageError: there is no such framing, or a number is below 0.
    """
    cdef Body body
    cdef BodyLimits limits

    def __cinit__(self, framing, length=0, *, extension_bytes=DEFAULT_EXTENSION_BYTES,
                  trailer_bytes=DEFAULT_TRAILER_BYTES):
        if framing not in FRAMINGS or length < 0 or extension_bytes < 0 or trailer_bytes < 0:
            raise UsageError(f"no body is framed as {framing!r} with {length!r} bytes and these limits")
        self.limits.extension_bytes = extension_bytes
        self.limits.trailer_bytes = trailer_bytes
        body_begin(&self.body, FRAMINGS.index(framing), length if FRAMINGS.index(framing) == BODY_LENGTH else 0)

    @property
    def done(self):
        """The body is complete."""
        return bool(self.body.done)

    def take(self, bytes data not None):
        """Decode the next bytes, up to the end of one stretch of payload: (how many were taken, that payload).

        :raises PeerError: the body is refused, now or before; `.status` is 502.
        """
        cdef const uint8_t *text = <const uint8_t *><const char *>data
        cdef Py_ssize_t taken = body_take(&self.body, text, len(data), &self.limits)
        if taken < 0:
            raise body_refusal(&self.body)
        return taken, data[self.body.payload:self.body.payload + self.body.payload_length]

    def end(self):
        """The connection has ended.

        :raises PeerError: so the body is cut off, or it was refused before.
        """
        if body_end(&self.body) < 0:
            raise body_refusal(&self.body)


def parse_request_head(bytes data not None, *, request_line_bytes=DEFAULT_REQUEST_LINE_BYTES, fields=DEFAULT_FIELDS,
                       field_bytes=DEFAULT_FIELD_BYTES):
    """Parse the request head that `data` starts with; None when its end is not there yet.

    :param data: bytes from the head's first one on; what is behind the head is left alone.
    :param request_line_bytes, fields, field_bytes: limits, as for HeadReader.
    :raises PeerError, UsageError: as HeadReader does.
    """
    return HeadReader(request_line_bytes=request_line_bytes, fields=fields, field_bytes=field_bytes).feed(data)


def is_field_name(bytes name not None):
    """May a field have this name? One or more token characters (RFC 9110 5.6.2)."""
    return bool(valid_field_name(<const uint8_t *><const char *>name, len(name)))


def is_field_value(bytes value not None):
    """May a field have this value? No control byte but HTAB, no whitespace at either end (RFC 9110 5.5)."""
    return bool(valid_field_value(<const uint8_t *><const char *>value, len(value)))

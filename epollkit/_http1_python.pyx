"""The Python face of `_http1`: for tests, tools and fuzzing. The server does not go through it."""
from collections import namedtuple

from libc.stdint cimport uint8_t

from epollkit._http1 cimport (
    DEFAULT_FIELD_BYTES, DEFAULT_FIELDS, DEFAULT_REQUEST_LINE_BYTES, Head, HeadField, HeadLimits, MAX_HEAD_BYTES,
    MAX_HEAD_FIELDS, head_refusal, head_reset, parse_head, valid_field_name, valid_field_value,
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


cdef int set_limits(HeadLimits *limits, request_line_bytes, fields, field_bytes) except -1:
    for name, value, most in (("request_line_bytes", request_line_bytes, MAX_HEAD_BYTES),
                              ("fields", fields, MAX_HEAD_FIELDS),
                              ("field_bytes", field_bytes, MAX_HEAD_BYTES)):
        if not 1 <= value <= most:
            raise UsageError(f"{name} is {value!r}; a number from 1 to {most} is right")
    limits.request_line_bytes = request_line_bytes
    limits.fields = fields
    limits.field_bytes = field_bytes
    return 0


cdef object request_head(const Head *head, const uint8_t *data):
    """The Python form of a complete head."""
    cdef list headers = []
    cdef const HeadField *field
    cdef const char *text = <const char *>data
    cdef size_t i
    for i in range(head.field_count):
        field = &head.fields[i]
        name = text[field.name:field.name + field.name_length]
        headers.append((name.lower(), text[field.value:field.value + field.value_length]))
    return RequestHead(
        method=text[head.method_name:head.method_name + head.method_name_length].decode("ascii"),
        target=text[head.target:head.target + head.target_length].decode("ascii"),
        minor_version=head.minor_version,
        headers=headers,
        content_length=None if head.content_length < 0 else head.content_length,
        chunked=bool(head.chunked),
        keep_alive=bool(head.keep_alive),
        expect_continue=bool(head.expect_continue),
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
        set_limits(&self.limits, request_line_bytes, fields, field_bytes)
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

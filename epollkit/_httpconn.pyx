"""`HttpConnection`: parse, call the application, answer; and the `Request` and `Response` it deals in."""
import logging
from http import HTTPStatus
from urllib.parse import unquote

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject, visitproc
from cpython.ref cimport Py_DECREF, Py_REFCNT
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy
from libc.time cimport gmtime_r, time_t, tm

cimport cython

cimport epollkit._sys as _sys
from epollkit._http1 cimport (
    HEAD_HEAD,
    HEAD_OTHER,
    Head,
    HeadField,
    HeadLimits,
    MAX_HEAD_BYTES,
    MAX_HEAD_FIELDS,
    head_refusal,
    head_reset,
    parse_head,
    valid_field_name,
    valid_field_value,
)
from epollkit._room cimport rest
from epollkit._slots cimport SLOT_IDLE
from epollkit._buffered cimport (
    READ_ROOM_BYTES, SCRATCH_BYTES, SCRATCH_PIECE_BYTES, STREAM_CLOSING, STREAM_LINGERS, STREAM_MAY_LINGER,
    STREAM_PAUSED, Loop, has_unsent, reserve,
)
from epollkit._connection cimport Connection

from epollkit._checks import checked_number
from epollkit.errors import UsageError

logger = logging.getLogger("epollkit")

cdef tuple METHODS = ("", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE")   # by HEAD_GET ...
cdef dict REASONS = {status.value: status.phrase for status in HTTPStatus}
cdef list STATUS_LINES = [f"HTTP/1.1 {code} {REASONS.get(code, '')}\r\n".encode() for code in range(1000)]
cdef frozenset OURS = frozenset((b"content-length", b"transfer-encoding", b"date"))     # headers the server sets

cdef bytes CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
cdef bytes CLOSE_HEADER = b"Connection: close\r\n"
cdef bytes REFUSAL_HEADERS = b"Content-Type: text/plain\r\nConnection: close\r\n\r\n"
cdef bytes KEEP_HEADER = b"Connection: keep-alive\r\n"      # HTTP/1.0 wants to be told
cdef Py_ssize_t FLUSH_AT_BYTES = SCRATCH_BYTES // 2         # answers of a pipeline are sent, and back-pressure is felt

cdef extern from *:
    """
    /* The exception that is set already, as one that Cython knows of. */
    static inline int ek_raise(void) { return -1; }
    """
    int ek_raise() except -1
    PyObject *PyObject_CallOneArg(PyObject *function, PyObject *argument)      # NULL: an exception is set

cdef enum:
    HEAD_ROOM = 256             # all that the server itself puts into a head
    DATE_BYTES = 37
    OK_BYTES = 17

cdef const char *OK_LINE = b"HTTP/1.1 200 OK\r\n"
cdef const char *LENGTH_NAME = b"Content-Length: "
cdef bytes NO_BODY = b""
cdef tuple NO_HEADERS = ()
cdef object OK = 200
cdef HeadLimits NO_LIMITS   # for heads that were accepted once
NO_LIMITS.request_line_bytes = NO_LIMITS.field_bytes = MAX_HEAD_BYTES
NO_LIMITS.fields = MAX_HEAD_FIELDS

cdef int64_t date_second = 0
cdef char date_header[DATE_BYTES]


cdef int write_date(int64_t seconds, char *out) noexcept nogil:
    """The Date header, DATE_BYTES of it (IMF-fixdate, RFC 9110 5.6.7): in English whatever the locale, and without
    Python, for nothing may come between a read and its answers."""
    cdef const char *days = b"SunMonTueWedThuFriSat"
    cdef const char *months = b"JanFebMarAprMayJunJulAugSepOctNovDec"
    cdef char text[64]
    cdef time_t when = seconds
    cdef tm utc
    gmtime_r(&when, &utc)
    snprintf(text, sizeof(text), b"Date: %.3s, %02d %.3s %04d %02d:%02d:%02d GMT\r\n", days + 3 * utc.tm_wday,
             utc.tm_mday, months + 3 * utc.tm_mon, utc.tm_year + 1900, utc.tm_hour, utc.tm_min, utc.tm_sec)
    memcpy(out, text, DATE_BYTES)
    return 0


def http_date(int64_t seconds):
    """Seconds since 1970 as HTTP writes a date: "Sun, 06 Nov 1994 08:49:37 GMT". From the year 1 to 9999."""
    cdef char header[DATE_BYTES]
    if not -62135596800 <= seconds <= 253402300799:
        raise UsageError(f"a date of HTTP is between the years 1 and 9999, not {seconds} seconds from 1970")
    write_date(seconds, header)
    return header[6:DATE_BYTES - 2].decode("ascii")


cdef int refresh_date() noexcept:
    """Make `date_header` that of this second (RFC 9110 6.6.1): once per read, not per answer."""
    global date_second
    cdef int64_t now = _sys.ek_wall_seconds()
    if now != date_second:
        write_date(now, date_header)
        date_second = now
    return 0


cdef inline Py_ssize_t append(char *out, Py_ssize_t used, bytes data) noexcept:
    memcpy(out + used, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    return used + PyBytes_GET_SIZE(data)


cdef inline Py_ssize_t append_length(char *out, Py_ssize_t used, Py_ssize_t length) noexcept:
    """The Content-Length header: at most 37 bytes."""
    cdef char digits[20]
    cdef Py_ssize_t count = 0
    memcpy(out + used, LENGTH_NAME, 16)
    used += 16
    while True:
        digits[count] = <char>(48 + <size_t>length % 10)
        count += 1
        length = <size_t>length // 10
        if length == 0:
            break
    while count:
        count -= 1
        out[used] = digits[count]
        used += 1
    out[used] = 13
    out[used + 1] = 10
    return used + 2


cdef inline Py_ssize_t append_status(char *out, int status) noexcept:
    """The status line and the date."""
    cdef Py_ssize_t used = OK_BYTES
    if status == 200:
        memcpy(out, OK_LINE, OK_BYTES)
    else:
        used = append(out, 0, <bytes>STATUS_LINES[status])
    memcpy(out + used, date_header, DATE_BYTES)
    return used + DATE_BYTES


cdef int64_t checked_seconds(str name, object value) except -1:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1e6:
        raise UsageError(f"{name} is a number of seconds above 0, at most a million, not {value!r}")
    return <int64_t>(<double>value * 1e9) + 1        # 0 would mean without end


cdef class Settings:
    def __init__(self, app, *, admit=None, limit_request_line=8190, limit_request_fields=100,
                 limit_request_field_size=8190, limit_request_body=BODY_LIMIT_BYTES, timeout_header=10.0,
                 timeout_body=30.0, timeout_write=30.0, timeout_keep_alive=75.0):
        if not callable(app):
            raise UsageError(f"an application is called with a Request and returns a Response; {app!r} can't be called")
        if admit is not None and not callable(admit):
            raise UsageError(f"admit is called with the peer's address and returns a bool; {admit!r} can't be called")
        self.app = app
        self.admit = admit
        self.limits.request_line_bytes = checked_number("limit_request_line", limit_request_line, 16, 65535)
        self.limits.fields = checked_number("limit_request_fields", limit_request_fields, 1, 100)
        self.limits.field_bytes = checked_number("limit_request_field_size", limit_request_field_size, 16, 65535)
        self.body_limit = checked_number("limit_request_body", limit_request_body, 0, BODY_LIMIT_BYTES)
        self.header_timeout_ns = checked_seconds("timeout_header", timeout_header)
        self.body_timeout_ns = checked_seconds("timeout_body", timeout_body)
        self.write_timeout_ns = checked_seconds("timeout_write", timeout_write)
        self.keep_alive_timeout_ns = checked_seconds("timeout_keep_alive", timeout_keep_alive)

    def __call__(self):
        cdef HttpConnection connection = HttpConnection.__new__(HttpConnection)
        connection.settings = self
        return connection


@cython.no_gc               # its connection refers back to it while it is open only: see HttpConnection.visit
@cython.freelist(16)
cdef class Request:
    """One request, whole.

    Attributes:
        method: str, as sent ("GET"). target: str, as sent. path: str, percent-decoded UTF-8, without the query.
        query: str, what follows the first "?", as sent. headers: list of (name, value), bytes, names in lower case, in
        the order they came. body: bytes. minor_version: 1 or 0 (HTTP/1.x). connection: the `HttpConnection` it came on.
    """

    def __cinit__(self):
        _sys.EK_MADE(_sys.EK_REQUEST)

    def __init__(self):
        raise UsageError("a Request is made by the server")

    @property
    def method(self):
        if self.method_code != HEAD_OTHER:
            return METHODS[self.method_code]
        return self.text(self.method_offset, self.method_length)

    @property
    def target(self):
        return self.text(self.target_offset, self.target_length)

    cdef str text(self, uint16_t offset, uint16_t length):
        if self.head == NULL:
            raise UsageError("a Request is made by the server")
        return PyUnicode_DecodeASCII(self.head + offset, length, NULL)

    cdef int keep_head(self) except -1:
        """Somebody keeps this request, and where its head was received something else will be."""
        cdef const char *received = self.head
        if self.own_head is None:
            self.head = NULL                # should there be no memory
            self.own_head = PyBytes_FromStringAndSize(received, self.head_length)
            self.head = PyBytes_AS_STRING(self.own_head)
        return 0

    @property
    def path(self):
        if self.path_text is None:
            path = self.target.partition("?")[0]
            if path[:1] not in "/*":                    # absolute form: http://host/path
                path = "/" + path.partition("://")[2].partition("/")[2]
            self.path_text = unquote(path) if "%" in path else path
        return self.path_text

    @property
    def query(self):
        return self.target.partition("?")[2]

    @property
    def headers(self):
        return list(self.parsed_headers())          # the caller's own: what it puts into it is not the request's

    cdef tuple parsed_headers(self):
        cdef Head head
        cdef HeadField *field
        cdef list pairs = []
        cdef Py_ssize_t i
        if self.header_pairs is None:
            if self.head == NULL:
                raise UsageError("a Request is made by the server")
            head_reset(&head)
            parse_head(&head, <const uint8_t *>self.head, self.head_length, &NO_LIMITS)
            for i in range(head.field_count):
                field = &head.fields[i]
                pairs.append((self.head[field.name:field.name + field.name_length].lower(),
                              self.head[field.value:field.value + field.value_length]))
            self.header_pairs = tuple(pairs)
        return self.header_pairs

    def header(self, name, default=None):
        """The first header of that name (bytes or str, any case), as bytes; or default."""
        wanted = (name.encode("latin-1") if isinstance(name, str) else name).lower()
        for key, value in self.parsed_headers():
            if key == wanted:
                return value
        return default

    def __repr__(self):
        return f"<Request {self.method} {self.target}>"


cdef Request make_request(HttpConnection connection, const Head *head, const uint8_t *data, Py_ssize_t length):
    cdef Settings settings = connection.settings
    cdef Request request = settings.spare
    if request is None:
        request = Request.__new__(Request)
    else:
        settings.spare = None
    request.head = <const char *>data
    request.head_length = length
    request.body = NO_BODY
    request.connection = connection
    request.target_offset = head.target
    request.target_length = head.target_length
    request.method_offset = head.method_name
    request.method_length = head.method_name_length
    request.method_code = head.method
    request.minor_version = head.minor_version
    request.keep_alive = head.keep_alive
    return request


cdef int put_away(HttpConnection connection, Request request) except -1:
    """It was answered. If nobody keeps it, the next one is made of it; of this one nothing is left in it."""
    if Py_REFCNT(request) > 1 or connection.settings is None:
        return 0
    request.head = NULL
    request.body = None
    request.connection = None
    if request.own_head is not None:
        request.own_head = None
    if request.path_text is not None:
        request.path_text = None
    if request.header_pairs is not None:
        request.header_pairs = None
    connection.settings.spare = request
    return 0


cdef tuple checked_headers(tuple headers):
    """The same as tuples. UsageError for what would split the response, or is the server's to set."""
    cdef list pairs = []
    for header in headers:
        try:
            name, value = header
        except (TypeError, ValueError):
            raise UsageError(f"a header is a pair (name, value) of bytes, not {header!r}") from None
        if type(name) is not bytes or not valid_field_name(<const uint8_t *>PyBytes_AS_STRING(name),
                                                           PyBytes_GET_SIZE(name)):
            raise UsageError(f"a header's name is bytes made of token characters (RFC 9110 5.6.2), not {name!r}")
        if type(value) is not bytes or not valid_field_value(<const uint8_t *>PyBytes_AS_STRING(value),
                                                             PyBytes_GET_SIZE(value)):
            raise UsageError(f"the value of {name!r} is bytes without control characters or whitespace at its ends "
                             f"(RFC 9110 5.5), not {value!r}")
        lower = name.lower()
        if lower in OURS:
            raise UsageError(f"{name!r} is set by the server")
        if lower == b"connection" and value.lower() != b"close":
            raise UsageError(f"the only Connection an application may ask for is b'close', not {value!r}")
        pairs.append((name, value))
    return tuple(pairs)


cdef bytes serialise_headers(tuple headers, bint *close):
    """Ready to send; Connection: close is told to `close` instead."""
    cdef list lines = []
    for name, value in headers:
        if name.lower() == b"connection":
            close[0] = True
        else:
            lines += (name, b": ", value, b"\r\n")
    return b"".join(lines)


@cython.no_gc               # it holds bytes, and tuples of bytes
@cython.freelist(16)
cdef class Response:
    """An answer. Names and values are checked here, so no response can be split.

    Args:
        body: bytes. status: 200 to 599. headers: pairs (name, value) of bytes. Content-Length and Date are the
        server's; `(b"connection", b"close")` closes the connection after this answer.
    Raises UsageError for anything else.
    """

    def __cinit__(self):
        _sys.EK_MADE(_sys.EK_RESPONSE)

    def __init__(self, body=b"", status=200, headers=()):
        if type(body) is not bytes:
            raise UsageError(f"a body is bytes, not {type(body).__name__}; encode text, read files")
        if status is OK:
            self.status = 200
        else:
            self.status = checked_number("status", status, 200, 599)
        self.body = body
        self.pairs = self.block = None
        self.close = False
        if headers is not NO_HEADERS:
            try:
                pairs = tuple(headers)
            except TypeError:
                raise UsageError(f"headers are pairs (name, value) of bytes, not {headers!r}") from None
            self.pairs = checked_headers(pairs)
            self.block = serialise_headers(self.pairs, &self.close)

    @property
    def headers(self):
        return self.pairs or ()

    def __repr__(self):
        return f"<Response {self.status} {len(self.body or b'')} bytes>"


cdef class Partial:
    def __cinit__(self):
        head_reset(&self.head)
        _sys.EK_MADE(_sys.EK_PARTIAL)


cdef extern from "Python.h":
    ctypedef object (*vectorcallfunc)(PyObject *, PyObject *const *, size_t, PyObject *)
    ctypedef struct CallableType "PyTypeObject":
        vectorcallfunc tp_vectorcall
    size_t PyVectorcall_NARGS(size_t flags)

cdef vectorcallfunc call_response = (<CallableType *>Response).tp_vectorcall


cdef object call_response_fast(PyObject *kind, PyObject *const *arguments, size_t flags, PyObject *names):
    """`Response(body)`: most answers are made so, and for them Python's general way of calling a class is a third of
    the price. `__init__` is the truth about all others, and says what is wrong."""
    cdef Response response
    if names != NULL or PyVectorcall_NARGS(flags) != 1 or type(<object>arguments[0]) is not bytes:
        return call_response(kind, arguments, flags, names)
    response = Response.__new__(Response)
    response.body = <bytes>arguments[0]
    response.status = 200
    return response


if call_response != NULL:
    (<CallableType *>Response).tp_vectorcall = call_response_fast       # subclasses do not inherit it


@cython.no_gc
cdef class HttpConnection(Connection):
    """One HTTP/1.1 connection of a server. Applications meet it as `Request.connection`."""

    write_limit = 1 << 62       # an answer is as large as the application makes it; see may_go_on for the pipeline

    def __init__(self):
        raise UsageError("an HttpConnection is made by the server")

    # -- input ---------------------------------------------------------------------------------------------------------

    cdef int take_open(self) except -1:
        if self.settings is None:
            raise UsageError("an HttpConnection comes from epollkit.http.Settings, which is the factory to listen with")
        if self.settings.admit is not None and not self.settings.admit(self.peer_address):
            self.abort()
        if self.slot == NULL:
            return 0
        return self.set_deadline_ns(self.settings.header_timeout_ns)

    cdef int take_data(self, const char *data, Py_ssize_t length) except -1:
        cdef Partial partial = self.partial
        cdef Py_ssize_t used
        cdef Head head
        if self.error:                          # the peer is gone: nobody would read the answers
            return 0
        self.slot.flags &= ~<uint16_t>SLOT_IDLE
        if partial is None:
            head_reset(&head)
            used = self.consume(<const uint8_t *>data, length, &head)
            self.keep(data + used, length - used, &head)
        elif partial.request is None:
            partial.kept += data[:length]
            self.consume_kept()
        else:
            used = self.fill_body(data, length)
            if used < length and self.slot != NULL:                     # the application may have closed it
                return self.take_data(data + used, length - used)       # once: partial is None now
        if length == READ_ROOM_BYTES:
            self.linger()
        return self.settle()

    cdef Py_ssize_t consume(self, const uint8_t *data, Py_ssize_t length, Head *head) except -1:
        """Answer every whole request, one after the other; returns how many bytes are dealt with. `head` is where the
        parser stopped in the rest, which is to be kept until more of it has come.
        """
        cdef Py_ssize_t used = 0
        cdef Py_ssize_t body
        cdef int result
        cdef Request request
        refresh_date()
        while used < length and self.may_go_on():
            if used:
                head_reset(head)
            result = parse_head(head, data + used, length - used, &self.settings.limits)
            if result == 0:
                return used
            if result > 0:
                result = self.check_body(head, result)
            if result < 0:
                self.refuse(-result, str(head_refusal(head)) if head.reason else "", head.method == HEAD_HEAD)
                return length
            request = make_request(self, head, data + used, result)
            body = max(<Py_ssize_t>head.content_length, <Py_ssize_t>0)
            used += result
            if body > length - used:
                self.await_body(request, head.expect_continue, data + used, length - used, body)
                return length
            if body:
                request.body = data[used:used + body]
                used += body
            self.answer(request)
            put_away(self, request)
        if used and used < length:
            head_reset(head)
        return used

    cdef int check_body(self, const Head *head, int result) noexcept:
        """What this server does not take, although it is well-formed: minus the status; else result."""
        if head.chunked:
            return -411                 # the message must say its length
        if head.content_length > self.settings.body_limit:
            return -413
        return result

    cdef int keep(self, const char *data, Py_ssize_t length, const Head *head) except -1:
        """The rest of a read: the start of a head, or whole requests that wait until the peer reads its answers."""
        if length == 0 or self.slot == NULL:
            return 0
        if self.state & STREAM_CLOSING:
            return self.linger()
        self.partial = Partial.__new__(Partial)
        self.partial.kept = data[:length]
        self.partial.head = head[0]
        return 0

    cdef int linger(self) except -1:
        """There is input behind the last request, or may be: a plain close would reset, and destroy the answer."""
        if self.slot != NULL and self.state & STREAM_CLOSING:
            self.state |= STREAM_LINGERS
        return 0

    cdef int consume_kept(self) except -1:
        cdef Partial partial = self.partial
        cdef const char *data = PyByteArray_AS_STRING(partial.kept)
        cdef Py_ssize_t length = PyByteArray_GET_SIZE(partial.kept)
        cdef Py_ssize_t used
        self.partial = None
        used = self.consume(<const uint8_t *>data, length, &partial.head)
        if used == 0:
            self.partial = partial      # no request is whole yet
            return 0
        return self.keep(data + used, length - used, &partial.head)

    cdef int await_body(self, Request request, bint expects, const uint8_t *data, Py_ssize_t length,
                        Py_ssize_t size) except -1:
        self.partial = Partial.__new__(Partial)
        self.partial.request = request
        self.partial.filled = length
        request.keep_head()
        request.body = PyBytes_FromStringAndSize(NULL, size)        # under body_limit; pages are touched as they fill
        memcpy(PyBytes_AS_STRING(request.body), data, length)
        if expects:
            return self.put(PyBytes_AS_STRING(CONTINUE), PyBytes_GET_SIZE(CONTINUE), CONTINUE)
        return 0

    cdef Py_ssize_t fill_body(self, const char *data, Py_ssize_t length) except -1:
        cdef Partial partial = self.partial
        cdef Request request = partial.request
        cdef Py_ssize_t taken = min(length, PyBytes_GET_SIZE(request.body) - partial.filled)
        memcpy(PyBytes_AS_STRING(request.body) + partial.filled, data, taken)
        partial.filled += taken
        if partial.filled == PyBytes_GET_SIZE(request.body):
            self.partial = None
            refresh_date()              # the head came in an earlier read, perhaps long ago
            self.answer(request)
        return taken

    cdef int may_go_on(self) except -1:
        """Back-pressure: no further request is executed while the peer does not read the answers it has."""
        if self.slot == NULL or self.state & STREAM_CLOSING:
            return False
        if has_unsent(self) or (<Loop>self.loop_link).scratch_used >= FLUSH_AT_BYTES:
            self.flush()
        return self.slot != NULL and not has_unsent(self) and self.error == 0

    cdef int settle(self) except -1:
        """After input or output: send what was gathered; then, read on or not, and which deadline counts now."""
        if self.slot != NULL:
            self.flush()
        if self.slot == NULL or self.state & STREAM_CLOSING:
            self.partial = None
            return 0
        if has_unsent(self):
            self.pause()
            return self.set_deadline_ns(self.settings.write_timeout_ns)
        if self.state & STREAM_PAUSED:
            self.resume()
        if self.partial is None:
            self.set_deadline_ns(self.settings.keep_alive_timeout_ns)
            return rest(<Loop>self.loop_link, self.slot)
        if self.partial.request is not None:
            return self.set_deadline_ns(self.settings.body_timeout_ns)
        if not self.partial.timed:          # from the head's first byte on: a trickle does not put it off
            self.partial.timed = True
            return self.set_deadline_ns(self.settings.header_timeout_ns)
        return 0

    cdef int take_sent(self) except -1:
        if not has_unsent(self) and self.partial is not None and self.partial.request is None:
            self.consume_kept()
        return self.settle()

    cdef int take_end(self) except -1:
        """The peer will send no more: what is whole has been answered, what is not never will be."""
        self.partial = None
        return self.close_softly(0)

    cdef int on_evicted(self) except -1:
        """As if the time between two requests were over; unless the application writes here unasked, or closes it."""
        return self.close_softly(0) if not has_unsent(self) else 0

    cdef int take_deadline(self) except -1:
        if has_unsent(self):
            self.abort()
            return 0
        if self.partial is not None:
            return self.refuse(408, "the request did not come in whole in time", self.partial.head.method == HEAD_HEAD)
        return self.close_softly(0)

    # -- output --------------------------------------------------------------------------------------------------------

    cdef int answer(self, Request request) except -1:
        """Call the application and send what it returns. Whatever it does, this request gets one answer or none."""
        cdef object app = self.settings.app
        _sys.EK_ASSERT(self.slot != NULL)
        cdef PyObject *result = PyObject_CallOneArg(<PyObject *>app, <PyObject *>request)
        cdef Response response
        if Py_REFCNT(request) > 1:              # somebody keeps it; also a traceback, if the application raised
            request.keep_head()
        if result != NULL and type(<object>result) is Response and (<Response>result).body is not None:
            response = <Response>result
            Py_DECREF(response)
        else:
            response = self.answered(request, result)
        if self.slot == NULL or self.state & STREAM_CLOSING:    # the application closed its own connection
            return 0
        return self.respond(request, response)

    cdef Response answered(self, Request request, PyObject *result):
        """What the application gave (ours now), if it is not simply a Response; NULL: it raised."""
        try:
            try:
                if result == NULL:
                    ek_raise()
                answer = <object>result
                Py_DECREF(answer)
                if isinstance(answer, Response) and (<Response>answer).body is not None:  # None: made without __init__
                    return answer
                raise UsageError(f"the application returned {answer!r} for {request!r}, not a Response")
            except Exception as error:
                logger.error("the application failed on %s %s", request.method, request.target, exc_info=error)
            return Response(b"Internal Server Error\n", 500, ((b"content-type", b"text/plain"),))
        except BaseException:           # also out of the logging: the next answer must not pass for this request's
            self.refuse(500, "the server is being interrupted", request.method_code == HEAD_HEAD)
            raise

    cdef int respond(self, Request request, Response response) except -1:
        cdef bint bare = response.status in (204, 304)
        cdef bint keep = request.keep_alive and not response.close
        cdef bint with_body = not bare and request.method_code != HEAD_HEAD
        cdef Py_ssize_t room = HEAD_ROOM
        cdef Py_ssize_t used
        cdef bytes large = None
        cdef char *out
        if response.block is not None:
            room += PyBytes_GET_SIZE(response.block)
        if with_body and PyBytes_GET_SIZE(response.body) <= SCRATCH_PIECE_BYTES:
            room += PyBytes_GET_SIZE(response.body)
        out = reserve(self, room)               # most answers: written where they leave from
        if out == NULL:
            large = PyBytes_FromStringAndSize(NULL, room)
            out = PyBytes_AS_STRING(large)
        used = append_status(out, response.status)
        if not bare:
            used = append_length(out, used, PyBytes_GET_SIZE(response.body))
        if not keep:
            used = append(out, used, CLOSE_HEADER)
        elif request.minor_version == 0:
            used = append(out, used, KEEP_HEADER)
        if response.block is not None:
            used = append(out, used, response.block)
        out[used] = 13
        out[used + 1] = 10
        used += 2
        if with_body and PyBytes_GET_SIZE(response.body) <= SCRATCH_PIECE_BYTES:
            used = append(out, used, response.body)
            with_body = False
        if large is None:
            (<Loop>self.loop_link).scratch_used += used
        else:
            self.put(out, used, None)
        if with_body:
            self.put_bytes(response.body)
        if not keep:
            return self.close_softly(self.patience_with(request))
        return 0

    cdef uint32_t patience_with(self, Request request) noexcept:
        """Whoever was not asked to close may be sending already. Whoever has asked to is to send nothing more (RFC 9112
        9.6); if he does all the same, he loses what his socket had no room for: so where there is much, it is asked."""
        if request.keep_alive:
            return STREAM_LINGERS
        return STREAM_MAY_LINGER if self.output != NULL else 0

    cdef int refuse(self, int status, str why, bint bare) except -1:
        """One answer (bare: without its body, for HEAD), then close. Nothing behind it is executed; what still comes is
        drained, so that the answer arrives."""
        cdef char head[HEAD_ROOM]
        cdef Py_ssize_t used
        body = f"{status} {REASONS.get(status, '')}{': ' + why if why else ''}\n".encode("ascii", "backslashreplace")
        refresh_date()
        if self.slot == NULL or self.state & STREAM_CLOSING:
            return 0
        self.partial = None
        used = append_length(head, append_status(head, status), len(body))
        used = append(head, used, REFUSAL_HEADERS)
        self.put(head, used, None)
        if not bare:
            self.put_bytes(body)
        return self.close_softly(STREAM_LINGERS)

    cdef int put_bytes(self, bytes data) except -1:
        return self.put(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), data)

    # -- the end -------------------------------------------------------------------------------------------------------

    cdef int on_closed(self, object reason) except -1:
        return self.let_go()

    cdef int let_go(self) except -1:
        self.partial = None
        self.settings = None
        return Connection.let_go(self)

    cdef int visit(self, visitproc visit, void *argument) except -1:
        """The one way from here back to the loop is through the settings and their application. A connection and its
        requests are no containers for the collector, which would walk 15,000 idle ones for nothing: its loop shows it
        the way, and what a connection holds ends with it.
        """
        cdef int result = visit(<PyObject *>self.settings, argument) if self.settings is not None else 0
        return result if result else Connection.visit(self, visit, argument)


_sys.EK_FREED_WITH(Request, _sys.EK_REQUEST)
_sys.EK_FREED_WITH(Response, _sys.EK_RESPONSE)
_sys.EK_FREED_WITH(Partial, _sys.EK_PARTIAL)

"""HTTP/1.1 request heads: a strict, resumable, sans-I/O parser, and the checks for fields that an application sets.

How it works. A head is read from left to right by a few stages (`Stage`), each a loop over one class of bytes. A stage
that runs out of bytes stores where it stands and answers MORE; the next call goes on there. Two rules keep the answer
independent of how the bytes were cut:

1. What a byte means is decided by the bytes before it, never by how many are there already. Syntax and limits are
   decided at the byte that breaks them, what a field means at the end of its line, what is missing at the blank line.
2. The first thing that is wrong wins, and it is final. At one byte, the length limit of its line comes first: a CR may
   stand behind the last byte that fits, anything else there is too much.

What may stand where is data: the byte classes in `build_tables`, the refusals in `REFUSALS`.
"""
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from epollkit._http1_fields cimport (
    BEFORE_START_LINE, COMPLETE, CR, DIGIT, GO_ON, HEX_DIGIT, HOST_PLAIN, HTAB, IN_METHOD, IN_NAME, IN_TARGET,
    IN_VERSION, IP_LITERAL, LF, MORE, REFUSED, REG_NAME, SEEN_CLOSE, SEEN_CODING, SEEN_HOST, SEEN_KEEP_ALIVE,
    SEEN_LENGTH, SPACE, TARGET, TOKEN, VALUE, complete_head, le32toh, next_element, reason_for, same_text,
    scan_name, scan_value, skip_class, skip_run, skip_value, smaller, wait_at,
)

from epollkit.errors import PeerError, UsageError

# --- refusals: reason -> status and sentence, in this one place

cdef dict REFUSALS = {
    NO_REASON: (0, "nothing is wrong with this head"),
    BARE_CR: (400, "a carriage return without a line feed behind it; lines end in CRLF (RFC 9112 2.2)"),
    BARE_LF: (400, "a line feed without a carriage return before it; lines end in CRLF (RFC 9112 2.2)"),
    METHOD_BYTE: (400, "not a method: it is one or more token characters, then a single space (RFC 9110 9.1)"),
    METHOD_TOO_LONG: (501, "the method is longer than 32 bytes; no method of that length is known"),
    METHOD_CONNECT: (501, "CONNECT asks for a tunnel, and this server makes none"),
    TARGET_BYTE: (400, "a byte that no request target has: it is visible ASCII, then a single space (RFC 9112 3.2)"),
    TARGET_FRAGMENT: (400, "the request target has a '#': a fragment is never sent (RFC 9112 3.2)"),
    TARGET_FORM: (400, "the request target is neither /path nor http://host/path nor * (RFC 9112 3.2)"),
    TARGET_ASTERISK_METHOD: (400, "the request target * goes with OPTIONS only (RFC 9112 3.2.4)"),
    TARGET_AUTHORITY: (400, "the target's authority is not host[:port] without user information (RFC 9110 4.2)"),
    REQUEST_LINE_TOO_LONG: (414, "the request line is longer than the limit"),
    VERSION_MISSING: (400, "the request line ends without a version; HTTP/1.1 is right, HTTP/0.9 is not spoken here"),
    VERSION_SYNTAX: (400, "the request line does not end in HTTP/1.1 or HTTP/1.0 (RFC 9112 2.3)"),
    VERSION_UNKNOWN: (505, "the version is neither HTTP/1.1 nor HTTP/1.0"),
    FIELD_FOLDED: (400, "a field line starts with whitespace; folded lines are obsolete (RFC 9112 5.2)"),
    FIELD_NAME_EMPTY: (400, "a field line starts with a colon; a field has a name (RFC 9110 5.1)"),
    FIELD_NAME_SPACE: (400, "whitespace in or behind a field name; the colon follows it at once (RFC 9112 5.1)"),
    FIELD_NAME_BYTE: (400, "a byte that no field name has: it is token characters, then a colon (RFC 9110 5.6.2)"),
    FIELD_VALUE_BYTE: (400, "a control byte in a field value (RFC 9110 5.5)"),
    FIELD_TOO_LONG: (431, "a field line is longer than the limit"),
    FIELDS_TOO_MANY: (431, "more field lines than the limit"),
    HEAD_TOO_LONG: (431, "the whole head is longer than 65535 bytes"),
    HOST_MISSING: (400, "no Host; an HTTP/1.1 request has exactly one (RFC 9112 3.2)"),
    HOST_REPEATED: (400, "a second Host; there is exactly one (RFC 9112 3.2)"),
    HOST_SYNTAX: (400, "the Host is not host[:port] (RFC 9110 7.2)"),
    HOST_OTHER: (400, "the Host is not the request target's authority (RFC 9112 3.2)"),
    LENGTH_REPEATED: (400, "a second Content-Length; there is at most one"),
    LENGTH_SYNTAX: (400, "the Content-Length is not one number in decimal digits (RFC 9110 8.6)"),
    LENGTH_OVERFLOW: (413, "the Content-Length is a number beyond 2^63-1"),
    LENGTH_AND_CODING: (400, "both Content-Length and Transfer-Encoding; a body has one of them (RFC 9112 6.2)"),
    CODING_VERSION: (400, "a Transfer-Encoding in HTTP/1.0, which has none (RFC 9112 6.1)"),
    CODING_REPEATED: (400, "a second Transfer-Encoding field; there is at most one"),
    CODING_SYNTAX: (400, "the Transfer-Encoding has an empty element; 'chunked' is right (RFC 9112 6.1)"),
    CODING_NOT_LAST: (400, "the Transfer-Encoding goes on behind 'chunked', which is last, and once (RFC 9112 6.1)"),
    CODING_UNKNOWN: (501, "a transfer coding other than chunked"),
    EXPECTATION_UNKNOWN: (417, "an expectation other than 100-continue (RFC 9110 10.1.1)"),
}

# --- tables

# By HEAD_OTHER, HEAD_GET ...
cdef tuple METHODS = (b"", b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE")

cdef uint16_t STATUS[REASON_COUNT]
cdef const char *METHOD_NAMES[HEAD_TRACE + 1]
cdef size_t METHOD_LENGTHS[HEAD_TRACE + 1]


cdef int mark(bytes which, uint8_t byte_class) except -1:
    """Put every byte of `which` into `byte_class`."""
    for byte in which:
        CLASS[byte] |= byte_class
    return 0


cdef int build_tables() except -1:
    digits = b"0123456789"
    letters = b"abcdefghijklmnopqrstuvwxyz"
    alphanumeric = digits + letters + letters.upper()
    visible = bytes(range(0x21, 0x7F))
    mark(alphanumeric + b"!#$%&'*+-.^_`|~", TOKEN)
    mark(visible.replace(b"#", b""), TARGET)
    mark(b"\t " + visible + bytes(range(0x80, 0x100)), VALUE)
    mark(alphanumeric + b"-._~" + b"!$&'()*+,;=", REG_NAME | HOST_PLAIN)
    mark(b"%", REG_NAME)
    mark(digits + b"abcdefABCDEF" + b":.", IP_LITERAL)
    mark(digits, DIGIT)
    mark(digits + b"abcdefABCDEF", HEX_DIGIT)
    for byte in range(256):
        LOWER[byte] = byte + 0x20 if 0x41 <= byte <= 0x5A else byte
    for reason, (status, _) in REFUSALS.items():
        STATUS[reason] = status
    for method, name in enumerate(METHODS):
        METHOD_NAMES[method] = name  # borrowed: METHODS lives as long as the module
        METHOD_LENGTHS[method] = len(name)
    return 0


build_tables()

# --- small tools


cdef int refuse(Head *head, Reason reason, size_t at) noexcept nogil:
    head.stage = REFUSED
    head.reason = reason
    head.scanned = <uint32_t>at
    return -<int>STATUS[<int>reason]


# --- hosts and authorities


cdef size_t host_end(const uint8_t *text, size_t length) noexcept nogil:
    """The length of the uri-host that `text` starts with (RFC 3986 3.2.2); 0 if there is none.

    Weak spot: between brackets only the characters are checked, so [::::] passes. Nothing here resolves it.
    """
    cdef size_t at = 0
    if length and text[0] == 0x5B:  # [
        at = skip_class(text, 1, length, IP_LITERAL)
        return at + 1 if 1 < at < length and text[at] == 0x5D else 0
    while at < length and CLASS[text[at]] & REG_NAME:
        if text[at] == 0x25:  # %: two hexadecimal digits follow
            if length - at < 3 or not CLASS[text[at + 1]] & CLASS[text[at + 2]] & HEX_DIGIT:
                return 0
        at += 1
    return at


cdef int authority_port(const uint8_t *text, size_t length, int default_port, size_t *host_length) noexcept nogil:
    """Take `host [":" port]` apart: the port, or -1 when it is no authority.

    `port = *DIGIT`: no digits at all means the default one (RFC 9110 4.2.3 has http://EXAMPLE.com:/).
    """
    cdef size_t at = host_end(text, length)
    cdef int port = 0
    host_length[0] = at
    if at == 0 or (at < length and text[at] != 0x3A):  # :
        return -1
    if length - at < 2:
        return default_port
    for at in range(at + 1, length):
        if not CLASS[text[at]] & DIGIT:
            return -1
        port = port * 10 + text[at] - 0x30
        if port > 65535:
            return -1
    return port


cdef bint valid_authority(const uint8_t *text, size_t length) noexcept nogil:
    cdef size_t host_length
    return authority_port(text, length, 0, &host_length) >= 0


cdef bint same_authority(const Head *head, const uint8_t *data, const uint8_t *text, size_t length) noexcept nogil:
    """Does a valid Host agree with the absolute target's authority? The scheme's default port equals none."""
    cdef const uint8_t *authority = data + head.authority
    cdef int default_port = 443 if head.secure_target else 80
    cdef size_t host, own_host
    cdef int port = authority_port(authority, head.authority_length, default_port, &host)
    cdef int own_port = authority_port(text, length, default_port, &own_host)
    return port == own_port and same_text(text, own_host, authority, host)


# --- the request line


cdef int skip_empty_line(Head *head, const uint8_t *data, size_t end) noexcept nogil:
    """At most one CRLF before the request line: old clients send one behind a body (RFC 9112 2.2)."""
    if end == 0:
        return MORE
    if data[0] == CR:
        if end == 1:
            return MORE
        if data[1] != LF:
            return refuse(head, BARE_CR, 0)
        head.consumed = 2
        head.scanned = 2
    head.stage = IN_METHOD
    return GO_ON


cdef uint8_t known_method(const uint8_t *name, size_t length) noexcept nogil:
    """Methods are case-sensitive (RFC 9110 9.1): `get` is another one."""
    cdef uint8_t method
    for method in range(HEAD_GET, HEAD_TRACE + 1):
        if METHOD_LENGTHS[method] == length and memcmp(name, METHOD_NAMES[method], length) == 0:
            return method
    return HEAD_OTHER


cdef inline int method_found(Head *head, uint8_t method, size_t length) noexcept nogil:
    head.method_name = <uint16_t>head.consumed
    head.method_name_length = <uint16_t>length
    head.method = method
    head.target = <uint16_t>(head.consumed + length + 1)
    head.scanned = head.target
    head.stage = IN_TARGET
    return GO_ON


cdef inline int scan_method(Head *head, const uint8_t *data, size_t end, size_t limit) noexcept nogil:
    cdef size_t line = head.consumed
    cdef size_t stop = smaller(end, line + smaller(limit, MAX_METHOD_BYTES))
    cdef size_t at, length
    if end - line >= 4 and limit > 4 and memcmp(data + line, b"GET ", 4) == 0:
        return method_found(head, HEAD_GET, 3)
    at = skip_class(data, head.scanned, stop, TOKEN)
    length = at - line
    if at >= end:
        return wait_at(head, IN_METHOD, at)
    if length == limit and data[at] != CR:
        return refuse(head, REQUEST_LINE_TOO_LONG, at)
    if CLASS[data[at]] & TOKEN:
        return refuse(head, METHOD_TOO_LONG, at)
    if data[at] != SPACE or length == 0:
        return refuse(head, reason_for(data[at], METHOD_BYTE), at)
    if length == 7 and memcmp(data + line, b"CONNECT", 7) == 0:
        return refuse(head, METHOD_CONNECT, at)
    return method_found(head, known_method(data + line, length), length)


cdef int check_target(Head *head, const uint8_t *data) noexcept nogil:
    """The form of a complete target that does not start with a slash."""
    cdef const uint8_t *target = data + head.target
    cdef size_t length = head.target_length
    cdef size_t scheme_length, authority_end
    if target[0] == 0x2A and length == 1:  # *
        if head.method != HEAD_OPTIONS:
            return refuse(head, TARGET_ASTERISK_METHOD, head.target)
        head.target_form = TARGET_ASTERISK
        return GO_ON
    if length >= 7 and same_text(target, 7, b"http://", 7):
        scheme_length = 7
    elif length >= 8 and same_text(target, 8, b"https://", 8):
        scheme_length = 8
        head.secure_target = True
    else:
        return refuse(head, TARGET_FORM, head.target)
    authority_end = scheme_length
    while authority_end < length and target[authority_end] not in (0x2F, 0x3F):  # / ?
        authority_end += 1
    if not valid_authority(target + scheme_length, authority_end - scheme_length):
        return refuse(head, TARGET_AUTHORITY, head.target + scheme_length)
    head.target_form = TARGET_ABSOLUTE
    head.authority = <uint16_t>(head.target + scheme_length)
    head.authority_length = <uint16_t>(authority_end - scheme_length)
    return GO_ON


cdef inline int scan_target(Head *head, const uint8_t *data, size_t end, size_t limit) noexcept nogil:
    cdef size_t stop = smaller(end, head.consumed + limit)
    cdef size_t at = skip_run(data, head.scanned, stop, TARGET)
    if at >= end:
        return wait_at(head, IN_TARGET, at)
    if at - head.consumed >= limit and data[at] != CR:
        return refuse(head, REQUEST_LINE_TOO_LONG, at)
    if data[at] != SPACE or at == head.target:
        return refuse(head, reason_for(data[at], TARGET_BYTE), at)
    head.target_length = <uint16_t>(at - head.target)
    head.scanned = <uint32_t>(at + 1)
    head.stage = IN_VERSION
    return GO_ON if data[head.target] == 0x2F else check_target(head, data)  # /


cdef int check_version(Head *head, const uint8_t *data, size_t end, size_t limit) noexcept nogil:
    """`HTTP/` DIGIT `.` DIGIT CRLF, always from its start (it is ten bytes): may what is there of it be there?"""
    cdef const char *pattern = b"HTTP/0.0\r\n"
    cdef size_t at = head.scanned
    cdef size_t i
    cdef uint8_t byte
    for i in range(10):
        if at >= end:
            return MORE
        if at - head.consumed >= limit and i < 9 and data[at] != CR:
            return refuse(head, REQUEST_LINE_TOO_LONG, at)
        if i == 9 and data[at] != LF:
            return refuse(head, BARE_CR, at - 1)
        byte = 0x30 if CLASS[data[at]] & DIGIT else data[at]  # any digit will do
        if byte != <uint8_t>pattern[i]:
            return refuse(head, reason_for(data[at], VERSION_SYNTAX), at)
        at += 1
    head.minor_version = data[at - 3] - 0x30
    if data[at - 5] != 0x31 or head.minor_version > 1:
        return refuse(head, VERSION_UNKNOWN, head.scanned)
    return GO_ON


cdef inline int scan_version(Head *head, const uint8_t *data, size_t end, size_t limit) noexcept nogil:
    cdef size_t start = head.scanned
    cdef int progress = GO_ON
    if start + 10 <= end and start + 8 - head.consumed <= limit and memcmp(data + start, b"HTTP/1.1\r\n", 10) == 0:
        head.minor_version = 1
    else:
        progress = check_version(head, data, end, limit)
    if progress > 0:
        head.consumed = <uint32_t>(start + 10)
        head.scanned = head.consumed
        head.stage = IN_NAME
    return progress


cdef inline int parse_request_line(Head *head, const uint8_t *data, size_t end, size_t limit) noexcept nogil:
    """`method SP target SP version CRLF` with single spaces (RFC 9112 3)."""
    cdef int progress = GO_ON
    if head.stage == BEFORE_START_LINE:
        progress = skip_empty_line(head, data, end)
    if progress > 0 and head.stage == IN_METHOD:
        progress = scan_method(head, data, end, limit)
    if progress > 0 and head.stage == IN_TARGET:
        progress = scan_target(head, data, end, limit)
    if progress > 0 and head.stage == IN_VERSION:
        progress = scan_version(head, data, end, limit)
    return progress


# --- what the fields that concern the connection mean, each at the end of its line


cdef int take_host(Head *head, const uint8_t *data, const HeadField *field) noexcept nogil:
    cdef const uint8_t *host = data + field.value
    if head.seen & SEEN_HOST:
        return refuse(head, HOST_REPEATED, field.name)
    head.seen |= SEEN_HOST
    # Empty is right when the target has no authority to repeat (RFC 9112 3.2).
    if field.value_length > 0 and not valid_authority(host, field.value_length):
        return refuse(head, HOST_SYNTAX, field.value)
    if head.target_form == TARGET_ABSOLUTE and not same_authority(head, data, host, field.value_length):
        return refuse(head, HOST_OTHER, field.value)
    return GO_ON


cdef int take_content_length(Head *head, const uint8_t *data, const HeadField *field) noexcept nogil:
    """One number. A list of equal ones is refused too, though RFC 9110 8.6 lets a recipient repair it."""
    cdef const uint8_t *digits = data + field.value
    cdef int64_t number = 0
    cdef bint overflow = False
    cdef int digit
    cdef size_t i
    if head.seen & SEEN_CODING:
        return refuse(head, LENGTH_AND_CODING, field.name)
    if head.seen & SEEN_LENGTH:
        return refuse(head, LENGTH_REPEATED, field.name)
    head.seen |= SEEN_LENGTH
    if field.value_length == 0:
        return refuse(head, LENGTH_SYNTAX, field.value)
    for i in range(field.value_length):
        if not CLASS[digits[i]] & DIGIT:
            return refuse(head, LENGTH_SYNTAX, field.value + i)
        digit = digits[i] - 0x30
        overflow = overflow or number > (INT64_MAX - digit) // 10  # and go on: behind it may be what makes it 400
        number = 0 if overflow else number * 10 + digit
    if overflow:
        return refuse(head, LENGTH_OVERFLOW, field.value)
    head.content_length = number
    return GO_ON


cdef int take_transfer_encoding(Head *head, const uint8_t *data, const HeadField *field) noexcept nogil:
    """Exactly `chunked`. What else is there is sorted into broken (400) and unknown (501, RFC 9112 6.1)."""
    cdef const uint8_t *text = data + field.value
    cdef size_t at = 0, start = 0, stop = 0
    cdef bint known = True
    if head.minor_version == 0:
        return refuse(head, CODING_VERSION, field.name)
    if head.seen & SEEN_LENGTH:
        return refuse(head, LENGTH_AND_CODING, field.name)
    if head.seen & SEEN_CODING:
        return refuse(head, CODING_REPEATED, field.name)
    head.seen |= SEEN_CODING
    while next_element(text, field.value_length, &at, &start, &stop):
        if start == stop:
            return refuse(head, CODING_SYNTAX, field.value + start)
        if head.chunked:
            return refuse(head, CODING_NOT_LAST, field.value + start)
        head.chunked = same_text(text + start, stop - start, b"chunked", 7)
        known = known and head.chunked
    return GO_ON if known else refuse(head, CODING_UNKNOWN, field.value)


cdef int take_connection(Head *head, const uint8_t *data, const HeadField *field) noexcept nogil:
    """Note `close` and `keep-alive`; other options, and elements that are none, say nothing to this parser."""
    cdef const uint8_t *text = data + field.value
    cdef size_t at = 0, start = 0, stop = 0
    while next_element(text, field.value_length, &at, &start, &stop):
        if same_text(text + start, stop - start, b"close", 5):
            head.seen |= SEEN_CLOSE
        elif same_text(text + start, stop - start, b"keep-alive", 10):
            head.seen |= SEEN_KEEP_ALIVE
    return GO_ON


cdef int take_expect(Head *head, const uint8_t *data, const HeadField *field) noexcept nogil:
    if not same_text(data + field.value, field.value_length, b"100-continue", 12):
        return refuse(head, EXPECTATION_UNKNOWN, field.value)
    head.expect_continue = head.minor_version == 1  # HTTP/1.0 has no interim answers (RFC 9110 10.1.1)
    return GO_ON


cdef inline bint is_host(const uint8_t *name) noexcept nogil:
    """Are these four bytes `host`, in any case? Letters differ in case only if they differ in bit 0x20 only."""
    cdef uint32_t word
    memcpy(&word, name, 4)
    return le32toh(word) | 0x20202020 == 0x74736F68


cdef inline int take_field(Head *head, const uint8_t *data, const HeadField *field) noexcept nogil:
    """Look at one complete, well-formed field. The length of the name sorts out nearly all others."""
    cdef const uint8_t *name = data + field.name
    cdef size_t length = field.name_length
    if length == 4 and is_host(name):
        return take_host(head, data, field)
    if length == 6 and same_text(name, length, b"expect", 6):
        return take_expect(head, data, field)
    if length == 10 and same_text(name, length, b"connection", 10):
        return take_connection(head, data, field)
    if length == 14 and same_text(name, length, b"content-length", 14):
        return take_content_length(head, data, field)
    if length == 17 and same_text(name, length, b"transfer-encoding", 17):
        return take_transfer_encoding(head, data, field)
    return GO_ON


# --- field lines


cdef inline int scan_plain_host(Head *head, const uint8_t *data, size_t end, const HeadLimits *limits) noexcept nogil:
    """`Host: name` or `Host: name:port`, and CRLF, as nearly every request has it: in one go what scan_name(),
    scan_value() and take_host() do in three. MORE: it is not as plain as that, or not all there; these look at it.
    """
    cdef size_t line = head.consumed
    cdef size_t start = line + 6
    cdef size_t at, port
    cdef HeadField *field = &head.fields[head.field_count]
    if head.scanned != line or end - line < 9 or not is_host(data + line) or data[line + 4] != 0x3A \
            or data[line + 5] != SPACE or head.seen & SEEN_HOST or head.target_form == TARGET_ABSOLUTE \
            or head.field_count >= smaller(limits.fields, MAX_HEAD_FIELDS):
        return MORE
    at = skip_run(data, start, end, HOST_PLAIN)
    if at == start:
        return MORE
    if at < end and data[at] == 0x3A:
        port = at + 1
        at = skip_class(data, port, end, DIGIT)
        if at - port > 5 or (at - port == 5 and data[port] > 0x35):     # a port from 60000 on: perhaps too large
            return MORE
    if end - at < 2 or data[at] != CR or data[at + 1] != LF or at - line > limits.field_bytes:
        return MORE
    field.name = <uint16_t>line
    field.name_length = 4
    field.value = <uint16_t>start
    field.value_length = <uint16_t>(at - start)
    head.field_count += 1
    head.seen |= SEEN_HOST
    head.consumed = <uint32_t>(at + 2)
    head.scanned = head.consumed
    return GO_ON


cdef inline int scan_field(Head *head, const uint8_t *data, size_t end, const HeadLimits *limits) noexcept nogil:
    """From behind the colon to behind the CRLF; then the field is noted and looked at."""
    cdef HeadField *field = &head.fields[head.field_count]
    cdef int progress = scan_value(head, data, end, limits, field)
    return take_field(head, data, field) if progress > 0 else progress


cdef int finish_head(Head *head, const uint8_t *data, size_t end) noexcept nogil:
    """At the CR of the blank line."""
    cdef size_t at = head.scanned
    if at + 1 >= end:
        return MORE
    if data[at + 1] != LF:
        return refuse(head, BARE_CR, at)
    if head.minor_version == 1 and not head.seen & SEEN_HOST:
        return refuse(head, HOST_MISSING, at)
    return complete_head(head, at)


cdef inline int parse_fields(Head *head, const uint8_t *data, size_t end, const HeadLimits *limits) noexcept nogil:
    """Field lines up to the blank one. Whatever ends the loop is in `progress` and `head.stage`."""
    cdef int progress = GO_ON
    while progress > 0:
        if head.stage == IN_NAME:
            if head.scanned >= end:
                return MORE
            if head.scanned == head.consumed and data[head.scanned] == CR:
                return finish_head(head, data, end)
            if scan_plain_host(head, data, end, limits) == GO_ON:
                continue
            progress = scan_name(head, data, end, limits)
            if progress <= 0:
                return progress
        progress = scan_field(head, data, end, limits)
    return progress


cdef int head_reset(Head *head) noexcept nogil:
    memset(head, 0, <size_t>(<const char *>head.fields - <const char *>head))
    head.content_length = -1
    return 0


cdef int parse_head(Head *head, const uint8_t *data, size_t length, const HeadLimits *limits) noexcept nogil:
    cdef size_t end = smaller(length, MAX_HEAD_BYTES)
    cdef int progress = GO_ON
    if head.stage == REFUSED:
        return -<int>STATUS[head.reason]
    if head.stage == COMPLETE:
        return <int>head.consumed
    if head.stage < IN_NAME:
        progress = parse_request_line(head, data, end, limits.request_line_bytes)
    if progress > 0:
        progress = parse_fields(head, data, end, limits)
    if progress > 0:
        return <int>head.consumed
    if progress == MORE and end == MAX_HEAD_BYTES:  # all that a head may have is there, and its end is not
        return refuse(head, REQUEST_LINE_TOO_LONG if head.stage < IN_NAME else HEAD_TOO_LONG, end)
    return progress


# --- fields that an application sets


cdef bint valid_field_name(const uint8_t *data, size_t length) noexcept nogil:
    return length > 0 and skip_class(data, 0, length, TOKEN) == length


cdef bint valid_field_value(const uint8_t *data, size_t length) noexcept nogil:
    if length == 0:
        return True
    if data[0] in (SPACE, HTAB) or data[length - 1] in (SPACE, HTAB):
        return False
    return skip_value(data, 0, length) == length


# --- what is said to people


cpdef str reason_text(int reason):
    """The sentence for a refused head's reason code: what is wrong, and what would be right.

    :raises UsageError: there is no such code; they are numbered from 0 (nothing is wrong) without a gap.
    """
    if reason not in REFUSALS:
        raise UsageError(f"no refused head has the reason {reason}; the codes go from 0 to {REASON_COUNT - 1}")
    return REFUSALS[reason][1]


cdef object head_refusal(const Head *head):
    return PeerError(f"{reason_text(head.reason)}; at byte {head.scanned} of the head", STATUS[head.reason])

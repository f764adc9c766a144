"""HTTP/1.1 response heads and bodies: strict, resumable, sans I/O, as `_http1.pyx` is, by whose rules the heads go.

Field lines that are whole and as plain as nearly all of them are (`scan_plain_line`) are read in one go; what is not is
left to the stages that requests have. There is one answer, however the bytes were cut.

A chunked body, but for its payload, is read by an automaton a byte at a time: `NEXT[stage][byte]` is the stage behind
that byte, NOWHERE where it may not stand, and `WRONG[stage]` why not. What some bytes mean besides (the digits of a
size, the name of a trailer, limits) is in `chunk_byte` and what it calls.
"""
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memset

from epollkit._http1 cimport (
    BARE_CR, BARE_LF, CLASS, FIELD_FOLDED, FIELD_NAME_SPACE, FIELD_VALUE_BYTE, HEAD_TOO_LONG, Head, HeadField,
    HeadLimits, LOWER, MAX_HEAD_BYTES, MAX_HEAD_FIELDS, REASON_COUNT, Reason, reason_text, refuse, take_connection,
    take_content_length, take_transfer_encoding,
)
from epollkit._http1_fields cimport (
    BEFORE_START_LINE, COMPLETE, CR, DIGIT, GO_ON, HEX_DIGIT, IN_NAME, IN_PHRASE, LF, MORE, REFUSED, SEEN_CODING,
    SEEN_KEEP_ALIVE, SEEN_LENGTH, SPACE, TOKEN, VALUE, complete_head, folded_word, reason_for, scan_name,
    scan_plain_line, scan_value, skip_text, smaller, wait_at,
)

from epollkit.errors import PeerError, UsageError

cdef dict REFUSALS = {          # reason -> sentence; what is not here is in `_http1`
    STATUS_LINE_VERSION: "the response does not begin with HTTP/1.1 or HTTP/1.0 and a single space (RFC 9112 4)",
    STATUS_SYNTAX: "the status is not three digits from 100 on, then a single space (RFC 9112 4)",
    PHRASE_BYTE: "a control byte in the reason phrase (RFC 9112 4)",
    STATUS_LINE_TOO_LONG: "the status line is longer than the limit",
    CHUNK_SIZE_SYNTAX: "a chunk does not begin with its size in hexadecimal digits (RFC 9112 7.1)",
    CHUNK_SIZE_TOO_LARGE: "a chunk's size has more than 16 digits, or is beyond 2^63-1",
    CHUNK_EXTENSION_SYNTAX: "behind a chunk's size there is neither CRLF nor ;name or ;name=value (RFC 9112 7.1.1)",
    CHUNK_EXTENSIONS_TOO_LONG: "the extensions of a body's chunks are longer than the limit",
    CHUNK_DATA_END: "no CRLF behind a chunk's data: it is not as long as its size says (RFC 9112 7.1)",
    TRAILER_FORBIDDEN: "a trailer of a name that belongs to the head only (RFC 9110 6.5.1)",
    TRAILERS_TOO_LONG: "the trailers are longer than the limit",
    BODY_CUT_OFF: "the connection ended before the body did (RFC 9112 8)",
}

# --- response heads


cdef int refuse_response(Head *head, ResponseReason reason, size_t at) noexcept nogil:
    head.stage = REFUSED
    head.reason = reason
    head.scanned = <uint32_t>at
    return -GATEWAY_STATUS


cdef int check_status(Head *head, const uint8_t *data, size_t end, size_t limit) noexcept nogil:
    """`HTTP/1.x SP 3DIGIT SP`, always from its start (it is thirteen bytes): may what is there of it be there?"""
    cdef const char *pattern = b"HTTP/1.0 100 "
    cdef size_t at
    cdef bint right
    for at in range(13):
        if at >= end:
            return MORE
        if at >= limit and data[at] != CR:
            return refuse_response(head, STATUS_LINE_TOO_LONG, at)
        if at == 7:
            right = data[at] in (0x30, 0x31)
        elif 9 <= at < 12:
            right = CLASS[data[at]] & DIGIT and (at > 9 or data[at] != 0x30)
        else:
            right = data[at] == <uint8_t>pattern[at]
        if not right:
            return refuse_response(head, STATUS_LINE_VERSION if at < 9 else STATUS_SYNTAX, at)
    return GO_ON


cdef inline bint is_plain_status(const uint8_t *data, size_t end, size_t limit) noexcept nogil:
    """In one go what check_status() says of nearly every response. False: that looks at it."""
    return (end >= 13 and limit >= 13 and memcmp(data, b"HTTP/1.1 ", 9) == 0 and data[12] == SPACE and data[9] != 0x30
            and CLASS[data[9]] & CLASS[data[10]] & CLASS[data[11]] & DIGIT)


cdef inline int scan_status(Head *head, const uint8_t *data, size_t end, size_t limit) noexcept nogil:
    cdef int progress = GO_ON
    if not is_plain_status(data, end, limit):
        progress = check_status(head, data, end, limit)
    if progress > 0:
        head.minor_version = data[7] - 0x30
        head.status = <uint16_t>((data[9] - 0x30) * 100 + (data[10] - 0x30) * 10 + data[11] - 0x30)
        head.phrase = 13
        head.scanned = 13
        head.stage = IN_PHRASE
    return progress


cdef inline int scan_phrase(Head *head, const uint8_t *data, size_t end, size_t limit) noexcept nogil:
    """The reason phrase, which nobody needs, and CRLF."""
    cdef size_t at = skip_text(data, head.scanned, smaller(end, limit))
    if at + 1 >= end and (at == end or data[at] == CR):
        return wait_at(head, IN_PHRASE, at)
    if data[at] != CR:
        if at >= limit:
            return refuse_response(head, STATUS_LINE_TOO_LONG, at)
        if data[at] == LF:
            return refuse(head, BARE_LF, at)
        return refuse_response(head, PHRASE_BYTE, at)
    if data[at + 1] != LF:
        return refuse(head, BARE_CR, at)
    head.phrase_length = <uint16_t>(at - head.phrase)
    head.consumed = <uint32_t>(at + 2)
    head.scanned = head.consumed
    head.stage = IN_NAME
    return GO_ON


cdef inline bint same_words(const uint8_t *text, const char *word, size_t between, const char *other) noexcept nogil:
    """Does `text` begin with these eight lower-case letters or hyphens, and `between` on with those, in any case?"""
    return (folded_word(text) == folded_word(<const uint8_t *>word)
            and folded_word(text + between) == folded_word(<const uint8_t *>other))


cdef inline bint take_plain_length(Head *head, const uint8_t *data, const HeadField *field) noexcept nogil:
    """A first Content-Length of at most 18 digits, which can't overflow. False: take_content_length() looks at it."""
    cdef const uint8_t *digits = data + field.value
    cdef int64_t number = 0
    cdef size_t i
    if head.seen & (SEEN_CODING | SEEN_LENGTH) or not 0 < field.value_length <= 18:
        return False
    for i in range(field.value_length):
        if not 0x30 <= digits[i] <= 0x39:
            return False
        number = number * 10 + (digits[i] - 0x30)
    head.seen |= SEEN_LENGTH
    head.content_length = number
    return True


cdef inline int take_response_field(Head *head, const uint8_t *data, const HeadField *field) noexcept nogil:
    """Look at one complete, well-formed field. The length of the name sorts out nearly all others."""
    cdef const uint8_t *name = data + field.name
    if field.name_length == 10 and same_words(name, b"connecti", 2, b"nnection"):
        if field.value_length == 10 and same_words(data + field.value, b"keep-ali", 2, b"ep-alive"):
            head.seen |= SEEN_KEEP_ALIVE
            return GO_ON
        return take_connection(head, data, field)
    if field.name_length == 14 and same_words(name, b"content-", 6, b"t-length"):
        return GO_ON if take_plain_length(head, data, field) else take_content_length(head, data, field)
    if field.name_length == 17 and same_words(name, b"transfer", 9, b"encoding") and name[8] == 0x2D:
        return take_transfer_encoding(head, data, field)
    return GO_ON


cdef inline int parse_plain_fields(Head *head, const uint8_t *data, size_t end,
                                   const HeadLimits *limits) noexcept nogil:
    """Plain field lines, up to the first one that is none or is not all there. At the beginning of a line."""
    cdef size_t most = smaller(limits.fields, MAX_HEAD_FIELDS)
    cdef size_t line = head.consumed
    cdef size_t count = head.field_count
    cdef size_t length
    cdef int progress = GO_ON
    while progress > 0 and count < most:
        length = scan_plain_line(data, line, end, &head.fields[count])
        if length == 0 or length > limits.field_bytes:
            break
        line += length + 2
        count += 1
        head.consumed = <uint32_t>line
        head.scanned = <uint32_t>line
        head.field_count = <uint16_t>count
        progress = take_response_field(head, data, &head.fields[count - 1])
    return progress


cdef inline int parse_fields(Head *head, const uint8_t *data, size_t end, const HeadLimits *limits) noexcept nogil:
    """Field lines up to the blank one. Whatever ends the loop is in `progress` and `head.stage`."""
    cdef int progress = GO_ON
    cdef HeadField *field
    while progress > 0:
        if head.stage == IN_NAME:
            if head.scanned == head.consumed:
                progress = parse_plain_fields(head, data, end, limits)
                if progress <= 0:
                    return progress
            if head.scanned >= end:
                return MORE
            if head.scanned == head.consumed and data[head.scanned] == CR:
                if head.scanned + 1 >= end:
                    return MORE
                if data[head.scanned + 1] != LF:
                    return refuse(head, BARE_CR, head.scanned)
                return complete_head(head, head.scanned)
            progress = scan_name(head, data, end, limits)
            if progress <= 0:
                return progress
        field = &head.fields[head.field_count]
        progress = scan_value(head, data, end, limits, field)
        if progress > 0:
            progress = take_response_field(head, data, field)
    return progress


cdef int parse_response_head(Head *head, const uint8_t *data, size_t length, const HeadLimits *limits) noexcept nogil:
    cdef size_t end = smaller(length, MAX_HEAD_BYTES)
    cdef int progress = GO_ON
    if head.stage == REFUSED:
        return -GATEWAY_STATUS
    if head.stage == COMPLETE:
        return <int>head.consumed
    if head.stage == BEFORE_START_LINE:
        progress = scan_status(head, data, end, limits.request_line_bytes)
    if progress > 0 and head.stage == IN_PHRASE:
        progress = scan_phrase(head, data, end, limits.request_line_bytes)
    if progress > 0:
        progress = parse_fields(head, data, end, limits)
    if progress > 0:
        return <int>head.consumed
    if progress == MORE and end == MAX_HEAD_BYTES:  # all that a head may have is there, and its end is not
        if head.stage < IN_NAME:
            return refuse_response(head, STATUS_LINE_TOO_LONG, end)
        refuse(head, HEAD_TOO_LONG, end)
    return MORE if head.stage != REFUSED else -GATEWAY_STATUS


cdef int response_framing(const Head *head, bint was_head_request) noexcept nogil:
    if was_head_request or head.status < 200 or head.status == 204 or head.status == 304:
        return BODY_NONE
    if head.chunked:
        return BODY_CHUNKED
    return BODY_LENGTH if head.content_length >= 0 else BODY_UNTIL_CLOSE


# --- bodies

cdef enum Stage:                # Body.stage: which byte comes next
    NOWHERE = 0                 # the byte is refused
    SIZE_FIRST                  # the first digit of a chunk's size; where a body begins
    SIZE
    EXTENSION                   # whitespace before a semicolon
    EXTENSION_NAME_FIRST
    EXTENSION_NAME
    EXTENSION_NAME_BEHIND       # whitespace before an equals sign or a semicolon
    EXTENSION_VALUE_FIRST
    EXTENSION_VALUE
    EXTENSION_QUOTED
    EXTENSION_ESCAPED           # behind a backslash within quotes
    EXTENSION_BEHIND            # behind the second quote
    SIZE_LF
    DATA
    DATA_CR
    DATA_LF
    TRAILER_FIRST               # also: the CR that ends the body
    TRAILER_NAME
    TRAILER_VALUE
    TRAILER_LF
    LAST_LF
    STAGES

cdef uint8_t NEXT[STAGES][256]
cdef uint8_t WRONG[STAGES]
cdef const char *FORBIDDEN[64]
cdef size_t FORBIDDEN_LENGTHS[64]

# What says how a message is framed, routed, asked for, authenticated, kept or decoded (RFC 9110 6.5.1; the list is that
# of RFC 7230 4.1.2 and what concerns the connection). It must be known before the body.
cdef tuple HEAD_ONLY = (
    b"content-length", b"transfer-encoding", b"trailer", b"te", b"connection", b"keep-alive", b"proxy-connection",
    b"upgrade", b"host", b"cache-control", b"expect", b"max-forwards", b"pragma", b"range", b"if-match",
    b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range", b"authorization",
    b"proxy-authenticate", b"proxy-authorization", b"www-authenticate", b"cookie", b"set-cookie", b"age", b"expires",
    b"date", b"location", b"retry-after", b"vary", b"warning", b"content-encoding", b"content-type", b"content-range",
)


cdef int row(int stage, int wrong, dict ways) except -1:
    """ways: bytes -> the stage behind any of them."""
    WRONG[stage] = wrong
    for which, behind in ways.items():
        for byte in which:
            NEXT[stage][byte] = behind
    return 0


cdef int build_tables() except -1:
    blank = b" \t"
    token = bytes([byte for byte in range(256) if CLASS[byte] & TOKEN])
    hexadecimal = bytes([byte for byte in range(256) if CLASS[byte] & HEX_DIGIT])
    text = bytes([byte for byte in range(256) if CLASS[byte] & VALUE])
    behind_value = {blank: EXTENSION, b";": EXTENSION_NAME_FIRST, b"\r": SIZE_LF}
    row(SIZE_FIRST, CHUNK_SIZE_SYNTAX, {hexadecimal: SIZE})
    row(SIZE, CHUNK_EXTENSION_SYNTAX, {hexadecimal: SIZE, **behind_value})
    row(EXTENSION, CHUNK_EXTENSION_SYNTAX, {blank: EXTENSION, b";": EXTENSION_NAME_FIRST})
    row(EXTENSION_NAME_FIRST, CHUNK_EXTENSION_SYNTAX, {blank: EXTENSION_NAME_FIRST, token: EXTENSION_NAME})
    row(EXTENSION_NAME, CHUNK_EXTENSION_SYNTAX, {
        token: EXTENSION_NAME, **behind_value, blank: EXTENSION_NAME_BEHIND, b"=": EXTENSION_VALUE_FIRST})
    row(EXTENSION_NAME_BEHIND, CHUNK_EXTENSION_SYNTAX, {
        blank: EXTENSION_NAME_BEHIND, b"=": EXTENSION_VALUE_FIRST, b";": EXTENSION_NAME_FIRST})
    row(EXTENSION_VALUE_FIRST, CHUNK_EXTENSION_SYNTAX, {
        blank: EXTENSION_VALUE_FIRST, token: EXTENSION_VALUE, b'"': EXTENSION_QUOTED})
    row(EXTENSION_VALUE, CHUNK_EXTENSION_SYNTAX, {token: EXTENSION_VALUE, **behind_value})
    row(EXTENSION_QUOTED, CHUNK_EXTENSION_SYNTAX, {
        text: EXTENSION_QUOTED, b"\\": EXTENSION_ESCAPED, b'"': EXTENSION_BEHIND})
    row(EXTENSION_ESCAPED, CHUNK_EXTENSION_SYNTAX, {text: EXTENSION_QUOTED})
    row(EXTENSION_BEHIND, CHUNK_EXTENSION_SYNTAX, behind_value)
    row(SIZE_LF, BARE_CR, {b"\n": DATA})
    row(DATA_CR, CHUNK_DATA_END, {b"\r": DATA_LF})
    row(DATA_LF, CHUNK_DATA_END, {b"\n": SIZE_FIRST})
    row(TRAILER_FIRST, FIELD_FOLDED, {token: TRAILER_NAME, b"\r": LAST_LF})
    row(TRAILER_NAME, FIELD_NAME_SPACE, {token: TRAILER_NAME, b":": TRAILER_VALUE})
    row(TRAILER_VALUE, FIELD_VALUE_BYTE, {text: TRAILER_VALUE, b"\r": TRAILER_LF})
    row(TRAILER_LF, BARE_CR, {b"\n": TRAILER_FIRST})
    row(LAST_LF, BARE_CR, {b"\n": SIZE_FIRST})
    for index, name in enumerate(HEAD_ONLY):
        FORBIDDEN[index] = name     # borrowed: HEAD_ONLY lives as long as the module
        FORBIDDEN_LENGTHS[index] = len(name)
    return 0


build_tables()


cdef int body_refuse(Body *body, int reason) noexcept nogil:
    body.framing = BODY_REFUSED
    body.reason = reason
    return -GATEWAY_STATUS


cdef int body_begin(Body *body, int framing, int64_t length) noexcept nogil:
    memset(body, 0, sizeof(Body))
    body.framing = framing
    body.stage = SIZE_FIRST
    body.left = length if framing == BODY_LENGTH else 0
    body.done = framing == BODY_NONE or (framing == BODY_LENGTH and length == 0)
    return 0


cdef int body_end(Body *body) noexcept nogil:
    if body.framing == BODY_REFUSED:
        return -GATEWAY_STATUS
    if not body.done and body.framing != BODY_UNTIL_CLOSE:
        return body_refuse(body, BODY_CUT_OFF)
    body.done = True
    return 0


cdef int size_digit(Body *body, uint8_t byte) noexcept nogil:
    body.size_digits += 1
    if body.size_digits > MAX_CHUNK_SIZE_DIGITS or body.left > INT64_MAX >> 4:
        return body_refuse(body, CHUNK_SIZE_TOO_LARGE)
    body.left = body.left << 4 | (byte - 0x30 if CLASS[byte] & DIGIT else LOWER[byte] - 0x61 + 10)
    return GO_ON


cdef int name_byte(Body *body, uint8_t byte) noexcept nogil:
    """One more byte of a trailer's name; of a very long one only that it is."""
    if body.name_length < MAX_TRAILER_NAME:
        body.name[body.name_length] = <char>LOWER[byte]
    if body.name_length <= MAX_TRAILER_NAME:
        body.name_length += 1
    return GO_ON


cdef int check_trailer_name(Body *body) noexcept nogil:
    cdef size_t i = 0
    while FORBIDDEN[i] != NULL:
        if FORBIDDEN_LENGTHS[i] == body.name_length and memcmp(FORBIDDEN[i], body.name, body.name_length) == 0:
            return body_refuse(body, TRAILER_FORBIDDEN)
        i += 1
    body.name_length = 0
    return GO_ON


cdef int wrong_byte(Body *body, uint8_t byte) noexcept nogil:
    cdef int reason = WRONG[body.stage]
    if FIELD_FOLDED <= reason <= FIELD_VALUE_BYTE:
        reason = reason_for(byte, <Reason>reason)
    elif byte == LF and reason == CHUNK_EXTENSION_SYNTAX:
        reason = BARE_LF
    return body_refuse(body, reason)


cdef inline int count_byte(Body *body, uint8_t byte, uint8_t behind, const BodyLimits *limits) noexcept nogil:
    """The limits of what is no payload. As in a head they come first, and a CR may stand behind the last byte."""
    cdef uint8_t stage = body.stage
    if byte == CR:
        return GO_ON
    if EXTENSION <= stage <= EXTENSION_BEHIND or EXTENSION <= behind <= EXTENSION_BEHIND:
        body.extension_bytes += 1
        if body.extension_bytes > limits.extension_bytes:
            return body_refuse(body, CHUNK_EXTENSIONS_TOO_LONG)
    elif TRAILER_FIRST <= stage <= TRAILER_VALUE:
        body.trailer_bytes += 1
        if body.trailer_bytes > limits.trailer_bytes:
            return body_refuse(body, TRAILERS_TOO_LONG)
    return GO_ON


cdef int chunk_byte(Body *body, uint8_t byte, const BodyLimits *limits) noexcept nogil:
    """Take one byte that is no payload: GO_ON, or refused."""
    cdef uint8_t stage = body.stage
    cdef uint8_t behind = NEXT[stage][byte]
    cdef int progress = count_byte(body, byte, behind, limits)
    if progress > 0 and behind == NOWHERE:
        progress = wrong_byte(body, byte)
    elif progress > 0 and behind == SIZE:
        progress = size_digit(body, byte)
    elif progress > 0 and behind == TRAILER_NAME:
        progress = name_byte(body, byte)
    elif progress > 0 and stage == TRAILER_NAME:
        progress = check_trailer_name(body)
    if progress > 0:
        body.stage = behind
        if stage == SIZE_LF:
            body.size_digits = 0
            body.stage = DATA if body.left else TRAILER_FIRST
        body.done = stage == LAST_LF
    return progress


cdef Py_ssize_t body_decode(Body *body, const uint8_t *data, size_t length, const BodyLimits *limits) noexcept nogil:
    cdef size_t at = 0
    body.payload = 0
    body.payload_length = 0
    if body.framing == BODY_REFUSED:
        return -GATEWAY_STATUS
    if body.framing == BODY_UNTIL_CLOSE:
        at = body.payload_length = 0 if body.done else length
        return <Py_ssize_t>at
    while at < length and not body.done:
        if body.stage == DATA:
            body.payload = at
            body.payload_length = smaller(length - at, <size_t>body.left)
            body.left -= <int64_t>body.payload_length
            if body.left == 0:
                body.stage = DATA_CR
            return <Py_ssize_t>(at + body.payload_length)
        if chunk_byte(body, data[at], limits) < 0:
            return -GATEWAY_STATUS
        at += 1
    return <Py_ssize_t>at

# --- what is said to people


cpdef str response_reason_text(int reason):
    """The sentence for the reason code of a refused response head, or of a refused body.

    :raises UsageError: there is no such code; they are numbered from 0 (nothing is wrong) without a gap.
    """
    if 0 <= reason < REASON_COUNT:
        return reason_text(reason)
    if reason not in REFUSALS:
        raise UsageError(f"nothing is refused for the reason {reason}; the codes go from 0 to {REASON_END - 1}")
    return REFUSALS[reason]


cdef object response_refusal(const Head *head):
    return PeerError(f"{response_reason_text(head.reason)}; at byte {head.scanned} of the head", GATEWAY_STATUS)


cdef object body_refusal(const Body *body):
    return PeerError(f"{response_reason_text(body.reason)}", GATEWAY_STATUS)

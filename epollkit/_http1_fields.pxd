"""What the parsers of request and of response heads share: classes of bytes, field lines, lists.

A stage is a loop over one class of bytes. It answers GO_ON, or stores where it stands and answers MORE, or refuses; how
that adds up to a parser is said in `_http1.pyx`, whose tables these are.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from epollkit._http1 cimport (
    BARE_CR, BARE_LF, CLASS, FIELD_FOLDED, FIELD_NAME_BYTE, FIELD_NAME_EMPTY, FIELD_NAME_SPACE, FIELD_TOO_LONG,
    FIELD_VALUE_BYTE, FIELDS_TOO_MANY, Head, HeadField, HeadLimits, LOWER, MAX_HEAD_FIELDS, Reason, TARGET_BYTE,
    TARGET_FRAGMENT, VERSION_MISSING, refuse,
)

cdef extern from "<endian.h>" nogil:
    uint32_t le32toh(uint32_t word) noexcept
    uint64_t le64toh(uint64_t word) noexcept

cdef extern from * nogil:
    int __builtin_ctzll(unsigned long long word) noexcept

cdef extern from "_http1_scan.h" nogil:
    size_t ek_skip_text(const uint8_t *data, size_t at, size_t end) noexcept
    size_t ek_skip_letters(const uint8_t *data, size_t at, size_t end) noexcept

cdef enum:
    MORE = 0                    # what a stage answers: it needs more bytes,
    GO_ON = 1                   # or the next stage's turn has come; a refusal is minus its status
    HTAB = 0x09
    LF = 0x0A
    CR = 0x0D
    SPACE = 0x20

cdef enum Stage:                # Head.stage
    BEFORE_START_LINE = 0       # of a request: one empty line may come first (RFC 9112 2.2)
    IN_METHOD
    IN_TARGET
    IN_VERSION
    IN_STATUS_LINE              # of a response
    IN_PHRASE
    IN_NAME                     # from a field line's first byte to its colon; also: at the blank line
    IN_VALUE                    # from behind the colon to the CRLF, whitespace around the value included
    COMPLETE
    REFUSED

cdef enum Seen:                 # bits of Head.seen
    SEEN_HOST = 1
    SEEN_LENGTH = 2
    SEEN_CODING = 4
    SEEN_CLOSE = 8
    SEEN_KEEP_ALIVE = 16

cdef enum ByteClass:            # bits of CLASS[byte]
    TOKEN = 1                   # tchar, RFC 9110 5.6.2: methods and field names
    TARGET = 2                  # 0x21-0x7E without '#'
    VALUE = 4                   # HTAB, SP, 0x21-0x7E, 0x80-0xFF: RFC 9110 5.5
    REG_NAME = 8                # RFC 3986 3.2.2, the percent sign too: it is looked at again
    IP_LITERAL = 16             # what an IPv6 address has between its brackets
    DIGIT = 32
    HEX_DIGIT = 64
    HOST_PLAIN = 128            # REG_NAME without the percent sign

# --- small tools


cdef inline int wait_at(Head *head, Stage stage, size_t at) noexcept nogil:
    head.stage = stage
    head.scanned = <uint32_t>at
    return MORE


cdef inline Reason reason_for(uint8_t byte, Reason otherwise) noexcept nogil:
    """The reason to refuse `byte`: those that people meet have one of their own."""
    if byte == LF:
        return BARE_LF
    if otherwise == TARGET_BYTE:
        return VERSION_MISSING if byte == CR else TARGET_FRAGMENT if byte == 0x23 else TARGET_BYTE  # '#'
    if otherwise == FIELD_FOLDED or otherwise == FIELD_NAME_SPACE:
        if byte == 0x3A:  # :
            return FIELD_NAME_EMPTY
        return otherwise if byte == SPACE or byte == HTAB else FIELD_NAME_BYTE
    return otherwise


cdef inline size_t smaller(size_t a, size_t b) noexcept nogil:
    return a if a < b else b


cdef inline bint same_text(const uint8_t *text, size_t length, const uint8_t *other,
                           size_t other_length) noexcept nogil:
    """Are the two equal but for the case of ASCII letters?"""
    cdef size_t i
    if length != other_length:
        return False
    for i in range(length):
        if LOWER[text[i]] != LOWER[other[i]]:
            return False
    return True


cdef inline int trim(const uint8_t *text, size_t *start, size_t *stop) noexcept nogil:
    """Leave out the whitespace at both ends of text[start:stop] (OWS, RFC 9110 5.6.3)."""
    while start[0] < stop[0] and text[start[0]] in (SPACE, HTAB):
        start[0] += 1
    while stop[0] > start[0] and text[stop[0] - 1] in (SPACE, HTAB):
        stop[0] -= 1
    return 0


cdef inline size_t skip_class(const uint8_t *data, size_t at, size_t end, uint8_t byte_class) noexcept nogil:
    while at < end and CLASS[data[at]] & byte_class:
        at += 1
    return at


cdef inline size_t skip_run(const uint8_t *data, size_t at, size_t end, uint8_t byte_class) noexcept nogil:
    """As skip_class(), quicker where many bytes are to be expected."""
    while at + 4 <= end and (
            CLASS[data[at]] & CLASS[data[at + 1]] & CLASS[data[at + 2]] & CLASS[data[at + 3]] & byte_class):
        at += 4
    return skip_class(data, at, end, byte_class)


cdef inline size_t skip_value(const uint8_t *data, size_t at, size_t end) noexcept nogil:
    """The first byte in [at, end) that no field value has, or `end`.

    Most of a head is values, so eight bytes at a time. Of a word's bytes below n (n <= 0x80), `(word - n) & ~word &
    0x80` in each byte marks at least the lowest one: a borrow can only reach bytes above a byte that is marked. Bytes
    equal to 0x7F are those where `word ^ 0x7F` is below 1. A tab is marked too, and left to the table; so is the tail.
    """
    cdef uint64_t ones = 0x0101010101010101
    cdef uint64_t high_bits = ones * 0x80
    cdef uint64_t word, flipped, stops
    while end - at >= 8:
        memcpy(&word, data + at, 8)
        word = le64toh(word)  # the lowest byte of the word is the first in memory
        flipped = word ^ (ones * 0x7F)
        stops = (((word - ones * 0x20) & ~word) | ((flipped - ones) & ~flipped)) & high_bits
        if stops:
            at += __builtin_ctzll(stops) >> 3
            break
        at += 8
    return skip_class(data, at, end, VALUE)


cdef inline size_t skip_text(const uint8_t *data, size_t at, size_t end) noexcept nogil:
    """As skip_value(), quicker where a CR is to be expected behind a long value and not at the end of what is there."""
    at = ek_skip_text(data, at, end)
    return at if at < end and data[at] == CR else skip_value(data, at, end)


cdef inline uint64_t folded_word(const uint8_t *text) noexcept nogil:
    """Eight bytes, to be compared with those of lower-case letters and hyphens: a CR looks like a hyphen, and stands
    neither in names nor in values; no other byte looks like what it is not, but for the case of letters."""
    cdef uint64_t word
    memcpy(&word, text, 8)
    return word | <uint64_t>0x2020202020202020


cdef inline bint next_element(const uint8_t *text, size_t length, size_t *at, size_t *start,
                              size_t *stop) noexcept nogil:
    """The next element of a comma-separated list (RFC 9110 5.6.1), from `at` on: text[start:stop], may be empty.

    False behind the last one. Quoted strings are not known: the lists that are read here have none.
    """
    if at[0] > length:
        return False
    start[0] = at[0]
    while at[0] < length and text[at[0]] != 0x2C:  # ,
        at[0] += 1
    stop[0] = at[0]
    at[0] += 1
    trim(text, start, stop)
    return True


# --- field lines


cdef inline int scan_name(Head *head, const uint8_t *data, size_t end, const HeadLimits *limits) noexcept nogil:
    """The name of a field line whose first byte is there and is no CR."""
    cdef size_t line = head.consumed
    cdef size_t stop = smaller(end, line + limits.field_bytes)
    cdef size_t at = skip_run(data, head.scanned, stop, TOKEN)
    if at > line and head.field_count >= smaller(limits.fields, MAX_HEAD_FIELDS):
        return refuse(head, FIELDS_TOO_MANY, line)
    if at >= end:
        return wait_at(head, IN_NAME, at)
    if at - line >= limits.field_bytes and data[at] != CR:
        return refuse(head, FIELD_TOO_LONG, at)
    if data[at] != 0x3A or at == line:  # :
        return refuse(head, reason_for(data[at], FIELD_FOLDED if at == line else FIELD_NAME_SPACE), at)
    head.name_end = <uint16_t>at
    head.scanned = <uint32_t>(at + 1)
    head.stage = IN_VALUE
    return GO_ON


cdef inline int scan_value(Head *head, const uint8_t *data, size_t end, const HeadLimits *limits,
                           HeadField *field) noexcept nogil:
    """Into the free `field`: from behind the colon to behind the CRLF; then the field is noted, not yet looked at."""
    cdef size_t line = head.consumed
    cdef size_t stop = smaller(end, line + limits.field_bytes)
    cdef size_t start = head.name_end + 1
    cdef size_t at = head.scanned
    if at < stop:
        at = skip_value(data, at, stop)
    if at >= end:
        return wait_at(head, IN_VALUE, at)
    if data[at] != CR:
        if at - line >= limits.field_bytes:
            return refuse(head, FIELD_TOO_LONG, at)
        return refuse(head, reason_for(data[at], FIELD_VALUE_BYTE), at)
    if at + 1 >= end:
        return wait_at(head, IN_VALUE, at)
    if data[at + 1] != LF:
        return refuse(head, BARE_CR, at)
    head.consumed = <uint32_t>(at + 2)
    head.scanned = head.consumed
    head.stage = IN_NAME
    trim(data, &start, &at)
    field.name = <uint16_t>line
    field.name_length = <uint16_t>(head.name_end - line)
    field.value = <uint16_t>start
    field.value_length = <uint16_t>(at - start)
    head.field_count += 1
    return GO_ON


cdef inline size_t scan_plain_line(const uint8_t *data, size_t line, size_t end, HeadField *field) noexcept nogil:
    """`Name: value` and CRLF as nearly everybody writes it, one space before the value and none behind: in one go what
    scan_name() and scan_value() do, into the free `field`. The length of the line; 0: it is not as plain as that, or
    not all there; these look at it. Limits are the caller's.
    """
    cdef size_t colon = ek_skip_letters(data, line, end)
    cdef size_t start, at
    if colon < end and data[colon] != 0x3A:
        colon = skip_class(data, colon, end, TOKEN)
    start = colon + 2
    if colon == line or start >= end or memcmp(data + colon, b": ", 2) != 0 or data[start] <= SPACE:
        return 0
    at = skip_text(data, start, end)
    if end - at < 2 or memcmp(data + at, b"\r\n", 2) != 0 or data[at - 1] <= SPACE:
        return 0
    field.name = <uint16_t>line
    field.name_length = <uint16_t>(colon - line)
    field.value = <uint16_t>start
    field.value_length = <uint16_t>(at - start)
    return at - line


cdef inline int complete_head(Head *head, size_t at) noexcept nogil:
    """The blank line is at `at`."""
    head.keep_alive = not head.seen & SEEN_CLOSE and (head.minor_version == 1 or head.seen & SEEN_KEEP_ALIVE)
    head.consumed = <uint32_t>(at + 2)
    head.scanned = head.consumed
    head.stage = COMPLETE
    return GO_ON

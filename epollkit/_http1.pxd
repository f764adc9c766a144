"""HTTP/1.1 request heads, sans I/O: bytes in, offsets out, strict by default (RFC 9110, RFC 9112).

A `Head` is plain memory that its owner resets and passes with the same bytes, and more behind them, until the answer is
not 0. Everything in it is an offset from the head's first byte, so the buffer may move between two calls. Nothing here
touches a Python object or a socket, but for the last two functions, which make the message of a refusal.

A response's head is read into a `Head` too, by the same rules for its fields: `_http1_response`. What both parsers need
is in `_http1_fields`.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

cdef enum:
    MAX_HEAD_FIELDS = 100       # capacity of Head.fields; --limit-request-fields may be lower, never higher
    MAX_HEAD_BYTES = 65535      # a whole head: offsets fit 16 bits, and one head can't hold a buffer hostage
    MAX_METHOD_BYTES = 32       # the longest registered one (UPDATEREDIRECTREF) has 17; beyond it is 501

    DEFAULT_REQUEST_LINE_BYTES = 8190
    DEFAULT_FIELDS = 100
    DEFAULT_FIELD_BYTES = 8190

cdef enum:  # Head.method
    HEAD_OTHER = 0              # any other token; its text is at Head.method_name
    HEAD_GET
    HEAD_HEAD
    HEAD_POST
    HEAD_PUT
    HEAD_DELETE
    HEAD_OPTIONS
    HEAD_PATCH
    HEAD_TRACE

cdef enum:  # Head.target_form (RFC 9112 3.2); the fourth form belongs to CONNECT, which is refused
    TARGET_ORIGIN = 0           # /path?query
    TARGET_ABSOLUTE             # http://authority/path?query
    TARGET_ASTERISK             # *, with OPTIONS only

cdef enum Reason:               # Head.reason; what each one means and its status: REFUSALS in the .pyx
    NO_REASON = 0
    BARE_CR
    BARE_LF
    METHOD_BYTE
    METHOD_TOO_LONG
    METHOD_CONNECT
    TARGET_BYTE
    TARGET_FRAGMENT
    TARGET_FORM
    TARGET_ASTERISK_METHOD
    TARGET_AUTHORITY
    REQUEST_LINE_TOO_LONG
    VERSION_MISSING
    VERSION_SYNTAX
    VERSION_UNKNOWN
    FIELD_FOLDED
    FIELD_NAME_EMPTY
    FIELD_NAME_SPACE
    FIELD_NAME_BYTE
    FIELD_VALUE_BYTE
    FIELD_TOO_LONG
    FIELDS_TOO_MANY
    HEAD_TOO_LONG
    HOST_MISSING
    HOST_REPEATED
    HOST_SYNTAX
    HOST_OTHER
    LENGTH_REPEATED
    LENGTH_SYNTAX
    LENGTH_OVERFLOW
    LENGTH_AND_CODING
    CODING_VERSION
    CODING_REPEATED
    CODING_SYNTAX
    CODING_NOT_LAST
    CODING_UNKNOWN
    EXPECTATION_UNKNOWN
    REASON_COUNT

cdef struct HeadLimits:         # a line counts without its CRLF; whitespace around a value counts
    uint32_t request_line_bytes  # beyond it 414; of a response its status line
    uint32_t fields              # beyond it 431; above MAX_HEAD_FIELDS it means MAX_HEAD_FIELDS
    uint32_t field_bytes         # one field line, name to end of line; beyond it 431

cdef struct HeadField:          # offsets from the head's first byte
    uint16_t name               # as the peer wrote it: compare without case
    uint16_t name_length        # never 0
    uint16_t value              # whitespace around it is left out
    uint16_t value_length       # may be 0

cdef struct Head:
    # Where parsing stands. A head that comes in pieces goes on at `scanned`, so its cost is linear.
    uint32_t consumed           # bytes of complete, validated lines; when the head is complete, all of its bytes
    uint32_t scanned            # bytes looked at so far; of a refused head, the offset of what is wrong
    uint8_t stage               # which part of a line comes at `scanned` (private, 0: nothing seen yet)
    uint8_t seen                # fields that may come once only, and Connection's options (private, bits)
    uint16_t name_end           # the colon of the line that is being scanned (private)
    uint8_t reason              # of a refused head: the code that reason_text() puts into words; 0 else
    # The result: whole once parse_head() has returned more than 0, not to be used before. Of a response's head there is
    # `status` and `phrase` in place of method, target, authority and expectation.
    uint8_t method              # HEAD_GET ... or HEAD_OTHER; methods are case-sensitive
    uint8_t minor_version       # HTTP/1.minor_version: 0 or 1
    uint8_t target_form         # TARGET_ORIGIN ...
    uint8_t secure_target       # 1: an absolute target with the scheme https
    uint8_t keep_alive          # 1: the peer would use the connection again (RFC 9112 9.3)
    uint8_t chunked             # 1: Transfer-Encoding: chunked; content_length is -1 then
    uint8_t expect_continue     # 1: Expect: 100-continue in HTTP/1.1
    uint16_t field_count        # used entries of `fields`
    uint16_t method_name        # offset of the method's text (2 when an empty line came before)
    uint16_t method_name_length
    uint16_t target
    uint16_t target_length
    uint16_t authority          # of an absolute target: host [":" port]
    uint16_t authority_length   # 0: the target has none
    uint16_t status             # of a response: 100 to 999
    uint16_t phrase             # and its reason phrase
    uint16_t phrase_length      # may be 0
    int64_t content_length      # -1: no Content-Length
    HeadField fields[MAX_HEAD_FIELDS]  # in the order they came. Last: head_reset() leaves it alone

# Make `head` ready for a new head. Returns 0.
cdef int head_reset(Head *head) noexcept nogil

# `data`: the head's first byte. > 0: complete, the bytes it took (blank line included). 0: needs more (call again with
# the same bytes and more behind them, never with fewer). < 0: minus the HTTP status to refuse with. Every answer but 0
# is final: another call for the same head repeats it.
cdef int parse_head(Head *head, const uint8_t *data, size_t length, const HeadLimits *limits) noexcept nogil

# What an application may set: a token (RFC 9110 5.6.2), and a value that has no CTL but HTAB and no whitespace at its
# ends (5.5).
cdef bint valid_field_name(const uint8_t *data, size_t length) noexcept nogil
cdef bint valid_field_value(const uint8_t *data, size_t length) noexcept nogil

# For `_http1_fields`: the byte classes of every byte, and its lower case, ASCII only, whatever the locale says.
cdef uint8_t CLASS[256]
cdef uint8_t LOWER[256]
cdef int refuse(Head *head, Reason reason, size_t at) noexcept nogil

# For the parser of responses: each looks at a complete field that is counted already, and answers GO_ON or refuses it.
cdef int take_content_length(Head *head, const uint8_t *data, const HeadField *field) noexcept nogil
cdef int take_transfer_encoding(Head *head, const uint8_t *data, const HeadField *field) noexcept nogil
cdef int take_connection(Head *head, const uint8_t *data, const HeadField *field) noexcept nogil

# The sentence for a `Head.reason`, and the PeerError for a head that parse_head() refused: that sentence and the place.
cpdef str reason_text(int reason)
cdef object head_refusal(const Head *head)

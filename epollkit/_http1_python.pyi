"""The Python face of the head parser, `_http1`: for tests, tools and fuzzing."""
from typing import NamedTuple, final

class RequestHead(NamedTuple):
    """A complete request head."""

    method: str
    """As sent: methods are case-sensitive."""
    target: str
    """As sent."""
    minor_version: int
    """HTTP/1.minor_version: 0 or 1."""
    headers: list[tuple[bytes, bytes]]
    """In the order they came; names in lower case, values without the whitespace around them."""
    content_length: int | None
    """None: no Content-Length."""
    chunked: bool
    """Transfer-Encoding: chunked."""
    keep_alive: bool
    """Whether the peer would use the connection again (RFC 9112 9.3)."""
    expect_continue: bool
    """Expect: 100-continue, in HTTP/1.1."""
    consumed: int
    """Bytes that the head took: an empty line before it and the blank line behind it included."""

@final
class HeadReader:
    """Reads one request head that comes in pieces. Not thread-safe.

    :param request_line_bytes: the most that a request line may have, its CRLF not counted.
    :param fields: the most field lines, at most 100.
    :param field_bytes: the most that one field line may have, its CRLF not counted.
    :raises UsageError: a limit is out of range.
    """

    def __new__(cls, *, request_line_bytes: int = 8190, fields: int = 100, field_bytes: int = 8190) -> HeadReader: ...
    def feed(self, data: bytes) -> RequestHead | None:
        """Take the next piece; return the RequestHead once it is complete, None before.

        Bytes behind the head are not kept: `consumed` of the result, less what earlier pieces had, is where they start.

        :raises PeerError: the head is refused; `.status` is the HTTP status that says why.
        :raises UsageError: the head was complete or refused already.
        """

def parse_request_head(
    data: bytes, *, request_line_bytes: int = 8190, fields: int = 100, field_bytes: int = 8190
) -> RequestHead | None:
    """Parse the request head that `data` starts with; None when its end is not there yet.

    :param data: bytes from the head's first one on; what is behind the head is left alone.
    :param request_line_bytes, fields, field_bytes: limits, as for HeadReader.
    :raises PeerError, UsageError: as HeadReader does.
    """

def is_field_name(name: bytes) -> bool:
    """May a field have this name? One or more token characters (RFC 9110 5.6.2)."""

def is_field_value(value: bytes) -> bool:
    """May a field have this value? No control byte but HTAB, no whitespace at either end (RFC 9110 5.5)."""

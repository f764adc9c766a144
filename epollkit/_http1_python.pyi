"""The Python face of the codec, `_http1` and `_http1_response`: for tests, tools and fuzzing."""
from typing import Literal, NamedTuple, final

_Framing = Literal["none", "length", "chunked", "close"]

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

class ResponseHead(NamedTuple):
    """A complete response head."""

    status: int
    phrase: bytes
    """The reason phrase; may be empty."""
    minor_version: int
    """HTTP/1.minor_version: 0 or 1."""
    headers: list[tuple[bytes, bytes]]
    """In the order they came; names in lower case, values without the whitespace around them."""
    content_length: int | None
    """None: no Content-Length."""
    chunked: bool
    """Transfer-Encoding: chunked."""
    keep_alive: bool
    """Whether the peer would use the connection again (RFC 9112 9.3), if its body does not last until the end."""
    framing: _Framing
    """How its body ends (RFC 9112 6.3)."""
    consumed: int
    """Bytes that the head took, the blank line behind it included."""

@final
class ResponseReader:
    """Reads one response head that comes in pieces. Not thread-safe.

    :param head: whether the request was HEAD, so that no body follows.
    :param status_line_bytes: the most that a status line may have, its CRLF not counted.
    :param fields, field_bytes: as for HeadReader.
    :raises UsageError: a limit is out of range.
    """

    def __new__(
        cls, *, head: bool = False, status_line_bytes: int = 8190, fields: int = 100, field_bytes: int = 8190
    ) -> ResponseReader: ...
    def feed(self, data: bytes) -> ResponseHead | None:
        """Take the next piece; return the ResponseHead once it is complete, None before.

        Bytes behind the head are not kept: `consumed` of the result, less what earlier pieces had, is where they start.

        :raises PeerError: the head is refused; `.status` is 502.
        :raises UsageError: the head was complete or refused already.
        """

@final
class BodyReader:
    """Decodes one body that comes in pieces. Not thread-safe.

    :param framing: how it ends, "none", "length", "chunked" or "close".
    :param length: its length, if it is "length".
    :param extension_bytes: the most that the extensions of all its chunks may have together.
    :param trailer_bytes: the most that its trailer lines may have together, their CRLFs not counted.
    :raises UsageError: there is no such framing, or a number is below 0.
    """

    def __new__(
        cls, framing: _Framing, length: int = 0, *, extension_bytes: int = 16384, trailer_bytes: int = 8190
    ) -> BodyReader: ...
    @property
    def done(self) -> bool:
        """The body is complete."""
    def take(self, data: bytes) -> tuple[int, bytes]:
        """Decode the next bytes, up to the end of one stretch of payload: (how many were taken, that payload).

        :raises PeerError: the body is refused, now or before; `.status` is 502.
        """
    def end(self) -> None:
        """The connection has ended.

        :raises PeerError: so the body is cut off, or it was refused before.
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

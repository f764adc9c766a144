from collections.abc import Callable, Iterable
from typing import Any

from typing_extensions import Never, disjoint_base

from epollkit._connection import Connection

@disjoint_base
class Request:
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    body: bytes
    connection: HttpConnection
    minor_version: int
    @property
    def method(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def query(self) -> str: ...
    @property
    def headers(self) -> list[tuple[bytes, bytes]]: ...
    def header(self, name: bytes | str, default: bytes | None = None) -> bytes | None: ...

@disjoint_base
class Response:
    body: bytes
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    def __init__(self, body: bytes = b"", status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> None: ...

@disjoint_base
class Settings:
    app: Callable[[Request], Response]
    admit: Callable[[Any], bool] | None
    def __init__(
        self, app: Callable[[Request], Response], *, admit: Callable[[Any], bool] | None = None,
        limit_request_line: int = 8190, limit_request_fields: int = 100, limit_request_field_size: int = 8190,
        limit_request_body: int = 1048576, timeout_header: float = 10.0, timeout_body: float = 30.0,
        timeout_write: float = 30.0, timeout_keep_alive: float = 75.0,
    ) -> None: ...
    def __call__(self) -> HttpConnection: ...

@disjoint_base
class Partial: ...

@disjoint_base
class HttpConnection(Connection):
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...

def http_date(seconds: int) -> str: ...

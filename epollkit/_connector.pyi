from collections.abc import Callable, Mapping
from ssl import SSLContext
from typing import Any

from typing_extensions import Never, disjoint_base

from epollkit import _buffered, _core, _sockets
from epollkit.errors import Attempt

TABLE: Mapping[str, Mapping[str, tuple[str, str]]]
STATES: tuple[str, ...]
EVENTS: tuple[str, ...]
ACTIONS: tuple[str, ...]

@disjoint_base
class Approach(_core.Endpoint):
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...

@disjoint_base
class Connector:
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    stream: Any
    address: _sockets.Address
    @property
    def state(self) -> str: ...
    @property
    def attempts(self) -> tuple[Attempt, ...]: ...
    def cancel(self) -> None: ...

def expire(connector: Connector) -> None: ...

@disjoint_base
class Loop(_buffered.Loop):
    def connect(self, address: _sockets.Address, factory: Callable[[], _core.Endpoint], *, timeout: float = 10.0,
                bind: str | tuple[str, int] | None = None, ssl: SSLContext | bool | None = None,
                server_hostname: str | None = None, ssl_handshake_timeout: float = 10.0) -> Connector: ...
    def _resolved(self, number: int, answer: Any) -> None: ...

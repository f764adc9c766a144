from collections.abc import Callable
from typing import Protocol, TypeAlias

from typing_extensions import Never, disjoint_base

from epollkit import _core, _room
from epollkit._tokens import Token

class _HasFileno(Protocol):
    def fileno(self) -> int: ...

_Handler: TypeAlias = Callable[[Token, int], object]

@disjoint_base
class RawEndpoint(_core.Endpoint):
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...

class Loop(_room.Loop):
    def register(self, fd: int | _HasFileno, events: int, handler: _Handler) -> Token: ...
    def modify(self, token: Token, events: int) -> None: ...
    def unregister(self, token: Token) -> None: ...
    def _register_internal(self, fd: int, events: int, handler: _Handler) -> Token: ...

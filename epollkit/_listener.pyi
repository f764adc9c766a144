from collections.abc import Callable
from typing import Any

from typing_extensions import Never, disjoint_base

from epollkit import _sockets
from epollkit._core import Endpoint
from epollkit._room import Loop

@disjoint_base
class Listener(Endpoint):
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    address: Any
    pauses: int
    def resume_now(self) -> None: ...
    def close(self) -> None: ...

def listen(loop: Loop, opened: _sockets.ListeningSocket, factory: Callable[[], Any], *, exclusive: bool,
           defer_accept: bool) -> Listener: ...

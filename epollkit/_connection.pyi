import ssl

from typing_extensions import disjoint_base

from epollkit._buffered import Buffered

@disjoint_base
class Connection(Buffered):
    @property
    def ssl_object(self) -> ssl.SSLObject | None: ...
    def _secure(self, context: ssl.SSLContext, server_side: bool, server_hostname: str | None,
                handshake_timeout: float) -> None: ...
    def _park(self, idle_seconds: float) -> bool: ...
    def _unpark(self) -> bool: ...

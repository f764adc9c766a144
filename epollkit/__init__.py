"""epollkit: a raw, edge-triggered epoll server toolkit in which a stale event can never reach the wrong connection."""
try:
    from epollkit._core import build_info
except ImportError as _error:
    if not (_error.name or "").startswith("epollkit."):
        raise
    raise ImportError(f"epollkit's compiled modules are not here ({_error.name}); "
                      "build them with `pip install -e .` in the source tree") from None

from epollkit._calls import Timer
from epollkit._connector import Connector
from epollkit._listener import Listener
from epollkit._rate import RateLimit
from epollkit._sockets import Detached
from epollkit._stream import Stream
from epollkit._tokens import Token
from epollkit.errors import Attempt, ConnectError, EpollkitError, LimitReached, PeerError, StaleToken, UsageError
from epollkit.events import ERR, EXCLUSIVE, HUP, IN, ONESHOT, OUT, PRI, RDHUP
from epollkit.loop import Loop
from epollkit.pool import Pool, PoolRequest
from epollkit.stats import LoopStats, PoolStats

__version__ = "0.1.0"

__all__ = [
    "ERR", "EXCLUSIVE", "HUP", "IN", "ONESHOT", "OUT", "PRI", "RDHUP", "Attempt", "ConnectError", "Connector",
    "Detached", "EpollkitError", "LimitReached", "Listener", "Loop", "LoopStats", "PeerError", "Pool", "PoolRequest",
    "PoolStats", "RateLimit", "StaleToken", "Stream", "Timer", "Token", "UsageError", "build_info",
]

"""What a handler in Cython sees of epollkit: `cimport epollkit`. See docs/native.md."""
from epollkit._core cimport Endpoint
from epollkit._room cimport rest
from epollkit._slots cimport (
    SLOT_CONNECTION, SLOT_IDLE, SLOT_OWNS_FD, SLOT_PEER_CLOSED, SLOT_TCP, SLOT_TELLS_CLOSE, Slot, slot_tag,
)
from epollkit._buffered cimport STREAM_LINGERS, STREAM_MAY_LINGER, Loop, reserve
from epollkit._connection cimport Connection
from epollkit._connector cimport Connector
from epollkit._stream cimport Stream
from epollkit._tokens cimport Token, make_token

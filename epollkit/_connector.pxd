"""Above the streams: how a connection is made. A `Connector` is what the user asked for, an `Approach` one socket that
is under way to one address; there are several at a time where a name has several addresses (RFC 8305).

What happens when is a table: `TABLE` in `_connector.pyx`, told in docs/connecting.md.
"""
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

cimport epollkit._buffered as _buffered
from epollkit._calls cimport Timer
from epollkit._core cimport Endpoint
from epollkit._sys cimport sockaddr_storage

cdef enum:
    ATTEMPT_DELAY_NS = 250000000    # until the next address is tried as well: RFC 8305, section 8
    NO_VERDICT = -1                 # of an approach

cdef enum ConnectState:             # in the order of the rows of TABLE, ConnectEvent and ConnectAction likewise
    RESOLVING
    CONNECTING
    CONNECTED
    FAILED
    CANCELLED
    TIMED_OUT
    CONNECT_STATES

cdef enum ConnectEvent:
    ADDRESSES                       # are known: the host is numeric, or was looked up
    NO_ADDRESS                      # nobody knows the name
    UNCLEAR                         # a socket's event is no verdict
    ESTABLISHED                     # a socket is connected
    REFUSED                         # a socket has failed, and is closed
    EXHAUSTED                       # the last one has
    DELAY                           # the newest socket has had its time to be first
    DEADLINE                        # the time for all of it is over
    CANCEL                          # the user does not want it any more, or the loop ends
    CONNECT_EVENTS

cdef enum ConnectAction:
    IGNORE
    TRY_NEXT
    WAIT_ON
    HAND_OVER
    GIVE_UP


cdef class Loop(_buffered.Loop):
    cdef dict resolving             # number of the question -> Connector
    cdef uint64_t questions         # asked so far


cdef class Connector:
    cdef readonly Endpoint stream   # what the factory made: closed, or open, or neither yet
    cdef readonly object address    # what was asked for
    cdef Loop loop                  # while it is under way
    cdef object source              # (host, port) to connect from, or None
    cdef list addresses             # to be tried in this order ...
    cdef Py_ssize_t tried           # ... so many have been
    cdef list under_way             # Approach
    cdef list over                  # Attempt: those that failed, or were given up
    cdef Approach newest            # the last one that was begun; the one that made it, in the end
    cdef Timer timer                # the deadline, while there is no socket whose slot could have it
    cdef int64_t started_ns
    cdef int64_t deadline_ns
    cdef uint64_t question          # its number, while a name is looked up
    cdef unsigned char row          # of TABLE: ConnectState

    cdef int tell(self, ConnectEvent event, Approach approach, uint32_t events) except -1
    cdef int ask(self) except -1
    cdef int resolved(self, object answer) except -1
    cdef int try_next(self) except -1
    cdef bint begin(self, object address) except -1
    cdef int hand_over(self, Approach winner, uint32_t events) except -1
    cdef int hurry(self, Endpoint heir) noexcept
    cdef int give_up(self) except -1
    cdef int finish(self, int code) except -1
    cdef int note(self, object address, object error, int64_t since_ns) except -1
    cdef int end(self, Approach approach, object error) except -1
    cdef int abandon(self) except -1


cdef class Approach(Endpoint):
    cdef Connector connector        # None: it is over
    cdef object address
    cdef int64_t started_ns
    cdef int64_t ended_ns           # 0: not yet
    cdef int verdict                # NO_VERDICT, 0: connected, or errno: read once, and kept
    cdef uint16_t port              # the peer's; 0: a unix socket

    cdef int start(self, Loop loop, object source) except -1
    cdef int ask(self, uint32_t events) noexcept
    cdef bint met_itself(self) noexcept
    cdef int drop(self) except -1


cdef int make_address(object address, sockaddr_storage *storage) except -1

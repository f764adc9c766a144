"""The load engine: users who ask an HTTP/1.1 server, by a closed loop or at a given rate, and count what happens.

A `User` is one of the concurrent users: plain memory that stays where it is. A `Visit` is one connection of his; he has
one at a time. What a user has begun and has no answer to lies in his ring of `Asked`, oldest first: HTTP/1.1 answers in
order, so an answer always belongs to the oldest.

Times are CLOCK_MONOTONIC, in nanoseconds. A request's time begins when it was planned: in open loop by the rate,
whether or not a connection was free then; in closed loop when the user turned to it.
"""
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from epollkit._connection cimport Connection
from epollkit._http1 cimport Head, HeadLimits
from epollkit._http1_response cimport Body, BodyLimits
from epollkit._tally cimport STATUSES, Tally

cdef enum:
    BODY_KEPT_BYTES = 1048576   # of an answer's body, to look for what is expected in it
    FIRST_BACK_OFF_NS = 10000000
    LONGEST_BACK_OFF_NS = 1000000000

cdef enum Close:                # how a connection ends
    CLOSE_FIN
    CLOSE_RST
    CLOSE_HALF                  # our side at once, behind the requests; the answers are still read
    CLOSE_ABANDON               # behind the requests, unread
    CLOSE_RST_MID_REQUEST
    CLOSE_RST_MID_RESPONSE

cdef enum UserFlag:
    USER_OPEN = 1               # his connection can be written to
    USER_IN_BODY = 2            # the answer's head is complete
    USER_IN_ANSWER = 4          # some byte of the answer has come
    USER_LEAVES = 8             # the connection ends, by our will: its end is no failure
    USER_WRITES = 16            # a send has failed
    USER_RESTS = 32             # a timer brings him back: a delay, a back-off
    USER_WAITS = 64             # open loop: he is in the queue of those who have time
    USER_SERVED = 128           # this connection has brought an answer
    USER_ASKED = 256            # he has asked before: a delay is due
    USER_BROKE = 512            # the connection ends by our will, for what it brought, or did not

cdef enum:
    USER_OF_A_VISIT = USER_OPEN | USER_IN_BODY | USER_IN_ANSWER | USER_LEAVES | USER_WRITES | USER_SERVED \
        | USER_BROKE


cdef struct Asked:
    int64_t begun_ns
    uint32_t what               # which of the prepared requests


cdef struct User:
    PyObject *visit             # a borrowed reference; NULL: no connection
    Asked *ring                 # `depth` entries
    uint32_t first, count       # of them, ...
    uint32_t sent               # ... so many were given to the connection
    uint32_t next               # which request he asks next
    uint32_t flags              # UserFlag
    uint32_t failures           # in a row
    uint32_t place              # of the connection now: where it leads to
    uint64_t left               # repetitions
    int64_t connecting_ns       # since when
    Body body
    Head head


cdef struct Wire:               # a prepared request
    const char *data            # of a bytes object in Engine.prepared
    Py_ssize_t length
    uint32_t place              # of Engine.places
    bint head                   # HEAD: its answer has no body


cdef class Visit(Connection):
    cdef Engine engine
    cdef User *user             # NULL: it is nobody's any more
    cdef bytearray kept         # of a head that has not come in whole
    cdef bytearray body         # what is kept of the answer that is being read, if a body is expected

    cdef int send_due(self) except -1
    cdef int send_now(self) except -1
    cdef int misuse(self) except -1
    cdef Py_ssize_t consume(self, const char *data, Py_ssize_t length) except -1
    cdef Py_ssize_t consume_body(self, const char *data, Py_ssize_t length) except -1
    cdef int keep_body(self, const char *data, Py_ssize_t length) except -1
    cdef int leave(self) except -1
    cdef int refuse(self, str why) except -1
    cdef int reset(self) except -1


cdef class Engine:
    cdef readonly object loop
    cdef public object on_done
    cdef readonly bint done

    # the scenario
    cdef list prepared          # keeps the bytes alive
    cdef list places            # (address, ssl, server_hostname)
    cdef Wire *wires
    cdef uint32_t wire_count
    cdef User *users
    cdef Asked *rings
    cdef uint32_t user_count, depth
    cdef uint64_t first_user
    cdef uint64_t number        # requests at most; 0: no limit
    cdef double rate            # requests a second; 0: closed loop
    cdef double delay           # seconds
    cdef int64_t first_due_ns
    cdef bint keep_alive, random_order, repeats
    cdef Close close
    cdef list sources
    cdef double connect_timeout
    cdef int64_t timeout_ns
    cdef uint8_t expected[STATUSES]
    cdef bytes expected_body    # None: any
    cdef HeadLimits head_limits
    cdef BodyLimits body_limits
    cdef uint64_t random_state
    cdef object factory         # makes `coming`
    cdef Visit coming

    # how it goes
    cdef int64_t started_ns     # open loop: planned times count from here; 0: not yet
    cdef int64_t stopped_ns     # nothing is planned behind it; INT64_MAX: not yet
    cdef int64_t ended_ns       # 0: not yet
    cdef bint warming           # before measure(): `number` and `repetitions` do not count yet
    cdef uint64_t begun         # since then
    cdef uint64_t left          # repetitions of all users
    cdef uint64_t planned       # open loop: the number of the request that is begun next, ...
    cdef uint64_t planned_from  # ... and of the first that counts
    cdef uint64_t under_way     # requests in all rings
    cdef object pacer           # Timer, or None
    cdef object grace           # Timer, or None
    cdef dict resting           # the number of a user who rests -> Timer
    cdef uint32_t *queue        # open loop: users who have time, first in, first out
    cdef uint32_t queue_first, queue_count

    cdef Tally counted          # what happened

    cdef int prepare(self, object prepared) except -1
    cdef int make_users(self, uint64_t repetitions) except -1
    cdef int64_t due_ns(self, uint64_t number) noexcept
    cdef uint64_t planned_by(self, int64_t now_ns) noexcept
    cdef bint exhausted(self) noexcept
    cdef bint has_room(self, User *user) noexcept
    cdef int go_on(self, User *user, int64_t now_ns) except -1
    cdef int go_on_planned(self, User *user, int64_t now_ns) except -1
    cdef int wait_in_queue(self, User *user) noexcept
    cdef int arm(self, int64_t due_ns) except -1
    cdef int begin_planned(self, User *user, int64_t now_ns) except -1
    cdef double random(self) noexcept
    cdef int begin(self, User *user, int64_t begun_ns) except -1
    cdef int broke_off(self, User *user) noexcept
    cdef int open_visit(self, User *user) except -1
    cdef int answered(self, User *user, int64_t now_ns) except -1
    cdef int fail(self, User *user, str phase, str name, int64_t now_ns, bint waited) except -1
    cdef int fail_all(self, User *user, str phase, str name, int64_t now_ns, bint waited) except -1
    cdef int rest(self, User *user, double seconds) except -1
    cdef int closed(self, User *user, object reason) except -1
    cdef int settle(self, int64_t now_ns) except -1
    cdef int finish(self, int64_t now_ns) except -1

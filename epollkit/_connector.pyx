"""`Loop.connect`, and the `Connector` that it returns."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject, PyTypeObject, traverseproc, visitproc
from libc cimport errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport strerror

cimport epollkit._buffered as _buffered
cimport epollkit._sys as _sys
from epollkit._closings cimport closings_append, closings_reserve
from epollkit._connection cimport Connection, Extras
from epollkit._core cimport Endpoint, os_error
from epollkit._slots cimport SLOT_CONNECTION, SLOT_OWNS_FD, SLOT_TCP, SLOT_TELLS_CLOSE, SLOT_WATCHED
from epollkit._sys cimport EK_ASSERT, sockaddr_storage

from epollkit import _resolver, _sockets
from epollkit._checks import checked_seconds_ns
from epollkit.errors import Attempt, UsageError

cdef extern from "Python.h":
    bytes PyUnicode_EncodeFSDefault(object text)
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef extern from "<errno.h>" nogil:
    const int ECANCELED

# ---------------------------------------------------------------------------------------------------------------------
# A connect is a row of this table: what happens (an event) leads to an action and to the next row. What is not here
# changes nothing: an answer of the resolver that comes late, a cancel of what is over.
#
# Three accidents are what the rest is about.
#
# The error of a connect is read by whoever asks first, and is gone for everybody else, who then take a dead backend
# for a live one. Here one place asks, once, after an event and never before (`Approach.ask`), and keeps the answer; the
# stream does not exist for the kernel until that answer was 0.
#
# "Writable" alone is not "connected". A socket is registered after connect() was called, so what comes is about that
# connect; and HUP without ERR, which is what the kernel says of a socket that is not connected to anything, is no
# verdict either way: the next edge will ask again.
#
# A peer that accepts, answers and leaves before we look is IN, OUT and RDHUP in one event, which will not come twice.
# So the stream inherits the registration, as it is, and after its on_open gets that very event.
# ---------------------------------------------------------------------------------------------------------------------

TABLE = {
    "resolving": {
        "addresses": ("try next", "connecting"),
        "no address": ("give up", "failed"),
        "deadline": ("give up", "timed out"),
        "cancel": ("give up", "cancelled"),
    },
    "connecting": {
        "unclear": ("wait on", "connecting"),
        "established": ("hand over", "connected"),
        "refused": ("try next", "connecting"),
        "exhausted": ("give up", "failed"),
        "delay": ("try next", "connecting"),
        "deadline": ("give up", "timed out"),
        "cancel": ("give up", "cancelled"),
    },
    "connected": {},
    "failed": {},
    "cancelled": {},
    "timed out": {},
}
STATES = tuple(TABLE)
EVENTS = ("addresses", "no address", "unclear", "established", "refused", "exhausted", "delay", "deadline", "cancel")
ACTIONS = ("ignore", "try next", "wait on", "hand over", "give up")

cdef uint8_t ACTION[<int>CONNECT_STATES][<int>CONNECT_EVENTS]
cdef uint8_t NEXT[<int>CONNECT_STATES][<int>CONNECT_EVENTS]
for _row in range(CONNECT_STATES):
    for _column in range(CONNECT_EVENTS):
        _action, _next = TABLE[STATES[_row]].get(EVENTS[_column], ("ignore", STATES[_row]))
        ACTION[_row][_column] = ACTIONS.index(_action)
        NEXT[_row][_column] = STATES.index(_next)

# OUT stays for good: TCP raises it again only after the socket was full.
cdef uint32_t TCP_EVENTS = _sys.EPOLLIN | _sys.EPOLLOUT | _sys.EPOLLPRI | _sys.EPOLLRDHUP | _sys.EPOLLET
cdef uint32_t UNIX_EVENTS = _sys.EPOLLIN | _sys.EPOLLPRI | _sys.EPOLLRDHUP | _sys.EPOLLET


cdef object error_of(int code):
    return OSError(code, strerror(code).decode())


cdef int make_address(object address, sockaddr_storage *storage) except -1:
    """The socket address of what `_sockets.checked_target` lets pass, and its length; 0: the host is a name."""
    cdef Py_ssize_t size
    cdef const char *host = NULL
    cdef uint32_t flow = 0, scope = 0
    cdef bytes path
    if isinstance(address, str):
        path = PyUnicode_EncodeFSDefault(address)
        return _sys.ek_unix_address(PyBytes_AS_STRING(path), PyBytes_GET_SIZE(path), storage)
    try:
        host = PyUnicode_AsUTF8AndSize(address[0], &size)
    except UnicodeEncodeError:          # a lone surrogate
        host = NULL
    if host == NULL:
        return 0
    if len(address) == 4:
        flow, scope = address[2], address[3]
    return _sys.ek_numeric_address(host, size, address[1], flow, scope, storage)


cdef class Approach(Endpoint):
    """A socket on its way to one address. Of the slots under way one has the connector's clock: the newest's."""

    def __cinit__(self):
        self.verdict = NO_VERDICT
        _sys.EK_MADE(_sys.EK_APPROACH)

    def __init__(self):
        raise UsageError("an Approach belongs to a Connector, from Loop.connect(); it is not made by hand")

    cdef int start(self, Loop loop, object source) except -1:
        """0: under way, or there already; else the errno of connect()."""
        cdef sockaddr_storage target, near
        cdef int length = make_address(self.address, &target)
        cdef int near_length = make_address(source, &near) if source is not None else 0
        cdef int fd, result
        self.port = _sys.ek_port(&target)
        if near_length and near.ss_family != target.ss_family:
            raise OSError(errno.EAFNOSUPPORT, f"bind to {source[0]}: that is another address family")
        fd = _sys.ek_socket(target.ss_family)
        if fd < 0:
            raise os_error(-fd, "socket")
        try:
            loop.attach(self, fd, SLOT_OWNS_FD | SLOT_TELLS_CLOSE | SLOT_CONNECTION | (SLOT_TCP if self.port else 0))
        except BaseException:
            _sys.ek_close(fd)
            raise
        if self.connector is None:              # cancelled by what the collector ran meanwhile
            self.drop()
            return ECANCELED
        if self.port:
            _sys.ek_set_no_delay(fd)
        if near_length:
            result = _sys.ek_bind(fd, &near, near_length)
            if result < 0:
                raise os_error(-result, f"bind to {source[0]}, port {source[1]}")
        result = _sys.ek_connect(fd, &target, length)
        if result == 0:                         # unix always; its stream opens next turn, not within connect()
            self.verdict = 0
            return loop.make_ready(self.slot, _sys.EPOLLOUT)
        if result == -errno.EINPROGRESS and self.port:
            return loop.watch(self.slot, TCP_EVENTS)
        return -result

    cdef int on_ready(self, uint32_t events) except -1:
        cdef Connector connector = self.connector
        if connector.row != CONNECTING:         # an interrupt came between, or it would be closed
            return self.drop()
        if self.verdict == NO_VERDICT:
            self.verdict = self.ask(events)
        if self.verdict == 0 and self.met_itself():
            self.verdict = errno.ECONNREFUSED
        if self.verdict == NO_VERDICT:
            return connector.tell(UNCLEAR, self, events)
        if self.verdict == 0:
            return connector.tell(ESTABLISHED, self, events)
        connector.end(self, error_of(self.verdict))
        return connector.tell(REFUSED, self, events)

    cdef int ask(self, uint32_t events) noexcept:
        """The one place that reads a connecting socket's error, and that only if there is a verdict: its errno, or 0:
        connected, or NO_VERDICT."""
        cdef sockaddr_storage peer
        cdef int code
        if not events & (_sys.EPOLLERR | _sys.EPOLLOUT):
            return NO_VERDICT
        if events & _sys.EPOLLHUP and not events & _sys.EPOLLERR:
            if _sys.ek_socket_name(self.slot.fd, True, &peer) < 0:
                return NO_VERDICT
        EK_ASSERT(self.verdict == NO_VERDICT)
        code = _sys.ek_take_error(self.slot.fd)
        if code == 0 and events & _sys.EPOLLERR and _sys.ek_socket_name(self.slot.fd, True, &peer) < 0:
            return errno.ENOTCONN               # somebody else has read it
        return code

    cdef bint met_itself(self) noexcept:
        """Whether it is connected to itself: when a closed port is one that the kernel gives to clients, one of so many
        thousand tries is given that very port, and both ends of a simultaneous open are the same (RFC 9293, 3.5)."""
        cdef sockaddr_storage own, peer
        if not self.port or _sys.ek_socket_name(self.slot.fd, False, &own) < 0 or _sys.ek_port(&own) != self.port:
            return False
        return _sys.ek_socket_name(self.slot.fd, True, &peer) > 0 and _sys.ek_same_end(&own, &peer)

    cdef int on_deadline(self) except -1:
        cdef Connector connector = self.connector
        if connector.row != CONNECTING:
            return self.drop()
        return connector.tell(DEADLINE if _sys.ek_now_ns() >= connector.deadline_ns else DELAY, self, 0)

    cdef int on_closed(self, object reason) except -1:
        """Not by its connector, which drops it: the loop is closed, or the fd was, behind the loop's back."""
        cdef Connector connector = self.connector
        cdef Loop loop = <Loop>self.loop_link
        if connector is None:
            return 0
        if loop.closed:
            return connector.tell(CANCEL, None, 0)
        connector.end(self, reason)
        return connector.tell(REFUSED, self, 0)

    cdef int let_go(self) except -1:
        cdef Connector connector = self.connector       # held: its approaches may be all that refers to it
        if connector is not None:
            connector.abandon()
        return 0

    cdef int drop(self) except -1:
        """Over: nothing is left of it but the object."""
        cdef _buffered.Loop loop
        self.connector = None
        if self.slot == NULL:
            return 0
        loop = <Loop>self.loop_link
        self.slot.flags &= ~<uint16_t>SLOT_TELLS_CLOSE
        return loop.release(self.slot, None)


cdef class Connector:
    """A connection that is being made, from `Loop.connect`.

    Its stream's `on_open` is called when it is connected. Otherwise `on_close` is the stream's only upcall: with a
    `ConnectError`, or None if it was cancelled. `state` is "resolving", "connecting", "connected", "failed",
    "cancelled" or "timed out". Belongs to its loop's thread.
    """

    def __cinit__(self):
        _sys.EK_MADE(_sys.EK_CONNECTOR)
        self.under_way = []
        self.over = []

    def __init__(self):
        raise UsageError("a Connector comes from Loop.connect(); it is not made by hand")

    @property
    def state(self):
        """One of the words above."""
        return STATES[self.row]

    @property
    def attempts(self):
        """What was tried so far, a tuple of `Attempt(address, error, seconds)`: what is over, in the order of its ends;
        then what is under way, or made it: without an error. Those that lost the race, or were under way when all was
        cancelled, have ECANCELED."""
        cdef Approach approach
        found = list(self.over)
        for approach in self.under_way:
            found.append(Attempt(approach.address, None, (_sys.ek_now_ns() - approach.started_ns) / 1e9))
        if self.row == CONNECTED:
            approach = self.newest
            found.append(Attempt(approach.address, None, (approach.ended_ns - approach.started_ns) / 1e9))
        return tuple(found)

    def cancel(self):
        """Give up: sockets are closed at once, and the stream's on_close(None) follows at the end of the turn. Does
        nothing once it is over: a stream that is connected has a close() of its own."""
        if self.loop is not None:
            self.loop.check_usable()
            self.tell(CANCEL, None, 0)

    def __repr__(self):
        return f"<Connector {_sockets.describe(self.address)} {self.state}>"

    cdef int tell(self, ConnectEvent event, Approach approach, uint32_t events) except -1:
        """Something happened: the table knows what follows."""
        cdef uint8_t action = ACTION[self.row][<int>event]
        self.row = NEXT[self.row][<int>event]
        if action == TRY_NEXT:
            return self.try_next()
        if action == HAND_OVER:
            return self.hand_over(approach, events)
        if action == GIVE_UP:
            return self.give_up()
        return 0                # IGNORE; or WAIT_ON: an edge is not repeated, so the next one says more

    # -- names ---------------------------------------------------------------------------------------------------------

    cdef int ask(self) except -1:
        """Have the name looked up; until then the deadline is a timer, for there is no slot yet."""
        cdef Loop loop = self.loop
        loop.questions += 1
        self.question = loop.questions
        self.timer = loop.calls.schedule(self.deadline_ns, expire, (self,))
        loop.resolving[self.question] = self
        try:
            _resolver.ask(loop, self.question, self.address[0], self.address[1])
        except Exception as error:
            loop.resolving.pop(self.question, None)
            self.resolved(error)
        return 0

    cdef int resolved(self, object answer) except -1:
        """A list of addresses, or an exception. A late one does not get here: nobody waits for its question."""
        if self.timer is not None:
            self.timer.forget()
            self.timer = None
        if isinstance(answer, list):
            self.addresses = answer
            return self.tell(ADDRESSES, None, 0)
        self.note(self.address, answer, self.started_ns)
        return self.tell(NO_ADDRESS, None, 0)

    # -- sockets -------------------------------------------------------------------------------------------------------

    cdef int try_next(self) except -1:
        """The next address, and the one after it if that fails at once."""
        while self.row == CONNECTING and self.tried < len(self.addresses):
            address = self.addresses[self.tried]
            self.tried += 1
            if self.begin(address):
                return 0
        if self.row == CONNECTING and not self.under_way:
            return self.tell(EXHAUSTED, None, 0)
        return 0

    cdef bint begin(self, object address) except -1:
        """Whether that address is under way."""
        cdef Approach approach = None
        cdef Approach former = self.newest
        cdef Loop loop = self.loop
        cdef int64_t due_ns = self.deadline_ns
        cdef int code = 0
        try:
            approach = Approach.__new__(Approach)
            loop.check_usable()         # what the collector ran in that allocation may have closed it
            self.under_way.append(approach)
            approach.connector = self
        except MemoryError as error:
            self.note(address, error, _sys.ek_now_ns())
        if approach is None or approach.connector is None:
            return False
        approach.address = address
        approach.started_ns = _sys.ek_now_ns()
        try:
            code = approach.start(loop, self.source)
            if code == 0 and self.tried < len(self.addresses):
                due_ns = min(due_ns, approach.started_ns + ATTEMPT_DELAY_NS)
            if code == 0:
                loop.set_deadline(approach.slot, due_ns)
            elif code:
                raise error_of(code)
        except Exception as error:
            self.end(approach, error)
        if approach.connector is None:
            return False
        if former is not None and former.slot != NULL:      # its delay is over; the deadline is everybody's
            loop.set_deadline(former.slot, self.deadline_ns)
        self.newest = approach
        return True

    cdef int hand_over(self, Approach winner, uint32_t events) except -1:
        """Connected. The others are closed before the stream is told, and whatever that runs, it is told."""
        cdef Loop loop = self.loop
        cdef Endpoint heir = self.stream
        cdef bint watched = (winner.slot.flags & SLOT_WATCHED) != 0
        cdef uint32_t stream_events = TCP_EVENTS if winner.port else UNIX_EVENTS
        winner.ended_ns = _sys.ek_now_ns()
        winner.connector = None
        loop.hand_over(winner.slot, heir)
        loop.closings.promised -= 1         # it has a slot
        self.newest = winner
        self.under_way.remove(winner)
        try:
            self.finish(ECANCELED)
        finally:
            if heir.slot != NULL:
                self.hurry(heir)
                loop.open_endpoint(heir, stream_events, events if watched else 0)
        return 0

    cdef int hurry(self, Endpoint heir) noexcept:
        """What is left of the time is all that a TLS handshake has."""
        cdef Extras *extras = (<Connection>heir).extras if isinstance(heir, Connection) else NULL
        if extras != NULL:
            extras.shake_ns = max(<int64_t>1, min(extras.shake_ns, self.deadline_ns - _sys.ek_now_ns()))
        return 0

    cdef int give_up(self) except -1:
        """Failed, out of time, or cancelled: nothing is left under way, and the stream is told at the end of the turn.
        """
        cdef Loop loop = self.loop
        cdef bint late = self.row == TIMED_OUT
        reason = None
        try:
            if self.row != CANCELLED:
                reason = error_of(errno.ETIMEDOUT)          # if Ctrl-C cuts the rest short
            if late and self.addresses is None:
                error = TimeoutError(errno.ETIMEDOUT, "its name was not looked up in time")
                self.note(self.address, error, self.started_ns)
            self.finish(errno.ETIMEDOUT if late else ECANCELED)
            if reason is not None:
                reason = _sockets.connect_error(self.address, self.over, late)
        except MemoryError as error:
            reason = error
        finally:
            self.stream.loop_link = <PyObject *>loop
            closings_append(&loop.closings, self.stream, reason)
            loop.closings.promised -= 1
        return 0

    cdef int finish(self, int code) except -1:
        """Nobody waits any more: whoever is under way is given up, with this error."""
        cdef Loop loop = self.loop
        self.loop = None
        if self.timer is not None:
            self.timer.forget()
            self.timer = None
            loop.resolving.pop(self.question, None)
        while self.under_way:
            self.end(self.under_way[0], error_of(code))
        return 0

    cdef int end(self, Approach approach, object error) except -1:
        """One of them is over."""
        if approach.connector is None:          # it was before
            return 0
        approach.ended_ns = _sys.ek_now_ns()
        self.under_way.remove(approach)
        self.note(approach.address, error, approach.started_ns)
        return approach.drop()

    cdef int note(self, object address, object error, int64_t since_ns) except -1:
        """For the account of what was tried. Without memory there is none of this: what follows matters more."""
        try:
            # Not Attempt(...), whose __new__ is Python: Ctrl-C could come in between.
            self.over.append(tuple.__new__(Attempt, (address, error, (_sys.ek_now_ns() - since_ns) / 1e9)))
        except MemoryError:
            pass
        return 0

    cdef int abandon(self) except -1:
        """Its loop goes, without upcalls."""
        cdef Approach approach
        self.row = CANCELLED
        self.loop = None
        self.timer = None
        for approach in self.under_way:
            approach.connector = None
        self.under_way = []
        return self.stream.let_go()


def expire(Connector connector not None):
    """What a timer calls: the name has not been looked up in time."""
    connector.tell(DEADLINE, None, 0)


cdef int64_t whole_ns(object timeout) except -1:
    """Seconds for all of it, rounded up."""
    if type(timeout) is float and 0 < <double>timeout < 1e9:
        return <int64_t>(<double>timeout * 1e9 + 0.999999)
    if timeout is None:
        raise UsageError("a connect needs a deadline: timeout is a number of seconds")
    return checked_seconds_ns("timeout", timeout)


cdef bint is_numeric(object address, int least_port) except -1:
    """Whether it is (host, port) with a numeric host, and nothing is wrong with it. Most are: the rest take longer."""
    cdef sockaddr_storage unused
    if type(address) is not tuple or len(address) != 2 or type(address[0]) is not str or type(address[1]) is not int:
        return False
    return least_port <= address[1] <= 65535 and make_address(address, &unused) > 0


cdef tuple checked_ends(object address, object bind):
    """Where to, whether that is known, and where from; in one form, or UsageError with a sentence."""
    cdef sockaddr_storage unused
    try:
        target = _sockets.checked_target(address)
        source = None if bind is None else _sockets.checked_source(bind)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if source is not None and isinstance(target, str):
        raise UsageError("bind is for TCP; a connection to a unix socket comes from nowhere")
    return target, make_address(target, &unused) > 0, source


cdef Endpoint made_by(object factory):
    """A stream that nobody had before; from here on it is ours."""
    if not callable(factory):
        raise UsageError(f"a factory is called without arguments; {factory!r} can't be called")
    made = factory()
    if not isinstance(made, Endpoint):
        raise UsageError(f"the factory returned {made!r}, not a stream")
    if (<Endpoint>made).used:
        raise UsageError(f"{made!r} was used for another connection; a factory makes a new one each time")
    return made


cdef int secure(Endpoint stream, object context, object server_hostname, object handshake_timeout) except -1:
    """Have it speak TLS from its first byte."""
    import ssl
    if context is True:
        context = ssl.create_default_context()
    if not isinstance(context, ssl.SSLContext):
        raise UsageError(f"ssl is an ssl.SSLContext, or True for the default one, not {context!r}")
    if checked_seconds_ns("ssl_handshake_timeout", handshake_timeout) == 0:
        raise UsageError("a TLS handshake needs a deadline: ssl_handshake_timeout is a number of seconds")
    if not isinstance(stream, Connection):
        raise UsageError(f"the factory returned {stream!r}, which can't speak TLS; a Stream can")
    if context.check_hostname and not server_hostname:      # an SSLObject, unlike a socket, would not check at all
        raise UsageError("the context checks the peer's name (check_hostname): say which, as server_hostname")
    try:
        stream._secure(context, False, server_hostname, handshake_timeout)
    except ValueError as error:         # a host name that no certificate can be for, or none where one is checked
        raise UsageError(f"no TLS with server_hostname={server_hostname!r}: {error}") from None
    return 0


cdef class Loop(_buffered.Loop):
    """The loop with buffers, and with connectors."""

    def __cinit__(self, *arguments, **options):
        self.resolving = {}

    def connect(self, address, factory, *, timeout=10.0, bind=None, ssl=None, server_hostname=None,
                ssl_handshake_timeout=10.0):
        """Connect. Returns a `Connector`; what comes of it the stream is told in a later turn: `on_open()`, or
        `on_close(ConnectError)` as its only upcall.

        Args:
            address: `(host, port)`, a path for a unix socket, "\\0name" for an abstract one. A name is looked up off
                this thread (getaddrinfo), and all of its addresses are tried: the families take turns, the next one
                starts when one has failed or 250 ms have passed, and the first that is connected wins (RFC 8305).
            factory: called without arguments, at once and once; returns a new `Stream` (or another endpoint).
            timeout: seconds for all of it, above 0: the name, every address, and the TLS handshake.
            bind: the host, or `(host, port)`, to connect from: numeric; port 0 leaves the port to the kernel.
            ssl: an `ssl.SSLContext` to speak TLS, or True for `ssl.create_default_context()`.
            server_hostname: whom the certificate must be for; the host of `address` if not given.
            ssl_handshake_timeout: seconds, of those that are left.

        Each socket that is under way counts towards `max_connections`. Raises UsageError: a wrong argument; and what
        the factory raises. Everything else, LimitReached too, comes through `on_close`. Not thread-safe.
        """
        cdef int64_t timeout_ns = whole_ns(timeout)
        cdef bint known = is_numeric(address, 1) and (bind is None or is_numeric(bind, 0))
        cdef Connector connector = Connector.__new__(Connector)
        cdef Endpoint stream
        target, source = address, bind
        if not known:
            target, known, source = checked_ends(address, bind)
        if server_hostname is not None and not ssl:
            raise UsageError("server_hostname goes with ssl only")
        self.check_usable()
        stream = made_by(factory)
        if ssl:
            secure(stream, ssl, server_hostname or (None if isinstance(target, str) else target[0]),
                   ssl_handshake_timeout)
        self.check_usable()                 # the factory may have done anything
        if closings_reserve(&self.closings, self.slots.live) < 0:
            raise MemoryError()
        self.closings.promised += 1
        connector.loop = self
        connector.stream = stream
        connector.address = address
        connector.source = source
        connector.started_ns = _sys.ek_now_ns()
        connector.deadline_ns = connector.started_ns + timeout_ns
        stream.used = True
        try:
            if known:
                connector.addresses = [target]
                connector.tell(ADDRESSES, None, 0)
            else:
                connector.ask()
        except BaseException:
            if connector.row == RESOLVING or connector.row == CONNECTING:       # else it was told, or will be
                self.closings.promised -= 1
            connector.row = CANCELLED
            connector.finish(ECANCELED)
            raise
        return connector

    def _resolved(self, number, answer):
        """The resolver's answer to a question. Nobody waits for it any more: it is dropped."""
        connector = self.resolving.pop(number, None)
        if connector is not None:
            (<Connector>connector).resolved(answer)

    def close(self):
        """End every registration (raw fds stay open, all others are closed), run the on_close upcalls that are due, and
        free the loop's own fds. Closing twice does nothing. UsageError from inside a turn: call `stop()` there."""
        if not self.closed and not self.turning:
            self.check_usable()
            for connector in list(self.resolving.values()):
                (<Connector>connector).cancel()
        super().close()

    cdef int drop_everything(self) except -1:
        for connector in self.resolving.values():
            (<Connector>connector).abandon()
        self.resolving.clear()
        return _buffered.Loop.drop_everything(self)


# What a stream holds in C memory its loop answers for, once it is registered; until then, its connector.
cdef traverseproc traverse_fields = (<PyTypeObject *>Connector).tp_traverse


cdef int traverse_connector(PyObject *this, visitproc visit, void *argument) except -1:
    cdef PyObject *stream = <PyObject *>(<Connector>this).stream      # not a reference: see traverse_loop
    cdef int result = traverse_fields(this, visit, argument)
    if result == 0 and stream != <PyObject *>None \
            and (<Endpoint>stream).slot == NULL and (<Endpoint>stream).loop_link == NULL:
        result = (<Endpoint>stream).visit(visit, argument)
    return result


(<PyTypeObject *>Connector).tp_traverse = traverse_connector

_sys.EK_FREED_WITH(Approach, _sys.EK_APPROACH)
_sys.EK_FREED_WITH(Connector, _sys.EK_CONNECTOR)

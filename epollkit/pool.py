"""Connections that are kept for whoever wants one next: `Pool`. docs/pool.md has the life of one as a table.

A place is what `max_open` counts: one connection, from the beginning of its connect until its descriptor is closed. A
request that finds no idle connection gets a place, or waits for one in `_queue`, first come first served. With a place
a connect begins, and the request is promised what comes of it; but a promise is of a connection, not of this one: if
another to that address is given back meanwhile, the request that came first gets it, and the connect is for the next.
"""
from __future__ import annotations

import errno
import ssl as tls
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from epollkit import _sockets
from epollkit._calls import Timer
from epollkit._checks import checked_number, checked_seconds_ns
from epollkit._connection import Connection
from epollkit._connector import Connector, Loop
from epollkit.errors import LimitReached, UsageError
from epollkit.stats import PoolStats

OVERTAKING_LIMIT = 16       # later requests that may be served before one that waits for another address
MOST_OPEN = 1 << 20
MOST_WAITING = 1 << 20

Receive = Callable[[Any, "BaseException | None"], object]


class _Destination:
    """An address, while there is a connection to it or a request for one."""

    __slots__ = ("address", "connects", "idle", "members", "promised", "queue")

    def __init__(self, address: _sockets.Address) -> None:
        self.address = address
        self.members = 0
        self.connects = 0                                               # members that are "connecting"
        self.idle: OrderedDict[_Member, None] = OrderedDict()           # the last one was given back last
        self.promised: OrderedDict[PoolRequest, None] = OrderedDict()   # no more than there are connects
        self.queue: OrderedDict[PoolRequest, None] = OrderedDict()      # waiting for a place; all came later


class _Member:
    """A connection. Its state is "connecting", "idle", "due" (somebody gets it in the next turn), "out", "closing" or
    "closed"."""

    __slots__ = ("connector", "destination", "request", "state", "stream")

    def __init__(self, destination: _Destination) -> None:
        self.destination = destination
        self.state = "connecting"
        self.connector: Connector | None = None
        self.stream: Any = None
        self.request: PoolRequest | None = None         # whose it will be: "due"


class PoolRequest:
    """Somebody who wants a connection, from `Pool.acquire`. Belongs to its loop's thread.

    `state` is "waiting" (for a place), "connecting", "due" (in the next turn), "received", "failed" or "cancelled".
    """

    __slots__ = ("_destination", "_member", "_number", "_overtaken", "_pool", "_receive", "_timer", "state")

    def __init__(self, pool: Pool, destination: _Destination, receive: Receive, number: int) -> None:
        self._pool = pool
        self._destination = destination
        self._receive = receive
        self._number = number               # who came first has the lower one
        self._overtaken = 0                 # by so many later ones
        self._member: _Member | None = None
        self._timer: Timer | None = None    # the end of its waiting, or what tells it
        self.state = "waiting"

    @property
    def address(self) -> _sockets.Address:
        """Where to."""
        return self._destination.address

    def cancel(self) -> None:
        """`receive` will not be called. Does nothing once it was."""
        self._pool._cancel(self)

    def __repr__(self) -> str:
        return f"<PoolRequest {_sockets.describe(self.address)} {self.state}>"


class Pool:
    """Connections to servers, kept for the next who wants one.

        pool = epollkit.Pool(loop, Upstream, max_open=100)
        request = pool.acquire(("10.0.0.7", 6379), receive)         # receive(stream, None) or receive(None, error)
        pool.release(stream)

    Args:
        loop: whose connections they are.
        factory: called without arguments; returns a new `Stream` each time. Its on_open is called when it is connected,
            on_close when it is closed, whoever had it last; and between, while nobody has it, nothing.
        max_open: connections at most, to all addresses together. If there are as many, an idle one is closed to make
            room, the one that was used least recently. For a limit per address make a pool per address.
        max_waiting: requests that may wait for a place; another one fails with LimitReached.
        connect_timeout: seconds for a connect and its TLS handshake, see `Loop.connect`.
        wait_timeout: seconds that a request waits for a place before it fails with TimeoutError; None: no limit.
        idle_timeout: seconds until a connection that nobody wants is closed; None: no limit. Let it be shorter than
            the server's own.
        max_idle: connections that nobody has, at most; None: as many as are open.
        ssl, server_hostname, ssl_handshake_timeout, bind: as for `Loop.connect`.

    A request is a call of `receive`: once, in a later turn, unless it is cancelled. What fails: ConnectError,
    TimeoutError, LimitReached, what ended a connection before anybody had it (ssl.SSLError, ConnectionAbortedError), or
    what the factory raised. An exception in `receive` is reported once, and ends the connection.

    A connection that ended, or on which the peer spoke, while nobody had it is never handed out, also not if that event
    is in the very batch of the check-out. It can still end right behind it: whether a request is sent once more is for
    the user to decide.

    No method is thread-safe. When the loop is closed, so is the pool.
    """

    def __init__(self, loop: Loop, factory: Callable[[], Any], *, max_open: int = 64, max_waiting: int = 1024,
                 connect_timeout: float = 10.0, wait_timeout: float | None = 10.0, idle_timeout: float | None = 60.0,
                 max_idle: int | None = None, ssl: tls.SSLContext | bool | None = None,
                 server_hostname: str | None = None, ssl_handshake_timeout: float = 10.0,
                 bind: str | tuple[str, int] | None = None) -> None:
        loop._check_usable()
        if not callable(factory):
            raise UsageError(f"a factory is called without arguments; {factory!r} can't be called")
        self._loop = loop
        self._factory = factory
        self._max_open = checked_number("max_open", max_open, 1, MOST_OPEN)
        self._max_waiting = checked_number("max_waiting", max_waiting, 0, MOST_WAITING)
        self._max_idle = MOST_OPEN if max_idle is None else checked_number("max_idle", max_idle, 0, MOST_OPEN)
        checked_seconds_ns("wait_timeout", wait_timeout)
        self._wait_timeout = wait_timeout
        self._idle_ns = checked_seconds_ns("idle_timeout", idle_timeout)
        for name, seconds in (("connect_timeout", connect_timeout), ("ssl_handshake_timeout", ssl_handshake_timeout)):
            if checked_seconds_ns(name, seconds) == 0:
                raise UsageError(f"{name} is a number of seconds; there is no connect without a deadline")
        if bind is not None:
            try:
                _sockets.checked_source(bind)
            except ValueError as error:
                raise UsageError(str(error)) from None
        if ssl is True:
            ssl = tls.create_default_context()
        if ssl and not isinstance(ssl, tls.SSLContext):
            raise UsageError(f"ssl is an ssl.SSLContext, or True for the default one, not {ssl!r}")
        if server_hostname is not None and not ssl:
            raise UsageError("server_hostname goes with ssl only")
        self._options: dict[str, Any] = {
            "timeout": connect_timeout, "bind": bind, "ssl": ssl or None, "server_hostname": server_hostname,
            "ssl_handshake_timeout": ssl_handshake_timeout}
        self.closed = False
        self._destinations: dict[Any, _Destination] = {}
        self._members: dict[int, _Member] = {}                          # by the id of the stream, which is alive
        self._open = self._out = self._closing = 0
        self._idle: OrderedDict[_Member, None] = OrderedDict()          # the first one was given back first
        self._queue: OrderedDict[PoolRequest, None] = OrderedDict()     # waiting for a place, in the order of coming
        self._requests: dict[PoolRequest, None] = {}                    # that are not decided
        self._asked = 0
        self._counts = dict.fromkeys(PoolStats._fields[4:], 0)

    # -- what a user calls ---------------------------------------------------------------------------------------------

    def acquire(self, address: _sockets.Address, receive: Receive) -> PoolRequest:
        """Ask for a connection. `receive(stream, None)` or `receive(None, error)` is called in a later turn.

        Args:
            address: `(host, port)`, a path for a unix socket, "\\0name" for an abstract one. Two that are written
                differently are two, even if they mean the same.
            receive: has the stream to itself until `release`, or until it is closed.
        """
        self._check_open()
        if not callable(receive):
            raise UsageError(f"receive is called as receive(stream, error); {receive!r} can't be called")
        try:
            target = _sockets.checked_target(address)
        except ValueError as error:
            raise UsageError(str(error)) from None
        destination = self._destinations.setdefault(target, _Destination(target))
        self._asked += 1
        request = PoolRequest(self, destination, receive, self._asked)
        try:
            if destination.idle:
                self._counts["hits"] += 1
                self._reserve(next(reversed(destination.idle)), request)
            else:
                self._counts["misses"] += 1
                self._place(request)
        except MemoryError:             # who is told so has not asked
            self._cancel(request)
            raise
        return request

    def release(self, stream: Any) -> None:
        """Give a connection back. It is kept if it is clean: nothing unread, nothing unsent, both directions open;
        otherwise it is closed. What was set on it, or is to be called for it, is gone. Everything that is then called
        on it raises UsageError. On a stream that is closed, or is closing, it does nothing."""
        self._loop._check_usable()
        member = self._members.get(id(stream))
        if member is None or member.state in ("closing", "closed"):
            if not isinstance(stream, Connection) or not stream.is_closing:
                raise UsageError(f"{stream!r} is not of this pool")
            return
        if member.state != "out":
            raise UsageError(f"{stream!r} was given back already" if member.state in ("idle", "due") else
                             f"{stream!r} is nobody's yet; the pool hands it out when it is connected")
        if not stream.is_closing:
            self._take_back(member)
            self._fill()

    def close(self) -> None:
        """Requests that wait fail with UsageError, connections that nobody has are closed. Those that somebody has are
        closed when they are given back, or end by themselves. Closing twice does nothing."""
        if self.closed:
            return
        self._loop._check_usable()
        self.closed = True
        self._fail_all("this pool was closed")
        for member in list(self._members.values()):
            if member.state == "connecting":
                self._give_up(member)
            elif member.state == "idle":
                self._leave(member)

    def stats(self) -> PoolStats:
        """What the pool counts: see `PoolStats`."""
        return PoolStats(self._open, len(self._idle), self._out, len(self._queue), **self._counts)

    def __repr__(self) -> str:
        return f"<Pool{' closed' if self.closed else ''} {self._open} of {self._max_open} open>"

    def _check_open(self) -> None:
        self._loop._check_usable()
        if self.closed:
            raise UsageError("this pool is closed")

    # -- requests ------------------------------------------------------------------------------------------------------

    def _place(self, request: PoolRequest, first: bool = False) -> None:
        """It needs a connection that there is not: it waits for a place, behind or before all others."""
        request.state = "waiting"
        self._requests[request] = None
        for queue in (self._queue, request._destination.queue):
            queue[request] = None
            queue.move_to_end(request, last=not first)
        self._promise(request._destination)         # there may be a connect that nobody waits for
        self._fill()
        if request.state != "waiting" or request._timer is not None:
            return
        if not first and len(self._queue) > self._max_waiting:
            self._counts["refused_full"] += 1
            self._fail(request, LimitReached(f"max_open={self._max_open} connections are in use, and "
                                             f"max_waiting={self._max_waiting} requests wait for one"))
        elif self._wait_timeout is not None:
            request._timer = self._loop.call_later(self._wait_timeout, self._waited, request)

    def _waited(self, request: PoolRequest) -> None:
        self._counts["wait_timeouts"] += 1
        self._fail(request, TimeoutError(errno.ETIMEDOUT, f"no connection became free for {self._wait_timeout:g} s; "
                                                          f"max_open={self._max_open}"))

    def _promise(self, destination: _Destination) -> None:
        """As many as there are connects: they wait for those, and no longer for a place."""
        while destination.queue and len(destination.promised) < destination.connects:
            request, _ = destination.queue.popitem(last=False)
            del self._queue[request]
            destination.promised[request] = None
            request.state = "connecting"
            self._stop_timer(request)

    def _unlist(self, request: PoolRequest) -> None:
        """It waits for nothing any more."""
        destination = request._destination
        self._queue.pop(request, None)
        destination.queue.pop(request, None)
        destination.promised.pop(request, None)
        self._stop_timer(request)
        self._promise(destination)

    def _stop_timer(self, request: PoolRequest) -> None:
        if request._timer is not None:
            request._timer.cancel()
            request._timer = None

    def _reserve(self, member: _Member, request: PoolRequest) -> None:
        """From the next turn on it is that one's, if it is still fit for it."""
        timer = self._loop.call_soon(self._hand_out, request)       # first: it may refuse
        self._requests[request] = None
        self._unlist(request)
        self._unlist_idle(member)
        request._timer, request._member, request.state = timer, member, "due"
        member.request, member.state = request, "due"

    def _hand_out(self, request: PoolRequest) -> None:
        member = request._member
        assert member is not None
        self._decide(request, "received")
        member.request, member.state = None, "out"
        self._out += 1
        if not member.stream._lend(request._receive):
            self._out -= 1
            self._counts["dead_at_checkout"] += 1
            self._gone(member)
            self._ask_again(request)

    def _ask_again(self, request: PoolRequest) -> None:
        """What was to be its connection has ended."""
        request._member = None
        if request._destination.idle:
            self._reserve(next(reversed(request._destination.idle)), request)
        else:
            request._destination = self._destinations.setdefault(request.address, request._destination)
            self._place(request, first=True)

    def _decide(self, request: PoolRequest, state: str) -> None:
        del self._requests[request]
        self._unlist(request)
        request.state = state

    def _fail(self, request: PoolRequest, error: BaseException | None) -> None:
        if request not in self._requests:       # a finalizer has decided it between the look and this call
            return
        member, request._member = request._member, None
        self._decide(request, "failed")
        if member is not None:
            self._offer(member)
        self._tidy(request._destination)
        if not self._loop.closed:
            request._timer = self._loop.call_soon(request._receive, None, error)
            return
        try:
            request._receive(None, error)
        except Exception as failure:
            self._loop._report(failure, request._receive)

    def _fail_all(self, why: str) -> None:
        for request in list(self._requests):
            error = UsageError(why)
            if request in self._requests:       # no finalizer has cancelled it meanwhile
                self._fail(request, error)

    def _cancel(self, request: PoolRequest) -> None:
        self._loop._check_usable()
        if request in self._requests:
            member, request._member = request._member, None
            self._decide(request, "cancelled")
            if member is not None:
                self._offer(member)
            self._tidy(request._destination)
        elif request.state == "failed" and request._timer is not None and request._timer.active:
            request._timer.cancel()
            request.state = "cancelled"
        else:
            return
        self._counts["cancelled"] += 1

    # -- connections ---------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Connect for those who wait, as long as there are places."""
        while self._queue and self._make_place():
            if self._queue:             # else what that has run changed it
                self._connect(next(iter(self._queue)))

    def _make_place(self) -> bool:
        """Whether there is one; if all are taken, by an idle connection's end."""
        if self._open >= self._max_open and self._idle and self._closing < len(self._queue):
            self._counts["evicted"] += 1
            self._leave(next(iter(self._idle)))
        return self._open < self._max_open

    def _connect(self, request: PoolRequest) -> None:
        destination = request._destination
        member = _Member(destination)
        self._open += 1
        destination.members += 1
        destination.connects += 1
        self._counts["connects"] += 1
        try:
            self._promise(destination)
            member.connector = self._loop.connect(destination.address, partial(self._make, member), **self._options)
        except Exception as error:
            try:
                if member.stream is not None:
                    member.stream._keep(self._loop, None)
            finally:                    # its place is free, whatever that says
                self._failed(member, error)
        if self.closed:                 # by what the factory did
            self._give_up(member)

    def _make(self, member: _Member) -> Any:
        stream = self._factory()
        if not isinstance(stream, Connection):
            raise UsageError(f"the factory returned {stream!r}, not a stream")
        stream._keep(self._loop, partial(self._told, member))
        member.stream = stream
        self._members[id(stream)] = member
        return stream

    def _give_up(self, member: _Member) -> None:
        """Its connect, or its TLS handshake."""
        if member.connector is not None:
            member.connector.cancel()
            member.stream.close()

    def _told(self, member: _Member, what: str, reason: BaseException | None) -> None:
        """By its connection: see `Buffered.tell_keeper`."""
        if self._loop.closed and not self.closed:
            self.closed = True
            self._fail_all("the loop of this pool was closed")
        if what == "opened":
            self._opened(member)
        elif what == "closed":
            self._closed(member, reason)
        elif member.state in ("idle", "due"):
            self._counts[{"expired": "expired", "ended": "ended_while_idle", "spoke": "spoke_while_idle"}[what]] += 1
            self._lost(member)

    def _opened(self, member: _Member) -> None:
        """Within its own upcall, behind on_open."""
        destination = member.destination
        if member.stream.is_closing:            # on_open has closed it: that is a connect that failed
            return
        destination.connects -= 1
        member.connector = None
        request = next(iter(destination.promised), None)        # a finalizer may have cancelled it
        if request is not None:
            self._decide(request, "received")
            member.state = "out"
            self._out += 1
            request._receive(member.stream, None)
        else:
            self._take_back(member)

    def _closed(self, member: _Member, reason: BaseException | None) -> None:
        if member.state == "connecting":
            self._failed(member, reason or ConnectionAbortedError(errno.ECONNABORTED, "it was closed by its on_open"))
            self._fill()
        elif member.state in ("idle", "due"):   # not by itself: its fd was closed behind the loop's back
            self._lost(member)
        else:
            self._out -= member.state == "out"
            self._gone(member)
            self._fill()

    def _failed(self, member: _Member, error: BaseException) -> None:
        """A connect. Whoever has waited for longest is told, unless there are as many others under way."""
        destination = member.destination
        destination.connects -= 1
        self._counts["connect_errors"] += 1
        self._gone(member)
        request = next(iter(destination.promised), None)
        if request is not None and len(destination.promised) > destination.connects:
            self._fail(request, error)

    def _take_back(self, member: _Member) -> None:
        """It was somebody's, or it is new and nobody wants it any more."""
        clean = member.stream._park(self._idle_ns)
        if member.state == "out":
            self._out -= 1
            self._counts["kept" if clean else "dropped"] += 1
        if clean:
            self._offer(member)
        else:
            member.stream.close()
            self._close(member)

    def _offer(self, member: _Member) -> None:
        """It is at rest: to whom it goes now. To who waits for its address; but an earlier request for another address
        is passed over only so often."""
        destination = member.destination
        wanted = next(iter(destination.promised or destination.queue), None)
        earliest = next(iter(self._queue), None)
        member.request = None
        member.state = "idle"
        if self.closed:
            self._leave(member)
        elif wanted is None:
            destination.idle[member] = self._idle[member] = None
            if len(self._idle) > self._max_idle:
                self._counts["evicted"] += 1
                self._leave(next(iter(self._idle)))
            self._fill()
        elif earliest is None or earliest._number >= wanted._number:
            self._reserve(member, wanted)
        elif earliest._overtaken < OVERTAKING_LIMIT:
            earliest._overtaken += 1
            self._reserve(member, wanted)
        else:
            self._counts["evicted"] += 1
            self._leave(member)
            self._fill()

    def _unlist_idle(self, member: _Member) -> None:
        self._idle.pop(member, None)
        member.destination.idle.pop(member, None)

    def _leave(self, member: _Member) -> None:
        """Close one that is at rest."""
        self._unlist_idle(member)
        member.stream._leave()
        self._close(member)

    def _close(self, member: _Member) -> None:
        """It is closing: the place is free when that is done, which may be now."""
        self._closing += 1
        member.state = "closing"
        if member.stream._leave():
            self._gone(member)

    def _lost(self, member: _Member) -> None:
        """At rest, and it ended."""
        request, member.request = member.request, None
        self._unlist_idle(member)
        self._close(member)
        if request is not None:
            self._decide(request, "waiting")
            self._ask_again(request)
        self._fill()

    def _gone(self, member: _Member) -> None:
        """Its descriptor is closed, or there never was one: the place is free. Doing it twice does nothing."""
        if member.state == "closed":
            return
        self._closing -= member.state == "closing"
        member.state = "closed"
        self._open -= 1
        self._members.pop(id(member.stream), None)
        member.destination.members -= 1
        self._tidy(member.destination)

    def _tidy(self, destination: _Destination) -> None:
        """No table grows with the addresses that were ever asked for."""
        if not (destination.members or destination.queue or destination.promised):
            self._destinations.pop(destination.address, None)

"""`epollkit.Loop`: the compiled loop, and around it what is asked for seldom: addresses and signals."""
from __future__ import annotations

import os
import signal
import socket
import threading
import weakref
from collections.abc import Callable
from ssl import SSLContext, SSLSocket
from typing import Any

from epollkit import _sockets
from epollkit._buffered import Loop as StreamLoop
from epollkit._checks import checked_seconds_ns
from epollkit._connection import Connection
from epollkit._connector import Loop as ConnectingLoop
from epollkit._listener import Listener, listen
from epollkit._stream import adopt
from epollkit.errors import UsageError
from epollkit.events import IN

_loops: weakref.WeakSet[Loop] = weakref.WeakSet()       # of this process


def _before_fork() -> None:
    for loop in list(_loops):
        loop.forked = True


def _in_child() -> None:
    for loop in list(_loops):
        loop._abandon()
    _loops.clear()


os.register_at_fork(before=_before_fork, after_in_child=_in_child)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _secured(factory: Callable[[], Any], context: SSLContext, handshake_timeout: float) -> Callable[[], Any]:
    """The same factory, with TLS on what it makes."""
    if not isinstance(context, SSLContext):
        raise UsageError(f"ssl is an ssl.SSLContext, not {context!r}")
    if checked_seconds_ns("ssl_handshake_timeout", handshake_timeout) == 0:
        raise UsageError("a TLS handshake needs a deadline: ssl_handshake_timeout is a number of seconds")

    def make() -> Any:
        made = factory()
        if not isinstance(made, Connection):
            raise UsageError(f"the factory returned {made!r}, which can't speak TLS; a Stream can")
        made._secure(context, True, None, handshake_timeout)
        return made
    return make


class Loop(ConnectingLoop):
    __doc__ = StreamLoop.__doc__

    _signal_handlers: dict[int, tuple[Callable[..., object], tuple[Any, ...], Any]] = {}
    _wakeup: tuple[socket.socket, socket.socket] | None = None
    _running = False

    def __init__(self, max_connections: int = 65536, instance_bits: int = 32, batch: int = 512) -> None:
        super().__init__(max_connections, instance_bits, batch)
        self._signal_handlers = {}
        _loops.add(self)

    def listen(self, address: _sockets.Address, factory: Callable[[], Any], *, backlog: int = 2048,
               reuse_port: bool = False, exclusive: bool = False, defer_accept: bool = False,
               ssl: SSLContext | None = None, ssl_handshake_timeout: float = 10.0) -> Listener:
        """Listen, and make one endpoint with `factory()` for each connection that is accepted. Returns a `Listener`.

        Args:
            address: `(host, port)` for IPv4 and IPv6, a path for a unix socket, "\\0name" for an abstract one. Port 0
                lets the kernel choose; `listener.address` says what.
            factory: called without arguments; returns a new `Stream` (or another endpoint) each time.
            backlog: connections that may wait for accept; the kernel caps it at net.core.somaxconn.
            reuse_port: SO_REUSEPORT: several sockets share the port.
            exclusive: EPOLLEXCLUSIVE: of several loops that watch one socket, not all are woken (Linux 4.5).
            defer_accept: TCP_DEFER_ACCEPT: a connection is accepted with its first bytes there, and read at once. Only
                where the client speaks first; a silent one waits in the kernel for about a second, outside our
                deadlines and counters, and is then accepted as usual.
            ssl: TLS, with a server's `ssl.SSLContext`. on_open comes after the handshake.
            ssl_handshake_timeout: seconds that a handshake may take.

        Raises OSError (in use, no permission, no such address) or UsageError, each with one sentence. Not thread-safe.
        """
        self._check_usable()    # a closed loop, or a wrong thread, says so before a socket is opened
        if not callable(factory):
            raise UsageError(f"a factory is called without arguments; {factory!r} can't be called")
        if ssl is not None:
            factory = _secured(factory, ssl, ssl_handshake_timeout)
        try:
            opened = _sockets.open_listener(address, backlog, reuse_port, defer_accept)
        except ValueError as error:
            raise UsageError(str(error)) from None
        try:
            return listen(self, opened, factory, exclusive=exclusive, defer_accept=defer_accept)
        except BaseException:
            opened.sock.close()     # does nothing once the loop owns the fd
            if opened.file is not None:
                opened.file.remove()
            raise

    def adopt(self, connected: int | socket.socket, factory: Callable[[], Any], data: bytes = b"") -> Any:
        """Take a connected stream socket in. Returns what `factory()` made for it; on_open follows in the next turn.

        Args:
            connected: its descriptor, or a socket object, which is detached from it. The loop's from here on, not if
                this raises.
            data: what was received of it already (`Stream.detach` hands it out): on_data gets it first.

        Raises UsageError: not a connected stream socket, or registered already. Not thread-safe.
        """
        self._check_usable()
        if not callable(factory):
            raise UsageError(f"a factory is called without arguments; {factory!r} can't be called")
        if not isinstance(connected, (int, socket.socket)) or isinstance(connected, SSLSocket):
            raise UsageError(f"adopt() takes a socket or its descriptor, and no TLS that has begun, not {connected!r}")
        try:
            is_tcp = _sockets.check_connected(connected)
        except (ValueError, OSError) as error:
            raise UsageError(f"can't adopt {connected!r}: {error}") from None
        stream = adopt(self, connected if isinstance(connected, int) else connected.fileno(), is_tcp, factory,
                       bytes(memoryview(data)))
        if not isinstance(connected, int):
            connected.detach()
        return stream

    def add_signal_handler(self, signum: int, function: Callable[..., object], *arguments: Any) -> None:
        """Run a function in the loop when a signal comes. Only in the main thread (`signal.signal`'s own rule)."""
        self._check_usable()
        if not callable(function):
            raise UsageError(f"{function!r} can't be called; give a function and its arguments")
        if not _in_main_thread():
            raise UsageError("signal handlers belong to the main thread, and so must the loop that has them")
        try:
            before = signal.signal(signum, self._signalled)
            signal.siginterrupt(signum, False)
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"signal {signum!r} can't be handled: {error}") from None
        if signum in self._signal_handlers:
            before = self._signal_handlers[signum][2]
        self._signal_handlers[signum] = (function, arguments, before)

    def remove_signal_handler(self, signum: int) -> bool:
        """Put back what handled the signal before. Returns whether there was anything to remove."""
        if signum not in self._signal_handlers:
            return False
        if not _in_main_thread():
            raise UsageError("signal handlers belong to the main thread")
        before = self._signal_handlers.pop(signum)[2]
        signal.signal(signum, signal.SIG_DFL if before is None else before)
        return True

    def _signalled(self, signum: int, frame: object) -> None:
        if signum in self._signal_handlers and not self.closed:
            function, arguments, _ = self._signal_handlers[signum]
            self.call_soon_threadsafe(function, *arguments)

    def prepare(self) -> None:
        """Open now what `run()` would open: the descriptors that wake it when a signal comes."""
        self._check_usable()
        if _in_main_thread():
            self._wakeup_fd()

    def run(self) -> None:
        """Turn until `stop()` is called. In the main thread signals wake it, and Ctrl-C leaves it at once."""
        self._check_usable()
        if not _in_main_thread():
            super().run()
            return
        before = signal.set_wakeup_fd(self._wakeup_fd(), warn_on_full_buffer=False)
        self._running = True
        try:
            super().run()
        finally:
            self._running = False
            if self._wakeup is not None:    # else this is a forked child, which has taken it down already
                signal.set_wakeup_fd(before)

    def _wakeup_fd(self) -> int:
        """Where CPython's C-level signal handler writes its byte; an eventfd would refuse a single one."""
        if self._wakeup is None:
            pair = socket.socketpair()
            try:
                for end in pair:
                    end.setblocking(False)
                self._register_internal(pair[0].fileno(), IN, self._drain_wakeup)
            except BaseException:
                for end in pair:
                    end.close()
                raise
            self._wakeup = pair
        return self._wakeup[1].fileno()

    def _abandon(self) -> None:
        super()._abandon()
        if self._running and self._wakeup is not None:
            signal.set_wakeup_fd(-1)
        self._let_go()

    def _drain_wakeup(self, token: object, events: int) -> None:
        assert self._wakeup is not None
        try:
            while self._wakeup[0].recv(4096):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """End every registration (raw fds stay open, all others are closed), run the on_close upcalls that are due, and
        free the loop's own fds. Closing twice does nothing. UsageError from inside a turn: call `stop()` there."""
        try:
            super().close()
        finally:
            if self.closed:         # else it was refused, and nothing is to change
                self._let_go()

    def _let_go(self) -> None:
        for signum in list(self._signal_handlers):
            self.remove_signal_handler(signum)
        if self._wakeup is not None:
            for end in self._wakeup:
                end.close()
            self._wakeup = None

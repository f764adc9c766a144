"""Leaf: addresses and listening sockets, for the cold paths. Everything that can go wrong says so in one sentence."""
from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from epollkit.errors import Attempt, ConnectError

UNIX_PATH_BYTES = 107       # sockaddr_un.sun_path has 108, and we end it with a zero byte (unix(7))

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str | bytes


class Detached(NamedTuple):
    """A connection that was taken out of its loop: the descriptor, and what was received and not delivered."""

    fd: int
    data: bytes


class UnixFile(NamedTuple):
    """A unix socket's file, and what it was when we made it: somebody else's with the same name is left alone."""

    path: str
    device: int
    inode: int

    def remove(self) -> None:
        try:
            found = os.stat(self.path, follow_symlinks=False)
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                os.unlink(self.path)
        except OSError:
            pass    # gone already, or no longer ours to remove


class ListeningSocket(NamedTuple):
    sock: socket.socket
    address: object
    file: UnixFile | None


def describe(address: object) -> str:
    """An address as people write it: 127.0.0.1:8000, [::1]:8000, unix:/run/app.sock, unix:@abstract."""
    if isinstance(address, bytes):
        address = os.fsdecode(address)
    if isinstance(address, str):
        return "unix:@" + address[1:] if address.startswith("\0") else "unix:" + address
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[0], address[1]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return repr(address)


def resolve(address: Address) -> tuple[socket.AddressFamily, object]:
    """Family and socket address of what a user wrote. A name is looked up here and now, and its first address taken."""
    if isinstance(address, (str, bytes)):
        if not address:
            raise ValueError("an empty unix socket path; give a path, or '\\0name' for an abstract one")
        return socket.AF_UNIX, address
    if not isinstance(address, tuple) or len(address) not in (2, 4):
        raise ValueError(f"an address is (host, port) or a unix socket path, not {address!r}")
    host, port = address[0], address[1]
    if not isinstance(host, str) or isinstance(port, bool) or not isinstance(port, int):
        raise ValueError(f"an address is (host: str, port: int), not {address!r}")
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port} is not between 0 and 65535")
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise OSError(errno.EADDRNOTAVAIL, f"cannot find the address of host {host!r}: {reason}") from None
    family, _, _, _, resolved = found[0]
    return family, (*resolved[:2], *address[2:]) if len(address) == 4 else resolved


def checked_target(address: object) -> tuple[str, int] | tuple[str, int, int, int] | str:
    """Where to connect to: what a user wrote, in one form, a path as str. What can't be that is a ValueError with a
    sentence."""
    if isinstance(address, (str, bytes)):
        path = os.fsencode(address)
        if not path:
            raise ValueError("an empty unix socket path; give a path, or '\\0name' for an abstract one")
        if b"\0" in path[1:] and path[:1] != b"\0":
            raise ValueError(f"a zero byte within the unix socket path {address!r}")
        if len(path) > UNIX_PATH_BYTES:
            raise ValueError(f"a unix socket path has at most {UNIX_PATH_BYTES} bytes, not {len(path)}: {address!r}")
        return os.fsdecode(path)
    if not isinstance(address, tuple) or len(address) not in (2, 4):
        raise ValueError(f"an address is (host, port) or a unix socket path, not {address!r}")
    host, *numbers = address
    if not isinstance(host, str) or not all(isinstance(number, int) and not isinstance(number, bool)
                                            for number in numbers):
        raise ValueError(f"an address is (host: str, port: int), not {address!r}")
    if not host or "\0" in host:
        raise ValueError(f"{host!r} is not a host to connect to")
    if not 1 <= numbers[0] <= 65535:
        raise ValueError(f"port {numbers[0]} is not between 1 and 65535")
    if not all(0 <= number < 2**32 for number in numbers):
        raise ValueError(f"flow and scope are numbers of 32 bits, not {address!r}")
    if "%" in host:
        try:        # fe80::1%eth0: the interface's number is the scope
            return socket.getaddrinfo(host, numbers[0], flags=socket.AI_NUMERICHOST)[0][4]  # type: ignore[return-value]
        except (socket.gaierror, UnicodeError):
            pass    # not that: the look-up will say what is wrong with it
    return (str(host), *map(int, numbers))      # type: ignore[return-value]


def checked_source(bind: object) -> tuple[str, int]:
    """The end that a connection is to come from: (host, port) or a host, which is numeric; port 0: the kernel's choice.
    ValueError as above."""
    host, port = (bind, 0) if isinstance(bind, str) else bind if isinstance(bind, tuple) and len(bind) == 2 else (0, 0)
    if not isinstance(host, str) or isinstance(port, bool) or not isinstance(port, int):
        raise ValueError(f"bind is the host, or (host, port), to connect from, not {bind!r}")
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port} is not between 0 and 65535")
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
            return str(host), int(port)
        except (OSError, ValueError):       # ValueError: a zero byte, or a lone surrogate
            continue
    raise ValueError(f"bind takes a numeric address of this machine, not {host!r}")


def connect_error(address: object, attempts: Sequence[Attempt], timed_out: bool) -> ConnectError:
    """What a connector that failed says: each address with its reason."""
    told = []
    for attempt in attempts:
        error = attempt.error
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if isinstance(error, BlockingIOError):          # EAGAIN: only a unix socket says so (unix(7))
            why = "the listener's backlog is full"
        where = describe(attempt.address)
        told.append(why if len(attempts) == 1 and where == describe(address) else f"{where}: {why}")
    last = attempts[-1].error if attempts else None
    code = last.errno if isinstance(last, OSError) and not isinstance(last, socket.gaierror) else None
    return ConnectError(errno.ETIMEDOUT if timed_out else code,
                        f"cannot connect to {describe(address)}: {'; '.join(told)}", address, attempts)


def explain_listen_error(error: OSError, address: object) -> OSError:
    """The same error with a sentence that says where and why."""
    why = {
        errno.EADDRINUSE: "the address is in use by another socket; stop its owner or choose another",
        errno.EACCES: "permission denied; ports below 1024 need root or CAP_NET_BIND_SERVICE, "
                      "a unix socket needs write permission in its directory",
        errno.EADDRNOTAVAIL: "no interface of this machine has that address",
        errno.ENOENT: "the socket's directory does not exist",
        errno.ENOTDIR: "the socket's directory is not a directory",
    }.get(error.errno or 0, error.strerror or str(error))
    return OSError(error.errno, f"cannot listen on {describe(address)}: {why}")


def remove_dead_unix_file(path: str | bytes) -> None:
    """Remove a socket file that nobody listens on any more; leave a live one, and anything that is not a socket."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            if probe.connect_ex(path) == errno.ECONNREFUSED:
                os.unlink(path)
    except OSError:
        pass    # bind() will say what is wrong


def open_listener(address: Address, backlog: int, reuse_port: bool, defer_accept: bool) -> ListeningSocket:
    """A non-blocking, close-on-exec listening socket. ValueError or OSError, each with one clear sentence."""
    if isinstance(backlog, bool) or not isinstance(backlog, int) or not 1 <= backlog < 2**31:
        raise ValueError(f"backlog is a number of connections, at least 1, not {backlog!r}")
    family, resolved = resolve(address)
    if family == socket.AF_UNIX and (reuse_port or defer_accept):
        raise ValueError("reuse_port and defer_accept are for TCP; a unix socket has neither")
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_UNIX:
            return _bind_unix(sock, resolved, backlog)      # type: ignore[arg-type]
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)      # inherited by what it accepts
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if defer_accept:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)     # seconds
        sock.bind(resolved)     # type: ignore[arg-type]
        sock.listen(backlog)
        return ListeningSocket(sock, sock.getsockname(), None)
    except OSError as error:
        sock.close()
        raise explain_listen_error(error, address) from None
    except BaseException:
        sock.close()
        raise


def _bind_unix(sock: socket.socket, path: str | bytes, backlog: int) -> ListeningSocket:
    abstract = path[:1] in ("\0", b"\0")
    if not abstract:
        remove_dead_unix_file(path)
    sock.bind(path)
    file = None
    if not abstract:
        made = os.stat(path)
        file = UnixFile(os.path.abspath(os.fsdecode(path)), made.st_dev, made.st_ino)
    sock.listen(backlog)
    return ListeningSocket(sock, path, file)


def check_connected(given: int | socket.socket) -> bool:
    """Make a connected stream socket non-blocking and close-on-exec. Whether it is TCP. ValueError or OSError."""
    fd = given if isinstance(given, int) else given.fileno()
    if isinstance(given, bool) or fd < 0:
        raise ValueError(f"{given!r} is no open socket or descriptor")
    sock = socket.socket(fileno=fd)
    try:
        if sock.type != socket.SOCK_STREAM:
            raise ValueError(f"fd {fd} is a socket, but not a stream socket")
        try:
            sock.getpeername()
        except OSError as error:
            raise ValueError(f"fd {fd} is not connected: {error.strerror}") from None
        sock.setblocking(False)
        sock.set_inheritable(False)
        is_tcp = sock.family in (socket.AF_INET, socket.AF_INET6)
        if is_tcp:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return is_tcp
    finally:
        sock.detach()

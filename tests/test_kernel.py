"""The fake kernel is one: whatever is asked of it and of Linux, in whatever order, both answer the same.

The same random sequences of system calls run on both, on the same numbers (those of the real one are moved up to where
none is open), and after each call everything that can be polled is.
"""
from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import epollkit
from epollkit import IN, OUT

if epollkit.build_info()["build"] == "release":
    pytest.skip("only the debug build has it", allow_module_level=True)

from epollkit._kernel import booted, loop_state

LOCAL = "127.0.0.1"
PORT, CLOSED_PORT = 80, 1
FAKE_BASE = 3
PATIENCE = 2000                 # looks at a real socket until it has become what it must
POLLED = (select.POLLIN | select.POLLPRI | select.POLLOUT | select.POLLRDNORM | select.POLLRDBAND | select.POLLWRNORM
          | select.POLLWRBAND | select.POLLRDHUP)
ADD, DEL, MOD = 1, 2, 3           # epoll_ctl(2)
ET, ONESHOT, EXCLUSIVE = select.EPOLLET, select.EPOLLONESHOT, select.EPOLLEXCLUSIVE
RDHUP, HUP, ERR = select.EPOLLRDHUP, select.EPOLLHUP, select.EPOLLERR

FIN_WAIT1 = 4                   # tcp_info.tcpi_state
libc = ctypes.CDLL(None, use_errno=True)


class EpollEvent(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("events", ctypes.c_uint32), ("data", ctypes.c_uint64))


def called(name, *arguments):
    result = getattr(libc, name)(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


class Real:
    """Linux, with the methods of a fake `Process`."""

    def socket(self, family):
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
        return called("socket", socket.AF_INET if family == "tcp" else socket.AF_UNIX, kind, 0)

    def raw(self, address):
        if isinstance(address, tuple):
            return struct.pack("=H", socket.AF_INET) + struct.pack("!H", address[1]) + socket.inet_aton(LOCAL) + bytes(8)
        return struct.pack("=H", socket.AF_UNIX) + address.encode()

    def bind(self, fd, address):
        raw = self.raw(address)
        called("bind", fd, raw, len(raw))

    def port(self, fd):
        name, size = ctypes.create_string_buffer(16), ctypes.c_uint32(16)
        called("getsockname", fd, name, ctypes.byref(size))
        return struct.unpack_from("!H", name.raw, 2)[0]

    def connect(self, fd, address):
        raw = self.raw(address)
        called("connect", fd, raw, len(raw))

    def listen(self, fd, backlog):
        called("listen", fd, backlog)

    def accept(self, fd):
        return called("accept4", fd, None, None, socket.SOCK_NONBLOCK)

    def send(self, fd, data):
        return called("send", fd, data, ctypes.c_size_t(len(data)), socket.MSG_NOSIGNAL)

    def recv(self, fd, room):
        buffer = ctypes.create_string_buffer(room)
        count = called("recv", fd, buffer, ctypes.c_size_t(room), 0)
        return buffer.raw[:count]

    def read(self, fd, room=8):
        buffer = ctypes.create_string_buffer(room)
        count = called("read", fd, buffer, ctypes.c_size_t(room))
        return buffer.raw[:count]

    def write(self, fd, data):
        return called("write", fd, data, ctypes.c_size_t(len(data)))

    def shutdown(self, fd, how):
        called("shutdown", fd, how)

    def error(self, fd):
        code, size = ctypes.c_int(0), ctypes.c_uint32(4)
        if libc.getsockopt(fd, socket.SOL_SOCKET, socket.SO_ERROR, ctypes.byref(code), ctypes.byref(size)) < 0:
            return ctypes.get_errno()
        return code.value

    def reset(self, fd):
        linger = struct.pack("ii", 1, 0)
        called("setsockopt", fd, socket.SOL_SOCKET, socket.SO_LINGER, linger, len(linger))
        called("close", fd)

    def close(self, fd):
        called("close", fd)

    def dup(self, fd):
        return called("dup", fd)

    def dup2(self, fd, target):
        called("dup3", fd, target, 0)

    def eventfd(self):
        return called("eventfd", 0, os.EFD_NONBLOCK)

    def pipe(self):
        ends = (ctypes.c_int * 2)()
        called("pipe2", ends, os.O_NONBLOCK)
        return ends[0], ends[1]

    def epoll_create(self):
        return called("epoll_create1", 0)

    def epoll_ctl(self, epoll_fd, operation, fd, events=0, data=0):
        called("epoll_ctl", epoll_fd, operation, fd, ctypes.byref(EpollEvent(events, data)))

    def epoll_wait(self, epoll_fd, room=64):
        events = (EpollEvent * max(room, 1))()
        count = called("epoll_wait", epoll_fd, events, room, 0)
        return [(events[i].data, events[i].events) for i in range(count)]

    def acknowledge(self, fds):
        """Have every FIN acknowledged now: Linux takes up to 40 ms, and then wakes its sender once more."""
        one, info, size = struct.pack("i", 1), ctypes.create_string_buffer(1), ctypes.c_uint32(1)
        for fd in fds:
            libc.setsockopt(fd, socket.IPPROTO_TCP, socket.TCP_QUICKACK, one, 4)
        for fd in fds:          # a peer that waits to be accepted can't be asked
            while libc.getsockopt(fd, socket.IPPROTO_TCP, socket.TCP_INFO, info, ctypes.byref(size)) == 0 \
                    and info.raw[0] == FIN_WAIT1:
                os.sched_yield()

    def poll(self, fd):
        poll = select.poll()
        poll.register(fd, POLLED)
        found = poll.poll(0)
        if found and found[0][1] & select.POLLNVAL:
            raise OSError(errno.EBADF, "not open")
        return found[0][1] if found else 0


class Side:
    """One of the two, its descriptors counted from 0."""

    def __init__(self, calls, base):
        self.calls, self.base = calls, base

    def __call__(self, name, *arguments):
        """What a system call returns, or the name of its error."""
        try:
            found = getattr(self.calls, name)(*arguments)
        except OSError as error:
            return errno.errorcode[error.errno]
        if name in ("socket", "accept", "dup", "eventfd", "epoll_create"):
            return found - self.base
        return tuple(fd - self.base for fd in found) if name == "pipe" else found


def moved(step, base, names, number):
    """An action with real numbers in it; `number` is what an epoll entry made by it is told apart by."""
    name, *arguments = step
    if name in ("socket", "eventfd", "pipe", "epoll_create"):
        return step
    if name == "connect":
        return name, arguments[0] + base, names[arguments[1]]
    if name == "epoll_ctl":
        return name, arguments[0] + base, arguments[1], arguments[2] + base, arguments[3], number
    if name == "dup2":
        return name, arguments[0] + base, arguments[1] + base
    return name, arguments[0] + base, *arguments[1:]


def free_numbers():
    """The first number above which nothing is open, once everything below is."""
    holes, highest = [], max(int(name) for name in os.listdir("/proc/self/fd"))
    while (fd := os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)) <= highest:
        holes.append(fd)
    os.close(fd)
    return fd, holes


def open_stage(side, names, family, masks):
    """0: an epoll set, 1: a listening socket, from 2 on connections that it has accepted, both ends of each. All are in
    the set, but for those whose mask is None."""
    base = side.base
    assert (side("epoll_create"), side("socket", family)) == (0, 1)
    assert side("bind", base + 1, names["open"]) is None
    assert side("listen", base + 1, 1) is None
    if family == "tcp" and isinstance(side.calls, Real):
        names["open"] = (LOCAL, side.calls.port(base + 1))
    for fd in range(2, len(masks), 2):
        assert side("socket", family) == fd
        side("connect", base + fd, names["open"])
        assert side("accept", base + 1) == fd + 1
    for fd in range(1, len(masks)):
        if masks[fd] is not None:
            side("epoll_ctl", base, ADD, base + fd, masks[fd], 1000 + fd)      # EINVAL for some that are EXCLUSIVE


def seen(side):
    """What is ready for what."""
    return [side("poll", side.base + fd) for fd in range(MOST_FDS)]


def run_both(kernel, family, masks, steps):
    """Run them on both, and compare at each step. `masks` is for `open_stage`."""
    base, holes = free_numbers()
    fake, real = Side(kernel.ours, FAKE_BASE), Side(Real(), base)
    unix = f"\0epollkit-{os.getpid()}"
    fake_names = {"open": (LOCAL, PORT), "closed": (LOCAL, CLOSED_PORT)}
    real_names = {"open": (LOCAL, 0), "closed": (LOCAL, CLOSED_PORT)}
    if family == "unix":
        fake_names = real_names = {"open": unix, "closed": unix + "-closed"}
    try:
        open_stage(fake, fake_names, family, masks)
        open_stage(real, real_names, family, masks)
        for number, step in enumerate(steps):
            expected = real(*moved(step, base, real_names, number))
            found = fake(*moved(step, FAKE_BASE, fake_names, number))
            assert found == expected, f"step {number}, {step}: {found}, but in Linux {expected}"
            real.calls.acknowledge(range(base, base + MOST_FDS))
            masks = seen(fake)
            for _ in range(PATIENCE):
                if (expected := seen(real)) == masks:
                    break
                os.sched_yield()
            else:
                raise AssertionError(f"after step {number}, {step}: {masks}, but in Linux {expected}")
    finally:
        for fd in kernel.ours.fds():
            kernel.ours.close(fd)
        for fd in [*range(base, base + 64), *holes]:
            with contextlib.suppress(OSError):
                os.close(fd)


MOST_FDS = 12
WATCHED = [IN, OUT, IN | OUT, IN | RDHUP, IN | OUT | RDHUP | select.EPOLLPRI, RDHUP, 0]
HOW = [0, ET, ET, ET, ET | ONESHOT, ONESHOT, EXCLUSIVE, EXCLUSIVE | ET]
EVENTS = st.builds(int.__or__, st.sampled_from(WATCHED), st.sampled_from(HOW))
# What is done, to files of which kind ("any" is any number, open or not), with what.
ACTIONS = {
    "socket": (None, st.none()), "epoll_create": (None, st.none()), "eventfd": (None, st.none()),
    "pipe": (None, st.none()),
    "connect": ("socket", st.sampled_from(["open", "open", "open", "closed"])),
    "accept": ("listener", st.none()),
    "listen": ("socket", st.integers(0, 2)),
    "send": ("socket", st.binary(min_size=1, max_size=5)),
    "recv": ("socket", st.integers(1, 8)),
    "shutdown": ("socket", st.sampled_from([1, 0, 2])),
    "close": ("any", st.none()), "reset": ("socket", st.none()), "dup": ("any", st.none()),
    "error": ("socket", st.none()),
    "dup2": ("any", st.integers(0, MOST_FDS - 1)),
    "read": ("any", st.none()), "write": ("any", st.just(struct.pack("=Q", 3))),
    "epoll_ctl": ("epoll", EVENTS), "epoll_wait": ("epoll", st.integers(1, 6)),
}
# Two sequences: of everything, and of what fills batches.
EVERYTHING = [*ACTIONS, *["epoll_ctl", "epoll_wait"] * 4, "connect", "accept", "send", "send", "recv", "recv", "shutdown"]
BUSY = [*["send"] * 6, *["recv"] * 4, *["epoll_wait"] * 3, "epoll_ctl", "shutdown", "close", "reset", "dup", "connect",
        "accept", "socket"]


def drawn_steps(data, kernel, family, names, count):
    """Actions that mostly make sense: on the right kind of file, if one is open."""
    for _ in range(count):
        name = data.draw(st.sampled_from(names))
        kind, argument = ACTIONS[name]
        value = data.draw(argument)
        if kind is None:
            yield (name, family) if name == "socket" else (name,)
            continue
        kinds = {serial: kind for serial, kind, _ in kernel.open_files()}
        numbers = {fd - FAKE_BASE: kinds[kernel.ours.file(fd)] for fd in kernel.ours.fds()}
        fitting = {"any": [*range(MOST_FDS)], "epoll": [fd for fd, kind in numbers.items() if kind == "epoll"],
                   "socket": [fd for fd, kind in numbers.items() if kind == family and fd != 1], "listener": [1]}[kind]
        fd = data.draw(st.sampled_from((fitting or [0]) * 4 + ([0] * 20 if kind == "epoll" else [0, 1, 4])))
        if name == "epoll_ctl":
            operation = data.draw(st.sampled_from([ADD, ADD, ADD, MOD, DEL]))
            yield name, fd, operation, data.draw(st.sampled_from([*numbers] * 4 + [0, 5])), value
        else:
            yield (name, fd) if value is None else (name, fd, value)


def drawn_masks(data):
    """Of what is there from the start: 1 to 4 connections."""
    count = 2 + 2 * data.draw(st.integers(1, 4))
    return [None, None, *(data.draw(st.one_of(st.just(IN | RDHUP | ET), EVENTS, st.none())) for _ in range(2, count))]


@pytest.mark.parametrize("family", ["tcp", "unix"])
@pytest.mark.parametrize("names", [EVERYTHING, BUSY], ids=["everything", "busy"])
@settings(max_examples=100)
@given(data=st.data(), count=st.integers(5, 40))
def test_both_answer_the_same(family, names, data, count):
    with booted() as kernel:
        kernel.capacity = 1 << 20
        run_both(kernel, family, drawn_masks(data), drawn_steps(data, kernel, family, names, count))

"""The fake kernel is one: whatever is asked of it and of Linux, in whatever order, both answer the same.

The same random sequences of system calls run on both, on the same numbers (those of the real one are moved up to where
none is open), and after each call everything that can be polled is.
"""
from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import random
import select
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import epollkit
from epollkit import IN, OUT

if epollkit.build_info()["build"] == "release":
    pytest.skip("only the debug build has it", allow_module_level=True)

from epollkit._kernel import asked, booted, real_disturbance
from epollkit._loopstate import loop_state
from epollkit._operations import replaced

LOCAL = "127.0.0.1"
PORT, CLOSED_PORT = 80, 1
FAKE_BASE = 3
LISTENER = 2                    # the serial number of the one that is there from the start
EXAMPLES = 100
PATIENCE = 2000                 # looks at a real socket until it has become what it must
POLLED = (select.POLLIN | select.POLLPRI | select.POLLOUT | select.POLLRDNORM | select.POLLRDBAND | select.POLLWRNORM
          | select.POLLWRBAND | select.POLLRDHUP)
ADD, DEL, MOD = 1, 2, 3           # epoll_ctl(2)
ET, ONESHOT, EXCLUSIVE = select.EPOLLET, select.EPOLLONESHOT, select.EPOLLEXCLUSIVE
RDHUP, HUP, ERR = select.EPOLLRDHUP, select.EPOLLHUP, select.EPOLLERR

FIN_WAIT1 = 4                   # tcp_info.tcpi_state
libc = ctypes.CDLL(None, use_errno=True)


class EpollEvent(ctypes.Structure):
    _pack_ = 1 if platform.machine() == "x86_64" else 8         # linux/eventpoll.h
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
        kind, one = socket.SOCK_STREAM | socket.SOCK_NONBLOCK, struct.pack("i", 1)
        fd = called("socket", socket.AF_INET if family == "tcp" else socket.AF_UNIX, kind, 0)
        called("setsockopt", fd, socket.SOL_SOCKET, socket.SO_REUSEADDR, one, 4)       # as every listener of a loop
        return fd

    def raw(self, address):
        if isinstance(address, tuple):
            port = struct.pack("!H", address[1])
            return struct.pack("=H", socket.AF_INET) + port + socket.inet_aton(LOCAL) + bytes(8)
        return struct.pack("=H", socket.AF_UNIX) + address.encode()

    def bind(self, fd, address):
        raw = self.raw(address)
        called("bind", fd, raw, len(raw))

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

    def disturbance(self, fd):
        return real_disturbance(fd)

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


def open_stage(side, names, family, masks, copies=()):
    """0: an epoll set, 1: a listening socket, from 2 on connections that it has accepted, both ends of each, and copies
    of some. All are in the set, but for those whose mask is None."""
    base = side.base
    if names["open"] == (LOCAL, 0):         # a port that was asked for by its number is kept in a shutdown()
        with socket.create_server((LOCAL, 0)) as found:
            names["open"] = found.getsockname()
    assert (side("epoll_create"), side("socket", family)) == (0, 1)
    assert side("bind", base + 1, names["open"]) is None
    assert side("listen", base + 1, 1) is None
    for fd in range(2, len(masks) - len(copies), 2):
        assert side("socket", family) == fd
        side("connect", base + fd, names["open"])
        assert side("accept", base + 1) == fd + 1
    for fd in copies:
        side("dup", base + fd)
    for fd in range(1, len(masks)):
        if masks[fd] is not None:
            side("epoll_ctl", base, ADD, base + fd, masks[fd], 1000 + fd)      # EINVAL for some that are EXCLUSIVE


def seen(side):
    """What is ready for what, and what else can be asked without a consequence."""
    real = isinstance(side.calls, Real)
    return [(side("poll", side.base + fd), *asked(side.base + fd, real)) for fd in range(MOST_FDS)]


def compare(kernel, family, stage, steps):
    """Run them on both, and compare at each step."""
    base, holes = free_numbers()
    fake, real = Side(kernel.ours, FAKE_BASE), Side(Real(), base)
    unix = f"\0epollkit-{os.getpid()}"
    fake_names = {"open": (LOCAL, PORT), "closed": (LOCAL, CLOSED_PORT)}
    real_names = {"open": (LOCAL, 0), "closed": (LOCAL, CLOSED_PORT)}
    if family == "unix":
        fake_names = real_names = {"open": unix, "closed": unix + "-closed"}
    done = []
    try:
        open_stage(fake, fake_names, family, *stage)
        open_stage(real, real_names, family, *stage)
        for number, step in enumerate(steps):
            done.append(step)
            expected = real(*moved(step, base, real_names, number))
            found = fake(*moved(step, FAKE_BASE, fake_names, number))
            assert found == expected, f"{stage}, {done}: {found}, but in Linux {expected}"
            real.calls.acknowledge(range(base, base + 2 * MOST_FDS))
            masks = seen(fake)
            for _ in range(PATIENCE):
                if (expected := seen(real)) == masks:
                    break
                os.sched_yield()
            else:
                raise AssertionError(f"{stage}, {done}: ready for {masks}, but in Linux {expected}")
    finally:
        for fd in kernel.ours.fds():
            kernel.ours.close(fd)
        for fd in [*range(base, base + 64), *holes]:
            with contextlib.suppress(OSError):
                os.close(fd)


MOST_FDS = 14
WATCHED = [IN, IN | RDHUP, OUT, IN | OUT, IN | OUT | RDHUP | select.EPOLLPRI, RDHUP, 0]
HOW = [0, ET, ET, ET, ET | ONESHOT, ONESHOT, EXCLUSIVE, EXCLUSIVE | ET]
ALWAYS = IN | RDHUP | ET
# What is done, to files of which kind ("any" is any number, open or not), with what.
ACTIONS = {
    "socket": ("", []), "epoll_create": ("", []), "eventfd": ("", []), "pipe": ("", []),
    "connect": ("socket", ["open", "open", "open", "closed"]),
    "accept": ("listener", []),
    "listen": ("socket", [0, 1, 2]),
    "send": ("socket", [b"a", b"bc", b"def"]),
    "recv": ("socket", [1, 2, 8]),
    "shutdown": ("socket", [0, 1, 1, 2]),
    "close": ("any", []), "reset": ("socket", []), "dup": ("any", []),
    "error": ("socket", []), "disturbance": ("any", []),
    "dup2": ("any", [*range(MOST_FDS)]),
    "read": ("any", []), "write": ("any", [struct.pack("=Q", 3)]),
    "epoll_ctl": ("epoll", [first | second for first in WATCHED for second in HOW]),
    "epoll_wait": ("epoll", [1, 2, 3, 10]),
}
# Three sequences: of everything; of what makes connections and ends them; of what fills batches.
EVERYTHING = [*ACTIONS, *["epoll_ctl", "epoll_wait"] * 4, *["send", "recv"] * 2, "connect", "accept", "shutdown"]
LIVES = ["socket", "connect", "accept", "send", "recv", "shutdown", "close", "reset", "dup", "error", "listen",
         *["epoll_ctl", "epoll_wait"] * 2]
BUSY = [*["send"] * 8, *["recv"] * 4, *["epoll_wait"] * 3, "epoll_ctl", "shutdown", "close", "connect"]


def drawn_steps(draw, kernel, family, names, count):
    """Actions that mostly make sense: on the right kind of file, if one is open."""
    for _ in range(count):
        name = draw.choice(names)
        kind, values = ACTIONS[name]
        arguments = [draw.choice(values)] if values else []
        if not kind:
            yield (name, family) if name == "socket" else (name,)
            continue
        kinds = {serial: kind for serial, kind, _ in kernel.open_files()}
        numbers = {fd - FAKE_BASE: kinds[kernel.ours.file(fd)] for fd in kernel.ours.fds()}
        fitting = {"any": [*range(1, MOST_FDS)], "listener": [1],
                   "epoll": [0, 0, 0, *(fd for fd, kind in numbers.items() if kind == "epoll")],
                   "socket": [fd for fd, kind in numbers.items() if kind == family and fd != 1]}[kind]
        fd = draw.choice(fitting if fitting and draw.random() < 0.9 else range(MOST_FDS))
        if name == "connect" and FAKE_BASE + fd in kernel.ours.fds() and kernel.ours.file(FAKE_BASE + fd) == LISTENER:
            continue        # once it was shut down, it could connect to itself
        if name == "epoll_ctl":
            target = draw.choice([*numbers] if numbers and draw.random() < 0.9 else range(MOST_FDS))
            arguments = [draw.choice([ADD, ADD, ADD, MOD, MOD, DEL]), target, *arguments]
        yield name, fd, *arguments


def drawn_stage(draw):
    """One to four connections, copies of some of their ends, and what is watched from the start."""
    ends = 2 * draw.randint(1, 4)
    copies = [draw.randint(2, ends + 1) for _ in range(draw.randint(0, 2))]
    watched = [draw.choice([ALWAYS, ALWAYS | OUT, None, draw.choice(ACTIONS["epoll_ctl"][1])])
               for _ in range(ends + len(copies))]
    return [None, draw.choice([IN, None]), *watched], copies


@pytest.mark.parametrize("family", ["tcp", "unix"])
@pytest.mark.parametrize("names", [EVERYTHING, LIVES, BUSY], ids=["everything", "lives", "busy"])
@settings(max_examples=EXAMPLES)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 60))
def test_both_answer_the_same(family, names, seed, count):
    """What is drawn depends on what there is, and is quicker drawn here than by hypothesis; a failure names its steps,
    and those before the last that mattered are few once `count` has shrunk."""
    draw = random.Random(seed)
    with booted() as kernel:
        kernel.capacity = 1 << 20
        compare(kernel, family, drawn_stage(draw), drawn_steps(draw, kernel, family, names, count))


CROWD = [step for fd in (4, 5, 6) for step in (("socket", "tcp"), ("connect", fd, "open"))]     # 6 waits for room


@pytest.mark.parametrize("steps", [
    [*CROWD, ("shutdown", 6, 1), ("send", 6, b"a"), ("error", 6), ("recv", 6, 1), ("connect", 6, "open")],
    [*CROWD, ("recv", 6, 1), ("send", 6, b"a"), ("connect", 6, "open"), ("close", 1), ("recv", 6, 1), ("error", 6)],
    [*CROWD, ("epoll_ctl", 0, ADD, 6, ALWAYS | OUT), ("epoll_wait", 0, 4), ("reset", 6), ("accept", 1), ("accept", 1)],
    [*CROWD, ("epoll_ctl", 0, ADD, 5, ALWAYS | OUT), ("close", 1), ("epoll_wait", 0, 4), ("recv", 5, 1)],
    [("shutdown", 1, 2), ("shutdown", 1, 0), ("listen", 1, 0), ("socket", "tcp"), ("connect", 4, "open"), ("accept", 1),
     ("send", 4, b"a"), ("recv", 5, 2), ("recv", 5, 2), ("send", 5, b"b"), ("close", 5), ("recv", 4, 2)],
    [("dup", 1), ("reset", 4), ("socket", "tcp"), ("connect", 4, "open"), ("accept", 1), ("close", 5), ("recv", 4, 2)],
], ids=["shut down", "asked again", "gave up", "listener gone", "listener shut down", "listener lingers"])
def test_what_random_steps_seldom_do(steps):
    """A connect that waits for a place in the backlog; a listener that begins again."""
    with booted() as kernel:
        compare(kernel, "tcp", ([None] * 4, []), steps)


def fill(side, fd):
    """Send until it is full."""
    while side("send", side.base + fd, bytes(4096)) != "EAGAIN":
        pass


class TestRoom:
    """When a full socket is writable again. Sizes differ, so this is told by what was read: all of it, or a piece."""

    def stages(self, kernel, family):
        base, holes = free_numbers()
        kernel.capacity = 1 << 18
        sides = [(Side(kernel.ours, FAKE_BASE), {"open": (LOCAL, PORT)}), (Side(Real(), base), {"open": (LOCAL, 0)})]
        try:
            for side, names in sides:
                if family == "unix":
                    names["open"] = f"\0epollkit-{os.getpid()}"
                open_stage(side, names, family, [None, None, None, None])
            yield from [side for side, _ in sides]
        finally:
            for fd in kernel.ours.fds():
                kernel.ours.close(fd)
            for fd in [*range(base, base + 8), *holes]:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def drain(self, side, fd, room=1 << 16):
        read = []
        while isinstance(found := side("recv", side.base + fd, room), bytes):
            read.append(len(found))
        return read

    @pytest.mark.parametrize("family", ["tcp", "unix"])
    def test_a_full_socket_that_is_emptied_is_an_edge(self, family):
        with booted() as kernel:
            for side in self.stages(kernel, family):
                base = side.base
                side("epoll_ctl", base, ADD, base + 2, OUT | ET, 7)
                assert side("epoll_wait", base) == [(7, OUT)]
                fill(side, 2)
                assert side("epoll_wait", base) == []
                assert side("recv", base + 3, 1) == b"\0"
                assert side("epoll_wait", base) == []
                while sum(self.drain(side, 3)):         # what was on its way has room now
                    pass
                assert side("epoll_wait", base) == [(7, OUT)]
                assert side("epoll_wait", base) == []

    def test_tcp_tells_of_room_only_to_one_who_missed_it(self):
        with booted() as kernel:
            for side in self.stages(kernel, "tcp"):
                self.send_and_read(side, [])

    def test_a_unix_socket_tells_of_each_piece_that_is_read(self):
        with booted() as kernel:
            for side in self.stages(kernel, "unix"):
                self.send_and_read(side, [(7, OUT)])

    def send_and_read(self, side, told):
        base = side.base
        side("epoll_ctl", base, ADD, base + 2, OUT | ET, 7)
        assert side("epoll_wait", base) == [(7, OUT)]
        for data in (b"ab", b"cd"):
            side("send", base + 2, data)
        assert side("epoll_wait", base) == []
        for room, expected in ((1, []), (1, told), (1, []), (2, told)):
            side("recv", base + 3, room)
            assert side("epoll_wait", base) == expected

    def reads_until_writable(self, side):
        """How many pieces fill it, and how many of them are to be read before it is writable."""
        base, sent, read = side.base, 0, 0
        side("epoll_ctl", base, ADD, base + 2, OUT | ET, 7)
        while side("send", base + 2, bytes(4096)) != "EAGAIN":
            sent += 1
        assert side("epoll_wait", base) == []
        while not side("epoll_wait", base):
            assert len(side("recv", base + 3, 4096)) == 4096
            read += 1
        return sent, read

    def test_a_unix_socket_is_writable_when_no_more_than_a_quarter_is_taken(self):
        with booted() as kernel:
            for side in self.stages(kernel, "unix"):
                sent, read = self.reads_until_writable(side)
                assert 0.7 * sent <= read <= 0.8 * sent

    def test_a_tcp_socket_is_writable_when_a_third_is_free(self):
        """Linux's can't be compared: what it holds is on its way, too."""
        with booted() as kernel:
            kernel.capacity = 1 << 18
            fake = Side(kernel.ours, FAKE_BASE)
            open_stage(fake, {"open": ADDRESS}, "tcp", [None] * 4)
            assert self.reads_until_writable(fake) == (64, 22)
            kernel.ours.exit()

    @pytest.mark.parametrize("events", [OUT | ET, OUT])
    def test_a_full_pipe(self, events):
        with booted() as kernel:
            for side in self.stages(kernel, "tcp"):
                base = side.base
                assert side("pipe") == (4, 5)
                side("epoll_ctl", base, ADD, base + 5, events, 7)
                while side("write", base + 5, bytes(4096)) != "EAGAIN":
                    pass
                assert side("epoll_wait", base) == []
                while side("read", base + 4, 4096) != "EAGAIN":
                    pass
                assert side("epoll_wait", base) == [(7, OUT)]
                assert side("epoll_wait", base) == ([] if events & ET else [(7, OUT)])
                side("close", base + 4)
                assert side("epoll_wait", base) == [(7, OUT | ERR)]


class Told(epollkit.Stream):
    """Notes its upcalls."""

    def __init__(self):
        self.upcalls = []

    def on_open(self):
        self.upcalls.append("open")

    def on_data(self, data):
        self.upcalls.append(data)

    def on_eof(self):
        self.upcalls.append("eof")

    def on_close(self, error):
        self.upcalls.append(error and type(error))


class Made(list):
    """A factory that keeps what it made."""

    def __call__(self):
        self.append(Told())
        return self[-1]


@pytest.fixture
def kernel():
    with booted() as made:
        yield made


@pytest.fixture
def loop(kernel):
    with epollkit.Loop(batch=8) as made:
        yield made


def connect(process, address, family="tcp"):
    """A connected socket of that process; nobody has accepted it yet."""
    fd = process.socket(family)
    with contextlib.suppress(BlockingIOError):
        process.connect(fd, address)
    return fd


def settle(loop):
    while loop.turn(0):
        pass


ADDRESS = (LOCAL, PORT)


class TestTheLoopInIt:
    @pytest.mark.parametrize("address", [ADDRESS, "/run/socket", "\0name"], ids=["tcp", "path", "abstract"])
    def test_it_listens_and_is_connected_to(self, kernel, loop, address):
        made = Made()
        listener = kernel.listen(loop, address, made)
        peer = kernel.process()
        fd = connect(peer, address, "tcp" if isinstance(address, tuple) else "unix")
        settle(loop)
        peer.send(fd, b"abc")
        settle(loop)
        made[0].write(b"answer")
        settle(loop)
        assert peer.recv(fd, 100) == b"answer"
        peer.shutdown(fd, socket.SHUT_WR)
        settle(loop)
        assert made[0].upcalls == ["open", b"abc", "eof"]
        made[0].close()
        assert peer.recv(fd, 100) == b""
        listener.close()
        settle(loop)

    def test_it_connects(self, kernel, loop):
        peer = kernel.process()
        listening = peer.socket()
        peer.bind(listening, ADDRESS)
        peer.listen(listening)
        streams = [loop.connect(address, Told).stream for address in (ADDRESS, (LOCAL, CLOSED_PORT))]
        settle(loop)
        accepted = peer.accept(listening)
        peer.send(accepted, b"abc")
        settle(loop)
        assert streams[0].upcalls == ["open", b"abc"]
        assert streams[1].upcalls == [epollkit.ConnectError]
        peer.reset(accepted)
        settle(loop)
        assert streams[0].upcalls[2:] == [ConnectionResetError]

    @pytest.mark.parametrize(("answer", "code"), [("refuse", errno.ECONNREFUSED), (errno.EHOSTUNREACH,) * 2])
    def test_a_connect_that_waits_for_its_answer(self, kernel, loop, answer, code):
        """HUP comes before any verdict, as of a socket that is watched before it connects."""
        kernel.route(ADDRESS, "later")
        connector = loop.connect(ADDRESS, Told)
        settle(loop)
        serial, = kernel.under_way()
        kernel.spurious(serial, HUP)
        settle(loop)
        assert connector.state == "connecting"
        kernel.answer(serial, answer)
        settle(loop)
        assert connector.attempts[0].error.errno == code
        with pytest.raises(KeyError):
            kernel.answer(serial, answer)
        with pytest.raises(ValueError, match="not connecting"):
            kernel.answer(kernel.ours.file(loop.fileno()), answer)

    def test_a_connect_that_waits_is_accepted(self, kernel, loop):
        made = Made()
        kernel.route(ADDRESS, "later")
        listener = kernel.listen(loop, ADDRESS, made, 0)
        connectors = [loop.connect(ADDRESS, Told) for _ in range(2)]
        for serial in kernel.under_way():       # two: the backlog has room for one
            kernel.answer(serial, "accept")
        assert len(kernel.under_way()) == 1
        settle(loop)
        kernel.answer(kernel.under_way()[0], "accept")
        settle(loop)
        assert [connector.state for connector in connectors] == ["connected"] * 2
        assert len(made) == 2
        listener.close()

    def test_time_passes_when_it_waits(self, kernel, loop):
        due, start = [], kernel.now_ns
        loop.call_later(5, due.append, True)
        loop.turn()
        loop.turn()
        assert due
        assert kernel.now_ns == start + 5_000_000_000
        with pytest.raises(OSError) as found:
            loop.turn()
        assert found.value.errno == errno.EDEADLK
        kernel.route(ADDRESS, "never")
        connector = loop.connect(ADDRESS, Told, timeout=3)
        kernel.advance(2.5)
        settle(loop)
        assert connector.state == "connecting"
        kernel.advance(0.5)
        settle(loop)
        assert connector.state == "timed out"

    def test_the_listener_rests_without_descriptors(self, kernel, loop):
        made = Made()
        listener = kernel.listen(loop, ADDRESS, made)
        kernel.limit(kernel.ours, len(kernel.ours.fds()))
        peer = kernel.process()
        connect(peer, ADDRESS)
        settle(loop)
        assert not made
        assert listener.pauses == 1
        kernel.limit(kernel.ours, 100)
        kernel.advance(1)
        settle(loop)
        assert len(made) == 1
        listener.close()

    def test_an_event_of_the_one_before_and_who_it_was_meant_for(self, kernel, loop):
        """Batch [A, listener, B]: A closes B, whose fd and slot the newcomer gets."""
        near, (peer, far) = kernel.connected()
        other, (_, far_other) = kernel.connected("tcp", peer)
        made, heard = Made(), []

        def close_other(token, events):
            loop.unregister(tokens[1])
            kernel.ours.close(other)

        listener = kernel.listen(loop, ADDRESS, made)
        tokens = [loop.register(near, IN, close_other), loop.register(other, IN, lambda *told: heard.append(told))]
        registration = kernel.registration(loop.fileno(), other)
        peer.send(far, b"x")
        connect(peer, ADDRESS)
        peer.send(far_other, b"x")
        loop.turn(0)
        assert made[0].fileno() == other
        assert [entry[2] for entry in kernel.batch].index(registration) == 2
        assert kernel.registration(loop.fileno(), other) not in (None, registration)
        assert loop.stats().stale_recycled == 1
        assert not heard
        loop.unregister(tokens[0])
        kernel.ours.close(near)
        listener.close()

    @pytest.mark.parametrize("family", ["tcp", "unix"])
    def test_it_adopts(self, kernel, loop, family):
        near, (peer, far) = kernel.connected(family)
        stream = kernel.adopt(loop, near, Told, b"early")
        peer.send(far, b"abc")
        settle(loop)
        peer.shutdown(far, socket.SHUT_WR)
        settle(loop)
        assert stream.upcalls == ["open", b"early", b"abc", "eof"]
        stream.close()
        settle(loop)

    def test_faults_go_on_top(self, kernel, loop):
        made = Made()
        listener = kernel.listen(loop, ADDRESS, made)
        connect(kernel.process(), ADDRESS)
        with replaced(accept=lambda fd: -errno.ENFILE):
            settle(loop)
        assert not made
        kernel.advance(1)
        settle(loop)
        assert made[0].upcalls == ["open"]
        listener.close()

    def test_a_child_holds_the_open_file(self, kernel, loop):
        near, (peer, far) = kernel.connected()
        token = loop.register(near, IN, print)
        child = kernel.ours.fork()
        serial = kernel.ours.file(near)
        kernel.ours.close(near)
        peer.send(far, b"x")
        assert loop.turn(0) == 1 or token
        assert kernel.batch[0][3] == serial == child.file(near)
        assert [entry[1] for entry in kernel.watched(loop.fileno())].count(serial) == 1
        child.exit()
        assert serial not in [entry[1] for entry in kernel.watched(loop.fileno())]
        loop.unregister(token)

    def test_a_file_on_disk(self, kernel, loop, tmp_path):
        """sendfile() looks at the file itself with the standard library: it is there twice, under the same number."""
        (tmp_path / "file").write_bytes(b"0123456789")
        made = Made()
        listener = kernel.listen(loop, ADDRESS, made)
        peer = kernel.process()
        fd = connect(peer, ADDRESS)
        settle(loop)
        kernel.capacity = 4
        with open(tmp_path / "file", "rb") as low, \
                os.fdopen(fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 200), "rb") as file:     # not a fake number
            number = kernel.ours.disk(b"0123456789")
            kernel.ours.dup2(number, file.fileno())
            kernel.ours.close(number)
            made[0].sendfile(file)
            kernel.ours.close(file.fileno())
        with pytest.raises(epollkit.UsageError, match="polled"):
            loop.register(kernel.ours.dup(kernel.ours.disk(b"")), IN, print)
        for fd_of_disk in kernel.ours.fds()[-2:]:
            kernel.ours.close(fd_of_disk)
        received = b""
        while len(received) < 10:
            settle(loop)
            received += peer.recv(fd, 100)
        assert received == b"0123456789"
        listener.close()


class TestWhatCanBeSeen:
    def test_batches_and_waits(self, kernel):
        ours = kernel.ours
        epoll_fd, event = ours.epoll_create(), ours.eventfd()
        ours.epoll_ctl(epoll_fd, ADD, event, IN | ET, 7)
        registration = kernel.registration(epoll_fd, event)
        assert ours.epoll_wait(epoll_fd) == []
        assert (kernel.waits, kernel.batch) == (1, [])
        ours.write(event, struct.pack("=Q", 1))
        assert kernel.ready(epoll_fd) == [event]
        assert ours.epoll_wait(epoll_fd) == [(7, IN)]
        assert ours.epoll_wait(epoll_fd) == []
        assert (kernel.waits, kernel.batch) == (3, [(7, IN, registration, ours.file(event))])
        assert kernel.watched(epoll_fd) == [(event, ours.file(event), registration, IN | ET | ERR | HUP, 7)]
        ours.epoll_ctl(epoll_fd, DEL, event)
        assert kernel.registration(epoll_fd, event) is kernel.registration(epoll_fd, 99) is None
        ours.epoll_ctl(epoll_fd, ADD, event, IN)
        assert kernel.registration(epoll_fd, event) == registration + 1
        assert kernel.open_files() == [(1, "epoll", 1), (2, "eventfd", 1)]
        ours.exit()

    def test_what_another_process_waits_for_is_its_own_affair(self, kernel):
        other = kernel.process()
        epoll_fd, event = other.epoll_create(), other.eventfd()
        other.epoll_ctl(epoll_fd, ADD, event, OUT)
        assert len(other.epoll_wait(epoll_fd)) == 1
        assert (kernel.waits, kernel.batch) == (0, [])

    def test_any_order(self, kernel):
        ours = kernel.ours
        epoll_fd, events = ours.epoll_create(), [ours.eventfd() for _ in range(3)]
        for number, event in enumerate(events):
            ours.epoll_ctl(epoll_fd, ADD, event, OUT | ET, number)
        kernel.promote(epoll_fd, 2)
        kernel.promote(epoll_fd, 1)
        with pytest.raises(IndexError):
            kernel.promote(epoll_fd, 3)
        assert [tag for tag, _ in ours.epoll_wait(epoll_fd, 2)] == [0, 2]
        kernel.spurious(ours.file(events[0]), IN)       # nobody asks for that
        kernel.spurious(ours.file(events[2]), ERR)
        kernel.spurious(ours.file(events[0]), 0)
        assert ours.epoll_wait(epoll_fd) == [(1, OUT), (2, OUT | ERR), (0, OUT)]
        with pytest.raises(KeyError):
            kernel.spurious(99, IN)
        ours.exit()

    def test_the_end_asks_for_what_is_left_open(self):
        with pytest.raises(AssertionError, match=r"left open.*\[3\]"), booted() as kernel:
            kernel.ours.eventfd()
        with pytest.raises(ZeroDivisionError), booted() as kernel:
            kernel.ours.eventfd()
            raise ZeroDivisionError
        with booted() as kernel:
            with pytest.raises(RuntimeError, match="already"), booted():
                pass
            process = kernel.process()
            process.eventfd()
        with pytest.raises(RuntimeError, match="ended"):
            process.eventfd()
        with pytest.raises(TypeError):
            type(process)()

    def test_descriptors_run_out(self, kernel):
        process = kernel.process()
        kernel.limit(process, 2)
        assert (process.eventfd(), process.socket()) == (3, 4)
        for make in (process.eventfd, process.pipe, process.epoll_create, lambda: process.dup(3)):
            with pytest.raises(OSError) as found:
                make()
            assert found.value.errno == errno.EMFILE
        process.close(3)
        with pytest.raises(OSError):
            process.pipe()
        assert process.fds() == [4]

    def test_names(self, kernel):
        process = kernel.process()
        for path, then in (("/run/socket", errno.ECONNREFUSED), ("\0name", errno.ECONNREFUSED)):
            listening, client = process.socket("unix"), process.socket("unix")
            process.bind(listening, path)
            process.listen(listening, 0)
            with pytest.raises(OSError) as found:
                process.bind(client, path)
            assert found.value.errno == errno.EADDRINUSE
            process.close(listening)
            with pytest.raises(OSError) as found:
                process.connect(client, path)
            assert found.value.errno == then
        kernel.unlink("/run/socket")
        with pytest.raises(FileNotFoundError):
            process.connect(client, "/run/socket")
        process.bind(process.socket("unix"), "\0name")
        with pytest.raises(ValueError):
            process.connect(client, ("localhost", 80))


class TestState:
    """Equal if and only if what may follow is."""

    def snapshot(self, kernel, loop):
        return kernel.state(loop), loop_state(loop)

    def test_serials_generations_and_ports_are_not_in_it(self, kernel, loop):
        peer, found = kernel.process(), set()
        for _ in range(3):
            near, _ = kernel.connected("tcp", peer)
            token = loop.register(near, IN, print)
            settle(loop)
            found.add(self.snapshot(kernel, loop))
            loop.unregister(token)
            kernel.ours.close(near)
            peer.exit()
            kernel.advance(1)
        assert len(found) == 1

    @pytest.mark.parametrize(("bits", "different"), [(1, 2), (2, 4), (32, 1)])
    def test_of_generations_it_has_the_bits_that_are_compared(self, kernel, bits, different):
        with epollkit.Loop(instance_bits=bits) as loop:
            event = kernel.ours.eventfd()
            token = loop.register(event, IN, print)
            copy = kernel.ours.dup(event)
            kernel.ours.close(event)
            loop.unregister(token)              # too late: the entry stays, as the copy does
            found = set()
            for _ in range(8):
                loop.unregister(loop.register(copy, IN, print))
                found.add(self.snapshot(kernel, loop))
            assert len(found) == different
            kernel.ours.close(copy)

    @pytest.mark.parametrize("change", [
        lambda kernel, loop, peer, far: peer.send(far, b"x"),
        lambda kernel, loop, peer, far: peer.shutdown(far, socket.SHUT_WR),
        lambda kernel, loop, peer, far: peer.dup(far),
        lambda kernel, loop, peer, far: peer.linger(far),
        lambda kernel, loop, peer, far: kernel.advance(0.001),
        lambda kernel, loop, peer, far: kernel.route(ADDRESS, "later"),
        lambda kernel, loop, peer, far: kernel.spurious(peer.file(far), HUP),
        lambda kernel, loop, peer, far: setattr(kernel, "capacity", 1),
        lambda kernel, loop, peer, far: kernel.limit(kernel.ours, 9),
        lambda kernel, loop, peer, far: peer.epoll_ctl(peer.epoll_create(), ADD, far, OUT),
    ])
    def test_what_matters_is_in_it(self, kernel, loop, change):
        near, (peer, far) = kernel.connected()
        token = loop.register(near, IN, print)
        before = self.snapshot(kernel, loop)
        assert self.snapshot(kernel, loop) == before
        change(kernel, loop, peer, far)
        assert self.snapshot(kernel, loop) != before
        loop.unregister(token)
        kernel.ours.close(near)

    @pytest.mark.parametrize("change", [
        lambda kernel, loop, stream: loop.call_later(5, print),
        lambda kernel, loop, stream: loop.call_soon(print),
        lambda kernel, loop, stream: loop.call_soon_threadsafe(print),
        lambda kernel, loop, stream: stream.call_later(5, print),
        lambda kernel, loop, stream: stream.write(bytes(100)),
        lambda kernel, loop, stream: stream.set_timeout(read=5),
        lambda kernel, loop, stream: stream.set_rate(read=5),
        lambda kernel, loop, stream: stream.pause_reading(),
        lambda kernel, loop, stream: stream.close(),
        lambda kernel, loop, stream: kernel.listen(loop, (LOCAL, 81), Told),
        lambda kernel, loop, stream: loop.connect((LOCAL, 82), Told),
        lambda kernel, loop, stream: loop.stop(),
    ])
    def test_what_matters_of_the_loop_is_in_it(self, kernel, loop, change):
        made = Made()
        kernel.listen(loop, ADDRESS, made)
        kernel.route((LOCAL, 82), "never")
        peer = kernel.process()
        connect(peer, ADDRESS)
        settle(loop)
        before = loop_state(loop)
        change(kernel, loop, made[0])
        assert loop_state(loop) != before
        assert hash(loop_state(loop)) != hash(before)

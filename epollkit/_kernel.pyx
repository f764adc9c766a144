"""In the debug build only: a kernel in memory. It runs the real loop, step by step, and anybody may look inside.

    with booted() as kernel:
        with epollkit.Loop() as loop:
            listener = kernel.listen(loop, ("127.0.0.1", 80), factory)
            peer = kernel.process()
            fd = peer.socket()
            peer.connect(fd, ("127.0.0.1", 80))
            loop.turn(0)

What it is for: every order of events that Linux may come up with can be had, and had again; a run costs microseconds;
and `batch` says of each event which registration it was meant for, whatever the loop makes of it.

What it keeps to, compared with Linux (6.18) by tests/test_kernel.py: descriptors (lowest free first, open files that
outlive them in copies and other processes), epoll (who is woken by what, in which order; the file is asked again when
it is reported; an entry lives as long as the open file), TCP and unix sockets (masks, errors and when they are read,
ends, resets, backlogs), eventfds, pipes. One thread; every descriptor is non-blocking.

What is not as in Linux, and why:

- Nothing is under way. What is sent is received, and acknowledged, in the same call, up to the peer's capacity; so an
  end is never held up behind a full window, SIOCOUTQNSD is 0, and there is no TIME_WAIT. Each order of arrivals is an
  order of calls. That a FIN is acknowledged late, which wakes its sender again, is up to `spurious()`.
- Capacity is counted in bytes, 64 by default, so that "full" takes few of them; in Linux it is memory, and roughly so.
  When a socket counts as writable again is Linux's rule: TCP a third free, unix a quarter taken, pipes any.
- A SYN that finds the backlog full is sent again when `answer()` says so, not by a clock.
- Of several exclusive watchers all are woken: Linux stops at the first who sleeps in epoll_wait, and here nobody does.
- An address is what it is called: a listener on 0.0.0.0 is not found under 127.0.0.1. No socket meets itself.
- Missing, because the loop never asks: urgent data, passed descriptors, datagrams, SO_REUSEPORT, signals, permissions.
"""
import os
from socket import AF_INET, AF_UNIX

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

cimport epollkit._sys as _sys
from epollkit._core cimport Loop
from epollkit._operations cimport ek_operations, ek_real_operations, install
from epollkit._slots cimport slot_at
from epollkit._sys cimport epoll_event, sockaddr_storage

from epollkit import _listener, _stream

cdef extern from "_kernel.h" nogil:
    enum fk_kind:
        FK_EPOLL, FK_EVENT, FK_PIPE_READ, FK_PIPE_WRITE, FK_TCP, FK_UNIX, FK_DISK, FK_KINDS
    enum fk_state:
        FK_CLOSED, FK_LISTENING, FK_CONNECTING, FK_CONNECTED
    enum fk_route:
        FK_NOW, FK_LATER, FK_NEVER
    enum:
        FK_FIRST_FD

    struct fk_name:
        int exists
        fk_route route
    struct fk_file:
        int64_t serial
        fk_kind kind
        int references
        uint32_t spurious
        fk_file *peer
        fk_state state
        sockaddr_storage far
        int far_length
    struct fk_item:
        fk_file *file
        int fd
        uint32_t events
        uint64_t tag
        int64_t registration
    struct fk_process:
        fk_file **table
        int room, limit, open
    struct fk_report:
        uint64_t tag
        uint32_t mask
        int64_t registration, file
    struct fk_tags:
        int epoll_fd
        uint32_t mask
        uint32_t (*generation)(void *loop, uint32_t index) noexcept
        void *loop
    struct fk_kernel:
        int64_t now_ns
        uint64_t waits
        uint32_t capacity
        fk_report *batch
        int batch_count
        unsigned char *text
        size_t text_used
    fk_kernel fk
    const ek_operations fk_operations

    void fk_boot(fk_process *ours) noexcept
    void fk_halt() noexcept
    void fk_exit(fk_process *process) noexcept
    void fk_fork(const fk_process *parent, fk_process *child) noexcept
    fk_file *fk_get(const fk_process *process, int fd) noexcept
    fk_item *fk_find_item(const fk_file *set, const fk_file *file, int fd) noexcept
    fk_name *fk_name_of "fk_name"(const sockaddr_storage *address, int length, int make) noexcept
    int fk_open(fk_process *process, fk_kind kind) noexcept
    int fk_pair(fk_process *process, fk_process *other, fk_kind kind, int *ends) noexcept
    int fk_pipe(fk_process *process, int *ends) noexcept
    int fk_close(fk_process *process, int fd) noexcept
    int fk_duplicate(fk_process *process, int fd) noexcept
    int fk_replace(fk_process *process, int fd, int target) noexcept
    int fk_bind(fk_process *process, int fd, const sockaddr_storage *address, int length) noexcept
    int fk_listen(fk_process *process, int fd, int backlog) noexcept
    int fk_accept(fk_process *process, int fd) noexcept
    int fk_connect(fk_process *process, int fd, const sockaddr_storage *address, int length) noexcept
    int fk_shutdown(fk_process *process, int fd, int how) noexcept
    int fk_reset_on_close(fk_process *process, int fd) noexcept
    int fk_pending_error(fk_process *process, int fd) noexcept
    int fk_disturbance(fk_process *process, int fd) noexcept
    int fk_poll(fk_process *process, int fd) noexcept
    ssize_t fk_read(fk_process *process, int fd, void *buffer, size_t room) noexcept
    ssize_t fk_write(fk_process *process, int fd, const void *data, size_t length) noexcept
    ssize_t fk_recv(fk_process *process, int fd, void *buffer, size_t room) noexcept
    ssize_t fk_send(fk_process *process, int fd, const void *data, size_t length) noexcept
    int fk_epoll_ctl(fk_process *process, int epoll_fd, int operation, int fd, uint32_t events, uint64_t tag) noexcept
    int fk_epoll_wait(fk_process *process, int epoll_fd, epoll_event *events, int room) noexcept
    void fk_wake(fk_file *file, uint32_t what) noexcept
    void fk_store(fk_file *receiver, const void *data, uint32_t length) noexcept
    void fk_tcp_fail(fk_file *file, int error) noexcept
    void fk_tcp_arrive(fk_file *client, const fk_name *name) noexcept
    fk_file *fk_file_after(fk_file *file) noexcept
    fk_item *fk_item_after(fk_file *set, fk_item *item) noexcept
    fk_item *fk_ready_after(fk_file *set, fk_item *item) noexcept
    void fk_promote(fk_item *item) noexcept
    void fk_tell(uint64_t number) noexcept
    void fk_tell_process(const fk_process *process) noexcept
    void fk_begin_state() noexcept
    void fk_end_state(const fk_tags *tags) noexcept

KINDS = {"tcp": <int>FK_TCP, "unix": <int>FK_UNIX}
KIND_NAMES = ("epoll", "eventfd", "pipe", "pipe", "tcp", "unix", "disk")
ROUTES = {"now": <int>FK_NOW, "later": <int>FK_LATER, "never": <int>FK_NEVER}

cdef char room_to_read[1 << 16]
cdef uint64_t boots = 0                     # kernels so far
cdef object running = None


cdef int64_t checked(int64_t result) except -1:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


cdef int make_address(object address, sockaddr_storage *storage) except -1:
    cdef bytes text
    cdef int length
    if isinstance(address, tuple):
        text = address[0].encode()
        length = _sys.ek_numeric_address(text, len(text), address[1], 0, 0, storage)
    else:
        text = os.fsencode(address)
        length = _sys.ek_unix_address(text, len(text), storage)
    if length == 0:
        raise ValueError(f"the fake kernel knows no names: {address!r}")
    return length


cdef class Process:
    """A table of descriptors. Its methods are system calls: they return what those return, or raise OSError."""

    cdef fk_process process
    cdef uint64_t boot

    def __cinit__(self):
        self.boot = boots
        self.process.limit = FK_FIRST_FD + (1 << 20)

    def __init__(self):
        raise TypeError("a Process comes from Kernel.process()")

    def __dealloc__(self):
        free(self.process.table)

    cdef fk_process *me(self) except NULL:
        if running is None or self.boot != boots:
            raise RuntimeError("this process ended with its kernel")
        return &self.process

    def fork(self):
        """Another process with the same open files, under the same numbers."""
        cdef Process child = running.process()
        fk_fork(self.me(), &child.process)
        return child

    def exit(self):
        """Close all that is open."""
        fk_exit(self.me())

    # -- descriptors ---------------------------------------------------------------------------------------------------

    def fds(self):
        """The open ones, ascending."""
        cdef fk_process *me = self.me()
        return [fd for fd in range(FK_FIRST_FD, me.room) if me.table[fd] != NULL]

    def file(self, int fd):
        """The serial number of the open file."""
        cdef fk_file *file = fk_get(self.me(), fd)
        if file == NULL:
            checked(-errno.EBADF)
        return file.serial

    def peer(self, int fd):
        """The serial number of the open file at the other end of a socket or pipe; None: there is none, or no more."""
        cdef fk_file *file = fk_get(self.me(), fd)
        if file == NULL:
            checked(-errno.EBADF)
        return file.peer.serial if file.peer != NULL else None

    def close(self, int fd):
        checked(fk_close(self.me(), fd))

    def dup(self, int fd):
        return checked(fk_duplicate(self.me(), fd))

    def dup2(self, int fd, int target):
        checked(fk_replace(self.me(), fd, target))

    def poll(self, int fd):
        """What poll(2) would say of it now."""
        return checked(fk_poll(self.me(), fd))

    def read(self, int fd, size_t room=8):
        cdef int64_t count = checked(fk_read(self.me(), fd, room_to_read, min(room, sizeof(room_to_read))))
        return room_to_read[:count]

    def write(self, int fd, bytes data):
        return checked(fk_write(self.me(), fd, <const char *>data, len(data)))

    def eventfd(self):
        return checked(fk_open(self.me(), FK_EVENT))

    def pipe(self):
        """(the end to read from, the end to write to)"""
        cdef int ends[2]
        checked(fk_pipe(self.me(), ends))
        return ends[0], ends[1]

    def disk(self, bytes data):
        """A regular file with that content, which can't be polled."""
        cdef int fd = checked(fk_open(self.me(), FK_DISK))
        fk_store(fk_get(&self.process, fd), <const char *>data, len(data))
        return fd

    # -- sockets -------------------------------------------------------------------------------------------------------

    def socket(self, family="tcp"):
        return checked(fk_open(self.me(), <fk_kind><int>KINDS[family]))

    def bind(self, int fd, address):
        cdef sockaddr_storage storage
        cdef int length = make_address(address, &storage)
        checked(fk_bind(self.me(), fd, &storage, length))

    def listen(self, int fd, int backlog=128):
        checked(fk_listen(self.me(), fd, backlog))

    def accept(self, int fd):
        return checked(fk_accept(self.me(), fd))

    def connect(self, int fd, address):
        """TCP: always raises BlockingIOError (EINPROGRESS), whatever has come of it by then."""
        cdef sockaddr_storage storage
        cdef int length = make_address(address, &storage)
        checked(fk_connect(self.me(), fd, &storage, length))

    def send(self, int fd, bytes data):
        return checked(fk_send(self.me(), fd, <const char *>data, len(data)))

    def recv(self, int fd, size_t room):
        cdef int64_t count = checked(fk_recv(self.me(), fd, room_to_read, min(room, sizeof(room_to_read))))
        return room_to_read[:count]

    def shutdown(self, int fd, int how):
        """how: SHUT_RD, SHUT_WR or SHUT_RDWR."""
        checked(fk_shutdown(self.me(), fd, how + 1))

    def error(self, int fd):
        """SO_ERROR, which is thereby read."""
        return fk_pending_error(self.me(), fd)

    def disturbance(self, int fd):
        """As ek_disturbance says it."""
        return checked(fk_disturbance(self.me(), fd))

    def linger(self, int fd):
        """The last close sends an RST."""
        checked(fk_reset_on_close(self.me(), fd))

    def reset(self, int fd):
        """Close it with an RST, if this is the last descriptor."""
        checked(fk_reset_on_close(self.me(), fd))
        fk_close(&self.process, fd)

    # -- epoll ---------------------------------------------------------------------------------------------------------

    def epoll_create(self):
        return checked(fk_open(self.me(), FK_EPOLL))

    def epoll_ctl(self, int epoll_fd, int operation, int fd, uint32_t events=0, uint64_t data=0):
        checked(fk_epoll_ctl(self.me(), epoll_fd, operation, fd, events, data))

    def epoll_wait(self, int epoll_fd, int room=64):
        """A list of (data, events), without waiting."""
        cdef epoll_event *events = <epoll_event *>malloc(max(room, 1) * sizeof(epoll_event))
        cdef int64_t count = fk_epoll_wait(self.me(), epoll_fd, events, room)
        try:
            return [(_sys.ek_event_tag(&events[i]), _sys.ek_event_mask(&events[i])) for i in range(checked(count))]
        finally:
            free(events)


class Listening:
    """What `_listener.listen` takes for a listening socket: `detach()` gives the descriptor away."""

    file = None

    def __init__(self, process, fd, address):
        self.sock = self
        self.process, self.fd, self.address = process, fd, address
        self.family = AF_INET if isinstance(address, tuple) else AF_UNIX

    def detach(self):
        fd, self.fd = self.fd, -1
        return fd

    def close(self):
        if self.fd >= 0:
            self.process.close(self.detach())


cdef class Kernel:
    """The one that runs. `ours` is the process that the loop lives in; it has no other descriptors than these."""

    cdef readonly Process ours
    cdef list processes
    cdef const ek_operations *before

    def __enter__(self):
        global boots, running
        if running is not None:
            raise RuntimeError("a fake kernel runs already")
        boots += 1
        self.processes = []
        self.ours = self.new_process()
        fk_boot(&self.ours.process)
        running = self
        self.before = install(&fk_operations)
        return self

    def __exit__(self, kind, error, traceback):
        """What the loop, or the test, has left open in `ours` is an error; other processes just exit."""
        global running
        left = self.ours.fds()
        for process in self.processes:
            fk_exit(&(<Process>process).process)
        fk_halt()
        running = None
        install(self.before)
        if kind is None:
            assert not left, f"left open in the fake kernel: {left}"

    cdef Process new_process(self):
        cdef Process process = Process.__new__(Process)
        self.processes.append(process)
        return process

    def process(self):
        """Another process, with nothing open."""
        return self.new_process()

    def limit(self, Process process not None, int fds):
        """How many descriptors it may have: then EMFILE."""
        process.process.limit = FK_FIRST_FD + fds

    @property
    def capacity(self):
        """How many bytes a socket or pipe holds for who reads, and has not."""
        return fk.capacity

    @capacity.setter
    def capacity(self, uint32_t size):
        fk.capacity = size

    @property
    def now_ns(self):
        return fk.now_ns

    def advance(self, seconds):
        """Let time pass, rounded to the nanosecond."""
        fk.now_ns += <int64_t>round(seconds * 1000000000)

    # -- what happens outside ------------------------------------------------------------------------------------------

    def listener(self, address, int backlog=128):
        """A listening socket of ours, as `_listener.listen` takes it."""
        fd = self.ours.socket("tcp" if isinstance(address, tuple) else "unix")
        self.ours.bind(fd, address)
        self.ours.listen(fd, backlog)
        return Listening(self.ours, fd, address)

    def listen(self, loop, address, factory, int backlog=128, bint exclusive=False, bint defer_accept=False):
        """`Loop.listen`, in here."""
        opened = self.listener(address, backlog)
        try:
            return _listener.listen(loop, opened, factory, exclusive=exclusive, defer_accept=defer_accept)
        finally:
            opened.close()

    def adopt(self, loop, int fd, factory, bytes data=b""):
        """`Loop.adopt`, in here: of `connected`, say."""
        cdef fk_file *file = self.find(self.ours.file(fd))
        return _stream.adopt(loop, fd, file.kind == FK_TCP, factory, data)

    def connected(self, family="tcp", Process peer=None):
        """Two connected sockets: (fd of ours, (process, fd of the peer's)). For `register`, or `adopt`."""
        cdef int ends[2]
        if peer is None:
            peer = self.process()
        checked(fk_pair(&self.ours.process, peer.me(), <fk_kind><int>KINDS[family], ends))
        return ends[0], (peer, ends[1])

    def route(self, address, answer):
        """What becomes of TCP connects to there: "now" (the default): it is decided when connect() returns; "later":
        when `answer()` says; "never"."""
        cdef sockaddr_storage storage
        cdef int length = make_address(address, &storage)
        fk_name_of(&storage, length, True).route = <fk_route><int>ROUTES[answer]

    def answer(self, serial, answer):
        """Decide a connect that waits: "accept" (the listener that is there now, or nobody, answers), "refuse", or an
        errno that it fails with."""
        cdef fk_file *file = self.find(serial)
        if file.state != FK_CONNECTING:
            raise ValueError(f"file {serial} is not connecting")
        if answer == "accept":
            fk_tcp_arrive(file, fk_name_of(&file.far, file.far_length, False))
        else:
            fk_tcp_fail(file, errno.ECONNREFUSED if answer == "refuse" else <int>answer)

    def under_way(self):
        """The serial numbers of what is connecting, oldest first."""
        cdef fk_file *file = fk_file_after(NULL)
        found = []
        while file != NULL:
            if file.state == FK_CONNECTING:
                found.append(file.serial)
            file = fk_file_after(file)
        return found

    def unlink(self, path):
        """Remove a unix socket's name."""
        cdef sockaddr_storage storage
        cdef int length = make_address(path, &storage)
        fk_name_of(&storage, length, True).exists = False

    def spurious(self, serial, uint32_t mask):
        """An event that is not so: reported once, to one who asks for it. With 0, everybody is told what is so again:
        as when a FIN is acknowledged, which in Linux may take 40 ms, and wakes the one who sent it."""
        cdef fk_file *file = self.find(serial)
        file.spurious = mask
        fk_wake(file, mask)

    def ready(self, int epoll_fd):
        """The fds that wait to be reported by ours, in their order: not all of them may still have something to say."""
        cdef fk_file *set = self.find(self.ours.file(epoll_fd))
        cdef fk_item *item = fk_ready_after(set, NULL)
        found = []
        while item != NULL:
            found.append(item.fd)
            item = fk_ready_after(set, item)
        return found

    def promote(self, int epoll_fd, int place):
        """Have the one in that place of `ready` reported first, as if it had become ready before the others."""
        cdef fk_file *set = self.find(self.ours.file(epoll_fd))
        cdef fk_item *item = fk_ready_after(set, NULL)
        for _ in range(place):
            if item != NULL:
                item = fk_ready_after(set, item)
        if item == NULL:
            raise IndexError(place)
        fk_promote(item)

    # -- what can be seen ----------------------------------------------------------------------------------------------

    cdef fk_file *find(self, int64_t serial) except NULL:
        cdef fk_file *file = fk_file_after(NULL)
        while file != NULL and file.serial != serial:
            file = fk_file_after(file)
        if file == NULL:
            raise KeyError(serial)
        return file

    @property
    def batch(self):
        """Our last wait that returned something: (tag, mask, serial of the registration, serial of the file)."""
        return [(fk.batch[i].tag, fk.batch[i].mask, fk.batch[i].registration, fk.batch[i].file)
                for i in range(fk.batch_count)]

    @property
    def waits(self):
        """How many waits we made."""
        return fk.waits

    def registration(self, int epoll_fd, int fd):
        """The serial number of the present registration of an fd of ours, or None."""
        cdef fk_file *set = fk_get(&self.ours.process, epoll_fd)
        cdef fk_file *file = fk_get(&self.ours.process, fd)
        cdef fk_item *item = fk_find_item(set, file, fd) if set != NULL and file != NULL else NULL
        return item.registration if item != NULL else None

    def watched(self, int epoll_fd):
        """(fd, serial of the file, serial of the registration, events, tag), oldest registration first. The fd is what
        it was registered by: it may be closed by now, or another file."""
        cdef fk_file *set = self.find(self.ours.file(epoll_fd))
        cdef fk_item *item = fk_item_after(set, NULL)
        found = []
        while item != NULL:
            found.append((item.fd, item.file.serial, item.registration, item.events, item.tag))
            item = fk_item_after(set, item)
        return found

    def open_files(self):
        """(serial, kind, references) of every open file; connections that wait for accept have none."""
        cdef fk_file *file = fk_file_after(NULL)
        found = []
        while file != NULL:
            found.append((file.serial, KIND_NAMES[<int>file.kind], file.references))
            file = fk_file_after(file)
        return found

    def state(self, Loop loop=None):
        """All of it that anything may depend on later, as a bytes object that is equal for equal states: without
        serial numbers, without what time it is but for its place within a tick, without ports that the kernel chose.
        With a loop, tags in its set are told by what they mean to it: the slot, and whether its registration stands."""
        cdef fk_tags tags
        tags.epoll_fd = loop.epoll_fd if loop is not None else -1
        tags.mask = loop.slots.generation_mask if loop is not None else 0
        tags.generation = generation_of
        tags.loop = <void *>loop
        fk_begin_state()
        for process in self.processes:
            fk_tell_process(&(<Process>process).process)
        fk_end_state(&tags)
        return PyBytes_FromStringAndSize(<char *>fk.text, fk.text_used)


def booted():
    """A kernel that runs for the length of a block, with its operations in force: `with booted() as kernel`. Loops are
    made inside, and closed before its end."""
    return Kernel()


def asked(int fd, bint real):
    """What the operations that only look say of an fd of ours, or of a real one: for who compares the two."""
    cdef const ek_operations *table = &ek_real_operations if real else &fk_operations
    cdef sockaddr_storage name
    cdef int listening = table.is_listening(fd)
    cdef int connected = table.socket_name(fd, True, &name)     # what is unsent in a socket that was is anybody's guess
    return (listening, table.accept_queue(fd) if listening > 0 else None, table.has_input(fd), table.set_no_delay(fd),
            connected, table.holds_bytes(fd) if connected > 0 else None, table.socket_name(fd, False, &name))


def real_disturbance(int fd):
    """What Linux says: see `Process.disturbance`."""
    return checked(ek_real_operations.disturbance(fd))


cdef uint32_t generation_of(void *loop, uint32_t index) noexcept:
    if index >= (<Loop>loop).slots.fresh:
        return 0
    return slot_at(&(<Loop>loop).slots, index).generation

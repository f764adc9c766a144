/* The system calls of epollkit, and nothing else. Nobody else names one.
 *
 * Each wrapper returns a count or an fd, 0, or -errno, and retries EINTR: except for epoll_wait, which
 * returns -EINTR so that Python's signal handlers run (a signal must be able to end a wait), and close(2),
 * which on Linux has released the fd even when it reports EINTR (close(2), NOTES).
 */
#ifndef EPOLLKIT_SYS_H
#define EPOLLKIT_SYS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#if EPOLLKIT_DEBUG
/* An invariant. A failing `assert` in a noexcept function would be swallowed; this one can't be. */
#define EK_ASSERT(condition)                                                              \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            fprintf(stderr, "epollkit: invariant broken: %s (%s:%d)\n", #condition,       \
                    __FILE__, __LINE__);                                                  \
            abort();                                                                      \
        }                                                                                 \
    } while (0)
#else
#define EK_ASSERT(condition) ((void)0)
#endif
#define EK_ASSERT_THREAD(thread) EK_ASSERT((thread) == (unsigned long)pthread_self())

/* Each EK_REAL(recv) below is `ek_recv` itself in the release build. In the debug build it is what the table of
 * operations starts with, and `ek_recv` goes through that table: see _operations.h. */
#if EPOLLKIT_DEBUG
#define EK_REAL(name) ek_real_##name
#else
#define EK_REAL(name) ek_##name
#define EK_MADE(kind) ((void)0)
#define EK_FREED(kind) ((void)0)
#define EK_FREED_WITH(type, kind) ((void)0)
static inline int64_t ek_last_recv(void) { return 0; }
#endif

/* What only exists because an event may be stale. For one measurement it is compiled out (`python -m bench --modes
 * stale-check`): such a loop trusts event.data, and the promise of `_slots.pxd` is void. Never defined otherwise. */
#if EPOLLKIT_UNCHECKED_EVENTS
#if EPOLLKIT_DEBUG
#error "EPOLLKIT_UNCHECKED_EVENTS has no place in the debug build"
#endif
#define EK_STALE(condition) 0
#else
#define EK_STALE(condition) __builtin_expect(!!(condition), 0)
#endif

/* Memory that is there and that nobody may touch for now. The address sanitizer reports whoever does; without it this is
 * nothing. */
#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1 /* what gcc defines by itself */
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#define EK_SANITIZED 1
#define EK_POISON(memory, size) __asan_poison_memory_region(memory, size)
#define EK_UNPOISON(memory, size) __asan_unpoison_memory_region(memory, size)
#else
#define EK_SANITIZED 0
#define EK_POISON(memory, size) ((void)(memory), (void)(size))
#define EK_UNPOISON(memory, size) ((void)(memory), (void)(size))
#endif

/* Pages of zeros that cost nothing until they are touched. They grow without being copied, and may move as they do.
 * NULL: no memory, and what was there before still is. */
static inline void *ek_grow_pages(void *pages, size_t size, size_t grown)
{
    void *result = pages == NULL ? mmap(NULL, grown, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                                 : mremap(pages, size, grown, MREMAP_MAYMOVE);
    return result == MAP_FAILED ? NULL : result;
}

static inline void ek_free_pages(void *pages, size_t size)
{
    if (pages != NULL)
        munmap(pages, size);
}

#define EK_RETRY(result, call)                                                            \
    do {                                                                                  \
        (result) = (call);                                                                \
    } while ((result) < 0 && errno == EINTR)

/* Cython writes a struct by its fields; epoll_event is packed on x86-64, so it is read through these two. */
static inline uint64_t ek_event_tag(const struct epoll_event *event) { return event->data.u64; }
static inline uint32_t ek_event_mask(const struct epoll_event *event) { return event->events; }

static inline int EK_REAL(epoll_create)(void)
{
    int fd = epoll_create1(EPOLL_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static inline int EK_REAL(epoll_ctl)(int epoll_fd, int operation, int fd, uint32_t events, uint64_t tag)
{
    struct epoll_event event;
    event.events = events;
    event.data.u64 = tag;
    return epoll_ctl(epoll_fd, operation, fd, &event) < 0 ? -errno : 0;
}

#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441 /* the same number on every architecture since Linux 5.11 */
#endif

/* Waits at most timeout_ns; negative: without end. With epoll_pwait2 (Linux 5.11) to the nanosecond, otherwise
 * to the millisecond, rounded up: a timeout that is cut short spins. */
static inline int EK_REAL(epoll_wait)(int epoll_fd, struct epoll_event *events, int room, int64_t timeout_ns)
{
    static int without_pwait2 = 0;
    int count, timeout_ms;
    if (timeout_ns > 0 && !without_pwait2) {
        struct timespec timeout = {timeout_ns / 1000000000, timeout_ns % 1000000000};
        count = (int)syscall(SYS_epoll_pwait2, epoll_fd, events, room, &timeout, NULL, (size_t)0);
        if (count >= 0)
            return count;
        if (errno != ENOSYS && errno != EPERM) /* EPERM: seccomp profiles older than the call */
            return -errno;
        without_pwait2 = 1;
    }
    if (timeout_ns < 0)
        timeout_ms = -1;
    else if (timeout_ns / 1000000 >= INT_MAX)
        timeout_ms = INT_MAX;
    else
        timeout_ms = (int)((timeout_ns + 999999) / 1000000);
    count = epoll_wait(epoll_fd, events, room, timeout_ms);
    return count < 0 ? -errno : count;
}

static inline int EK_REAL(accept)(int fd)
{
    int accepted;
    EK_RETRY(accepted, accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC));
    return accepted < 0 ? -errno : accepted;
}

/* How many connections wait for accept: Linux says so in tcp_info.tcpi_unacked of a listening socket (tcp_get_info() in
 * net/ipv4/tcp.c). -errno where it can't be known: a unix socket. An accept that finds nothing is dear, for the kernel
 * makes the new socket before it looks: several times what this costs. */
static inline int EK_REAL(accept_queue)(int fd)
{
    struct tcp_info info;
    socklen_t length = sizeof info;
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0 ? -errno : (int)info.tcpi_unacked;
}

static inline int EK_REAL(socket)(int family)
{
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    return fd < 0 ? -errno : fd;
}

/* 0: connected; -EINPROGRESS: under way, TCP only; anything else has failed. A unix socket is connected at once or not
 * at all: -EAGAIN is a full backlog (unix(7); unix_stream_connect() in net/unix/af_unix.c). A connect that a signal
 * interrupts goes on by itself, and must not be called again (connect(2), EINTR: "completed asynchronously"). */
static inline int EK_REAL(connect)(int fd, const struct sockaddr_storage *address, int length)
{
    if (connect(fd, (const struct sockaddr *)address, (socklen_t)length) == 0)
        return 0;
    return errno == EINTR ? -EINPROGRESS : -errno;
}

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24 /* Linux 4.2; linux/in.h */
#endif

/* Where a connection is to come from. With port 0 the kernel chooses the port when it knows the peer (ip(7),
 * IP_BIND_ADDRESS_NO_PORT; for IPv6 sockets too): otherwise an address could have no more connections than there are
 * ports, to whomever. A kernel that does not know the option chooses now. */
static inline int EK_REAL(bind)(int fd, const struct sockaddr_storage *address, int length)
{
    int on = 1;
    if (((const struct sockaddr_in *)address)->sin_port == 0) /* sin6_port is in the same place */
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    return bind(fd, (const struct sockaddr *)address, (socklen_t)length) < 0 ? -errno : 0;
}

/* What is written leaves now, not when the peer has acknowledged what left before (tcp(7)). */
static inline int EK_REAL(set_no_delay)(int fd)
{
    int on = 1;
    return setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0 ? -errno : 0;
}

static inline ssize_t EK_REAL(recv)(int fd, void *buffer, size_t room)
{
    ssize_t count;
    EK_RETRY(count, recv(fd, buffer, room, 0));
    return count < 0 ? -errno : count;
}

/* What became of a socket that nobody reads: 0: nothing; 1: something was sent, if only an urgent byte; 2: it has ended;
 * or -errno that it broke with, which is thereby read. */
static inline int EK_REAL(disturbance)(int fd)
{
    struct pollfd asked = {fd, POLLIN | POLLPRI | POLLRDHUP, 0};
    ssize_t count;
    char byte;
    EK_RETRY(count, poll(&asked, 1, 0));
    if (count == 0)
        return 0;
    EK_RETRY(count, recv(fd, &byte, 1, MSG_PEEK));
    if (count < 0 && errno != EAGAIN)
        return -errno;
    return count == 0 ? 2 : 1;
}

static inline ssize_t EK_REAL(send)(int fd, const void *data, size_t length)
{
    ssize_t count;
    EK_RETRY(count, send(fd, data, length, MSG_NOSIGNAL));
    return count < 0 ? -errno : count;
}

static inline ssize_t EK_REAL(send_parts)(int fd, struct iovec *parts, size_t part_count)
{
    ssize_t count;
    struct msghdr message = {0};
    message.msg_iov = parts;
    message.msg_iovlen = part_count;
    EK_RETRY(count, sendmsg(fd, &message, MSG_NOSIGNAL));
    return count < 0 ? -errno : count;
}

/* Sends from a file at *offset, which the call moves on, past the page cache and without a copy; 0 at the file's end. */
static inline ssize_t EK_REAL(send_file)(int fd, int file, int64_t *offset, size_t length)
{
    ssize_t count;
    off_t from = (off_t)*offset;
    EK_RETRY(count, sendfile(fd, file, &from, length));
    *offset = (int64_t)from;
    return count < 0 ? -errno : count;
}

static inline ssize_t EK_REAL(read_at)(int file, void *buffer, size_t room, int64_t offset)
{
    ssize_t count;
    EK_RETRY(count, pread(file, buffer, room, (off_t)offset));
    return count < 0 ? -errno : count;
}

/* A descriptor of our own for the same open file. */
static inline int EK_REAL(duplicate)(int fd)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    return copy < 0 ? -errno : copy;
}

static inline int EK_REAL(shutdown_write)(int fd) { return shutdown(fd, SHUT_WR) < 0 ? -errno : 0; }

static inline int EK_REAL(shutdown)(int fd) { return shutdown(fd, SHUT_RDWR) < 0 ? -errno : 0; }

/* What fd `from` is, `to` becomes too, in one step. */
static inline int EK_REAL(replace)(int from, int to)
{
    int result;
    EK_RETRY(result, dup3(from, to, O_CLOEXEC));
    return result < 0 ? -errno : 0;
}

static inline int EK_REAL(close)(int fd) { return close(fd) < 0 ? -errno : 0; }

/* The next close sends RST instead of FIN and forgets what is unsent. */
static inline int EK_REAL(reset_on_close)(int fd)
{
    struct linger linger = {1, 0};
    return setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) < 0 ? -errno : 0;
}

/* Reads the pending error and clears it: whoever calls this owns the answer. */
static inline int EK_REAL(take_error)(int fd)
{
    int error = 0;
    socklen_t length = sizeof error;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0 ? errno : error;
}

/* Whether something was received that nobody has read; a FIN is not something. */
static inline int EK_REAL(has_input)(int fd)
{
    int unread = 0;
    return ioctl(fd, SIOCINQ, &unread) == 0 && unread > 0;
}

/* Whether a socket holds bytes in either direction that make close(2) dangerous: unread ones turn its FIN into an RST,
 * which destroys what was not sent yet; and so would bytes that arrive before that is sent (tcp(7), SIOCINQ; Linux's
 * SIOCOUTQNSD). What a unix socket was given is in the peer's hands already. */
static inline int EK_REAL(holds_bytes)(int fd)
{
    int unsent = 0;
    return EK_REAL(has_input)(fd) || (ioctl(fd, SIOCOUTQNSD, &unsent) == 0 && unsent > 0);
}

/* 1: a listening socket; 0: anything else that is open; or -EBADF. */
static inline int EK_REAL(is_listening)(int fd)
{
    int listening = 0;
    socklen_t length = sizeof listening;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) < 0)
        return errno == EBADF ? -EBADF : 0;
    return listening != 0;
}

/* Address of this end (peer == 0) or the other one, and its length, or -errno. */
static inline int EK_REAL(socket_name)(int fd, int peer, struct sockaddr_storage *address)
{
    socklen_t length = sizeof *address;
    int result = peer ? getpeername(fd, (struct sockaddr *)address, &length)
                      : getsockname(fd, (struct sockaddr *)address, &length);
    return result < 0 ? -errno : (int)length;
}

/* Numeric host and port of an IPv4 or IPv6 address; a unix socket's path in host, its length as the port. Returns the
 * family. host holds at least sizeof(struct sockaddr_un) bytes. */
static inline int ek_read_address(const struct sockaddr_storage *address, int length, char *host, int *port)
{
    if (address->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)address;
        *port = ntohs(in->sin_port);
        inet_ntop(AF_INET, &in->sin_addr, host, INET_ADDRSTRLEN);
    } else if (address->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)address;
        *port = ntohs(in6->sin6_port);
        inet_ntop(AF_INET6, &in6->sin6_addr, host, INET6_ADDRSTRLEN);
    } else {
        *port = length - (int)offsetof(struct sockaddr_un, sun_path);
        memcpy(host, ((const struct sockaddr_un *)address)->sun_path, *port > 0 ? (size_t)*port : 0);
    }
    return address->ss_family;
}

/* The socket address of a numeric host, and its length; 0: the host is not one, so it may be a name. */
static inline int ek_numeric_address(const char *host, size_t host_length, int port, uint32_t flow, uint32_t scope,
                                     struct sockaddr_storage *address)
{
    struct sockaddr_in *in = (struct sockaddr_in *)address;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)address;
    if (strlen(host) != host_length) /* an embedded zero would end it early */
        return 0;
    memset(address, 0, sizeof *in6);
    if (inet_pton(AF_INET, host, &in->sin_addr) == 1) {
        in->sin_family = AF_INET;
        in->sin_port = htons((uint16_t)port);
        return sizeof *in;
    }
    if (inet_pton(AF_INET6, host, &in6->sin6_addr) == 1) {
        in6->sin6_family = AF_INET6;
        in6->sin6_port = htons((uint16_t)port);
        in6->sin6_flowinfo = htonl(flow);
        in6->sin6_scope_id = scope;
        return sizeof *in6;
    }
    return 0;
}

/* A path, or a name that begins with a zero byte: an abstract one, which ends with its length (unix(7)). */
static inline int ek_unix_address(const char *path, size_t path_length, struct sockaddr_storage *address)
{
    struct sockaddr_un *un = (struct sockaddr_un *)address;
    if (path_length > sizeof un->sun_path - 1)
        return 0;
    memset(un, 0, sizeof *un);
    un->sun_family = AF_UNIX;
    memcpy(un->sun_path, path, path_length);
    return (int)(offsetof(struct sockaddr_un, sun_path) + path_length + (path[0] != 0));
}

/* The port of a TCP socket's address; 0: it is a unix socket's. */
static inline uint16_t ek_port(const struct sockaddr_storage *address)
{
    return address->ss_family == AF_UNIX ? 0 : ntohs(((const struct sockaddr_in *)address)->sin_port);
}

/* Whether two addresses of TCP sockets are the same end. */
static inline int ek_same_end(const struct sockaddr_storage *left, const struct sockaddr_storage *right)
{
    const struct sockaddr_in *in = (const struct sockaddr_in *)left, *other = (const struct sockaddr_in *)right;
    if (left->ss_family != right->ss_family || in->sin_port != other->sin_port)
        return 0;
    if (left->ss_family == AF_INET)
        return in->sin_addr.s_addr == other->sin_addr.s_addr;
    return memcmp(&((const struct sockaddr_in6 *)left)->sin6_addr, &((const struct sockaddr_in6 *)right)->sin6_addr,
                  sizeof(struct in6_addr)) == 0;
}

static inline int EK_REAL(eventfd)(void)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

static inline int EK_REAL(eventfd_add)(int fd)
{
    uint64_t one = 1;
    ssize_t count;
    EK_RETRY(count, write(fd, &one, sizeof one));
    return count < 0 ? -errno : 0; /* EAGAIN: the counter is full, so the reader is awake anyway */
}

static inline int EK_REAL(eventfd_drain)(int fd)
{
    uint64_t value;
    ssize_t count;
    EK_RETRY(count, read(fd, &value, sizeof value));
    return count < 0 ? -errno : 0;
}

static inline int64_t ek_clock(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline int64_t EK_REAL(now_ns)(void) { return ek_clock(CLOCK_MONOTONIC); }

/* The kernel's last tick: a fifth of the price, up to EK_TICK_NS behind. Good for deadlines in seconds. */
#define EK_TICK_NS 10000000 /* CONFIG_HZ=100, the longest tick in use */
static inline int64_t EK_REAL(tick_ns)(void) { return ek_clock(CLOCK_MONOTONIC_COARSE); }

static inline int64_t EK_REAL(wall_seconds)(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    return (int64_t)now.tv_sec;
}

#if EPOLLKIT_DEBUG
#include "_operations.h"
#endif
#endif

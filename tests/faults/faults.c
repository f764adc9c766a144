/* What libc and the kernel do too seldom, loaded before them (LD_PRELOAD). Does nothing until it is told to.
 *
 *   faults_close(n, error)     the nth close(2) from here on closes, and then says that it failed. strace can't do that:
 *                              what it makes fail does not happen, but Linux has freed the descriptor all the same
 *   faults_getaddrinfo(n, code)        the nth look-up in another thread than this one fails
 *   faults_pthread_create(n, error)    the nth thread can't be made
 *   faults_memory(n, count)    so many allocations of this thread fail, from the nth from here on
 *   faults_short(seed)         reads and writes move less than they could, or nothing
 *
 * A read that is shorter than what is there is followed by a new edge, as if the rest had come later; so is a write that
 * is shorter than the room. A kernel that stops in the middle without one (TCP does not) would be another one.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST_FDS 4096
#define MOST_PARTS 1024

static struct {
    int epoll_fd;
    struct epoll_event event;
} watched[MOST_FDS]; /* epoll_fd 0: not watched */

static long close_at, look_up_at, thread_at, memory_at, fired;
static int close_errno, look_up_code, thread_errno;
static long memory_left;
static pthread_t caller; /* of faults_memory, faults_getaddrinfo */
static uint64_t random_state; /* 0: nothing is cut short */

static int (*real_close)(int);
static int (*real_getaddrinfo)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
static int (*real_pthread_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
static int (*real_epoll_ctl)(int, int, int, struct epoll_event *);
static int (*real_accept4)(int, struct sockaddr *, socklen_t *, int);
static ssize_t (*real_recv)(int, void *, size_t, int);
static ssize_t (*real_send)(int, const void *, size_t, int);
static ssize_t (*real_sendmsg)(int, const struct msghdr *, int);
static ssize_t (*real_sendfile)(int, int, off_t *, size_t);
static void *(*real_mmap)(void *, size_t, int, int, int, off_t);
static void *(*real_mremap)(void *, size_t, size_t, int, ...);

__attribute__((constructor)) static void find(void)
{
    real_close = dlsym(RTLD_NEXT, "close");
    real_getaddrinfo = dlsym(RTLD_NEXT, "getaddrinfo");
    real_pthread_create = dlsym(RTLD_NEXT, "pthread_create");
    real_epoll_ctl = dlsym(RTLD_NEXT, "epoll_ctl");
    real_accept4 = dlsym(RTLD_NEXT, "accept4");
    real_recv = dlsym(RTLD_NEXT, "recv");
    real_send = dlsym(RTLD_NEXT, "send");
    real_sendmsg = dlsym(RTLD_NEXT, "sendmsg");
    real_sendfile = dlsym(RTLD_NEXT, "sendfile");
    real_mmap = dlsym(RTLD_NEXT, "mmap");
    real_mremap = dlsym(RTLD_NEXT, "mremap");
}

void faults_close(long n, int error)
{
    close_at = n;
    close_errno = error;
    fired = 0;
}

void faults_getaddrinfo(long n, int code)
{
    look_up_at = n;
    look_up_code = code;
    caller = pthread_self();
    fired = 0;
}

void faults_pthread_create(long n, int error)
{
    thread_at = n;
    thread_errno = error;
    fired = 0;
}

void faults_memory(long n, long count)
{
    memory_at = n;
    memory_left = count;
    caller = pthread_self();
    fired = 0;
}

void faults_short(long seed)
{
    random_state = (uint64_t)seed * 2654435769u + 1;
    fired = 0;
}

/* How often it has happened, and no more from here on. */
long faults_fired(void)
{
    close_at = look_up_at = thread_at = memory_at = 0;
    random_state = 0;
    return fired;
}

/* -- descriptors --------------------------------------------------------------------------------------------------- */

int close(int fd)
{
    int result = real_close(fd);
    if (fd >= 0 && fd < MOST_FDS)
        watched[fd].epoll_fd = 0;
    if (close_at > 0 && --close_at == 0) {
        fired++;
        errno = close_errno;
        return -1;
    }
    return result;
}

int epoll_ctl(int epoll_fd, int operation, int fd, struct epoll_event *event)
{
    int result = real_epoll_ctl(epoll_fd, operation, fd, event);
    if (result == 0 && fd >= 0 && fd < MOST_FDS) {
        watched[fd].epoll_fd = operation == EPOLL_CTL_DEL ? 0 : epoll_fd;
        if (operation != EPOLL_CTL_DEL)
            watched[fd].event = *event;
    }
    return result;
}

/* -- names and threads --------------------------------------------------------------------------------------------- */

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
    if (look_up_at > 0 && !pthread_equal(caller, pthread_self()) && --look_up_at == 0) {
        fired++;
        return look_up_code;
    }
    return real_getaddrinfo(node, service, hints, found);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
    if (thread_at > 0 && --thread_at == 0) {
        fired++;
        return thread_errno;
    }
    return real_pthread_create(thread, attributes, start, argument);
}

/* -- memory -------------------------------------------------------------------------------------------------------- */

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

static int no_memory(void)
{
    if (memory_at == 0 || !pthread_equal(caller, pthread_self()))
        return 0;
    if (memory_at > 1) {
        memory_at--;
        return 0;
    }
    if (--memory_left == 0)
        memory_at = 0;
    fired++;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size) { return no_memory() ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size) { return no_memory() ? NULL : __libc_calloc(count, size); }
void *realloc(void *block, size_t size) { return no_memory() ? NULL : __libc_realloc(block, size); }
void *aligned_alloc(size_t alignment, size_t size) { return no_memory() ? NULL : __libc_memalign(alignment, size); }

void *mmap(void *address, size_t size, int access, int flags, int fd, off_t offset)
{
    return no_memory() ? MAP_FAILED : real_mmap(address, size, access, flags, fd, offset);
}

void *mremap(void *address, size_t size, size_t grown, int flags, ...)
{
    return no_memory() ? MAP_FAILED : real_mremap(address, size, grown, flags);
}

/* -- short reads and writes ---------------------------------------------------------------------------------------- */

static uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state >> 8;
}

/* Of so many bytes so many; 0: EAGAIN. What is not in an epoll set as edge-triggered is left alone. */
static size_t cut(int fd, size_t length)
{
    uint64_t choice;
    if (random_state == 0 || fd < 0 || fd >= MOST_FDS || watched[fd].epoll_fd == 0 || length == 0 ||
        !(watched[fd].event.events & EPOLLET) || watched[fd].event.events & EPOLLONESHOT)
        return length;
    choice = next_random() % 8;
    if (choice >= 5)
        return length;
    fired++;
    if (choice == 0)
        return 0;
    return 1 + next_random() % (length < 5000 && choice < 3 ? length : choice < 3 ? 5000 : length);
}

/* The rest becomes ready now. */
static void edge(int fd)
{
    int error = errno;
    real_epoll_ctl(watched[fd].epoll_fd, EPOLL_CTL_MOD, fd, &watched[fd].event);
    errno = error;
}

static ssize_t again(int fd)
{
    edge(fd);
    errno = EAGAIN;
    return -1;
}

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    if (random_state != 0 && next_random() % 4 == 0) { /* a listener is level-triggered */
        fired++;
        errno = EAGAIN;
        return -1;
    }
    return real_accept4(fd, address, length, flags);
}

ssize_t recv(int fd, void *buffer, size_t room, int flags)
{
    size_t most = flags & MSG_PEEK ? room : cut(fd, room);
    ssize_t count;
    if (most == 0 && room > 0)
        return again(fd);
    count = real_recv(fd, buffer, most, flags);
    if (count > 0 && (size_t)count == most && most < room)
        edge(fd);
    return count;
}

ssize_t send(int fd, const void *data, size_t length, int flags)
{
    size_t most = cut(fd, length);
    ssize_t count;
    if (most == 0 && length > 0)
        return again(fd);
    count = real_send(fd, data, most, flags);
    if (count > 0 && (size_t)count < length)
        edge(fd);
    return count;
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct iovec parts[MOST_PARTS];
    struct msghdr shorter = *message;
    size_t length = 0, most, left, i;
    ssize_t count;
    for (i = 0; i < message->msg_iovlen; i++)
        length += message->msg_iov[i].iov_len;
    most = cut(fd, length);
    if (most == 0 && length > 0)
        return again(fd);
    for (i = 0, left = most; i < message->msg_iovlen && i < MOST_PARTS && left > 0; i++) {
        parts[i] = message->msg_iov[i];
        if (parts[i].iov_len > left)
            parts[i].iov_len = left;
        left -= parts[i].iov_len;
    }
    shorter.msg_iov = parts;
    shorter.msg_iovlen = i;
    count = real_sendmsg(fd, &shorter, flags);
    if (count > 0 && (size_t)count < length)
        edge(fd);
    return count;
}

ssize_t sendfile(int fd, int file, off_t *offset, size_t length)
{
    size_t most = cut(fd, length);
    ssize_t count;
    if (most == 0 && length > 0)
        return again(fd);
    count = real_sendfile(fd, file, offset, most);
    if (count > 0 && (size_t)count < length)
        edge(fd);
    return count;
}

/* The same functions under the names that 64-bit offsets have. */
void *mmap64(void *address, size_t size, int access, int flags, int fd, off_t offset)
{
    return mmap(address, size, access, flags, fd, offset);
}

ssize_t sendfile64(int fd, int file, off_t *offset, size_t length) { return sendfile(fd, file, offset, length); }

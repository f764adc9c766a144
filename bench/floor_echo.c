/* The floor of a stream: what any echo server on epoll must do for a message, and nothing else.
 *
 *     floor_echo [ADDRESSES]
 *
 * epoll_wait, recv, send. What the socket does not take is kept, and nothing more is read until it is gone. It prints
 * its port and serves 127.0.0.1, or so many addresses from there on, until it is killed.
 *
 * Several addresses are for clients that connect, ask once and close: each connection leaves a port in TIME_WAIT for a
 * while, and for each address there are only so many. No limit, no deadline.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BACKLOG = 2048, BATCH_EVENTS = 512, MOST_FDS = 1 << 20, READ_BYTES = 64 * 1024, MOST_ADDRESSES = 64 };

/* What a socket did not take; made when it first happens, kept for whoever gets the fd next. */
struct Rest {
    size_t start, end;
    char bytes[READ_BYTES];
};

static struct Rest *rests[MOST_FDS];
static unsigned char watched[MOST_FDS];         /* whether the fd is watched for EPOLLOUT, too */
static char input[READ_BYTES];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* Keep these bytes, and be told when there is room for them. */
static void keep(int epoll, int fd, const char *bytes, size_t length)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.fd = fd};

    if (rests[fd] == NULL && (rests[fd] = calloc(1, sizeof *rests[fd])) == NULL)
        die("calloc");
    memcpy(rests[fd]->bytes, bytes, length);
    rests[fd]->start = 0;
    rests[fd]->end = length;
    if (!watched[fd] && epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event) < 0)
        die("epoll_ctl");
    watched[fd] = 1;
}

/* Send what was kept: 1 once there is none of it, 0 if there is, -1 if the connection is broken. */
static int send_rest(int fd)
{
    struct Rest *rest = rests[fd];

    while (rest != NULL && rest->start < rest->end) {
        ssize_t sent = send(fd, rest->bytes + rest->start, rest->end - rest->start, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN)
            return 0;
        if (sent < 0)
            return -1;
        rest->start += (size_t)sent;
    }
    return 1;
}

static void drop(int fd)
{
    if (rests[fd] != NULL)
        rests[fd]->start = rests[fd]->end = 0;
    close(fd);
}

/* Edge-triggered: a short read means that the socket is empty, unless its end is already reported. */
static void serve(int epoll, int fd, unsigned int events)
{
    int free = send_rest(fd);

    while (free > 0) {
        ssize_t sent, got = recv(fd, input, sizeof input, 0);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN)
            return;
        if (got <= 0)
            break;
        sent = send(fd, input, (size_t)got, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN)
            break;
        if (sent < got) {
            sent = sent < 0 ? 0 : sent;
            keep(epoll, fd, input + sent, (size_t)(got - sent));
            free = send_rest(fd);           /* room that came before it was watched for raises no edge */
        } else if (got < (ssize_t)sizeof input && !(events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)))
            return;
    }
    if (free != 0)
        drop(fd);
}

static void accept_all(int epoll, int listener)
{
    int fd;

    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.fd = fd};
        if (fd >= MOST_FDS || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
            close(fd);
            continue;
        }
        watched[fd] = 0;
    }
}

/* Listen on 127.0.0.1 + number; port 0 lets the kernel choose. Returns the fd. */
static int listen_on(int number, unsigned short *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(*port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK + (unsigned int)number)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;

    /* Accepted sockets inherit TCP_NODELAY from the listener: no call per connection. */
    if (listener < 0 || setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0
            || bind(listener, (struct sockaddr *)&address, length) < 0
            || listen(listener, BACKLOG) < 0 || getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        die("listen");
    *port = ntohs(address.sin_port);
    return listener;
}

int main(int argc, char **argv)
{
    static struct epoll_event batch[BATCH_EVENTS];
    static unsigned char listens[MOST_FDS];
    int addresses = argc > 1 ? atoi(argv[1]) : 1;
    int epoll = epoll_create1(EPOLL_CLOEXEC), count, i;
    unsigned short port = 0;

    if (epoll < 0)
        die("epoll");
    for (i = 0; i < addresses && i < MOST_ADDRESSES; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = listen_on(i, &port)};
        listens[event.data.fd] = 1;
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event) < 0)
            die("epoll_ctl");
    }
    printf("%d\n", port);
    fflush(stdout);
    for (;;) {
        count = epoll_wait(epoll, batch, BATCH_EVENTS, -1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        for (i = 0; i < count; i++) {
            if (listens[batch[i].data.fd])
                accept_all(epoll, batch[i].data.fd);
            else
                serve(epoll, batch[i].data.fd, batch[i].events);
        }
    }
}

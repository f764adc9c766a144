/* The floor: what any HTTP server on epoll must do for a request, and nothing else.
 *
 *     floor            answers every request, keeps the connection
 *     floor close      answers once, closes the connection
 *
 * epoll_wait, recv, find the blank line, send a constant; all answers of one read in one send. It prints its port and
 * serves 127.0.0.1 until it is killed.
 *
 * Correct for what the benchmark and its test send: heads may come in any pieces, pipelined or not. Not a web server:
 * no body, no limit, no deadline, no back-pressure (a peer whose socket is full is closed).
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

enum { BACKLOG = 2048, BATCH_EVENTS = 512, MOST_FDS = 1 << 20, READ_BYTES = 64 * 1024, ANSWERS_PER_SEND = 64 };

/* What the last read of a connection left of a line. */
enum Line { AT_ITS_START = 0, CARRIAGE_RETURN_ONLY, MORE };

static const char KEEP[] = "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, World!";
static const char CLOSE[] = "HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\nHello, World!";

static unsigned char unfinished[MOST_FDS];      /* an enum Line for each fd */
static char input[READ_BYTES];
static char answers[ANSWERS_PER_SEND * sizeof KEEP];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* Count the blank lines that end in these bytes. A blank line is a request's end, whatever stands before it. */
static int count_requests(const char *bytes, size_t length, unsigned char *line)
{
    const char *start = bytes, *end = bytes + length, *newline;
    int requests = 0;

    while (start < end && (newline = memchr(start, '\n', (size_t)(end - start))) != NULL) {
        size_t before = (size_t)(newline - start);
        if ((*line == CARRIAGE_RETURN_ONLY && before == 0)
                || (*line == AT_ITS_START && before == 1 && *start == '\r'))
            requests++;
        *line = AT_ITS_START;
        start = newline + 1;
    }
    if (start < end)
        *line = *line == AT_ITS_START && end - start == 1 && *start == '\r' ? CARRIAGE_RETURN_ONLY : MORE;
    return requests;
}

static int send_answers(int fd, int count)
{
    const size_t one = sizeof KEEP - 1;

    while (count > 0) {
        int now = count < ANSWERS_PER_SEND ? count : ANSWERS_PER_SEND;
        size_t length = (size_t)now * one;
        if (send(fd, answers, length, MSG_NOSIGNAL) != (ssize_t)length)
            return -1;
        count -= now;
    }
    return 0;
}

/* Edge-triggered: a short read means that the socket is empty, unless its end is already reported. */
static void serve(int fd, unsigned int events, int closing)
{
    for (;;) {
        ssize_t got = recv(fd, input, sizeof input, 0);
        int requests;

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN)
            return;
        if (got <= 0)
            break;
        requests = count_requests(input, (size_t)got, &unfinished[fd]);
        if (requests && closing) {
            ssize_t sent = send(fd, CLOSE, sizeof CLOSE - 1, MSG_NOSIGNAL);
            (void)sent;         /* closed in any case */
            break;
        }
        if (send_answers(fd, requests) < 0)
            break;
        if (got < (ssize_t)sizeof input && !(events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)))
            return;
    }
    close(fd);
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
        unfinished[fd] = AT_ITS_START;
    }
}

static int listen_anywhere(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;

    /* Accepted sockets inherit TCP_NODELAY from the listener: no call per connection. */
    if (listener < 0 || setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0
            || bind(listener, (struct sockaddr *)&address, length) < 0
            || listen(listener, BACKLOG) < 0 || getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        die("listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(int argc, char **argv)
{
    static struct epoll_event batch[BATCH_EVENTS];
    int closing = argc > 1 && strcmp(argv[1], "close") == 0;
    int epoll = epoll_create1(EPOLL_CLOEXEC), listener, count, i;
    struct epoll_event event = {.events = EPOLLIN};

    for (i = 0; i < ANSWERS_PER_SEND; i++)
        memcpy(answers + (size_t)i * (sizeof KEEP - 1), KEEP, sizeof KEEP - 1);
    listener = event.data.fd = listen_anywhere();
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) < 0)
        die("epoll");
    for (;;) {
        count = epoll_wait(epoll, batch, BATCH_EVENTS, -1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        for (i = 0; i < count; i++) {
            if (batch[i].data.fd == listener)
                accept_all(epoll, listener);
            else
                serve(batch[i].data.fd, batch[i].events, closing);
        }
    }
}

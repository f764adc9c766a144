/* The floor for one request per connection, with deferred accept: accept, recv, find the blank line, send, close.
 *
 * The kernel hands over a connection only when its request is there, so nobody has to wait for one connection in
 * particular, and no epoll is needed. It prints its port and serves 127.0.0.1 until it is killed.
 *
 * Correct for what the benchmark and its test send; a peer that stops in the middle of its head holds up everybody
 * until PATIENCE_SECONDS are over. Not a web server.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { BACKLOG = 2048, DEFER_SECONDS = 10, PATIENCE_SECONDS = 2, HEAD_BYTES = 64 * 1024 };

static const char ANSWER[] = "HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\nHello, World!";

static char head[HEAD_BYTES];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* Read one head in as many pieces as it takes, answer it, close. */
static void serve(int fd)
{
    size_t length = 0;
    ssize_t got;

    while (length < sizeof head && (got = recv(fd, head + length, sizeof head - length, 0)) > 0) {
        size_t from = length > 3 ? length - 3 : 0;
        length += (size_t)got;
        if (memmem(head + from, length - from, "\r\n\r\n", 4) != NULL) {
            ssize_t sent = send(fd, ANSWER, sizeof ANSWER - 1, MSG_NOSIGNAL);
            (void)sent;         /* closed in any case */
            break;
        }
    }
    close(fd);
}

static int listen_anywhere(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_sec = PATIENCE_SECONDS};
    socklen_t length = sizeof address;
    int seconds = DEFER_SECONDS, on = 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    /* Accepted sockets inherit patience and TCP_NODELAY from the listener: no call per connection. */
    if (listener < 0 || setsockopt(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds) < 0
            || setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) < 0
            || setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0
            || bind(listener, (struct sockaddr *)&address, length) < 0 || listen(listener, BACKLOG) < 0
            || getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        die("listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(void)
{
    int listener = listen_anywhere();

    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0)
            serve(fd);
        else if (errno != EINTR && errno != ECONNABORTED && errno != EAGAIN)
            die("accept");
    }
}

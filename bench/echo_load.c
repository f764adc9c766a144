/* The load of an echo server: connections that send a message, wait until it is back, and send the next.
 *
 *     echo_load PORT CONNECTIONS BYTES SECONDS
 *
 * Every byte is compared. When the time is over, what is under way is still waited for, so the server has sent exactly
 * what is counted. Prints one line: {"messages": 1000, "seconds": 1.000000}. Exit status 1 with a sentence on stderr if
 * an echo is not what was sent, a connection ends, or nothing comes for PATIENCE_MS.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH_EVENTS = 512, READ_BYTES = 64 * 1024, SHIFTS = 4096, PATIENCE_MS = 20000 };

/* One connection. A message is `bytes` of the pattern, from a place that changes from message to message. */
struct Client {
    int fd;
    int asks;                   /* a message is under way */
    size_t number, sent, got;   /* which one it is; its bytes that are sent, and those that are back */
};

static char *pattern;           /* message_bytes + SHIFTS of noise */
static size_t message_bytes;
static char input[READ_BYTES];
static unsigned long long messages;
static int under_way, over;

static void fail(const char *format, ...)
{
    va_list words;

    va_start(words, format);
    vfprintf(stderr, format, words);
    va_end(words);
    fputc('\n', stderr);
    exit(1);
}

static double now_seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void make_pattern(void)
{
    uint64_t state = 0x9E3779B97F4A7C15u;
    size_t i;

    if ((pattern = malloc(message_bytes + SHIFTS)) == NULL)
        fail("no memory for messages of %zu bytes", message_bytes);
    for (i = 0; i < message_bytes + SHIFTS; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        pattern[i] = (char)(state >> 56);
    }
}

static const char *message_of(const struct Client *client)
{
    return pattern + ((size_t)client->fd * 131 + client->number * 17) % SHIFTS;
}

/* Begin a message, unless the time is over. */
static void begin(struct Client *client)
{
    client->asks = !over;
    client->number++;
    client->sent = client->got = 0;
    under_way += client->asks;
}

/* Send what the socket takes. */
static void ask(struct Client *client)
{
    while (client->asks && client->sent < message_bytes) {
        ssize_t sent = send(client->fd, message_of(client) + client->sent, message_bytes - client->sent,
                            MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EAGAIN)
            return;
        if (sent < 0)
            fail("connection %d: %s", client->fd, strerror(errno));
        client->sent += (size_t)sent;
    }
}

/* Read what there is, or until the message is complete, as there can be nothing behind it. Returns whether it is. */
static int hear(struct Client *client)
{
    for (;;) {
        ssize_t got = recv(client->fd, input, sizeof input, MSG_DONTWAIT);

        if (got < 0 && errno == EAGAIN)
            return 0;
        if (got <= 0)
            fail("connection %d: %s", client->fd, got < 0 ? strerror(errno) : "the server closed it");
        if ((size_t)got > client->sent - client->got
                || memcmp(input, message_of(client) + client->got, (size_t)got) != 0)
            fail("connection %d: the echo of message %zu is not what was sent", client->fd, client->number);
        client->got += (size_t)got;
        if (client->got == message_bytes)
            return 1;
    }
}

static void serve(struct Client *client)
{
    ask(client);
    if (hear(client)) {
        messages++;
        under_way--;
        begin(client);
        ask(client);
    }
}

static void open_client(struct Client *client, int epoll, unsigned short port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = client};
    int on = 1;

    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client->fd < 0 || connect(client->fd, (struct sockaddr *)&address, sizeof address) < 0
            || setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0
            || epoll_ctl(epoll, EPOLL_CTL_ADD, client->fd, &event) < 0)
        fail("connect: %s", strerror(errno));
}

int main(int argc, char **argv)
{
    static struct epoll_event batch[BATCH_EVENTS];
    int connections = argc == 5 ? atoi(argv[2]) : 0, epoll = epoll_create1(EPOLL_CLOEXEC), count, i;
    double seconds = argc == 5 ? atof(argv[4]) : 0, start, now;
    struct Client *clients = calloc((size_t)connections + 1, sizeof *clients);

    message_bytes = argc == 5 ? (size_t)atol(argv[3]) : 0;
    if (connections < 1 || message_bytes < 1 || epoll < 0 || clients == NULL)
        fail("echo_load PORT CONNECTIONS BYTES SECONDS");
    make_pattern();
    for (i = 0; i < connections; i++)
        open_client(&clients[i], epoll, (unsigned short)atoi(argv[1]));
    start = now = now_seconds();
    for (i = 0; i < connections; i++) {
        begin(&clients[i]);
        ask(&clients[i]);
    }
    while (under_way > 0) {
        count = epoll_wait(epoll, batch, BATCH_EVENTS, PATIENCE_MS);
        if (count == 0 || (count < 0 && errno != EINTR))
            fail("%d messages were not answered", under_way);
        now = now_seconds();
        over = now - start >= seconds;
        for (i = 0; i < count; i++)
            serve(batch[i].data.ptr);
    }
    printf("{\"messages\": %llu, \"seconds\": %.6f}\n", messages, now - start);
    return 0;
}

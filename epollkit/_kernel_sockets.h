/* Of the fake kernel (_kernel.h): sockets, TCP's and unix ones, and the processes that hold files. */
#ifndef EPOLLKIT_KERNEL_SOCKETS_H
#define EPOLLKIT_KERNEL_SOCKETS_H

#include "_kernel_files.h"

/* -- TCP ----------------------------------------------------------------------------------------------------------- */

static void fk_part(struct fk_file *file)
{
    if (file->peer != NULL)
        file->peer->peer = NULL;
    file->peer = NULL;
}

static void fk_tcp_done(struct fk_file *file)
{
    file->state = FK_CLOSED;
    file->shut = FK_BOTH;
    fk_part(file);
    fk_wake(file, FK_ANYTHING);
}

static void fk_tcp_fail(struct fk_file *file, int error)
{
    file->error = error;
    fk_tcp_done(file);
    fk_wake(file, EPOLLERR);
}

static void fk_tcp_reset(struct fk_file *file) /* an RST arrives: tcp_reset() */
{
    if (file->state != FK_CLOSED)
        fk_tcp_fail(file, file->state == FK_CONNECTING ? ECONNREFUSED : file->fin_received ? EPIPE : ECONNRESET);
}

static void fk_tcp_send_fin(struct fk_file *file)
{
    struct fk_file *peer = file->peer;
    file->fin_sent = 1;
    if (peer != NULL) {
        peer->fin_received = 1;
        peer->shut |= FK_RECEIVE;
        if (peer->fin_sent)
            fk_tcp_done(peer);
        else
            fk_wake(peer, FK_ANYTHING);
    }
    if (file->fin_received)
        fk_tcp_done(file);
}

static void fk_drop_queue(struct fk_file *listener);

static void fk_tcp_disconnect(struct fk_file *file) /* tcp_disconnect() */
{
    if (file->state == FK_LISTENING)
        fk_drop_queue(file);
    if (file->state == FK_CONNECTING)
        file->error = ECONNRESET;
    file->state = FK_CLOSED;
    file->shut = file->fin_sent = file->fin_received = 0;
    file->used = file->charged = 0;
    fk_wake(file, EPOLLERR);
}

static int fk_tcp_shutdown(struct fk_file *file, unsigned char how) /* inet_shutdown() */
{
    int result = file->state == FK_CLOSED ? -ENOTCONN : 0;
    if (file->phase == FK_ASKED)
        file->phase = file->state == FK_CONNECTED ? FK_TOLD : FK_GIVEN_UP;
    if (file->state == FK_CONNECTING || (file->state == FK_LISTENING && how & FK_RECEIVE)) {
        fk_tcp_disconnect(file);
        file->phase = FK_UNCONNECTED;
    } else if (file->state != FK_LISTENING) {
        file->shut |= how;
        if (how & FK_SEND && file->state == FK_CONNECTED && !file->fin_sent)
            fk_tcp_send_fin(file);
    }
    fk_wake(file, FK_ANYTHING);
    return result;
}

static ssize_t fk_tcp_send(struct fk_file *file, const struct iovec *parts, size_t count)
{
    size_t total = fk_total(parts, count);
    struct fk_file *peer = file->peer;
    ssize_t sent;
    if (file->state == FK_CONNECTING && !file->error)
        return -EAGAIN;
    if (file->state != FK_CONNECTED || file->error || file->shut & FK_SEND)
        return file->error ? -fk_take_error(file) : -EPIPE;
    if (total == 0)
        return 0;
    if (peer == NULL || (peer->fin_sent && peer->shut & FK_RECEIVE)) { /* nobody will read it: TCP_ABORT_ON_DATA */
        if (peer != NULL)
            fk_tcp_reset(peer);
        fk_tcp_reset(file);
        return (ssize_t)total;
    }
    sent = fk_store_parts(peer, parts, total);
    file->full |= (size_t)sent < total;
    if (sent > 0)
        fk_wake(peer, FK_DATA_CAME);
    return sent ? sent : -EAGAIN;
}

static void fk_tcp_close(struct fk_file *file) /* __tcp_close() */
{
    struct fk_file *peer = file->peer;
    if (file->state == FK_LISTENING)
        fk_drop_queue(file);
    if (file->state != FK_CONNECTED)
        return;
    if (file->used || file->linger) {
        fk_part(file);
        if (peer != NULL)
            fk_tcp_reset(peer);
        return;
    }
    if (!file->fin_sent)
        fk_tcp_send_fin(file);
    fk_part(file);
}

/* -- unix sockets -------------------------------------------------------------------------------------------------- */

static int fk_unix_shutdown(struct fk_file *file, unsigned char how)
{
    file->shut |= how;
    fk_wake(file, FK_ANYTHING);
    if (file->peer != NULL) {
        file->peer->shut |= (how & FK_RECEIVE ? FK_SEND : 0) | (how & FK_SEND ? FK_RECEIVE : 0);
        fk_wake(file->peer, FK_ANYTHING);
    }
    return 0;
}

static ssize_t fk_unix_send(struct fk_file *file, const struct iovec *parts, size_t count)
{
    size_t total = fk_total(parts, count);
    uint32_t sent;
    if (file->state != FK_CONNECTED)
        return -ENOTCONN;
    if (file->shut & FK_SEND || file->peer == NULL || (total > 0 && file->peer->shut & FK_RECEIVE))
        return -EPIPE;
    sent = fk_store_parts(file->peer, parts, total);
    if (sent > 0) {
        fk_store_piece(file->peer, sent);
        fk_wake(file->peer, FK_DATA_CAME);
    }
    return sent || total == 0 ? (ssize_t)sent : -EAGAIN;
}

static void fk_unix_close(struct fk_file *file) /* unix_release_sock() */
{
    struct fk_file *peer = file->peer;
    if (peer != NULL) {
        peer->shut = FK_BOTH;
        if (file->used || file->references == 0)
            peer->error = ECONNRESET;
        fk_part(file);
        fk_wake(peer, FK_ANYTHING);
    }
    fk_drop_queue(file);
}

/* -- both ---------------------------------------------------------------------------------------------------------- */

static void fk_unqueue(struct fk_file *listener, struct fk_file *child)
{
    fk_unlink(&child->queued);
    listener->waiting--;
}

static void fk_drop_queue(struct fk_file *listener)
{
    while (!fk_empty(&listener->queue)) {
        struct fk_file *child = FK_OF(listener->queue.next, struct fk_file, queued);
        fk_unqueue(listener, child);
        child->linger = 1; /* inet_child_forget() */
        if (child->kind == FK_TCP)
            fk_tcp_close(child);
        else
            fk_unix_close(child);
        fk_free(child);
    }
}

static inline struct fk_file *fk_get_socket(const struct fk_process *process, int fd, int *error)
{
    struct fk_file *file = fk_get(process, fd);
    *error = file == NULL ? -EBADF : file->kind == FK_TCP || file->kind == FK_UNIX ? 0 : -ENOTSOCK;
    return file;
}

static void fk_establish(struct fk_file *client, struct fk_file *listener)
{
    struct fk_file *child = fk_new(client->kind);
    child->state = client->state = FK_CONNECTED;
    child->phase = FK_TOLD;
    child->peer = client;
    client->peer = child;
    child->own = client->far;
    child->own_length = client->far_length;
    child->far = client->own;
    child->far_length = client->own_length;
    fk_append(&listener->queue, &child->queued);
    listener->waiting++;
    if (client->kind == FK_TCP) {
        child->shut = listener->shut; /* it is a copy (sk_clone_lock()): of one that was shut down, and listens again */
        child->linger = listener->linger;
        fk_wake(client, FK_ANYTHING);
    }
    fk_wake(listener, FK_DATA_CAME);
}

static inline int fk_has_room(const struct fk_file *listener) { return listener->waiting <= listener->backlog; }

/* A SYN arrives, or arrives again. Where the queue is full it is dropped, and the client goes on waiting. */
static void fk_tcp_arrive(struct fk_file *client, const struct fk_name *name)
{
    struct fk_file *listener = name != NULL ? name->bound : NULL;
    if (listener == NULL || listener->state != FK_LISTENING)
        fk_tcp_reset(client);
    else if (fk_has_room(listener))
        fk_establish(client, listener);
}

static int fk_tcp_connect(struct fk_file *file, const struct sockaddr_storage *address, int length)
{
    struct fk_name *name = fk_name(address, length, 0);
    int error;
    if (address->ss_family == AF_UNIX)
        return -EAFNOSUPPORT;
    if (file->phase == FK_TOLD || (file->phase == FK_UNCONNECTED && file->state != FK_CLOSED))
        return -EISCONN;
    if (file->phase == FK_GIVEN_UP)
        return -EINVAL;
    if (file->phase == FK_ASKED) {
        if (file->state == FK_CONNECTING)
            return -EALREADY;
        if (file->state == FK_CONNECTED) {
            file->phase = FK_TOLD;
            return 0;
        }
        error = fk_take_error(file);
        file->phase = FK_UNCONNECTED;
        fk_tcp_disconnect(file);
        return error ? -error : -ECONNABORTED;
    }
    file->phase = FK_ASKED;
    file->state = FK_CONNECTING;
    memcpy(&file->far, address, (size_t)length);
    file->far_length = length;
    if (file->own_length == 0) {
        file->own = file->far;
        file->own_length = length;
        ((struct sockaddr_in *)&file->own)->sin_port = 0;
    }
    fk_give_port(&file->own);
    if (name == NULL || name->route == FK_NOW)
        fk_tcp_arrive(file, name);
    return -EINPROGRESS;
}

static int fk_unix_connect(struct fk_file *file, const struct sockaddr_storage *address, int length)
{
    struct fk_name *name = fk_name(address, length, 0);
    struct fk_file *listener = name != NULL ? name->bound : NULL;
    if (address->ss_family != AF_UNIX)
        return -EINVAL;
    if (listener == NULL && (name == NULL || !name->exists) && ((const struct sockaddr_un *)address)->sun_path[0])
        return -ENOENT;
    if (listener == NULL || listener->kind != FK_UNIX || listener->state != FK_LISTENING ||
        listener->shut & FK_RECEIVE)
        return -ECONNREFUSED;
    if (!fk_has_room(listener))
        return -EAGAIN;
    if (file->state != FK_CLOSED)
        return file->state == FK_CONNECTED ? -EISCONN : -EINVAL;
    memcpy(&file->far, address, (size_t)length);
    file->far_length = length;
    file->phase = FK_TOLD;
    fk_establish(file, listener);
    return 0;
}

static int fk_connect(struct fk_process *process, int fd, const struct sockaddr_storage *address, int length)
{
    int error;
    struct fk_file *file = fk_get_socket(process, fd, &error);
    if (error)
        return error;
    return file->kind == FK_TCP ? fk_tcp_connect(file, address, length) : fk_unix_connect(file, address, length);
}

static int fk_bind(struct fk_process *process, int fd, const struct sockaddr_storage *address, int length)
{
    int error;
    struct fk_file *file = fk_get_socket(process, fd, &error);
    struct fk_name *name;
    if (error)
        return error;
    if ((address->ss_family == AF_UNIX) != (file->kind == FK_UNIX) || file->own_length)
        return -EINVAL;
    memcpy(&file->own, address, (size_t)length);
    file->own_length = length;
    if (file->kind == FK_TCP && ek_port(address) == 0) /* IP_BIND_ADDRESS_NO_PORT */
        return 0;
    name = fk_name(address, length, 1);
    if (name->bound != NULL || name->exists) {
        file->own_length = 0;
        return -EADDRINUSE;
    }
    name->bound = file;
    name->exists = 1;
    file->name = name;
    return 0;
}

static int fk_listen(struct fk_process *process, int fd, int backlog)
{
    int error;
    struct fk_file *file = fk_get_socket(process, fd, &error);
    if (error)
        return error;
    if ((file->state != FK_CLOSED && file->state != FK_LISTENING) || file->phase != FK_UNCONNECTED)
        return -EINVAL;
    if (file->name == NULL) {
        if (file->kind == FK_UNIX)
            return -EINVAL;
        if (file->own_length == 0)
            file->own_length = ek_numeric_address("0.0.0.0", 7, 0, 0, 0, &file->own);
        fk_give_port(&file->own);
        file->name = fk_name(&file->own, file->own_length, 1);
        file->name->bound = file;
    }
    file->state = FK_LISTENING;
    file->backlog = backlog;
    return 0;
}

/* -- processes ----------------------------------------------------------------------------------------------------- */

static int fk_lowest(struct fk_process *process)
{
    int fd = FK_FIRST_FD;
    while (fd < process->room && process->table[fd] != NULL)
        fd++;
    return fd < process->limit ? fd : -EMFILE;
}

static void fk_hold(struct fk_process *process, int fd, struct fk_file *file)
{
    int room = process->room;
    if (fd >= room) {
        process->room = fd < 16 ? 16 : fd * 2;
        process->table = fk_grow(process->table, (size_t)process->room * sizeof *process->table);
        memset(process->table + room, 0, (size_t)(process->room - room) * sizeof *process->table);
    }
    process->table[fd] = file;
    process->open++;
    file->references++;
}

static int fk_open(struct fk_process *process, enum fk_kind kind)
{
    int fd = fk_lowest(process);
    if (fd >= 0)
        fk_hold(process, fd, fk_new(kind));
    return fd;
}

static void fk_let_go(struct fk_file *file) /* __fput(): out of every set first */
{
    if (--file->references > 0)
        return;
    FK_EACH (link, &file->watchers)
        fk_forget_item(FK_OF(link, struct fk_item, on_file));
    FK_EACH (link, &file->items)
        fk_forget_item(FK_OF(link, struct fk_item, in_set));
    file->references = 1; /* it was somebody's: not a connection that nobody has accepted */
    if (file->kind == FK_TCP)
        fk_tcp_close(file);
    else if (file->kind == FK_UNIX)
        fk_unix_close(file);
    else if (file->peer != NULL) { /* pipe_release() */
        struct fk_file *other = file->peer;
        other->left = file->used;
        fk_part(file);
        fk_wake(other, FK_ANYTHING);
    }
    fk_unbind(file);
    fk_free(file);
}

static int fk_close(struct fk_process *process, int fd)
{
    struct fk_file *file = fk_get(process, fd);
    if (file == NULL)
        return -EBADF;
    process->table[fd] = NULL;
    process->open--;
    fk_let_go(file);
    return 0;
}

static void fk_exit(struct fk_process *process)
{
    for (int fd = FK_FIRST_FD; fd < process->room && process->open > 0; fd++)
        fk_close(process, fd);
}

static void fk_fork(const struct fk_process *parent, struct fk_process *child)
{
    child->limit = parent->limit;
    for (int fd = FK_FIRST_FD; fd < parent->room; fd++)
        if (parent->table[fd] != NULL)
            fk_hold(child, fd, parent->table[fd]);
}

static int fk_duplicate(struct fk_process *process, int fd)
{
    struct fk_file *file = fk_get(process, fd);
    int copy = file == NULL ? -EBADF : fk_lowest(process);
    if (copy >= 0)
        fk_hold(process, copy, file);
    return copy;
}

static int fk_replace(struct fk_process *process, int from, int to)
{
    struct fk_file *file = fk_get(process, from);
    if (from == to)
        return -EINVAL;
    if (file == NULL || to < FK_FIRST_FD || to >= process->limit)
        return -EBADF;
    fk_close(process, to);
    fk_hold(process, to, file);
    return 0;
}

static int fk_accept(struct fk_process *process, int fd)
{
    int error, accepted = fk_lowest(process);
    struct fk_file *listener = fk_get_socket(process, fd, &error), *child;
    if (listener == NULL || accepted < 0)
        return listener == NULL ? -EBADF : accepted;
    if (error)
        return error;
    if (listener->state != FK_LISTENING)
        return -EINVAL;
    if (fk_empty(&listener->queue))
        return -EAGAIN;
    child = FK_OF(listener->queue.next, struct fk_file, queued);
    fk_unqueue(listener, child);
    fk_hold(process, accepted, child);
    return accepted;
}

#endif

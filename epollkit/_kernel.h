/* In the debug build only, included by _kernel.pyx alone: a kernel in memory, for one thread. What it keeps to and what
 * it leaves out stands there. Here: the operations, and the state as a line of numbers.
 */
#ifndef EPOLLKIT_KERNEL_H
#define EPOLLKIT_KERNEL_H

#include "_kernel_sockets.h"

#define FK_FIRST_NS INT64_C(1000000000000000)
#define FK_FIRST_SECOND 784111777 /* then it is Sun, 06 Nov 1994 08:49:37 GMT, as in RFC 9110 */
#define FK_FIRST_PORT 32768

/* -- reading, writing ---------------------------------------------------------------------------------------------- */

static ssize_t fk_send_parts(struct fk_process *process, int fd, const struct iovec *parts, size_t count)
{
    int error;
    struct fk_file *file = fk_get_socket(process, fd, &error);
    if (error)
        return error;
    return file->kind == FK_TCP ? fk_tcp_send(file, parts, count) : fk_unix_send(file, parts, count);
}

static ssize_t fk_send(struct fk_process *process, int fd, const void *data, size_t length)
{
    struct iovec part = {(void *)data, length};
    return fk_send_parts(process, fd, &part, 1);
}

/* What there is to read: a number of bytes, 0: the end, or -errno, which is thereby read. */
static ssize_t fk_readable(struct fk_file *file)
{
    if (file->kind == FK_TCP ? file->state == FK_LISTENING : file->state != FK_CONNECTED)
        return file->kind == FK_TCP ? -ENOTCONN : -EINVAL;
    if (file->used)
        return file->used;
    if (file->kind == FK_TCP && file->fin_received) /* SOCK_DONE: an end that came hides the error behind it */
        return 0;
    if (file->error)
        return -fk_take_error(file);
    if (file->shut & FK_RECEIVE)
        return 0;
    return file->state == FK_CLOSED ? -ENOTCONN : -EAGAIN;
}

static ssize_t fk_take(struct fk_file *file, void *buffer, size_t room, size_t there)
{
    size_t length = room < there ? room : there;
    memcpy(buffer, file->bytes, length);
    fk_taken(file, (uint32_t)length);
    return (ssize_t)length;
}

static ssize_t fk_recv(struct fk_process *process, int fd, void *buffer, size_t room)
{
    int error;
    struct fk_file *file = fk_get_socket(process, fd, &error);
    ssize_t there = error ? error : fk_readable(file);
    return there > 0 ? fk_take(file, buffer, room, (size_t)there) : there;
}

static ssize_t fk_read(struct fk_process *process, int fd, void *buffer, size_t room)
{
    struct fk_file *file = fk_get(process, fd);
    if (file == NULL)
        return -EBADF;
    if (file->kind == FK_TCP || file->kind == FK_UNIX)
        return fk_recv(process, fd, buffer, room);
    if (file->kind == FK_EVENT) {
        if (room < sizeof file->count)
            return -EINVAL;
        if (file->count == 0)
            return -EAGAIN;
        memcpy(buffer, &file->count, sizeof file->count);
        file->count = 0;
        fk_wake(file, EPOLLOUT);
        return sizeof file->count;
    }
    if (file->kind != FK_PIPE_READ)
        return file->kind == FK_PIPE_WRITE ? -EBADF : -EINVAL;
    if (file->used)
        return fk_take(file, buffer, room, file->used);
    return file->peer == NULL ? 0 : -EAGAIN;
}

static ssize_t fk_write(struct fk_process *process, int fd, const void *data, size_t length)
{
    struct fk_file *file = fk_get(process, fd);
    struct iovec part = {(void *)data, length};
    uint64_t added;
    uint32_t stored;
    if (file == NULL)
        return -EBADF;
    if (file->kind == FK_TCP || file->kind == FK_UNIX)
        return fk_send(process, fd, data, length);
    if (file->kind == FK_EVENT) {
        if (length < sizeof added || (memcpy(&added, data, sizeof added), added == UINT64_MAX))
            return -EINVAL;
        if (UINT64_MAX - file->count <= added)
            return -EAGAIN;
        file->count += added;
        fk_wake(file, EPOLLIN);
        return sizeof added;
    }
    if (file->kind != FK_PIPE_WRITE)
        return file->kind == FK_PIPE_READ ? -EBADF : -EINVAL;
    if (file->peer == NULL)
        return -EPIPE;
    stored = fk_store_parts(file->peer, &part, length);
    if (stored)
        fk_wake(file->peer, FK_IN);
    return stored || length == 0 ? (ssize_t)stored : -EAGAIN;
}

static int fk_pipe(struct fk_process *process, int ends[2])
{
    for (int i = 0; i < 2; i++) {
        ends[i] = fk_open(process, i ? FK_PIPE_WRITE : FK_PIPE_READ);
        if (ends[i] < 0) {
            if (i)
                fk_close(process, ends[0]);
            return ends[i];
        }
    }
    fk_get(process, ends[0])->peer = fk_get(process, ends[1]);
    fk_get(process, ends[1])->peer = fk_get(process, ends[0]);
    return 0;
}

/* Two sockets that are connected to each other, as if one of them had been accepted long ago. */
static int fk_pair(struct fk_process *process, struct fk_process *other, enum fk_kind kind, int ends[2])
{
    struct fk_process *holders[2] = {process, other};
    struct fk_file *files[2];
    struct sockaddr_storage local;
    for (int i = 0; i < 2; i++) {
        ends[i] = fk_open(holders[i], kind);
        if (ends[i] < 0) {
            if (i)
                fk_close(process, ends[0]);
            return ends[i];
        }
        files[i] = fk_get(holders[i], ends[i]);
        files[i]->state = FK_CONNECTED;
        files[i]->phase = FK_TOLD;
        if (kind == FK_TCP) {
            files[i]->own_length = ek_numeric_address("127.0.0.1", 9, 0, 0, 0, &local);
            files[i]->own = local;
            fk_give_port(&files[i]->own);
        }
    }
    for (int i = 0; i < 2; i++) {
        files[i]->peer = files[1 - i];
        files[i]->far = files[1 - i]->own;
        files[i]->far_length = files[1 - i]->own_length;
    }
    return 0;
}

static int fk_shutdown(struct fk_process *process, int fd, int how) /* how: as in FK_BOTH */
{
    int error;
    struct fk_file *file = fk_get_socket(process, fd, &error);
    if (error)
        return error;
    return file->kind == FK_TCP ? fk_tcp_shutdown(file, (unsigned char)how)
                                : fk_unix_shutdown(file, (unsigned char)how);
}

static int fk_reset_on_close(struct fk_process *process, int fd)
{
    int error;
    struct fk_file *file = fk_get_socket(process, fd, &error);
    if (!error)
        file->linger = 1;
    return error;
}

static int fk_pending_error(struct fk_process *process, int fd) /* as ek_take_error(): an errno, whoever's */
{
    int error;
    struct fk_file *file = fk_get_socket(process, fd, &error);
    return error ? -error : fk_take_error(file);
}

static int fk_disturbance(struct fk_process *process, int fd)
{
    int error;
    struct fk_file *file = fk_get_socket(process, fd, &error);
    ssize_t there;
    if (file == NULL)
        return -EBADF;
    if (!(fk_mask(file) & (EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLERR | EPOLLHUP)))
        return 0;
    there = error ? error : fk_readable(file);
    if (there < 0 && there != -EAGAIN)
        return (int)there;
    return there == 0 ? 2 : 1;
}

static int fk_poll(struct fk_process *process, int fd)
{
    struct fk_file *file = fk_get(process, fd);
    return file == NULL ? -EBADF : (int)fk_mask(file);
}

/* -- the table ----------------------------------------------------------------------------------------------------- */

static int fk_op_epoll_create(void) { return fk_open(fk.ours, FK_EPOLL); }

static int fk_op_epoll_ctl(int epoll_fd, int operation, int fd, uint32_t events, uint64_t tag)
{
    return fk_epoll_ctl(fk.ours, epoll_fd, operation, fd, events, tag);
}

/* Nobody waits. What is not there now won't come: a timeout passes at once, and without one it would be for ever. */
static int fk_op_epoll_wait(int epoll_fd, struct epoll_event *events, int room, int64_t timeout_ns)
{
    int count = fk_epoll_wait(fk.ours, epoll_fd, events, room);
    if (count == 0 && timeout_ns < 0)
        return -EDEADLK;
    if (count == 0)
        fk.now_ns += timeout_ns;
    return count;
}

static int fk_op_accept(int fd) { return fk_accept(fk.ours, fd); }

static int fk_op_accept_queue(int fd)
{
    int error;
    struct fk_file *file = fk_get_socket(fk.ours, fd, &error);
    if (error)
        return error;
    return file->kind == FK_TCP ? file->waiting : -EOPNOTSUPP;
}

static int fk_op_socket(int family) { return fk_open(fk.ours, family == AF_UNIX ? FK_UNIX : FK_TCP); }

static int fk_op_connect(int fd, const struct sockaddr_storage *address, int length)
{
    return fk_connect(fk.ours, fd, address, length);
}

static int fk_op_bind(int fd, const struct sockaddr_storage *address, int length)
{
    return fk_bind(fk.ours, fd, address, length);
}

static int fk_op_set_no_delay(int fd)
{
    int error;
    struct fk_file *file = fk_get_socket(fk.ours, fd, &error);
    return error ? error : file->kind == FK_TCP ? 0 : -EOPNOTSUPP;
}

static ssize_t fk_op_recv(int fd, void *buffer, size_t room) { return fk_recv(fk.ours, fd, buffer, room); }

static int fk_op_disturbance(int fd) { return fk_disturbance(fk.ours, fd); }

static ssize_t fk_op_send(int fd, const void *data, size_t length) { return fk_send(fk.ours, fd, data, length); }

static ssize_t fk_op_send_parts(int fd, struct iovec *parts, size_t count)
{
    return fk_send_parts(fk.ours, fd, parts, count);
}

static ssize_t fk_op_send_file(int fd, int disk, int64_t *offset, size_t length)
{
    struct fk_file *file = fk_get(fk.ours, disk);
    size_t left;
    ssize_t sent;
    if (file == NULL || file->kind != FK_DISK)
        return file == NULL ? -EBADF : -EINVAL;
    if (*offset >= (int64_t)file->used)
        return 0;
    left = file->used - (size_t)*offset;
    sent = fk_send(fk.ours, fd, file->bytes + *offset, length < left ? length : left);
    if (sent > 0)
        *offset += sent;
    return sent;
}

static ssize_t fk_op_read_at(int disk, void *buffer, size_t room, int64_t offset)
{
    struct fk_file *file = fk_get(fk.ours, disk);
    size_t left;
    if (file == NULL || file->kind != FK_DISK)
        return file == NULL ? -EBADF : -ESPIPE;
    if (offset >= (int64_t)file->used)
        return 0;
    left = file->used - (size_t)offset;
    memcpy(buffer, file->bytes + offset, left < room ? left : room);
    return (ssize_t)(left < room ? left : room);
}

static int fk_op_duplicate(int fd) { return fk_duplicate(fk.ours, fd); }
static int fk_op_shutdown_write(int fd) { return fk_shutdown(fk.ours, fd, FK_SEND); }
static int fk_op_shutdown(int fd) { return fk_shutdown(fk.ours, fd, FK_BOTH); }
static int fk_op_replace(int from, int to) { return fk_replace(fk.ours, from, to); }
static int fk_op_close(int fd) { return fk_close(fk.ours, fd); }
static int fk_op_reset_on_close(int fd) { return fk_reset_on_close(fk.ours, fd); }
static int fk_op_take_error(int fd) { return fk_pending_error(fk.ours, fd); }

static int fk_op_has_input(int fd)
{
    struct fk_file *file = fk_get(fk.ours, fd);
    if (file == NULL || file->kind == FK_DISK)
        return 0;
    if (file->kind == FK_PIPE_WRITE) /* either end knows */
        return (file->peer != NULL ? file->peer->used : file->left) > 0;
    return file->used > 0;
}

static int fk_op_is_listening(int fd)
{
    struct fk_file *file = fk_get(fk.ours, fd);
    return file == NULL ? -EBADF : file->state == FK_LISTENING;
}

static int fk_op_socket_name(int fd, int peer, struct sockaddr_storage *address)
{
    int error;
    struct fk_file *file = fk_get_socket(fk.ours, fd, &error);
    int length;
    if (error)
        return error;
    if (peer && file->state != FK_CONNECTED)
        return -ENOTCONN;
    length = peer ? file->far_length : file->own_length;
    if (length == 0) {
        memset(address, 0, sizeof *address);
        address->ss_family = file->kind == FK_UNIX ? AF_UNIX : AF_INET;
        return file->kind == FK_UNIX ? (int)sizeof(sa_family_t) : (int)sizeof(struct sockaddr_in);
    }
    memcpy(address, peer ? &file->far : &file->own, (size_t)length);
    return length;
}

static int fk_op_eventfd(void) { return fk_open(fk.ours, FK_EVENT); }

static int fk_op_eventfd_add(int fd)
{
    uint64_t one = 1;
    ssize_t count = fk_write(fk.ours, fd, &one, sizeof one);
    return count < 0 ? (int)count : 0;
}

static int fk_op_eventfd_drain(int fd)
{
    uint64_t value;
    ssize_t count = fk_read(fk.ours, fd, &value, sizeof value);
    return count < 0 ? (int)count : 0;
}

static int64_t fk_op_now_ns(void) { return fk.now_ns; }
static int64_t fk_op_tick_ns(void) { return fk.now_ns - fk.now_ns % EK_TICK_NS; }
static int64_t fk_op_wall_seconds(void) { return FK_FIRST_SECOND + (fk.now_ns - FK_FIRST_NS) / 1000000000; }

/* Nothing is under way between two sockets: what was sent has been received. */
#define fk_op_holds_bytes fk_op_has_input

#define FK_MEMBER(type, name, parameters, arguments, words) .name = fk_op_##name,
static const struct ek_operations fk_operations = {EK_OPERATIONS(FK_MEMBER)};

/* -- beginning and end --------------------------------------------------------------------------------------------- */

static void fk_boot(struct fk_process *ours)
{
    fk_clear(&fk.files);
    fk_clear(&fk.names);
    fk.ours = ours;
    fk.now_ns = FK_FIRST_NS;
    fk.serials = fk.registrations = 0;
    fk.waits = 0;
    fk.batch_count = 0;
    fk.capacity = 64;
    fk.next_port = FK_FIRST_PORT;
}

/* Every process has exited. */
static void fk_halt(void)
{
    EK_ASSERT(fk_empty(&fk.files));
    while (!fk_empty(&fk.names)) {
        struct fk_name *name = FK_OF(fk.names.next, struct fk_name, everywhere);
        fk_unlink(&name->everywhere);
        free(name);
    }
    fk.ours = NULL;
}

/* -- the state ----------------------------------------------------------------------------------------------------- */

/* Numbers of seven bits each, so that most take a byte. */
static void fk_tell(uint64_t number)
{
    if (fk.text_used + 10 > fk.text_room) {
        fk.text_room = fk.text_room ? fk.text_room * 2 : 1024;
        fk.text = fk_grow(fk.text, fk.text_room);
    }
    for (; number >= 0x80; number >>= 7)
        fk.text[fk.text_used++] = (unsigned char)(number | 0x80);
    fk.text[fk.text_used++] = (unsigned char)number;
}

static void fk_tell_file(struct fk_file *file)
{
    if (file != NULL && file->place == 0) {
        if (fk.mentioned_count == fk.mentioned_room) {
            fk.mentioned_room = fk.mentioned_room ? fk.mentioned_room * 2 : 64;
            fk.mentioned = fk_grow(fk.mentioned, fk.mentioned_room * sizeof *fk.mentioned);
        }
        fk.mentioned[fk.mentioned_count++] = file;
        file->place = fk.mentioned_count;
    }
    fk_tell(file != NULL ? file->place : 0);
}

static void fk_tell_bytes(const void *bytes, size_t length)
{
    fk_tell(length);
    for (size_t i = 0; i < length; i++)
        fk_tell(((const unsigned char *)bytes)[i]);
}

static void fk_tell_process(const struct fk_process *process)
{
    fk_tell((uint64_t)process->limit);
    fk_tell((uint64_t)process->open);
    for (int fd = FK_FIRST_FD; fd < process->room; fd++)
        if (process->table[fd] != NULL) {
            fk_tell((uint64_t)fd);
            fk_tell_file(process->table[fd]);
        }
}

/* What a tag of the loop's comes to: the slot, and whether the registration is the slot's present one; of few bits of
 * generation, how far behind it is. A slot that was never taken has no generation. */
struct fk_tags {
    int epoll_fd; /* negative: no loop, tags are numbers */
    uint32_t mask;
    uint32_t (*generation)(void *loop, uint32_t index);
    void *loop;
};

static void fk_tell_tag(uint64_t tag, const struct fk_tags *tags)
{
    uint32_t behind = tags->generation(tags->loop, (uint32_t)tag) - (uint32_t)(tag >> 32);
    fk_tell((uint32_t)tag);
    fk_tell(tags->mask == UINT32_MAX ? behind != 0 : behind & tags->mask);
}

static void fk_tell_contents(struct fk_file *file, const struct fk_tags *tags)
{
    const struct fk_file *set = fk_get(fk.ours, tags->epoll_fd);
    fk_tell(file->kind);
    fk_tell(file->spurious);
    FK_EACH (link, &file->watchers) {
        struct fk_item *item = FK_OF(link, struct fk_item, on_file);
        fk_tell_file(item->set);
        fk_tell((uint64_t)item->fd);
        fk_tell(item->events);
        if (item->set == set)
            fk_tell_tag(item->tag, tags);
        else
            fk_tell(item->tag);
    }
    fk_tell(0);
    FK_EACH (link, &file->ready) {
        struct fk_item *item = FK_OF(link, struct fk_item, ready);
        fk_tell_file(item->file);
        fk_tell((uint64_t)item->fd);
    }
    fk_tell(0);
    if (file->kind == FK_EPOLL)
        return;
    fk_tell(file->count);
    fk_tell_file(file->peer);
    fk_tell_bytes(file->bytes, file->used);
    fk_tell_bytes(file->pieces, file->piece_count * sizeof *file->pieces);
    fk_tell(file->piece_read);
    if (file->kind != FK_TCP && file->kind != FK_UNIX) {
        fk_tell(file->left);
        return;
    }
    fk_tell(file->state | (uint32_t)file->phase << 2 | (uint32_t)file->shut << 4 | (uint32_t)file->fin_sent << 6 |
            (uint32_t)file->fin_received << 7 | (uint32_t)file->full << 8 | (uint32_t)file->linger << 9);
    fk_tell((uint64_t)file->error);
    fk_tell((uint64_t)file->backlog);
    fk_tell_bytes(file->kind == FK_TCP && file->name == NULL ? NULL : (const char *)&file->own,
                  file->kind == FK_TCP && file->name == NULL ? 0 : (size_t)file->own_length);
    fk_tell_bytes(file->state == FK_CONNECTING ? (const char *)&file->far : NULL,
                  file->state == FK_CONNECTING ? (size_t)file->far_length : 0);
    FK_EACH (link, &file->queue)
        fk_tell_file(FK_OF(link, struct fk_file, queued));
    fk_tell(0);
}

static void fk_begin_state(void)
{
    fk.text_used = 0;
    fk.mentioned_count = 0;
    FK_EACH (link, &fk.files)
        FK_OF(link, struct fk_file, everywhere)->place = 0;
}

/* After the processes: every file that was mentioned, and those that these mention; then names. Ports that the kernel
 * chose are left out: they differ each time, and no more depends on them than that. */
static void fk_end_state(const struct fk_tags *tags)
{
    for (uint32_t i = 0; i < fk.mentioned_count; i++)
        fk_tell_contents(fk.mentioned[i], tags);
    FK_EACH (link, &fk.names) {
        struct fk_name *name = FK_OF(link, struct fk_name, everywhere);
        if (name->bound == NULL && !name->exists && name->route == FK_NOW)
            continue;
        fk_tell_bytes(&name->address, (size_t)name->length);
        fk_tell_file(name->bound);
        fk_tell((uint64_t)name->exists << 2 | name->route);
    }
    fk_tell(fk.capacity);
    fk_tell((uint64_t)(fk.now_ns % EK_TICK_NS));
}

#endif

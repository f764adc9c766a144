/* Of the fake kernel (_kernel.h): files, what they are ready for, epoll, and the bytes that a file holds.
 *
 * Where a comment names a function of Linux, the order in which that function does things is what is copied: which
 * error comes first, who is woken before whom, with which mask. It decides what a batch looks like.
 */
#ifndef EPOLLKIT_KERNEL_FILES_H
#define EPOLLKIT_KERNEL_FILES_H

#include "_sys.h"

enum fk_kind { FK_EPOLL, FK_EVENT, FK_PIPE_READ, FK_PIPE_WRITE, FK_TCP, FK_UNIX, FK_DISK, FK_KINDS };
enum fk_state { FK_CLOSED, FK_LISTENING, FK_CONNECTING, FK_CONNECTED };
/* What connect() believes, which it finds out only when it is asked again: socket_state in linux/net.h. */
enum fk_phase { FK_UNCONNECTED, FK_ASKED, FK_TOLD, FK_GIVEN_UP };
enum fk_route { FK_NOW, FK_LATER, FK_NEVER };

#define FK_RECEIVE 1 /* bits of `shut` */
#define FK_SEND 2
#define FK_BOTH 3
#define FK_IN (EPOLLIN | EPOLLRDNORM)
#define FK_OUT (EPOLLOUT | EPOLLWRNORM)
#define FK_DATA_CAME (EPOLLIN | EPOLLPRI | EPOLLRDNORM | EPOLLRDBAND) /* sock_def_readable() */
#define FK_ROOM_CAME (EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND)
#define FK_ANYTHING 0 /* sk_state_change() wakes without a mask, and so everybody */
#define FK_WAKEUP ((uint32_t)1 << 29) /* EPOLLWAKEUP */
#define FK_PRIVATE (EPOLLONESHOT | EPOLLET | EPOLLEXCLUSIVE | FK_WAKEUP)
#define FK_WITH_EXCLUSIVE (EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLET | EPOLLEXCLUSIVE | FK_WAKEUP)
#define FK_FIRST_FD 3
#define FK_MOST_NESTED 4

struct fk_link {
    struct fk_link *next, *previous;
};

#define FK_OF(link, type, member) ((type *)((char *)(link)-offsetof(type, member)))
/* The link at hand may be taken out, but not the one behind it. */
#define FK_EACH(link, list)                                                                                            \
    for (struct fk_link *link = (list)->next, *fk_behind = link->next; link != (list);                                 \
         link = fk_behind, fk_behind = link->next)

struct fk_file { /* an open file description */
    struct fk_link everywhere; /* in fk.files */
    struct fk_link watchers;   /* items that watch it, in the order in which they are woken */
    struct fk_link items, ready; /* of an epoll set */
    struct fk_link queue, queued; /* connections that wait for accept; where this one waits */
    int64_t serial;
    enum fk_kind kind;
    int references; /* descriptors, in all processes; 0: a connection that waits for accept */
    uint32_t spurious; /* to be reported once, though it is not so */

    enum fk_state state;
    enum fk_phase phase;
    struct fk_file *peer; /* of sockets and pipes; NULL: none, or it was closed */
    struct fk_name *name; /* that it is bound to */
    struct sockaddr_storage own, far;
    int own_length, far_length;
    int error;
    unsigned char shut, fin_sent, fin_received, full, linger;
    int backlog, waiting;
    uint32_t left; /* in a pipe whose reader is gone */

    uint64_t count; /* of an eventfd */
    char *bytes;    /* received, and not read; the content of a file on disk */
    uint32_t used, room;
    uint32_t charged; /* to the sender: on a unix socket until a piece is read to its end */
    uint32_t *pieces; /* lengths of what was sent to a unix socket at once */
    uint32_t piece_count, piece_room, piece_read;

    uint32_t place; /* while the state is written: when it was first mentioned, from 1 */
};

struct fk_item {
    struct fk_link in_set, on_file, ready;
    struct fk_file *set, *file;
    int fd;
    uint32_t events;
    uint64_t tag;
    int64_t registration;
};

struct fk_name { /* an address that somebody is bound to, was bound to, or has a route */
    struct fk_link everywhere;
    struct sockaddr_storage address;
    int length;
    struct fk_file *bound;
    int exists; /* of a path: until it is unlinked */
    enum fk_route route;
};

struct fk_process {
    struct fk_file **table;
    int room;
    int limit; /* no fd reaches it */
    int open;
};

struct fk_report {
    uint64_t tag;
    uint32_t mask;
    int64_t registration, file;
};

static struct fk_kernel {
    struct fk_link files, names;
    struct fk_process *ours;
    int64_t now_ns;
    int64_t serials, registrations;
    uint64_t waits;
    uint32_t capacity;
    uint16_t next_port;
    struct fk_report *batch;
    int batch_count, batch_room;
    unsigned char *text; /* the state, while it is written */
    size_t text_used, text_room;
    struct fk_file **mentioned;
    uint32_t mentioned_count, mentioned_room;
} fk;

/* -- lists, memory ------------------------------------------------------------------------------------------------- */

static inline void fk_clear(struct fk_link *list) { list->next = list->previous = list; }
static inline int fk_empty(const struct fk_link *list) { return list->next == list; }

static inline void fk_insert(struct fk_link *before, struct fk_link *link)
{
    link->next = before;
    link->previous = before->previous;
    before->previous->next = link;
    before->previous = link;
}

#define fk_append(list, link) fk_insert(list, link)
#define fk_prepend(list, link) fk_insert((list)->next, link)

static inline void fk_unlink(struct fk_link *link)
{
    link->next->previous = link->previous;
    link->previous->next = link->next;
    fk_clear(link);
}

static void *fk_grow(void *memory, size_t size)
{
    void *grown = realloc(memory, size);
    if (grown == NULL) {
        fprintf(stderr, "epollkit: the fake kernel has no memory\n");
        abort();
    }
    return grown;
}

static struct fk_file *fk_new(enum fk_kind kind)
{
    struct fk_file *file = memset(fk_grow(NULL, sizeof *file), 0, sizeof *file);
    file->kind = kind;
    file->serial = ++fk.serials;
    fk_append(&fk.files, &file->everywhere);
    fk_clear(&file->watchers);
    fk_clear(&file->items);
    fk_clear(&file->ready);
    fk_clear(&file->queue);
    fk_clear(&file->queued);
    return file;
}

static void fk_free(struct fk_file *file)
{
    fk_unlink(&file->everywhere);
    free(file->bytes);
    free(file->pieces);
    free(file);
}

/* -- names --------------------------------------------------------------------------------------------------------- */

static struct fk_name *fk_name(const struct sockaddr_storage *address, int length, int make)
{
    struct fk_name *name;
    FK_EACH (link, &fk.names) {
        name = FK_OF(link, struct fk_name, everywhere);
        if (name->length == length && memcmp(&name->address, address, (size_t)length) == 0)
            return name;
    }
    if (!make)
        return NULL;
    name = memset(fk_grow(NULL, sizeof *name), 0, sizeof *name);
    memcpy(&name->address, address, (size_t)length);
    name->length = length;
    fk_append(&fk.names, &name->everywhere);
    return name;
}

static inline int fk_is_path(const struct fk_name *name)
{
    return name->address.ss_family == AF_UNIX && ((const struct sockaddr_un *)&name->address)->sun_path[0] != 0;
}

static void fk_give_port(struct sockaddr_storage *address) /* sin6_port is in the same place */
{
    if (((struct sockaddr_in *)address)->sin_port == 0)
        ((struct sockaddr_in *)address)->sin_port = htons(fk.next_port++);
}

static void fk_unbind(struct fk_file *file)
{
    if (file->name != NULL) {
        file->name->bound = NULL;
        file->name->exists = fk_is_path(file->name);
    }
    file->name = NULL;
}

/* -- what a file is ready for -------------------------------------------------------------------------------------- */

/* sk_stream_is_writeable(): a third is free; unix_writable(): no more than a quarter is taken. */
static int fk_writable(const struct fk_file *file)
{
    uint32_t taken = file->peer != NULL ? file->peer->charged : 0;
    if (file->kind == FK_UNIX)
        return file->state != FK_LISTENING && (uint64_t)taken * 4 <= fk.capacity;
    return taken + taken / 2 <= fk.capacity;
}

static uint32_t fk_mask(struct fk_file *file);

/* __ep_eventpoll_poll(): what turns out not to be ready leaves the list. */
static uint32_t fk_epoll_mask(struct fk_file *set)
{
    FK_EACH (link, &set->ready) {
        struct fk_item *item = FK_OF(link, struct fk_item, ready);
        if (fk_mask(item->file) & item->events)
            return FK_IN;
        fk_unlink(link);
    }
    return 0;
}

static uint32_t fk_socket_mask(struct fk_file *file) /* tcp_poll(), unix_poll() */
{
    uint32_t mask = 0;
    if (file->state == FK_LISTENING && file->kind == FK_TCP)
        return fk_empty(&file->queue) ? 0 : FK_IN;
    if (file->shut == FK_BOTH || file->state == FK_CLOSED)
        mask |= EPOLLHUP;
    if (file->shut & FK_RECEIVE)
        mask |= FK_IN | EPOLLRDHUP;
    if (file->error)
        mask |= EPOLLERR;
    if (file->used || !fk_empty(&file->queue))
        mask |= FK_IN;
    if (file->kind == FK_UNIX)
        return fk_writable(file) ? mask | FK_OUT | EPOLLWRBAND : mask;
    if (file->state == FK_CONNECTING)
        return mask;
    if (file->shut & FK_SEND || fk_writable(file))
        return mask | FK_OUT;
    file->full = 1; /* SOCK_NOSPACE: who asks is told when there is room */
    return mask;
}

static uint32_t fk_mask(struct fk_file *file)
{
    switch (file->kind) {
    case FK_EPOLL:
        return fk_epoll_mask(file);
    case FK_EVENT:
        return (file->count > 0 ? EPOLLIN : 0) | (file->count < UINT64_MAX - 1 ? EPOLLOUT : 0) |
               (file->count == UINT64_MAX ? EPOLLERR : 0);
    case FK_PIPE_READ:
        return (file->used ? FK_IN : 0) | (file->peer == NULL ? EPOLLHUP : 0);
    case FK_PIPE_WRITE:
        if (file->peer == NULL)
            return EPOLLERR | (file->left < fk.capacity ? FK_OUT : 0);
        return file->peer->used < fk.capacity ? FK_OUT : 0;
    case FK_TCP:
    case FK_UNIX:
        return fk_socket_mask(file);
    default:
        return FK_IN | FK_OUT;
    }
}

/* -- epoll --------------------------------------------------------------------------------------------------------- */

static void fk_wake(struct fk_file *file, uint32_t what);

static void fk_queue_item(struct fk_item *item)
{
    if (fk_empty(&item->ready))
        fk_append(&item->set->ready, &item->ready);
    fk_wake(item->set, EPOLLIN);
}

/* ep_poll_callback(). Of several exclusive watchers Linux wakes one if it finds one asleep; here nobody ever is. */
static void fk_wake(struct fk_file *file, uint32_t what)
{
    FK_EACH (link, &file->watchers) {
        struct fk_item *item = FK_OF(link, struct fk_item, on_file);
        if (item->events & ~FK_PRIVATE && (what == FK_ANYTHING || what & item->events))
            fk_queue_item(item);
    }
}

static struct fk_item *fk_find_item(const struct fk_file *set, const struct fk_file *file, int fd)
{
    FK_EACH (link, &file->watchers) {
        struct fk_item *item = FK_OF(link, struct fk_item, on_file);
        if (item->set == set && item->fd == fd)
            return item;
    }
    return NULL;
}

static void fk_forget_item(struct fk_item *item)
{
    fk_unlink(&item->in_set);
    fk_unlink(&item->on_file);
    fk_unlink(&item->ready);
    free(item);
}

static int fk_reaches(const struct fk_file *set, const struct fk_file *wanted, int depth)
{
    if (set == wanted || depth > FK_MOST_NESTED)
        return 1;
    FK_EACH (link, &set->items) {
        struct fk_file *file = FK_OF(link, struct fk_item, in_set)->file;
        if (file->kind == FK_EPOLL && fk_reaches(file, wanted, depth + 1))
            return 1;
    }
    return 0;
}

static void fk_add_item(struct fk_file *set, struct fk_file *file, int fd, uint32_t events, uint64_t tag)
{
    struct fk_item *item = fk_grow(NULL, sizeof *item);
    item->set = set;
    item->file = file;
    item->fd = fd;
    item->events = events | EPOLLERR | EPOLLHUP;
    item->tag = tag;
    item->registration = ++fk.registrations;
    fk_clear(&item->ready);
    fk_append(&set->items, &item->in_set);
    if (events & EPOLLEXCLUSIVE) /* add_wait_queue_exclusive(): behind everybody; the others: before */
        fk_append(&file->watchers, &item->on_file);
    else
        fk_prepend(&file->watchers, &item->on_file);
    if (fk_mask(file) & item->events)
        fk_queue_item(item);
}

static inline struct fk_file *fk_get(const struct fk_process *process, int fd)
{
    return fd >= 0 && fd < process->room ? process->table[fd] : NULL;
}

static int fk_epoll_ctl(struct fk_process *process, int epoll_fd, int operation, int fd, uint32_t events, uint64_t tag)
{
    struct fk_file *set = fk_get(process, epoll_fd), *file = fk_get(process, fd);
    struct fk_item *item;
    if (set == NULL || file == NULL)
        return -EBADF;
    if (file->kind == FK_DISK)
        return -EPERM;
    if (set->kind != FK_EPOLL || set == file)
        return -EINVAL;
    if (operation != EPOLL_CTL_DEL && events & EPOLLEXCLUSIVE &&
        (operation == EPOLL_CTL_MOD || file->kind == FK_EPOLL || events & ~(uint32_t)FK_WITH_EXCLUSIVE))
        return -EINVAL;
    if (operation == EPOLL_CTL_ADD && file->kind == FK_EPOLL && fk_reaches(file, set, 0))
        return -ELOOP;
    item = fk_find_item(set, file, fd);
    if (operation == EPOLL_CTL_ADD) {
        if (item != NULL)
            return -EEXIST;
        fk_add_item(set, file, fd, events, tag);
        return 0;
    }
    if (operation != EPOLL_CTL_DEL && operation != EPOLL_CTL_MOD)
        return -EINVAL;
    if (item == NULL)
        return -ENOENT;
    if (operation == EPOLL_CTL_DEL) {
        fk_forget_item(item);
        return 0;
    }
    if (item->events & EPOLLEXCLUSIVE)
        return -EINVAL;
    item->events = events | EPOLLERR | EPOLLHUP;
    item->tag = tag;
    if (fk_mask(file) & item->events && fk_empty(&item->ready))
        fk_queue_item(item);
    return 0;
}

static void fk_note_report(const struct fk_item *item, uint32_t mask)
{
    if (fk.batch_count == fk.batch_room) {
        fk.batch_room = fk.batch_room ? fk.batch_room * 2 : 64;
        fk.batch = fk_grow(fk.batch, (size_t)fk.batch_room * sizeof *fk.batch);
    }
    fk.batch[fk.batch_count++] = (struct fk_report){item->tag, mask, item->registration, item->file->serial};
}

/* ep_send_events(): the file is asked again; what is level-triggered goes behind everybody who was not reached. */
static int fk_epoll_wait(struct fk_process *process, int epoll_fd, struct epoll_event *events, int room)
{
    struct fk_file *set = fk_get(process, epoll_fd);
    struct fk_link again;
    int count = 0, noted = 0;
    if (room <= 0)
        return -EINVAL;
    if (set == NULL)
        return -EBADF;
    if (set->kind != FK_EPOLL)
        return -EINVAL;
    fk.waits += process == fk.ours;
    fk_clear(&again);
    while (count < room && !fk_empty(&set->ready)) {
        struct fk_item *item = FK_OF(set->ready.next, struct fk_item, ready);
        uint32_t mask = (fk_mask(item->file) | item->file->spurious) & item->events;
        fk_unlink(&item->ready);
        if (mask == 0)
            continue;
        item->file->spurious = 0;
        events[count].events = mask;
        events[count].data.u64 = item->tag;
        count++;
        if (process == fk.ours) {
            fk.batch_count = noted++ ? fk.batch_count : 0;
            fk_note_report(item, mask);
        }
        if (item->events & EPOLLONESHOT)
            item->events &= FK_PRIVATE;
        else if (!(item->events & EPOLLET))
            fk_append(&again, &item->ready);
    }
    while (!fk_empty(&again)) {
        struct fk_link *link = again.next;
        fk_unlink(link);
        fk_append(&set->ready, link);
    }
    return count;
}

/* -- for who looks in: what comes after that one, or first; NULL: nothing ----------------------------------------- */

static struct fk_file *fk_file_after(struct fk_file *file)
{
    struct fk_link *next = file != NULL ? file->everywhere.next : fk.files.next;
    return next == &fk.files ? NULL : FK_OF(next, struct fk_file, everywhere);
}

static struct fk_item *fk_item_after(struct fk_file *set, struct fk_item *item)
{
    struct fk_link *next = item != NULL ? item->in_set.next : set->items.next;
    return next == &set->items ? NULL : FK_OF(next, struct fk_item, in_set);
}

static struct fk_item *fk_ready_after(struct fk_file *set, struct fk_item *item)
{
    struct fk_link *next = item != NULL ? item->ready.next : set->ready.next;
    return next == &set->ready ? NULL : FK_OF(next, struct fk_item, ready);
}

static void fk_promote(struct fk_item *item)
{
    fk_unlink(&item->ready);
    fk_prepend(&item->set->ready, &item->ready);
}

/* -- bytes --------------------------------------------------------------------------------------------------------- */

static inline uint32_t fk_space(const struct fk_file *receiver)
{
    return receiver->charged < fk.capacity ? fk.capacity - receiver->charged : 0;
}

static void fk_store(struct fk_file *receiver, const void *data, uint32_t length)
{
    if (receiver->used + length > receiver->room) {
        receiver->room = receiver->used + length < 64 ? 64 : (receiver->used + length) * 2;
        receiver->bytes = fk_grow(receiver->bytes, receiver->room);
    }
    if (length)
        memcpy(receiver->bytes + receiver->used, data, length);
    receiver->used += length;
    receiver->charged += length;
}

static void fk_store_piece(struct fk_file *receiver, uint32_t length)
{
    if (receiver->piece_count == receiver->piece_room) {
        receiver->piece_room = receiver->piece_room ? receiver->piece_room * 2 : 16;
        receiver->pieces = fk_grow(receiver->pieces, receiver->piece_room * sizeof *receiver->pieces);
    }
    receiver->pieces[receiver->piece_count++] = length;
}

/* How many pieces were read to their end; what they cost the sender is given back. */
static uint32_t fk_finish_pieces(struct fk_file *receiver, uint32_t length)
{
    uint32_t finished = 0;
    receiver->piece_read += length;
    while (finished < receiver->piece_count && receiver->piece_read >= receiver->pieces[finished]) {
        receiver->piece_read -= receiver->pieces[finished];
        receiver->charged -= receiver->pieces[finished++];
    }
    receiver->piece_count -= finished;
    if (finished)
        memmove(receiver->pieces, receiver->pieces + finished, receiver->piece_count * sizeof *receiver->pieces);
    return finished;
}

static void fk_taken(struct fk_file *receiver, uint32_t length)
{
    struct fk_file *sender = receiver->peer;
    int was_full = receiver->charged >= fk.capacity;
    receiver->used -= length;
    memmove(receiver->bytes, receiver->bytes + length, receiver->used);
    if (receiver->kind == FK_UNIX) { /* unix_write_space(): each time that a piece is freed, wanted or not */
        if (fk_finish_pieces(receiver, length) && sender != NULL && fk_writable(sender))
            fk_wake(sender, FK_ROOM_CAME);
        return;
    }
    receiver->charged -= length;
    if (sender == NULL)
        return;
    if (receiver->kind == FK_PIPE_READ ? was_full : sender->full && fk_writable(sender)) {
        sender->full = 0;
        fk_wake(sender, receiver->kind == FK_PIPE_READ ? FK_OUT : FK_ROOM_CAME);
    }
}

static size_t fk_total(const struct iovec *parts, size_t count)
{
    size_t total = 0;
    for (size_t i = 0; i < count; i++)
        total += parts[i].iov_len;
    return total;
}

static uint32_t fk_store_parts(struct fk_file *receiver, const struct iovec *parts, size_t total)
{
    uint32_t left = fk_space(receiver), length, stored;
    stored = left = total < left ? (uint32_t)total : left;
    for (; left > 0; parts++) {
        length = parts->iov_len < left ? (uint32_t)parts->iov_len : left;
        fk_store(receiver, parts->iov_base, length);
        left -= length;
    }
    return stored;
}

static int fk_take_error(struct fk_file *file)
{
    int error = file->error;
    file->error = 0;
    return error;
}

#endif

/* In the debug build only, included by _sys.h: the table of operations, and what is counted.
 *
 * Every `ek_recv(...)` of every module goes through the one `struct ek_debug` that `_operations` exports in a capsule:
 * first to a Python function, if a test has put one there, otherwise through the table, which may be a fake kernel's.
 */
#ifndef EPOLLKIT_OPERATIONS_H
#define EPOLLKIT_OPERATIONS_H

#include <Python.h>

/* Result, name, parameters, arguments; and the arguments as words: what a Python replacement is told, and for recv,
 * send, connect and bind also where the bytes are. */
#define EK_OPERATIONS(X)                                                                                               \
    X(int, epoll_create, (void), (), ())                                                                               \
    X(int, epoll_ctl, (int epoll_fd, int operation, int fd, uint32_t events, uint64_t tag),                            \
      (epoll_fd, operation, fd, events, tag), (epoll_fd, operation, fd, events, (int64_t)tag))                         \
    X(int, epoll_wait, (int epoll_fd, struct epoll_event *events, int room, int64_t timeout_ns),                       \
      (epoll_fd, events, room, timeout_ns), (epoll_fd, room, timeout_ns))                                              \
    X(int, accept, (int fd), (fd), (fd))                                                                               \
    X(int, accept_queue, (int fd), (fd), (fd))                                                                         \
    X(int, socket, (int family), (family), (family))                                                                   \
    X(int, connect, (int fd, const struct sockaddr_storage *address, int length), (fd, address, length),               \
      (fd, (intptr_t)address, length))                                                                                 \
    X(int, bind, (int fd, const struct sockaddr_storage *address, int length), (fd, address, length),                  \
      (fd, (intptr_t)address, length))                                                                                 \
    X(int, set_no_delay, (int fd), (fd), (fd))                                                                         \
    X(ssize_t, recv, (int fd, void *buffer, size_t room), (fd, buffer, room), (fd, room, (intptr_t)buffer))            \
    X(int, disturbance, (int fd), (fd), (fd))                                                                          \
    X(ssize_t, send, (int fd, const void *data, size_t length), (fd, data, length), (fd, length, (intptr_t)data))      \
    X(ssize_t, send_parts, (int fd, struct iovec *parts, size_t part_count), (fd, parts, part_count),                  \
      (fd, part_count, (intptr_t)parts))                                                                               \
    X(ssize_t, send_file, (int fd, int file, int64_t *offset, size_t length), (fd, file, offset, length),              \
      (fd, file, *offset, length))                                                                                     \
    X(ssize_t, read_at, (int file, void *buffer, size_t room, int64_t offset), (file, buffer, room, offset),           \
      (file, room, offset, (intptr_t)buffer))                                                                          \
    X(int, duplicate, (int fd), (fd), (fd))                                                                            \
    X(int, shutdown_write, (int fd), (fd), (fd))                                                                       \
    X(int, shutdown, (int fd), (fd), (fd))                                                                             \
    X(int, replace, (int from, int to), (from, to), (from, to))                                                        \
    X(int, close, (int fd), (fd), (fd))                                                                                \
    X(int, reset_on_close, (int fd), (fd), (fd))                                                                       \
    X(int, take_error, (int fd), (fd), (fd))                                                                           \
    X(int, has_input, (int fd), (fd), (fd))                                                                            \
    X(int, holds_bytes, (int fd), (fd), (fd))                                                                          \
    X(int, is_listening, (int fd), (fd), (fd))                                                                         \
    X(int, socket_name, (int fd, int peer, struct sockaddr_storage *address), (fd, peer, address), (fd, peer))         \
    X(int, eventfd, (void), (), ())                                                                                    \
    X(int, eventfd_add, (int fd), (fd), (fd))                                                                          \
    X(int, eventfd_drain, (int fd), (fd), (fd))                                                                        \
    X(int64_t, now_ns, (void), (), ())                                                                                 \
    X(int64_t, tick_ns, (void), (), ())                                                                                \
    X(int64_t, wall_seconds, (void), (), ())

/* What is counted when it is made and when it is freed. An fd is the loop's from the call that returned it. */
#define EK_KINDS(X)                                                                                                    \
    X(LOOP) X(SLOT_CHUNK) X(FD) X(WAKEUP) X(RAW) X(LISTENER) X(STREAM) X(CONNECTOR) X(APPROACH) X(TOKEN) X(TIMER)      \
    X(OUTPUT) X(EXTRAS) X(OPTIONS) X(PARTIAL) X(REQUEST) X(RESPONSE) X(TLS)

#define EK_MEMBER(type, name, parameters, arguments, words) type(*name) parameters;
struct ek_operations {
    EK_OPERATIONS(EK_MEMBER)
};

#define EK_CALL_NUMBER(type, name, parameters, arguments, words) EK_CALL_##name,
enum { EK_OPERATIONS(EK_CALL_NUMBER) EK_CALLS };

#define EK_KIND_NUMBER(kind) EK_##kind,
enum ek_kind { EK_KINDS(EK_KIND_NUMBER) EK_KIND_COUNT };

struct ek_debug {
    const struct ek_operations *operations; /* in force: the real ones, or a fake kernel's */
    /* A Python replacement's answer, if it has one. Called only for those that are marked as replaced. */
    int (*ask)(int call, const int64_t *words, int word_count, int64_t *result);
    char replaced[EK_CALLS];
    uint64_t calls[EK_CALLS];
    int64_t made[EK_KIND_COUNT], freed[EK_KIND_COUNT];
    destructor dealloc[EK_KIND_COUNT]; /* of the type that is counted there */
};

#define EK_REAL_MEMBER(type, name, parameters, arguments, words) .name = ek_real_##name,
static const struct ek_operations ek_real_operations = {EK_OPERATIONS(EK_REAL_MEMBER)};

#define EK_CALL_NAME(type, name, parameters, arguments, words) #name,
static const char *const ek_call_names[] = {EK_OPERATIONS(EK_CALL_NAME)};

#define EK_KIND_NAME(kind) #kind,
static const char *const ek_kind_names[] = {EK_KINDS(EK_KIND_NAME)};

/* Looked up once per extension module, by whoever comes first: it may not hold the GIL. */
static struct ek_debug *ek_debug(void)
{
    static struct ek_debug *found = NULL;
    if (__atomic_load_n(&found, __ATOMIC_ACQUIRE) == NULL) {
        PyGILState_STATE state = PyGILState_Ensure();
        PyObject *module = PyImport_ImportModule("epollkit._operations");
        PyObject *capsule = module ? PyObject_GetAttrString(module, "capsule") : NULL;
        void *pointer = capsule ? PyCapsule_GetPointer(capsule, "epollkit._operations.capsule") : NULL;
        if (pointer == NULL) {
            PyErr_Print();
            Py_FatalError("the debug build does not find epollkit._operations");
        }
        Py_DECREF(capsule);
        Py_DECREF(module);
        PyGILState_Release(state);
        __atomic_store_n(&found, (struct ek_debug *)pointer, __ATOMIC_RELEASE);
    }
    return found;
}

#define EK_COUNT(counter) ((void)__atomic_fetch_add(&(counter), 1, __ATOMIC_RELAXED))
#define EK_MADE(kind) EK_COUNT(ek_debug()->made[kind])
#define EK_FREED(kind) EK_COUNT(ek_debug()->freed[kind])

/* Counts what a type's tp_dealloc frees. A __dealloc__ would do, but Cython surrounds it with more work than these
 * objects have, in the release build too. */
#define EK_DEALLOC(kind)                                                                                               \
    static void ek_dealloc_##kind(PyObject *object)                                                                    \
    {                                                                                                                  \
        EK_FREED(EK_##kind);                                                                                           \
        ek_debug()->dealloc[EK_##kind](object);                                                                        \
    }
EK_KINDS(EK_DEALLOC)

#define EK_DEALLOC_ENTRY(kind) ek_dealloc_##kind,
static inline void EK_FREED_WITH(PyObject *type, enum ek_kind kind)
{
    static const destructor counting[] = {EK_KINDS(EK_DEALLOC_ENTRY)};
    ek_debug()->dealloc[kind] = ((PyTypeObject *)type)->tp_dealloc;
    ((PyTypeObject *)type)->tp_dealloc = counting[kind];
}

/* What this thread's last recv returned: who stops reading before EAGAIN must be on the ready list. */
static __thread int64_t ek_last_received;
static inline int64_t ek_last_recv(void) { return ek_last_received; }

static inline void ek_note(int call, const int64_t *words, int64_t result)
{
    EK_COUNT(ek_debug()->calls[call]);
    if (result >= 0 && (call == EK_CALL_epoll_create || call == EK_CALL_accept || call == EK_CALL_socket ||
                        call == EK_CALL_eventfd || call == EK_CALL_duplicate))
        EK_MADE(EK_FD);
    else if (call == EK_CALL_close && words[0] >= 0)
        EK_FREED(EK_FD); /* even if it failed: it is not the loop's any more */
    else if (call == EK_CALL_recv)
        ek_last_received = result;
}

#define EK_LIST(...) __VA_ARGS__
#define EK_DISPATCHER(type, name, parameters, arguments, words)                                                        \
    static type ek_##name parameters                                                                                   \
    {                                                                                                                  \
        const int64_t list[] = {0, EK_LIST words};                                                                     \
        int64_t result = 0;                                                                                            \
        if (!ek_debug()->replaced[EK_CALL_##name] ||                                                                   \
            !ek_debug()->ask(EK_CALL_##name, list + 1, (int)(sizeof list / sizeof *list) - 1, &result))                \
            result = ek_debug()->operations->name arguments;                                                           \
        ek_note(EK_CALL_##name, list + 1, result);                                                                     \
        return (type)result;                                                                                           \
    }
EK_OPERATIONS(EK_DISPATCHER)

#endif

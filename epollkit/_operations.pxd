"""In the debug build only: the operations that every system call of the loop goes through. See `_operations.h`."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from epollkit._sys cimport epoll_event, iovec, sockaddr_storage

cdef extern from "_sys.h" nogil:
    struct ek_operations:
        int (*epoll_create)() noexcept nogil
        int (*epoll_ctl)(int epoll_fd, int operation, int fd, uint32_t events, uint64_t tag) noexcept nogil
        int (*epoll_wait)(int epoll_fd, epoll_event *events, int room, int64_t timeout_ns) noexcept nogil
        int (*accept)(int fd) noexcept nogil
        int (*accept_queue)(int fd) noexcept nogil
        int (*socket)(int family) noexcept nogil
        int (*connect)(int fd, const sockaddr_storage *address, int length) noexcept nogil
        int (*bind)(int fd, const sockaddr_storage *address, int length) noexcept nogil
        int (*set_no_delay)(int fd) noexcept nogil
        ssize_t (*recv)(int fd, void *buffer, size_t room) noexcept nogil
        int (*disturbance)(int fd) noexcept nogil
        ssize_t (*send)(int fd, const void *data, size_t length) noexcept nogil
        ssize_t (*send_parts)(int fd, iovec *parts, size_t part_count) noexcept nogil
        ssize_t (*send_file)(int fd, int file, int64_t *offset, size_t length) noexcept nogil
        ssize_t (*read_at)(int file, void *buffer, size_t room, int64_t offset) noexcept nogil
        int (*duplicate)(int fd) noexcept nogil
        int (*shutdown_write)(int fd) noexcept nogil
        int (*shutdown)(int fd) noexcept nogil
        int (*replace)(int fd, int target) noexcept nogil
        int (*close)(int fd) noexcept nogil
        int (*reset_on_close)(int fd) noexcept nogil
        int (*take_error)(int fd) noexcept nogil
        int (*has_input)(int fd) noexcept nogil
        int (*holds_bytes)(int fd) noexcept nogil
        int (*is_listening)(int fd) noexcept nogil
        int (*socket_name)(int fd, int peer, sockaddr_storage *address) noexcept nogil
        int (*eventfd)() noexcept nogil
        int (*eventfd_add)(int fd) noexcept nogil
        int (*eventfd_drain)(int fd) noexcept nogil
        int64_t (*now_ns)() noexcept nogil
        int64_t (*tick_ns)() noexcept nogil
        int64_t (*wall_seconds)() noexcept nogil

    struct ek_debug:
        const ek_operations *operations
        int (*ask)(int call, const int64_t *words, int word_count, int64_t *result) noexcept
        char *replaced
        uint64_t *calls
        int64_t *made
        int64_t *freed

    const ek_operations ek_real_operations
    const char **ek_call_names
    const char **ek_kind_names
    const int EK_CALLS
    const int EK_CALL_recv
    const int EK_CALL_send
    const int EK_CALL_send_parts
    const int EK_KIND_COUNT
    const int EK_FD

# The operations in force from here on; NULL: the real ones again. Returns what was in force. The table stays the
# caller's. With the GIL, and with no loop of another thread in the middle of a call.
cdef const ek_operations *install(const ek_operations *operations) noexcept

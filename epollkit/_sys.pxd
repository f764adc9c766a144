"""Leaf: the system calls. See `_sys.h` for what each wrapper promises; every one returns -errno on failure."""
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

cdef extern from "_sys.h" nogil:
    # events, as in epoll_ctl(2)
    const uint32_t EPOLLIN
    const uint32_t EPOLLPRI
    const uint32_t EPOLLOUT
    const uint32_t EPOLLERR
    const uint32_t EPOLLHUP
    const uint32_t EPOLLRDHUP
    const uint32_t EPOLLEXCLUSIVE
    const uint32_t EPOLLONESHOT
    const uint32_t EPOLLET
    const int EPOLL_CTL_ADD
    const int EPOLL_CTL_MOD
    const int EPOLL_CTL_DEL
    const int AF_UNIX

    struct epoll_event:
        pass
    struct sockaddr_storage:
        unsigned short ss_family
    struct iovec:
        void *iov_base
        size_t iov_len

    const int EPOLLKIT_DEBUG
    const int EK_SANITIZED
    void EK_POISON(const void *memory, size_t size) noexcept
    void EK_UNPOISON(const void *memory, size_t size) noexcept
    const int64_t EK_TICK_NS
    void EK_ASSERT(bint condition) noexcept
    bint EK_STALE(bint condition) noexcept
    void EK_ASSERT_THREAD(unsigned long thread) noexcept

    enum ek_kind:                   # what the debug build counts
        EK_LOOP
        EK_SLOT_CHUNK
        EK_FD
        EK_WAKEUP
        EK_RAW
        EK_LISTENER
        EK_STREAM
        EK_CONNECTOR
        EK_APPROACH
        EK_TOKEN
        EK_TIMER
        EK_OUTPUT
        EK_EXTRAS
        EK_OPTIONS
        EK_PARTIAL
        EK_REQUEST
        EK_RESPONSE
        EK_TLS
    void EK_MADE(ek_kind kind) noexcept
    void EK_FREED(ek_kind kind) noexcept
    int64_t ek_last_recv() noexcept

    void *ek_grow_pages(void *pages, size_t size, size_t grown) noexcept
    void ek_free_pages(void *pages, size_t size) noexcept
    uint64_t ek_event_tag(const epoll_event *event) noexcept
    uint32_t ek_event_mask(const epoll_event *event) noexcept
    int ek_epoll_create() noexcept
    int ek_epoll_ctl(int epoll_fd, int operation, int fd, uint32_t events, uint64_t tag) noexcept
    int ek_epoll_wait(int epoll_fd, epoll_event *events, int room, int64_t timeout_ns) noexcept
    int ek_accept(int fd) noexcept
    int ek_accept_queue(int fd) noexcept
    int ek_socket(int family) noexcept
    int ek_connect(int fd, const sockaddr_storage *address, int length) noexcept
    int ek_bind(int fd, const sockaddr_storage *address, int length) noexcept
    int ek_set_no_delay(int fd) noexcept
    ssize_t ek_recv(int fd, void *buffer, size_t room) noexcept
    int ek_disturbance(int fd) noexcept
    ssize_t ek_send(int fd, const void *data, size_t length) noexcept
    ssize_t ek_send_parts(int fd, iovec *parts, size_t part_count) noexcept
    ssize_t ek_send_file(int fd, int file, int64_t *offset, size_t length) noexcept
    ssize_t ek_read_at(int file, void *buffer, size_t room, int64_t offset) noexcept
    int ek_duplicate(int fd) noexcept
    int ek_shutdown_write(int fd) noexcept
    int ek_shutdown(int fd) noexcept
    int ek_replace(int fd, int target) noexcept
    int ek_close(int fd) noexcept
    int ek_reset_on_close(int fd) noexcept
    int ek_take_error(int fd) noexcept
    bint ek_has_input(int fd) noexcept
    bint ek_holds_bytes(int fd) noexcept
    int ek_is_listening(int fd) noexcept
    int ek_socket_name(int fd, bint peer, sockaddr_storage *address) noexcept
    int ek_read_address(const sockaddr_storage *address, int length, char *host, int *port) noexcept
    int ek_numeric_address(const char *host, size_t host_length, int port, uint32_t flow, uint32_t scope,
                           sockaddr_storage *address) noexcept
    int ek_unix_address(const char *path, size_t path_length, sockaddr_storage *address) noexcept
    uint16_t ek_port(const sockaddr_storage *address) noexcept
    bint ek_same_end(const sockaddr_storage *left, const sockaddr_storage *right) noexcept
    int ek_eventfd() noexcept
    int ek_eventfd_add(int fd) noexcept
    int ek_eventfd_drain(int fd) noexcept
    int64_t ek_now_ns() noexcept
    int64_t ek_tick_ns() noexcept
    int64_t ek_wall_seconds() noexcept

cdef extern from "_sys.h":
    void EK_FREED_WITH(object type, ek_kind kind) noexcept

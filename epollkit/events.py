"""The flags of `Loop.register` and of what a raw handler is told, as in epoll_ctl(2)."""
import select

IN = select.EPOLLIN                 # bytes to read, or a connection to accept
OUT = select.EPOLLOUT               # room to write
PRI = select.EPOLLPRI               # urgent data
RDHUP = select.EPOLLRDHUP           # the peer has shut down its writing side: what is buffered is all there is
ERR = select.EPOLLERR               # a pending error; comes unasked
HUP = select.EPOLLHUP               # both directions are shut down; comes unasked
ONESHOT = select.EPOLLONESHOT       # one event, then silence until `Loop.modify`
EXCLUSIVE = select.EPOLLEXCLUSIVE   # of several epoll sets that watch the fd, not all are woken (Linux 4.5)

"""Leaf: the kernel's epoll set, and which slots are in it: SLOT_WATCHED and `Slot.events` are kept here, and what is
armed again is not SLOT_DISARMED any more.

Everything returns 0 or -errno. An entry of the set belongs to an open file, not to a descriptor: what follows from that
stands where it matters.
"""
from libc.errno cimport EEXIST
from libc.stdint cimport uint16_t, uint32_t

cimport epollkit._sys as _sys
from epollkit._slots cimport SLOT_DISARMED, SLOT_EXCLUSIVE, SLOT_WATCHED, Slot, SlotTable, slot_at, slot_tag


cdef inline int set_add(int epoll_fd, Slot *slot, uint32_t events) noexcept nogil:
    """Watch the slot's fd under the slot's tag."""
    cdef int result = _sys.ek_epoll_ctl(epoll_fd, _sys.EPOLL_CTL_ADD, slot.fd, events, slot_tag(slot))
    if result == -EEXIST:
        # No live slot claims the fd, yet the set has it: an unregistered fd that was closed, kept alive by a dup, and
        # came back under its old number. The entry is ours to take over.
        _sys.ek_epoll_ctl(epoll_fd, _sys.EPOLL_CTL_DEL, slot.fd, 0, 0)
        result = _sys.ek_epoll_ctl(epoll_fd, _sys.EPOLL_CTL_ADD, slot.fd, events, slot_tag(slot))
    if result < 0:
        return result
    slot.events = events
    slot.flags &= ~<uint16_t>SLOT_DISARMED
    slot.flags |= SLOT_WATCHED | (SLOT_EXCLUSIVE if events & _sys.EPOLLEXCLUSIVE else 0)
    return 0


cdef inline int set_change(int epoll_fd, Slot *slot, uint32_t events) noexcept nogil:
    """Watch it for something else, or re-arm it. An edge that is already there is reported again."""
    cdef int result = _sys.ek_epoll_ctl(epoll_fd, _sys.EPOLL_CTL_MOD, slot.fd, events, slot_tag(slot))
    if result == 0:
        slot.events = events
        slot.flags &= ~<uint16_t>SLOT_DISARMED
    return result


cdef inline int set_remove(int epoll_fd, Slot *slot) noexcept nogil:
    """No longer watch it. That it has left the set, or was closed, is no error: the user was faster."""
    if slot.flags & SLOT_WATCHED:
        slot.flags &= ~<uint16_t>SLOT_WATCHED
        _sys.ek_epoll_ctl(epoll_fd, _sys.EPOLL_CTL_DEL, slot.fd, 0, 0)
    return 0


cdef inline bint set_holds(int epoll_fd, const Slot *slot) noexcept nogil:
    """Whether a watched slot's fd is still the file that it was registered with, or was closed behind our back and
    means another by now. The kernel knows: it refuses to add a file twice."""
    cdef int result = _sys.ek_epoll_ctl(epoll_fd, _sys.EPOLL_CTL_ADD, slot.fd, 0, slot_tag(slot))
    if result == 0:
        _sys.ek_epoll_ctl(epoll_fd, _sys.EPOLL_CTL_DEL, slot.fd, 0, 0)
    return result == -EEXIST


cdef inline int set_renew(SlotTable *slots, int epoll_fd) noexcept nogil:
    """Put a new set in the place of the old one, under the same number, with every watched slot in it, whose fds all
    are what they were. Each edge that is there is reported once more; a one-shot that has fired stays out until it is
    re-armed. Without memory or a descriptor nothing changes. O(slots)."""
    cdef int fresh_fd = _sys.ek_epoll_create()
    cdef int result = min(fresh_fd, 0)
    cdef uint32_t index
    cdef Slot *slot
    for index in range(slots.fresh):
        slot = slot_at(slots, index)
        if result >= 0 and slot.flags & SLOT_WATCHED and not slot.flags & SLOT_DISARMED:
            result = _sys.ek_epoll_ctl(fresh_fd, _sys.EPOLL_CTL_ADD, slot.fd, slot.events, slot_tag(slot))
    if result >= 0:
        result = _sys.ek_replace(fresh_fd, epoll_fd)
    _sys.ek_close(fresh_fd)
    if result < 0:
        return result
    for index in range(slots.fresh):
        slot = slot_at(slots, index)
        if slot.flags & SLOT_DISARMED:
            slot.flags &= ~<uint16_t>SLOT_WATCHED
    return 0

"""Below the core: names of registrations that may be kept for ever, longer than the loop itself."""
from libc.stdint cimport uint32_t

from epollkit._slots cimport Slot, SlotTable


cdef class Anchor:
    """What is left of a loop for those who name its registrations. One per loop; also tells two loops' tokens apart."""
    cdef const SlotTable *slots     # borrowed; NULL once the loop is gone


cdef class Token:
    cdef Anchor anchor
    cdef readonly uint32_t index
    cdef readonly uint32_t generation

cdef Token make_token(Anchor anchor, const Slot *slot)

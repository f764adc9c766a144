"""Above the core: the calls that users schedule. Where they wait is below it, in `_calls`."""
cimport epollkit._core as _core
from epollkit._calls cimport Timer


cdef class Loop(_core.Loop):
    cdef Timer call_bound(self, _core.Endpoint endpoint, object delay, object function, tuple arguments)

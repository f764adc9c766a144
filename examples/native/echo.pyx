"""An echo server twice, without Python between the kernel's event and the answer. Both answer text with itself.

`StreamEcho` is what a protocol usually is: `Stream` reads, queues and closes, and calls it with bytes. `BareEcho` is on
the bare `Endpoint`: it is told of edges, and what `Stream` does is its own work, on its own fd.
"""
from libc.errno cimport EAGAIN
from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memchr, strerror

cimport epollkit
from epollkit cimport _sys

cdef enum:
    EOT = 4                     # Ctrl-D: the client asks for an end
    BUFFER_BYTES = 16384
    READS_PER_TURN = 16         # one fast peer must not starve the rest


cdef bint check_text(const char *data, Py_ssize_t length) except -1:
    """Whether it has an EOT in it."""
    if memchr(data, 0, length) != NULL:
        raise ValueError("a NUL byte: this is an echo of text")
    return memchr(data, EOT, length) != NULL


cdef class StreamEcho(epollkit.Stream):

    cdef int take_data(self, const char *data, Py_ssize_t length) except -1:
        cdef bint last = check_text(data, length)
        self.put(data, length, None)                # None: `data` is the loop's buffer, so have it copied
        return self.close_softly(epollkit.STREAM_MAY_LINGER) if last else 0

    cdef int take_end(self) except -1:
        return self.close_softly(0)                 # once all is sent


cdef class BareEcho(epollkit.Endpoint):
    cdef char buffer[BUFFER_BYTES]
    cdef Py_ssize_t first, end                      # of the buffer: read, and not yet sent
    cdef bint last                                  # close once that is sent

    cdef int on_ready(self, uint32_t events) except -1:
        """The edge is reported once: read until EAGAIN. One that tells nothing new does no harm."""
        cdef int left = READS_PER_TURN
        cdef Py_ssize_t count
        while self.send_rest():
            if self.last:
                return self.leave(0)
            if left == 0:                           # the edge is spent: come back in the next turn without one
                return self.owner().make_ready(self.slot, <uint16_t>events)
            left -= 1
            count = _sys.ek_recv(self.slot.fd, self.buffer, BUFFER_BYTES)
            if count == -EAGAIN:
                return 0
            if count <= 0:
                return self.leave(<int>-count)
            self.last = check_text(self.buffer, count)
            self.first, self.end = 0, count
        return 0

    cdef bint send_rest(self) except -1:
        """Whether all is sent. If not, OUT will tell when there is room again, or the connection is gone."""
        cdef Py_ssize_t sent
        while self.first < self.end:
            sent = _sys.ek_send(self.slot.fd, self.buffer + self.first, self.end - self.first)
            if sent == -EAGAIN:
                if not self.slot.events & _sys.EPOLLOUT:
                    self.owner().rewatch(self.slot, self.slot.events | _sys.EPOLLOUT)
                return False
            if sent < 0:
                self.leave(<int>-sent)
                return False
            self.first += sent
        return True

    cdef int leave(self, int error) except -1:
        """Close; `self.slot` is NULL from here on. (Over unread input that is a reset. `Stream` would linger.)"""
        reason = OSError(error, strerror(error).decode()) if error else None
        return self.owner().release(self.slot, reason)

    def abort(self):
        """For Python, as of any stream."""
        if self.slot != NULL:
            _sys.ek_reset_on_close(self.slot.fd)
            self.leave(0)

"""Leaf: what a socket has not taken yet, in order: bytes, which are referenced, and pieces of files.

Exists only while there is something. Nobody else knows how a part is let go of.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.pyport cimport PY_SSIZE_T_MAX
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc cimport errno
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memmove

from epollkit._sys cimport (
    EK_ASSERT, EK_FREED, EK_MADE, EK_OUTPUT, ek_close, ek_read_at, ek_send_file, ek_send_parts, iovec,
)

cdef enum:
    SEND_PARTS = 64                 # pieces per sendmsg
    FIRST_PARTS = 4
    PART_COST_BYTES = 64            # what a queued part costs beside its bytes, so that a million tiny ones count

cdef struct Part:
    PyObject *data                  # an owned reference to a bytes object; NULL: a piece of a file
    int file                        # its descriptor, the queue's own
    int64_t offset                  # of the first unsent byte
    int64_t left                    # unsent bytes

cdef struct Output:
    Part *parts
    Py_ssize_t room                 # for so many of them
    Py_ssize_t first                # index of the first one with unsent bytes
    Py_ssize_t end                  # index behind the last one
    Py_ssize_t size                 # unsent bytes in memory
    int64_t file_size               # unsent bytes in files, which cost no memory
    Py_ssize_t limit                # the stream's hard limit when the queue was made


cdef inline Part *output_next(Output *output) noexcept:
    """The place of one more part, still to be filled; NULL: no memory."""
    cdef Part *grown
    cdef Py_ssize_t room
    if output.end == output.room:
        if output.first > output.room // 2:         # more than half of it is sent: move up
            output.end -= output.first
            memmove(output.parts, output.parts + output.first, output.end * sizeof(Part))
            output.first = 0
        else:
            room = output.room * 2
            grown = <Part *>realloc(output.parts, room * sizeof(Part))
            if grown == NULL:
                return NULL
            output.parts = grown
            output.room = room
    output.end += 1
    return &output.parts[output.end - 1]


cdef inline int output_put(Output *output, Part *part, bytes data) noexcept:
    Py_INCREF(data)
    part.data = <PyObject *>data
    part.file = -1
    part.offset = 0
    part.left = PyBytes_GET_SIZE(data)
    output.size += part.left
    return 0


cdef inline Output *output_new(bytes first) noexcept:
    """With that in it, or nothing for None. NULL: no memory. There is room for a first part: nobody is to be left with
    an empty one."""
    cdef Output *output = <Output *>calloc(1, sizeof(Output))
    if output == NULL:
        return NULL
    output.parts = <Part *>malloc(FIRST_PARTS * sizeof(Part))
    if output.parts == NULL:
        free(output)
        return NULL
    output.room = FIRST_PARTS
    output.limit = PY_SSIZE_T_MAX
    EK_MADE(EK_OUTPUT)
    if first is not None:
        output_put(output, output_next(output), first)
    return output


cdef inline int output_drop_part(Part *part) noexcept:
    if part.data != NULL:
        Py_DECREF(<object>part.data)        # bytes: nobody's finalizer
    else:
        ek_close(part.file)
    return 0


cdef inline int output_free(Output *output) noexcept:
    cdef Py_ssize_t i
    if output != NULL:
        for i in range(output.first, output.end):
            output_drop_part(&output.parts[i])
        free(output.parts)
        free(output)
        EK_FREED(EK_OUTPUT)
    return 0


cdef inline int output_append(Output *output, bytes data) except -1:
    cdef Part *part = output_next(output)
    if part == NULL:
        raise MemoryError()
    output_put(output, part, data)
    return 0


cdef inline int output_append_file(Output *output, int file, int64_t offset, int64_t count) except -1:
    """From here on the descriptor is the queue's; not if this raises."""
    cdef Part *part = output_next(output)
    if part == NULL:
        raise MemoryError()
    part.data = NULL
    part.file = file
    part.offset = offset
    part.left = count
    output.file_size += count
    return 0


cdef inline Py_ssize_t output_cost(const Output *output) noexcept:
    """Bytes of memory that count against the limit."""
    return output.size + (output.end - output.first - 1) * PART_COST_BYTES


cdef inline bint output_is_empty(const Output *output) noexcept:
    return output.first == output.end


cdef inline ssize_t output_send(Output *output, int fd, Py_ssize_t most) noexcept:
    """One system call for what is at the head: bytes taken by the socket, or -errno; 0: a file is shorter than it was.
    most: bytes at most, but at least a piece of the first part."""
    cdef iovec vector[SEND_PARTS]
    cdef Py_ssize_t count = 0
    cdef Part *part = &output.parts[output.first]
    cdef int64_t offset = part.offset
    cdef size_t length
    if part.data == NULL:
        return ek_send_file(fd, part.file, &offset, <size_t>min(part.left, <int64_t>most))
    while count < SEND_PARTS and most > 0 and output.first + count < output.end and part.data != NULL:
        length = <size_t>min(part.left, <int64_t>most)
        vector[count].iov_base = PyBytes_AS_STRING(<bytes>part.data) + part.offset
        vector[count].iov_len = length
        most -= length
        count += 1
        part += 1
    return ek_send_parts(fd, vector, count)


cdef inline ssize_t output_peek(const Output *output, char *room, Py_ssize_t size, const char **data) noexcept:
    """What is at the head, for who sends it in another form: where it is, and how many bytes; or -errno, or 0 for a
    file that is shorter than it was. A file is read into `room`."""
    cdef const Part *part = &output.parts[output.first]
    if part.data == NULL:
        data[0] = room
        return ek_read_at(part.file, room, <size_t>min(part.left, <int64_t>size), part.offset)
    data[0] = PyBytes_AS_STRING(<bytes>part.data) + part.offset
    return <ssize_t>min(part.left, <int64_t>size)


cdef inline int output_drop_sent(Output *output, Py_ssize_t count) noexcept:
    """So many bytes from the head are sent."""
    cdef Part *part
    cdef Py_ssize_t taken
    while count > 0:
        EK_ASSERT(output.first < output.end)
        part = &output.parts[output.first]
        taken = <Py_ssize_t>min(part.left, <int64_t>count)
        count -= taken
        part.left -= taken
        part.offset += taken
        if part.data != NULL:
            output.size -= taken
        else:
            output.file_size -= taken
        if part.left == 0:
            output_drop_part(part)          # sent: let go of it now, not when all is sent
            output.first += 1
    return 0

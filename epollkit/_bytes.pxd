"""Leaf: bytes objects for handlers, made of those that the last handlers did not keep.

Above 512 bytes an object comes from malloc, and to take it from there and give it back is a fifth of what an echo of a
kilobyte costs in user space. One that nobody else refers to is ours alone, whatever was in it: CPython's own
_PyBytes_Resize rests on the same.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF

cdef extern from *:
    """
    static inline void ek_bytes_rehash(PyObject *object)
    {
        _Pragma("GCC diagnostic push")
        _Pragma("GCC diagnostic ignored \\"-Wdeprecated-declarations\\"")
        ((PyBytesObject *)object)->ob_shash = -1; /* not computed yet */
        _Pragma("GCC diagnostic pop")
    }

    static inline PyObject *ek_bytes_again(PyObject *object, const char *data, Py_ssize_t length)
    {
        Py_SET_SIZE((PyVarObject *)object, length);
        ek_bytes_rehash(object);
        memcpy(PyBytes_AS_STRING(object), data, (size_t)length);
        PyBytes_AS_STRING(object)[length] = 0;
        return object;
    }
    """
    void ek_bytes_rehash(PyObject *object)
    object ek_bytes_again(PyObject *object, const char *data, Py_ssize_t length)   # takes over the reference
    Py_ssize_t Py_REFCNT(PyObject *object)

cdef enum:
    SPARE_LEAST_BYTES = 480         # smaller objects are from a free list as it is
    SPARE_MOST_BYTES = 16384

cdef struct Spare:
    PyObject *object                # owned; NULL: none
    Py_ssize_t room                 # bytes that it was made for


# What the loop reads into. A handler gets it as it is, without a copy, if a read has filled it.
cdef struct Basin:
    PyObject *object                # owned, and nobody else's
    PyObject *given                 # owned: the handler's that got it last, until nobody has it any more


cdef inline int basin_new(Basin *basin, Py_ssize_t room) except -1:
    made = PyBytes_FromStringAndSize(NULL, room)
    Py_INCREF(made)
    basin.object = <PyObject *>made
    return 0


cdef inline bytes basin_take(Basin *basin, Py_ssize_t room):
    """The object that is full. In its place is the one before, or a new one if somebody has kept that."""
    cdef PyObject *full = basin.object
    cdef PyObject *former = basin.given
    if former != NULL and Py_REFCNT(former) == 1:
        ek_bytes_rehash(former)
        basin.object = former
    else:
        basin_new(basin, room)
        Py_XDECREF(former)
    basin.given = full
    return <bytes>full


cdef inline void basin_free(Basin *basin) noexcept:
    Py_XDECREF(basin.object)
    Py_XDECREF(basin.given)
    basin.object = basin.given = NULL


cdef inline bytes spare_take(Spare *spare, const char *data, Py_ssize_t length, Py_ssize_t *room):
    """These bytes as an object, and what it has room for."""
    cdef PyObject *object = spare.object
    if length > spare.room or object == NULL:
        room[0] = length
        return PyBytes_FromStringAndSize(data, length)
    room[0] = spare.room
    spare.object = NULL
    return ek_bytes_again(object, data, length)


cdef inline int spare_give(Spare *spare, bytes data, Py_ssize_t room) noexcept:
    """What spare_take made was used. Kept by somebody: then it is theirs."""
    cdef PyObject *former = spare.object
    if Py_REFCNT(<PyObject *>data) != 1 or (former != NULL and spare.room >= room):
        return 0
    Py_INCREF(data)
    spare.object = <PyObject *>data
    spare.room = room
    Py_XDECREF(former)
    return 0

from libc.stdint cimport uint32_t, uint64_t

cimport cython
from cpython.pythread cimport PyThread_type_lock

from ghcbcore.clib cimport ghcb_frame_op_t, ghcb_tree_done_t, ghcb_tree_t


@cython.final
cdef class Ledger:
    cdef ghcb_tree_t tree
    cdef PyThread_type_lock lock
    cdef object root  # the numpy array that holds the tree's root
    cdef object __weakref__
    cdef int _begin(self) except -1
    cdef int _frames(
        self, const ghcb_frame_op_t *ops, uint32_t n_ops, const uint64_t *frames, uint64_t n,
        uint64_t n_inside, uint64_t each, ghcb_tree_done_t *done,
    ) noexcept nogil
    cdef object _end(self, int status, uint64_t n_done, str where)


@cython.final
cdef class Snapshot:
    cdef readonly Ledger ledger
    cdef object root
    cdef const uint64_t[::1] slots
    cdef uint32_t n_records  # at the time

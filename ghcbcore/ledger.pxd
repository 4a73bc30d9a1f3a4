from libc.stdint cimport uint64_t

cimport cython
from cpython.pythread cimport PyThread_type_lock

from ghcbcore.clib cimport ghcb_tree_t


@cython.final
cdef class Ledger:
    cdef ghcb_tree_t tree
    cdef PyThread_type_lock lock
    cdef object root  # the numpy array that holds the tree's root
    cdef object __weakref__
    cdef int _begin(self) except -1
    cdef object _end(self, int status, uint64_t n_done, str where)


@cython.final
cdef class Snapshot:
    cdef readonly Ledger ledger
    cdef object root
    cdef const uint64_t[::1] slots

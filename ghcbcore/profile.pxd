cimport cython
from ghcbcore.clib cimport ghcb_profile_t


@cython.final
cdef class Profile:
    cdef ghcb_profile_t c
    cdef readonly object cpuid
    cdef object _table  # what it is a view of

cimport cython
from ghcbcore.clib cimport ghcb_access_t, ghcb_device_t
from libc.stdint cimport uint8_t, uint64_t


@cython.final
cdef class Device:
    cdef ghcb_device_t c
    cdef object _access
    cdef object _memory
    cdef object _owner
    cdef object error  # what a Python function raised while C code called it

    cdef int settle(self) except -1
    cdef int _ask(self, ghcb_access_t *access) noexcept
    cdef int _touch(self, uint64_t gpa, uint8_t *memory, uint64_t n_bytes, int is_write) noexcept

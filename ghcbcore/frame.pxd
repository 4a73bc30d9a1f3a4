from libc.stdint cimport uint64_t

from ghcbcore cimport clib


cdef uint64_t as_number(object value, str name, uint64_t largest) except? 0
cdef int op_from(object given, clib.ghcb_frame_op_t *out) except -1
cdef uint64_t pages_each(const clib.ghcb_frame_op_t *op) noexcept nogil

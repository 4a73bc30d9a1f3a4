from libc.stdint cimport uint64_t

from ghcbcore cimport clib


cdef uint64_t as_number(object value, str name, uint64_t largest) except? 0
cdef int op_from(object given, clib.ghcb_frame_op_t *out) except -1
cdef uint64_t pages_each(const clib.ghcb_frame_op_t *op) noexcept nogil
cdef uint64_t move_pages(
    const clib.ghcb_frame_op_t *op, clib.ghcb_frame_t *source, clib.ghcb_frame_t *destination,
    uint64_t distance, bint source_is_first, bint destination_is_first
) noexcept nogil

from libc.stdint cimport uint8_t, uint64_t

from ghcbcore.clib cimport ghcb_msr_t

# The loops of the module for callers that hold pointers; scalars: clib.ghcb_msr_decode and so on.
cdef void decode_into(const uint64_t *values, ghcb_msr_t *out, Py_ssize_t n) noexcept nogil
cdef void check_into(
    const uint64_t *requests, const uint64_t *answers, uint8_t *out, Py_ssize_t n
) noexcept nogil

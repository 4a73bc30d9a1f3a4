from libc.stdint cimport uint8_t

from ghcbcore.clib cimport ghcb_decoded_t

# The loop of the module for callers that hold pointers: n pages, `step` bytes apart.
cdef void decode_into(
    const uint8_t *pages, Py_ssize_t step, int side, int snp, ghcb_decoded_t *out, Py_ssize_t n
) noexcept nogil

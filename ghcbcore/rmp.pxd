from libc.stdint cimport uint64_t

from ghcbcore.clib cimport ghcb_rmp_t

# The loops of the module for callers that hold pointers: two words for each entry.
cdef void decode_into(
    const uint64_t *words, ghcb_rmp_t *out, Py_ssize_t n, bint is_arch
) noexcept nogil

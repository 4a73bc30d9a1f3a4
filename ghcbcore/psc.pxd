from libc.stdint cimport uint8_t, uint64_t

from ghcbcore.clib cimport ghcb_psc_entry_t, ghcb_psc_header_t

# The loops of the module for callers that hold pointers; buffers are `step` bytes apart, entries
# GHCB_PSC_MAX_ENTRIES for each.
cdef void decode_into(
    const uint8_t *buffers,
    Py_ssize_t step,
    uint64_t n_bytes,
    ghcb_psc_header_t *headers,
    ghcb_psc_entry_t *entries,
    Py_ssize_t n,
) noexcept nogil
cdef void entries_into(const uint64_t *raw, ghcb_psc_entry_t *out, Py_ssize_t n) noexcept nogil

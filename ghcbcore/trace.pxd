from libc.stdint cimport uint8_t, uint64_t

from ghcbcore.clib cimport ghcb_trace_line_t


cdef class Scanner:
    cdef object _lock
    cdef uint64_t lines
    cdef uint64_t bytes
    cdef uint64_t line_offset  # of the line that is being carried
    cdef Py_ssize_t carried
    cdef bint too_long  # the carried line is longer than what is kept of it
    cdef bint cut_off
    cdef object _carry
    cdef char *carry
    cdef object _names
    cdef char *names
    cdef object _lengths
    cdef uint8_t *lengths
    cdef Py_ssize_t n_names
    cdef uint8_t slots[512]
    cdef Py_ssize_t scan_into(
        self, const char *p, Py_ssize_t size, ghcb_trace_line_t *out, Py_ssize_t room,
        Py_ssize_t *used,
    ) noexcept nogil
    cdef bint take(
        self, const char *p, const char *end, uint64_t offset, ghcb_trace_line_t *out
    ) noexcept nogil
    cdef bint take_carried(self, ghcb_trace_line_t *out) noexcept nogil
    cdef void keep(self, const char *p, Py_ssize_t n) noexcept nogil
    cdef uint8_t intern(self, const char *name, uint64_t n) noexcept nogil

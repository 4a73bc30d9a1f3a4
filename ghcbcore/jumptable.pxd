from libc.stdint cimport uint8_t, uint64_t

cdef int place(uint8_t *page, uint64_t gpa) noexcept nogil

# Distinct parts of records, and the hash under which parts and states are found.

from libc.stdint cimport uint32_t, uint64_t

cimport cython


cdef extern from *:
    """
    /* Both halves of a product: of a difference in the highest bits, the low half alone would keep
     * a few bits, which a difference in the next word can undo. */
    static inline uint64_t ghcb_fold(uint64_t a, uint64_t b)
    {
        __extension__ const unsigned __int128 product = (unsigned __int128)a * b;

        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    """
    uint64_t ghcb_fold(uint64_t a, uint64_t b) noexcept nogil


cdef inline uint64_t mix(uint64_t h, uint64_t w) noexcept nogil:
    return ghcb_fold(h ^ w, <uint64_t> 0x9e3779b97f4a7c15)


cdef inline uint64_t hash_words(const uint64_t *words, Py_ssize_t n) noexcept nogil:
    cdef uint64_t h = <uint64_t> 0x243f6a8885a308d3
    cdef Py_ssize_t i
    for i in range(n):
        h = mix(h, words[i])
    h *= <uint64_t> 0xbf58476d1ce4e5b9
    return h ^ (h >> 32)


@cython.final
cdef class Parts:
    cdef object _data, _index
    cdef uint64_t *data
    cdef uint32_t *index
    cdef Py_ssize_t width, n, capacity
    cdef uint64_t mask

    cdef int _allocate(self, Py_ssize_t capacity) except -1
    cdef Py_ssize_t find(self, const uint64_t *part) noexcept nogil
    cdef Py_ssize_t intern(self, const uint64_t *part) except -1
    cdef Py_ssize_t bytes(self) noexcept
    cdef bint is_full_for(self, const uint64_t *part) noexcept

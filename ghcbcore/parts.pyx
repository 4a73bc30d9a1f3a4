"""Distinct parts of records (global parts, or slices), each stored once, numbered from 0.

What an explorer's states are made of; see ``ghcbcore.explorer``.
"""

import numpy as _np

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

__all__ = ["Parts"]


@cython.final
@cython.auto_pickle(False)
cdef class Parts:
    """Parts(width)\n--\n
    A set of arrays of ``width`` words each.
    """

    def __cinit__(self, Py_ssize_t width):
        self.width = width
        self.n = 0
        self._allocate(256)

    cdef int _allocate(self, Py_ssize_t capacity) except -1:
        data = _np.zeros((capacity, self.width), dtype=_np.uint64)
        if self.n:
            data[: self.n] = self._data[: self.n]
        self._data = data
        self._index = _np.zeros(4 * capacity, dtype=_np.uint32)
        cdef uint64_t[:, ::1] d = self._data
        cdef uint32_t[::1] x = self._index
        self.data = &d[0, 0]
        self.index = &x[0]
        self.capacity = capacity
        self.mask = <uint64_t> (4 * capacity - 1)
        cdef Py_ssize_t i
        cdef uint64_t slot
        for i in range(self.n):
            slot = hash_words(self.data + i * self.width, self.width) & self.mask
            while self.index[slot]:
                slot = (slot + 1) & self.mask
            self.index[slot] = <uint32_t> (i + 1)
        return 0

    cdef Py_ssize_t find(self, const uint64_t *part) noexcept nogil:
        """Return the number of a part, -1 if it was never met."""
        cdef uint64_t slot = hash_words(part, self.width) & self.mask
        while self.index[slot]:
            if memcmp(self.data + (self.index[slot] - 1) * self.width, part, self.width * 8) == 0:
                return self.index[slot] - 1
            slot = (slot + 1) & self.mask
        return -1

    cdef Py_ssize_t intern(self, const uint64_t *part) except -1:
        """Return the number of a part, a new one if it was never met."""
        cdef Py_ssize_t found = self.find(part)
        if found >= 0:
            return found
        if self.n == self.capacity:
            self._allocate(2 * self.capacity)
        cdef uint64_t slot = hash_words(part, self.width) & self.mask
        while self.index[slot]:
            slot = (slot + 1) & self.mask
        memcpy(self.data + self.n * self.width, part, self.width * 8)
        self.n += 1
        self.index[slot] = <uint32_t> self.n
        return self.n - 1

    cdef Py_ssize_t bytes(self) noexcept:
        return self.capacity * (self.width * 8 + 16)

    cdef bint is_full_for(self, const uint64_t *part) noexcept:
        return self.n == self.capacity and self.find(part) < 0

    def table(self):
        """Return all parts, shape (n, width), read-only."""
        view = self._data[: self.n]
        view.flags.writeable = False
        return view

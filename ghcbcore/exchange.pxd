from libc.stdint cimport uint16_t, uint32_t, uint64_t

from ghcbcore.clib cimport ghcb_exchange_t, ghcb_trace_line_t


cdef struct Vcpu:
    uint64_t last_ns
    uint64_t n_lost
    ghcb_exchange_t open
    uint32_t pid
    uint32_t vcpu
    bint is_open
    bint seen
    bint booted
    bint registered


cdef class Pairer:
    cdef object _lock
    cdef object _vcpus  # bytes of Vcpu
    cdef object _index
    cdef Vcpu *table
    cdef uint32_t *index
    cdef Py_ssize_t count
    cdef Py_ssize_t room
    cdef Py_ssize_t added  # since vCPUs were last forgotten
    cdef uint64_t forgotten
    cdef uint64_t mask
    cdef uint64_t untracked
    cdef uint64_t lost
    cdef uint64_t offered
    cdef uint64_t first_ns
    cdef uint64_t last_ns
    cdef uint16_t version
    cdef bint snp
    cdef Py_ssize_t next_open
    cdef uint64_t *keys  # two for each kind: is it a page's, and its code
    cdef object _keys
    cdef uint16_t slots[1024]
    cdef Py_ssize_t n_kinds
    cdef object _bins
    cdef uint64_t *bins
    cdef object _stats
    cdef uint64_t *stats
    cdef object _line_counts
    cdef uint64_t *by_kind
    cdef object _name_counts
    cdef uint64_t *by_name
    cdef int grow(self) except -1
    cdef void forget(self) noexcept nogil
    cdef uint64_t place(self, uint32_t pid, uint32_t vcpu) noexcept nogil
    cdef Vcpu *find(self, uint32_t pid, uint32_t vcpu) noexcept nogil
    cdef uint16_t kind_of(self, bint page, uint64_t code) noexcept nogil
    cdef int take(self, const ghcb_trace_line_t *line, ghcb_exchange_t *out) noexcept nogil
    cdef bint backwards(self, Vcpu *vcpu, uint64_t time_ns) noexcept nogil
    cdef void begin(self, Vcpu *vcpu, const ghcb_trace_line_t *line, bint page) noexcept nogil
    cdef void fill(
        self, ghcb_exchange_t *x, const ghcb_trace_line_t *line, bint page
    ) noexcept nogil
    cdef void learn(self, Vcpu *vcpu, const ghcb_exchange_t *x) noexcept nogil
    cdef void give(self, Vcpu *vcpu, ghcb_exchange_t *out) noexcept nogil

# States as keys of a few bytes, what they are made of, and what can follow from their parts.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cimport cython
from ghcbcore.machine cimport Program
from ghcbcore.parts cimport Parts, hash_words, mix


cdef enum:
    CHUNK_BITS = 18           # states in a chunk of keys
    CHUNK = 1 << 18
    CHUNK_MASK = CHUNK - 1
    MAX_CHUNKS = (1 << 14) - 1  # below 4 G states: a parent and an entry of the index are uint32
    MAX_OTHERS = 63
    MAX_WORDS = 17            # of a key: 4 + 63 * 2 bytes
    NO_SLICE = 0xffffffff
    PLAIN = 0                 # kinds of a remembered transition
    ALL = 1                   # reaches every slice
    PAIR = 2                  # own slice and another: guards not evaluated yet


cdef inline bint same_words(const uint64_t *a, const uint64_t *b, Py_ssize_t n) noexcept nogil:
    """A key has a few words: less than a call of memcmp."""
    cdef Py_ssize_t i
    for i in range(n):
        if a[i] != b[i]:
            return False
    return True


cdef inline void copy_words(uint64_t *to, const uint64_t *words, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        to[i] = words[i]


cdef inline void settle_down(uint16_t *ids, Py_ssize_t i) noexcept nogil:
    cdef uint16_t x = ids[i]
    while i > 0 and ids[i - 1] > x:
        ids[i] = ids[i - 1]
        i -= 1
    ids[i] = x


cdef inline void settle(uint16_t *ids, Py_ssize_t n, Py_ssize_t i) noexcept nogil:
    """Put the one element that changed, at ``i``, to its place in an otherwise sorted array."""
    cdef uint16_t x = ids[i]
    while i + 1 < n and ids[i + 1] < x:
        ids[i] = ids[i + 1]
        i += 1
    ids[i] = x
    settle_down(ids, i)


cdef inline void sort_ids(uint16_t *ids, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(1, n):
        settle_down(ids, i)


cdef class StateSpace:
    cdef readonly Program program
    cdef readonly Py_ssize_t n_others
    cdef readonly bint symmetric
    cdef readonly bint fingerprints
    cdef readonly uint64_t n_states
    cdef readonly uint64_t n_transitions
    cdef readonly uint64_t n_executed
    cdef readonly Py_ssize_t max_bytes
    cdef Parts globals_, slices_
    cdef Py_ssize_t gb, sb, words, size_bytes
    # states: chunks of keys, of parents, and of hashes if keys are given up
    cdef list _chunks
    cdef uint64_t *keys[MAX_CHUNKS]
    cdef uint32_t *parents[MAX_CHUNKS]
    cdef uint64_t *prints[MAX_CHUNKS]
    cdef uint64_t released
    cdef object _index
    cdef uint32_t *index
    cdef uint64_t mask
    # remembered transitions: (global, slice) -> a run of transitions
    cdef object _memo_keys, _memo_entry
    cdef uint64_t *memo_keys
    cdef uint32_t *memo_entry
    cdef uint64_t memo_mask, memo_n
    cdef object _run_first, _run_n, _run_alone, _tr, _learned
    cdef uint32_t *run_first
    cdef uint32_t *run_n
    cdef uint32_t *run_alone  # 1 + its transition that may be followed alone, or 0
    cdef uint32_t *tr         # four numbers each: alternative, global after, slice after, kind
    cdef uint64_t *learned_   # keys of the memo in the order in which they were learned
    cdef Py_ssize_t n_runs, n_tr
    cdef object _alone
    cdef const uint8_t *alone
    cdef object _scratch
    cdef uint64_t *scratch    # a whole record
    cdef object _terminals
    cdef Py_ssize_t n_terminals
    cdef object _lock         # held by whoever changes the space while the GIL is released

    cdef int _account(self, Py_ssize_t more) except -1
    cdef Py_ssize_t _intern(self, Parts parts, const uint64_t *part) except -1
    cdef int _check_widths(self) except -1
    cdef int _add(self, const uint64_t[::1] record) except -1
    cdef int _grow_chunks(self) except -1
    cdef int _grow_index(self, Py_ssize_t size) except -1
    cdef int _make_room(self, Py_ssize_t n) except -1
    cdef int _count_in(self, uint64_t first, uint64_t end) except -1
    cdef int _grow_memo(self, Py_ssize_t size) except -1
    cdef uint32_t _learn(self, uint32_t g, uint32_t s) except? 0xffffffff
    cdef uint32_t _remember(self, list found) except? 0xffffffff
    cdef int _idle(self) except -1
    cdef int _there(self, uint64_t first, uint64_t end) except -1

    @cython.final
    cdef inline uint64_t *key(self, uint64_t state) noexcept nogil:
        return self.keys[state >> CHUNK_BITS] + (state & CHUNK_MASK) * self.words

    @cython.final
    cdef inline uint64_t hash_of(self, uint64_t state) noexcept nogil:
        if self.fingerprints:
            return self.prints[state >> CHUNK_BITS][state & CHUNK_MASK]
        return hash_words(self.key(state), self.words)

    @cython.final
    cdef inline bint is_state(self, uint64_t state, const uint64_t *key, uint64_t h) noexcept nogil:
        if self.fingerprints:
            return self.prints[state >> CHUNK_BITS][state & CHUNK_MASK] == h
        return same_words(self.key(state), key, self.words)

    @cython.final
    cdef inline uint64_t slot_of(self, const uint64_t *key, uint64_t h) noexcept nogil:
        """Return where the index has the state of this key, or would have it."""
        cdef uint64_t slot = h & self.mask
        while self.index[slot] and not self.is_state(self.index[slot] - 1, key, h):
            slot = (slot + 1) & self.mask
        return slot

    @cython.final
    cdef inline Py_ssize_t number_of(self, const uint64_t *key) noexcept nogil:
        """Return the number of the state that has this key, -1 if it was not found yet."""
        return <Py_ssize_t> self.index[self.slot_of(key, hash_words(key, self.words))] - 1

    @cython.final
    cdef inline void pack(self, uint32_t g, const uint16_t *ids, uint64_t *key) noexcept nogil:
        cdef Py_ssize_t i
        cdef uint8_t *at = <uint8_t *> key
        memset(key, 0, 8 * self.words)
        memcpy(at, &g, self.gb)
        at += self.gb
        if self.sb == 1:
            for i in range(self.n_others):
                at[i] = <uint8_t> ids[i]
        else:
            memcpy(at, ids, 2 * self.n_others)

    @cython.final
    cdef inline uint32_t unpack(self, const uint64_t *key, uint16_t *ids) noexcept nogil:
        cdef Py_ssize_t i
        cdef const uint8_t *at = <const uint8_t *> key
        cdef uint32_t g = 0
        memcpy(&g, at, self.gb)
        at += self.gb
        if self.sb == 1:
            for i in range(self.n_others):
                ids[i] = at[i]
        else:
            memcpy(ids, at, 2 * self.n_others)
        return g

    @cython.final
    cdef inline uint64_t _memo_slot(self, uint64_t key) noexcept nogil:
        cdef uint64_t slot = mix(key, 1) & self.memo_mask
        while self.memo_entry[slot] and self.memo_keys[slot] != key:
            slot = (slot + 1) & self.memo_mask
        return slot

"""All orders of events, breadth first: the reachable states of a program as arrays.

Theory of operation. A state of n CPUs is the id of its global part and the ids of its n slices;
each distinct part is stored once, so a state is a key of a few bytes and the set of states is an
array of keys with an index of 32-bit numbers over it. With ``symmetric`` the slice ids are sorted:
states that differ only in which CPU is which are one state. The step is *executed* once for each
pair (global part, slice) and remembered; everything else is look-up. Operations that reach every
slice, or two slices at once, take a slow path that executes them on a whole record.

Nothing is lossy: two states are equal only if their keys are, and keys only if their parts are.

``PlainExplorer`` does the same over whole records and without any of this; the tests hold the two
against each other.
"""

from threading import Lock as _Lock

import numpy as _np

from ghcbcore import errors as _errors

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from ghcbcore cimport clib
from ghcbcore.clib cimport ghcb_alt_t, ghcb_role_t
from ghcbcore.machine cimport Program, apply, enabled
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

__all__ = ["Explorer", "MemoryLimit", "NarrowIds", "PlainExplorer"]


cdef enum:
    CHUNK_BITS = 18           # states in a chunk of keys
    CHUNK = 1 << 18
    CHUNK_MASK = CHUNK - 1
    MAX_CHUNKS = (1 << 14) - 1  # below 4 G states: a parent and an entry of the index are uint32
    MAX_OTHERS = 63
    MAX_WORDS = 17            # of a key: 4 + 63 * 2 bytes
    UNINTERRUPTED = 1 << 16   # states between two looks at signals
    BATCH = 1024              # keys that are hashed and prefetched before they are looked up
    NO_SLICE = 0xffffffff
    PLAIN = 0                 # kinds of a remembered transition
    ALL = 1                   # reaches every slice
    PAIR = 2                  # own slice and another: guards not evaluated yet


cdef extern from *:
    """
    static inline void ghcb_prefetch(const void *p) { __builtin_prefetch(p); }
    """
    void ghcb_prefetch(const void *p) noexcept nogil


class NarrowIds(Exception):
    """There are more distinct parts than the ids of this explorer can number."""


class MemoryLimit(Exception):
    """The next growth would pass the bound that was asked for; what was found stays valid."""


cdef inline uint64_t mix(uint64_t h, uint64_t w) noexcept nogil:
    h = (h ^ w) * <uint64_t> 0x9e3779b97f4a7c15
    return h ^ (h >> 29)


cdef inline uint64_t hash_words(const uint64_t *words, Py_ssize_t n) noexcept nogil:
    cdef uint64_t h = <uint64_t> 0x243f6a8885a308d3
    cdef Py_ssize_t i
    for i in range(n):
        h = mix(h, words[i])
    h *= <uint64_t> 0xbf58476d1ce4e5b9
    return h ^ (h >> 32)


cdef inline bint same_words(const uint64_t *a, const uint64_t *b, Py_ssize_t n) noexcept nogil:
    """A key has a few words: less than a call of memcmp."""
    cdef Py_ssize_t i
    for i in range(n):
        if a[i] != b[i]:
            return False
    return True


@cython.final
cdef class Parts:
    """Distinct parts of records (global parts, or slices), each stored once, numbered from 0."""

    cdef object _data, _index
    cdef uint64_t *data
    cdef uint32_t *index
    cdef Py_ssize_t width, n, capacity
    cdef uint64_t mask

    def __init__(self, Py_ssize_t width):
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
        cdef uint64_t slot = hash_words(part, self.width) & self.mask
        while self.index[slot]:
            if memcmp(self.data + (self.index[slot] - 1) * self.width, part, self.width * 8) == 0:
                return self.index[slot] - 1
            slot = (slot + 1) & self.mask
        return -1

    cdef Py_ssize_t intern(self, const uint64_t *part) except -1:
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
        view = self._data[: self.n]
        view.flags.writeable = False
        return view


@cython.final
cdef class Explorer:
    """Explorer(program, record, *, symmetric=True, global_bytes=2, slice_bytes=1, max_bytes=8589934592)\n--\n
    Parameters
    ----------
    program : Program
    record : uint64 array
        The first state.
    symmetric : bool
        CPUs that are alike are alike: sort them. Exact, since an alternative cannot name a CPU by
        its number; switch it off to see what it saves. Ignored for a program that is ``ordered``.
    global_bytes, slice_bytes : int
        Width of the ids in a key: 2 or 4, and 1 or 2.
    max_bytes : int
        Bound on the memory of states, index, parts and remembered transitions: ``n_bytes`` never
        passes it.

    One thread at a time: while one is in ``expand``, the methods refuse the others. The attributes
    can be read at any time.

    Raises
    ------
    NarrowIds
        Ids of this width do not suffice; start again with wider ones.
    MemoryLimit
        The bound is reached. From ``expand``: the states found so far stay valid, the last one
        that was looked at may lack successors. From the constructor: not even one state fits.
    """

    cdef readonly Program program
    cdef readonly Py_ssize_t n_others
    cdef readonly bint symmetric
    cdef readonly uint64_t n_states
    cdef readonly uint64_t n_transitions
    cdef readonly uint64_t n_executed
    cdef readonly Py_ssize_t max_bytes
    cdef Parts globals_, slices_
    cdef Py_ssize_t gb, sb, words, size_bytes
    cdef list _chunks
    cdef uint64_t *keys[MAX_CHUNKS]
    cdef uint32_t *parents[MAX_CHUNKS]
    cdef object _index
    cdef uint32_t *index
    cdef uint64_t mask
    # remembered transitions: (global, slice) -> a run of transitions
    cdef object _memo_keys, _memo_entry
    cdef uint64_t *memo_keys
    cdef uint32_t *memo_entry
    cdef uint64_t memo_mask, memo_n
    cdef object _run_first, _run_n, _tr
    cdef uint32_t *run_first
    cdef uint32_t *run_n
    cdef uint32_t *tr  # four numbers each: alternative, global after, slice after, kind
    cdef Py_ssize_t n_runs, n_tr
    # scratch
    cdef object _batch, _scratch
    cdef uint64_t *batch
    cdef uint64_t hashes[BATCH]
    cdef uint32_t batch_parent[BATCH]
    cdef Py_ssize_t n_batch
    cdef uint64_t *scratch
    cdef list _terminals
    # while `reach_back` runs: the marks of the states, and whether a marked one was met
    cdef uint8_t *marks
    cdef uint8_t met
    cdef uint32_t *edges  # pairs of states, collected where it is not NULL
    cdef Py_ssize_t n_edges, edges_bytes
    cdef uint64_t looking
    cdef object _lock  # held by expand, which releases the GIL

    def __cinit__(
        self,
        Program program not None,
        const uint64_t[::1] record not None,
        *,
        bint symmetric=True,
        Py_ssize_t global_bytes=2,
        Py_ssize_t slice_bytes=1,
        Py_ssize_t max_bytes=8 << 30,
    ):
        self.program = program
        self.n_others = program.n_cpus(record)
        if self.n_others > MAX_OTHERS:
            raise _errors.OutOfRange(f"{self.n_others + 1} CPUs: check takes at most {MAX_OTHERS + 1}")
        if global_bytes not in (2, 4) or slice_bytes not in (1, 2):
            raise _errors.OutOfRange(f"ids of {global_bytes} and {slice_bytes} bytes")
        self.symmetric = symmetric and not program.ordered
        self.max_bytes = max_bytes
        self.gb, self.sb = global_bytes, slice_bytes
        self.words = (self.gb + self.n_others * self.sb + 7) // 8
        self.globals_ = Parts(program.n_global)
        self.slices_ = Parts(program.n_slice)
        self._chunks = []
        self._terminals = []
        self._lock = _Lock()
        self._batch = _np.zeros((BATCH, self.words), dtype=_np.uint64)
        self._scratch = _np.zeros(program.n_global + (self.n_others + 1) * program.n_slice, dtype=_np.uint64)
        cdef uint64_t[:, ::1] batch = self._batch
        cdef uint64_t[::1] scratch = self._scratch
        self.batch = &batch[0, 0]
        self.scratch = &scratch[0]
        self._grow_index(1 << 14)
        self._grow_memo(1 << 10)
        self._run_first = _np.zeros(0, dtype=_np.uint32)
        self._run_n = _np.zeros(0, dtype=_np.uint32)
        self._tr = _np.zeros((0, 4), dtype=_np.uint32)
        self._add(record)

    # -- storage ---------------------------------------------------------------------------

    cdef int _account(self, Py_ssize_t more) except -1:
        if self.size_bytes + more + self.globals_.bytes() + self.slices_.bytes() > self.max_bytes:
            raise MemoryLimit(f"{self.n_states} states take {self.size_bytes >> 20} MiB")
        self.size_bytes += more
        return 0

    cdef Py_ssize_t _intern(self, Parts parts, const uint64_t *part) except -1:
        if parts.is_full_for(part):
            # the old table lives until its parts are copied into one of twice the size
            self._account(2 * parts.bytes())
            self.size_bytes -= 2 * parts.bytes()
        return parts.intern(part)

    cdef int _grow_index(self, Py_ssize_t size) except -1:
        self._account(4 * size)
        if self._index is not None:
            self.size_bytes -= self._index.nbytes
        cdef Py_ssize_t old_size = 0 if self._index is None else len(self._index)
        self._index = None  # freed before the larger one is made: it is rebuilt from the keys
        try:
            self._index = _np.zeros(size, dtype=_np.uint32)
        except MemoryError:
            if old_size:
                self.size_bytes -= 4 * size
                self._grow_index(old_size)
            raise
        cdef uint32_t[::1] view = self._index
        self.index = &view[0]
        self.mask = <uint64_t> (size - 1)
        cdef uint64_t i, slot
        with nogil:
            for i in range(self.n_states):
                slot = hash_words(self.key(i), self.words) & self.mask
                while self.index[slot]:
                    slot = (slot + 1) & self.mask
                self.index[slot] = <uint32_t> (i + 1)
        return 0

    cdef int _grow_chunks(self) except -1:
        cdef Py_ssize_t n = len(self._chunks)
        if n == MAX_CHUNKS:
            raise MemoryLimit(f"{self.n_states} states: parents are 32-bit numbers")
        self._account(CHUNK * (8 * self.words + 4))
        keys = _np.empty((CHUNK, self.words), dtype=_np.uint64)
        parents = _np.empty(CHUNK, dtype=_np.uint32)
        cdef uint64_t[:, ::1] k = keys
        cdef uint32_t[::1] p = parents
        self._chunks.append((keys, parents))
        self.keys[n] = &k[0, 0]
        self.parents[n] = &p[0]
        return 0

    cdef inline uint64_t *key(self, uint64_t state) noexcept nogil:
        return self.keys[state >> CHUNK_BITS] + (state & CHUNK_MASK) * self.words

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

    cdef int _check_widths(self) except -1:
        # a literal would be shifted as a C int, in which four bytes of id leave nothing
        cdef Py_ssize_t one = 1
        if self.globals_.n > one << (8 * self.gb) or self.slices_.n > one << (8 * self.sb):
            raise NarrowIds(f"{self.globals_.n} global parts, {self.slices_.n} slices")
        return 0

    cdef uint32_t _intern_record(self, const uint64_t *record, uint16_t *ids) except? 0xffffffff:
        cdef Py_ssize_t i
        cdef uint32_t g = <uint32_t> self._intern(self.globals_, record)
        for i in range(self.n_others):
            ids[i] = <uint16_t> self._intern(
                self.slices_, record + self.program.n_global + i * self.program.n_slice
            )
        self._check_widths()
        if self.symmetric:
            sort_ids(ids, self.n_others)
        return g

    cdef int _add(self, const uint64_t[::1] record) except -1:
        cdef uint16_t ids[MAX_OTHERS + 1]
        cdef uint32_t g = self._intern_record(&record[0], ids)
        self.pack(g, ids, self.batch)
        self.batch_parent[0] = 0
        self.n_batch = 1
        self.flush()
        return 0

    # -- successors ------------------------------------------------------------------------

    cdef int flush(self) except -1:
        """Look up the batch; add what is new, in order."""
        cdef Py_ssize_t i
        cdef uint64_t slot, h
        cdef uint64_t *k
        if 10 * (self.n_states + <uint64_t> self.n_batch) > 6 * (self.mask + 1):
            self._grow_index(2 * <Py_ssize_t> (self.mask + 1))
        while self.n_states + <uint64_t> self.n_batch > <uint64_t> len(self._chunks) * CHUNK:
            self._grow_chunks()
        with nogil:
            for i in range(self.n_batch):
                h = hash_words(self.batch + i * self.words, self.words)
                self.hashes[i] = h
                ghcb_prefetch(self.index + (h & self.mask))
            for i in range(self.n_batch):
                k = self.batch + i * self.words
                slot = self.hashes[i] & self.mask
                while self.index[slot]:
                    if same_words(self.key(self.index[slot] - 1), k, self.words):
                        break
                    slot = (slot + 1) & self.mask
                if self.index[slot] == 0:
                    memcpy(self.key(self.n_states), k, 8 * self.words)
                    self.parents[self.n_states >> CHUNK_BITS][self.n_states & CHUNK_MASK] = (
                        self.batch_parent[i]
                    )
                    self.n_states += 1
                    self.index[slot] = <uint32_t> self.n_states
        self.n_batch = 0
        return 0

    cdef int _grow_memo(self, Py_ssize_t size) except -1:
        self._account(12 * size)
        old_keys, old_entry = self._memo_keys, self._memo_entry
        new_keys, new_entry = _np.zeros(size, dtype=_np.uint64), _np.zeros(size, dtype=_np.uint32)
        self._memo_keys, self._memo_entry = new_keys, new_entry
        cdef uint64_t[::1] k = self._memo_keys
        cdef uint32_t[::1] e = self._memo_entry
        self.memo_keys = &k[0]
        self.memo_entry = &e[0]
        self.memo_mask = <uint64_t> (size - 1)
        if old_keys is None:
            return 0
        self.size_bytes -= 12 * <Py_ssize_t> len(old_keys)
        cdef uint64_t slot
        cdef Py_ssize_t i
        k, e = old_keys, old_entry
        for i in range(e.shape[0]):
            if e[i]:
                slot = self._memo_slot(k[i])
                self.memo_keys[slot] = k[i]
                self.memo_entry[slot] = e[i]
        return 0

    cdef inline uint64_t _memo_slot(self, uint64_t key) noexcept nogil:
        cdef uint64_t slot = mix(key, 1) & self.memo_mask
        while self.memo_entry[slot] and self.memo_keys[slot] != key:
            slot = (slot + 1) & self.memo_mask
        return slot

    cdef uint32_t _learn(self, uint32_t g, uint32_t s) except? 0xffffffff:
        """Execute what a global part and a slice (or none) can do together; remember it."""
        if 2 * self.memo_n > self.memo_mask:
            self._grow_memo(2 * <Py_ssize_t> (self.memo_mask + 1))
        found = []
        cdef const ghcb_role_t *role
        cdef const ghcb_alt_t *alt
        cdef Py_ssize_t r, n_global = self.program.n_global, n_slice = self.program.n_slice
        cdef uint64_t *sg = self.scratch
        cdef uint64_t *ss = self.scratch + n_global
        cdef const uint64_t *pg
        cdef const uint64_t *ps
        cdef uint64_t *at
        cdef uint32_t a, first
        cdef bint per_cpu
        for r in range(self.program.n_roles):
            role = self.program.role + r
            per_cpu = role.block == clib.GHCB_BLOCK_OWN
            if per_cpu and s == NO_SLICE:
                continue
            pg = self.globals_.data + g * n_global
            ps = self.slices_.data + s * n_slice if s != NO_SLICE else NULL
            memcpy(sg, pg, 8 * n_global)
            if ps != NULL:
                memcpy(ss, ps, 8 * n_slice)
            at = ss if per_cpu else sg
            if at[role.pc_word] >= role.n_pcs:
                raise _errors.OutOfRange(f"role {r}: position {at[role.pc_word]}")
            first = role.first + <uint32_t> at[role.pc_word]
            for a in range(self.program.first_alt[first], self.program.first_alt[first + 1]):
                alt = self.program.alt + a
                if not per_cpu and (alt.binds != clib.GHCB_BIND_NONE) != (s != NO_SLICE):
                    continue
                if per_cpu and alt.binds:
                    found.append((a, 0, 0, PAIR))
                    continue
                memcpy(sg, self.globals_.data + g * n_global, 8 * n_global)
                if s != NO_SLICE:
                    memcpy(ss, self.slices_.data + s * n_slice, 8 * n_slice)
                if not enabled(self.program.code, alt, sg, ss, ss):
                    continue
                if alt.each:
                    found.append((a, 0, 0, ALL))
                    continue
                apply(self.program.code, alt, &self.program.profile.c, &self.program.tables, sg, ss, ss, NULL, 0, 0, NULL)
                self.n_executed += 1
                g2 = self._intern(self.globals_, sg)
                s2 = self._intern(self.slices_, ss) if s != NO_SLICE else 0
                found.append((a, g2, s2, PLAIN))
        self._check_widths()
        cdef uint32_t run = self._remember(found)
        cdef uint64_t key = <uint64_t> g << 32 | (s + 1 if s != NO_SLICE else 0)
        cdef uint64_t slot = self._memo_slot(key)
        self.memo_keys[slot] = key
        self.memo_entry[slot] = run + 1
        self.memo_n += 1
        return run

    cdef uint32_t _remember(self, list found) except? 0xffffffff:
        cdef uint32_t[::1] view
        cdef uint32_t[:, ::1] view2
        if self.n_runs == len(self._run_first):
            more = max(1024, 2 * self.n_runs)
            self._account(8 * (more - self.n_runs))
            self._run_first = _grown(self._run_first, more)
            self._run_n = _grown(self._run_n, more)
            view = self._run_first
            self.run_first = &view[0]
            view = self._run_n
            self.run_n = &view[0]
        if self.n_tr + <Py_ssize_t> len(found) > len(self._tr):
            more = max(4096, 2 * (self.n_tr + len(found)))
            self._account(16 * (more - len(self._tr)))
            self._tr = _grown(self._tr, more)
            view2 = self._tr
            self.tr = &view2[0, 0]
        if found:
            self._tr[self.n_tr : self.n_tr + len(found)] = found
        self.run_first[self.n_runs] = <uint32_t> self.n_tr
        self.run_n[self.n_runs] = <uint32_t> len(found)
        self.n_tr += len(found)
        self.n_runs += 1
        return <uint32_t> (self.n_runs - 1)

    cdef inline uint32_t run(self, uint32_t g, uint32_t s) except? 0xffffffff nogil:
        cdef uint64_t key = <uint64_t> g << 32 | (s + 1 if s != NO_SLICE else 0)
        cdef uint64_t slot = self._memo_slot(key)
        if self.memo_entry[slot]:
            return self.memo_entry[slot] - 1
        with gil:
            return self._learn(g, s)

    cdef inline int emit(self, uint64_t parent, uint32_t g, const uint16_t *ids) except -1 nogil:
        if self.marks != NULL:
            self.look(g, ids)
            return 0
        if self.n_batch == BATCH:
            with gil:
                self.flush()
        self.pack(g, ids, self.batch + self.n_batch * self.words)
        self.batch_parent[self.n_batch] = <uint32_t> parent
        self.n_batch += 1
        self.n_transitions += 1
        return 0

    cdef inline void look(self, uint32_t g, const uint16_t *ids) noexcept nogil:
        """Notice whether a successor is marked: what ``emit`` does while ``reach_back`` runs."""
        cdef uint64_t key[MAX_WORDS]  # not the batch: an expansion that was cut off left states there
        cdef uint64_t slot
        self.pack(g, ids, key)
        slot = hash_words(key, self.words) & self.mask
        while self.index[slot]:
            if same_words(self.key(self.index[slot] - 1), key, self.words):
                if self.marks[self.index[slot] - 1]:
                    self.met = 1
                elif self.edges != NULL:
                    self.edges[2 * self.n_edges] = <uint32_t> self.looking
                    self.edges[2 * self.n_edges + 1] = self.index[slot] - 1
                    self.n_edges += 1
                return
            slot = (slot + 1) & self.mask

    cdef int _slow(self, uint64_t state, uint32_t g, const uint16_t *ids, Py_ssize_t i,
                   const ghcb_alt_t *alt, uint32_t kind) except -1:
        """Operations that reach beyond one slice, executed on a whole record."""
        cdef Py_ssize_t n_global = self.program.n_global, n_slice = self.program.n_slice
        cdef Py_ssize_t j, k
        cdef uint64_t *slices = self.scratch + n_global
        cdef uint64_t *own
        cdef uint64_t *other
        cdef uint16_t after[MAX_OTHERS + 1]
        cdef uint32_t g2
        cdef bint per_cpu = self.program.role[alt.role].block == clib.GHCB_BLOCK_OWN
        for j in range(self.n_others if kind == PAIR else 1):
            if kind == PAIR and (j == i or (self.symmetric and j and ids[j] == ids[j - 1] and j - 1 != i)):
                continue
            memcpy(self.scratch, self.globals_.data + g * n_global, 8 * n_global)
            for k in range(self.n_others):
                memcpy(slices + k * n_slice, self.slices_.data + ids[k] * n_slice, 8 * n_slice)
            own = slices + i * n_slice if per_cpu else self.scratch
            other = slices + (j if kind == PAIR else i if alt.binds else 0) * n_slice
            if kind == PAIR and not enabled(self.program.code, alt, self.scratch, own, other):
                continue
            apply(self.program.code, alt, &self.program.profile.c, &self.program.tables, self.scratch, own, other,
                  slices, self.n_others, n_slice, NULL)
            self.n_executed += 1
            g2 = self._intern_record(self.scratch, after)
            self.emit(state, g2, after)
        return 0

    cdef int _expand_one(self, uint64_t state) except -1 nogil:
        cdef uint16_t ids[MAX_OTHERS + 1]
        cdef uint16_t after[MAX_OTHERS + 1]
        cdef uint32_t g = self.unpack(self.key(state), ids)
        cdef uint64_t before = self.n_transitions
        cdef Py_ssize_t i, k
        cdef uint32_t run, t
        cdef uint32_t *tr
        for i in range(-1, self.n_others):
            if self.met:
                return 0
            if i > 0 and self.symmetric and ids[i] == ids[i - 1]:
                continue
            run = self.run(g, <uint32_t> ids[i] if i >= 0 else <uint32_t> NO_SLICE)
            for t in range(self.run_n[run]):
                tr = self.tr + 4 * (<Py_ssize_t> self.run_first[run] + t)
                if tr[3] != PLAIN:
                    with gil:
                        self._slow(state, g, ids, i, self.program.alt + tr[0], tr[3])
                    continue
                if i < 0 or tr[2] == ids[i]:
                    self.emit(state, tr[1], ids)
                    continue
                memcpy(after, ids, 2 * self.n_others)
                after[i] = <uint16_t> tr[2]
                if self.symmetric:
                    settle(after, self.n_others, i)
                self.emit(state, tr[1], after)
        if self.marks == NULL and self.n_transitions == before:
            with gil:
                self._terminals.append(state)
        return 0

    def expand(self, uint64_t first, uint64_t end, const uint8_t[::1] skip=None):
        """Add the successors of the states ``first`` to ``end - 1``, except where ``skip`` is set.

        Releases the GIL except where a part is met for the first time.

        Raises
        ------
        StateConflict
            Another thread is in ``expand``, or this one is (in a signal handler).
        """
        if not self._lock.acquire(False):
            raise _errors.StateConflict("the explorer is in use")
        try:
            self._expand(first, end, skip)
        finally:
            self._lock.release()

    cdef int _idle(self) except -1:
        if self._lock.locked():
            raise _errors.StateConflict("the explorer is in use")
        return 0

    cdef int _expand(self, uint64_t first, uint64_t end, const uint8_t[::1] skip) except -1:
        if end > self.n_states or first > end or (skip is not None and skip.shape[0] != end - first):
            raise _errors.OutOfRange(f"states {first} to {end} of {self.n_states}")
        cdef Py_ssize_t i = 0, n = <Py_ssize_t> (end - first)
        cdef Py_ssize_t stop
        cdef bint all_of_them = skip is None
        while i < n:
            if i:
                PyErr_CheckSignals()
            stop = min(n, i + UNINTERRUPTED)
            with nogil:  # once for many states: taking the GIL costs as much as a small state
                while i < stop:
                    if all_of_them or not skip[i]:
                        self._expand_one(first + <uint64_t> i)
                    i += 1
        self.flush()
        return 0

    def reach_back(self, uint8_t[::1] marks not None):
        """Mark, in place, every state from which a marked one can be reached.

        One sweep backwards over the states executes again what follows from each: steps lead
        forwards as a rule, so few are left. For those the edges among them are collected and
        followed backwards. All states must have been expanded, or be marked. Releases the GIL.

        Parameters
        ----------
        marks : uint8 array, shape (n_states,)

        Raises
        ------
        MemoryLimit
            The edges do not fit; ``marks`` is not complete.
        """
        if <uint64_t> marks.shape[0] != self.n_states:
            raise _errors.OutOfRange(f"{marks.shape[0]} marks for {self.n_states} states")
        if not self._lock.acquire(False):
            raise _errors.StateConflict("the explorer is in use")
        self.marks = &marks[0]
        try:
            self._sweep()
            self._follow_edges_back(_np.asarray(marks))
        finally:
            self.marks = NULL
            self.edges = NULL
            self.met = 0
            self.size_bytes -= self.edges_bytes
            self.edges_bytes = 0
            self._lock.release()

    cdef int _sweep(self) except -1:
        cdef uint64_t state = self.n_states
        while state:
            state -= 1
            if state & 0xffff == 0:
                PyErr_CheckSignals()
            if self.marks[state]:
                continue
            self.met = 0
            with nogil:
                self._expand_one(state)
            self.marks[state] = self.met
        return 0

    cdef int _follow_edges_back(self, marks) except -1:
        cdef Py_ssize_t room = 1 << 12
        cdef Py_ssize_t most = self._most_successors()
        cdef uint32_t[:, ::1] view
        cdef uint64_t state
        edges = _np.empty((room, 2), dtype=_np.uint32)
        seeds = []
        self.n_edges = 0
        for at, i in enumerate(_np.flatnonzero(marks == 0)):
            state = i
            if at & 0xffff == 0xffff:
                PyErr_CheckSignals()
            if self.n_edges + most > room:
                room = 2 * (room + most)
                more = 8 * room - edges.nbytes
                self._account(more)
                self.edges_bytes += more
                edges = _grown(edges, room)
            view = edges
            self.edges = &view[0, 0]
            self.looking = state
            self.met = 0
            with nogil:
                self._expand_one(state)
            if self.met:
                seeds.append(i)
        edges = edges[: self.n_edges]
        order = _np.argsort(edges[:, 1], kind="stable")
        source, target = edges[order, 0], edges[order, 1].astype(_np.int64)
        frontier = _np.array(seeds, dtype=_np.int64)
        while frontier.size:
            marks[frontier] = 1
            first = _np.searchsorted(target, frontier, "left")
            n = _np.searchsorted(target, frontier, "right") - first
            # the runs [first, first + n), one behind the other
            runs = _np.repeat(first - _np.cumsum(n) + n, n) + _np.arange(n.sum())
            before = _np.unique(source[runs]).astype(_np.int64)
            frontier = before[marks[before] == 0]
        return 0

    cdef Py_ssize_t _most_successors(self) except -1:
        """Return a bound on the successors of one state: every alternative, for every two CPUs."""
        return len(self.program.alts) * (self.n_others + 1) * (self.n_others + 1)

    # -- what was found --------------------------------------------------------------------

    @property
    def terminals(self):
        """Expanded states from which nothing follows, in order of discovery."""
        return list(self._terminals)

    @property
    def n_parts(self):
        """(distinct global parts, distinct slices)"""
        return self.globals_.n, self.slices_.n

    @property
    def n_bytes(self):
        """Memory of states, index, parts and remembered transitions."""
        return self.size_bytes + self.globals_.bytes() + self.slices_.bytes()

    def tables(self):
        """Return the distinct global parts, shape (m, n_global), and slices, shape (k, n_slice)."""
        self._idle()
        return self.globals_.table(), self.slices_.table()

    def part_ids(self, uint64_t first, uint64_t end):
        """Return the ids of states: global parts, shape (n,), and slices, shape (n, n_others)."""
        self._idle()
        if end > self.n_states or first > end:
            raise _errors.OutOfRange(f"states {first} to {end} of {self.n_states}")
        g_out = _np.empty(end - first, dtype=_np.uint32)
        s_out = _np.empty((end - first, max(self.n_others, 1)), dtype=_np.uint16)
        cdef uint32_t[::1] g = g_out
        cdef uint16_t[:, ::1] s = s_out
        cdef uint64_t i
        if end > first:
            with nogil:
                for i in range(end - first):
                    g[i] = self.unpack(self.key(first + i), &s[i, 0])
        return g_out, s_out[:, : self.n_others]

    def path(self, uint64_t state):
        """Return the states from the first one to ``state``, each found from the one before."""
        self._idle()
        if state >= self.n_states:
            raise _errors.OutOfRange(f"state {state} of {self.n_states}")
        out = [state]
        while state:
            state = self.parents[state >> CHUNK_BITS][state & CHUNK_MASK]
            out.append(state)
        out.reverse()
        return out

    def state_of(self, const uint64_t[::1] record not None):
        """Return the number of the state that a record is, up to which CPU is which; -1 if none."""
        cdef uint16_t ids[MAX_OTHERS + 1]
        cdef uint64_t key[MAX_WORDS]
        cdef Py_ssize_t i, found
        cdef Py_ssize_t g
        self._idle()
        if record.shape[0] != self.program.n_global + self.n_others * self.program.n_slice:
            raise _errors.OutOfRange(f"record of {record.shape[0]} words")
        g = self.globals_.find(&record[0])
        if g < 0 or g >> (8 * self.gb):
            return -1
        for i in range(self.n_others):
            found = self.slices_.find(&record[0] + self.program.n_global + i * self.program.n_slice)
            if found < 0 or found >> (8 * self.sb):
                return -1
            ids[i] = <uint16_t> found
        if self.symmetric:
            sort_ids(ids, self.n_others)
        self.pack(<uint32_t> g, ids, key)
        cdef uint64_t slot = hash_words(key, self.words) & self.mask
        while self.index[slot]:
            if memcmp(self.key(self.index[slot] - 1), key, 8 * self.words) == 0:
                return self.index[slot] - 1
            slot = (slot + 1) & self.mask
        return -1


cdef inline void sort_ids(uint16_t *ids, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(1, n):
        settle_down(ids, i)


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


def _grown(array, n):
    out = _np.zeros((n, *array.shape[1:]), dtype=array.dtype)
    out[: len(array)] = array
    return out


@cython.final
@cython.auto_pickle(False)
cdef class PlainExplorer:
    """PlainExplorer(program, record, *, symmetric=False)\n--\n
    The same search in the most obvious form: whole records in a dict, every step executed. Slow
    and large; the cross-check of ``Explorer``.

    Attributes
    ----------
    n_states, n_transitions : int
    terminals : list of bytes
        Records from which nothing follows.
    """

    cdef readonly Program program
    cdef readonly object states
    cdef readonly uint64_t n_transitions
    cdef readonly list terminals
    cdef bint symmetric

    def __init__(self, Program program not None, record, *, bint symmetric=False):
        self.program = program
        self.symmetric = symmetric and not program.ordered
        self.terminals = []
        start = self._canonical(_np.array(record, dtype=_np.uint64))
        self.states = {start: None}

    def _canonical(self, record):
        if self.symmetric:
            n = self.program.n_global
            slices = record[n:].reshape(-1, self.program.n_slice)
            record[n:] = _np.concatenate(sorted(slices, key=tuple)) if len(slices) else record[n:]
        return record.tobytes()

    @property
    def n_states(self):
        return len(self.states)

    def explore(self):
        """Find every reachable state."""
        frontier = list(self.states)
        while frontier:
            following = []
            for state in frontier:
                after = set()
                n = 0
                record = _np.frombuffer(state, dtype=_np.uint64).copy()
                for alt, own, other in self.program.moves(record):
                    copy = record.copy()
                    self.program.step(copy, alt, own, other)
                    n += 1
                    after.add(self._canonical(copy))
                self.n_transitions += n
                if not n:
                    self.terminals.append(state)
                for found in sorted(after):
                    if found not in self.states:
                        self.states[found] = state
                        following.append(found)
            frontier = following

"""The set of states that a search has found, as keys; and what is remembered of their parts.

A state of n CPUs is the id of its global part and the ids of its n slices; each distinct part is
stored once (``ghcbcore.parts``), so a state is a key of a few bytes and the set of states is an array
of keys with an index of 32-bit numbers over it. The step is executed once for each pair (global part,
slice) and remembered. ``ghcbcore.explorer`` fills the set; it says what a state is and why.
"""

from threading import Lock as _Lock

import numpy as _np

from ghcbcore import errors as _errors

cimport cython
from ghcbcore cimport clib
from ghcbcore.clib cimport ghcb_alt_t, ghcb_role_t
from ghcbcore.machine cimport Program, apply, enabled
from ghcbcore.parts cimport Parts, hash_words
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

__all__ = ["MemoryLimit", "NarrowIds", "StateSpace"]


class NarrowIds(Exception):
    """There are more distinct parts than the ids of this explorer can number."""


class MemoryLimit(Exception):
    """The next growth would pass the bound that was asked for; what was found stays valid."""


@cython.auto_pickle(False)
cdef class StateSpace:
    """StateSpace(program, record, *, symmetric=True, global_bytes=2, slice_bytes=1, \
max_bytes=8589934592, n_threads=1, fingerprints=False, alone=None)\n--\n
    States found so far, the first one at the beginning; the parameters are those of ``Explorer``.
    """

    def __cinit__(
        self,
        Program program not None,
        const uint64_t[::1] record not None,
        *,
        bint symmetric=True,
        Py_ssize_t global_bytes=2,
        Py_ssize_t slice_bytes=1,
        Py_ssize_t max_bytes=8 << 30,
        Py_ssize_t n_threads=1,
        bint fingerprints=False,
        const uint8_t[::1] alone=None,
    ):
        self.program = program
        self.n_others = program.n_cpus(record)
        if self.n_others > MAX_OTHERS:
            raise _errors.OutOfRange(f"{self.n_others + 1} CPUs: check takes at most {MAX_OTHERS + 1}")
        if global_bytes not in (2, 4) or slice_bytes not in (1, 2):
            raise _errors.OutOfRange(f"ids of {global_bytes} and {slice_bytes} bytes")
        if alone is not None:
            if alone.shape[0] != len(program.alts):
                raise _errors.OutOfRange(f"alone: {alone.shape[0]} marks for {len(program.alts)} alternatives")
            self._alone = _np.array(alone)
            alone = self._alone
            self.alone = &alone[0]
        self.symmetric = symmetric and not program.ordered
        self.fingerprints = fingerprints
        self.max_bytes = max_bytes
        self.gb, self.sb = global_bytes, slice_bytes
        self.words = (self.gb + self.n_others * self.sb + 7) // 8
        self.globals_ = Parts(program.n_global)
        self.slices_ = Parts(program.n_slice)
        self._chunks = []
        self._terminals = _np.zeros(0, dtype=_np.uint32)
        self._lock = _Lock()
        self.mask = (1 << 14) - 1
        self._scratch = _np.zeros(program.n_global + program.n_slice, dtype=_np.uint64)
        cdef uint64_t[::1] scratch = self._scratch
        self.scratch = &scratch[0]
        self._grow_memo(1 << 10)
        self._run_first = _np.zeros(0, dtype=_np.uint32)
        self._run_n = _np.zeros(0, dtype=_np.uint32)
        self._run_alone = _np.zeros(0, dtype=_np.uint32)
        self._learned = _np.zeros(0, dtype=_np.uint64)
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

    cdef int _check_widths(self) except -1:
        # a literal would be shifted as a C int, in which four bytes of id leave nothing
        cdef Py_ssize_t one = 1
        if self.globals_.n > one << (8 * self.gb) or self.slices_.n > one << (8 * self.sb):
            raise NarrowIds(f"{self.globals_.n} global parts, {self.slices_.n} slices")
        return 0

    cdef int _add(self, const uint64_t[::1] record) except -1:
        """Add the first state."""
        cdef uint16_t ids[MAX_OTHERS + 1]
        cdef Py_ssize_t i
        cdef uint32_t g = <uint32_t> self._intern(self.globals_, &record[0])
        for i in range(self.n_others):
            ids[i] = <uint16_t> self._intern(
                self.slices_, &record[0] + self.program.n_global + i * self.program.n_slice
            )
        self._check_widths()
        if self.symmetric:
            sort_ids(ids, self.n_others)
        self._grow_chunks()
        self.pack(g, ids, self.key(0))
        self.parents[0][0] = 0
        self._count_in(0, 1)
        return 0

    cdef int _grow_chunks(self) except -1:
        cdef Py_ssize_t n = len(self._chunks)
        if n == MAX_CHUNKS:
            raise MemoryLimit(f"{self.n_states} states: they are numbered with 32 bits")
        self._account(CHUNK * (8 * self.words + 4 + 8 * self.fingerprints))
        keys = _np.empty((CHUNK, self.words), dtype=_np.uint64)
        parents = _np.empty(CHUNK, dtype=_np.uint32)
        cdef uint64_t[:, ::1] k = keys
        cdef uint32_t[::1] p = parents
        cdef uint64_t[::1] f
        self.keys[n] = &k[0, 0]
        self.parents[n] = &p[0]
        self.prints[n] = NULL
        prints = None
        if self.fingerprints:
            prints = _np.empty(CHUNK, dtype=_np.uint64)
            f = prints
            self.prints[n] = &f[0]
        self._chunks.append([keys, parents, prints])
        return 0

    cdef int _grow_index(self, Py_ssize_t size) except -1:
        """Make an index of ``size`` entries, a power of two, over all states."""
        self._account(4 * size)
        if self._index is not None:
            self.size_bytes -= self._index.nbytes
        cdef Py_ssize_t old_size = 0 if self._index is None else len(self._index)
        self._index = None  # freed before the larger one is made: it is rebuilt from the states
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
                slot = self.hash_of(i) & self.mask
                while self.index[slot]:
                    slot = (slot + 1) & self.mask
                self.index[slot] = <uint32_t> (i + 1)
        return 0

    cdef int _make_room(self, Py_ssize_t n) except -1:
        """Make room for ``n`` more states."""
        cdef uint64_t most = self.n_states + <uint64_t> n
        while 10 * most > 6 * (self.mask + 1):
            self._grow_index(2 * <Py_ssize_t> (self.mask + 1))
        while most > <uint64_t> len(self._chunks) * CHUNK:
            self._grow_chunks()
        return 0

    cdef int _count_in(self, uint64_t first, uint64_t end) except -1:
        """Take states whose keys stand in their places into index and counts."""
        cdef uint64_t i, size = self.mask + 1
        if self.fingerprints:
            for i in range(first, end):
                self.prints[i >> CHUNK_BITS][i & CHUNK_MASK] = hash_words(self.key(i), self.words)
        self.n_states = end
        while 10 * end > 6 * size:
            size *= 2
        self._grow_index(<Py_ssize_t> size)
        return 0

    def release(self, uint64_t before):
        """Give the keys of the states below ``before`` up, where fingerprints stand for them.

        They cannot be expanded or looked at any more, but they are known when they are met again.
        """
        self._idle()
        cdef uint64_t chunk = self.released >> CHUNK_BITS
        if not self.fingerprints or before > self.n_states:
            return
        while (chunk + 1) << CHUNK_BITS <= before:
            self._chunks[chunk][0] = None
            self.keys[chunk] = NULL
            self.size_bytes -= CHUNK * 8 * self.words
            chunk += 1
        self.released = max(self.released, chunk << CHUNK_BITS)

    # -- what is remembered ----------------------------------------------------------------

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

    cdef uint32_t _learn(self, uint32_t g, uint32_t s) except? 0xffffffff:
        """Execute what a global part and a slice (or none) can do together; remember it."""
        if 2 * self.memo_n > self.memo_mask:
            self._grow_memo(2 * <Py_ssize_t> (self.memo_mask + 1))
        found = []
        cdef const ghcb_role_t *role
        cdef const ghcb_alt_t *alt
        cdef Py_ssize_t r, n_global = self.program.n_global, n_slice = self.program.n_slice
        cdef uint64_t *sg = self.scratch
        cdef uint64_t *ss = sg + n_global
        cdef const uint64_t *pg
        cdef const uint64_t *ps
        cdef uint64_t *at
        cdef uint32_t a, first, follow_alone = 0
        cdef Py_ssize_t n_before
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
            n_before = len(found)
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
            if self.alone != NULL and not follow_alone and len(found) == n_before + 1:
                if self.alone[<uint32_t> found[n_before][0]] and found[n_before][3] == PLAIN:
                    follow_alone = <uint32_t> (n_before + 1)
        self._check_widths()
        cdef uint32_t run = self._remember(found)
        cdef uint64_t key = <uint64_t> g << 32 | (s + 1 if s != NO_SLICE else 0)
        cdef uint64_t slot = self._memo_slot(key)
        self.memo_keys[slot] = key
        self.memo_entry[slot] = run + 1
        self.memo_n += 1
        self.run_alone[run] = follow_alone
        self.learned_[run] = key
        return run

    cdef uint32_t _remember(self, list found) except? 0xffffffff:
        cdef uint32_t[::1] view
        cdef uint64_t[::1] view8
        cdef uint32_t[:, ::1] view2
        if self.n_runs == len(self._run_first):
            more = max(1024, 2 * self.n_runs)
            self._account(20 * (more - self.n_runs))
            self._run_first = _grown(self._run_first, more)
            self._run_n = _grown(self._run_n, more)
            self._run_alone = _grown(self._run_alone, more)
            self._learned = _grown(self._learned, more)
            view = self._run_first
            self.run_first = &view[0]
            view = self._run_n
            self.run_n = &view[0]
            view = self._run_alone
            self.run_alone = &view[0]
            view8 = self._learned
            self.learned_ = &view8[0]
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

    # -- what was found --------------------------------------------------------------------

    cdef int _idle(self) except -1:
        if self._lock.locked():
            raise _errors.StateConflict("the explorer is in use")
        return 0

    cdef int _there(self, uint64_t first, uint64_t end) except -1:
        if end > self.n_states or first > end:
            raise _errors.OutOfRange(f"states {first} to {end} of {self.n_states}")
        if first < end and first < self.released:
            raise _errors.StateConflict(f"state {first}: its key is given up, a fingerprint is left")
        return 0

    @property
    def terminals(self):
        """Expanded states from which nothing follows, in order of discovery: uint32 array."""
        view = self._terminals[: self.n_terminals]
        view.flags.writeable = False
        return view

    @property
    def n_parts(self):
        """(distinct global parts, distinct slices)"""
        return self.globals_.n, self.slices_.n

    @property
    def n_bytes(self):
        """Memory of states, index, parts, candidates and remembered transitions."""
        return self.size_bytes + self.globals_.bytes() + self.slices_.bytes()

    def tables(self):
        """Return the distinct global parts, shape (m, n_global), and slices, shape (k, n_slice)."""
        self._idle()
        return self.globals_.table(), self.slices_.table()

    def part_ids(self, uint64_t first, uint64_t end):
        """Return the ids of states: global parts, shape (n,), and slices, shape (n, n_others)."""
        self._idle()
        self._there(first, end)
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

    def part_ids_of(self, const uint32_t[::1] states not None):
        """Return the ids of these states, as ``part_ids`` does of a range."""
        self._idle()
        cdef Py_ssize_t i, n = states.shape[0]
        g_out = _np.empty(n, dtype=_np.uint32)
        s_out = _np.empty((n, max(self.n_others, 1)), dtype=_np.uint16)
        cdef uint32_t[::1] g = g_out
        cdef uint16_t[:, ::1] s = s_out
        for i in range(n):
            self._there(states[i], <uint64_t> states[i] + 1)
            g[i] = self.unpack(self.key(states[i]), &s[i, 0])
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
        return self.number_of(key)

    # -- to be taken up again --------------------------------------------------------------

    def stored(self, uint64_t first, uint64_t end):
        """Return copies of keys, shape (n, words), and parents, shape (n,), of a range of states."""
        self._idle()
        self._there(first, end)
        keys = _np.empty((end - first, self.words), dtype=_np.uint64)
        parents = _np.empty(end - first, dtype=_np.uint32)
        at = first
        while at < end:
            chunk, begin = at >> CHUNK_BITS, at & CHUNK_MASK
            n = min(end - at, CHUNK - begin)
            keys[at - first : at - first + n] = self._chunks[chunk][0][begin : begin + n]
            parents[at - first : at - first + n] = self._chunks[chunk][1][begin : begin + n]
            at += n
        return keys, parents

    @property
    def learned(self):
        """Pairs whose transitions are remembered, in the order in which they were met: uint64."""
        return self._learned[: self.n_runs].copy()

    def restore(self, global_parts, slice_parts, keys, parents, terminals, learned, uint64_t n_transitions):
        """Take up a search again from what ``tables``, ``stored``, ``terminals`` and ``learned`` gave.

        The explorer must be a new one of the same program and the same first state. What follows is
        as if it had never been left.

        Raises
        ------
        StateConflict
            It is not new, or the first state is another one.
        OutOfRange
            The arrays do not fit each other or this explorer.
        MemoryLimit, NarrowIds
        """
        self._idle()
        if self.n_states != 1 or self.n_transitions or self.fingerprints:
            raise _errors.StateConflict("only a new explorer that keeps keys takes up a search")
        cdef const uint64_t[:, ::1] g = _np.ascontiguousarray(global_parts, dtype=_np.uint64)
        cdef const uint64_t[:, ::1] s = _np.ascontiguousarray(slice_parts, dtype=_np.uint64)
        cdef uint64_t[:, ::1] k
        cdef const uint64_t[::1] pairs = _np.ascontiguousarray(learned, dtype=_np.uint64)
        cdef uint16_t ids[MAX_OTHERS + 1]
        cdef Py_ssize_t i, j
        cdef uint64_t n = <uint64_t> len(keys)
        cdef uint32_t part
        if g.shape[1] != self.program.n_global or s.shape[1] != self.program.n_slice:
            raise _errors.OutOfRange(f"parts of {g.shape[1]} and {s.shape[1]} words")
        if keys.ndim != 2 or keys.shape[1] != self.words or len(parents) != n or not n:
            raise _errors.OutOfRange(f"keys of shape {keys.shape}, {len(parents)} parents")
        k = _np.ascontiguousarray(keys, dtype=_np.uint64)
        if not same_words(&k[0, 0], self.key(0), self.words):
            raise _errors.StateConflict("another first state")
        for i in range(g.shape[0]):
            if self._intern(self.globals_, &g[i, 0]) != i:
                raise _errors.OutOfRange(f"global part {i} stands twice")
        for i in range(s.shape[0]):
            if self._intern(self.slices_, &s[i, 0]) != i:
                raise _errors.OutOfRange(f"slice {i} stands twice")
        self._check_widths()
        for i in range(<Py_ssize_t> n):
            part = self.unpack(&k[i, 0], ids)
            for j in range(self.n_others):
                if ids[j] >= s.shape[0]:
                    raise _errors.OutOfRange(f"state {i}: slice {ids[j]} of {s.shape[0]}")
            if part >= g.shape[0] or parents[i] >= n or (i and parents[i] >= i):
                raise _errors.OutOfRange(f"state {i}: global part {part}, parent {parents[i]}")
        while n > <uint64_t> len(self._chunks) * CHUNK:
            self._grow_chunks()
        for i in range(len(self._chunks)):
            begin, end = i * CHUNK, min((i + 1) * CHUNK, n)
            self._chunks[i][0][: end - begin] = keys[begin:end]
            self._chunks[i][1][: end - begin] = parents[begin:end]
        self._count_in(0, n)
        for i in range(pairs.shape[0]):
            part = <uint32_t> (pairs[i] & 0xffffffff)
            if pairs[i] >> 32 >= <uint64_t> self.globals_.n or part > <uint32_t> self.slices_.n:
                raise _errors.OutOfRange(f"learned[{i}]: {pairs[i]:#x}")
            if not self.memo_entry[self._memo_slot(pairs[i])]:
                self._learn(<uint32_t> (pairs[i] >> 32), part - 1 if part else <uint32_t> NO_SLICE)
        if len(terminals) and int(_np.max(terminals)) >= n:
            raise _errors.OutOfRange(f"terminals: {int(_np.max(terminals))} of {n} states")
        self._account(4 * <Py_ssize_t> len(terminals))
        self._terminals = _np.array(terminals, dtype=_np.uint32)
        self.n_terminals = <Py_ssize_t> len(terminals)
        self.n_transitions = n_transitions


def _grown(array, n):
    out = _np.zeros((n, *array.shape[1:]), dtype=array.dtype)
    out[: len(array)] = array
    return out

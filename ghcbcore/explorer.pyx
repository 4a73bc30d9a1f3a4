"""All orders of events, breadth first: the reachable states of a program as arrays.

Theory of operation. A state of n CPUs is the id of its global part and the ids of its n slices;
each distinct part is stored once, so a state is a key of a few bytes and the set of states is an
array of keys with an index of 32-bit numbers over it (``ghcbcore.statespace``). With ``symmetric`` the
slice ids are sorted: states that differ only in which CPU is which are one state. The step is
*executed* once for each pair (global part, slice) and remembered; everything else is look-up.
Operations that reach every slice, or two slices at once, take a slow path that executes them on a
whole record.

States are expanded in *rounds* of up to 16 pieces. Pieces are independent, so several threads can
take them: each looks up what follows from its states, with what is remembered and with the states
that are known before the round, and keeps as candidates what it does not find. One that meets a part
for the first time stops there, and is finished afterwards, in the order of the pieces, by the one
thread that may learn. Then the candidates are added, in order. All numbers are so given in the order
in which one thread alone would give them, which adds what it finds at once: states, their numbers and
every count are the same for any number of threads.

Nothing is lossy: two states are equal only if their keys are, and keys only if their parts are.
With ``fingerprints`` the key of a state is given up after its level and 64 bits of hash stand for
it: two states may then be taken for one, with odds of about n**2 / 2**65 in n states.

With ``alone``, the reduction of local operations: where an operation that is declared to be
independent of all others is possible, it is the only one that is followed. ``pysev.checking.reduction``
says which are.

``ghcbcore.plainexplorer`` does the same over whole records and without any of this; the tests hold
the two against each other.
"""

from concurrent.futures import ThreadPoolExecutor as _ThreadPoolExecutor
from time import sleep as _sleep

import numpy as _np

from ghcbcore import errors as _errors
from ghcbcore.statespace import MemoryLimit, NarrowIds, _grown

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from ghcbcore cimport clib
from ghcbcore.clib cimport ghcb_alt_t
from ghcbcore.machine cimport Program, apply, enabled
from ghcbcore.parts cimport Parts, hash_words
from ghcbcore.statespace cimport (
    CHUNK_BITS,
    CHUNK_MASK,
    MAX_OTHERS,
    MAX_WORDS,
    NO_SLICE,
    PAIR,
    PLAIN,
    StateSpace,
    copy_words,
    settle,
    sort_ids,
)
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

__all__ = ["Explorer", "MemoryLimit", "NarrowIds"]


cdef enum:
    SUB = 256                 # states of a piece
    N_SUBS = 16               # pieces of a round
    THREADED = 4              # pieces from which on a round is worth waking threads for
    MAX_THREADS = 64
    BATCH = 512               # keys that are hashed and prefetched before they are looked up
    NOBODY = 0xffffffff


cdef extern from *:
    """
    static inline void ghcb_prefetch(const void *p) { __builtin_prefetch(p); }
    """
    void ghcb_prefetch(const void *p) noexcept nogil


cdef struct Sub:
    # One piece of a round: the states that it expands, and what follows from them.
    uint64_t state, end        # the next state, and where it ends
    const uint8_t *skip        # of the states from `origin` on, or NULL
    uint64_t origin
    uint64_t *scratch          # a whole record
    uint64_t *batch            # keys that are not looked up yet, and their parents
    uint32_t *batch_parents
    uint64_t *keys             # candidates: looked up and not found; hashes and parents
    uint64_t *hashes
    uint32_t *parents
    uint32_t *terminals        # states after which nothing happens
    Py_ssize_t n_batch, n, capacity, n_terminals, room
    uint64_t n_transitions, n_executed
    uint32_t agent             # who moves: role * 64 + CPU
    bint learns                # may meet what is new
    bint adds                  # what it finds is added at once
    bint missed


@cython.final
cdef class Explorer(StateSpace):
    """Explorer(program, record, *, symmetric=True, global_bytes=2, slice_bytes=1, \
max_bytes=8589934592, n_threads=1, fingerprints=False, alone=None)\n--\n
    Parameters
    ----------
    program : Program
    record : uint64 array
        The first state.
    symmetric : bool
        CPUs that are alike are alike: sort them. Exact, since an alternative cannot keep a CPU's
        number; switch it off to see what it saves. Ignored for a program that is ``ordered``.
    global_bytes, slice_bytes : int
        Width of the ids in a key: 2 or 4, and 1 or 2.
    max_bytes : int
        Bound on the memory of states, index, parts, candidates and remembered transitions:
        ``n_bytes`` never passes it.
    n_threads : int
        How many expand and look up; nothing that is found depends on it.
    fingerprints : bool
        Keep 64 bits of hash of a state instead of its key, once ``release`` was told.
    alone : uint8 array, shape (n alternatives,), optional
        1 for each alternative that may be followed alone where its agent can do nothing else.

    One caller at a time: while one is in ``expand``, the methods refuse the others. The attributes
    can be read at any time.

    Raises
    ------
    NarrowIds
        Ids of this width do not suffice; start again with wider ones.
    MemoryLimit
        The bound is reached. From ``expand``: the states found so far stay valid, those of the
        last round have no successors yet. From the constructor: not even one state fits.
    """

    cdef readonly Py_ssize_t n_threads
    # pieces of a round, and one more for what is not part of one
    cdef Sub subs[N_SUBS + 1]
    cdef list _sub_arrays
    # while `reach_back` or `edges` runs: the marks of the states, and whether a marked one was met
    cdef uint8_t *marks
    cdef uint8_t met
    cdef uint32_t *edges_     # triples: from, to, who; collected where it is not NULL
    cdef Py_ssize_t n_edges, edges_bytes
    cdef uint64_t looking
    cdef object _pool
    cdef uint64_t n_rounds    # of threads, counted up as well where one is given up
    cdef Py_ssize_t n_working # of their pieces

    def __cinit__(
        self,
        Program program not None,
        const uint64_t[::1] record not None,
        *,
        Py_ssize_t n_threads=1,
        **of_the_space,
    ):
        if not 1 <= n_threads <= MAX_THREADS:
            raise _errors.OutOfRange(f"{n_threads} threads: 1 to {MAX_THREADS} are possible")
        self.n_threads = n_threads
        self._sub_arrays = [None] * (N_SUBS + 1)
        self._prepare(self.subs + N_SUBS)

    # -- successors ------------------------------------------------------------------------

    cdef int _prepare(self, Sub *sub) except -1:
        """Give a piece what it works with, once."""
        cdef Py_ssize_t record = self.program.n_global + (self.n_others + 1) * self.program.n_slice
        cdef uint64_t[::1] words
        cdef uint32_t[::1] halves
        if sub.scratch != NULL:
            return 0
        self._account(8 * (record + BATCH * self.words) + 4 * (BATCH + 256))
        scratch = _np.zeros(record, dtype=_np.uint64)
        batch = _np.zeros(BATCH * self.words, dtype=_np.uint64)
        parents = _np.zeros(BATCH, dtype=_np.uint32)
        terminals = _np.zeros(256, dtype=_np.uint32)
        self._sub_arrays[sub - self.subs] = {"fixed": (scratch, batch, parents), "terminals": terminals}
        words = scratch
        sub.scratch = &words[0]
        words = batch
        sub.batch = &words[0]
        halves = parents
        sub.batch_parents = &halves[0]
        halves = terminals
        sub.terminals = &halves[0]
        sub.room = 256
        return 0

    cdef int _grow_sub(self, Sub *sub) except -1:
        """Make room for more candidates of a piece; what it has stays."""
        cdef Py_ssize_t capacity = max(4 * BATCH, 2 * sub.capacity)
        cdef uint64_t[:, ::1] words
        cdef uint64_t[::1] hashes
        cdef uint32_t[::1] halves
        self._account((8 * self.words + 12) * (capacity - sub.capacity))
        old = self._sub_arrays[sub - self.subs].get("candidates")
        if old is None:
            old = (
                _np.zeros((0, self.words), dtype=_np.uint64),
                _np.zeros(0, dtype=_np.uint64),
                _np.zeros(0, dtype=_np.uint32),
            )
        new = tuple(_grown(array, capacity) for array in old)
        self._sub_arrays[sub - self.subs]["candidates"] = new
        sub.capacity = capacity
        words, hashes, halves = new
        sub.keys = &words[0, 0]
        sub.hashes = &hashes[0]
        sub.parents = &halves[0]
        return 0

    cdef inline uint32_t run(self, Sub *sub, uint32_t g, uint32_t s) except? 0xfffffffe nogil:
        """Return what is remembered of a pair; NOBODY if it is new and the piece may not learn."""
        cdef uint64_t key = <uint64_t> g << 32 | (s + 1 if s != NO_SLICE else 0)
        cdef uint64_t slot = self._memo_slot(key)
        if self.memo_entry[slot]:
            return self.memo_entry[slot] - 1
        if not sub.learns:
            sub.missed = True
            return NOBODY
        with gil:
            return self._learn(g, s)

    cdef inline int emit(self, Sub *sub, uint64_t parent, uint32_t g, const uint16_t *ids) except -1 nogil:
        if self.marks != NULL:
            self.look(sub, g, ids)
            return 0
        if sub.n_batch == BATCH:
            self._look_up(sub)
        self.pack(g, ids, sub.batch + sub.n_batch * self.words)
        sub.batch_parents[sub.n_batch] = <uint32_t> parent
        sub.n_batch += 1
        sub.n_transitions += 1
        return 0

    cdef int _look_up(self, Sub *sub) except -1 nogil:
        """Look the batch up; keep what is no state yet as candidates."""
        cdef uint64_t hashes[BATCH]
        cdef Py_ssize_t i
        for i in range(sub.n_batch):
            hashes[i] = hash_words(sub.batch + i * self.words, self.words)
            ghcb_prefetch(self.index + (hashes[i] & self.mask))
        if sub.adds:
            with gil:
                self._make_room(sub.n_batch)
            self._add_new(sub.batch, hashes, sub.batch_parents, sub.n_batch)
        else:
            while sub.n + sub.n_batch > sub.capacity:
                with gil:
                    self._grow_sub(sub)
            for i in range(sub.n_batch):
                if self.index[self.slot_of(sub.batch + i * self.words, hashes[i])] == 0:
                    copy_words(sub.keys + sub.n * self.words, sub.batch + i * self.words, self.words)
                    sub.hashes[sub.n] = hashes[i]
                    sub.parents[sub.n] = sub.batch_parents[i]
                    sub.n += 1
        sub.n_batch = 0
        return 0

    cdef void _add_new(self, const uint64_t *keys, const uint64_t *hashes, const uint32_t *parents, Py_ssize_t n) noexcept nogil:
        """Make states of keys, in order, except where one is a state already."""
        cdef Py_ssize_t i
        cdef uint64_t slot
        cdef const uint64_t *key
        for i in range(n):
            key = keys + i * self.words
            slot = self.slot_of(key, hashes[i])
            if self.index[slot]:
                continue
            copy_words(self.key(self.n_states), key, self.words)
            self.parents[self.n_states >> CHUNK_BITS][self.n_states & CHUNK_MASK] = parents[i]
            if self.fingerprints:
                self.prints[self.n_states >> CHUNK_BITS][self.n_states & CHUNK_MASK] = hashes[i]
            self.n_states += 1
            self.index[slot] = <uint32_t> self.n_states

    cdef inline void look(self, Sub *sub, uint32_t g, const uint16_t *ids) noexcept nogil:
        """Notice whether a successor is marked: what ``emit`` does while ``reach_back`` runs."""
        cdef uint64_t key[MAX_WORDS]
        cdef Py_ssize_t found
        self.pack(g, ids, key)
        found = self.number_of(key)
        if found < 0:
            return
        if self.marks[found]:
            self.met = 1
        elif self.edges_ != NULL:
            self.edges_[3 * self.n_edges] = <uint32_t> self.looking
            self.edges_[3 * self.n_edges + 1] = <uint32_t> found
            self.edges_[3 * self.n_edges + 2] = sub.agent
            self.n_edges += 1

    cdef Py_ssize_t _part_after(
        self, Sub *sub, Parts parts, const uint64_t *part, const uint64_t *before, Py_ssize_t id_before,
    ) except -2 nogil:
        """Return the id of a part after an operation; -1 if it is new and the piece may not learn."""
        cdef Py_ssize_t found
        if memcmp(part, before, 8 * parts.width) == 0:
            return id_before
        found = parts.find(part)
        if found >= 0:
            return found
        if not sub.learns:
            sub.missed = True
            return -1
        with gil:
            return self._intern(parts, part)

    cdef int _slow(self, Sub *sub, uint64_t state, uint32_t g, const uint16_t *ids, Py_ssize_t i,
                   const ghcb_alt_t *alt, uint32_t kind) except -1 nogil:
        """Operations that reach beyond one slice, executed on a whole record."""
        cdef Py_ssize_t n_global = self.program.n_global, n_slice = self.program.n_slice
        cdef Py_ssize_t j, k, part
        cdef uint64_t *slices = sub.scratch + n_global
        cdef uint64_t *own
        cdef uint64_t *other
        cdef uint16_t after[MAX_OTHERS + 1]
        cdef uint32_t g2
        cdef bint per_cpu = self.program.role[alt.role].block == clib.GHCB_BLOCK_OWN
        for j in range(self.n_others if kind == PAIR else 1):
            if kind == PAIR and (j == i or (self.symmetric and j and ids[j] == ids[j - 1] and j - 1 != i)):
                continue
            memcpy(sub.scratch, self.globals_.data + g * n_global, 8 * n_global)
            for k in range(self.n_others):
                memcpy(slices + k * n_slice, self.slices_.data + ids[k] * n_slice, 8 * n_slice)
            own = slices + i * n_slice if per_cpu else sub.scratch
            other = slices + (j if kind == PAIR else i if alt.binds else 0) * n_slice
            if kind == PAIR and not enabled(self.program.code, alt, sub.scratch, own, other):
                continue
            apply(self.program.code, alt, &self.program.profile.c, &self.program.tables, sub.scratch, own,
                  other, slices, self.n_others, n_slice, NULL)
            sub.n_executed += 1
            part = self._part_after(sub, self.globals_, sub.scratch, self.globals_.data + g * n_global, g)
            if part < 0:
                return 0
            g2 = <uint32_t> part
            for k in range(self.n_others):
                part = self._part_after(
                    sub, self.slices_, slices + k * n_slice, self.slices_.data + ids[k] * n_slice, ids[k]
                )
                if part < 0:
                    return 0
                after[k] = <uint16_t> part
            if sub.learns:
                with gil:
                    self._check_widths()
            if self.symmetric:
                sort_ids(after, self.n_others)
            self.emit(sub, state, g2, after)
        return 0

    cdef inline int _follow(self, Sub *sub, uint64_t state, uint32_t g, const uint16_t *ids, Py_ssize_t i,
                            uint32_t *tr) except -1 nogil:
        """Take one remembered transition of the pair (g, slice i; none if i is -1)."""
        cdef uint16_t after[MAX_OTHERS + 1]
        if self.edges_ != NULL:
            sub.agent = self.program.alt[tr[0]].role * 64
            if self.program.role[self.program.alt[tr[0]].role].block == clib.GHCB_BLOCK_OWN:
                sub.agent += <uint32_t> i
        if tr[3] != PLAIN:
            return self._slow(sub, state, g, ids, i, self.program.alt + tr[0], tr[3])
        if i < 0 or tr[2] == ids[i]:
            return self.emit(sub, state, tr[1], ids)
        memcpy(after, ids, 2 * self.n_others)
        after[i] = <uint16_t> tr[2]
        if self.symmetric:
            settle(after, self.n_others, i)
        return self.emit(sub, state, tr[1], after)

    cdef int _expand_one(self, Sub *sub, uint64_t state) except -1 nogil:
        """Note what follows from a state. If something new is met, ``sub.missed`` is set."""
        cdef uint16_t ids[MAX_OTHERS + 1]
        cdef uint32_t g = self.unpack(self.key(state), ids)
        cdef uint64_t before = sub.n_transitions
        cdef Py_ssize_t i
        cdef uint32_t run, t
        if self.alone != NULL and self._follow_alone(sub, state, g, ids):
            return 0
        for i in range(-1, self.n_others):
            if self.met:
                return 0
            if i > 0 and self.symmetric and ids[i] == ids[i - 1]:
                continue
            run = self.run(sub, g, <uint32_t> ids[i] if i >= 0 else <uint32_t> NO_SLICE)
            if sub.missed:
                return 0
            for t in range(self.run_n[run]):
                self._follow(sub, state, g, ids, i, self.tr + 4 * (<Py_ssize_t> self.run_first[run] + t))
        if self.marks == NULL and sub.n_transitions == before and not sub.missed:
            if sub.n_terminals == sub.room:
                with gil:
                    self._grow_terminals(sub)
            sub.terminals[sub.n_terminals] = <uint32_t> state
            sub.n_terminals += 1
        return 0

    cdef int _follow_alone(self, Sub *sub, uint64_t state, uint32_t g, const uint16_t *ids) except -1 nogil:
        """Follow the first operation that may be followed alone, if there is one; 1 if that was all."""
        cdef Py_ssize_t i
        cdef uint32_t run
        for i in range(-1, self.n_others):
            if i > 0 and self.symmetric and ids[i] == ids[i - 1]:
                continue
            run = self.run(sub, g, <uint32_t> ids[i] if i >= 0 else <uint32_t> NO_SLICE)
            if sub.missed:
                return 1
            if self.run_alone[run]:
                self._follow(
                    sub, state, g, ids, i,
                    self.tr + 4 * (<Py_ssize_t> self.run_first[run] + self.run_alone[run] - 1),
                )
                return 1
        return 0

    cdef int _expand_sub(self, Sub *sub) except -1 nogil:
        """Expand the states of a piece that are left, up to one that meets something new."""
        cdef uint64_t n_transitions, n_executed
        while sub.state < sub.end:
            if sub.skip == NULL or not sub.skip[sub.state - sub.origin]:
                n_transitions, n_executed = sub.n_transitions, sub.n_executed
                self._expand_one(sub, sub.state)
                if sub.missed:  # what was found of it so far will be found again
                    sub.n_transitions, sub.n_executed = n_transitions, n_executed
                    return 0
            sub.state += 1
        return self._look_up(sub)

    def _work(self, Py_ssize_t k, Py_ssize_t n_subs, uint64_t number):
        """Expand every ``n_threads``-th piece of a round, from piece ``k`` on, unless it is given up."""
        if number != self.n_rounds:
            return
        self.n_working += 1
        try:
            with nogil:
                while k < n_subs:
                    self._expand_sub(self.subs + k)
                    k += self.n_threads
        finally:
            self.n_working -= 1

    cdef int _begin(self, Sub *sub, uint64_t first, uint64_t end, const uint8_t *skip, uint64_t origin) except -1:
        self._prepare(sub)
        sub.state, sub.end = first, end
        sub.skip, sub.origin = skip, origin
        sub.n = sub.n_batch = sub.n_terminals = 0
        sub.n_transitions = sub.n_executed = 0
        sub.missed = False
        return 0

    cdef int _finish(self, Sub *sub) except -1:
        """Take over what a piece has counted."""
        self._note_terminals(sub)
        self.n_transitions += sub.n_transitions
        self.n_executed += sub.n_executed
        return 0

    cdef int _round(self, uint64_t first, uint64_t end, const uint8_t *skip, uint64_t origin) except -1:
        """Expand at most SUB * N_SUBS states."""
        cdef Sub *alone = self.subs + N_SUBS
        if self.n_threads > 1 and end - first >= THREADED * SUB:
            return self._round_of_threads(first, end, skip, origin)
        self._begin(alone, first, end, skip, origin)
        alone.learns = alone.adds = True
        try:
            with nogil:
                self._expand_sub(alone)
        finally:
            alone.adds = False
            self._finish(alone)
        return 0

    cdef int _round_of_threads(self, uint64_t first, uint64_t end, const uint8_t *skip, uint64_t origin) except -1:
        """The same, with one piece for each thread at a time: what was found is added, or nothing."""
        cdef Py_ssize_t k, n_subs = <Py_ssize_t> ((end - first + SUB - 1) // SUB)
        cdef Py_ssize_t n = 0
        cdef Sub *sub
        cdef uint64_t begin
        for k in range(n_subs):
            begin = first + <uint64_t> k * SUB
            self._begin(self.subs + k, begin, min(end, begin + SUB), skip, origin)
            self.subs[k].learns = self.subs[k].adds = False
        self.n_rounds += 1
        if self._pool is None:
            self._pool = _ThreadPoolExecutor(self.n_threads, "explorer")
        # all of them end before the first error is raised: nobody works on what is given up
        try:
            futures = [
                self._pool.submit(self._work, k, n_subs, self.n_rounds)
                for k in range(min(self.n_threads, n_subs))
            ]
            errors = [future.exception() for future in futures]
        except BaseException:  # a signal's
            self._give_up()
            raise
        for error in errors:
            if error is not None:
                raise error
        for k in range(n_subs):
            sub = self.subs + k
            sub.learns, sub.missed = True, False
            with nogil:
                self._expand_sub(sub)
            n += sub.n
        self._make_room(n)
        for k in range(n_subs):
            sub = self.subs + k
            with nogil:
                self._add_new(sub.keys, sub.hashes, sub.parents, sub.n)
            self._finish(sub)
        return 0

    cdef int _give_up(self) except -1:
        """Return when nobody works on the pieces of this round, nor will: what is queued is void."""
        self.n_rounds += 1
        while self.n_working:
            try:
                _sleep(0.0005)  # a piece takes a few milliseconds
            except BaseException:  # another signal, while the first one's error is being raised
                pass
        return 0

    cdef int _grow_terminals(self, Sub *sub) except -1:
        """Make room for more of a piece's states after which nothing happens."""
        cdef Py_ssize_t which = sub - self.subs
        cdef uint32_t[::1] view
        self._account(4 * max(sub.room, <Py_ssize_t> 256))
        self._sub_arrays[which]["terminals"] = _grown(self._sub_arrays[which]["terminals"], sub.room + max(sub.room, 256))
        view = self._sub_arrays[which]["terminals"]
        sub.terminals = &view[0]
        sub.room = view.shape[0]
        return 0

    cdef int _note_terminals(self, const Sub *sub) except -1:
        cdef uint32_t[::1] view
        cdef Py_ssize_t n = self.n_terminals + sub.n_terminals
        if sub.n_terminals == 0:
            return 0
        if n > len(self._terminals):
            room = max(1024, 2 * n)
            self._account(4 * (room - len(self._terminals)))
            self._terminals = _grown(self._terminals, room)
        view = self._terminals
        memcpy(&view[self.n_terminals], sub.terminals, 4 * sub.n_terminals)
        self.n_terminals = n
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

    cdef int _expand(self, uint64_t first, uint64_t end, const uint8_t[::1] skip) except -1:
        if end > self.n_states or first > end or (skip is not None and skip.shape[0] != end - first):
            raise _errors.OutOfRange(f"states {first} to {end} of {self.n_states}")
        if first < self.released:
            raise _errors.StateConflict(f"state {first}: its key is given up, a fingerprint is left")
        cdef const uint8_t *marks = NULL
        if skip is not None and skip.shape[0]:
            marks = &skip[0]
        cdef uint64_t at = first
        while at < end:
            if at != first:
                PyErr_CheckSignals()
            self._round(at, min(end, at + SUB * N_SUBS), marks, first)
            at += SUB * N_SUBS
        return 0

    # -- backwards, and as a graph ---------------------------------------------------------

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
        StateConflict
            Keys were given up: fingerprints cannot be expanded.
        """
        self._look_begins(marks)
        try:
            self._sweep()
            self._follow_edges_back(_np.asarray(marks))
        finally:
            self._look_ends()

    def edges(self):
        """Return every step between states that were found, by whom: three arrays.

        Returns
        -------
        (source, target, agent) : uint32 arrays, shape (n,)
            ``agent`` is role * 64 + index of the CPU's slice (0 for a role without one), sorted by
            source. With ``symmetric`` the index means nothing.

        Raises
        ------
        MemoryLimit
            They do not fit.
        StateConflict
            Keys were given up.
        """
        cdef uint8_t[::1] marks = _np.zeros(self.n_states, dtype=_np.uint8)
        self._look_begins(marks)
        try:
            found, _ = self._collect(range(self.n_states))
            found = found.copy()
        finally:
            self._look_ends()
        return found[:, 0].copy(), found[:, 1].copy(), found[:, 2].copy()

    cdef int _look_begins(self, uint8_t[::1] marks) except -1:
        if <uint64_t> marks.shape[0] != self.n_states:
            raise _errors.OutOfRange(f"{marks.shape[0]} marks for {self.n_states} states")
        if self.released:
            raise _errors.StateConflict("keys of states are given up, fingerprints are left")
        if not self._lock.acquire(False):
            raise _errors.StateConflict("the explorer is in use")
        self.marks = &marks[0]
        self.met = 0
        self.n_edges = 0
        self.subs[N_SUBS].learns = False  # a part that was never met is of no state that was found
        return 0

    cdef int _look_ends(self) except -1:
        self.marks = NULL
        self.edges_ = NULL
        self.met = 0
        self.size_bytes -= self.edges_bytes
        self.edges_bytes = 0
        self._lock.release()
        return 0

    cdef int _sweep(self) except -1:
        cdef uint64_t state = self.n_states
        while state:
            state -= 1
            if state & 0xffff == 0:
                PyErr_CheckSignals()
            if self.marks[state]:
                continue
            self.met = 0
            self.subs[N_SUBS].missed = False
            with nogil:
                self._expand_one(self.subs + N_SUBS, state)
            self.marks[state] = self.met
        return 0

    def _collect(self, states):
        """Return the edges from states to unmarked ones, and the states that have a marked one."""
        cdef Py_ssize_t room = 1 << 12
        cdef Py_ssize_t most = self._most_successors()
        cdef uint32_t[:, ::1] view
        cdef uint64_t state
        edges = _np.empty((room, 3), dtype=_np.uint32)
        seeds = []
        for at, i in enumerate(states):
            state = i
            if at & 0xffff == 0xffff:
                PyErr_CheckSignals()
            if self.n_edges + most > room:
                room = 2 * (room + most)
                more = 12 * room - edges.nbytes
                self._account(more)
                self.edges_bytes += more
                edges = _grown(edges, room)
            view = edges
            self.edges_ = &view[0, 0]
            self.looking = state
            self.met = 0
            self.subs[N_SUBS].missed = False
            with nogil:
                self._expand_one(self.subs + N_SUBS, state)
            if self.met:
                seeds.append(i)
        return edges[: self.n_edges], seeds

    cdef int _follow_edges_back(self, marks) except -1:
        edges, seeds = self._collect(_np.flatnonzero(marks == 0))
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

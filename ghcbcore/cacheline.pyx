"""Small programs of stores, flushes and conversions, in every order that hardware may choose.

The rules of a line stand in ``ghcbcore/cacheline.h``. ``Explorer`` applies them to a whole program:
a state is how far each CPU is, what memory holds, what software expects of it, and one word for
each line and CPU; each state is kept once, whole, and two are equal only if all their words are. From
each state follow the next statement of each CPU that may go on, and what hardware may do by
itself: write back any dirty line, drop any clean one, let a queued write reach memory. WBINVD and
WBNOINVD wait until no line of their CPU is dirty: the write-backs before are those events, in every order.

Only what can be noticed is kept: clean copies of a line that no statement loads, and the queue of
the fabric where no key changes, leave no trace and are dropped at once.

What software expects of a line is what the last store that was executed put there, in its domain.
CONVERT gives up the line, KEXEC all lines, REKEY those of the slot.
"""

from operator import index as _index
from threading import Lock as _Lock

import numpy as _np

from ghcbcore import errors as _errors

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from ghcbcore cimport clib
from ghcbcore.clib cimport ghcb_cache_event_t, ghcb_cache_op_t
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

__all__ = ["EVENT_DTYPE", "MAX_CPUS", "MAX_LINES", "MAX_OPS", "OP_DTYPE", "Explorer"]

cdef ghcb_cache_op_t _op
cdef ghcb_cache_event_t _event
OP_DTYPE = _np.asarray(<ghcb_cache_op_t[:1]> &_op).dtype
EVENT_DTYPE = _np.asarray(<ghcb_cache_event_t[:1]> &_event).dtype

cdef enum:
    CPUS = 64
    LINES = 64
    OPS = 1024
    NOBODY = 0xffffffff  # an event that no statement asked for
    TURNS = 1 << 12  # states between two looks at signals

MAX_CPUS = CPUS
MAX_LINES = LINES
MAX_OPS = OPS


@cython.final
cdef class Explorer:
    """Explorer(ops, n_cpus, memory, *, never=None, coherent=False, max_bytes=1 << 30)\n--\n
    Parameters
    ----------
    ops : array of OP_DTYPE, shape (n,)
        The program: ``block`` never falls, ``cpu`` is below ``n_cpus``, ``line`` below ``n_lines``,
        ``slot`` and ``value`` as in ``cacheline.h``. It is copied.
    n_cpus : int
        1 to ``MAX_CPUS``.
    memory : uint64 array, shape (n_lines,)
        The cell that each line holds at first (``ghcb_cell``).
    never : uint64 array, shape (n_lines,), optional
        Cells that memory must not hold at the end, whatever is expected; 0 for none.
    coherent : bool
        The processor reports SME_COHERENT.
    max_bytes : int
        Bound for the states; a search that needs more ends with ``is_complete`` false.

    Attributes
    ----------
    n_states, n_events : int
        Distinct states, and events that led to one of them.
    is_complete : bool
        Every order was followed to its end.

    Raises
    ------
    OutOfRange
        A CPU, line, slot, value or kind that is none, too many of something, or a ``max_bytes``
        that holds no states. Nothing is allocated then.
    """

    cdef readonly Py_ssize_t n_cpus, n_lines, n_states, n_words
    cdef readonly uint64_t n_events
    cdef readonly bint is_complete
    cdef bint coherent, queues
    cdef int order  # 0 not yet chosen, 1 breadth first, 2 depth first
    cdef Py_ssize_t n_ops, cap, max_states, pos_words, n_slots, next_state, n_deep
    cdef uint64_t max_bytes
    cdef object _keep  # arrays behind the pointers
    cdef object _lock
    cdef ghcb_cache_op_t *ops
    cdef int32_t *first  # of each CPU: where its list of statements begins in `listed`
    cdef int32_t *listed
    cdef uint64_t *never
    cdef uint64_t *loaded  # of each line: does a statement load it?
    cdef uint64_t *states
    cdef int32_t *parent
    cdef ghcb_cache_event_t *events
    cdef int32_t *table
    cdef int32_t *stack
    cdef uint64_t *new  # room for one state
    cdef object _bad_loads, _finals

    def __init__(self, ops, n_cpus, memory, *, never=None, coherent=False, max_bytes=1 << 30):
        if self._lock is not None:
            raise _errors.StateConflict("an Explorer is made once")
        given = _np.array(ops, dtype=OP_DTYPE, ndmin=1)
        words = _np.array(memory, dtype=_np.uint64, ndmin=1)
        bad = _np.zeros(len(words), _np.uint64) if never is None else _np.array(never, _np.uint64)
        self._check(given, _index(n_cpus), words, bad)
        self.n_cpus, self.n_lines, self.n_ops = n_cpus, len(words), len(given)
        self.coherent = coherent
        self.queues = bool(_np.isin(given["kind"], (clib.GHCB_CACHE_REKEY,)).any())
        self.pos_words = (self.n_cpus + 3) // 4
        self.n_words = self.pos_words + 2 * self.n_lines + self.n_lines * self.n_cpus
        bound = _index(max_bytes)
        per_state = 8 * self.n_words + 4 + EVENT_DTYPE.itemsize + 4 + 2 * 4 * 2
        most = min(bound // per_state, (1 << 31) - 2)
        if most < 1024:
            raise _errors.OutOfRange(f"max_bytes = {bound}: a state takes {per_state}, 1024 must fit")
        self.max_states = most
        first, listed = self._lists(given)
        loads = _np.zeros(self.n_lines, _np.uint64)
        loads[given["line"][given["kind"] == clib.GHCB_CACHE_LOAD]] = 1
        room = _np.zeros(self.n_words, _np.uint64)
        self._keep = {"ops": given, "never": bad, "first": first, "listed": listed,
                      "loads": loads, "room": room}
        self.ops = <ghcb_cache_op_t *> _address(given)
        self.never = <uint64_t *> _address(bad)
        self.first = <int32_t *> _address(first)
        self.listed = <int32_t *> _address(listed)
        self.loaded = <uint64_t *> _address(loads)
        self.new = <uint64_t *> _address(room)
        self._bad_loads, self._finals = {}, {}
        self._lock = _Lock()
        self._grow(min(512, self.max_states))
        room[self.pos_words : self.pos_words + self.n_lines] = words
        cdef ghcb_cache_event_t nothing = ghcb_cache_event_t(0, NOBODY, 0, 0, 0, 0)
        self._add(-1, nothing)

    @staticmethod
    def _check(given, n_cpus, words, bad):
        if not 1 <= n_cpus <= CPUS:
            raise _errors.OutOfRange(f"n_cpus = {n_cpus}: must be 1 to {CPUS}")
        if words.ndim != 1 or not 1 <= len(words) <= LINES:
            raise _errors.OutOfRange(f"memory: shape {words.shape}, must have 1 to {LINES} lines")
        if bad.shape != words.shape:
            raise _errors.OutOfRange(f"never: shape {bad.shape}, memory has {words.shape}")
        if given.ndim != 1 or len(given) > OPS:
            raise _errors.OutOfRange(f"ops: shape {given.shape}, at most {OPS} statements")
        _check_ops(<const ghcb_cache_op_t *> <uint64_t> _address(given), len(given), n_cpus, len(words))

    def _lists(self, given):
        """Return the statements of each CPU: where they begin, and their indices."""
        first = _np.zeros(self.n_cpus + 1, _np.int32)
        first[1:] = _np.cumsum(_np.bincount(given["cpu"], minlength=self.n_cpus))
        listed = _np.argsort(given["cpu"], kind="stable").astype(_np.int32)
        return first, _np.append(listed, _np.int32(0))

    cdef int _grow(self, Py_ssize_t cap) except -1:
        keep = self._keep
        shapes = (("states", (cap, self.n_words), _np.uint64), ("parent", (cap,), _np.int32),
                  ("events", (cap,), EVENT_DTYPE), ("stack", (cap,), _np.int32))
        for name, shape, dtype in shapes:
            made = _np.zeros(shape, dtype)
            if name in keep:
                made[: len(keep[name])] = keep[name]
            keep[name] = made
        self.n_slots = 1 << (int(2 * cap - 1)).bit_length()
        keep["table"] = _np.full(self.n_slots, -1, _np.int32)
        self.states = <uint64_t *> _address(keep["states"])
        self.parent = <int32_t *> _address(keep["parent"])
        self.events = <ghcb_cache_event_t *> _address(keep["events"])
        self.stack = <int32_t *> _address(keep["stack"])
        self.table = <int32_t *> _address(keep["table"])
        self.cap = cap
        cdef Py_ssize_t i
        for i in range(self.n_states):
            self.table[self._slot(self.states + i * self.n_words)] = <int32_t> i
        return 0

    cdef Py_ssize_t _slot(self, const uint64_t *state) noexcept nogil:
        """Return where in the table a state stands, or should."""
        cdef uint64_t mixed = 0x9e3779b97f4a7c15
        cdef Py_ssize_t i, at, mask = self.n_slots - 1
        for i in range(self.n_words):
            mixed = (mixed ^ state[i]) * <uint64_t> 0xff51afd7ed558ccd
            mixed ^= mixed >> 32
        at = <Py_ssize_t> (mixed & <uint64_t> mask)
        while self.table[at] >= 0 and memcmp(
            self.states + self.table[at] * self.n_words, state, 8 * self.n_words
        ) != 0:
            at = (at + 1) & mask
        return at

    cdef void _add(self, Py_ssize_t parent, ghcb_cache_event_t event) noexcept nogil:
        """Add the state in ``new``, if there is none like it. There is room."""
        cdef Py_ssize_t line, cpu, at
        cdef uint64_t *memory = self.new + self.pos_words
        cdef uint64_t *words = memory + 2 * self.n_lines
        for line in range(self.n_lines):
            if not self.queues:
                memory[line] = clib.ghcb_memory_drain(memory[line])
            if not self.loaded[line]:
                for cpu in range(self.n_cpus):
                    words[line * self.n_cpus + cpu] = clib.ghcb_line_drop_clean(
                        words[line * self.n_cpus + cpu]
                    )
        self.n_events += parent >= 0
        at = self._slot(self.new)
        if self.table[at] >= 0:
            return
        self.table[at] = <int32_t> self.n_states
        memcpy(self.states + self.n_states * self.n_words, self.new, 8 * self.n_words)
        self.parent[self.n_states] = <int32_t> parent
        self.events[self.n_states] = event
        self.stack[self.n_deep] = <int32_t> self.n_states
        self.n_deep += 1
        self.n_states += 1

    cdef uint64_t *_copy(self, Py_ssize_t state) noexcept nogil:
        """Put a copy of a state into ``new``; return its memory words."""
        memcpy(self.new, self.states + state * self.n_words, 8 * self.n_words)
        return self.new + self.pos_words

    cdef int _expand(self, Py_ssize_t state) except -1 nogil:
        """Add what can follow a state; note a load that went wrong, and a state that is the end."""
        cdef const uint16_t *done = <const uint16_t *> (self.states + state * self.n_words)
        cdef const uint64_t *old = self.states + state * self.n_words + self.pos_words
        cdef const uint64_t *old_words = old + 2 * self.n_lines
        cdef uint64_t *memory
        cdef uint64_t *words
        cdef uint64_t rest
        cdef Py_ssize_t cpu, line, at
        cdef int32_t op
        cdef uint32_t block = NOBODY
        cdef bint is_end = True, is_dirty, keeps
        cdef ghcb_cache_event_t event
        for cpu in range(self.n_cpus):
            if self.first[cpu] + done[cpu] < self.first[cpu + 1]:
                is_end = False
                op = self.listed[self.first[cpu] + done[cpu]]
                if self.ops[op].block < block:
                    block = self.ops[op].block
        for cpu in range(self.n_cpus):
            keeps = False
            is_dirty = False
            for line in range(self.n_lines):
                is_dirty |= clib.ghcb_line_n_dirty(old_words[line * self.n_cpus + cpu]) != 0
            if self.first[cpu] + done[cpu] < self.first[cpu + 1]:
                op = self.listed[self.first[cpu] + done[cpu]]
                if self.ops[op].block == block:
                    keeps = self.ops[op].kind == clib.GHCB_CACHE_WBNOINVD
                    if not (is_dirty and (keeps or self.ops[op].kind == clib.GHCB_CACHE_WBINVD)):
                        self._execute(state, op)
            for line in range(self.n_lines):
                at = line * self.n_cpus + cpu
                rest = old_words[at]
                while rest:
                    event = ghcb_cache_event_t(
                        clib.GHCB_CACHE_EVICT, NOBODY, <uint32_t> cpu, <uint32_t> line,
                        <uint32_t> clib.ghcb_cell_slot(rest), <uint32_t> clib.ghcb_cell_value(rest),
                    )
                    if not rest & clib.GHCB_CELL_DIRTY:
                        event.kind = clib.GHCB_CACHE_FORGET
                    memory = self._copy(state)
                    words = memory + 2 * self.n_lines
                    clib.ghcb_line_evict(words + at, event.slot, memory + line)
                    self._add(state, event)
                    if keeps and rest & clib.GHCB_CELL_DIRTY and self.loaded[line]:
                        event.kind = clib.GHCB_CACHE_CLEAN
                        memory = self._copy(state)
                        words = memory + 2 * self.n_lines
                        clib.ghcb_line_write_back(words + at, event.slot, memory + line)
                        self._add(state, event)
                    is_end = is_end and not rest & clib.GHCB_CELL_DIRTY
                    rest >>= clib.GHCB_CELL_BITS
        for line in range(self.n_lines):
            if clib.ghcb_memory_drain(old[line]) != old[line]:
                is_end = False
                memory = self._copy(state)
                memory[line] = clib.ghcb_memory_drain(memory[line])
                rest = clib.ghcb_memory_content(memory[line])
                event = ghcb_cache_event_t(
                    clib.GHCB_CACHE_DRAIN, NOBODY, 0, <uint32_t> line,
                    <uint32_t> clib.ghcb_cell_slot(rest), <uint32_t> clib.ghcb_cell_value(rest),
                )
                self._add(state, event)
        if is_end:
            with gil:
                self._finals.setdefault(_bytes(old, 2 * self.n_lines), state)
        return 0

    cdef int _execute(self, Py_ssize_t state, int32_t i) except -1 nogil:
        """Add what the statement does. Every argument was checked when the program was taken."""
        cdef ghcb_cache_op_t op = self.ops[i]
        cdef uint64_t *memory = self._copy(state)
        cdef uint64_t *expected = memory + self.n_lines
        cdef uint64_t *words = expected + self.n_lines
        cdef clib.ghcb_line_t at = clib.ghcb_line_t(
            words + op.line * self.n_cpus, words + op.line * self.n_cpus + 1, 1, self.n_cpus,
            memory + op.line, self.coherent,
        )
        cdef uint64_t value = op.value
        cdef Py_ssize_t line
        cdef bint is_bad = False
        cdef ghcb_cache_event_t event
        (<uint16_t *> self.new)[op.cpu] += 1
        if op.kind == clib.GHCB_CACHE_LOAD:
            clib.ghcb_line_load(&at, op.cpu, op.slot, &value)
            is_bad = expected[op.line] != 0 and (
                clib.ghcb_cell_slot(expected[op.line]) == op.slot
                and clib.ghcb_cell_value(expected[op.line]) != value
            )
        elif op.kind == clib.GHCB_CACHE_STORE:
            clib.ghcb_line_store(&at, op.cpu, op.slot, value)
            expected[op.line] = clib.ghcb_cell(op.slot, value)
        elif op.kind == clib.GHCB_CACHE_CLFLUSH:
            clib.ghcb_line_clflush(&at, op.slot)
        elif op.kind == clib.GHCB_CACHE_PAGE_FLUSH:
            clib.ghcb_line_page_flush(&at, op.slot)
        elif op.kind == clib.GHCB_CACHE_WBINVD or op.kind == clib.GHCB_CACHE_INVD:
            for line in range(self.n_lines):
                clib.ghcb_line_invd(words + line * self.n_cpus + op.cpu)
        elif op.kind == clib.GHCB_CACHE_CONVERT:
            expected[op.line] = 0
        for line in range(self.n_lines):
            if op.kind == clib.GHCB_CACHE_KEXEC:
                expected[line] = 0
            elif op.kind == clib.GHCB_CACHE_DF_FLUSH:
                memory[line] = clib.ghcb_memory_drain(memory[line])
            elif op.kind == clib.GHCB_CACHE_REKEY:
                memory[line] = clib.ghcb_memory_rekey(memory[line], op.slot)
                if expected[line] and clib.ghcb_cell_slot(expected[line]) == op.slot:
                    expected[line] = 0
        event = ghcb_cache_event_t(
            op.kind, <uint32_t> i, op.cpu, op.line, op.slot, <uint32_t> value
        )
        self._add(state, event)
        if is_bad:
            with gil:
                self._bad_loads.setdefault((i, int(value)), int(state))
        return 0

    def run(self, *, stop=False, deep=False):
        """Follow every order, or only until something went wrong.

        Parameters
        ----------
        stop : bool
            End with the first result that is corrupt.
        deep : bool
            Follow one order to its end first: finds a corrupt result soon, but not the shortest way to
            it. Without it each state is reached by as few events as possible.

        Returns
        -------
        bool
            No result is corrupt, among those that were reached.

        Notes
        -----
        Work and memory grow with the number of states; see ``is_complete``. A second call goes on
        where the first one ended, in the same order (StateConflict).
        """
        cdef Py_ssize_t state, n, seen_finals = 0, seen_loads = 0
        cdef Py_ssize_t most = self._most_followers()
        cdef bint good = True, is_deep = deep
        with self._alive():
            if self.order not in (0, 1 + is_deep):
                raise _errors.StateConflict("the search began in the other order")
            self.order = 1 + is_deep
            while True:
                if self.cap - self.n_states < most:
                    if self.cap + most > self.max_states:
                        return self._is_good()
                    self._grow(min(max(2 * self.cap, self.cap + most), self.max_states))
                n = 0
                with nogil:
                    while n < TURNS and self.cap - self.n_states >= most:
                        if is_deep:
                            if self.n_deep == 0:
                                break
                            self.n_deep -= 1
                            state = self.stack[self.n_deep]
                        else:
                            if self.next_state == self.n_states:
                                break
                            state = self.next_state
                            self.next_state += 1
                            self.n_deep = 0  # the stack is not needed
                        self._expand(state)
                        n += 1
                        if is_deep and n & 15 == 0:
                            break
                done = self.n_deep == 0 if is_deep else self.next_state == self.n_states
                if done:
                    self.is_complete = True
                    return self._is_good()
                if stop and (len(self._finals), len(self._bad_loads)) != (seen_finals, seen_loads):
                    seen_finals, seen_loads = len(self._finals), len(self._bad_loads)
                    good = self._is_good()
                    if not good:
                        return False
                PyErr_CheckSignals()

    def results(self):
        """Return what memory can hold at the end, when every dirty line was written back.

        Returns
        -------
        list of (state, memory, expected, is_bad)
            In the order in which they were found. ``memory`` and ``expected`` are tuples of cells, one
            for each line, 0 where nothing is expected; ``is_bad`` is a tuple of bool. ``state`` is
            for ``path``.
        """
        out = []
        with self._alive():
            for content, state in self._finals.items():
                words = _np.frombuffer(content, _np.uint64).tolist()
                memory, expected = words[: self.n_lines], words[self.n_lines :]
                bad = tuple(
                    bool(self._is_bad(i, memory[i], expected[i])) for i in range(self.n_lines)
                )
                out.append((int(state), tuple(memory), tuple(expected), bad))
        return out

    def bad_loads(self):
        """Return ``(op, value, state)`` of each load that can read what is not the last store.

        ``state`` is the one before the load; 0 as value is noise.
        """
        with self._alive():
            return [(op, value, state) for (op, value), state in self._bad_loads.items()]

    def path(self, state):
        """Return the events that lead to a state, an array of EVENT_DTYPE, shape (n,).

        ``op`` is 0xffffffff where hardware did something by itself.
        """
        cdef Py_ssize_t at = _index(state)
        if not 0 <= at < self.n_states:
            raise _errors.OutOfRange(f"state {at}: there are {self.n_states}")
        with self._alive():
            found = []
            while at > 0:
                found.append(at)
                at = self.parent[at]
            return self._keep["events"][found[::-1]]

    cdef Py_ssize_t _most_followers(self):
        return self.n_cpus + self.n_lines + 2 * clib.GHCB_LINE_ALIASES * self.n_lines * self.n_cpus

    cdef bint _is_bad(self, Py_ssize_t line, uint64_t cell, uint64_t expected) noexcept:
        if self.never[line] and cell == self.never[line]:
            return True
        return expected != 0 and cell != expected

    def _is_good(self):
        cdef Py_ssize_t i
        for content in self._finals:
            words = _np.frombuffer(content, _np.uint64).tolist()
            for i in range(self.n_lines):
                if self._is_bad(i, words[i], words[self.n_lines + i]):
                    return False
        return not self._bad_loads

    def _alive(self):
        if self._lock is None:
            raise _errors.StateConflict("this Explorer has no program: __init__ failed")
        return self._lock


cdef str _where(const ghcb_cache_op_t *ops, Py_ssize_t i):
    return f"ops[{i}], kind {ops[i].kind}"


cdef int _check_ops(
    const ghcb_cache_op_t *ops, Py_ssize_t n, uint64_t n_cpus, uint64_t n_lines
) except -1:
    """Refuse a statement that names what there is not; a line that a CPU uses in five domains."""
    cdef Py_ssize_t i, j, k, n_slots
    cdef uint32_t slots[clib.GHCB_LINE_ALIASES]
    cdef ghcb_cache_op_t op
    for i in range(n):
        op = ops[i]
        if not 0 < op.kind < clib.GHCB_CACHE_OPS_END:
            raise _errors.OutOfRange(f"{_where(ops, i)}: no such kind")
        if op.cpu >= n_cpus:
            raise _errors.OutOfRange(f"{_where(ops, i)}: cpu {op.cpu}, there are {n_cpus}")
        if op.line >= n_lines:
            raise _errors.OutOfRange(f"{_where(ops, i)}: line {op.line}, there are {n_lines}")
        if op.slot >= clib.GHCB_KEY_N_SLOTS or op.value >= clib.GHCB_LINE_N_VALUES:
            raise _errors.OutOfRange(f"{_where(ops, i)}: slot {op.slot:#x}, value {op.value:#x}")
        if op.kind == clib.GHCB_CACHE_STORE and op.value == clib.GHCB_LINE_NOISE:
            raise _errors.OutOfRange(f"{_where(ops, i)}: nothing can store value 0")
        if op.kind == clib.GHCB_CACHE_PAGE_FLUSH or op.kind == clib.GHCB_CACHE_REKEY:
            if op.slot == clib.GHCB_KEY_SLOT_NONE or op.slot > clib.GHCB_KEY_SLOT_LAST_ASID:
                raise _errors.OutOfRange(f"{_where(ops, i)}: slot {op.slot:#x} is no ASID")
        if i and op.block < ops[i - 1].block:
            raise _errors.OutOfRange(f"{_where(ops, i)}: block {op.block} after {ops[i - 1].block}")
        n_slots = 0
        for j in range(i + 1):
            if ops[j].kind != clib.GHCB_CACHE_LOAD and ops[j].kind != clib.GHCB_CACHE_STORE:
                continue
            if ops[j].cpu != op.cpu or ops[j].line != op.line:
                continue
            for k in range(n_slots):
                if slots[k] == ops[j].slot:
                    break
            else:
                if n_slots == clib.GHCB_LINE_ALIASES:
                    raise _errors.OutOfRange(
                        f"{_where(ops, i)}: cpu {op.cpu} uses line {op.line} in five domains, four fit"
                    )
                slots[n_slots] = ops[j].slot
                n_slots += 1
    return 0


cdef uint64_t _address(array) except? 0:
    return array.__array_interface__["data"][0]


cdef bytes _bytes(const uint64_t *words, Py_ssize_t n):
    return (<const char *> words)[: 8 * n]

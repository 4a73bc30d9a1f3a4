"""One machine with thousands of CPUs, moved event by event in modelled time.

Theory of operation. Each agent has a time at which it is next able to act; a heap gives the
earliest. It then chooses among its possible alternatives; if there is none it sleeps and leaves a
*watch*: for each of its alternatives one test that fails now, in the list of the word that this
test reads, and one for its own position, where another agent may put it (`jump`). An operation that
changes the word looks at the list and wakes whom the test no longer stops. Nobody is polled. An
alternative with a delay is looked at when the delay is over; that it was impossible for a moment in
between is noticed only if the agent was woken then. For each alternative that binds another CPU, the CPUs for which its tests
of constants hold are kept in a set, mended whenever a word that it tests changes, so that binding
does not search.

Every choice (which alternative, how long a drawn delay) is a pure function of the seed and of how
many choices were made before, so a run repeats bit by bit.

With ``log``, each operation leaves a record: who, when, for how long, and which earlier operation woke
the agent; from these follow phases, waits and the longest chain of causes (``pysev.phases``).
"""

from threading import Lock as _Lock

import numpy as _np

from ghcbcore import errors as _errors

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from ghcbcore cimport clib
from ghcbcore.clib cimport ghcb_alt_t, ghcb_event_t, ghcb_insn_t, ghcb_role_t, ghcb_trace_t
from ghcbcore.machine cimport Program, apply, enabled, holds
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

__all__ = ["EVENT_DTYPE", "MOVE_DTYPE", "Simulator"]

cdef ghcb_event_t _event
EVENT_DTYPE = _np.asarray(<ghcb_event_t[:1]> &_event).dtype

cdef struct Move:
    uint64_t when
    uint64_t took
    uint32_t agent
    uint32_t alt
    uint32_t woken_by
    uint32_t first_event


cdef Move _move
MOVE_DTYPE = _np.asarray(<Move[:1]> &_move).dtype


cdef struct Run:
    # words in a row
    uint32_t operand
    uint32_t n


cdef struct Agent:
    int32_t role
    int32_t slice
    int32_t place  # in the heap, or NONE
    int32_t n_watches
    uint64_t armed_at  # the position to whose alternatives its delays belong


cdef struct Node:
    # a watch; what is read together lies together
    int32_t next
    int32_t prev
    int32_t listed
    uint32_t insn
    int32_t alt  # an alternative that waits for a CPU to bind; NONE: one test counts


cdef enum:
    AGENT_WORDS = 3  # of 64 bits
    NODE_WORDS = 5  # of 32
    NONE = -1
    MOVED = 0xffffffff  # in place of a test: the watch of an agent's own position
    WAKE_NS = 64  # a sleeper notices within this time
    TURNS = 1 << 16  # between two looks at signals


cdef inline bint reads_other(const ghcb_insn_t *insn) noexcept nogil:
    return insn.a >> clib.GHCB_BLOCK_SHIFT == clib.GHCB_BLOCK_OTHER or (
        insn.b_is_word and insn.b >> clib.GHCB_BLOCK_SHIFT == clib.GHCB_BLOCK_OTHER
    )


@cython.final
cdef class Simulator:
    """Simulator(program, record, seed, log=False)\n--\n
    Parameters
    ----------
    program : Program
    record : uint64 array, C-contiguous, writable
        The first state; it is moved in place.
    seed : int
        64 bits.
    log : bool
        Keep a record of each operation: ``moves``.

    Attributes
    ----------
    record : uint64 array
    now_ns : int
        Modelled time of the last operation.
    n_steps : int
    executed : uint64 array, one element for each alternative of the program
        How often it was applied.
    """

    cdef readonly Program program
    cdef readonly object record
    cdef readonly object executed
    cdef readonly uint64_t now_ns
    cdef readonly uint64_t n_steps
    cdef readonly Py_ssize_t n_others
    cdef uint64_t seed, n_choices
    cdef uint64_t *g
    cdef uint64_t *slices
    cdef uint64_t *executed_
    cdef Py_ssize_t n_agents, n_lists, slots, n_watches
    cdef object _keep  # arrays behind the pointers
    cdef object _lock  # held by advance, which releases the GIL
    # agents
    cdef Agent *agents
    cdef uint64_t *armed  # [agent, slot]: when a delayed alternative may happen; 0: not running
    cdef uint8_t *has_delay  # of each position of the program: has it an alternative with a delay?
    # heap of agents that have a time
    cdef uint64_t *heap_when  # apart: written together, they would be read again too early
    cdef int32_t *heap_agent
    cdef Py_ssize_t n_heap
    # watches: [agent, k], in doubly linked lists, one for each word
    cdef int32_t *head
    cdef Node *node
    # what each alternative writes
    cdef uint32_t *run_first
    cdef Run *runs
    cdef uint64_t *shadow
    # of each alternative that binds a CPU (numbered from 0 by `binder`): the CPUs that fit
    cdef int32_t *binder
    cdef uint32_t *test_first  # of each binder: its tests of constants
    cdef uint32_t *tests
    cdef int32_t *members  # [binder, k]
    cdef int32_t *member_at  # [binder, cpu]: index in members, or NONE
    cdef int32_t *n_members
    cdef uint32_t *reader_first  # of each word of a slice: which binders test it
    cdef uint32_t *readers
    cdef uint32_t *n_calls
    cdef uint8_t *by_call  # of each alternative: it reaches CPUs it has not bound by calls alone
    # trace
    cdef object _events
    cdef ghcb_trace_t trace
    cdef uint64_t capacity
    # log
    cdef readonly bint log
    cdef object _moves
    cdef Move *moves_
    cdef uint64_t n_moves_max
    cdef uint32_t *woken  # [agent]: 1 + the operation that woke it since its last one; 0: none
    cdef uint32_t *armed_by  # [agent, slot]: the same when the delay began

    def __cinit__(self, Program program not None, uint64_t[::1] record not None, uint64_t seed, bint log=False):
        cdef Py_ssize_t r, i, a = 0
        self.program = program
        self.n_others = program.n_cpus(record)
        self.record = _np.asarray(record)
        self.seed = seed
        self.log = log
        self.g = &record[0]
        self.slices = self.g + program.n_global
        roles = program.roles
        counts = [1 if role["block"] == clib.GHCB_BLOCK_GLOBAL else self.n_others for role in roles]
        self.n_agents = sum(counts)
        self._keep = []
        self._lock = _Lock()
        self.agents = <Agent *> self._array(AGENT_WORDS * self.n_agents, _np.uint64)
        for r in range(len(counts)):
            for i in range(counts[r]):
                self.agents[a].role = <int32_t> r
                self.agents[a].slice = <int32_t> i if program.role[r].block == clib.GHCB_BLOCK_OWN else NONE
                self.agents[a].place = NONE
                a += 1
        self._measure()
        self.heap_when = <uint64_t *> self._array(self.n_agents, _np.uint64)
        self.heap_agent = <int32_t *> self._array(self.n_agents, _np.int32)
        self.armed = <uint64_t *> self._array(self.n_agents * self.slots, _np.uint64)
        self.has_delay = <uint8_t *> self._array(len(program.positions), _np.uint8)
        for r in range(len(program.positions) - 1):
            first, end = program.positions[r], program.positions[r + 1]
            self.has_delay[r] = bool(program.alts["delay_ns"][first:end].any())
        self.n_lists = program.n_global + (self.n_others + 1) * program.n_slice
        if max(self.n_lists, self.n_agents * self.n_watches) >> 31:
            raise _errors.OutOfRange(
                f"{self.n_lists} words, {self.n_agents} agents with {self.n_watches} watches: "
                "both are numbered with 31 bits"
            )
        self.head = <int32_t *> self._array(self.n_lists, _np.int32, NONE)
        n = self.n_agents * self.n_watches
        self.node = <Node *> self._array(NODE_WORDS * n, _np.uint32)
        self._index_binders()
        self.executed = _np.zeros(len(program.alts), dtype=_np.uint64)
        cdef uint64_t[::1] executed = self.executed
        self.executed_ = &executed[0]
        shadow = self.record.copy()
        cdef uint64_t[::1] shadow_view = shadow
        self.shadow = &shadow_view[0]
        self._keep.append(shadow)
        self.woken = <uint32_t *> self._array(self.n_agents if log else 0, _np.uint32)
        self.armed_by = <uint32_t *> self._array(self.n_agents * self.slots if log else 0, _np.uint32)
        self._reserve_events(1)
        for i in range(self.n_agents):
            self.schedule(i, self.draw(1000))

    cdef void *_array(self, Py_ssize_t n, dtype, fill=0) except NULL:
        array = _np.full(max(n, 1), fill, dtype=dtype)
        cdef uint8_t[::1] view = array.view(_np.uint8)
        self._keep.append(array)
        return &view[0]

    def _measure(self):
        """Lengths that follow from the program: alternatives at one position, watches, writes."""
        program = self.program
        insns, alts = program.insns, program.alts
        self.slots = int(_np.diff(program.positions).max())
        per_position = {}
        firsts, runs, calls, by_call = [0], [], [], []
        vcpu = range(clib.GHCB_VCPU_WORDS)
        for alt in alts:
            guards = insns[int(alt["guard"]) : int(alt["guard"]) + int(alt["n_guards"])]
            other = [g for g in guards if self._reads_other(g)]
            n = 2 * max(1, len(other))
            position = (int(alt["role"]), int(alt["pc"]))
            per_position[position] = per_position.get(position, 0) + n
            words, n_calls, only_calls = set(), 0, True
            for insn in insns[int(alt["effect"]) : int(alt["effect"]) + int(alt["n_effects"])]:
                if insn["op"] == clib.GHCB_OP_CALL:
                    words |= {int(insn["a"]) + i for i in vcpu} | set(range(clib.GHCB_VM_WORDS))
                    if alt["each"]:  # an SNP guest's request may reach any vCPU
                        boot, other = clib.GHCB_VM_WORDS, clib.GHCB_BLOCK_OTHER << clib.GHCB_BLOCK_SHIFT
                        words |= {boot + i for i in vcpu} | {other + i for i in vcpu}
                    n_calls += 1
                elif insn["op"] == clib.GHCB_OP_FRAME:
                    region = program.regions[int(insn["mask"]) >> clib.GHCB_FRAME_REGION_SHIFT]
                    first = int(region["first"])
                    words |= {int(insn["a"])} | set(range(first, first + 2 * int(region["n_frames"])))
                    n_calls += 1
                elif insn["op"] == clib.GHCB_OP_REACH:
                    words |= {int(insn["a"])} | self._reached(int(insn["mask"]))
                    only_calls = False
                elif insn["op"] == clib.GHCB_OP_NUMBER:
                    words.add(int(insn["a"]))
                elif insn["op"] == clib.GHCB_OP_EACH:
                    only_calls = False
                elif insn["op"] in (clib.GHCB_OP_SET, clib.GHCB_OP_ADD, clib.GHCB_OP_SHR):
                    words.add(int(insn["a"]))
            run = None
            for word in sorted(words):
                if run is not None and word == run[0] + run[1]:
                    run[1] += 1
                else:
                    run = [word, 1]
                    runs.append(run)
            firsts.append(len(runs))
            # of an EACH with no CPU to take, what stands around it is left
            calls.append(n_calls * (max(1, self.n_others) if alt["each"] else 1))
            by_call.append(only_calls)
        self.n_watches = max(per_position.values()) + 1  # its own position
        self.n_calls = <uint32_t *> self._numbers(calls)
        self.by_call = <uint8_t *> self._array(len(alts), _np.uint8)
        cdef Py_ssize_t i
        for i in range(len(alts)):
            self.by_call[i] = by_call[i]
        self.run_first = <uint32_t *> self._numbers(firsts)
        self.runs = <Run *> self._numbers([number for run in runs for number in run])

    cdef void *_numbers(self, values) except NULL:
        array = _np.array(values or [0], dtype=_np.uint32)
        cdef uint32_t[::1] view = array
        self._keep.append(array)
        return &view[0]

    def _reached(self, mask):
        """Return the operands of all words that an operation on a place may change."""
        place = self.program.places[mask >> clib.GHCB_REACH_PLACE_SHIFT & clib.GHCB_REACH_PLACE_MASK]
        op = self.program.place_ops[mask & clib.GHCB_REACH_OP_MASK]
        words = {int(place["first"]) + i for i in range(int(place["n_words"]))}
        block = mask >> clib.GHCB_REACH_BLOCK_SHIFT if op["local"] else clib.GHCB_BLOCK_OTHER
        if block != clib.GHCB_BLOCK_GLOBAL:
            first = (block << clib.GHCB_BLOCK_SHIFT) + int(place["slice_first"])
            words |= {first + i for i in range(int(place["n_slice"]))}
        return words

    def _index_binders(self):
        alts, insns = self.program.alts, self.program.insns
        binding = [i for i, alt in enumerate(alts) if alt["binds"]]
        readers = [[] for _ in range(self.program.n_slice)]
        firsts, tests = [0], []
        for b, i in enumerate(binding):
            first = int(alts[i]["guard"])
            for k in range(first, first + int(alts[i]["n_guards"])):
                index = int(insns[k]["a"]) & clib.GHCB_BLOCK_WORD
                if not self._is_constant_test(insns[k]):
                    continue
                tests.append(k)
                if b not in readers[index]:
                    readers[index].append(b)
            firsts.append(len(tests))
        n = len(binding)
        self.binder = <int32_t *> self._array(len(alts), _np.int32, NONE)
        self.test_first = <uint32_t *> self._numbers(firsts)
        self.tests = <uint32_t *> self._numbers(tests)
        self.members = <int32_t *> self._array(n * self.n_others, _np.int32)
        self.member_at = <int32_t *> self._array(n * self.n_others, _np.int32, NONE)
        self.n_members = <int32_t *> self._array(n, _np.int32)
        self.reader_first = <uint32_t *> self._array(self.program.n_slice + 1, _np.uint32)
        self.readers = <uint32_t *> self._array(sum(len(r) for r in readers), _np.uint32)
        cdef Py_ssize_t at = 0, word, cpu, b_index
        for word in range(self.program.n_slice):
            self.reader_first[word] = <uint32_t> at
            for b in readers[word]:
                self.readers[at] = b
                at += 1
        self.reader_first[self.program.n_slice] = <uint32_t> at
        for b_index in range(n):
            self.binder[<Py_ssize_t> binding[b_index]] = <int32_t> b_index
            for cpu in range(self.n_others):
                self.mend(b_index, cpu)

    def _is_constant_test(self, insn):
        return not insn["b_is_word"] and self._reads_other(insn)

    def _reads_other(self, insn):
        operands = [int(insn["a"])] + ([int(insn["b"])] if insn["b_is_word"] else [])
        return any(o >> clib.GHCB_BLOCK_SHIFT == clib.GHCB_BLOCK_OTHER for o in operands)

    cdef int _reserve_events(self, uint64_t more) except -1:
        if self.trace.n + more <= self.capacity:
            return 0
        size = max(4096, 2 * self.capacity, self.trace.n + more)
        events = _np.zeros(size, dtype=EVENT_DTYPE)
        if self._events is not None:
            events[: self.trace.n] = self._events[: self.trace.n]
        self._events = events
        cdef ghcb_event_t[::1] view = events
        self.trace.events = &view[0]
        self.capacity = <uint64_t> size
        return 0

    cdef int _reserve_moves(self) except -1:
        moves = _np.zeros(max(4096, 2 * self.n_moves_max), dtype=MOVE_DTYPE)
        if self._moves is not None:
            moves[: self.n_steps] = self._moves[: self.n_steps]
        self._moves = moves
        cdef Move[::1] view = moves
        self.moves_ = &view[0]
        self.n_moves_max = <uint64_t> len(moves)
        return 0

    # -- choices ---------------------------------------------------------------------------

    cdef inline uint64_t draw(self, uint64_t below) noexcept nogil:
        """Return a number in [0, below): the next of the stream that the seed names."""
        cdef uint64_t z = self.seed + self.n_choices * <uint64_t> 0x9e3779b97f4a7c15
        self.n_choices += 1
        if below <= 1:
            return 0
        z = (z ^ (z >> 30)) * <uint64_t> 0xbf58476d1ce4e5b9
        z = (z ^ (z >> 27)) * <uint64_t> 0x94d049bb133111eb
        z ^= z >> 31
        return z % below

    # -- heap ------------------------------------------------------------------------------

    cdef inline bint earlier(self, uint64_t when, int32_t agent, Py_ssize_t at) noexcept nogil:
        """Answer whether a time of an agent comes before what lies at a place of the heap."""
        return (when < self.heap_when[at]) | ((when == self.heap_when[at]) & (agent < self.heap_agent[at]))

    cdef inline void put(self, Py_ssize_t at, uint64_t when, int32_t agent) noexcept nogil:
        self.heap_when[at] = when
        self.heap_agent[at] = agent
        self.agents[agent].place = <int32_t> at

    cdef void settle(self, Py_ssize_t at, uint64_t when, int32_t agent) noexcept nogil:
        """Fill a place of the heap whose content is no longer of use.

        The hole goes down to a leaf without a look at what will fill it, which is late as a rule:
        one comparison a level, and none that has to be guessed. From there it goes up.
        """
        cdef Py_ssize_t child = 2 * at + 1
        cdef Py_ssize_t up
        while child + 1 < self.n_heap:
            child += self.earlier(self.heap_when[child + 1], self.heap_agent[child + 1], child)
            self.put(at, self.heap_when[child], self.heap_agent[child])
            at = child
            child = 2 * at + 1
        if child < self.n_heap:
            self.put(at, self.heap_when[child], self.heap_agent[child])
            at = child
        while at:
            up = (at - 1) // 2
            if not self.earlier(when, agent, up):
                break
            self.put(at, self.heap_when[up], self.heap_agent[up])
            at = up
        self.put(at, when, agent)

    cdef void schedule(self, Py_ssize_t agent, uint64_t time) noexcept nogil:
        cdef Py_ssize_t at = self.agents[agent].place
        if at == NONE:
            at = self.n_heap
            self.n_heap += 1
        self.settle(at, time, <int32_t> agent)

    cdef void unschedule(self, Py_ssize_t agent) noexcept nogil:
        cdef Py_ssize_t at = self.agents[agent].place
        if at == NONE:
            return
        self.n_heap -= 1
        self.agents[agent].place = NONE
        if at != self.n_heap:
            self.settle(at, self.heap_when[self.n_heap], self.heap_agent[self.n_heap])

    # -- watches ---------------------------------------------------------------------------

    cdef inline Py_ssize_t list_of(self, uint32_t operand, Py_ssize_t own) noexcept nogil:
        cdef uint32_t block = operand >> clib.GHCB_BLOCK_SHIFT
        cdef Py_ssize_t index = operand & clib.GHCB_BLOCK_WORD
        if block == clib.GHCB_BLOCK_GLOBAL:
            return index
        if block == clib.GHCB_BLOCK_OWN:
            return self.program.n_global + own * self.program.n_slice + index
        return self.program.n_global + self.n_others * self.program.n_slice + index

    cdef void watch(self, Py_ssize_t agent, uint32_t insn, uint32_t operand, Py_ssize_t alt) noexcept nogil:
        cdef Py_ssize_t node = agent * self.n_watches + self.agents[agent].n_watches
        cdef Py_ssize_t at = self.list_of(operand, self.agents[agent].slice)
        self.agents[agent].n_watches += 1
        self.node[node].insn = insn
        self.node[node].alt = <int32_t> alt
        self.node[node].listed = <int32_t> at
        self.node[node].prev = NONE
        self.node[node].next = self.head[at]
        if self.head[at] != NONE:
            self.node[self.head[at]].prev = <int32_t> node
        self.head[at] = <int32_t> node

    cdef void forget(self, Py_ssize_t agent) noexcept nogil:
        cdef Py_ssize_t node
        cdef Py_ssize_t k
        for k in range(self.agents[agent].n_watches):
            node = agent * self.n_watches + k
            if self.node[node].prev != NONE:
                self.node[self.node[node].prev].next = self.node[node].next
            else:
                self.head[self.node[node].listed] = self.node[node].next
            if self.node[node].next != NONE:
                self.node[self.node[node].next].prev = self.node[node].prev
        self.agents[agent].n_watches = 0

    cdef inline void changed(self, Py_ssize_t at, Py_ssize_t cpu) noexcept nogil:
        if self.head[at] != NONE:  # as a rule nobody watches
            self.wake(at, cpu)

    cdef void wake(self, Py_ssize_t at, Py_ssize_t cpu) noexcept nogil:
        """The word of list ``at`` changed (in CPU ``cpu``, for the lists of any CPU): look at it."""
        cdef int32_t node = self.head[at]
        cdef int32_t following
        cdef Py_ssize_t agent
        cdef uint64_t *own
        cdef bint stopped
        cdef Py_ssize_t of_any = self.program.n_global + self.n_others * self.program.n_slice
        while node != NONE:
            following = self.node[node].next
            agent = node // self.n_watches
            own = self.own_of(agent)
            if self.node[node].insn == <uint32_t> MOVED:
                stopped = False
            elif self.node[node].alt == NONE:
                stopped = not holds(self.program.code + self.node[node].insn, self.g, own, own)
            elif at < of_any:
                stopped = False  # compared with a word of each CPU: the agent looks for one itself
            else:
                # Only the tests of the other CPU: were one of the rest to fail now, and no longer
                # fail later, nobody would tell the agent
                stopped = cpu == self.agents[agent].slice or not self.fits(
                    self.program.alt + self.node[node].alt, own,
                    self.slices + cpu * self.program.n_slice,
                )
            if not stopped:
                # all watches of the agent are unlinked; `following` must not be one of them
                while following != NONE and following // self.n_watches == agent:
                    following = self.node[following].next
                self.forget(agent)
                if self.log:
                    self.woken[agent] = <uint32_t> self.n_steps
                self.schedule(agent, self.later(1 + self.draw(WAKE_NS)))
            node = following

    cdef inline bint fits(self, const ghcb_alt_t *alt, uint64_t *own, uint64_t *other) noexcept nogil:
        """Answer whether the tests of an alternative that read the other CPU hold."""
        cdef const ghcb_insn_t *insn
        cdef uint32_t i
        for i in range(alt.guard, alt.guard + alt.n_guards):
            insn = self.program.code + i
            if reads_other(insn) and not holds(insn, self.g, own, other):
                return False
        return True

    cdef inline uint64_t *own_of(self, Py_ssize_t agent) noexcept nogil:
        if self.agents[agent].slice == NONE:
            return self.g
        return self.slices + self.agents[agent].slice * self.program.n_slice

    cdef inline uint64_t later(self, uint64_t more) noexcept nogil:
        """Return the time ``more`` nanoseconds from now; time stops at its last value."""
        return self.now_ns + more if self.now_ns + more >= more else <uint64_t> 0 - 1

    # -- one agent -------------------------------------------------------------------------

    cdef void mend(self, Py_ssize_t b, Py_ssize_t cpu) noexcept nogil:
        """Put a CPU into the set of a binder, or take it out, as its words are now."""
        cdef uint64_t *other = self.slices + cpu * self.program.n_slice
        cdef int32_t *members = self.members + b * self.n_others
        cdef int32_t *at = self.member_at + b * self.n_others
        cdef int32_t last
        cdef uint32_t i
        cdef bint fits = True
        for i in range(self.test_first[b], self.test_first[b + 1]):
            if not holds(self.program.code + self.tests[i], self.g, other, other):
                fits = False
                break
        if fits and at[cpu] == NONE:
            at[cpu] = self.n_members[b]
            members[self.n_members[b]] = <int32_t> cpu
            self.n_members[b] += 1
        elif not fits and at[cpu] != NONE:
            self.n_members[b] -= 1
            last = members[self.n_members[b]]
            members[at[cpu]] = last
            at[last] = at[cpu]
            at[cpu] = NONE

    cdef Py_ssize_t find_other(self, Py_ssize_t agent, Py_ssize_t alt, uint64_t *own) noexcept nogil:
        """Return a CPU for which all tests hold, the choice being the seed's; NONE if none."""
        cdef Py_ssize_t b = self.binder[alt]
        cdef Py_ssize_t n = self.n_members[b]
        cdef Py_ssize_t k, j, start = 0
        if n > 1:
            start = <Py_ssize_t> self.draw(<uint64_t> n)
        for k in range(n):
            j = self.members[b * self.n_others + (start + k) % n]
            if j != self.agents[agent].slice and enabled(
                self.program.code, self.program.alt + alt, self.g, own,
                self.slices + j * self.program.n_slice,
            ):
                return j
        return NONE

    cdef void sleep_on(self, Py_ssize_t agent, uint32_t alt, uint64_t *own) noexcept nogil:
        """Leave the watches of an alternative that is not possible now."""
        cdef const ghcb_alt_t *a = self.program.alt + alt
        cdef const ghcb_insn_t *insn
        cdef uint32_t i
        for i in range(a.guard, a.guard + a.n_guards):
            insn = self.program.code + i
            if not reads_other(insn) and not holds(insn, self.g, own, own):
                self.watch(agent, i, insn.a, NONE)
                if insn.b_is_word:
                    self.watch(agent, i, insn.b, NONE)
                return
        for i in range(a.guard, a.guard + a.n_guards):
            insn = self.program.code + i
            if reads_other(insn):
                self.watch(agent, i, insn.a, alt)
                if insn.b_is_word:
                    self.watch(agent, i, insn.b, alt)

    cdef int act(self, Py_ssize_t agent) except -1 nogil:
        """Let an agent whose time has come take one step, or put it to sleep."""
        cdef const ghcb_role_t *role = self.program.role + self.agents[agent].role
        cdef uint64_t *own = self.own_of(agent)
        cdef uint64_t pc = own[role.pc_word]
        cdef uint32_t first, end, a, chosen = 0
        cdef uint64_t n_possible = 0, timer = 0, delay
        cdef uint64_t *armed = self.armed + agent * self.slots
        cdef Py_ssize_t other, chosen_other = NONE
        cdef const ghcb_alt_t *alt
        cdef Move *move
        cdef bint possible
        self.forget(agent)
        if pc >= role.n_pcs:
            with gil:
                raise _errors.OutOfRange(f"role {self.agents[agent].role}: position {pc}")
        first = self.program.first_alt[role.first + pc]
        end = self.program.first_alt[role.first + pc + 1]
        cdef bint has_delay = self.has_delay[role.first + pc]
        if has_delay and self.agents[agent].armed_at != pc:  # it comes from elsewhere
            for a in range(<uint32_t> self.slots):
                armed[a] = 0
        self.agents[agent].armed_at = pc
        for a in range(first, end):
            alt = self.program.alt + a
            other = NONE
            if alt.binds:
                other = self.find_other(agent, a, own)
                possible = other != NONE
            else:
                possible = enabled(self.program.code, alt, self.g, own, own)
            if not possible:
                if has_delay:
                    armed[a - first] = 0
                continue
            if alt.delay_ns:
                if armed[a - first] == 0:
                    delay = alt.delay_ns
                    if alt.spread:
                        delay = self.draw(2 * delay if delay >> 63 == 0 else <uint64_t> 0 - 1)
                    armed[a - first] = self.later(delay if delay + 1 == 0 else delay + 1)
                    if self.log:
                        self.armed_by[agent * self.slots + a - first] = self.woken[agent]
                if self.now_ns < armed[a - first]:
                    if timer == 0 or armed[a - first] < timer:
                        timer = armed[a - first]
                    continue
            n_possible += 1
            if self.draw(n_possible) == 0:
                chosen, chosen_other = a, other
        if n_possible:
            if has_delay:
                for a in range(end - first):
                    armed[a] = 0
            alt = self.program.alt + chosen
            if self.log:
                if self.n_steps == self.n_moves_max:
                    with gil:
                        self._reserve_moves()
                move = self.moves_ + self.n_steps
                move.when, move.agent, move.alt = self.now_ns, <uint32_t> agent, chosen
                move.first_event = <uint32_t> self.trace.n
                move.woken_by = self.woken[agent]
                if alt.delay_ns:
                    move.woken_by = self.armed_by[agent * self.slots + chosen - first]
                self.woken[agent] = 0
            self.do(agent, chosen, own, chosen_other)
            delay = self.draw(alt.cost_ns // 4 + 1)
            if self.log:
                self.moves_[self.n_steps - 1].took = self.later(
                    alt.cost_ns + delay if alt.cost_ns + delay >= delay else alt.cost_ns
                ) - self.now_ns
            self.schedule(agent, self.later(alt.cost_ns + delay if alt.cost_ns + delay >= delay else alt.cost_ns))
            return 0
        self.watch(agent, MOVED, role.block << clib.GHCB_BLOCK_SHIFT | role.pc_word, NONE)
        for a in range(first, end):
            if not has_delay or armed[a - first] == 0:
                self.sleep_on(agent, a, own)
        if timer:
            self.schedule(agent, timer)
        else:
            self.unschedule(agent)
        return 0

    cdef int do(self, Py_ssize_t agent, uint32_t a, uint64_t *own, Py_ssize_t other) except -1 nogil:
        cdef const ghcb_alt_t *alt = self.program.alt + a
        cdef uint64_t *other_slice = self.slices + other * self.program.n_slice if other != NONE else own
        cdef Py_ssize_t k
        cdef uint64_t first_event = self.trace.n
        self.trace.now_ns = self.now_ns
        self.trace.cost_ns = alt.cost_ns
        if self.trace.n + self.n_calls[a] > self.capacity:
            with gil:
                self._reserve_events(self.n_calls[a])
        apply(
            self.program.code, alt, &self.program.profile.c, &self.program.tables, self.g, own, other_slice,
            self.slices, self.n_others, self.program.n_slice, &self.trace,
        )
        self.n_steps += 1
        self.executed_[a] += 1
        if alt.each:
            self.compare(a, NONE, NONE)  # what exists once changes with no other CPU, too
            if self.by_call[a] and self.is_narrow(first_event):
                k = NONE
                while True:
                    k = self.next_reached(k, self.agents[agent].slice, other, first_event)
                    if k == self.n_others:
                        break
                    self.compare(a, k, k)
            else:
                for k in range(self.n_others):
                    self.compare(a, k, k)
        else:
            self.compare(a, self.agents[agent].slice, other)
        return 0

    cdef bint is_narrow(self, uint64_t first_event) noexcept nogil:
        """Answer whether no call since an event was one that may reach any number of vCPUs."""
        cdef uint64_t i
        for i in range(first_event, self.trace.n):
            if self.trace.events[i].sw_exit_code == clib.GHCB_NAE_HV_IPI:
                return False
        return True

    cdef Py_ssize_t next_reached(
        self, Py_ssize_t after, Py_ssize_t own, Py_ssize_t other, uint64_t first_event
    ) noexcept nogil:
        """Return the first CPU behind ``after`` that an operation has reached, by itself or by an AP
        creation since an event; the number of CPUs if there is none."""
        cdef Py_ssize_t found = self.n_others
        cdef Py_ssize_t target
        cdef uint64_t i
        if after < own < found:
            found = own
        if after < other < found:
            found = other
        for i in range(first_event, self.trace.n):
            if self.trace.events[i].sw_exit_code != clib.GHCB_NAE_SNP_AP_CREATION:
                continue
            target = <Py_ssize_t> (self.trace.events[i].sw_exit_info_1 >> clib.GHCB_AP_CREATE_APIC_ID_SHIFT) - 1
            if after < target < found:
                found = target
        return found

    cdef void compare(self, uint32_t a, Py_ssize_t own, Py_ssize_t other) noexcept nogil:
        """Tell the watchers of the words that an alternative wrote, where they changed."""
        cdef const Run *run = self.runs + self.run_first[a]
        cdef const Run *end = self.runs + self.run_first[a + 1]
        cdef uint32_t block
        cdef Py_ssize_t index, at, cpu, i
        while run < end:
            block = run.operand >> clib.GHCB_BLOCK_SHIFT
            index = run.operand & clib.GHCB_BLOCK_WORD
            at, cpu = index, NONE
            if block != clib.GHCB_BLOCK_GLOBAL:
                cpu = own if block == clib.GHCB_BLOCK_OWN else other
                at = self.program.n_global + cpu * self.program.n_slice + index
            if block == clib.GHCB_BLOCK_GLOBAL or cpu != NONE:
                for i in range(<Py_ssize_t> run.n):
                    if self.shadow[at + i] != self.g[at + i]:
                        self.shadow[at + i] = self.g[at + i]
                        self.tell(at + i, cpu, index + i)
            run += 1

    cdef void tell(self, Py_ssize_t at, Py_ssize_t cpu, Py_ssize_t index) noexcept nogil:
        """A word changed, of a CPU if it has one: tell those who watch it."""
        cdef uint32_t r
        if cpu != NONE:
            for r in range(self.reader_first[index], self.reader_first[index + 1]):
                self.mend(self.readers[r], cpu)
        self.changed(at, cpu)
        if cpu != NONE:
            self.changed(self.program.n_global + self.n_others * self.program.n_slice + index, cpu)

    def advance(self, uint64_t max_steps):
        """Take at most ``max_steps`` steps; return whether anything can still happen.

        Releases the GIL.

        Raises
        ------
        StateConflict
            Another thread is in ``advance``, or this one is (in a signal handler).
        """
        if not self._lock.acquire(False):
            raise _errors.StateConflict("the simulator is in use")
        try:
            return self._advance(max_steps)
        finally:
            self._lock.release()

    cdef bint _advance(self, uint64_t max_steps) except? False:
        cdef uint64_t end = self.n_steps + max_steps
        if end < max_steps:
            end = <uint64_t> 0 - 1
        cdef uint64_t turns
        while self.n_heap and self.n_steps < end:
            with nogil:  # once for many turns: taking the GIL costs as much as a turn
                turns = 0
                while self.n_heap and self.n_steps < end and turns < TURNS:
                    turns += 1
                    self.now_ns = self.heap_when[0]
                    self.act(self.heap_agent[0])
            PyErr_CheckSignals()
        return self.n_heap != 0

    def due(self):
        """Return when each agent acts next: uint64 array, by role, then by CPU (a copy).

        ``2**64 - 1`` stands for an agent that sleeps until a word changes. Where a run ends in a
        deadlock, these are the ones that wait.
        """
        if self._lock.locked():
            raise _errors.StateConflict("the simulator is in use")
        out = _np.full(self.n_agents, 0xffff_ffff_ffff_ffff, dtype=_np.uint64)
        cdef uint64_t[::1] times = out
        cdef Py_ssize_t i
        for i in range(self.n_agents):
            if self.agents[i].place != NONE:
                times[i] = self.heap_when[self.agents[i].place]
        return out

    def moves(self):
        """Return the record of each operation so far, oldest first: MOVE_DTYPE (a copy).

        ``when`` and ``took`` are nanoseconds; ``agent`` counts by role, then by CPU, as in ``due``;
        ``alt`` is the alternative; ``woken_by`` is 1 + the index of the operation that ended the
        agent's sleep, 0 if it did not sleep since its last one; ``first_event`` is the index of the
        first of its ``events``.

        Raises
        ------
        StateConflict
            The simulator keeps no log, or is in use.
        """
        if not self.log:
            raise _errors.StateConflict("the simulator keeps no log")
        if self._lock.locked():
            raise _errors.StateConflict("the simulator is in use")
        if self._moves is None:
            return _np.zeros(0, dtype=MOVE_DTYPE)
        return self._moves[: self.n_steps].copy()

    def events(self):
        """Return what was asked of the host so far, in order: array of EVENT_DTYPE (a copy)."""
        if self._lock.locked():
            raise _errors.StateConflict("the simulator is in use")
        return self._events[: self.trace.n].copy()

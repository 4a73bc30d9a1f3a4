"""A compiled flow and its one ``step``.

A program is three arrays (instructions, alternatives, roles; their form and meaning are in
``ghcbcore/machine.h``) and the constants of a host. It moves records: C-contiguous ``uint64``
arrays of ``n_global + n_cpus * n_slice`` words, where ``n_cpus`` counts the CPUs beside the boot
CPU. The program holds no state, so any number of records and threads can use one.

``step`` is for replays, tests and users; ``ghcbcore.simulator`` and ``ghcbcore.explorer`` use the
same two C functions (``machine.pxd``) without the Python call around them.
"""

import numpy as _np

from ghcbcore import errors as _errors

cimport cython
from ghcbcore cimport clib
from ghcbcore.clib cimport (
    ghcb_alt_t,
    ghcb_event_t,
    ghcb_frame_op_t,
    ghcb_insn_t,
    ghcb_place_t,
    ghcb_reach_op_t,
    ghcb_region_t,
    ghcb_role_t,
    ghcb_trace_t,
)
from ghcbcore.frame cimport op_from
from ghcbcore.profile cimport Profile
from libc.stdint cimport uint32_t, uint64_t

_VM_CALLS = frozenset((clib.GHCB_CALL_VMGEXIT, clib.GHCB_CALL_SHUTDOWN))  # these write ghcb_vm_t

__all__ = [
    "ALT_DTYPE",
    "FRAME_OP_DTYPE",
    "INSN_DTYPE",
    "MAX_FRAMES",
    "PLACE_DTYPE",
    "REACH_OP_DTYPE",
    "REGION_DTYPE",
    "ROLE_DTYPE",
    "Program",
]

cdef ghcb_insn_t _insn
cdef ghcb_alt_t _alt
cdef ghcb_role_t _role
cdef ghcb_frame_op_t _frame_op
cdef ghcb_place_t _place
cdef ghcb_reach_op_t _reach_op
cdef ghcb_region_t _region
INSN_DTYPE = _np.asarray(<ghcb_insn_t[:1]> &_insn).dtype
ALT_DTYPE = _np.asarray(<ghcb_alt_t[:1]> &_alt).dtype
ROLE_DTYPE = _np.asarray(<ghcb_role_t[:1]> &_role).dtype
FRAME_OP_DTYPE = _np.asarray(<ghcb_frame_op_t[:1]> &_frame_op).dtype
PLACE_DTYPE = _np.asarray(<ghcb_place_t[:1]> &_place).dtype
REACH_OP_DTYPE = _np.asarray(<ghcb_reach_op_t[:1]> &_reach_op).dtype
REGION_DTYPE = _np.asarray(<ghcb_region_t[:1]> &_region).dtype
MAX_FRAMES = 512


def _frozen(name, array, dtype):
    """Return a copy that nobody can write to: what was checked must stay what is executed."""
    array = _np.array(array, dtype=dtype)
    if array.ndim != 1:
        raise _errors.OutOfRange(f"{name}: {array.ndim} dimensions instead of one")
    return _np.frombuffer(array.tobytes(), dtype=dtype)


@cython.final
cdef class Program:
    """Program(insns, alts, roles, n_global, n_slice, profile, frame_ops=None, regions=None, place_ops=None, places=None)\n--\n
    Parameters
    ----------
    insns : array of INSN_DTYPE, shape (n,)
    alts : array of ALT_DTYPE, shape (n,), sorted by (role, pc)
    roles : array of ROLE_DTYPE, shape (n,)
        All three are copied.
    n_global, n_slice : int
        Words of the global part and of a slice.
    profile : ghcbcore.profile.Profile
        The host that CALL reaches.
    frame_ops : sequence of ghcbcore.frame.Op, optional
    regions : sequence of (first word, n_frames), optional
        What instructions on frames name: operations, and where frames lie in the global part.
    place_ops : array of REACH_OP_DTYPE, optional
    places : array of PLACE_DTYPE, optional
        What instructions on places name; both are copied.

    Attributes
    ----------
    ordered : bool
        What an EACH does may depend on the order in which it takes the CPUs (it numbers them, say):
        then CPUs that are alike are not interchangeable. False only where it provably does not.

    Raises
    ------
    OutOfRange
        An operand, jump, position or function number lies outside what is declared; the message
        names the element. A program that was accepted cannot reach outside a record.
    """

    # not __init__: an object that was not checked, or is checked twice, must not exist
    def __cinit__(self, insns, alts, roles, Py_ssize_t n_global, Py_ssize_t n_slice,
                  Profile profile not None, frame_ops=None, regions=None, place_ops=None, places=None):
        self.insns = _frozen("insns", insns, INSN_DTYPE)
        self.alts = _frozen("alts", alts, ALT_DTYPE)
        self.roles = _frozen("roles", roles, ROLE_DTYPE)
        self.n_global = n_global
        self.n_slice = n_slice
        self.n_roles = len(self.roles)
        self.profile = profile
        if n_global < <Py_ssize_t> clib.GHCB_VM_WORDS + <Py_ssize_t> clib.GHCB_VCPU_WORDS:
            raise _errors.OutOfRange(f"n_global {n_global}: no room for the VM and the boot vCPU")
        if n_slice < <Py_ssize_t> clib.GHCB_VCPU_WORDS:
            raise _errors.OutOfRange(f"n_slice {n_slice}: no room for a vCPU")
        self._take_frames(frame_ops or (), regions or ())
        self._take_places(() if place_ops is None else place_ops, () if places is None else places)
        self._check_roles()
        self._check_alts()
        cdef const ghcb_insn_t[::1] code = self.insns
        cdef const ghcb_alt_t[::1] alt = self.alts
        cdef const ghcb_role_t[::1] role = self.roles
        cdef const uint32_t[::1] first = self.positions
        self.code = &code[0] if code.shape[0] else NULL
        self.alt = &alt[0]
        self.role = &role[0]
        self.first_alt = &first[0]

    def _take_frames(self, frame_ops, regions):
        """Check the tables that instructions on frames name, and keep them."""
        cdef clib.ghcb_frame_op_t one
        cdef const ghcb_region_t[::1] places
        ops = _np.zeros(max(1, len(frame_ops)), FRAME_OP_DTYPE)
        cdef clib.ghcb_frame_op_t[::1] into = ops
        for i, given in enumerate(frame_ops):
            op_from(given, &one)
            into[i] = one
        self.n_frame_ops = len(frame_ops)
        rows = [(int(first), int(n)) for first, n in regions]
        for i, (first, n) in enumerate(rows):
            if not 0 < n <= MAX_FRAMES or not 0 <= first <= self.n_global - 2 * n:
                raise _errors.OutOfRange(f"regions[{i}]: {n} frames from word {first}")
        self.frame_ops = _frozen("frame_ops", ops, FRAME_OP_DTYPE)
        self.regions = _frozen("regions", _np.array(rows or [(0, 0)], REGION_DTYPE), REGION_DTYPE)
        self.n_regions = len(rows)
        cdef const clib.ghcb_frame_op_t[::1] kept = self.frame_ops
        places = self.regions
        self.tables.frames.ops = &kept[0]
        self.tables.frames.regions = &places[0]
        self.tables.frames.rules.flags = 0
        self.tables.frames.rules.max_asid = (1 << clib.FRAME_ASID_WIDTH) - 2

    def _take_places(self, place_ops, places):
        """Check the tables that instructions on places name, and keep them."""
        self.n_place_ops, self.n_places = len(place_ops), len(places)
        self.place_ops = _frozen("place_ops", place_ops if len(place_ops) else _np.zeros(1, REACH_OP_DTYPE), REACH_OP_DTYPE)
        self.places = _frozen("places", places if len(places) else _np.zeros(1, PLACE_DTYPE), PLACE_DTYPE)
        for i in range(self.n_places):
            place = {name: int(self.places[i][name]) for name in PLACE_DTYPE.names}
            if place["kind"] >= clib.GHCB_PLACE_END:
                raise _errors.OutOfRange(f"places[{i}]: kind {place['kind']}")
            if (place["n_words"] < place["n_slice"]
                    or place["first"] + place["n_words"] > self.n_global
                    or place["slice_first"] + place["n_slice"] > self.n_slice):
                raise _errors.OutOfRange(
                    f"places[{i}]: {place['n_words']} words from {place['first']}, "
                    f"{place['n_slice']} of a CPU from {place['slice_first']}"
                )
        cdef const ghcb_reach_op_t[::1] ops = self.place_ops
        cdef const ghcb_place_t[::1] where = self.places
        self.tables.places.ops = &ops[0]
        self.tables.places.places = &where[0]

    def _check_reach(self, where, insn, has_own, has_other):
        """Check an instruction on a place; answer whether it reaches every slice."""
        mask = int(insn["mask"])
        op, number = mask & clib.GHCB_REACH_OP_MASK, mask >> clib.GHCB_REACH_PLACE_SHIFT & clib.GHCB_REACH_PLACE_MASK
        block = mask >> clib.GHCB_REACH_BLOCK_SHIFT
        if op >= self.n_place_ops or number >= self.n_places:
            raise _errors.OutOfRange(f"{where}: operation {op} on place {number}")
        if not self._is_there(block, has_own, has_other):
            raise _errors.OutOfRange(f"{where}: acting CPU of block {block}")
        return not self.place_ops[op]["local"]

    def _is_there(self, block, has_own, has_other):
        """Answer whether an instruction may name this block."""
        return (
            block == clib.GHCB_BLOCK_GLOBAL
            or (block == clib.GHCB_BLOCK_OWN and has_own)
            or (block == clib.GHCB_BLOCK_OTHER and has_other)
        )

    def _check_frame(self, where, insn):
        region = int(insn["mask"]) >> clib.GHCB_FRAME_REGION_SHIFT
        op = int(insn["mask"]) & clib.GHCB_FRAME_OP_MASK
        if op >= self.n_frame_ops or region >= self.n_regions:
            raise _errors.OutOfRange(f"{where}: operation {op} on region {region} of frames")
        if not insn["b_is_word"] and insn["imm"] >= self.regions[region]["n_frames"]:
            raise _errors.OutOfRange(f"{where}: frame {insn['imm']} of region {region}")

    def _check_roles(self):
        if not 1 <= self.n_roles <= 64:
            raise _errors.OutOfRange(f"{self.n_roles} roles; 1 to 64 are possible")
        at = 0
        for i, role in enumerate(self.roles):
            words = {clib.GHCB_BLOCK_GLOBAL: self.n_global, clib.GHCB_BLOCK_OWN: self.n_slice}
            if int(role["block"]) not in words or role["pc_word"] >= words[int(role["block"])]:
                raise _errors.OutOfRange(f"roles[{i}]: block {role['block']}, word {role['pc_word']}")
            if role["first"] != at or not 1 <= role["n_pcs"] < 1 << 16:
                raise _errors.OutOfRange(f"roles[{i}]: first {role['first']}, {role['n_pcs']} positions")
            at += int(role["n_pcs"])

    def _check_alts(self):
        roles = self.roles
        n = len(self.alts)
        if not n:
            raise _errors.OutOfRange("no alternatives")
        order = []
        for i, alt in enumerate(self.alts):
            if alt["role"] >= self.n_roles or alt["pc"] >= roles[alt["role"]]["n_pcs"]:
                raise _errors.OutOfRange(f"alts[{i}]: role {alt['role']}, position {alt['pc']}")
            if alt["binds"] not in (clib.GHCB_BIND_NONE, clib.GHCB_BIND_ANY):
                raise _errors.OutOfRange(f"alts[{i}]: binds {alt['binds']}")
            for first, count in (("guard", "n_guards"), ("effect", "n_effects")):
                if int(alt[first]) + int(alt[count]) > len(self.insns):
                    end = int(alt[first]) + int(alt[count])
                    raise _errors.OutOfRange(f"alts[{i}]: instructions end at {end}")
            has_own = roles[alt["role"]]["block"] == clib.GHCB_BLOCK_OWN
            self._check_block(i, int(alt["guard"]), int(alt["n_guards"]), has_own, alt["binds"], True, False)
            each = self._check_block(
                i, int(alt["effect"]), int(alt["n_effects"]), has_own, alt["binds"], False, False
            )
            if each != bool(alt["each"]):
                raise _errors.OutOfRange(f"alts[{i}]: each is {alt['each']} but its effects say {each}")
            order.append(int(roles[alt["role"]]["first"]) + int(alt["pc"]))
        if order != sorted(order):
            raise _errors.OutOfRange("alternatives are not sorted by role and position")
        n_positions = int(roles["n_pcs"].sum())
        self.positions = _frozen(
            "positions", _np.searchsorted(order, _np.arange(n_positions + 1)), _np.uint32
        )

    def _check_block(self, i, first, count, has_own, has_other, is_guard, in_each):
        each = False
        targets = {}  # where a test or SKIP goes on: the last instruction that does
        at = first
        while at < first + count:
            insn = self.insns[at]
            where = f"alts[{i}], instruction {at}"
            op = int(insn["op"])
            if not 1 <= op < clib.GHCB_OP_END or (is_guard and op > clib.GHCB_OP_LAST_TEST):
                raise _errors.OutOfRange(f"{where}: op {op}")
            if at + 1 + int(insn["skip"]) > first + count:
                raise _errors.OutOfRange(f"{where}: skips {insn['skip']}, past the end")
            if op <= clib.GHCB_OP_LAST_TEST or op == clib.GHCB_OP_SKIP:
                targets[at + 1 + int(insn["skip"])] = at
            operands = [] if op in (clib.GHCB_OP_SKIP, clib.GHCB_OP_EACH) else [int(insn["a"])]
            if insn["b_is_word"]:
                operands.append(int(insn["b"]))
            for operand in operands:
                block, index = operand >> clib.GHCB_BLOCK_SHIFT, operand & clib.GHCB_BLOCK_WORD
                allowed = self._is_there(block, has_own, has_other or in_each)
                size = self.n_global if block == clib.GHCB_BLOCK_GLOBAL else self.n_slice
                if op == clib.GHCB_OP_CALL and operand == int(insn["a"]):
                    size -= <Py_ssize_t> clib.GHCB_VCPU_WORDS - 1
                if not allowed or index >= size:
                    raise _errors.OutOfRange(f"{where}: block {block}, word {index}")
            if op == clib.GHCB_OP_CALL and (insn["b_is_word"] or insn["imm"] >= clib.GHCB_CALL_END):
                raise _errors.OutOfRange(f"{where}: host function {insn['imm']}")
            if op == clib.GHCB_OP_FRAME:
                self._check_frame(where, insn)
            elif op == clib.GHCB_OP_REACH:
                each |= self._check_reach(where, insn, has_own, has_other or in_each)
            elif op == clib.GHCB_OP_NUMBER:
                if insn["b_is_word"] or not self._is_there(int(insn["imm"]), has_own, has_other or in_each):
                    raise _errors.OutOfRange(f"{where}: number of a CPU of block {insn['imm']}")
                if insn["mask"] >= 64:
                    raise _errors.OutOfRange(f"{where}: shift of {insn['mask']}")
                each = True
            elif op == clib.GHCB_OP_CALL and insn["imm"] == clib.GHCB_CALL_VMGEXIT:
                # AP creation and IPIs of an SNP guest reach the words of other vCPUs
                each |= self.profile.c.guest == clib.GHCB_GUEST_SNP
            if op == clib.GHCB_OP_EACH:
                if in_each:
                    raise _errors.OutOfRange(f"{where}: EACH inside an EACH")
                self._check_block(i, at + 1, int(insn["skip"]), has_own, has_other, False, True)
                self.ordered |= self._is_ordered(at + 1, int(insn["skip"]))
                for inside in range(at + 1, at + 1 + int(insn["skip"])):
                    if inside in targets:
                        raise _errors.OutOfRange(
                            f"alts[{i}], instruction {targets[inside]}: skips into the EACH at {at}"
                        )
                at += int(insn["skip"])
                each = True
            at += 1
        return each

    def _is_ordered(self, first, count):
        """Answer whether the body of an EACH may do something else in another order of the CPUs.

        It does not where each turn reads only its own CPU and words that no turn writes, and all
        that turns do to a common word commutes: the same constant put, or numbers added.
        """
        reads, writes, common = set(), set(), {}
        for at in range(first, first + count):
            insn = self.insns[at]
            op, a = int(insn["op"]), int(insn["a"])
            if op == clib.GHCB_OP_SKIP:
                continue
            if insn["b_is_word"]:
                reads.add(int(insn["b"]))
            if op <= clib.GHCB_OP_LAST_TEST:
                reads.add(a)
            elif op in (clib.GHCB_OP_FRAME, clib.GHCB_OP_REACH, clib.GHCB_OP_NUMBER):
                return True  # words that all turns share, or a number that is one CPU's
            elif op == clib.GHCB_OP_CALL:
                if a >> clib.GHCB_BLOCK_SHIFT != clib.GHCB_BLOCK_OTHER or insn["imm"] in _VM_CALLS:
                    return True  # reaches words that all turns share
                writes |= {a + i for i in range(clib.GHCB_VCPU_WORDS)}
            elif a >> clib.GHCB_BLOCK_SHIFT == clib.GHCB_BLOCK_OTHER:
                writes.add(a)
            else:
                is_constant = op == clib.GHCB_OP_SET and not insn["b_is_word"]
                value = int(insn["imm"] & insn["mask"]) if is_constant else None
                if op != clib.GHCB_OP_ADD and not is_constant:
                    return True
                if common.setdefault(a, (op, value)) != (op, value):
                    return True
        if any(a in reads for a in common):
            return True
        # the agent's own slice is one of those that the loop takes, under another name
        own = {a & clib.GHCB_BLOCK_WORD for a in reads | set(common)
               if a >> clib.GHCB_BLOCK_SHIFT == clib.GHCB_BLOCK_OWN}
        written_own = {a & clib.GHCB_BLOCK_WORD for a in common
                       if a >> clib.GHCB_BLOCK_SHIFT == clib.GHCB_BLOCK_OWN}
        other = {a & clib.GHCB_BLOCK_WORD for a in reads
                 if a >> clib.GHCB_BLOCK_SHIFT == clib.GHCB_BLOCK_OTHER}
        written = {a & clib.GHCB_BLOCK_WORD for a in writes}
        return bool(own & written or written_own & other)

    cdef Py_ssize_t _n_cpus(self, const uint64_t[::1] record) except -1:
        cdef Py_ssize_t rest = record.shape[0] - self.n_global
        if rest < 0 or rest % self.n_slice:
            raise _errors.OutOfRange(
                f"record of {record.shape[0]} words: not {self.n_global} + n * {self.n_slice}"
            )
        return rest // self.n_slice

    def n_cpus(self, const uint64_t[::1] record not None):
        """Return how many CPUs beside the boot CPU a record holds; OutOfRange if none fits."""
        return self._n_cpus(record)

    def moves(self, const uint64_t[::1] record not None):
        """Return every possible step of a record.

        Returns
        -------
        list of (alt, own, other)
            Index into ``alts``, index of the agent's slice and of the bound one; -1 for none.
        """
        cdef Py_ssize_t n = self._n_cpus(record)
        cdef uint64_t *g = <uint64_t *> &record[0]  # tests only read
        cdef uint64_t *own
        cdef Py_ssize_t r, i, j
        cdef uint32_t a
        out = []
        for r in range(self.n_roles):
            per_cpu = self.role[r].block == clib.GHCB_BLOCK_OWN
            for i in range(n if per_cpu else 1):
                own = g + self.n_global + i * self.n_slice if per_cpu else g
                pc = own[self.role[r].pc_word]
                if pc >= self.role[r].n_pcs:
                    raise _errors.OutOfRange(f"role {r}, agent {i}: position {pc}")
                at = self.role[r].first + pc
                for a in range(self.first_alt[at], self.first_alt[at + 1]):
                    if self.alt[a].binds == clib.GHCB_BIND_NONE:
                        if enabled(self.code, self.alt + a, g, own, own):
                            out.append((a, i if per_cpu else -1, -1))
                        continue
                    for j in range(n):
                        if per_cpu and j == i:
                            continue
                        if enabled(self.code, self.alt + a, g, own, g + self.n_global + j * self.n_slice):
                            out.append((a, i if per_cpu else -1, j))
        return out

    def step(self, uint64_t[::1] record not None, Py_ssize_t alt, Py_ssize_t own=-1, Py_ssize_t other=-1):
        """Apply one alternative to a record, in place.

        Raises
        ------
        OutOfRange
            An index is wrong, or the role needs a slice that was not given.
        StateConflict
            The agent is not at that position or a guard does not hold; the record is unchanged.
        """
        _make_step(self, record, alt, own, other, NULL)

    def traced_step(self, uint64_t[::1] record not None, ghcb_event_t[::1] events not None, Py_ssize_t alt,
                    Py_ssize_t own=-1, Py_ssize_t other=-1, *, uint64_t now_ns=0):
        """Do what ``step`` does, and note what was asked of the host.

        Parameters
        ----------
        events : array of ghcbcore.simulator.EVENT_DTYPE
            Receives the calls in order; must have room for ``n_effects`` of the alternative times
            the number of CPUs, the boot CPU included.
        now_ns : int
            Their time.

        Returns
        -------
        int
            How many elements were written.

        Raises
        ------
        OutOfRange, StateConflict
            As ``step``, and if there is too little room; then nothing has happened.
        """
        cdef Py_ssize_t room = 0
        cdef ghcb_trace_t trace
        if 0 <= alt < len(self.alts):
            room = self.alt[alt].n_effects * (self._n_cpus(record) + 1)
        if events.shape[0] < room:
            raise _errors.OutOfRange(f"alt {alt}: room for {events.shape[0]} events, not {room}")
        trace.events = &events[0] if events.shape[0] else NULL
        trace.n = 0
        trace.now_ns = now_ns
        trace.cost_ns = self.alt[alt].cost_ns if room else 0
        _make_step(self, record, alt, own, other, &trace)
        return trace.n


cdef int _make_step(
    Program self, uint64_t[::1] record, Py_ssize_t alt, Py_ssize_t own, Py_ssize_t other,
    ghcb_trace_t *trace,
) except -1:
    """Apply one alternative if it is possible; ``trace`` may be NULL."""
    cdef Py_ssize_t n = self._n_cpus(record)
    if not 0 <= alt < len(self.alts):
        raise _errors.OutOfRange(f"alt {alt}: there are {len(self.alts)}")
    cdef const ghcb_alt_t *a = self.alt + alt
    cdef const ghcb_role_t *role = self.role + a.role
    cdef bint per_cpu = role.block == clib.GHCB_BLOCK_OWN
    if (per_cpu and not 0 <= own < n) or (a.binds and (not 0 <= other < n or (per_cpu and other == own))):
        raise _errors.OutOfRange(f"alt {alt}: own {own}, other {other}, {n} CPUs")
    cdef uint64_t *g = &record[0]
    cdef uint64_t *slices = g + self.n_global
    cdef uint64_t *s = slices + own * self.n_slice if per_cpu else g
    cdef uint64_t *t = slices + other * self.n_slice if a.binds else s
    if s[role.pc_word] != a.pc or not enabled(self.code, a, g, s, t):
        raise _errors.StateConflict(f"alt {alt}, own {own}, other {other}: not possible here")
    apply(self.code, a, &self.profile.c, &self.tables, g, s, t, slices, n, self.n_slice, trace)
    return 0

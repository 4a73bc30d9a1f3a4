"""Operations that need no order: which alternatives may be followed alone.

Theory of operation. An operation is *local* if no operation of any other agent reads what it
writes, writes what it reads, or writes what it writes: then it does not matter when it happens. It
is *invisible* if no property can tell the state before it from the one after it. Where an agent
stands at a position at which all it could ever do is local and invisible, and just one operation is
possible, a search need follow that one alone: whatever else could have happened first can happen
after it, and leads to states of which every property says the same. (Ample sets of one element,
which keep reachability of an end as well. A search that only went round in such operations would
put others off for ever; so only operations that always lead forwards in their agent's program, and
move no other agent, count.)

That ``flow.only_while`` stops everybody does not count as reading: nothing happens any more then,
and no property sees whether the operation still did. An operation that writes what
``flow.only_while`` reads may itself stop everybody: it is never followed alone.

What properties read is not declared but recorded: ``Watched`` hands them states and keeps book.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ghcbcore._cffi import lib
from ghcbcore.host import VCPU_DTYPE, VM_DTYPE

from ..compiler import Compiled
from ..flow import Agent, Field
from ..states import States
from .result import Array

__all__ = ["Seen", "Watched", "followed_alone"]

N_VM, N_VCPU = len(VM_DTYPE.names or ()), len(VCPU_DTYPE.names or ())
SHIFT, WORD = lib.GHCB_BLOCK_SHIFT, lib.GHCB_BLOCK_WORD
GLOBAL, OWN, OTHER = lib.GHCB_BLOCK_GLOBAL, lib.GHCB_BLOCK_OWN, lib.GHCB_BLOCK_OTHER
Words = set[int]


@dataclass
class Seen:
    """What properties have read so far: words, and labels at which they asked for an agent."""

    words: Words = field(default_factory=set)
    labels: set[tuple[str, frozenset[str]]] = field(default_factory=set)

    def size(self) -> int:
        return len(self.words) + len(self.labels)


class Watched(States):
    """States that note what is read of them in ``seen``."""

    def __init__(
        self,
        compiled: Compiled,
        n: int,
        global_word: Callable[[int], Array],
        cpu_word: Callable[[int], Array],
        seen: Seen,
    ) -> None:
        self._seen = seen

        def global_seen(index: int) -> Array:
            seen.words.add(index)
            return global_word(index)

        def cpu_seen(index: int) -> Array:
            seen.words.add(OWN << SHIFT | index)
            return cpu_word(index)

        super().__init__(compiled, n, global_seen, cpu_seen)

    def at(self, agent: str, *labels: str) -> Array:
        before = set(self._seen.words)
        result = super().at(agent, *labels)
        self._seen.words.clear()
        self._seen.words.update(before)  # the position was read for these labels alone
        self._seen.labels.add((agent, frozenset(labels)))
        return result


@dataclass
class _Reach:
    """What one alternative reads and writes: operands, where OTHER stands for any CPU's word."""

    reads: Words
    writes: Words
    binds: bool

    def touches(self) -> Words:
        return self.reads | self.writes


def followed_alone(compiled: Compiled, seen: Seen) -> Array:
    """Return for each alternative whether it may be followed alone: uint8, shape (n alternatives,).

    ``seen`` is what properties read; if they come to read more, the answer no longer stands.
    """
    alts = compiled.program.alts
    reaches = [_reach(compiled, i) for i in range(len(alts))]
    roles = [int(alt["role"]) for alt in alts]
    positions: dict[tuple[int, int], list[int]] = {}
    for i, alt in enumerate(alts):
        positions.setdefault((roles[i], int(alt["pc"])), []).append(i)
    out = np.zeros(len(alts), dtype=np.uint8)
    for (role, pc), here in positions.items():
        agent = compiled.flow.agents[role]
        if all(_is_forward(compiled, i, agent, pc, seen) for i in here) and not any(
            _depend(reaches[i], reaches[j], roles[i] == roles[j], agent.per_cpu)
            for i in here
            for j in range(len(alts))
        ):
            out[here] = 1
    return out


def _depend(a: _Reach, b: _Reach, same_role: bool, per_cpu: bool) -> bool:
    """Return whether an alternative of another agent than a's has to do with it."""
    if a.binds:
        return True
    if same_role and not per_cpu:
        return False  # there is no other agent of this role
    theirs_read, theirs_write = _as_seen_by(b.reads, same_role), _as_seen_by(b.writes, same_role)
    return bool(a.writes & (theirs_read | theirs_write) or a.reads & theirs_write)


def _as_seen_by(words: Words, same_role: bool) -> Words:
    """Return another agent's words as those of the agent that asks: its own may be its OWN.

    Two agents of one role stand on two CPUs; those of two roles may stand on one.
    """
    out = set()
    for word in words:
        block = word >> SHIFT
        if block == GLOBAL:
            out.add(word)
        elif block == OTHER or not same_role:
            out.add(OWN << SHIFT | word & WORD)
    return out


def _is_forward(compiled: Compiled, i: int, agent: Agent, pc: int, seen: Seen) -> bool:
    """Return whether an alternative leads its agent to a later label, and no property can tell."""
    alt = compiled.program.alts[i]
    own_pc = agent.pc.operand
    closed = _visible(seen.words) | _positions(compiled) | _stops(compiled)
    if own_pc in _visible(seen.words) or alt["each"]:
        return False
    targets: list[int] = []
    effects = _effects(compiled, i)
    always = _unconditional(effects)
    moves = False
    for insn, is_always in zip(effects, always, strict=True):
        writes = _written(compiled, insn)
        if own_pc in writes:
            if insn["op"] != lib.GHCB_OP_SET or insn["b_is_word"]:
                return False
            targets.append(int(insn["imm"]))
            moves |= is_always
        if (writes - {own_pc}) & closed:
            return False
    if not moves or min(targets) <= pc:
        return False
    labels = list(agent.labels)
    return not any(
        name == agent.name and any((labels[pc] in asked) != (labels[t] in asked) for t in targets)
        for name, asked in seen.labels
    )


def _visible(words: Words) -> Words:
    return words | {OTHER << SHIFT | word & WORD for word in words if word >> SHIFT == OWN}


def _positions(compiled: Compiled) -> Words:
    """Return the words in which agents stand: only its own may change while one is alone."""
    return {agent.pc.operand for agent in compiled.flow.agents}


def _stops(compiled: Compiled) -> Words:
    """Return the words that ``flow.only_while`` reads."""
    words = {test.field.operand for test in compiled.flow._while}
    return words | {t.value.operand for t in compiled.flow._while if isinstance(t.value, Field)}


def _unconditional(effects: Array) -> list[bool]:
    """Return of each instruction whether no other one can skip it, or repeat it."""
    over, out = 0, []
    for i, insn in enumerate(effects):
        out.append(i >= over)
        over = max(over, i + 1 + int(insn["skip"]))
    return out


def _effects(compiled: Compiled, i: int) -> Array:
    alt = compiled.program.alts[i]
    first = int(alt["effect"])
    return compiled.program.insns[first : first + int(alt["n_effects"])]


def _reach(compiled: Compiled, i: int) -> _Reach:
    alt = compiled.program.alts[i]
    agent = compiled.agent_of(i)
    ignored = len(compiled.flow._while)
    first = int(alt["guard"])
    guards = compiled.program.insns[first + ignored : first + int(alt["n_guards"])]
    reads: Words = {agent.pc.operand}
    writes: Words = set()
    for insn in guards:
        reads |= _operands(insn)
    for insn in _effects(compiled, i):
        writes |= _written(compiled, insn)
        reads |= _operands(insn)
        if insn["op"] in (lib.GHCB_OP_CALL, lib.GHCB_OP_FRAME, lib.GHCB_OP_REACH):
            reads |= _written(compiled, insn)
    return _Reach(reads, writes, bool(alt["binds"]) or bool(alt["each"]))


def _operands(insn: Array) -> Words:
    """Return the words that an instruction names; what it writes it may read as well."""
    if insn["op"] in (lib.GHCB_OP_SKIP, lib.GHCB_OP_EACH):
        return set()
    second = {int(insn["b"])} if insn["b_is_word"] else set()
    return second if insn["op"] == lib.GHCB_OP_SET else {int(insn["a"])} | second


def _written(compiled: Compiled, insn: Array) -> Words:
    """Return every word that an instruction may write."""
    op, a = int(insn["op"]), int(insn["a"])
    program = compiled.program
    if op <= lib.GHCB_OP_LAST_TEST or op in (lib.GHCB_OP_SKIP, lib.GHCB_OP_EACH):
        return set()
    if op == lib.GHCB_OP_CALL:
        reached = set(range(N_VM)) | set(range(a, a + N_VCPU))
        if program.profile.guest == lib.GHCB_GUEST_SNP and insn["imm"] == lib.GHCB_CALL_VMGEXIT:
            # AP creation and interrupt commands reach every vCPU, whichever asks
            reached |= set(range(N_VM, N_VM + N_VCPU))
            reached |= {block << SHIFT | i for block in (OWN, OTHER) for i in range(N_VCPU)}
        return reached
    if op == lib.GHCB_OP_FRAME:
        region = program.regions[int(insn["mask"]) >> lib.GHCB_FRAME_REGION_SHIFT]
        first = int(region["first"])
        return {a, *range(first, first + 2 * int(region["n_frames"]))}
    if op == lib.GHCB_OP_REACH:
        number = int(insn["mask"]) >> lib.GHCB_REACH_PLACE_SHIFT & lib.GHCB_REACH_PLACE_MASK
        place = program.places[number]
        first, own = int(place["first"]), int(place["slice_first"])
        slices = range(own, own + int(place["n_slice"]))
        return {
            a,
            *range(first, first + int(place["n_words"])),
            *(block << SHIFT | i for block in (OWN, OTHER) for i in slices),
        }
    return {a}

"""From the tables of a flow to the arrays of ``ghcbcore.machine``.

Mistakes are said in the words of the flow: which agent, which label, which operation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ghcbcore._cffi import lib
from ghcbcore.frame import Op as FrameOp
from ghcbcore.machine import (
    ALT_DTYPE,
    INSN_DTYPE,
    PLACE_DTYPE,
    REACH_OP_DTYPE,
    ROLE_DTYPE,
    Program,
)

from .flow import (
    WORD,
    Agent,
    Effect,
    Field,
    Flow,
    FlowError,
    Op,
    Place,
    ReachOp,
    Value,
    as_word,
    jump,
)

__all__ = ["Compiled", "Compiler"]


@dataclass(frozen=True)
class Compiled:
    """A flow in the form that moves: the program, a first record, and what the numbers mean.

    ``ops[i]`` is the operation that became alternative ``i`` of the program.
    """

    flow: Flow
    program: Program
    n_others: int
    ops: tuple[Op, ...]

    def initial_record(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """Return a new record in the flow's first state, shape (n_global + n_others * n_slice,)."""
        one = np.array(self.flow._initial_cpu, dtype=np.uint64)
        return np.concatenate(
            [np.array(self.flow._initial_global, dtype=np.uint64), np.tile(one, self.n_others)]
        )

    def agent_of(self, alt: int) -> Agent:
        return self.flow.agents[int(self.program.alts[alt]["role"])]

    def label(self, agent: Agent, pc: int) -> str:
        return list(agent.labels)[pc]


@dataclass(frozen=True)
class _Scope:
    """Whose operation is compiled, and which CPUs it can name."""

    where: str
    own: bool
    other: bool
    in_each: bool = False


class Compiler:
    """One compilation; see ``Flow.compile``."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.insns: list[tuple[int, ...]] = []
        words = (flow.vm, flow.boot, flow.g, flow.cpu, flow.other)
        self.names = {f.operand: f.name for w in words for f in w}

    def compiled(self, n_others: int) -> Compiled:
        roles, alts, ops, first = [], [], [], 0
        if not self.flow.agents:
            raise FlowError(f"{self.flow.name}: no agents")
        for role, agent in enumerate(self.flow.agents):
            if not agent.labels:
                raise FlowError(f"{agent.name}: no labels")
            roles.append((agent.pc.block, agent.pc.index, first, len(agent.labels)))
            first += len(agent.labels)
            for pc, label in enumerate(agent.labels):
                for o in agent.labels[label]:
                    alts.append(self._alt(role, pc, agent, label, o))
                    ops.append(o)
        if not alts:
            raise FlowError(f"{self.flow.name}: no operations")
        program = Program(
            np.array(self.insns, dtype=INSN_DTYPE),
            np.array(alts, dtype=ALT_DTYPE),
            np.array(roles, dtype=ROLE_DTYPE),
            len(self.flow._initial_global),
            len(self.flow._initial_cpu),
            self.flow.profile,
            self.flow.frame_ops,
            self.flow.regions,
            np.array([(o.code, o.local, o.args) for o in self.flow.reach_ops], REACH_OP_DTYPE),
            np.array([_place_row(p) for p in self.flow.places], PLACE_DTYPE),
        )
        return Compiled(self.flow, program, n_others, tuple(ops))

    def _alt(self, role: int, pc: int, agent: Agent, label: str, o: Op) -> tuple[int, ...]:
        where = f"{agent.name}, {label!r}, {o.text!r}"
        scope = _Scope(where, own=agent.per_cpu, other=o.pick)
        guard = len(self.insns)
        for test in self.flow._while + o.when:
            self._emit(scope, test.opcode, test.field, test.value, test.field.mask)
        n_guards = len(self.insns) - guard
        effect = len(self.insns)
        labels = list(agent.labels)
        target = labels[min(pc + 1, len(labels) - 1)] if o.to is None else o.to
        if o.to is None and pc + 1 == len(labels):
            raise FlowError(f"{where}: no label follows")
        go = [] if target == "." else [jump(agent, target)]
        for e in (*o.do, *go):
            self._effect(e, scope)
        n_effects = len(self.insns) - effect
        reaches_all = any(self._reaches_all(e) for e in o.do)
        bind = lib.GHCB_BIND_ANY if o.pick else lib.GHCB_BIND_NONE
        return (
            role,
            pc,
            guard,
            n_guards,
            effect,
            n_effects,
            bind,
            int(reaches_all),
            o.cost,
            o.after,
            int(o.spread),
        )

    def _emit(
        self,
        scope: _Scope,
        opcode: int,
        target: Field | None,
        value: Value,
        mask: int,
        skip: int = 0,
    ) -> None:
        is_word = isinstance(value, Field)
        self.insns.append(
            (
                opcode,
                int(is_word),
                skip,
                self._operand(scope, target) if target is not None else 0,
                self._operand(scope, value) if isinstance(value, Field) else 0,
                0 if isinstance(value, Field) else as_word(scope.where, value),
                mask,
            )
        )

    def _operand(self, scope: _Scope, f: Field) -> int:
        if self.names.get(f.operand) != f.name:
            raise FlowError(f"{scope.where}: {f.name} is no word of flow {self.flow.name!r}")
        if f.block == lib.GHCB_BLOCK_OWN and not scope.own:
            raise FlowError(f"{scope.where}: {f.name}: this agent has no CPU of its own")
        if f.block == lib.GHCB_BLOCK_OTHER and not scope.other:
            raise FlowError(f"{scope.where}: {f.name}: no CPU is bound; `pick` and `each` bind one")
        return f.operand

    def _effect(self, e: Effect, scope: _Scope) -> None:
        if e.opcode == lib.GHCB_OP_SKIP:
            self._conditional(e, scope)
        elif e.opcode == lib.GHCB_OP_EACH:
            if scope.in_each:
                raise FlowError(f"{scope.where}: `each` inside an `each`")
            at = self._hole()
            for inner in e.body:
                self._effect(inner, replace(scope, other=True, in_each=True))
            self._fill(scope, at, lib.GHCB_OP_EACH, None, 0, WORD)
        elif e.frame is not None and not isinstance(e.value, str):
            self._emit(scope, e.opcode, e.target, e.value, self._frame(e.frame, scope))
        elif e.reach is not None and not isinstance(e.value, str):
            self._emit(scope, e.opcode, e.target, e.value, self._reach(e.reach, scope))
        elif isinstance(e.value, str):
            self._emit(scope, e.opcode, e.target, self._label_index(e, scope.where), e.mask)
        else:
            self._emit(scope, e.opcode, e.target, e.value, e.mask)

    def _frame(self, frame: tuple[int, FrameOp], scope: _Scope) -> int:
        """Return the mask of an instruction on a frame: the operation and the region by number."""
        number, what = frame
        if number >= len(self.flow.regions):
            raise FlowError(f"{scope.where}: the region of frames is another flow's")
        if what not in self.flow.frame_ops:
            self.flow.frame_ops.append(what)
        which = self.flow.frame_ops.index(what)
        return int(number << lib.GHCB_FRAME_REGION_SHIFT | which)

    def _reach(self, reach: tuple[int, ReachOp, int], scope: _Scope) -> int:
        """Return the mask of an instruction on a place: operation, place, block of who acts."""
        number, what, block = reach
        if number >= len(self.flow.places):
            raise FlowError(f"{scope.where}: the place is another flow's")
        if (block == lib.GHCB_BLOCK_OWN and not scope.own) or (
            block == lib.GHCB_BLOCK_OTHER and not scope.other
        ):
            raise FlowError(f"{scope.where}: the CPU that acts is not this agent's, and not bound")
        if what not in self.flow.reach_ops:
            self.flow.reach_ops.append(what)
        which = self.flow.reach_ops.index(what)
        return int(
            block << lib.GHCB_REACH_BLOCK_SHIFT | number << lib.GHCB_REACH_PLACE_SHIFT | which
        )

    def _reaches_all(self, e: Effect) -> bool:
        """Return whether an effect needs every CPU's words, or their order, to be carried out."""
        if e.opcode in (lib.GHCB_OP_EACH, lib.GHCB_OP_NUMBER):
            return True
        if e.reach is not None and not e.reach[1].local:
            return True
        if e.opcode == lib.GHCB_OP_CALL and e.value == lib.GHCB_CALL_VMGEXIT:
            return self.flow.profile.guest == lib.GHCB_GUEST_SNP
        return any(self._reaches_all(inner) for inner in (*e.body, *e.otherwise))

    def _conditional(self, e: Effect, scope: _Scope) -> None:
        tests = [(test, self._hole()) for test in e.tests]
        for inner in e.body:
            self._effect(inner, scope)
        over = self._hole() if e.otherwise else None
        for test, at in tests:
            self._fill(scope, at, test.opcode, test.field, test.value, test.field.mask)
        for inner in e.otherwise:
            self._effect(inner, scope)
        if over is not None:
            self._fill(scope, over, lib.GHCB_OP_SKIP, None, 0, WORD)

    def _hole(self) -> int:
        self.insns.append(())
        return len(self.insns) - 1

    def _fill(
        self, scope: _Scope, at: int, opcode: int, target: Field | None, value: Value, mask: int
    ) -> None:
        skip = len(self.insns) - 1 - at
        self._emit(scope, opcode, target, value, mask, skip)
        self.insns[at] = self.insns.pop()

    def _label_index(self, e: Effect, where: str) -> int:
        agent = next((a for a in self.flow.agents if a.pc is e.target), None)
        if agent is None:
            raise FlowError(f"{where}: label {e.value!r} is put where no agent of this flow stands")
        if e.value not in agent.labels:
            known = ", ".join(agent.labels)
            raise FlowError(f"{where}: {agent.name} has no label {e.value!r}; it has: {known}")
        return list(agent.labels).index(str(e.value))


def _place_row(place: Place) -> tuple[int, ...]:
    first = place.words[0].index if place.words else 0
    of_cpu = place.cpu_words[0].index if place.cpu_words else 0
    return (place.kind, place.options, first, len(place.words), of_cpu, len(place.cpu_words))

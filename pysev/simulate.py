"""``run``: one order of events of a flow, on a machine of any size, in modelled time.

The seed chooses the order and every drawn delay; the same seed gives the same run, bit for bit.
``always`` properties are looked at after every ``LOOK`` steps and at the end, ``end`` properties
at the end; ``check`` is the tool that looks everywhere.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ghcbcore import jumptable
from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange
from ghcbcore.simulator import Simulator

from . import costs, events
from .checking import DEADLOCK, evaluate
from .flow import Flow
from .frames import follow
from .machine import Machine
from .memory import Memory
from .phases import Analysis, analyse, event_weights
from .states import States

__all__ = ["RunResult", "run"]

LOOK = 1 << 16
MAX_STEPS, MAX_STEPS_PER_CPU = 100_000, 1_000
"""A run is given up after so many steps: no flow of the library needs a hundred for each CPU."""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes
    ----------
    verdict : str
        ``holds``, ``violated``, ``deadlock`` or ``unknown`` (given up after too many steps).
    violations : tuple of str
        Names of the properties that did not hold.
    cpus : dict of str to int
        CPUs by what became of them: ``total``, ``online``, ``lost`` and the flow's own kinds.
    vmgexits : dict of str to int
        VMGEXITs by kind.
    memory : dict of str to int
        Bytes by state.
    trace : array of EVENT_DTYPE
        Everything that was asked of the host, in order.
    analysis : Analysis
        Where the modelled time went.
    costs : dict of str to int
        Costs that were not the table's, where ``run`` was called.
    unused_costs : tuple of str
        Those among them for which the flow did not ask when it was built there.
    """

    flow: str
    seed: int
    verdict: str
    violations: tuple[str, ...]
    texts: tuple[str, ...]
    cpus: dict[str, int]
    vmgexits: dict[str, int]
    memory: dict[str, int]
    modelled_seconds: float
    seconds: float
    steps: int
    trace: Array
    record: Array
    jump_table_page: Array | None
    analysis: Analysis
    costs: dict[str, int]
    unused_costs: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "scenario": self.flow,
            "verdict": self.verdict,
            "violations": list(self.violations),
            "cpus": self.cpus,
            "vmgexits": self.vmgexits,
            "memory": self.memory,
            "modelled_seconds": self.modelled_seconds,
            "phases": self.analysis.phases_json(),
            "dominates": self.analysis.dominates_json(),
            "costs": self.costs,
            "unused_costs": list(self.unused_costs),
            "seconds": round(self.seconds, 4),
            "steps": self.steps,
            "seed": self.seed,
        }
        if self.jump_table_page is not None:
            ip, cs = jumptable.reset_vector(self.jump_table_page)
            out["jump_table"] = {
                "reset_vector": f"{cs:#06x}:{ip:#06x}",
                "park_code_bytes": len(jumptable.PARK_CODE),
            }
        return out


def run(flow: Flow, machine: Machine, seed: int = 0, *, memory: Memory | None = None) -> RunResult:
    """Run a flow once; with ``memory``, what happens to its frames happens there as well.

    Raises
    ------
    OutOfRange
        ``seed`` does not fit into 64 bits, or the number of CPUs is not possible.
    PropertyError
        A property raised or returned something else than one bool a state.
    FlowError
        With ``memory``: frames of the flow do not say which pages they stand for.
    """
    if not 0 <= seed < 1 << 64:
        raise OutOfRange(f"seed {seed}: does not fit into 64 bits")
    began = time.perf_counter()
    compiled = flow.compile(machine.n_cpus)
    record = compiled.initial_record()
    states = States.of_record(compiled, record)
    simulator = Simulator(compiled.program, record, seed, log=True)
    broken: dict[str, str] = {}
    limit = MAX_STEPS + MAX_STEPS_PER_CPU * machine.n_cpus
    going = True
    while going and simulator.n_steps < limit:
        going = simulator.advance(min(LOOK, limit - simulator.n_steps))
        for p in flow.properties:
            if p.kind == "always" and not evaluate(p, states)[0]:
                broken.setdefault(p.name, p.text)
    if not going:
        for p in flow.properties:
            if p.kind == "end" and not evaluate(p, states)[0]:
                broken.setdefault(p.name, p.text)
        if int(states.vm.event[0]) == lib.GHCB_EVENT_NONE and not states.at_rest()[0]:
            broken.setdefault(DEADLOCK, "an agent waits for what does not come")
    verdict = "violated" if set(broken) - {DEADLOCK} else "deadlock" if broken else "holds"
    if going and not broken:
        verdict = "unknown"
    everything = simulator.events()
    if memory is not None:
        follow(flow, machine, memory, everything, record)
    moves = simulator.moves()
    ended_ns = int((moves["when"] + moves["took"]).max(initial=0))  # a timer of nobody is no time
    asked = everything["call"] != lib.GHCB_TRACE_FRAME
    trace = everything[asked]
    weights = event_weights(compiled, moves, len(everything))[asked]
    return RunResult(
        flow=flow.name,
        seed=seed,
        verdict=verdict,
        violations=tuple(broken),
        texts=tuple(text or name for name, text in broken.items()),
        cpus=_cpus(flow, states, machine.n_cpus),
        vmgexits=events.vmgexits_by_kind(trace, weights),
        memory=_memory(flow, states, machine),
        modelled_seconds=ended_ns / 1e9,
        seconds=time.perf_counter() - began,
        steps=simulator.n_steps,
        trace=trace,
        record=record,
        jump_table_page=_page(flow, states, machine),
        analysis=analyse(compiled, moves, everything),
        costs=costs.changed(),
        unused_costs=costs.unused(),
    )


def _cpus(flow: Flow, states: States, n_cpus: int) -> dict[str, int]:
    """Count each CPU once: for the first kind that takes it, else as lost."""
    left = np.ones((1, n_cpus - 1), dtype=bool)
    alive = int(states.vm.event[0]) == lib.GHCB_EVENT_NONE
    counts = {"total": n_cpus, "online": int(alive), "lost": int(not alive)}
    for name in ("triple_fault", "parked"):
        counts[name] = 0
    for name, which in flow.cpu_states:
        if not alive and name in ("online", "parked"):
            continue  # nothing runs and nothing is held in a VM that has ended
        taken = left & which(states)
        counts[name] = counts.get(name, 0) + int(taken.sum())
        left &= ~taken
    counts["lost"] += int(left.sum())
    return counts


def _memory(flow: Flow, states: States, machine: Machine) -> dict[str, int]:
    """Return the layout's bytes by state, and what the new kernel has taken of the old one's."""
    taken = sum(
        machine.layout[m.part].size_bytes
        for m in flow.memories
        if int(getattr(states.g, m.taken.name.split(".", 1)[1])[0])
    )
    return machine.layout.memory_by_state() | {"taken_from_old_kernel": taken}


def _page(flow: Flow, states: States, machine: Machine) -> Array | None:
    """Return the jump table page as bytes, if the flow put its park code there."""
    names = {f.name for f in flow.g}
    if "g.park_code" not in names or not int(states.g.park_code[0]):
        return None
    vector = int(states.g.start_vector[0])
    ip, cs = vector & 0xFFFF, vector >> 16
    return jumptable.build_page(int(states.g.table[0]), reset_ip=ip, reset_cs=cs)

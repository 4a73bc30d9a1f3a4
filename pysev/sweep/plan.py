"""The points of a sweep, in order, and what the sweep is known by."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from ghcbcore.errors import SevError

from .. import costs
from ..flow import Flow
from ..machine import Machine
from ..memmap import MemoryMap
from ..scaling import grow
from ..scenarios import Scenario, find

__all__ = ["MAX_POINTS", "Column", "Plan", "Row", "SweepError"]

MAX_POINTS = 1_000_000
MAX_SEED = (1 << 64) - 1

Row = dict[str, Any]


class SweepError(SevError, ValueError):
    """A sweep is not possible as asked, or its file is not one that it can go on with."""


@dataclass(frozen=True)
class Column:
    """A column of the table; ``kind`` is ``int``, ``float`` or ``str``, None stands for nothing."""

    name: str
    kind: str


@dataclass(frozen=True)
class Plan:
    """Every machine to run a scenario on: each memory, with each number of CPUs, with each seed.

    Attributes
    ----------
    scenario : str
        Its name.
    cpus, memory : tuple of int
        Numbers of CPUs, bytes; each once.
    first_seed, n_seeds : int
    memmap : MemoryMap, optional
        The map that is grown to each size; a plain guest's without it.
    costs : dict of str to int
        Costs that are not the table's.

    Raises
    ------
    SweepError
        No point, more than ``MAX_POINTS``, or seeds of more than 64 bits.
    UnknownScenario
    """

    scenario: str
    cpus: tuple[int, ...]
    memory: tuple[int, ...]
    first_seed: int = 0
    n_seeds: int = 1
    memmap: MemoryMap | None = None
    costs: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = find(self.scenario)
        if found.fixed_cpus is not None:
            object.__setattr__(self, "cpus", (found.fixed_cpus,))
        if self.n_seeds < 1:
            raise SweepError(f"--seeds {self.n_seeds}: must be at least 1")
        if not 0 <= self.first_seed <= MAX_SEED - self.n_seeds + 1:
            raise SweepError("a seed does not fit into 64 bits")
        if not 1 <= self.n_points <= MAX_POINTS:
            raise SweepError(
                f"{len(self.cpus)} numbers of CPUs, {len(self.memory)} sizes of memory and "
                f"{self.n_seeds} seeds are {self.n_points} points; 1 to {MAX_POINTS} can be"
            )

    @property
    def n_points(self) -> int:
        return len(self.cpus) * len(self.memory) * self.n_seeds

    def point(self, i: int) -> tuple[int, int, int]:
        """Return CPUs, memory and seed of a point; the seed changes fastest, then the CPUs."""
        rest, seed = divmod(i, self.n_seeds)
        memory, cpus = divmod(rest, len(self.cpus))
        return self.cpus[cpus], self.memory[memory], self.first_seed + seed

    @cached_property
    def definition(self) -> dict[str, Any]:
        """What makes it this sweep and no other."""
        from .. import __version__

        out = asdict(self)
        out["memmap"] = None if self.memmap is None else [list(row) for row in self.memmap]
        return out | {"version": __version__, "columns": [c.name for c in self.columns]}

    @cached_property
    def id(self) -> str:
        """What the sweep is known by: the same command has the same, another has not."""
        text = json.dumps(self.definition, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def machine(self, n_cpus: int, memory: int) -> Machine:
        """Return a machine of the sweep; NoRoom and OutOfRange pass through."""
        memmap = MemoryMap.flat(memory) if self.memmap is None else grow(self.memmap, memory)
        return Machine.of(n_cpus, memmap, jump_table=self.found.jump_table)

    @property
    def found(self) -> Scenario:
        return find(self.scenario)

    def flow(self, machine: Machine) -> Flow:
        """Build the scenario with the sweep's costs."""
        with costs.using(self.costs):
            return self.found.build(machine)

    @cached_property
    def phases(self) -> dict[str, str]:
        """Column of each phase of the boot CPU, as the smallest and largest machines have it."""
        names: dict[str, None] = {}
        for n_cpus in (min(self.cpus), max(self.cpus)):
            for memory in (min(self.memory), max(self.memory)):
                try:
                    flow = self.flow(self.machine(n_cpus, memory))
                except SevError:
                    continue  # its own row says why
                boot = next((a for a in flow.agents if not a.per_cpu), None)
                names |= dict.fromkeys(boot.phases.values() if boot is not None else ())
        out: dict[str, str] = {}
        for name in names:
            word = "phase_" + re.sub(r"\W+", "_", name).strip("_")
            while word in out.values() or word == "phase_other":
                word += "_"
            out[name] = word
        return out

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the table; only ``wall_seconds`` differs from one run to the next."""
        return (
            Column("point", "int"),
            Column("scenario", "str"),
            Column("cpus", "int"),
            Column("memory_bytes", "int"),
            Column("seed", "int"),
            Column("verdict", "str"),
            Column("violations", "str"),
            Column("modelled_seconds", "float"),
            Column("boot_seconds", "float"),
            *(Column(name, "float") for name in self.phases.values()),
            Column("phase_other", "float"),
            Column("vmgexits", "int"),
            Column("online", "int"),
            Column("lost", "int"),
            Column("steps", "int"),
            Column("error", "str"),
            Column("sweep", "str"),
            Column("wall_seconds", "float"),
        )

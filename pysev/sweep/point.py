"""One point of a sweep: one run, as one row. What goes wrong with it is in its row, too."""

from __future__ import annotations

import time
from functools import lru_cache

from ..flow import Flow
from ..machine import Machine
from ..simulate import RunResult, run
from .plan import Plan, Row

__all__ = ["ERROR", "Runner"]

ERROR = "error"
MAX_ERROR_CHARS = 500


class Runner:
    """Runs points of a plan; neighbours, which differ in their seed, share machine and flow."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._built = lru_cache(maxsize=1)(self._build)

    def _build(self, n_cpus: int, memory: int) -> tuple[Machine, Flow]:
        machine = self.plan.machine(n_cpus, memory)
        return machine, self.plan.flow(machine)

    def row(self, i: int) -> Row:
        """Run point ``i``; its row has every column of the plan."""
        began = time.perf_counter()
        n_cpus, memory, seed = self.plan.point(i)
        row: Row = dict.fromkeys(column.name for column in self.plan.columns)
        row |= {
            "point": i,
            "scenario": self.plan.scenario,
            "cpus": n_cpus,
            "memory_bytes": memory,
            "seed": seed,
            "sweep": self.plan.id,
        }
        try:
            machine, flow = self._built(n_cpus, memory)
            row |= self._measured(run(flow, machine, seed))
        except Exception as error:  # one machine that cannot be does not end the sweep
            text = f"{type(error).__name__}: {error}"
            text = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
            row |= {"verdict": ERROR, "error": text[:MAX_ERROR_CHARS]}
        row["wall_seconds"] = round(time.perf_counter() - began, 6)
        return row

    def _measured(self, result: RunResult) -> Row:
        found = result.analysis
        columns = self.plan.phases
        mine = {p.name: p.ns for p in found.phases if p.agent == found.boot}
        phases = {column: mine.get(name, 0) / 1e9 for name, column in columns.items()}
        rest = found.path_ns - sum(ns for name, ns in mine.items() if name in columns)
        return {
            "verdict": result.verdict,
            "violations": "; ".join(result.violations),
            "modelled_seconds": result.modelled_seconds,
            "boot_seconds": found.path_ns / 1e9,
            **phases,
            "phase_other": rest / 1e9,
            "vmgexits": sum(result.vmgexits.values()),
            "online": result.cpus["online"],
            "lost": result.cpus["lost"],
            "steps": result.steps,
            "error": "",
        }

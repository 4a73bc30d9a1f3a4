"""What a sweep came to, point by point with seeds put together: a table for people, and JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ..memmap import format_size
from .plan import Plan, Row, SweepError
from .point import ERROR

__all__ = ["Cell", "Summary"]

MAX_LINES = 400


@dataclass
class Cell:
    """All seeds of one machine."""

    cpus: int
    memory_bytes: int
    verdicts: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    vmgexits: list[int] = field(default_factory=list)
    online: list[int] = field(default_factory=list)
    error: str = ""

    @property
    def is_good(self) -> bool:
        return set(self.verdicts) == {"holds"}


class Summary:
    """Rows put together."""

    def __init__(self, plan: Plan, rows: Iterable[Row]) -> None:
        self.plan = plan
        self.verdicts: dict[str, int] = {}
        self._cells: dict[tuple[int, int], Cell] = {}
        for row in rows:
            self._add(row)
        n = sum(self.verdicts.values())
        if n != plan.n_points:
            raise SweepError(f"the table has {n} rows for {plan.n_points} points")

    def _add(self, row: Row) -> None:
        key = row["memory_bytes"], row["cpus"]
        cell = self._cells.setdefault(key, Cell(row["cpus"], row["memory_bytes"]))
        verdict = row["verdict"]
        for counts in (cell.verdicts, self.verdicts):
            counts[verdict] = counts.get(verdict, 0) + 1
        if verdict == ERROR:
            cell.error = cell.error or row["error"]
            return
        cell.seconds.append(row["boot_seconds"])
        cell.vmgexits.append(row["vmgexits"])
        cell.online.append(row["online"])

    @property
    def cells(self) -> list[Cell]:
        return list(self._cells.values())

    @property
    def n_errors(self) -> int:
        return self.verdicts.get(ERROR, 0)

    def sentence(self) -> str:
        """One line: how many points, and what became of them."""
        plan = self.plan
        n = ", ".join(f"{verdict} {n}" for verdict, n in self.verdicts.items())
        return f"{plan.scenario}: {plan.n_points} points: {n}"

    def as_text(self) -> str:
        """Return the table: a line for each machine, medians over its seeds."""
        rows = [("memory", "CPUs", "seconds", "VMGEXITs", "online", "verdict")]
        for cell in self.cells[:MAX_LINES]:
            verdict = ", ".join(
                name if len(cell.verdicts) == 1 and n == 1 else f"{name} {n}"
                for name, n in cell.verdicts.items()
            )
            numbers = ("-", "-", "-")
            if cell.seconds:
                numbers = (
                    f"{median(cell.seconds):.6f}",
                    f"{median(cell.vmgexits):g}",
                    f"{median(cell.online):g}",
                )
            error = f": {cell.error}" if cell.error else ""
            rows.append((format_size(cell.memory_bytes), str(cell.cpus), *numbers, verdict + error))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join([*(cell.rjust(w) for cell, w in zip(row, widths, strict=False)), row[5]])
            for row in rows
        ]
        if len(self.cells) > MAX_LINES:
            lines.append(f"... and {len(self.cells) - MAX_LINES} more")
        return "\n".join([*lines, "", self.sentence(), ""])

    def as_json(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "scenario": plan.scenario,
            "sweep": plan.id,
            "points": plan.n_points,
            "verdicts": self.verdicts,
            "errors": self.n_errors,
            "cpus": list(plan.cpus),
            "memory_bytes": list(plan.memory),
            "seeds": [plan.first_seed, plan.n_seeds],
        }

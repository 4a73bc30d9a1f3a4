"""What a trace shows to be wrong: how often each rule is broken, and the first places of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pysev.tables.lint import RULES
from pysev.tables.lint_schema import Rule

from .reader import Array

__all__ = ["KEPT", "Finding", "Findings"]

KEPT = 20
"""Places of each rule that are kept with their words; all are counted."""

BY_NAME = {rule.name: rule for rule in RULES}


@dataclass(frozen=True, slots=True)
class Finding:
    """One place of a trace where a rule is broken; line 0 is the trace as a whole."""

    line: int
    rule: Rule
    words: str


class Findings:
    """Counts findings; keeps the first of each rule.

    Attributes
    ----------
    counts : dict of str to int
        By the name of the rule, only those that are broken.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._kept: dict[str, list[Finding]] = {}

    def __bool__(self) -> bool:
        return bool(self.counts)

    def add(self, name: str, line: int, words: str) -> None:
        """One finding."""
        self.counts[name] = self.counts.get(name, 0) + 1
        kept = self._kept.setdefault(name, [])
        if len(kept) < KEPT:
            kept.append(Finding(line, BY_NAME[name], words))

    def add_where(
        self,
        name: str,
        broken: Array,
        records: Array,
        line: Callable[[Any], int],
        words: Callable[[Any], str],
    ) -> None:
        """One finding for each of ``records`` where ``broken``; words only for those kept."""
        n = int(np.count_nonzero(broken))
        if not n:
            return
        before = self.counts.get(name, 0)
        self.counts[name] = before + n
        if before >= KEPT:
            return
        kept = self._kept.setdefault(name, [])
        for i in np.flatnonzero(broken)[: KEPT - before]:
            kept.append(Finding(line(records[i]), BY_NAME[name], words(records[i])))

    def take(self, other: Findings) -> None:
        """Take over what another has found."""
        for name, n in other.counts.items():
            kept = [*self._kept.get(name, ()), *other._kept[name]]
            self._kept[name] = sorted(kept, key=lambda f: f.line)[:KEPT]
            self.counts[name] = self.counts.get(name, 0) + n

    def in_order(self) -> list[Finding]:
        """Return what was kept: rule by rule in the order of the table, then by line."""
        return [
            finding
            for name in BY_NAME
            for finding in sorted(self._kept.get(name, ()), key=lambda f: f.line)
        ]

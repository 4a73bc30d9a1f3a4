"""The form of a row in ``pysev.tables.lint``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Rule", "Severity"]

Severity = Literal["error", "warning"]
"""``error``: a rule of the protocol, or of the trace's own form, is broken. ``warning``: allowed,
but hardly what anybody meant, or something that makes the rest of the trace doubtful."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule that a trace can show to be broken; ``what`` says what must hold."""

    name: str
    what: str
    source: str
    severity: Severity = "error"

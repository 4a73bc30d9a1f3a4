"""The form of rows in ``pysev.tables.doctor``: what a line of a kernel log says, and findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Rule", "Severity"]

Severity = Literal["error", "warning", "note", "fact"]
"""``error``: something is broken or cannot work; ``warning``: it will break, or may; ``note``:
worth knowing; ``fact``: read, for the summary and for checks. Errors and warnings make the exit
status 1."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of line.

    ``pattern`` is searched in the line without its time. ``words`` may use its groups, and what the
    reader of ``pysev.doctor.reading`` called ``read`` makes of them (``{said}``); a reader may also
    say that the line is of no interest.
    """

    name: str
    pattern: str
    severity: Severity
    words: str
    source: str
    advice: str = ""
    read: str = ""
    side: Literal["host", "guest", ""] = ""  # whose log such a line is in


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check over several lines may find; its code is in ``pysev.doctor.checks``."""

    name: str
    severity: Severity
    words: str
    source: str
    advice: str = ""

"""The form of a row in ``pysev.tables.costs``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Cost", "Status", "Unit"]

Status = Literal["source", "derived", "assumption"]
"""``source``: the source says the number; ``derived``: it follows from what the source shows;
``assumption``: nobody has published it, the order of magnitude is all that is meant."""

Unit = Literal["ns", "entries", "pages", "VMGEXITs", "percent", ""]


@dataclass(frozen=True, slots=True)
class Cost:
    """One thing that takes time, or that says how often something does.

    ``value`` is what ``run`` takes, in ``unit``; a row without one is a report to compare a run
    with, and ``said`` has its words. ``low`` and ``high`` bound what is plausible or was seen.
    """

    name: str
    what: str
    source: str
    status: Status
    value: int | None = None
    unit: Unit = "ns"
    low: int | None = None
    high: int | None = None
    said: str = ""

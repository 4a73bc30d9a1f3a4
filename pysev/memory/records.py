"""What operations on a guest's memory come to, and what questions about it are answered with.

Units: frames of 4 KiB.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Disagreement", "Event", "Outcome", "Page", "Run"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an operation came to.

    ``n_done`` frames (of an array: elements) were done and ``n_changed`` frames changed;
    ``refused_at`` is the
    frame that refused, ``refusal`` why in words, both empty if none did. ``result`` is the raw
    answer.
    """

    event: int
    n_done: int
    n_changed: int
    result: int
    refused_at: int | None
    refusal: str

    def __bool__(self) -> bool:
        return self.refused_at is None


@dataclass(frozen=True, slots=True)
class Event:
    """One call: its number, what was done, to which frames, what the caller said of it."""

    number: int
    operation: str
    frames: str
    label: str

    def __str__(self) -> str:
        text = f"event {self.number}: {self.operation} {self.frames}"
        return f"{text} ({self.label})" if self.label else text


@dataclass(frozen=True, slots=True)
class Page:
    """One frame, all views, and since which event each is as it is (0: from the start).

    ``rights`` are those of VMPL 0 to 3, letters of ``pysev.tables.rmp.RIGHTS`` or ``-``.
    """

    frame: int
    state: str
    asid: int
    gfn: int
    large: bool
    immutable: bool
    vmsa: bool
    in_use: bool
    rights: tuple[str, ...]
    validated: bool
    mapping: str
    leaf: str
    believed: bool
    listed: str
    key: str
    disagreements: tuple[str, ...]
    since: dict[str, int]
    since_is_exact: bool


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring frames that are alike in what was asked."""

    first: int
    n_pages: int
    what: str


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Neighbouring frames in which two views disagree in one way, and since which event.

    ``since`` is the last event that changed one of these views; ``since_is_exact`` is false
    where histories
    were cut for want of memory: then it was this event or one before it.
    """

    kind: str
    first: int
    n_pages: int
    what: str
    since: int
    since_is_exact: bool = True

"""A story as a sequence diagram in Mermaid, which GitHub and GitLab draw.

An arrow goes to whoever acts on what a step changed; a step that nobody else acts on is a note.
Steps that CPUs of one kind do one after the other, and CPUs that do the same all the time, are put
together as in the timeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .story import Story
from .timeline import Column, Row, columns_of, rows_of

SPECIAL = '#;"<>{}|`%\\&'

__all__ = ["Arrow", "Sequence", "escaped", "mermaid_sequence", "sequence_of"]


@dataclass(frozen=True)
class Arrow:
    """One row of a diagram at one participant: where it starts, and to which others it goes."""

    number: str
    source: int
    targets: tuple[int, ...]
    text: str
    mark: str


@dataclass(frozen=True)
class Sequence:
    """Participants as (first line, second line), and rows in their order."""

    heads: tuple[tuple[str, str], ...]
    arrows: tuple[Arrow, ...]


def sequence_of(story: Story, marks: Mapping[int, str] | None = None) -> Sequence:
    """Return the rows of a diagram; ``marks`` are lines to stand after steps, by their numbers."""
    marks = marks or {}
    rows = rows_of(story, marks)
    columns = columns_of(rows)
    arrows = [
        arrow for row in rows for arrow in _arrows(story, row, columns, marks.get(row.last, ""))
    ]
    return Sequence(tuple(c.heading for c in columns), tuple(arrows))


def _arrows(story: Story, row: Row, columns: list[Column], mark: str) -> list[Arrow]:
    out = []
    for at, column in enumerate(columns):
        steps = row.of(column)
        if not steps:
            continue
        numbers = {number for number, _ in steps}
        readers = {actor for number, actor in story.arrows if number in numbers}
        targets = [
            i for i, other in enumerate(columns) if i != at and not readers.isdisjoint(other.actors)
        ]
        out.append(Arrow(row.numbers, at, tuple(targets), steps[0][1].full_text, ""))
    if mark:
        last = out[-1]
        out[-1] = Arrow(last.number, last.source, last.targets, last.text, mark)
    return out


def escaped(text: str) -> str:
    """Return text in which nothing means anything to Mermaid."""
    return "".join(f"#{ord(c)};" if c in SPECIAL else c for c in text)


def mermaid_sequence(story: Story, marks: Mapping[int, str] | None = None) -> str:
    """Return a story as a ``sequenceDiagram``."""
    found = sequence_of(story, marks)
    lines = ["sequenceDiagram"]
    for i, (first, second) in enumerate(found.heads):
        title = "<br/>".join(escaped(part) for part in (first, second) if part)
        lines.append(f"    participant p{i} as {title}")
    for arrow in found.arrows:
        text = f"{arrow.number}. {escaped(arrow.text)}"
        if not arrow.targets:
            lines.append(f"    Note over p{arrow.source}: {text}")
        for i, target in enumerate(arrow.targets):
            shown = text if i == 0 else f"{arrow.number}."
            lines.append(f"    p{arrow.source}->>p{target}: {shown}")
        if arrow.mark:
            lines.append(f"    Note over p{arrow.source}: {escaped(arrow.mark)}")
    return "".join(f"{line}\n" for line in lines)

"""An order of events as text with one column for each agent, as commit messages show races.

Steps that several CPUs do one after the other stand in one row, and CPUs that do the same in every
row share a column; agents that do nothing have none. Text may go on under the headings to its right
where these have nothing to say in a row. Where more than ``MAX_COLUMNS`` are left, or
they would be too narrow to read, the steps are a list.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from .story import Actor, Change, Moment, Story, changes_text, cpus_text, numbers_text

__all__ = ["MAX_COLUMNS", "WIDTH", "Column", "Row", "columns_of", "rows_of", "timeline"]

WIDTH = 100
MAX_COLUMNS = 6
MIN_COLUMN, MIN_LAST, MAX_TEXT = 10, 24, 46
GAP, MARGIN = 2, 2
TIE = "\xa0"


@dataclass(frozen=True)
class Row:
    """The same step of one or more actors: numbers from ``first`` on."""

    first: int
    moments: tuple[Moment, ...]

    @property
    def last(self) -> int:
        return self.first + len(self.moments) - 1

    @property
    def numbers(self) -> str:
        return f"{self.first}" if len(self.moments) == 1 else f"{self.first}-{self.last}"

    def of(self, column: Column) -> list[tuple[int, Moment]]:
        """The steps of a column's actors with their indices in the story."""
        return [
            (self.first - 1 + i, m) for i, m in enumerate(self.moments) if m.actor in column.actors
        ]


@dataclass(frozen=True)
class Column:
    """Actors that do the same in every row."""

    actors: tuple[Actor, ...]

    @property
    def heading(self) -> tuple[str, str]:
        first = self.actors[0]
        if len(self.actors) == 1:
            return first.heading
        return cpus_text([a.cpu for a in self.actors]), first.title

    @property
    def name(self) -> str:
        first = self.actors[0]
        if len(self.actors) == 1:
            return first.name
        return f"{first.title} {numbers_text([a.cpu for a in self.actors])}"


def rows_of(story: Story, alone: Mapping[int, str] | None = None) -> list[Row]:
    """Put steps that CPUs of one kind do one after the other into one row.

    ``alone``: numbers of steps after which a row ends, whatever follows.
    """
    rows: list[Row] = []
    for number, moment in enumerate(story.moments, 1):
        if rows and rows[-1].last not in (alone or ()) and _same_step(rows[-1].moments[-1], moment):
            rows[-1] = Row(rows[-1].first, (*rows[-1].moments, moment))
        else:
            rows.append(Row(number, (moment,)))
    return rows


def _same_step(a: Moment, b: Moment) -> bool:
    return (
        a.actor.kind == b.actor.kind
        and 0 < a.actor.cpu < b.actor.cpu
        and a.text == b.text
        and not a.other
        and not b.other
    )


def columns_of(rows: list[Row]) -> list[Column]:
    """Return the columns: the boot CPU first, then other CPUs, kind by kind, then all else."""
    where: dict[Actor, list[int]] = {}
    for i, row in enumerate(rows):
        for moment in row.moments:
            where.setdefault(moment.actor, []).append(i)
    alike: dict[tuple[int, tuple[int, ...]], list[Actor]] = {}
    for actor in sorted(where):
        alike.setdefault((actor.kind, tuple(where[actor])), []).append(actor)
    columns = [Column(tuple(actors)) for actors in alike.values()]
    return sorted(columns, key=_order)


def _order(column: Column) -> tuple[bool, bool, int, int]:
    first = column.actors[0]
    return not first.is_cpu_0, not first.cpu, first.kind, first.cpu


def timeline(
    story: Story, marks: Mapping[int, str] | None = None, *, everything: bool = False
) -> str:
    """Return an order of events as text.

    Parameters
    ----------
    story : Story
    marks : dict of int to str, optional
        A line to stand after a step: by the number of the step, from 1 on.
    everything : bool
        Show every word that changes, not only what matters later.

    Returns
    -------
    str
        Lines of at most ``WIDTH`` characters.
    """
    rows = rows_of(story, marks)
    columns = columns_of(rows)
    widths = _widths(story, rows, columns, everything)
    marks = marks or {}
    if not rows:
        return "".join(f"{line}\n" for line in _mark(marks[0], "  ")) if 0 in marks else ""
    if widths is None:
        return _as_list(story, rows, marks, everything)
    number = max((len(row.numbers) for row in rows), default=1)
    indent = " " * (MARGIN + number + GAP)
    heads = [
        [*_wrapped(c.heading[0], w), *_wrapped(c.heading[1], w)]
        for c, w in zip(columns, widths, strict=True)
    ]
    lines = _mark(marks[0], indent) if 0 in marks else []
    lines += _beside(heads, widths, indent)
    lines.append((indent + (" " * GAP).join("-" * w for w in widths)).rstrip())
    for row in rows:
        texts = [_cell(story, row, column, everything) for column in columns]
        rooms = _rooms(texts, widths)
        cells = [
            [part for text in cell for part in text.lines(room)]
            for cell, room in zip(texts, rooms, strict=True)
        ]
        first = f"{'':{MARGIN}}{row.numbers:>{number}}{'':{GAP}}"
        lines += _beside(cells, widths, indent, first)
        if row.last in marks:
            lines += _mark(marks[row.last], indent)
    return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True)
class _Text:
    text: str
    is_change: bool = False

    def lines(self, width: int) -> list[str]:
        return _wrapped(f"({self.text})" if self.is_change else self.text, width, self.is_change)


def _cell(story: Story, row: Row, column: Column, everything: bool) -> list[_Text]:
    steps = row.of(column)
    if not steps:
        return []
    groups = [(m.actor, _changes(story, i, everything)) for i, m in steps]
    texts = [_Text(steps[0][1].full_text)]
    return texts + [_Text(text, is_change=True) for text in changes_text(groups)]


def _changes(story: Story, number: int, everything: bool) -> list[Change]:
    if everything:
        return list(story.moments[number].changes)
    return story.changes_that_matter(number)


def _wrapped(text: str, width: int, hanging: bool = False) -> list[str]:
    """Break text into lines; of a change, ``3 -> 2`` stays together where that is possible."""
    if hanging:
        text = re.sub(
            r"\S+ -> \S+", lambda m: m[0].replace(" ", TIE) if len(m[0]) < width else m[0], text
        )
    lines = textwrap.wrap(
        text, width, break_on_hyphens=False, subsequent_indent=" " if hanging else ""
    )
    return [line.replace(TIE, " ") for line in lines]


def _rooms(texts: list[list[_Text]], widths: list[int]) -> list[int]:
    """How wide each cell of a row may be: up to the next one that is not empty."""
    rooms = list(widths)
    for i, cell in enumerate(texts):
        for following, width in zip(texts[i + 1 :], widths[i + 1 :], strict=True):
            if not cell or following:
                break
            rooms[i] += GAP + width
        rooms[i] = max(widths[i], min(rooms[i], MAX_TEXT))
    return rooms


def _beside(
    cells: list[list[str]], widths: list[int], indent: str, first: str | None = None
) -> list[str]:
    """Put the lines of cells side by side."""
    out = []
    for i in range(max(map(len, cells), default=0)):
        line = first if i == 0 and first is not None else indent
        at = len(indent)
        for cell, width in zip(cells, widths, strict=True):
            if i < len(cell):
                line = line.ljust(at) + cell[i]
            at += width + GAP
        out.append(line.rstrip())
    return out


def _widths(
    story: Story, rows: list[Row], columns: list[Column], everything: bool
) -> list[int] | None:
    """Share the width of a mail among the columns; None if they would be too narrow."""
    if not 0 < len(columns) <= MAX_COLUMNS:
        return None
    needs = []
    for column in columns:
        texts = [_Text(head) for head in column.heading]
        texts += [text for row in rows for text in _cell(story, row, column, everything)]
        needs.append(min(max(len(t.text) + 2 * t.is_change for t in texts), MAX_TEXT))
    number = max(len(row.numbers) for row in rows)
    room = WIDTH - MARGIN - number - GAP * len(columns)
    lows = [min(need, MIN_COLUMN) for need in needs]
    lows[-1] = min(needs[-1], MIN_LAST)  # nothing is to its right, over which it could go
    widths = needs
    if sum(lows) > room:
        return None
    while sum(widths) > room:
        most = max(w - low for w, low in zip(widths, lows, strict=True))
        i = [w - low for w, low in zip(widths, lows, strict=True)].index(most)
        widths[i] -= 1
    return widths


def _mark(text: str, indent: str) -> list[str]:
    lines = textwrap.wrap(text, WIDTH - len(indent) - 4, break_on_hyphens=False)
    return [f"{indent}*** {lines[0]}", *(f"{indent}    {line}" for line in lines[1:])]


def _as_list(story: Story, rows: list[Row], marks: Mapping[int, str], everything: bool) -> str:
    number = max((len(row.numbers) for row in rows), default=1)
    names = [Column(tuple(m.actor for m in row.moments)).name for row in rows]
    width = min(max(map(len, names), default=0), 32)
    indent = " " * (MARGIN + number + GAP)
    lines = _mark(marks[0], indent) if 0 in marks else []
    for row, name in zip(rows, names, strict=True):
        steps = list(enumerate(row.moments, row.first - 1))
        groups = [(m.actor, _changes(story, i, everything)) for i, m in steps]
        texts = [_Text(row.moments[0].full_text)]
        texts += [_Text(text, is_change=True) for text in changes_text(groups)]
        room = WIDTH - len(indent) - width - GAP
        first = f"{'':{MARGIN}}{row.numbers:>{number}}{'':{GAP}}"
        lines += _beside(
            [_wrapped(name, width), [part for text in texts for part in text.lines(room)]],
            [width, room],
            indent,
            first,
        )
        if row.last in marks:
            lines += _mark(marks[row.last], indent)
    return "".join(f"{line}\n" for line in lines)

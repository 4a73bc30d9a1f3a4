"""A story as a sequence diagram in SVG."""

from __future__ import annotations

from collections.abc import Mapping

from .drawing import ALARM, LINE, PALE, Picture, fitted
from .sequence import Arrow, Sequence, sequence_of
from .story import Story

__all__ = ["svg_sequence"]

COLUMN, TEXT, TOP, LEFT = 190.0, 174.0, 14.0, 50.0
PAD = 5.0


def svg_sequence(story: Story, title: str, marks: Mapping[int, str] | None = None) -> str:
    """Return a story as the text of an SVG file: a line of life for each agent, time downwards."""
    found = sequence_of(story, marks)
    picture = Picture(title)
    y = _heads(picture, found, title)
    top = y
    rows: list[tuple[Arrow, float]] = []
    for i, arrow in enumerate(found.arrows):
        together = i > 0 and arrow.number == found.arrows[i - 1].number
        y = rows[-1][1] if together else y
        rows.append((arrow, y))
        beside = [a for a in found.arrows if a.number == arrow.number]
        y += max(_height(a) for a in beside)
    for i in range(len(found.heads)):
        picture.line([(_x(i), top), (_x(i), y + PAD)], colour=PALE)
    for arrow, at in rows:
        _draw(picture, arrow, at)
    return picture.text()


def _x(column: int) -> float:
    return LEFT + COLUMN * column + COLUMN / 2


def _heads(picture: Picture, found: Sequence, title: str) -> float:
    picture.write(LEFT, TOP + LINE, [title], bold=True)
    y = TOP + 2 * LINE
    heads = [[p for part in head if part for p in fitted(part, TEXT)] for head in found.heads]
    height = max((len(h) for h in heads), default=1) * LINE + 2 * PAD
    for i, lines in enumerate(heads):
        picture.box(_x(i) - TEXT / 2, y, TEXT, height, fill="#eeeeee")
        picture.write(_x(i), y + LINE, lines, anchor="middle", bold=True)
    return y + height + 2 * PAD


def _height(arrow: Arrow) -> float:
    lines = len(fitted(arrow.text, TEXT - 2 * PAD)) + len(_mark(arrow))
    return lines * LINE + 4 * PAD + (LINE if arrow.targets else 0)


def _mark(arrow: Arrow) -> list[str]:
    return fitted(arrow.mark, TEXT - 2 * PAD) if arrow.mark else []


def _draw(picture: Picture, arrow: Arrow, y: float) -> None:
    x = _x(arrow.source)
    lines, mark = fitted(arrow.text, TEXT - 2 * PAD), _mark(arrow)
    height = (len(lines) + len(mark)) * LINE + 2 * PAD
    left = x - TEXT / 2
    picture.write(LEFT - 6, y + LINE, [arrow.number], anchor="end", colour=PALE)
    picture.box(left, y, TEXT, height, colour=ALARM if mark else "#222222")
    picture.write(left + PAD, y + LINE, lines)
    picture.write(left + PAD, y + LINE + len(lines) * LINE, mark, colour=ALARM, bold=True)
    foot = y + height + LINE / 2
    for target in arrow.targets:
        picture.line([(x, y + height), (x, foot), (_x(target), foot)], arrow=True)

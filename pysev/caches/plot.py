"""Lines by attribute, as a picture. Needs matplotlib, which comes with ``pysev[plot]``."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ghcbcore.errors import SevError

from .outcome import Outcome
from .program import key_words

__all__ = ["BadPlot", "draw", "of_census", "of_outcome", "refuse_name"]

FORMATS: Final = ("png", "svg")

_Bars = tuple[list[str], Mapping[str, Sequence[int]]]


class BadPlot(SevError, ValueError):
    """A picture cannot be drawn: the name of its file, or matplotlib is missing."""


def refuse_name(path: str) -> None:
    """Raise BadPlot unless a file name says what picture it is."""
    if Path(path).suffix.lower().removeprefix(".") not in FORMATS:
        raise BadPlot(f"--plot {path}: must end in .png or .svg")


def of_census(census: NDArray[np.uint64]) -> _Bars:
    """Return bars of ``Cache.census``: one for each level, parts by key and whether dirty."""
    heads = [f"L{level + 1}" for level in range(len(census))]
    parts: dict[str, list[int]] = {}
    for slot in np.flatnonzero(census.sum(axis=(0, 2))).tolist():
        for dirty, word in enumerate(("clean", "dirty")):
            counts = census[:, slot, dirty].tolist()
            if any(counts):
                parts[f"{key_words(slot)} {word}"] = counts
    return heads, parts


def of_outcome(outcome: Outcome) -> _Bars:
    """Return bars of what a program can leave: one for each line, parts by content."""
    program = outcome.program
    heads = [f"{spa:#x}" for spa in program.spas]
    parts: dict[str, list[int]] = {}
    for one in outcome.contents:
        for i, cell in enumerate(one.cells):
            words = program.content_words(i, cell) + (" (corrupt)" if one.is_bad[i] else "")
            parts.setdefault(words, [0] * len(heads))[i] += 1
    return heads, parts


def draw(path: str, bars: _Bars, title: str, ylabel: str) -> None:
    """Write stacked bars to a file; nothing is written if they cannot be drawn.

    Raises
    ------
    BadPlot
        matplotlib is not installed, or the name has another ending than .png or .svg.
    OSError
        The file cannot be written.
    """
    refuse_name(path)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadPlot("--plot needs matplotlib: install pysev[plot]") from error
    heads, parts = bars
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    below = np.zeros(len(heads))
    for name, counts in parts.items():
        axes.bar(heads, counts, bottom=below, label=name)
        below += np.asarray(counts, float)
    axes.set_title(title)
    axes.set_ylabel(ylabel)
    if parts:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    how = Path(path).suffix.lower().removeprefix(".")
    out = io.BytesIO()
    figure.savefig(out, format=how, metadata={"Date": None} if how == "svg" else None)
    Path(path).write_bytes(out.getvalue())

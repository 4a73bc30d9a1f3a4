"""``pysev sweep``: plan, work, table, what is printed.

Exit status: 0 if every point holds, 1 if one does not, 2 if one could not be run at all.
"""

from __future__ import annotations

import json as _json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from . import table
from .journal import Journal
from .plan import Plan, Row
from .point import ERROR
from .summary import Summary
from .work import sweep

__all__ = ["main_sweep"]

GOOD, FINDING, FAILED = 0, 1, 2
EVERY = 0.2  # seconds between two looks of a person


def main_sweep(
    plan: Plan,
    *,
    n_workers: int,
    out: str | None = None,
    plot: str | None = None,
    json: bool = False,
    stderr: TextIO | None = None,
) -> int:
    """Run a sweep, or what is left of it; print it; return the exit status.

    Raises
    ------
    SweepError, NoPlot
        See ``Journal``, ``table``, ``sweep``, ``pysev.memory.plot``.
    OSError
        A file cannot be written.
    """
    _check(out, plot)
    part = None if out is None else f"{out}.part"
    journal = None
    try:
        if out is not None and table.is_complete(plan, out):
            rows: Iterator[Row] = table.read(plan, out)
        else:
            journal = Journal(plan, part)
            _run(plan, journal, n_workers, stderr)
            if out is not None and part is not None:
                table.write(plan, out, journal.rows())
                Path(part).unlink()
            rows = journal.rows()
        listed = list(rows) if json and out is None else None
        summary = Summary(plan, rows if listed is None else listed)
    finally:
        if journal is not None:
            journal.close()
    if plot is not None:
        from .plot import write_plot

        write_plot(summary, plot)
    if json:
        found = summary.as_json() | ({"rows": listed} if listed is not None else {"out": out})
        sys.stdout.write(_json.dumps(found, indent=2) + "\n")
    else:
        sys.stdout.write(summary.as_text())
    if ERROR in summary.verdicts:
        return FAILED
    return GOOD if set(summary.verdicts) == {"holds"} else FINDING


def _check(out: str | None, plot: str | None) -> None:
    """Refuse before the work what would fail after it."""
    if out is not None:
        table.check_target(out)
    if plot is not None:
        from ..memory.plot import check_target

        check_target(plot)
        was_there = Path(plot).exists()
        with Path(plot).open("ab"):
            pass
        if not was_there:
            Path(plot).unlink()


def _run(plan: Plan, journal: Journal, n_workers: int, stderr: TextIO | None) -> None:
    progress = _Progress(plan, journal, stderr)
    try:
        sweep(plan, journal, n_workers=n_workers, told=progress.told)
    except KeyboardInterrupt:
        progress.clear()
        if stderr is not None and journal.path is not None:
            stderr.write(f"pysev: {journal.progress()}\n")
        raise
    finally:
        progress.clear()


class _Progress:
    """One line on a terminal, written over itself; nothing where no person looks."""

    def __init__(self, plan: Plan, journal: Journal, stderr: TextIO | None) -> None:
        self._stream = stderr if stderr is not None and stderr.isatty() else None
        self._plan, self._journal = plan, journal
        self._began = self._shown = time.monotonic()
        self._first = journal.n_done
        self._width = 0

    def told(self, row: Row) -> None:
        now = time.monotonic()
        if self._stream is None or now - self._shown < EVERY:
            return
        self._shown = now
        done, n = self._journal.n_done, self._plan.n_points
        left = (n - done) * (now - self._began) / max(1, done - self._first)
        self._write(f"{done} of {n} points, about {left:.0f} s left")

    def _write(self, text: str) -> None:
        assert self._stream is not None
        width = os.get_terminal_size(self._stream.fileno()).columns or 80
        text = text[: width - 1]
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)

    def clear(self) -> None:
        if self._stream is not None and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0

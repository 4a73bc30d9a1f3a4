"""The rows of a sweep on disk as they come: JSON lines, the first of which says whose they are.

A killed sweep leaves whole lines and perhaps a half one, which is cut off when the sweep goes on.
Where each row lies is noted, not the row: a million points take 8 MiB.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from .plan import Plan, Row, SweepError

__all__ = ["Journal"]

MAX_LINE = 1 << 20
AS_A_RULE = 1 << 12  # bytes that hold a line
NONE = -1


class Journal:
    """Rows that are there already, and room for those to come.

    Parameters
    ----------
    plan : Plan
    path : str or None
        Where; None for a file that goes when it is closed.

    Raises
    ------
    SweepError
        The file is another sweep's, or none; or another process has it.
    OSError
        It cannot be opened or read.
    """

    def __init__(self, plan: Plan, path: str | None) -> None:
        self.plan, self.path = plan, path
        self._at = np.full(plan.n_points, NONE, np.int64)
        self.n_done = 0
        if path is None:
            self._fd, self._name = _unnamed(), "temporary file"
        else:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._name = path
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise SweepError(f"{self._name}: it is there, and is no file")
            if path is not None:
                self._lock()
            self._end = self._read()
        except BaseException:
            os.close(self._fd)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SweepError(f"{self._name}: another sweep is writing it") from None

    def _read(self) -> int:
        """Note the rows that are there; return where the last whole one ends."""
        end = 0
        with open(os.dup(self._fd), "rb") as stream:  # noqa: PTH123 -- an open file
            while True:
                line = stream.readline(MAX_LINE)
                if not line.endswith(b"\n"):
                    if end == 0 and not self._head().startswith(line):
                        raise SweepError(f"{self._name}: it is there, and is no sweep's")
                    if len(line) == MAX_LINE:
                        raise SweepError(f"{self._name}: damaged after {self.n_done} points")
                    break
                self._note(line, end)
                end += len(line)
        os.ftruncate(self._fd, end)
        return self._write(self._head(), 0) if end == 0 else end

    def _head(self) -> bytes:
        head = {"pysev": "sweep", "sweep": self.plan.id, "scenario": self.plan.scenario}
        return json.dumps(head, separators=(",", ":")).encode() + b"\n"

    def _note(self, line: bytes, at: int) -> None:
        try:
            found: Any = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if at == 0:
            if not isinstance(found, dict) or found.get("pysev") != "sweep":
                raise SweepError(f"{self._name}: it is there, and is no sweep's")
            if found.get("sweep") != self.plan.id:
                raise SweepError(f"{self._name}: it is another sweep's{_whose(found)}")
            return
        i = found.get("point") if isinstance(found, dict) else None
        columns = {column.name for column in self.plan.columns}
        if type(i) is not int or not 0 <= i < self.plan.n_points or set(found) != columns:
            raise SweepError(f"{self._name}: damaged after {self.n_done} points")
        if self._at[i] == NONE:
            self.n_done += 1
            self._at[i] = at

    def todo(self) -> Iterator[int]:
        """The points that have no row yet, in order."""
        return (int(i) for i in np.flatnonzero(self._at == NONE))

    def add(self, row: Row) -> None:
        """Write a row; it is there once this returns.

        Raises
        ------
        SweepError
            The disk is full, say: the row is not there, all before it are.
        """
        line = json.dumps(row, separators=(",", ":")).encode() + b"\n"
        end = self._write(line, self._end)
        self._at[row["point"]] = self._end
        self._end = end
        self.n_done += 1

    def _write(self, line: bytes, at: int) -> int:
        view, end = memoryview(line), at
        try:
            while len(view):
                n = os.pwrite(self._fd, view, end)
                view, end = view[n:], end + n
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._fd, at)
            raise SweepError(f"{self._name}: {error.strerror}: {self.progress()}") from error
        return end

    def progress(self) -> str:
        """Say how far the sweep is, and that it can be continued."""
        text = f"{self.n_done} of {self.plan.n_points} points are done"
        return text if self.path is None else f"{text}; the same command goes on from there"

    def rows(self) -> Iterator[Row]:
        """The rows there are, in the order of the points."""
        for at in self._at[self._at != NONE].tolist():
            line = os.pread(self._fd, AS_A_RULE, at)
            if b"\n" not in line:
                line = os.pread(self._fd, MAX_LINE, at)
            yield json.loads(line[: line.index(b"\n")])

    def close(self) -> None:
        os.close(self._fd)


def _unnamed() -> int:
    with tempfile.TemporaryFile() as stream:
        return os.dup(stream.fileno())


def _whose(head: dict[str, Any]) -> str:
    name = head.get("scenario")
    return f" ({name})" if isinstance(name, str) and name.isprintable() else ""

"""Runs of a scenario as one trace: ``pysev run --trace FILE --perfetto FILE``.

Each run is a VM of its own, with threads of its own, that starts when the one before it has ended.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from ghcbcore.trace import format_lines

from .export import Exporter, Sink, open_exporter
from .reader import TraceReader
from .writer import FIRST_PID, PIECE, lines_of_events

__all__ = ["Recorder", "open_recorder"]

PAUSE_NS = 1_000_000
"""Between two runs, so that their order is seen."""


class Recorded(Protocol):
    """What a run or a replay has to say: its records, its time, how many CPUs it had."""

    @property
    def trace(self) -> Any: ...
    @property
    def cpus(self) -> dict[str, int]: ...
    @property
    def modelled_seconds(self) -> float: ...


class Recorder:
    """Writes runs, one after the other.

    Attributes
    ----------
    n_lines : int
        Lines that the runs so far come to.
    """

    def __init__(self, text: Sink | None, tracks: Exporter | None, reader: TraceReader) -> None:
        self._text, self._tracks, self._reader = text, tracks, reader
        self._pid, self._start_ns = FIRST_PID, 0
        self.n_lines = 0

    def add(self, result: Recorded) -> None:
        """Write one run."""
        if self._text is None and self._tracks is None:
            return
        events = result.trace
        lines = lines_of_events(
            events,
            first_pid=self._pid,
            first_line=self.n_lines + 1,
            start_ns=self._start_ns,
        )
        for first in range(0, len(lines), PIECE):
            piece = lines[first : first + PIECE]
            if self._text is not None:
                self._text.write_lines(format_lines(piece), len(piece))
            if self._tracks is not None:
                for batch in self._reader.paired(piece):
                    self._tracks.write(batch.exchanges)
        self.n_lines += len(lines)
        self._pid += result.cpus["total"] + 1
        ends = round(result.modelled_seconds * 1e9)
        self._start_ns += max(ends, int(events["time_ns"].max(initial=0))) + PAUSE_NS

    def finish(self) -> None:
        """Write what waits for an answer."""
        if self._tracks is not None:
            for batch in self._reader.rest():
                self._tracks.write(batch.exchanges)


@contextmanager
def open_recorder(trace: str | None, perfetto: str | None) -> Iterator[Recorder]:
    """Open what ``run`` writes; either may be None, ``-`` is standard output.

    Raises
    ------
    TraceError
        Writing failed; the message says how much was written.
    OSError
        A file cannot be opened.
    """
    reader = TraceReader()
    with ExitStack() as stack:
        text = tracks = None
        if trace == "-":
            sys.stdout.flush()
            text = Sink("standard output", sys.stdout.buffer, "lines")
        elif trace is not None:
            stream = stack.enter_context(Path(trace).open("wb", buffering=0))
            text = Sink(trace, stream, "lines")
        if perfetto is not None:
            tracks = stack.enter_context(open_exporter("perfetto", perfetto, reader))
        recorder = Recorder(text, tracks, reader)
        yield recorder
        recorder.finish()

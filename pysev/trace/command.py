"""The body of ``pysev trace``."""

from __future__ import annotations

import json as _json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO, Any

from .export import Exporter, open_exporter
from .reader import TraceReader
from .source import Source, open_source
from .summary import Summary

__all__ = ["main_trace"]

GOOD, FINDING = 0, 1
PATIENCE_S = 1.0


class _Progress:
    """A line on standard error for who waits, if somebody is there."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._began = self._next = time.monotonic()
        self._next += PATIENCE_S
        self._shown = False
        try:
            self._wanted = sys.stderr is not None and sys.stderr.isatty()
        except ValueError:
            self._wanted = False

    def tell(self, n_lines: int) -> None:
        now = time.monotonic()
        if not self._wanted or now < self._next:
            return
        self._next = now + 0.2
        done = self._source.done()
        share = f"{done:4.0%}, " if done is not None else ""
        rate = n_lines / (now - self._began) / 1e6
        sys.stderr.write(f"\r{share}{n_lines:,} lines, {rate:.1f} M lines/s\x1b[K")
        sys.stderr.flush()
        self._shown = True

    def end(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def main_trace(
    path: str,
    *,
    json: bool = False,
    exports: Sequence[tuple[str, str]] = (),
    stdin: IO[bytes] | None = None,
) -> int:
    """Read a trace, write what is wanted, print what it comes to; return the exit status.

    Parameters
    ----------
    path : str
        A file, or ``-`` for ``stdin``.
    json : bool
        Print JSON.
    exports : sequence of (format, path)
        Formats are ``jsonl``, ``csv``, ``parquet``, ``perfetto``. Where one goes to ``-``, standard
        output, nothing else is printed there.

    Raises
    ------
    TraceError
        The trace cannot be read, or an export cannot be made or not be written to its end.
    OSError
        A file cannot be opened or read.
    """
    reader = TraceReader()
    summary = Summary(reader)
    with ExitStack() as stack:
        source = stack.enter_context(open_source(path, stdin))
        exporters: list[Exporter] = [
            stack.enter_context(open_exporter(how, to, reader)) for how, to in exports
        ]
        progress = _Progress(source)
        try:
            for batch in reader.batches(source.pieces()):
                summary.look(batch)
                for exporter in exporters:
                    exporter.write(batch.exchanges)
                progress.tell(reader.scanner.n_lines)
        finally:
            progress.end()
        summary.finish()
        name, what = source.name, source.what
    if not any(to == "-" for _, to in exports):
        sys.stdout.write(_json_text(summary, name, what) if json else summary.as_text(name, what))
    return FINDING if summary.lint.findings else GOOD


def _json_text(summary: Summary, name: str, what: str) -> str:
    found: dict[str, Any] = {"trace": name, "read_as": what} | summary.as_json()
    return _json.dumps(found, indent=2) + "\n"

"""The body of ``pysev trace``."""

from __future__ import annotations

import json as _json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import IO, Any

from .export import Exporter, open_exporter, refuse_same_place
from .reader import Batch, TraceReader
from .source import BrokenTrace, Source, open_source
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


class _Interrupts:
    """Lets Ctrl-C end the reading, not the writing: what was read so far is still summed up.

    A second one ends everything.
    """

    def __init__(self) -> None:
        self._n_asked = 0
        self._reading = self._told = False
        self._before: Any = None

    def __enter__(self) -> _Interrupts:
        default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if default and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        self._n_asked += 1
        if self._n_asked > 1:
            raise KeyboardInterrupt
        if self._reading:
            self._told = True
            raise KeyboardInterrupt

    def next(self, batches: Iterator[Batch]) -> Batch | None:
        """Return the next batch, None after the last; ``KeyboardInterrupt`` comes from here."""
        if self._n_asked and not self._told:
            self._told = True
            raise KeyboardInterrupt
        self._reading = True
        try:
            return next(batches, None)
        finally:
            self._reading = False


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
    BrokenTrace, KeyboardInterrupt
        The trace could not be read to its end, or nobody wanted to wait for it. What was read is
        written and printed before, as of a trace that ends there; it says that it does.
    TraceError
        The trace cannot be read at all, or an export cannot be made or not be written to its end.
    OSError
        A file cannot be opened.
    """
    where = stdin.fileno() if path == "-" and stdin is not None else path
    refuse_same_place("trace", [to for _, to in exports], where)
    reader = TraceReader()
    summary = Summary(reader)
    broken: BaseException | None = None
    name = what = ""
    try:
        with open_source(path, stdin) as source:
            name, what = source.name, source.what
            broken = _read(source, reader, summary, exports)
            if broken is not None:
                raise broken  # in here: what prints it need not go on
    except BrokenTrace as error:  # a tool may fail at its end
        broken = error
    except KeyboardInterrupt:
        if broken is None:
            raise
    if broken is not None and not reader.scanner.n_lines:
        raise broken
    if broken is not None:
        summary.incomplete = str(broken) or "interrupted"
    if not any(to == "-" for _, to in exports):
        sys.stdout.write(_json_text(summary, name, what) if json else summary.as_text(name, what))
    if broken is not None:
        sys.stdout.flush()
        raise broken
    return FINDING if summary.lint.findings else GOOD


def _read(
    source: Source, reader: TraceReader, summary: Summary, exports: Sequence[tuple[str, str]]
) -> BaseException | None:
    """Read a trace as far as it can be read, and write it; return what ended that too early."""
    broken: BaseException | None = None
    with ExitStack() as stack, _Interrupts() as interrupts:
        exporters: list[Exporter] = [
            stack.enter_context(open_exporter(how, to, reader)) for how, to in exports
        ]
        progress = _Progress(source)
        batches = reader.batches(source.pieces())
        try:
            while True:
                try:
                    batch = interrupts.next(batches)
                except (BrokenTrace, KeyboardInterrupt) as error:
                    if broken is not None:
                        raise
                    broken, batches = error, reader.end()
                    continue
                if batch is None:
                    break
                summary.look(batch)
                for exporter in exporters:
                    exporter.write(batch.exchanges)
                progress.tell(reader.scanner.n_lines)
        finally:
            progress.end()
        summary.finish()
    return broken


def _json_text(summary: Summary, name: str, what: str) -> str:
    found: dict[str, Any] = {"trace": name, "read_as": what} | summary.as_json()
    return _json.dumps(found, indent=2) + "\n"

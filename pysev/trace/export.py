"""Exchanges of a trace as JSON lines, CSV, Parquet, or as a track for each vCPU.

An export is written record by record while the trace is read. When the disk is full or the reader
at the other end of a pipe goes away, the last whole record stays, and the error says how many there
are.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from ghcbcore._cffi import lib

from .reader import Array, TraceReader
from .source import TraceError
from .summary import kind_name

__all__ = ["COLUMNS", "FORMATS", "Exporter", "columns", "open_exporter", "refuse_same_place"]

FLAGS = {
    lib.GHCB_EXCHANGE_USER: "to_user_space",
    lib.GHCB_EXCHANGE_ENDED: "ended",
    lib.GHCB_EXCHANGE_OPEN: "open_at_end",
    lib.GHCB_EXCHANGE_OVERLAP: "overlap",
    lib.GHCB_EXCHANGE_LOST: "events_lost",
    lib.GHCB_EXCHANGE_CHANGED: "changed",
    lib.GHCB_EXCHANGE_BACKWARDS: "time_backwards",
    lib.GHCB_EXCHANGE_UNREGISTERED: "unregistered",
}
COLUMNS = (
    "kind",
    "pid",
    "tgid",
    "vcpu",
    "cpu",
    "begin_ns",
    "end_ns",
    "msr",
    "msr_after",
    "sw_exit_code",
    "sw_exit_info_1",
    "sw_exit_info_2",
    "info_1_after",
    "info_2_after",
    "result",
    "enter_line",
    "exit_line",
    "flags",
)
HEX = {
    "msr",
    "msr_after",
    "sw_exit_code",
    "sw_exit_info_1",
    "sw_exit_info_2",
    "info_1_after",
    "info_2_after",
}
_PAGE_ONLY = HEX - {"msr", "msr_after"}
_ANSWERS = {"end_ns", "msr_after", "info_1_after", "info_2_after", "exit_line", "result"}
_UNKNOWN = {
    "begin_ns": lib.GHCB_TRACE_NO_TIME,
    "end_ns": lib.GHCB_TRACE_NO_TIME,
    "pid": lib.GHCB_TRACE_NO_PID,
    "tgid": lib.GHCB_TRACE_NO_PID,
    "cpu": lib.GHCB_TRACE_NO_CPU,
}


class Exporter(Protocol):
    def write(self, exchanges: Array) -> None:
        """Write some exchanges, in the order in which they were completed."""


def present(x: Array, name: str) -> Array:
    """Return which exchanges have a value in a column: others have neither 0 nor anything."""
    flags = x["flags"]
    has = np.ones(len(x), bool)
    if name in HEX:
        page = flags & lib.GHCB_EXCHANGE_PAGE != 0
        has &= page if name in _PAGE_ONLY else ~page
    if name in _ANSWERS:
        has &= flags & lib.GHCB_EXCHANGE_EXIT != 0
    if name == "result":
        has &= flags & lib.GHCB_EXCHANGE_PAGE == 0
    if name in ("msr", "sw_exit_info_1", "sw_exit_info_2", "begin_ns", "enter_line"):
        has &= flags & lib.GHCB_EXCHANGE_ENTER != 0
    if name in _UNKNOWN:
        has &= x[name] != _UNKNOWN[name]
    return has


def columns(x: Array, reader: TraceReader) -> dict[str, list[Any]]:
    """Return the columns of an export as Python values, None where there is none."""
    names = [kind_name(kind) for kind in reader.pairer.kinds()]
    words: dict[int, str] = {}
    out: dict[str, list[Any]] = {}
    for name in COLUMNS:
        if name == "kind":
            out[name] = [names[i] for i in x["kind"].tolist()]
        elif name == "flags":
            for flags in np.unique(x["flags"]).tolist():
                words[flags] = " ".join(word for bit, word in FLAGS.items() if flags & bit)
            out[name] = [words[flags] for flags in x["flags"].tolist()]
        else:
            values: list[Any] = x[name].tolist()
            if name in HEX:
                values = [f"0x{v:016x}" for v in values]
            has = present(x, name)
            if not has.all():
                values = [v if h else None for v, h in zip(values, has.tolist(), strict=True)]
            out[name] = values
    return out


class Sink:
    """Where records go as bytes: what is there after an error is whole records.

    Attributes
    ----------
    n_records : int
        Whole records that were written.
    """

    def __init__(self, name: str, stream: IO[bytes], unit: str = "exchanges") -> None:
        self.name = name
        self.n_records = 0
        self._unit = unit
        self._fd = stream.fileno()
        self._is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)

    def write(self, records: list[bytes], n: int) -> None:
        """Write ``records``, of which the last ``n`` count, each with its newline."""
        whole = b"".join(records)
        view = memoryview(whole)
        try:
            while len(view):
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self._settle(records, n, len(whole) - len(view))
            raise self._failed(error) from error
        self.n_records += n

    def write_lines(self, text: Array, n: int) -> None:
        """Write ``n`` records that are lines."""
        view = text.data
        try:
            while len(view):
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            written = bytes(text.data[: len(text) - len(view)])
            records = written.splitlines(keepends=True)
            if records and not records[-1].endswith(b"\n"):
                records[-1] += b"\n"
            self._settle(records, len(records), len(written))
            raise self._failed(error) from error
        self.n_records += n

    def _failed(self, error: OSError) -> TraceError:
        written = f"{self.n_records} {self._unit} were written"
        return TraceError(f"{self.name}: {error.strerror}: {written}")

    def _settle(self, records: list[bytes], n: int, written: int) -> None:
        """Count the whole records among what was written; cut a half one off a file."""
        size = kept = 0
        for i, record in enumerate(records):
            if size + len(record) > written:
                break
            size += len(record)
            kept += i >= len(records) - n
        self.n_records += kept
        if self._is_file and written > size:
            end = os.lseek(self._fd, 0, os.SEEK_CUR) - (written - size)
            os.ftruncate(self._fd, end)


class _Lines:
    """JSON lines or CSV."""

    def __init__(self, sink: Sink, reader: TraceReader, as_line: Callable[..., str]) -> None:
        self._sink, self._reader, self._as_line = sink, reader, as_line

    def write(self, exchanges: Array) -> None:
        if not len(exchanges):
            return
        rows = zip(*columns(exchanges, self._reader).values(), strict=True)
        records = [self._as_line(row).encode() for row in rows]
        self._sink.write(records, len(records))


def _json_line(row: tuple[Any, ...]) -> str:
    pairs = {name: v for name, v in zip(COLUMNS, row, strict=True) if v is not None and v != ""}
    return json.dumps(pairs, separators=(",", ":")) + "\n"


def _csv_line(row: tuple[Any, ...]) -> str:
    return ",".join("" if v is None else str(v) for v in row) + "\n"


class _Parquet:
    def __init__(self, name: str, stream: IO[bytes], reader: TraceReader) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise TraceError("--parquet needs pyarrow: pip install 'pysev[parquet]'") from error
        self._arrow, self._reader, self._name = pyarrow, reader, name
        kinds = {"kind": pyarrow.string(), "flags": pyarrow.string(), "result": pyarrow.int32()}
        kinds |= {n: pyarrow.uint32() for n in ("pid", "tgid", "vcpu", "cpu")}
        self._schema = pyarrow.schema([(n, kinds.get(n, pyarrow.uint64())) for n in COLUMNS])
        self._writer: Any = None
        self._do(lambda: self._open(parquet.ParquetWriter, stream))
        self.n_records = 0

    def write(self, exchanges: Array) -> None:
        if not len(exchanges):
            return
        words = columns(exchanges, self._reader)
        arrays = []
        for field in self._schema:
            values: Any = words[field.name]
            if field.name in HEX:  # numbers here, not text
                values = np.ascontiguousarray(exchanges[field.name])
                arrays.append(
                    self._arrow.array(values, field.type, mask=~present(exchanges, field.name))
                )
            else:
                arrays.append(self._arrow.array(values, field.type))
        self._do(lambda: self._writer.write_batch(self._arrow.record_batch(arrays, self._schema)))
        self.n_records += len(exchanges)

    def _open(self, writer: Any, stream: IO[bytes]) -> None:
        self._writer = writer(stream, self._schema)

    def close(self) -> None:
        self._do(self._writer.close)

    def _do(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except OSError as error:
            text = "cannot be written, and is not readable without its end"
            why = os.strerror(error.errno) if error.errno else str(error)
            raise TraceError(f"{self._name}: {why}: the file {text}") from error


FORMATS = ("jsonl", "csv", "parquet", "perfetto")


def _place(file: str | int) -> tuple[int, int] | str | None:
    """Return what two names of one file have in common; None for what is no file."""
    try:
        found = os.stat(file)  # noqa: PTH116 -- it may be the number of an open file
    except OSError:
        return os.path.realpath(file) if isinstance(file, str) else None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def refuse_same_place(command: str, to: Sequence[str], source: str | int | None = None) -> None:
    """See that nothing is written over something else that the same command reads or writes.

    Parameters
    ----------
    command : str
        For the message.
    to : sequence of str
        Where exports go; ``-`` is standard output.
    source : str or int, optional
        What is read: a name, or the number of an open file.

    Raises
    ------
    TraceError
        Two are one file, by whatever names, or both are ``-``; or a name is empty.
    """
    first = None if source is None or source == "-" else _place(source)
    taken = {first}
    for i, path in enumerate(to):
        if not path:
            raise TraceError(f"{command}: an export without a name")
        if path in to[:i]:
            raise TraceError(f"{command}: two exports to one place")
        place = None if path == "-" else _place(path)
        if place is not None and place in taken:
            what = "what is read" if place == first else "another export"
            raise TraceError(f"{command}: {path}: {what} is there, by this or another name")
        taken.add(place)


@contextmanager
def open_exporter(how: str, to: str, reader: TraceReader) -> Iterator[Exporter]:
    """Open an export; its end is written when the block ends without an error.

    Raises
    ------
    TraceError
        ``how`` is none of ``FORMATS``, or what it needs is not installed; or the disk is full or
        nobody reads: then the message says how much was written.
    OSError
        The file cannot be opened.
    """
    from .perfetto import Perfetto

    if how not in FORMATS:
        raise TraceError(f"{how!r} is no format: {', '.join(FORMATS)}")
    if to == "-":
        sys.stdout.flush()
        yield from _export(how, "standard output", sys.stdout.buffer, reader, Perfetto)
        return
    with Path(to).open("wb", buffering=0) as stream:
        yield from _export(how, to, stream, reader, Perfetto)


def _export(
    how: str, name: str, stream: IO[bytes], reader: TraceReader, perfetto: Any
) -> Iterator[Exporter]:
    if how == "parquet":
        out = _Parquet(name, stream, reader)
        yield out
        out.close()
        return
    sink = Sink(name, stream)
    if how == "jsonl":
        yield _Lines(sink, reader, _json_line)
    elif how == "csv":
        sink.write([(",".join(COLUMNS) + "\n").encode()], 0)
        yield _Lines(sink, reader, _csv_line)
    else:
        tracks = perfetto(sink, reader)
        yield tracks
        tracks.close()

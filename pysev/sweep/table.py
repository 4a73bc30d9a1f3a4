"""The finished table of a sweep: CSV or Parquet, rows in the order of the points.

It appears whole, under its name, or not at all. Each row has the sweep's id, so a file can be told
from another sweep's.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .plan import Plan, Row, SweepError

__all__ = ["FORMATS", "check_target", "is_complete", "read", "write"]

FORMATS = (".csv", ".parquet")
BATCH = 4096
KINDS: dict[str, Any] = {"int": int, "float": float, "str": str}
MAX_HEAD = 1 << 16


def check_target(path: str) -> None:
    """Refuse before the work what could not be written after it.

    Raises
    ------
    SweepError
        The name ends neither in .csv nor .parquet, or pyarrow is missing.
    OSError
        Its folder is not there, or nothing can be written there.
    """
    if not path.endswith(FORMATS) or Path(path).name in FORMATS:
        raise SweepError(f"--out {path}: the name must end in .csv or .parquet")
    if path.endswith(".parquet"):
        _arrow()
    if Path(path).exists() and not Path(path).is_file():
        raise SweepError(f"--out {path}: it is there, and is no file")


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SweepError(
            "--out FILE.parquet needs pyarrow: pip install 'pysev[parquet]'"
        ) from error
    return pyarrow


def write(plan: Plan, path: str, rows: Iterator[Row]) -> None:
    """Write all rows of a sweep, then put the file where it belongs.

    Raises
    ------
    OSError
        The disk is full, say; nothing is at ``path`` then.
    """
    beside = f"{path}.writing"
    try:
        with Path(beside).open("wb") as stream:
            if path.endswith(".csv"):
                _write_csv(plan, stream, rows)
            else:
                _write_parquet(plan, stream, rows)
            stream.flush()
            os.fsync(stream.fileno())
        Path(beside).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(beside).unlink(missing_ok=True)
        raise


def _write_csv(plan: Plan, stream: Any, rows: Iterator[Row]) -> None:
    names = [column.name for column in plan.columns]
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow("" if row[name] is None else row[name] for name in names)
        if out.tell() > 1 << 20:
            stream.write(out.getvalue().encode())
            out.seek(0)
            out.truncate()
    stream.write(out.getvalue().encode())


def _write_parquet(plan: Plan, stream: Any, rows: Iterator[Row]) -> None:
    arrow = _arrow()
    types = {"int": arrow.uint64(), "float": arrow.float64(), "str": arrow.string()}
    schema = arrow.schema(
        [(column.name, types[column.kind]) for column in plan.columns],
        metadata={"pysev sweep": plan.id},
    )
    with arrow.parquet.ParquetWriter(stream, schema) as writer:
        while batch := list(itertools.islice(rows, BATCH)):
            writer.write_table(arrow.Table.from_pylist(batch, schema))


def is_complete(plan: Plan, path: str) -> bool:
    """Return whether the finished table of this sweep is there already.

    Raises
    ------
    SweepError
        Something else is.
    OSError
        It cannot be read.
    """
    if not Path(path).exists():
        return False
    first = next(iter(read(plan, path)), None)
    if first is None or first.get("sweep") != plan.id:
        raise SweepError(f"{path}: it is there, and is another sweep's")
    return True


def read(plan: Plan, path: str) -> Iterator[Row]:
    """The rows of a finished table.

    Raises
    ------
    SweepError
        It is no table of a sweep like this one.
    """
    try:
        if path.endswith(".csv"):
            yield from _read_csv(plan, path)
        else:
            yield from _read_parquet(path)
    except (ValueError, KeyError, csv.Error) as error:
        if isinstance(error, SweepError):
            raise
        raise SweepError(f"{path}: it is there, and is no table of this sweep") from error


def _read_csv(plan: Plan, path: str) -> Iterator[Row]:
    kinds = {column.name: KINDS[column.kind] for column in plan.columns}
    with Path(path).open(newline="", encoding="utf-8") as stream:
        head = stream.readline(MAX_HEAD)
        if next(csv.reader([head]), []) != list(kinds):
            raise SweepError(f"{path}: it is there, and is no table of this sweep")
        for values in csv.reader(stream):
            row: Row = {}
            for (name, kind), text in zip(kinds.items(), values, strict=True):
                row[name] = kind(text) if text else None
            yield row


def _read_parquet(path: str) -> Iterator[Row]:
    arrow = _arrow()
    with Path(path).open("rb") as stream:
        for batch in arrow.parquet.ParquetFile(stream).iter_batches(BATCH):
            yield from batch.to_pylist()

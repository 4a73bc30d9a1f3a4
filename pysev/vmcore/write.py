"""Write a core into a file that is mostly holes, and leave nothing behind if that fails.

``elf`` is what ``cp --sparse /proc/vmcore`` gives: one segment a range, all of it in the file, of
which only pages with known bytes take room on the disk. ``compact`` is the form that
``makedumpfile -E`` gives: what is left out of a segment is not in the file, so that the file is as
small as it looks, and fits on any file system.

Source: makedumpfile(8), -E; Linux fs/proc/vmcore.c.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ghcbcore.errors import SevError
from pysev.memmap import PAGE_BYTES, format_size, round_up

from . import elf
from .crash import U8, Core

__all__ = ["FORMATS", "CoreError", "NoCore", "Written", "write_core"]

FORMATS = ("elf", "compact")
JOIN_BYTES = 64 << 10
"""``compact``: a shorter stretch of zeros between two known pages is written, not left out."""

PROBE_BYTES = 1 << 20


class CoreError(SevError):
    """The file cannot be written; nothing of it is left."""


class NoCore(CoreError):
    """The scenario ends without a core: a finding about it, not a mistake of who asked."""


@dataclass(frozen=True)
class Written:
    """What was written: size of the file, bytes of the disk that it takes, known bytes in it."""

    n_bytes: int
    disk_bytes: int
    known_bytes: int
    n_segments: int


def write_core(core: Core, path: str, form: str = "elf") -> Written:
    """Write a core to a new file.

    Raises
    ------
    CoreError
        The file is there already, the disk is full, the file system has no holes or takes no file
        so large; what was begun is removed.
    OutOfRange
        More pieces than an ELF file has room for.
    """
    if form not in FORMATS:
        raise CoreError(f"{form!r} is no format: {', '.join(FORMATS)}")
    if path in ("", "-"):
        raise CoreError("a core has holes: it needs a file with a name, not a pipe")
    layout = _whole(core) if form == "elf" else _compact(core)
    segments, pieces = layout
    head = elf.headers(segments, core.notes)
    end = max([len(head), *(s.offset + s.in_file for s in segments)])
    size = round_up(end, PAGE_BYTES) if form == "elf" else end
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise CoreError(f"{path}: is there already; a core is not written over it") from None
    except OSError as error:
        raise CoreError(f"{path}: {error.strerror}") from error
    try:
        try:
            known = _fill(fd, path, form, size, head, pieces)
            found = os.fstat(fd)
        finally:
            os.close(fd)
    except OSError as error:
        _remove(path)
        raise CoreError(f"{path}: {_why(error, size)}") from error
    except BaseException:
        _remove(path)
        raise
    return Written(size, found.st_blocks * 512, known, len(segments))


def _fill(
    fd: int, path: str, form: str, size: int, head: bytes, pieces: Iterator[tuple[int, U8]]
) -> int:
    if form == "elf":
        _need_holes(fd, path, size)
    os.ftruncate(fd, size)
    _write(fd, head, 0)
    known = 0
    for offset, data in pieces:
        _write(fd, data.data, offset)
        known += len(data)
    return known


def _need_holes(fd: int, path: str, size: int) -> None:
    """See on a small piece whether what is not written takes room."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise CoreError(f"{path}: not a regular file; a core has holes")
    probe = min(PROBE_BYTES, size)
    os.ftruncate(fd, probe)
    if os.fstat(fd).st_blocks * 512 >= probe:
        raise CoreError(
            f"{path}: this file system has no holes, all of {format_size(size)} would be written; "
            "--format compact leaves them out"
        )


def _write(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while len(view):
        n = os.pwrite(fd, view, offset)
        if n == 0:  # no error number, and no progress either
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        view, offset = view[n:], offset + n


def _why(error: OSError, size: int) -> str:
    text = error.strerror or str(error)
    if error.errno in (errno.EFBIG, errno.EINVAL):
        return f"no file of {format_size(size)} is possible here ({text}); try --format compact"
    return f"{text}; nothing is left of the core"


def _remove(path: str) -> None:
    try:
        os.unlink(path)  # noqa: PTH108 -- the name stays as it was given
    except OSError:
        return


# -- the two forms -------------------------------------------------------------------------------

Parts = tuple[list[elf.Segment], Iterator[tuple[int, U8]]]


def _whole(core: Core) -> Parts:
    return core.segments, _placed(core.segments, core.runs())


def _placed(
    segments: list[elf.Segment], runs: Iterator[tuple[int, U8]]
) -> Iterator[tuple[int, U8]]:
    """Say where in the file each run stands; the text's pages are there twice, as in Linux."""
    for gpa, data in runs:
        for s in segments:
            low, high = max(gpa, s.paddr), min(gpa + len(data), s.paddr + s.in_file)
            if low < high:
                yield s.offset + low - s.paddr, data[low - gpa : high - gpa]


def _compact(core: Core) -> Parts:
    """Cut each segment into pieces that begin with bytes and go on with none."""
    runs = list(core.runs())
    cut: list[elf.Segment] = []
    for s in core.segments:
        inside = [
            (max(gpa, s.paddr), min(gpa + len(data), s.paddr + s.size_bytes)) for gpa, data in runs
        ]
        joined: list[tuple[int, int]] = []
        for low, high in sorted(piece for piece in inside if piece[0] < piece[1]):
            if joined and low - joined[-1][1] <= JOIN_BYTES:
                low = joined.pop()[0]
            joined.append((low, high))
        starts = [low for low, _ in joined]
        if not joined or starts[0] > s.paddr:
            joined.insert(0, (s.paddr, s.paddr))
            starts.insert(0, s.paddr)
        for (low, high), after in zip(joined, [*starts[1:], s.paddr + s.size_bytes], strict=True):
            cut.append(elf.Segment(low, after - low, s.vaddr + low - s.paddr, 0, high - low))
    if len(cut) > elf.MAX_SEGMENTS:
        elf.headers(cut, b"")  # says so
    at = elf.data_offset(len(cut), len(core.notes))
    placed = []
    for s in cut:
        placed.append(elf.Segment(s.paddr, s.size_bytes, s.vaddr, at, s.file_bytes))
        at += s.in_file
    return placed, _placed(placed, iter(runs))

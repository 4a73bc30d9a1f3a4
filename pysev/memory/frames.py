"""Frames as callers name them: one number, ``(first, n)``, an array, ``"all"``, ``"ram"``.

Units: frames of 4 KiB; spans are two arrays, first frames and lengths.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange
from pysev.memmap import MemoryMap

__all__ = ["Frames", "Spans", "as_frames", "frames_of", "nth", "one_frame", "spans_of", "within"]

U64: TypeAlias = NDArray[np.uint64]
Frames: TypeAlias = "int | tuple[int, int] | NDArray[Any] | str"
Spans: TypeAlias = tuple[U64, U64]


def frames_of(name: str, n_pages: int, memmap: MemoryMap | None) -> Spans:
    """Return the ranges that ``"all"`` or, of a memory map, ``"ram"`` stands for."""
    if name == "all":
        return np.zeros(1, np.uint64), np.array([n_pages], np.uint64)
    if name != "ram" or memmap is None:
        raise OutOfRange(f"frames {name!r}: must be 'all' or, of a memory map, 'ram'")
    page = lib.GHCB_PAGE_SIZE
    ranges = memmap.ram_ranges()
    firsts = np.array([start // page for start, _ in ranges], np.uint64)
    lengths = np.array([(end - start) // page for start, end in ranges], np.uint64)
    return firsts, lengths


def spans_of(frames: int | tuple[int, int] | NDArray[Any], each: int = 1) -> Spans:
    """Return frames as spans; of single ones and arrays, ``each`` pages from there on."""
    if isinstance(frames, tuple):
        if len(frames) != 2:
            raise OutOfRange(f"frames has {len(frames)} numbers: a range is (first, n_pages)")
        first, n_pages = (np.array([one_frame(n)], np.uint64) for n in frames)
        return first, n_pages
    if isinstance(frames, np.ndarray):
        firsts = as_frames(frames)
    else:
        firsts = np.array([one_frame(frames)], np.uint64)
    return firsts, np.full(len(firsts), each, np.uint64)


def within(spans: Spans, n_pages: int) -> Spans:
    """Return spans, or refuse those that are not of the guest."""
    firsts, lengths = spans
    end = np.uint64(n_pages)
    bad = np.flatnonzero((firsts >= end) | (lengths > end - np.minimum(firsts, end)))
    if len(bad):
        first, n = int(firsts[bad[0]]), int(lengths[bad[0]])
        where = f"frames[{bad[0]}], " if len(firsts) > 1 else ""
        raise OutOfRange(
            f"{where}frames {first:#x} to {first + n - 1:#x}: "
            f"the guest ends with frame {n_pages - 1:#x}"
        )
    return firsts, lengths


def one_frame(frame: int) -> int:
    if not isinstance(frame, int | np.integer):
        raise TypeError(
            f"frames is {type(frame).__name__}: must be an integer, (first, n) or an array"
        )
    if frame < 0 or frame >> 64:
        raise OutOfRange(f"frame {frame:#x} does not fit 64 bits")
    return int(frame)


def as_frames(frames: NDArray[Any]) -> U64:
    if frames.dtype.kind not in "iu" or frames.ndim != 1:
        raise OutOfRange(
            f"frames: dtype {frames.dtype}, shape {frames.shape}; must be integers (n,)"
        )
    if frames.dtype.kind == "i" and len(frames) and frames.min() < 0:
        raise OutOfRange(f"frames[{int(frames.argmin())}] = {int(frames.min())} is negative")
    return np.ascontiguousarray(frames, np.uint64)


def nth(firsts: U64, lengths: U64, n: int) -> int:
    """The frame at which several ranges one after the other have ``n`` frames behind them."""
    ends = np.cumsum(lengths)
    i = int(np.searchsorted(ends, np.uint64(n), side="right"))
    if i == len(firsts):
        return 0
    return int(firsts[i]) + n - (int(ends[i - 1]) if i else 0)

"""Checks of the reverse map table: the table by itself, against memory, at its edges.

The table of a boot is read out of its lines, contiguous or in segments; what it means for memory is
``pysev.rmpplace``, for both forms alike. A table in segments is only judged as a whole if every
line of it is there: the base table, its segments' size, and no segment twice with other numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ghcbcore import errors, rmp, rmpgeometry
from ghcbcore._cffi import lib
from pysev import rmpplace
from pysev.memmap import MemoryMap, format_size

from .reading import number

if TYPE_CHECKING:
    from .diagnosis import BootFacts, Fact

__all__ = ["MAX_SEGMENT_LINES", "Segmented", "ram_end", "rmp_tables", "run_rmp", "segmented"]

Result = tuple[str, list[int], dict[str, Any]]

LARGE: int = rmpplace.LARGE_BYTES
GIB = 1 << 30
MAX_SHOWN = 3
MAX_SEGMENT_LINES: int = lib.RMP_SEGMENTS
"""So many lines of segments of one boot are kept; a table has no more."""


def ram_end(boot: BootFacts, memory: MemoryMap | None) -> int:
    """Return where RAM ends, 0 if the log does not say."""
    pages = [number(one.values["pfn"]) for one in boot.all("last_pfn")]
    ends = [page * lib.GHCB_PAGE_SIZE for page in pages]
    return max([*ends, memory.ram_end if memory else 0])


def rmp_tables(boot: BootFacts) -> Iterator[tuple[Fact, rmp.Table | str]]:
    """Yield each contiguous RMP of the log, or what is wrong with it."""
    for fact in boot.distinct("rmp", "base", "end"):
        try:
            yield fact, rmp.table(number(fact.values["base"]), number(fact.values["end"]))
        except errors.SevError as error:
            yield fact, str(error).rpartition(": ")[2]


@dataclass(frozen=True)
class Segmented:
    """The table in segments of one boot: the line of its base, its geometry or why there is none.

    ``geometry`` is None and ``why`` "" where the log does not say enough.
    """

    fact: Fact
    geometry: rmpgeometry.Geometry | None
    why: str
    lines: tuple[int, ...]  # of its segments
    ends: tuple[int, int]  # of what lies at the base, as the log has it


def segmented(boot: BootFacts) -> Segmented | None:
    """Return the table in segments of the log, None if there is none or there are several."""
    bases = boot.distinct("rmp_segmented", "base")
    if len(bases) != 1:
        return None
    base = number(bases[0].values["base"])
    rows = boot.distinct("rmp_segment", "number", "base", "end", "first", "last")
    sizes = {number(one.values["gib"]) for one in boot.all("rmp_segment_gib")}
    lines = tuple(one.line for one in rows)
    ends = (base, base + lib.RMP_BOOKKEEPING_BYTES + lib.RMP_SEGMENT_TABLE_BYTES)
    if len(sizes) != 1 or len(boot.all("rmp_segment")) > MAX_SEGMENT_LINES:
        return Segmented(bases[0], None, "", lines, ends)
    gib = sizes.pop()
    shift = lib.RMP_MAPPED_UNIT_SHIFT + gib.bit_length() - 1
    if gib != 2 ** (shift - lib.RMP_MAPPED_UNIT_SHIFT) or gib == 0:
        return Segmented(bases[0], None, f"no segment covers {gib} GiB", lines, ends)
    try:
        rst = _table_of_segments(rows, gib)
        config = rmpgeometry.encode_config(1, shift)
        geometry = rmpgeometry.segments(rst, config, base)
    except errors.SevError as error:
        return Segmented(bases[0], None, str(error), lines, ends)
    return Segmented(bases[0], geometry, "", lines, ends)


def _table_of_segments(rows: Sequence[Fact], gib: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Return the words that Linux printed these lines for."""
    records = np.zeros(lib.RMP_SEGMENTS, rmpgeometry.SEGMENT_DTYPE)
    seen = set()
    for one in rows:
        index, spa, first, last = (
            number(one.values[name]) for name in ("number", "base", "first", "last")
        )
        where = f"segment {one.values['number'][:20]}"
        size = last + 1 - first
        if index >= len(records):
            raise errors.OutOfRange(f"{where}: a table has {len(records)}")
        if index in seen:
            raise errors.StateConflict(f"{where}: two lines say different things of it")
        if first != index * gib * GIB:
            raise errors.StateConflict(f"{where}: must begin at {index * gib * GIB:#x}")
        if size <= 0 or size % GIB or size > gib * GIB:
            raise errors.OutOfRange(f"{where}: must cover whole GiB, {gib} at most")
        seen.add(index)
        records[index] = (spa, size // GIB, 0)
    return rmpgeometry.encode_segments(records)


def run_rmp(boot: BootFacts, memory: MemoryMap | None) -> Iterator[Result]:
    """Run every check of the RMP on one boot."""
    tables = list(rmp_tables(boot))
    in_segments = segmented(boot)
    is_one = len(tables) + (in_segments is not None) == 1
    reserved = {number(one.values["at"]): one.line for one in boot.all("rmp_reserve")}
    pieces: set[int] = set()
    for fact, table in tables:
        shown = {"base": fact.values["base"], "end": fact.values["end"]}
        if isinstance(table, str):
            yield "rmp_geometry", [fact.line], shown | {"why": table}
            continue
        if not table.is_aligned:
            yield "rmp_alignment", [fact.line], shown
        pieces |= {table.large_start, table.large_end}
        geometry = rmpgeometry.contiguous(table.base, table.end)
        if is_one:
            yield from _contiguous_and_memory(boot, memory, fact, geometry)
        yield from _edges(boot, memory if is_one else None, fact, geometry, reserved)
    if in_segments is not None:
        pieces |= set(_known_pieces(in_segments))
        known = memory if is_one else None
        yield from _in_segments(boot, known, in_segments, reserved, is_one)
    is_known = bool(tables) if in_segments is None else in_segments.geometry is not None
    if is_known and (in_segments is not None or not boot.all("rmp_segmented")):
        for at, line in reserved.items():
            if at not in pieces:
                yield "rmp_reserve_odd", [line], {"at": f"{at:#x}"}
    yield from _segment_lines(boot)


def _known_pieces(found: Segmented) -> list[int]:
    return [] if found.geometry is None else [one.block for one in rmpplace.edges(found.geometry)]


# The table and memory ---------------------------------------------------------------------------


def _contiguous_and_memory(
    boot: BootFacts, memory: MemoryMap | None, fact: Fact, geometry: rmpgeometry.Geometry
) -> Iterator[Result]:
    """Hold the one RMP of a boot against its memory."""
    shown = {"base": fact.values["base"], "end": fact.values["end"]}
    covered = int(rmpgeometry.coverage(geometry)[-1, 1])
    table_end = int(rmpgeometry.places(geometry)[1][0, 1])
    end = ram_end(boot, memory)
    if end > covered:
        values = {"covered": f"{covered:#x}", "ram": f"{end:#x}"}
        missing = format_size(end - covered)
        yield "rmp_cover", [fact.line], shown | values | {"missing": missing}
    elif table_end > covered:
        yield "rmp_self", [fact.line], shown | {"covered": f"{covered:#x}"}
    yield from _in_ram(memory, fact, geometry, shown)


def _in_ram(
    memory: MemoryMap | None, fact: Fact, geometry: rmpgeometry.Geometry, shown: dict[str, str]
) -> Iterator[Result]:
    if memory and (inside := rmpplace.table_in_ram(memory, geometry)):
        size = sum(end - start for start, end in inside)
        yield "rmp_in_ram", [fact.line], shown | {"size": format_size(size)}


def _in_segments(
    boot: BootFacts,
    memory: MemoryMap | None,
    found: Segmented,
    reserved: dict[int, int],
    is_one: bool,
) -> Iterator[Result]:
    """Judge a table in segments by the union of what they cover."""
    start, end = found.ends
    shown = {"base": f"{start:#x}", "end": f"{end - 1:#x}"}
    if found.geometry is None:
        if found.why:
            lines = [found.fact.line, *found.lines[:MAX_SHOWN]]
            yield "rmp_geometry", lines, shown | {"why": found.why}
        return
    if not found.geometry.is_aligned:
        yield "rmp_alignment", [found.fact.line], shown
    if is_one:
        yield from _segments_and_memory(boot, memory, found, shown)
    yield from _in_ram(memory, found.fact, found.geometry, shown)
    yield from _edges(boot, memory, found.fact, found.geometry, reserved)


def _segments_and_memory(
    boot: BootFacts, memory: MemoryMap | None, found: Segmented, shown: dict[str, str]
) -> Iterator[Result]:
    """Hold the one table in segments of a boot against its memory."""
    if found.geometry is None:
        return
    missing = rmpplace.uncovered(memory, found.geometry) if memory else ()
    refusal = rmpplace.linux_refusal(ram_end(boot, memory), found.geometry)
    if refusal is not None:
        values = {"covered": f"{refusal.got:#x}", "ram": f"{refusal.expected:#x}"}
        size = sum(b - a for a, b in missing) or refusal.expected - refusal.got
        yield "rmp_cover", [found.fact.line], shown | values | {"missing": format_size(size)}
    elif missing:
        ranges = ", ".join(f"[{a:#x} - {b - 1:#x}]" for a, b in missing[:MAX_SHOWN])
        if len(missing) > MAX_SHOWN:
            ranges += f" and {len(missing) - MAX_SHOWN} more"
        size = sum(b - a for a, b in missing)
        yield "rmp_hole", [found.fact.line], {"ranges": ranges, "missing": format_size(size)}


def _segment_lines(boot: BootFacts) -> Iterator[Result]:
    """Hold each line of a segment against itself: entries for what it is said to cover."""
    for one in boot.all("rmp_segment"):
        base, end, first, last = (number(one.values[k]) for k in ("base", "end", "first", "last"))
        entries = max(end + 1 - base, 0) // lib.RMP_ENTRY_BYTES
        wanted = max(last + 1 - first, 0) // lib.GHCB_PAGE_SIZE
        if entries < wanted:
            values = {"number": one.values["number"], "pages": entries, "wanted": wanted}
            yield "rmp_segment_cover", [one.line], values


# Edges ------------------------------------------------------------------------------------------


def _edges(
    boot: BootFacts,
    memory: MemoryMap | None,
    fact: Fact,
    geometry: rmpgeometry.Geometry,
    reserved: dict[int, int],
) -> Iterator[Result]:
    """Look at the 2 MiB pieces that the RMP shares with others."""
    free = rmpplace.reserved_blocks(memory, geometry) if memory else ()
    for edge in rmpplace.edges(geometry):
        piece = edge.block
        values = {"edge": edge.what, "at": f"[{piece:#x} - {piece + LARGE - 1:#x}]"}
        if piece in reserved:
            yield "rmp_edge_reserved", sorted({fact.line, reserved[piece]}), values
        elif memory is None:
            yield "rmp_edge_unknown", [fact.line], values
        elif piece in free:
            yield "rmp_edge_free", [fact.line], values
        for one in boot.all("kexec_segment"):
            start = number(one.values["mem"])
            if start < piece + LARGE and start + number(one.values["memsz"]) > piece:
                segment = {"number": one.values["number"], "mem": one.values["mem"]}
                yield "kexec_in_edge", [one.line], values | segment

"""What a reverse map table means for a memory map: coverage, and the edges that Linux reserves.

The processor checks writes in pieces of 2 MiB where memory is mapped so, and a piece that holds a
part of the table is not to be written to as a whole. Where the table, or a segment of it, begins or
ends inside such a piece, the rest of the piece may be RAM: Linux takes it out of the memory map of
its own and out of that of kexec. ``reserved_blocks`` says which pieces these are, ``reserve`` makes
the map that is left. ``uncovered`` says which RAM has no entry, ``linux_refusal`` whether Linux
would do without SNP for that; the two differ for segments, of which Linux looks at the last alone.

``geometry`` is everywhere what ``ghcbcore.rmpgeometry`` makes, contiguous or segmented. Addresses
count bytes; ends are exclusive.

Source: Linux arch/x86/virt/svm/sev.c (snp_fixup_e820_tables, setup_contiguous_rmptable,
setup_segmented_rmptable); Linux 400fea4b9651 ("x86/sev: Add callback to apply RMP table fixups for
kexec").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from ghcbcore import rmpgeometry
from ghcbcore._cffi import lib
from ghcbcore.rmpgeometry import Geometry

from .memmap import E820Type, MemoryMap, Ranges, round_down

__all__ = [
    "LARGE_BYTES",
    "Edge",
    "Placement",
    "Refusal",
    "edges",
    "entries_needed",
    "inside",
    "linux_refusal",
    "outside",
    "place",
    "reserve",
    "reserved_blocks",
    "table_in_ram",
    "uncovered",
]

LARGE_BYTES: Final[int] = lib.RMP_LARGE_PAGE_BYTES
PAGE_BYTES: Final[int] = lib.GHCB_PAGE_SIZE
ENTRY_BYTES: Final[int] = lib.RMP_ENTRY_BYTES
BASE: Final = -1
"""The index that ``rmpgeometry.places`` gives to what lies at the base."""


class Edge(NamedTuple):
    """A start or an end inside of a 2 MiB piece: ``what``, its address, where the piece begins."""

    what: str
    spa: int
    block: int


class Refusal(NamedTuple):
    """The two numbers of Linux's "does not cover full system RAM (expected ... got ...)".

    Bytes of the table if it is contiguous, the end of RAM and of what is covered if not.
    """

    expected: int
    got: int


@dataclass(frozen=True, slots=True)
class Placement:
    """What ``place`` says of one table in one memory map."""

    uncovered: Ranges
    """RAM without an entry."""
    in_ram: Ranges
    """Parts of the table that the map calls RAM; the BIOS must reserve all of it."""
    edges: tuple[Edge, ...]
    """Starts and ends that are no multiples of 2 MiB, RAM beside them or not."""
    blocks: tuple[int, ...]
    """Where the 2 MiB pieces begin that Linux reserves."""
    entries_needed: int
    n_entries: int
    refusal: Refusal | None
    """Why Linux does without SNP; None if it takes the table."""


# Ranges -----------------------------------------------------------------------------------------


def inside(ranges: Iterable[tuple[int, int]], start: int, end: int) -> Ranges:
    """Return the parts of ``ranges`` that lie in ``[start, end)``."""
    pieces = ((max(start, a), min(end, b)) for a, b in ranges)
    return tuple((a, b) for a, b in pieces if a < b)


def outside(ranges: Iterable[tuple[int, int]], holes: Iterable[tuple[int, int]]) -> Ranges:
    """Return the parts of ``ranges`` that no range of ``holes``, sorted, names.

    Examples
    --------
    >>> outside([(0, 10), (20, 30)], [(4, 6), (8, 25)])
    ((0, 4), (6, 8), (25, 30))
    """
    found: list[tuple[int, int]] = []
    taken = list(holes)
    for start, end in ranges:
        for a, b in inside(taken, start, end):
            if start < a:
                found.append((start, a))
            start = b
        if start < end:
            found.append((start, end))
    return tuple(found)


def _pairs(geometry: Geometry) -> list[tuple[int, int]]:
    return [(start, end) for start, end in rmpgeometry.coverage(geometry).tolist()]


def _usable(memory: MemoryMap) -> list[tuple[int, int]]:
    """Return RAM to the byte, as the map has it: what Linux asks for when it reserves."""
    return [(start, end) for start, end, kind in memory if kind == E820Type.USABLE]


# Coverage ---------------------------------------------------------------------------------------


def uncovered(memory: MemoryMap, geometry: Geometry) -> Ranges:
    """Return the RAM whose pages have no entry.

    Examples
    --------
    >>> memory = MemoryMap.flat(64 << 30)
    >>> table = rmpgeometry.contiguous(0x64000000, 0x747FFFFF)  # 264 MiB
    >>> [(hex(start), hex(end)) for start, end in uncovered(memory, table)]
    [('0x107fc00000', '0x1080000000')]
    """
    return outside(memory.ram_ranges(), _pairs(geometry))


def _entries_of_range(ram_end: int, geometry: Geometry) -> int:
    """Return the entries that a contiguous table needs for RAM and for itself."""
    return max(ram_end, _table_end(geometry)) // PAGE_BYTES


def entries_needed(memory: MemoryMap, geometry: Geometry) -> int:
    """Return how many entries a table of this form must have for each page of RAM to have one.

    A contiguous table has entries from page 0 to the end of RAM, and for the pages that it lies in
    itself, as Linux demands. Each segment that has RAM needs entries from its first page to its
    last page of RAM, whether the table at hand has that segment or not.
    """
    if not geometry.is_segmented:
        return _entries_of_range(memory.ram_end, geometry)
    covers: int = 2**geometry.shift
    whole = 0
    used: dict[int, int] = {}
    for start, end in memory.ram_ranges():
        first, last = start // covers, (end - 1) // covers
        if first < last:
            used[first] = covers
            whole += last - first - 1
        used[last] = end - last * covers
    return (whole * covers + sum(used.values())) // PAGE_BYTES


def _table_end(geometry: Geometry) -> int:
    """Return where a contiguous table ends."""
    return int(rmpgeometry.places(geometry)[1][0, 1])


def linux_refusal(memory: MemoryMap | int, geometry: Geometry) -> Refusal | None:
    """Return why Linux takes no such table for this memory, None if it does.

    A contiguous table must be long enough for RAM and for itself. Of a table in segments Linux
    compares the end of RAM with the end of the last segment that begins below it: RAM between
    segments may be without entries (``uncovered``) and the table is taken all the same. Linux looks
    at the end of RAM alone, so in place of a map that will do: the page after the last, in bytes.
    """
    ram_end = memory if isinstance(memory, int) else memory.ram_end
    if not geometry.is_segmented:
        n_entries = _entries_of_range(ram_end, geometry)
        expected = lib.RMP_BOOKKEEPING_BYTES + ENTRY_BYTES * n_entries
        got = _table_end(geometry) - geometry.base
        return Refusal(expected, got) if expected > got else None
    covers: int = 2**geometry.shift
    index, ranges = rmpgeometry.places(geometry)
    ends = {
        i * covers: i * covers + (end - start) // ENTRY_BYTES * PAGE_BYTES
        for i, (start, end) in zip(index.tolist(), ranges.tolist(), strict=True)
        if i != BASE
    }
    below = [start for start in ends if start < ram_end]
    covered = ends[max(below)] if below else 0
    return Refusal(ram_end, covered) if ram_end > covered else None


def table_in_ram(memory: MemoryMap, geometry: Geometry) -> Ranges:
    """Return the parts of the table itself that the map calls RAM, in the order of the table."""
    _, ranges = rmpgeometry.places(geometry)
    ram = memory.ram_ranges()
    return tuple(piece for start, end in ranges.tolist() for piece in inside(ram, start, end))


# Edges ------------------------------------------------------------------------------------------


def edges(geometry: Geometry) -> tuple[Edge, ...]:
    """Return the starts and ends that are no multiples of 2 MiB, in the order in which Linux looks.

    Examples
    --------
    >>> for edge in edges(rmpgeometry.contiguous(0x7FFE800000, 0x807F0FFFFF)):
    ...     print(edge.what, hex(edge.spa), hex(edge.block))
    end 0x807f100000 0x807f000000
    """
    found = []
    index, ranges = rmpgeometry.places(geometry)
    for i, ends in zip(index.tolist(), ranges.tolist(), strict=True):
        of = "" if not geometry.is_segmented else f" of segment {i}"
        if geometry.is_segmented and i == BASE:
            of = " of the base table"
        for edge, spa in zip(("start", "end"), ends, strict=True):
            block = round_down(spa, LARGE_BYTES)
            if block != spa:
                found.append(Edge(edge + of, spa, block))
    return tuple(found)


def reserved_blocks(memory: MemoryMap, geometry: Geometry) -> tuple[int, ...]:
    """Return where the 2 MiB pieces begin that Linux takes out of the map for this table.

    Those with an edge of the table in them and any RAM; each once, in the order in which Linux
    prints "Reserving start/end of RMP table on a 2MB boundary".
    """
    ram = _usable(memory)
    blocks = dict.fromkeys(edge.block for edge in edges(geometry))
    return tuple(at for at in blocks if inside(ram, at, at + LARGE_BYTES))


def reserve(memory: MemoryMap, geometry: Geometry) -> MemoryMap:
    """Return the map with the RAM of these pieces reserved: what the kernel and kexec use.

    Raises
    ------
    BadMap
        No whole page of RAM is left.

    Examples
    --------
    >>> memory = MemoryMap([(0x100000, 0x34500000, 1), (0x34500000, 0x34D00000, 2)])
    >>> left = reserve(memory, rmpgeometry.contiguous(0x34500000, 0x34CFFFFF))
    >>> [(hex(start), hex(end), kind) for start, end, kind in left][1:]
    [('0x34400000', '0x34500000', 2), ('0x34500000', '0x34d00000', 2)]
    """
    blocks = sorted((at, at + LARGE_BYTES) for at in reserved_blocks(memory, geometry))
    if not blocks:
        return memory
    rows: list[tuple[int, int, int]] = []
    for start, end, kind in memory:
        if kind != E820Type.USABLE:
            rows.append((start, end, kind))
            continue
        rows += ((a, b, kind) for a, b in outside([(start, end)], blocks))
        rows += ((a, b, int(E820Type.RESERVED)) for a, b in inside(blocks, start, end))
    return MemoryMap(rows, f"{memory.name}, edges of the RMP reserved")


def place(memory: MemoryMap, geometry: Geometry) -> Placement:
    """Answer all questions about a table in a memory map at once.

    Examples
    --------
    >>> memory = MemoryMap.flat(8 << 30)
    >>> found = place(memory, rmpgeometry.contiguous(0x20000000, 0x207FFFFF))
    >>> found.refusal
    Refusal(expected=41959424, got=8388608)
    >>> [(hex(start), hex(end)) for start, end in found.in_ram]
    [('0x20000000', '0x20800000')]
    """
    return Placement(
        uncovered=uncovered(memory, geometry),
        in_ram=table_in_ram(memory, geometry),
        edges=edges(geometry),
        blocks=reserved_blocks(memory, geometry),
        entries_needed=entries_needed(memory, geometry),
        n_entries=geometry.n_entries,
        refusal=linux_refusal(memory, geometry),
    )

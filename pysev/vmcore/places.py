"""Where a crashed guest keeps what a dump is about, beyond ``pysev.layout``.

The layout says who lies where; a dump needs a few things more, and they are taken from RAM that
the layout has left free: the pages of VMSAs, memory that was never accepted, ``struct page`` of
all RAM and the page tables over it.

Units: bytes; ends are exclusive. Source: Linux mm/sparse-vmemmap.c (one 2 MiB leaf of ``struct
page`` for each section of 128 MiB), arch/x86/coco/sev/core.c (a page for each VMSA).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ghcbcore.errors import OutOfRange
from pysev.layout import Layout, Part, Region
from pysev.memmap import (
    LARGE_PAGE_BYTES,
    PAGE_BYTES,
    NoRoom,
    fit_range,
    format_size,
    largest_range,
    round_down,
    round_up,
)

SPLIT_TABLES = 32
"""Page tables of 4 KiB leaves at the edges of shared memory, at most."""

__all__ = ["SECTION_BYTES", "Places", "free_ranges", "unaccepted_range", "vmsa_range"]

Ranges = tuple[tuple[int, int], ...]

SECTION_BYTES = 128 << 20
"""What one ``struct mem_section`` stands for. Source: Linux asm/sparsemem.h (x86-64)."""

PHYSICAL_LIMIT = 1 << 46
"""MAX_PHYSMEM_BITS of four levels of page tables. Source: Linux asm/sparsemem.h."""

SMALLEST_UNACCEPTED = 64 << 20
"""With a smaller free piece a machine has accepted everything."""


def free_ranges(layout: Layout) -> Ranges:
    """Return RAM above 1 MiB that no region of the layout has, lowest first."""
    taken = [(region.start, region.end) for region in layout.regions if region.is_ram]
    return _without(layout.memmap.ram_ranges(), [(0, 1 << 20), *taken])


def _without(ranges: Ranges, taken: list[tuple[int, int]]) -> Ranges:
    out: list[tuple[int, int]] = []
    for start, end in ranges:
        at = start
        for low, high in sorted(taken):
            if high <= at or low >= end:
                continue
            if at < low:
                out.append((at, low))
            at = max(at, high)
        if at < end:
            out.append((at, end))
    return tuple(out)


def vmsa_range(layout: Layout) -> tuple[int, int]:
    """Return where the VMSAs of all CPUs but the first lie: one page each, at least one.

    Raises
    ------
    NoRoom
        No free piece of RAM is large enough.
    """
    size = max(layout.n_cpus - 1, 1) * PAGE_BYTES
    free = free_ranges(layout)
    at = fit_range(free, size, PAGE_BYTES, 0, 1 << 52, False)
    if at is None:
        raise NoRoom("VMSAs", size, 0, 1 << 52, largest_range(free, 0, 1 << 52))
    return at, at + size


def unaccepted_range(layout: Layout) -> tuple[int, int]:
    """Return what firmware and kernel never accepted: half of the largest free piece of RAM.

    Raises
    ------
    NoRoom
        The largest free piece is too small to leave half of it alone.
    """
    free = _without(free_ranges(layout), [vmsa_range(layout)])
    start, end = max(free, key=lambda piece: piece[1] - piece[0], default=(0, 0))
    start = round_up(start, LARGE_PAGE_BYTES)
    half = round_down((end - start) // 2, LARGE_PAGE_BYTES)
    if half < SMALLEST_UNACCEPTED:
        raise NoRoom("memory that was never accepted", SMALLEST_UNACCEPTED, 0, 1 << 52, end - start)
    return start, start + half


@dataclass(frozen=True)
class Places:
    """Where the parts of a dump lie.

    Attributes
    ----------
    layout : Layout
    ranges : tuple of (start, end)
        What elfcorehdr lists: RAM without the first MiB and the crash reservation.
    vmsas, unaccepted : (start, end)
        ``unaccepted`` is (0, 0) where everything was accepted.
    sections : uint64 array
        Numbers of the sections that have RAM.
    vmemmap : uint64 array, same shape
        Address of the 2 MiB of ``struct page`` of each.
    tables : tuple of (start, end)
        Pages for page tables over ``vmemmap`` and for roots of ``mem_section``.
    free : tuple of (start, end)
        What is left: on the kernel's free lists.
    """

    layout: Layout
    ranges: Ranges
    vmsas: tuple[int, int]
    unaccepted: tuple[int, int]
    sections: NDArray[np.uint64]
    vmemmap: NDArray[np.uint64]
    tables: tuple[int, int]
    free: Ranges

    @classmethod
    def of(cls, layout: Layout, unaccepted: tuple[int, int] = (0, 0)) -> Places:
        """Place everything.

        Raises
        ------
        NoRoom
            There is no room for ``struct page`` of all RAM.
        OutOfRange
            There is no crash reservation, or RAM ends above what four levels of page tables reach.
        """
        end = layout.memmap.ram_end
        if end > PHYSICAL_LIMIT:
            reach = format_size(PHYSICAL_LIMIT)
            raise OutOfRange(f"RAM ends at {end:#x}: four levels of page tables reach {reach}")
        crash = [r for r in layout.regions if r.part in (Part.CRASH, Part.CRASH_LOW)]
        if not crash:
            ram = format_size(layout.memmap.ram_bytes)
            raise OutOfRange(f"a guest with {ram} of RAM: no memory is reserved for a crash kernel")
        kept = [(0, 1 << 20), *((region.start, region.end) for region in crash)]
        ranges = _without(layout.memmap.ram_ranges(), kept)
        vmsas = vmsa_range(layout)
        free = _without(free_ranges(layout), [vmsas, unaccepted])
        sections = _sections(layout.memmap.ram_ranges())
        per_table = (256, 512, 512 * 512)  # roots of mem_section; two levels of page tables
        n_tables = sum(len(np.unique(sections // n)) for n in per_table)
        size = (n_tables + SPLIT_TABLES) * PAGE_BYTES
        at = fit_range(free, size, PAGE_BYTES, 0, 1 << 52, True)
        if at is None:
            raise NoRoom("page tables", size, 0, 1 << 52, largest_range(free, 0, 1 << 52))
        tables = (at, at + size)
        free = _without(free, [tables])
        vmemmap = _pieces(free, len(sections))
        return cls(
            layout,
            ranges,
            vmsas,
            unaccepted,
            sections,
            vmemmap,
            tables,
            _without(free, _joined(vmemmap)),
        )

    def region(self, part: Part) -> Region:
        return self.layout[part]


def _sections(ranges: Ranges) -> NDArray[np.uint64]:
    pieces = [
        np.arange(start // SECTION_BYTES, (end - 1) // SECTION_BYTES + 1, dtype=np.uint64)
        for start, end in ranges
    ]
    return np.unique(np.concatenate(pieces))


def _pieces(free: Ranges, n: int) -> NDArray[np.uint64]:
    """Take ``n`` pages of 2 MiB, from the highest free memory down; return them, lowest first."""
    found: list[NDArray[np.uint64]] = []
    left = n
    for start, end in reversed(free):
        first, last = round_up(start, LARGE_PAGE_BYTES), round_down(end, LARGE_PAGE_BYTES)
        here = min(left, max(last - first, 0) // LARGE_PAGE_BYTES)
        if here:
            begin = last - here * LARGE_PAGE_BYTES
            found.append(np.arange(begin, last, LARGE_PAGE_BYTES, dtype=np.uint64))
        left -= here
    if left:
        size = n * LARGE_PAGE_BYTES
        raise NoRoom("struct page of all RAM", size, 0, 1 << 52, largest_range(free, 0, 1 << 52))
    return np.sort(np.concatenate(found))


def _joined(pages: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Join pages of 2 MiB that touch."""
    breaks = np.flatnonzero(np.diff(pages) != LARGE_PAGE_BYTES) + 1
    return [(int(run[0]), int(run[-1]) + LARGE_PAGE_BYTES) for run in np.split(pages, breaks)]

"""Where the kernels of a kexec or a crash lie in a guest's memory.

``place`` lays the actors of a scenario out in a memory map, so that the addresses of a run follow
from the map: a map without room for a kernel is refused, not bent. Nothing here knows what a page
is used for later: see the memory ledger for that.

What the layout takes from Linux, and where it is simpler:

* The old kernel lies at 16 MiB (``CONFIG_PHYSICAL_START``) or at the first fit above, 2 MiB
  aligned, below 4 GiB; no KASLR. Its real-mode blob lies as high as fits below 1 MiB.
* Page tables of the direct map (2 MiB leaves), stacks, GHCBs and paravirtual pages come from the
  early allocator, top down, in the order in which a boot takes them. GHCBs of different CPUs lie
  side by side; Linux keeps each beside a private backup page. Of the few dozen other shared pages
  (rings, decrypted data of the image) none is placed.
* The crash reservation is 16 MiB aligned, below 4 GiB if it fits; else above, with a second, low
  piece for the crash kernel's DMA. The swiotlb is below 4 GiB and is halved until it fits.
* The new kernel's segments lie where ``kexec_file_load`` of Linux 6.8 or later puts them, in this
  order: purgatory, boot parameters, kernel, initrd, each as high in RAM as it fits. Linux lets
  them lie over pages that the old kernel uses, and copies at the jump; here every region keeps its
  own pages, so that an address has one owner (``kexec_segments`` has Linux's own answer).
* The AP jump table is a page that the firmware reserved (``jump_table_gpa`` has the rule).

Source: Linux ``arch/x86/kernel/{setup,kexec-bzimage64}.c``, ``asm/crash_reserve.h``,
``arch/x86/realmode/init.c``, ``arch/x86/mm/mem_encrypt.c``, ``kernel/kexec_file.c``,
``kernel/crash_reserve.c``, ``kernel/dma/swiotlb.c``; EDK II ``MpInitLib`` (jump table: one page of
reserved memory, as high as possible below 4 GiB); kdump-utils (size of the crash reservation).
Sizes that differ from machine to machine are the named constants below.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange, Unaligned

from .memmap import (
    FOUR_GIB,
    GIB,
    GPA_LIMIT,
    KIB,
    LARGE_PAGE_BYTES,
    MIB,
    PAGE_BYTES,
    TIB,
    U64,
    E820Type,
    MemoryMap,
    NoRoom,
    Ranges,
    fit_range,
    format_size,
    largest_range,
    round_down,
    round_up,
)

__all__ = [
    "MAX_CPUS",
    "Layout",
    "Owner",
    "Part",
    "Region",
    "crash_bytes",
    "jump_table_gpa",
    "kexec_segments",
    "place",
    "swiotlb_bytes",
]

MAX_CPUS: Final[int] = lib.GHCB_MAX_CPUS

# Addresses and sizes of the layout.
MMIO_START: Final = 0xFEC0_0000  # IO-APIC; interrupt and firmware windows above it
KERNEL_START: Final = 16 * MIB  # CONFIG_PHYSICAL_START, also the bzImage's preferred address
REAL_MODE_BYTES: Final = 24 * KIB  # "Base memory trampoline at ... size 24576"
STACK_BYTES: Final = 16 * KIB  # THREAD_SIZE on x86-64
CLOCK_BYTES: Final = 64  # paravirtual clock of one CPU
PURGATORY_BYTES: Final = 0x5000  # as printed in Linux 400fea4b9651, like the next
BOOT_PARAMS_BYTES: Final = 0x2000
CONTROL_BYTES: Final = 2 * PAGE_BYTES  # relocation code with its stack, and the swap page
KERNEL_BYTES: Final = 64 * MIB  # assumption: init_size of a distribution's kernel, rounded up
INITRD_BYTES: Final = 64 * MIB  # assumption: initrd of a distribution, rounded up
SWIOTLB_MIN_BYTES: Final = 64 * MIB
SWIOTLB_MAX_BYTES: Final = GIB
SWIOTLB_LEAST_BYTES: Final = MIB  # Linux gives up below this
SWIOTLB_SEGMENT_BYTES: Final = 256 * KIB
CRASH_ALIGN_BYTES: Final = 16 * MIB
CRASH_BELOW: Final = 64 * TIB


class Owner(StrEnum):
    """Whose memory a region is."""

    FIRMWARE = "firmware"
    OLD_KERNEL = "old kernel"
    NEW_KERNEL = "new kernel"
    CRASH_KERNEL = "crash kernel"


class Part(StrEnum):
    """The regions of a layout, by what lies in them."""

    JUMP_TABLE = "AP jump table"
    REAL_MODE = "real-mode blob"
    OLD_TEXT = "text and data"
    OLD_INITRD = "initrd"
    PAGE_TABLES = "page tables"
    STACKS = "stacks"
    PV_PAGES = "paravirtual pages"
    GHCBS = "GHCBs"
    SWIOTLB = "swiotlb"
    CRASH = "crash reservation"
    CRASH_LOW = "crash reservation, low part"
    CONTROL = "kexec control and swap page"
    PURGATORY = "purgatory"
    BOOT_PARAMS = "boot parameters"
    NEW_KERNEL = "new kernel"
    NEW_INITRD = "new initrd"


_OWNERS: Final[dict[Part, Owner]] = {
    Part.JUMP_TABLE: Owner.FIRMWARE,
    Part.CRASH: Owner.CRASH_KERNEL,
    Part.CRASH_LOW: Owner.CRASH_KERNEL,
    Part.CONTROL: Owner.NEW_KERNEL,
    Part.PURGATORY: Owner.NEW_KERNEL,
    Part.BOOT_PARAMS: Owner.NEW_KERNEL,
    Part.NEW_KERNEL: Owner.NEW_KERNEL,
    Part.NEW_INITRD: Owner.NEW_KERNEL,
}
_SHARED: Final = frozenset({Part.PV_PAGES, Part.GHCBS, Part.SWIOTLB})


@dataclass(frozen=True, slots=True)
class Region:
    """One stretch of pages with one owner; ``shared`` is its state under SEV-ES."""

    part: Part
    start: int
    size_bytes: int

    @property
    def name(self) -> str:
        """What lies here, in words."""
        return self.part.value

    @property
    def end(self) -> int:
        """The byte after the region."""
        return self.start + self.size_bytes

    @property
    def owner(self) -> Owner:
        """Whose memory this is."""
        return _OWNERS.get(self.part, Owner.OLD_KERNEL)

    @property
    def shared(self) -> bool:
        """Whether hypervisor and guest both use it, in clear text."""
        return self.part in _SHARED

    @property
    def is_ram(self) -> bool:
        """Whether the map counts it as RAM; the jump table lies in reserved memory."""
        return self.part is not Part.JUMP_TABLE


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies in one guest; made by ``place``. ``regions`` are sorted, disjoint."""

    memmap: MemoryMap
    n_cpus: int
    regions: tuple[Region, ...]

    def __contains__(self, part: object) -> bool:
        return any(region.part == part for region in self.regions)

    def __getitem__(self, part: Part) -> Region:
        for region in self.regions:
            if region.part == part:
                return region
        raise KeyError(f"{self.memmap.name}: the layout has no {part}")

    def region_at(self, gpa: int) -> Region | None:
        """Return the region that holds an address, ``None`` where nothing was placed."""
        index = bisect_right(self.regions, gpa, key=lambda region: region.start) - 1
        if index < 0 or gpa >= self.regions[index].end:
            return None
        return self.regions[index]

    def ghcb_gpas(self) -> U64:
        """Return the address of each CPU's GHCB page, shape (n_cpus,)."""
        offsets = np.arange(self.n_cpus, dtype=np.uint64) * np.uint64(PAGE_BYTES)
        return offsets + np.uint64(self[Part.GHCBS].start)

    def memory_by_state(self) -> dict[str, int]:
        """Return bytes by state before the kexec.

        ``private + shared == ram``, and so is ``old_kernel + new_kernel + crash_kernel + free``;
        ``reserved`` is everything that the map lists and that is not whole pages of RAM.
        """
        ram = self.memmap.ram_bytes
        shared = sum(region.size_bytes for region in self.regions if region.shared)
        owned = {
            owner: sum(r.size_bytes for r in self.regions if r.owner is owner and r.is_ram)
            for owner in (Owner.OLD_KERNEL, Owner.NEW_KERNEL, Owner.CRASH_KERNEL)
        }
        return {
            "ram": ram,
            "private": ram - shared,
            "shared": shared,
            "reserved": sum(self.memmap.bytes_by_kind().values()) - ram,
            "old_kernel": owned[Owner.OLD_KERNEL],
            "new_kernel": owned[Owner.NEW_KERNEL],
            "crash_kernel": owned[Owner.CRASH_KERNEL],
            "free": ram - sum(owned.values()),
        }

    def as_text(self) -> str:
        """Return the regions as a small table, lowest first."""
        rows = [
            (
                f"{region.start:#018x}",
                f"{region.end - 1:#018x}",
                format_size(region.size_bytes),
                "shared" if region.shared else "private",
                region.owner.value,
                region.name,
            )
            for region in self.regions
        ]
        head = ("start", "last", "size", "state", "owner", "what")
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        return "".join(
            "  ".join(
                cell.rjust(width) if i == 2 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            + "\n"
            for row in [head, *rows]
        )


class _Free:
    """RAM that no region has taken yet."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = list(ranges)

    def take(
        self,
        part: Part,
        size_bytes: int,
        *,
        align: int = PAGE_BYTES,
        above: int = 0,
        below: int = GPA_LIMIT,
        top_down: bool = True,
    ) -> Region:
        """Cut a region out; raise ``NoRoom`` and take nothing if it does not fit."""
        gpa = fit_range(self._ranges, size_bytes, align, above, below, top_down)
        if gpa is None:
            largest = largest_range(self._ranges, above, below)
            raise NoRoom(_called(part), size_bytes, above, below, largest)
        index = bisect_right(self._ranges, gpa, key=lambda piece: piece[0]) - 1
        start, end = self._ranges[index]
        left, right = (start, gpa), (gpa + size_bytes, end)
        self._ranges[index : index + 1] = [piece for piece in (left, right) if piece[0] < piece[1]]
        return Region(part, gpa, size_bytes)


def _called(part: Part) -> str:
    owner = _OWNERS.get(part, Owner.OLD_KERNEL)
    return f"the old kernel's {part}" if owner is Owner.OLD_KERNEL else f"the {part}"


def crash_bytes(ram_bytes: int) -> int:
    """Return the default size of the crash reservation of an SEV guest.

    256 MiB from 2 GiB, 512 MiB from 64 GiB on, and 64 MiB more because the guest is encrypted;
    nothing for smaller guests. RAM counts rounded up to 128 MiB, as the kernel does for ranges.
    """
    total = round_up(ram_bytes, 128 * MIB)
    if total < 2 * GIB:
        return 0
    return (256 * MIB if total < 64 * GIB else 512 * MIB) + SWIOTLB_MIN_BYTES


def swiotlb_bytes(ram_bytes: int) -> int:
    """Return the size of the bounce buffer: 6 % of RAM, from 64 MiB to 1 GiB, whole segments."""
    size = min(max(ram_bytes * 6 // 100, SWIOTLB_MIN_BYTES), SWIOTLB_MAX_BYTES)
    return round_up(size, SWIOTLB_SEGMENT_BYTES)


def jump_table_gpa(memmap: MemoryMap) -> int:
    """Return the page in which the firmware of this machine would keep the AP jump table.

    The last page of the largest *reserved* range between 1 MiB and 0xfec00000 that is memory and
    not a device window; the highest of equals; an ACPI NVS range if there is no reserved one. A
    map does not say which reserved range is memory. The rule: one that touches RAM, directly or
    over other ranges; firmware takes its memory from RAM, and windows lie behind a hole.

    Raises
    ------
    NoRoom
        There is no such range.
    """
    best: dict[int, tuple[int, int]] = {}
    for run in _touching(memmap):
        if not any(kind == E820Type.USABLE for _, _, kind in run):
            continue
        for start, end, kind in run:
            first, last = round_up(start, PAGE_BYTES), round_down(end, PAGE_BYTES)
            if first >= MIB and last <= MMIO_START and first < last:
                best[kind] = max(best.get(kind, (0, 0)), (last - first, last))
    for kind in (E820Type.RESERVED, E820Type.ACPI_NVS):
        if kind in best:
            return best[kind][1] - PAGE_BYTES
    raise NoRoom(
        "the AP jump table: a page of reserved memory", PAGE_BYTES, MIB, MMIO_START, largest=0
    )


def _touching(memmap: MemoryMap) -> Iterator[list[tuple[int, int, int]]]:
    """Yield runs of ranges with no hole between them."""
    run: list[tuple[int, int, int]] = []
    for row in memmap:
        if run and run[-1][1] != row[0]:
            yield run
            run = []
        run.append(row)
    yield run


def kexec_segments(
    memmap: MemoryMap, *, kernel_bytes: int = KERNEL_BYTES, initrd_bytes: int = INITRD_BYTES
) -> tuple[Region, ...]:
    """Return the segments of a new kernel as ``kexec_file_load`` places them in this map's RAM.

    Linux looks at RAM only, not at who uses it: these may lie over the running kernel. ``place``
    searches in the same order, but in what is still free.

    Raises
    ------
    NoRoom
        A segment has no place.
    """
    return _load(_Free(memmap.ram_ranges()), kernel_bytes, initrd_bytes)


def _load(free: _Free, kernel_bytes: int, initrd_bytes: int) -> tuple[Region, ...]:
    segments = [
        free.take(Part.PURGATORY, PURGATORY_BYTES, above=0x3000),
        free.take(Part.BOOT_PARAMS, BOOT_PARAMS_BYTES, above=0x3000),
        free.take(Part.NEW_KERNEL, kernel_bytes, align=LARGE_PAGE_BYTES, above=KERNEL_START),
    ]
    if initrd_bytes:
        segments.append(free.take(Part.NEW_INITRD, initrd_bytes, above=KERNEL_START))
    return tuple(segments)


def place(
    memmap: MemoryMap,
    n_cpus: int,
    *,
    kernel_bytes: int = KERNEL_BYTES,
    initrd_bytes: int = INITRD_BYTES,
    crash: int | None = None,
    jump_table: int | None = None,
) -> Layout:
    """Lay out a guest that has a kexec kernel and a crash kernel loaded.

    Parameters
    ----------
    memmap : MemoryMap
    n_cpus : int
        1 to ``MAX_CPUS``.
    kernel_bytes, initrd_bytes : int
        Size in memory of each kernel, old and new, and of its initrd (0: none); rounded up to
        pages.
    crash : int, optional
        Size of the crash reservation, 0 for none; ``crash_bytes`` of the RAM if not given.
    jump_table : int, optional
        Address of the AP jump table, 0 for a machine without one; ``jump_table_gpa`` if not given.
        One above 4 GiB is taken as it is: what a kernel makes of it is a scenario's business.

    Raises
    ------
    NoRoom
        Something has no place; says what, its size and between which addresses.
    OutOfRange, Unaligned
        An argument makes no sense, a jump table in RAM included.
    """
    if not 1 <= n_cpus <= MAX_CPUS:
        raise OutOfRange(f"{n_cpus} CPUs: must be 1 to {MAX_CPUS}")
    kernel_bytes = _pages("kernel_bytes", kernel_bytes, least=1)
    initrd_bytes = _pages("initrd_bytes", initrd_bytes)
    ram = memmap.ram_bytes
    crash = crash_bytes(ram) if crash is None else _pages("crash", crash)

    free = _Free(memmap.ram_ranges())
    old_text = free.take(
        Part.OLD_TEXT,
        kernel_bytes,
        align=LARGE_PAGE_BYTES,
        above=KERNEL_START,
        below=FOUR_GIB,
        top_down=False,
    )
    regions = [old_text, *_firmware(memmap, jump_table)]
    if initrd_bytes:
        regions.append(free.take(Part.OLD_INITRD, initrd_bytes))
    regions.append(free.take(Part.REAL_MODE, REAL_MODE_BYTES, below=MIB))
    regions.append(free.take(Part.PAGE_TABLES, _table_bytes(memmap)))
    regions += _crash(free, crash, swiotlb_bytes(ram))
    pv_bytes = n_cpus * PAGE_BYTES + round_up(n_cpus * CLOCK_BYTES, PAGE_BYTES)
    regions.append(free.take(Part.PV_PAGES, pv_bytes))
    regions.append(free.take(Part.GHCBS, n_cpus * PAGE_BYTES))
    regions.append(_swiotlb(free, swiotlb_bytes(ram)))
    regions.append(free.take(Part.STACKS, n_cpus * STACK_BYTES))
    regions += _load(free, kernel_bytes, initrd_bytes)
    regions.append(free.take(Part.CONTROL, CONTROL_BYTES))
    return Layout(memmap, n_cpus, tuple(sorted(regions, key=lambda region: region.start)))


def _pages(name: str, size_bytes: int, least: int = 0) -> int:
    if not least <= size_bytes <= GPA_LIMIT:
        raise OutOfRange(f"{name} {size_bytes}: must be {least} to 2**52")
    return round_up(size_bytes, PAGE_BYTES)


def _firmware(memmap: MemoryMap, jump_table: int | None) -> list[Region]:
    if jump_table is None:
        jump_table = jump_table_gpa(memmap)
    elif jump_table == 0:
        return []
    elif not 0 < jump_table < GPA_LIMIT:
        raise OutOfRange(f"jump table at {jump_table:#x}: not an address of 52 bits")
    elif jump_table % PAGE_BYTES:
        raise Unaligned(f"jump table at {jump_table:#x}: not 4 KiB aligned")
    for start, end, kind in memmap:
        inside = start < jump_table + PAGE_BYTES and jump_table < end
        if inside and kind == E820Type.USABLE:
            raise OutOfRange(
                f"jump table at {jump_table:#x}: lies in RAM {start:#x}-{end - 1:#x}, which the "
                "new kernel would use for itself; it must be reserved by the firmware"
            )
    return [Region(Part.JUMP_TABLE, jump_table, PAGE_BYTES)]


def _table_bytes(memmap: MemoryMap) -> int:
    """Size of the direct map's tables: one page for each level, 2 MiB leaves, four levels."""
    tables = 1
    for shift in (30, 39):  # what one table of 2 MiB leaves, and one of 1 GiB entries, covers
        covered = -1
        for start, end in memmap.ram_ranges():
            first, last = start >> shift, (end - 1) >> shift
            tables += last - max(first, covered + 1) + 1
            covered = last
    return tables * PAGE_BYTES


def _crash(free: _Free, size_bytes: int, swiotlb: int) -> list[Region]:
    if not size_bytes:
        return []
    try:
        return [free.take(Part.CRASH, size_bytes, align=CRASH_ALIGN_BYTES, below=FOUR_GIB)]
    except NoRoom as low:
        try:
            high = free.take(
                Part.CRASH,
                size_bytes,
                align=CRASH_ALIGN_BYTES,
                above=FOUR_GIB,
                below=CRASH_BELOW,
            )
        except NoRoom:
            raise low from None
    low_bytes = max(swiotlb + 8 * MIB, 256 * MIB)
    return [
        high,
        free.take(Part.CRASH_LOW, low_bytes, align=CRASH_ALIGN_BYTES, below=FOUR_GIB),
    ]


def _swiotlb(free: _Free, size_bytes: int) -> Region:
    """Halve the size until it fits, as Linux does; report the full size if nothing does."""
    smaller = size_bytes
    while True:
        try:
            return free.take(Part.SWIOTLB, smaller, below=FOUR_GIB)
        except NoRoom as refused:
            smaller = round_up(smaller // 2, SWIOTLB_SEGMENT_BYTES)
            if smaller < SWIOTLB_LEAST_BYTES:
                raise NoRoom(
                    refused.what, size_bytes, refused.above, refused.below, refused.largest
                ) from None

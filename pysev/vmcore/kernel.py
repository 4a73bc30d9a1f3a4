"""A crashed kernel as far as dump tools look into it: page tables, ``struct page``, its log.

Nothing here ever ran. It is what readelf, makedumpfile and drgn need to find their way: symbols
and offsets as VMCOREINFO names them (``pysev.vmcore.vmcoreinfo``), page tables with the C-bit in
their entries, one ``struct page`` for each page of RAM, the ring buffer of printk. The layout of
its structures is that of Linux 6.1 on x86-64; tools take all offsets from VMCOREINFO.

Simpler than Linux: leaves of the direct map are 1 GiB or 2 MiB (4 KiB at the edges of shared
memory); at most ``MAX_FREE_BLOCKS`` blocks of 4 MiB are on the free lists, all other memory counts
as the kernel's; the pages of the initrd are page cache, as those of a root file system in memory.

Units: ``gpa`` bytes; ``va`` kernel virtual addresses. Source: Linux 6.1 arch/x86/include/asm/
{page_64_types,pgtable_64_types}.h, mm_types.h, page-flags.h, kernel/printk/printk_ringbuffer.h.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ghcbcore.errors import OutOfRange
from pysev.layout import Part
from pysev.memmap import GIB, LARGE_PAGE_BYTES, PAGE_BYTES, format_size, round_down, round_up

from .image import Image
from .places import SECTION_BYTES, Places

__all__ = ["INFO_BYTES", "MAX_FREE_BLOCKS", "NOTE_BYTES", "Kernel"]

U64 = NDArray[np.uint64]

KERNEL_MAP = 0xFFFF_FFFF_8000_0000
KERNEL_BASE = 0x100_0000  # CONFIG_PHYSICAL_START: what the text is linked at, above KERNEL_MAP
DIRECT_MAP = 0xFFFF_8880_0000_0000
VMEMMAP = 0xFFFF_EA00_0000_0000

# Offsets in the kernel's image; text, then from DATA on what it writes.
TEXT_SYMBOLS = {
    "_stext": 0x0,
    "panic": 0x1000,
    "crash_nmi_callback": 0x2000,
    "default_idle": 0x3000,
    "stop_this_cpu": 0x4000,
}
DATA = 32 << 20
DATA_SYMBOLS = {
    "linux_banner": DATA,
    "init_uts_ns": DATA + 0x800,
    "prb": DATA + 0x1000,
    "clear_seq": DATA + 0x1800,
    "init_top_pgt": DATA + 0x2000,
    "vmcoreinfo_note": DATA + 0x5000,
    "node_online_map": DATA + 0x6000,
    "crash_notes": DATA + 0x80_0000,
}
LEVEL3, LEVEL2 = DATA + 0x3000, DATA + 0x4000
RINGBUFFER = DATA + 0x1100
DESCRIPTORS, RECORDS, LOG_TEXT = DATA + 0x1_0000, DATA + 0x2_0000, DATA + 0x4_0000
ROOTS = DATA + 0x8000  # of mem_section: 2048 pointers
IMAGE_BYTES = 48 << 20
INFO_BYTES = PAGE_BYTES
NOTE_BYTES = 512  # a crash note may not cross a page: rounded up to a power of two

# Bits of a page table entry, added up
TABLE = 0x063  # present, writable, accessed, dirty
LEAF = 0x0E3 | 1 << 63  # the same, large, not executable
SMALL_LEAF = 0x063 | 1 << 63
TEXT_LEAF = 0x0E3

LOG_COUNT_BITS, LOG_TEXT_BITS = 10, 16
LOG_FINALIZED = 2 << 62

STRUCT_PAGE = np.dtype(
    {
        "names": ["flags", "lru", "mapping", "index", "private", "mapcount", "refcount"],
        "formats": ["<u8", "<u8", "<u8", "<u8", "<u8", "<i4", "<i4"],
        "offsets": [0, 8, 24, 32, 40, 48, 52],
        "itemsize": 64,
    }
)
PAGES_PER_SECTION = SECTION_BYTES // PAGE_BYTES
SECTIONS_PER_ROOT = PAGE_BYTES // 16
SECTION_FLAGS = 0xF  # present, has a mem_map, online, early

FLAG = {"uptodate": 2, "lru": 4, "reserved": 12, "swapbacked": 19}
BUDDY, OFFLINE = -129, -257
MAX_ORDER = 10
BLOCK_BYTES = PAGE_BYTES << MAX_ORDER
MAX_FREE_BLOCKS = 1024


def _flags(*names: str) -> int:
    return sum(1 << FLAG[name] for name in names)


class Kernel:
    """The crashed kernel's memory.

    Parameters
    ----------
    places : Places
    c_bit : int
        The mask in page table entries of private pages; 0 of a machine without encryption.
    release : str
        ``uname -r``.
    all_private : bool
        No page is mapped shared any more.

    Attributes
    ----------
    image : Image
        Every page whose bytes are known, in clear text.
    symbols : dict
        Virtual address of each symbol.

    Raises
    ------
    OutOfRange
        The kernel's region is too small.
    """

    def __init__(
        self, places: Places, c_bit: int, release: str, *, all_private: bool = False
    ) -> None:
        self.places, self.c_bit, self.release = places, c_bit, release
        self.image = Image()
        self._shared = [] if all_private else [r for r in places.layout.regions if r.shared]
        text = places.region(Part.OLD_TEXT)
        if text.size_bytes < IMAGE_BYTES:
            raise OutOfRange(f"a kernel of {format_size(text.size_bytes)}: no room for its data")
        self.start, self.end = text.start, text.end
        self.phys_base = text.start - KERNEL_BASE
        self.symbols = {
            name: self.va(text.start + at) for name, at in (TEXT_SYMBOLS | DATA_SYMBOLS).items()
        }
        self.symbols["mem_section"] = self.va(text.start + ROOTS)
        self.symbols["swapper_pg_dir"] = self.symbols["init_top_pgt"]
        self._next_table = places.tables[0]
        self._text()
        self._map_text()
        self._map_ram()
        self._map_struct_pages()
        self._name_sections()
        self._describe_pages()

    def va(self, gpa: int) -> int:
        """Return where the kernel's own mapping has an address of its image."""
        return KERNEL_MAP + gpa - self.phys_base

    def direct(self, gpa: int) -> int:
        """Return where the direct map has an address of RAM."""
        return DIRECT_MAP + gpa

    def symbol_gpa(self, name: str) -> int:
        """Return where a symbol of the data lies."""
        return self.start + DATA_SYMBOLS[name]

    def note_gpa(self, cpu: int) -> int:
        """Return where a CPU's crash note lies."""
        return self.start + DATA_SYMBOLS["crash_notes"] + cpu * NOTE_BYTES

    # -- text and data ---------------------------------------------------------------------------

    def _text(self) -> None:
        banner = f"Linux version {self.release} (pysev) a kernel that never ran\n"
        for name, at in TEXT_SYMBOLS.items():
            self.image.put(self.start + at, f"{name}: text of {self.release}\0".encode())
        self.image.put(self.start + DATA_SYMBOLS["linux_banner"], banner.encode() + b"\0")
        fields = ("Linux", "pysev", self.release, "#1 SMP PREEMPT_DYNAMIC", "x86_64", "(none)")
        names = b"".join(word.encode().ljust(65, b"\0") for word in fields)
        self.image.put(self.start + DATA_SYMBOLS["init_uts_ns"], names)
        self.image.put(self.start + DATA_SYMBOLS["node_online_map"], struct.pack("<Q", 1))

    def log(self, messages: Sequence[tuple[int, str]]) -> None:
        """Fill printk's ring buffer: ``(nanoseconds, text)``, the latest that fit.

        Source: kernel/printk/printk_ringbuffer.h, of which this is the state after the last
        message was finalized.
        """
        size, count = 1 << LOG_TEXT_BITS, 1 << LOG_COUNT_BITS
        kept: list[tuple[int, bytes]] = []
        used = 0
        for at_ns, line in reversed(messages):
            raw = line.encode()[:1000]
            used += 8 + round_up(len(raw), 8)
            if used > size or len(kept) == count:
                break
            kept.insert(0, (at_ns, raw))
        position = 0
        for number, (at_ns, raw) in enumerate(kept):
            after = position + 8 + round_up(len(raw), 8)
            self._put(LOG_TEXT + position, struct.pack("<Q", number) + raw)
            descriptor = struct.pack("<QQQ", LOG_FINALIZED + number, position, after)
            self._put(DESCRIPTORS + number * 24, descriptor)
            record = struct.pack("<QQHBBI", number, at_ns, len(raw), 0, 6 << 5, 1)
            self._put(RECORDS + number * 88, record)
            position = after
        last = max(len(kept) - 1, 0)
        at = [self.va(self.start + offset) for offset in (DESCRIPTORS, RECORDS, LOG_TEXT)]
        ring = struct.pack("<QQQQQQ", LOG_COUNT_BITS, at[0], at[1], last, 0, last)
        text = struct.pack("<QQQQQ", LOG_TEXT_BITS, at[2], position, 0, 0)
        self._put(RINGBUFFER, ring + text)
        self._put(DATA_SYMBOLS["prb"], struct.pack("<Q", self.va(self.start + RINGBUFFER)))
        self._put(DATA_SYMBOLS["clear_seq"], bytes(8))

    def _put(self, offset: int, data: bytes) -> None:
        self.image.put(self.start + offset, data)

    # -- page tables -----------------------------------------------------------------------------

    def _table(self) -> int:
        at = self._next_table
        if at >= self.places.tables[1]:  # counted beforehand
            raise AssertionError(f"page tables end at {at:#x}")
        self._next_table += PAGE_BYTES
        self.image.touch(at)
        return at

    def _entry(self, table: int, index: int, value: int) -> None:
        self.image.put(table + index * 8, struct.pack("<Q", value))

    def _top(self, va: int, table: int) -> None:
        top = self.start + DATA_SYMBOLS["init_top_pgt"]
        self._entry(top, va // (512 * GIB) % 512, table + TABLE + self.c_bit)

    def _map_text(self) -> None:
        """KERNEL_MAP: 2 MiB leaves over the image."""
        level3, level2 = self.start + LEVEL3, self.start + LEVEL2
        self._top(KERNEL_MAP, level3)
        self._entry(level3, KERNEL_MAP // GIB % 512, level2 + TABLE + self.c_bit)
        first = KERNEL_BASE // LARGE_PAGE_BYTES
        gpas = np.arange(self.start, self.end, LARGE_PAGE_BYTES, dtype=np.uint64)
        self.image.put(level2 + first * 8, gpas + np.uint64(TEXT_LEAF + self.c_bit))

    def _map_ram(self) -> None:
        """The direct map: 1 GiB leaves of private RAM, 2 MiB where shared memory or a hole is."""
        ram = self.places.layout.memmap.ram_ranges()
        shared = [(region.start, region.end) for region in self._shared]
        region = self.places.region(Part.PAGE_TABLES)
        spare = iter(range(region.start, region.end, PAGE_BYTES))
        for slot in _touched(ram, 512 * GIB):
            level3 = next(spare)
            self._top(DIRECT_MAP + slot * 512 * GIB, level3)
            entries = np.zeros(512, np.uint64)
            inside = _clip(ram, slot * 512 * GIB, (slot + 1) * 512 * GIB)
            for number in _touched(inside, GIB):
                start, end = number * GIB, (number + 1) * GIB
                whole = _clip(ram, start, end) == [(start, end)]
                if whole and not _clip(shared, start, end):
                    entries[number % 512] = start + LEAF + self.c_bit
                else:
                    level2 = next(spare)
                    self._map_gib(level2, start, ram, shared)
                    entries[number % 512] = level2 + TABLE + self.c_bit
            self.image.put(level3, entries)

    def _map_gib(
        self,
        table: int,
        start: int,
        ram: Sequence[tuple[int, int]],
        shared: Sequence[tuple[int, int]],
    ) -> None:
        entries = np.zeros(512, np.uint64)
        for number in _touched(_clip(ram, start, start + GIB), LARGE_PAGE_BYTES):
            low = number * LARGE_PAGE_BYTES
            high = low + LARGE_PAGE_BYTES
            open_to_all = _clip(shared, low, high)
            if open_to_all in ([], [(low, high)]):
                entries[number % 512] = low + LEAF + (0 if open_to_all else self.c_bit)
                continue
            level1 = self._table()
            gpas = np.arange(low, high, PAGE_BYTES, dtype=np.uint64)
            leaves = gpas + np.uint64(SMALL_LEAF + self.c_bit)
            for first, end in open_to_all:
                leaves[(gpas >= first) & (gpas < end)] -= np.uint64(self.c_bit)
            self.image.put(level1, leaves)
            entries[number % 512] = level1 + TABLE + self.c_bit
        self.image.put(table, entries)

    def _map_struct_pages(self) -> None:
        """vmemmap: one 2 MiB leaf for each section."""
        sections, where = self.places.sections, self.places.vmemmap
        for top in np.unique(sections // (512 * 512)).tolist():
            level3 = self._table()
            self._top(VMEMMAP + top * 512 * GIB, level3)
            mine = sections[sections // (512 * 512) == top]
            for number in np.unique(mine // 512).tolist():
                level2 = self._table()
                self._entry(level3, number % 512, level2 + TABLE + self.c_bit)
                here = sections // 512 == number
                entries = np.zeros(512, np.uint64)
                leaf = np.uint64(LEAF + self.c_bit)
                entries[(sections[here] % 512).astype(np.intp)] = where[here] + leaf
                self.image.put(level2, entries)

    def _name_sections(self) -> None:
        """mem_section: SPARSEMEM_EXTREME, roots of 256; all point at vmemmap's beginning."""
        sections = self.places.sections
        for root in np.unique(sections // SECTIONS_PER_ROOT).tolist():
            page = self._table()
            mine = sections[sections // SECTIONS_PER_ROOT == root] % SECTIONS_PER_ROOT
            rows = np.zeros((SECTIONS_PER_ROOT, 2), np.uint64)
            rows[mine.astype(np.intp), 0] = VMEMMAP + SECTION_FLAGS
            self.image.put(page, rows)
            self.image.put(self.start + ROOTS + root * 8, struct.pack("<Q", self.direct(page)))

    # -- struct page -----------------------------------------------------------------------------

    def describe(self, start: int, pages: NDArray[np.void]) -> None:
        """Write the ``struct page`` of consecutive pages from an address on."""
        done = 0
        while done < len(pages):
            pfn = start // PAGE_BYTES + done
            section, index = divmod(pfn, PAGES_PER_SECTION)
            n = min(PAGES_PER_SECTION - index, len(pages) - done)
            which = int(np.searchsorted(self.places.sections, section))
            gpa = int(self.places.vmemmap[which]) + index * STRUCT_PAGE.itemsize
            self.image.put(gpa, pages[done : done + n])
            done += n

    def _describe_pages(self) -> None:
        """Free blocks, page cache; what is not described is the kernel's, count 0."""
        cache = self.places.layout
        if Part.OLD_INITRD in cache:
            region = cache[Part.OLD_INITRD]
            pages = np.zeros(region.size_bytes // PAGE_BYTES, STRUCT_PAGE)
            pages["flags"] = _flags("uptodate", "lru")
            pages["mapping"] = self.direct(self.start + DATA)
            pages["index"] = np.arange(len(pages))
            pages["mapcount"], pages["refcount"] = -1, 1
            self.describe(region.start, pages)
            self.image.put(region.start, b"a page of the root file system\0")
        for start in self.free_blocks():
            block = np.zeros(1, STRUCT_PAGE)
            block["mapcount"], block["private"] = BUDDY, MAX_ORDER
            self.describe(start, block)

    def free_blocks(self) -> list[int]:
        """Return the blocks of 4 MiB on the free lists, lowest first."""
        found: list[int] = []
        for start, end in self.places.free:
            last = round_down(end, BLOCK_BYTES)
            blocks = range(round_up(start, BLOCK_BYTES), last, BLOCK_BYTES)
            found += blocks[: MAX_FREE_BLOCKS - len(found)]
        return found

    def set_offline(self, gpa: int) -> None:
        """Mark a page PageOffline: dump tools leave it out at any level."""
        page = np.zeros(1, STRUCT_PAGE)
        page["mapcount"], page["refcount"] = OFFLINE, 1
        self.describe(gpa, page)


def _touched(ranges: Sequence[tuple[int, int]], size: int) -> list[int]:
    """Return the numbers of the pieces of this size in which ranges lie."""
    return sorted({n for start, end in ranges for n in range(start // size, -(-end // size))})


def _clip(ranges: Sequence[tuple[int, int]], low: int, high: int) -> list[tuple[int, int]]:
    """Return what of the ranges lies between two addresses; ranges that touch become one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        start, end = max(start, low), min(end, high)
        if start < end:
            if found and found[-1][1] == start:
                start = found.pop()[0]
            found.append((start, end))
    return found

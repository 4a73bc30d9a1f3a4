"""Memory maps of guests: ranges of guest-physical addresses, each with a kind.

``MemoryMap`` is what the firmware tells the kernel. It is read from a boot log
(``MemoryMap.from_file``), or made up for a plain QEMU guest of a given size (``MemoryMap.flat``).
Who lies where in it is the business of ``pysev.layout``.

Units: ``gpa`` and everything called ``start``, ``end`` or ``..._bytes`` counts bytes; ends are
exclusive. Work and memory grow with the number of ranges, never with the size of the guest.

Source: Linux ``arch/x86/kernel/e820.c`` (form and wording of the lines); QEMU
``hw/i386/{pc,pc_q35}.c`` and a boot log of OVMF (the plain guest).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange, SevError, Unaligned

__all__ = [
    "MAX_LINE_CHARS",
    "MAX_RANGES",
    "BadMap",
    "BadSize",
    "E820Type",
    "MemoryMap",
    "NoRoom",
    "format_size",
    "kind_name",
    "parse_size",
]

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40
PAGE_BYTES: Final[int] = lib.GHCB_PAGE_SIZE
LARGE_PAGE_BYTES: Final = 1 << 21
FOUR_GIB: Final = 1 << 32
GPA_LIMIT: Final = 1 << 52  # physical addresses of the architecture end here

MAX_RANGES: Final = 3200  # E820_MAX_ENTRIES: 128 + 3 * MAX_NUMNODES, 1024 nodes
MAX_LINE_CHARS: Final = 1 << 16

# What a plain guest looks like. QEMU q35 keeps all RAM below 4 GiB while it is less than 2.75 GiB
# and splits it at 2 GiB otherwise; OVMF takes its holes out of that (tests/data/e820_ovmf_qemu_2g).
FLAT_MIN_BYTES: Final = 16 * MIB
FLAT_SPLIT_FROM_BYTES: Final = 0xB000_0000
FLAT_LOW_BYTES: Final = 0x8000_0000
FLAT_RESERVED_BYTES: Final = 0x2_0000  # reserved, right below ...
FLAT_TOP_NVS_BYTES: Final = 0x9_0000  # ... the ACPI NVS range that ends the low RAM
HT_START: Final = 0xFD_0000_0000  # QEMU AMD_HT_START: HyperTransport's range, up to 1 TiB
PCI_HOLE64_BYTES: Final = 32 * GIB  # QEMU q35 default

U64: TypeAlias = NDArray[np.uint64]
Ranges: TypeAlias = tuple[tuple[int, int], ...]


class BadSize(SevError, ValueError):
    """A text does not say a size."""


class BadMap(SevError, ValueError):
    """A text, or a list of ranges, is not a memory map; the message names file and line."""


class NoRoom(SevError, ValueError):
    """A map has no place for something; the attributes say what, how large, and within what."""

    def __init__(self, what: str, size_bytes: int, above: int, below: int, largest: int) -> None:
        super().__init__(
            f"no room for {what} ({format_size(size_bytes)}) {_limits(above, below)}: "
            f"the largest free piece there has {format_size(largest)}"
        )
        self.what = what
        self.size_bytes = size_bytes
        self.above = above
        self.below = below
        self.largest = largest

    def __reduce__(self) -> tuple[type[NoRoom], tuple[str, int, int, int, int]]:
        return NoRoom, (self.what, self.size_bytes, self.above, self.below, self.largest)


def _limits(above: int, below: int) -> str:
    upper = {MIB: "1 MiB", FOUR_GIB: "4 GiB"}.get(below, f"{below:#x}")
    if above == 0:
        return f"below {upper}"
    return f"from {above:#x}" if below >= GPA_LIMIT else f"from {above:#x}, below {upper}"


# Sizes ------------------------------------------------------------------------------------------

_SIZE = re.compile(
    r"(?P<sign>[+-]?)(?:(?P<hex>0x[0-9a-f]+)|(?P<number>[0-9]+(?:\.[0-9]+)?))"
    r"\s*(?P<unit>[kmgtp](?:ib)?)?",
    re.IGNORECASE | re.ASCII,
)
_UNITS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": TIB, "p": 1 << 50}


def parse_size(text: str) -> int:
    """Return the bytes of a memory size as people write it.

    Parameters
    ----------
    text : str
        A decimal number, with a fraction if a unit follows, or a hexadecimal one with ``0x``;
        then an optional unit K, M, G, T or P (powers of 1024, in either case, with or without
        ``iB``).

    Raises
    ------
    BadSize
        Not a size.
    OutOfRange
        Zero, negative, or above 2**52.
    Unaligned
        Not a whole number of 4 KiB pages.

    Examples
    --------
    >>> parse_size("4T") == 4 << 40, parse_size("1.5G"), hex(parse_size("0x100000"))
    (True, 1610612736, '0x100000')
    """
    shown = repr(text if len(text) <= 40 else text[:37] + "...")
    match = _SIZE.fullmatch(text.strip()) if len(text) <= 64 else None
    if match is None:
        raise BadSize(f"size {shown}: not a number with K, M, G, T or P, as in 256G or 0x100000")
    unit = _UNITS[(match["unit"] or "")[:1].lower()]
    exact = unit * (int(match["hex"], 16) if match["hex"] else Fraction(match["number"]))
    if match["sign"] == "-" and exact:
        raise OutOfRange(f"size {shown}: negative")
    if exact == 0:
        raise OutOfRange(f"size {shown}: zero")
    if exact > GPA_LIMIT:
        raise OutOfRange(f"size {shown}: above 2**52 bytes, the end of physical addresses")
    if exact % PAGE_BYTES:
        raise Unaligned(f"size {shown}: not a whole number of 4 KiB pages")
    return int(exact)


def format_size(size_bytes: int) -> str:
    """Return a size with the largest unit that keeps it exact; ``parse_size`` reads it back."""
    for unit, factor in (("P", 1 << 50), ("T", TIB), ("G", GIB), ("M", MIB), ("K", KIB)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return f"{size_bytes}"


# Kinds of ranges --------------------------------------------------------------------------------


class E820Type(IntEnum):
    """The kinds that the kernel has a name for; other numbers stay what they are."""

    USABLE = 1
    RESERVED = 2
    ACPI_DATA = 3
    ACPI_NVS = 4
    UNUSABLE = 5
    PERSISTENT = 7
    PERSISTENT_LEGACY = 12
    SOFT_RESERVED = 0xEFFF_FFFF


_KIND_NAMES: Final[dict[int, str]] = {
    E820Type.USABLE: "usable",
    E820Type.RESERVED: "reserved",
    E820Type.ACPI_DATA: "ACPI data",
    E820Type.ACPI_NVS: "ACPI NVS",
    E820Type.UNUSABLE: "unusable",
    E820Type.PERSISTENT: "persistent (type 7)",
    E820Type.PERSISTENT_LEGACY: "persistent (type 12)",
    E820Type.SOFT_RESERVED: "soft reserved",
}
# Kernels from 2025 on use two other words for the most common kinds.
_KINDS: Final[dict[str, int]] = {name: int(kind) for kind, name in _KIND_NAMES.items()} | {
    "System RAM": int(E820Type.USABLE),
    "device reserved": int(E820Type.RESERVED),
}
_OTHER_KIND = re.compile(r"type ([1-9][0-9]{0,9})", re.ASCII)


def kind_name(kind: int) -> str:
    """Return a kind as dmesg spells it: ``usable``, ``ACPI NVS``, ``type 20``."""
    return _KIND_NAMES.get(kind, f"type {kind}")


def _kind_from_name(text: str) -> int | None:
    if text in _KINDS:
        return _KINDS[text]
    other = _OTHER_KIND.fullmatch(text)
    kind = int(other[1]) if other else 0
    return kind if 0 < kind < 1 << 32 else None


# The map ----------------------------------------------------------------------------------------

_ENTRY = re.compile(
    r"(?P<bios>BIOS-)?\be820:\s*\[mem (?P<start>[^\]\s-]+)-(?P<last>[^\]\s-]+)\](?P<kind>.*)"
)
_ADDRESS = re.compile(r"0x[0-9a-f]{1,16}", re.IGNORECASE | re.ASCII)


class MemoryMap:
    """Ranges of guest-physical addresses, sorted, without overlap; immutable.

    Parameters
    ----------
    ranges : iterable of (start, end, kind)
        Bytes, ``end`` exclusive, in any order; they need not be page aligned.
    name : str
        Where the map comes from, for messages.

    Attributes
    ----------
    start, end : uint64 array, shape (n,), read-only
    kind : uint32 array, shape (n,), read-only
        ``E820Type``, or a number it has no name for.

    Raises
    ------
    BadMap
        A range ends before it starts, reaches above 52 bits or has no valid kind; two ranges
        overlap; there are none, or more than ``MAX_RANGES``; no whole page is usable RAM.

    Notes
    -----
    Addresses between the ranges are holes (``holes``). RAM is what is usable, joined where ranges
    touch and then rounded inward to 4 KiB pages, as the kernel does: the 3 KiB that a legacy BIOS
    leaves below 0x9fc00 are nobody's.
    """

    __slots__ = ("_ram", "_ram_end", "_ram_start", "end", "kind", "name", "start")

    start: U64
    end: U64
    kind: NDArray[np.uint32]
    name: str
    _ram: Ranges
    _ram_start: U64
    _ram_end: U64

    def __init__(
        self,
        ranges: Iterable[tuple[int, int, int]],
        name: str = "<ranges>",
        *,
        _where: Sequence[str] | None = None,
    ) -> None:
        rows = [(int(start), int(end), int(kind)) for start, end, kind in ranges]
        where = _where or [f"{name}: range {i}" for i in range(len(rows))]
        if not rows:
            raise BadMap(f"{name}: no range")
        if len(rows) > MAX_RANGES:
            raise BadMap(f"{name}: more than {MAX_RANGES} ranges")
        for row, label in zip(rows, where, strict=True):
            _check_range(*row, label)
        order = sorted(range(len(rows)), key=rows.__getitem__)
        for before, after in pairwise(order):
            if rows[after][0] < rows[before][1]:
                raise BadMap(
                    f"{where[after]}: {_range_text(*rows[after])} overlaps "
                    f"{_range_text(*rows[before])} of {where[before]}"
                )
        rows = [rows[i] for i in order]
        ram = _whole_pages((start, end) for start, end, kind in rows if kind == E820Type.USABLE)
        if not ram:
            raise BadMap(f"{name}: no usable RAM")
        for field, value in (
            ("start", _frozen([row[0] for row in rows], np.uint64)),
            ("end", _frozen([row[1] for row in rows], np.uint64)),
            ("kind", _frozen([row[2] for row in rows], np.uint32)),
            ("name", name),
            ("_ram", ram),
            ("_ram_start", _frozen([start for start, _ in ram], np.uint64)),
            ("_ram_end", _frozen([end for _, end in ram], np.uint64)),
        ):
            object.__setattr__(self, field, value)

    @classmethod
    def from_text(
        cls, lines: str | Iterable[str] | Iterable[bytes], name: str = "<text>"
    ) -> MemoryMap:
        """Read the map out of a boot log.

        Parameters
        ----------
        lines : str, iterable of lines, or an open file
            Each line ``... BIOS-e820: [mem 0x...-0x...] kind`` is a range, whatever stands before
            it (a time, a host name); so is ``e820: [mem ...] kind`` if the kind is known. All
            other lines are passed over, those included that report what the kernel changed later
            (``e820: remove``, ``update`` and ``reserve``) and the gaps that newer kernels print.
        name : str
            File name for messages.

        Raises
        ------
        BadMap
            What ``MemoryMap`` refuses; also a line of more than ``MAX_LINE_CHARS`` characters (no
            more than that is ever read of it from a file), a NUL byte, no map in the text, a
            ``BIOS-e820: [mem`` line that cannot be read.
        """
        rows: list[tuple[int, int, int]] = []
        where: list[str] = []
        for number, line in _numbered(lines, name):
            row = _parse_entry(line, f"{name}:{number}")
            if row is None:
                continue
            rows.append(row)
            where.append(f"{name}:{number}")
            if len(rows) > MAX_RANGES:
                raise BadMap(f"{name}:{number}: more than {MAX_RANGES} ranges")
        if not rows:
            raise BadMap(f"{name}: no line like 'BIOS-e820: [mem 0x0-0x9ffff] usable'")
        return cls(rows, name, _where=where)

    @classmethod
    def from_file(cls, path: str | Path) -> MemoryMap:
        """Read the map out of a file; see ``from_text``. ``OSError`` passes through."""
        with Path(path).open("rb") as stream:
            return cls.from_text(stream, str(path))

    @classmethod
    def flat(cls, size_bytes: int, *, ht_hole: bool = False) -> MemoryMap:
        """Return the map of a plain QEMU q35 guest with OVMF and ``size_bytes`` of memory.

        Memory below 4 GiB is all of it up to 2.75 GiB, 2 GiB of larger guests; the rest starts at
        4 GiB. The VGA and ROM window and what OVMF keeps for itself is not RAM, so ``ram_bytes``
        is about 3 MiB less than ``size_bytes``. Of OVMF's ranges near the top of low memory only
        the last two are modelled: reserved pages (one of them for the AP jump table) and ACPI NVS.

        With ``ht_hole``, a guest that would reach into the HyperTransport range just below 1 TiB
        has its upper memory from 1 TiB on, as QEMU 7.1 and later do for AMD processors (from about
        978 GiB up).

        Raises
        ------
        OutOfRange, Unaligned
            Less than 16 MiB, more than 52 address bits hold, not whole pages.
        """
        if size_bytes % PAGE_BYTES:
            raise Unaligned(f"guest of {size_bytes:#x} bytes: not a whole number of 4 KiB pages")
        if size_bytes < FLAT_MIN_BYTES:
            raise OutOfRange(
                f"guest of {format_size(size_bytes)}: "
                f"a flat map needs {format_size(FLAT_MIN_BYTES)}"
            )
        low = size_bytes if size_bytes < FLAT_SPLIT_FROM_BYTES else FLAT_LOW_BYTES
        above = size_bytes - low
        high = FOUR_GIB
        if ht_hole and above and round_up(high + above, GIB) + PCI_HOLE64_BYTES > HT_START:
            high = TIB
        if high + above > GPA_LIMIT:
            raise OutOfRange(f"guest of {size_bytes:#x} bytes: its end is above 52 address bits")
        nvs = low - FLAT_TOP_NVS_BYTES
        reserved = nvs - FLAT_RESERVED_BYTES
        rows: list[tuple[int, int, int]] = [
            (0x0, 0xA_0000, E820Type.USABLE),
            (0x10_0000, 0x80_0000, E820Type.USABLE),
            (0x80_0000, 0x80_8000, E820Type.ACPI_NVS),
            (0x80_8000, 0x81_0000, E820Type.USABLE),
            (0x81_0000, 0x90_0000, E820Type.ACPI_NVS),
            (0x90_0000, reserved, E820Type.USABLE),
            (reserved, nvs, E820Type.RESERVED),
            (nvs, low, E820Type.ACPI_NVS),
        ]
        if above:
            rows.append((high, high + above, E820Type.USABLE))
        return cls(rows, f"flat {format_size(size_bytes)}")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a MemoryMap is immutable: {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a MemoryMap is immutable: {name}")

    def __reduce__(self) -> tuple[type[MemoryMap], tuple[list[tuple[int, int, int]], str]]:
        return MemoryMap, (list(self), self.name)

    def __len__(self) -> int:
        return len(self.start)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Yield ``(start, end, kind)``, lowest first."""
        return zip(self.start.tolist(), self.end.tolist(), self.kind.tolist(), strict=True)

    def __eq__(self, other: object) -> bool:
        """Say whether the ranges are the same; names do not matter."""
        return isinstance(other, MemoryMap) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return (
            f"<MemoryMap {self.name}: {len(self)} ranges, {len(self._ram)} of RAM, "
            f"{self.n_pages} pages>"
        )

    def as_text(self) -> str:
        """Return the map as dmesg prints it; ``from_text`` reads it back."""
        return "".join(
            f"BIOS-e820: [mem {start:#018x}-{end - 1:#018x}] {kind_name(kind)}\n"
            for start, end, kind in self
        )

    @property
    def ram_bytes(self) -> int:
        """Bytes of RAM, whole pages only."""
        return sum(end - start for start, end in self._ram)

    @property
    def n_pages(self) -> int:
        """4 KiB pages of RAM."""
        return self.ram_bytes // PAGE_BYTES

    @property
    def ram_end(self) -> int:
        """End of the highest RAM; the boot log's ``last_pfn`` in bytes."""
        return self._ram[-1][1]

    def ram_ranges(self) -> Ranges:
        """Return ``(start, end)`` of each stretch of RAM, page aligned, touching ones joined."""
        return self._ram

    def holes(self) -> Ranges:
        """Return ``(start, end)`` of what no range names, from 0 to the end of the last range."""
        edges = [0, *self.end.tolist()]
        return tuple(
            (before, after)
            for before, after in zip(edges, self.start.tolist(), strict=False)
            if before < after
        )

    def bytes_by_kind(self) -> dict[str, int]:
        """Return the bytes of each kind by its name, as the map has them (not rounded)."""
        sums: dict[str, int] = {}
        for start, end, kind in self:
            name = kind_name(kind)
            sums[name] = sums.get(name, 0) + end - start
        return sums

    def is_ram(self, gpas: ArrayLike) -> NDArray[np.bool_]:
        """Say for each address, an integer array of any shape, whether it lies in RAM."""
        wanted = _as_gpas(gpas)
        found = np.searchsorted(self._ram_start, wanted, side="right")
        inside: NDArray[np.bool_] = wanted < self._ram_end[np.maximum(found, 1) - 1]
        return inside & (found > 0)

    def kind_at(self, gpas: ArrayLike) -> NDArray[np.uint32]:
        """Return for each address the kind of its range, 0 in a hole."""
        wanted = _as_gpas(gpas)
        found = np.searchsorted(self.start, wanted, side="right")
        index = np.maximum(found, 1) - 1
        inside = (found > 0) & (wanted < self.end[index])
        return np.where(inside, self.kind[index], np.uint32(0))

    def find(
        self,
        size_bytes: int,
        *,
        align: int = PAGE_BYTES,
        above: int = 0,
        below: int = GPA_LIMIT,
        top_down: bool = False,
    ) -> int:
        """Return the lowest (highest, if ``top_down``) place for ``size_bytes`` of RAM.

        All of it lies in one stretch of RAM, from ``above`` on and ending at ``below`` at most;
        its start is a multiple of ``align``, a power of two.

        Raises
        ------
        NoRoom
            There is no such place.
        OutOfRange
            ``size_bytes`` is not positive, ``align`` not a power of two.
        """
        if size_bytes <= 0:
            raise OutOfRange(f"size_bytes {size_bytes}: not positive")
        if align <= 0 or align & (align - 1):
            raise OutOfRange(f"align {align:#x}: not a power of two")
        gpa = fit_range(self._ram, size_bytes, align, above, below, top_down)
        if gpa is None:
            raise NoRoom("RAM", size_bytes, above, below, largest_range(self._ram, above, below))
        return gpa


def _check_range(start: int, end: int, kind: int, where: str) -> None:
    if end <= start:
        raise BadMap(f"{where}: range {start:#x}-{end - 1:#x} ends before it starts")
    if start < 0 or end > GPA_LIMIT:
        raise BadMap(f"{where}: range {start:#x}-{end - 1:#x} lies above 52 address bits")
    if not 0 < kind < 1 << 32:
        raise BadMap(f"{where}: kind {kind} of a range is not a number from 1 to 2**32 - 1")


def _range_text(start: int, end: int, kind: int) -> str:
    return f"{start:#x}-{end - 1:#x} ({kind_name(kind)})"


def _frozen(values: list[int], dtype: Any) -> NDArray[Any]:
    array: NDArray[Any] = np.array(values, dtype)
    array.setflags(write=False)
    return array


def _as_gpas(gpas: ArrayLike) -> U64:
    array = np.asarray(gpas)
    if array.size == 0:
        return array.astype(np.uint64)
    if array.dtype.kind not in "iu":
        raise OutOfRange(f"gpas: dtype {array.dtype} is not an integer of 64 bits or less")
    if array.dtype.kind == "i" and array.min() < 0:
        raise OutOfRange(f"gpas: {int(array.min())} is negative")
    return array.astype(np.uint64, copy=False)


def _whole_pages(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Join sorted ranges that touch, then round each inward to pages."""
    joined: list[tuple[int, int]] = []
    for start, end in ranges:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    rounded = [(round_up(start, PAGE_BYTES), round_down(end, PAGE_BYTES)) for start, end in joined]
    return tuple((start, end) for start, end in rounded if start < end)


def round_up(value: int, align: int) -> int:
    return -(-value // align) * align


def round_down(value: int, align: int) -> int:
    return value // align * align


def _numbered(lines: str | Iterable[str] | Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Yield line numbers and lines; of an open file never more than the limit at a time."""
    source: Iterable[str | bytes]
    if isinstance(lines, str):
        source = lines.split("\n")
    else:
        source = _bounded(lines) if hasattr(lines, "readline") else lines
    for number, raw in enumerate(source, 1):
        if len(raw) > MAX_LINE_CHARS:
            raise BadMap(f"{name}:{number}: a line of more than {MAX_LINE_CHARS} characters")
        # Latin-1 gives every byte a character; what matters here is ASCII anyway.
        line = raw.decode("latin-1") if isinstance(raw, bytes) else raw
        if "\0" in line:
            raise BadMap(f"{name}:{number}: a NUL byte; this is not a text file")
        yield number, line


def _bounded(stream: Any) -> Iterator[str | bytes]:
    while piece := stream.readline(MAX_LINE_CHARS + 1):
        yield piece


def _parse_entry(line: str, where: str) -> tuple[int, int, int] | None:
    """Return the range of one line, ``None`` if the line is about something else."""
    match = _ENTRY.search(line)
    if match is None:
        if "BIOS-e820: [mem" in line:
            raise BadMap(f"{where}: cannot read {_excerpt(line)}")
        return None
    kind = _kind_from_name(match["kind"].strip())
    good = _ADDRESS.fullmatch(match["start"]) and _ADDRESS.fullmatch(match["last"])
    if kind is None or not good:
        if match["bios"]:
            what = "range" if not good else "kind"
            raise BadMap(f"{where}: unknown {what} in {_excerpt(line)}")
        return None  # "e820: [mem ...] available for PCI devices" and the like
    row = int(match["start"], 16), int(match["last"], 16) + 1, kind
    _check_range(*row, where)
    return row


def _excerpt(line: str) -> str:
    text = line.strip()
    return repr(text if len(text) <= 120 else text[:117] + "...")


def fit_range(
    free: Iterable[tuple[int, int]], size_bytes: int, align: int, above: int, below: int, top: bool
) -> int | None:
    best = None
    for start, end in free:
        first = round_up(max(start, above), align)
        last = round_down(min(end, below) - size_bytes, align)
        if first <= last:
            if not top:
                return first
            best = last
    return best


def largest_range(free: Iterable[tuple[int, int]], above: int, below: int) -> int:
    return max([0, *(min(end, below) - max(start, above) for start, end in free)])


# The layout -------------------------------------------------------------------------------------

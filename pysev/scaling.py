"""What a machine's size costs: work that grows with its memory, its memory map or its CPUs.

Each function computes from the machine's layout how much there is to do and how long that takes
with the costs of now (``pysev.costs``). A flow puts it into one operation:
``op("unshare all memory", cost=unshare(machine).ns, ...)``.

Counts are exact for the layout; times are only as good as the assumptions among the costs.

Source: Linux arch/x86/coco/sev/core.c (``snp_kexec_finish``: a walk over the leaves of the direct
map, each leaf that is shared a request of its own; GHCBs last, by the MSR protocol),
arch/x86/kernel/kvm.c (a hypercall for each RAM entry of E820).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ghcbcore.errors import OutOfRange

from . import costs
from .layout import Part
from .machine import Machine
from .memmap import (
    FOUR_GIB,
    GIB,
    GPA_LIMIT,
    LARGE_PAGE_BYTES,
    PAGE_BYTES,
    TIB,
    E820Type,
    MemoryMap,
    format_size,
)

__all__ = [
    "WORK",
    "Work",
    "accept",
    "grow",
    "migration_reset",
    "scaling_json",
    "scaling_text",
    "shut_aps_down",
    "tdx_unshare",
    "unshare",
    "unshare_ghcbs",
    "wbinvd",
]

ENTRY_BYTES: Final = (512 * GIB, GIB, LARGE_PAGE_BYTES, PAGE_BYTES)
"""What one entry of a page table spans, largest first: a hole is passed over by whole entries."""


@dataclass(frozen=True)
class Work:
    """So much to do: how often, how many VMGEXITs are among it, and nanoseconds in all.

    Attributes
    ----------
    parts : dict of str to int
        Nanoseconds of what a flow does in operations of their own; they add up to ``ns``.
    """

    what: str
    counts: dict[str, int]
    exits: int
    ns: int
    formula: str
    parts: dict[str, int] = field(default_factory=dict)


def unshare(machine: Machine) -> Work:
    """snp_kexec_finish without the GHCBs: look at every leaf, make shared ones private.

    The direct map has leaves of 2 MiB where RAM is aligned and nothing in it was shared by pages.
    The bounce buffer is shared in large leaves; GHCBs and paravirtual pages one by one.
    """
    large, small, holes = _leaves(machine)
    shared = _shared_leaves(machine)
    lookups = large + small + holes
    compares = shared * machine.n_cpus
    parts = {
        "PTE": lookups * costs.LEAF_LOOKUP + compares * costs.GHCB_COMPARE,
        "PSC": shared * (costs.VMGEXIT + costs.RMPUPDATE),
        "PVALIDATE": shared * costs.PVALIDATE,
    }
    counts = {"look-ups": lookups, "comparisons": compares, "shared leaves": shared}
    return Work(
        "unshare all memory but the GHCBs",
        counts,
        shared,
        sum(parts.values()),
        "look-ups * leaf_lookup + comparisons * ghcb_compare "
        "+ shared leaves * (vmgexit + rmpupdate + pvalidate)",
        parts,
    )


def unshare_ghcbs(machine: Machine) -> Work:
    """The GHCBs, last, by the MSR protocol: one page a VMGEXIT."""
    n = machine.n_cpus
    exits = -(-n // max(1, costs.PSC_MSR_PAGES))
    parts = {
        "PTE": 0,
        "PSC": exits * costs.VMGEXIT + n * costs.RMPUPDATE,
        "PVALIDATE": n * costs.PVALIDATE,
    }
    return Work(
        "unshare the GHCBs by the MSR protocol",
        {"pages": n},
        exits,
        sum(parts.values()),
        "pages / psc_msr_pages * vmgexit + pages * (rmpupdate + pvalidate)",
        parts,
    )


def tdx_unshare(machine: Machine) -> Work:
    """tdx_kexec_finish: look at every leaf, take the bounce buffer back.

    A TD has no GHCBs. A page of 4 KiB is converted and accepted by itself, as in the reports.
    """
    lookups = sum(_leaves(machine))
    swiotlb = _swiotlb(machine)
    pages = (swiotlb[1] - swiotlb[0]) // PAGE_BYTES if swiotlb else 0
    parts = {"PTE": lookups * costs.LEAF_LOOKUP, "convert": pages * costs.TDX_CONVERT}
    return Work(
        "unshare all memory of a TD",
        {"look-ups": lookups, "shared pages": pages},
        0,
        sum(parts.values()),
        "look-ups * leaf_lookup + shared pages * tdx_convert",
        parts,
    )


def accept(machine: Machine) -> Work:
    """All RAM private and validated for the first time, in pages of 2 MiB where it is aligned."""
    large = small = 0
    for start, end in machine.layout.memmap.ram_ranges():
        n = _large_in(start, end)
        large += n
        small += (end - start - n * LARGE_PAGE_BYTES) // PAGE_BYTES
    exits = -(-(large + small) // costs.PSC_ENTRIES)
    ns = exits * costs.VMGEXIT + (large + small) * (costs.RMPUPDATE + costs.PVALIDATE)
    return Work(
        "accept all memory",
        {"2 MiB pages": large, "4 KiB pages": small},
        exits,
        ns,
        "pages / psc_entries * vmgexit + pages * (rmpupdate + pvalidate)",
    )


def migration_reset(machine: Machine) -> Work:
    """Tell the VMM that all RAM is encrypted: hypercalls for each RAM entry of E820, one caller."""
    entries = sum(kind == E820Type.USABLE for _, _, kind in machine.layout.memmap)
    calls = entries * costs.MIGRATION_RESET_CALLS
    return Work(
        "reset the list of shared pages",
        {"RAM entries": entries},
        calls,
        calls * costs.HYPERCALL_USER,
        "RAM entries * migration_reset_calls * hypercall_user",
    )


def shut_aps_down(machine: Machine) -> Work:
    """Destroy every AP and clear the tag of its VMSA."""
    n = machine.n_cpus - 1
    exits = n * costs.AP_SHUTDOWN_EXITS
    return Work(
        "shut the APs down",
        {"APs": n},
        exits,
        exits * costs.VMGEXIT + n * costs.RMPADJUST,
        "APs * (ap_shutdown_exits * vmgexit + rmpadjust)",
    )


def wbinvd(machine: Machine, n_at_once: int | None = None) -> Work:
    """WBINVD of CPUs at the same time, all of them if not said otherwise; time until the last."""
    n = machine.n_cpus if n_at_once is None else n_at_once
    ns = costs.WBINVD + costs.WBINVD * costs.WBINVD_SERIAL * max(0, n - 1) // 100
    return Work(
        "WBINVD of all CPUs at once",
        {"CPUs": n},
        0,
        ns if n else 0,
        "wbinvd * (1 + wbinvd_serial * (CPUs - 1))",
    )


WORK: Final[tuple[Callable[[Machine], Work], ...]] = (
    accept,
    migration_reset,
    shut_aps_down,
    unshare,
    unshare_ghcbs,
    tdx_unshare,
    wbinvd,
)


def scaling_text(machine: Machine) -> str:
    """Return what this machine's size costs, for people."""
    ram = machine.layout.memmap.ram_bytes
    lines = [f"\nwhat {machine.n_cpus} CPUs and {_about(ram)} of RAM make of them\n\n"]
    for one in WORK:
        work = one(machine)
        counts = ", ".join(f"{n} {what}" for what, n in work.counts.items())
        exits = f", {work.exits} VMGEXITs" if work.exits else ""
        lines.append(f"{work.what}: {costs.seconds_text(work.ns)} ({counts}{exits})\n")
        lines.append(f"    {work.formula}\n")
    return "".join(lines)


def scaling_json(machine: Machine) -> list[dict[str, object]]:
    """Return what this machine's size costs, for ``--json``."""
    works = [one(machine) for one in WORK]
    return [
        {
            "what": work.what,
            "counts": work.counts,
            "vmgexits": work.exits,
            "seconds": work.ns / 1e9,
            "formula": work.formula,
        }
        for work in works
    ]


def grow(memmap: MemoryMap, ram_bytes: int) -> MemoryMap:
    """Return a map of the same form with so much RAM.

    What lies below 4 GiB stays. RAM above is stretched, or shrunk, piece by piece in proportion, in
    whole 2 MiB; what lies between the pieces keeps its size and moves. A map without RAM there gets
    a piece, from 4 GiB or from where the map ends.

    Raises
    ------
    OutOfRange
        The map has more RAM than that below 4 GiB, or the end is above 52 address bits.
    """
    low = [row for row in memmap if row[1] <= FOUR_GIB]
    high = [row for row in memmap if row[1] > FOUR_GIB]
    if not any(kind == E820Type.USABLE for _, _, kind in high):
        end = max((end for _, end, _ in high), default=0)
        start = max(FOUR_GIB, -(-end // GIB) * GIB)
        high.append((start, start + LARGE_PAGE_BYTES, int(E820Type.USABLE)))
    had = sum(end - start for start, end, kind in high if kind == E820Type.USABLE)
    below = sum(
        min(end, FOUR_GIB) - start for start, end in memmap.ram_ranges() if start < FOUR_GIB
    )
    want = ram_bytes - below
    if want < LARGE_PAGE_BYTES:
        raise OutOfRange(
            f"{memmap.name}: it has {format_size(below)} of RAM below 4 GiB; "
            f"it cannot be shrunk to {format_size(ram_bytes)}"
        )
    last = max(i for i, row in enumerate(high) if row[2] == E820Type.USABLE)
    rows, moved, left = list(low), 0, want
    for i, (start, end, kind) in enumerate(high):
        size = end - start
        if kind == E820Type.USABLE:
            size = size * want // had // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES
            size = left if i == last else size
            left -= size
        if size:
            rows.append((start + moved, start + moved + size, kind))
        moved += size - (end - start)
    top = max(end for _, end, _ in rows)
    if top > GPA_LIMIT:
        raise OutOfRange(f"{memmap.name}: grown, it ends at {top:#x}, above 52 address bits")
    return MemoryMap(rows, f"{memmap.name}, grown to {format_size(ram_bytes)}")


def _about(n_bytes: int) -> str:
    for unit, n in (("TiB", TIB), ("GiB", GIB)):
        if n_bytes >= n:
            return f"{n_bytes / n:.4g} {unit}"
    return f"{n_bytes >> 20} MiB"


def _large_in(start: int, end: int) -> int:
    """Pages of 2 MiB that lie whole in a range."""
    first = -(-start // LARGE_PAGE_BYTES)
    return max(0, end // LARGE_PAGE_BYTES - first)


def _paged(machine: Machine) -> list[tuple[int, int]]:
    """What was shared page by page."""
    parts = (Part.GHCBS, Part.PV_PAGES)
    found = [machine.layout[part] for part in parts if part in machine.layout]
    return [(region.start, region.end) for region in found]


def _leaves(machine: Machine) -> tuple[int, int, int]:
    """Leaves of 2 MiB and of 4 KiB in the direct map, and look-ups that pass over its holes."""
    large = small = holes = at = 0
    split = _split(machine)
    for start, end in machine.layout.memmap.ram_ranges():
        n = _large_in(start, end)
        large += n
        small += (end - start - n * LARGE_PAGE_BYTES) // PAGE_BYTES
        holes += _steps_over(at, start)
        at = end
    return large - split, small + split * (LARGE_PAGE_BYTES // PAGE_BYTES), holes


def _split(machine: Machine) -> int:
    """Large leaves that are split because something in them was shared by pages."""
    ram = machine.layout.memmap.ram_ranges()
    taken: set[int] = set()
    swiotlb = _swiotlb(machine)
    edges = [(swiotlb[0], swiotlb[0]), (swiotlb[1], swiotlb[1])] if swiotlb else []
    pieces = _paged(machine) + [(a, a + 1) for a, _ in edges if a % LARGE_PAGE_BYTES]
    for start, end in pieces:
        taken |= set(range(start // LARGE_PAGE_BYTES, -(-end // LARGE_PAGE_BYTES)))
    whole = 0
    for leaf in taken:
        at = leaf * LARGE_PAGE_BYTES
        whole += any(start <= at and at + LARGE_PAGE_BYTES <= end for start, end in ram)
    return whole


def _swiotlb(machine: Machine) -> tuple[int, int] | None:
    if Part.SWIOTLB not in machine.layout:
        return None
    region = machine.layout[Part.SWIOTLB]
    return region.start, region.end


def _shared_leaves(machine: Machine) -> int:
    """Shared leaves that hold no GHCB: large ones of the bounce buffer, pages of all else."""
    n = 0
    if (swiotlb := _swiotlb(machine)) is not None:
        large = _large_in(*swiotlb)
        n += large + (swiotlb[1] - swiotlb[0] - large * LARGE_PAGE_BYTES) // PAGE_BYTES
    if Part.PV_PAGES in machine.layout:
        n += machine.layout[Part.PV_PAGES].size_bytes // PAGE_BYTES
    return n


def _steps_over(at: int, end: int) -> int:
    """Look-ups that pass over a hole: each goes to the end of the largest entry that it fills."""
    n = 0
    while at < end:
        step = next(s for s in ENTRY_BYTES if at % s == 0 and (at + s <= end or s == PAGE_BYTES))
        whole = max(1, (end - at) // step)
        if step != ENTRY_BYTES[0]:
            larger = ENTRY_BYTES[ENTRY_BYTES.index(step) - 1]
            whole = min(whole, (larger - at % larger) // step)
        n += whole
        at += whole * step
    return n

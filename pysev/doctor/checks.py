"""Checks that need several lines of a boot. What each may find is a row of ``doctor_checks``.

A check yields the name of a row, the lines it speaks of, and the values for the row's words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ghcbcore._cffi import lib
from pysev.memmap import MemoryMap
from pysev.tables.sev import STATUS_BITS
from pysev.tables.sev_status_words import OLD_WORDS

from .reading import number
from .rmp_checks import ram_end, run_rmp

if TYPE_CHECKING:
    from .diagnosis import BootFacts

__all__ = ["crash_size", "run", "status_bits"]

Result = tuple[str, list[int], dict[str, Any]]

MIB = 1 << 20
GIB = 1 << 30
SWIOTLB_PERCENT, SWIOTLB_MIN, SWIOTLB_MAX = 6, 64 * MIB, GIB
CRASH_SMALL, CRASH_LARGE, CRASH_ENCRYPTED = 256, 512, 64
CRASH_LARGE_FROM = 64 * GIB
API_SNP, API_INIT_EX, API_KEXEC = (1, 51), (1, 52), (1, 53)


def run(boot: BootFacts) -> Iterator[Result]:
    """Run every check on one boot."""
    memory, why = boot.memory()
    if why:
        lines = [one.line for one in boot.all("e820")]
        yield "e820_unreadable", lines, {"why": why}
    yield from run_rmp(boot, memory)
    yield from _rmp_in_use(boot)
    yield from _iommu(boot)
    yield from _asids(boot)
    yield from _api(boot)
    yield from _crash_kernel(boot, memory)
    yield from _swiotlb(boot, memory)
    yield from _status(boot)
    yield from _smp(boot)


# RMP violations and the IOMMU ---------------------------------------------------------------------


def _rmp_in_use(boot: BootFacts) -> Iterator[Result]:
    """An RMP violation at a page that nobody owns, in a region where nobody owns any."""
    kinds = ("rmp_violation", "rmp_entry", "rmp_region_entry")
    events = [(one.line, kind, one) for kind in kinds for one in boot.found.get(kind, ())]
    events += [(one.line, "rmp_region", one) for one in boot.all("rmp_region")]
    events.sort(key=lambda event: event[0])
    after = [*(kind for _, kind, _ in events[1:]), ""]
    for i, (line, kind, one) in enumerate(events):
        told_why = after[i] == "rmp_region_entry"
        if kind == "rmp_region" and i and events[i - 1][1] == "rmp_violation" and not told_why:
            yield "rmp_in_use", [events[i - 1][0], line], {"pfn": one.values["pfn"]}


def _iommu(boot: BootFacts) -> Iterator[Result]:
    """Look for an IOMMU option with which SNP stays off, before the kernel says so."""
    if boot.sides["guest"] or boot.all("iommu_snp") or boot.found.get("iommu_refuses_snp"):
        return
    for name, values in (("iommu", ("pt", "off")), ("amd_iommu", ("off", "pgtbl_v2"))):
        found = _option(boot, name)
        if found and set(found[0].split(",")) & set(values):
            yield "iommu_option", [found[1]], {"option": f"{name}={found[0][:80]}"}


# ASIDs and firmware -----------------------------------------------------------------------------


def _asids(boot: BootFacts) -> Iterator[Result]:
    found = {one.values["what"]: one for one in boot.all("asids")}
    ranges = {
        what: (int(one.values["min"]), int(one.values["max"]))
        for what, one in found.items()
        if one.values["state"] == "enabled"
    }
    lines = [one.line for one in found.values()]
    for what, one in found.items():
        if what not in ranges and (what == "SEV-ES" or boot.all("rmp")):
            yield "asid_none", [one.line], {"what": what}
    es, snp = ranges.get("SEV-ES"), ranges.get("SEV-SNP")
    if es and snp and es != snp:
        values = {"es": f"{es[0]} to {es[1]}", "snp": f"{snp[0]} to {snp[1]}"}
        yield "asid_share", lines, values
    last = max((one[1] for one in (es, snp) if one), default=0)
    sev = ranges.get("SEV")
    if sev and last and sev[0] != last + 1:
        yield "asid_split", lines, {"sev_min": sev[0], "es_max": last}
    cpuid = boot.first("cpuid")
    if cpuid and sev:
        of_cpuid = number(cpuid.values["edx"]), number(cpuid.values["ecx"])
        if of_cpuid != sev:
            values = {"cpuid": "{} to {}".format(*of_cpuid), "kvm": f"{sev[0]} to {sev[1]}"}
            yield "asid_cpuid", [cpuid.line, *lines], values


def _api(boot: BootFacts) -> Iterator[Result]:
    for one in boot.distinct("api", "major", "minor"):
        version = int(one.values["major"]), int(one.values["minor"])
        is_snp = bool(one.values["snp"]) or bool(boot.all("rmp") or boot.all("rmp_segmented"))
        api = {"api": "{}.{}".format(*version)}
        if not is_snp:
            continue
        if version < API_SNP:
            yield "api_snp", [one.line], api
        elif version < API_INIT_EX:
            yield "api_init_ex", [one.line], api
        if API_SNP <= version < API_KEXEC:
            yield "api_kexec", [one.line], api


# Crash kernel and bounce buffers ----------------------------------------------------------------

_UNITS = {"": 1, "K": 1 << 10, "M": MIB, "G": GIB, "T": 1 << 40}
_SIZE = r"(\d{1,12})([KMGTkmgt]?)"


def _bytes(found: tuple[str, str]) -> int:
    return int(found[0]) * _UNITS[found[1].upper()]


def crash_size(option: str, ram_bytes: int) -> int | None:
    """Return what ``crashkernel=`` asks for on a machine of that size, None if it is not clear.

    Examples
    --------
    >>> crash_size("1G-4G:192M,4G-64G:256M,64G-:512M", 256 << 30) >> 20
    512
    >>> crash_size("512M,high", 256 << 30) >> 20
    512
    """
    if plain := re.match(_SIZE + r"(?:@|,|$)", option):
        return _bytes((plain[1], plain[2]))
    for part in option.split(","):
        found = re.match(f"{_SIZE}-(?:{_SIZE})?:{_SIZE}", part)
        if found is None:
            return None
        start, size = _bytes((found[1], found[2])), _bytes((found[5], found[6]))
        end = _bytes((found[3], found[4])) if found[3] else None
        if ram_bytes and start <= ram_bytes and (end is None or ram_bytes < end):
            return size
    return 0 if ram_bytes else None


def _encrypted(boot: BootFacts) -> bool:
    return bool(boot.all("encryption") or boot.all("sev_status"))


def _option(boot: BootFacts, name: str) -> tuple[str, int] | None:
    for one in boot.all("command_line"):
        if found := re.search(rf"(?:^|\s){name}=(\S+)", one.values["cmdline"]):
            return found[1], one.line
    return None


def _crash_kernel(boot: BootFacts, memory: MemoryMap | None) -> Iterator[Result]:
    asked = _option(boot, "crashkernel")
    got = [*boot.all("crash_kernel"), *boot.all("crash_kernel_old")]
    ram = memory.ram_bytes if memory else 0
    is_whole = boot.all("linux_version") and (boot.all("cpu") or boot.all("smp_done"))
    failed = "crash_kernel_failed" in boot.found
    if asked and is_whole and not got and not failed and crash_size(asked[0], ram) != 0:
        yield "crash_kernel_missing", [asked[1]], {"asked": asked[0][:80]}
    if got and _encrypted(boot):
        large = (ram or ram_end(boot, memory)) >= CRASH_LARGE_FROM
        want = (CRASH_LARGE if large else CRASH_SMALL) + CRASH_ENCRYPTED
        mib = int(got[-1].values["mib"])
        if mib < want:
            values = {"mib": mib, "want": want, "ram": _size_or_unknown(ram)}
            yield "crash_kernel_small", [got[-1].line], values


def _size_or_unknown(ram: int) -> str:
    return f"a machine of {ram / GIB:.1f} GiB" if ram else "a machine of unknown size"


def _swiotlb(boot: BootFacts, memory: MemoryMap | None) -> Iterator[Result]:
    one = boot.first("swiotlb")
    if one is None:
        return
    mib = int(one.values["mib"])
    if memory and not _option(boot, "swiotlb"):
        ram = memory.ram_bytes
        want = min(max(ram * SWIOTLB_PERCENT // 100, SWIOTLB_MIN), SWIOTLB_MAX) // MIB
        if not want * 0.9 - 1 <= mib <= want * 1.1 + 1:
            values = {"mib": mib, "ram": f"{ram / GIB:.1f} GiB", "want": f"{want} MiB"}
            yield "swiotlb_odd", [one.line], values
    if mib * MIB >= SWIOTLB_MAX:
        yield "swiotlb_low", [one.line], {}


# Guests -----------------------------------------------------------------------------------------


def status_bits(text: str) -> tuple[set[int], list[str]]:
    """Return the bits that a line ``SEV: Status:`` names, in either spelling, and unknown words.

    Examples
    --------
    >>> bits, unknown = status_bits("SEV SEV-ES SEV-SNP vTom Reflect VC AI")
    >>> sorted(bits), unknown
    ([0, 1, 2, 3, 4, 6], [])
    """
    bits: set[int] = set()
    spelled = [(one.word, one.bit) for one in STATUS_BITS if one.word]
    spelled += [(word, bit) for bit, word in OLD_WORDS.items()]
    for word, bit in sorted(spelled, key=lambda pair: -len(pair[0])):
        text, n_found = re.subn(rf"(?<!\S){re.escape(word)}(?!\S)", " ", text)
        if n_found:
            bits.add(bit)
    return bits, text.split()


def _status(boot: BootFacts) -> Iterator[Result]:
    one = boot.first("sev_status")
    if one is None:
        return
    bits, unknown = status_bits(one.values["status"])
    if unknown:
        yield "status_unknown", [one.line], {"words": " ".join(unknown)[:80]}
    must = [row.word for row in STATUS_BITS if row.must and row.bit in bits]
    if must:
        yield "status_must", [one.line], {"words": ", ".join(must)}
    active = boot.first("encryption")
    if active:
        of_active = status_bits(active.values["features"].replace("SME", ""))[0]
        basic = {lib.SEV_STATUS_SEV, lib.SEV_STATUS_SEV_ES, lib.SEV_STATUS_SEV_SNP}
        if of_active and of_active & basic != bits & basic:
            values = {"active": active.words[:80], "status": one.words[:80]}
            yield "status_contradiction", [active.line, one.line], values


def _smp(boot: BootFacts) -> Iterator[Result]:
    begun, last = boot.first("smp_start"), boot.last
    if begun and last and begun.line == last.number and not boot.all("smp_done"):
        yield "smp_hang", [begun.line], {}

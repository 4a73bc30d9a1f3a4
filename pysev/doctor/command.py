"""The body of ``pysev doctor``: a log in, text that fits a mail or JSON out."""

from __future__ import annotations

import json as _json
import sys
import textwrap
from collections.abc import Iterator
from typing import IO, Any

from ghcbcore import rmp
from ghcbcore._cffi import lib

from .checks import crash_size
from .diagnosis import BootFacts, Diagnosis, Fact, Found, diagnose
from .log import BadLog, open_log
from .reading import number
from .rmp_checks import ram_end, rmp_tables, segmented

__all__ = ["main_doctor"]

WIDTH = 96
GIB = 1 << 30


def main_doctor(stream: IO[bytes], name: str, *, json: bool) -> int:
    """Read a kernel log and print what it says: the body of ``pysev doctor``.

    Returns
    -------
    int
        0 if nothing is wrong, 1 if a finding is an error or a warning.

    Raises
    ------
    BadLog
        No line is one of a kernel log, or a packed file is damaged. Nothing is printed.
    """
    diagnosis = diagnose(open_log(stream, name), name)
    if not diagnosis.is_log:
        lines = "1 line" if diagnosis.n_lines == 1 else f"{diagnosis.n_lines} lines"
        raise BadLog(f"{name}: no kernel log: none of {lines} looks like one")
    if json:
        sys.stdout.write(_json.dumps(_as_json(diagnosis), indent=2) + "\n")
    else:
        sys.stdout.write("".join(line + "\n" for line in _text(diagnosis)))
    return 1 if diagnosis.has_problem else 0


# Facts ------------------------------------------------------------------------------------------


def _side(boot: BootFacts) -> str:
    """Return whose log it is, as far as its lines say."""
    host, guest = boot.sides["host"], boot.sides["guest"]
    guest += sum("SEV" in one.words or "TDX" in one.words for one in boot.all("encryption"))
    if host and guest:
        return "host and guest mixed" if not boot.all("hypervisor") else "guest, also a host itself"
    return "host" if host else "guest" if guest else "unknown"


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.3f}".rstrip("0").rstrip(".") + " GiB"


def _facts(boot: BootFacts) -> Iterator[tuple[str, str, list[int]]]:
    """Yield title, words and lines of what was read."""
    for title, name in (
        ("kernel", "linux_version"),
        ("machine", "dmi"),
        ("processor", "cpu"),
        ("hypervisor", "hypervisor"),
        ("isolation", "hyperv_isolation"),
        ("encryption", "encryption"),
        ("SEV_STATUS", "sev_status"),
        ("C-bit", "c_bit_mask"),
        ("C-bit", "c_bit_report"),
        ("CPUID table", "cpuid_table"),
        ("VMPL", "vmpl"),
        ("GHCBs of OVMF", "ovmf_ghcbs"),
        ("APs", "ap_creation"),
        ("sev-guest", "guest_driver"),
        ("CPUs", "smp_done"),
    ):
        if one := boot.first(name):
            yield title, one.words, [one.line]
    yield from _memory_facts(boot)
    yield from _rmp_facts(boot)
    for one in boot.distinct("api", "snp", "major", "minor", "build"):
        yield "firmware", f"{'SNP' if one.values['snp'] else 'SEV'} {one.words}", [one.line]
    for name, title in (("asids", "ASIDs"), ("asid_count", "ASIDs"), ("cpuid", "CPUID 0x8000001F")):
        shown: set[str] = set()
        for one in boot.all(name):
            if one.words not in shown:
                shown.add(one.words)
                yield title, one.words, [one.line]
    yield from _asid_total(boot)
    yield from _sizes(boot)


def _asid_total(boot: BootFacts) -> Iterator[tuple[str, str, list[int]]]:
    """Add up the counts that older kernels print, where there is one of each."""
    counts = {one.values["what"]: one for one in boot.all("asid_count")}
    encrypted = [one for what, one in counts.items() if what != "SEV"]
    if "SEV" in counts and len(encrypted) == 1 and len(boot.all("asid_count")) == 2:
        numbers = [int(one.values["count"]) for one in (counts["SEV"], encrypted[0])]
        words = f"SEV {numbers[1] + 1} to {sum(numbers)}, SEV-ES and SNP 1 to {numbers[1]}"
        yield "ASIDs", f"{words}, as these counts say", [counts["SEV"].line, encrypted[0].line]


def _memory_facts(boot: BootFacts) -> Iterator[tuple[str, str, list[int]]]:
    memory, _ = boot.memory()
    if memory:
        words = f"{_gib(memory.ram_bytes)} of RAM in {len(memory.ram_ranges())} pieces, "
        lines = [boot.all("e820")[0].line, boot.all("e820")[-1].line]
        yield "memory", f"{words}up to {memory.ram_end:#x}", lines
        if not boot.sides["guest"] and not boot.all("rmp") and not boot.all("rmp_segmented"):
            size = rmp.bytes_for(memory.ram_end // lib.GHCB_PAGE_SIZE)
            yield "RMP", f"none logged; for all of this memory it needs {_gib(size)}", []
    elif end := ram_end(boot, None):
        yield "memory", f"RAM up to {end:#x}", [boot.all("last_pfn")[0].line]


def _rmp_facts(boot: BootFacts) -> Iterator[tuple[str, str, list[int]]]:
    tables = list(rmp_tables(boot))
    end = ram_end(boot, boot.memory()[0]) if len(tables) == 1 else 0
    for fact, table in tables:
        if isinstance(table, str):
            continue
        covered = table.n_entries * lib.GHCB_PAGE_SIZE
        words = f"[{table.base:#x} - {table.end:#x}]: {_gib(table.end + 1 - table.base)}, "
        words += f"entries for pages up to {covered:#x} ({_gib(covered)})"
        if 0 < end <= covered:
            words += f", {_gib(covered - end)} above the end of RAM"
        yield "RMP", words, [fact.line]
    if one := boot.first("rmp_segmented"):
        yield "RMP", f"segmented, {one.words}{_segments_words(boot)}", [one.line]
    for one in boot.all("rmp_segment")[:8]:
        yield "RMP", one.words, [one.line]
    for one in boot.all("rmp_region")[:4]:
        yield "RMP entries", one.words, [one.line]


def _segments_words(boot: BootFacts) -> str:
    """Return how many segments a table has and what they cover, "" where a log does not say it."""
    found = segmented(boot)
    geometry = found.geometry if found else None
    if geometry is None:
        return ""
    covered = _gib(geometry.n_entries * lib.GHCB_PAGE_SIZE)
    each = _gib(2**geometry.shift)
    return f"; {geometry.n_segments} segments of at most {each}, entries for {covered} in all"


def _sizes(boot: BootFacts) -> Iterator[tuple[str, str, list[int]]]:
    memory, _ = boot.memory()
    for one in boot.all("command_line")[:1]:
        for word in one.values["cmdline"].split():
            option, _, value = word.partition("=")
            if option == "crashkernel":
                size = crash_size(value, memory.ram_bytes if memory else 0)
                asks = f", asks for {size >> 20} MiB here" if size is not None else ""
                yield "crashkernel", f"{value}{asks}", [one.line]
            elif option in ("iommu", "amd_iommu", "mem_encrypt", "swiotlb") or "sev" in option:
                yield "option", word, [one.line]
    for title, name in (
        ("crash kernel", "crash_kernel"),
        ("crash kernel", "crash_kernel_old"),
        ("swiotlb", "swiotlb"),
        ("swiotlb", "swiotlb_mapped"),
    ):
        for one in boot.all(name)[:1]:
            yield title, one.words, [one.line]


# Text and JSON ----------------------------------------------------------------------------------


def _printable(text: str) -> str:
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


def _lines_words(lines: list[int], count: int = 0) -> str:
    if not lines:
        return ""
    shown = ", ".join(map(str, lines))
    more = f", {count} times" if count > len(lines) else ""
    return f" (line {shown}{more})" if len(lines) == 1 else f" (lines {shown}{more})"


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        _printable(text),
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _counts(diagnosis: Diagnosis) -> str:
    numbers = [(diagnosis.count(severity), severity) for severity in ("error", "warning", "note")]
    return ", ".join(f"{n} {name}" + "s" * (n != 1) for n, name in numbers)


def _text(diagnosis: Diagnosis) -> Iterator[str]:
    boots = "" if diagnosis.n_boots <= 1 else f", {diagnosis.n_boots} boots"
    yield f"{_printable(diagnosis.name)}: kernel log, {diagnosis.n_lines} lines{boots}"
    for i, boot in enumerate(diagnosis.boots):
        facts = [("side", _side(boot), []), *_facts(boot)]
        yield ""
        yield "what it says" if diagnosis.n_boots <= 1 else f"boot {i + 1}"
        width = max(len(title) for title, _, _ in facts)
        for title, words, lines in facts:
            head = f"  {title:<{width}}  "
            yield from _wrapped(words + _lines_words(lines), head, " " * len(head))
    if diagnosis.n_boots > len(diagnosis.boots):
        yield ""
        yield f"the facts of {diagnosis.n_boots - len(diagnosis.boots)} more boots are left out"
    yield ""
    if not diagnosis.findings:
        yield "nothing to say about it"
        return
    yield f"findings: {_counts(diagnosis)}"
    for one in diagnosis.findings:
        yield from _finding(one)


def _finding(one: Found) -> Iterator[str]:
    words = f"{one.words}{_lines_words(one.lines, one.count)}"
    yield from _wrapped(words, f"  {one.severity}: ", "    ")
    if one.advice:
        yield from _wrapped(one.advice, "    do: ", "        ")
    yield from _wrapped(one.source, "    source: ", "        ")


def _as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "log": diagnosis.name,
        "lines": diagnosis.n_lines,
        "n_boots": diagnosis.n_boots,
        "boots": [
            {
                "side": _side(boot),
                "facts": [
                    {"title": title, "text": words, "lines": lines}
                    for title, words, lines in _facts(boot)
                ],
                "rmp": [_table_json(one, table) for one, table in rmp_tables(boot)],
            }
            for boot in diagnosis.boots
        ],
        "findings": [one.as_json() for one in diagnosis.findings],
    }


def _table_json(fact: Fact, table: Any) -> dict[str, Any]:
    base, end = number(fact.values["base"]), number(fact.values["end"])
    found = {"base": f"{base:#018x}", "end": f"{end:#018x}", "line": fact.line}
    if isinstance(table, str):
        return found | {"entries": None}
    return found | {"entries": table.n_entries, "aligned": bool(table.is_aligned)}

"""Page-state change buffers in words: header, entries, every rule that one breaks.

Bits and rules are in ``ghcbcore.psc``. Of a long buffer the entries are shown that differ in kind:
a run of entries with the same operation and size is one line.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ghcbcore import psc
from ghcbcore._cffi import lib
from ghcbcore.layouts import set_bits
from pysev.tables.nae import PSC_ENTRY

from .explanation import ExplainedField, Explanation
from .kinds import Kind
from .word import explain_psc_status

__all__ = ["KINDS", "explain_psc", "explain_psc_entry"]

MAX_LINES = 32
"""No more entries are shown one by one; the findings name every one that breaks a rule first."""

_OPERATIONS = next(bits.values for bits in PSC_ENTRY.bits if bits.name == "op")

_FAULTS = {
    lib.GHCB_PSC_FLAG_RESERVED: "bits [63:57] must be zero",
    lib.GHCB_PSC_FLAG_OP: "there is no operation {op}",
    lib.GHCB_PSC_FLAG_CUR_PAGE: "cur_page {cur_page} is beyond its {n_pages} pages",
    lib.GHCB_PSC_FLAG_ALIGN: "2 MiB, but GFN {gfn:#x} is no multiple of 512",
    lib.GHCB_PSC_FLAG_CUT: "the buffer ends before it",
}


def _faults(entry: Any) -> list[str]:
    return [
        _FAULTS[1 << bit].format_map(
            {name: int(entry[name]) for name in psc.ENTRY_DTYPE.names or ()}
        )
        for bit in set_bits(int(entry["flags"]) & lib.GHCB_PSC_ENTRY_FAULTS)
    ]


def _entry_words(entry: Any) -> str:
    operation = _OPERATIONS.get(int(entry["op"]), f"operation {int(entry['op'])}")
    size = "2 MiB" if entry["size"] == lib.GHCB_PSC_SIZE_2M else "4 KiB"
    text = f"GFN {int(entry['gfn']):#x}, {size}, {operation}"
    cur, n = int(entry["cur_page"]), int(entry["n_pages"])
    if cur:
        text += ", done" if cur == n else f", {cur} of {n} pages done"
    return text


def explain_psc_entry(value: int) -> Explanation:
    """Say in words what one entry of a page-state change means.

    Examples
    --------
    >>> print(explain_psc_entry(0x0120000040000000).as_text())
    0x0120000040000000  page-state change entry: GFN 0x40000, 2 MiB, shared
    """
    entry = psc.decode_entries(np.array([value], dtype=np.uint64))[0]
    names = ("gfn", "cur_page", "op", "size")
    return Explanation(
        value=value,
        function="psc_entry",
        title="page-state change entry",
        direction="",
        sentence=_entry_words(entry),
        fields=tuple(ExplainedField(name, int(entry[name]), "") for name in names),
        findings=tuple(_faults(entry)),
        remarks=(),
        kind="psc-entry",
    )


def explain_psc(data: bytes) -> Explanation:
    """Say in words what a page-state change buffer holds.

    ``data`` is a whole shared buffer (2032 bytes) or the beginning of one, 8 bytes or more.

    Examples
    --------
    >>> print(explain_psc(bytes(psc.encode([0x7C01, 0x7C02], 1))).as_text())
    page-state change (request): 2 entries, cur_entry 0, end_entry 1
        entry 0  0x7c01  GFN 0x7c01, 4 KiB, private
        entry 1  0x7c02  GFN 0x7c02, 4 KiB, private
    """
    headers, entries = psc.decode(np.frombuffer(data, dtype=np.uint8)[np.newaxis])
    head = headers[0]
    cur, end, n = (int(head[name]) for name in ("cur_entry", "end_entry", "n_entries"))
    flags = int(head["flags"])
    findings = []
    if flags & lib.GHCB_PSC_FLAG_END:
        findings.append(f"end_entry {end} is too large: a buffer holds {psc.MAX_ENTRIES} entries")
    if flags & lib.GHCB_PSC_FLAG_HEADER_RESERVED:
        findings.append(f"bytes 4 to 7 must be zero ({int(head['reserved']):#x} is set)")
    remarks = []
    if flags & lib.GHCB_PSC_FLAG_EMPTY:
        remarks.append(
            f"cur_entry {cur} is above end_entry {end}: nothing is left to do, KVM answers 0"
        )
    bad = [i for i in range(cur, n) if int(entries[0][i]["flags"]) & lib.GHCB_PSC_ENTRY_FAULTS]
    for i in bad[:MAX_LINES]:
        findings += [f"entry {i}: {fault}" for fault in _faults(entries[0][i])]
    if len(bad) > MAX_LINES:
        findings.append(f"and {len(bad) - MAX_LINES} more entries")
    if status := int(head["kvm_status"]):
        remarks.append(f"KVM answers {status:#x}: {explain_psc_status(status).sentence}")
    whole = [i for i in range(n) if not int(entries[0][i]["flags"]) & lib.GHCB_PSC_FLAG_CUT]
    if len(whole) > MAX_LINES:
        remarks.append(f"entries {MAX_LINES} to {whole[-1]} are not shown")
    return Explanation(
        value=None,
        function="psc",
        title="page-state change",
        direction="request",
        sentence=f"{n} {'entry' if n == 1 else 'entries'}, cur_entry {cur}, end_entry {end}",
        fields=tuple(
            ExplainedField(f"entry {i}", int(entries[0][i]["gfn"]), _entry_words(entries[0][i]))
            for i in whole[:MAX_LINES]
        ),
        findings=tuple(findings),
        remarks=tuple(remarks),
        kind="psc",
        listed=True,
    )


KINDS = (
    Kind(
        "psc",
        "page-state change buffers (a shared buffer of the GHCB, or its beginning)",
        lib.GHCB_SHARED_BUFFER_SIZE,
        explain_psc,
        least_bytes=lib.GHCB_PSC_OFF_ENTRIES,
    ),
    Kind("psc-entry", "entries of a page-state change", None, explain_psc_entry),
)

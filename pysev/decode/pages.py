"""Pages beside the GHCB in words: doorbell, secrets, CPUID, message and AP jump table page.

Layouts are in ``ghcbcore.layouts`` and ``ghcbcore.jumptable``. Keys of a secrets page are not
printed: that they are there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ghcbcore import jumptable
from ghcbcore._cffi import lib
from ghcbcore.layouts import (
    CPUID_PAGE_DTYPE,
    DOORBELL_DTYPE,
    MESSAGE_DTYPE,
    SECRETS_DTYPE,
    as_records,
    bits_of,
    first_reserved,
    set_bits,
)
from pysev.tables.nae import MESSAGE_TYPES

from .explanation import ExplainedField, Explanation
from .kinds import Kind

__all__ = [
    "KINDS",
    "explain_cpuid_page",
    "explain_doorbell",
    "explain_jump_table",
    "explain_message",
    "explain_secrets",
]


MAX_RANGES = 12
"""No more ranges of vectors stand on one line."""


def _page(data: bytes) -> Any:
    return np.frombuffer(data, dtype=np.uint8)[np.newaxis]


def _reserved(data: bytes, dtype: Any) -> list[str]:
    at = int(first_reserved(_page(data), dtype)[0])
    return [f"reserved bytes must be zero, the first that is not is at {at:#x}"] if at >= 0 else []


def _said(
    kind: str,
    title: str,
    sentence: str,
    fields: list[ExplainedField],
    findings: list[str],
    remarks: list[str],
    parts: tuple[Explanation, ...] = (),
) -> Explanation:
    return Explanation(
        value=None,
        function=kind.replace("-", "_"),
        title=title,
        direction="",
        sentence=sentence,
        fields=tuple(fields),
        findings=tuple(findings),
        remarks=tuple(remarks),
        kind=kind,
        parts=parts,
        listed=True,
    )


def _vectors(words: Any, first: int) -> list[int]:
    return [first + 32 * k + bit for k, word in enumerate(words) for bit in set_bits(int(word))]


def _ranges(numbers: list[int]) -> str:
    """Return ``32, 48-50``, of many ranges the first."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs[:MAX_RANGES])
    return shown + (f" and {len(runs) - MAX_RANGES} more ranges" if len(runs) > MAX_RANGES else "")


def explain_doorbell(data: bytes) -> Explanation:
    """Say in words what a #HV doorbell page holds; ``data`` is 4096 bytes."""
    record = as_records(_page(data), DOORBELL_DTYPE)[0]
    flags = int(record["flags"])
    names = {
        lib.GHCB_DOORBELL_NMI: "NMI",
        lib.GHCB_DOORBELL_MC: "#MC",
        lib.GHCB_DOORBELL_NO_SIGNAL: "no further signal",
    }
    vector = int(record["vector"])
    said = [f"vector {vector}"] if vector else ["no vector"]
    said += [names[bit] for bit in set_bits(flags) if bit in names]
    findings = _reserved(data, DOORBELL_DTYPE)
    if odd := [bit for bit in set_bits(flags) if bit not in names]:
        findings.append(f"flags: bits {', '.join(map(str, odd))} have no meaning")
    fields = [
        ExplainedField("vector", vector, "pending" if vector else "nothing is pending"),
        ExplainedField("flags", flags, ", ".join(names.get(b, "?") for b in set_bits(flags))),
        ExplainedField("no_eoi", int(record["no_eoi"]), "no end of interrupt is needed"),
        ExplainedField("events", int(record["events"]), "per VMPL: something is pending"),
    ]
    parts = tuple(
        _lower_level(level, record[f"vmpl{level}"])
        for level in (1, 2, 3)
        if record[f"vmpl{level}"].tobytes().strip(b"\0")
    )
    return _said("doorbell", "#HV doorbell page", ", ".join(said), fields, findings, [], parts)


def _lower_level(level: int, block: Any) -> Explanation:
    status = int(block["status"])
    found, claimed = [], 0
    for name in ("VECTOR", "NMI", "MC", "LEVEL", "MULTIPLE", "IPI", "VECTOR_31"):
        shift, width = (
            getattr(lib, f"GHCB_DOORBELL_STATUS_{name}_{part}") for part in ("SHIFT", "WIDTH")
        )
        claimed += ((1 << width) - 1) << shift
        if number := bits_of(status, shift, width):
            words = name.lower().replace("_", " ")
            found.append(f"{words} {number}" if width > 1 else words)
    odd = status & ~claimed
    fields = [ExplainedField("status", status, ", ".join(found))]
    for name, first in (("irr", 32), ("isr", 0)):
        vectors = _vectors(block[name], first)
        fields.append(ExplainedField(name, len(vectors), f"vectors {_ranges(vectors) or 'none'}"))
    findings = [f"status: {odd:#x} has no meaning"] if odd else []
    return _said("doorbell", f"VMPL{level}", "", fields, findings, [])


def explain_secrets(data: bytes) -> Explanation:
    """Say in words what an SNP secrets page holds, but its keys; ``data`` is 4096 bytes."""
    record = as_records(_page(data), SECRETS_DTYPE)[0]
    fields = []
    hidden = ("vmpck0", "vmpck1", "vmpck2", "vmpck3")
    for name in SECRETS_DTYPE.names or ():
        value = record[name]
        if name in hidden:
            there = bool(np.any(value))
            fields.append(
                ExplainedField(name, int(there), "a key, not shown" if there else "no key: wiped")
            )
        elif np.ndim(value):
            if n_set := int(np.count_nonzero(value)):
                fields.append(ExplainedField(name, n_set, f"of {len(value)} bytes are not zero"))
        elif value:
            fields.append(ExplainedField(name, int(value), ""))
    version = int(record["version"])
    size = int(record["svsm_size"])
    sentence = f"version {version}"
    if size:
        sentence += (
            f", SVSM at {int(record['svsm_base']):#x} ({size:#x} bytes), "
            f"guest at VMPL {int(record['svsm_guest_vmpl'])}"
        )
    if table := int(record["ap_jump_table_pa"]):
        sentence += f", AP jump table at {table:#x}"
    return _said(
        "secrets",
        "SNP secrets page",
        sentence,
        fields,
        _reserved(data, SECRETS_DTYPE),
        [],
    )


def explain_cpuid_page(data: bytes) -> Explanation:
    """Say in words what an SNP CPUID page holds; ``data`` is 4096 bytes."""
    record = as_records(_page(data), CPUID_PAGE_DTYPE)[0]
    count = int(record["count"])
    findings = _reserved(data, CPUID_PAGE_DTYPE)
    room = lib.SNP_CPUID_MAX_ENTRIES
    if count > room:
        findings.append(f"count {count} is too large: the page holds {room} entries")
    n = min(count, room)
    fields = []
    seen: dict[tuple[int, ...], int] = {}
    for i, entry in enumerate(record["entries"][:n]):
        at = {name: int(entry[name]) for name in entry.dtype.names}
        fields.append(
            ExplainedField(
                f"entry {i}",
                at["eax_in"],
                f"sub-leaf {at['ecx_in']:#x}: eax {at['eax']:#x}, ebx {at['ebx']:#x}, "
                f"ecx {at['ecx']:#x}, edx {at['edx']:#x}",
            )
        )
        key = (at["eax_in"], at["ecx_in"], at["xcr0_in"], at["xss_in"])
        if key in seen:
            findings.append(f"entry {i} repeats entry {seen[key]}: a guest takes the first")
        seen.setdefault(key, i)
    return _said("cpuid-page", "SNP CPUID page", f"{count} entries", fields, findings, [])


def explain_message(data: bytes) -> Explanation:
    """Say in words what the header of an SNP guest message says; ``data`` is 4096 bytes."""
    record = as_records(_page(data), MESSAGE_DTYPE)[0]
    at = {
        name: int(record[name]) for name in MESSAGE_DTYPE.names or () if not np.ndim(record[name])
    }
    words = next((one.what for one in MESSAGE_TYPES if one.code == at["type"]), "")
    findings = list(_message_findings(at, words))
    kinds = {
        "algo": "AES-256-GCM" if at["algo"] == lib.SNP_MSG_ALGO_AES_256_GCM else "",
        "type": words,
        "vmpck": "index of the key",
    }
    fields = [ExplainedField(name, value, kinds.get(name, "")) for name, value in at.items()]
    sentence = f"{words or 'type ' + hex(at['type'])}, {at['size']} bytes, seqno {at['seqno']}"
    return _said(
        "message",
        "SNP guest message",
        sentence,
        fields,
        findings + _reserved(data, MESSAGE_DTYPE),
        ["the payload is encrypted, and not decoded"],
    )


def _message_findings(at: dict[str, int], words: str) -> Iterator[str]:
    if not words or at["type"] == lib.SNP_MSG_INVALID:
        yield f"type {at['type']} is no message"
    if at["algo"] != lib.SNP_MSG_ALGO_AES_256_GCM:
        yield f"algo {at['algo']} is not AES-256-GCM ({lib.SNP_MSG_ALGO_AES_256_GCM})"
    if at["header_version"] != lib.SNP_MSG_HEADER_VERSION:
        yield f"header version {at['header_version']} is not known"
    if at["header_size"] != lib.SNP_MSG_OFF_PAYLOAD:
        yield f"header size {at['header_size']:#x} is not {lib.SNP_MSG_OFF_PAYLOAD:#x}"
    if at["size"] > lib.SNP_MSG_PAYLOAD_MAX:
        yield f"size {at['size']} is more than the page holds"
    if at["vmpck"] > 3:
        yield f"there is no key {at['vmpck']}"


def explain_jump_table(data: bytes) -> Explanation:
    """Say in words what an AP jump table page holds; ``data`` is 4096 bytes."""
    page = jumptable.decode_page(np.frombuffer(data, dtype=np.uint8))
    linear = (page.reset_cs << 4) + page.reset_ip
    fields = [
        ExplainedField("reset_ip", page.reset_ip, ""),
        ExplainedField("reset_cs", page.reset_cs, f"an AP goes on at {linear:#x}"),
    ]
    fields += [
        ExplainedField(
            one.name,
            one.base,
            f"base; selector {one.selector:#x}, limit {one.limit:#x}, access {one.access:#x}",
        )
        for one in page.gdt
    ]
    sentence = f"CS:IP {page.reset_cs:#06x}:{page.reset_ip:#06x}"
    if page.has_park_code:
        sentence += ", with park code"
        if page.gpa is not None:
            sentence += f" for GPA {page.gpa:#x}"
    remarks = []
    if not page.reset_ip and not page.reset_cs:
        remarks.append("no address has been written yet: an AP would start at 0")
    if page.last_jump is not None and any(page.last_jump):
        ip, cs = page.last_jump
        remarks.append(f"the last AP that left went to CS:IP {cs:#06x}:{ip:#06x}")
    return _said("jump-table", "AP jump table page", sentence, fields, list(page.problems), remarks)


KINDS = (
    Kind("doorbell", "#HV doorbell pages", lib.GHCB_DOORBELL_SIZE, explain_doorbell),
    Kind("secrets", "SNP secrets pages", lib.SNP_SECRETS_SIZE, explain_secrets),
    Kind("cpuid-page", "SNP CPUID pages", lib.SNP_SECRETS_SIZE, explain_cpuid_page),
    Kind("message", "pages of SNP guest messages", lib.SNP_SECRETS_SIZE, explain_message),
    Kind("jump-table", "AP jump table pages", lib.GHCB_JUMP_TABLE_SIZE, explain_jump_table),
)

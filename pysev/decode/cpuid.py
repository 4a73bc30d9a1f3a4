"""CPUID 0x8000001F in words: what a processor can encrypt, and for how many guests.

Words are in ``pysev.tables.cpuid``.
"""

from __future__ import annotations

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange
from pysev.tables.cpuid import EBX, FEATURES

from .explanation import ExplainedField, Explanation, bit_ranges
from .kinds import Kind

__all__ = ["KINDS", "explain_cpuid"]


def explain_cpuid(eax: int, ebx: int, ecx: int, edx: int) -> Explanation:
    """Say in words what the four registers of leaf 0x8000001F mean.

    Raises
    ------
    OutOfRange
        A register is negative or has more than 64 bits; more than 32 are a finding.

    Examples
    --------
    >>> found = explain_cpuid(0x0101FD3F, 0x4133, 0xFD, 0xF)
    >>> found.sentence
    'C-bit 51, 4 address bits less, 4 VMPLs; ASIDs: SEV 15 to 253, SEV-ES and SNP 1 to 14'
    """
    findings = []
    for name, value in (("eax", eax), ("ebx", ebx), ("ecx", ecx), ("edx", edx)):
        if value < 0 or value >> 64:
            raise OutOfRange(f"{name} = {value:#x} does not fit 64 bits")
        if value >> 32:
            findings.append(f"{name} = {value:#x} does not fit the register's 32 bits")
    at = {one.name: ebx >> one.shift & (1 << one.width) - 1 for one in EBX}
    offered = [one for one in FEATURES if eax >> one.code & 1]
    names = {one.name for one in offered}
    unknown = eax & ~sum(1 << one.code for one in FEATURES)
    if "sev" in names and not ecx:
        findings.append("SEV is offered without an ASID")
    if "snp" in names and "sev_es" not in names:
        findings.append("SNP is offered without SEV-ES")
    if at["c_bit"] < 32 and names & {"sme", "sev"}:
        findings.append(f"C-bit {at['c_bit']} lies inside of addresses: misread or made up")
    remarks = ["offers " + (", ".join(one.name for one in offered) or "nothing")]
    if "sev_es" in names and edx <= 1:
        remarks.append("no ASID is left for SEV-ES and SNP: the BIOS sets their limit")
    if unknown:
        remarks.append(f"EAX bits {bit_ranges(unknown)} have no words here")
    return Explanation(
        value=None,
        function=f"{lib.CPUID_SEV_LEAF:#x}",
        title=f"CPUID {lib.CPUID_SEV_LEAF:#x}",
        direction="",
        sentence=f"C-bit {at['c_bit']}, {at['reduction']} address bits less, "
        f"{at['n_vmpls']} VMPLs; ASIDs: {_asids(ecx, edx)}",
        fields=(
            *(ExplainedField(one.name, eax >> one.code & 1, one.what) for one in FEATURES),
            *(ExplainedField(one.name, at[one.name], one.what) for one in EBX),
            ExplainedField("max_asid", ecx, "the highest ASID"),
            ExplainedField("min_sev_asid", edx, "the lowest ASID of a guest that is plain SEV"),
        ),
        findings=tuple(findings),
        remarks=tuple(remarks),
        kind="cpuid",
    )


def _asids(highest: int, min_sev: int) -> str:
    sev = f"{min_sev} to {highest}" if min_sev <= highest else "none"
    encrypted = f"1 to {min_sev - 1}" if min_sev > 1 else "none"
    return f"SEV {sev}, SEV-ES and SNP {encrypted}"


KINDS = (Kind("cpuid", "EAX, EBX, ECX, EDX of CPUID 0x8000001F", None, explain_cpuid, n_words=4),)

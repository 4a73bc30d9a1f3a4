"""SEV_STATUS and SEV_FEATURES in words: the bits, Linux's log line, what Linux must support."""

from __future__ import annotations

from ghcbcore._cffi import lib
from ghcbcore.layouts import set_bits
from pysev.tables.sev import STATUS_BITS

from .explanation import ExplainedField, Explanation, bit_ranges
from .kinds import Kind

__all__ = ["KINDS", "explain_sev_features", "explain_sev_status", "feature_names"]

_BY_BIT = {row.bit: row for row in STATUS_BITS}
SHIFT = lib.SEV_STATUS_FEATURES_SHIFT


def feature_names(features: int) -> str:
    """Return the names of the bits of SEV_FEATURES, ``none`` for 0; ``bits [63:40]`` without one.

    Examples
    --------
    >>> feature_names(0x21)
    'sev_snp, debug_swap'
    """
    rows = [(bit, _BY_BIT.get(bit + SHIFT)) for bit in set_bits(features)]
    names = [row.name for _, row in rows if row]
    if unknown := sum(1 << bit for bit, row in rows if not row):
        names.append(f"bits {bit_ranges(unknown)}")
    return ", ".join(names) or "none"


def explain_sev_status(value: int) -> Explanation:
    """Say in words what the SEV_STATUS MSR (C001_0131) of a guest means.

    ``value`` is an int of 64 bits.

    Examples
    --------
    >>> print(explain_sev_status(0x87).as_text())
    0x0000000000000087  SEV_STATUS: SEV SEV-ES SEV-SNP DebugSwap
        - a Linux guest must support debug_swap, or it ends itself with reason 0:2
    """
    return _explain(value, "SEV_STATUS", "sev-status", 0)


def explain_sev_features(value: int) -> Explanation:
    """Say in words what SEV_FEATURES of a VMSA means: SEV_STATUS without its two lowest bits.

    Examples
    --------
    >>> print(explain_sev_features(0x1).as_text())
    0x0000000000000001  SEV_FEATURES: SEV-SNP
    """
    return _explain(value, "SEV_FEATURES", "sev-features", SHIFT)


def _explain(value: int, title: str, kind: str, shift: int) -> Explanation:
    rows = [(bit, _BY_BIT.get(bit + shift)) for bit in set_bits(value)]
    known = [row for _, row in rows if row]
    unknown = sum(1 << bit for bit, row in rows if not row)
    must = [row.name for row in known if row.must]
    names = {row.name for row in known}
    findings = []
    if unknown:
        findings.append(f"reserved bits {bit_ranges(unknown)} must be zero ({unknown:#x} is set)")
    if not shift:
        for upper, lower in (("sev_es", "sev"), ("sev_snp", "sev_es")):
            if upper in names and lower not in names:
                findings.append(f"{upper} without {lower}: no processor reports that")
    remarks = []
    if must:
        verb = "must support " + ", ".join(must)
        remarks.append(f"a Linux guest {verb}, or it ends itself with reason 0:2")
    return Explanation(
        value=value,
        function=kind.replace("-", "_"),
        title=title,
        direction="",
        sentence=" ".join(row.word or row.name for row in known) or "none",
        fields=tuple(ExplainedField(row.name, 1, row.what) for row in known),
        findings=tuple(findings),
        remarks=tuple(remarks),
        kind=kind,
    )


KINDS = (
    Kind("sev-status", "the SEV_STATUS MSR, C001_0131", None, explain_sev_status),
    Kind("sev-features", "SEV_FEATURES of a VMSA", None, explain_sev_features),
)

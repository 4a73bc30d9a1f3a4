"""Error codes of page faults in words: of a #PF, and of a nested page fault (EXITINFO1).

Words are in ``pysev.tables.fault``.
"""

from __future__ import annotations

from collections.abc import Sequence

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange
from pysev.tables.fault import NPF_BITS, PF_BITS
from pysev.tables.schema import Code

from .explanation import ExplainedField, Explanation, bit_ranges
from .kinds import Kind

__all__ = ["KINDS", "explain_npf", "explain_pf"]


def explain_pf(code: int) -> Explanation:
    """Say in words what the error code of a #PF means.

    Raises
    ------
    OutOfRange
        ``code`` is negative or has more than 64 bits.

    Examples
    --------
    >>> print(explain_pf(0x80000003).as_text())
    0x0000000080000003  #PF: present, write, rmp
        - the page is mapped: a right was missing
        - a write
        - RMP violation: the page is not the accessor's
    """
    return _explain(code, PF_BITS, "#PF", "pf")


def explain_npf(code: int) -> Explanation:
    """Say in words what EXITINFO1 of a nested page fault means. See ``explain_pf``.

    Examples
    --------
    >>> explain_npf(0x500000004).sentence
    'user, final, enc'
    >>> explain_npf(0x300000000).findings
    ('final and page_table exclude each other',)
    """
    both = 1 << lib.FAULT_NPF_FINAL | 1 << lib.FAULT_NPF_PAGE_TABLE
    found = () if code & both != both else ("final and page_table exclude each other",)
    return _explain(code, (*PF_BITS, *NPF_BITS), "nested page fault", "npf", found)


def _explain(
    code: int, bits: Sequence[Code], title: str, kind: str, findings: tuple[str, ...] = ()
) -> Explanation:
    if code < 0 or code >> 64:
        raise OutOfRange(f"code = {code:#x} does not fit 64 bits")
    found = [one for one in bits if code >> one.code & 1]
    unknown = code & ~sum(1 << one.code for one in bits)
    if unknown:
        findings += (f"bits {bit_ranges(unknown)} have no meaning here",)
    return Explanation(
        value=code,
        function=kind,
        title=title,
        direction="",
        sentence=", ".join(one.name for one in found) or "a read of a page that is not mapped",
        fields=tuple(ExplainedField(one.name, code >> one.code & 1, one.what) for one in bits),
        findings=findings,
        remarks=tuple(one.what for one in found),
        kind=kind,
    )


KINDS = (
    Kind("pf", "error code of a page fault", None, explain_pf),
    Kind("npf", "EXITINFO1 of a nested page fault", None, explain_npf),
)

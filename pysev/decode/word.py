"""One 64-bit word by its row in a table: sentence, fields, bits that must be zero.

What a word means is data (``pysev.tables.schema.Word``); this module turns a word and a number
into text. Words that depend on more than themselves are put together by the module of their page.
"""

from __future__ import annotations

from dataclasses import dataclass

from ghcbcore._cffi import lib
from ghcbcore.layouts import bits_of, set_bits
from pysev.tables.features import FEATURES
from pysev.tables.nae import INJECTION, PSC_STATUS
from pysev.tables.schema import Bits, Word
from pysev.tables.terms import REASON_SETS

from . import vendors
from .explanation import ExplainedField, Explanation, bit_ranges
from .kinds import Kind

__all__ = ["KINDS", "Said", "explain_injection", "explain_psc_status", "reason_words", "say"]

TERM_CODE_SHIFT = lib.GHCB_TERMINATE_CODE_SHIFT


@dataclass(frozen=True, slots=True)
class Said:
    """What a word says: ``text``, its fields, the rules it breaks, remarks."""

    text: str
    fields: tuple[ExplainedField, ...] = ()
    findings: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def say(word: Word | None, value: int, *, closed: tuple[str, ...] = ()) -> Said:
    """Say what a number means as this word; without one it must be 0.

    ``closed`` names fields that must have one of the values that the table has words for.
    """
    if word is None:
        return Said("0") if value == 0 else Said(f"{value:#x}", findings=("must be zero",))
    if not word.bits:
        return Said(_shown(value, word.shown, word.values))
    if word.shown == "reason":
        return _reason(word, value)
    parts, fields, findings = [], [], []
    claimed = 0
    for bits in word.bits:
        number = bits_of(value, bits.shift, bits.width)
        claimed += ((1 << bits.width) - 1) << bits.shift
        words = bits.values.get(number, "")
        fields.append(ExplainedField(bits.name, number, words))
        if text := _part(bits, number, words):
            parts.append(text)
        if bits.name in closed and number not in bits.values:
            findings.append(f"{bits.name} {number:#x} is not one of those that exist")
    if odd := value & ~claimed:
        findings.append(f"bits {bit_ranges(odd)} must be zero ({odd:#x} is set)")
    return Said(", ".join(parts), tuple(fields), tuple(findings))


def _part(bits: Bits, number: int, words: str) -> str:
    if words:
        return f"{bits.what} {words}"
    if bits.width == 1:
        return bits.what if number else ""
    return f"{bits.what} {_shown(number, bits.shown, {})}"


def _shown(value: int, shown: str, values: object) -> str:
    words = values.get(value, "") if hasattr(values, "get") else ""
    if words:
        return f"{value} ({words})" if shown == "decimal" else f"{value:#x} ({words})"
    if shown == "features":
        names = {one.bit: one.name for one in FEATURES}
        return f"{value:#x} ({', '.join(names.get(b, f'bit {b}') for b in set_bits(value))})"
    return str(value) if shown == "decimal" else f"{value:#x}"


def reason_words(reason_set: int, code: int) -> str:
    """Return who gives this reason set and code which meaning; "unknown" if nobody is known."""
    found = [
        f"{one.owner}: {known.what}"
        for one in REASON_SETS
        if one.number == reason_set
        for known in one.codes
        if known.code == code
    ]
    vendor = vendors.words("termination", code << TERM_CODE_SHIFT | reason_set)
    return "; or ".join([*found, *([vendor] if vendor else [])]) or "unknown"


def _reason(word: Word, value: int) -> Said:
    numbers = {b.name: bits_of(value, b.shift, b.width) for b in word.bits}
    claimed = sum(((1 << b.width) - 1) << b.shift for b in word.bits)
    words = reason_words(numbers["set"], numbers["code"])
    odd = value & ~claimed
    return Said(
        f"{numbers['set']:#x}:{numbers['code']:#x} ({words})",
        (
            ExplainedField("set", numbers["set"], ""),
            ExplainedField("code", numbers["code"], words),
        ),
        (f"bits {bit_ranges(odd)} must be zero ({odd:#x} is set)",) if odd else (),
    )


def explain_injection(value: int) -> Explanation:
    """Say which exception an answer tells the guest to raise: INFO2 where INFO1 is 1.

    Examples
    --------
    >>> print(explain_injection(0x8000030D).as_text())
    0x000000008000030d  event injection: #GP
        - #GP without an error code: the guest takes 0
    """
    said = say(INJECTION, value)
    at = {field.name: field.value for field in said.fields}
    words = {field.name: field.words for field in said.fields}
    findings = [text for text in said.findings if at["valid"]]
    if not at["valid"]:
        findings.append("the valid bit is not set: guests treat it as an error of the hypervisor")
    elif at["type"] != lib.GHCB_INJECT_TYPE_EXCEPTION or not words["vector"]:
        findings.append("guests take #GP and #UD, as exceptions, and nothing else")
    remarks = []
    if at["error"] and not at["has_error"]:
        remarks.append("error code without its bit: ignored; older KVM extends the valid bit there")
    sentence = words["vector"] or f"vector {at['vector']}"
    if at["type"] != lib.GHCB_INJECT_TYPE_EXCEPTION:
        sentence += f", type {words['type'] or at['type']}"
    if at["has_error"]:
        sentence += f", error code {at['error']:#x}"
    if at["has_error"] == 0 and at["error"] == 0 and at["vector"] == lib.SEV_VECTOR_GP:
        remarks.append("#GP without an error code: the guest takes 0")
    return Explanation(
        value=value,
        function="injection",
        title="event injection",
        direction="",
        sentence=sentence,
        fields=said.fields,
        findings=tuple(findings),
        remarks=tuple(remarks),
        kind="injection",
    )


def explain_psc_status(value: int) -> Explanation:
    """Say how a page-state change went: INFO2 of its answer.

    Examples
    --------
    >>> print(explain_psc_status(0x100000002).as_text())
    0x0000000100000002  page-state change status: the entry that cur_entry names is invalid
    """
    klass = bits_of(value, lib.GHCB_PSC_STATUS_CLASS_SHIFT, lib.GHCB_PSC_STATUS_CLASS_WIDTH)
    detail = bits_of(value, lib.GHCB_PSC_STATUS_DETAIL_SHIFT, lib.GHCB_PSC_STATUS_DETAIL_WIDTH)
    row = next((r for r in PSC_STATUS if r.klass == klass and r.detail in (detail, None)), None)
    sentence = row.what if row else f"class {klass:#x}, detail {detail:#x}"
    if row and row.detail is None and detail:
        sentence += f": {detail:#x}"
    return Explanation(
        value=value,
        function=row.name if row else "unknown",
        title="page-state change status",
        direction="",
        sentence=sentence,
        fields=(ExplainedField("class", klass, ""), ExplainedField("detail", detail, "")),
        findings=() if row else ("no such status is known",),
        remarks=("seen in one implementation",) if row and row.confidence != "agreed" else (),
        kind="psc-status",
    )


KINDS = (
    Kind(
        "injection", "event injection, INFO2 of an answer with INFO1 = 1", None, explain_injection
    ),
    Kind("psc-status", "status of a page-state change, INFO2", None, explain_psc_status),
)

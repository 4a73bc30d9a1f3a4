"""One value of the GHCB MSR in words: what it says and which rule it breaks.

Bits are taken apart in ``ghcbcore.msr``, the words are in ``pysev.tables``; here they are put
together. Arrays of values for programs: ``ghcbcore.msr.decode``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ghcbcore import msr
from ghcbcore._cffi import lib
from pysev.tables.features import FEATURES
from pysev.tables.msr import FUNCTIONS
from pysev.tables.msr_schema import Field, Function, Half
from pysev.tables.terms import REASON_SETS

from . import vendors
from .explanation import ExplainedField, Explanation, bit_ranges
from .kinds import Kind

__all__ = ["KINDS", "explain_msr"]


class _Said:
    """A field inside a sentence: ``{x}`` is its number, ``{x:words}`` its words if it has any."""

    def __init__(self, number: str, words: str) -> None:
        self.number = number
        self.words = words

    def __format__(self, spec: str) -> str:
        return self.words or self.number if spec == "words" else self.number


def _known_halves() -> Iterator[tuple[int, Function, Half, str]]:
    for function in FUNCTIONS:
        if function.request:
            is_page = function.request.code == lib.GHCB_MSR_GHCB_GPA
            yield (
                function.request.code,
                function,
                function.request,
                "page" if is_page else "request",
            )
        if function.answer:
            yield function.answer.code, function, function.answer, "answer"


TERM_CODE_SHIFT = lib.GHCB_TERMINATE_CODE_SHIFT
_HALVES = {code: (function, half, way) for code, function, half, way in _known_halves()}


def explain_msr(value: int) -> Explanation:
    """Say in words what one value of the GHCB MSR means.

    Parameters
    ----------
    value : int
        The raw value, 64 bits.

    Returns
    -------
    Explanation
        Its fields are those of ``ghcbcore.msr.rows()``, in that order; a code without a row has
        one field ``data``, bits [63:12].

    Raises
    ------
    OutOfRange
        ``value`` is negative or has more than 64 bits.

    Examples
    --------
    >>> print(explain_msr(0x0030000000012014).as_text())
    0x0030000000012014  page state change (request): GFN 0x12 (GPA 0x12000), operation 3 (PSMASH)
        ! op 3 (PSMASH) is not allowed here
    >>> explain_msr(0x0030000000012014).malformed
    True
    """
    got = msr.decode_one(value)
    if got.code not in _HALVES and vendors.words("msr", got.code):
        return _of_vendor(value, got.code, got.a)
    if got.code not in _HALVES:
        return Explanation(
            value=value,
            function="unknown",
            title=f"unknown code {got.code:#05x}",
            direction="unknown",
            sentence=f"data {got.a:#x}",
            fields=(ExplainedField("data", got.a, ""),),
            findings=(f"code {got.code:#05x} is not part of the protocol",),
            remarks=(),
        )
    function, half, direction = _HALVES[got.code]
    numbers = dict(zip((one.name for one in half.fields), got[:3], strict=False))
    said: dict[str, _Said] = {}
    fields: list[ExplainedField] = []
    findings: list[str] = []
    remarks = list(function.remarks)
    if got.status == lib.GHCB_E_RESERVED_BITS:
        bits = value & msr.rows()[got.row].reserved
        findings.append(f"reserved bits {bit_ranges(bits)} must be zero ({bits:#x} is set)")
    for one in half.fields:
        number = numbers[one.name]
        shown = _number(one, number)
        words = _words(one, number, shown)
        if special := _SPECIAL_WORDS.get((function.name, one.name)):
            words, more = special(numbers)
            remarks += more
        fields.append(ExplainedField(one.name, number, words))
        said[one.name] = _Said(shown, words)
        if one.closed and number not in one.values:
            findings.append(f"{one.name} {words or shown} is not allowed here")
    findings += [text for broken, text in _RULES.get(half.code, ()) if broken(numbers)]
    return Explanation(
        value=value,
        function=function.name,
        title=function.title,
        direction=direction,
        sentence=half.say.format_map(said),
        fields=tuple(fields),
        findings=tuple(findings),
        remarks=tuple(remarks),
    )


def _of_vendor(value: int, code: int, data: int) -> Explanation:
    row = next(row for row in vendors.registered("msr") if row.code == code)
    return Explanation(
        value=value,
        function=row.name,
        title=row.what,
        direction="request",
        sentence=f"data {data:#x}",
        fields=(ExplainedField("data", data, ""),),
        findings=(),
        remarks=(f"private to {row.owner}, not part of the protocol; other hosts do not know it",),
    )


def _number(field: Field, number: int) -> str:
    if field.shown == "gfn":
        return f"GFN {number:#x} (GPA {number << lib.GHCB_MSR_DATA_SHIFT:#x})"
    return str(number) if field.shown == "decimal" else f"{number:#x}"


def _words(field: Field, number: int, shown: str) -> str:
    if number in field.values:
        return field.values[number]
    if number in field.illegal:
        return f"{shown} ({field.illegal[number]})"
    return field.otherwise.format(shown)


def _reason_words(at: dict[str, int]) -> tuple[str, list[str]]:
    """Words and remarks for a termination, from ``pysev.tables.terms``."""
    vendor = at["reason"] << TERM_CODE_SHIFT | at["set"]
    if own := vendors.words("termination", vendor):
        return f"{vendors.owner('termination', vendor)}: {own}", []
    sets = [one for one in REASON_SETS if one.number == at["set"]]
    meanings = [
        f"{one.owner}: {code.what}"
        for one in sets
        for code in one.codes
        if code.code == at["reason"]
    ]
    if len(meanings) > 1:
        return "; or ".join(meanings), ["who was running, firmware or kernel, decides which it is"]
    if meanings:
        return meanings[0], []
    if not sets:
        return "unknown", [f"no owner of reason set {at['set']:#x} is known"]
    owners = " or ".join(one.owner for one in sets)
    return "unknown", [f"reason {at['reason']:#x} is not a known reason of {owners}"]


def _feature_words(at: dict[str, int]) -> tuple[str, list[str]]:
    """Words and remarks for a feature bitmap, from ``pysev.tables.features``."""
    bitmap = at["features"]
    names = {one.bit: one.name for one in FEATURES}
    remarks = [
        f"{one.name} requires {' and '.join(names[bit] for bit in missing)}"
        for one in FEATURES
        if bitmap >> one.bit & 1
        and (missing := [bit for bit in one.requires if not bitmap >> bit & 1])
    ]
    unknown = bitmap & ~sum(1 << bit for bit in names)
    if unknown:
        remarks.append(f"bits {bit_ranges(unknown)} of the bitmap have no known meaning")
    return ", ".join(name for bit, name in names.items() if bitmap >> bit & 1) or "none", remarks


# Fields whose words are in another table, or depend on another field.
_SPECIAL_WORDS: dict[tuple[str, str], Callable[[dict[str, int]], tuple[str, list[str]]]] = {
    ("terminate", "reason"): _reason_words,
    ("hv_features", "features"): _feature_words,
}


# Rules about the numbers of one value that no single field can state.
_RULES: dict[int, tuple[tuple[Callable[[dict[str, int]], bool], str], ...]] = {
    lib.GHCB_MSR_SEV_INFO_RESP: (
        (lambda at: at["min"] > at["max"], "the lowest version is above the highest"),
        (lambda at: at["c_bit"] > 63, "the C-bit lies outside of a page table entry"),
    ),
}


KINDS = (Kind("msr", "values of the GHCB MSR", None, explain_msr),)

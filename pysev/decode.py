"""One MSR value in words: what it says and which rule it breaks.

``explain_msr`` is for people: it takes a value of the GHCB MSR and returns sentences. Bits are
taken apart in ``ghcbcore.msr``, the words are in ``pysev.tables``; here they are put together.
Arrays of values for programs: ``ghcbcore.msr.decode``.

``main_decode`` is the body of ``pysev decode``: values as arguments or on standard input.
"""

from __future__ import annotations

import json as _json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from ghcbcore import msr
from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange
from pysev.tables.features import FEATURES
from pysev.tables.msr import FUNCTIONS, VENDOR
from pysev.tables.msr_schema import Field, Function, Half
from pysev.tables.terms import REASON_SETS

__all__ = ["ExplainedField", "Explanation", "explain_msr", "main_decode", "parse_value"]

MAX_TOKEN = 64
"""No number has more characters; a longer word on standard input is refused, not read whole."""

CHUNK_BYTES = 1 << 16


class ExplainedField(NamedTuple):
    """One field: its name, its number, and the words for that number ("" where there are none)."""

    name: str
    value: int
    words: str


@dataclass(frozen=True)
class Explanation:
    """What one MSR value says.

    ``function`` is the name in ``pysev.tables.msr``, ``"unknown"`` for a code that is not there.
    ``direction`` is ``"request"``, ``"answer"``, ``"page"`` (the value is the GPA of a GHCB page)
    or ``"unknown"``. ``findings`` are the rules that the value breaks, ``remarks`` what else a
    reader should know; a value without findings is well formed.
    """

    value: int
    function: str
    title: str
    direction: str
    sentence: str
    fields: tuple[ExplainedField, ...]
    findings: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def malformed(self) -> bool:
        """Whether the value breaks a rule of the protocol."""
        return bool(self.findings)

    def as_text(self) -> str:
        """Return a line, and one more for each finding (``!``) and each remark (``-``).

        Examples
        --------
        >>> print(explain_msr(0x0003000137000001).as_text())
        0x0003000137000001  SEV information (answer): protocol versions 1..3, C-bit 55
        """
        head = f"{self.value:#018x}  {self.title}"
        if self.direction in ("request", "answer"):
            head += f" ({self.direction})"
        if self.sentence:
            head += f": {self.sentence}"
        return "\n".join(
            [
                head,
                *(f"    ! {finding}" for finding in self.findings),
                *(f"    - {remark}" for remark in self.remarks),
            ]
        )

    def as_json(self) -> dict[str, Any]:
        """Return what ``json.dumps`` takes; numbers are hex strings, which no reader rounds."""
        return {
            "value": f"{self.value:#018x}",
            "function": self.function,
            "title": self.title,
            "direction": self.direction,
            "text": self.sentence,
            "fields": [
                {"name": one.name, "value": f"{one.value:#x}", "words": one.words}
                for one in self.fields
            ],
            "findings": list(self.findings),
            "remarks": list(self.remarks),
            "malformed": self.malformed,
        }


class _Said:
    """A field inside a sentence: ``{x}`` is its number, ``{x:words}`` its words if it has any."""

    def __init__(self, number: str, words: str) -> None:
        self.number = number
        self.words = words

    def __format__(self, spec: str) -> str:
        return self.words or self.number if spec == "words" else self.number


def _known_halves() -> Iterator[tuple[int, Function, Half, str]]:
    for function in (*FUNCTIONS, *VENDOR):
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
        findings.append(f"reserved bits {_bit_ranges(bits)} must be zero ({bits:#x} is set)")
    if got.row == msr.NO_ROW:
        fields.append(ExplainedField("data", got.a, ""))
        said["data"] = _Said(f"{got.a:#x}", "")
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
        remarks.append(f"bits {_bit_ranges(unknown)} of the bitmap have no known meaning")
    return ", ".join(name for bit, name in names.items() if bitmap >> bit & 1) or "none", remarks


# Fields whose words are in another table, or depend on another field.
_SPECIAL_WORDS: dict[tuple[str, str], Callable[[dict[str, int]], tuple[str, list[str]]]] = {
    ("terminate", "reason"): _reason_words,
    ("hv_features", "features"): _feature_words,
}


def _bit_ranges(bits: int) -> str:
    """Return ``[63:56], [29]`` for a mask, highest bit first."""
    ranges = []
    high = bits.bit_length() - 1
    while high >= 0:
        low = high
        while low and bits >> (low - 1) & 1:
            low -= 1
        ranges.append(f"[{high}:{low}]" if high > low else f"[{high}]")
        bits &= (1 << low) - 1
        high = bits.bit_length() - 1
    return ", ".join(ranges)


# Rules about the numbers of one value that no single field can state.
_RULES: dict[int, tuple[tuple[Callable[[dict[str, int]], bool], str], ...]] = {
    lib.GHCB_MSR_SEV_INFO_RESP: (
        (lambda at: at["min"] > at["max"], "the lowest version is above the highest"),
        (lambda at: at["c_bit"] > 63, "the C-bit lies outside of a page table entry"),
    ),
}


def parse_value(text: str) -> int:
    """Read one MSR value as people and traces write it.

    ``0x`` and hexadecimal digits; exactly 16 hexadecimal digits without ``0x``, as in KVM's
    traces (also where all 16 are decimal digits); else decimal digits.

    Raises
    ------
    OutOfRange
        ``value of more than 64 bits: 0x1...``
    ValueError
        ``not a number: 'xyz'``

    Examples
    --------
    >>> parse_value("0x100") == parse_value("0000000000000100") == parse_value("256")
    True
    """
    if re.fullmatch(r"0[xX][0-9a-fA-F]+", text):
        digits, base = text[2:], 16
    elif re.fullmatch(r"[0-9a-fA-F]{16}", text):
        digits, base = text, 16
    elif re.fullmatch(r"[0-9]+", text):
        digits, base = text, 10
    elif re.fullmatch(r"[0-9a-fA-F]+", text):
        raise ValueError(f"not a number: {_quoted(text)} (hexadecimal digits need 0x)")
    else:
        raise ValueError(f"not a number: {_quoted(text)}")
    digits = digits.lstrip("0") or "0"
    # Longer numbers are too wide in either base; int() need not be asked.
    value = int(digits, base) if len(digits) <= 20 else 1 << 64
    if value >> 64:
        raise OutOfRange(f"value of more than 64 bits: {_short(text)}")
    return value


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "..."


def _quoted(text: str) -> str:
    return ascii(text) if len(text) <= 40 else ascii(text[:40]) + "..."


class _BadWord(ValueError):
    """A word on standard input that is no value; the text names its line."""


def _words_of(stdin: IO[Any]) -> Iterator[list[tuple[int, str]]]:
    """Yield the words of a stream with their line numbers, one list per chunk that was read.

    ``#`` starts a comment that ends with its line. Lines and comments may have any length.
    """
    stream = getattr(stdin, "buffer", stdin)
    line = 1
    rest = b""  # the beginning of a word that may go on in the next chunk
    in_comment = False
    while chunk := stream.read(CHUNK_BYTES):
        data = chunk.encode("utf-8", "surrogateescape") if isinstance(chunk, str) else chunk
        words: list[tuple[int, str]] = []
        parts = (rest + data).split(b"\n")
        rest = b""
        for k, part in enumerate(parts):
            if k:
                line += 1
                in_comment = False
            if in_comment:
                continue
            text, comment, _ = part.partition(b"#")
            in_comment = bool(comment)
            found = text.split()
            if k == len(parts) - 1 and not in_comment and found and not text[-1:].isspace():
                rest = found.pop()
            for word in [*found, rest]:
                if len(word) > MAX_TOKEN:
                    start = ascii(word[:40].decode("ascii", "backslashreplace"))
                    raise _BadWord(
                        f"line {line}: a word of more than {MAX_TOKEN} bytes: {start}..."
                    )
            words += [(line, word.decode("ascii", "backslashreplace")) for word in found]
        yield words
    if rest:
        yield [(line, rest.decode("ascii", "backslashreplace"))]


def _values_of(stdin: IO[Any]) -> Iterator[list[int]]:
    for words in _words_of(stdin):
        values = []
        for line, word in words:
            try:
                values.append(parse_value(word))
            except ValueError as error:
                raise _BadWord(f"line {line}: {error}") from None
        yield values


class _Output:
    """Collects explanations and prints them in one piece; with ``json`` as one list."""

    def __init__(self, json: bool) -> None:
        self.json = json
        self.opened = False
        self.pieces: list[str] = []
        self.malformed = False

    def add(self, values: Iterable[int]) -> None:
        for value in values:
            explanation = explain_msr(value)
            self.malformed |= explanation.malformed
            self.pieces.append(
                _json.dumps(explanation.as_json()) if self.json else explanation.as_text()
            )

    def flush(self) -> None:
        if self.pieces:
            between = ",\n" if self.json else "\n"
            before = "" if not self.json else between if self.opened else "[\n"
            sys.stdout.write(before + between.join(self.pieces) + ("" if self.json else "\n"))
            self.opened = True
            self.pieces = []

    def close(self) -> None:
        if self.json:
            sys.stdout.write("\n]\n" if self.opened else "[]\n")


def main_decode(args: list[str], *, json: bool, stdin: IO[Any]) -> int:
    """Explain values on standard output: the body of ``pysev decode``.

    Parameters
    ----------
    args : list of str
        Values as ``parse_value`` takes them; ``-``, once, stands for the words of ``stdin``,
        separated by white space, with comments from ``#`` to the end of the line.
    json : bool
        Print one JSON list of ``Explanation.as_json()`` instead of text.
    stdin : file
        Text or binary. Read in pieces: neither its length nor that of a line costs memory.

    Returns
    -------
    int
        0 if every value is well formed, 1 if one is not, 2 if an argument is no value: then one
        line on standard error names it, and nothing is printed. On ``stdin`` this holds for each
        piece of 64 KiB: what came before the piece with the bad word is printed, as a whole
        (with ``json`` as a closed list).
    """
    try:
        values = _parse_arguments(args)
    except ValueError as error:
        return _usage(str(error))
    output = _Output(json)
    for value in values:
        if value is not None:
            output.add([value])
            continue
        try:
            for piece in _values_of(stdin):
                output.add(piece)
                output.flush()
        except _BadWord as error:
            if output.opened:
                output.close()
            return _usage(f"standard input, {error}")
    output.flush()
    output.close()
    return 1 if output.malformed else 0


def _parse_arguments(args: list[str]) -> list[int | None]:
    """Return the values of the arguments, None for ``-``."""
    if not args:
        raise ValueError("give at least one value, or - for standard input")
    if args.count("-") > 1:
        raise ValueError("- may be given once")
    values: list[int | None] = []
    for i, text in enumerate(args, 1):
        try:
            values.append(None if text == "-" else parse_value(text))
        except ValueError as error:
            raise ValueError(f"argument {i}: {error}") from None
    return values


def _usage(text: str) -> int:
    sys.stderr.write(f"pysev decode: {text}\n")
    return 2

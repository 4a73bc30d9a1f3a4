"""What a decoder says about one thing: its name, its fields, the rules it breaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["ExplainedField", "Explanation", "bit_ranges"]

INDENT = "    "


class ExplainedField(NamedTuple):
    """One field: its name, its number, and the words for that number ("" where there are none)."""

    name: str
    value: int
    words: str


@dataclass(frozen=True)
class Explanation:
    """What one value, page or buffer says.

    ``kind`` is the name of the decoder in ``pysev.decode.kinds``. ``value`` is the number that
    was explained, None for a page or buffer: its numbers are in ``fields``. ``function`` names
    what it is in the tables of the protocol (for an MSR value the function in
    ``pysev.tables.msr``, for a page the event), ``"unknown"`` for a code that is not there.
    ``direction`` is ``"request"``, ``"answer"``, ``"page"`` (the value is the GPA of a GHCB page),
    ``"unknown"``, or "" where there is no such thing. ``findings`` are the rules that are broken,
    ``remarks`` what else a reader should know; ``parts`` are things inside with a meaning of their
    own. ``listed`` says that the fields are printed one a line, because no sentence has them.
    ``where`` says where it was read, "" if it was given as an argument.
    """

    value: int | None
    function: str
    title: str
    direction: str
    sentence: str
    fields: tuple[ExplainedField, ...]
    findings: tuple[str, ...]
    remarks: tuple[str, ...]
    kind: str = "msr"
    parts: tuple[Explanation, ...] = ()
    listed: bool = False
    where: str = ""

    @property
    def malformed(self) -> bool:
        """Whether a rule of the protocol is broken, here or in a part."""
        return bool(self.findings) or any(part.malformed for part in self.parts)

    def as_text(self) -> str:
        """Return a line, then one for each field that is listed, each finding (``!``), each
        remark (``-``); then the parts, indented. No line of it is so long that a mail breaks it,
        unless a single sentence is.

        Examples
        --------
        >>> from pysev import explain_msr
        >>> print(explain_msr(0x0003000137000001).as_text())
        0x0003000137000001  SEV information (answer): protocol versions 1..3, C-bit 55
        """
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        head = self.title if self.value is None else f"{self.value:#018x}  {self.title}"
        if self.direction in ("request", "answer"):
            head += f" ({self.direction})"
        if self.sentence:
            head += f": {self.sentence}"
        yield f"{self.where}: {head}" if self.where else head
        if self.listed:
            names = max((len(one.name) for one in self.fields), default=0)
            numbers = max((len(f"{one.value:#x}") for one in self.fields), default=0)
            for one in self.fields:
                line = f"{INDENT}{one.name:<{names}}  {one.value:<#{numbers}x}  {one.words}"
                yield line.rstrip()
        yield from (f"{INDENT}! {finding}" for finding in self.findings)
        yield from (f"{INDENT}- {remark}" for remark in self.remarks)
        for part in self.parts:
            yield from (INDENT + line for line in part._lines())

    def as_json(self) -> dict[str, Any]:
        """Return what ``json.dumps`` takes; numbers are hex strings, which no reader rounds."""
        said = {
            "kind": self.kind,
            "value": None if self.value is None else f"{self.value:#018x}",
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
        if self.where:
            said["where"] = self.where
        if self.parts:
            said["parts"] = [part.as_json() for part in self.parts]
        return said


def bit_ranges(bits: int) -> str:
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

"""What a decoder says about one thing: its name, its fields, the rules it breaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["ExplainedField", "Explanation", "bit_ranges"]


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
        >>> from pysev import explain_msr
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

"""One side of a comparison, and the table that puts the sides next to each other.

A benchmark names the work (a row of the table), who does it (``OURS`` or a peer) and how many
items one call takes. Peers run beside us, in the same process and the same run; after the run the
medians are put side by side. Absolute numbers of two runs do not compare: only the ratios of one
run do, and even these are noisy on a shared machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OURS = "ours"
SECONDS = "s"
"""Unit of work that is one thing, however long it takes: the table shows seconds."""


@dataclass(frozen=True)
class Timed:
    """One side of a comparison; ``counts`` is what else one call comes to, by unit."""

    work: str
    who: str
    items: int
    unit: str
    counts: Mapping[str, int]
    median_s: float

    @property
    def speed(self) -> float:
        return self.items / self.median_s

    def __str__(self) -> str:
        seconds = f"{self.median_s:.3g} s"
        text = seconds if self.unit == SECONDS else _rate(self.speed, self.unit)
        rates = [_rate(n / self.median_s, unit) for unit, n in self.counts.items()]
        return f"{text} ({', '.join(rates)})" if rates else text


def _rate(per_second: float, unit: str) -> str:
    for scale, prefix in ((1e12, "T "), (1e9, "G "), (1e6, "M "), (1e3, "k ")):
        if per_second >= scale:
            return f"{per_second / scale:.3g} {prefix}{unit}/s"
    return f"{per_second:.3g} {unit}/s"


def _ratio(ratio: float) -> str:
    return f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}"


def table(timed: Sequence[Timed]) -> list[str]:
    """Return the lines ``work | ours | peer | ratio``; a ratio above 1 is in our favour."""
    lines = ["| work | ours | peer | ratio |", "| --- | ---: | ---: | ---: |"]
    for work in dict.fromkeys(t.work for t in timed):
        sides = [t for t in timed if t.work == work]
        own = next((t for t in sides if t.who == OURS), None)
        peers = [t for t in sides if t.who != OURS]
        if not peers:
            lines.append(f"| {work} | {own} | | |")
        for peer in peers:
            ratio = _ratio(own.speed / peer.speed) if own else ""
            lines.append(f"| {work} | {own or ''} | {peer.who}: {peer} | {ratio} |")
    return lines

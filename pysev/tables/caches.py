"""Caches of EPYC parts: sets and ways of L1D and L2 of a core and of the L3 of a CCX, and how many.

A line is 64 bytes everywhere. Sizes per CCX of Zen 3, Zen 4, Zen 5, Milan-X, Bergamo and Genoa are
those of public articles; ways of Zen 2, Zen 3 and the dense parts, and how many CCXs a socket has,
are unconfirmed (``is_confirmed``). That the L3 takes what leaves L2 is general knowledge.

Source: fact sheet of the SNP host, 7.6.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PRESETS", "CacheRow"]


@dataclass(frozen=True, slots=True)
class CacheRow:
    """One part; a level is (sets, ways)."""

    name: str
    what: str
    l1d: tuple[int, int]
    l2: tuple[int, int]
    l3: tuple[int, int]
    cores_per_ccx: int
    n_ccx: int
    is_confirmed: bool

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        return self.l1d, self.l2, self.l3


PRESETS = (
    CacheRow("rome", "Zen 2", (64, 8), (1024, 8), (16384, 16), 4, 16, False),
    CacheRow("milan", "Zen 3", (64, 8), (1024, 8), (32768, 16), 8, 8, False),
    CacheRow("milan-x", "Zen 3, stacked L3", (64, 8), (1024, 8), (98304, 16), 8, 8, False),
    CacheRow("genoa", "Zen 4", (64, 8), (2048, 8), (32768, 16), 8, 12, True),
    CacheRow("genoa-x", "Zen 4, stacked L3", (64, 8), (2048, 8), (98304, 16), 8, 12, False),
    CacheRow("bergamo", "Zen 4c", (64, 8), (2048, 8), (16384, 16), 8, 16, False),
    CacheRow("turin", "Zen 5", (64, 12), (1024, 16), (32768, 16), 8, 16, True),
    CacheRow("turin-dense", "Zen 5c", (64, 12), (1024, 16), (32768, 16), 16, 12, False),
)

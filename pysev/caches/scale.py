"""A kexec on a machine with the caches of a part: who flushes, and what is corrupt afterwards.

The old kernel runs under SME: each core stores to memory of its own, as many lines as its L2 and
its share of the L3 hold. Then the kexec: nobody executes WBINVD, the kexec CPU does, or every CPU
does. The new kernel, on core 0 and without the C-bit, stores to all of it. At last everything is
written back, in an order that follows from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ghcbcore._cffi import lib
from ghcbcore.cache import MAX_CORES, Cache, bytes_for
from ghcbcore.errors import OutOfRange, UnknownCode
from pysev.tables.caches import PRESETS, CacheRow

__all__ = ["FLUSHERS", "Kexec", "cache_of", "find_preset", "kexec_at_scale", "ranges"]

LINE_BYTES: Final[int] = lib.GHCB_LINE_BYTES
FIRST_LINE: Final = (1 << 24) // LINE_BYTES  # the old kernel's memory, from 16 MiB on
MAX_BYTES: Final = 4 << 30
DEFAULT_CCX: Final = 4
FLUSHERS: Final = ("nobody", "the kexec CPU", "every CPU")


@dataclass(frozen=True, slots=True)
class Kexec:
    """What became of memory with one way to flush."""

    flusher: str
    n_dirty: int
    """Lines of the old kernel that were still dirty when the new one began."""
    corrupted: NDArray[np.void]
    """As ``ghcbcore.cache.Cache.corrupted`` gives them."""
    census: NDArray[np.uint64]
    """Lines by level and attribute when the new kernel has stored everything."""

    @property
    def ranges(self) -> NDArray[np.uint64]:
        return ranges(self.corrupted)


def find_preset(name: str) -> CacheRow:
    """Return the part of this name; UnknownCode names those that there are."""
    for row in PRESETS:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in PRESETS)
    raise UnknownCode(f"no cache preset {name[:40]!r}; there are {known}")


def cache_of(row: CacheRow, n_cores: int | None = None, **how: Any) -> Cache:
    """Return the caches of a part, of a socket or ``n_cores``; ``how`` is for ``Cache``."""
    n_cores = row.cores_per_ccx * row.n_ccx if n_cores is None else n_cores
    return Cache(row.levels, n_cores, row.cores_per_ccx, **how)


def ranges(corrupted: NDArray[np.void]) -> NDArray[np.uint64]:
    """Put corrupted lines together to bytes, uint64 array, shape (n, 2): begin and end, exclusive.

    Examples
    --------
    >>> import numpy as np
    >>> from ghcbcore.cache import CORRUPT_DTYPE
    >>> lines = np.zeros(3, CORRUPT_DTYPE)
    >>> lines["spa"] = [0x1000, 0x1040, 0x3000]
    >>> [[hex(spa) for spa in one] for one in ranges(lines).tolist()]
    [['0x1000', '0x1080'], ['0x3000', '0x3040']]
    """
    spas = corrupted["spa"]
    if not len(spas):
        return np.zeros((0, 2), np.uint64)
    breaks = np.flatnonzero(np.diff(spas) != LINE_BYTES) + 1
    begins = np.concatenate([[0], breaks])
    ends = np.concatenate([breaks, [len(spas)]]) - 1
    return np.column_stack([spas[begins], spas[ends] + np.uint64(LINE_BYTES)])


def lines_per_core(row: CacheRow) -> int:
    """Return how many lines the L2 of a core and its share of the L3 hold."""
    sets, ways = row.l3
    return row.l2[0] * row.l2[1] + sets * ways // row.cores_per_ccx


def kexec_at_scale(
    row: CacheRow,
    flusher: str,
    *,
    n_cores: int | None = None,
    seed: int = 0,
    coherent: bool = False,
    max_bytes: int = MAX_BYTES,
) -> Kexec:
    """Do one kexec.

    Parameters
    ----------
    flusher : str
        One of ``FLUSHERS``.
    n_cores : int, optional
        Four CCXs if not given.
    max_bytes : int
        Bound for caches and memory; what does not fit is refused before it is allocated.

    Raises
    ------
    OutOfRange
        No such number of cores, or ``max_bytes`` is too little.
    """
    n_cores = min(row.n_ccx, DEFAULT_CCX) * row.cores_per_ccx if n_cores is None else n_cores
    if flusher not in FLUSHERS:
        raise ValueError(f"flusher {flusher!r}: must be one of {', '.join(FLUSHERS)}")
    if not 1 <= n_cores <= MAX_CORES:
        raise OutOfRange(f"{n_cores} cores: must be 1 to {MAX_CORES}")
    n_each = lines_per_core(row)
    memory_bytes = 2 * 3 * 8 * n_cores * n_each  # three words a line, doubled as it grows
    needed = bytes_for(row.levels, n_cores, row.cores_per_ccx) + memory_bytes
    if needed > max_bytes:
        raise OutOfRange(
            f"{n_cores} cores of {row.name} take {needed >> 20} MiB, bound {max_bytes >> 20} MiB"
        )
    cache = cache_of(row, n_cores, seed=seed, coherent=coherent, max_bytes=max_bytes)
    for core in range(n_cores):
        own = np.arange(core * n_each, (core + 1) * n_each, dtype=np.uint64)
        cache.access(own + np.uint64(FIRST_LINE), True, slots=lib.GHCB_KEY_SLOT_SME, cores=core)
    if flusher == "every CPU":
        cache.wbinvd()
    elif flusher == "the kexec CPU":
        cache.wbinvd(0)
    cache.forget()
    n_dirty = len(np.unique(cache.dirty()["line"]))
    everything = np.arange(n_cores * n_each, dtype=np.uint64) + np.uint64(FIRST_LINE)
    cache.access(everything, True, slots=lib.GHCB_KEY_SLOT_NONE, cores=0)
    census = cache.census()
    cache.wbinvd()
    return Kexec(flusher, n_dirty, cache.corrupted(), census)

"""Cache accesses, beside pycachesim: same geometry, same trace, one core.

The peer's trace is a list of Python integers made beforehand, which is its fastest way in; ours is
an array. L1 is the same policy on both sides (LRU, no line leaves it because L2 gave it up), so its
hits are compared: of loads each one; of stores the peer counts a few misses in a million less. L3
takes victims here and fills on the way in there. "tracked" is the same and keeps, for each line,
what software meant and what memory holds, under which key; the peer has nothing like it, and stands
beside it once more in rows of their own.

Sizes: 1 M accesses; one pass over memory in words, lines that fit L1 or L2, lines that fit nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from beside import OURS

from ghcbcore.cache import Cache
from pysev.caches import cures, explore, parse
from pysev.caches.command import example_text
from pysev.tables.caches import PRESETS

pytestmark = pytest.mark.benchmark(max_time=0.5, min_time=1e-3)

N = 1_000_000
UNIT = "accesses"
ROME = next(row for row in PRESETS if row.name == "rome")


def trace(name: str) -> np.ndarray[Any, Any]:
    if name == "words in a row":
        return (np.arange(N) // 8).astype(np.uint64)
    n_lines = {"in L1": 400, "in L2": 6000, "in nothing": 1 << 20}[name]
    return np.random.default_rng(1).integers(0, n_lines, N).astype(np.uint64)


def peer(left_out: Callable[[str], None]) -> Any:
    try:
        import cachesim
    except ImportError:
        left_out("pycachesim is not installed")
    levels: list[Any] = []
    for name, (sets, ways) in reversed(list(zip(("L1", "L2", "L3"), ROME.levels, strict=True))):
        below = levels[-1] if levels else None
        levels.append(cachesim.Cache(name, sets, ways, 64, "LRU", store_to=below, load_from=below))
    memory = cachesim.MainMemory()
    memory.load_to(levels[0])
    memory.store_from(levels[0])
    return cachesim.CacheSimulator(levels[-1], memory)


@pytest.mark.parametrize("stores", [False, True], ids=["loads", "stores"])
@pytest.mark.parametrize("who", [OURS, "pycachesim", "tracked"])
@pytest.mark.parametrize("name", ["words in a row", "in L1", "in L2", "in nothing"])
def bench_access(
    timed: Callable[..., Any],
    left_out: Callable[[str], None],
    name: str,
    who: str,
    stores: bool,
) -> None:
    lines = trace(name)
    work = f"cache, {'stores' if stores else 'loads'}, {name}"
    if who == "pycachesim":
        addresses = (lines * np.uint64(64)).tolist()

        def fresh() -> Any:
            simulator = peer(left_out)
            return (simulator,), {}

        def access(simulator: Any) -> int:
            (simulator.store if stores else simulator.load)(addresses)
            first = next(iter(simulator.stats()))
            return N - first["MISS_count"]

    else:

        def fresh() -> Any:
            return (Cache(ROME.levels, inclusive=False, track=who == "tracked"),), {}

        def access(simulator: Any) -> int:
            return int(simulator.access(lines, stores).l1_hits)

    tracked = [(f"{work}, tracked", OURS if who == "tracked" else who)] if who != OURS else []
    hits = timed(work, who, N, UNIT, access, prepare=fresh, rounds=3, also=tracked)
    slack = N // 10_000 if who == "pycachesim" and stores else 0
    assert abs(hits - l1_hits(lines)) <= slack


def l1_hits(lines: np.ndarray[Any, Any]) -> int:
    """Count hits of L1 with a list for each set: neither side."""
    n_sets, ways = ROME.l1d
    sets: list[list[int]] = [[] for _ in range(n_sets)]
    hits = 0
    for line in lines.tolist():
        one = sets[line % n_sets]
        if line in one:
            hits += 1
            one.remove(line)
        elif len(one) == ways:
            one.pop()
        one.insert(0, line)
    return hits


def bench_example(timed: Callable[..., Any]) -> None:
    program = parse(example_text())
    found = timed(
        "cache, the example: contents and cures",
        OURS,
        1,
        "s",
        lambda: (explore(program), cures(program)),
    )
    assert len(found[0].contents) == 4
    assert found[1].is_complete

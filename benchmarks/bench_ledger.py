"""Change and ask about pages of guests of 1 and 16 TiB, beside pyroaring and dense numpy.

What one conversion of a page is: to shared, the guest rescinds its validation, the hypervisor
RMPUPDATEs and lists the page, the guest maps it with C=0; to private, the same the other way. Ours
makes each by the rules of the hardware (owner, size, immutable, in use ...) and notes for each view
the event since which it is so. The peers keep one bit for each of four views (page table, RMP,
validated, host's list), check nothing and note nothing: pyroaring four bitmaps, numpy four arrays
with a byte for each page. A guest of 16 TiB needs 16 GiB of those: numpy has rows of 1 TiB only.

Random pages are 4 KiB each, all different, in random order, and half of what is converted goes back
and forth in each call, so a call leaves things as it found them. ``lay out`` is the first
conversion of pages in a guest that was uniform: it makes the structures that the others use.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyroaring
import pytest
from beside import OURS, SECONDS

from ghcbcore._cffi import lib
from ghcbcore.frame import Op
from ghcbcore.ledger import Ledger
from pysev.memory import Memory
from pysev.memory.kexec import KexecPages

pytestmark = pytest.mark.benchmark(max_time=0.5, min_time=1e-4)

GIB, TIB = 1 << 18, 1 << 28  # pages
N_SPREAD = 1 << 20
VIEWS = 4
UNIT = "pages"
SIZES = {TIB: "1 TiB", 16 * TIB: "16 TiB"}

TO_SHARED = (
    Op(lib.FRAME_OP_PVALIDATE, asid=1, value=0),
    Op(lib.FRAME_OP_RMPUPDATE),
    Op(lib.FRAME_OP_LIST, value=lib.FRAME_LISTED_SHARED),
    Op(lib.FRAME_OP_MAP, value=lib.FRAME_SHARED),
)
TO_PRIVATE = (
    Op(lib.FRAME_OP_MAP, value=lib.FRAME_PRIVATE),
    Op(lib.FRAME_OP_RMPUPDATE, asid=1, value=lib.FRAME_NEW_ASSIGNED),
    Op(lib.FRAME_OP_LIST, value=lib.FRAME_LISTED_PRIVATE),
    Op(lib.FRAME_OP_PVALIDATE, asid=1, value=1),
)


def spread(n_pages: int, n: int = N_SPREAD) -> np.ndarray[Any, Any]:
    """Return different pages in random order."""
    draw = np.random.default_rng(1)
    pages = np.unique(draw.integers(n_pages, size=n + n // 8, dtype=np.uint64))
    draw.shuffle(pages)
    return pages[:n]


class Ours:
    def __init__(self, n_pages: int) -> None:
        self.ledger = Ledger(n_pages)
        for op in TO_PRIVATE:
            done = self.ledger.range(op, 0, n_pages)
            assert done.n_done == n_pages and not done.result

    def range(self, first: int, n: int) -> None:
        for op in (*TO_SHARED, *TO_PRIVATE):
            assert self.ledger.range(op, first, n).n_changed == n

    def array(self, pages: Any) -> None:
        for ops in (TO_SHARED, TO_PRIVATE):
            assert self.ledger.array(ops, pages).n_changed == len(pages)

    def share(self, pages: Any) -> None:
        assert self.ledger.array(TO_SHARED, pages).n_changed == len(pages)


class Roaring:
    """Bit set: shared."""

    def __init__(self, n_pages: int) -> None:
        self.views = [pyroaring.BitMap() for _ in range(VIEWS)]

    def range(self, first: int, n: int) -> None:
        for view in self.views:
            view.add_range(first, first + n)
        for view in self.views:
            view.remove_range(first, first + n)

    def array(self, pages: Any) -> None:
        changed = pyroaring.BitMap(pages)
        for view in self.views:
            view |= changed
        for view in self.views:
            view -= changed

    def share(self, pages: Any) -> None:
        changed = pyroaring.BitMap(pages)
        for view in self.views:
            view |= changed


class Dense:
    """A byte: shared."""

    def __init__(self, n_pages: int) -> None:
        self.views = [np.ones(n_pages, np.uint8) for _ in range(VIEWS)]
        for view in self.views:
            view[:] = 0  # all of it is there

    def range(self, first: int, n: int) -> None:
        for value in (1, 0):
            for view in self.views:
                view[first : first + n] = value

    def array(self, pages: Any) -> None:
        for value in (1, 0):
            for view in self.views:
                view[pages] = value

    def share(self, pages: Any) -> None:
        for view in self.views:
            view[pages] = 1


SIDES = {OURS: Ours, "pyroaring": Roaring, "numpy": Dense}
PAIRS = [(size, who) for size in SIZES for who in SIDES if size == TIB or who != "numpy"]
sides = pytest.mark.parametrize(
    ("n_pages", "who"), PAIRS, ids=[f"{SIZES[size]}-{who}" for size, who in PAIRS]
)


@sides
def bench_convert_a_range(timed: Any, n_pages: int, who: str) -> None:
    side = SIDES[who](n_pages)
    n = 512 * GIB
    work = f"convert 512 GiB of {SIZES[n_pages]} and back, in one range"
    timed(work, who, 2 * n, UNIT, lambda: side.range(3 * GIB + 7, n))


@sides
def bench_convert_spread_pages(timed: Any, n_pages: int, who: str) -> None:
    side, pages = SIDES[who](n_pages), spread(n_pages)
    side.share(np.ascontiguousarray(pages[::2]))  # laid out, and half of it stays shared
    rest = np.ascontiguousarray(pages[1::2])
    work = f"convert 524,288 random pages of {SIZES[n_pages]} and back"
    timed(work, who, 2 * len(rest), UNIT, lambda: side.array(rest), rounds=3)


@sides
def bench_lay_out_spread_pages(timed: Any, n_pages: int, who: str) -> None:
    pages = spread(n_pages)
    work = f"convert 1 M random pages of {SIZES[n_pages]}, which was uniform"

    def fresh() -> Any:
        return (SIDES[who](n_pages), pages), {}

    timed(work, who, len(pages), UNIT, lambda side, p: side.share(p), prepare=fresh, rounds=3)


@sides
def bench_find_the_planted_page(timed: Any, n_pages: int, who: str) -> None:
    """1 M shared pages; one of them is listed as private."""
    pages = spread(n_pages)
    planted = int(pages[12345])
    side = SIDES[who](n_pages)
    side.share(pages)
    if who == OURS:
        memory = Memory(4096)
        memory.ledger = side.ledger
        side.ledger.range(Op(lib.FRAME_OP_LIST, value=lib.FRAME_LISTED_PRIVATE), planted, 1)

        def ask() -> Any:
            return [d.first for d in memory.disagreements(["listed-private-mapped-shared"])]

    elif who == "numpy":
        side.views[3][planted] = 0

        def ask() -> Any:
            return np.flatnonzero(side.views[0] != side.views[3]).tolist()

    else:
        side.views[3].remove(planted)

        def ask() -> Any:
            return list(side.views[0] ^ side.views[3])

    work = f"find one page of {SIZES[n_pages]} in which two views disagree"
    assert timed(work, who, n_pages, UNIT, ask, rounds=3) == [planted]


def bench_snapshot_and_differences(timed: Any) -> None:
    side = Ours(16 * TIB)
    pages = spread(16 * TIB)
    side.share(pages)

    def ask() -> Any:
        before = side.ledger.snapshot()
        side.ledger.array(TO_SHARED[2]._replace(value=lib.FRAME_LISTED_PRIVATE), pages[:1000])
        first = before.differences(side.ledger.snapshot())[0]
        side.ledger.array(TO_SHARED[2], pages[:1000])
        return first

    work = "snapshot of 16 TiB with 1 M shared pages, 1000 changed, their list, 1000 back"
    assert len(timed(work, OURS, 1, SECONDS, ask, rounds=5)) == 1000


def bench_kexec_of_16_tib(timed: Any) -> None:
    """The page side of a whole SNP kexec: accepted, shared, made private again, taken over."""
    draw = np.random.default_rng(1)
    n = 16 * TIB
    regions = np.unique(draw.integers(4096, n // 512, 20_000))
    buffers = [
        (0x100000, GIB),
        *(
            (int(r) * 512, int(k))
            for r, k in zip(regions, draw.integers(1, 513, len(regions)), strict=True)
        ),
    ]
    ghcbs = np.unique(draw.integers(0x200000, n, 4096))

    def kexec() -> Any:
        pages = KexecPages(Memory("16T"), ghcbs, buffers)
        pages.accept()
        pages.share()
        pages.finish()
        pages.boot_again()
        return pages

    work = "pages of a whole SNP kexec of 16 TiB, 4096 GHCBs, 20,000 buffers"
    pages = timed(work, OURS, 1, SECONDS, kexec, rounds=3)
    assert pages.left_behind() == []
    assert pages.memory.n_bytes < 1536 << 20


def bench_fragmented_1_tib(timed: Any) -> None:
    """Every second page shared, four records in each 2 MiB; then one view of all of it."""
    n = TIB
    ledger = Ours(n).ledger
    evens = np.arange(0, n, 2, dtype=np.uint64)
    for op in TO_SHARED:
        ledger.array(op, evens)
    ledger.array(Op(lib.FRAME_OP_CONTENT, value=1), np.arange(0, n, 3, dtype=np.uint64))
    assert ledger.n_bytes < 1536 << 16

    def relist() -> Any:
        ledger.range(Op(lib.FRAME_OP_LIST, value=lib.FRAME_LISTED_NOTHING), 0, n)
        return ledger.range(Op(lib.FRAME_OP_LIST, value=lib.FRAME_LISTED_SHARED), 0, n)

    work = "change a view of 1 TiB twice in one range each, every second page another"
    assert timed(work, OURS, 2 * n, UNIT, relist, rounds=3).n_changed == n

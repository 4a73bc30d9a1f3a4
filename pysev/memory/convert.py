"""Conversions of ranges of pages between private and shared, as Linux and its hypervisor do them.

    to private   the page table, RMPUPDATE and the hypervisor's list, PVALIDATE
    to shared    PVALIDATE takes it back, RMPUPDATE and the list, the page table

Whole 2 MiB regions go as such, the rest 4 KiB at a time. Where a part of a 2 MiB entry changes, the
hypervisor splits it first (PSMASH), as KVM does on the fault that the guest's instruction meets.

Units: frames of 4 KiB; spans are two arrays, first frames and lengths.
Source: Linux arch/x86/coco/sev/core.c, arch/x86/kvm/svm/sev.c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ghcbcore._cffi import lib
from ghcbcore.frame import Op

from .records import Outcome

if TYPE_CHECKING:
    from .memory import Memory

__all__ = ["by_size", "common", "cut", "hulls_of", "overlap_of", "to_private", "to_shared"]

U64: TypeAlias = NDArray[np.uint64]
Spans: TypeAlias = tuple[U64, U64]
Step: TypeAlias = Callable[[], Outcome]

REGION = np.uint64(lib.FRAME_REGION)


def by_size(firsts: U64, lengths: U64) -> tuple[Spans, Spans]:
    """Cut spans into what is no whole 2 MiB region, in the order of addresses, and what is one."""
    ends = firsts + lengths
    low = np.minimum((firsts + REGION - np.uint64(1)) // REGION * REGION, ends)
    high = np.maximum(ends // REGION * REGION, low)
    starts = np.concatenate([firsts, high])
    ns = np.concatenate([low - firsts, ends - high])
    has, whole = ns > 0, high > low
    order = np.argsort(starts[has], kind="stable")
    return (starts[has][order], ns[has][order]), (low[whole], (high - low)[whole])


def cut(firsts: U64, lengths: U64, holes: U64, hole_lengths: U64) -> Spans:
    """Take holes out of spans; each lies within one span, none overlap."""
    starts = np.sort(np.concatenate([firsts, holes + hole_lengths]))
    ends = np.sort(np.concatenate([firsts + lengths, holes]))
    has = ends > starts
    return starts[has], (ends - starts)[has]


def hulls_of(firsts: U64, lengths: U64) -> Spans:
    """Return the 2 MiB regions that spans touch, as spans in the order of addresses."""
    starts = firsts // REGION * REGION
    ends = (firsts + lengths + REGION - np.uint64(1)) // REGION * REGION
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    begins = np.append(True, starts[1:] > ends[:-1])[: len(starts)]
    lasts = np.append(begins[1:], True)[: len(starts)]
    return starts[begins], ends[lasts] - starts[begins]


def common(a: Spans, b: Spans) -> Spans:
    """Return what two lists of spans have in common; each in the order of addresses, disjoint."""
    a_ends, b_ends = a[0] + a[1], b[0] + b[1]
    low = np.searchsorted(b_ends, a[0], side="right")
    n = np.maximum(np.searchsorted(b[0], a_ends, side="left") - low, 0)
    i = np.repeat(np.arange(len(n)), n)
    k = np.repeat(low, n) + np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    starts = np.maximum(a[0][i], b[0][k])
    return starts, np.minimum(a_ends[i], b_ends[k]) - starts


def overlap_of(firsts: U64, lengths: U64) -> tuple[int, int] | None:
    """Return two elements of spans that share a frame, if there are any."""
    order = np.argsort(firsts, kind="stable")
    ends = (firsts + lengths)[order]
    bad = np.flatnonzero(ends[:-1] > firsts[order][1:])
    return (int(order[bad[0]]), int(order[bad[0] + 1])) if len(bad) else None


def to_private(
    memory: Memory,
    firsts: U64,
    lengths: U64,
    label: str,
    *,
    leaf: int | None = None,
    size: int | None = None,
    maps: bool = True,
) -> Iterator[Step]:
    """Yield the steps that make spans private; take one after the other while none is refused.

    ``leaf`` (of the page table) and ``size`` (of the RMP's entries): 0, 1 or None as aligned;
    without ``maps`` the page table stays as it is.
    """
    asid, shift = memory.asid, memory.shift
    private = Op(lib.FRAME_OP_MAP, value=lib.FRAME_PRIVATE)
    update = Op(lib.FRAME_OP_RMPUPDATE, asid=asid, gfn=shift, value=lib.FRAME_NEW_ASSIGNED)
    validate = Op(lib.FRAME_OP_PVALIDATE, asid=asid, gfn=shift, value=1)
    listed = Op(lib.FRAME_OP_LIST, value=lib.FRAME_LISTED_PRIVATE)
    for s, starts, ns in _parts(firsts, lengths, leaf) if maps else ():
        yield _step(memory, private._replace(size=s), starts, ns, label)
    for s, starts, ns in _parts(firsts, lengths, size):
        if not s:
            yield from _smash(memory, starts, ns, label)
        yield _step(memory, update._replace(size=s), starts, ns, label)
        yield _step(memory, listed, starts, ns, label)
        yield _step(memory, validate._replace(size=s, backing=s), starts, ns, label)


def to_shared(
    memory: Memory,
    firsts: U64,
    lengths: U64,
    label: str,
    *,
    leaf: int | None = None,
    size: int | None = None,
) -> Iterator[Step]:
    """Yield the steps that make spans shared; see ``to_private``."""
    rescind = Op(lib.FRAME_OP_PVALIDATE, asid=memory.asid, gfn=memory.shift)
    update = Op(lib.FRAME_OP_RMPUPDATE)
    listed = Op(lib.FRAME_OP_LIST, value=lib.FRAME_LISTED_SHARED)
    mapped = Op(lib.FRAME_OP_MAP, value=lib.FRAME_SHARED)
    for s, starts, ns in _parts(firsts, lengths, size):
        if not s:
            yield from _smash(memory, starts, ns, label)
        yield _step(memory, rescind._replace(size=s, backing=s), starts, ns, label)
        yield _step(memory, update._replace(size=s), starts, ns, label)
        yield _step(memory, listed, starts, ns, label)
    for s, starts, ns in _parts(firsts, lengths, leaf):
        yield _step(memory, mapped._replace(size=s), starts, ns, label)


def _parts(firsts: U64, lengths: U64, size: int | None) -> Iterator[tuple[int, U64, U64]]:
    if size is not None:
        if len(firsts):
            yield size, firsts, lengths
        return
    for s, (starts, ns) in enumerate(by_size(firsts, lengths)):
        if len(starts):
            yield s, starts, ns


def _step(memory: Memory, op: Op, firsts: U64, lengths: U64, label: str) -> Step:
    return lambda: memory.spans(op, firsts, lengths, label)


def _smash(memory: Memory, firsts: U64, lengths: U64, label: str) -> Iterator[Step]:
    end = np.uint64(memory.n_pages)
    inside = (lengths > 0) & (firsts < end) & (lengths <= end - np.minimum(firsts, end))
    if not inside.any():
        return  # what is beyond is refused by name
    hulls = hulls_of(firsts[inside], lengths[inside])
    first = int(hulls[0][0])
    window = (first, min(int(hulls[0][-1] + hulls[1][-1]), memory.n_pages) - first)
    starts, ns = common(hulls, memory.frames_where(_is_large, frames=window))
    if len(starts):
        yield _step(memory, Op(lib.FRAME_OP_PSMASH), starts, ns, label)


def _is_large(views: NDArray[np.void]) -> NDArray[np.bool_]:
    return np.asarray(views["large"].astype(np.bool_))

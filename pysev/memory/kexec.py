"""The page side of an SNP guest's life and of its kexec, step by step as Linux does it.

Only pages: who is stopped, woken and asked is the flows' affair. Each step is what the guest and its
hypervisor do together, and each has a name by which a disagreement can be laid at its door.

    accept       firmware and kernel validate all RAM; the page table maps it private in large leaves
    share        buffers, GHCBs and data that the host must see become shared, split leaves and all
    unshare      snp_kexec_finish: walk the leaves, make shared ones private again, but for GHCBs
    last         the leaves that hold GHCBs, by the MSR protocol, 4 KiB at a time
    boot         the second kernel maps all of it private, notes it as validated, and shares anew

Source: Linux arch/x86/coco/sev/core.c as told in spec/linux-flows.md 3.4; ``strict`` and ``leaf_base`` are the
two repairs of 82b7f88f2316 ("Fix making shared pages private during kdump").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange
from ghcbcore.frame import Op

from .memory import Disagreement, Memory, Outcome

__all__ = ["KexecPages"]

U64 = NDArray[np.uint64]
REGION = lib.FRAME_REGION


@dataclass
class KexecPages:
    """A guest whose pages go through a kexec.

    Parameters
    ----------
    memory : Memory
        Untouched; of a memory map its RAM is used, else all.
    ghcbs : sequence of int
        Frames of the GHCBs, one a CPU.
    shared : sequence of (first, n_pages)
        What else is shared: swiotlb, descriptor rings, bss_decrypted.
    strict, leaf_base : bool
        False brings a bug back: leaves just below a GHCB are skipped as if they held it (K1); of a
        large leaf only what follows the GHCB is made private at last (K2).
    """

    memory: Memory
    ghcbs: Sequence[int]
    shared: Sequence[tuple[int, int]] = ()
    strict: bool = True
    leaf_base: bool = True
    exits: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.where = "ram" if self.memory.map is not None else "all"
        self.ghcb_frames = np.unique(np.asarray(list(self.ghcbs), np.uint64))

    def accept(self) -> None:
        """All RAM private, validated, mapped in leaves of 2 MiB where it is aligned."""
        self._private(*self._extents(), "accept")

    def share(self) -> None:
        """Make buffers and GHCBs shared; leaves are split where they do not fit."""
        self._shared(*_spans(self.shared), "share buffers")
        alone = self.ghcb_frames[~self._are_shared(self.ghcb_frames)]  # others lie in a shared leaf
        self._shared(alone, np.ones_like(alone), "share GHCBs")

    def finish(self) -> None:
        """snp_kexec_finish: every shared leaf that holds no GHCB, then those that do."""
        firsts, lengths = self.memory.frames_where(lambda v: v["mapping"] == lib.FRAME_SHARED)
        leaf_firsts, leaf_lengths = self._leaves(firsts, lengths)
        holds = self._holds_ghcb(leaf_firsts, leaf_lengths)
        self._private(leaf_firsts[~holds], leaf_lengths[~holds], "unshare")
        lasts = self._last(leaf_firsts, leaf_lengths)
        if len(lasts[0]):
            self._private(*lasts, "GHCBs last", by_msr=True)

    def boot_again(self) -> None:
        """The second kernel: maps all RAM private, takes it for validated, shares its own pages."""
        firsts, lengths = self._extents()
        self._each(Op(lib.FRAME_OP_MAP, value=lib.FRAME_PRIVATE), firsts, lengths, "boot")
        self._each(Op(lib.FRAME_OP_BELIEVE, value=1), firsts, lengths, "boot")

    def left_behind(self) -> list[Disagreement]:
        """Where views disagree now."""
        return self.memory.disagreements()

    # -----------------------------------------------------------------------------------------------

    def _extents(self) -> tuple[U64, U64]:
        return self.memory.frames_of(self.where)

    def _are_shared(self, frames: U64) -> NDArray[np.bool_]:
        at, _, views = self.memory.views()
        return np.asarray(views["mapping"][at.ids(frames)] == lib.FRAME_SHARED)

    def _leaves(self, firsts: U64, lengths: U64) -> tuple[U64, U64]:
        """The shared leaves of the page table: runs cut at the ends of 2 MiB regions."""
        ends = firsts + lengths
        n = ((ends - 1) // REGION - firsts // REGION + 1).astype(np.int64)
        which = np.repeat(np.arange(len(firsts)), n)
        step = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        base = (firsts[which] // REGION + step.astype(np.uint64)) * np.uint64(REGION)
        start = np.maximum(base, firsts[which])
        stop = np.minimum(base + np.uint64(REGION), ends[which])
        return start, stop - start

    def _holds_ghcb(self, firsts: U64, lengths: U64) -> NDArray[np.bool_]:
        """Leaves that the walk leaves out: ``a <= ghcb < a + size``; of the bug ``ghcb <= a + size``."""
        side: str = "left"
        ends = firsts + lengths + (np.uint64(0) if self.strict else np.uint64(1))
        low = np.searchsorted(self.ghcb_frames, firsts, side=side)  # type: ignore[call-overload]
        high = np.searchsorted(self.ghcb_frames, ends, side=side)  # type: ignore[call-overload]
        return np.asarray(high > low)

    def _last(self, firsts: U64, lengths: U64) -> tuple[U64, U64]:
        if not len(firsts):
            return firsts, lengths
        at = np.searchsorted(firsts, self.ghcb_frames, side="right") - 1
        which = at[at >= 0]
        inside = self.ghcb_frames[at >= 0] < firsts[which] + lengths[which]
        which = which[inside]
        if self.leaf_base:
            which = np.unique(which)
            return firsts[which], lengths[which]
        frames = self.ghcb_frames[at >= 0][inside]
        return frames, firsts[which] + lengths[which] - frames

    def _private(self, firsts: U64, lengths: U64, label: str, *, by_msr: bool = False) -> None:
        asid, shift = self.memory.asid, self.memory.shift
        private = Op(lib.FRAME_OP_MAP, value=lib.FRAME_PRIVATE)
        update = Op(lib.FRAME_OP_RMPUPDATE, asid=asid, gfn=shift, value=lib.FRAME_NEW_ASSIGNED)
        validate = Op(lib.FRAME_OP_PVALIDATE, asid=asid, gfn=shift, value=1)
        listed = Op(lib.FRAME_OP_LIST, value=lib.FRAME_LISTED_PRIVATE)
        self._count(label, lengths, by_msr)
        for size, (starts, ns) in enumerate(_by_size(firsts, lengths, large=not by_msr)):
            if not len(starts):
                continue
            self._each(private._replace(size=size), starts, ns, label)
            self._each(update._replace(size=size), starts, ns, label)
            self._each(listed, starts, ns, label)
            self._each(validate._replace(size=size, backing=size), starts, ns, label)

    def _shared(self, firsts: U64, lengths: U64, label: str) -> None:
        asid, shift = self.memory.asid, self.memory.shift
        rescind = Op(lib.FRAME_OP_PVALIDATE, asid=asid, gfn=shift)
        update = Op(lib.FRAME_OP_RMPUPDATE)
        listed = Op(lib.FRAME_OP_LIST, value=lib.FRAME_LISTED_SHARED)
        mapped = Op(lib.FRAME_OP_MAP, value=lib.FRAME_SHARED)
        self._count(label, lengths, False)
        for size, (starts, ns) in enumerate(_by_size(firsts, lengths, large=True)):
            if not len(starts):
                continue
            if size == 0:
                self._smash(starts, ns, label)
            self._each(rescind._replace(size=size, backing=size), starts, ns, label)
            self._each(update._replace(size=size), starts, ns, label)
            self._each(listed, starts, ns, label)
            self._each(mapped._replace(size=size), starts, ns, label)

    def _smash(self, firsts: U64, lengths: U64, label: str) -> None:
        """The host splits 2 MiB entries of which only a part changes, on the guest's fault."""
        regions = np.unique(
            np.concatenate([firsts // REGION, (firsts + lengths - 1) // REGION]) * np.uint64(REGION)
        )
        large = self.memory.frames_large(regions)
        if large.any():
            self._must(self.memory.do(Op(lib.FRAME_OP_PSMASH), regions[large], label))

    def _each(self, op: Op, firsts: U64, lengths: U64, label: str) -> None:
        self._must(self.memory.spans(op, firsts, lengths, label))

    def _count(self, label: str, lengths: U64, by_msr: bool) -> None:
        n = int(lengths.sum()) if by_msr else len(lengths)
        self.exits[label] = self.exits.get(label, 0) + n

    @staticmethod
    def _must(outcome: Outcome) -> None:
        if not outcome:
            assert outcome.refused_at is not None
            raise OutOfRange(f"frame {outcome.refused_at:#x}: {outcome.refusal}")


def _spans(ranges: Sequence[tuple[int, int]]) -> tuple[U64, U64]:
    array = np.asarray(list(ranges), np.uint64).reshape(-1, 2)
    return np.ascontiguousarray(array[:, 0]), np.ascontiguousarray(array[:, 1])


def _by_size(firsts: U64, lengths: U64, *, large: bool) -> tuple[tuple[U64, U64], tuple[U64, U64]]:
    """Cut ranges into the parts that are whole 2 MiB regions and the rest: (4 KiB, 2 MiB)."""
    none = np.zeros(0, np.uint64)
    if not large:
        return (firsts, lengths), (none, none)
    ends = firsts + lengths
    low = np.minimum((firsts + np.uint64(REGION - 1)) // REGION * np.uint64(REGION), ends)
    high = np.maximum(ends // REGION * np.uint64(REGION), low)
    starts = np.concatenate([firsts, high])
    ns = np.concatenate([low - firsts, ends - high])
    has, whole = ns > 0, high > low
    order = np.argsort(starts[has], kind="stable")
    return (starts[has][order], ns[has][order]), (low[whole], (high - low)[whole])

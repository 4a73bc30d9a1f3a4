"""The page side of an SNP guest's life and of its kexec, step by step as Linux does it.

Only pages: who is stopped, woken and asked is the flows' affair. Each step is what the guest and
its hypervisor do together, and has a name by which a disagreement can be laid at its door.

    accept       firmware and kernel validate all RAM; it is mapped private in large leaves
    share        buffers, GHCBs and data that the host must see become shared, split leaves and all
    finish       snp_kexec_finish: walk the leaves, make shared ones private again, but for those
                 that hold a GHCB; these last, by the MSR protocol, 4 KiB at a time
    boot_again   the second kernel maps all of it private and notes it as validated

Source: Linux arch/x86/coco/sev/core.c; ``strict`` and ``leaf_base`` are the two repairs of
82b7f88f2316 ("x86/sev: Fix making shared pages private during kdump").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange, StateConflict
from ghcbcore.frame import Op

from .convert import Step, by_size, cut, overlap_of, to_private, to_shared
from .memory import Memory
from .records import Disagreement

__all__ = ["KexecPages"]

U64 = NDArray[np.uint64]
PAGES_OF_LEAF = np.array([1, lib.FRAME_REGION, lib.FRAME_REGION * lib.FRAME_REGION], np.uint64)


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
        False brings a bug back: a leaf just below a GHCB is skipped as if it held it (K1); of a
        large leaf only what follows the GHCB is converted at last, and what follows the leaf again
        (K2).

    Raises
    ------
    OutOfRange
        ``ghcbs[1]``, ``shared[2]``: beyond the guest, or shared twice.

    Notes
    -----
    ``exits`` counts the VMGEXITs of ``finish``, by its two parts: one for each leaf (8 of 1 GiB),
    one for each 4 KiB of the last leaves.
    """

    memory: Memory
    ghcbs: Sequence[int]
    shared: Sequence[tuple[int, int]] = ()
    strict: bool = True
    leaf_base: bool = True
    exits: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.where = "ram" if self.memory.map is not None else "all"
        n_pages = self.memory.n_pages
        for i, frame in enumerate(self.ghcbs):
            if not 0 <= frame < n_pages:
                raise OutOfRange(f"ghcbs[{i}] = {frame:#x}: the guest ends with {n_pages - 1:#x}")
        for i, (first, n) in enumerate(self.shared):
            if n < 1 or not 0 <= first < n_pages or n > n_pages - first:
                raise OutOfRange(
                    f"shared[{i}] = ({first:#x}, {n}): the guest ends with {n_pages - 1:#x}"
                )
        self.ghcb_frames = np.unique(np.asarray(list(self.ghcbs), np.uint64))
        self._buffers = _spans(self.shared)
        if found := overlap_of(*self._buffers):
            raise OutOfRange(f"shared[{found[1]}] overlaps shared[{found[0]}]")

    def accept(self) -> None:
        """All RAM private, validated, mapped in leaves of 2 MiB where it is aligned."""
        _must(to_private(self.memory, *self.memory.frames_of(self.where), "accept"))

    def share(self) -> None:
        """Make buffers and GHCBs shared; leaves are split where they do not fit."""
        _must(to_shared(self.memory, *self._buffers, "share buffers"))
        views = self.memory.views_at(self.ghcb_frames)
        alone = self.ghcb_frames[
            views["mapping"] != lib.FRAME_SHARED
        ]  # others lie in a shared leaf
        _must(to_shared(self.memory, alone, np.ones_like(alone), "share GHCBs"))

    def finish(self) -> None:
        """snp_kexec_finish: every shared leaf that holds no GHCB, then those that do.

        Raises
        ------
        StateConflict
            A GHCB is not shared. Nothing has happened.
        """
        last, last_lengths, last_leaves = self._shared_leaves(self.ghcb_frames)
        if len(last) < len(self.ghcb_frames):
            raise StateConflict("finish: a GHCB is not shared")
        self._walk()
        if self.leaf_base:
            bases, which = np.unique(last, return_index=True)
            self._last(bases, last_lengths[which], last_leaves[which], bases, last_lengths[which])
            self._count("GHCBs last", int(last_lengths.sum()))  # each CPU's, in one leaf or not
        else:
            end = np.uint64(self.memory.n_pages)
            lengths = np.minimum(last_lengths, end - self.ghcb_frames)
            self._last(last, last_lengths, last_leaves, self.ghcb_frames, lengths)
            self._count("GHCBs last", int(lengths.sum()))

    def boot_again(self) -> None:
        """The second kernel: maps all RAM private in large leaves, takes it for validated."""
        memory = self.memory
        firsts, lengths = memory.frames_of(self.where)
        private = Op(lib.FRAME_OP_MAP, value=lib.FRAME_PRIVATE)
        for size, (starts, ns) in enumerate(by_size(firsts, lengths)):
            if len(starts):
                memory.spans(private._replace(size=size), starts, ns, "boot")
        memory.spans(Op(lib.FRAME_OP_BELIEVE, value=1), firsts, lengths, "boot")

    def left_behind(self) -> list[Disagreement]:
        """Where views disagree now."""
        return self.memory.disagreements()

    # ---------------------------------------------------------------------------------------------

    def _shared_leaves(self, frames: U64) -> tuple[U64, U64, U64]:
        """The leaves in which frames lie, if they are shared: base, length, kind of leaf."""
        views = self.memory.views_at(frames)
        is_shared = views["mapping"] == lib.FRAME_SHARED
        leaves = views["leaf"][is_shared].astype(np.uint64)
        lengths = PAGES_OF_LEAF[leaves]
        return frames[is_shared] // lengths * lengths, lengths, leaves

    def _walk(self) -> None:
        """Leaves are left out that hold a GHCB; of the bug, ``ghcb <= end`` instead of ``<``."""
        probes = self.ghcb_frames
        if not self.strict:
            probes = np.unique(np.concatenate([probes, probes[probes > 0] - np.uint64(1)]))
        bases, lengths, leaves = self._shared_leaves(probes)
        bases, which = np.unique(bases, return_index=True)
        lengths, leaves = lengths[which], leaves[which]
        n_exits = 0
        for leaf, pages in enumerate(PAGES_OF_LEAF.tolist()):
            firsts, ns = self.memory.frames_where(partial(_is_shared_leaf, leaf=leaf))
            mine = leaves == leaf
            firsts, ns = cut(firsts, ns, bases[mine], lengths[mine])
            if len(firsts):
                size = min(leaf, lib.FRAME_LEAF_2M)
                _must(to_private(self.memory, firsts, ns, "unshare", leaf=leaf, size=size))
                n_exits += int(ns.sum()) // pages * (8 if leaf == lib.FRAME_LEAF_1G else 1)
        self._count("unshare", n_exits)

    def _last(self, bases: U64, lengths: U64, leaves: U64, firsts: U64, ns: U64) -> None:
        """The C-bit in each whole leaf; page-state change and PVALIDATE of the spans, 4 KiB
        each.
        """
        memory, label = self.memory, "GHCBs last"
        private = Op(lib.FRAME_OP_MAP, value=lib.FRAME_PRIVATE)
        for leaf in np.unique(leaves).tolist():
            mine = leaves == leaf
            memory.spans(private._replace(size=leaf), bases[mine], lengths[mine], label)
        _must(to_private(memory, firsts, ns, label, size=lib.RMP_PAGE_4K, maps=False))

    def _count(self, label: str, n: int) -> None:
        self.exits[label] = self.exits.get(label, 0) + n


def _is_shared_leaf(views: NDArray[np.void], *, leaf: int) -> NDArray[np.bool_]:
    return np.asarray((views["mapping"] == lib.FRAME_SHARED) & (views["leaf"] == leaf))


def _must(steps: Iterable[Step]) -> None:
    for step in steps:
        outcome = step()
        if not outcome:
            assert outcome.refused_at is not None
            raise OutOfRange(f"frame {outcome.refused_at:#x}: {outcome.refusal}")


def _spans(ranges: Sequence[tuple[int, int]]) -> tuple[U64, U64]:
    array = np.asarray(list(ranges), np.uint64).reshape(-1, 2)
    return np.ascontiguousarray(array[:, 0]), np.ascontiguousarray(array[:, 1])

"""What a hypervisor does to a guest's memory when it is asked: page-state changes,
KVM_HC_MAP_GPA_RANGE.

Source: GHCB NAE 0x80000010; Linux arch/x86/kvm/svm/sev.c,
Documentation/virt/kvm/x86/hypercalls.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ghcbcore import psc
from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange, SevError

from .records import Outcome

if TYPE_CHECKING:
    from .memory import Memory

__all__ = ["apply_map_gpa_range", "apply_psc"]


def apply_psc(
    memory: Memory, entries: NDArray[np.void] | NDArray[np.uint64], label: str
) -> Outcome:
    """See ``Memory.psc``."""
    if entries.dtype == np.uint64:
        entries = psc.decode_entries(np.ascontiguousarray(entries))
    if entries.dtype != psc.ENTRY_DTYPE or entries.ndim != 1:
        raise OutOfRange(
            f"entries: dtype {entries.dtype}, shape {entries.shape}; must be ENTRY_DTYPE (n,)"
        )
    n_changed = 0
    last = Outcome(memory.ledger.event, 0, 0, 0, None, "")
    for i, entry in enumerate(entries):
        gfn, op, size = int(entry["gfn"]), int(entry["op"]), int(entry["size"])
        n_pages, done = (lib.FRAME_REGION if size else 1), int(entry["cur_page"])
        first = (gfn - memory.shift) & lib.FRAME_GFN_MASK
        if not lib.GHCB_PSC_OP_PRIVATE <= op <= lib.GHCB_PSC_OP_UNSMASH or done > n_pages:
            raise OutOfRange(f"entries[{i}], gfn {gfn:#x}: op {op}, cur_page {done}")
        if done == n_pages:
            continue
        try:
            last = _one(memory, op, first, n_pages, done, label)
        except SevError as error:
            raise type(error)(f"entries[{i}], gfn {gfn:#x}: {error}") from error
        n_changed += last.n_changed
        if not last:
            return Outcome(last.event, i, n_changed, last.result, last.refused_at, last.refusal)
    return Outcome(last.event, len(entries), n_changed, last.result, None, "")


def _one(memory: Memory, op: int, first: int, n_pages: int, n_before: int, label: str) -> Outcome:
    """One entry; what is left of a 2 MiB page that was begun goes 4 KiB at a time."""
    if op in (lib.GHCB_PSC_OP_PSMASH, lib.GHCB_PSC_OP_UNSMASH):
        if op == lib.GHCB_PSC_OP_PSMASH:
            return memory.psmash(first, label=label)
        return memory.firmware("SNP_PAGE_UNSMASH", first, label=label)
    is_private = op == lib.GHCB_PSC_OP_PRIVATE
    frames = (first + n_before, n_pages - n_before)
    size = "2M" if n_pages > 1 and not n_before else "4K"
    last = memory.rmpupdate(frames, is_private, size=size, label=label)
    if last:
        memory.list_as(frames, "private" if is_private else "shared", label=label)
    return last


def apply_map_gpa_range(
    memory: Memory, gpa: int, n_pages: int, attributes: int, label: str
) -> Outcome:
    """See ``Memory.map_gpa_range``."""
    if gpa < 0 or gpa % lib.GHCB_PAGE_SIZE:
        raise OutOfRange(f"gpa = {gpa:#x}: must be a multiple of {lib.GHCB_PAGE_SIZE:#x}")
    first = (gpa // lib.GHCB_PAGE_SIZE - memory.shift) & lib.FRAME_GFN_MASK
    listed = "private" if attributes & lib.GHCB_MAP_GPA_ENCRYPTED else "shared"
    return memory.list_as((first, n_pages), listed, label=label)

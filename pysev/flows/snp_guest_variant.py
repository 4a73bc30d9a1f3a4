"""What distinguishes the scenarios of ``snp-guest-kexec/*``: which stages, and in which order.

Mainline's order and the parts of a conversion stand here once. The stages themselves are the
methods of ``pysev.flows.snp_guest_kexec.SnpGuestKexec``.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from ghcbcore._cffi import lib
from ghcbcore.frame import Op as FrameOp

from ..frames import map_as, pvalidate, rmpupdate

__all__ = ["CRASH", "NORMAL", "TO_PRIVATE", "TO_SHARED", "Kernel", "Variant", "swapped"]


class Kernel(enum.IntEnum):
    """``g.kernel``: which kernel the boot CPU runs."""

    OLD = 0
    NEW = 1


FINISH = ("destroy", "walk", "bss", "flush", "close", "ghcbs")
NORMAL = ("begin", "stop", *FINISH, "relocate", "use", "bring up")
CRASH = ("stop", "begin", *FINISH, "relocate", "read")

TO_SHARED: tuple[tuple[str, FrameOp], ...] = (
    ("PVALIDATE takes the page back", pvalidate(False)),
    ("VMGEXIT: PSC to shared", rmpupdate(False)),
    ("PTE: C-bit cleared", map_as(lib.FRAME_SHARED)),
)
TO_PRIVATE: tuple[tuple[str, FrameOp], ...] = (
    ("PTE: C-bit set", map_as(lib.FRAME_PRIVATE)),
    ("VMGEXIT: PSC to private", rmpupdate(True)),
    ("PVALIDATE", pvalidate(True)),
)
"""The parts of a conversion, in Linux's order.

To shared: enc_status_change_prepare, then the page table; to private: the page table, then
enc_status_change_finish.
"""


def swapped(stages: Sequence[str], what: str, *, before: str) -> tuple[str, ...]:
    """Return the stages with one of them moved."""
    rest = [s for s in stages if s != what]
    at = rest.index(before)
    return (*rest[:at], what, *rest[at:])


@dataclass(frozen=True)
class Variant:
    """What distinguishes one scenario of the family from another; the defaults are mainline."""

    stages: tuple[str, ...] = NORMAL
    crash: bool = False
    on_ap: bool = False  # the CPU that crashed is not the BSP: its VMSA lies in RAM
    converts: str = ""  # another CPU converts a page: "", "to shared", "to private"
    pte_first: bool = True  # F2: the C-bit in the PTE before the PSC
    strict: bool = True  # F2: a leaf that ends where a GHCB begins is not taken for its leaf
    leaf_base: bool = True  # F6: from the base of the leaf, not from the GHCB
    others_last: bool = True  # F6: the GHCBs of all CPUs, not only the own one
    offline: bool = True  # F1: marks the own VMSA page PageOffline
    honours_offline: bool = True  # the reader of the dump leaves such pages out
    refused: bool = False  # the hypervisor may refuse to destroy a vCPU
    allocates: bool = False  # another CPU may hold the page allocator's lock
    frees: bool = True  # F1 gives VMSA pages back to the allocator
    uses_buffer: bool = False  # other CPUs do I/O through a shared buffer
    impatient: bool = False  # the crash goes on after a second, whoever has not answered
    cut_short: str = ""  # a PSC that the hypervisor did not finish: guest "asks again", "goes on"
    wakes: bool = False  # the hypervisor may let a halted CPU run on, once
    resurrects: str = ""  # user space makes a destroyed vCPU runnable, and KVM: "runs", "refuses"

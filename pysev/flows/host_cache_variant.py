"""What the designs of ``host-cache-flush/*`` have in common, and what tells them apart.

The flow itself is in ``pysev.flows.host_cache_flush``, that of a crash in ``host_cache_crash``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ghcbcore._cffi import lib

KEY = int(lib.GHCB_KEY_SLOT_FIRST_ASID)
"""The slot that stands for a KeyID of TDX, or for a guest's own key."""

PLAIN, SME = int(lib.GHCB_KEY_SLOT_NONE), int(lib.GHCB_KEY_SLOT_SME)


class Bytes(enum.IntEnum):
    """What the line holds, and what the new kernel has read (``g.read``)."""

    NOISE = int(lib.GHCB_LINE_NOISE)
    OLD = 1
    NEW = 2
    NOT_READ = int(lib.GHCB_LINE_N_VALUES)


class Kernel(enum.IntEnum):
    """``g.kernel``: which kernel the boot CPU runs."""

    OLD = 0
    NEW = 1


# Who flushes (``Variant.remote``, ``Variant.last``)
NEVER, ALWAYS, FLAG = "never", "always", "cache_state_incoherent"

# Where the boot CPU decides whether to flush (``Variant.decides``)
BEFORE_SEGMENTS = "before load_segments"
BY_CALL = "by a call after load_segments"
BY_FLAG = "by its per-CPU flag after load_segments"
INLINE = "inline after load_segments"


@dataclass(frozen=True)
class Variant:
    """What distinguishes one design of the family from another.

    Attributes
    ----------
    rules : str
        ``sme``: any store under the old kernel is under the key. ``tdx``: only SEAMCALLs are.
    guest : bool
        A guest (of SEV or TDX) is kexec'ed, whose kernels use one and the same key.
    remote, last : str
        Who flushes: the other CPUs in ``stop_this_cpu``, the boot CPU in ``relocate_kernel``.
    keeps_lines : bool
        By WBNOINVD.
    early : bool
        All CPUs flush while the old kernel still runs, and not again.
    after_copy : bool
        The boot CPU flushes behind the copying.
    decides : str
        Where the boot CPU decides.
    coherent : bool
        The part reports SME_COHERENT.
    by_online_mask : bool
        The boot CPU waits for CPUs to be offline, not for their bits in cpus_stop_mask.
    mask_line : bool
        The line is the one in which cpus_stop_mask lies.
    takes_back : bool
        The boot CPU clears cpus_stop_mask once more when all bits are clear.
    writes_on : bool
        ``stop_this_cpu`` may write its stack after its WBINVD.
    nmi : bool
        NMI to those that have not reported within a second; WBINVD takes long.
    flag_late : bool
        A SEAMCALL sets cache_state_incoherent when it has returned.
    kvm_flushes : str
        ``""``, ``sometimes`` (when KVM needs no more SEAMCALLs) or ``at shutdown``.
    partial_writes : str
        ``""``, or on a part where a write of part of a private line poisons it: ``allowed`` or
        ``refused`` when the image is loaded.
    """

    rules: str = "sme"
    guest: bool = False
    remote: str = NEVER
    last: str = NEVER
    keeps_lines: bool = False
    early: bool = False
    after_copy: bool = False
    decides: str = BEFORE_SEGMENTS
    coherent: bool = False
    by_online_mask: bool = False
    mask_line: bool = False
    takes_back: bool = True
    writes_on: bool = False
    nmi: bool = False
    flag_late: bool = False
    kvm_flushes: str = ""
    partial_writes: str = ""

    @property
    def old_key(self) -> int:
        """The slot under which the old kernel's copy is."""
        return SME if self.rules == "sme" and not self.guest else KEY

    @property
    def new_key(self) -> int:
        """The slot under which the new kernel uses the line."""
        return KEY if self.guest else PLAIN

    @property
    def has_flag(self) -> bool:
        return FLAG in (self.remote, self.last)

    def domains(self) -> dict[int, str]:
        if self.guest:
            return {KEY: "C=1" if self.rules == "sme" else "private"}
        if self.rules == "sme":
            return {PLAIN: "C=0", SME: "C=1"}
        return {PLAIN: "no KeyID", KEY: "KeyID"}

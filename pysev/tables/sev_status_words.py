"""How Linux spells the bits of SEV_STATUS in its boot log, and which of them a guest must know.

``must``: a kernel that finds the bit set and lacks support ends itself with termination 0:2.

Source: Linux asm/msr-index.h, arch/x86/coco/sev/core.c (from 6.9 on, and the spaced words before),
arch/x86/boot/compressed/sev.c.
"""

from __future__ import annotations

from typing import NamedTuple

from ghcbcore._cffi import lib

__all__ = ["STATUS_WORDS", "StatusWord"]


class StatusWord(NamedTuple):
    """One bit: its spelling, an older one ("" if there is none), whether a guest must know it."""

    bit: int
    word: str
    old: str = ""
    must: bool = False


STATUS_WORDS = (
    StatusWord(lib.SEV_STATUS_SEV, "SEV"),
    StatusWord(lib.SEV_STATUS_SEV_ES, "SEV-ES"),
    StatusWord(lib.SEV_STATUS_SEV_SNP, "SEV-SNP"),
    StatusWord(lib.SEV_STATUS_VTOM, "vTom", must=True),
    StatusWord(lib.SEV_STATUS_REFLECT_VC, "ReflectVC", "Reflect VC", must=True),
    StatusWord(lib.SEV_STATUS_RESTRICTED_INJECTION, "RI", must=True),
    StatusWord(lib.SEV_STATUS_ALTERNATE_INJECTION, "AI", must=True),
    StatusWord(lib.SEV_STATUS_DEBUG_SWAP, "DebugSwap", must=True),
    StatusWord(lib.SEV_STATUS_PREVENT_HOST_IBS, "NoHostIBS", "No HostIBS"),
    StatusWord(lib.SEV_STATUS_BTB_ISOLATION, "BTBIsol", "BTB Isol"),
    StatusWord(lib.SEV_STATUS_VMPL_SSS, "VmplSSS", must=True),
    StatusWord(lib.SEV_STATUS_SECURE_TSC, "SecureTSC", "Secure TSC", must=True),
    StatusWord(lib.SEV_STATUS_VMGEXIT_PARAM, "VMGExitParam", "VMGExit param", must=True),
    StatusWord(lib.SEV_STATUS_IBS_VIRT, "IBSVirt"),
    StatusWord(lib.SEV_STATUS_VMSA_REG_PROT, "VMSARegProt", "VMSA reg prot", must=True),
    StatusWord(lib.SEV_STATUS_SMT_PROT, "SMTProt", "SMT prot"),
    StatusWord(lib.SEV_STATUS_SECURE_AVIC, "SecureAVIC", must=True),
    StatusWord(lib.SEV_STATUS_IBPB_ON_ENTRY, "IBPBOnEntry"),
)

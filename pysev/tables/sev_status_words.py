"""How older Linux guests spelled bits of SEV_STATUS in their boot log (before 6.9).

The words of today are in ``pysev.tables.sev``.

Source: Linux arch/x86/coco/sev/core.c; a log of 6.8 (LKML, Feb 2024).
"""

from __future__ import annotations

from pysev.tables.schema import lib

__all__ = ["OLD_WORDS"]

OLD_WORDS: dict[int, str] = {
    lib.SEV_STATUS_REFLECT_VC: "Reflect VC",
    lib.SEV_STATUS_PREVENT_HOST_IBS: "No HostIBS",
    lib.SEV_STATUS_BTB_ISOLATION: "BTB Isol",
    lib.SEV_STATUS_SECURE_TSC: "Secure TSC",
    lib.SEV_STATUS_VMGEXIT_PARAM: "VMGExit param",
    lib.SEV_STATUS_VMSA_REG_PROT: "VMSA reg prot",
    lib.SEV_STATUS_SMT_PROT: "SMT prot",
}

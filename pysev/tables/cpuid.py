"""CPUID 0x8000001F in words: what a processor offers to encrypted guests and their hosts.

Source: Linux asm/cpufeatures.h and arch/x86/kernel/cpu/amd.c; bits 5 and 9 also AMD64 APM.
"""

from __future__ import annotations

from pysev.tables.schema import Bits, Code, lib

__all__ = ["EBX", "FEATURES"]

FEATURES = (
    Code("sme", lib.CPUID_SEV_SME, "SME: the host can encrypt its memory"),
    Code("sev", lib.CPUID_SEV_SEV, "SEV"),
    Code("vm_page_flush", lib.CPUID_SEV_VM_PAGE_FLUSH, "an MSR flushes a guest's page"),
    Code("sev_es", lib.CPUID_SEV_SEV_ES, "SEV-ES"),
    Code("snp", lib.CPUID_SEV_SNP, "SEV-SNP"),
    Code("vmpl", lib.CPUID_SEV_VMPL, "VMPLs"),
    Code("secure_tsc", lib.CPUID_SEV_SECURE_TSC, "secure TSC"),
    Code("tsc_aux", lib.CPUID_SEV_TSC_AUX, "virtual TSC_AUX"),
    Code("coherent", lib.CPUID_SEV_COHERENT, "caches are coherent whatever the C-bit"),
    Code("debug_swap", lib.CPUID_SEV_DEBUG_SWAP, "debug registers are swapped"),
    Code("rmpread", lib.CPUID_SEV_RMPREAD, "RMPREAD"),
    Code("segmented_rmp", lib.CPUID_SEV_SEGMENTED_RMP, "segmented RMP"),
    Code("allowed_features", lib.CPUID_SEV_ALLOWED_FEATURES, "a host may limit SEV_FEATURES"),
    Code("svsm_page", lib.CPUID_SEV_SVSM_PAGE, "communication page of an SVSM"),
    Code(
        "in_use_write",
        lib.CPUID_SEV_IN_USE_WRITE,
        "a host may write to its own pages while a guest uses them",
    ),
)

EBX = (
    Bits("c_bit", lib.CPUID_SEV_C_BIT_SHIFT, lib.CPUID_SEV_C_BIT_WIDTH, "position of the C-bit"),
    Bits(
        "reduction",
        lib.CPUID_SEV_REDUCTION_SHIFT,
        lib.CPUID_SEV_REDUCTION_WIDTH,
        "address bits lost while encryption is on",
    ),
    Bits("n_vmpls", lib.CPUID_SEV_VMPLS_SHIFT, lib.CPUID_SEV_VMPLS_WIDTH, "VMPLs"),
)

"""The bits of SEV_STATUS in words: what each switches on and what Linux prints for it.

``word`` is what the Linux guest writes into its log line ``SEV: Status:``, "" where it has none.
``must`` says that a Linux guest which does not support the bit ends itself when it is set; it does
so for every reserved bit too. The field SEV_FEATURES of the VMSA has the same bits from SNP up.

Source: Linux asm/msr-index.h and coco/sev/core.c, EDK2, OpenVMM, SVSM.
"""

from __future__ import annotations

from pysev.tables.schema import StatusBit, lib

__all__ = ["STATUS_BITS"]

STATUS_BITS = (
    StatusBit("sev", lib.SEV_STATUS_SEV, "SEV", "memory is encrypted"),
    StatusBit("sev_es", lib.SEV_STATUS_SEV_ES, "SEV-ES", "registers are encrypted"),
    StatusBit("sev_snp", lib.SEV_STATUS_SEV_SNP, "SEV-SNP", "memory has integrity"),
    StatusBit("vtom", lib.SEV_STATUS_VTOM, "vTom", "virtual top of memory", True),
    StatusBit(
        "reflect_vc", lib.SEV_STATUS_REFLECT_VC, "ReflectVC", "#VC goes to a paravisor", True
    ),
    StatusBit(
        "restricted_injection",
        lib.SEV_STATUS_RESTRICTED_INJECTION,
        "RI",
        "the host injects nothing but #HV",
        True,
    ),
    StatusBit(
        "alternate_injection",
        lib.SEV_STATUS_ALTERNATE_INJECTION,
        "AI",
        "interrupts are injected through the VMSA",
        True,
    ),
    StatusBit(
        "debug_swap",
        lib.SEV_STATUS_DEBUG_SWAP,
        "DebugSwap",
        "hardware switches the debug registers",
        True,
    ),
    StatusBit(
        "prevent_host_ibs",
        lib.SEV_STATUS_PREVENT_HOST_IBS,
        "NoHostIBS",
        "the host cannot sample instructions of the guest",
    ),
    StatusBit(
        "btb_isolation", lib.SEV_STATUS_BTB_ISOLATION, "BTBIsol", "branch targets are isolated"
    ),
    StatusBit(
        "vmpl_sss", lib.SEV_STATUS_VMPL_SSS, "VmplSSS", "supervisor shadow stack per VMPL", True
    ),
    StatusBit(
        "secure_tsc", lib.SEV_STATUS_SECURE_TSC, "SecureTSC", "secure time stamp counter", True
    ),
    StatusBit(
        "vmgexit_param",
        lib.SEV_STATUS_VMGEXIT_PARAM,
        "VMGExitParam",
        "VMGEXIT has a parameter",
        True,
    ),
    StatusBit(
        "pmc_virt",
        lib.SEV_STATUS_PMC_VIRT,
        "",
        "performance counters are virtualised; Linux calls the bit reserved",
        True,
    ),
    StatusBit(
        "ibs_virt", lib.SEV_STATUS_IBS_VIRT, "IBSVirt", "instruction sampling is virtualised"
    ),
    StatusBit(
        "vmsa_reg_prot",
        lib.SEV_STATUS_VMSA_REG_PROT,
        "VMSARegProt",
        "registers in the VMSA are masked with a nonce",
        True,
    ),
    StatusBit(
        "smt_prot", lib.SEV_STATUS_SMT_PROT, "SMTProt", "the other thread must idle meanwhile"
    ),
    StatusBit(
        "secure_avic", lib.SEV_STATUS_SECURE_AVIC, "SecureAVIC", "secure interrupt controller", True
    ),
    StatusBit(
        "ibpb_on_entry",
        lib.SEV_STATUS_IBPB_ON_ENTRY,
        "IBPBOnEntry",
        "branch prediction is flushed on entry",
    ),
)

"""What checks over several lines of a kernel log may find; their code is ``pysev.doctor.checks``.

Source: each row names its own; ``AMDSEV n`` is an issue of AMDESE/AMDSEV.
"""

from __future__ import annotations

from pysev.tables.doctor_schema import Finding

__all__ = ["CHECKS"]

_RMP = "Linux arch/x86/virt/svm/sev.c"
_CCP = "Linux drivers/crypto/ccp/sev-dev.c"
_KVM = "Linux arch/x86/kvm/svm/sev.c"

CHECKS = (
    Finding(
        "e820_unreadable",
        "warning",
        "the memory map cannot be read: {why}",
        "Linux arch/x86/kernel/e820.c",
        "two boots in one log, or lines lost: checks against memory are left out",
    ),
    Finding(
        "rmp_geometry",
        "error",
        "RMP {base} - {end}: {why}",
        "AMD64 APM volume 2; " + _RMP,
        "the BIOS has set this; update it",
    ),
    Finding(
        "rmp_alignment",
        "error",
        "RMP {base} - {end} does not begin and end at a multiple of 1 MiB: firmware refuses it",
        "AMD-ASPFW SNP_INIT_EX; Linux x86/amd-memory-encryption.rst",
        "the BIOS has set this; update it",
    ),
    Finding(
        "rmp_edge_reserved",
        "note",
        "the RMP's {edge} is not at a multiple of 2 MiB; the kernel keeps {at} from use",
        "Linux 400fea4b9651 (6.9)",
    ),
    Finding(
        "rmp_edge_free",
        "warning",
        "the RMP's {edge} is not at a multiple of 2 MiB, RAM shares {at} with it, "
        "and no line says that it is kept from use",
        "Linux 400fea4b9651, d6d85ac15cce (6.9), 88a921aa3c6b; AMDSEV 245",
        "a kernel from 6.9 on reserves that piece for itself and for kexec; before, kexec "
        "can place "
        "segments there and dies of an RMP fault",
    ),
    Finding(
        "rmp_edge_unknown",
        "note",
        "the RMP's {edge} is not at a multiple of 2 MiB; this log does not say who uses {at}",
        "Linux 400fea4b9651 (6.9)",
        "a kernel from 6.9 on keeps it from use if any of it is RAM",
    ),
    Finding(
        "rmp_reserve_odd",
        "warning",
        "the kernel reserved {at}, which is neither the first nor the last 2 MiB piece of the RMP",
        _RMP,
        "lines of two machines or boots may be mixed",
    ),
    Finding(
        "rmp_cover",
        "error",
        "the RMP covers memory up to {covered}, RAM goes up to {ram}: {missing} have no entry",
        _RMP,
        'let the BIOS cover all of memory ("SNP Memory Coverage"), or update it',
    ),
    Finding(
        "rmp_self",
        "error",
        "the RMP {base} - {end} covers memory up to {covered}, and lies above that itself: no SNP",
        _RMP,
        "update the BIOS",
    ),
    Finding(
        "rmp_hole",
        "warning",
        "no segment of the RMP has entries for RAM at {ranges}, {missing} in all; the kernel looks "
        "at the end of the last segment alone and takes this table",
        _RMP,
        "RMPUPDATE of such a page fails: let the BIOS cover all of memory, or keep guests from it",
    ),
    Finding(
        "rmp_in_ram",
        "error",
        "{size} of the RMP {base} - {end} are usable RAM in the memory map",
        _RMP,
        "the BIOS must report the RMP as reserved; update it",
    ),
    Finding(
        "rmp_segment_cover",
        "error",
        "segment {number} has entries for {pages} pages, but is said to cover {wanted}",
        _RMP,
        "update the BIOS",
    ),
    Finding(
        "kexec_in_edge",
        "error",
        "kexec segment {number} at {mem} lies in the 2 MiB piece {at}, which the RMP's "
        "{edge} shares: "
        "writing there is an RMP fault",
        "Linux 400fea4b9651 (6.9)",
        "take a kernel from 6.9 on, which keeps the piece from kexec",
    ),
    Finding(
        "iommu_option",
        "note",
        "with {option} on the command line this machine cannot be an SNP host",
        "Linux drivers/iommu/amd/init.c, iommu_snp_enable",
        "SNP needs the IOMMU to translate, with version 1 page tables: leave the option out",
    ),
    Finding(
        "asid_split",
        "error",
        "SEV has ASIDs from {sev_min}, SEV-ES and SNP end with {es_max}: there must be no "
        "gap and no overlap",
        "CPUID 0x8000001F EDX; " + _KVM,
        "lines of two boots may be mixed",
    ),
    Finding(
        "asid_share",
        "note",
        "SEV-ES has ASIDs {es}, SNP {snp}: they do not share, as with ciphertext hiding",
        _KVM,
    ),
    Finding(
        "asid_none",
        "warning",
        "no ASIDs for {what} guests",
        "CPUID 0x8000001F EDX; " + _KVM,
        'raise "SEV-ES ASID Space Limit" in the BIOS, and look at the parameters of kvm_amd',
    ),
    Finding(
        "asid_cpuid",
        "error",
        "CPUID leaves ASIDs {cpuid} to SEV, KVM says {kvm}",
        "CPUID 0x8000001F",
        "lines of two machines may be mixed",
    ),
    Finding(
        "api_snp",
        "error",
        "firmware's API is {api}: SNP needs 1.51",
        _CCP,
        "update the SEV firmware",
    ),
    Finding(
        "api_init_ex",
        "warning",
        "firmware's API is {api}: SNP_INIT_EX came with 1.52",
        _CCP,
        "update the SEV firmware; without it there is no list of pages for the host to keep",
    ),
    Finding(
        "api_kexec",
        "warning",
        "firmware's API is {api}: kexec of an SNP host needs 1.53",
        _CCP + "; AMD-ASPFW",
        "older firmware leaves wrong counts for the IOMMU's pages: the next kernel gets RMP faults",
    ),
    Finding(
        "crash_kernel_missing",
        "warning",
        "crashkernel={asked} on the command line, but no line says that memory was reserved",
        "Linux kernel/crash_reserve.c",
        "a machine below the smallest range gets nothing; else look for why it failed",
    ),
    Finding(
        "crash_kernel_small",
        "warning",
        "{mib} MiB for a crash kernel of {ram} with memory encryption: {want} MiB are usual",
        "kdump-utils kdump-lib (256 MiB, from 64 GiB on 512 MiB, and 64 MiB for encryption)",
        "the crash kernel needs bounce buffers too: crashkernel={want}M; kdump-utils add 64 MiB "
        "only where the log ends its list of features with SME or SEV",
    ),
    Finding(
        "swiotlb_odd",
        "note",
        "bounce buffers have {mib} MiB, where {ram} of memory give {want}",
        "Linux mem_encrypt.c: 6 % of memory, 64 MiB to 1 GiB; AMDSEV 116",
        "swiotlb= on the command line, or lines of two boots",
    ),
    Finding(
        "swiotlb_low",
        "note",
        "the bounce buffers of 1 GiB must lie in one piece below 4 GiB",
        "AMDSEV 116",
        "guests of 128 GiB and more have failed to boot for want of it",
    ),
    Finding(
        "status_unknown",
        "note",
        "SEV: Status has words without a bit here: {words}",
        "Linux asm/msr-index.h",
    ),
    Finding(
        "status_must",
        "note",
        "the guest kernel must implement {words}; one that does not ends itself with 0:2",
        "Linux arch/x86/boot/compressed/sev.c, SNP_FEATURES_IMPL_REQ",
    ),
    Finding(
        "status_contradiction",
        "warning",
        "active are {active}, SEV_STATUS has {status}",
        "Linux arch/x86/mm/mem_encrypt.c",
        "lines of two boots may be mixed",
    ),
    Finding(
        "smp_hang",
        "error",
        "the log ends where the other CPUs are started: the first of them never came up",
        'LKML, "x86/fred: pinning" (Feb 2026)',
        "in an SNP guest: look at the host's log for AP creation; boot with maxcpus=1 to go on",
    ),
    Finding(
        "rmp_in_use",
        "warning",
        "page {pfn} is the host's and nothing around it is assigned: the processor had it in use",
        "KVM list, AVIC on an SNP host (Oct 2024); Linux 75253db41a46",
        "on an SNP host VMRUN marks VMCB, VMSA and AVIC page of every guest: no 2 MiB "
        "aligned pages for "
        "them, and avic=0 unless CPUID 0x8000001F EAX bit 30 is set",
    ),
    Finding(
        "long_lines",
        "note",
        "{count} lines are longer than a kernel's: only their beginning was read, first line "
        "{line}",
        "pysev",
    ),
    Finding(
        "nul_bytes",
        "note",
        "{count} NUL bytes passed over: a log that was cut by a crash has them",
        "pysev",
    ),
    Finding(
        "more",
        "note",
        "{count} more findings of kinds that have 20 already are left out",
        "pysev",
    ),
)

"""What lines of a kernel log say about SEV: facts, which are shown or which checks use.

Findings by single lines: ``pysev.tables.doctor_rules``; over several: ``doctor_checks``. Numbers
inside the lines are decoded by ``pysev.doctor.reading``.

Source: each row names its own.
"""

from __future__ import annotations

from pysev.tables.doctor_schema import Rule

__all__ = ["FACTS"]

_RMP = "Linux arch/x86/virt/svm/sev.c"
_CCP = "Linux drivers/crypto/ccp/sev-dev.c"
_KVM = "Linux arch/x86/kvm/svm/sev.c"
_GUEST = "Linux arch/x86/coco/sev"
_IOMMU = "Linux drivers/iommu/amd/init.c"

FACTS = (
    Rule("linux_version", r"\bLinux version (?P<version>\S+)", "fact", "{version}", "Linux init"),
    Rule(
        "command_line",
        r"(?:Kernel command line|Command line|cmdline-fragment): (?P<cmdline>.*)",
        "fact",
        "{cmdline}",
        "Linux init",
    ),
    Rule(
        "hypervisor",
        r"Hypervisor detected: (?P<hypervisor>\S.*)",
        "fact",
        "{hypervisor}",
        "Linux arch/x86/kernel/cpu/hypervisor.c",
        side="guest",
    ),
    Rule("dmi", r"\bDMI: (?P<dmi>\S.*)", "fact", "{dmi}", "Linux drivers/firmware/dmi_scan.c"),
    Rule("cpu", r"smpboot: CPU0: (?P<cpu>.*?) \(family", "fact", "{cpu}", "Linux smpboot.c"),
    Rule(
        "e820",
        r"BIOS-e820: \[mem (?P<start>0x[0-9a-fA-F]+)-(?P<last>0x[0-9a-fA-F]+)\] (?P<kind>.*)",
        "fact",
        "{start}-{last} {kind}",
        "Linux arch/x86/kernel/e820.c",
    ),
    Rule("last_pfn", r"\blast_pfn = (?P<pfn>0x[0-9a-f]+)", "fact", "{pfn}", "Linux e820.c"),
    Rule(
        "encryption",
        r"(?:(?:AMD )?Memory Encryption Features active: |AMD (?=Secure (?:Encrypted|Memory)))"
        r"(?:AMD )?(?P<features>.*)",
        "fact",
        "{features}",
        "Linux arch/x86/mm/mem_encrypt.c",
    ),
    Rule(
        "sev_status",
        r"\bSEV: Status: (?P<status>.*)",
        "fact",
        "{status}",
        f"{_GUEST}/core.c",
        side="guest",
    ),
    Rule(
        "cpuid_table",
        r"SEV: Using SNP CPUID table, (?P<entries>\d+) entries",
        "fact",
        "{entries} entries",
        f"{_GUEST}/core.c",
        side="guest",
    ),
    Rule("vmpl", r"SNP running at VMPL(?P<vmpl>\d)", "fact", "{vmpl}", _GUEST, side="guest"),
    Rule(
        "guest_driver",
        r"SNP guest platform devices? initialized|Initialized SEV guest driver",
        "fact",
        "there",
        "Linux drivers/virt/coco/sev-guest",
        side="guest",
    ),
    Rule(
        "ap_creation",
        r"wakeup_secondary_cpu\(\) replaced with wakeup_cpu_via_vmgexit",
        "fact",
        "APs are created by the guest",
        _GUEST,
        side="guest",
    ),
    Rule("smp_start", r"x86: Booting SMP configuration", "fact", "begun", "Linux smpboot.c"),
    Rule(
        "smp_done",
        r"smp: Brought up \d+ nodes?, (?P<cpus>\d+) CPU",
        "fact",
        "{cpus} CPUs",
        "Linux kernel/smp.c",
    ),
    Rule(
        "c_bit_mask",
        r"SEV is enabled \(mask (?P<mask>0x[0-9a-fA-F]+)\)",
        "fact",
        "{said}",
        "OVMF debug output",
        read="c_bit_mask",
        side="guest",
    ),
    Rule(
        "ovmf_ghcbs",
        r"SEV-ES is enabled, (?P<pages>\d+) GHCB pages allocated starting at (?P<gpa>0x\w+)",
        "fact",
        "{pages} GHCB pages from {gpa}",
        "OVMF debug output",
        side="guest",
    ),
    Rule(
        "hyperv_isolation",
        r"Isolation Config: Group A (?P<a>0x[0-9a-f]+), Group B (?P<b>0x[0-9a-f]+)",
        "fact",
        "{said}",
        "Linux arch/x86/kernel/cpu/mshyperv.c",
        read="isolation",
        side="guest",
    ),
    Rule(
        "rmp",
        r"RMP table physical (?:range|address):? \[?(?P<base>0x[0-9a-fA-F]+) - "
        r"(?P<end>0x[0-9a-fA-F]+)",
        "fact",
        "{base} - {end}",
        _RMP,
        side="host",
    ),
    Rule(
        "rmp_segmented",
        r"Segmented RMP base table physical range \[(?P<base>0x[0-9a-fA-F]+) - ",
        "fact",
        "base table at {base}",
        _RMP,
        side="host",
    ),
    Rule(
        "rmp_segment_gib",
        r"Segmented RMP using (?P<gib>\d{1,10})GB segments",
        "fact",
        "segments of {gib} GiB",
        _RMP,
        side="host",
    ),
    Rule(
        "rmp_segment",
        r"RMP segment (?P<number>\d+) physical address \[(?P<base>0x[0-9a-fA-F]+) ?- ?"
        r"(?P<end>0x[0-9a-fA-F]+)\] covering \[(?P<first>0x[0-9a-fA-F]+) ?- ?"
        r"(?P<last>0x[0-9a-fA-F]+)\]",
        "fact",
        "segment {number} covers {first} - {last}",
        _RMP,
        side="host",
    ),
    Rule(
        "rmp_reserve",
        r"Reserving start/end of RMP table on a 2MB boundary \[(?P<at>0x[0-9a-fA-F]+)\]",
        "fact",
        "{at}",
        _RMP,
        side="host",
    ),
    Rule(
        "rmp_region",
        r"PFN (?P<pfn>0x[0-9a-f]+) unassigned, dumping non-zero entries in 2M PFN region: "
        r"\[(?P<first>0x[0-9a-f]+) - (?P<last>0x[0-9a-f]+)\]",
        "fact",
        "page {pfn} is the host's; around it {first} - {last}",
        _RMP,
        side="host",
    ),
    Rule(
        "api",
        r"\bSEV(?P<snp>-SNP)? API:(?P<major>\d{1,4})\.(?P<minor>\d{1,4}) build:(?P<build>\d{1,6})",
        "fact",
        "API {major}.{minor} build {build}",
        _CCP,
        side="host",
    ),
    Rule(
        "asids",
        r"\b(?P<what>SEV|SEV-ES|SEV-SNP) (?P<state>enabled|disabled|unusable) "
        r"\(ASIDs (?P<min>\d{1,10}) - (?P<max>\d{1,10})\)",
        "fact",
        "{what} {state}: ASIDs {min} to {max}",
        _KVM,
        side="host",
    ),
    Rule(
        "asid_count",
        r"\b(?P<what>SEV-ES and SEV-SNP|SEV-ES|SEV-SNP|SEV) supported: (?P<count>\d{1,10}) ASIDs",
        "fact",
        "{what}: {count} ASIDs",
        _KVM,
        side="host",
    ),
    Rule("iommu_snp", r"IOMMU SNP support (?:is )?enabled", "fact", "on", _IOMMU, side="host"),
    Rule(
        "swiotlb",
        r"SWIOTLB bounce buffer size adjusted to (?P<mib>\d{1,9})\s?MB",
        "fact",
        "adjusted to {mib} MiB",
        "Linux arch/x86/mm/mem_encrypt.c",
    ),
    Rule(
        "swiotlb_mapped",
        r"software IO TLB: mapped \[mem (?P<start>0x\w+)-(?P<last>0x\w+)\] \((?P<mib>\d+)MB\)",
        "fact",
        "{mib} MiB at {start}",
        "Linux kernel/dma/swiotlb.c",
    ),
    Rule(
        "crash_kernel",
        r"crashkernel reserved: (?P<start>0x[0-9a-f]+) - (?P<end>0x[0-9a-f]+) "
        r"\((?P<mib>\d{1,9}) MB\)",
        "fact",
        "{mib} MiB at {start}",
        "Linux kernel/crash_reserve.c",
    ),
    Rule(
        "crash_kernel_old",
        r"Reserving (?P<mib>\d{1,9})MB of memory at (?P<at>\d{1,9})MB for crashkernel",
        "fact",
        "{mib} MiB at {at} MiB",
        "Linux arch/x86/kernel/setup.c",
    ),
    Rule(
        "crash_kernel_low",
        r"crashkernel low memory reserved: .*\((?P<mib>\d{1,9}) MB\)"
        r"|Reserving (?P<mib_old>\d{1,9})MB of low memory",
        "fact",
        "low",
        "Linux kernel/crash_reserve.c",
    ),
    Rule(
        "kexec_segment",
        r"segment\[(?P<number>\d+)\]: .*\bmem=(?P<mem>0x[0-9a-f]+) memsz=(?P<memsz>0x[0-9a-f]+)",
        "fact",
        "segment {number} at {mem}",
        "Linux kernel/kexec_file.c",
    ),
    Rule(
        "cpuid",
        r"eax=(?P<eax>0x[0-9a-f]{1,8}) ebx=(?P<ebx>0x[0-9a-f]{1,8}) "
        r"ecx=(?P<ecx>0x[0-9a-f]{1,8}) edx=(?P<edx>0x[0-9a-f]{1,8})",
        "fact",
        "{said}",
        "CPUID 0x8000001F",
        read="cpuid",
    ),
    Rule(
        "c_bit_report",
        r"C-bit location: (?P<c_bit>\d{1,3})\b",
        "fact",
        "C-bit {c_bit}",
        "sevctl ok",
    ),
)

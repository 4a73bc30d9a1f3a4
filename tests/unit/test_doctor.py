"""``pysev doctor``: every row of its tables by a line of its kind, and one that only looks so."""

import io
import re

import pytest

from pysev.doctor import diagnose
from pysev.doctor.checks import crash_size, status_bits
from pysev.doctor.diagnosis import _INTEREST
from pysev.doctor.reading import READERS
from pysev.tables.doctor import FACTS
from pysev.tables.doctor_checks import CHECKS
from pysev.tables.doctor_rules import RULES

SECONDS = "[    1.000000] "


def read(text: str):
    return diagnose(io.BytesIO(text.encode()), "test")


def names(text: str) -> set[str]:
    """Return what was found in a log, facts and findings."""
    found = read(text)
    return {one.name for one in found.findings} | {name for b in found.boots for name in b.facts}


def finding(text: str, name: str):
    return next(one for one in read(text).findings if one.name == name)


# name: a line that is of that kind, one that looks like it and is not, words of the finding
LINES = {
    "linux_version": ("Linux version 6.8.0-rc1 (gcc)", "Linux versions differ"),
    "command_line": ("Kernel command line: ro quiet", "unknown command line option"),
    "hypervisor": ("Hypervisor detected: KVM", "Hypervisor detection failed"),
    "dmi": ("DMI: AMD Corporation Volcano/Volcano, BIOS 1", "SMBIOS 3.3 present"),
    "cpu": ("smpboot: CPU0: AMD EPYC 7313 (family: 0x19)", "smpboot: CPU1: AMD EPYC 7313"),
    "e820": ("BIOS-e820: [mem 0x0000-0x9ffff] usable", "e820: update [mem 0x0-0xfff] usable"),
    "last_pfn": ("last_pfn = 0x404f200 max_arch_pfn = 0x400000000", "last_pfn is 0x10"),
    "encryption": (
        "AMD Memory Encryption Features active: SEV SEV-ES",
        "Memory Encryption is not active",
    ),
    "sev_status": ("SEV: Status: SEV SEV-ES ", "SEV: Starting up"),
    "cpuid_table": ("SEV: Using SNP CPUID table, 31 entries present.", "SNP CPUID table missing"),
    "vmpl": ("SEV: SNP running at VMPL2.", "SEV: SNP running at last"),
    "guest_driver": ("SEV: SNP guest platform devices initialized.", "SNP guest platform device"),
    "ap_creation": (
        "SEV: APIC: wakeup_secondary_cpu() replaced with wakeup_cpu_via_vmgexit()",
        "APIC: wakeup_secondary_cpu() is SEV's",
    ),
    "smp_start": ("smpboot: x86: Booting SMP configuration:", "smpboot: SMP disabled"),
    "smp_done": ("smp: Brought up 2 nodes, 64 CPUs", "smp: Bringing up secondary CPUs ..."),
    "c_bit_mask": ("SEV is enabled (mask 0x8000000000000)", "SEV is enabled"),
    "ovmf_ghcbs": (
        "SEV-ES is enabled, 2 GHCB pages allocated starting at 0x3FEF2000",
        "SEV-ES is enabled",
    ),
    "hyperv_isolation": (
        "Hyper-V: Isolation Config: Group A 0x0, Group B 0x2",
        "Hyper-V: Isolation Config missing",
    ),
    "rmp": (
        "SEV-SNP: RMP table physical address [0x0000000064000000 - 0x00000000747fffff]",
        "SEV-SNP: RMP table physical range unknown",
    ),
    "rmp_segmented": (
        "SEV-SNP: Segmented RMP base table physical range [0x9ba00000 - 0x9ba05000]",
        "SEV-SNP: Segmented RMP using 128GB segments",
    ),
    "rmp_segment_gib": (
        "SEV-SNP: Segmented RMP using 128GB segments",
        "SEV-SNP: Segmented RMP using segments",
    ),
    "rmp_segment": (
        "SEV-SNP: RMP segment 0 physical address [0x8800000 - 0x10ffffff] "
        "covering [0x0 - 0x87fffffff]",
        "SEV-SNP: RMP segment 0 is empty",
    ),
    "rmp_reserve": (
        "SEV-SNP: Reserving start/end of RMP table on a 2MB boundary [0x000000601fe00000]",
        "SEV-SNP: Reserving nothing",
    ),
    "rmp_region": (
        "SEV-SNP: PFN 0x1149cc unassigned, dumping non-zero entries in 2M PFN region: "
        "[0x114800 - 0x114a00]",
        "SEV-SNP: PFN 0x1149cc unassigned",
    ),
    "api": ("ccp 0000:05:00.5: SEV-SNP API:1.55 build:24", "ccp: SEV API version unknown"),
    "asids": ("kvm_amd: SEV enabled (ASIDs 253 - 1006)", "kvm_amd: SEV is enabled"),
    "asid_count": ("kvm_amd: SEV supported: 382 ASIDs", "kvm_amd: SEV supported"),
    "iommu_snp": ("AMD-Vi: IOMMU SNP support enabled.", "AMD-Vi: IOMMU SNP support is off"),
    "swiotlb": (
        "software IO TLB: SWIOTLB bounce buffer size adjusted to 965MB",
        "software IO TLB: area num 4.",
    ),
    "swiotlb_mapped": (
        "software IO TLB: mapped [mem 0x0000000040000000-0x000000007c500000] (965MB)",
        "software IO TLB: mapped nothing",
    ),
    "crash_kernel": (
        "crashkernel reserved: 0x0000000bc5a00000 - 0x0000000bfd000000 (886 MB)",
        "crashkernel=886M",
    ),
    "crash_kernel_old": (
        "Reserving 256MB of memory at 624MB for crashkernel (System RAM: 1046521MB)",
        "Reserving 256MB of memory for nobody, no crashkernel",
    ),
    "crash_kernel_low": (
        "Reserving 250MB of low memory at 3618MB for crashkernel (System low RAM: 2029MB)",
        "low memory for crashkernel",
    ),
    "kexec_segment": (
        "segment[0]: bufsz=0x4000 mem=0x807f1fa000 memsz=0x5000",
        "segment[0]: bufsz=0x4000",
    ),
    "cpuid": ("eax=0x0101fd3f ebx=0x00004133 ecx=0x000000fd edx=0x0000000f", "eax=0x1 ebx=0x2"),
    "c_bit_report": ("C-bit location: 51", "C-bit location unknown"),
    "rmp_not_reserved": (
        "SEV-SNP: Memory for the RMP table has not been reserved by BIOS",
        "SEV-SNP: Memory for the RMP table is there",
    ),
    "rmp_registers": (
        "MSR C0010132 (RMP_BASE)=0x0 MSR C0010133 (RMP_END)=0x1fff",
        "MSR C0010132 (RMP_BASE)=0x11500000 MSR C0010133 (RMP_END)=0x51dfffff",
    ),
    "rmp_not_valid": (
        "SEV-SNP: RMP configuration not valid: base=0x2000000, end=0x1ffffff",
        "SEV-SNP: RMP configuration valid",
    ),
    "rmp_too_small": (
        "SEV-SNP: Memory reserved for the RMP table does not cover full system RAM "
        "(expected 0x40904000 got 0x20904000)",
        "SEV-SNP: RMP table does cover full system RAM",
    ),
    "rmp_segment_size": (
        "SEV-SNP: RMP segment size (30) is not within advertised bounds (min=31, max=40)",
        "SEV-SNP: RMP segment size (30)",
    ),
    "rmp_init_failed": (
        "AMD-Vi: SNP: RMP initialization failed, SNP cannot be supported.",
        "AMD-Vi: SNP: RMP initialized",
    ),
    "iommu_refuses_snp": (
        "AMD-Vi: SNP: IOMMU disabled or configured in passthrough mode, SNP cannot be supported.",
        "AMD-Vi: IOMMU configured in passthrough mode",
    ),
    "iommu_v1_forced": (
        "AMD-Vi: Forcing use of AMD IOMMU v1 page table due to SNP.",
        "AMD-Vi: Using IOMMU v1 page table",
    ),
    "completion_wait": ("AMD-Vi: Completion-Wait loop timed out", "AMD-Vi: Completion-Wait loop"),
    "ioapic_timer": (
        "Kernel panic - not syncing: timer doesn't work through Interrupt-remapped IO-APIC",
        "..TIMER: trying IO-APIC",
    ),
    "psp_timeout": (
        "ccp 0000:47:00.1: sev command 0x2 timed out, disabling PSP",
        "ccp 0000:47:00.1: sev command 0x2 done",
    ),
    "psp_failed": (
        "ccp 0000:47:00.1: sev command 0x86 failed (0x00000f)",
        "ccp 0000:47:00.1: sev command 0x86 failed",
    ),
    "psp_shutdown_failed": (
        "ccp 0000:47:00.1: SEV-SNP firmware shutdown failed, rc -16, error 0x0",
        "ccp 0000:47:00.1: SEV-SNP firmware shutdown successful",
    ),
    "psp_init_failed": (
        "ccp 0000:47:00.1: SEV-SNP: failed to INIT rc -5, error 0x3",
        "ccp 0000:47:00.1: SEV-SNP: INIT done",
    ),
    "flush_order": (
        "SNP_SHUTDOWN_EX -> DFFLUSH_REQUIRED; then DF_FLUSH -> WBINVD_REQUIRED",
        "SNP_SHUTDOWN_EX -> DFFLUSH_REQUIRED",
    ),
    "no_restricted_memory": ("kvm_amd: SEV-SNP requires restricted memory.", "SEV-SNP requires it"),
    "rmp_violation": (
        "#PF: error_code(0x80000003) - RMP violation",
        "#PF: error_code(0x0003) - permissions violation",
    ),
    "rmp_entry": (
        "SEV-SNP: PFN 0x40fdf36, RMP entry: [0x6010fffffffff001 - 0x000000000000001f]",
        "SEV-SNP: PFN 0x40fdf36, RMP entry: unknown",
    ),
    "rmp_region_entry": (
        "SEV-SNP: PFN: 0x114801, [0x0008000000001001 - 0x000000000000001f]",
        "SEV-SNP: PFN: 0x114801, nothing",
    ),
    "rmpupdate_failed": (
        "SEV-SNP: RMPUPDATE failed for PFN 807f1fa, pg_level: 1, ret: 2",
        "SEV-SNP: RMPUPDATE of PFN 807f1fa done",
    ),
    "pages_leaked": (
        "SEV-SNP: Leaking PFN range 0x146800-0x146a00",
        "SEV-SNP: Leaking nothing",
    ),
    "terminated_nae": (
        "kvm_amd: SEV-ES guest requested termination: reason 0x20 info 0x800",
        "kvm_amd: SEV-ES guest requested termination: reason unknown",
    ),
    "terminated": (
        "kvm_amd: SEV-ES guest requested termination: 0x0:0x2",
        "kvm_amd: SEV-ES guest requested a page",
    ),
    "terminated_msr": (
        "GHCB_MSR_TERM_REQ: Guest terminated! ghcb_msr=0x20100, reason_set=0, reason_val=2",
        "GHCB_MSR_TERM_REQ: Guest terminated! ghcb_msr=0x20006",
    ),
    "unknown_qemu_exit": ("KVM: unknown exit reason 24", "KVM: unknown exit reason 2"),
    "vmgexit_input": (
        "kvm [1]: vcpu0, guest rIP: 0x0 vmgexit: exit code 0x72 input is not valid",
        "kvm [1]: vcpu0, guest rIP: 0x0 vmgexit: input is not valid",
    ),
    "vmgexit_code": (
        "kvm [1]: vcpu0, guest rIP: 0x0 vmgexit: exit code 0x80000017 is not valid",
        "kvm [1]: vcpu0, guest rIP: 0x0 vmgexit: exit code 0x72 input is not valid",
    ),
    "vmgexit_usage": (
        "kvm [1]: vcpu0 vmgexit: ghcb usage 0xdeadbeef is not valid",
        "kvm [1]: vcpu0 vmgexit: ghcb usage is not valid",
    ),
    "ghcb_not_registered": (
        "kvm [1507554]: vcpu0, guest rIP: 0x0 vmgexit: GHCB GPA [0x4e14000] is not registered.",
        "kvm [1507554]: vcpu0 vmgexit: GHCB GPA is registered.",
    ),
    "ghcb_page": ("vcpu0 vmgexit: GHCB gpa is not set", "vcpu0 vmgexit: GHCB gpa is set"),
    "vmgexit_scratch": ("vmgexit: scratch gpa not provided", "vmgexit: provided"),
    "vmgexit_unsupported": (
        "vmgexit: unsupported event - exit_info_1=0x6e, exit_info_2=0x0",
        "vmgexit: unsupported",
    ),
    "vmgexit_ap": ("vmgexit: invalid AP APIC ID [0x80] from guest", "vmgexit: AP created"),
    "svm_exit": (
        "kvm_amd: kvm [2153024]: vcpu0, guest rIP: 0xbbea5fc2 svm: unexpected exit reason 0x6e",
        "svm: exit reason 0x6e",
    ),
    "vmgexit_error": (
        "Failed to setup guest VMSA/CAA: Ghcb(VmgexitError(2, 6))",
        "Ghcb(VmgexitError)",
    ),
    "vc_unsupported": (
        "SEV: Unsupported exit-code 0x404 in #VC exception (IP: 0x577566600c3b)",
        "SEV: Unsupported exit-code",
    ),
    "vc_opcode": (
        "Wrong/unhandled opcode bytes: 0x8b, exit_code: 0x404, rIP: 0x577566600c3b",
        "exit_code: 0x404",
    ),
    "vc_decode": (
        "SEV: Failed to decode instruction (exit-code 0x400 IP: 0xffffffff)",
        "SEV: decoded instruction (exit-code 0x400)",
    ),
    "vc_vmm": (
        "SEV: Failure in communication with VMM (exit-code 0x7b IP: 0xffffffff)",
        "SEV: communication with VMM (exit-code 0x7b)",
    ),
    "psc_failed": (
        "SNP: PSC failed ret=1 exit_info_2=100000002",
        "SNP: PSC failed",
    ),
    "pvalidate_twice": (
        "stage0 ERROR: PVALIDATE CF=1 (double-validation) on unshare at GPA 0x105000",
        "stage0: PVALIDATE CF=0 at GPA 0x105000",
    ),
    "swiotlb_full": (
        "nvme 0000:00:03.0: swiotlb buffer is full (sz: 4096 bytes), total 32768 (slots)",
        "swiotlb buffer is there",
    ),
    "swiotlb_missing": (
        "software IO TLB: Cannot allocate 1073741824 bytes for SWIOTLB",
        "software IO TLB: allocated SWIOTLB",
    ),
    "crash_kernel_failed": (
        "crashkernel reservation failed - No suitable area found.",
        "crashkernel reservation is fine",
    ),
    "stop_conversion_failed": (
        "Failed to stop shared<->private conversions",
        "stopped shared<->private conversions",
    ),
    "shared_accounting": (
        "tdx: shared page accounting is off",
        "tdx: accounting is off by default",
    ),
    "c_bit_misreport": (
        "Physical address bit reduction: 47",
        "Physical address bit reduction: 5",
    ),
}


def test_every_row_has_its_lines():
    assert set(LINES) == {rule.name for rule in (*FACTS, *RULES)}


@pytest.mark.parametrize("name", LINES)
def test_a_line_is_recognised(name):
    line, _ = LINES[name]
    assert _INTEREST.search(line)
    assert name in names(SECONDS + line)
    assert name in names(line)


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_only_looks_like_it_is_not(name):
    _, near = LINES[name]
    assert name not in names(SECONDS + near)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_line_that_is_a_finding_has_words_advice_and_source(rule):
    one = finding(LINES[rule.name][0], rule.name)
    assert one.severity in ("error", "warning", "note") and one.lines == [1] and one.source
    assert one.advice or one.severity == "note"
    assert "{" not in one.words + one.advice


def test_every_reader_is_used_and_every_used_one_exists():
    assert set(READERS) == {rule.read for rule in (*FACTS, *RULES) if rule.read}


@pytest.mark.parametrize("rule", (*FACTS, *RULES), ids=lambda rule: rule.name)
def test_the_words_of_a_row_use_only_what_its_pattern_reads(rule):
    groups = set(re.compile(rule.pattern).groupindex)
    if rule.read:
        groups |= {"said", "more"}
    used = set(re.findall(r"\{(\w+)\}", rule.words + rule.advice))
    assert used <= groups


# What numbers inside of lines mean ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("terminated", "an SEV feature is on that the guest does not support"),
        ("terminated_nae", "0x0:0x2, GHCB standard: an SEV feature"),
        ("terminated_nae", "SEV_STATUS bits 0x800 (SecureTSC)"),
        ("terminated_msr", "0x0:0x2, GHCB standard: an SEV feature"),
        ("vmgexit_input", "exit 0x72 (cpuid)"),
        ("vmgexit_code", "exit 0x80000017 (apic_id_list)"),
        ("svm_exit", "exit 0x6e (rdtsc)"),
        ("vmgexit_error", "INFO1 2, INFO2 6, the event is not known"),
        ("vc_unsupported", "exit 0x404 (a page that is not validated)"),
        ("psc_failed", "the entry that cur_entry names is invalid"),
        ("psp_timeout", "0x2 SHUTDOWN"),
        (
            "psp_failed",
            "0x86 SNP_SHUTDOWN_EX with 0xf df_flush_required (DF_FLUSH is needed first)",
        ),
        ("psp_shutdown_failed", "-EBUSY, status 0x0 ok"),
        ("psp_init_failed", "-EIO, status 0x3 config"),
        ("rmp_entry", "4 KiB page of ASID 2 at GPA 0xfffffffff000, VMSA"),
        ("rmp_violation", "error code 0x80000003: present, write, rmp"),
        ("rmp_region_entry", "guest_invalid"),
        ("rmpupdate_failed", "2, the entry may not be changed"),
        ("rmp_registers", "the BIOS has set no memory aside"),
    ],
)
def test_the_number_in_a_line_is_decoded(name, words):
    assert words in finding(LINES[name][0], name).words


def test_a_termination_of_a_set_with_three_owners_names_them_all():
    said = finding("SEV-ES guest requested termination: 0x1:0x2", "terminated")
    for owner in ("Linux guest: PVALIDATE failed", "OVMF reset vector", "ENARX shim"):
        assert owner in said.words


@pytest.mark.parametrize(
    ("entry", "advice"),
    [
        ("[0x6010fffffffff001 - 0x1f]", "VMSA of a vCPU"),
        ("[0x4008000000001001 - 0x1f]", "a guest's page"),
        ("[0x5 - 0x0]", "firmware's page"),
    ],
)
def test_the_advice_about_an_rmp_entry_depends_on_whose_page_it_is(entry, advice):
    one = finding(f"SEV-SNP: PFN 0x1000, RMP entry: {entry}", "rmp_entry")
    assert advice in one.advice


# Checks over several lines ------------------------------------------------------------------------

RMP_2M = "SEV-SNP: RMP table physical range [0x0000000011600000 - 0x0000000051dfffff]\n"
RMP_ODD_END = "SEV-SNP: RMP table physical range [0x0000007ffe800000 - 0x000000807f0fffff]\n"
RAM_256G = (
    "BIOS-e820: [mem 0x0000000000100000-0x00000000115fffff] usable\n"
    "BIOS-e820: [mem 0x0000000011600000-0x0000000051dfffff] reserved\n"
    "BIOS-e820: [mem 0x0000000100000000-0x000000404f1fffff] usable\n"
)
RAM_ODD_END = (
    "BIOS-e820: [mem 0x0000004080000000-0x0000007ffe7fffff] usable\n"
    "BIOS-e820: [mem 0x0000007ffe800000-0x000000807f0fffff] reserved\n"
    "BIOS-e820: [mem 0x000000807f100000-0x000000807f1fefff] usable\n"
)
SEGMENTED = "".join(
    f"SEV-SNP: {line}\n"
    for line in (
        "Segmented RMP base table physical range [0x000000009ba00000 - 0x000000009ba05000]",
        "Segmented RMP using 128GB segments",
        "RMP segment 0 physical address [0x11600000 - 0x19dfffff] covering [0x0 - 0x87fffffff]",
        "RMP segment 8 physical address [0x19e00000 - 0x39dfffff] "
        "covering [0x10000000000 - 0x11fffffffff]",
    )
)
RAM_AT_1T = "BIOS-e820: [mem 0x0000010000000000-0x0000011fffffffff] usable\n"
SEV, ES, SNP = (
    "kvm_amd: {} enabled (ASIDs {} - {})\n".format(*row)
    for row in (("SEV", 253, 1006), ("SEV-ES", 1, 252), ("SEV-SNP", 1, 252))
)
RESERVED = "crashkernel reserved: 0x1000000 - 0x9000000 ({} MB)\n"
ACTIVE = "Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP\n"
WHOLE = "Linux version 6.8\nsmpboot: CPU0: AMD EPYC (family: 0x19)\n"
STATUS = "SEV: Status: {}\n"
FAULT = "#PF: error_code(0x80000003) - RMP violation\n"
REGION = LINES["rmp_region"][0] + "\n"
RESERVING = "SEV-SNP: Reserving start/end of RMP table on a 2MB boundary [{}]\n"
KEXEC = "segment[0]: bufsz=0x4000 mem={} memsz=0x5000\n"
SWIOTLB = "software IO TLB: SWIOTLB bounce buffer size adjusted to {}MB\n"
BOOTING = "[    3.3] smpboot: x86: Booting SMP configuration:\n"

# name: a log in which the check finds something, one in which it does not
LOGS = {
    "e820_unreadable": (RAM_256G + RAM_256G, RAM_256G),
    "rmp_geometry": (
        "SEV-SNP: RMP table physical range [0x51500000 - 0x11dfffff]",
        RMP_2M,
    ),
    "rmp_alignment": (
        "SEV-SNP: RMP table physical range [0x11580000 - 0x51dfffff]",
        "SEV-SNP: RMP table physical range [0x11500000 - 0x51dfffff]",
    ),
    "rmp_edge_reserved": (
        RMP_ODD_END + RAM_ODD_END + RESERVING.format("0x807f000000"),
        RMP_2M + RAM_256G,
    ),
    "rmp_edge_free": (
        RMP_ODD_END + RAM_ODD_END,
        RMP_ODD_END + RAM_ODD_END + RESERVING.format("0x807f000000"),
    ),
    "rmp_edge_unknown": (RMP_ODD_END, RMP_2M),
    "rmp_reserve_odd": (
        RMP_ODD_END + RESERVING.format("0x807f200000"),
        RMP_ODD_END + RESERVING.format("0x807f000000"),
    ),
    "rmp_cover": (
        RMP_2M + RAM_256G.replace("404f1fffff", "80ffffffff"),
        RMP_2M + RAM_256G,
    ),
    "rmp_self": (
        "SEV-SNP: RMP table physical range [0x0000000800000000 - 0x0000000801ffffff]\n",
        RMP_2M,
    ),
    "rmp_hole": (
        SEGMENTED + RAM_256G.replace("404f1fffff", "88fffffff") + RAM_AT_1T,
        SEGMENTED + RAM_256G.replace("404f1fffff", "87fffffff") + RAM_AT_1T,
    ),
    "rmp_in_ram": (RMP_2M + RAM_256G.replace("reserved", "usable"), RMP_2M + RAM_256G),
    "rmp_segment_cover": (
        LINES["rmp_segment"][0].replace("87fffffff", "88fffffff"),
        LINES["rmp_segment"][0],
    ),
    "kexec_in_edge": (
        RMP_ODD_END + KEXEC.format("0x807f1fa000"),
        RMP_ODD_END + KEXEC.format("0x807f200000"),
    ),
    "iommu_option": (
        "Command line: ro iommu=pt\n",
        "Command line: ro iommu=nopt\n",
    ),
    "asid_split": (SEV.replace("253", "254") + ES + SNP, SEV + ES + SNP),
    "asid_share": (SEV + ES.replace("1 - ", "100 - ") + SNP.replace("252", "99"), SEV + ES + SNP),
    "asid_none": (
        SEV + "kvm_amd: SEV-ES unusable (ASIDs 1 - 0)\n",
        SEV + ES + SNP,
    ),
    "asid_cpuid": (
        SEV + "eax=0x0101fd3f ebx=0x00004133 ecx=0x000003ee edx=0x00000064",
        SEV + "eax=0x0101fd3f ebx=0x00004133 ecx=0x000003ee edx=0x000000fd",
    ),
    "api_snp": (
        "ccp 0000:05:00.5: SEV-SNP API:1.50 build:24",
        "ccp 0000:05:00.5: SEV API:1.50 build:24",
    ),
    "api_init_ex": (
        "ccp 0000:05:00.5: SEV-SNP API:1.51 build:24",
        "ccp 0000:05:00.5: SEV-SNP API:1.52 build:24",
    ),
    "api_kexec": (
        RMP_2M + "ccp 0000:05:00.5: SEV API:1.52 build:24",
        RMP_2M + "ccp 0000:05:00.5: SEV API:1.53 build:24",
    ),
    "crash_kernel_missing": (
        WHOLE + "Command line: crashkernel=512M\n",
        WHOLE + "Command line: crashkernel=512M\n" + RESERVED.format(512),
    ),
    "crash_kernel_small": (ACTIVE + RESERVED.format(256), ACTIVE + RESERVED.format(320)),
    "swiotlb_odd": (RAM_256G + SWIOTLB.format(64), RAM_256G + SWIOTLB.format(1024)),
    "swiotlb_low": (SWIOTLB.format(1024), SWIOTLB.format(965)),
    "status_unknown": (STATUS.format("SEV SEV-ES Frobnicate"), STATUS.format("SEV SEV-ES")),
    "status_must": (STATUS.format("SEV SEV-ES SEV-SNP SecureTSC"), STATUS.format("SEV NoHostIBS")),
    "status_contradiction": (
        ACTIVE + STATUS.format("SEV SEV-ES"),
        ACTIVE + STATUS.format("SEV SEV-ES SEV-SNP"),
    ),
    "smp_hang": (BOOTING, BOOTING + "[    3.4] .... node  #0, CPUs:   #1\n"),
    "rmp_in_use": (FAULT + REGION, FAULT + REGION + LINES["rmp_region_entry"][0]),
    "long_lines": ("[    1.0] " + "x" * 5000 + "\n", "[    1.0] " + "x" * 3000 + "\n"),
    "nul_bytes": ("[    1.0] a\0b\n", "[    1.0] ab\n"),
    "more": (
        "".join(f"SEV-SNP: Leaking PFN range {i:#x}-{i + 1:#x}\n" for i in range(300)),
        "".join(f"SEV-SNP: Leaking PFN range {i:#x}-{i + 1:#x}\n" for i in range(20)),
    ),
}


def test_every_check_has_its_logs():
    assert set(LOGS) == {one.name for one in CHECKS}


@pytest.mark.parametrize("name", LOGS)
def test_a_check_finds_it(name):
    assert name in names(LOGS[name][0])
    assert "{" not in finding(LOGS[name][0], name).words


@pytest.mark.parametrize("name", LOGS)
def test_a_check_finds_nothing_where_nothing_is(name):
    assert name not in names(LOGS[name][1])


def test_rmp_cover_says_how_much_is_missing():
    words = finding(LOGS["rmp_cover"][0], "rmp_cover").words
    assert "RAM goes up to 0x8100000000: " in words and "have no entry" in words


def test_rmp_of_the_wild_has_no_finding_about_its_cover():
    found = names(RMP_2M + RAM_256G)
    assert not {name for name in found if name.startswith("rmp_")}


def test_a_log_without_anything_to_say_is_good():
    found = read("[    0.0] Linux version 6.8\n[    1.0] Hello\n")
    assert found.is_log and not found.findings and not found.has_problem


def test_findings_beyond_the_bound_still_decide():
    lines = "".join(LINES["iommu_v1_forced"][0] + "\n" for _ in range(3))
    lines += "".join(f"SEV-SNP: PFN: {i:#x}, [0x0 - 0x0]\n" for i in range(300))
    assert not read(lines).has_problem
    assert read(lines + LINES["completion_wait"][0]).has_problem


# Forms of logs ----------------------------------------------------------------------------------

TERMINATION = "kvm_amd: SEV-ES guest requested termination: 0x0:0x2"


@pytest.mark.parametrize(
    "front",
    [
        "",
        "[    0.123456] ",
        "<6>[    0.123456] ",
        "[    0.123456][    T1] ",
        "kern  :info  : [    0.123456] ",
        "[Mon Feb 14 16:16:55 2024] ",
        "Feb 14 16:16:55 host kernel: ",
        "Feb 14 16:16:55 host kernel: [    0.123456] ",
        "2024-02-14T16:16:55+0000 host kernel: ",
        "2024-02-14T16:16:55,123456+00:00 ",
        "6,1234,5678901,-;",
        "> > [    0.123456] ",
        "\t",
    ],
)
def test_a_line_is_read_whatever_stands_before_it(front):
    one = finding(front + TERMINATION, "terminated")
    assert one.words.startswith("a guest ended itself: 0x0:0x2, GHCB standard")


@pytest.mark.parametrize("cut", range(30, len(TERMINATION), 3))
def test_a_line_that_a_mail_wrapped_is_read(cut):
    head, tail = TERMINATION[:cut], TERMINATION[cut:]
    found = read(f"[    1.0] {head}\n{tail}\n[    2.0] next\n")
    terminated = [one for one in found.findings if one.name == "terminated"]
    assert len(terminated) == 1


def test_a_wrapped_line_is_not_read_twice():
    found = read(f"[    1.0] {TERMINATION}\nan unrelated line\n")
    assert [(one.name, one.count) for one in found.findings] == [("terminated", 1)]


def test_the_same_finding_is_counted_not_repeated():
    one = finding("\n".join([TERMINATION] * 100), "terminated")
    assert (one.count, one.lines) == (100, [1, 2, 3, 4, 5])


def test_remarks_of_a_file_are_passed_over():
    assert not read(f"# {TERMINATION}\n").is_log


def test_each_boot_of_a_log_has_its_own_facts():
    boot = "[    0.0] Linux version {}\n" + RAM_256G
    found = read(
        boot.format("6.1") + "[  300.0] kexec_core: Starting new kernel\n" + boot.format("6.8")
    )
    assert [one.first("linux_version").words for one in found.boots] == ["6.1", "6.8"]
    assert not found.findings


def test_a_boot_is_told_by_its_times_too():
    found = read(f"[  300.0] {BOOTING[10:]}[    0.1] {LINES['smp_done'][0]}\n")
    assert found.n_boots == 2 and [one.name for one in found.findings] == ["smp_hang"]


# Words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "gib", "mib"),
    [
        ("512M", 256, 512),
        ("512M,high", 256, 512),
        ("256M@16M", 256, 256),
        ("1G-4G:192M,4G-64G:256M,64G-:512M", 256, 512),
        ("1G-4G:192M,4G-64G:256M,64G-:512M", 16, 256),
        ("1G-4G:192M,4G-64G:256M,64G-:512M", 0.5, 0),
    ],
)
def test_crashkernel_option_is_evaluated(option, gib, mib):
    assert crash_size(option, int(gib * 2**30)) == mib << 20


@pytest.mark.parametrize("option", ["", "auto", "x-y:z", "1G-2G"])
def test_unclear_crashkernel_option_is_left(option):
    assert crash_size(option, 1 << 30) is None


def test_both_spellings_of_sev_status_are_the_same():
    old = "SEV SEV-ES SEV-SNP vTom Reflect VC AI DebugSwap No HostIBS BTB Isol VMSA reg prot"
    new = "SEV SEV-ES SEV-SNP vTom ReflectVC AI DebugSwap NoHostIBS BTBIsol VMSARegProt"
    assert status_bits(old) == status_bits(new) == ({0, 1, 2, 3, 4, 6, 7, 8, 9, 16}, [])

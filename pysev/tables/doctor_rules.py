"""Lines of a kernel log that are a finding by themselves: what they mean, and what to do.

Numbers inside the lines are decoded by ``pysev.doctor.reading``.

Source: each row names its own; ``AMDSEV n`` is an issue of AMDESE/AMDSEV.
"""

from __future__ import annotations

from pysev.tables.doctor_schema import Rule

__all__ = ["RULES"]

_RMP = "Linux arch/x86/virt/svm/sev.c"
_CCP = "Linux drivers/crypto/ccp/sev-dev.c"
_KVM = "Linux arch/x86/kvm/svm/sev.c"
_GUEST = "Linux arch/x86/coco/sev"
_IOMMU = "Linux drivers/iommu/amd/init.c"

RULES = (
    # The RMP and the IOMMU of a host --------------------------------------------------------------
    Rule(
        "rmp_not_reserved",
        r"Memory for the RMP table has not been reserved by BIOS",
        "error",
        "the BIOS has set no memory aside for the RMP: no SNP",
        f"{_RMP}; AMDSEV 68",
        'switch on "SNP Memory (RMP Table) Coverage" and "SEV-SNP Support" in the BIOS, or '
        "update it",
        side="host",
    ),
    Rule(
        "rmp_registers",
        r"RMP_BASE\)? ?= ?(?P<base>0x[0-9a-fA-F]+).*RMP_END\)? ?= ?(?P<end>0x[0-9a-fA-F]+)",
        "error",
        "RMP_BASE = {base}, RMP_END = {end}: {said}",
        "AMD64 APM volume 2; AMDSEV 68",
        'switch on "SNP Memory (RMP Table) Coverage" in the BIOS',
        read="rmp_registers",
        side="host",
    ),
    Rule(
        "rmp_not_valid",
        r"RMP configuration not valid: base=(?P<base>\w+), end=(?P<end>\w+)",
        "error",
        "the BIOS has set RMP_BASE {base} above RMP_END {end}: no SNP",
        _RMP,
        "update the BIOS",
        side="host",
    ),
    Rule(
        "rmp_too_small",
        r"RMP table does not cover full system RAM \(expected (?P<want>0x\w+) got "
        r"(?P<got>0x\w+)\)",
        "error",
        "the RMP has {got} bytes, all of RAM needs {want}: no SNP",
        _RMP,
        'let the BIOS cover all of memory ("SNP Memory Coverage"), or update it',
        side="host",
    ),
    Rule(
        "rmp_segment_size",
        r"RMP segment size \((?P<size>\d+)\) is not within advertised bounds",
        "error",
        "the BIOS has set segments of 2**{size} bytes, which the processor does not offer: no SNP",
        _RMP,
        "update the BIOS",
        side="host",
    ),
    Rule(
        "rmp_init_failed",
        r"SNP: RMP initialization failed",
        "error",
        "the RMP could not be initialised: no SNP",
        _IOMMU,
        "see the lines before it for the reason",
        side="host",
    ),
    Rule(
        "iommu_refuses_snp",
        r"SNP: (?P<why>IOMMU .*), SNP cannot be supported",
        "error",
        "no SNP: {why}",
        _IOMMU,
        "remove iommu=pt, iommu=off and amd_iommu=pgtbl_v2 from the command line, and set "
        "the BIOS's "
        "IOMMU and SEV-SNP Support",
        side="host",
    ),
    Rule(
        "iommu_v1_forced",
        r"Forcing use of AMD IOMMU v1 page table due to SNP",
        "note",
        "the IOMMU uses version 1 page tables, because SNP needs them",
        _IOMMU,
        side="host",
    ),
    Rule(
        "completion_wait",
        r"Completion-Wait loop timed out",
        "error",
        "the IOMMU does not answer",
        'kexec list, "x86/sev: Fix host kdump support for SNP" (Sep 2024)',
        "in a crash kernel on an SNP host: the IOMMU still uses the old kernel's buffers; a "
        "kernel from "
        "6.18 on reuses them",
        side="host",
    ),
    Rule(
        "ioapic_timer",
        r"timer doesn't work through Interrupt-remapped IO-APIC",
        "error",
        "the crash kernel has no timer interrupt: the IOMMU ignores its new device table",
        'kexec list, "x86/sev: Fix host kdump support for SNP" (Sep 2024)',
        "boot a crash kernel from 6.18 on, which keeps the device table of an SNP host; "
        "amd_iommu=off only "
        "moves the failure to NVMe",
        side="host",
    ),
    # Firmware -------------------------------------------------------------------------------------
    Rule(
        "psp_timeout",
        r"sev command (?P<command>0x[0-9a-f]+) timed out, disabling PSP",
        "error",
        "firmware did not answer {said}; the driver gives the PSP up, later commands get -EBUSY",
        f"{_CCP}; AMDSEV 184",
        "power-cycle; if it is SNP_INIT_EX, set the BIOS's IOMMU to auto; else update the firmware",
        read="command",
        side="host",
    ),
    Rule(
        "psp_failed",
        r"sev command (?P<command>0x[0-9a-f]+) failed \((?P<status>0x[0-9a-f]+)\)",
        "warning",
        "firmware refused {said}",
        _CCP,
        "see the meaning of the answer",
        read="command_status",
        side="host",
    ),
    Rule(
        "psp_shutdown_failed",
        r"(?:SEV: failed to SHUTDOWN error (?P<status>0x[0-9a-f]+), rc (?P<rc>-?\d+)"
        r"|SEV-SNP firmware shutdown failed, rc (?P<rc2>-?\d+), error (?P<status2>0x[0-9a-f]+))",
        "error",
        "firmware was not shut down: {said}",
        _CCP,
        "SNP stays on: a kernel started by kexec meets a locked IOMMU and old RMP entries; "
        "end all guests before, or reboot through firmware",
        read="shutdown",
        side="host",
    ),
    Rule(
        "psp_init_failed",
        r"(?P<what>SEV(?:-SNP)?): failed to INIT,?(?: rc (?P<rc>-?\d+),)? error "
        r"(?P<status>0x[0-9a-f]+)",
        "error",
        "{what} could not be initialised: {said}",
        _CCP,
        "status config (0x3): a CPU is offline, or VM_HSAVE_PA is not 0; "
        "rmp_init_required: a full SNP_INIT_EX is needed after shutdown; platform_state (0x1): "
        "SNP is still on from the kernel before, as in a crash kernel",
        read="status",
        side="host",
    ),
    Rule(
        "flush_order",
        r"DFFLUSH_REQUIRED\b.*\bWBINVD_REQUIRED",
        "error",
        "SNP_SHUTDOWN_EX wants DF_FLUSH first, and DF_FLUSH wants WBINVD first",
        'kexec list, "x86/sev: Fix host kdump support for SNP" (Sep 2024)',
        "the order is: SNP_DECOMMISSION, then WBINVD on every core, then DF_FLUSH, then "
        "SNP_SHUTDOWN_EX; "
        "a WBINVD before DECOMMISSION does not count",
        side="host",
    ),
    Rule(
        "no_restricted_memory",
        r"SEV-SNP requires restricted memory",
        "error",
        "QEMU asked for an SNP guest without guest_memfd",
        "AMDSEV 166",
        "use a kernel and a QEMU of the same SNP tree; both upstream from Linux 6.11 and "
        "QEMU 9.1 on",
        side="host",
    ),
    # RMP violations of a host ---------------------------------------------------------------------
    Rule(
        "rmp_violation",
        r"#PF: error_code\((?P<code>0x[0-9a-f]+)\)",
        "error",
        "the kernel touched a page that is not the host's: {said}",
        "Linux arch/x86/mm/fault.c",
        "the RMP entry printed next says whose page it is",
        read="page_fault",
        side="host",
    ),
    Rule(
        "rmp_entry",
        r"\bPFN (?P<pfn>0x[0-9a-f]+), RMP entry: \[(?P<low>0x[0-9a-f]+) - (?P<high>0x[0-9a-f]+)\]",
        "error",
        "page {pfn}: {said}",
        f"{_RMP}; AMD-ASPFW sev_rmp.h",
        "{more}",
        read="rmp_entry",
        side="host",
    ),
    Rule(
        "rmp_region_entry",
        r"\bPFN: (?P<pfn>0x[0-9a-f]+), \[(?P<low>0x[0-9a-f]+) - (?P<high>0x[0-9a-f]+)\]",
        "note",
        "page {pfn} of the same 2 MiB region: {said}",
        f"{_RMP}; AMD-ASPFW sev_rmp.h",
        read="rmp_entry",
        side="host",
    ),
    Rule(
        "rmpupdate_failed",
        r"RMPUPDATE failed for PFN (?P<pfn>[0-9a-fx]+),.* ret: (?P<ret>-?\d+)",
        "error",
        "RMPUPDATE of page {pfn} failed: {said}",
        f"{_RMP}; AMDSEV 245",
        "if it lies in the first or last 2 MiB of the RMP: kernel 88a921aa3c6b reserves that "
        "piece in memblock",
        read="rmpupdate",
        side="host",
    ),
    Rule(
        "pages_leaked",
        r"Leaking PFN range (?P<first>0x[0-9a-f]+)-(?P<last>0x[0-9a-f]+)",
        "warning",
        "pages {first} to {last} (end excluded) could not be taken back and are lost until reboot",
        _RMP,
        "look for the firmware command that failed before",
        side="host",
    ),
    # What hosts say about guests ------------------------------------------------------------------
    Rule(
        "terminated_nae",
        r"guest requested termination: reason (?P<reason>\w+) info (?P<info>\w+)",
        "error",
        "a guest ended itself: {said}",
        "GHCB NAE 0x8000FFFE; " + _KVM,
        "{more}",
        read="termination_nae",
        side="host",
    ),
    Rule(
        "terminated",
        r"guest requested termination: (?P<set>(?:0x)?[0-9a-f]+):(?P<code>(?:0x)?[0-9a-f]+)",
        "error",
        "a guest ended itself: {said}",
        "GHCB MSR 0x100; " + _KVM,
        "{more}",
        read="termination",
        side="host",
    ),
    Rule(
        "terminated_msr",
        r"(?:GHCB_MSR_TERM_REQ.*ghcb_msr=(?P<msr>0x[0-9a-f]+)"
        r"|GHCB termination requested: data=(?P<data>0x[0-9a-f]+))",
        "error",
        "a guest ended itself: {said}",
        "GHCB MSR 0x100; Cloud Hypervisor, Xen",
        "{more}",
        read="termination_msr",
        side="host",
    ),
    Rule(
        "unknown_qemu_exit",
        r"KVM: unknown exit reason 24",
        "error",
        "QEMU does not know KVM's system events: most likely a guest ended itself",
        "KVM list, minimum GHCB version for SNP (Jul 2025)",
        "the host's kernel log has the reason; a newer QEMU reports it",
        side="host",
    ),
    Rule(
        "vmgexit_input",
        r"vmgexit: exit code (?P<code>0x[0-9a-f]+) input is not valid",
        "error",
        "the host refused {said}: a field that the event needs is not marked valid (INFO1 2, "
        "INFO2 4)",
        _KVM,
        "compare the valid bitmap with the inputs of the event: pysev decode",
        read="exit_code",
        side="host",
    ),
    Rule(
        "vmgexit_code",
        r"vmgexit: exit code (?P<code>0x[0-9a-f]+) is not valid",
        "error",
        "the host does not know {said} (INFO1 2, INFO2 6)",
        _KVM,
        "the guest must ask for hypervisor features first, and do without",
        read="exit_code",
        side="host",
    ),
    Rule(
        "vmgexit_usage",
        r"vmgexit: ghcb usage (?P<usage>0x[0-9a-f]+) is not valid",
        "error",
        "a GHCB page has usage {usage}, where KVM takes 0 (INFO1 2, INFO2 2)",
        _KVM,
        "the page may be overwritten, or private: its content is ciphertext then",
        side="host",
    ),
    Rule(
        "ghcb_not_registered",
        r"vmgexit: GHCB GPA \[(?P<gpa>0x[0-9a-f]+)\] is not registered",
        "error",
        "an SNP guest used the GHCB at {gpa} without registering it; KVM ends the run",
        f"{_KVM}; linux-svsm 11",
        "MSR 0x012 must come before the first use; after kexec each CPU registers anew",
        side="host",
    ),
    Rule(
        "ghcb_page",
        r"vmgexit: (?P<why>GHCB gpa is not set|error mapping GHCB \[.*?\] from guest)",
        "error",
        "a guest asked without a usable GHCB: {why}; it gets no answer",
        _KVM,
        "the guest left its GHCB MSR in a state that the next VMGEXIT does not expect",
        side="host",
    ),
    Rule(
        "vmgexit_scratch",
        r"vmgexit: (?P<why>scratch .*|kvm_read_guest for scratch area failed)",
        "error",
        "the host refused the scratch area of a request: {why}",
        _KVM,
        "for KVM the scratch area lies in the GHCB's shared buffer, or in a piece of shared memory",
        side="host",
    ),
    Rule(
        "vmgexit_unsupported",
        r"vmgexit: unsupported event - exit_info_1=(?P<code>0x[0-9a-f]+)",
        "error",
        "a guest met a #VC that it cannot handle: {said}",
        _KVM,
        "the guest's log names the instruction",
        read="exit_code",
        side="host",
    ),
    Rule(
        "vmgexit_ap",
        r"vmgexit: (?P<why>invalid AP .*|mismatched AP .*|AP VMSA address .*|unsupported AP .*)",
        "error",
        "the host refused to create or find an AP: {why}",
        _KVM,
        "SEV features must equal those of the first CPU; a VMSA must not be 2 MiB aligned",
        side="host",
    ),
    Rule(
        "svm_exit",
        r"unexpected exit reason (?P<code>0x[0-9a-f]+)",
        "error",
        "KVM has no handler for {said}",
        _KVM,
        "for RDTSC: an SNP guest with secure TSC must not ask the host",
        read="exit_code",
        side="host",
    ),
    Rule(
        "vmgexit_error",
        r"VmgexitError\((?P<info1>\d{1,10}), (?P<info2>\d{1,10})\)",
        "error",
        "the host refused a request: {said}",
        "SVSM 405, 699; GHCB replies",
        "the host lacks the event, or the request is malformed",
        read="reply",
        side="guest",
    ),
    # What guests say ------------------------------------------------------------------------------
    Rule(
        "vc_unsupported",
        r"Unsupported exit-code (?P<code>0x[0-9a-f]+) in (?:early )?#VC exception",
        "error",
        "a guest met {said} that it cannot handle",
        f"{_GUEST}/vc-handle.c; AMDSEV 255",
        "{more}",
        read="vc",
        side="guest",
    ),
    Rule(
        "vc_opcode",
        r"Wrong/unhandled opcode bytes: (?P<bytes>0x[0-9a-f]+), exit_code: (?P<code>0x[0-9a-f]+)",
        "error",
        "opcode {bytes} does not belong to {said}",
        f"{_GUEST}/vc-shared.c; AMDSEV 255",
        "{more}",
        read="vc",
        side="guest",
    ),
    Rule(
        "vc_decode",
        r"Failed to decode instruction \(exit-code (?P<code>0x[0-9a-f]+)",
        "error",
        "an instruction that a guest has to emulate could not be decoded: {said}",
        f"{_GUEST}/vc-handle.c",
        "drivers must reach device memory with plain moves (readl, writel)",
        read="vc",
        side="guest",
    ),
    Rule(
        "vc_vmm",
        r"Failure in communication with VMM \(exit-code (?P<code>0x[0-9a-f]+)",
        "error",
        "the hypervisor did not answer as the protocol says: {said}",
        f"{_GUEST}/vc-handle.c",
        "the host's log says what it refused",
        read="vc",
        side="guest",
    ),
    Rule(
        "psc_failed",
        r"SNP: PSC failed ret=(?P<ret>-?\d+) exit_info_2=(?P<info2>[0-9a-f]{1,16})",
        "error",
        "a page-state change failed: {said}",
        _GUEST,
        "an entry or header is malformed, or the host is out of memory for this guest",
        read="psc",
        side="guest",
    ),
    Rule(
        "pvalidate_twice",
        r"PVALIDATE CF=1.*?(?:GPA (?P<gpa>0x[0-9a-f]+))",
        "warning",
        "the page at {gpa} was validated already: the host may have exchanged it, or the firmware "
        "counts wrongly",
        "OAK stage0",
        "do not trust the content of this page",
        side="guest",
    ),
    Rule(
        "swiotlb_full",
        r"swiotlb buffer is full",
        "warning",
        "the bounce buffers of the guest are all in use: I/O fails or waits",
        "Linux kernel/dma/swiotlb.c",
        "boot with swiotlb=524288 or more (slots of 2 KiB)",
        side="guest",
    ),
    Rule(
        "swiotlb_missing",
        r"(?:Cannot allocate|No room for|Failed to (?:allocate|remap)).{0,40}(?:SWIOTLB|swiotlb)"
        r"|swiotlb_init_remap: Failed",
        "error",
        "no memory for the bounce buffers, without which an encrypted guest has no I/O",
        "Linux kernel/dma/swiotlb.c; AMDSEV 116",
        "they must be in one piece below 4 GiB; give the guest more low memory, or swiotlb=",
        side="guest",
    ),
    # kexec and kdump ------------------------------------------------------------------------------
    Rule(
        "crash_kernel_failed",
        r"crashkernel reservation failed(?: - (?P<why>.*))?|[Cc]annot (?:reserve|allocate) "
        r"crashkernel",
        "error",
        "no memory could be set aside for a crash kernel: no dump",
        "Linux kernel/crash_reserve.c",
        "ask for less, or for crashkernel=SIZE,high",
    ),
    Rule(
        "stop_conversion_failed",
        r"Failed to stop shared<->private conversions",
        "warning",
        "a CPU was in the middle of a page-state change when the kernel crashed or went to kexec",
        f"{_GUEST}/core.c, snp_kexec_begin",
        "a page may be shared while its page table says private: the next kernel gets #VC "
        "0x404 there",
        side="guest",
    ),
    Rule(
        "shared_accounting",
        r"(?:shared page|conversion).*accounting is off",
        "warning",
        "a shared page was not found when all were to become private for kexec",
        'Linux arch/x86/coco/tdx, "x86/tdx: Add kexec support"',
        "the next kernel must not touch it",
        side="guest",
    ),
    Rule(
        "c_bit_misreport",
        r"[Pp]hysical address bit reduction: (?P<reduction>\d{1,3})\b",
        "warning",
        "{reduction} address bits less is no possible value: {said}",
        "sevctl 84",
        "an old sevctl mixes the fields of CPUID 0x8000001F EBX up; read it yourself: pysev "
        "decode --as cpuid",
        read="reduction",
        side="host",
    ),
)

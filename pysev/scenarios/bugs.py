"""``bugs/*``: public reports of the field that no other family shows, each failing and repaired.

What the CPUs do is in ``pysev.flows.bugs_stop`` (CPUs that are stopped or not), ``bugs_boot``
(handlers, mappings, room) and ``bugs_host`` (SNP hosts). The bugs of SNP and TDX guests and of
the designs that were argued about stand with their families.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..checking import DEADLOCK
from ..flow import Flow
from ..flows import bugs_boot as boot
from ..flows import bugs_host as host
from ..flows import bugs_stop as stop
from ..machine import Machine
from .registry import Scenario, register

Build = Callable[..., Flow]

SMP = "Linux arch/x86/kernel/smp.c"
DERIVED = "derived from"


def _add(
    short: str,
    summary: str,
    build: Build,
    because: str,
    story: str,
    source: str,
    *assumes: str,
    verdict: str = "violated",
    from_cpus: int = 2,
    **options: Any,
) -> None:
    """One report as it was; ``options`` go to the flow."""
    name = f"bugs/{short}"
    made: Callable[[Machine], Flow] = partial(build, name=name, **options)
    found = verdict if because else "holds"
    register(
        Scenario(name, summary, found, because, story, source, made, assumes, from_cpus=from_cpus)
    )


def _pair(
    short: str,
    summary: str,
    build: Build,
    because: str,
    story: str,
    repaired: str,
    source: str,
    *assumes: str,
    verdict: str = "violated",
    from_cpus: int = 2,
    **options: Any,
) -> None:
    """One report as it was, and repaired: the same flow with and without one thing."""
    _add(
        short,
        summary,
        partial(build, repaired=False),
        because,
        story,
        source,
        *assumes,
        verdict=verdict,
        from_cpus=from_cpus,
        **options,
    )
    fixed = partial(build, repaired=True)
    _add(
        f"{short}-fixed", f"as {short}, repaired", fixed, "", repaired, source, *assumes, **options
    )


# -- CPUs that are stopped, or not ---------------------------------------------------------------

HALTS = "clearing the bit in cpus_stop_mask and HLT are one step"
AT_ONCE = "an NMI is there as soon as it is sent"

_pair(
    "stop-mask",
    "stop_other_cpus goes on when all others are offline, and one still executes WBINVD",
    stop.stop_mask,
    stop.FLUSHED,
    "stop_this_cpu marks the CPU offline before its WBINVD: power-off and kexec lock up",
    "each CPU has a bit in cpus_stop_mask and clears it after its WBINVD",
    'T. Battersby in "x86/smp: Make stop_other_cpus() more robust", 2023-06; Linux 1f5e7eb7868e',
    HALTS,
)
_pair(
    "mwait-wakes",
    "an offline CPU in MWAIT wakes when the new kernel writes over the line that it monitors",
    stop.mwait_wakes,
    stop.OWN_MEMORY,
    "the CPU wakes into the old kernel's text, which is the new kernel's memory by then",
    "offline CPUs are kicked out of MWAIT into HLT before the jump",
    "Linux d7893093a741",
    "no interrupt and no NMI reaches a CPU in HLT",
)
_pair(
    "deaf-cpu",
    "a CPU with its IRQs off for over a second is left behind, NMI switched off",
    stop.deaf_cpu,
    stop.OWN_MEMORY,
    "after a second the boot CPU goes on; the CPU runs the old kernel in memory of the new one",
    "an NMI goes to every CPU still in cpus_stop_mask, and is waited for",
    f"{SMP}: native_stop_other_cpus, smp_no_nmi_ipi",
    HALTS,
    AT_ONCE,
)
_add(
    "late-nmi",
    "the NMI for a CPU that has not reported arrives after it has halted",
    partial(stop.deaf_cpu, repaired=True, travels=True),
    stop.OWN_MEMORY,
    "a CPU in HLT takes the NMI on a stack, and in text, that the new kernel owns",
    f"{SMP} (1f5e7eb7868e), the hole that its authors name; open",
    HALTS,
)
_pair(
    "pv-areas",
    "the hypervisor writes steal time into the new kernel's memory",
    stop.pv_areas,
    stop.OWN_AREAS,
    "the areas of the other CPUs are still registered when the new kernel has their memory",
    "the reboot notifier switches them off on every CPU",
    "Linux 8b79feffeca2, c02027b5742b, 3d6b84132d2a",
)
_add(
    "crash-note",
    "a CPU takes the crash NMI after the second for which it is waited",
    partial(stop.crash_notes, bounded=True, dead=False),
    stop.NOTES,
    "the crash kernel starts while the CPU still runs; its note is empty",
    f"{DERIVED} Linux arch/x86/kernel/reboot.c, nmi_shootdown_cpus",
)
_add(
    "crash-note-fixed",
    "as crash-note, but every CPU is waited for, and none of them hangs",
    partial(stop.crash_notes, bounded=False, dead=False),
    "",
    "whoever takes the NMI at all has saved its registers before the crash kernel starts",
    f"{DERIVED} Linux arch/x86/kernel/reboot.c, nmi_shootdown_cpus",
    "no CPU hangs with NMIs blocked",
)
_add(
    "crash-note-waits",
    "as crash-note-fixed, but a CPU may hang with NMIs blocked",
    partial(stop.crash_notes, bounded=False, dead=True),
    DEADLOCK,
    "waiting without a bound for a CPU that takes no NMI: there is never a dump",
    f"{DERIVED} Linux arch/x86/kernel/reboot.c, nmi_shootdown_cpus",
    verdict="deadlock",
)
_pair(
    "two-crashers",
    "two CPUs crash at once, and nothing lets only one of them through",
    stop.two_crashers,
    stop.ONE_CRASH,
    "both jump to the crash kernel, which is made for one",
    "panic_cpu is claimed by one of them, the other stops itself",
    f"{DERIVED} Linux kernel/panic.c",
)

# -- handlers and mappings -----------------------------------------------------------------------

_pair(
    "purgatory-console",
    "kexec_load with a purgatory that prints, in an SEV-ES guest",
    boot.no_idt,
    boot.NO_RESET,
    "OUT raises #VC, and there is no IDT between machine_kexec and the new kernel",
    "kexec_file_load brings the kernel's own purgatory, which prints nothing",
    '"x86/sev: KEXEC/KDUMP support for SEV-ES guests" v1, cover letter',
    from_cpus=1,
    what="purgatory prints: OUT: #VC",
    fixed="purgatory checks the SHA-256 and prints nothing",
    survives="prints: OUT: #VC",
)
_pair(
    "cr4-mce",
    "relocate_kernel clears CR4.MCE in a TDX guest",
    boot.no_idt,
    boot.NO_RESET,
    "clearing MCE is not allowed there: an exception, and no IDT",
    "CR4.MCE stays as it is in a TDX guest",
    '"x86/tdx: Add kexec support" v12 (Linux 6.11)',
    "the clearing of CR4.MCE faults on every TDX module",
    from_cpus=1,
    what="relocate_kernel: CR4 := PAE: clears MCE: fault",
    fixed="relocate_kernel: CR4 := PAE and MCE",
    survives="WRMSR that TDX does not know: #VE",
)
_pair(
    "clock-never-enabled",
    "a TDX guest switches off a kvmclock that it never had",
    boot.clock_never_enabled,
    boot.ITS_MSRS,
    "PV teardown writes the MSR whether kvmclock was offered or not: a fault",
    "it is switched off only if it was switched on",
    '"x86/tdx: Add kexec support" v12 (Linux 6.11)',
    from_cpus=1,
)
_pair(
    "efi-table-not-mapped",
    "the EFI configuration table is not in the identity map of kexec",
    boot.not_mapped,
    boot.NO_RESET,
    "early SEV detection reads it before there is a page fault handler; only with nogbpages is it "
    "outside what is mapped",
    "it is mapped explicitly",
    "Linux 5760929f6545; reverted attempt 7143c5f4cf20",
    from_cpus=1,
    what="the EFI configuration table",
    reader="sev_enable",
)
_pair(
    "cc-blob-not-mapped",
    "the CC blob is not in the identity map of kexec",
    boot.not_mapped,
    boot.NO_RESET,
    "the decompressor of an SNP guest reads it before there is a page fault handler",
    "it is mapped explicitly, as the EFI configuration table is",
    "companion patch of Linux 5760929f6545",
    from_cpus=1,
    what="the CC blob",
    reader="snp_init",
)
_pair(
    "parking-tables",
    "the trampoline's page table has no direct map: SEV-ES APs triple fault when they park",
    boot.parking_tables,
    boot.OWN_STACK,
    "the stack is reached by global TLB entries as long as they last: it fails only now and then",
    "the trampoline's page table has the direct map, and global entries are flushed",
    'Linux 51523ed1c267; "x86/sev: KEXEC/KDUMP support for SEV-ES guests" v2, cover letter',
)

# -- pages and room ------------------------------------------------------------------------------

_pair(
    "unaccepted-destination",
    "the destination of a kexec segment is memory that nobody has accepted",
    boot.unaccepted_destination,
    boot.NO_FAULT,
    "destinations come from the ranges of RAM, not from the allocator: #VC in relocate_kernel",
    "each segment is accepted when it is loaded, once, by the bitmap",
    'Y. Zhao, "kexec_core: Accept unaccepted kexec segments\' destination addresses", 2025',
    from_cpus=1,
)
_pair(
    "rmp-tail",
    "kexec of an SNP host loads segments into the 2 MiB page in which the RMP ends",
    boot.rmp_tail,
    boot.NO_FAULT,
    "relocate_kernel writes through 2 MiB pages, and one of them has pages of the RMP: RMP fault",
    "the rest of the 2 MiB page is reserved in all E820 tables",
    "Linux 400fea4b9651, d6d85ac15cce (6.9)",
    "the pages of the RMP are the firmware's once SNP is initialised",
    from_cpus=1,
)
_pair(
    "rmp-tail-allocated",
    "the tail behind the RMP is reserved too late: memblock has given some of it away",
    boot.rmp_tail_allocated,
    boot.TAKES_PAGES,
    "pages that are the hypervisor's for good are given to an SNP guest: RMPUPDATE fails",
    "the range is reserved in memblock as well",
    "Linux 88a921aa3c6b; AMDSEV issue 245",
    from_cpus=1,
)
_pair(
    "crash-reservation",
    "kdump-utils reserves 64 MiB too little for SEV-ES and SNP guests",
    boot.crash_reservation,
    boot.ROOM,
    "its test wants a line that ends in AMD SME or AMD SEV; bounce buffers take the crash "
    "kernel's memory",
    "the words of the line are looked at one by one",
    f"{DERIVED} kdump-utils, kdump-lib.sh",
    "256 MiB are enough for a crash kernel without bounce buffers",
    from_cpus=1,
)

_pair(
    "swiotlb-below-4g",
    "the bounce buffers of a large SNP guest find no place below 4 GiB",
    boot.swiotlb_below_4g,
    boot.BOUNCES,
    "1 GiB in one piece is wanted, and firmware and initrd lie in between: the guest does not boot",
    "swiotlb=131072 bounds them to 256 MiB",
    "AMDSEV issue 116",
    "how much is left in one piece below 4 GiB",
    from_cpus=1,
)

# -- SNP hosts -----------------------------------------------------------------------------------

_pair(
    "init-in-kdump",
    "the crash kernel of an SNP host sends SNP_INIT_EX once more",
    host.init_in_kdump,
    host.IOMMU_WORKS,
    "guests were running, the firmware was not shut down and refuses: the IOMMU fails with it",
    "a crash kernel sends no SEV and no SNP INIT",
    "Linux 8c571019d8a8; lost with 459daec42ea0, V. Karasulli, 2025-10-29",
    from_cpus=1,
)
_pair(
    "iommu-buffers",
    "the crash kernel leaves the IOMMU's registers alone, but not its buffers",
    host.iommu_buffers,
    host.IOMMU_WORKS,
    "9be15fbfc6c5 without f32fe7cb0198: commands are written where the IOMMU does not read",
    "the old kernel's buffers are mapped and used again",
    f"{DERIVED} Linux 9be15fbfc6c5, reverted from stable trees that lack f32fe7cb0198",
    from_cpus=1,
)
_pair(
    "notifier-unregisters",
    "the SNP panic notifier unregisters itself while its chain is walked",
    host.notifier_unregisters,
    DEADLOCK,
    "to unregister waits for all readers of the chain, of whom the panicking CPU is one",
    "it unregisters only when the kernel does not panic",
    "Linux drivers/crypto/ccp/sev-dev.c, fixed in 2025-06",
    verdict="deadlock",
    from_cpus=1,
)
_pair(
    "psp-interrupt",
    "the SNP panic notifier waits for an interrupt of the firmware with IRQs off",
    host.psp_interrupt,
    DEADLOCK,
    "the command completes, but its interrupt reaches nobody",
    "in a panic the completion is polled for",
    "AMDESE/linux pull request 5, 2023-08-15",
    verdict="deadlock",
    from_cpus=1,
)
_add(
    "reboot",
    "an SEV-ES guest reboots, and its VMM ends",
    partial(host.reboot, encrypted=True),
    host.COMES_BACK,
    "no vCPU can be given its reset state: QEMU ends with exit code 0",
    'T. Liu in "x86/sev: KEXEC/KDUMP support for SEV-ES guests" v3, 2022-04; open',
    from_cpus=1,
)
_add(
    "reboot-plain",
    "as reboot, without SEV-ES",
    partial(host.reboot, encrypted=False),
    "",
    "the VMM resets every vCPU, and the guest comes back",
    'T. Liu in "x86/sev: KEXEC/KDUMP support for SEV-ES guests" v3, 2022-04',
)

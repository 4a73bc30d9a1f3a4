"""How long things take in a modelled second, how often they happen, and what people measured.

Each row is a fact with its source, or a named assumption. ``pysev check`` uses none of them;
``pysev.costs`` hands them to flows, where users may have put other values. Times are nanoseconds.
"""

from __future__ import annotations

from typing import Final

from ghcbcore._cffi import lib

from .costs_schema import Cost

__all__ = ["ROWS"]

US, MS, S = 1_000, 1_000_000, 1_000_000_000

SMP = "Linux arch/x86/kernel/smp.c, native_stop_other_cpus"
REBOOT = "Linux arch/x86/kernel/reboot.c, nmi_shootdown_cpus"
SMPBOOT = "Linux arch/x86/kernel/smpboot.c"
MADT = "Linux arch/x86/kernel/acpi/madt_wakeup.c"
SNP = "Linux arch/x86/coco/sev/core.c"
KVM = "Linux arch/x86/kernel/kvm.c"
DSTACK = "Dstack-TEE/dstack PR 1220 (Granite Rapids, Linux 7.0)"
NONE = "no published figure was found"

ROWS: Final = (
    # -- a CPU and its hypervisor ---------------------------------------------------------------
    Cost(
        "instructions", "a handful of instructions with their cache misses", NONE, "assumption", 100
    ),
    Cost(
        "vmgexit",
        "a VMGEXIT: world switch, KVM's handler, world switch",
        NONE,
        "assumption",
        2 * US,
    ),
    Cost(
        "hypercall_user",
        "a VMGEXIT that the VMM in user space answers (KVM_HC_MAP_GPA_RANGE)",
        NONE,
        "assumption",
        10 * US,
    ),
    Cost("ipi", "an interrupt reaches another CPU", NONE, "assumption", 1 * US),
    Cost(
        "hypervisor_wake",
        "the hypervisor's thread of a blocked vCPU is woken and scheduled",
        NONE,
        "assumption",
        5 * US,
    ),
    # -- stopping CPUs, and waiting for them ----------------------------------------------------
    Cost("stop_timeout", "wait for CPUs to stop, before the NMI", SMP, "source", 1 * S),
    Cost("stop_poll", "step of that wait", SMP, "source", 1 * US),
    Cost(
        "stop_nmi_timeout",
        "wait after the NMI, unless the caller waits for ever",
        SMP,
        "source",
        10 * MS,
    ),
    Cost("crash_timeout", "wait for CPUs after the NMI of a crash", REBOOT, "source", 1 * S),
    Cost("crash_poll", "step of that wait", REBOOT, "source", 1 * MS),
    Cost(
        "ap_alive_timeout",
        "wait for a new CPU's sign of life",
        f"{SMPBOOT}: about 10 s, unconfirmed",
        "assumption",
        10 * S,
    ),
    Cost(
        "mailbox_test_timeout",
        "wait for the answer to TEST; WAKEUP is waited for without an end",
        MADT,
        "source",
        1 * S,
    ),
    Cost(
        "init_to_sipi",
        "between INIT and STARTUP: 10 ms on old parts, 0 on new; the old value is kept",
        SMPBOOT,
        "source",
        10 * MS,
        low=0,
        high=10 * MS,
    ),
    # -- the jump to the new kernel -------------------------------------------------------------
    Cost(
        "relocate",
        "relocate_kernel copies kernel and initrd, purgatory checks their SHA-256",
        NONE,
        "assumption",
        50 * MS,
    ),
    Cost(
        "boot_to_smp",
        "from the new kernel's first instruction to its bring-up of other CPUs",
        NONE,
        "assumption",
        1500 * MS,
    ),
    Cost(
        "memory_reuse",
        "mean time until the new kernel uses a given page of the old one",
        NONE,
        "assumption",
        1 * S,
    ),
    # -- a crash, and the dump ------------------------------------------------------------------
    Cost(
        "crash_boot",
        "from the jump to the crash kernel until it begins to save",
        "T. Liu in the v3 thread of the SEV-ES kexec series, one guest of unknown size",
        "source",
        2800 * MS,
    ),
    Cost(
        "oldmem_page",
        "the crash kernel maps, copies and unmaps a page of the old kernel's memory",
        NONE,
        "assumption",
        1 * US,
    ),
    Cost(
        "nmi_blocked",
        "how long a CPU has NMIs blocked: until long after the crash kernel reads",
        NONE,
        "assumption",
        10 * S,
    ),
    # -- pages ----------------------------------------------------------------------------------
    Cost(
        "psc_entries",
        "page state changes that Linux puts into one request",
        "Linux arch/x86/include/asm/sev-common.h, VMGEXIT_PSC_MAX_ENTRY",
        "source",
        64,
        "entries",
    ),
    Cost(
        "psc_entries_max",
        "page state changes for which one request has room",
        "GHCB protocol, page state change",
        "source",
        lib.GHCB_PSC_MAX_ENTRIES,
        "entries",
    ),
    Cost(
        "svsm_pvalidate_entries",
        "pages in one PVALIDATE call of an SVSM",
        SNP,
        "source",
        510,
        "entries",
    ),
    Cost(
        "psc_msr_pages",
        "pages of 4 KiB in one page state change by the MSR protocol",
        f"{SNP}; arch/x86/boot/compressed/sev.c",
        "source",
        1,
        "pages",
    ),
    Cost(
        "unshare_exits_1g",
        "VMGEXITs for a shared leaf of 1 GiB: 512 entries, psc_entries in each; one for a smaller",
        SNP,
        "derived",
        8,
        "VMGEXITs",
    ),
    Cost(
        "leaf_lookup",
        "look-up of one leaf of the direct map in the walk that unshares",
        NONE,
        "assumption",
        50,
    ),
    Cost(
        "ghcb_compare",
        "comparison of a shared leaf with the GHCB of one possible CPU",
        NONE,
        "assumption",
        2,
    ),
    Cost("pvalidate", "PVALIDATE of one page, 4 KiB or 2 MiB", NONE, "assumption", 1 * US),
    Cost("rmpupdate", "the hypervisor's RMPUPDATE of one page", NONE, "assumption", 1 * US),
    Cost("rmpadjust", "RMPADJUST that clears the tag of a VMSA", NONE, "assumption", 1 * US),
    Cost(
        "ap_destroy",
        "AP_CREATION of another vCPU, which is kicked out",
        NONE,
        "assumption",
        10 * US,
    ),
    Cost(
        "page_table_change",
        "set_memory_encrypted of a page, without more",
        NONE,
        "assumption",
        2 * US,
    ),
    Cost(
        "device_request",
        "mean time between conversions for a device, by CPU",
        NONE,
        "assumption",
        100 * MS,
    ),
    Cost(
        "device_shutdown",
        "the last reboot notifier to device_shutdown's end",
        NONE,
        "assumption",
        1 * MS,
    ),
    Cost(
        "tdx_convert",
        "MapGPA and accept of one page of 4 KiB; about 14 us were measured for the accept",
        "asterinas PR 1691 (8 GiB in 30 s)",
        "derived",
        14 * US,
    ),
    Cost(
        "ap_shutdown_exits",
        "VMGEXITs to destroy one AP, each with an RMPADJUST or a call of the SVSM",
        SNP,
        "derived",
        1,
        "VMGEXITs",
    ),
    Cost(
        "migration_reset_calls",
        "hypercalls for each RAM entry of E820 to reset the list of shared pages",
        KVM,
        "source",
        1,
        "VMGEXITs",
    ),
    Cost(
        "prefault_exits",
        "further exits of the host to accept 4 MiB that 4 KiB pages back, unless prefaulted",
        'QEMU "i386/kvm: Prefault memory on page state change"',
        "source",
        1024,
        "VMGEXITs",
        low=0,
        high=1024,
    ),
    Cost(
        "tdx_accept_4k",
        "a TD accepts a page of 4 KiB: early, and late in a bring-up of 248 vCPUs",
        DSTACK,
        "source",
        8 * US,
        low=8 * US,
        high=153 * US,
    ),
    # -- caches ---------------------------------------------------------------------------------
    Cost(
        "wbinvd",
        "WBINVD of one CPU, the others quiet",
        f"{NONE}; T. Gleixner and Z. Shen call it expensive (Linux 6.17 cache flush series)",
        "assumption",
        1 * MS,
        low=100 * US,
        high=10 * MS,
    ),
    Cost(
        "eviction",
        "mean time until a cache makes room and writes a dirty line back",
        NONE,
        "assumption",
        5 * MS,
    ),
    Cost("psp_command", "a command of the SNP firmware, polled for", NONE, "assumption", 1 * MS),
    Cost("guest_slice", "mean time between #VMEXITs of a busy guest", NONE, "assumption", 1 * MS),
    Cost(
        "nvme_timeout",
        "an I/O of an NVMe disk that is never answered",
        "Linux drivers/nvme/host/core.c, io_timeout",
        "source",
        30 * S,
    ),
    Cost("seamcall", "into the TDX module and back, as a world switch", NONE, "assumption", 2 * US),
    Cost(
        "completion_wait",
        "one time-out of an IOMMU's completion wait in a crash kernel",
        'trace in "x86/sev: Fix host kdump support for SNP", 2024',
        "source",
        170 * MS,
    ),
    Cost(
        "wbinvd_serial",
        "part of a WBINVD that CPUs can do only one after the other, by the width of the memory",
        f"{NONE}; worse when several CPUs issue it together (same series)",
        "assumption",
        10,
        "percent",
        low=0,
        high=100,
    ),
    # -- reports to compare a run with ----------------------------------------------------------
    Cost(
        "tdx_init",
        "a TD until it is initialised",
        DSTACK,
        "source",
        said="248 vCPUs, 32 GiB: 575 to 680 s; 64 vCPUs: about 50 s; 13 GiB accepted by the BSP",
    ),
    Cost(
        "tdx_accept_8g",
        "a TD accepts 8 GiB",
        "asterinas PR 1691",
        "derived",
        said="about 30 s, so about 14 us a page of 4 KiB",
    ),
    Cost(
        "tdx_eager_accept",
        "firmware accepts all memory at once",
        "kata-containers issue 13535",
        "source",
        said="64 GiB: not done after 90 s, lazily below 15 s; a 2.5 TB pod never booted",
    ),
    Cost(
        "lazy_accept",
        "memory accepted when it is used, compared with at once",
        "Phoronix on unaccepted memory v2",
        "source",
        said="boots 2.5 times as fast with 4 GiB, 4 times with 64 GiB",
    ),
    Cost(
        "swiotlb",
        "bounce buffer of a confidential guest; pysev.layout has the rule",
        "AMDSEV issue 116; the bounds are unconfirmed",
        "source",
        said="6 % of RAM, 64 MiB to 1 GiB: 8 GiB have 491 MiB, 16 GiB 982 MiB, 32 GiB 1024 MiB",
    ),
    Cost(
        "crash_reservation",
        "memory reserved for a crash kernel; pysev.layout has the rule",
        "kdump-utils",
        "source",
        said="256 or 512 MiB, and 64 MiB",
    ),
    Cost(
        "sev_es_kdump",
        "a crash dump of an SEV-ES guest of unknown size",
        "T. Liu in the v3 thread of the SEV-ES kexec series",
        "source",
        said="the crash kernel starts saving after 2.8 s and is done after 7.1 s of its life",
    ),
    Cost(
        "snp_host_crash",
        "a crash of an SNP host, traced",
        'thread "x86/sev: Fix host kdump support for SNP"',
        "source",
        said="CPUs stopped after about 0.7 s, jump after about 1.2 s; "
        "each IOMMU completion wait that times out 0.17 s",
    ),
    Cost(
        "large_guests",
        "the largest confidential guests in reports",
        f"{DSTACK}; kata-containers issue 13535",
        "source",
        said="248 vCPUs; 256 GiB under SNP; 2.5 TB under TDX",
    ),
    Cost("snp_kexec", "a whole kexec of an SNP guest", NONE, "assumption", said="none published"),
)

"""``snp-guest-kexec/*``, continued: bugs that were found and fixed, each failing and fixed.

Those of the path that ``snp_guest_kexec`` describes, then those beside it, whose flows are in
``pysev.flows.snp_guest_details``. K1 to K15 are the numbers of the project's fact sheet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..checking import DEADLOCK
from ..flow import Flow
from ..flows import snp_guest_details as details
from ..flows.snp_guest_kexec import CRASH, Variant
from ..machine import Machine
from .snp_guest_kexec import (
    CORE,
    GHCBS_LAST,
    LEAVES,
    NO_FAULT,
    NOT_TERMINATED,
    ON_BOOT_CPU,
    VALID_VMSA,
    VMSAS,
    add,
    add_flow,
)


def _pair(
    short: str,
    summary: str,
    bug: dict[str, Any],
    because: str,
    story: str,
    fixed: str,
    source: str,
    *assumes: str,
    base: Variant = ON_BOOT_CPU,
    from_cpus: int = 2,
) -> None:
    """A bug and its repair: the same scenario with and without the one thing."""
    broken = replace(base, **bug)
    add(short, summary, broken, "violated", because, story, source, *assumes, from_cpus=from_cpus)
    add(f"{short}-fixed", f"as {short}, repaired", base, "holds", "", fixed, source, *assumes)


# -- bugs of the path itself, failing and fixed -------------------------------------------------

_pair(
    "leaf-below-ghcb",
    "K1: the leaf that ends where a GHCB begins stays shared",
    {"strict": False},
    NO_FAULT,
    "#VC 0x404 while makedumpfile reads: the walk took `ghcb <= end` for the leaf of the GHCB",
    "with `ghcb < end` only the leaf that holds the GHCB is left for F6",
    LEAVES,
    from_cpus=1,
)
_pair(
    "huge-leaf-of-ghcb",
    "K2: pages in front of the GHCB in its 2 MiB leaf stay shared",
    {"leaf_base": False},
    NO_FAULT,
    "the C-bit is set in the whole leaf, but PSC and PVALIDATE begin at the GHCB",
    "the address is masked down to the base of its leaf",
    LEAVES,
    from_cpus=1,
)
_pair(
    "vmsa-of-halted-ap",
    "K3: the dump reads the VMSA page of an AP that halted in the guest",
    {"stages": tuple(s for s in CRASH if s != "destroy")},
    NO_FAULT,
    "the VMSA is in use: a nested fault that nobody can resolve, the dump hangs",
    "AP_CREATION destroy takes the vCPU out of the guest, RMPADJUST takes the tag off",
    VMSAS,
)
_pair(
    "vmsa-of-crashed-ap",
    "K3: the dump reads the VMSA page of the CPU that it runs on",
    {"offline": False},
    NO_FAULT,
    "the crash was on an AP: its VMSA is in RAM and in use",
    "the page is marked PageOffline and left out",
    VMSAS,
    base=replace(ON_BOOT_CPU, on_ap=True),
)
add(
    "vmcore-by-cp",
    "K4: cp reads /proc/vmcore, and knows nothing of PageOffline",
    replace(ON_BOOT_CPU, on_ap=True, honours_offline=False),
    "violated",
    NO_FAULT,
    "leaving it out is makedumpfile's affair, not the kernel's: the running VMSA's page is read",
    f"derived from {VMSAS}; open",
)
add(
    "destroy-refused",
    "the hypervisor refuses to destroy a vCPU",
    replace(ON_BOOT_CPU, refused=True),
    "violated",
    NO_FAULT,
    "RMPADJUST fails, the page is leaked with its tag but is not PageOffline: the dump reads it",
    f"derived from {VMSAS}",
)
_pair(
    "ghcbs-of-others-early",
    "K8: only the own GHCB is left for last",
    {"others_last": False},
    GHCBS_LAST,
    "up to v10 the walk made the GHCBs of all other CPUs private",
    "v11 leaves the GHCBs of all possible CPUs for F6",
    '"x86/snp: Add kexec support", v10 and v11',
    base=Variant(),
)
add(
    "crash-allocator-lock",
    "K11: a CPU was stopped while it held the page allocator's lock",
    replace(ON_BOOT_CPU, allocates=True),
    "deadlock",
    DEADLOCK,
    "F1 frees the VMSA pages and waits for a lock that nobody releases",
    f"derived from {VMSAS}; open",
)
add(
    "crash-allocator-lock-fixed",
    "as crash-allocator-lock, but the pages are not given back",
    replace(ON_BOOT_CPU, allocates=True, frees=False),
    "holds",
    "",
    "the crash kernel lives in its reservation: nobody needs the pages",
    f"derived from {VMSAS}",
)
add(
    "psc-cut-short",
    "the hypervisor returns from a page-state change before it is done",
    Variant(cut_short="asks again"),
    "holds",
    "",
    "the cursor says what is left, and the guest asks again until it has passed the end",
    f"{CORE}: the loop around the request",
)
add(
    "psc-cut-short-once",
    "as psc-cut-short, but the guest asks only once",
    Variant(cut_short="goes on"),
    "violated",
    NO_FAULT,
    "PVALIDATE meets a page that is the hypervisor's still",
    f"derived from {CORE}: why there is a loop",
    from_cpus=1,
)
add(
    "destroyed-made-runnable",
    "K13: user space makes a vCPU runnable whose VMSA is gone",
    Variant(resurrects="runs"),
    "violated",
    VALID_VMSA,
    "KVM enters the guest with an invalid VMSA",
    "Linux 72d12715edcd",
)
add(
    "destroyed-made-runnable-fixed",
    "as destroyed-made-runnable, repaired",
    Variant(resurrects="refuses"),
    "holds",
    "",
    "KVM_RUN is refused; AP_CREATION create of the new kernel brings the vCPU back",
    "Linux 72d12715edcd",
)

# -- bugs beside the path -----------------------------------------------------------------------


def _bug(
    short: str,
    summary: str,
    make: Callable[..., Callable[[Machine], Flow]],
    broken: dict[str, Any],
    fixed: dict[str, Any],
    because: str,
    story: str,
    repaired: str,
    source: str,
    *assumes: str,
    verdict: str = "violated",
) -> None:
    """A flow of ``snp_guest_details``, with the bug and without."""
    family = "snp-guest-kexec"
    build = make(f"{family}/{short}", **broken)
    add_flow(short, summary, build, verdict, because, story, source, *assumes)
    good = f"{short}-fixed"
    build = make(f"{family}/{good}", **fixed)
    add_flow(good, f"as {short}, repaired", build, "holds", "", repaired, source, *assumes)


_bug(
    "decompressor-video",
    "K5: the decompressor writes to video memory",
    details.decompressor_video,
    {"skips": False},
    {"skips": True},
    NOT_TERMINATED,
    "kexec -c passes screen_info; stage 2 of the #VC handler has no MMIO and terminates the guest",
    "with SEV-ES on, lines and columns are 0: nothing is written; serial output works by IOIO",
    '"x86/boot: Skip video memory access in the decompressor for SEV-ES/SNP"',
)
_bug(
    "efi-map-chained",
    "K6: the EFI map is random data in the second kexec",
    details.efi_map,
    {"keeps": False},
    {"keeps": True},
    details.NOTHING_FOREIGN,
    "a kexec'ed kernel copies the map to memblock pages, which are given back and used again",
    "ranges that are RUNTIME already are left alone: the map stays where the firmware had it",
    '"efi/x86: skip efi_arch_mem_reserve() in case of kexec" (SNP kexec series, to v7)',
    "what follows from the use after free is not modelled, only that it can happen",
)
_bug(
    "unaccepted-table-zapped",
    "K7: the crash kernel has no mapping of the table of unaccepted memory",
    details.unaccepted_table,
    {"keeps": False},
    {"keeps": True},
    details.NOTHING_FOREIGN,
    "page tables are cut to the crash range; the table lies outside, and the look-up faults",
    "mappings of E820_TYPE_ACPI are kept",
    '"x86/tdx: Add kexec support" v12, patches 12 and 13 (Linux 6.11)',
)
_bug(
    "svsm-calling-area",
    "K9: conversions after F5 call the SVSM through the boot calling area",
    details.svsm_calling_area,
    {"early_is_boot": True},
    {"early_is_boot": False},
    NOT_TERMINATED,
    "the SVSM looks into the calling area of the CPU and finds no call there",
    "the early functions are handed the calling area of the CPU",
    'Linux 00d256676174 ("x86/sev: Pass SVSM calling area down to early page state change API")',
)
_bug(
    "svsm-second-kernel",
    "K15: the second kernel takes the calling area from the secrets page",
    details.svsm_calling_area,
    {"early_is_boot": False, "second": "from secrets"},
    {"early_is_boot": False, "second": "given back"},
    NOT_TERMINATED,
    "the first kernel has moved the calling area: the SVSM looks where the first kernel said",
    "the first kernel moves it back before it jumps",
    "derived and unconfirmed: no handling of it was found upstream",
    "the SVSM keeps the calling area across a kexec",
)
_bug(
    "secure-avic-left-on",
    "K10: Secure AVIC stays on across the kexec",
    details.secure_avic,
    {"teardown": "never"},
    {"teardown": "early"},
    details.NOTHING_FOREIGN,
    "early APIC accesses of the new kernel reach the old backing page, which is something else now",
    "it is torn down when the local APIC is switched off",
    "Linux c8018325dd3e",
)
add_flow(
    "secure-avic-after-ghcbs",
    "K10: Secure AVIC torn down after the GHCBs are private",
    details.secure_avic("snp-guest-kexec/secure-avic-after-ghcbs", teardown="after F6"),
    "violated",
    NOT_TERMINATED,
    "the backing page is unregistered by GHCB, and there is none",
    "derived from Linux c8018325dd3e",
)
_bug(
    "svsm-stale-vmsa",
    "K14: the SVSM's loop of an AP keeps the mapping of a VMSA that was replaced",
    details.stale_vmsa,
    {"refreshes": False},
    {"refreshes": True},
    DEADLOCK,
    "destroyed and created again while the loop was blocked, the AP is never answered",
    "the loop maps the VMSA anew when it wakes",
    "coconut-svsm pull request 452",
    verdict="deadlock",
)
_bug(
    "ghcb-lookup-null",
    "K12: the look-up of a GHCB's leaf finds nothing",
    details.ghcb_lookup,
    {"checks": False},
    {"checks": True},
    details.NOTHING_FOREIGN,
    "the result of lookup_address is used without a look at it",
    "a GHCB that is not mapped is warned of and passed over",
    "patch proposed in November 2024; derived: not seen merged",
    "a GHCB that is not mapped, for whatever reason",
)

"""``snp-guest-kexec/*``: an SNP guest makes its memory private again before the next kernel.

Mainline's order, each of its rules broken once, and crashes that come at a bad time. What the CPUs
do is in ``pysev.flows.snp_guest_kexec``; bugs that were found and fixed are in ``snp_guest_bugs``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ghcbcore._cffi import lib

from ..checking import DEADLOCK
from ..flow import Flow
from ..flows.snp_guest_kexec import CRASH, NORMAL, Kernel, SnpGuestKexec, Variant, swapped
from ..frames import views
from ..machine import Machine
from ..states import States
from .registry import Scenario, register

# -- properties --------------------------------------------------------------------------------

NO_FAULT = "no access faults"
NOT_TERMINATED = "the guest is not terminated"
ALL_UP = "every AP comes up"
NO_FOREIGN_FETCH = "no foreign fetch"
VALID_VMSA = "no vCPU runs without a VMSA"
GHCBS_LAST = "GHCBs become private last"


def _all_up(s: States) -> Any:
    return (s.cpu.up == 1).all(axis=1) | ~s.at("boot CPU", "up")


def _ghcbs_last(others: Any) -> Callable[[States], Any]:
    def holds(s: States) -> Any:
        is_shared = views(s, others)[:, 0]["mapping"] == lib.FRAME_SHARED
        return is_shared | (s.g.by_ghcb == 0) | (s.g.kernel == Kernel.NEW)

    return holds


def build_kexec(variant: Variant, name: str) -> Callable[[Machine], Flow]:
    def build(machine: Machine) -> Flow:
        made = SnpGuestKexec(variant, machine, name)
        flow = made.build()
        flow.always(
            NO_FAULT,
            lambda s: s.g.fault == 0,
            "every page is as the mapping says through which it is used",
        )
        flow.always(
            NOT_TERMINATED,
            lambda s: s.vm.event == lib.GHCB_EVENT_NONE,
            "every request is understood and every PVALIDATE succeeds",
        )
        if made.frames.others_ghcb is not None:
            flow.always(
                GHCBS_LAST,
                _ghcbs_last(made.frames.others_ghcb[0]),
                "no GHCB becomes private while page changes still go by GHCB",
            )
        if variant.wakes:
            flow.always(
                NO_FOREIGN_FETCH,
                lambda s: s.g.foreign == 0,
                "no CPU fetches from memory that is no longer its kernel's",
            )
        if variant.resurrects:
            flow.always(
                VALID_VMSA,
                lambda s: (s.cpu.invalid == 0).all(axis=1),
                "KVM enters no vCPU without VMSA",
            )
        if variant.crash:
            flow.count_cpus("halted", lambda s: s.at("AP", "halted"))
        else:
            flow.at_end(ALL_UP, _all_up, "every AP comes up in the new kernel")
            flow.count_cpus("online", lambda s: s.at("AP", "new kernel"))
        _near(flow, made)
        return flow

    return build


def _near(flow: Flow, made: SnpGuestKexec) -> None:
    """What must be reached, or the check has shown nothing."""
    v = made.v
    plain = made.frames.below[0]

    def unshared(s: States) -> Any:
        page = views(s, plain)[:, made.frames.below[1]]
        return (page["mapping"] == lib.FRAME_PRIVATE) & (page["validated"] == 0)

    if "walk" in v.stages:
        flow.sometimes("a page is half converted by the walk", unshared)
    if made.n_others == 0:
        return
    if made.frames.moving is not None:
        moving = made.frames.moving[0]
        flow.sometimes("a CPU converts a page when kexec begins", lambda s: s.g.readers != 0)
        flow.sometimes(
            "the page table does not show that a page is the hypervisor's",
            lambda s: _is_hidden(views(s, moving)[:, 0]),
        )
    if v.crash and made.frames.vmsa is not None:
        vmsa = made.frames.vmsa[0]
        flow.sometimes(
            "a VMSA is in use while the other CPUs have stopped",
            lambda s: (views(s, vmsa)[:, 0]["in_use"] == 1) & (s.g.stopping == 0),
        )


def _is_hidden(page: Any) -> Any:
    return (page["mapping"] == lib.FRAME_PRIVATE) & (page["assigned"] == 0)


# -- the library -------------------------------------------------------------------------------

CORE = "Linux arch/x86/coco/sev/core.c (3074152e56c9)"
LEAVES = 'Linux 82b7f88f2316 ("x86/sev: Fix making shared pages private during kdump")'
VMSAS = 'Linux d2062cc1b1c3 ("x86/sev: Do not touch VMSA pages during kdump of SNP guest memory")'
ORDER = f"derived from {CORE}: order of snp_kexec_finish"
ALIKE = "a frame stands for all pages that are alike"
ATOMIC_HLT = "clearing the bit in cpus_stop_mask and HLT are one step"
NO_NMI = "every CPU answers within a second"
QUIET = (
    "no CPU converts a page when the NMI meets it (half-to-shared, half-to-private: if one does)"
)
GRANTS = "the hypervisor grants each page-state change"

ON_BOOT_CPU = Variant(crash=True, stages=CRASH)


def add(
    short: str,
    summary: str,
    variant: Variant,
    expected: str,
    because: str,
    story: str,
    source: str,
    *assumes: str,
    from_cpus: int = 2,
) -> None:
    base = [ALIKE, ATOMIC_HLT, GRANTS, *([] if variant.impatient else [NO_NMI])]
    name = f"snp-guest-kexec/{short}"
    build = build_kexec(variant, name)
    add_flow(
        short,
        summary,
        build,
        expected,
        because,
        story,
        source,
        *base,
        *assumes,
        from_cpus=from_cpus,
    )


def add_flow(
    short: str,
    summary: str,
    build: Callable[[Machine], Flow],
    expected: str,
    because: str,
    story: str,
    source: str,
    *assumes: str,
    from_cpus: int = 1,
) -> None:
    name = f"snp-guest-kexec/{short}"
    register(
        Scenario(
            name, summary, expected, because, story, source, build, assumes, from_cpus=from_cpus
        )
    )


add(
    "mainline",
    "kexec as mainline does it, while another CPU converts a page",
    Variant(converts="to shared"),
    "holds",
    "",
    "begin waits for converters, the walk finds every shared page, the GHCBs go last, by MSR",
    CORE,
)
add(
    "mainline-to-private",
    "as mainline; the conversion in flight is to private",
    Variant(converts="to private"),
    "holds",
    "",
    "begin waits for converters; what they began is finished before the walk",
    CORE,
)
add(
    "mainline-crash",
    "a crash on the boot CPU: APs destroyed, memory private again, all of it read",
    ON_BOOT_CPU,
    "holds",
    "",
    "destroyed APs leave VMSA pages that can be read; the rest is as in a kexec",
    f"{CORE}; {VMSAS}",
    QUIET,
)
add(
    "mainline-crash-on-ap",
    "a crash on an AP: its own VMSA is in use and must not be read",
    replace(ON_BOOT_CPU, on_ap=True),
    "holds",
    "",
    "the page of the running VMSA is PageOffline, and makedumpfile leaves it out; "
    "the BSP's is not in RAM",
    VMSAS,
    QUIET,
)

# -- each rule of the order broken once ---------------------------------------------------------

add(
    "begin-after-stop",
    "the other CPUs are stopped before conversions are",
    Variant(stages=swapped(NORMAL, "begin", before="destroy"), converts="to shared"),
    "deadlock",
    DEADLOCK,
    "a converter stopped half-way holds mem_enc_lock for reading; the writer waits for ever",
    ORDER,
)
add(
    "no-begin",
    "nobody stops conversions, and one is in flight when the CPUs are stopped",
    Variant(stages=tuple(s for s in NORMAL if s != "begin"), converts="to shared"),
    "violated",
    NO_FAULT,
    "the CPU is stopped between the parts of its conversion: the walk cannot see the page",
    f"{ORDER}; why there is a begin",
)
add(
    "unshare-before-stop",
    "memory becomes private while the other CPUs still run",
    Variant(
        stages=swapped(swapped(NORMAL, "walk", before="stop"), "bss", before="stop"),
        uses_buffer=True,
    ),
    "violated",
    NO_FAULT,
    "a CPU writes to a shared buffer whose PTE is private already and whose RMP entry is not",
    ORDER,
)
add(
    "destroy-before-stop",
    "APs are destroyed before they are stopped",
    Variant(stages=swapped(NORMAL, "destroy", before="stop")),
    "deadlock",
    DEADLOCK,
    "a CPU that is gone never clears its bit in cpus_stop_mask",
    ORDER,
)
add(
    "destroy-after-ghcbs",
    "APs are destroyed when the GHCBs are private already",
    Variant(stages=swapped(NORMAL, "destroy", before="relocate")),
    "violated",
    NOT_TERMINATED,
    "AP_CREATION needs a GHCB: the hypervisor reads ciphertext",
    ORDER,
)
add(
    "ghcbs-not-last",
    "the leaf with the GHCB becomes private before the others",
    Variant(stages=swapped(NORMAL, "ghcbs", before="walk")),
    "violated",
    NOT_TERMINATED,
    "the GHCB's own PTE is private when its PSC is asked for: the hypervisor reads ciphertext",
    ORDER,
    from_cpus=1,
)
add(
    "ghcbs-by-ghcb",
    "the GHCBs last, but not by the MSR protocol",
    Variant(stages=tuple(s for s in NORMAL if s != "close")),
    "violated",
    NOT_TERMINATED,
    "a GHCB cannot ask for its own conversion: the hypervisor reads ciphertext",
    ORDER,
    from_cpus=1,
)
add(
    "pte-after-psc",
    "the walk asks for the page-state change before it sets the C-bit",
    Variant(pte_first=False),
    "violated",
    NOT_TERMINATED,
    "PVALIDATE needs the mapping to be private",
    ORDER,
    from_cpus=1,
)
add(
    "console-after-ghcbs",
    "a kmsg dumper prints through a port after finish",
    Variant(stages=swapped((*NORMAL, "console"), "console", before="relocate")),
    "violated",
    NOT_TERMINATED,
    "kmsg_dump comes after finish: the #VC handler finds a GHCB that is private",
    "derived from Linux kernel/kexec_core.c: kmsg_dump after machine_shutdown",
    from_cpus=1,
)
add(
    "console-before-ghcbs",
    "as console-after-ghcbs, but printed before finish",
    Variant(stages=swapped((*NORMAL, "console"), "console", before="destroy")),
    "holds",
    "",
    "the GHCB is shared as long as anybody prints",
    "derived from Linux kernel/kexec_core.c",
)

# -- a crash in the middle of a conversion ------------------------------------------------------

add(
    "half-to-shared",
    "the crash NMI meets a CPU between the parts of a conversion to shared",
    replace(ON_BOOT_CPU, converts="to shared"),
    "violated",
    NO_FAULT,
    "the RMP has changed and the PTE has not: the walk cannot see that the page is not private",
    f"derived from {CORE}: enc_status_change_prepare, then the page table",
)
add(
    "half-to-private",
    "the crash NMI meets a CPU between the parts of a conversion to private",
    replace(ON_BOOT_CPU, converts="to private"),
    "violated",
    NO_FAULT,
    "the PTE is private and the RMP is not yet: the walk cannot see that the page is shared",
    f"derived from {CORE}: the page table, then enc_status_change_finish",
)
add(
    "crash-nmi-timeout",
    "a CPU does not answer the crash NMI within a second, and goes on",
    replace(ON_BOOT_CPU, impatient=True, uses_buffer=True),
    "holds",
    "",
    "AP_CREATION destroy stops the CPU that no NMI has stopped, before the walk",
    f"derived from {VMSAS}",
    QUIET,
)
add(
    "crash-nmi-timeout-no-destroy",
    "as crash-nmi-timeout, before APs were destroyed",
    replace(
        ON_BOOT_CPU,
        impatient=True,
        uses_buffer=True,
        stages=tuple(s for s in CRASH if s != "destroy"),
    ),
    "violated",
    NO_FAULT,
    "the CPU writes to a shared buffer that the crashed CPU makes private",
    f"derived from {CORE}, before {VMSAS}",
    QUIET,
)

add(
    "spurious-wake",
    "the hypervisor lets a halted AP run on for nothing",
    Variant(wakes=True),
    "holds",
    "",
    "before F1 the AP finds its HLT loop, and after F1 it has no VMSA to run from",
    f"derived from {VMSAS}",
)
add(
    "spurious-wake-no-destroy",
    "as spurious-wake, before APs were destroyed",
    Variant(wakes=True, stages=tuple(s for s in NORMAL if s != "destroy")),
    "violated",
    NO_FOREIGN_FETCH,
    "the AP goes on behind its HLT in memory that is the new kernel's",
    f"derived from {CORE}, before {VMSAS}",
)

"""``snp-host-kdump/*``: an SNP host with running guests panics; the designs that were argued about.

Six designs of September 2024 to 2025 (``tolerate`` is the one that was merged), each under the same
conditions. What the CPUs do is in ``pysev.flows.snp_host_kdump``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..checking import DEADLOCK
from ..firmware import Cell, Status
from ..flow import Flow
from ..flows.snp_host_kdump import AttemptAt, Condition, Deaf, Design, Next, SnpHostKdump, Who
from ..machine import Machine
from ..psp import IMPOSSIBLE, Psp
from ..states import States
from .registry import Scenario, register

__all__ = ["S1", "S2", "S3", "S4", "S5", "forbid_early_clean", "forbid_guests"]

# -- properties --------------------------------------------------------------------------------

S1 = "S1: no CPU is in a guest, or enters one, after SNP_DECOMMISSION"
S2 = "S2: an ASID is CLEAN only if every core has executed WBINVD since"
S3 = "S3: one PSP command in flight"
S4 = "S4: SNP is off before the crash kernel starts"
S5 = "S5: the crash kernel reaches user space"


def forbid_guests(flow: Flow, psp: Psp) -> None:
    """Require S1 of a flow."""

    def outside(s: States) -> Any:
        return ~psp.runs_gone_guest(s) & ~(s.cpu.entered == IMPOSSIBLE).any(axis=1)

    flow.always(S1, outside, "no CPU is in a guest, or enters one, whose ASID is gone")


def forbid_early_clean(flow: Flow, psp: Psp) -> None:
    """Require S2 of a flow all of whose ASIDs were in use."""
    text = "an ASID is CLEAN only if every core has executed WBINVD since it was in use"
    flow.always(S2, lambda s: ~psp.is_clean(s) | psp.all_done(s), text)


def _started(s: States) -> Any:
    return s.at("boot CPU", "IOMMU")


def _properties(made: SnpHostKdump, n_cpus: int) -> None:
    flow, psp, d, c = made.flow, made.psp, made.d, made.c
    guests, others = c.n_guests > 0, n_cpus > 1
    if d.who != Who.NOBODY and guests:
        forbid_guests(flow, psp)
        forbid_early_clean(flow, psp)
    if made.psp_is_shared:
        flow.always(S3, lambda s: s.g.clash == 0, "the PSP has one command in flight")
    if d.claims_shutdown(guests):
        labels = list(made.boot.labels)
        crash_kernel = labels[labels.index("IOMMU") :]
        flow.always(
            S4,
            lambda s: ~s.at("boot CPU", *crash_kernel) | ~psp.is_up(s),
            "SHUTDOWN_EX has succeeded when the crash kernel starts",
        )
    flow.always(S5, lambda s: ~s.at("boot CPU", "dead"), "the crash kernel reaches user space")
    flow.sometimes(
        "SNP is on when the NMI is sent", lambda s: psp.is_up(s) & s.at("boot CPU", "waits")
    )
    if guests and others:
        flow.sometimes(
            "a CPU is in a guest when the NMI is sent",
            lambda s: (psp.threads(s)["runs"] != 0).any(axis=1) & s.at("boot CPU", "waits"),
        )
    if c.mid_vmexit and others:
        flow.sometimes(
            "a guest's state is being saved when the NMI is sent",
            lambda s: s.at("AP", "exiting").any(axis=1) & s.at("boot CPU", "waits"),
        )
    if guests and d.who != Who.NOBODY:
        flow.sometimes("an ASID is DIRTY", lambda s: psp.is_any(s, Cell.DIRTY))
    if guests and d.attempt != AttemptAt.NEVER and not c.in_flight:
        flow.sometimes("SHUTDOWN_EX is refused", lambda s: s.g.status == Status.DFFLUSH_REQUIRED)
    if not d.claims_shutdown(guests):
        flow.sometimes(
            "the crash kernel finds the IOMMU locked",
            lambda s: _started(s) & psp.is_iommu_locked(s),
        )
    if c.deaf != Deaf.NOBODY:
        flow.sometimes("the second is over", lambda s: s.g.timed_out == 1)
    if d.who == Who.CALLBACK:
        flow.sometimes("SNP_DECOMMISSION is in flight", lambda s: s.g.in_flight == 1)


def _build(design: Design, condition: Condition, name: str) -> Callable[[Machine], Flow]:
    def build(machine: Machine) -> Flow:
        made = SnpHostKdump(design, condition, machine, name).build()
        _properties(made, machine.n_cpus)
        made.flow.count_cpus("stopped", lambda s: s.at("AP", "halted"))
        return made.flow

    return build


# -- the library -------------------------------------------------------------------------------

THREAD = 'kexec list 2024-09, "x86/sev: Fix host kdump support for SNP"'
KALRA = f"{THREAD}, Kalra, v1 and v2"
REVIEW = f"{THREAD}, Christopherson and Petkov on Kalra's v2"
BONZINI = f"{THREAD}, Bonzini and Kalra, 4 September"
ROTH = f"{THREAD}, Roth and Kalra, 4 September and the PUCK call"
AFTER = f"{THREAD}, experiments of 6 to 12 September"
MERGED = (
    'Linux 6.18, "iommu/amd: host kdump support for SNP" (f32fe7cb0198, 38e5f33ee359, 8c571019d8a8)'
)
FIRMWARE = "AMD-ASPFW sev_mcmd.c (August 2023)"
ORDER = "Linux kernel/panic.c, arch/x86/kernel/{crash,reboot}.c"
SHUTDOWN = "Linux drivers/crypto/ccp/sev-dev.c"

PATIENT = "the one second is over only when no CPU that is waited for can go on"
GOES_ON = "the CPU that does not take the NMI goes on running its guest"
ONCE_ON_P = "the CPU that panics calls the callback once, in machine_crash_shutdown"
BEHIND = "SHUTDOWN_EX is tried behind machine_crash_shutdown, not in the panic notifier"
ONE_CCX = "all CPUs sit on one CCX; the CPU that panics is its first core"
HELD = "the CPU that holds the PSP's mutex was stopped by the NMI: it never gives it back"

PLAIN = Condition()
CONDITIONS = {
    "": (PLAIN, ""),
    "+no-guest": (Condition(n_guests=0), "; no guest was started"),
    "+mid-vmexit": (
        Condition(mid_vmexit=True),
        "; a CPU may be in the middle of a #VMEXIT, its state not saved yet",
    ),
    "+no-nmi": (Condition(deaf=Deaf.FOR_EVER), "; one CPU never takes the NMI"),
    "+one-cpu": (PLAIN, "; a machine of one CPU"),
    "+genoa": (Condition(mode="genoa_2023"), "; the firmware published for Genoa"),
    "+no-nmi+genoa": (
        Condition(mode="genoa_2023", deaf=Deaf.FOR_EVER),
        "; one CPU never takes the NMI; the firmware published for Genoa",
    ),
    "+late-nmi": (
        Condition(deaf=Deaf.LATE),
        "; one CPU takes the NMI after the boot CPU has given up",
    ),
    "+slow": (
        Condition(slow=True),
        "; the others may need more than a second: WBINVD of so many CPUs takes long",
    ),
    "+two-no-nmi": (Condition(deaf=Deaf.TWO), "; two CPUs never take the NMI"),
    "+command-in-flight": (
        Condition(in_flight=True),
        "; KVM's command to the PSP is in flight",
    ),
}
"""What is added to a name: the condition, and what is added to the summary."""


EVERYWHERE = tuple(CONDITIONS)[:7]
"""The conditions under which every design stands."""


@dataclass(frozen=True)
class Row:
    """A design under one condition: verdict, property, story and source."""

    suffix: str
    because: str
    story: str
    source: str

    @property
    def expected(self) -> str:
        if self.because == DEADLOCK:
            return "deadlock"
        return "violated" if self.because else "holds"


@dataclass(frozen=True)
class Variant:
    """One design under its conditions."""

    short: str
    summary: str
    design: Design
    rows: tuple[Row, ...]
    assumes: tuple[str, ...] = ()


def _assumes(variant: Variant, c: Condition) -> tuple[str, ...]:
    found = list(variant.assumes)
    if variant.design.is_capped and not c.slow:
        found.append(PATIENT)
    if c.deaf in (Deaf.FOR_EVER, Deaf.LATE):
        found.append(GOES_ON)
    if variant.design.who == Who.CALLBACK:
        found.append(ONCE_ON_P)
    if c.mode != "strict":
        found.append(ONE_CCX)
    if c.in_flight:
        found.append(HELD)
    return tuple(found)


def _register(variant: Variant, row: Row) -> None:
    name = f"snp-host-kdump/{variant.short}{row.suffix}"
    condition, more = CONDITIONS[row.suffix]
    alone = row.suffix == "+one-cpu"
    register(
        Scenario(
            name,
            variant.summary + more,
            row.expected,
            row.because,
            row.story,
            row.source,
            _build(variant.design, condition, name),
            _assumes(variant, condition),
            from_cpus=1 if alone else 2,
            fixed_cpus=1 if alone else None,
            least_cpus=1 if alone else 3 if condition.deaf == Deaf.TWO else 2,
        )
    )


NOT_RUN = "with no guest every ASID is CLEAN: SHUTDOWN_EX succeeds at once"
IN_GUEST = (
    "the boot CPU gives up after one second and decommissions, but the CPU that has missed the NMI "
    "is in the guest, or enters it"
)
HALTED = (
    "DECOMMISSION asks for WBINVD of every core after it, and CPUs that have halted cannot execute "
    "it: DF_FLUSH says WBINVD_REQUIRED, SHUTDOWN_EX DFFLUSH_REQUIRED"
)
PREFIX = (
    "DF_FLUSH says WBINVD_REQUIRED, but the first core of the CCX speaks for all: ASIDs are CLEAN "
    "although the other cores have not written their caches back"
)
ALONE = "there is no other CPU to miss: WBINVD of this one, DF_FLUSH, SHUTDOWN_EX"
EARLY = (
    "the panic notifier tries SHUTDOWN_EX before machine_crash_shutdown: the guests are still "
    "there, and DF_FLUSH cannot cure IN_USE"
)
LOCKED = (
    "the IOMMU ignores the crash kernel's new tables: Completion-Wait loop timed out, then "
    "timer doesn't work through Interrupt-remapped IO-APIC"
)
TOLERANT = "the crash kernel reuses the old device table and buffers and initialises no SEV"
AWARE = f"derived from {ORDER}"

VARIANTS = (
    Variant(
        "nmi-decommission",
        "the first CPU in the NMI callback decommissions when all are in it (patch v1, v2)",
        Design(Who.CALLBACK),
        (
            Row(
                "",
                "",
                "all CPUs are out of guests, then DECOMMISSION, then WBINVD everywhere, then "
                "SHUTDOWN_EX and DF_FLUSH: the only working order",
                KALRA,
            ),
            Row("+no-guest", "", NOT_RUN, KALRA),
            Row(
                "+mid-vmexit",
                "",
                "the NMI comes when the #VMEXIT is done, and nobody decommissions before that",
                KALRA,
            ),
            Row(
                "+no-nmi",
                S1,
                "the boot CPU gives up after one second, comes to the callback itself and is "
                "counted instead of the one that is missing, which is still in its guest",
                f"derived from {KALRA}; {REVIEW}",
            ),
            Row(
                "+one-cpu",
                DEADLOCK,
                "with one CPU online the counter begins at -1 and never becomes 0",
                REVIEW,
            ),
            Row(
                "+genoa", "", "every core has executed WBINVD: nothing is promoted early", FIRMWARE
            ),
            Row(
                "+no-nmi+genoa",
                S1,
                "the boot CPU is counted instead of the one that is missing, before any flush",
                f"derived from {KALRA}; {REVIEW}",
            ),
            Row(
                "+late-nmi",
                S3,
                "the boot CPU has given up and runs on with SHUTDOWN_EX while the CPU that waited "
                "for the late one gives DECOMMISSION",
                REVIEW,
            ),
            Row(
                "+slow",
                S3,
                "long work in NMI: the boot CPU has given up and tries SHUTDOWN_EX while the first "
                "CPU in the callback gives DECOMMISSION",
                f"derived from {REVIEW}",
            ),
            Row(
                "+two-no-nmi",
                DEADLOCK,
                "the boot CPU gives up after one second, comes to the callback and spins without a "
                "bound: the counter never becomes 0",
                f"derived from {REVIEW}",
            ),
            Row(
                "+command-in-flight",
                S3,
                "an NMI cannot take the driver's mutex: DECOMMISSION is given while another "
                "command is in flight",
                REVIEW,
            ),
        ),
    ),
    Variant(
        "last-flag",
        "NMI first, then the callback of the CPU that panics, which is the last, decommissions",
        Design(Who.LAST, attempt=AttemptAt.LATER),
        (
            Row("", S4, HALTED, BONZINI),
            Row("+no-guest", "", NOT_RUN, BONZINI),
            Row("+mid-vmexit", S4, HALTED, BONZINI),
            Row("+no-nmi", S1, IN_GUEST, f"derived from {BONZINI}; {ORDER}"),
            Row("+one-cpu", "", ALONE, f"derived from {BONZINI}; {FIRMWARE}"),
            Row("+genoa", S2, PREFIX, f"derived from {BONZINI}; {FIRMWARE}"),
            Row("+no-nmi+genoa", S1, IN_GUEST, f"derived from {BONZINI}; {ORDER}"),
        ),
        (BEHIND,),
    ),
    Variant(
        "last-flag+notifier",
        "as last-flag, SHUTDOWN_EX tried where mainline tries it",
        Design(Who.LAST),
        (Row("", S4, EARLY, f"{AWARE}; {BONZINI}"),),
    ),
    Variant(
        "spin-until-last",
        "the others wait in the callback until the last CPU has decommissioned, then WBINVD",
        Design(Who.LAST, spins=True),
        (
            Row(
                "",
                S4,
                f"the boot CPU waits for those that wait for it, until the second is over; {EARLY}",
                f"{AWARE}; {BONZINI}",
            ),
            Row("+no-guest", "", f"one second is lost; {NOT_RUN}", f"{AWARE}; {BONZINI}"),
            Row("+mid-vmexit", S4, EARLY, f"{AWARE}; {BONZINI}"),
            Row("+no-nmi", S1, IN_GUEST, f"{AWARE}; {BONZINI}"),
            Row("+one-cpu", S4, EARLY, f"{AWARE}; {BONZINI}"),
            Row("+genoa", S4, EARLY, f"{AWARE}; {BONZINI}"),
            Row("+no-nmi+genoa", S1, IN_GUEST, f"{AWARE}; {BONZINI}"),
        ),
    ),
    Variant(
        "spin-until-last+no-cap",
        "as spin-until-last, and the CPU that panics waits without a bound",
        Design(Who.LAST, spins=True, is_capped=False),
        (
            Row(
                "",
                DEADLOCK,
                "CPUs are counted behind the callback: the boot CPU and they wait for each other",
                BONZINI,
            ),
        ),
    ),
    Variant(
        "spin-until-last+shutdown-later",
        "as spin-until-last, SHUTDOWN_EX behind it",
        Design(Who.LAST, spins=True, attempt=AttemptAt.LATER),
        (
            Row(
                "",
                S4,
                "the others have been released and are in WBINVD, but nobody waits for them a "
                "second time: DF_FLUSH comes too early and says WBINVD_REQUIRED",
                f"{AWARE}; {FIRMWARE}",
            ),
            Row("+genoa", S2, PREFIX, f"{AWARE}; {FIRMWARE}"),
        ),
        (BEHIND,),
    ),
    Variant(
        "spin-until-last+shutdown-later+waits",
        "as spin-until-last, SHUTDOWN_EX behind it and behind a second wait",
        Design(Who.LAST, spins=True, attempt=AttemptAt.LATER, waits_again=True),
        (
            Row(
                "",
                "",
                "one second is lost; after it the order is right, if all CPUs have arrived",
                f"{AWARE}; {BONZINI}",
            ),
            Row("+no-nmi", S1, IN_GUEST, f"{AWARE}; {BONZINI}"),
        ),
        (BEHIND,),
    ),
    Variant(
        "wbinvd-first",
        "every CPU executes WBINVD in its NMI, then the panic notifier decommissions",
        Design(Who.NOTIFIER),
        (
            Row(
                "",
                S4,
                HALTED.replace("DECOMMISSION asks", "WBINVD came first: DECOMMISSION asks"),
                ROTH,
            ),
            Row("+no-guest", "", NOT_RUN, ROTH),
            Row("+mid-vmexit", S4, HALTED, ROTH),
            Row("+no-nmi", S1, IN_GUEST, f"derived from {ROTH}; {ORDER}"),
            Row("+one-cpu", "", ALONE, f"derived from {ROTH}; {FIRMWARE}"),
            Row("+genoa", S2, PREFIX, f"derived from {ROTH}; {FIRMWARE}"),
            Row("+no-nmi+genoa", S1, IN_GUEST, f"derived from {ROTH}; {ORDER}"),
        ),
    ),
    Variant(
        "skip-shutdown",
        "the crash kernel starts with SNP on and sets the IOMMU up anew",
        Design(attempt=AttemptAt.NEVER),
        tuple(Row(suffix, S5, LOCKED, AFTER) for suffix in EVERYWHERE),
    ),
    Variant(
        "skip-shutdown+iommu-off",
        "the crash kernel starts with SNP on and amd_iommu=off",
        Design(attempt=AttemptAt.NEVER, next=Next.OFF),
        (
            Row(
                "",
                S5,
                "no panic, but no interrupt remapping, so no x2APIC: NVMe I/O times out and the "
                "root file system never appears",
                AFTER,
            ),
        ),
    ),
    Variant(
        "skip-shutdown+store-zeroed",
        "the crash kernel starts with SNP on, reuses the old buffers and zeroes the store",
        Design(attempt=AttemptAt.NEVER, next=Next.ZEROES),
        (
            Row(
                "",
                S5,
                "the completion store is a page of the firmware, which the host may only read: a "
                "write is an RMP #PF",
                AFTER,
            ),
        ),
    ),
    Variant(
        "tolerate",
        "no DECOMMISSION; the crash kernel reuses what the IOMMU has (merged)",
        Design(next=Next.REUSES),
        (
            Row("", "", f"SHUTDOWN_EX fails, SNP stays on; {TOLERANT}", MERGED),
            Row("+no-guest", "", NOT_RUN, f"{MERGED}; {SHUTDOWN}"),
            Row("+mid-vmexit", "", TOLERANT, MERGED),
            Row("+no-nmi", "", f"no protocol between CPUs is needed; {TOLERANT}", MERGED),
            Row("+one-cpu", "", TOLERANT, MERGED),
            Row("+genoa", "", TOLERANT, MERGED),
            Row("+no-nmi+genoa", "", TOLERANT, MERGED),
            Row("+slow", "", f"nobody waits for the others; {TOLERANT}", f"derived from {MERGED}"),
            Row(
                "+command-in-flight",
                "",
                f"the notifier finds the mutex held and gives up; {TOLERANT}",
                f"{MERGED}; {SHUTDOWN}",
            ),
        ),
    ),
)

for _variant in VARIANTS:
    for _row in _variant.rows:
        _register(_variant, _row)

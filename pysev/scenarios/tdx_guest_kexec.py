"""``tdx-guest-kexec/*``: the same arguments in a TDX guest, for comparison.

Conversions go the other way round, and CPUs wait in firmware's mailbox loop. What the CPUs do is in
``pysev.flows.tdx_guest_kexec``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ghcbcore._cffi import lib

from ..checking import DEADLOCK
from ..flow import Flow
from ..flows.sev_es_kexec import Kernel
from ..flows.tdx_guest_kexec import CRASH, NORMAL, Mapping, TdxGuestKexec, Variant
from ..machine import Machine
from ..states import States
from ..words import Fate
from .registry import Scenario, register

NO_FOREIGN_FETCH = "no foreign fetch"
NO_TD_EXIT = "no shared page is touched as private"
TOLD = "a lost page is told of"
ALL_UP = "every AP comes up once"
ONE_CPU = "the new kernel runs on one CPU"


def _no_foreign_fetch(s: States) -> Any:
    return (s.cpu.foul == 0).all(axis=1)


def _all_up(s: States) -> Any:
    return (s.cpu.times_up == 1).all(axis=1) | ~s.at("boot CPU", "up")


def build_kexec(variant: Variant, name: str) -> Callable[[Machine], Flow]:
    def build(machine: Machine) -> Flow:
        made = TdxGuestKexec(variant, machine, name)
        flow = made.build()
        flow.always(
            NO_FOREIGN_FETCH,
            _no_foreign_fetch,
            "no CPU fetches from memory that is no longer its kernel's",
        )
        flow.always(
            NO_TD_EXIT,
            lambda s: s.g.td_exit == 0,
            "the new kernel touches no page as private that is shared",
        )
        if variant.loses_bit:
            flow.always(
                TOLD,
                lambda s: (s.g.td_exit == 0) | (s.g.off == 1),
                "before a shared page ends the TD, the accounting has said that one is missing",
            )
        if variant.version == 0:
            flow.at_end(ONE_CPU, lambda s: (s.cpu.times_up == 0).all(axis=1))
        else:
            flow.at_end(ALL_UP, _all_up, "every AP comes up in the new kernel, once")
        flow.count_cpus("online", lambda s: s.at("AP", "new kernel"))
        flow.count_cpus("triple_fault", lambda s: s.cpu.fate == Fate.TRIPLE_FAULT)
        flow.count_cpus("foreign_code", lambda s: s.cpu.fate == Fate.EXECUTES_FOREIGN_DATA)
        _near(flow, made, machine.n_cpus)
        return flow

    return build


def _near(flow: Flow, made: TdxGuestKexec, n_cpus: int) -> None:
    """What must be reached, or the check has shown nothing."""
    v = made.v
    if v.pte_first and not v.loses_bit:
        flow.sometimes(
            "a page is shared and not mapped",
            lambda s: (s.g.buffer_pte == Mapping.NONE) & (s.g.buffer_private == 0),
        )
    if n_cpus == 1:
        return
    if v.converts:
        flow.sometimes("a CPU converts a page when kexec begins", lambda s: s.g.readers != 0)
    if v.converts and v.crash:
        flow.sometimes("finish says that the accounting is off", lambda s: s.g.off == 1)
    if v.version == 1 and not v.test and "stop" in v.stages and v.patience != "deaf":
        flow.sometimes(
            "a CPU has not left the old kernel when the new one runs",
            lambda s: (s.g.kernel == Kernel.NEW) & s.at("AP", "leave").any(axis=1),
        )
    if v.version == 0:
        flow.sometimes(
            "a CPU sleeps in the old kernel's memory",
            lambda s: (
                (s.cpu.mp_state == lib.GHCB_MP_HALTED).any(axis=1) & (s.g.kernel == Kernel.NEW)
            ),
        )


SERIES = '"x86/tdx: Add kexec support" v12, 2024-06 (Linux 6.11)'
MAILBOX = f"{SERIES}, patches 15 to 19; ACPI MADT type 0x10"
DERIVED = f"derived from {SERIES}"
FIRMWARE = "loop and page tables of the mailbox are firmware's memory"
IN_TIME = "every CPU answers the stop within a second"
MANY = "the crash kernel brings all CPUs up"

_Crash = Variant(crash=True, stages=CRASH)


def _add(
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
    name = f"tdx-guest-kexec/{short}"
    base = [FIRMWARE, *([IN_TIME] if variant.patience == "all" else [])]
    base += [MANY] if variant.crash else []
    build = build_kexec(variant, name)
    whole = (*base, *assumes)
    register(
        Scenario(name, summary, expected, because, story, source, build, whole, from_cpus=from_cpus)
    )


_add(
    "mainline",
    "kexec as merged: APs back to firmware's mailbox loop, nobody asks whether they arrived",
    Variant(),
    "violated",
    NO_FOREIGN_FETCH,
    "the AP clears its bit before it has switched page tables and jumped; both are ordinary RAM",
    f"derived from {MAILBOX}: stop_this_cpu clears the bit before smp_ops.stop_this_cpu",
)
_add(
    "mainline-test",
    "as mainline, but TEST asks each AP before the boot CPU relocates",
    Variant(test=True),
    "holds",
    "",
    "an AP that answers TEST is in firmware's memory; one store of the new kernel sends it on",
    f"{MAILBOX}; TEST is in version 1, its use here is derived",
)
_add(
    "mainline-crash",
    "a crash: APs go back to the mailbox loop when they have counted down",
    _Crash,
    "holds",
    "",
    "the crash kernel lives in its reservation: an AP that is late finds its text and page table",
    MAILBOX,
)
_add(
    "crash-late-nmi",
    "an AP answers the crash NMI after the second for which the crashed CPU waits",
    replace(_Crash, patience="late"),
    "holds",
    "",
    "the WAKEUP waits without a timeout until the AP has arrived in the loop; "
    "PTE := 0 keeps it from shared memory",
    DERIVED,
    "a TLB has no entry of a page whose PTE was cleared",
)
_add(
    "crash-deaf-cpu",
    "an AP never takes the crash NMI",
    replace(_Crash, patience="deaf"),
    "deadlock",
    DEADLOCK,
    "nobody takes the WAKEUP for it, and the crash kernel waits without a timeout",
    DERIVED,
)
_add(
    "unplugged",
    "a CPU is taken offline before the kexec, and TEST is answered",
    Variant(stages=("unplug", *NORMAL), test=True, unplugs="answered"),
    "holds",
    "",
    "it waits in firmware's loop as the others do later, and the new kernel wakes it",
    f"{MAILBOX}: cpu_die",
)
_add(
    "unplugged-timeout",
    "as unplugged, but cpu_die gives up after a second",
    Variant(stages=("unplug", *NORMAL), test=True, unplugs="times out"),
    "violated",
    NO_FOREIGN_FETCH,
    "the CPU is offline, so nobody waits for it any more, and not yet in firmware's memory",
    f"{DERIVED}: cpu_die prints a message and goes on",
)
_add(
    "mailbox-v0",
    "mailbox version 0: nobody can come back, the address is overwritten with 0",
    Variant(version=0),
    "holds",
    "",
    "the new kernel finds no mailbox and runs on one CPU; the others sleep behind HLT",
    MAILBOX,
    "nothing wakes a CPU that sleeps in HLT with interrupts off",
)
_add(
    "mailbox-v0-kept",
    "mailbox version 0, and the new kernel is told of it",
    Variant(version=0, hides=False),
    "deadlock",
    DEADLOCK,
    "the new kernel sends WAKEUP to CPUs that nobody parked, and waits without a timeout",
    f"{MAILBOX}: patch 15",
)
_add(
    "converting",
    "a CPU converts a page to shared when kexec begins",
    Variant(test=True, converts="to shared"),
    "holds",
    "",
    "begin waits for the converter; the books agree",
    SERIES,
)
_add(
    "begin-after-stop",
    "the other CPUs are stopped before conversions are",
    Variant(
        stages=("stop", "begin", "finish", "relocate", "use", "bring up"),
        test=True,
        converts="to shared",
    ),
    "deadlock",
    DEADLOCK,
    "a converter stopped half-way holds mem_enc_lock for reading; the writer waits for ever",
    DERIVED,
)
_add(
    "no-begin",
    "nobody stops conversions, and one is in flight when the CPUs are stopped",
    Variant(
        stages=("stop", "finish", "relocate", "use", "bring up"), test=True, converts="to shared"
    ),
    "holds",
    "",
    "whatever half was done, the PTE says shared and the walk finds the page; the count is off",
    f"{DERIVED}: the mirrored order",
)
_add(
    "half-to-shared",
    "the crash NMI meets a CPU between the halves of a conversion to shared",
    replace(_Crash, converts="to shared"),
    "holds",
    "",
    "the PTE is shared first: the walk finds the page and makes it private; the accounting is off",
    f"{DERIVED}: the mirrored order",
)
_add(
    "half-to-private",
    "the crash NMI meets a CPU between the halves of a conversion to private",
    replace(_Crash, converts="to private"),
    "holds",
    "",
    "the PTE is private last: the walk finds the page once more; the accounting is off",
    f"{DERIVED}: the mirrored order",
)
_add(
    "convert-before-pte",
    "finish converts a page before it clears its PTE, while a CPU still runs",
    replace(_Crash, patience="late", pte_first=False),
    "violated",
    NO_TD_EXIT,
    "whoever touches the shared mapping converts the page back",
    f"{SERIES}: why tdx_kexec_finish clears the PTE first",
)
_add(
    "stale-tlb",
    "as crash-late-nmi, but the AP has the shared mapping in its TLB",
    replace(_Crash, patience="late", stale_tlb=True),
    "violated",
    NO_TD_EXIT,
    "the flush comes after the walk, and of the own TLB: the AP converts the page back",
    DERIVED,
)
_add(
    "lost-shared-bit",
    "a PTE has lost its shared bit before finish",
    Variant(test=True, loses_bit=True),
    "violated",
    NO_TD_EXIT,
    "the walk passes the page over; the accounting is off, and the new kernel ends the TD",
    f"{SERIES}: nr_shared",
    from_cpus=1,
)
_add(
    "convert-refused",
    "MapGPA fails in finish: logged, and the dump reads the page",
    replace(_Crash, refused=True),
    "violated",
    NO_TD_EXIT,
    "the crash kernel is not affected unless it reads that page through /proc/vmcore",
    SERIES,
    from_cpus=1,
)
_add(
    "convert-refused-not-read",
    "as convert-refused, but nobody reads the page",
    replace(_Crash, refused=True, reads=False),
    "holds",
    "",
    "the crash kernel uses its reservation only",
    SERIES,
)

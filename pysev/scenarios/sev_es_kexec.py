"""``sev-es-kexec/*``: what becomes of the other CPUs when an SEV-ES guest is kexec'ed.

The designs that were argued about in 2021, each with its properties, its verdict and its source.
What the CPUs do is in ``pysev.flows.sev_es_kexec``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Any

from ghcbcore._cffi import lib

from ..flow import Flow
from ..flows.sev_es_kexec import (
    BEFORE_HLT,
    EARLY,
    IN_HOLD,
    IN_PAGE,
    BringUp,
    Kernel,
    SevEsKexec,
    Variant,
)
from ..machine import Machine
from ..states import States
from ..words import Fate
from .registry import Scenario, register

# -- properties --------------------------------------------------------------------------------

NO_FOREIGN_FETCH = "no foreign fetch"
NO_SHUTDOWN = "no shutdown"
ONCE = "comes up once, at the vector"
ALL_UP = "every AP comes up"
REFUSED = "kexec is refused with ENOSYS"
UNDISTURBED = "nothing happens to any CPU"
ONE_CPU = "the crash kernel runs on one CPU"
NOTES = "registers saved before counting down"


def _no_foreign_fetch(s: States) -> Any:
    return (s.cpu.foul == 0).all(axis=1)


def _no_shutdown(s: States) -> Any:
    return (s.vm.event == lib.GHCB_EVENT_NONE) | (s.cpu.foul != 0).any(axis=1)


def _once(s: States, vector: int) -> Any:
    up = s.cpu.times_up
    return ((up == 0) | ((up == 1) & (s.cpu.vector == vector))).all(axis=1)


def _all_up(s: States) -> Any:
    return ((s.cpu.times_up == 1) & (s.cpu.bring_up == BringUp.UP)).all(axis=1)


def _flow(variant: Variant, machine: Machine, name: str) -> Flow:
    """Build the flow with what every scenario of the family wants."""
    flow = SevEsKexec(variant, machine, name).build()
    flow.always(
        NO_FOREIGN_FETCH,
        _no_foreign_fetch,
        "no CPU fetches from memory that is no longer its kernel's",
    )
    flow.always(NO_SHUTDOWN, _no_shutdown, "no CPU ends in a shutdown of the VM for another reason")
    flow.count_cpus("online", lambda s: s.at("AP", "new kernel"))
    flow.count_cpus("triple_fault", lambda s: s.cpu.fate == Fate.TRIPLE_FAULT)
    flow.count_cpus("foreign_code", lambda s: s.cpu.fate == Fate.EXECUTES_FOREIGN_DATA)
    return flow


def _kexec(variant: Variant, name: str) -> Callable[[Machine], Flow]:
    def build(machine: Machine) -> Flow:
        flow = _flow(variant, machine, name)
        flow.always(
            ONCE,
            partial(_once, vector=variant.start_vector(machine)),
            "an AP comes up at most once, at the vector that the new kernel wrote",
        )
        flow.at_end(ALL_UP, _all_up, "every AP comes up in the new kernel")
        holds = variant.hand_over in ("page", "hold")
        if machine.n_cpus > 1:
            if variant.hand_over != "hold":
                flow.sometimes("an AP comes up", lambda s: (s.cpu.times_up == 1).any(axis=1))
            if variant.hand_over == "page":
                flow.sometimes("an AP is held while the new kernel runs", _held_under_new)
        if holds:
            flow.count_cpus("parked", lambda s: s.at("AP", "held"))
        return flow

    return build


def _held_under_new(s: States) -> Any:
    held = (s.cpu.mp_state == lib.GHCB_MP_AP_RESET_HOLD).any(axis=1)
    return held & (s.g.kernel == Kernel.NEW)


def _refused(variant: Variant, name: str) -> Callable[[Machine], Flow]:
    def build(machine: Machine) -> Flow:
        flow = _flow(variant, machine, name)
        flow.always(
            UNDISTURBED,
            lambda s: s.at("AP", "old kernel").all(axis=1) & (s.cpu.ipi == 0).all(axis=1),
            "no CPU is interrupted, stopped or moved",
        )
        flow.at_end(
            REFUSED,
            lambda s: (s.g.kexec_error == errno.ENOSYS) & s.at("boot CPU", "refused"),
            "loading the image fails with ENOSYS",
        )
        flow.count_cpus("online", lambda s: s.at("AP", "old kernel"))
        return flow

    return build


def _notes(s: States) -> Any:
    counted = s.n_others - s.g.stopping.astype(int)
    before = s.at("boot CPU", "firmware", "negotiate", "panic")
    return before | (s.cpu.note.sum(axis=1) >= counted)


def _kdump(variant: Variant, name: str) -> Callable[[Machine], Flow]:
    def build(machine: Machine) -> Flow:
        flow = _flow(variant, machine, name)
        flow.at_end(ONE_CPU, lambda s: s.at("boot CPU", "up") & (s.cpu.times_up == 0).all(axis=1))
        flow.always(
            NOTES,
            _notes,
            "a CPU that has counted down has saved its registers",
        )
        if machine.n_cpus > 1:
            flow.sometimes(
                "an AP still runs under the crash kernel",
                lambda s: (s.g.kernel == Kernel.NEW) & (s.g.stopping != 0),
            )
        flow.count_cpus("halted", lambda s: s.at("AP", "halted"))
        return flow

    return build


# -- the library -------------------------------------------------------------------------------

THREAD = 'kexec list 2021-05, "x86/kexec/64: Forbid kexec when running as an SEV-ES guest"'
SERIES = '"x86/sev: KEXEC/KDUMP support for SEV-ES guests", RFC 2021-07 to v6 2024-06'
STOP = "Linux arch/x86/kernel/{smp,process}.c (1f5e7eb7868e)"
MANY = "more than one possible CPU (with one, the series supports kexec)"
TIMEOUT = "a CPU that can come up does so within the 10 s for which the new kernel waits"
ATOMIC_HLT = "clearing the bit in cpus_stop_mask and HLT are one step"
NO_NMI = "every AP reports within a second, so that no NMI is sent (smp_no_nmi_ipi)"


def _add(
    short: str,
    summary: str,
    variant: Variant,
    expected: str,
    because: str,
    story: str,
    source: str,
    *assumes: str,
    kind: Callable[[Variant, str], Callable[[Machine], Flow]] = _kexec,
    jump_table: int | None = None,
) -> None:
    name = f"sev-es-kexec/{short}"
    register(
        Scenario(
            name,
            summary,
            expected,
            because,
            story,
            source,
            kind(variant, name),
            assumes,
            jump_table,
        )
    )


_PAGE = partial(Variant, hand_over="page", supported="with-park-code")

_add(
    "legacy-svm",
    "no SEV-ES: INIT-SIPI-SIPI resets the other CPUs",
    Variant(guest=lib.GHCB_GUEST_PLAIN),
    "holds",
    "",
    "the hypervisor resets each AP; where it slept does not matter",
    f"{STOP}; {THREAD}",
    ATOMIC_HLT,
    NO_NMI,
    TIMEOUT,
)
_add(
    "legacy-svm-stop-window",
    "no SEV-ES, but the AP reports before it has executed HLT",
    Variant(guest=lib.GHCB_GUEST_PLAIN, acknowledges=BEFORE_HLT),
    "violated",
    NO_FOREIGN_FETCH,
    "the AP clears its bit before its last instructions; the new kernel may own them by then",
    f"derived from {STOP}: the bit is cleared before the HLT loop",
    NO_NMI,
    TIMEOUT,
)
_add(
    "legacy-sev-es",
    "INIT-SIPI-SIPI under SEV-ES: the AP resumes with stale registers",
    Variant(),
    "violated",
    NO_FOREIGN_FETCH,
    "the hypervisor cannot reset an SEV-ES vCPU: the AP resumes after its HLT "
    "in memory of the new kernel",
    THREAD,
    ATOMIC_HLT,
    NO_NMI,
    TIMEOUT,
)
_add(
    "protocol-v1",
    "a host with protocol version 1 has no AP reset hold by MSR: kexec refused",
    _PAGE(acknowledges=IN_HOLD, max_version=1),
    "holds",
    "",
    "version 1: no park code is installed, loading fails with ENOSYS, no CPU is touched",
    f"{SERIES}, patches 2, 5, 12",
    MANY,
    kind=_refused,
)
_add(
    "opt-out",
    "the kernel opts out of kexec on SEV-ES: refused when it is loaded",
    Variant(supported="never"),
    "holds",
    "",
    "arch_kexec_supported() is false, loading fails with ENOSYS, no CPU is touched",
    f"{SERIES}, patches 1, 2",
    kind=_refused,
)
_add(
    "jump-table-above-4g",
    "firmware has the jump table above 4 GiB: no park code, kexec refused",
    _PAGE(acknowledges=IN_HOLD),
    "holds",
    "",
    "segment bases have 32 bits: a table above 4 GiB is not used, loading fails with ENOSYS",
    f"{SERIES}, set-up of the jump table",
    MANY,
    kind=_refused,
    jump_table=(1 << 51) - lib.GHCB_PAGE_SIZE,  # above RAM of any size, below a C-bit 51
)
_add(
    "park-old-memory",
    "APs held by AP reset hold, in the old kernel's memory",
    Variant(hand_over="hold", acknowledges=IN_HOLD),
    "violated",
    NO_FOREIGN_FETCH,
    "the hypervisor wakes the AP, which goes on to the old kernel's start-up code, in memory that "
    "the new kernel has taken",
    f"{THREAD}; play_dead of an SEV-ES guest",
    NO_NMI,
    TIMEOUT,
)
_add(
    "jump-table",
    "APs parked on the AP jump table page; stopped means held by the hypervisor",
    _PAGE(acknowledges=IN_HOLD),
    "holds",
    "",
    "the page is firmware's and survives; STARTUP answers the hold and the AP takes the new vector",
    SERIES,
    "ideal: an AP counts as stopped when it is held, though no code of the page could say so",
    NO_NMI,
    TIMEOUT,
)
_add(
    "jump-table-ack-early",
    "as jump-table, but the stop bit is cleared before the AP has left the old kernel",
    _PAGE(acknowledges=EARLY),
    "violated",
    NO_FOREIGN_FETCH,
    "the boot CPU passes stop_other_cpus while the AP is between the old text and the page",
    f"derived: {STOP} clears the bit before {SERIES} parks",
    NO_NMI,
    TIMEOUT,
)
_add(
    "jump-table-ack-in-page",
    "as jump-table, but the AP reports from the page, before it asks to be held",
    _PAGE(acknowledges=IN_PAGE),
    "violated",
    ALL_UP,
    "STARTUP reaches a vCPU that is not held yet and is lost; the AP is then held for ever",
    "derived from KVM's SIPI delivery: no kind of hold, no answer",
    NO_NMI,
    TIMEOUT,
)
_add(
    "jump-table-ack-in-page-retry",
    "as jump-table-ack-in-page, but the new kernel sends INIT and STARTUP until the AP is up",
    _PAGE(acknowledges=IN_PAGE, retry=True),
    "holds",
    "",
    "a lost STARTUP is sent again, and finds the vCPU held",
    "derived from KVM's SIPI delivery",
    NO_NMI,
)
_add(
    "jump-table-spurious-wake",
    "as jump-table, with a hypervisor that lets a held vCPU run once for no reason",
    _PAGE(acknowledges=IN_HOLD, spurious=True),
    "violated",
    ALL_UP,
    "the AP asks again to be held; a STARTUP that comes in between is lost and never sent again",
    "derived from KVM's SIPI delivery; P9 of the park code expects such a wake",
    NO_NMI,
    TIMEOUT,
)
_add(
    "jump-table-nmi",
    "as jump-table, with the NMI that Linux sends to CPUs that have not stopped after a second",
    _PAGE(acknowledges=IN_HOLD, nmi=True),
    "violated",
    NO_SHUTDOWN,
    "an NMI in the park code meets a real-mode IDT in protected mode: shutdown",
    f"derived from {STOP} and {SERIES}",
    TIMEOUT,
)
_add(
    "mailbox",
    "hand-over without the hypervisor: firmware's mailbox, asked by TEST before relocating",
    Variant(hand_over="mailbox", acknowledges=EARLY),
    "holds",
    "",
    "each AP waits in firmware memory and is sent on by one store; TEST sees that it has arrived",
    f"{THREAD}; mailbox of ACPI MADT type 0x10",
    "loop and page tables of the mailbox are firmware's memory (those merged for TDX are RAM)",
    NO_NMI,
)
_add(
    "mailbox-no-test",
    "as mailbox, but nobody asks whether the APs have arrived (as merged for TDX)",
    Variant(hand_over="mailbox", acknowledges=EARLY, test=False),
    "violated",
    NO_FOREIGN_FETCH,
    "the AP clears its bit before it has switched page tables and jumped; "
    "the new kernel may own both",
    "derived from Linux 6.11 stop_this_cpu and smp_ops.stop_this_cpu",
    NO_NMI,
)
_add(
    "kdump-one-cpu",
    "a crash: APs halt where the NMI met them, the crash kernel runs with nr_cpus=1",
    Variant(hand_over="crash"),
    "holds",
    "",
    "nobody wakes the APs and the crash kernel lives in its reservation",
    'T. Liu in "x86/sev: KEXEC/KDUMP support for SEV-ES guests" v3, 2022-04; '
    "Linux arch/x86/kernel/reboot.c",
    kind=_kdump,
)

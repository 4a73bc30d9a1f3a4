"""``live-migration-reset/*``: who resets the hypervisor's list of shared pages around a kexec.

The designs that were argued about in April 2021 and the one that was merged, each under four
conditions. What the CPUs do is in ``pysev.flows.live_migration_reset``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ghcbcore._cffi import lib

from ..flow import Flow
from ..flows.live_migration_reset import Condition, Design, Kernel, LiveMigrationReset
from ..frames import FrameRegion, views
from ..machine import Machine
from ..states import States
from .registry import Scenario, register

__all__ = ["ALLOWED_AGAIN", "M_SAFE", "STAYS_ALLOWED", "STAYS_OFF"]

# -- properties --------------------------------------------------------------------------------

M_SAFE = "M-SAFE: migration reads every page as it is"
ALLOWED_AGAIN = "migration is allowed in the end"
STAYS_ALLOWED = "migration stays allowed while the guest is in use"
STAYS_OFF = "migration stays off"


def _wrong(s: States, pages: FrameRegion) -> Any:
    """Pages that migration would read wrongly: mapped one way, listed the other."""
    found = views(s, pages)
    disagree = (
        1 << lib.FRAME_DIFFER_LISTED_SHARED_MAPPED_PRIVATE
        | 1 << lib.FRAME_DIFFER_LISTED_PRIVATE_MAPPED_SHARED
    )
    return (found["differ"] & disagree) != 0


def _wrong_for_good(s: States, pages: FrameRegion) -> Any:
    """Of these, those whose owner is not just about to say so."""
    busy = np.stack([s.g.busy_0, s.g.busy_1], axis=1) != 0
    return (_wrong(s, pages) & ~busy).any(axis=1)


def _counts(s: States, strict: bool) -> Any:
    """Where the list is judged: not on the way down after a reset; in the next kernel from its own
    first call on, or (``strict``, if that kernel resets it itself) from the beginning."""
    return np.where(s.g.kernel == Kernel.OLD, s.g.reset == 0, (s.g.told == 1) | strict)


def _m_safe(s: States, pages: FrameRegion, strict: bool) -> Any:
    return (s.g.allowed == 0) | ~_counts(s, strict) | ~_wrong_for_good(s, pages)


def _build(design: Design, condition: Condition, name: str) -> Callable[[Machine], Flow]:
    def build(machine: Machine) -> Flow:
        made = LiveMigrationReset(design, condition, machine, name)
        flow = made.build()
        strict = design.new_kernel_resets
        wrong = partial(_wrong_for_good, pages=made.pages)
        flow.always(
            M_SAFE,
            partial(_m_safe, pages=made.pages, strict=strict),
            "while migration is allowed, the hypervisor's list is the guest's page table",
        )
        flow.count_cpus("stopped", lambda s: s.at("AP", "stopped"))
        if condition.unplug:
            flow.always(
                STAYS_ALLOWED,
                lambda s: ~s.at("boot CPU", "up") | (s.g.allowed == 1),
                "with one CPU less the guest can still be migrated",
            )
            if machine.n_cpus > 1:
                flow.sometimes("a CPU is taken offline", lambda s: s.at("boot CPU", "unplug"))
            return flow
        off = design.switches_off and not condition.allows_again
        flow.at_end(
            STAYS_OFF if off else ALLOWED_AGAIN,
            lambda s: (s.g.allowed == (0 if off else 1)) & s.at("boot CPU", "up"),
        )
        if machine.n_cpus > 1:
            flow.sometimes(
                "the list is wrong while nobody may migrate, or on the way down",
                lambda s: wrong(s) & ((s.g.allowed == 0) | ~_counts(s, strict)),
            )
            if design.generations and condition.straggler:
                flow.sometimes(
                    "a call of the old generation is dropped", lambda s: s.g.ignored == 1
                )
        return flow

    return build


# -- the library -------------------------------------------------------------------------------

THREAD = 'kvm list 2021-04, "[PATCH v12 13/13] x86/kvm: Add kexec support for SEV Live Migration"'
FIRST = f"{THREAD}, Rutherford, 12 April"
LATER = f"{THREAD}, Rutherford and Kalra, 13 April"
MERGED = "Linux arch/x86/kernel/kvm.c (f4495615d76c, 73f1b4fece21)"
DEAF = "Linux arch/x86/kernel/smp.c: a CPU that is deaf for a second while no NMI may be sent"
CRASH = "Linux arch/x86/kernel/{kvm,crash}.c: PV teardown on the crashing CPU, devices left alone"

OWN_PACE = "a CPU's own PV teardown does not fall between the two steps of a conversion"
ON_THE_WAY = (
    "from the old kernel's reset until the next one has told what it shares the list is not "
    "judged: the thread accepts that it is wrong then"
)
DROPS = "the hypervisor drops what older generations say and have said (never built)"
NO_EFI = "not booted by EFI: the next kernel allows migration by itself"
FIRST_CPU = "the crashing CPU is CPU 0: no other would reset the list"
VMCORE = "the crash kernel maps old memory with the C-bit, as /proc/vmcore does"

BASE, DEVICE = Condition(), Condition(device=True)
STRAGGLER, CRASHED = Condition(straggler=True), Condition(crash=True)
ONE_LATE = "its hypercall comes after the reset: the next kernel finds a stale entry"


@dataclass(frozen=True)
class Row:
    """One scenario of a design: what is added to its name, the verdict and the story."""

    suffix: str
    condition: Condition
    expected: str
    story: str
    source: str
    from_cpus: int = 2
    because: str = M_SAFE


@dataclass(frozen=True)
class Family:
    """One design under each of its conditions."""

    short: str
    summary: str
    design: Design
    rows: tuple[Row, ...]
    assumes: tuple[str, ...] = ()


TITLES = {
    "": "",
    "+device": "; devices are in use until device_shutdown",
    "+straggler": "; one CPU does not stop and still converts pages under the new kernel",
    "+crash": "; a crash instead of a kexec",
    "+crash-efi": "; a crash, and a crash kernel without EFI runtime services",
    "+hot-unplug": "; no kexec, but one CPU is taken offline",
    "+interrupted": "; teardown may interrupt a conversion",
}


def _add(family: Family, row: Row) -> None:
    name = f"live-migration-reset/{family.short}{row.suffix}"
    c, d = row.condition, family.design
    assumes = list(family.assumes)
    if not (c.interrupted or c.crash):
        assumes.append(OWN_PACE)
    if not d.switches_off and not c.unplug:
        assumes.append(ON_THE_WAY)
    if c.crash:
        assumes.append(VMCORE)
        if d.resets == "cpu0":
            assumes.append(FIRST_CPU)
        if d.switches_off and not c.efi:
            assumes.append(NO_EFI)
    register(
        Scenario(
            name,
            family.summary + TITLES[row.suffix],
            row.expected,
            row.because if row.expected == "violated" else "",
            row.story,
            row.source,
            _build(d, c, name),
            tuple(assumes),
            from_cpus=row.from_cpus,
        )
    )


def _fails(suffix: str, condition: Condition, story: str, source: str, from_cpus: int = 2) -> Row:
    return Row(suffix, condition, "violated", story, source, from_cpus)


def _holds(suffix: str, condition: Condition, story: str, source: str) -> Row:
    return Row(suffix, condition, "holds", story, source)


INTERRUPTED = Condition(interrupted=True)

FAMILIES = (
    Family(
        "cpu0",
        "the reboot notifier of CPU 0 resets the list (patch v12)",
        Design("cpu0"),
        (
            _fails(
                "",
                BASE,
                "CPU 0's reset races with another CPU that serves a device request while its own "
                f"part of the reboot is pending; {ONE_LATE}",
                FIRST,
            ),
            _fails(
                "+device",
                DEVICE,
                "devices are shut down after the notifiers: even the one CPU that has reset the "
                f"list can race with itself; {ONE_LATE}",
                FIRST,
                1,
            ),
            _fails(
                "+straggler",
                STRAGGLER,
                "a CPU that serves a device request undoes the reset, now or under the new kernel",
                f"derived from {FIRST}; {DEAF}",
            ),
            _fails(
                "+crash",
                CRASHED,
                "the other CPUs convert pages until the NMI; nothing resets the list after that",
                f"derived from {FIRST}; {CRASH}",
            ),
        ),
    ),
    Family(
        "every-cpu",
        "the reboot notifier of every CPU resets the list",
        Design("every"),
        (
            _holds(
                "",
                BASE,
                "whoever comes late resets the list once more: the last reset wins",
                FIRST,
            ),
            _fails(
                "+device",
                DEVICE,
                f"devices are shut down after the last notifier; {ONE_LATE}",
                FIRST,
                1,
            ),
            _fails(
                "+straggler",
                STRAGGLER,
                "a CPU that was not stopped makes its call under the new kernel",
                f"derived from {FIRST}; {DEAF}",
            ),
            _fails(
                "+crash",
                CRASHED,
                "a crash tears down on one CPU: the others convert pages after its reset",
                f"derived from {FIRST}; {CRASH}",
            ),
            _fails(
                "+interrupted",
                INTERRUPTED,
                "the notifier's interrupt falls between page table and hypercall of its own CPU: "
                f"a single thread races with itself; {ONE_LATE}",
                f"derived from {FIRST}",
            ),
        ),
    ),
    Family(
        "last-cpu",
        "CPUs are counted, the last one's reboot notifier resets the list",
        Design("last"),
        (
            _holds(
                "",
                BASE,
                "the last CPU to arrive finds nobody who still serves a request",
                FIRST,
            ),
            _fails(
                "+device",
                DEVICE,
                f"devices are shut down after the last notifier; {ONE_LATE}",
                FIRST,
                1,
            ),
            _fails(
                "+straggler",
                STRAGGLER,
                "a CPU that was not stopped makes its call under the new kernel",
                f"derived from {FIRST}; {DEAF}",
            ),
            _fails(
                "+crash",
                CRASHED,
                "a crash tears down on one CPU: it is never the last, nobody resets the list",
                f"derived from {FIRST}; {CRASH}",
            ),
            _fails(
                "+interrupted",
                INTERRUPTED,
                "the notifier's interrupt falls between page table and hypercall of its own CPU; "
                f"{ONE_LATE}",
                f"derived from {FIRST}",
            ),
        ),
    ),
    Family(
        "migration-off",
        "CPU 0 resets the list, every CPU switches migration off, the new kernel allows it again",
        Design("cpu0", switches_off=True),
        (
            _fails(
                "",
                BASE,
                "nothing stops the calls after the switch, and the hypervisor cannot tell a late "
                "one from those of early boot: migration is allowed again over a stale list",
                LATER,
            ),
            _fails(
                "+device",
                DEVICE,
                "a device request after the switch leaves a stale entry; the new kernel allows "
                "migration over it",
                LATER,
                1,
            ),
            _fails(
                "+straggler",
                STRAGGLER,
                "a late call, at the latest of the CPU that was not stopped, leaves a stale entry",
                f"derived from {LATER}; {DEAF}",
            ),
            _fails(
                "+crash",
                CRASHED,
                "the other CPUs convert pages until the NMI; the crash kernel allows migration "
                "over what they have left",
                f"derived from {LATER}; {CRASH}",
            ),
            _holds(
                "+crash-efi",
                Condition(crash=True, efi=True),
                "the list is stale, but the crash kernel cannot ask the firmware and never allows "
                "migration",
                f"derived from {MERGED}; {CRASH}",
            ),
        ),
    ),
    Family(
        "mute",
        "CPU 0 resets the list and mutes all later hypercalls",
        Design("cpu0", mutes=True),
        (
            _fails(
                "",
                BASE,
                "a CPU that has looked at the flag before it was set makes its call after the "
                "reset: muting races with hypercalls in flight on other CPUs",
                LATER,
            ),
            _fails(
                "+device",
                DEVICE,
                "requests that begin after the reset are muted; one in flight is not",
                LATER,
            ),
            _fails(
                "+straggler",
                STRAGGLER,
                "a call in flight, at the latest under the new kernel, leaves a stale entry",
                f"derived from {LATER}; {DEAF}",
            ),
            _fails(
                "+crash",
                CRASHED,
                "a call in flight when the crashing CPU mutes the others comes after its reset",
                f"derived from {LATER}; {CRASH}",
            ),
        ),
    ),
    Family(
        "generation-id",
        "each kernel's hypercalls carry a generation, and the hypervisor drops older ones",
        Design(generations=True),
        (
            _holds(
                "",
                BASE,
                "with the new kernel's first call the entries of the old one do not count any more",
                FIRST,
            ),
            _holds(
                "+device",
                DEVICE,
                "calls until device_shutdown are of the old generation and do not count",
                FIRST,
            ),
            _holds(
                "+straggler",
                STRAGGLER,
                "a late call carries the old generation: the hypervisor drops it",
                f"derived from {FIRST}; {DEAF}",
            ),
            _holds(
                "+crash",
                CRASHED,
                "the crash kernel has a generation of its own as well",
                f"derived from {FIRST}; {CRASH}",
            ),
        ),
        (DROPS,),
    ),
    Family(
        "merged",
        "teardown switches migration off, the new kernel resets the list in early boot",
        Design(switches_off=True, new_kernel_resets=True),
        (
            _holds(
                "",
                BASE,
                "late calls come before the reset, which the new kernel makes itself while "
                "migration is off",
                f"{MERGED}; {LATER}",
            ),
            _holds(
                "+device",
                DEVICE,
                "calls until device_shutdown come before the new kernel's reset",
                f"{MERGED}; {LATER}",
            ),
            _fails(
                "+straggler",
                STRAGGLER,
                "safe only if no CPU of the old kernel can make a call any more: one that was not "
                "stopped undoes the reset",
                f"derived from {MERGED}; {DEAF}",
            ),
            _fails(
                "+crash",
                CRASHED,
                "the crash kernel's E820 map has only its own memory: old entries stay, and become "
                "wrong once migration is allowed",
                f"derived from {MERGED}; {CRASH}",
            ),
            _holds(
                "+crash-efi",
                Condition(crash=True, efi=True),
                "old entries stay, but the crash kernel cannot ask the firmware and never allows "
                "migration",
                f"derived from {MERGED}; {CRASH}",
            ),
            _holds(
                "+interrupted",
                INTERRUPTED,
                "it does not matter when the old kernel made its last call",
                f"derived from {MERGED}",
            ),
            Row(
                "+hot-unplug",
                Condition(unplug=True),
                "violated",
                "PV teardown of the one CPU switches migration off for the VM; nothing allows it "
                "again before the next boot",
                f"derived from {MERGED}",
                because=STAYS_ALLOWED,
            ),
        ),
    ),
)

for _family in FAMILIES:
    for _row in _family.rows:
        _add(_family, _row)

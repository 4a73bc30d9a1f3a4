"""Flows of ``bugs/*`` about CPUs that are stopped, or are not, before a kernel goes away.

Each function builds one report: the flow as it was, or ``repaired``. The properties are part of
it; what they are called stands in ``FLUSHED``, ``OWN_MEMORY`` and so on.

Sources: Linux arch/x86/kernel/{smp,process,crash,reboot,kvm}.c; the reports are named with each
scenario in ``pysev.scenarios.bugs``.
"""

from __future__ import annotations

from typing import Any

from ghcbcore._cffi import lib
from ghcbcore.profile import Profile

from .. import costs, scaling
from ..flow import Agent, Flow, Hazard, Op, add, each, op, put, when
from ..layout import Part
from ..machine import Machine
from ..states import States
from ..words import declare_fates, memory

__all__ = [
    "FLUSHED",
    "NOTES",
    "ONE_CRASH",
    "OWN_AREAS",
    "OWN_MEMORY",
    "crash_notes",
    "deaf_cpu",
    "mwait_wakes",
    "pv_areas",
    "stop_mask",
    "two_crashers",
]

FLUSHED = "no CPU is within WBINVD"
OWN_MEMORY = "no foreign fetch"
OWN_AREAS = "the hypervisor writes to no other kernel's memory"
NOTES = "the dump has every CPU's registers"
ONE_CRASH = "one CPU is in the crash kernel"

LEAVES = "relocate_kernel: jumps to the new kernel"


def _flow(name: str) -> Flow:
    flow = Flow(name, Profile(guest=lib.GHCB_GUEST_PLAIN))
    flow.globals(left=0)  # 1: the boot CPU has left the old kernel
    return flow


def _reboot_vector(flow: Flow, others: int) -> Op:
    """REBOOT_VECTOR to all others; ``g.stopping`` counts those that have not reported."""
    g, other = flow.g, flow.other
    return op(
        "kexec -e: REBOOT_VECTOR to all other CPUs",
        do=[put(g.stopping, others), each(put(other.ipi, 1), put(other.in_mask, 1))],
        cost=costs.IPI,
    )


def _old_text(flow: Flow, ap: Agent) -> Hazard:
    """Executing from the old kernel's text, which the new kernel takes."""
    _, hazard = memory(flow, ap, "text", "old kernel's text", Part.OLD_TEXT, executed=True)
    return hazard


def _own_memory(flow: Flow) -> None:
    flow.always(
        OWN_MEMORY,
        lambda s: (s.cpu.foul == 0).all(axis=1),
        "no CPU fetches from memory that is no longer its kernel's",
    )


# -- WBINVD in stop_this_cpu ---------------------------------------------------------------------


def stop_mask(machine: Machine, name: str, *, repaired: bool) -> Flow:
    """Who is stopped is read off the mask of CPUs online, or off ``cpus_stop_mask``.

    A CPU marks itself offline before its WBINVD and clears its bit in ``cpus_stop_mask`` after it.
    """
    flow = _flow(name)
    others = machine.n_cpus - 1
    flow.globals(stopping=0, online=others)
    flow.per_cpu(ipi=0, in_mask=0)
    g, cpu = flow.g, flow.cpu
    boot, ap = flow.agent("boot CPU"), flow.agent("AP", per_cpu=True)
    ap.phase("old kernel")
    ap.at("runs", op("REBOOT_VECTOR interrupt", when=[cpu.ipi == 1], do=[put(cpu.ipi, 0)]))
    flush = scaling.wbinvd(machine, max(1, others)).ns  # all at once
    ap.phase("stop")
    text = "stop_this_cpu: IRQs off, offline, local APIC off; WBINVD begins"
    ap.at("stop", op(text, do=[add(g.online, -1)]))
    ap.at(
        "flushing",
        op("WBINVD ends", when=[g.left == 0], after=flush),
        op("WBINVD of a machine that has gone on: locks up", when=[g.left == 1], to="locked up"),
    )
    ap.at(
        "report",
        op(
            "clears its bit in cpus_stop_mask; HLT",
            do=[put(cpu.in_mask, 0), add(g.stopping, -1)],
        ),
    )
    ap.at("halted", ends=True)
    ap.at("locked up", ends=True)
    boot.phase("stop other CPUs")
    boot.at("kexec", _reboot_vector(flow, others))
    tests = [g.stopping == 0] if repaired else [g.online == 0]
    text = "cpus_stop_mask is empty" if repaired else "all other CPUs are offline"
    boot.at("stopping", op(text, when=tests))
    boot.phase("leave")
    boot.at("leave", op("goes on: power-off, or jump to the new kernel", do=[put(g.left, 1)]))
    boot.at("gone", ends=True)

    def flushing(s: States) -> Any:
        return s.at("AP", "flushing", "locked up").any(axis=1)

    text = "the machine goes on only when no CPU is within WBINVD"
    flow.always(FLUSHED, lambda s: ~((s.g.left == 1) & flushing(s)), text)
    if others:
        flow.sometimes("every other CPU is offline and one still flushes", lambda s: flushing(s))
    flow.count_cpus("stopped", lambda s: s.at("AP", "halted"))
    return flow


# -- MWAIT of offline CPUs -----------------------------------------------------------------------


def mwait_wakes(machine: Machine, name: str, *, repaired: bool) -> Flow:
    """Offline CPUs sleep in MWAIT; the new kernel writes over the lines that they monitor."""
    flow = _flow(name)
    others = machine.n_cpus - 1
    flow.globals(kicked=others)
    flow.per_cpu(kick=0, written=0)
    declare_fates(flow)
    g, cpu, other = flow.g, flow.cpu, flow.other
    boot, ap = flow.agent("boot CPU"), flow.agent("AP", per_cpu=True)
    text = _old_text(flow, ap)
    ap.phase("offline")
    ap.at(
        "mwait",
        op(
            "MWAIT ends: kicked; HLT",
            when=[cpu.kick == 1],
            do=[put(cpu.kick, 0), add(g.kicked, -1)],
            to="halted",
        ),
        op(
            "MWAIT ends: the line that it monitors was written",
            when=[cpu.written == 1, cpu.kick == 0],
            do=[put(cpu.written, 0)],
        ),
        ends=True,
    )
    with ap.under(text):
        ap.at("awake", op("mwait_play_dead: nobody wants it: MWAIT again", to="mwait"))
    ap.at("halted", ends=True)
    ap.at("dead", ends=True)
    boot.phase("kick offline CPUs")
    if repaired:
        kick = [each(put(other.kick, 1))]
        boot.at("kick", op("kexec -e: kicks offline CPUs out of MWAIT into HLT", do=kick))
        boot.at("kicking", op("all offline CPUs are in HLT", when=[g.kicked == 0]))
    boot.phase("relocate")
    boot.at("leave", op(LEAVES, do=[put(g.left, 1)], cost=costs.RELOCATE))
    boot.phase("new kernel")
    boot.at("text", op("the new kernel takes the old text", do=[put(g.text_taken, 1)]))
    overwrite = op(
        "the new kernel writes over the lines that offline CPUs monitored",
        do=[each(put(other.written, 1))],
    )
    boot.at("lines", overwrite)
    boot.at("up", ends=True)
    _own_memory(flow)
    if others:
        flow.sometimes(
            "an offline CPU sleeps while the new kernel takes its text",
            lambda s: (s.g.text_taken == 1) & s.at("AP", "mwait", "halted").any(axis=1),
        )
    flow.count_cpus("halted", lambda s: s.at("AP", "halted", "mwait"))
    return flow


# -- a CPU that does not hear --------------------------------------------------------------------


def deaf_cpu(machine: Machine, name: str, *, repaired: bool, travels: bool = False) -> Flow:
    """A CPU has its IRQs off for longer than the second for which REBOOT_VECTOR is waited.

    ``repaired``: then an NMI is sent to those that have not reported. ``travels``: the NMI may take
    its time, so that the CPU halts by REBOOT_VECTOR before it is there.
    """
    flow = _flow(name)
    others = machine.n_cpus - 1
    flow.globals(stopping=0)
    flow.per_cpu(ipi=0, in_mask=0, nmi=0)
    declare_fates(flow)
    g, cpu, other = flow.g, flow.cpu, flow.other
    boot, ap = flow.agent("boot CPU"), flow.agent("AP", per_cpu=True)
    text = _old_text(flow, ap)
    done = [put(cpu.ipi, 0), put(cpu.in_mask, 0), add(g.stopping, -1)]
    ap.phase("old kernel")
    with ap.under(text):
        ap.at(
            "runs",
            op(
                "REBOOT_VECTOR: clears its bit in cpus_stop_mask; HLT",
                when=[cpu.ipi == 1, *([] if travels else [cpu.nmi == 0])],
                do=done,
                to="halted",
                after=costs.STOP_TIMEOUT // 2,
                spread=True,
            ),
            op(
                "NMI: clears its bit in cpus_stop_mask; HLT",
                when=[cpu.nmi == 1],
                do=[put(cpu.nmi, 0), *done],
                to="halted",
                cost=costs.IPI,
            ),
        )
        ap.at("handler", op("NMI handler: stopped already: HLT", to="halted"))
    ap.phase("halted")
    reaches = "NMI reaches the CPU in HLT"
    wake = op(reaches, when=[cpu.nmi == 1], do=[put(cpu.nmi, 0)], to="handler")
    ap.at("halted", wake, ends=True)
    ap.at("dead", ends=True)
    boot.phase("stop other CPUs")
    boot.at("kexec", _reboot_vector(flow, others))
    stopped = op("all other CPUs have reported", when=[g.stopping == 0], to="leave")
    late = [g.stopping != 0]
    if repaired:
        nmi = each(when(other.in_mask == 1, put(other.nmi, 1)))
        shoot = op("1 s is over: NMI", when=late, do=[nmi], after=costs.STOP_TIMEOUT)
        boot.at("stopping", stopped, shoot)
        boot.at("shot", stopped)
    else:
        goes_on = "1 s is over, no NMI may be sent: goes on"
        boot.at("stopping", stopped, op(goes_on, when=late, after=costs.STOP_TIMEOUT))
    boot.phase("relocate")
    boot.at("leave", op(LEAVES, do=[put(g.left, 1)], cost=costs.RELOCATE))
    boot.phase("new kernel")
    boot.at("take", op("the new kernel takes the old text", do=[put(g.text_taken, 1)]))
    boot.at("up", ends=True)
    _own_memory(flow)
    if others:
        flow.sometimes(
            "a CPU has not reported after a second",
            lambda s: s.at("boot CPU", "shot" if repaired else "leave") & (s.g.stopping != 0),
        )
    flow.count_cpus("halted", lambda s: s.at("AP", "halted"))
    return flow


# -- a crash -------------------------------------------------------------------------------------


def crash_notes(machine: Machine, name: str, *, bounded: bool, dead: bool) -> Flow:
    """The crash kernel begins after a second at the latest, or (not ``bounded``) when all CPUs
    have saved their registers; ``dead``: a CPU may take no NMI any more."""
    flow = _flow(name)
    others = machine.n_cpus - 1
    flow.globals(waiting=0)
    flow.per_cpu(nmi=0, note=0, missing=0)
    g, cpu, other = flow.g, flow.cpu, flow.other
    boot, ap = flow.agent("boot CPU"), flow.agent("AP", per_cpu=True)
    hangs = [op("hangs with NMIs blocked", when=[cpu.nmi == 0], to="hung")] if dead else []
    saves = op(
        "crash NMI: saves its registers, counts down",
        when=[cpu.nmi == 1],
        do=[put(cpu.nmi, 0), put(cpu.note, 1), add(g.waiting, -1)],
        after=costs.CRASH_TIMEOUT // 2,
        spread=True,
    )
    ap.phase("old kernel")
    ap.at("runs", saves, *hangs)
    ap.at("halted", ends=True)
    ap.at("hung", ends=True)
    boot.phase("stop other CPUs")
    boot.at(
        "panic",
        op(
            "panic: NMI to all other CPUs",
            do=[put(g.waiting, others), each(put(other.nmi, 1))],
            cost=costs.IPI,
        ),
    )
    all_there = op("all other CPUs have counted down", when=[g.waiting == 0], to="dump")
    over = op("1 s is over: goes on", when=[g.waiting != 0], to="dump", after=costs.CRASH_TIMEOUT)
    boot.at("waiting", all_there, *([over] if bounded else []))
    boot.phase("dump")
    boot.at(
        "dump",
        op(
            "the crash kernel reads the notes of all CPUs",
            do=[put(g.left, 1), each(when(other.note == 0, put(other.missing, 1)))],
        ),
    )
    boot.at("up", ends=True)
    flow.always(
        NOTES,
        lambda s: (s.cpu.missing == 0).all(axis=1),
        "the crash notes that the dump reads have been written",
    )
    if others:
        flow.sometimes("the boot CPU waits for a note", lambda s: s.at("boot CPU", "waiting"))
    flow.count_cpus("halted", lambda s: s.at("AP", "halted"))
    return flow


def two_crashers(machine: Machine, name: str, *, repaired: bool) -> Flow:
    """Two CPUs crash at once: ``panic_cpu`` admits one of them."""
    flow = _flow(name)
    flow.globals(panic_cpu=0, inside=0, crashes=2)
    g = flow.g
    for agent in (flow.agent("boot CPU"), flow.agent("AP", per_cpu=True)):
        crash = op("panic", when=[g.crashes != 0], do=[add(g.crashes, -1)])
        agent.phase("panic")
        agent.at("runs", crash, ends=True)
        jumps = op("__crash_kexec: jumps to the crash kernel", do=[add(g.inside, 1)], to="crash")
        if repaired:
            free, claim = [g.panic_cpu == 0], [put(g.panic_cpu, 1)]
            claims = op("panic_cpu is free: claims it", when=free, do=claim)
            lost = op("panic_cpu is taken: stops itself", when=[g.panic_cpu != 0], to="stopped")
            agent.at("claim", claims, lost)
        agent.phase("boot the crash kernel")
        agent.at("kexec", jumps)
        agent.at("crash", ends=True)
        if repaired:
            agent.at("stopped", ends=True)
    flow.always(ONE_CRASH, lambda s: s.g.inside <= 1, "one CPU at most is in the crash kernel")
    if machine.n_cpus > 1:
        flow.sometimes("two CPUs have crashed", lambda s: s.g.crashes == 0)
    return flow


# -- paravirtual areas ---------------------------------------------------------------------------


def pv_areas(machine: Machine, name: str, *, repaired: bool) -> Flow:
    """Steal time, PV EOI, async page faults and kvmclock: areas that the hypervisor writes to."""
    flow = _flow(name)
    others = machine.n_cpus - 1
    flow.globals(waiting=0)
    flow.per_cpu(registered=1, ipi=0, hit=0)
    g, cpu, other = flow.g, flow.cpu, flow.other
    boot, ap = flow.agent("boot CPU"), flow.agent("AP", per_cpu=True)
    host = flow.agent("hypervisor", per_cpu=True)
    ap.phase("old kernel")
    ap.at(
        "runs",
        op(
            "reboot notifier: PV areas of this CPU off",
            when=[cpu.ipi == 1],
            do=[put(cpu.ipi, 0), put(cpu.registered, 0), add(g.waiting, -1)],
            cost=costs.IPI,
        ),
        ends=True,
    )
    ap.at("off", ends=True)
    host.phase("write areas")
    host.at(
        "writes",
        op(
            "writes this CPU's steal time into memory of the new kernel",
            when=[cpu.registered == 1, g.left == 1],
            do=[put(cpu.hit, 1)],
            after=costs.MS,
        ),
        ends=True,
    )
    host.at("written", ends=True)
    boot.phase("PV teardown")
    if repaired:
        ask = [put(g.waiting, others), each(put(other.ipi, 1))]
        boot.at("kexec", op("kexec -e: reboot notifier asked of every CPU", do=ask))
        boot.at("notifiers", op("all CPUs have torn down", when=[g.waiting == 0]))
    else:
        boot.at("kexec", op("kexec -e: PV areas of this CPU off"))
    boot.phase("relocate")
    boot.at("leave", op(LEAVES, do=[put(g.left, 1)], cost=costs.RELOCATE))
    boot.at("up", ends=True)
    flow.always(
        OWN_AREAS,
        lambda s: (s.cpu.hit == 0).all(axis=1),
        "the hypervisor writes only to areas of the kernel that runs",
    )
    if others:
        flow.sometimes(
            "an area is registered while the guest goes down",
            lambda s: ~s.at("boot CPU", "kexec") & (s.cpu.registered == 1).any(axis=1),
        )
    return flow

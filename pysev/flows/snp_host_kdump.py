"""The flow of ``snp-host-kdump/*``: an SNP host with guests panics, and a crash kernel starts.

Theory of operation. The boot CPU panics. It stops the others by NMI and waits for them, at most
one second; runs the panic notifiers, of which ccp's tries to shut SNP down; goes through
``machine_crash_shutdown``; and starts the crash kernel. Another CPU in its NMI saves its registers,
executes WBINVD, switches SVM off, counts itself and halts. Guests may only be decommissioned once
no CPU is in them, each CPU must execute WBINVD after that, and a CPU that has halted executes
nothing. The designs differ in who decommissions when, and in what the crash kernel does if SNP is
still on.

The one second is over only when every CPU that is waited for waits itself, or never takes the NMI:
a CPU that is merely slow is not.

Sources: kexec list 2024-09, "x86/sev: Fix host kdump support for SNP" (Kalra, Bonzini,
Christopherson, Roth); Linux kernel/panic.c, arch/x86/kernel/{crash,reboot}.c,
drivers/crypto/ccp/sev-dev.c, drivers/iommu/amd/init.c (f32fe7cb0198, 38e5f33ee359, 8c571019d8a8).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from ghcbcore._cffi import lib

from .. import costs
from ..flow import Agent, Effect, Field, Op, Test, add, each, op, put, when
from ..frames import happen, host_access
from ..machine import Machine
from .snp_host import BUSY, SnpHost

__all__ = ["AttemptAt", "Condition", "Deaf", "Design", "Next", "Nmi", "SnpHostKdump", "Who"]

NOT_COUNTED = 2
"""Patch v1 counts the CPUs online without the first one in the callback and the one that panics."""


class Nmi(enum.IntEnum):
    """``cpu.nmi``: whether a CPU is about to take the crash NMI."""

    NONE = 0
    SENT = 1
    DEAF = 2  # it does not take it, or not in time


class Who(enum.StrEnum):
    """Who decommissions the guests."""

    NOBODY = "nobody"
    CALLBACK = "the first CPU in the callback"
    LAST = "the last CPU in the callback"
    NOTIFIER = "the panic notifier"


class AttemptAt(enum.StrEnum):
    """Where SHUTDOWN_EX is tried."""

    NOTIFIER = "the panic notifier"
    LATER = "after machine_crash_shutdown"
    NEVER = "nowhere"


class Next(enum.StrEnum):
    """What the crash kernel does with the IOMMU."""

    NEW = "sets it up anew"
    ZEROES = "reuses the old structures and zeroes the completion store"
    OFF = "amd_iommu=off"
    REUSES = "reuses the old structures as they are"


class Deaf(enum.StrEnum):
    """The CPU that the NMI does not reach."""

    NOBODY = "nobody"
    FOR_EVER = "one, for ever"
    LATE = "one, until the second is over"
    TWO = "two, for ever; they run no guest any more"


DEAF_CPUS = {Deaf.NOBODY: 0, Deaf.FOR_EVER: 1, Deaf.LATE: 1, Deaf.TWO: 2}


@dataclass(frozen=True)
class Design:
    """Who does what.

    Attributes
    ----------
    who : Who
    spins : bool
        The others wait in the callback until the last CPU has decommissioned, WBINVD after that.
    attempt : AttemptAt
    waits_again : bool
        Before it is tried: the boot CPU waits for those that it has released.
    is_capped : bool
        The boot CPU waits for the others at most one second.
    next : Next
    """

    who: Who = Who.NOBODY
    spins: bool = False
    attempt: AttemptAt = AttemptAt.NOTIFIER
    waits_again: bool = False
    is_capped: bool = True
    next: Next = Next.NEW

    def claims_shutdown(self, has_guests: bool) -> bool:
        """Whether SNP must be off before the crash kernel starts (S4)."""
        return self.attempt != AttemptAt.NEVER and (self.who != Who.NOBODY or not has_guests)


@dataclass(frozen=True)
class Condition:
    """What the machine is like when it happens.

    Attributes
    ----------
    n_guests : int
        SNP guests that run, each on any CPU but the one that panics.
    mid_vmexit : bool
        A CPU may be in the middle of a #VMEXIT, its guest's state not saved yet.
    deaf : Deaf
        One CPU goes on running its guest.
    mode : str
        Of the firmware: ``strict`` or ``genoa_2023``.
    slow : bool
        The second may be over while CPUs that have taken the NMI are still on their way.
    in_flight : bool
        KVM has given the PSP a command, and holds the driver's mutex.
    """

    n_guests: int = 2
    mid_vmexit: bool = False
    deaf: Deaf = Deaf.NOBODY
    mode: str = "strict"
    slow: bool = False
    in_flight: bool = False


class SnpHostKdump(SnpHost):
    """One flow of the family; each method writes one agent's program, or a part of it."""

    def __init__(self, design: Design, condition: Condition, machine: Machine, name: str) -> None:
        super().__init__(name, machine, condition.n_guests, condition.mode)
        self.d, self.c = design, condition
        flow = self.flow
        flow.globals(stuck=0, deaf=0, timed_out=0, in_flight=int(condition.in_flight), clash=0)
        if design.who == Who.CALLBACK:
            flow.globals(initiated=0, handled=0, missing=1)
        if design.spins:
            flow.globals(released=0)
        flow.per_cpu(nmi=Nmi.NONE)
        flow.name_values("nmi", Nmi)

    @property
    def psp_is_shared(self) -> bool:
        """More than the boot CPU may have given a command when it gives one."""
        return self.d.who == Who.CALLBACK or self.c.in_flight

    def command(self, name: str, guest: int = 0, **arguments: Any) -> list[Effect]:
        """A command; the PSP has one mailbox, so no other may be in flight."""
        given = super().command(name, guest, **arguments)
        return [self.collide(), *given] if self.psp_is_shared else given

    def collide(self) -> Effect:
        """Notice a command that is given while another one is in flight."""
        g = self.flow.g
        return when(g.in_flight == 1, put(g.clash, 1))

    # -- the other CPUs ----------------------------------------------------------------------

    def aps(self) -> None:
        g, cpu, ap, c = self.flow.g, self.flow.cpu, self.ap, self.c
        goes_on = [g.over == 0] if c.deaf != Deaf.NOBODY else []
        if c.deaf == Deaf.TWO:
            goes_on.append(cpu.nmi != Nmi.DEAF)
        host = [*self.vmruns(*goes_on), *self.nmis(self.nmi_text(""), [])]
        ap.phase("old kernel")
        ap.at("host", *host, ends=c.deaf != Deaf.NOBODY)
        if c.n_guests:
            text, leaves = self.nmi_text("#VMEXIT, "), [self.leave()]
            inside = [] if c.mid_vmexit else self.nmis(text, leaves, cpu.entered == 0)
            self.in_guest(*inside, mid_vmexit=c.mid_vmexit)
        ap.phase("stop")
        if self.d.who == Who.CALLBACK:
            self.callback(ap, self.counts_itself())
        elif self.d.spins:
            ap.at(
                "callback",
                op(
                    "released by the last: WBINVD; counts itself, halts",
                    when=[g.released == 1],
                    do=[self.psp.wbinvd(cpu), add(g.stuck, -1), add(g.waiting, -1)],
                    to="halted",
                    after=self.all_flush,
                ),
            )
        else:
            text = "SVM off; counts itself, halts"
            ap.at("callback", op(text, do=[add(g.waiting, -1)], to="halted"))
        ap.at("halted", ends=True)

    def nmi_text(self, first: str) -> str:
        text = f"NMI: {first}WBINVD"
        return f"{text}; waits for the last" if self.d.spins else text

    def nmis(self, text: str, leaves: list[Effect], *more: Test) -> list[Op]:
        """The crash NMI; every kernel with SNP executes WBINVD in it, whatever comes after."""
        g, cpu = self.flow.g, self.flow.cpu
        do, to = [*leaves, self.psp.wbinvd(cpu), put(cpu.nmi, Nmi.NONE)], "callback"
        if self.d.spins:
            do.append(add(g.stuck, 1))
        late = []
        if self.c.deaf == Deaf.LATE:
            tests = [*more, cpu.nmi == Nmi.DEAF, g.timed_out == 1]
            do_late = [*do, add(g.stuck, -1), put(g.deaf, 0)]
            late = [op(f"late {text}", when=tests, do=do_late, to=to, cost=self.all_flush)]
        sent = [*more, cpu.nmi == Nmi.SENT]
        return [op(text, when=sent, do=do, to=to, cost=self.all_flush), *late]

    def counts_itself(self) -> list[Effect]:
        return [self.psp.wbinvd(self.flow.cpu), add(self.flow.g.waiting, -1)]

    def callback(self, agent: Agent, done: list[Effect], to: str = "halted") -> None:
        """V1 and V2: the first waits for all, decommissions; then everybody executes WBINVD."""
        g = self.flow.g
        is_ap = agent is self.ap
        last = "WBINVD; counts itself, halts" if is_ap else "WBINVD"
        stuck = [add(g.stuck, 1)] if is_ap else []
        free = [add(g.stuck, -1)] if is_ap else []
        flush = self.all_flush if is_ap else costs.WBINVD
        others = self.m.n_cpus - NOT_COUNTED
        agent.at(
            "callback",
            op(
                f"callback: the guests are gone already: {last}",
                when=[g.handled == 1],
                do=done,
                to=to,
                after=flush,
            ),
            op(
                f"callback: the first: waits for {others} others",
                when=[g.handled == 0, g.initiated == 0],
                do=[put(g.initiated, 1), put(g.missing, others), *stuck],
                to="waits for all",
            ),
            op(
                "callback: counts itself, waits for the first",
                when=[g.handled == 0, g.initiated == 1],
                do=[add(g.missing, -1), *stuck],
                to="waits for the first",
            ),
        )
        agent.at(
            "waits for all",
            op(
                "all are in the callback: SNP_DECOMMISSION of every guest",
                when=[g.missing == 0],
                do=[self.collide(), put(g.in_flight, 1)],
                to="decommissions",
                cost=self.n_guests * costs.PSP_COMMAND,
            ),
        )
        agent.at(
            "decommissions",
            op(
                "SNP_DECOMMISSION is done",
                do=[put(g.in_flight, 0), *self.decommission_all(), put(g.handled, 1), *free],
            ),
        )
        agent.at("flush", op(last, do=done, to=to, after=flush))
        agent.at(
            "waits for the first",
            op(
                f"the guests are gone: {last}",
                when=[g.handled == 1],
                do=[*free, *done],
                to=to,
                after=flush,
            ),
        )

    # -- the CPU that panics -----------------------------------------------------------------

    def panic(self) -> None:
        boot, g, other = self.boot, self.flow.g, self.flow.other
        n_others = self.m.n_cpus - 1
        boot.phase("stop the other CPUs")
        for i in range(DEAF_CPUS[self.c.deaf]):
            text = f"{'another' if i else 'one'} CPU will not take the NMI"
            if self.c.deaf == Deaf.LATE:
                text += " within a second"
            deaf = [put(other.nmi, Nmi.DEAF), add(g.stuck, 1), add(g.deaf, 1)]
            alert = [other.nmi == Nmi.NONE]
            boot.at(f"deaf {i}", op(text, pick=True, when=alert, do=deaf, after=BUSY))
        sent = when(other.nmi != Nmi.DEAF, put(other.nmi, Nmi.SENT))
        boot.at(
            "panic",
            op(
                "panic: NMI to all other CPUs",
                do=[put(g.waiting, n_others), each(sent)],
                cost=costs.IPI,
                after=BUSY,
            ),
        )
        self.wait("waits", g.stuck)

    def wait(self, label: str, stuck_cpus: Field) -> None:
        """Wait until all have counted themselves, or those that are left are ``stuck_cpus``."""
        boot, g = self.boot, self.flow.g
        ops = [op("all other CPUs are stopped", when=[g.waiting == 0])]
        if self.d.is_capped:
            stuck = [g.waiting >= 1]
            if not self.c.slow:
                stuck.append(g.waiting == stuck_cpus)
            if not self.c.slow and self.d.who == Who.CALLBACK:
                stuck.append(g.missing != 0)
            text = "1 s is over: goes on"
            do = [put(g.timed_out, 1)]
            ops.append(op(text, when=stuck, do=do, after=costs.CRASH_TIMEOUT))
        boot.at(label, *ops)

    def notifier(self) -> None:
        """A4: ccp's panic notifier."""
        boot = self.boot
        boot.phase("shut SNP down")
        if self.c.in_flight:
            boot.at(
                "mutex",
                op(
                    "panic notifier: the PSP's mutex is held: gives up",
                    to="machine_crash_shutdown",
                ),
            )
        if self.d.who == Who.NOTIFIER:
            text = "panic notifier: SNP_DECOMMISSION of every guest"
            cost = self.n_guests * costs.PSP_COMMAND
            boot.at("decommission", op(text, do=self.decommission_all(), cost=cost))
        if self.d.attempt == AttemptAt.NOTIFIER:
            self.try_shutdown("panic notifier", "machine_crash_shutdown")

    def try_shutdown(self, who: str, to: str) -> None:
        flush = [self.psp.wbinvd(self.flow.boot)]
        self.attempt(self.boot, who, flush, to, everywhere=False)

    def crash_shutdown(self) -> None:
        """A5, and whatever a design has behind it."""
        boot, g, d = self.boot, self.flow.g, self.d
        if d.who == Who.CALLBACK:
            boot.at("machine_crash_shutdown", op("machine_crash_shutdown"))
            self.callback(boot, [self.psp.wbinvd(self.flow.boot)], "machine_kexec")
        elif d.who == Who.LAST:
            text = "machine_crash_shutdown: the last: SNP_DECOMMISSION of every guest"
            do = self.decommission_all()
            if d.spins:
                text += "; releases the others"
                do.append(put(g.released, 1))
            cost = self.n_guests * costs.PSP_COMMAND
            boot.at("machine_crash_shutdown", op(text, do=do, cost=cost))
        else:
            boot.at("machine_crash_shutdown", op("machine_crash_shutdown"))
        if d.waits_again:
            self.wait("waits again", g.deaf)
        if d.attempt == AttemptAt.LATER:
            self.try_shutdown("shutdown behind it", "machine_kexec")
        boot.phase("crash kernel")
        boot.at("machine_kexec", op("machine_kexec: the crash kernel starts", cost=costs.RELOCATE))

    # -- the crash kernel --------------------------------------------------------------------

    def crash_kernel(self) -> None:
        boot, g = self.boot, self.flow.g
        kernel = "crash kernel"
        over = put(g.over, 1)
        if self.d.next == Next.NEW:
            self.new_iommu(kernel)
        elif self.d.next == Next.OFF:
            boot.at(
                "IOMMU",
                op("amd_iommu=off", when=[self.unlocked], to="devices"),
                op(
                    "amd_iommu=off: no interrupt remapping, no x2APIC; the old tables stay",
                    when=[self.locked],
                ),
            )
            boot.at("NVMe", op("NVMe: I/O time-outs, probe fails (-5)", cost=costs.NVME_TIMEOUT))
            boot.at("root", op("the root file system never appears", do=[over], to="dead"))
        else:
            reused = "maps the old device table, command buffer and event log"
            store = happen(self.store, 0, host_access(lib.FRAME_ACCESS_WRITE), g.answer)
            zeroes = self.d.next == Next.ZEROES
            text = f"{kernel}: IOMMU: {reused}; "
            text += "zeroes the completion store" if zeroes else "writes to none; no SEV INIT"
            boot.at("IOMMU", op(text, do=[store] if zeroes else []))
            if zeroes:
                boot.at(
                    "store",
                    op("zeroed", when=[g.answer == 0], to="devices"),
                    op(
                        "BUG: #PF, RMP: the completion store is firmware's",
                        when=[g.answer != 0],
                        do=[over],
                        to="dead",
                    ),
                )
        self.ends()

    def build(self) -> SnpHostKdump:
        self.aps()
        self.panic()
        self.notifier()
        self.crash_shutdown()
        self.crash_kernel()
        return self

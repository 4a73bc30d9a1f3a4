"""The flow of ``sev-es-kexec/*``: kexec of an SEV-ES guest, and what its other CPUs do.

Theory of operation. The boot CPU runs the old kernel, then relocates and is the new kernel's boot
CPU; the other CPUs (APs) each run the old kernel until they are stopped, in one of the ways that
were argued about in 2021. A vCPU thread of the hypervisor delivers INIT and STARTUP to each AP,
and the new kernel's memory management takes the old kernel's memory piece by piece, whenever it
likes. An AP that fetches from memory that was taken makes a *foreign fetch*, and that is what
every one of these designs has to rule out.

Steps of an AP and of the boot CPU carry the names of the fact sheet (P1..P15; ``stop_this_cpu``).
An SEV-ES vCPU keeps its registers whatever the hypervisor does: STARTUP only resumes it
(``ghcbcore.host``). That one rule is what the whole family is about.

Sources: kexec list 2021-05 "x86/kexec/64: Forbid kexec when running as an SEV-ES guest"; "x86/sev:
KEXEC/KDUMP support for SEV-ES guests", RFC (2021-07) to v6 (2024-06); Linux arch/x86/kernel/
{smp,process,reboot,crash}.c; KVM arch/x86/kvm/svm/sev.c.
"""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass
from functools import partial

from ghcbcore._cffi import lib
from ghcbcore.profile import Profile

from .. import costs
from ..flow import Agent, Effect, Flow, Op, Test, add, call, each, jump, op, put, shift_right, when
from ..host import Hold, MpState
from ..layout import Part
from ..machine import Machine
from ..words import (
    Fate,
    ask_msr,
    ask_nae,
    declare_fates,
    halt,
    hypervisor_threads,
    memory,
    send_init,
    send_nmi,
    send_startup,
)


class Kernel(enum.IntEnum):
    """``g.kernel``: which kernel the boot CPU runs."""

    OLD = 0
    NEW = 1


class BringUp(enum.IntEnum):
    """``cpu.bring_up``: the new kernel's book about a CPU."""

    NOT_TRIED = 0
    WAKING = 1
    UP = 2
    GIVEN_UP = 3


class Command(enum.IntEnum):
    """``g.command``: what stands in the mailbox. Source: ACPI MADT type 0x10, versions 0 and 1."""

    NONE = 0
    WAKEUP = 1
    TEST = 2


NOT_ITS_KERNEL = (
    255  # cpu.foul: it runs code of its own memory, but not of the kernel that it is for
)

# When an AP reports "stopped", by clearing its bit in cpus_stop_mask
WITH_HLT = "together with HLT"
BEFORE_HLT = "before HLT"
EARLY = "before it leaves the old kernel"
IN_PAGE = "in the jump table page"
IN_HOLD = "held by the hypervisor"


@dataclass(frozen=True)
class Variant:
    """What distinguishes one design of the family from another."""

    guest: int = lib.GHCB_GUEST_SEV_ES
    hand_over: str = "halt"  # halt, hold (in old memory), page (jump table), mailbox
    acknowledges: str = WITH_HLT
    max_version: int = 2
    supported: str = "always"  # kexec_load: always, never, with-park-code
    nmi: bool = False  # NMI to those that have not stopped after a second
    test: bool = True  # mailbox: TEST before relocating
    retry: bool = False  # the new kernel sends INIT and STARTUP again to a CPU that stays silent
    spurious: bool = False  # the hypervisor may wake each held vCPU once, for nothing

    def start_vector(self, machine: Machine) -> int:
        """Return where the new kernel wants its APs: STARTUP's vector, or what the page has."""
        if self.guest == lib.GHCB_GUEST_PLAIN:
            return machine.startup_vector
        return machine.reset_vector


class SevEsKexec:
    """One flow of the family; each method writes one agent's program."""

    def __init__(self, variant: Variant, machine: Machine, name: str) -> None:
        self.v = variant
        self.m = machine
        self.vector = variant.start_vector(machine)
        profile = Profile(guest=variant.guest, max_version=variant.max_version)
        self.flow = flow = Flow(name, profile)
        flow.start(first_sipi=1)
        flow.globals(kernel=Kernel.OLD, version=0, kexec_error=0, stopping=0, start_vector=0)
        flow.per_cpu(ipi=0, in_mask=0, times_up=0, vector=0, bring_up=BringUp.NOT_TRIED)
        declare_fates(flow)
        flow.name_values("kernel", Kernel)
        flow.name_values("bring_up", BringUp)
        flow.name_values("command", Command)
        flow.only_while(flow.vm.event == lib.GHCB_EVENT_NONE)
        self.boot = flow.agent("boot CPU")
        self.ap = flow.agent(
            "AP", per_cpu=True, only_while=[flow.cpu.mp_state == lib.GHCB_MP_RUNNABLE]
        )
        kept = partial(memory, flow, self.ap)
        _, self.text = kept("text", "old kernel's text", Part.OLD_TEXT, executed=True)
        _, self.tables = kept(
            "tables", "old kernel's page tables", Part.PAGE_TABLES, executed=False
        )
        low = "old real-mode area below 1 MiB"
        _, self.low = kept("low", low, Part.REAL_MODE, executed=True)

    # -- the APs -----------------------------------------------------------------------------

    def acknowledge(self, moment: str) -> list[Effect]:
        """Clear the own bit in cpus_stop_mask, if this is the moment at which this design does."""
        if self.v.acknowledges != moment:
            return []
        cpu, g = self.flow.cpu, self.flow.g
        return [when(cpu.in_mask == 1, put(cpu.in_mask, 0), add(g.stopping, -1))]

    def nmi(self, text: str, do: list[Effect], to: str) -> list[Op]:
        """An NMI at this point of the AP's program, in designs that send one."""
        if not self.v.nmi:
            return []
        cpu = self.flow.cpu
        return [op(text, when=[cpu.nmi_pending == 1], do=[put(cpu.nmi_pending, 0), *do], to=to)]

    def old_kernel(self, leave: str) -> None:
        """The AP's old kernel up to the point at which the designs part."""
        cpu, ap = self.flow.cpu, self.ap
        again = self.nmi("NMI: stop_this_cpu once more", [], "stop")
        ap.phase("old kernel")
        with ap.under(self.text, self.tables):
            ap.at(
                "old kernel",
                op(
                    "REBOOT_VECTOR interrupt",
                    when=[cpu.ipi == 1],
                    do=[put(cpu.ipi, 0)],
                    cost=costs.IPI,
                ),
                *self.nmi("NMI: stop_this_cpu", [put(cpu.ipi, 0)], "stop"),
                ends=self.v.supported != "always" or self.v.hand_over == "crash",
            )
            ap.phase("stop")
            ap.at("stop", op("stop_this_cpu: IRQs off, offline, local APIC off"), *again)
            if self.v.acknowledges in (BEFORE_HLT, EARLY):
                done = self.acknowledge(self.v.acknowledges)
                ap.at("report", op("clears its bit in cpus_stop_mask", do=done, to=leave), *again)

    def halt(self) -> None:
        """HLT loop in the old kernel's memory."""
        with self.ap.under(self.text, self.tables):
            self.ap.at(
                "halt",
                op("HLT", do=[*self.acknowledge(WITH_HLT), halt(self.flow.cpu)]),
                *self.nmi("NMI before HLT: stop_this_cpu once more", [], "stop"),
            )
            self.ap.at(
                "halted",
                op("runs on behind HLT with its old registers: back to HLT", to="halt"),
            )

    def hold_in_old_memory(self) -> None:
        """AP reset hold as an NAE event, the loop around it in the old kernel's memory."""
        cpu = self.flow.cpu
        ask = ask_nae(cpu, self.m.ghcb_gpa, lib.GHCB_NAE_AP_RESET_HOLD)
        self.ap.phase("park")
        with self.ap.under(self.text, self.tables):
            self.ap.at(
                "hold",
                op(
                    "VMGEXIT: AP reset hold (NAE event)",
                    do=[*self.acknowledge(IN_HOLD), *ask],
                    cost=costs.VMGEXIT,
                ),
            )
            self.ap.at(
                "held",
                op("not released: asks again", when=[cpu.sw_exit_info_2 == 0], to="hold"),
                op(
                    "released: to the old kernel's start-up code",
                    when=[cpu.sw_exit_info_2 != 0],
                    to="old start-up",
                ),
            )
            self.ap.at(
                "old start-up",
                op(
                    "start_secondary of the old kernel, beside the new one",
                    do=[put(cpu.foul, NOT_ITS_KERNEL)],
                    to="dead",
                ),
            )

    def park_in_page(self) -> None:
        """P1..P15: leave the old kernel for the park code in the jump table page."""
        cpu, ap = self.flow.cpu, self.ap
        dead = [put(cpu.fate, Fate.TRIPLE_FAULT), call(lib.GHCB_CALL_SHUTDOWN, cpu)]
        shot = self.nmi("NMI while the IDT is a real-mode one: shutdown", dead, "dead")
        again = self.nmi("NMI: stop_this_cpu once more", [], "stop")
        ap.phase("park")
        with ap.under(self.text, self.tables):
            ap.at("park", op("P1-P2 IRQs off, CR3 := trampoline page table"), *again)
        with ap.under(self.text, self.tables, self.low):
            ap.at("leave", op("P3-P5 PCIDE off, registers cleared, far jump below 1 MiB"), *again)
        with ap.under(self.low):
            ap.at("low", op("P6 paging and long mode off, far jump into the page"), *shot)
        ap.at(
            "page",
            op("P7 GDT, segments and stack of the page", do=self.acknowledge(IN_PAGE)),
            *shot,
        )
        ap.at(
            "hold",
            op(
                "P8 VMGEXIT: AP reset hold by MSR",
                do=[*self.acknowledge(IN_HOLD), *ask_msr(cpu, lib.GHCB_MSR_AP_RESET_HOLD_REQ)],
                cost=costs.VMGEXIT,
            ),
            *shot,
        )
        answer = cpu.msr & lib.GHCB_MSR_INFO_MASK
        data = cpu.msr & ~lib.GHCB_MSR_INFO_MASK
        ap.at(
            "held",
            op(
                "P9 not an answer: asks again",
                when=[answer != lib.GHCB_MSR_AP_RESET_HOLD_RESP],
                to="hold",
            ),
            op(
                "P9 not released: asks again",
                when=[answer == lib.GHCB_MSR_AP_RESET_HOLD_RESP, data == 0],
                to="hold",
            ),
            op(
                "P9-P15 released: reads IP and CS, leaves protected mode, far jump",
                when=[answer == lib.GHCB_MSR_AP_RESET_HOLD_RESP, data != 0],
                do=[put(cpu.vector, self.flow.g.start_vector)],
                to="trampoline",
            ),
            *shot,
        )

    def wait_in_mailbox(self) -> None:
        """The firmware's loop over the mailbox, in firmware memory with its own page tables."""
        cpu, g, ap = self.flow.cpu, self.flow.g, self.ap
        ap.phase("park")
        with ap.under(self.text, self.tables):
            ap.at("leave", op("CR3 := firmware's page tables, jump to the firmware's loop"))
        ap.at(
            "mailbox",
            op(
                "mailbox: TEST is for this CPU: cleared",
                when=[cpu.addressed == 1, g.command == Command.TEST],
                do=[put(g.command, Command.NONE), put(cpu.addressed, 0)],
                to=".",
            ),
            op(
                "mailbox: WAKEUP is for this CPU: cleared, jumps to the vector",
                when=[cpu.addressed == 1, g.command == Command.WAKEUP],
                do=[
                    put(g.command, Command.NONE),
                    put(cpu.addressed, 0),
                    put(cpu.vector, g.start_vector),
                ],
                to="trampoline",
            ),
        )

    def crash_nmi(self) -> None:
        """The NMI of a crash: save the registers, count down, HLT in the old kernel's memory."""
        flow, cpu, ap = self.flow, self.flow.cpu, self.ap
        flow.per_cpu(note=0)
        ap.phase("old kernel")
        with ap.under(self.text, self.tables):
            ap.at(
                "old kernel",
                op(
                    "crash NMI",
                    when=[cpu.nmi_pending == 1],
                    do=[put(cpu.nmi_pending, 0)],
                    cost=costs.IPI,
                ),
            )
            ap.phase("stop")
            ap.at("save", op("saves its registers to its crash note", do=[put(cpu.note, 1)]))
            ap.at("count", op("waiting_for_crash_ipi - 1", do=[add(flow.g.stopping, -1)]))
            ap.at("halt", op("HLT", do=[halt(cpu)]))
            ap.at("halted", op("runs on behind HLT: back to HLT", to="halt"), ends=True)

    def new_kernel(self) -> None:
        """The AP's arrival, if the vector is the new kernel's; the end of one that went wrong."""
        cpu, g, ap = self.flow.cpu, self.flow.g, self.ap
        ap.phase("new kernel")
        ap.at(
            "trampoline",
            op(
                "comes up in the new kernel",
                when=[cpu.vector == self.vector, g.kernel == Kernel.NEW],
                do=[add(cpu.times_up, 1)],
                to="new kernel",
            ),
            op(
                "starts at a vector that the new kernel did not write",
                when=[cpu.vector != self.vector],
                do=[put(cpu.foul, NOT_ITS_KERNEL)],
                to="dead",
            ),
        )
        ap.at("new kernel", ends=True)
        ap.at("dead")

    def aps(self) -> None:
        v, ap = self.v, self.ap
        if v.hand_over == "crash":
            self.crash_nmi()
        elif v.hand_over == "halt":
            self.old_kernel("halt")
            self.halt()
        elif v.hand_over == "hold":
            self.old_kernel("hold")
            self.hold_in_old_memory()
        elif v.hand_over == "page":
            self.old_kernel("park")
            self.park_in_page()
        else:
            self.flow.globals(command=Command.NONE)
            self.flow.per_cpu(addressed=0, tested=0)
            self.old_kernel("leave")
            self.wait_in_mailbox()
        self.new_kernel()
        cpu = self.flow.cpu
        restart = [put(cpu.vector, cpu.sipi_vector), jump(ap, "trampoline")]
        thread = hypervisor_threads(self.flow, restart)
        if v.spurious:
            self.wake_held(thread)

    def wake_held(self, thread: Agent) -> None:
        """The hypervisor lets a held vCPU run once although no STARTUP came; data stays 0."""
        self.flow.per_cpu(woken=0)
        cpu = self.flow.cpu
        wake = [put(cpu.mp_state, MpState.RUNNABLE), put(cpu.reset_hold, Hold.NONE)]
        held = [cpu.mp_state == MpState.AP_RESET_HOLD, cpu.woken == 0]
        text = "wakes the held vCPU for nothing"
        once = op(
            text, when=held, do=[*wake, put(cpu.woken, 1)], to=".", after=costs.S, spread=True
        )
        thread.add("deliver", once)

    # -- the boot CPU ------------------------------------------------------------------------

    def firmware(self) -> None:
        """The firmware tells the host where its jump table page is."""
        self.boot.phase("boot the old kernel")
        g_set = self.ask_table(lib.GHCB_AP_JUMP_TABLE_SET, self.m.jump_table_gpa)
        text = "firmware: VMGEXIT: AP jump table, set"
        self.boot.at("firmware", op(text, do=g_set, cost=costs.VMGEXIT))

    def ask_table(self, operation: int, gpa: int = 0) -> list[Effect]:
        code = lib.GHCB_NAE_AP_JUMP_TABLE
        return ask_nae(self.flow.boot, self.m.ghcb_gpa, code, operation, gpa)

    def negotiate(self, label: str, kernel: str) -> None:
        """Protocol version: one VMGEXIT, min(2, what the host has)."""
        flow, boot, g = self.flow, self.boot, self.flow.g
        shift, width = lib.GHCB_MSR_SEV_INFO_RESP_MAX_SHIFT, lib.GHCB_MSR_SEV_INFO_RESP_MAX_WIDTH
        top = flow.boot.msr & ((1 << width) - 1) << shift
        boot.at(
            label,
            op(
                f"{kernel}VMGEXIT: SEV information",
                do=[
                    *ask_msr(flow.boot, lib.GHCB_MSR_SEV_INFO_REQ),
                    put(g.version, top),
                    shift_right(g.version, shift),
                    when(g.version >= lib.GHCB_VERSION_MAX, put(g.version, lib.GHCB_VERSION_MAX)),
                ],
                cost=costs.VMGEXIT,
            ),
        )

    def install(self) -> None:
        """Park code into the jump table page, if host and address allow it."""
        flow, boot, g = self.flow, self.boot, self.flow.g
        flow.globals(park_code=0, table=0)
        ask = self.ask_table(lib.GHCB_AP_JUMP_TABLE_GET)
        boot.at(
            "jump table",
            op("protocol version below 2: no park code", when=[g.version < 2], to="load"),
            op(
                "VMGEXIT: AP jump table, get",
                when=[g.version >= 2],
                do=[*ask, put(g.table, flow.boot.sw_exit_info_2)],
                cost=costs.VMGEXIT,
            ),
        )
        unaligned = g.table & (lib.GHCB_PAGE_SIZE - 1)
        fits = g.table < lib.GHCB_JUMP_TABLE_LIMIT
        boot.at(
            "install",
            op(
                "writes the park code into the jump table page",
                when=[g.table != 0, unaligned == 0, fits],
                do=[put(g.park_code, 1)],
            ),
            op("no jump table: no park code", when=[g.table == 0], to="load"),
            op(
                "jump table not on a page boundary: no park code",
                when=[g.table != 0, unaligned != 0],
                to="load",
            ),
            op(
                "jump table above 4 GiB: no park code",
                when=[unaligned == 0, fits.negated()],
                to="load",
            ),
        )

    def load(self) -> None:
        """kexec_file_load: refused unless the kernel supports kexec on this machine."""
        boot, g = self.boot, self.flow.g
        boot.phase("load the new kernel")
        refused = op(
            "kexec_file_load: -ENOSYS",
            when=[g.park_code == 0] if self.v.supported == "with-park-code" else [],
            do=[put(g.kexec_error, errno.ENOSYS)],
            to="refused",
        )
        loaded = op(
            "kexec_file_load: image loaded",
            when=[g.park_code == 1] if self.v.supported == "with-park-code" else [],
        )
        rows = {"always": [loaded], "never": [refused], "with-park-code": [refused, loaded]}
        boot.at("load", *rows[self.v.supported])

    def stop_others(self) -> None:
        """machine_shutdown: REBOOT_VECTOR to all others, wait for the mask; NMI after a second."""
        boot, g, other = self.boot, self.flow.g, self.flow.other
        n_others = self.m.n_cpus - 1
        boot.phase("stop other CPUs")
        boot.at(
            "kexec",
            op(
                "kexec -e: REBOOT_VECTOR to all other CPUs",
                do=[put(g.stopping, n_others), each(put(other.ipi, 1), put(other.in_mask, 1))],
                cost=costs.IPI,
            ),
        )
        stopped = op("all other CPUs have reported", when=[g.stopping == 0], to="stopped")
        if self.v.nmi:
            shoot = op(
                "1 s is over: NMI to the CPUs still in the mask",
                when=[g.stopping != 0],
                do=[each(when(other.in_mask == 1, send_nmi(other)))],
                after=costs.STOP_TIMEOUT,
            )
            boot.at("stopping", stopped, shoot)
            boot.at("stopping by NMI", stopped)
        else:
            boot.at("stopping", stopped)
        boot.at("stopped", op("local APIC off, segments reloaded, IDT and GDT gone"))
        if self.v.hand_over == "mailbox" and self.v.test:
            self.test_mailbox()

    def post(self, command: Command) -> list[Effect]:
        """Address the mailbox to the bound CPU, then store the command."""
        return [put(self.flow.other.addressed, 1), put(self.flow.g.command, command)]

    def test_mailbox(self) -> None:
        """Ask each AP through the mailbox whether it has arrived in the firmware's loop."""
        boot, g, other = self.boot, self.flow.g, self.flow.other
        self.flow.globals(untested=self.m.n_cpus - 1)
        boot.phase("test the mailbox")
        boot.at(
            "test",
            op(
                "mailbox: TEST to a CPU",
                pick=True,
                when=[g.untested != 0, other.tested == 0],
                do=[put(other.tested, 1), *self.post(Command.TEST)],
            ),
            op("all other CPUs are in the firmware's loop", when=[g.untested == 0], to="relocate"),
        )
        boot.at(
            "tested",
            op(
                "mailbox: answered",
                when=[g.command == Command.NONE],
                do=[add(g.untested, -1)],
                to="test",
            ),
        )

    def crash(self) -> None:
        """panic: NMI to all others, wait a second at most, jump to the crash kernel."""
        boot, g, other = self.boot, self.flow.g, self.flow.other
        boot.phase("stop other CPUs")
        boot.at(
            "panic",
            op(
                "panic: NMI to all other CPUs",
                do=[put(g.stopping, self.m.n_cpus - 1), each(send_nmi(other))],
                cost=costs.IPI,
            ),
        )
        boot.at(
            "shoot-down",
            op("all other CPUs have counted down", when=[g.stopping == 0]),
            op(
                "1 s is over: goes on with CPUs still running",
                when=[g.stopping != 0],
                after=costs.CRASH_TIMEOUT,
            ),
        )
        boot.phase("boot the crash kernel")
        boot.at(
            "relocate",
            op(
                "the crash kernel boots in its reservation, nr_cpus=1",
                do=[put(g.kernel, Kernel.NEW)],
                cost=costs.BOOT_TO_SMP,
            ),
        )
        boot.at("up", ends=True)

    def relocate(self) -> None:
        flow, boot, g = self.flow, self.boot, self.flow.g
        flow.globals(untried=self.m.n_cpus - 1, given_up=0)
        boot.phase("relocate")
        boot.at(
            "relocate",
            op(
                "relocate_kernel: jumps to the new kernel",
                do=[put(g.kernel, Kernel.NEW)],
                cost=costs.RELOCATE,
            ),
        )
        boot.phase("boot the new kernel")
        boot.at(
            "boot",
            op(
                "the new kernel copies its real-mode code below 1 MiB",
                do=[put(g.low_taken, 1)],
                cost=costs.BOOT_TO_SMP,
            ),
        )
        text = "the new kernel chooses its STARTUP vector"
        if self.v.guest != lib.GHCB_GUEST_PLAIN:
            self.negotiate("negotiate again", "new kernel: ")
            text = "the new kernel writes its start vector into the mailbox"
            if self.v.hand_over != "mailbox":
                text = "the new kernel writes its start vector into the jump table page"
                ask = self.ask_table(lib.GHCB_AP_JUMP_TABLE_GET)
                get = "new kernel: VMGEXIT: AP jump table, get"
                boot.at("jump table again", op(get, do=ask, cost=costs.VMGEXIT))
        known = [flow.boot.sw_exit_info_2 == g.table] if self.v.hand_over == "page" else []
        boot.at("vector", op(text, when=known, do=[put(g.start_vector, self.vector)]))

    def bring_up(self) -> None:
        """smp_init of the new kernel, one CPU after the other."""
        boot, g, other = self.boot, self.flow.g, self.flow.other
        book = [put(other.bring_up, BringUp.UP), add(g.untried, -1)]
        waking = other.bring_up == BringUp.WAKING
        finished = op("smp: all CPUs tried", when=[g.untried == 0], to="up")
        boot.phase("bring up other CPUs")
        arrived = op(
            "a CPU is up", pick=True, when=[waking, other.times_up != 0], do=book, to="next"
        )
        if self.v.hand_over == "mailbox":
            self._next_by_mailbox(finished, arrived)
        else:
            boot.at(
                "next",
                op(
                    "INIT to a CPU",
                    pick=True,
                    when=[g.untried != 0, other.bring_up == BringUp.NOT_TRIED],
                    do=[put(other.bring_up, BringUp.WAKING), send_init(other)],
                    cost=costs.INIT_TO_SIPI,
                ),
                finished,
            )
            startup = send_startup(other, self.m.startup_vector)
            boot.at("startup", op("STARTUP", pick=True, when=[waking], do=startup, cost=costs.IPI))
            boot.at(
                "startup 2",
                op("STARTUP again", pick=True, when=[waking], do=startup, cost=costs.IPI),
            )
            idle = [other.init_pending == 0, other.sipi_pending == 0]
            silent = [waking, other.times_up == 0, *idle]
            boot.at(
                "await",
                arrived,
                self._silent([*silent, other.mp_state != lib.GHCB_MP_RUNNABLE]),
                self._silent([*silent, other.foul != 0]),
            )
            if self.v.retry:
                again = [send_init(other)]
                boot.at(
                    "again",
                    op("INIT again", pick=True, when=[waking], do=again, to="startup"),
                )
        boot.at("up", ends=True)

    def _silent(self, tests: list[Test]) -> Op:
        g, other = self.flow.g, self.flow.other
        common = partial(op, pick=True, when=tests, after=costs.AP_ALIVE_TIMEOUT)
        if self.v.retry:
            return common("10 s without a sign of life: once more", to="again")
        book = [put(other.bring_up, BringUp.GIVEN_UP), add(g.untried, -1), add(g.given_up, 1)]
        text = "10 s without a sign of life: the CPU is given up"
        return common(text, do=book, to="next")

    def _next_by_mailbox(self, finished: Op, arrived: Op) -> None:
        g, other = self.flow.g, self.flow.other
        self.boot.at(
            "next",
            op(
                "mailbox: WAKEUP to a CPU",
                pick=True,
                when=[g.untried != 0, other.bring_up == BringUp.NOT_TRIED],
                do=[
                    put(other.bring_up, BringUp.WAKING),
                    put(other.addressed, 1),
                    put(g.command, Command.WAKEUP),
                ],
            ),
            finished,
        )
        self.boot.at("await", arrived)

    def new_memory(self) -> None:
        """The new kernel uses the old one's memory, whenever it likes."""
        flow, g = self.flow, self.flow.g
        agent = flow.agent("new kernel's memory")
        agent.phase("reuse")
        agent.at(
            "use",
            *(
                op(
                    f"takes the old kernel's {what}",
                    when=[g.kernel == Kernel.NEW, word == 0],
                    do=[put(word, 1)],
                    to=".",
                    after=costs.MEMORY_REUSE,
                    spread=True,
                )
                for what, word in (("text", g.text_taken), ("page tables", g.tables_taken))
            ),
            ends=True,
        )

    def build(self) -> Flow:
        v, boot = self.v, self.boot
        self.aps()
        if v.guest != lib.GHCB_GUEST_PLAIN:
            self.firmware()
            self.negotiate("negotiate", "")
        if v.hand_over == "page" or v.supported == "with-park-code":
            self.install()
        if v.hand_over == "crash":
            self.crash()
        else:
            self.load()
            if v.supported != "never":
                self.stop_others()
                self.relocate()
                self.bring_up()
                self.new_memory()
            if v.supported != "always":
                boot.at("refused", ends=True)
        return self.flow

"""The flow of ``tdx-guest-kexec/*``: how a TDX guest does it, for comparison.

Theory of operation. Two things differ from SNP. A page is private or shared for the TDX module, and
who uses a shared mapping converts the page (*back*), while who uses a private mapping of a shared
page ends the TD. So conversions go the other way round: to private the module first and then the
page table (PTE), to shared the PTE first. Between the two the PTE says shared, and the walk at a
kexec finds the page. And CPUs are handed over without the hypervisor: firmware keeps them in a loop
over a mailbox page (ACPI MADT type 0x10), from which one store sends each of them on. Version 1
of the structure names a reset vector through which a CPU can come back to that loop; with version
0 nobody can, and the kernel hides the mailbox from the next one.

Pages are plain words here: ``<page>_pte`` (``Mapping``) and ``<page>_private``, the module's view.
There is one page that is shared all the time, and one that some CPU converts just then.

Sources: "x86/tdx: Add kexec support" v12 (2024-06), Linux 6.11: arch/x86/coco/tdx/tdx.c,
arch/x86/kernel/acpi/madt_wakeup.c, arch/x86/kernel/{reboot,crash,process}.c.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ghcbcore._cffi import lib
from ghcbcore.profile import Profile

from .. import costs, scaling
from ..flow import Effect, Field, Flow, Op, add, each, op, put, when
from ..layout import Part
from ..machine import Machine
from ..words import declare_fates, halt, memory, send_nmi
from .sev_es_kexec import Command, Kernel
from .snp_guest_pages import pass_over

__all__ = ["CRASH", "NORMAL", "Mapping", "TdxGuestKexec", "Variant"]


class Mapping(enum.IntEnum):
    """What a PTE says."""

    NONE = 0
    SHARED = 1
    PRIVATE = 2


NORMAL = ("begin", "stop", "finish", "relocate", "use", "bring up")
CRASH = ("stop", "begin", "finish", "relocate", "use", "bring up")

PHASES = {
    "unplug": "take a CPU offline",
    "begin": "stop conversions",
    "stop": "stop other CPUs",
    "finish": "unshare memory",
    "relocate": "relocate",
    "use": "use memory again",
    "bring up": "bring CPUs up",
}
"""What ``run`` calls the stages in its account of time."""


@dataclass(frozen=True)
class Variant:
    """What distinguishes one scenario of the family from another; the defaults are mainline."""

    stages: tuple[str, ...] = NORMAL
    crash: bool = False
    version: int = 1  # of the mailbox structure
    hides: bool = True  # version 0: the mailbox address is overwritten with 0
    test: bool = False  # TEST to each CPU before relocating
    converts: str = ""  # another CPU converts a page: "", "to shared", "to private"
    pte_first: bool = True  # finish: PTE := 0 before the conversion
    patience: str = "all"  # a crash: "all" answer in time, "late" ones go on, "deaf" one never does
    stale_tlb: bool = False  # a CPU that still runs has the shared mapping in its TLB
    loses_bit: bool = False  # somebody has cleared the shared bit of a PTE
    refused: bool = False  # the hypervisor may refuse MapGPA
    reads: bool = True  # the new kernel touches every page
    unplugs: str = ""  # a CPU is taken offline before: TEST is "answered", or "times out"


class TdxGuestKexec:
    """One flow of the family; each method writes an agent's program or a stage of the boot CPU."""

    def __init__(self, variant: Variant, machine: Machine, name: str) -> None:
        self.v = variant
        self.m = machine
        self.n_others = machine.n_cpus - 1
        self.flow = flow = Flow(name, Profile(guest=lib.GHCB_GUEST_PLAIN))
        flow.globals(kernel=Kernel.OLD, closed=0, readers=0, stopping=0, command=Command.NONE)
        n_shared = 1 + (variant.converts == "to private")
        flow.globals(nr_shared=n_shared, found=0, off=0, td_exit=0, untried=self.n_others)
        flow.per_cpu(ipi=0, addressed=0, tested=0, tried=0, times_up=0)
        declare_fates(flow)
        for word, names in (("kernel", Kernel), ("command", Command)):
            flow.name_values(word, names)
        flow.only_while(flow.vm.event == lib.GHCB_EVENT_NONE)
        self.ends_of_parts: list[str] = []
        self.names = ["buffer", *(["moving"] if variant.converts else [])]
        for page in self.names:
            shared = page == "buffer" or variant.converts == "to private"
            pte = Mapping.SHARED if shared else Mapping.PRIVATE
            flow.globals(**{f"{page}_pte": pte, f"{page}_private": int(not shared)})
            flow.name_values(f"{page}_pte", Mapping)
        self.boot = flow.agent("boot CPU")
        self.ap = flow.agent(
            "AP", per_cpu=True, only_while=[flow.cpu.mp_state == lib.GHCB_MP_RUNNABLE]
        )
        kept = partial(memory, flow, self.ap)
        _, self.text = kept("text", "old kernel's text", Part.OLD_TEXT, executed=True)
        title = "identity page table of the hand-over"
        _, self.tables = kept("tables", title, Part.PAGE_TABLES, executed=False)

    def pte(self, page: str) -> Field:
        found: Field = getattr(self.flow.g, f"{page}_pte")
        return found

    def private(self, page: str) -> Field:
        found: Field = getattr(self.flow.g, f"{page}_private")
        return found

    # -- the other CPUs ----------------------------------------------------------------------

    def interrupted(self) -> list[Op]:
        cpu = self.flow.cpu
        if self.v.crash:
            hears = [cpu.deaf == 0] if self.v.patience == "deaf" else []
            return [
                op(
                    "crash NMI: saves its registers",
                    when=[cpu.nmi_pending == 1, *hears],
                    do=[put(cpu.nmi_pending, 0)],
                    to="report",
                    cost=costs.IPI,
                )
            ]
        return [
            op(
                "REBOOT_VECTOR interrupt: stop_this_cpu",
                when=[cpu.ipi == 1],
                do=[put(cpu.ipi, 0)],
                to="report",
                cost=costs.IPI,
            )
        ]

    def aps(self) -> None:
        v, ap, cpu, g = self.v, self.ap, self.flow.cpu, self.flow.g
        if v.patience == "deaf":
            self.flow.per_cpu(deaf=0)
        if v.unplugs:
            self.flow.per_cpu(dying=0)
        work = [*self.touches(), *(self.starts_conversion() if v.converts else [])]
        if v.unplugs:
            offline = "play_dead: offline, on its way to the firmware"
            work.append(op(offline, when=[cpu.dying == 1], do=[put(cpu.dying, 2)], to="leave"))
        ap.phase("old kernel")
        with ap.under(self.text, self.tables):
            ap.at("old kernel", *self.interrupted(), *work, ends=v.patience == "deaf")
            if v.converts:
                self.conversion()
            ap.phase("stop")
            done = "counts down" if v.crash else "clears its bit in cpus_stop_mask"
            counted = [add(g.stopping, -1)]
            if v.version == 0:
                ap.at("report", op(f"{done}, HLT", do=[*counted, halt(cpu)]))
                ap.at("halted", op("runs on behind HLT: back to HLT", to="halted"), ends=True)
            else:
                ap.at("report", op(done, do=counted))
                leave = "CR4.PGE off, CR3 := identity page table, jumps to the reset vector"
                ap.at("leave", op(leave))
        if v.version == 1:
            self.firmware_loop()
        ap.at("new kernel", ends=True)
        ap.at("dead")

    def touches(self) -> list[Op]:
        """A CPU that still runs uses the buffer, once, as its page table or its TLB has it."""
        if self.v.patience == "all":
            return []
        g = self.flow.g
        self.flow.globals(transfers=1)
        once = put(g.transfers, 0)
        fault = op(
            "touches a buffer that is not mapped any more: page fault",
            when=[g.transfers == 1, self.pte("buffer") == Mapping.NONE],
            do=[once],
            to="old kernel",
        )
        back = op(
            "touches the buffer through a shared mapping: the page is shared (again)",
            when=[
                g.transfers == 1,
                *([] if self.v.stale_tlb else [self.pte("buffer") == Mapping.SHARED]),
            ],
            do=[once, put(self.private("buffer"), 0)],
            to="old kernel",
        )
        return [back] if self.v.stale_tlb else [back, fault]

    def starts_conversion(self) -> list[Op]:
        g = self.flow.g
        self.flow.globals(conversions=1)
        wanted = g.conversions == 1
        return [
            op(
                f"converts a page {self.v.converts}: mem_enc_lock taken for reading",
                when=[wanted, g.closed == 0],
                do=[put(g.conversions, 0), add(g.readers, 1)],
                to="conversion 1",
            ),
            op(
                "converts a page: mem_enc_lock is taken, -EBUSY",
                when=[wanted, g.closed == 1],
                do=[put(g.conversions, 0)],
                to=".",
            ),
        ]

    def conversion(self) -> None:
        """The halves in TDX's order; nr_shared follows when both are done."""
        g, private, pte = self.flow.g, self.private("moving"), self.pte("moving")
        to_shared = self.v.converts == "to shared"
        halves: list[tuple[str, list[Effect], int]] = [
            ("PTE: shared bit set", [put(pte, Mapping.SHARED)], costs.INSTRUCTIONS),
            ("MapGPA: shared", [put(private, 0)], costs.TDX_CONVERT),
        ]
        if not to_shared:
            halves = [
                ("MapGPA: private, accept", [put(private, 1)], costs.TDX_CONVERT),
                ("PTE: shared bit cleared", [put(pte, Mapping.PRIVATE)], costs.INSTRUCTIONS),
            ]
        halves.append(
            (
                "nr_shared counted, mem_enc_lock released",
                [add(g.nr_shared, 1 if to_shared else -1), add(g.readers, -1)],
                costs.INSTRUCTIONS,
            )
        )
        for i, (text, do, cost) in enumerate(halves, 1):
            to = "old kernel" if i == len(halves) else f"conversion {i + 1}"
            step = op(text, do=do, to=to, cost=cost)
            self.ap.at(f"conversion {i}", *self.interrupted(), step)

    def firmware_loop(self) -> None:
        """In firmware's memory, with its own page tables: what N takes is none of its own."""
        cpu, g = self.flow.cpu, self.flow.g
        mine = [put(g.command, Command.NONE), put(cpu.addressed, 0)]
        for_me = cpu.addressed == 1
        self.ap.phase("mailbox")
        self.ap.at(
            "mailbox",
            op(
                "mailbox: TEST is for this CPU: cleared",
                when=[for_me, g.command == Command.TEST],
                do=mine,
                to=".",
            ),
            op(
                "mailbox: WAKEUP is for this CPU: cleared, jumps to the vector",
                when=[for_me, g.command == Command.WAKEUP],
                do=[*mine, add(cpu.times_up, 1)],
            ),
        )

    # -- the CPU that goes on ----------------------------------------------------------------

    def begin(self) -> None:
        g = self.flow.g
        taken = op(
            "begin: mem_enc_lock taken for writing", when=[g.readers == 0], do=[put(g.closed, 1)]
        )
        busy = op("begin: mem_enc_lock is held by a converter; goes on", when=[g.readers != 0])
        self.boot.at("begin", taken, *([busy] if self.v.crash else []))

    def stop(self) -> None:
        v, g, other, boot = self.v, self.flow.g, self.flow.other, self.boot
        if v.patience == "deaf" and self.n_others:
            text = "a CPU has NMIs blocked for ever"
            boot.at("deaf", op(text, pick=True, do=[put(other.deaf, 1)]))
        gone = bool(v.unplugs and self.n_others)
        how = [put(g.stopping, self.n_others - gone)]
        tell = send_nmi(other) if v.crash else put(other.ipi, 1)
        how.append(each(when(other.dying == 0, tell) if gone else tell))
        text = "panic: NMI" if v.crash else "kexec -e: REBOOT_VECTOR"
        boot.at("stop", op(f"{text} to all other CPUs", do=how, cost=costs.IPI))
        done = op("all other CPUs have reported", when=[g.stopping == 0])
        late = op(
            "1 s is over: goes on with CPUs still running",
            when=[g.stopping != 0],
            after=costs.CRASH_TIMEOUT,
        )
        boot.at("stopping", done, *([late] if v.patience != "all" else []))
        if v.test:
            self.test_mailbox()

    def unplug(self) -> None:
        """cpu_die: one CPU goes offline; TEST says whether it has arrived in firmware's loop."""
        boot, g, other = self.boot, self.flow.g, self.flow.other
        if not self.n_others:
            return
        boot.at("unplug", op("a CPU is taken offline", pick=True, do=[put(other.dying, 1)]))
        dying = [other.dying == 2]
        boot.at(
            "cpu_die",
            op(
                "cpu_die: mailbox: TEST to the CPU",
                pick=True,
                when=dying,
                do=[put(other.addressed, 1), put(g.command, Command.TEST)],
            ),
        )
        boot.at(
            "cpu_die waits",
            op("mailbox: answered, the CPU is dead", when=[g.command == Command.NONE]),
            *(
                [
                    op(
                        "1 s is over: error message, goes on",
                        when=[g.command == Command.TEST],
                        after=costs.S,
                    )
                ]
                if self.v.unplugs == "times out"
                else []
            ),
        )

    def address(self) -> list[Effect]:
        """Write the bound CPU's APIC ID into the mailbox; there is one field for it."""
        other = self.flow.other
        clear = [each(put(other.addressed, 0))] if self.v.unplugs else []
        return [*clear, put(other.addressed, 1)]

    def test_mailbox(self) -> None:
        """Ask each CPU through the mailbox whether it has arrived in firmware's loop."""
        boot, g, other = self.boot, self.flow.g, self.flow.other
        gone = bool(self.v.unplugs and self.n_others)
        online = [other.dying == 0] if gone else []
        self.flow.globals(untested=self.n_others - gone)
        boot.at(
            "test",
            op(
                "mailbox: TEST to a CPU",
                pick=True,
                when=[g.untested != 0, other.tested == 0, *online],
                do=[put(other.tested, 1), *self.address(), put(g.command, Command.TEST)],
            ),
            op("all other CPUs are in firmware's loop", when=[g.untested == 0], to="tests done"),
        )
        answered = op(
            "mailbox: answered",
            when=[g.command == Command.NONE],
            do=[add(g.untested, -1)],
            to="test",
        )
        boot.at("testing", answered)
        self.after("tests done")

    def finish(self) -> None:
        """tdx_kexec_finish: what is mapped shared becomes private; the books must agree."""
        g = self.flow.g
        if self.v.loses_bit:
            do = [put(self.pte("buffer"), Mapping.PRIVATE)]
            self.boot.at("bug", op("a bug has cleared the shared bit of a PTE", do=do))
        walk = scaling.tdx_unshare(self.m).parts
        for page in self.names:
            many = page == "buffer"
            look = walk["PTE"] if many else costs.INSTRUCTIONS
            self.unshare(page, look, walk["convert"] if many else costs.TDX_CONVERT)
        self.boot.at("flush", op("finish: TLB flush"))
        agrees = g.found == g.nr_shared
        self.boot.at(
            "account",
            op("finish: as many shared pages as counted", when=[agrees]),
            op(
                "finish: accounting is off: not as many shared pages as counted",
                when=[agrees.negated()],
                do=[put(g.off, 1)],
            ),
        )

    def unshare(self, page: str, look: int, convert_all: int) -> None:
        boot, g, pte, private = self.boot, self.flow.g, self.pte(page), self.private(page)
        is_shared = pte == Mapping.SHARED
        clear = partial(op, f"finish {page}: PTE := 0", do=[put(pte, Mapping.NONE)], cost=look)
        text = f"finish {page}: MapGPA: private, accept"
        convert = partial(op, text, do=[put(private, 1), add(g.found, 1)], cost=convert_all)
        fails = partial(
            op,
            f"finish {page}: MapGPA fails: logged, goes on",
            do=[add(g.found, 1)],
            cost=convert_all,
        )
        skip = op(
            f"finish {page}: not mapped shared, passed over",
            when=[is_shared.negated()],
            to=f"finish {page} done",
            cost=look,
        )
        if self.v.pte_first:
            boot.at(f"finish {page}", clear(when=[is_shared]), skip)
            boot.at(f"convert {page}", convert(), *([fails()] if self.v.refused else []))
        else:
            boot.at(f"finish {page}", convert(when=[is_shared]), skip)
            boot.at(f"clear {page}", clear())
        self.after(f"finish {page} done")

    def after(self, label: str) -> None:
        """A label that stands for the beginning of what comes next."""
        self.boot.at(label, op(label))
        self.ends_of_parts.append(label)

    def relocate(self) -> None:
        text, cost = "relocate_kernel: jumps to the new kernel", costs.RELOCATE
        if self.v.crash:
            text, cost = "jumps to the crash kernel in its reservation", costs.INSTRUCTIONS
        do = [put(self.flow.g.kernel, Kernel.NEW)]
        self.boot.at("relocate", op(text, do=do, cost=cost))

    def use(self) -> None:
        """The next kernel uses memory, or the dump reads it, through private mappings."""
        g = self.flow.g
        for page in self.names if self.v.reads else []:
            private = self.private(page)
            self.boot.at(
                f"use {page}",
                op(f"new kernel: touches the {page} page as private", when=[private == 1]),
                op(
                    f"new kernel: touches the {page} page, which is shared: TD exit",
                    when=[private == 0],
                    do=[put(g.td_exit, 1)],
                    to="ended",
                ),
            )

    def bring_up(self) -> None:
        """The next kernel's WAKEUPs; it waits for each without a timeout."""
        v, boot, g, other = self.v, self.boot, self.flow.g, self.flow.other
        if v.version == 0 and v.hides:
            boot.at(
                "smp", op("new kernel: the mailbox address is 0: one CPU", cost=costs.BOOT_TO_SMP)
            )
        else:
            boot.at("smp", op("new kernel: finds the mailbox in the MADT", cost=costs.BOOT_TO_SMP))
            wake = [put(other.tried, 1), *self.address(), put(g.command, Command.WAKEUP)]
            boot.at(
                "next",
                op(
                    "mailbox: WAKEUP to a CPU",
                    pick=True,
                    when=[g.untried != 0, other.tried == 0],
                    do=wake,
                    to="await",
                ),
                op("smp: all CPUs tried", when=[g.untried == 0], to="up"),
            )
            taken = op(
                "mailbox: the command is taken",
                when=[g.command == Command.NONE],
                do=[add(g.untried, -1)],
                to="next",
            )
            boot.at("await", taken)
        boot.at("up", ends=True)
        boot.at("ended")

    def new_memory(self) -> None:
        """The next kernel uses the old one's memory, whenever it likes; a crash kernel does not."""
        g = self.flow.g
        agent = self.flow.agent("new kernel's memory")
        agent.phase("reuse")
        agent.at(
            "use",
            *(
                op(
                    f"takes the {what}",
                    when=[g.kernel == Kernel.NEW, word == 0],
                    do=[put(word, 1)],
                    to=".",
                    after=costs.MEMORY_REUSE,
                    spread=True,
                )
                for what, word in (
                    ("old kernel's text", g.text_taken),
                    ("identity page table", g.tables_taken),
                )
            ),
            ends=True,
        )

    def build(self) -> Flow:
        self.aps()
        stages: dict[str, Callable[[], None]] = {
            "unplug": self.unplug,
            "begin": self.begin,
            "stop": self.stop,
            "finish": self.finish,
            "relocate": self.relocate,
            "use": self.use,
            "bring up": self.bring_up,
        }
        for stage in self.v.stages:
            self.boot.phase(PHASES[stage])
            stages[stage]()
        pass_over(self.boot, self.ends_of_parts)
        if not self.v.crash:
            self.new_memory()
        return self.flow

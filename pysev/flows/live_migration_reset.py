"""The flow of ``live-migration-reset/*``: the hypervisor's list of shared pages around a kexec.

Theory of operation. To migrate an SEV guest the hypervisor must know of each page whether it is
encrypted: it keeps a list, and the guest tells it of each change by a hypercall, after it has
changed its page table. The next kernel begins with page tables of its own, so the list must be
reset around kexec; and while it is, other CPUs still serve devices, whose buffers are converted. A
call that comes after the reset leaves a stale entry for the next kernel. Each design of April
2021 resets the list in another way or at another time.

A page is a frame of ``pysev.frames``: the guest's page table and the hypervisor's list are two of
its views. There are two: a buffer of a driver, and a page which drivers use as well and which is
the next kernel's ``bss_decrypted``, or lies in the crash kernel's reservation. A conversion is two
steps, page table and hypercall, and a page has one owner at a time.

Sources: kvm list 2021-04 "[PATCH v12 13/13] x86/kvm: Add kexec support for SEV Live Migration" and
its replies (Rutherford, Kalra, 12 to 14 April); Linux arch/x86/kernel/kvm.c (f4495615d76c,
73f1b4fece21), kernel/reboot.c.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from ghcbcore._cffi import lib
from ghcbcore.frame import Op as FrameOp
from ghcbcore.profile import Profile

from .. import costs, scaling
from ..flow import Agent, Effect, Field, Flow, Op, Test, add, each, op, put, when
from ..frames import declare, happen, map_as
from ..layout import Part
from ..machine import Machine

BUFFER, OWN = 0, 1
"""The two pages: a driver's buffer; the page that is the next kernel's ``bss_decrypted``."""

BUSY = 10 * costs.MS
"""``run``: how long the guest is in use before it goes down."""


class Kernel(enum.IntEnum):
    """``g.kernel``: whose page tables the boot CPU uses."""

    OLD = 0
    NEW = 1


class Call(enum.IntEnum):
    """``cpu.ipi``: what another CPU asks for."""

    NONE = 0
    TEARDOWN = 1  # the reboot notifier's call on every CPU
    STOP = 2  # REBOOT_VECTOR, or the crash NMI


@dataclass(frozen=True)
class Design:
    """How the list is reset.

    Attributes
    ----------
    resets : str
        Who resets it while the old kernel goes down: ``cpu0``, ``every`` CPU, the ``last`` one
        to arrive; or ``nobody``.
    switches_off : bool
        Teardown forbids migration by its MSR; the next kernel allows it again.
    mutes : bool
        After the reset the kernel makes no more such calls.
    generations : bool
        Each kernel's calls carry a number, and the hypervisor drops what an older one said or says.
    new_kernel_resets : bool
        The next kernel resets the list in early boot.
    """

    resets: str = "nobody"
    switches_off: bool = False
    mutes: bool = False
    generations: bool = False
    new_kernel_resets: bool = False


@dataclass(frozen=True)
class Condition:
    """What else happens.

    Attributes
    ----------
    device : bool
        Devices stay in use, and convert pages, until ``device_shutdown``, after all teardown.
    straggler : bool
        One CPU does not stop in time, and goes on serving its device while the next kernel runs.
    crash : bool
        A panic, not a kexec: teardown on the crashing CPU alone, nobody shuts devices down.
    efi : bool
        The next kernel asks the firmware whether it may allow migration. A crash kernel has no
        runtime services to ask.
    interrupted : bool
        The reboot notifier's call can interrupt a conversion between its two steps.
    unplug : bool
        No kexec at all: one CPU is taken offline.
    """

    device: bool = False
    straggler: bool = False
    crash: bool = False
    efi: bool = False
    interrupted: bool = False
    unplug: bool = False

    @property
    def allows_again(self) -> bool:
        return not (self.crash and self.efi)


@dataclass(frozen=True)
class Side:
    """One of the two states of a page, in the words of each side."""

    name: str
    told: str
    mapping: int
    listed: int

    @property
    def mapped(self) -> FrameOp:
        return map_as(self.mapping)

    @property
    def noted(self) -> FrameOp:
        return FrameOp(lib.FRAME_OP_LIST, value=self.listed)


SHARED = Side("shared", "decrypted", lib.FRAME_SHARED, lib.FRAME_LISTED_SHARED)
PRIVATE = Side("private", "encrypted", lib.FRAME_PRIVATE, lib.FRAME_LISTED_PRIVATE)
TURNS = ((PRIVATE, SHARED), (SHARED, PRIVATE))
"""The conversions: from, to."""


class LiveMigrationReset:
    """One flow of the family; each method writes one agent's program, or a part of it."""

    def __init__(self, design: Design, condition: Condition, machine: Machine, name: str) -> None:
        self.d, self.c, self.m = design, condition, machine
        self.flow = flow = Flow(name, Profile(guest=lib.GHCB_GUEST_PLAIN))
        start = (PRIVATE.mapped, PRIVATE.noted)
        self.pages = declare(flow, "page", 2, start=start, where=self._where)
        flow.globals(kernel=Kernel.OLD, allowed=1, reset=0, told=0, busy_0=0, busy_1=0, answer=0)
        flow.globals(waiting=0, stopping=0)
        flow.per_cpu(ipi=Call.NONE)
        if condition.device:
            flow.globals(devices=1)
        else:
            flow.per_cpu(down=0)
        if design.resets == "last":
            flow.globals(left=machine.n_cpus)
        if design.mutes:
            flow.globals(muted=0)
        if design.generations:
            flow.globals(generation=1, ignored=0)
        flow.name_values("kernel", Kernel)
        flow.name_values("ipi", Call)
        self.reset_cost = scaling.migration_reset(machine).ns
        self.boot = flow.agent("boot CPU")
        self.ap = flow.agent("AP", per_cpu=True)

    def _where(self, machine: Machine) -> list[tuple[int, int]]:
        """What the frames stand for in a large memory: bounce buffers, the next kernel's image."""
        parts = (Part.SWIOTLB, Part.CRASH if self.c.crash else Part.NEW_KERNEL)
        regions = [machine.layout[part] for part in parts]
        return [(r.start >> 12, r.size_bytes >> 12) for r in regions]

    # -- one page ----------------------------------------------------------------------------

    def busy(self, page: int) -> Field:
        """A driver is between the two steps of a conversion of this page."""
        return (self.flow.g.busy_0, self.flow.g.busy_1)[page]

    def is_mapped(self, page: int, side: Side) -> Test:
        width, shift = lib.FRAME_MAPPING_WIDTH, lib.FRAME_MAPPING_SHIFT
        word = self.pages.words[page][0]
        return (word & ((1 << width) - 1) << shift) == side.mapping << shift

    def map(self, page: int, what: FrameOp) -> Effect:
        return happen(self.pages, page, what, self.flow.g.answer)

    def note(self, page: int, side: Side) -> Effect:
        """The hypervisor notes what a call says, whoever it comes from."""
        return happen(self.pages, page, side.noted, self.flow.g.answer)

    def tell(self, page: int, side: Side) -> Effect:
        """A call of the old kernel; with generations an old one is dropped."""
        if not self.d.generations:
            return self.note(page, side)
        g = self.flow.g
        return when(g.generation == 1, self.note(page, side), otherwise=[put(g.ignored, 1)])

    def requests(self, may: list[Test], at: str) -> list[Op]:
        """A driver's conversions begin: the page table."""
        return [
            op(
                f"device request: page {page} to {to.name}: page table",
                when=[*may, self.busy(page) == 0, self.is_mapped(page, before)],
                do=[self.map(page, to.mapped), put(self.busy(page), 1)],
                to=f"{at}: page {page} {to.name}",
                cost=costs.PAGE_TABLE_CHANGE,
                after=costs.DEVICE_REQUEST,
                spread=True,
            )
            for page in self.convertible
            for before, to in TURNS
        ]

    @property
    def convertible(self) -> tuple[int, ...]:
        """Pages of the old kernel's drivers; none of them is in the crash kernel's reservation."""
        return (BUFFER,) if self.c.crash else (BUFFER, OWN)

    def announcements(self, agent: Agent, at: str, *interrupts: Op) -> None:
        """And end, each at a label of its own: the hypercall, back to ``at``.

        ``interrupts``: what may happen between the steps.
        """
        g = self.flow.g
        for page in self.convertible:
            free = put(self.busy(page), 0)
            if self.c.straggler:  # the word is the old kernel's
                free = when(g.kernel == Kernel.OLD, free)
            for _, to in TURNS:
                here = f"{at}: page {page} {to.name}"
                call = op(
                    f"hypercall: page {page} is {to.told}",
                    do=[self.tell(page, to), free],
                    to=at,
                    cost=costs.HYPERCALL_USER,
                )
                if self.d.mutes:
                    muted = op("muted: no hypercall", when=[g.muted == 1], do=[free], to=at)
                    goes_on = op("not muted yet", when=[g.muted == 0])
                    agent.at(here, muted, goes_on, *interrupts)
                    here += ", call"
                agent.at(here, call, *interrupts)

    # -- teardown ----------------------------------------------------------------------------

    def teardown(self, who: str, first: bool, *more: Effect, to: str | None = None) -> Op:
        """PV teardown on one CPU; ``first`` is CPU 0, in a crash the crashing one."""
        d, g = self.d, self.flow.g
        text, do, cost = [f"{who}: PV teardown"], list(more), costs.IPI
        encrypted = [self.tell(page, PRIVATE) for page in (BUFFER, OWN)]
        reset = [*encrypted, put(g.reset, 1)]
        if d.resets == "every" or (d.resets == "cpu0" and first):
            text.append("hypercalls: all RAM is encrypted")
            do += reset
            cost += self.reset_cost
        if d.resets == "last":
            text.append("the last CPU: hypercalls: all RAM is encrypted")
            do += [add(g.left, -1), when(g.left == 0, *reset)]
        if d.mutes and first:
            text.append("mutes later calls")
            do.append(put(g.muted, 1))
        if d.switches_off:
            text.append("MSR: migration off")
            do.append(put(g.allowed, 0))
        tests = [] if first else [self.flow.cpu.ipi == Call.TEARDOWN]
        return op("; ".join(text), when=tests, do=do, to=to, cost=cost)

    # -- the APs -----------------------------------------------------------------------------

    def aps(self) -> None:
        """A CPU serves its device, tears down when asked, and stops when asked."""
        g, cpu, ap, serves = self.flow.g, self.flow.cpu, self.ap, "serves its device"
        may = [g.kernel == Kernel.OLD]
        may.append(g.devices == 1 if self.c.device else cpu.down == 0)
        if self.c.unplug:
            may.append(g.told == 0)
        text = "crash NMI: stopped" if self.c.crash else "REBOOT_VECTOR: stop_this_cpu"
        stop = op(
            text,
            when=[cpu.ipi == Call.STOP],
            do=[put(cpu.ipi, Call.NONE), add(g.stopping, -1)],
            to="stopped",
            cost=costs.IPI,
        )
        ops = [*self.requests(may, serves), stop]
        interrupts = [stop]
        if not self.c.crash:
            done = [put(cpu.ipi, Call.NONE), add(g.waiting, -1)]
            if not self.c.device:
                done.append(put(cpu.down, 1))
            who = "cpu_down" if self.c.unplug else "reboot notifier"
            asked = self.teardown(who, False, *done, to=".")
            ops.append(asked)
            if self.c.interrupted:
                interrupts.append(asked)
        if self.c.straggler:
            ops += self.late_calls()
        ap.phase("serve devices")
        ap.at(serves, *ops, ends=self.c.straggler or self.c.unplug)
        self.announcements(ap, serves, *interrupts)
        ap.phase("stopped")
        ap.at("stopped", ends=True)
        if self.c.straggler:
            ap.at("still runs", ends=True)

    def late_calls(self) -> list[Op]:
        """Not stopped in time: a conversion in the old kernel's page tables, a call to the host."""
        g, cpu = self.flow.g, self.flow.cpu
        muted = [g.muted == 0] if self.d.mutes else []
        return [
            op(
                f"not stopped: device request: hypercall: page {page} is {to.told}",
                when=[g.kernel == Kernel.NEW, cpu.ipi == Call.STOP, *muted],
                do=[self.tell(page, to)],
                to="still runs",
                cost=costs.HYPERCALL_USER,
                after=costs.DEVICE_REQUEST,
                spread=True,
            )
            for page in self.convertible
            for _, to in TURNS
        ]

    # -- the boot CPU ------------------------------------------------------------------------

    def go_down(self) -> None:
        """kernel_restart_prepare: notifiers on every CPU, then the devices, then the CPUs."""
        boot, g, other = self.boot, self.flow.g, self.flow.other
        boot.phase("in use")
        boot.at(
            "kexec",
            op(
                "kexec -e: reboot notifiers: PV teardown asked of every CPU",
                do=[put(g.waiting, self.m.n_cpus - 1), each(put(other.ipi, Call.TEARDOWN))],
                cost=costs.IPI,
                after=BUSY,
            ),
        )
        boot.phase("PV teardown")
        boot.at("teardown", self.teardown("CPU 0", True))
        boot.at("notifiers", op("all CPUs have torn down", when=[g.waiting == 0]))
        if self.c.device:
            shut = op(
                "device_shutdown: no more requests",
                do=[put(g.devices, 0)],
                to="stop",
                after=costs.DEVICE_SHUTDOWN,
            )
            boot.phase("shut devices down")
            at = "devices still live"
            boot.at(at, shut, *self.requests([g.devices == 1], at))
            self.announcements(boot, at)

    def take_offline(self) -> None:
        """cpu_down of any one CPU: its PV teardown is that of a shutdown."""
        boot, g, other = self.boot, self.flow.g, self.flow.other
        boot.phase("in use")
        boot.at(
            "in use",
            op(
                "cpu_down of another CPU",
                pick=True,
                do=[put(g.waiting, 1), put(other.ipi, Call.TEARDOWN)],
                after=BUSY,
                to="unplug",
            ),
            ends=True,
        )
        boot.phase("take a CPU offline")
        over = [put(g.told, 1)]  # what follows is not looked at: no more requests
        boot.at("unplug", op("the CPU has torn down: offline", when=[g.waiting == 0], do=over))
        boot.at("up", ends=True)

    def panic(self) -> None:
        self.boot.phase("in use, then PV teardown")
        teardown = self.teardown("panic: crashing CPU", True, to="stop")
        self.boot.at("panic", replace(teardown, after=BUSY))

    def stop_others(self) -> None:
        boot, g, other = self.boot, self.flow.g, self.flow.other
        boot.phase("stop other CPUs")
        text = "crash NMI to all other CPUs" if self.c.crash else "REBOOT_VECTOR to all other CPUs"
        ask = [put(g.stopping, self.m.n_cpus - 1), each(put(other.ipi, Call.STOP))]
        boot.at("stop", op(text, do=ask, cost=costs.IPI))
        stopped = op("all other CPUs are stopped", when=[g.stopping == 0], to="relocate")
        late = op(
            "1 s is over, no NMI is sent: goes on although a CPU still runs",
            when=[g.stopping == 1],
            to="relocate",
            after=costs.STOP_TIMEOUT,
        )
        boot.at("stopping", stopped, *([late] if self.c.straggler else []))

    def new_kernel(self) -> None:
        """The next kernel: page tables of its own, what it tells the host, and when."""
        d, boot, g = self.d, self.boot, self.flow.g
        boot.phase("relocate")
        unmapped = map_as(lib.FRAME_UNMAPPED)
        boot.at(
            "relocate",
            op(
                f"the {'crash' if self.c.crash else 'new'} kernel boots, with its own page tables",
                do=[
                    put(g.kernel, Kernel.NEW),
                    self.map(BUFFER, unmapped if self.c.crash else PRIVATE.mapped),
                    self.map(OWN, SHARED.mapped),
                    put(g.busy_0, 0),
                    put(g.busy_1, 0),
                ],
                cost=costs.RELOCATE,
            ),
        )
        boot.phase("tell the hypervisor what is shared")
        if d.new_kernel_resets:
            ram = (OWN,) if self.c.crash else (BUFFER, OWN)
            text = "early boot: hypercalls: all RAM of its E820 map is encrypted"
            boot.at(
                "early boot",
                op(text, do=[self.note(page, PRIVATE) for page in ram], cost=self.reset_cost),
            )
        begin: list[Effect] = []
        if d.generations:  # what an older generation has said does not count any more
            begin = [put(g.generation, 2), self.note(BUFFER, PRIVATE), self.note(OWN, PRIVATE)]
        text = "early boot: hypercall: bss_decrypted is decrypted"
        if d.generations:
            text += ", generation 2"
        tell = [*begin, self.note(OWN, SHARED), put(g.told, 1)]
        boot.at("bss_decrypted", op(text, do=tell, cost=costs.HYPERCALL_USER))
        boot.phase("boot the new kernel")
        if d.switches_off:
            allow = op("MSR: migration allowed", do=[put(g.allowed, 1)], cost=costs.BOOT_TO_SMP)
            if not self.c.allows_again:
                allow = op("no EFI runtime services: migration stays off", cost=costs.BOOT_TO_SMP)
            boot.at("late_initcall", allow)
        boot.phase("dump")
        if self.c.crash:
            text = "/proc/vmcore: maps the old kernel's memory, C-bit set"
            boot.at("vmcore", op(text, do=[self.map(BUFFER, PRIVATE.mapped)]))
        boot.at("up", ends=True)

    def build(self) -> Flow:
        self.aps()
        if self.c.unplug:
            self.take_offline()
            return self.flow
        if self.c.crash:
            self.panic()
        else:
            self.go_down()
        self.stop_others()
        self.new_kernel()
        return self.flow

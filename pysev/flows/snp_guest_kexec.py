"""The flow of ``snp-guest-kexec/*``: an SNP guest takes its memory back and jumps.

Theory of operation. Memory that the old kernel shared with the hypervisor must be private and
validated again when the next kernel, or the dump of a crash, touches it: that one maps everything
private, and what it meets there is a #VC (not validated) or a nested page fault without end. So the
CPU that goes on (the boot CPU; of a crash, whichever crashed) stops conversions (``begin``), stops
the others, and walks its page table: what is mapped shared becomes private (``finish``: F1 to F6
of the fact sheet). What the page table does not show, the walk does not find.

The stages stand in a list, in the order in which they are executed. Mainline's order is ``NORMAL``
and ``CRASH``; a variant with two stages swapped is what somebody argued against. A frame stands for
all that are alike: one for the pages below the leaf with the GHCBs, three for that leaf (what is in
front of the GHCB, the GHCB, the rest), one for a page that some CPU converts just then. The VMSA of
the other CPU that is destroyed last, whichever that is, is one frame too.

Sources: Linux arch/x86/coco/sev/core.c: 3074152e56c9 (snp_kexec_begin, snp_kexec_finish),
82b7f88f2316, d2062cc1b1c3; arch/x86/kernel/{reboot,crash,process}.c.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ghcbcore._cffi import lib
from ghcbcore.frame import Op as FrameOp
from ghcbcore.profile import Profile

from .. import costs, scaling
from ..flow import Flow, Op, add, each, op, put, when
from ..frames import ASID, happen, map_as, pvalidate, rmpupdate
from ..layout import Part
from ..machine import Machine
from ..scaling import Work
from ..words import ask_msr, create_ap, destroy_ap, halt, send_nmi
from .snp_guest_frames import KexecFrames
from .snp_guest_pages import Pages, Piece, is_mapped, pass_over
from .snp_guest_variant import CRASH, NORMAL, TO_PRIVATE, TO_SHARED, Kernel, Variant, swapped

__all__ = ["CRASH", "NORMAL", "Kernel", "SnpGuestKexec", "Variant", "swapped"]


PAGES_2M = lib.FRAME_REGION

PHASES = {
    "begin": "stop conversions",
    "stop": "stop other CPUs",
    "destroy": "F1 shut the APs down",
    "walk": "F2 unshare the direct map",
    "bss": "F3 unshare bss_decrypted",
    "flush": "F4 flush TLBs",
    "close": "F5 the MSR protocol from here",
    "ghcbs": "F6 unshare the GHCBs",
    "console": "print",
    "relocate": "relocate",
    "use": "use memory again",
    "read": "read the dump",
    "bring up": "bring CPUs up",
}
"""What ``run`` calls the stages in its account of time."""


class SnpGuestKexec:
    """One flow of the family; each method writes an agent's program or a stage of the boot CPU."""

    def __init__(self, variant: Variant, machine: Machine, name: str) -> None:
        self.v = variant
        self.m = machine
        self.n_others = n_others = machine.n_cpus - 1
        self.on_ap = variant.on_ap and n_others > 0
        self.flow = flow = Flow(name, Profile(guest=lib.GHCB_GUEST_SNP))
        flow.start(registered_gpa=machine.ghcb_gpa)
        n_vmsas = n_others - 1 if self.on_ap else n_others  # in RAM: all but the BSP's
        flow.globals(kernel=Kernel.OLD, closed=0, warned=0, readers=0, stopping=0, offline=0)
        flow.globals(vmsas=n_vmsas, untried=n_others)
        if variant.cut_short:
            flow.globals(cuts=1)
        flow.per_cpu(ipi=0, tagged=1, tried=0, up=0)
        flow.name_values("kernel", Kernel)
        flow.only_while(flow.vm.event == lib.GHCB_EVENT_NONE)
        self.ends_of_parts: list[str] = []
        self.pages = Pages(flow)
        self.boot = flow.agent("boot CPU")
        self.ap = flow.agent(
            "AP", per_cpu=True, only_while=[flow.cpu.mp_state == lib.GHCB_MP_RUNNABLE]
        )
        self.frames = KexecFrames(
            flow,
            converts=variant.converts,
            n_vmsas=n_vmsas,
            has_others=n_others > 0,
            on_ap=self.on_ap,
        )

    # -- the other CPUs ----------------------------------------------------------------------

    def interrupted(self) -> list[Op]:
        """What a CPU does when it is told to stop, wherever it is."""
        cpu, g = self.flow.cpu, self.flow.g
        if self.v.crash:
            return [
                op(
                    "crash NMI: saves its registers, counts down, HLT",
                    when=[cpu.nmi_pending == 1],
                    do=[put(cpu.nmi_pending, 0), add(g.stopping, -1), halt(cpu)],
                    to="halted",
                    cost=costs.IPI,
                )
            ]
        return [
            op(
                "REBOOT_VECTOR interrupt: stop_this_cpu, clears its bit, HLT",
                when=[cpu.ipi == 1],
                do=[put(cpu.ipi, 0), add(g.stopping, -1), halt(cpu)],
                to="halted",
                cost=costs.IPI,
            )
        ]

    def aps(self) -> None:
        v, g, ap, cpu = self.v, self.flow.g, self.ap, self.flow.cpu
        work: list[Op] = []
        if self.frames.moving is not None:
            work += self.starts_conversion()
        if v.allocates:
            self.flow.globals(zone_lock=0, allocations=1)
            work.append(
                op(
                    "takes the page allocator's lock",
                    when=[g.allocations == 1],
                    do=[put(g.allocations, 0), put(g.zone_lock, 1)],
                    to="allocates",
                )
            )
        if v.uses_buffer:
            self.flow.globals(transfers=1)
            do = [
                put(g.transfers, 0),
                *self.pages.access(self.frames.below, lib.FRAME_ACCESS_WRITE),
            ]
            work.append(op("writes to a shared buffer", when=[g.transfers == 1], do=do, to="."))
        ap.phase("old kernel")
        ap.at("old kernel", *self.interrupted(), *work, ends=v.crash and v.impatient)
        if self.frames.moving is not None:
            self.conversion(self.frames.moving)
        if v.allocates:
            release = op("releases the lock", do=[put(g.zone_lock, 0)], to="old kernel")
            ap.at("allocates", *self.interrupted(), release)
        ap.phase("halted")
        ap.at(
            "halted",
            op(
                "starts in the new kernel",
                when=[cpu.entry == lib.GHCB_ENTRY_VMSA],
                do=[put(cpu.entry, lib.GHCB_ENTRY_RESUME), put(cpu.up, 1)],
                cost=costs.HYPERVISOR_WAKE,
            ),
            ends=v.crash,
        )
        if v.wakes:
            self.flow.globals(foreign=0)
            behind = [cpu.entry == lib.GHCB_ENTRY_RESUME]
            old, new = g.kernel == Kernel.OLD, g.kernel == Kernel.NEW
            again = op(
                "runs on behind HLT: back to HLT", when=[*behind, old], do=[halt(cpu)], to="."
            )
            foreign = "FOREIGN FETCH: runs on behind HLT, in memory of the new kernel"
            lost = op(foreign, when=[*behind, new], do=[put(g.foreign, 1)], to="dead")
            ap.add("halted", again, lost)
        ap.at("new kernel", ends=True)
        if v.wakes:
            ap.at("dead")

    def starts_conversion(self) -> list[Op]:
        g = self.flow.g
        self.flow.globals(conversions=1)
        begin = [put(g.conversions, 0), add(g.readers, 1)]
        wanted = g.conversions == 1
        return [
            op(
                f"converts a page {self.v.converts}: mem_enc_lock taken for reading",
                when=[wanted, g.closed == 0],
                do=begin,
                to="conversion 1",
            ),
            op(
                "converts a page: mem_enc_lock is taken, -EBUSY",
                when=[wanted, g.closed == 1],
                do=[put(g.conversions, 0)],
                to=".",
            ),
        ]

    def conversion(self, page: Piece) -> None:
        """The parts of a conversion; the CPU can be stopped before each of them."""
        parts = TO_SHARED if self.v.converts == "to shared" else TO_PRIVATE
        for i, (text, what) in enumerate(parts, 1):
            last = i == len(parts)
            do = self.pages.must(page, what)
            if last:
                text += ", mem_enc_lock released"
                do.append(add(self.flow.g.readers, -1))
            to = "old kernel" if last else f"conversion {i + 1}"
            cost = costs.VMGEXIT if "VMGEXIT" in text else costs.PVALIDATE
            self.ap.at(f"conversion {i}", *self.interrupted(), op(text, do=do, to=to, cost=cost))

    # -- the CPU that goes on ----------------------------------------------------------------

    def begin(self) -> None:
        """mem_enc_lock for writing: a normal kexec waits for converters, a crash only tries."""
        g = self.flow.g
        nobody = g.readers == 0
        taken = op(
            "begin: mem_enc_lock taken for writing, conversions get -EBUSY",
            when=[nobody],
            do=[put(g.closed, 1)],
        )
        busy = op(
            "begin: mem_enc_lock is held by a converter; warns and goes on",
            when=[nobody.negated()],
            do=[put(g.warned, 1)],
        )
        self.boot.at("begin", taken, *([busy] if self.v.crash else []))

    def stop(self) -> None:
        g, other = self.flow.g, self.flow.other
        count = put(g.stopping, self.n_others)
        if self.v.crash:
            text, how = "panic: NMI to all other CPUs", [count, each(send_nmi(other))]
        else:
            text = "kexec -e: REBOOT_VECTOR to all other CPUs"
            how = [count, each(put(other.ipi, 1))]
        if self.on_ap:
            self.boot.at(
                "which is the BSP",
                op("the crash is on an AP, the BSP is", pick=True, do=[put(other.tagged, 0)]),
            )
        self.boot.at("stop", op(text, do=how, cost=costs.IPI))
        late = op(
            "1 s is over: goes on with CPUs still running",
            when=[g.stopping != 0],
            after=costs.CRASH_TIMEOUT,
        )
        done = op("all other CPUs have reported", when=[g.stopping == 0])
        self.boot.at("stopping", done, *([late] if self.v.impatient else []))

    def destroy(self) -> None:
        """F1: shutdown_all_aps."""
        v, g, other = self.v, self.flow.g, self.flow.other
        if self.frames.own_vmsa is not None and v.offline:
            do = [put(g.offline, 1)]
            self.boot.at("F1 own", op("F1 own VMSA: PageOffline, keeps its tag", do=do))
        if self.frames.vmsa is None:
            return
        last = g.vmsas == 1
        granted = self.flow.boot.sw_exit_info_1 == lib.GHCB_REPLY_OK
        leave = when(
            [last, granted], *self.pages.must(self.frames.vmsa, FrameOp(lib.FRAME_OP_VMEXIT))
        )
        wanted = [g.vmsas != 0, other.tagged == 1]
        exits = self.pages.exits(
            "F1 VMGEXIT {}: AP_CREATION destroy",
            self.frames.ghcb,
            [put(other.tagged, 2), *destroy_ap(self.flow.boot, other, self.m.ghcb_gpa), leave],
            cost=costs.AP_DESTROY,
            tests=wanted,
            pick=True,
        )
        if v.refused:
            refused = "F1 VMGEXIT by GHCB: AP_CREATION destroy: the hypervisor refuses"
            exits.append(op(refused, when=[*wanted, last], do=[put(other.tagged, 2)], pick=True))
        untagged = FrameOp(lib.FRAME_OP_RMPADJUST, asid=ASID, target=1)
        adjust = op(
            "F1 RMPADJUST: VMSA tag off",
            pick=True,
            when=[other.tagged == 2],
            do=[
                put(other.tagged, 0),
                when(last, happen(*self.frames.vmsa, untagged, g.answer)),
                add(g.vmsas, -1),
            ],
            cost=costs.RMPADJUST,
            to="F1 free" if v.allocates and v.frees else "F1",
        )
        after = "F1 done"
        self.boot.at("F1", op("F1 all VMSAs done", when=[g.vmsas == 0], to=after), *exits)
        self.boot.at("F1 adjust", adjust)
        if v.allocates and v.frees:
            free = op("F1 free_page: takes the allocator's lock", when=[g.zone_lock == 0], to="F1")
            self.boot.at("F1 free", free)
        self.after(after)

    def after(self, label: str) -> None:
        """A label that stands for the beginning of what comes next."""
        self.boot.at(label, op(label))
        self.ends_of_parts.append(label)

    def unshare(self, step: str, name: str, piece: Piece, work: Work | None = None) -> None:
        """One leaf of 4 KiB: PTE, PSC, PVALIDATE; a leaf that is private already is passed over.

        ``work``: of all leaves for which it stands, where they are many.
        """
        pages, boot = self.pages, self.boot
        parts = work.parts if work else {}
        cost = parts.get("PTE", costs.INSTRUCTIONS)
        psc_cost = parts.get("PSC", costs.VMGEXIT)
        labels = [f"{step} {name}: {part}" for part in ("PTE", "PSC", "PVALIDATE", "done")]
        is_shared = is_mapped(piece, lib.FRAME_SHARED)
        psc = partial(
            pages.exits,
            f"{step} {name}: VMGEXIT {{}}: PSC to private",
            self.frames.ghcb,
            pages.psc(piece, True),
            cost=psc_cost,
            by_msr=psc_cost,
        )
        cut = self.cut_short(f"{step} {name}")
        pte = partial(
            op, f"{step} {name}: C-bit set in its PTE", do=pages.to_private_pte(piece), cost=cost
        )
        skip = op(
            f"{step} {name}: mapped private, passed over",
            when=[is_shared.negated()],
            to=labels[3],
            cost=cost,
        )
        if self.v.pte_first:
            boot.at(labels[0], pte(when=[is_shared]), skip)
            boot.at(labels[1], *psc(), *cut)
        else:
            boot.at(labels[0], *psc(tests=[is_shared]), skip)
        text, validate_cost = f"{step} {name}: PVALIDATE", parts.get("PVALIDATE")
        boot.at(labels[2], *pages.validate(text, [piece], cost=validate_cost))
        if not self.v.pte_first:
            boot.at(labels[1], pte())
        self.after(labels[3])

    def cut_short(self, what: str) -> list[Op]:
        """Once the hypervisor returns before the descriptor's entry is done; the cursor says so."""
        g, again = self.flow.g, self.v.cut_short == "asks again"
        if not self.v.cut_short:
            return []
        then = "asks again" if again else "goes on"
        by_ghcb = [g.by_ghcb == 1, is_mapped(self.frames.ghcb, lib.FRAME_SHARED), g.cuts == 1]
        text = f"{what}: VMGEXIT by GHCB: PSC comes back undone; {then}"
        do = [put(g.cuts, 0)]
        return [op(text, when=by_ghcb, do=do, cost=costs.VMGEXIT, to="." if again else None)]

    def walk(self) -> None:
        """F2: every leaf that is mapped shared and holds no GHCB."""
        work = scaling.unshare(self.m)
        if self.v.strict:
            self.unshare("F2", "page below the GHCBs", self.frames.below, work)
        else:
            text = "F2 page below the GHCBs: ghcb <= its end, taken for the leaf of a GHCB"
            self.boot.at("F2 below", op(text, cost=work.ns))
        if self.frames.moving is not None:
            self.unshare("F2", "page that was being converted", self.frames.moving)
        if self.frames.others_ghcb is not None and not self.v.others_last:
            ghcbs = scaling.unshare_ghcbs(self.m)
            self.unshare("F2", "GHCBs of the other CPUs", self.frames.others_ghcb, ghcbs)

    def bss(self) -> None:
        self.unshare("F3", "bss_decrypted", self.frames.decrypted)

    def flush(self) -> None:
        self.boot.at("F4", op("F4 global TLB flush"))

    def close(self) -> None:
        do = [put(self.flow.g.by_ghcb, 0)]
        self.boot.at("F5", op("F5 boot_ghcb := NULL: page changes go by the MSR protocol", do=do))

    def ghcbs(self) -> None:
        """F6: the leaf that holds the GHCB, all of it, 4 KiB at a time; those of other CPUs."""
        pages, boot = self.pages, self.boot
        pieces = self.frames.leaf if self.v.leaf_base else self.frames.leaf[1:]
        pte = pages.to_private_pte(self.frames.leaf[0], leaf=lib.FRAME_LEAF_2M)
        boot.at("F6 PTE", op("F6 leaf of the GHCB: C-bit set in its PTE", do=pte))
        boot.at(
            "F6 PSC",
            *pages.exits(
                "F6 leaf of the GHCB: VMGEXIT {}: PSC to private",
                self.frames.ghcb,
                [e for piece in pieces for e in pages.psc(piece, True)],
                by_msr=PAGES_2M * costs.VMGEXIT,
            ),
        )
        boot.at(
            "F6 PVALIDATE",
            *pages.validate(
                "F6 leaf of the GHCB: PVALIDATE", pieces, cost=PAGES_2M * costs.PVALIDATE
            ),
        )
        if self.frames.others_ghcb is not None and self.v.others_last:
            ghcbs = scaling.unshare_ghcbs(self.m)
            self.unshare("F6", "GHCBs of the other CPUs", self.frames.others_ghcb, ghcbs)

    def console(self) -> None:
        """A kmsg dumper that prints through a port: #VC, IOIO by GHCB."""
        text = "console: VMGEXIT {}: IOIO of a port"
        self.boot.at("console", *self.pages.exits(text, self.frames.ghcb, []))

    def relocate(self) -> None:
        text = "relocate_kernel: jumps to the new kernel"
        cost = costs.RELOCATE
        if self.v.crash:
            text, cost = (
                "jumps to the crash kernel in its reservation, nr_cpus=1",
                costs.INSTRUCTIONS,
            )
        do = [put(self.flow.g.kernel, Kernel.NEW)]
        self.boot.at("relocate", op(text, do=do, cost=cost))

    def touch(self, verb: str, flags: int) -> None:
        """The next kernel touches every page; a former VMSA is a page like others."""
        dies = self.pages.dies("FAULT in the new kernel: #VC 0x404 or a nested fault without end")
        with self.boot.under(dies):
            for i, (name, piece) in enumerate(self.frames.used):
                do = self.pages.access_private(piece, flags)
                self.boot.at(f"{verb} {i}", op(f"new kernel: {verb} {name}", do=do))
            self.boot.at(f"{verb} done", op(f"new kernel: {verb} all of it"))

    def use(self) -> None:
        """The new kernel's allocator hands any page out, as private memory."""
        self.touch("writes to", lib.FRAME_ACCESS_WRITE)

    def read(self) -> None:
        """The reader of /proc/vmcore maps old memory private, page by page."""
        v, g, boot = self.v, self.flow.g, self.boot
        self.touch("reads", 0)
        if self.frames.own_vmsa is not None:
            do = self.pages.access_private(self.frames.own_vmsa)
            text = "new kernel: reads the VMSA page of the CPU that it runs on"
            reads = op(text, when=[g.offline == 0] if v.honours_offline else [], do=do)
            leaves = op("new kernel: leaves a PageOffline page out", when=[g.offline == 1])
            boot.at("own VMSA", reads, *([leaves] if v.honours_offline else []))
            with boot.under(self.pages.dies("FAULT in the new kernel: a nested fault without end")):
                boot.at("own VMSA done", op("new kernel: the dump is written"))
        boot.at("up", ends=True)

    def bring_up(self) -> None:
        """The new kernel's own GHCB by the MSR protocol, then AP_CREATION for each CPU."""
        g, other, pages, boot = self.flow.g, self.flow.other, self.pages, self.boot
        do = [
            e
            for what in (pvalidate(False), rmpupdate(False), map_as(lib.FRAME_SHARED))
            for e in pages.must(self.frames.decrypted, what)
        ]
        boot_cpu, gpa = self.flow.boot, self.m.layout[Part.NEW_KERNEL].start
        do += ask_msr(boot_cpu, lib.GHCB_MSR_REG_GPA_REQ | gpa)
        text = "new kernel: its GHCB becomes shared by the MSR protocol and is registered"
        boot.at("own GHCB", op(text, do=[*do, put(g.by_ghcb, 1)], cost=costs.BOOT_TO_SMP))
        boot.at(
            "next",
            *pages.exits(
                "new kernel: VMGEXIT {}: AP_CREATION create",
                self.frames.decrypted,
                [put(other.tried, 1), *create_ap(boot_cpu, other, gpa, gpa + lib.GHCB_PAGE_SIZE)],
                tests=[g.untried != 0, other.tried == 0],
                pick=True,
            ),
            op("smp: all CPUs tried", when=[g.untried == 0], to="up"),
        )
        up = op(
            "a CPU is up",
            pick=True,
            when=[other.up == 1, other.tried == 1],
            do=[put(other.tried, 2), add(g.untried, -1)],
            to="next",
        )
        boot.at("await", up)
        boot.at("up", ends=True)

    def user_space(self) -> None:
        """K13: KVM_SET_MP_STATE of a vCPU whose VMSA the guest has taken away."""
        flow, other = self.flow, self.flow.other
        flow.per_cpu(invalid=0)
        agent = flow.agent("user space")
        gone = other.vmsa == lib.GHCB_VMSA_NONE
        if self.v.resurrects == "runs":
            text = "KVM_SET_MP_STATE: runnable; KVM_RUN: VMRUN with an invalid VMSA"
            do = [put(other.invalid, 1)]
        else:
            text, do = "KVM_SET_MP_STATE: runnable; KVM_RUN: KVM refuses, there is no VMSA", []
        agent.phase("make it runnable")
        agent.at("destroyed", op(text, pick=True, when=[gone], do=do), ends=True)
        agent.at("tried", ends=True)

    def hypervisor(self) -> None:
        """Lets one halted vCPU run on although nothing has come for it."""
        other = self.flow.other
        asleep = [other.mp_state == lib.GHCB_MP_HALTED, other.vmsa == lib.GHCB_VMSA_LAUNCH]
        agent = self.flow.agent("hypervisor")
        run = [put(other.mp_state, lib.GHCB_MP_RUNNABLE)]
        wake = op("lets a halted vCPU run on", pick=True, when=asleep, do=run, after=costs.MS)
        agent.phase("wake")
        agent.at("any time", wake, ends=True)
        agent.at("done", ends=True)

    def build(self) -> Flow:
        self.aps()
        if self.v.wakes:
            self.hypervisor()
        if self.v.resurrects:
            self.user_space()
        stages: dict[str, Callable[[], None]] = {
            "begin": self.begin,
            "stop": self.stop,
            "destroy": self.destroy,
            "walk": self.walk,
            "bss": self.bss,
            "flush": self.flush,
            "close": self.close,
            "ghcbs": self.ghcbs,
            "console": self.console,
            "relocate": self.relocate,
            "use": self.use,
            "read": self.read,
            "bring up": self.bring_up,
        }
        for stage in self.v.stages:
            self.boot.phase(PHASES[stage])
            stages[stage]()
        self.boot.at("dead")
        pass_over(self.boot, self.ends_of_parts)
        return self.flow

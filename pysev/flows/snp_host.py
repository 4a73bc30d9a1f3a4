"""What the flows of an SNP host that goes down have in common: guests, the PSP, the IOMMU.

Theory of operation. Firmware lets SNP go only if every ASID is CLEAN on every CCX. A guest's ASID
is IN_USE; SNP_DECOMMISSION makes it DIRTY and erases each core's note that it has executed WBINVD;
DF_FLUSH makes it CLEAN once all cores have done so again. As long as SNP is on the IOMMU ignores
writes to its base registers, and the pages it writes to are firmware's.

The firmware is ``pysev.psp``: each command of a flow is answered by the core's rules. KVM runs
guests on every CPU but the one that goes down. A command's answer and what the kernel does about it
are one operation, as in the mails.

Sources: AMD-ASPFW sev_mcmd.c (August 2023); Linux drivers/crypto/ccp/sev-dev.c,
drivers/iommu/amd/init.c; AMD IOMMU specification 48882, 2.12.2.1.
"""

from __future__ import annotations

from typing import Any

from ghcbcore._cffi import lib
from ghcbcore.frame import Op as FrameOp
from ghcbcore.profile import Profile

from .. import costs, psp, scaling
from ..firmware import Cell, Firmware, Status
from ..flow import Agent, Effect, Flow, Op, Test, op, put
from ..frames import declare, happen, rmpupdate
from ..layout import Part
from ..machine import Machine

__all__ = ["BUSY", "SnpHost", "answer"]

BUSY = 10 * costs.MS
"""``run``: how long guests run before the host goes down."""

TAKEN = FrameOp(lib.FRAME_OP_IOMMU_TAKE)
GIVEN_BACK = FrameOp(lib.FRAME_OP_IOMMU_RELEASE)


def answer(command: str, status: Status) -> str:
    """Say what a command was answered: ``DF_FLUSH -> WBINVD_REQUIRED (0x0e)``."""
    return f"{command} -> {status.name} ({status:#04x})"


def booted(firmware: Firmware) -> None:
    """Bring firmware where Linux has it on an SNP host: SNP_INIT_EX, SEV INIT, flushes between."""
    psp.initialised(firmware)
    firmware.command("INIT_EX")
    firmware.wbinvd()
    firmware.command("DF_FLUSH")


class SnpHost:
    """The words and the steps that every flow of such a host has."""

    def __init__(self, name: str, machine: Machine, n_guests: int, mode: str) -> None:
        self.m, self.n_guests = machine, n_guests
        self.flow = flow = Flow(name, Profile(guest=lib.GHCB_GUEST_PLAIN))
        self.psp = psp.declare(
            flow, n_guests=max(n_guests, 1), running=n_guests, mode=mode, start=booted
        )
        for asid in range(1, max(n_guests, 1) + 1):
            flow.name_values(f"psp_asid_{asid}", Cell)  # one CCX: the word is the cell
        self.store = declare(flow, "completion_store", 1, start=(TAKEN,), where=self._where)
        flow.globals(status=Status.SUCCESS, gone=0, answer=0, waiting=0, over=0)
        flow.per_cpu(entered=0)
        state = flow.g.psp_state
        self.locked = (state & 1 << lib.GHCB_FW_IOMMU_SHIFT) != 0
        self.unlocked = self.locked.negated()
        self.all_flush = scaling.wbinvd(machine).ns
        self.boot = flow.agent("boot CPU")
        self.ap = flow.agent("AP", per_cpu=True)

    def _where(self, machine: Machine) -> list[tuple[int, int]]:
        """What the frame stands for in a large memory: the store is a page of the old kernel."""
        return [(machine.layout[Part.OLD_TEXT].start >> 12, 1)]

    # -- KVM and its guests ------------------------------------------------------------------

    def vmruns(self, *may: Test) -> list[Op]:
        """A CPU enters one of the guests, from label ``host``."""
        cpu = self.flow.cpu
        return [
            op(
                f"VMRUN: ASID {asid}",
                when=may,
                do=[self.psp.guest_runs(cpu, asid, cpu.entered)],
                to="guest",
            )
            for asid in range(1, self.n_guests + 1)
        ]

    def in_guest(self, *more: Op, mid_vmexit: bool = False) -> None:
        """The label ``guest``, and how a CPU leaves it by itself; ``more``: what else may happen.

        ``mid_vmexit``: the hardware takes its time to save the guest's state, and no NMI comes in
        between; the ASID is in use until it is done.
        """
        cpu = self.flow.cpu
        inside = [cpu.entered == 0]
        leaves, to = [self.psp.guest_leaves(cpu)], "host"
        text = "#VMEXIT"
        if mid_vmexit:
            leaves, to, text = [], "exiting", "#VMEXIT begins: the guest's state is being saved"
        out = op(text, when=inside, do=leaves, to=to, after=costs.GUEST_SLICE, spread=True)
        invalid = op(
            "VMRUN fails: the ASID is not runnable any more",
            when=[cpu.entered == psp.IMPOSSIBLE],
            to="vCPU is gone",
        )
        self.ap.at("guest", out, invalid, *more)
        if mid_vmexit:
            saved = op(
                "#VMEXIT is done: the guest's state is saved",
                do=[self.psp.guest_leaves(cpu)],
                to="host",
            )
            self.ap.at("exiting", saved)
        self.ap.at("vCPU is gone", ends=True)

    def leave(self) -> Effect:
        """An interrupt or NMI takes a CPU out of its guest."""
        return self.psp.guest_leaves(self.flow.cpu)

    # -- the PSP -----------------------------------------------------------------------------

    def command(self, name: str, guest: int = 0, **arguments: Any) -> list[Effect]:
        """A command of the boot CPU."""
        return [self.psp.command(name, self.flow.g.status, guest=guest, **arguments)]

    def decommission_all(self) -> list[Effect]:
        done: list[Effect] = []
        for guest in range(self.n_guests):
            done.append(self.psp.command("SNP_DECOMMISSION", self.flow.g.gone, guest=guest))
        return done

    def attempt(
        self, agent: Agent, who: str, flush: list[Effect], to: str, *, everywhere: bool
    ) -> None:
        """Linux's snp_shutdown, in labels of their own, and on to the label ``to``.

        ``flush`` is WBINVD on this CPU, or on all at once, ``everywhere``.
        """
        where = "every CPU" if everywhere else "this CPU"
        g = self.flow.g
        down = self.command("SNP_SHUTDOWN_EX", iommu=1)
        reclaimed = "SNP is off, the IOMMU's pages are shared again"
        shared = [
            happen(self.store, 0, GIVEN_BACK, g.answer),
            happen(self.store, 0, rmpupdate(False), g.answer),
        ]
        cost = costs.PSP_COMMAND

        def answered(command: str, status: Status, then: str) -> str:
            return f"{answer(command, status)}: {then}"

        def is_down(command: str) -> Op:
            text = answered(command, Status.SUCCESS, reclaimed)
            return op(text, when=[g.status == Status.SUCCESS], do=shared, to=to)

        agent.at(
            who,
            op(
                f"{who}: SEV SHUTDOWN, WBINVD on {where}, SHUTDOWN_EX",
                do=[*self.command("SHUTDOWN"), *flush, *down],
                cost=(self.all_flush if everywhere else costs.WBINVD) + 2 * cost,
            ),
        )
        agent.at(
            f"{who}: SHUTDOWN_EX",
            is_down("SHUTDOWN_EX"),
            op(
                answered("SHUTDOWN_EX", Status.DFFLUSH_REQUIRED, "DF_FLUSH"),
                when=[g.status == Status.DFFLUSH_REQUIRED],
                do=self.command("DF_FLUSH"),
                cost=cost,
            ),
        )
        agent.at(
            f"{who}: DF_FLUSH",
            op(
                answered("DF_FLUSH", Status.SUCCESS, "SHUTDOWN_EX again"),
                when=[g.status == Status.SUCCESS],
                do=down,
                cost=cost,
            ),
            op(
                answered("DF_FLUSH", Status.WBINVD_REQUIRED, "SNP stays on"),
                when=[g.status == Status.WBINVD_REQUIRED],
                to=to,
            ),
        )
        agent.at(
            f"{who}: SHUTDOWN_EX again",
            is_down("SHUTDOWN_EX again"),
            op(
                answered("SHUTDOWN_EX again", Status.DFFLUSH_REQUIRED, "SNP stays on"),
                when=[g.status == Status.DFFLUSH_REQUIRED],
                to=to,
            ),
        )

    # -- the next kernel's IOMMU -------------------------------------------------------------

    def new_iommu(self, kernel: str) -> None:
        """A kernel that sets the IOMMU up anew: labels ``IOMMU`` to ``timer``, then ``devices``."""
        boot = self.boot
        boot.at(
            "IOMMU",
            op(
                f"{kernel}: IOMMU: its own command buffer, event log and device table",
                when=[self.unlocked],
                to="devices",
            ),
            op(
                f"{kernel}: IOMMU: writes to its base registers are ignored, the old tables stay",
                when=[self.locked],
            ),
        )
        boot.at(
            "completion wait",
            op("AMD-Vi: Completion-Wait loop timed out", cost=costs.COMPLETION_WAIT),
        )
        boot.at(
            "timer",
            op(
                "panic: timer doesn't work through Interrupt-remapped IO-APIC",
                do=[put(self.flow.g.over, 1)],
                to="dead",
            ),
        )

    def ends(self, label: str = "devices") -> None:
        """Where the next kernel gets to."""
        done = op("root file system mounted, user space", do=[put(self.flow.g.over, 1)])
        self.boot.at(label, done)
        self.boot.at("user space", ends=True)
        self.boot.at("dead", ends=True)

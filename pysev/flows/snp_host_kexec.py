"""The flow of ``snp-host-kdump/orderly-kexec*``: an SNP host goes down with all CPUs in hand.

Theory of operation. Nothing is in a hurry: KVM destroys the guests, ccp's shutdown executes WBINVD
on every CPU by IPI, and SHUTDOWN_EX takes SNP away from the IOMMU. SYSCFG.SNPEn stays set, so that
CPUs go on checking the old table until the next kernel's SNP_INIT_EX builds it anew: a page
that is left assigned to a guest faults on the next kernel's first write.

Sources: Linux drivers/crypto/ccp/sev-dev.c, arch/x86/kvm/svm/sev.c, arch/x86/kernel/smp.c.
"""

from __future__ import annotations

from dataclasses import dataclass

from ghcbcore._cffi import lib

from .. import costs
from ..firmware import Status
from ..flow import Effect, Op, add, each, op, put
from ..frames import declare, happen, host_access, pvalidate, rmpupdate
from ..layout import Part
from ..machine import Machine
from .snp_host import BUSY, SnpHost

__all__ = ["Orderly", "SnpHostKexec"]

N_GUESTS = 2


@dataclass(frozen=True)
class Orderly:
    """What is forgotten.

    Attributes
    ----------
    guests_left : bool
        The guests still run when ccp's shutdown is called.
    page_left : bool
        A page of a guest that is gone is not taken back by RMPUPDATE.
    """

    guests_left: bool = False
    page_left: bool = False


class SnpHostKexec(SnpHost):
    """``kexec -e`` of an SNP host; each method writes one agent's program, or a part of it."""

    def __init__(self, left: Orderly, machine: Machine, name: str) -> None:
        super().__init__(name, machine, N_GUESTS, "strict")
        self.left = left
        flow = self.flow
        start = (rmpupdate(True), pvalidate(True))
        self.page = declare(flow, "guest_page", 1, start=start, where=self._guest_page)
        flow.per_cpu(kick=0, stop=0)

    def _guest_page(self, machine: Machine) -> list[tuple[int, int]]:
        return [(machine.layout[Part.NEW_KERNEL].start >> 12, 1)]

    def aps(self) -> None:
        """A CPU runs guests until they are destroyed, or until it is stopped."""
        ap = self.ap
        more = self.stops if self.left.guests_left else self.kicks
        ap.phase("old kernel")
        ap.at("host", *self.vmruns(), *more("", []))
        self.in_guest(*more("#VMEXIT, ", [self.leave()]))
        ap.phase("idle")
        if not self.left.guests_left:
            ap.at("idle", *self.stops("", []))
        ap.at("halted", ends=True)

    def kicks(self, first: str, leaves: list[Effect]) -> list[Op]:
        g, cpu = self.flow.g, self.flow.cpu
        return [
            op(
                f"IPI: {first}vCPU kicked out, the guest is destroyed",
                when=[cpu.kick == 1],
                do=[*leaves, add(g.waiting, -1), put(cpu.kick, 0)],
                to="idle",
            )
        ]

    def stops(self, first: str, leaves: list[Effect]) -> list[Op]:
        g, cpu = self.flow.g, self.flow.cpu
        return [
            op(
                f"REBOOT_VECTOR: {first}SVM off, stop_this_cpu",
                when=[cpu.stop == 1],
                do=[*leaves, add(g.waiting, -1), put(cpu.stop, 0)],
                to="halted",
                cost=costs.IPI,
            )
        ]

    def go_down(self) -> None:
        boot, g, flow = self.boot, self.flow.g, self.flow
        other, n_others = flow.other, self.m.n_cpus - 1
        if not self.left.guests_left:
            boot.phase("destroy the guests")
            do = [put(g.waiting, n_others), each(put(other.kick, 1))]
            boot.at("kexec", op("kexec -e: guests are destroyed", do=do, after=BUSY))
            boot.at("kicked", op("no CPU is in a guest", when=[g.waiting == 0]))
            text = "KVM: SNP_DECOMMISSION of every guest"
            take_back = [happen(self.page, 0, rmpupdate(False), g.answer)]
            text += "; a page of it stays" if self.left.page_left else "; its pages are taken back"
            do = [*self.decommission_all(), *([] if self.left.page_left else take_back)]
            cost = N_GUESTS * costs.PSP_COMMAND
            boot.at("destroy", op(text, do=do, cost=cost))
        boot.phase("shut SNP down")
        everywhere = [self.psp.wbinvd(flow.boot), self.psp.wbinvd_others()]
        self.attempt(boot, "ccp shutdown", everywhere, "stop", everywhere=True)
        boot.phase("stop the other CPUs")
        do = [put(g.waiting, n_others), each(put(other.stop, 1))]
        boot.at("stop", op("REBOOT_VECTOR to all other CPUs", do=do, cost=costs.IPI))
        boot.at("stopping", op("all other CPUs are stopped", when=[g.waiting == 0]))
        boot.phase("new kernel")
        boot.at("machine_kexec", op("machine_kexec: the new kernel starts", cost=costs.RELOCATE))

    def new_kernel(self) -> None:
        boot, g = self.boot, self.flow.g
        self.new_iommu("new kernel")
        write = happen(self.page, 0, host_access(lib.FRAME_ACCESS_WRITE), g.answer)
        boot.at("devices", op("new kernel: writes to a page of its RAM", do=[write]))
        boot.at(
            "written",
            op(
                "new kernel: SNP_INIT_EX, RMP built anew",
                when=[g.answer == 0],
                do=self.command("SNP_INIT_EX", init_rmp=1),
                to="SNP on",
                cost=costs.PSP_COMMAND,
            ),
            op(
                "BUG: #PF, RMP: the page is still a guest's",
                when=[g.answer != 0],
                to="dead",
            ),
        )
        boot.at(
            "SNP on",
            op(
                "WBINVD on every CPU, DF_FLUSH",
                when=[g.status == Status.SUCCESS],
                do=[
                    self.psp.wbinvd(self.flow.boot),
                    self.psp.wbinvd_others(),
                    *self.command("DF_FLUSH"),
                ],
                cost=costs.WBINVD + costs.PSP_COMMAND,
            ),
        )
        self.ends("flushed")

    def build(self) -> SnpHostKexec:
        self.aps()
        self.go_down()
        self.new_kernel()
        return self

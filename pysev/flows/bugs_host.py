"""Flows of ``bugs/*`` about SNP hosts: firmware, IOMMU and panic notifiers around a crash.

Each function builds one report: the flow as it was, or ``repaired``.

Sources: Linux drivers/crypto/ccp/sev-dev.c, drivers/iommu/amd/init.c; the reports are named with
each scenario.
"""

from __future__ import annotations

import enum

from ghcbcore._cffi import lib
from ghcbcore.profile import Profile

from .. import costs
from ..flow import Flow, add, op, put, when
from ..machine import Machine

__all__ = [
    "COMES_BACK",
    "IOMMU_WORKS",
    "init_in_kdump",
    "iommu_buffers",
    "notifier_unregisters",
    "psp_interrupt",
    "reboot",
]

COMES_BACK = "a guest that reboots comes back"
IOMMU_WORKS = "the crash kernel's IOMMU works"


class Platform(enum.IntEnum):
    """``g.snp``: the firmware's SNP state."""

    UNINIT = 0
    INIT = 1


class Buffer(enum.IntEnum):
    """``g.base``, ``g.written``: a command buffer, by whose memory it is in."""

    NONE = 0
    OLD_KERNEL = 1
    CRASH_KERNEL = 2


def _flow(name: str) -> Flow:
    return Flow(name, Profile(guest=lib.GHCB_GUEST_PLAIN))


def init_in_kdump(machine: Machine, name: str, *, repaired: bool) -> Flow:
    """The crash kernel's ccp driver initialises firmware that was never shut down."""
    flow = _flow(name)
    flow.globals(snp=Platform.UNINIT, status=0, failed=0)
    flow.name_values("snp", Platform)
    g, boot = flow.g, flow.agent("boot CPU")
    init = when(
        g.snp == Platform.UNINIT,
        put(g.status, lib.SNP_FW_OK),
        put(g.snp, Platform.INIT),
    )
    refused = when(g.snp == Platform.INIT, put(g.status, lib.SNP_FW_PLATFORM_STATE))
    boot.phase("old kernel")
    boot.at("old kernel", op("old kernel: SNP_INIT_EX", do=[refused, init]))
    boot.phase("panic")
    boot.at(
        "panic",
        op("panic: no guest: SNP_SHUTDOWN_EX", do=[put(g.snp, Platform.UNINIT)]),
        op("panic: guests still run: SNP_SHUTDOWN_EX fails"),
    )
    boot.phase("boot the crash kernel")
    boot.at("crash kernel", op("jumps to the crash kernel", cost=costs.RELOCATE))
    boot.phase("initialise SNP and the IOMMU")
    if repaired:
        boot.at("ccp", op("ccp: a crash kernel: no SNP_INIT_EX", to="iommu"))
    else:
        boot.at("ccp", op("ccp: SNP_INIT_EX", do=[refused, init]))
        boot.at(
            "answer",
            op("initialised", when=[g.status == lib.SNP_FW_OK]),
            op(
                "SNP initialisation fails, and the IOMMU's with it",
                when=[g.status != lib.SNP_FW_OK],
                do=[put(g.failed, 1)],
            ),
        )
    boot.at("iommu", op("the IOMMU is initialised"))
    boot.at("up", ends=True)
    flow.always(IOMMU_WORKS, lambda s: s.g.failed == 0, "the crash kernel initialises its IOMMU")
    flow.sometimes(
        "the firmware is still initialised in the crash kernel",
        lambda s: s.at("boot CPU", "ccp") & (s.g.snp == Platform.INIT),
    )
    return flow


def iommu_buffers(machine: Machine, name: str, *, repaired: bool) -> Flow:
    """The crash kernel leaves the IOMMU's registers alone, but allocates a buffer of its own."""
    flow = _flow(name)
    flow.globals(base=Buffer.OLD_KERNEL, written=Buffer.NONE, done=0, timed_out=0)
    flow.name_values("base", Buffer)
    flow.name_values("written", Buffer)
    g, boot = flow.g, flow.agent("boot CPU")
    iommu = flow.agent("IOMMU")
    boot.phase("boot the crash kernel")
    boot.at("crash kernel", op("jumps to the crash kernel", cost=costs.RELOCATE))
    mine = Buffer.OLD_KERNEL if repaired else Buffer.CRASH_KERNEL
    boot.phase("initialise the IOMMU")
    if repaired:
        boot.at("buffer", op("maps the old kernel's command buffer"))
    else:
        boot.at("buffer", op("allocates a command buffer"))
    boot.at("base", op("a crash kernel: does not enable the command buffer anew"))
    boot.at("wait", op("writes COMPLETION_WAIT into its buffer", do=[put(g.written, mine)]))
    boot.at(
        "waiting",
        op("the IOMMU has answered", when=[g.done == 1]),
        op(
            "Completion-Wait loop timed out",
            when=[g.done == 0, g.written != g.base],
            do=[put(g.timed_out, 1)],
            after=costs.COMPLETION_WAIT,
        ),
    )
    boot.at("up", ends=True)
    iommu.phase("answer")
    iommu.at(
        "reads",
        op(
            "reads COMPLETION_WAIT where its base register points, and answers",
            when=[g.written != Buffer.NONE, g.written == g.base],
            do=[put(g.done, 1)],
            cost=costs.US,
        ),
        ends=True,
    )
    iommu.at("done", ends=True)
    flow.always(IOMMU_WORKS, lambda s: s.g.timed_out == 0, "the IOMMU answers the crash kernel")
    flow.sometimes("the crash kernel waits for the IOMMU", lambda s: s.at("boot CPU", "waiting"))
    return flow


def notifier_unregisters(machine: Machine, name: str, *, repaired: bool) -> Flow:
    """The panic notifier takes itself off the chain that is just being walked."""
    flow = _flow(name)
    flow.globals(readers=0, shut=0)
    g, boot = flow.g, flow.agent("boot CPU")
    chain = "panic: walks the notifier chain, an RCU reader"
    boot.phase("panic")
    boot.at("panic", op(chain, do=[put(g.readers, 1)]))
    boot.at("notifier", op("SNP notifier: SNP_SHUTDOWN_EX", do=[put(g.shut, 1)]))
    if not repaired:
        text = "unregisters itself: all readers of the chain are gone"
        boot.at("unregister", op(text, when=[g.readers == 0]))
    boot.at("leave", op("end of the chain", do=[put(g.readers, 0)]))
    boot.phase("boot the crash kernel")
    boot.at("crash kernel", op("jumps to the crash kernel", cost=costs.RELOCATE))
    boot.at("up", ends=True)
    flow.sometimes(
        "the notifier runs inside the chain", lambda s: (s.g.shut == 1) & (s.g.readers == 1)
    )
    return flow


def psp_interrupt(machine: Machine, name: str, *, repaired: bool) -> Flow:
    """A firmware command in the panic notifier: it ends by an interrupt, and IRQs are off."""
    flow = _flow(name)
    flow.globals(irqs=1, busy=0, interrupt=0)
    g, boot = flow.g, flow.agent("boot CPU")
    psp = flow.agent("PSP")
    boot.phase("panic")
    boot.at("panic", op("panic: IRQs off, panic notifiers", do=[put(g.irqs, 0)]))
    boot.at("command", op("SNP notifier: SNP_SHUTDOWN_EX", do=[put(g.busy, 1)]))
    polled = op("polls: the command is complete", when=[g.busy == 0])
    waited = op("completion interrupt", when=[g.interrupt == 1, g.irqs == 1])
    boot.at("waiting", polled if repaired else waited)
    boot.phase("boot the crash kernel")
    boot.at("crash kernel", op("jumps to the crash kernel", cost=costs.RELOCATE))
    boot.at("up", ends=True)
    done = [put(g.busy, 0), put(g.interrupt, 1)]
    text = "carries the command out, raises its interrupt"
    psp.phase("command")
    psp.at("idle", op(text, when=[g.busy == 1], do=done, cost=costs.MS), ends=True)
    psp.at("done", ends=True)
    flow.sometimes("the interrupt is pending with IRQs off", lambda s: s.g.interrupt > s.g.irqs)
    return flow


def reboot(machine: Machine, name: str, *, encrypted: bool) -> Flow:
    """A guest reboots: the VMM gives every vCPU its reset state, unless that is encrypted."""
    flow = _flow(name)
    flow.globals(asked=0, left=machine.n_cpus, ended=0)
    g, boot = flow.g, flow.agent("boot CPU")
    vmm = flow.agent("VMM")
    boot.phase("reboot")
    boot.at("runs", op("reboot: asks for a reset of the machine", do=[put(g.asked, 1)]))
    boot.at("reset", op("starts at the reset vector", when=[g.left == 0]), ends=encrypted)
    boot.at("up", ends=True)
    vmm.phase("reset")
    if encrypted:
        text = "registers are encrypted: no vCPU can be reset; ends with exit code 0"
        vmm.at("waits", op(text, when=[g.asked == 1], do=[put(g.ended, 1)]))
    else:
        text = "gives a vCPU its reset state"
        more = op(text, when=[g.asked == 1, g.left != 0], do=[add(g.left, -1)], to=".")
        vmm.at("waits", more, op("all vCPUs are reset", when=[g.left == 0]))
    vmm.at("done", ends=True)
    flow.always(COMES_BACK, lambda s: s.g.ended == 0, "the VM goes on after a reboot of its guest")
    flow.sometimes("the guest asks for a reset", lambda s: s.g.asked == 1)
    return flow

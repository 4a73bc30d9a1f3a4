"""Flows of ``bugs/*`` about a kernel that has no handlers yet, no mapping, or no room.

One CPU is enough for most of them. Each function builds one report: the flow as it was, or
``repaired``. The properties are part of it.

Sources: Linux arch/x86/kernel/{machine_kexec_64,relocate_kernel_64}.*, arch/x86/boot/compressed,
arch/x86/virt/svm/sev.c, kernel/kexec_core.c; the reports are named with each scenario.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ghcbcore._cffi import lib
from ghcbcore.frame import Op as FrameOp
from ghcbcore.profile import Profile

from .. import costs
from ..flow import Effect, Flow, add, op, put, when
from ..frames import (
    FrameRegion,
    declare,
    guest_access,
    happen,
    host_access,
    map_as,
    pvalidate,
    rmpupdate,
)
from ..machine import Machine

__all__ = [
    "BOUNCES",
    "ITS_MSRS",
    "NO_FAULT",
    "NO_RESET",
    "OWN_STACK",
    "ROOM",
    "TAKES_PAGES",
    "clock_never_enabled",
    "crash_reservation",
    "no_idt",
    "not_mapped",
    "parking_tables",
    "rmp_tail",
    "rmp_tail_allocated",
    "swiotlb_below_4g",
    "unaccepted_destination",
]

ITS_MSRS = "teardown writes the guest's own MSRs"
NO_RESET = "no exception without a handler"
NO_FAULT = "no fault in relocate_kernel"
ROOM = "the crash kernel has room"
BOUNCES = "the guest has bounce buffers"
TAKES_PAGES = "a guest can use every page that it gets"
OWN_STACK = "an AP that parks has its stack"

SHUTDOWN = "triple fault: reset"


def _flow(name: str) -> Flow:
    flow = Flow(name, Profile(guest=lib.GHCB_GUEST_PLAIN))
    flow.globals(dead=0)
    flow.only_while(flow.g.dead == 0)
    return flow


def _no_reset(flow: Flow, name: str, text: str) -> None:
    flow.always(name, lambda s: s.g.dead == 0, text)


# -- an instruction that traps, and no IDT -------------------------------------------------------


def no_idt(
    machine: Machine, name: str, *, repaired: bool, what: str, fixed: str, survives: str
) -> Flow:
    """An instruction that traps between the null IDT and the next kernel's first handler.

    ``what``: the instruction in the window; ``fixed``: what is done there once it is repaired;
    ``survives``: the same instruction while there is a handler.
    """
    flow = _flow(name)
    flow.globals(idt=1, handled=0)
    g, boot = flow.g, flow.agent("boot CPU")
    trap: list[Effect] = [when(g.idt == 1, put(g.handled, 1), otherwise=[put(g.dead, 1)])]
    boot.phase("old kernel")
    boot.at("old kernel", op(f"old kernel: {survives}: the handler answers", do=trap))
    boot.phase("relocate")
    boot.at("machine_kexec", op("machine_kexec: null GDT, null IDT", do=[put(g.idt, 0)]))
    here = op(fixed) if repaired else op(f"{what}: {SHUTDOWN}", do=trap)
    boot.at("relocate", here)
    boot.phase("new kernel")
    boot.at("new kernel", op("new kernel: first IDT", do=[put(g.idt, 1)], cost=costs.RELOCATE))
    boot.at("up", ends=True)
    _no_reset(flow, NO_RESET, "no exception comes while there is no IDT")
    flow.sometimes("it is handled while there is an IDT", lambda s: s.g.handled == 1)
    flow.sometimes("there is no IDT", lambda s: s.g.idt == 0)
    return flow


def clock_never_enabled(machine: Machine, name: str, *, repaired: bool) -> Flow:
    """Teardown switches kvmclock off, which a guest without it has never switched on."""
    flow = _flow(name)
    flow.globals(offered=0)
    g, boot = flow.g, flow.agent("boot CPU")
    boot.phase("old kernel")
    boot.at(
        "boot",
        op("kvmclock is offered: WRMSR switches it on", do=[put(g.offered, 1)]),
        op("kvmclock is not offered: another clock"),
    )
    off, never = "kexec -e: kvmclock off: WRMSR", [g.offered == 0]
    if repaired:
        other = op("kexec -e: kvmclock was never on: no WRMSR", when=never)
    else:
        other = op(f"{off} of an MSR that is not there", when=never, do=[put(g.dead, 1)])
    boot.phase("PV teardown")
    boot.at("teardown", op(off, when=[g.offered == 1]), other)
    boot.phase("relocate")
    boot.at("relocate", op("relocate_kernel: jumps to the new kernel", cost=costs.RELOCATE))
    boot.at("up", ends=True)
    _no_reset(flow, ITS_MSRS, "no MSR is written that the guest does not have")
    flow.sometimes("the new kernel runs", lambda s: s.at("boot CPU", "up"))
    flow.sometimes(
        "a guest without kvmclock goes down",
        lambda s: s.at("boot CPU", "teardown") & (s.g.offered == 0),
    )
    return flow


# -- a page that is not mapped -------------------------------------------------------------------


def not_mapped(machine: Machine, name: str, *, repaired: bool, what: str, reader: str) -> Flow:
    """The next kernel reads a page before it can handle a fault; kexec maps what it knows of.

    With 1 GiB pages the identity map reaches far beyond the memory that it is made for.
    """
    flow = _flow(name)
    flow.globals(mapped=0)
    g, boot = flow.g, flow.agent("boot CPU")
    boot.phase("load")
    boot.at(
        "identity map",
        op("init_pgtable: maps the RAM ranges with 1 GiB pages", do=[put(g.mapped, 1)]),
        op("init_pgtable: maps the RAM ranges with 2 MiB pages (nogbpages)"),
    )
    if repaired:
        boot.at("more", op(f"init_pgtable: maps {what} as well", do=[put(g.mapped, 1)]))
    boot.phase("relocate")
    boot.at("relocate", op("relocate_kernel: CR3 := identity map", cost=costs.RELOCATE))
    boot.phase("new kernel")
    boot.at(
        "read",
        op(f"new kernel: {reader} reads {what}", when=[g.mapped == 1]),
        op(
            f"new kernel: {reader} reads {what}: #PF, no handler, {SHUTDOWN}",
            when=[g.mapped == 0],
            do=[put(g.dead, 1)],
        ),
    )
    boot.at("up", ends=True)
    _no_reset(flow, NO_RESET, f"{what} is mapped when the new kernel reads it")
    flow.sometimes("the new kernel reads it", lambda s: s.at("boot CPU", "up"))
    return flow


def parking_tables(machine: Machine, name: str, *, repaired: bool) -> Flow:
    """An AP parks on the trampoline's page table, which once had the kernel's text alone.

    Global entries of the TLB outlive a load of CR3: that is why it failed only now and then.
    """
    flow = _flow(name)
    flow.globals(stopping=machine.n_cpus - 1)
    flow.per_cpu(tlb=1)
    g, cpu = flow.g, flow.cpu
    boot, ap = flow.agent("boot CPU"), flow.agent("AP", per_cpu=True)
    tlb = flow.agent("TLB", per_cpu=True)
    flush = [put(cpu.tlb, 0)] if repaired else []
    text = "P2 CR3 := trampoline page table" + (", global TLB flush" if repaired else "")
    ap.phase("park")
    ap.at("park", op(text, do=flush))
    there = [
        op(
            "P3 reads its stack in the direct map",
            when=[] if repaired else [cpu.tlb == 1],
            do=[add(g.stopping, -1)],
            to="parked",
        )
    ]
    if not repaired:
        gone = op(
            f"P3 reads its stack in the direct map: #PF, #DF, {SHUTDOWN}",
            when=[cpu.tlb == 0],
            do=[put(g.dead, 1)],
        )
        there.append(gone)
    ap.at("stack", *there)
    ap.at("parked", ends=True)
    tlb.phase("park")
    tlb.at(
        "holds",
        op(
            "a global entry of the direct map is evicted",
            when=[cpu.tlb == 1],
            do=[put(cpu.tlb, 0)],
            after=costs.MS,
            spread=True,
        ),
        ends=True,
    )
    tlb.at("empty", ends=True)
    boot.phase("stop other CPUs")
    boot.at("wait", op("all APs are parked", when=[g.stopping == 0]))
    boot.at("up", ends=True)
    _no_reset(flow, OWN_STACK, "the trampoline's page table maps what an AP that parks touches")
    if machine.n_cpus > 1:
        flow.sometimes("an AP parks", lambda s: s.at("AP", "parked").any(axis=1))
        flow.sometimes(
            "the TLB has nothing left while an AP parks",
            lambda s: (s.at("AP", "stack") & (s.cpu.tlb == 0)).any(axis=1),
        )
    flow.count_cpus("parked", lambda s: s.at("AP", "parked"))
    return flow


# -- pages ---------------------------------------------------------------------------------------

WRITE = lib.FRAME_ACCESS_WRITE


def unaccepted_destination(machine: Machine, name: str, *, repaired: bool) -> Flow:
    """The destination of a segment is chosen from the map of RAM, not from the allocator.

    Nobody may have accepted it yet. The page is a frame of an SNP guest.
    """
    flow = _flow(name)
    start = (rmpupdate(True), map_as(lib.FRAME_PRIVATE))
    page = declare(flow, "destination", 1, start=start)
    flow.globals(accepted=0, answer=0)
    g, boot = flow.g, flow.agent("boot CPU")
    accept = [happen(page, 0, pvalidate(True), g.answer), put(g.accepted, 1)]
    boot.phase("old kernel")
    boot.at(
        "boot",
        op("the allocator accepts the page", do=accept),
        op("the page is not needed: not accepted"),
    )
    boot.phase("load")
    boot.at("load", op("kexec_load: a destination from the ranges of system RAM"))
    if repaired:
        boot.at(
            "accept",
            op("not in the bitmap: PVALIDATE", when=[g.accepted == 0], do=accept),
            op("accepted already", when=[g.accepted == 1]),
        )
    access = guest_access(WRITE | lib.FRAME_ACCESS_C | lib.FRAME_ACCESS_STORE)
    boot.phase("relocate")
    boot.at("relocate", op("relocate_kernel: copies the segment", do=_touch(flow, page, access)))
    boot.at("up", ends=True)
    _no_reset(flow, NO_FAULT, "relocate_kernel writes only to memory that was accepted")
    flow.sometimes(
        "nobody has accepted the page before it is loaded",
        lambda s: s.at("boot CPU", "load") & (s.g.accepted == 0),
    )
    return flow


def _touch(flow: Flow, page: FrameRegion, access: FrameOp, at: int = 0) -> list[Effect]:
    g = flow.g
    return [happen(page, at, access, g.answer), when(g.answer != 0, put(g.dead, 1))]


def rmp_tail(machine: Machine, name: str, *, repaired: bool) -> Flow:
    """The RMP ends in the middle of a 2 MiB page; the rest of it is usable RAM by the map.

    Frame 0 stands for the end of the RMP, frame 1 for the tail behind it.
    """
    flow = _flow(name)
    block = declare(flow, "block", 2)
    elsewhere = declare(flow, "elsewhere", 1)
    flow.globals(answer=0)
    g, boot = flow.g, flow.agent("boot CPU")
    of_firmware = FrameOp(lib.FRAME_OP_INIT, value=lib.RMP_STATE_FIRMWARE)
    boot.phase("old kernel")
    boot.at(
        "snp init",
        op("SNP_INIT_EX: the RMP's own pages", do=[happen(block, 0, of_firmware, g.answer)]),
    )
    write = host_access(WRITE, mapping=1)
    small = _touch(flow, block, host_access(WRITE), 1)
    boot.at("use", op("old kernel: writes the tail through a 4 KiB mapping", do=small))
    boot.phase("load")
    if repaired:
        text = "kexec_file_load: the tail is reserved in the E820 tables: segments elsewhere"
        boot.at("load", op(text))
        do = _touch(flow, elsewhere, write)
    else:
        boot.at("load", op("kexec_file_load: purgatory and boot parameters in the tail"))
        do = _touch(flow, block, write, 1)
    boot.phase("relocate")
    boot.at("relocate", op("relocate_kernel: copies through 2 MiB pages", do=do))
    boot.at("up", ends=True)
    _no_reset(flow, NO_FAULT, "relocate_kernel writes no 2 MiB page that has a page of the RMP")
    flow.sometimes("the tail can be used page by page", lambda s: s.at("boot CPU", "load"))
    return flow


def rmp_tail_allocated(machine: Machine, name: str, *, repaired: bool) -> Flow:
    """The tail is reserved in the E820 tables, after early boot has allocated from it already."""
    flow = _flow(name)
    block = declare(flow, "tail", 1)
    elsewhere = declare(flow, "elsewhere", 1)
    flow.globals(answer=0, from_tail=0)
    g, boot = flow.g, flow.agent("boot CPU")
    boot.phase("boot the host")
    if repaired:
        boot.at("fixup", op("E820 tables and memblock: the tail is reserved"))
    else:
        boot.at("fixup", op("E820 tables: the tail is reserved; memblock still has it"))
    fixed = FrameOp(lib.FRAME_OP_INIT, value=lib.RMP_STATE_HV_FIXED)
    text = "SNP_INIT_EX: reserved ranges become the hypervisor's for good"
    boot.at("snp init", op(text, do=[happen(block, 0, fixed, g.answer)]))
    other = op("KVM: a page for an SNP guest", to="assign elsewhere")
    tail = op("KVM: a page for an SNP guest, from the tail", do=[put(g.from_tail, 1)])
    boot.phase("assign a page")
    boot.at("allocate", *([] if repaired else [tail]), other)
    if not repaired:
        boot.at("assign tail", op("RMPUPDATE", do=_touch(flow, block, rmpupdate(True)), to="up"))
    boot.at("assign elsewhere", op("RMPUPDATE", do=_touch(flow, elsewhere, rmpupdate(True))))
    boot.at("up", ends=True)
    _no_reset(flow, TAKES_PAGES, "RMPUPDATE is not refused for a page that a guest gets")
    flow.sometimes("a guest has its page", lambda s: s.at("boot CPU", "up"))
    return flow


# -- room for bounce buffers ---------------------------------------------------------------------

BASE_MIB, EXTRA_MIB = 256, 64
"""kdump-utils reserves 256 MiB on 2 to 64 GiB, and 64 MiB more where memory is encrypted, which is
the least that swiotlb takes there."""


@dataclass(frozen=True)
class Guest:
    """What a guest's kernel says of itself when it boots."""

    name: str
    line: str

    @property
    def features(self) -> list[str]:
        return self.line.partition("active: ")[2].split()


GUESTS = (
    Guest("SEV", "Memory Encryption Features active: AMD SEV"),
    Guest("SEV-ES", "Memory Encryption Features active: AMD SEV SEV-ES"),
    Guest("SEV-SNP", "Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP"),
)


def says_encrypted(features: Sequence[str], *, repaired: bool) -> bool:
    """Whether kdump-utils takes a kernel's line for one with memory encryption: only if it ends in
    ``AMD SME`` or ``AMD SEV``; repaired, if one of these words is in it."""
    return "SME" in features or "SEV" in features if repaired else features[-1] in ("SME", "SEV")


def crash_reservation(machine: Machine, name: str, *, repaired: bool) -> Flow:
    """How much memory is reserved for the crash kernel, in MiB, and what that takes of it."""
    flow = _flow(name)
    flow.globals(mib=0)
    g, boot = flow.g, flow.agent("boot CPU")
    reserves = []
    for guest in GUESTS:
        extra = says_encrypted(guest.features, repaired=repaired)
        size = BASE_MIB + (EXTRA_MIB if extra else 0)
        text = f'kdump-utils: "{guest.line}": crashkernel={size}M'
        reserves.append(op(text, do=[put(g.mib, size)]))
    boot.phase("reserve")
    boot.at("reserve", *reserves)
    boot.phase("boot the crash kernel")
    boot.at("crash", op("panic: jumps to the crash kernel", cost=costs.RELOCATE))
    text = f"crash kernel: {EXTRA_MIB} MiB of bounce buffers (swiotlb)"
    boot.at("swiotlb", op(text, do=[add(g.mib, -EXTRA_MIB)]))
    boot.phase("dump")
    boot.at(
        "run",
        op(f"makedumpfile runs in {BASE_MIB} MiB", when=[g.mib >= BASE_MIB]),
        op("out of memory: no dump", when=[g.mib < BASE_MIB], do=[put(g.dead, 1)]),
    )
    boot.at("dumped", ends=True)
    _no_reset(flow, ROOM, "what is reserved has room for the bounce buffers as well")
    flow.sometimes("a dump is written", lambda s: s.at("boot CPU", "dumped"))
    return flow


SWIOTLB_MIB = ((8, 491), (12, 773), (16, 982), (32, 1024))
"""Bounce buffers by the guest's memory: GiB, MiB. Source: AMDSEV issue 116."""

LIMIT_MIB = 256
"""``swiotlb=131072``, slots of 2 KiB."""

PIECES_MIB = (512, 1536)
"""Assumption: what is free in one piece below 4 GiB, with and without something in its middle."""


def swiotlb_below_4g(machine: Machine, name: str, *, repaired: bool) -> Flow:
    """A guest's bounce buffers are 6 % of its memory, in one piece, below 4 GiB."""
    flow = _flow(name)
    flow.globals(piece=0, size=0)
    g, boot = flow.g, flow.agent("boot CPU")
    low = [
        op(f"firmware and initrd leave {mib} MiB in one piece below 4 GiB", do=[put(g.piece, mib)])
        for mib in PIECES_MIB
    ]
    boot.phase("boot")
    boot.at("firmware", *low)
    wanted = []
    for gib, default in SWIOTLB_MIB:
        mib = min(default, LIMIT_MIB) if repaired else default
        text = f"a guest of {gib} GiB: swiotlb wants {mib} MiB"
        wanted.append(op(text, do=[put(g.size, mib)]))
    boot.at("size", *wanted)
    boot.at(
        "allocate",
        op("memblock: one piece below 4 GiB", when=[g.size < g.piece]),
        op("no such piece: no device works", when=[g.size >= g.piece], do=[put(g.dead, 1)]),
    )
    boot.at("up", ends=True)
    _no_reset(flow, BOUNCES, "swiotlb finds its memory in one piece below 4 GiB")
    flow.sometimes("the guest boots", lambda s: s.at("boot CPU", "up"))
    return flow

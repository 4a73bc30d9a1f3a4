"""The flow of ``guest-kdump/*``: a guest crashes, and its crash kernel reads what was left.

Theory of operation. The CPU that crashes stops all others by NMI, each of which saves its
registers into its crash note; an SNP guest destroys its APs and makes shared pages private; then
the crash kernel boots in its reservation, reads the ELF header that was prepared for it, merges
the notes, and a tool reads memory page by page. What can go wrong stands in three places: a note
that is not there, a page that must not be touched, and an attribute (the C-bit) that writer and
reader do not agree about.

Pages are frames (``pysev.frames``): each of the few stands for all of its kind, and what a read
meets is the core's answer. The key under which a page was written is part of a frame, so that
"noise" is a fact of the record too. A nested fault on a page that is the host's is answered as
KVM does: the page is made private, and the guest's next access meets a page that was not validated.

Sources: Linux arch/x86/kernel/{crash,crash_dump_64,reboot}.c, fs/proc/vmcore.c, arch/x86/coco/sev/
core.c (82b7f88f2316, d2062cc1b1c3); kdump-utils kdump-lib.sh; makedumpfile arch/x86_64.c.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from ghcbcore._cffi import lib
from ghcbcore.frame import Op as FrameOp
from ghcbcore.profile import Profile

from .. import costs, frames, scaling
from ..flow import Field, Flow, Test, add, call, each, op, put
from ..frames import FrameRegion
from ..layout import SWIOTLB_MIN_BYTES, Part, crash_bytes
from ..machine import Machine
from ..memmap import PAGE_BYTES
from ..vmcore.places import unaccepted_range, vmsa_range
from ..words import destroy_ap, halt, send_nmi
from .guest_kdump_variant import FEATURES, Core, Kernel, Kind, Variant

KEY: Final[int] = ((1 << lib.FRAME_KEY_WIDTH) - 1) << lib.FRAME_KEY_SHIFT
MAPPING: Final[int] = ((1 << lib.FRAME_MAPPING_WIDTH) - 1) << lib.FRAME_MAPPING_SHIFT

SHARED: Final = (
    frames.map_as(lib.FRAME_SHARED),
    FrameOp(lib.FRAME_OP_LIST, value=lib.FRAME_LISTED_SHARED),
    FrameOp(lib.FRAME_OP_CONTENT, value=lib.GHCB_KEY_SLOT_NONE),
)


def _private(variant: Variant) -> tuple[FrameOp, ...]:
    """A page of the kernel, accepted, mapped private and written."""
    start = [frames.map_as(lib.FRAME_PRIVATE)]
    if variant.is_snp:
        listed = FrameOp(lib.FRAME_OP_LIST, value=lib.FRAME_LISTED_PRIVATE)
        start += [frames.rmpupdate(True), listed, frames.pvalidate(True)]
    return (*start, FrameOp(lib.FRAME_OP_CONTENT, value=variant.key))


def _rmpadjust(vmsa: bool) -> FrameOp:
    value = lib.FRAME_ADJUST_VMSA if vmsa else 0
    return FrameOp(lib.FRAME_OP_RMPADJUST, asid=frames.ASID, target=1, value=value)


def key_is(word: Field, key: int) -> Test:
    """The content of a frame was written under this key."""
    return (word & KEY) == key << lib.FRAME_KEY_SHIFT


class GuestKdump:
    """One flow of the family; each method writes one agent's program, or a part of it.

    ``starts`` is what has happened to each kind of page before the flow begins.
    """

    def __init__(self, variant: Variant, machine: Machine, name: str) -> None:
        if machine.n_cpus == 1:  # nobody whose VMSA lies in RAM, nobody to be shot in between
            half = "" if variant.shared == "half" else variant.shared
            variant = replace(variant, vmsa="", shared=half)
        self.v, self.m = variant, machine
        self.starts: dict[str, tuple[FrameOp, ...]] = {}
        guests = {Kind.SNP: lib.GHCB_GUEST_SNP, Kind.SEV_ES: lib.GHCB_GUEST_SEV_ES}
        profile = Profile(guest=guests.get(variant.kind, lib.GHCB_GUEST_PLAIN))
        self.flow = flow = Flow(name, profile)
        if variant.is_snp:
            flow.start(registered_gpa=machine.ghcb_gpa)
        flow.globals(
            kernel=Kernel.OLD, core=Core.NONE, asked=0, waiting=0, fault=0, answer=0, dead=0
        )
        flow.per_cpu(note=0, in_core=0)
        flow.name_values("kernel", Kernel)
        flow.name_values("core", Core)
        flow.name_values("kind", Kind)
        self.boot = flow.agent("crash CPU")
        self.ap = flow.agent(
            "AP", per_cpu=True, only_while=[flow.cpu.mp_state == lib.GHCB_MP_RUNNABLE]
        )
        self.header = self.page(
            "header", (FrameOp(lib.FRAME_OP_CONTENT, value=variant.header_key),)
        )
        self.memory = self.page("memory", _private(variant))

    def page(self, name: str, start: tuple[FrameOp, ...]) -> FrameRegion:
        """Declare a frame that stands for all pages of its kind."""
        self.starts[name] = start
        return frames.declare(self.flow, name, 1, start=start, where=PLACES[name])

    def access(self) -> FrameOp:
        """A read of old memory with the attribute of the crash kernel."""
        c_bit = lib.FRAME_ACCESS_C if self.v.reads_encrypted else 0
        if self.v.kind == Kind.SME:
            return frames.host_access(c_bit)
        snp = lib.FRAME_ACCESS_SNP if self.v.is_snp else 0
        return FrameOp(lib.FRAME_OP_GUEST_ACCESS, asid=frames.ASID, value=c_bit | snp)

    # -- the APs -----------------------------------------------------------------------------

    def aps(self) -> None:
        cpu, g, ap = self.flow.cpu, self.flow.g, self.ap
        nmi = [put(cpu.nmi_pending, 0)]
        hears = [cpu.nmi_pending == 1] + ([cpu.deaf == 0] if self.v.deaf else [])
        ap.phase("old kernel")
        ap.at(
            "old kernel", op("crash NMI", when=hears, do=nmi, to="first", cost=costs.IPI), ends=True
        )
        if self.v.deaf:
            late = [cpu.nmi_pending == 1, cpu.deaf == 1]
            text = "NMIs unblocked: the crash NMI at last"
            ap.add("old kernel", op(text, when=late, do=nmi, to="first", after=costs.NMI_BLOCKED))
        if self.v.shared == "half":
            self.converting()
        save = op("saves its registers to its crash note", do=[put(cpu.note, 1)])
        count = op("waiting_for_crash_ipi - 1", do=[add(g.waiting, -1)])
        first, second = (save, count) if self.v.saves == "first" else (count, save)
        ap.phase("stop")
        ap.at("first", first)
        ap.at("second", second)
        ap.at("halt", op("HLT", do=[halt(cpu)]), ends=True)  # or destroyed before it gets there
        ap.at("halted", ends=True)

    def converting(self) -> None:
        """An AP is making a page shared: RMP first, then the page table."""
        g, cpu, ap = self.flow.g, self.flow.cpu, self.ap
        self.flow.globals(converted=0)
        rescind = [
            frames.happen(self.shared, 0, frames.pvalidate(False), g.answer),
            frames.happen(self.shared, 0, frames.rmpupdate(False), g.answer),
        ]
        text = "PVALIDATE rescinds, VMGEXIT: PSC to shared"
        begin = op(
            text,
            when=[g.converted == 0, cpu.nmi_pending == 0],
            do=[*rescind, put(g.converted, 1)],
            to="half",
            cost=costs.VMGEXIT + costs.RMPUPDATE + costs.PVALIDATE,
        )
        ap.add("old kernel", begin)
        clear = frames.map_as(lib.FRAME_SHARED)
        ap.at(
            "half",
            op(
                "PTE: C-bit cleared",
                do=[frames.happen(self.shared, 0, clear, g.answer)],
                to="old kernel",
            ),
            op(
                "crash NMI between PSC and PTE",
                when=[cpu.nmi_pending == 1],
                do=[put(cpu.nmi_pending, 0)],
                to="first",
                cost=costs.IPI,
            ),
        )

    # -- the crashing CPU --------------------------------------------------------------------

    def panic(self) -> None:
        boot, g, other = self.boot, self.flow.g, self.flow.other
        boot.phase("stop other CPUs")
        if self.v.deaf and self.m.n_cpus > 1:
            self.flow.per_cpu(deaf=0)
            boot.at("before", op("a CPU has NMIs blocked", pick=True, do=[put(other.deaf, 1)]))
        elif self.v.deaf:
            self.flow.per_cpu(deaf=0)
        boot.at(
            "panic",
            op(
                "panic: NMI to all other CPUs",
                do=[put(g.asked, 1), put(g.waiting, self.m.n_cpus - 1), each(send_nmi(other))],
                cost=costs.IPI,
            ),
        )
        boot.at("shoot-down", op("all other CPUs have counted down", when=[g.waiting == 0]))
        if self.v.deaf:
            text = "1 s is over: goes on with CPUs still running"
            boot.add("shoot-down", op(text, when=[g.waiting != 0], after=costs.CRASH_TIMEOUT))

    def finish(self) -> None:
        """snp_kexec_finish, before the crashing CPU saves its own registers."""
        self.boot.phase("hand memory over")
        if self.v.vmsa:
            self.shut_down_aps()
        if self.v.shared in ("unshared", "skipped", "half"):
            self.unshare()
        self.boot.phase("boot the crash kernel")
        text = "saves its own registers, jumps to the crash kernel"
        self.boot.at(
            "jump", op(text, do=[put(self.flow.g.kernel, Kernel.CRASH)], cost=costs.CRASH_BOOT)
        )

    def shut_down_aps(self) -> None:
        """F1: destroy each AP, clear the tag of its VMSA; the own VMSA becomes PageOffline."""
        flow, boot, g, other = self.flow, self.boot, self.flow.g, self.flow.other
        flow.globals(offline=0, destroyed=0)
        if self.v.vmsa == "busy":
            return
        flow.globals(left=self.m.n_cpus - 1)
        flow.per_cpu(gone=0)
        leave = [frames.happen(self.vmsa, 0, FrameOp(lib.FRAME_OP_VMEXIT), g.answer)]
        last = [put(g.destroyed, 1), *(leave if self.v.vmsa == "destroyed" else [])]
        n = self.m.n_cpus - 1
        boot.at(
            "destroy",
            op(
                "VMGEXIT: AP creation, destroy an AP",
                pick=True,
                when=[other.gone == 0],
                do=[
                    *destroy_ap(flow.boot, other, self.m.ghcb_gpa),
                    put(other.gone, 1),
                    add(g.left, -1),
                ],
                to=".",
                cost=costs.AP_DESTROY,
            ),
            op("all APs are destroyed", when=[g.left == 0], do=last),
        )
        if self.v.vmsa == "offline":
            text = "its own VMSA page: PageOffline, stays tagged"
            boot.at("own VMSA", op(text, do=[put(g.offline, 1)]))
            return
        boot.at(
            "clear",
            op(
                "RMPADJUST: clears the VMSA tag",
                do=[frames.happen(self.vmsa, 0, _rmpadjust(False), g.answer)],
                cost=n * costs.RMPADJUST,
            ),
        )
        boot.at(
            "cleared",
            op("frees the VMSA page", when=[g.answer == 0]),
            op("leaking page: the VMSA is in use", when=[g.answer != 0], do=[put(g.answer, 0)]),
        )
        if self.v.vmsa == "leaked":
            host = flow.agent("hypervisor")
            host.phase("leave guest mode")
            host.at(
                "kick",
                op(
                    "the destroyed vCPU leaves guest mode",
                    when=[g.destroyed == 1],
                    do=leave,
                    cost=costs.HYPERVISOR_WAKE,
                ),
                ends=True,
            )
            host.at("left", ends=True)

    def unshare(self) -> None:
        """F2 to F6: every leaf that the page table shows as shared becomes private."""
        g, boot = self.flow.g, self.boot
        word: Field = g.buffer_0
        is_shared = (word & MAPPING) == lib.FRAME_SHARED << lib.FRAME_MAPPING_SHIFT
        is_private = (word & MAPPING) == lib.FRAME_PRIVATE << lib.FRAME_MAPPING_SHIFT
        steps = (
            frames.map_as(lib.FRAME_PRIVATE),
            frames.rmpupdate(True),
            frames.pvalidate(True),
        )
        do = [frames.happen(self.shared, 0, step, g.answer) for step in steps]
        cost = scaling.unshare(self.m).ns + scaling.unshare_ghcbs(self.m).ns
        if self.v.shared == "skipped":
            text = "unshare: the leaf just below a GHCB is taken for the GHCB's: skipped"
            boot.at("unshare", op(text, cost=cost))
            return
        boot.at(
            "unshare",
            op("unshare: PTE private, VMGEXIT: PSC, PVALIDATE", when=[is_shared], do=do, cost=cost),
        )
        if self.v.shared == "half":
            boot.add("unshare", op("unshare: no PTE says shared", when=[is_private], cost=cost))

    # -- the crash kernel --------------------------------------------------------------------

    def crash_kernel(self) -> None:
        """Boot in the reservation, read the header, merge the notes."""
        boot, g, other = self.boot, self.flow.g, self.flow.other
        boot.phase("find the old kernel")
        if self.v.pattern:
            self.allocate()
        key = self.v.header_key
        if self.v.header_encrypted is not None:
            key = self.v.key if self.v.header_encrypted else lib.GHCB_KEY_SLOT_NONE
        word: Field = g.header_0
        attribute = "unencrypted" if key == lib.GHCB_KEY_SLOT_NONE else "encrypted"
        legible = op(f"reads elfcorehdr, mapped {attribute}", when=[key_is(word, key)])
        noise = op(
            f"elfcorehdr, mapped {attribute}, is noise: no /proc/vmcore",
            when=[key_is(word, key).negated()],
            do=[put(g.core, Core.NO_HEADER)],
            to="end",
        )
        boot.at("elfcorehdr", legible, noise)
        merge = [each(put(other.in_core, other.note))]
        boot.at("notes", op("merges the notes of all possible CPUs", do=merge))

    def allocate(self) -> None:
        """The crash kernel's swiotlb comes on top of what a kernel without encryption needs."""
        boot, g = self.boot, self.flow.g
        self.flow.globals(reserved=0)
        ram = self.m.layout.memmap.ram_bytes
        plain = max(crash_bytes(ram) - SWIOTLB_MIN_BYTES, 0)
        line = FEATURES[self.v.kind]
        found = re.search(self.v.pattern, line) is not None
        said = "found: 64 MiB more" if found else "not found: nothing more"
        boot.at(
            "load",
            op(
                f'kdump-utils looks for "{self.v.pattern}" in "{line}": {said}',
                do=[put(g.reserved, plain + found * SWIOTLB_MIN_BYTES)],
            ),
        )
        enough = g.reserved >= plain + SWIOTLB_MIN_BYTES
        boot.at(
            "swiotlb",
            op("allocates a swiotlb of 64 MiB", when=[enough]),
            op(
                "out of memory: the swiotlb does not fit into the reservation",
                when=[enough.negated()],
                do=[put(g.core, Core.NO_MEMORY)],
                to="end",
            ),
        )

    def read(self, name: str, what: str, region: FrameRegion, n_pages: int = 1) -> None:
        """Read the pages for which a frame stands; a nested fault is the host's to answer."""
        flow, boot, g = self.flow, self.boot, self.flow.g
        touch = [frames.happen(region, 0, self.access(), g.fault)]
        done, again = f"have {name}", f"again {name}"
        cost = n_pages * costs.OLDMEM_PAGE
        boot.at(f"read {name}", op(f"reads {what}", do=touch, to=done, cost=cost))
        copies = op("copies it", when=[g.fault == 0])
        if not self.v.is_snp:
            boot.at(done, copies)
            return
        vc, npf = lib.FRAME_RESULT_VC, lib.FRAME_RESULT_NPF
        is_vc = g.fault == vc << lib.FRAME_RESULT_KIND_SHIFT
        is_npf = [g.fault != 0, g.fault < (npf + 1) << lib.FRAME_RESULT_KIND_SHIFT]
        boot.at(
            again,
            op(f"reads it again: {what}", when=[g.answer == 0], do=touch, to=done),
            op(
                "#NPF for ever: RMPUPDATE says the page is in use",
                when=[g.answer != 0],
                do=[put(g.dead, 1)],
                to="dead",
            ),
        )
        boot.at(
            done,
            copies,
            op(
                "#VC 0x404, page not validated: the guest dies",
                when=[is_vc],
                do=[put(g.dead, 1), call(lib.GHCB_CALL_SHUTDOWN, flow.boot)],
                to="dead",
            ),
            op(
                "#NPF: the host makes the page private",
                when=is_npf,
                do=[frames.happen(region, 0, frames.rmpupdate(True), g.answer)],
                to=again,
                cost=costs.VMGEXIT,
            ),
        )

    def pages(self) -> None:
        """The tool: find the way through page tables, then every page that is not left out."""
        v, boot, g = self.v, self.boot, self.flow.g
        boot.phase("dump")
        masked = v.exports_mask and v.strips_mask
        if masked:
            boot.at("tables", op(f"{v.reader} walks page tables, C-bit removed"))
        else:
            why = "no NUMBER(sme_mask)" if not v.exports_mask else "does not know sme_mask"
            text = f"{v.reader} walks page tables, {why}: addresses with the C-bit are no memory"
            boot.at("tables", op(text, do=[put(g.core, Core.LOST_IN_TABLES)], to="end"))
        ram = self.m.layout.memmap.n_pages
        self.read("memory", "the kernel's memory", self.memory, ram)
        if v.vmsa == "offline" and v.reader == "makedumpfile":
            boot.at("skip VMSA", op("leaves out a page that is PageOffline"))
        elif v.vmsa:
            self.read("VMSA", "a VMSA page", self.vmsa)
        if v.shared:
            self.read("buffer", "a page that was shared", self.shared)
        if v.unaccepted == "skipped":
            boot.at("skip unaccepted", op("unaccepted memory is not RAM: reads as zeros"))
        elif v.unaccepted:
            self.read("unaccepted", "unaccepted memory", self.lazy)
        boot.at("write", op("writes the core", do=[put(g.core, Core.WRITTEN)]))
        boot.at("end", ends=True)
        boot.at("dead", ends=True)

    def build(self) -> Flow:
        v = self.v
        if v.vmsa:
            in_use = (*_private(v), _rmpadjust(True), FrameOp(lib.FRAME_OP_VMRUN))
            self.vmsa = self.page("vmsa", in_use)
        if v.shared:
            start = _private(v) if v.shared == "half" else SHARED
            self.shared = self.page("buffer", start)
        if v.unaccepted:
            start = (frames.map_as(lib.FRAME_PRIVATE),)
            self.lazy = self.page("lazy", start)
        self.panic()
        self.aps()
        self.finish()
        self.crash_kernel()
        self.pages()
        self.flow.globals(
            kind=v.kind,
            exports_mask=int(v.exports_mask),
            reader_key=v.reader_key,
            writer_key=v.key,
        )
        return self.flow


# -- what a frame stands for ---------------------------------------------------------------------


def _frames(start: int, end: int) -> list[tuple[int, int]]:
    return [(start // PAGE_BYTES, (end - start) // PAGE_BYTES)]


def _header(machine: Machine) -> list[tuple[int, int]]:
    """The first page of the crash reservation; the layout says no more."""
    part = Part.CRASH if Part.CRASH in machine.layout else Part.OLD_TEXT
    start = machine.layout[part].start
    return _frames(start, start + PAGE_BYTES)


def _text(machine: Machine) -> list[tuple[int, int]]:
    region = machine.layout[Part.OLD_TEXT]
    return _frames(region.start, region.end)


def _buffer(machine: Machine) -> list[tuple[int, int]]:
    region = machine.layout[Part.SWIOTLB]
    return _frames(region.start, region.end)


PLACES: Final = {
    "header": _header,
    "memory": _text,
    "vmsa": lambda machine: _frames(*vmsa_range(machine.layout)),
    "buffer": _buffer,
    "lazy": lambda machine: _frames(*unaccepted_range(machine.layout)),
}

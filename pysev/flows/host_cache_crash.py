"""The flow of ``host-cache-flush/crash-*``: a crash of an SME host, whose CPUs do not flush.

Theory of operation. Two lines: one of the memory reserved for the crash kernel, one of the old
kernel's, which the dump is made of. The other CPUs halt where the NMI meets them, with their caches
as they are. The crash kernel writes its own memory without the C-bit and reads the old kernel's
with it. Dirty copies with the C-bit are no danger to the dump, because within one domain CPUs are
coherent, halted ones too; to the crash kernel's own memory they would be.

Sources: fact sheet of the SNP host 4.1 and 7.2; Linux flows 1.6 and 6.3; Linux
arch/x86/kernel/{crash,reboot}.c.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .. import costs, lines, scaling
from ..flow import Effect, Flow, Op, Words, add, each, op, put
from ..machine import Machine
from .host_cache_variant import PLAIN, SME, Bytes, Kernel

__all__ = ["CrashVariant", "HostCacheCrash"]

DOMAINS = {PLAIN: "C=0", SME: "C=1"}


class Dumped(enum.IntEnum):
    """``g.dumped``: what the dump has of the old kernel's line."""

    NOISE = int(Bytes.NOISE)
    OLD = int(Bytes.OLD)
    NOT_READ = int(Bytes.NOT_READ)


@dataclass(frozen=True)
class CrashVariant:
    """What distinguishes one scenario of a crash from another.

    Attributes
    ----------
    flush : bool
        Every CPU executes WBINVD: the others in the NMI, as on an SNP host, the crashing one before
        it jumps.
    reserved_dirty : bool
        A line of the reserved memory may be dirty with the C-bit.
    times_out : bool
        The crashing CPU goes on after a second, whoever has not counted down.
    dump_key : int
        The slot under which the crash kernel reads old memory.
    """

    flush: bool = False
    reserved_dirty: bool = False
    times_out: bool = True
    dump_key: int = SME


class HostCacheCrash:
    """One flow of a crash; each method writes one agent's program."""

    def __init__(self, variant: CrashVariant, machine: Machine, name: str) -> None:
        self.v = variant
        self.n_others = machine.n_cpus - 1
        self.flush_ns = scaling.wbinvd(machine, max(1, self.n_others)).ns
        self.flow = flow = Flow(name)
        image, old = (PLAIN, Bytes.OLD), (SME, Bytes.OLD)
        self.reserved = lines.declare(flow, "reserved_line", DOMAINS, Bytes, start=image)
        self.old = lines.declare(flow, "old_line", DOMAINS, Bytes, start=old)
        flow.globals(kernel=Kernel.OLD, read=Bytes.NOT_READ, dumped=Dumped.NOT_READ, waiting=0)
        flow.per_cpu(nmi=0)
        flow.name_values("kernel", Kernel)
        flow.name_values("read", Bytes)
        flow.name_values("dumped", Dumped)

    def uses(self, by: Words) -> list[Op]:
        """What a CPU of the old kernel may have written last."""
        ops = [self._writes(self.old, by)]
        if self.v.reserved_dirty:
            ops.append(self._writes(self.reserved, by))
        return ops

    def _writes(self, line: lines.Line, by: Words) -> Op:
        return op(f"writes the {line.name} (C=1)", do=[lines.store(line, by, SME, Bytes.OLD)])

    def wbinvd(self, by: Words) -> list[Effect]:
        if not self.v.flush:
            return []
        return [lines.wbinvd(line, by, SME) for line in (self.reserved, self.old)]

    def others(self) -> None:
        flow, cpu, g = self.flow, self.flow.cpu, self.flow.g
        ap = flow.agent("CPU", per_cpu=True)
        met = op("crash NMI", when=[cpu.nmi == 1], do=[put(cpu.nmi, 0)], to="NMI", cost=costs.IPI)
        ap.phase("old kernel")
        ap.at("old kernel", *self.uses(cpu), met)
        ap.at("busy", met)
        ap.phase("stop")
        text = "saves its registers, WBINVD" if self.v.flush else "saves its registers, no WBINVD"
        ap.at(
            "NMI",
            op(text, do=self.wbinvd(cpu), cost=self.flush_ns if self.v.flush else 0),
        )
        ap.at("count", op("waiting_for_crash_ipi - 1, HLT", do=[add(g.waiting, -1)]))
        ap.at("halted", ends=True)

    def crashing(self) -> None:
        v, flow, g = self.v, self.flow, self.flow.g
        boot = flow.agent("boot CPU")
        boot.phase("old kernel")
        boot.at("old kernel", *self.uses(flow.boot), op("writes nothing"))
        tell = [put(g.waiting, self.n_others), each(put(flow.other.nmi, 1))]
        panic = op("panic: NMI to all other CPUs", do=tell, cost=costs.IPI, after=costs.MS)
        boot.phase("stop other CPUs")
        boot.at("panic", panic)
        counted = op("all other CPUs have counted down", when=[g.waiting == 0])
        late = op(
            "1 s is over: goes on with CPUs still running",
            when=[g.waiting != 0],
            after=costs.CRASH_TIMEOUT,
        )
        boot.at("shoot-down", *([counted, late] if v.times_out else [counted]))
        boot.phase("boot the crash kernel")
        text = f"machine_kexec: {'WBINVD, ' if v.flush else ''}jumps to the crash kernel"
        do = [*self.wbinvd(flow.boot), put(g.kernel, Kernel.NEW)]
        cost = costs.RELOCATE + (costs.WBINVD if v.flush else 0)
        boot.at("machine_kexec", op(text, do=do, cost=cost))
        boot.phase("crash kernel")
        store = lines.store(self.reserved, flow.boot, PLAIN, Bytes.NEW)
        boot.at("crash kernel", op("the crash kernel writes its reserved_line (C=0)", do=[store]))
        load = lines.load(self.reserved, flow.boot, PLAIN, g.read)
        boot.at("own memory", op("the crash kernel reads its reserved_line", do=[load]))
        load = lines.load(self.old, flow.boot, v.dump_key, g.dumped)
        boot.phase("dump")
        boot.at("dump", op(f"/proc/vmcore: reads the old_line ({DOMAINS[v.dump_key]})", do=[load]))
        boot.at("up", ends=True)

    def build(self) -> Flow:
        self.crashing()
        self.others()
        lines.hardware(self.flow, self.reserved, self.old)
        return self.flow

"""The flow of ``host-cache-flush/*``: who executes WBINVD on the way to the next kernel, where.

Theory of operation. There is one line of memory, over which the next kernel will be copied. The
old kernel wrote it under a key (SME: with the C-bit; TDX: in a SEAMCALL, under a KeyID), so a dirty
copy may be in some CPU's cache; the next kernel is written without the key. The two copies do not
know of each other, and hardware writes dirty ones back when it likes: if the old one is written
back last, the next kernel reads noise. So each CPU must write back after its last access under the
key and before the next kernel is copied, and it must do so where WBINVD can be executed at all.

Every CPU may or may not be the one that wrote the line last. The steps are those of
``native_stop_other_cpus``, ``stop_this_cpu``, ``machine_kexec`` and ``relocate_kernel``.

Sources: fact sheet of the SNP host 4.3, 6.2, 7; Linux flows 1.2 to 1.4, 1.7, 10.1; Linux
arch/x86/kernel/{smp,process,machine_kexec_64,relocate_kernel_64}.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from ghcbcore._cffi import lib
from ghcbcore.profile import Profile

from .. import costs, lines, scaling
from ..flow import Effect, Field, Flow, Op, Test, Words, add, call, each, op, put, when
from ..machine import Machine
from ..words import ask_nae
from .host_cache_variant import (
    BEFORE_SEGMENTS,
    BY_CALL,
    BY_FLAG,
    FLAG,
    INLINE,
    NEVER,
    PLAIN,
    Bytes,
    Kernel,
    Variant,
)


class HostCacheFlush:
    """One flow of the family; each method writes one piece of an agent's program."""

    def __init__(self, variant: Variant, machine: Machine, name: str) -> None:
        self.v = variant
        self.m = machine
        is_sev_guest = variant.guest and variant.rules == "sme"
        guest = lib.GHCB_GUEST_SEV_ES if is_sev_guest else lib.GHCB_GUEST_PLAIN
        self.flow = flow = Flow(name, Profile(guest=guest))
        starts_private = variant.rules == "sme" or variant.guest
        start = (variant.old_key if starts_private else PLAIN, Bytes.OLD)
        self.line = lines.declare(
            flow, "line", variant.domains(), Bytes, start=start, coherent=variant.coherent
        )
        flow.globals(kernel=Kernel.OLD, read=Bytes.NOT_READ, stopping=0)
        flow.per_cpu(ipi=0)
        flow.name_values("kernel", Kernel)
        flow.name_values("read", Bytes)
        if variant.has_flag:
            at_start = int(variant.rules == "sme")  # set when a CPU with SME comes up
            flow.globals(cache_state_incoherent=at_start, flushes=0)
            flow.per_cpu(cache_state_incoherent=at_start)
        if variant.nmi:
            flow.per_cpu(in_mask=0, nmi=0)
        if self.asks:
            flow.globals(asked=0)
            flow.per_cpu(asked=0)
        flow.only_while(flow.vm.event == lib.GHCB_EVENT_NONE)
        self.boot = flow.agent("boot CPU")
        self.cpu = flow.agent("CPU", per_cpu=True)
        self.stops = "stop" if variant.by_online_mask else "flush"
        self.flush_ns = scaling.wbinvd(machine, max(1, machine.n_cpus - 1)).ns  # all at once

    @property
    def asks(self) -> bool:
        """Return whether the boot CPU has all others flush while the old kernel still runs."""
        return self.v.early or self.v.kvm_flushes == "at shutdown"

    # -- words of this family ----------------------------------------------------------------

    def write(self, by: Words) -> Effect:
        """Store the line as the old kernel does."""
        return lines.store(self.line, by, self.v.old_key, Bytes.OLD)

    def wbinvd(self, by: Words) -> Effect:
        """Flush where the CPU has no dirty copy but the old kernel's."""
        flush = lines.wbnoinvd if self.v.keeps_lines else lines.wbinvd
        return flush(self.line, by, self.v.old_key)

    @property
    def seamcall(self) -> str:
        return f"SEAMCALL: the TDX module writes the line ({self.line.domains[self.v.old_key]})"

    @property
    def writes(self) -> str:
        return f"writes the line ({self.line.domains[self.v.old_key]})"

    @property
    def instruction(self) -> str:
        return "WBNOINVD" if self.v.keeps_lines else "WBINVD"

    def triple_fault(self, text: str) -> Op:
        """The boot CPU faults where there is no IDT."""
        shutdown = call(lib.GHCB_CALL_SHUTDOWN, self.flow.boot)
        return op(f"{text}: no IDT: triple fault", do=[shutdown], to="dead")

    # -- the other CPUs ----------------------------------------------------------------------

    def interrupts(self) -> list[Op]:
        """Whatever an interruptible CPU of the old kernel does next: it is stopped."""
        cpu = self.flow.cpu
        stop = op(
            "REBOOT_VECTOR: stop_this_cpu: IRQs off, local APIC off",
            when=[cpu.ipi == 1],
            do=[put(cpu.ipi, 0)],
            to=self.stops,
            cost=costs.IPI,
        )
        return [stop, *self.nmi("NMI: stop_this_cpu", self.stops, [put(cpu.ipi, 0)])]

    def nmi(self, text: str, to: str, do: list[Effect] | None = None) -> list[Op]:
        """An NMI at this point, in designs that send one."""
        if not self.v.nmi:
            return []
        cpu = self.flow.cpu
        return [op(text, when=[cpu.nmi == 1], do=[put(cpu.nmi, 0), *(do or [])], to=to)]

    def asked(self, to: str) -> list[Op]:
        """The boot CPU has asked for a flush while the old kernel runs."""
        if not self.asks:
            return []
        cpu, g = self.flow.cpu, self.flow.g
        text = "wbinvd_on_all_cpus: WBINVD"
        more = []
        if self.v.kvm_flushes:
            text = "KVM shuts down: WBINVD, clears cache_state_incoherent"
            more = [put(cpu.cache_state_incoherent, 0)]
        do = [self.wbinvd(cpu), put(cpu.asked, 0), add(g.asked, -1), *more]
        return [op(text, when=[cpu.asked == 1], do=do, to=to, cost=self.flush_ns)]

    def old_kernel(self) -> None:
        """The CPU uses the line, or does not, until it is stopped."""
        v, cpu, ap = self.v, self.flow.cpu, self.cpu
        stays = v.partial_writes == "refused"
        idle = "idle" if v.kvm_flushes == "at shutdown" else "old kernel"
        about = [*self.asked(idle), *self.interrupts()]
        ap.phase("old kernel")
        if v.mask_line:
            ap.at("old kernel", *self.interrupts())
            return
        if v.rules == "sme" or v.guest:
            wrote = op(self.writes, do=[self.write(cpu)], to="busy")
            ap.at("old kernel", wrote, *about)
        elif not v.has_flag:
            call_ = op(self.seamcall, do=[self.write(cpu)], to="busy", cost=costs.SEAMCALL)
            ap.at("old kernel", call_, *about, ends=stays)
        else:
            self.seamcall_with_flag(about)
        ap.at("busy", *about, *self.kvm_flush(), ends=stays)
        if idle == "idle":
            ap.at("idle", *self.interrupts())

    def seamcall_with_flag(self, about: list[Op]) -> None:
        """A SEAMCALL and its flag, and the interrupt that may come between the two."""
        cpu, ap = self.flow.cpu, self.cpu
        flag = op("sets cache_state_incoherent", do=[put(cpu.cache_state_incoherent, 1)])
        call_ = op(self.seamcall, do=[self.write(cpu)], cost=costs.SEAMCALL)
        first, second = (call_, flag) if self.v.flag_late else (flag, call_)
        ap.at("old kernel", first, *about)
        ap.at("SEAMCALL", second, *self.interrupts())

    def kvm_flush(self) -> list[Op]:
        """KVM needs no more SEAMCALLs on this CPU, for now."""
        if self.v.kvm_flushes != "sometimes":
            return []
        cpu = self.flow.cpu
        return [
            op(
                "KVM: no more SEAMCALLs: WBINVD, clears cache_state_incoherent",
                when=[cpu.cache_state_incoherent == 1],
                do=[self.wbinvd(cpu), put(cpu.cache_state_incoherent, 0)],
                to="old kernel",
                cost=costs.WBINVD,
                after=costs.EVICTION,
                spread=True,
            )
        ]

    def stop_this_cpu(self) -> None:
        """stop_this_cpu from its flush to its HLT."""
        v, cpu, g, ap = self.v, self.flow.cpu, self.flow.g, self.cpu
        again = self.nmi("NMI: stop_this_cpu once more", self.stops)
        ap.phase("stop")
        if v.by_online_mask:
            ap.at("stop", op("goes offline", do=[add(g.stopping, -1)]))
        self.flush(again)
        done: list[Effect] = [] if v.by_online_mask else [add(g.stopping, -1)]
        if v.mask_line:
            done.append(self.write(cpu))
        if v.nmi:
            done = [when(cpu.in_mask == 1, put(cpu.in_mask, 0), *done)]
        text = "HLT" if v.by_online_mask else "clears its bit in cpus_stop_mask, HLT"
        ap.at("report", op(text, do=done), *again)
        late = self.nmi("NMI: HLT again", ".")
        if v.writes_on:
            text = f"HLT loop: writes its stack: {self.writes}"
            late.append(op(text, do=[self.write(cpu)], to="wrote"))
        ap.at("halted", *late, ends=True)
        if v.writes_on:
            ap.at("wrote", ends=True)

    def flush(self, again: list[Op]) -> None:
        """WBINVD, or not, just before the CPU reports."""
        v, cpu, ap = self.v, self.flow.cpu, self.cpu
        needed = [cpu.cache_state_incoherent == 1] if v.remote == FLAG else []
        skipped = []
        if v.remote == FLAG:
            text = "cache_state_incoherent is clear: no WBINVD"
            skipped = [op(text, when=[cpu.cache_state_incoherent == 0], to="report")]
        if v.guest and v.remote != NEVER:
            ask = ask_nae(cpu, self.m.ghcb_gpa, lib.GHCB_NAE_WBINVD)
            text = "WBINVD: #VC, the IDT is still there: VMGEXIT"
            ap.at("flush", op(text, do=ask, cost=costs.VMGEXIT))
            return
        if v.remote == NEVER:
            ap.at("flush", op("no WBINVD"), *again)
        elif v.nmi:
            begins = op("WBINVD begins", when=needed, cost=self.flush_ns)
            ap.at("flush", begins, *skipped, *again)
            ap.at(
                "in WBINVD",
                op("WBINVD ends", do=[self.wbinvd(cpu)]),
                *self.nmi("NMI in the middle of WBINVD: the CPU hangs", "hung"),
            )
        else:
            one = op(self.instruction, when=needed, do=[self.wbinvd(cpu)], cost=self.flush_ns)
            ap.at("flush", one, *skipped, *again)

    # -- the boot CPU ------------------------------------------------------------------------

    def before_kexec(self) -> None:
        """The boot CPU as one of those that use the line, and what is asked of all CPUs."""
        v, flow, boot, g = self.v, self.flow, self.boot, self.flow.g
        boot.phase("old kernel")
        if v.partial_writes == "refused":
            text = "kexec_file_load: X86_BUG_TDX_PW_MCE: -EOPNOTSUPP"
            boot.at("load", op(text, do=[put(g.kexec_error, errno.EOPNOTSUPP)], to="refused"))
            return
        if not v.early:
            self.boot_seamcall()
        if self.asks:
            text, more = "wbinvd_on_all_cpus: WBINVD, IPI to all other CPUs", []
            if v.kvm_flushes:
                text = "syscore_shutdown: KVM: WBINVD here and, by IPI, on all other CPUs"
                more = [put(g.cache_state_incoherent, 0)]
            do = [self.wbinvd(flow.boot), *more, put(g.asked, self.m.n_cpus - 1)]
            do.append(each(put(flow.other.asked, 1)))
            boot.at("flush all", op(text, do=do, cost=costs.WBINVD, after=costs.MS))
            boot.at("flushing", op("all other CPUs have executed WBINVD", when=[g.asked == 0]))
        if v.early:
            self.boot_seamcall()

    def boot_seamcall(self) -> None:
        """The boot CPU makes a SEAMCALL, or none."""
        v, flow, boot, g = self.v, self.flow, self.boot, self.flow.g
        if v.rules == "sme" or v.guest:
            return
        flag = [put(g.cache_state_incoherent, 1)] if v.has_flag else []
        do = [*flag, self.write(flow.boot)]
        none = op("no SEAMCALL")
        boot.at("old kernel", op(self.seamcall, do=do, cost=costs.SEAMCALL), none)

    def stop_others(self) -> None:
        """native_stop_other_cpus."""
        v, flow, boot, g = self.v, self.flow, self.boot, self.flow.g
        other = flow.other
        boot.phase("stop other CPUs")
        marks = [put(other.ipi, 1), *([put(other.in_mask, 1)] if v.nmi else [])]
        do = [put(g.stopping, self.m.n_cpus - 1), each(*marks)]
        do += [self.write(flow.boot)] if v.mask_line else []
        text = "kexec -e: REBOOT_VECTOR to all other CPUs"
        boot.at("kexec", op(text, do=do, cost=costs.IPI, after=costs.MS))
        text = "all other CPUs are offline" if v.by_online_mask else "cpus_stop_mask is empty"
        do = []
        if v.mask_line and v.takes_back:
            text += ": clears it once more"
            do = [self.write(flow.boot)]
        stopped = op(text, when=[g.stopping == 0], do=do, to="machine_kexec")
        if not v.nmi:
            boot.at("stopping", stopped)
            return
        boot.at(
            "stopping",
            stopped,
            op(
                "1 s is over: NMI to the CPUs still in the mask",
                when=[g.stopping != 0],
                do=[each(when(other.in_mask == 1, put(other.nmi, 1)))],
                after=costs.STOP_TIMEOUT,
            ),
        )
        boot.at("stopping by NMI", stopped)

    def machine_kexec(self) -> None:
        """From the last writes of the old kernel to the point where there is no IDT."""
        v, flow, boot, g = self.v, self.flow, self.boot, self.flow.g
        elsewhere = op("machine_kexec: control page, page tables", to="segments")
        boot.phase("leave the old kernel")
        if v.mask_line or (v.rules == "tdx" and not v.guest):
            boot.at("machine_kexec", elsewhere)
        else:
            text = f"machine_kexec: {self.writes}"
            boot.at("machine_kexec", op(text, do=[self.write(flow.boot)]), elsewhere)
        reads, do = "", []
        if v.last == FLAG and v.decides == BEFORE_SEGMENTS:
            reads, do = "reads cache_state_incoherent; ", [put(g.flushes, g.cache_state_incoherent)]
        boot.at("segments", op(f"{reads}load_segments: GS base 0; GDT and IDT gone", do=do))
        if v.decides == BY_CALL:
            text = "calls a function: call depth tracking writes through GS: #PF"
            boot.at("decide", self.triple_fault(text))
        elif v.decides == BY_FLAG:
            text = "reads cache_state_incoherent through GS: #PF"
            boot.at("decide", self.triple_fault(text))
        elif v.decides == INLINE:
            boot.at("decide", op("decides inline, by a feature bit: no call, no GS"))

    def relocate_kernel(self) -> None:
        """Identity page tables, WBINVD or not, copying, and the jump."""
        v, flow, boot, g = self.v, self.flow, self.boot, self.flow.g
        text = "relocate_kernel: identity page tables"
        boot.phase("relocate")
        if v.guest and v.last != NEVER:
            fault = "#VC" if v.rules == "sme" else "#VE"
            boot.at("relocate", self.triple_fault(f"{text}, WBINVD: {fault}"))
        elif v.last == NEVER or v.after_copy:
            boot.at("relocate", op(text))
        else:
            needed = [g.flushes == 1] if v.last == FLAG else []
            flush = [self.wbinvd(flow.boot)]
            full = f"{text}, {self.instruction}"
            ops = [op(full, when=needed, do=flush, to="copy", cost=costs.WBINVD)]
            if needed:
                ops.append(op(f"{text}, flag clear", when=[g.flushes == 0], to="copy"))
            boot.at("relocate", *ops)
        self.copy()
        if v.after_copy:
            boot.at("late", *(self._late(slot) for slot in self.line.domains))
        boot.at("jump", op("jumps to the new kernel", do=[put(g.kernel, Kernel.NEW)]))

    def copy(self) -> None:
        """Copy the new kernel over the line."""
        v, flow, boot, g = self.v, self.flow, self.boot, self.flow.g
        do = lines.store(self.line, flow.boot, v.new_key, Bytes.NEW)
        text = f"copies the new kernel over the line ({self.line.domains[v.new_key]})"
        if not v.partial_writes:
            boot.at("copy", op(text, do=[do], cost=costs.RELOCATE))
            return
        private: Test = self.line.memory & lib.GHCB_CELL_SLOT == v.old_key
        boot.at(
            "copy",
            op(text, when=[private.negated()], do=[do], cost=costs.RELOCATE),
            op(
                f"{text} in pieces, over a KeyID's: poisoned",
                when=[private],
                do=[do, put(g.poisoned, 1)],
                cost=costs.RELOCATE,
            ),
        )

    def _late(self, last: int) -> Op:
        """WBINVD behind the copying, when two copies may be dirty."""
        flush = lines.wbinvd(self.line, self.flow.boot, last)
        text = f"WBINVD, the line ({self.line.domains[last]}) last"
        return op(text, do=[flush], to="jump", cost=costs.WBINVD)

    def new_kernel(self) -> None:
        """Reads what was copied, whenever it likes."""
        flow, boot, g = self.flow, self.boot, self.flow.g
        read: Field = g.read
        do = lines.load(self.line, flow.boot, self.v.new_key, read)
        reads = op("the new kernel reads the line", do=[do], to="up")
        boot.phase("new kernel")
        if self.v.partial_writes:
            mce = op(
                "the new kernel reads poisoned memory: machine check",
                when=[g.poisoned == 1],
                do=[put(g.machine_check, 1)],
                to="dead",
            )
            boot.at("new kernel", replace(reads, when=(g.poisoned == 0,)), mce)
        else:
            boot.at("new kernel", reads)
        boot.at("up", ends=True)
        boot.at("dead")

    def build(self) -> Flow:
        v, flow = self.v, self.flow
        if v.partial_writes:
            flow.globals(poisoned=0, machine_check=0, kexec_error=0)
        self.old_kernel()
        self.stop_this_cpu()
        if v.nmi:
            self.cpu.at("hung")
        self.before_kexec()
        if v.partial_writes == "refused":
            self.boot.at("refused", ends=True)
        else:
            self.stop_others()
            self.machine_kexec()
            self.relocate_kernel()
            self.new_kernel()
        lines.hardware(flow, self.line)
        return flow

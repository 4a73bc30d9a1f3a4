"""``host-cache-flush/*``: who executes WBINVD before the next kernel, where, and who must not.

The designs that were argued about in 2025 for SME and for TDX, each with its properties, its
verdict and its source. What the CPUs do is in ``pysev.flows.host_cache_flush``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ghcbcore._cffi import lib

from .. import lines
from ..flow import Flow
from ..flows.host_cache_crash import CrashVariant, Dumped, HostCacheCrash
from ..flows.host_cache_flush import HostCacheFlush
from ..flows.host_cache_variant import (
    ALWAYS,
    BY_CALL,
    BY_FLAG,
    FLAG,
    INLINE,
    PLAIN,
    SME,
    Bytes,
    Kernel,
    Variant,
)
from ..machine import Machine
from ..states import States
from .registry import Scenario, register

# -- properties --------------------------------------------------------------------------------

INTACT = "the new kernel reads what was stored"
NO_FAULT = "no triple fault"
NO_MACHINE_CHECK = "no machine check"
REFUSED = "kexec is refused with EOPNOTSUPP"
STOPPED_DIRTY = "a CPU stops with a dirty line of the old kernel"
NO_IDT = "the new kernel is copied where there is no IDT"
ASKED_DIRTY = "a CPU that is asked to flush has a dirty line of the old kernel"
DUMPED = "the dump has what the old kernel wrote"
DUMPS_DIRTY = "the dump reads a line that is dirty in the cache of a halted CPU"
RESERVED_DIRTY = "a reserved line is dirty with the C-bit when the NMI comes"
SHOT = "an NMI finds a CPU that has not reported"


def _intact(s: States) -> Any:
    return (s.g.read == Bytes.NOT_READ) | (s.g.read == Bytes.NEW)


def _refused(s: States) -> Any:
    untouched = s.at("CPU", "old kernel", "busy").all(axis=1) & (s.g.kernel == Kernel.OLD)
    return (s.g.kexec_error == errno.EOPNOTSUPP) & s.at("boot CPU", "refused") & untouched


def _old_dirty(s: States, made: HostCacheFlush) -> Any:
    """Return which CPUs have a dirty copy of the old kernel's: (n_states, n_cpus), boot CPU 0."""
    return lines.is_dirty(s, made.line, made.v.old_key)


def _stopped_dirty(s: States, made: HostCacheFlush) -> Any:
    stopped = s.at("CPU", "flush", "report", "halted")
    at_relocate = s.at("boot CPU", "relocate")[:, None]
    return (_old_dirty(s, made) & np.concatenate([at_relocate, stopped], axis=1)).any(axis=1)


def _asked_dirty(s: States, made: HostCacheFlush) -> Any:
    return (_old_dirty(s, made)[:, 1:] & (s.cpu.asked == 1)).any(axis=1)


def _shot(s: States) -> Any:
    return ((s.cpu.nmi == 1) & (s.cpu.in_mask == 1)).any(axis=1)


def _build(variant: Variant, name: str) -> Callable[[Machine], Flow]:
    def build(machine: Machine) -> Flow:
        made = HostCacheFlush(variant, machine, name)
        flow = made.build()
        flow.count_cpus("halted", lambda s: s.at("CPU", "halted"))
        if variant.partial_writes == "refused":
            flow.at_end(REFUSED, _refused, "loading the image fails with EOPNOTSUPP")
            flow.count_cpus("online", lambda s: s.at("CPU", "old kernel", "busy"))
            return flow
        flow.always(INTACT, _intact, "what the new kernel stored is what it reads")
        flow.always(
            NO_FAULT,
            lambda s: s.vm.event == lib.GHCB_EVENT_NONE,
            "no CPU faults where there is no IDT",
        )
        flow.sometimes(NO_IDT, lambda s: s.at("boot CPU", "relocate"))
        if variant.kvm_flushes != "at shutdown":
            flow.sometimes(STOPPED_DIRTY, partial(_stopped_dirty, made=made))
        if machine.n_cpus > 1:
            if made.asks:
                flow.sometimes(ASKED_DIRTY, partial(_asked_dirty, made=made))
            if variant.nmi:
                flow.sometimes(SHOT, _shot)
        if variant.partial_writes:
            flow.always(
                NO_MACHINE_CHECK,
                lambda s: s.g.machine_check == 0,
                "the new kernel reads no poisoned memory",
            )
        return flow

    return build


def _dumped(s: States) -> Any:
    return (s.g.dumped == Dumped.NOT_READ) | (s.g.dumped == Dumped.OLD)


def _build_crash(variant: CrashVariant, name: str) -> Callable[[Machine], Flow]:
    def build(machine: Machine) -> Flow:
        made = HostCacheCrash(variant, machine, name)
        flow = made.build()
        flow.count_cpus("halted", lambda s: s.at("CPU", "halted"))
        flow.always(INTACT, _intact, "what the crash kernel stored is what it reads")
        flow.always(DUMPED, _dumped, "what the dump has is what the old kernel wrote")

        def dumps_dirty(s: States) -> Any:
            dirty = lines.is_dirty(s, made.old, SME)[:, 1:] & s.at("CPU", "halted")
            return dirty.any(axis=1) & s.at("boot CPU", "dump")

        def reserved_dirty(s: States) -> Any:
            return (lines.is_dirty(s, made.reserved, SME)[:, 1:] & s.at("CPU", "NMI")).any(axis=1)

        if machine.n_cpus > 1 and not variant.flush:
            flow.sometimes(DUMPS_DIRTY, dumps_dirty)
        if machine.n_cpus > 1 and variant.reserved_dirty:
            flow.sometimes(RESERVED_DIRTY, reserved_dirty)
        return flow

    return build


# -- the library -------------------------------------------------------------------------------

RFC = '"x86/kexec: Do unconditional WBINVD for bare-metal", RFC patch 2/5 (2025-03) and its review'
MERGED = '"TDX host: kexec/kdump support" (Linux 83214a775f33, 744b02f62634, 10df8607bf1a, v6.18)'
STOP = "Linux arch/x86/kernel/{smp,process}.c (1f5e7eb7868e)"
RELOCATE = "Linux arch/x86/kernel/relocate_kernel_64.S"
SEAMCALLS = "private lines come from SEAMCALLs alone, and a line stands for any other"
ANY_LINE = "one line stands for any that the next kernel is copied over"
ATOMIC_HLT = "clearing the bit in cpus_stop_mask and HLT are one step"
NO_NMI = "every CPU reports within a second, so that no NMI is sent"

SECRET = {
    "sme": ("C-bit", ANY_LINE),
    "tdx": ("KeyID", SEAMCALLS),
}


def _add(
    short: str,
    summary: str,
    variant: Variant,
    because: str,
    story: str,
    source: str,
    *assumes: str,
    expected: str = "violated",
    from_cpus: int = 1,
) -> None:
    name = f"host-cache-flush/{short}"
    common = (SECRET[variant.rules][1], ATOMIC_HLT)
    register(
        Scenario(
            name,
            summary,
            expected if because else "holds",
            because,
            story,
            source,
            _build(variant, name),
            (*common, *assumes, *(() if variant.nmi else (NO_NMI,))),
            from_cpus=from_cpus,
        )
    )


def _add_both(
    short: str,
    summary: str,
    because: str,
    story: str,
    source: str,
    *assumes: str,
    sme: dict[str, Any] | None = None,
    tdx: dict[str, Any] | None = None,
    from_cpus: int = 1,
    **what: Any,
) -> None:
    """Add a design for SME and for TDX; ``{key}`` in a text is what the old kernel writes with."""
    for rules, own in (("sme", sme or {}), ("tdx", tdx or {})):
        key = SECRET[rules][0]
        _add(
            f"{short}-{rules}",
            f"{rules.upper()}: {summary.format(key=key)}",
            Variant(rules=rules, **what, **own),
            because,
            story.format(key=key),
            source,
            *assumes,
            from_cpus=from_cpus,
        )


_add_both(
    "none",
    "no CPU executes WBINVD",
    INTACT,
    "a line that the old kernel wrote with the {key} is still dirty and is written back over the "
    "new kernel",
    f"{RFC}; {MERGED}",
)
_add_both(
    "remote-only",
    "the other CPUs execute WBINVD in stop_this_cpu, the kexec-ing CPU does not",
    INTACT,
    "the last CPU's own dirty line is written back over the new kernel",
    f"{RFC}: stop_this_cpu covers the remote CPUs only",
    remote=ALWAYS,
)
_add_both(
    "last-only",
    "the kexec-ing CPU executes WBINVD in relocate_kernel, the other CPUs do not",
    INTACT,
    "a halted CPU's dirty line is written back over the new kernel: WBINVD reaches the caches of "
    "the CPU that executes it",
    f"{RFC}: WBINVD must run on every CPU",
    last=ALWAYS,
    from_cpus=2,
)
_add_both(
    "every-cpu",
    "every CPU executes WBINVD after its last access with the {key}",
    "",
    "remote CPUs just before they report, the last one on identity page tables before it copies",
    f"{RFC}; {RELOCATE}",
    remote=ALWAYS,
    last=ALWAYS,
)
_add_both(
    "too-early",
    "every CPU executes WBINVD while the old kernel still runs, and not again",
    INTACT,
    "a CPU writes with the {key} after its WBINVD: each must flush after its last encrypted access",
    f"{RFC}: each CPU after its last encrypted access",
    early=True,
    tdx={},
)
_add_both(
    "guest",
    "a guest whose kernel executes WBINVD in relocate_kernel",
    NO_FAULT,
    "WBINVD in a guest is an exception, and there is no IDT any more: triple fault",
    f"{RFC}: bare metal only",
    guest=True,
    last=ALWAYS,
    sme={"remote": ALWAYS},
)
_add_both(
    "guest-hypervisor-bit",
    "a guest, where the kernel sees X86_FEATURE_HYPERVISOR and executes no WBINVD",
    "",
    "a guest needs none: both kernels use the line with the same key, in which CPUs are coherent",
    f"{RFC}: not if running under a hypervisor",
    guest=True,
)
_add_both(
    "mainline-flag",
    "each CPU executes WBINVD if its cache_state_incoherent is set",
    "",
    "the flag is set before a CPU can have a line with the {key}, and read before load_segments",
    MERGED,
    remote=FLAG,
    last=FLAG,
    tdx={"kvm_flushes": "sometimes"},
)
_add_both(
    "after-load-segments",
    "the kexec-ing CPU calls a function after load_segments to decide about WBINVD",
    NO_FAULT,
    "load_segments has zeroed the GS base; call depth tracking counts each call through GS",
    f"{MERGED}: no function call after load_segments (93c1800b3799)",
    "call depth tracking is on",
    remote=ALWAYS,
    last=ALWAYS,
    decides=BY_CALL,
)

# -- pairs that the text suggests --------------------------------------------------------------

_add(
    "none-sme+coherent",
    "SME: no CPU executes WBINVD, on a part that reports SME_COHERENT",
    Variant(coherent=True),
    "",
    "a store without the C-bit first writes back and drops the copies with it, in all caches",
    "CPUID 8000_001F EAX bit 10; Linux does not look at it here",
)
_add(
    "wbnoinvd-sme",
    "SME: every CPU executes WBNOINVD: its lines are written back, but stay",
    Variant(remote=ALWAYS, last=ALWAYS, keeps_lines=True),
    "",
    "a copy that stays is clean and is not written back again",
    "derived from WBNOINVD: cleans all domains, leaves clean copies",
)
_add(
    "after-copy-sme",
    "SME: the kexec-ing CPU executes WBINVD after it has copied the new kernel",
    Variant(remote=ALWAYS, last=ALWAYS, after_copy=True),
    INTACT,
    "two copies of one line are dirty by then, with and without the C-bit, and WBINVD writes them "
    "back in any order",
    f"derived from {RELOCATE}: WBINVD before the pages are copied",
)
_add(
    "online-mask-sme",
    "SME: stop_other_cpus waits until the others are offline, which they are before their WBINVD",
    Variant(remote=ALWAYS, last=ALWAYS, by_online_mask=True),
    INTACT,
    "completion is judged by the online mask: the last CPU runs on while another still flushes",
    f"derived from {STOP}, whose report is of a hang at power-off",
    from_cpus=2,
)
_add(
    "stop-mask-left-sme",
    "SME: the line of cpus_stop_mask, in which each CPU clears its bit after its WBINVD",
    Variant(remote=ALWAYS, last=ALWAYS, mask_line=True, takes_back=False),
    INTACT,
    "the report itself dirties a line after the WBINVD",
    f"derived from {STOP}",
    from_cpus=2,
)
_add(
    "stop-mask-sme",
    "SME: as stop-mask-left, but the kexec-ing CPU clears the mask once more",
    Variant(remote=ALWAYS, last=ALWAYS, mask_line=True),
    "",
    "clearing the mask takes its line out of the dying CPUs' caches, and WBINVD of the last CPU "
    "writes it back",
    STOP,
)
_add(
    "hlt-loop-writes-sme",
    "SME: every CPU executes WBINVD, but stop_this_cpu may write memory behind it",
    Variant(remote=ALWAYS, last=ALWAYS, writes_on=True),
    INTACT,
    "a line that is written after the WBINVD is dirty again",
    f"derived from {STOP}: the HLT loop is written so that no memory write follows the WBINVD",
    from_cpus=2,
)
_add(
    "nmi-in-wbinvd-sme",
    "SME: every CPU executes WBINVD; a slow one is taken for stuck and gets an NMI",
    Variant(remote=ALWAYS, last=ALWAYS, nmi=True),
    "nobody waits for ever",
    "WBINVD takes so long that the CPU seems stuck; the NMI in the middle of it can hang the CPU",
    f"{STOP}; {MERGED}: reason for KVM's early flush",
    "an NMI in the middle of WBINVD hangs the CPU (said to be possible, not certain)",
    "stop_other_cpus waits without limit for those that got an NMI",
    expected="deadlock",
    from_cpus=2,
)
_add(
    "early-flush-tdx",
    "TDX: KVM executes WBINVD at its shutdown and clears the flag; then CPUs are stopped",
    Variant(rules="tdx", remote=FLAG, last=FLAG, nmi=True, kvm_flushes="at shutdown"),
    "",
    "no WBINVD is left for the time in which an NMI may come",
    f"{MERGED}; Linux 61221d07e815",
    "KVM is the only user of SEAMCALLs and makes none after its shutdown",
    "an NMI in the middle of WBINVD hangs the CPU (said to be possible, not certain)",
)
_add(
    "flag-after-seamcall-tdx",
    "TDX: as mainline-flag, but a SEAMCALL sets cache_state_incoherent when it has returned",
    Variant(rules="tdx", remote=FLAG, last=FLAG, flag_late=True),
    INTACT,
    "an NMI may stop the CPU between the SEAMCALL and the flag; it then executes no WBINVD",
    f"{MERGED}: the flag is set before the SEAMCALL",
    "the NMI is sent as REBOOT_VECTOR is: at any time",
    from_cpus=2,
)
_add(
    "flag-after-load-segments-sme",
    "SME: as mainline-flag, but the kexec-ing CPU reads its flag after load_segments",
    Variant(remote=FLAG, last=FLAG, decides=BY_FLAG),
    NO_FAULT,
    "load_segments has zeroed the GS base, and a per-CPU variable is read through GS",
    f"derived from {MERGED}: the flag is read before load_segments",
)
_add(
    "inline-after-load-segments-sme",
    "SME: as after-load-segments, but decided inline, by cpu_feature_enabled()",
    Variant(remote=ALWAYS, last=ALWAYS, decides=INLINE),
    "",
    "an inline decision makes no call and needs no GS",
    f"{RFC}: computed before, or inline",
    "call depth tracking is on",
)
_add(
    "partial-write-tdx",
    "TDX: every CPU executes WBINVD, on a part with the partial write erratum",
    Variant(rules="tdx", remote=ALWAYS, last=ALWAYS, partial_writes="allowed"),
    NO_MACHINE_CHECK,
    "the new kernel is copied in pieces of a line over memory that was private, which poisons it; "
    "a later read is a machine check",
    "Linux b18651f70ce0 (X86_BUG_TDX_PW_MCE)",
    "relocate_kernel writes lines in pieces",
)
_add(
    "partial-write-refused-tdx",
    "TDX: a part with the partial write erratum: kexec is refused when the image is loaded",
    Variant(rules="tdx", remote=ALWAYS, last=ALWAYS, partial_writes="refused"),
    "",
    "loading fails with EOPNOTSUPP, no CPU is touched",
    "Linux b18651f70ce0 (X86_BUG_TDX_PW_MCE)",
)

# -- a crash -----------------------------------------------------------------------------------

CRASH = "Linux arch/x86/kernel/{crash,reboot}.c; T. Lendacky on the missing SME flush of a crash"
DECRYPTED = "with SME the crash image is loaded without the C-bit"
CLEAN = "no line of the reserved memory is dirty with the C-bit once the image is loaded"
COUNTED = "every CPU counts down within the second for which the crashing one waits"


def _add_crash(
    short: str,
    summary: str,
    variant: CrashVariant,
    because: str,
    story: str,
    source: str,
    *assumes: str,
    from_cpus: int = 1,
) -> None:
    name = f"host-cache-flush/{short}"
    register(
        Scenario(
            name,
            f"SME: {summary}",
            "violated" if because else "holds",
            because,
            story,
            source,
            _build_crash(variant, name),
            (DECRYPTED, *assumes),
            from_cpus=from_cpus,
        )
    )


_add_crash(
    "crash-sme",
    "a crash: no CPU executes WBINVD, the crash kernel reads old memory with the C-bit",
    CrashVariant(),
    "",
    "only the crash kernel's own memory matters, since the machine resets after the dump; and what "
    "is dirty in a halted CPU's cache is read from there",
    CRASH,
    CLEAN,
)
_add_crash(
    "crash-reserved-dirty-sme",
    "as crash, but a line of the reserved memory may be dirty with the C-bit",
    CrashVariant(reserved_dirty=True, times_out=False),
    INTACT,
    "a dirty line with the C-bit is written back over the crash kernel's own memory",
    f"derived from {CRASH}: what is taken for granted there",
    COUNTED,
)
_add_crash(
    "crash-flush-sme",
    "as crash-reserved-dirty, with a WBINVD of every CPU, the others' in the NMI",
    CrashVariant(reserved_dirty=True, flush=True, times_out=False),
    "",
    "each CPU writes back what it has before it counts down",
    "Linux arch/x86/kernel/crash.c: kdump_nmi_callback of an SNP host",
    COUNTED,
)
_add_crash(
    "crash-flush-timeout-sme",
    "as crash-flush, but a CPU may not have counted down when the second is over",
    CrashVariant(reserved_dirty=True, flush=True),
    INTACT,
    "a CPU that has not taken the NMI writes on and has not written back beside the crash kernel",
    "derived from the crash NMI's bounded wait",
    from_cpus=2,
)
_add_crash(
    "crash-without-sme",
    "a crash, whose crash kernel runs without SME and reads old memory without the C-bit",
    CrashVariant(dump_key=PLAIN),
    DUMPED,
    "a crash kernel that was booted without SME reads ciphertext",
    "Linux arch/x86/kernel/crash_dump_64.c (992b649a3f01)",
    CLEAN,
)

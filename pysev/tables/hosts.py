"""Hosts by name, and the faults that a hostile one can have.

A host is KVM of Linux 7.0 unless its row says otherwise: in the requests that it knows, in the
rules that it follows (``GHCB_RULE_*`` of ``ghcbcore/host.h``), in what it offers. ``remarks`` has
what is known to differ and is not modelled.

Source: the trees named in ``seen``; GHCB fact sheet 10.
"""

from __future__ import annotations

from dataclasses import dataclass

from .schema import Code, lib

__all__ = ["FAULTS", "HOSTS", "HostRow"]


@dataclass(frozen=True, slots=True)
class HostRow:
    """One host; ``None`` in ``msr`` or ``nae`` is what KVM knows, ``more_*`` comes on top."""

    name: str
    what: str
    seen: tuple[str, ...]
    rules: tuple[int, ...] = ()
    msr: tuple[int, ...] | None = None
    nae: tuple[int, ...] | None = None
    more_msr: tuple[int, ...] = ()
    more_nae: tuple[int, ...] = ()
    max_version: int = 2
    hv_features: int = lib.GHCB_HV_FEATURES_KVM
    remarks: tuple[str, ...] = ()


HOSTS = (
    HostRow("kvm", "KVM as of Linux 7.0", ("Linux",)),
    HostRow(
        "kvm-5.15",
        "KVM before Linux 5.16: no SNP, an unknown MSR request goes to user space",
        ("Linux",),
        rules=(lib.GHCB_RULE_UNKNOWN_EINVAL, lib.GHCB_RULE_GP_SIGN_EXTENDED),
        msr=(
            lib.GHCB_MSR_SEV_INFO_REQ,
            lib.GHCB_MSR_CPUID_REQ,
            lib.GHCB_MSR_TERM_REQ,
        ),
        max_version=1,
        remarks=("an unknown event went to user space too",),
    ),
    HostRow(
        "kvm-7.1",
        "KVM after the hardening of 2026: scratch areas in the page, MMIO of at most 8 bytes",
        ("Linux",),
        rules=(
            lib.GHCB_RULE_SCRATCH_IN_PAGE,
            lib.GHCB_RULE_MMIO_8,
            lib.GHCB_RULE_EMPTY_IO,
        ),
    ),
    HostRow(
        "coconut",
        "KVM of the SVSM project: #HV, APIC IDs, several VMPLs",
        ("SVSM", "coconut-svsm/linux"),
        rules=(
            lib.GHCB_RULE_AP_VMPL,
            lib.GHCB_RULE_AP_FEATURES_LOOSE,
            lib.GHCB_RULE_CODE_32,
        ),
        more_msr=(lib.GHCB_MSR_RUN_VMPL_REQ,),
        more_nae=(
            lib.GHCB_NAE_HV_DOORBELL_PAGE,
            lib.GHCB_NAE_HV_IPI,
            lib.GHCB_NAE_APIC_ID_LIST,
            lib.GHCB_NAE_SNP_RUN_VMPL,
        ),
        hv_features=lib.GHCB_HV_FEATURES_KVM
        | 1 << lib.GHCB_HV_FEATURE_RESTRICTED_INJECTION
        | 1 << lib.GHCB_HV_FEATURE_APIC_ID_LIST
        | 1 << lib.GHCB_HV_FEATURE_MULTI_VMPL,
        remarks=(
            "compares the injection-mode bits of an AP's SEV_FEATURES, here none is compared",
        ),
    ),
    HostRow(
        "hyper-v",
        "Cloud Hypervisor on Microsoft's hypervisor",
        ("Cloud Hypervisor", "MSHV"),
        rules=(
            lib.GHCB_RULE_UNKNOWN_EINVAL,
            lib.GHCB_RULE_INPUT_UNCHECKED,
            lib.GHCB_RULE_REPLY_ADDS,
            lib.GHCB_RULE_XCR0_OPTIONAL,
            lib.GHCB_RULE_AP_VMPL,
            lib.GHCB_RULE_AP_FEATURES_LOOSE,
        ),
        msr=(
            lib.GHCB_MSR_SEV_INFO_REQ,
            lib.GHCB_MSR_CPUID_REQ,
            lib.GHCB_MSR_REG_GPA_REQ,
            lib.GHCB_MSR_PSC_REQ,
            lib.GHCB_MSR_HV_FEATURES_REQ,
            lib.GHCB_MSR_TERM_REQ,
        ),
        nae=(
            lib.GHCB_NAE_IOIO,
            lib.GHCB_NAE_MMIO_READ,
            lib.GHCB_NAE_MMIO_WRITE,
            lib.GHCB_NAE_SNP_GUEST_REQUEST,
            lib.GHCB_NAE_SNP_EXT_GUEST_REQUEST,
            lib.GHCB_NAE_SNP_AP_CREATION,
            lib.GHCB_NAE_HV_DOORBELL_PAGE,
            lib.GHCB_NAE_CPUID,
            lib.GHCB_NAE_MSR,
            lib.GHCB_NAE_PSC,
            lib.GHCB_NAE_HV_FEATURES,
        ),
        remarks=(
            "it panics where this host ends the run",
            "it refuses string I/O and ignores the operation of an AP creation",
            "hypercall pages (usage 1) are not modelled",
        ),
    ),
    HostRow(
        "openbsd",
        "OpenBSD's vmm: CPUID, I/O and MSRs only; the page of the answer is empty but for it",
        ("OpenBSD",),
        rules=(
            lib.GHCB_RULE_UNKNOWN_EINVAL,
            lib.GHCB_RULE_MISSING_EINVAL,
            lib.GHCB_RULE_REPLY_ALONE,
            lib.GHCB_RULE_XCR0_OPTIONAL,
            lib.GHCB_RULE_REGISTER_ONCE,
        ),
        msr=(lib.GHCB_MSR_CPUID_REQ, lib.GHCB_MSR_TERM_REQ),
        nae=(lib.GHCB_NAE_CPUID, lib.GHCB_NAE_IOIO, lib.GHCB_NAE_MSR),
        max_version=1,
        hv_features=0,
    ),
    HostRow(
        "xen",
        "Xen, work in progress: pages are registered by use, I/O is ignored",
        ("Xen",),
        rules=(
            lib.GHCB_RULE_REGISTER_ON_USE,
            lib.GHCB_RULE_GP_BARE,
            lib.GHCB_RULE_XCR0_OPTIONAL,
            lib.GHCB_RULE_PSC_ERROR_ONE,
            lib.GHCB_RULE_IO_IGNORED,
            lib.GHCB_RULE_INPUT_UNCHECKED,
        ),
        msr=(
            lib.GHCB_MSR_SEV_INFO_REQ,
            lib.GHCB_MSR_CPUID_REQ,
            lib.GHCB_MSR_PREF_GPA_REQ,
            lib.GHCB_MSR_REG_GPA_REQ,
            lib.GHCB_MSR_PSC_REQ,
            lib.GHCB_MSR_HV_FEATURES_REQ,
            lib.GHCB_MSR_TERM_REQ,
        ),
        nae=(
            lib.GHCB_NAE_CPUID,
            lib.GHCB_NAE_MSR,
            lib.GHCB_NAE_VMMCALL,
            lib.GHCB_NAE_IOIO,
            lib.GHCB_NAE_NMI_COMPLETE,
            lib.GHCB_NAE_PSC,
            lib.GHCB_NAE_SNP_AP_CREATION,
        ),
        remarks=("its descriptor of page states ends one entry early: not modelled",),
    ),
    HostRow(
        "double-fetch",
        "KVM that reads the page again after its checks: what a host must not do",
        ("pysev",),
        rules=(lib.GHCB_RULE_REREADS,),
    ),
)

FAULTS = (
    Code("wrong-answer", lib.GHCB_FAULT_WRONG_ANSWER, "one bit of the answer is another"),
    Code(
        "refused-feature",
        lib.GHCB_FAULT_REFUSED_FEATURE,
        "what was offered is not given: fewer feature bits, a refused registration, page state "
        "change or event",
    ),
    Code(
        "lost-wakeup",
        lib.GHCB_FAULT_LOST_WAKEUP,
        "STARTUP, NMI or AP creation wakes nobody",
    ),
    Code(
        "duplicated-wakeup",
        lib.GHCB_FAULT_DUPLICATED_WAKEUP,
        "a release comes twice: the next hold ends at once, as released",
    ),
    Code("early-resume", lib.GHCB_FAULT_EARLY_RESUME, "a hold ends at once, not released"),
    Code(
        "partial-psc",
        lib.GHCB_FAULT_PARTIAL_PSC,
        "a page state change stops before its end, without an error",
    ),
    Code(
        "injected-exception",
        lib.GHCB_FAULT_INJECTED_EXCEPTION,
        "an exception instead of an answer, legal or not",
    ),
    Code(
        "older-version",
        lib.GHCB_FAULT_OLDER_VERSION,
        "the highest protocol version offered is the lowest",
    ),
    Code(
        "changed-ghcb",
        lib.GHCB_FAULT_CHANGED_GHCB,
        "the page changes between the host's check and its use",
    ),
)

"""Rules that a trace of a host can show to be broken, in words.

How each is looked for stands in ``pysev.trace.lint``. A rule that a host of one kind does not
insist on is a rule all the same: a guest that breaks it works by luck.

Source: GHCB protocol; the text of the specification was not at hand, the implementations that agree
are named in the tables of events and functions.
"""

from __future__ import annotations

from pysev.tables.lint_schema import Rule

__all__ = ["RULES"]

RULES = (
    # the trace itself
    Rule(
        "unreadable-line",
        "a line with an event of KVM has the form that KVM prints",
        "Linux arch/x86/kvm/trace.h",
    ),
    Rule(
        "lost-events",
        "the tracer lost nothing; where it did, answers may be missing",
        "ftrace, trace-cmd",
        "warning",
    ),
    Rule(
        "too-many-vcpus",
        "the trace has no more vCPUs than can be followed",
        "limit of this program",
        "warning",
    ),
    Rule(
        "time-backwards",
        "what is written of one vCPU is in the order of time",
        "KVM runs a vCPU in one thread",
    ),
    Rule(
        "answer-without-request",
        "an answer follows a request of the same vCPU, but for the first line of a trace",
        "KVM: kvm_vmgexit_exit after kvm_vmgexit_enter",
    ),
    Rule(
        "request-without-answer",
        "a vCPU waits for its answer before it asks again",
        "KVM: one VMGEXIT at a time",
    ),
    Rule(
        "answer-to-another-event",
        "the exit code stays in the page until the answer",
        "KVM: sw_exit_code is not written by the host",
        "warning",
    ),
    # MSR protocol, request
    Rule("msr-unknown-function", "bits [11:0] are a request of the protocol", "GHCB MSR protocol"),
    Rule("msr-reserved-bits", "bits that no field claims are zero", "GHCB MSR protocol"),
    Rule("msr-page-operation", "a page is made private (1) or shared (2)", "GHCB MSR 0x014"),
    Rule(
        "msr-page-zero",
        "guest frame 0 changes its state in no known guest; as a marker it does",
        "GHCB MSR 0x014; SEVeriFast marks phases of a boot so",
        "warning",
    ),
    # MSR protocol, answer
    Rule("msr-answer-code", "the answer has the code that belongs to the request", "GHCB MSR"),
    Rule("msr-answer-reserved-bits", "the answer has no bits that no field claims", "GHCB MSR"),
    Rule(
        "msr-answer-echo",
        "the answer repeats the register or the page of the request",
        "GHCB MSR 0x005, 0x013",
    ),
    Rule(
        "msr-refused",
        "a registration or page-state change is not refused",
        "GHCB MSR 0x013, 0x015",
        "warning",
    ),
    Rule(
        "msr-result",
        "KVM goes on with the guest (1), or to user space (0, or a negative error)",
        "Linux arch/x86/kvm/svm/sev.c",
    ),
    # page protocol, request
    Rule("unknown-event", "the exit code is an event of the protocol", "GHCB NAE events"),
    Rule(
        "event-reserved-bits",
        "bits of the exit information that no field claims are zero",
        "GHCB NAE events",
    ),
    Rule(
        "ioio-bits",
        "one operand size, one address size, a segment register that exists",
        "GHCB NAE 0x07B",
    ),
    Rule(
        "ioio-count",
        "a string access has 1 to as many elements as the shared buffer holds",
        "GHCB NAE 0x07B",
    ),
    Rule(
        "event-operation",
        "where INFO1 chooses an operation, the operation exists",
        "GHCB NAE 0x07C, 0x80000005, -14, -1A",
    ),
    Rule("mmio-length", "1 to 8 bytes (version 1: below 2 GiB)", "GHCB NAE 0x80000001, -2"),
    Rule(
        "ap-creation",
        "a known operation, and a VMSA page that is aligned to 4 KiB, not to 2 MiB",
        "GHCB NAE 0x80000013; erratum 1467",
    ),
    Rule(
        "guest-request-pages",
        "request and response are two pages, both aligned",
        "GHCB NAE 0x80000011, -12",
    ),
    Rule(
        "feature-not-offered",
        "what needs a hypervisor feature is asked of a host that has it",
        "GHCB hypervisor features",
    ),
    Rule(
        "version-2-only",
        "what version 2 brought is not asked of a host that offers version 1 alone",
        "GHCB version negotiation",
    ),
    Rule(
        "unregistered-ghcb",
        "an SNP guest registers its GHCB before it uses it",
        "GHCB MSR 0x012",
    ),
    # page protocol, answer
    Rule("malformed-request", "the host does not call the request malformed", "GHCB NAE reply 2"),
    Rule(
        "unknown-reason",
        "why a request is malformed is one of 1 to 6; above 0xFFFF it is the host's own",
        "GHCB NAE reply 2",
    ),
    Rule("unknown-reply", "INFO1 is 0, 1 or 2", "GHCB NAE reply"),
    Rule(
        "bad-injection",
        "the guest is told to raise #GP or #UD, nothing else",
        "GHCB NAE reply 1",
    ),
    Rule(
        "page-change-failed",
        "a page-state change has status 0",
        "GHCB NAE 0x80000010",
        "warning",
    ),
    # what happened to the guest
    Rule(
        "to-user-space-failed",
        "KVM_RUN does not fail",
        "Linux arch/x86/kvm/svm/sev.c",
    ),
    Rule("termination", "the guest does not ask for its own end", "GHCB MSR 0x100, NAE 0x8000FFFE"),
    Rule(
        "rmp-fault",
        "a fault of the reverse map table is settled",
        "Linux arch/x86/kvm/svm/sev.c",
    ),
)

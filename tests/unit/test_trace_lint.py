"""Each rule for traces: lines that break it, and lines that come close."""

import pytest

from pysev.tables.lint import RULES
from pysev.trace import Summary, TraceReader

PRE = "  CPU 0/KVM-100 [001] d..1. {t}: kvm_vmgexit_"
INFO = "msr 0000000000000002 0002000133000001"  # versions 1..2
OLD = "msr 0000000000000002 0001000133000001"  # version 1 alone
OFFER = "msr 0000000000000080 0000000000003081"  # SNP, AP creation
REG = "msr 0000000004e14012 0000000004e14013"


def text(*what: str) -> bytes:
    """Write lines: ``msr REQUEST ANSWER [result]``, ``nae CODE I1 I2 [R1 R2]``, or a line."""
    out, t = [], 0
    for one in what:
        for line in spelled(one):
            t += 1
            out.append(line.replace("{t}", f"1.{t:06}") if "{t}" in line else line)
    return ("\n".join(out) + "\n").encode()


def spelled(one: str):
    word, *n = one.split(" ")
    if word == "msr":
        yield PRE + f"msr_protocol_enter: vcpu 0, ghcb_gpa {n[0]}"
        if len(n) > 1:
            yield PRE + f"msr_protocol_exit: vcpu 0, ghcb_gpa {n[1]}, result {(*n, 1)[2]}"
    elif word == "nae":
        yield PRE + f"enter: vcpu 0, exit_reason {n[0]}, exit_info1 {n[1]}, exit_info2 {n[2]}"
        n += ["0", "0"]
        yield PRE + f"exit: vcpu 0, exit_reason {n[0]}, exit_info1 {n[3]}, exit_info2 {n[4]}"
    else:
        yield one


def findings(data: bytes):
    reader = TraceReader()
    summary = Summary(reader)
    for batch in reader.batches([data]):
        summary.look(batch)
    summary.finish()
    return summary.lint.findings


ENTER = PRE + "enter: vcpu 0, exit_reason 72, exit_info1 0, exit_info2 0"
EXIT = PRE + "exit: vcpu 0, exit_reason 72, exit_info1 0, exit_info2 0"
RMP = (
    "  CPU 0/KVM-100 [001] d..1. {t}: kvm_rmp_fault: vcpu 0 gpa 0000000000001000 pfn 0x1 "
    "error_code 0x5 rmp_level 1 psmash_ret "
)
CPUID = "nae 72 0 0"
# rule: (breaks it, line and words of the finding), (comes close)
CASES = {
    "unreadable-line": (
        [ENTER.replace("exit_info2 0", "exit_info2 ")],
        1,
        "byte 0: a number is missing",
        [CPUID, "  CPU 0/KVM-100 [001] d..1. {t}: kvm_entry: what nobody reads"],
    ),
    "lost-events": (["CPU:3 [LOST 12 EVENTS]"], 1, "CPU 3 of the host lost 12", ["CPU:3 LOST"]),
    "time-backwards": (
        [CPUID, ENTER.replace("{t}", "0.5")],
        3,
        "earlier",
        [CPUID, ENTER.replace("{t}", "1.000002")],
    ),
    "answer-without-request": ([CPUID, EXIT], 3, "no request", [EXIT, CPUID]),
    "request-without-answer": (
        [ENTER, CPUID],
        1,
        "asks again before an answer",
        [CPUID, ENTER],
    ),
    "answer-to-another-event": (
        [ENTER, EXIT.replace("72", "7c")],
        2,
        "another exit code",
        [ENTER, EXIT],
    ),
    "msr-unknown-function": (
        ["msr 00000000000000ab 00000000000000ab"],
        1,
        "0x00000000000000ab",
        [INFO],
    ),
    "msr-reserved-bits": (
        ["msr 0100000012345014 0000000000000015"],
        1,
        "0x0100000012345014",
        ["msr 0010000012345014 0000000000000015"],
    ),
    "msr-page-operation": (
        ["msr 0030000000001014 8000000000000015"],
        1,
        "op 3",
        ["msr 0020000000001014 0000000000000015"],
    ),
    "msr-page-zero": (
        ["msr 0020000000000014 0000000000000015"],
        1,
        "GFN 0x0",
        ["msr 0020000000001014 0000000000000015"],
    ),
    "msr-answer-code": (
        ["msr 0010000012345014 0010000012345014"],
        2,
        "answered",
        ["msr 0010000012345014 0010000012345014 0"],
    ),
    "msr-answer-reserved-bits": (
        ["msr 0010000012345014 0000000000001015"],
        2,
        "answered",
        ["msr 0000000000000006 0000000000000007"],
    ),
    "msr-answer-echo": (
        ["msr 0000000004e14012 0000000004e15013"],
        2,
        "0x0000000004e15013",
        [REG],
    ),
    "msr-refused": (["msr 0000000004e14012 fffffffffffff013"], 2, "refused", [REG]),
    "msr-result": (
        ["msr 0000000000000002 0002000133000001 2"],
        2,
        "result 2",
        ["msr 0000000000000006 0000000000000007 0"],
    ),
    "to-user-space-failed": (
        ["msr 0000000000000002 0002000133000001 -22"],
        2,
        "result -22",
        ["msr 0000000000000006 0000000000000007 0"],
    ),
    "unknown-event": (["nae f0000000 0 0 2 6"], 1, "0xf0000000", [CPUID]),
    "event-reserved-bits": (["nae 72 1 0"], 1, "INFO1 0x1", [CPUID]),
    "ioio-bits": (["nae 7b 3f80231 0"], 1, "INFO1 0x3f80231", ["nae 7b 3f80211 0"]),
    "ioio-count": (["nae 7b 4020e1c 7f1"], 1, "INFO2 0x7f1", ["nae 7b 4020e1c 7f0"]),
    "event-operation": (["nae 80000005 2 0 2 5"], 1, "INFO1 0x2", ["nae 80000005 1 0"]),
    "mmio-length": (
        [INFO, "nae 80000001 fed00000 9"],
        3,
        "INFO2 0x9",
        [OLD, "nae 80000001 fed00000 9"],
    ),
    "ap-creation": (
        ["nae 80000013 500000001 200000"],
        1,
        "INFO2 0x200000",
        ["nae 80000013 500000001 201000", "nae 80000013 500000002 0"],
    ),
    "guest-request-pages": (
        ["nae 80000011 1000 1000 2 4"],
        1,
        "INFO1 0x1000",
        ["nae 80000011 1000 2000"],
    ),
    "feature-not-offered": (
        [OFFER, "nae 80000017 0 0"],
        3,
        "needs apic_id_list, the host offers 0x3",
        ["nae 80000017 0 0", OFFER, "nae 80000010 0 0"],
    ),
    "version-2-only": (
        [OLD, "msr 0000000000000006 0000000000000007"],
        3,
        "AP reset hold",
        [INFO, "msr 0000000000000006 0000000000000007"],
    ),
    "unregistered-ghcb": (
        [INFO, "msr 0010000012345014 0000000000000015", CPUID],
        5,
        "event 0x72",
        [INFO, "msr 0010000012345014 0000000000000015", REG, CPUID],
    ),
    "malformed-request": (
        ["nae 72 0 0 2 4"],
        2,
        "malformed, 0x4: a required input is not valid",
        ["nae 72 0 0 1 8000030d"],
    ),
    "unknown-reason": (
        ["nae 72 0 0 2 10000"],
        2,
        "a reason of the hypervisor's own",
        ["nae 72 0 0 2 6"],
    ),
    "unknown-reply": (["nae 72 0 0 3 0"], 2, "INFO1 0x3", ["nae 72 0 0 0 3"]),
    "bad-injection": (
        ["nae 7c 0 0 1 d"],
        2,
        "INFO2 0xd",
        ["nae 7c 0 0 1 8000030d", "nae 7c 0 0 1 ffffffff8000030d"],
    ),
    "page-change-failed": (
        ["nae 80000010 0 0 0 10000000000"],
        2,
        "status 0x10000000000: failed",
        ["nae 80000010 0 0 0 0"],
    ),
    "termination": (
        ["nae 8000fffe 20 0"],
        1,
        "SEV",
        ["nae 8000ffff 20 0"],
    ),
    "rmp-fault": ([RMP + "-5"], 1, "splitting failed with -5", [RMP + "0"]),
}


def test_every_rule_has_a_case():
    # a quarter of a million vCPUs do not fit into a unit test: see test_trace_limits
    assert {rule.name for rule in RULES} - {"too-many-vcpus"} == set(CASES)
    assert len({rule.name for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("rule", CASES)
def test_a_broken_rule_is_found_where_it_is_broken(rule):
    broken, line, words, _ = CASES[rule]
    found = findings(text(*broken))
    places = [f for f in found.in_order() if f.rule.name == rule]
    assert [f.line for f in places] == [line]
    assert words in places[0].words
    assert found.counts[rule] == 1


@pytest.mark.parametrize("rule", CASES)
def test_what_comes_close_to_a_rule_does_not_break_it(rule):
    assert rule not in findings(text(*CASES[rule][3])).counts


def test_a_good_trace_has_no_finding():
    good = [INFO, OFFER, "msr 0020000012345014 0020000012345014 0", REG, CPUID]
    good += ["nae 7b 3f80211 0", "nae 80000010 0 0", "nae 80000013 500000001 201000", ENTER]
    assert findings(text(*good)).counts == {}


def test_terminations_are_put_in_words():
    (place,) = findings(text("msr 0000000000011100")).in_order()
    assert "0x1:0x1" in place.words and "Linux guest" in place.words
    (place,) = findings(text("nae 8000fffe 10 0")).in_order()
    assert "no protocol version in common" in place.words


def test_a_trace_of_requests_alone_does_not_lack_answers():
    assert findings(text(ENTER, ENTER)).counts == {}
    assert findings(text(EXIT, EXIT)).counts == {}


def test_lost_events_explain_what_is_missing():
    lost = "CPU:1 [LOST 3 EVENTS]"
    assert set(findings(text(ENTER, lost, CPUID)).counts) == {"lost-events"}
    assert set(findings(text(CPUID, lost, EXIT)).counts) == {"lost-events"}


def test_places_of_a_rule_are_counted_all_and_kept_in_part():
    found = findings(text(*["nae 72 1 0"] * 50))
    assert found.counts == {"event-reserved-bits": 50}
    assert [f.line for f in found.in_order()] == list(range(1, 41, 2))

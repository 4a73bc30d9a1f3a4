"""Forms of lines as ftrace, trace-cmd and perf print them, and why a line cannot be read."""

import threading

import numpy as np
import pytest

from ghcbcore._cffi import lib
from ghcbcore.exchange import EXCHANGE_DTYPE, Pairer
from ghcbcore.trace import LINE_DTYPE, Scanner, format_lines
from pysev.trace import Summary, TraceReader
from pysev.trace.lint import REASONS

EVENT = "vcpu 3, exit_reason 7b, exit_info1 3f80211, exit_info2 0"
NO_PID, NO_CPU, NO_TIME = lib.GHCB_TRACE_NO_PID, lib.GHCB_TRACE_NO_CPU, lib.GHCB_TRACE_NO_TIME
FTRACE, PERF, BARE = (
    lib.GHCB_TRACE_FORM_FTRACE,
    lib.GHCB_TRACE_FORM_PERF,
    lib.GHCB_TRACE_FORM_BARE,
)
S = 10**9


def scan(text: str | bytes):
    data = text.encode() if isinstance(text, str) else text
    out = np.empty(100, LINE_DTYPE)
    scanner = Scanner()
    used, n = scanner.scan(data, out)
    assert used == len(data)
    return out[: n + scanner.finish(out[n:])], scanner


FORMS = {
    "ftrace": (
        "       CPU 3/KVM-1507554 [003] d..1.  6748.446657: kvm_vmgexit_enter: ",
        (1507554, NO_PID, 3, 6748 * S + 446657000, FTRACE),
    ),
    "ftrace of an older kernel, four flags": (
        "           <...>-12      [011] d..1   748.446657: kvm_vmgexit_enter: ",
        (12, NO_PID, 11, 748 * S + 446657000, FTRACE),
    ),
    "ftrace with record-tgid": (
        " CPU 3/KVM-15    (     14) [003] .....  1.000000: kvm_vmgexit_enter: ",
        (15, 14, 3, S, FTRACE),
    ),
    "ftrace with an unknown tgid": (
        " CPU 3/KVM-15    (-------) [003] .....  1.000000: kvm_vmgexit_enter: ",
        (15, NO_PID, 3, S, FTRACE),
    ),
    "trace-cmd report, columns": (
        "       CPU 3/KVM-15    [003]  6748.446657: kvm_vmgexit_enter:    ",
        (15, NO_PID, 3, 6748 * S + 446657000, FTRACE),
    ),
    "trace-cmd report -t": (
        "       CPU 3/KVM-15    [003] d..1.  6748.446657123: kvm_vmgexit_enter:    ",
        (15, NO_PID, 3, 6748 * S + 446657123, FTRACE),
    ),
    "perf script": (
        "CPU 3/KVM 1507554 [003]  6748.446657:  kvm:kvm_vmgexit_enter: ",
        (1507554, NO_PID, 3, 6748 * S + 446657000, PERF),
    ),
    "perf script with pid/tid and a period": (
        "CPU 3/KVM 14/15 [003]  6748.446657:          1 kvm:kvm_vmgexit_enter: ",
        (15, 14, 3, 6748 * S + 446657000, PERF),
    ),
    "perf script without CPU": (
        "       CPU 3/KVM    15  6748.446657: kvm:kvm_vmgexit_enter: ",
        (15, NO_PID, NO_CPU, 6748 * S + 446657000, PERF),
    ),
    "perf script of time and event": (
        " 6748.446657: kvm:kvm_vmgexit_enter: ",
        (NO_PID, NO_PID, NO_CPU, 6748 * S + 446657000, BARE),
    ),
    "perf script of the event alone": (
        "kvm:kvm_vmgexit_enter: ",
        (NO_PID, NO_PID, NO_CPU, NO_TIME, BARE),
    ),
    "a clock that counts something else": (
        " CPU 3/KVM-15    [003] ..... 123456789: kvm_vmgexit_enter: ",
        (15, NO_PID, 3, NO_TIME, FTRACE),
    ),
    "a name like a prefix": (
        " a-1 [0] 1.5: b-15    [003] .....  1.000000: kvm_vmgexit_enter: ",
        None,
    ),
    "a name with everything": (
        "  [9] 1.5:-x (7)-15    [003] .....  1.000000: kvm_vmgexit_enter: ",
        (15, NO_PID, 3, S, FTRACE),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_prefix_is_read_in_each_form(form):
    prefix, expected = FORMS[form]
    found, _ = scan(prefix + EVENT + "\n")
    if expected is None:  # who is called like a whole prefix is believed: nothing else can be done
        assert len(found) == 0
        return
    (x,) = found
    assert tuple(int(x[n]) for n in ("pid", "tgid", "cpu", "time_ns", "form")) == expected
    assert (x["kind"], x["vcpu"], x["a"], x["b"]) == (lib.GHCB_TRACE_NAE_ENTER, 3, 0x7B, 0x3F80211)


@pytest.mark.parametrize("end", ["\r\n", "  \n", " \r\n", ""])
def test_an_end_of_line_may_have_blanks(end):
    (x,) = scan("kvm:kvm_vmgexit_enter: " + EVENT + end)[0]
    assert x["kind"] == lib.GHCB_TRACE_NAE_ENTER


P = "x-1 [0] 1.0: kvm_vmgexit_"
BAD = {
    "what stands before": ("x [0] 1.0: kvm_vmgexit_enter: " + EVENT, lib.GHCB_TRACE_E_PREFIX),
    "an event in the middle": ("say kvm_vmgexit_exit: " + EVENT, lib.GHCB_TRACE_E_PREFIX),
    "a field": (P + "enter: vcpu 3, exit_info1 0", lib.GHCB_TRACE_E_FIELD),
    "a cut": (P + "ent", lib.GHCB_TRACE_E_FIELD),
    "no colon": (P + "enter vcpu 3", lib.GHCB_TRACE_E_FIELD),
    "a number": (P + "msr_protocol_enter: vcpu 3, ghcb_gpa xyz", lib.GHCB_TRACE_E_NUMBER),
    "no vCPU": (P + "msr_protocol_enter: vcpu -1, ghcb_gpa 2", lib.GHCB_TRACE_E_NUMBER),
    "17 digits": (
        P + "msr_protocol_enter: vcpu 3, ghcb_gpa 12345678901234567",
        lib.GHCB_TRACE_E_RANGE,
    ),
    "33 bits": (P + "msr_protocol_enter: vcpu 4294967296, ghcb_gpa 2", lib.GHCB_TRACE_E_RANGE),
    "a tail": (P + "msr_protocol_enter: vcpu 3, ghcb_gpa 2, more", lib.GHCB_TRACE_E_TAIL),
    "a NUL": (P + "msr_protocol_enter: vcpu 3, ghcb_gpa 2\0", lib.GHCB_TRACE_E_TAIL),
    "length": (P + "exit: " + "x" * lib.GHCB_TRACE_LINE_MAX, lib.GHCB_TRACE_E_LONG),
}


@pytest.mark.parametrize("what", BAD)
def test_a_line_that_cannot_be_read_says_why(what):
    line, why = BAD[what]
    (x,) = scan("\n" + line + "\n")[0]
    assert (x["kind"], x["detail"], x["line"], x["offset"]) == (lib.GHCB_TRACE_BAD, why, 2, 1)


def test_every_reason_has_words_and_a_line():
    assert set(REASONS) == {why for _, why in BAD.values()}
    assert set(REASONS) == set(range(1, lib.GHCB_TRACE_N_ERRORS))


@pytest.mark.parametrize(
    "line",
    [
        "# kvm_vmgexit",
        "kvm_amd: SEV-ES guest requested termination: 0x0:0x2",
        "\tffffffff8106 sev_handle_vmgexit+0x1 ([kernel.kallsyms])",
        "x-1 [0] 1.0: sched_switch: prev_comm=kvm_vmgexit_enter",
        "cpus=4",
        "CPU 3 is empty",
        "",
    ],
)
def test_other_lines_are_passed_over(line):
    assert len(scan(line + "\n")[0]) == 0


def test_exits_and_other_events_are_counted_by_name():
    lines = [
        "x-1 [0] 1.0: kvm_exit: vcpu 0 reason npf rip 0x1 info1 0x2 info2 0x3 intr_info 0x0",
        "x-1 [0] 1.0: kvm_exit:             reason EXIT_NPF rip 0x1 info 2 3",
        "x-1 [0] 1.0: kvm_page_fault: vcpu 7 rip 0x0 address 0x1 error_code 0x2",
    ]
    found, scanner = scan("\n".join(lines) + "\n")
    assert [scanner.names[d] for d in found["detail"]] == ["npf", "EXIT_NPF", "page_fault"]
    assert found[["a", "b", "c"]].tolist()[:2] == [(1, 2, 3)] * 2
    assert found["vcpu"].tolist() == [0, lib.GHCB_TRACE_NO_VCPU, 7]


def test_a_name_from_a_trace_cannot_move_the_cursor():
    reader = TraceReader()
    summary = Summary(reader)
    bad = b"x-1 [0] 1.0: kvm_exit: vcpu 0 reason \x1b[2J rip 0x1 info1 0x2 info2 0x3\n"
    for batch in reader.batches([bad]):
        summary.look(batch)
    summary.finish()
    assert "exits: \\x1b[2J 1\n" in summary.as_text("a\x07b", "text")
    assert summary.as_text("a\x07b", "text").startswith("a\\x07b: text")


def test_names_beyond_their_number_are_one():
    text = "".join(f"x-1 [0] 1.0: kvm_event_{i}: vcpu 0\n" for i in range(300))
    out, scanner = np.empty(300, LINE_DTYPE), Scanner()
    scanner.scan(text.encode(), out)
    assert len(scanner.names) == lib.GHCB_TRACE_N_NAMES and scanner.names[-1] == "others"
    assert [scanner.names[d] for d in out["detail"][:254]] == [f"event_{i}" for i in range(254)]
    assert set(out["detail"][254:]) == {254}


@pytest.mark.parametrize("text", ["CPU:3 [LOST 12 EVENTS]", "CPU:3 [12 EVENTS DROPPED]"])
def test_lost_events_are_counted(text):
    (x,) = scan(text + "\n")[0]
    assert (x["kind"], x["a"], x["cpu"]) == (lib.GHCB_TRACE_LOST, 12, 3)


def test_an_array_without_room_is_refused():
    with pytest.raises(ValueError, match="no room"):
        Scanner().scan(b"x", np.empty(0, LINE_DTYPE))
    with pytest.raises(ValueError, match="no room"):
        Pairer().pair(np.empty(1, LINE_DTYPE), np.empty(0, EXCHANGE_DTYPE))


def lines_of(n, kind, first=0):
    lines = np.zeros(n, LINE_DTYPE)
    lines["kind"], lines["pid"] = kind, np.arange(first, first + n)
    return lines


def test_vcpus_that_wait_for_nothing_are_forgotten_when_there_are_too_many():
    pairer, out = Pairer(), np.empty(1 << 16, EXCHANGE_DTYPE)
    n = 3 * lib.GHCB_EXCHANGE_MAX_VCPUS
    for first in range(0, n, 1 << 14):
        for kind in (lib.GHCB_TRACE_NAE_ENTER, lib.GHCB_TRACE_NAE_EXIT):
            assert pairer.pair(lines_of(1 << 14, kind, first), out)[0] == 1 << 14
    assert (pairer.n_vcpus, pairer.n_untracked) == (n, 0)
    assert len(pairer.vcpus()) <= lib.GHCB_EXCHANGE_MAX_VCPUS
    assert pairer.kinds()[0].n_timed == n and pairer.finish(out) == 0


def test_vcpus_that_all_wait_are_followed_up_to_the_limit():
    pairer, out = Pairer(), np.empty(1 << 19, EXCHANGE_DTYPE)
    n = lib.GHCB_EXCHANGE_MAX_VCPUS
    assert pairer.pair(lines_of(n + 5, lib.GHCB_TRACE_NAE_ENTER), out) == (n + 5, 0)
    assert (pairer.n_vcpus, pairer.n_untracked) == (n, 5)
    assert pairer.finish(out) == n


def test_two_threads_do_not_disturb_each_other():
    text = format_lines(np.tile(lines_of(1, lib.GHCB_TRACE_NAE_ENTER), 20_000)).tobytes()
    found = {}

    def one(i):
        scanner, out, n = Scanner(), np.empty(64, LINE_DTYPE), 0
        rest = memoryview(text)
        while len(rest):
            used, got = scanner.scan(rest, out)
            rest, n = rest[used:], n + got
        found[i] = n, scanner.n_lines

    threads = [threading.Thread(target=one, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), (20000, 20000))

"""The scanner against regular expressions, on made, mutated and arbitrary text, cut anywhere."""

import numpy as np
import pytest
import trace_oracle
from hypothesis import example, given
from hypothesis import strategies as st

from ghcbcore._cffi import lib
from ghcbcore.exchange import EXCHANGE_DTYPE, Pairer
from ghcbcore.trace import LINE_DTYPE, Scanner, format_lines

FIELDS = ("line", "offset", "time_ns", "pid", "tgid", "cpu", "form", "kind")
VALUES = ("a", "b", "c", "vcpu", "result")


def scan(text: bytes, cuts=(), room: int = 7):
    """Return all records and the scanner; the text is handed over in pieces."""
    scanner, out, found = Scanner(), np.empty(room, LINE_DTYPE), []
    for start, end in zip((0, *cuts), (*cuts, len(text)), strict=True):
        piece = text[start:end]
        while piece:
            used, n = scanner.scan(piece, out)
            found.append(out[:n].copy())
            piece = piece[used:]
            assert used or n
    found.append(out[: scanner.finish(out)].copy())
    return np.concatenate(found), scanner


u32 = st.one_of(st.integers(0, 300), st.integers(0, 2**33))
word = st.one_of(st.integers(0, 255), st.integers(0, 2**64 - 1), st.integers(2**64, 2**70))
times = st.one_of(
    st.from_regex(r"[0-9]{1,8}\.[0-9]{6}", fullmatch=True),
    st.from_regex(r"[0-9]{0,22}\.?[0-9]{1,12}", fullmatch=True),
)
comms = st.one_of(
    st.sampled_from(["CPU 3/KVM", "<...>", "qemu", "a 1.5: b", "x-1 [2]", "[0]", "kvm_exit", "é"]),
    st.text("ab1-/:[]. ()", max_size=15),
)


@st.composite
def prefixes(draw):
    comm, pid, cpu = draw(comms), draw(u32), draw(st.integers(0, 70000))
    tgid, time = draw(u32), draw(times)
    forms = [
        f"{comm:>16}-{pid:<7} [{cpu:03}] d..1. {time}: ",
        f"{comm}-{pid} ({tgid:>7}) [{cpu:03}] ..... {time}: ",
        f"{comm}-{pid} (-------) [{cpu:03}] {time}: ",
        f"{comm}-{pid} [{cpu:03}] {time}: ",
        f"{comm} {pid} [{cpu:03}] {time}: kvm:",
        f"{comm} {tgid}/{pid} [{cpu:03}] {time}:          1 kvm:",
        f"{comm} {pid} {time}: kvm:",
        f"[{cpu:03}] {time}: kvm:",
        f"{time}: kvm:",
        "kvm:",
        "",
    ]
    return draw(st.sampled_from(forms))


@st.composite
def events(draw):
    vcpu, a, b, c = draw(u32), draw(word), draw(word), draw(word)
    result, level = draw(st.integers(-(2**32), 2**32)), draw(st.integers(0, 300))
    small = draw(st.integers(-1, 1))
    forms = [
        f"kvm_vmgexit_enter: vcpu {vcpu}, exit_reason {a:x}, exit_info1 {b:x}, exit_info2 {c:x}",
        f"kvm_vmgexit_exit: vcpu {vcpu}, exit_reason {a:X}, exit_info1 {b:016x}, exit_info2 {c:x}",
        f"kvm_vmgexit_msr_protocol_enter: vcpu {vcpu}, ghcb_gpa {a:016x}",
        f"kvm_vmgexit_msr_protocol_exit: vcpu {vcpu}, ghcb_gpa {a:016x}, result {small}",
        f"kvm_vmgexit_msr_protocol_exit: vcpu {vcpu}, ghcb_gpa {a:016x}, result {result}",
        f"kvm_rmp_fault: vcpu {vcpu} gpa {a:016x} pfn {b:#x} error_code {c:#x} "
        f"rmp_level {level} psmash_ret {small}",
        f"kvm_exit: vcpu {vcpu} reason vmgexit rip 0x0 info1 0x{a:016x} info2 0x{b:016x} "
        "intr_info 0x00000000 error_code 0x00000000 requests 0x0000000000000000",
        f"kvm_exit:             reason EXIT_NPF rip {a:#x} info {b:x} {c:x}",
        f"kvm_entry: vcpu {vcpu}, rip 0x0",
        "sched_switch: prev_comm=a",
    ]
    return draw(st.sampled_from(forms))


lines = st.one_of(
    st.builds(str.__add__, prefixes(), events()),
    st.sampled_from(
        ["", "# tracer: nop", "CPU:3 [LOST 12 EVENTS]", "CPU:3 [EVENTS DROPPED]", "cpus=4", "\t\t"]
    ),
)


@st.composite
def traces(draw):
    """Lines, then a few bytes of the whole changed, dropped or doubled."""
    text = bytearray("\n".join(draw(st.lists(lines, max_size=8))).encode())
    text += draw(st.sampled_from([b"\n", b"", b"\r\n"]))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(text) - 1)))
        text[at : at + draw(st.integers(0, 2))] = draw(
            st.one_of(st.just(b""), st.sampled_from([b":", b" ", b"\n", b"0", b"\0", b"-", b"x"]))
        )
    return bytes(text)


def same(found, expected, names):
    assert [int(n) for n in found["line"]] == [e["line"] for e in expected]
    for got, want in zip(found, expected, strict=True):
        for field in FIELDS:
            assert int(got[field]) == want[field], (field, want)
        if want["kind"] == lib.GHCB_TRACE_BAD:
            continue
        for field in VALUES:
            assert int(got[field]) == want.get(field, 0 if field != "vcpu" else 2**32 - 1), field
        if want["kind"] == lib.GHCB_TRACE_RMP_FAULT:
            assert int(got["detail"]) == want["level"]
        if want.get("name") is not None:
            kept = want["name"][: lib.GHCB_TRACE_NAME_MAX].decode("ascii", "backslashreplace")
            assert names[int(got["detail"])] == kept


@given(traces())
@example(b"a-1 [000] 1.5: kvm_vmgexit_enter: vcpu 0, exit_reason 0x, exit_info1 0, exit_info2 0\n")
@example(b"a 1.5: b-1 [000] 2.5: kvm_vmgexit_msr_protocol_enter: vcpu 0, ghcb_gpa 2\n")
def test_scanner_agrees_with_regular_expressions(text):
    found, scanner = scan(text)
    same(found, trace_oracle.records(text), scanner.names)


@given(traces(), st.data())
def test_cutting_the_text_anywhere_changes_nothing(text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    whole, one = scan(text, room=1000)
    pieces, two = scan(text, cuts, room=data.draw(st.integers(1, 5)))
    assert whole.tobytes() == pieces.tobytes()
    assert (one.n_lines, one.n_bytes, one.cut, one.names) == (
        two.n_lines,
        two.n_bytes,
        two.cut,
        two.names,
    )


@given(st.binary(max_size=300), st.data())
def test_any_bytes_are_read_without_a_crash(text, data):
    at = data.draw(st.integers(0, len(text)))
    found, scanner = scan(text, (at,))
    assert scanner.n_bytes == len(text)
    same(found, trace_oracle.records(text), scanner.names)
    pair(found)


def pair(found, room: int = 5):
    pairer, out, given_out = Pairer(), np.empty(room, EXCHANGE_DTYPE), []
    while len(found):
        used, n = pairer.pair(found, out)
        given_out.append(out[:n].copy())
        found = found[used:]
    while n := pairer.finish(out):
        given_out.append(out[:n].copy())
    return np.concatenate([*given_out, out[:0]]), pairer


@given(st.integers(1, 60), st.integers(0, 3))
def test_a_line_around_the_limit_is_read_or_reported(shift, cut):
    good = b"x-1 [000] 1.000000: kvm_vmgexit_msr_protocol_enter: vcpu 0, ghcb_gpa 2"
    size = lib.GHCB_TRACE_LINE_MAX - 30 + shift
    line = b" " * (size - len(good)) + good
    text = line + b"\n" + good + b"\n"
    found, scanner = scan(text, (cut * size // 3,))
    fits = size <= lib.GHCB_TRACE_LINE_MAX
    kinds = [int(k) for k in found["kind"]]
    if fits:
        assert kinds == [lib.GHCB_TRACE_MSR_ENTER] * 2
    else:
        # its beginning holds the event unless that itself is cut off before the name's end
        assert kinds[-1] == lib.GHCB_TRACE_MSR_ENTER and lib.GHCB_TRACE_MSR_ENTER not in kinds[:-1]
    same(found, trace_oracle.records(text), scanner.names)


record = st.builds(
    dict,
    kind=st.integers(lib.GHCB_TRACE_NAE_ENTER, lib.GHCB_TRACE_MSR_EXIT),
    time_ns=st.integers(0, 2**62),
    a=st.integers(0, 2**64 - 1),
    b=st.integers(0, 2**64 - 1),
    c=st.integers(0, 2**64 - 1),
    pid=st.integers(0, 2**32 - 2),
    tgid=st.integers(0, 2**32 - 1),
    vcpu=st.integers(0, 2**32 - 2),
    cpu=st.integers(0, 2**16 - 2),
    result=st.integers(-(2**31), 2**31 - 1),
)


@given(st.lists(record, min_size=1, max_size=5))
def test_what_is_written_is_read_back_equal(rows):
    lines = np.zeros(len(rows), LINE_DTYPE)
    for line, row in zip(lines, rows, strict=True):
        for name, value in row.items():
            line[name] = value
    text = format_lines(lines).tobytes()
    found, _ = scan(text)
    lines["form"] = lib.GHCB_TRACE_FORM_FTRACE
    lines["line"] = np.arange(1, len(rows) + 1)
    lines["offset"] = found["offset"]
    msr = lines["kind"] >= lib.GHCB_TRACE_MSR_ENTER
    lines["b"][msr] = lines["c"][msr] = 0
    lines["result"][lines["kind"] != lib.GHCB_TRACE_MSR_EXIT] = 0
    assert found.tobytes() == lines.tobytes()


def test_a_record_that_is_no_vmgexit_is_not_written():
    lines = np.zeros(2, LINE_DTYPE)
    lines["kind"] = lib.GHCB_TRACE_NAE_ENTER, lib.GHCB_TRACE_OTHER
    with pytest.raises(ValueError, match=r"lines\[1\], kind 8"):
        format_lines(lines)

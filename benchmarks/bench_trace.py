"""Read the text of a KVM trace, beside one compiled regular expression.

The peer is what anybody writes first: one expression for all four VMGEXIT events, compiled once,
run by ``finditer`` over the whole text; that it finds a line counts, its groups are not converted.
Ours has every number of each line as an integer in a record.

Sizes: 400,000 lines, 50 MB, which leaves every cache; the other row has 20,000 lines, one in twenty
of interest, as in a trace with other tracepoints: there the expression goes over most lines often.

The same at full size, ten million lines of 611 VMs with 4096 vCPUs each:

    pysev run sev-es-kexec/jump-table-spurious-wake --cpus 4096 --repeat 611 --trace FILE
    pysev trace FILE
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from beside import OURS

from ghcbcore._cffi import lib
from ghcbcore.exchange import EXCHANGE_DTYPE, Pairer
from ghcbcore.trace import LINE_DTYPE, Scanner, format_lines
from pysev.trace import Summary, TraceReader

pytestmark = pytest.mark.benchmark(max_time=0.5, min_time=1e-3)

LINES = 400_000
MIXED = 20_000
PIECE = 1 << 18  # bytes that a reader hands over at once
ROOM = 1 << 13
UNIT = "lines"

EVENT = re.compile(
    rb"^ *(.+?)-(\d+) +\[(\d+)\] \S+ +(\d+)\.(\d+): kvm_vmgexit_(?:"
    rb"(enter|exit): vcpu (\d+), exit_reason ([0-9a-f]+), exit_info1 ([0-9a-f]+), "
    rb"exit_info2 ([0-9a-f]+)"
    rb"|msr_protocol_(enter|exit): vcpu (\d+), ghcb_gpa ([0-9a-f]+)(?:, result (-?\d+))?)$",
    re.M,
)
NOISE = (
    b"          <idle>-0       [002] d..2.  6748.446657: sched_switch: prev_comm=swapper/2 "
    b"prev_pid=0 prev_prio=120 prev_state=R ==> next_comm=qemu next_pid=12 next_prio=120\n"
)


def records(n: int) -> np.ndarray[Any, Any]:
    """Return n lines: port accesses and page-state changes of eight vCPUs, request and answer."""
    lines = np.zeros(n, LINE_DTYPE)
    i = np.arange(n)
    lines["vcpu"] = i // 2 % 8
    lines["pid"] = 1507554 + lines["vcpu"]
    lines["time_ns"] = 6748 * 10**9 + i * 1000
    lines["cpu"] = 3
    lines["kind"] = 2 + i % 4
    lines["a"] = np.select([i % 4 < 2, i % 4 == 2], [0x7B, 0x0020000012345014 + (i << 12)], 0x15)
    lines["b"] = np.where(i % 4 == 0, 0x03F80211, 0)
    lines["result"] = i % 4 == 3
    lines["tgid"] = lib.GHCB_TRACE_NO_PID
    return lines


def vmgexits(n: int) -> bytes:
    return format_lines(records(n)).tobytes()


def scan(text: bytes, pairing: bool = False) -> int:
    scanner, pairer, found = Scanner(), Pairer(), 0
    lines, exchanges = np.empty(ROOM, LINE_DTYPE), np.empty(ROOM, EXCHANGE_DTYPE)
    view = memoryview(text)
    for start in range(0, len(text), PIECE):
        piece = view[start : start + PIECE]
        while len(piece):
            used, n = scanner.scan(piece, lines)
            piece = piece[used:]
            found += n
            rest = lines[:n]
            while pairing and len(rest):
                rest = rest[pairer.pair(rest, exchanges)[0] :]
    if pairing:
        assert sum(kind.n_timed for kind in pairer.kinds()) == found // 2
    return found


def judged(text: bytes) -> int:
    reader = TraceReader()
    summary = Summary(reader)
    view = memoryview(text)
    for batch in reader.batches(view[i : i + PIECE] for i in range(0, len(text), PIECE)):
        summary.look(batch)
    summary.finish()
    assert not summary.lint.findings
    return summary.n_records


def written_by_python(lines: list[tuple[Any, ...]]) -> int:
    """Write what ``records`` holds with format strings; return how many bytes."""
    out = []
    for _, _, time_ns, a, b, c, pid, _, vcpu, result, cpu, kind, *_ in lines:
        head = f"       CPU {vcpu}/KVM-{pid:<7} [{cpu:03}] ..... {time_ns / 1e9:.9f}: kvm_vmgexit_"
        if kind <= lib.GHCB_TRACE_NAE_EXIT:
            way = "enter" if kind == lib.GHCB_TRACE_NAE_ENTER else "exit"
            text = f"{way}: vcpu {vcpu}, exit_reason {a:x}, exit_info1 {b:x}, exit_info2 {c:x}\n"
        elif kind == lib.GHCB_TRACE_MSR_ENTER:
            text = f"msr_protocol_enter: vcpu {vcpu}, ghcb_gpa {a:016x}\n"
        else:
            text = f"msr_protocol_exit: vcpu {vcpu}, ghcb_gpa {a:016x}, result {result}\n"
        out.append(head + text)
    return len("".join(out).encode())


def in_threads(text: bytes, n: int) -> int:
    found = [0] * n

    def one(i: int) -> None:
        found[i] = scan(text)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(found)


def expression(text: bytes) -> int:
    return sum(1 for _ in EVENT.finditer(text))


@pytest.fixture(scope="module")
def text() -> bytes:
    return vmgexits(LINES)


SIDES = {
    OURS: scan,
    "re": expression,
    "with pairing": lambda text: scan(text, pairing=True),
    "all of pysev trace": judged,
}


@pytest.mark.parametrize("who", SIDES)
def bench_scan(timed: Callable[..., Any], text: bytes, who: str) -> None:
    found = timed("trace, every line a VMGEXIT", who, LINES, UNIT, lambda: SIDES[who](text))
    assert found == LINES


@pytest.mark.parametrize("who", [OURS, "re"])
def bench_scan_among_other_lines(timed: Callable[..., Any], who: str) -> None:
    few = vmgexits(MIXED // 20).splitlines(keepends=True)
    mixed = b"".join(line + NOISE * 19 for line in few)
    found = timed("trace, one line in 20 a VMGEXIT", who, MIXED, UNIT, lambda: SIDES[who](mixed))
    assert found == MIXED // 20


@pytest.mark.parametrize("n", [1, 2])
def bench_scan_in_threads(timed: Callable[..., Any], text: bytes, n: int) -> None:
    who = OURS if n == 2 else "one thread"
    found = timed(
        "trace, two threads, one text each", who, n * LINES, UNIT, lambda: in_threads(text, n)
    )
    assert found == n * LINES


@pytest.mark.parametrize("who", [OURS, "format strings"])
def bench_write(timed: Callable[..., Any], who: str) -> None:
    lines = records(MIXED)
    rows = lines.tolist()
    calls = {
        OURS: lambda: len(format_lines(lines)),
        "format strings": lambda: written_by_python(rows),
    }
    size = timed("trace, written", who, MIXED, UNIT, calls[who])
    assert size > 100 * MIXED

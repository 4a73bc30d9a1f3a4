"""Pairing against its oracle: random records of few vCPUs, handed over in pieces."""

import numpy as np
import trace_oracle
from hypothesis import given
from hypothesis import strategies as st

from ghcbcore._cffi import lib
from ghcbcore.exchange import EXCHANGE_DTYPE, Pairer, bin_start
from ghcbcore.trace import LINE_DTYPE

CODES = (0x72, 0x7B, lib.GHCB_NAE_TERMINATE, lib.GHCB_NAE_PSC, 0x999)
MSRS = (0x002, 0x001, 0x014, 0x100, 0x12, 0x13, 0xABC)

record = st.builds(
    dict,
    kind=st.sampled_from(
        [
            *range(lib.GHCB_TRACE_NAE_ENTER, lib.GHCB_TRACE_MSR_EXIT + 1),
            lib.GHCB_TRACE_LOST,
            lib.GHCB_TRACE_OTHER,
        ]
    ),
    pid=st.integers(1, 2),
    vcpu=st.integers(0, 2),
    step=st.integers(-1, 3),
    code=st.sampled_from(CODES),
    msr=st.sampled_from(MSRS),
    result=st.sampled_from([1, 1, 0, -22]),
)


def made(rows):
    lines, now = np.zeros(len(rows), LINE_DTYPE), 1000
    for i, (line, row) in enumerate(zip(lines, rows, strict=True), 1):
        now += row["step"]
        line["line"], line["time_ns"] = i, now
        for name in ("kind", "pid", "vcpu", "result"):
            line[name] = row[name]
        msr = row["kind"] in (lib.GHCB_TRACE_MSR_ENTER, lib.GHCB_TRACE_MSR_EXIT)
        line["a"] = row["msr"] if msr else row["code"]
        if row["kind"] == lib.GHCB_TRACE_LOST:
            line["a"] = row["vcpu"]
        if row["kind"] != lib.GHCB_TRACE_MSR_EXIT:
            line["result"] = 0
    return lines


def paired(lines, room):
    pairer, out, found = Pairer(), np.empty(room, EXCHANGE_DTYPE), []
    while len(lines):
        used, n = pairer.pair(lines, out)
        found.append(out[:n].copy())
        lines = lines[used:]
    while n := pairer.finish(out):
        found.append(out[:n].copy())
    return np.concatenate([*found, out[:0]]), pairer


@given(st.lists(record, max_size=40), st.integers(1, 9))
def test_pairing_agrees_with_its_oracle(rows, room):
    lines = made(rows)
    found, pairer = paired(lines, room)
    expected = trace_oracle.exchanges(
        [{name: int(line[name]) for name in LINE_DTYPE.names} for line in lines]
    )
    flags = ~np.uint16(lib.GHCB_EXCHANGE_UNREGISTERED)
    got = [(int(x["enter_line"]), int(x["exit_line"]), int(x["flags"] & flags)) for x in found]
    assert got == expected
    assert pairer.n_untracked == 0
    requests = [x for x in found if x["flags"] & lib.GHCB_EXCHANGE_ENTER]
    assert sum(kind.n for kind in pairer.kinds()) == len(requests)
    for x in found:
        kind = pairer.kinds()[int(x["kind"])]
        page = bool(x["flags"] & lib.GHCB_EXCHANGE_PAGE)
        code = int(x["sw_exit_code"]) if page else int(x["msr"] or x["msr_after"]) & 0xFFF
        assert (kind.page, kind.code) == (page, code)


@given(st.integers(0, 2**62))
def test_a_time_lies_in_the_bin_that_begins_at_or_before_it(ns):
    lines = np.zeros(2, LINE_DTYPE)
    lines["kind"] = lib.GHCB_TRACE_NAE_ENTER, lib.GHCB_TRACE_NAE_EXIT
    lines["time_ns"] = 5, 5 + ns
    _, pairer = paired(lines, 4)
    (bins,) = pairer.histogram()
    (which,) = np.nonzero(bins)[0]
    after = bin_start(which + 1) if which + 1 < len(bins) else 2**64
    assert bin_start(which) <= ns < after
    assert after - bin_start(which) <= max(1, bin_start(which) / 8 + 1)
    assert pairer.kinds()[0][2:] == (1, 1, ns, ns)


def test_more_kinds_than_there_is_room_for_become_one():
    lines = np.zeros(1000, LINE_DTYPE)
    lines["kind"] = lib.GHCB_TRACE_NAE_ENTER
    lines["a"] = np.arange(1000) + 7
    _, pairer = paired(lines, 100)
    kinds = pairer.kinds()
    assert len(kinds) == lib.GHCB_EXCHANGE_N_KINDS
    assert kinds[-1].code is None and kinds[-1].n == 1000 - len(kinds) + 1
    assert [kind.code for kind in kinds[:-1]] == list(range(7, 7 + len(kinds) - 1))
    _, pairer = paired(np.concatenate([lines, lines]), 100)  # each is found again
    assert [kind[:3] for kind in pairer.kinds()[:-1]] == [
        (kind[0], kind[1], 2) for kind in kinds[:-1]
    ]


def test_many_vcpus_of_many_threads_are_kept_apart():
    lines = np.zeros(20_000, LINE_DTYPE)
    lines["pid"], lines["vcpu"] = np.arange(20_000) // 100, np.arange(20_000) % 100
    lines["kind"] = lib.GHCB_TRACE_NAE_ENTER
    answers = lines.copy()
    answers["kind"] = lib.GHCB_TRACE_NAE_EXIT
    found, pairer = paired(np.concatenate([lines, answers[::-1]]), 77)
    assert pairer.n_vcpus == 20_000 == len(found)
    assert (found["flags"] & lib.GHCB_EXCHANGE_EXIT).all()
    assert pairer.vcpus()[12345].tolist() == [123, 45]

"""AP creation inside a flow: the host's own answer reaches the vCPU that is named, and no other."""

from __future__ import annotations

import numpy as np
import pytest

import pysev
from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange
from ghcbcore.profile import Profile
from pysev.checking import check
from pysev.flow import Flow, FlowError, add, number_of, op, put, when
from pysev.simulate import run
from pysev.words import ask_nae, create_ap, destroy_ap, halt

GHCB, VMSA = 0x1000, 0x5000
EVENTS = (lib.GHCB_NAE_SNP_AP_CREATION, lib.GHCB_NAE_HV_IPI)
NMI_TO_ALL_OTHERS = 0xC_4400  # of the interrupt command register


def ap_flow() -> Flow:
    """The boot CPU starts every AP from a VMSA, then destroys it."""
    flow = Flow("aps", Profile(guest=lib.GHCB_GUEST_SNP))
    flow.start(registered_gpa=GHCB)
    flow.globals(left=0, refused=0)
    flow.per_cpu(book=0, ran=0)
    boot, g, other, cpu = flow.agent("boot CPU"), flow.g, flow.other, flow.cpu
    bad = when(flow.boot.sw_exit_info_1 != 0, add(g.refused, 1))
    boot.at(
        "create",
        op(
            "AP creation: create",
            pick=True,
            when=[other.book == 0],
            do=[*create_ap(flow.boot, other, GHCB, VMSA), bad, put(other.book, 1), add(g.left, 1)],
            to=".",
        ),
        op(
            "AP creation: destroy",
            pick=True,
            when=[other.book == 1, other.ran == 1],
            do=[*destroy_ap(flow.boot, other, GHCB), bad, put(other.book, 2)],
            to=".",
        ),
        ends=True,
    )
    thread = flow.agent("vCPU thread", per_cpu=True)
    thread.at(
        "wait",
        op(
            "starts",
            when=[cpu.mp_state == lib.GHCB_MP_RUNNABLE, cpu.entry == lib.GHCB_ENTRY_VMSA],
            do=[put(cpu.ran, 1), put(cpu.entry, lib.GHCB_ENTRY_RESUME)],
        ),
        ends=True,
    )
    thread.at("ran", ends=True)
    return flow


def is_consistent(s: pysev.States) -> np.ndarray:
    vmsa, book = s.cpu.vmsa, s.cpu.book
    want = np.array([0, VMSA, lib.GHCB_VMSA_NONE], np.uint64)[book.astype(np.intp)]
    return (vmsa == want).all(axis=1) & (s.g.refused == 0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_ap_creation_reaches_the_cpu_that_it_names_and_no_other(symmetric: bool) -> None:
    flow = ap_flow()
    flow.always("the host does as told", is_consistent)
    flow.sometimes("an AP runs", lambda s: (s.cpu.ran == 1).any(axis=1))
    flow.sometimes("an AP is gone", lambda s: (s.cpu.vmsa == lib.GHCB_VMSA_NONE).any(axis=1))
    result = check(flow, 4, symmetric=symmetric)
    assert (result.verdict, result.violations) == ("holds", {})
    assert result.complete


def test_symmetry_counts_each_multiset_of_cpus_once() -> None:
    # each CPU goes its own way through the same four states, so three of them are in 4**3, or in
    # one of C(4 + 3 - 1, 3) multisets
    apart, alike = check(ap_flow(), 4, symmetric=False), check(ap_flow(), 4)
    assert (apart.states, alike.states) == (64, 20)


def test_run_starts_and_destroys_a_thousand_aps() -> None:
    flow = ap_flow()
    result = run(flow, pysev.Machine.of(1000), 1)
    assert result.verdict == "holds"
    compiled = flow.compile(1000)
    slices = result.record[compiled.program.n_global :].reshape(-1, compiled.program.n_slice)
    assert (slices[:, flow.cpu.vmsa.index] == lib.GHCB_VMSA_NONE).all()
    assert (slices[:, flow.cpu.ran.index] == 1).all()


def test_the_number_of_a_cpu_is_the_one_that_a_timeline_shows() -> None:
    flow = Flow("numbers")
    flow.per_cpu(number=0)
    boot = flow.agent("boot CPU")
    cpu, other = flow.cpu, flow.other
    ap = flow.agent("AP", per_cpu=True)
    ap.at("a", op("asks", do=[number_of(cpu.number, flow.cpu, shift=4)]))
    ap.at("b", ends=True)
    tell = op("tells", pick=True, when=[other.number != 0], do=[number_of(other.number, other)])
    boot.at("tell", tell)
    boot.at("done", ends=True)
    compiled = flow.compile(4)
    record = compiled.initial_record()
    for move in [m for m in compiled.program.moves(record) if m[1] >= 0]:
        compiled.program.step(record, *move)
    first = compiled.program.n_global + cpu.number.index
    assert record[first :: compiled.program.n_slice].tolist() == [0x10, 0x20, 0x30]
    move = next(m for m in compiled.program.moves(record) if m[2] == 1)
    compiled.program.step(record, *move)
    assert record[first :: compiled.program.n_slice].tolist() == [0x10, 2, 0x30]


def test_a_number_of_a_cpu_that_is_not_there_is_refused() -> None:
    flow = Flow("numbers")
    flow.globals(x=0)
    boot = flow.agent("boot CPU")
    boot.at("a", op("asks", do=[number_of(flow.g.x, flow.cpu)]))
    boot.at("b", ends=True)
    with pytest.raises((OutOfRange, FlowError), match="block 1"):
        flow.compile(2)


def test_a_destroyed_cpu_that_runs_ends_the_vm() -> None:
    flow = ap_flow()
    again = flow.agent("careless", per_cpu=True)
    cpu = flow.cpu
    again.at("run", op("VMRUN again", when=[cpu.book == 2], do=[halt(cpu)]))
    again.at("nmi", op("NMI wakes it", do=[pysev.words.send_nmi(cpu)]))
    again.at("done", ends=True)
    flow.always("lives", lambda s: s.vm.event == lib.GHCB_EVENT_NONE)
    assert check(flow, 2).verdict == "violated"


@pytest.mark.parametrize("reaches", ["AP creation", "IPI"])
def test_a_run_wakes_who_is_reached_without_being_bound(reaches: str) -> None:
    """By APIC ID 3, or by NMI to all but the sender; watchers sleep until their words change."""
    ipi = reaches == "IPI"
    profile = Profile(guest=lib.GHCB_GUEST_SNP, nae_events=EVENTS)
    flow = Flow("unbound", profile)
    flow.start(registered_gpa=GHCB)
    flow.per_cpu(woken=0)
    cpu, boot = flow.cpu, flow.agent("boot CPU")
    code, info_1 = lib.GHCB_NAE_SNP_AP_CREATION, 3 << 32 | lib.GHCB_AP_CREATE_NOW
    if ipi:
        code, info_1 = lib.GHCB_NAE_HV_IPI, NMI_TO_ALL_OTHERS
    ask = ask_nae(flow.boot, GHCB, code, info_1, 0 if ipi else VMSA)
    boot.at("ask", op(reaches, do=ask, after=1_000_000))
    boot.at("asked", ends=True)
    ap = flow.agent("AP", per_cpu=True)
    woken = [cpu.nmi_pending == 1] if ipi else [cpu.entry == lib.GHCB_ENTRY_VMSA]
    ap.at("sleeps", op("is reached", when=woken, do=[put(cpu.woken, 1)]), ends=True)
    ap.at("woken", ends=True)
    result = run(flow, pysev.Machine.of(6))
    assert result.verdict == "holds"
    states = pysev.States.of_record(flow.compile(6), result.record)
    assert states.cpu.woken[0].tolist() == ([1] * 5 if ipi else [0, 0, 1, 0, 0])

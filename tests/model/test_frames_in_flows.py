"""Frames as words of a flow: the same rules in ``step``, ``check``, ``run`` and the ledger."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange
from ghcbcore.frame import Op, apply, n_frames
from ghcbcore.machine import Program
from pysev import frames
from pysev.checking import check
from pysev.flow import Flow, FlowError, op, put, when
from pysev.machine import Machine
from pysev.memmap import MemoryMap
from pysev.memory import Memory
from pysev.simulate import run

REGION = lib.FRAME_REGION
PRIVATE = (
    frames.map_as(lib.FRAME_PRIVATE),
    frames.rmpupdate(True),
    Op(lib.FRAME_OP_LIST, value=lib.FRAME_LISTED_PRIVATE),
    frames.pvalidate(True),
)
KINDS = [k for k in range(1, lib.FRAME_OP_END) if k != lib.FRAME_OP_MOVE]


def pieces(n):
    """One page of 2 MiB at the end of 16 TiB, as n pieces."""
    first = (1 << 32) - REGION
    cuts = [first + REGION * i // n for i in range(n + 1)]
    return lambda machine: [(a, b - a) for a, b in pairwise(cuts)]


def converting(order, start=PRIVATE):
    """One CPU makes a page shared, and may be shot between any two steps; then who thinks what?"""
    flow = Flow("convert")
    page = frames.declare(flow, "page", 1, start=start, where=lambda machine: [(1 << 30, 3 << 20)])
    flow.globals(answer=0, shot=0)
    steps = {
        "rescind": frames.pvalidate(False),
        "rmp": frames.rmpupdate(False),
        "list": Op(lib.FRAME_OP_LIST, value=lib.FRAME_LISTED_SHARED),
        "pte": frames.map_as(lib.FRAME_SHARED),
    }
    boot = flow.agent("boot CPU")
    for name in order:
        boot.at(
            name,
            op(
                name,
                when=[flow.g.shot == 0],
                do=[frames.happen(page, 0, steps[name], flow.g.answer)],
            ),
            op("shot", when=[flow.g.shot == 1], to="dead"),
        )
    boot.at("done", ends=True)
    boot.at("dead", ends=True)
    nmi = flow.agent("crashing CPU")
    nmi.at("any time", op("NMI", do=[put(flow.g.shot, 1)]))
    nmi.at("sent", ends=True)

    def walk_finds_it(s):
        """A page that is not the guest's any more is seen in the page table as shared."""
        v = frames.views(s, page)[:, 0]
        return (v["assigned"] == 1) | (v["mapping"] == lib.FRAME_SHARED)

    flow.at_end("the walk finds every shared page", walk_finds_it)
    flow.sometimes("converted", lambda s: frames.views(s, page)[:, 0]["assigned"] == 0)
    flow.always("no refusal", lambda s: s.g.answer == 0)
    return flow


def test_a_cpu_shot_between_rmp_and_page_table_leaves_a_page_that_the_walk_cannot_see():
    result = check(converting(("rescind", "rmp", "list", "pte")), 1)
    assert (result.verdict, result.property) == ("violated", "the walk finds every shared page")


def test_the_mirrored_order_leaves_no_page_that_the_walk_cannot_see():
    # the guest's own PVALIDATE then has no private mapping to go through: what TDX can do
    result = check(converting(("pte", "rescind", "rmp", "list")), 1)
    assert result.verdict == "holds", result


def test_run_does_to_a_guest_of_16_tib_what_it_does_to_its_record():
    machine = Machine.of(1, MemoryMap.flat(16 << 40))
    memory = Memory(16 << 40)
    for one in PRIVATE:
        assert memory.do(one, (1 << 30, 3 << 20))
    result = run(converting(("rescind", "rmp", "list", "pte")), machine, 5, memory=memory)
    assert memory.page(1 << 30).state == "hypervisor"
    assert memory.page((1 << 30) + (3 << 20) - 1).since["rmp"] > len(PRIVATE)
    assert all("ns, CPU 0" in e.label for n, e in memory.events.items() if n > len(PRIVATE))
    assert not (result.trace["call"] == lib.GHCB_TRACE_FRAME).any()


def test_run_refuses_frames_that_stand_for_nothing():
    flow = Flow("nothing")
    page = frames.declare(flow, "page", 1)
    flow.globals(answer=0)
    boot = flow.agent("boot CPU")
    boot.at("ask", op("ask", do=[frames.happen(page, 0, frames.rmpupdate(True), flow.g.answer)]))
    boot.at("done", ends=True)
    with pytest.raises(FlowError, match="page: says not what its frames stand for"):
        run(flow, Machine.of(1), memory=Memory("4G"))


def test_a_memory_that_began_otherwise_is_noticed():
    memory = Memory(16 << 40)
    with pytest.raises(frames.Mismatch):
        run(
            converting(("rescind", "rmp", "list", "pte")),
            Machine.of(1, MemoryMap.flat(16 << 40)),
            5,
            memory=memory,
        )


LARGEST_VALUE = {
    lib.FRAME_OP_MAP: 2,
    lib.FRAME_OP_BELIEVE: 1,
    lib.FRAME_OP_LIST: 2,
    lib.FRAME_OP_INIT: 4,
}


@st.composite
def operations(draw):
    kind = draw(st.sampled_from(KINDS))
    large = draw(st.sampled_from([0, 0, 0, 1]))
    return Op(
        kind,
        size=0 if kind == lib.FRAME_OP_LEAF else large,
        backing=draw(st.sampled_from([0, 0, 1])),
        asid=draw(st.sampled_from([0, 1, 1, 1, 2])),
        vmpl=draw(st.sampled_from([0, 0, 0, 1])),
        target=draw(st.sampled_from([0, 1, 2])),
        gfn=draw(st.sampled_from([0, 0, 0, REGION])),
        value=draw(st.sampled_from([0, 1, 1, 1, 2, 3])) % (LARGEST_VALUE.get(kind, 63) + 1),
    )


def is_large(one):
    return n_frames(one) > 1


def history(steps, n):
    """A flow with one agent that lets these operations happen, one after the other."""
    flow = Flow("history")
    region = frames.declare(flow, "page", n, where=pieces(n))
    flow.globals(answer=0, refused=0)
    boot = flow.agent("boot CPU")
    for i, (one, at) in enumerate(steps):
        do = [
            frames.happen(region, 0 if is_large(one) else at % n, one, flow.g.answer),
            when(flow.g.answer != 0, put(flow.g.refused, i + 1)),
        ]
        boot.at(f"{i}", op(f"{i}", do=do))
    boot.at("done", ends=True)
    return flow, region


@settings(deadline=None)
@given(
    st.lists(st.tuples(operations(), st.integers(0, 3)), min_size=1, max_size=12), st.integers(1, 4)
)
def test_step_run_and_ledger_take_every_history_alike(steps, n):
    flow, region = history(steps, n)
    compiled = flow.compile(1)
    record = compiled.initial_record()
    first = region.words[0][0].index
    by_hand = record[first : first + 2 * n].reshape(n, 2).copy()
    for one, at in steps:
        (move,) = compiled.program.moves(record)
        compiled.program.step(record, *move)
        if one.kind == lib.FRAME_OP_MAP:
            continue  # leaves: what else lies in them is the region's affair, not one frame's
        answer = apply(one, by_hand, 0 if is_large(one) else at % n, max_asid=1022)
        assert int(record[flow.g.answer.index]) == answer
    if not any(one.kind in (lib.FRAME_OP_MAP, lib.FRAME_OP_LEAF) for one, _ in steps):
        np.testing.assert_array_equal(record[first : first + 2 * n].reshape(n, 2), by_hand)
    # the ledger: the same pieces of one 2 MiB page, and answers as the run had them
    memory = Memory(16 << 40, max_asid=1022)
    result = run(flow, Machine.of(1), memory=memory)
    np.testing.assert_array_equal(
        result.record[first : first + 2 * n], record[first : first + 2 * n]
    )


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(operations(), st.integers(0, 1)), min_size=1, max_size=3))
def test_two_cpus_explore_frames_alike_by_both_engines(steps):
    flow = Flow("race")
    region = frames.declare(flow, "page", 2)
    flow.globals(answer=0)
    boot = flow.agent("boot CPU")
    boot.at("rest", ends=True)
    ap = flow.agent("AP", per_cpu=True)
    for i, (one, at) in enumerate(steps):
        here = 0 if is_large(one) else at
        ap.at(f"{i}", op(f"{i}", do=[frames.happen(region, here, one, flow.g.answer)]))
    ap.at("done", ends=True)
    symmetric = check(flow, 3)
    plain = check(flow, 3, symmetric=False)
    assert symmetric.complete and plain.complete
    assert symmetric.verdict == plain.verdict
    compiled = flow.compile(3)
    reached = {bytes(compiled.initial_record())}
    todo = [compiled.initial_record()]
    while todo:
        record = todo.pop()
        for move in compiled.program.moves(record):
            after = record.copy()
            compiled.program.step(after, *move)
            if bytes(after) not in reached:
                reached.add(bytes(after))
                todo.append(after)
    assert plain.states == len(reached)
    assert symmetric.states <= plain.states


@pytest.mark.parametrize(
    ("frame_ops", "regions", "text"),
    [
        ([Op(lib.FRAME_OP_END)], [(40, 1)], r"op\.kind = "),
        ([Op(0)], [(40, 1)], r"op\.kind = 0x0"),
        ([], [(0, 0)], r"regions\[0\]: 0 frames from word 0"),
        ([], [(0, 513)], r"regions\[0\]: 513 frames"),
        ([], [(5, 1), (-1, 1)], r"regions\[1\]: 1 frames from word -1"),
    ],
)
def test_a_program_refuses_tables_that_reach_outside(frame_ops, regions, text):
    flow, _ = history([(frames.rmpupdate(True), 0)], 1)
    good = flow.compile(1).program
    with pytest.raises(OutOfRange, match=text):
        Program(
            good.insns,
            good.alts,
            good.roles,
            good.n_global,
            good.n_slice,
            good.profile,
            frame_ops,
            regions,
        )


def test_a_program_refuses_an_instruction_that_names_no_frame():
    flow, _ = history([(frames.rmpupdate(True), 0)], 1)
    good = flow.compile(1).program
    ops, where = flow.frame_ops, flow.regions
    with pytest.raises(OutOfRange, match="operation 0 on region 0 of frames"):
        Program(
            good.insns, good.alts, good.roles, good.n_global, good.n_slice, good.profile, ops, []
        )
    with pytest.raises(OutOfRange, match="operation 0 on region 0 of frames"):
        Program(
            good.insns, good.alts, good.roles, good.n_global, good.n_slice, good.profile, [], where
        )
    spoilt = good.insns.copy()
    at = int(np.flatnonzero(spoilt["op"] == lib.GHCB_OP_FRAME)[0])
    spoilt[at]["imm"] = 1
    with pytest.raises(OutOfRange, match="frame 1 of region 0"):
        Program(
            spoilt, good.alts, good.roles, good.n_global, good.n_slice, good.profile, ops, where
        )


def test_frames_that_are_refused_at_the_start_are_refused_by_name():
    with pytest.raises(FlowError, match=r"page: .* is refused at the start"):
        frames.declare(Flow("x"), "page", 2, start=[frames.pvalidate(True)])
    with pytest.raises(FlowError, match="page: 0 frames; 1 to 512 are possible"):
        frames.declare(Flow("x"), "page", 0)

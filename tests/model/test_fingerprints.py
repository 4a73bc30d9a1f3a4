"""Fingerprints: different states have different ones, also where they differ in few bits only."""

from random_flows import explored

from ghcbcore.explorer import Explorer
from pysev.flow import Flow, add, op

N_CPUS = 15
PLACES = (5, 9, 13)
"""Slices whose ids stand 8 and 4 bytes apart in a key: in one byte of two words, and between."""


def counting_cpus(n_values):
    flow = Flow("count")
    flow.agent("boot CPU").at("idle", ends=True)
    flow.per_cpu(n=0, counts=0)
    flow.agent("CPU", per_cpu=True).at(
        "count",
        op(
            "n + 1",
            when=[flow.cpu.counts == 1, flow.cpu.n < n_values - 1],
            do=[add(flow.cpu.n, 1)],
            to=".",
        ),
        ends=True,
    )
    return flow


def test_states_that_differ_in_three_cpus_have_fingerprints_of_their_own():
    n_values = 48
    flow = counting_cpus(n_values)
    compiled = flow.compile(N_CPUS)
    record = compiled.initial_record()
    for place in PLACES:
        at = compiled.program.n_global + place * compiled.program.n_slice
        record[at + flow.cpu.counts.index] = 1
    ex = Explorer(compiled.program, record, symmetric=False, fingerprints=True)
    assert explored(ex, 1 << 20)
    assert ex.n_states == n_values ** len(PLACES)

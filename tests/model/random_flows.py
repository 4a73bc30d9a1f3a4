"""Random small flows for the model tests, and what they all need of the two searches.

Every word stays below 4 (additions are masked), so that most spaces are small; ``explored`` gives
up on those that are not.
"""

import numpy as np
from hypothesis import strategies as st

from ghcbcore._cffi import lib
from ghcbcore.explorer import Explorer
from pysev.flow import Flow, add, call, each, jump, op, put, shift_right, when

CALLS = (
    lib.GHCB_CALL_HLT,
    lib.GHCB_CALL_NMI,
    lib.GHCB_CALL_SEND_INIT,
    lib.GHCB_CALL_INIT,
    lib.GHCB_CALL_SEND_SIPI,
    lib.GHCB_CALL_SIPI,
    lib.GHCB_CALL_SHUTDOWN,
)


@st.composite
def flows(draw, *, timed=False):
    """A flow of up to two agents that exist once and two of each CPU."""
    flow = Flow("random")
    flow.globals(x=draw(st.integers(0, 2)), y=0)
    flow.per_cpu(a=draw(st.integers(0, 2)), b=0)
    if draw(st.integers(0, 5)) == 0:
        flow.only_while(flow.vm.event == 0)
    kinds = draw(st.sampled_from([(0, 1), (1, 0), (1, 1), (0, 2), (2, 1), (0, 0, 1), (1, 1, 0)]))
    agents = [flow.agent(f"agent {i}", per_cpu=bool(k)) for i, k in enumerate(kinds)]
    labels = {a.name: [f"l{i}" for i in range(draw(st.integers(1, 3)))] for a in agents}
    for agent in agents:
        for label in labels[agent.name]:
            n = draw(st.sampled_from([0, 1, 1, 2, 2, 3])) or int(not agents[0].labels)
            ops = [draw(operations(flow, agent, agents, labels, timed)) for _ in range(n)]
            agent.at(label, *ops, ends=draw(st.booleans()))
    return flow


@st.composite
def operations(draw, flow, agent, agents, labels, timed):
    pick = draw(st.sampled_from([False, False, True]))
    common = [flow.g.x, flow.g.y]
    own = [flow.cpu.a, flow.cpu.b] if agent.per_cpu else []
    other = [flow.other.a, flow.other.b]
    seen = common + own + (other * 2 if pick else [])
    guard = [draw(tests(seen)) for _ in range(draw(st.sampled_from([0, 1, 1, 2, 3])))]
    do = []
    for _ in range(draw(st.sampled_from([0, 1, 1, 2]))):
        do += draw(effects(flow, agent, agents, labels, seen, pick))
    if draw(st.integers(0, 3)) == 0:
        body = [e for _ in range(2) for e in draw(simple(seen + other * 2, seen + other * 3))]
        do.append(each(*body))
    return op(
        "something",
        when=guard,
        do=do,
        to=draw(st.sampled_from([".", *labels[agent.name]])),
        pick=pick,
        cost=0 if timed else draw(st.sampled_from([0, 100])),
        after=draw(st.sampled_from([0, 0, 30, 500])) if timed else 0,
        spread=draw(st.booleans()),
    )


@st.composite
def tests(draw, seen):
    left = draw(st.sampled_from(seen))
    if draw(st.integers(0, 4)) == 0:
        left = left & draw(st.integers(0, 3))
    right = draw(st.integers(0, 3) | st.sampled_from(seen))
    kind = draw(st.integers(0, 3))
    return (left == right, left != right, left < right, left >= right)[kind]


@st.composite
def simple(draw, seen, targets):
    """One change of a word, which stays below 4."""
    target = draw(st.sampled_from(targets))
    kind = draw(st.integers(0, 6))
    if kind <= 2:
        return [put(target, draw(st.integers(0, 3)))]
    if kind == 3:
        return [put(target, draw(st.sampled_from(seen)) & 3)]
    if kind == 4:
        return [shift_right(target, draw(st.integers(0, 2)))]
    if kind == 5:
        inner = draw(simple(seen, targets))
        test = draw(tests(seen))
        if draw(st.booleans()):
            return [when(test, *inner, otherwise=draw(simple(seen, targets)))]
        return [when([test, draw(tests(seen))], *inner)]
    amount = draw(st.integers(-2, 2) | st.sampled_from(seen))
    return [add(target, amount), put(target, target & 3)]


@st.composite
def effects(draw, flow, agent, agents, labels, seen, pick):
    kind = draw(st.integers(0, 7))
    if kind == 0:
        return [jump(*draw(st.sampled_from(reachable(agent, agents, labels))))]
    if kind == 1:
        vcpus = [flow.boot, *([flow.cpu] if agent.per_cpu else []), *([flow.other] if pick else [])]
        return [call(draw(st.sampled_from(CALLS)), draw(st.sampled_from(vcpus)))]
    return draw(simple(seen, seen))


def reachable(agent, agents, labels):
    """The agents that ``agent`` can put elsewhere: those that exist once and those of its CPU."""
    return [
        (a, label) for a in agents for label in labels[a.name] if not a.per_cpu or agent.per_cpu
    ]


def explored(ex, limit=4000):
    """Search everything; return whether the space has at most ``limit`` states."""
    low = 0
    while low < ex.n_states <= limit:
        high = ex.n_states
        ex.expand(low, high)
        low = high
    return low == ex.n_states


def search(compiled, limit=4000, **options):
    """Return the explorer of a whole space, or None if it is larger than ``limit``."""
    ex = Explorer(compiled.program, compiled.initial_record(), **options)
    return ex if explored(ex, limit) else None


def records(ex, first=0):
    """Return the states of an explorer as records, one a row."""
    gids, sids = ex.part_ids(first, ex.n_states)
    parts, slices = ex.tables()
    return np.concatenate([parts[gids], slices[sids].reshape(len(gids), -1)], axis=1)


def sorted_cpus(record, program):
    """Return a record as bytes in which it does not matter which CPU is which."""
    slices = record[program.n_global :].reshape(-1, program.n_slice)
    return record[: program.n_global].tobytes() + b"".join(
        np.array(sorted(slices.tolist()), dtype=np.uint64).reshape(-1, program.n_slice)
    )

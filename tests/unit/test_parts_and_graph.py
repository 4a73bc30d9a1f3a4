"""Components of a graph against reachability; what an explorer stores and takes up again."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghcbcore.errors import OutOfRange, StateConflict
from ghcbcore.explorer import Explorer
from ghcbcore.stategraph import components
from pysev.flow import Flow, add, op


def arrays(edges):
    edges = sorted(edges)
    source = np.array([a for a, _ in edges], dtype=np.uint32)
    return source, np.array([b for _, b in edges], dtype=np.uint32)


# -- components --------------------------------------------------------------------------------


@given(
    n=st.integers(1, 12),
    pairs=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=40),
)
def test_components_are_the_states_that_reach_each_other(n, pairs):
    edges = [(a % n, b % n) for a, b in pairs]
    reach = {(i, i) for i in range(n)} | set(edges)
    for k in range(n):
        reach |= {(i, j) for i in range(n) for j in range(n) if {(i, k), (k, j)} <= reach}
    label = components(n, *arrays(edges))
    assert label.shape == (n,)
    for i in range(n):
        for j in range(n):
            assert (label[i] == label[j]) == ({(i, j), (j, i)} <= reach)
    assert all(label[b] <= label[a] for a, b in edges)
    assert set(label.tolist()) == set(range(max(label) + 1))


@pytest.mark.parametrize("back", [False, True])
def test_a_chain_of_100000_states_needs_no_recursion(back):
    n = 100_000
    source = np.arange(n - 1 + back, dtype=np.uint32)
    target = np.array([*range(1, n), *([0] if back else [])], dtype=np.uint32)
    label = components(n, source, target)
    assert len(set(label.tolist())) == (1 if back else n)
    if not back:
        assert label.tolist() == list(range(n))[::-1]


def test_many_circles_in_a_random_order():
    rng, n = random.Random(3), 30_000
    order = list(range(n))
    rng.shuffle(order)
    circles = [order[i : i + 3] for i in range(0, n, 3)]
    edges = [(c[i], c[(i + 1) % 3]) for c in circles for i in range(3)]
    edges += [(a[0], b[0]) for a, b in itertools.pairwise(circles)]
    label = components(n, *arrays(edges))
    assert all(len({label[s] for s in c}) == 1 for c in circles)
    assert len(set(label.tolist())) == len(circles)


def test_a_graph_without_states_or_edges_has_components():
    nothing = np.zeros(0, dtype=np.uint32)
    assert components(0, nothing, nothing).tolist() == []
    assert sorted(components(3, nothing, nothing).tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("n", "source", "target", "message"),
    [
        (2, [0, 1], [1], "2 sources, 1 targets"),
        (2, [0], [2], "edge 0: from 0 to 2 of 2 states"),
        (2, [2], [0], "edge 0: from 2 to 0 of 2 states"),
        (0, [0], [0], "edge 0: from 0 to 0 of 0 states"),
        (2, [0, 1, 0], [0, 0, 0], "edge 2: source 0 after 1"),
        (2, [0], [0xFFFFFFFF], "edge 0: from 0 to 4294967295"),
        (-1, [], [], "-1 states"),
        (1 << 32, [], [], "4294967296 states"),
    ],
)
def test_arrays_that_are_no_graph_are_refused(n, source, target, message):
    with pytest.raises(OutOfRange, match=message):
        components(n, np.array(source, np.uint32), np.array(target, np.uint32))


@pytest.mark.parametrize(
    "wrong", [None, [0, 1], np.zeros(2, np.int64), np.zeros((2, 2), np.uint32)]
)
def test_what_is_no_array_of_states_is_refused(wrong):
    with pytest.raises((TypeError, ValueError)):
        components(2, wrong, np.zeros(2, np.uint32))


# -- an explorer that is taken up again --------------------------------------------------------


def counting(n=20):
    flow = Flow("counting")
    flow.globals(n=0)
    flow.per_cpu(n=0)
    boot, ap = flow.agent("boot CPU"), flow.agent("AP", per_cpu=True)
    boot.at("count", op("+", when=[flow.g.n < n], do=[add(flow.g.n, 1)], to="."), ends=True)
    ap.at("count", op("+", when=[flow.cpu.n < 3], do=[add(flow.cpu.n, 1)], to="."), ends=True)
    return flow.compile(3)


def explored(ex, end=None):
    low = 0
    while low < ex.n_states:
        high = ex.n_states
        ex.expand(low, high)
        low = high
    return ex


def saved(ex):
    keys, parents = ex.stored(0, ex.n_states)
    tables = [t.copy() for t in ex.tables()]
    return [*tables, keys, parents, ex.terminals.copy(), ex.learned, ex.n_transitions]


def new(compiled, **options):
    return Explorer(compiled.program, compiled.initial_record(), **options)


def test_what_an_explorer_gave_makes_another_one_like_it():
    compiled = counting()
    ex = new(compiled)
    for state in range(40):  # in the middle of a level
        ex.expand(state, state + 1)
    again = new(compiled)
    again.restore(*saved(ex))
    for one in (ex, again):
        low = 40
        while low < one.n_states:
            high = one.n_states
            one.expand(low, high)
            low = high
    whole = explored(new(compiled))
    for one in (ex, again):
        assert one.n_states == whole.n_states == 21 * 10
        assert one.n_transitions == whole.n_transitions
        assert one.terminals.tolist() == whole.terminals.tolist()
        assert one.path(one.n_states - 1) == whole.path(whole.n_states - 1)
        for a, b in zip(one.stored(0, 210), whole.stored(0, 210), strict=True):
            assert (a == b).all()


def test_only_a_new_explorer_of_the_same_first_state_is_taken_up():
    compiled = counting()
    ex = explored(new(compiled))
    with pytest.raises(StateConflict, match="only a new explorer"):
        ex.restore(*saved(ex))
    with pytest.raises(StateConflict, match="only a new explorer"):
        new(compiled, fingerprints=True).restore(*saved(ex))
    other = counting()
    record = other.initial_record()
    record[other.flow.g.n.index] = 1
    with pytest.raises((StateConflict, OutOfRange)):
        Explorer(other.program, record).restore(*saved(ex))


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        (0, lambda a: a[:, :-1], "parts of"),
        (0, lambda a: a[:-1], "state|learned"),
        (0, lambda a: np.concatenate([a, a[:1]]), "global part 21 stands twice"),
        (1, lambda a: np.concatenate([a, a[:1]]), "slice 4 stands twice"),
        (1, lambda a: a[:-1], "slice 3 of 3"),
        (2, lambda a: a[:-1], "keys of shape"),
        (2, lambda a: np.concatenate([a, a], axis=1), "keys of shape"),
        (2, lambda a: a[0], "keys of shape"),
        (2, lambda a: a | np.uint64(0xFFFF) * (np.arange(len(a)) > 5)[:, None], "state 6"),
        (3, lambda a: a[:-1], "keys of shape"),
        (3, lambda a: np.where(a == a.max(), len(a), a).astype(np.uint32), "parent"),
        (3, lambda a: np.arange(len(a), dtype=np.uint32), "parent"),
        (4, lambda a: np.append(a, np.uint32(210)), "terminals"),
        (5, lambda a: np.append(a, np.uint64(0xFFFFFFFF00000000)), "learned"),
        (5, lambda a: np.append(a, np.uint64(0xFFFFFFFF)), "learned"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(which, change, message):
    compiled = counting()
    given_ = saved(explored(new(compiled)))
    given_[which] = change(given_[which])
    with pytest.raises((OutOfRange, StateConflict), match=message):
        new(compiled).restore(*given_)


def test_random_arrays_never_crash():
    compiled, rng = counting(), np.random.default_rng(0)
    whole = saved(explored(new(compiled)))
    refused = 0
    for _ in range(300):
        arrays_ = list(whole)
        which = int(rng.integers(6))
        array = arrays_[which].copy()
        flat = array.reshape(-1)
        some = rng.integers(len(flat), size=3)
        flat[some] = rng.integers(0, 1 << (8 * flat.itemsize - 1), size=3, dtype=flat.dtype)
        arrays_[which] = array
        ex = new(compiled)
        try:
            ex.restore(*arrays_)
        except (OutOfRange, StateConflict):
            refused += 1
            continue
        ex.part_ids(0, ex.n_states)
        ex.path(ex.n_states - 1)
    assert refused > 100

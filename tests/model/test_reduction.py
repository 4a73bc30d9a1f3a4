"""The reduction of local operations against the plain search: the same answers, fewer states."""

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from random_flows import CALLS, flows, search

from pysev.checking import check
from pysev.checking.reduction import Seen, followed_alone
from pysev.flow import Flow, Property, add, call, each, jump, op, put, when
from pysev.machine import Machine
from pysev.scenarios import all_scenarios

SCENARIOS = {s.name: s for s in all_scenarios()}
RANDOM = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def assert_same_answers(flow, n_cpus, **options):
    """Check with and without the reduction; return both results."""
    whole = check(flow, n_cpus, **options)
    less = check(flow, n_cpus, reduced=True, **options)
    for what in ("verdict", "property", "violations", "reached"):
        assert getattr(less, what) == getattr(whole, what), what
    assert len(less.counterexample) == len(whole.counterexample)
    compiled = flow.compile(n_cpus)
    record = compiled.initial_record()
    for step in less.counterexample:
        assert step.move in compiled.program.moves(record)
        compiled.program.step(record, *step.move)
    return whole, less


# -- the library -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_reduction_changes_no_answer_of_a_scenario(name):
    flow = SCENARIOS[name].build(Machine.of(3, jump_table=SCENARIOS[name].jump_table))
    assert_same_answers(flow, 3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_reduction_changes_no_answer_of_a_scenario_with_four_cpus(name):
    flow = SCENARIOS[name].build(Machine.of(4, jump_table=SCENARIOS[name].jump_table))
    assert_same_answers(flow, 4)


# -- random flows ------------------------------------------------------------------------------


@st.composite
def local_flows(draw):
    """A flow most of whose operations touch words of one agent, and lead forwards."""
    flow = Flow("local")
    flow.globals(x=0, y=0)
    kinds = draw(st.sampled_from([(0, 1), (0, 0), (0, 0, 1), (0, 1, 1)]))
    agents = [flow.agent(f"agent {i}", per_cpu=bool(k)) for i, k in enumerate(kinds)]
    for i, kind in enumerate(kinds):
        (flow.per_cpu if kind else flow.globals)(**{f"own{i}": draw(st.integers(0, 1))})
    if draw(st.integers(0, 3)) == 0:
        flow.only_while(draw(st.sampled_from([flow.g.x, flow.vm.event])) == 0)
    labels = [f"l{i}" for i in range(draw(st.integers(2, 4)))]
    for i, agent in enumerate(agents):
        own = getattr(flow.cpu if agent.per_cpu else flow.g, f"own{i}")
        for at, label in enumerate(labels):
            ops = []
            for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
                common = draw(st.sampled_from([flow.g.x, flow.g.y]))
                pick = not draw(st.integers(0, 7))
                do = []
                for _ in range(draw(st.integers(0, 2))):
                    kind = draw(st.sampled_from([0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7]))
                    do += draw(
                        st.sampled_from(
                            [one_effect(kind, flow, i, agents, labels, n) for n in range(4)]
                        )
                    )(own, common, pick)
                guard = []
                if not draw(st.integers(0, 2)):
                    value = draw(st.integers(0, 2))
                    guard = [draw(st.sampled_from([own != value, common == value]))]
                later = labels[min(at + 1, len(labels) - 1)]
                to = draw(st.sampled_from([later, later, later, ".", labels[0]]))
                ops.append(op(f"{label}", when=guard, do=do, to=to, pick=pick))
            if i == 0 and at == 0 and not ops:
                ops = [op("starts", to=labels[1])]
            agent.at(label, *ops, ends=draw(st.booleans()))
    return flow


def one_effect(kind, flow, i, agents, labels, n):
    """Return a function from (own word, common word, is a CPU bound) to effects."""
    agent = agents[i]

    def effects(own, common, pick):
        if kind == 0:  # of its own
            return ([put(own, n)], [add(own, 1), put(own, own & 3)])[n & 1]
        if kind == 1:
            return [put(common, n)]
        if kind == 2:
            return [put(own, common & 3)]
        if kind == 3:
            target = agents[n % len(agents)]
            if target.per_cpu and not agent.per_cpu:
                target = agent
            return [jump(target, labels[n % len(labels)])]
        if kind == 4:
            return [when(own == n & 1, jump(agent, labels[-1]))]
        if kind == 5:
            word = next((f for f in flow.other if ".own" in f.name), None)
            return [each(put(word, n))] if word is not None else []
        if kind == 6:
            vcpu = flow.cpu if agent.per_cpu else flow.boot
            return [call(CALLS[n % len(CALLS)], flow.other if pick else vcpu)]
        return [when(common == n & 1, put(own, 2), otherwise=[put(common, 1)])]

    return effects


@st.composite
def properties(draw, flow):
    """A few properties, each of which reads a word or a position."""
    words = [f for f in (*flow.g, flow.vm.event) if ".pc_" not in f.name]
    out = []
    for i in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["always", "always", "end", "sometimes"]))
        out.append(Property(f"p{i}", kind, draw(predicates(flow, words))))
    return out


@st.composite
def predicates(draw, flow, words):
    left, right = draw(predicate(flow, words)), draw(predicate(flow, words))
    both = draw(st.booleans())
    return (lambda s: ~(left(s) & right(s))) if both else (lambda s: ~left(s))


@st.composite
def predicate(draw, flow, words):
    value = draw(st.integers(0, 3))
    kind = draw(st.integers(0, 2))
    if kind == 0:
        block, name = draw(st.sampled_from(words)).name.split(".", 1)
        return lambda s: getattr(getattr(s, block), name) == value
    if kind == 1:
        agent = draw(st.sampled_from(flow.agents))
        label = draw(st.sampled_from(list(agent.labels)))
        if agent.per_cpu:
            return lambda s: s.at(agent.name, label).any(axis=1)
        return lambda s: s.at(agent.name, label)
    name = draw(st.sampled_from([f.name.split(".", 1)[1] for f in flow.cpu]))
    if name.startswith("pc_"):
        return lambda s: s.g.x == value
    return lambda s: (getattr(s.cpu, name) == value).any(axis=1)


@RANDOM
@given(flow=local_flows() | flows(), n_cpus=st.integers(1, 3), data=st.data())
def test_the_reduction_changes_no_answer_of_a_random_flow(flow, n_cpus, data):
    assume(search(flow.compile(n_cpus), 3000, symmetric=False) is not None)
    asked = data.draw(properties(flow))
    symmetric = data.draw(st.booleans())
    whole, less = assert_same_answers(flow, n_cpus, properties=asked, symmetric=symmetric)
    assert less.states <= whole.states or less.violations


def test_random_flows_are_reduced_often_enough_to_prove_something():
    reduced = []

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(flow=local_flows())
    def count(flow):
        compiled = flow.compile(2)
        seen = Seen()
        reduced.append(followed_alone(compiled, seen).any())

    count()
    assert sum(reduced) >= 10


# -- a gain ------------------------------------------------------------------------------------


def busy(n_steps=4):
    """APs that prepare for themselves in many steps, then meet at a counter."""
    flow = Flow("busy")
    flow.globals(met=0)
    flow.per_cpu(own=0)
    ap = flow.agent("AP", per_cpu=True)
    for i in range(n_steps):
        ap.at(f"step {i}", op("prepares", do=[add(flow.cpu.own, 1)]))
    ap.at("meet", op("meets", do=[add(flow.g.met, 1)]))
    ap.at("end", ends=True)
    return flow


@pytest.mark.parametrize("symmetric", [True, False])
def test_local_steps_cost_no_states(symmetric):
    flow = busy()
    flow.at_end("all have met", lambda s: s.g.met == s.n_others)
    whole, less = assert_same_answers(flow, 4, symmetric=symmetric)
    assert whole.verdict == "holds" and 2 * less.states <= whole.states
    # each AP has prepared before the next one does: only what is met is in any order
    assert not symmetric or less.states == 3 * 4 + 4


def test_a_shortest_counterexample_is_shown_though_a_longer_one_was_found():
    flow = busy()
    flow.always("nobody meets", lambda s: s.g.met == 0)
    whole, less = assert_same_answers(flow, 4)
    assert whole.verdict == "violated" and len(less.counterexample) == 5


# -- what is not local after all ---------------------------------------------------------------


def beside(build):
    """An agent of which one operation is in question, beside one that sets n; nobody need go."""
    flow = Flow("beside")
    flow.globals(own=0, n=0)
    a, b, c = flow.agent("a"), flow.agent("b"), flow.agent("c")
    build(flow, a, c)
    a.at("y", ends=True)
    b.at("x", op("sets n", do=[put(flow.g.n, 1)]), ends=True)
    b.at("y", ends=True)
    c.at("x", ends=True)
    c.at("y", ends=True)
    flow.always("mine", lambda s: ~((s.g.n == 1) & s.at("c", "x")))
    return flow


def stops_everybody(flow, a, c):
    flow.only_while(flow.g.own == 0)
    a.at("x", op("kills", do=[put(flow.g.own, 1)]), ends=True)


def stays_where_it_is(flow, a, c):
    a.at("x", op("looks", do=[when(flow.g.own == 5, jump(a, "y"))], to="."), ends=True)


def goes_round(flow, a, c):
    a.at("x", op("turns", do=[put(flow.g.own, 1)], to="."), ends=True)


def moves_one_that_does_nothing(flow, a, c):
    a.at("x", op("moves", do=[jump(c, "y")]), ends=True)


def has_another_way(flow, a, c):
    a.at("x", op("goes on"), op("moves c", do=[jump(c, "y")]), ends=True)


@pytest.mark.parametrize(
    "build",
    [
        stops_everybody,
        stays_where_it_is,
        goes_round,
        moves_one_that_does_nothing,
        has_another_way,
    ],
)
def test_an_operation_that_only_looks_local_is_not_followed_alone(build):
    whole, _ = assert_same_answers(beside(build), 1)
    assert whole.violations == {"mine": 1}


def test_one_that_is_local_is_followed_alone():
    flow = beside(lambda flow, a, c: a.at("x", op("works", do=[add(flow.g.own, 1)]), ends=True))
    compiled = flow.compile(1)
    assert followed_alone(compiled, Seen()).tolist() == [1, 1]
    n, own = flow.g.n.operand, flow.g.own.operand
    assert followed_alone(compiled, Seen(words={n})).tolist() == [1, 0]
    assert followed_alone(compiled, Seen(words={n, own})).tolist() == [0, 0]
    asked = Seen(labels={("a", frozenset({"y"}))})
    assert followed_alone(compiled, asked).tolist() == [0, 1]
    assert followed_alone(compiled, Seen(labels={("a", frozenset({"x", "y"}))})).tolist() == [1, 1]


def test_a_property_that_comes_to_read_more_ends_the_reduction():
    flow = busy(3)

    def late(s):
        if (s.g.met > 0).any():
            return (s.cpu.own < 3).all(axis=1) | (s.g.met < 2)
        return np.ones(len(s), dtype=bool)

    flow.always("late", late)
    whole, less = assert_same_answers(flow, 3)
    assert whole.verdict == "violated" and less.states == whole.states


@pytest.mark.parametrize("bounds", [{"depth": 0}, {"depth": 3}, {"seconds": 0}])
def test_a_reduced_search_that_is_cut_off_says_so(bounds):
    flow = busy()
    flow.at_end("all have met", lambda s: s.g.met == s.n_others)
    result = check(flow, 4, reduced=True, **bounds)
    assert (result.verdict, result.complete) == ("unknown", False)
    assert result.stopped in bounds

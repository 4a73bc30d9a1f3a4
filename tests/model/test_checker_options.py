"""Options of a check that change no answer, and those that bound it: each against the plain one."""

import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from random_flows import flows, search

from ghcbcore.errors import OutOfRange
from ghcbcore.explorer import Explorer
from pysev.checking import LIVELOCK, PropertyError, check
from pysev.checking.search import _walks
from pysev.checking.symmetry import AsymmetryError, refuse_unlike_steps
from pysev.flow import Flow, Property, add, number_of, op, put
from pysev.machine import Machine
from pysev.scenarios import all_scenarios

SCENARIOS = {s.name: s for s in all_scenarios()}
RANDOM = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
ANSWER = (
    "verdict", "property", "states", "transitions", "depth", "complete",
    "counterexample", "violations", "reached",
)  # fmt: skip


def scenario(name, n_cpus):
    found = SCENARIOS[name]
    return found.build(Machine.of(n_cpus, jump_table=found.jump_table))


def early(n_cpus):
    return scenario("sev-es-kexec/jump-table-ack-early", n_cpus)


def assert_same(result, expected):
    for name in ANSWER:
        assert getattr(result, name) == getattr(expected, name), name


def grid(n):
    flow = Flow("grid")
    flow.globals(x=0, y=0)
    for name, word in (("x", flow.g.x), ("y", flow.g.y)):
        agent = flow.agent(name)
        agent.at("count", op("+ 1", when=[word < n], do=[add(word, 1)], to="."), ends=True)
    return flow


# -- threads -----------------------------------------------------------------------------------


def explored(compiled, n_threads, **options):
    """Return an explorer that has searched everything, and how many states its widest level has."""
    ex = Explorer(compiled.program, compiled.initial_record(), n_threads=n_threads, **options)
    low = widest = 0
    while low < ex.n_states:
        high = ex.n_states
        ex.expand(low, high)
        low, widest = high, max(widest, high - low)
    return ex, widest


def assert_same_space(ex, whole):
    for name in ("n_states", "n_transitions", "n_parts"):
        assert getattr(ex, name) == getattr(whole, name), name
    assert ex.terminals.tolist() == whole.terminals.tolist()
    for a, b in zip(ex.tables(), whole.tables(), strict=True):
        assert np.array_equal(a, b)
    n = whole.n_states
    for a, b in zip(ex.stored(0, n), whole.stored(0, n), strict=True):
        assert np.array_equal(a, b)


@pytest.fixture(scope="module", params=[(5, True), (4, False)], ids=["alike", "apart"])
def alone(request):
    n_cpus, symmetric = request.param
    compiled = early(n_cpus).compile(n_cpus)
    whole, widest = explored(compiled, 1, symmetric=symmetric)
    assert widest >= 4096  # so that rounds are handed to threads
    return compiled, symmetric, whole


@pytest.mark.parametrize("n_threads", [2, 3, 5])
def test_threads_number_states_as_one_alone_does(alone, n_threads):
    compiled, symmetric, whole = alone
    ex, _ = explored(compiled, n_threads, symmetric=symmetric)
    assert_same_space(ex, whole)


@pytest.mark.slow
@pytest.mark.parametrize("n_threads", [2, 3, 5])
@pytest.mark.parametrize(("n_cpus", "symmetric"), [(6, True), (5, False)])
def test_threads_number_many_states_as_one_alone_does(n_cpus, symmetric, n_threads):
    compiled = early(n_cpus).compile(n_cpus)
    whole, _ = explored(compiled, 1, symmetric=symmetric)
    ex, widest = explored(compiled, n_threads, symmetric=symmetric)
    assert widest > 1 << 13
    assert_same_space(ex, whole)


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_threads_change_no_answer(threads):
    expected = check(early(5), 5)
    assert expected.verdict == "violated"
    assert_same(check(early(5), 5, threads=threads), expected)


@pytest.mark.slow
@RANDOM
@given(flow=flows(), n_cpus=st.integers(4, 6), threads=st.sampled_from([2, 3, 5]))
def test_threads_number_states_of_random_flows_alike(flow, n_cpus, threads):
    compiled = flow.compile(n_cpus)
    assume(search(compiled, 20_000, symmetric=False) is not None)
    whole, _ = explored(compiled, 1, symmetric=False)
    ex, _ = explored(compiled, threads, symmetric=False)
    assert_same_space(ex, whole)


def test_threads_start_again_with_wider_ids():
    flow = Flow("wide")
    flow.globals(n=0, m=0)
    one, two = flow.agent("one"), flow.agent("two")
    for agent, word in ((one, flow.g.n), (two, flow.g.m)):
        agent.at("count", op("+", when=[word < 270], do=[add(word, 1)], to="."), ends=True)
    result = check(flow, 1, threads=3)
    assert (result.verdict, result.states) == ("holds", 271 * 271)


@pytest.mark.parametrize("threads", [0, -1, 65])
def test_numbers_of_threads_that_are_none_are_refused(threads):
    with pytest.raises(OutOfRange, match=rf"{threads} threads: 1 to 64"):
        check(early(2), 2, threads=threads)


# -- fingerprints ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_fingerprints_change_no_answer_of_a_scenario(name):
    flow = scenario(name, 3)
    whole, prints = check(flow, 3), check(flow, 3, fingerprints=True)
    if set(whole.violations) == {LIVELOCK}:  # the one thing that they cannot tell
        assert prints.violations == {}
    else:
        assert_same_but_livelock(prints, whole)
    assert LIVELOCK in prints.not_asked and LIVELOCK not in whole.not_asked
    assert whole.missed == 0 < prints.missed == prints.states**2 / 2**65


def assert_same_but_livelock(result, expected):
    for name in ANSWER:
        value, wanted = getattr(result, name), getattr(expected, name)
        if name == "violations":
            wanted = {n: d for n, d in wanted.items() if n != LIVELOCK}
        assert value == wanted, name


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
def test_fingerprints_of_a_large_search_take_less_memory(threads):
    """Multisets of 16 numbers up to 8, each of three words."""
    flow = Flow("count")
    flow.per_cpu(n=0)
    ap = flow.agent("AP", per_cpu=True)
    ap.at("count", op("+ 1", when=[flow.cpu.n < 8], do=[add(flow.cpu.n, 1)], to="."), ends=True)
    flow.always("one is below 7", lambda s: (s.cpu.n < 7).any(axis=1))
    whole = check(flow, 17)
    prints = check(flow, 17, fingerprints=True, threads=threads)
    assert whole.states > 700_000
    assert_same_but_livelock(prints, whole)  # the counterexample is replayed from prints
    assert len(prints.counterexample) == 7 * 16
    assert prints.n_bytes < whole.n_bytes


# -- bounds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"fingerprints": True}, {"threads": 3}, {"reduced": True}])
@pytest.mark.parametrize("depth", [0, 1, 7])
def test_a_search_ends_at_its_depth(depth, options):
    flow = grid(20)
    flow.always("not here", lambda s: s.g.x + s.g.y < 8)
    result = check(flow, 1, depth=depth, **options)
    assert (result.verdict, result.complete, result.stopped) == ("unknown", False, "depth")
    assert result.depth == depth and LIVELOCK in result.not_asked
    assert result.states == (depth + 1) * (depth + 2) // 2


def test_what_lies_within_the_depth_is_found():
    flow = grid(20)
    flow.always("not here", lambda s: s.g.x + s.g.y < 8)
    assert check(flow, 1, depth=8).verdict == "unknown"  # states that were found, not looked at
    result = check(flow, 1, depth=9)
    assert (result.verdict, len(result.counterexample)) == ("violated", 8)
    assert result.complete  # nothing follows from what is violated


def test_a_depth_that_is_not_reached_bounds_nothing():
    flow = grid(5)
    result = check(flow, 1, depth=100)
    assert (result.verdict, result.complete, result.stopped) == ("holds", True, "")


@pytest.mark.parametrize("depth", [-1, -(10**30)])
def test_a_negative_depth_is_refused(depth):
    with pytest.raises(OutOfRange, match=f"depth {depth}"):
        check(grid(5), 1, depth=depth)


@pytest.mark.parametrize("seconds", [0, -1, 1e-9])
def test_a_search_ends_when_its_time_is_over(seconds):
    result = check(grid(20), 1, seconds=seconds)
    assert (result.verdict, result.complete, result.stopped) == ("unknown", False, "seconds")


def test_progress_is_told_of_what_is_there(monkeypatch):
    told = []
    monkeypatch.setattr("pysev.checking.search.PROGRESS_SECONDS", 0)
    result = check(grid(20), 1, progress=told.append)
    assert [p.depth for p in told] == list(range(41))
    assert [p.states for p in told] == sorted(p.states for p in told)
    assert told[-1].states == result.states == 441
    assert all(p.frontier > 0 and p.seconds >= 0 and p.n_bytes > 0 for p in told)


# -- symmetry ----------------------------------------------------------------------------------


def race():
    flow = Flow("race")
    flow.globals(total=0)
    flow.per_cpu(done=0)
    ap = flow.agent("AP", per_cpu=True)
    ap.at("start", op("goes", do=[put(flow.cpu.done, 1), add(flow.g.total, 1)]))
    ap.at("end", ends=True)
    return flow


@pytest.mark.parametrize("n_cpus", [3, 4, 6])
@pytest.mark.parametrize("kind", ["always", "end", "sometimes", "eventually"])
def test_a_property_that_looks_at_one_cpu_is_refused_by_name(kind, n_cpus):
    mine = Property("mine", kind, lambda s: (s.cpu.done[:, 0] == 1) | (s.g.total == 0))
    with pytest.raises(PropertyError, match=r"property 'mine' depends on which CPU is which"):
        check(race(), n_cpus, properties=[mine])
    result = check(race(), n_cpus, properties=[mine], symmetric=False)
    assert result.complete
    if kind != "always":  # what is violated is not searched on
        assert result.states == 1 << (n_cpus - 1)
    assert result.verdict == ("violated" if kind == "always" else "holds")


def test_a_since_that_looks_at_one_cpu_is_refused_too():
    mine = Property(
        "mine", "eventually", lambda s: s.g.total == 2, since=lambda s: s.cpu.done[:, 0] == 1
    )
    with pytest.raises(PropertyError, match="property 'mine' depends on"):
        check(race(), 3, properties=[mine])
    assert check(race(), 3, properties=[mine], symmetric=False).verdict == "holds"


def test_a_flow_whose_cpus_are_not_alike_has_each_counted():
    flow = race()
    assert check(flow, 5).states == 5
    flow.alike = False
    mine = Property("mine", "sometimes", lambda s: (s.cpu.done[:, 0] == 1) & (s.g.total == 1))
    result = check(flow, 5, properties=[mine])
    assert (result.states, result.verdict) == (16, "holds")


def numbering(alike):
    flow = Flow("numbers", alike=alike)
    flow.per_cpu(number=0)
    ap = flow.agent("AP", per_cpu=True)
    ap.at("start", op("asks who it is", do=[number_of(flow.cpu.number, flow.cpu)]))
    ap.at("end", ends=True)
    return flow


def test_an_operation_that_keeps_the_number_of_a_cpu_is_refused():
    with pytest.raises(AsymmetryError, match=r"AP, 'asks who it is': .* alike=False"):
        check(numbering(True), 3)
    assert check(numbering(False), 3).states == 4
    assert check(numbering(True), 3, symmetric=False).states == 4


@pytest.mark.parametrize("name", SCENARIOS)
def test_steps_of_a_scenario_treat_cpus_alike(name):
    compiled = scenario(name, 3).compile(3)
    if compiled.flow.alike:
        refuse_unlike_steps(compiled, list(_walks(compiled)))


# -- properties that are none ------------------------------------------------------------------


def late(what):
    """A property that is one at first, and then is not."""

    def holds(s):
        if (s.g.x + s.g.y > 3).any():
            return what(s)
        return np.ones(len(s), dtype=bool)

    return holds


def raises(error):
    def what(s):
        raise error

    return what


OPTIONS = [
    {"threads": 3},
    {"fingerprints": True},
    {"reduced": True},
    {"symmetric": False},
    {"depth": 10},
    {"checkpoint": True, "checkpoint_seconds": 0},
]


def with_folder(options, tmp_path):
    return options | {"checkpoint": str(tmp_path)} if "checkpoint" in options else options


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: next(iter(o)))
@pytest.mark.parametrize(
    ("what", "message"),
    [
        (raises(ValueError("mine")), r"raised ValueError: mine"),
        (raises(MemoryError("mine")), r"raised MemoryError: mine"),
        (lambda s: np.ones(len(s) + 1, bool), r"returned bool of shape"),
        (lambda s: np.ones((len(s), 1), bool), r"returned bool of shape"),
        (lambda s: np.ones(len(s)), r"returned float64"),
        (lambda s: True, r"returned bool of shape \(\)"),
        (lambda s: None, r"returned object"),
    ],
)
def test_a_property_that_goes_wrong_is_named_under_every_option(tmp_path, options, what, message):
    for kind in ("always", "sometimes"):
        options = with_folder(options, tmp_path / kind)
        mine = Property("mine", kind, late(what))
        if kind == "sometimes":  # as long as it is not reached it is asked
            mine = Property("mine", kind, lambda s: late(what)(s) & (s.g.x > 5))
            if "returned" in message:
                continue
        with pytest.raises(PropertyError, match=f"property 'mine' {message}"):
            check(grid(5), 1, properties=[mine], **options)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: next(iter(o)))
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_an_exit_out_of_a_property_ends_the_check_and_spoils_nothing(tmp_path, options, error):
    options = with_folder(options, tmp_path)
    flow = grid(5)
    disarmed = threading.Event()  # no plain value: a checkpoint would notice that it has changed

    def holds(s):
        return np.ones(len(s), dtype=bool) if disarmed.is_set() else late(raises(error))(s)

    mine = Property("mine", "always", holds)
    with pytest.raises(type(error)):
        check(flow, 1, properties=[mine], **options)
    disarmed.set()
    assert check(flow, 1, properties=[mine], **options).states == (
        36 if "depth" not in options else check(flow, 1, depth=10).states
    )


def test_a_property_cannot_change_the_states_that_it_looks_at():
    def spoils(s):
        for words in (s.g.x, s.g.y):
            words[:] = 77
        return np.ones(len(s), dtype=bool)

    for options in ({}, {"reduced": True}, {"threads": 2}):
        result = check(grid(5), 1, properties=[Property("p", "always", spoils)], **options)
        assert (result.verdict, result.states) == ("holds", 36)

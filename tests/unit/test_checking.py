"""What ``check`` says of toy flows: verdicts, findings of properties, bounds, counterexamples."""

import itertools

import numpy as np
import pytest

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange
from pysev.checking import DEADLOCK, LIVELOCK, PropertyError, check, search
from pysev.flow import Flow, FlowError, Property, add, call, op, put
from pysev.machine import Machine
from pysev.scenarios import all_scenarios


def holds_always(states):
    return np.ones(len(states), dtype=bool)


def race():
    """Each AP adds to its word and, without a lock, to a common one by way of a copy."""
    flow = Flow("race")
    flow.globals(total=0)
    flow.per_cpu(copy=0, done=0)
    ap = flow.agent("AP", per_cpu=True)
    ap.at("read", op("reads the total", do=[put(flow.cpu.copy, flow.g.total)]))
    ap.at("add", op("adds", do=[add(flow.cpu.copy, 1)]))
    ap.at("write", op("writes", do=[put(flow.g.total, flow.cpu.copy), put(flow.cpu.done, 1)]))
    ap.at("end", ends=True)
    return flow


def waiting(*, ends=False):
    """Two agents, each of which waits for the other to go first."""
    flow = Flow("waiting")
    flow.globals(a=0, b=0)
    one, two = flow.agent("one"), flow.agent("two")
    one.at("start", op("starts"))
    one.at("wait", op("a", when=[flow.g.b == 1], do=[put(flow.g.a, 1)]), ends=ends)
    one.at("end", ends=True)
    two.at("wait", op("b", when=[flow.g.a == 1], do=[put(flow.g.b, 1)]), ends=ends)
    two.at("end", ends=True)
    return flow


def counter(n):
    flow = Flow("counter")
    flow.globals(n=0)
    boot = flow.agent("boot CPU")
    boot.at("count", op("+ 1", when=[flow.g.n < n], do=[add(flow.g.n, 1)], to="."), ends=True)
    return flow


def grid(n):
    """Two agents that count: levels are as wide as the numbers are large."""
    flow = Flow("grid")
    flow.globals(x=0, y=0)
    for name, word in (("x", flow.g.x), ("y", flow.g.y)):
        agent = flow.agent(name)
        agent.at("count", op("+ 1", when=[word < n], do=[add(word, 1)], to="."), ends=True)
    return flow


# -- verdicts ----------------------------------------------------------------------------------


def test_a_flow_without_properties_holds():
    result = check(counter(5), 1)
    assert (result.verdict, result.property, result.counterexample) == ("holds", "", ())
    assert (result.states, result.transitions, result.depth) == (6, 5, 5)
    assert result.complete and result.violations == {} and result.reached == {}


def test_a_race_is_found_with_the_shortest_order_of_events():
    flow = race()
    total = "every AP is counted"
    flow.at_end(total, lambda s: s.g.total == s.n_others, "nobody's addition is lost")
    assert check(flow, 2).verdict == "holds"
    result = check(flow, 3)
    assert (result.verdict, result.property) == ("violated", total)
    assert len(result.counterexample) == 6 == result.violations[total]
    assert {s.agent for s in result.counterexample} == {"AP 1", "AP 2"}
    record = flow.compile(3).initial_record()
    for step in result.counterexample:
        flow.compile(3).program.step(record, *step.move)
    assert record[flow.g.total.index] == 1


def test_an_always_property_is_looked_at_in_the_first_state():
    flow = counter(5)
    flow.always("never", lambda s: s.g.n != 0)
    result = check(flow, 1)
    assert (result.verdict, result.property) == ("violated", "never")
    assert result.counterexample == () and result.states == 1
    assert result.violations == {"never": 0}


def test_states_that_violate_are_not_searched_further():
    flow = counter(9)
    flow.always("below 4", lambda s: s.g.n < 4)
    result = check(flow, 1)
    assert (result.states, result.depth, len(result.counterexample)) == (5, 4, 4)
    assert [s.detail for s in result.counterexample] == [f"n {i} -> {i + 1}" for i in range(4)]


def test_the_property_violated_first_is_the_one_named():
    flow = counter(9)
    flow.always("below 6", lambda s: s.g.n < 6)
    flow.always("not 3", lambda s: s.g.n != 3)
    result = check(flow, 1)
    assert (result.property, result.violations) == ("not 3", {"not 3": 3})


def test_end_properties_are_looked_at_where_nothing_happens():
    flow = counter(5)
    flow.at_end("all counted", lambda s: s.g.n == 5)
    flow.at_end("not all counted", lambda s: s.g.n < 5)
    result = check(flow, 1)
    assert (result.verdict, result.property) == ("violated", "not all counted")
    assert result.violations == {"not all counted": 5}


def test_two_agents_that_wait_for_each_other_are_a_deadlock():
    result = check(waiting(), 1)
    assert (result.verdict, result.property) == ("deadlock", DEADLOCK)
    assert [s.op for s in result.counterexample] == ["starts"]
    assert result.violations == {DEADLOCK: 1}


def test_agents_that_may_rest_where_they_wait_are_no_deadlock():
    result = check(waiting(ends=True), 1)
    assert (result.verdict, result.violations) == ("holds", {})


def test_an_ap_that_waits_for_ever_is_a_deadlock_whoever_else_rests():
    flow = Flow("one of many")
    flow.globals(token=1)
    ap = flow.agent("AP", per_cpu=True)
    ap.at("wait", op("takes it", when=[flow.g.token == 1], do=[put(flow.g.token, 0)]))
    ap.at("end", ends=True)
    assert check(flow, 1).verdict == "holds"
    assert check(flow, 2).verdict == "holds"
    assert check(flow, 3).verdict == "deadlock"


def test_a_violation_comes_before_a_deadlock_after_as_many_steps():
    flow = waiting()
    flow.at_end("b", lambda s: s.g.b == 1)
    result = check(flow, 1)
    assert (result.verdict, result.property) == ("violated", "b")
    assert result.violations == {"b": 1, DEADLOCK: 1}


def test_an_unreached_sometimes_is_a_violation():
    flow = counter(5)
    flow.sometimes("reaches 5", lambda s: s.g.n == 5)
    flow.sometimes("reaches 6", lambda s: s.g.n == 6)
    result = check(flow, 1)
    assert (result.verdict, result.property) == ("violated", "sometimes: reaches 6")
    assert result.reached == {"reaches 5": True, "reaches 6": False}
    assert result.counterexample == ()


def test_what_is_violated_counts_more_than_what_is_not_reached():
    flow = counter(5)
    flow.sometimes("reaches 6", lambda s: s.g.n == 6)
    flow.always("below 2", lambda s: s.g.n < 2)
    assert check(flow, 1).property == "below 2"


def test_a_property_of_the_caller_finds_something():
    mine = Property("mine", "always", lambda s: (s.cpu.copy < 2).all(axis=1))
    assert check(race(), 3).verdict == "holds"
    result = check(race(), 3, properties=[mine])
    assert (result.verdict, result.property) == ("violated", "mine")
    assert result.counterexample[-1].op == "adds"
    assert "copy 1 -> 2" in result.counterexample[-1].detail
    assert race().properties == []


def test_a_property_sees_every_state_once():
    seen = []

    def look(states):
        seen.extend(zip(states.g.x.tolist(), states.g.y.tolist(), strict=True))
        return holds_always(states)

    result = check(grid(6), 1, properties=[Property("look", "always", look)])
    assert sorted(seen) == sorted(itertools.product(range(7), repeat=2))
    assert result.states == len(seen)


def test_a_property_sees_every_state_once_in_pieces_too(monkeypatch):
    monkeypatch.setattr(search, "CHUNK", 3)
    seen = []

    def look(states):
        assert 0 < len(states) <= 3
        seen.extend(zip(states.g.x.tolist(), states.g.y.tolist(), strict=True))
        return holds_always(states)

    ends = []

    def look_at_end(states):
        ends.extend(states.g.x.tolist())
        return holds_always(states)

    properties = [Property("look", "always", look), Property("end", "end", look_at_end)]
    assert check(grid(6), 1, properties=properties).complete
    assert sorted(seen) == sorted(itertools.product(range(7), repeat=2))
    assert 6 in ends  # and where everybody may rest


def test_states_have_the_shapes_that_are_promised():
    def look(s):
        n = len(s)
        assert s.n_others == 2
        assert s.g.total.shape == s.vm.event.shape == s.boot.msr.shape == (n,)
        assert s.cpu.done.shape == s.cpu.msr.shape == s.at("AP", "end").shape == (n, 2)
        assert s.g.total.dtype == s.cpu.done.dtype == np.uint64
        assert (s.at("AP", "end") == (s.cpu.done == 1)).all()
        assert (s.at("AP", "read", "add", "write", "end")).all()
        assert (s.at_rest() == s.at("AP", "end").all(axis=1)).all()
        return holds_always(s)

    assert check(race(), 3, properties=[Property("look", "always", look)]).verdict == "holds"


def test_a_machine_of_one_cpu_has_no_columns():
    def look(s):
        assert s.cpu.done.shape == s.at("AP", "end").shape == (1, 0)
        return s.at_rest()

    result = check(race_with_boot(), 1, properties=[Property("look", "end", look)])
    assert (result.verdict, result.states) == ("holds", 2)


def race_with_boot():
    flow = race()
    boot = flow.agent("boot CPU")
    boot.at("start", op("boots"))
    boot.at("end", ends=True)
    return flow


# -- properties that are none ------------------------------------------------------------------


BROKEN = {
    "raises": (lambda s: s.g.nothing == 0, r"raised AttributeError: g has no word 'nothing'"),
    "raises KeyError": (lambda s: s.at("AP", "x"), r"raised KeyError: \"AP has no label 'x'"),
    "raises for an agent": (lambda s: s.at("nobody"), r"raised KeyError: \"no agent 'nobody'"),
    "numbers": (lambda s: s.g.total, r"returned uint64 of shape \(1,\)"),
    "one for each CPU": (lambda s: s.cpu.done == 0, r"returned bool of shape \(1, 2\)"),
    "one for all": (lambda s: bool((s.g.total == 0).all()), r"returned bool of shape \(\)"),
    "one too many": (lambda s: np.ones(len(s) + 1, bool), r"returned bool of shape \(2,\)"),
    "nothing": (lambda s: None, r"returned object of shape \(\)"),
    "a list of numbers": (lambda s: [1] * len(s), r"returned int64 of shape \(1,\)"),
}


@pytest.mark.parametrize("kind", ["always", "sometimes"])
@pytest.mark.parametrize("what", BROKEN)
def test_a_property_that_is_none_is_refused_by_name(what, kind):
    holds, message = BROKEN[what]
    with pytest.raises(PropertyError, match=f"property 'mine' {message}"):
        check(race(), 3, properties=[Property("mine", kind, holds)])


def test_an_end_property_that_is_none_is_refused_by_name():
    with pytest.raises(PropertyError, match=r"property 'mine' returned uint64"):
        check(race(), 2, properties=[Property("mine", "end", lambda s: s.g.total)])


def test_the_cause_of_a_property_error_is_kept():
    with pytest.raises(PropertyError) as caught:
        check(race(), 2, properties=[Property("mine", "always", lambda s: 1 / 0)])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_list_of_bools_is_a_property():
    mine = Property("mine", "always", lambda s: [bool(x == 0) for x in s.g.total])
    assert check(race(), 2, properties=[mine]).violations == {"mine": 3}


@pytest.mark.parametrize("name", ["mine", DEADLOCK])
def test_two_properties_of_one_name_are_refused(name):
    twice = [Property("mine", "always", holds_always), Property(name, "end", holds_always)]
    with pytest.raises(PropertyError, match="two properties of one name"):
        check(race(), 2, properties=twice)


def test_a_kind_that_does_not_exist_is_refused():
    with pytest.raises(FlowError, match="property 'mine': 'never' is none of always, end"):
        Property("mine", "never", holds_always)


# -- bounds ------------------------------------------------------------------------------------


def test_no_seconds_are_unknown():
    result = check(grid(50), 1, seconds=0)
    assert (result.verdict, result.complete, result.states) == ("unknown", False, 1)


def test_seconds_end_a_search(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(search.time, "perf_counter", lambda: float(next(clock)))
    result = check(grid(50), 1, seconds=10)
    assert (result.verdict, result.complete) == ("unknown", False)
    assert 5 <= result.depth <= 11
    assert 1 < result.states < 51 * 51


def test_what_is_found_in_time_is_found():
    flow = counter(50)
    flow.always("below 3", lambda s: s.g.n < 3)
    result = check(flow, 1, seconds=3600, max_bytes=1 << 30)
    assert (result.verdict, result.complete) == ("violated", True)


def test_an_unreached_sometimes_is_unknown_in_a_search_that_was_cut_off():
    flow = counter(5)
    flow.sometimes("reaches 5", lambda s: s.g.n == 5)
    result = check(flow, 1, seconds=0)
    assert (result.verdict, result.reached) == ("unknown", {"reaches 5": False})


def test_memory_ends_a_search():
    start = check(counter(1), 1).n_bytes
    result = check(grid(400), 1, max_bytes=2 * start)
    assert (result.verdict, result.complete) == ("unknown", False)
    assert 1000 < result.states < 401 * 401
    assert result.n_bytes <= 2 * start


def test_a_violation_before_memory_ends_is_one():
    start = check(counter(1), 1).n_bytes
    flow = grid(400)
    flow.always("not 3, 3", lambda s: (s.g.x != 3) | (s.g.y != 3))
    result = check(flow, 1, max_bytes=2 * start)
    assert (result.verdict, result.complete) == ("violated", False)
    assert len(result.counterexample) == 6


@pytest.mark.parametrize("n_cpus", [0, 65])
def test_numbers_of_cpus_that_cannot_be_checked_are_refused(n_cpus):
    with pytest.raises(OutOfRange, match=f"{n_cpus} CPUs"):
        check(race(), n_cpus)


def test_more_distinct_states_of_one_cpu_than_ids_are_refused():
    flow = Flow("wide")
    flow.per_cpu(n=0)
    ap = flow.agent("AP", per_cpu=True)
    ap.at("count", op("+ 1", when=[flow.cpu.n < 70_000], do=[add(flow.cpu.n, 1)], to="."))
    with pytest.raises(Exception, match="wide: more than 65536 distinct states of one CPU"):
        check(flow, 2)


# -- symmetry ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_cpus", [1, 2, 3])
@pytest.mark.parametrize("name", [s.name for s in all_scenarios()])
def test_symmetry_changes_no_verdict(name, n_cpus):
    scenario = next(s for s in all_scenarios() if s.name == name)
    flow = scenario.build(Machine.of(n_cpus, jump_table=scenario.jump_table))
    one, all_ = check(flow, n_cpus), check(flow, n_cpus, symmetric=False)
    assert (one.verdict, one.property, one.depth) == (all_.verdict, all_.property, all_.depth)
    assert one.violations == all_.violations and one.reached == all_.reached
    assert len(one.counterexample) == len(all_.counterexample)
    assert one.states <= all_.states


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_counterexample_keeps_the_numbers_of_cpus(symmetric):
    flow = race()
    flow.always("two are done", lambda s: (s.cpu.done == 1).sum(axis=1) < 2)
    result = check(flow, 4, symmetric=symmetric)
    assert result.verdict == "violated" and len(result.counterexample) == 6
    steps = {}
    for step in result.counterexample:
        assert step.agent == f"AP {step.move[1] + 1}"
        steps.setdefault(step.agent, []).append(step.op)
    assert list(steps.values()) == [["reads the total", "adds", "writes"]] * 2


# -- counterexamples in words ------------------------------------------------------------------


def test_a_step_says_which_words_changed_and_where():
    flow = Flow("words")
    flow.globals(x=0)
    flow.per_cpu(n=0)
    boot, ap = flow.agent("boot CPU"), flow.agent("AP", per_cpu=True)
    do = [put(flow.g.x, 5), put(flow.other.n, 0x12345), call(lib.GHCB_CALL_HLT, flow.boot)]
    boot.at("start", op("picks", pick=True, do=do))
    boot.at("end", ends=True)
    ap.at("start", op("goes", when=[flow.cpu.n != 0], do=[put(flow.cpu.n, 1)]))
    ap.at("end", ends=True)
    flow.always("nobody is done", lambda s: (s.cpu.n != 1).all(axis=1))
    first, second = check(flow, 3).counterexample
    cpu = first.move[2] + 1
    assert first.agent == "boot CPU" and first.op == f"picks (CPU {cpu})"
    assert first.detail == f"boot mp_state RUNNABLE -> HALTED; x 0 -> 5; CPU {cpu} n 0 -> 0x12345"
    assert second.agent == f"AP {cpu}" and second.detail == "n 0x12345 -> 1"


def test_a_result_is_plain_data():
    flow = race()
    flow.at_end("total", lambda s: s.g.total == s.n_others)
    out = check(flow, 3).as_json()
    assert out["verdict"] == "violated" and out["scenario"] == "race" and out["cpus"] == 3
    assert len(out["counterexample"]) == 6
    assert set(out["counterexample"][0]) == {"agent", "op", "detail"}


# -- an end stays reachable ----------------------------------------------------------------------


def beside_a_loop(may_leave, may_rest=False):
    """An AP that goes round for ever beside a boot CPU that waits for what never comes."""
    flow = Flow("beside a loop")
    flow.globals(go=0)
    boot, ap = flow.agent("boot CPU"), flow.agent("AP", per_cpu=True)
    boot.at("wait", op("goes on", when=[flow.g.go == 1]), ends=may_rest)
    boot.at("done", ends=True)
    leave = [op("lets it go", do=[put(flow.g.go, 1)])] if may_leave else []
    ap.at("spin", op("spins", to="."), *leave, ends=may_rest)
    ap.at("done", ends=True)
    return flow


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_loop_does_not_hide_who_waits_beside_it(symmetric):
    result = check(beside_a_loop(may_leave=False), 3, symmetric=symmetric)
    assert (result.verdict, result.property) == ("deadlock", LIVELOCK)
    assert result.complete and result.violations == {LIVELOCK: 0}


def test_a_loop_that_can_be_left_or_that_everybody_may_rest_in_holds():
    assert check(beside_a_loop(may_leave=True), 3).verdict == "holds"
    assert check(beside_a_loop(may_leave=False, may_rest=True), 3).verdict == "holds"


def test_a_rest_counts_as_an_end_only_if_the_end_properties_hold_there():
    flow = beside_a_loop(may_leave=False, may_rest=True)
    flow.at_end("somebody went", lambda s: s.g.go == 1)
    assert check(flow, 2).property == LIVELOCK


def test_the_first_state_without_a_way_to_an_end_is_shown():
    flow = Flow("trap")
    flow.globals(n=0)
    boot = flow.agent("boot CPU")
    boot.at("road", op("on", do=[add(flow.g.n, 1)], when=[flow.g.n < 3], to="."), op("off"))
    boot.at("fork", op("home", to="home"), op("into the trap", when=[flow.g.n == 2], to="trap"))
    boot.at("trap", op("round", to="back"))
    boot.at("back", op("and round", to="trap"))
    boot.at("home", ends=True)
    result = check(flow, 1)
    assert (result.verdict, result.property) == ("deadlock", LIVELOCK)
    assert [step.op for step in result.counterexample] == ["on", "on", "off", "into the trap"]


def test_what_is_wrong_is_named_before_who_waits():
    flow = beside_a_loop(may_leave=False)
    flow.always("nobody spins", lambda s: s.g.go != 0)
    assert check(flow, 2).property == "nobody spins"

"""``eventually``: small flows with known answers, random ones against sets of states."""

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from random_flows import flows, search

from pysev.checking import LIVELOCK, check
from pysev.flow import Flow, FlowError, Property, op, put
from pysev.states import States

RANDOM = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def mover(compiled, move):
    """Return who moves: an agent of no CPU, or one of a CPU."""
    return compiled.agent_of(move[0]).name, move[1]


def assert_breaks(flow, n_cpus, result, then, since=None, fairness="weak"):
    """Replay a counterexample: it never meets ``then`` again, and is fair if it goes round."""
    compiled = flow.compile(n_cpus)
    record = compiled.initial_record()
    records, able = [record.copy()], []
    for step in result.counterexample:
        moves = compiled.program.moves(record)
        assert step.move in moves
        able.append({mover(compiled, m) for m in moves})
        compiled.program.step(record, *step.move)
        records.append(record.copy())

    def holds(f, r):
        return bool(f(States.of_record(compiled, r))[0])

    met = [since is None or holds(since, r) for r in records]
    if since is None:
        met = [True] + [False] * (len(records) - 1)
    good = [holds(then, r) for r in records]
    assert any(m and not any(good[i:]) for i, m in enumerate(met))
    if result.repeats_from is None:
        assert not compiled.program.moves(record)
        return
    at = result.repeats_from
    assert len(records) - 1 > at
    assert (records[at] == record).all()
    moved = {mover(compiled, s.move) for s in result.counterexample[at:]}
    round_ = able[at:]
    if fairness != "none":
        for who in set.union(*round_) - moved:
            if fairness == "strong":
                assert not any(who in a for a in round_), f"{who} could again and again"
            else:
                assert not all(who in a for a in round_), f"{who} could all the while"


# -- small flows -------------------------------------------------------------------------------


def lock():
    """One agent takes and frees a lock for ever, another waits for it once."""
    flow = Flow("lock")
    flow.globals(taken=0)
    owner, other = flow.agent("owner"), flow.agent("other")
    owner.at("free", op("takes", when=[flow.g.taken == 0], do=[put(flow.g.taken, 1)]))
    owner.at("has", op("frees", do=[put(flow.g.taken, 0)], to="free"))
    other.at("waits", op("takes", when=[flow.g.taken == 0], do=[put(flow.g.taken, 1)]))
    other.at("has", op("frees", do=[put(flow.g.taken, 0)]))
    other.at("done", ends=True)
    owner.ends |= {"free"}
    return flow


def other_is_done(s):
    return s.at("other", "done")


@pytest.mark.parametrize(
    ("fairness", "verdict"), [("none", "violated"), ("weak", "violated"), ("strong", "holds")]
)
def test_an_agent_may_starve_behind_a_lock_unless_everybody_is_strongly_fair(fairness, verdict):
    flow = lock()
    flow.eventually("the other gets it", other_is_done, fairness=fairness)
    result = check(flow, 1)
    assert result.verdict == verdict
    if verdict == "violated":
        assert result.property == "the other gets it" and result.repeats_from is not None
        assert [s.op for s in result.counterexample[result.repeats_from :]] in (
            ["takes", "frees"],
            ["frees", "takes"],
        )
        assert_breaks(flow, 1, result, other_is_done, fairness=fairness)


def spinner():
    """One agent spins for ever, the other goes on whenever it likes."""
    flow = Flow("spinner")
    flow.globals(x=0)
    one, other = flow.agent("one"), flow.agent("other")
    one.at("spin", op("spins", to="."), ends=True)
    other.at("start", op("goes"))
    other.at("done", ends=True)
    return flow


@pytest.mark.parametrize(
    ("fairness", "verdict"), [("none", "violated"), ("weak", "holds"), ("strong", "holds")]
)
def test_who_can_all_the_while_comes_about_if_anybody_minds(fairness, verdict):
    flow = spinner()
    flow.eventually("the other goes", other_is_done, fairness=fairness)
    result = check(flow, 1)
    assert (result.verdict, result.not_asked) == (verdict, ())
    if verdict == "violated":
        assert_breaks(flow, 1, result, other_is_done, fairness="none")


def wake_up(*, loops):
    """Who looks, then sleeps, misses the signal in between."""
    flow = Flow("wake-up")
    flow.globals(asleep=0, signalled=0)
    sleeper, other = flow.agent("sleeper"), flow.agent("other")
    sleeper.at(
        "looks",
        op("saw it", when=[flow.g.signalled == 1], to="awake"),
        op("saw nothing", when=[flow.g.signalled == 0]),
    )
    sleeper.at("goes to sleep", op("sleeps", do=[put(flow.g.asleep, 1)]))
    again = [op("turns over", when=[flow.g.asleep == 1], to=".")] if loops else []
    sleeper.at("sleeps", op("wakes", when=[flow.g.asleep == 0]), *again, ends=True)
    sleeper.at("awake", ends=True)
    signal = [put(flow.g.signalled, 1), put(flow.g.asleep, 0)]
    other.at("signal", op("signals", do=signal))
    other.at("done", ends=True)
    return flow


def is_awake(s):
    return s.at("sleeper", "awake")


@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("fairness", ["weak", "strong"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_lost_wake_up_is_shown_to_its_end(loops, fairness, symmetric):
    flow = wake_up(loops=loops)
    flow.eventually("it wakes", is_awake, fairness=fairness)
    result = check(flow, 1, symmetric=symmetric)
    assert (result.verdict, result.property) == ("violated", "it wakes")
    assert (result.repeats_from is not None) == loops
    assert result.violations == {"it wakes": len(result.counterexample)}
    assert_breaks(flow, 1, result, is_awake, fairness=fairness)
    assert result.as_json()["repeats_from"] == result.repeats_from


def test_since_asks_only_from_there_on():
    flow = wake_up(loops=False)

    def saw(s):
        return s.g.asleep == 1

    def signalled(s):
        return (s.g.signalled == 1) & s.at("sleeper", "looks")

    flow.eventually("who was told before it looked wakes", is_awake, since=signalled)
    assert check(flow, 1).verdict == "holds"
    flow.eventually("who sleeps wakes", is_awake, since=saw)
    result = check(flow, 1)
    assert (result.verdict, result.property) == ("violated", "who sleeps wakes")
    assert_breaks(flow, 1, result, is_awake, since=saw)


def test_a_since_that_never_is_holds():
    flow = lock()
    flow.eventually("never asked", other_is_done, since=lambda s: s.g.taken == 7)
    assert check(flow, 1).verdict == "holds"


def test_cpus_are_single_agents_though_they_are_alike():
    """One of the CPUs may be put off for ever while others go on: as a multiset nobody is."""
    flow = Flow("turns")
    flow.globals(turn=0)
    ap = flow.agent("AP", per_cpu=True)
    ap.at("out", op("enters", when=[flow.g.turn == 0], do=[put(flow.g.turn, 1)]), ends=True)
    ap.at("in", op("leaves", do=[put(flow.g.turn, 0)], to="out"))

    def first_was_in(s):
        return s.at("AP", "in")[:, 0]

    flow.alike = False
    for fairness, verdict in (("weak", "violated"), ("strong", "holds")):
        asked = [Property("CPU 1 gets in", "eventually", first_was_in, fairness=fairness)]
        result = check(flow, 3, properties=asked)
        assert result.verdict == verdict, fairness
        if verdict == "violated":
            assert_breaks(flow, 3, result, first_was_in)


def test_who_takes_a_step_is_shown_even_if_another_step_leads_to_the_same_state():
    flow = Flow("same")
    flow.globals(x=0)
    for name in ("one", "two", "three"):
        flow.agent(name).at("spin", op(f"{name} spins", to="."), ends=True)
    flow.eventually("never", lambda s: s.g.x == 1)
    result = check(flow, 1)
    assert {s.op for s in result.counterexample} == {"one spins", "two spins", "three spins"}
    assert_breaks(flow, 1, result, lambda s: s.g.x == 1)


def test_what_lies_behind_a_violation_is_no_answer_to_eventually():
    """The bad state is not searched on: that nobody leaves it is not found out."""
    flow = Flow("behind")
    flow.globals(x=0)
    spin, boot = flow.agent("spin"), flow.agent("boot CPU")
    spin.at("spin", op("spins", to="."), ends=True)
    boot.at("a", op("on", do=[put(flow.g.x, 1)]))
    boot.at("b", op("home", do=[put(flow.g.x, 2)]))
    boot.at("home", ends=True)
    flow.always("not 1", lambda s: s.g.x != 1)
    flow.eventually("home", lambda s: s.g.x == 2)
    result = check(flow, 1)
    assert (result.property, result.violations) == ("not 1", {"not 1": 1})


@pytest.mark.parametrize("options", [{"fingerprints": True}, {"reduced": True}, {"threads": 2}])
def test_other_ways_of_searching_give_the_same_answer(options):
    for fairness in ("weak", "strong"):
        flow = lock()
        flow.eventually("the other gets it", other_is_done, fairness=fairness)
        plain, other = check(flow, 1), check(flow, 1, **options)
        assert (other.verdict, other.property) == (plain.verdict, plain.property)
        assert other.counterexample == plain.counterexample
        assert other.repeats_from == plain.repeats_from


@pytest.mark.parametrize("bounds", [{"depth": 2}, {"seconds": 0}])
def test_a_search_that_was_cut_off_does_not_answer(bounds):
    flow = lock()
    flow.eventually("the other gets it", other_is_done, fairness="strong")
    result = check(flow, 1, **bounds)
    assert (result.verdict, result.complete) == ("unknown", False)
    assert set(result.not_asked) == {"the other gets it", LIVELOCK}


def test_a_fairness_that_does_not_exist_is_refused():
    with pytest.raises(FlowError, match="'mine': fairness 'fair' is none of"):
        lock().eventually("mine", other_is_done, fairness="fair")


# -- against sets ------------------------------------------------------------------------------


def graph_of(compiled):
    """Return states as records, and of each the pairs (who, state after)."""
    records, numbers, after = [compiled.initial_record()], {}, []
    numbers[records[0].tobytes()] = 0
    at = 0
    while at < len(records):
        after.append([])
        for move in compiled.program.moves(records[at]):
            record = records[at].copy()
            compiled.program.step(record, *move)
            key = record.tobytes()
            if key not in numbers:
                numbers[key] = len(records)
                records.append(record)
            after[at].append((mover(compiled, move), numbers[key]))
        at += 1
    return records, after


def reached_from(states, after, allowed):
    found, todo = set(), [s for s in states if s in allowed]
    while todo:
        s = todo.pop()
        if s not in found:
            found.add(s)
            todo += [t for _, t in after[s] if t in allowed]
    return found


def fair_round(allowed, after, fairness):
    """Return whether a fair way goes round inside ``allowed`` for ever."""
    way = {s: reached_from([t for _, t in after[s]], after, allowed) for s in allowed}
    seen = set()
    for s in sorted(allowed - seen):
        if s in seen or s not in way[s]:
            continue
        circle = {t for t in way[s] if s in way[t]}
        seen |= circle
        taken = {who for t in circle for who, u in after[t] if u in circle}
        able = [{who for who, _ in after[t]} for t in circle]
        if fairness == "none":
            return True
        if fairness == "weak":
            if set.intersection(*able) <= taken:
                return True
            continue
        starved = set.union(*able) - taken
        if not starved:
            return True
        less = {t for t in circle if not starved & {who for who, _ in after[t]}}
        if less and fair_round(less, after, fairness):
            return True
    return False


def is_broken(after, since, then, fairness):
    bad = {s for s in range(len(after)) if not then[s]}
    left = reached_from([s for s in bad if since[s]], after, bad)
    return any(not after[s] for s in left) or fair_round(left, after, fairness)


@RANDOM
@given(
    flow=flows(),
    n_cpus=st.integers(1, 3),
    fairness=st.sampled_from(["none", "weak", "weak", "strong", "strong"]),
    asks_since=st.booleans(),
    seed=st.integers(0, 1 << 32),
)
def test_eventually_is_what_sets_of_states_say(flow, n_cpus, fairness, asks_since, seed):
    compiled = flow.compile(n_cpus)
    assume(search(compiled, 120, symmetric=False) is not None)
    records, after = graph_of(compiled)
    rng = random.Random(seed)
    share = rng.choice([0.1, 0.3, 0.6])
    then_of = {r.tobytes(): rng.random() < share for r in records}
    since_of = {r.tobytes(): rng.random() < 0.3 for r in records}

    def rows(s):
        n_global, n_slice = compiled.program.n_global, compiled.program.n_slice
        out = np.zeros((len(s), len(records[0])), np.uint64)
        for i in range(n_global):
            out[:, i] = s._global_word(i)
        for i in range(n_slice):
            out[:, n_global + i :: n_slice] = s._cpu_word(i)
        return [r.tobytes() for r in out]

    def then(s):
        return np.array([then_of[r] for r in rows(s)], dtype=bool)

    def since(s):
        return np.array([since_of[r] for r in rows(s)], dtype=bool)

    start = [asks_since and since_of[r.tobytes()] for r in records]
    if not asks_since:
        start[0] = True
    expected = is_broken(after, start, [then_of[r.tobytes()] for r in records], fairness)
    since_ = since if asks_since else None
    asked = Property("mine", "eventually", then, since=since_, fairness=fairness)
    result = check(flow, n_cpus, properties=[asked], symmetric=False)
    assert ("mine" in result.violations) == expected
    if result.property == "mine":
        assert_breaks(flow, n_cpus, result, then, since_, fairness)

"""Runs against the search and against single steps: nothing illegal, nobody forgotten.

The simulator wakes an agent only when a word changes that stopped it.
``assert_nobody_is_forgotten`` asks the program, which looks at everything, whether an agent that
sleeps could act.
"""

import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from random_flows import explored, flows

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange, StateConflict
from ghcbcore.explorer import Explorer
from ghcbcore.host import VM_DTYPE
from ghcbcore.simulator import Simulator
from pysev import simulate
from pysev.flow import Flow, add, call, each, jump, op, put
from pysev.machine import Machine
from pysev.scenarios import all_scenarios, find

SCENARIOS = {s.name: s for s in all_scenarios()}
ASLEEP = (1 << 64) - 1
WAKE_NS = 65  # a sleeper notices within this time
FIRST_NS = 1000  # everybody starts within this time
RANDOM = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def machine_of(scenario, n_cpus):
    return Machine.of(scenario.n_cpus(n_cpus), jump_table=scenario.jump_table)


def simulator_of(compiled, seed):
    return Simulator(compiled.program, compiled.initial_record(), seed)


def successors(program, record):
    out = {}
    for move in program.moves(record):
        after = record.copy()
        program.step(after, *move)
        out.setdefault(after.tobytes(), []).append(move)
    return out


def assert_nobody_is_forgotten(compiled, simulator):
    """Everybody who can act without delay acts soon; asks of flows whose costs are all 0."""
    program, due = compiled.program, simulator.due()
    first, at = {}, 0
    for role, agent in enumerate(compiled.flow.agents):
        first[role] = at
        at += compiled.n_others if agent.per_cpu else 1
    assert at == len(due)
    for alt, own, other in program.moves(simulator.record):
        if program.alts[alt]["delay_ns"] == 0:
            when = int(due[first[int(program.alts[alt]["role"])] + max(own, 0)])
            assert when <= max(simulator.now_ns + WAKE_NS, FIRST_NS), (alt, own, other, when)


# -- legal -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_cpus", [2, 3, 4])
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_step_of_a_run_is_one_move_and_leads_to_a_known_state(name, n_cpus):
    scenario = SCENARIOS[name]
    compiled = scenario.build(machine_of(scenario, n_cpus)).compile(n_cpus)
    program = compiled.program
    ex = Explorer(program, compiled.initial_record())
    assert explored(ex, 1 << 20)
    for seed in range(20):
        simulator = simulator_of(compiled, seed)
        before, now, n_steps = simulator.record.copy(), 0, 0
        while simulator.advance(1) or simulator.n_steps > n_steps:
            assert simulator.n_steps in (n_steps, n_steps + 1)
            if simulator.n_steps > n_steps:
                assert simulator.record.tobytes() in successors(program, before)
            else:
                assert (simulator.record == before).all()
            assert ex.state_of(simulator.record) >= 0
            assert simulator.now_ns >= now
            before, now, n_steps = simulator.record.copy(), simulator.now_ns, simulator.n_steps
            assert n_steps < 10_000
        assert program.moves(simulator.record) == []
        assert ex.state_of(simulator.record) in ex.terminals
        assert (simulator.due() == ASLEEP).all()
        assert int(simulator.executed.sum()) == simulator.n_steps


@RANDOM
@given(flow=flows(timed=True), n_cpus=st.integers(1, 4), seed=st.integers(0, ASLEEP))
def test_any_flow_takes_legal_steps_and_forgets_nobody(flow, n_cpus, seed):
    compiled = flow.compile(n_cpus)
    program, simulator = compiled.program, simulator_of(compiled, seed)
    before, n_steps = simulator.record.copy(), 0
    for _ in range(120):
        going = simulator.advance(1)
        if simulator.n_steps > n_steps:
            assert simulator.record.tobytes() in successors(program, before)
        else:
            assert (simulator.record == before).all()
        assert_nobody_is_forgotten(compiled, simulator)
        before, n_steps = simulator.record.copy(), simulator.n_steps
        if not going:
            assert program.moves(simulator.record) == []
            break


@RANDOM
@given(flow=flows(), n_cpus=st.integers(1, 3), seed=st.integers(0, ASLEEP))
def test_any_flow_stays_where_the_search_has_been(flow, n_cpus, seed):
    compiled = flow.compile(n_cpus)
    ex = Explorer(compiled.program, compiled.initial_record())
    assume(explored(ex, 3000))
    simulator = simulator_of(compiled, seed)
    going = simulator.advance(200)
    state = ex.state_of(simulator.record)
    assert state >= 0
    assert (state in ex.terminals) == (compiled.program.moves(simulator.record) == [])
    if not going:
        assert state in ex.terminals


# -- nobody is forgotten: one flow for each way ------------------------------------------------


def ends_after(flow, n_cpus, seeds=30):
    """Run to the end with many seeds; return the records in which something was still possible."""
    compiled = flow.compile(n_cpus)
    left = []
    for seed in range(seeds):
        simulator = simulator_of(compiled, seed)
        while simulator.advance(1000):
            assert simulator.n_steps < 100_000
        if compiled.program.moves(simulator.record):
            left.append(seed)
    return left


def test_a_test_of_a_common_word_that_fails_for_a_while_is_noticed():
    flow = Flow("while")
    flow.globals(x=1)
    flow.per_cpu(ready=0)
    boot, ap = flow.agent("boot CPU"), flow.agent("AP", per_cpu=True)
    other = flow.agent("somebody")
    boot.at("pick", op("a CPU", pick=True, when=[flow.g.x == 1, flow.other.ready == 1]))
    boot.at("done", ends=True)
    other.at("off", op("x := 0", do=[put(flow.g.x, 0)], after=5_000))
    other.at("on", op("x := 1", do=[put(flow.g.x, 1)], after=50_000))
    other.at("done", ends=True)
    ap.at("work", op("ready", do=[put(flow.cpu.ready, 1)], after=20_000))
    ap.at("done", ends=True)
    assert ends_after(flow, 3) == []


def test_a_common_word_with_which_other_cpus_are_compared_is_watched():
    flow = Flow("compared")
    flow.globals(wanted=9)
    flow.per_cpu(n=1)
    boot, other = flow.agent("boot CPU"), flow.agent("somebody")
    boot.at("pick", op("a CPU", pick=True, when=[flow.other.n == flow.g.wanted]))
    boot.at("done", ends=True)
    other.at("want", op("1 is wanted", do=[put(flow.g.wanted, 1)], after=20_000))
    other.at("done", ends=True)
    assert ends_after(flow, 3) == []


def test_an_own_word_with_which_other_cpus_are_compared_is_watched():
    flow = Flow("compared")
    flow.per_cpu(n=1, wanted=9)
    ap, thread = flow.agent("AP", per_cpu=True), flow.agent("thread", per_cpu=True)
    ap.at("pick", op("a CPU", pick=True, when=[flow.other.n == flow.cpu.wanted]))
    ap.at("done", ends=True)
    thread.at("want", op("1 is wanted", do=[put(flow.cpu.wanted, 1)], after=20_000))
    thread.at("done", ends=True)
    assert ends_after(flow, 3) == []


def test_an_agent_that_is_put_elsewhere_wakes_there():
    flow = Flow("jump")
    flow.globals(never=0)
    ap, thread = flow.agent("AP", per_cpu=True), flow.agent("thread", per_cpu=True)
    ap.at("stuck", op("never", when=[flow.g.never == 1]), op("nor", when=[flow.cpu.entry == 9]))
    ap.at("free", op("goes on"))
    ap.at("done", ends=True)
    thread.at("free", op("frees it", do=[jump(ap, "free")], after=20_000))
    thread.at("done", ends=True)
    assert ends_after(flow, 3) == []


def test_an_agent_at_a_label_without_operations_can_be_put_elsewhere():
    flow = Flow("jump")
    boot, other = flow.agent("boot CPU"), flow.agent("somebody")
    boot.at("stuck")
    boot.at("free", op("goes on"))
    boot.at("done", ends=True)
    other.at("free", op("frees it", do=[jump(boot, "free")], after=20_000))
    other.at("done", ends=True)
    assert ends_after(flow, 1) == []


def test_a_delay_that_was_running_does_not_count_at_another_label():
    flow = Flow("timers")
    boot, other = flow.agent("boot CPU"), flow.agent("somebody")
    boot.at("first", op("after 1 ms", after=1_000_000, to="done"))
    boot.at("second", op("after 10 ms", after=10_000_000))
    boot.at("done", ends=True)
    other.at("put", op("puts it at the second", do=[jump(boot, "second")], after=500_000))
    other.at("done", ends=True)
    simulator = simulator_of(flow.compile(1), 1)
    while simulator.advance(1):
        pass
    assert simulator.now_ns >= 10_500_000


def test_each_on_a_machine_of_one_cpu_wakes_who_waits_for_a_common_word():
    flow = Flow("alone")
    flow.globals(go=0)
    boot, other = flow.agent("boot CPU"), flow.agent("somebody")
    boot.at("wait", op("goes on", when=[flow.g.go == 1]))
    boot.at("done", ends=True)
    all_cpus = each(put(flow.other.entry, 1))
    other.at("go", op("all, go", do=[all_cpus, put(flow.g.go, 1)], after=20_000))
    other.at("done", ends=True)
    assert ends_after(flow, 1) == []
    assert ends_after(flow, 3) == []


def test_calls_around_an_each_have_room_in_the_trace_of_one_cpu():
    flow = Flow("trace")
    flow.globals(n=0)
    boot = flow.agent("boot CPU")
    n = 3 * 4096
    boot.at(
        "loop",
        op(
            "all, and an NMI",
            when=[flow.g.n < n],
            do=[each(nmi(flow.other)), nmi(flow.boot), add(flow.g.n, 1)],
            to=".",
        ),
        ends=True,
    )
    simulator = simulator_of(flow.compile(1), 1)
    while simulator.advance(n):
        pass
    events = simulator.events()
    assert len(events) == n
    assert (events["cpu"] == 0).all() and (events["call"] == lib.GHCB_CALL_NMI).all()


# -- repeatable --------------------------------------------------------------------------------


def run_all(compiled, seed, pieces=(1 << 40,)):
    simulator, i = simulator_of(compiled, seed), 0
    while simulator.advance(pieces[i % len(pieces)]):
        i += 1
        assert i < 100_000
    return simulator


def state(simulator):
    return (
        simulator.record.tobytes(),
        simulator.events().tobytes(),
        simulator.now_ns,
        simulator.n_steps,
        simulator.executed.tobytes(),
        simulator.due().tobytes(),
    )


@pytest.mark.parametrize("name", SCENARIOS)
def test_one_seed_is_one_run_in_whatever_pieces(name):
    scenario = SCENARIOS[name]
    compiled = scenario.build(machine_of(scenario, 4)).compile(4)
    for seed in (0, 1, ASLEEP):
        whole = state(run_all(compiled, seed))
        assert state(run_all(compiled, seed)) == whole
        assert state(run_all(compiled, seed, (1,))) == whole
        assert state(run_all(compiled, seed, (3, 0, 1, 7))) == whole


def test_other_seeds_are_other_runs():
    compiled = find("sev-es-kexec/jump-table").build(Machine.of(4)).compile(4)
    runs = [run_all(compiled, seed) for seed in range(20)]
    assert len({r.now_ns for r in runs}) == 20
    assert len({r.events().tobytes() for r in runs}) == 20
    orders = {r.events()["cpu"].tobytes() for r in runs}
    assert len(orders) > 5


@RANDOM
@given(
    flow=flows(timed=True),
    n_cpus=st.integers(1, 4),
    seed=st.integers(0, ASLEEP),
    pieces=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
)
def test_any_flow_repeats(flow, n_cpus, seed, pieces):
    compiled = flow.compile(n_cpus)
    one, other = simulator_of(compiled, seed), simulator_of(compiled, seed)
    one.advance(100)
    i = 0
    while other.n_steps < one.n_steps:
        other.advance(min(pieces[i % len(pieces)], one.n_steps - other.n_steps))
        i += 1
    if one.n_steps < 100:
        other.advance(1)  # until nobody acts any more
    assert state(one) == state(other)


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_has_64_bits(seed):
    compiled = find("sev-es-kexec/opt-out").build(Machine.of(2)).compile(2)
    with pytest.raises(OverflowError):
        simulator_of(compiled, seed)
    with pytest.raises(OutOfRange, match="seed"):
        simulate.run(compiled.flow, Machine.of(2), seed)


# -- events and time ---------------------------------------------------------------------------


@pytest.mark.parametrize("n_cpus", [1, 2, 5])
@pytest.mark.parametrize("name", SCENARIOS)
def test_events_are_what_each_step_asked_of_the_host(name, n_cpus):
    scenario = SCENARIOS[name]
    compiled = scenario.build(machine_of(scenario, n_cpus)).compile(n_cpus)
    program, simulator = compiled.program, simulator_of(compiled, 7)
    names = [f.name.split(".")[1] for f in compiled.flow.boot]
    seen, before = 0, simulator.record.copy()
    total = 0
    while simulator.advance(1):
        events = simulator.events()
        new, seen = events[seen:], len(events)
        total += len(new)
        assert (new["time_ns"] == simulator.now_ns).all()
        new = new[new["call"] != lib.GHCB_TRACE_FRAME]  # see test_frames_in_flows
        moves = successors(program, before).get(simulator.record.tobytes(), [])
        for event in new:
            cpu = int(event["cpu"])
            assert 0 <= cpu < n_cpus
            of_page = event["call"] == lib.GHCB_TRACE_FRAME
            assert event["call"] < lib.GHCB_CALL_END or of_page
            # of several calls on a vCPU only the last left its words there
            if len(new) == 1 and not of_page:
                first = program.n_global + (cpu - 1) * program.n_slice if cpu else len(VM_DTYPE)
                words = dict(zip(names, simulator.record[first:].tolist(), strict=False))
                assert event["msr_after"] == words["msr"]
                assert event["info_1_after"] == words["sw_exit_info_1"]
                assert event["info_2_after"] == words["sw_exit_info_2"]
        if len(new) == 1 and not any(program.alts[alt]["each"] for alt, _, _ in moves):
            cpus = {own + 1 for _, own, _ in moves} | {other + 1 for _, _, other in moves}
            assert int(new[0]["cpu"]) in cpus
        before = simulator.record.copy()
    events = simulator.events()
    assert len(events) == total
    assert (np.diff(events["time_ns"].astype(np.int64)) >= 0).all()


def test_an_event_names_the_cpu_whose_words_were_handed_over():
    flow = Flow("cpus")
    flow.globals(n=0)
    flow.per_cpu(number=0, picked=0)
    boot = flow.agent("boot CPU")
    ap = flow.agent("AP", per_cpu=True)
    boot.at(
        "number",
        op("numbers", do=[each(add(flow.g.n, 1), put(flow.other.number, flow.g.n))]),
    )
    boot.at("all", op("NMI to all", do=[each(put(flow.other.msr, 0x1000), nmi(flow.other))]))
    boot.at("self", op("NMI to itself", do=[nmi(flow.boot)]))
    boot.at(
        "picks",
        op("NMI to 2", pick=True, when=[flow.other.number == 2], do=[nmi(flow.other)]),
    )
    boot.at("done", ends=True)
    ap.at("wait", op("NMI to itself", when=[flow.cpu.nmi_pending == 1], do=[nmi(flow.cpu)]))
    ap.at("done", ends=True)
    simulator = simulator_of(flow.compile(5), 3)
    while simulator.advance(1):
        pass
    events = simulator.events()
    n = 4
    by_boot = events["cpu"].tolist()
    assert sorted(by_boot) == sorted([1, 2, 3, 4, 1, 2, 3, 4, 0, 2])
    assert by_boot[:n] == [1, 2, 3, 4]
    assert (events["msr"][:n] == 0x1000).all()


def nmi(vcpu):
    return call(lib.GHCB_CALL_NMI, vcpu)


def test_costs_and_delays_are_kept():
    flow = Flow("time")
    boot = flow.agent("boot CPU")
    boot.at("first", op("takes 1 ms", cost=1_000_000))
    boot.at("second", op("1 s later", after=1_000_000_000, cost=0))
    boot.at("third", op("within 2 s", after=1_000_000_000, spread=True, cost=0))
    boot.at("done", ends=True)
    compiled, drawn = flow.compile(1), []
    for seed in range(50):
        simulator, times = simulator_of(compiled, seed), []
        while simulator.advance(1) or len(times) < simulator.n_steps:
            times.append(simulator.now_ns)
            if len(times) == 3:
                break
        start, second, third = times
        assert start < FIRST_NS
        assert 1_001_000_000 <= second - start <= 1_001_250_001
        drawn.append(third - second)
    assert all(0 < d <= 2_000_000_001 for d in drawn)
    assert min(drawn) < 500_000_000 and max(drawn) > 1_500_000_000


# -- size --------------------------------------------------------------------------------------


def test_steps_grow_with_the_cpus_and_not_with_their_square():
    scenario = find("sev-es-kexec/jump-table")
    per_cpu = {}
    for n_cpus in (64, 1024, lib.GHCB_MAX_CPUS):
        compiled = scenario.build(Machine.of(n_cpus)).compile(n_cpus)
        simulator = simulator_of(compiled, 1)
        limit = 60 * n_cpus
        assert not simulator.advance(limit), f"{n_cpus} CPUs: not over after {limit} steps"
        per_cpu[n_cpus] = simulator.n_steps / n_cpus
        up = compiled.flow.cpu.times_up.index
        slices = simulator.record[compiled.program.n_global :].reshape(n_cpus - 1, -1)
        assert (slices[:, up] == 1).all()
    assert max(per_cpu.values()) < 1.2 * min(per_cpu.values())


def test_many_sleepers_of_one_word_are_woken_once():
    flow = Flow("sleepers")
    flow.globals(turn=1)
    flow.per_cpu(number=0)
    boot, ap = flow.agent("boot CPU"), flow.agent("AP", per_cpu=True)
    boot.at(
        "number", op("all", do=[each(put(flow.other.number, flow.g.turn), add(flow.g.turn, 1))])
    )
    boot.at("go", op("go", do=[put(flow.g.turn, 0)], after=10_000))
    boot.at("done", ends=True)
    # half of them go at 0, the other half for ever wait for a turn of their own
    ap.at(
        "wait",
        op("turn 0", when=[flow.g.turn == 0, flow.cpu.number & 1 == 1]),
        op("own turn", when=[flow.cpu.number != 0, flow.g.turn == 1 << 40]),
    )
    ap.at("done", ends=True)
    n_cpus = lib.GHCB_MAX_CPUS
    simulator = simulator_of(flow.compile(n_cpus), 5)
    assert not simulator.advance(2 * n_cpus)
    assert simulator.n_steps == 2 + n_cpus // 2
    assert int((simulator.due() == ASLEEP).sum()) == n_cpus


def test_a_machine_whose_watches_cannot_be_numbered_is_refused():
    flow = Flow("too many")
    flow.per_cpu(a=0)
    ap = flow.agent("AP", per_cpu=True)
    ap.at("wait", op("pick", pick=True, when=[flow.other.a == 1] * 140_000))
    ap.at("done", ends=True)
    compiled = flow.compile(lib.GHCB_MAX_CPUS)
    with pytest.raises(OutOfRange, match=r"8191 agents with 280001 watches"):
        simulator_of(compiled, 0)


# -- threads -----------------------------------------------------------------------------------


def test_a_second_thread_is_refused_and_changes_nothing():
    compiled = find("sev-es-kexec/jump-table").build(Machine.of(2048)).compile(2048)
    expected = run_all(compiled, 3)
    simulator, refused, stop = simulator_of(compiled, 3), set(), threading.Event()

    def meddle():
        while not stop.wait(0.0002):  # a pause: the run must get its turn too
            for use in (lambda: simulator.advance(0), simulator.events, simulator.due):
                try:
                    use()
                except StateConflict as error:
                    refused.add(str(error))

    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        going = True
        while going:
            try:
                going = simulator.advance(5_000)
            except StateConflict:
                continue
    finally:
        stop.set()
        thread.join()
    assert state(simulator) == state(expected)
    assert refused <= {"the simulator is in use"}


def test_two_simulators_of_one_program_run_side_by_side():
    compiled = find("sev-es-kexec/jump-table").build(Machine.of(512)).compile(512)
    simulators = [simulator_of(compiled, seed) for seed in (1, 2)]
    threads = [threading.Thread(target=s.advance, args=(1 << 40,)) for s in simulators]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [state(s) for s in simulators] == [state(run_all(compiled, seed)) for seed in (1, 2)]


# -- the whole ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [s.name for s in all_scenarios() if s.expected == "holds"])
def test_200_runs_of_what_holds_show_no_violation(name):
    scenario = SCENARIOS[name]
    machine = machine_of(scenario, 3)
    flow = scenario.build(machine)
    for seed in range(200):
        result = simulate.run(flow, machine, seed)
        assert (result.verdict, result.violations) == ("holds", ()), seed


@pytest.mark.parametrize("name", ["sev-es-kexec/legacy-sev-es", "sev-es-kexec/park-old-memory"])
def test_runs_of_what_is_violated_show_it(name):
    scenario = SCENARIOS[name]
    machine = machine_of(scenario, 3)
    flow = scenario.build(machine)
    results = [simulate.run(flow, machine, seed) for seed in range(200)]
    assert any(scenario.because in r.violations for r in results)
    assert {r.verdict for r in results} <= {"violated", "holds"}


def test_a_property_cannot_change_the_running_machine():
    scenario = SCENARIOS["sev-es-kexec/opt-out"]
    machine = machine_of(scenario, 3)
    flow = scenario.build(machine)

    def meddle(s):
        for words in (s.g.kernel, s.cpu.ipi):
            with pytest.raises(ValueError, match="read-only"):
                words[...] = 1
        return np.ones(1, dtype=bool)

    flow.always("meddles", meddle)
    assert simulate.run(flow, machine).verdict == "holds"

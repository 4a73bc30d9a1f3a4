"""Where the time of a run went: phases, work and waits, and the critical path."""

import numpy as np
import pytest

from ghcbcore._cffi import lib
from ghcbcore.errors import StateConflict
from ghcbcore.simulator import MOVE_DTYPE, Simulator
from pysev import Flow, Machine, add, all_scenarios, call, each, find, op, put, run
from pysev.flow import FlowError

NS = 1e-9


def machine_of(n_cpus):
    return Machine.of(n_cpus)


def simple(work_ns=1000, timer_ns=50_000):
    """The boot CPU asks each AP to work, waits for all, then for a timer."""
    flow = Flow("simple")
    flow.globals(left=0)
    flow.per_cpu(asked=0)
    g, cpu, other = flow.g, flow.cpu, flow.other
    boot = flow.agent("boot CPU")
    boot.phase("ask")
    boot.at("ask", op("asks all", do=[each(put(other.asked, 1), add(g.left, 1))], cost=400))
    boot.phase("wait")
    boot.at("all", op("all have answered", when=[g.left == 0], cost=40))
    boot.phase("rest")
    boot.at("timer", op("timer", after=timer_ns, cost=4))
    boot.phase("")
    boot.at("end", ends=True)
    ap = flow.agent("AP", per_cpu=True)
    ap.phase("idle")
    ap.at("idle", op("is asked", when=[cpu.asked == 1], cost=work_ns))
    ap.phase("answer")
    ap.at("answer", op("answers", do=[add(g.left, -1)], cost=10))
    ap.at("end", ends=True)
    return flow


def test_phases_are_those_that_were_marked_in_the_order_in_which_they_began():
    found = run(simple(), machine_of(5)).analysis
    assert [(p.agent, p.name) for p in found.phases if p.agent == "boot CPU"] == [
        ("boot CPU", "ask"),
        ("boot CPU", "wait"),
        ("boot CPU", "rest"),
    ]
    assert [p.begin_ns for p in found.phases] == sorted(p.begin_ns for p in found.phases)
    assert {p.name for p in found.phases if p.agent == "AP"} == {"idle", "answer"}


def test_phases_of_the_boot_cpu_are_one_after_the_other_and_fill_its_time():
    found = run(simple(), machine_of(5)).analysis
    ask, wait, rest = (p for p in found.phases if p.agent == "boot CPU")
    assert (ask.begin_ns, rest.end_ns) == (0, found.path_ns)
    assert (ask.end_ns, wait.end_ns) == (wait.begin_ns, rest.begin_ns)
    for p in (ask, wait, rest):
        assert p.ns == p.end_ns - p.begin_ns == p.work_ns + p.wait_ns
        assert p.steps == 1
    assert 400 <= ask.work_ns <= 500
    assert 1000 <= wait.ns <= 1500
    assert rest.wait_ns >= 50_000


def test_the_critical_path_goes_through_the_ap_that_made_the_boot_cpu_wait():
    found = run(simple(work_ns=1_000_000), machine_of(5)).analysis
    top = found.path[0]
    assert (top.agent, top.op, top.kind, top.times) == ("AP", "is asked", "work", 1)
    assert 1_000_000 <= top.ns <= 1_250_000
    assert sum(s.ns for s in found.path) == found.path_ns
    assert found.waits[0].op == "all have answered"


def test_a_timer_is_waited_for_and_nobody_works():
    found = run(simple(timer_ns=10**9), machine_of(5)).analysis
    top = found.path[0]
    assert (top.agent, top.op, top.kind) == ("boot CPU", "timer", "wait")
    assert top.ns >= 10**9


def test_work_of_all_cpus_is_added_up():
    found = run(simple(), machine_of(9)).analysis
    boot, ap = found.parts
    assert (boot.n, boot.steps, ap.n, ap.steps) == (1, 3, 8, 16)
    assert 8 * 1010 <= ap.work_ns <= 8 * 1263


@pytest.mark.parametrize("n_cpus", [1, 2, 5, 40])
@pytest.mark.parametrize("name", [s.name for s in all_scenarios()])
def test_every_scenario_can_be_taken_apart(name, n_cpus):
    scenario = find(name)
    machine = Machine.of(scenario.n_cpus(n_cpus), jump_table=scenario.jump_table)
    result = run(scenario.build(machine), machine, 3)
    found = result.analysis
    assert sum(s.ns for s in found.path) == found.path_ns
    assert sum(p.steps for p in found.parts) == result.steps
    boot = [p for p in found.phases if p.agent == found.boot]
    for p in found.phases:
        assert 0 <= p.begin_ns <= p.begin_ns + p.ns <= p.end_ns
        assert p.work_ns >= 0 and p.wait_ns >= 0 and p.steps > 0
    assert sum(p.ns for p in boot) <= found.path_ns
    assert sum(p.vmgexits for p in boot) <= sum(result.vmgexits.values())
    assert all(s.ns >= 0 and s.times > 0 for s in found.path)


def test_every_vmgexit_of_a_kexec_falls_into_one_phase():
    scenario = find("sev-es-kexec/jump-table")
    machine = machine_of(64)
    result = run(scenario.build(machine), machine)
    mine = [p for p in result.analysis.phases if p.agent == result.analysis.boot]
    phases = {p.name: p for p in mine}
    assert sum(p.vmgexits for p in phases.values()) == sum(result.vmgexits.values())
    assert phases["stop other CPUs"].vmgexits == 63
    assert phases["boot the new kernel"].vmgexits == 2
    assert phases["bring up other CPUs"].ns > 63 * 10_000_000


def test_the_report_and_the_json_say_the_same():
    result = run(simple(), machine_of(3))
    found = result.as_json()
    assert [p["name"] for p in found["phases"]] == [p.name for p in result.analysis.phases]
    shares = [p["share"] for p in found["phases"] if p["agent"] == "boot CPU"]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    text = result.analysis.as_text()
    for p in result.analysis.phases:
        assert f"  {p.name} " in text and f"{p.begin_ns / 1e9:.6f}" in text
    path = found["dominates"]["critical_path"]
    assert sum(s["seconds"] for s in path) == pytest.approx(result.analysis.path_ns * NS)


def test_a_run_is_taken_apart_alike_every_time():
    machine = machine_of(30)
    flow = find("sev-es-kexec/jump-table").build(machine)
    assert run(flow, machine, 7).analysis == run(flow, machine, 7).analysis


# -- one operation that stands for many ----------------------------------------------------------


def bulk(times):
    flow = Flow("bulk")
    boot = flow.agent("boot CPU")
    ask = call(lib.GHCB_CALL_VMGEXIT, flow.boot)
    sev_info = put(flow.boot.msr, lib.GHCB_MSR_SEV_INFO_REQ)
    boot.phase("many")
    boot.at("many", op("asks often", do=[sev_info, ask], times=times, cost=5))
    boot.phase("one")
    boot.at("one", op("asks once", do=[sev_info, ask]))
    boot.at("end", ends=True)
    return flow


@pytest.mark.parametrize("times", [0, 1, 4672])
def test_an_operation_that_stands_for_many_counts_as_many_vmgexits(times):
    result = run(bulk(times), machine_of(1))
    assert result.vmgexits == {"msr:sev_info": times + 1}
    assert [p.vmgexits for p in result.analysis.phases] == [times, 1]
    assert len(result.trace) == 2


@pytest.mark.parametrize("times", [-1, 1 << 40])
def test_an_operation_cannot_stand_for_any_number(times):
    with pytest.raises(FlowError, match="stands for"):
        op("x", times=times)


def test_the_name_of_a_phase_is_one_line():
    flow = Flow("x")
    with pytest.raises(FlowError, match="phase"):
        flow.agent("boot CPU").phase("a\nb")


# -- the log of the simulator --------------------------------------------------------------------


def test_a_simulator_without_a_log_has_no_moves():
    compiled = simple().compile(3)
    simulator = Simulator(compiled.program, compiled.initial_record(), 0)
    with pytest.raises(StateConflict, match="keeps no log"):
        simulator.moves()


def test_a_log_changes_nothing_but_that_it_is_there():
    compiled = find("sev-es-kexec/jump-table-nmi").build(machine_of(50)).compile(50)
    ends = []
    for log in (False, True):
        simulator = Simulator(compiled.program, compiled.initial_record(), 5, log)
        if log:
            assert simulator.moves().dtype == MOVE_DTYPE and not len(simulator.moves())
        assert not simulator.advance(1 << 30)
        ends.append((simulator.n_steps, simulator.now_ns, simulator.record.tobytes()))
        ends[-1] += (simulator.events().tobytes(),)
    assert ends[0] == ends[1]
    moves = simulator.moves()
    assert len(moves) == simulator.n_steps
    assert np.array_equal(
        np.bincount(moves["alt"], minlength=len(compiled.ops)), simulator.executed
    )
    assert (np.diff(moves["when"].astype(np.int64)) >= 0).all()


def test_who_was_woken_was_woken_earlier_by_somebody_else_who_changed_its_word():
    compiled = simple().compile(20)
    simulator = Simulator(compiled.program, compiled.initial_record(), 1, True)
    assert not simulator.advance(1 << 30)
    moves = simulator.moves()
    texts = [o.text for o in compiled.ops]
    woken = 0
    for i, move in enumerate(moves):
        if not move["woken_by"]:
            continue
        woken += 1
        cause = moves[int(move["woken_by"]) - 1]
        assert int(move["woken_by"]) - 1 < i and cause["agent"] != move["agent"]
        pair = (texts[int(cause["alt"])], texts[int(move["alt"])])
        assert pair in {("asks all", "is asked"), ("answers", "all have answered")}
    assert woken >= 2
    asked = texts.index("is asked")
    costs = moves["took"][moves["alt"] == asked]
    assert ((costs >= 1000) & (costs <= 1250)).all()


def test_the_log_grows_with_what_happens():
    flow = Flow("long")
    flow.globals(n=0)
    boot = flow.agent("boot CPU")
    boot.at(
        "count",
        op("counts", when=[flow.g.n < 20_000], do=[add(flow.g.n, 1)], to="."),
        ends=True,
    )
    compiled = flow.compile(1)
    simulator = Simulator(compiled.program, compiled.initial_record(), 0, True)
    assert not simulator.advance(1 << 30)
    moves = simulator.moves()
    assert len(moves) == 20_000 and not moves["woken_by"].any()
    ends = moves["when"][:-1] + moves["took"][:-1]
    assert np.array_equal(ends, moves["when"][1:])

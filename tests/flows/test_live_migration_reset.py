"""The family ``live-migration-reset``: who resets the hypervisor's list, and who comes too late.

Each failing scenario must fail by the late call that its source describes, and each holding one
must stop holding when what protects it is taken away.
"""

from dataclasses import replace

import numpy as np
import pytest

from ghcbcore._cffi import lib
from pysev import Machine, all_scenarios, check, find, run
from pysev.checking import CheckResult
from pysev.flow import Flow, put
from pysev.flows import live_migration_reset as flows
from pysev.flows.live_migration_reset import Condition, Design
from pysev.frames import changes, views
from pysev.memory import Memory
from pysev.report import check_text, is_expected
from pysev.scenarios import live_migration_reset as family
from pysev.scenarios.live_migration_reset import M_SAFE
from pysev.states import States

FAMILY = [s for s in all_scenarios() if s.family == "live-migration-reset"]
NAMES = [s.name.removeprefix("live-migration-reset/") for s in FAMILY]
FAILING = [s.name.removeprefix("live-migration-reset/") for s in FAMILY if s.because == M_SAFE]
DESIGNS = ["cpu0", "every-cpu", "last-cpu", "migration-off", "mute", "generation-id", "merged"]
REQUEST, CALL = "device request: page", "hypercall: page"


def built(short: str, n_cpus: int) -> Flow:
    return find(f"live-migration-reset/{short}").build(Machine.of(n_cpus))


def checked(short: str, n_cpus: int, **options) -> CheckResult:
    return check(built(short, n_cpus), n_cpus, **options)


def story(result: CheckResult) -> list[tuple[str, str]]:
    return [(step.agent, step.op) for step in result.counterexample]


def first(steps: list[tuple[str, str]], text: str, agent: str = "") -> int:
    """Return at which step it happens that begins so; one that does not happen is an error."""
    found = [i for i, (who, op) in enumerate(steps) if op.startswith(text) and agent in who]
    assert found, (text, steps)
    return found[0]


def last(steps: list[tuple[str, str]], text: str, agent: str = "") -> int:
    return len(steps) - 1 - first(steps[::-1], text, agent)


# -- verdicts ----------------------------------------------------------------------------------


def test_every_design_is_there_under_every_condition():
    for design in DESIGNS:
        assert {design, *(f"{design}+{c}" for c in ("device", "straggler", "crash"))} <= set(NAMES)
    for s in FAMILY:
        assert s.source and s.story and s.summary
        assert bool(s.because) == (s.expected != "holds")


@pytest.mark.parametrize("n_cpus", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("short", NAMES)
def test_every_scenario_has_its_verdict_for_its_reason(short, n_cpus):
    scenario = find(f"live-migration-reset/{short}")
    result = checked(short, n_cpus)
    assert result.complete
    assert is_expected(scenario, result), (result.verdict, result.property)
    assert set(result.violations) <= {scenario.because}
    assert all(result.reached.values()), result.reached
    assert "as expected" in check_text(scenario, built(short, n_cpus), result)


@pytest.mark.parametrize("short", NAMES)
def test_the_verdict_does_not_depend_on_symmetry(short):
    for n_cpus in (2, 3):
        alike, apart = checked(short, n_cpus), checked(short, n_cpus, symmetric=False)
        assert apart.complete
        assert (alike.verdict, alike.violations) == (apart.verdict, apart.violations)
        assert alike.depth == apart.depth and alike.states <= apart.states


@pytest.mark.parametrize("short", FAILING)
def test_a_counterexample_ends_with_a_page_that_is_listed_wrongly(short):
    flow = built(short, 4)
    result = check(flow, 4)
    compiled = flow.compile(4)
    record = compiled.initial_record()
    for step in result.counterexample:
        compiled.program.step(record, *step.move)
    end = States.of_record(compiled, record)
    pages = views(end, flow.frame_regions[0])[0]
    assert end.g.allowed[0] == 1 and end.g.kernel[0] == flows.Kernel.NEW
    wrong = (pages["mapping"] == lib.FRAME_PRIVATE) & (pages["listed"] == lib.FRAME_LISTED_SHARED)
    also = (pages["mapping"] == lib.FRAME_SHARED) & (pages["listed"] == lib.FRAME_LISTED_PRIVATE)
    assert (wrong | also).sum() == 1


# -- the reasons -------------------------------------------------------------------------------


def test_cpu0_fails_as_the_mail_says():
    """CPU 0 has reset; another, whose own part of the reboot is pending, serves its device."""
    steps = story(checked("cpu0", 4))
    reset = first(steps, "CPU 0: PV teardown; hypercalls: all RAM is encrypted", "boot CPU")
    late = first(steps, CALL, "AP")
    who = steps[late][0]
    own = first(steps, "reboot notifier: PV teardown", who)
    assert reset < late < own
    assert own < first(steps, "the new kernel boots") < len(steps) - 1
    assert sum(op.startswith(CALL) for _, op in steps) == 1
    assert steps[late][1] == "hypercall: page 0 is decrypted"


@pytest.mark.parametrize("short", ["cpu0", "every-cpu", "last-cpu", "migration-off"])
def test_with_one_cpu_a_device_lets_a_single_thread_race_with_itself(short):
    steps = story(checked(f"{short}+device", 1))
    assert {agent for agent, _ in steps} == {"boot CPU"}
    assert (
        first(steps, "CPU 0: PV teardown")
        < first(steps, REQUEST)
        < first(steps, CALL)
        < first(steps, "device_shutdown")
    )


def test_with_one_cpu_muting_is_enough():
    assert checked("mute+device", 1).verdict == "holds"


@pytest.mark.parametrize("short", ["every-cpu", "last-cpu"])
def test_a_late_request_comes_after_the_last_reset(short):
    steps = story(checked(f"{short}+device", 4))
    assert last(steps, CALL) > last(steps, "reboot notifier: PV teardown")


@pytest.mark.parametrize("short", ["every-cpu", "last-cpu"])
def test_an_interrupt_between_the_steps_is_a_race_with_itself(short):
    steps = story(checked(f"{short}+interrupted", 2))
    own = first(steps, "reboot notifier: PV teardown", "AP 1")
    assert first(steps, REQUEST, "AP 1") < own < first(steps, CALL, "AP 1")


def test_migration_is_allowed_over_a_stale_list():
    steps = story(checked("migration-off", 4))
    assert steps[-1] == ("boot CPU", "MSR: migration allowed")
    assert first(steps, "CPU 0: PV teardown") < first(steps, CALL)


def test_muting_races_with_a_call_in_flight():
    steps = story(checked("mute", 4))
    assert first(steps, "not muted yet") < first(steps, "CPU 0: PV teardown") < first(steps, CALL)


def test_only_a_cpu_that_was_not_stopped_undoes_the_merged_reset():
    steps = story(checked("merged+straggler", 4))
    reset = first(steps, "early boot: hypercalls: all RAM")
    late = len(steps) - 1 - next(i for i, (who, _) in enumerate(reversed(steps)) if "AP" in who)
    assert first(steps, "1 s is over") < reset < late
    assert CALL.split()[0] in steps[late][1]


def test_one_cpu_offline_ends_migration_until_the_next_boot():
    steps = story(checked("merged+hot-unplug", 3))
    assert [op for _, op in steps] == [
        "cpu_down of another CPU (CPU 1)",
        "cpu_down: PV teardown; MSR: migration off",
        "the CPU has torn down: offline",
    ]


def test_old_memory_keeps_its_entries_in_a_merged_crash():
    steps = story(checked("merged+crash", 4))
    assert first(steps, "early boot: hypercalls: all RAM of its E820 map")
    assert steps[-1][1].startswith("/proc/vmcore")


# -- what protects the designs that hold ---------------------------------------------------------


def with_design(design: Design, condition: Condition, n_cpus: int = 3) -> CheckResult:
    return check(family._build(design, condition, "changed")(Machine.of(n_cpus)), n_cpus)


MERGED = Design(switches_off=True, new_kernel_resets=True)


def test_the_merged_design_needs_each_of_its_halves():
    assert with_design(MERGED, Condition()).verdict == "holds"
    for half in ({"switches_off": False}, {"new_kernel_resets": False}):
        result = with_design(replace(MERGED, **half), Condition(device=True))
        assert (result.verdict, result.property) == ("violated", M_SAFE)


def test_generations_hold_only_because_old_calls_are_dropped():
    condition = Condition(straggler=True)
    assert with_design(Design(generations=True), condition).verdict == "holds"
    result = with_design(Design(), condition)
    assert (result.verdict, result.property) == ("violated", M_SAFE)


@pytest.mark.parametrize("kept", ["every", "last"])
def test_a_reset_less_is_noticed(kept):
    """Without the reset of the APs' notifiers the late call of cpu0 is back."""
    flow = built({"every": "every-cpu", "last": "last-cpu"}[kept], 3)
    ap = flow.agents[1]
    for label, ops in ap.labels.items():
        ap.labels[label] = [
            replace(o, do=tuple(e for e in o.do if e.frame is None and not e.tests))
            if o.text.startswith("reboot notifier")
            else o
            for o in ops
        ]
    result = check(flow, 3)
    assert (result.verdict, result.property) == ("violated", M_SAFE)


def test_a_page_that_is_never_told_is_noticed():
    """The new kernel keeps quiet about bss_decrypted: its page is shared, the list says private."""
    flow = built("merged", 2)
    boot = flow.agents[0]
    (tell,) = boot.labels["bss_decrypted"]
    quiet = tuple(e for e in tell.do if e.frame is None)
    boot.labels["bss_decrypted"] = [replace(tell, do=quiet)]
    result = check(flow, 2)
    assert (result.verdict, result.property) == ("violated", M_SAFE)


def test_migration_that_is_never_allowed_again_is_noticed():
    flow = built("merged", 2)
    boot = flow.agents[0]
    (allow,) = boot.labels["late_initcall"]
    boot.labels["late_initcall"] = [replace(allow, do=(put(flow.g.allowed, 0),))]
    result = check(flow, 2)
    assert result.property == family.ALLOWED_AGAIN


# -- at scale ----------------------------------------------------------------------------------


@pytest.mark.parametrize("short", ["cpu0+device", "merged", "merged+crash"])
def test_a_run_follows_its_pages_in_a_large_memory(short):
    scenario = find(f"live-migration-reset/{short}")
    machine = Machine.of(64)
    memory = Memory(8 << 30)
    flow = scenario.build(machine)
    for place in flow.frame_regions[0].where(machine):
        memory.do(flows.PRIVATE.mapped, place)
        memory.do(flows.PRIVATE.noted, place)
    result = run(flow, machine, 3, memory=memory)
    assert result.cpus["stopped"] == 63 and result.cpus["online"] == 1


def test_a_run_with_many_cpus_finds_a_late_call():
    machine = Machine.of(1024)
    verdicts = {run(built("cpu0+device", 1024), machine, seed).verdict for seed in range(4)}
    assert "violated" in verdicts
    assert verdicts <= {"violated", "holds"}
    assert run(built("merged+device", 1024), machine, 1).verdict == "holds"


# -- a timeline's words for pages --------------------------------------------------------------


def test_a_timeline_says_what_changed_of_a_page():
    result = checked("cpu0", 2)
    details = " ".join(step.detail for step in result.counterexample)
    assert "page_0: page table private -> shared" in details
    assert "page_0: hypervisor's list private -> shared" in details
    assert "0x" not in details


def test_changes_name_every_view():
    word = np.zeros(2, np.uint64)
    word[1] = (
        lib.FRAME_PRIVATE << lib.FRAME_MAPPING_SHIFT
        | lib.FRAME_LISTED_SHARED << lib.FRAME_LISTED_SHIFT
        | 1 << lib.FRAME_BELIEVED
    )
    assert changes(int(word[0]), int(word[1])) == [
        "page table unmapped -> private",
        "noted as validated 0 -> 1",
        "hypervisor's list nothing -> shared",
    ]
    assert changes(5, 5) == []

"""The family ``sev-es-kexec``: verdicts, the reasons behind them, and what its properties notice.

A verdict alone says little: here each failing scenario must fail for the reason that its source
gives, in the steps of its counterexample, and each holding scenario must stop holding when one of
its operations or guards is taken out.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ghcbcore._cffi import lib
from ghcbcore.profile import Profile
from pysev import Machine, Property, States, all_scenarios, check, find, op, put, run
from pysev.checking import DEADLOCK, LIVELOCK, CheckResult, evaluate
from pysev.flow import Effect, Flow, Op, add, each
from pysev.report import check_text, is_expected
from pysev.scenarios import sev_es_kexec as family
from pysev.words import Fate

FAMILY = [s for s in all_scenarios() if s.family == "sev-es-kexec"]
NAMES = [s.name.removeprefix("sev-es-kexec/") for s in FAMILY]
HOLDING = [n for n in NAMES if find(f"sev-es-kexec/{n}").expected == "holds"]
FAILING = [n for n in NAMES if n not in HOLDING]
REFUSED = ["protocol-v1", "opt-out", "jump-table-above-4g"]
BOOT, AP, THREAD = "boot CPU", "AP", "vCPU thread"
WINDOW = ("park", "leave", "low")  # P1 to P6: between the old kernel's text and the page


def build(short: str, n_cpus: int) -> tuple[Flow, Machine]:
    scenario = find(f"sev-es-kexec/{short}")
    machine = Machine.of(n_cpus, jump_table=scenario.jump_table)
    return scenario.build(machine), machine


def checked(short: str, n_cpus: int, **options) -> CheckResult:
    return check(build(short, n_cpus)[0], n_cpus, **options)


def replayed(flow: Flow, n_cpus: int, result: CheckResult) -> list[States]:
    """Every state of a counterexample, by the one ``step``, on a record of its own."""
    compiled = flow.compile(n_cpus)
    record = compiled.initial_record()
    states = [States.of_record(compiled, record.copy())]
    for step in result.counterexample:
        compiled.program.step(record, *step.move)
        states.append(States.of_record(compiled, record.copy()))
    return states


# -- verdicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_cpus", [2, 3, 4, 5])
@pytest.mark.parametrize("short", NAMES)
def test_every_scenario_has_its_verdict_for_its_reason(short, n_cpus):
    scenario = find(f"sev-es-kexec/{short}")
    result = checked(short, n_cpus)
    assert result.complete
    assert (result.verdict, result.property) == (scenario.expected, scenario.because)
    assert is_expected(scenario, result)
    assert all(result.reached.values()) or scenario.expected != "holds", result.reached


def test_the_family_has_every_scenario_that_was_asked_for():
    assert {
        "legacy-svm",
        "legacy-sev-es",
        "protocol-v1",
        "opt-out",
        "jump-table-above-4g",
        "park-old-memory",
        "jump-table",
        "jump-table-ack-early",
        "mailbox",
        "kdump-one-cpu",
    } <= set(NAMES)
    for scenario in FAMILY:
        assert scenario.source and scenario.story and scenario.summary
        assert bool(scenario.because) == (scenario.expected != "holds")


@pytest.mark.parametrize("short", NAMES)
def test_a_single_cpu_comes_through_every_scenario(short):
    scenario = find(f"sev-es-kexec/{short}")
    result = checked(short, 1)
    assert result.verdict == "holds" and result.complete and not result.violations
    assert is_expected(scenario, result)
    assert "as expected" in check_text(scenario, build(short, 1)[0], result)
    flow, machine = build(short, 1)
    ran = run(flow, machine)
    assert ran.verdict == "holds"
    assert ran.cpus["total"] == ran.cpus["online"] == 1 and ran.cpus["lost"] == 0


@pytest.mark.parametrize("short", NAMES)
def test_the_verdict_does_not_depend_on_symmetry(short):
    for n_cpus in (2, 3):
        alike = checked(short, n_cpus)
        each_its_own = checked(short, n_cpus, symmetric=False)
        assert each_its_own.complete
        assert alike.verdict == each_its_own.verdict
        assert alike.violations == each_its_own.violations  # names, and after how many steps
        assert alike.depth == each_its_own.depth
        assert alike.states <= each_its_own.states
        assert alike.states == each_its_own.states or n_cpus > 2


@pytest.mark.parametrize("short", FAILING)
def test_a_counterexample_can_be_replayed_and_ends_where_its_property_breaks(short):
    flow, _ = build(short, 4)
    result = check(flow, 4)
    states = replayed(flow, 4, result)
    if result.property == LIVELOCK:
        return  # a state like any other: what follows from it is what is wrong
    broken = next(p for p in flow.properties if p.name == result.property)
    assert not evaluate(broken, states[-1])[0]
    if broken.kind == "always":
        assert all(evaluate(broken, s)[0] for s in states[:-1])


# -- the reasons -------------------------------------------------------------------------------


def story(result: CheckResult) -> list[tuple[str, str]]:
    return [(step.agent, step.op) for step in result.counterexample]


def victim(result: CheckResult) -> tuple[int, list[tuple[str, str]]]:
    """The AP that the last step is about, and what its own agents did before."""
    agent = result.counterexample[-1].agent
    assert agent.startswith("AP ")
    number = int(agent.removeprefix("AP "))
    mine = (f"AP {number}", f"vCPU thread {number}")
    return number, [s for s in story(result)[:-1] if s[0] in mine]


FOREIGN = "FOREIGN FETCH: the old kernel's "


@pytest.mark.parametrize("n_cpus", [2, 3, 4, 5])
def test_legacy_sev_es_ends_in_a_foreign_fetch_of_the_cpu_that_got_startup(n_cpus):
    result = checked("legacy-sev-es", n_cpus)
    number, mine = victim(result)
    assert result.counterexample[-1].op.startswith(FOREIGN)
    assert mine[-1] == (f"vCPU thread {number}", "STARTUP reaches the vCPU")
    assert (f"AP {number}", "HLT") in mine
    assert (BOOT, f"STARTUP (CPU {number})") in story(result)
    assert "event NONE -> SHUTDOWN" in result.counterexample[-1].detail


@pytest.mark.parametrize("n_cpus", [2, 5])
def test_park_old_memory_ends_after_the_hypervisor_has_released_the_hold(n_cpus):
    result = checked("park-old-memory", n_cpus)
    number, mine = victim(result)
    assert result.counterexample[-1].op.startswith(FOREIGN)
    assert (f"AP {number}", "VMGEXIT: AP reset hold (NAE event)") in mine
    released = [s for s in result.counterexample if s.agent == f"vCPU thread {number}"][-1]
    assert released.op == "STARTUP reaches the vCPU"
    assert "sw_exit_info_2 0 -> 1" in released.detail


@pytest.mark.parametrize("n_cpus", [2, 3, 4, 5])
def test_ack_early_ends_in_a_foreign_fetch_between_p1_and_p6(n_cpus):
    flow, _ = build("jump-table-ack-early", n_cpus)
    result = check(flow, n_cpus)
    number, mine = victim(result)
    assert result.counterexample[-1].op.startswith(FOREIGN)
    assert (f"AP {number}", "clears its bit in cpus_stop_mask") in mine
    before = replayed(flow, n_cpus, result)[-2]
    assert before.at(AP, *WINDOW)[0, number - 1]


@pytest.mark.parametrize("label", WINDOW)
def test_only_ack_early_lets_the_new_kernel_run_while_an_ap_is_between_p1_and_p6(label):
    late = Property(
        "left in time",
        "always",
        lambda s: ~s.at(AP, label).any(axis=1) | (s.g.kernel == family.Kernel.OLD),
    )
    for short in ("jump-table", "jump-table-ack-in-page"):
        assert "left in time" not in checked(short, 3, properties=[late]).violations
    assert "left in time" in checked("jump-table-ack-early", 3, properties=[late]).violations


@pytest.mark.parametrize("n_cpus", [2, 3, 4, 5])
def test_ack_in_page_ends_with_an_ap_held_for_ever_whose_startup_was_lost(n_cpus):
    flow, _ = build("jump-table-ack-in-page", n_cpus)
    result = check(flow, n_cpus)
    end = replayed(flow, n_cpus, result)[-1]
    held = end.at(AP, "held")[0] & (end.cpu.mp_state[0] == lib.GHCB_MP_AP_RESET_HOLD)
    assert held.any() and end.g.given_up[0] == held.sum()
    assert not end.cpu.sipi_pending[0].any()
    number = int(np.flatnonzero(held)[0]) + 1
    mine = [s for s in story(result) if s[0].endswith(f" {number}")]
    startup = mine.index((f"vCPU thread {number}", "STARTUP reaches the vCPU"))
    asked = mine.index((f"AP {number}", "P8 VMGEXIT: AP reset hold by MSR"))
    assert startup < asked
    assert result.violations[DEADLOCK] == result.violations[result.property]


@pytest.mark.parametrize("n_cpus", [2, 5])
def test_an_nmi_in_the_park_code_is_a_shutdown(n_cpus):
    flow, _ = build("jump-table-nmi", n_cpus)
    result = check(flow, n_cpus)
    assert (BOOT, "1 s is over: NMI to the CPUs still in the mask") in story(result)
    assert result.counterexample[-1].op == "NMI while the IDT is a real-mode one: shutdown"
    end = replayed(flow, n_cpus, result)[-1]
    assert end.vm.event[0] == lib.GHCB_EVENT_SHUTDOWN
    assert (end.cpu.foul[0] == 0).all()
    assert (end.cpu.fate[0] == Fate.TRIPLE_FAULT).sum() == 1


@pytest.mark.parametrize("n_cpus", [2, 5])
def test_mailbox_without_test_ends_before_the_ap_has_jumped_to_the_firmware(n_cpus):
    flow, _ = build("mailbox-no-test", n_cpus)
    result = check(flow, n_cpus)
    number, mine = victim(result)
    assert result.counterexample[-1].op.startswith(FOREIGN)
    assert (f"AP {number}", "clears its bit in cpus_stop_mask") in mine
    assert replayed(flow, n_cpus, result)[-2].at(AP, "leave")[0, number - 1]


@pytest.mark.parametrize("n_cpus", [2, 5])
def test_the_stop_window_lies_between_report_and_hlt(n_cpus):
    result = checked("legacy-svm-stop-window", n_cpus)
    number, mine = victim(result)
    assert result.counterexample[-1].op.startswith(FOREIGN)
    assert mine[-1] == (f"AP {number}", "clears its bit in cpus_stop_mask")
    assert (f"AP {number}", "HLT") not in mine


@pytest.mark.parametrize("short", FAILING)
def test_the_report_of_a_failing_scenario_says_the_reason(short):
    scenario = find(f"sev-es-kexec/{short}")
    flow, _ = build(short, 4)
    text = check_text(scenario, flow, check(flow, 4))
    last = text.splitlines()[-2]
    assert last.startswith(f"verdict: {scenario.expected}, as expected: ")
    assert last.endswith(f"does not hold: {scenario.story}.")
    assert f"source: {scenario.source}" in text


# -- refused -----------------------------------------------------------------------------------


def untouched(flow: Flow, n_cpus: int) -> Property:
    """Every word of every other CPU is what it was in the beginning."""
    first = States.of_record(flow.compile(n_cpus), flow.compile(n_cpus).initial_record())
    words = [f.name.split(".", 1)[1] for f in flow.cpu]

    def holds(s: States) -> np.ndarray:
        same = [(getattr(s.cpu, w) == getattr(first.cpu, w)).all(axis=1) for w in words]
        return np.logical_and.reduce(same)

    return Property("no word of any CPU changes", "always", holds)


@pytest.mark.parametrize("n_cpus", [2, 5, 64])
@pytest.mark.parametrize("short", REFUSED)
def test_a_refused_kexec_changes_no_word_of_any_cpu(short, n_cpus):
    flow, machine = build(short, n_cpus)
    result = check(flow, n_cpus, properties=[untouched(flow, n_cpus)])
    assert result.verdict == "holds", result.violations
    ran = run(flow, machine)
    compiled = flow.compile(n_cpus)
    n_global = compiled.program.n_global
    assert (ran.record[n_global:] == compiled.initial_record()[n_global:]).all()
    end = States.of_record(compiled, ran.record)
    assert end.g.kexec_error[0] == errno.ENOSYS and end.g.kernel[0] == family.Kernel.OLD
    assert ran.cpus["online"] == n_cpus and ran.memory["taken_from_old_kernel"] == 0


def test_a_kexec_that_is_not_refused_changes_words_of_cpus():
    flow, _ = build("jump-table", 3)
    result = check(flow, 3, properties=[untouched(flow, 3)])
    assert "no word of any CPU changes" in result.violations


TABLES = {"none": 0, "unaligned": 0x7FF6_F010, "at 4 GiB": 1 << 32, "top": (1 << 64) - 0x1000}


@pytest.mark.parametrize("title", TABLES)
def test_a_jump_table_that_cannot_be_used_is_a_refused_kexec(title):
    flow, _ = build("jump-table", 3)
    boot = flow.agents[0]
    (tells,) = boot.labels["firmware"]
    address = flow.boot.sw_exit_info_2
    do = [put(address, TABLES[title]) if e.target is address else e for e in tells.do]
    boot.labels["firmware"] = [replace(tells, do=tuple(do))]
    told = Property(
        "refused", "end", lambda s: s.at(BOOT, "refused") & (s.g.kexec_error == errno.ENOSYS)
    )
    result = check(flow, 3, properties=[told, untouched(flow, 3)])
    assert set(result.violations) == {family.ALL_UP}  # the flow's own wish, not granted


@pytest.mark.parametrize("page", [0x1000, (1 << 32) - 0x1000])
def test_a_jump_table_page_below_4_gib_is_used(page):
    flow, _ = build("jump-table", 2)
    boot = flow.agents[0]
    (tells,) = boot.labels["firmware"]
    address = flow.boot.sw_exit_info_2
    do = [put(address, page) if e.target is address else e for e in tells.do]
    boot.labels["firmware"] = [replace(tells, do=tuple(do))]
    assert check(flow, 2).verdict == "holds"


@pytest.mark.parametrize(("host", "agreed"), [(1, 1), (2, 2), (3, 2), (0xFFFF, 2)])
def test_the_version_agreed_on_is_at_most_what_both_sides_know(host, agreed):
    flow, machine = build("opt-out", 2)
    flow.profile = Profile(max_version=host)
    record = run(flow, machine).record
    assert States.of_record(flow.compile(2), record).g.version[0] == agreed


def test_a_spurious_wake_releases_no_ap_unless_p9_forgets_to_look():
    """P9 has no work to do in the flow itself: nothing there wakes a held vCPU but STARTUP."""
    for forgetful in (False, True):
        flow, _ = build("jump-table", 2)
        cpu = flow.cpu
        ap = next(a for a in flow.agents if a.name == AP)
        (i,) = [i for i, o in enumerate(ap.labels["held"]) if o.text.startswith("P9-P15")]
        if forgetful:
            ap.labels["held"][i] = without_test("cpu.msr")(flow, ap.labels["held"][i])
        whim = flow.agent("whim of the hypervisor", per_cpu=True)
        wake = [put(cpu.mp_state, lib.GHCB_MP_RUNNABLE), put(cpu.reset_hold, lib.GHCB_HOLD_NONE)]
        held = cpu.mp_state == lib.GHCB_MP_AP_RESET_HOLD
        whim.at("any time", op("wakes the vCPU", when=[held], do=wake, to="."), ends=True)
        broken = check(flow, 2).violations
        assert (family.NO_FOREIGN_FETCH in broken) == forgetful


# -- messages ----------------------------------------------------------------------------------

SETS, GETS = lib.GHCB_AP_JUMP_TABLE_SET, lib.GHCB_AP_JUMP_TABLE_GET
NOTHING = {"information": 0, "set": 0, "get": 0, "msr hold": 0, "nae hold": 0}
HANDED_OVER = {"information": 2, "set": 1, "get": 2}  # a second time in the new kernel
MESSAGES: dict[str, Callable[[int], dict[str, int]]] = {
    "legacy-svm": lambda n: {},
    "protocol-v1": lambda n: {"information": 1, "set": 1},
    "opt-out": lambda n: {"information": 1, "set": 1},
    "jump-table-above-4g": lambda n: {"information": 1, "set": 1, "get": 1},
    "jump-table": lambda n: HANDED_OVER | {"msr hold": n - 1},
    "jump-table-ack-in-page-retry": lambda n: HANDED_OVER | {"msr hold": n - 1},
    "mailbox": lambda n: {"information": 2, "set": 1},
    "kdump-one-cpu": lambda n: {"information": 1, "set": 1},
}


def messages(trace) -> dict[str, int]:
    """Count by hand, from the raw fields: independent of ``pysev.events``."""
    events = [e for e in trace if e["call"] == lib.GHCB_CALL_VMGEXIT]
    by_msr = [int(e["msr"]) for e in events if int(e["msr"]) & 0xFFF]
    by_page = [e for e in events if not int(e["msr"]) & 0xFFF]
    table = [e for e in by_page if e["sw_exit_code"] == lib.GHCB_NAE_AP_JUMP_TABLE]
    counted = {
        "information": by_msr.count(0x002),
        "set": sum(int(e["sw_exit_info_1"]) == SETS for e in table),
        "get": sum(int(e["sw_exit_info_1"]) == GETS for e in table),
        "msr hold": by_msr.count(0x006),
        "nae hold": sum(int(e["sw_exit_code"]) == lib.GHCB_NAE_AP_RESET_HOLD for e in by_page),
    }
    assert sum(counted.values()) == len(events), "a message that nobody expected"
    return counted


@pytest.mark.parametrize("n_cpus", [1, 2, 5, 64, 512])
@pytest.mark.parametrize("short", HOLDING)
def test_a_run_of_a_holding_scenario_sends_exactly_these_messages(short, n_cpus):
    flow, machine = build(short, n_cpus)
    result = run(flow, machine, seed=n_cpus)
    assert result.verdict == "holds"
    assert messages(result.trace) == NOTHING | MESSAGES[short](n_cpus)
    assert sum(result.vmgexits.values()) == sum(MESSAGES[short](n_cpus).values())


@pytest.mark.parametrize("seed", range(5))
def test_a_run_gets_the_address_that_firmware_has_set(seed):
    flow, machine = build("jump-table", 4)
    trace = run(flow, machine, seed).trace
    asked = trace[trace["sw_exit_code"] == lib.GHCB_NAE_AP_JUMP_TABLE]
    asked = asked[asked["msr"] & np.uint64(0xFFF) == 0]
    kinds = [int(e["sw_exit_info_1"]) for e in asked]
    assert kinds == [SETS, GETS, GETS]
    assert int(asked[0]["sw_exit_info_2"]) == machine.jump_table_gpa
    assert [int(e["info_2_after"]) for e in asked[1:]] == [machine.jump_table_gpa] * 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("short", ["jump-table", "mailbox", "legacy-svm"])
def test_a_run_of_a_hand_over_leaves_every_cpu_online(short, seed):
    flow, machine = build(short, 33)
    result = run(flow, machine, seed)
    assert result.cpus == {"total": 33, "online": 33} | dict.fromkeys(
        ("lost", "triple_fault", "parked", "foreign_code"), 0
    )


@pytest.mark.parametrize("short", ["legacy-sev-es", "park-old-memory"])
def test_a_run_of_a_lost_hand_over_counts_each_cpu_once(short):
    for seed in range(5):
        flow, machine = build(short, 16)
        result = run(flow, machine, seed)
        kinds = {k: n for k, n in result.cpus.items() if k != "total"}
        assert sum(kinds.values()) == result.cpus["total"] == 16
        assert result.verdict == "violated" and result.cpus["online"] < 16


def test_the_same_seed_gives_the_same_run_and_another_one_another_order():
    flow, machine = build("jump-table", 16)
    runs = [run(flow, machine, seed) for seed in (7, 7, 8)]
    assert (runs[0].trace == runs[1].trace).all() and (runs[0].record == runs[1].record).all()
    assert (runs[0].trace["cpu"] != runs[2].trace["cpu"]).any()


# -- what the properties notice ----------------------------------------------------------------


@dataclass(frozen=True)
class Mutation:
    """One operation of a holding scenario, changed; ``broken`` is what must be noticed."""

    short: str
    agent: str
    label: str
    text: str
    change: Callable[[Flow, Op], Op]
    broken: str
    title: str

    def __str__(self) -> str:
        return f"{self.short}: {self.title}"


def mutated(m: Mutation, n_cpus: int) -> Flow:
    flow, _ = build(m.short, n_cpus)
    agent = next(a for a in flow.agents if a.name == m.agent)
    ops = agent.labels[m.label]
    found = [i for i, o in enumerate(ops) if o.text.startswith(m.text)]
    assert len(found) == 1, f"{m.text!r} stands {len(found)} times at {m.label!r}"
    before = ops[found[0]]
    ops[found[0]] = after = m.change(flow, before)
    shape = [(len(o.when), len(o.do), o.to) for o in (before, after)]
    assert shape[0] != shape[1], "the mutation changes nothing"
    return flow


def without_test(word: str) -> Callable[[Flow, Op], Op]:
    """Drop the guards on one word."""
    return lambda flow, o: replace(o, when=tuple(t for t in o.when if t.field.name != word))


def touches(e: Effect, word: str) -> bool:
    inner = any(touches(i, word) for i in (*e.body, *e.otherwise))
    return inner or (e.target is not None and e.target.name == word)


def without_effect(word: str) -> Callable[[Flow, Op], Op]:
    """Drop the effects on one word, whole blocks of them included."""
    return lambda flow, o: replace(o, do=tuple(e for e in o.do if not touches(e, word)))


def calls(e: Effect, function: int) -> bool:
    inner = any(calls(i, function) for i in (*e.body, *e.otherwise))
    return inner or (e.opcode == lib.GHCB_OP_CALL and e.value == function)


def without_call(function: int) -> Callable[[Flow, Op], Op]:
    return lambda flow, o: replace(o, do=tuple(e for e in o.do if not calls(e, function)))


def also(make: Callable[[Flow], Effect]) -> Callable[[Flow, Op], Op]:
    return lambda flow, o: replace(o, do=(*o.do, make(flow)))


def never(flow: Flow, o: Op) -> Op:
    return replace(o, when=(*o.when, flow.vm.event == lib.GHCB_EVENT_SHUTDOWN))


def goes_to(label: str) -> Callable[[Flow, Op], Op]:
    return lambda flow, o: replace(o, to=label)


STOPPED = "all other CPUs have reported"
MUTATIONS = [
    # the design with the jump table
    Mutation(
        "jump-table",
        AP,
        "hold",
        "P8",
        without_effect("cpu.in_mask"),
        DEADLOCK,
        "the AP never clears its bit",
    ),
    Mutation(
        "jump-table",
        AP,
        "hold",
        "P8",
        without_call(lib.GHCB_CALL_VMGEXIT),
        LIVELOCK,
        "the AP does not ask to be held",
    ),
    Mutation(
        "jump-table",
        AP,
        "held",
        "P9-P15",
        without_effect("cpu.vector"),
        family.NO_FOREIGN_FETCH,
        "the AP does not read the vector from the page",
    ),
    Mutation(
        "jump-table",
        AP,
        "trampoline",
        "comes up",
        also(lambda f: add(f.cpu.times_up, 1)),
        family.ONCE,
        "the AP comes up twice",
    ),
    Mutation(
        "jump-table",
        BOOT,
        "vector",
        "",
        without_effect("g.start_vector"),
        family.NO_FOREIGN_FETCH,
        "the new kernel does not write its start vector",
    ),
    Mutation(
        "jump-table",
        BOOT,
        "vector",
        "",
        also(lambda f: put(f.g.start_vector, 0x1234_5678)),
        family.NO_FOREIGN_FETCH,
        "the new kernel writes a wrong start vector",
    ),
    Mutation(
        "jump-table",
        BOOT,
        "stopping",
        STOPPED,
        without_test("g.stopping"),
        family.NO_FOREIGN_FETCH,
        "the boot CPU does not wait for the mask",
    ),
    Mutation(
        "jump-table",
        BOOT,
        "kexec",
        "kexec -e",
        without_effect("other.ipi"),
        DEADLOCK,
        "no REBOOT_VECTOR is sent",
    ),
    Mutation(
        "jump-table",
        BOOT,
        "firmware",
        "",
        without_call(lib.GHCB_CALL_VMGEXIT),
        family.ALL_UP,
        "firmware does not set the table",
    ),
    Mutation(
        "jump-table",
        BOOT,
        "install",
        "writes",
        without_effect("g.park_code"),
        family.ALL_UP,
        "the park code is not written",
    ),
    Mutation(
        "jump-table",
        BOOT,
        "load",
        "kexec_file_load: -ENOSYS",
        without_test("g.park_code"),
        family.ALL_UP,
        "loading may be refused although there is park code",
    ),
    Mutation(
        "jump-table",
        BOOT,
        "next",
        "INIT to a CPU",
        without_call(lib.GHCB_CALL_SEND_INIT),
        family.ALL_UP,
        "no INIT before STARTUP",
    ),
    Mutation(
        "jump-table",
        BOOT,
        "next",
        "INIT to a CPU",
        without_test("other.bring_up"),
        family.ALL_UP,
        "a CPU that is up is tried again, another one never",
    ),
    Mutation(
        "jump-table",
        BOOT,
        "next",
        "smp: all CPUs tried",
        without_test("g.untried"),
        family.ALL_UP,
        "the new kernel does not try every CPU",
    ),
    Mutation(
        "jump-table",
        THREAD,
        "deliver",
        "STARTUP",
        without_call(lib.GHCB_CALL_SIPI),
        LIVELOCK,
        "the hypervisor delivers no STARTUP",
    ),
    # without SEV-ES
    Mutation(
        "legacy-svm",
        AP,
        "halt",
        "HLT",
        without_effect("cpu.in_mask"),
        DEADLOCK,
        "the AP never clears its bit",
    ),
    Mutation(
        "legacy-svm",
        AP,
        "halt",
        "HLT",
        without_call(lib.GHCB_CALL_HLT),
        family.NO_FOREIGN_FETCH,
        "the AP runs on instead of HLT",
    ),
    Mutation(
        "legacy-svm",
        BOOT,
        "stopping",
        STOPPED,
        without_test("g.stopping"),
        family.NO_FOREIGN_FETCH,
        "the boot CPU does not wait for the mask",
    ),
    Mutation(
        "legacy-svm",
        THREAD,
        "deliver",
        "STARTUP",
        without_effect("cpu.vector"),
        family.NO_FOREIGN_FETCH,
        "STARTUP does not reset the vCPU",
    ),
    Mutation(
        "legacy-svm",
        BOOT,
        "next",
        "INIT to a CPU",
        without_call(lib.GHCB_CALL_SEND_INIT),
        family.ALL_UP,
        "no INIT before STARTUP",
    ),
    Mutation(
        "legacy-svm",
        BOOT,
        "startup",
        "STARTUP",
        without_effect("other.sipi_vector"),
        family.NO_FOREIGN_FETCH,
        "STARTUP carries no vector",
    ),
    # hand-over without the hypervisor
    Mutation(
        "mailbox",
        AP,
        "report",
        "clears",
        without_effect("cpu.in_mask"),
        DEADLOCK,
        "the AP never clears its bit",
    ),
    Mutation(
        "mailbox",
        AP,
        "mailbox",
        "mailbox: TEST",
        without_test("cpu.addressed"),
        family.NO_FOREIGN_FETCH,
        "any AP answers a TEST",
    ),
    Mutation(
        "mailbox",
        AP,
        "mailbox",
        "mailbox: WAKEUP",
        without_test("cpu.addressed"),
        DEADLOCK,
        "any AP takes a WAKEUP",
    ),
    Mutation(
        "mailbox",
        AP,
        "mailbox",
        "mailbox: TEST",
        without_effect("g.command"),
        DEADLOCK,
        "a TEST is not answered",
    ),
    Mutation(
        "mailbox",
        AP,
        "mailbox",
        "mailbox: WAKEUP",
        without_effect("cpu.vector"),
        family.NO_FOREIGN_FETCH,
        "the AP does not read the vector",
    ),
    Mutation(
        "mailbox",
        BOOT,
        "vector",
        "",
        without_effect("g.start_vector"),
        family.NO_FOREIGN_FETCH,
        "the new kernel does not write its start vector",
    ),
    Mutation(
        "mailbox",
        BOOT,
        "stopped",
        "local APIC off",
        goes_to("relocate"),
        family.NO_FOREIGN_FETCH,
        "no TEST before relocating",
    ),
    Mutation(
        "mailbox",
        BOOT,
        "tested",
        "mailbox: answered",
        without_test("g.command"),
        family.NO_FOREIGN_FETCH,
        "the answer to TEST is not awaited",
    ),
    Mutation(
        "mailbox",
        BOOT,
        "test",
        "all other CPUs",
        without_test("g.untested"),
        family.NO_FOREIGN_FETCH,
        "not every CPU is asked",
    ),
    Mutation(
        "mailbox",
        BOOT,
        "next",
        "smp: all CPUs tried",
        without_test("g.untried"),
        family.ALL_UP,
        "the new kernel does not try every CPU",
    ),
    # a crash
    Mutation(
        "kdump-one-cpu",
        BOOT,
        "panic",
        "panic",
        without_call(lib.GHCB_CALL_NMI),
        DEADLOCK,
        "no NMI is sent",
    ),
    Mutation(
        "kdump-one-cpu",
        AP,
        "save",
        "saves",
        without_effect("cpu.note"),
        family.NOTES,
        "an AP counts down without having saved its registers",
    ),
    Mutation(
        "jump-table",
        BOOT,
        "next",
        "smp: all CPUs tried",
        without_test("g.untried"),
        family.ALL_UP,
        "the new kernel stops before its book is closed",
    ),
    Mutation(
        "jump-table-ack-in-page-retry",
        BOOT,
        "again",
        "INIT again",
        without_call(lib.GHCB_CALL_SEND_INIT),
        LIVELOCK,
        "STARTUP is sent again without an INIT before it",
    ),
    Mutation(
        "kdump-one-cpu",
        AP,
        "halt",
        "HLT",
        lambda flow, o: replace(o, do=(), to="trampoline"),
        family.NO_FOREIGN_FETCH,
        "an AP does not stay where the NMI met it",
    ),
    Mutation(
        "kdump-one-cpu",
        BOOT,
        "shoot-down",
        "1 s",
        never,
        "sometimes: an AP still runs under the crash kernel",
        "the shoot-down has no timeout",
    ),
    # refused
    Mutation(
        "protocol-v1",
        BOOT,
        "jump table",
        "VMGEXIT",
        without_test("g.version"),
        family.UNDISTURBED,
        "the version is not looked at",
    ),
    Mutation(
        "jump-table-above-4g",
        BOOT,
        "install",
        "writes",
        without_test("g.table"),
        family.UNDISTURBED,
        "the address is not looked at",
    ),
    *(
        Mutation(
            short,
            BOOT,
            "load",
            "kexec_file_load: -ENOSYS",
            without_effect("g.kexec_error"),
            family.REFUSED,
            "nobody is told",
        )
        for short in REFUSED
    ),
    *(
        Mutation(
            short,
            BOOT,
            "load",
            "kexec_file_load: -ENOSYS",
            also(lambda f: each(put(f.other.ipi, 1))),
            family.UNDISTURBED,
            "the other CPUs are stopped before the refusal",
        )
        for short in REFUSED
    ),
]


@pytest.mark.parametrize("m", MUTATIONS, ids=str)
def test_a_knocked_out_step_is_noticed(m):
    result = check(mutated(m, 3), 3)
    assert result.verdict != "holds"
    assert m.broken in {result.property, *result.violations}

"""The family ``host-cache-flush``: verdicts, the reasons behind them, and what it notices.

Each failing scenario must fail for the reason that its source gives, in the steps of its
counterexample; each holding one must stop holding when one of its steps is taken out.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ghcbcore._cffi import lib
from pysev import (
    Machine,
    MemoryMap,
    Property,
    States,
    all_scenarios,
    check,
    costs,
    find,
    lines,
    run,
)
from pysev.checking import DEADLOCK, LIVELOCK, CheckResult, evaluate
from pysev.flow import Flow, Op, put
from pysev.flows.host_cache_variant import KEY, SME, Bytes, Kernel
from pysev.report import check_text, is_expected
from pysev.scenarios import host_cache_flush as family

FAMILY = "host-cache-flush/"
NAMES = [s.name.removeprefix(FAMILY) for s in all_scenarios() if s.name.startswith(FAMILY)]
HOLDING = [n for n in NAMES if find(FAMILY + n).expected == "holds"]
FAILING = [n for n in NAMES if n not in HOLDING]
CRASHES = [n for n in NAMES if n.startswith("crash")]
CORRUPT = [n for n in FAILING if find(FAMILY + n).because == family.INTACT]
FAULTS = [n for n in FAILING if find(FAMILY + n).because == family.NO_FAULT]
BOOT, CPU = "boot CPU", "CPU"
ASKED_FOR = ("none", "remote-only", "last-only", "every-cpu", "too-early", "guest")
ASKED_FOR += ("mainline-flag", "after-load-segments")


def build(short: str, n_cpus: int) -> Flow:
    return find(FAMILY + short).build(Machine.of(n_cpus))


def checked(short: str, n_cpus: int, **options) -> CheckResult:
    return check(build(short, n_cpus), n_cpus, **options)


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


@pytest.mark.parametrize("n_cpus", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("short", NAMES)
def test_every_scenario_has_its_verdict_for_its_reason(short, n_cpus):
    scenario = find(FAMILY + short)
    result = checked(short, n_cpus)
    assert result.complete
    assert is_expected(scenario, result), (result.verdict, result.property, result.violations)
    if scenario.expected_with(n_cpus) == "holds":
        assert all(result.reached.values())
    else:
        assert set(result.violations) <= {scenario.because, DEADLOCK} and result.counterexample
    assert result.states < 40_000


def test_the_family_has_every_scenario_that_was_asked_for():
    wanted = {f"{name}-{rules}" for name in ASKED_FOR for rules in ("sme", "tdx")}
    assert wanted | {"none-sme+coherent"} <= set(NAMES)
    for short in NAMES:
        scenario = find(FAMILY + short)
        assert scenario.source and scenario.story and scenario.summary and scenario.assumes
        assert bool(scenario.because) == (scenario.expected != "holds")
        if scenario.expected == "holds":
            assert any(p.kind in ("always", "end") for p in build(short, 2).properties)


@pytest.mark.parametrize("short", NAMES)
def test_the_verdict_does_not_depend_on_symmetry(short):
    for n_cpus in (2, 3):
        alike = checked(short, n_cpus)
        each_its_own = checked(short, n_cpus, symmetric=False)
        assert each_its_own.complete and alike.verdict == each_its_own.verdict
        assert alike.violations == each_its_own.violations
        assert alike.states <= each_its_own.states


@pytest.mark.parametrize("short", FAILING)
def test_a_counterexample_can_be_replayed_and_ends_where_its_property_breaks(short):
    flow = build(short, 4)
    result = check(flow, 4)
    states = replayed(flow, 4, result)
    if result.property == DEADLOCK:
        assert not states[-1].at_rest()[0]
        return
    broken = next(p for p in flow.properties if p.name == result.property)
    assert not evaluate(broken, states[-1])[0]
    assert all(evaluate(broken, s)[0] for s in states[:-1])


@pytest.mark.parametrize("short", FAILING)
def test_the_report_of_a_failing_scenario_says_the_reason(short):
    scenario = find(FAMILY + short)
    flow = build(short, 4)
    text = check_text(scenario, flow, check(flow, 4))
    last = text.splitlines()[-2]
    assert last.startswith(f"verdict: {scenario.expected}, as expected: ")
    assert last.endswith(f"does not hold: {scenario.story}.")
    assert f"source: {scenario.source}" in text


# -- the reasons -------------------------------------------------------------------------------


def story(result: CheckResult) -> list[tuple[str, str]]:
    return [(step.agent, step.op) for step in result.counterexample]


def last_of(result: CheckResult, text: str, agent: str = "") -> int:
    """Index of the last step whose text has ``text`` in it, -1 if there is none."""
    found = [i for i, (a, o) in enumerate(story(result)) if text in o and agent in ("", a)]
    return found[-1] if found else -1


def overwriter(short: str, result: CheckResult) -> str:
    """Whose cache wrote the old kernel's line back over the new one's: its CPU's agent."""
    key = "KeyID" if short.endswith("tdx") else "C=1"
    at = last_of(result, f"writes back the line ({key})")
    assert at > last_of(result, "copies the new kernel over the line")
    agent = story(result)[at][0]
    return BOOT if agent == "boot CPU's cache" else agent.removeprefix("cache of ")


@pytest.mark.parametrize("n_cpus", [2, 4])
@pytest.mark.parametrize("short", CORRUPT)
def test_what_the_new_kernel_reads_is_noise(short, n_cpus):
    flow = build(short, n_cpus)
    states = replayed(flow, n_cpus, check(flow, n_cpus))
    assert int(states[-1].g.read[0]) == Bytes.NOISE
    assert int(states[-1].g.kernel[0]) == Kernel.NEW


@pytest.mark.parametrize("n_cpus", [1, 2, 4])
@pytest.mark.parametrize("short", ["remote-only-sme", "remote-only-tdx"])
def test_without_a_flush_of_the_last_cpu_it_is_its_own_line_that_comes_back(short, n_cpus):
    result = checked(short, n_cpus)
    assert overwriter(short, result) == BOOT
    assert last_of(result, "WBINVD", BOOT) == -1


@pytest.mark.parametrize("n_cpus", [2, 4])
@pytest.mark.parametrize("short", ["last-only-sme", "last-only-tdx"])
def test_without_a_flush_of_the_others_it_is_a_halted_cpus_line_that_comes_back(short, n_cpus):
    result = checked(short, n_cpus)
    guilty = overwriter(short, result)
    assert guilty.startswith("CPU ")
    assert (guilty, "no WBINVD") in story(result)
    flushed = last_of(result, "relocate_kernel: identity page tables, WBINVD", BOOT)
    assert flushed > last_of(result, "HLT", guilty) > 0


def test_with_one_cpu_a_flush_of_the_last_is_a_flush_of_all():
    for short in ("last-only-sme", "last-only-tdx"):
        assert checked(short, 1).verdict == "holds"
        assert find(FAMILY + short).expected_with(1) == "holds"


@pytest.mark.parametrize("n_cpus", [1, 2, 4])
@pytest.mark.parametrize("short", ["too-early-sme", "too-early-tdx"])
def test_too_early_ends_with_a_write_behind_the_writers_own_flush(short, n_cpus):
    flow = build(short, n_cpus)
    result = check(flow, n_cpus)
    guilty = overwriter(short, result)
    text = "wbinvd_on_all_cpus: WBINVD"
    wrote = max(last_of(result, "writes the line", guilty), 0)
    assert -1 < last_of(result, text, guilty) < wrote


@pytest.mark.parametrize("short", FAULTS)
def test_a_fault_without_idt_is_the_boot_cpus_and_the_last_thing_that_happens(short):
    for n_cpus in (1, 3):
        flow = build(short, n_cpus)
        result = check(flow, n_cpus)
        assert story(result)[-1][0] == BOOT
        assert "no IDT: triple fault" in story(result)[-1][1]
        assert last_of(result, "GDT and IDT gone") == len(result.counterexample) - 2
        end = replayed(flow, n_cpus, result)[-1]
        assert end.vm.event[0] == lib.GHCB_EVENT_SHUTDOWN and end.g.kernel[0] == Kernel.OLD


def test_each_kind_of_fault_is_named():
    texts = {short: story(checked(short, 2))[-1][1] for short in FAULTS}
    assert "WBINVD: #VC" in texts["guest-sme"] and "WBINVD: #VE" in texts["guest-tdx"]
    for rules in ("sme", "tdx"):
        assert "call depth tracking" in texts[f"after-load-segments-{rules}"]
    assert "reads cache_state_incoherent" in texts["flag-after-load-segments-sme"]


def test_a_guests_other_cpus_survive_their_wbinvd():
    """There the IDT is alive: #VC, VMGEXIT, and the host goes on."""
    result = run(build("guest-sme", 5), Machine.of(5), 1)
    asked = [e for e in result.trace if e["call"] == lib.GHCB_CALL_VMGEXIT]
    assert [int(e["sw_exit_code"]) for e in asked] == [lib.GHCB_NAE_WBINVD] * 4
    assert sorted(int(e["cpu"]) for e in asked) == [1, 2, 3, 4]
    assert {int(e["info_1_after"]) for e in asked} == {0}
    assert result.cpus["halted"] == 4


@pytest.mark.parametrize("n_cpus", [2, 4])
def test_the_online_mask_lets_the_new_kernel_run_beside_a_cpu_that_still_flushes(n_cpus):
    flow = build("online-mask-sme", n_cpus)
    result = check(flow, n_cpus)
    states = replayed(flow, n_cpus, result)
    copied = last_of(result, "copies the new kernel over the line", BOOT)
    flushing = states[copied].at(CPU, "flush")[0]
    number = int(np.flatnonzero(flushing)[0]) + 1
    mine = (f"CPU {number}", f"cache of CPU {number}")
    assert (mine[0], "goes offline") in story(result)[:copied]
    later = [o for a, o in story(result)[copied:] if a in mine]
    assert later and (later[0] == "WBINVD" or later[0].startswith("writes back the line (C=1)"))


def test_the_line_of_the_mask_is_dirtied_by_the_report_itself():
    result = checked("stop-mask-left-sme", 3)
    guilty = overwriter("stop-mask-left-sme", result)
    reported = last_of(result, "clears its bit in cpus_stop_mask", guilty)
    assert -1 < last_of(result, "WBINVD", guilty) < reported
    assert "line_copies not cached -> OLD (C=1), dirty" in result.counterexample[reported].detail


def test_a_write_behind_the_flush_comes_back():
    result = checked("hlt-loop-writes-sme", 3)
    guilty = overwriter("hlt-loop-writes-sme", result)
    assert -1 < last_of(result, "WBINVD", guilty) < last_of(result, "writes its stack", guilty)


def test_a_cpu_hangs_in_its_wbinvd_and_the_last_cpu_waits_for_it():
    flow = build("nmi-in-wbinvd-sme", 3)
    result = check(flow, 3)
    assert "NMI in the middle of WBINVD" in story(result)[-1][1]
    end = replayed(flow, 3, result)[-1]
    assert end.at(CPU, "hung").any() and end.at(BOOT, "stopping by NMI").all()
    assert end.g.kernel[0] == Kernel.OLD
    early = Property("never hung", "always", lambda s: ~s.at(CPU, "hung").any(axis=1))
    assert checked("early-flush-tdx", 4, properties=[early]).verdict == "holds"


def test_early_flush_leaves_no_flush_for_the_time_in_which_an_nmi_may_come():
    none = Property("no WBINVD", "always", lambda s: ~s.at(CPU, "in WBINVD").any(axis=1))
    assert checked("early-flush-tdx", 4, properties=[none]).verdict == "holds"
    assert "no WBINVD" in checked("nmi-in-wbinvd-sme", 4, properties=[none]).violations


@pytest.mark.parametrize("n_cpus", [2, 4])
def test_a_flag_that_is_set_too_late_is_not_seen(n_cpus):
    result = checked("flag-after-seamcall-tdx", n_cpus)
    guilty = overwriter("flag-after-seamcall-tdx", result)
    mine = [o for a, o in story(result) if a == guilty]
    assert [m.split(":")[0] for m in mine[-4:-1]] == [
        "SEAMCALL",
        "REBOOT_VECTOR",
        "cache_state_incoherent is clear",
    ]


def test_a_partial_write_is_a_machine_check_only_over_private_memory():
    result = checked("partial-write-tdx", 2)
    assert any("poisoned" in o and a == BOOT for a, o in story(result)[:-1])
    assert last_of(result, "SEAMCALL") >= 0
    at = last_of(result, "poisoned", BOOT)
    assert at == len(result.counterexample) - 1
    flow = build("partial-write-tdx", 2)
    for agent in flow.agents[:2]:  # without a SEAMCALL nothing is private
        for ops in agent.labels.values():
            ops[:] = [o for o in ops if not o.text.startswith("SEAMCALL")]
    assert family.NO_MACHINE_CHECK not in check(flow, 2).violations


@pytest.mark.parametrize("n_cpus", [1, 2, 5])
def test_a_refused_kexec_moves_nobody(n_cpus):
    flow = build("partial-write-refused-tdx", n_cpus)
    ran = run(flow, Machine.of(n_cpus), 3)
    end = States.of_record(flow.compile(n_cpus), ran.record)
    assert ran.verdict == "holds" and ran.cpus["online"] == n_cpus
    assert end.g.kexec_error[0] == errno.EOPNOTSUPP and end.g.kernel[0] == Kernel.OLD


# -- a crash -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_cpus", [2, 4])
def test_a_crash_kernel_loses_its_own_memory_to_a_dirty_line_of_its_reservation(n_cpus):
    result = checked("crash-reserved-dirty-sme", n_cpus)
    back = last_of(result, "writes back the reserved_line (C=1)")
    assert back > last_of(result, "the crash kernel writes its reserved_line (C=0)", BOOT) > 0
    assert story(result)[-1] == (BOOT, "the crash kernel reads its reserved_line")


def test_the_crash_kernel_runs_beside_a_cpu_that_has_not_flushed():
    result = checked("crash-flush-timeout-sme", 3)
    back = last_of(result, "writes back the reserved_line (C=1)")
    guilty = story(result)[back][0].removeprefix("cache of ")
    over = last_of(result, "1 s is over", BOOT)
    assert over > 0 and (guilty, "saves its registers, WBINVD") not in story(result)[:over]


def test_a_crash_kernel_without_encryption_dumps_noise_whatever_was_dirty():
    flow = build("crash-without-sme", 3)
    result = check(flow, 3)
    assert "/proc/vmcore: reads the old_line (C=0)" in story(result)[-1][1]
    assert int(replayed(flow, 3, result)[-1].g.dumped[0]) == Bytes.NOISE


# -- what is behind the verdicts ---------------------------------------------------------------

SAME_KEY = [n for n in HOLDING if n.startswith("guest")]
COPIED = [n for n in HOLDING if n not in (*SAME_KEY, *CRASHES, "partial-write-refused-tdx")]


def clean(flow: Flow, slot: int) -> Property:
    """No dirty line of the old kernel is left once the new one has been copied (C1)."""
    line = next(p for p in flow.places if p.name == "line")
    made = lines.Line(line, {slot: ""}, Bytes)

    def holds(s: States) -> np.ndarray:
        after = s.at(BOOT, "jump", "new kernel", "up")
        return ~(after & lines.is_dirty(s, made, slot).any(axis=1))

    return Property("no dirty alias survives", "always", holds)


@pytest.mark.parametrize("short", COPIED)
def test_no_dirty_alias_survives_into_the_new_kernels_memory(short):
    flow = build(short, 4)
    slot = KEY if short.endswith("tdx") else SME
    assert check(flow, 4, properties=[clean(flow, slot)]).verdict == "holds"


@pytest.mark.parametrize("short", [n for n in CORRUPT if n not in ("after-copy-sme", *CRASHES)])
def test_where_the_new_kernel_reads_noise_a_dirty_alias_survived(short):
    flow = build(short, 3)
    slot = KEY if short.endswith("tdx") else SME
    result = check(flow, 3, properties=[clean(flow, slot)])
    assert (
        result.violations["no dirty alias survives"] < checked(short, 3).violations[family.INTACT]
    )


@pytest.mark.parametrize("short", ["none-sme", "last-only-tdx", "too-early-sme"])
def test_it_is_the_choice_of_hardware_that_corrupts(short):
    """As long as no cache writes back by itself, the new kernel reads its own copy."""
    flow = build(short, 3)
    for agent in flow.agents:
        if "cache" in agent.name:
            agent.labels["any time"].clear()
    assert family.INTACT not in check(flow, 3).violations


def test_a_flag_is_set_wherever_a_line_can_be_dirty():
    """Merged for 6.18: a CPU with a dirty private line has its flag set until it has flushed."""
    flow = build("mainline-flag-tdx", 4)
    line = lines.Line(flow.places[0], {KEY: ""}, Bytes)

    def holds(s: States) -> np.ndarray:
        flags = np.concatenate(
            [s.g.cache_state_incoherent[:, None], s.cpu.cache_state_incoherent], axis=1
        )
        return (~lines.is_dirty(s, line, KEY) | (flags == 1)).all(axis=1)

    assert check(flow, 4, properties=[Property("marked", "always", holds)]).verdict == "holds"
    late = build("flag-after-seamcall-tdx", 4)
    line = lines.Line(late.places[0], {KEY: ""}, Bytes)
    assert "marked" in check(late, 4, properties=[Property("marked", "always", holds)]).violations


# -- runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_cpus", [1, 2, 33])
@pytest.mark.parametrize("short", HOLDING)
def test_a_run_of_a_holding_scenario_halts_every_other_cpu(short, n_cpus):
    for seed in range(3):
        result = run(build(short, n_cpus), Machine.of(n_cpus), seed)
        assert result.verdict == "holds", result.violations
        if short != "partial-write-refused-tdx":
            assert (result.cpus["online"], result.cpus["halted"]) == (1, n_cpus - 1)
        assert result.cpus["lost"] == 0


@pytest.mark.parametrize("short", ["none-sme", "last-only-sme", "after-copy-sme"])
def test_some_runs_of_a_failing_scenario_are_corrupt_and_some_are_not(short):
    verdicts = {run(build(short, 9), Machine.of(9), seed).verdict for seed in range(40)}
    assert verdicts == {"holds", "violated"}


@pytest.mark.parametrize("short", ["every-cpu-sme", "mainline-flag-tdx", "early-flush-tdx"])
def test_a_run_with_4096_cpus_and_16_tib_takes_seconds(short):
    """The limit is far above what it takes (a second): other things run on the machine."""
    machine = Machine.of(4096, MemoryMap.flat(16 << 40))
    result = run(find(FAMILY + short).build(machine), machine, 1)
    assert result.verdict == "holds" and result.cpus["halted"] == 4095
    assert result.seconds < 20


def test_many_slow_flushes_at_once_outlast_the_second_after_which_an_nmi_comes():
    """The argument for KVM's early flush, at the size at which it counts."""
    machine = Machine.of(4096, MemoryMap.flat(16 << 40))
    verdicts = {}
    for text in ("wbinvd=1ms", "wbinvd=10ms"):
        with costs.using(costs.parse([text])):
            for short in ("nmi-in-wbinvd-sme", "early-flush-tdx"):
                flow = find(FAMILY + short).build(machine)
                verdicts[short, text] = run(flow, machine, 2).verdict
    assert verdicts.pop(("nmi-in-wbinvd-sme", "wbinvd=10ms")) == "deadlock"
    assert set(verdicts.values()) == {"holds"}


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
    flow = build(m.short, n_cpus)
    agent = next(a for a in flow.agents if a.name == m.agent)
    ops = agent.labels[m.label]
    found = [i for i, o in enumerate(ops) if o.text.startswith(m.text)]
    assert len(found) == 1, f"{m.text!r} stands {len(found)} times at {m.label!r}"
    before = ops[found[0]]
    ops[found[0]] = after = m.change(flow, before)
    shape = [(len(o.when), len(o.do), o.to) for o in (before, after)]
    assert shape[0] != shape[1], "the mutation changes nothing"
    return flow


def without_reach(flow: Flow, o: Op) -> Op:
    return replace(o, do=tuple(e for e in o.do if e.reach is None))


def without_test(word: str) -> Callable[[Flow, Op], Op]:
    return lambda flow, o: replace(o, when=tuple(t for t in o.when if t.field.name != word))


def without_effect(word: str) -> Callable[[Flow, Op], Op]:
    def change(flow: Flow, o: Op) -> Op:
        return replace(o, do=tuple(e for e in o.do if e.target is None or e.target.name != word))

    return change


def without_each(flow: Flow, o: Op) -> Op:
    return replace(o, do=tuple(e for e in o.do if e.opcode != lib.GHCB_OP_EACH))


EMPTY = "cpus_stop_mask is empty"
FLUSH = "relocate_kernel: identity page tables, WBINVD"
MUTATIONS = [
    *(
        Mutation(short, agent, label, text, change, broken, title)
        for short in ("every-cpu-sme", "every-cpu-tdx", "mainline-flag-sme", "mainline-flag-tdx")
        for agent, label, text, change, broken, title in (
            (CPU, "flush", "WBINVD", without_reach, family.INTACT, "a CPU does not flush"),
            (BOOT, "relocate", FLUSH, without_reach, family.INTACT, "the last CPU does not"),
            (
                BOOT,
                "stopping",
                EMPTY,
                without_test("g.stopping"),
                family.INTACT,
                "the last CPU does not wait for the others",
            ),
            (
                BOOT,
                "kexec",
                "kexec",
                without_each,
                LIVELOCK if short == "mainline-flag-tdx" else DEADLOCK,  # SEAMCALLs for ever
                "nobody is told to stop",
            ),
            (CPU, "report", "", without_effect("g.stopping"), DEADLOCK, "nobody reports"),
            (
                CPU,
                "flush",
                "WBINVD",
                lambda flow, o: replace(o, do=(), to="halted"),
                DEADLOCK,
                "a CPU halts before it has reported",
            ),
            (
                BOOT,
                "copy",
                "copies",
                without_reach,
                family.INTACT,
                "nothing is copied",
            ),
        )
    ),
    Mutation(
        "mainline-flag-tdx",
        CPU,
        "old kernel",
        "sets",
        without_effect("cpu.cache_state_incoherent"),
        family.INTACT,
        "a SEAMCALL does not set the flag",
    ),
    Mutation(
        "mainline-flag-tdx",
        BOOT,
        "old kernel",
        "SEAMCALL",
        without_effect("g.cache_state_incoherent"),
        family.INTACT,
        "a SEAMCALL of the last CPU does not set the flag",
    ),
    Mutation(
        "mainline-flag-tdx",
        CPU,
        "busy",
        "KVM",
        without_reach,
        family.INTACT,
        "KVM clears the flag without a flush",
    ),
    *(
        Mutation(
            f"mainline-flag-{rules}",
            BOOT,
            "segments",
            "reads",
            without_effect("g.flushes"),
            family.INTACT,
            "the last CPU does not read its flag",
        )
        for rules in ("sme", "tdx")
    ),
    Mutation(
        "early-flush-tdx",
        CPU,
        "busy",
        "KVM",
        without_reach,
        family.INTACT,
        "KVM's shutdown clears the flag without a flush",
    ),
    Mutation(
        "early-flush-tdx",
        CPU,
        "busy",
        "KVM",
        without_effect("cpu.cache_state_incoherent"),
        DEADLOCK,
        "KVM's shutdown leaves the flag, so that stop_this_cpu flushes once more",
    ),
    Mutation(
        "early-flush-tdx",
        BOOT,
        "flush all",
        "syscore",
        without_reach,
        family.INTACT,
        "KVM's shutdown does not flush the last CPU",
    ),
    Mutation(
        "early-flush-tdx",
        BOOT,
        "flushing",
        "all",
        without_test("g.asked"),
        DEADLOCK,
        "KVM's shutdown is not awaited",
    ),
    Mutation(
        "crash-flush-sme",
        CPU,
        "NMI",
        "saves",
        without_reach,
        family.INTACT,
        "a CPU does not flush in the NMI",
    ),
    Mutation(
        "crash-flush-sme",
        BOOT,
        "machine_kexec",
        "",
        without_reach,
        family.INTACT,
        "the crashing CPU does not flush",
    ),
    Mutation(
        "crash-flush-sme",
        BOOT,
        "shoot-down",
        "all",
        without_test("g.waiting"),
        family.INTACT,
        "the crashing CPU does not wait",
    ),
    Mutation(
        "crash-sme",
        BOOT,
        "own memory",
        "",
        lambda flow, o: replace(o, do=(put(flow.g.read, Bytes.OLD),), to="dump"),
        family.INTACT,
        "the crash kernel reads what was there before",
    ),
    Mutation(
        "stop-mask-sme",
        BOOT,
        "stopping",
        EMPTY,
        without_reach,
        family.INTACT,
        "the mask is not cleared once more",
    ),
    Mutation(
        "wbnoinvd-sme",
        CPU,
        "flush",
        "WBNOINVD",
        without_reach,
        family.INTACT,
        "a CPU does not flush",
    ),
    Mutation(
        "inline-after-load-segments-sme",
        BOOT,
        "relocate",
        FLUSH,
        without_reach,
        family.INTACT,
        "the last CPU does not flush",
    ),
    Mutation(
        "partial-write-refused-tdx",
        BOOT,
        "load",
        "kexec_file_load",
        without_effect("g.kexec_error"),
        family.REFUSED,
        "nobody is told",
    ),
]


@pytest.mark.parametrize("m", MUTATIONS, ids=str)
def test_a_knocked_out_step_is_noticed(m):
    result = check(mutated(m, 3), 3)
    assert result.verdict != "holds"
    assert m.broken in {result.property, *result.violations}
    assert check(build(m.short, 3), 3).verdict == "holds"


def test_a_part_that_is_not_coherent_after_all_is_noticed():
    """SME_COHERENT is an option of the line alone: all else is `none-sme`."""
    coherent, plain = build("none-sme+coherent", 3), build("none-sme", 3)
    assert [p.options for p in coherent.places] == [lib.GHCB_LINE_COHERENT]
    assert [p.options for p in plain.places] == [0]
    shapes = [[(a.name, list(a.labels)) for a in f.agents] for f in (coherent, plain)]
    assert shapes[0] == shapes[1]

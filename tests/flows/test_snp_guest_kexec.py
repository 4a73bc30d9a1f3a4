"""The family ``snp-guest-kexec``: verdicts, reasons, and what its properties notice.

Each failing scenario must fail at the page, and by the fault, that its source tells of; mainline
must stop holding when one of its stages is taken out.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ghcbcore._cffi import lib
from pysev import Machine, States, all_scenarios, check, find, run
from pysev.checking import DEADLOCK, CheckResult, evaluate
from pysev.costs import US
from pysev.flow import Flow
from pysev.flows.snp_guest_kexec import NORMAL, SnpGuestKexec, Variant, swapped
from pysev.flows.snp_guest_pages import Fault
from pysev.frames import views
from pysev.memmap import MemoryMap
from pysev.memory import Memory
from pysev.report import check_text, is_expected
from pysev.scenarios.snp_guest_kexec import NO_FAULT, ON_BOOT_CPU, build_kexec

FAMILY = "snp-guest-kexec"
SCENARIOS = {s.name.removeprefix(f"{FAMILY}/"): s for s in all_scenarios() if s.family == FAMILY}
HOLDING = [n for n, s in SCENARIOS.items() if s.expected == "holds"]
FAILING = [n for n in SCENARIOS if n not in HOLDING]
BOOT = "boot CPU"


def build(short: str, n_cpus: int) -> Flow:
    return SCENARIOS[short].build(Machine.of(n_cpus))


def checked(short: str, n_cpus: int) -> CheckResult:
    return check(build(short, n_cpus), n_cpus)


def story(result: CheckResult) -> list[str]:
    return [step.op for step in result.counterexample]


def replayed(flow: Flow, n_cpus: int, result: CheckResult) -> list[States]:
    compiled = flow.compile(n_cpus)
    record = compiled.initial_record()
    states = [States.of_record(compiled, record.copy())]
    for step in result.counterexample:
        compiled.program.step(record, *step.move)
        states.append(States.of_record(compiled, record.copy()))
    return states


# -- verdicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_cpus", [1, 2, 3, 4])
@pytest.mark.parametrize("short", SCENARIOS)
def test_every_scenario_has_its_verdict_for_its_reason(short: str, n_cpus: int) -> None:
    scenario = SCENARIOS[short]
    flow = build(short, n_cpus)
    result = check(flow, n_cpus)
    assert result.complete
    assert is_expected(scenario, result), (result.verdict, result.property)
    assert "as expected" in check_text(scenario, flow, result)
    if result.verdict == "holds":
        assert all(result.reached.values()), result.reached


def test_every_bug_of_the_fact_sheet_is_there_with_its_repair() -> None:
    told = {s.summary.partition(":")[0] for s in SCENARIOS.values() if s.summary[:1] == "K"}
    assert told == {f"K{n}" for n in range(1, 16)}
    without_repair = {"vmcore-by-cp"}  # K4 is open
    for name, scenario in SCENARIOS.items():
        if scenario.summary[:1] == "K" and name not in without_repair and name.find("-after-") < 0:
            assert SCENARIOS[f"{name}-fixed"].expected == "holds"
        assert scenario.source and scenario.story and scenario.summary
        assert bool(scenario.because) == (scenario.expected != "holds")


@pytest.mark.parametrize("short", SCENARIOS)
def test_the_verdict_does_not_depend_on_symmetry(short: str) -> None:
    alike = checked(short, 3)
    apart = check(build(short, 3), 3, symmetric=False)
    assert apart.complete
    assert (alike.verdict, alike.violations) == (apart.verdict, apart.violations)
    assert alike.states <= apart.states


@pytest.mark.parametrize("short", FAILING)
def test_a_counterexample_can_be_replayed_and_ends_where_its_property_breaks(short: str) -> None:
    flow = build(short, 4)
    result = check(flow, 4)
    states = replayed(flow, 4, result)
    broken = [p for p in flow.properties if p.name == result.property and p.kind == "always"]
    for p in broken:
        assert [bool(evaluate(p, s)[0]) for s in states] == [True] * (len(states) - 1) + [False]


# -- the reasons -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("short", "last", "fault"),
    [
        ("leaf-below-ghcb", "reads a page below the GHCBs", Fault.VC_NOT_VALIDATED),
        ("huge-leaf-of-ghcb", "reads the pages in front of the GHCB", Fault.VC_NOT_VALIDATED),
        ("vmsa-of-halted-ap", "reads the VMSA page of another CPU", Fault.NESTED_PAGE_FAULT),
        ("destroy-refused", "reads the VMSA page of another CPU", Fault.NESTED_PAGE_FAULT),
        ("vmsa-of-crashed-ap", "VMSA page of the CPU that it runs on", Fault.NESTED_PAGE_FAULT),
        ("vmcore-by-cp", "VMSA page of the CPU that it runs on", Fault.NESTED_PAGE_FAULT),
        ("half-to-shared", "reads the page that was being converted", Fault.VC_NOT_VALIDATED),
        ("half-to-private", "reads the page that was being converted", Fault.VC_NOT_VALIDATED),
        ("unshare-before-stop", "writes to a shared buffer", Fault.NESTED_PAGE_FAULT),
        ("psc-cut-short-once", "PVALIDATE", Fault.NESTED_PAGE_FAULT),
        ("crash-nmi-timeout-no-destroy", "writes to a shared buffer", Fault.NESTED_PAGE_FAULT),
    ],
)
def test_the_fault_is_the_one_that_was_reported(short: str, last: str, fault: Fault) -> None:
    flow = build(short, 3)
    result = check(flow, 3)
    assert last in story(result)[-1]
    assert replayed(flow, 3, result)[-1].g.fault[0] == fault


@pytest.mark.parametrize(
    ("short", "last"),
    [
        ("destroy-after-ghcbs", "AP_CREATION destroy: the GHCB is private"),
        ("ghcbs-not-last", "PSC to private: the GHCB is private"),
        ("ghcbs-by-ghcb", "PSC to private: the GHCB is private"),
        ("pte-after-psc", "its mapping is shared, PVALIDATE fails"),
        ("console-after-ghcbs", "IOIO of a port: the GHCB is private"),
        ("decompressor-video", "writes to video memory: #VC, NPF, no handler"),
        ("svsm-calling-area", "F6 conversion: the SVSM has not seen the call"),
        ("svsm-second-kernel", "secrets page: the SVSM has not seen the call"),
        ("secure-avic-after-ghcbs", "the backing page is unregistered: the GHCB is private"),
    ],
)
def test_the_guest_terminates_where_the_source_says(short: str, last: str) -> None:
    flow = build(short, 3)
    result = check(flow, 3)
    assert last in story(result)[-1]
    end = replayed(flow, 3, result)[-1]
    assert end.vm.event[0] == lib.GHCB_EVENT_SEV_TERM
    assert end.vm.event_data[0] & lib.GHCB_MSR_INFO_MASK == lib.GHCB_MSR_TERM_REQ


@pytest.mark.parametrize(
    ("short", "stands"),
    [
        ("begin-after-stop", "begin"),
        ("destroy-before-stop", "stopping"),
        ("crash-allocator-lock", "F1 free"),
    ],
)
def test_a_deadlock_is_where_the_source_says(short: str, stands: str) -> None:
    flow = build(short, 4)
    result = check(flow, 4)
    assert result.property == DEADLOCK
    assert replayed(flow, 4, result)[-1].at(BOOT, stands)[0]


@pytest.mark.parametrize("short", ["half-to-shared", "half-to-private"])
def test_a_half_conversion_is_hidden_because_the_page_table_says_private(short: str) -> None:
    made = SnpGuestKexec(
        replace(ON_BOOT_CPU, converts=short.removeprefix("half-").replace("-", " ")),
        Machine.of(3),
        "x",
    )
    flow = made.build()
    hidden = {"page": 0}

    def walk_knows(s: States) -> np.ndarray:
        page = views(s, made.frames.moving[0])[:, 0]
        gone = (page["mapping"] == lib.FRAME_PRIVATE) & (page["validated"] == 0)
        hidden["page"] += int((gone & s.at(BOOT, "F4")).sum())
        return np.ones(len(s), bool)

    flow.always("counts", walk_knows)
    flow.always(NO_FAULT, lambda s: s.g.fault == Fault.NONE)
    result = check(flow, 3)
    assert result.property == NO_FAULT
    assert hidden["page"] > 0
    assert any("passed over" in text for text in story(result))


# -- what the properties notice ------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["begin", "walk", "bss", "ghcbs", "close", "destroy", "stop"])
def test_mainline_without_one_of_its_stages_does_not_hold(stage: str) -> None:
    stages = tuple(s for s in NORMAL if s != stage)
    variant = Variant(stages=stages, converts="to shared")
    flow = _with_properties(variant, 3)
    result = check(flow, 3)
    assert result.verdict in ("violated", "deadlock")


def _with_properties(variant: Variant, n_cpus: int) -> Flow:
    flow = build_kexec(variant, "mutated")(Machine.of(n_cpus))
    flow.properties = [p for p in flow.properties if p.kind != "sometimes"]
    return flow


def test_stages_can_be_moved_and_nothing_else_happens_to_them() -> None:
    moved = swapped(NORMAL, "ghcbs", before="walk")
    assert sorted(moved) == sorted(NORMAL)
    assert moved.index("ghcbs") + 1 == moved.index("walk")
    with pytest.raises(ValueError, match="nowhere"):
        swapped(NORMAL, "walk", before="nowhere")


# -- at scale ------------------------------------------------------------------------------------


@pytest.mark.parametrize("short", ["mainline", "mainline-crash", "mainline-crash-on-ap"])
@pytest.mark.parametrize("seed", [0, 1])
def test_mainline_runs_with_many_cpus(short: str, seed: int) -> None:
    n_cpus = 257
    machine = Machine.of(n_cpus)
    result = run(SCENARIOS[short].build(machine), machine, seed)
    assert result.verdict == "holds"
    assert result.cpus["online"] == (n_cpus if short == "mainline" else 1)
    n_destroyed = n_cpus - 1 - (short == "mainline-crash-on-ap")
    n_created = n_cpus - 1 if short == "mainline" else 0
    assert result.vmgexits["nae:snp_ap_creation"] == n_destroyed + n_created
    assert result.modelled_seconds > n_destroyed * 10 * US / 1e9


@pytest.mark.parametrize(
    "short", ["vmsa-of-halted-ap", "leaf-below-ghcb", "svsm-calling-area", "ghcbs-not-last"]
)
def test_run_meets_what_always_happens(short: str) -> None:
    machine = Machine.of(64)
    result = run(SCENARIOS[short].build(machine), machine, 3)
    assert result.verdict == "violated"
    assert SCENARIOS[short].because in result.violations


@pytest.mark.parametrize("bug", ["", "strict", "leaf_base"])
@pytest.mark.parametrize("converts", ["to shared", "to private"])
def test_the_same_flow_moves_the_pages_of_16_tib(bug: str, converts: str) -> None:
    machine = Machine.of(1024, MemoryMap.flat(16 << 40))
    variant = Variant(converts=converts, **({bug: False} if bug else {}))
    made = SnpGuestKexec(variant, machine, "large")
    memory = Memory(machine.layout.memmap)
    made.frames.prepare(memory, machine)
    flow = made.build()
    flow.always(NO_FAULT, lambda s: s.g.fault == Fault.NONE)
    result = run(flow, machine, 5, memory=memory)  # compares answers and, at last, frames
    (leaf, n), _, _ = made.frames.leaf[0][0].where(machine)
    below = made.frames.below[0].where(machine)[0][0]
    if not bug:
        assert result.verdict == "holds"
        assert {memory.page(f).state for f in (below, leaf, leaf + n)} == {"guest_valid"}
    else:
        assert NO_FAULT in result.violations
        left = {"strict": below, "leaf_base": leaf}[bug]
        assert memory.page(left).state == "guest_invalid"  # KVM has it private on the fault


def test_find_names_the_family() -> None:
    assert find("snp-guest-kexec/mainline").family == FAMILY

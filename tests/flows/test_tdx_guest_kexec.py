"""The family ``tdx-guest-kexec``: verdicts, reasons, and how it compares with the SNP family."""

from __future__ import annotations

import pytest

from pysev import Machine, States, all_scenarios, check, find, run
from pysev.checking import CheckResult, evaluate
from pysev.flow import Flow
from pysev.flows.tdx_guest_kexec import NORMAL, Mapping, Variant
from pysev.report import check_text, is_expected
from pysev.scenarios.tdx_guest_kexec import build_kexec

FAMILY = "tdx-guest-kexec"
SCENARIOS = {s.name.removeprefix(f"{FAMILY}/"): s for s in all_scenarios() if s.family == FAMILY}
FAILING = [n for n, s in SCENARIOS.items() if s.expected != "holds"]


def build(short: str, n_cpus: int) -> Flow:
    return SCENARIOS[short].build(Machine.of(n_cpus))


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


@pytest.mark.parametrize("n_cpus", [1, 2, 3, 4])
@pytest.mark.parametrize("short", SCENARIOS)
def test_every_scenario_has_its_verdict_for_its_reason(short: str, n_cpus: int) -> None:
    scenario = SCENARIOS[short]
    flow = build(short, n_cpus)
    result = check(flow, n_cpus)
    assert result.complete
    assert is_expected(scenario, result), (result.verdict, result.property)
    assert "as expected" in check_text(scenario, flow, result)
    assert scenario.source and scenario.story and scenario.summary
    if result.verdict == "holds":
        assert all(result.reached.values()), result.reached


@pytest.mark.parametrize("short", SCENARIOS)
def test_the_verdict_does_not_depend_on_symmetry(short: str) -> None:
    alike = check(build(short, 3), 3)
    apart = check(build(short, 3), 3, symmetric=False)
    assert apart.complete
    assert (alike.verdict, alike.violations) == (apart.verdict, apart.violations)


@pytest.mark.parametrize("short", FAILING)
def test_a_counterexample_can_be_replayed_and_ends_where_its_property_breaks(short: str) -> None:
    flow = build(short, 4)
    result = check(flow, 4)
    states = replayed(flow, 4, result)
    for p in flow.properties:
        if p.name == result.property and p.kind == "always":
            assert [bool(evaluate(p, s)[0]) for s in states] == [True] * (len(states) - 1) + [False]


# -- the reasons -------------------------------------------------------------------------------


def test_mainline_fails_in_the_window_between_the_bit_and_the_firmware() -> None:
    flow = build("mainline", 3)
    result = check(flow, 3)
    number = int(result.counterexample[-1].agent.removeprefix("AP "))
    before = replayed(flow, 3, result)[-2]
    assert before.at("AP", "leave")[0, number - 1]
    assert story(result)[-1].startswith("FOREIGN FETCH")


def test_a_cpu_that_left_too_late_is_the_one_that_was_taken_offline() -> None:
    flow = build("unplugged-timeout", 4)
    result = check(flow, 4)
    number = int(result.counterexample[-1].agent.removeprefix("AP "))
    end = replayed(flow, 4, result)[-1]
    assert end.cpu.dying[0, number - 1] == 2
    assert any(text.startswith("1 s is over: error message") for text in story(result))


def test_test_closes_the_window_and_a_crash_has_none() -> None:
    for short in ("mainline-test", "mainline-crash"):
        flow = build(short, 4)
        if short == "mainline-test":
            flow.always(
                "left in time",
                lambda s: ~s.at("AP", "leave").any(axis=1) | (s.g.kernel == 0),
            )
        assert check(flow, 4).verdict == "holds"


@pytest.mark.parametrize("short", ["crash-deaf-cpu", "mailbox-v0-kept"])
def test_a_wakeup_that_nobody_takes_is_waited_for_without_a_timeout(short: str) -> None:
    flow = build(short, 3)
    end = replayed(flow, 3, check(flow, 3))[-1]
    assert end.at("boot CPU", "await")[0]
    assert end.g.command[0] == 1
    in_loop = (
        end.at("AP", "mailbox")[0] if short == "crash-deaf-cpu" else end.at("AP", "new kernel")[0]
    )
    assert not (in_loop & (end.cpu.addressed[0] == 1)).any()


def test_a_wakeup_for_a_cpu_that_is_late_is_taken_when_it_arrives() -> None:
    flow = build("crash-late-nmi", 3)
    flow.sometimes(
        "a WAKEUP waits for a CPU that is still in the old kernel",
        lambda s: (s.at("AP", "old kernel") & (s.cpu.addressed == 1)).any(axis=1),
    )
    assert check(flow, 3).verdict == "holds"


def test_hiding_the_mailbox_leaves_one_cpu_and_nobody_waiting() -> None:
    flow = build("mailbox-v0", 4)
    flow.always("no command", lambda s: s.g.command == 0)
    assert check(flow, 4).verdict == "holds"


@pytest.mark.parametrize("short", ["convert-before-pte", "stale-tlb"])
def test_a_touch_converts_the_page_back_before_the_new_kernel_meets_it(short: str) -> None:
    told = story(check(build(short, 3), 3))
    touch = next(i for i, t in enumerate(told) if t.startswith("touches the buffer through"))
    convert = next(i for i, t in enumerate(told) if t.endswith("MapGPA: private, accept"))
    assert convert < touch < len(told) - 1
    assert told[-1].endswith("which is shared: TD exit")


# -- compared with SNP ---------------------------------------------------------------------------


@pytest.mark.parametrize("half", ["half-to-shared", "half-to-private"])
def test_the_mirrored_order_is_why_a_crash_in_a_conversion_is_survived(half: str) -> None:
    assert find(f"snp-guest-kexec/{half}").expected == "violated"
    assert find(f"{FAMILY}/{half}").expected == "holds"
    flow = build(half, 3)

    def walk_can_see(s: States):  # type: ignore[no-untyped-def]
        """What is not private is mapped shared, or not at all, whenever the walk begins."""
        return (s.g.moving_private == 1) | (s.g.moving_pte != Mapping.PRIVATE)

    flow.always("the walk can see every shared page", walk_can_see)
    result = check(flow, 3)
    assert result.verdict == "holds"
    assert result.reached["finish says that the accounting is off"]


@pytest.mark.parametrize("converts", ["to shared", "to private"])
def test_without_a_crash_the_accounting_agrees(converts: str) -> None:
    variant = Variant(test=True, converts=converts)
    flow = build_kexec(variant, "accounts")(Machine.of(3))
    flow.always("accounting agrees", lambda s: s.g.off == 0)
    assert check(flow, 3).verdict == "holds"


@pytest.mark.parametrize("stage", ["stop", "finish"])
def test_the_flow_without_one_of_its_stages_does_not_hold(stage: str) -> None:
    base = Variant(test=True, converts="to shared", stages=tuple(s for s in NORMAL if s != stage))
    flow = build_kexec(base, "mutated")(Machine.of(3))
    flow.properties = [p for p in flow.properties if p.kind != "sometimes"]
    result = check(flow, 3)
    assert result.verdict in ("violated", "deadlock")


def test_without_begin_no_page_is_lost_but_the_accounting_is_off() -> None:
    flow = build("no-begin", 3)
    flow.always("accounting agrees", lambda s: s.g.off == 0)
    assert check(flow, 3).property == "accounting agrees"
    assert find("snp-guest-kexec/no-begin").expected == "violated"


# -- at scale ------------------------------------------------------------------------------------


@pytest.mark.parametrize("short", ["mainline-test", "mainline-crash", "crash-late-nmi"])
def test_4096_cpus_come_up_through_one_mailbox(short: str) -> None:
    machine = Machine.of(4096)
    result = run(SCENARIOS[short].build(machine), machine, 2)
    assert result.verdict == "holds"
    assert result.cpus["online"] == 4096
    assert not result.vmgexits
    assert result.modelled_seconds > 1

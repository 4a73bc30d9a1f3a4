"""The family ``guest-kdump``: verdicts, the steps that lead to each failure, and runs at scale."""

import re
from dataclasses import replace

import numpy as np
import pytest

from ghcbcore._cffi import lib
from ghcbcore.frame import Op as FrameOp
from pysev import Machine, States, all_scenarios, check, find, frames, run
from pysev.checking import CheckResult, evaluate
from pysev.flow import Flow
from pysev.flows.guest_kdump import GuestKdump
from pysev.flows.guest_kdump_variant import FEATURES, KDUMP_PATTERN, Core, Kind, Variant
from pysev.memmap import MemoryMap
from pysev.memory import Memory
from pysev.report import check_text, is_expected
from pysev.scenarios import guest_kdump as family
from pysev.vmcore.places import free_ranges, unaccepted_range, vmsa_range

FAMILY = [s for s in all_scenarios() if s.family == "guest-kdump"]
NAMES = [s.name.removeprefix("guest-kdump/") for s in FAMILY]
HOLDING = [s.name.removeprefix("guest-kdump/") for s in FAMILY if s.expected == "holds"]
FAILING = [name for name in NAMES if name not in HOLDING]
CRASH = "crash CPU"
RACES = ("count-before-save", "snp-half-converted", "snp-vmsa-leaked")
DIES = ("snp-vmsa-busy", "snp-vmsa-cp", "snp-vmsa-leaked")


def build(short: str, n_cpus: int, memory: MemoryMap | None = None) -> tuple[Flow, Machine]:
    machine = Machine.of(n_cpus, memory)
    return find(f"guest-kdump/{short}").build(machine), machine


def checked(short: str, n_cpus: int, **options) -> CheckResult:
    return check(build(short, n_cpus)[0], n_cpus, **options)


def steps(result: CheckResult) -> list[str]:
    return [step.op for step in result.counterexample]


def end_of(flow: Flow, n_cpus: int, result: CheckResult) -> States:
    compiled = flow.compile(n_cpus)
    record = compiled.initial_record()
    for step in result.counterexample:
        compiled.program.step(record, *step.move)
    return States.of_record(compiled, record)


# -- verdicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_cpus", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("short", NAMES)
def test_every_scenario_has_its_verdict_for_its_reason(short, n_cpus):
    scenario = find(f"guest-kdump/{short}")
    result = checked(short, n_cpus)
    assert result.complete
    assert is_expected(scenario, result), (result.verdict, result.violations)
    if scenario.expected_with(n_cpus) == "holds":
        assert all(result.reached.values()), result.reached
    else:
        assert result.property == scenario.because


def test_each_failing_scenario_breaks_one_property_alone():
    for short in FAILING:
        result = checked(short, 4)
        assert set(result.violations) - {family.ALL_NOTES} <= {result.property}, short


def test_derived_scenarios_are_called_so():
    derived = {s.name.removeprefix("guest-kdump/") for s in FAMILY if "derived" in s.source}
    assert derived == {
        "count-before-save",
        "snp-vmsa-cp",
        "snp-vmsa-leaked",
        "snp-half-converted",
        "mask-ignored",
        "reservation-sev-es",
        "reservation-any",
    }
    assert all(s.summary and s.story and s.source for s in FAMILY)


@pytest.mark.parametrize("short", NAMES)
def test_the_verdict_does_not_depend_on_symmetry(short):
    alike, apart = checked(short, 3), checked(short, 3, symmetric=False)
    assert apart.complete and alike.states <= apart.states
    assert (alike.verdict, alike.violations) == (apart.verdict, apart.violations)


@pytest.mark.parametrize("short", FAILING)
def test_a_counterexample_ends_where_its_property_breaks_and_the_report_says_why(short):
    flow, _ = build(short, 4)
    result = check(flow, 4)
    broken = next(p for p in flow.properties if p.name == result.property)
    assert not evaluate(broken, end_of(flow, 4, result))[0]
    text = check_text(find(f"guest-kdump/{short}"), flow, result)
    assert find(f"guest-kdump/{short}").story in text


# -- the reasons -------------------------------------------------------------------------------


def test_a_cpu_with_nmis_blocked_has_no_note_in_the_core():
    flow, _ = build("nmi-timeout", 4)
    result = check(flow, 4)
    end = end_of(flow, 4, result)
    assert "1 s is over: goes on with CPUs still running" in steps(result)
    assert (end.cpu.in_core[0] == 0).any() and end.g.core[0] == Core.WRITTEN
    ran = run(*build("nmi-timeout", 64))
    states = States.of_record(build("nmi-timeout", 64)[0].compile(64), ran.record)
    assert ran.violations == (family.ALL_NOTES,)
    assert (states.cpu.in_core[0] == 0).sum() == 1  # the one, and only that one
    assert (states.cpu.note[0] == 1).all()  # it saved them, too late


@pytest.mark.parametrize("short", DIES)
def test_a_vmsa_in_use_is_a_nested_fault_that_the_host_cannot_answer(short):
    result = checked(short, 4)
    told = steps(result)
    assert told[-3:] == [
        "reads a VMSA page",
        "#NPF: the host makes the page private",
        "#NPF for ever: RMPUPDATE says the page is in use",
    ]
    destroyed = any(step.startswith("VMGEXIT: AP creation, destroy") for step in told)
    assert destroyed == (short != "snp-vmsa-busy")
    assert ("leaking page: the VMSA is in use" in told) == (short == "snp-vmsa-leaked")
    assert ("its own VMSA page: PageOffline, stays tagged" in told) == (short == "snp-vmsa-cp")


@pytest.mark.parametrize(
    "short", ["snp-shared-skipped", "snp-half-converted", "snp-unaccepted-read"]
)
def test_a_page_that_was_not_validated_ends_in_a_vc_once_the_host_has_given_it(short):
    told = steps(checked(short, 4))
    assert told[-1] == "#VC 0x404, page not validated: the guest dies"
    assert told[-3] == "#NPF: the host makes the page private"
    half = "crash NMI between PSC and PTE" in told
    assert half == (short == "snp-half-converted")


def test_makedumpfile_leaves_the_own_vmsa_out_and_cp_does_not():
    assert "skip VMSA" in build("snp-crash-on-ap", 2)[0].agents[0].labels
    assert "read VMSA" in build("snp-vmsa-cp", 2)[0].agents[0].labels


def test_shared_memory_of_sev_es_is_noise_without_a_fault():
    flow, _ = build("sev-es-shared-noise", 3)
    result = check(flow, 3)
    end = end_of(flow, 3, result)
    buffer = next(r for r in flow.frame_regions if r.name == "buffer")
    memory = next(r for r in flow.frame_regions if r.name == "memory")
    assert end.g.core[0] == Core.WRITTEN and end.g.fault[0] == 0
    assert frames.views(end, buffer)[0, 0]["key"] == lib.GHCB_KEY_SLOT_NONE
    assert frames.views(end, memory)[0, 0]["key"] == end.g.reader_key[0] != lib.GHCB_KEY_SLOT_NONE


@pytest.mark.parametrize(
    ("short", "core"),
    [
        ("elfcorehdr-as-sme", Core.NO_HEADER),
        ("elfcorehdr-as-sev", Core.NO_HEADER),
        ("mask-missing", Core.LOST_IN_TABLES),
        ("mask-ignored", Core.LOST_IN_TABLES),
        ("reservation-sev-es", Core.NO_MEMORY),
    ],
)
def test_a_dump_that_does_not_come_to_its_end_says_where_it_stopped(short, core):
    flow, _ = build(short, 3)
    assert end_of(flow, 3, check(flow, 3)).g.core[0] == core


def test_the_pattern_of_kdump_utils_misses_every_guest_with_encrypted_registers():
    found = {kind: re.search(KDUMP_PATTERN, line) is not None for kind, line in FEATURES.items()}
    assert found == {Kind.SME: True, Kind.SEV: True, Kind.SEV_ES: False, Kind.SNP: False}


# -- what the properties notice ----------------------------------------------------------------


def changed(flow: Flow, label: str, text: str, **changes: object) -> None:
    """Change one operation of the crashing CPU."""
    boot = next(a for a in flow.agents if a.name == CRASH)
    (i,) = [i for i, o in enumerate(boot.labels[label]) if o.text.startswith(text)]
    boot.labels[label][i] = replace(boot.labels[label][i], **changes)


def test_a_crashing_cpu_that_does_not_wait_loses_notes():
    flow, _ = build("sev-es", 3)
    changed(flow, "shoot-down", "all other CPUs", when=())
    assert family.ALL_NOTES in check(flow, 3).violations


def test_an_unshare_that_does_nothing_kills_the_reader():
    flow, _ = build("snp", 3)
    changed(flow, "unshare", "unshare", do=())
    assert check(flow, 3).property == family.NO_FAULT


def test_a_vmsa_whose_vcpu_stays_in_guest_mode_kills_the_reader():
    flow, _ = build("snp", 3)
    changed(flow, "destroy", "all APs are destroyed", do=())
    result = check(flow, 3)
    assert result.property == family.NO_FAULT
    assert "leaking page: the VMSA is in use" in steps(result)


def test_a_page_that_was_written_under_another_key_is_not_legible():
    flow, _ = build("sev-es", 2)
    own = lib.FRAME_OP_CONTENT
    memory = next(r for r in flow.frame_regions if r.name == "memory")
    spoil = frames.happen(memory, 0, FrameOp(own, value=7), flow.g.answer)
    changed(flow, "notes", "merges", do=(spoil,))
    assert family.LEGIBLE in check(flow, 2).violations


# -- at scale ----------------------------------------------------------------------------------

LARGE = MemoryMap.flat(16 << 40)


@pytest.mark.parametrize("short", NAMES)
def test_a_run_with_thousands_of_cpus_on_16_tib_ends_as_the_check_says(short):
    scenario = find(f"guest-kdump/{short}")
    result = run(*build(short, 4096, LARGE), 3)
    assert result.seconds < 30
    if short in RACES:  # this is one order
        assert result.verdict == "holds" or scenario.because in result.violations
        return
    assert result.verdict == ("holds" if scenario.expected == "holds" else "violated")
    if scenario.expected == "holds":
        assert result.cpus["online"] == 1 and result.cpus["halted"] == 4095
    else:
        assert scenario.because in result.violations
    if "snp" in short and "vmsa-busy" not in short and "half" not in short:
        assert result.vmgexits["nae:snp_ap_creation"] == 4095


@pytest.mark.parametrize(
    ("variant", "reads"),
    [
        (Variant(kind=Kind.SNP, vmsa="destroyed", shared="unshared", unaccepted="read"), "lazy"),
        (Variant(kind=Kind.SNP, vmsa="busy", shared="unshared"), "vmsa"),
        (Variant(kind=Kind.SNP, vmsa="destroyed", shared="skipped"), "buffer"),
        (Variant(kind=Kind.SME), "memory"),
        (Variant(shared="left"), "buffer"),
    ],
)
def test_the_pages_of_a_large_memory_meet_what_the_frames_of_the_flow_meet(variant, reads):
    machine = Machine.of(64, LARGE)
    made = GuestKdump(variant, machine, "at scale")
    flow, memory = made.build(), Memory(16 << 40)
    for region in flow.frame_regions:
        (where,) = region.where(machine)
        assert all(memory.do(one, where) for one in made.starts[region.name])
    run(flow, machine, 1, memory=memory)  # raises Mismatch where the two differ
    label = f"read {'VMSA' if reads == 'vmsa' else 'unaccepted' if reads == 'lazy' else reads}"
    assert label in made.boot.labels


# -- places ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3 << 30, 64 << 30, 16 << 40])
@pytest.mark.parametrize("n_cpus", [1, 2, 4096])
def test_vmsas_and_unaccepted_memory_lie_in_ram_that_nobody_else_has(size, n_cpus):
    layout = Machine.of(n_cpus, MemoryMap.flat(size)).layout
    free = free_ranges(layout)
    for start, end in (vmsa_range(layout), unaccepted_range(layout)):
        assert start < end and any(low <= start and end <= high for low, high in free)
        for region in layout.regions:
            assert end <= region.start or region.end <= start
    assert vmsa_range(layout)[1] <= unaccepted_range(layout)[0] or (
        unaccepted_range(layout)[1] <= vmsa_range(layout)[0]
    )
    assert np.diff([edge for piece in free for edge in piece]).min() > 0

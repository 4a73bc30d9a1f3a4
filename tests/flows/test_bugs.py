"""The family ``bugs``: each report fails for its reason, and holds once it is repaired."""

from dataclasses import replace

import pytest

from pysev import Machine, all_scenarios, check, find, run
from pysev.checking import BUILT_IN, CheckResult, evaluate
from pysev.flow import Flow
from pysev.flows.bugs_boot import GUESTS, says_encrypted
from pysev.report import check_text, is_expected
from pysev.states import States

FAMILY = [s for s in all_scenarios() if s.family == "bugs"]
NAMES = [s.name.removeprefix("bugs/") for s in FAMILY]
FAILING = [s.name.removeprefix("bugs/") for s in FAMILY if s.expected != "holds"]
REPAIRED = [n for n in NAMES if n.endswith("-fixed")]
OPEN = {"late-nmi", "crash-note-waits", "reboot"}
"""Failing rows without a repaired one: nobody has repaired it, or nobody can."""


def built(short: str, n_cpus: int) -> Flow:
    return find(f"bugs/{short}").build(Machine.of(n_cpus))


def checked(short: str, n_cpus: int, **options) -> CheckResult:
    return check(built(short, n_cpus), n_cpus, **options)


def ops(result: CheckResult) -> list[str]:
    return [step.op for step in result.counterexample]


def order(steps: list[str], *texts: str) -> bool:
    """Whether steps that begin so come one after the other."""
    at = -1
    for text in texts:
        later = [i for i, step in enumerate(steps) if i > at and step.startswith(text)]
        assert later, (text, steps)
        at = later[0]
    return True


# -- verdicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_cpus", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("short", NAMES)
def test_every_report_has_its_verdict_for_its_reason(short, n_cpus):
    scenario = find(f"bugs/{short}")
    result = checked(short, n_cpus)
    assert result.complete
    assert is_expected(scenario, result), (result.verdict, result.property)
    if scenario.expected_with(n_cpus) == "holds":
        assert all(result.reached.values()), result.reached
    assert "as expected" in check_text(scenario, built(short, n_cpus), result)


def test_every_report_has_a_repaired_form_or_is_open():
    assert {n for n in FAILING if f"{n}-fixed" not in NAMES} == OPEN
    for s in FAMILY:
        assert s.source and s.story and s.summary
        assert bool(s.because) == (s.expected != "holds")


@pytest.mark.parametrize("short", REPAIRED)
def test_the_repaired_form_promises_what_the_broken_one_breaks(short):
    broken = find(f"bugs/{short.removesuffix('-fixed')}")
    if broken.because not in BUILT_IN:
        assert broken.because in {p.name for p in built(short, 3).properties}


@pytest.mark.parametrize("short", NAMES)
def test_the_verdict_does_not_depend_on_symmetry(short):
    for n_cpus in (2, 3):
        alike, apart = checked(short, n_cpus), checked(short, n_cpus, symmetric=False)
        assert apart.complete
        assert (alike.verdict, alike.violations) == (apart.verdict, apart.violations)
        assert alike.depth == apart.depth and alike.states <= apart.states


@pytest.mark.parametrize("short", FAILING)
def test_a_counterexample_can_be_replayed_and_ends_where_its_property_breaks(short):
    flow = built(short, 3)
    result = check(flow, 3)
    compiled = flow.compile(3)
    record = compiled.initial_record()
    states = [States.of_record(compiled, record.copy())]
    for step in result.counterexample:
        compiled.program.step(record, *step.move)
        states.append(States.of_record(compiled, record.copy()))
    if result.property in BUILT_IN:
        assert not states[-1].at_rest()[0]
        return
    broken = next(p for p in flow.properties if p.name == result.property)
    assert not evaluate(broken, states[-1])[0]
    assert all(evaluate(broken, s)[0] for s in states[:-1])


# -- the reasons -------------------------------------------------------------------------------

STORIES = {
    "stop-mask": ("stop_this_cpu", "all other CPUs are offline", "goes on"),
    "mwait-wakes": ("the new kernel takes the old text", "MWAIT ends: the line", "FOREIGN FETCH"),
    "deaf-cpu": ("1 s is over, no NMI", "the new kernel takes the old text", "FOREIGN FETCH"),
    "late-nmi": ("1 s is over: NMI", "REBOOT_VECTOR: clears", "NMI reaches the CPU in HLT"),
    "pv-areas": ("kexec -e: PV areas of this CPU off", "writes this CPU's steal time"),
    "crash-note": ("1 s is over", "the crash kernel reads the notes"),
    "crash-note-waits": ("hangs with NMIs blocked", "panic: NMI"),
    "two-crashers": ("panic", "__crash_kexec", "__crash_kexec"),
    "purgatory-console": ("machine_kexec: null GDT", "purgatory prints: OUT"),
    "cr4-mce": ("machine_kexec: null GDT", "relocate_kernel: CR4"),
    "clock-never-enabled": ("kvmclock is not offered", "kexec -e: kvmclock off: WRMSR of an MSR"),
    "efi-table-not-mapped": ("init_pgtable: maps the RAM ranges with 2 MiB", "new kernel: sev_en"),
    "cc-blob-not-mapped": ("init_pgtable: maps the RAM ranges with 2 MiB", "new kernel: snp_init"),
    "parking-tables": ("P2 CR3", "P3 reads its stack in the direct map: #PF"),
    "unaccepted-destination": ("the page is not needed", "relocate_kernel: copies"),
    "rmp-tail": ("SNP_INIT_EX", "old kernel: writes the tail", "relocate_kernel: copies through 2"),
    "rmp-tail-allocated": ("E820 tables: the tail", "KVM: a page for an SNP guest, from", "RMPUPD"),
    "crash-reservation": ("kdump-utils", "crash kernel: 64 MiB of bounce", "out of memory"),
    "swiotlb-below-4g": ("firmware and initrd leave 512", "a guest of 12 GiB", "no such piece"),
    "init-in-kdump": ("panic: guests still run", "ccp: SNP_INIT_EX", "SNP initialisation fails"),
    "iommu-buffers": ("allocates a command buffer", "a crash kernel: does not", "Completion-Wait"),
    "notifier-unregisters": ("panic: walks the notifier chain", "SNP notifier: SNP_SHUTDOWN_EX"),
    "psp-interrupt": ("panic: IRQs off", "SNP notifier", "carries the command out"),
    "reboot": ("reboot: asks", "registers are encrypted"),
}


@pytest.mark.parametrize("short", FAILING)
def test_a_counterexample_tells_the_report(short):
    assert order(ops(checked(short, 3)), *STORIES[short])


def test_with_1_gib_pages_nobody_notices_the_missing_mapping():
    """The report is about nogbpages: take that choice away, and the broken form holds."""
    flow = built("efi-table-not-mapped", 1)
    boot = flow.agents[0]
    large, _ = boot.labels["identity map"]
    boot.labels["identity map"] = [large]
    assert check(flow, 1).verdict == "holds"


def test_the_tail_of_the_rmp_can_be_used_page_by_page():
    result = checked("rmp-tail", 1)
    details = " ".join(step.detail for step in result.counterexample)
    assert "block_0: RMP hypervisor -> firmware" in details
    assert ops(result).index("old kernel: writes the tail through a 4 KiB mapping") > 0
    assert "dead 0 -> 1" in result.counterexample[-1].detail


def test_a_destination_that_was_accepted_at_boot_is_no_danger():
    flow = built("unaccepted-destination", 1)
    boot = flow.agents[0]
    accepts, _ = boot.labels["boot"]
    boot.labels["boot"] = [accepts]
    result = check(flow, 1)
    assert not result.violations or result.property.startswith("sometimes")
    assert result.reached["nobody has accepted the page before it is loaded"] is False


@pytest.mark.parametrize("guest", GUESTS, ids=lambda g: g.name)
def test_the_line_of_the_kernel_is_read_as_kdump_utils_does(guest):
    assert says_encrypted(guest.features, repaired=True)
    assert says_encrypted(guest.features, repaired=False) == (guest.name == "SEV")


def test_a_plain_kernel_says_nothing_of_encryption():
    assert not says_encrypted(["Intel", "TDX"], repaired=True)
    assert not says_encrypted(["Intel", "TDX"], repaired=False)
    assert says_encrypted(["AMD", "SME"], repaired=False)


def test_a_bit_that_is_cleared_before_the_wbinvd_is_noticed():
    """What makes cpus_stop_mask right is when the bit is cleared."""
    flow = built("stop-mask-fixed", 2)
    ap = flow.agents[1]
    (stop,) = ap.labels["stop"]
    (report,) = ap.labels["report"]
    ap.labels["stop"] = [replace(stop, do=stop.do + report.do)]
    ap.labels["report"] = [replace(report, do=())]
    result = check(flow, 2)
    assert result.property == find("bugs/stop-mask").because


def test_a_kick_that_nobody_waits_for_is_noticed():
    flow = built("mwait-wakes-fixed", 2)
    boot = flow.agents[0]
    (wait,) = boot.labels["kicking"]
    boot.labels["kicking"] = [replace(wait, when=())]
    ap = flow.agents[1]
    kicked, woken = ap.labels["mwait"][:2]
    ap.labels["mwait"][1] = replace(woken, when=woken.when[:1])
    assert kicked.text.startswith("MWAIT ends: kicked")
    assert check(flow, 2).property == find("bugs/mwait-wakes").because


# -- at scale ----------------------------------------------------------------------------------


@pytest.mark.parametrize("short", NAMES)
def test_a_run_with_many_cpus_ends(short):
    machine = Machine.of(256)
    result = run(built(short, 256), machine, 5)
    assert result.verdict != "unknown"
    if find(f"bugs/{short}").expected == "holds":
        assert result.verdict == "holds"


def test_a_run_shows_that_wbinvd_takes_its_time():
    verdicts = [run(built("stop-mask", 64), Machine.of(64), seed).verdict for seed in range(3)]
    assert verdicts == ["violated"] * 3

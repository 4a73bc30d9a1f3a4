"""Where the time of a run goes, over the whole library, and what of it grows with the machine."""

from pathlib import Path

import pytest

from pysev import Machine, MemoryMap, all_scenarios, costs, find, run, scaling

GIB, TIB = 1 << 30, 1 << 40
DATA = Path(__file__).parent.parent / "data"
SCENARIOS = all_scenarios()


def run_of(name, n_cpus=64, memory=4 * GIB, memmap=None):
    scenario = find(name)
    n_cpus = scenario.n_cpus(n_cpus)
    memmap = MemoryMap.flat(memory) if memmap is None else memmap
    machine = Machine.of(n_cpus, memmap, jump_table=scenario.jump_table)
    return run(scenario.build(machine), machine)


def phase_ns(result, name):
    (found,) = (
        p for p in result.analysis.phases if (p.agent, p.name) == (result.analysis.boot, name)
    )
    return found.ns


def path_ns(result, text):
    return sum(s.ns for s in result.analysis.path if text in s.op and s.kind == "work")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[s.name for s in SCENARIOS])
def test_phases_leave_no_time_out(scenario):
    result = run_of(scenario.name)
    found = result.analysis
    begins = [p.begin_ns for p in found.phases]
    assert begins == sorted(begins)
    assert begins[0] == 0
    until = 0
    for p in found.phases:
        assert p.begin_ns <= until, f"nobody is in a phase from {until} to {p.begin_ns} ns"
        until = max(until, p.end_ns)
    assert until == round(result.modelled_seconds * 1e9)
    mine = [p for p in found.phases if p.agent == found.boot]
    assert sum(p.ns for p in mine) == found.path_ns
    said = result.as_json()["dominates"]
    assert said["critical_path"]
    assert said["critical_path"][0]["seconds"] > 0
    assert sum(s.ns for s in found.path) == found.path_ns


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[s.name for s in SCENARIOS])
def test_every_label_belongs_to_a_phase(scenario):
    n_cpus = scenario.n_cpus(4)
    flow = scenario.build(Machine.of(n_cpus, jump_table=scenario.jump_table))
    assert flow.agents
    for agent in flow.agents:
        assert set(agent.phases) == set(agent.labels)
        assert all(agent.phases.values())


@pytest.mark.parametrize(
    ("name", "phase", "work"),
    [
        ("snp-guest-kexec/mainline-crash", "F2 unshare the direct map", scaling.unshare),
        ("tdx-guest-kexec/mainline", "unshare memory", scaling.tdx_unshare),
        ("guest-kdump/snp", "hand memory over", scaling.unshare),
    ],
)
def test_unsharing_takes_what_the_walk_over_this_memory_takes(name, phase, work):
    took = []
    for memory in (GIB, 64 * GIB, 16 * TIB):
        expected = work(Machine.of(64, MemoryMap.flat(memory))).ns
        ns = phase_ns(run_of(name, memory=memory), phase)
        assert expected <= ns <= 1.25 * expected + 3_000_000  # and the APs' and other pages' share
        took.append(ns)
    assert took[0] < took[1] < took[2]


@pytest.mark.parametrize("memory", [4 * GIB, 16 * TIB])
def test_each_part_of_unsharing_stands_at_its_own_operation(memory):
    machine = Machine.of(64, MemoryMap.flat(memory))
    result = run_of("snp-guest-kexec/mainline-crash", memory=memory)
    for text, part in (
        ("C-bit set in its PTE", "PTE"),
        ("VMGEXIT by GHCB: PSC to private", "PSC"),
        ("PVALIDATE", "PVALIDATE"),
    ):
        expected = scaling.unshare(machine).parts[part]
        assert expected > 0
        ns = path_ns(result, f"F2 page below the GHCBs: {text}")
        assert expected <= ns <= 1.25 * expected + 1
    result = run_of("tdx-guest-kexec/mainline", memory=memory)
    for text, part in (("PTE := 0", "PTE"), ("MapGPA: private, accept", "convert")):
        expected = scaling.tdx_unshare(machine).parts[part]
        assert expected <= path_ns(result, f"finish buffer: {text}") <= 1.25 * expected + 1


@pytest.mark.parametrize("n_cpus", [2, 64, 512])
def test_the_ghcbs_last_take_time_by_cpu_and_not_by_memory(n_cpus):
    name, phase = "snp-guest-kexec/mainline-crash", "F6 unshare the GHCBs"
    machine = Machine.of(n_cpus, MemoryMap.flat(4 * GIB))
    leaf_ns = 512 * (costs.VMGEXIT + costs.PVALIDATE)
    expected = leaf_ns + scaling.unshare_ghcbs(machine).ns
    for memory in (4 * GIB, 16 * TIB):
        ns = phase_ns(run_of(name, n_cpus, memory), phase)
        assert expected <= ns <= 1.25 * expected + 10_000


def test_the_migration_list_is_reset_by_e820_entry_and_not_by_size():
    name, phase = "live-migration-reset/merged", "tell the hypervisor what is shared"
    maps = [
        MemoryMap.flat(4 * GIB),
        MemoryMap.flat(16 * TIB),
        MemoryMap.from_file(DATA / "e820_epyc_volcano_769g.txt"),
    ]
    took = []
    for memmap in maps:
        reset = scaling.migration_reset(Machine.of(8, memmap))
        ns = phase_ns(run_of(name, 8, memmap=memmap), phase)
        expected = reset.ns + costs.HYPERCALL_USER  # bss_decrypted
        assert expected <= ns <= 1.25 * expected
        took.append((reset.counts["RAM entries"], ns))
    assert took[0] == took[1]
    assert took[2][0] > took[0][0]
    assert took[2][1] > took[0][1]


@pytest.mark.parametrize(
    ("name", "phase"),
    [
        ("host-cache-flush/every-cpu-sme", "stop other CPUs"),
        ("host-cache-flush/crash-flush-sme", "stop other CPUs"),
        ("snp-host-kdump/orderly-kexec", "shut SNP down"),
        ("bugs/stop-mask-fixed", "stop other CPUs"),
    ],
)
def test_cpus_that_write_back_at_once_share_the_width_of_the_memory(name, phase):
    before = 0
    for n_cpus in (4, 64, 512):
        machine = Machine.of(n_cpus)
        ns = phase_ns(run_of(name, n_cpus), phase)
        assert ns >= scaling.wbinvd(machine, n_cpus - 1).ns
        assert ns > before
        before = ns


def test_a_dump_reads_as_long_as_there_is_memory():
    took = [phase_ns(run_of("guest-kdump/sev-es", 4, n * GIB), "dump") for n in (8, 64)]
    assert took[0] >= 8 * GIB // 4096 * costs.OLDMEM_PAGE * 0.99
    assert 6 < took[1] / took[0] < 10


def test_what_somebody_does_behind_the_boot_cpus_end_is_named():
    found = run_of("sev-es-kexec/mailbox-no-test").analysis
    behind = [p for p in found.phases if p.end_ns > found.path_ns]
    assert ("new kernel's memory", "reuse") in {(p.agent, p.name) for p in behind}


def test_a_timer_that_runs_out_for_nobody_is_no_modelled_time():
    result = run_of("live-migration-reset/merged+hot-unplug")
    assert result.modelled_seconds < 0.011  # devices would have asked within 0.2 s
    assert result.modelled_seconds >= result.analysis.path_ns / 1e9

"""The oracle of page ownership says what the fact sheet says, history by history."""

import pytest
import rmp_oracle
from hypothesis import given
from hypothesis import strategies as st
from memory_oracle import CHOICES, MemoryOracle, Outcome
from memory_vectors import ROWS, call, machine_for, same, text_of

from ghcbcore._cffi import lib


def run(history):
    """Return the outcome of the last step, as text; all before have to succeed."""
    steps = [step.strip() for step in history.split(";")]
    machine = machine_for(steps)
    for step in steps[:-1]:
        _, result = call(machine, step)
        assert result.kind in ("ok", "status"), (step, result)
        assert result.code == 0, (step, result)
    return text_of(*call(machine, steps[-1]))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['section']}: {row['rule']}")
def test_history_comes_to_what_the_sheet_says(row):
    assert same(run(row["history"])) == same(row["outcome"])


def test_vectors_use_every_method_and_meet_every_kind_of_outcome():
    methods = {step.split()[0] for row in ROWS for step in row["history"].split(";")}
    assert methods >= {
        *("rmpupdate", "psmash", "rmpread", "raw", "state", "pvalidate", "rmpadjust", "rmpquery"),
        *("access_host", "access_guest", "access_iommu", "vmrun", "vmexit", "pages_assigned_to"),
        *("gctx_create", "decommission", "md_init", "launch_update", "reclaim", "set_state"),
        *("unsmash", "page_move", "swap_out", "swap_in", "snp_init", "shutdown"),
    }
    kinds = {row["outcome"].split()[0] for row in ROWS}
    assert kinds >= {"ok", "#NPF", "#VC", "#GP", "#PF", "IOMMU", "status", "state", "raw"}
    codes = {row["outcome"] for row in ROWS if row["outcome"].startswith("ok ")}
    assert codes >= {"ok 0", "ok 0 cf", "ok 1", "ok 2", "ok 3", "ok 4", "ok 6"}
    assert len({row["history"] for row in ROWS if row["section"][:3] in ("5.2", "5.6")}) > 50


def test_every_choice_names_a_source_or_says_that_it_is_an_assumption():
    for name, text in CHOICES.items():
        sources = ("FW", "VMS", "sheet", "Linux", "assumption")
        assert any(word in text for word in sources), name


def test_rows_of_choices_name_one():
    named = {row["section"][7:] for row in ROWS if row["section"].startswith("choice ")}
    assert named - set(CHOICES) == set()
    assert len(named) > len(CHOICES) // 2


def with_context():
    machine = MemoryOracle(8, 8)
    machine.rmpupdate(3, 0, 1, 0, 1, 0)
    assert machine.gctx_create(3).code == 0
    return machine


@pytest.mark.parametrize(
    "build",
    [
        lambda: MemoryOracle(8, 8, 9),
        lambda: MemoryOracle(8, 8, -1),
        lambda: MemoryOracle(8, 1),
        lambda: MemoryOracle(8, 8).rmpupdate(1, 0, 1, 2, 0, 1),
        lambda: MemoryOracle(8, 8).rmpupdate(1, -4096, 1, 0, 0, 1),
        lambda: MemoryOracle(8, 8).rmpupdate(1, 0, 1, 0, 0, -1),
        lambda: MemoryOracle(8, 8).pvalidate(0, 0, 0, 1, 0, 0, 1),
        lambda: MemoryOracle(8, 8).pvalidate(1, 4, 0, 1, 0, 0, 1),
        lambda: MemoryOracle(8, 8).access_guest(1, 0, 0, 1, 2, 1, 1),
        lambda: MemoryOracle(8, 8).access_host(1, 1, 3),
        lambda: MemoryOracle(8, 8).launch_update(1, 0, 1, 0, (0, 0)),
        lambda: MemoryOracle(8, 8).swap_out(1, 2, 3, 1, 0, kind="text"),
        lambda: MemoryOracle(8, 8).set_state(0, 9),
        lambda: with_context().swap_in(1, 2, 3, 1, 0, slot=(4, 64)),
        lambda: MemoryOracle(8, 8, 4, initialised=False).snp_init(iommu=(4,)),
        lambda: MemoryOracle(8, 8, initialised=False).snp_init(hv_fixed=((4, 8),)),
        lambda: MemoryOracle(8, 8, initialised=False).snp_init(rmp=(0, 4), iommu=(3,)),
    ],
)
def test_arguments_that_mean_nothing_are_refused(build):
    with pytest.raises(ValueError):
        build()


def test_a_page_outside_the_machine_is_refused():
    machine = MemoryOracle(64, 8)
    for step in (machine.raw, machine.reclaim, machine.psmash, machine.access_iommu):
        with pytest.raises(ValueError, match="0x40 is not a page"):
            step(64, *[0] * (step in (machine.reclaim, machine.access_iommu)))


def test_lock_mirrors_immutable_when_asked_to():
    machine = MemoryOracle(64, 8, conservative=False, lock_mirrors=True, initialised=False)
    machine.snp_init(iommu=(10,))
    assert machine.raw(10)[0] == 0x8002_0000_0000_1005
    machine.rmpupdate(9, 0, 1, 0, 1, 0)
    assert machine.raw(9)[0] == 0x8000_0000_0000_0005
    machine.reclaim(9, 0)
    assert machine.raw(9)[0] == 1
    machine.rmpupdate(9, 0x1000, 1, 0, 0, 1)
    assert machine.raw(9)[0] == 0x0008_0000_0000_1001
    machine.rmpupdate(9, 0x1000, 1, 0, 1, 1)
    assert machine.raw(9)[0] == 0x8008_0000_0000_1005


def test_a_page_beyond_the_table_has_no_entry_to_show():
    machine = MemoryOracle(16, 8, 9)
    assert machine.raw(9) is machine.rmpread(9) is None


def test_releasing_the_pages_of_the_iommu_leaves_the_platform_up():
    machine = MemoryOracle(64, 8, initialised=False)
    machine.snp_init(iommu=(9,))
    machine.iommu_release()
    assert machine.state(9) == lib.RMP_STATE_RECLAIM
    assert machine.reclaim(9, 0) == Outcome("status", 0, 0)


# Histories of few pages, GPAs and ASIDs, so that steps meet

PFN = st.integers(0, 23)
GPA = st.integers(0, 23).map(lambda gfn: gfn * 4096)
ASID, BIT, VMPL = st.integers(0, 2), st.integers(0, 1), st.integers(0, 3)
GUEST = st.integers(1, 2)


def step(name, *arguments):
    return st.tuples(st.just(name), st.tuples(*arguments))


STEPS = st.one_of(
    step("rmpupdate", PFN, GPA, BIT, BIT, BIT, ASID),
    step("rmpupdate", PFN, st.just(0), st.just(1), BIT, st.just(1), st.just(0)),
    step("rmpupdate", PFN, st.just(0), st.just(0), BIT, st.just(0), st.just(0)),
    step("psmash", PFN),
    step("pvalidate", GUEST, st.just(0), GPA, PFN, BIT, BIT, BIT),
    step("rmpadjust", GUEST, VMPL, GPA, PFN, BIT, BIT, VMPL, st.integers(0, 31), BIT),
    step("gctx_create", PFN),
    step("decommission", PFN),
    step("md_init", PFN, PFN),
    step("launch_update", PFN, BIT, ASID, BIT, st.just((1, 3, 0))),
    step("reclaim", PFN, BIT),
    step("set_state", st.integers(0, 19), st.integers(0, 4)),
    step("unsmash", PFN),
    step("page_move", PFN, PFN, ASID, BIT),
    step("swap_out", PFN, PFN, PFN, ASID, BIT),
    step("swap_in", PFN, PFN, PFN, ASID, BIT),
    step("vmrun", PFN),
    step("vmexit", PFN),
)
MACHINE = st.builds(
    MemoryOracle,
    st.just(24),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([17, 24]),
    st.booleans(),
)


def picture(machine):
    return [
        (machine.raw(pfn), pfn < machine.covered and machine.pages[pfn].in_use) for pfn in range(24)
    ]


@given(MACHINE, st.lists(STEPS, max_size=40))
def test_what_holds_after_every_step_of_any_history(machine, steps):
    for name, arguments in steps:
        before = picture(machine)
        result = getattr(machine, name)(*arguments)
        # Who is refused has changed nothing.
        if result.code or result.kind not in ("ok", "status"):
            assert picture(machine) == before
        for pfn in range(machine.covered):
            low, high = machine.raw(pfn)
            decoded = rmp_oracle.decode(low, high)
            assert decoded["state"] == machine.state(pfn)
            assert not decoded["reserved"]
            assert decoded["validated"] <= decoded["assigned"]
            owner, _ = machine.deciding_entry(pfn)
            # The host can write nobody's page, and a guest only its own validated one.
            writable = machine.access_host(pfn, True, 0).kind == "ok"
            assert writable == (not owner.assigned and not machine.pages[pfn].in_use)
            for asid in (1, 2):
                _, gpa = machine.deciding_entry(pfn)
                seen = machine.access_guest(asid, 0, gpa, pfn, owner.page_size, True, True)
                mine = owner.assigned and owner.asid == asid and not owner.immutable
                assert (seen.kind == "ok") == (mine and owner.validated)
        for first in range(0, machine.covered, machine.region_pages):
            region = [machine.raw(pfn) for pfn in range(first, first + machine.region_pages)]
            words = [word for word in region if word]
            large = words[0][0] & 3 == 3
            others = sum(low & 1 for low, _ in words[1:])
            assert words[0][0] >> 3 & 0x1FF == (0 if large else others)
        counts = [machine.pages_assigned_to(asid) for asid in range(3)]
        assert sum(counts) == sum(
            machine.deciding_entry(pfn)[0].assigned for pfn in range(machine.covered)
        )


@given(st.lists(STEPS, max_size=40))
def test_two_machines_with_one_history_are_alike(steps):
    machines = [MemoryOracle(24, 4), MemoryOracle(24, 4)]
    for name, arguments in steps:
        first, second = (getattr(machine, name)(*arguments) for machine in machines)
        assert first == second
    assert picture(machines[0]) == picture(machines[1])

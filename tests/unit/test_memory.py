"""A guest's memory: operations, questions, messages, memory maps, the bugs of a kexec."""

from pathlib import Path

import numpy as np
import pytest

from ghcbcore import psc
from ghcbcore._cffi import lib
from ghcbcore.frame import Op
from pysev.memmap import E820Type, MemoryMap
from pysev.memory import Memory, explain_result, words
from pysev.memory.kexec import KexecPages

DATA = Path(__file__).resolve().parents[1] / "data"
REGION = 512


@pytest.fixture
def memory():
    return Memory("64M")


@pytest.fixture
def accepted(memory):
    assert memory.make_private("all", label="accept")
    return memory


def test_a_fresh_memory_belongs_to_the_hypervisor(memory):
    page = memory.page(5)
    assert (page.state, page.mapping, page.listed, page.key) == (
        "hypervisor",
        "unmapped",
        "nothing",
        "never written",
    )
    assert memory.n_pages == 0x4000 and memory.n_bytes < 1 << 20
    assert set(page.since.values()) == {0} and page.since_is_exact
    assert memory.disagreements() == [] and memory.disagreeing() == {}


@pytest.mark.parametrize("mapping", ["shared", "private", "unmapped"])
@pytest.mark.parametrize(("leaf", "n"), [("4K", 8), ("2M", 1024)])
def test_map_changes_the_page_table_alone(memory, mapping, leaf, n):
    assert memory.map_as((0x400, n), mapping, leaf=leaf).n_changed in (0, n)
    page = memory.page(0x400 + n - 1)
    assert page.mapping == mapping and page.leaf == ("4K" if mapping == "unmapped" else leaf)
    assert page.state == "hypervisor" and memory.page(0x400 + n).mapping == "unmapped"


def test_a_leaf_of_1_gib_is_split_down_to_the_page_that_changes():
    memory = Memory("4G")
    memory.map_as((0, 4 << 18), "private", leaf="1G")
    assert memory.counts("leaf") == {"1G": 4 << 30}
    memory.map_as(0x40005, "shared")
    assert memory.counts("leaf") == {"4K": 2 << 20, "2M": (1 << 30) - (2 << 20), "1G": 3 << 30}
    assert memory.page(0x40004).mapping == "private" and memory.page(0x40005).mapping == "shared"
    memory.map_as((0x80000, REGION), "shared", leaf="2M")
    assert memory.counts("leaf")["1G"] == 2 << 30
    assert memory.counts("mapping", frames=(0x80000, 1024)) == {
        "shared": 2 << 20,
        "private": 2 << 20,
    }


def test_accepting_takes_2_mib_pages_where_they_fit(memory):
    memory.make_private((0x1FF, 0x202))
    assert [memory.page(f).large for f in (0x1FF, 0x200, 0x3FF, 0x400)] == [0, 1, 1, 0]
    assert memory.counts("leaf", frames=(0x1FF, 0x202)) == {"4K": 8192, "2M": 2 << 20}
    assert memory.counts("state") == {"hypervisor": (64 << 20) - 0x202000, "guest_valid": 0x202000}
    assert memory.disagreements() == []


def test_sharing_a_page_of_a_2_mib_entry_splits_it_first(accepted):
    outcome = accepted.share((0x210, 3))
    assert outcome and outcome.refused_at is None
    assert accepted.page(0x20F).large is False and accepted.page(0x20F).state == "guest_valid"
    assert accepted.page(0x210).state == "hypervisor" and accepted.page(0x400).large
    assert accepted.counts("listed") == {"shared": 3 * 4096, "private": (64 << 20) - 3 * 4096}
    assert accepted.disagreements() == []
    assert accepted.make_private((0x210, 3)) and accepted.disagreements() == []


@pytest.mark.parametrize(
    "frames", [0x400, (0x400, REGION), np.array([0x400]), np.array([0x400], np.uint64)]
)
def test_a_2_mib_page_is_shared_and_listed_whole_however_it_is_named(accepted, frames):
    assert accepted.share(frames, leaf="2M")
    assert accepted.counts("listed")["shared"] == 2 << 20
    assert accepted.counts("mapping")["shared"] == 2 << 20
    assert accepted.disagreements() == []
    assert accepted.make_private(frames, leaf="2M") and accepted.page(0x5FF).large


def test_sharing_in_4_kib_pages_splits_every_entry(accepted):
    assert accepted.share("all", leaf="4K")
    assert accepted.counts("leaf") == {"4K": 64 << 20}
    assert accepted.make_private("all", leaf="4K")
    assert not accepted.page(0x400).large and accepted.disagreements() == []


def test_sharing_twice_is_refused_by_the_hardware_and_stops_there(accepted):
    accepted.share(0x300)
    outcome = accepted.share((0x2FE, 4))
    assert not outcome and outcome.refused_at == 0x300 and outcome.refusal.startswith("#NPF")
    assert not accepted.page(0x2FE).validated and accepted.page(0x301).validated
    assert accepted.page(0x2FE).state == "guest_invalid"  # nothing after the step that was refused


def test_instructions_of_host_and_guest_have_their_results(memory):
    assert memory.rmpupdate((0x200, REGION), size="2M").n_changed == REGION
    assert "FAIL_OVERLAP" in memory.rmpupdate(0x205, False).refusal
    assert "#NPF" in memory.pvalidate(0x205).refusal
    assert memory.pvalidate(0x200, size="2M") and memory.page(0x3FF).believed
    assert memory.pvalidate(0x200, size="2M").n_changed == 0
    assert memory.pvalidate(0x200, vmpl=1, size="2M").refusal.startswith("#GP")
    assert memory.psmash(0x200) and "FAIL_INPUT" in memory.psmash(0x200).refusal
    assert memory.rmpadjust(0x200, 1, words.rights_of("rw"), vmsa=True)
    page = memory.page(0x200)
    assert page.rights == ("rwuxs", "rw---", "-----", "-----") and page.vmsa
    assert memory.vmrun(0x200) and memory.page(0x200).in_use
    assert "FAIL_INUSE" in memory.rmpupdate(0x200, False).refusal
    assert memory.vmexit(0x200) and memory.rmpupdate(0x200, False)
    assert memory.rmpupdate(0x201, immutable=True) and memory.page(0x201).immutable
    assert memory.firmware("SNP_LAUNCH_UPDATE", 0x201, {"asid": 1}) and memory.page(0x201).validated
    assert "page_state" in memory.firmware("SNP_GCTX_CREATE", 0x201).refusal
    for frame in (0x10, 0x11):
        memory.rmpupdate(frame, immutable=True)
    assert memory.move(0x10, 0x11) and memory.page(0x10).state == "guest_invalid"


def test_a_new_table_forgets_who_owned_a_page(accepted):
    assert accepted.init((0x200, REGION)) and accepted.page(0x200).state == "hypervisor"
    assert accepted.host_access(0x200, "write") and accepted.page(0x200).mapping == "private"
    assert "page_size" in accepted.init((0x3FF, 3)).refusal  # a part of a 2 MiB entry
    for state in ("hv_fixed", "firmware", "default", "hypervisor"):
        assert accepted.init(0x201, state) and accepted.page(0x201).state == state
    names = ("SNP_INIT_EX, IOMMU", "SNP_SHUTDOWN_EX/IOMMU")
    states = ("firmware_iommu", "reclaim")
    for name, state in zip(names, states, strict=True):
        assert accepted.firmware(name, 0x202) and accepted.page(0x202).state == state


def test_accesses_meet_what_the_entry_says(accepted):
    accepted.share(0x700)
    assert accepted.guest_access(0x701, "write", store=True)
    assert accepted.page(0x701).key == "ASID 1"
    assert "enc" not in accepted.guest_access(0x701, "write", c_bit=False).refusal
    assert accepted.guest_access(0x700, "write", c_bit=False, store=True)
    assert accepted.page(0x700).key == "plain"
    assert accepted.host_access(0x700, "write") and accepted.host_access(0x701)
    assert accepted.host_access(0x701, "write").refusal.startswith("#PF 0x80000003: ")
    assert accepted.host_access(0x700, "write", mapping="2M").refusal.startswith("#PF")
    assert accepted.host_access(0x700, "write", c_bit=True, store=True)
    assert accepted.page(0x700).key == "SME"
    assert [d.kind for d in accepted.disagreements(["shared-encrypted"])] == ["shared-encrypted"]
    assert accepted.dma(0x700, "write") and accepted.dma(0x701)
    assert "IOMMU" in accepted.dma(0x701, "write").refusal


def test_what_only_software_notes_refuses_nothing(memory):
    assert memory.believe((5, 2)) and memory.list_as((5, 2), "private")
    kinds = {(d.kind, d.first, d.n_pages) for d in memory.disagreements()}
    assert kinds == {("believed-not-validated", 5, 2), ("listed-private-not-owned", 5, 2)}
    assert memory.disagreeing() == {
        "believed-not-validated": 8192,
        "listed-private-not-owned": 8192,
    }
    assert memory.pages_disagreeing() == 2
    memory.believe((5, 2), False)
    memory.list_as((5, 2), "nothing")
    assert memory.disagreements() == [] and memory.pages_disagreeing() == 0


# Since which event --------------------------------------------------------------------------------


def test_a_disagreement_dates_from_the_event_that_made_it_not_from_the_last_one(accepted):
    outcome = accepted.rmpupdate(0x700, False)
    assert not outcome  # a part of a 2 MiB entry
    accepted.psmash(0x600)
    guilty = accepted.rmpupdate(0x700, False, label="the host takes it")
    accepted.guest_access(0x700, "write", c_bit=False, store=True)  # content: another view
    accepted.list_as(0x700, "shared")
    (found,) = accepted.disagreements(["private-not-owned"])
    assert (found.first, found.n_pages, found.since) == (0x700, 1, guilty.event)
    assert found.since_is_exact
    assert accepted.event_text(found.since).endswith("RMPUPDATE 0x700 (the host takes it)")
    (listed,) = accepted.disagreements(["listed-shared-mapped-private"])
    assert listed.since > guilty.event
    page = accepted.page(0x700)
    assert page.since["rmp"] == guilty.event < page.since["content"] < page.since["host_list"]


def test_an_operation_that_changes_nothing_does_not_make_a_history_younger(accepted):
    before = accepted.page(0x700).since
    accepted.map_as((0x600, REGION), "private", leaf="2M")
    accepted.pvalidate(0x600, size="2M")
    assert accepted.page(0x700).since == before


def test_events_have_texts_unless_nobody_wants_them(memory):
    outcome = memory.map_as((0x10, 4), "shared", label="swiotlb")
    assert str(memory.events[outcome.event]) == "event 1: map 0x10+4 (swiotlb)"
    assert memory.event_text(0) == "from the start"
    silent = Memory("1M", log=False)
    silent.map_as(0, "shared")
    assert silent.events == {} and silent.event_text(1) == "event 1"


def test_changes_since_a_snapshot_name_the_views(accepted):
    before = accepted.snapshot()
    accepted.list_as((0x10, 4), "shared")
    accepted.guest_access((0x12, 4), "write", backing="2M", store=True)
    found = [(r.first, r.n_pages, r.what) for r in accepted.changes(before)]
    assert found == [
        (0x10, 2, "host_list"),
        (0x12, 2, "host_list, content"),
        (0x14, 2, "content"),
    ]
    assert accepted.counts("listed", at=before) == {"private": 64 << 20}
    assert len(accepted.changes(before, max_runs=1)) == 1


# Questions ----------------------------------------------------------------------------------------


def test_runs_and_counts_are_of_a_range_if_one_is_given(accepted):
    accepted.share((0x100, 8))
    shared = [(0x100, 8)]
    assert accepted.runs(lambda v: v["mapping"] == lib.FRAME_SHARED) == shared
    assert accepted.runs(lambda v: v["mapping"] == lib.FRAME_SHARED, frames=(0x104, 2)) == [
        (0x104, 2)
    ]
    assert accepted.counts("mapping", frames=(0x104, 8)) == {"shared": 16384, "private": 16384}
    firsts, lengths = accepted.frames_where(lambda v: v["mapping"] == lib.FRAME_SHARED)
    assert list(zip(firsts.tolist(), lengths.tolist(), strict=True)) == shared
    assert accepted.views_at(np.array([0xFF, 0x100], np.uint64))["assigned"].tolist() == [1, 0]


def test_pages_of_an_asid_are_counted(accepted):
    accepted.psmash(0)
    accepted.rmpupdate((0x10, 3), asid=7)
    assert accepted.pages_assigned_to(7) == 3
    assert accepted.pages_assigned_to(1) == 0x4000 - 3 and accepted.pages_assigned_to(9) == 0


# Messages -----------------------------------------------------------------------------------------


def test_psc_entries_change_the_rmp_and_the_list(accepted):
    shared, private = lib.GHCB_PSC_OP_SHARED, lib.GHCB_PSC_OP_PRIVATE
    raw = psc.encode_entries(
        [0x400, 0x600, 0x605], [shared, lib.GHCB_PSC_OP_PSMASH, shared], [1, 1, 0]
    )
    outcome = accepted.psc(raw, label="PSC")
    assert outcome and (outcome.n_done, outcome.n_changed) == (3, REGION + REGION + 1)
    assert accepted.counts("listed")["shared"] == (REGION + 1) * 4096
    assert {d.kind for d in accepted.disagreements()} >= {"private-not-owned"}
    same = Memory("64M")
    same.make_private("all")
    same.psc(psc.decode_entries(raw))
    assert same.counts() == accepted.counts()
    back = psc.encode_entries([0x400, 0x605], [private, private], [1, 0])
    assert accepted.psc(back) and accepted.counts() == {
        "guest_valid": (64 << 20) - (REGION + 1) * 4096,
        "guest_invalid": (REGION + 1) * 4096,
    }


def test_psc_goes_on_where_an_entry_was_left(memory):
    raw = psc.encode_entries([0x400, 0x600], [1, 1], [1, 1], [500, 512])
    assert memory.psc(raw).n_changed == 12
    assert [memory.page(f).state for f in (0x5F3, 0x5F4, 0x5FF, 0x600)] == [
        "hypervisor",
        "guest_invalid",
        "guest_invalid",
        "hypervisor",
    ]
    assert not memory.page(0x5FF).large


def test_psc_stops_at_the_first_refusal(accepted):
    raw = psc.encode_entries([0x400, 0x605, 0x800], [2, 2, 2], [1, 0, 1])
    outcome = accepted.psc(raw)
    assert (outcome.n_done, outcome.refused_at) == (1, 0x605)
    assert outcome.refusal.startswith("FAIL_OVERLAP")
    assert accepted.page(0x400).state == "hypervisor" and accepted.page(0x800).validated


def test_psc_unsmash_joins_what_firmware_may(memory):
    memory.rmpupdate((0x400, REGION), immutable=True)
    assert memory.psc(psc.encode_entries([0x400], [lib.GHCB_PSC_OP_UNSMASH], [1]))
    assert memory.page(0x5FF).large


def test_frames_of_a_guest_may_lie_elsewhere_in_the_system():
    memory = Memory("64M", shift=0x100000)
    assert memory.psc(psc.encode_entries([0x100400], [1], [1]))
    page = memory.page(0x405)
    assert page.gfn == 0x100405 and page.state == "guest_invalid"
    assert memory.pvalidate(0x400, size="2M")
    assert memory.guest_access(0x405, "write", backing="2M")
    assert memory.map_gpa_range(0x100400 << 12, 3, 0)
    assert memory.page(0x402).listed == "shared" and memory.page(0x403).listed == "private"


def test_map_gpa_range_is_the_list_alone(memory):
    assert memory.map_gpa_range(0x10000, 4, lib.GHCB_MAP_GPA_ENCRYPTED)
    assert memory.counts("listed") == {"nothing": (64 << 20) - 16384, "private": 16384}
    assert memory.map_gpa_range(0x12000, 2, 0) and memory.page(0x13).listed == "shared"
    assert memory.counts("state") == {"hypervisor": 64 << 20}


def test_raw_entries_of_a_log_are_taken_as_they_stand():
    memory = Memory("512G", asid=2)
    memory.load(0x40FDF36, np.array([[0x6010FFFFFFFFF001, 0x1F]], np.uint64), label="oops")
    page = memory.page(0x40FDF36)
    assert (page.state, page.asid, page.gfn, page.vmsa) == ("guest_valid", 2, 0xFFFFFFFFF, True)
    assert memory.host_access(0x40FDF36, "write").refusal.startswith("#PF 0x80000003")
    assert memory.event_text(page.since["rmp"]) == "event 1: load 0x40fdf36+1 (oops)"


def test_results_are_explained():
    assert explain_result(0) == ""
    assert "CF" not in explain_result(1 << lib.FRAME_RESULT_UNCHANGED)
    kinds = [lib.FRAME_RESULT_PF, lib.FRAME_RESULT_NPF, lib.FRAME_RESULT_VC, lib.FRAME_RESULT_GP]
    for kind, name in zip(kinds, ("#PF", "#NPF", "#VC", "#GP"), strict=True):
        assert explain_result(kind << lib.FRAME_RESULT_KIND_SHIFT).startswith(name)
    for status in (0x1A, 0xEE):
        raw = 1 << lib.FRAME_RESULT_KIND_SHIFT | status << lib.FRAME_RESULT_CODE_SHIFT
        assert f"status {status:#04x}" in explain_result(raw)
    assert explain_result(99 << lib.FRAME_RESULT_CODE_SHIFT) == "code 99"


def test_rights_are_letters_both_ways():
    for rights in range(lib.RMP_RIGHTS_ALL + 1):
        assert words.rights_of(words.rights_text(rights)) == rights


# Memory maps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(DATA.glob("e820_*.txt")), ids=lambda p: p.stem)
def test_the_ram_of_a_real_memory_map_and_nothing_else_is_accepted(path):
    memmap = MemoryMap.from_file(path)
    memory = Memory(memmap)
    assert memory.make_private("ram")
    pages = sum((end - start) // 4096 for start, end in memmap.ram_ranges())
    assert memory.counts()["guest_valid"] == pages * 4096
    for start, end in memmap.ram_ranges():
        first, last = start // 4096, end // 4096 - 1
        assert memory.page(first).state == memory.page(last).state == "guest_valid"
        if end // 4096 < memory.n_pages:
            beyond = memory.page(end // 4096).state
            assert beyond == ("guest_valid" if memmap.is_ram([end])[0] else "hypervisor")
    assert memory.disagreements() == []


def test_ranges_that_are_no_whole_pages_are_rounded_inward():
    memmap = MemoryMap([(0x0, 0x9FC00, E820Type.USABLE), (0x100800, 0x300000, E820Type.USABLE)])
    memory = Memory(memmap)
    assert memory.n_pages == 0x300
    assert memory.make_private("ram")
    states = [memory.page(f).state for f in (0, 0x9E, 0x9F, 0x100, 0x101, 0x2FF)]
    valid, host = "guest_valid", "hypervisor"
    assert states == [valid, valid, host, host, valid, valid]


# Kexec --------------------------------------------------------------------------------------------


def through(pages):
    pages.accept()
    pages.share()
    pages.finish()
    pages.boot_again()
    return {(d.kind, d.first, d.n_pages) for d in pages.left_behind()}


GHCBS = (0x1123, 0x2001, 0x3000)
SHARED = ((0x1000, REGION), (0x1FFF, 2), (0x2FF0, 8), (0x3400, 5))


@pytest.mark.parametrize("leaf_base", [True, False])
@pytest.mark.parametrize("strict", [True, False])
def test_the_bugs_of_a_kexec_are_found_at_exactly_the_right_frames(strict, leaf_base):
    pages = KexecPages(Memory("64M"), GHCBS, SHARED, strict=strict, leaf_base=leaf_base)
    found = {(first, n) for kind, first, n in through(pages) if kind == "private-not-owned"}
    k1 = {(0x2000, 1)}  # 0x1fff and 0x2000 are shared, only the page right below 0x2001 is skipped
    k2 = {(0x1000, 0x123)}
    assert found == (set() if strict else k1) | (set() if leaf_base else k2)


def test_a_good_kexec_leaves_nothing_behind_and_counts_its_exits():
    pages = KexecPages(Memory("64M"), GHCBS, SHARED)
    assert through(pages) == set()
    assert pages.exits == {"unshare": 2 + 8 + 5, "GHCBs last": REGION + 2}
    assert pages.memory.counts() == {"guest_valid": 64 << 20}


def test_a_leaf_of_1_gib_is_eight_exits_and_is_unshared_in_2_mib_entries():
    pages = KexecPages(Memory("4G"), [0x10], [])
    pages.accept()
    pages.share()
    pages.memory.share((0x40000, 1 << 18))
    pages.memory.map_as((0x40000, 1 << 18), "shared", leaf="1G")
    pages.finish()
    assert pages.exits == {"unshare": 8, "GHCBs last": 1}
    page = pages.memory.page(0x40123)
    assert (page.leaf, page.large, page.state) == ("1G", True, "guest_valid")


def test_a_kexec_of_a_memory_map_touches_its_ram_alone():
    memmap = MemoryMap.from_file(DATA / "e820_ovmf_qemu_2g.txt")
    memory = Memory(memmap)
    assert through(KexecPages(memory, [0x1001, 0x1003], [(0x2000, 600)])) == set()
    ram = sum(end - start for start, end in memmap.ram_ranges())
    assert memory.counts()["guest_valid"] == ram


def test_op_and_spans_are_open_to_all_operations(memory):
    op = Op(lib.FRAME_OP_MAP, value=lib.FRAME_SHARED)
    firsts, lengths = np.array([4, 16], np.uint64), np.array([2, 1], np.uint64)
    assert memory.spans(op, firsts, lengths, "two").n_done == 3
    assert memory.do(op, np.array([7, 9, 7], np.int32)).n_done == 3
    assert memory.runs(lambda v: v["mapping"] == lib.FRAME_SHARED) == [
        (4, 2),
        (7, 1),
        (9, 1),
        (16, 1),
    ]
    assert str(memory.events[1]) == "event 1: map 2 ranges (two)"

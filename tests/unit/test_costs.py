"""The table of costs, other values for them, and what a machine's size makes of them."""

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange
from pysev import Machine, MemoryMap, costs, find, run, scaling
from pysev.costs import BadCost
from pysev.layout import Part
from pysev.memmap import FOUR_GIB, LARGE_PAGE_BYTES, PAGE_BYTES, E820Type

DATA = Path(__file__).parent.parent / "data"
MAPS = sorted(DATA.glob("e820_*.txt"))
GIB, TIB = 1 << 30, 1 << 40
NUMBERS = [row for row in costs.rows() if row.value is not None]
REPORTS = [row for row in costs.rows() if row.value is None]
TIMES = [row.name for row in NUMBERS if row.unit == "ns"]


# -- the table -----------------------------------------------------------------------------------


def test_names_are_unique_and_every_row_says_what_it_is_and_who_says_so():
    names = [row.name for row in costs.rows()]
    assert len(set(names)) == len(names)
    for row in costs.rows():
        assert row.name.isidentifier() and row.name.islower()
        assert row.what and row.source
        assert row.status in ("source", "derived", "assumption")
        assert (row.value is None) == bool(row.said)


@pytest.mark.parametrize("row", NUMBERS, ids=lambda row: row.name)
def test_a_value_lies_in_its_range_and_is_what_the_module_hands_out(row):
    assert (row.low is None) == (row.high is None)
    if row.low is not None:
        assert row.low <= row.value <= row.high
    assert getattr(costs, row.name.upper()) == row.value == costs.value(row.name)


def test_every_item_of_the_published_table_has_a_row():
    assert costs.STOP_TIMEOUT == costs.CRASH_TIMEOUT == costs.MAILBOX_TEST_TIMEOUT == 10**9
    assert (costs.STOP_POLL, costs.STOP_NMI_TIMEOUT, costs.CRASH_POLL) == (10**3, 10**7, 10**6)
    assert costs.AP_ALIVE_TIMEOUT == 10 * 10**9
    assert (costs.PSC_ENTRIES, costs.PSC_ENTRIES_MAX) == (64, lib.GHCB_PSC_MAX_ENTRIES)
    assert (costs.SVSM_PVALIDATE_ENTRIES, costs.PSC_MSR_PAGES) == (510, 1)
    assert (costs.UNSHARE_EXITS_1G, costs.AP_SHUTDOWN_EXITS) == (8, 1)
    assert (costs.PREFAULT_EXITS, costs.TDX_ACCEPT_4K) == (1024, 8000)
    wbinvd = next(row for row in NUMBERS if row.name == "wbinvd")
    assert (wbinvd.low, wbinvd.high, wbinvd.status) == (100_000, 10_000_000, "assumption")
    assert {row.name for row in REPORTS} == {
        *("tdx_init", "tdx_accept_8g", "tdx_eager_accept", "lazy_accept", "swiotlb"),
        *("crash_reservation", "sev_es_kdump", "snp_host_crash", "large_guests", "snp_kexec"),
    }


def test_eight_exits_for_a_leaf_of_1_gib_are_what_the_batch_gives():
    per_leaf = lib.FRAME_REGION * lib.FRAME_REGION // lib.FRAME_REGION  # entries of 2 MiB
    assert per_leaf // costs.PSC_ENTRIES == costs.UNSHARE_EXITS_1G


def test_an_unknown_constant_is_an_attribute_error_with_the_nearest():
    with pytest.raises(AttributeError, match="nearest is vmgexit"):
        _ = costs.VMGEXITS
    with pytest.raises(AttributeError):
        _ = costs.vmgexit


def test_no_module_keeps_a_cost_beside_the_table():
    plain = [name for name, v in vars(costs).items() if name.isupper() and isinstance(v, int)]
    assert sorted(plain) == [
        "MAX_CHARS",
        "MAX_COUNT",
        "MAX_FILE_BYTES",
        "MAX_NS",
        "MS",
        "NS",
        "S",
        "US",
    ]


# -- other values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("wbinvd=2ms", "wbinvd", 2_000_000),
        ("wbinvd = 1.5 us", "wbinvd", 1500),
        ("init-to-sipi=0ns", "init_to_sipi", 0),
        ("ap_alive_timeout=3s", "ap_alive_timeout", 3 * 10**9),
        ("vmgexit=2\N{MICRO SIGN}s", "vmgexit", 2000),
        ("psc_entries=253", "psc_entries", 253),
        ("wbinvd_serial=0", "wbinvd_serial", 0),
    ],
)
def test_a_cost_is_read(text, name, value):
    assert costs.parse([text]) == {name: value}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("wbinvd", "must be NAME=VALUE"),
        ("", "must be NAME=VALUE"),
        ("wbinv=2ms", "no cost 'wbinv'; the nearest is wbinvd"),
        ("=2ms", "no cost ''"),
        ("wbinvd=2", "a time with its unit"),
        ("wbinvd=-2ms", "a time with its unit"),
        ("wbinvd=2MS", "a time with its unit"),
        ("wbinvd=" + "9" * 1000 + "s", "a time with its unit"),
        ("wbinvd=9999999s", "wbinvd can be 0 to 1000000 s"),
        ("wbinvd=0.5ns", "a fraction of a nanosecond"),
        ("psc_entries=2ms", "a whole number of entries"),
        ("psc_entries=0", "can be 1 to"),
        ("wbinvd_serial=101", "can be 0 to 100 percent"),
        ("swiotlb=6", "is a report"),
        ("x" * 10_000 + "=1ns", "no cost"),
    ],
)
def test_a_bad_cost_is_refused_with_the_reason(text, why):
    with pytest.raises(BadCost) as caught:
        costs.parse([text])
    assert why in str(caught.value)
    assert len(str(caught.value)) < 200


def test_the_last_value_of_a_name_counts():
    assert costs.parse(["ipi=1us", "ipi=2us"]) == {"ipi": 2000}


def test_other_values_count_inside_and_no_longer_outside():
    before = costs.VMGEXIT
    with costs.using({"vmgexit": 7}):
        with costs.using({"ipi": 5}):
            assert (costs.VMGEXIT, costs.IPI) == (7, 5)
            assert costs.changed() == {"ipi": 5, "vmgexit": 7}
        assert (costs.VMGEXIT, costs.changed()) == (7, {"vmgexit": 7})
    assert (costs.VMGEXIT, costs.changed()) == (before, {})


def test_values_that_nobody_asked_for_are_known():
    with costs.using({"vmgexit": 7, "ipi": 5}):
        assert costs.unused() == ("ipi", "vmgexit")
        assert costs.IPI == 5
        assert costs.unused() == ("vmgexit",)


def test_using_checks_what_a_program_hands_it():
    with pytest.raises(BadCost, match="can be 0"), costs.using({"ipi": -1}):
        pass
    with pytest.raises(BadCost, match="no cost"), costs.using({"nothing": 1}):
        pass


@given(st.sampled_from(TIMES), st.integers(0, 10**15), st.sampled_from(["ns", "us", "ms", "s"]))
def test_a_time_is_read_as_it_was_written(name, n, unit):
    ns = n * {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}[unit]
    if ns <= costs.MAX_NS:
        assert costs.parse([f"{name}={n}{unit}"]) == {name: ns}
    else:
        with pytest.raises(BadCost):
            costs.parse([f"{name}={n}{unit}"])


@given(st.text(max_size=60))
def test_any_text_is_a_cost_or_refused(text):
    try:
        found = costs.parse([text])
    except BadCost as error:
        assert str(error)
    else:
        assert len(found) == 1


@pytest.mark.parametrize("head", ["", "[costs]\n"])
def test_a_file_has_costs(tmp_path, head):
    path = tmp_path / "costs.toml"
    path.write_text(head + 'wbinvd = "2ms"\npsc_entries = 128\n')
    assert costs.load(str(path)) == {"wbinvd": 2_000_000, "psc_entries": 128}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"wbinvd = 2ms\n", "no TOML"),
        (b"\xff\xfe", "no TOML"),
        (b"wbinv = '2ms'\n", "the nearest is wbinvd"),
        (b"wbinvd = 2\n", "a time with its unit"),
        (b"wbinvd = true\n", "a time with its unit"),
        (b"psc_entries = true\n", "a whole number"),
        (b"psc_entries = 1.5\n", "a whole number"),
        (b"psc_entries = 99999999999999999999999999\n", "can be 1 to"),
        (b"x = 1\n[costs]\n", "at the top and under"),
        (b"#" * ((1 << 20) + 1), "more than 1 MiB"),
        (b"a=" + b"[" * 100_000, "no TOML"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, data, why):
    path = tmp_path / "costs.toml"
    path.write_bytes(data)
    with pytest.raises(BadCost) as caught:
        costs.load(str(path))
    assert str(caught.value).startswith(str(path)) and why in str(caught.value)


def test_a_flow_built_with_other_costs_takes_other_times():
    scenario = find("sev-es-kexec/jump-table")
    machine = Machine.of(16)
    usual = run(scenario.build(machine), machine)
    with costs.using(costs.parse(["init_to_sipi=0ns", "wbinvd=1s"])):
        fast = run(scenario.build(machine), machine)
    saved = usual.analysis.path_ns - fast.analysis.path_ns
    assert saved > 14 * costs.INIT_TO_SIPI
    assert fast.costs == {"init_to_sipi": 0, "wbinvd": 10**9}
    assert fast.unused_costs == ("wbinvd",)
    assert (usual.costs, usual.unused_costs) == ({}, ())


# -- what a machine's size makes of them -----------------------------------------------------------


def machine_of(n_cpus, memmap):
    return Machine.of(n_cpus, memmap)


def grown(path, n_bytes):
    return scaling.grow(MemoryMap.from_file(path), n_bytes)


def test_unsharing_1_tib_looks_at_524288_leaves_of_2_mib():
    work = scaling.unshare(machine_of(4, MemoryMap.flat(TIB)))
    large = TIB // LARGE_PAGE_BYTES
    assert large <= work.counts["look-ups"] < large * 1.02
    assert work.counts["comparisons"] == work.counts["shared leaves"] * 4
    assert work.exits == work.counts["shared leaves"]


@pytest.mark.parametrize("size", [4 * GIB, TIB, 16 * TIB])
@pytest.mark.parametrize("n_cpus", [1, 64, 4096])
def test_times_are_what_the_formulas_say(size, n_cpus):
    machine = machine_of(n_cpus, MemoryMap.flat(size))
    primes = {"vmgexit": 2003, "rmpupdate": 307, "pvalidate": 503, "rmpadjust": 701, "wbinvd": 9901}
    primes |= {"leaf_lookup": 53, "ghcb_compare": 3, "hypercall_user": 10007, "psc_entries": 61}
    with costs.using(primes):
        unshare, ghcbs = scaling.unshare(machine), scaling.unshare_ghcbs(machine)
        accept, down = scaling.accept(machine), scaling.shut_aps_down(machine)
        reset = scaling.migration_reset(machine)
    n = unshare.counts
    each = 2003 + 307 + 503
    assert unshare.ns == (n["look-ups"] * 53 + n["comparisons"] * 3 + n["shared leaves"] * each)
    assert (ghcbs.ns, ghcbs.exits) == (n_cpus * each, n_cpus)
    pages = accept.counts["2 MiB pages"] + accept.counts["4 KiB pages"]
    assert accept.exits == math.ceil(pages / 61)
    assert accept.ns == accept.exits * 2003 + pages * (307 + 503)
    assert (down.ns, down.exits) == ((n_cpus - 1) * (2003 + 701), n_cpus - 1)
    assert reset.ns == reset.exits * 10007


def test_leaves_agree_with_the_ledger_of_a_real_walk():
    """The same guest in the memory ledger: as many shared leaves as the formula has exits."""
    from pysev.memory.kexec import KexecPages
    from pysev.memory.memory import Memory

    machine = machine_of(8, MemoryMap.flat(8 * GIB))
    layout = machine.layout
    ghcbs = [int(gpa) // PAGE_BYTES for gpa in layout.ghcb_gpas()]
    pages = KexecPages(Memory(layout.memmap), ghcbs)
    pages.accept()
    swiotlb, pv = layout[Part.SWIOTLB], layout[Part.PV_PAGES]
    memory = pages.memory
    first, n = swiotlb.start // PAGE_BYTES, swiotlb.size_bytes // PAGE_BYTES
    assert memory.share((first, n))
    for frame in range(pv.start // PAGE_BYTES, pv.end // PAGE_BYTES):
        assert memory.share((frame, 1), leaf="4K")
    for frame in ghcbs:
        assert memory.share((frame, 1), leaf="4K")
    pages.finish()
    assert pages.exits["unshare"] == scaling.unshare(machine).exits
    assert pages.exits["GHCBs last"] == scaling.unshare_ghcbs(machine).exits
    assert not pages.left_behind()


def test_each_ram_entry_of_the_map_costs_a_hypercall():
    for path in MAPS:
        if "upper" in path.name:
            continue  # only what lies above 1 MiB there: no kernel fits
        memmap = MemoryMap.from_file(path)
        n = path.read_text().count("usable")
        work = scaling.migration_reset(machine_of(2, memmap))
        assert (work.exits, work.ns) == (n, n * costs.HYPERCALL_USER)


def test_wbinvd_grows_with_those_that_do_it_at_once():
    machine = machine_of(64, None)
    alone = scaling.wbinvd(machine, 1)
    assert alone.ns == costs.WBINVD
    assert scaling.wbinvd(machine, 0).ns == 0
    assert scaling.wbinvd(machine).ns == costs.WBINVD * (100 + 63 * costs.WBINVD_SERIAL) // 100


def slow_steps(at, end):
    """Look-ups over a hole, entry by entry."""
    n = 0
    while at < end:
        at += next(s for s in scaling.ENTRY_BYTES if at % s == 0 and (at + s <= end or s == 4096))
        n += 1
    return n


@given(st.integers(0, 1 << 20), st.integers(0, 1 << 20))
def test_look_ups_over_a_hole_go_by_whole_entries(first, n):
    at, end = first * PAGE_BYTES, (first + n) * PAGE_BYTES
    assert scaling._steps_over(at, end) == slow_steps(at, end)


# -- maps that are grown ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64 * GIB, TIB, 16 * TIB])
@pytest.mark.parametrize("path", MAPS, ids=lambda path: path.stem)
def test_a_real_map_is_grown_to_a_size(path, size):
    before, after = MemoryMap.from_file(path), grown(path, size)
    assert after.ram_bytes == size
    assert [row for row in after if row[1] <= FOUR_GIB] == [r for r in before if r[1] <= FOUR_GIB]
    high = [row for row in before if row[1] > FOUR_GIB]
    changed = [row for row in after if row[1] > FOUR_GIB]
    if any(kind == E820Type.USABLE for _, _, kind in high):
        assert [kind for _, _, kind in changed] == [kind for _, _, kind in high]
        gaps = [b[0] - a[1] for a, b in pairwise(high)]
        assert [b[0] - a[1] for a, b in pairwise(changed)] == gaps
        for a, b in zip(high, changed, strict=True):
            if a[2] != E820Type.USABLE:
                assert a[1] - a[0] == b[1] - b[0]
    assert not any(start % PAGE_BYTES for start, _, _ in changed)


def test_a_grown_map_takes_a_kexec_of_4096_cpus():
    path = DATA / "e820_epyc_volcano_769g.txt"
    machine = machine_of(4096, grown(path, 16 * TIB))
    result = run(find("sev-es-kexec/jump-table").build(machine), machine)
    assert (result.verdict, result.cpus["online"]) == ("holds", 4096)


def test_a_map_is_not_shrunk_below_what_it_has_under_4_gib():
    path = DATA / "e820_epyc_volcano_769g.txt"
    with pytest.raises(OutOfRange, match="cannot be shrunk to 1G"):
        grown(path, GIB)
    with pytest.raises(OutOfRange, match="52 address bits"):
        grown(path, 1 << 52)


def test_growing_to_the_same_size_changes_nothing():
    path = DATA / "e820_epyc_volcano_769g.txt"
    before = MemoryMap.from_file(path)
    after = scaling.grow(before, before.ram_bytes)
    assert after.ram_bytes == before.ram_bytes and len(after) == len(before)


# -- the command -----------------------------------------------------------------------------------


def pysev(*args):
    return subprocess.run(
        [sys.executable, "-P", "-m", "pysev", *args], capture_output=True, text=True, timeout=60
    )


def test_the_command_prints_every_row():
    done = pysev("costs", "--cost", "wbinvd=3ms")
    assert (done.returncode, done.stderr) == (0, "")
    for row in costs.rows():
        assert row.name in done.stdout and row.source in done.stdout
    assert "3 ms (100 us to 10 ms), the table has 1 ms" in done.stdout


def test_the_command_says_what_a_machine_makes_of_them():
    import json

    done = pysev("costs", "--cpus", "4096", "--memory", "16T", "--json")
    found = json.loads(done.stdout)
    assert [row["name"] for row in found["costs"]] == [row.name for row in costs.rows()]
    works = {work["what"]: work for work in found["machine"]["work"]}
    assert found["machine"]["cpus"] == 4096
    assert works["shut the APs down"]["vmgexits"] == 4095
    assert works["accept all memory"]["counts"]["2 MiB pages"] == 16 * TIB // LARGE_PAGE_BYTES - 3


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("costs", "--cost", "wbinv=2ms"), "the nearest is wbinvd"),
        (("costs", "--costs", "missing.toml"), "missing.toml: No such file"),
        (("costs", "--cpus", "0"), "0 CPUs"),
        (("costs", "--grow", "1T"), "--grow is for a --memmap"),
        (("run", "sev-es-kexec/jump-table", "--cost", "x"), "NAME=VALUE"),
    ],
)
def test_the_command_refuses_in_one_line(args, why):
    done = pysev(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr and len(done.stderr.splitlines()) == 1

"""What ``pysev doctor`` makes of a reverse map table in segments: its lines, and its memory."""

import io
from pathlib import Path

import pytest

from pysev.doctor import diagnose

DATA = Path(__file__).parent.parent / "data"
WILD = [
    line
    for line in (DATA / "rmp_segmented.txt").read_text().splitlines()
    if line.startswith("SEV-SNP: ")
]
# Memory of a machine with that table: RAM below 34 GiB and in the first quarter above 1 TiB.
MAP = [
    f"BIOS-e820: [mem {start:#018x}-{end:#018x}] {kind}"
    for start, end, kind in (
        (0x100000, 0x87FFFFF, "usable"),
        (0x8800000, 0x10FFFFFF, "reserved"),
        (0x11000000, 0x359FFFFF, "usable"),
        (0x35A00000, 0x559FFFFF, "reserved"),
        (0x55A00000, 0x55AFFFFF, "usable"),
        (0x55B00000, 0x75AFFFFF, "reserved"),
        (0x75B00000, 0x9B9FFFFF, "usable"),
        (0x9BA00000, 0x9BBFFFFF, "reserved"),
        (0x100000000, 0x87FFFFFFF, "usable"),
        (0x10000000000, 0x13FFFFFFFFF, "usable"),
    )
]


def read(*lines: str):
    return diagnose(io.BytesIO("".join(f"{line}\n" for line in lines).encode()))


def findings(*lines: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in read(*lines).findings:
        found.setdefault(one.name, []).append(one.words)
    return found


def without(text: str) -> list[str]:
    left = [line for line in WILD if text not in line]
    assert len(left) < len(WILD)
    return left


def changed(old: str, new: str) -> list[str]:
    assert any(old in line for line in WILD)
    return [line.replace(old, new) for line in WILD]


def test_the_table_of_the_wild_is_good_and_its_two_pieces_are_kept():
    found = findings(*MAP, *WILD)
    assert set(found) == {"rmp_edge_reserved"}
    assert [words.split(" is not")[0] for words in found["rmp_edge_reserved"]] == [
        "the RMP's start of segment 8",
        "the RMP's end of segment 8",
    ]


def test_without_the_kernels_lines_the_two_pieces_are_free():
    found = findings(*MAP, *without("Reserving"))
    assert len(found["rmp_edge_free"]) == 2
    assert "[0x55a00000 - 0x55bfffff]" in found["rmp_edge_free"][0]


def test_without_a_map_nobody_knows_who_uses_the_pieces():
    found = findings(*without("Reserving"))
    assert len(found["rmp_edge_unknown"]) == 3
    assert not read(*without("Reserving")).has_problem


def test_a_piece_that_no_edge_shares_is_odd():
    extra = "SEV-SNP: Reserving start/end of RMP table on a 2MB boundary [0x0000000035a00000]"
    assert "0x35a00000" in findings(*WILD, extra)["rmp_reserve_odd"][0]


def test_kexec_into_the_edge_of_a_segment_is_an_error():
    line = "segment[0]: bufsz=0x4000 mem=0x75b00000 memsz=0x5000"
    assert "end of segment 8" in findings(*WILD, line)["kexec_in_edge"][0]
    line = "segment[0]: bufsz=0x4000 mem=0x75c00000 memsz=0x5000"
    assert "kexec_in_edge" not in findings(*WILD, line)


def test_ram_in_a_hole_between_segments_is_named_as_a_warning():
    above = [line.replace("87fffffff", "8bfffffff") for line in MAP]
    found = read(*above, *WILD)
    (one,) = [one for one in found.findings if one.name == "rmp_hole"]
    assert one.severity == "warning"
    assert "[0x880000000 - 0x8bfffffff], 1G in all" in one.words
    assert "rmp_cover" not in {one.name for one in found.findings}


def test_ram_above_the_last_segment_is_an_error():
    lines = [line.replace("13fffffffff", "1403fffffff") for line in MAP]
    (words,) = findings(*lines, *WILD)["rmp_cover"]
    assert "covers memory up to 0x14000000000, RAM goes up to 0x14040000000: 1G have" in words


def test_the_end_of_ram_will_do_where_there_is_no_map():
    line = "last_pfn = 0x14040000 max_arch_pfn = 0x10000000000"
    assert "1G have no entry" in findings(*WILD, line)["rmp_cover"][0]
    assert "rmp_cover" not in findings(*WILD, line.replace("0x1404", "0x1400"))


def test_ram_where_a_segment_lies_is_an_error():
    lines = [line.replace("reserved", "usable") for line in MAP]
    assert "1187860K of the RMP" in findings(*lines, *WILD)["rmp_in_ram"][0]


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("[0x55b00000", "[0x35b00000", "overlap those of rst[8]"),
        ("[0x55b00000", "[0x9ba00000", "overlap bookkeeping and table of segments"),
        ("[0x55b00000", "[0x55b01000", "no multiple of 1 MiB"),
        ("[0x10000000000", "[0x10040000000", "segment 8: must begin at 0x10000000000"),
        ("0x11fffffffff", "0x12fffffffff", "segment 8: must cover whole GiB, 128 at most"),
        ("0x11fffffffff", "0x11fffff0000", "segment 8: must cover whole GiB"),
        ("0x11fffffffff", "0x0", "segment 8: must cover whole GiB"),
        ("segment 8 ", "segment 512 ", "segment 512: a table has 512"),
        ("128GB", "96GB", "no segment covers 96 GiB"),
        ("128GB", "0GB", "no segment covers 0 GiB"),
        ("128GB", "8388608GB", "must be 2**30 to 2**52"),
        ("[0x000000009ba00000", "[0x0", "the BIOS has set no memory aside"),
    ],
)
def test_lines_that_contradict_each_other_are_an_error(old, new, why):
    lines = changed(old, new)
    if "8388608" in new:
        lines = [line for line in lines if "covering" not in line]
    assert why in findings(*lines)["rmp_geometry"][0]


def test_a_segment_that_is_told_twice_must_be_the_same():
    again = next(line for line in WILD if "segment 8" in line)
    assert "rmp_geometry" not in findings(*WILD, again)
    other = again.replace("55b00000", "56b00000")
    assert "two lines say different things" in findings(*WILD, other)["rmp_geometry"][0]


@pytest.mark.parametrize("gone", ["base table", "using 128GB"])
def test_a_table_of_which_lines_are_missing_is_not_judged(gone):
    found = findings(*MAP, *without(gone))
    assert not {name for name in found if name.startswith("rmp_")}


def test_more_lines_than_segments_are_not_judged():
    line = "SEV-SNP: RMP segment {} physical address [0x100000 - 0x4fffff] covering [0x0 - 0x1]"
    assert "rmp_geometry" in findings(*WILD, line.format(77))
    many = [line.format(77)] * 600
    assert "rmp_geometry" not in findings(*WILD, *many)


def test_tables_in_both_forms_are_two_machines_and_not_held_against_memory():
    contiguous = "SEV-SNP: RMP table physical range [0x0000000011600000 - 0x00000000119fffff]"
    assert "rmp_cover" in findings(*MAP, contiguous)
    assert "rmp_cover" not in findings(*MAP, contiguous, *WILD)

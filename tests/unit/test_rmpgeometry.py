"""Where the reverse map table lies: values of the specification, tables of the wild, refusals."""

import re
from pathlib import Path

import numpy as np
import pytest

from ghcbcore import rmp, rmpgeometry
from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange, ReservedBitsSet, StateConflict, Unaligned

DATA = Path(__file__).parent.parent / "data"
GIB = 1 << 30

RANGE = re.compile(r"table physical (?:range|address) \[?(0x[0-9a-f]+) - (0x[0-9a-f]+)")
SEGMENT = re.compile(
    r"segment (\d+) physical address \[(0x\w+) - (0x\w+)\] covering \[(0x\w+) - (0x\w+)\]"
)
RANGES = [
    tuple(int(text, 16) for text in found)
    for name in ("rmp_table_ranges.txt", "rmp_kexec_fixup_400fea4b9651.txt")
    for found in RANGE.findall((DATA / name).read_text())
]


def u64(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def test_seven_ranges_of_the_wild_are_read():
    assert len(RANGES) == len(set(RANGES)) == 7


@pytest.mark.parametrize(("base", "end"), RANGES, ids=[f"{base:#x}" for base, _ in RANGES])
def test_a_range_of_the_wild_is_the_same_table_through_both_modules(base, end):
    table, geometry = rmp.table(base, end), rmpgeometry.contiguous(base, end)
    assert geometry.n_entries == table.n_entries == (end + 1 - base - 0x4000) // 16
    assert rmpgeometry.coverage(geometry).tolist() == [[0, table.n_entries << 12]]
    assert geometry.is_aligned and table.is_aligned
    pages = u64(0, 1, table.n_entries - 1)
    where = rmpgeometry.entry_addresses(geometry, pages)
    assert where.tolist() == [base + 0x4000, base + 0x4010, end + 1 - 16]
    assert rmp.entry_addresses(table, pages).tolist() == where.tolist()
    assert rmpgeometry.pages_of(geometry, where).tolist() == pages.tolist()
    assert rmpgeometry.has_entry(geometry, u64(table.n_entries)).tolist() == [False]


@pytest.mark.parametrize(
    ("base", "end", "n_entries", "covered"),
    [
        (0x11500000, 0x51DFFFFF, 67_697_664, 0x408FC00000),
        (0x7FFE500000, 0x807EDFFFFF, 134_806_528, 0x808FC00000),
    ],
)
def test_contiguous_tables_of_the_specification(base, end, n_entries, covered):
    geometry = rmpgeometry.contiguous(base, end)
    assert geometry.n_entries == n_entries
    assert rmpgeometry.coverage(geometry).tolist() == [[0, covered]]


def test_entry_of_page_0x100000_lies_where_the_specification_says():
    geometry = rmpgeometry.contiguous(0x11500000, 0x51DFFFFF)
    assert rmpgeometry.entry_addresses(geometry, u64(0x100000)).tolist() == [0x12504000]


def test_config_of_the_specification_has_segments_of_64_gib():
    config = rmpgeometry.decode_config(0x2401)
    assert config == (1, 36, lib.GHCB_OK)
    assert 1 << config.shift == 64 * GIB
    geometry = rmpgeometry.segments(u64(0x10000040, 0, 0x20000040), 0x2401, 0x1000000)
    assert rmpgeometry.coverage(geometry).tolist() == [[0, 64 * GIB], [128 * GIB, 192 * GIB]]


def wild() -> tuple[np.ndarray, list[list[int]]]:
    """Return the RST of the segmented table of the wild, and the rows of its log."""
    rows = [
        [int(text, 0) for text in found]
        for found in SEGMENT.findall((DATA / "rmp_segmented.txt").read_text())
    ]
    rst = np.zeros(lib.RMP_SEGMENTS, np.uint64)
    for index, start, _, first, last in rows:
        rst[index] = start | (last + 1 - first) // GIB
    return rst, rows


def test_the_segmented_table_of_the_wild_lies_as_its_log_says():
    rst, rows = wild()
    assert [row[0] for row in rows] == [0, 8, 9]
    limits = rmpgeometry.Limits(30, 40, 512, 1)
    geometry = rmpgeometry.segments(rst, 0x2501, 0x9BA00000, limits=limits)
    assert (geometry.n_segments, geometry.shift) == (3, 37)
    index, ranges = rmpgeometry.places(geometry)
    assert index.tolist() == [-1, 0, 8, 9]
    assert ranges.tolist()[0] == [0x9BA00000, 0x9BA05000]
    assert ranges.tolist()[1:] == [[start, end + 1] for _, start, end, _, _ in rows]
    for _, start, end, first, last in rows:
        pages = u64(first >> 12, last >> 12)
        assert rmpgeometry.entry_addresses(geometry, pages).tolist() == [start, end + 1 - 16]
    # Segments 8 and 9 touch; between 34 GiB and 1 TiB no page has an entry.
    assert rmpgeometry.coverage(geometry).tolist() == [[0, 34 * GIB], [1024 * GIB, 1280 * GIB]]
    gap = u64(34 * GIB >> 12, 1024 * GIB - 4096 >> 12, 1280 * GIB >> 12)
    assert not rmpgeometry.has_entry(geometry, gap).any()


@pytest.mark.parametrize(
    ("rst", "cfg", "base", "limits", "error", "text"),
    [
        ((0x100001,), 0x12401, 0x10000000, None, ReservedBitsSet, "RMP_CFG = 0x12401: a bit"),
        ((0x100001,), 0x2400, 0x10000000, None, StateConflict, "RMP_CFG = 0x2400: the table is"),
        ((0x100001,), 0x1D01, 0x10000000, None, OutOfRange, "2**29 bytes, must be 2**30 to 2**52"),
        ((0x100001,), 0x3501, 0x10000000, None, OutOfRange, "2**53 bytes, must be 2**30 to 2**52"),
        ((0x100001,), 0x2401, 0x10000000, (37, 40, 9, 0), OutOfRange, "must be 2**37 to 2**40"),
        ((0x100001,), 0x2901, 0x10000000, (37, 40, 9, 0), OutOfRange, "must be 2**37 to 2**40"),
        ((0x100001,), 0x2401, 0x0, None, StateConflict, "RMP_BASE = 0x0: the BIOS has set no"),
        ((0x100001,), 0x2401, 0x1000, None, StateConflict, "RMP_BASE = 0x1000: the BIOS has"),
        ((0x100001,), 0x2401, 0x10001000, None, Unaligned, "RMP_BASE = 0x10001000: no multiple"),
        ((), 0x2401, (1 << 52) - 8192, None, OutOfRange, "RMP_BASE = 0xfffffffffe000: the table"),
        ((0, 1 << 52), 0x2401, 0x10000000, None, ReservedBitsSet, "rst[1] = 0x10000000000000: a"),
        ((1, 0x900001), 0x2401, 0x10000000, (30, 40, 1, 1), OutOfRange, "rst[1] = 0x900001: the p"),
        ((0x100041,), 0x2401, 0x10000000, None, OutOfRange, "rst[0] = 0x100041: 65 GiB are mapped"),
        ((0, 0x100001), 0x3401, 0x10000000, None, OutOfRange, "rst[1] = 0x100001: it covers pages"),
        ((0xFFFFFFFC00002,), 0x2401, 0x10000000, None, OutOfRange, "its entries end above 52"),
        ((0xFE00010,), 0x2401, 0x10000000, None, StateConflict, "overlap bookkeeping and table of"),
        ((0x100004, 0xA00001), 0x2401, 0x10000000, None, StateConflict, "rst[1] = 0xa00001: its e"),
        ((0xA00001, 0x100004), 0x2401, 0x10000000, None, StateConflict, "overlap those of rst[0]"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused_by_its_element(
    rst, cfg, base, limits, error, text
):
    with pytest.raises(error, match=re.escape(text)):
        rmpgeometry.segments(u64(*rst), cfg, base, limits=limits)


def test_what_touches_does_not_overlap():
    # 4 MiB of entries each, back to back, the last ending where the base table begins
    geometry = rmpgeometry.segments(u64(0x500001, 0x100001, 0x900001), 0x2401, 0xD00000)
    assert geometry.n_segments == 3
    assert rmpgeometry.pages_of(geometry, u64(0x4FFFF0, 0x500000)).tolist() == [0x103FFFF, 0]


@pytest.mark.parametrize("rst", [(0x100001, 0x400001), (0x400001, 0x100001)])
def test_an_overlap_of_one_mib_is_one(rst):
    with pytest.raises(StateConflict, match=r"rst\[1\] = .* overlap those of rst\[0\]"):
        rmpgeometry.segments(u64(*rst), 0x2401, 0x10000000)


def test_the_last_page_of_52_bits_and_the_last_address_can_be_used():
    last = 255  # of segments of 2**44 bytes
    rst = np.zeros(257, np.uint64)
    rst[last] = 0x10000000 | 1 << 14
    geometry = rmpgeometry.segments(rst, 0x2C01, 0x1000000)
    assert rmpgeometry.coverage(geometry).tolist() == [[255 << 44, 1 << 52]]
    assert rmpgeometry.has_entry(geometry, u64((1 << 40) - 1, 1 << 40)).tolist() == [True, False]
    rst[256] = 0x2000000000 | 1
    with pytest.raises(OutOfRange, match=r"rst\[256\] = .*: it covers pages above 52"):
        rmpgeometry.segments(rst, 0x2C01, 0x1000000)
    top = rmpgeometry.segments(u64(0xFFFFFFFC00001), 0x2401, 0x1000000)
    assert rmpgeometry.places(top)[1].tolist()[1] == [(1 << 52) - (4 << 20), 1 << 52]


def test_linux_takes_what_maps_too_much_for_what_the_segment_covers():
    rst = u64(0x10000041, 0x20000040)
    with pytest.raises(OutOfRange, match="65 GiB are mapped, a segment covers 64"):
        rmpgeometry.segments(rst, 0x2401, 0x1000000)
    reduced = rmpgeometry.segments(rst, 0x2401, 0x1000000, is_reduced=True)
    assert rmpgeometry.coverage(reduced).tolist() == [[0, 128 * GIB]]
    assert rmpgeometry.places(reduced)[1].tolist()[1] == [0x10000000, 0x20000000]


def test_a_limit_that_is_not_hard_bounds_no_index():
    rst = u64(0, 0, 0x100001)
    soft = rmpgeometry.segments(rst, 0x2401, 0x10000000, limits=rmpgeometry.Limits(30, 40, 1, 0))
    assert soft.n_segments == 1
    # a word that maps nothing is not a segment, wherever it stands
    rmpgeometry.segments(u64(0, 0, 0x100000), 0x2401, 0x10000000, limits=(30, 40, 1, 1))


def test_limits_of_cpuid_are_taken_apart():
    assert rmpgeometry.decode_limits(0x1F << 12 | 40 << 6 | 31, 1 << 11 | 1 << 10 | 1023) == (
        31,
        40,
        1023,
        1,
    )
    with pytest.raises(OutOfRange, match="eax = 0x100000000"):
        rmpgeometry.decode_limits(1 << 32, 0)


def test_words_are_put_together_or_refused_by_index():
    records = np.zeros(2, rmpgeometry.SEGMENT_DTYPE)
    records["spa"], records["mapped_gib"] = [0x55B00000, 0x35A00000], [128, 64]
    assert [hex(word) for word in rmpgeometry.encode_segments(records)] == [
        "0x55b00080",
        "0x35a00040",
    ]
    for field, value, error in (
        ("spa", 0x55B01000, Unaligned),
        ("spa", 1 << 52, OutOfRange),
        ("mapped_gib", 1 << 20, OutOfRange),
    ):
        wrong = records.copy()
        wrong[field][1] = value
        with pytest.raises(error, match=r"records\[1\]: spa "):
            rmpgeometry.encode_segments(wrong)
    for arguments in ((2, 36), (1, 64)):
        with pytest.raises(OutOfRange, match="do not fit 1 and 6 bits"):
            rmpgeometry.encode_config(*arguments)


def test_a_table_of_segments_has_at_most_512_words():
    rst = np.zeros(513, np.uint64)
    with pytest.raises(ValueError, match="rst has 513 words"):
        rmpgeometry.segments(rst, 0x2401, 0x10000000)
    assert rmpgeometry.segments(rst[:512], 0x2401, 0x10000000).n_entries == 0


def test_the_last_of_512_segments_is_found():
    rst = u64(*((i + 1 << 24) | 4 for i in range(512)))  # 16 MiB of entries each
    geometry = rmpgeometry.segments(rst[::-1].copy(), 0x2001, 0x100000)
    assert geometry.n_segments == 512
    assert rmpgeometry.coverage(geometry).tolist() == [[0, 2048 * GIB]]
    last = u64((2048 * GIB >> 12) - 1)
    assert rmpgeometry.entry_addresses(geometry, last).tolist() == [0x2000000 - 16]
    pages = np.arange(0, 2048 * GIB >> 12, 104729, dtype=np.uint64)
    where = rmpgeometry.entry_addresses(geometry, pages)
    assert rmpgeometry.pages_of(geometry, where).tolist() == pages.tolist()


def test_a_geometry_is_made_by_functions_and_shows_itself():
    with pytest.raises(TypeError, match=r"contiguous\(\) or segments\(\)"):
        rmpgeometry.Geometry()
    made = rmpgeometry.contiguous(0x11500000, 0x51DFFFFF)
    assert repr(made) == "<Geometry contiguous at 0x11500000: 67697664 entries>"
    assert made != rmpgeometry.contiguous(0x11500000, 0x51EFFFFF)
    assert made != "table"
    with pytest.raises(AttributeError):
        made.registers = ()
    with pytest.raises(OutOfRange, match="RMP_BASE = 0x51500000"):
        rmpgeometry.contiguous(0x51500000, 0x11DFFFFF)


def test_a_geometry_that_nobody_made_has_no_entry():
    empty = rmpgeometry.Geometry.__new__(rmpgeometry.Geometry)
    assert (empty.n_entries, empty.n_segments) == (0, 0)
    assert rmpgeometry.has_entry(empty, u64(0, 1 << 40, (1 << 64) - 1)).tolist() == [False] * 3
    assert rmpgeometry.coverage(empty).shape == (0, 2)
    assert rmpgeometry.places(empty)[1].tolist() == [[0, 0]]
    with pytest.raises(OutOfRange, match="spas"):
        rmpgeometry.pages_of(empty, u64(0))


@pytest.mark.parametrize("wrong", ["0x2401", 36.0, None])
def test_a_register_that_is_no_integer_is_refused_by_name(wrong):
    with pytest.raises(TypeError, match="cfg is "):
        rmpgeometry.segments(u64(), wrong, 0x10000000)
    with pytest.raises(TypeError, match="word is "):
        rmpgeometry.decode_segment(wrong)


def test_strides_and_other_dtypes_are_refused():
    geometry = rmpgeometry.contiguous(0x11500000, 0x51DFFFFF)
    with pytest.raises(ValueError):
        rmpgeometry.has_entry(geometry, np.zeros(4, np.int64))
    with pytest.raises(ValueError):
        rmpgeometry.has_entry(geometry, np.zeros(4, np.uint64)[::2])
    assert rmpgeometry.entry_addresses(geometry, u64()).shape == (0,)
    frozen = u64(0)
    frozen.setflags(write=False)
    assert rmpgeometry.has_entry(geometry, frozen).tolist() == [True]

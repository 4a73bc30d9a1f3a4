"""The GHCB page is where other implementations have it, and so are its valid bits."""

import csv
from pathlib import Path

import pytest

from ghcbcore._cffi import ffi, lib

DATA = Path(__file__).resolve().parents[1] / "data"


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(newline="") as file:
        assert "Origin:" in next(file)
        return list(csv.DictReader(file))


LAYOUT, BITMAPS = rows("ghcb_page_layout.csv"), rows("valid_bitmaps.csv")
FIELDS = [name for name, _ in ffi.typeof("ghcb_page_t").fields]
NAMED = [name for name in FIELDS if not name.startswith("reserved_")]


@pytest.mark.parametrize("row", LAYOUT, ids=lambda row: row["field"])
def test_field_is_where_edk2_and_enarx_have_it(row):
    offset = int(row["offset"], 16)
    assert ffi.offsetof("ghcb_page_t", row["field"]) == offset
    assert getattr(lib, f"GHCB_OFF_{row['field'].upper()}") == offset


def test_every_named_field_has_an_offset_and_the_other_way_round():
    offsets = {name.removeprefix("GHCB_OFF_").lower() for name in dir(lib) if "GHCB_OFF_" in name}
    assert offsets == set(NAMED)


@pytest.mark.parametrize("field", NAMED)
def test_offset_names_the_field_of_the_struct(field):
    assert getattr(lib, f"GHCB_OFF_{field.upper()}") == ffi.offsetof("ghcb_page_t", field)


def test_gaps_are_named_by_their_offset():
    gaps = [name for name in FIELDS if name.startswith("reserved_")]
    assert [int(name.removeprefix("reserved_"), 16) for name in gaps] == [
        ffi.offsetof("ghcb_page_t", name) for name in gaps
    ]


def test_page_has_no_padding():
    page = ffi.typeof("ghcb_page_t")
    assert sum(ffi.sizeof(field.type) for _, field in page.fields) == ffi.sizeof(page)
    assert ffi.sizeof(page) == lib.GHCB_PAGE_SIZE


def test_every_field_below_the_bitmap_has_a_valid_bit_and_no_other_has():
    bits = {name.removeprefix("GHCB_VALID_").lower() for name in dir(lib) if "GHCB_VALID_" in name}
    below = {
        name for name in NAMED if ffi.offsetof("ghcb_page_t", name) < lib.GHCB_OFF_VALID_BITMAP
    }
    assert bits - {"bits"} == below


@pytest.mark.parametrize("row", BITMAPS, ids=lambda row: row["case"])
def test_marking_fields_valid_gives_the_bitmap(row):
    words = ffi.new("uint64_t[2]")
    fields = row["fields"].split()
    for field in fields:
        bit = getattr(lib, f"GHCB_VALID_{field.upper()}")
        assert not lib.ghcb_valid_test(words, bit)
        assert lib.ghcb_valid_set(words, bit) == lib.GHCB_OK
        assert lib.ghcb_valid_test(words, bit)
    assert [f"{word:#018x}" for word in words] == [row["low"], row["high"]]
    assert sum(lib.ghcb_valid_test(words, bit) for bit in range(128)) == len(fields)


@pytest.mark.parametrize(
    ("case", "low", "high"),
    [
        ("base", lib.GHCB_REQUEST_VALID_LO, lib.GHCB_REQUEST_VALID_HI),
        ("kvm reply", lib.GHCB_KVM_REPLY_VALID_LO, lib.GHCB_KVM_REPLY_VALID_HI),
    ],
)
def test_named_bitmap_is_that_of_the_vector(case, low, high):
    row = next(row for row in BITMAPS if row["case"] == case)
    assert (low, high) == (int(row["low"], 16), int(row["high"], 16))


@pytest.mark.parametrize("bit", [128, 129, 256 + 66, 2**31, 2**32 - 1])
def test_a_bit_beyond_the_bitmap_is_never_valid_and_cannot_be_set(bit):
    words = ffi.new("uint64_t[3]", [2**64 - 1] * 2)
    assert lib.ghcb_valid_test(words, bit) == 0
    assert lib.ghcb_valid_set(words, bit) == lib.GHCB_E_OUT_OF_RANGE
    assert list(words) == [2**64 - 1, 2**64 - 1, 0]


@pytest.mark.parametrize("bit", [0, 1, 31, 32, 62, 63, 64, 65, 126, 127])
def test_setting_a_bit_sets_that_bit_alone(bit):
    words = ffi.new("uint64_t[2]")
    assert lib.ghcb_valid_set(words, bit) == lib.GHCB_OK
    assert words[0] | words[1] << 64 == 1 << bit
    assert [b for b in range(128) if lib.ghcb_valid_test(words, b)] == [bit]


@pytest.mark.parametrize("row", rows("edk2_exit_codes.csv"), ids=lambda row: row["ours"])
def test_exit_code_is_that_of_edk2(row):
    assert getattr(lib, row["ours"]) == int(row["code"], 16)


def test_a_page_state_descriptor_fills_the_shared_buffer():
    assert lib.GHCB_PSC_MAX_ENTRIES == 253
    used = lib.GHCB_PSC_OFF_ENTRIES + lib.GHCB_PSC_MAX_ENTRIES * lib.GHCB_PSC_ENTRY_SIZE
    assert used <= lib.GHCB_SHARED_BUFFER_SIZE < used + lib.GHCB_PSC_ENTRY_SIZE

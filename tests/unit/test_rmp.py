"""Entries of the reverse map table: golden values, refusals, where entries lie."""

import numpy as np
import pytest

from ghcbcore import rmp
from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange, StateConflict, Unaligned

# Encodings of each state as the specification's summary has them; the last but two are large.
GOLDEN = [
    (0x0, "hypervisor", {}),
    (0x4, "hv_fixed", {"immutable": 1}),
    (0x5, "firmware", {"assigned": 1, "immutable": 1}),
    (0x8000000000000005, "firmware", {"assigned": 1, "immutable": 1, "lock": 1}),
    (0x1, "reclaim", {"assigned": 1}),
    (0x2000000000000005, "context", {"assigned": 1, "immutable": 1, "vmsa": 1}),
    (0x0002000000001005, "firmware_iommu", {"assigned": 1, "immutable": 1, "gpa": 0x2000000001000}),
    (0x0001000012345005, "metadata", {"assigned": 1, "immutable": 1, "gpa": 0x1000012345000}),
    (0x0008000000001005, "pre_guest", {"assigned": 1, "immutable": 1, "asid": 1, "gpa": 0x1000}),
    (0x0008000000001001, "guest_invalid", {"assigned": 1, "asid": 1, "gpa": 0x1000}),
    (0x4008000000001001, "guest_valid", {"assigned": 1, "asid": 1, "gpa": 0x1000, "validated": 1}),
    (
        0x4008000000001005,
        "pre_swap",
        {"assigned": 1, "immutable": 1, "asid": 1, "gpa": 0x1000, "validated": 1},
    ),
    (
        0x4318000040000003,
        "guest_valid",
        {"assigned": 1, "page_size": 1, "asid": 99, "gpa": 0x40000000, "validated": 1},
    ),
    (
        0x6008FFFFFFFFF001,
        "guest_valid",
        {"assigned": 1, "asid": 1, "gpa": 0xFFFFFFFFF000, "validated": 1, "vmsa": 1},
    ),
    (
        0x6010FFFFFFFFF001,  # printed by a host: tests/data/rmp_faults.txt
        "guest_valid",
        {"assigned": 1, "asid": 2, "gpa": 0xFFFFFFFFF000, "validated": 1, "vmsa": 1},
    ),
]


@pytest.mark.parametrize(("low", "state", "fields"), GOLDEN, ids=[f"{g[0]:#x}" for g in GOLDEN])
def test_golden_entry_decodes_and_encodes(low, state, fields):
    entry = rmp.decode_one(low, 0)
    assert entry == rmp.Entry(**fields, state=getattr(lib, f"RMP_STATE_{state.upper()}"))
    assert rmp.encode_one(rmp.Entry(**fields)) == (low, 0)


@pytest.mark.parametrize("low", [0x4000000000000000, 0x0008000000000000, 0x4000000000000001])
def test_entry_of_no_state_says_so(low):
    entry = rmp.decode_one(low, 0)
    assert (entry.state, entry.status) == (lib.RMP_STATE_NONE, lib.GHCB_E_STATE_CONFLICT)


def test_a_large_page_of_a_guest_with_an_odd_gpa_is_unaligned():
    assert rmp.decode_one(0x4318000040001003, 0).status == lib.GHCB_E_UNALIGNED
    assert rmp.decode_one(0x4318000040000003, 0).status == lib.GHCB_OK


def test_read_only_bytes_decode_without_a_copy_of_the_caller():
    data = np.frombuffer(bytes.fromhex("01f0ffffffff1060") + bytes([0x1F]) + bytes(7), np.uint8)
    assert not data.flags.writeable
    one = rmp.decode(data.reshape(1, 16))[0]
    assert (one["asid"], one["vmpl0"], one["vmsa"]) == (2, 0x1F, 1)


def test_bytes_at_an_odd_address_decode():
    data = np.zeros(33, np.uint8)
    data[1] = 5
    found = rmp.decode(data[1:].reshape(2, 16))
    assert found["state"].tolist() == [lib.RMP_STATE_FIRMWARE, lib.RMP_STATE_HYPERVISOR]


@pytest.mark.parametrize(
    "entries",
    [np.zeros(2, np.uint64), np.zeros((1, 2), np.int64), np.zeros((2, 15), np.uint8), [[1.5, 2.5]]],
)
def test_decode_refuses_another_form(entries):
    with pytest.raises(ValueError, match="must be uint64"):
        rmp.decode(entries)


def test_decode_refuses_another_length_of_out_and_another_layout():
    words = np.zeros((2, 2), np.uint64)
    with pytest.raises(ValueError, match="out has 1 elements, entries has 2"):
        rmp.decode(words, out=np.empty(1, rmp.RMP_DTYPE))
    with pytest.raises(ValueError, match="layout 'zen5'"):
        rmp.decode(words, "zen5")


def test_an_empty_array_decodes_and_encodes():
    nothing = rmp.decode(np.zeros((0, 2), np.uint64))
    assert len(nothing) == 0 and rmp.encode(nothing).shape == (0, 2)


def test_encode_names_the_record_that_does_not_fit():
    records = np.zeros(3, rmp.RMP_DTYPE)
    records["asid"][2] = 1024
    with pytest.raises(OutOfRange, match=r"records\[2\]"):
        rmp.encode(records)
    records["asid"][2] = 0
    records["gpa"][1] = 0x1234
    with pytest.raises(Unaligned, match=r"records\[1\]: gpa"):
        rmp.encode(records)


@pytest.mark.parametrize(
    "field",
    [
        {"gpa": 1 << 51},
        {"asid": 1 << 10},
        {"subpages": 512},
        {"assigned": 2},
        {"lock": 2},
        {"vmpl3": 0x20},
        {"root_port": 32},
        {"migration": 4},
        {"asid": 1 << 32},
        {"gpa": -4096},
    ],
    ids=str,
)
def test_encode_refuses_what_a_field_cannot_hold(field):
    with pytest.raises(OutOfRange):
        rmp.encode_one(rmp.Entry(**field))


def test_architectural_entry_has_no_other_fields():
    assert rmp.encode_one(rmp.Entry(asid=7, assigned=1, region=1), "arch") == (0, 7 << 32 | 0x201)
    with pytest.raises(OutOfRange):
        rmp.encode_one(rmp.Entry(validated=1), "arch")


def test_words_of_more_than_64_bits_are_refused_by_name():
    with pytest.raises(OutOfRange, match="high = 0x10000000000000000"):
        rmp.decode_one(0, 1 << 64)


# -- where entries lie ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "end", "n_entries", "covered"),
    [
        (0x11500000, 0x51DFFFFF, 67_697_664, 0x408FC00000),
        (0x7FFE500000, 0x807EDFFFFF, 134_806_528, 0x808FC00000),
    ],
)
def test_geometry_of_tables_seen_in_the_wild(base, end, n_entries, covered):
    table = rmp.table(base, end)
    assert (table.n_entries, table.n_entries << 12) == (n_entries, covered)
    assert rmp.bytes_for(n_entries) == end + 1 - base


def test_entry_of_a_page_beyond_the_table_is_refused():
    table = rmp.table(0x11500000, 0x51DFFFFF)
    last = np.array([table.n_entries - 1], np.uint64)
    assert int(rmp.entry_addresses(table, last)[0]) + 16 == 0x51E00000
    with pytest.raises(OutOfRange, match=r"pfns\[1\] = 0x4090000"):
        rmp.entry_addresses(table, np.array([0, 0x4090000], np.uint64))


def test_an_address_that_is_no_entry_is_refused():
    table = rmp.table(0x11500000, 0x51DFFFFF)
    with pytest.raises(OutOfRange, match=r"spas\[0\]"):
        rmp.pages_of(table, np.array([0x11500000], np.uint64))
    with pytest.raises(Unaligned, match=r"spas\[0\]"):
        rmp.pages_of(table, np.array([0x11504008], np.uint64))


@pytest.mark.parametrize(
    ("base", "end", "error"),
    [
        (0x0, 0x1FFF, StateConflict),  # as a BIOS without RMP leaves the MSRs
        (0x0, 0x51DFFFFF, StateConflict),
        (0x11500000, 0x1FFF, StateConflict),
        (0x51500000, 0x11DFFFFF, OutOfRange),
        (0x11500000, 0x11503FFF, OutOfRange),
        (0x11500000, 1 << 52, OutOfRange),
        (0x11501000, 0x51DFFFFF, Unaligned),
        (0x11500000, 0x51DFF000, Unaligned),
    ],
)
def test_registers_that_hold_no_table_are_refused(base, end, error):
    with pytest.raises(error, match="RMP_BASE = "):
        rmp.table(base, end)


def test_bytes_for_refuses_more_pages_than_there_are():
    assert rmp.bytes_for(1 << 40) == (16 << 40) + 0x4000
    with pytest.raises(OutOfRange):
        rmp.bytes_for((1 << 40) + 1)

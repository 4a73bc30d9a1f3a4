"""The AP jump table page: addresses, layout, reset vector, decoding. No code is executed here."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghcbcore import _cffi, jumptable
from ghcbcore.errors import OutOfRange, SevError, Unaligned

ffi, lib = _cffi.ffi, _cffi.lib

GPA = 0x7FFF_F000
GIB_4 = 1 << 32

# The row of the GDT that RFC and v1 of the series had wrong: base 0xffff, limit 0x180.
BROKEN_REAL_DATA = struct.pack("<HHBBBB", 0x0180, 0xFFFF, 0x00, 0x93, 0x00, 0x00)


def descriptor_bytes(base, limit, access, flags=0):
    """Pack a segment descriptor the slow way."""
    return struct.pack(
        "<HHBBBB",
        limit & 0xFFFF,
        base & 0xFFFF,
        base >> 16 & 0xFF,
        access,
        flags << 4 | limit >> 16,
        base >> 24,
    )


def put(page, offset, data):
    page[offset : offset + len(data)] = np.frombuffer(data, dtype=np.uint8)


# --- the address


@pytest.mark.parametrize("gpa", [0x1000, 0x00A0_0000, GPA, 2**31, GIB_4 - 4096])
def test_a_page_below_4_gib_can_be_a_jump_table(gpa):
    assert jumptable.check_gpa(gpa) is True
    assert lib.ghcb_jump_table_check_gpa(gpa) == lib.GHCB_OK
    assert jumptable.decode_page(jumptable.build_page(gpa), gpa=gpa).problems == ()


def test_gpa_zero_says_that_there_is_no_table():
    assert jumptable.check_gpa(0) is False
    assert lib.GHCB_JUMP_TABLE_NONE == 0


def test_no_page_is_built_at_gpa_zero():
    with pytest.raises(OutOfRange, match="0x0 means that there is none"):
        jumptable.build_page(0)


@pytest.mark.parametrize("gpa", [1, 0x10, 0xFFF, GPA + 1, GPA + 0x800, GIB_4 - 1, GIB_4 + 1])
def test_unaligned_gpa_is_refused_and_named(gpa):
    for refuse in (jumptable.check_gpa, jumptable.build_page):
        with pytest.raises(Unaligned, match=f"{gpa:#x} "):
            refuse(gpa)


@pytest.mark.parametrize("gpa", [GIB_4, GIB_4 + 0x1000, 2**47 | GPA, 2**51 | GPA, 2**64 - 4096])
def test_page_that_ends_above_4_gib_or_wraps_is_refused_and_named(gpa):
    assert lib.ghcb_jump_table_check_gpa(gpa) == lib.GHCB_E_OUT_OF_RANGE
    for refuse in (jumptable.check_gpa, jumptable.build_page):
        with pytest.raises(OutOfRange, match=f"{gpa:#x} is not below 0x100000000"):
            refuse(gpa)


@pytest.mark.parametrize("gpa", [-1, -0x1000, 2**64, 2**64 + GPA])
def test_gpa_that_has_no_64_bits_is_refused_and_named(gpa):
    for refuse in (jumptable.check_gpa, jumptable.build_page):
        with pytest.raises(OutOfRange, match=f"{gpa:#x} does not fit in 64 bits"):
            refuse(gpa)


@given(st.integers(0, 2**64 - 1))
def test_an_address_is_valid_by_the_words_of_the_rule(gpa):
    valid = gpa != 0 and gpa % 4096 == 0 and gpa + 4096 <= 2**32
    assert (lib.ghcb_jump_table_check_gpa(gpa) == lib.GHCB_OK) is valid


# --- the layout


def test_reset_vector_stands_in_the_first_four_bytes():
    page = jumptable.build_page(GPA, reset_ip=0x1234, reset_cs=0x9A00)
    assert page.dtype == np.uint8
    assert page.shape == (4096,)
    assert bytes(page[:4]) == bytes.fromhex("3412009a")


def test_the_gdt_offset_at_4_points_behind_the_code_at_0x10():
    page = jumptable.build_page(GPA)
    (offset,) = struct.unpack("<H", bytes(page[4:6]))
    assert offset == jumptable.GDT_OFFSET
    assert offset % 16 == 0
    assert bytes(page[0x10:offset]) == jumptable.PARK_CODE[: offset - 0x10]


def test_the_gdt_has_the_rows_of_the_series():
    page = jumptable.build_page(0x89AB_C000)
    at = jumptable.GDT_OFFSET
    assert bytes(page[at : at + 32]) == (
        struct.pack("<HIH", 31, 0x89AB_C000 + at, 0)
        + descriptor_bytes(0x89AB_C000, 0xFFFF, 0x9B)
        + descriptor_bytes(0x89AB_C000, 0xFFFF, 0x93)
        + descriptor_bytes(0, 0xFFFF, 0x93)
    )


def test_code_and_gdt_leave_the_stack_alone():
    end = 0x10 + len(jumptable.PARK_CODE)
    assert end <= 0x1000 - 4
    assert end == jumptable.GDT_OFFSET + 4 * 8
    assert not jumptable.build_page(GPA)[end:].any()


def test_the_operand_of_the_last_jump_is_aligned_and_empty():
    page = jumptable.build_page(GPA)
    at = jumptable.OPERAND_OFFSET
    assert at % 4 == 0
    assert page[at - 1] == 0xEA
    assert not page[at : at + 4].any()


def test_only_the_bases_in_the_gdt_depend_on_the_gpa():
    ones, zeros = jumptable.build_page(0xFFFF_F000), jumptable.build_page(0x1000)
    gdt = jumptable.GDT_OFFSET
    bases = {gdt + 2, gdt + 3, gdt + 4, gdt + 5}
    bases |= {gdt + 8 * i + k for i in (1, 2) for k in (2, 3, 4, 7)}
    assert set(np.flatnonzero(ones != zeros).tolist()) <= bases


def test_struct_of_the_header_has_the_offsets_of_the_page():
    page = jumptable.build_page(GPA, reset_ip=0x55, reset_cs=0xAA)
    table = ffi.cast("ghcb_jump_table_t *", ffi.from_buffer(page))
    assert ffi.sizeof("ghcb_jump_table_t") == page.size
    assert (table.reset_ip, table.reset_cs) == (0x55, 0xAA)
    assert table.gdt_offset == jumptable.GDT_OFFSET
    assert bytes(table.park)[: len(jumptable.PARK_CODE)] == bytes(
        page[0x10 : 0x10 + len(jumptable.PARK_CODE)]
    )


# --- into an existing page


def test_install_keeps_the_reset_vector_and_the_rest_of_the_page():
    page = np.arange(4096, dtype=np.uint64).astype(np.uint8)
    before = page.copy()
    jumptable.install(page, GPA)
    end = 0x10 + len(jumptable.PARK_CODE)
    assert jumptable.reset_vector(page) == (0x0100, 0x0302)
    assert np.array_equal(page[6:0x10], before[6:0x10])
    assert np.array_equal(page[end:], before[end:])
    assert jumptable.decode_page(page, gpa=GPA).problems == ()


def test_install_writes_nothing_when_it_refuses():
    page = np.full(4096, 0xEE, dtype=np.uint8)
    for gpa in (0, GPA + 8, GIB_4):
        with pytest.raises(SevError):
            jumptable.install(page, gpa)
    assert (page == 0xEE).all()


def test_install_again_elsewhere_moves_the_gdt():
    page = jumptable.build_page(0x1000, reset_ip=1, reset_cs=2)
    jumptable.install(page, GPA)
    assert np.array_equal(page, jumptable.build_page(GPA, reset_ip=1, reset_cs=2))


@pytest.mark.parametrize("n", [0, 6, 4095, 4097])
def test_what_is_not_a_page_is_refused(n):
    page = np.zeros(n, dtype=np.uint8)
    for call in (
        lambda: jumptable.install(page, GPA),
        lambda: jumptable.set_reset_vector(page, 1, 2),
        lambda: jumptable.reset_vector(page),
        lambda: jumptable.decode_page(page),
    ):
        with pytest.raises(OutOfRange, match=f"page has {n:#x} bytes"):
            call()
    assert not page.any()


# --- the reset vector


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_reset_vector_is_read_as_it_was_written(ip, cs):
    page = np.zeros(4096, dtype=np.uint8)
    jumptable.set_reset_vector(page, ip, cs)
    assert jumptable.reset_vector(page) == (ip, cs)
    assert not page[4:].any()


@pytest.mark.parametrize(("ip", "cs", "named"), [(0x10000, 0, "reset ip 0x10000"),
                                                 (0, 0x10000, "reset cs 0x10000"),
                                                 (-1, 0, "reset ip -0x1")])  # fmt: skip
def test_reset_vector_of_more_than_16_bits_is_refused_and_nothing_written(ip, cs, named):
    page = jumptable.build_page(GPA, reset_ip=7, reset_cs=8)
    before = page.copy()
    with pytest.raises(OutOfRange, match=named):
        jumptable.set_reset_vector(page, ip, cs)
    with pytest.raises(OutOfRange, match=named):
        jumptable.build_page(GPA, reset_ip=ip, reset_cs=cs)
    assert np.array_equal(page, before)


# --- decoding


def test_an_installed_page_decodes_without_problems():
    page = jumptable.build_page(GPA, reset_ip=0x40, reset_cs=0x9A00)
    page.flags.writeable = False
    found = jumptable.decode_page(page)
    assert found[:5] == (0x40, 0x9A00, True, GPA, (0, 0))
    assert found.problems == ()
    assert [row.name for row in found.gdt] == ["self", "code16", "data16", "real-mode data"]
    assert [row[2:] for row in found.gdt] == [
        (GPA + jumptable.GDT_OFFSET, 31, 0, 0),
        (GPA, 0xFFFF, 0x9B, 0),
        (GPA, 0xFFFF, 0x93, 0),
        (0, 0xFFFF, 0x93, 0),
    ]
    assert [row.selector for row in found.gdt] == [0x00, 0x08, 0x10, 0x18]


def test_a_page_of_which_only_the_protocol_knows_has_no_problems():
    page = np.zeros(4096, dtype=np.uint8)
    jumptable.set_reset_vector(page, 0x40, 0x9A00)
    assert jumptable.decode_page(page) == (0x40, 0x9A00, False, None, None, (), ())


def test_the_vector_that_the_last_ap_used_is_told_and_is_no_difference():
    page = jumptable.build_page(GPA)
    put(page, jumptable.OPERAND_OFFSET, struct.pack("<HH", 0x20, 0x900))
    found = jumptable.decode_page(page)
    assert found.last_jump == (0x20, 0x900)
    assert found.has_park_code
    assert found.problems == ()


def test_the_broken_real_mode_data_descriptor_of_rfc_and_v1_is_noticed():
    page = jumptable.build_page(GPA)
    put(page, jumptable.GDT_OFFSET + 0x18, BROKEN_REAL_DATA)
    assert jumptable.decode_page(page).problems == (
        "real-mode data: base 0xffff, not 0x0",
        "real-mode data: limit 0x180, not 0xffff",
    )


@pytest.mark.parametrize("changed", [0x10, 0x3A, 0x97])
def test_foreign_code_is_noticed_at_its_first_byte(changed):
    page = jumptable.build_page(GPA)
    page[changed] ^= 0x40
    page[changed + 6] ^= 0x40
    found = jumptable.decode_page(page)
    assert not found.has_park_code
    assert found.last_jump is None
    assert found.problems == (f"code at {changed:#x} is not ours: {page[changed]:#x}",)


def test_each_byte_of_code_counts_except_the_operand():
    page = jumptable.build_page(GPA)
    operand = range(jumptable.OPERAND_OFFSET, jumptable.OPERAND_OFFSET + 4)
    for at in range(0x10, jumptable.GDT_OFFSET):
        page[at] ^= 1
        assert jumptable.decode_page(page).has_park_code is (at in operand)
        page[at] ^= 1


@pytest.mark.parametrize("bit", range(32 * 8))
def test_each_bit_of_the_gdt_counts(bit):
    page = jumptable.build_page(GPA)
    page[jumptable.GDT_OFFSET + bit // 8] ^= 1 << bit % 8
    assert jumptable.decode_page(page, gpa=GPA).problems


@pytest.mark.parametrize("offset", [0, 8, 0xFE0, 0xFF0, 0xFFFF])
def test_a_gdt_offset_without_room_for_a_gdt_is_noticed(offset):
    page = jumptable.build_page(GPA)
    put(page, 4, struct.pack("<H", offset))
    found = jumptable.decode_page(page)
    assert found.gdt == ()
    assert found.problems[-1] == f"GDT offset {offset:#x}: between entry and stack is no GDT there"


def test_an_unaligned_gdt_offset_is_noticed():
    page = jumptable.build_page(GPA)
    put(page, 4, struct.pack("<H", jumptable.GDT_OFFSET + 8))
    assert (
        f"GDT offset {jumptable.GDT_OFFSET + 8:#x} is not a multiple of 0x10"
        in jumptable.decode_page(page).problems
    )


def test_a_page_that_lies_elsewhere_than_its_gdt_says_is_noticed():
    page = jumptable.build_page(GPA)
    found = jumptable.decode_page(page, gpa=0x00A0_0000)
    assert found.gpa == GPA
    assert f"code16: base {GPA:#x}, not 0xa00000" in found.problems
    assert len(found.problems) == 3


def test_a_gdt_that_was_never_fixed_up_is_noticed():
    page = np.zeros(4096, dtype=np.uint8)
    put(page, 0x10, jumptable.PARK_CODE)
    put(page, 4, struct.pack("<H", jumptable.GDT_OFFSET))
    found = jumptable.decode_page(page)
    assert found.has_park_code
    assert found.gpa is None
    assert found.problems == (
        f"self: base 0x0 with GDT offset {jumptable.GDT_OFFSET:#x} "
        "belongs to no page that can be a jump table",
    )
    assert len(jumptable.decode_page(page, gpa=GPA).problems) == 3


def test_decode_refuses_a_wrong_gpa_but_never_a_wrong_page():
    page = jumptable.build_page(GPA)
    with pytest.raises(Unaligned):
        jumptable.decode_page(page, gpa=GPA + 2)
    with pytest.raises(OutOfRange):
        jumptable.decode_page(page, gpa=0)


@given(st.binary(min_size=0, max_size=0xC0), st.integers(0, 0xFC0), st.booleans())
def test_any_page_decodes(data, at, installed):
    page = jumptable.build_page(GPA) if installed else np.zeros(4096, dtype=np.uint8)
    put(page, min(at, 4096 - len(data)), data)
    found = jumptable.decode_page(page)
    assert (found.reset_ip, found.reset_cs) == jumptable.reset_vector(page)

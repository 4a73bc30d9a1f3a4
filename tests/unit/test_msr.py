"""Codes, fields and rules of GHCB MSR values: ``ghcbcore.msr`` and ``ghcbcore/msr.h``."""

from __future__ import annotations

import csv
import doctest
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import ghcbcore.msr as msr
from ghcbcore import errors
from ghcbcore._cffi import ffi, lib

DATA = Path(__file__).parent.parent / "data"
ALL_ONES = 2**64 - 1
CODES = {row.code for row in msr.rows()}
REQUESTS = [row for row in msr.rows() if row.pair is not None and not row.is_answer]


def read_csv(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="ascii", newline="") as file:
        assert file.readline().startswith("# origin: ")
        return list(csv.DictReader(file))


def u64(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def row_of(code: int) -> msr.Row:
    return next(row for row in msr.rows() if row.code == code)


def row_id(row: msr.Row) -> str:
    return f"{row.name}-{row.code:#05x}"


LAYOUT = read_csv("ghcb_msr_vectors_layout.csv")
OAK = read_csv("ghcb_msr_vectors_oak.csv")

# What the types of OAK's tests are in this project: the code that the type expects.
OAK_CODES = {
    "sev_info_req": lib.GHCB_MSR_SEV_INFO_REQ,
    "sev_info_resp": lib.GHCB_MSR_SEV_INFO_RESP,
    "cpuid_req": lib.GHCB_MSR_CPUID_REQ,
    "cpuid_resp": lib.GHCB_MSR_CPUID_RESP,
    "pref_gpa_req": lib.GHCB_MSR_PREF_GPA_REQ,
    "pref_gpa_resp": lib.GHCB_MSR_PREF_GPA_RESP,
    "register_gpa_req": lib.GHCB_MSR_REG_GPA_REQ,
    "register_gpa_resp": lib.GHCB_MSR_REG_GPA_RESP,
    "psc_req": lib.GHCB_MSR_PSC_REQ,
    "psc_resp": lib.GHCB_MSR_PSC_RESP,
    "hv_features_req": lib.GHCB_MSR_HV_FEATURES_REQ,
    "hv_features_resp": lib.GHCB_MSR_HV_FEATURES_RESP,
    "termination_req": lib.GHCB_MSR_TERM_REQ,
    "ap_reset_hold_req": lib.GHCB_MSR_AP_RESET_HOLD_REQ,
    "ap_reset_hold_resp": lib.GHCB_MSR_AP_RESET_HOLD_RESP,
}


# What others have computed


@pytest.mark.parametrize("vector", LAYOUT, ids=[v["case"] for v in LAYOUT])
def test_value_of_the_fact_sheet_decodes_to_its_fields_and_back(vector):
    value = int(vector["value"], 16)
    code = int(vector["code"], 16)
    fields = tuple(int(vector[name], 0) for name in "abc")
    got = msr.decode_one(value)
    assert (got.status, got.code, got[:3]) == (lib.GHCB_OK, code, fields)
    assert msr.encode_one(code, *fields) == value


def test_all_29_values_of_oak_are_here():
    assert len(OAK) == 29


@pytest.mark.parametrize("vector", OAK, ids=[f"{v['type']}-{v['value']}" for v in OAK])
def test_value_of_oak_gets_the_verdict_of_oak(vector):
    value = int(vector["value"], 16)
    valid = vector["verdict"] == "valid"
    if vector["type"].endswith("_gpa"):
        # OAK takes an address in bytes here; this project takes a frame. An unaligned address that
        # is put into the register as it is changes the code.
        code = OAK_CODES[vector["type"].removesuffix("_gpa")]
        assert not valid
        if value & 0xFFF:
            assert msr.decode_one(value | code).status == lib.GHCB_E_UNKNOWN_CODE
        else:
            with pytest.raises(errors.OutOfRange, match=r"^gfn = "):
                msr.encode_one(code, value >> 12, lib.GHCB_PSC_OP_SHARED)
        return
    expected = OAK_CODES[vector["type"]]
    got = msr.decode_one(value)
    assert (got.status == lib.GHCB_OK and got.code == expected) == valid


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        (0x0003000137000001, (3, 1, 55)),
        (0x0000D43180000004, (54321, lib.GHCB_MSR_CPUID_REG_ECX, 0)),
        (0x00001D6B40000005, (7531, lib.GHCB_MSR_CPUID_REG_EBX, 0)),
        (0x002000010F447014, (0x10F447, lib.GHCB_PSC_OP_SHARED, 0)),
        (0x0000000100000015, (1, 0, 0)),
        (0x0000000000010100, (0, 1, 0)),
        (0x0000000001234007, (0x1234, 0, 0)),
    ],
)
def test_value_of_oak_has_the_fields_that_oak_names(value, fields):
    assert msr.decode_one(value)[:3] == fields


# Rows


def test_rows_are_the_layouts_that_others_state():
    stated: dict[tuple[int, int | None], list[tuple[str, int, int]]] = {}
    for line in read_csv("ghcb_msr_fields.csv"):
        pair = int(line["pair"], 16) if line["pair"] else None
        fields = stated.setdefault((int(line["code"], 16), pair), [])
        if line["field"]:
            fields.append((line["field"], int(line["high"]), int(line["low"])))
    assert {
        (row.code, row.pair): [(f.name, f.shift + f.width - 1, f.shift) for f in row.fields]
        for row in msr.rows()
    } == stated


def test_rows_are_sorted_by_code_and_each_code_has_one():
    codes = [row.code for row in msr.rows()]
    assert codes == sorted(set(codes))


@pytest.mark.parametrize("row", msr.rows(), ids=row_id)
def test_reserved_bits_are_those_that_no_field_claims(row):
    claimed = lib.GHCB_MSR_INFO_MASK
    for field in row.fields:
        mask = ((1 << field.width) - 1) << field.shift
        assert claimed & mask == 0, "fields overlap"
        claimed |= mask
    assert claimed < 2**64
    assert row.reserved == ALL_ONES ^ claimed


@pytest.mark.parametrize("row", msr.rows(), ids=row_id)
def test_other_half_points_back_and_has_the_same_name(row):
    if row.pair is None:
        assert not row.is_answer
        return
    other = row_of(row.pair)
    assert (other.pair, other.name) == (row.code, row.name)
    assert other.is_answer != row.is_answer


def test_only_three_codes_have_no_other_half():
    assert {row.name for row in msr.rows() if row.pair is None} == {
        "ghcb_gpa",
        "ap_jump_table",
        "terminate",
    }


def test_every_code_of_12_bits_is_a_row_or_unknown():
    decoded = msr.decode(np.arange(lib.GHCB_MSR_N_CODES, dtype=np.uint64))
    known = {int(code) for code in decoded["code"][decoded["row"] != msr.NO_ROW]}
    assert known == CODES
    unknown = decoded[decoded["row"] == msr.NO_ROW]
    assert (unknown["status"] == lib.GHCB_E_UNKNOWN_CODE).all()
    assert all(
        msr.rows()[one["row"]].code == one["code"] for one in decoded if one["code"] in known
    )


@pytest.mark.parametrize("code", [0xF00, 0xF01, 0xF02, 0xF03])
def test_hyperv_codes_have_a_name_but_no_row(code):
    names = [name for name in dir(lib) if name.startswith("GHCB_MSR_HYPERV_")]
    assert code in {getattr(lib, name) for name in names}
    assert msr.decode_one(code).status == lib.GHCB_E_UNKNOWN_CODE


# Decoding


def test_unknown_code_keeps_its_data():
    got = msr.decode_one(0xFEDCBA9876543999)
    assert got == (0xFEDCBA9876543, 0, 0, lib.GHCB_E_UNKNOWN_CODE, 0x999, msr.NO_ROW)


def test_low_bits_zero_are_the_address_of_a_page():
    got = msr.decode_one(0x0000000004E14000)
    assert (msr.rows()[got.row].name, got.a, got.status) == ("ghcb_gpa", 0x4E14, lib.GHCB_OK)


@pytest.mark.parametrize("row", msr.rows(), ids=row_id)
def test_each_reserved_bit_is_found(row):
    bits = [bit for bit in range(64) if row.reserved >> bit & 1]
    decoded = msr.decode(u64(*[row.code | 1 << bit for bit in bits]))
    assert (decoded["status"] == lib.GHCB_E_RESERVED_BITS).all()
    assert (decoded["a"] == 0).all()
    assert (decoded["b"] == 0).all()
    assert (decoded["c"] == 0).all()


@pytest.mark.parametrize("row", msr.rows(), ids=row_id)
def test_each_field_fills_its_own_bits_and_no_other(row):
    for k, field in enumerate(row.fields):
        ones = (1 << field.width) - 1
        fields = [0, 0, 0]
        fields[k] = ones
        value = msr.encode_one(row.code, *fields)
        assert value == ones << field.shift | row.code
        assert msr.decode_one(value)[:4] == (*fields, lib.GHCB_OK)


def test_decode_of_nothing_is_nothing():
    assert msr.decode(u64()).shape == (0,)


def test_decode_writes_into_the_array_it_was_given():
    out = np.zeros(2, msr.MSR_DTYPE)
    assert msr.decode(u64(0x100, 0x2), out) is out
    assert out["code"].tolist() == [0x100, 0x2]


def test_decode_reads_a_read_only_array():
    values = u64(0x3F100)
    values.flags.writeable = False
    assert msr.decode(values)["b"].tolist() == [3]


def test_decode_refuses_an_output_of_another_length_and_leaves_it():
    out = np.zeros(3, msr.MSR_DTYPE)
    with pytest.raises(ValueError, match=r"^out has 3 elements, values has 2$"):
        msr.decode(u64(0x3F100, 0x3F100), out)
    assert not out["code"].any()


@pytest.mark.parametrize("values", [np.zeros(4, np.int32), np.zeros((2, 2), np.uint64)])
def test_decode_refuses_another_dtype_or_shape(values):
    with pytest.raises(ValueError, match="Buffer"):
        msr.decode(values)


def test_decode_refuses_every_second_element():
    with pytest.raises(ValueError, match="contiguous"):
        msr.decode(np.zeros(8, np.uint64)[::2])


@pytest.mark.parametrize("value", [-1, 2**64, 2**64 + 0x14])
def test_number_that_is_not_64_bits_is_out_of_range(value):
    with pytest.raises(errors.OutOfRange, match=f"^value = {value:#x} does not fit 64 bits$"):
        msr.decode_one(value)


@pytest.mark.parametrize("value", [1.0, "0x14", None])
def test_decode_one_takes_integers_only(value):
    with pytest.raises(TypeError, match="not an integer"):
        msr.decode_one(value)


# Encoding


def test_gfn_of_41_bits_is_refused_by_name_and_index_and_the_prefix_is_written():
    out = np.full(4, 7, np.uint64)
    gfns = u64(1, 2, 2**40, 4)
    message = (
        r"^gfn\[2\] = 0x10000000000 does not fit the 40 bits of the page_state_change request$"
    )
    with pytest.raises(errors.OutOfRange, match=message):
        msr.encode(lib.GHCB_MSR_PSC_REQ, gfns, lib.GHCB_PSC_OP_SHARED, out=out)
    assert out.tolist() == [0x0020000000001014, 0x0020000000002014, 7, 7]


def test_scalar_that_does_not_fit_is_named_without_an_index():
    with pytest.raises(errors.OutOfRange, match=r"^op = 0x10 does not fit the 4 bits"):
        msr.encode(lib.GHCB_MSR_PSC_REQ, u64(1, 2), 16)


def test_field_that_the_row_lacks_must_be_zero():
    message = r"^b\[1\] = 0x1: the register_gpa request has no such field$"
    with pytest.raises(errors.OutOfRange, match=message):
        msr.encode(lib.GHCB_MSR_REG_GPA_REQ, 1, u64(0, 1))


@pytest.mark.parametrize("code", [0x008, 0x00F, 0xF03, 0x1014, 2**32 + 0x14, 2**63])
def test_code_without_a_row_is_not_encoded(code):
    with pytest.raises(errors.UnknownCode, match=f"^code = {code:#x} has no row$"):
        msr.encode_one(code)
    with pytest.raises(errors.UnknownCode, match=rf"^code\[1\] = {code:#x} has no row$"):
        msr.encode(u64(0x2, code))


@pytest.mark.parametrize("name", ["code", "a", "b", "c"])
@pytest.mark.parametrize("value", [-1, 2**64])
def test_encode_names_the_parameter_that_is_not_64_bits(name, value):
    operands = {"code": 0x14, name: value}
    with pytest.raises(errors.OutOfRange, match=f"^{name} = {value:#x} does not fit 64 bits$"):
        msr.encode(**operands)
    with pytest.raises(errors.OutOfRange, match=f"^{name} = {value:#x} does not fit 64 bits$"):
        msr.encode_one(**operands)


def test_arrays_of_different_lengths_are_named():
    with pytest.raises(ValueError, match=r"^b has 3 elements, a has 2$"):
        msr.encode(0x14, u64(1, 2), u64(1, 2, 1))
    with pytest.raises(ValueError, match=r"^out has 3 elements, code has 2$"):
        msr.encode(u64(2, 6), out=np.zeros(3, np.uint64))


def test_scalars_alone_make_one_value_or_fill_the_output():
    assert msr.encode(0x100, 15, 3).tolist() == [0x3F100]
    out = np.zeros(3, np.uint64)
    assert msr.encode(0x100, 15, 3, out=out) is out
    assert out.tolist() == [0x3F100] * 3


def test_codes_may_differ_from_element_to_element():
    assert msr.encode(u64(0x12, 0x13), u64(5, 6)).tolist() == [0x5012, 0x6013]


def test_encode_of_nothing_is_nothing():
    assert msr.encode(0x12, u64()).shape == (0,)


# Answers


@pytest.mark.parametrize("row", REQUESTS, ids=row_id)
def test_request_accepts_its_own_answer(row):
    assert msr.check_answer(row.code, row.pair) == lib.GHCB_OK


@pytest.mark.parametrize("row", REQUESTS, ids=row_id)
def test_request_refuses_every_other_code(row):
    answers = np.arange(lib.GHCB_MSR_N_CODES, dtype=np.uint64)
    status = msr.check_answers(np.full(answers.size, row.code, np.uint64), answers)
    assert status[row.pair] == lib.GHCB_OK
    assert (np.delete(status, row.pair) == lib.GHCB_E_CODE_MISMATCH).all()


@pytest.mark.parametrize("row", REQUESTS, ids=row_id)
def test_answer_with_any_reserved_bit_is_refused(row):
    bits = [bit for bit in range(64) if row_of(row.pair).reserved >> bit & 1]
    answers = u64(*[row.pair | 1 << bit for bit in bits])
    status = msr.check_answers(np.full(len(bits), row.code, np.uint64), answers)
    assert (status == lib.GHCB_E_RESERVED_BITS).all()


@pytest.mark.parametrize(
    "row", [row for row in msr.rows() if row.is_answer or row.pair is None], ids=row_id
)
def test_what_has_no_answer_accepts_none(row):
    answers = np.arange(lib.GHCB_MSR_N_CODES, dtype=np.uint64)
    status = msr.check_answers(np.full(answers.size, row.code, np.uint64), answers)
    assert (status == lib.GHCB_E_CODE_MISMATCH).all()


@pytest.mark.parametrize("code", [0x008, 0x200, 0xF03])
def test_answer_to_an_unknown_request_is_not_judged(code):
    assert msr.check_answer(code, code) == lib.GHCB_E_UNKNOWN_CODE


@pytest.mark.parametrize("asked", range(4))
@pytest.mark.parametrize("got", range(4))
def test_cpuid_answer_must_name_the_register_of_the_request(asked, got):
    request = msr.encode_one(lib.GHCB_MSR_CPUID_REQ, 0x8000001F, asked)
    answer = msr.encode_one(lib.GHCB_MSR_CPUID_RESP, 0x4173, got)
    expected = lib.GHCB_OK if asked == got else lib.GHCB_E_ECHO_MISMATCH
    assert msr.check_answer(request, answer) == expected


def test_cpuid_answer_that_returns_reserved_bits_of_the_request_is_refused_as_such():
    request = 0x8000001F42000004
    answer_of_kvm = 0x0000417342000005
    assert msr.check_answer(request, answer_of_kvm) == lib.GHCB_E_RESERVED_BITS


@pytest.mark.parametrize(
    ("gfn", "status"),
    [
        (0x4E14, lib.GHCB_OK),
        (lib.GHCB_MSR_NO_GFN, lib.GHCB_OK),
        (0x4E15, lib.GHCB_E_ECHO_MISMATCH),
        (0, lib.GHCB_E_ECHO_MISMATCH),
        (0x4E14 | 1 << 51, lib.GHCB_E_ECHO_MISMATCH),
        (lib.GHCB_MSR_NO_GFN - 1, lib.GHCB_E_ECHO_MISMATCH),
    ],
)
def test_register_gpa_answer_is_the_same_frame_or_all_ones(gfn, status):
    request = msr.encode_one(lib.GHCB_MSR_REG_GPA_REQ, 0x4E14)
    assert msr.check_answer(request, msr.encode_one(lib.GHCB_MSR_REG_GPA_RESP, gfn)) == status


@pytest.mark.parametrize(
    ("request_code", "answer"),
    [
        (lib.GHCB_MSR_PREF_GPA_REQ, 0xFFFFFFFFFFFFF011),
        (lib.GHCB_MSR_UNREG_GPA_REQ, 0xFFFFFFFFFFFFF019),
        (lib.GHCB_MSR_PSC_REQ, 0x8000000000000015),
        (lib.GHCB_MSR_RUN_VMPL_REQ, 0x0000000100000017),
        (lib.GHCB_MSR_AP_RESET_HOLD_REQ, 0x0000000000000007),
    ],
)
def test_answer_that_says_no_is_a_legal_answer(request_code, answer):
    assert msr.check_answer(request_code, answer) == lib.GHCB_OK


def test_check_answers_refuses_different_lengths():
    with pytest.raises(ValueError, match=r"^answers has 1 elements, requests has 2$"):
        msr.check_answers(u64(2, 2), u64(1))
    with pytest.raises(ValueError, match=r"^out has 2 elements, requests has 1$"):
        msr.check_answers(u64(2), u64(1), np.zeros(2, np.uint8))


# The same layout in C, Cython, cffi and numpy


def test_dtype_is_the_struct_of_the_header():
    assert msr.MSR_DTYPE.itemsize == ffi.sizeof("ghcb_msr_t") == 16
    assert set(msr.MSR_DTYPE.names) == {name for name, _ in ffi.typeof("ghcb_msr_t").fields}
    for name, field in ffi.typeof("ghcb_msr_t").fields:
        dtype, offset = msr.MSR_DTYPE.fields[name]
        assert (offset, dtype.itemsize) == (field.offset, ffi.sizeof(field.type))


@pytest.mark.parametrize("value", [0, 1, 0x3F100, 0x0003000137000001, 0xFF, ALL_ONES, 1 << 63 | 2])
def test_c_functions_agree_with_the_module(value):
    one = ffi.new("ghcb_msr_t *")
    raw = ffi.new("uint64_t *")
    status = lib.ghcb_msr_decode(value, one)
    assert (one.a, one.b, one.c, one.status, one.code, one.row) == msr.decode_one(value)
    assert status == one.status
    if status == lib.GHCB_OK:
        assert lib.ghcb_msr_encode(one.code, one.a, one.b, one.c, raw) == lib.GHCB_OK
        assert raw[0] == value
    assert lib.ghcb_msr_check_answer(value, value) == msr.check_answer(value, value)


def test_c_encoder_writes_nothing_when_it_refuses():
    raw = ffi.new("uint64_t *", 7)
    assert lib.ghcb_msr_encode(0x14, 1 << 40, 1, 0, raw) == lib.GHCB_E_OUT_OF_RANGE
    assert lib.ghcb_msr_encode(0x1014, 0, 0, 0, raw) == lib.GHCB_E_UNKNOWN_CODE
    assert raw[0] == 7


@pytest.mark.parametrize("function", ["decode", "encode", "check_answers"])
def test_loop_runs_without_the_gil(function):
    values = np.full(1 << 23, 0x5012, np.uint64)
    call = {
        "decode": lambda: msr.decode(values),
        "encode": lambda: msr.encode(0x12, values),
        "check_answers": lambda: msr.check_answers(values, values),
    }[function]
    count, stop = 0, False

    def others():
        nonlocal count
        while not stop:
            count += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=others)
    thread.start()
    try:
        # Nobody is made to give the GIL away any more: the other thread runs only if the call
        # lets go of it.
        sys.setswitchinterval(60)
        before = count
        call()
        after = count
    finally:
        stop = True
        sys.setswitchinterval(interval)
        thread.join()
    assert after > before


def test_examples_of_the_docstrings_hold():
    result = doctest.testmod(msr)
    assert result.attempted > 10
    assert result.failed == 0


# Many at once: the way that takes eight values at a time is the way that takes one


def test_every_code_decodes_in_an_array_as_it_does_alone():
    draw = np.random.default_rng(3)
    values = np.repeat(np.arange(4096, dtype=np.uint64), 9)
    values |= draw.integers(1 << 52, size=len(values), dtype=np.uint64) << np.uint64(12)
    got = msr.decode(values)
    assert got.tolist() == [tuple(msr.decode_one(int(value))) for value in values]


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 16, 23])
def test_an_array_of_any_length_is_decoded_to_its_end_and_no_further(n):
    values = np.full(n, 0x0030000000012014, dtype=np.uint64)
    out = np.zeros(n + 2, dtype=msr.MSR_DTYPE)
    msr.decode(values, out[:n])
    assert out[:n].tolist() == [tuple(msr.decode_one(0x0030000000012014))] * n
    assert out[n:].tobytes() == bytes(32)


@pytest.mark.parametrize("scalar", ["", "code", "a", "b", "c"])
@pytest.mark.parametrize("bad", [None, 0, 7, 8, 15, 20])
def test_encode_of_many_is_encode_of_each_up_to_the_first_that_cannot_be(scalar, bad):
    n = 21
    draw = np.random.default_rng(4)
    parts = {
        "code": np.full(n, 0x014, dtype=np.uint64),
        "a": draw.integers(1 << 40, size=n, dtype=np.uint64),
        "b": draw.integers(16, size=n, dtype=np.uint64),
        "c": np.zeros(n, dtype=np.uint64),
    }
    if scalar:
        parts[scalar] = int(parts[scalar][0])
    if bad is not None:
        name = "a" if scalar != "a" else "b"
        parts[name][bad] = 1 << 40
    expected = []
    for i in range(n if bad is None else bad):
        at = [int(part if isinstance(part, int) else part[i]) for part in parts.values()]
        expected.append(msr.encode_one(*at))
    out = np.full(n, 7, dtype=np.uint64)
    if bad is None:
        msr.encode(**parts, out=out)
    else:
        with pytest.raises(errors.OutOfRange, match=rf"\[{bad}\] = 0x10000000000"):
            msr.encode(**parts, out=out)
    assert out.tolist() == expected + [7] * (n - len(expected))


@pytest.mark.parametrize("code", [0x008, 0x01A, 0xF00, 0x1014, 1 << 63])
def test_a_code_without_a_row_stops_an_array(code):
    codes = np.full(12, 0x002, dtype=np.uint64)
    codes[9] = code
    with pytest.raises(errors.UnknownCode, match=rf"code\[9\] = {code:#x}"):
        msr.encode(codes)

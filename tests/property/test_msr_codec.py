"""Laws of the GHCB MSR codec, over all 64-bit values."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import ghcbcore.msr as msr
from ghcbcore._cffi import lib

ROWS = {row.code: row for row in msr.rows()}

any_value = st.integers(0, 2**64 - 1)
known_code = st.sampled_from(sorted(ROWS))
# Half of all values should meet a row, or nearly all would be unknown codes.
likely_value = any_value | st.builds(
    lambda data, code: data << 12 | code, st.integers(0, 2**52 - 1), known_code
)
values = hnp.arrays(np.uint64, st.integers(0, 40), elements=likely_value)


@st.composite
def well_formed(draw: st.DrawFn) -> tuple[int, tuple[int, int, int]]:
    row = ROWS[draw(known_code)]
    fields = [draw(st.integers(0, 2**field.width - 1)) for field in row.fields]
    return row.code, tuple(fields + [0] * (3 - len(fields)))


def slow_decode(value: int) -> tuple[int, ...]:
    """The docstring of `decode`, word by word."""
    code = value & 0xFFF
    if code not in ROWS:
        return value >> 12, 0, 0, lib.GHCB_E_UNKNOWN_CODE, code, msr.NO_ROW
    row = ROWS[code]
    fields = [value >> f.shift & (1 << f.width) - 1 for f in row.fields] + [0, 0, 0]
    status = lib.GHCB_E_RESERVED_BITS if value & row.reserved else lib.GHCB_OK
    return *fields[:3], status, code, msr.rows().index(row)


@given(values)
def test_batch_decode_equals_a_loop_of_scalars(raw):
    assert [tuple(one.tolist()) for one in msr.decode(raw)] == [msr.decode_one(v) for v in raw]


@given(likely_value)
@example(0)
@example(2**64 - 1)
def test_any_64_bit_value_decodes_as_documented(value):
    assert msr.decode_one(value) == slow_decode(value)


@given(well_formed())
def test_what_was_encoded_decodes_to_the_same_fields(case):
    code, fields = case
    got = msr.decode_one(msr.encode_one(code, *fields))
    assert (got.code, got[:3], got.status) == (code, fields, lib.GHCB_OK)


@given(likely_value)
def test_value_that_decodes_well_encodes_to_itself(value):
    got = msr.decode_one(value)
    if got.status == lib.GHCB_OK:
        assert msr.encode_one(got.code, *got[:3]) == value
    elif got.status == lib.GHCB_E_UNKNOWN_CODE:
        assert got.a << 12 | got.code == value
    else:
        reserved = value & ROWS[got.code].reserved
        assert reserved
        assert msr.encode_one(got.code, *got[:3]) == value ^ reserved


@given(well_formed(), st.integers(0, 51))
def test_one_flipped_bit_is_found_as_reserved_or_as_another_field(case, bit):
    code, fields = case
    flipped = 1 << 12 + bit
    got = msr.decode_one(msr.encode_one(code, *fields) ^ flipped)
    if ROWS[code].reserved & flipped:
        assert (got.status, got[:3]) == (lib.GHCB_E_RESERVED_BITS, fields)
    else:
        assert got.status == lib.GHCB_OK
        assert sum(now != was for now, was in zip(got[:3], fields, strict=True)) == 1


@given(st.lists(well_formed(), max_size=20))
def test_batch_encode_equals_a_loop_of_scalars(cases):
    columns = np.array([(code, *fields) for code, fields in cases], np.uint64).reshape(-1, 4)
    batch = msr.encode(*(np.ascontiguousarray(column) for column in columns.T))
    assert batch.tolist() == [msr.encode_one(code, *fields) for code, fields in cases]


@given(st.lists(st.tuples(likely_value, likely_value), max_size=40))
def test_batch_check_equals_a_loop_of_scalars(pairs):
    asked = np.array([request for request, _ in pairs], np.uint64)
    got = np.array([answer for _, answer in pairs], np.uint64)
    status = msr.check_answers(asked, got)
    assert status.tolist() == [msr.check_answer(*pair) for pair in pairs]


@given(well_formed(), st.data())
def test_accepted_answer_is_the_well_formed_other_half_with_its_echo(case, data):
    code, fields = case
    request = msr.encode_one(code, *fields)
    pair = ROWS[code].pair
    # Answers near the truth: the right code most of the time, the data of the request at times.
    answer_code = data.draw(st.sampled_from([pair or 0] * 6 + sorted(ROWS)))
    answer = data.draw(st.just(request >> 12) | st.integers(0, 2**52 - 1)) << 12 | answer_code
    status = msr.check_answer(request, answer)
    got = msr.decode_one(answer)
    if status == lib.GHCB_OK:
        assert not ROWS[code].is_answer
        assert (got.code, got.status) == (pair, lib.GHCB_OK)
        if code == lib.GHCB_MSR_CPUID_REQ:
            assert got.b == fields[1]
        if code == lib.GHCB_MSR_REG_GPA_REQ:
            assert got.a in (fields[0], lib.GHCB_MSR_NO_GFN)
    elif status == lib.GHCB_E_CODE_MISMATCH:
        assert ROWS[code].is_answer or got.code != pair
    elif status == lib.GHCB_E_RESERVED_BITS:
        assert got.status == lib.GHCB_E_RESERVED_BITS
    else:
        assert status == lib.GHCB_E_ECHO_MISMATCH
        assert code in (lib.GHCB_MSR_CPUID_REQ, lib.GHCB_MSR_REG_GPA_REQ)

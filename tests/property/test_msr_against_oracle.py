"""The MSR codec against the oracle: any value, any pair, one by one and as arrays."""

import msr_oracle as oracle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghcbcore import errors, msr
from ghcbcore._cffi import lib

STATUS = {
    oracle.OK: lib.GHCB_OK,
    oracle.UNKNOWN_CODE: lib.GHCB_E_UNKNOWN_CODE,
    oracle.CODE_MISMATCH: lib.GHCB_E_CODE_MISMATCH,
    oracle.RESERVED_BITS: lib.GHCB_E_RESERVED_BITS,
    oracle.ECHO_MISMATCH: lib.GHCB_E_ECHO_MISMATCH,
}
U64 = st.integers(0, 2**64 - 1)
BIT = st.integers(0, 63)
CODES = st.sampled_from(oracle.CODES)


@st.composite
def wellformed(draw, codes=CODES):
    """A value whose code has a row and whose reserved bits are zero."""
    code = draw(codes)
    numbers = [draw(edges(high - low + 1)) for _, high, low in oracle.FUNCTIONS[code].fields]
    return oracle.encode(code, *numbers)


def edges(width):
    """Numbers of ``width`` bits, often the smallest and the largest."""
    top = 2**width - 1
    return st.sampled_from([0, 1, top - 1, top, (top + 1) // 2]) | st.integers(0, top)


@st.composite
def values(draw):
    """Any value, leaning towards well-formed ones and those that are one bit away from it."""
    kind = draw(st.sampled_from(["any", "coded", "wellformed", "one bit off", "reserved bit"]))
    if kind == "any":
        return draw(U64)
    if kind == "coded":
        return draw(U64) & ~0xFFF | draw(CODES)
    value = draw(wellformed())
    if kind == "one bit off":
        return value ^ 1 << draw(BIT)
    if kind == "reserved bit":
        reserved = oracle.reserved_bits(value & 0xFFF)
        return value | 1 << draw(st.sampled_from(reserved)) if reserved else value
    return value


@st.composite
def exchanges(draw):
    """A request and what came back: the right answer, or one that is wrong in some way."""
    request = draw(wellformed(st.sampled_from(oracle.REQUESTS_WITH_ANSWER)) | values())
    function = oracle.FUNCTIONS.get(request & 0xFFF)
    if function is None or function.other_half is None or draw(st.booleans()):
        return request, draw(st.just(request) | values())
    answer = draw(wellformed(st.just(function.other_half)))
    if function.name == "register_gpa":
        kept = request - 0x012 + 0x013
        answer = draw(st.sampled_from([kept, 0xFFFF_FFFF_FFFF_F013, answer, kept ^ 1 << 12]))
    if function.name == "cpuid" and draw(st.booleans()):
        answer = answer & ~(3 << 30) | request & 3 << 30
    if draw(st.booleans()):
        answer ^= 1 << draw(BIT)
    return request, answer


def expected(value):
    """What the core's ``Decoded`` must say of ``value``."""
    function, fields, status = oracle.decode(value)
    a, b, c = [*fields.values(), 0, 0, 0][:3]
    row = lib.GHCB_MSR_NO_ROW if function is None else oracle.CODES.index(value & 0xFFF)
    return msr.Decoded(a=a, b=b, c=c, status=STATUS[status], code=value & 0xFFF, row=row)


def u64(numbers):
    return np.array(numbers, dtype=np.uint64)


@pytest.mark.parametrize("code", oracle.CODES, ids=hex)
def test_every_row_states_what_the_oracle_states(code):
    function = oracle.FUNCTIONS[code]
    row = msr.rows()[oracle.CODES.index(code)]
    assert row == msr.Row(
        name=function.name,
        code=code,
        pair=function.other_half,
        is_answer=function.is_answer,
        fields=tuple(msr.Field(name, low, high - low + 1) for name, high, low in function.fields),
        reserved=sum(1 << position for position in oracle.reserved_bits(code)),
    )


def test_the_core_has_no_row_that_the_oracle_lacks():
    assert [row.code for row in msr.rows()] == oracle.CODES


@given(values())
def test_any_value_decodes_as_the_oracle_says(value):
    assert msr.decode_one(value) == expected(value)


@given(st.lists(values(), max_size=40))
def test_an_array_decodes_as_the_oracle_says_of_each_value(numbers):
    decoded = msr.decode(u64(numbers))
    wanted = [expected(value) for value in numbers]
    for name in msr.Decoded._fields:
        assert decoded[name].tolist() == [getattr(one, name) for one in wanted], name


@pytest.mark.parametrize("code", oracle.CODES, ids=hex)
def test_each_single_bit_and_each_missing_bit_decodes_as_the_oracle_says(code):
    all_data = 2**64 - 2**12
    numbers = [code | 1 << bit for bit in range(12, 64)]
    numbers += [code | all_data ^ 1 << bit for bit in range(12, 64)]
    for value in numbers:
        assert msr.decode_one(value) == expected(value), hex(value)


def test_each_of_the_4096_codes_is_known_to_both_or_to_neither():
    numbers = [0xDEAD_BEEF_CAFE_B000 | code for code in range(0x1000)]
    assert msr.decode(u64(numbers))["status"].tolist() == [
        expected(value).status for value in numbers
    ]


CODES_OR_NOT = CODES | st.sampled_from([0x008, 0x00F, 0xF00, 0xF03, 0xFFF]) | st.integers(0, 0xFFF)


@st.composite
def fields_of(draw, code):
    """Three numbers for ``code``: mostly of the right width, sometimes one too large."""
    numbers = [0, 0, 0]
    function = oracle.FUNCTIONS.get(code)
    for index, (_, high, low) in enumerate(function.fields if function else ()):
        numbers[index] = draw(edges(high - low + 1))
    if draw(st.integers(0, 3)) == 0:
        index = draw(st.integers(0, 2))
        numbers[index] = draw(U64 | st.integers(0, 63).map(lambda width: 1 << width))
    return numbers


@given(st.data())
def test_encoding_gives_the_value_of_the_oracle_or_refuses_with_it(data):
    code = data.draw(CODES_OR_NOT, label="code")
    numbers = data.draw(fields_of(code), label="fields")
    try:
        value = oracle.encode(code, *numbers)
    except ValueError:
        known = code in oracle.FUNCTIONS
        with pytest.raises(errors.OutOfRange if known else errors.UnknownCode):
            msr.encode_one(code, *numbers)
        return
    assert msr.encode_one(code, *numbers) == value


@given(st.data())
def test_encoding_arrays_stops_where_the_oracle_refuses_and_keeps_the_prefix(data):
    codes = data.draw(st.lists(CODES_OR_NOT, max_size=12), label="codes")
    fields = [data.draw(fields_of(code)) for code in codes]
    wanted, untouched = [], 0x5555_5555_5555_5555
    refused = False
    for code, numbers in zip(codes, fields, strict=True):
        try:
            wanted.append(oracle.encode(code, *numbers))
        except ValueError:
            refused = True
            break
    wanted += [untouched] * (len(codes) - len(wanted))
    out = u64([untouched] * len(codes))
    columns = [u64([numbers[i] for numbers in fields]) for i in range(3)]
    if refused:
        with pytest.raises((errors.OutOfRange, errors.UnknownCode)):
            msr.encode(u64(codes), *columns, out=out)
    else:
        assert msr.encode(u64(codes), *columns, out=out) is out
    assert out.tolist() == wanted


@given(exchanges())
def test_an_answer_is_judged_as_the_oracle_judges_it(exchange):
    assert msr.check_answer(*exchange) == STATUS[oracle.check_answer(*exchange)]


@given(st.lists(exchanges(), max_size=40))
def test_arrays_of_answers_are_judged_as_the_oracle_judges_each(pairs):
    requests, answers = u64([asked for asked, _ in pairs]), u64([got for _, got in pairs])
    assert msr.check_answers(requests, answers).tolist() == [
        STATUS[oracle.check_answer(*pair)] for pair in pairs
    ]


@pytest.mark.parametrize("request_code", oracle.REQUESTS_WITH_ANSWER, ids=hex)
@given(data=st.data())
def test_mutated_answers_to_every_request_are_judged_as_the_oracle_does(request_code, data):
    request = data.draw(wellformed(st.just(request_code)), label="request")
    other_half = oracle.FUNCTIONS[request_code].other_half
    answers = [data.draw(wellformed(st.just(other_half)), label="answer")]
    answers.append(request - request_code + other_half)  # the request's data, kept
    answers.append(request)  # a host that knows nothing of it
    answers.append((2**52 - 1) << 12 | other_half)
    answers += [answer ^ 1 << bit for answer in answers for bit in range(64)]
    answers += [answers[0] & ~0xFFF | code for code in oracle.CODES]
    judged = msr.check_answers(u64([request] * len(answers)), u64(answers))
    assert judged.tolist() == [STATUS[oracle.check_answer(request, got)] for got in answers]


@given(values().filter(lambda value: value & 0xFFF in oracle.FUNCTIONS))
def test_decoding_then_encoding_gives_back_all_bits_that_are_not_reserved(value):
    one = msr.decode_one(value)
    kept = sum(1 << position for position in oracle.claimed(value & 0xFFF))
    assert msr.encode_one(one.code, one.a, one.b, one.c) == value & kept


def test_the_oracle_reads_the_published_test_vectors():
    def read(value):
        function, fields, status = oracle.decode(value)
        return function.name, function.is_answer, tuple(fields.values()), status

    assert read(0x0002_0001_3300_0001) == ("sev_info", True, (2, 1, 51), oracle.OK)
    assert read(0x0001_0001_2F00_0001) == ("sev_info", True, (1, 1, 47), oracle.OK)
    assert read(0x8000_001F_4000_0004) == ("cpuid", False, (0x8000_001F, 1), oracle.OK)
    assert read(0x0000_4173_4000_0005) == ("cpuid", True, (0x4173, 1), oracle.OK)
    assert read(0x0010_0000_1234_5014)[2:] == ((0x12345, 1), oracle.OK)
    assert read(0x8000_0000_0000_0015)[2:] == ((0x8000_0000,), oracle.OK)
    assert read(0x0000_0000_0000_1007)[2:] == ((1,), oracle.OK)
    assert read(0x0000_0002_0000_0016)[2:] == ((2,), oracle.OK)
    assert read(0x0000_0000_0000_3081)[2:] == ((3,), oracle.OK)
    assert read(0x3F100)[2:] == ((15, 3), oracle.OK)
    assert oracle.check_answer(0x04E1_4012, 0x04E1_4013) == oracle.OK
    assert oracle.check_answer(0x04E1_4012, 0xFFFF_FFFF_FFFF_F013) == oracle.OK

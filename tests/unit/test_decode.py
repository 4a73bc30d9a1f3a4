"""Values in words: ``pysev.decode`` and ``pysev.tables.msr``."""

from __future__ import annotations

import dataclasses
import io
import json
import tracemalloc

import pytest

import ghcbcore.msr as msr
import pysev.decode.reading
from ghcbcore import errors
from ghcbcore._cffi import lib
from pysev.decode import explain_msr, main_decode, parse_value
from pysev.tables.msr import FUNCTIONS
from pysev.tables.vendors import VENDOR_CODES

HALVES = [
    (function, half, is_answer)
    for function in FUNCTIONS
    for half, is_answer in ((function.request, False), (function.answer, True))
    if half
]
HALF_IDS = [f"{half.code:#05x}" for _, half, _ in HALVES]


def run(capsys, *args, json=False, stdin=b""):
    status = main_decode(list(args), json=json, stdin=io.BytesIO(stdin))
    out, err = capsys.readouterr()
    return status, out, err


# The table against the rows of the header


def test_every_row_of_the_core_has_words_and_no_words_lack_a_row():
    assert sorted(half.code for _, half, _ in HALVES) == [row.code for row in msr.rows()]


@pytest.mark.parametrize(("function", "half", "is_answer"), HALVES, ids=HALF_IDS)
def test_words_have_the_names_and_the_order_of_the_core(function, half, is_answer):
    row = next(row for row in msr.rows() if row.code == half.code)
    assert (function.name, is_answer) == (row.name, row.is_answer)
    assert [field.name for field in half.fields] == [field.name for field in row.fields]


@pytest.mark.parametrize(("function", "half", "is_answer"), HALVES, ids=HALF_IDS)
def test_values_with_words_fit_their_field(function, half, is_answer):
    row = next(row for row in msr.rows() if row.code == half.code)
    for words, bits in zip(half.fields, row.fields, strict=True):
        assert all(0 <= value < 1 << bits.width for value in {*words.values, *words.illegal})
        assert not set(words.values) & set(words.illegal)


def test_every_function_names_a_witness_and_a_source():
    for function in FUNCTIONS:
        assert function.seen
        assert function.source.startswith("GHCB MSR 0x")


def test_vendor_codes_are_those_of_the_header_and_have_no_row():
    names = [name for name in dir(lib) if name.startswith("GHCB_MSR_HYPERV_")]
    codes = {one.code for one in VENDOR_CODES if one.space == "msr"}
    assert codes == {getattr(lib, name) for name in names}
    assert not codes & {row.code for row in msr.rows()}


# Sentences


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            0x0003000137000001,
            "0x0003000137000001  SEV information (answer): protocol versions 1..3, C-bit 55",
        ),
        (0x2, "0x0000000000000002  SEV information (request)"),
        (
            0x8000001F40000004,
            "0x8000001f40000004  CPUID (request): function 0x8000001f, register EBX",
        ),
        (0x0000417340000005, "0x0000417340000005  CPUID (answer): EBX = 0x4173"),
        (0x1007, "0x0000000000001007  AP reset hold (answer): released by SIPI"),
        (
            0x7,
            "0x0000000000000007  AP reset hold (answer): "
            "not released, woken by something else: must ask again",
        ),
        (
            0xFFFFFFFFFFFFF011,
            "0xfffffffffffff011  preferred GHCB GPA (answer): no preference",
        ),
        (
            0x4E14012,
            "0x0000000004e14012  register GHCB GPA (request): GFN 0x4e14 (GPA 0x4e14000)",
        ),
        (0xFFFFFFFFFFFFF013, "0xfffffffffffff013  register GHCB GPA (answer): refused"),
        (
            0x0020000012345014,
            "0x0020000012345014  page state change (request): "
            "GFN 0x12345 (GPA 0x12345000), operation shared",
        ),
        (0x15, "0x0000000000000015  page state change (answer): done"),
        (
            0x8000000000000015,
            "0x8000000000000015  page state change (answer): refused, the one error of KVM",
        ),
        (
            0x0000000100000015,
            "0x0000000100000015  page state change (answer): refused, error 0x1",
        ),
        (0x0000000200000016, "0x0000000200000016  run VMPL (request): VMPL 2"),
        (0x4E14000, "0x0000000004e14000  GHCB page: GFN 0x4e14 (GPA 0x4e14000)"),
        (
            0,
            "0x0000000000000000  GHCB page: "
            "no GHCB is set: KVM resumes the guest without an answer",
        ),
    ],
)
def test_good_value_is_one_line(value, text):
    explanation = explain_msr(value)
    assert explanation.as_text() == text
    assert not explanation.malformed


@pytest.mark.parametrize(
    ("value", "finding"),
    [
        (0x1D6B02000005, "reserved bits [25] must be zero (0x2000000 is set)"),
        (
            0xFF10000012345014,
            "reserved bits [63:56] must be zero (0xff00000000000000 is set)",
        ),
        (0xF002, "reserved bits [15:12] must be zero (0xf000 is set)"),
        (0x0030000000000014, "op 3 (PSMASH) is not allowed here"),
        (0x0040000000000014, "op 4 (UNSMASH) is not allowed here"),
        (0x0000000000000014, "op 0 is not allowed here"),
        (0x0001000233000001, "the lowest version is above the highest"),
        (0x0002000140000001, "the C-bit lies outside of a page table entry"),
        (0x999, "code 0x999 is not part of the protocol"),
    ],
)
def test_malformed_value_names_its_fault(value, finding):
    explanation = explain_msr(value)
    assert explanation.findings == (finding,)
    assert explanation.malformed
    assert explanation.as_text().splitlines()[1:] == [f"    ! {finding}"]


def test_value_may_break_two_rules():
    assert len(explain_msr(0x0002000340FFF001).findings) == 3


def test_c_bit_63_is_the_last_one():
    assert not explain_msr(0x000200013F000001).malformed


@pytest.mark.parametrize("code", [0xF00, 0xF01, 0xF02, 0xF03])
def test_hyperv_code_has_a_name_and_is_not_called_malformed(code):
    explanation = explain_msr(0x41000 | code)
    assert explanation.function.startswith("hyperv_")
    assert explanation.fields == (("data", 0x41, ""),)
    assert not explanation.malformed
    assert any("Hyper-V" in remark for remark in explanation.remarks)


def test_unknown_code_keeps_its_data():
    explanation = explain_msr(0xABCDE999)
    assert (explanation.function, explanation.direction) == ("unknown", "unknown")
    assert explanation.fields == (("data", 0xABCDE, ""),)


@pytest.mark.parametrize("value", [-1, 2**64])
def test_number_that_is_not_64_bits_is_refused(value):
    with pytest.raises(errors.OutOfRange):
        explain_msr(value)


def test_explanation_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        explain_msr(2).value = 3


# Terminations and features


@pytest.mark.parametrize(
    ("reason_set", "reason", "words"),
    [
        (0, 0, ["general"]),
        (0, 1, ["version"]),
        (0, 2, ["feature", "SNP"]),
        (1, 0, ["Linux", "regist"]),
        (1, 1, ["Linux", "page-state", "OVMF", "#VC"]),
        (1, 2, ["Linux", "PVALIDATE", "OVMF", "ENARX"]),
        (1, 3, ["Linux", "VMPL0"]),
        (1, 4, ["Linux", "CPUID table"]),
        (1, 5, ["Linux", "CPUID", "hypervisor"]),
        (1, 6, ["Linux", "secrets"]),
        (1, 7, ["Linux", "SVSM"]),
        (1, 8, ["Linux", "SVSM", "VMPL0"]),
        (1, 9, ["Linux", "SVSM", "calling area"]),
        (1, 10, ["Linux", "TSC"]),
        (1, 11, ["Linux", "SVSM", "remap"]),
        (1, 12, ["Linux", "AVIC"]),
        (3, 0, ["VERISMO", "general"]),
        (3, 1, ["VERISMO", "VMPL0"]),
        (3, 2, ["VERISMO", "#VC"]),
        (3, 3, ["VERISMO", "page-state"]),
        (3, 4, ["VERISMO", "page"]),
        (3, 5, ["VERISMO", "no GHCB"]),
        (3, 6, ["VERISMO", "GHCB"]),
        (3, 7, ["VERISMO", "parameter"]),
        (3, 8, ["VERISMO", "PVALIDATE"]),
        (3, 0xA, ["VERISMO", "crypto"]),
        (3, 0xB, ["VERISMO", "timeout"]),
        (3, 0xC, ["VERISMO", "hypervisor"]),
        (3, 0xD, ["VERISMO", "exception"]),
        (3, 0xE, ["VERISMO", "not supported"]),
        (3, 0xF, ["VERISMO", "guest"]),
        (3, 0x10, ["VERISMO", "permissions"]),
        (3, 0x11, ["VERISMO", "memory"]),
        (4, 0x10, ["ENARX", "port"]),
        (4, 0x30, ["ENARX", "C-bit"]),
        (4, 0x33, ["ENARX", "page-state"]),
        (4, 0x34, ["ENARX", "registration"]),
        (4, 0x35, ["ENARX", "reserved"]),
        (4, 0x36, ["ENARX", "back"]),
        (7, 0xFF, ["ENARX", "panic"]),
        (15, 1, ["svsm", "memory"]),
        (15, 0, ["svsm", "general"]),
        (15, 2, ["svsm", "#VC"]),
        (15, 3, ["svsm", "page-state"]),
        (15, 4, ["svsm", "page"]),
        (15, 5, ["svsm", "no GHCB"]),
        (15, 6, ["svsm", "GHCB"]),
        (15, 7, ["svsm", "fw_cfg"]),
        (15, 8, ["svsm", "BIOS"]),
        (15, 9, ["svsm", "VMPL0"]),
        (15, 10, ["svsm", "VMPL0"]),
        (15, 11, ["svsm", "VMPL"]),
        (15, 12, ["svsm", "VMPL1"]),
    ],
)
def test_termination_says_who_and_why(reason_set, reason, words):
    text = explain_msr(0x100 | reason_set << 12 | reason << 16).as_text().lower()
    assert f" {reason_set:#x}:{reason:#x} (" in text
    for word in words:
        assert word.lower() in text


@pytest.mark.parametrize("value", [0x11100, 0x21100])
def test_termination_with_several_owners_asks_who_was_running(value):
    explanation = explain_msr(value)
    assert any("firmware" in remark and "kernel" in remark for remark in explanation.remarks)
    assert not explanation.malformed


@pytest.mark.parametrize("value", [0x100, 0x31100, 0x3F100])
def test_termination_with_one_owner_has_no_doubt(value):
    assert not explain_msr(value).remarks


@pytest.mark.parametrize("value", [0x9100, 0xEE0100, 0xFF1100])
def test_termination_nobody_owns_is_said_to_be_unknown(value):
    explanation = explain_msr(value)
    assert any("known" in remark for remark in explanation.remarks)
    assert not explanation.malformed


def test_features_are_named():
    explanation = explain_msr(0x3081)
    assert explanation.as_text().endswith("(answer): 0x3 (snp, snp_ap_creation)")
    assert not explanation.remarks


def test_no_features_are_none():
    assert explain_msr(0x81).as_text().endswith("0x0 (none)")


def test_unknown_feature_bits_are_named_by_number():
    remarks = explain_msr((1 << 51 | 1 << 40 | 1) << 12 | 0x81).remarks
    assert remarks == ("bits [51], [40] of the bitmap have no known meaning",)


def test_feature_without_what_it_requires_is_remarked():
    remarks = explain_msr((1 << lib.GHCB_HV_FEATURE_SNP_AP_CREATION) << 12 | 0x81).remarks
    assert remarks == ("snp_ap_creation requires snp",)


# Reading numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0x0003000137000001", 0x0003000137000001),
        ("0X14", 0x14),
        ("0020000000000014", 0x0020000000000014),
        ("0000000000000100", 0x100),
        ("256", 256),
        ("0", 0),
        ("ffffffffffffffff", 2**64 - 1),
        ("FFFFFFFFFFFFFFFF", 2**64 - 1),
        ("18446744073709551615", 2**64 - 1),
        ("0x" + "0" * 100 + "1", 1),
        ("0" * 100 + "1", 1),
    ],
)
def test_number_is_read_as_people_and_traces_write_it(text, value):
    assert parse_value(text) == value


@pytest.mark.parametrize(
    "text", ["xyz", "", " ", "0x", "-5", "+5", "1_000", "0x1_0", "1.0", "٣", "0x14\n", "1 2"]
)
def test_other_text_is_not_a_number(text):
    with pytest.raises(ValueError, match=r"^not a number: '") as caught:
        parse_value(text)
    assert str(caught.value) == f"not a number: {text!a}"


@pytest.mark.parametrize("text", ["3f100", "0b1", "bad", "f" * 15, "f" * 17])
def test_hexadecimal_digits_that_are_not_16_are_told_to_say_so(text):
    message = rf"^not a number: '{text}' \(hexadecimal digits need 0x\)$"
    with pytest.raises(ValueError, match=message):
        parse_value(text)


@pytest.mark.parametrize(
    "text", ["0x10000000000000000", "18446744073709551616", "0x" + "f" * 10000, "9" * 10000]
)
def test_number_of_more_than_64_bits_is_out_of_range(text):
    with pytest.raises(errors.OutOfRange, match=r"^value of more than 64 bits: ") as caught:
        parse_value(text)
    assert text[:40] in str(caught.value)
    assert len(str(caught.value)) < 80


# The command


def test_good_values_give_status_0_and_a_line_each(capsys):
    status, out, err = run(capsys, "0x2", "0003000137000001")
    assert (status, err) == (0, "")
    assert out.splitlines() == [explain_msr(v).as_text() for v in (0x2, 0x0003000137000001)]


def test_one_malformed_value_gives_status_1_and_all_are_shown(capsys):
    status, out, err = run(capsys, "0x999", "0x2")
    assert (status, err) == (1, "")
    assert out.splitlines()[0].startswith("0x0000000000000999")
    assert out.splitlines()[-1].startswith("0x0000000000000002")


def test_bad_argument_gives_status_2_one_line_and_no_output(capsys):
    status, out, err = run(capsys, "0x2", "xyz", "0x999")
    assert (status, out) == (2, "")
    assert err == "pysev decode: argument 2: not a number: 'xyz'\n"


def test_too_wide_argument_gives_status_2(capsys):
    status, out, err = run(capsys, "0x10000000000000000")
    assert (status, out) == (2, "")
    assert err == "pysev decode: argument 1: value of more than 64 bits: 0x10000000000000000\n"


def test_no_argument_is_a_usage_error(capsys):
    status, out, err = run(capsys)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1


def test_standard_input_can_be_named_once(capsys):
    status, out, err = run(capsys, "-", "-", stdin=b"0x2")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1


def test_standard_input_has_words_lines_and_comments(capsys):
    text = b"# trace\n0x2 0x6\t0020000012345014 # shared\r\n\n  256 # 0x999\n#xyz"
    status, out, err = run(capsys, "-", stdin=text)
    assert (status, err) == (0, "")
    expected = [0x2, 0x6, 0x0020000012345014, 0x100]
    assert out == "".join(explain_msr(value).as_text() + "\n" for value in expected)


def test_standard_input_keeps_its_place_among_the_arguments(capsys):
    status, out, _ = run(capsys, "0x2", "-", "0x6", stdin=b"0x80")
    assert status == 0
    assert [line.split()[0][-3:] for line in out.splitlines()] == ["002", "080", "006"]


def test_empty_standard_input_is_good(capsys):
    assert run(capsys, "-") == (0, "", "")
    assert run(capsys, "-", json=True) == (0, "[]\n", "")


def test_bad_word_on_standard_input_is_named_by_its_line(capsys):
    status, out, err = run(capsys, "-", stdin=b"0x2\n# 1\n0x3 xyz\n")
    assert (status, out) == (2, "")
    assert err == "pysev decode: standard input, line 3: not a number: 'xyz'\n"


def test_bytes_that_are_no_text_are_named_and_do_not_break_the_terminal(capsys):
    status, out, err = run(capsys, "-", stdin=b"0x2\n\xff\x00\x1b[2J\n")
    assert (status, out) == (2, "")
    assert err == "pysev decode: standard input, line 2: not a number: '\\\\xff\\x00\\x1b[2J'\n"


def test_text_stream_is_read_as_well(capsys):
    assert main_decode(["-"], json=False, stdin=io.StringIO("0x2\n")) == 0
    assert capsys.readouterr().out.startswith("0x0000000000000002")


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_words_and_comments_may_lie_across_pieces(capsys, monkeypatch, chunk):
    text = b"0x2 0020000012345014\n#a b # c\n 0x6#x\n256\n0x100"
    whole = run(capsys, "-", stdin=text)
    monkeypatch.setattr(pysev.decode.reading, "CHUNK_BYTES", chunk)
    assert run(capsys, "-", stdin=text) == whole
    assert whole[0] == 0
    assert len(whole[1].splitlines()) == 5


@pytest.mark.parametrize("chunk", [1, 5, 1 << 16])
def test_line_numbers_do_not_depend_on_pieces(capsys, monkeypatch, chunk):
    monkeypatch.setattr(pysev.decode.reading, "CHUNK_BYTES", chunk)
    _, _, err = run(capsys, "-", stdin=b"#\n\n0x2\n0x2 #\n xyz")
    assert err == "pysev decode: standard input, line 5: not a number: 'xyz'\n"


class Endless(io.RawIOBase):
    """Gives the same byte for a long time and counts what was asked for."""

    def __init__(self, byte: bytes, n_bytes: int) -> None:
        self.byte, self.left, self.given = byte, n_bytes, 0

    def read(self, n_bytes: int = -1) -> bytes:
        assert 0 < n_bytes <= 1 << 20, "reads without a limit"
        n_bytes = min(n_bytes, self.left)
        self.left -= n_bytes
        self.given += n_bytes
        return self.byte * n_bytes


def test_word_without_an_end_is_refused_after_one_piece(capsys):
    stream = Endless(b"1", 10 << 30)
    assert main_decode(["-"], json=False, stdin=stream) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pysev decode: standard input, line 1: a word of more than 64 bytes: '1")
    assert stream.given <= 1 << 20


@pytest.mark.parametrize(("first", "status"), [(b" ", 0), (b"#", 0)])
def test_long_line_costs_no_memory(capsys, first, status):
    stream = Endless(first, 64 << 20)
    tracemalloc.start()
    assert main_decode(["-"], json=False, stdin=stream) == status
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert stream.left == 0
    assert peak < 8 << 20


def test_long_input_is_printed_in_whole_pieces(capsys):
    text = b"0x2\n" * 100_000 + b"xyz\n"
    status, out, err = run(capsys, "-", stdin=text)
    assert status == 2
    assert "line 100001:" in err
    assert 0 < out.count("\n") < 100_000
    assert out.endswith("(request)\n")


# JSON


def test_json_is_one_list_with_numbers_as_hex_strings(capsys):
    status, out, err = run(capsys, "0x0020000012345014", "0xfff", json=True)
    assert (status, err) == (1, "")
    good, bad = json.loads(out)
    assert good["value"] == "0x0020000012345014"
    assert (good["function"], good["direction"]) == ("page_state_change", "request")
    assert good["fields"] == [
        {"name": "gfn", "value": "0x12345", "words": ""},
        {"name": "op", "value": "0x2", "words": "shared"},
    ]
    assert (good["findings"], good["malformed"]) == ([], False)
    assert (bad["function"], bad["malformed"]) == ("unknown", True)


def test_json_stays_a_list_when_a_late_piece_is_bad(capsys):
    status, out, _ = run(capsys, "-", json=True, stdin=b"0x2\n" * 100_000 + b"xyz\n")
    assert status == 2
    assert json.loads(out)[0]["function"] == "sev_info"


def test_json_of_a_bad_argument_is_nothing(capsys):
    status, out, _ = run(capsys, "0x2", "xyz", json=True)
    assert (status, out) == (2, "")


def test_json_and_text_agree(capsys):
    values = ["0x0003000137000001", "0x21100", "0x3081"]
    _, out, _ = run(capsys, *values, json=True)
    for text, one in zip(values, json.loads(out), strict=True):
        assert one["text"] in explain_msr(parse_value(text)).as_text()

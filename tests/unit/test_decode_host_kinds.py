"""What ``pysev decode --as`` says of the host's side: RMP entries, faults, CPUID, firmware."""

import pytest

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange
from pysev.decode.cpuid import explain_cpuid
from pysev.decode.fault import explain_npf, explain_pf
from pysev.decode.firmware import explain_command, explain_status
from pysev.decode.kinds import kinds
from pysev.decode.rmp import (
    explain_rmp,
    explain_rmp_cfg,
    explain_rmp_segment,
    explain_rmpread,
)
from pysev.tables.cpuid import FEATURES
from pysev.tables.fault import NPF_BITS, PF_BITS
from pysev.tables.firmware import COMMANDS
from pysev.tables.rmp import RIGHTS, STATES


def test_the_kinds_of_the_host_are_registered():
    found = {name: kinds()[name].n_words for name in ("rmp", "rmpread", "pf", "npf", "cpuid")}
    assert found == {"rmp": 2, "rmpread": 2, "pf": 1, "npf": 1, "cpuid": 4}
    assert {"fw-command", "fw-status"} <= set(kinds())


@pytest.mark.parametrize(
    ("table", "prefix"),
    [
        (STATES, "RMP_STATE_"),
        (RIGHTS, "RMP_RIGHT_"),
        (COMMANDS, "SEV_FW_CMD_"),
        ((*PF_BITS, *NPF_BITS), "FAULT_"),
    ],
)
def test_every_number_of_a_header_has_words(table, prefix):
    skipped = {"RMP_STATE_END"}
    names = {n for n in dir(lib) if n.startswith(prefix)} - skipped
    assert {one.code for one in table} == {getattr(lib, name) for name in names}
    assert len(table) == len(names) == len({one.name for one in table})


def test_every_cpuid_feature_has_words():
    fields = ("SHIFT", "WIDTH", "LEAF")
    names = {n for n in dir(lib) if n.startswith("CPUID_SEV_") and not n.endswith(fields)}
    assert {one.code for one in FEATURES} == {getattr(lib, name) for name in names}


def test_an_entry_of_no_state_is_malformed():
    said = explain_rmp(0x4000000000000001, 0)
    assert said.findings == ("no page state has such an entry",)


def test_a_reserved_bit_of_an_entry_is_malformed():
    assert explain_rmp(0, 1 << 33).findings == ("a bit is set that no field claims",)
    assert explain_rmpread(0, 2).findings == ("a bit is set that no field claims",)
    assert explain_rmpread(0x1234, 1).malformed


def test_an_entry_names_subpages_lock_and_firmwares_asid():
    said = explain_rmp(0x8000000000000005 | 511 << 3 | 0x3FF << 51, 0)
    assert said.remarks[1:] == (
        "511 more pages of its 2 MiB region are assigned",
        "the entry is locked",
        "firmware uses this ASID while it changes an entry",
    )


@pytest.mark.parametrize(
    ("value", "sentence", "findings"),
    [
        (0x2401, "segmented, each segment covers 64 GiB", ()),
        (0x2501, "segmented, each segment covers 128 GiB", ()),
        (0x2801, "segmented, each segment covers 1 TiB", ()),
        (0x0, "contiguous", ()),
        (0x2400, "contiguous", ()),
        (0x1D01, "segmented, shift 29", ("2**29",)),
        (0x3501, "segmented, shift 53", ("2**53",)),
        (0x12401, "segmented, each segment covers 64 GiB", ("bits [16] must be zero",)),
        (0x2403, "segmented, each segment covers 64 GiB", ("bits [1] must be zero",)),
    ],
)
def test_rmp_cfg_says_the_size_of_segments(value, sentence, findings):
    said = explain_rmp_cfg(value)
    assert (said.sentence, len(said.findings)) == (sentence, len(findings))
    assert all(want in got for want, got in zip(findings, said.findings, strict=True))
    assert {one.name: one.value for one in said.fields} == {
        "segmented": value & 1,
        "shift": value >> 8 & 63,
    }


@pytest.mark.parametrize(
    ("value", "sentence", "finding"),
    [
        (0x8800022, "34 GiB mapped by entries at [0x8800000 - 0x10ffffff]", ""),
        (0x35A00080, "128 GiB mapped by entries at [0x35a00000 - 0x559fffff]", ""),
        (0x0, "no entries", ""),
        (0x35A00000, "no entries", ""),
        (1 << 63 | 0x35A00080, "128 GiB mapped", "bits [63] must be zero"),
        (0xFFFFFFFF00001, "1 GiB mapped by entries at [0xfffffff", "end above 52 address bits"),
    ],
)
def test_a_word_of_the_segment_table_says_where_its_entries_lie(value, sentence, finding):
    said = explain_rmp_segment(value)
    assert said.sentence.startswith(sentence)
    assert said.malformed == bool(finding) and finding in "".join(said.findings)


def test_the_kinds_of_segments_take_one_word_of_64_bits():
    assert {kinds()[name].n_words for name in ("rmp-cfg", "rmp-segment")} == {1}
    for explain in (explain_rmp_cfg, explain_rmp_segment):
        with pytest.raises(OutOfRange):
            explain(1 << 64)


def test_an_unknown_fault_bit_is_malformed():
    assert explain_pf(1 << 32).findings == ("bits [32] have no meaning here",)
    assert not explain_npf(1 << 32).malformed
    assert explain_pf(0).sentence == "a read of a page that is not mapped"
    with pytest.raises(OutOfRange):
        explain_npf(1 << 64)


@pytest.mark.parametrize(
    ("registers", "finding"),
    [
        ((0x2, 0x4033, 0, 1), "SEV is offered without an ASID"),
        ((0x10, 0x4033, 9, 1), "SNP is offered without SEV-ES"),
        ((0x2, 0x400F, 9, 1), "C-bit 15 lies inside of addresses: misread or made up"),
        ((0x2, 0x4033, 1 << 32, 1), "ecx = 0x100000000 does not fit the register's 32 bits"),
    ],
)
def test_impossible_cpuid_is_malformed(registers, finding):
    assert finding in explain_cpuid(*registers).findings


def test_cpuid_says_that_no_asid_is_left_for_encrypted_state():
    said = explain_cpuid(0xA, 0x16F, 0xF, 1)
    assert "no ASID is left for SEV-ES and SNP: the BIOS sets their limit" in said.remarks
    assert said.sentence.endswith("SEV 1 to 15, SEV-ES and SNP none")


def test_unknown_firmware_numbers_are_malformed():
    assert explain_command(0x1234).findings == ("firmware has no command 0x1234",)
    assert explain_status(0x1E).malformed
    assert "page_state + 0x40" in explain_status(0x5A).remarks[0]

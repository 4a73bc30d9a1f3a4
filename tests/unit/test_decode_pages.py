"""Pages, buffers and words of the protocol in text: ``pysev.decode`` beyond the MSR."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from ghcbcore import ghcb, jumptable, layouts, psc
from ghcbcore._cffi import lib
from pysev.decode import kind_of, kinds
from pysev.decode.ghcb import explain_ghcb
from pysev.tables.nae import EVENTS

DATA = Path(__file__).parent.parent / "data"
CODE = {event.name: event.code for event in EVENTS}


def page(valid=(), usage=0, version=2, base=True, **fields):
    """Return the bytes of a page with these fields, marked as ``valid`` says."""
    record = np.zeros(1, dtype=ghcb.GHCB_DTYPE)
    for name, value in fields.items():
        record[name] = value
    names = {*valid, *(("sw_exit_code", "sw_exit_info_1", "sw_exit_info_2") if base else ())}
    bits = sum(1 << getattr(lib, f"GHCB_VALID_{name.upper()}") for name in names)
    record["valid_lo"], record["valid_hi"] = bits & (1 << 64) - 1, bits >> 64
    record["ghcb_usage"], record["protocol_version"] = usage, version
    return bytearray(ghcb.encode(record).tobytes())


def request(name, valid=(), **fields):
    return explain_ghcb(bytes(page(valid, sw_exit_code=CODE[name], **fields)))


def answer(name, valid=(), **fields):
    return explain_ghcb(bytes(page(valid, sw_exit_code=CODE[name], **fields)), side="answer")


# GHCB pages


def test_a_cpuid_request_without_rcx_says_so():
    got = request("cpuid", ["rax"], rax=0x8000001F)
    assert got.findings == ("rcx (sub-function) is required and not marked valid",)
    assert "a host after KVM answers 2/4: a required input is not valid" in got.remarks
    assert got.function == "cpuid"


def test_a_whole_cpuid_request_has_no_findings_and_says_what_comes_back():
    got = request("cpuid", ["rax", "rcx"], rax=1)
    assert not got.malformed
    assert "since protocol version 1; an answer returns rax, rcx, rdx, rbx" in got.remarks


def test_xcr0_is_required_for_the_leaf_that_depends_on_it():
    assert not request("cpuid", ["rax", "rcx"], rax=0xC).malformed
    assert request("cpuid", ["rax", "rcx"], rax=0xD).findings == (
        "xcr0 (XCR0) is required and not marked valid",
    )
    assert not request("cpuid", ["rax", "rcx", "xcr0"], rax=0xD).malformed


def test_string_output_needs_the_scratch_address_alone():
    rep_outsb = {"sw_exit_info_1": 0x04020E1C, "sw_exit_info_2": 5}
    assert not request("ioio", ["sw_scratch"], sw_scratch=0x1800, **rep_outsb).malformed
    assert "sw_scratch" in request("ioio", ["rax"], **rep_outsb).findings[0]


def test_port_io_is_read_bit_by_bit():
    got = request("ioio", ["rax"], sw_exit_info_1=0x04020210)
    field = next(field for field in got.fields if field.name == "sw_exit_info_1")
    assert field.words == (
        "direction OUT, operand size 8-bit, address size 64-bit, segment ES, port 0x402"
    )


@pytest.mark.parametrize(
    ("info1", "finding"),
    [
        (0x03F80231, "size 0x3 is not one of those that exist"),
        (0x03F80201, "size 0x0 is not one of those that exist"),
        (0x03F80311, "address 0x6 is not one of those that exist"),
        (0x03F81A11, "segment 0x6 is not one of those that exist"),
        (0x03F80213, "bits [1] must be zero (0x2 is set)"),
        (0x1_03F8_0211, "bits [32] must be zero (0x100000000 is set)"),
    ],
)
def test_port_io_that_cannot_be_is_named(info1, finding):
    assert finding in kind_of("ioio").explain(info1).findings
    got = request("ioio", ["rax"], sw_exit_info_1=info1)
    assert f"sw_exit_info_1: {finding}" in got.findings


def test_an_event_newer_than_the_version_of_the_page_is_named():
    assert request("hv_features", version=1).findings == (
        "the event is of protocol version 2, the page has version 1",
    )
    assert not request("hv_features", version=0).malformed  # EDK2 leaves it unset


def test_an_unknown_event_is_named():
    got = explain_ghcb(bytes(page(sw_exit_code=0x80000099)))
    assert got.findings == ("there is no event 0x80000099",)
    assert got.function == "unknown"
    assert any("2/6" in remark for remark in got.remarks)


def test_an_event_of_snp_guests_from_another_guest_is_named():
    outside = {"sw_exit_code": CODE["psc"], "sw_scratch": 0x3000}
    raw = bytes(page(["sw_scratch"], **outside))
    assert "the event is for SNP guests alone" in explain_ghcb(raw, snp=False).findings
    assert not explain_ghcb(raw, snp=True).malformed
    assert not explain_ghcb(raw).malformed


def test_reserved_bytes_and_odd_valid_bits_are_named():
    raw = page(sw_exit_code=CODE["wbinvd"])
    raw[0x323] = 1
    raw[0x3FF] |= 0x80
    findings = explain_ghcb(bytes(raw)).findings
    assert "reserved bytes must be zero, the first that is not is at 0x323" in findings
    assert any("marks what is no field" in finding for finding in findings)


def test_another_usage_is_not_decoded_as_a_ghcb():
    got = explain_ghcb(bytes(page(usage=1, sw_exit_code=0x72)))
    assert not got.malformed
    assert "Hyper-V" in got.sentence
    assert explain_ghcb(bytes(page(usage=7))).findings == (
        "usage 0x7 is not known: hosts answer 2/2",
    )


def test_the_descriptor_of_a_page_state_change_is_shown_where_it_lies_in_the_page():
    raw = page(["sw_scratch"], sw_exit_code=CODE["psc"], sw_scratch=0x7C01800)
    raw[0x800:0xFF0] = bytes(psc.encode([0x40000], 2, 1))
    raw[0x808 + 7] |= 0x80
    got = explain_ghcb(bytes(raw))
    assert got.malformed
    assert got.parts[0].findings == ("entry 0: bits [63:57] must be zero",)
    assert "    ! entry 0: bits" in got.as_text()


def test_a_termination_says_who_and_why():
    got = request("terminate", sw_exit_info_1=0x11)
    field = next(field for field in got.fields if field.name == "sw_exit_info_1")
    assert "0x1:0x1" in field.words and "Linux" in field.words


# Answers


def test_a_good_answer_has_no_findings():
    got = answer("cpuid", ["rax", "rbx", "rcx", "rdx"], base=True)
    assert not got.malformed
    assert got.direction == "answer"


def test_an_answer_without_what_the_event_returns_is_named():
    assert answer("cpuid", ["rax", "rbx", "rcx"]).findings == (
        "rdx is returned and not marked valid",
    )


@pytest.mark.parametrize(
    ("info1", "info2", "words", "malformed"),
    [
        (2, 4, "a required input is not valid", False),
        (2, 7, "0x7 is no known reason", True),
        (2, 0x10000, "the hypervisor's own", False),
        (1, 0x8000030D, "#GP", False),
        (1, 13, "the valid bit is not set", True),
        (3, 0, "0x3 is no known kind of answer", True),
        (1 << 32, 0, "bits [63:32] must be zero", True),
    ],
)
def test_what_a_host_says_about_a_request_is_told(info1, info2, words, malformed):
    got = answer("wbinvd", sw_exit_info_1=info1, sw_exit_info_2=info2)
    assert words in got.as_text()
    assert got.malformed == malformed


def test_status_of_a_page_state_change_is_told():
    got = answer("psc", sw_exit_info_2=0x1_0000_0002)
    assert "the entry that cur_entry names is invalid" in got.as_text()
    assert kind_of("psc-status").explain(0x9_0000_0000).malformed


def test_sign_extended_injection_of_older_kvm_is_no_error_code():
    got = kind_of("injection").explain(0xFFFFFFFF8000030D)
    assert not got.malformed
    assert "#GP" in got.sentence and "error code" not in got.sentence


# Page-state changes


def test_vectors_of_the_fact_sheet_decode():
    explain = kind_of("psc-entry").explain
    assert explain(0x0120000040000000).sentence == "GFN 0x40000, 2 MiB, shared"
    assert explain(0x0010000007C01000).sentence == "GFN 0x7c01, 4 KiB, private"


@pytest.mark.parametrize(
    ("raw", "finding"),
    [
        (0x0120000000001000, "2 MiB, but GFN 0x1 is no multiple of 512"),
        (0x0000000000001000, "there is no operation 0"),
        (0x0050000000001000, "there is no operation 5"),
        (0x0010000000001002, "cur_page 2 is beyond its 1 pages"),
        (0x8010000000001000, "bits [63:57] must be zero"),
    ],
)
def test_a_bad_entry_is_named(raw, finding):
    assert kind_of("psc-entry").explain(raw).findings == (finding,)


def test_headers_that_cannot_be_are_named():
    explain = kind_of("psc").explain
    assert any(
        "end_entry 253 is too large" in f for f in explain(struct.pack("<HHI", 0, 253, 0)).findings
    )
    assert any(
        "bytes 4 to 7" in f for f in explain(struct.pack("<HHIQ", 0, 0, 9, 1 << 52)).findings
    )
    empty = explain(struct.pack("<HHIQ", 5, 2, 0, 0))
    assert not empty.malformed and "nothing is left to do" in empty.remarks[0]
    short = explain(struct.pack("<HHIQ", 0, 1, 0, 1 << 52))
    assert short.findings == ("entry 1: the buffer ends before it",)


def test_a_full_buffer_of_faults_stays_short():
    explanation = kind_of("psc").explain(struct.pack("<HHI", 0, 0xFFFF, 0) + b"\xff" * 2024)
    assert len(explanation.as_text().splitlines()) < 250
    assert "more entries" in explanation.as_text()


# VMSA


VMSA0 = json.loads((DATA / "vmsa0_bsp.json").read_text())


def real_vmsa():
    raw = bytearray(4096)
    for offset, row in VMSA0["nonzero_rows"].items():
        raw[int(offset, 16) : int(offset, 16) + 16] = bytes.fromhex(row)
    return bytes(raw)


def test_a_real_vmsa_reads_as_its_own_tool_shows_it():
    record = layouts.as_records(
        np.frombuffer(real_vmsa(), dtype=np.uint8)[np.newaxis], layouts.VMSA_DTYPE
    )[0]
    names = {"attrib": "attributes"}
    checked = 0
    for name, want in VMSA0["fields"].items():
        if name.startswith("sw_") or name == "x87_state_gpa":
            continue  # these are of the GHCB page
        if isinstance(want, dict):
            for part, value in want.items():
                assert int(record[name][names.get(part, part)]) == value, (name, part)
        else:
            assert int(record[name]) == want, name
        checked += 1
    assert checked > 50


def test_a_real_vmsa_in_words():
    got = kind_of("vmsa").explain(real_vmsa())
    assert not got.malformed
    assert got.sentence == "VMPL 0, real mode, next instruction at 0xfffffff0"
    words = {field.name: field.words for field in got.fields}
    assert words["efer"] == "SVME"
    assert words["cr0"] == "ET"
    assert words["cr4"] == "MCE"
    assert "code, readable" in words["cs"]
    assert "busy TSS" in words["tr"] and "LDT" in words["ldtr"]
    assert "a new AP of Linux has cs.attributes 0x9a, here it is 0x9b" in got.remarks


def test_a_vmsa_as_linux_writes_it_is_like_itself():
    raw = np.zeros((1, 4096), dtype=np.uint8)
    record = layouts.as_records(raw, layouts.VMSA_DTYPE)
    for name in ("es", "cs", "ss", "ds", "fs", "gs", "gdtr", "ldtr", "idtr", "tr"):
        record[name]["limit"] = 0xFFFF
    for name in ("es", "ss", "ds", "fs", "gs"):
        record[name]["attributes"] = 0x92
    record["cs"]["attributes"], record["ldtr"]["attributes"] = 0x9A, 0x82
    record["tr"]["attributes"] = 0x83
    record["cs"]["selector"], record["cs"]["base"] = 0x9A00, 0x9A000
    for name, value in (
        ("efer", 0x1000),
        ("cr0", 0x60000010),
        ("cr4", 0x40),
        ("dr6", 0xFFFF0FF0),
        ("dr7", 0x400),
        ("rflags", 2),
        ("g_pat", 0x0007040600070406),
        ("xcr0", 1),
        ("mxcsr", 0x1F80),
        ("x87_ftw", 0x5555),
        ("x87_fcw", 0x40),
        ("sev_features", 1),
        ("rip", 0x10),
    ):
        record[name] = value
    got = kind_of("vmsa").explain(raw.tobytes())
    assert got.remarks == ("as a Linux guest writes it for a new AP",)
    raw[0, 0x700] = 1
    assert "0x700" in kind_of("vmsa").explain(raw.tobytes()).findings[0]


# Other pages and words


def test_doorbell_page_in_words():
    raw = bytearray(4096)
    raw[0], raw[1] = 0x31, 0x81
    raw[0x44:0x48] = (1 << 16).to_bytes(4, "little")  # VMPL1, irr: vector 48
    got = kind_of("doorbell").explain(bytes(raw))
    assert got.sentence == "vector 49, NMI, no further signal"
    assert "vectors 48" in got.as_text() and not got.malformed
    raw[1], raw[0x500] = 0x04, 1
    assert len(kind_of("doorbell").explain(bytes(raw)).findings) == 2


def test_secrets_page_does_not_print_keys():
    raw = bytearray(4096)
    raw[0] = 3
    raw[0x20:0x40] = b"\xa5" * 32
    raw[0xB0:0xB8] = (0x9F000).to_bytes(8, "little")
    got = kind_of("secrets").explain(bytes(raw))
    assert "AP jump table at 0x9f000" in got.sentence
    assert "a5a5" not in got.as_text() and "a key, not shown" in got.as_text()
    assert not got.malformed


def test_cpuid_page_names_what_is_wrong():
    raw = bytearray(4096)
    raw[0] = 2
    for i in range(2):
        raw[16 + 48 * i : 20 + 48 * i] = (0x8000001F).to_bytes(4, "little")
    got = kind_of("cpuid-page").explain(bytes(raw))
    assert got.findings == ("entry 1 repeats entry 0: a guest takes the first",)
    raw[0] = 65
    assert "count 65 is too large" in kind_of("cpuid-page").explain(bytes(raw)).findings[0]


def test_message_header_in_words():
    raw = bytearray(4096)
    raw[0x30], raw[0x31], raw[0x32], raw[0x34], raw[0x36] = 1, 1, 0x60, 5, 0x60
    got = kind_of("message").explain(bytes(raw))
    assert got.sentence == "attestation report, 96 bytes, seqno 0" and not got.malformed
    raw[0x3C] = 4
    assert kind_of("message").explain(bytes(raw)).findings == ("there is no key 4",)


def test_jump_table_page_in_words():
    raw = jumptable.build_page(0x9F000, reset_ip=0x10, reset_cs=0x9A00).tobytes()
    got = kind_of("jump-table").explain(raw)
    assert got.sentence == "CS:IP 0x9a00:0x0010, with park code for GPA 0x9f000"
    assert not got.malformed
    linux = bytes([0x10, 0, 0, 0x9A]) + bytes(4092)
    assert kind_of("jump-table").explain(linux).sentence == "CS:IP 0x9a00:0x0010"
    assert kind_of("jump-table").explain(b"\x55" * 4096).malformed


def test_sev_status_prints_what_linux_prints():
    got = kind_of("sev-status").explain(0x7 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8)
    assert got.sentence == "SEV SEV-ES SEV-SNP vTom ReflectVC AI DebugSwap NoHostIBS"
    assert "vtom, reflect_vc, alternate_injection, debug_swap" in got.remarks[0]
    assert "prevent_host_ibs" not in got.remarks[0]
    assert kind_of("sev-status").explain(1 << 19).findings == (
        "reserved bits [19] must be zero (0x80000 is set)",
    )
    assert kind_of("sev-status").explain(4).malformed
    assert kind_of("sev-features").explain(1 << 21).sentence == "IBPBOnEntry"


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        ("ap-creation", 0x0000000500010001, "operation create now, VMPL 1, APIC ID 5"),
        ("terminate", 0x3F, "0xf:0x3 (AMDESE linux-svsm: a page-state change failed)"),
        ("request-status", 0x2_0000_0000, "firmware: done; hypervisor: busy, ask again later"),
    ],
)
def test_words_of_single_events(kind, value, says):
    got = kind_of(kind).explain(value)
    assert got.sentence == says and not got.malformed


def test_every_kind_has_a_name_of_its_own_and_says_what_it_takes():
    assert all(kind.what for kind in kinds().values())
    with pytest.raises(ValueError, match=r"^--as 'xyz': must be one of msr, ghcb, "):
        kind_of("xyz")


def test_json_has_numbers_as_hex_strings_and_parts():
    raw = page(["sw_scratch"], sw_exit_code=CODE["psc"], sw_scratch=0x1800)
    said = json.loads(json.dumps(explain_ghcb(bytes(raw)).as_json()))
    assert said["value"] is None and said["kind"] == "ghcb"
    assert all(field["value"].startswith("0x") for field in said["fields"])
    assert said["parts"][0]["kind"] == "psc"


@pytest.mark.parametrize("kind", kinds().values(), ids=lambda kind: kind.name)
def test_text_fits_a_mail(kind):
    data = (0,) * kind.n_words if kind.unit_bytes is None else (bytes(kind.unit_bytes),)
    assert all(len(line) <= 120 for line in kind.explain(*data).as_text().splitlines())

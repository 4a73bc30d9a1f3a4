"""The tables of page events, features and termination reasons fit the headers they name."""

import ast
import itertools
from pathlib import Path

import pytest

import pysev.tables
from ghcbcore import ghcb
from ghcbcore._cffi import ffi, lib
from pysev.tables import features, nae, terms
from pysev.tables.sev import STATUS_BITS
from pysev.tables.vendors import VENDOR_CODES

PAGE = {name for name, _ in ffi.typeof("ghcb_page_t").fields}
EVENT = {event.name: event for event in nae.EVENTS}
WORDS = [
    (f"{event.name}.{part}", word)
    for event in nae.EVENTS
    for part, word in (
        ("info1", event.info1),
        ("info2", event.info2),
        ("answer", event.answer.info2),
    )
    if word is not None
] + [("injection", nae.INJECTION), ("psc_entry", nae.PSC_ENTRY)]
CODE_LISTS = [
    "AUTOMATIC_EXITS",
    "FIRMWARE_STATUS",
    "MALFORMED",
    "MESSAGE_TYPES",
    "REPLIES",
    "REQUEST_STATUS",
    "USAGES",
]


def numbers(prefix: str) -> dict[str, int]:
    return {
        name.removeprefix(prefix).lower(): getattr(lib, name)
        for name in dir(lib)
        if name.startswith(prefix)
    }


def test_every_event_of_the_header_has_one_row_of_the_same_name():
    rows = {event.name: event.code for event in nae.EVENTS}
    assert rows == {k: v for k, v in numbers("GHCB_NAE_").items() if k != "no_row"}
    assert len(rows) == len(nae.EVENTS)


def test_every_feature_bit_of_the_header_has_one_row_of_the_same_name():
    rows = {feature.name: feature.bit for feature in features.FEATURES}
    assert rows == numbers("GHCB_HV_FEATURE_")
    assert sum(1 << bit for bit in rows.values()) == lib.GHCB_HV_FEATURES_KNOWN


def test_every_reason_of_the_header_has_one_row():
    sets = {reasons.name: reasons.number for reasons in terms.REASON_SETS}
    assert sets == numbers("GHCB_TERM_SET_")
    rows = {f"{s.name}_{c.name}": c.code for s in terms.REASON_SETS for c in s.codes}
    others = {k: v for k, v in numbers("GHCB_TERM_").items() if not k.startswith("set_")}
    # the one code of the set of panics is named without the set's own name
    rows["enarx_panic_in_panic"] = rows.pop("enarx_panic_panic_in_panic")
    assert rows == others


@pytest.mark.parametrize(
    ("table", "prefix"),
    [
        ("FIRMWARE_STATUS", "SNP_FW_"),
        ("REPLIES", "GHCB_REPLY_"),
        ("REQUEST_STATUS", "GHCB_GUEST_REQUEST_VMM_"),
    ],
)
def test_list_of_codes_is_that_of_the_header(table, prefix):
    named = {code.name: code.code for code in getattr(nae, table)}
    assert named == {
        name: value
        for name, value in numbers(prefix).items()
        if not name.endswith(("shift", "width"))
    }


def test_every_usage_is_the_standards_or_a_vendors():
    own = {code.name: code.code for code in nae.USAGES}
    vendors_own = {row.name: row.code for row in VENDOR_CODES if row.space == "usage"}
    assert own | vendors_own == numbers("GHCB_USAGE_")


def test_every_bit_of_sev_status_has_one_row():
    rows = {row.name: row.bit for row in STATUS_BITS}
    assert rows == {k: v for k, v in numbers("SEV_STATUS_").items() if k != "features_shift"}


def same_word(word, mask):
    """Whether a mask of the core has the bits that the word of the table may have."""
    if word is None:
        return mask == 0
    if word.bits:
        return mask == sum(((1 << bits.width) - 1) << bits.shift for bits in word.bits)
    if word.values:
        return mask == (1 << max(word.values).bit_length()) - 1
    # an address may have to be one of a page
    return mask == 2**64 - 1 or (word.shown == "gpa" and mask == 2**64 - lib.GHCB_PAGE_SIZE)


CORE_EVENTS = {row.code: row for row in ghcb.event_rows()}


@pytest.mark.parametrize("event", nae.EVENTS, ids=lambda event: event.name)
def test_core_and_table_say_the_same_of_an_event(event):
    if event.name == "software_reserved":
        assert event.code not in CORE_EVENTS
        return
    row = CORE_EVENTS[event.code]
    assert row.since == event.since
    assert same_word(event.info1, row.info1_mask)
    assert same_word(event.info2, row.info2_mask)
    assert set(ghcb.field_names(row.returned)) == set(event.answer.fields)
    always = {i.field for i in event.inputs if i.required and i.when is None}
    assert set(ghcb.field_names(row.required)) == always
    # whoever has a list of APIC IDs may ask for it
    assert row.snp_only == (event.guests == "SNP") or event.name == "apic_id_list"


@pytest.mark.parametrize("event", nae.EVENTS, ids=lambda event: event.name)
def test_core_requires_what_the_conditions_of_the_table_require(event):
    whens = [i.when for i in event.inputs if i.when is not None]
    exits = {"sw_exit_code", "sw_exit_info_1", "sw_exit_info_2"}
    words = {0, 1, 2, 3, 4, 5, 0xD, 2**32, 2**32 + 2, 2**63}
    words |= {value << w.shift for w in whens for value in w.values}
    for info1, rax in itertools.product(words, repeat=2):
        if event.name == "snp_ap_creation" and info1 >> 16 & 0xF:
            continue  # KVM compares more bits than the operation has
        at = {"sw_exit_info_1": info1, "rax": rax, "sw_exit_info_2": 0}
        expected = {
            i.field
            for i in event.inputs
            if i.required
            and (
                i.when is None
                or (at[i.when.word] >> i.when.shift & (1 << i.when.width) - 1 in i.when.values)
                != i.when.negated
            )
        }
        got = ghcb.missing(event.code, info1, rax, valid=1 << lib.GHCB_VALID_RAX)
        assert set(ghcb.field_names(got)) == (expected - {"rax"}) | exits
        if not any(when.word == "rax" for when in whens):
            got = ghcb.missing(event.code, info1, rax)
            assert set(ghcb.field_names(got)) == expected | exits


@pytest.mark.parametrize("table", CODE_LISTS)
def test_no_code_stands_twice_in_a_list(table):
    codes = getattr(nae, table)
    assert len({code.code for code in codes}) == len(codes)
    assert len({code.name for code in codes}) == len(codes)


def test_no_exit_is_both_automatic_and_an_event():
    assert not {e.code for e in nae.EVENTS} & {c.code for c in nae.AUTOMATIC_EXITS}


@pytest.mark.parametrize("event", nae.EVENTS, ids=lambda event: event.name)
def test_event_names_fields_of_the_page_that_can_be_marked_valid(event):
    for name in (*(i.field for i in event.inputs), *event.answer.fields):
        assert name in PAGE
        assert hasattr(lib, f"GHCB_VALID_{name.upper()}")
    assert len({i.field for i in event.inputs}) == len(event.inputs)
    assert bool(event.buffer) == ("sw_scratch" in {i.field for i in event.inputs})


@pytest.mark.parametrize("event", nae.EVENTS, ids=lambda event: event.name)
def test_condition_looks_at_a_word_that_the_request_carries(event):
    always = {i.field for i in event.inputs if i.when is None}
    for when in (i.when for i in event.inputs if i.when is not None):
        assert when.word in always | {"sw_exit_info_1", "sw_exit_info_2"}
        assert all(value < 1 << when.width for value in when.values)


@pytest.mark.parametrize(("where", "word"), WORDS, ids=[where for where, _ in WORDS])
def test_fields_of_a_word_do_not_overlap_and_hold_their_values(where, word):
    assert not (word.bits and word.values)
    masks = [((1 << bits.width) - 1) << bits.shift for bits in word.bits]
    assert all(mask < 1 << 64 for mask in masks)
    assert all(not a & b for a, b in itertools.combinations(masks, 2))
    for bits in word.bits:
        assert all(value < 1 << bits.width for value in bits.values)


def test_what_is_not_settled_is_marked_so():
    unsettled = {e.name: e.confidence for e in nae.EVENTS if e.confidence != "agreed"}
    assert unsettled == {
        "hv_timer": "unconfirmed",
        "tio_guest_request": "one source",
        "configure_int_injection": "draft",
        "disable_alt_injection": "draft",
        "specific_eoi": "draft",
        "tio_guest_request_rfc": "draft",
        "tio_operation_rfc": "draft",
    }
    assert [f.name for f in features.FEATURES if f.confidence != "agreed"] == [
        "extended_interrupts"
    ]


def test_feature_requires_features_with_a_row_and_brings_events_that_ask_for_it():
    by_bit = {feature.bit: feature for feature in features.FEATURES}
    for feature in features.FEATURES:
        for bit in feature.requires:  # what these require is listed as well
            assert set(by_bit[bit].requires) <= set(feature.requires)
        for code in feature.nae:
            event = next(event for event in nae.EVENTS if event.code == code)
            brought_by = {f.bit for f in features.FEATURES if code in f.nae}
            assert event.feature in brought_by
    for event in nae.EVENTS:
        if event.feature is not None:
            assert event.code in by_bit[event.feature].nae


def test_vectors_of_ioio_read_as_they_were_meant():
    fields = EVENT["ioio"].info1.bits

    def read(value):
        return {b.name: value >> b.shift & (1 << b.width) - 1 for b in fields}

    com1_in = {"in": 1, "string": 0, "rep": 0, "size": 1, "address": 4, "segment": 0}
    assert read(0x03F8_0211) == com1_in | {"port": 0x3F8}
    rep_outsb = {"in": 0, "string": 1, "rep": 1, "size": 1, "address": 4, "segment": 3}
    assert read(0x0402_0E1C) == rep_outsb | {"port": 0x402}


@pytest.mark.parametrize("module", ["nae", "features", "terms", "sev", "vendors"])
def test_table_imports_its_schema_and_nothing_else_and_computes_nothing(module):
    path = Path(pysev.tables.__file__).with_name(f"{module}.py")
    tree = ast.parse(path.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [getattr(node, "module", None) for node in imports] == [
        "__future__",
        "pysev.tables.schema",
    ]
    computing = (ast.BinOp, ast.BoolOp, ast.Compare, ast.comprehension, ast.FunctionDef, ast.If)
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, computing)] == []


@pytest.mark.parametrize("module", ["nae", "features", "terms", "sev", "vendors"])
def test_table_types_no_number_of_the_protocol(module):
    path = Path(pysev.tables.__file__).with_name(f"{module}.py")
    literals = {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and type(node.value) is int
    }
    assert literals <= {0, 1, 2, 4, 64}  # versions, a flag's two values, byte counts, whole words

"""GHCB pages and page-state change buffers: the core says what the oracle says, of any bytes."""

from __future__ import annotations

import numpy as np
import page_oracle as oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghcbcore import ghcb, layouts, psc
from ghcbcore._cffi import lib
from pysev.decode import kinds

CODES = sorted(oracle.ALWAYS)
u64 = st.integers(0, 2**64 - 1)


@st.composite
def pages(draw):
    """Pages that are mostly right: an event, random fields, a bitmap near what it needs."""
    page = bytearray(4096)
    values = draw(st.dictionaries(st.sampled_from(list(oracle.FIELDS)), u64, max_size=12))
    code = draw(st.one_of(st.sampled_from(CODES), u64, st.integers(0, 255)))
    values["sw_exit_code"] = code
    values["sw_exit_info_1"] = draw(st.one_of(st.integers(0, 8), u64))
    values["rax"] = draw(st.one_of(st.sampled_from([0, 0xD, 2**32 + 0xD]), u64))
    if draw(st.integers(0, 3)):
        values["ghcb_usage"] = 0
        values["valid_hi"] = 7 << 50 | draw(
            st.sampled_from([0, 1 << 33, 1 << 53, 1 << 61, 7 << 33])
        )
        values["valid_lo"] = draw(st.sampled_from([0, 1 << 63, 1 << 25, 1 << 63 | 1 << 25]))
    for name, value in values.items():
        offset, size = oracle.FIELDS[name]
        page[offset : offset + size] = (value % 256**size).to_bytes(size, "little")
    for at in draw(st.lists(st.integers(0, 4095), max_size=2)):
        page[at] ^= draw(st.integers(0, 255))
    return bytes(page)


def decoded(page, **how):
    return ghcb.decode(np.frombuffer(page, dtype=np.uint8)[np.newaxis], **how)[0]


def agrees(page):
    one = decoded(page)
    for name in oracle.FIELDS:
        assert int(one[name]) == oracle.number(page, name), name
    assert set(ghcb.field_names(one["valid"])) == oracle.marked(page)
    assert int(one["status"]) == oracle.reason(page)
    flags = int(one["flags"])
    if oracle.number(page, "ghcb_usage"):
        assert flags == lib.GHCB_FLAG_USAGE
        return
    missing = oracle.missing(page)
    assert set(ghcb.field_names(one["missing"])) == missing
    assert bool(flags & lib.GHCB_FLAG_MISSING) == bool(missing)
    code, version = oracle.number(page, "sw_exit_code"), oracle.number(page, "protocol_version")
    assert bool(flags & lib.GHCB_FLAG_UNKNOWN_EVENT) == (code not in oracle.ALWAYS)
    assert bool(flags & lib.GHCB_FLAG_VERSION) == (version == 1 and code in oracle.VERSION_2)
    assert bool(flags & lib.GHCB_FLAG_UNKNOWN_VERSION) == (version > 2)
    assert bool(flags & lib.GHCB_FLAG_ODD_VALID) == oracle.odd_valid(page)
    first = oracle.reserved_offset(page)
    assert int(one["first_reserved"]) == (0xFFFF if first is None else first)
    assert bool(flags & lib.GHCB_FLAG_RESERVED) == (first is not None)


@given(pages())
def test_a_page_decodes_as_the_oracle_says(page):
    agrees(page)


@given(st.integers(0, 2**32), st.booleans())
def test_random_bytes_decode_as_the_oracle_says(seed, standard):
    page = bytearray(np.random.default_rng(seed).bytes(4096))
    if standard:  # else the usage alone is judged
        page[0xFFC:] = bytes(4)
    agrees(bytes(page))


@pytest.mark.parametrize("first", [*range(0x410), 0x7FF, 0x800, 0xFEF, *range(0xFF0, 0x1000)])
def test_every_byte_is_a_field_or_reserved(first):
    page = bytearray(4096)
    page[first] = 0x80
    agrees(bytes(page))


def test_an_array_of_pages_is_a_loop_of_single_ones_at_any_distance():
    draw = np.random.default_rng(7)
    raw = draw.integers(256, size=(40, 5001), dtype=np.uint8)
    raw[::2] = 0
    raw[::2, 3 + 0x390] = draw.integers(0x60, 0x90, size=20)
    view = raw[:, 3 : 3 + 4096]
    view[:, 0xFFC:0x1000] = 0
    view.flags.writeable = False
    for side in ("request", "answer"):
        got = ghcb.decode(view, side=side)
        for i in range(40):
            assert got[i] == decoded(view[i].tobytes(), side=side)


@given(pages())
def test_encode_is_the_inverse_of_decode(page):
    record = ghcb.decode(np.frombuffer(page, dtype=np.uint8)[np.newaxis])
    out = np.frombuffer(page, dtype=np.uint8).copy()[np.newaxis]
    ghcb.encode(record, out)
    expected = bytearray(page)
    claimed = set(oracle.SHARED_BUFFER)
    for offset, size in oracle.FIELDS.values():
        claimed.update(range(offset, offset + size))
    for i in set(range(4096)) - claimed:
        expected[i] = 0
    assert out.tobytes() == bytes(expected)


FLAG_NAMES = {
    "reserved": lib.GHCB_PSC_FLAG_RESERVED,
    "op": lib.GHCB_PSC_FLAG_OP,
    "cur_page": lib.GHCB_PSC_FLAG_CUR_PAGE,
    "align": lib.GHCB_PSC_FLAG_ALIGN,
}


def entry_agrees(entry, expected):
    gfn, cur_page, op, size, faults = expected
    got = tuple(int(entry[name]) for name in ("gfn", "cur_page", "op", "size"))
    assert got == (gfn, cur_page, op, size)
    flags = int(entry["flags"]) & lib.GHCB_PSC_ENTRY_FAULTS
    assert flags == sum(FLAG_NAMES[name] for name in faults)


@given(st.lists(u64, max_size=30))
def test_entries_decode_as_the_oracle_says(raw):
    for entry, value in zip(psc.decode_entries(np.array(raw, dtype=np.uint64)), raw, strict=True):
        entry_agrees(entry, oracle.psc_entry(value))


@given(
    st.one_of(st.integers(0, 260), st.integers(0, 0xFFFF)),
    st.one_of(st.integers(0, 260), st.integers(0, 0xFFFF)),
    st.lists(st.one_of(u64, st.integers(0, 2**20)), max_size=12),
    st.integers(8, 2032),
)
def test_a_buffer_with_any_cursor_decodes_as_the_oracle_says(cur, end, raw, n_bytes):
    buffer = bytearray(2032)
    buffer[0:2], buffer[2:4] = cur.to_bytes(2, "little"), end.to_bytes(2, "little")
    for i, value in enumerate(raw):
        buffer[8 + 8 * i : 16 + 8 * i] = value.to_bytes(8, "little")
    data = bytes(buffer[:n_bytes])
    headers, entries = psc.decode(np.frombuffer(data, dtype=np.uint8)[np.newaxis])
    head = headers[0]
    _, _, expected, bad, status = oracle.psc(data)
    assert (int(head["cur_entry"]), int(head["end_entry"])) == (cur, end)
    assert int(head["n_entries"]) == len(expected)
    assert int(head["first_bad"]) == (0xFFFF if bad is None else bad)
    assert int(head["kvm_status"]) == status
    assert (int(head["status"]) == 0) == (bad is None and end < 253)
    for entry, want in zip(entries[0], expected, strict=False):
        if want is None:
            assert int(entry["flags"]) == lib.GHCB_PSC_FLAG_CUT
        else:
            entry_agrees(entry, want)
    assert all(int(e["flags"]) == lib.GHCB_PSC_FLAG_UNUSED for e in entries[0][len(expected) :])


entry_values = st.tuples(
    st.integers(0, 2**40 - 1), st.integers(1, 4), st.integers(0, 1), st.integers(0, 512)
).map(lambda e: (e[0] & ~511 if e[2] else e[0], e[1], e[2], min(e[3], 512 if e[2] else 1)))


@given(st.lists(entry_values, min_size=1, max_size=253), st.integers(0, 0xFFFF))
def test_buffers_survive_a_round_trip(values, cur):
    columns = [list(column) for column in zip(*values, strict=True)]
    buffer = psc.encode(*columns, cur_entry=cur)
    headers, entries = psc.decode(buffer[np.newaxis])
    n = int(headers["n_entries"][0])
    assert (n, int(headers["cur_entry"][0]), int(headers["status"][0])) == (len(values), cur, 0)
    names = ("gfn", "op", "size", "cur_page")
    assert [tuple(int(e[name]) for name in names) for e in entries[0][:n]] == values


BYTE_KINDS = [kind for kind in kinds().values() if kind.unit_bytes is not None]
NUMBER_KINDS = [kind for kind in kinds().values() if kind.unit_bytes is None]


@pytest.mark.parametrize("kind", BYTE_KINDS, ids=lambda kind: kind.name)
def test_random_bytes_of_any_kind_are_explained(kind):
    draw = np.random.default_rng(11)
    least = kind.unit_bytes if kind.least_bytes is None else kind.least_bytes
    for i in range(60):
        n = kind.unit_bytes if i % 2 else int(draw.integers(least, kind.unit_bytes + 1))
        data = bytearray(draw.bytes(n))
        if i % 3 == 0:  # mostly zero, so that deeper rules are reached
            keep = draw.integers(n, size=8)
            data = bytearray(n)
            for at in keep:
                data[at] = int(draw.integers(256))
        explanation = kind.explain(bytes(data))
        assert explanation.as_text() and explanation.as_json()["kind"] == kind.name
        assert len(explanation.as_text()) < 100_000


@pytest.mark.parametrize("kind", NUMBER_KINDS, ids=lambda kind: kind.name)
@given(values=st.lists(u64, min_size=8, max_size=8))
def test_any_number_of_any_kind_is_explained(kind, values):
    explanation = kind.explain(*values[: kind.n_words])
    assert explanation.as_text() and explanation.as_json()["kind"] == kind.name


@given(st.integers(0, 2**32), st.integers(0, 4096))
def test_a_page_without_a_bitmap_is_written_through_its_view(seed, n_zero):
    page = np.random.default_rng(seed).integers(256, size=(1, 4096), dtype=np.uint8)
    page[0, :n_zero] = 0
    for dtype in (layouts.VMSA_DTYPE, layouts.DOORBELL_DTYPE, layouts.SECRETS_DTYPE):
        empty = np.zeros((1, 4096), dtype=np.uint8)
        view = layouts.as_records(empty, dtype)
        view[:] = layouts.as_records(page, dtype)
        assert int(layouts.first_reserved(empty, dtype)[0]) == -1
        same = empty == page
        first = int(layouts.first_reserved(page, dtype)[0])
        rest = ~same[0] & (page[0] != 0)
        assert first == (int(np.flatnonzero(rest)[0]) if rest.any() else -1)

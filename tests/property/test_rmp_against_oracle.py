"""The codec of RMP entries and the oracle agree on every entry."""

import numpy as np
import rmp_oracle as oracle
from hypothesis import given
from hypothesis import strategies as st

from ghcbcore import rmp
from ghcbcore._cffi import lib

WORDS = st.integers(0, 2**64 - 1)
# Words of which few bits are set come near the edges of fields more often.
SPARSE = st.lists(st.integers(0, 63), max_size=4).map(lambda bits: sum({1 << b for b in bits}))
WORD = WORDS | SPARSE
FIELDS = [name for name in rmp.Entry._fields if name not in ("status", "region")]


def raw_array(entries) -> np.ndarray:
    return np.array(entries, np.uint64).reshape(-1, 2)


@given(WORD, WORD)
def test_any_entry_decodes_as_the_oracle_says(low, high):
    got, wanted = rmp.decode_one(low, high), oracle.decode(low, high)
    assert {name: getattr(got, name) for name in FIELDS} == {n: wanted[n] for n in FIELDS}
    assert (got.status == lib.GHCB_E_RESERVED_BITS) == bool(wanted["reserved"])
    if not wanted["reserved"]:
        assert (got.status == lib.GHCB_E_STATE_CONFLICT) == (wanted["state"] == 0)


@given(st.binary(min_size=16, max_size=16))
def test_what_rmpread_returns_decodes_as_the_oracle_says(data):
    words = [int.from_bytes(data[k : k + 8], "little") for k in (0, 8)]
    got, wanted = rmp.decode_one(*words, "arch"), oracle.decode_rmpread(data)
    reserved = wanted.pop("reserved")
    assert {name: getattr(got, name) for name in wanted} == wanted
    assert (got.status == lib.GHCB_E_RESERVED_BITS) == bool(reserved)
    assert got.state == lib.RMP_STATE_NONE


@given(st.lists(st.tuples(WORD, WORD), max_size=20))
def test_a_batch_equals_a_loop_whatever_the_form_of_its_input(entries):
    words = raw_array(entries)
    data = words.view(np.uint8).reshape(-1, 16)
    for layout in ("raw", "arch"):
        loop = [tuple(rmp.decode_one(low, high, layout)) for low, high in entries]
        for form in (words, data, data[:, :]):
            assert [one.item()[:-1] for one in rmp.decode(form, layout)] == loop


@given(WORD, WORD)
def test_an_entry_without_reserved_bits_comes_back(low, high):
    got = rmp.decode_one(low, high)
    if got.status == lib.GHCB_E_RESERVED_BITS:
        return
    assert rmp.encode_one(got) == (low, high)


@given(WORD, WORD)
def test_an_architectural_entry_comes_back(gpa, rest):
    got = rmp.decode_one(gpa, rest, "arch")
    if got.status == lib.GHCB_E_RESERVED_BITS or gpa % 4096:
        return
    assert rmp.encode_one(got, "arch") == (gpa, rest)


@given(st.integers(1, 2**37), st.integers(0, 2**30), st.data())
def test_each_page_of_a_table_has_one_place(base_8k, extra_8k, data):
    base = base_8k * 0x2000
    end = base + 0x6000 + extra_8k * 0x2000 - 1
    table = rmp.table(base, end)
    assert rmp.bytes_for(table.n_entries) == end - base + 1
    pfns = data.draw(st.lists(st.integers(0, table.n_entries - 1), min_size=1, max_size=5))
    spas = rmp.entry_addresses(table, np.array(pfns, np.uint64))
    assert spas.tolist() == [base + 0x4000 + 16 * pfn for pfn in pfns]
    assert rmp.pages_of(table, spas).tolist() == pfns
    assert table.is_aligned == (base % 2**20 == 0 and (end + 1) % 2**20 == 0)
    assert table.large_start == base // 2**21 * 2**21
    assert table.large_end == (end + 1) // 2**21 * 2**21

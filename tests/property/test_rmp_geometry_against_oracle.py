"""Tables in both forms and the oracle agree: what is refused, and where entries lie."""

import pickle

import numpy as np
import pytest
import rmp_geometry_oracle as oracle
from hypothesis import given
from hypothesis import strategies as st

from ghcbcore import rmpgeometry
from ghcbcore.errors import OutOfRange, ReservedBitsSet, SevError, StateConflict, Unaligned

ERRORS = {
    "reserved": ReservedBitsSet,
    "conflict": StateConflict,
    "range": OutOfRange,
    "unaligned": Unaligned,
}
MIB = 1 << 20

ANY_WORD = st.integers(0, 2**64 - 1)


def word_of(spa_mib: int, mapped_gib: int) -> int:
    return spa_mib << 20 | mapped_gib


# Small addresses and sizes: 1 GiB takes 4 MiB of entries, so that segments meet often.
WORD = st.builds(word_of, st.integers(0, 400), st.integers(0, 20)) | st.just(0)
FAR_WORD = st.builds(word_of, st.integers(0, 2**32 - 1), st.integers(0, 2**20 - 1)) | ANY_WORD
RST = st.lists(WORD, max_size=12) | st.lists(WORD | FAR_WORD, max_size=6)
CONFIG = st.sampled_from([0x1E01, 0x2001, 0x2201, 0x2401, 0x3401]) | st.builds(
    lambda shift: 1 | shift << 8, st.integers(0, 63)
)
BASE = st.integers(0, 400 * 128).map(lambda n: n * 8192) | st.sampled_from(
    [0, 0x1000, 0x9BA01000, 2**52 - 8192, 2**52 - 20480, 2**52 - 24576]
)
LIMITS = st.none() | st.builds(
    rmpgeometry.Limits,
    st.integers(0, 40),
    st.integers(30, 63),
    st.integers(0, 16),
    st.integers(0, 1),
)


@st.composite
def apart(draw):
    """Return a table that is good: segments side by side, in any order of addresses."""
    shift = draw(st.integers(30, 40))
    n = draw(st.integers(1, 8))
    most = 1 << (shift - 30)
    sizes = draw(st.lists(st.integers(0, min(most, 64)), min_size=n, max_size=n))
    order = draw(st.permutations(range(n)))
    base = draw(st.integers(1, 64)) * MIB
    at = base + MIB
    rst = [0] * n
    for index in order:
        at += draw(st.integers(0, 3)) * MIB
        rst[index] = at | sizes[index]
        at += sizes[index] * 4 * MIB
    return rst, 1 | shift << 8, base


def built(rst, cfg, base, limits=None, is_reduced=False):
    array = np.array(rst, np.uint64)
    return rmpgeometry.segments(array, cfg, base, limits=limits, is_reduced=is_reduced)


@given(ANY_WORD)
def test_any_config_decodes_as_the_oracle_says(word):
    got, wanted = rmpgeometry.decode_config(word), oracle.decode_config(word)
    assert (got.is_segmented, got.shift, bool(got.status)) == tuple(wanted.values())
    if not wanted["reserved"]:
        assert rmpgeometry.encode_config(got.is_segmented, got.shift) == word


@given(st.lists(ANY_WORD, max_size=8))
def test_any_words_decode_as_the_oracle_says_and_come_back(words):
    array = np.array(words, np.uint64)
    found = rmpgeometry.decode_segments(array)
    wanted = [oracle.decode_word(word) for word in words]
    assert found["spa"].tolist() == [one["spa"] for one in wanted]
    assert found["mapped_gib"].tolist() == [one["mapped_gib"] for one in wanted]
    assert (found["status"] != 0).tolist() == [one["reserved"] for one in wanted]
    assert [tuple(rmpgeometry.decode_segment(word)) for word in words] == found.tolist()
    low = [word % 2**52 for word in words]
    assert rmpgeometry.encode_segments(found).tolist() == low


@given(RST, CONFIG | ANY_WORD, BASE, LIMITS, st.booleans())
def test_a_table_is_refused_for_the_oracles_reason_or_laid_out_as_it_says(
    rst, cfg, base, limits, is_reduced
):
    wanted, why = oracle.segments(rst, cfg, base, limits, is_reduced)
    try:
        got = built(rst, cfg, base, limits, is_reduced)
    except SevError as error:
        assert wanted is None, str(error)
        status, what, index, others = why
        assert type(error) is ERRORS[status]
        text = str(error)
        start = {"cfg": f"RMP_CFG = {cfg:#x}: ", "base": f"RMP_BASE = {base:#x}: "}
        word = "" if index is None else f"rst[{index}] = {rst[index]:#x}: "
        assert text.startswith(start.get(what, word))
        if others:
            assert any(text.endswith(f"those of rst[{other}]") for other in others)
        return
    assert wanted is not None, why
    check(got, wanted)


def check(got, wanted):
    """Hold a geometry against the oracle's segments, at every edge."""
    assert rmpgeometry.coverage(got).tolist() == oracle.coverage(wanted)
    assert got.n_segments == len(wanted)
    assert got.n_entries == sum(one["n_pages"] for one in wanted)
    pages, spas = {0, 2**40 - 1, 2**40, 2**64 - 1}, {0, 2**64 - 1, got.base, got.base_end}
    for one in wanted:
        first, last = one["first_page"], one["first_page"] + one["n_pages"]
        pages |= {first, last - 1, last, first + one["n_pages"] // 3} | {max(first - 1, 0)}
        start, end = oracle.place(one)
        spas |= {start, start + 1, end - 16, end - 1, end, max(start - 16, 0), start + 48}
    for page in pages:
        where, asked = oracle.entry_address(wanted, page), np.array([page], np.uint64)
        assert rmpgeometry.has_entry(got, asked).tolist() == [where is not None]
        if where is None:
            with pytest.raises(OutOfRange, match=rf"pfns\[0\] = {page:#x}"):
                rmpgeometry.entry_addresses(got, asked)
        else:
            assert rmpgeometry.entry_addresses(got, asked).tolist() == [where]
            assert rmpgeometry.pages_of(got, np.array([where], np.uint64)).tolist() == [page]
    for spa in spas:
        page, asked = oracle.page_of(wanted, spa), np.array([spa], np.uint64)
        if isinstance(page, int):
            assert rmpgeometry.pages_of(got, asked).tolist() == [page]
        else:
            with pytest.raises(Unaligned if page == "inside" else OutOfRange, match=r"spas\[0\]"):
                rmpgeometry.pages_of(got, asked)


@given(apart())
def test_a_good_table_is_taken_and_each_page_has_one_place(table):
    wanted, why = oracle.segments(*table)
    assert wanted is not None, why
    got = built(*table)
    check(got, wanted)
    index, ranges = rmpgeometry.places(got)
    assert index.tolist() == [-1, *(one["index"] for one in wanted)]
    assert ranges.tolist()[1:] == [list(oracle.place(one)) for one in wanted]
    again = pickle.loads(pickle.dumps(got))
    assert again == got and hash(again) == hash(got)
    assert rmpgeometry.coverage(again).tolist() == rmpgeometry.coverage(got).tolist()


@given(apart(), st.data())
def test_a_batch_equals_a_loop_and_names_the_first_page_without_entry(table, data):
    got = built(*table)
    wanted, _ = oracle.segments(*table)
    last = max([one["first_page"] + one["n_pages"] for one in wanted] or [1])
    pages = data.draw(st.lists(st.integers(0, last + 10), max_size=20))
    where = [oracle.entry_address(wanted, page) for page in pages]
    array = np.array(pages, np.uint64)
    assert rmpgeometry.has_entry(got, array).tolist() == [one is not None for one in where]
    if None in where:
        with pytest.raises(OutOfRange, match=rf"pfns\[{where.index(None)}\]"):
            rmpgeometry.entry_addresses(got, array)
    else:
        assert rmpgeometry.entry_addresses(got, array).tolist() == where


@given(st.integers(1, 2**39), st.integers(0, 2**38))
def test_a_contiguous_table_is_one_segment_from_page_0(base_8k, extra_8k):
    base = base_8k * 8192
    end = base + 0x6000 + extra_8k * 8192 - 1
    if end >= 2**52:
        with pytest.raises(OutOfRange):
            rmpgeometry.contiguous(base, end)
        return
    got = rmpgeometry.contiguous(base, end)
    check(got, oracle.contiguous(base, end))
    assert not got.is_segmented and pickle.loads(pickle.dumps(got)) == got
    assert rmpgeometry.places(got)[1].tolist() == [[base, end + 1]]
    assert got.is_aligned == (base % MIB == 0 and (end + 1) % MIB == 0)

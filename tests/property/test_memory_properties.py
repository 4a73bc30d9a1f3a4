"""Runs, counts, disagreements and changes are what a look at every single page says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghcbcore._cffi import lib
from pysev.memory import Memory, words
from pysev.memory.convert import by_size, common, cut, hulls_of, overlap_of

N_PAGES = 1300
FIELDS = ("state", "mapping", "listed", "leaf", "key")

frames = st.one_of(
    st.tuples(st.integers(0, N_PAGES - 1), st.integers(0, 700)).map(
        lambda r: (r[0], min(r[1], N_PAGES - r[0]))
    ),
    st.lists(st.integers(0, N_PAGES - 1), max_size=6).map(lambda a: np.array(a, np.int64)),
    st.integers(0, N_PAGES - 1),
    st.sampled_from([(0, 512), (512, 512), (0, 1024), "all"]),
)
steps = st.one_of(
    st.tuples(st.just("map_as"), frames, st.sampled_from(["shared", "private", "unmapped"])),
    st.tuples(st.just("list_as"), frames, st.sampled_from(["shared", "private", "nothing"])),
    st.tuples(st.just("believe"), frames, st.booleans()),
    st.tuples(st.just("rmpupdate"), frames, st.booleans()),
    st.tuples(st.just("pvalidate"), frames, st.booleans()),
    st.tuples(st.sampled_from(["share", "make_private"]), frames),
    st.tuples(st.just("guest_access"), frames, st.just("write")),
)


def run(memory, plan):
    for name, where, *more in plan:
        named = {"store": True} if name == "guest_access" else {}
        getattr(memory, name)(where, *more, **named)


def pages_of(memory):
    """Every page, one by one; pages with the same words and history are looked up once."""
    found = {}
    pages = []
    for i in range(memory.n_pages):
        frame = memory.ledger.frame(i)
        if frame not in found:
            found[frame] = memory.page(i)
        pages.append(found[frame])
    return pages


def runs_of(flags):
    """Neighbours that are the same and not False, one by one."""
    found = []
    for i, flag in enumerate([*flags, False]):
        if found and found[-1][0] is not False and flag == found[-1][0]:
            found[-1][2] += 1
        else:
            found.append([flag, i, 1])
    return [(flag, first, n) for flag, first, n in found if flag is not False]


@given(st.lists(steps, max_size=8), st.data())
def test_questions_agree_with_a_look_at_every_page(plan, data):
    memory = Memory(N_PAGES * 4096)
    run(memory, plan)
    pages = pages_of(memory)
    first = data.draw(st.integers(0, N_PAGES - 1))
    n = data.draw(st.integers(0, N_PAGES - first))
    for field in FIELDS:
        for where in (None, (first, n)):
            low, length = where or (0, N_PAGES)
            values = [getattr(page, field) for page in pages[low : low + length]]
            counted = {value: values.count(value) * 4096 for value in set(values)}
            assert memory.counts(field, frames=where) == counted
    is_private = [page.mapping == "private" for page in pages]
    private = [(a, n_) for _, a, n_ in runs_of(is_private)]

    def test(v):
        return v["mapping"] == lib.FRAME_PRIVATE

    assert memory.runs(test) == private
    assert memory.runs(test, max_runs=2) == private[:2]
    firsts, lengths = memory.frames_where(test)
    assert list(zip(firsts.tolist(), lengths.tolist(), strict=True)) == private
    firsts, lengths = memory.frames_where(test, frames=(first, n))
    inside = [(first + a, n_) for _, a, n_ in runs_of(is_private[first : first + n])]
    assert list(zip(firsts.tolist(), lengths.tolist(), strict=True)) == inside
    assert memory.pages_assigned_to(1) == sum(p.asid == 1 for p in pages)


@given(st.lists(steps, max_size=8))
def test_disagreements_are_those_of_the_pages_and_as_old_as_the_younger_view(plan):
    memory = Memory(N_PAGES * 4096)
    run(memory, plan)
    pages = pages_of(memory)
    kinds = list(words.DISAGREEMENT_NUMBERS)
    expected = []
    for kind in kinds:
        views = [
            words.VIEW_NAMES[v]
            for v in words.VIEWS_OF_DISAGREEMENT[words.DISAGREEMENT_NUMBERS[kind]]
        ]
        flags = [
            kind in page.disagreements and max(page.since[v] for v in views) + 1 for page in pages
        ]
        expected += [(kind, first, n, since - 1) for since, first, n in runs_of(flags)]
    found = [(d.kind, d.first, d.n_pages, d.since) for d in memory.disagreements(kinds)]
    assert found == expected
    amounts = {kind: sum(n for k, _, n, _ in expected if k == kind) * 4096 for kind in kinds}
    assert memory.disagreeing(kinds) == {kind: n for kind, n in amounts.items() if n}
    default = set(words.DEFAULT_DISAGREEMENTS)
    assert memory.pages_disagreeing() == sum(bool(default & set(p.disagreements)) for p in pages)


@given(st.lists(steps, max_size=4), st.lists(steps, max_size=4))
def test_changes_since_a_snapshot_are_the_pages_that_are_not_as_they_were(before, after):
    memory = Memory(N_PAGES * 4096)
    run(memory, before)
    snapshot, old = memory.snapshot(), pages_of(memory)
    event = memory.ledger.event
    run(memory, after)
    new = pages_of(memory)
    views = {
        "rmp": lambda p: (p.state, p.asid, p.asid and p.gfn - p.frame, p.large, p.rights),
        "page_table": lambda p: (p.mapping, p.leaf),
        "validated": lambda p: p.believed,
        "host_list": lambda p: p.listed,
        "content": lambda p: p.key,
    }
    names = [
        ", ".join(name for name, of in views.items() if of(a) != of(b)) or False
        for a, b in zip(old, new, strict=True)
    ]
    found = [(run_.what, run_.first, run_.n_pages) for run_ in memory.changes(snapshot)]
    assert found == runs_of(names)
    for name, a, b in zip(names, old, new, strict=True):
        for view in name.split(", ") if name else ():
            assert b.since[view] > event >= a.since[view]


# Spans --------------------------------------------------------------------------------------------

spans = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 3000)), max_size=6)


def disjoint(gaps, start=0):
    """Spans in the order of addresses, from gaps and lengths."""
    firsts, lengths = [], []
    for gap, n in gaps:
        firsts.append(start + gap + 1)
        lengths.append(n)
        start += gap + 1 + n
    return np.array(firsts, np.uint64), np.array(lengths, np.uint64)


def pages_in(some):
    return {
        p
        for first, n in zip(*(a.tolist() for a in some), strict=True)
        for p in range(first, first + n)
    }


@given(spans)
def test_spans_by_size_are_the_same_pages_in_whole_regions_and_the_rest(gaps):
    some = disjoint(gaps)
    small, large = by_size(*some)
    assert pages_in(small) | pages_in(large) == pages_in(some)
    assert not pages_in(small) & pages_in(large)
    assert all(f % 512 == n % 512 == 0 for f, n in zip(*large, strict=True))
    regions = {p // 512 for p in pages_in(small)}
    assert all(not set(range(r * 512, r * 512 + 512)) <= pages_in(some) for r in regions) or any(
        a + n == b for a, n, b in zip(some[0][:-1], some[1][:-1], some[0][1:], strict=True)
    )


@given(spans, spans)
def test_hulls_common_parts_and_cuts_are_those_of_sets(a, b):
    one, two = disjoint(a), disjoint(b)
    shuffled = tuple(array[::-1] for array in one)
    regions = {p // 512 for p in pages_in(one)}
    assert pages_in(hulls_of(*shuffled)) == {r * 512 + i for r in regions for i in range(512)}
    both = common(one, two)
    assert pages_in(both) == pages_in(one) & pages_in(two)
    assert pages_in(cut(*one, *both)) == pages_in(one) - pages_in(two)
    assert overlap_of(*shuffled) is None
    joined = tuple(np.concatenate(pair) for pair in zip(one, two, strict=True))
    found = overlap_of(*joined)
    assert (found is None) == (not pages_in(one) & pages_in(two))
    if found is not None:
        i, k = (pages_in(tuple(array[j : j + 1] for array in joined)) for j in found)
        assert i & k


@pytest.mark.parametrize("letters", ["", "rwuxs", "xr"])
def test_rights_do_not_depend_on_their_order(letters):
    assert words.rights_of(letters) == words.rights_of(letters[::-1])

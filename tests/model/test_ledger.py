"""The ledger's tree and flat frames go through the same histories: records, since, counts, runs.

Rules are the same on both sides (`test_memory_against_oracle.py` has them); what is compared here
is how the ledger finds, shares, counts and forgets frames.
"""

from pathlib import Path
from random import Random

import numpy as np
import pytest
from flat_ledger import BLURRED, REGION, Pair, compare, is_region, n_each, views_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ghcbcore import errors
from ghcbcore._cffi import lib
from ghcbcore.frame import Op
from ghcbcore.ledger import Ledger

GIB = REGION * REGION
NEVER = (lib.FRAME_OP_MOVE, lib.FRAME_OP_LEAF)
KINDS = [kind for kind in range(1, lib.FRAME_OP_END) if kind not in NEVER]
VALUES = {
    lib.FRAME_OP_MAP: (0, 1, 2),
    lib.FRAME_OP_BELIEVE: (0, 1),
    lib.FRAME_OP_LIST: (0, 1, 2),
    lib.FRAME_OP_CONTENT: (0, 1, 5),
    lib.FRAME_OP_RMPUPDATE: (0, 1, 1, 1, 3),
    lib.FRAME_OP_PVALIDATE: (0, 1),
    lib.FRAME_OP_INIT: (1, 2, 2, 2, 3, 4),
}
LIKELY = (lib.FRAME_OP_RMPUPDATE, lib.FRAME_OP_PVALIDATE, lib.FRAME_OP_MAP, lib.FRAME_OP_LIST)


def some_op(rng):
    kind = rng.choice(KINDS + list(LIKELY) * 4)
    accesses = (lib.FRAME_OP_HOST_ACCESS, lib.FRAME_OP_GUEST_ACCESS, lib.FRAME_OP_DMA)
    value = rng.choice(VALUES[kind]) if kind in VALUES else rng.getrandbits(3)
    if kind in accesses:
        value = rng.getrandbits(6)
    return Op(
        kind,
        size=rng.choice((0, 0, 0, 1)),
        backing=rng.choice((0, 0, 1)),
        asid=1 if kind == lib.FRAME_OP_PVALIDATE else rng.choice((0, 1, 1, 1, 2)),
        vmpl=rng.choice((0, 0, 0, 1)),
        target=rng.choice((1, 2)),
        gfn=rng.choice((0, 0, 0, 0, 512, lib.FRAME_GFN_MASK - 511, (1 << 36) - 700)),
        value=value,
    )


def step(pair, rng, lengths=(1, 2, 5, 64, 300, 512, 10**9)):
    n_pages, op = len(pair.flat), some_op(rng)
    each = n_each(op)
    n_all = n_pages // each
    if not n_all:
        return
    if rng.randrange(2):
        first = rng.randrange(n_all)
        n = min(rng.choice(lengths), n_all - first)
        if rng.random() < 0.2:
            first, n = 0, n_all
        pair.range(op, first * each, n * each)
    else:
        pair.array(op, [rng.randrange(n_all) * each for _ in range(rng.choice((1, 3, 40)))])


@settings(max_examples=int(settings().max_examples * 0.3))
@given(seed=st.integers(0, 2**32), n_pages=st.sampled_from([1, 511, 512, 1436, 1536]))
def test_ledger_and_flat_frames_are_alike_after_any_history(seed, n_pages):
    rng = Random(seed)
    covered = rng.choice((n_pages, n_pages - n_pages // 5))
    pair = Pair(n_pages, covered=covered, rules=rng.choice((0, 0, 1, 3)))
    kept = []
    for _ in range(25):
        step(pair, rng)
        snapshot, records, ids = pair.compare()
        for one, flat, since in kept:
            compare(one, flat, since)
        classes = np.array([rng.randrange(3) for _ in records], np.uint32)
        check_runs(snapshot, classes, ids, rng)
        if kept:
            check_differences(kept[0], snapshot, pair.flat)
        kept.append((snapshot, pair.flat.copy(), pair.since.copy()))
        if len(kept) > 3:
            kept.pop(rng.randrange(3))


def spread(answer, n_pages):
    """Return the classes of frames by runs, after a look at the runs themselves."""
    found, last = np.zeros(n_pages, np.uint32), 0
    for first, n, kind in zip(*answer[:3], strict=True):
        assert int(first) >= last and n and kind
        last = int(first) + int(n)
        found[int(first) : last] = kind
    return found


def check_runs(snapshot, classes, ids, rng):
    n_pages = len(ids)
    first = rng.randrange(n_pages)
    n = rng.randrange(n_pages - first + 1)
    wanted = classes[ids]
    counts = snapshot.count(classes, first, n)
    assert (counts == np.bincount(wanted[first : first + n], minlength=len(counts))).all()
    answer = snapshot.runs(classes)
    assert (spread(answer, n_pages) == wanted).all() and answer[3] == n_pages
    found, at = np.zeros(n_pages, np.uint32), first
    while at < first + n:  # piece by piece
        some = snapshot.runs(classes, at, first + n - at, max_runs=2)
        assert some[3] > at
        found |= spread(some, n_pages)
        at = some[3]
    assert (found[first : first + n] == wanted[first : first + n]).all()


def check_differences(kept, later, flat):
    earlier, before, _ = kept
    answer = earlier.differences(later)
    assert (spread(answer, len(flat)) == views_of(before, flat)).all()
    back = later.differences(earlier, 1 << lib.FRAME_VIEW_RMP)
    assert (spread(back, len(flat)) == (views_of(before, flat) & np.uint64(1))).all()


def test_memory_returns_and_records_go_when_everything_is_uniform_again():
    rng = Random(5)
    pair = Pair(3 * REGION)
    for _ in range(60):
        step(pair, rng)
    held = pair.ledger.snapshot()
    assert pair.ledger.n_records > 20
    everything = [
        Op(lib.FRAME_OP_VMEXIT),
        Op(lib.FRAME_OP_INIT, size=1, value=lib.RMP_STATE_HYPERVISOR),
        Op(lib.FRAME_OP_MAP, value=lib.FRAME_PRIVATE),
        Op(lib.FRAME_OP_MAP, value=lib.FRAME_UNMAPPED),
        Op(lib.FRAME_OP_BELIEVE, value=1),
        Op(lib.FRAME_OP_BELIEVE, value=0),
        Op(lib.FRAME_OP_LIST, value=1),
        Op(lib.FRAME_OP_LIST, value=2),
        Op(lib.FRAME_OP_CONTENT, value=3),
        Op(lib.FRAME_OP_CONTENT, value=4),
        Op(lib.FRAME_OP_INIT, value=lib.RMP_STATE_HV_FIXED),
        Op(lib.FRAME_OP_INIT, value=lib.RMP_STATE_HYPERVISOR),
    ]
    for op in everything:
        pair.range(op, 0, 3 * REGION)
    pair.compare()
    assert pair.ledger.n_records > 2, "the snapshot holds its own"
    del held
    assert pair.ledger.n_records == 2  # one kind, and what lies beyond
    fresh = Ledger(3 * REGION)
    n_bytes = pair.ledger.n_bytes
    for _ in range(4):  # the same again takes no more
        for p in range(0, 3 * REGION, 2):
            pair.ledger.array(Op(lib.FRAME_OP_LIST, value=p % 3), np.array([p], np.uint64))
        for op in everything:
            pair.ledger.range(op, 0, 3 * REGION)
    assert pair.ledger.n_records == 2
    assert pair.ledger.n_bytes <= n_bytes + (1 << 18)
    assert fresh.n_records == 2


def test_records_are_exactly_the_kinds_of_frames_with_their_histories():
    rng = Random(11)
    pair = Pair(2 * REGION)
    for _ in range(40):
        step(pair, rng)
        kinds = np.unique(np.hstack([pair.flat, pair.since.astype(np.uint64)]), axis=0)
        assert pair.ledger.n_records == len(kinds) + 1  # and what lies beyond


def test_a_ledger_larger_than_a_gib_has_the_frames_that_were_changed():
    n_pages = GIB + 3 * REGION + 7
    ledger = Ledger(n_pages, covered=GIB + 5)
    give = Op(lib.FRAME_OP_RMPUPDATE, size=1, asid=1, value=1)
    assert ledger.range(give, 0, GIB) == (1, GIB, GIB, 0)
    assert ledger.n_records == 3 + 1  # the rest, what has no entry, beyond
    classes = np.arange(len(ledger.snapshot().records()), dtype=np.uint32)
    assert sorted(ledger.snapshot().count(classes).tolist())[-3:] == [5, 3 * REGION + 2, GIB]
    # 4 KiB commands of firmware see slots inside 2 MiB entries: nothing happens to those
    found = ledger.range(Op(lib.FRAME_OP_RECLAIM), 1, GIB - 1)
    assert (found.n_done, found.n_changed) == (REGION - 1, 0)
    assert found.result >> lib.FRAME_RESULT_CODE_SHIFT & 0xFF == lib.SNP_FW_PAGE_SIZE
    smashed = ledger.range(Op(lib.FRAME_OP_PSMASH), 0, GIB)
    assert smashed.n_changed == GIB
    assert ledger.frame(GIB - 1).since[0] == 3
    refused = ledger.range(Op(lib.FRAME_OP_RMPUPDATE, asid=1, value=1), GIB, 10)
    assert (refused.n_done, refused.result >> 52) == (5, lib.SEV_RMP_FAIL_INPUT)
    with pytest.raises(errors.OutOfRange):
        ledger.range(give, 0, n_pages + 1)
    with pytest.raises(errors.Unaligned):
        ledger.range(give, 0, n_pages)


def test_rmpupdate_stops_where_gpas_end_in_ranges_and_arrays():
    ledger = Ledger(4 * REGION)
    distance = (1 << 36) - 700  # frame 700 has the first GPA that is too high
    for op in (Op(lib.FRAME_OP_RMPUPDATE, asid=1, gfn=distance, value=1),):
        found = ledger.range(op, 0, 4 * REGION)
        assert (found.n_done, found.n_changed) == (700, 700)
        assert found.result >> 52 == lib.SEV_RMP_FAIL_INPUT
        found = ledger.array(op, np.array([3, 699, 700, 4], np.uint64))
        assert (found.n_done, found.result >> 52) == (2, lib.SEV_RMP_FAIL_INPUT)
    firmware = Op(lib.FRAME_OP_RMPUPDATE, gfn=1 << 36, value=1)
    assert ledger.range(firmware, 900, 1).result >> 52 == lib.SEV_RMP_FAIL_INPUT


@pytest.mark.parametrize("seed", range(6))
def test_leaves_of_three_sizes_are_split_as_far_as_a_new_mapping_needs(seed):
    rng = Random(seed)
    n_pages = GIB + 2 * REGION
    ledger = Ledger(n_pages)
    leaves, mapped = np.zeros(n_pages, np.uint8), np.zeros(n_pages, np.uint8)
    sizes = {0: 1, 1: REGION, 2: GIB}
    for turn in range(25):
        size = 2 if turn == 0 else rng.choice((0, 0, 1, 1, 2))
        each = sizes[size]
        first = rng.randrange(n_pages // each) * each
        n = min(rng.choice((1, 1, 3)), n_pages // each - first // each) * each
        value = rng.choice((lib.FRAME_SHARED, lib.FRAME_PRIVATE, lib.FRAME_UNMAPPED))
        if rng.randrange(2):
            ledger.range(Op(lib.FRAME_OP_MAP, size=size, value=value), first, n)
        else:
            n = each
            ledger.array(Op(lib.FRAME_OP_MAP, size=size, value=value), np.array([first], np.uint64))
        for p in (first, first + n):  # a leaf that lies across an end becomes smaller leaves
            for smaller in (1, 0):
                whole = sizes[smaller + 1]
                start = p // whole * whole
                inside = slice(start, start + whole)
                if p < n_pages and p % whole and leaves[p] > smaller:
                    leaves[inside] = np.minimum(leaves[inside], smaller)
        mapped[first : first + n] = value
        leaves[first : first + n] = 0 if value == lib.FRAME_UNMAPPED else size
        snapshot = ledger.snapshot()
        words = snapshot.records()["word"][snapshot.ids(np.arange(n_pages, dtype=np.uint64))]
        assert (words >> np.uint64(lib.FRAME_MAPPING_SHIFT) & np.uint64(3) == mapped).all()
        assert (words >> np.uint64(lib.FRAME_LEAF_SHIFT) & np.uint64(3) == leaves).all(), turn


def test_near_its_bound_a_ledger_cuts_histories_and_keeps_frames():
    rng = Random(3)
    max_bytes = 1_200_000
    pair = Pair(12 * REGION, max_bytes=max_bytes)
    was_blurred = False
    for turn in range(300):
        kind = rng.choice((lib.FRAME_OP_LIST, lib.FRAME_OP_CONTENT, lib.FRAME_OP_MAP))
        op = Op(kind, value=rng.randrange(3))
        pages = [rng.randrange(12 * REGION) for _ in range(60)]
        before = pair.flat.copy()
        try:
            pair.ledger.array(op, np.array(pages, np.uint64))
        except MemoryError:
            break  # what it did: see the next test
        pair.expected(op, pages)
        pair.note(before)
        if turn % 10 == 0 or pair.ledger.n_blurred:
            _, records, ids = pair.compare()
            was_blurred |= bool((records["since"][ids] & BLURRED).any())
        assert pair.ledger.n_bytes <= max_bytes + 10_000
    assert pair.ledger.n_blurred and was_blurred


@pytest.mark.parametrize("max_bytes", [300_000, 600_000, 700_000])
def test_a_ledger_that_runs_out_of_memory_has_done_what_is_before_the_named_frame(max_bytes):
    pair = Pair(40 * REGION, max_bytes=max_bytes)
    rng, n_refused = Random(max_bytes), 0
    for turn in range(400):
        op = Op(lib.FRAME_OP_LIST, value=1 + turn % 2)
        if turn % 3:
            op = Op(lib.FRAME_OP_CONTENT, value=turn % 1000)
        pages = sorted(rng.sample(range(40 * REGION), 50))
        before = pair.flat.copy()
        try:
            pair.ledger.array(op, np.array(pages, np.uint64))
        except MemoryError as error:
            n_refused += 1
            n_done = int(str(error).split("frames[")[1].split("]")[0])
            pages = pages[:n_done]
        pair.expected(op, pages)
        pair.note(before)
        if n_refused or turn % 20 == 0:
            pair.compare()
        assert pair.ledger.n_bytes <= max_bytes + 10_000
        if n_refused > 5:
            break
    assert n_refused


@pytest.mark.parametrize("n_pages", [1, 2, 511, 513, GIB - 1, GIB + 1])
def test_a_ledger_of_any_size_ends_where_it_ends(n_pages):
    ledger = Ledger(n_pages)
    done = ledger.range(Op(lib.FRAME_OP_LIST, value=1), 0, n_pages)
    assert (done.n_done, done.n_changed) == (n_pages, n_pages)
    snapshot = ledger.snapshot()
    records = snapshot.records()
    classes = np.ones(len(records), np.uint32)
    assert snapshot.runs(classes)[1].tolist() == [n_pages]
    assert int(snapshot.count(classes)[1]) == n_pages
    for wrong in (n_pages, n_pages + 1, 1 << 40):
        with pytest.raises(errors.OutOfRange):
            ledger.frame(wrong)
        with pytest.raises(errors.OutOfRange):
            ledger.array(Op(lib.FRAME_OP_LIST, value=2), np.array([wrong], np.uint64))
    if n_pages % REGION:
        with pytest.raises(errors.SevError):
            ledger.array(Op(lib.FRAME_OP_PSMASH), np.array([n_pages // REGION * REGION], np.uint64))


def entries_of(n, **named):
    from ghcbcore.rmp import RMP_DTYPE

    entries = np.zeros(n, RMP_DTYPE)
    for name, value in named.items():
        entries[name] = value
    return entries


def test_entries_that_were_stored_load_into_the_same_frames():
    rng = Random(8)
    pair = Pair(3 * REGION)
    for _ in range(40):
        step(pair, rng)
    stored = pair.ledger.snapshot().entries(0, 3 * REGION, as_stored=True)
    other = Ledger(3 * REGION)
    other.load(0, stored)
    again = other.snapshot().entries(0, 3 * REGION, as_stored=True)
    assert (again == stored).all()
    # and over what is there already, 2 MiB entries and all
    other.load(REGION, stored[:REGION])
    assert (
        other.snapshot().entries(REGION, REGION, as_stored=True)["asid"] == stored["asid"][:REGION]
    ).all()


def test_a_load_is_refused_as_a_whole():
    large = {"assigned": 1, "page_size": 1, "asid": 1}
    ledger = Ledger(2 * REGION)
    ledger.load(0, entries_of(REGION, **large))
    for first, entries, error in (
        (5, entries_of(3), errors.StateConflict),
        (0, entries_of(3), errors.StateConflict),
        (REGION, entries_of(8, **large), errors.Unaligned),
        (REGION + 1, entries_of(2, **large), errors.Unaligned),
        (REGION, entries_of(REGION, gpa=0x1000, **large), errors.OutOfRange),
        (REGION, entries_of(REGION, page_size=1), errors.OutOfRange),
        (REGION, entries_of(REGION + 1), errors.OutOfRange),
        (REGION, entries_of(2, migration=[0, 1]), errors.OutOfRange),
    ):
        before = ledger.snapshot()
        with pytest.raises(error):
            ledger.load(first, entries)
        assert len(before.differences(ledger.snapshot())[0]) == 0
    ledger.load(0, entries_of(REGION))
    assert not ledger.snapshot().entries(0, REGION)["assigned"].any()


def test_rmpread_says_what_slots_hold_and_whether_the_region_has_pages():
    ledger = Ledger(3 * REGION, covered=2 * REGION + 5)
    ledger.range(Op(lib.FRAME_OP_RMPUPDATE, size=1, asid=7, value=1), 0, REGION)
    ledger.range(Op(lib.FRAME_OP_RMPUPDATE, asid=7, gfn=3, value=3), REGION + 9, 1)
    frames = np.array([0, 1, REGION, REGION + 9, 2 * REGION, 2 * REGION + 5], np.uint64)
    found = ledger.snapshot().rmpread(frames)
    assert found["assigned"].tolist() == [1, 1, 0, 1, 0, 0]
    assert found["page_size"].tolist() == [1, 0, 0, 0, 0, 0]
    assert found["region"].tolist() == [1, 1, 1, 1, 0, 0]
    assert found["immutable"].tolist() == [0, 0, 0, 1, 0, 0]
    assert found["asid"].tolist() == [7, 0, 0, 7, 0, 0]
    assert found["gpa"].tolist() == [0, 0, 0, (REGION + 12) << 12, 0, 0]
    with pytest.raises(errors.OutOfRange, match=r"frames\[1\] = 0x600"):
        ledger.snapshot().rmpread(np.array([0, 3 * REGION], np.uint64))


def test_closed_ledgers_give_their_memory_back():
    def resident():
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096

    def use():
        ledger = Ledger(64 * REGION)
        frames = np.arange(0, 64 * REGION, 2, dtype=np.uint64)
        for value in range(12):
            ledger.array(Op(lib.FRAME_OP_CONTENT, value=value), frames[value::3].copy())
        return ledger.snapshot()

    for _ in range(3):
        use()
    before = resident()
    for _ in range(30):
        use()
    assert resident() - before < 8 << 20


def test_operands_of_whole_regions_are_those_that_the_core_says():
    for kind in KINDS:
        op = Op(kind, size=1)
        ledger = Ledger(2 * REGION)
        try:
            ledger.range(op, 1, 1)
        except errors.Unaligned:
            assert is_region(op) or kind == lib.FRAME_OP_MAP
        else:
            assert not is_region(op)

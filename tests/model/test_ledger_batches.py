"""Long arrays and sequences: the same as one frame, one operation after the other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange
from ghcbcore.frame import Op
from ghcbcore.frame import result as take_apart
from ghcbcore.ledger import Ledger

N = 5 * 512 - 100

TO_SHARED = (
    Op(lib.FRAME_OP_PVALIDATE, asid=1, value=0),
    Op(lib.FRAME_OP_RMPUPDATE),
    Op(lib.FRAME_OP_LIST, value=lib.FRAME_LISTED_SHARED),
    Op(lib.FRAME_OP_MAP, value=lib.FRAME_SHARED),
)
TO_PRIVATE = (
    Op(lib.FRAME_OP_MAP, value=lib.FRAME_PRIVATE),
    Op(lib.FRAME_OP_RMPUPDATE, asid=1, value=lib.FRAME_NEW_ASSIGNED),
    Op(lib.FRAME_OP_LIST, value=lib.FRAME_LISTED_PRIVATE),
    Op(lib.FRAME_OP_PVALIDATE, asid=1, value=1),
)
WRITES = Op(lib.FRAME_OP_HOST_ACCESS, value=lib.FRAME_ACCESS_WRITE | lib.FRAME_ACCESS_STORE)
CHOICES = (*TO_SHARED, *TO_PRIVATE, WRITES, Op(lib.FRAME_OP_CONTENT, value=7))


def refused(result):
    one = take_apart(result)
    return bool(one.kind or one.code)


def everything(ledger):
    """Views of all frames, and which frames are younger than which in each view."""
    snapshot = ledger.snapshot()
    records = snapshot.records()
    ids = snapshot.ids(np.arange(N, dtype=np.uint64))
    return records["word"][ids], records["gfn"][ids], records["since"][ids]


def prepared(leaf):
    ledger = Ledger(N)
    n = N // 512 * 512
    for op in TO_PRIVATE:
        one = op._replace(size=leaf) if op.kind == lib.FRAME_OP_MAP else op
        assert ledger.range(one, 0, n).n_done == n
    return ledger


@st.composite
def arrays(draw):
    """Long arrays of frames, some twice, some (rarely) beyond the guest."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    n = draw(st.sampled_from([5, 1023, 1024, 1500, 3000]))
    top = draw(st.sampled_from([600, N - 460, N, N]))
    frames = rng.integers(top, size=n)
    if draw(st.booleans()):
        frames = rng.permutation(top)[:n]
    if draw(st.sampled_from([False] * 5 + [True])):
        frames[draw(st.integers(0, len(frames) - 1))] = N + 5
    return frames.astype(np.uint64)


@settings(deadline=None, max_examples=60)
@given(
    arrays(),
    st.lists(st.sampled_from(CHOICES), min_size=1, max_size=4).map(tuple)
    | st.sampled_from([TO_SHARED, TO_PRIVATE]),
    st.sampled_from([0, 1]),
)
def test_a_long_array_comes_to_the_same_as_its_elements(frames, ops, leaf):
    batch, slow = prepared(leaf), prepared(leaf)
    before = batch.snapshot()
    outside = np.flatnonzero(frames >= N)
    n_done, n_changed, answer = len(frames), 0, 0
    for i, frame in enumerate(frames):
        if frame >= N:
            n_done = i
            break
        was = slow.frame(int(frame))
        for op in ops:
            done = slow.array(op, frames[i : i + 1])
            if refused(done.result):
                answer = done.result
                break
        now = slow.frame(int(frame))
        if answer:
            n_done = i
            # what a frame that refuses was told before counts as it does in the batch
            n_changed += (was.word, was.gfn) != (now.word, now.gfn)
            break
        n_changed += (was.word, was.gfn) != (now.word, now.gfn)
    given_ops = ops[0] if len(ops) == 1 else ops
    if not answer and len(outside):
        with pytest.raises(OutOfRange, match=rf"frames\[{outside[0]}\] = {N + 5:#x}"):
            batch.array(given_ops, frames)
    else:
        done = batch.array(given_ops, frames)
        assert (done.n_done, refused(done.result)) == (n_done, bool(answer))
        if answer:
            assert done.result == answer
    for ours, theirs in zip(everything(batch)[:2], everything(slow)[:2], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # the counts of the records, and nothing kept that nobody has
    records = batch.snapshot().records()
    ids = batch.snapshot().ids(np.arange(N, dtype=np.uint64))
    counts = np.bincount(ids, minlength=len(records)).astype(np.uint64)
    live = records["n_pages"] != np.uint64(lib.GHCB_STORE_FREED)
    live[[0, lib.GHCB_STORE_BEYOND]] = False
    np.testing.assert_array_equal(counts[live], records["n_pages"][live])
    del before
    batch.array(CHOICES[2], np.zeros(1, np.uint64))
    assert batch.n_records <= len(np.unique(ids)) + 3


def test_each_operation_of_a_sequence_is_an_event_of_its_own():
    ledger = prepared(0)
    frames = np.arange(0, 2000, 2, dtype=np.uint64)
    first = ledger.event + 1
    done = ledger.array(TO_SHARED, np.concatenate([frames, frames + np.uint64(1)]))
    assert (done.event, done.n_done, done.n_changed) == (first, 2000, 2000)
    assert ledger.event == first + 3
    since = ledger.frame(77).since
    assert since[lib.FRAME_VIEW_RMP] == first + 1
    assert since[lib.FRAME_VIEW_VALIDATED] == first
    assert since[lib.FRAME_VIEW_LISTED] == first + 2
    assert since[lib.FRAME_VIEW_PAGE_TABLE] == first + 3


@pytest.mark.parametrize("ledger_keeps", [False, True])
def test_a_refusal_in_a_long_array_leaves_what_follows_as_it_was(ledger_keeps):
    ledger = prepared(0)
    kept = ledger.snapshot() if ledger_keeps else None
    frames = np.random.default_rng(3).permutation(2000).astype(np.uint64)
    frozen = lib.FRAME_NEW_ASSIGNED | lib.FRAME_NEW_IMMUTABLE
    assert ledger.range(
        Op(lib.FRAME_OP_RMPUPDATE, asid=1, value=frozen), int(frames[1234]), 1
    ).n_changed
    done = ledger.array(Op(lib.FRAME_OP_RMPUPDATE), frames)
    assert (done.n_done, done.n_changed) == (1234, 1234)
    assert take_apart(done.result).code == lib.SEV_RMP_FAIL_PERMISSION
    words = everything(ledger)[0]
    is_assigned = words >> np.uint64(lib.FRAME_ASSIGNED) & np.uint64(1)
    assert not is_assigned[frames[:1234]].any()
    assert is_assigned[frames[1234:]].all()
    del kept


@pytest.mark.parametrize(
    ("ops", "text"),
    [
        ((), "a sequence of no operations"),
        ([Op(lib.FRAME_OP_LIST)] * 9, "a sequence of more than 8 operations"),
        (
            [Op(lib.FRAME_OP_LIST), Op(lib.FRAME_OP_PSMASH)],
            r"op\[1\]: a sequence has operands of 4",
        ),
        (
            [Op(lib.FRAME_OP_RMPQUERY, asid=1), Op(lib.FRAME_OP_LIST)],
            r"op\[0\]: .* asks nothing and no firmware",
        ),
    ],
)
def test_what_is_no_sequence_is_refused(ops, text):
    ledger = prepared(0)
    with pytest.raises(OutOfRange, match=text):
        ledger.array(ops, np.zeros(1, np.uint64))
    assert ledger.event == len(TO_PRIVATE)


def test_an_array_longer_than_is_sorted_at_a_time_stops_where_it_must():
    n = 1 << 21
    ledger = Ledger(n)
    for op in TO_PRIVATE:
        ledger.range(op, 0, n)
    frames = np.random.default_rng(4).permutation(n)[:1_300_000].astype(np.uint64)
    frozen = lib.FRAME_NEW_ASSIGNED | lib.FRAME_NEW_IMMUTABLE
    ledger.range(Op(lib.FRAME_OP_RMPUPDATE, asid=1, value=frozen), int(frames[1_200_000]), 1)
    done = ledger.array(Op(lib.FRAME_OP_RMPUPDATE), frames)
    assert (done.n_done, done.n_changed) == (1_200_000, 1_200_000)
    snapshot = ledger.snapshot()
    words = snapshot.records()["word"][snapshot.ids(frames)]
    is_assigned = (words >> np.uint64(lib.FRAME_ASSIGNED) & np.uint64(1)).astype(bool)
    assert not is_assigned[:1_200_000].any() and is_assigned[1_200_000:].all()
    listed = ledger.array(TO_SHARED[2:], frames)
    assert (listed.n_done, listed.n_changed) == (len(frames), len(frames))
    with pytest.raises(OutOfRange, match=rf"frames\[{len(frames)}\] = {n:#x}"):
        ledger.array(TO_PRIVATE[2], np.append(frames, np.uint64(n)))
    assert ledger.frame(int(frames[-1])).since[lib.FRAME_VIEW_LISTED] == ledger.event

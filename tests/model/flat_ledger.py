"""A ledger and flat frames with their histories, side by side: what `test_ledger.py` compares.

The flat side keeps each frame's two words and the event since which each view is so in arrays, and
applies the rule to one frame after the other (`ghcbcore.frame.apply`).
"""

import numpy as np

from ghcbcore import frame
from ghcbcore._cffi import lib
from ghcbcore.frame import Op
from ghcbcore.ledger import Ledger

REGION = lib.FRAME_REGION
LEAVES = {0: 1, 1: REGION, 2: REGION * REGION}
BLURRED = 1 << 31


def is_refused(word):
    return word >> lib.FRAME_RESULT_CODE_SHIFT != 0


def is_region(op):
    kinds = (lib.FRAME_OP_PSMASH, lib.FRAME_OP_UNSMASH)
    sized = (lib.FRAME_OP_RMPUPDATE, lib.FRAME_OP_PVALIDATE, lib.FRAME_OP_RMPADJUST)
    sized += (lib.FRAME_OP_LAUNCH_UPDATE, lib.FRAME_OP_RECLAIM, lib.FRAME_OP_INIT)
    sized += (lib.FRAME_OP_SWAP_OUT, lib.FRAME_OP_SWAP_IN)
    return op.kind in kinds or (op.kind in sized and bool(op.size))


def n_each(op):
    return LEAVES[op.size] if op.kind == lib.FRAME_OP_MAP else REGION if is_region(op) else 1


def views_of(a, b):
    """Which views differ, as sets of bits, of two arrays of frames."""
    differ = a[:, 0] ^ b[:, 0]
    found = ((differ & np.uint64(lib.FRAME_RMP_MASK)) != 0) | (a[:, 1] != b[:, 1])
    views = found.astype(np.uint64) << np.uint64(lib.FRAME_VIEW_RMP)
    for view, shift, width in (
        (lib.FRAME_VIEW_PAGE_TABLE, lib.FRAME_MAPPING_SHIFT, 4),
        (lib.FRAME_VIEW_VALIDATED, lib.FRAME_BELIEVED, 1),
        (lib.FRAME_VIEW_LISTED, lib.FRAME_LISTED_SHIFT, lib.FRAME_LISTED_WIDTH),
        (lib.FRAME_VIEW_CONTENT, lib.FRAME_KEY_SHIFT, lib.FRAME_KEY_WIDTH),
    ):
        bits = differ >> np.uint64(shift) & np.uint64((1 << width) - 1)
        views |= (bits != 0).astype(np.uint64) << np.uint64(view)
    return views


class Pair:
    def __init__(self, n_pages, **named):
        self.ledger = Ledger(n_pages, **named)
        self.rules = {name: named[name] for name in ("rules", "max_asid") if name in named}
        self.flat = np.zeros((n_pages, 2), np.uint64)
        self.flat[:, 0] = lib.FRAME_KEY_NONE << lib.FRAME_KEY_SHIFT  # never written
        self.flat[named.get("covered", n_pages) :, 0] |= np.uint64(1 << lib.FRAME_UNCOVERED)
        self.since = np.zeros((n_pages, lib.FRAME_N_VIEWS), np.uint32)
        covered = named.get("covered", n_pages)
        self.since[covered:, lib.FRAME_VIEW_RMP] = 0

    def note(self, before):
        views = views_of(before, self.flat)
        for view in range(lib.FRAME_N_VIEWS):
            self.since[(views >> np.uint64(view) & np.uint64(1)) != 0, view] = self.ledger.event
        return int((views != 0).sum())

    def leaf(self, first, end):
        """Split leaves that reach across the ends of a mapping."""
        for p in (first, end):
            if p >= len(self.flat):
                continue
            leaf = int(self.flat[p, 0]) >> lib.FRAME_LEAF_SHIFT & 3
            for size in (lib.FRAME_LEAF_2M, lib.FRAME_LEAF_4K):
                n = LEAVES[size + 1]
                if leaf > size and p % n:
                    start = p // n * n
                    for at in range(start, min(start + n, len(self.flat))):
                        self.one(Op(lib.FRAME_OP_LEAF, size=size), at)

    def one(self, op, at):
        first = at // REGION * REGION
        side_by_side = self.flat[first : first + REGION]
        return frame.apply(op, side_by_side, at - first, first_pfn=first, **self.rules)

    def expected(self, op, elements):
        """Apply to pages in order; return how many were done and who refused."""
        each, answer = n_each(op), 0
        for done, first in enumerate(elements):
            if op.kind == lib.FRAME_OP_MAP:
                self.leaf(first, first + each)
            for at in range(first, first + (1 if is_region(op) else each)):
                answer = self.one(op, at)
                if is_refused(answer):
                    return done, answer
        return len(elements), answer

    def range(self, op, first, n):
        before, each = self.flat.copy(), n_each(op)
        done = self.ledger.range(op, first, n)
        if op.kind == lib.FRAME_OP_MAP:
            self.leaf(first, first + n)
            middle = self.flat.copy()
            for at in range(first, first + n):
                self.one(op, at)
            n_done, answer = n, 0
            # leaves that were split around it are not counted
            assert done.n_changed == int((self.flat != middle).any(axis=1).sum())
        else:
            n_done, answer = self.expected(op, range(first, first + n, each))
            n_done *= each
        self.finish(done, before, n_done, answer, n == each, op.kind != lib.FRAME_OP_MAP)

    def array(self, op, elements):
        before = self.flat.copy()
        done = self.ledger.array(op, np.array(elements, np.uint64))
        n_done, answer = self.expected(op, list(elements))
        # what is changed and changed back counts twice
        is_one = len(elements) == 1
        self.finish(done, before, n_done, answer, is_one, is_one and op.kind != lib.FRAME_OP_MAP)

    def finish(self, done, before, n_done, answer, is_one, counted=True):
        n_changed = self.note(before)
        assert done.event == self.ledger.event
        assert done.n_done == n_done, (done, n_done)
        assert done.result == (answer if is_one or is_refused(answer) else 0)
        if counted:
            assert done.n_changed == n_changed, (done, n_changed)

    def compare(self):
        """Compare every frame, and what is counted of records."""
        snapshot = self.ledger.snapshot()
        records, ids = compare(snapshot, self.flat, self.since)
        counts = np.bincount(ids, minlength=len(records))
        live = records["n_pages"] != 2**64 - 1
        live[:2] = False
        assert (counts[live] == records["n_pages"][live]).all()
        assert counts[~live].sum() == 0
        return snapshot, records, ids


def compare(snapshot, flat, since):
    records = snapshot.records()
    ids = snapshot.ids(np.arange(len(flat), dtype=np.uint64))
    assert (records["word"][ids] == flat[:, 0]).all()
    assert (records["gfn"][ids] == flat[:, 1]).all()
    found = records["since"][ids]
    exact = found == since
    # where memory was short: this event or an earlier one
    assert (exact | ((found & BLURRED != 0) & (found & ~np.uint32(BLURRED) >= since))).all()
    return records, ids

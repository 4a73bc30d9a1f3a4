"""The views that no RMP has: the guest's page table and notes, the host's list, the content's key.

Who owns a page is in the vectors (`test_frame_vectors.py`); the oracle of page ownership knows
nothing of these views. Source of the keys: Genoa's memory controllers, `ghcbcore/frame_op.h`.
"""

import numpy as np
import pytest

from ghcbcore import errors, frame
from ghcbcore._cffi import lib
from ghcbcore.frame import Op

C, SNP, WRITE = lib.FRAME_ACCESS_C, lib.FRAME_ACCESS_SNP, lib.FRAME_ACCESS_WRITE
STORE = WRITE | lib.FRAME_ACCESS_STORE
GUESTS = Op(lib.FRAME_OP_RMPUPDATE, asid=5, value=lib.FRAME_NEW_ASSIGNED)
FROZEN = GUESTS._replace(value=lib.FRAME_NEW_ASSIGNED | lib.FRAME_NEW_IMMUTABLE)
FIRMWARE = FROZEN._replace(asid=0)
VALID = Op(lib.FRAME_OP_PVALIDATE, asid=5, value=1)


def after(*ops, n=1, at=0):
    """Return the frames of a region after operations on one of them, none of which is refused."""
    frames = np.zeros((n, 2), np.uint64)
    for op in ops:
        answer = frame.result(frame.apply(op, frames, at))
        assert answer.code == 0 and answer.kind == lib.FRAME_RESULT_CODE, op
    return frames


def bits(frames, shift, width, at=0):
    return int(frames[at, 0]) >> shift & ((1 << width) - 1)


def key(frames):
    return bits(frames, lib.FRAME_KEY_SHIFT, lib.FRAME_KEY_WIDTH)


@pytest.mark.parametrize(
    ("ops", "expected"),
    [
        ([], lib.GHCB_KEY_SLOT_NONE),
        ([Op(lib.FRAME_OP_CONTENT, value=77)], 77),
        ([Op(lib.FRAME_OP_HOST_ACCESS, value=STORE | C)], lib.GHCB_KEY_SLOT_SME),
        ([Op(lib.FRAME_OP_DMA, value=STORE | C)], lib.GHCB_KEY_SLOT_SME),
        ([Op(lib.FRAME_OP_GUEST_ACCESS, asid=9, value=STORE | C)], 9),  # SEV without SNP
        ([GUESTS, VALID, Op(lib.FRAME_OP_GUEST_ACCESS, asid=5, value=STORE | C | SNP)], 5),
        ([GUESTS, VALID, Op(lib.FRAME_OP_GUEST_ACCESS, asid=5, value=WRITE | C | SNP)], 0),
        ([FROZEN, Op(lib.FRAME_OP_LAUNCH_UPDATE, asid=5)], 5),
        ([FROZEN, Op(lib.FRAME_OP_SWAP_IN, asid=5)], 5),
        ([FROZEN, Op(lib.FRAME_OP_SWAP_OUT, asid=5)], 0),
        ([FIRMWARE, Op(lib.FRAME_OP_SWAP_IN, asid=5, value=lib.FRAME_SWAP_METADATA)], 0),
        ([GUESTS, VALID], 0),
    ],
)
def test_content_has_the_key_of_who_wrote_it(ops, expected):
    assert key(after(*ops)) == expected


@pytest.mark.parametrize("value", [STORE, lib.FRAME_ACCESS_STORE, 0])
def test_content_is_plain_after_a_plain_store_and_stays_without_one(value):
    frames = after(Op(lib.FRAME_OP_CONTENT, value=5), Op(lib.FRAME_OP_HOST_ACCESS, value=value))
    assert key(frames) == (0 if value == STORE else 5)


def test_a_store_that_is_refused_leaves_the_content():
    frames = after(GUESTS, VALID, Op(lib.FRAME_OP_CONTENT, value=5))
    for op in (
        Op(lib.FRAME_OP_HOST_ACCESS, value=STORE),
        Op(lib.FRAME_OP_DMA, value=STORE),
        Op(lib.FRAME_OP_GUEST_ACCESS, asid=6, value=STORE | C | SNP),
        Op(lib.FRAME_OP_GUEST_ACCESS, asid=5, gfn=1, value=STORE | C | SNP),
    ):
        assert frame.apply(op, frames, 0) >> lib.FRAME_RESULT_CODE_SHIFT
        assert key(frames) == 5


def test_a_moved_page_has_the_key_of_its_guest():
    frames = after(FROZEN)
    found, source, destination = frame.move(
        Op(lib.FRAME_OP_CONTENT, asid=5), tuple(frames[0]), tuple(frames[0]), 0
    )
    assert found == 0
    assert destination[0] >> lib.FRAME_KEY_SHIFT & 0x3FF == 5
    assert source[0] >> lib.FRAME_KEY_SHIFT & 0x3FF == 0


@pytest.mark.parametrize("value", [lib.FRAME_UNMAPPED, lib.FRAME_SHARED, lib.FRAME_PRIVATE])
@pytest.mark.parametrize("size", [0, 1, 2])
def test_a_mapping_keeps_its_kind_and_the_size_of_its_leaf(value, size):
    frames = after(Op(lib.FRAME_OP_MAP, size=size, value=value))
    assert bits(frames, lib.FRAME_MAPPING_SHIFT, 2) == value
    assert bits(frames, lib.FRAME_LEAF_SHIFT, 2) == (size if value != lib.FRAME_UNMAPPED else 0)


@pytest.mark.parametrize(("leaf", "size", "expected"), [(2, 1, 1), (2, 0, 0), (1, 1, 1), (0, 1, 0)])
def test_a_split_makes_leaves_smaller_and_never_larger(leaf, size, expected):
    frames = after(
        Op(lib.FRAME_OP_MAP, size=leaf, value=lib.FRAME_PRIVATE), Op(lib.FRAME_OP_LEAF, size=size)
    )
    assert bits(frames, lib.FRAME_LEAF_SHIFT, 2) == expected
    assert bits(frames, lib.FRAME_MAPPING_SHIFT, 2) == lib.FRAME_PRIVATE


def test_software_notes_what_it_likes_of_any_page():
    for op, shift in (
        (Op(lib.FRAME_OP_BELIEVE, value=1), lib.FRAME_BELIEVED),
        (Op(lib.FRAME_OP_LIST, value=1), lib.FRAME_LISTED_SHIFT),
    ):
        frames = after(FIRMWARE, op)
        assert int(frames[0, 0]) ^ int(after(FIRMWARE)[0, 0]) == 1 << shift
        assert (after(FIRMWARE, op, op._replace(value=0)) == after(FIRMWARE)).all()


def test_the_guest_believes_what_pvalidate_did():
    frames = after(GUESTS, VALID)
    assert bits(frames, lib.FRAME_BELIEVED, 1) == 1
    # the host takes the page: the guest does not see it
    frames = after(GUESTS, VALID, Op(lib.FRAME_OP_RMPUPDATE), GUESTS)
    assert bits(frames, lib.FRAME_BELIEVED, 1) == 1
    assert bits(frames, lib.FRAME_VALIDATED, 1) == 0
    frames = after(GUESTS, VALID, VALID._replace(value=0))
    assert bits(frames, lib.FRAME_BELIEVED, 1) == 0


def test_who_has_no_asid_owns_nothing():
    frames = after(GUESTS._replace(asid=0))
    for kind in (lib.FRAME_OP_PVALIDATE, lib.FRAME_OP_RMPADJUST, lib.FRAME_OP_GUEST_ACCESS):
        value = C | SNP if kind == lib.FRAME_OP_GUEST_ACCESS else 1
        found = frame.result(frame.apply(Op(kind, target=1, value=value), frames, 0))
        assert found.kind == lib.FRAME_RESULT_NPF


def test_the_gpa_is_looked_at_where_the_frame_lies():
    top = 1 << 36
    for first_pfn, gfn, code in (
        (0, top - 1, lib.SEV_RMP_OK),
        (1, top - 1, lib.SEV_RMP_FAIL_INPUT),
        (8, lib.FRAME_GFN_MASK + 1 - 8, lib.SEV_RMP_OK),
        (7, lib.FRAME_GFN_MASK + 1 - 8, lib.SEV_RMP_FAIL_INPUT),
    ):
        frames = np.zeros((1, 2), np.uint64)
        found = frame.apply(GUESTS._replace(gfn=gfn), frames, 0, first_pfn=first_pfn)
        assert frame.result(found).code == code
    with pytest.raises(errors.OutOfRange, match="first_pfn"):
        frame.apply(GUESTS, np.zeros((1, 2), np.uint64), 0, first_pfn=1 << 39)


def test_operands_of_2_mib_begin_at_the_first_frame():
    frames = np.zeros((512, 2), np.uint64)
    for op, code in (
        (GUESTS._replace(size=1), lib.SEV_RMP_FAIL_INPUT),
        (Op(lib.FRAME_OP_PSMASH), lib.SEV_RMP_FAIL_INPUT),
        (Op(lib.FRAME_OP_UNSMASH), lib.SNP_FW_PARAM),
        (Op(lib.FRAME_OP_INIT, size=1, value=lib.RMP_STATE_HYPERVISOR), lib.SNP_FW_ADDRESS),
        (Op(lib.FRAME_OP_RECLAIM, size=1), lib.SNP_FW_PAGE_SIZE),
    ):
        assert frame.result(frame.apply(op, frames, 3)).code == code
        assert not frames.any()


def test_a_new_table_is_written_over_whole_2_mib_entries_only():
    frames = after(GUESTS._replace(size=1), n=512)
    init = Op(lib.FRAME_OP_INIT, value=lib.RMP_STATE_HYPERVISOR)
    for at in (0, 3):
        found = frame.result(frame.apply(init, frames, at))
        assert (found.kind, found.code) == (lib.FRAME_RESULT_STATUS, lib.SNP_FW_PAGE_SIZE)
    assert frame.apply(init._replace(size=1), frames, 0) == 0
    assert not frames.any()

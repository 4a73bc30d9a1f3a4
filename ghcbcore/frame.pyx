"""One frame of system memory: its two words, and what an operation makes of them.

The rules themselves, on frames that the caller holds. ``ghcbcore.ledger`` has the same rules for whole
guests; a machine's record has frames as words. A result is one word, taken apart by ``result``.

Source: ``ghcbcore/frame.h``, ``frame_op.h``, ``frame_rule.h``, ``frame_access.h``.
"""

from collections import namedtuple as _namedtuple

import numpy as np

from libc.stdint cimport uint64_t

from ghcbcore cimport clib

from ghcbcore import errors as _errors

__all__ = ["Op", "Result", "apply", "entry", "move", "n_frames", "result"]

Op = _namedtuple(
    "Op",
    ("kind", "size", "backing", "asid", "vmpl", "target", "gfn", "value"),
    defaults=(0, 0, 0, 0, 0, 0, 0),
)
Op.__doc__ = """One operation: ``kind`` is one of ``FRAME_OP_*``; what the other operands mean for it stands there.

``size`` and ``backing``: 0 for 4 KiB, 1 for 2 MiB, 2 for 1 GiB. ``gfn``: with an ASID the distance from the
frame's number to the guest's (0 if they are the same), modulo 2**39.
"""

cdef dict _LARGEST = {
    "kind": clib.FRAME_OP_END - 1,
    "size": clib.FRAME_LEAF_1G,
    "backing": clib.FRAME_LEAF_1G,
    "asid": (1 << clib.FRAME_ASID_WIDTH) - 1,
    "vmpl": 3,
    "gfn": clib.FRAME_GFN_MASK,
}

cdef dict _LARGEST_VALUE = {
    clib.FRAME_OP_MAP: clib.FRAME_PRIVATE,
    clib.FRAME_OP_BELIEVE: 1,
    clib.FRAME_OP_LIST: clib.FRAME_LISTED_PRIVATE,
    clib.FRAME_OP_CONTENT: (1 << clib.FRAME_KEY_WIDTH) - 1,
    clib.FRAME_OP_INIT: clib.RMP_STATE_FIRMWARE,
}


cdef int op_from(object given, clib.ghcb_frame_op_t *out) except -1:
    """Check an ``Op`` and take it apart."""
    numbers = {}
    for name, value in zip(Op._fields, given, strict=True):
        if not isinstance(value, (int, np.integer)):
            raise TypeError(f"op.{name} is {type(value).__name__}, not an integer")
        number = int(value)
        largest = _LARGEST.get(name, (1 << 64) - 1)
        if number < 0 or number > largest:
            raise _errors.OutOfRange(f"op.{name} = {number:#x}: must be 0 to {largest:#x}")
        numbers[name] = number
    kind = numbers["kind"]
    if not kind:
        raise _errors.OutOfRange("op.kind = 0x0: no operation has this number")
    if numbers["value"] > _LARGEST_VALUE.get(kind, (1 << 64) - 1):
        raise _errors.OutOfRange(
            f"op.value = {numbers['value']:#x}: must be 0 to {_LARGEST_VALUE[kind]:#x}"
        )
    if numbers["size"] > clib.FRAME_LEAF_2M and kind != clib.FRAME_OP_MAP:
        raise _errors.OutOfRange("op.size = 0x2: only a guest's page table has leaves of 1 GiB")
    if kind == clib.FRAME_OP_MOVE:
        raise _errors.OutOfRange("op.kind is FRAME_OP_MOVE: see Ledger.move")
    out.kind = kind
    out.size = numbers["size"]
    out.backing = numbers["backing"]
    out.asid = numbers["asid"]
    out.vmpl = numbers["vmpl"]
    out.target = numbers["target"]
    out.gfn = numbers["gfn"]
    out.value = numbers["value"]
    return 0


cdef uint64_t pages_each(const clib.ghcb_frame_op_t *op) noexcept nogil:
    """Frames of the operand: what first frames and lengths must be multiples of."""
    if op.kind == clib.FRAME_OP_MAP and op.size == clib.FRAME_LEAF_1G:
        return <uint64_t>1 << clib.GHCB_TREE_NODE_SHIFT
    if (op.kind == clib.FRAME_OP_MAP and op.size) or clib.ghcb_frame_is_region_op(op):
        return clib.FRAME_REGION
    return 1


cdef uint64_t as_number(object value, str name, uint64_t largest) except? 0:
    if not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is {type(value).__name__}, not an integer")
    number = int(value)
    if number < 0 or number > largest:
        raise _errors.OutOfRange(f"{name} = {number:#x}: must be 0 to {largest:#x}")
    return number


Result = _namedtuple("Result", ("kind", "code", "unchanged", "bits"))
Result.__doc__ = """A result taken apart: ``FRAME_RESULT_*``, the code or status, PVALIDATE's carry, the error bits.

Of RMPQUERY ``bits`` are the rights that were asked for.
"""


def result(value):
    """Take a result apart; return a ``Result``.

    Examples
    --------
    >>> result(0x0040000000000000)
    Result(kind=0, code=4, unchanged=False, bits=0)
    """
    cdef uint64_t one = as_number(value, "value", <uint64_t>-1)
    return Result(
        one >> clib.FRAME_RESULT_KIND_SHIFT,
        one >> clib.FRAME_RESULT_CODE_SHIFT & ((1 << clib.FRAME_RESULT_CODE_WIDTH) - 1),
        bool(one >> clib.FRAME_RESULT_UNCHANGED & 1),
        one & ((<uint64_t>1 << clib.FRAME_RESULT_UNCHANGED) - 1),
    )


def apply(op, uint64_t[:, ::1] frames not None, at, *, first_pfn=0, max_asid=1006, rules=0):
    """Let something happen to one frame of a region, or to all of it if the operand is 2 MiB.

    Parameters
    ----------
    op : Op
    frames : uint64 array, shape (n, 2), C-contiguous, writable
        The frames of one region, any number of them: word and GPA field of each.
    at : int
        Which of them. No operand of 2 MiB but the first is one: others are refused.
    first_pfn : int
        Number of the region's first frame: RMPUPDATE refuses a GPA that does not fit.
    max_asid, rules : int
        As of ``ghcbcore.ledger.Ledger``.

    Returns
    -------
    int
        0, or what refused; then no frame has changed. See ``result``.

    Raises
    ------
    OutOfRange
        An operand does not fit, or there is no frame ``at``. Nothing has changed.
    """
    cdef clib.ghcb_frame_op_t one
    cdef clib.ghcb_frame_rules_t held
    cdef uint64_t i, n = frames.shape[0]
    if frames.shape[1] != 2:
        raise ValueError(f"frames: shape ({frames.shape[0]}, {frames.shape[1]}); must be (n, 2)")
    if not n:
        raise _errors.OutOfRange("frames: a region has at least one frame")
    op_from(op, &one)
    i = as_number(at, "at", n - 1)
    held.max_asid = as_number(max_asid, "max_asid", (1 << clib.FRAME_ASID_WIDTH) - 1)
    held.flags = as_number(rules, "rules", 3)
    return clib.ghcb_frame_apply(
        &one, &held, <clib.ghcb_frame_t *> &frames[0, 0], n, i,
        as_number(first_pfn, "first_pfn", clib.FRAME_GFN_MASK),
    )


def n_frames(op):
    """Return how many frames the operand of an operation is: 1, 512 or 512 * 512.

    Examples
    --------
    >>> from ghcbcore._cffi import lib
    >>> n_frames(Op(lib.FRAME_OP_RMPUPDATE, size=1)), n_frames(Op(lib.FRAME_OP_BELIEVE, size=1))
    (512, 1)
    """
    cdef clib.ghcb_frame_op_t one
    op_from(op, &one)
    return pages_each(&one)


def entry(word, gfn, pfn):
    """Return the RMP entry of a frame that counts, taken apart: an array of RMP_DTYPE, shape ()."""
    cdef clib.ghcb_frame_t frame
    cdef clib.ghcb_rmp_t[::1] into
    from ghcbcore.rmp import RMP_DTYPE

    frame.word = as_number(word, "word", <uint64_t>-1)
    frame.gfn = as_number(gfn, "gfn", clib.FRAME_GFN_MASK)
    found = np.zeros(1, RMP_DTYPE)
    into = found
    clib.ghcb_frame_entry(&frame, as_number(pfn, "pfn", clib.FRAME_GFN_MASK), &into[0])
    return found[0]


def move(op, source, destination, distance, *, source_is_first=True, destination_is_first=True):
    """Firmware's PAGE_MOVE; return ``(result, source, destination)``, frames as pairs of words.

    ``op`` brings ``size`` and ``asid``; ``distance`` is the source's number less the destination's. Whether
    a frame is the first of its region matters for a 4 KiB move inside a 2 MiB entry, which is refused.
    Each is what it becomes: who moves a page onto itself writes the source first.
    """
    cdef clib.ghcb_frame_op_t one
    cdef clib.ghcb_frame_t a, b
    cdef uint64_t answer
    op_from(op, &one)
    one.kind = clib.FRAME_OP_MOVE
    a.word, a.gfn = as_number(source[0], "source", <uint64_t>-1), as_number(source[1], "source", clib.FRAME_GFN_MASK)
    b.word = as_number(destination[0], "destination", <uint64_t>-1)
    b.gfn = as_number(destination[1], "destination", clib.FRAME_GFN_MASK)
    answer = move_pages(&one, &a, &b, int(distance) & clib.FRAME_GFN_MASK, source_is_first, destination_is_first)
    return answer, (a.word, a.gfn), (b.word, b.gfn)


cdef uint64_t move_pages(
    const clib.ghcb_frame_op_t *op, clib.ghcb_frame_t *source, clib.ghcb_frame_t *destination,
    uint64_t distance, bint source_is_first, bint destination_is_first
) noexcept nogil:
    """PAGE_MOVE of frames at these places of their regions; what is refused changes neither."""
    cdef clib.ghcb_frame_t a = source[0], b = destination[0]
    cdef uint64_t answer
    if not op.size:
        a = clib.ghcb_frame_own(source, source_is_first)
        b = clib.ghcb_frame_own(destination, destination_is_first)
    answer = clib.ghcb_frame_move(op, &a, &b, distance)
    if not clib.ghcb_frame_refused(answer):
        source[0] = a
        destination[0] = b
    return answer

"""Frames taken apart, one record a frame or a kind of frame, and which of their views disagree.

Source: ``ghcbcore/frame_view.h``. Words for people: ``pysev.tables.frames``.
"""

import numpy as np

from libc.stdint cimport uint64_t

from ghcbcore cimport clib
from ghcbcore.frame cimport as_number

__all__ = ["VIEW_DTYPE", "decode"]


cdef _dtype_of_struct():
    cdef clib.ghcb_frame_view_t one
    return np.asarray(<clib.ghcb_frame_view_t[:1]>&one).dtype


VIEW_DTYPE = _dtype_of_struct()


def decode(const uint64_t[::1] words not None, const uint64_t[::1] gfns not None, asid, frames=None):
    """Take frames apart.

    Parameters
    ----------
    words, gfns : uint64 arrays, shape (n,), C-contiguous
        As ``ghcbcore.ledger.Snapshot.records`` has them.
    asid : int
        The guest's, for whom views agree or not.
    frames : uint64 array, shape (n,), C-contiguous, optional
        Numbers of the frames. Without them ``gfn`` of a frame with an ASID is the distance.

    Returns
    -------
    array of VIEW_DTYPE, shape (n,)
        Every word decodes. ``differ`` is a set of ``1 << FRAME_DIFFER_*``.

    Raises
    ------
    OutOfRange
        ``asid`` has more than 10 bits.
    ValueError
        Arrays of different length.
    """
    cdef Py_ssize_t i, n = words.shape[0]
    cdef uint64_t whose = as_number(asid, "asid", (1 << clib.FRAME_ASID_WIDTH) - 1)
    cdef const uint64_t[::1] numbers
    cdef clib.ghcb_frame_t frame
    cdef bint numbered = frames is not None
    if numbered:
        numbers = frames
    if gfns.shape[0] != n or (numbered and numbers.shape[0] != n):
        raise ValueError("words, gfns and frames must have the same length")
    result = np.empty(n, VIEW_DTYPE)
    cdef clib.ghcb_frame_view_t[::1] into = result
    with nogil:
        for i in range(n):
            frame.word = words[i]
            frame.gfn = gfns[i]
            clib.ghcb_frame_view(&frame, numbers[i] if numbered else 0, whose, &into[i])
    return result

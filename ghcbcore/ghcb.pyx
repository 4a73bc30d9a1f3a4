"""GHCB pages, one or many: take apart, judge, put together.

A page holds a save area of which a bitmap says which fields count, a shared buffer, a protocol
version and a usage. Every function here is a loop over a function of ``ghcbcore/ghcb.h`` and
``ghcbcore/event.h``, where offsets, events and rules are; words for them are in
``pysev.decode.ghcb``. What the shared buffer holds depends on the event: ``ghcbcore.psc`` for
page-state changes.

A page does not say who wrote it: ``side`` is ``"request"`` (the guest, before VMGEXIT) or
``"answer"`` (the hypervisor, after it).

Source: GHCB page layout and NAE events; what is required as KVM requires it.
"""

from collections import namedtuple as _namedtuple

import numpy as np

from libc.stdint cimport uint8_t, uint64_t

from ghcbcore cimport clib

from ghcbcore import errors as _errors
from ghcbcore._cffi import lib as _lib

__all__ = [
    "FIELDS",
    "GHCB_DTYPE",
    "NO_ROW",
    "EventRow",
    "decode",
    "encode",
    "event_rows",
    "field_names",
    "missing",
]

NO_ROW = clib.GHCB_NAE_NO_ROW

EventRow = _namedtuple(
    "EventRow",
    (
        "code",
        "required",
        "info1_mask",
        "info2_mask",
        "returned",
        "returned_always",
        "since",
        "snp_only",
        "in_kvm",
    ),
)
EventRow.__doc__ = """What one event uses; sets of fields are masks of ``FIELDS``.

``required`` are the inputs that every request needs beside the three exit fields (others depend on
its values: ``missing``); ``info1_mask`` and ``info2_mask`` have the bits that a request may set;
``returned`` may come back without an error, ``returned_always`` does so whatever the request was;
``since`` is a protocol version; ``in_kvm``: upstream KVM answers it.
"""


cdef _dtype_of_struct():
    cdef clib.ghcb_decoded_t one
    return np.asarray(<clib.ghcb_decoded_t[:1]>&one).dtype


GHCB_DTYPE = _dtype_of_struct()

FIELDS = tuple([
    name.removeprefix("GHCB_FIELD_").lower()
    for name in sorted(
        (name for name in dir(_lib) if name.startswith("GHCB_FIELD_")),
        key=lambda name: getattr(_lib, name),
    )
])

cdef tuple _SIDES = ("request", "answer")


cdef _event_row(Py_ssize_t i):
    cdef const clib.ghcb_nae_row_t *row = &clib.ghcb_nae_rows[i]
    cdef const clib.ghcb_event_use_t *use = &clib.ghcb_event_uses[i]
    return EventRow(
        row.code,
        clib.ghcb_fields_of_inputs(row.inputs),
        use.info1_mask,
        use.info2_mask,
        use.returned,
        use.returned_always,
        use.since,
        row.snp_only != 0,
        row.in_kvm != 0,
    )


cdef tuple _ROWS = tuple([_event_row(i) for i in range(clib.GHCB_NAE_N_ROWS)])


def event_rows():
    """Return what every event needs, a tuple of ``EventRow`` in the order of their codes.

    ``decode(...)["event"]`` indexes it, except where it is ``NO_ROW``.

    Examples
    --------
    >>> row = next(row for row in event_rows() if row.code == 0x72)
    >>> field_names(row.required), field_names(row.returned)
    (('rax', 'rcx'), ('rax', 'rcx', 'rdx', 'rbx'))
    """
    return _ROWS


def field_names(mask):
    """Return the names of the fields in a mask, in the order of the page; other bits are ignored.

    Examples
    --------
    >>> field_names(1 << 5 | 1 << 31)
    ('rax',)
    """
    return tuple([name for i, name in enumerate(FIELDS) if mask >> i & 1])


cdef int _side(side) except -1:
    if side not in _SIDES:
        raise ValueError(f"side is {side!r}, must be 'request' or 'answer'")
    return clib.GHCB_SIDE_REQUEST if side == "request" else clib.GHCB_SIDE_ANSWER


cdef int _snp(snp) except -1:
    if snp is None:
        return clib.GHCB_SNP_NOT_SAID
    return clib.GHCB_SNP_YES if snp else clib.GHCB_SNP_NO


cdef int _rows_of_bytes(const uint8_t[:, :] pages, Py_ssize_t size, str name) except -1:
    if pages.shape[1] != size:
        raise ValueError(f"{name} has rows of {pages.shape[1]} bytes, must have {size}")
    if pages.shape[0] and pages.strides[1] != 1:
        raise ValueError(f"{name}: the bytes of a row must lie next to each other")
    return 0


cdef void decode_into(
    const uint8_t *pages, Py_ssize_t step, int side, int snp, clib.ghcb_decoded_t *out, Py_ssize_t n
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        clib.ghcb_page_decode(pages + i * step, side, snp, &out[i])


def decode(const uint8_t[:, :] pages not None, *, side="request", snp=None, out=None):
    """Take pages apart and judge them. Any bytes decode; what is wrong is in ``flags``.

    Parameters
    ----------
    pages : uint8 array, shape (n, 4096)
        Pages at any address and any distance from each other, the bytes of one next to each
        other; read-only arrays are welcome. Nothing is copied.
    side : "request" or "answer"
        Who wrote the pages last.
    snp : bool, optional
        Whether the guest is an SNP guest; None if that is not known, and then nothing is said
        about it.
    out : array of GHCB_DTYPE, shape (n,), C-contiguous, optional
        Receives the result. Must not overlap ``pages``.

    Returns
    -------
    array of GHCB_DTYPE, shape (n,)
        ``out`` if it was given. Every field of the page as it stands there, valid or not, and

        - ``valid``: mask of ``FIELDS`` that the bitmap marks; ``valid_lo``, ``valid_hi`` are the
          bitmap itself.
        - ``event``: index into ``event_rows()``, or ``NO_ROW``.
        - ``missing``: mask of ``FIELDS``; request: what ``missing()`` says; answer: fields that an
          answer without error brings back and that are not marked.
        - ``flags``: ``GHCB_FLAG_*`` of ``ghcbcore/ghcb.h``. A usage that is not the standard one
          is ``GHCB_FLAG_USAGE`` alone, because then the bytes mean something else.
        - ``first_reserved``: offset of the first byte of a gap that is not zero, or 0xffff.
        - ``status``: 0 or the ``GHCB_MALFORMED_*`` that a host after KVM would answer first.

    Raises
    ------
    ValueError
        A shape, dtype or layout is wrong, or ``side`` is unknown. Nothing is written.

    Notes
    -----
    Releases the GIL.

    Examples
    --------
    >>> import numpy as np
    >>> page = np.zeros((1, 4096), dtype=np.uint8)
    >>> page[0, 0x390] = 0x72  # CPUID, and nothing is marked valid
    >>> one = decode(page)[0]
    >>> field_names(one["missing"])
    ('rax', 'rcx', 'sw_exit_code', 'sw_exit_info_1', 'sw_exit_info_2')
    """
    cdef int side_ = _side(side)
    cdef int snp_ = _snp(snp)
    cdef Py_ssize_t n = pages.shape[0]
    _rows_of_bytes(pages, clib.GHCB_PAGE_SIZE, "pages")
    if out is None:
        out = np.empty(n, GHCB_DTYPE)
    cdef clib.ghcb_decoded_t[::1] into = out
    if into.shape[0] != n:
        raise ValueError(f"out has {into.shape[0]} elements, pages has {n}")
    if n:
        with nogil:
            decode_into(&pages[0, 0], pages.strides[0], side_, snp_, &into[0], n)
    return out


def encode(const clib.ghcb_decoded_t[::1] records not None, out=None):
    """Put pages together: the inverse of ``decode``.

    Parameters
    ----------
    records : array of GHCB_DTYPE, shape (n,), C-contiguous
        Fields, bitmap (``valid_lo``, ``valid_hi``), version and usage. What ``decode`` derives
        (``valid``, ``missing``, ``flags`` and so on) is not looked at.
    out : uint8 array, shape (n, 4096), C-contiguous, optional
        Receives the pages. Their shared buffers stay as they are; every other byte is written.

    Returns
    -------
    uint8 array, shape (n, 4096)
        ``out`` if it was given; else the shared buffers are zero.

    Raises
    ------
    ValueError
        A shape, dtype or layout is wrong. Nothing is written.

    Notes
    -----
    Releases the GIL.

    Examples
    --------
    >>> import numpy as np
    >>> record = np.zeros(1, dtype=GHCB_DTYPE)
    >>> record["sw_exit_code"] = 0x8000FFFD
    >>> int(encode(record)[0, 0x391])
    255
    """
    cdef Py_ssize_t i, n = records.shape[0]
    if out is None:
        out = np.zeros((n, clib.GHCB_PAGE_SIZE), np.uint8)
    cdef uint8_t[:, ::1] into = out
    if into.shape[0] != n:
        raise ValueError(f"out has {into.shape[0]} rows, records has {n}")
    _rows_of_bytes(into, clib.GHCB_PAGE_SIZE, "out")
    if n:
        with nogil:
            for i in range(n):
                clib.ghcb_page_encode(&records[i], &into[0, 0] + i * clib.GHCB_PAGE_SIZE)
    return out


cdef uint64_t _u64(object value, str name) except? 0:
    if not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is {type(value).__name__}, not an integer")
    number = int(value)
    if number < 0 or number >> 64:
        raise _errors.OutOfRange(f"{name} = {number:#x} does not fit 64 bits")
    return number


def missing(code, info1=0, rax=0, valid=0):
    """Return the fields that a request must mark valid and does not: ``ghcb_nae_missing``.

    Parameters
    ----------
    code, info1, rax : int
        sw_exit_code, sw_exit_info_1 and rax as they stand in the page, 64 bits.
    valid : int
        The valid bitmap, 128 bits.

    Returns
    -------
    int
        Mask of ``FIELDS``, 0 if there is nothing to say. An event without a row needs the three
        exit fields alone.

    Raises
    ------
    OutOfRange
        An argument does not fit.
    TypeError
        An argument is not an integer.

    Examples
    --------
    >>> field_names(missing(0x72, valid=7 << 114 | 1 << 63))
    ('rcx',)
    """
    cdef uint64_t code_ = _u64(code, "code")
    cdef uint64_t info1_ = _u64(info1, "info1")
    cdef uint64_t rax_ = _u64(rax, "rax")
    if not isinstance(valid, (int, np.integer)):
        raise TypeError(f"valid is {type(valid).__name__}, not an integer")
    if int(valid) < 0 or int(valid) >> 128:
        raise _errors.OutOfRange(f"valid = {int(valid):#x} does not fit 128 bits")
    cdef uint64_t lo = int(valid) & 0xFFFFFFFFFFFFFFFF
    cdef uint64_t hi = int(valid) >> 64
    if not lo >> (clib.GHCB_VALID_RAX % 64) & 1:
        rax_ = 0
    return clib.ghcb_fields_of_inputs(clib.ghcb_nae_missing(code_, info1_, rax_, lo, hi))

"""Page-state change buffers and entries, one or many: take apart, put together.

A buffer is a header (cur_entry, end_entry, both counted from 0, end_entry included) and up to 253
entries, each one page of 4 KiB or 2 MiB. Every function here is a loop over a function of
``ghcbcore/psc.h``, where the bits and the rules are; words are in ``pysev.decode.psc``. The
request by MSR for one page is in ``ghcbcore.msr``.

Units: ``gfn`` counts 4 KiB pages; ``cur_page`` counts those of its entry that are done.

Source: GHCB NAE 0x80000010.
"""

from operator import index as _index

import numpy as np

from libc.stdint cimport uint8_t, uint64_t

from ghcbcore cimport clib

from ghcbcore import errors as _errors

__all__ = [
    "ENTRY_DTYPE",
    "HEADER_DTYPE",
    "MAX_ENTRIES",
    "decode",
    "decode_entries",
    "encode",
    "encode_entries",
]

MAX_ENTRIES = clib.GHCB_PSC_MAX_ENTRIES

cdef _dtype_of_entry():
    cdef clib.ghcb_psc_entry_t one
    return np.asarray(<clib.ghcb_psc_entry_t[:1]>&one).dtype


cdef _dtype_of_header():
    cdef clib.ghcb_psc_header_t one
    return np.asarray(<clib.ghcb_psc_header_t[:1]>&one).dtype


ENTRY_DTYPE = _dtype_of_entry()
HEADER_DTYPE = _dtype_of_header()


cdef void decode_into(
    const uint8_t *buffers,
    Py_ssize_t step,
    uint64_t n_bytes,
    clib.ghcb_psc_header_t *headers,
    clib.ghcb_psc_entry_t *entries,
    Py_ssize_t n,
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        clib.ghcb_psc_decode(
            buffers + i * step, n_bytes, &headers[i], &entries[i * clib.GHCB_PSC_MAX_ENTRIES]
        )


cdef void entries_into(const uint64_t *raw, clib.ghcb_psc_entry_t *out, Py_ssize_t n) noexcept nogil:
    clib.ghcb_psc_entries_decode(<const uint8_t *>raw, out, n)


def decode(const uint8_t[:, :] buffers not None, headers=None, entries=None):
    """Take buffers apart. Any bytes decode; what is wrong is in ``flags``.

    Parameters
    ----------
    buffers : uint8 array, shape (n, m), m at least 8
        Buffers at any address and any distance, the bytes of one next to each other; read-only
        arrays are welcome. A whole shared buffer has 2032 bytes; one that ends before its
        entries do is decoded as far as it goes.
    headers : array of HEADER_DTYPE, shape (n,), C-contiguous, optional
    entries : array of ENTRY_DTYPE, shape (n, 253), C-contiguous, optional
        Receive the result.

    Returns
    -------
    headers : array of HEADER_DTYPE, shape (n,)
        ``cur_entry``, ``end_entry``, ``reserved`` as they stand there; ``n_entries`` that the
        header names and a buffer can have; ``flags`` (``GHCB_PSC_FLAG_*``, those of the header and
        of all entries from cur_entry on); ``first_bad``, the first of these with a fault, or
        0xffff; ``status``, ``GHCB_OK`` or the ``GHCB_E_*`` of the first fault, header before
        entries; ``kvm_status``, the INFO2 that KVM answers before it changes a page (it does not
        look at operations and reserved bits).
    entries : array of ENTRY_DTYPE, shape (n, 253)
        All that the header names, done or not; the rest is zero and flagged
        ``GHCB_PSC_FLAG_UNUSED``, or ``GHCB_PSC_FLAG_CUT`` where the buffer is too short.

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
    >>> buffer = encode([0x40000, 0x7C01], [2, 1], [1, 0])
    >>> headers, entries = decode(buffer[np.newaxis])
    >>> int(headers["n_entries"][0]), [hex(gfn) for gfn in entries["gfn"][0, :2]]
    (2, ['0x40000', '0x7c01'])
    """
    cdef Py_ssize_t n = buffers.shape[0]
    if buffers.shape[1] < clib.GHCB_PSC_OFF_ENTRIES:
        raise ValueError(
            f"buffers has rows of {buffers.shape[1]} bytes, must have "
            f"{clib.GHCB_PSC_OFF_ENTRIES} or more"
        )
    if n and buffers.strides[1] != 1:
        raise ValueError("buffers: the bytes of a row must lie next to each other")
    if headers is None:
        headers = np.empty(n, HEADER_DTYPE)
    if entries is None:
        entries = np.empty((n, clib.GHCB_PSC_MAX_ENTRIES), ENTRY_DTYPE)
    cdef clib.ghcb_psc_header_t[::1] heads = headers
    cdef clib.ghcb_psc_entry_t[:, ::1] into = entries
    if heads.shape[0] != n:
        raise ValueError(f"headers has {heads.shape[0]} elements, buffers has {n}")
    if into.shape[0] != n or into.shape[1] != clib.GHCB_PSC_MAX_ENTRIES:
        raise ValueError(
            f"entries has shape ({into.shape[0]}, {into.shape[1]}), must have "
            f"({n}, {clib.GHCB_PSC_MAX_ENTRIES})"
        )
    if n:
        with nogil:
            decode_into(
                &buffers[0, 0], buffers.strides[0], buffers.shape[1], &heads[0], &into[0, 0], n
            )
    return headers, entries


def decode_entries(const uint64_t[::1] raw not None, out=None):
    """Take entries apart that stand for themselves, without a header.

    Parameters
    ----------
    raw : uint64 array, shape (n,), C-contiguous
    out : array of ENTRY_DTYPE, shape (n,), C-contiguous, optional

    Returns
    -------
    array of ENTRY_DTYPE, shape (n,)
        ``flags`` says what is wrong with each.

    Raises
    ------
    ValueError
        ``out`` has another length, or an array another dtype or layout. Nothing is written.

    Notes
    -----
    Releases the GIL.

    Examples
    --------
    >>> import numpy as np
    >>> one = decode_entries(np.array([0x0120000040000000], dtype=np.uint64))[0]
    >>> hex(one["gfn"]), int(one["op"]), int(one["n_pages"]), int(one["flags"])
    ('0x40000', 2, 512, 0)
    """
    cdef Py_ssize_t n = raw.shape[0]
    if out is None:
        out = np.empty(n, ENTRY_DTYPE)
    cdef clib.ghcb_psc_entry_t[::1] into = out
    if into.shape[0] != n:
        raise ValueError(f"out has {into.shape[0]} elements, raw has {n}")
    if n:
        with nogil:
            entries_into(&raw[0], &into[0], n)
    return out


cdef _operand(value, str name):
    """Return a contiguous uint64 array; what does not fit 64 bits is refused by name."""
    array = np.asarray(value)
    if array.dtype.kind == "f":  # of [1, 2**63] numpy makes floats
        array = np.asarray(value, dtype=object)
    if array.dtype.kind == "O" and array.size:
        for i, one in enumerate(array.flat):
            if not isinstance(one, (int, np.integer)) or isinstance(one, bool):
                raise TypeError(f"{name}[{i}] is {type(one).__name__}, not an integer")
            if one < 0 or int(one) >> 64:
                raise _errors.OutOfRange(f"{name}[{i}] = {one:#x} does not fit 64 bits")
        array = array.astype(np.uint64)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} has dtype {array.dtype}, not integers")
    if array.ndim > 1:
        raise ValueError(f"{name} has {array.ndim} dimensions, must have one or none")
    if array.dtype.kind == "i" and array.size and array.min() < 0:
        i = int(np.flatnonzero(array.ravel() < 0)[0])
        raise _errors.OutOfRange(f"{name}[{i}] = {int(array.flat[i]):#x} does not fit 64 bits")
    return np.ascontiguousarray(np.atleast_1d(array), dtype=np.uint64)


def encode_entries(gfn, op, size=0, cur_page=0):
    """Put entries together. Arrays and scalars may be mixed; a scalar is used for every entry.

    Parameters
    ----------
    gfn, op, size, cur_page : int, or array_like of int, shape (n,)
        Guest frame (40 bits), operation (``GHCB_PSC_OP_*``), size (``GHCB_PSC_SIZE_*``), pages
        that are done. Contiguous ``uint64`` arrays are used as they are, others copied.

    Returns
    -------
    uint64 array, shape (n,)

    Raises
    ------
    OutOfRange, Unaligned
        An entry cannot be: ``entry 2: gfn 0x..., op ..., size ..., cur_page ...``.
    ValueError
        Lengths differ.

    Notes
    -----
    Releases the GIL.

    Examples
    --------
    >>> [hex(raw) for raw in encode_entries([0x40000, 0x40200], 2, 1)]
    ['0x120000040000000', '0x120000040200000']
    """
    operands = [
        _operand(value, name)
        for value, name in ((gfn, "gfn"), (op, "op"), (size, "size"), (cur_page, "cur_page"))
    ]
    lengths = {len(one) for one in operands}
    cdef Py_ssize_t n = 0 if 0 in lengths else max(lengths)
    if lengths - {1, n}:
        raise ValueError(f"gfn, op, size, cur_page have lengths {[len(one) for one in operands]}")
    out = np.empty(n, np.uint64)
    cdef uint64_t[::1] into = out
    cdef const uint64_t[::1] g = operands[0], o = operands[1], s = operands[2], c = operands[3]
    cdef Py_ssize_t sg = g.shape[0] != 1, so = o.shape[0] != 1
    cdef Py_ssize_t ss = s.shape[0] != 1, sc = c.shape[0] != 1
    cdef Py_ssize_t i = 0
    cdef int status = clib.GHCB_OK
    with nogil:
        for i in range(n):
            status = clib.ghcb_psc_entry_encode(
                g[i * sg], o[i * so], s[i * ss], c[i * sc], &into[i]
            )
            if status != clib.GHCB_OK:
                break
    if status != clib.GHCB_OK:
        _errors.raise_status(
            status,
            f"entry {i}: gfn {g[i * sg]:#x}, op {o[i * so]}, size {s[i * ss]}, "
            f"cur_page {c[i * sc]}",
        )
    return out


def encode(gfn, op, size=0, cur_page=0, *, cur_entry=0):
    """Put one buffer together, header and entries.

    Parameters
    ----------
    gfn, op, size, cur_page
        As for ``encode_entries``; 1 to 253 entries.
    cur_entry : int
        Where the hypervisor begins, 0 to 65535.

    Returns
    -------
    uint8 array, shape (2032,)
        A whole shared buffer; what is not used is zero. end_entry is the last entry.

    Raises
    ------
    OutOfRange
        As ``encode_entries``; ``254 entries: a buffer holds 1 to 253``; ``cur_entry = ...``.
    Unaligned, ValueError
        As ``encode_entries``.

    Examples
    --------
    >>> bytes(encode(0x7C01, 1)[:16]).hex()
    '00000000000000000010c00700001000'
    """
    entries = encode_entries(gfn, op, size, cur_page)
    if not 1 <= len(entries) <= clib.GHCB_PSC_MAX_ENTRIES:
        raise _errors.OutOfRange(
            f"{len(entries)} entries: a buffer holds 1 to {clib.GHCB_PSC_MAX_ENTRIES}"
        )
    cur_entry = _index(cur_entry)
    if not 0 <= cur_entry <= 0xFFFF:
        raise _errors.OutOfRange(f"cur_entry = {cur_entry:#x} does not fit 16 bits")
    out = np.zeros(clib.GHCB_SHARED_BUFFER_SIZE, np.uint8)
    out[:clib.GHCB_PSC_OFF_RESERVED].view(np.uint16)[:] = (cur_entry, len(entries) - 1)
    end = clib.GHCB_PSC_OFF_ENTRIES + len(entries) * clib.GHCB_PSC_ENTRY_SIZE
    out[clib.GHCB_PSC_OFF_ENTRIES : end].view(np.uint64)[:] = entries
    return out

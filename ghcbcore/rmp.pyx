"""Entries of the reverse map table, one or many: take apart, put together, find their place.

An entry is 16 bytes. ``raw`` entries lie in memory, and Linux prints them as two words; ``arch``
entries are what RMPREAD returns and RMPUPDATE takes. See ``ghcbcore/rmp.h``, where fields and rules
are; every function here is a loop over a function of that header. Words for people:
``pysev.tables.rmp``.

Units: ``pfn`` counts 4 KiB pages of system memory; ``gpa`` and ``spa`` count bytes.

Source: Linux arch/x86/virt/svm/sev.c, asm/sev.h; AMD-ASPFW sev_rmp.h (Genoa).
"""

from collections import namedtuple as _namedtuple

import numpy as np

from libc.stdint cimport uint8_t, uint64_t

from ghcbcore cimport clib

from ghcbcore import errors as _errors

__all__ = [
    "RMP_DTYPE",
    "Entry",
    "Table",
    "bytes_for",
    "decode",
    "decode_one",
    "encode",
    "encode_one",
    "entry_addresses",
    "pages_of",
    "table",
]


cdef _dtype_of_struct():
    cdef clib.ghcb_rmp_t one
    return np.asarray(<clib.ghcb_rmp_t[:1]>&one).dtype


RMP_DTYPE = _dtype_of_struct()

cdef tuple _FIELDS = tuple([name for name in RMP_DTYPE.names if not name.startswith("reserved_")])

Entry = _namedtuple("Entry", _FIELDS, defaults=(0,) * len(_FIELDS))
Entry.__doc__ = "One entry taken apart: the fields of ``RMP_DTYPE`` as Python integers."

Table = _namedtuple(
    "Table", ("base", "end", "n_entries", "entries", "large_start", "large_end", "is_aligned")
)
Table.__doc__ = """Where a contiguous table lies and what it covers.

``base`` and ``end`` (its last byte) are those of the MSRs; ``n_entries`` pages from page 0 on have an
entry, the first of them at ``entries``. ``large_start`` and ``large_end`` are base and end + 1
rounded down to 2 MiB. ``is_aligned`` says whether both are multiples of 1 MiB.
"""


cdef void decode_into(
    const uint64_t *words, clib.ghcb_rmp_t *out, Py_ssize_t n, bint is_arch
) noexcept nogil:
    cdef Py_ssize_t i
    if is_arch:
        for i in range(n):
            clib.ghcb_rmp_decode_arch(words[2 * i], words[2 * i + 1], &out[i])
    else:
        for i in range(n):
            clib.ghcb_rmp_decode(words[2 * i], words[2 * i + 1], &out[i])


cdef bint _is_arch(object layout) except -1:
    if layout == "raw":
        return 0
    if layout == "arch":
        return 1
    raise ValueError(f"layout {layout!r}: must be 'raw' or 'arch'")


cdef uint64_t _u64(object value, str name) except? 0:
    """Return an integer that fits 64 bits, or raise with its name."""
    if not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is {type(value).__name__}, not an integer")
    number = int(value)
    if number < 0 or number >> 64:
        raise _errors.OutOfRange(f"{name} = {number:#x} does not fit 64 bits")
    return number


def _words(entries):
    """Return entries as uint64, shape (n, 2), C-contiguous; copy only what is not so already."""
    array = np.asarray(entries)
    if array.ndim == 2 and array.dtype == np.uint8 and array.shape[1] == clib.RMP_ENTRY_BYTES:
        array = np.require(array, requirements="C").view("<u8").reshape(-1, 2)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype != np.uint64:
        raise ValueError(
            f"entries: {array.dtype}, shape {array.shape}; must be uint64 (n, 2) or uint8 (n, 16)"
        )
    return np.require(array, np.uint64, ("C", "A"))


def decode(entries, layout="raw", out=None):
    """Take entries apart. Any 16 bytes decode; what is wrong with them is their ``status``.

    Parameters
    ----------
    entries : uint64 array, shape (n, 2), or uint8 array, shape (n, 16)
        Low and high word, or the bytes in the order of memory. Read-only arrays are welcome; what is
        C-contiguous and aligned is not copied.
    layout : "raw" or "arch"
        ``"raw"`` as the table holds them (Zen 3, Zen 4), ``"arch"`` as RMPREAD returns them.
    out : array of RMP_DTYPE, shape (n,), C-contiguous, optional
        Receives the result. Must not overlap ``entries``.

    Returns
    -------
    array of RMP_DTYPE, shape (n,)
        ``out`` if it was given. ``gpa`` is the address of the page, ``page_size`` 0 for 4 KiB and 1
        for 2 MiB, ``vmpl0`` to ``vmpl3`` masks of rights, ``state`` one of ``RMP_STATE_*`` (of a raw
        entry only). ``status`` is the first that applies of

        - ``GHCB_E_RESERVED_BITS``: a bit is set that no field claims;
        - ``GHCB_E_STATE_CONFLICT``: no page state has such an entry (raw only);
        - ``GHCB_E_UNALIGNED``: a guest's 2 MiB page with a GPA that is no multiple of it; an
          architectural entry whose GPA is no multiple of 4 KiB;
        - ``GHCB_OK``.

    Raises
    ------
    ValueError
        Another dtype, shape or layout. Nothing is written.

    Notes
    -----
    Releases the GIL.

    Examples
    --------
    >>> import numpy as np
    >>> one = decode(np.array([[0x6010FFFFFFFFF001, 0x1F]], dtype=np.uint64))[0]
    >>> hex(one["gpa"]), int(one["asid"]), int(one["vmsa"]), int(one["validated"])
    ('0xfffffffff000', 2, 1, 1)
    """
    cdef bint is_arch = _is_arch(layout)
    cdef const uint64_t[:, ::1] words = _words(entries)
    cdef Py_ssize_t n = words.shape[0]
    if out is None:
        out = np.empty(n, RMP_DTYPE)
    cdef clib.ghcb_rmp_t[::1] into = out
    if into.shape[0] != n:
        raise ValueError(f"out has {into.shape[0]} elements, entries has {n}")
    if n:
        with nogil:
            decode_into(&words[0, 0], &into[0], n, is_arch)
    return out


def decode_one(low, high, layout="raw"):
    """Take one entry apart; return an ``Entry``. See ``decode``.

    Raises
    ------
    OutOfRange
        A word is negative or has more than 64 bits.

    Examples
    --------
    >>> entry = decode_one(0x4318000040000003, 0)
    >>> hex(entry.gpa), entry.asid, entry.page_size, entry.validated
    ('0x40000000', 99, 1, 1)
    """
    cdef clib.ghcb_rmp_t one
    if _is_arch(layout):
        clib.ghcb_rmp_decode_arch(_u64(low, "low"), _u64(high, "high"), &one)
    else:
        clib.ghcb_rmp_decode(_u64(low, "low"), _u64(high, "high"), &one)
    return Entry(
        one.gpa,
        one.asid,
        one.subpages,
        one.assigned,
        one.page_size,
        one.immutable,
        one.vmsa,
        one.validated,
        one.lock,
        one.vmpl0,
        one.vmpl1,
        one.vmpl2,
        one.vmpl3,
        one.implicit_key,
        one.root_port,
        one.ide_stream,
        one.migration,
        one.region,
        one.state,
        one.status,
    )


cdef _refuse(int status, str where):
    text = {
        clib.GHCB_E_UNALIGNED: "gpa is no multiple of 4 KiB",
        clib.GHCB_E_OUT_OF_RANGE: "a field does not fit, or the layout does not have it",
    }[status]
    _errors.raise_status(status, f"{where}: {text}")


def encode(const clib.ghcb_rmp_t[::1] records not None, layout="raw"):
    """Put entries together: the inverse of ``decode``.

    Parameters
    ----------
    records : array of RMP_DTYPE, shape (n,), C-contiguous
        ``state`` and ``status`` are not looked at, nor is ``region`` if ``layout`` is ``"raw"``. An
        ``"arch"`` entry has no other fields than ``gpa``, ``asid``, ``assigned``, ``page_size``,
        ``immutable`` and ``region``: the rest must be 0.

    Returns
    -------
    uint64 array, shape (n, 2)
        ``view(np.uint8)`` gives the bytes, 16 for each.

    Raises
    ------
    OutOfRange, Unaligned
        A field does not fit (``records[2]: ...``), or a GPA is no multiple of 4 KiB.

    Notes
    -----
    Releases the GIL.
    """
    cdef bint is_arch = _is_arch(layout)
    cdef Py_ssize_t i = 0, n = records.shape[0]
    cdef int status = clib.GHCB_OK
    result = np.empty((n, 2), np.uint64)
    cdef uint64_t[:, ::1] words = result
    with nogil:
        for i in range(n):
            if is_arch:
                status = clib.ghcb_rmp_encode_arch(&records[i], &words[i, 0], &words[i, 1])
            else:
                status = clib.ghcb_rmp_encode(&records[i], &words[i, 0], &words[i, 1])
            if status != clib.GHCB_OK:
                break
    if status != clib.GHCB_OK:
        _refuse(status, f"records[{i}]")
    return result


def encode_one(entry, layout="raw"):
    """Put one ``Entry`` together; return ``(low, high)``. See ``encode``.

    Raises
    ------
    OutOfRange, Unaligned
        As ``encode`` does; also for a number that its field of ``RMP_DTYPE`` cannot hold.
    TypeError
        A field is not an integer.
    ValueError
        ``entry`` has not as many fields as an ``Entry``.

    Examples
    --------
    >>> [hex(word) for word in encode_one(Entry(assigned=1, immutable=1, asid=1, gpa=0x1000))]
    ['0x8000000001005', '0x0']
    """
    if len(entry) != len(_FIELDS):
        raise ValueError(f"an entry of {len(entry)} fields, must have {len(_FIELDS)}")
    record = np.zeros(1, RMP_DTYPE)
    for name, value in zip(_FIELDS, entry):
        # numpy would take 4096.7, "4096" and, of its own kinds, what does not fit
        number = _u64(value, name)
        if number >> 8 * RMP_DTYPE[name].itemsize:
            bits = 8 * RMP_DTYPE[name].itemsize
            raise _errors.OutOfRange(f"{name} = {number:#x} does not fit {bits} bits")
        record[0][name] = number
    low, high = encode(record, layout)[0].tolist()
    return low, high


def bytes_for(n_pages):
    """Return the bytes of a contiguous table for pages 0 to ``n_pages`` - 1.

    Raises
    ------
    OutOfRange
        ``n_pages`` is negative or above 2**40, which 52 address bits have.

    Examples
    --------
    >>> bytes_for(1 << 18)  # 1 GiB
    4210688
    """
    cdef uint64_t n = _u64(n_pages, "n_pages")
    if n >> 40 and n != <uint64_t>1 << 40:
        raise _errors.OutOfRange(f"n_pages = {n:#x} is above 2**40")
    return clib.ghcb_rmp_bytes_for(n)


def table(base, end):
    """Return what RMP_BASE and RMP_END say of a contiguous table: a ``Table``.

    Parameters
    ----------
    base, end : int
        The MSRs, as Linux prints them: first and last byte.

    Raises
    ------
    StateConflict
        The BIOS has set no memory aside: base or end has no bit set above bit 12.
    OutOfRange
        The table ends before its first entry, or above 52 address bits.
    Unaligned
        ``base`` is no multiple of 8 KiB, or ``end`` not the last byte of such a piece.

    Examples
    --------
    >>> found = table(0x11500000, 0x51DFFFFF)
    >>> found.n_entries, hex(found.large_start), found.is_aligned
    (67697664, '0x11400000', 1)
    """
    cdef clib.ghcb_rmp_table_t found
    cdef int status = clib.ghcb_rmp_table(_u64(base, "base"), _u64(end, "end"), &found)
    if status != clib.GHCB_OK:
        text = {
            clib.GHCB_E_STATE_CONFLICT: "the BIOS has set no memory aside",
            clib.GHCB_E_OUT_OF_RANGE: "no room for an entry, or above 52 address bits",
            clib.GHCB_E_UNALIGNED: "not made of whole pieces of 8 KiB",
        }[status]
        _errors.raise_status(status, f"RMP_BASE = {base:#x}, RMP_END = {end:#x}: {text}")
    return Table(
        found.base,
        found.end,
        found.n_entries,
        found.entries,
        found.large_start,
        found.large_end,
        found.is_aligned,
    )


cdef int _table_of(object given, clib.ghcb_rmp_table_t *out) except -1:
    cdef int status = clib.ghcb_rmp_table(given.base, given.end, out)
    if status != clib.GHCB_OK:
        table(given.base, given.end)
    return 0


def entry_addresses(given, const uint64_t[::1] pfns not None):
    """Return where the entries of pages lie.

    Parameters
    ----------
    given : Table
        As ``table`` returns it.
    pfns : uint64 array, shape (n,), C-contiguous

    Returns
    -------
    uint64 array, shape (n,)
        Addresses in bytes.

    Raises
    ------
    OutOfRange
        ``pfns[2] = 0x...``: the table does not reach that page.

    Examples
    --------
    >>> import numpy as np
    >>> where = entry_addresses(table(0x11500000, 0x51DFFFFF), np.array([0x100000], np.uint64))
    >>> hex(where[0])
    '0x12504000'
    """
    cdef clib.ghcb_rmp_table_t found
    cdef Py_ssize_t i = 0, n = pfns.shape[0]
    cdef int status = clib.GHCB_OK
    _table_of(given, &found)
    result = np.empty(n, np.uint64)
    cdef uint64_t[::1] into = result
    with nogil:
        for i in range(n):
            status = clib.ghcb_rmp_entry_at(&found, pfns[i], &into[i])
            if status != clib.GHCB_OK:
                break
    if status != clib.GHCB_OK:
        _errors.raise_status(
            status, f"pfns[{i}] = {pfns[i]:#x}: the table ends with page {found.n_entries - 1:#x}"
        )
    return result


def pages_of(given, const uint64_t[::1] spas not None):
    """Return to which pages the entries at these addresses belong: of ``entry_addresses`` the inverse.

    Raises
    ------
    OutOfRange
        ``spas[0] = 0x...``: not between the first entry and the end of the table.
    Unaligned
        Not the first byte of an entry.
    """
    cdef clib.ghcb_rmp_table_t found
    cdef Py_ssize_t i = 0, n = spas.shape[0]
    cdef int status = clib.GHCB_OK
    _table_of(given, &found)
    result = np.empty(n, np.uint64)
    cdef uint64_t[::1] into = result
    with nogil:
        for i in range(n):
            status = clib.ghcb_rmp_page_of(&found, spas[i], &into[i])
            if status != clib.GHCB_OK:
                break
    if status != clib.GHCB_OK:
        _errors.raise_status(status, f"spas[{i}] = {spas[i]:#x}: no entry starts there")
    return result

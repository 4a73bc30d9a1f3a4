"""Where the entries of a reverse map table lie, contiguous or in segments: one interface for both.

``contiguous`` and ``segments`` make a ``Geometry`` out of what the registers and the table of
segments (RST) say, or refuse it. ``entry_addresses``, ``pages_of``, ``has_entry``, ``coverage`` and
``places`` take either. What an entry holds is the business of ``ghcbcore.rmp``, what an operating
system makes of the places that of ``pysev.rmpplace``. The rules are functions of
``ghcbcore/rmp_geometry.h`` and ``rmp_segment.h``; functions here add loops and words.

Units: ``pfn`` counts 4 KiB pages of system memory, ``spa`` bytes, ``mapped_gib`` GiB; ends of
ranges are exclusive.

Source: Linux arch/x86/virt/svm/sev.c ("Segmented RMP Table support").
"""

from collections import namedtuple as _namedtuple

import numpy as np

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ghcbcore cimport clib

from ghcbcore import errors as _errors
from ghcbcore._cffi import lib as _lib

__all__ = [
    "SEGMENT_DTYPE",
    "Config",
    "Geometry",
    "Limits",
    "Segment",
    "contiguous",
    "coverage",
    "decode_config",
    "decode_limits",
    "decode_segment",
    "decode_segments",
    "encode_config",
    "encode_segments",
    "entry_addresses",
    "has_entry",
    "pages_of",
    "places",
    "segments",
]


cdef _dtype_of_struct():
    cdef clib.ghcb_rmp_segment_t one
    return np.asarray(<clib.ghcb_rmp_segment_t[:1]>&one).dtype


SEGMENT_DTYPE = _dtype_of_struct()

Config = _namedtuple("Config", ("is_segmented", "shift", "status"))
Config.__doc__ = """RMP_CFG taken apart: segment i begins at ``i << shift``. ``status`` is
``GHCB_E_RESERVED_BITS`` if a bit is set that no field claims."""

Limits = _namedtuple("Limits", ("min_shift", "max_shift", "n_cached", "is_hard"))
Limits.__doc__ = """CPUID 0x80000025: bounds of the shift; how many segments the processor keeps at
hand, and whether there may be no more."""

Segment = _namedtuple("Segment", ("spa", "mapped_gib", "status"))
Segment.__doc__ = """One word of the RST taken apart: where the entries begin, how much memory they are
for (0: there are none). ``status`` is ``GHCB_E_RESERVED_BITS`` for bits 63 to 52."""

cdef dict _FLAWS = {
    _lib.RMP_FLAW_CFG_RESERVED: "a bit is set that no field claims",
    _lib.RMP_FLAW_DISABLED: "the table is not in segments",
    _lib.RMP_FLAW_SHIFT: "segments of 2**{shift} bytes, must be 2**{low} to 2**{high}",
    _lib.RMP_FLAW_BASE_UNSET: "the BIOS has set no memory aside",
    _lib.RMP_FLAW_BASE_ALIGN: "no multiple of 8 KiB",
    _lib.RMP_FLAW_BASE_RANGE: "the table of segments ends above 52 address bits",
    _lib.RMP_FLAW_RESERVED: "a bit is set that no field claims",
    _lib.RMP_FLAW_INDEX: "the processor takes {n_cached} segments",
    _lib.RMP_FLAW_MAPPED: "{mapped} GiB are mapped, a segment covers {covers}",
    _lib.RMP_FLAW_COVERAGE: "it covers pages above 52 address bits",
    _lib.RMP_FLAW_SEGMENT_RANGE: "its entries end above 52 address bits",
    _lib.RMP_FLAW_OVER_BASE: "its entries overlap bookkeeping and table of segments at {base:#x}",
    _lib.RMP_FLAW_OVERLAP: "its entries overlap those of rst[{other}]",
}
cdef tuple _OF_CONFIG = (_lib.RMP_FLAW_CFG_RESERVED, _lib.RMP_FLAW_DISABLED, _lib.RMP_FLAW_SHIFT)


cdef uint64_t _u64(object value, str name) except? 0:
    """Return an integer that fits 64 bits, or raise with its name."""
    if not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is {type(value).__name__}, not an integer")
    number = int(value)
    if number < 0 or number >> 64:
        raise _errors.OutOfRange(f"{name} = {number:#x} does not fit 64 bits")
    return number


cdef uint32_t _u32(object value, str name) except? 0:
    cdef uint64_t number = _u64(value, name)
    if number >> 32:
        raise _errors.OutOfRange(f"{name} = {number:#x} does not fit 32 bits")
    return <uint32_t>number


# Words ------------------------------------------------------------------------------------------


def decode_config(word):
    """Take RMP_CFG apart; return a ``Config``.

    Raises
    ------
    OutOfRange
        Negative, or more than 64 bits.

    Examples
    --------
    >>> decode_config(0x2401)
    Config(is_segmented=1, shift=36, status=0)
    """
    cdef clib.ghcb_rmp_cfg_t found
    clib.ghcb_rmp_cfg_decode(_u64(word, "word"), &found)
    return Config(found.is_segmented, found.shift, found.status)


def encode_config(is_segmented, shift):
    """Put RMP_CFG together.

    Raises
    ------
    OutOfRange
        ``is_segmented`` is not 0 or 1, ``shift`` not below 64.

    Examples
    --------
    >>> hex(encode_config(1, 36))
    '0x2401'
    """
    cdef uint64_t word = 0
    cdef int status = clib.ghcb_rmp_cfg_encode(
        _u64(is_segmented, "is_segmented"), _u64(shift, "shift"), &word
    )
    if status != clib.GHCB_OK:
        _errors.raise_status(
            status, f"is_segmented {is_segmented}, shift {shift}: do not fit 1 and 6 bits"
        )
    return word


def decode_limits(eax, ebx):
    """Take EAX and EBX of CPUID 0x80000025 apart; return ``Limits``. Other bits are not looked at.

    Raises
    ------
    OutOfRange
        A register is negative or has more than 32 bits.

    Examples
    --------
    >>> decode_limits(40 << 6 | 36, 1 << 10 | 64)
    Limits(min_shift=36, max_shift=40, n_cached=64, is_hard=1)
    """
    cdef clib.ghcb_rmp_limits_t found
    clib.ghcb_rmp_limits_decode(_u32(eax, "eax"), _u32(ebx, "ebx"), &found)
    return Limits(found.min_shift, found.max_shift, found.n_cached, found.is_hard)


def decode_segment(word):
    """Take one word of the RST apart; return a ``Segment``. See ``decode_segments``.

    Examples
    --------
    >>> segment = decode_segment(0x55B00080)
    >>> hex(segment.spa), segment.mapped_gib
    ('0x55b00000', 128)
    """
    cdef clib.ghcb_rmp_segment_t found
    clib.ghcb_rmp_segment_decode(_u64(word, "word"), &found)
    return Segment(found.spa, found.mapped_gib, found.status)


def decode_segments(const uint64_t[::1] words not None):
    """Take words of the RST apart. Every word decodes; what is wrong with it is its ``status``.

    Parameters
    ----------
    words : uint64 array, shape (n,), C-contiguous

    Returns
    -------
    array of SEGMENT_DTYPE, shape (n,)
        ``spa`` in bytes, ``mapped_gib``; ``status`` ``GHCB_OK`` or ``GHCB_E_RESERVED_BITS``.

    Notes
    -----
    Releases the GIL.
    """
    cdef Py_ssize_t i, n = words.shape[0]
    result = np.empty(n, SEGMENT_DTYPE)
    cdef clib.ghcb_rmp_segment_t[::1] into = result
    with nogil:
        for i in range(n):
            clib.ghcb_rmp_segment_decode(words[i], &into[i])
    return result


def encode_segments(const clib.ghcb_rmp_segment_t[::1] records not None):
    """Put words of the RST together: the inverse of ``decode_segments``.

    Parameters
    ----------
    records : array of SEGMENT_DTYPE, shape (n,), C-contiguous
        ``status`` is not looked at.

    Returns
    -------
    uint64 array, shape (n,)

    Raises
    ------
    Unaligned
        ``records[2]: ...``: ``spa`` is no multiple of 1 MiB.
    OutOfRange
        ``spa`` has more than 52 bits, or ``mapped_gib`` more than 20.

    Notes
    -----
    Releases the GIL.
    """
    cdef Py_ssize_t i = 0, n = records.shape[0]
    cdef int status = clib.GHCB_OK
    result = np.empty(n, np.uint64)
    cdef uint64_t[::1] into = result
    with nogil:
        for i in range(n):
            status = clib.ghcb_rmp_segment_encode(&records[i], &into[i])
            if status != clib.GHCB_OK:
                break
    if status != clib.GHCB_OK:
        one = f"records[{i}]: spa {records[i].spa:#x}, mapped_gib {records[i].mapped_gib:#x}"
        is_odd = status == clib.GHCB_E_UNALIGNED
        _errors.raise_status(
            status, f"{one}: " + ("no multiple of 1 MiB" if is_odd else "does not fit its field")
        )
    return result


# Tables -----------------------------------------------------------------------------------------


@cython.final
cdef class Geometry:
    """Where a table lies and what it covers; immutable. ``contiguous`` and ``segments`` make one.

    ``registers`` is what it was made of: the arguments of the one or the other.
    """

    def __cinit__(self):
        # a table of nothing, for whoever goes past __init__
        self.made.shift = _lib.RMP_ADDRESS_BITS
        self.registers = (0, -1)

    def __init__(self, *args, **kwargs):
        raise TypeError("a Geometry is made by contiguous() or segments()")

    @property
    def base(self):
        """Where the table begins: RMP_BASE."""
        return self.made.base

    @property
    def base_end(self):
        """End of what lies at the base: the bookkeeping area and, of segments, their table."""
        return self.made.base_end

    @property
    def shift(self):
        """Segment i begins at ``i << shift``; 52 of a contiguous table, which is segment 0."""
        return self.made.shift

    @property
    def is_segmented(self):
        return bool(self.made.is_segmented)

    @property
    def n_segments(self):
        """How many segments have entries; 1 of a contiguous table."""
        return self.made.n_segments

    @property
    def n_entries(self):
        """Pages that have an entry."""
        cdef uint64_t total = 0
        cdef uint32_t i
        for i in range(self.made.n_indices):
            total += clib.ghcb_rmp_segment_pages(&self.made, i)
        return total

    @property
    def is_aligned(self):
        """Whether it begins (contiguous: and ends) at a multiple of 1 MiB, as firmware demands."""
        mask = clib.RMP_FIRMWARE_ALIGN - 1
        if self.made.is_segmented:
            return not self.made.base & mask
        return not (self.made.base & mask or clib.ghcb_rmp_segment_end(&self.made, 0) & mask)

    def __eq__(self, other):
        return isinstance(other, Geometry) and self.registers == (<Geometry>other).registers

    def __hash__(self):
        return hash(self.registers)

    def __reduce__(self):
        if self.made.is_segmented:
            rst, cfg, base, limits, is_reduced = self.registers
            return _again, (rst, cfg, base, limits, is_reduced)
        return contiguous, self.registers

    def __repr__(self):
        kind = "segmented" if self.made.is_segmented else "contiguous"
        return f"<Geometry {kind} at {self.made.base:#x}: {self.n_entries} entries>"


def _again(rst, cfg, base, limits, is_reduced):
    """Make a pickled geometry again."""
    return segments(np.array(rst, np.uint64), cfg, base, limits=limits, is_reduced=is_reduced)


def contiguous(base, end):
    """Return the geometry of a contiguous table.

    Parameters
    ----------
    base, end : int
        RMP_BASE and RMP_END: first and last byte.

    Raises
    ------
    StateConflict, OutOfRange, Unaligned
        As ``ghcbcore.rmp.table`` does.

    Notes
    -----
    Pages above 52 address bits have no entry, however long the table is.

    Examples
    --------
    >>> contiguous(0x11500000, 0x51DFFFFF).n_entries
    67697664
    """
    cdef Geometry geometry = Geometry.__new__(Geometry)
    cdef int status = clib.ghcb_rmp_of_range(_u64(base, "base"), _u64(end, "end"), &geometry.made)
    if status != clib.GHCB_OK:
        text = {
            clib.GHCB_E_STATE_CONFLICT: "the BIOS has set no memory aside",
            clib.GHCB_E_OUT_OF_RANGE: "no room for an entry, or above 52 address bits",
            clib.GHCB_E_UNALIGNED: "not made of whole pieces of 8 KiB",
        }[status]
        _errors.raise_status(status, f"RMP_BASE = {base:#x}, RMP_END = {end:#x}: {text}")
    geometry.registers = (int(base), int(end))
    return geometry


def segments(const uint64_t[::1] rst not None, cfg, base, *, limits=None, is_reduced=False):
    """Return the geometry of a table in segments.

    Parameters
    ----------
    rst : uint64 array, shape (n,), C-contiguous, n at most 512
        The table of segments, 0x4000 bytes behind the base. What is not given is 0.
    cfg : int
        RMP_CFG.
    base : int
        RMP_BASE. RMP_END is not used by a table in segments.
    limits : Limits, optional
        What the processor takes. Without it segments may cover 2**30 (the unit of what is mapped)
        to 2**52 bytes, and there may be 512.
    is_reduced : bool
        Take a word that maps more than its segment covers for one that maps just that, as Linux
        does, instead of refusing it.

    Raises
    ------
    StateConflict
        RMP_CFG does not enable segments; RMP_BASE is not set; entries of one segment overlap the
        base table, or those of another segment.
    OutOfRange
        The segments' size is none the processor takes; one lies beyond the number that it takes,
        maps more than it covers, covers pages above 52 address bits, or lies above them.
    Unaligned
        ``base`` is no multiple of 8 KiB.
    ReservedBitsSet
        A bit of RMP_CFG or of a word is set that no field claims.
    ValueError
        More than 512 words.

    Notes
    -----
    The first word that is wrong, each held against those before it, is named: ``rst[9] = 0x...``.

    Examples
    --------
    >>> import numpy as np
    >>> rst = np.zeros(10, np.uint64)
    >>> rst[[0, 8, 9]] = [0x8800022, 0x55B00080, 0x35A00080]
    >>> table = segments(rst, 0x2501, 0x9BA00000)
    >>> [[hex(one) for one in ends] for ends in coverage(table).tolist()]
    [['0x0', '0x880000000'], ['0x10000000000', '0x14000000000']]
    """
    cdef Geometry geometry = Geometry.__new__(Geometry)
    cdef clib.ghcb_rmp_limits_t bounds
    cdef const clib.ghcb_rmp_limits_t *given = NULL
    cdef clib.ghcb_rmp_flaw_t why
    cdef Py_ssize_t n = rst.shape[0]
    cdef int status
    if n > clib.RMP_SEGMENTS:
        raise ValueError(f"rst has {n} words, a table of segments {clib.RMP_SEGMENTS}")
    if limits is not None:
        limits = Limits(*limits)
        bounds.min_shift = _u32(limits.min_shift, "limits.min_shift")
        bounds.max_shift = _u32(limits.max_shift, "limits.max_shift")
        bounds.n_cached = _u32(limits.n_cached, "limits.n_cached")
        bounds.is_hard = bool(limits.is_hard)
        given = &bounds
    status = clib.ghcb_rmp_of_segments(
        _u64(base, "base"),
        _u64(cfg, "cfg"),
        &rst[0] if n else NULL,
        <uint32_t>n,
        given,
        bool(is_reduced),
        &geometry.made,
        &why,
    )
    if status != clib.GHCB_OK:
        _refuse(status, &why, rst, int(cfg), int(base), limits)
    geometry.registers = (
        tuple(np.asarray(rst).tolist()), int(cfg), int(base), limits, bool(is_reduced)
    )
    return geometry


cdef _refuse(
    int status,
    const clib.ghcb_rmp_flaw_t *why,
    const uint64_t[::1] rst,
    object cfg,
    object base,
    object limits,
):
    config = decode_config(cfg)
    low, high = _lib.RMP_MAPPED_UNIT_SHIFT, _lib.RMP_ADDRESS_BITS
    if limits is not None:
        low, high = max(low, limits.min_shift), min(high, limits.max_shift)
    if why.flaw >= clib.RMP_FLAW_RESERVED:
        where = f"rst[{why.index}] = {rst[why.index]:#x}"
        mapped = decode_segment(rst[why.index]).mapped_gib
    else:
        where = f"RMP_CFG = {cfg:#x}" if why.flaw in _OF_CONFIG else f"RMP_BASE = {base:#x}"
        mapped = 0
    text = _FLAWS[why.flaw].format(
        shift=config.shift,
        low=low,
        high=high,
        n_cached=limits.n_cached if limits is not None else clib.RMP_SEGMENTS,
        mapped=mapped,
        covers=(1 << config.shift) >> _lib.RMP_MAPPED_UNIT_SHIFT,
        base=base,
        other=why.other,
    )
    _errors.raise_status(status, f"{where}: {text}")


# Pages and entries ------------------------------------------------------------------------------


def entry_addresses(Geometry geometry not None, const uint64_t[::1] pfns not None):
    """Return where the entries of pages lie.

    Parameters
    ----------
    geometry : Geometry
    pfns : uint64 array, shape (n,), C-contiguous

    Returns
    -------
    uint64 array, shape (n,)
        Addresses in bytes.

    Raises
    ------
    OutOfRange
        ``pfns[2] = 0x...``: that page has no entry. See ``has_entry``.

    Notes
    -----
    Releases the GIL.

    Examples
    --------
    >>> import numpy as np
    >>> table = contiguous(0x11500000, 0x51DFFFFF)
    >>> hex(entry_addresses(table, np.array([0x100000], np.uint64))[0])
    '0x12504000'
    """
    cdef Py_ssize_t i = 0, n = pfns.shape[0]
    cdef int status = clib.GHCB_OK
    result = np.empty(n, np.uint64)
    cdef uint64_t[::1] into = result
    with nogil:
        for i in range(n):
            status = clib.ghcb_rmp_locate(&geometry.made, pfns[i], &into[i])
            if status != clib.GHCB_OK:
                break
    if status != clib.GHCB_OK:
        _errors.raise_status(status, f"pfns[{i}] = {pfns[i]:#x}: the table has no entry for it")
    return result


def has_entry(Geometry geometry not None, const uint64_t[::1] pfns not None):
    """Say for each page, a uint64 array of shape (n,), whether it has an entry: bool, shape (n,).

    Releases the GIL.
    """
    cdef Py_ssize_t i, n = pfns.shape[0]
    cdef uint64_t spa
    result = np.empty(n, np.uint8)
    cdef uint8_t[::1] into = result
    with nogil:
        for i in range(n):
            into[i] = clib.ghcb_rmp_locate(&geometry.made, pfns[i], &spa) == clib.GHCB_OK
    return result.view(np.bool_)


def pages_of(Geometry geometry not None, const uint64_t[::1] spas not None):
    """Return whose entries lie at these addresses: of ``entry_addresses`` the inverse.

    Raises
    ------
    OutOfRange
        ``spas[0] = 0x...``: not among the entries of any segment.
    Unaligned
        Not the first byte of an entry.

    Notes
    -----
    Releases the GIL.
    """
    cdef Py_ssize_t i = 0, n = spas.shape[0]
    cdef int status = clib.GHCB_OK
    result = np.empty(n, np.uint64)
    cdef uint64_t[::1] into = result
    with nogil:
        for i in range(n):
            status = clib.ghcb_rmp_page_at(&geometry.made, spas[i], &into[i])
            if status != clib.GHCB_OK:
                break
    if status != clib.GHCB_OK:
        _errors.raise_status(status, f"spas[{i}] = {spas[i]:#x}: no entry starts there")
    return result


def coverage(Geometry geometry not None):
    """Return the memory that has entries, lowest first, ranges that touch joined.

    Returns
    -------
    uint64 array, shape (n, 2)
        Start and end in bytes, ends exclusive.
    """
    cdef uint32_t i
    found, last = [], None
    for i in range(geometry.made.n_indices):
        if clib.ghcb_rmp_segment_pages(&geometry.made, i):
            start = i << <object>geometry.made.shift
            end = start + (<object>clib.ghcb_rmp_segment_pages(&geometry.made, i) << _lib.GHCB_PAGE_SHIFT)
            if start == last:
                start = found.pop()[0]
            found.append((start, end))
            last = end
    return np.array(found, np.uint64).reshape(-1, 2)


def places(Geometry geometry not None):
    """Return where the table itself lies.

    Returns
    -------
    index : int32 array, shape (n,)
        -1 for what lies at the base (a contiguous table as a whole), then the segments by index.
    ranges : uint64 array, shape (n, 2)
        Start and end in bytes, ends exclusive.
    """
    cdef uint32_t i
    if not geometry.made.is_segmented:
        whole = [(geometry.registers[0], geometry.registers[1] + 1)]
        return np.array([-1], np.int32), np.array(whole, np.uint64)
    index, ranges = [-1], [(geometry.made.base, geometry.made.base_end)]
    for i in range(geometry.made.n_indices):
        if clib.ghcb_rmp_segment_pages(&geometry.made, i):
            index.append(i)
            start = clib.ghcb_rmp_segment_start(&geometry.made, i)
            ranges.append((start, clib.ghcb_rmp_segment_end(&geometry.made, i)))
    return np.array(index, np.int32), np.array(ranges, np.uint64)

"""Values of the GHCB MSR, one or many: take apart, put together, judge an answer.

An MSR value is a code in bits [11:0] and data in bits [63:12]; the code decides which fields the
data has. Code 0 is the GPA of a GHCB page. Every function here is a loop over a function of
``ghcbcore/msr.h``, where codes, fields and rules are; words for them are in ``pysev.tables.msr``.

A decoded value has up to three fields, called ``a``, ``b`` and ``c`` in the order of its row
(``rows()``): SEV information ``max, min, c_bit``; CPUID ``fn, reg`` and ``value, reg``; page state
change ``gfn, op``; termination ``set, reason``; the others have one field or none. A field that
the row lacks is 0.

Units: a field ``gfn`` counts 4 KiB pages.

Source: GHCB protocol, MSR requests 0x001 to 0x100.
"""

from collections import namedtuple as _namedtuple

import numpy as np

from libc.stdint cimport uint8_t, uint64_t

from ghcbcore cimport clib

from ghcbcore import errors as _errors

__all__ = [
    "MSR_DTYPE",
    "NO_ROW",
    "Decoded",
    "Field",
    "Row",
    "check_answer",
    "check_answers",
    "decode",
    "decode_one",
    "encode",
    "encode_one",
    "rows",
]

NO_ROW = clib.GHCB_MSR_NO_ROW

Decoded = _namedtuple("Decoded", ("a", "b", "c", "status", "code", "row"))
Decoded.__doc__ = "One decoded value: the fields of ``MSR_DTYPE`` as Python integers."

Field = _namedtuple("Field", ("name", "shift", "width"))
Field.__doc__ = "One field of a row: bits ``[shift + width - 1 : shift]``."

Row = _namedtuple("Row", ("name", "code", "pair", "is_answer", "fields", "reserved"))
Row.__doc__ = """One code of the protocol.

``name`` is the function, the same for both halves; ``pair`` is the code of the other half or
None; ``fields`` is a tuple of ``Field`` in the order ``a, b, c``; ``reserved`` is the mask of the
bits that must be zero.
"""


cdef _dtype_of_struct():
    cdef clib.ghcb_msr_t one
    return np.asarray(<clib.ghcb_msr_t[:1]>&one).dtype


MSR_DTYPE = _dtype_of_struct()


cdef _row_at(Py_ssize_t i):
    cdef const clib.ghcb_msr_row_t *row = &clib.ghcb_msr_rows[i]
    cdef Py_ssize_t k
    return Row(
        row.name.decode("ascii"),
        row.code,
        None if row.pair == clib.GHCB_MSR_NO_PAIR else row.pair,
        row.is_answer != 0,
        tuple([
            Field(row.field[k].name.decode("ascii"), row.field[k].shift, row.field[k].width)
            for k in range(row.n_fields)
        ]),
        row.reserved,
    )


cdef tuple _ROWS = tuple([_row_at(i) for i in range(clib.GHCB_MSR_N_ROWS)])


def rows():
    """Return all rows, a tuple of ``Row`` in the order of their codes.

    ``decode(...)["row"]`` indexes it, except where it is ``NO_ROW``.

    Examples
    --------
    >>> row = rows()[decode_one(0x0010000012345014).row]
    >>> row.name, row.is_answer, hex(row.reserved)
    ('page_state_change', False, '0xff00000000000000')
    >>> row.fields
    (Field(name='gfn', shift=12, width=40), Field(name='op', shift=52, width=4))
    """
    return _ROWS


cdef void decode_into(const uint64_t *values, clib.ghcb_msr_t *out, Py_ssize_t n) noexcept nogil:
    clib.ghcb_msr_decode_many(values, out, n)


cdef void check_into(
    const uint64_t *requests, const uint64_t *answers, uint8_t *out, Py_ssize_t n
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = clib.ghcb_msr_check_answer(requests[i], answers[i])


cdef uint64_t _u64(object value, str name) except? 0:
    """Return an integer that fits 64 bits, or raise with its name."""
    if not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is {type(value).__name__}, not an integer")
    number = int(value)
    if number < 0 or number >> 64:
        raise _errors.OutOfRange(f"{name} = {number:#x} does not fit 64 bits")
    return number


cdef _same_length(Py_ssize_t n, Py_ssize_t expected, str name, str other):
    if n != expected:
        raise ValueError(f"{name} has {n} elements, {other} has {expected}")


def decode(const uint64_t[::1] values not None, out=None):
    """Take values apart. Any 64-bit value decodes; what is wrong with it is its ``status``.

    Parameters
    ----------
    values : uint64 array, shape (n,), C-contiguous
        Raw MSR values; read-only arrays are welcome. Nothing is copied.
    out : array of MSR_DTYPE, shape (n,), C-contiguous, optional
        Receives the result. Must not overlap ``values``.

    Returns
    -------
    array of MSR_DTYPE, shape (n,)
        ``out`` if it was given. ``code`` holds bits [11:0]. ``status`` is one of

        - ``GHCB_OK``: ``row`` indexes ``rows()``; ``a``, ``b``, ``c`` are its fields, 0 where it
          has fewer.
        - ``GHCB_E_RESERVED_BITS``: the same, and a bit is set that no field of the row claims.
        - ``GHCB_E_UNKNOWN_CODE``: ``row`` is ``NO_ROW``, ``a`` holds bits [63:12], ``b`` and ``c``
          are 0, so the value can be put together again. The Hyper-V codes 0xF00 to 0xF03 are of
          this kind.

        Only form is judged: an operation, version or GFN that makes no sense is not an error here.
        Code 0x003 is a name without a known layout: all its data is one field.

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
    >>> one = decode(np.array([0x0003000137000001], dtype=np.uint64))[0]
    >>> int(one["a"]), int(one["b"]), int(one["c"]), int(one["status"])
    (3, 1, 55, 0)
    """
    cdef Py_ssize_t n = values.shape[0]
    if out is None:
        out = np.empty(n, MSR_DTYPE)
    cdef clib.ghcb_msr_t[::1] into = out
    _same_length(into.shape[0], n, "out", "values")
    if n:
        with nogil:
            decode_into(&values[0], &into[0], n)
    return out


def decode_one(value):
    """Take one value apart; return a ``Decoded``. See ``decode`` for the meaning of its fields.

    Raises
    ------
    OutOfRange
        ``value`` is negative or has more than 64 bits.
    TypeError
        ``value`` is not an integer.

    Examples
    --------
    >>> decode_one(0x3F100)
    Decoded(a=15, b=3, c=0, status=0, code=256, row=20)
    """
    cdef clib.ghcb_msr_t one
    clib.ghcb_msr_decode(_u64(value, "value"), &one)
    return Decoded(one.a, one.b, one.c, one.status, one.code, one.row)


# Parameters of the encoders.
_OPERANDS = ("code", "a", "b", "c")


cdef _refuse(int status, uint64_t code, tuple values, tuple index):
    """Raise for one element that cannot be put together; `index` is "[i]" or "" per operand."""
    if status == clib.GHCB_E_UNKNOWN_CODE:
        _errors.raise_status(status, f"code{index[0]} = {code:#x} has no row")
    row = next(row for row in _ROWS if row.code == code)
    half = f"{row.name} {'answer' if row.is_answer else 'request'}"
    for k, value in enumerate(values):
        if k >= len(row.fields):
            if value:
                where = f"{_OPERANDS[k + 1]}{index[k + 1]}"
                _errors.raise_status(status, f"{where} = {value:#x}: the {half} has no such field")
        elif value >> row.fields[k].width:
            where = f"{row.fields[k].name}{index[k + 1]}"
            width = row.fields[k].width
            _errors.raise_status(
                status, f"{where} = {value:#x} does not fit the {width} bits of the {half}"
            )
    raise AssertionError("the encoder refused what fits")


def encode(code, a=0, b=0, c=0, out=None):
    """Put values together. Arrays and scalars may be mixed; a scalar is used for every element.

    Parameters
    ----------
    code, a, b, c : int, or uint64 array, shape (n,), C-contiguous
        The code and the fields of its row in the order of ``rows()``. A field that the row lacks
        must be 0.
    out : uint64 array, shape (n,), C-contiguous, optional
        Receives the result. Must not overlap an input.

    Returns
    -------
    uint64 array, shape (n,)
        ``out`` if it was given. If there are scalars only, n is the length of ``out``, else 1.

    Raises
    ------
    OutOfRange
        A field does not fit. The text names it as the row does, with the index if it came from
        an array: ``gfn[2] = 0x10000000000 does not fit the 40 bits of the page_state_change
        request``. ``out[:2]`` is written, the rest is not. An integer of more than 64 bits or
        below 0 is named by its parameter; then nothing is written.
    UnknownCode
        The code has no row (0xF00 to 0xF03 have none). As above for ``out``.
    ValueError
        Lengths differ, or an array has another dtype or layout. Nothing is written.

    Notes
    -----
    Releases the GIL.

    Examples
    --------
    >>> import numpy as np
    >>> gfns = np.array([0x12345, 0x12346], dtype=np.uint64)
    >>> [hex(value) for value in encode(0x014, gfns, 2)]
    ['0x20000012345014', '0x20000012346014']
    """
    cdef const uint64_t[::1] c_, a_, b_, d_
    cdef uint64_t[::1] into
    cdef Py_ssize_t i = 0, n
    cdef Py_ssize_t sc, sa, sb, sd
    cdef size_t done = 0
    cdef clib.ghcb_msr_operands_t of
    cdef int status = clib.GHCB_OK
    operands = (code, a, b, c)
    scalar = [isinstance(operand, (int, np.integer)) for operand in operands]
    c_, a_, b_, d_ = [
        np.array([_u64(operand, name)], np.uint64) if one else operand
        for operand, name, one in zip(operands, _OPERANDS, scalar, strict=True)
    ]
    sc, sa, sb, sd = [not one for one in scalar]
    sized = [
        (name, length)
        for name, length, one in zip(
            _OPERANDS, (c_.shape[0], a_.shape[0], b_.shape[0], d_.shape[0]), scalar, strict=True
        )
        if not one
    ]
    if out is not None:
        into = out
        sized.append(("out", into.shape[0]))
    n = sized[0][1] if sized else 1
    for name, length in sized:
        _same_length(length, n, name, sized[0][0])
    if out is None:
        out = np.empty(n, np.uint64)
        into = out
    if n:
        of.code, of.code_step = &c_[0], sc
        of.a, of.a_step = &a_[0], sa
        of.b, of.b_step = &b_[0], sb
        of.c, of.c_step = &d_[0], sd
        with nogil:
            status = clib.ghcb_msr_encode_many(&of, &into[0], n, &done)
        i = done
    if status != clib.GHCB_OK:
        _refuse(
            status,
            c_[i * sc],
            (a_[i * sa], b_[i * sb], d_[i * sd]),
            tuple(["" if one else f"[{i}]" for one in scalar]),
        )
    return out


def encode_one(code, a=0, b=0, c=0):
    """Put one value together; return an int. See ``encode``.

    Raises
    ------
    OutOfRange, UnknownCode
        As ``encode`` does, without an index.

    Examples
    --------
    >>> hex(encode_one(0x100, 15, 3))
    '0x3f100'
    """
    cdef uint64_t raw = 0
    cdef uint64_t c_ = _u64(code, "code")
    cdef uint64_t a_ = _u64(a, "a")
    cdef uint64_t b_ = _u64(b, "b")
    cdef uint64_t d_ = _u64(c, "c")
    cdef int status = clib.ghcb_msr_encode(c_, a_, b_, d_, &raw)
    if status != clib.GHCB_OK:
        _refuse(status, c_, (a_, b_, d_), ("", "", "", ""))
    return raw


def check_answers(
    const uint64_t[::1] requests not None, const uint64_t[::1] answers not None, out=None
):
    """Judge each answer by its request, as a careful guest does.

    Parameters
    ----------
    requests, answers : uint64 array, shape (n,), C-contiguous
        Raw MSR values before and after VMGEXIT. Nothing is copied.
    out : uint8 array, shape (n,), C-contiguous, optional
        Receives the result.

    Returns
    -------
    uint8 array, shape (n,)
        ``out`` if it was given. The first status that applies:

        - ``GHCB_E_UNKNOWN_CODE``: the code of the request has no row.
        - ``GHCB_E_CODE_MISMATCH``: the request is not one that has an answer (the GPA of a GHCB,
          0x003, termination, or itself an answer), or the answer has another code than the
          request's other half. A host that left the MSR as it was shows as this.
        - ``GHCB_E_RESERVED_BITS``: the answer has a bit set that no field claims. KVM returns
          bits [31:12] of a CPUID request unchanged, so there the request may be to blame.
        - ``GHCB_E_ECHO_MISMATCH``: a CPUID answer names another register; a register-GPA answer
          has another GFN, and not all ones.
        - ``GHCB_OK``: also for a legal "no": all ones where a GFN stands, an error number,
          "not released".

        Reserved bits of the request are not looked at.

    Raises
    ------
    ValueError
        Lengths differ, or an array has another dtype or layout. Nothing is written.

    Notes
    -----
    Releases the GIL.

    Examples
    --------
    >>> import numpy as np
    >>> asked = np.array([0x04E14012, 0x04E14012], dtype=np.uint64)
    >>> got = np.array([0x04E14013, 0x04E15013], dtype=np.uint64)
    >>> check_answers(asked, got).tolist()
    [0, 3]
    """
    cdef Py_ssize_t n = requests.shape[0]
    _same_length(answers.shape[0], n, "answers", "requests")
    if out is None:
        out = np.empty(n, np.uint8)
    cdef uint8_t[::1] into = out
    _same_length(into.shape[0], n, "out", "requests")
    if n:
        with nogil:
            check_into(&requests[0], &answers[0], &into[0], n)
    return out


def check_answer(request, answer):
    """Judge one answer by its request; return the status. See ``check_answers``.

    Raises
    ------
    OutOfRange
        One of them is negative or has more than 64 bits.

    Examples
    --------
    >>> check_answer(0x8000001F40000004, 0x0000417340000005)
    0
    """
    return clib.ghcb_msr_check_answer(_u64(request, "request"), _u64(answer, "answer"))

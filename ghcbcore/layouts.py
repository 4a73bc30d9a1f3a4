"""Pages without a bitmap as structured arrays: VMSA, doorbell, secrets, CPUID and message page.

Their fields always count, so taking a page apart is looking at it: ``as_records`` lays a dtype over
bytes without a copy, and a record written through such a view is the page put together. The
dtypes are read off the structs of ``include/`` (``vmsa.h``, ``doorbell.h``, ``secrets.h``); gaps
have no name in them, and ``first_reserved`` says whether they are zero. Pages with a bitmap:
``ghcbcore.ghcb``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._cffi import ffi

__all__ = [
    "CPUID_PAGE_DTYPE",
    "DOORBELL_DTYPE",
    "MESSAGE_DTYPE",
    "SECRETS_DTYPE",
    "VMSA_DTYPE",
    "as_records",
    "bits_of",
    "first_reserved",
    "set_bits",
]


def _dtype_of(ctype: Any) -> Any:
    """Return the dtype of a C type, with the fields of a struct but its gaps, at their offsets."""
    if ctype.kind == "primitive":
        return np.dtype(f"<u{ffi.sizeof(ctype)}")
    if ctype.kind == "array":
        return np.dtype((_dtype_of(ctype.item), (ctype.length,)))
    named = [(name, field) for name, field in ctype.fields if not name.startswith("reserved")]
    return np.dtype(
        {
            "names": [name for name, _ in named],
            "formats": [_dtype_of(field.type) for _, field in named],
            "offsets": [field.offset for _, field in named],
            "itemsize": ffi.sizeof(ctype),
        }
    )


VMSA_DTYPE: np.dtype[np.void] = _dtype_of(ffi.typeof("sev_vmsa_t"))
DOORBELL_DTYPE: np.dtype[np.void] = _dtype_of(ffi.typeof("ghcb_doorbell_t"))
SECRETS_DTYPE: np.dtype[np.void] = _dtype_of(ffi.typeof("snp_secrets_t"))
CPUID_PAGE_DTYPE: np.dtype[np.void] = _dtype_of(ffi.typeof("snp_cpuid_page_t"))
MESSAGE_DTYPE: np.dtype[np.void] = _dtype_of(ffi.typeof("snp_message_t"))


def as_records(pages: npt.NDArray[np.uint8], dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """Look at pages as records.

    Parameters
    ----------
    pages : uint8 array, shape (n, dtype.itemsize)
        At any address and distance, the bytes of one page next to each other; read-only arrays
        are welcome.
    dtype : dtype
        One of this module.

    Returns
    -------
    array of dtype, shape (n,)
        A view: nothing is copied, and writing to it writes the pages.

    Raises
    ------
    ValueError
        A shape, dtype or layout is wrong.

    Examples
    --------
    >>> page = np.zeros((1, 4096), dtype=np.uint8)
    >>> as_records(page, VMSA_DTYPE)["rip"] = 0xFFF0
    >>> bytes(page[0, 0x178:0x17A]).hex()
    'f0ff'
    """
    if pages.dtype != np.uint8 or pages.ndim != 2 or pages.shape[1] != dtype.itemsize:
        raise ValueError(
            f"pages has dtype {pages.dtype} and shape {pages.shape}, "
            f"must be uint8, (n, {dtype.itemsize})"
        )
    if pages.strides[1] != 1 and len(pages):
        raise ValueError("pages: the bytes of a row must lie next to each other")
    return pages.view(dtype)[:, 0]


_gaps: dict[np.dtype[np.void], npt.NDArray[np.intp]] = {}


def _reserved(dtype: np.dtype[np.void]) -> npt.NDArray[np.intp]:
    if dtype not in _gaps:
        _gaps[dtype] = _unclaimed(dtype)
    return _gaps[dtype]


def _unclaimed(dtype: np.dtype[np.void]) -> npt.NDArray[np.intp]:
    claimed = np.zeros(dtype.itemsize, dtype=bool)
    _claim(dtype, 0, claimed)
    return np.flatnonzero(~claimed)


def _claim(dtype: Any, at: int, claimed: npt.NDArray[np.bool_]) -> None:
    if dtype.names is not None:
        for name in dtype.names:
            inner, offset = dtype.fields[name][:2]
            _claim(inner, at + offset, claimed)
    elif dtype.subdtype is not None:
        inner, (n,) = dtype.subdtype
        for i in range(n):
            _claim(inner, at + i * inner.itemsize, claimed)
    else:
        claimed[at : at + dtype.itemsize] = True


def first_reserved(pages: npt.NDArray[np.uint8], dtype: np.dtype[np.void]) -> npt.NDArray[np.int64]:
    """Return, for each page, the offset of the first byte of a gap that is not zero, or -1.

    Parameters and errors as for ``as_records``.

    Examples
    --------
    >>> page = np.zeros((2, 4096), dtype=np.uint8)
    >>> page[1, 0x670] = 1
    >>> first_reserved(page, VMSA_DTYPE).tolist()
    [-1, 1648]
    """
    as_records(pages, dtype)
    gaps = _reserved(dtype)
    set_ = pages[:, gaps] != 0
    return np.where(set_.any(axis=1), gaps[set_.argmax(axis=1)], -1).astype(np.int64)


def bits_of(value: int, shift: int, width: int) -> int:
    """Return bits ``[shift + width - 1 : shift]`` of a number.

    Examples
    --------
    >>> bits_of(0x03F80211, 16, 16) == 0x3F8
    True
    """
    return value >> shift & ((1 << width) - 1)


def set_bits(value: int) -> tuple[int, ...]:
    """Return the numbers of the bits that are set, lowest first.

    Examples
    --------
    >>> set_bits(0x43)
    (0, 1, 6)
    """
    return tuple(i for i in range(value.bit_length()) if value >> i & 1)

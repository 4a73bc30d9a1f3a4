from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "ENTRY_DTYPE",
    "HEADER_DTYPE",
    "MAX_ENTRIES",
    "decode",
    "decode_entries",
    "encode",
    "encode_entries",
]

_Int: TypeAlias = int | np.integer[Any]
_Bytes: TypeAlias = npt.NDArray[np.uint8]
_Records: TypeAlias = npt.NDArray[np.void]
_U64: TypeAlias = npt.NDArray[np.uint64]

ENTRY_DTYPE: Final[np.dtype[np.void]]
HEADER_DTYPE: Final[np.dtype[np.void]]
MAX_ENTRIES: Final[int]

def decode(
    buffers: _Bytes, headers: _Records | None = None, entries: _Records | None = None
) -> tuple[_Records, _Records]: ...
def decode_entries(raw: _U64, out: _Records | None = None) -> _Records: ...
def encode_entries(
    gfn: npt.ArrayLike, op: npt.ArrayLike, size: npt.ArrayLike = 0, cur_page: npt.ArrayLike = 0
) -> _U64: ...
def encode(
    gfn: npt.ArrayLike,
    op: npt.ArrayLike,
    size: npt.ArrayLike = 0,
    cur_page: npt.ArrayLike = 0,
    *,
    cur_entry: int = 0,
) -> _Bytes: ...

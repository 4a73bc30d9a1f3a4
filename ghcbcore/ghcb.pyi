from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

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

_Int: TypeAlias = int | np.integer[Any]
_Bytes: TypeAlias = npt.NDArray[np.uint8]
_Records: TypeAlias = npt.NDArray[np.void]

FIELDS: Final[tuple[str, ...]]
GHCB_DTYPE: Final[np.dtype[np.void]]
NO_ROW: Final[int]

class EventRow(NamedTuple):
    code: int
    required: int
    info1_mask: int
    info2_mask: int
    returned: int
    returned_always: int
    since: int
    snp_only: bool
    in_kvm: bool

def event_rows() -> tuple[EventRow, ...]: ...
def field_names(mask: _Int) -> tuple[str, ...]: ...
def decode(
    pages: _Bytes,
    *,
    side: Literal["request", "answer"] = "request",
    snp: bool | None = None,
    out: _Records | None = None,
) -> _Records: ...
def encode(records: _Records, out: _Bytes | None = None) -> _Bytes: ...
def missing(code: _Int, info1: _Int = 0, rax: _Int = 0, valid: _Int = 0) -> int: ...

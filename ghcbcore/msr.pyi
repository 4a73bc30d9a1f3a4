from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

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

_U64: TypeAlias = npt.NDArray[np.uint64]
_Int: TypeAlias = int | np.integer[Any]

MSR_DTYPE: Final[np.dtype[np.void]]
NO_ROW: Final[int]

class Decoded(NamedTuple):
    a: int
    b: int
    c: int
    status: int
    code: int
    row: int

class Field(NamedTuple):
    name: str
    shift: int
    width: int

class Row(NamedTuple):
    name: str
    code: int
    pair: int | None
    is_answer: bool
    fields: tuple[Field, ...]
    reserved: int

def rows() -> tuple[Row, ...]: ...
def decode(values: _U64, out: npt.NDArray[np.void] | None = None) -> npt.NDArray[np.void]: ...
def decode_one(value: _Int) -> Decoded: ...
def encode(
    code: _Int | _U64,
    a: _Int | _U64 = 0,
    b: _Int | _U64 = 0,
    c: _Int | _U64 = 0,
    out: _U64 | None = None,
) -> _U64: ...
def encode_one(code: _Int, a: _Int = 0, b: _Int = 0, c: _Int = 0) -> int: ...
def check_answers(
    requests: _U64, answers: _U64, out: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8]: ...
def check_answer(request: _Int, answer: _Int) -> int: ...

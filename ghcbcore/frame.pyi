from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Op", "Result", "apply", "entry", "move", "n_frames", "result"]

_Int: TypeAlias = int | np.integer[Any]
_U64: TypeAlias = npt.NDArray[np.uint64]

class Op(NamedTuple):
    kind: int
    size: int = 0
    backing: int = 0
    asid: int = 0
    vmpl: int = 0
    target: int = 0
    gfn: int = 0
    value: int = 0

class Result(NamedTuple):
    kind: int
    code: int
    unchanged: bool
    bits: int

def result(value: _Int) -> Result: ...
def apply(
    op: Op,
    frames: _U64,
    at: _Int,
    *,
    first_pfn: _Int = 0,
    max_asid: _Int = 1006,
    rules: _Int = 0,
) -> int: ...
def n_frames(op: Op) -> int: ...
def entry(word: _Int, gfn: _Int, pfn: _Int) -> np.void: ...
def move(
    op: Op,
    source: tuple[int, int],
    destination: tuple[int, int],
    distance: _Int,
    *,
    source_is_first: bool = True,
    destination_is_first: bool = True,
) -> tuple[int, tuple[int, int], tuple[int, int]]: ...

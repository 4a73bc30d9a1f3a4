from typing import Any, Final, NamedTuple, Never, TypeAlias, final

import numpy as np
import numpy.typing as npt

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

_U64: TypeAlias = npt.NDArray[np.uint64]
_Int: TypeAlias = int | np.integer[Any]

SEGMENT_DTYPE: Final[np.dtype[np.void]]

class Config(NamedTuple):
    is_segmented: int
    shift: int
    status: int

class Limits(NamedTuple):
    min_shift: int
    max_shift: int
    n_cached: int
    is_hard: int

class Segment(NamedTuple):
    spa: int
    mapped_gib: int
    status: int

@final
class Geometry:
    registers: Final[tuple[Any, ...]]
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    @property
    def base(self) -> int: ...
    @property
    def base_end(self) -> int: ...
    @property
    def shift(self) -> int: ...
    @property
    def is_segmented(self) -> bool: ...
    @property
    def n_segments(self) -> int: ...
    @property
    def n_entries(self) -> int: ...
    @property
    def is_aligned(self) -> bool: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self, /) -> int: ...

def decode_config(word: _Int) -> Config: ...
def encode_config(is_segmented: _Int, shift: _Int) -> int: ...
def decode_limits(eax: _Int, ebx: _Int) -> Limits: ...
def decode_segment(word: _Int) -> Segment: ...
def decode_segments(words: _U64) -> npt.NDArray[np.void]: ...
def encode_segments(records: npt.NDArray[np.void]) -> _U64: ...
def contiguous(base: _Int, end: _Int) -> Geometry: ...
def segments(
    rst: _U64,
    cfg: _Int,
    base: _Int,
    *,
    limits: Limits | None = None,
    is_reduced: bool = False,
) -> Geometry: ...
def entry_addresses(geometry: Geometry, pfns: _U64) -> _U64: ...
def has_entry(geometry: Geometry, pfns: _U64) -> npt.NDArray[np.bool_]: ...
def pages_of(geometry: Geometry, spas: _U64) -> _U64: ...
def coverage(geometry: Geometry) -> _U64: ...
def places(geometry: Geometry) -> tuple[npt.NDArray[np.int32], _U64]: ...

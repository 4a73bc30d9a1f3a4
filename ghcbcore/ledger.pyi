from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Self, TypeAlias, final

import numpy as np
import numpy.typing as npt

from ghcbcore.frame import Op

__all__ = ["MAX_PAGES", "RECORD_DTYPE", "Done", "Frame", "Ledger", "Snapshot"]

_Int: TypeAlias = int | np.integer[Any]
_U64: TypeAlias = npt.NDArray[np.uint64]
_U32: TypeAlias = npt.NDArray[np.uint32]

MAX_PAGES: Final[int]
RECORD_DTYPE: Final[np.dtype[np.void]]

class Done(NamedTuple):
    event: int
    n_done: int
    n_changed: int
    result: int

class Frame(NamedTuple):
    word: int
    gfn: int
    since: tuple[int, ...]

@final
class Ledger:
    def __new__(
        cls,
        n_pages: _Int,
        *,
        covered: _Int | None = None,
        max_asid: _Int = 1006,
        rules: _Int = 0,
        max_bytes: _Int | None = None,
    ) -> Self: ...
    @property
    def n_pages(self) -> int: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def n_records(self) -> int: ...
    @property
    def event(self) -> int: ...
    @property
    def n_blurred(self) -> int: ...
    def range(self, op: Op, first: _Int, n_pages: _Int) -> Done: ...
    def array(self, op: Op | Sequence[Op], frames: _U64) -> Done: ...
    def spans(self, op: Op, firsts: _U64, lengths: _U64) -> Done: ...
    def move(self, source: _Int, destination: _Int, asid: _Int, size: _Int = 0) -> Done: ...
    def load(self, first: _Int, entries: npt.NDArray[np.void]) -> None: ...
    def frame(self, at: _Int) -> Frame: ...
    def snapshot(self) -> Snapshot: ...

@final
class Snapshot:
    def __new__(cls, ledger: Ledger) -> Self: ...
    @property
    def ledger(self) -> Ledger: ...
    def records(self) -> npt.NDArray[np.void]: ...
    def count(self, classes: _U32, first: _Int = 0, n_pages: _Int | None = None) -> _U64: ...
    def runs(
        self,
        classes: _U32,
        first: _Int = 0,
        n_pages: _Int | None = None,
        max_runs: _Int = 1 << 20,
    ) -> tuple[_U64, _U64, _U32, int]: ...
    def differences(
        self,
        later: Snapshot,
        views: _Int = 31,
        first: _Int = 0,
        n_pages: _Int | None = None,
        max_runs: _Int = 1 << 20,
    ) -> tuple[_U64, _U64, _U32, int]: ...
    def ids(self, frames: _U64) -> _U32: ...
    def entries(
        self, first: _Int, n_pages: _Int, *, as_stored: bool = False
    ) -> npt.NDArray[np.void]: ...
    def rmpread(self, frames: _U64) -> npt.NDArray[np.void]: ...

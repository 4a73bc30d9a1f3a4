from typing import Final, SupportsIndex, final

import numpy as np
import numpy.typing as npt

__all__ = ["EVENT_DTYPE", "MAX_CPUS", "MAX_LINES", "MAX_OPS", "OP_DTYPE", "Explorer"]

EVENT_DTYPE: Final[np.dtype[np.void]]
MAX_CPUS: Final[int]
MAX_LINES: Final[int]
MAX_OPS: Final[int]
OP_DTYPE: Final[np.dtype[np.void]]

@final
class Explorer:
    def __init__(
        self,
        ops: npt.NDArray[np.void],
        n_cpus: SupportsIndex,
        memory: npt.NDArray[np.uint64],
        *,
        never: npt.NDArray[np.uint64] | None = None,
        coherent: bool = False,
        max_bytes: SupportsIndex = ...,
    ) -> None: ...
    @property
    def n_cpus(self) -> int: ...
    @property
    def n_lines(self) -> int: ...
    @property
    def n_words(self) -> int: ...
    @property
    def n_states(self) -> int: ...
    @property
    def n_events(self) -> int: ...
    @property
    def is_complete(self) -> bool: ...
    def run(self, *, stop: bool = False, deep: bool = False) -> bool: ...
    def results(
        self,
    ) -> list[tuple[int, tuple[int, ...], tuple[int, ...], tuple[bool, ...]]]: ...
    def bad_loads(self) -> list[tuple[int, int, int]]: ...
    def path(self, state: SupportsIndex) -> npt.NDArray[np.void]: ...

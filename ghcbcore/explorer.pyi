from typing import SupportsIndex, final

import numpy as np
import numpy.typing as npt

from ghcbcore.statespace import MemoryLimit, NarrowIds, StateSpace

__all__ = ["Explorer", "MemoryLimit", "NarrowIds"]

@final
class Explorer(StateSpace):
    @property
    def n_threads(self) -> int: ...
    def reach_back(self, marks: npt.NDArray[np.uint8]) -> None: ...
    def expand(
        self,
        first: SupportsIndex,
        end: SupportsIndex,
        skip: npt.NDArray[np.uint8] | None = None,
    ) -> None: ...
    def edges(
        self,
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint32]]: ...

from typing import Final, SupportsIndex, final

import numpy as np
import numpy.typing as npt

from ghcbcore.machine import Program

__all__ = ["EVENT_DTYPE", "Simulator"]

EVENT_DTYPE: Final[np.dtype[np.void]]

@final
class Simulator:
    def __init__(
        self, program: Program, record: npt.NDArray[np.uint64], seed: SupportsIndex
    ) -> None: ...
    @property
    def program(self) -> Program: ...
    @property
    def record(self) -> npt.NDArray[np.uint64]: ...
    @property
    def executed(self) -> npt.NDArray[np.uint64]: ...
    @property
    def now_ns(self) -> int: ...
    @property
    def n_steps(self) -> int: ...
    @property
    def n_others(self) -> int: ...
    def advance(self, max_steps: SupportsIndex) -> bool: ...
    def events(self) -> npt.NDArray[np.void]: ...

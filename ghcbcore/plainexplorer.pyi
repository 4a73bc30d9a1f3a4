from typing import final

import numpy as np
import numpy.typing as npt

from ghcbcore.machine import Program

__all__ = ["PlainExplorer"]

@final
class PlainExplorer:
    def __init__(
        self, program: Program, record: npt.NDArray[np.uint64], *, symmetric: bool = False
    ) -> None: ...
    @property
    def program(self) -> Program: ...
    @property
    def states(self) -> dict[bytes, bytes | None]: ...
    @property
    def n_states(self) -> int: ...
    @property
    def n_transitions(self) -> int: ...
    @property
    def terminals(self) -> list[bytes]: ...
    def explore(self) -> None: ...

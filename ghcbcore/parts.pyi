from typing import Self, SupportsIndex, final

import numpy as np
import numpy.typing as npt

__all__ = ["Parts"]

@final
class Parts:
    def __new__(cls, width: SupportsIndex) -> Self: ...
    def table(self) -> npt.NDArray[np.uint64]: ...

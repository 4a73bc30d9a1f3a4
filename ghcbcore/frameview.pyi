from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["VIEW_DTYPE", "decode"]

_U64: TypeAlias = npt.NDArray[np.uint64]

VIEW_DTYPE: Final[np.dtype[np.void]]

def decode(
    words: _U64, gfns: _U64, asid: int | np.integer[Any], frames: _U64 | None = None
) -> npt.NDArray[np.void]: ...

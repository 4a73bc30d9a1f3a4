from typing import SupportsIndex

import numpy as np
import numpy.typing as npt

__all__ = ["components"]

def components(
    n_states: SupportsIndex,
    source: npt.NDArray[np.uint32],
    target: npt.NDArray[np.uint32],
) -> npt.NDArray[np.uint32]: ...

from typing import Final, final

import numpy as np
import numpy.typing as npt

__all__ = ["LINE_DTYPE", "Scanner", "format_lines"]

LINE_DTYPE: Final[np.dtype[np.void]]

@final
class Scanner:
    @property
    def n_lines(self) -> int: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def cut(self) -> bool: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    def scan(
        self,
        data: bytes | bytearray | memoryview | npt.NDArray[np.uint8],
        out: npt.NDArray[np.void],
    ) -> tuple[int, int]: ...
    def finish(self, out: npt.NDArray[np.void]) -> int: ...

def format_lines(lines: npt.NDArray[np.void]) -> npt.NDArray[np.uint8]: ...

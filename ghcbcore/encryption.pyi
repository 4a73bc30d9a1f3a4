from typing import Any, Final, Literal, Self, TypeAlias, final

import numpy as np
import numpy.typing as npt

__all__ = ["PUBLISHED_TWEAKS", "Cipher", "random_tweaks"]

_U8: TypeAlias = npt.NDArray[np.uint8]
_Data: TypeAlias = _U8 | bytes | bytearray | memoryview
_Int: TypeAlias = int | np.integer[Any]
_Mode: TypeAlias = Literal["xe", "xex", "xts"]

PUBLISHED_TWEAKS: Final[_U8]

def random_tweaks(seed: _Int) -> _U8: ...

@final
class Cipher:
    @property
    def mode(self) -> str: ...
    @property
    def unit_bytes(self) -> int: ...
    @property
    def n_channels(self) -> int: ...
    @property
    def channel_bytes(self) -> int: ...
    def __new__(
        cls,
        mode: _Mode,
        key: _Data,
        tweaks: _U8 | None = None,
        *,
        unit_bytes: _Int = 64,
        n_channels: _Int = 1,
        channel_bytes: _Int = 4096,
    ) -> Self: ...
    def encrypt(self, data: _Data, spa: _Int, out: _U8 | None = None) -> _U8: ...
    def decrypt(self, data: _Data, spa: _Int, out: _U8 | None = None) -> _U8: ...
    def moved(self, data: _Data, spa: _Int, new_spa: _Int, out: _U8 | None = None) -> _U8: ...
    def tweak(self, spa: _Int) -> bytes: ...

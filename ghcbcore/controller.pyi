from typing import Any, Literal, Self, TypeAlias, final

import numpy as np
import numpy.typing as npt

from ghcbcore.encryption import Cipher

__all__ = ["Controller"]

_U8: TypeAlias = npt.NDArray[np.uint8]
_Data: TypeAlias = _U8 | bytes | bytearray | memoryview
_Int: TypeAlias = int | np.integer[Any]
_Mode: TypeAlias = Literal["xe", "xex", "xts"]

@final
class Controller:
    hides_ciphertext: bool
    @property
    def mode(self) -> str: ...
    @property
    def n_asids(self) -> int: ...
    def __new__(
        cls,
        mode: _Mode,
        n_asids: _Int,
        seed: _Int,
        *,
        key_bytes: _Int | None = None,
        tweaks: _U8 | None = None,
        unit_bytes: _Int = 64,
        n_channels: _Int = 1,
        channel_bytes: _Int = 4096,
    ) -> Self: ...
    def install(self, domain: _Int, key: _Data | None = None) -> None: ...
    def deactivate(self, domain: _Int) -> None: ...
    def zero_all(self) -> None: ...
    def is_active(self, domain: _Int) -> bool: ...
    def cipher(self, domain: _Int) -> Cipher | None: ...
    def encrypt(self, data: _Data, spa: _Int, domain: _Int, out: _U8 | None = None) -> _U8: ...
    def decrypt(self, data: _Data, spa: _Int, domain: _Int, out: _U8 | None = None) -> _U8: ...
    def seen(
        self,
        data: _Data,
        spa: _Int,
        writer: _Int,
        reader: _Int,
        out: _U8 | None = None,
        *,
        new_spa: _Int | None = None,
    ) -> _U8: ...
    def host_reads(
        self,
        data: _Data,
        spa: _Int,
        is_snp: npt.NDArray[np.bool_],
        out: _U8 | None = None,
        *,
        domain: _Int = 0,
    ) -> _U8: ...

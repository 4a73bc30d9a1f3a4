from collections.abc import Sequence
from typing import Any, Final, NamedTuple, SupportsIndex, final

import numpy as np
import numpy.typing as npt

__all__ = ["CORRUPT_DTYPE", "DIRTY_DTYPE", "MAX_CORES", "Cache", "Counts", "bytes_for"]

CORRUPT_DTYPE: Final[np.dtype[np.void]]
DIRTY_DTYPE: Final[np.dtype[np.void]]
MAX_CORES: Final[int]

class Counts(NamedTuple):
    loads: int
    stores: int
    l1_hits: int
    l2_hits: int
    l3_hits: int
    other_hits: int
    fills: int
    write_backs: int

def bytes_for(
    levels: Sequence[tuple[int, int]], n_cores: SupportsIndex = 1, cores_per_l3: SupportsIndex = 1
) -> int: ...

@final
class Cache:
    def __init__(
        self,
        levels: Sequence[tuple[int, int]],
        n_cores: SupportsIndex = 1,
        cores_per_l3: SupportsIndex = 1,
        *,
        replacement: str = "lru",
        inclusive: bool = True,
        coherent: bool = False,
        track: bool = True,
        seed: SupportsIndex = 0,
        max_bytes: SupportsIndex = ...,
    ) -> None: ...
    @property
    def n_cores(self) -> int: ...
    @property
    def cores_per_l3(self) -> int: ...
    @property
    def n_levels(self) -> int: ...
    @property
    def coherent(self) -> bool: ...
    @property
    def inclusive(self) -> bool: ...
    @property
    def track(self) -> bool: ...
    @property
    def counts(self) -> Counts: ...
    @property
    def n_bytes(self) -> int: ...
    def access(
        self,
        lines: npt.NDArray[np.uint64],
        stores: bool | npt.NDArray[np.bool_] = False,
        *,
        slots: SupportsIndex | npt.NDArray[np.uint16] = 0,
        cores: SupportsIndex | npt.NDArray[np.uint32] = 0,
    ) -> Counts: ...
    def clflush(self, lines: npt.NDArray[np.uint64], slot: SupportsIndex) -> None: ...
    def vm_page_flush(self, pfn: SupportsIndex, asid: SupportsIndex) -> None: ...
    def wbinvd(self, core: SupportsIndex | None = None) -> int: ...
    def wbnoinvd(self, core: SupportsIndex | None = None) -> int: ...
    def invd(self, core: SupportsIndex | None = None) -> int: ...
    def evict(self, n: SupportsIndex) -> int: ...
    def forget(self, lines: npt.NDArray[np.uint64] | None = None) -> None: ...
    def census(self) -> npt.NDArray[np.uint64]: ...
    def dirty(self) -> npt.NDArray[Any]: ...
    def corrupted(self) -> npt.NDArray[Any]: ...

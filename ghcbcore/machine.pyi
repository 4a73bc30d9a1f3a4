from collections.abc import Sequence
from typing import Final, Self, SupportsIndex, final

import numpy as np
import numpy.typing as npt

from ghcbcore.frame import Op
from ghcbcore.profile import Profile

__all__ = [
    "ALT_DTYPE",
    "FRAME_OP_DTYPE",
    "INSN_DTYPE",
    "MAX_FRAMES",
    "PLACE_DTYPE",
    "REACH_OP_DTYPE",
    "REGION_DTYPE",
    "ROLE_DTYPE",
    "Program",
]

ALT_DTYPE: Final[np.dtype[np.void]]
FRAME_OP_DTYPE: Final[np.dtype[np.void]]
INSN_DTYPE: Final[np.dtype[np.void]]
MAX_FRAMES: Final[int]
PLACE_DTYPE: Final[np.dtype[np.void]]
REACH_OP_DTYPE: Final[np.dtype[np.void]]
REGION_DTYPE: Final[np.dtype[np.void]]
ROLE_DTYPE: Final[np.dtype[np.void]]

@final
class Program:
    def __new__(
        cls,
        insns: npt.NDArray[np.void],
        alts: npt.NDArray[np.void],
        roles: npt.NDArray[np.void],
        n_global: SupportsIndex,
        n_slice: SupportsIndex,
        profile: Profile,
        frame_ops: Sequence[Op] | None = None,
        regions: Sequence[tuple[int, int]] | None = None,
        place_ops: npt.NDArray[np.void] | None = None,
        places: npt.NDArray[np.void] | None = None,
    ) -> Self: ...
    @property
    def insns(self) -> npt.NDArray[np.void]: ...
    @property
    def alts(self) -> npt.NDArray[np.void]: ...
    @property
    def roles(self) -> npt.NDArray[np.void]: ...
    @property
    def positions(self) -> npt.NDArray[np.uint32]: ...
    @property
    def n_global(self) -> int: ...
    @property
    def n_slice(self) -> int: ...
    @property
    def n_roles(self) -> int: ...
    @property
    def frame_ops(self) -> npt.NDArray[np.void]: ...
    @property
    def regions(self) -> npt.NDArray[np.void]: ...
    @property
    def place_ops(self) -> npt.NDArray[np.void]: ...
    @property
    def places(self) -> npt.NDArray[np.void]: ...
    @property
    def profile(self) -> Profile: ...
    @property
    def ordered(self) -> bool: ...
    def n_cpus(self, record: npt.NDArray[np.uint64]) -> int: ...
    def moves(self, record: npt.NDArray[np.uint64]) -> list[tuple[int, int, int]]: ...
    def step(
        self,
        record: npt.NDArray[np.uint64],
        alt: SupportsIndex,
        own: SupportsIndex = -1,
        other: SupportsIndex = -1,
    ) -> None: ...
    def traced_step(
        self,
        record: npt.NDArray[np.uint64],
        events: npt.NDArray[np.void],
        alt: SupportsIndex,
        own: SupportsIndex = -1,
        other: SupportsIndex = -1,
        *,
        now_ns: SupportsIndex = 0,
    ) -> int: ...

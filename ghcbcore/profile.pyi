from collections.abc import Iterable
from typing import Final, SupportsIndex, final

import numpy as np
import numpy.typing as npt

__all__ = ["CPUID_DTYPE", "KVM_MSR_FUNCTIONS", "KVM_NAE_EVENTS", "Profile"]

CPUID_DTYPE: Final[np.dtype[np.void]]
KVM_MSR_FUNCTIONS: Final[tuple[int, ...]]
KVM_NAE_EVENTS: Final[tuple[int, ...]]

@final
class Profile:
    def __init__(
        self,
        *,
        guest: SupportsIndex = ...,
        min_version: SupportsIndex = 1,
        max_version: SupportsIndex = 2,
        c_bit: SupportsIndex = 51,
        hv_features: SupportsIndex = 3,
        sev_features: SupportsIndex | None = None,
        rules: Iterable[SupportsIndex] = (),
        msr_functions: Iterable[SupportsIndex] | None = None,
        nae_events: Iterable[SupportsIndex] | None = None,
        cpuid: Iterable[Iterable[int]] = (),
        faults: Iterable[SupportsIndex] = (),
        fault_seed: SupportsIndex = 0,
        fault_rate: SupportsIndex = 1,
    ) -> None: ...
    @property
    def guest(self) -> int: ...
    @property
    def rules(self) -> int: ...
    @property
    def cpuid(self) -> npt.NDArray[np.void]: ...

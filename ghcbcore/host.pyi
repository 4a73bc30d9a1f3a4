from collections.abc import Iterable
from typing import Final, SupportsIndex, final

import numpy as np
import numpy.typing as npt

__all__ = ["CPUID_DTYPE", "VCPU_DTYPE", "VM_DTYPE", "Host", "Profile"]

CPUID_DTYPE: Final[np.dtype[np.void]]
VCPU_DTYPE: Final[np.dtype[np.void]]
VM_DTYPE: Final[np.dtype[np.void]]

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
        cpuid: Iterable[Iterable[int]] = (),
    ) -> None: ...
    @property
    def guest(self) -> int: ...
    @property
    def cpuid(self) -> npt.NDArray[np.void]: ...

@final
class Host:
    def __init__(self, profile: Profile, n_vcpus: SupportsIndex) -> None: ...
    @property
    def profile(self) -> Profile: ...
    @property
    def vm(self) -> npt.NDArray[np.void]: ...
    @property
    def vcpus(self) -> npt.NDArray[np.void]: ...
    def msr(self, cpu: SupportsIndex, value: SupportsIndex) -> int: ...
    def msr_batch(
        self,
        cpus: npt.NDArray[np.uint32],
        values: npt.NDArray[np.uint64],
        out: npt.NDArray[np.uint64] | None = None,
    ) -> npt.NDArray[np.uint64]: ...
    def page(
        self, cpu: SupportsIndex, page: npt.NDArray[np.uint8] | bytearray, gpa: SupportsIndex
    ) -> None: ...
    def call(self, cpu: SupportsIndex, function: SupportsIndex) -> None: ...

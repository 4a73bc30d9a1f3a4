from typing import Any, Final, NamedTuple, SupportsIndex, final

import numpy as np
import numpy.typing as npt

from ghcbcore.device import Device as _Device
from ghcbcore.profile import Profile as _Profile

__all__ = ["VCPU_DTYPE", "VM_DTYPE", "Host", "Interface"]

VCPU_DTYPE: Final[np.dtype[np.void]]
VM_DTYPE: Final[np.dtype[np.void]]

class Interface(NamedTuple):
    owner: Host
    address: int
    ops: Any

@final
class Host:
    def __init__(
        self, profile: _Profile, n_vcpus: SupportsIndex, device: _Device | None = None
    ) -> None: ...
    @property
    def profile(self) -> _Profile: ...
    @property
    def device(self) -> _Device | None: ...
    @property
    def vm(self) -> npt.NDArray[np.void]: ...
    @property
    def vcpus(self) -> npt.NDArray[np.void]: ...
    @property
    def capsule(self) -> object: ...
    @property
    def cffi(self) -> Interface: ...
    @property
    def ctypes(self) -> Interface: ...
    @property
    def event(self) -> int: ...
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
    def page_batch(
        self,
        cpus: npt.NDArray[np.uint32],
        pages: npt.NDArray[np.uint8],
        gpas: npt.NDArray[np.uint64],
    ) -> None: ...
    def call(self, cpu: SupportsIndex, function: SupportsIndex) -> None: ...

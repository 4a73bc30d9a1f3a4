from collections.abc import Callable, Iterable
from typing import SupportsIndex, final

__all__ = ["Device"]

@final
class Device:
    def __init__(
        self,
        kinds: Iterable[SupportsIndex],
        access: Callable[
            [int, int, int, bool, int, int, tuple[int, int, int, int], bytes | bytearray | None],
            int | tuple[int, int] | None,
        ]
        | None = None,
        memory: Callable[[int, bytes | bytearray, bool], bool] | None = None,
    ) -> None: ...
    @staticmethod
    def from_address(address: SupportsIndex, owner: object = None) -> Device: ...

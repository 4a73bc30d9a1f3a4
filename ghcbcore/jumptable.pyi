from typing import NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "GDT_OFFSET",
    "OPERAND_OFFSET",
    "PARK_CODE",
    "Descriptor",
    "JumpTablePage",
    "build_page",
    "check_gpa",
    "decode_page",
    "install",
    "reset_vector",
    "set_reset_vector",
]

PARK_CODE: bytes
GDT_OFFSET: int
OPERAND_OFFSET: int

class Descriptor(NamedTuple):
    selector: int
    name: str
    base: int
    limit: int
    access: int
    flags: int

class JumpTablePage(NamedTuple):
    reset_ip: int
    reset_cs: int
    has_park_code: bool
    gpa: int | None
    last_jump: tuple[int, int] | None
    gdt: tuple[Descriptor, ...]
    problems: tuple[str, ...]

def check_gpa(gpa: SupportsIndex) -> bool: ...
def build_page(
    gpa: SupportsIndex, *, reset_ip: SupportsIndex = 0, reset_cs: SupportsIndex = 0
) -> NDArray[np.uint8]: ...
def install(page: NDArray[np.uint8], gpa: SupportsIndex) -> None: ...
def set_reset_vector(page: NDArray[np.uint8], ip: SupportsIndex, cs: SupportsIndex) -> None: ...
def reset_vector(page: NDArray[np.uint8]) -> tuple[int, int]: ...
def decode_page(page: NDArray[np.uint8], *, gpa: SupportsIndex | None = None) -> JumpTablePage: ...

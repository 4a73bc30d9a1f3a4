from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "RMP_DTYPE",
    "Entry",
    "Table",
    "bytes_for",
    "decode",
    "decode_one",
    "encode",
    "encode_one",
    "entry_addresses",
    "pages_of",
    "table",
]

_U64: TypeAlias = npt.NDArray[np.uint64]
_Int: TypeAlias = int | np.integer[Any]
_Layout: TypeAlias = Literal["raw", "arch"]

RMP_DTYPE: Final[np.dtype[np.void]]

class Entry(NamedTuple):
    gpa: int = 0
    asid: int = 0
    subpages: int = 0
    assigned: int = 0
    page_size: int = 0
    immutable: int = 0
    vmsa: int = 0
    validated: int = 0
    lock: int = 0
    vmpl0: int = 0
    vmpl1: int = 0
    vmpl2: int = 0
    vmpl3: int = 0
    implicit_key: int = 0
    root_port: int = 0
    ide_stream: int = 0
    migration: int = 0
    region: int = 0
    state: int = 0
    status: int = 0

class Table(NamedTuple):
    base: int
    end: int
    n_entries: int
    entries: int
    large_start: int
    large_end: int
    is_aligned: int

def decode(
    entries: _U64 | npt.NDArray[np.uint8],
    layout: _Layout = "raw",
    out: npt.NDArray[np.void] | None = None,
) -> npt.NDArray[np.void]: ...
def decode_one(low: _Int, high: _Int, layout: _Layout = "raw") -> Entry: ...
def encode(records: npt.NDArray[np.void], layout: _Layout = "raw") -> _U64: ...
def encode_one(entry: Entry, layout: _Layout = "raw") -> tuple[int, int]: ...
def bytes_for(n_pages: _Int) -> int: ...
def table(base: _Int, end: _Int) -> Table: ...
def entry_addresses(given: Table, pfns: _U64) -> _U64: ...
def pages_of(given: Table, spas: _U64) -> _U64: ...

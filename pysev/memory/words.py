"""Words for what the ledger answers: results, states, events.

Source: ``pysev.tables.frames``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange
from ghcbcore.frame import result as take_apart
from pysev.decode.fault import explain_npf, explain_pf
from pysev.tables.firmware import FIRMWARE_STATUS
from pysev.tables.frames import (
    CODES,
    DISAGREEMENTS,
    LEAVES,
    LISTED,
    MAPPINGS,
    OPERATIONS,
    VIEWS,
    WHO_DISAGREES,
)
from pysev.tables.rmp import RIGHTS, STATES
from pysev.tables.schema import Code

__all__ = [
    "DEFAULT_DISAGREEMENTS",
    "DISAGREEMENT_NUMBERS",
    "DISAGREEMENT_TEXTS",
    "FIRMWARE_NAMES",
    "LEAF_NAMES",
    "LEAF_NUMBERS",
    "LISTED_NAMES",
    "LISTED_NUMBERS",
    "MAPPING_NAMES",
    "MAPPING_NUMBERS",
    "MAX_ASID",
    "MAX_WORD",
    "OPERATION_NAMES",
    "STATE_NAMES",
    "STATE_TEXTS",
    "VIEWS_OF_DISAGREEMENT",
    "VIEW_NAMES",
    "disagreements_of",
    "event_number",
    "explain_result",
    "is_earlier",
    "key_name",
    "number_of",
    "rights_of",
    "rights_text",
    "views_of",
    "youngest",
]


def _names(rows: Sequence[Code]) -> Mapping[int, str]:
    return MappingProxyType({row.code: row.name for row in rows})


def _numbers(rows: Sequence[Code]) -> Mapping[str, int]:
    return MappingProxyType({row.name: row.code for row in rows})


STATE_NAMES = _names(STATES)
STATE_TEXTS = MappingProxyType({row.name: row.what for row in STATES})
VIEW_NAMES = tuple(row.name for row in VIEWS)
MAPPING_NAMES = _names(MAPPINGS)
MAPPING_NUMBERS = _numbers(MAPPINGS)
LEAF_NAMES = _names(LEAVES)
LEAF_NUMBERS = _numbers(LEAVES)
LISTED_NAMES = _names(LISTED)
LISTED_NUMBERS = _numbers(LISTED)
OPERATION_NAMES = _names(OPERATIONS)
FIRMWARE_NAMES = tuple(
    row.name.replace(", ", "/")  # one word
    for row in OPERATIONS
    if lib.FRAME_OP_GCTX_CREATE <= row.code < lib.FRAME_OP_LEAF
)
MAX_ASID = int(lib.GHCB_KEY_SLOT_SME)
MAX_WORD = int(np.iinfo(np.uint64).max)
DISAGREEMENT_NUMBERS = _numbers(DISAGREEMENTS)
DISAGREEMENT_TEXTS = MappingProxyType({row.name: row.what for row in DISAGREEMENTS})
VIEWS_OF_DISAGREEMENT = MappingProxyType(dict(WHO_DISAGREES))
DEFAULT_DISAGREEMENTS = tuple(
    row.name
    for row in DISAGREEMENTS
    if row.code not in (lib.FRAME_DIFFER_CONTENT_PRIVATE, lib.FRAME_DIFFER_CONTENT_SHARED)
)


def disagreements_of(differ: int) -> list[str]:
    """Return the names of a set of disagreements."""
    return [row.name for row in DISAGREEMENTS if differ >> row.code & 1]


def views_of(views: int) -> list[str]:
    """Return the names of a set of views."""
    return [row.name for row in VIEWS if views >> row.code & 1]


def event_number(since: int) -> int:
    """Return the event of a history; ``is_earlier`` says whether it may have been one before."""
    return since & lib.GHCB_SINCE_EVENT


def is_earlier(since: int) -> bool:
    """Whether a history was cut for want of memory: this event or one before it."""
    return since > lib.GHCB_SINCE_EVENT


def youngest(since: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Return the last event of several histories of shape (n, views), and whether that is exact."""
    events = since & np.uint32(lib.GHCB_SINCE_EVENT)
    last: NDArray[np.uint32] = events.max(axis=1)
    is_cut = (since > np.uint32(lib.GHCB_SINCE_EVENT)) & (events == last[:, np.newaxis])
    return last, ~is_cut.any(axis=1)


def number_of(name: str, numbers: Mapping[str, int], what: str) -> int:
    """Return the number of a name, or raise ``OutOfRange`` with those that there are."""
    if name not in numbers:
        raise OutOfRange(f"{what} {name!r}: must be one of {', '.join(numbers)}")
    return numbers[name]


def key_name(slot: int) -> str:
    """Return a key slot in words."""
    if slot == lib.FRAME_KEY_NONE:
        return "never written"
    if slot == lib.GHCB_KEY_SLOT_NONE:
        return "plain"
    return "SME" if slot == lib.GHCB_KEY_SLOT_SME else f"ASID {slot}"


def rights_text(rights: int) -> str:
    """Return rights as letters, ``-`` for those that are missing, e.g. ``rw---``."""
    return "".join(row.what if rights >> row.code & 1 else "-" for row in RIGHTS)


def rights_of(letters: str) -> int:
    """Return the rights of letters, in any order; the reverse of ``rights_text``."""
    numbers = {row.what: row.code for row in RIGHTS}
    found = {number_of(letter, numbers, "right") for letter in letters if letter != "-"}
    return sum(1 << bit for bit in found)


def explain_result(result: int) -> str:
    """Say in words what refused an operation; an empty string if nothing did.

    Examples
    --------
    >>> explain_result(0x0040000000000000)
    'FAIL_OVERLAP (4): a 4 KiB and a 2 MiB page overlap'
    """
    one = take_apart(result)
    if one.kind == lib.FRAME_RESULT_PF:
        return f"#PF {one.bits:#x}: {explain_pf(one.bits).sentence}"
    if one.kind == lib.FRAME_RESULT_NPF:
        return f"#NPF {one.bits:#x}: {explain_npf(one.bits).sentence}"
    if one.kind == lib.FRAME_RESULT_VC:
        return "#VC: the page is not validated"
    if one.kind == lib.FRAME_RESULT_GP:
        return "#GP: only VMPL 0 may do that"
    if one.kind == lib.FRAME_RESULT_DMA:
        return "the IOMMU refuses: the page is assigned"
    if one.kind == lib.FRAME_RESULT_STATUS:
        for status in FIRMWARE_STATUS:
            if status.code == one.code:
                return f"status {one.code:#04x} {status.name}: {status.what}"
        return f"status {one.code:#04x}"
    if not one.code:
        return ""
    for row in CODES:
        if row.code == one.code:
            return f"{row.name} ({row.code}): {row.what}"
    return f"code {one.code}"

"""Steps that are given to firmware: commands with their arguments, and what threads do."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import Any

import numpy as np

from ghcbcore import errors
from ghcbcore import firmware as core
from ghcbcore._cffi import lib
from ghcbcore.firmware import STEP_DTYPE

from .tables.firmware import COMMANDS
from .tables.firmware_model import BADS, NUMBERS, OPTIONS

__all__ = [
    "NAME_OF",
    "NUMBER_OF",
    "NotModelled",
    "bad_names",
    "command_number",
    "command_step",
    "thread_step",
]

NUMBER_OF = {code.name: int(code.code) for code in COMMANDS}
NAME_OF = {number: name for name, number in NUMBER_OF.items()}
BAD_BITS = {code.name: int(code.code) for code in BADS}
THREAD_STEPS = {
    "WBINVD": lib.GHCB_FW_STEP_WBINVD,
    "WBNOINVD": lib.GHCB_FW_STEP_WBNOINVD,
    "VMRUN": lib.GHCB_FW_STEP_VMRUN,
    "VMEXIT": lib.GHCB_FW_STEP_VMEXIT,
}


class NotModelled(errors.SevError, NotImplementedError):
    """The command exists, and no source at hand says what firmware checks and does."""


def command_number(command: str | int) -> int:
    """Return the id of a command; names are those of ``pysev.tables.firmware.COMMANDS``."""
    if not isinstance(command, str):
        return index(command)
    found = NUMBER_OF.get(command.upper())
    if found is None:
        raise errors.OutOfRange(f"command {command!r}: firmware has none of this name")
    return found


def bad_names(bad: str | Iterable[str]) -> list[str]:
    """Return the names in ``bad``: in one string they have commas between them."""
    return [one for one in bad.split(",") if one] if isinstance(bad, str) else list(bad)


def command_step(command: str | int, *, bad: str | Iterable[str] = (), **arguments: int) -> Any:
    """Return one command as a record of STEP_DTYPE.

    Parameters
    ----------
    command : str or int
        Its name (``"SNP_DECOMMISSION"``) or id.
    guest : int
        Slot of the guest: SEV's handle, SNP's context page.
    asid, ccxs, pages, policy, length, max_snp_asid, target : int
        See ``NUMBERS`` for who takes which. ``ccxs``: bit x for CCX x. ``pages``: how many pages
        the RMP still assigns to the ASID. ``length`` is right if it is not given.
    init_rmp, list, ciphertext_hiding, iommu, x86, es, vm_import, vm_absorb, image : 0 or 1
        See ``OPTIONS``.
    bad : str or iterable of str
        What is wrong with what the command brings: names of ``BADS``, as far as the command looks;
        in one string with commas between them.

    Raises
    ------
    OutOfRange
        No such command, argument or ``bad`` of this command, or a value that cannot be.
    """
    number = command_number(command)
    name = NAME_OF.get(number, f"{number:#x}")
    step = np.zeros((), STEP_DTYPE)
    if not 0 <= number < 1 << 32:
        raise errors.OutOfRange(f"command {number:#x}: must be below 2**32")
    step["op"]["command"] = number
    step["op"]["length"] = lib.SEV_FW_SHUTDOWN_EX_BYTES
    for key, value in arguments.items():
        known = NUMBERS.get(key) or (OPTIONS[key][1] if key in OPTIONS else ())
        if key != "guest" and name not in known:
            raise errors.OutOfRange(f"{name}: takes no {key!r}")
        if key in OPTIONS:
            if value not in (0, 1):
                raise errors.OutOfRange(f"{name}: {key} = {value}: must be 0 or 1")
            step["op"]["options"] |= OPTIONS[key][0] * value
            continue
        if not 0 <= index(value) < 1 << 64:
            raise errors.OutOfRange(f"{name}: {key} = {value}: must be 0 to 2**64 - 1")
        step["op"]["limit" if key == "max_snp_asid" else key] = value
    possible = core.bads(number)
    for one in bad_names(bad):
        bit = BAD_BITS.get(one, 0)
        if not bit & possible:
            may = ", ".join(word for word, b in BAD_BITS.items() if b & possible) or "nothing"
            raise errors.OutOfRange(f"{name}: bad {one!r}: what can be bad is {may}")
        step["op"]["bad"] |= bit
    return step


def thread_step(what: str, thread: int | None = None, *, asid: int = 0) -> Any:
    """Return what a thread does, WBINVD, WBNOINVD, VMRUN or VMEXIT, as a record of STEP_DTYPE.

    ``thread`` None: every one that is online, for WBINVD and WBNOINVD.
    """
    kind = THREAD_STEPS.get(what.upper())
    if kind is None:
        raise errors.OutOfRange(f"{what!r}: must be one of {', '.join(THREAD_STEPS)}")
    if not 0 <= asid < 1 << 64:
        raise errors.OutOfRange(f"asid = {asid}: must be 0 to 2**64 - 1")
    step = np.zeros((), STEP_DTYPE)
    step["step"] = kind
    step["thread"] = lib.GHCB_FW_ALL_THREADS if thread is None else index(thread)
    step["op"]["asid"] = asid
    return step

"""The exceptions of the core, one for each status of ``ghcbcore/status.h``.

The core says what is wrong; the role that knows the sender says who (``GuestFault``,
``HypervisorFault``). ``raise_status`` is the one place where a status becomes an exception.
"""

from __future__ import annotations

from ._cffi import lib as _lib

__all__ = [
    "BY_STATUS",
    "CodeMismatch",
    "EchoMismatch",
    "GuestFault",
    "HypervisorFault",
    "OutOfRange",
    "ReservedBitsSet",
    "SevError",
    "StateConflict",
    "Terminated",
    "Unaligned",
    "UnknownCode",
    "raise_status",
]


class SevError(Exception):
    """Root of all errors of pysev; ``status`` is the core's status code, 0 where there is none."""

    status: int = 0


class CodeMismatch(SevError):
    """The code of an answer does not belong to the request."""

    status = _lib.GHCB_E_CODE_MISMATCH


class ReservedBitsSet(SevError):
    """A field that must be zero is not zero."""

    status = _lib.GHCB_E_RESERVED_BITS


class EchoMismatch(SevError):
    """An answer repeats a different value than was sent."""

    status = _lib.GHCB_E_ECHO_MISMATCH


class StateConflict(SevError):
    """A page or CPU is not in a state that allows this."""

    status = _lib.GHCB_E_STATE_CONFLICT


class OutOfRange(SevError, ValueError):
    """A value does not fit its field or its space."""

    status = _lib.GHCB_E_OUT_OF_RANGE


class Unaligned(SevError, ValueError):
    """An address or frame lacks its alignment."""

    status = _lib.GHCB_E_UNALIGNED


class UnknownCode(SevError):
    """No row of the protocol has this code."""

    status = _lib.GHCB_E_UNKNOWN_CODE


class GuestFault(SevError):
    """The guest broke a rule; the cause says which."""


class HypervisorFault(SevError):
    """The hypervisor broke a rule; the cause says which."""


class Terminated(SevError):
    """The run ended because the guest asked for it (GHCB MSR 0x100)."""

    def __init__(self, reason_set: int, reason: int) -> None:
        super().__init__(f"guest requested termination {reason_set:#x}:{reason:#x}")
        self.reason_set = reason_set
        self.reason = reason


BY_STATUS: dict[int, type[SevError]] = {
    cls.status: cls
    for cls in (
        CodeMismatch,
        ReservedBitsSet,
        EchoMismatch,
        StateConflict,
        OutOfRange,
        Unaligned,
        UnknownCode,
    )
}


def raise_status(status: int, where: str) -> None:
    """Raise the exception of ``status`` with ``where`` as its text; return if it is ``GHCB_OK``."""
    if status != _lib.GHCB_OK:
        raise BY_STATUS[status](where)

"""Commands to SEV and SNP firmware, and its answers, in words.

Words are in ``pysev.tables.firmware``.
"""

from __future__ import annotations

from collections.abc import Sequence

from ghcbcore.errors import OutOfRange
from pysev.tables.firmware import COMMANDS, FIRMWARE_STATUS
from pysev.tables.schema import Code

from .explanation import ExplainedField, Explanation
from .kinds import Kind

__all__ = ["KINDS", "explain_command", "explain_status"]

PREFIXED: int = 0x40
"""Genoa firmware adds this to the status where a command's own buffer has the wrong page state."""


def explain_command(number: int) -> Explanation:
    """Say in words which command to firmware a number is.

    Examples
    --------
    >>> print(explain_command(0x86).as_text())
    0x0000000000000086  firmware command SNP_SHUTDOWN_EX: end SNP, with options
    """
    found = _find(number, COMMANDS)
    return Explanation(
        value=number,
        function=found.name if found else "unknown",
        title=f"firmware command {found.name}" if found else "firmware command",
        direction="",
        sentence=found.what if found else f"{number:#x} is not known",
        fields=(ExplainedField("command", number, found.name if found else ""),),
        findings=() if found else (f"firmware has no command {number:#x}",),
        remarks=(),
        kind="fw-command",
    )


def explain_status(number: int) -> Explanation:
    """Say in words what firmware answered.

    Examples
    --------
    >>> print(explain_status(0xF).as_text())
    0x000000000000000f  firmware status df_flush_required: DF_FLUSH is needed first
    """
    found = _find(number, FIRMWARE_STATUS)
    plain = _find(number - PREFIXED, FIRMWARE_STATUS) if not found and number > PREFIXED else None
    remarks = []
    if plain:
        remarks.append(
            f"Genoa firmware answers {plain.name} + {PREFIXED:#x} where the page that holds the "
            "command is in the wrong state"
        )
    return Explanation(
        value=number,
        function=found.name if found else "unknown",
        title=f"firmware status {found.name}" if found else "firmware status",
        direction="",
        sentence=found.what if found else f"{number:#x} is not known",
        fields=(ExplainedField("status", number, found.name if found else ""),),
        findings=() if found else (f"firmware has no status {number:#x}",),
        remarks=tuple(remarks),
        kind="fw-status",
    )


def _find(number: int, codes: Sequence[Code]) -> Code | None:
    if number >> 64:
        raise OutOfRange(f"number = {number:#x} does not fit 64 bits")
    return next((one for one in codes if one.code == number), None)


KINDS = (
    Kind("fw-command", "id of a command to firmware", None, explain_command),
    Kind("fw-status", "what firmware answered", None, explain_status),
)

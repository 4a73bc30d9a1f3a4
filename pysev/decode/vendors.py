"""Codes of vendors: a registry to which users add what the protocol does not define.

Five spaces have room for them: functions of the MSR (``"msr"``, 12 bits), events of the page
(``"nae"``), usages of the page (``"usage"``), termination reasons (``"termination"``, a set of 4
bits and a code of 8) and reasons for which a request is malformed (``"malformed"``). What the
protocol itself defines cannot be taken. A row gives a name and words; it never makes a value
well formed that breaks a rule of its container.

Files are TOML, a list of tables ``code``::

    [[code]]
    space = "nae"
    code = 0xF0000001
    name = "acme_ping"
    owner = "Acme"
    what = "are you there?"
    source = "Acme hypervisor 3"
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, get_args

from ghcbcore._cffi import lib
from pysev.tables.msr import FUNCTIONS
from pysev.tables.nae import EVENTS, MALFORMED, USAGES
from pysev.tables.schema import VendorCode, VendorSpace
from pysev.tables.terms import REASON_SETS
from pysev.tables.vendors import VENDOR_CODES

__all__ = ["owner", "register", "register_file", "registered", "words"]

MAX_TEXT = 200
"""No name or text is longer."""

MAX_FILE_BYTES = 1 << 20
"""No file of codes is longer: one that is, is something else, or has no end."""

_WIDTHS = {"msr": 12, "nae": 64, "usage": 32, "termination": 12, "malformed": 64}
_KEYS = {"space", "code", "name", "owner", "what", "source"}
_rows: dict[tuple[str, int], VendorCode] = {(row.space, row.code): row for row in VENDOR_CODES}


def _taken() -> dict[str, dict[int, str]]:
    """Return what the protocol defines, by space: code and name."""
    halves = [(f.name, half) for f in FUNCTIONS for half in (f.request, f.answer) if half]
    reasons = next(s for s in REASON_SETS if s.number == lib.GHCB_TERM_SET_GHCB)
    return {
        "msr": {half.code: name for name, half in halves},
        "nae": {
            event.code: event.name
            for event in EVENTS
            if event.code != lib.GHCB_NAE_SOFTWARE_RESERVED  # that is the vendors' own
        },
        "usage": {one.code: one.name for one in USAGES},
        "termination": {one.code: one.name for one in reasons.codes},
        "malformed": {one.code: one.name for one in MALFORMED},
    }


def register(row: VendorCode) -> None:
    """Add one code.

    Parameters
    ----------
    row : VendorCode
        For ``"termination"`` the code is ``reason << 4 | set``, as INFO1 of the event has it. The
        same row may be added again.

    Raises
    ------
    ValueError
        The space does not exist, the code does not fit or belongs to the protocol (a set of the
        standard, a malformed reason up to 0xffff) or to another row, a text is empty or too long.
        Nothing is added.

    Examples
    --------
    >>> register(VendorCode("nae", 0x72, "acme_ping", "Acme", "are you there?", "none"))
    Traceback (most recent call last):
        ...
    ValueError: nae 0x72 (acme_ping): the protocol's own code cpuid
    """
    if row.space not in get_args(VendorSpace):
        raise ValueError(f"space {row.space!r}: must be one of {', '.join(get_args(VendorSpace))}")
    texts = {"name": row.name, "owner": row.owner, "what": row.what, "source": row.source}
    for key, text in texts.items():
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT:
            raise ValueError(f"{key}: must be a text of 1 to {MAX_TEXT} characters")
        if not text.isprintable():
            raise ValueError(f"{key} {text!a}: must be printable")
    if not isinstance(row.code, int) or isinstance(row.code, bool):
        raise ValueError(f"code of {row.name}: must be an integer")
    where = f"{row.space} {row.code:#x} ({row.name})"
    if not 0 <= row.code < 1 << _WIDTHS[row.space]:
        raise ValueError(f"{where}: does not fit {_WIDTHS[row.space]} bits")
    if own := _taken()[row.space].get(row.code):
        raise ValueError(f"{where}: the protocol's own code {own}")
    if row.space == "malformed" and row.code <= lib.GHCB_MALFORMED_STANDARD_MAX:
        raise ValueError(f"{where}: codes up to 0xffff belong to the protocol")
    if row.space == "termination" and row.code % 16 == lib.GHCB_TERM_SET_GHCB:
        raise ValueError(f"{where}: reason set 0 belongs to the protocol")
    other = _rows.get((row.space, row.code))
    if other is not None and other != row:
        raise ValueError(f"{where}: taken by {other.name} of {other.owner}")
    _rows[row.space, row.code] = row


def register_file(path: str) -> int:
    """Add the rows of a TOML file, all or none; return how many.

    Raises
    ------
    ValueError
        ``FILE: code 2: ...``; the file is no TOML, is longer than 1 MiB, or a row cannot be.
    OSError
        It cannot be read.
    """
    with Path(path).open("rb") as stream:
        data = stream.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"{path}: longer than {MAX_FILE_BYTES} bytes")
    try:
        found = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    tables: Any = found.get("code")
    if set(found) != {"code"} or not isinstance(tables, list):
        raise ValueError(f"{path}: must be a list of tables [[code]] and nothing else")
    before = dict(_rows)
    for i, table in enumerate(tables, 1):
        try:
            if not isinstance(table, dict) or set(table) != _KEYS:
                raise ValueError(f"must have the keys {', '.join(sorted(_KEYS))}")
            register(VendorCode(**table))
        except ValueError as error:
            _rows.clear()
            _rows.update(before)
            raise ValueError(f"{path}: code {i}: {error}") from None
    return len(tables)


def registered(space: str | None = None) -> tuple[VendorCode, ...]:
    """Return the rows of one space, or all, in the order of their codes."""
    return tuple(row for key, row in sorted(_rows.items()) if space in (None, key[0]))


def words(space: VendorSpace, code: int) -> str:
    """Return what a code means, "" if nobody has registered it."""
    row = _rows.get((space, code))
    return row.what if row else ""


def owner(space: VendorSpace, code: int) -> str:
    """Return whose code it is, "" if nobody has registered it."""
    row = _rows.get((space, code))
    return row.owner if row else ""

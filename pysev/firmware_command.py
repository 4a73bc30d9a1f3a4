"""The body of ``pysev firmware``."""

from __future__ import annotations

import json as _json
import sys
from typing import IO

from .firmware_script import DEFAULT, language_text, order_of, run_script
from .memory.script import MAX_SCRIPT_BYTES, read_script
from .tables.firmware_model import ASSUMPTIONS

__all__ = ["main_firmware"]

GOOD, FINDING = 0, 1


def main_firmware(
    path: str | None,
    *,
    stdin: IO[bytes] | None = None,
    mode: str = "strict",
    json: bool = False,
    language: bool = False,
    checks: str | None = None,
) -> int:
    """Run a script, print what it comes to; return the exit status: 1 if an ``expect`` failed.

    Parameters
    ----------
    path : str or None
        A file, ``-`` for ``stdin``, or None for the example.
    mode : str
        ``strict`` or ``genoa_2023``.
    language : bool
        Print what a script may say instead.
    checks : str or None
        Name of a command: print its checks in firmware's order instead.

    Raises
    ------
    BadScript
        The script cannot be run; the text names file and line. Nothing is printed.
    OSError
        The file cannot be read.
    """
    if language:
        assumed = "".join(f"    {text}\n" for text in ASSUMPTIONS)
        sys.stdout.write(f"{language_text()}\nAssumptions:\n{assumed}")
        return GOOD
    if checks is not None:
        rows = order_of(checks)
        if json:
            sys.stdout.write(
                _json.dumps({"command": checks.upper(), "checks": rows}, indent=2) + "\n"
            )
        else:
            width = max((len(row["check"]) for row in rows), default=0)
            text = "".join(f"{row['check']:<{width}}  {row['status']}\n" for row in rows)
            sys.stdout.write(text or "no checks\n")
        return GOOD
    data, name = _read(path, stdin)
    session = run_script(read_script(data, name), name, mode)
    if json:
        sys.stdout.write(_json.dumps(session.as_json(name), indent=2) + "\n")
    else:
        sys.stdout.write(session.as_text(name))
    return FINDING if session.n_failed else GOOD


def _read(path: str | None, stdin: IO[bytes] | None) -> tuple[bytes, str]:
    if path is None:
        return DEFAULT.encode(), "example"
    if path == "-":
        assert stdin is not None
        return stdin.read(MAX_SCRIPT_BYTES + 1), "standard input"
    with open(path, "rb") as stream:  # noqa: PTH123 -- the name stays as it was given
        return stream.read(MAX_SCRIPT_BYTES + 1), path

"""The body of ``pysev decode``: values as arguments or on standard input."""

from __future__ import annotations

import json as _json
import sys
from collections.abc import Iterable
from typing import IO, Any

from .msr import explain_msr
from .reading import BadWord, parse_value, values_of

__all__ = ["main_decode"]


class _Output:
    """Collects explanations and prints them in one piece; with ``json`` as one list."""

    def __init__(self, json: bool) -> None:
        self.json = json
        self.opened = False
        self.pieces: list[str] = []
        self.malformed = False

    def add(self, values: Iterable[int]) -> None:
        for value in values:
            explanation = explain_msr(value)
            self.malformed |= explanation.malformed
            self.pieces.append(
                _json.dumps(explanation.as_json()) if self.json else explanation.as_text()
            )

    def flush(self) -> None:
        if self.pieces:
            between = ",\n" if self.json else "\n"
            before = "" if not self.json else between if self.opened else "[\n"
            sys.stdout.write(before + between.join(self.pieces) + ("" if self.json else "\n"))
            self.opened = True
            self.pieces = []

    def close(self) -> None:
        if self.json:
            sys.stdout.write("\n]\n" if self.opened else "[]\n")


def main_decode(args: list[str], *, json: bool, stdin: IO[Any]) -> int:
    """Explain values on standard output: the body of ``pysev decode``.

    Parameters
    ----------
    args : list of str
        Values as ``parse_value`` takes them; ``-``, once, stands for the words of ``stdin``,
        separated by white space, with comments from ``#`` to the end of the line.
    json : bool
        Print one JSON list of ``Explanation.as_json()`` instead of text.
    stdin : file
        Text or binary. Read in pieces: neither its length nor that of a line costs memory.

    Returns
    -------
    int
        0 if every value is well formed, 1 if one is not, 2 if an argument is no value: then one
        line on standard error names it, and nothing is printed. On ``stdin`` this holds for each
        piece of 64 KiB: what came before the piece with the bad word is printed, as a whole
        (with ``json`` as a closed list).
    """
    try:
        values = _parse_arguments(args)
    except ValueError as error:
        return _usage(str(error))
    output = _Output(json)
    for value in values:
        if value is not None:
            output.add([value])
            continue
        try:
            for piece in values_of(stdin):
                output.add(piece)
                output.flush()
        except BadWord as error:
            if output.opened:
                output.close()
            return _usage(f"standard input, {error}")
    output.flush()
    output.close()
    return 1 if output.malformed else 0


def _parse_arguments(args: list[str]) -> list[int | None]:
    """Return the values of the arguments, None for ``-``."""
    if not args:
        raise ValueError("give at least one value, or - for standard input")
    if args.count("-") > 1:
        raise ValueError("- may be given once")
    values: list[int | None] = []
    for i, text in enumerate(args, 1):
        try:
            values.append(None if text == "-" else parse_value(text))
        except ValueError as error:
            raise ValueError(f"argument {i}: {error}") from None
    return values


def _usage(text: str) -> int:
    sys.stderr.write(f"pysev decode: {text}\n")
    return 2

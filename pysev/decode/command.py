"""The body of ``pysev decode``: values and dumps as arguments, in files, on standard input."""

from __future__ import annotations

import json as _json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from . import vendors
from .dumps import Unit, bytes_of_words, units_of
from .explanation import Explanation
from .kinds import Kind, kind_of
from .reading import BadWord, parse_value, values_of

__all__ = ["main_decode"]


class _Output:
    """Collects explanations and prints them in one piece; with ``json`` as one list."""

    def __init__(self, json: bool) -> None:
        self.json = json
        self.opened = False
        self.pieces: list[str] = []
        self.malformed = False

    def add(self, explanation: Explanation) -> None:
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


def main_decode(
    args: list[str],
    *,
    json: bool,
    stdin: IO[Any],
    kind: str = "msr",
    vendor_files: Sequence[str] = (),
) -> int:
    """Explain values on standard output: the body of ``pysev decode``.

    Parameters
    ----------
    args : list of str
        Values as ``parse_value`` takes them or, for a kind of pages and buffers, hexadecimal
        digits; names of files (``./`` in front of one that reads as a value); ``-``, once,
        stands for ``stdin``. Files and ``stdin`` hold words separated by white space, with
        comments from ``#`` to the end of the line; for pages and buffers raw bytes or a hex dump
        (``pysev.decode.dumps``).
    json : bool
        Print one JSON list of ``Explanation.as_json()`` instead of text.
    stdin : file
        Text or binary. Read in pieces: neither its length nor that of a line costs memory.
    kind : str
        A name of ``pysev.decode.kinds``.
    vendor_files : sequence of str
        TOML files of codes for ``pysev.decode.vendors``, added before anything is decoded.

    Returns
    -------
    int
        0 if every value is well formed, 1 if one is not, 2 if an argument is no value: then one
        line on standard error names it, and nothing is printed. Of a file or ``stdin`` what came
        before the piece of 64 KiB with the bad word is printed, as a whole (with ``json`` as a
        closed list).
    """
    try:
        for path in vendor_files:
            vendors.register_file(path)
        chosen = kind_of(kind)
        inputs = _parse_arguments(args, chosen)
    except OSError as error:
        return _usage(f"{error.filename}: {error.strerror}")
    except ValueError as error:
        return _usage(str(error))
    output = _Output(json)
    try:
        for given in inputs:
            if isinstance(given, _Source):
                given.explain(chosen, output, stdin)
            else:
                output.add(given)
    except (BadWord, OSError) as error:
        if isinstance(error, OSError) and not error.filename:
            raise  # standard output: not ours to explain
        output.flush() if output.opened else None
        if output.opened:
            output.close()
        text = str(error) if isinstance(error, BadWord) else f"{error.filename}: {error.strerror}"
        return _usage(text)
    output.flush()
    output.close()
    return 1 if output.malformed else 0


class _Source:
    """A file, or standard input where ``path`` is None."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        self.name = "standard input" if path is None else path

    def explain(self, kind: Kind, output: _Output, stdin: IO[Any]) -> None:
        try:
            with nullcontext(stdin) if self.path is None else Path(self.path).open("rb") as stream:
                for piece in self._explanations(kind, _Named(stream, self.name)):
                    for explanation in piece:
                        output.add(explanation)
                    output.flush()
        except BadWord as error:
            raise BadWord(f"{self.name}, {error}") from None

    def _explanations(self, kind: Kind, stream: Any) -> Iterator[Iterable[Explanation]]:
        if kind.unit_bytes is not None:
            for unit in units_of(stream, kind.unit_bytes, kind.least_bytes):
                yield [self._placed(kind.explain(unit.data), unit)]
            return
        held: list[int] = []
        for values in values_of(stream):
            held += values
            whole = len(held) - len(held) % kind.n_words
            yield [kind.explain(*held[i : i + kind.n_words]) for i in range(0, whole, kind.n_words)]
            del held[:whole]
        if held:
            raise BadWord(f"the end: {len(held)} of {kind.n_words} numbers that belong together")

    def _placed(self, explanation: Explanation, unit: Unit) -> Explanation:
        return replace(explanation, where=f"{self.name} ({unit.form}), offset {unit.offset:#x}")


class _Named:
    """A stream whose errors name it."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream = getattr(stream, "buffer", stream)
        self._name = name

    def read(self, n: int) -> Any:
        try:
            return self._stream.read(n)
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), self._name) from error


def _parse_arguments(args: list[str], kind: Kind) -> list[Explanation | _Source]:
    """Return what the arguments stand for: explained values and sources to read, in order."""
    if not args:
        raise ValueError("give at least one value, or - for standard input")
    if args.count("-") > 1:
        raise ValueError("- may be given once")
    found: list[Explanation | _Source] = []
    group: list[tuple[int, str]] = []  # arguments in a row that are values
    for i, text in enumerate(args, 1):
        if text == "-" or not _is_value(text, kind):
            if text != "-" and not _is_file(text):
                _values([(i, text)], kind, partial=True)  # says what is wrong with it
            found += _values(group, kind)
            group = []
            found.append(_Source(None if text == "-" else text))
        else:
            group.append((i, text))
    return found + _values(group, kind)


def _is_value(text: str, kind: Kind) -> bool:
    try:
        if kind.unit_bytes is None:
            parse_value(text)
        else:
            bytes_of_words([text])
    except ValueError:
        return False
    return True


def _is_file(text: str) -> bool:
    """Whether it names a file, or looks so much like one that opening it says what is wrong."""
    try:
        return bool(text) and "\0" not in text and ("/" in text or Path(text).exists())
    except OSError:
        return False


def _values(group: list[tuple[int, str]], kind: Kind, partial: bool = False) -> list[Any]:
    """Return the explanations of arguments that stand next to each other."""
    if not group:
        return []
    numbers: list[int] = []
    data = b""
    for i, text in group:
        try:
            if kind.unit_bytes is None:
                numbers.append(parse_value(text))
            else:
                data += bytes_of_words([text])
        except ValueError as error:
            raise ValueError(f"argument {i}: {error}") from None
    first, last = group[0][0], group[-1][0]
    where = f"argument {first}" if first == last else f"arguments {first} to {last}"
    if kind.unit_bytes is None:
        n = kind.n_words
        if len(numbers) % n:
            raise ValueError(f"{where}: {kind.name} takes {n} numbers at a time")
        return [kind.explain(*numbers[i : i + n]) for i in range(0, len(numbers), n)]
    least = kind.unit_bytes if kind.least_bytes is None else kind.least_bytes
    rest = len(data) % kind.unit_bytes
    if not data or (rest and rest < least):
        raise ValueError(
            f"{where}: {len(data)} bytes, {kind.name} has {kind.unit_bytes}"
            + (f", at least {least}" if least != kind.unit_bytes else "")
        )
    step = kind.unit_bytes
    return [kind.explain(data[i : i + step]) for i in range(0, len(data), step)]


def _usage(text: str) -> int:
    text = " ".join(re.sub(r"[^\x20-\x7e]", lambda m: ascii(m[0])[1:-1], text).split())
    sys.stderr.write(f"pysev decode: {text}\n")
    return 2

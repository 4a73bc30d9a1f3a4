"""Numbers as people and traces write them, from a word or from a stream of any length."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, Any

from ghcbcore.errors import OutOfRange

__all__ = ["BadWord", "parse_value", "values_of"]

MAX_TOKEN = 64
"""No number has more characters; a longer word on standard input is refused, not read whole."""

CHUNK_BYTES = 1 << 16


def parse_value(text: str) -> int:
    """Read one MSR value as people and traces write it.

    ``0x`` and hexadecimal digits; exactly 16 hexadecimal digits without ``0x``, as in KVM's
    traces (also where all 16 are decimal digits); else decimal digits.

    Raises
    ------
    OutOfRange
        ``value of more than 64 bits: 0x1...``
    ValueError
        ``not a number: 'xyz'``

    Examples
    --------
    >>> parse_value("0x100") == parse_value("0000000000000100") == parse_value("256")
    True
    """
    if re.fullmatch(r"0[xX][0-9a-fA-F]+", text):
        digits, base = text[2:], 16
    elif re.fullmatch(r"[0-9a-fA-F]{16}", text):
        digits, base = text, 16
    elif re.fullmatch(r"[0-9]+", text):
        digits, base = text, 10
    elif re.fullmatch(r"[0-9a-fA-F]+", text):
        raise ValueError(f"not a number: {_quoted(text)} (hexadecimal digits need 0x)")
    else:
        raise ValueError(f"not a number: {_quoted(text)}")
    digits = digits.lstrip("0") or "0"
    # Longer numbers are too wide in either base; int() need not be asked.
    value = int(digits, base) if len(digits) <= 20 else 1 << 64
    if value >> 64:
        raise OutOfRange(f"value of more than 64 bits: {_short(text)}")
    return value


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "..."


def _quoted(text: str) -> str:
    return ascii(text) if len(text) <= 40 else ascii(text[:40]) + "..."


class BadWord(ValueError):
    """A word on standard input that is no value; the text names its line."""


def _words_of(stdin: IO[Any]) -> Iterator[list[tuple[int, str]]]:
    """Yield the words of a stream with their line numbers, one list per chunk that was read.

    ``#`` starts a comment that ends with its line. Lines and comments may have any length.
    """
    stream = getattr(stdin, "buffer", stdin)
    line = 1
    rest = b""  # the beginning of a word that may go on in the next chunk
    in_comment = False
    while chunk := stream.read(CHUNK_BYTES):
        data = chunk.encode("utf-8", "surrogateescape") if isinstance(chunk, str) else chunk
        words: list[tuple[int, str]] = []
        parts = (rest + data).split(b"\n")
        rest = b""
        for k, part in enumerate(parts):
            if k:
                line += 1
                in_comment = False
            if in_comment:
                continue
            text, comment, _ = part.partition(b"#")
            in_comment = bool(comment)
            found = text.split()
            if k == len(parts) - 1 and not in_comment and found and not text[-1:].isspace():
                rest = found.pop()
            for word in [*found, rest]:
                if len(word) > MAX_TOKEN:
                    start = ascii(word[:40].decode("ascii", "backslashreplace"))
                    raise BadWord(f"line {line}: a word of more than {MAX_TOKEN} bytes: {start}...")
            words += [(line, word.decode("ascii", "backslashreplace")) for word in found]
        yield words
    if rest:
        yield [(line, rest.decode("ascii", "backslashreplace"))]


def values_of(stdin: IO[Any]) -> Iterator[list[int]]:
    for words in _words_of(stdin):
        values = []
        for line, word in words:
            try:
                values.append(parse_value(word))
            except ValueError as error:
                raise BadWord(f"line {line}: {error}") from None
        yield values

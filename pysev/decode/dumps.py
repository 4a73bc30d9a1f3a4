"""Bytes as people pass them on: raw files and hex dumps, cut into units of one kind.

A stream is text if its beginning is printable; then it is one of

- bare hex (``xxd -p``): digits in any grouping, white space anywhere, also in 10 MB on one line;
  ``0x`` makes a word a number of up to 64 bits, which stands for its 8 bytes, lowest first;
- a dump with offsets: ``xxd``, ``hexdump -C``, ``hexdump``, ``od -t x1`` and so on. Groups of one
  byte, or after the colon of ``xxd`` any groups, are bytes in order; wider groups of the others
  are numbers of that width, lowest byte first. A line ``*`` repeats the line before it. Offsets
  must follow each other. ``xxd -e`` looks like ``xxd``, and is refused where the characters beside
  the digits give it away.

Anything else is raw bytes. ``#`` starts a comment line. Memory does not grow with the input.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from .reading import CHUNK_BYTES, BadWord

__all__ = ["Unit", "bytes_of_words", "units_of"]

MAX_LINE = 4096
"""No line of a dump with offsets is longer."""

MAX_REPEATED = 1 << 32
"""No ``*`` stands for more bytes: an offset that far away is a mistake."""

_TEXT = frozenset(b"\t\n\r\f\v") | frozenset(range(0x20, 0x7F))
_HEX = re.compile(rb"[0-9a-fA-F]+")
_NUMBER = re.compile(rb"0[xX][0-9a-fA-F]{1,16}")
_XXD = re.compile(rb"\s*([0-9a-fA-F]+):\s*(.*)", re.S)
_OFFSET_AT_0 = re.compile(rb"\s*(0{6,16})(?:\s+(.*))?$", re.S)


@dataclass(frozen=True, slots=True)
class Unit:
    """``data`` is one unit, ``offset`` where it begins, in bytes of what the input stands for.

    ``form`` says how the input was read: ``raw``, ``hex`` or ``dump``.
    """

    data: bytes
    offset: int
    number: int
    form: str


def bytes_of_words(words: list[str]) -> bytes:
    """Return what hex digits in arguments stand for, ``0x`` words as numbers of 64 bits.

    Raises
    ------
    ValueError
        ``not hexadecimal: 'xyz'``, or an odd number of digits.
    """
    return _bare([word.encode("utf-8", "surrogateescape") for word in words])


def units_of(stream: IO[Any], unit_bytes: int, least_bytes: int | None = None) -> Iterator[Unit]:
    """Cut a stream into units of ``unit_bytes``; the last may have ``least_bytes`` or more.

    Raises
    ------
    BadWord
        The text names the line (of text) or the offset (of bytes) where it goes wrong: no hex,
        an offset that does not follow, a last unit that is cut short. Units before it were
        given.
    """
    stream = getattr(stream, "buffer", stream)
    first = stream.read(CHUNK_BYTES)
    form, pieces = _pieces_of(stream, first)
    held = bytearray()
    offset = number = 0
    for piece in pieces:
        held += piece
        start = 0
        while len(held) - start >= unit_bytes:
            number += 1
            yield Unit(bytes(held[start : start + unit_bytes]), offset, number, form)
            start += unit_bytes
            offset += unit_bytes
        del held[:start]
    if held and least_bytes is not None and len(held) >= least_bytes:
        yield Unit(bytes(held), offset, number + 1, form)
    elif held:
        raise BadWord(
            f"offset {offset:#x}: cut short, {len(held)} bytes of {unit_bytes}"
            + (f", at least {least_bytes} are needed" if least_bytes is not None else "")
        )


def _pieces_of(stream: IO[bytes], first: bytes) -> tuple[str, Iterator[bytes]]:
    if isinstance(first, str):  # a text stream without a buffer
        raise TypeError("a stream of bytes is needed")
    if not _TEXT.issuperset(first):
        return "raw", _raw(stream, first)
    head = next(
        (s for s in first.split(b"\n") if s.strip() and not s.lstrip().startswith(b"#")), b""
    )
    if len(head) <= MAX_LINE and (_XXD.match(head) or _begins_with_offset(head)):
        return "dump", _with_offsets(stream, first, bool(_XXD.match(head)))
    return "hex", _bare_stream(stream, first)


def _begins_with_offset(line: bytes) -> bool:
    """Whether the first word is offset 0; if all words are as wide, it is data like the others."""
    match = _OFFSET_AT_0.match(line)
    groups = match[2].partition(b"|")[0].split() if match and match[2] else []
    return match is not None and any(len(group) != len(match[1]) for group in groups)


def _raw(stream: IO[bytes], first: bytes) -> Iterator[bytes]:
    while first:
        yield first
        first = stream.read(CHUNK_BYTES)


def _bare(words: list[bytes]) -> bytes:
    out = bytearray()
    for word in words:
        if _NUMBER.fullmatch(word):
            out += int(word, 16).to_bytes(8, "little")
        elif _HEX.fullmatch(word) and len(word) % 2 == 0:
            out += bytes.fromhex(word.decode())
        elif _HEX.fullmatch(word):
            raise ValueError(f"an odd number of hexadecimal digits: {_short(word)}")
        else:
            raise ValueError(f"not hexadecimal: {_short(word)}")
    return bytes(out)


def _short(word: bytes) -> str:
    text = word.decode("ascii", "backslashreplace")
    return ascii(text) if len(text) <= 40 else ascii(text[:40]) + "..."


def _bare_stream(stream: IO[bytes], chunk: bytes) -> Iterator[bytes]:
    """Digits without offsets. A word may go on in the next chunk, so one is never held whole."""
    line = 1
    rest = b""
    in_comment = False
    while chunk:
        out = bytearray()
        parts = (rest + chunk).split(b"\n")
        rest = b""
        for k, part in enumerate(parts):
            if k:
                line += 1
                in_comment = False
            if in_comment:
                continue
            text, comment, _ = part.partition(b"#")
            in_comment = bool(comment)
            words = text.split()
            if k == len(parts) - 1 and not in_comment and words and not text[-1:].isspace():
                rest = words.pop()
                if len(rest) > 18 and _HEX.fullmatch(rest):  # longer than any 0x word
                    whole = len(rest) & ~1
                    words.append(rest[:whole])
                    rest = rest[whole:]
                elif len(rest) > 18:
                    words.append(rest)
            try:
                out += _bare(words)
            except ValueError as error:
                raise BadWord(f"line {line}: {error}") from None
        yield bytes(out)
        chunk = stream.read(CHUNK_BYTES)
    try:
        yield _bare([rest] if rest else [])
    except ValueError as error:
        raise BadWord(f"line {line}: {error}") from None


def _lines(stream: IO[bytes], chunk: bytes) -> Iterator[tuple[int, bytes]]:
    number = 0
    rest = b""
    while chunk:
        *lines, rest = (rest + chunk).split(b"\n")
        for text in (*lines, rest) if len(rest) > MAX_LINE else lines:
            number += 1
            if len(text) > MAX_LINE:
                raise BadWord(f"line {number}: a line of a dump of more than {MAX_LINE} bytes")
            yield number, text
        chunk = stream.read(CHUNK_BYTES)
    if rest:
        yield number + 1, rest


def _with_offsets(stream: IO[bytes], first: bytes, is_xxd: bool) -> Iterator[bytes]:
    """Lines of offset and groups. The base of the offsets is the one that fits the second line."""
    done = 0  # bytes so far
    before = b""  # the line before, as bytes
    starred = False
    bases: tuple[int, ...] = (16,) if is_xxd else ()
    ended = False
    for number, text in _lines(stream, first):
        stripped = text.strip()
        if not stripped or stripped.startswith(b"#"):
            continue
        if ended:
            raise BadWord(f"line {number}: text after the last offset of the dump")
        if stripped == b"*":
            if not before:
                raise BadWord(f"line {number}: * repeats nothing")
            starred = True
            continue
        offset_text, data = _split_line(text, is_xxd, number)
        if not bases:
            bases = (16,) if len(offset_text) >= 8 else (16, 8, 10)
        fit = [b for b in bases if _is_at(offset_text, b, done, starred, len(before))]
        if not fit:
            raise BadWord(
                f"line {number}: offset {offset_text.decode()} does not follow the "
                f"{done:#x} bytes before it"
            )
        if done:
            bases = tuple(fit)
        if starred:
            if len(bases) > 1:
                raise BadWord(
                    f"line {number}: * before the base of the offsets is clear: write all lines "
                    "(od -v, hexdump -v), or use xxd"
                )
            yield from _repeated(before, int(offset_text, bases[0]) - done, number)
            done = int(offset_text, bases[0])
            starred = False
        if data is None:
            ended = True
            continue
        done += len(data)
        before = data
        yield data
    if starred:
        raise BadWord("the dump ends with *, how often is not said: its last line is missing")


def _is_at(text: bytes, base: int, done: int, starred: bool, step: int) -> bool:
    if not _HEX.fullmatch(text):  # int() takes signs and underscores
        return False
    try:
        at = int(text, base)
    except ValueError:
        return False
    if not starred:
        return at == done
    return done < at <= done + MAX_REPEATED and (at - done) % step == 0


def _repeated(line: bytes, n_bytes: int, number: int) -> Iterator[bytes]:
    per_piece = max(1, CHUNK_BYTES // len(line))
    n_lines = n_bytes // len(line)
    while n_lines:
        n = min(n_lines, per_piece)
        yield line * n
        n_lines -= n


def _shows(beside: bytes, data: bytes) -> bool:
    """Whether these are the characters that xxd shows beside the digits of ``data``."""
    return beside == bytes(b if 0x20 <= b < 0x7F else 0x2E for b in data)


def _swapped(groups: list[bytes]) -> bytes:
    """Return the bytes of groups that are numbers, lowest byte first."""
    return b"".join(bytes.fromhex(group.decode())[::-1] for group in groups if len(group) % 2 == 0)


def _split_line(text: bytes, is_xxd: bool, number: int) -> tuple[bytes, bytes | None]:
    """Return the offset and the bytes of one line, None where there is an offset alone."""
    if is_xxd:
        match = _XXD.fullmatch(text.rstrip(b"\r"))
        if not match:
            raise BadWord(f"line {number}: no offset with a colon: {_short(text.strip())}")
        # two blanks stand before the characters that xxd shows beside the digits
        digits = re.split(rb"\s\s", match[2].rstrip(), maxsplit=1)[0]
        joined = b"".join(digits.split())
        if not _HEX.fullmatch(joined) or len(joined) % 2:
            raise BadWord(f"line {number}: not hexadecimal: {_short(digits)}")
        data = bytes.fromhex(joined.decode())
        beside = match[2][-len(data) :]
        if not _shows(beside, data) and _shows(beside, _swapped(digits.split())):
            raise BadWord(f"line {number}: made by xxd -e: use xxd, or xxd -p")
        return match[1], data
    offset, *groups = text.partition(b"|")[0].split()
    if not groups:
        return offset, None
    width = len(groups[0])
    out = bytearray()
    for group in groups:
        if len(group) != width or width not in (2, 4, 8, 16) or not _HEX.fullmatch(group):
            raise BadWord(
                f"line {number}: not a group of {width} hexadecimal digits: {_short(group)}"
            )
        out += bytes.fromhex(group.decode())[::-1]
    return offset, bytes(out)

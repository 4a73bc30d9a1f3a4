"""Lines of a kernel log, in any of the forms in which people keep one.

Times, priorities and host names are taken off the front of each line; what is not UTF-8 is
replaced; NUL bytes are passed over and counted. Memory does not grow with the log, nor with a line
of it.
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from typing import IO, Final, NamedTuple

from ghcbcore.errors import SevError

__all__ = ["MAX_LINE_BYTES", "BadLog", "Counts", "Line", "lines_of", "open_log"]

MAX_LINE_BYTES: Final = 4096
"""A record of the kernel's log has at most 1 KiB; of a longer line only the beginning is read."""

XZ_MEMORY: Final = 128 << 20
PIECE_BYTES: Final = 1 << 16


class BadLog(SevError, ValueError):
    """A file is not a kernel log, or cannot be unpacked; the text names it."""


class Line(NamedTuple):
    """One line: its number from 1 on, the text behind the front, the time if there was one.

    ``has_front`` says whether a time, a priority or a host name was taken off.
    """

    number: int
    text: str
    seconds: float | None
    has_front: bool


class Counts:
    """What had to be passed over."""

    def __init__(self) -> None:
        self.lines = 0
        self.long_lines = 0
        self.first_long = 0
        self.nul_bytes = 0


_FRONT = re.compile(
    r"(?:[>|] ?)*"  # quoted in a mail
    r"(?:<\d{1,3}>)?"  # priority
    r"(?:[a-z0-9]{3,8} *: ?(?:emerg|alert|crit|err|warn|notice|info|debug) *: )?"  # dmesg -x
    r"(?:\d{1,3},\d{1,20},\d{1,20},[^;]{0,40};)?"  # /dev/kmsg
    r"(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d+)? "
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S{0,16} )?"
    r"(?:\S{1,64} (?:kernel|k): ?)?"  # journalctl, syslog
    r"(?:\[ *(?P<seconds>\d{1,12}\.\d{1,9})\] ?|\[[A-Z][a-z]{2} [A-Z][a-z]{2} [^\]]{8,20}\] ?)?"
    r"(?:\[ *[TC]\d{1,10}\] ?)?"  # who printed it
)
_KMSG = re.compile(r"\d{1,3},\d{1,20},(?P<microseconds>\d{1,20}),[^;]{0,40};")


def open_log(stream: IO[bytes], name: str) -> IO[bytes]:
    """Return the bytes of a log, unpacked if it is packed (gzip, xz)."""
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(_Raw(stream))
    magic = buffered.peek(6)[:6]
    if magic[:2] == b"\x1f\x8b":
        return io.BufferedReader(_Checked(gzip.GzipFile(fileobj=buffered), name))
    if magic == b"\xfd7zXZ\x00":
        return io.BufferedReader(_Checked(_Xz(buffered), name))
    return buffered


class _Raw(io.RawIOBase):
    """What has ``read`` as what has ``readinto``."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Checked(_Raw):
    """The same, for a packed file: what is wrong with it is said with its name."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile | _Xz, name: str) -> None:
        super().__init__(stream)  # type: ignore[arg-type]
        self.name = name

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            return super().readinto(buffer)
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            raise BadLog(f"{self.name}: cannot be unpacked: {error}") from error


class _Xz:
    """An xz file, with a bound on the memory that its beginning may ask for.

    Like gzip's, it may be several files one behind the other, with zeros between them.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.held = b""
        self.unpack = lzma.LZMADecompressor(memlimit=XZ_MEMORY)

    def read(self, size: int) -> bytes:
        while not self.unpack.eof or self.next_one():
            packed, self.held = self.held, b""
            if not packed and self.unpack.needs_input:
                packed = self.stream.read(PIECE_BYTES)
                if not packed:
                    raise EOFError("it ends too early")
            data = self.unpack.decompress(packed, size)
            if data:
                return data
        return b""

    def next_one(self) -> bool:
        """Begin the next packed file, if there is one; say whether."""
        rest = self.unpack.unused_data.lstrip(b"\0")
        while not rest:
            piece = self.stream.read(PIECE_BYTES)
            if not piece:
                return False
            rest = piece.lstrip(b"\0")
        self.unpack = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
        self.held = rest
        return True


def lines_of(stream: IO[bytes], counts: Counts) -> Iterator[Line]:
    """Yield the lines of a log. Never more than 64 KiB of one are held."""
    number = 0
    while raw := stream.readline(PIECE_BYTES):
        number += 1
        counts.nul_bytes += raw.count(0)
        is_long = len(raw) > MAX_LINE_BYTES
        piece = raw
        while not piece.endswith(b"\n") and (piece := stream.readline(PIECE_BYTES)):
            is_long = True
            counts.nul_bytes += piece.count(0)
        if is_long:
            counts.long_lines += 1
            counts.first_long = counts.first_long or number
        text = raw.replace(b"\0", b"")[:MAX_LINE_BYTES].decode("utf-8", "replace")
        yield _line(number, text.strip())
    counts.lines = number


def _line(number: int, text: str) -> Line:
    front = _FRONT.match(text)
    assert front is not None  # every part of it is optional
    seconds = None
    if front["seconds"]:
        seconds = float(front["seconds"])
    elif kmsg := _KMSG.search(front[0]):
        seconds = int(kmsg["microseconds"]) / 1e6
    has_front = bool(front[0].strip(" >|"))
    return Line(number, text[front.end() :], seconds, has_front)

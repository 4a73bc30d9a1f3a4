"""Where the text of a trace comes from: a file, standard input, or a tool that prints a binary one.

What a file is, its first bytes say: ``trace.dat`` of trace-cmd and ``perf.data`` of perf are
printed by the tools that made them; text may be packed by gzip, bzip2, xz or, if Python can, zstd.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from ghcbcore.errors import SevError

__all__ = ["PIECE_BYTES", "BrokenTrace", "Source", "TraceError", "open_source"]

PIECE_BYTES = 1 << 20

TRACE_DAT = b"\x17\x08\x44tracing"
PERF_DATA = (b"PERFILE2", b"2ELIFREP")
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "lzma", b"\x28\xb5\x2f\xfd": "zstd"}
TOOLS = {
    "trace-cmd": ("trace-cmd", "report", "-t", "-i"),
    "perf": ("perf", "script", "--ns", "-i"),
}


class TraceError(SevError):
    """A trace that cannot be opened, unpacked or printed."""


class BrokenTrace(TraceError):
    """What was read of a trace so far stands, but not more of it can be read."""


class Source:
    """The text of one trace, in pieces of bytes.

    Attributes
    ----------
    name : str
        As it was given; ``standard input`` for ``-``.
    what : str
        How it was read: ``text``, ``gzip``, ``trace.dat by trace-cmd`` and so on.
    size_bytes : int
        Of the file, 0 if it is not known.
    """

    def __init__(self, name: str, what: str, stream: IO[bytes], raw: IO[bytes] | None) -> None:
        self.name, self.what = name, what
        self._stream, self._raw = stream, raw
        self.size_bytes = 0
        if raw is not None:
            found = os.fstat(raw.fileno())
            self.size_bytes = found.st_size if stat.S_ISREG(found.st_mode) else 0

    def done(self) -> float | None:
        """Return how much of the file was read, 0 to 1, or None if that is not known."""
        if not self.size_bytes or self._raw is None:
            return None
        try:
            return min(1.0, self._raw.tell() / self.size_bytes)
        except OSError:
            return None

    def pieces(self) -> Iterator[memoryview]:
        """Give the text piece by piece, as it comes; each is overwritten by the next.

        Raises
        ------
        BrokenTrace
            What is packed cannot be unpacked, or reading failed.
        """
        buffer = memoryview(bytearray(PIECE_BYTES))
        # what a pipe has by now, not a whole piece: somebody may be watching
        read = cast(Any, self._stream).readinto1
        while n := self._read(read, buffer):
            yield buffer[:n]

    def _read(self, read: Any, buffer: memoryview) -> int:
        try:
            return int(read(buffer))
        except OSError as error:
            if error.errno is None:  # gzip's way to say that the file is broken
                raise self._broken(error) from error
            raise BrokenTrace(f"{self.name}: {error.strerror}") from error
        except (EOFError, ValueError) as error:
            raise self._broken(error) from error
        except Exception as error:
            if type(error).__name__ in ("LZMAError", "ZstdError", "error"):
                raise self._broken(error) from error
            raise

    def _broken(self, error: Exception) -> BrokenTrace:
        return BrokenTrace(f"{self.name}: cannot be unpacked: {error}")


@contextmanager
def open_source(path: str, stdin: IO[bytes] | None = None) -> Iterator[Source]:
    """Open a trace by its name, ``-`` for ``stdin``.

    Raises
    ------
    TraceError
        A binary trace on standard input; a tool is missing; Python cannot unpack it.
    BrokenTrace
        When the block ends: the tool failed.
    OSError
        The file cannot be read.
    """
    with ExitStack() as stack:
        if path == "-":
            if stdin is None:
                raise TraceError("standard input is closed")
            raw, name = stdin, "standard input"
        elif not path:
            raise TraceError("a trace without a name")
        else:
            raw, name = stack.enter_context(Path(path).open("rb")), path
        head = _peek(raw)
        tool = "trace-cmd" if head.startswith(TRACE_DAT) else ""
        tool = "perf" if head.startswith(PERF_DATA) else tool
        if tool:
            if path == "-":
                raise TraceError(f"standard input is a file of {tool}: give it by name")
            stream = stack.enter_context(_printed(tool, path))
            yield Source(name, f"binary, printed by {tool}", stream, None)
            return
        packed = next((how for magic, how in PACKED.items() if head.startswith(magic)), "")
        if not packed:
            yield Source(name, "text", raw, raw if path != "-" else None)
            return
        stream = stack.enter_context(_unpacked(packed, raw, name))
        yield Source(name, packed, stream, raw if path != "-" else None)


def _peek(raw: IO[bytes]) -> bytes:
    """Return the first bytes without taking them; fewer if the stream has no more."""
    peek = getattr(raw, "peek", None)
    return bytes(peek(16)[:16]) if peek else b""


def _unpacked(how: str, raw: IO[bytes], name: str) -> AbstractContextManager[Any]:
    import bz2
    import gzip
    import lzma

    if how == "gzip":
        return gzip.GzipFile(fileobj=raw)
    if how == "bz2":
        return bz2.BZ2File(raw)
    if how == "lzma":
        return lzma.LZMAFile(raw)
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise TraceError(
            f"{name}: packed by zstd, which Python unpacks since 3.14: "
            "use zstd -dc FILE | pysev trace -"
        ) from None
    return cast(AbstractContextManager[Any], zstd.ZstdFile(raw))


@contextmanager
def _printed(tool: str, path: str) -> Iterator[IO[bytes]]:
    """Run the tool that prints a binary trace; it must succeed."""
    command = [*TOOLS[tool], str(Path(path).absolute())]
    program = shutil.which(tool)
    if program is None:
        raise TraceError(f"{path}: is read by {tool}, which is not installed")
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            env=os.environ | {"LC_ALL": "C", "PAGER": "cat"},
        )
        assert child.stdout is not None
        finished = False
        try:
            with child.stdout:
                yield child.stdout
                finished = True
        finally:
            if not finished:
                child.kill()
            status = child.wait()
        if status:
            said.seek(0)
            words = said.read(1 << 16).decode("utf-8", "backslashreplace").split("\n")
            last = next((" ".join(line.split()) for line in reversed(words) if line.strip()), "")
            shown = " ".join(command[:-1])
            raise BrokenTrace(f"{path}: `{shown}` failed with status {status}: {last[:200]}")

"""Scripts about pages: a small text form, one operation a line, for people who argue about page
states.

    memory 64M              # the guest; first, if the command line does not say it
    accept all              # firmware and kernel: private, validated, in 2 MiB pages
    share 0x1000+512        # the guest and its hypervisor, as Linux does it
    rmpupdate 0x1000 asid=1 2M immutable
    expect FAIL_OVERLAP
    page 0x1005

Places are frames, that is numbers of 4 KiB pages in hexadecimal, as in ``PFN 0x40fdf36`` of a
kernel's log:
``0x1000`` is one, ``0x1000+512`` are 512 from there on, ``all`` is the guest, ``ram`` the RAM of
a memory map.
Never bytes. What one number means to an operation with ``2M`` is the 2 MiB page that begins there.

This module reads lines and takes them apart; ``pysev.memory.verbs`` knows what they do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ghcbcore.errors import SevError

__all__ = ["MAX_SCRIPT_BYTES", "Arguments", "BadScript", "Line", "read_script"]

MAX_SCRIPT_BYTES = 1 << 20
MAX_LINE_CHARS = 1 << 12
MAX_DIGITS = 40

_FRAMES = re.compile(r"(0x[0-9a-f]+)(?:\+(0x[0-9a-f]+|[0-9]+))?", re.ASCII | re.IGNORECASE)
_COMMENT = re.compile(r"^\s*#.*|(?:^|\s)#(?:\s.*)?$", re.DOTALL)
_NUMBER = re.compile(r"0x[0-9a-f]+|[0-9]+", re.ASCII | re.IGNORECASE)


class BadScript(SevError, ValueError):
    """A line is no operation, or has arguments that cannot be; the text names file and line."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not empty: its number, its text without the comment, its words."""

    number: int
    text: str
    words: tuple[str, ...]


def read_script(data: bytes, name: str) -> list[Line]:
    """Take a script apart into lines.

    Parameters
    ----------
    data : bytes
        UTF-8; ``#`` begins a comment at the beginning of a line, and where a blank follows it
        (``#NPF`` is a word).
    name : str
        Of the file, for messages.

    Raises
    ------
    BadScript
        ``name:3: ...``: too long, or no text.
    """
    if len(data) > MAX_SCRIPT_BYTES:
        raise BadScript(f"{name}: more than {MAX_SCRIPT_BYTES} bytes: no script")
    lines = []
    for number, raw in enumerate(data.split(b"\n"), 1):
        if len(raw) > MAX_LINE_CHARS:
            raise BadScript(f"{name}:{number}: a line of more than {MAX_LINE_CHARS} bytes")
        try:
            text = _COMMENT.sub("", raw.decode("utf-8").removeprefix("\ufeff"))
        except UnicodeDecodeError:
            raise BadScript(f"{name}:{number}: not a text in UTF-8") from None
        text = " ".join(text.split())
        if not text.isprintable():
            raise BadScript(f"{name}:{number}: not a text: {text[:40]!a}")
        if text:
            lines.append(Line(number, text, tuple(text.split(" "))))
    return lines


class Arguments:
    """The words of a line after its verb, taken one by one; what is left over is an error.

    Words with ``=`` stand anywhere, others in the order in which the verb asks for them; flags
    anywhere.
    """

    def __init__(self, words: Iterable[str], usage: str) -> None:
        self._usage = usage
        self._words: list[str] = []
        self._named: dict[str, str] = {}
        for word in words:
            name, equals, value = word.partition("=")
            if not equals:
                self._words.append(word)
            elif name in self._named:
                raise self.error(f"{_short(name)}= stands there twice")
            else:
                self._named[name] = value

    def error(self, text: str) -> BadScript:
        return BadScript(f"{text} (usage: {self._usage})")

    def word(self, what: str) -> str:
        """The next word, whatever it is."""
        if not self._words:
            raise self.error(f"{what} is missing")
        return self._words.pop(0)

    def rest(self) -> list[str]:
        """All words that are left."""
        found, self._words = self._words, []
        return found

    def choice(self, *names: str) -> str:
        """The next word, which must be one of ``names``."""
        word = self.word(" or ".join(names))
        if word not in names:
            raise self.error(f"{_short(word)}: must be {' or '.join(names)}")
        return word

    def flag(self, *names: str) -> str | None:
        """One of ``names`` if it is there, wherever it stands."""
        found = [word for word in self._words if word in names]
        if not found:
            return None
        if len(found) > 1:
            raise self.error(f"{' and '.join(found)} exclude each other")
        self._words.remove(found[0])
        return found[0]

    def after(self, name: str, *names: str) -> str | None:
        """The word after ``name``, wherever that stands."""
        if name not in self._words:
            return None
        at = self._words.index(name)
        word = self._words[at + 1] if at + 1 < len(self._words) else ""
        if word not in names:
            raise self.error(f"{name} {_short(word)}: must be {name} {' or '.join(names)}")
        del self._words[at : at + 2]
        return word

    def frames(self) -> int | tuple[int, int] | str:
        """The next word as frames: one number, ``(first, n)``, ``"all"`` or ``"ram"``."""
        word = self.word("FRAMES")
        if word in ("all", "ram"):
            return word
        found = _FRAMES.fullmatch(word)
        if found is None or len(word) > 2 * MAX_DIGITS:
            raise self.error(f"{_short(word)}: frames are 0x1000, 0x1000+512, all or ram")
        first = int(found[1], 16)
        return first if found[2] is None else (first, _number(found[2]))

    def frame(self) -> int:
        """The next word as one frame."""
        frames = self.frames()
        if not isinstance(frames, int):
            raise self.error("must be one frame")
        return frames

    def frame_runs(self) -> list[tuple[int, int]]:
        """All words that are left as ranges of frames."""
        runs: list[tuple[int, int]] = []
        while self._words:
            frames = self.frames()
            if isinstance(frames, str):
                raise self.error(f"{frames}: must be 0x1000 or 0x1000+512")
            runs.append(frames if isinstance(frames, tuple) else (frames, 1))
        return runs

    def number(self, name: str, default: int | None, largest: int) -> int:
        """The value of ``name=``, decimal or with 0x; without a default it must be there."""
        text = self._named.pop(name, None)
        if text is None:
            if default is None:
                raise self.error(f"{name}= is missing")
            return default
        if not _NUMBER.fullmatch(text) or len(text) > MAX_DIGITS or _number(text) > largest:
            raise self.error(f"{name}={_short(text)}: must be a number from 0 to {largest:#x}")
        return _number(text)

    def has(self, name: str) -> bool:
        """Whether ``name=`` stands there."""
        return name in self._named

    def named(self) -> dict[str, str]:
        """All ``name=value`` that are left."""
        found, self._named = self._named, {}
        return found

    def raw(self) -> list[int]:
        """All words that are left as numbers of 64 bits."""
        found = []
        for word in self.rest():
            if not _NUMBER.fullmatch(word) or len(word) > MAX_DIGITS or _number(word) >> 64:
                raise self.error(f"{_short(word)}: must be a number of at most 64 bits")
            found.append(_number(word))
        return found

    def end(self) -> None:
        """There must be nothing left."""
        if self._words:
            raise self.error(f"{_short(self._words[0])}: what is this?")
        if self._named:
            raise self.error(f"{_short(next(iter(self._named)))}=: what is this?")


def _number(text: str) -> int:
    return int(text, 16 if text[:2] in ("0x", "0X") else 10)


def _short(text: str) -> str:
    return ascii(text) if len(text) <= 40 else ascii(text[:40]) + "..."

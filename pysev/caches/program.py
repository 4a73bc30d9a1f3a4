"""Small programs of stores, conversions and flushes as text, and as what the core explores.

One statement a line, ``#`` begins a comment::

    cpu 0 store 0x1000 c=1 old     # a whole line gets the content "old", under the C-bit
    cpu 1 load 0x1000 asid=5       # by the guest with ASID 5; its line stays cached
    cpu 0 clflush 0x1000 c=1       # one line leaves all caches
    cpu 1 wbinvd                   # also wbnoinvd, invd: all lines of this CPU
    cpu 0 vm_page_flush 0x1000 asid=5
    cpu 0 df_flush                 # what is queued in the fabric reaches memory
    cpu 0 rekey asid=5             # the slot of ASID 5 gets another key
    cpu 0 convert 0x1000 c=0       # software uses the line otherwise; its content is given up
    cpu 1 halt                     # stops; its caches stay as they are
    kexec                          # the next kernel: the contents of all lines are given up

    memory 0x1000 c=0 zeros        # what is there at first
    never 0x1000 asid=5 secret     # must not be there at the end
    coherent                       # the processor reports SME_COHERENT

    together                       # from here to `end` only each CPU's own order counts
    end

A statement follows the one before it. ``cpu all`` and ``cpu others`` (all but CPU 0) stand for as
many statements, in any order among each other. The key (``c=0``, ``c=1``, ``asid=N``) may be left
out: it is that of the last ``convert`` of the line in the text, else ``c=0``. Addresses are bytes,
of any place in a line of 64; ``0x1000+0x40*cpu`` gives each CPU its own. A CPU that halted does
nothing more.

Units: ``spa`` counts bytes of system memory, without the C-bit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ghcbcore import cacheline
from ghcbcore._cffi import lib
from ghcbcore.errors import SevError

__all__ = ["BadProgram", "Program", "Statement", "key_words", "parse"]

LINE_BYTES: Final[int] = lib.GHCB_LINE_BYTES
PAGE_BYTES: Final[int] = lib.GHCB_PAGE_SIZE
SPA_LIMIT: Final = 1 << 52  # physical addresses of the architecture end here
MAX_TEXT_BYTES: Final = 1 << 20
MAX_SHOWN: Final = 40
INITIAL: Final = "initial"

BARE: Final = {
    "wbinvd": lib.GHCB_CACHE_WBINVD,
    "wbnoinvd": lib.GHCB_CACHE_WBNOINVD,
    "invd": lib.GHCB_CACHE_INVD,
    "df_flush": lib.GHCB_CACHE_DF_FLUSH,
    "halt": lib.GHCB_CACHE_HALT,
}
ON_A_LINE: Final = {
    "load": lib.GHCB_CACHE_LOAD,
    "store": lib.GHCB_CACHE_STORE,
    "clflush": lib.GHCB_CACHE_CLFLUSH,
    "convert": lib.GHCB_CACHE_CONVERT,
}
_NUMBER = r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,18}"
_ADDRESS = re.compile(rf"({_NUMBER})(?:\+({_NUMBER})\*cpu)?", re.ASCII)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", re.ASCII)


class BadProgram(SevError, ValueError):
    """A text is not a program; the message names text and line."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One line of the text: what each CPU does, and whom it waits for.

    ``number`` is the line in the text, 0 if the statement was inserted. ``ops`` are rows of
    ``ghcbcore.cacheline.OP_DTYPE`` without their block; ``group`` is the same for statements that
    are not ordered among each other.
    """

    number: int
    text: str
    ops: tuple[tuple[int, int, int, int, int], ...]
    group: int


@dataclass(frozen=True)
class Program:
    """A program, taken apart. ``spas`` are the lines that it names, in the order of the text."""

    name: str
    statements: tuple[Statement, ...]
    n_cpus: int
    spas: tuple[int, ...]
    values: tuple[tuple[str, ...], ...]
    """Of each line: names of its contents; the index is the value, 0 is noise."""
    memory: tuple[int, ...]
    never: tuple[int, ...]
    coherent: bool
    text: str = field(repr=False, default="")

    def ops(self) -> tuple[NDArray[np.void], list[int]]:
        """Return the program for ``Explorer``, and of each row the index of its statement."""
        rows: list[tuple[int, ...]] = []
        owners: list[int] = []
        block = 0
        for i, statement in enumerate(self.statements):
            block += i > 0 and statement.group != self.statements[i - 1].group
            rows += [(*op, block) for op in statement.ops]
            owners += [i] * len(statement.ops)
        return np.array(rows, cacheline.OP_DTYPE), owners

    def explorer(self, max_bytes: int = 1 << 30) -> cacheline.Explorer:
        """Return a search over this program that has not begun."""
        return cacheline.Explorer(
            self.ops()[0],
            self.n_cpus,
            np.array(self.memory, np.uint64),
            never=np.array(self.never, np.uint64),
            coherent=self.coherent,
            max_bytes=max_bytes,
        )

    def insert(self, place: int, statement: Statement) -> Program:
        """Return the program with one more statement in front of number ``place``.

        Between two statements that are not ordered among each other, it joins them.
        """
        before, after = self.statements[:place], self.statements[place:]
        if before and after and before[-1].group == after[0].group:
            group = after[0].group
        else:
            group = 1 + max((s.group for s in self.statements), default=0)
        made = replace(statement, group=group)
        return replace(self, statements=(*before, made, *after))

    def content_words(self, line: int, cell: int) -> str:
        """Return what a cell says, as it is written in a program."""
        if not cell:
            return "anything"
        name = self.values[line][lib.ghcb_cell_value(cell)]
        slot = lib.ghcb_cell_slot(cell)
        readable = lib.ghcb_cell_read(cell, slot) != lib.GHCB_LINE_NOISE
        return f"{key_words(slot)} {name}" + ("" if readable else " (lost key)")


def key_words(slot: int) -> str:
    """Return the key of a slot as it is written in a program.

    Examples
    --------
    >>> key_words(0), key_words(5), key_words(1023)
    ('c=0', 'asid=5', 'c=1')
    """
    if slot == lib.GHCB_KEY_SLOT_NONE:
        return "c=0"
    if slot == lib.GHCB_KEY_SLOT_SME:
        return "c=1"
    return f"asid={slot}" if slot <= lib.GHCB_KEY_SLOT_LAST_ASID else f"slot={slot}"


def parse(text: str, name: str = "program", *, n_cpus: int = 0, coherent: bool = False) -> Program:
    """Take a program apart.

    Parameters
    ----------
    text : str
        See the head of this module.
    name : str
        What messages call it.
    n_cpus : int
        CPUs of the machine; 0: as many as the text names, at least two if it says ``others``.
    coherent : bool
        The processor reports SME_COHERENT, whatever the text says.

    Raises
    ------
    BadProgram
        A statement that is none, a number that does not fit, more CPUs, lines, statements or
        contents of a line than can be explored. The message names the line of the text.

    Examples
    --------
    >>> program = parse("cpu 0 store 0x1000 c=1 old\\ncpu 1 wbinvd")
    >>> program.n_cpus, [hex(spa) for spa in program.spas]
    (2, ['0x1000'])
    """
    if len(text) > MAX_TEXT_BYTES:
        raise BadProgram(f"{name}: {len(text)} characters, at most {MAX_TEXT_BYTES}")
    return _Parser(name, text, n_cpus, coherent).program()


class _Parser:
    def __init__(self, name: str, text: str, n_cpus: int, coherent: bool) -> None:
        self.name, self.text, self.coherent = name, text, coherent
        self.number = 0
        self.rows = [
            (number, words)
            for number, line in enumerate(text.splitlines(), 1)
            if (words := line.partition("#")[0].split())
        ]
        self.n_cpus = self._count_cpus(n_cpus)
        self.lines: dict[int, int] = {}
        self.values: list[list[str]] = []
        self.memory: list[int] = []
        self.never: list[int] = []
        self.keys: dict[int, int] = {}
        self.statements: list[Statement] = []
        self.n_ops = 0
        self.halted: dict[int, int] = {}
        self.groups = count(1)
        self.together: int | None = None

    def refuse(self, what: str) -> BadProgram:
        return BadProgram(f"{self.name}, line {self.number}: {what}")

    def _count_cpus(self, given: int) -> int:
        """Find how many CPUs there are, before statements for all of them are made."""
        least = 1
        for number, words in self.rows:
            self.number = number
            if words[0] == "cpu" and len(words) > 1:
                if words[1] == "others":
                    least = max(least, 2)
                elif words[1] != "all":
                    least = max(least, 1 + self.integer(words[1], cacheline.MAX_CPUS, "CPU"))
            if given > 0 and least > given:
                raise self.refuse(f"cpu {words[1]}, but the machine has {given}")
        if not 0 <= given <= cacheline.MAX_CPUS:
            raise BadProgram(f"{self.name}: {given} CPUs, must be 1 to {cacheline.MAX_CPUS}")
        return given or least

    def integer(self, word: str, limit: int, what: str) -> int:
        if not re.fullmatch(_NUMBER, word, re.ASCII):
            raise self.refuse(f"{what} {_shown(word)}: not a number")
        value = int(word, 16 if word[1:2] in ("x", "X") else 10)
        if value >= limit:
            raise self.refuse(f"{what} {word}: must be below {limit:#x}")
        return value

    def program(self) -> Program:
        for number, words in self.rows:
            self.number = number
            self.statement(words)
            if self.n_ops > cacheline.MAX_OPS:
                raise self.refuse(f"more than {cacheline.MAX_OPS} statements")
        if self.together is not None:
            raise self.refuse("`together` without `end`")
        if not self.lines:
            raise BadProgram(f"{self.name}: no statement names a line of memory")
        return Program(
            self.name,
            tuple(self.statements),
            self.n_cpus,
            tuple(self.lines),
            tuple(tuple(names) for names in self.values),
            tuple(self.memory),
            tuple(self.never),
            self.coherent,
            self.text,
        )

    def statement(self, words: Sequence[str]) -> None:
        first = words[0]
        if first == "cpu":
            self.of_cpus(words)
        elif words == ["kexec"]:
            self.add(words, [(lib.GHCB_CACHE_KEXEC, 0, 0, 0, 0)])
        elif words == ["coherent"]:
            self.coherent = True
        elif words == ["together"]:
            if self.together is not None:
                raise self.refuse("`together` inside `together`")
            self.together = next(self.groups)
        elif words == ["end"]:
            if self.together is None:
                raise self.refuse("`end` without `together`")
            self.together = None
        elif first in ("memory", "never"):
            self.cell_of_memory(words)
        else:
            raise self.refuse(f"{_shown(' '.join(words))}: no such statement")

    def add(self, words: Sequence[str], ops: Iterable[tuple[int, int, int, int, int]]) -> None:
        group = next(self.groups) if self.together is None else self.together
        made = Statement(self.number, " ".join(words), tuple(ops), group)
        for kind, cpu, *_ in made.ops:
            if cpu in self.halted:
                raise self.refuse(f"cpu {cpu} has halted in line {self.halted[cpu]}")
            if kind == lib.GHCB_CACHE_HALT:
                self.halted[cpu] = self.number
        self.n_ops += len(made.ops)
        self.statements.append(made)

    def of_cpus(self, words: Sequence[str]) -> None:
        if len(words) < 3:
            raise self.refuse("`cpu N` and what it does")
        if words[1] in ("all", "others"):
            cpus = range(words[1] == "others", self.n_cpus)
        else:
            number = self.integer(words[1], self.n_cpus, "CPU")
            cpus = range(number, number + 1)
        what, rest = words[2], words[3:]
        if what in BARE:
            self.end_of(rest)
            self.add(words, [(BARE[what], cpu, 0, 0, 0) for cpu in cpus])
        elif what == "rekey":
            slot, rest = self.key(rest, None)
            self.guests_only(what, slot)
            self.end_of(rest)
            self.add(words, [(lib.GHCB_CACHE_REKEY, cpu, 0, slot, 0) for cpu in cpus])
        elif what == "vm_page_flush":
            self.page_flush(words, cpus, rest)
        elif what in ON_A_LINE:
            self.add(words, [self.on_a_line(what, cpu, rest) for cpu in cpus])
        else:
            raise self.refuse(f"{_shown(what)}: no such operation")

    def on_a_line(self, what: str, cpu: int, rest: Sequence[str]) -> tuple[int, int, int, int, int]:
        line, rest = self.address(rest, cpu)
        slot, rest = self.key(rest, self.keys.get(line, lib.GHCB_KEY_SLOT_NONE))
        value = 0
        if what == "convert":
            self.keys[line] = slot
        elif what == "store":
            value, rest = self.content(line, rest)
        self.end_of(rest)
        return ON_A_LINE[what], cpu, line, slot, value

    def page_flush(self, words: Sequence[str], cpus: range, rest: Sequence[str]) -> None:
        ops = []
        for cpu in cpus:
            line, after = self.address(rest, cpu)
            slot, after = self.key(after, self.keys.get(line, lib.GHCB_KEY_SLOT_NONE))
            self.guests_only("vm_page_flush", slot)
            self.end_of(after)
            page = list(self.lines)[line] // PAGE_BYTES
            for spa in self.spas_of_text():  # a line of the page may be named only further down
                if spa // PAGE_BYTES == page:
                    ops.append((lib.GHCB_CACHE_PAGE_FLUSH, cpu, self.line(spa), slot, 0))
        self.add(words, ops)

    def spas_of_text(self) -> list[int]:
        found: dict[int, None] = dict.fromkeys(self.lines)
        for _, words in self.rows:
            for word in words:
                match = _ADDRESS.fullmatch(word)
                if match and words[0] in ("cpu", "memory", "never") and match[1][1:2] in "xX":
                    for cpu in range(self.n_cpus if match[2] else 1):
                        spa = _address(match, cpu)
                        if spa < SPA_LIMIT:
                            found[spa - spa % LINE_BYTES] = None
        return list(found)

    def cell_of_memory(self, words: Sequence[str]) -> None:
        line, rest = self.address(words[1:], 0)
        slot, rest = self.key(rest, lib.GHCB_KEY_SLOT_NONE)
        value, rest = self.content(line, rest)
        self.end_of(rest)
        (self.memory if words[0] == "memory" else self.never)[line] = lib.ghcb_cell(slot, value)

    def address(self, rest: Sequence[str], cpu: int) -> tuple[int, Sequence[str]]:
        if not rest:
            raise self.refuse("an address is missing")
        match = _ADDRESS.fullmatch(rest[0])
        if match is None:
            raise self.refuse(f"{_shown(rest[0])}: not an address, as 0x1000 or 0x1000+0x40*cpu")
        spa = _address(match, cpu)
        if spa >= SPA_LIMIT:
            raise self.refuse(f"address {spa:#x}: physical addresses end at 2**52")
        return self.line(spa - spa % LINE_BYTES), rest[1:]

    def line(self, spa: int) -> int:
        if spa not in self.lines:
            if len(self.lines) == cacheline.MAX_LINES:
                raise self.refuse(f"more than {cacheline.MAX_LINES} lines of memory")
            self.lines[spa] = len(self.lines)
            self.values.append(["noise", INITIAL])
            self.memory.append(lib.ghcb_cell(lib.GHCB_KEY_SLOT_NONE, 1))
            self.never.append(0)
        return self.lines[spa]

    def key(self, rest: Sequence[str], default: int | None) -> tuple[int, Sequence[str]]:
        if rest and rest[0] in ("c=0", "c=1"):
            slot = lib.GHCB_KEY_SLOT_SME if rest[0] == "c=1" else lib.GHCB_KEY_SLOT_NONE
            return slot, rest[1:]
        if rest and rest[0].startswith("asid="):
            asid = self.integer(rest[0][5:], lib.GHCB_KEY_SLOT_LAST_ASID + 1, "ASID")
            if asid == 0:
                raise self.refuse("ASID 0 is the host's")
            return asid, rest[1:]
        if default is None:
            raise self.refuse("a key is missing: c=0, c=1 or asid=N")
        return default, rest

    def guests_only(self, what: str, slot: int) -> None:
        if not 0 < slot <= lib.GHCB_KEY_SLOT_LAST_ASID:
            raise self.refuse(f"{what}: needs asid=N")

    def content(self, line: int, rest: Sequence[str]) -> tuple[int, Sequence[str]]:
        if not rest or _NAME.fullmatch(rest[0]) is None:
            shown = _shown(rest[0]) if rest else "nothing"
            raise self.refuse(f"{shown}: not a name for what the line holds")
        names = self.values[line]
        if rest[0] == names[0]:
            raise self.refuse("noise is what is read under another key; it has no store")
        if rest[0] not in names:
            if len(names) == lib.GHCB_LINE_N_VALUES:
                raise self.refuse(f"more than {len(names) - 1} contents of one line")
            names.append(rest[0])
        return names.index(rest[0]), rest[1:]

    def end_of(self, rest: Sequence[str]) -> None:
        if rest:
            raise self.refuse(f"{_shown(rest[0])}: more than the statement takes")


def _address(match: re.Match[str], cpu: int) -> int:
    base, step = (int(word, 0 if word[1:2] in "xX" else 10) for word in (match[1], match[2] or "0"))
    return base + step * cpu


def _shown(word: str) -> str:
    return ascii(word if len(word) <= MAX_SHOWN else word[:MAX_SHOWN] + "...")

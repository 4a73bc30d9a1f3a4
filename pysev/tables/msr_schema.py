"""The form of a row in ``pysev.tables.msr``.

A row says in words what ``ghcbcore/msr.h`` says in bits: neither repeats the other. Names of
functions and fields are the same in both, and a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from ghcbcore._cffi import lib

__all__ = ["Field", "Function", "Half", "Shown", "lib"]

Shown = Literal["decimal", "hex", "gfn", "bitmap"]
"""How a field is written: a count, a bit pattern, a page with its address, a set of bits."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a request or an answer.

    ``values`` gives words to single values and ``otherwise`` to all the rest ("" for none, ``{}``
    in it is the value). Where
    ``closed``, a value without words in ``values`` breaks a rule, and ``illegal`` has words for the
    breaches that have a name.
    """

    name: str
    what: str
    shown: Shown = "decimal"
    values: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    otherwise: str = ""
    closed: bool = False
    illegal: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Half:
    """One direction of a function.

    ``say`` is the sentence that a decoder prints, with ``{name}`` for a field as it is shown and
    ``{name:words}`` for the words of its value; it may be empty.
    """

    code: int
    say: str
    fields: tuple[Field, ...] = ()


@dataclass(frozen=True, slots=True)
class Function:
    """One function of the MSR protocol: what is asked, what is answered, where it holds."""

    name: str
    title: str
    what: str
    request: Half | None
    answer: Half | None
    since: int | None  # protocol version; None where no version is known
    needs: str
    seen: tuple[str, ...]  # implementations that have it
    source: str
    remarks: tuple[str, ...] = ()  # printed with every value of it

"""The form of rows in ``pysev.tables.nae``, ``features`` and ``terms``.

A row says in words what a number of ``include/`` means; the number itself it only names. How sure
a row is stands in the row: see ``Confidence``. Rows of the MSR protocol have a form of their own
(``pysev.tables.msr_schema``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from ghcbcore._cffi import lib

__all__ = [
    "Answer",
    "Bits",
    "Code",
    "Confidence",
    "Event",
    "Feature",
    "Input",
    "ReasonSet",
    "Shown",
    "Status",
    "StatusBit",
    "VendorCode",
    "VendorSpace",
    "When",
    "Word",
    "lib",
]

Confidence = Literal["agreed", "one source", "draft", "unconfirmed"]
"""``agreed``: upstream code or two implementations; ``one source``: seen once; ``draft``: an RFC or
a tree out of the mainline, the number may move; ``unconfirmed``: the name was seen, the use not."""

Shown = Literal["decimal", "hex", "gpa", "features", "reason"]
"""How a value is written: a count, a bit pattern, an address, a set of hypervisor features, or a
termination reason (set and code)."""


VendorSpace = Literal["msr", "nae", "usage", "termination", "malformed"]
"""Where a vendor may have codes of its own."""


@dataclass(frozen=True, slots=True)
class Bits:
    """One field inside a 64-bit word; ``values`` has words for some or all of its values."""

    name: str
    shift: int
    width: int
    what: str
    shown: Shown = "decimal"
    values: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Word:
    """What one 64-bit word of the page carries: as a whole, or in the fields of ``bits``.

    With ``bits``, every bit that no field claims must be zero. ``values`` has words for some or all
    values of a word without ``bits``.
    """

    what: str
    shown: Shown = "hex"
    bits: tuple[Bits, ...] = ()
    values: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class When:
    """A condition on a request: bits ``[shift + width - 1 : shift]`` of ``word`` are (not) one of
    ``values``."""

    word: str
    shift: int
    width: int
    values: tuple[int, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Input:
    """A field of the page that the request must mark valid, always or ``when`` that holds.

    ``required`` is false for a field that is used if it is valid and does without if not.
    """

    field: str
    what: str
    when: When | None = None
    required: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes back if nothing went wrong: registers, and ``sw_exit_info_2``."""

    fields: tuple[str, ...] = ()
    info2: Word | None = None
    returns: bool = True


@dataclass(frozen=True, slots=True)
class Event:
    """One event that a guest may request through the page.

    ``info1`` and ``info2`` are ``None`` where the guest sends 0. ``buffer`` says what stands at the
    address in ``sw_scratch``, "" if nothing does. ``feature`` is the number of the hypervisor
    feature bit without which the event must not be sent.
    """

    name: str
    code: int
    what: str
    since: int  # protocol version
    guests: Literal["SEV-ES", "SNP"]  # SEV-ES: SNP guests as well
    confidence: Confidence
    seen: tuple[str, ...]
    source: str
    info1: Word | None = None
    info2: Word | None = None
    inputs: tuple[Input, ...] = ()
    buffer: str = ""
    answer: Answer = field(default_factory=Answer)
    feature: int | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Code:
    """A number with a name and a meaning, of a list that has nothing else to say about it."""

    name: str
    code: int
    what: str
    confidence: Confidence = "agreed"


@dataclass(frozen=True, slots=True)
class Status:
    """An outcome in two halves: ``detail`` of ``None`` stands for every detail of its class."""

    name: str
    klass: int
    detail: int | None
    what: str
    confidence: Confidence = "agreed"


@dataclass(frozen=True, slots=True)
class Feature:
    """One bit of the hypervisor's feature bitmap."""

    name: str
    bit: int
    what: str
    requires: tuple[int, ...]  # bits that must be set with it
    msr: tuple[int, ...]  # requests of the MSR protocol that it brings
    nae: tuple[int, ...]  # events that it brings
    confidence: Confidence
    seen: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class StatusBit:
    """One bit of SEV_STATUS; ``word`` is what Linux prints, ``must`` that it must support it."""

    name: str
    bit: int
    word: str
    what: str
    must: bool = False


@dataclass(frozen=True, slots=True)
class VendorCode:
    """One code that the protocol does not define, and whose it is."""

    space: VendorSpace
    code: int
    name: str
    owner: str
    what: str
    source: str


@dataclass(frozen=True, slots=True)
class ReasonSet:
    """The termination reasons of one owner; two owners may have taken the same number."""

    name: str
    number: int
    owner: str
    codes: tuple[Code, ...]
    confidence: Confidence
    source: str
    remarks: tuple[str, ...] = ()

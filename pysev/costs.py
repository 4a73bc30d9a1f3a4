"""How long things take in ``pysev run``: the rows of ``pysev.tables.costs`` as numbers.

``costs.VMGEXIT`` is the value of the row ``vmgexit``, as an int in the row's unit: nanoseconds
where it is a time. It is looked up when it is read, so a flow that is built inside
``with using({"vmgexit": 5000}):`` has the user's value instead. Read it where a flow is
built; what a module reads while it is imported, a default argument say, stays as the table has it.

What depends on a machine (a walk over all its memory) is in ``pysev.scaling``.

Examples
--------
>>> VMGEXIT_BEFORE = value("vmgexit")
>>> with using(parse(["vmgexit=3us"])):
...     value("vmgexit")
3000
>>> value("vmgexit") == VMGEXIT_BEFORE
True
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from ghcbcore.errors import SevError

from .tables.costs import ROWS
from .tables.costs_schema import Cost

__all__ = [
    "MAX_FILE_BYTES",
    "BadCost",
    "changed",
    "changed_text",
    "costs_text",
    "load",
    "parse",
    "rows",
    "seconds_text",
    "unused",
    "using",
    "value",
]

NS, US, MS, S = 1, 1_000, 1_000_000, 1_000_000_000

MAX_FILE_BYTES = 1 << 20
MAX_NS = 1_000_000 * S
"""No cost is longer than eleven days: sums over all that a machine does must fit into 63 bits."""

MAX_COUNT = 1 << 20
MAX_CHARS = 40

_UNITS: Final = {"ns": NS, "us": US, "\N{MICRO SIGN}s": US, "ms": MS, "s": S}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ns|us|\N{MICRO SIGN}s|ms|s)", re.ASCII)
_TABLE: Final[dict[str, Cost]] = {row.name: row for row in ROWS}
_read: ContextVar[set[str] | None] = ContextVar("costs that were read", default=None)
_changed: ContextVar[Mapping[str, int]] = ContextVar("pysev costs", default={})  # noqa: B039


class BadCost(SevError, ValueError):
    """A cost has no such name, or no such value; the text says the nearest name."""


def __getattr__(name: str) -> int:
    if name.isupper() and name.lower() in _TABLE:
        return value(name.lower())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{_near(name.lower())}")


def rows() -> tuple[Cost, ...]:
    """Return the table."""
    return ROWS


def value(name: str) -> int:
    """Return what a row is worth now, in its unit.

    Raises
    ------
    BadCost
        There is no such row, or it is a report without a number.
    """
    row = _row(name)
    assert row.value is not None
    read = _read.get()
    if read is not None:
        read.add(row.name)
    return _changed.get().get(row.name, row.value)


def changed() -> dict[str, int]:
    """Return the values that are not the table's, by name."""
    return dict(sorted(_changed.get().items()))


def unused() -> tuple[str, ...]:
    """Return the names of ``changed`` that nobody has asked for since ``using`` began."""
    return tuple(sorted(set(_changed.get()) - (_read.get() or set())))


def changed_text(values: Mapping[str, int], left_out: Iterable[str]) -> str:
    """Say with which costs something was run that the table has not; nothing if with none."""
    said = []
    for name, n in values.items():
        note = " (of no use to this scenario)" if name in left_out else ""
        said.append(f"{name} {amount_text(_row(name), n)}{note}")
    return f"other costs than the table's: {', '.join(said)}\n" if said else ""


@contextmanager
def using(values: Mapping[str, int]) -> Iterator[None]:
    """Let rows have other values inside, in their own units; see ``parse`` and ``load``.

    Raises
    ------
    BadCost
        A name or a value is not possible.
    """
    checked = {}
    for name, n in values.items():
        row = _row(name)
        checked[row.name] = _in_range(row, n, name)
    token = _changed.set({**_changed.get(), **checked})
    read = _read.set(set())
    try:
        yield
    finally:
        _read.reset(read)
        _changed.reset(token)


def parse(texts: Iterable[str]) -> dict[str, int]:
    """Read ``wbinvd=2ms`` and ``psc_entries=128``: values by name, the last one of a name counts.

    Raises
    ------
    BadCost
        Not of this form; no such name, the text says the nearest; a time without a unit.
    """
    found = {}
    for text in texts:
        name, equals, said = text.partition("=")
        if not equals:
            raise BadCost(f"--cost {_shown(text)}: must be NAME=VALUE, as in wbinvd=2ms")
        row = _row(name.strip())
        found[row.name] = _value_of(row, said.strip(), f"--cost {_shown(text)}")
    return found


def load(path: str) -> dict[str, int]:
    """Read a TOML file: ``wbinvd = "2ms"``, ``psc_entries = 128``, at its top or under [costs].

    Raises
    ------
    BadCost
        No TOML, or what ``parse`` refuses; the text names the file.
    OSError
        The file cannot be read.
    """
    with Path(path).open("rb") as stream:
        raw = stream.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise BadCost(f"{path}: more than {MAX_FILE_BYTES >> 20} MiB")
    try:
        table: dict[str, Any] = tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise BadCost(f"{path}: no TOML: {error}") from error
    if isinstance(table.get("costs"), dict):
        if len(table) > 1:
            raise BadCost(f"{path}: costs at the top and under [costs]")
        table = table["costs"]
    found = {}
    for name, said in table.items():
        try:
            row = _row(name)
            found[row.name] = _value_of(row, said, _shown(str(name)))
        except BadCost as error:
            raise BadCost(f"{path}: {error}") from error
    return found


def _near(name: str) -> str:
    known = [row.name for row in ROWS if row.value is not None]
    near = difflib.get_close_matches(name[:MAX_CHARS], known, 1, 0.3)
    return f"; the nearest is {near[0]}" if near else "; `pysev costs` lists them"


def _row(name: str) -> Cost:
    row = _TABLE.get(name.replace("-", "_"))
    if row is None:
        raise BadCost(f"no cost {_shown(name)}{_near(name)}")
    if row.value is None:
        raise BadCost(f"{row.name} is a report, not a number that a run takes{_near(name)}")
    return row


def _value_of(row: Cost, said: object, where: str) -> int:
    if row.unit == "ns":
        match = _DURATION.fullmatch(said) if isinstance(said, str) and len(said) <= 64 else None
        if match is None:
            raise BadCost(f"{where}: a time with its unit, as in 250ns, 1.5us, 2ms or 1s")
        exact = Fraction(match[1]) * _UNITS[match[2]]
        if exact.denominator != 1:
            raise BadCost(f"{where}: a fraction of a nanosecond")
        return _in_range(row, int(exact), where)
    if isinstance(said, str) and re.fullmatch(r"[0-9]{1,20}", said, re.ASCII):
        said = int(said)
    if not isinstance(said, int) or isinstance(said, bool):
        raise BadCost(f"{where}: a whole number of {row.unit}")
    return _in_range(row, said, where)


def _in_range(row: Cost, n: int, where: str) -> int:
    low = 1 if row.unit == "entries" else 0
    high = MAX_NS if row.unit == "ns" else 100 if row.unit == "percent" else MAX_COUNT
    if not low <= n <= high:
        most = seconds_text(high) if row.unit == "ns" else f"{high} {row.unit}"
        raise BadCost(f"{where}: {row.name} can be {low} to {most}")
    return n


def _shown(text: str) -> str:
    return repr(text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 3] + "...")


def seconds_text(ns: int) -> str:
    """Return a time in its largest unit: ``1.5 ms``."""
    for unit, n in (("s", S), ("ms", MS), ("us", US)):
        if ns >= n:
            return f"{ns / n:.4g} {unit}" if ns % n else f"{ns // n} {unit}"
    return f"{ns} ns"


def amount_text(row: Cost, n: int | None) -> str:
    """Return a value of a row with its unit."""
    if n is None:
        return ""
    return seconds_text(n) if row.unit == "ns" else f"{n} {row.unit}"


def as_json() -> list[dict[str, Any]]:
    """Return the table for ``--json``: one object a row, with the value that counts now."""
    return [
        {
            "name": row.name,
            "what": row.what,
            "value": None if row.value is None else value(row.name),
            "table_value": row.value,
            "unit": row.unit if row.value is not None else None,
            "low": row.low,
            "high": row.high,
            "said": row.said or None,
            "status": row.status,
            "source": row.source,
        }
        for row in ROWS
    ]


def costs_text() -> str:
    """Return the table for people: numbers that runs take, then reports to compare with."""
    lines = ["what a run takes, and how sure that is\n\n"]
    numbers = [row for row in ROWS if row.value is not None]
    width = max(len(row.name) for row in numbers)
    for row in numbers:
        now = value(row.name)
        text = amount_text(row, now)
        if row.low is not None:
            text += f" ({amount_text(row, row.low)} to {amount_text(row, row.high)})"
        if now != row.value:
            text += f", the table has {amount_text(row, row.value)}"
        lines.append(f"{row.name:<{width}}  {text}\n")
        lines.append(f"{'':<{width}}  {row.what}\n")
        lines.append(f"{'':<{width}}  {row.status}: {row.source}\n")
    lines.append("\nwhat people have seen\n\n")
    for row in ROWS:
        if row.value is None:
            lines.append(f"{row.name:<{width}}  {row.what}: {row.said}\n")
            lines.append(f"{'':<{width}}  {row.status}: {row.source}\n")
    return "".join(lines)

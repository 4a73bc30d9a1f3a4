"""What can be decoded: one ``Kind`` for each, by name.

A module of this package says what it decodes in a tuple ``KINDS``; ``MODULES`` names the modules.
They are imported when they are asked for. ``pysev decode --as NAME`` takes every kind there is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from .explanation import Explanation

__all__ = ["MODULES", "Kind", "kind_of", "kinds"]

MODULES = (
    *("msr", "ghcb", "psc", "word", "vmsa", "sev", "pages"),
    *("rmp", "fault", "cpuid", "firmware"),
)
"""The modules with a tuple ``KINDS``, in the order in which their kinds are listed."""


class Kind(NamedTuple):
    """One thing that can be decoded.

    ``explain`` takes a unit. Where ``unit_bytes`` is None a unit is ``n_words`` 64-bit integers, as
    arguments: ``explain(value)``. Else it is ``bytes`` of length ``unit_bytes``, or of any length
    from ``least_bytes`` up, where that is given (then it must be the last of its file):
    ``explain(data)``. It raises nothing: what is wrong with a unit is among its findings.
    """

    name: str
    what: str
    unit_bytes: int | None
    explain: Callable[..., Explanation]
    n_words: int = 1
    least_bytes: int | None = None


@cache
def kinds() -> dict[str, Kind]:
    """Return every kind by its name."""
    found: dict[str, Kind] = {}
    for module in MODULES:
        for kind in importlib.import_module(f"{__package__}.{module}").KINDS:
            if kind.name in found:
                raise AssertionError(f"two kinds are named {kind.name!r}")
            found[kind.name] = kind
    return found


def kind_of(name: str) -> Kind:
    """Return the kind of that name.

    Raises
    ------
    ValueError
        ``--as 'xyz': must be one of msr, ...``
    """
    if name not in kinds():
        raise ValueError(f"--as {name[:40]!a}: must be one of {', '.join(kinds())}")
    return kinds()[name]

"""CPUs that are alike: the claim that a search with symmetry rests on, tested while it runs.

The language of flows cannot keep a CPU's number in a word, so steps are the same whichever CPU is
which; what could still tell CPUs apart is a property (a Python function over columns) and an
operation that asks for a number (``number_of``). Both are tried on states whose CPUs are permuted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ghcbcore._cffi import lib
from ghcbcore.errors import SevError

from ..compiler import Compiled
from ..flow import Property
from ..states import States
from .result import Array, PropertyError, predicate

__all__ = [
    "AsymmetryError",
    "asks_for_numbers",
    "numbering",
    "other_order",
    "refuse_order",
    "refuse_unlike_steps",
]


class AsymmetryError(SevError):
    """A flow says that its CPUs are alike, and a step of it treats them differently."""


def refuse_order(properties: Sequence[Property], states: States, permuted: States) -> None:
    """Refuse a property that sees another state where only the columns were permuted.

    Raises
    ------
    PropertyError
    """
    for p in properties:
        for title, holds in ((p.name, p.holds), (f"{p.name}, since", p.since)):
            if holds is None:
                continue
            if not np.array_equal(
                predicate(title, holds, states), predicate(title, holds, permuted)
            ):
                raise PropertyError(
                    f"property {p.name!r} depends on which CPU is which: CPUs are alike, and the "
                    "order of columns means nothing (without symmetry it can be asked)"
                )


def asks_for_numbers(compiled: Compiled) -> bool:
    """Return whether an operation asks for the number of a CPU."""
    return bool((compiled.program.insns["op"] == lib.GHCB_OP_NUMBER).any())


def other_order(random: np.random.Generator, n: int) -> Array:
    """Return ``n`` CPUs in an order drawn at random, but not in the one that would try nothing."""
    places = random.permutation(n)
    return np.roll(places, 1) if np.array_equal(places, np.arange(n)) else places


def numbering(compiled: Compiled) -> list[int]:
    """Return the alternatives that ask for the number of a CPU."""
    asks = compiled.program.insns["op"] == lib.GHCB_OP_NUMBER
    return [
        i
        for i, alt in enumerate(compiled.program.alts)
        if asks[int(alt["effect"]) : int(alt["effect"]) + int(alt["n_effects"])].any()
    ]


def refuse_unlike_steps(compiled: Compiled, records: Sequence[Array]) -> None:
    """Refuse a flow one of whose steps leads elsewhere if CPUs change places.

    Raises
    ------
    AsymmetryError
        The text names agent and operation.
    """
    program, n = compiled.program, compiled.n_others
    random = np.random.default_rng(0)
    for record in records:
        places = other_order(random, n)
        other = _permuted(compiled, record, places)
        where = np.argsort(places)
        for alt, own, bound in program.moves(record):
            after, again = record.copy(), other.copy()
            program.step(after, alt, own, bound)
            program.step(
                again,
                alt,
                int(where[own]) if own >= 0 else own,
                int(where[bound]) if bound >= 0 else bound,
            )
            if not np.array_equal(_permuted(compiled, after, places), again):
                raise AsymmetryError(
                    f"{compiled.agent_of(alt).name}, {compiled.ops[alt].text!r}: what it does "
                    "depends on which CPU is which; declare the flow with alike=False"
                )


def _permuted(compiled: Compiled, record: Array, places: Array) -> Array:
    """Return a record whose CPU ``i`` is what was CPU ``places[i]``."""
    n_global, n_slice = compiled.program.n_global, compiled.program.n_slice
    out = record.copy()
    out[n_global:] = record[n_global:].reshape(-1, n_slice)[places].reshape(-1)
    return out

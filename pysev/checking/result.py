"""What a check is asked and what it answers: properties, verdicts, steps of a counterexample."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import numpy as np

from ghcbcore.errors import SevError

from ..flow import Property
from ..host import Entry, Event, Hold, MpState
from ..states import States

__all__ = [
    "BUILT_IN",
    "DEADLOCK",
    "LIVELOCK",
    "VALUE_NAMES",
    "Array",
    "CheckResult",
    "Move",
    "PropertyError",
    "Step",
    "evaluate",
    "predicate",
]

DEADLOCK = "nobody waits for ever"
"""Name of the built-in property: where nothing happens any more, every agent may rest."""

LIVELOCK = "an end stays reachable"
"""Name of the built-in property: whatever has happened, some order of events still leads to an end:
a state after which nothing happens, or one in which every agent may rest and every ``end`` property
holds. Without it an endless loop would hide whoever waits beside it."""

BUILT_IN = (DEADLOCK, LIVELOCK)

VALUE_NAMES: dict[str, type[enum.IntEnum]] = {
    "mp_state": MpState,
    "reset_hold": Hold,
    "entry": Entry,
    "event": Event,
}
"""What the numbers of the host's words mean."""

Array = np.ndarray[Any, np.dtype[Any]]
Move = tuple[int, int, int]


class PropertyError(SevError):
    """A property raised, did not return one bool for each state, or is not one of states."""


@dataclass(frozen=True)
class Step:
    """One step of a counterexample; ``move`` is (alternative, own, other) of the program."""

    agent: str
    op: str
    detail: str
    move: Move


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes
    ----------
    verdict : str
        ``holds``, ``violated``, ``deadlock`` or ``unknown`` (not complete, nothing found).
    property : str
        The one violated after the fewest steps, the built-in ones only if no other is; empty if
        none is.
    states, transitions, depth : int
        Distinct states (CPUs that are alike are alike), steps between them, longest distance.
    complete : bool
        Every reachable state was looked at.
    counterexample : tuple of Step
        The shortest order of events that violates ``property``.
    repeats_from : int or None
        Of a counterexample that never ends: the index of the first of the steps that repeat.
    violations : dict of str to int
        Every property violated, with the number of steps after which it first is.
    reached : dict of str to bool
        Every ``sometimes`` property.
    stopped : str
        Why the search is not complete: ``memory``, ``seconds``, ``depth``; empty if it is.
    not_asked : tuple of str
        Properties that this kind of search, or one that was stopped, does not answer.
    missed : float
        Probability, at most, that a state was taken for another one and missed: 0 unless
        fingerprints stand for states.
    warnings : tuple of str
        What went wrong beside the search: a checkpoint that could not be written.
    """

    flow: str
    n_cpus: int
    verdict: str
    property: str
    states: int
    transitions: int
    depth: int
    complete: bool
    seconds: float
    counterexample: tuple[Step, ...]
    violations: dict[str, int]
    reached: dict[str, bool]
    n_bytes: int
    repeats_from: int | None = None
    stopped: str = ""
    not_asked: tuple[str, ...] = ()
    missed: float = 0.0
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "scenario": self.flow,
            "cpus": self.n_cpus,
            "verdict": self.verdict,
            "property": self.property,
            "states": self.states,
            "transitions": self.transitions,
            "depth": self.depth,
            "complete": self.complete,
            "stopped": self.stopped,
            "seconds": round(self.seconds, 4),
            "violations": self.violations,
            "reached": self.reached,
            "not_asked": list(self.not_asked),
            "missed": self.missed,
            "warnings": list(self.warnings),
            "bytes": self.n_bytes,
            "counterexample": [
                {"agent": s.agent, "op": s.op, "detail": s.detail} for s in self.counterexample
            ],
            "repeats_from": self.repeats_from,
        }


def evaluate(p: Property, states: States) -> Array:
    """Return whether a property holds, one bool for each state."""
    return predicate(p.name, p.holds, states)


def predicate(name: str, holds: Any, states: States) -> Array:
    try:
        result = np.asarray(holds(states))
    except Exception as error:
        raise PropertyError(f"property {name!r} raised {type(error).__name__}: {error}") from error
    if result.dtype != np.bool_ or result.shape != (len(states),):
        raise PropertyError(
            f"property {name!r} returned {result.dtype} of shape {result.shape}; "
            f"it must be bool of shape ({len(states)},)"
        )
    return result

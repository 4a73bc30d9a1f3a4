"""``check``: every order of events of a flow, breadth first, and what its properties say of it.

The search is ``ghcbcore.explorer``; ``search`` is the loop over its levels, where properties look
at each new state once, as arrays. States that violate an ``always`` property are not searched
further. ``end`` properties, and the question whether everybody may rest, look at the states after
which nothing happens. ``symmetry`` tests that CPUs are alike, ``reduction`` finds operations that
need no order, ``liveness`` answers ``eventually``, ``checkpoint`` keeps a search on disk.
"""

from .result import (
    BUILT_IN,
    DEADLOCK,
    LIVELOCK,
    VALUE_NAMES,
    CheckResult,
    PropertyError,
    Step,
    evaluate,
)
from .search import Progress, check

__all__ = [
    "BUILT_IN",
    "DEADLOCK",
    "LIVELOCK",
    "VALUE_NAMES",
    "CheckResult",
    "Progress",
    "PropertyError",
    "Step",
    "check",
    "evaluate",
]

"""``check``: every order of events of a flow, breadth first, and what its properties say of it.

The search is ``ghcbcore.explorer``; here is the loop over its levels, where properties look at
each new state once, as arrays. States that violate an ``always`` property are not searched
further. ``end`` properties, and the question whether everybody may rest, look at the states after
which nothing happens.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange, SevError
from ghcbcore.explorer import Explorer, MemoryLimit, NarrowIds

from . import frames
from .compiler import Compiled
from .flow import Flow, Property, Words
from .host import Entry, Event, Hold, MpState
from .states import States

__all__ = ["DEADLOCK", "LIVELOCK", "CheckResult", "PropertyError", "Step", "check"]

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

CHUNK = 1 << 16
WIDTHS = ((2, 1), (4, 1), (4, 2))
Array = np.ndarray[Any, np.dtype[Any]]
Move = tuple[int, int, int]


class PropertyError(SevError):
    """A property raised, or did not return one bool for each state."""


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
    violations : dict of str to int
        Every property violated, with the number of steps after which it first is.
    reached : dict of str to bool
        Every ``sometimes`` property.
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
            "seconds": round(self.seconds, 4),
            "violations": self.violations,
            "reached": self.reached,
            "bytes": self.n_bytes,
            "counterexample": [
                {"agent": s.agent, "op": s.op, "detail": s.detail} for s in self.counterexample
            ],
        }


@dataclass
class _Search:
    """One run of the explorer with its book of findings."""

    compiled: Compiled
    explorer: Explorer
    properties: Sequence[Property]
    first: dict[str, tuple[int, int]] = field(default_factory=dict)  # name: (depth, state)
    reached: dict[str, bool] = field(default_factory=dict)
    depth: int = 0
    complete: bool = True
    n_terminals: int = 0
    settled: list[Array] = field(default_factory=list)  # of each chunk: need not lead to an end

    def run(self, stop: Callable[[], bool]) -> None:
        ex = self.explorer
        self.reached = {p.name: False for p in self.properties if p.kind == "sometimes"}
        low = 0
        try:
            while low < ex.n_states:
                high = ex.n_states
                for begin in range(low, high, CHUNK):
                    if stop():
                        self.complete = False
                        return
                    self._chunk(begin, min(begin + CHUNK, high))
                low = high
                self.depth += low < ex.n_states
            self._look_back()
        except MemoryLimit:
            self.complete = False

    def _look_back(self) -> None:
        """Find the first state from which no order of events leads to an end any more."""
        marks = np.concatenate(self.settled)
        marks[self.explorer.terminals] = 1
        if marks.all():
            return
        self.explorer.reach_back(marks)
        if not marks.all():
            state = int(np.argmin(marks))
            self.first[LIVELOCK] = (len(self.explorer.path(state)) - 1, state)

    def _chunk(self, begin: int, end: int) -> None:
        ex = self.explorer
        gids, sids = ex.part_ids(begin, end)
        states = self._view(gids, sids)
        bad = np.zeros(end - begin, dtype=bool)
        for p in self.properties:
            if p.kind == "always":
                broken = ~evaluate(p, states)
                self._note(p.name, broken, np.arange(begin, end))
                bad |= broken
            elif p.kind == "sometimes" and not self.reached[p.name]:
                self.reached[p.name] = bool(evaluate(p, states).any())
        settled = bad.copy()
        rest = np.flatnonzero(states.at_rest())
        if rest.size:
            settled[rest] |= self._good_ends(self._view(gids[rest], sids[rest]))
        self.settled.append(settled.view(np.uint8))
        try:
            ex.expand(begin, end, bad.view(np.uint8))
        finally:
            self._ends(ex.terminals[self.n_terminals :])

    def _good_ends(self, states: States) -> Array:
        good = np.ones(len(states), dtype=bool)
        for p in self.properties:
            if p.kind == "end":
                good &= evaluate(p, states)
        return good

    def _ends(self, terminals: list[int]) -> None:
        self.n_terminals += len(terminals)
        for i in range(0, len(terminals), CHUNK):
            numbers = np.array(terminals[i : i + CHUNK], dtype=np.int64)
            gids = np.concatenate([self.explorer.part_ids(n, n + 1)[0] for n in numbers])
            sids = np.concatenate([self.explorer.part_ids(n, n + 1)[1] for n in numbers])
            states = self._view(gids, sids)
            for p in self.properties:
                if p.kind == "end":
                    self._note(p.name, ~evaluate(p, states), numbers)
            self._note(DEADLOCK, ~states.at_rest(), numbers)

    def _note(self, name: str, broken: Array, numbers: Array) -> None:
        if name not in self.first and broken.any():
            self.first[name] = (self.depth, int(numbers[int(np.argmax(broken))]))

    def _view(self, gids: Array, sids: Array) -> States:
        global_table, slice_table = self.explorer.tables()
        return States(
            self.compiled,
            len(gids),
            lambda i: np.take(global_table[:, i], gids),
            lambda i: np.take(slice_table[:, i], sids),
        )

    def steps(self, state: int) -> Iterator[Step]:
        """Replay the shortest way to a state on a record in which each CPU keeps its number."""
        program, record = self.compiled.program, self.compiled.initial_record()
        for target in self.explorer.path(state)[1:]:
            for move in program.moves(record):
                after = record.copy()
                program.step(after, *move)
                if self.explorer.state_of(after) == target:
                    yield _step(self.compiled, move, record, after)
                    record = after
                    break
            else:  # the search and the step disagree: our own mistake, never the user's
                raise AssertionError(f"no step leads to state {target}")


def check(
    flow: Flow,
    n_cpus: int,
    *,
    properties: Sequence[Property] = (),
    symmetric: bool = True,
    max_bytes: int = 8 << 30,
    seconds: float | None = None,
) -> CheckResult:
    """Explore every order of events of a flow.

    Parameters
    ----------
    flow : Flow
    n_cpus : int
        With the boot CPU; 1 to 64.
    properties : sequence of Property
        More of them, beside the flow's own.
    symmetric : bool
        Count states that differ only in which CPU is which as one.
    max_bytes : int
        Bound on the memory for states; beyond it the result is not ``complete``. A search takes
        some MiB before its first state.
    seconds : float, optional
        Bound on the time, looked at between pieces of 65,536 states.

    Raises
    ------
    PropertyError
        A property raised or returned something else than one bool a state.
    OutOfRange
        ``n_cpus`` is not possible, or ``max_bytes`` is too little for one state.
    """
    began = time.perf_counter()
    compiled = flow.compile(n_cpus)
    everything = [*flow.properties, *properties]
    names = [p.name for p in everything]
    if len({*names, *BUILT_IN}) != len(names) + len(BUILT_IN):
        raise PropertyError(f"two properties of one name: {sorted(names)}")
    limit = None if seconds is None else began + seconds
    search = _search(compiled, everything, symmetric, max_bytes, limit)
    # what is wrong is named before who waits, however long that takes to show
    first = sorted(
        search.first.items(),
        key=lambda item: (item[0] == LIVELOCK, item[0] == DEADLOCK, item[1][0]),
    )
    unreached = [name for name, reached in search.reached.items() if not reached]
    verdict, broken = "holds" if search.complete else "unknown", ""
    steps: tuple[Step, ...] = ()
    if first:
        broken, (_, state) = first[0]
        verdict = "deadlock" if broken in BUILT_IN else "violated"
        steps = tuple(search.steps(state))
    elif unreached and search.complete:
        verdict, broken = "violated", f"sometimes: {unreached[0]}"
    return CheckResult(
        flow=flow.name,
        n_cpus=n_cpus,
        verdict=verdict,
        property=broken,
        states=search.explorer.n_states,
        transitions=search.explorer.n_transitions,
        depth=search.depth,
        complete=search.complete,
        seconds=time.perf_counter() - began,
        counterexample=steps,
        violations={name: depth for name, (depth, _) in first},
        reached=search.reached,
        n_bytes=search.explorer.n_bytes,
    )


def _search(
    compiled: Compiled,
    properties: Sequence[Property],
    symmetric: bool,
    max_bytes: int,
    limit: float | None,
) -> _Search:
    record = compiled.initial_record()
    search: _Search | None = None
    for global_bytes, slice_bytes in WIDTHS:
        try:
            explorer = Explorer(
                compiled.program,
                record,
                symmetric=symmetric,
                global_bytes=global_bytes,
                slice_bytes=slice_bytes,
                max_bytes=max_bytes,
            )
        except MemoryLimit as error:
            if search is None:
                raise OutOfRange(f"max_bytes {max_bytes}: not even one state fits") from error
            search.complete = False  # what the narrower ids found is right, but not all
            return search
        search = _Search(compiled, explorer, properties)
        try:
            search.run(lambda: limit is not None and time.perf_counter() > limit)
        except NarrowIds:
            continue
        return search
    raise SevError(f"{compiled.flow.name}: more than 65536 distinct states of one CPU")


def evaluate(p: Property, states: States) -> Array:
    try:
        result = np.asarray(p.holds(states))
    except Exception as error:
        raise PropertyError(
            f"property {p.name!r} raised {type(error).__name__}: {error}"
        ) from error
    if result.dtype != np.bool_ or result.shape != (len(states),):
        raise PropertyError(
            f"property {p.name!r} returned {result.dtype} of shape {result.shape}; "
            f"it must be bool of shape ({len(states)},)"
        )
    return result


def agent_name(compiled: Compiled, alt: int, own: int) -> str:
    """Return ``boot CPU``, ``AP 3`` ...: the CPU of slice ``own`` has the number ``own + 1``."""
    agent = compiled.agent_of(alt)
    return f"{agent.name} {own + 1}" if agent.per_cpu else agent.name


def _step(compiled: Compiled, move: Move, before: Array, after: Array) -> Step:
    alt, own, other = move
    text = compiled.ops[alt].text
    if other >= 0:
        text += f" (CPU {other + 1})"
    return Step(agent_name(compiled, alt, own), text, _changes(compiled, own, before, after), move)


def _changes(compiled: Compiled, own: int, before: Array, after: Array) -> str:
    """Return which words changed, positions in programs left out."""
    flow, program = compiled.flow, compiled.program
    out = []
    for words, title in ((flow.vm, ""), (flow.boot, "boot "), (flow.g, "")):
        out += [title + change for change in _changed(flow, words, before, after, 0)]
    others: dict[str, list[int]] = {}
    for cpu in range(compiled.n_others):
        base = program.n_global + cpu * program.n_slice
        for change in _changed(flow, flow.cpu, before, after, base):
            if cpu == own:
                out.append(change)
            else:
                others.setdefault(change, []).append(cpu + 1)
    out += [f"{_cpus(numbers)} {change}" for change, numbers in others.items()]
    return "; ".join(out)


def _changed(flow: Flow, words: Words, before: Array, after: Array, base: int) -> Iterator[str]:
    positions = {agent.pc.name for agent in flow.agents}
    pages = {word.name for region in flow.frame_regions for word, _ in region.words}
    for f in words:
        old, new = int(before[base + f.index]), int(after[base + f.index])
        if old != new and f.name not in positions:
            name = f.name.split(".", 1)[1]
            if f.name in pages:
                yield f"{name}: {', '.join(frames.changes(old, new)) or f'{old:#x} -> {new:#x}'}"
                continue
            names = flow.value_names.get(name) or VALUE_NAMES.get(name)
            yield f"{name} {_value(old, names)} -> {_value(new, names)}"


def _cpus(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"CPU {numbers[0]}"
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"CPUs {numbers[0]}-{numbers[-1]}"
    return f"CPUs {', '.join(map(str, numbers))}"


def _value(value: int, names: type[enum.IntEnum] | None) -> str:
    name = {int(member): member.name for member in names or ()}.get(value)
    if name is not None:
        return name
    return str(value) if value < 1 << lib.GHCB_MSR_DATA_SHIFT else f"{value:#x}"

"""The loop over the levels of a search, and ``check``, which asks everything of one flow."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ghcbcore.errors import OutOfRange, SevError
from ghcbcore.explorer import Explorer, MemoryLimit, NarrowIds

from ..compiler import Compiled
from ..flow import Flow, Property
from ..states import States
from . import liveness, reduction, symmetry
from .checkpoint import BadCheckpoint, Checkpoint, identity
from .result import (
    BUILT_IN,
    DEADLOCK,
    LIVELOCK,
    Array,
    CheckResult,
    Move,
    PropertyError,
    Step,
    evaluate,
    predicate,
)
from .steps import step_of

__all__ = ["Progress", "check"]

Lively = dict[str, tuple[tuple[Step, ...], int | None]]
"""Of what is broken: name to steps, and where they repeat."""

CHUNK = 1 << 16
WIDTHS = ((2, 1), (4, 1), (4, 2))
PERMUTED = 1 << 12
"""States of which it is tried whether properties see the order of CPUs."""

WALKS, WALK_STEPS = 8, 32
"""Walks of so many steps on which it is tried whether operations do."""

NUMBERED = 8
"""States of a chunk in which each operation that asks for a number is looked for and tried."""

PROGRESS_SECONDS = 0.5
CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Progress:
    """How far a search is; handed to ``progress`` twice a second."""

    states: int
    transitions: int
    depth: int
    frontier: int
    """States of this level that are still to be expanded."""

    n_bytes: int
    seconds: float
    rate: float
    """States a second since the last report."""


@dataclass(frozen=True)
class Options:
    """How to search; see ``check``."""

    symmetric: bool = True
    reduced: bool = False
    fingerprints: bool = False
    threads: int = 1
    max_bytes: int = 8 << 30
    limit: float | None = None
    depth: int | None = None
    progress: Callable[[Progress], None] | None = None
    checkpoint: Checkpoint | None = None
    checkpoint_seconds: float = CHECKPOINT_SECONDS


@dataclass
class Search:
    """One run of the explorer with its book of findings."""

    compiled: Compiled
    explorer: Explorer
    properties: Sequence[Property]
    options: Options
    widths: tuple[int, int] = WIDTHS[0]
    seen: reduction.Seen | None = None
    first: dict[str, tuple[int, int]] = field(default_factory=dict)  # name: (depth, state)
    reached: dict[str, bool] = field(default_factory=dict)
    depth: int = 0
    stopped: str = ""
    n_terminals: int = 0
    settled: list[Array] = field(default_factory=list)  # of each chunk: need not lead to an end
    low: int = 0
    high: int = 0
    begin: int = 0
    n_permuted: int = 0
    warnings: list[str] = field(default_factory=list)
    not_asked: list[str] = field(default_factory=list)
    _told: tuple[float, int] = (0.0, 0)
    _saved: float = 0.0
    _began: float = 0.0

    @cached_property
    def numbering(self) -> list[int]:
        """Alternatives that ask for the number of a CPU."""
        return symmetry.numbering(self.compiled)

    def run(self) -> None:
        ex = self.explorer
        self._began = self._saved = time.perf_counter()
        self._told = (self._began, ex.n_states)
        if not self.high:
            self.reached = {p.name: False for p in self.properties if p.kind == "sometimes"}
            self.high = ex.n_states
        try:
            while self.low < ex.n_states:
                if self._level():
                    return
                self.low, self.high = self.high, ex.n_states
                self.begin = self.low
                self.depth += self.low < ex.n_states
                if self.options.fingerprints:
                    ex.release(self.low)
            self._save(force=True)
            if self.options.fingerprints:
                self.not_asked.append(LIVELOCK)
            else:
                self._look_back()
        except MemoryLimit:
            self.stopped = "memory"

    def _level(self) -> bool:
        """Expand what is left of a level; return whether the search is to stop."""
        if self.options.depth is not None and self.depth >= self.options.depth:
            self.stopped = "depth"
            self._save(force=True)
            return True
        while self.begin < self.high:
            now = time.perf_counter()
            if self.options.limit is not None and now > self.options.limit:
                self.stopped = "seconds"
                self._save(force=True)
                return True
            self._tell(now)
            self._save(force=False)
            end = min(self.begin + CHUNK, self.high)
            self._chunk(self.begin, end)
            self.begin = end
        return False

    def _tell(self, now: float) -> None:
        since, states = self._told
        if self.options.progress is None or now - since < PROGRESS_SECONDS:
            return
        ex = self.explorer
        self._told = (now, ex.n_states)
        self.options.progress(
            Progress(
                ex.n_states,
                ex.n_transitions,
                self.depth,
                self.high - self.begin,
                ex.n_bytes,
                now - self._began,
                (ex.n_states - states) / (now - since),
            )
        )

    def _save(self, *, force: bool) -> None:
        keep, now = self.options.checkpoint, time.perf_counter()
        if keep is None or not (force or now - self._saved >= self.options.checkpoint_seconds):
            return
        book = {name: getattr(self, name) for name in ("depth", "low", "high", "begin")}
        book |= {"first": self.first, "reached": self.reached, "n_terminals": self.n_terminals}
        settled = np.concatenate(self.settled) if self.settled else np.zeros(0, dtype=np.uint8)
        self.settled = [settled]
        try:
            keep.save(self.explorer, self.widths, book, settled)
        except OSError as error:  # a search of hours need not end with the disk
            self.warnings.append(f"the search could not be saved: {error}")
        self._saved = time.perf_counter()

    def take_up(self, book: dict[str, Any], settled: Array) -> None:
        """Go on where a checkpoint says."""
        for name in ("depth", "low", "high", "begin", "n_terminals"):
            setattr(self, name, int(book[name]))
        self.first = {name: (int(d), int(s)) for name, (d, s) in book["first"].items()}
        self.reached = {name: bool(yes) for name, yes in book["reached"].items()}
        self.settled = [settled]

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
        states = self.view(gids, sids)
        if self.options.symmetric and self.n_permuted < PERMUTED and self.compiled.n_others > 1:
            self._permute(gids, sids)
        if self.options.symmetric and self.compiled.n_others > 1 and self.numbering:
            self._permute_numbers(gids, sids)
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
            settled[rest] |= self._good_ends(self.view(gids[rest], sids[rest]))
        try:
            ex.expand(begin, end, bad.view(np.uint8))
        finally:
            self._ends(ex.terminals[self.n_terminals :])
        self.settled.append(settled.view(np.uint8))

    def _permute(self, gids: Array, sids: Array) -> None:
        """Try properties on states in which CPUs have changed places."""
        gids, sids = gids[:PERMUTED], sids[:PERMUTED]
        self.n_permuted += len(gids)
        random = np.random.default_rng(self.n_permuted)
        places = np.arange(self.compiled.n_others)
        # slices are sorted: the first and the last differ most; and every place gets another one
        for order in (places[::-1], np.roll(places, 1), random.permutation(places)):
            permuted = np.ascontiguousarray(sids[:, order])
            symmetry.refuse_order(self.properties, self.view(gids, sids), self.view(gids, permuted))

    def _permute_numbers(self, gids: Array, sids: Array) -> None:
        """Try operations that ask for a number where CPUs have changed places: where one stands."""
        global_table, slice_table = self.explorer.tables()
        for alt in self.numbering:
            agent, pc = self.compiled.agent_of(alt), self.compiled.program.alts[alt]["pc"]
            table, ids = (slice_table, sids) if agent.per_cpu else (global_table, gids[:, None])
            there = np.flatnonzero((table[:, agent.pc.index][ids] == pc).any(axis=1))
            some = there[np.linspace(0, len(there) - 1, min(NUMBERED, len(there))).astype(np.intp)]
            symmetry.refuse_unlike_steps(
                self.compiled,
                [np.concatenate([global_table[gids[i]], *slice_table[sids[i]]]) for i in some],
            )

    def _good_ends(self, states: States) -> Array:
        good = np.ones(len(states), dtype=bool)
        for p in self.properties:
            if p.kind == "end":
                good &= evaluate(p, states)
        return good

    def _ends(self, terminals: Array) -> None:
        self.n_terminals += len(terminals)
        for i in range(0, len(terminals), CHUNK):
            numbers = terminals[i : i + CHUNK]
            states = self.view(*self.explorer.part_ids_of(numbers))
            for p in self.properties:
                if p.kind == "end":
                    self._note(p.name, ~evaluate(p, states), numbers)
            self._note(DEADLOCK, ~states.at_rest(), numbers)

    def _note(self, name: str, broken: Array, numbers: Array) -> None:
        if name not in self.first and broken.any():
            self.first[name] = (self.depth, int(numbers[int(np.argmax(broken))]))

    def view(self, gids: Array, sids: Array) -> States:
        global_table, slice_table = self.explorer.tables()

        def global_word(i: int) -> Array:
            return np.take(global_table[:, i], gids)

        def cpu_word(i: int) -> Array:
            return np.take(slice_table[:, i], sids)

        if self.seen is None:
            return States(self.compiled, len(gids), global_word, cpu_word)
        return reduction.Watched(self.compiled, len(gids), global_word, cpu_word, self.seen)

    def steps(self, states: Sequence[int], agents: Sequence[int | None] = ()) -> Iterator[Step]:
        """Replay a way from state to state on a record in which each CPU keeps its number.

        ``agents[i]``, if it is there, is who has to take the step to ``states[i]``.
        """
        program, record = self.compiled.program, self.compiled.initial_record()
        for i, target in enumerate(states[1:], 1):
            mover = agents[i] if agents else None
            for move in program.moves(record):
                if mover is not None and self._agent(move) != mover:
                    continue
                after = record.copy()
                program.step(after, *move)
                if self.explorer.state_of(after) == target:
                    yield step_of(self.compiled, move, record, after)
                    record = after
                    break
            else:  # the search and the step disagree: our own mistake, never the user's
                raise AssertionError(f"no step leads to state {target}")

    def _agent(self, move: Move) -> int:
        """Return who moves, as ``Explorer.edges`` numbers agents."""
        alt, own, _ = move
        role = int(self.compiled.program.alts[alt]["role"])
        return role * 64 + (own if self.compiled.flow.agents[role].per_cpu else 0)


def check(
    flow: Flow,
    n_cpus: int,
    *,
    properties: Sequence[Property] = (),
    symmetric: bool = True,
    reduced: bool = False,
    fingerprints: bool = False,
    threads: int = 1,
    max_bytes: int = 8 << 30,
    seconds: float | None = None,
    depth: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    checkpoint: str | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
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
        Count states that differ only in which CPU is which as one, if the flow says that CPUs are
        ``alike``. Properties, and operations that ask for a number, are tried on permuted CPUs.
    reduced : bool
        Follow operations that are independent of all others alone (``pysev.checking.reduction``):
        fewer states, the same verdict. A counterexample is then looked for once more without, so
        that it is a shortest one.
    fingerprints : bool
        Keep 64 bits of hash for each state instead of the state: less memory with many CPUs. Then
        ``missed`` bounds the probability that a state was missed, and LIVELOCK is not asked.
    threads : int
        How many search; nothing in the result depends on it but ``seconds``.
    max_bytes : int
        Bound on the memory for states; beyond it the result is not ``complete``. A search takes
        some MiB before its first state.
    seconds, depth : float, int, optional
        Bounds on time, looked at between pieces of 65,536 states, and on the number of steps; of
        the reduced search, where it is ``reduced``.
    progress : function, optional
        Called with a ``Progress`` about twice a second.
    checkpoint : str, optional
        A folder in which the search is kept, every ``checkpoint_seconds`` and where it is stopped.
        If there is one of this search, it is taken up: the result is as if it had never been left.

    Raises
    ------
    PropertyError
        A property raised, returned something else than one bool a state, or depends on which CPU
        is which although CPUs are alike.
    AsymmetryError
        An operation does.
    OutOfRange
        ``n_cpus`` is not possible, ``max_bytes`` is too little for one state, or a checkpoint is
        asked for with ``fingerprints``.
    BadCheckpoint
        The folder holds another search, or a damaged one.
    """
    began = time.perf_counter()
    if depth is not None and depth < 0:
        raise OutOfRange(f"depth {depth}: must be at least 0")
    if checkpoint is not None and (fingerprints or reduced):
        raise OutOfRange("a checkpoint keeps whole states: not with fingerprints, not reduced")
    compiled = flow.compile(n_cpus)
    everything = [*flow.properties, *properties]
    names = [p.name for p in everything]
    if len({*names, *BUILT_IN}) != len(names) + len(BUILT_IN):
        raise PropertyError(f"two properties of one name: {sorted(names)}")
    options = Options(
        symmetric=symmetric and flow.alike,
        fingerprints=fingerprints,
        threads=threads,
        max_bytes=max_bytes,
        limit=None if seconds is None else began + seconds,
        depth=depth,
        progress=progress,
        checkpoint_seconds=checkpoint_seconds,
    )
    if checkpoint is not None:
        who = identity(compiled, everything, f"symmetric={options.symmetric}")
        options = replace(options, checkpoint=Checkpoint(checkpoint, who))
    if options.symmetric and symmetry.asks_for_numbers(compiled):
        symmetry.refuse_unlike_steps(compiled, list(_walks(compiled)))
    search = _reduced(compiled, everything, options) if reduced else None
    if search is not None and (search.first or not all(search.reached.values())):
        # the same once more for a shortest way, unless that takes too much
        whole = _search(compiled, everything, replace(options, depth=_depth_to_look(search, depth)))
        if whole.first or not whole.stopped:
            whole.reached = {
                name: yes or search.reached[name] for name, yes in whole.reached.items()
            }
            search = whole
    if search is None:
        search = _search(compiled, everything, options)
    return _result(search, _lively(compiled, everything, search, options), began)


def _depth_to_look(search: Search, depth: int | None) -> int | None:
    """Return how deep a shortest way can lie, if one was found."""
    if not search.first or LIVELOCK in search.first:
        return depth
    deepest = 1 + max(d for d, _ in search.first.values())
    return deepest if depth is None else min(depth, deepest)


def _result(search: Search, lively: Lively | None, began: float) -> CheckResult:
    # what is wrong is named before who waits, however long that takes to show
    first = sorted(
        search.first.items(),
        key=lambda item: (item[0] == LIVELOCK, item[0] == DEADLOCK, item[1][0]),
    )
    ex = search.explorer
    complete = not search.stopped
    unreached = [name for name, reached in search.reached.items() if not reached]
    not_asked = list(search.not_asked)
    if not complete:
        not_asked.append(LIVELOCK)
    verdict, broken, repeats_from = "holds" if complete else "unknown", "", None
    steps: tuple[Step, ...] = ()
    violations = {name: depth for name, (depth, _) in first}
    if first:
        broken, (_, state) = first[0]
        verdict = "deadlock" if broken in BUILT_IN else "violated"
        steps = tuple(search.steps(ex.path(state)))
    elif unreached and complete:
        verdict, broken = "violated", f"sometimes: {unreached[0]}"
    eventually = [p.name for p in search.properties if p.kind == "eventually"]
    if eventually and lively is None:
        not_asked += eventually
        if verdict == "holds":
            verdict = "unknown"
    for name, (way, repeats) in (lively or {}).items():
        violations[name] = len(way)
        if verdict == "holds":
            verdict, broken, steps, repeats_from = "violated", name, way, repeats
    return CheckResult(
        flow=search.compiled.flow.name,
        n_cpus=search.compiled.n_others + 1,
        verdict=verdict,
        property=broken,
        states=ex.n_states,
        transitions=ex.n_transitions,
        depth=search.depth,
        complete=complete,
        seconds=time.perf_counter() - began,
        counterexample=steps,
        violations=violations,
        reached=search.reached,
        n_bytes=ex.n_bytes,
        repeats_from=repeats_from,
        stopped=search.stopped,
        not_asked=tuple(not_asked),
        missed=math.ldexp(float(ex.n_states) ** 2, -65) if ex.fingerprints else 0.0,
        warnings=tuple(search.warnings),
    )


def _walks(compiled: Compiled) -> Iterator[Array]:
    """Yield records of a few walks at random, always the same."""
    random = np.random.default_rng(0)
    for _ in range(WALKS):
        record = compiled.initial_record()
        for _ in range(WALK_STEPS):
            yield record.copy()
            moves = compiled.program.moves(record)
            if not moves:
                break
            compiled.program.step(record, *moves[int(random.integers(len(moves)))])


def _lively(
    compiled: Compiled, properties: Sequence[Property], search: Search, options: Options
) -> Lively | None:
    """Answer ``eventually``; None if that takes too much."""
    asked = [p for p in properties if p.kind == "eventually"]
    if not asked:
        return {}
    plain = replace(options, symmetric=False, fingerprints=False, checkpoint=None)
    whole = search
    if options.symmetric or search.seen is not None or options.fingerprints:
        whole = _search(compiled, properties, plain)
    if whole.stopped:
        return None
    ex = whole.explorer
    states = whole.view(*ex.part_ids(0, ex.n_states))

    # what follows from a state that violates an `always` was not looked for
    cut = np.zeros(ex.n_states, dtype=bool)
    for p in properties:
        if p.kind == "always":
            cut |= ~evaluate(p, states)

    def where(p: Property) -> tuple[Array, Array]:
        since = np.zeros(ex.n_states, dtype=bool)
        since[0] = True
        if p.since is not None:
            since = predicate(f"{p.name}, since", p.since, states)
        return since, evaluate(p, states) | cut

    out = {}
    try:
        graph = liveness.Graph.of(ex)
    except MemoryLimit:
        return None
    for p in asked:
        way = liveness.never(graph, p, where)
        if way is not None:
            out[p.name] = (tuple(whole.steps(way.states, way.agents)), way.repeats_from)
    return out


def _reduced(compiled: Compiled, properties: Sequence[Property], options: Options) -> Search | None:
    """Search with local operations followed alone; None if properties came to read more."""
    seen = reduction.Seen()
    record = compiled.initial_record()
    slices = record[compiled.program.n_global :].reshape(1, -1, compiled.program.n_slice)
    states = reduction.Watched(
        compiled, 1, lambda i: record[i : i + 1], lambda i: slices[:, :, i], seen
    )
    for p in properties:
        evaluate(p, states)
    states.at_rest()
    size = seen.size()
    alone = reduction.followed_alone(compiled, seen)
    search = _search(compiled, properties, options, alone, seen)
    return search if seen.size() == size else None


def _search(
    compiled: Compiled,
    properties: Sequence[Property],
    options: Options,
    alone: Array | None = None,
    seen: reduction.Seen | None = None,
) -> Search:
    record = compiled.initial_record()
    search: Search | None = None
    keep = options.checkpoint
    for widths in WIDTHS:
        if keep is not None and keep.widths is not None and keep.widths != widths:
            if search is None:
                continue  # narrower ids did not suffice when it was written
            keep.start_again()
        try:
            explorer = Explorer(
                compiled.program,
                record,
                symmetric=options.symmetric,
                global_bytes=widths[0],
                slice_bytes=widths[1],
                max_bytes=options.max_bytes,
                n_threads=options.threads,
                fingerprints=options.fingerprints,
                alone=alone,
            )
            again = Search(compiled, explorer, properties, options, widths, seen)
            if keep is not None and keep.widths == widths:
                again.take_up(*keep.load(explorer))
        except MemoryLimit as error:
            if search is None:
                what = "not even one state fits"
                if keep is not None and keep.widths is not None:
                    what = f"the search in {keep.folder} does not fit"
                raise OutOfRange(f"max_bytes {options.max_bytes}: {what}") from error
            search.stopped = "memory"  # what the narrower ids found is right, but not all
            return search
        search = again
        try:
            search.run()
        except NarrowIds:
            continue
        return search
    if search is None and keep is not None:
        raise BadCheckpoint(f"{keep.folder}: ids of widths {keep.widths}")
    raise SevError(f"{compiled.flow.name}: more than 65536 distinct states of one CPU")

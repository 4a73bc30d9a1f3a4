"""``eventually``: something good happens on every way on which nobody is put off for ever.

Theory of operation. ``eventually(then, since)`` is broken by a way that meets ``since`` (the first
state, if there is none) and never ``then`` afterwards: it ends, or it goes round for ever. Going
round counts only if it is *fair*. Weakly: no agent could act all the while and never did. Strongly:
no agent could act again and again and never did. So among the states reached from ``since`` without
``then`` we look for one after which nothing happens, and for a strongly connected component that is
fair; a part of it that is not is taken away until it is or nothing is left (for weak fairness that
is never needed: what every state of a component allows, every state of its parts does).

Fairness is about single agents, so CPUs are not taken for alike here, and operations are not
reduced: this is a search of its own, of more states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ghcbcore.explorer import Explorer
from ghcbcore.stategraph import components

from ..flow import Property
from .result import Array

__all__ = ["Graph", "Way", "never"]


@dataclass(frozen=True)
class Graph:
    """Every state and every step, and who takes it (``Explorer.edges``)."""

    explorer: Explorer
    source: Array
    target: Array
    agent: Array

    @classmethod
    def of(cls, explorer: Explorer) -> Graph:
        return cls(explorer, *explorer.edges())


@dataclass(frozen=True)
class Way:
    """States of a way that breaks the property; from ``states[repeats_from]`` on it repeats.

    ``agents[i]`` is who has to take the step to ``states[i]``, as numbered in ``Graph.agent``; None
    if it does not matter.
    """

    states: tuple[int, ...]
    repeats_from: int | None
    agents: tuple[int | None, ...]


def never(graph: Graph, p: Property, good: Callable[[Property], tuple[Array, Array]]) -> Way | None:
    """Return a way on which ``since`` is met and ``then`` never again; None if there is none.

    ``good`` gives two bool arrays over all states: where ``since`` holds, and where ``then`` does.
    """
    since, then = good(p)
    n = graph.explorer.n_states
    inside = ~then[graph.source] & ~then[graph.target]
    source, target, agent = graph.source[inside], graph.target[inside], graph.agent[inside]
    start = since & ~then
    reached = _closure(n, source, target, start)
    if not reached.any():
        return None
    ends = np.zeros(n, dtype=bool)
    ends[graph.explorer.terminals] = True
    stuck = np.flatnonzero(ends & reached)
    kept = reached[source]
    source, target, agent = source[kept], target[kept], agent[kept]
    able = _able(graph)
    circle = _fair_component(n, reached, source, target, agent, able, p.fairness)
    if stuck.size:
        states = _to(graph, start, source, target, int(stuck[0]))
        return Way(states, None, (None,) * len(states))
    if circle is None:
        return None
    entry = int(circle[0])
    lead = _to(graph, start, source, target, entry)
    following, movers = _round(circle, source, target, agent, able)
    return Way((*lead, *following), len(lead) - 1, ((None,) * len(lead) + movers))


def _able(graph: Graph) -> dict[int, Array]:
    """Return for each agent the states in which it can act, sorted."""
    agents = np.unique(graph.agent)
    return {int(a): np.unique(graph.source[graph.agent == a]) for a in agents}


def _closure(n: int, source: Array, target: Array, start: Array) -> Array:
    """Return which states are reached from ``start`` over edges sorted by source."""
    reached = start.copy()
    frontier = np.flatnonzero(start)
    first = np.searchsorted(source, np.arange(n + 1))
    while frontier.size:
        counts = first[frontier + 1] - first[frontier]
        at = np.repeat(first[frontier] - np.cumsum(counts) + counts, counts)
        found = np.unique(target[at + np.arange(counts.sum())])
        frontier = found[~reached[found]]
        reached[frontier] = True
    return reached


def _fair_component(
    n: int,
    states: Array,
    source: Array,
    target: Array,
    agent: Array,
    able: dict[int, Array],
    fairness: str,
) -> Array | None:
    """Return the states of a component in which one can go round fairly; None if there is none."""
    left = states.copy()
    can_act = {a: np.isin(np.arange(n), where) for a, where in able.items()}
    while True:
        kept = left[source] & left[target]
        s, t, who = source[kept], target[kept], agent[kept]
        label = components(n, np.ascontiguousarray(s), np.ascontiguousarray(t))
        within = np.flatnonzero(label[s] == label[t])
        removed = False
        states_of, agents_of = _by_label(label, np.flatnonzero(left)), _by_label(label[s], within)
        for number, steps in agents_of.items():
            members = states_of[number]
            taken = set(np.unique(who[steps]).tolist())
            unfair = [
                a
                for a, where in can_act.items()
                if a not in taken and _counts(where[members], fairness)
            ]
            if not unfair:
                return np.array(members, dtype=np.int64)
            if fairness == "strong":  # the states in which it can act are what is in the way
                for a in unfair:
                    left[members[can_act[a][members]]] = False
            else:
                left[members] = False
            removed = True
        if not removed:
            return None


def _by_label(label: Array, which: Array) -> dict[int, Array]:
    """Return the elements of ``which``, in order, for each label that one of them has."""
    order = which[np.argsort(label[which], kind="stable")]
    numbers, first = np.unique(label[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(order, first[1:]), strict=False))


def _counts(is_able: Array, fairness: str) -> bool:
    """Return whether an agent is put off by going round states in which it ``is_able`` to act."""
    if fairness == "none":
        return False
    return bool(is_able.all() if fairness == "weak" else is_able.any())


def _to(graph: Graph, start: Array, source: Array, target: Array, end: int) -> tuple[int, ...]:
    """Return a shortest way to ``end``: to a state of ``start`` first, then without ``then``."""
    before = _search(source, target, np.flatnonzero(start), end)
    way = [end]
    while not start[way[0]]:
        way.insert(0, before[way[0]])
    return (*graph.explorer.path(way[0])[:-1], *way)


def _search(source: Array, target: Array, starts: Array, end: int) -> dict[int, int]:
    """Return of each state found which one it was found from, breadth first up to ``end``."""
    before: dict[int, int] = {int(s): int(s) for s in starts}
    frontier = list(before)
    while frontier and end not in before:
        following = []
        for state in frontier:
            low, high = np.searchsorted(source, [state, state + 1])
            for found in target[low:high].tolist():
                if found not in before:
                    before[found] = state
                    following.append(found)
        frontier = following
    return before


def _round(
    circle: Array, source: Array, target: Array, agent: Array, able: dict[int, Array]
) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
    """Return a way round a component, from its first state back to it, fair to everybody."""
    inside = np.isin(source, circle) & np.isin(target, circle)
    source, target, agent = source[inside], target[inside], agent[inside]
    way: list[int] = [int(circle[0])]
    movers: list[int | None] = [None]

    def hop(goal: int) -> None:
        way.extend(_hop(source, target, way[-1], goal))
        movers.extend([None] * (len(way) - len(movers)))

    for a in sorted(able):
        steps = np.flatnonzero(agent == a)
        if steps.size:  # take one of its steps
            hop(int(source[steps[0]]))
            way.append(int(target[steps[0]]))
            movers.append(a)
        else:  # pass a state in which it cannot act, if there is one
            resting = np.setdiff1d(circle, able[a])
            if resting.size:
                hop(int(resting[0]))
    hop(int(circle[0]))
    return tuple(way[1:]), tuple(movers[1:])


def _hop(source: Array, target: Array, start: int, end: int) -> list[int]:
    before = _search(source, target, np.array([start]), end)
    way: list[int] = []
    state = end
    while state != start:
        way.insert(0, state)
        state = before[state]
    return way

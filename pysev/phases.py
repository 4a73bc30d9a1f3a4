"""Where the modelled time of a run went: phases, work and waiting, and what had to wait for what.

``Simulator.moves`` says of each operation when it happened, how long it kept its agent busy, and
which operation of somebody else ended the agent's sleep. Each agent's time is thus cut into work
(an operation's cost) and waiting (from the end of one operation to the next).

The *critical path* goes back from the boot CPU's last operation: from an operation that was woken
to the one that woke it, else to the agent's own one before. What lies on it is what would have to
be shorter for the whole to be.

Units: everything here is nanoseconds until ``as_json``, which has seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ghcbcore._cffi import lib

from .compiler import Compiled
from .flow import Agent

__all__ = ["Analysis", "Part", "Phase", "Share", "analyse", "event_weights"]

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
Events = NDArray[np.void]

MAX_SHOWN = 8


@dataclass(frozen=True)
class Phase:
    """One phase of an agent's program, over all CPUs that have one.

    Attributes
    ----------
    begin_ns, end_ns : int
        From the first arrival at one of its labels to the last departure.
    ns : int
        How long somebody of this kind was in it: the same, unless it was left in between.
    work_ns, wait_ns : int
        How long they were busy and how long they waited, added up.
    vmgexits : int
        VMGEXITs of any CPU in that time.
    """

    agent: str
    name: str
    begin_ns: int
    end_ns: int
    ns: int
    work_ns: int
    wait_ns: int
    steps: int
    vmgexits: int


@dataclass(frozen=True)
class Share:
    """An operation's part of some time: as work, or as what was waited for until it happened."""

    agent: str
    op: str
    kind: str  # "work" or "wait"
    ns: int
    times: int


@dataclass(frozen=True)
class Part:
    """What one kind of agent did in all."""

    agent: str
    n: int
    steps: int
    work_ns: int
    wait_ns: int


@dataclass(frozen=True)
class Analysis:
    """Where the time of a run went; made by ``analyse``. Shares are of ``path_ns``.

    ``path`` adds up to ``path_ns``, the time of the last operation of ``boot`` and its cost. It
    has the largest first, as have ``waits``: what the boot CPU waited for.
    """

    phases: tuple[Phase, ...]
    parts: tuple[Part, ...]
    boot: str
    path: tuple[Share, ...]
    path_ns: int
    waits: tuple[Share, ...]

    def phases_json(self) -> list[dict[str, Any]]:
        """Return the phases for ``--json``, in the order in which they began."""
        return [
            {
                "agent": p.agent,
                "name": p.name,
                "begin_seconds": p.begin_ns / 1e9,
                "end_seconds": p.end_ns / 1e9,
                "seconds": p.ns / 1e9,
                "share": _share(p.ns, self.path_ns),
                "work_seconds": p.work_ns / 1e9,
                "wait_seconds": p.wait_ns / 1e9,
                "steps": p.steps,
                "vmgexits": p.vmgexits,
            }
            for p in self.phases
        ]

    def dominates_json(self) -> dict[str, Any]:
        """Return what took the time, for ``--json``: critical path, agents, waits."""
        return {
            "critical_path": [
                {
                    "agent": s.agent,
                    "op": s.op,
                    "kind": s.kind,
                    "seconds": s.ns / 1e9,
                    "share": _share(s.ns, self.path_ns),
                    "times": s.times,
                }
                for s in self.path[:MAX_SHOWN]
            ],
            "critical_path_seconds": self.path_ns / 1e9,
            "agents": [
                {
                    "agent": p.agent,
                    "number": p.n,
                    "steps": p.steps,
                    "work_seconds": p.work_ns / 1e9,
                    "wait_seconds": p.wait_ns / 1e9,
                }
                for p in self.parts
            ],
            "boot_waits": [
                {"op": s.op, "seconds": s.ns / 1e9, "times": s.times}
                for s in self.waits[:MAX_SHOWN]
            ],
        }

    def as_text(self) -> str:
        """Return phases and critical path for people, as a part of ``run``'s report."""
        parts = []
        if self.phases:
            rows = [["phase", "begin s", "end s", "share", "work s", "VMGEXITs", "agent"]]
            for p in self.phases:
                times = [_seconds(p.begin_ns), _seconds(p.end_ns), _percent(p.ns, self.path_ns)]
                rows.append([p.name, *times, _seconds(p.work_ns), str(p.vmgexits), p.agent])
            parts += ["\nwhere the time went\n", _columns(rows)]
        if self.path:
            until = f"{_seconds(self.path_ns)} s until the {self.boot}'s last step"
            parts.append(f"\nwhat dominates the {until}\n")
            rows = [["share", "seconds", "times", ""]]
            for s in self.path[:MAX_SHOWN]:
                text = f"{s.agent}: {s.op}" if s.kind == "work" else f"{s.agent} waits: {s.op}"
                rows.append([_percent(s.ns, self.path_ns), _seconds(s.ns), str(s.times), text])
            parts.append(_columns(rows))
        if self.parts:
            rows = [["steps", "work s", "waiting s", "number", "agent"]]
            for part in self.parts:
                times = [_seconds(part.work_ns), _seconds(part.wait_ns)]
                rows.append([str(part.steps), *times, str(part.n), part.agent])
            parts += ["\nwho worked and who waited, all CPUs added up\n", _columns(rows)]
        return "".join(parts)


def _seconds(ns: int) -> str:
    return f"{ns / 1e9:.6f}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _columns(rows: list[list[str]]) -> str:
    """Align numbers to the right; a first column of words, and the last column, to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    words = not rows[-1][0][:1].isdigit()
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i == 0 and words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row[:-1], widths, strict=False))
        ]
        lines.append("  " + "  ".join([*cells, row[-1]]).rstrip() + "\n")
    return "".join(lines)


def _share(ns: int, total_ns: int) -> float:
    return round(ns / total_ns, 6) if total_ns else 0.0


def event_weights(compiled: Compiled, moves: Events, n_events: int) -> I64:
    """Return for how many alike each event of a run stands: ``times`` of its operation."""
    times = np.array([o.times for o in compiled.ops], np.int64)
    first = moves["first_event"].astype(np.int64)
    count = np.diff(np.append(first, n_events))
    return np.repeat(times[moves["alt"]], count)


def analyse(compiled: Compiled, moves: Events, events: Events) -> Analysis:
    """Take a run apart.

    Parameters
    ----------
    moves, events : array
        ``Simulator.moves()`` and ``Simulator.events()`` of one run of ``compiled``.
    """
    agents = compiled.flow.agents
    counts = [compiled.n_others if agent.per_cpu else 1 for agent in agents]
    first_of = np.concatenate([[0], np.cumsum(counts)])
    role = compiled.program.alts["role"].astype(np.int64)[moves["alt"]]
    when, took = moves["when"].astype(np.int64), moves["took"].astype(np.int64)
    order = np.argsort(moves["agent"], kind="stable")
    previous = np.full(len(moves), -1, np.int64)
    same = moves["agent"][order[1:]] == moves["agent"][order[:-1]]
    previous[order[1:][same]] = order[:-1][same]
    arrived = np.where(previous >= 0, when[previous] + took[previous], 0)
    arrived = np.minimum(arrived, when)
    left = when + took
    parts = tuple(
        Part(
            agent.name,
            counts[r],
            int((role == r).sum()),
            int(took[role == r].sum()),
            int((when - arrived)[role == r].sum()),
        )
        for r, agent in enumerate(agents)
    )
    vmgexits = events["call"] == lib.GHCB_CALL_VMGEXIT
    weights = event_weights(compiled, moves, len(events))[vmgexits]
    at = events["time_ns"][vmgexits].astype(np.int64)
    phases = [
        phase
        for r, agent in enumerate(agents)
        for phase in _phases(compiled, agent, r, moves, role, when, arrived, left, (at, weights))
    ]
    phases.sort(key=lambda p: (p.begin_ns, p.end_ns))
    boot = next((r for r, agent in enumerate(agents) if not agent.per_cpu), 0)
    mine = np.flatnonzero(moves["agent"] == first_of[boot])
    path, path_ns = _path(compiled, moves, previous, mine)
    waits = _add_up(
        (
            agents[boot].name,
            compiled.ops[int(moves["alt"][i])].text,
            "wait",
            int(when[i] - arrived[i]),
        )
        for i in mine
    )
    return Analysis(tuple(phases), parts, agents[boot].name, path, path_ns, waits)


def _phases(
    compiled: Compiled,
    agent: Agent,
    r: int,
    moves: Events,
    role: I64,
    when: I64,
    arrived: I64,
    left: I64,
    exits: tuple[I64, I64],
) -> Iterable[Phase]:
    """The phases of one kind of agent that came to pass."""
    names = list(dict.fromkeys(agent.phases.values()))
    labels = list(agent.labels)
    number = {name: i for i, name in enumerate(names)}
    of_label = np.array([number.get(agent.phases.get(label, ""), -1) for label in labels], np.int64)
    pcs = compiled.program.alts["pc"].astype(np.int64)[moves["alt"]]
    mine = np.flatnonzero(role == r)
    which = of_label[pcs[mine]]
    at, weights = exits
    for i, name in enumerate(names):
        here = mine[which == i]
        if not len(here):
            continue
        begins, ends = _union(arrived[here], left[here])
        inside = np.searchsorted(begins, at, side="right") - 1
        counts = (inside >= 0) & (at < ends[np.maximum(inside, 0)])
        yield Phase(
            agent.name,
            name,
            int(begins[0]),
            int(ends[-1]),
            int((ends - begins).sum()),
            int((left - when)[here].sum()),
            int((when - arrived)[here].sum()),
            len(here),
            int(weights[counts].sum()),
        )


def _union(begins: I64, ends: I64) -> tuple[I64, I64]:
    """Join intervals that overlap or touch; sorted."""
    order = np.argsort(begins, kind="stable")
    begins, ends = begins[order], np.maximum.accumulate(ends[order])
    starts = np.append(True, begins[1:] > ends[:-1])
    return begins[starts], ends[np.append(starts[1:], True)]


def _path(
    compiled: Compiled, moves: Events, previous: I64, mine: I64
) -> tuple[tuple[Share, ...], int]:
    """Go back from the boot CPU's last operation to the start."""
    if not len(mine):
        return (), 0
    when, took = moves["when"].tolist(), moves["took"].tolist()
    alts, woken_by, before = moves["alt"].tolist(), moves["woken_by"].tolist(), previous.tolist()
    agents = compiled.flow.agents
    role = compiled.program.alts["role"].tolist()
    found: dict[tuple[int, str], tuple[int, int]] = {}

    def take(alt: int, kind: str, ns: int) -> None:
        had, times = found.get((alt, kind), (0, 0))
        found[alt, kind] = had + ns, times + 1

    i = int(mine[-1])
    end = when[i] + took[i]
    take(alts[i], "work", took[i])
    while i >= 0:
        cause = woken_by[i] - 1 if woken_by[i] else before[i]
        if cause < 0:
            take(alts[i], "wait", when[i])
        elif woken_by[i]:
            take(alts[i], "wait", when[i] - when[cause])
        else:
            busy = min(took[cause], when[i] - when[cause])
            take(alts[cause], "work", busy)
            if when[i] - when[cause] > busy:
                take(alts[i], "wait", when[i] - when[cause] - busy)
        i = cause
    shares = [
        Share(agents[role[alt]].name, compiled.ops[alt].text, kind, ns, times)
        for (alt, kind), (ns, times) in found.items()
    ]
    return tuple(sorted(shares, key=lambda s: (-s.ns, s.agent, s.op, s.kind))), int(end)


def _add_up(rows: Iterable[tuple[str, str, str, int]]) -> tuple[Share, ...]:
    found: dict[tuple[str, str, str], tuple[int, int]] = {}
    for agent, text, kind, ns in rows:
        had, times = found.get((agent, text, kind), (0, 0))
        found[agent, text, kind] = had + ns, times + 1
    shares = [Share(*key, ns, times) for key, (ns, times) in found.items() if ns]
    return tuple(sorted(shares, key=lambda s: (-s.ns, s.op)))

"""Play a script on the machine, and say which property breaks after which step.

Every step is found among those that are possible where it stands and made by the one ``step``
(``ghcbcore.machine``). Properties are looked at after each; at the end also, whether everybody may
rest where nothing happens any more, and else whether some order of events still leads to an end:
for that the states behind the last step are searched, ``MAX_SEARCHED`` at most, and no more of a
large machine than fit into ``MAX_SEARCHED_BYTES``.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ghcbcore._cffi import lib
from ghcbcore.simulator import EVENT_DTYPE

from .. import events
from ..checking import DEADLOCK, LIVELOCK, evaluate
from ..compiler import Compiled
from ..flow import Agent, Flow, Property
from ..states import States
from . import terms
from .script import BadScript, Script, StepLine, named_moves
from .story import Array, Moment, Move, Story, changes_text, moment_of

__all__ = ["MAX_SEARCHED", "Replay", "replay"]

MAX_SEARCHED, MAX_SEARCHED_BYTES = 20_000, 1 << 28
MAX_NAMED = 8


@dataclass(frozen=True)
class Replay:
    """What a script came to.

    Attributes
    ----------
    verdict : str
        ``holds`` (in these steps), ``violated``, ``deadlock``, or ``unknown``: whether an end can
        still be reached was not to be found out.
    first : str
        Name of the first property broken, built-in ones last; empty if none is.
    broken : dict of str to int
        Properties and the number of the step after which each was first found broken, 0: before.
    texts : dict of str to str
        What properties say.
    possible : tuple of str
        What could happen next.
    trace : array of EVENT_DTYPE
        What was asked of the host.
    """

    script: Script
    story: Story
    verdict: str
    first: str
    broken: dict[str, int]
    texts: dict[str, str]
    possible: tuple[str, ...]
    trace: Array
    modelled_seconds: float

    @property
    def cpus(self) -> dict[str, int]:
        return {"total": self.story.n_cpus}

    @property
    def as_expected(self) -> bool | None:
        """Whether ``# expect`` is met; None if the script has none."""
        if self.script.expected is None:
            return None
        verdict, name, _ = self.script.expected
        return self.verdict == verdict and (not name or name in self.broken)

    def marks(self) -> dict[int, str]:
        """The line to stand after a step for what it broke."""
        out: dict[int, str] = {}
        for name, step in self.broken.items():
            text = self.texts.get(name, "")
            line = f'"{name}" does not hold' + (f": {text}" if text and text != name else "")
            out[step] = f"{out[step]}; {line}" if step in out else line
        return out

    def as_json(self) -> dict[str, Any]:
        return {
            "scenario": self.script.scenario,
            "cpus": self.story.n_cpus,
            "verdict": self.verdict,
            "property": self.first,
            "violations": self.broken,
            "expected": None if self.script.expected is None else self.script.expected[0],
            "as_expected": self.as_expected,
            "vmgexits": events.vmgexits_by_kind(self.trace),
            "modelled_seconds": self.modelled_seconds,
            "steps": [step_json(moment) for moment in self.story.moments],
            "possible_next": list(self.possible),
        }


def step_json(moment: Moment) -> dict[str, str]:
    """Return a step as the counterexample of ``check --json`` has it."""
    detail = "; ".join(changes_text([(moment.actor, moment.changes)]))
    return {"agent": moment.actor.name, "op": moment.full_text, "detail": detail}


def replay(flow: Flow, script: Script, properties: Sequence[Property] = ()) -> Replay:
    """Play a script.

    Parameters
    ----------
    flow : Flow
        The script's scenario, built for a machine of ``script.n_cpus`` CPUs.
    properties : sequence of Property
        More of them, beside the flow's own.

    Raises
    ------
    BadScript
        A step is not possible where it stands, or unknown; ``expect`` names an unknown property.
    PropertyError
        A property raised or returned something else than one bool a state.
    """
    compiled = flow.compile(script.n_cpus)
    everything = [*flow.properties, *properties]
    texts = {p.name: p.text for p in everything}
    texts[DEADLOCK] = "where nothing happens any more, everybody may rest"
    texts[LIVELOCK] = "whatever has happened, some order of events still leads to an end"
    if script.expected is not None and script.expected[1] not in ("", *texts):
        _, name, at = script.expected
        raise BadScript(f"{script.name}:{at}: no property {name!r} (--property adds some)")
    record = compiled.initial_record()
    states = States.of_record(compiled, record)
    always = [p for p in everything if p.kind == "always"]
    broken: dict[str, int] = {}
    moments: list[Moment] = []
    clock = _Clock(compiled)
    _look(always, states, 0, broken)
    for number, line in enumerate(script.steps, 1):
        move = _find(compiled, record, script, line)
        before = record.copy()
        clock.step(record, move)
        moments.append(moment_of(compiled, move, before, record))
        _look(always, states, number, broken)
    possible = named_moves(compiled, record)
    ends = [p for p in everything if p.kind == "end"]
    is_known = True
    if broken:
        pass  # as in `check`: nobody asks how it ends once it has gone wrong
    elif not possible:
        _look(ends, states, len(moments), broken)
        if not states.at_rest()[0]:
            broken.setdefault(DEADLOCK, len(moments))
    else:
        leads = _leads_to_an_end(compiled, record, ends)
        is_known = leads is not None
        if leads is False:
            broken[LIVELOCK] = len(moments)
    ordered = dict(sorted(broken.items(), key=lambda item: item[0] in (DEADLOCK, LIVELOCK)))
    first = next(iter(ordered), "")
    verdict = "holds" if is_known else "unknown"
    if first:
        verdict = "deadlock" if first in (DEADLOCK, LIVELOCK) else "violated"
    return Replay(
        script,
        Story(compiled, tuple(moments), record),
        verdict,
        first,
        ordered,
        texts,
        tuple(possible),
        clock.trace(),
        clock.now_ns / 1e9,
    )


def _look(
    properties: Sequence[Property], states: States, step: int, broken: dict[str, int]
) -> None:
    for p in properties:
        if p.name not in broken and not evaluate(p, states)[0]:
            broken[p.name] = step


class _Clock:
    """Makes steps and keeps what they asked of the host, in modelled time.

    A step waits until its agent is no longer busy, and for the delay of its operation.
    """

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._busy_until: dict[tuple[int, int], int] = {}
        self._events: list[Array] = []
        self.now_ns = 0

    def step(self, record: Array, move: Move) -> None:
        program, o = self._compiled.program, self._compiled.ops[move[0]]
        alt = program.alts[move[0]]
        agent = (int(alt["role"]), move[1])
        start = max(self.now_ns, self._busy_until.get(agent, 0)) + o.after
        room = np.zeros(int(alt["n_effects"]) * (self._compiled.n_others + 1), EVENT_DTYPE)
        n = program.traced_step(record, room, *move, now_ns=start)
        self._events.append(room[:n].copy())
        self.now_ns = start
        self._busy_until[agent] = start + o.cost

    def trace(self) -> Array:
        if not self._events:
            return np.zeros(0, EVENT_DTYPE)
        everything: Array = np.concatenate(self._events)
        of_host: Array = everything[everything["call"] != lib.GHCB_TRACE_FRAME]
        return of_host


def _leads_to_an_end(compiled: Compiled, record: Array, ends: Sequence[Property]) -> bool | None:
    """Whether some order of events leads from a state to an end; None if that is not found out.

    An end is a state after which nothing happens, or one in which every agent may rest and every
    ``end`` property holds, as for ``check``.
    """
    limit = min(MAX_SEARCHED, MAX_SEARCHED_BYTES // record.nbytes)
    seen: set[bytes] = set()
    at: list[tuple[Array, Iterator[Move]]] = []
    here: Array | None = record
    while True:
        if here is not None:
            moves = compiled.program.moves(here)
            states = States.of_record(compiled, here)
            if not moves or (states.at_rest()[0] and all(evaluate(p, states)[0] for p in ends)):
                return True
            at.append((here.copy(), iter(moves)))
            here = None
        while at and here is None:
            before, rest = at[-1]
            move = next(rest, None)
            if move is None:
                at.pop()
                continue
            after = before.copy()
            compiled.program.step(after, *move)
            key = hashlib.blake2b(after.tobytes(), digest_size=16).digest()
            if key not in seen:
                seen.add(key)
                here = after
        if here is None:
            return False
        if len(seen) >= limit:
            return None


def _find(compiled: Compiled, record: Array, script: Script, line: StepLine) -> Move:
    """Return the possible move that a line names."""
    named = named_moves(compiled, record)
    for text in (line.text, re.sub(r" # .*| #$", "", line.text)):
        if text in named:
            return named[text][0]
        bound = [name for name in named if re.fullmatch(re.escape(text) + r" \(CPU \d+\)", name)]
        if len(bound) == 1:
            return named[bound[0]][0]
        if bound:
            which = _some([name.removeprefix(text).strip() for name in bound])
            raise BadScript(f"{script.name}:{line.number}: {text}: which CPU? possible: {which}")
    raise BadScript(
        f"{script.name}:{line.number}: {_why_not(compiled, record, text)}; "
        f"possible here: {_some(list(named)) or 'nothing'}"
    )


def _why_not(compiled: Compiled, record: Array, text: str) -> str:
    flow = compiled.flow
    for agent in sorted(flow.agents, key=lambda a: -len(a.name)):
        name = terms.one_line(agent.name)
        found = re.match(re.escape(name) + (r" (\d{1,9})" if agent.per_cpu else "()") + ":", text)
        if found is None:
            continue
        if agent.per_cpu and not 1 <= int(found[1]) <= compiled.n_others:
            there = "there is" if compiled.n_others == 1 else "there are"
            return f"{found[0][:-1]}: {there} {_range(name, compiled.n_others)}"
        op = re.sub(r" \[\d+\]$| \(CPU \d+\)( \[\d+\])?$", "", text[found.end() :].strip())
        known = sorted({terms.one_line(o.text) for ops in agent.labels.values() for o in ops})
        if op not in known:
            near = difflib.get_close_matches(op, known, 1, 0.4)
            hint = f", the nearest is {near[0]!r}" if near else ""
            return f"{found[0][:-1]} has no operation {op[:80]!r}{hint}"
        own = int(found[1]) - 1 if agent.per_cpu else None
        pc = _position(compiled, record, agent, own)
        return f"{text[:120]!r} is not possible: {found[0][:-1]} is at {list(agent.labels)[pc]!r}"
    names = [
        _range(terms.one_line(a.name), compiled.n_others) if a.per_cpu else terms.one_line(a.name)
        for a in flow.agents
        if not a.per_cpu or compiled.n_others
    ]
    return f"{text[:80]!r}: no agent of this flow; it has {', '.join(names)}"


def _position(compiled: Compiled, record: Array, agent: Agent, own: int | None) -> int:
    program = compiled.program
    base = 0 if own is None else program.n_global + own * program.n_slice
    return int(record[base + agent.pc.index])


def _range(name: str, n: int) -> str:
    return f"{name} 1" if n == 1 else f"{name} 1 to {n}" if n else f"no {name}"


def _some(names: list[str]) -> str:
    more = len(names) - MAX_NAMED
    return "; ".join(names[:MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")

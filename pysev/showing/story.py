"""What happened: steps played on the machine, with what each of them changed and read.

A *story* is what all pictures of an order of events are made of. It is told by ``play``, which
moves a record by the one ``step`` (``ghcbcore.machine``) and compares it before and after, so no
picture can show anything else than what the machine did. Who reads a word that somebody else
wrote gets an arrow, and only changes that somebody reads later are worth a line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ghcbcore._cffi import lib

from .. import frames
from ..compiler import Compiled
from ..flow import Effect, Field, Op, Test
from . import terms

__all__ = ["Actor", "Change", "Moment", "Story", "cpus_text", "moment_of", "play"]

Array = np.ndarray[Any, np.dtype[Any]]
Move = tuple[int, int, int]
Place = tuple[int, int]
"""(number of the CPU or 0 for the words that exist once, index of the word)."""


@dataclass(frozen=True, order=True)
class Actor:
    """One agent: its kind (index in ``flow.agents``), and the number of its CPU, 0 for none."""

    kind: int
    cpu: int
    title: str = field(compare=False)

    @property
    def name(self) -> str:
        """``boot CPU``, ``AP 3`` ..., as counterexamples and scripts have it."""
        return f"{self.title} {self.cpu}" if self.cpu else self.title

    @property
    def heading(self) -> tuple[str, str]:
        """Two lines over a column."""
        if self.cpu:
            return f"CPU {self.cpu}", self.title
        return ("CPU 0", self.title) if self.is_cpu_0 else ("", self.title)

    @property
    def is_cpu_0(self) -> bool:
        """Whether it is the CPU that has no number: ``boot CPU``, ``crash CPU`` ..."""
        return not self.cpu and self.title.endswith(" CPU")


@dataclass(frozen=True)
class Change:
    """A word that a step changed; ``owner`` is ``boot`` for the boot CPU's vCPU, else empty.

    Of a page ``views`` says which views of it changed, and how; ``told`` is what the flow says of a
    change of this word (``Flow.tell_changes``).
    """

    place: Place
    owner: str
    word: str
    old: str
    new: str
    is_named: bool
    views: tuple[str, ...] = ()
    told: str = ""

    @property
    def text(self) -> str:
        if self.told:
            return self.told
        if self.views:
            return f"{self.word}: {', '.join(self.views)}"
        return f"{self.word} {self.old} -> {self.new}"

    @property
    def cpu(self) -> int:
        return self.place[0]


@dataclass(frozen=True)
class Moment:
    """One step: who did what, to which bound CPU (0: none)."""

    actor: Actor
    text: str
    other: int
    move: Move
    changes: tuple[Change, ...]
    reads: frozenset[Place]

    @property
    def full_text(self) -> str:
        """With the bound CPU: ``STARTUP (CPU 2)``."""
        return f"{self.text} (CPU {self.other})" if self.other else self.text


@dataclass(frozen=True)
class Story:
    """Steps in their order; ``last`` is the record after them."""

    compiled: Compiled
    moments: tuple[Moment, ...]
    last: Array

    @property
    def n_cpus(self) -> int:
        return self.compiled.n_others + 1

    @cached_property
    def arrows(self) -> frozenset[tuple[int, Actor]]:
        """(step, actor): that actor later acts on something that this step of another changed."""
        waiting: dict[Place, dict[int, Actor]] = {}  # what was written, by which step, by whom
        found = set()
        for number, moment in enumerate(self.moments):
            for place in moment.reads:
                for step, writer in list(waiting.get(place, {}).items()):
                    if writer != moment.actor:
                        found.add((step, moment.actor))
            for change in moment.changes:
                waiting.setdefault(change.place, {})[number] = moment.actor
        return frozenset(found)

    @cached_property
    def read_later(self) -> tuple[frozenset[Place], ...]:
        """For each step the words that another actor reads after it."""
        readers: dict[Place, set[Actor]] = {}
        out: list[frozenset[Place]] = []
        for moment in reversed(self.moments):
            others = {
                c.place for c in moment.changes if readers.get(c.place, set()) - {moment.actor}
            }
            out.append(frozenset(others))
            for place in moment.reads:
                readers.setdefault(place, set()).add(moment.actor)
        return tuple(reversed(out))

    def changes_that_matter(self, number: int) -> list[Change]:
        """Changes of a step that another actor acts on later, of words whose values have names, and
        all of the last step."""
        moment = self.moments[number]
        if number + 1 == len(self.moments):
            return list(moment.changes)
        later = self.read_later[number]
        # what was done to several CPUs is shown of all of them, though only one acts on it yet
        words = {(c.cpu > 0, c.word, c.new) for c in moment.changes if c.place in later}
        return [c for c in moment.changes if c.is_named or (c.cpu > 0, c.word, c.new) in words]


def play(compiled: Compiled, moves: Iterable[Move]) -> Story:
    """Play moves from the flow's first state.

    Raises
    ------
    OutOfRange, StateConflict
        A move is not possible where it stands.
    """
    record = compiled.initial_record()
    moments = []
    for move in moves:
        before = record.copy()
        compiled.program.step(record, *move)
        moments.append(moment_of(compiled, move, before, record))
    return Story(compiled, tuple(moments), record)


def actor_of(compiled: Compiled, move: Move) -> Actor:
    """Return who acts in a move."""
    kind = int(compiled.program.alts[move[0]]["role"])
    agent = compiled.flow.agents[kind]
    return Actor(kind, move[1] + 1 if agent.per_cpu else 0, terms.one_line(agent.name))


def text_of(compiled: Compiled, move: Move) -> str:
    """Return what a move is called."""
    return terms.one_line(compiled.ops[move[0]].text)


def moment_of(compiled: Compiled, move: Move, before: Array, after: Array) -> Moment:
    """Describe a step by the records before and after it."""
    actor = actor_of(compiled, move)
    changes = tuple(_changes(compiled, before, after))
    reads = frozenset(_reads(compiled, compiled.ops[move[0]], move))
    return Moment(actor, text_of(compiled, move), move[2] + 1, move, changes, reads)


def _changes(compiled: Compiled, before: Array, after: Array) -> Iterator[Change]:
    flow, program = compiled.flow, compiled.program
    positions = {agent.pc.name for agent in flow.agents}
    common = {f.index: f for words in (flow.vm, flow.boot, flow.g) for f in words}
    own = {f.index: f for f in flow.cpu}
    pages = {word.name for region in flow.frame_regions for word, _ in region.words}
    for at in np.flatnonzero(before != after).tolist():
        if at < program.n_global:
            cpu, index, found = 0, at, common[at]
        else:
            cpu, index = divmod(at - program.n_global, program.n_slice)
            cpu, found = cpu + 1, own[index]
        if found.name in positions:
            continue
        word = terms.bare(found)
        old, new = (terms.value_text(flow, word, int(r[at])) for r in (before, after))
        owner = "boot" if found.name.startswith("boot.") else ""
        named = terms.is_named(flow, word) and word != "entry"  # which only the host looks at
        told = ""
        if word in flow.change_texts:
            told = flow.change_texts[word](int(before[at]), int(after[at]))
            if not told:
                continue  # not worth a line
        views: tuple[str, ...] = ()
        if found.name in pages:
            views = tuple(frames.changes(int(before[at]), int(after[at])))
        yield Change((cpu, index), owner, word, old, new, named or bool(views or told), views, told)


def _reads(compiled: Compiled, o: Op, move: Move) -> Iterator[Place]:
    """Return the words on which an operation depends: those of its tests, and what it copies."""

    def place(f: Field, bound: int) -> Place:
        if f.block == lib.GHCB_BLOCK_GLOBAL:
            return 0, f.index
        return (move[1] if f.block == lib.GHCB_BLOCK_OWN else bound) + 1, f.index

    def of_tests(tests: Iterable[Test], bound: int) -> Iterator[Place]:
        for test in tests:
            yield place(test.field, bound)
            if isinstance(test.value, Field):
                yield place(test.value, bound)

    def of_effect(e: Effect, bound: int) -> Iterator[Place]:
        yield from of_tests(e.tests, bound)
        if isinstance(e.value, Field):
            yield place(e.value, bound)
        if e.frame is not None and not isinstance(e.value, str):
            words = compiled.flow.frame_regions[e.frame[0]].words
            which = words if isinstance(e.value, Field) else words[e.value : e.value + 1]
            yield from (place(word, bound) for word, _ in which)
        everybody = range(compiled.n_others) if e.opcode == lib.GHCB_OP_EACH else (bound,)
        for cpu in everybody:
            for inner in (*e.body, *e.otherwise):
                yield from of_effect(inner, cpu)

    yield from of_tests(o.when, move[2])
    for effect in o.do:
        yield from of_effect(effect, move[2])


def cpus_text(numbers: Sequence[int]) -> str:
    """Return numbers of CPUs in ascending order as text: ``CPU 3``, ``CPUs 1-3, 5``."""
    return ("CPU " if len(numbers) == 1 else "CPUs ") + numbers_text(numbers)


def numbers_text(numbers: Sequence[int]) -> str:
    """Return numbers in ascending order, neighbours put together: ``1-3, 5``."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def changes_text(groups: Sequence[tuple[Actor, Sequence[Change]]]) -> list[str]:
    """Return the changes of one step, or of the same step of several actors, as lines.

    A word that exists once is shown from its first to its last value; one that has changed in the
    same way on several CPUs once.
    """
    common: dict[tuple[Place, str], list[str]] = {}
    own: dict[str, None] = {}
    pages: dict[str, None] = {}
    others: dict[str, set[int]] = {}
    for actor, changes in groups:
        for c in changes:
            text = c.text
            if c.views or (c.told and c.cpu == 0):
                pages.setdefault(text)
            elif c.cpu == 0:
                name = f"{c.owner} {c.word}".strip()
                common.setdefault((c.place, name), [c.old, c.new])[1] = c.new
            elif c.cpu == actor.cpu:
                own.setdefault(text)
            else:
                others.setdefault(text, set()).add(c.cpu)
    lines = [f"{name} {old} -> {new}" for (_, name), (old, new) in common.items()]
    lines += [*pages, *own]
    together: dict[tuple[int, ...], list[str]] = {}
    for text, cpus in others.items():
        together.setdefault(tuple(sorted(cpus)), []).append(text)
    return lines + [f"{cpus_text(cpus)}: {', '.join(texts)}" for cpus, texts in together.items()]

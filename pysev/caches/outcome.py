"""Every memory content that can result from a program, and the shortest way to a corrupt one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ghcbcore._cffi import lib

from .program import Program, key_words

__all__ = ["BadRead", "Content", "Outcome", "Step", "explore"]

NOBODY: Final = 0xFFFFFFFF
HARDWARE: Final = {
    lib.GHCB_CACHE_EVICT: "writes back",
    lib.GHCB_CACHE_CLEAN: "writes back, and keeps,",
    lib.GHCB_CACHE_FORGET: "drops its clean copy of",
    lib.GHCB_CACHE_DRAIN: "what was queued reaches memory:",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One event of an order: who, what, and which line of the text asked for it (0: none)."""

    agent: str
    op: str
    detail: str
    number: int

    def as_json(self) -> dict[str, Any]:
        return {"agent": self.agent, "op": self.op, "detail": self.detail, "line": self.number}


@dataclass(frozen=True, slots=True)
class Content:
    """One content of memory: a cell for each line, and what software expects of it.

    ``is_bad`` says of each line whether it is corrupt: not what the last store put there, or what
    must never be there.
    """

    cells: tuple[int, ...]
    expected: tuple[int, ...]
    is_bad: tuple[bool, ...]
    path: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class BadRead:
    """A load that can read something else than the last store in its domain."""

    number: int
    text: str
    got: str
    path: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that can result. ``is_complete`` is false if ``max_bytes`` ended the search."""

    program: Program
    contents: tuple[Content, ...]
    bad_reads: tuple[BadRead, ...]
    n_states: int
    n_events: int
    is_complete: bool

    @property
    def is_corrupt(self) -> bool:
        return bool(self.bad_reads) or any(any(one.is_bad) for one in self.contents)

    @property
    def counterexample(self) -> tuple[Step, ...]:
        """The shortest order of events that ends with something corrupt, empty if none does."""
        paths = [one.path for one in self.contents if any(one.is_bad)]
        paths += [one.path for one in self.bad_reads]
        return min(paths, key=len, default=())


def explore(program: Program, *, max_bytes: int = 1 << 30) -> Outcome:
    """Follow every order of events of a program.

    Parameters
    ----------
    max_bytes : int
        Bound for the states; without room for all of them the outcome is not complete.

    Examples
    --------
    >>> from pysev.caches import parse
    >>> found = explore(parse('''
    ... cpu 0 store 0x1000 c=1 old
    ... kexec
    ... cpu 0 store 0x1000 c=0 new
    ... '''))
    >>> sorted(found.program.content_words(0, one.cells[0]) for one in found.contents)
    ['c=0 new', 'c=1 old']
    >>> found.is_corrupt, [step.op for step in found.counterexample][-2:]
    (True, ['evict', 'evict'])
    """
    search = program.explorer(max_bytes)
    search.run()
    _, owners = program.ops()
    contents = tuple(
        Content(cells, expected, bad, _steps(program, owners, search.path(state).tolist()))
        for state, cells, expected, bad in search.results()
    )
    reads = []
    for op, value, state in search.bad_loads():
        path = _steps(program, owners, search.path(state).tolist())
        statement = program.statements[owners[op]]
        _, cpu, line, slot, _ = _row(program, owners, op)
        last = (lib.GHCB_CACHE_LOAD, op, cpu, line, slot, value)
        got = program.values[line][value]
        steps = (*path, _step(program, owners, last))
        reads.append(BadRead(statement.number, statement.text, got, steps))
    ordered = sorted(contents, key=lambda one: (any(one.is_bad), len(one.path), one.cells))
    return Outcome(
        program,
        tuple(ordered),
        tuple(reads),
        search.n_states,
        search.n_events,
        search.is_complete,
    )


def _row(program: Program, owners: list[int], op: int) -> tuple[int, int, int, int, int]:
    owner = owners[op]
    return program.statements[owner].ops[op - owners.index(owner)]


def _steps(program: Program, owners: list[int], events: list[Any]) -> tuple[Step, ...]:
    return tuple(_step(program, owners, event) for event in events)


def _step(program: Program, owners: list[int], event: tuple[int, ...]) -> Step:
    kind, op, cpu, line, slot, value = event
    spa, name = program.spas[line], program.values[line][value]
    what = f"{spa:#x} {key_words(slot)} {name}"
    if op == NOBODY:
        names = {
            lib.GHCB_CACHE_EVICT: "evict",
            lib.GHCB_CACHE_CLEAN: "clean",
            lib.GHCB_CACHE_FORGET: "forget",
            lib.GHCB_CACHE_DRAIN: "drain",
        }
        agent = "fabric" if kind == lib.GHCB_CACHE_DRAIN else f"cache of cpu {cpu}"
        return Step(agent, names[kind], f"{HARDWARE[kind]} {what}", 0)
    statement = program.statements[owners[op]]
    words = statement.text.split()
    if words[0] != "cpu":
        return Step("kernel", words[0], statement.text, statement.number)
    detail = " ".join(words[2:])
    if kind == lib.GHCB_CACHE_LOAD:
        detail += f": reads {name}"
    elif kind == lib.GHCB_CACHE_STORE:
        detail = f"store {what}"
    return Step(f"cpu {cpu}", words[2], detail, statement.number)

"""Which flush is missing: every smallest set of insertions that makes all results good.

A result that went wrong is an order of events. A flush that finds nothing to do anywhere in
that order leaves it as it is, so each cure holds a flush that does find something: one of those is
tried, the search begins again, and so on (``cures``). That way every cure of the smallest size
is found without trying all there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final

from ghcbcore._cffi import lib

from .program import Program, Statement, key_words

__all__ = ["Choice", "Cures", "Flush", "Option", "cures", "with_flushes"]

MAX_FLUSHES: Final = 3
MAX_TRIES: Final = 5_000
SEARCH_BYTES: Final = 1 << 26
NOBODY: Final = 0xFFFFFFFF
WHOLE: Final = {lib.GHCB_CACHE_WBINVD: "wbinvd", lib.GHCB_CACHE_WBNOINVD: "wbnoinvd"}


@dataclass(frozen=True, order=True, slots=True)
class Flush:
    """A flush that is not in the program; ``ops`` as in ``Statement``."""

    text: str
    ops: tuple[tuple[int, int, int, int, int], ...] = field(compare=False)


@dataclass(frozen=True, order=True, slots=True)
class Option:
    """Any of these flushes, at any of these places (numbers of the statement that follows)."""

    places: tuple[int, ...]
    flushes: tuple[str, ...]


@dataclass(frozen=True, order=True, slots=True)
class Choice:
    """One of these options; which of them does not depend on the other choices of a cure."""

    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class Cures:
    """The smallest cures. ``is_complete``: there is no other of that size.

    Each cure is a tuple of choices that are all to be made. ``first`` is one cure, flush by flush,
    as (place, flush); by WBINVD where that can do it. ``everywhere`` are the places at which WBINVD
    on every CPU that has not halted is a cure; only looked for where there is no small one.
    """

    cures: tuple[tuple[Choice, ...], ...]
    first: tuple[tuple[int, Flush], ...]
    is_complete: bool
    n_tried: int
    everywhere: tuple[int, ...] = ()


_Set = frozenset[tuple[int, Flush]]


def with_flushes(program: Program, flushes: Iterable[tuple[int, Flush]]) -> Program:
    """Return the program with flushes inserted; places are those of ``program``."""
    for place, flush in sorted(flushes, reverse=True):
        program = program.insert(place, Statement(0, flush.text, flush.ops, 0))
    return program


def cures(program: Program, *, max_flushes: int = MAX_FLUSHES, max_tries: int = MAX_TRIES) -> Cures:
    """Find every smallest set of flushes with which no result is corrupt.

    Parameters
    ----------
    max_flushes : int
        Size of the largest set that is tried.
    max_tries : int
        Bound on how many programs are explored.
    """
    level: dict[_Set, list[tuple[int, Flush]]] = {frozenset(): []}
    n_tried, is_complete = 0, True
    for size in range(max_flushes + 1):
        good: list[_Set] = []
        following: dict[_Set, list[tuple[int, Flush]]] = {}
        for chosen in level:
            if n_tried == max_tries:
                is_complete = False
                break
            n_tried += 1
            tried = with_flushes(program, chosen)
            search = tried.explorer(SEARCH_BYTES)
            if search.run(stop=True, deep=True):
                if search.is_complete:
                    good.append(chosen)
                else:
                    is_complete = False
            elif size < max_flushes:
                for one in _effective(program, chosen, tried, search):
                    following.setdefault(chosen | {one}, [])
        if good:
            first = min((tuple(sorted(one)) for one in good), key=_plainest)
            return Cures(_grouped(good), first, is_complete, n_tried)
        level = following
        if not is_complete:
            break
    places = range(len(program.statements) + 1)
    everywhere = tuple(place for place in places if _is_cured_by_all(program, place))
    return Cures((), (), is_complete, n_tried + len(places), everywhere)


def _is_cured_by_all(program: Program, place: int) -> bool:
    """Is WBINVD on every CPU at this place a cure?"""
    halted = _halted(program, place)
    running = [cpu for cpu in range(program.n_cpus) if cpu not in halted]
    if not running:
        return False
    ops = tuple((lib.GHCB_CACHE_WBINVD, cpu, 0, 0, 0) for cpu in running)
    search = with_flushes(program, [(place, Flush("cpu all wbinvd", ops))]).explorer(SEARCH_BYTES)
    return search.run(stop=True, deep=True) and search.is_complete


def _effective(
    program: Program, chosen: _Set, tried: Program, search: Any
) -> Iterator[tuple[int, Flush]]:
    """Yield each insertion that finds something to do in an order that went wrong."""
    state = next((s for s, _, _, bad in search.results() if any(bad)), None)
    extra: list[int] = []
    if state is None:
        op, _, state = search.bad_loads()[0]
        extra = [op]
    events = search.path(state).tolist()
    rows, owners = tried.ops()
    # where the statements of `program` are in `tried`
    inserted = sorted(place for place, _ in chosen)
    original = [i + sum(place <= i for place in inserted) for i in range(len(program.statements))]
    times: dict[int, list[int]] = {}
    for time, event in enumerate(events):
        if event[1] != NOBODY:
            times.setdefault(owners[event[1]], []).append(time)
    for op in extra:
        times.setdefault(owners[op], []).append(len(events))
    present = _present(events, rows, tried)
    with_rekey = any(op[0] == lib.GHCB_CACHE_REKEY for s in program.statements for op in s.ops)
    for place in range(len(program.statements) + 1):
        begin, end = _window(program, place, original, times, len(events))
        copies = set().union(*present[begin : end + 1])
        for flush, targets in _candidates(program, place, copies, with_rekey):
            if targets and (place, flush) not in chosen:
                yield place, flush


def _window(
    program: Program, place: int, original: Sequence[int], times: dict[int, list[int]], n: int
) -> tuple[int, int]:
    """Return before and after which event a statement at a place can be executed, at most."""
    statements = program.statements
    group = None
    if 0 < place < len(statements) and statements[place - 1].group == statements[place].group:
        group = statements[place].group
    before = [i for i in range(place) if group is None or statements[i].group != group]
    after = [
        i for i in range(place, len(statements)) if group is None or statements[i].group != group
    ]
    begin = max((t + 1 for i in before for t in times.get(original[i], ())), default=0)
    end = min((t for i in after for t in times.get(original[i], ())), default=n)
    return begin, max(begin, end)


def _present(events: Sequence[Any], rows: Any, program: Program) -> list[set[tuple[int, int, int]]]:
    """Return which (cpu, line, slot) may be cached before each event, and after the last."""
    now: set[tuple[int, int, int]] = set()
    found = [set(now)]
    for kind, _, cpu, line, slot, _ in events:
        if kind in (lib.GHCB_CACHE_STORE, lib.GHCB_CACHE_LOAD):
            if program.coherent:
                now = {one for one in now if one[1] != line or one[2] == slot}
            if kind == lib.GHCB_CACHE_STORE:
                now = {one for one in now if one[1:] != (line, slot)}
            now.add((cpu, line, slot))
        elif kind in (lib.GHCB_CACHE_EVICT, lib.GHCB_CACHE_FORGET):
            now.discard((cpu, line, slot))
        elif kind in (lib.GHCB_CACHE_WBINVD, lib.GHCB_CACHE_INVD):
            now = {one for one in now if one[0] != cpu}
        elif kind in (lib.GHCB_CACHE_CLFLUSH, lib.GHCB_CACHE_PAGE_FLUSH):
            now = {one for one in now if one[1:] != (line, slot)}
        found.append(set(now))
    return found


def _candidates(
    program: Program, place: int, copies: set[tuple[int, int, int]], with_rekey: bool
) -> Iterator[tuple[Flush, bool]]:
    """Yield each flush there is, and whether it can find something to do."""
    halted = _halted(program, place)
    for cpu in range(program.n_cpus):
        if cpu in halted:
            continue
        is_cached = any(one[0] == cpu for one in copies)
        for kind, word in WHOLE.items():
            yield Flush(f"cpu {cpu} {word}", ((kind, cpu, 0, 0, 0),)), is_cached
    lines = sorted({one[1:] for one in copies})
    page_bytes = lib.GHCB_PAGE_SIZE
    for cpu, who in _cpus_at(program, place, halted):
        for line, slot in lines:
            text = f"{who} clflush {program.spas[line]:#x} {key_words(slot)}"
            yield Flush(text, ((lib.GHCB_CACHE_CLFLUSH, cpu, line, slot, 0),)), True
        guests = [(line, slot) for line, slot in lines if 0 < slot <= lib.GHCB_KEY_SLOT_LAST_ASID]
        for page, slot in sorted(
            {(program.spas[line] // page_bytes, slot) for line, slot in guests}
        ):
            ops = tuple(
                (lib.GHCB_CACHE_PAGE_FLUSH, cpu, line, slot, 0)
                for line, spa in enumerate(program.spas)
                if spa // page_bytes == page
            )
            text = f"{who} vm_page_flush {page * page_bytes:#x} {key_words(slot)}"
            yield Flush(text, ops), True
        yield Flush(f"{who} df_flush", ((lib.GHCB_CACHE_DF_FLUSH, cpu, 0, 0, 0),)), with_rekey


def _halted(program: Program, place: int) -> set[int]:
    """Return the CPUs that have halted in front of a place: they flush nothing any more."""
    ops = [op for statement in program.statements[:place] for op in statement.ops]
    return {op[1] for op in ops if op[0] == lib.GHCB_CACHE_HALT}


def _cpus_at(program: Program, place: int, halted: set[int]) -> list[tuple[int, str]]:
    """Return who can execute a flush whose effect does not depend on the CPU, and in which words.

    Where statements follow each other anybody can, and one stands for all; inside `together`
    each CPU that takes part in it may be earlier or later.
    """
    statements = program.statements
    running = [cpu for cpu in range(program.n_cpus) if cpu not in halted]
    around = statements[max(place - 1, 0) : place + 1]
    if len(around) == 2 and around[0].group == around[1].group:
        group = around[0].group
        part = {op[1] for s in statements if s.group == group for op in s.ops}
        return [(cpu, f"cpu {cpu}") for cpu in running if cpu in part]
    return [(cpu, "any cpu") for cpu in running[:1]]


def _plainest(cure: tuple[tuple[int, Flush], ...]) -> tuple[int, tuple[tuple[int, Flush], ...]]:
    return sum(not flush.text.endswith(" wbinvd") for _, flush in cure), cure


def _grouped(good: Sequence[_Set]) -> tuple[tuple[Choice, ...], ...]:
    """Put cures together that differ only in where, then those that differ only in which."""
    by_flushes: dict[tuple[Flush, ...], set[tuple[int, ...]]] = {}
    for one in good:
        ordered = sorted(one, key=lambda item: (item[1], item[0]))
        key = tuple(flush for _, flush in ordered)
        by_flushes.setdefault(key, set()).add(tuple(place for place, _ in ordered))
    groups: list[tuple[Choice, ...]] = []
    for flushes, places in by_flushes.items():
        columns = [tuple(sorted(set(column))) for column in zip(*places, strict=True)]
        whole = [tuple(columns)] if len(places) == len(list(product(*columns))) else []
        for split in whole or [tuple((p,) for p in one) for one in sorted(places)]:
            pairs = zip(flushes, split, strict=True)
            made = [Choice((Option(at, (flush.text,)),)) for flush, at in pairs]
            groups.append(tuple(sorted(made)))
    i = 0
    while i < len(groups):
        for j in range(i + 1, len(groups)):
            both = _merge(groups[i], groups[j])
            if both is not None:
                groups[i] = both
                del groups[j]
                i = -1  # what did not fit before may fit now
                break
        i += 1
    return tuple(groups)


def _merge(a: tuple[Choice, ...], b: tuple[Choice, ...]) -> tuple[Choice, ...] | None:
    """Return one cure for two that agree in all choices but one."""
    rest_a, rest_b = list(a), list(b)
    for one in a:
        if one in rest_b:
            rest_a.remove(one)
            rest_b.remove(one)
    if len(rest_a) != 1 or len(rest_b) != 1:
        return None
    by_place: dict[tuple[int, ...], set[str]] = {}
    for option in (*rest_a[0].options, *rest_b[0].options):
        by_place.setdefault(option.places, set()).update(option.flushes)
    options = tuple(Option(at, tuple(sorted(names))) for at, names in sorted(by_place.items()))
    common = list(a)
    common.remove(rest_a[0])
    return tuple(sorted([*common, Choice(options)]))

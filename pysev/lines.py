"""Cache lines in a flow: one line of memory, and the copies of it that CPUs have.

A line is known to caches by its address *and* the key of the access: its domain. Copies in
different domains do not know of each other, may be dirty at once, and hardware writes them back
when and in which order it likes; the last one wins. A flow says what CPUs do (``store``, ``load``,
``wbinvd`` ...), ``hardware`` adds what caches do by themselves, and properties ask what is dirty
where. All rules are those of ``ghcbcore/cacheline.h``, applied to words of the record.

A value is a small number with a name of the flow's; what is read under a key that it was not
written with is ``GHCB_LINE_NOISE``, 0. A line may stand for many: what is shown for one of them is
what can happen to each.

Units: slots are key slots (``GHCB_KEY_SLOT_*``, an ASID, or a KeyID for which the flow uses one).

Source: fact sheet of the SNP host, 6.2 and 7.1.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from ghcbcore._cffi import ffi, lib

from . import costs
from .flow import Effect, Field, Flow, FlowError, Op, Place, ReachOp, Test, Value, Words, op, reach

if TYPE_CHECKING:
    from .states import States

__all__ = [
    "Line",
    "clflush",
    "content",
    "declare",
    "drain",
    "evict",
    "hardware",
    "has_copy",
    "invd",
    "is_dirty",
    "load",
    "page_flush",
    "rekey",
    "store",
    "was_refused",
    "wbinvd",
    "wbnoinvd",
]

MAX_NAMED = 1 << 12
"""So many different words of a CPU get names for timelines; a line with more shows numbers."""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Line:
    """A line of a flow; made by ``declare``.

    Attributes
    ----------
    domains : dict of int to str
        The slots under which it is used, in ascending order, and what a timeline calls them.
    values : IntEnum
        What can be stored in it.
    """

    place: Place
    domains: dict[int, str]
    values: type[enum.IntEnum]

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def memory(self) -> Field:
        """The memory word."""
        return self.place.words[1]

    @property
    def answer(self) -> Field:
        """0, or ``GHCB_LINE_REFUSED`` if the last operation was none (a value that none can be)."""
        return self.place.words[2]

    def copies(self, by: Words) -> Field:
        """Return the word of a CPU's copies: ``flow.boot``, ``flow.cpu`` or ``flow.other``."""
        if by.title == "boot":
            return self.place.words[0]
        if by.title in ("cpu", "other"):
            found: Field = getattr(by, f"{self.name}_copies")
            return found
        raise FlowError(f"{self.name}: {by.title} is no CPU; boot, cpu and other are")

    def check_slot(self, slot: int) -> int:
        if slot not in self.domains:
            known = ", ".join(f"{s:#x}" for s in self.domains)
            raise FlowError(f"{self.name}: slot {slot:#x} is none of its domains {known}")
        return slot


def declare(
    flow: Flow,
    name: str,
    domains: Mapping[int, str],
    values: type[enum.IntEnum],
    *,
    start: tuple[int, int],
    coherent: bool = False,
    queues: bool = False,
) -> Line:
    """Declare a line that no cache has yet.

    Its words are ``flow.g.<name>_copies`` (the boot CPU's), ``flow.cpu.<name>_copies`` and
    ``flow.g.<name>_memory``.

    Parameters
    ----------
    domains : mapping of int to str
        Slots under which it is used, at most ``GHCB_LINE_ALIASES``, and how a timeline calls them.
    values : IntEnum
        What may be stored: numbers from 1 to ``GHCB_LINE_N_VALUES`` - 1; others of its members are
        names for what is read (0 is noise).
    start : (slot, value)
        What memory holds, and the slot that it was written under.
    coherent : bool
        The processor reports SME_COHERENT.
    queues : bool
        Writes stay in the fabric until ``drain``; it makes a difference only where a key changes.

    Raises
    ------
    FlowError
        Too many domains, or a slot or value that is none.
    """
    slots = sorted(domains)
    if not 1 <= len(slots) <= lib.GHCB_LINE_ALIASES:
        raise FlowError(f"{name}: {len(slots)} domains; 1 to {lib.GHCB_LINE_ALIASES} are possible")
    for slot in (*slots, start[0]):
        if not 0 <= slot < lib.GHCB_KEY_N_SLOTS:
            raise FlowError(
                f"{name}: slot {slot:#x}; below {lib.GHCB_KEY_N_SLOTS:#x} there are some"
            )
    _check_value(name, start[1])
    options = lib.GHCB_LINE_COHERENT if coherent else 0
    options += lib.GHCB_LINE_QUEUES if queues else 0
    once = {"memory": int(lib.ghcb_cell(*start)), "answer": 0}
    place = flow.place(lib.GHCB_PLACE_LINE, name, per_cpu={"copies": 0}, once=once, options=options)
    made = Line(place, {slot: domains[slot] for slot in slots}, values)
    _name_words(flow, made)
    return made


def _check_value(name: str, value: int) -> None:
    if not 0 < value < lib.GHCB_LINE_N_VALUES:
        raise FlowError(f"{name}: value {value}; 1 to {lib.GHCB_LINE_N_VALUES - 1} are possible")


def _name_words(flow: Flow, line: Line) -> None:
    """Let timelines say what the words hold."""
    names = {int(v): v.name for v in line.values if 0 < v < lib.GHCB_LINE_N_VALUES}
    memory = {
        f"{names[value]} ({title})": int(lib.ghcb_cell(slot, value))
        for slot, title in line.domains.items()
        for value in names
    }
    names[int(lib.GHCB_LINE_NOISE)] = "noise"
    of_domain = []
    for slot, title in line.domains.items():
        cells = [("", 0)]
        for value, text in names.items():
            cell = int(lib.ghcb_cell(slot, value))
            cells.append((f"{text} ({title})", cell))
            if value != lib.GHCB_LINE_NOISE:
                cells.append((f"{text} ({title}), dirty", cell | int(lib.GHCB_CELL_DIRTY)))
        of_domain.append(cells)
    if len(of_domain[0]) ** len(of_domain) > MAX_NAMED:
        return
    copies = {}
    word = ffi.new("uint64_t *")
    for combination in product(*of_domain):
        word[0] = 0
        for _, cell in combination:
            if cell:
                lib.ghcb_line_put(word[0], cell, word)
        text = " + ".join(text for text, _ in combination if text) or "not cached"
        copies[text] = int(word[0])
    make: Any = enum.IntEnum  # mypy wants members that are written down
    flow.name_values(f"{line.name}_copies", make("Copies", copies))
    flow.name_values(f"{line.name}_memory", make("Content", memory))


# -- what CPUs do ------------------------------------------------------------------------------


def _do(
    line: Line,
    by: Words,
    code: int,
    slot: int,
    *,
    local: bool,
    value: Value = 0,
    result: Field | None = None,
) -> Effect:
    line.copies(by)  # refuses what is no CPU
    target = line.answer if result is None else result
    return reach(line.place, ReachOp(code, (slot, 0, 0), local), by, target, value)


def store(line: Line, by: Words, slot: int, value: Value, result: Field | None = None) -> Effect:
    """Write the whole line. ``result``: 0, or ``GHCB_LINE_REFUSED`` if a word's value is none."""
    if not isinstance(value, Field):
        _check_value(line.name, value)
    slot = line.check_slot(slot)
    return _do(line, by, lib.GHCB_CACHE_STORE, slot, local=False, value=value, result=result)


def load(line: Line, by: Words, slot: int, result: Field) -> Effect:
    """Read the line; ``result`` takes the value, or ``GHCB_LINE_NOISE``."""
    slot = line.check_slot(slot)
    return _do(line, by, lib.GHCB_CACHE_LOAD, slot, local=False, result=result)


def clflush(line: Line, by: Words, slot: int) -> Effect:
    """CLFLUSH of a mapping with this key: the copies of that domain leave all caches."""
    return _do(line, by, lib.GHCB_CACHE_CLFLUSH, line.check_slot(slot), local=False)


def page_flush(line: Line, by: Words, asid: int) -> Effect:
    """MSR VM_PAGE_FLUSH: the copies of one ASID leave all caches."""
    if not lib.GHCB_KEY_SLOT_NONE < asid <= lib.GHCB_KEY_SLOT_LAST_ASID:
        raise FlowError(f"{line.name}: {asid:#x} is no ASID")
    return _do(line, by, lib.GHCB_CACHE_PAGE_FLUSH, asid, local=False)


def wbinvd(line: Line, by: Words, last: int) -> Effect:
    """WBINVD: the CPU's dirty copies are written back, that of domain ``last`` after the others.

    A CPU that can have several of them dirty needs one operation for each as ``last``.
    """
    return _do(line, by, lib.GHCB_CACHE_WBINVD, line.check_slot(last), local=True)


def wbnoinvd(line: Line, by: Words, last: int) -> Effect:
    """WBNOINVD: as ``wbinvd``, but the copies stay, clean."""
    return _do(line, by, lib.GHCB_CACHE_WBNOINVD, line.check_slot(last), local=True)


def invd(line: Line, by: Words) -> Effect:
    """INVD: the CPU's copies are gone, not written back."""
    return _do(line, by, lib.GHCB_CACHE_INVD, 0, local=True)


def drain(line: Line, by: Words) -> Effect:
    """DF_FLUSH: what the fabric still has reaches memory (``queues``)."""
    return _do(line, by, lib.GHCB_CACHE_DRAIN, 0, local=True)


def rekey(line: Line, by: Words, slot: int) -> Effect:
    """A slot gets another key: what memory holds under it is noise from now on."""
    return _do(line, by, lib.GHCB_CACHE_REKEY, line.check_slot(slot), local=True)


# -- what hardware does ------------------------------------------------------------------------


def evict(line: Line, by: Words, slot: int) -> Effect:
    """A cache drops the CPU's copy of a domain, and writes it back before if it is dirty."""
    return _do(line, by, lib.GHCB_CACHE_EVICT, line.check_slot(slot), local=True)


def has_copy(line: Line, by: Words, slot: int, *, dirty: bool = True) -> list[tuple[Test, ...]]:
    """Return guards, exactly one of which holds while the CPU has a dirty copy of a domain.

    ``dirty=False``: a clean one. Copies of lower slots come first in a CPU's word, so there is one
    guard for each place.
    """
    line.check_slot(slot)
    word = line.copies(by)
    looked_at = lib.GHCB_CELL_SLOT | lib.GHCB_CELL_DIRTY | lib.GHCB_CELL_PRESENT
    wanted = slot | lib.GHCB_CELL_PRESENT | (lib.GHCB_CELL_DIRTY if dirty else 0)
    guards: list[tuple[Test, ...]] = []
    for i in range(list(line.domains).index(slot) + 1):
        shift = i * lib.GHCB_CELL_BITS
        guards.append((word & looked_at << shift == wanted << shift,))
    return guards


def hardware(flow: Flow, *lines: Line, forgets: bool = False) -> None:
    """Add the caches: each may write back and drop any dirty copy at any time.

    Of a line that ``queues``, what is on its way may also reach memory. ``forgets``: a cache may
    drop a clean copy, too, which makes a difference only to a CPU that reads twice, or that has
    read before another domain was written.
    """
    boot = flow.agent("boot CPU's cache")
    others = flow.agent("cache of CPU", per_cpu=True)
    for agent, by in ((boot, flow.boot), (others, flow.cpu)):
        ops = [
            _eviction(line, by, slot, guard, dirty)
            for line in lines
            for slot in line.domains
            for dirty in ((True, False) if forgets else (True,))
            for guard in has_copy(line, by, slot, dirty=dirty)
        ]
        agent.phase("write back")
        agent.at("any time", *ops, ends=True)
    queueing = [line for line in lines if line.place.options & lib.GHCB_LINE_QUEUES]
    if queueing:
        fabric = flow.agent("fabric")
        fabric.phase("write back")
        fabric.at("any time", *(_arrival(flow, line) for line in queueing), ends=True)


def _arrival(flow: Flow, line: Line) -> Op:
    queued = line.memory & lib.GHCB_CELL_PRESENT << lib.GHCB_CELL_BITS
    text = f"what was written of the {line.name} reaches memory"
    do = [drain(line, flow.boot)]
    return op(text, when=[queued != 0], do=do, to=".", after=costs.EVICTION, spread=True)


def _eviction(line: Line, by: Words, slot: int, guard: tuple[Test, ...], dirty: bool) -> Op:
    text = f"writes back the {line.name}" if dirty else f"drops its clean copy of the {line.name}"
    return op(
        f"{text} ({line.domains[slot]})",
        when=guard,
        do=[evict(line, by, slot)],
        to=".",
        after=costs.EVICTION,
        spread=True,
    )


# -- what properties ask -----------------------------------------------------------------------


def _each(words: Array, rule: Callable[[int], int]) -> Array:
    """Apply a rule of the core to every word; the same words are looked at once."""
    distinct, where = np.unique(words, return_inverse=True)
    answers: Array = np.array([rule(int(word)) for word in distinct], np.uint64)
    return np.take(answers, where).reshape(words.shape)


def is_dirty(states: States, line: Line, slot: int) -> Array:
    """Return where a CPU's copy of a domain is dirty: bool, (n_states, n_cpus), boot CPU first."""
    name = f"{line.name}_copies"
    own = getattr(states.g, name)[:, None]
    words = np.concatenate([own, getattr(states.cpu, name)], axis=1)
    cells = _each(words, lambda word: lib.ghcb_line_find(word, slot))
    dirty: Array = (cells & np.uint64(lib.GHCB_CELL_DIRTY)) != 0
    return dirty


def content(states: States, line: Line, slot: int) -> Array:
    """Return what memory alone gives to a read under ``slot``: uint64, (n_states,)."""
    words = getattr(states.g, f"{line.name}_memory")
    return _each(words, lambda word: lib.ghcb_cell_read(lib.ghcb_memory_content(word), slot))


def was_refused(states: States, line: Line) -> Array:
    """Return where the last operation was none (what it stored is no value): bool, (n_states,)."""
    refused: Array = getattr(states.g, f"{line.name}_answer") != 0
    return refused

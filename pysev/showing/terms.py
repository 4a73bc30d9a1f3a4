"""Words, tests and effects of a flow as short text: ``stopping == 0``, ``its ipi := 1``."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator

from ghcbcore._cffi import lib

from .. import frames
from ..checking import VALUE_NAMES
from ..flow import WORD, Effect, Field, Flow, Test
from ..frames import in_words

__all__ = ["effects_text", "is_named", "one_line", "scratch_words", "test_text", "value_text"]

SIGNS = {
    lib.GHCB_OP_EQ: "==",
    lib.GHCB_OP_NE: "!=",
    lib.GHCB_OP_LT: "<",
    lib.GHCB_OP_GE: ">=",
}
LARGE = 4096
"""From here on a number is an address or a message and is shown in hexadecimal."""


def one_line(text: str) -> str:
    """Return text that a user wrote on one line, with nothing in it that a terminal would obey."""
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


def _names(flow: Flow, word: str) -> type[enum.IntEnum] | None:
    return flow.value_names.get(word) or VALUE_NAMES.get(word)


def is_named(flow: Flow, word: str) -> bool:
    """Whether the numbers of a word have names: then it is a state that people talk about."""
    return _names(flow, word) is not None


def value_text(flow: Flow, word: str, value: int) -> str:
    """Return a value by its name, if it has one; of a page what is thought of it."""
    if any(word == bare(f) for region in flow.frame_regions for f, _ in region.words):
        return in_words(value)
    name = {int(member): member.name for member in _names(flow, word) or ()}.get(value)
    if name is not None:
        return name
    if value >= WORD - LARGE:  # a small negative number
        return str(value - WORD - 1)
    return str(value) if value < LARGE else f"{value:#x}"


def bare(field: Field) -> str:
    """Return the name of a word without its block: ``stopping``, ``msr``."""
    return field.name.partition(".")[2]


def field_text(field: Field) -> str:
    """Return a word as a sentence has it: ``its ipi`` is the bound CPU's."""
    block, _, name = field.name.partition(".")
    owner = {"other": "its ", "boot": "boot CPU's "}.get(block, "")
    masked = f" & {field.mask:#x}" if field.mask != WORD else ""
    return f"{owner}{name}{masked}"


def test_text(flow: Flow, test: Test) -> str:
    """Return a condition as text: ``stopping == 0``."""
    if isinstance(test.value, Field):
        value = field_text(test.value)
    elif any(test.field.name == word.name for r in flow.frame_regions for word, _ in r.words):
        return _page_test(test, test.value & WORD)
    else:
        value = value_text(flow, bare(test.field), test.value & WORD)
    return f"{field_text(test.field)} {SIGNS[test.opcode]} {value}"


def _page_test(test: Test, value: int) -> str:
    """Return a condition on one view of a page: ``leaf_1's page table == shared``."""
    mask = test.field.mask
    near = (value + (mask & -mask)) & mask  # another value of the same view
    shown = frames.changes(near, value)
    if len(shown) == 1 and " -> " in shown[0]:
        view, _, name = shown[0].rpartition(" -> ")
        view = view.rpartition(" ")[0]
        return f"{bare(test.field)}'s {view} {SIGNS[test.opcode]} {name}"
    return f"{field_text(test.field)} {SIGNS[test.opcode]} {value:#x}"


def effects_text(
    flow: Flow, effects: Iterable[Effect], words: set[str], scratch: set[str]
) -> list[str]:
    """Return what effects do to some words (names with their block, ``other`` being ``cpu``).

    What depends on a word of ``scratch`` is left out: answers that are used up at once.
    """
    return [text for effect in effects for text in _effect(flow, effect, words, scratch)]


def _effect(flow: Flow, e: Effect, words: set[str], scratch: set[str]) -> Iterator[str]:
    if e.opcode == lib.GHCB_OP_SKIP:
        if any(place_name(test.field) in scratch for test in e.tests):
            return
        condition = " and ".join(test_text(flow, test) for test in e.tests)
        body = effects_text(flow, e.body, words, scratch)
        otherwise = effects_text(flow, e.otherwise, words, scratch)
        if body:
            yield f"if {condition}: {', '.join(body)}"
        if otherwise:
            yield f"if not {condition}: {', '.join(otherwise)}"
    elif e.opcode == lib.GHCB_OP_EACH:
        body = effects_text(flow, e.body, words, scratch)
        if body:
            yield f"every other CPU: {', '.join(body)}"
    elif e.target is not None and place_name(e.target) in words and e.frame is None:
        yield from _assignment(flow, e, e.target)


def _assignment(flow: Flow, e: Effect, target: Field) -> Iterator[str]:
    if isinstance(e.value, str):  # another agent is put at a label
        return
    if isinstance(e.value, Field):
        value = field_text(e.value)
    else:
        value = value_text(flow, bare(target), e.value & WORD)
    if e.opcode == lib.GHCB_OP_SET:
        yield f"{field_text(target)} := {value}"
    elif e.opcode == lib.GHCB_OP_ADD:
        minus = value.startswith("-")
        yield f"{field_text(target)} {'-=' if minus else '+='} {value.removeprefix('-')}"
    elif e.opcode == lib.GHCB_OP_SHR:
        yield f"{field_text(target)} >>= {value}"


def place_name(field: Field) -> str:
    """Return a name that is the same for a word of a CPU, whoever looks at it."""
    block, _, name = field.name.partition(".")
    return f"{'cpu' if block == 'other' else block}.{name}"


def scratch_words(effects: Iterable[Effect]) -> Iterator[str]:
    """Return the names of the words that take answers of operations on pages and on places."""
    for e in effects:
        yield from scratch_words((*e.body, *e.otherwise))
        if e.target is not None and (e.frame is not None or e.reach is not None):
            yield place_name(e.target)

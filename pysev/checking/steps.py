"""Counterexamples in words: who moved, what was done, which words changed."""

from __future__ import annotations

import enum
from collections.abc import Iterator

from ghcbcore._cffi import lib

from .. import frames
from ..compiler import Compiled
from ..flow import Flow, Words
from .result import VALUE_NAMES, Array, Move, Step

__all__ = ["agent_name", "step_of"]


def agent_name(compiled: Compiled, alt: int, own: int) -> str:
    """Return ``boot CPU``, ``AP 3`` ...: the CPU of slice ``own`` has the number ``own + 1``."""
    agent = compiled.agent_of(alt)
    return f"{agent.name} {own + 1}" if agent.per_cpu else agent.name


def step_of(compiled: Compiled, move: Move, before: Array, after: Array) -> Step:
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
            if name in flow.change_texts:
                if text := flow.change_texts[name](old, new):
                    yield text
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

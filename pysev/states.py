"""Arrays of states, as properties see them: each word one array, decoded when it is used.

``s.g.x``, ``s.vm.event`` and ``s.boot.msr`` have shape (n_states,); ``s.cpu.x`` has shape
(n_states, n_others), one column for each CPU beside the boot CPU. All are ``uint64``. The order
of the columns carries no meaning: CPUs are alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .compiler import Compiled
from .flow import Agent, Words

__all__ = ["States"]

Array = np.ndarray[Any, np.dtype[Any]]


class _View:
    def __init__(self, words: Words, get: Callable[[int], Array]) -> None:
        self._words = words
        self._get = get

    def __getattr__(self, name: str) -> Array:
        if name.startswith("_"):  # copy and pickle ask before there are any words
            raise AttributeError(name)
        return self._get(getattr(self._words, name).index)


class States:
    """An array of states of one compiled flow.

    Parameters
    ----------
    compiled : Compiled
    n : int
        How many states.
    global_word, cpu_word : callable
        Index of a word to its array, shape (n,) and (n, n_others).
    """

    def __init__(
        self,
        compiled: Compiled,
        n: int,
        global_word: Callable[[int], Array],
        cpu_word: Callable[[int], Array],
    ) -> None:
        self._compiled = compiled
        self._n = n
        self._cpu_word = cpu_word
        self._global_word = global_word
        flow = compiled.flow
        self.vm: Any = _View(flow.vm, global_word)
        self.boot: Any = _View(flow.boot, global_word)
        self.g: Any = _View(flow.g, global_word)
        self.cpu: Any = _View(flow.cpu, cpu_word)

    @classmethod
    def of_record(cls, compiled: Compiled, record: Array) -> States:
        """Return an array of one state over a record: no copy, but read-only."""
        record = record.view()
        record.flags.writeable = False
        n_global, n_slice = compiled.program.n_global, compiled.program.n_slice
        slices = record[n_global:].reshape(-1, n_slice)
        return cls(compiled, 1, lambda i: record[i : i + 1], lambda i: slices[:, i].reshape(1, -1))

    def __len__(self) -> int:
        return self._n

    @property
    def n_others(self) -> int:
        """CPUs beside the boot CPU."""
        return self._compiled.n_others

    def at(self, agent: str, *labels: str) -> Array:
        """Return where an agent stands at one of these labels: (n,) or, per CPU, (n, n_others)."""
        found = self._agent(agent)
        names = list(found.labels)
        for label in labels:
            if label not in names:
                raise KeyError(f"{agent} has no label {label!r}; it has: {', '.join(names)}")
        word = self._cpu_word if found.per_cpu else self._global_word
        pcs = word(found.pc.index)
        there = np.zeros(len(names), dtype=bool)
        there[[names.index(label) for label in labels]] = True
        return there[pcs.astype(np.intp)]

    def at_rest(self) -> Array:
        """Return where every agent stands at a label at which it may rest for ever, shape (n,)."""
        rest = np.ones(self._n, dtype=bool)
        for agent in self._compiled.flow.agents:
            there = self.at(agent.name, *sorted(agent.ends))
            rest &= there.all(axis=1) if agent.per_cpu else there
        return rest

    def _agent(self, name: str) -> Agent:
        for agent in self._compiled.flow.agents:
            if agent.name == name:
                return agent
        known = ", ".join(a.name for a in self._compiled.flow.agents)
        raise KeyError(f"no agent {name!r}; there are: {known}")

"""The search of ``ghcbcore.explorer`` in the most obvious form: its cross-check.
"""

import numpy as _np

cimport cython
from ghcbcore.machine cimport Program
from libc.stdint cimport uint64_t

__all__ = ["PlainExplorer"]


@cython.final
@cython.auto_pickle(False)
cdef class PlainExplorer:
    """PlainExplorer(program, record, *, symmetric=False)\n--\n
    The same search in the most obvious form: whole records in a dict, every step executed. Slow
    and large; the cross-check of ``Explorer``.

    Attributes
    ----------
    n_states, n_transitions : int
    terminals : list of bytes
        Records from which nothing follows.
    """

    cdef readonly Program program
    cdef readonly object states
    cdef readonly uint64_t n_transitions
    cdef readonly list terminals
    cdef bint symmetric

    def __init__(self, Program program not None, record, *, bint symmetric=False):
        self.program = program
        self.symmetric = symmetric and not program.ordered
        self.terminals = []
        start = self._canonical(_np.array(record, dtype=_np.uint64))
        self.states = {start: None}

    def _canonical(self, record):
        if self.symmetric:
            n = self.program.n_global
            slices = record[n:].reshape(-1, self.program.n_slice)
            record[n:] = _np.concatenate(sorted(slices, key=tuple)) if len(slices) else record[n:]
        return record.tobytes()

    @property
    def n_states(self):
        return len(self.states)

    def explore(self):
        """Find every reachable state."""
        frontier = list(self.states)
        while frontier:
            following = []
            for state in frontier:
                after = set()
                n = 0
                record = _np.frombuffer(state, dtype=_np.uint64).copy()
                for alt, own, other in self.program.moves(record):
                    copy = record.copy()
                    self.program.step(copy, alt, own, other)
                    n += 1
                    after.add(self._canonical(copy))
                self.n_transitions += n
                if not n:
                    self.terminals.append(state)
                for found in sorted(after):
                    if found not in self.states:
                        self.states[found] = state
                        following.append(found)
            frontier = following

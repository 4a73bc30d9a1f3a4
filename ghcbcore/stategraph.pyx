"""Strongly connected components of a graph of states: where a run can go round for ever."""

import numpy as _np

from ghcbcore import errors as _errors

from libc.stdint cimport int64_t, uint32_t

__all__ = ["components"]


def components(Py_ssize_t n_states, const uint32_t[::1] source not None, const uint32_t[::1] target not None):
    """Number the strongly connected components of a graph.

    Parameters
    ----------
    n_states : int
    source, target : uint32 arrays, shape (n_edges,)
        Edges, sorted by source.

    Returns
    -------
    uint32 array, shape (n_states,)
        The component of each state. A component has a number below those from which it is reached.

    Raises
    ------
    OutOfRange
        The arrays differ in length, a state does not exist, or ``source`` is not sorted.

    Notes
    -----
    Tarjan's algorithm without recursion: time and memory grow with states and edges.
    """
    cdef Py_ssize_t n_edges = source.shape[0], i
    if target.shape[0] != n_edges:
        raise _errors.OutOfRange(f"{n_edges} sources, {target.shape[0]} targets")
    if not 0 <= n_states < 1 << 32:
        raise _errors.OutOfRange(f"{n_states} states")
    first_ = _np.zeros(n_states + 2, dtype=_np.int64)
    cdef int64_t[::1] first = first_
    for i in range(n_edges):
        if source[i] >= n_states or target[i] >= n_states:
            raise _errors.OutOfRange(f"edge {i}: from {source[i]} to {target[i]} of {n_states} states")
        if i and source[i] < source[i - 1]:
            raise _errors.OutOfRange(f"edge {i}: source {source[i]} after {source[i - 1]}")
        first[source[i] + 1] += 1
    for i in range(n_states):
        first[i + 1] += first[i]
    out = _np.zeros(n_states, dtype=_np.uint32)
    cdef uint32_t[::1] label = out
    cdef int64_t[::1] index = _np.zeros(n_states + 1, dtype=_np.int64)  # 1 + order of discovery
    cdef int64_t[::1] low = _np.zeros(n_states + 1, dtype=_np.int64)
    cdef int64_t[::1] at = _np.zeros(n_states + 1, dtype=_np.int64)  # next edge
    cdef uint32_t[::1] open_ = _np.zeros(n_states + 1, dtype=_np.uint32)
    cdef uint32_t[::1] path = _np.zeros(n_states + 1, dtype=_np.uint32)
    cdef unsigned char[::1] is_open = _np.zeros(n_states + 1, dtype=_np.uint8)
    cdef int64_t n_found = 0, n_open = 0, n_path = 0, v, w, root
    cdef uint32_t n_components = 0
    with nogil:
        for root in range(n_states):
            if index[root]:
                continue
            path[0] = <uint32_t> root
            n_path = 1
            while n_path:
                v = path[n_path - 1]
                if index[v] == 0:
                    n_found += 1
                    index[v] = low[v] = n_found
                    at[v] = first[v]
                    open_[n_open] = <uint32_t> v
                    n_open += 1
                    is_open[v] = 1
                if at[v] < first[v + 1]:
                    w = target[at[v]]
                    at[v] += 1
                    if index[w] == 0:
                        path[n_path] = <uint32_t> w
                        n_path += 1
                    elif is_open[w] and index[w] < low[v]:
                        low[v] = index[w]
                    continue
                if low[v] == index[v]:
                    while True:
                        n_open -= 1
                        w = open_[n_open]
                        is_open[w] = 0
                        label[w] = n_components
                        if w == v:
                            break
                    n_components += 1
                n_path -= 1
                if n_path and low[v] < low[path[n_path - 1]]:
                    low[path[n_path - 1]] = low[v]
    return out

"""What a Python function computes, as text: a checkpoint notices by it that a property has changed.

Byte code and constants, and the same of every function and the value of every plain constant that
it names: in its closure, its defaults and its module. Objects of other kinds count by their type
and name alone, and where a function stands in its file not at all.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import numpy as np

__all__ = ["meaning"]

PLAIN = (int, float, complex, str, bytes, bool, type(None), type(Ellipsis))

Met = dict[int, Any]


def meaning(thing: Any) -> str:
    """Return the same text for two functions, in any two processes, only if they do the same.

    Two that do the same may have different texts: of another version of Python, or written in
    another way.
    """
    return _meaning(thing, {})


def _meaning(thing: Any, met: Met) -> str:
    if isinstance(thing, PLAIN):
        return f"{type(thing).__name__}:{thing!r}"
    if isinstance(thing, (types.FunctionType, list, dict)):  # what may lead back to itself
        if id(thing) in met:
            return "again"
        met[id(thing)] = thing
    if isinstance(thing, (tuple, list)):
        return f"{type(thing).__name__}({','.join(_meaning(t, met) for t in thing)})"
    if isinstance(thing, (set, frozenset)):  # whose order is another in each process
        return f"set({','.join(sorted(_meaning(t, dict(met)) for t in thing))})"
    if isinstance(thing, dict):
        pairs = (f"{_meaning(k, met)}={_meaning(v, met)}" for k, v in thing.items())
        return f"dict({','.join(pairs)})"
    if isinstance(thing, np.ndarray) and not thing.dtype.hasobject:
        return f"array({thing.dtype}{thing.shape}{thing.tobytes().hex()})"
    if isinstance(thing, types.MethodType):
        return _meaning(thing.__func__, met)
    if isinstance(thing, functools.partial):
        return f"partial{_meaning((thing.func, thing.args, thing.keywords), met)}"
    if isinstance(thing, types.CodeType):
        return _of_code(thing, met)
    if isinstance(thing, types.FunctionType):
        return _of_function(thing, met)
    return f"{type(thing).__module__}.{type(thing).__qualname__} {getattr(thing, '__name__', '')}"


def _of_code(code: types.CodeType, met: Met) -> str:
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return f"code({code.co_code.hex()},{names},{_meaning(code.co_consts, met)})"


def _of_function(function: types.FunctionType, met: Met) -> str:
    parts = [_of_code(function.__code__, met)]
    parts += [_meaning(part, met) for part in (function.__defaults__, function.__kwdefaults__)]
    for cell in function.__closure__ or ():
        try:
            parts.append(_meaning(cell.cell_contents, met))
        except ValueError:  # not filled yet
            parts.append("empty")
    for name in _named(function.__code__):
        if name in function.__globals__:
            parts.append(f"{name}={_meaning(function.__globals__[name], met)}")
    return f"function({','.join(parts)})"


def _named(code: types.CodeType) -> list[str]:
    """Return the names that code and the code inside it may look up in its module, sorted."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(_named(constant))
    return sorted(names)

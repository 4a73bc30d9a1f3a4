"""The C interface in ctypes, made from what cffi read in the headers: no second copy of it."""

from __future__ import annotations

import ctypes
from typing import Any

from ._cffi import ffi as _ffi

__all__ = ["ops_structure"]

_PRIMITIVE = {
    "int": ctypes.c_int,
    "uint8_t": ctypes.c_uint8,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
}
_made: list[type[ctypes.Structure]] = []  # once: two structures would be two types


def _type_of(c: Any) -> Any:
    """Return the ctypes type of a cffi type; of a pointer to data only that it is one."""
    if c.kind == "function" or (c.kind == "pointer" and c.item.kind == "function"):
        function = c if c.kind == "function" else c.item
        return ctypes.CFUNCTYPE(_type_of(function.result), *map(_type_of, function.args))
    if c.kind == "pointer":
        return ctypes.c_void_p
    return _PRIMITIVE[c.cname]


def ops_structure() -> type[ctypes.Structure]:
    """Return ``ghcb_ops_t`` of ``ghcbcore/ops.h`` as a ctypes structure; sizes are compared."""
    if _made:
        return _made[0]
    c = _ffi.typeof("ghcb_ops_t")
    fields = [(name, _type_of(field.type)) for name, field in c.fields]
    structure = type("ghcb_ops_t", (ctypes.Structure,), {"_fields_": fields})
    if ctypes.sizeof(structure) != _ffi.sizeof(c):
        raise TypeError("ghcb_ops_t has another size in ctypes than in C")
    _made.append(structure)
    return structure

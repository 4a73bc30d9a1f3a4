"""pysev: a software model of AMD SEV-ES / SEV-SNP machines.

What a user needs stands here: the host (``Host``), the decoder (``explain_msr``), flows and their
words (``Flow``, ``op``, ``put`` ...), the scenario library (``find``, ``all_scenarios``), ``run``
and ``check``. Names are loaded when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checking import CheckResult, check
    from .decode import explain_msr
    from .device import Device, GuestMemory
    from .flow import Flow, Property, add, call, each, jump, op, put, shift_right, when
    from .host import Guest, Host
    from .machine import Machine
    from .memmap import MemoryMap
    from .scenarios import Scenario, all_scenarios, find
    from .simulate import RunResult, run
    from .states import States

__version__ = "0.1.0"

_HOME = {
    "CheckResult": "checking",
    "Device": "device",
    "Flow": "flow",
    "Guest": "host",
    "GuestMemory": "device",
    "Host": "host",
    "Machine": "machine",
    "MemoryMap": "memmap",
    "Property": "flow",
    "RunResult": "simulate",
    "Scenario": "scenarios",
    "States": "states",
    "add": "flow",
    "all_scenarios": "scenarios",
    "call": "flow",
    "check": "checking",
    "each": "flow",
    "explain_msr": "decode",
    "find": "scenarios",
    "jump": "flow",
    "op": "flow",
    "put": "flow",
    "run": "simulate",
    "shift_right": "flow",
    "when": "flow",
}

__all__ = [
    "CheckResult",
    "Device",
    "Flow",
    "Guest",
    "GuestMemory",
    "Host",
    "Machine",
    "MemoryMap",
    "Property",
    "RunResult",
    "Scenario",
    "States",
    "add",
    "all_scenarios",
    "call",
    "check",
    "each",
    "explain_msr",
    "find",
    "jump",
    "op",
    "put",
    "run",
    "shift_right",
    "when",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pysev' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value

"""What a command's SCENARIO names: one of the library, or a flow of one's own, ``FILE.py:NAME``.

In a file, NAME is a ``Flow``, a ``Scenario``, or a function that returns a ``Flow`` and takes
nothing, or ``machine``, a ``Machine``. Nothing is expected of a flow of one's own, and it has no
source.
"""

from __future__ import annotations

import contextlib
import inspect
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ghcbcore.errors import SevError

from ..flow import Flow
from ..machine import Machine
from ..scenarios import Scenario, find

__all__ = ["BadFlow", "find_scenario", "is_own"]


class BadFlow(SevError, ValueError):
    """``FILE.py:NAME`` cannot be taken; the text says why."""


def is_own(text: str) -> bool:
    """Whether a name is that of a flow of one's own."""
    path, colon, _ = text.rpartition(":")
    return bool(colon) and path.endswith(".py")


def find_scenario(text: str) -> Scenario:
    """Return the scenario of this name, or one made of a flow of one's own.

    Raises
    ------
    UnknownScenario
        The library has none of this name.
    BadFlow
        The file raised, or has nothing of this name that is or makes a flow.
    OSError
        It cannot be read.
    """
    if not is_own(text):
        return find(text)
    path, _, name = text.rpartition(":")
    found = _load(path, text)
    if name not in found:
        raise BadFlow(f"{text}: {path} has no {name!r}")
    one = found[name]
    if isinstance(one, Scenario):
        return one
    doc = inspect.getdoc(one) if callable(one) else None
    summary = " ".join((doc or "a flow of one's own").split())
    return Scenario(text, summary, "", "", "", "", _builder(text, one), from_cpus=1)


def _load(path: str, text: str) -> dict[str, Any]:
    with open(path, "rb"):  # noqa: PTH123 -- what cannot be opened is no mistake of its code
        pass
    folder = str(Path(path).resolve().parent)
    sys.path.insert(0, folder)  # as if it were run: it may have neighbours
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what it prints is no part of a report
            return runpy.run_path(path)
    except (Exception, SystemExit) as error:
        raise BadFlow(f"{text}: {type(error).__name__}: {error}") from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _builder(text: str, one: Any) -> Callable[[Machine], Flow]:
    if isinstance(one, Flow):
        return lambda machine: one
    if not callable(one):
        raise BadFlow(f"{text}: neither a Flow nor a function that makes one")
    try:
        parameters = inspect.signature(one).parameters.values()
    except (TypeError, ValueError) as error:
        raise BadFlow(f"{text}: {error}") from error
    rest = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p for p in parameters if p.default is p.empty and p.kind not in rest]
    if len(needed) > 1 or any(p.name != "machine" for p in needed):
        names = ", ".join(p.name for p in needed)
        raise BadFlow(f"{text}: takes {names}; it may take nothing, or `machine`")

    def build(machine: Machine) -> Flow:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                flow = one(machine) if needed else one()
        except SevError:
            raise
        except (Exception, SystemExit) as error:
            raise BadFlow(f"{text}: {type(error).__name__}: {error}") from error
        if not isinstance(flow, Flow):
            raise BadFlow(f"{text}: returned {type(flow).__name__}, not a Flow")
        return flow

    return build

"""What a scenario is, and the list of those there are.

scenario = flow + variant + properties + expected verdict + source. A family is a module that
registers its scenarios; ``find`` and ``all_scenarios`` import them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from ghcbcore.errors import SevError

from ..flow import Flow
from ..machine import Machine

__all__ = ["Scenario", "UnknownScenario", "all_scenarios", "find", "register"]


class UnknownScenario(SevError, KeyError):
    """No scenario has this name; the text says the nearest one."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Scenario:
    """One row of the library.

    Attributes
    ----------
    name : str
        ``family/variant``.
    summary : str
        One line for ``pysev scenarios``.
    expected : str
        ``holds``, ``violated`` or ``deadlock``.
    because : str
        Name of the property that must be the one violated, empty if it holds; a failing scenario
        is right only if it fails for the reason that its source gives.
    story : str
        The reason in the source's words: what happens, for the verdict.
    source : str
    assumes : tuple of str
        What is taken for granted and where the facts are unconfirmed.
    build : callable
        Makes the flow for a machine.
    jump_table : int or None
        Where the firmware of this scenario's machine has the jump table, if not where the map says.
    from_cpus : int
        CPUs from which on ``expected`` shows; with fewer there is nobody whose fate could go
        wrong, and the scenario holds.
    fixed_cpus : int or None
        The scenario is about a machine of so many CPUs, whatever else was asked for.
    least_cpus : int
        It is about a machine of at least so many.
    """

    name: str
    summary: str
    expected: str
    because: str
    story: str
    source: str
    build: Callable[[Machine], Flow]
    assumes: tuple[str, ...] = ()
    jump_table: int | None = None
    from_cpus: int = 2
    fixed_cpus: int | None = None
    least_cpus: int = 1

    @property
    def family(self) -> str:
        return self.name.partition("/")[0]

    def n_cpus(self, asked: int) -> int:
        """Return how many CPUs its machine has where ``asked`` were asked for.

        A number that no machine can have stays as it is, for the machine to refuse.
        """
        if asked < 1:
            return asked
        return max(asked, self.least_cpus) if self.fixed_cpus is None else self.fixed_cpus

    def expected_with(self, n_cpus: int) -> str:
        """Return the verdict to expect with so many CPUs."""
        return self.expected if n_cpus >= self.from_cpus else "holds"


FAMILIES = {
    "sev-es-kexec": ("sev_es_kexec",),
    "snp-guest-kexec": ("snp_guest_kexec", "snp_guest_bugs"),
    "tdx-guest-kexec": ("tdx_guest_kexec",),
    "live-migration-reset": ("live_migration_reset",),
    "host-cache-flush": ("host_cache_flush",),
    "bugs": ("bugs",),
    "guest-kdump": ("guest_kdump",),
    "snp-host-kdump": ("snp_host_kdump", "snp_host_kexec"),
}
"""The modules that register the scenarios of each family, families in the order of a list."""

_SCENARIOS: dict[str, Scenario] = {}


def register(scenario: Scenario) -> Scenario:
    """Add a scenario; its name must be new."""
    if scenario.name in _SCENARIOS:
        raise ValueError(f"scenario {scenario.name!r} is there already")
    _SCENARIOS[scenario.name] = scenario
    return scenario


def _import(family: str) -> None:
    for module in FAMILIES[family]:
        import_module(f"{__package__}.{module}")


def all_scenarios() -> list[Scenario]:
    """Return every scenario, by family and in the order of its family's file, whichever module was
    imported first."""
    for family in FAMILIES:
        _import(family)
    place = {family: i for i, family in enumerate(FAMILIES)}
    return sorted(_SCENARIOS.values(), key=lambda s: place.get(s.family, len(place)))


def find(name: str) -> Scenario:
    """Return the scenario of this name; UnknownScenario names the nearest one."""
    family = name.partition("/")[0]
    if family in FAMILIES:  # a command about one scenario need not read the others
        _import(family)
        if name in _SCENARIOS:
            return _SCENARIOS[name]
    known = {s.name: s for s in all_scenarios()}
    if name in known:
        return known[name]
    short: dict[str, str] = {}
    for n in known:  # of two with the same last part, the one that is listed first
        short.setdefault(n.rsplit("/", 1)[-1], n)
    near = [short[m] for m in difflib.get_close_matches(name.rsplit("/", 1)[-1], short, 1, 0.4)]
    if "/" in name or not near:
        near = difflib.get_close_matches(name, known, 1, 0.4) or near
    hint = f"; the nearest is {near[0]}" if near else "; `pysev scenarios` lists them"
    raise UnknownScenario(f"no scenario {name!r}{hint}")

"""The search of ``check``, and the whole command, beside SPIN and our own plain form.

States are distinct reachable states, transitions the steps between them. Our searches are timed
without properties: parts, keys and transitions alone. ``PlainExplorer`` is the same search in the
obvious form, whole records in a dict. SPIN searches ``promela/jump_table.pml``, which has the same
roles and steps: without symmetry both sides find the same number of states, to one (SPIN counts
the state before its ``init`` has run). It is used if it is on PATH, with a C compiler; its
partial-order reduction is on, and its assertions and invalid end states are its properties, which
our search alone does not look at and the whole command does. The same holds for
``promela/live_migration_reset.pml``, of whose variants some fail: there SPIN goes on behind an
error, as our search does.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from beside import OURS, SECONDS

import pysev
from ghcbcore.explorer import Explorer
from ghcbcore.plainexplorer import PlainExplorer
from pysev.compiler import Compiled

pytestmark = pytest.mark.benchmark(max_time=0.3, min_rounds=3)

MODEL = Path(__file__).with_name("promela") / "jump_table.pml"

SIZES = {  # flow, CPUs, symmetric: states, transitions
    ("jump-table", 12, True): (36168, 150489),
    ("jump-table", 16, True): (178376, 840233),
    ("jump-table-ack-early", 6, True): (756052, 2314980),
    ("jump-table-ack-early", 7, True): (2568226, 8025933),
    ("legacy-svm", 16, True): (7196, 23193),
    ("jump-table", 5, True): (1034, 2957),
    ("jump-table", 7, True): (3140, 10037),
    ("jump-table", 8, True): (5312, 18029),
    ("jump-table", 5, False): (10988, 38717),
    ("jump-table", 7, False): (352820, 1759573),
    ("jump-table", 8, False): (2412616, 14285501),
}
"""Counted once with each engine where it can; every timed search is held against it."""


def compiled(name: str, n_cpus: int, family: str = "sev-es-kexec") -> Compiled:
    scenario = pysev.find(f"{family}/{name}")
    return scenario.build(pysev.Machine.of(n_cpus)).compile(n_cpus)


def search(explorer: Explorer) -> Explorer:
    low = 0
    while low < explorer.n_states:
        high = explorer.n_states
        explorer.expand(low, high)
        low = high
    return explorer


def fresh(flow: Compiled, symmetric: bool) -> Callable[[], Any]:
    return lambda: (
        (Explorer(flow.program, flow.initial_record(), symmetric=symmetric),),
        {},
    )


def title(name: str, n_cpus: int) -> str:
    return f"search: {name}, {n_cpus} CPUs"


def title_off(n_cpus: int) -> str:
    return f"search: jump-table, {n_cpus} CPUs, symmetry off"


def counts(sizes: tuple[int, int]) -> dict[str, int]:
    return {"states": sizes[0], "transitions": sizes[1]}


@pytest.mark.parametrize(("name", "n_cpus"), [key[:2] for key in SIZES if key[2]])
def bench_search(timed: Any, name: str, n_cpus: int) -> None:
    sizes = SIZES[name, n_cpus, True]
    done = timed(
        title(name, n_cpus),
        OURS,
        1,
        SECONDS,
        search,
        prepare=fresh(compiled(name, n_cpus), True),
        rounds=2 if sizes[0] > 500_000 else 5,
        counts=counts(sizes),
    )
    assert (done.n_states, done.n_transitions) == sizes


@pytest.mark.parametrize("n_cpus", [5, 7, 8])
def bench_search_symmetry_off(timed: Any, n_cpus: int) -> None:
    sizes = SIZES["jump-table", n_cpus, False]
    done = timed(
        title("jump-table", n_cpus),
        "ours, symmetry off",
        1,
        SECONDS,
        search,
        prepare=fresh(compiled("jump-table", n_cpus), False),
        rounds=2 if sizes[0] > 500_000 else 5,
        counts=counts(sizes),
        also=[(title_off(n_cpus), OURS)],
    )
    assert (done.n_states, done.n_transitions) == sizes


def bench_search_plain_form(timed: Any) -> None:
    sizes = SIZES["jump-table", 5, False]
    flow = compiled("jump-table", 5)

    def explore(explorer: PlainExplorer) -> PlainExplorer:
        explorer.explore()
        return explorer

    done = timed(
        title_off(5),
        "plain form",
        1,
        SECONDS,
        explore,
        prepare=lambda: ((PlainExplorer(flow.program, flow.initial_record()),), {}),
        rounds=2,
        counts=counts(sizes),
    )
    assert (done.n_states, done.n_transitions) == sizes


# -- SPIN --------------------------------------------------------------------------------------


class Spin:
    """SPIN with a C compiler: makes a searcher for so many CPUs, and runs it."""

    def __init__(
        self, spin: str, cc: str, folder: Path, n_cpus: int, *defines: str, model: Path = MODEL
    ) -> None:
        self.spin, self.cc, self.folder = spin, cc, folder
        self.defines = [f"-D{define}" for define in (f"N={n_cpus}", *defines)]
        self.model = shutil.copy(model, folder)

    def make(self) -> None:
        subprocess.run([self.spin, *self.defines, "-a", self.model], **self._how())
        options = ["-O2", "-w", "-DSAFETY", "-DMEMLIM=4096"]
        subprocess.run([self.cc, *options, "-o", "pan", "pan.c"], **self._how())

    def search(self) -> tuple[int, int, int]:
        """Return errors, states and transitions; the search goes on behind an error."""
        text = subprocess.run(["./pan", "-c0"], **self._how()).stdout
        found = [
            re.search(pattern, text)
            for pattern in (r"errors: (\d+)", r"(\d+) states, stored", r"(\d+) transitions")
        ]
        errors, states, transitions = (int(m[1]) for m in found if m)
        return errors, states, transitions

    def make_and_search(self) -> tuple[int, int, int]:
        self.make()
        return self.search()

    def _how(self) -> dict[str, Any]:
        return {"cwd": self.folder, "check": True, "capture_output": True, "text": True}


@pytest.fixture
def spin(tmp_path: Path, left_out: Any) -> Callable[..., Spin]:
    tools = shutil.which("spin"), shutil.which("cc") or shutil.which("gcc")
    if not all(tools):
        left_out("SPIN is left out: `spin` and a C compiler are not both on PATH")
    return partial(Spin, str(tools[0]), str(tools[1]), tmp_path)


@pytest.mark.parametrize("n_cpus", [5, 7, 8])
def bench_search_spin(benchmark: Any, timed: Any, spin: Any, n_cpus: int) -> None:
    if benchmark.disabled and n_cpus > 5:
        pytest.skip("takes SPIN seconds; here only whether it works is asked")
    sizes = SIZES["jump-table", n_cpus, False]
    searcher = spin(n_cpus)
    searcher.make()
    errors, states, transitions = timed(
        title("jump-table", n_cpus),
        "SPIN",
        1,
        SECONDS,
        searcher.search,
        rounds=1 if n_cpus == 8 else 3,
        counts=counts(sizes),
        also=[(title_off(n_cpus), "SPIN")],
    )
    # one state and two transitions more: before `init`, and to its end
    assert (errors, states, transitions) == (0, sizes[0] + 1, sizes[1] + 2)


MIGRATION = Path(__file__).with_name("promela") / "live_migration_reset.pml"
RESETS = {  # variant, with the condition's macros; symmetry off: states, transitions
    ("cpu0", "VARIANT=CPU0"): (32188, 192188),
    ("every-cpu", "VARIANT=EVERY_CPU"): (43079, 267310),
    ("merged", "VARIANT=MERGED"): (19699, 121610),
    ("cpu0+device", "VARIANT=CPU0", "DEVICE"): (128904, 785390),
}


def title_reset(name: str) -> str:
    return f"search: live-migration-reset/{name}, 8 CPUs, symmetry off"


@pytest.mark.parametrize("variant", RESETS, ids=lambda v: v[0])
def bench_search_migration(timed: Any, variant: tuple[str, ...]) -> None:
    done = timed(
        title_reset(variant[0]),
        OURS,
        1,
        SECONDS,
        search,
        prepare=fresh(compiled(variant[0], 8, "live-migration-reset"), False),
        rounds=5,
        counts=counts(RESETS[variant]),
    )
    assert (done.n_states, done.n_transitions) == RESETS[variant]


@pytest.mark.parametrize("variant", RESETS, ids=lambda v: v[0])
def bench_search_migration_spin(timed: Any, spin: Any, variant: tuple[str, ...]) -> None:
    searcher = spin(8, *variant[1:], model=MIGRATION)
    searcher.make()
    sizes = RESETS[variant]
    errors, states, transitions = timed(
        title_reset(variant[0]), "SPIN", 1, SECONDS, searcher.search, rounds=3, counts=counts(sizes)
    )
    expected = pysev.find(f"live-migration-reset/{variant[0]}").expected
    assert (errors > 0) == (expected == "violated")
    assert (states, transitions) == (sizes[0] + 1, sizes[1] + 2)


FLUSH = Path(__file__).with_name("promela") / "host_cache_flush.pml"
FLUSHES = {  # variant, with its macros; symmetry off: states, transitions
    ("every-cpu-sme",): (53394, 357387),
    ("remote-only-sme", "LAST=0"): (53407, 357405),
    ("last-only-sme", "REMOTE=0"): (90965, 601283),
    ("none-sme", "REMOTE=0", "LAST=0"): (90973, 601299),
}


def title_flush(name: str) -> str:
    return f"search: host-cache-flush/{name}, 7 CPUs, symmetry off"


@pytest.mark.parametrize("variant", FLUSHES, ids=lambda v: v[0])
def bench_search_flush(timed: Any, variant: tuple[str, ...]) -> None:
    done = timed(
        title_flush(variant[0]),
        OURS,
        1,
        SECONDS,
        search,
        prepare=fresh(compiled(variant[0], 7, "host-cache-flush"), False),
        rounds=5,
        counts=counts(FLUSHES[variant]),
    )
    assert (done.n_states, done.n_transitions) == FLUSHES[variant]


@pytest.mark.parametrize("variant", FLUSHES, ids=lambda v: v[0])
def bench_search_flush_spin(timed: Any, spin: Any, variant: tuple[str, ...]) -> None:
    searcher = spin(7, *variant[1:], model=FLUSH)
    searcher.make()
    sizes = FLUSHES[variant]
    errors, states, transitions = timed(
        title_flush(variant[0]), "SPIN", 1, SECONDS, searcher.search, rounds=3, counts=counts(sizes)
    )
    result = pysev.check(pysev.find(f"host-cache-flush/{variant[0]}").build(pysev.Machine.of(4)), 4)
    assert (errors > 0) == bool(result.violations)  # one property can be violated, here as there
    assert (states, transitions) == (sizes[0] + 1, sizes[1] + 2)


# -- the whole command -------------------------------------------------------------------------

COMMAND = "whole command: jump-table, 5 CPUs, cold"


def bench_command(timed: Any, tmp_path: Path) -> None:
    """A new interpreter, away from the source tree: it runs what is installed."""
    command = [sys.executable, "-P", "-m", "pysev"]
    command += ["check", "sev-es-kexec/jump-table", "--cpus", "5", "--json"]
    done = timed(
        COMMAND,
        OURS,
        1,
        SECONDS,
        lambda: subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True),
        rounds=5,
    )
    result = json.loads(done.stdout)
    assert result["verdict"] == "holds"
    assert result["complete"] is True


def bench_command_spin(timed: Any, spin: Any) -> None:
    errors, _, _ = timed(
        COMMAND, "SPIN, with its compiler", 1, SECONDS, spin(5).make_and_search, rounds=3
    )
    assert errors == 0

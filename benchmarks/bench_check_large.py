"""The search where SPIN needs more than a second: three families, with symmetry and without.

The Promela models have the same roles and steps as the flows (their heads say what is encoded
differently), so that without symmetry both sides find the same states. SPIN has no symmetry of
CPUs; the rows with symmetry say what it saves where CPUs are alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench_check import FLUSH, MIGRATION, MODEL, compiled, counts, fresh, search, spin
from beside import OURS, SECONDS

pytestmark = pytest.mark.benchmark(max_time=0.3, min_rounds=2)
__all__ = ["spin"]  # the fixture

Case = tuple[str, str, int, Path, tuple[str, ...]]
CASES: dict[Case, tuple[tuple[int, int], tuple[int, int]]] = {
    # family, variant, CPUs, model, macros: states and transitions without symmetry, and with it
    ("sev-es-kexec", "jump-table", 8, MODEL, ()): ((2412616, 14285501), (5312, 18029)),
    ("live-migration-reset", "cpu0", 11, MIGRATION, ("VARIANT=CPU0",)): (
        (455636, 3513380),
        (659, 1794),
    ),
    ("host-cache-flush", "every-cpu-sme", 8, FLUSH, ()): ((297464, 2299708), (778, 3202)),
}


def title(case: Case) -> str:
    return f"search, large: {case[0]}/{case[1]}, {case[2]} CPUs"


@pytest.mark.parametrize("symmetric", [False, True], ids=["apart", "alike"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c[0])
def bench_search_large(timed: Any, case: Case, symmetric: bool) -> None:
    family, variant, n_cpus, _, _ = case
    sizes = CASES[case][symmetric]
    done = timed(
        title(case),
        OURS if symmetric else "ours, symmetry off",
        1,
        SECONDS,
        search,
        prepare=fresh(compiled(variant, n_cpus, family), symmetric),
        rounds=5 if symmetric else 3,
        counts=counts(sizes),
    )
    assert (done.n_states, done.n_transitions) == sizes


@pytest.mark.parametrize("case", CASES, ids=lambda c: c[0])
def bench_search_large_spin(
    benchmark: Any,
    timed: Any,
    spin: Any,
    case: Case,
) -> None:
    if benchmark.disabled:
        pytest.skip("takes SPIN seconds; bench_check asks whether it works")
    _, _, n_cpus, model, macros = case
    sizes = CASES[case][0]
    searcher = spin(n_cpus, *macros, model=model)
    searcher.make()
    _, states, transitions = timed(
        title(case), "SPIN", 1, SECONDS, searcher.search, rounds=1, counts=counts(sizes)
    )
    assert (states, transitions) == (sizes[0] + 1, sizes[1] + 2)

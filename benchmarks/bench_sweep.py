"""A sweep of twelve large machines, by two workers and by one.

The points are the same, and so must the files be, but for the column that says how long each
point took on this machine. Workers are processes that are spawned and import the program anew,
which is part of what is timed: a point has to be some tenths of a second for a second worker to
pay, and on a machine whose other cores are busy it does not.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from beside import OURS

from pysev.sweep import Plan
from pysev.sweep.command import main_sweep

UNIT = "points"
TIB = 1 << 40
PLAN = Plan("live-migration-reset/merged+device", (2048, 3072), (TIB, 16 * TIB), n_seeds=3)
N_POINTS = 12


def rows(path: Path) -> list[list[str]]:
    """Return a finished table without its last column, the seconds of each point."""
    with path.open(newline="") as stream:
        table = list(csv.reader(stream))
    assert table[0][-1] == "wall_seconds"
    return [row[:-1] for row in table]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The table as one worker makes it."""
    path = tmp_path_factory.mktemp("sweep") / "expected.csv"
    assert main_sweep(PLAN, n_workers=1, out=str(path)) == 0
    found = rows(path)
    assert len(found) == 1 + N_POINTS == 1 + PLAN.n_points
    return found


@pytest.mark.parametrize(("n_workers", "who"), [(2, OURS), (1, "one worker")])
def bench_sweep(
    timed: Callable[..., Any],
    tmp_path: Path,
    expected: list[list[str]],
    n_workers: int,
    who: str,
) -> None:
    made = []

    def fresh() -> tuple[tuple[()], dict[str, str]]:
        made.append(tmp_path / f"{len(made)}.csv")
        return (), {"out": str(made[-1])}

    call = partial(main_sweep, PLAN, n_workers=n_workers)
    work = "sweep/12 points, two workers"
    status = timed(work, who, N_POINTS, UNIT, call, prepare=fresh, rounds=1)
    assert status == 0
    assert made
    for path in made:
        assert rows(path) == expected

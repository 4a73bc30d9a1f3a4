"""The fixtures of the benchmarks, and the table at the end of a run. See ``beside.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from beside import Timed, table

_timed: list[Timed] = []
_left_out: list[str] = []


@pytest.fixture
def timed(benchmark: Any) -> Callable[..., Any]:
    """Time a call as one side of a comparison; return what it returned.

    ``prepare`` makes fresh arguments, ``(args, kwargs)``, outside of the timed part; then and with
    ``rounds`` each round is one call. ``counts`` are further rates to show, count by unit. ``also``
    says in which other rows the same call stands: (work, who).
    """

    def time(
        work: str,
        who: str,
        items: int,
        unit: str,
        call: Callable[..., Any],
        *,
        prepare: Callable[[], Any] | None = None,
        rounds: int | None = None,
        counts: Mapping[str, int] | None = None,
        also: Sequence[tuple[str, str]] = (),
    ) -> Any:
        benchmark.group = work
        benchmark.extra_info.update(work=work, who=who, items=items, unit=unit, **(counts or {}))
        if prepare is None and rounds is None:
            result = benchmark(call)
        else:
            result = benchmark.pedantic(call, setup=prepare, rounds=rounds or 5, iterations=1)
        if benchmark.stats is not None:
            median = benchmark.stats.stats.median
            for row in [(work, who), *also]:
                _timed.append(Timed(*row, items, unit, counts or {}, median))
        return result

    return time


@pytest.fixture
def left_out() -> Callable[[str], None]:
    """Skip a peer that is not installed, with a word under the table."""

    def leave(why: str) -> None:
        _left_out.append(why)
        pytest.skip(why)

    return leave


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _timed:
        return
    terminalreporter.section("medians of this run, side by side")
    for line in [*table(_timed), *dict.fromkeys(_left_out)]:
        terminalreporter.write_line(line)

"""``pysev check``: one scenario or all of them, in every order of events."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..usage import UsageError, load_property

if TYPE_CHECKING:
    from .search import Progress

__all__ = ["add_arguments", "main_check"]

GOOD, FINDING = 0, 1
MAX_CPUS = 64
MAX_THREADS = 64
MIN_BYTES = 16 << 20
"""The tables of a search take a few MiB before they hold a state."""


def add_arguments(check: argparse.ArgumentParser, number: Callable[[str], int]) -> None:
    """Add what only ``check`` takes; ``number`` reads an integer."""
    check.add_argument("--all", action="store_true", help="every scenario; 0 if all as expected")
    check.add_argument("--cpus", type=number, default=4, metavar="N")
    check.add_argument("--max-memory", default="8G", metavar="SIZE", help="bound for the states")
    check.add_argument("--seconds", type=float, metavar="S", help="bound on the time")
    check.add_argument("--depth", type=number, metavar="N", help="bound on the number of steps")
    check.add_argument("--no-symmetry", action="store_true", help="count every CPU as different")
    check.add_argument(
        "--reduce", action="store_true", help="follow operations that need no order alone"
    )
    check.add_argument(
        "--fingerprints", action="store_true", help="64 bits of hash in place of each state"
    )
    check.add_argument("--threads", type=number, metavar="N", help="all CPUs' by default")
    check.add_argument(
        "--checkpoint", metavar="FOLDER", help="keep the search there; goes on where it was stopped"
    )
    check.add_argument("--every", type=float, default=60.0, metavar="S", help="of --checkpoint")
    check.add_argument("--progress", action="store_true", help="say how far, on standard error")
    check.add_argument(
        "--eventually",
        action="append",
        default=[],
        metavar="FILE.py:FUNCTION",
        help="it must come about wherever nobody is put off for ever",
    )


def main_check(arguments: argparse.Namespace, write_json: Callable[[Any], None]) -> int:
    """Run the command; return the exit status."""
    from ..machine import Machine
    from ..report import check_row, check_table, check_text, is_expected
    from ..scenarios import all_scenarios
    from ..showing.finding import find_scenario
    from .search import check

    a = arguments
    options = _options(a)
    outputs = {how: getattr(a, how) for how in ("save", "mermaid", "svg")}
    if a.all and any(path is not None for path in outputs.values()):
        raise UsageError("check: --save, --mermaid and --svg take one scenario, not --all")
    if a.all and a.checkpoint is not None:
        raise UsageError("check: --checkpoint takes one scenario, not --all")
    to_stdout = False
    if any(path is not None for path in outputs.values()):
        from ..showing.command import refuse_outputs, write_counterexample

        to_stdout = refuse_outputs("check", list(outputs.values()))
    properties = [load_property(text) for text in a.property]
    properties += [load_property(t, "eventually", "--eventually") for t in a.eventually]
    rows, texts, results, expected = [], [], [], []
    for scenario in all_scenarios() if a.all else [find_scenario(a.scenario)]:
        n_cpus = scenario.n_cpus(a.cpus)
        flow = scenario.build(Machine.of(n_cpus, jump_table=scenario.jump_table))
        result = check(flow, n_cpus, properties=properties, **options)
        expected.append(is_expected(scenario, result))
        results.append(result.as_json())
        if scenario.expected:  # nothing is expected of a flow of one's own
            results[-1]["expected"] = scenario.expected_with(n_cpus)
            results[-1]["as_expected"] = expected[-1]
        if a.all:
            rows.append(check_row(scenario, result))
        else:
            texts.append(check_text(scenario, flow, result, properties))
            if any(path is not None for path in outputs.values()):
                texts += [f"{t}\n" for t in write_counterexample(scenario, flow, result, **outputs)]
    if to_stdout:
        return FINDING if results[0]["verdict"] != "holds" else GOOD
    if a.json:
        write_json(results if a.all else results[0])
    else:
        sys.stdout.write(check_table(rows) if a.all else "".join(texts))
    if a.all:
        return GOOD if all(expected) else FINDING
    return GOOD if results[0]["verdict"] == "holds" else FINDING


def _options(a: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``check`` that were asked for."""
    from ..memmap import parse_size

    if a.all == (a.scenario is not None):
        raise UsageError("check: give one scenario, or --all")
    if not 1 <= a.cpus <= MAX_CPUS:
        raise UsageError(f"--cpus {a.cpus}: check takes 1 to {MAX_CPUS}")
    if a.seconds is not None and not a.seconds > 0:
        raise UsageError(f"--seconds {a.seconds}: must be above 0")
    if a.depth is not None and a.depth < 0:
        raise UsageError(f"--depth {a.depth}: must be at least 0")
    if not a.every >= 0:
        raise UsageError(f"--every {a.every}: must be at least 0")
    threads = len(os.sched_getaffinity(0)) if a.threads is None else a.threads
    if not 1 <= threads <= MAX_THREADS:
        if a.threads is not None:
            raise UsageError(f"--threads {a.threads}: 1 to {MAX_THREADS} are possible")
        threads = MAX_THREADS
    max_bytes = parse_size(a.max_memory)
    if max_bytes < MIN_BYTES:
        raise UsageError(f"--max-memory {a.max_memory}: must be at least 16M")
    told = a.progress or (sys.stderr is not None and sys.stderr.isatty() and not a.all)
    return {
        "symmetric": not a.no_symmetry,
        "reduced": a.reduce,
        "fingerprints": a.fingerprints,
        "threads": threads,
        "max_bytes": max_bytes,
        "seconds": a.seconds,
        "depth": a.depth,
        "progress": _tell if told else None,
        "checkpoint": a.checkpoint,
        "checkpoint_seconds": a.every,
    }


def _tell(p: Progress) -> None:
    sys.stderr.write(
        f"{p.seconds:8.1f} s  depth {p.depth}  {p.states} states  {p.transitions} transitions  "
        f"{p.frontier} to expand  {p.rate:.0f} states/s  {p.n_bytes >> 20} MiB\n"
    )
    sys.stderr.flush()

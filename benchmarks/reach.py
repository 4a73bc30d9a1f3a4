"""How many CPUs a complete check takes: one scenario after the other, N growing.

    python benchmarks/reach.py [SCENARIO ...] [--memory 8G] [--seconds 300] [--threads N]

Each scenario is checked with 2, 3, 4 ... CPUs until one search is not complete within the bounds
(or all 64 are through), and the last complete one is printed. Quick searches are passed
over by doubling the step. Without names: one scenario of each family, the ones with most states.
"""

from __future__ import annotations

import argparse
import os
import sys

import pysev
from pysev.checking import CheckResult, check
from pysev.memmap import parse_size

DEFAULT = (
    "sev-es-kexec/jump-table",
    "sev-es-kexec/jump-table-ack-early",
    "sev-es-kexec/legacy-svm",
    "live-migration-reset/cpu0",
    "live-migration-reset/mute+device",
    "host-cache-flush/mainline-flag-sme",
    "snp-host-kdump/nmi-decommission",
    "snp-guest-kexec/mainline",
    "tdx-guest-kexec/mainline-test",
)
MAX_CPUS = 64
QUICK = 2.0


def last_complete(
    name: str, max_bytes: int, seconds: float, threads: int
) -> tuple[CheckResult | None, str]:
    """Return the complete check with most CPUs, and why the next was not."""
    scenario = pysev.find(name)
    best, n, step = None, 2, 1
    while n <= MAX_CPUS:
        flow = scenario.build(pysev.Machine.of(n, jump_table=scenario.jump_table))
        try:
            result = check(flow, n, threads=threads, max_bytes=max_bytes, seconds=seconds)
        except MemoryError:
            return best, "memory"
        if not result.complete:
            if step == 1:
                return best, f"{result.stopped} at {n} CPUs, {result.states} states"
            n, step = n - step + 1, 1
            continue
        best = result
        if result.seconds > QUICK:
            step = 1
        elif result.seconds < QUICK / 4:
            step = min(8, 2 * step)
        if n == MAX_CPUS:
            break
        step = min(step, MAX_CPUS - n)
        n += step
    return best, "64 CPUs are the most that check takes"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="*", default=DEFAULT)
    parser.add_argument("--memory", default="8G")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    a = parser.parse_args()
    print("| scenario | CPUs | states | transitions | MiB | bytes a state | s | then |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for name in a.scenarios:
        best, why = last_complete(name, parse_size(a.memory), a.seconds, a.threads)
        if best is None:
            print(f"| {name} | none | | | | | | {why} |", flush=True)
            continue
        size = f"{best.n_bytes >> 20} | {best.n_bytes / best.states:.0f}"
        row = f"{best.n_cpus} | {best.states} | {best.transitions} | {size} | {best.seconds:.1f}"
        print(f"| {name} | {row} | {why} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Cores of large guests: what ``pysev vmcore`` makes and writes, holes and all.

No peer writes such a file; the limit is the pages that are known, which are written once. Sizes:
the largest guest of the aims, and one of a size that people have.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from beside import OURS, SECONDS

from pysev.machine import Machine
from pysev.memmap import MemoryMap, parse_size
from pysev.scenarios import find
from pysev.simulate import run
from pysev.vmcore.crash import Core
from pysev.vmcore.record import crash_of
from pysev.vmcore.write import write_core


@pytest.mark.parametrize(("n_cpus", "size"), [(64, "64G"), (4096, "16T")])
def bench_write(timed: Callable[..., Any], tmp_path: Path, n_cpus: int, size: str) -> None:
    machine = Machine.of(n_cpus, MemoryMap.flat(parse_size(size)))
    flow = find("guest-kdump/sev-es").build(machine)
    result = run(flow, machine)
    path = tmp_path / "core"

    def write() -> int:
        path.unlink(missing_ok=True)
        return write_core(Core(crash_of(flow, machine, result)), str(path), "compact").known_bytes

    known = timed(f"vmcore, {n_cpus} CPUs, {size}", OURS, 1, SECONDS, write, rounds=3)
    assert 1 << 20 < known < 256 << 20
    assert path.stat().st_blocks * 512 < 256 << 20

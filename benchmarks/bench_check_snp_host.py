"""``check`` of an SNP host's crash beside SPIN: firmware that answers, and who asks it when.

``promela/snp_host_kdump.pml`` has the same roles and steps. Without symmetry both sides find the
same states, to one (SPIN counts the state before its ``init`` has run; its reduction is off, which
would leave out orders of local steps). Nothing is left out behind a violation, on either side;
which of S1 to S5 can be violated is asked one by one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from beside import OURS, SECONDS

import pysev
from pysev.flow import Flow

pytestmark = pytest.mark.benchmark(max_time=0.3, min_rounds=3)

MODEL = Path(__file__).with_name("promela") / "snp_host_kdump.pml"
N_CPUS = 6
FAMILY = "snp-host-kdump"
NMI, FIRST = "VARIANT=NMI_DECOMMISSION", "VARIANT=WBINVD_FIRST"

CASES: dict[str, tuple[tuple[str, ...], str, tuple[int, int]]] = {
    # scenario: SPIN's definitions, the properties that can be violated; states, transitions
    "nmi-decommission": ((NMI,), "", (4518, 32438)),
    "nmi-decommission+no-nmi": ((NMI, "NO_NMI"), "145", (20328, 123825)),
    "nmi-decommission+mid-vmexit": ((NMI, "MID_VMEXIT"), "", (23032, 128930)),
    "wbinvd-first": ((FIRST,), "45", (3378, 26873)),
    "wbinvd-first+no-nmi": ((FIRST, "NO_NMI"), "145", (11073, 85115)),
}


def title(name: str) -> str:
    return f"check: {FAMILY}/{name}, {N_CPUS} CPUs, symmetry off"


def counts(sizes: tuple[int, int]) -> dict[str, int]:
    return {"states": sizes[0], "transitions": sizes[1]}


def flow_of(name: str, n_cpus: int, properties: str) -> Flow:
    """Build a scenario's flow with some of its properties alone: ``"14"``, S1 and S4."""
    flow = pysev.find(f"{FAMILY}/{name}").build(pysev.Machine.of(n_cpus))
    flow.properties = [p for p in flow.properties if p.name[:1] == "S" and p.name[1] in properties]
    return flow


@pytest.mark.parametrize("name", CASES)
def bench_check(timed: Any, name: str) -> None:
    _, violated, sizes = CASES[name]
    flow = flow_of(name, N_CPUS, "")
    done = timed(
        title(name),
        OURS,
        1,
        SECONDS,
        lambda: pysev.check(flow, N_CPUS, symmetric=False),
        counts=counts(sizes),
    )
    assert (done.verdict, done.states, done.transitions) == ("holds", *sizes)
    for one in "12345":
        verdict = pysev.check(flow_of(name, 4, one), 4).verdict
        assert verdict == ("violated" if one in violated else "holds"), one


def make(folder: Path, n_cpus: int, defines: tuple[str, ...], speed: str) -> None:
    """Make SPIN's searcher, or leave the benchmark out."""
    how: dict[str, Any] = {"cwd": folder, "check": True, "capture_output": True}
    macros = [f"-D{define}" for define in (f"N={n_cpus}", *defines)]
    subprocess.run(["spin", *macros, "-a", shutil.copy(MODEL, folder)], **how)
    cc = shutil.which("cc") or "gcc"
    subprocess.run([cc, speed, "-w", "-DSAFETY", "-DNOREDUCE", "-o", "pan", "pan.c"], **how)


def search(folder: Path) -> list[int]:
    """Return errors, states, transitions; the search goes on behind an error."""
    how: dict[str, Any] = {"cwd": folder, "check": True, "capture_output": True, "text": True}
    text = subprocess.run(["./pan", "-c0"], **how).stdout
    patterns = (r"errors: (\d+)", r"(\d+) states, stored", r"(\d+) transitions")
    return [int(m[1]) for m in (re.search(pattern, text) for pattern in patterns) if m]


@pytest.mark.parametrize("name", CASES)
def bench_check_spin(timed: Any, left_out: Any, tmp_path: Path, name: str) -> None:
    if not shutil.which("spin") or not (shutil.which("cc") or shutil.which("gcc")):
        left_out("SPIN is left out: `spin` and a C compiler are not both on PATH")
    defines, violated, sizes = CASES[name]
    make(tmp_path, N_CPUS, defines, "-O2")
    found = timed(
        title(name), "SPIN", 1, SECONDS, lambda: search(tmp_path), rounds=3, counts=counts(sizes)
    )
    # one state and two transitions more: before `init`, and to its end
    assert found == [0, sizes[0] + 1, sizes[1] + 2]
    for one in "12345":
        make(tmp_path, 4, (*defines, f"PROPERTY={one}"), "-O0")
        assert (search(tmp_path)[0] > 0) == (one in violated), one

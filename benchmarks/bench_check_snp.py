"""``check`` of an SNP guest's kexec beside SPIN: pages and who converts them, holding and not.

``promela/snp_guest_kexec.pml`` has the same roles and steps. Without symmetry both sides find the
same states, to one (SPIN counts the state before its ``init`` has run), and the same things wrong:
nothing, somebody who waits for ever, an access to a page that is not private. Ours looks at all of
its properties, SPIN at its assertions and invalid end states, and goes on behind them (``-c0``).
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

pytestmark = pytest.mark.benchmark(max_time=0.3, min_rounds=3)

MODEL = Path(__file__).with_name("promela") / "snp_guest_kexec.pml"
N_CPUS = 9
FAMILY = "snp-guest-kexec"

CASES = {  # scenario: SPIN's definition, what SPIN says, verdict; states, transitions
    "mainline": ("", "", "holds", (9305, 16495)),
    "begin-after-stop": ("-DBEGIN_AFTER_STOP", "invalid end state", "deadlock", (11604, 33379)),
    "no-begin": ("-DNO_BEGIN", "assertion violated", "violated", (17817, 42669)),
}


def title(name: str) -> str:
    return f"check: {FAMILY}/{name}, {N_CPUS} CPUs, symmetry off"


def counts(sizes: tuple[int, int]) -> dict[str, int]:
    return {"states": sizes[0], "transitions": sizes[1]}


@pytest.mark.parametrize("name", CASES)
def bench_check(timed: Any, name: str) -> None:
    _, _, verdict, sizes = CASES[name]
    flow = pysev.find(f"{FAMILY}/{name}").build(pysev.Machine.of(N_CPUS))
    done = timed(
        title(name),
        OURS,
        1,
        SECONDS,
        lambda: pysev.check(flow, N_CPUS, symmetric=False),
        counts=counts(sizes),
    )
    assert (done.verdict, done.states, done.transitions) == (verdict, *sizes)


@pytest.mark.parametrize("name", CASES)
def bench_check_spin(timed: Any, left_out: Any, tmp_path: Path, name: str) -> None:
    spin, cc = shutil.which("spin"), shutil.which("cc") or shutil.which("gcc")
    if not spin or not cc:
        left_out("SPIN is left out: `spin` and a C compiler are not both on PATH")
    define, says, _, sizes = CASES[name]
    how: dict[str, Any] = {"cwd": tmp_path, "check": True, "capture_output": True, "text": True}
    model = shutil.copy(MODEL, tmp_path)
    subprocess.run([spin, f"-DN={N_CPUS}", *([define] if define else []), "-a", model], **how)
    subprocess.run([cc, "-O2", "-w", "-DSAFETY", "-o", "pan", "pan.c"], **how)
    text = timed(
        title(name),
        "SPIN",
        1,
        SECONDS,
        lambda: subprocess.run(["./pan", "-c0"], **how).stdout,
        rounds=3,
        counts=counts(sizes),
    )
    found = [re.search(rf"(\d+) {what}", text) for what in ("states, stored", "transitions")]
    # one state and two transitions more: before `init`, and to its end
    assert [int(m[1]) for m in found if m] == [sizes[0] + 1, sizes[1] + 2]
    assert says in text
    assert ("errors: 0" in text) == (not says)

"""The body of ``pysev vmcore``: run a crash scenario, write the core that its kdump reads."""

from __future__ import annotations

import json as _json
import sys
from typing import Any

from ghcbcore._cffi import lib
from pysev.machine import Machine
from pysev.memmap import GIB, MemoryMap, format_size
from pysev.report import run_sentence
from pysev.scenarios import Scenario
from pysev.simulate import RunResult, run

from .crash import Core, Crash
from .record import crash_of
from .vmcoreinfo import SME_MASK
from .write import NoCore, Written, write_core

__all__ = ["DEFAULT_SCENARIO", "main_vmcore"]

GOOD, FINDING = 0, 1
DEFAULT_SCENARIO = "guest-kdump/snp"


def main_vmcore(
    scenario: Scenario,
    path: str,
    *,
    n_cpus: int,
    memory: MemoryMap | None = None,
    seed: int = 0,
    form: str = "elf",
    json: bool = False,
) -> int:
    """Run, write, say what was written; return the exit status.

    Raises
    ------
    CoreError
        The scenario is no crash, or the file cannot be written; nothing is left of it.
    SevError
        The machine is not possible.
    """
    machine = Machine.of(scenario.n_cpus(n_cpus), memory, jump_table=scenario.jump_table)
    flow = scenario.build(machine)
    result = run(flow, machine, seed)
    try:
        crash = crash_of(flow, machine, result)
    except NoCore as why:
        if json:
            nothing: dict[str, Any] = {"scenario": scenario.name, "verdict": result.verdict}
            nothing |= {"violations": list(result.violations), "file": None, "seed": result.seed}
            sys.stdout.write(_json.dumps(nothing, indent=2) + "\n")
        else:
            sys.stdout.write(f"{why}\n")
        return FINDING
    core = Core(crash, seed)
    written = write_core(core, path, form)
    if json:
        found = _as_json(scenario, machine, result, core, written, path, form)
        sys.stdout.write(_json.dumps(found, indent=2) + "\n")
    else:
        sys.stdout.write(_as_text(scenario, machine, result, core, written, path))
    return GOOD if result.verdict == "holds" else FINDING


def _reads(crash: Crash) -> str:
    if crash.reader == crash.writer:
        return "plain text"
    return "ciphertext" if crash.reader == lib.GHCB_KEY_SLOT_NONE else "noise"


def _size(n_bytes: int) -> str:
    return format_size(n_bytes) if n_bytes % 1024 == 0 else f"{n_bytes} bytes"


def _as_text(
    scenario: Scenario,
    machine: Machine,
    result: RunResult,
    core: Core,
    written: Written,
    path: str,
) -> str:
    crash, places = core.crash, core.crash.places
    memmap = machine.layout.memmap
    ram = f"{memmap.ram_bytes / GIB:.2f} GiB RAM"
    name = memmap.name if memmap.name.isprintable() else ascii(memmap.name)
    mask = f"{SME_MASK}={core.kernel.c_bit}" if crash.exports_mask else f"no {SME_MASK}"
    mask = mask if core.notes else "not legible"
    lines = [
        f"{scenario.name}: {scenario.summary}",
        f"{machine.n_cpus} CPUs, {ram} ({name}), seed {result.seed}; "
        f"{result.modelled_seconds:.6f} s of modelled time",
        "",
        f"notes     NT_PRSTATUS of {core.n_notes} of {crash.n_cpus} CPUs; VMCOREINFO: {mask}",
        f"memory    private pages read as {_reads(crash)}, {_size(written.known_bytes)} known",
    ]
    lines += [f"left out  {gpa:#018x}  4K  PageOffline: a VMSA in use" for gpa in crash.offline]
    if places.unaccepted[1]:
        start, end = places.unaccepted
        lines.append(f"left out  {start:#018x}  {_size(end - start)}  never accepted: zeros")
    lines += [
        f"PT_LOAD   {s.paddr:#018x}  at {s.vaddr:#018x}  {_size(s.size_bytes)}"
        for s in core.segments
    ]
    shown = path if path.isprintable() else ascii(path)
    lines += [
        f"written   {shown}: {_size(written.n_bytes)}, {_size(written.disk_bytes)} of the disk, "
        f"{written.n_segments} segments",
        "",
        f"verdict: {run_sentence(scenario, result)}",
    ]
    return "".join(f"{line}\n" for line in lines)


def _as_json(
    scenario: Scenario,
    machine: Machine,
    result: RunResult,
    core: Core,
    written: Written,
    path: str,
    form: str,
) -> dict[str, Any]:
    crash, places = core.crash, core.crash.places
    start, end = places.unaccepted
    return {
        "scenario": scenario.name,
        "verdict": result.verdict,
        "violations": list(result.violations),
        "cpus": machine.n_cpus,
        "notes": core.n_notes,
        "vmcoreinfo": bool(core.notes),
        "sme_mask": f"{core.kernel.c_bit:#x}" if crash.exports_mask else None,
        "private_memory": _reads(crash),
        "left_out": {"page_offline": len(crash.offline), "unaccepted_bytes": end - start},
        "segments": [
            {
                "paddr": f"{s.paddr:#x}",
                "vaddr": f"{s.vaddr:#x}",
                "offset": f"{s.offset:#x}",
                "bytes": s.size_bytes,
            }
            for s in core.segments
        ],
        "file": path,
        "format": form,
        "file_bytes": written.n_bytes,
        "disk_bytes": written.disk_bytes,
        "known_bytes": written.known_bytes,
        "modelled_seconds": result.modelled_seconds,
        "seed": result.seed,
    }

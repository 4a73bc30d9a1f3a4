"""Whole guests at their real size: the page side of a kexec, and all memory shared and back,
with time.

What lies where is drawn from the seed. Times and memory are this machine's.
"""

from __future__ import annotations

import json as _json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange
from pysev.memmap import MemoryMap, format_size

from .kexec import KexecPages
from .memory import Memory

__all__ = ["Step", "back_and_forth", "kexec_guest", "kexec_steps", "main_scale"]

GOOD, FINDING = 0, 1
MAX_CPUS = 1 << 16
SLOT = 16  # pages; GHCBs and small buffers lie in slots of their own
MAX_SWIOTLB_BYTES = 1 << 30  # Linux: 6 % of memory for confidential guests, at most 1 GiB
RINGS_PER_CPU = 4
BELOW_ONE_IN = 8  # GHCBs with a shared buffer right below
MAX_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Step:
    """One step: seconds it took, bytes that the ledger holds after it, the process's peak."""

    name: str
    seconds: float
    ledger_bytes: int
    peak_bytes: int


def kexec_guest(
    size: str | MemoryMap, n_cpus: int = 64, seed: int = 0, *, asid: int = 1, bugs: str = ""
) -> KexecPages:
    """Make a guest with a GHCB for each CPU, a bounce buffer and scattered small buffers.

    Parameters
    ----------
    size : str or MemoryMap
    n_cpus : int
    seed : int
        Chooses where they lie.
    bugs : str
        ``"K1"``, ``"K2"``, both or none: see ``KexecPages``.

    Raises
    ------
    OutOfRange
        A number is no good, or there is no room.
    """
    if not 1 <= n_cpus <= MAX_CPUS:
        raise OutOfRange(f"cpus = {n_cpus}: must be 1 to {MAX_CPUS}")
    if seed < 0:
        raise OutOfRange(f"seed = {seed}: must not be negative")
    memory = Memory(size, asid=asid, log=True)
    where = "ram" if memory.map is not None else "all"
    firsts, lengths = memory.frames_of(where)
    region = np.uint64(lib.FRAME_REGION)
    # the bounce buffer: whole 2 MiB pages at the end of the longest piece
    longest = int(lengths.argmax())
    n_bounce = min(int(lengths.sum()) * 6 // 100, MAX_SWIOTLB_BYTES // lib.GHCB_PAGE_SIZE)
    end = (firsts[longest] + lengths[longest]) // region * region
    start = max(end - np.uint64(n_bounce) // region * region, firsts[longest])
    shared = [(int(start), int(end - start))] if end > start else []
    lengths[longest] = (start if end > start else end) - firsts[longest]
    # everything else in slots of 64 KiB
    slots = (lengths // np.uint64(SLOT)).astype(np.int64)
    n_small = RINGS_PER_CPU * n_cpus
    if slots.sum() < 2 * (n_cpus + n_small):
        raise OutOfRange(f"no room for {n_cpus} CPUs in {format_size(memory.n_pages * 4096)}")
    random = np.random.default_rng(seed)
    chosen = _distinct(random, int(slots.sum()), n_cpus + n_small)
    before = np.cumsum(slots) - slots
    piece = np.searchsorted(before, chosen, side="right") - 1
    frames = firsts[piece] + (chosen - before[piece]).astype(np.uint64) * np.uint64(SLOT)
    n_pages = random.integers(1, SLOT, n_small, endpoint=True)
    shared += list(zip(frames[n_cpus:].tolist(), n_pages.tolist(), strict=True))
    offsets = random.integers(0, SLOT, n_cpus)
    ghcbs = (frames[:n_cpus] + offsets.astype(np.uint64)).tolist()
    # some have a shared buffer right below them, and the boot CPU's is in a large leaf
    below = (offsets > 0) & (random.integers(0, BELOW_ONE_IN, n_cpus) == 0)
    below[0] = False
    shared += list(zip(frames[:n_cpus][below].tolist(), offsets[below].tolist(), strict=True))
    if end > start:
        ghcbs[0] = int(start) + int(random.integers(0, int(end - start)))
    return KexecPages(memory, ghcbs, shared, strict="K1" not in bugs, leaf_base="K2" not in bugs)


def _distinct(random: np.random.Generator, below: int, n: int) -> NDArray[np.int64]:
    """Draw ``n`` different numbers, at most half of those there are, in a random order."""
    found: NDArray[np.int64] = np.zeros(0, np.int64)
    while len(found) < n:
        found = np.unique(np.concatenate([found, random.integers(0, below, n - len(found))]))
    shuffled: NDArray[np.int64] = random.permutation(found)
    return shuffled


def kexec_steps(pages: KexecPages) -> list[Step]:
    """Take a guest through a kexec, step by step."""
    return [
        _timed(pages.memory, "accept: firmware and kernel", pages.accept),
        _timed(pages.memory, "share: buffers and GHCBs", pages.share),
        _timed(pages.memory, "finish: all private again", pages.finish),
        _timed(pages.memory, "boot: the second kernel", pages.boot_again),
        _timed(pages.memory, "look for disagreements", pages.left_behind),
    ]


def back_and_forth(memory: Memory) -> list[Step]:
    """All of a guest's memory private, shared, private again, in 2 MiB and then in 4 KiB pages."""
    where = "ram" if memory.map is not None else "all"
    plan = (
        ("accept", "private", None),
        ("shared, 2 MiB pages", "shared", None),
        ("private, 2 MiB pages", "private", None),
        ("shared, 4 KiB pages", "shared", "4K"),
        ("private, 4 KiB pages", "private", "4K"),
    )

    def step(to: str, leaf: str | None) -> None:
        change = memory.share if to == "shared" else memory.make_private
        outcome = change(where, leaf=leaf)
        if not outcome:
            raise OutOfRange(f"frame {outcome.refused_at:#x}: {outcome.refusal}")

    return [
        _timed(memory, name, lambda to=to, leaf=leaf: step(to, leaf))  # type: ignore[misc]
        for name, to, leaf in plan
    ]


def _timed(memory: Memory, name: str, do: Callable[[], object]) -> Step:
    began = time.perf_counter()
    do()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Step(name, seconds, memory.n_bytes, peak)


def main_scale(
    size: str | MemoryMap,
    *,
    kexec: bool,
    n_cpus: int = 64,
    seed: int = 0,
    asid: int = 1,
    bugs: str = "",
    json: bool = False,
) -> int:
    """Run one of the two, print it; return the exit status: 1 if views disagree at the end."""
    if kexec:
        pages = kexec_guest(size, n_cpus, seed, asid=asid, bugs=bugs)
        memory, steps = pages.memory, kexec_steps(pages)
        title = f"kexec, {n_cpus} CPUs, seed {seed}"
    else:
        memory = Memory(size, asid=asid)
        steps, title = back_and_forth(memory), "shared and back"
    amounts = memory.disagreeing()
    page = lib.GHCB_PAGE_SIZE
    if json:
        found = {
            "what": title,
            "n_pages": memory.n_pages,
            "steps": [asdict(step) for step in steps],
            "exits": pages.exits if kexec else {},
            "counts": memory.counts("state"),
            "disagreeing_bytes": amounts,
        }
        sys.stdout.write(_json.dumps(found, indent=2) + "\n")
        return FINDING if amounts else GOOD
    lines = [f"{format_size(memory.n_pages * page)} guest, {title}", ""]
    lines.append(f"{'step':<28} {'seconds':>9} {'ledger MiB':>11} {'peak MiB':>9}")
    for step in steps:
        ledger, peak = step.ledger_bytes / (1 << 20), step.peak_bytes / (1 << 20)
        lines.append(f"{step.name:<28} {step.seconds:9.3f} {ledger:11.1f} {peak:9.0f}")
    lines += ["", "state: " + ", ".join(_amounts(memory.counts("state")))]
    if kexec:
        lines.append("VMGEXITs: " + ", ".join(f"{n} {name}" for name, n in pages.exits.items()))
    lines.append("no views disagree" if not amounts else "views disagree:")
    for one in memory.disagreements(max_runs=MAX_SHOWN) if amounts else ():
        lines.append(
            f"  {one.kind} {one.first:#x}+{one.n_pages} ({format_size(one.n_pages * page)})"
            f" since {memory.event_text(one.since)}"
        )
    if amounts:
        lines.append("in all: " + ", ".join(_amounts(amounts)))
    sys.stdout.write("\n".join(lines) + "\n")
    return FINDING if amounts else GOOD


def _amounts(amounts: dict[str, int]) -> list[str]:
    return [f"{name} {format_size(n)}" for name, n in amounts.items()]

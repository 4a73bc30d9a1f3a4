"""The body of ``pysev cache``: a program in, text that fits a mail or JSON out."""

from __future__ import annotations

import json as _json
import sys
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import IO, Any, Final

from . import plot as _plot
from .missing import Cures, Option, cures, with_flushes
from .outcome import Outcome, Step, explore
from .program import LINE_BYTES, MAX_TEXT_BYTES, BadProgram, Program, parse
from .scale import FLUSHERS, Kexec, find_preset, kexec_at_scale, lines_per_core

__all__ = ["EXAMPLE", "example_text", "main_cache", "main_scale"]

GOOD, FINDING = 0, 1
WIDTH: Final = 100
MAX_CONTENTS: Final = 24
MAX_STEPS: Final = 60
MAX_RANGES: Final = 8
EXAMPLE: Final = "wbinvd.txt"


def example_text() -> str:
    """Return the twenty lines that ``pysev cache`` shows when it is given no file."""
    return resources.files(__package__).joinpath(EXAMPLE).read_text(encoding="ascii")


def main_cache(
    stream: IO[bytes] | None,
    name: str,
    *,
    n_cpus: int = 0,
    coherent: bool = False,
    json: bool = False,
    plot: str | None = None,
) -> int:
    """Explore one program and say what can result; return the exit status.

    Parameters
    ----------
    stream : binary file or None
        The program; None is the example.
    name : str
        What messages call it.
    n_cpus : int
        CPUs of the machine, 0 for as many as the program names.
    plot : str, optional
        Where to draw what each line can hold, .png or .svg.
    """
    if plot is not None:
        _plot.refuse_name(plot)
    if stream is None:
        text = example_text()
    else:
        raw = stream.read(MAX_TEXT_BYTES + 1)
        try:
            text = raw.decode("ascii")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise BadProgram(
                f"{name}, line {line}: byte {raw[error.start]:#04x}, not ASCII"
            ) from error
    program = parse(text, name, n_cpus=n_cpus, coherent=coherent)
    outcome = explore(program)
    missing = cures(program) if outcome.is_corrupt else None
    if plot is not None:
        title = f"{name}: what memory can hold in the end"
        _plot.draw(plot, _plot.of_outcome(outcome), title, "contents of memory")
    if json:
        sys.stdout.write(_json.dumps(as_json(outcome, missing), indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(as_text(outcome, missing)) + "\n")
    return FINDING if outcome.is_corrupt or not outcome.is_complete else GOOD


# Text -------------------------------------------------------------------------------------------


def as_text(outcome: Outcome, missing: Cures | None) -> Iterator[str]:
    program = outcome.program
    machine = f"{_n(program.n_cpus, 'CPU')}, {_n(len(program.spas), 'line')} of memory"
    yield f"{program.name}: {machine}, {_part(program)}"
    yield ""
    for number, line in enumerate(program.text.splitlines(), 1):
        yield f"{number:>4}  {line}".rstrip()
    yield ""
    yield from _contents(outcome)
    for read in outcome.bad_reads:
        yield f"line {read.number} ({read.text}) can read {read.got}, not the last store"
    yield ""
    if not outcome.is_corrupt:
        yield (
            "memory is what software stored, whatever the order"
            if outcome.is_complete
            else "unknown"
        )
        return
    yield "the shortest order of events that ends so"
    yield from _timeline(outcome.counterexample)
    if missing is not None:
        yield ""
        yield from _missing(program, missing)


def _part(program: Program) -> str:
    if program.coherent:
        return "SME_COHERENT: one key at a time in the caches"
    return "copies under different keys are not coherent"


def _contents(outcome: Outcome) -> Iterator[str]:
    program = outcome.program
    n_bad = sum(any(one.is_bad) for one in outcome.contents)
    said = "" if outcome.is_complete else "; NOT ALL: out of memory for states"
    yield (
        f"what memory can hold in the end: {_n(len(outcome.contents), 'content')}, "
        f"{n_bad} corrupt ({outcome.n_states} states{said})"
    )
    shown = outcome.contents[:MAX_CONTENTS]
    cells = [
        [
            _cell(program, i, cell, bad)
            for i, (cell, bad) in enumerate(zip(c.cells, c.is_bad, strict=True))
        ]
        for c in shown
    ]
    heads = [f"{spa:#x}" for spa in program.spas]
    widths = [max(len(row[i]) for row in [heads, *cells]) for i in range(len(heads))]
    yield "         " + "  ".join(map(str.ljust, heads, widths)).rstrip()
    for one, row in zip(shown, cells, strict=True):
        verdict = "corrupt" if any(one.is_bad) else "good"
        yield f"{verdict:<7}  " + "  ".join(map(str.ljust, row, widths)).rstrip()
    if len(outcome.contents) > len(shown):
        yield f"         and {len(outcome.contents) - len(shown)} more"
    bad = [i for i in range(len(heads)) if any(one.is_bad[i] for one in outcome.contents)]
    for i in bad:
        wanted = {one.expected[i] for one in outcome.contents if one.expected[i]}
        words = " or ".join(sorted(program.content_words(i, cell) for cell in wanted))
        if words:
            yield f"{heads[i]}: software stored {words}; what it reads there instead is marked !"


def _cell(program: Program, line: int, cell: int, is_bad: bool) -> str:
    return program.content_words(line, cell) + (" !" if is_bad else "")


def _timeline(steps: Sequence[Step]) -> Iterator[str]:
    width = max(len(step.agent) for step in steps)
    for step in steps[:MAX_STEPS]:
        where = f"line {step.number}" if step.number else ""
        yield f"  {step.agent:<{width}}  {where:<8} {step.detail}"
    if len(steps) > MAX_STEPS:
        yield f"  and {len(steps) - MAX_STEPS} more"


def _missing(program: Program, missing: Cures) -> Iterator[str]:
    if not missing.cures and missing.everywhere:
        bound = "" if missing.is_complete else " that were tried"
        yield f"no set of up to three flushes{bound} is enough; what is: every running CPU wbinvd,"
        yield f"  {_where(program, Option(missing.everywhere, ()))}"
        return
    if not missing.cures:
        tried = "of up to three" if missing.is_complete else "that was tried"
        yield f"no set of flushes {tried} helps: the program overwrites what it wants to keep"
        return
    n = len(missing.cures[0])
    for i, cure in enumerate(missing.cures):
        if i:
            yield "or"
        elif n == 1:
            yield "the flush that is missing, one of"
        else:
            yield f"the {n} flushes that are missing, one of each number"
        for j, choice in enumerate(cure, 1):
            lead = f"{j}. " if n > 1 else ""
            for option in choice.options:
                yield f"  {lead}{' | '.join(option.flushes)}: {_where(program, option)}"
                lead = " " * len(lead)
    if not missing.is_complete:
        yield "(there may be more: the search ended at its bound)"
    if n > 1:
        yield from _not_enough(program, missing)


def _not_enough(program: Program, missing: Cures) -> Iterator[str]:
    """Say of each flush of the first cure what goes wrong with it left out."""
    yield "none of them can be left out:"
    for skipped in missing.first:
        rest = [one for one in missing.first if one is not skipped]
        outcome = explore(with_flushes(program, rest))
        bad = [
            f"{spa:#x}"
            for i, spa in enumerate(program.spas)
            if any(one.is_bad[i] for one in outcome.contents)
        ]
        words = " and ".join(flush.text for _, flush in rest)
        what = f"{', '.join(bad)} can still be corrupt" if bad else "a load can still go wrong"
        yield f"  with {words} alone, {what}"


def _where(program: Program, choice: Option) -> str:
    """Return where a flush may stand, in lines of the text."""
    runs: list[list[int]] = []
    for place in choice.places:
        if runs and place == runs[-1][1] + 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    return " or ".join(_run(program, first, last) for first, last in runs)


def _run(program: Program, first: int, last: int) -> str:
    numbers = [one.number for one in program.statements]
    if first == 0:
        return f"before line {numbers[last]}" if last < len(numbers) else "anywhere"
    if last == len(numbers):
        return f"after line {numbers[first - 1]}"
    return f"after line {numbers[first - 1]} and before line {numbers[last]}"


def _n(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


# At scale ---------------------------------------------------------------------------------------


def main_scale(
    preset: str,
    *,
    n_cores: int | None = None,
    seed: int = 0,
    coherent: bool = False,
    json: bool = False,
    plot: str | None = None,
) -> int:
    """Do a kexec on the caches of a part, with three ways to flush; return the exit status.

    0 if no line is corrupt, whoever flushes. See ``pysev.caches.scale``.
    """
    row = find_preset(preset)
    if plot is not None:
        _plot.refuse_name(plot)
    n_cores = min(row.n_ccx, 4) * row.cores_per_ccx if n_cores is None else n_cores
    found = [
        kexec_at_scale(row, flusher, n_cores=n_cores, seed=seed, coherent=coherent)
        for flusher in FLUSHERS
    ]
    if plot is not None:
        title = f"{row.name}, {n_cores} cores: lines by attribute, nobody executed WBINVD"
        _plot.draw(plot, _plot.of_census(found[0].census), title, "lines")
    n_lines = n_cores * lines_per_core(row)
    if json:
        value = {
            "preset": row.name,
            "cores": n_cores,
            "seed": seed,
            "coherent": coherent,
            "lines": n_lines,
            "kexecs": [_kexec_json(one) for one in found],
        }
        sys.stdout.write(_json.dumps(value, indent=2) + "\n")
    else:
        size = f"{_n(n_cores, 'core')}, {row.cores_per_ccx} to an L3"
        head = f"{row.name} ({row.what}): {size}, seed {seed}"
        sys.stdout.write("\n".join([head, *_scale_text(found, n_lines)]) + "\n")
    return FINDING if any(len(one.corrupted) for one in found) else GOOD


def _scale_text(found: Sequence[Kexec], n_lines: int) -> Iterator[str]:
    size = n_lines * LINE_BYTES / (1 << 20)
    yield f"the old kernel stores {n_lines} lines ({size:.1f} MiB) with c=1,"
    yield "the new one, on core 0, stores them again with c=0; then all is written back"
    yield ""
    yield "who executes WBINVD  still dirty at the jump  corrupt lines  corrupt bytes   ranges"
    for one in found:
        n, n_ranges = len(one.corrupted), len(one.ranges)
        counts = f"{one.n_dirty:>23}  {n:>13}  {n * LINE_BYTES:>13}  {n_ranges:>7}"
        yield f"{one.flusher:<19}  {counts}"
    for one in found:
        if not len(one.corrupted):
            continue
        yield ""
        yield f"WBINVD by {one.flusher}: what is corrupt, in bytes, ends exclusive"
        shown = one.ranges[:MAX_RANGES].tolist()
        for begin, end in shown:
            yield f"  {begin:#014x} {end:#014x}  {_n((end - begin) // LINE_BYTES, 'line')}"
        if len(one.ranges) > MAX_RANGES:
            yield f"  and {len(one.ranges) - MAX_RANGES} more (--json has them all)"


def _kexec_json(one: Kexec) -> dict[str, Any]:
    return {
        "wbinvd": one.flusher,
        "dirty_at_jump": one.n_dirty,
        "corrupt_lines": len(one.corrupted),
        "corrupt_bytes": LINE_BYTES * len(one.corrupted),
        "ranges": [[f"{spa:#018x}" for spa in span] for span in one.ranges.tolist()],
    }


# JSON -------------------------------------------------------------------------------------------


def as_json(outcome: Outcome, missing: Cures | None) -> dict[str, Any]:
    program = outcome.program
    verdict = "corrupt" if outcome.is_corrupt else "good" if outcome.is_complete else "unknown"
    return {
        "program": program.name,
        "text": program.text,
        "verdict": verdict,
        "cpus": program.n_cpus,
        "coherent": program.coherent,
        "states": outcome.n_states,
        "transitions": outcome.n_events,
        "complete": outcome.is_complete,
        "contents": [
            {
                "corrupt": any(one.is_bad),
                "memory": [
                    {
                        "spa": f"{spa:#018x}",
                        "content": program.content_words(i, one.cells[i]),
                        "expected": program.content_words(i, one.expected[i])
                        if one.expected[i]
                        else None,
                        "corrupt": one.is_bad[i],
                    }
                    for i, spa in enumerate(program.spas)
                ],
            }
            for one in outcome.contents
        ],
        "bad_reads": [
            {"line": one.number, "statement": one.text, "reads": one.got}
            for one in outcome.bad_reads
        ],
        "counterexample": [step.as_json() for step in outcome.counterexample],
        "missing": None if missing is None else _missing_json(program, missing),
    }


def _missing_json(program: Program, missing: Cures) -> dict[str, Any]:
    return {
        "complete": missing.is_complete,
        "tried": missing.n_tried,
        "wbinvd_everywhere": _where(program, Option(missing.everywhere, ()))
        if missing.everywhere
        else None,
        "cures": [
            [
                [
                    {"any_of": list(one.flushes), "where": _where(program, one)}
                    for one in choice.options
                ]
                for choice in cure
            ]
            for cure in missing.cures
        ],
    }

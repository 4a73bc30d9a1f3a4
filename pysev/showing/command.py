"""What ``check --save``, ``--mermaid``, ``--svg`` and ``run --replay`` do."""

from __future__ import annotations

import json as _json
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from ghcbcore.errors import SevError

from .. import events
from ..checking import CheckResult
from ..flow import Flow, Property
from ..machine import DEFAULT_MEMORY_BYTES, Machine
from ..memmap import MemoryMap, format_size, parse_size
from ..scenarios import Scenario
from ..trace.export import refuse_same_place
from ..trace.recorder import open_recorder
from .finding import find_scenario, is_own
from .picture import svg_sequence
from .replay import Replay, replay
from .script import MAX_SCRIPT_BYTES, BadScript, Script, read_script, script_text
from .sequence import mermaid_sequence
from .story import play
from .timeline import WIDTH, timeline

__all__ = ["main_replay", "refuse_outputs", "replay_text", "write_counterexample", "write_text"]

GOOD, FINDING = 0, 1


class Refused(SevError, ValueError):
    """What is asked for does not go together."""


def refuse_outputs(command: str, targets: Sequence[str | None], source: str | None = None) -> bool:
    """See that no output is written over another or over what is read.

    Returns
    -------
    bool
        Whether one of them is standard output, so that nothing else may be printed.
    """
    given = [path for path in targets if path is not None]
    refuse_same_place(command, given, source)
    return "-" in given


def write_text(path: str, text: str) -> None:
    """Write a whole file, or to standard output for ``-``."""
    if path == "-":
        sys.stdout.write(text)
        return
    with open(path, "w", encoding="utf-8") as stream:  # noqa: PTH123 -- the name as it was given
        stream.write(text)


def write_counterexample(
    scenario: Scenario,
    flow: Flow,
    result: CheckResult,
    *,
    save: str | None,
    mermaid: str | None,
    svg: str | None,
) -> list[str]:
    """Write the counterexample of a check in each form that is asked for.

    Returns
    -------
    list of str
        A sentence for the report where there is none: then nothing is written.
    """
    targets = [path for path in (save, mermaid, svg) if path is not None]
    if not targets:
        return []
    if not result.counterexample:
        names = ", ".join(path for path in targets if path != "-")
        return [f"no counterexample: {names or 'nothing'} is not written"]
    story = play(flow.compile(result.n_cpus), [step.move for step in result.counterexample])
    marks = {len(story.moments): f"{result.verdict}: {result.property}"}
    if save is not None:
        size = format_size(DEFAULT_MEMORY_BYTES)
        expected = (result.verdict, result.property)
        write_text(save, script_text(story, scenario.name, size, expected))
    if mermaid is not None:
        write_text(mermaid, mermaid_sequence(story, marks))
    if svg is not None:
        write_text(svg, svg_sequence(story, _title(scenario, result), marks))
    return []


def _title(scenario: Scenario, result: CheckResult) -> str:
    return f"{scenario.name}, {result.n_cpus} CPUs: {result.verdict}"


def main_replay(
    path: str,
    *,
    scenario: str | None = None,
    n_cpus: int | None = None,
    stdin: IO[bytes] | None = None,
    properties: Sequence[Property] = (),
    json: bool = False,
    trace: str | None = None,
    perfetto: str | None = None,
    mermaid: str | None = None,
    svg: str | None = None,
) -> int:
    """Play a script; return the exit status.

    0: no property is broken; 1: one is; 2: ``# expect`` is not met, which standard error says.

    Parameters
    ----------
    path : str
        The script; ``-`` for ``stdin``.
    scenario, n_cpus
        What the command line says; it must be what the script says. A script cannot make anybody
        run a Python file: a flow of one's own must stand on the command line, too.

    Raises
    ------
    BadScript
        The script cannot be read or does not fit; the text names file and line.
    """
    data, name = _read(path, stdin)
    script = read_script(data, name)
    found = _scenario_of(script, scenario, n_cpus)
    machine = Machine.of(script.n_cpus, _memory(script, path), jump_table=found.jump_table)
    to_stdout = refuse_outputs("run", [trace, perfetto, mermaid, svg], path)
    flow = found.build(machine)
    result = replay(flow, script, properties)
    with open_recorder(trace, perfetto) as recorder:
        recorder.add(result)
    marks = result.marks()
    if mermaid is not None:
        write_text(mermaid, mermaid_sequence(result.story, marks))
    if svg is not None:
        write_text(svg, svg_sequence(result.story, f"{script.scenario}: {name}", marks))
    if json and not to_stdout:
        sys.stdout.write(_json.dumps(result.as_json(), indent=2) + "\n")
    elif not to_stdout:
        sys.stdout.write(replay_text(found, result))
    if result.as_expected is False and script.expected is not None:
        sys.stdout.flush()
        raise BadScript(f"{name}:{script.expected[2]}: {_not_as_expected(result)}")
    return GOOD if result.verdict in ("holds", "unknown") else FINDING


def _not_as_expected(result: Replay) -> str:
    assert result.script.expected is not None
    verdict, wanted, _ = result.script.expected
    broken = f' "{result.first}"' if result.first else ""
    also = f' "{wanted}"' if wanted else ""
    return f"expected {verdict}{also}, but the verdict is {result.verdict}{broken}"


def _read(path: str, stdin: IO[bytes] | None) -> tuple[bytes, str]:
    if path == "-":
        assert stdin is not None
        return stdin.read(MAX_SCRIPT_BYTES + 1), "standard input"
    with open(path, "rb") as stream:  # noqa: PTH123 -- the name stays as it was given
        return stream.read(MAX_SCRIPT_BYTES + 1), path


def _scenario_of(script: Script, given: str | None, n_cpus: int | None) -> Scenario:
    wanted = script.scenario
    if is_own(wanted):
        if given is None:
            raise BadScript(
                f"{script.name}: {wanted} is a Python file, which a script cannot run by itself: "
                f"`pysev run {wanted} --replay {script.name}`"
            )
        same = is_own(given) and os.path.basename(given) == os.path.basename(wanted)  # noqa: PTH119
    else:
        same = given is None or given == wanted
    if not same:
        raise BadScript(f"{script.name}: the script is for {wanted}, not for {given}")
    try:
        found = find_scenario(given or wanted)
    except SevError as error:
        raise BadScript(f"{script.name}: {error}") from error
    asked = script.n_cpus if n_cpus is None else n_cpus
    if asked != script.n_cpus or found.n_cpus(asked) != script.n_cpus:
        other = found.n_cpus(asked)
        raise BadScript(f"{script.name}: the script is for {script.n_cpus} CPUs, not for {other}")
    return found


def _memory(script: Script, path: str) -> MemoryMap | None:
    if script.memory is not None:
        try:
            return MemoryMap.flat(parse_size(script.memory))
        except SevError as error:
            raise BadScript(f"{script.name}: {error}") from error
    if script.memmap is None:
        return None
    beside = Path(path).parent / script.memmap if path != "-" else Path(script.memmap)
    return MemoryMap.from_file(str(beside))


def replay_text(scenario: Scenario, result: Replay) -> str:
    """The report of a replay: the timeline with every change, and what broke when."""
    story = result.story
    n = len(story.moments)
    head = f"{scenario.name}, {story.n_cpus} CPU{'s' * (story.n_cpus != 1)}: {scenario.summary}"
    parts = [
        f"{textwrap.fill(head, WIDTH)}\n",
        f"{result.script.name}: {n} step{'s' * (n != 1)}, "
        f"{result.modelled_seconds:.7f} s of modelled time\n\n",
        timeline(story, result.marks(), everything=True),
    ]
    kinds = events.vmgexits_by_kind(result.trace)
    if kinds:
        text = ", ".join(f"{name} {count}" for name, count in kinds.items())
        parts.append(f"\nVMGEXITs: {text}\n")
    if not result.broken:
        parts.append("\nwhat could happen next\n")
        parts += [f"  {line}\n" for line in result.possible or ("nothing",)]
    verdict = textwrap.fill(f"verdict: {_sentence(result)}", WIDTH, break_on_hyphens=False)
    return "".join([*parts, f"\n{verdict}\n"])


def _sentence(result: Replay) -> str:
    expected = {None: "", True: ", as expected", False: ", NOT as expected"}[result.as_expected]
    if result.verdict == "holds":
        return f"holds in this order of events{expected}."
    if result.verdict == "unknown":
        return f"unknown{expected}: whether an end can still be reached was not to be found out."
    what = "; ".join(
        f'"{result.texts.get(name) or name}" does not hold after step {step}'
        for name, step in result.broken.items()
    )
    return f"{result.verdict}{expected}: {what}."

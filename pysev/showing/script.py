"""Orders of events as scripts: what a bug report carries, and what is edited by hand.

    scenario sev-es-kexec/mailbox-no-test
    cpus 3
    memory 4G
    # expect violated "no foreign fetch"

    boot CPU: firmware: VMGEXIT: AP jump table, set
    boot CPU: STARTUP (CPU 2)
    AP 1: REBOOT_VECTOR interrupt

A step is the agent, a colon, and the operation as a timeline has it, with the CPU that it binds; if
the agent could do two different things of one name there, ``[2]`` says which. ``#`` begins a
comment at the beginning of a line, and after a step where a blank follows it; only ``# expect`` is
more than a comment. ``memmap FILE`` takes e820 lines instead of a size. This module reads and
writes lines; what they mean is ``pysev.showing.replay``'s.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ghcbcore.errors import SevError

from ..compiler import Compiled
from .story import Array, Move, Story, actor_of, text_of

__all__ = ["MAX_SCRIPT_BYTES", "BadScript", "Script", "StepLine", "read_script", "script_text"]

MAX_SCRIPT_BYTES = 4 << 20
MAX_LINE_CHARS = 1 << 12
VERDICTS = ("holds", "violated", "deadlock")
_EXPECT = re.compile(r"#?\s*expect(?:\s+(\S+)(?:\s+\"(.*)\")?)?\s*(.*)", re.DOTALL)
_CPUS = re.compile(r"[0-9]{1,9}", re.ASCII)
HEADERS = ("scenario", "cpus", "memory", "memmap")


class BadScript(SevError, ValueError):
    """A script cannot be read or does not fit; the text names file and line."""


@dataclass(frozen=True)
class StepLine:
    """One step as it was written: the number of its line, and its text."""

    number: int
    text: str


@dataclass(frozen=True)
class Script:
    """A script taken apart; ``expected`` is (verdict, property or empty, line)."""

    name: str
    scenario: str
    n_cpus: int
    memory: str | None
    memmap: str | None
    expected: tuple[str, str, int] | None
    steps: tuple[StepLine, ...]


def read_script(data: bytes, name: str) -> Script:
    """Take a script apart.

    Parameters
    ----------
    data : bytes
        UTF-8, at most ``MAX_SCRIPT_BYTES``.
    name : str
        Of the file, for messages.

    Raises
    ------
    BadScript
        ``name:3: ...``: too long, no text, no scenario, a header that stands twice or says nothing.
    """
    if len(data) > MAX_SCRIPT_BYTES:
        raise BadScript(f"{name}: more than {MAX_SCRIPT_BYTES} bytes: no script")
    headers: dict[str, tuple[str, int]] = {}
    expected = None
    steps: list[StepLine] = []
    for number, raw in enumerate(data.split(b"\n"), 1):
        where = f"{name}:{number}"
        if len(raw) > MAX_LINE_CHARS:
            raise BadScript(f"{where}: a line of more than {MAX_LINE_CHARS} bytes")
        text = _text(raw, where)
        found = _EXPECT.fullmatch(text)
        if found is not None and re.match(r"#?\s*expect\b", text):
            if expected is not None:
                raise BadScript(f"{where}: `expect` stands there twice")
            expected = (*_expected(found, where), number)
        elif text and not text.startswith("#"):
            word, _, rest = text.partition(" ")
            if word in HEADERS and not steps:
                if word in headers:
                    raise BadScript(f"{where}: `{word}` stands there twice")
                headers[word] = (rest.partition(" # ")[0].strip(), number)
            elif "scenario" not in headers:
                raise BadScript(f"{where}: {_short(text)}: a script begins with `scenario NAME`")
            else:
                steps.append(StepLine(number, text))
    return _script(name, headers, expected, steps)


def _text(raw: bytes, where: str) -> str:
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise BadScript(f"{where}: not a text in UTF-8") from None
    text = " ".join(text.split())
    if not text.isprintable():
        raise BadScript(f"{where}: not a text: {_short(text)}")
    return text


def _expected(found: re.Match[str], where: str) -> tuple[str, str]:
    verdict, property_name, rest = found[1], found[2], found[3]
    if verdict not in VERDICTS or rest:
        words = " or ".join(VERDICTS)
        raise BadScript(f'{where}: expect {words}, then, if wanted, a property in "..."')
    return verdict, property_name or ""


def _script(
    name: str,
    headers: dict[str, tuple[str, int]],
    expected: tuple[str, str, int] | None,
    steps: Sequence[StepLine],
) -> Script:
    for word, (value, number) in headers.items():
        if not value:
            raise BadScript(f"{name}:{number}: `{word}` says nothing")
    if "scenario" not in headers:
        raise BadScript(f"{name}: no `scenario NAME` in it: no script")
    if "cpus" not in headers:
        raise BadScript(f"{name}: no `cpus N` in it")
    if "memory" in headers and "memmap" in headers:
        raise BadScript(f"{name}:{headers['memmap'][1]}: give `memory` or `memmap`, not both")
    cpus, number = headers["cpus"]
    if not _CPUS.fullmatch(cpus):
        raise BadScript(f"{name}:{number}: cpus {_short(cpus)}: not a number of CPUs")
    return Script(
        name,
        headers["scenario"][0],
        int(cpus),
        headers["memory"][0] if "memory" in headers else None,
        headers["memmap"][0] if "memmap" in headers else None,
        expected,
        tuple(steps),
    )


def _short(text: str) -> str:
    return ascii(text) if len(text) <= 60 else ascii(text[:60]) + "..."


def script_text(
    story: Story, scenario: str, memory: str, expected: tuple[str, str] | None = None
) -> str:
    """Return a story as a script that ``read_script`` and ``replay`` take.

    Parameters
    ----------
    scenario, memory : str
        What stands behind these words in the script.
    expected : (verdict, property), optional
    """
    lines = [
        "# An order of events: `pysev run --replay FILE` plays it. One step a line; lines may be",
        "# left out, moved or added: what is not possible then is named.",
        f"scenario {scenario}",
        f"cpus {story.n_cpus}",
        f"memory {memory}",
    ]
    if expected is not None:
        verdict, property_name = expected
        lines.append(f'# expect {verdict} "{property_name}"')
    lines.append("")
    record = story.compiled.initial_record()
    for moment in story.moments:
        named = named_moves(story.compiled, record)
        lines.append(next(text for text, moves in named.items() if moment.move in moves))
        story.compiled.program.step(record, *moment.move)
    return "".join(f"{line}\n" for line in lines)


def named_moves(compiled: Compiled, record: Array) -> dict[str, list[Move]]:
    """Return what is possible in a state, by the line that a script has for it.

    Moves of one name that lead to the same state are one; of those that do not, the second has
    ``[2]`` behind it, and so on.
    """
    found: dict[str, list[Move]] = {}
    for move in compiled.program.moves(record):
        text = f"{actor_of(compiled, move).name}: {text_of(compiled, move)}"
        if move[2] >= 0:
            text += f" (CPU {move[2] + 1})"
        found.setdefault(text, []).append(move)
    out: dict[str, list[Move]] = {}
    for text, moves in found.items():
        if len(moves) == 1:
            out[text] = moves
            continue
        after: list[tuple[Array, list[Move]]] = []
        for move in moves:
            moved = record.copy()
            compiled.program.step(moved, *move)
            for known, same in after:
                if np.array_equal(known, moved):
                    same.append(move)
                    break
            else:
                after.append((moved, [move]))
        for i, (_, same) in enumerate(after, 1):
            out[text if i == 1 else f"{text} [{i}]"] = same
    return out

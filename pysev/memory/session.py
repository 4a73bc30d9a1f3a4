"""Running a script about pages, and what it comes to: for people, and as JSON.

Which line an event belongs to is known by its number, so that what the ledger says of "since
which event"
becomes "since which line".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ghcbcore._cffi import lib
from ghcbcore.errors import SevError
from ghcbcore.ledger import Snapshot
from pysev.memmap import MemoryMap, format_size

from . import words
from .expect import USAGE, Runs, expect, merged
from .memory import Memory
from .records import Disagreement, Outcome
from .script import Arguments, BadScript, Line
from .verbs import VERBS, run_text

__all__ = ["LineResult", "Session", "run_script"]

MAX_SHOWN = 20
MEMORY_USAGE = "memory SIZE [asid=N] [shift=0x...] [covered=N] [keep-validated]"
MAX_LEDGER_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class LineResult:
    """What a line came to: the outcome of an operation, the answer to a question, what failed."""

    line: Line
    outcome: Outcome | None
    notes: list[str]
    failed: str


class Session:
    """A guest's memory, and the lines that were run on it.

    Parameters
    ----------
    size : str, MemoryMap or None
        The guest; None: the script's line ``memory`` says it.
    asid : int or None
        The guest's; None: as that line says, or 1.
    """

    def __init__(self, size: str | MemoryMap | None = None, asid: int | None = None) -> None:
        self._size, self._asid = size, asid
        self._memory: Memory | None = None
        self.results: list[LineResult] = []
        self.snapshots: dict[str, Snapshot] = {}
        self.expected: dict[str, Runs] = {}
        self.last: Outcome | None = None
        self._begins: list[int] = []  # of each result, the event before it
        if size is not None:
            self._memory = Memory(size, asid=asid or 1, max_bytes=MAX_LEDGER_BYTES, log=False)

    @property
    def memory(self) -> Memory:
        """The guest's memory."""
        if self._memory is None:
            raise BadScript(f"how large is the guest? (usage: {MEMORY_USAGE})")
        return self._memory

    def run(self, line: Line) -> LineResult:
        """Run one line.

        Raises
        ------
        SevError
            It cannot be run; an operation on an array of frames may have happened in part.
        """
        if not self.results and line.words[0] == "memory":
            self._open(Arguments(line.words[1:], MEMORY_USAGE))
            result = LineResult(line, None, [], "")
            self._begins.append(0)
            self.results.append(result)
            return result
        self._begins.append(self.memory.ledger.event)
        outcome, notes, failed = None, list[str](), ""
        if line.words[0] == "expect":
            failed = expect(self, Arguments(line.words[1:], USAGE))
        else:
            verb = VERBS.get(line.words[0])
            if verb is None:
                raise BadScript(f"{line.words[0][:40]!a}: no such operation")
            found = verb.do(self, Arguments(line.words[1:], verb.usage))
            if isinstance(found, Outcome):
                self.last = outcome = found
            else:
                notes = found
        result = LineResult(line, outcome, notes, failed)
        self.results.append(result)
        return result

    def _open(self, a: Arguments) -> None:
        size = a.word("SIZE")
        asid = a.number("asid", 1, words.MAX_ASID)
        shift = a.number("shift", 0, lib.FRAME_GFN_MASK)
        covered = a.number("covered", None, words.MAX_WORD) if a.has("covered") else None
        keep = a.flag("keep-validated") is not None
        a.end()
        self._memory = Memory(
            size if self._size is None else self._size,  # the command line's word counts
            asid=asid if self._asid is None else self._asid,
            shift=shift,
            covered=covered,
            keep_validated=keep,
            max_bytes=MAX_LEDGER_BYTES,
            log=False,
        )

    # What it came to -------------------------------------------------------------------------

    def line_of(self, event: int) -> Line | None:
        """Return the line that an event belongs to; None: from the start."""
        at = bisect_right(self._begins, event - 1) - 1
        return self.results[at].line if event and 0 <= at < len(self.results) else None

    def since_text(self, event: int) -> str:
        """Say since which line."""
        line = self.line_of(event)
        return "from the start" if line is None else f"since line {line.number}: {line.text}"

    def text_of(self, kind: str) -> str:
        """Say what a disagreement means."""
        return words.DISAGREEMENT_TEXTS[kind]

    def disagreeing_runs(self, kind: str) -> Runs:
        """Return where views disagree in a way, whatever the history."""
        return merged([(d.first, d.n_pages) for d in self.memory.disagreements([kind])])

    def disagreement_lines(self, kinds: Iterable[str] | None = None) -> list[str]:
        """Say where views disagree, since which line, and what that means."""
        kinds = None if kinds is None else list(kinds)
        amounts = self.memory.disagreeing(kinds)
        lines = []
        for kind, n_bytes in amounts.items():
            lines.append(f"{kind}, {format_size(n_bytes)}: {self.text_of(kind)}")
            found = self.memory.disagreements([kind], max_runs=MAX_SHOWN + 1)
            lines += [f"  {self._run_line(one)}" for one in found[:MAX_SHOWN]]
            lines += ["  ..."] * (len(found) > MAX_SHOWN)
        return lines

    def _run_line(self, one: Disagreement) -> str:
        since = self.since_text(one.since)
        earlier = "" if one.since_is_exact else ", or earlier"
        return f"{run_text(one.first, one.n_pages)}  {since}{earlier}"

    @property
    def failed(self) -> list[LineResult]:
        """Lines that expected something else."""
        return [result for result in self.results if result.failed]

    def unexpected(self) -> list[str]:
        """Ways in which views disagree at the end and no line expected it so."""
        memory = self.memory
        kinds = [*memory.disagreeing(), *(k for k, runs in self.expected.items() if runs)]
        return [
            kind
            for kind in dict.fromkeys(kinds)
            if self.disagreeing_runs(kind) != self.expected.get(kind, [])
        ]

    def as_text(self, name: str) -> str:
        """Return all of it as a text for a mail."""
        memory = self.memory
        lines = [f"{name}: {format_size(memory.n_pages * lib.GHCB_PAGE_SIZE)}, ASID {memory.asid}"]
        for result in self.results:
            lines.append(f"{result.line.number:4}  {result.line.text}")
            lines += [f"        {text}" for text in _result_lines(result)]
        lines.append("")
        for field in ("state", "mapping"):
            counted = memory.counts(field)
            lines.append(
                f"{field}: " + ", ".join(f"{n} {format_size(b)}" for n, b in counted.items())
            )
        lines += ["", *(self.disagreement_lines() or ["no views disagree"])]
        if self.failed:
            numbers = ", ".join(str(result.line.number) for result in self.failed)
            lines.append(f"expected otherwise: line {numbers}")
        elif self.expected and not self.unexpected():
            lines.append("as expected")
        return "\n".join(lines) + "\n"

    def as_json(self, name: str) -> dict[str, Any]:
        """Return all of it as JSON; frames and events are numbers."""
        memory = self.memory
        return {
            "script": name,
            "n_pages": memory.n_pages,
            "asid": memory.asid,
            "lines": [_as_json(result) for result in self.results],
            "counts": {field: memory.counts(field) for field in ("state", "mapping", "listed")},
            "disagreeing_bytes": memory.disagreeing(),
            "disagreements": [
                {
                    "kind": one.kind,
                    "first": one.first,
                    "n_pages": one.n_pages,
                    "what": one.what,
                    "since_event": one.since,
                    "since_line": getattr(self.line_of(one.since), "number", None),
                }
                for one in memory.disagreements(max_runs=1000)
            ],
            "unexpected": self.unexpected(),
            "failed": [result.line.number for result in self.failed],
        }


def _result_lines(result: LineResult) -> list[str]:
    lines = list(result.notes)
    if result.outcome is not None and not result.outcome:
        lines.append(f"refused at {result.outcome.refused_at:#x}: {result.outcome.refusal}")
    if result.failed:
        lines.append(f"NOT AS EXPECTED: {result.failed}")
    return lines


def _as_json(result: LineResult) -> dict[str, Any]:
    found: dict[str, Any] = {"line": result.line.number, "text": result.line.text}
    if result.outcome is not None:
        o = result.outcome
        found |= {"event": o.event, "n_done": o.n_done, "n_changed": o.n_changed}
        found |= {"refused_at": o.refused_at, "refusal": o.refusal}
    if result.notes:
        found["answer"] = result.notes
    if result.failed:
        found["failed"] = result.failed
    return found


def run_script(
    lines: Iterable[Line],
    name: str,
    *,
    size: str | MemoryMap | None = None,
    asid: int | None = None,
    after: Callable[[Session], None] | None = None,
) -> Session:
    """Run the lines of a script; ``after`` is called after each.

    Raises
    ------
    BadScript
        ``name:3: ...``; what stands before that line has happened.
    """
    session = Session(size, asid)
    for line in lines:
        try:
            session.run(line)
        except SevError as error:
            raise BadScript(f"{name}:{line.number}: {error}") from error
        if after is not None:
            after(session)
    if not session.results and size is None:
        raise BadScript(f"{name}: no line with an operation")
    return session

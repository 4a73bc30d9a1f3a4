"""Reads a log line by line, collects facts and findings, runs the checks at the end of a boot.

A log may hold several boots (kexec; a journal): each has its own facts. Memory is bounded: of each
kind of fact and of finding only so many are kept; what is left out is counted, and the verdict
does not depend on it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Final

from pysev.memmap import MAX_RANGES, BadMap, MemoryMap
from pysev.tables.doctor import FACTS
from pysev.tables.doctor_checks import CHECKS
from pysev.tables.doctor_rules import RULES
from pysev.tables.doctor_schema import Rule, Severity

from . import checks
from .log import Counts, Line, lines_of
from .reading import READERS
from .rmp_checks import MAX_SEGMENT_LINES

__all__ = ["BootFacts", "Diagnosis", "Fact", "Found", "diagnose"]

MAX_FACTS: Final = 256
MAX_OF_KIND: Final = {"e820": MAX_RANGES + 1, "rmp_segment": MAX_SEGMENT_LINES + 1}
"""More of these are kept: one more than there can be, so that too many can be told."""
MAX_FOUND: Final = 20
MAX_BOOTS: Final = 16
MAX_LINES: Final = 5
MAX_TEXT: Final = 300
BACKWARDS_SECONDS: Final = 5.0
"""Times of one boot may be out of order by less: lines of several CPUs."""

SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")

# A line without any of these is not looked at any further; a test holds every rule against it.
_INTEREST = re.compile(
    r"SEV|RMP|SNP|GHCB|BIOS-e820|kexec|crash|segment\[|[Cc]ommand line|cmdline|Linux version|"
    r"Hypervisor det|DMI:|smpboot|smp:|last_pfn|Memory Encryption|Secure (?:Enc|Mem)|IO TLB|"
    r"swiotlb|SWIOTLB|Isolation Config|eax=|C-bit|bit reduction|IOMMU|Completion-Wait|IO-APIC|"
    r"sev command|"
    r"REQUIRED|#PF:|PFN|vmgexit|Vmgexit|exit reason|exit-code|exit_code|PVALIDATE|conversion|"
    r"accounting is off|Booting SMP|low memory|guest requested"
)


@dataclass(frozen=True)
class Fact:
    """One line that a row of ``FACTS`` knows: the groups of its pattern and what they mean."""

    line: int
    values: Mapping[str, str]
    words: str
    text: str


@dataclass
class Found:
    """One finding; ``lines`` are the first few of ``count`` that say the same."""

    name: str
    severity: Severity
    words: str
    advice: str
    source: str
    lines: list[int]
    count: int = 1

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "severity": self.severity,
            "text": self.words,
            "advice": self.advice,
            "source": self.source,
            "lines": self.lines,
            "count": self.count,
        }


class BootFacts:
    """What is known of one boot: its facts by name, the last line, how many lines it has."""

    def __init__(self) -> None:
        self.facts: dict[str, list[Fact]] = {}
        self.sides: dict[str, int] = {"host": 0, "guest": 0}
        self.last: Line | None = None
        self.found: dict[str, list[Fact]] = {}  # lines of findings, for checks that need them

    def all(self, name: str) -> Sequence[Fact]:
        return self.facts.get(name, ())

    def first(self, name: str) -> Fact | None:
        return next(iter(self.all(name)), None)

    def distinct(self, name: str, *groups: str) -> list[Fact]:
        """Return the facts that differ in these groups, first ones only."""
        seen = {tuple(one.values[group] for group in groups): one for one in self.all(name)[::-1]}
        return sorted(seen.values(), key=lambda one: one.line)

    def is_empty(self) -> bool:
        return not self.facts and not self.found

    def memory(self) -> tuple[MemoryMap | None, str]:
        """Return the map of the BIOS and "", or None and why there is none."""
        entries = self.all("e820")
        if not entries:
            return None, ""
        if len(entries) > MAX_RANGES:
            return None, f"more than {MAX_RANGES} ranges"
        try:
            return MemoryMap.from_text([one.text for one in entries], "e820"), ""
        except BadMap as error:
            return None, str(error)


@dataclass
class Diagnosis:
    """What a log says: the facts of each boot, and findings, worst first."""

    name: str
    boots: list[BootFacts] = field(default_factory=list)
    findings: list[Found] = field(default_factory=list)
    n_lines: int = 0
    n_boots: int = 0
    left_out: int = 0
    is_log: bool = False
    worst: set[Severity] = field(default_factory=set)

    @property
    def has_problem(self) -> bool:
        """Whether a finding is an error or a warning."""
        return bool(self.worst & {"error", "warning"})

    def count(self, severity: Severity) -> int:
        return sum(one.severity == severity for one in self.findings)


class _Reader:
    """The state of one reading."""

    def __init__(self, name: str) -> None:
        self.result = Diagnosis(name)
        self.kept: Counter[str] = Counter()  # findings by name
        self.by_key: dict[tuple[str, str, str], Found] = {}
        self.boot = BootFacts()
        self.last_time: float | None = None
        self.rules = [(rule, re.compile(rule.pattern)) for rule in (*FACTS, *RULES)]
        self.checks = {one.name: one for one in CHECKS}
        self.before: Line | None = None

    def add(self, line: Line) -> None:
        if re.match(r"#(?!PF:)", line.text) and not line.has_front:
            self.before = None
            return  # a remark of whoever keeps the log
        if not line.text:
            return
        if line.seconds is not None:
            if self.last_time is not None and line.seconds < self.last_time - BACKWARDS_SECONDS:
                self.end_boot()
            self.last_time = line.seconds
        names = {rule.name for rule in self.match(line.text, line, set())}
        before, self.before = self.before, line
        if before is not None and not line.has_front and before.has_front:
            self.match_wrapped(before, line, names)
            self.before = Line(
                before.number, f"{before.text} {line.text}"[:1000], before.seconds, True
            )
        if line.seconds is not None or self.boot.last is None or self.boot.last.seconds is None:
            self.boot.last = line
        self.result.is_log |= line.seconds is not None or bool(names)

    def match(self, text: str, line: Line, known: set[str], across: int = -1) -> Iterator[Rule]:
        """Note each row that ``text`` matches, and yield it; with ``across``, over that place."""
        if not _INTEREST.search(text):
            return
        for rule, pattern in self.rules:
            if rule.name in known:
                continue
            for found in pattern.finditer(text):
                if across >= 0 and not found.start() < across < found.end():
                    continue
                groups = found.groupdict()
                words = READERS[rule.read](groups) if rule.read else {}
                if words is not None:
                    values = {k: "" if v is None else v[:MAX_TEXT] for k, v in groups.items()}
                    self.note(rule, line, values | words, text)
                    yield rule

    def match_wrapped(self, before: Line, line: Line, names: set[str]) -> None:
        """Look for rows that match only if a line without a front goes on with the one before."""
        for glue in (" ", ""):
            known = names | {rule.name for rule, p in self.rules if p.search(before.text)}
            text = f"{before.text}{glue}{line.text}"
            names |= {
                rule.name for rule in self.match(text, before, known, len(before.text) + len(glue))
            }

    def note(self, rule: Rule, line: Line, values: dict[str, str], text: str) -> None:
        began = self.boot.all("linux_version") or self.boot.all("e820")
        if rule.name == "linux_version" and began:
            self.end_boot()
        if rule.side:
            self.boot.sides[rule.side] += 1
        words = rule.words.format_map(values)
        fact = Fact(line.number, values, words, text[:MAX_TEXT])
        where = self.boot.facts if rule.severity == "fact" else self.boot.found
        kept = where.setdefault(rule.name, [])
        if len(kept) < MAX_OF_KIND.get(rule.name, MAX_FACTS):
            kept.append(fact)
        if rule.severity != "fact":
            advice = rule.advice.format_map(values)
            self.find(rule.name, rule.severity, words, advice, rule.source, [line.number])

    def find(
        self, name: str, severity: Severity, words: str, advice: str, source: str, lines: list[int]
    ) -> None:
        self.result.worst.add(severity)
        known = self.by_key.get((name, words, advice))
        if known is not None:
            known.count += 1
            known.lines = [*known.lines, *lines][:MAX_LINES]
        elif self.kept[name] < MAX_FOUND:
            self.kept[name] += 1
            found = Found(name, severity, words, advice, source, lines[:MAX_LINES])
            self.by_key[name, words, advice] = found
        else:
            self.result.left_out += 1

    def check(self, name: str, lines: Sequence[int], **values: object) -> None:
        row = self.checks[name]
        words, advice = row.words.format_map(values), row.advice.format_map(values)
        self.find(name, row.severity, words, advice, row.source, list(lines))

    def end_boot(self) -> None:
        boot, self.boot = self.boot, BootFacts()
        self.last_time = None
        self.before = None
        if boot.is_empty():
            return
        for name, lines, values in checks.run(boot):
            self.check(name, lines, **values)
        self.result.n_boots += 1
        if len(self.result.boots) < MAX_BOOTS:
            self.result.boots.append(boot)

    def end(self, counts: Counts) -> Diagnosis:
        self.end_boot()
        result = self.result
        result.n_lines = counts.lines
        if result.is_log and counts.long_lines:
            self.check(
                "long_lines", [counts.first_long], count=counts.long_lines, line=counts.first_long
            )
        if result.is_log and counts.nul_bytes:
            self.check("nul_bytes", [], count=counts.nul_bytes)
        if result.left_out:
            self.check("more", [], count=result.left_out)
        order = {severity: i for i, severity in enumerate(SEVERITIES)}
        result.findings = sorted(
            self.by_key.values(), key=lambda one: (order[one.severity], one.lines[:1])
        )
        return result


def diagnose(stream: IO[bytes], name: str = "<log>") -> Diagnosis:
    """Read a kernel log and say what it tells about SEV.

    Parameters
    ----------
    stream : binary file
        A log in any form: ``dmesg`` with or without times, with levels, ``journalctl -k``,
        ``/dev/kmsg``, a console's, quoted in a mail. Read line by line.
    name : str
        For messages.

    Returns
    -------
    Diagnosis
        ``is_log`` is false if no line is one of a kernel log.

    Raises
    ------
    OSError
        Of ``stream``.

    Examples
    --------
    >>> import io
    >>> log = b"[    7.3] kvm_amd: SEV-ES guest requested termination: 0x0:0x0"
    >>> diagnose(io.BytesIO(log)).findings[0].words
    'a guest ended itself: 0x0:0x0, GHCB standard: general termination'
    """
    reader = _Reader(name)
    counts = Counts()
    for line in lines_of(stream, counts):
        reader.add(line)
    return reader.end(counts)

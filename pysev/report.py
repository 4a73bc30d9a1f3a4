"""What ``run`` and ``check`` print: plain text that fits into a mail."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .checking import DEADLOCK, LIVELOCK, CheckResult
from .flow import Flow, Property
from .machine import Machine
from .scenarios import Scenario
from .showing.story import play
from .showing.timeline import timeline

if TYPE_CHECKING:
    from .simulate import RunResult

__all__ = [
    "check_row",
    "check_table",
    "check_text",
    "is_expected",
    "run_text",
    "scenarios_text",
]

WIDTH = 100
CPU_WORDS = {
    "total": "CPUs",
    "online": "online",
    "lost": "lost",
    "triple_fault": "triple fault",
    "parked": "parked, held by the hypervisor",
    "foreign_code": "execute foreign data",
    "halted": "halted in the old kernel",
}


def _table(rows: Iterable[Sequence[str]]) -> str:
    """Align columns; the last one is left as it is."""
    rows = [list(row) for row in rows]
    if not rows:
        return "  none\n"
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return "".join(
        "  " + "  ".join([*map(str.ljust, row[:-1], widths), row[-1]]).rstrip() + "\n"
        for row in rows
    )


def _printable(text: str) -> str:
    """Return text on one line, whatever a file was called."""
    return text if text.isprintable() else ascii(text)


def _n_cpus(n: int) -> str:
    return f"{n} CPU" if n == 1 else f"{n} CPUs"


def _size(n_bytes: int) -> str:
    """Return bytes in the largest unit that leaves at least 1, three digits behind the point."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if n_bytes >= 1 << shift:
            return f"{n_bytes / (1 << shift):.3f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{n_bytes} bytes"


def scenarios_text(scenarios: Sequence[Scenario]) -> str:
    """One line for each scenario: name, expected verdict, what it is."""
    return _table((s.name, s.expected, s.summary) for s in scenarios)


def run_text(scenario: Scenario, machine: Machine, result: RunResult) -> str:
    """The report of one run."""
    from . import costs, events

    memory = machine.layout.memmap
    parts = [
        f"{scenario.name}: {scenario.summary}\n",
        f"{_n_cpus(machine.n_cpus)}, {_size(memory.ram_bytes)} RAM ({_printable(memory.name)}), "
        f"seed {result.seed}; {result.steps} steps, {result.modelled_seconds:.6f} s of modelled "
        f"time in {result.seconds:.2f} s\n",
        costs.changed_text(result.costs, result.unused_costs),
        "\nwhere everything lies\n",
        *(f"  {line}\n" for line in machine.layout.as_text().splitlines()),
        "\nwhat became of the CPUs\n",
        _table((CPU_WORDS.get(name, name), str(n)) for name, n in result.cpus.items()),
        result.analysis.as_text(),
        "\nVMGEXITs by kind\n",
        _table((name, str(n)) for name, n in result.vmgexits.items()),
        "\nthe first of each kind\n",
        *(f"  {line}\n" for text in events.samples(result.trace) for line in text.splitlines()),
        "\nmemory by state\n",
        _table((name.replace("_", " "), _size(n)) for name, n in result.memory.items()),
    ]
    if result.jump_table_page is not None:
        parts.append(f"\njump table page\n{_hex_dump(result.jump_table_page.tobytes(), 0x50)}")
    parts.append(f"\nverdict: {run_sentence(scenario, result)}\n")
    return "".join(parts)


def run_sentence(scenario: Scenario, result: RunResult) -> str:
    """The verdict of a run in one sentence."""
    online = f"{result.cpus['online']} of {result.cpus['total']} CPUs are online"
    if result.verdict == "holds":
        return f"holds in this order of events: {online}; `pysev check` looks at every order."
    if result.verdict == "unknown":
        return f"unknown: given up after {result.steps} steps; {online}."
    broken = "; ".join(f'"{text}" does not hold' for text in result.texts)
    return f"{result.verdict} in this order of events: {broken}; {online}."


def check_row(scenario: Scenario, result: CheckResult) -> tuple[str, ...]:
    """One line of ``check --all``."""
    right = "as expected"
    if not is_expected(scenario, result):
        right = f"EXPECTED {scenario.expected_with(result.n_cpus)}"
    return (
        scenario.name,
        result.verdict,
        right,
        f"{result.states:>9} states",
        f"{result.seconds:.3f} s",
        result.property,
    )


def check_table(rows: Sequence[tuple[str, ...]]) -> str:
    return _table(rows)


def is_expected(scenario: Scenario, result: CheckResult) -> bool:
    """Return whether the verdict is the expected one, and for the reason that the source gives."""
    expected = scenario.expected_with(result.n_cpus)
    because = scenario.because if expected != "holds" else ""
    return result.verdict == expected and (
        result.property == because if because else not result.violations
    )


def check_text(
    scenario: Scenario, flow: Flow, result: CheckResult, properties: Sequence[Property] = ()
) -> str:
    """The report of one check; ``properties`` are those beside the flow's own."""
    texts = {p.name: p.text or p.name for p in (*flow.properties, *properties)}
    texts[DEADLOCK] = "where nothing happens any more, everybody may rest"
    texts[LIVELOCK] = "whatever has happened, some order of events still leads to an end"
    parts = [
        f"{scenario.name}, {_n_cpus(result.n_cpus)}: {scenario.summary}\n",
        f"{result.states} states, {result.transitions} transitions, depth {result.depth}, "
        f"{_complete(result)}, {result.n_bytes >> 20} MiB, {result.seconds:.3f} s\n",
        "".join(f"{text}\n" for text in _footnotes(result)),
        "".join(f"assumes: {text}\n" for text in scenario.assumes),
    ]
    if result.counterexample:
        n = len(result.counterexample)
        parts.append(f"\n{_title(result)} ({n} steps):\n")
        story = play(flow.compile(result.n_cpus), [step.move for step in result.counterexample])
        parts.append(timeline(story, {n: f"{result.verdict}: {result.property}"}))
    if result.violations:
        parts.append("\nviolated, and after how many steps first:\n")
        parts.append(
            _table(
                (name, str(depth), texts.get(name, "")) for name, depth in result.violations.items()
            )
        )
    if result.reached:
        parts.append("\nreached at all:\n")
        parts.append(_table((name, "yes" if yes else "no") for name, yes in result.reached.items()))
    parts.append(f"\nverdict: {check_sentence(scenario, result, texts)}\n")
    if scenario.source:
        parts.append(f"source: {scenario.source}\n")
    return "".join(parts)


def _complete(result: CheckResult) -> str:
    if result.complete:
        return "complete"
    return f"NOT complete ({result.stopped})" if result.stopped else "NOT complete"


def _footnotes(result: CheckResult) -> list[str]:
    """What the verdict does not cover."""
    notes = [f"not asked: {name}" for name in result.not_asked]
    if result.missed:
        notes.append(
            f"fingerprints: a state was taken for another one and missed with a probability of "
            f"{result.missed:.1e} at most"
        )
    return notes + [f"warning: {text}" for text in result.warnings]


def _title(result: CheckResult) -> str:
    if result.repeats_from is None:
        return "the shortest order of events"
    first, last = result.repeats_from + 1, len(result.counterexample)
    if first > last:
        return "an order of events after which nothing happens"
    return f"an order of events that goes on for ever, steps {first} to {last} again and again"


def check_sentence(scenario: Scenario, result: CheckResult, texts: dict[str, str]) -> str:
    """The verdict of a check in one sentence."""
    wanted = scenario.expected_with(result.n_cpus)
    if not scenario.expected:  # a flow of one's own
        return _bare_sentence(result, texts)
    story = scenario.story if wanted == scenario.expected else "there are too few CPUs for it"
    because = f": {story}" if is_expected(scenario, result) else ""
    expected = "as expected" if because else f"but {wanted} was expected"
    if result.verdict == "holds":
        return f"holds in every order of events, {expected}{because}."
    if result.verdict == "unknown":
        return "unknown: the search was stopped before it was complete; nothing was found so far."
    what = texts.get(result.property, result.property)
    return f'{result.verdict}, {expected}: "{what}" does not hold{because}.'


def _bare_sentence(result: CheckResult, texts: dict[str, str]) -> str:
    if result.verdict == "holds":
        return "holds in every order of events."
    if result.verdict == "unknown":
        return "unknown: the search was stopped before it was complete; nothing was found so far."
    return f'{result.verdict}: "{texts.get(result.property, result.property)}" does not hold.'


def _hex_dump(data: bytes, n: int) -> str:
    lines = []
    for at in range(0, n, 16):
        lines.append(f"  {at:03x}  {data[at : at + 16].hex(' ')}\n")
    return "".join(lines)

"""A flow as pseudocode that fits into a mail: each agent's program, with waits, races and jumps.

One operation is a line; its guard is what is waited for. Where several are possible stands
``either ... or ...``, and any whose guard holds may happen. In braces is what an operation does to
words on which some guard depends. A label has its name where something jumps to it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from ..flow import Flow
from . import terms
from .chart import AgentChart, Edge, chart_of

__all__ = ["pseudocode"]

WIDTH = 100
INDENT = 4


def pseudocode(flow: Flow) -> str:
    """Return a flow as text, lines of at most ``WIDTH`` characters."""
    chart = chart_of(flow)
    lines = []
    if flow._while:
        stop = " or ".join(terms.test_text(flow, test.negated()) for test in flow._while)
        lines += [f"nothing happens any more once {stop}", ""]
    for i, agent in enumerate(chart):
        pushes = [(a, p) for a in chart for p in a.pushes if p.agent == i]
        reached = {p.target for _, p in pushes}
        lines += [*_agent(chart, agent, reached), ""]
    return "".join(f"{line}\n" for line in lines[:-1])


def _agent(chart: list[AgentChart], agent: AgentChart, reached: set[int]) -> Iterator[str]:
    head = agent.name
    if agent.per_cpu:
        head = f"each {agent.name}: one for every CPU but the boot CPU"
    if agent.only_while:
        head += f"; only while {' and '.join(agent.only_while)}"
    yield from textwrap.wrap(head, WIDTH, subsequent_indent=" " * INDENT)
    jumps = reached | {e.target for e in agent.edges if e.target not in (e.source, e.source + 1)}
    sources = {e.source for e in agent.edges}
    jumps |= {at for at in range(len(agent.labels)) if at not in sources or _joins(agent, at)}
    lost: list[str] = []
    for at, label in enumerate(agent.labels):
        here = [e for e in agent.edges if e.source == at]
        safe = [e for e in here if not e.hazard]
        if at in jumps:
            yield f"  {label}:"
        if here:
            hazards = [e for e in here if e.hazard]
            yield from _hazards(agent, hazards, lost)
            lost = [_guard(e) for e in hazards]
        yield from _label(chart, agent, at, safe)


def _joins(agent: AgentChart, at: int) -> bool:
    """Whether a label must be named because one of several operations leads back to it."""
    here = [e for e in agent.edges if e.source == at and not e.hazard]
    loops = [e for e in here if e.target == at]
    return bool(loops) and len(here) > len(loops)


def _guard(edge: Edge) -> str:
    return " and ".join(edge.when)


def _hazards(agent: AgentChart, edges: list[Edge], before: list[str]) -> Iterator[str]:
    """Say what else can happen from here on, where that is not what could before."""
    guards = dict.fromkeys(map(_guard, edges))
    gone = [guard for guard in dict.fromkeys(before) if guard not in guards]
    lead = " " * INDENT + "# "
    if gone:
        text = f"from here on it does not matter whether {' or '.join(gone)}"
        yield from textwrap.wrap(text, WIDTH, initial_indent=lead, subsequent_indent=lead)
    new = [e for e in edges if _guard(e) not in before]
    if new:
        yield f"{lead}from here on{' also' * (len(new) < len(edges))}, instead of any step:"
    for edge in new:
        text = f"if {_guard(edge)}: {edge.text}; goto {agent.labels[edge.target]}"
        yield from textwrap.wrap(
            text,
            WIDTH,
            initial_indent=f"{lead}  ",
            subsequent_indent=f"{lead}    ",
            break_on_hyphens=False,
        )


def _label(chart: list[AgentChart], agent: AgentChart, at: int, edges: list[Edge]) -> Iterator[str]:
    if not edges:
        yield " " * INDENT + ("rests" if at in agent.ends else "stays here for ever")
        return
    loops = all(e.target == at for e in edges)
    lead = " " * INDENT
    if loops:
        yield f"{lead}loop:"
        lead += "  "
    alone = len(edges) == 1 and at not in agent.ends
    words = ["wait"] if alone else ["either", *["or"] * (len(edges) - 1)]
    for word, edge in zip(words, edges, strict=True):
        yield from _operation(chart, agent, edge, lead, word, loops)
    if at in agent.ends:
        yield f"{lead}or      rests"


def _operation(
    chart: list[AgentChart], agent: AgentChart, edge: Edge, lead: str, word: str, loops: bool
) -> Iterator[str]:
    """One operation: its line, and what it sets behind it or on a line of its own."""
    guard, alone = _guard(edge), word == "wait"
    if edge.pick:
        guard = f"for a CPU with {guard}" if guard else "for any other CPU"
    elif guard:
        guard = f"until {guard}" if alone else f"if {guard}"
    hanging = 0 if alone else 8
    text = f"{guard}: {edge.text}" if guard else edge.text
    if not alone:
        text = f"{word:<8}{text}"
    elif guard:
        text = f"wait {text}"
    if edge.target != edge.source + 1 and not (loops and edge.target == edge.source):
        text += f"; goto {agent.labels[edge.target]}"
    does = [
        *edge.sets,
        *(
            f"{chart[p.agent].name} goes to {chart[p.agent].labels[p.target]}"
            for p in agent.pushes
            if (p.source, p.text) == (edge.source, edge.text)
        ),
    ]
    braces = f"{{ {'; '.join(does)} }}" if does else ""
    if braces and len(lead) + len(text) + 2 + len(braces) <= WIDTH:
        text, braces = f"{text}  {braces}", ""
    yield from _wrap(text, lead, hanging)
    if braces:
        yield from _wrap(braces, lead + " " * (hanging + INDENT))


def _wrap(text: str, lead: str, hanging: int = 0) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=lead,
        subsequent_indent=lead + " " * (hanging + INDENT // 2),
        break_on_hyphens=False,
    )

"""A flow as a chart: for each agent its labels, and the operations that lead from one to the next.

What memory that is taken away does instead of an operation is a *hazard*; the test that it is
still there is left out of the others. Where an operation puts another agent at a label (STARTUP
resets an AP), that is a *push*. Mermaid and DOT text is made here; ``pseudocode`` and
``chartpicture`` take the same chart.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ghcbcore.host import VCPU_DTYPE

from ..flow import Agent, Effect, Field, Flow, Op, Test
from . import terms
from .sequence import escaped

__all__ = ["AgentChart", "Edge", "Push", "chart_of", "dot_chart", "mermaid_chart"]

MAX_GUARD = 60


@dataclass(frozen=True)
class Edge:
    """One operation, or all of one text that lead from one label to another."""

    source: int
    target: int
    text: str
    when: tuple[str, ...]
    sets: tuple[str, ...]
    pick: bool
    hazard: bool


@dataclass(frozen=True)
class Push:
    """An operation that puts another agent at a label: indices of labels, name of that agent."""

    source: int
    agent: int
    target: int
    text: str


@dataclass(frozen=True)
class AgentChart:
    """One kind of agent; ``ends`` are the labels at which it may rest for ever."""

    name: str
    per_cpu: bool
    only_while: tuple[str, ...]
    labels: tuple[str, ...]
    ends: frozenset[int]
    edges: tuple[Edge, ...]
    pushes: tuple[Push, ...]


def chart_of(flow: Flow) -> list[AgentChart]:
    """Return the chart of a flow.

    Raises
    ------
    FlowError
        By way of ``flow.compile``, which callers do first: labels that are not there.
    """
    of_host = {f"{block}.{name}" for block in ("boot", "cpu") for name in VCPU_DTYPE.names or ()}
    states = {name for name in of_host if terms.is_named(flow, name.partition(".")[2])}
    tested = set(_tested_words(flow)) - of_host | states
    ops = [o for agent in flow.agents for o in _ops(agent)]
    scratch = {word for o in ops for word in terms.scratch_words(o.do)}
    return [_agent(flow, agent, (tested - scratch, scratch)) for agent in flow.agents]


def _agent(flow: Flow, agent: Agent, words: tuple[set[str], set[str]]) -> AgentChart:
    labels = list(agent.labels)
    always = {_key(test) for test in agent.only_while}
    edges: dict[tuple[object, ...], Edge] = {}
    pushes = []
    for at, ops in enumerate(agent.labels.values()):
        hazards = [o for o in ops if o.hazard]
        intact = {_key(o.when[-1].negated()) for o in hazards}
        for o in ops:
            target = at + 1 if o.to is None else at if o.to == "." else labels.index(o.to)
            tests = o.when[-1:] if o.hazard else o.when
            known = always if o.hazard else always | intact
            edge = Edge(
                at,
                target,
                terms.one_line(o.text),
                tuple(terms.test_text(flow, test) for test in tests if _key(test) not in known),
                () if o.hazard else tuple(terms.effects_text(flow, o.do, *words)),
                o.pick,
                o.hazard,
            )
            edges.setdefault((at, target, edge.text, edge.when, o.hazard), edge)
            pushes += [Push(at, *to, edge.text) for to in _pushed(flow, o.do) if not o.hazard]
    return AgentChart(
        terms.one_line(agent.name),
        agent.per_cpu,
        tuple(terms.test_text(flow, test) for test in agent.only_while),
        tuple(terms.one_line(label) for label in labels),
        frozenset(labels.index(label) for label in agent.ends),
        tuple(edges.values()),
        tuple(pushes),
    )


def _key(test: Test) -> tuple[int, int, int, tuple[int, int]]:
    """Return what makes a test the same as another: words compare to tests, not to bools."""
    value = test.value
    of_value = (1, value.operand) if isinstance(value, Field) else (0, value)
    return test.opcode, test.field.operand, test.field.mask, of_value


def _pushed(flow: Flow, effects: Iterable[Effect]) -> Iterator[tuple[int, int]]:
    for e in effects:
        yield from _pushed(flow, (*e.body, *e.otherwise))
        if isinstance(e.value, str):
            for i, agent in enumerate(flow.agents):
                if agent.pc is e.target and e.value in agent.labels:
                    yield i, list(agent.labels).index(e.value)


def _tested_words(flow: Flow) -> Iterator[str]:
    """Return the words on which some operation depends."""

    def of_tests(tests: Iterable[Test]) -> Iterator[str]:
        for test in tests:
            yield terms.place_name(test.field)
            if isinstance(test.value, Field):
                yield terms.place_name(test.value)

    def of_effects(effects: Iterable[Effect]) -> Iterator[str]:
        for e in effects:
            yield from of_tests(e.tests)
            yield from of_effects((*e.body, *e.otherwise))
            if isinstance(e.value, Field):
                yield terms.place_name(e.value)

    for agent in flow.agents:
        for o in _ops(agent):
            yield from of_tests(o.when)
            yield from of_effects(o.do)


def _ops(agent: Agent) -> Iterator[Op]:
    for ops in agent.labels.values():
        yield from ops


def title_of(agent: AgentChart) -> str:
    """Return what stands over an agent's part."""
    return f"each {agent.name}" if agent.per_cpu else agent.name


def drawn_edges(agent: AgentChart) -> list[Edge]:
    """Return the edges for a picture: hazards between two labels are one, by what they share."""
    out = [edge for edge in agent.edges if not edge.hazard]
    hazards: dict[tuple[int, int], list[Edge]] = {}
    for edge in agent.edges:
        if edge.hazard:
            hazards.setdefault((edge.source, edge.target), []).append(edge)
    for edges in hazards.values():
        guards = dict.fromkeys(" and ".join(edge.when) for edge in edges)
        texts = [edge.text for edge in edges]
        shared = os.path.commonprefix(texts)  # noqa: RUF071 -- characters are what is compared
        shared = edges[0].text if len(edges) == 1 else shared.rpartition(":")[0] or "hazard"
        out.append(replace(edges[0], text=shared, when=(" or ".join(guards),)))
    return out


def edge_lines(edge: Edge) -> list[str]:
    """Return what stands at an edge: the operation and, if it is short, its guard."""
    guard = " and ".join(edge.when)
    return [edge.text, f"[{guard}]"] if guard and len(guard) <= MAX_GUARD else [edge.text]


def mermaid_chart(chart: list[AgentChart]) -> str:
    """Return a chart as a Mermaid ``flowchart``: hazards and pushes are dashed."""
    lines = ["flowchart TD"]
    for i, agent in enumerate(chart):
        lines.append(f'    subgraph a{i}["{escaped(title_of(agent))}"]')
        for at, label in enumerate(agent.labels):
            left, right = ("([", "])") if at in agent.ends else ("[", "]")
            lines.append(f'        n{i}_{at}{left}"{escaped(label)}"{right}')
        for edge in drawn_edges(agent):
            arrow = "-.->" if edge.hazard else "-->"
            text = "<br/>".join(escaped(line) for line in edge_lines(edge))
            lines.append(f'        n{i}_{edge.source} {arrow}|"{text}"| n{i}_{edge.target}')
        lines.append("    end")
    for i, agent in enumerate(chart):
        for push in agent.pushes:
            ends = f'n{i}_{push.source} -.->|"{escaped(push.text)}"| n{push.agent}_{push.target}'
            lines.append(f"    {ends}")
    return "".join(f"{line}\n" for line in lines)


def _quoted(lines: Iterable[str]) -> str:
    escapes = {"\\": "\\\\", '"': '\\"'}
    return '"' + "\\n".join("".join(escapes.get(c, c) for c in line) for line in lines) + '"'


def dot_chart(chart: list[AgentChart], name: str) -> str:
    """Return a chart in the language of Graphviz: a cluster for each agent."""
    lines = [f"digraph {_quoted([name])} {{", '    node [shape=box, fontname="sans-serif"];']
    lines.append('    edge [fontname="sans-serif", fontsize=10];')
    for i, agent in enumerate(chart):
        lines += [f"    subgraph cluster_{i} {{", f"        label={_quoted([title_of(agent)])};"]
        for at, label in enumerate(agent.labels):
            more = ", style=rounded" if at in agent.ends else ""
            lines.append(f"        n{i}_{at} [label={_quoted([label])}{more}];")
        for edge in drawn_edges(agent):
            more = ", style=dashed" if edge.hazard else ""
            text = _quoted(edge_lines(edge))
            lines.append(f"        n{i}_{edge.source} -> n{i}_{edge.target} [label={text}{more}];")
        lines.append("    }")
    for i, agent in enumerate(chart):
        for push in agent.pushes:
            ends = f"n{i}_{push.source} -> n{push.agent}_{push.target}"
            lines.append(f"    {ends} [label={_quoted([push.text])}, style=dashed];")
    return "".join(f"{line}\n" for line in [*lines, "}"])

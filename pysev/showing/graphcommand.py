"""The body of ``pysev graph``: a scenario's flow as pseudocode, or as a picture of its labels."""

from __future__ import annotations

import json as _json
import sys
import textwrap
from typing import Any

from ..flow import Flow
from ..machine import Machine
from ..scenarios import Scenario
from .chart import AgentChart, chart_of, dot_chart, mermaid_chart
from .chartpicture import svg_chart
from .command import refuse_outputs, write_text
from .finding import find_scenario
from .pseudocode import WIDTH, pseudocode
from .terms import one_line

__all__ = ["main_graph"]


def main_graph(
    name: str,
    *,
    n_cpus: int,
    json: bool = False,
    mermaid: str | None = None,
    svg: str | None = None,
    dot: str | None = None,
) -> int:
    """Print a scenario's flow, or write it in other forms; return the exit status.

    Raises
    ------
    UnknownScenario, BadFlow
        There is none of this name.
    FlowError
        The flow is not well formed.
    OSError
        A file cannot be written.
    """
    scenario = find_scenario(name)
    n_cpus = scenario.n_cpus(n_cpus)
    machine = Machine.of(n_cpus, jump_table=scenario.jump_table)
    flow = scenario.build(machine)
    flow.compile(n_cpus)  # what is wrong with it is said in its own words
    chart = chart_of(flow)
    to_stdout = refuse_outputs("graph", [mermaid, svg, dot])
    if mermaid is not None:
        write_text(mermaid, mermaid_chart(chart))
    if svg is not None:
        write_text(svg, svg_chart(chart, scenario.name))
    if dot is not None:
        write_text(dot, dot_chart(chart, scenario.name))
    if json and not to_stdout:
        sys.stdout.write(_json.dumps(_as_json(scenario, chart), indent=2) + "\n")
    elif not to_stdout and (mermaid, svg, dot) == (None, None, None):
        sys.stdout.write(graph_text(scenario, flow, n_cpus))
    return 0


def graph_text(scenario: Scenario, flow: Flow, n_cpus: int) -> str:
    """Return the pseudocode of a flow under a heading, and what it must fulfil."""
    head = f"{scenario.name}, {n_cpus} CPU{'s' * (n_cpus != 1)}: {scenario.summary}"
    lines = [*textwrap.wrap(one_line(head), WIDTH), "", *pseudocode(flow).splitlines()]
    if flow.properties:
        lines += ["", "properties"]
    words = {"always": "always", "end": "in the end", "sometimes": "sometimes"}
    for p in flow.properties:
        text = one_line(p.name + (f": {p.text}" if p.text and p.text != p.name else ""))
        lead = f"    {words[p.kind]:<12}"
        lines += textwrap.wrap(text, WIDTH, initial_indent=lead, subsequent_indent=" " * 16)
    return "".join(f"{line}\n" for line in lines)


def _as_json(scenario: Scenario, chart: list[AgentChart]) -> dict[str, Any]:
    return {
        "scenario": scenario.name,
        "agents": [
            {
                "name": agent.name,
                "per_cpu": agent.per_cpu,
                "only_while": list(agent.only_while),
                "labels": [
                    {"label": label, "may_rest": at in agent.ends, "operations": _ops(agent, at)}
                    for at, label in enumerate(agent.labels)
                ],
                "pushes": [
                    {
                        "label": agent.labels[p.source],
                        "op": p.text,
                        "agent": chart[p.agent].name,
                        "to": chart[p.agent].labels[p.target],
                    }
                    for p in agent.pushes
                ],
            }
            for agent in chart
        ],
    }


def _ops(agent: AgentChart, at: int) -> list[dict[str, Any]]:
    return [
        {
            "op": edge.text,
            "when": list(edge.when),
            "sets": list(edge.sets),
            "to": agent.labels[edge.target],
            "picks_a_cpu": edge.pick,
            "hazard": edge.hazard,
        }
        for edge in agent.edges
        if edge.source == at
    ]

"""A flow's chart as SVG: a column for each agent, labels downwards, jumps along its right side.

Below a label stand its operations; one that leads to the next label follows the line down, others
go to the right and along a lane to where they lead. All that lead to one label share a lane;
hazards have their own, dashed. What an operation does to another agent's position is said in words.
"""

from __future__ import annotations

from .chart import AgentChart, Edge, drawn_edges, edge_lines, title_of
from .drawing import ALARM, LINE, PALE, Picture, fitted

__all__ = ["svg_chart"]

BOX, TEXT, LANE, GAP, PAD = 130.0, 250.0, 12.0, 30.0, 5.0
BOX_HEIGHT = LINE + 2 * PAD
LEFT, TOP = 20.0, 14.0
INDENT = 20.0


def svg_chart(chart: list[AgentChart], title: str) -> str:
    """Return a chart as the text of an SVG file."""
    picture = Picture(title)
    picture.write(LEFT, TOP + LINE, [title], bold=True)
    x = LEFT
    for agent in chart:
        x += _column(picture, chart, agent, x, TOP + 3 * LINE) + GAP
    return picture.text()


def _column(
    picture: Picture, chart: list[AgentChart], agent: AgentChart, x: float, y: float
) -> float:
    """Draw one agent; return the width that it took."""
    picture.write(x, y, [title_of(agent)], bold=True)
    y += LINE
    edges = drawn_edges(agent)
    tops: list[float] = []
    exits: list[tuple[Edge, float]] = []
    for at, label in enumerate(agent.labels):
        tops.append(y)
        here = [e for e in edges if e.source == at]
        colour = ALARM if not here and at not in agent.ends else "#222222"
        fill = "#e4efe4" if at in agent.ends else "#f4f4f4"
        lines = fitted(label, BOX - 2 * PAD)
        height = BOX_HEIGHT + (len(lines) - 1) * LINE
        picture.box(x, y, BOX, height, fill=fill, colour=colour)
        picture.write(x + PAD, y + LINE, lines)
        bottom = y = y + height
        for edge in here:
            ink = ALARM if edge.hazard else "#222222"
            shown = _lines(chart, agent, edge)
            picture.write(x + INDENT, y + LINE, shown, colour=ink)
            if edge.target == at + 1 and not edge.hazard:
                pass
            else:
                exits.append((edge, y + LINE - 4))
            y += len(shown) * LINE + 2
        y += PAD * 2
        if any(e.target == at + 1 and not e.hazard for e in here):
            picture.line([(x + INDENT / 2, bottom), (x + INDENT / 2, y)], arrow=True)
    return _lanes(picture, agent, x, tops, exits)


def _lines(chart: list[AgentChart], agent: AgentChart, edge: Edge) -> list[str]:
    lines = [part for line in edge_lines(edge) for part in fitted(line, TEXT)]
    for push in agent.pushes:
        if (push.source, push.text) == (edge.source, edge.text) and not edge.hazard:
            other = chart[push.agent]
            lines += fitted(f"({other.name} goes to {other.labels[push.target]})", TEXT)
    return lines


def _lanes(
    picture: Picture,
    agent: AgentChart,
    x: float,
    tops: list[float],
    exits: list[tuple[Edge, float]],
) -> float:
    """Draw the jumps; every target has its lane, hazards another; return the width of it all."""
    keys = list(dict.fromkeys((edge.hazard, edge.target) for edge, _ in exits))
    edge_of_text = x + INDENT + TEXT
    for i, key in enumerate(keys):
        lane = edge_of_text + LANE * (i + 1)
        ink = ALARM if key[0] else PALE
        target = tops[key[1]] + BOX_HEIGHT / 2 - 4 + min(8, 3 * i) * (not key[0])
        for edge, y in exits:
            if (edge.hazard, edge.target) == key:
                points = [(edge_of_text, y), (lane, y), (lane, target), (x + BOX, target)]
                picture.line(points, colour=ink, dashed=edge.hazard, arrow=True)
    return INDENT + TEXT + LANE * (len(keys) + 1)

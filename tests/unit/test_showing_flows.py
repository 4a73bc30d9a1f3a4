"""Flows and stories as diagrams, whatever their texts say; flows of one's own from a file."""

import re
import xml.etree.ElementTree as ET

import pytest
from diagrams import mermaid_text, read_dot, read_flowchart, read_sequence
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_flows import flows

from ghcbcore.errors import SevError
from pysev.flow import Flow, add, op, put, when
from pysev.showing.chart import chart_of, dot_chart, mermaid_chart
from pysev.showing.chartpicture import svg_chart
from pysev.showing.finding import BadFlow, find_scenario
from pysev.showing.picture import svg_sequence
from pysev.showing.pseudocode import pseudocode
from pysev.showing.sequence import escaped, mermaid_sequence
from pysev.showing.story import play
from pysev.showing.timeline import WIDTH

# -- diagrams ----------------------------------------------------------------------------------


def nasty():
    flow = Flow('a "flow"; #1')
    flow.globals(x=0)
    boot = flow.agent('agent; "A" <b> #35; %% end')
    text = 'end; #quot; "q" <br/> -->> p0: {x} | `y` \\ & %% é'
    boot.at('label "1"; #', op(text, do=[put(flow.g.x, 1)]))
    boot.at("end", ends=True)
    other = flow.agent("B\x1b[31m")
    other.at("a", op("two\nlines", when=[flow.g.x == 1]))
    other.at("b", ends=True)
    return flow, text


def test_whatever_a_text_says_it_is_text_in_a_diagram():
    flow, text = nasty()
    compiled = flow.compile(1)
    story = play(compiled, [(0, -1, -1), (1, -1, -1)])
    people, events = read_sequence(mermaid_sequence(story, {2: "a mark; #"}))
    assert list(people.values()) == ['agent; "A" <b> #35; %% end', "B\\x1b[31m"]
    assert events == [
        ("arrow", ("p0", "p1"), f"1. {text}"),
        ("note", ("p1",), "2. two lines"),
        ("note", ("p1",), "a mark; #"),
    ]
    picture = ET.fromstring(svg_sequence(story, flow.name, {2: "<mark>"}))
    shown = " ".join(e.text for e in picture.iter("{http://www.w3.org/2000/svg}text"))
    assert "<mark>" in shown and "two lines" in shown


def test_whatever_a_text_says_it_is_text_in_a_chart():
    flow, text = nasty()
    chart = chart_of(flow)
    agents, nodes, edges = read_flowchart(mermaid_chart(chart))
    assert len(agents) == 2 and list(nodes.values())[:2] == [
        ('label "1"; #', False),
        ("end", True),
    ]
    assert [e[2] for e in edges] == [text, "two lines\n[x == 1]"]
    assert len(read_dot(dot_chart(chart, flow.name))[1]) == 2
    ET.fromstring(svg_chart(chart, flow.name))


@given(st.text(max_size=50))
def test_escaped_text_is_shown_as_it_was(text):
    text = "".join(c for c in text if c.isprintable())
    assert mermaid_text(escaped(text)) == text


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(flows())
def test_any_flow_has_a_chart_and_pseudocode(flow):
    flow.compile(3)
    chart = chart_of(flow)
    _, nodes, edges = read_flowchart(mermaid_chart(chart))
    dot_nodes, dot_edges = read_dot(dot_chart(chart, flow.name))
    assert len(nodes) == sum(len(a.labels) for a in flow.agents) == len(dot_nodes)
    assert [(a, b) for a, b, *_ in edges] == [(a, b) for a, b, _ in dot_edges]
    ET.fromstring(svg_chart(chart, "t"))
    lines = pseudocode(flow).splitlines()
    assert all(len(line) <= WIDTH for line in lines)
    assert sum("something" in line for line in lines) == sum(len(a.edges) for a in chart)


def test_a_conditional_effect_is_said_with_its_condition():
    flow = Flow("conditional")
    flow.globals(a=0, b=0)
    boot = flow.agent("boot CPU")
    body = when(flow.g.a == 1, put(flow.g.b, 2), otherwise=[add(flow.g.b, -1)])
    boot.at("x", op("sets", do=[body]), op("stays", when=[flow.g.b == 5], to="."))
    boot.at("y", ends=True)
    shown = pseudocode(flow)
    assert "{ if a == 1: b := 2; if not a == 1: b -= 1 }" in shown
    assert "  x:\n" in shown and "or      if b == 5: stays; goto x" in shown


# -- flows of one's own ------------------------------------------------------------------------

OWN = '''
"""Flows."""
from pysev import Flow, op
flow = Flow("own")
flow.agent("boot CPU").at("end", ends=True)
flow.agents[0].add("end", op("turns", to="."))
print("noise")
def made(): return flow
def of(machine):
    """of a machine"""
    assert machine.n_cpus
    return flow
def two(a, b): return flow
def bad(): return 1
def fails(): raise KeyError("x")
number = 1
'''


@pytest.mark.parametrize("name", ["flow", "made", "of"])
def test_a_flow_of_ones_own_is_found(tmp_path, capsys, name):
    from pysev import Machine

    path = tmp_path / "own.py"
    path.write_text(OWN)
    found = find_scenario(f"{path}:{name}")
    assert found.build(Machine.of(2)).name == "own"
    assert capsys.readouterr().out == ""
    assert found.summary == ("of a machine" if name == "of" else "a flow of one's own")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "has no 'none'"),
        ("two", "takes a, b; it may take nothing, or `machine`"),
        ("bad", "returned int, not a Flow"),
        ("fails", "KeyError: 'x'"),
        ("number", "neither a Flow nor a function"),
    ],
)
def test_what_is_no_flow_is_refused(tmp_path, name, message):
    from pysev import Machine

    path = tmp_path / "own.py"
    path.write_text(OWN)
    with pytest.raises(BadFlow, match=message):
        find_scenario(f"{path}:{name}").build(Machine.of(2))


@pytest.mark.parametrize("text", ["syntax error(", "raise SystemExit(3)", "1/0"])
def test_a_file_that_cannot_be_run_is_refused(tmp_path, text):
    path = tmp_path / "own.py"
    path.write_text(text)
    with pytest.raises(BadFlow, match=re.escape(str(path))):
        find_scenario(f"{path}:flow")
    with pytest.raises(SevError):
        find_scenario("no-such/scenario")

"""Strict readers of the parts of Mermaid and DOT that pysev writes, and no more.

They take less than the real ones: a character that has a meaning in either language may stand in
text only as an entity (Mermaid) or escaped (DOT). What they refuse is a bug of the writer.
"""

import re

ENTITY = re.compile(r"#([0-9]+);")
RAW = re.compile(r'[^#;"<>{}|`%\\&\n]*')


def mermaid_text(text):
    """Return text as it will be shown; AssertionError for a character that means something."""
    out, at = [], 0
    for found in re.finditer(r"#[0-9]+;|<br/>", text):
        assert RAW.fullmatch(text[at : found.start()]), text
        entity = ENTITY.fullmatch(found[0])
        out += [text[at : found.start()], chr(int(entity[1])) if entity else "\n"]
        at = found.end()
    assert RAW.fullmatch(text[at:]), text
    return "".join([*out, text[at:]])


def read_sequence(text):
    """Return ({id: title}, [(kind, ids, text)]) of a ``sequenceDiagram``."""
    lines = text.splitlines()
    assert lines[0] == "sequenceDiagram" and text.endswith("\n")
    people, events = {}, []
    for line in lines[1:]:
        assert line.startswith("    ") and line == line.rstrip(), line
        line = line[4:]
        if found := re.fullmatch(r"participant (p[0-9]+) as (\S.*)", line):
            assert found[1] not in people and not events
            people[found[1]] = mermaid_text(found[2])
        elif found := re.fullmatch(r"Note over (p[0-9]+): (\S.*)", line):
            events.append(("note", (found[1],), mermaid_text(found[2])))
        else:
            found = re.fullmatch(r"(p[0-9]+)->>(p[0-9]+): (\S.*)", line)
            assert found, line
            events.append(("arrow", (found[1], found[2]), mermaid_text(found[3])))
        assert all(one in people for _, ids, _ in events[-1:] for one in ids), line
    return people, events


def read_flowchart(text):
    """Return ({agent: title}, {node: (label, is_round)}, [(from, to, text, is_dashed)])."""
    lines = text.splitlines()
    assert lines[0] == "flowchart TD"
    agents, nodes, edges, inside = {}, {}, [], False
    for line in lines[1:]:
        line = line.strip()
        if found := re.fullmatch(r'subgraph (a[0-9]+)\["(.+)"\]', line):
            assert not inside and found[1] not in agents
            agents[found[1]], inside = mermaid_text(found[2]), True
        elif line == "end":
            assert inside
            inside = False
        elif found := re.fullmatch(r'(n[0-9]+_[0-9]+)(\(\[|\[)"(.+)"(\]\)|\])', line):
            assert found[1] not in nodes and (found[2] == "([") == (found[4] == "])")
            nodes[found[1]] = mermaid_text(found[3]), found[2] == "(["
        else:
            found = re.fullmatch(r'(n\d+_\d+) (-->|-\.->)\|"(.+)"\| (n\d+_\d+)', line)
            assert found, line
            edges.append((found[1], found[4], mermaid_text(found[3]), found[2] == "-.->"))
    assert not inside
    assert all(a in nodes and b in nodes for a, b, _, _ in edges)
    return agents, nodes, edges


TOKEN = re.compile(r'\s+|"(?:[^"\\\n]|\\["\\n])*"|->|[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[{}\[\];=,]')


def read_dot(text):
    """Return (set of nodes, [(from, to, is_dashed)]) of a ``digraph``."""
    tokens, at = [], 0
    while at < len(text):
        found = TOKEN.match(text, at)
        assert found, text[at : at + 60]
        at = found.end()
        if not found[0].isspace():
            tokens.append(found[0])
    assert tokens[0] == "digraph" and tokens[2] == "{" and tokens[-1] == "}"
    nodes, edges, depth, i = set(), [], 0, 2
    while i < len(tokens):
        token = tokens[i]
        if token in "{}":
            depth += 1 if token == "{" else -1
            i += 1
            continue
        if token == "subgraph":
            i += 2
            continue
        end = tokens.index(";", i)
        statement = tokens[i:end]
        i = end + 1
        assert not {"{", "}"} & set(statement), statement
        if "->" in statement:
            edges.append((statement[0], statement[2], "dashed" in statement))
        elif statement[0] not in ("node", "edge", "label"):
            assert statement[0] not in nodes and statement[1] == "["
            nodes.add(statement[0])
    assert depth == 0
    assert all(a in nodes and b in nodes for a, b, _ in edges)
    return nodes, edges

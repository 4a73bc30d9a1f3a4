"""``eventually`` where one can go round in every state: as many components as states."""

import pytest

from pysev.checking import check
from pysev.flow import Flow, add, op, put

N = 20


def spinning(fairness, *, able=0):
    """Three counters, somebody who spins in every state, and a bell that can be rung at last."""
    flow = Flow("spinning")
    flow.globals(a=0, b=0, c=0, rung=0)
    for name in ("a", "b", "c"):
        word = getattr(flow.g, name)
        flow.agent(name).at(
            "count", op(f"{name} + 1", when=[word < N], do=[add(word, 1)], to="."), ends=True
        )
    flow.agent("spinner").at("spin", op("spins", to="."), ends=True)
    bell = flow.agent("bell")
    bell.at("ring", op("rings", when=[flow.g.a >= able], do=[put(flow.g.rung, 1)]), ends=True)
    bell.at("rung", ends=True)
    flow.eventually("it rings", lambda s: s.g.rung == 1, fairness=fairness)
    return flow


@pytest.mark.parametrize(
    ("fairness", "able", "verdict"),
    [
        ("weak", 0, "holds"),
        ("strong", 0, "holds"),
        ("none", 0, "violated"),
        ("weak", N, "holds"),
        ("weak", N + 1, "violated"),
    ],
)
def test_every_component_is_judged(fairness, able, verdict):
    result = check(spinning(fairness, able=able), 1)
    assert (result.verdict, result.complete) == (verdict, True)
    assert result.property == ("it rings" if verdict == "violated" else "")

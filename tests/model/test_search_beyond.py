"""``eventually`` beside a violation: what follows from it was not searched, and is no matter."""

from pysev.checking import check
from pysev.flow import Flow, add, op, put


def test_parts_beyond_a_violation_are_no_part_of_the_graph():
    flow = Flow("beyond")
    flow.per_cpu(n=0)
    flow.agent("boot CPU").at("idle", ends=True)
    cpu = flow.agent("CPU", per_cpu=True)
    cpu.at(
        "count",
        op("n + 1", when=[flow.cpu.n < 255], do=[add(flow.cpu.n, 1)], to="."),
        op("n = 1000", when=[flow.cpu.n == 255], do=[put(flow.cpu.n, 1000)], to="."),
        ends=True,
    )
    flow.always("never 255", lambda s: (s.cpu.n != 255).all(axis=1))
    flow.eventually("it grows", lambda s: (s.cpu.n >= 3).any(axis=1))
    result = check(flow, 2)  # the violation's successor would be slice 256: no id of one byte
    assert (result.verdict, result.property, result.states) == ("violated", "never 255", 256)
    assert set(result.violations) == {"never 255"}
